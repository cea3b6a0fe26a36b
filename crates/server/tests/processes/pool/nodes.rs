//! A pool of real processes, as its operator sees it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use hadron_proto::etcdserverpb::MemberAddRequest;
use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::hadron as pb;
use pb::pool_client::PoolClient;
use tonic::transport::Channel;

use crate::support::ctl::ctl;
use crate::support::{Cluster, Node, eventually};

/// What host names of keyspaces end with.
pub const SUFFIX: &str = "hadron.example";
/// Between two looks.
const POLL: Duration = Duration::from_millis(250);
/// The largest load, relative to the mean.
const EVEN: f64 = 1.25;
/// The load of a node that has one replica which is heavier than that, relative to that replica: it may have some that are tiny.
const ROCK: f64 = 1.05;
/// Keyspaces that are made at a time.
const MADE_AT_ONCE: usize = 16;

/// The processes.
pub struct Pool {
    pub cluster: Cluster,
    extra: Vec<(String, String)>,
}

impl Pool {
    /// Starts `count` nodes with these flags, and their values, beside the usual ones.
    pub async fn start(count: usize, extra: &[(&str, &str)]) -> Pool {
        // All have the same disk, and how full that is is not what is looked at.
        let extra: Vec<(String, String)> =
            [("--keyspace-host-suffix", SUFFIX), ("--balance-disk-max", "100"), ("--shards", "2")]
                .iter()
                .chain(extra)
                .map(|(flag, value)| ((*flag).into(), (*value).into()))
                .collect();
        let arguments: Vec<&str> =
            extra.iter().flat_map(|(flag, value)| [flag.as_str(), value.as_str()]).collect();
        let pool = Pool { cluster: Cluster::start(count, &arguments).await, extra };
        for node in pool.running() {
            eventually("all nodes hear each other", async || {
                let ask = PoolClient::new(node.channel()).balance_status(pb::BalanceStatusRequest {}).await;
                ask.is_ok_and(|status| status.get_ref().nodes.len() == count)
            })
            .await;
        }
        pool
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.cluster.nodes.iter().filter(|node| node.is_running())
    }

    /// Their URLs for clients.
    pub fn endpoints(&self) -> Vec<String> {
        self.running().map(|node| node.client_url.clone()).collect()
    }

    /// The same, as names under which a keyspace is asked for: see [`support::channel`].
    pub fn endpoints_of(&self, keyspace: &str) -> Vec<String> {
        self.endpoints().iter().map(|url| format!("{url}#{keyspace}.{SUFFIX}")).collect()
    }

    /// The calls about the pool, to the first node that runs.
    pub fn client(&self) -> PoolClient<Channel> {
        PoolClient::new(self.running().next().unwrap().channel()).max_decoding_message_size(usize::MAX)
    }

    /// What `hadron ctl` prints when all goes well.
    pub fn ctl(&self, words: &[&str]) -> String {
        ctl(&self.endpoints().join(","), words)
    }

    /// Makes keyspaces with three replicas. Returns the group of each, and the node that led it first if one is known.
    pub async fn make(&self, names: &[String]) -> BTreeMap<String, (u64, u64)> {
        let mut made = BTreeMap::new();
        let channels: Vec<Channel> = self.running().map(Node::channel).collect();
        for batch in names.chunks(MADE_AT_ONCE) {
            let make = async |(number, name): (usize, &String)| {
                let request =
                    pb::KeyspaceCreateRequest { name: name.clone(), replicas: 3, ..Default::default() };
                let mut client = PoolClient::new(channels[number % channels.len()].clone());
                let answer = client.keyspace_create(request).await.unwrap().into_inner();
                (name.clone(), (answer.keyspace.unwrap().group, answer.leader))
            };
            made.extend(join_all(batch.iter().enumerate().map(make)).await);
        }
        made
    }

    /// How the load is spread, as the first node that runs sees it.
    pub async fn status(&self) -> pb::BalanceStatusResponse {
        self.client().balance_status(pb::BalanceStatusRequest {}).await.unwrap().into_inner()
    }

    /// How a node stands, by its name.
    pub async fn node(&self, name: &str) -> Option<pb::BalanceNode> {
        self.status().await.nodes.into_iter().find(|node| node.name == name)
    }

    /// Moves that were decided so far.
    pub async fn moves(&self) -> Vec<pb::Move> {
        self.client().balance_history(pb::BalanceHistoryRequest {}).await.unwrap().into_inner().moves
    }

    /// How many replicas with a vote each group has on the nodes that run, by what these say themselves.
    pub async fn votes(&self) -> BTreeMap<u64, usize> {
        let mut votes = BTreeMap::new();
        for page in join_all(self.running().map(Node::metrics)).await {
            for line in page.lines().filter_map(|line| line.strip_prefix("hadron_replica_votes{group=\"")) {
                let (group, votes_here) = line.split_once("\"} ").unwrap();
                *votes.entry(group.parse().unwrap()).or_default() += usize::from(votes_here == "1");
            }
        }
        votes
    }

    /// Waits until each of these groups has three replicas that vote, and none on another node.
    pub async fn wait_until_whole(&self, groups: &[u64], within: Duration) {
        self.within(within, "every keyspace has three replicas that vote", async || {
            let votes = self.votes().await;
            groups.iter().all(|group| votes.get(group) == Some(&3))
        })
        .await;
    }

    /// Adds a node, starts it and waits until it serves. Returns its number.
    pub async fn join(&mut self) -> usize {
        let number = self.cluster.prepare_to_join();
        let node = &mut self.cluster.nodes[number];
        self.extra.iter().for_each(|(flag, value)| node.set_argument(flag, value));
        let peer_ur_ls = vec![format!("http://{}", node.peer_address)];
        let request = MemberAddRequest { peer_ur_ls, is_learner: false };
        let first = self.running().next().unwrap().channel();
        ClusterClient::new(first).member_add(request).await.unwrap();
        self.cluster.nodes[number].start();
        self.cluster.nodes[number].wait_until_serving().await;
        number
    }

    /// Polls until `condition` holds; how long that took. Panics after `limit`.
    pub async fn within(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl AsyncFnMut() -> bool,
    ) -> Duration {
        let began = Instant::now();
        while !condition().await {
            if began.elapsed() > limit {
                panic!("not within {limit:?}: {what}\n{}", self.ctl(&["balance", "status", "-w", "table"]));
            }
            tokio::time::sleep(POLL).await;
        }
        began.elapsed()
    }
}

/// Whether nobody carries more than a quarter above the mean, or than one replica that cannot be divided.
pub fn is_even(status: &pb::BalanceStatusResponse) -> bool {
    let bound = f64::max(EVEN * status.mean, ROCK * status.heaviest_replica);
    status.mean > 0.0 && status.largest <= bound
}

/// B(x) of each node, for people.
pub fn shares(status: &pb::BalanceStatusResponse) -> String {
    let node = |node: &pb::BalanceNode| {
        format!("{} {:.3} ({} replicas, leads {})", node.name, node.share, node.replicas, node.leaders)
    };
    let nodes: Vec<String> = status.nodes.iter().map(node).collect();
    let of_mean = |load: f64| load / status.mean;
    format!(
        "largest {:.2} of the mean, heaviest replica {:.2} of it; {}",
        of_mean(status.largest),
        of_mean(status.heaviest_replica),
        nodes.join(", ")
    )
}
