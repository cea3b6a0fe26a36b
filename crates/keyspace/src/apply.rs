//! Apply: what each command does to the state, and answers.
//!
//! What a command does depends on the state and the entry only, and so does its answer, where anybody waits for it: what a client wants
//! to read and the state does not depend on (previous values, ranges of a txn) is read on that node alone. If it cannot be read there, the client hears
//! so, and the command is carried out all the same. Where the engine does not give a value that the state depends on, replicas would diverge: apply panics and the replica
//! stops.
//!
//! Most commands are carried out at once. Those that may concern any number of keys are left as a [`Task`] when they have gone on for long enough.

use hadron_proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;

use crate::auth::AuthCommand;
use crate::command::{Command, Response};
use crate::deletion::{Deletion, LeaseEnds};
use crate::error::Error;
use crate::lease;
use crate::mvcc::KeyRange;
use crate::range::{self, Source, header};
use crate::read::{BYTES_PER_KEY, Effort, Locked, Values};
use crate::state::{State, Write};
use crate::txn::{self, Execution};

/// The state while an entry is applied.
pub(crate) struct Applier<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) values: Values<'a>,
    /// What was done, and what may be done, before others get their turn.
    pub(crate) effort: Effort,
    /// Somebody waits for the answer of the present command.
    is_asked: bool,
    /// Why the present command's answer is not whole.
    unreadable: Option<Error>,
}

/// How far a command is.
pub(crate) enum Step {
    /// It is carried out.
    Done(Response),
    /// Something is left of it.
    Left(Task),
}

/// What is left of a command whose effort depends on the state.
#[derive(Debug)]
pub(crate) enum Task {
    Delete(Write, Deletion),
    Txn(Write, Box<Execution>),
    EndLeases(LeaseEnds),
}

/// A command of which something is left.
#[derive(Debug)]
pub(crate) struct Unfinished {
    task: Task,
    is_asked: bool,
    unreadable: Option<Error>,
}

/// What a command came to.
pub(crate) enum Outcome {
    Answer(Result<Response, Error>),
    Unfinished(Unfinished),
}

impl<'a> Applier<'a> {
    /// May do so much.
    pub(crate) fn new(state: &'a mut State, values: Values<'a>, effort: Effort) -> Applier<'a> {
        Applier { state, values, effort, is_asked: true, unreadable: None }
    }

    /// Begins a command, and carries it out if that does not take too long.
    pub(crate) fn begin(&mut self, command: Command, is_asked: bool) -> Outcome {
        self.is_asked = is_asked;
        self.effort.add(1);
        let step = self.apply(command);
        self.outcome(step)
    }

    /// Goes on with a command.
    pub(crate) fn resume(&mut self, Unfinished { task, is_asked, unreadable }: Unfinished) -> Outcome {
        (self.is_asked, self.unreadable) = (is_asked, unreadable);
        let step = self.go_on(task);
        self.outcome(step)
    }

    fn outcome(&mut self, step: Result<Step, Error>) -> Outcome {
        let unreadable = self.unreadable.take();
        let answer = match step {
            Ok(Step::Left(task)) => {
                return Outcome::Unfinished(Unfinished { task, is_asked: self.is_asked, unreadable });
            }
            Ok(Step::Done(response)) => Ok(response),
            Err(Error::Storage(what)) => {
                panic!("a command needs a value that the engine does not give: {what}")
            }
            Err(error) => Err(error),
        };
        Outcome::Answer(match unreadable {
            Some(error) => answer.and(Err(Error::Unreadable(error.to_string()))),
            None => answer,
        })
    }

    /// Whether somebody waits for the answer of the present command.
    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// What only the answer depends on: nothing if nobody waits for it, or if it cannot be read.
    pub(crate) fn read_for_answer<T: Default>(&mut self, read: impl FnOnce(&Self) -> Result<T, Error>) -> T {
        if !self.is_asked || self.unreadable.is_some() {
            return T::default();
        }
        read(self).unwrap_or_else(|error| {
            self.unreadable.get_or_insert(error);
            T::default()
        })
    }

    fn apply(&mut self, command: Command) -> Result<Step, Error> {
        let (caller, command) = match command {
            Command::As(caller, command) => (Some(caller), *command),
            command => (None, command),
        };
        self.state.permit_command(caller.as_ref(), &command)?;
        let response = match command {
            Command::Put(request) => Response::Put(self.apply_put(request)?),
            Command::DeleteRange(request) => {
                return self.go_on(Task::Delete(self.state.begin_write(), Deletion::new(&request)));
            }
            Command::Txn(request) => return self.begin_txn(request),
            Command::Compact(request) => Response::Compact(self.compact(&request)?),
            Command::LeaseGrant(request) => Response::LeaseGrant(self.grant(&request)?),
            Command::LeaseRevoke(request) => return self.revoke(&request),
            Command::LeaseKeepAlive(ids) => Response::LeaseKeepAlive(self.keep_alive(&ids)),
            Command::LeaseExpire(ids) => return self.go_on(Task::EndLeases(LeaseEnds::expired(ids))),
            Command::Alarm(request) => Response::Alarm(self.alarm(&request)),
            Command::DigestMark => Response::DigestMark(self.state.mark_digest()),
            Command::Auth(command) => self.change_auth(command)?,
            Command::As(..) => unreachable!("a command is in one name only: its bytes were checked"),
        };
        Ok(Step::Done(response))
    }

    /// Goes on with a command until it is carried out, or until enough is done.
    fn go_on(&mut self, task: Task) -> Result<Step, Error> {
        let response = match task {
            Task::Delete(mut write, mut deletion) => match deletion.go_on(self, &mut write)? {
                Some(response) => {
                    self.state.end_write(write);
                    Response::DeleteRange(response)
                }
                None => return Ok(Step::Left(Task::Delete(write, deletion))),
            },
            Task::Txn(mut write, mut execution) => match execution.go_on(self, &mut write)? {
                Some(response) => {
                    let revision = self.state.end_write(write);
                    Response::Txn(pb::TxnResponse { header: header(revision), ..response })
                }
                None => return Ok(Step::Left(Task::Txn(write, execution))),
            },
            Task::EndLeases(mut leases) => match leases.go_on(self) {
                Some(response) => response,
                None => return Ok(Step::Left(Task::EndLeases(leases))),
            },
        };
        Ok(Step::Done(response))
    }

    /// The state as it is read now; inside a txn that wrote something, at the revision that it makes.
    pub(crate) fn source(&self, write: Option<&Write>) -> Locked<'_> {
        let revision = match write {
            Some(write) if write.changes > 0 => write.revision,
            _ => self.state.revision,
        };
        let values = Values { ..self.values };
        Locked { state: self.state, values, revision, effort: &self.effort }
    }

    fn apply_put(&mut self, request: pb::PutRequest) -> Result<pb::PutResponse, Error> {
        self.check_space()?;
        self.check_put(&request)?;
        let mut write = self.state.begin_write();
        let response = self.put(&mut write, request);
        self.state.end_write(write);
        response
    }

    fn begin_txn(&mut self, request: pb::TxnRequest) -> Result<Step, Error> {
        // As in etcd whatever the comparisons say: a put in either branch is enough.
        if txn::may_put(&request) {
            self.check_space()?;
        }
        let path = txn::choose(&self.source(None), &request)?;
        txn::check_path(self, &request, &path)?;
        let execution = Box::new(Execution::new(request, path));
        self.go_on(Task::Txn(self.state.begin_write(), execution))
    }

    /// While the space alarm is raised, by whomever, nothing is taken in; deleting and compacting go on.
    fn check_space(&self) -> Result<(), Error> {
        if self.state.alarms.has_no_space() { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// What a put needs of the state before it: its lease exists, and so does the key whose value or lease it keeps. Of one that lacks both etcd
    /// names the lease, unless it is in a txn ([`Applier::check_put_of_txn`]).
    fn check_put(&self, request: &pb::PutRequest) -> Result<(), Error> {
        self.check_lease(request)?;
        self.check_kept(request)
    }

    /// The same before a txn.
    pub(crate) fn check_put_of_txn(&self, request: &pb::PutRequest) -> Result<(), Error> {
        self.check_kept(request)?;
        self.check_lease(request)
    }

    fn check_lease(&self, request: &pb::PutRequest) -> Result<(), Error> {
        let is_there = request.lease == 0 || self.state.leases.get(request.lease).is_some();
        if is_there { Ok(()) } else { Err(Error::LeaseNotFound) }
    }

    fn check_kept(&self, request: &pb::PutRequest) -> Result<(), Error> {
        let keeps = request.ignore_value || request.ignore_lease;
        let is_there = !keeps || self.state.index.latest(&request.key).is_some();
        if is_there { Ok(()) } else { Err(Error::KeyNotFound) }
    }

    /// Puts; what it needs was checked before.
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

    fn revoke(&mut self, request: &pb::LeaseRevokeRequest) -> Result<Step, Error> {
        match self.state.leases.get(request.id) {
            Some(_) => self.go_on(Task::EndLeases(LeaseEnds::revoked(request.id))),
            None => Err(Error::LeaseNotFound),
        }
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

    fn change_auth(&mut self, command: AuthCommand) -> Result<Response, Error> {
        self.effort.add(self.state.bytes_of_change(&command) / BYTES_PER_KEY);
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
    let all = state.alarms.iter().map(|(member_id, alarm)| pb::AlarmMember { member_id, alarm });
    all.filter(|raised| kind == pb::AlarmType::None as i32 || raised.alarm == kind).collect()
}
