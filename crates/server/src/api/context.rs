//! What every service holds: the node behind it, the group whose keyspace it serves, limits and metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::{GroupId, Term};
use hadron_keyspace::{Command, Keyspace, Response};
use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
use hadron_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, ResponseHeader};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::backend::{Backend, GroupStatus, Written};
use super::error::{EtcdError, refusal};
use super::leader;
use super::membership::MembershipOptions;
use super::passwords::Passwords;
use super::tokens::Tokens;
use crate::metrics::Metrics;

/// What one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one encoded write, keys and values together.
    pub request_bytes: usize,
    /// Comparisons, and operations of either branch, in one transaction with all that is nested in it.
    pub txn_operations: usize,
    /// The shortest time to live a lease gets, in seconds: shorter ones are raised to it, as in etcd, because a lease
    /// must outlive an election.
    pub lease_ttl_min: i64,
    /// Bytes of a keyspace with its history at which the space alarm is raised; `None` for no bound.
    pub quota_bytes: Option<u64>,
}

impl Default for Limits {
    /// etcd's defaults, with an election timeout of one second.
    fn default() -> Limits {
        Limits { request_bytes: 1536 * 1024, txn_operations: 128, lease_ttl_min: 2, quota_bytes: None }
    }
}

/// Who may be served by a replica that has no vote yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learners {
    /// The call reads local state and is answered by learners too.
    Answer,
    /// The call needs a voter.
    Refuse,
}

/// Shared by the services of one port.
pub(super) struct Context<B> {
    pub(super) backend: B,
    pub(super) group: GroupId,
    pub(super) limits: Limits,
    pub(super) membership: MembershipOptions,
    pub(super) watch_progress_interval: Duration,
    /// Where backups are built.
    pub(super) snapshot_dir: PathBuf,
    /// Turns to build one.
    pub(super) snapshots: Arc<Semaphore>,
    pub(super) tokens: Arc<Tokens>,
    pub(super) passwords: Passwords,
    pub(super) metrics: Arc<Metrics>,
}

impl<B: Backend> Context<B> {
    /// Where the group stands; all zero for a group that is not here.
    pub(super) fn status(&self) -> GroupStatus {
        self.backend.status(self.group).unwrap_or_default()
    }

    /// Refuses what this node cannot serve at all, before the request is looked at.
    pub(super) fn admit(&self, metadata: &MetadataMap, learners: Learners) -> Result<(), Status> {
        let status = self.status();
        if status.is_learner && learners == Learners::Refuse {
            return Err(EtcdError::NotSupportedForLearner.into());
        }
        if status.leader.is_none() && leader::is_demanded(metadata) {
            return Err(EtcdError::NoLeader.into());
        }
        Ok(())
    }

    /// This node's replica of the state.
    pub(super) fn keyspace(&self) -> Result<Arc<Keyspace>, Status> {
        // Another node may well serve: the code tells clients to turn to it.
        self.backend.keyspace(self.group).ok_or_else(|| EtcdError::Unhealthy.into())
    }

    /// The replica, once it has applied all that was committed when the call began.
    pub(super) async fn keyspace_after_barrier(&self) -> Result<Arc<Keyspace>, Status> {
        match self.backend.read_barrier(self.group).await {
            Ok(()) => self.keyspace(),
            Err(error) => {
                self.metrics.read_indexes_failed.inc();
                if error.may_have_happened() {
                    self.metrics.slow_read_indexes.inc();
                }
                Err(error.into())
            }
        }
    }

    /// Runs a long read beside the connections of this thread, which would wait for it otherwise.
    pub(super) async fn read_beside<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, hadron_keyspace::Error> + Send + 'static,
    ) -> Result<T, Status> {
        let _open = self.metrics.open_reads.hold();
        match tokio::task::spawn_blocking(read).await {
            Ok(result) => result.map_err(refusal),
            // The runtime is being shut down, or the read panicked.
            Err(_) => Err(EtcdError::Stopped.into()),
        }
    }

    /// Proposes a command, in nobody's name, and returns the state machine's answer with the term of its entry.
    pub(super) async fn write(&self, command: Command) -> Result<(Response, Term), Status> {
        self.propose(command).await?.map_err(refusal)
    }

    /// The same, with the state machine's refusals as they are.
    pub(super) async fn propose(
        &self,
        command: Command,
    ) -> Result<Result<(Response, Term), hadron_keyspace::Error>, Status> {
        let _pending = self.metrics.proposals_pending.hold();
        match self.backend.write(self.group, command).await {
            Ok(Written { response, term }) => Ok(response.map(|response| (response, term))),
            Err(error) => {
                self.metrics.proposals_failed.inc();
                Err(error.into())
            }
        }
    }

    /// Refuses a write whose encoding is too large for one command.
    pub(super) fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        match request.encoded_len() > self.limits.request_bytes {
            true => Err(EtcdError::RequestTooLarge.into()),
            false => Ok(()),
        }
    }

    /// Refuses what would make the keyspace larger than its quota, and raises the space alarm, which holds for all nodes and
    /// until somebody disarms it. Several nodes may take a little more together than the last bytes that were free.
    pub(super) async fn check_space(&self, bytes: usize) -> Result<(), Status> {
        let Some(quota) = self.limits.quota_bytes else { return Ok(()) };
        let keyspace = self.keyspace()?;
        if keyspace.db_bytes().saturating_add(bytes as u64) < quota {
            return Ok(());
        }
        let alarm =
            AlarmMember { member_id: self.backend.identity().member_id.0, alarm: AlarmType::Nospace as i32 };
        if !keyspace.alarms().contains(&alarm) {
            tracing::warn!(
                quota_bytes = quota,
                db_bytes = keyspace.db_bytes(),
                "the quota is used up: alarm raised"
            );
            let AlarmMember { member_id, alarm } = alarm;
            let raise = AlarmRequest { action: AlarmAction::Activate as i32, member_id, alarm };
            self.write(Command::Alarm(raise)).await?;
        }
        Err(EtcdError::NoSpace.into())
    }

    /// A header at the keyspace's revision now.
    pub(super) fn header_now(&self) -> ResponseHeader {
        let revision = self.backend.keyspace(self.group).map_or(0, |keyspace| keyspace.revision());
        self.header(revision, self.status().term)
    }

    /// A header at `revision`.
    pub(super) fn header(&self, revision: i64, term: Term) -> ResponseHeader {
        let identity = self.backend.identity();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id.0,
            revision,
            raft_term: term.0,
        }
    }

    /// Completes a header that came from the state machine, which knows the revision only.
    pub(super) fn complete(&self, header: &mut Option<ResponseHeader>, term: Term) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision, term));
    }
}

/// An answer of another kind than the command. Cannot happen unless this build has a bug.
pub(super) fn mismatch() -> Status {
    Status::internal("hadron: the state machine answered another kind of command")
}
