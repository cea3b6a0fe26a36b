//! The file `POOL`: the pool as the node was bootstrapped into it, and the data directories that it met the other members
//! with. `docs/formats/data-dir.md` has the bytes.
//!
//! Nobody may forget a vote: a member that comes back with an empty data directory is a stranger who knows its name. So
//! the identity of a member's data directory is durable here before the first vote or acknowledgement is exchanged with
//! it, and another identity is refused from then on. The root group learns the identities too, but only once it has a
//! leader, which takes votes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::NodeId;
use hadron_node::{Bootstrap, Member};
use hadron_storage::data_dir::starts;
use hadron_storage::disk::{Disk, read_all, write_atomically};
use parking_lot::{Mutex, RwLock};
use tracing::{info, warn};

use super::error::RunError;
use crate::transport::{Cause, Identity, Refusal};

/// Its name in the data directory.
pub(super) const POOL_FILE: &str = "POOL";
const MAGIC: &[u8; 8] = b"HADRPOOL";
/// Its checksum is of what follows the header. That of a later format has to be of the version too, so that a flipped bit of a 1 does not pass for
/// a later format.
const VERSION: u32 = 1;
/// Magic, version and checksum.
const HEADER_BYTES: usize = 16;

/// The file, kept up to date.
pub(super) struct PoolFile {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    /// Held while the file is written: of two that come at once the second finds the first.
    writing: Mutex<()>,
    /// What the file holds.
    pool: RwLock<Bootstrap>,
}

impl PoolFile {
    /// The file in `data_dir`, which holds `pool`.
    pub(super) fn written(disk: Arc<dyn Disk>, data_dir: PathBuf, pool: Bootstrap) -> PoolFile {
        PoolFile { disk, data_dir, writing: Mutex::default(), pool: RwLock::new(pool) }
    }

    /// Whether a member may be talked to with this data directory, as it is now. The first one that a node shows is remembered, durably,
    /// and is the only one from then on; and so is its last start, and it must not come with an earlier one. May wait for the disk.
    ///
    /// # Errors
    /// Why not, for the people who run the two nodes.
    pub(super) fn admit(&self, other: &Identity) -> Result<(), Refusal> {
        let node = other.node;
        let _turn = self.writing.lock();
        let mut pool = self.pool.read().clone();
        let start = pool.starts.insert(node.0, other.incarnation).unwrap_or_default();
        let member = place_of(&mut pool, node);
        member.admit(other.data_dir_id)?;
        let is_known = member.data_dir_id == other.data_dir_id;
        if is_known && start == other.incarnation {
            return Ok(());
        }
        if !is_before(start, other.incarnation) {
            let reason = format!(
                "node {:x} ({}) was here with another start ({}) that is not before this one ({}): its data directory was restored from \
                 a copy, or runs twice",
                node.0,
                other.name,
                starts(start),
                starts(other.incarnation)
            );
            return Err(Refusal { reason, cause: Cause::Outdated });
        }
        member.data_dir_id = other.data_dir_id;
        write(&*self.disk, &self.data_dir, &pool).map_err(|error| {
            format!("the data directory of node {:x} cannot be remembered: {error}", node.0)
        })?;
        if !is_known {
            info!(node = %format_args!("{:x}", node.0), name = other.name, "met a member for the first time");
        }
        *self.pool.write() = pool;
        Ok(())
    }

    /// The others have met this node with a later start, and so this must be its last one: what it promised since then is not here. Returns what is
    /// to be said.
    pub(super) fn outdated(&self, reason: String) -> RunError {
        // Whoever cannot write it now is told again.
        self.remember("that this data directory is out of date", |pool| pool.outdated.clone_from(&reason));
        RunError::Outdated { data_dir: self.data_dir.clone(), reason }
    }

    /// Whether this node's cluster is known to have gone on without `node`, which was forced to be one of its own.
    pub(super) fn went_on_without(&self, node: NodeId) -> bool {
        self.pool.read().went_on_without.contains(&node.0)
    }

    /// Remembers that, for starts to come. May wait for the disk.
    pub(super) fn go_on_without(&self, node: NodeId) {
        self.remember("that this node's cluster went on", |pool| pool.went_on_without.push(node.0));
    }

    /// Changes what is known, and the file if that can be written.
    fn remember(&self, what: &str, change: impl FnOnce(&mut Bootstrap)) {
        let _turn = self.writing.lock();
        let mut pool = self.pool.read().clone();
        change(&mut pool);
        if let Err(error) = write(&*self.disk, &self.data_dir, &pool) {
            warn!(%error, "it cannot be remembered {what}");
        }
        *self.pool.write() = pool;
    }

    /// The data directory that `node` was met with. Does not wait for the disk.
    pub(super) fn known(&self, node: NodeId) -> Option<u64> {
        known(&self.pool.read(), node)
    }
}

/// Whether one start of a data directory came before another.
fn is_before(one: u64, other: u64) -> bool {
    match (starts(one), starts(other)) {
        // Of versions that only counted them.
        (0, 0) => one < other,
        (one, other) => one < other,
    }
}

/// Where it is written what `node` was met with: among the first members, or among those who came later.
fn place_of(pool: &mut Bootstrap, node: NodeId) -> &mut Member {
    if let Some(place) = pool.members.iter().position(|member| member.node() == node) {
        return &mut pool.members[place];
    }
    let place = pool.met.iter().position(|member| member.node() == node).unwrap_or_else(|| {
        pool.met.push(Member { id: node.0, ..Member::default() });
        pool.met.len() - 1
    });
    &mut pool.met[place]
}

/// The data directory that `pool` knows `node` with.
pub(super) fn known(pool: &Bootstrap, node: NodeId) -> Option<u64> {
    let member = pool.members.iter().chain(&pool.met).find(|member| member.node() == node)?;
    Some(member.data_dir_id).filter(|id| *id != 0)
}

/// Reads the file in `directory`, if there is one.
pub(super) fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Bootstrap>, RunError> {
    let file = directory.join(POOL_FILE);
    if !disk.exists(&file).map_err(RunError::files("reading", &file))? {
        return Ok(None);
    }
    let bytes = disk.open(&file).and_then(|opened| read_all(&*opened));
    let bytes = bytes.map_err(RunError::files("reading", &file))?;
    decode(bytes.into()).map(Some).map_err(|what| RunError::BadPool { file, what })
}

/// Writes the file in `directory`, durably; the old one is there until the new one is.
pub(super) fn write(disk: &dyn Disk, directory: &Path, pool: &Bootstrap) -> Result<(), RunError> {
    let failed = RunError::files("writing", directory.join(POOL_FILE));
    write_atomically(disk, directory, POOL_FILE, &encode(pool)).map_err(failed)
}

fn encode(pool: &Bootstrap) -> Bytes {
    let body = pool.to_bytes();
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(crc32c::crc32c(&body));
    bytes.put_slice(&body);
    bytes.freeze()
}

fn decode(mut bytes: Bytes) -> Result<Bootstrap, String> {
    let damaged = || {
        "damaged: restore it from a copy; a member that was there from the start may have that of another such one. If there is none, move the \
         data directory and the write-ahead log away and rebuild this member from the others"
            .to_owned()
    };
    if bytes.len() < HEADER_BYTES || bytes.split_to(MAGIC.len()) != MAGIC[..] {
        return Err(damaged());
    }
    let version = bytes.get_u32_le();
    let fits = bytes.get_u32_le() == crc32c::crc32c(&bytes);
    if version > VERSION && !fits {
        return Err(format!("has format {version}, this version reads up to {VERSION}: use a newer one"));
    }
    if version != VERSION || !fits {
        return Err(damaged());
    }
    Bootstrap::from_bytes(bytes).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_storage::disk::{Fault, MemoryDisk, Operation};

    use super::*;

    const DIRECTORY: &str = "/data";

    fn pool() -> Bootstrap {
        let node = |name: &str, port: u16| (name.to_string(), vec![format!("http://127.0.0.1:{port}")]);
        Bootstrap::derive("t", &[node("a", 1), node("b", 2), node("c", 3)])
    }

    fn file(disk: &MemoryDisk) -> PoolFile {
        let stored = read(disk, DIRECTORY.as_ref()).unwrap().unwrap();
        PoolFile::written(Arc::new(disk.clone()), DIRECTORY.into(), stored)
    }

    fn disk() -> MemoryDisk {
        let disk = MemoryDisk::new();
        disk.create_dir(DIRECTORY.as_ref()).unwrap();
        write(&disk, DIRECTORY.as_ref(), &pool()).unwrap();
        disk
    }

    /// Of a node that was started so often.
    fn identity(node: NodeId, data_dir_id: u64, starts: u64) -> Identity {
        Identity { cluster_id: 1, node, incarnation: starts << 32 | 77, data_dir_id, name: "n".into() }
    }

    /// Only in memory it was known with which start a node had come last: a copy of its data directory was let in after the others had been
    /// started anew, or when it had been started often enough itself.
    #[test]
    fn who_comes_with_an_earlier_start_is_out_of_date_and_stays_so() {
        let (disk, b) = (disk(), pool().members[1].node());
        file(&disk).admit(&identity(b, 7, 5)).unwrap();
        disk.crash(1);
        let met = file(&disk);
        let refusal = met.admit(&identity(b, 7, 4)).unwrap_err();
        assert_eq!(refusal.cause, Cause::Outdated);
        assert!(refusal.reason.contains("another start (5) that is not before this one (4)"), "{refusal}");
        met.admit(&identity(b, 7, 5)).unwrap();
        met.admit(&identity(b, 7, 6)).unwrap();
        assert!(file(&disk).admit(&identity(b, 7, 5)).is_err());

        let said = met.outdated(refusal.reason.clone()).to_string();
        assert!(said.contains("/data is out of date") && said.contains("member remove"), "{said}");
        disk.crash(2);
        assert_eq!(read(&disk, DIRECTORY.as_ref()).unwrap().unwrap().outdated, refusal.reason);
    }

    /// A copy that was started once after it was made had the number of the start that the directory had after that: it was let in, and what the node
    /// had acknowledged meanwhile was lost.
    #[test]
    fn who_comes_with_another_start_of_the_same_number_is_out_of_date() {
        let (disk, b) = (disk(), pool().members[1].node());
        let met = file(&disk);
        let original = identity(b, 7, 5);
        met.admit(&original).unwrap();
        for incarnation in [original.incarnation - 1, original.incarnation + 1] {
            let copy = Identity { incarnation, ..original.clone() };
            assert_eq!(met.admit(&copy).unwrap_err().cause, Cause::Outdated);
        }
        met.admit(&original).unwrap();
        met.admit(&identity(b, 7, 6)).unwrap();
    }

    #[test]
    fn starts_that_were_only_counted_are_in_their_order() {
        let counted = |incarnation| Identity { incarnation, ..identity(pool().members[1].node(), 7, 0) };
        let disk = disk();
        let met = file(&disk);
        met.admit(&counted(5)).unwrap();
        met.admit(&counted(6)).unwrap();
        assert_eq!(met.admit(&counted(5)).unwrap_err().cause, Cause::Outdated);
        met.admit(&identity(pool().members[1].node(), 7, 1)).unwrap();
        assert_eq!(met.admit(&counted(7)).unwrap_err().cause, Cause::Outdated);
    }

    #[test]
    fn the_first_data_directory_of_a_member_is_its_only_one_also_after_a_crash() {
        let (b, c) = (pool().members[1].node(), pool().members[2].node());
        for seed in 0..50 {
            let disk = disk();
            let met = file(&disk);
            met.admit(&identity(b, 7, 1)).unwrap();
            met.admit(&identity(b, 7, 1)).unwrap();
            assert!(
                met.admit(&identity(b, 8, 1))
                    .unwrap_err()
                    .reason
                    .contains("known with another data directory")
            );
            disk.crash(seed);
            let met = file(&disk);
            assert!(met.admit(&identity(b, 8, 1)).is_err(), "seed {seed}");
            met.admit(&identity(b, 7, 1)).unwrap();
            met.admit(&identity(c, 9, 1)).unwrap();
        }
    }

    #[test]
    fn who_came_later_is_remembered_too() {
        let (disk, late) = (disk(), NodeId(99));
        file(&disk).admit(&identity(late, 7, 1)).unwrap();
        assert!(file(&disk).admit(&identity(late, 8, 1)).is_err());
        assert_eq!(file(&disk).known(late), Some(7));
        let stored = read(&disk, DIRECTORY.as_ref()).unwrap().unwrap();
        assert_eq!(stored.groups(stored.members[0].node()), pool().groups(stored.members[0].node()));
    }

    /// Torn, half-written, lost: whatever a crash leaves of the write, nobody was admitted on it.
    #[test]
    fn nobody_is_admitted_whose_data_directory_is_not_durable() {
        let b = pool().members[1].node();
        for operation in [Operation::Create, Operation::Write, Operation::Sync, Operation::SyncDirectory] {
            for seed in 0..20 {
                let disk = disk();
                let met = file(&disk);
                let kind = std::io::ErrorKind::Other;
                disk.set_fault(Some(Fault { operation: Some(operation), after: 0, kind, lasting: true }));
                let refusal = met.admit(&identity(b, 7, 1)).unwrap_err().reason;
                assert!(refusal.contains("cannot be remembered"), "{refusal}");
                disk.set_fault(None);
                disk.crash(seed);
                // Either way the file is whole, and the one that came first may come again.
                file(&disk).admit(&identity(b, 7, 1)).unwrap();
            }
        }
    }

    #[test]
    fn of_two_that_come_at_once_one_is_admitted() {
        let b = pool().members[1].node();
        let disk = disk();
        let met = file(&disk);
        let admitted: Vec<u64> = std::thread::scope(|scope| {
            let tries: Vec<_> = (1..9)
                .map(|id| {
                    (
                        id,
                        scope.spawn({
                            let met = &met;
                            move || met.admit(&identity(b, id, 1)).is_ok()
                        }),
                    )
                })
                .collect();
            tries.into_iter().filter_map(|(id, thread)| thread.join().unwrap().then_some(id)).collect()
        });
        assert_eq!(admitted.len(), 1);
        assert_eq!(file(&disk).admit(&identity(b, admitted[0], 1)), Ok(()));
    }

    #[test]
    fn a_pool_is_written_as_ever() {
        let pool = Bootstrap {
            joined_as: 2,
            restored: 5,
            starts: [(6, 7)].into(),
            was_forced: true,
            outdated: "why".into(),
            went_on_without: vec![8],
            ..pool()
        };
        let mut pinned = crate::pinned::Pinned::open(env!("CARGO_MANIFEST_DIR"), "pool.txt");
        let bytes = pinned.bytes("pool", &encode(&pool));
        pinned.finish();
        assert_eq!(decode(bytes.into()), Ok(pool));
    }

    #[test]
    fn a_later_format_is_said_to_be_one() {
        let mut later = encode(&pool()).to_vec();
        later[8] = 2;
        later[12] ^= 1;
        assert!(decode(later.into()).unwrap_err().starts_with("has format 2, this version reads up to 1"));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut pool = pool();
        pool.members[1].data_dir_id = 7;
        let bytes = encode(&pool);
        assert_eq!(decode(bytes.clone()), Ok(pool));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(damaged.into()).unwrap_err().starts_with("damaged"), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(decode(bytes.slice(..end)).is_err(), "{end} bytes");
        }
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn noise_is_refused_or_understood_and_never_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(bytes.clone().into());
            // With everything around it in order.
            let head = [&MAGIC[..], &VERSION.to_le_bytes(), &crc32c::crc32c(&bytes).to_le_bytes()].concat();
            let _ = decode([head, bytes].concat().into());
        }
    }
}
