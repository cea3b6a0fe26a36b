//! Thousands of keyspaces of which nobody asks anything: what they cost, and how soon they answer.
//!
//! `KEYSPACES=5000 HADRON=target/release/hadron cargo test -p hadron-server --test processes pool::idle -- --nocapture` measures; as it is, few
//! keyspaces of a development build show that nothing is out of all proportion.

use std::time::{Duration, Instant};

use futures::future::join_all;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest};
use tonic::Request;
use tonic::transport::Channel;

use super::nodes::Pool;
use crate::support::{Node, eventually};

/// Requests of the test at a time.
const AT_ONCE: usize = 64;
/// Keyspaces that are asked one after the other, to see how long one waits.
const ASKED: usize = 100;
/// Time for which nobody asks anything.
const QUIET: Duration = Duration::from_secs(20);
/// In which all must have fallen asleep.
const ASLEEP_WITHIN: Duration = Duration::from_secs(120);

/// What is aimed at, by optimised builds on a machine that does nothing else.
struct Bounds {
    /// Processor time of all nodes, in cores.
    cores: f64,
    bytes_per_replica: f64,
    restart: Duration,
    first_answer: Duration,
}

fn bounds(is_measured: bool) -> Bounds {
    let second = Duration::from_secs(1);
    match is_measured {
        true => Bounds {
            cores: 0.05,
            bytes_per_replica: 150.0 * 1024.0,
            restart: 20 * second,
            first_answer: second / 10,
        },
        false => {
            Bounds { cores: 0.5, bytes_per_replica: 1e6, restart: 60 * second, first_answer: 10 * second }
        }
    }
}

/// Processor time that a process took so far.
fn cpu(node: &Node) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // The 14th and the 15th of the line, in hundredths of a second.
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

fn all_cpu(pool: &Pool) -> Duration {
    pool.running().map(cpu).sum()
}

/// Bytes of a process that are in memory.
fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    1024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
}

fn with_keyspace<T>(message: T, name: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hadron-keyspace", name.parse().unwrap());
    request
}

/// Puts one key into each keyspace.
async fn fill(channels: &[Channel], names: &[String]) {
    for batch in names.chunks(AT_ONCE) {
        let put = async |(number, name): (usize, &String)| {
            let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
            let mut client = KvClient::new(channels[number % channels.len()].clone());
            client.put(with_keyspace(put, name)).await.unwrap_or_else(|status| panic!("{name}: {status}"));
        };
        join_all(batch.iter().enumerate().map(put)).await;
    }
}

/// How long some keyspaces take to answer a linearizable read, the quickest first. Each is asked through another node.
async fn first_answers(channels: &[Channel], names: &[String]) -> Vec<Duration> {
    let mut took = Vec::new();
    for (number, name) in names.iter().step_by(names.len().div_ceil(ASKED)).enumerate() {
        let range = RangeRequest { key: "k".into(), ..Default::default() };
        let mut client = KvClient::new(channels[number % channels.len()].clone());
        let began = Instant::now();
        let answer = client.range(with_keyspace(range, name)).await.unwrap();
        took.push(began.elapsed());
        assert_eq!(answer.get_ref().kvs.len(), 1, "{name}");
    }
    took.sort();
    took
}

fn show(what: &str, took: &[Duration]) -> Duration {
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{what}: median {median:?}, longest {longest:?}, of {}", took.len());
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_keyspaces_cost_next_to_nothing() {
    let count: usize = std::env::var("KEYSPACES").map_or(120, |text| text.parse().unwrap());
    let bounds = bounds(std::env::var("HADRON").is_ok());
    let mut pool = Pool::start(3, &[]).await;
    let channels: Vec<Channel> = pool.running().map(Node::channel).collect();
    let before: Vec<u64> = pool.running().map(resident).collect();
    let names: Vec<String> = (0..count).map(|number| format!("idle-{number}")).collect();
    let began = Instant::now();
    pool.make(&names).await;
    println!("{count} keyspaces made in {:?}", began.elapsed());
    fill(&channels, &names).await;

    let mut cores = f64::MAX;
    pool.within(ASLEEP_WITHIN, "all sleep", async || {
        let (began, spent) = (Instant::now(), all_cpu(&pool));
        tokio::time::sleep(QUIET).await;
        cores = (all_cpu(&pool) - spent).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("nobody asks: {:.2} % of a core for all nodes", 100.0 * cores);
        cores < bounds.cores
    })
    .await;
    let grown = pool.running().zip(&before).map(|(node, before)| resident(node).saturating_sub(*before));
    let bytes = grown.max().unwrap() as f64 / count as f64;
    println!("memory: {:.1} KiB for each replica, of the node with the most", bytes / 1024.0);
    assert!(bytes < bounds.bytes_per_replica, "{bytes} bytes");
    let longest = show("first answers", &first_answers(&channels, &names).await);
    assert!(longest < bounds.first_answer, "{longest:?}");

    pool.cluster.nodes.iter_mut().for_each(Node::kill);
    let began = Instant::now();
    pool.cluster.nodes.iter_mut().for_each(Node::start);
    for node in &pool.cluster.nodes {
        node.wait_until_serving().await;
    }
    let serving = began.elapsed();
    let last = names.last().unwrap().clone();
    let channels: Vec<Channel> = pool.running().map(Node::channel).collect();
    eventually("the last keyspace answers at every node", async || {
        let get = async |channel: &Channel| {
            let range = RangeRequest { key: "k".into(), ..Default::default() };
            KvClient::new(channel.clone()).range(with_keyspace(range, &last)).await.is_ok()
        };
        join_all(channels.iter().map(get)).await.into_iter().all(|answered| answered)
    })
    .await;
    println!("serving {serving:?} after the start, the last keyspace {:?} after it", began.elapsed());
    assert!(began.elapsed() < bounds.restart);
    let longest = show("first answers after the start", &first_answers(&channels, &names).await);
    assert!(longest < bounds.first_answer, "{longest:?}");
}
