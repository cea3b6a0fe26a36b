//! Apply: the commands of an entry change the state, in order, and answer.
//!
//! What a command does depends on the state and the entry only, and so does its answer, where anybody waits for it: what a client wants
//! to read and the state does not depend on (previous values, ranges of a txn) is read on that node alone. If it cannot be read there, the client hears
//! so, and the command is carried out all the same. Where the engine does not give a value that the state depends on, replicas would diverge: apply panics and the replica
//! stops.

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;

use crate::auth::AuthCommand;
use crate::command::{Command, Response};
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::lease;
use crate::mvcc::{KeyRange, Record};
use crate::range::{self, Row, Source, header};
use crate::read::{Locked, Values};
use crate::state::{Applied, State, Write};
use crate::txn;

impl Keyspace {
    /// Applies one entry: its position and stamp, and its commands in order. Called by one thread, without gaps.
    ///
    /// A command that is refused changes nothing, and the next one is applied all the same. Watchers are served before
    /// this returns, so an answer never overtakes its event by much.
    ///
    /// # Panics
    /// If the index does not follow the last one, or if the engine fails to produce a value that the state comes to
    /// depend on: one that is compared or kept.
    pub fn apply(&self, applied: Applied, commands: Vec<Command>) -> Vec<Result<Response, Error>> {
        self.apply_for(applied, commands.into_iter().map(|command| (command, true)).collect())
    }

    /// [`Keyspace::apply`], and for each command whether anybody waits here for its answer. If not, the answer lacks what
    /// would have to be read for it.
    ///
    /// # Panics
    /// As [`Keyspace::apply`].
    pub fn apply_for(
        &self,
        applied: Applied,
        commands: Vec<(Command, bool)>,
    ) -> Vec<Result<Response, Error>> {
        let mut state = self.state.write();
        assert!(applied.index > state.applied.index, "entries are applied in order");
        state.applied = applied;
        let (records, tables) = (state.unflushed.records.len(), state.unflushed.tables.len());
        let values = self.values(state.generation);
        let mut applier = Applier { values, state: &mut state, is_asked: true, unreadable: None };
        let answers = commands.into_iter().map(|(command, is_asked)| applier.answer(command, is_asked));
        let answers = answers.collect();
        state.end_entry(records, tables);
        let revision = state.revision;
        self.show_auth(&state);
        let fresh: Option<Vec<Record>> =
            self.hub.has_watchers().then(|| state.unflushed.records.range(records..).cloned().collect());
        drop(state);
        self.hub.publish(revision, fresh);
        answers
    }

    /// Applies an entry that says who belongs to the group from now on: kept beside the applied index, and carried by
    /// snapshots, for those who no longer have that entry in their log. The bytes mean nothing here.
    ///
    /// # Panics
    /// If the index does not follow the last one.
    pub fn apply_configuration(&self, applied: Applied, configuration: Bytes) {
        let mut state = self.state.write();
        assert!(applied.index > state.applied.index, "entries are applied in order");
        state.applied = applied;
        let (records, tables) = (state.unflushed.records.len(), state.unflushed.tables.len());
        state.set_configuration(configuration);
        state.end_entry(records, tables);
    }
}

/// The state while an entry is applied.
pub(crate) struct Applier<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) values: Values<'a>,
    /// Somebody waits for the answer of the present command.
    is_asked: bool,
    /// Why the present command's answer is not whole.
    unreadable: Option<Error>,
}

impl Applier<'_> {
    fn answer(&mut self, command: Command, is_asked: bool) -> Result<Response, Error> {
        self.is_asked = is_asked;
        let answer = self.apply(command);
        if let Err(Error::Storage(what)) = &answer {
            panic!("a command needs a value that the engine does not give: {what}");
        }
        match self.unreadable.take() {
            Some(error) => answer.and(Err(Error::Unreadable(error.to_string()))),
            None => answer,
        }
    }

    /// What only the answer depends on: nothing if nobody waits for it, or if it cannot be read.
    pub(crate) fn read_for_answer<T: Default>(&mut self, read: impl FnOnce(&Self) -> Result<T, Error>) -> T {
        if !self.is_asked {
            return T::default();
        }
        read(self).unwrap_or_else(|error| {
            self.unreadable.get_or_insert(error);
            T::default()
        })
    }

    fn apply(&mut self, command: Command) -> Result<Response, Error> {
        let (caller, command) = match command {
            Command::As(caller, command) => (Some(caller), *command),
            command => (None, command),
        };
        self.state.permit_command(caller.as_ref(), &command)?;
        match command {
            Command::Put(request) => self.apply_put(request).map(Response::Put),
            Command::DeleteRange(request) => self.apply_delete_range(&request).map(Response::DeleteRange),
            Command::Txn(request) => self.apply_txn(request).map(Response::Txn),
            Command::Compact(request) => self.compact(&request).map(Response::Compact),
            Command::LeaseGrant(request) => self.grant(&request).map(Response::LeaseGrant),
            Command::LeaseRevoke(request) => self.revoke(&request).map(Response::LeaseRevoke),
            Command::LeaseKeepAlive(ids) => Ok(Response::LeaseKeepAlive(self.keep_alive(&ids))),
            Command::LeaseExpire(ids) => Ok(Response::LeaseExpire(self.expire(ids))),
            Command::Alarm(request) => Ok(Response::Alarm(self.alarm(&request))),
            Command::DigestMark => Ok(Response::DigestMark(self.state.mark_digest())),
            Command::Auth(command) => self.change_auth(command),
            Command::As(..) => unreachable!("a command is in one name only: its bytes were checked"),
        }
    }

    /// The state as it is read now; inside a txn that wrote something, at the revision that it makes.
    pub(crate) fn source(&self, write: Option<&Write>) -> Locked<'_> {
        let revision = match write {
            Some(write) if write.changes > 0 => write.revision,
            _ => self.state.revision,
        };
        let values = Values { ..self.values };
        Locked { state: self.state, values, revision }
    }

    fn apply_put(&mut self, request: pb::PutRequest) -> Result<pb::PutResponse, Error> {
        self.check_space()?;
        self.check_put(&request)?;
        let mut write = self.state.begin_write();
        let response = self.put(&mut write, request);
        self.state.end_write(write);
        response
    }

    fn apply_delete_range(
        &mut self,
        request: &pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Error> {
        let mut write = self.state.begin_write();
        let response = self.delete_range(&mut write, request);
        self.state.end_write(write);
        response
    }

    fn apply_txn(&mut self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        // As in etcd whatever the comparisons say: a put in either branch is enough.
        if txn::may_put(&request) {
            self.check_space()?;
        }
        let path = txn::choose(&self.source(None), &request)?;
        txn::check_path(self, &request, &path)?;
        let mut write = self.state.begin_write();
        let response = txn::execute(self, &mut write, request, &path);
        let revision = self.state.end_write(write);
        response.map(|response| pb::TxnResponse { header: header(revision), ..response })
    }

    /// While the space alarm is raised, by whomever, nothing is taken in; deleting and compacting go on.
    fn check_space(&self) -> Result<(), Error> {
        let is_raised = self.state.alarms.iter().any(|(_, alarm)| *alarm == pb::AlarmType::Nospace as i32);
        if is_raised { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// What a put needs of the state before it: its lease exists, and so does the key whose value or lease it keeps.
    pub(crate) fn check_put(&self, request: &pb::PutRequest) -> Result<(), Error> {
        if request.lease != 0 && self.state.leases.get(request.lease).is_none() {
            return Err(Error::LeaseNotFound);
        }
        let keeps = request.ignore_value || request.ignore_lease;
        if keeps && self.state.index.latest(&request.key).is_none() {
            return Err(Error::KeyNotFound);
        }
        Ok(())
    }

    /// Puts; [`Applier::check_put`] has passed before the txn.
    pub(crate) fn put(
        &mut self,
        write: &mut Write,
        request: pb::PutRequest,
    ) -> Result<pb::PutResponse, Error> {
        let mut previous = None;
        if request.ignore_value || request.ignore_lease || request.prev_kv {
            let source = self.source(Some(write));
            let mut rows = source.rows(&KeyRange::One(request.key.clone()), source.revision, 1)?.rows;
            if request.ignore_value {
                source.fetch(&mut rows)?;
            } else if request.prev_kv {
                self.read_for_answer(|this| this.source(Some(write)).fetch(&mut rows));
            }
            previous = rows.pop();
        }
        let value = if request.ignore_value { txn::kept_value(previous.as_ref()) } else { request.value };
        let kept_lease = previous.as_ref().map_or(0, |row| row.version.lease);
        let lease = if request.ignore_lease { kept_lease } else { request.lease };
        self.state.put(write, &request.key, value, lease);
        let prev_kv = previous.filter(|_| request.prev_kv).map(|row| range::key_value(row, false));
        Ok(pb::PutResponse { header: header(write.revision), prev_kv })
    }

    /// Deletes the living keys of a range.
    pub(crate) fn delete_range(
        &mut self,
        write: &mut Write,
        request: &pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Error> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let source = self.source(Some(write));
        let mut rows = source.rows(&range, source.revision, usize::MAX)?.rows;
        if request.prev_kv {
            self.read_for_answer(|this| this.source(Some(write)).fetch(&mut rows));
        }
        rows.iter().for_each(|row| self.state.delete(write, &row.key));
        let revision = if write.changes > 0 { write.revision } else { self.state.revision };
        let deleted = rows.len() as i64;
        let into_previous = |row: Row| range::key_value(row, false);
        let prev_kvs =
            if request.prev_kv { rows.into_iter().map(into_previous).collect() } else { Vec::new() };
        Ok(pb::DeleteRangeResponse { header: header(revision), deleted, prev_kvs })
    }

    /// Only moves the mark; a sweep removes versions later, bit by bit.
    fn compact(&mut self, request: &pb::CompactionRequest) -> Result<pb::CompactionResponse, Error> {
        if request.revision <= self.state.compact_revision {
            return Err(Error::Compacted);
        }
        if request.revision > self.state.revision {
            return Err(Error::FutureRev);
        }
        self.state.compact_revision = request.revision;
        Ok(pb::CompactionResponse { header: header(self.state.revision) })
    }

    fn grant(&mut self, request: &pb::LeaseGrantRequest) -> Result<pb::LeaseGrantResponse, Error> {
        self.check_space()?;
        let (id, ttl) = (request.id, request.ttl);
        if id == 0 {
            return Err(Error::LeaseNotFound);
        }
        if self.state.leases.get(id).is_some() {
            return Err(Error::LeaseExists);
        }
        self.state.set_lease(id, ttl, lease::expiry_ms(self.state.applied.stamp_ms, ttl));
        Ok(pb::LeaseGrantResponse { header: header(self.state.revision), id, ttl, error: String::new() })
    }

    fn revoke(&mut self, request: &pb::LeaseRevokeRequest) -> Result<pb::LeaseRevokeResponse, Error> {
        self.end_lease(request.id).ok_or(Error::LeaseNotFound)?;
        Ok(pb::LeaseRevokeResponse { header: header(self.state.revision) })
    }

    /// Takes a lease out and deletes its keys, in order, at one revision.
    fn end_lease(&mut self, id: i64) -> Option<()> {
        let lease = self.state.remove_lease(id)?;
        let mut write = self.state.begin_write();
        lease.keys.iter().for_each(|key| self.state.delete(&mut write, key));
        self.state.end_write(write);
        Some(())
    }

    fn keep_alive(&mut self, ids: &[i64]) -> Vec<pb::LeaseKeepAliveResponse> {
        ids.iter().map(|id| self.keep_one_alive(*id)).collect()
    }

    fn keep_one_alive(&mut self, id: i64) -> pb::LeaseKeepAliveResponse {
        let ttl = self.state.leases.get(id).map_or(0, |lease| lease.ttl);
        if self.state.leases.get(id).is_some() {
            self.state.set_lease(id, ttl, lease::expiry_ms(self.state.applied.stamp_ms, ttl));
        }
        pb::LeaseKeepAliveResponse { header: header(self.state.revision), id, ttl }
    }

    fn expire(&mut self, mut ids: Vec<i64>) -> Vec<i64> {
        let stamp_ms = self.state.applied.stamp_ms;
        ids.retain(|id| {
            let is_over = self.state.leases.get(*id).is_some_and(|lease| lease.expiry_ms <= stamp_ms);
            is_over && self.end_lease(*id).is_some()
        });
        ids
    }

    fn change_auth(&mut self, command: AuthCommand) -> Result<Response, Error> {
        self.state.change_auth(command)?;
        Ok(Response::Auth(header(self.state.revision)))
    }

    fn alarm(&mut self, request: &pb::AlarmRequest) -> pb::AlarmResponse {
        let (member_id, alarm) = (request.member_id, request.alarm);
        let is_some_alarm = alarm != pb::AlarmType::None as i32;
        let alarms = match request.action() {
            AlarmAction::Get => list_alarms(self.state, alarm),
            AlarmAction::Activate if is_some_alarm => {
                // Raising twice answers twice, as in etcd.
                self.state.raise_alarm(member_id, alarm);
                vec![pb::AlarmMember { member_id, alarm }]
            }
            AlarmAction::Deactivate if self.state.clear_alarm(member_id, alarm) => {
                vec![pb::AlarmMember { member_id, alarm }]
            }
            AlarmAction::Activate | AlarmAction::Deactivate => Vec::new(),
        };
        pb::AlarmResponse { header: header(self.state.revision), alarms }
    }
}

/// The raised alarms of a kind, or of all kinds for `NONE`.
pub(crate) fn list_alarms(state: &State, kind: i32) -> Vec<pb::AlarmMember> {
    let all = state
        .alarms
        .iter()
        .map(|(member_id, alarm)| pb::AlarmMember { member_id: *member_id, alarm: *alarm });
    all.filter(|raised| kind == pb::AlarmType::None as i32 || raised.alarm == kind).collect()
}
