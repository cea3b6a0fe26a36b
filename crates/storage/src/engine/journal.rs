//! What fjall leaves undone after a power loss or a failed fsync: the journal's torn end, and what was never written of it.
//!
//! fjall cuts off an end that stops in the middle of a batch, but refuses to open when a batch is complete and its
//! checksum is wrong. A power loss does that: what was not fsynced reaches the disk in any order, so pages in the middle
//! of the last batches may be missing while later ones are there. [`cut_torn_end`] removes everything from the first such
//! batch on before fjall sees it. Older journals were fsynced before the newest one was begun, so damage there is damage,
//! and stays for fjall to refuse.
//!
//! Rot in the part that had been persisted looks the same and is cut as well. It is found afterwards: fjall fsyncs the
//! journal before it makes tables, so a journal that ends before what is in tables is damaged; and a node compares the
//! index in the engine with the floor of its log, so an engine that fell back behind what is relied on is refused.
//!
//! What a process reads that is started again on the same machine need not be on the disk: after a failed fsync Linux counts pages as clean
//! that it never wrote, and no later fsync puts them there. So all that is left of the newest journal is written again, and fsynced, before anybody
//! relies on it.
//!
//! A batch, all numbers little-endian: `1, count (4), sequence (8)`, then `count` items, then `3, checksum (8), "FJL\x03"`.
//! An item is `2, type (1), compression (1), keyspace (8), key length (2), value length (4), the same once more (4), key,
//! value`; or `4, keyspace (8)`. The checksum is XXH3-64 of the items.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::TornTail;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: &[u8] = b"FJL\x03";
/// Bytes of an item before its key, behind the tag; where the two lengths that matter are.
const ITEM_HEAD: usize = 20;
const KEY_LENGTH: usize = 10;
const VALUE_LENGTHS: usize = 12;

/// Bytes that are written again at a time.
const PIECE: usize = 1 << 20;

/// fjall's, in its directory.
const LOCK: &str = "lock";

/// How the newest journal ends.
#[derive(Default)]
pub(super) struct End {
    /// The sequence number of the last batch in it.
    pub(super) last: Option<u64>,
    /// What was cut off, if it was more than the zeros that the file was made longer with.
    pub(super) torn: Option<TornTail>,
}

/// Cuts the newest journal in `directory` where its first broken batch begins, and writes the rest again, unless somebody has the engine open, which
/// fjall refuses then.
pub(super) fn cut_torn_end(directory: &Path) -> io::Result<End> {
    let Some(path) = newest(directory)? else { return Ok(End::default()) };
    let lock = match File::options().write(true).open(directory.join(LOCK)) {
        Ok(lock) => lock,
        // fjall says what it makes of a directory without one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(End::default()),
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => cut_behind_whole_batches(&path),
        Err(TryLockError::WouldBlock) => Ok(End::default()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn cut_behind_whole_batches(path: &Path) -> io::Result<End> {
    let mut journal = Journal { file: BufReader::new(File::open(path)?), read: 0 };
    let (mut whole, mut last) = (0, None);
    while let Some(sequence) = journal.batch()? {
        // The checksum does not cover it.
        if last.is_some_and(|last| sequence <= last) {
            break;
        }
        (whole, last) = (journal.read, Some(sequence));
    }
    let bytes = written_behind(path, whole)?;
    let torn = (bytes > 0).then(|| TornTail { file: path.to_owned(), offset: whole, bytes });
    let file = File::options().read(true).write(true).open(path)?;
    file.set_len(whole)?;
    write_again(&file, whole)?;
    file.sync_all()?;
    Ok(End { last, torn })
}

/// Puts the first `length` bytes where they are.
fn write_again(file: &File, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let bytes = buffer.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..bytes], at)?;
        file.write_all_at(&buffer[..bytes], at)?;
        at += bytes as u64;
    }
    Ok(())
}

/// How many bytes behind `offset` there are up to the last one that is not zero.
fn written_behind(path: &Path, offset: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let (mut read, mut written) = (0, 0);
    let mut buffer = [0; 4096];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(written);
        }
        if let Some(at) = buffer[..length].iter().rposition(|byte| *byte != 0) {
            written = read + at as u64 + 1;
        }
        read += length as u64;
    }
}

/// The journal that was begun last.
fn newest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_suffix(".jnl").and_then(|number| number.parse::<u64>().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|(other, _)| *other < number)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

struct Journal {
    file: BufReader<File>,
    /// How many bytes of it were read.
    read: u64,
}

impl Journal {
    /// Reads a batch and returns its sequence number; `None` if there is none, or no whole one.
    fn batch(&mut self) -> io::Result<Option<u64>> {
        if self.tag()? != Some(START) {
            return Ok(None);
        }
        let Some(head) = self.array::<12>()? else { return Ok(None) };
        let (count, sequence) = (number(&head[..4]), number(&head[4..]));
        let mut hash = Xxh3::new();
        for _ in 0..count {
            if self.item(&mut hash)?.is_none() {
                return Ok(None);
            }
        }
        if self.tag()? != Some(END) {
            return Ok(None);
        }
        let Some(checksum) = self.array()? else { return Ok(None) };
        let trailer: Option<[u8; TRAILER.len()]> = self.array()?;
        let whole = u64::from_le_bytes(checksum) == hash.digest();
        Ok((whole && trailer.as_ref().is_some_and(|trailer| trailer == TRAILER)).then_some(sequence))
    }

    fn item(&mut self, hash: &mut Xxh3) -> io::Result<Option<()>> {
        match self.tag()? {
            Some(ITEM) => {
                let Some(head) = self.array::<ITEM_HEAD>()? else { return Ok(None) };
                hash.update(&[ITEM]);
                hash.update(&head);
                let key = number(&head[KEY_LENGTH..VALUE_LENGTHS]);
                let value = number(&head[VALUE_LENGTHS + 4..]);
                // They differ with compression only, which is not in use.
                let same = head[VALUE_LENGTHS..VALUE_LENGTHS + 4] == head[VALUE_LENGTHS + 4..];
                if same { self.hashed(key + value, hash) } else { Ok(None) }
            }
            Some(CLEAR) => {
                hash.update(&[CLEAR]);
                self.hashed(8, hash)
            }
            _ => Ok(None),
        }
    }

    /// The next byte; `None` at the end of the file.
    fn tag(&mut self) -> io::Result<Option<u8>> {
        Ok(self.array()?.map(|[tag]| tag))
    }

    /// The next bytes, if there are so many.
    fn array<const LENGTH: usize>(&mut self) -> io::Result<Option<[u8; LENGTH]>> {
        let mut bytes = [0; LENGTH];
        Ok(self.fill(&mut bytes)?.map(|()| bytes))
    }

    /// Passes so many bytes to the hash, without trust in their number.
    fn hashed(&mut self, length: u64, hash: &mut Xxh3) -> io::Result<Option<()>> {
        let mut left = length;
        let mut buffer = [0; 4096];
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if self.fill(&mut buffer[..wanted])?.is_none() {
                return Ok(None);
            }
            hash.update(&buffer[..wanted]);
            left -= wanted as u64;
        }
        Ok(Some(()))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<Option<()>> {
        match self.file.read_exact(bytes) {
            Ok(()) => self.read += bytes.len() as u64,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(()))
    }
}

/// A little-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
