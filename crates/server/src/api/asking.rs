//! What this node asks another one about a keyspace of which it has no replica that serves: the call that it was asked itself, in the same
//! user's name, over the peer ports. Whoever is asked so answers with what it knows, and asks nobody.

use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::{GroupId, NodeId};
use hadron_node::DEFAULT_KEYSPACE;
use hadron_proto::hadron as pb;
use http::Uri;
use pb::pool_client::PoolClient;
use tonic::Request;
use tonic::body::Body;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tower::service_fn;

use super::backend::Backend;
use super::caller::CommonName;
use super::context::Context;
use super::forward::{Links, target};
use super::passed_on::Told;
use crate::client::links::Keepalive;

/// Says that the question comes from another node.
const ASKED: &str = "hadron-asked";
/// How long another node may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
const KEEPALIVE: Keepalive = Keepalive { interval: None, timeout: PATIENCE, while_idle: false };

/// In whose name another node is asked.
pub(super) struct Asker {
    metadata: MetadataMap,
    user: Option<CommonName>,
    is_node: bool,
}

impl Asker {
    /// Whoever makes this request.
    pub(super) fn of<T>(request: &Request<T>) -> Asker {
        let is_node = request.metadata().contains_key(ASKED);
        let (metadata, user) = (request.metadata().clone(), request.extensions().get().cloned());
        Asker { metadata, user, is_node }
    }

    /// What a node with a replica of the keyspace tells of it; `None` if nobody can tell more than this node.
    pub(super) async fn ask_about<B: Backend>(
        &self,
        context: &Context<B>,
        name: &str,
        group: GroupId,
    ) -> Option<pb::KeyspaceGetResponse> {
        if self.is_node {
            return None;
        }
        let alive = context.backend.alive();
        let places = context.places(group).into_iter().map(|(node, _)| node);
        for node in places.filter(|node| alive.contains(node)) {
            let told = tokio::time::timeout(PATIENCE, self.ask(&context.backend, node, name)).await;
            if let Some(told) = told.ok().flatten().filter(|told| told.revision.is_some()) {
                return Some(told);
            }
        }
        None
    }

    async fn ask<B: Backend>(
        &self,
        backend: &B,
        node: NodeId,
        name: &str,
    ) -> Option<pb::KeyspaceGetResponse> {
        let target = Arc::new(target(backend, node, KEEPALIVE));
        let sender = Links::default().to(&target).await.ok()?;
        let user = self.user.clone();
        let service = service_fn(move |mut request: http::Request<Body>| {
            let told = Told { keyspace: DEFAULT_KEYSPACE, user: user.as_ref(), ..Told::default() };
            told.write(request.headers_mut());
            let mut sender = sender.clone();
            async move { sender.send_request(request).await }
        });
        let mut client = PoolClient::with_origin(service, Uri::from_static("http://hadron"));
        let mut question = Request::new(pb::KeyspaceGetRequest { name: name.to_owned() });
        *question.metadata_mut() = self.metadata.clone();
        question.metadata_mut().insert(ASKED, AsciiMetadataValue::from_static("1"));
        client.keyspace_get(question).await.ok().map(tonic::Response::into_inner)
    }
}
