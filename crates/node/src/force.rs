//! Force: a node whose others are lost for good makes the pool its own, with the data that it has (`--force-new-cluster`).
//!
//! It writes the end of its logs by itself: in the root group a roster of itself alone and, for each keyspace of the catalog that has a
//! replica here, a placement of that one alone; then in every group a configuration of itself
//! alone. These are entries like any other, of a term that nobody led, in which it has voted for itself; so it starts as after any
//! restart, is elected by its own vote, and commits what is in its logs. All of that: an entry that is not known to be committed may have
//! been acknowledged.
//!
//! Those who are lost were removed, and are told so should they come back. A keyspace that has no replica here is lost with them, and stays
//! in the catalog until somebody deletes it.

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{
    Configuration, Entry, GroupId, HardState, Index, LogPosition, NodeId, ROOT_GROUP, ReplicaId, Term,
    chain_checksum,
};
use hadron_keyspace::{Applied, Command, Keyspace};
use hadron_storage::wal::{Record, RecoveredGroup};
use prost::Message as _;

use crate::apply::decode;
use crate::catalog::{Catalog, Place, Placement, delete, group_key, leaving_key, txn};
use crate::config::GroupConfig;
use crate::envelope::{self, Origin};
use crate::event::{OpenJob, OpenOutcome};
use crate::groups::{applied_configuration, check_configurations, fit_log_to_engine};
use crate::membership::Member;
use crate::reconfigure::{Places, first_configuration};
use crate::roster::{Pool, Roster, put};

/// Why a keyspace is where it is afterwards; for people.
const REASON: &str = "the other members were lost, and this one was forced to go on alone";

/// What must go into the log for a pool of one.
#[derive(Debug, Default)]
pub struct Forced {
    /// The records, in their order; empty if the node is alone already.
    pub records: Vec<Record>,
    /// The others, who are lost: members, and removed ones that a group here still needs.
    pub lost: Vec<Member>,
    /// The keyspaces that are lost with them, by name: there is no replica here, or one that never heard of the others.
    pub lost_keyspaces: Vec<String>,
    /// The keyspaces whose replica here cannot be used, by name, and why. They are left as they are.
    pub unusable_keyspaces: Vec<(String, String)>,
}

/// A log that is written on by nobody's leave.
struct Log {
    group: GroupId,
    end: LogPosition,
    state: HardState,
    records: Vec<Record>,
}

impl Log {
    /// The log of a group, and its entries that are not in the engine.
    fn of(
        group: GroupId,
        keyspace: &Keyspace,
        recovered: RecoveredGroup,
    ) -> Result<(Log, Vec<Entry>), String> {
        let applied = keyspace.applied();
        let in_engine =
            LogPosition { term: Term(applied.term), index: Index(applied.index), checksum: applied.checksum };
        let RecoveredGroup { hard_state, floor, entries } = recovered;
        let (floor, mut entries) = fit_log_to_engine(group, in_engine, floor, entries)?;
        let end = entries.last().map_or(floor, Entry::position);
        entries.retain(|entry| entry.index > in_engine.index);
        // The log on disk may not know its floor yet.
        let records = vec![Record::Floor(group, floor)];
        Ok((Log { group, end, state: hard_state, records }, entries))
    }

    fn vote_for(&mut self, me: ReplicaId) {
        self.state.term = Term(self.state.term.max(self.end.term).0 + 1);
        self.state.voted_for = Some(me);
        self.records.push(Record::HardState(self.group, self.state));
    }

    fn append(&mut self, data: Bytes) {
        let (term, index) = (self.state.term, self.end.index.next());
        let checksum = chain_checksum(self.end.checksum, self.group, term, index, &data);
        let entry = Entry { term, index, checksum, data };
        self.end = entry.position();
        self.records.push(Record::Entries(self.group, vec![entry]));
    }
}

/// A replica here that goes on alone.
struct Survivor {
    me: ReplicaId,
    log: Log,
    /// What is in force at the end of the log.
    configuration: Configuration,
}

impl Survivor {
    /// The replica, and the entries of its log that are not in the engine.
    fn of(
        group: &GroupConfig,
        keyspace: &Keyspace,
        recovered: &BTreeMap<GroupId, RecoveredGroup>,
    ) -> Result<(Survivor, Vec<Entry>), String> {
        let stored = recovered.get(&group.group).cloned().unwrap_or_default();
        let (log, entries) = Log::of(group.group, keyspace, stored)?;
        let configuration = last_configuration(group, keyspace, &entries)?;
        Ok((Survivor { me: group.replica, log, configuration }, entries))
    }

    fn is_alone(&self) -> bool {
        self.configuration.members().eq([self.me])
    }

    /// Ends the log with `entries` and a configuration of this replica alone, made for `revision` of the root group.
    fn go_on_alone(&mut self, node: NodeId, revision: i64, entries: Vec<Bytes>) {
        self.log.vote_for(self.me);
        entries.into_iter().for_each(|data| self.log.append(data));
        let context = Places { revision, nodes: BTreeMap::from([(self.me, node)]) }.encode();
        self.log.append(Configuration { context, ..Configuration::new([self.me], []) }.encode());
    }
}

/// The keyspaces of the catalog, seen from a node whose others are lost.
#[derive(Default)]
struct Tenants {
    /// Those with a replica here, and the commands of the root group that place them here alone.
    here: Vec<(Survivor, Command)>,
    lost: Vec<String>,
    unusable: Vec<(String, String)>,
}

impl Tenants {
    fn of(
        node: NodeId,
        catalog: &Catalog,
        recovered: &BTreeMap<GroupId, RecoveredGroup>,
        open: &dyn Fn(OpenJob) -> OpenOutcome,
    ) -> Tenants {
        let mut tenants = Tenants::default();
        for keyspace in catalog.keyspaces() {
            let (name, group) = (keyspace.name.clone(), keyspace.group_id());
            let Some(placement) = catalog.placement(group).map(|placement| &placement.record) else {
                continue;
            };
            let is_in_log = recovered.contains_key(&group);
            let opened = match open(OpenJob { group, replica: None, is_in_log }) {
                OpenOutcome::Open(me, state) => tenant(group, me, placement, &state, recovered),
                OpenOutcome::Damaged(_, why) | OpenOutcome::Unusable(why) => Err(why),
                OpenOutcome::Gone => Ok(None),
            };
            match opened {
                Ok(Some(survivor)) => {
                    let place = place_alone(catalog, group, placement, (survivor.me, node));
                    tenants.here.push((survivor, place));
                }
                Ok(None) if is_to_begin_here(placement, node) => {}
                Ok(None) => tenants.lost.push(name),
                Err(why) => tenants.unusable.push((name, why)),
            }
        }
        tenants
    }
}

/// The replica `me` of a group of the catalog; `None` if it has yet to hear of its group, and so has nothing.
fn tenant(
    group: GroupId,
    me: ReplicaId,
    placement: &Placement,
    keyspace: &Keyspace,
    recovered: &BTreeMap<GroupId, RecoveredGroup>,
) -> Result<Option<Survivor>, String> {
    let voters = placement.voters_from_the_start(me);
    let config = GroupConfig { group, replica: me, follows_roster: false, voters };
    let (survivor, _) = Survivor::of(&config, keyspace, recovered)?;
    Ok(Some(survivor).filter(|survivor| survivor.configuration.members().next().is_some()))
}

/// Whether a group was made for this node alone, and only has to be opened.
fn is_to_begin_here(placement: &Placement, node: NodeId) -> bool {
    placement.places == placement.first && placement.nodes().eq([node])
}

/// The command that wants the replica here to be a group's only one, whether it was to stay or to leave. Nobody else is to leave any more.
fn place_alone(
    catalog: &Catalog,
    group: GroupId,
    present: &Placement,
    (me, node): (ReplicaId, NodeId),
) -> Command {
    let placement = Placement {
        places: vec![Place { replica: me.0, node: node.0 }],
        // A catalog that lost its newest entries may not know of this replica yet.
        next_replica: present.next_replica.max(me.0 + 1),
        reason: REASON.to_owned(),
        ..present.clone()
    };
    let mut success = vec![put(group_key(group), placement.encode_to_vec())];
    success.extend(catalog.leaving_of(group).map(|left| delete(leaving_key(group, left))));
    txn(Vec::new(), success)
}

/// What makes `node` the only member. `keyspaces` are those of `groups`, as the engine has them; the root group's is driven to the end
/// of its log, and must be opened anew afterwards. `open` opens the replica of a group of the catalog, if one lives here, and makes none:
/// an [`crate::OpenJob`] that names no replica.
///
/// # Errors
/// Why it cannot be: the node is no member, what the root group says cannot be read, or a log does not fit its engine. A replica of a
/// group of the catalog is no reason.
pub fn force(
    node: NodeId,
    groups: &[GroupConfig],
    initial: &Roster,
    keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
    recovered: &BTreeMap<GroupId, RecoveredGroup>,
    open: &dyn Fn(OpenJob) -> OpenOutcome,
) -> Result<Forced, String> {
    let root = keyspaces.get(&ROOT_GROUP).ok_or("the root group is not here")?;
    let mut survivors = Vec::new();
    for group in groups {
        let Some(keyspace) = keyspaces.get(&group.group) else { continue };
        let (survivor, entries) = Survivor::of(group, keyspace, recovered)?;
        if group.group == ROOT_GROUP {
            replay(root, &entries)?;
        }
        survivors.push(survivor);
    }
    let pool = Pool::read(root, initial)?;
    let Some(own) = pool.members().into_iter().find(|member| member.node() == node) else {
        return Err(
            "this node is not a member: it was removed, and has nothing of its own to go on with".into()
        );
    };
    let tenants = Tenants::of(node, &Catalog::read(root)?, recovered, open);
    let (mut here, placed): (Vec<Survivor>, Vec<Command>) = tenants.here.into_iter().unzip();
    let is_alone = survivors.iter().chain(&here).all(Survivor::is_alone);
    let mut forced = Forced {
        records: Vec::new(),
        lost: lost(node, &pool, &here),
        lost_keyspaces: tenants.lost,
        unusable_keyspaces: tenants.unusable,
    };
    if is_alone && forced.lost.is_empty() {
        return Ok(forced);
    }
    let roster = Roster { members: vec![Member { is_learner: false, ..own }], ..pool.roster.clone() };
    // A roster that names nobody else is written all the same: configurations refer to its revision.
    let commands: Vec<Command> = iter::once(pool.replace_by_force(&roster)).chain(placed).collect();
    end_logs(node, root, &commands, &mut survivors, &mut here);
    forced.records = survivors.into_iter().chain(here).flat_map(|survivor| survivor.log.records).collect();
    Ok(forced)
}

/// Ends all logs. Each of the `commands` of the root group makes one revision: first the roster's, which those who follow it refer to, then
/// one for each of `placed`.
fn end_logs(
    node: NodeId,
    root: &Keyspace,
    commands: &[Command],
    following: &mut [Survivor],
    placed: &mut [Survivor],
) {
    let origin = Origin { node, incarnation: 0, token: 0 };
    let stamp_ms = root.applied().stamp_ms;
    let entry = |command: &Command| envelope::encode(stamp_ms, &[(origin, command.to_bytes())]);
    let revision = root.revision() + 1;
    for survivor in following {
        let is_root = survivor.log.group == ROOT_GROUP;
        let entries = if is_root { commands.iter().map(entry).collect() } else { Vec::new() };
        survivor.go_on_alone(node, revision, entries);
    }
    for (survivor, revision) in placed.iter_mut().zip(revision + 1..) {
        survivor.go_on_alone(node, revision, Vec::new());
    }
}

/// The other members, and those who were removed while groups here have not come to do without them.
fn lost(node: NodeId, pool: &Pool, here: &[Survivor]) -> Vec<Member> {
    let mut lost: BTreeMap<u64, Member> =
        pool.members().into_iter().map(|member| (member.id, member)).collect();
    for survivor in here {
        let nodes = Places::of(&survivor.configuration).unwrap_or_default().nodes;
        let removed = nodes.into_values().filter_map(|node| pool.removed.get(&node.0));
        lost.extend(removed.map(|removed| (removed.member.id, removed.member.clone())));
    }
    lost.remove(&node.0);
    lost.into_values().collect()
}

/// The configuration in force at the end of a log.
fn last_configuration(
    group: &GroupConfig,
    keyspace: &Keyspace,
    entries: &[Entry],
) -> Result<Configuration, String> {
    let first = first_configuration(&group.voters);
    check_configurations(group.group, entries)?;
    let logged = entries.iter().rev().find_map(|entry| Configuration::of(&entry.data).ok().flatten());
    logged.map_or_else(|| applied_configuration(group.group, keyspace, &first), Ok)
}

/// Applies entries, as if all were committed.
fn replay(keyspace: &Keyspace, entries: &[Entry]) -> Result<(), String> {
    for entry in entries {
        let previous_ms = keyspace.applied().stamp_ms;
        let (term, index, checksum) = (entry.term.0, entry.index.0, entry.checksum);
        let is_configuration = matches!(Configuration::of(&entry.data), Ok(Some(_)));
        if is_configuration {
            let applied = Applied { term, index, checksum, stamp_ms: previous_ms };
            keyspace.apply_configuration(applied, entry.data.clone());
            continue;
        }
        let (stamp_ms, _, commands) = decode(entry, previous_ms)?;
        keyspace.apply(Applied { term, index, checksum, stamp_ms }, commands);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use hadron_consensus::{DEFAULT_GROUP, Time};
    use hadron_keyspace::Owner;
    use hadron_proto::etcdserverpb as pb;
    use hadron_storage::engine::{Engine, ModelEngine};

    use super::*;
    use crate::catalog::KeyspaceRecord;
    use crate::config::{Config, Limits};
    use crate::event::{Effects, Event, OpenJob};
    use crate::membership::Bootstrap;
    use crate::node::Node;

    const ME: NodeId = NodeId(3);

    /// What node 3 of three has on its disk; all of it in the log.
    struct Disk {
        engine: Arc<dyn Engine>,
        pool: Bootstrap,
        log: BTreeMap<GroupId, RecoveredGroup>,
        /// The root group's state at the end of its log.
        root: Arc<Keyspace>,
    }

    impl Disk {
        fn new() -> Disk {
            let member = |id| Member { id, data_dir_id: id, ..Member::default() };
            Disk {
                engine: Arc::new(ModelEngine::new()),
                pool: Bootstrap::of([1, 2, 3].map(member).into()),
                log: BTreeMap::from([ROOT_GROUP, DEFAULT_GROUP].map(|group| (group, Default::default()))),
                root: Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap(),
            }
        }

        fn catalog(&self) -> Catalog {
            Catalog::read(&self.root).unwrap()
        }

        fn pool(&self) -> Pool {
            Pool::read(&self.root, &self.pool.roster()).unwrap()
        }

        fn append(&mut self, group: GroupId, command: &Command) {
            let log = self.log.entry(group).or_default();
            let end = log.entries.last().map_or(log.floor, Entry::position);
            let (term, index) = (Term(1), end.index.next());
            let data =
                envelope::encode(1, &[(Origin { node: ME, incarnation: 1, token: 1 }, command.to_bytes())]);
            let checksum = chain_checksum(end.checksum, group, term, index, &data);
            log.entries.push(Entry { term, index, checksum, data });
        }

        /// The root group decides something.
        fn decide(&mut self, command: Command) {
            self.append(ROOT_GROUP, &command);
            let applied = Applied { index: self.root.applied().index + 1, ..self.root.applied() };
            self.root.apply(applied, vec![command]);
        }

        fn create(&mut self, name: &str, nodes: &[u64]) -> GroupId {
            let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
            let wanted = KeyspaceRecord { name: name.into(), ..Default::default() };
            let made = self.catalog().create(&wanted, &nodes).unwrap();
            self.decide(made);
            self.catalog().keyspace(name).unwrap().group_id()
        }

        /// A replica lives here, and has one key.
        fn live(&mut self, group: GroupId, replica: u64) {
            Owner::claim(self.engine.as_ref(), group.0, replica).unwrap();
            self.append(group, &put_key());
        }

        fn place(&mut self, group: GroupId, nodes: &[u64]) {
            let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
            let placed = self.catalog().place(group, &nodes, "").unwrap();
            self.decide(placed);
        }

        fn keyspaces(&self) -> BTreeMap<GroupId, Arc<Keyspace>> {
            let open =
                |group: GroupId| Keyspace::open(self.engine.clone(), group.0, Default::default()).unwrap();
            [ROOT_GROUP, DEFAULT_GROUP].map(|group| (group, open(group))).into()
        }

        fn open(&self, job: OpenJob) -> OpenOutcome {
            job.carry_out(&self.engine, Default::default())
        }

        fn force(&self) -> Forced {
            let (groups, keyspaces) = (self.pool.groups(ME), self.keyspaces());
            let open = |job| self.open(job);
            force(ME, &groups, &self.pool.roster(), &keyspaces, &self.log, &open).unwrap()
        }

        /// As a log does.
        fn write(&mut self, records: Vec<Record>) {
            for record in records {
                match record {
                    Record::HardState(group, state) => self.log.get_mut(&group).unwrap().hard_state = state,
                    Record::Floor(group, floor) => assert_eq!(self.log[&group].floor, floor),
                    Record::Entries(group, entries) => {
                        self.log.get_mut(&group).unwrap().entries.extend(entries);
                    }
                    Record::Forget(group) => panic!("{group:?} is forgotten"),
                }
            }
        }

        /// The node after its start, once it leads these groups.
        fn started(&self, groups: &[GroupId]) -> Node {
            let config = Config {
                node: ME,
                incarnation: 2,
                own: self.pool.members[2].clone(),
                roster: self.pool.roster(),
                groups: self.pool.groups(ME),
                heartbeat_us: 100_000,
                election_timeout_us: 1_000_000,
                seed: 1,
                limits: Limits::default(),
            };
            let mut node = Node::new(config, self.log.clone(), &self.keyspaces(), Time(1)).unwrap();
            let mut effects = Effects::default();
            node.start(Time(1), &mut effects);
            let leads = |node: &Node, group| {
                let replica = node.replicas.get(group);
                replica.is_some_and(|replica| {
                    replica.core.is_leader() && replica.applied() == replica.core.last()
                })
            };
            while !groups.iter().all(|group| leads(&node, group)) {
                assert!(node.now < Time(60_000_000), "within a minute");
                let now = node.deadline();
                node.step(now, Event::Timer, &mut effects);
                for job in std::mem::take(&mut effects.opens) {
                    let opened = Event::Opened { group: job.group, outcome: self.open(job) };
                    node.step(now, opened, &mut effects);
                }
                node.settle(now, &mut effects);
                let sequence = effects.log_sequence;
                node.step(now, Event::LogDurable { sequence }, &mut effects);
                node.settle(now, &mut effects);
                assert_eq!(effects.fatal, None);
                assert!(effects.destroys.is_empty());
            }
            node
        }
    }

    fn put_key() -> Command {
        Command::Put(pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() })
    }

    /// Only the root group and that of `default` went on: every other keyspace had lost its quorum for good, with all its data here.
    #[test]
    fn every_keyspace_with_a_replica_here_goes_on_and_the_others_are_named() {
        let mut disk = Disk::new();
        let here = disk.create("here", &[1, 2, 3]);
        disk.live(here, 3);
        disk.create("elsewhere", &[1, 2]);
        // It has the data until the other has caught up, which is lost.
        let leaving = disk.create("leaving", &[3]);
        disk.live(leaving, 1);
        disk.place(leaving, &[1]);
        // It was to come, and heard nothing yet.
        let empty = disk.create("newcomer", &[1]);
        disk.place(empty, &[3]);
        Owner::claim(disk.engine.as_ref(), empty.0, 2).unwrap();
        let begins = disk.create("begins", &[3]);
        let damaged = disk.create("damaged", &[1, 2, 3]);
        disk.live(damaged, 3);
        disk.log.get_mut(&damaged).unwrap().floor.index = Index(7);
        let deleted = disk.create("deleted", &[1, 2, 3]);
        disk.live(deleted, 3);
        let gone = disk.catalog().delete("deleted").unwrap();
        disk.decide(gone);

        let forced = disk.force();
        assert_eq!(forced.lost.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(forced.lost_keyspaces, ["elsewhere", "newcomer"]);
        let unusable: Vec<&str> = forced.unusable_keyspaces.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(unusable, ["damaged"]);
        assert!(forced.unusable_keyspaces[0].1.contains("the engine has lost data"));
        let written = |record: &Record| match record {
            Record::HardState(group, _) => Some(*group),
            _ => None,
        };
        let written: BTreeSet<GroupId> = forced.records.iter().filter_map(written).collect();
        assert_eq!(written, [ROOT_GROUP, DEFAULT_GROUP, here, leaving].into());
        disk.write(forced.records);

        disk.log.remove(&damaged);
        disk.log.remove(&deleted);
        Owner::destroy(disk.engine.as_ref(), deleted.0, 3).unwrap();
        Owner::destroy(disk.engine.as_ref(), damaged.0, 3).unwrap();
        let node = disk.started(&[ROOT_GROUP, DEFAULT_GROUP, here, leaving, begins]);
        let catalog = Catalog::read(&node.replicas[&ROOT_GROUP].keyspace).unwrap();
        for (group, replica) in [(here, 3), (leaving, 1)] {
            let placement = catalog.placement(group).unwrap();
            assert_eq!(placement.record.places, [Place { replica, node: ME.0 }]);
            assert_eq!(catalog.leaving_of(group).count(), 0);
            let survivor = &node.replicas[&group];
            assert_eq!(survivor.keyspace.len(), 1);
            let configuration = survivor.core.configuration();
            assert!(configuration.members().eq([ReplicaId(replica)]));
            let revision = Places::of(configuration).unwrap().revision;
            assert_eq!(revision, placement.revision, "the leader has nothing to change");
        }
    }

    /// A version that left keyspaces out made the pool this node's own: it did nothing more when it was forced again.
    #[test]
    fn keyspaces_that_were_left_out_go_on_when_it_is_forced_again_and_once() {
        let mut disk = Disk::new();
        disk.write(disk.force().records);
        let alone = Roster { members: vec![disk.pool.members[2].clone()], ..disk.pool.roster() };
        let removed = disk.pool().replace(&alone);
        disk.root.apply(Applied { index: 1, ..disk.root.applied() }, vec![removed]);
        assert!(disk.force().records.is_empty(), "nothing is left to do");

        let group = disk.create("here", &[1, 2, 3]);
        disk.live(group, 3);
        let forced = disk.force();
        assert_eq!(forced.lost.len(), 2, "the removed ones may still serve it, and must be asked");
        disk.write(forced.records);
        disk.started(&[ROOT_GROUP, DEFAULT_GROUP, group]);
        let again = disk.force();
        assert!(again.records.is_empty() && again.lost.is_empty());
    }
}
