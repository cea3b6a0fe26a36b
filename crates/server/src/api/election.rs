//! The service `Election`: elections among clients. Not to be confused with those among nodes, which `Pool` tells of.

use std::sync::Arc;

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::event::EventType;
use hadron_proto::v3electionpb as electionpb;
use pb::request_op::Request as Operation;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::context::{Context, Learners};
use super::session::{Lost, Place, Session, created_at, enter, without_code};
use super::unsent;

/// Proclamations that wait for a slow observer; beyond, its watch waits.
const PROCLAMATIONS_WAITING_MAX: usize = 16;

/// What an observer gets.
type Proclamation = Result<electionpb::LeaderResponse, Status>;

/// The service.
pub(super) struct Election<B> {
    context: Arc<Context<B>>,
}

impl<B: Backend> Election<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Election<B> {
        Election { context }
    }

    async fn session<T>(&self, request: &Request<T>) -> Result<Session<B>, Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        Ok(Session::new(&self.context, request))
    }
}

fn missing_leader() -> Status {
    Status::unknown("\"leader\" field must be provided")
}

/// Says `value` at `place`, as long as that is the caller's.
async fn proclaim<B: Backend>(
    session: &Session<B>,
    place: &Place,
    lease: i64,
    value: Bytes,
) -> Result<Option<pb::ResponseHeader>, Status> {
    let put = pb::PutRequest { key: place.key.clone(), value, lease, ..Default::default() };
    let is_place = created_at(&place.key, place.revision);
    let response = session.txn_if(is_place, Operation::RequestPut(put)).await?;
    match response.succeeded {
        true => Ok(response.header),
        false => Err(Status::unknown("election: not leader")),
    }
}

async fn campaign<B: Backend>(
    session: &Session<B>,
    request: electionpb::CampaignRequest,
) -> Result<electionpb::CampaignResponse, Status> {
    let electionpb::CampaignRequest { name, lease, value } = request;
    let lease = session.lease(lease).await?;
    let (mut candidacy, mut header) = enter(session, &name, lease, value.clone()).await?;
    let place = candidacy.place().clone();
    if candidacy.says_other_than(&value) {
        header = proclaim(session, &place, lease, value).await?;
        candidacy.wrote(header.as_ref());
    }
    candidacy.win().await.map_err(|lost| match lost {
        Lost::Place => Status::unknown("election: session is expired"),
        Lost::Call(status) => status,
    })?;
    let leader = electionpb::LeaderKey { name, key: place.key, rev: place.revision, lease };
    Ok(electionpb::CampaignResponse { header, leader: Some(leader) })
}

/// Sends what leaders say until the observer is gone or something fails.
async fn observe<B: Backend>(session: Session<B>, name: Bytes, sender: mpsc::Sender<Proclamation>) {
    let follow = async {
        let session = match session.by_name(&name).await {
            Ok(session) => session,
            Err(status) => return status,
        };
        loop {
            if let Err(status) = follow_leader(&session, &name, &sender).await {
                return status;
            }
        }
    };
    tokio::select! {
        () = sender.closed() => {}
        status = follow => drop(sender.send(Err(without_code(status))).await),
    }
}

/// Sends what the present leader says until it leads no more, or waits for one.
async fn follow_leader<B: Backend>(
    session: &Session<B>,
    name: &[u8],
    sender: &mpsc::Sender<Proclamation>,
) -> Result<(), Status> {
    let (header, owner) = session.owner(name).await?;
    let since = header.unwrap_or_default().revision + 1;
    let Some(kv) = owner else { return session.wait_for_contender(name, since).await };
    let key = kv.key.clone();
    let watch = pb::WatchCreateRequest { key: key.clone(), start_revision: since, ..Default::default() };
    let mut watches = session.watch(vec![watch])?;
    // A send fails when the observer is gone: then nobody polls this any more.
    let said = |(header, kv)| Ok(electionpb::LeaderResponse { header, kv: Some(kv) });
    let _ = sender.send(said((header, kv))).await;
    loop {
        let response = session.next(&mut watches).await?;
        session.check_reads(&key).await?;
        for event in response.events {
            if event.r#type() == EventType::Delete {
                return Ok(());
            }
            let _ = sender.send(said((response.header, event.kv.unwrap_or_default()))).await;
        }
        if response.canceled {
            return Ok(());
        }
    }
}

#[tonic::async_trait]
impl<B: Backend> electionpb::election_server::Election for Election<B> {
    async fn campaign(
        &self,
        request: Request<electionpb::CampaignRequest>,
    ) -> Result<Response<electionpb::CampaignResponse>, Status> {
        let session = self.session(&request).await?;
        campaign(&session, request.into_inner()).await.map(Response::new).map_err(without_code)
    }

    async fn proclaim(
        &self,
        request: Request<electionpb::ProclaimRequest>,
    ) -> Result<Response<electionpb::ProclaimResponse>, Status> {
        let session = self.session(&request).await?;
        let electionpb::ProclaimRequest { leader, value } = request.into_inner();
        let leader = leader.ok_or_else(missing_leader)?;
        let place = Place { key: leader.key, revision: leader.rev };
        let header = proclaim(&session, &place, leader.lease, value).await.map_err(without_code)?;
        Ok(Response::new(electionpb::ProclaimResponse { header }))
    }

    async fn leader(
        &self,
        request: Request<electionpb::LeaderRequest>,
    ) -> Result<Response<electionpb::LeaderResponse>, Status> {
        let session = self.session(&request).await?;
        let (header, owner) = session.owner(&request.get_ref().name).await.map_err(without_code)?;
        match owner {
            Some(kv) => Ok(unsent::answer(electionpb::LeaderResponse { header, kv: Some(kv) })),
            None => Err(Status::unknown("election: no leader")),
        }
    }

    type ObserveStream = ReceiverStream<Proclamation>;

    async fn observe(
        &self,
        request: Request<electionpb::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let session = self.session(&request).await?;
        let (sender, receiver) = mpsc::channel(PROCLAMATIONS_WAITING_MAX);
        tokio::spawn(observe(session, request.into_inner().name, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn resign(
        &self,
        request: Request<electionpb::ResignRequest>,
    ) -> Result<Response<electionpb::ResignResponse>, Status> {
        let session = self.session(&request).await?;
        let leader = request.into_inner().leader.ok_or_else(missing_leader)?;
        let place = Place { key: leader.key, revision: leader.rev };
        let response = session.leave(&place).await.map_err(without_code)?;
        Ok(Response::new(electionpb::ResignResponse { header: response.header }))
    }
}
