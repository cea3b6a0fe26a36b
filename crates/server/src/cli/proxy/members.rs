//! Who clients are told to be the members: the proxies, as far as they are known, since nodes may be out of reach.
//!
//! Proxies that share a prefix note there who they are, under a lease, in the form of etcd's naming package.

use std::sync::Arc;
use std::time::Duration;

use hadron_proto::etcdserverpb as pb;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use parking_lot::Mutex;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use prost::Message as _;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::messages::{AnyBody, single};
use super::upstream::Upstream;
use crate::client::{CallError, Client};

/// Looks and keep-alives within the life of a lease.
const BEATS_PER_TTL: u32 = 3;

/// The proxies.
pub(super) struct Members {
    /// Where this one is found.
    url: String,
    host: String,
    /// Where they note who they are, and for how many seconds.
    announced: Option<(String, i64)>,
    client: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lease: Option<i64>,
    found: Vec<pb::Member>,
}

impl Members {
    /// This proxy at `url`, noted under a prefix for some seconds if `announced` says so.
    pub(super) fn new(url: String, announced: Option<(String, i64)>, client: Client) -> Members {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Members { url, host, announced, client, state: Mutex::default() }
    }

    /// The answer to the question who the members are.
    pub(super) fn answer(&self) -> Response<AnyBody> {
        let found = self.state.lock().found.clone();
        let itself = || vec![self.member(&self.host, &self.url)];
        let members = if found.is_empty() { itself() } else { found };
        let list = pb::MemberListResponse { header: None, members };
        let mut response = Response::new(single(&list.encode_to_vec()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    fn member(&self, name: &str, url: &str) -> pb::Member {
        pb::Member { name: name.to_owned(), client_ur_ls: vec![url.to_owned()], ..Default::default() }
    }

    /// Keeps this proxy noted and knows the others, for as long as it is polled.
    pub(super) async fn keep(self: Arc<Self>) {
        let Some((prefix, ttl)) = &self.announced else { return std::future::pending().await };
        let beat = Duration::from_secs((*ttl).unsigned_abs()) / BEATS_PER_TTL;
        loop {
            if let Err(error) = self.announce(prefix, *ttl).await {
                warn!(%error, "cannot note this proxy for others");
            }
            match self.look(prefix).await {
                Ok(found) => self.state.lock().found = found,
                Err(error) => warn!(%error, "cannot read which proxies there are"),
            }
            tokio::time::sleep(beat).await;
        }
    }

    /// Renews the lease, or writes the note under a new one.
    async fn announce(&self, prefix: &str, ttl: i64) -> Result<(), CallError> {
        let lease = self.state.lock().lease;
        if let Some(id) = lease
            && self.renew(id).await? > 0
        {
            return Ok(());
        }
        let grant = pb::LeaseGrantRequest { ttl, id: 0 };
        let granted = self.client.write(async |it| LeaseClient::new(it).lease_grant(grant).await).await?;
        let metadata = json!({ "name": self.host }).to_string();
        let value = json!({ "Op": 0, "Addr": self.url, "Metadata": metadata });
        let put = pb::PutRequest {
            key: format!("{prefix}/{}", self.url).into(),
            value: value.to_string().into(),
            lease: granted.id,
            ..Default::default()
        };
        self.client.write(async |it| KvClient::new(it).put(put).await).await?;
        self.state.lock().lease = Some(granted.id);
        info!(addr = self.url, "lease-ttl" = ttl, "registered session with lease");
        Ok(())
    }

    /// The seconds that the lease has from now on; 0 if it is gone.
    async fn renew(&self, id: i64) -> Result<i64, CallError> {
        let call = async |it| {
            let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
            let mut answers = LeaseClient::new(it).lease_keep_alive(requests).await?.into_inner();
            Ok(tonic::Response::new(answers.message().await?.map_or(0, |answer| answer.ttl)))
        };
        self.client.write(call).await
    }

    async fn look(&self, prefix: &str) -> Result<Vec<pb::Member>, CallError> {
        let range = pb::RangeRequest {
            key: format!("{prefix}/").into(),
            // The character after the slash.
            range_end: format!("{prefix}0").into(),
            ..Default::default()
        };
        let found = self.client.read(async |it| KvClient::new(it).range(range.clone()).await).await?;
        Ok(found.kvs.iter().filter_map(|kv| self.noted(&kv.value)).collect())
    }

    fn noted(&self, value: &[u8]) -> Option<pb::Member> {
        let note: Value = serde_json::from_slice(value).ok()?;
        let metadata: Value = serde_json::from_str(note["Metadata"].as_str()?).ok()?;
        Some(self.member(metadata["name"].as_str()?, note["Addr"].as_str()?))
    }

    /// Takes the note away.
    pub(super) async fn leave(&self) {
        let Some(id) = self.state.lock().lease.take() else { return };
        let revoke = pb::LeaseRevokeRequest { id };
        if let Err(error) =
            self.client.write(async |it| LeaseClient::new(it).lease_revoke(revoke).await).await
        {
            warn!(%error, "this proxy stays noted until its lease ends");
        }
    }
}

/// Asks the nodes who the members are, time and again, so that calls are passed on to those. Without an interval it waits.
pub(super) async fn follow_nodes(client: Client, interval: Duration, upstream: &Upstream) {
    if interval.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(interval).await;
        let client = Client { endpoints: upstream.endpoints().into(), ..client.clone() };
        let list = pb::MemberListRequest { linearizable: true };
        match client.read(async |it| ClusterClient::new(it).member_list(list).await).await {
            Ok(list) => {
                let voters = list.members.iter().filter(|member| !member.is_learner);
                let urls: Vec<String> = voters.flat_map(|member| member.client_ur_ls.clone()).collect();
                upstream.set_endpoints(&urls);
            }
            Err(error) => warn!(%error, "cannot ask who the members are"),
        }
    }
}
