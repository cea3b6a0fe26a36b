//! The catalog: which keyspaces there are, which group carries each, and on which nodes that group's replicas shall be. The
//! root group's keyspace holds it, under keys of its own beside those of the `roster`:
//!
//! | key | value |
//! |---|---|
//! | `keyspaces/` and a name | a [`KeyspaceRecord`] |
//! | `groups/` and an id in hexadecimal | the group's [`Placement`] |
//! | `leaving/`, a group's id and a node's | the replica that is not wanted there any more and not yet gone |
//! | `draining/` and a node's id | nothing: the node is to be emptied |
//! | `balancing-paused` | nothing: load is not balanced, only what is broken is mended |
//! | `moves/`, a time and a group's id | the [`MoveRecord`] of a move of that time |
//! | `next-group` | the next group id that was never used |
//!
//! Every change is a txn that only succeeds if nobody else changed the same records meanwhile. That decides it; carrying it out is
//! the business of the nodes that are named (`placement`) and of the group's leader (`reconfigure`), who compares the
//! revision of the placement with the one that its group's configuration was made for.
//!
//! The keyspace `default` and the root group are not in it: they exist from the start, and are on every member.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, GroupId, NodeId, ReplicaId};
use hadron_keyspace::{Command, Keyspace};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use pb::request_op::Request;
use prost::Message as _;

use crate::roster::{condition, decode, put, range};

/// Keys of keyspaces in the root group's keyspace: this prefix, then the name.
pub const KEYSPACES_PREFIX: &str = "keyspaces/";
/// Keys of placements: this prefix, then the group's id in hexadecimal.
pub const GROUPS_PREFIX: &str = "groups/";
/// Keys of replicas that are not gone yet: this prefix, then the ids of group and node in hexadecimal.
pub const LEAVING_PREFIX: &str = "leaving/";
/// Keys of nodes that are to be emptied: this prefix, then the id in hexadecimal.
pub const DRAINING_PREFIX: &str = "draining/";
/// The key that is there while load is not balanced.
pub const PAUSED_KEY: &str = "balancing-paused";
/// Keys of moves: this prefix, then time and group in hexadecimal.
pub const MOVES_PREFIX: &str = "moves/";
/// The key of the next group id.
pub const NEXT_GROUP_KEY: &str = "next-group";
/// The keyspace that etcd's clients see unless they choose another.
pub const DEFAULT_KEYSPACE: &str = "default";
/// The first group id after those that exist from the start.
const FIRST_GROUP: u64 = DEFAULT_GROUP.0 + 1;
/// Moves that one command forgets.
const FORGOTTEN_AT_ONCE: usize = 100;
/// A name must fit into a host name.
const NAME_BYTES_MAX: usize = 63;

/// What a keyspace may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum KeyspaceState {
    /// Everything.
    Active = 0,
    /// Reading.
    Frozen = 1,
}

/// A keyspace, as the pool knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyspaceRecord {
    /// Its name: up to 63 lower-case letters, digits and hyphens, as in a host name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The group that carries it.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// What it may be used for.
    #[prost(enumeration = "KeyspaceState", tag = "3")]
    pub state: i32,
    /// Replicas that it shall have.
    #[prost(uint32, tag = "4")]
    pub replicas: u32,
    /// Bytes that it may hold; 0 for no bound.
    #[prost(uint64, tag = "5")]
    pub bytes_max: u64,
    /// Requests a second that each node takes for it; 0 for no bound.
    #[prost(uint64, tag = "6")]
    pub requests_per_second_max: u64,
    /// When it was made, on the clock of the node that was asked; for people.
    #[prost(int64, tag = "7")]
    pub created_at_ms: i64,
}

/// One replica of a group.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Place {
    /// The replica. Never used again.
    #[prost(uint64, tag = "1")]
    pub replica: u64,
    /// Where it is.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

/// Where a group's replicas shall be.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Placement {
    /// Who votes, once it has caught up.
    #[prost(message, repeated, tag = "1")]
    pub places: Vec<Place>,
    /// Who voted when the group was made.
    #[prost(message, repeated, tag = "2")]
    pub first: Vec<Place>,
    /// The next replica id that was never used.
    #[prost(uint64, tag = "3")]
    pub next_replica: u64,
    /// Why the last change was made; for people.
    #[prost(string, tag = "4")]
    pub reason: String,
}

/// A move that was decided.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MoveRecord {
    /// When, in milliseconds since the epoch, on the clock of the node that planned; for people.
    #[prost(int64, tag = "1")]
    pub at_ms: i64,
    /// The group.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// What was decided.
    #[prost(string, tag = "3")]
    pub kind: String,
    /// Why, in one word.
    #[prost(string, tag = "4")]
    pub cause: String,
    /// Why.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// What it was expected to bring.
    #[prost(string, tag = "6")]
    pub effect: String,
    /// Bytes that had to be sent.
    #[prost(uint64, tag = "7")]
    pub bytes: u64,
}

/// The moves that are remembered, oldest first, as far as they can be read.
pub fn moves(root: &Keyspace) -> Vec<MoveRecord> {
    let records = range(root, MOVES_PREFIX, true).unwrap_or_default().into_iter();
    records.filter_map(|pair| MoveRecord::decode(pair.value).ok()).collect()
}

/// The command that forgets the oldest moves beyond `kept`, if there are so many.
pub fn forget_moves(root: &Keyspace, kept: usize) -> Option<Command> {
    let moves = range(root, MOVES_PREFIX, true).unwrap_or_default();
    let keys: Vec<Bytes> = moves.into_iter().map(|pair| pair.key).collect();
    let surplus = keys.len().saturating_sub(kept).min(FORGOTTEN_AT_ONCE);
    (surplus > 0).then(|| txn(Vec::new(), keys.into_iter().take(surplus).map(delete).collect()))
}

/// Why the catalog cannot be changed like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The name cannot be one.
    #[error(
        "{0:?} cannot be a keyspace's name: use up to 63 lower-case letters, digits and hyphens, beginning and ending with \
         a letter or digit"
    )]
    BadName(String),
    /// There is one of that name.
    #[error("keyspace {0} exists already")]
    Exists(String),
    /// There is none of that name.
    #[error("there is no keyspace {0}: `hadron ctl keyspace list` shows those there are")]
    NotFound(String),
    /// `default` is always there.
    #[error("the keyspace default is always there: it can be neither made nor deleted")]
    IsDefault,
    /// `default` follows the members, and is what etcd's clients expect.
    #[error(
        "the keyspace default can be neither frozen nor limited, and has a replica on every member: what needs that belongs into a \
         keyspace of its own (`hadron ctl keyspace create`)"
    )]
    DefaultIsFixed,
    /// A group without replicas cannot be.
    #[error("a keyspace needs at least one replica")]
    NoReplicas,
}

impl KeyspaceRecord {
    /// The group that carries it.
    pub fn group_id(&self) -> GroupId {
        GroupId(self.group)
    }

    /// Whether it must not be written to. A state that only a newer version knows forbids something; so it forbids all that this one could
    /// forbid.
    pub fn is_frozen(&self) -> bool {
        self.state != KeyspaceState::Active as i32
    }

    /// The keyspace that is always there.
    fn default_keyspace() -> KeyspaceRecord {
        KeyspaceRecord {
            name: DEFAULT_KEYSPACE.to_owned(),
            group: DEFAULT_GROUP.0,
            ..KeyspaceRecord::default()
        }
    }
}

impl Placement {
    /// A group's first placement: replica n on the n-th of `nodes`.
    fn first(nodes: &[NodeId], reason: &str) -> Placement {
        let places: Vec<Place> =
            nodes.iter().zip(1..).map(|(node, replica)| Place { replica, node: node.0 }).collect();
        Placement {
            next_replica: places.len() as u64 + 1,
            first: places.clone(),
            places,
            reason: reason.to_owned(),
        }
    }

    /// The replica that shall be on `node`.
    pub fn replica_on(&self, node: NodeId) -> Option<ReplicaId> {
        let place = self.places.iter().find(|place| place.node == node.0);
        place.map(|place| ReplicaId(place.replica))
    }

    /// Whether it is another than the one that the group was made with.
    pub fn was_changed(&self) -> bool {
        self.places != self.first
    }

    /// The nodes that shall have a replica.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.places.iter().map(|place| NodeId(place.node))
    }

    /// The voters that the group was made with, if `replica` is one of them. Who came later begins without members, and hears from the leader who
    /// they are.
    pub(crate) fn voters_from_the_start(&self, replica: ReplicaId) -> Vec<(ReplicaId, NodeId)> {
        let first = self.first.iter().map(|place| (ReplicaId(place.replica), NodeId(place.node)));
        let voters: Vec<_> = first.collect();
        let was_there = voters.iter().any(|(id, _)| *id == replica);
        if was_there { voters } else { Vec::new() }
    }

    /// The same group on `nodes`, of which each has it once: who stays keeps its replica, who comes gets one that was never used.
    pub fn moved_to(&self, nodes: &[NodeId], reason: &str) -> Placement {
        let mut next = Placement { places: Vec::new(), reason: reason.to_owned(), ..self.clone() };
        for (at, node) in nodes.iter().enumerate() {
            if nodes[..at].contains(node) {
                continue;
            }
            let replica = self.replica_on(*node).map(|replica| replica.0).unwrap_or_else(|| {
                next.next_replica += 1;
                next.next_replica - 1
            });
            next.places.push(Place { replica, node: node.0 });
        }
        next
    }
}

/// A record, and the revision of the root group at which it was last changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded<T> {
    /// The revision.
    pub revision: i64,
    /// The record.
    pub record: T,
}

/// What the root group says about keyspaces and where they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    keyspaces: BTreeMap<String, Recorded<KeyspaceRecord>>,
    placements: BTreeMap<GroupId, Recorded<Placement>>,
    /// Replicas that are not wanted any more and not yet gone.
    leaving: BTreeMap<(GroupId, NodeId), Recorded<ReplicaId>>,
    /// Nodes that are to be emptied.
    draining: BTreeSet<NodeId>,
    is_paused: bool,
    /// The next group id, and since which revision it is that.
    next_group: Option<(i64, u64)>,
}

impl Catalog {
    /// Reads the root group's keyspace whole.
    ///
    /// # Errors
    /// Something of it cannot be read. What is missing then is not deleted.
    pub fn read(root: &Keyspace) -> Result<Catalog, String> {
        let mut catalog = Catalog::default();
        for prefix in [KEYSPACES_PREFIX, GROUPS_PREFIX, LEAVING_PREFIX, DRAINING_PREFIX] {
            range(root, prefix, true)?.into_iter().try_for_each(|pair| catalog.take(pair))?;
        }
        for key in [NEXT_GROUP_KEY, PAUSED_KEY] {
            range(root, key, false)?.into_iter().try_for_each(|pair| catalog.take(pair))?;
        }
        Ok(catalog)
    }

    /// Reads again what `keys` of the root group's keyspace hold. Returns the groups whose placement may be another now.
    ///
    /// # Errors
    /// Some of it cannot be read; that is as it was, and the rest may be.
    pub(crate) fn refresh(
        &mut self,
        root: &Keyspace,
        keys: &BTreeSet<Bytes>,
    ) -> Result<Vec<GroupId>, String> {
        let mut groups = Vec::new();
        for key in keys.iter().filter_map(|key| std::str::from_utf8(key).ok()) {
            let pair = range(root, key, false)?.pop();
            let group = key.strip_prefix(GROUPS_PREFIX).and_then(parse_group);
            match pair {
                Some(pair) => self.take(pair)?,
                None => self.forget(key, group),
            }
            groups.extend(group);
        }
        Ok(groups)
    }

    fn take(&mut self, pair: KeyValue) -> Result<(), String> {
        let Ok(key) = std::str::from_utf8(&pair.key) else { return Ok(()) };
        let revision = pair.mod_revision;
        if let Some(name) = key.strip_prefix(KEYSPACES_PREFIX) {
            let record = decode(&pair)?;
            self.keyspaces.insert(name.to_owned(), Recorded { revision, record });
        } else if let Some(group) = key.strip_prefix(GROUPS_PREFIX).and_then(parse_group) {
            let record = decode(&pair)?;
            self.placements.insert(group, Recorded { revision, record });
        } else if let Some(place) = parse_leaving(key) {
            let replica = std::str::from_utf8(&pair.value).ok().and_then(|text| text.parse().ok());
            let recorded = |replica| Recorded { revision, record: ReplicaId(replica) };
            replica.map(|replica| self.leaving.insert(place, recorded(replica)));
        } else if let Some(node) = key.strip_prefix(DRAINING_PREFIX).and_then(parse_node) {
            self.draining.insert(node);
        } else if key == PAUSED_KEY {
            self.is_paused = true;
        } else if key == NEXT_GROUP_KEY {
            let number = std::str::from_utf8(&pair.value).ok().and_then(|text| text.parse().ok());
            self.next_group = number.map(|number| (revision, number));
        }
        Ok(())
    }

    fn forget(&mut self, key: &str, group: Option<GroupId>) {
        if let Some(name) = key.strip_prefix(KEYSPACES_PREFIX) {
            self.keyspaces.remove(name);
        }
        if let Some(group) = group {
            self.placements.remove(&group);
        }
        if let Some(place) = parse_leaving(key) {
            self.leaving.remove(&place);
        }
        if let Some(node) = key.strip_prefix(DRAINING_PREFIX).and_then(parse_node) {
            self.draining.remove(&node);
        }
        self.is_paused &= key != PAUSED_KEY;
    }

    /// The keyspace of this name; `default` is always there.
    pub fn keyspace(&self, name: &str) -> Option<KeyspaceRecord> {
        let recorded = self.keyspaces.get(name).map(|recorded| recorded.record.clone());
        recorded.or_else(|| (name == DEFAULT_KEYSPACE).then(KeyspaceRecord::default_keyspace))
    }

    /// What is recorded of a keyspace; nothing is of `default`.
    pub fn record(&self, name: &str) -> Option<&KeyspaceRecord> {
        self.keyspaces.get(name).map(|recorded| &recorded.record)
    }

    /// The keyspaces by name, but for `default`.
    pub fn keyspaces(&self) -> impl Iterator<Item = &KeyspaceRecord> {
        self.keyspaces.values().map(|recorded| &recorded.record)
    }

    /// Where a group shall be; `None` for one that is not in the catalog, as the root group and that of `default`.
    pub fn placement(&self, group: GroupId) -> Option<&Recorded<Placement>> {
        self.placements.get(&group)
    }

    /// All placements, by group.
    pub fn placements(&self) -> impl Iterator<Item = (GroupId, &Recorded<Placement>)> {
        self.placements.iter().map(|(group, recorded)| (*group, recorded))
    }

    /// The replica of `group` that is not gone from `node` yet, although it is not wanted there since the revision beside it. Until it
    /// is gone the group cannot come back there.
    pub fn leaving(&self, group: GroupId, node: NodeId) -> Option<&Recorded<ReplicaId>> {
        self.leaving.get(&(group, node))
    }

    /// The nodes that a replica of `group` is to leave.
    pub fn leaving_of(&self, group: GroupId) -> impl Iterator<Item = NodeId> + '_ {
        let of_group = (group, NodeId(0))..=(group, NodeId(u64::MAX));
        self.leaving.range(of_group).map(|((_, node), _)| *node)
    }

    /// The nodes that are to be emptied.
    pub fn draining(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.draining.iter().copied()
    }

    /// Whether `node` is to be emptied.
    pub fn is_draining(&self, node: NodeId) -> bool {
        self.draining.contains(&node)
    }

    /// Whether load is left as it is.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The command that wants `node` emptied, or not any more.
    pub fn drain(node: NodeId, wanted: bool) -> Command {
        let key = draining_key(node);
        txn(Vec::new(), vec![if wanted { put(key, Vec::new()) } else { delete(key) }])
    }

    /// The command that leaves load as it is, or balances it again.
    pub fn pause(wanted: bool) -> Command {
        let key = Bytes::from_static(PAUSED_KEY.as_bytes());
        txn(Vec::new(), vec![if wanted { put(key, Vec::new()) } else { delete(key) }])
    }

    /// How many replicas are not gone yet.
    pub fn leaving_count(&self) -> usize {
        self.leaving.len()
    }

    /// The command that forgets what nodes that are no members were to do, if there is such a thing: they will not.
    pub fn forget_strangers(&self, is_member: impl Fn(NodeId) -> bool) -> Option<Command> {
        let left = self.leaving.keys().filter(|(_, node)| !is_member(*node));
        let left = left.map(|(group, node)| leaving_key(*group, *node));
        let drained = self.draining.iter().filter(|node| !is_member(**node));
        let keys = left.chain(drained.map(|node| draining_key(*node))).take(FORGOTTEN_AT_ONCE);
        let deletes: Vec<_> = keys.map(delete).collect();
        (!deletes.is_empty()).then(|| txn(Vec::new(), deletes))
    }

    /// The groups that are to leave `node`.
    pub(crate) fn leaving_node(&self, node: NodeId) -> impl Iterator<Item = GroupId> + '_ {
        self.leaving.keys().filter(move |(_, on)| *on == node).map(|(group, _)| *group)
    }

    /// The command that says that the replicas are gone that were to leave `node` since the revisions beside their groups. Its txn does
    /// not succeed if another one is to leave there by now: then ask again with a newer catalog.
    pub(crate) fn left(gone: &[(GroupId, i64)], node: NodeId) -> Command {
        let keys = gone.iter().map(|(group, since)| (leaving_key(*group, node), *since));
        let (compare, success) =
            keys.map(|(key, since)| (condition(key.clone(), since), delete(key))).unzip();
        txn(compare, success)
    }

    /// Whether the group was made and is gone. One that is not known may still come.
    pub fn is_deleted(&self, group: GroupId) -> bool {
        let (_, next) = self.next_group.unwrap_or((0, FIRST_GROUP));
        (FIRST_GROUP..next).contains(&group.0) && !self.placements.contains_key(&group)
    }

    /// How many replicas of groups of the catalog shall be on each node.
    pub fn replica_counts(&self) -> BTreeMap<NodeId, usize> {
        let mut counts = BTreeMap::new();
        for node in self.placements.values().flat_map(|recorded| recorded.record.nodes()) {
            *counts.entry(node).or_default() += 1;
        }
        counts
    }

    /// The command that makes a keyspace on `nodes`. Its txn does not succeed if the name was taken meanwhile, or another group made:
    /// then ask again with a newer catalog. `wanted.group` and `wanted.replicas` do not count.
    ///
    /// # Errors
    /// [`CatalogError::BadName`], [`CatalogError::Exists`], [`CatalogError::IsDefault`], [`CatalogError::NoReplicas`].
    pub fn create(&self, wanted: &KeyspaceRecord, nodes: &[NodeId]) -> Result<Command, CatalogError> {
        let name = &wanted.name;
        check_name(name)?;
        if self.keyspaces.contains_key(name) {
            return Err(CatalogError::Exists(name.clone()));
        }
        if nodes.is_empty() {
            return Err(CatalogError::NoReplicas);
        }
        let (revision, group) = self.next_group.unwrap_or((0, FIRST_GROUP));
        let record = KeyspaceRecord { group, replicas: nodes.len() as u32, ..wanted.clone() };
        let placement = Placement::first(nodes, "the keyspace was made");
        let compare = vec![condition(keyspace_key(name), 0), condition(NEXT_GROUP_KEY.into(), revision)];
        let success = vec![
            put(keyspace_key(name), record.encode_to_vec()),
            put(group_key(GroupId(group)), placement.encode_to_vec()),
            put(NEXT_GROUP_KEY.into(), (group + 1).to_string().into_bytes()),
        ];
        Ok(txn(compare, success))
    }

    /// The command that puts `record` in the place of the keyspace of its name, with its group kept.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::DefaultIsFixed`].
    pub fn alter(&self, record: &KeyspaceRecord) -> Result<Command, CatalogError> {
        let present = self.recorded(&record.name, CatalogError::DefaultIsFixed)?;
        let record = KeyspaceRecord { group: present.record.group, ..record.clone() };
        let key = keyspace_key(&record.name);
        let compare = vec![condition(key.clone(), present.revision)];
        Ok(txn(compare, vec![put(key, record.encode_to_vec())]))
    }

    /// The command that deletes a keyspace with all that is in it.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], [`CatalogError::IsDefault`].
    pub fn delete(&self, name: &str) -> Result<Command, CatalogError> {
        let present = self.recorded(name, CatalogError::IsDefault)?;
        let key = keyspace_key(name);
        let compare = vec![condition(key.clone(), present.revision)];
        Ok(txn(compare, vec![delete(key), delete(group_key(present.record.group_id()))]))
    }

    /// The command that wants a group's replicas on `nodes`, for `reason`. `None` if it is not in the catalog, or there already, or
    /// if a new place is on a node that has not given up its last replica of the group.
    pub fn place(&self, group: GroupId, nodes: &[NodeId], reason: &str) -> Option<Command> {
        let present = self.placement(group)?;
        let next = present.record.moved_to(nodes, reason);
        let is_there = next.places == present.record.places;
        if is_there || nodes.is_empty() {
            return None;
        }
        let mut compare = vec![condition(group_key(group), present.revision)];
        let mut success = vec![put(group_key(group), next.encode_to_vec())];
        for new in next.nodes().filter(|node| present.record.replica_on(*node).is_none()) {
            if self.leaving(group, new).is_some() {
                return None;
            }
            compare.push(condition(leaving_key(group, new), 0));
        }
        for gone in present.record.places.iter().filter(|place| !nodes.contains(&NodeId(place.node))) {
            success.push(put(leaving_key(group, NodeId(gone.node)), gone.replica.to_string().into_bytes()));
        }
        Some(txn(compare, success))
    }

    /// The same for a move that a planner decided, which is remembered.
    pub fn place_recorded(&self, group: GroupId, nodes: &[NodeId], record: &MoveRecord) -> Option<Command> {
        let Command::Txn(mut placed) = self.place(group, nodes, &record.reason)? else { return None };
        placed.success.push(remembered(group, record));
        Some(Command::Txn(placed))
    }

    /// The command that does what two of this catalog do, or nothing.
    pub fn together(first: Command, second: Command) -> Command {
        match (first, second) {
            (Command::Txn(mut first), Command::Txn(second)) => {
                first.compare.extend(second.compare);
                first.success.extend(second.success);
                Command::Txn(first)
            }
            (first, _) => first,
        }
    }

    /// The command that remembers a move that does not change the placement.
    pub(crate) fn remember(group: GroupId, record: &MoveRecord) -> Command {
        txn(Vec::new(), vec![remembered(group, record)])
    }

    fn recorded(
        &self,
        name: &str,
        if_default: CatalogError,
    ) -> Result<&Recorded<KeyspaceRecord>, CatalogError> {
        if name == DEFAULT_KEYSPACE {
            return Err(if_default);
        }
        self.keyspaces.get(name).ok_or_else(|| CatalogError::NotFound(name.to_owned()))
    }
}

/// The keys of the catalog that a command of the root group may change. Nobody deletes or changes several by a range.
pub(crate) fn keys_of(command: &Command) -> BTreeSet<Bytes> {
    let Command::Txn(txn) = command else { return BTreeSet::new() };
    let key = |operation: &pb::RequestOp| match &operation.request {
        Some(Request::RequestPut(put)) => Some(put.key.clone()),
        Some(Request::RequestDeleteRange(delete)) => Some(delete.key.clone()),
        _ => None,
    };
    txn.success.iter().filter_map(key).filter(|key| is_ours(key)).collect()
}

fn is_ours(key: &[u8]) -> bool {
    let prefixes =
        [KEYSPACES_PREFIX, GROUPS_PREFIX, LEAVING_PREFIX, DRAINING_PREFIX, PAUSED_KEY, NEXT_GROUP_KEY];
    prefixes.iter().any(|prefix| key.starts_with(prefix.as_bytes()))
}

fn check_name(name: &str) -> Result<(), CatalogError> {
    if name == DEFAULT_KEYSPACE || name == "root" {
        return Err(CatalogError::IsDefault);
    }
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| is_letter(byte) || byte == b'-')
        && name.bytes().next().is_some_and(is_letter)
        && name.bytes().last().is_some_and(is_letter);
    if is_good { Ok(()) } else { Err(CatalogError::BadName(name.to_owned())) }
}

fn parse_group(text: &str) -> Option<GroupId> {
    u64::from_str_radix(text, 16).ok().map(GroupId)
}

fn parse_node(text: &str) -> Option<NodeId> {
    u64::from_str_radix(text, 16).ok().map(NodeId)
}

fn keyspace_key(name: &str) -> Bytes {
    format!("{KEYSPACES_PREFIX}{name}").into()
}

pub(crate) fn group_key(group: GroupId) -> Bytes {
    format!("{GROUPS_PREFIX}{:016x}", group.0).into()
}

fn draining_key(node: NodeId) -> Bytes {
    format!("{DRAINING_PREFIX}{:016x}", node.0).into()
}

pub(crate) fn leaving_key(group: GroupId, node: NodeId) -> Bytes {
    format!("{LEAVING_PREFIX}{:016x}/{:016x}", group.0, node.0).into()
}

fn parse_leaving(key: &str) -> Option<(GroupId, NodeId)> {
    let (group, node) = key.strip_prefix(LEAVING_PREFIX)?.split_once('/')?;
    Some((parse_group(group)?, parse_node(node)?))
}

fn remembered(group: GroupId, record: &MoveRecord) -> pb::RequestOp {
    let key = format!("{MOVES_PREFIX}{:016x}-{:016x}", record.at_ms, group.0);
    put(key.into(), record.encode_to_vec())
}

pub(crate) fn delete(key: Bytes) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest { key, ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
}

pub(crate) fn txn(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>) -> Command {
    Command::Txn(pb::TxnRequest { compare, success, failure: Vec::new() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_keyspace::{Applied, Response};
    use hadron_storage::engine::ModelEngine;

    use super::*;

    /// A keyspace that a newer version had closed was open again for all clients of a node of this one.
    #[test]
    fn a_keyspace_in_a_state_that_is_not_known_is_not_written_to() {
        let is_frozen = |state| KeyspaceRecord { state, ..KeyspaceRecord::default() }.is_frozen();
        assert_eq!([0, 1, 2, -1].map(is_frozen), [false, true, true, true]);
    }

    struct Root(Arc<Keyspace>, Catalog);

    impl Root {
        fn new() -> Root {
            let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap();
            Root(keyspace, Catalog::default())
        }

        /// The command that says that the group's replica is gone from a node that it is to leave.
        fn left(&self, group: GroupId, node: u64) -> Command {
            let since = self.1.leaving(group, NodeId(node)).unwrap().revision;
            Catalog::left(&[(group, since)], NodeId(node))
        }

        /// Whether the command's txn succeeded. The catalog is refreshed by the keys that it names.
        fn apply(&mut self, command: Command) -> bool {
            let keys = keys_of(&command);
            let applied = Applied { index: self.0.applied().index + 1, ..self.0.applied() };
            let response = self.0.apply(applied, vec![command]).pop().unwrap().unwrap();
            self.1.refresh(&self.0, &keys).unwrap();
            assert_eq!(self.1, Catalog::read(&self.0).unwrap(), "key by key as at once");
            matches!(response, Response::Txn(response) if response.succeeded)
        }

        fn create(&mut self, name: &str, nodes: &[u64]) -> Result<bool, CatalogError> {
            let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
            let wanted = KeyspaceRecord { name: name.into(), ..Default::default() };
            let command = self.1.create(&wanted, &nodes)?;
            Ok(self.apply(command))
        }
    }

    #[test]
    fn what_strangers_were_to_do_is_forgotten() {
        let mut root = Root::new();
        root.create("a", &[1, 2]).unwrap();
        let moved = root.1.place(GroupId(2), &[NodeId(3)], "").unwrap();
        assert!(root.apply(moved) && root.apply(Catalog::drain(NodeId(2), true)));
        assert_eq!(root.1.forget_strangers(|_| true), None);
        let forget = root.1.forget_strangers(|node| node != NodeId(2)).unwrap();
        assert!(root.apply(forget));
        assert!(!root.1.is_draining(NodeId(2)));
        assert_eq!(root.1.leaving_of(GroupId(2)).collect::<Vec<_>>(), [NodeId(1)]);
    }

    #[test]
    fn names_are_those_that_fit_into_a_host_name() {
        let mut root = Root::new();
        for good in ["a", "tenant-a", "7", &"x".repeat(63)] {
            assert_eq!(root.create(good, &[1]), Ok(true), "{good}");
        }
        for bad in ["", "A", "a.b", "-a", "a-", "a/b", "ä", &"x".repeat(64)] {
            assert_eq!(root.create(bad, &[1]), Err(CatalogError::BadName(bad.into())));
        }
        assert_eq!(root.create("default", &[1]), Err(CatalogError::IsDefault));
        assert_eq!(root.create("a", &[1]), Err(CatalogError::Exists("a".into())));
        assert_eq!(root.create("b", &[]), Err(CatalogError::NoReplicas));
    }

    #[test]
    fn a_group_is_never_used_again() {
        let mut root = Root::new();
        root.create("a", &[1, 2, 3]).unwrap();
        let first = root.1.keyspace("a").unwrap().group_id();
        assert_eq!(first, GroupId(2));
        let delete = root.1.delete("a").unwrap();
        assert!(root.apply(delete));
        assert_eq!(root.1.keyspace("a"), None);
        assert!(root.1.is_deleted(first) && root.1.placement(first).is_none());
        assert!(!root.1.is_deleted(GroupId(3)), "it may still come");
        root.create("a", &[1]).unwrap();
        assert_eq!(root.1.keyspace("a").unwrap().group_id(), GroupId(3));
    }

    #[test]
    fn of_two_changes_at_once_one_succeeds() {
        let mut root = Root::new();
        let wanted = |name: &str| KeyspaceRecord { name: name.into(), ..Default::default() };
        let one = root.1.create(&wanted("a"), &[NodeId(1)]).unwrap();
        let two = root.1.create(&wanted("b"), &[NodeId(1)]).unwrap();
        assert!(root.apply(one));
        assert!(!root.apply(two), "both would have the same group");
        let (one, two) = (root.1.delete("a").unwrap(), root.1.alter(&wanted("a")).unwrap());
        assert!(root.apply(one));
        assert!(!root.apply(two), "what was deleted does not come back");
    }

    #[test]
    fn who_stays_keeps_its_replica_and_no_replica_is_used_twice() {
        let mut root = Root::new();
        root.create("a", &[1, 2, 3]).unwrap();
        let group = GroupId(2);
        let place = |root: &mut Root, nodes: [u64; 3]| {
            let command = root.1.place(group, &nodes.map(NodeId), "test").unwrap();
            assert!(root.apply(command));
            let places = &root.1.placement(group).unwrap().record.places;
            places.iter().map(|place| (place.replica, place.node)).collect::<Vec<_>>()
        };
        assert_eq!(place(&mut root, [1, 4, 3]), [(1, 1), (4, 4), (3, 3)]);
        let back = [1, 2, 3].map(NodeId);
        assert_eq!(root.1.place(group, &back, "test"), None, "its replica there is not gone yet");
        assert_eq!(root.1.leaving(group, NodeId(2)).unwrap().record, ReplicaId(2));
        assert!(root.apply(root.left(group, 2)));
        assert_eq!(place(&mut root, [1, 2, 3]), [(1, 1), (5, 2), (3, 3)]);
        assert_eq!(root.1.place(group, &back, "test"), None, "it is there");
        assert_eq!(root.1.place(GroupId(9), &[NodeId(1)], "test"), None);
        let first = &root.1.placement(group).unwrap().record.first;
        assert_eq!(first.iter().map(|place| place.replica).collect::<Vec<_>>(), [1, 2, 3]);
    }

    /// A node that came back with an old catalog said once more that its replica was gone. Meanwhile another one was to leave there: the
    /// catalog forgot that one, and it stayed for ever.
    #[test]
    fn who_says_again_that_a_replica_is_gone_does_not_speak_of_the_next_one() {
        let mut root = Root::new();
        root.create("a", &[1, 2]).unwrap();
        let group = GroupId(2);
        let place = |root: &mut Root, nodes: &[u64]| {
            let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
            assert!(root.apply(root.1.place(group, &nodes, "test").unwrap()));
        };
        place(&mut root, &[1]);
        let left = root.left(group, 2);
        assert!(root.apply(left.clone()));
        place(&mut root, &[1, 2]);
        assert!(!root.apply(left.clone()), "nothing is to leave");
        place(&mut root, &[1]);
        assert!(!root.apply(left), "another replica is to leave");
        assert_eq!(root.1.leaving(group, NodeId(2)).unwrap().record, ReplicaId(3));
        assert!(root.apply(root.left(group, 2)));
    }

    #[test]
    fn default_is_there_and_cannot_be_changed() {
        let root = Root::new();
        assert_eq!(root.1.keyspace("default").unwrap().group_id(), DEFAULT_GROUP);
        assert_eq!(root.1.delete("default"), Err(CatalogError::IsDefault));
        let altered = root.1.alter(&root.1.keyspace("default").unwrap());
        assert_eq!(altered, Err(CatalogError::DefaultIsFixed));
        assert_eq!(root.1.delete("none"), Err(CatalogError::NotFound("none".into())));
    }
}
