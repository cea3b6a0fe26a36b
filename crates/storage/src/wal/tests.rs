//! What the log must do, case by case. Random histories are in `model_tests`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hadron_consensus::{Entry, GroupId, HardState, Index, LogPosition, ReplicaId, Term, chain_checksum};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::format::tests::garble_batch;
use super::format::{BATCH_HEADER, BatchHeader, FIRST_BATCH, SEAL, Salt, SegmentHeader, VERSION};
use super::{Options, Preparer, Record, Recovered, Wal, WalError};
use crate::disk::{Disk, Fault, MemoryDisk, Operation, RealDisk, read_all};

const GROUP: GroupId = GroupId(1);
const DIRECTORY: &str = "/wal";

fn options() -> Options {
    Options { segment_bytes: 16 << 10, log_id: 77, ballast_bytes: 4 << 10 }
}

/// Entries that continue the log of `group` after `previous`.
pub(super) fn entries_after(
    group: GroupId,
    previous: LogPosition,
    term: u64,
    count: u64,
    size: usize,
) -> Vec<Entry> {
    let mut checksum = previous.checksum;
    (1..=count)
        .map(|number| {
            let (term, index) = (Term(term), Index(previous.index.0 + number));
            let data = Bytes::from(vec![index.0 as u8; size]);
            checksum = chain_checksum(checksum, group, term, index, &data);
            Entry { term, index, checksum, data }
        })
        .collect()
}

fn state(term: u64) -> HardState {
    HardState { term: Term(term), voted_for: Some(ReplicaId(3)), commit: Index(1) }
}

fn open(disk: &MemoryDisk) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(disk.clone()), Path::new(DIRECTORY), options())
}

fn refusal(disk: &MemoryDisk) -> WalError {
    open(disk).err().unwrap()
}

/// Appends `count` entries, one batch each, and syncs; returns the end of the log.
fn fill(wal: &mut Wal, group: GroupId, from: LogPosition, count: u64, size: usize) -> LogPosition {
    let entries = entries_after(group, from, 1, count, size);
    for entry in &entries {
        wal.append(&[Record::Entries(group, vec![entry.clone()])]).unwrap();
    }
    wal.sync().unwrap();
    entries.last().unwrap().position()
}

fn files(disk: &MemoryDisk) -> Vec<PathBuf> {
    let names = disk.list(Path::new(DIRECTORY)).unwrap();
    names
        .into_iter()
        .filter(|name| name.ends_with(".wal"))
        .map(|name| Path::new(DIRECTORY).join(name))
        .collect()
}

#[test]
fn an_empty_log_opens_empty() {
    let disk = MemoryDisk::new();
    for _ in 0..3 {
        let (mut wal, recovered) = open(&disk).unwrap();
        assert_eq!(recovered, Recovered::default());
        wal.append(&[]).unwrap();
        wal.sync().unwrap();
        wal.seal().unwrap();
        assert_eq!(wal.segment_count(), 0);
    }
}

#[test]
fn remembers_everything_across_clean_restarts_in_one_segment() {
    let disk = MemoryDisk::new();
    let mut end = LogPosition::default();
    for round in 1..5 {
        let (mut wal, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.torn_tail, None);
        let group = recovered.groups.get(&GROUP).cloned().unwrap_or_default();
        assert_eq!(group.entries.len() as u64, (round - 1) * 3);
        assert_eq!(group.entries.last().map(Entry::position).unwrap_or_default(), end);
        assert_eq!(group.hard_state.term.0, round - 1);
        wal.append(&[Record::HardState(GROUP, state(round))]).unwrap();
        end = fill(&mut wal, GROUP, end, 3, 100);
        wal.seal().unwrap();
        wal.seal().unwrap();
        assert_eq!(wal.segment_count(), 1);
    }
}

#[test]
fn one_append_and_sync_is_one_fsync() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let end = fill(&mut wal, GROUP, LogPosition::default(), 1, 10);
    let before = disk.syncs();
    fill(&mut wal, GROUP, end, 10, 10);
    wal.sync().unwrap();
    assert_eq!(disk.syncs(), before + 1);
}

#[test]
fn floors_and_truncation_are_replayed() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let all = entries_after(GROUP, LogPosition::default(), 1, 10, 50);
    let other = entries_after(GROUP, all[5].position(), 2, 2, 50);
    wal.append(&[Record::Entries(GROUP, all.clone()), Record::Floor(GROUP, all[2].position())]).unwrap();
    wal.append(&[Record::Entries(GROUP, other.clone()), Record::Floor(GROUP, all[0].position())]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (mut wal, recovered) = open(&disk).unwrap();
    let group = &recovered.groups[&GROUP];
    assert_eq!(group.floor, all[2].position());
    assert_eq!(group.entries, [&all[3..6], &other[..]].concat());
    // A snapshot beyond the log, of a history that the log does not share.
    let snapshot = LogPosition { term: Term(3), index: Index(20), checksum: 99 };
    wal.append(&[Record::Floor(GROUP, snapshot)]).unwrap();
    let next = entries_after(GROUP, snapshot, 3, 1, 50);
    wal.append(&[Record::Entries(GROUP, next.clone())]).unwrap();
    wal.append(&[Record::HardState(GroupId(2), state(1)), Record::Forget(GroupId(2))]).unwrap();
    drop(wal);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups.len(), 1);
    assert_eq!((recovered.groups[&GROUP].floor, &recovered.groups[&GROUP].entries), (snapshot, &next));
}

#[test]
fn segments_go_when_nothing_in_them_is_alive_and_are_recycled() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[Record::HardState(GroupId(9), state(4))]).unwrap();
    let mut end = LogPosition::default();
    for _ in 0..40 {
        end = fill(&mut wal, GROUP, end, 10, 200);
        wal.append(&[Record::Floor(GROUP, end)]).unwrap();
        wal.sync().unwrap();
        assert!(wal.segment_count() <= 2);
    }
    assert!(disk.list(Path::new(DIRECTORY)).unwrap().len() <= 6, "files are used again");
    let end = fill(&mut wal, GROUP, end, 1, 200);
    drop(wal);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups[&GroupId(9)].hard_state, state(4), "an idle group is not forgotten");
    assert_eq!(recovered.groups[&GROUP].entries.last().unwrap().position(), end);
    assert_eq!(recovered.torn_tail, None);
}

/// A group without a quorum never flushes; among 500 others it must not keep the log from being cut.
#[test]
fn one_of_500_groups_pins_the_log_until_its_entries_are_rewritten() {
    let disk = MemoryDisk::new();
    let options = Options { segment_bytes: 128 << 10, ..options() };
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), Path::new(DIRECTORY), options.clone()).unwrap();
    let stuck = GroupId(250);
    let kept = entries_after(stuck, LogPosition::default(), 1, 3, 100);
    wal.append(&[Record::HardState(stuck, state(7)), Record::Entries(stuck, kept.clone())]).unwrap();
    let mut ends = vec![LogPosition::default(); 500];
    for round in 0..12 {
        for (number, end) in ends.iter_mut().enumerate() {
            let group = GroupId(number as u64);
            if group != stuck {
                let entries = entries_after(group, *end, 1, 2, 100);
                *end = entries[1].position();
                wal.append(&[Record::Entries(group, entries), Record::Floor(group, *end)]).unwrap();
            }
        }
        wal.sync().unwrap();
        let pinning = wal.pinning(256 << 10);
        if pinning.is_empty() {
            assert!(wal.disk_bytes() <= 512 << 10);
        } else {
            assert_eq!(pinning, [stuck], "round {round}");
            wal.append(&[Record::Entries(stuck, kept.clone())]).unwrap();
            wal.sync().unwrap();
            assert_eq!(wal.segment_count(), 1);
        }
    }
    assert!(wal.disk_bytes() <= 512 << 10);
    drop(wal);
    let (_, recovered) = Wal::open(Arc::new(disk), Path::new(DIRECTORY), options).unwrap();
    assert_eq!(recovered.groups.len(), 500);
    assert_eq!(recovered.groups[&stuck].entries, kept);
    assert_eq!(recovered.groups[&stuck].hard_state, state(7));
    assert_eq!(recovered.groups[&GroupId(499)].floor, ends[499]);
}

#[test]
fn a_batch_larger_than_a_segment_gets_its_own() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let end = fill(&mut wal, GROUP, LogPosition::default(), 30, 200);
    let before = files(&disk).len();
    wal.preparer().run_once();
    assert_eq!(files(&disk).len(), before + 1, "a spare, which the large segment must not overtake");
    let end = fill(&mut wal, GROUP, end, 1, 100 << 10);
    let end = fill(&mut wal, GROUP, end, 100, 200);
    drop(wal);
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.len(), 131);
    assert_eq!(recovered.torn_tail, None);
    wal.append(&[Record::Floor(GROUP, end)]).unwrap();
    wal.sync().unwrap();
    assert_eq!(wal.disk_bytes(), 16 << 10);
}

#[test]
fn a_failed_sync_or_write_poisons_for_good() {
    for operation in [Operation::Sync, Operation::Write] {
        let disk = MemoryDisk::new();
        let (mut wal, _) = open(&disk).unwrap();
        let end = fill(&mut wal, GROUP, LogPosition::default(), 3, 10);
        disk.set_fault(Some(Fault {
            operation: Some(operation),
            after: 0,
            kind: io::ErrorKind::Other,
            lasting: false,
        }));
        let more = [Record::Entries(GROUP, entries_after(GROUP, end, 1, 1, 10))];
        let failed = wal.append(&more).and_then(|()| wal.sync()).unwrap_err();
        assert!(matches!(failed, WalError::Io { .. }), "{failed}");
        assert!(matches!(wal.append(&more), Err(WalError::Poisoned)));
        assert!(matches!(wal.sync(), Err(WalError::Poisoned)));
        assert!(matches!(wal.seal(), Err(WalError::Poisoned)));
        drop(wal);
        disk.crash(1);
        let (_, recovered) = open(&disk).unwrap();
        assert!(recovered.groups[&GROUP].entries.len() >= 3);
    }
}

/// After a failed fsync Linux counts the pages as clean: a process that is started again reads them, and syncs them in
/// vain. The log took them for durable, and the next power loss left a hole in front of what was acknowledged later.
#[test]
fn what_is_read_after_a_failed_sync_is_made_durable_before_it_is_relied_on() {
    for seed in 1..20 {
        let disk = MemoryDisk::new();
        let (mut wal, _) = open(&disk).unwrap();
        let end = fill(&mut wal, GROUP, LogPosition::default(), 3, 700);
        let fails =
            Fault { operation: Some(Operation::Sync), after: 0, kind: io::ErrorKind::Other, lasting: false };
        disk.set_fault(Some(fails));
        for entry in entries_after(GROUP, end, 1, 2, 700) {
            wal.append(&[Record::Entries(GROUP, vec![entry])]).unwrap();
        }
        wal.sync().unwrap_err();
        drop(wal);
        disk.kill();
        let (mut wal, recovered) = open(&disk).unwrap();
        let entries = recovered.groups[&GROUP].entries.clone();
        assert_eq!(entries.len(), 5);
        fill(&mut wal, GROUP, entries[4].position(), 1, 10);
        disk.crash(seed);
        let (_, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.groups[&GROUP].entries.len(), 6);
    }
}

#[test]
fn records_that_could_not_be_recovered_are_refused() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let end = fill(&mut wal, GROUP, LogPosition::default(), 3, 10);
    let gap = entries_after(GROUP, LogPosition { index: Index(5), ..end }, 1, 1, 10);
    let refused = wal.append(&[Record::Entries(GROUP, gap)]).unwrap_err();
    assert!(matches!(refused, WalError::Misuse(_)), "{refused}");
    assert!(matches!(wal.sync(), Err(WalError::Poisoned)));
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.groups[&GROUP].entries.len(), 3);
}

#[test]
fn a_full_disk_is_said_and_survived() {
    let disk = MemoryDisk::new();
    disk.set_capacity(Some(60 << 10));
    let (mut wal, _) = open(&disk).unwrap();
    let mut end = LogPosition::default();
    let entry = loop {
        let entry = entries_after(GROUP, end, 1, 1, 500).remove(0);
        match wal.append(&[Record::Entries(GROUP, vec![entry.clone()])]) {
            Ok(()) => end = entry.position(),
            Err(WalError::Full { .. }) => break entry,
            Err(error) => panic!("{error}"),
        }
        wal.sync().unwrap();
    };
    assert!(wal.release_ballast().unwrap());
    assert!(!wal.release_ballast().unwrap());
    wal.seal().unwrap();
    disk.set_capacity(None);
    wal.append(&[Record::Entries(GROUP, vec![entry.clone()])]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.last(), Some(&entry));
}

/// A log of three segments, the last one a little more than half full, on a disk that has room for half a segment. Its preparer could not
/// prepare the next one.
fn log_without_room(disk: &MemoryDisk) -> (Wal, Preparer, LogPosition) {
    let (mut wal, _) = open(disk).unwrap();
    let preparer = wal.preparer();
    let mut end = LogPosition::default();
    while wal.segment_count() < 3 {
        end = fill(&mut wal, GROUP, end, 1, 500);
    }
    end = fill(&mut wal, GROUP, end, 10, 500);
    assert_eq!(wal.segment_count(), 3);
    let used = wal.disk_bytes() + options().ballast_bytes;
    disk.set_capacity(Some(used + options().segment_bytes / 2));
    preparer.run_once();
    assert!(wal.background_failure().is_some());
    assert_eq!(files(disk).len(), 3);
    (wal, preparer, end)
}

/// The preparer touched nothing any more once it had found no room, and whoever needed a segment looked only at what was put away.
#[test]
fn on_a_full_disk_segments_that_wait_to_be_put_away_are_used() {
    for seed in 0..20 {
        let disk = MemoryDisk::new();
        let (mut wal, _preparer, end) = log_without_room(&disk);
        wal.append(&[Record::Floor(GROUP, end)]).unwrap();
        wal.sync().unwrap();
        assert_eq!(wal.segment_count(), 1);
        assert_eq!(files(&disk).len(), 3, "nothing is put away yet");
        let last = fill(&mut wal, GROUP, end, 30, 500);
        assert!(wal.segment_count() > 1);
        drop(wal);
        disk.crash(seed);
        let (_, recovered) = open(&disk).unwrap();
        let group = &recovered.groups[&GROUP];
        assert_eq!((group.floor, group.entries.last().unwrap().position()), (end, last));
    }
}

/// The same, with a crash between any two operations of the disk.
#[test]
fn a_crash_while_segments_are_put_away_for_their_room_loses_nothing() {
    for after in 0..20 {
        let disk = MemoryDisk::new();
        let (mut wal, _preparer, mut end) = log_without_room(&disk);
        wal.append(&[Record::Floor(GROUP, end)]).unwrap();
        wal.sync().unwrap();
        while wal.segment_count() == 1 {
            let fails = Fault { operation: None, after, kind: io::ErrorKind::Other, lasting: true };
            disk.set_fault(Some(fails));
            let entries = entries_after(GROUP, end, 1, 1, 500);
            let position = entries[0].position();
            if wal.append(&[Record::Entries(GROUP, entries)]).and_then(|()| wal.sync()).is_err() {
                break;
            }
            end = position;
        }
        drop(wal);
        disk.crash(after);
        let (_, recovered) = open(&disk).unwrap();
        let group = &recovered.groups[&GROUP];
        let last = group.entries.last().map_or(group.floor, Entry::position);
        assert!(last.index >= end.index, "after {after}: {last:?}, and {end:?} was synced");
    }
}

#[test]
fn a_preparer_that_found_no_room_puts_segments_away_and_prepares_again() {
    let disk = MemoryDisk::new();
    let (mut wal, preparer, end) = log_without_room(&disk);
    wal.append(&[Record::Floor(GROUP, end)]).unwrap();
    wal.sync().unwrap();
    preparer.run_once();
    assert_eq!(wal.background_failure(), None);
    assert_eq!(files(&disk).len(), 2, "the current one and the next");
}

/// What cannot be put away is not tried again and again.
#[test]
fn a_preparer_that_cannot_put_away_waits_for_the_next_segment() {
    let disk = MemoryDisk::new();
    let (mut wal, preparer, end) = log_without_room(&disk);
    let fails =
        Fault { operation: Some(Operation::Rename), after: 0, kind: io::ErrorKind::Other, lasting: true };
    wal.append(&[Record::Floor(GROUP, end)]).unwrap();
    wal.sync().unwrap();
    disk.set_fault(Some(fails));
    preparer.run_once();
    assert!(wal.background_failure().is_some());
    disk.set_fault(None);
    preparer.run_once();
    assert_eq!(files(&disk).len(), 3);
    fill(&mut wal, GROUP, end, 30, 500);
    preparer.run_once();
    assert_eq!(wal.background_failure(), None);
}

/// Files that were kept to be used again held the room that a larger one needed.
#[test]
fn on_a_full_disk_a_large_batch_gets_the_room_of_old_segments() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let mut end = LogPosition::default();
    while wal.segment_count() < 3 {
        end = fill(&mut wal, GROUP, end, 1, 500);
    }
    let used = wal.disk_bytes() + options().ballast_bytes;
    disk.set_capacity(Some(used + options().segment_bytes / 2));
    wal.append(&[Record::Floor(GROUP, end)]).unwrap();
    wal.sync().unwrap();
    let last = fill(&mut wal, GROUP, end, 1, 20 << 10);
    drop(wal);
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.last().unwrap().position(), last);
}

#[test]
fn damage_in_the_middle_is_refused_with_file_and_offset() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, GROUP, LogPosition::default(), 100, 300);
    assert!(wal.segment_count() > 2);
    drop(wal);
    let mut files = files(&disk);
    files.pop();
    for (number, path) in files.into_iter().enumerate() {
        let damaged = disk.fork();
        damaged.flip_bit(&path, FIRST_BATCH + 1000, 3).unwrap();
        match refusal(&damaged) {
            WalError::Damaged { file, offset, .. } => {
                assert_eq!(file, path);
                assert!((FIRST_BATCH..FIRST_BATCH + 1000).contains(&offset), "{number}: {offset}");
            }
            error => panic!("{error}"),
        }
        let damaged = disk.fork();
        damaged.flip_bit(&path, 20, 3).unwrap();
        assert!(matches!(refusal(&damaged), WalError::Damaged { offset: 0, .. }));
        let damaged = disk.fork();
        damaged.flip_bit(&path, FIRST_BATCH + 1, 3).unwrap();
        let error = refusal(&damaged);
        assert!(matches!(error, WalError::Damaged { .. }), "{error}");
    }
}

/// A segment that somebody had cut short was taken for one with a torn tail, and what was cut off for something that had
/// never been acknowledged.
#[test]
fn a_segment_that_was_cut_off_is_refused() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, GROUP, LogPosition::default(), 20, 100);
    drop(wal);
    disk.kill();
    let path = &files(&disk)[0];
    for bytes in [0, 100, FIRST_BATCH, FIRST_BATCH + 700, (16 << 10) - 1] {
        let cut = disk.fork();
        cut.open(path).unwrap().set_size(bytes).unwrap();
        let WalError::Damaged { file, offset, what } = refusal(&cut) else { panic!("not damage") };
        assert_eq!((&file, offset), (path, bytes));
        assert!(what.contains("cut off"), "{what}");
    }
}

/// When the beginning of the newest segment was lost, header and all, the rest of it was taken for one that had never been used, and what
/// had been acknowledged was gone without a word.
#[test]
fn a_segment_without_its_header_is_refused_even_if_it_looks_unused() {
    let disk = MemoryDisk::new();
    let options = Options { segment_bytes: 128 << 10, ..options() };
    let open = |disk: &MemoryDisk| Wal::open(Arc::new(disk.clone()), Path::new(DIRECTORY), options.clone());
    let (mut wal, _) = open(&disk).unwrap();
    let mut end = LogPosition::default();
    while wal.segment_count() < 2 {
        end = fill(&mut wal, GROUP, end, 1, 10_000);
    }
    fill(&mut wal, GROUP, end, 1, 100);
    drop(wal);
    let newest = files(&disk).pop().unwrap();
    for bytes in [64, 64 << 10] {
        let lost = disk.fork();
        lost.open(&newest).unwrap().write_at(0, &vec![0; bytes]).unwrap();
        let WalError::Damaged { file, offset, what } = open(&lost).err().unwrap() else {
            panic!("not damage")
        };
        assert_eq!((&file, offset), (&newest, 0));
        assert!(what.contains("header is damaged"), "{what}");
        assert_eq!(files(&lost), files(&disk), "nothing was changed");
    }
}

/// Noise under checksums that fit, which only a bug could write: what is read of it is a log or is said to be damage.
#[test]
fn noise_that_passes_for_records_is_refused_or_understood() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let mut end = LogPosition::default();
    for round in 1..5 {
        wal.append(&[Record::HardState(GROUP, state(round))]).unwrap();
        end = fill(&mut wal, GROUP, end, 3, 10);
        fill(&mut wal, GroupId(round), LogPosition::default(), 2, 10);
        wal.append(&[Record::Floor(GROUP, end), Record::Forget(GroupId(3))]).unwrap();
        wal.sync().unwrap();
    }
    drop(wal);
    disk.kill();
    let path = files(&disk)[0].clone();
    let sound = read_all(&*disk.open(&path).unwrap()).unwrap();
    let salt = Salt::new(77, 1);
    let mut batches = vec![FIRST_BATCH as usize];
    while let Some(header) = BatchHeader::decode(&sound[batches[batches.len() - 1]..], salt) {
        batches.push(batches[batches.len() - 1] + header.extent());
    }
    batches.pop();
    let mut rng = SmallRng::seed_from_u64(1);
    let (mut understood, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let at = batches[rng.random_range(0..batches.len())];
        let header = BatchHeader::decode(&sound[at..], salt).unwrap();
        let mut bytes = sound[at..at + BATCH_HEADER + header.length].to_vec();
        garble_batch(&mut bytes, salt, &mut rng);
        let noisy = disk.fork();
        noisy.open(&path).unwrap().write_at(at as u64, &bytes).unwrap();
        match open(&noisy) {
            Ok((mut wal, recovered)) => {
                understood += 1;
                assert_eq!(recovered.torn_tail, None, "at {at}");
                // It goes on, and is the same log when it is read again.
                wal.append(&[Record::HardState(GroupId(9), state(9))]).unwrap();
                wal.sync().unwrap();
                drop(wal);
                let mut again = open(&noisy).unwrap().1.groups;
                let ninth = again.remove(&GroupId(9)).unwrap();
                let before = recovered.groups.get(&GroupId(9)).map(|group| group.entries.clone());
                assert_eq!((ninth.hard_state, ninth.entries), (state(9), before.unwrap_or_default()));
                assert!(again.iter().eq(recovered.groups.iter().filter(|(group, _)| **group != GroupId(9))));
            }
            Err(WalError::Damaged { file, .. }) => {
                refused += 1;
                assert_eq!(file, path);
            }
            Err(error) => assert!(error.to_string().contains("newer"), "{error}"),
        }
    }
    assert!(understood > 300 && refused > 300, "{understood}, {refused}");
}

#[test]
fn a_missing_segment_is_refused() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, GROUP, LogPosition::default(), 100, 300);
    drop(wal);
    let files = files(&disk);
    for path in &files[..files.len() - 1] {
        let damaged = disk.fork();
        damaged.remove(path).unwrap();
        let error = refusal(&damaged);
        assert!(matches!(error, WalError::Damaged { .. }), "{error}");
    }
}

#[test]
fn the_last_batch_is_a_torn_tail_until_it_is_sealed() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, GROUP, LogPosition::default(), 5, 100);
    let last_batch = {
        let file = &files(&disk)[0];
        let before = disk.open(file).unwrap();
        let mut bytes = vec![0; 16 << 10];
        before.read_at(0, &mut bytes).unwrap();
        bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64
    };
    let torn = disk.fork();
    torn.flip_bit(&files(&torn)[0], last_batch, 0).unwrap();
    let (mut reopened, recovered) = open(&torn).unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.len(), 4);
    let tail = recovered.torn_tail.unwrap();
    assert_eq!(tail.file, files(&torn)[0]);
    assert!(tail.offset < last_batch && tail.offset + tail.bytes > last_batch);
    // The log goes on elsewhere; the tail stays cut.
    let position = recovered.groups[&GROUP].entries[3].position();
    fill(&mut reopened, GROUP, position, 1, 10);
    drop(reopened);
    let (_, recovered) = open(&torn).unwrap();
    assert_eq!((recovered.groups[&GROUP].entries.len(), recovered.torn_tail), (5, None));

    wal.seal().unwrap();
    drop(wal);
    disk.flip_bit(&files(&disk)[0], last_batch, 0).unwrap();
    assert!(matches!(refusal(&disk), WalError::Damaged { .. }));
}

/// It could not be sealed before something was written to it again: as long as all rested, damage to its last batch passed for one more
/// torn tail, and with it went what had been acknowledged.
#[test]
fn a_log_with_a_torn_tail_is_sealed_when_it_rests() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, GROUP, LogPosition::default(), 5, 100);
    drop(wal);
    let flip_last_byte = |before: u64| {
        let file = files(&disk)[0].clone();
        let mut bytes = vec![0; before as usize];
        disk.open(&file).unwrap().read_at(0, &mut bytes).unwrap();
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        disk.flip_bit(&file, last, 0).unwrap();
    };
    flip_last_byte(16 << 10);
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.len(), 4);
    let tail = recovered.torn_tail.unwrap();
    wal.seal().unwrap();
    wal.seal().unwrap();
    drop(wal);
    let (_, again) = open(&disk).unwrap();
    assert_eq!((again.groups, again.torn_tail), (recovered.groups, None));
    flip_last_byte(tail.offset);
    assert!(matches!(refusal(&disk), WalError::Damaged { .. }));
}

/// The next attempt succeeded, and the log went on in a segment whose name a power loss might take away.
#[test]
fn a_failed_sync_of_the_directory_is_not_forgotten() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let end = fill(&mut wal, GROUP, LogPosition::default(), 5, 100);
    let operation = Some(Operation::SyncDirectory);
    disk.set_fault(Some(Fault { operation, after: 0, kind: io::ErrorKind::Other, lasting: false }));
    let large = entries_after(GROUP, end, 1, 1, 40 << 10);
    for _ in 0..2 {
        let error = wal.append(&[Record::Entries(GROUP, large.clone())]).unwrap_err();
        assert!(matches!(error, WalError::Io { .. }), "{error}");
    }
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.groups[&GROUP].entries.len(), 5);
}

#[test]
fn a_log_that_is_open_is_refused() {
    let disk = MemoryDisk::new();
    let (wal, _) = open(&disk).unwrap();
    assert!(matches!(refusal(&disk), WalError::Locked(_)));
    drop(wal);
    open(&disk).unwrap();
}

#[test]
fn other_logs_and_newer_formats_are_refused() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    fill(&mut wal, GROUP, LogPosition::default(), 1, 10);
    drop(wal);
    let other = Options { log_id: 78, ..options() };
    let error = Wal::open(Arc::new(disk.clone()), Path::new(DIRECTORY), other).err().unwrap();
    assert!(matches!(error, WalError::Foreign { found: 77, expected: 78, .. }), "{error}");
    let header = SegmentHeader { version: 2, number: 1, size: 16 << 10, log_id: 77 };
    disk.open(&files(&disk)[0]).unwrap().write_at(0, &header.encode()[..64]).unwrap();
    assert!(refusal(&disk).to_string().contains("has format 2; this version reads up to 1"));
}

#[test]
fn real_files_survive_a_restart_and_refuse_a_corrupted_byte_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wal");
    let open = || Wal::open(Arc::new(RealDisk), &path, options());
    let (mut wal, _) = open().unwrap();
    let preparer = wal.preparer();
    let background = std::thread::spawn(move || preparer.run());
    let mut end = LogPosition::default();
    for _ in 0..50 {
        end = fill(&mut wal, GROUP, end, 20, 100);
        wal.append(&[Record::Floor(GROUP, LogPosition::default())]).unwrap();
    }
    assert_eq!(wal.background_failure(), None);
    drop(wal);
    let (wal, recovered) = open().unwrap();
    background.join().unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.len(), 1000);
    assert!(wal.segment_count() > 5);
    drop(wal);

    let mut names = RealDisk.list(&path).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    let victim = path.join(&names[2]);
    let mut bytes = fs::read(&victim).unwrap();
    bytes[9000] ^= 0x40;
    fs::write(&victim, &bytes).unwrap();
    let before: Vec<Vec<u8>> = names.iter().map(|name| fs::read(path.join(name)).unwrap()).collect();
    match open().err().unwrap() {
        WalError::Damaged { file, offset, .. } => {
            assert_eq!(file, victim);
            assert!(offset <= 9000 && offset > 8000, "{offset}");
        }
        error => panic!("{error}"),
    }
    let after: Vec<Vec<u8>> = names.iter().map(|name| fs::read(path.join(name)).unwrap()).collect();
    assert!(before == after, "a refused log is left as it is");
}

/// A record of a newer version was called damage, and to be rebuilt what nothing was wrong with.
#[test]
fn a_record_of_a_newer_version_is_no_damage() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    wal.append(&[Record::HardState(GROUP, state(1))]).unwrap();
    wal.sync().unwrap();
    wal.poison_on_error(|wal| {
        wal.encoder.begin();
        wal.encoder.unknown(SEAL + 1);
        wal.write_batch()?;
        wal.sync_current()
    })
    .unwrap();
    drop(wal);
    let refused = refusal(&disk);
    assert!(matches!(refused, WalError::NewerRecord { kind, .. } if kind == SEAL + 1), "{refused}");
    assert!(refused.to_string().contains("use a newer one"), "{refused}");
}

/// There is no older version yet; 0 stands for one.
#[test]
fn a_log_of_an_older_version_goes_on_in_a_new_segment() {
    let disk = MemoryDisk::new();
    let (mut wal, _) = open(&disk).unwrap();
    let end = fill(&mut wal, GROUP, LogPosition::default(), 3, 100);
    wal.seal().unwrap();
    drop(wal);
    let older = |file: &PathBuf, number| {
        let header = SegmentHeader { version: VERSION - 1, number, size: 16 << 10, log_id: 77 };
        disk.open(file).unwrap().write_at(0, &header.encode()[..FIRST_BATCH as usize]).unwrap();
    };
    let before = files(&disk);
    older(&before[0], 1);

    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.torn_tail, None);
    let end = fill(&mut wal, GROUP, end, 1, 100);
    assert_eq!(wal.segment_count(), 2);
    drop(wal);
    let header =
        |file: &PathBuf| SegmentHeader::decode(&read_all(&*disk.open(file).unwrap()).unwrap()).unwrap();
    let versions: Vec<u32> = files(&disk).iter().map(|file| header(file).version).collect();
    assert_eq!(versions[..2], [VERSION - 1, VERSION]);
    let (mut wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.groups[&GROUP].entries.last().unwrap().position(), end);
    fill(&mut wal, GROUP, end, 1, 100);
    assert_eq!(wal.segment_count(), 2, "and on in that one");
}
