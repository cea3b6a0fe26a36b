//! What the engine costs per record: 256-byte values in revision order, each with its version metadata, in batches of
//! 500 with one state record, persisted after each batch; then point reads and a scan.
//! Run it with `cargo bench -p hadron-storage --bench engine`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hadron_storage::engine::{Change, Engine, FjallEngine, FjallOptions, Read, Space};

const BATCH: u64 = 500;

fn key(revision: u64) -> Bytes {
    let mut key = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    key.extend_from_slice(&revision.to_be_bytes());
    key.into()
}

/// Not constant, but about as compressible as JSON is not: every byte differs from record to record.
fn value(revision: u64) -> Bytes {
    let mut state = revision.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..256).map(byte).collect::<Vec<u8>>().into()
}

/// CPU time of this process so far, all threads.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn main() {
    let records = std::env::var("RECORDS").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000_000u64);
    let directory = tempfile::tempdir().unwrap();
    let engine = FjallEngine::open(directory.path(), &FjallOptions::default()).unwrap();
    let cpu_before = cpu();
    let (mut writing, mut persisting, mut slowest) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for batch in 0..records / BATCH {
        let mut changes = Vec::with_capacity(2 * BATCH as usize + 1);
        for revision in batch * BATCH..(batch + 1) * BATCH {
            changes.push(Change::Put(Space::Values, key(revision), value(revision)));
            changes.push(Change::Put(Space::Versions, key(revision), Bytes::from_static(&[5; 40])));
        }
        changes.push(Change::Put(Space::State, Bytes::from_static(b"group"), key(batch)));
        let began = Instant::now();
        engine.write(changes).unwrap();
        writing += began.elapsed();
        slowest = slowest.max(began.elapsed());
        let began = Instant::now();
        engine.persist().unwrap();
        persisting += began.elapsed();
    }
    let per = |spent: Duration, count: u64| spent.as_nanos() as f64 / 1e3 / count as f64;
    println!("write    {:.2} µs per record (value and version)", per(writing, records));
    println!("persist  {:.0} µs per batch of {BATCH}", per(persisting, records / BATCH));
    println!("cpu      {:.2} µs per record, all threads", per(cpu() - cpu_before, records));
    println!("slowest  write {:.1} ms", slowest.as_secs_f64() * 1e3);
    println!("disk     {:.0} bytes per record", engine.disk_bytes() as f64 / records as f64);

    let began = Instant::now();
    let reads = 200_000;
    for number in 0..reads {
        let revision = number * 7919 % records;
        assert_eq!(engine.get(Space::Values, &key(revision)).unwrap(), Some(value(revision)));
    }
    println!("get      {:.2} µs, at random", per(began.elapsed(), reads));
    let began = Instant::now();
    let mut seen = 0;
    let count = &mut |_: &[u8], _: &[u8]| {
        seen += 1;
        ControlFlow::Continue(())
    };
    engine.scan(Space::Values, &key(0), &key(u64::MAX), count).unwrap();
    assert_eq!(seen, records);
    println!("scan     {:.2} µs per record", per(began.elapsed(), records));
    drop(engine);
    let began = Instant::now();
    FjallEngine::open(directory.path(), &FjallOptions::default()).unwrap();
    println!("open     {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
}
