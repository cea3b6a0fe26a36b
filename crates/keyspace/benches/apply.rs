//! What apply costs: microseconds per put, into new keys, over existing keys, and with watchers; and how long the state is locked while very
//! many keys are deleted.
#![allow(clippy::unwrap_used, missing_docs, clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::Instant;

use hadron_keyspace::{Applied, Command, Keyspace, Options};
use hadron_proto::etcdserverpb as pb;
use hadron_storage::engine::{Engine, ModelEngine};

const PUTS: u64 = 200_000;
const PUTS_PER_ENTRY: u64 = 20;

fn entries(keys: u64) -> Vec<Vec<Command>> {
    let put = |number: u64| {
        let key = format!("/registry/pods/default/pod-{:08}", number.wrapping_mul(7919) % keys);
        Command::Put(pb::PutRequest {
            key: key.into(),
            value: vec![number as u8; 256].into(),
            ..Default::default()
        })
    };
    let encoded: Vec<_> = (0..PUTS).map(|number| put(number).to_bytes()).collect();
    let decode = |bytes: &bytes::Bytes| Command::decode(bytes.clone()).unwrap();
    encoded.chunks(PUTS_PER_ENTRY as usize).map(|entry| entry.iter().map(decode).collect()).collect()
}

fn run(name: &str, keys: u64, watchers: usize) {
    let engine = Arc::new(ModelEngine::new());
    let keyspace = Keyspace::open(engine.clone(), 1, Options::default()).unwrap();
    let mut streams: Vec<_> = (0..watchers).map(|_| keyspace.watch_stream(Default::default())).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        let key = format!("/registry/pods/default/pod-{number:08}").into();
        stream.create(pb::WatchCreateRequest { key, ..Default::default() });
    }
    let entries = entries(keys);
    let (mut apply_us, mut take_us, mut done_us) = (0.0, 0.0, 0.0);
    for (index, commands) in entries.into_iter().enumerate() {
        let applied = Applied { index: index as u64 + 1, ..Applied::default() };
        let start = Instant::now();
        std::hint::black_box(keyspace.apply(applied, commands));
        apply_us += start.elapsed().as_secs_f64() * 1e6;
        if index % 500 == 499 {
            let start = Instant::now();
            let flush = keyspace.take_flush(u64::MAX, usize::MAX).unwrap();
            take_us += start.elapsed().as_secs_f64() * 1e6;
            engine.write(flush.batch()).unwrap();
            let start = Instant::now();
            keyspace.flush_done(flush);
            done_us += start.elapsed().as_secs_f64() * 1e6;
        }
    }
    let per_put = |total: f64| total / PUTS as f64;
    println!(
        "{name}: apply {:.2} us/put, take_flush {:.2} us/put, flush_done {:.2} us/put",
        per_put(apply_us),
        per_put(take_us),
        per_put(done_us)
    );
}

/// Deletes all of a million keys by one command, so much at a time.
fn delete_all(effort: usize) {
    const KEYS: usize = 1_000_000;
    let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), 1, Options::default()).unwrap();
    let put = |number: usize| {
        let key = format!("/registry/pods/default/pod-{number:08}").into();
        Command::Put(pb::PutRequest { key, ..Default::default() })
    };
    for (first, index) in (0..KEYS).step_by(10_000).zip(1..) {
        let applied = Applied { index, ..Applied::default() };
        keyspace.apply(applied, (first..first + 10_000).map(put).collect());
    }
    let delete = pb::DeleteRangeRequest { key: "/".into(), range_end: "0".into(), prev_kv: false };
    let applied = Applied { index: 1_000, ..Applied::default() };
    keyspace.begin_entry(applied, vec![(Command::DeleteRange(delete), true)]);
    let (mut pieces, mut whole_ms, mut longest_ms) = (0, 0.0, 0.0_f64);
    loop {
        let start = Instant::now();
        let (_, answers) = keyspace.go_on(effort);
        let took_ms = start.elapsed().as_secs_f64() * 1e3;
        (pieces, whole_ms, longest_ms) = (pieces + 1, whole_ms + took_ms, longest_ms.max(took_ms));
        if answers.is_some() {
            break;
        }
    }
    println!(
        "a million keys deleted in {pieces} pieces: {whole_ms:.0} ms, the longest of them {longest_ms:.1} ms"
    );
}

fn main() {
    delete_all(usize::MAX);
    delete_all(1_000);
    run("new keys", u64::MAX, 0);
    run("10,000 keys over and over", 10_000, 0);
    run("10,000 keys, 10,000 watchers of one key", 10_000, 10_000);
}
