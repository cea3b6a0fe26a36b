//! etcd's v3 discovery: the nodes of a new cluster register in another etcd, and wait there until all have.
//!
//! | key below `/_etcd/registry/TOKEN/` | value |
//! |---|---|
//! | `_config/size` | how many nodes the cluster has; whoever makes the token writes it |
//! | `members/ID` | `name=peer-url` of the node with that id |
//!
//! The cluster is made of those who registered first, by the revisions at which their keys were made; who comes later is told that it is
//! full. A node whose start failed comes back under its own key and so keeps its turn. What fails for want of the service is tried again for as
//! long as it takes, less and less often.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::client::{CallError, Client};

const PREFIX: &str = "/_etcd/registry";
/// Waiting times double up to two to this power, in seconds.
const DOUBLINGS_MAX: u32 = 8;

/// Why no cluster was found.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nobody wrote how large the cluster is.
    #[error("discovery: size key not found: write the number of nodes there first (`etcdctl put {0} 3`)")]
    NoSize(String),
    /// It is no number of nodes.
    #[error("discovery: size key is bad: {key} is {found:?}, and must be a number of nodes")]
    BadSize {
        /// The key.
        key: String,
        /// Its value.
        found: String,
    },
    /// Enough others were there before.
    #[error(
        "discovery: cluster is full: {size} nodes registered before this one ({members}). A token is for one cluster: make a new one"
    )]
    Full {
        /// How many the cluster has.
        size: usize,
        /// Who they are.
        members: String,
    },
    /// The service wants to know whom it talks to, and does not like what it hears.
    #[error("discovery: {0}")]
    Login(String),
}

/// Those who registered, in the order in which they came.
struct Registered {
    members: Vec<Member>,
    /// The revision at which that was so.
    revision: i64,
}

struct Member {
    key: String,
    /// `name=peer-url`.
    text: String,
    create_revision: i64,
}

/// A place in another etcd, for the nodes of one cluster.
pub(crate) struct Registry {
    client: Client,
    /// What all its keys begin with.
    prefix: String,
}

impl Registry {
    /// Of the cluster with this token.
    pub(crate) fn new(client: Client, token: &str) -> Registry {
        Registry { client, prefix: format!("{PREFIX}/{}", token.trim_matches('/')) }
    }

    /// Registers the node `id`, which is `text` (`name=peer-url`), and waits for the others: all members, as `--initial-cluster` has them.
    ///
    /// # Errors
    /// The cluster cannot be made, or not with this node. A service that is not there is waited for.
    pub(crate) async fn join(&self, id: u64, text: &str) -> Result<String, RegistryError> {
        let own = format!("{}/{id:x}", self.members_prefix());
        let size = self.size().await?;
        check_room(&self.registered().await?, size, &own)?;
        self.register(&own, text).await?;
        loop {
            let registered = self.registered().await?;
            check_room(&registered, size, &own)?;
            let found = registered.members.len();
            if found >= size {
                info!(
                    cluster_size = size,
                    found_peers = found,
                    "found all needed peers from discovery service"
                );
                return Ok(first(&registered, size));
            }
            info!(cluster_size = size, found_peers = found, "waiting for peers from discovery service");
            if let Err(error) = self.changed_after(registered.revision).await {
                warn!(%error, "lost the discovery service while waiting for peers");
                sleep(Duration::from_secs(2)).await;
            }
        }
    }

    fn members_prefix(&self) -> String {
        format!("{}/members", self.prefix)
    }

    async fn size(&self) -> Result<usize, RegistryError> {
        let key = format!("{}/_config/size", self.prefix);
        let range = pb::RangeRequest { key: key.clone().into(), ..Default::default() };
        let answer = patiently("cluster status check", || self.range(range.clone())).await?;
        let Some(kv) = answer.kvs.first() else { return Err(RegistryError::NoSize(key)) };
        let found = String::from_utf8_lossy(&kv.value).into_owned();
        match found.parse() {
            Ok(size @ 1..) => Ok(size),
            _ => Err(RegistryError::BadSize { key, found }),
        }
    }

    async fn registered(&self) -> Result<Registered, RegistryError> {
        let (key, range_end) = prefix_range(&self.members_prefix());
        let range = pb::RangeRequest { key, range_end, ..Default::default() };
        let answer = patiently("cluster status check", || self.range(range.clone())).await?;
        let mut members: Vec<Member> = answer.kvs.iter().filter_map(member).collect();
        members.sort_by_key(|member| member.create_revision);
        Ok(Registered { members, revision: answer.header.map_or(0, |header| header.revision) })
    }

    /// Safe to repeat: it is always the same key with the same value.
    async fn register(&self, own: &str, text: &str) -> Result<(), RegistryError> {
        let put = pb::PutRequest {
            key: own.to_owned().into(),
            value: text.to_owned().into(),
            ..Default::default()
        };
        let write = || {
            let put = put.clone();
            self.client.write(async move |connection| KvClient::new(connection).put(put).await)
        };
        patiently("register member itself", write).await?;
        info!(member_key = own, member_info = text, "register member itself successfully");
        Ok(())
    }

    async fn range(&self, range: pb::RangeRequest) -> Result<pb::RangeResponse, CallError> {
        let call = async |connection| KvClient::new(connection).range(range.clone()).await;
        self.client.read(call).await
    }

    /// Returns when something happened to the members after that revision.
    async fn changed_after(&self, revision: i64) -> Result<(), CallError> {
        let (key, range_end) = prefix_range(&self.members_prefix());
        let create =
            pb::WatchCreateRequest { key, range_end, start_revision: revision + 1, ..Default::default() };
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        let request = pb::WatchRequest { request_union: Some(create) };
        let call = async |connection, requests| WatchClient::new(connection).watch(requests).await;
        // The end of the requests would be the end of the watch.
        let (_requests, mut answers) = self.client.converse(&request, call).await?;
        while let Some(answer) = answers.message().await? {
            // A canceled watch, of revisions that are gone for example, is as good a reason to look again.
            if !answer.events.is_empty() || answer.canceled {
                return Ok(());
            }
        }
        Err(CallError::Refused(tonic::Status::unavailable("the watch ended")))
    }
}

/// Tries until it succeeds, or until it is clear that it never will.
async fn patiently<T, F>(step: &str, call: impl Fn() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, CallError>>,
{
    for retry in 1.. {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(error @ CallError::Login(_)) => return Err(RegistryError::Login(error.to_string())),
            Err(error) => {
                let backoff = Duration::from_secs(1 << DOUBLINGS_MAX.min(retry));
                warn!(%error, reason = step, ?backoff, "retry connecting to discovery service");
                sleep(backoff).await;
            }
        }
    }
    unreachable!("there is always a next retry")
}

/// Refuses a node that enough others were faster than.
fn check_room(registered: &Registered, size: usize, own: &str) -> Result<(), RegistryError> {
    let place = registered.members.iter().position(|member| member.key == own);
    match place.unwrap_or(registered.members.len()) >= size {
        true => Err(RegistryError::Full { size, members: first(registered, size) }),
        false => Ok(()),
    }
}

fn first(registered: &Registered, size: usize) -> String {
    let texts = registered.members.iter().take(size).map(|member| member.text.as_str());
    texts.collect::<Vec<_>>().join(",")
}

/// A member as it registered; `None` for what is none.
fn member(kv: &hadron_proto::mvccpb::KeyValue) -> Option<Member> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (key, text) = (text(&kv.key), text(&kv.value));
    if !text.contains('=') {
        warn!(member_key = key, member_info = text, "invalid peer info returned from discovery service");
        return None;
    }
    info!(member_key = key, member_info = text, "found peer from discovery service");
    Some(Member { key, text, create_revision: kv.create_revision })
}

/// The keys that begin with a prefix of plain text.
fn prefix_range(prefix: &str) -> (bytes::Bytes, bytes::Bytes) {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (prefix.to_owned().into(), end.into())
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
