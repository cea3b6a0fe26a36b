//! A write-ahead log and a node's identity as bytes that are written down: later versions must open them, and write them so.

#![allow(clippy::unwrap_used)]

#[path = "../../pinned.rs"]
mod pinned;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{
    Entry, GroupId, HardState, Index, LogPosition, NodeId, ReplicaId, Term, chain_checksum,
};
use hadron_storage::data_dir::{Claim, DataDir};
use hadron_storage::disk::{Disk, MemoryDisk, read_all};
use hadron_storage::wal::{Options, Record, Recovered, Wal};
use pinned::Pinned;

const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");
const LOG: &str = "/wal";
const SEGMENT_BYTES: u64 = 16 << 10;
/// Batches begin here, behind a page of which only this much is no zero.
const FIRST_BATCH: usize = 4096;
const HEADER_BYTES: usize = 64;

fn open(disk: &MemoryDisk) -> (Wal, Recovered) {
    let options = Options { segment_bytes: SEGMENT_BYTES, log_id: 77, ballast_bytes: 0 };
    Wal::open(Arc::new(disk.clone()), Path::new(LOG), options).unwrap()
}

fn entries(group: GroupId, count: u64) -> Vec<Entry> {
    let mut checksum = 0;
    let entry = |index| {
        let (term, index) = (Term(2), Index(index));
        let data = Bytes::from(vec![index.0 as u8; 5]);
        checksum = chain_checksum(checksum, group, term, index, &data);
        Entry { term, index, checksum, data }
    };
    (1..=count).map(entry).collect()
}

/// Every kind of record, in two segments: the second begins with a table that is not empty.
fn write(disk: &MemoryDisk) {
    let (mut wal, _) = open(disk);
    let (one, two, gone) = (GroupId(1), GroupId(2), GroupId(3));
    let state = HardState { term: Term(2), voted_for: Some(ReplicaId(3)), commit: Index(1) };
    let logged = entries(one, 4);
    wal.append(&[Record::HardState(one, state), Record::Entries(one, logged.clone())]).unwrap();
    wal.append(&[Record::Floor(one, logged[1].position()), Record::Floor(one, logged[0].position())])
        .unwrap();
    wal.append(&[Record::HardState(two, HardState { voted_for: None, ..state })]).unwrap();
    wal.append(&[Record::Floor(two, LogPosition { term: Term(1), index: Index(9), checksum: 5 })]).unwrap();
    wal.append(&[Record::HardState(gone, state), Record::Forget(gone)]).unwrap();
    // With this the first segment is full.
    let large = Bytes::from(vec![0; SEGMENT_BYTES as usize - 2 * FIRST_BATCH]);
    let index = Index(5);
    let checksum = chain_checksum(logged[3].checksum, one, Term(2), index, &large);
    wal.append(&[Record::Entries(one, vec![Entry { term: Term(2), index, checksum, data: large.clone() }])])
        .unwrap();
    let index = Index(6);
    let checksum = chain_checksum(checksum, one, Term(2), index, &large);
    wal.append(&[Record::Entries(one, vec![Entry { term: Term(2), index, checksum, data: large }])]).unwrap();
    wal.seal().unwrap();
}

fn segments(disk: &MemoryDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(LOG)).unwrap().into_iter();
    names.filter(|name| name.ends_with(".wal")).map(|name| Path::new(LOG).join(name)).collect()
}

/// Without the zeros at its end.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    &bytes[..bytes.len() - zeros]
}

#[test]
fn a_log_is_written_as_ever_and_opened() {
    let (written, former) = (MemoryDisk::new(), MemoryDisk::new());
    write(&written);
    former.create_dir(Path::new(LOG)).unwrap();
    let mut pinned = Pinned::open(DIRECTORY, "wal.txt");
    for (number, path) in (1..).zip(segments(&written)) {
        let bytes = read_all(&*written.open(&path).unwrap()).unwrap();
        let mut segment = pinned.bytes(&format!("segment-{number}-header"), &bytes[..HEADER_BYTES]);
        segment.resize(FIRST_BATCH, 0);
        let batches = trimmed(&bytes[FIRST_BATCH..]);
        segment.extend(pinned.bytes(&format!("segment-{number}-batches"), batches));
        segment.resize(SEGMENT_BYTES as usize, 0);
        let file = former.create(&path).unwrap();
        file.write_at(0, &segment).unwrap();
        file.sync().unwrap();
    }
    pinned.finish();
    assert_eq!(segments(&former).len(), 2);
    let (_, expected) = open(&written);
    let (_, recovered) = open(&former);
    assert_eq!(recovered, expected);
    assert_eq!(recovered.torn_tail, None);
    assert_eq!(recovered.groups[&GroupId(1)].entries.len(), 4);
    assert_eq!(recovered.groups.keys().copied().collect::<Vec<_>>(), [GroupId(1), GroupId(2)]);
}

#[test]
fn an_identity_is_written_as_ever() {
    let directory = Path::new("/data");
    let file = directory.join("IDENTITY");
    let (written, former): (Arc<dyn Disk>, Arc<dyn Disk>) =
        (Arc::new(MemoryDisk::new()), Arc::new(MemoryDisk::new()));
    let claim = Claim {
        cluster: 0xc1,
        node: NodeId(7),
        node_name: "n1".into(),
        new_directory: 0xd1,
        new_start: 0xe1,
    };
    let opened = DataDir::open(&written, directory, &claim).unwrap();
    let mut pinned = Pinned::open(DIRECTORY, "identity.txt");
    let bytes = pinned.bytes("identity", &read_all(&*written.open(&file).unwrap()).unwrap());
    pinned.finish();
    former.create_dir(directory).unwrap();
    former.create(&file).unwrap().write_at(0, &bytes).unwrap();
    assert_eq!(DataDir::read(&*former, directory).unwrap().as_ref(), Some(opened.identity()));
}
