//! Bits that flip in what a running node has stored and nobody reads: it finds them by itself, and its replica is named, and serves no more, as
//! long as enough others are sound.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use hadron_proto::etcdserverpb::alarm_request::AlarmAction;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, PutRequest, RangeRequest};
use rustix::process::Signal;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::support::ctl::ctl;
use crate::support::{Cluster, Node, eventually};

/// Three times what the engine caches of its tables.
const KEYS: usize = 4_000;
const VALUE_BYTES: usize = 12 << 10;
const WRITERS: usize = 16;
/// The keys whose values are damaged, old enough to be in tables, and further apart than what is cached at a time. The engine may have some of
/// them in its cache for as long as it reads them, and not see what has become of them on the disk, but not all.
const DAMAGED: [usize; 7] = [77, 400, 800, 1_200, 1_600, 2_000, 2_400];

fn key(number: usize) -> String {
    format!("{number:05}")
}

/// Different bytes for each key, and long enough for it to be found in a file.
fn value(number: usize) -> Vec<u8> {
    format!("value of {number}, ").into_bytes().into_iter().cycle().take(VALUE_BYTES).collect()
}

/// About a keyspace.
fn about<T>(keyspace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hadron-keyspace", keyspace.parse().unwrap());
    request
}

async fn fill(channel: Channel, keyspace: &str, writer: usize) {
    let mut client = KvClient::new(channel);
    for number in (writer..KEYS).step_by(WRITERS) {
        let put =
            PutRequest { key: key(number).into(), value: value(number).into(), ..PutRequest::default() };
        client.put(about(keyspace, put)).await.unwrap();
    }
}

/// What the node's own replica has.
async fn read(node: &Node, keyspace: &str, number: usize) -> Result<Vec<u8>, Status> {
    let mut client = KvClient::new(node.channel());
    let range = RangeRequest { key: key(number).into(), serializable: true, ..RangeRequest::default() };
    Ok(client.range(about(keyspace, range)).await?.into_inner().kvs.swap_remove(0).value.into())
}

async fn alarms(node: &Node, keyspace: &str) -> Vec<AlarmMember> {
    let mut client = MaintenanceClient::new(node.channel());
    let list = AlarmRequest { action: AlarmAction::Get as i32, ..AlarmRequest::default() };
    client.alarm(about(keyspace, list)).await.unwrap().into_inner().alarms
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Flips a bit of each of the values of [`DAMAGED`] in the tables. They are in a journal too, which nobody reads any more.
fn flip(node: &Node) {
    let flipped: usize = DAMAGED.iter().map(|number| flip_value(node, *number)).sum();
    assert!(flipped > 0, "none of the values is in a table");
}

/// Returns how often the value was found.
fn flip_value(node: &Node, number: usize) -> usize {
    let wanted = value(number);
    let wanted = &wanted[..100];
    let mut flipped = 0;
    for path in files(&node.data_dir().join("engine/keyspaces")) {
        // Tables that are merged meanwhile may be gone, or there beside what they become.
        let Ok(bytes) = fs::read(&path) else { continue };
        let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) else { continue };
        println!("{}, byte {at}", path.display());
        let Ok(file) = fs::File::options().write(true).open(&path) else { continue };
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        flipped += 1;
    }
    flipped
}

/// Nodes that read what they have stored once a second. The values are in tables, and nowhere in memory.
async fn filled(count: usize, keyspace: &str) -> Cluster {
    filled_with(count, keyspace, "1s").await
}

/// The same, and the interval in which they read it.
async fn filled_with(count: usize, keyspace: &str, interval: &str) -> Cluster {
    let mut cluster = Cluster::start(count, &["--scrub-interval", interval]).await;
    if keyspace != "default" {
        ctl(&cluster.endpoints().join(","), &["keyspace", "create", keyspace]);
    }
    join_all((0..WRITERS).map(|writer| fill(cluster.nodes[0].channel(), keyspace, writer))).await;
    cluster.wait_until_equal().await;
    let node = cluster.nodes.last_mut().unwrap();
    node.signal(Signal::TERM);
    assert!(node.wait_for_exit().await.success());
    node.start();
    node.wait_until_serving().await;
    cluster
}

#[tokio::test]
async fn damage_that_nobody_reads_is_found_and_the_replica_serves_no_more() {
    let cluster = filled(3, "default").await;
    let [sound, damaged] = [&cluster.nodes[0], &cluster.nodes[2]];
    eventually("it was read whole", async || {
        damaged.counter("hadron_scrubs_total{result=\"sound\"}").await > 2
    })
    .await;
    assert_eq!(alarms(sound, "default").await, []);
    flip(damaged);
    let member_id = damaged.status().await.unwrap().header.unwrap().member_id;
    let expected = [AlarmMember { member_id, alarm: AlarmType::Corrupt as i32 }];
    eventually("the replica is named", async || alarms(sound, "default").await == expected).await;
    let refused = async || read(damaged, "default", DAMAGED[0] + 1).await.is_err();
    eventually("it serves nothing", refused).await;
    assert_eq!(read(sound, "default", DAMAGED[0]).await.unwrap(), value(DAMAGED[0]));
    let log = damaged.log();
    assert!(log.contains("what is stored of this replica is damaged"), "{log}");
    assert!(log.contains("rebuild this member from the others"), "{log}");
}

/// It was an error for clients, again and again, and nobody else heard of it before the next day.
#[tokio::test]
async fn damage_that_a_read_finds_is_named_without_waiting_for_a_scrub() {
    let cluster = filled_with(3, "default", "240h").await;
    let [sound, damaged] = [&cluster.nodes[0], &cluster.nodes[2]];
    flip(damaged);
    eventually("a read fails, and the replica is named", async || {
        for number in DAMAGED {
            let _ = read(damaged, "default", number).await;
        }
        !alarms(sound, "default").await.is_empty()
    })
    .await;
    assert!(damaged.log().contains("what is stored of this replica is damaged"));
}

/// Where all nodes have a replica already there is no other place for another.
#[tokio::test]
async fn a_replica_whose_stored_state_is_damaged_is_rebuilt_where_it_was() {
    let cluster = filled(3, "a").await;
    let all = cluster.endpoints().join(",");
    let [sound, damaged] = [&cluster.nodes[0], &cluster.nodes[2]];
    let replicas = || ctl(&all, &["keyspace", "get", "a"]);
    let before = replicas();
    eventually("it is at rest", async || alarms(sound, "a").await.is_empty()).await;
    flip(damaged);
    eventually("there is another replica", async || replicas() != before).await;
    eventually("the alarm ends with the replica", async || alarms(sound, "a").await.is_empty()).await;
    for number in DAMAGED {
        let same = async || read(damaged, "a", number).await.is_ok_and(|found| found == value(number));
        eventually("it has all", same).await;
    }
}

/// A node that is alone has nobody to serve in its place.
#[tokio::test]
async fn the_only_replica_goes_on_and_serves_what_it_can() {
    let cluster = filled(1, "default").await;
    let node = &cluster.nodes[0];
    flip(node);
    eventually("it is found", async || node.counter("hadron_scrub_damaged_replicas").await == 1).await;
    let sound = DAMAGED[0] + 50;
    assert_eq!(read(node, "default", sound).await.unwrap(), value(sound));
    let mut refused = 0;
    for number in DAMAGED {
        if let Err(error) = read(node, "default", number).await {
            assert!(error.message().contains("damaged"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 0, "something is damaged, and everything is served");
    assert_eq!(alarms(node, "default").await, []);
    let log = node.log();
    assert!(log.contains("too few would be left"), "{log}");
}
