//! A node's data directory: whose it is, and that nobody else uses it.
//!
//! ```text
//!   LOCK        held for as long as the process runs
//!   IDENTITY    cluster, node, the directory's own random id, and its last start
//!   wal/        the write-ahead log
//!   engine/     the engine
//! ```
//!
//! The random id is what tells a node from its own amnesia: a wiped directory comes back under another one. The
//! incarnation is durable before [`DataDir::open`] returns, so no message of this run can carry an earlier run's. It counts starts, and part of it is
//! random: a copy of the directory that is started once has another one than the directory that was started once after it was copied.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::NodeId;

use crate::disk::{DirectoryLock, Disk, LOCK_FILE, read_all, sync_parent, write_atomically};

/// The newest format of a data directory that this code reads, and the one it writes.
pub const FORMAT: u32 = 1;

const IDENTITY: &str = "IDENTITY";
const ENGINE: &str = "engine";
/// What only a node that got beyond its identity makes here: the record of its pool, the mark that its log is in use,
/// and its two stores.
const LATER_PIECES: [&str; 4] = ["POOL", "COMPLETE", ENGINE, "wal"];
/// What an etcd makes in its data directory.
const OF_ETCD: &str = "member";
const TITLE: &str = "hadron data directory";

/// What a node says it is when it opens its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The cluster's id.
    pub cluster: u64,
    /// The node's id.
    pub node: NodeId,
    /// The node's name; one line. An existing directory's node is called so from then on.
    pub node_name: String,
    /// The id that a new directory gets: a random number. Ignored when there is a directory already.
    pub new_directory: u64,
    /// A random number for this start.
    pub new_start: u32,
}

/// What a data directory says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: u64,
    /// The node's id.
    pub node: NodeId,
    /// The node's name.
    pub node_name: String,
    /// The directory's random id, chosen when it was created.
    pub directory: u64,
    /// Its last start, this one included; see [`starts`].
    pub incarnation: u64,
}

/// Bits of an incarnation that are random.
const RANDOM_BITS: u32 = 32;

/// How many starts there were, from 1, when a directory was opened with this incarnation. Two with the same number and another incarnation
/// are of two directories, one of which was copied from the other.
pub fn starts(incarnation: u64) -> u64 {
    incarnation >> RANDOM_BITS
}

/// The incarnation after `last`.
fn next_incarnation(last: u64, random: u32) -> u64 {
    (starts(last) + 1) << RANDOM_BITS | u64::from(random)
}

/// Why a data directory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system refused.
    #[error("data directory {}: {source}", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It, or something above it, is a file.
    #[error("data directory {} cannot be made: {source}; it or something above it is a file. Choose another", directory.display())]
    NotADirectory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This process may not write there.
    #[error(
        "data directory {} cannot be written: {source}. The node must be able to write there: check owner and \
         permissions, and whether the file system is mounted read-only", directory.display()
    )]
    NotWritable {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("data directory {} is in use by another process: stop that one, or choose another directory", .0.display())]
    Locked(PathBuf),
    /// It was in use, but nothing says any more whose it is.
    #[error(
        "data directory {}: its file {IDENTITY} is missing, although {found} is there. Without it the node does not \
         know who it is. Put it back from a copy; if there is none, move the directory away and rebuild this member \
         from the others", directory.display()
    )]
    IdentityMissing {
        /// The directory.
        directory: PathBuf,
        /// A piece of a node's data that is there.
        found: String,
    },
    /// It has contents, but nothing says that they are Hadron's.
    #[error("{} is not empty and not a Hadron data directory: choose another, or empty it", .0.display())]
    NotHadron(PathBuf),
    /// It is etcd's.
    #[error(
        "{} is the data directory of an etcd, which is not changed: take a snapshot of that etcd, make a new directory from it with \
         `hadron utl snapshot restore`, and start this node with that", .0.display()
    )]
    OfEtcd(PathBuf),
    /// It belongs to another cluster.
    #[error("data directory {} belongs to cluster {found:016x}, not to {expected:016x}: start the node with its own data \
         directory, or choose another for the new cluster", directory.display())]
    OtherCluster {
        /// The directory.
        directory: PathBuf,
        /// Its cluster.
        found: u64,
        /// The cluster that was asked for.
        expected: u64,
    },
    /// It belongs to another node.
    #[error(
        "data directory {} belongs to node {found_name} ({:016x}), not to {expected_name} ({:016x}): start it under \
         its own name, or choose another data directory",
        directory.display(), found.0, expected.0
    )]
    OtherNode {
        /// The directory.
        directory: PathBuf,
        /// Its node.
        found: NodeId,
        /// Its node's name.
        found_name: String,
        /// The node that was asked for.
        expected: NodeId,
        /// Its name.
        expected_name: String,
    },
    /// A newer version of Hadron wrote it.
    #[error("data directory {} has format {found}; this version reads up to {FORMAT}: use a newer one", directory.display())]
    NewerFormat {
        /// The directory.
        directory: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its identity cannot be read.
    #[error(
        "{} is damaged: {what}. Put it back from a copy; if there is none, move the directory away and rebuild this member \
         from the others", file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A node's name must be one line and not empty.
    #[error("{0:?} is no name for a node")]
    BadName(String),
}

/// A data directory that nobody else can open, before it is anybody's.
pub struct LockedDir {
    path: PathBuf,
    found: Option<Identity>,
    lock: Box<dyn DirectoryLock>,
}

impl LockedDir {
    /// Locks the directory, which is made if it does not exist, and reads whose it is.
    ///
    /// # Errors
    /// It cannot be used, or holds what is not Hadron's. Nothing but the lock's file was made in it.
    pub fn open(disk: &Arc<dyn Disk>, directory: &Path) -> Result<LockedDir, DataDirError> {
        let failed = |source| io_error(directory, source);
        disk.create_dir(directory).map_err(failed)?;
        check_is_ours(&**disk, directory)?;
        let lock = disk.lock(directory).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => DataDirError::Locked(directory.to_path_buf()),
            _ => io_error(directory, error),
        })?;
        let found = DataDir::read(&**disk, directory)?;
        Ok(LockedDir { path: directory.to_path_buf(), found, lock })
    }

    /// What the directory said it is when it was locked; `None` for a new one.
    pub fn found(&self) -> Option<&Identity> {
        self.found.as_ref()
    }

    /// Where the engine is.
    pub fn engine_path(&self) -> PathBuf {
        self.path.join(ENGINE)
    }

    /// Gives the directory to the node that claims it, or makes it that node's; counts a new incarnation, durably.
    ///
    /// # Errors
    /// It is another node's, or cannot be written.
    pub fn claim(self, disk: &Arc<dyn Disk>, claim: &Claim) -> Result<DataDir, DataDirError> {
        if claim.node_name.trim() != claim.node_name
            || claim.node_name.is_empty()
            || claim.node_name.contains('\n')
        {
            return Err(DataDirError::BadName(claim.node_name.clone()));
        }
        let LockedDir { path, found, lock } = self;
        let failed = |source| io_error(&path, source);
        let created = found.is_none();
        let mut identity = match found {
            Some(found) => check_claim(&path, found, claim)?,
            None => Identity {
                cluster: claim.cluster,
                node: claim.node,
                node_name: claim.node_name.clone(),
                directory: claim.new_directory,
                incarnation: 0,
            },
        };
        identity.incarnation = next_incarnation(identity.incarnation, claim.new_start);
        write_atomically(&**disk, &path, IDENTITY, identity.encode().as_bytes()).map_err(failed)?;
        sync_parent(&**disk, &path).map_err(failed)?;
        Ok(DataDir { path, identity, created, _lock: lock })
    }
}

/// An open data directory, locked until it is dropped.
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    created: bool,
    _lock: Box<dyn DirectoryLock>,
}

impl DataDir {
    /// Opens the directory for the node that claims it, or creates it; counts a new incarnation, durably.
    ///
    /// # Errors
    /// As for [`LockedDir::open`] and [`LockedDir::claim`].
    pub fn open(disk: &Arc<dyn Disk>, directory: &Path, claim: &Claim) -> Result<DataDir, DataDirError> {
        LockedDir::open(disk, directory)?.claim(disk, claim)
    }

    /// What a directory says it is, without opening it; `None` when it does not exist or was never used.
    pub fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Identity>, DataDirError> {
        let path = directory.join(IDENTITY);
        let failed = |source| io_error(directory, source);
        if !disk.exists(&path).map_err(failed)? {
            return Ok(None);
        }
        let bytes = disk.open(&path).and_then(|file| read_all(&*file)).map_err(failed)?;
        Identity::decode(directory, &path, &bytes).map(Some)
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// True when this opening created it.
    pub fn created(&self) -> bool {
        self.created
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the write-ahead log is.
    pub fn wal_path(&self) -> PathBuf {
        self.path.join("wal")
    }

    /// Where the engine is.
    pub fn engine_path(&self) -> PathBuf {
        self.path.join(ENGINE)
    }
}

fn io_error(directory: &Path, source: io::Error) -> DataDirError {
    let directory = directory.to_path_buf();
    match source.kind() {
        // Making a directory where a file is fails with "already exists".
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            DataDirError::NotADirectory { directory, source }
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            DataDirError::NotWritable { directory, source }
        }
        _ => DataDirError::Io { directory, source },
    }
}

/// Refuses a directory with foreign contents, before anything is put there.
fn check_is_ours(disk: &dyn Disk, directory: &Path) -> Result<(), DataDirError> {
    let names = disk.list(directory).map_err(|source| io_error(directory, source))?;
    if names.iter().any(|name| name == IDENTITY) {
        return Ok(());
    }
    if let Some(found) = names.iter().find(|name| LATER_PIECES.contains(&name.as_str())) {
        let (directory, found) = (directory.to_path_buf(), found.clone());
        return Err(DataDirError::IdentityMissing { directory, found });
    }
    // What a crash during the first opening leaves, what a new file system holds, and the certificates that a node makes for
    // itself before it can ask the others who it is.
    let harmless = [LOCK_FILE, "IDENTITY.tmp", "lost+found", "fixtures"];
    if names.iter().any(|name| name == OF_ETCD) {
        return Err(DataDirError::OfEtcd(directory.to_path_buf()));
    }
    let foreign = names.iter().any(|name| !harmless.contains(&name.as_str()));
    if foreign { Err(DataDirError::NotHadron(directory.to_path_buf())) } else { Ok(()) }
}

fn check_claim(directory: &Path, found: Identity, claim: &Claim) -> Result<Identity, DataDirError> {
    let directory = directory.to_path_buf();
    if found.cluster != claim.cluster {
        return Err(DataDirError::OtherCluster { directory, found: found.cluster, expected: claim.cluster });
    }
    if found.node != claim.node {
        return Err(DataDirError::OtherNode {
            directory,
            found: found.node,
            found_name: found.node_name,
            expected: claim.node,
            expected_name: claim.node_name.clone(),
        });
    }
    // A node is its id; its name may change.
    Ok(Identity { node_name: claim.node_name.clone(), ..found })
}

impl Identity {
    fn encode(&self) -> String {
        let body = format!(
            "{TITLE}\nformat {FORMAT}\ncluster {:016x}\nnode {:016x}\nname {}\ndirectory {:016x}\nincarnation {}\n",
            self.cluster, self.node.0, self.node_name, self.directory, self.incarnation
        );
        format!("{body}checksum {:08x}\n", crc32c::crc32c(body.as_bytes()))
    }

    fn decode(directory: &Path, file: &Path, bytes: &[u8]) -> Result<Identity, DataDirError> {
        let damaged = |what: &str| DataDirError::Damaged { file: file.to_path_buf(), what: what.into() };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
        let (body, checksum) = text.rsplit_once("checksum ").ok_or_else(|| damaged("it has no checksum"))?;
        if checksum != format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(damaged("its checksum does not fit"));
        }
        let mut fields = Fields(body.lines());
        // Title, format and checksum stay as they are in every format to come.
        let format = match fields.0.next() {
            Some(TITLE) => fields.next("format").and_then(|value| value.parse().ok()),
            _ => None,
        };
        match format {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(DataDirError::NewerFormat { directory: directory.to_path_buf(), found });
            }
            _ => return Err(damaged("its format is unknown")),
        }
        fields.identity().ok_or_else(|| damaged("a field is missing"))
    }
}

/// Lines of the form `<name> <value>`.
struct Fields<'a>(std::str::Lines<'a>);

impl<'a> Fields<'a> {
    fn next(&mut self, name: &str) -> Option<&'a str> {
        self.0.next()?.strip_prefix(name)?.strip_prefix(' ')
    }

    fn hex(&mut self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.next(name)?, 16).ok()
    }

    fn identity(&mut self) -> Option<Identity> {
        Some(Identity {
            cluster: self.hex("cluster")?,
            node: NodeId(self.hex("node")?),
            node_name: self.next("name")?.to_owned(),
            directory: self.hex("directory")?,
            incarnation: self.next("incarnation")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::disk::{MemoryDisk, RealDisk};

    fn claim() -> Claim {
        Claim { cluster: 0xc1, node: NodeId(7), node_name: "n1".into(), new_directory: 0xd1, new_start: 0xe1 }
    }

    fn memory() -> (MemoryDisk, Arc<dyn Disk>, &'static Path) {
        let disk = MemoryDisk::new();
        (disk.clone(), Arc::new(disk), Path::new("/data/n1"))
    }

    fn refusal(disk: &Arc<dyn Disk>, path: &Path, claim: &Claim) -> String {
        DataDir::open(disk, path, claim).err().unwrap().to_string()
    }

    #[test]
    fn counts_incarnations_and_keeps_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/n1");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        assert_eq!(DataDir::read(&*disk, &path).unwrap(), None);
        for start in 1..4 {
            let mut claim = claim();
            claim.new_directory += start;
            claim.new_start = 10 - start as u32;
            let opened = DataDir::open(&disk, &path, &claim).unwrap();
            assert_eq!(opened.created(), start == 1);
            assert_eq!(starts(opened.identity().incarnation), start);
            assert_eq!(opened.identity().incarnation, start << 32 | (10 - start));
            assert_eq!(opened.identity().directory, 0xd2);
            assert_eq!(DataDir::read(&*disk, &path).unwrap().as_ref(), Some(opened.identity()));
            assert!(opened.wal_path().starts_with(opened.path()));
            assert!(opened.engine_path().starts_with(opened.path()));
        }
    }

    #[test]
    fn an_incarnation_survives_every_crash() {
        for seed in 0..50 {
            let (memory, disk, path) = memory();
            let mut last = 0;
            for round in 0..4 {
                let opened = DataDir::open(&disk, path, &claim()).unwrap();
                assert!(opened.identity().incarnation > last);
                last = opened.identity().incarnation;
                memory.crash(seed * 10 + round);
            }
        }
    }

    #[test]
    fn refuses_what_is_not_its_own() {
        let (memory, disk, path) = memory();
        let opened = DataDir::open(&disk, path, &claim()).unwrap();
        assert!(refusal(&disk, path, &claim()).contains("in use by another process"));
        drop(opened);
        let other = Claim { cluster: 0xc2, ..claim() };
        assert!(
            refusal(&disk, path, &other)
                .contains("belongs to cluster 00000000000000c1, not to 00000000000000c2")
        );
        let other = Claim { node: NodeId(8), node_name: "n2".into(), ..claim() };
        assert!(refusal(&disk, path, &other).contains("node n1 (0000000000000007), not to n2"));
        let renamed = Claim { node_name: "n3".into(), ..claim() };
        assert_eq!(DataDir::open(&disk, path, &renamed).unwrap().identity().node_name, "n3");
        assert_eq!(DataDir::read(&*disk, path).unwrap().unwrap().node_name, "n3");
        let other = Claim { node_name: "a\nb".into(), ..claim() };
        assert!(refusal(&disk, path, &other).contains("no name"));
        memory.flip_bit(&path.join(IDENTITY), 30, 0).unwrap();
        assert!(refusal(&disk, path, &claim()).contains("IDENTITY is damaged"));
    }

    #[test]
    fn refuses_foreign_contents_and_leaves_them_alone() {
        let (_, disk, path) = memory();
        disk.create_dir(path).unwrap();
        disk.create(&path.join("photo.jpg")).unwrap();
        assert!(refusal(&disk, path, &claim()).contains("not a Hadron data directory"));
        assert_eq!(disk.list(path).unwrap(), ["photo.jpg"]);
    }

    /// It was told to empty it.
    #[test]
    fn who_starts_on_the_data_of_an_etcd_is_told_how_to_take_them_over() {
        let (memory, disk, path) = memory();
        memory.create_dir(&path.join("member")).unwrap();
        let refused = refusal(&disk, path, &claim());
        assert!(refused.contains("snapshot restore") && !refused.contains("empty it"), "{refused}");
    }

    #[test]
    fn a_directory_in_use_that_lost_its_identity_is_refused_by_name_and_never_called_foreign() {
        for piece in LATER_PIECES {
            let (_, disk, path) = memory();
            drop(DataDir::open(&disk, path, &claim()).unwrap());
            disk.create(&path.join(piece)).unwrap();
            disk.remove(&path.join(IDENTITY)).unwrap();
            let text = refusal(&disk, path, &claim());
            assert!(
                text.contains(&format!("its file IDENTITY is missing, although {piece} is there")),
                "{text}"
            );
            assert!(!disk.exists(&path.join(IDENTITY)).unwrap());
        }
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        for path in [path.clone(), path.join("below")] {
            let text = refusal(&disk, &path, &claim());
            assert!(text.contains(&path.display().to_string()) && text.contains("is a file"), "{text}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named_with_the_way_out() {
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem] {
            let text = io_error(Path::new("/data/n1"), kind.into()).to_string();
            assert!(text.starts_with("data directory /data/n1 cannot be written"), "{text}");
        }
    }

    #[test]
    fn refuses_a_newer_format() {
        let (_, disk, path) = memory();
        disk.create_dir(path).unwrap();
        let body = format!("{TITLE}\nformat 2\nwhatever\n");
        let text = format!("{body}checksum {:08x}\n", crc32c::crc32c(body.as_bytes()));
        write_atomically(&*disk, path, IDENTITY, text.as_bytes()).unwrap();
        assert!(refusal(&disk, path, &claim()).contains("has format 2; this version reads up to 1"));
    }
}
