//! Bits that flip at rest in a node's files, of every kind: the node does not start and says what to do, or what is
//! damaged is not shown, or nothing is missing. What it shows is what was written.
//!
//! `ROT_SEED` says which bits (printed), `ROT_FLIPS` how many in files of each kind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use hadron_proto::mvccpb::KeyValue;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

use crate::support::{Cluster, Node, eventually};

/// More than the engine keeps in memory, so that there are tables.
const KEYS: usize = 2_000;
const VALUE_BYTES: usize = 12 << 10;
const WRITERS: usize = 16;
/// Every key of this remainder modulo 10 is written again, and of the next removed.
const REWRITTEN: usize = 7;
/// How long an answer is waited for; a node that cannot read what it needs may end instead of giving one.
const ANSWER_MAX: Duration = Duration::from_secs(20);

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

async fn fill(channel: Channel, writer: usize) {
    let mut client = KvClient::new(channel);
    for number in (writer..KEYS).step_by(WRITERS) {
        let key = format!("{number:05}");
        let mut value = format!("{number} ").into_bytes();
        value.resize(VALUE_BYTES, b'a' + (number % 26) as u8);
        let put = PutRequest { key: key.clone().into(), value: value.into(), ..PutRequest::default() };
        client.put(put.clone()).await.unwrap();
        if number % 10 == REWRITTEN {
            client.put(put).await.unwrap();
        } else if number % 10 == REWRITTEN + 1 {
            let delete = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
            client.delete_range(delete).await.unwrap();
        }
    }
}

/// All keys at `revision`.
async fn shown(node: &Node, revision: i64) -> Result<Vec<KeyValue>, Status> {
    let mut client = KvClient::new(node.channel()).max_decoding_message_size(usize::MAX);
    let all =
        RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..RangeRequest::default() };
    let answer = timeout(ANSWER_MAX, client.range(all)).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner().kvs)
}

/// The files below a directory, and their bytes.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

/// Makes the directory what it was.
fn restore(directory: &Path, pristine: &BTreeMap<PathBuf, Vec<u8>>) {
    fs::remove_dir_all(directory).unwrap();
    for (path, bytes) in pristine {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A byte that is not zero: files are made longer than what is in them.
fn somewhere(bytes: &[u8], random: &mut SmallRng) -> Option<usize> {
    let from = random.random_range(0..bytes.len());
    let near = (from..bytes.len()).chain(0..from);
    near.into_iter().find(|at| bytes[*at] != 0)
}

fn flip(path: &Path, at: usize, bit: u32) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at as u64).unwrap();
}

/// What became of a node with a flipped bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Refused,
    FailedRead,
    Whole,
}

struct Patient {
    cluster: Cluster,
    revision: i64,
    whole: Vec<KeyValue>,
}

impl Patient {
    /// Starts the node, looks at everything, and stops it.
    async fn try_to_serve(&mut self) -> (End, String) {
        let node = &mut self.cluster.nodes[0];
        fs::remove_file(node.data_dir().with_extension("log")).unwrap();
        node.start();
        let mut serves = false;
        eventually("it serves or ends", async || {
            serves = node.status().await.is_some_and(|status| status.leader != 0);
            serves || node.has_ended().is_some()
        })
        .await;
        let end = match serves {
            true => self.look().await,
            false => End::Refused,
        };
        let node = &mut self.cluster.nodes[0];
        if let Some(status) = node.has_ended() {
            assert!(status.code() == Some(1), "{status}: {}", node.log());
        }
        node.kill();
        (end, node.log())
    }

    async fn look(&self) -> End {
        match shown(&self.cluster.nodes[0], self.revision).await {
            Ok(found) => {
                assert!(found == self.whole, "what is shown is not what was written");
                End::Whole
            }
            Err(status) => {
                let message = status.message();
                assert!(message.contains("damaged") && message.contains("rebuild this member"), "{status}");
                End::FailedRead
            }
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_is_never_served() {
    let seed = variable("ROT_SEED", rand::random_range(0..1_000_000));
    let flips = variable("ROT_FLIPS", 2);
    println!("ROT_SEED={seed} ROT_FLIPS={flips}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(1, &[]).await;
    let node = &mut cluster.nodes[0];
    join_all((0..WRITERS).map(|writer| fill(node.channel(), writer))).await;
    let revision = node.status().await.unwrap().header.unwrap().revision;
    let whole = shown(node, revision).await.unwrap();
    node.signal(Signal::TERM);
    assert!(node.wait_for_exit().await.success());
    let directory = node.data_dir();
    let pristine = files(&directory);
    let mut patient = Patient { cluster, revision, whole };
    assert_eq!(patient.try_to_serve().await.0, End::Whole);
    let mut kinds: BTreeMap<String, Vec<&PathBuf>> = BTreeMap::new();
    for path in pristine.iter().filter(|(_, bytes)| !bytes.is_empty()).map(|(path, _)| path) {
        let name = path.strip_prefix(&directory).unwrap().display().to_string();
        kinds.entry(name.replace(|letter: char| letter.is_ascii_digit(), "")).or_default().push(path);
    }
    let mut tally: BTreeMap<End, usize> = BTreeMap::new();
    for paths in kinds.values() {
        for _ in 0..flips {
            let path = paths.choose(&mut random).unwrap();
            let Some(at) = somewhere(&pristine[*path], &mut random) else { continue };
            let bit = random.random_range(0..8);
            print!("{}, byte {at}, bit {bit}: ", path.strip_prefix(&directory).unwrap().display());
            restore(&directory, &pristine);
            flip(path, at, bit);
            let (end, log) = patient.try_to_serve().await;
            println!("{end:?}");
            if end == End::Refused {
                let error = log.lines().find(|line| line.contains("the node stopped")).unwrap();
                let advice = ["rebuild this member", "from a copy", "a format that this version cannot read"];
                assert!(advice.iter().any(|advice| error.contains(advice)), "{error}");
                println!("    {error}");
            }
            *tally.entry(end).or_default() += 1;
        }
    }
    println!("{tally:?}");
    assert!(tally[&End::Refused] > 0);
}
