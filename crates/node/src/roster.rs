//! The roster: who shall belong to the pool. The root group's keyspace holds it, under keys of its own:
//!
//! | key | value |
//! |---|---|
//! | `roster` | a [`Roster`]; missing as long as the pool is what it was bootstrapped as |
//! | `nodes/` and an id | what that node says of itself: a [`Member`] with name, client URLs, data directory |
//! | `removed/` and an id | the [`Member`] that was removed: its id is never used again |
//! | `dropped/` and an id | the same, of one that was removed by force, because nobody heard of it any more |
//!
//! A change is a [`Roster`] with something else in it, written in a txn that only succeeds if nobody else changed it
//! meanwhile ([`Pool::replace`]). That decides it; carrying it out is the business of each group's leader
//! (`reconfigure`), who compares the roster's revision with the one that its group's configuration was made for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use hadron_consensus::{NodeId, ReplicaId};
use hadron_keyspace::{Command, Keyspace};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;
use prost::Message as _;

use crate::membership::Member;

/// The key of the roster in the root group's keyspace.
pub const ROSTER_KEY: &str = "roster";
/// Keys of what nodes say of themselves: this prefix, then the id in hexadecimal.
pub const NODES_PREFIX: &str = "nodes/";
/// Keys of those who were removed: this prefix, then the id in hexadecimal.
pub const REMOVED_PREFIX: &str = "removed/";
/// Keys of those of them whose cluster went on without them by force: this prefix, then the id in hexadecimal.
const DROPPED_PREFIX: &str = "dropped/";

/// Who shall belong to the pool, and as what.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Roster {
    /// The members, by id. Of each only the id, the peer URLs, the replica and whether it is a learner count here; names and
    /// client URLs are what the nodes themselves say.
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<Member>,
    /// The next replica id that was never used.
    #[prost(uint64, tag = "2")]
    pub next_replica: u64,
}

/// A roster as one node tells it to another.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KnownRoster {
    /// Its revision.
    #[prost(int64, tag = "1")]
    pub revision: i64,
    /// The roster, with what the members say of themselves.
    #[prost(message, required, tag = "2")]
    pub roster: Roster,
    /// Nodes that are not in it any more, and that some group may still need.
    #[prost(message, repeated, tag = "3")]
    pub leaving: Vec<Member>,
}

/// Why a roster cannot be changed like that. etcd's errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// The id is taken, or was.
    #[error("member ID already exists")]
    IdExists,
    /// Another member has one of the peer URLs.
    #[error("Peer URLs already exists")]
    PeerUrlExists,
    /// There is no such member.
    #[error("member not found")]
    NotFound,
    /// There are as many learners as there may be.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// It votes already.
    #[error("can only promote a learner member")]
    NotLearner,
}

impl Roster {
    /// The roster of a pool that was never changed: these members, whose replicas are numbered.
    pub fn of(members: &[Member]) -> Roster {
        let highest = members.iter().map(|member| member.replica).max().unwrap_or_default();
        Roster { members: members.to_vec(), next_replica: highest + 1 }
    }

    /// The member with this id.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The members that vote, or are to.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_learner)
    }

    /// Adds a member and gives it a replica.
    ///
    /// # Errors
    /// [`RosterError::PeerUrlExists`], [`RosterError::IdExists`], [`RosterError::TooManyLearners`].
    pub fn add(
        &mut self,
        id: u64,
        peer_urls: Vec<String>,
        is_learner: bool,
        learners_max: usize,
    ) -> Result<(), RosterError> {
        if self.member(id).is_some() {
            return Err(RosterError::IdExists);
        }
        self.check_urls(id, &peer_urls)?;
        if is_learner && self.members.iter().filter(|member| member.is_learner).count() >= learners_max {
            return Err(RosterError::TooManyLearners);
        }
        let replica = self.next_replica;
        self.next_replica += 1;
        self.members.push(Member { id, peer_urls, replica, is_learner, ..Member::default() });
        self.members.sort_by_key(|member| member.id);
        Ok(())
    }

    /// Takes a member out, and returns it.
    ///
    /// # Errors
    /// [`RosterError::NotFound`].
    pub fn remove(&mut self, id: u64) -> Result<Member, RosterError> {
        let place = self.members.iter().position(|member| member.id == id).ok_or(RosterError::NotFound)?;
        Ok(self.members.remove(place))
    }

    /// Gives a member other peer URLs.
    ///
    /// # Errors
    /// [`RosterError::NotFound`], [`RosterError::PeerUrlExists`].
    pub fn update(&mut self, id: u64, peer_urls: Vec<String>) -> Result<(), RosterError> {
        self.member(id).ok_or(RosterError::NotFound)?;
        self.check_urls(id, &peer_urls)?;
        let own = self.members.iter_mut().filter(|member| member.id == id);
        own.for_each(|member| member.peer_urls.clone_from(&peer_urls));
        Ok(())
    }

    /// Lets a learner vote.
    ///
    /// # Errors
    /// [`RosterError::NotFound`], [`RosterError::NotLearner`].
    pub fn promote(&mut self, id: u64) -> Result<(), RosterError> {
        let member = self.members.iter_mut().find(|member| member.id == id).ok_or(RosterError::NotFound)?;
        if !member.is_learner {
            return Err(RosterError::NotLearner);
        }
        member.is_learner = false;
        Ok(())
    }

    fn check_urls(&self, id: u64, peer_urls: &[String]) -> Result<(), RosterError> {
        let others = self.members.iter().filter(|member| member.id != id);
        let is_taken =
            others.flat_map(|member| &member.peer_urls).any(|url| peer_urls.iter().any(|new| new == url));
        if is_taken { Err(RosterError::PeerUrlExists) } else { Ok(()) }
    }
}

/// A member that was removed, and the roster's revision that did it.
#[derive(Clone, Debug, PartialEq)]
pub struct Removed {
    /// As it was.
    pub member: Member,
    /// The revision of the root group at which it was removed.
    pub revision: i64,
}

/// What the root group's keyspace says about the pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// The revision of the roster; 0 as long as it was never changed.
    pub revision: i64,
    /// Who shall belong to the pool.
    pub roster: Roster,
    /// What nodes say of themselves.
    pub said: BTreeMap<u64, Member>,
    /// Who was removed.
    pub removed: BTreeMap<u64, Removed>,
    /// Who of them was removed by force: they may have gone on themselves.
    pub dropped: BTreeSet<u64>,
}

impl Pool {
    /// Reads the root group's keyspace; `initial` is the roster of a pool that was never changed.
    ///
    /// # Errors
    /// Something of it cannot be read. That does not mean that it is not there.
    pub fn read(root: &Keyspace, initial: &Roster) -> Result<Pool, String> {
        let stored = range(root, ROSTER_KEY, false)?.pop();
        let stored = stored.map(|pair| Ok::<_, String>((pair.mod_revision, decode(&pair)?))).transpose()?;
        let (revision, roster) = stored.unwrap_or_else(|| (0, initial.clone()));
        let mut pool = Pool { revision, roster, ..Pool::default() };
        for pair in range(root, NODES_PREFIX, true)? {
            let member: Member = decode(&pair)?;
            pool.said.insert(member.id, member);
        }
        for pair in range(root, REMOVED_PREFIX, true)? {
            let removed = Removed { revision: pair.mod_revision, member: decode(&pair)? };
            pool.removed.insert(removed.member.id, removed);
        }
        for pair in range(root, DROPPED_PREFIX, true)? {
            let member: Member = decode(&pair)?;
            pool.dropped.insert(member.id);
        }
        Ok(pool)
    }

    /// The members as they are known, by id.
    pub fn members(&self) -> Vec<Member> {
        self.roster.members.iter().map(|member| self.known(member)).collect()
    }

    /// `member`, completed with what it says of itself.
    fn known(&self, member: &Member) -> Member {
        let mut known = member.clone();
        if let Some(said) = self.said.get(&member.id) {
            known.name.clone_from(&said.name);
            known.client_urls.clone_from(&said.client_urls);
            known.data_dir_id = said.data_dir_id;
        }
        known
    }

    /// The command that puts `next` in the place of the present roster, unless another change came first: then its txn
    /// does not succeed, and changes nothing.
    pub fn replace(&self, next: &Roster) -> Command {
        Command::Txn(self.replacement(next))
    }

    /// The same by force: those who are not in `next` are written down as dropped too.
    pub(crate) fn replace_by_force(&self, next: &Roster) -> Command {
        let mut txn = self.replacement(next);
        let gone = self.roster.members.iter().filter(|member| next.member(member.id).is_none());
        txn.success
            .extend(gone.map(|gone| put(key_of(DROPPED_PREFIX, gone.id), self.known(gone).encode_to_vec())));
        Command::Txn(txn)
    }

    fn replacement(&self, next: &Roster) -> pb::TxnRequest {
        let mut success = vec![put(ROSTER_KEY.into(), next.encode_to_vec())];
        let mut compare = vec![condition(ROSTER_KEY.into(), self.revision)];
        for gone in self.roster.members.iter().filter(|member| next.member(member.id).is_none()) {
            success.push(put(key_of(REMOVED_PREFIX, gone.id), self.known(gone).encode_to_vec()));
            let delete = pb::DeleteRangeRequest { key: key_of(NODES_PREFIX, gone.id), ..Default::default() };
            success.push(pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) });
        }
        for new in next.members.iter().filter(|member| self.roster.member(member.id).is_none()) {
            compare.push(condition(key_of(REMOVED_PREFIX, new.id), 0));
        }
        pb::TxnRequest { compare, success, failure: Vec::new() }
    }
}

/// The replica that `node` has in every group.
pub(crate) fn replica_of(member: &Member) -> (ReplicaId, NodeId) {
    (ReplicaId(member.replica), member.node())
}

/// The command with which a node says of itself what `member` holds, unless it was removed.
pub(crate) fn say(member: &Member) -> Bytes {
    let txn = pb::TxnRequest {
        compare: vec![condition(key_of(REMOVED_PREFIX, member.id), 0)],
        success: vec![put(key_of(NODES_PREFIX, member.id), member.encode_to_vec())],
        failure: Vec::new(),
    };
    Command::Txn(txn).to_bytes()
}

fn key_of(prefix: &str, id: u64) -> Bytes {
    format!("{prefix}{id:016x}").into()
}

pub(crate) fn put(key: Bytes, value: Vec<u8>) -> pb::RequestOp {
    let put = pb::PutRequest { key, value: value.into(), ..Default::default() };
    pb::RequestOp { request: Some(Request::RequestPut(put)) }
}

/// The key was last changed at `revision`; 0 if it does not exist.
pub(crate) fn condition(key: Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

/// The keys of the root group's keyspace that there are.
///
/// # Errors
/// Some of it cannot be read.
pub(crate) fn range(root: &Keyspace, key: &str, is_prefix: bool) -> Result<Vec<KeyValue>, String> {
    let mut end = key.as_bytes().to_vec();
    if let Some(last) = end.last_mut().filter(|_| is_prefix) {
        *last += 1;
    }
    let range_end = if is_prefix { end.into() } else { Bytes::new() };
    let request = pb::RangeRequest { key: key.to_owned().into(), range_end, ..Default::default() };
    let response = root.range(&request).map_err(|error| format!("{key} of the root group: {error}"))?;
    Ok(response.kvs)
}

/// What a key of the root group's keyspace holds.
///
/// # Errors
/// It is not what this version writes there.
pub(crate) fn decode<T: prost::Message + Default>(pair: &KeyValue) -> Result<T, String> {
    let key = String::from_utf8_lossy(&pair.key);
    T::decode(pair.value.clone()).map_err(|error| format!("{key} of the root group: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_keyspace::{Applied, Response};
    use hadron_storage::engine::ModelEngine;

    use super::*;

    const LEARNERS_MAX: usize = 1;

    fn urls(port: u16) -> Vec<String> {
        vec![format!("http://127.0.0.1:{port}")]
    }

    fn initial() -> Roster {
        let member = |n: u64| Member { id: n, peer_urls: urls(n as u16), replica: n, ..Member::default() };
        Roster::of(&[member(1), member(2), member(3)])
    }

    struct Root(Arc<Keyspace>);

    impl Root {
        fn new() -> Root {
            Root(Keyspace::open(Arc::new(ModelEngine::new()), 0, Default::default()).unwrap())
        }

        /// Whether the command's txn succeeded.
        fn apply(&self, command: Command) -> bool {
            let applied = Applied { index: self.0.applied().index + 1, ..self.0.applied() };
            match self.0.apply(applied, vec![command]).pop().unwrap().unwrap() {
                Response::Txn(response) => response.succeeded,
                other => panic!("{other:?}"),
            }
        }

        fn pool(&self) -> Pool {
            Pool::read(&self.0, &initial()).unwrap()
        }
    }

    #[test]
    fn members_are_checked_as_in_etcd() {
        let mut roster = initial();
        assert_eq!(roster.add(2, urls(9), false, LEARNERS_MAX), Err(RosterError::IdExists));
        assert_eq!(roster.add(9, urls(2), false, LEARNERS_MAX), Err(RosterError::PeerUrlExists));
        assert_eq!(roster.add(9, urls(9), true, LEARNERS_MAX), Ok(()));
        assert_eq!(roster.add(8, urls(8), true, LEARNERS_MAX), Err(RosterError::TooManyLearners));
        assert_eq!(roster.update(7, urls(7)), Err(RosterError::NotFound));
        assert_eq!(roster.update(1, urls(2)), Err(RosterError::PeerUrlExists));
        assert_eq!(roster.update(1, urls(1)), Ok(()), "its own");
        assert_eq!(roster.promote(1), Err(RosterError::NotLearner));
        assert_eq!(roster.promote(7), Err(RosterError::NotFound));
        assert_eq!(roster.promote(9), Ok(()));
        assert_eq!(roster.remove(7), Err(RosterError::NotFound));
    }

    #[test]
    fn no_replica_is_used_twice() {
        let mut roster = initial();
        roster.add(9, urls(9), false, LEARNERS_MAX).unwrap();
        assert_eq!(roster.remove(9).unwrap().replica, 4);
        roster.add(8, urls(9), false, LEARNERS_MAX).unwrap();
        assert_eq!(roster.member(8).unwrap().replica, 5);
    }

    #[test]
    fn of_two_changes_at_once_one_succeeds() {
        let root = Root::new();
        let (mut one, mut two) = (initial(), initial());
        one.add(8, urls(8), false, LEARNERS_MAX).unwrap();
        two.add(9, urls(9), false, LEARNERS_MAX).unwrap();
        let before = root.pool();
        assert!(root.apply(before.replace(&one)));
        assert!(!root.apply(before.replace(&two)));
        let after = root.pool();
        assert_eq!(after.roster, one);
        assert!(after.revision > before.revision);
    }

    #[test]
    fn who_was_removed_stays_so_and_says_nothing_more() {
        let root = Root::new();
        let said = Member { id: 3, name: "c".into(), data_dir_id: 7, ..Member::default() };
        assert!(root.apply(Command::decode(say(&said)).unwrap()));
        assert_eq!(root.pool().members()[2].name, "c");
        let mut next = initial();
        next.remove(3).unwrap();
        assert!(root.apply(root.pool().replace(&next)));
        let pool = root.pool();
        assert!(pool.said.is_empty());
        let removed = &pool.removed[&3];
        assert_eq!((removed.revision, removed.member.data_dir_id), (pool.revision, 7));
        assert_eq!(removed.member.peer_urls, urls(3), "for those who still have to talk to it");
        assert!(!root.apply(Command::decode(say(&said)).unwrap()));
        next.members.push(Member { id: 3, ..Member::default() });
        assert!(!root.apply(pool.replace(&next)), "an id is never used again");
    }
}
