//! What the log costs per entry, without and with fsync, on the file system of the temporary directory (`TMPDIR`).
//! Run it with `cargo bench -p hadron-storage --bench wal`.

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hadron_consensus::{Entry, GroupId, LogPosition, Term, chain_checksum};
use hadron_storage::disk::RealDisk;
use hadron_storage::wal::{Options, Record, Wal};

const GROUPS: u64 = 64;

fn entry(group: GroupId, previous: LogPosition, data: &Bytes) -> Entry {
    let (term, index) = (Term(1), previous.index.next());
    let checksum = chain_checksum(previous.checksum, group, term, index, data);
    Entry { term, index, checksum, data: data.clone() }
}

/// Appends `batches` batches of `per_batch` entries, one record per entry, spread over the groups.
fn run(per_batch: usize, batches: usize, bytes: usize, sync: bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wal");
    let (mut wal, _) = Wal::open(Arc::new(RealDisk), &path, Options::default()).unwrap();
    let preparer = wal.preparer();
    let background = std::thread::spawn(move || preparer.run());
    let data = Bytes::from(vec![7; bytes]);
    let mut ends = vec![LogPosition::default(); GROUPS as usize];
    let mut spent = std::time::Duration::ZERO;
    let mut slowest = std::time::Duration::ZERO;
    for number in 0..batches {
        let mut records = Vec::with_capacity(per_batch);
        for place in 0..per_batch {
            let group = GroupId((number * per_batch + place) as u64 % GROUPS);
            let end = &mut ends[group.0 as usize];
            let entry = entry(group, *end, &data);
            *end = entry.position();
            records.push(Record::Entries(group, vec![entry]));
        }
        if number % 100 == 99 {
            records.extend((0..GROUPS).map(|group| Record::Floor(GroupId(group), ends[group as usize])));
        }
        let began = Instant::now();
        wal.append(&records).unwrap();
        if sync {
            wal.sync().unwrap();
        }
        spent += began.elapsed();
        slowest = slowest.max(began.elapsed());
        if !sync && number % 100 == 99 {
            wal.sync().unwrap();
        }
    }
    let entries = (per_batch * batches) as u32;
    println!(
        "{per_batch:4} entries of {bytes} B per batch, {}: {:6.2} µs per entry, {:8.1} µs per batch, slowest {:.1} ms",
        if sync { "fsync each" } else { "no fsync  " },
        (spent / entries).as_nanos() as f64 / 1e3,
        spent.as_nanos() as f64 / 1e3 / batches as f64,
        slowest.as_nanos() as f64 / 1e6,
    );
    drop(wal);
    background.join().unwrap();
}

fn main() {
    run(1, 50_000, 256, false);
    run(32, 10_000, 256, false);
    run(256, 2_000, 256, false);
    run(1, 3_000, 256, true);
    run(32, 3_000, 256, true);
    run(256, 1_000, 256, true);
}
