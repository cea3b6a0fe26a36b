//! Who causes the load on this node beyond whole keyspaces: prefixes of keys, and clients.
//!
//! There may be any number of either, so only the heaviest are kept: each sketch has a fixed number of counters, and who is new takes the place
//! of the lightest together with its rank (Space-Saving, Metwally, Agrawal and El Abbadi 2005). Whoever causes more than one part in so many
//! of the load is certain to be in it. What is told of somebody is what was counted since it got its place: rather too little than too much.
//!
//! Each thread counts in a sketch of its own, behind a lock that hardly anybody else wants, and nothing is allocated for who has a place.
//! Counts fade, so that they are rates of the last ten seconds or so.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hadron_consensus::GroupId;
use hadron_keyspace::Command;
use hadron_node::Hitter;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::request_op::Request;
use parking_lot::Mutex;
use prost::Message as _;

/// The loads that are told of a prefix or a client, in the order in which they are shown.
pub(crate) const RESOURCES: [&str; 5] = ["cpu", "requests", "read", "written", "events"];
/// Sketches that threads share.
const SHARDS: usize = 8;
/// Prefixes in a sketch.
const PREFIXES: usize = 128;
/// Clients in a sketch.
const CLIENTS: usize = 64;
/// Of a longer name only the beginning counts.
const NAME_BYTES_MAX: usize = 96;
/// Slashes of a prefix whose key begins with one, and of others.
const SLASHES: (usize, usize) = (3, 2);
/// What things take of the processors of three nodes against a linearizable read, measured: a write 1.2 to 1.7 times as much (the more at a
/// time, the more), an event to one watcher a tenth, a refusal a tenth to a fifth.
const WRITE_WORK: f64 = 1.5;
const EVENT_WORK: f64 = 0.1;
const REFUSAL_WORK: f64 = 0.15;
/// What it takes to see whether a password is right, at the usual cost of hashing one, by the time it takes.
const LOG_IN_WORK: f64 = 150.0;
/// Bytes that rank as much as a read.
const BYTES_PER_WORK: f64 = 4_096.0;
/// Seconds after which a count has faded to 1/e.
const FADING_S: f64 = 10.0;

/// What somebody took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    requests: f64,
    work: f64,
    read: f64,
    written: f64,
    events: f64,
}

impl Usage {
    fn request(work: f64) -> Usage {
        Usage { requests: 1.0, work, ..Usage::default() }
    }

    /// A read that returned so many bytes.
    pub(super) fn read(bytes: usize) -> Usage {
        Usage { read: bytes as f64, ..Usage::request(1.0) }
    }

    /// A write whose request has so many bytes.
    fn write(bytes: usize) -> Usage {
        Usage { written: bytes as f64, ..Usage::request(WRITE_WORK) }
    }

    /// What is proposed for somebody.
    pub(super) fn command(command: &Command) -> Usage {
        Usage::write(match command {
            Command::Put(put) => put.encoded_len(),
            Command::DeleteRange(delete) => delete.encoded_len(),
            Command::Txn(txn) => txn.encoded_len(),
            _ => 0,
        })
    }

    /// Events that were sent to a watcher.
    pub(super) fn events(events: &[hadron_proto::mvccpb::Event]) -> Usage {
        let pairs = events.iter().flat_map(|event| event.kv.iter().chain(&event.prev_kv));
        let bytes: usize = pairs.map(bytes_of).sum();
        let count = events.len() as f64;
        Usage { work: EVENT_WORK * count, read: bytes as f64, events: count, ..Usage::default() }
    }

    /// Somebody who wants a token.
    pub(super) fn log_in() -> Usage {
        Usage::request(LOG_IN_WORK)
    }

    /// A request that was refused before it was looked at.
    pub(super) fn refusal() -> Usage {
        Usage::request(REFUSAL_WORK)
    }

    fn rank(&self) -> f64 {
        self.work + (self.read + self.written) / BYTES_PER_WORK
    }

    fn add(&mut self, other: &Usage) {
        self.requests += other.requests;
        self.work += other.work;
        self.read += other.read;
        self.written += other.written;
        self.events += other.events;
    }

    fn times(&self, factor: f64) -> Usage {
        let Usage { requests, work, read, written, events } = *self;
        Usage {
            requests: requests * factor,
            work: work * factor,
            read: read * factor,
            written: written * factor,
            events: events * factor,
        }
    }
}

/// The key that a command counts for: the first one it names. Leases and users have none.
pub(super) fn key_of(command: &Command) -> Option<&Bytes> {
    match command {
        Command::Put(put) => Some(&put.key),
        Command::DeleteRange(delete) => Some(&delete.key),
        Command::Txn(txn) => first_key(txn),
        _ => None,
    }
}

/// That of the first operation, or else of the first comparison.
pub(super) fn first_key(txn: &pb::TxnRequest) -> Option<&Bytes> {
    let mut operations = txn.success.iter().chain(&txn.failure).filter_map(|it| it.request.as_ref());
    match operations.next() {
        Some(Request::RequestRange(range)) => Some(&range.key),
        Some(Request::RequestPut(put)) => Some(&put.key),
        Some(Request::RequestDeleteRange(delete)) => Some(&delete.key),
        Some(Request::RequestTxn(nested)) => first_key(nested),
        None => txn.compare.first().map(|compare| &compare.key),
    }
}

/// What a pair holds.
pub(super) fn bytes_of(pair: &hadron_proto::mvccpb::KeyValue) -> usize {
    pair.key.len() + pair.value.len()
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client<'a> {
    /// A user, or else the name in a certificate.
    Name(&'a str),
    /// Where it is.
    Address(IpAddr),
}

/// The heaviest prefixes and clients of a node. Cheap to ask from any thread.
#[derive(Debug)]
pub struct Hitters(Vec<Mutex<Shard>>);

#[derive(Debug)]
struct Shard {
    prefixes: Sketch,
    clients: Sketch,
    work: f64,
}

/// What a node's clients did in a second, smoothed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heaviest {
    /// By prefix, the heaviest first.
    pub prefixes: Vec<Hitter>,
    /// By client.
    pub clients: Vec<Hitter>,
    /// The work of all that was counted.
    pub work: f64,
}

impl Default for Hitters {
    fn default() -> Hitters {
        let shard = || Shard { prefixes: Sketch::new(PREFIXES), clients: Sketch::new(CLIENTS), work: 0.0 };
        Hitters((0..SHARDS).map(|_| Mutex::new(shard())).collect())
    }
}

impl Hitters {
    /// Counts what `client` took in `group`, if it was about a key for its prefix too.
    pub(super) fn count(
        &self,
        group: GroupId,
        key: Option<&[u8]>,
        client: Option<Client<'_>>,
        usage: &Usage,
    ) {
        let mut shard = self.0[shard_of_thread()].lock();
        if let Some(key) = key {
            shard.prefixes.count(group, prefix(key), usage);
        }
        if let Some(client) = client {
            let mut name = [0; NAME_BYTES_MAX];
            shard.clients.count(group, client.encode(&mut name), usage);
        }
        shard.work += usage.work;
    }

    /// What was counted, as rates, and lets it fade. To be called once a second.
    pub fn take(&self, kept: usize) -> Heaviest {
        let fading = (-1.0 / FADING_S).exp();
        let mut heaviest = Heaviest::default();
        let (mut prefixes, mut clients) = (BTreeMap::new(), BTreeMap::new());
        for shard in &self.0 {
            let mut shard = shard.lock();
            shard.prefixes.take(fading, &mut prefixes);
            shard.clients.take(fading, &mut clients);
            heaviest.work += shard.work * (1.0 - fading);
            shard.work *= fading;
        }
        heaviest.prefixes = ranked(prefixes, kept, |name| name);
        heaviest.clients = ranked(clients, kept, |name| Client::decode(&name));
        heaviest
    }
}

fn ranked(
    all: BTreeMap<(GroupId, Vec<u8>), Usage>,
    kept: usize,
    shown: impl Fn(Vec<u8>) -> Vec<u8>,
) -> Vec<Hitter> {
    let mut all: Vec<_> = all.into_iter().filter(|(_, usage)| usage.rank() > 0.01).collect();
    all.sort_by(|(_, one), (_, other)| other.rank().total_cmp(&one.rank()));
    all.truncate(kept);
    let hitter = |((group, name), usage): ((GroupId, Vec<u8>), Usage)| Hitter {
        group: group.0,
        name: shown(name),
        requests: usage.requests,
        work: usage.work,
        read: usage.read,
        written: usage.written,
        events: usage.events,
    };
    all.into_iter().map(hitter).collect()
}

/// Each thread has its own, as long as there are not too many.
fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    OWN.with(|own| {
        let number = own.get().unwrap_or_else(|| NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        own.set(Some(number));
        number
    })
}

/// The beginning of a key, up to the second slash, or the third if it begins with one; what has fewer, up to its last one.
fn prefix(key: &[u8]) -> &[u8] {
    let wanted = if key.first() == Some(&b'/') { SLASHES.0 } else { SLASHES.1 };
    let slashes = key.iter().enumerate().filter(|(_, byte)| **byte == b'/').take(wanted);
    let end = slashes.last().map_or(0, |(at, _)| at + 1);
    &key[..end.min(NAME_BYTES_MAX)]
}

impl Client<'_> {
    fn encode<'b>(&self, buffer: &'b mut [u8; NAME_BYTES_MAX]) -> &'b [u8] {
        let mut take = |tag: u8, bytes: &[u8]| {
            let length = bytes.len().min(NAME_BYTES_MAX - 1);
            buffer[0] = tag;
            buffer[1..=length].copy_from_slice(&bytes[..length]);
            length
        };
        let length = match self {
            Client::Name(name) => take(0, name.as_bytes()),
            Client::Address(IpAddr::V4(address)) => take(1, &address.to_ipv6_mapped().octets()),
            Client::Address(IpAddr::V6(address)) => take(1, &address.octets()),
        };
        &buffer[..=length]
    }

    /// As people read it.
    fn decode(bytes: &[u8]) -> Vec<u8> {
        let octets = bytes.strip_prefix(&[1]).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
        match octets {
            Some(octets) => Ipv6Addr::from(octets).to_canonical().to_string().into_bytes(),
            None => bytes.get(1..).unwrap_or_default().to_vec(),
        }
    }
}

/// So many counters, and the heaviest in them.
#[derive(Debug)]
struct Sketch {
    capacity: usize,
    /// Of the counters with the same numbers: a look through them is one through a few lines of cache.
    hashes: Vec<u64>,
    /// Likewise; with the rank of those who had the place before.
    ranks: Vec<f64>,
    counters: Vec<Counter>,
}

#[derive(Debug)]
struct Counter {
    group: GroupId,
    name: Vec<u8>,
    usage: Usage,
}

impl Sketch {
    fn new(capacity: usize) -> Sketch {
        Sketch {
            capacity,
            hashes: Vec::with_capacity(capacity),
            ranks: Vec::with_capacity(capacity),
            counters: Vec::with_capacity(capacity),
        }
    }

    fn count(&mut self, group: GroupId, name: &[u8], usage: &Usage) {
        let mut hasher = DefaultHasher::new();
        (group, name).hash(&mut hasher);
        let hash = hasher.finish();
        let is_it = |counter: &Counter| counter.group == group && counter.name == name;
        let found = (0..self.hashes.len()).find(|at| self.hashes[*at] == hash && is_it(&self.counters[*at]));
        let at = found.unwrap_or_else(|| self.make_room(hash, group, name));
        self.ranks[at] += usage.rank();
        self.counters[at].usage.add(usage);
    }

    /// The place of somebody new.
    fn make_room(&mut self, hash: u64, group: GroupId, name: &[u8]) -> usize {
        if self.counters.len() < self.capacity {
            self.hashes.push(hash);
            self.ranks.push(0.0);
            self.counters.push(Counter { group, name: name.to_vec(), usage: Usage::default() });
            return self.counters.len() - 1;
        }
        let least = self.ranks.iter().copied().fold(f64::INFINITY, f64::min);
        let lightest = self.ranks.iter().position(|rank| *rank <= least).unwrap_or_default();
        self.hashes[lightest] = hash;
        let counter = &mut self.counters[lightest];
        counter.group = group;
        counter.name.clear();
        counter.name.extend_from_slice(name);
        counter.usage = Usage::default();
        lightest
    }

    /// Adds rates to `sums`, and lets the counts fade.
    fn take(&mut self, fading: f64, sums: &mut BTreeMap<(GroupId, Vec<u8>), Usage>) {
        for counter in &mut self.counters {
            let sum = sums.entry((counter.group, counter.name.clone())).or_default();
            sum.add(&counter.usage.times(1.0 - fading));
            counter.usage = counter.usage.times(fading);
        }
        self.ranks.iter_mut().for_each(|rank| *rank *= fading);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const GROUP: GroupId = GroupId(1);

    #[test]
    fn a_prefix_ends_at_the_second_or_third_slash() {
        for (key, expected) in [
            ("/registry/pods/default/a", "/registry/pods/"),
            ("/registry/pods", "/registry/"),
            ("tenant/a/b/c", "tenant/a/"),
            ("tenant/a", "tenant/"),
            ("plain", ""),
            ("", ""),
            ("//x", "//"),
        ] {
            assert_eq!(prefix(key.as_bytes()), expected.as_bytes(), "{key}");
        }
        let long = format!("/{}/a/b", "x".repeat(200));
        assert_eq!(prefix(long.as_bytes()).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn the_heaviest_are_found_among_any_number_of_others() {
        let hitters = Hitters::default();
        let client = Client::Address("10.0.0.7".parse().unwrap());
        for number in 0..100_000 {
            hitters.count(GROUP, Some(format!("light-{number}/a/b").as_bytes()), None, &Usage::read(10));
            if number % 20 == 0 {
                hitters.count(GROUP, Some(b"heavy/a/b"), Some(client), &Usage::read(100));
                hitters.count(GroupId(2), Some(b"heavy/a/b"), Some(Client::Name("bob")), &Usage::write(100));
            }
        }
        let counters: usize = hitters.0.iter().map(|shard| shard.lock().prefixes.counters.len()).sum();
        assert!(counters <= SHARDS * PREFIXES, "memory is bounded: {counters}");
        let heaviest = hitters.take(2);
        let names: Vec<_> = heaviest.prefixes.iter().map(|it| (it.group, it.name.as_slice())).collect();
        assert_eq!(names, [(2, b"heavy/a/".as_slice()), (1, b"heavy/a/")], "writes weigh more");
        let clients: Vec<_> = heaviest.clients.iter().map(|it| it.name.as_slice()).collect();
        assert_eq!(clients, [b"bob".as_slice(), b"10.0.0.7"]);
        let written = heaviest.prefixes[0].written / (1.0 - (-1.0f64 / FADING_S).exp());
        assert!(
            written > 0.9 * 500_000.0 && written <= 500_000.001,
            "never more than was written: {written}"
        );
    }

    #[test]
    fn a_steady_rate_is_shown_as_that_and_then_fades() {
        let hitters = Hitters::default();
        let mut shown = Heaviest::default();
        for _ in 0..100 {
            (0..50).for_each(|_| hitters.count(GROUP, Some(b"a/b/c"), None, &Usage::read(10)));
            shown = hitters.take(9);
        }
        let told = &shown.prefixes[0];
        assert!((told.requests - 50.0).abs() < 0.1 && (told.read - 500.0).abs() < 1.0, "{told:?}");
        assert!((shown.work - 50.0).abs() < 0.1);
        (0..200).for_each(|_| shown = hitters.take(9));
        assert!(shown.prefixes.is_empty(), "{shown:?}");
    }

    #[test]
    fn threads_count_into_one_sum() {
        let hitters = Hitters::default();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    (0..100).for_each(|_| hitters.count(GROUP, Some(b"a/b/c"), None, &Usage::read(0)))
                });
            }
        });
        let shown = hitters.take(9).prefixes[0].requests / (1.0 - (-1.0f64 / FADING_S).exp());
        assert!((shown - 1_600.0).abs() < 1e-6, "{shown}");
    }
}
