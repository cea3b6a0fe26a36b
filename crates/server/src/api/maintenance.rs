//! The service `Maintenance`: status, hashes of the history, leadership transfer, alarms, backups (`snapshot`), defragmentation,
//! which is hardly needed, and downgrades, which there are not.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::Stream;
use hadron_consensus::NodeId;
use hadron_keyspace::Command;
use hadron_keyspace::auth::Need;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::AlarmType;
use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
use hadron_proto::etcdserverpb::downgrade_request::DowngradeAction;
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::caller::Claim;
use super::context::{Context, Learners, mismatch};
use super::error::EtcdError;

/// Alarms of a keyspace up to which clients may raise more. Nodes raise theirs whatever there is.
const ALARMS_MAX: usize = 256;

/// The service.
pub(super) struct Maintenance<B> {
    context: Arc<Context<B>>,
}

impl<B: Backend> Maintenance<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Maintenance<B> {
        Maintenance { context }
    }
}

/// An alarm in the words of `Status.errors`.
fn describe(alarm: &pb::AlarmMember) -> String {
    format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())
}

/// Refuses an alarm of a type that there is not, which would end an etcd, and more alarms than there are reasons for: what is raised is kept, and
/// looked at again and again. Of whom they are is not asked, as in etcd.
fn check_alarm(alarm: &pb::AlarmRequest, raised: &[pb::AlarmMember]) -> Result<(), Status> {
    if AlarmType::try_from(alarm.alarm).is_err() {
        let text = format!("hadron: there are no alarms of the type {}", alarm.alarm);
        return Err(Status::invalid_argument(text));
    }
    let is_raised = raised.contains(&pb::AlarmMember { member_id: alarm.member_id, alarm: alarm.alarm });
    if is_raised || raised.len() < ALARMS_MAX {
        return Ok(());
    }
    let text = format!("hadron: {ALARMS_MAX} alarms are raised: disarm some first");
    Err(Status::resource_exhausted(text))
}

#[tonic::async_trait]
impl<B: Backend> pb::maintenance_server::Maintenance for Maintenance<B> {
    /// Answered by every node from what it knows, even without a leader or a readable replica.
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Answer).await?;
        let (identity, status) = (self.context.backend.identity(), self.context.status());
        let keyspace = self.context.backend.keyspace(self.context.group);
        // Who may ask is written in what cannot be read otherwise.
        if keyspace.is_some() {
            self.context.permit(&Claim::of(&request), Need::User).await?;
        }
        let quota = self.context.quota_bytes()?;
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(EtcdError::NoLeader.text().to_owned());
        }
        match &keyspace {
            Some(keyspace) => errors.extend(keyspace.alarms().iter().map(describe)),
            None => errors.push("hadron: this node's replica is not readable".to_owned()),
        }
        let db_size = self.context.db_size().try_into().unwrap_or(i64::MAX);
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.context.header_now()),
            version: identity.etcd_version.clone(),
            db_size,
            leader: status.leader.map_or(0, |leader| leader.0),
            raft_index: status.commit.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: db_size,
            is_learner: status.is_learner,
            storage_version: identity.cluster_version.clone(),
            db_size_quota: quota.map_or(0, |quota| quota.try_into().unwrap_or(i64::MAX)),
            downgrade_info: Some(pb::DowngradeInfo { enabled: false, target_version: String::new() }),
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        self.context.permit(&Claim::of(&request), Need::Root).await?;
        let keyspace = self.context.keyspace()?;
        let revision = request.get_ref().revision;
        let began = Instant::now();
        let mut response = self.context.read_apart(move || keyspace.hash_kv(revision)).await?;
        self.context.metrics.hash_revision_duration.observe(began.elapsed());
        self.context.complete(&mut response.header, self.context.status().term);
        Ok(Response::new(response))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        self.context.permit_current(&Claim::of(&request), Need::Root).await?;
        let member = self.context.backend.identity().member_id;
        if self.context.status().leader != Some(member) {
            return Err(EtcdError::NotLeader.into());
        }
        let target = NodeId(request.get_ref().target_id);
        self.context.backend.transfer_leader(self.context.group, target).await?;
        Ok(Response::new(pb::MoveLeaderResponse { header: None }))
    }

    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let is_question = request.get_ref().action() == AlarmAction::Get;
        let claim = Claim::of(&request);
        if is_question {
            self.context.permit(&claim, Need::User).await?;
            let keyspace = self.context.keyspace_after_barrier().await?;
            let header = Some(self.context.header_now());
            let wanted = request.get_ref().alarm();
            let mut alarms = keyspace.alarms();
            alarms.retain(|raised| wanted == AlarmType::None || raised.alarm() == wanted);
            return Ok(Response::new(pb::AlarmResponse { header, alarms }));
        }
        self.context.permit_current(&claim, Need::Root).await?;
        if request.get_ref().action() == AlarmAction::Activate {
            let keyspace = self.context.backend.keyspace(self.context.group);
            let raised = keyspace.map_or_else(Vec::new, |keyspace| keyspace.alarms());
            check_alarm(request.get_ref(), &raised)?;
        }
        let (response, term) = self.context.write(Command::Alarm(request.into_inner())).await?;
        let hadron_keyspace::Response::Alarm(mut response) = response else { return Err(mismatch()) };
        self.context.complete(&mut response.header, term);
        Ok(Response::new(response))
    }

    /// What the node does by itself once there is enough to give back, now. It serves meanwhile.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Answer).await?;
        self.context.permit(&Claim::of(&request), Need::Root).await?;
        let done = self.context.backend.defragment().await;
        done.map_err(|reason| Status::failed_precondition(format!("etcdserver: {reason}")))?;
        // Without a header, as in etcd.
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    /// The hash of the whole history. In etcd that of its file, which differs between nodes; of use in tests only.
    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        self.context.permit(&Claim::of(&request), Need::Root).await?;
        let keyspace = self.context.keyspace()?;
        let began = Instant::now();
        let hash = self.context.read_apart(move || keyspace.hash_kv(0)).await?.hash;
        self.context.metrics.hash_duration.observe(began.elapsed());
        Ok(Response::new(pb::HashResponse { header: Some(self.context.header_now()), hash }))
    }

    /// No version of Hadron can be downgraded to one of etcd's, so there is never a job, nor a version that could be one's
    /// target.
    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        self.context.permit(&Claim::of(&request), Need::Root).await?;
        let is_version = |text: &str| {
            let parts: Vec<&str> = text.split('.').collect();
            (2..=3).contains(&parts.len()) && parts.iter().all(|part| part.parse::<u64>().is_ok())
        };
        let request = request.into_inner();
        Err(match request.action() {
            DowngradeAction::Cancel => EtcdError::NoInflightDowngrade.into(),
            DowngradeAction::Validate | DowngradeAction::Enable if is_version(&request.version) => {
                EtcdError::InvalidDowngradeTargetVersion.into()
            }
            DowngradeAction::Validate | DowngradeAction::Enable => {
                EtcdError::WrongDowngradeVersionFormat.into()
            }
        })
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.context.admit(request.metadata(), Learners::Answer).await?;
        self.context.permit(&Claim::of(&request), Need::Root).await?;
        Ok(Response::new(Box::pin(self.context.snapshot().await?)))
    }
}
