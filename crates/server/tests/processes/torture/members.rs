//! The administrator, who replaces members: takes one out of the cluster, and adds a new one with an empty disk at its place.
//!
//! It works on its own while everything else goes wrong, asks any node, and repeats what had no answer.

use std::time::Duration;

use hadron_proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long an answer is waited for, and the time between two questions.
const PATIENCE: Duration = Duration::from_secs(4);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// One member on its way to being replaced.
pub struct Replacement {
    /// The node.
    pub number: usize,
    /// Its process was left running: it must end when it hears that it was removed.
    pub ends_by_itself: bool,
    /// The id that the cluster gave the new member.
    pub id: JoinHandle<u64>,
}

impl Drop for Replacement {
    fn drop(&mut self) {
        self.id.abort();
    }
}

/// Who asks the cluster.
pub struct Administrator {
    channels: Vec<Channel>,
    rng: SmallRng,
}

impl Administrator {
    /// One who knows these nodes.
    pub fn new(endpoints: &[String], seed: u64) -> Administrator {
        let channels = endpoints.iter().map(|url| crate::support::channel(url)).collect();
        Administrator { channels, rng: SmallRng::seed_from_u64(seed) }
    }

    /// Removes the member `id`, and adds one with the same URL. The id of the new one.
    pub async fn replace(mut self, id: u64, peer_url: String) -> u64 {
        self.remove(id).await;
        self.add(peer_url).await
    }

    async fn remove(&mut self, id: u64) {
        loop {
            let request = pb::MemberRemoveRequest { id };
            match self.ask(async |mut cluster| cluster.member_remove(request).await).await {
                Ok(_) => return,
                // An earlier attempt, whose answer was lost, did it.
                Err(status) if status.code() == Code::NotFound => return,
                Err(_) => sleep(ASK_AGAIN).await,
            }
        }
    }

    async fn add(&mut self, url: String) -> u64 {
        loop {
            let request = pb::MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: false };
            match self.ask(async |mut cluster| cluster.member_add(request).await).await {
                Ok(added) => return added.member.unwrap().id,
                // An earlier attempt may have done it.
                Err(_) => match self.find(&url).await {
                    Some(id) => return id,
                    None => sleep(ASK_AGAIN).await,
                },
            }
        }
    }

    async fn find(&mut self, url: &String) -> Option<u64> {
        let request = pb::MemberListRequest { linearizable: true };
        let members = self.ask(async |mut cluster| cluster.member_list(request).await).await.ok()?.members;
        members.iter().find(|member| member.peer_ur_ls.contains(url)).map(|member| member.id)
    }

    /// Asks any node.
    async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(ClusterClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let node = self.rng.random_range(0..self.channels.len());
        let cluster = ClusterClient::new(self.channels[node].clone());
        let answer = timeout(PATIENCE, question(cluster)).await;
        answer
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
            .map(tonic::Response::into_inner)
    }
}
