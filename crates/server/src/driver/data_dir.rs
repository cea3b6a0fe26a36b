//! The data directory: its lock, and the file that says who the node is. `docs/formats/data-dir.md` has the bytes.
//!
//! The incarnation in the file is raised and durable before the node says its first word, so that nobody ever takes
//! two starts for one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::NodeId;
use hadron_node::{Bootstrap, node_id};
use hadron_storage::disk::{DirectoryLock, Disk, read_all, write_atomically};

use super::error::RunError;
use crate::config::Config;

const NODE_FILE: &str = "node";
const MAGIC: &[u8; 8] = b"HADRNODE";
const VERSION: u32 = 1;
/// Magic, version and checksum.
const HEADER_BYTES: usize = 16;

/// An open data directory. Nobody else can open it before it is dropped.
pub(super) struct DataDir {
    path: PathBuf,
    /// Who the node is.
    pub(super) record: NodeRecord,
    _lock: Box<dyn DirectoryLock>,
}

/// What a data directory knows about its node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeRecord {
    /// Made once, at random.
    pub(super) data_dir_id: u64,
    /// Starts so far, this one included.
    pub(super) incarnation: u64,
    /// The node.
    pub(super) node: NodeId,
    /// The pool as it was bootstrapped.
    pub(super) pool: Bootstrap,
}

impl DataDir {
    /// Locks the directory, makes it if need be, checks that it is the configured node's, and counts this start.
    pub(super) fn open(disk: Arc<dyn Disk>, config: &Config) -> Result<DataDir, RunError> {
        let path = config.data_dir.clone();
        disk.create_dir(&path).map_err(RunError::files("creating", &path))?;
        let lock = disk.lock(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => RunError::InUse(path.clone()),
            _ => RunError::files("locking", &path)(error),
        })?;
        let described = described(config);
        let record = match read(&*disk, &path)? {
            Some(record) => continued(&path, record, described, config)?,
            None => {
                refuse_nameless_data(&*disk, &path, config)?;
                described
            }
        };
        let file = path.join(NODE_FILE);
        write_atomically(&*disk, &path, NODE_FILE, &encode(&record))
            .map_err(RunError::files("writing", file))?;
        Ok(DataDir { path, record, _lock: lock })
    }

    /// Where the engine lives.
    pub(super) fn engine(&self) -> PathBuf {
        self.path.join("engine")
    }
}

/// A new record for the node that the flags describe.
fn described(config: &Config) -> NodeRecord {
    let nodes: Vec<(String, Vec<String>)> = config
        .initial_cluster
        .iter()
        .map(|member| (member.name.clone(), vec![member.peer_url.to_string()]))
        .collect();
    NodeRecord {
        data_dir_id: rand::random::<u64>().max(1),
        incarnation: 1,
        node: node_id(&config.initial_cluster_token, &[config.advertise_peer_url.to_string()]),
        pool: Bootstrap::derive(&config.initial_cluster_token, &nodes),
    }
}

/// The stored record, one start later, if it is the record of the described node.
fn continued(
    path: &Path,
    stored: NodeRecord,
    described: NodeRecord,
    config: &Config,
) -> Result<NodeRecord, RunError> {
    // Without --initial-cluster the flags say nothing about the pool: the name decides, as in etcd, whose later
    // starts need no cluster flags.
    let pool_is_not_described = described.pool.members.len() == 1 && stored.pool.members.len() > 1;
    let is_same = match pool_is_not_described {
        true => stored.name() == Some(&config.name),
        false => (stored.node, stored.pool.cluster_id) == (described.node, described.pool.cluster_id),
    };
    if is_same {
        return Ok(NodeRecord { incarnation: stored.incarnation + 1, ..stored });
    }
    Err(RunError::OtherNode { path: path.into(), found: stored.describe(), expected: described.describe() })
}

impl NodeRecord {
    fn name(&self) -> Option<&String> {
        self.pool.members.iter().find(|member| member.node() == self.node).map(|member| &member.name)
    }

    fn describe(&self) -> String {
        let name = self.name().map_or("unnamed", String::as_str);
        format!("node {:x} ({name}) of cluster {:x}", self.node.0, self.pool.cluster_id)
    }
}

/// Data without a record was not written by a node that may continue it.
fn refuse_nameless_data(disk: &dyn Disk, path: &Path, config: &Config) -> Result<(), RunError> {
    for directory in [&path.join("engine"), &config.wal_dir] {
        let exists = disk.exists(directory).map_err(RunError::files("reading", directory))?;
        if exists && !disk.list(directory).map_err(RunError::files("reading", directory))?.is_empty() {
            let what = format!(
                "missing, although {} holds data: restore it, or start with an empty directory",
                directory.display()
            );
            return Err(RunError::BadRecord { path: path.join(NODE_FILE), what });
        }
    }
    Ok(())
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<NodeRecord>, RunError> {
    let file = path.join(NODE_FILE);
    if !disk.exists(&file).map_err(RunError::files("reading", &file))? {
        return Ok(None);
    }
    let opened = disk.open(&file).and_then(|opened| read_all(&*opened));
    let bytes = opened.map_err(RunError::files("reading", &file))?;
    decode(bytes.into()).map(Some).map_err(|what| RunError::BadRecord { path: file, what })
}

fn encode(record: &NodeRecord) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u64_le(record.data_dir_id);
    body.put_u64_le(record.incarnation);
    body.put_u64_le(record.node.0);
    body.put_slice(&record.pool.to_bytes());
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body.len());
    bytes.put_slice(MAGIC);
    bytes.put_u32_le(VERSION);
    bytes.put_u32_le(crc32c::crc32c(&body));
    bytes.put_slice(&body);
    bytes.freeze()
}

fn decode(mut bytes: Bytes) -> Result<NodeRecord, String> {
    let damaged = || "damaged: restore it from a copy, or rebuild this member from the others".to_owned();
    if bytes.len() < HEADER_BYTES + 24 || bytes.split_to(8) != MAGIC[..] {
        return Err(damaged());
    }
    let version = bytes.get_u32_le();
    if version > VERSION {
        return Err(format!("has format {version}, this version reads up to {VERSION}: use a newer one"));
    }
    if bytes.get_u32_le() != crc32c::crc32c(&bytes) {
        return Err(damaged());
    }
    let (data_dir_id, incarnation, node) =
        (bytes.get_u64_le(), bytes.get_u64_le(), NodeId(bytes.get_u64_le()));
    let pool = Bootstrap::from_bytes(bytes).map_err(|_| damaged())?;
    Ok(NodeRecord { data_dir_id, incarnation, node, pool })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_storage::disk::MemoryDisk;

    use super::super::tests::config;
    use super::*;

    fn open(disk: &Arc<MemoryDisk>, config: &Config) -> Result<DataDir, RunError> {
        DataDir::open(disk.clone(), config)
    }

    fn disk() -> Arc<MemoryDisk> {
        Arc::new(MemoryDisk::default())
    }

    #[test]
    fn every_start_is_counted_and_the_identity_stays() {
        let (disk, config) = (disk(), config("a", "/data"));
        let first = open(&disk, &config).unwrap().record;
        let second = open(&disk, &config).unwrap().record;
        assert_eq!(first.incarnation, 1);
        assert_ne!(first.data_dir_id, 0);
        assert_eq!(second, NodeRecord { incarnation: 2, ..first });
    }

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let (disk, config) = (disk(), config("a", "/data"));
        let _first = open(&disk, &config).unwrap();
        assert!(matches!(open(&disk, &config), Err(RunError::InUse(_))));
    }

    #[test]
    fn another_cluster_s_directory_is_refused_and_says_whose_it_is() {
        let (disk, mut config) = (disk(), config("a", "/data"));
        let first = open(&disk, &config).unwrap().record;
        config.initial_cluster_token = "other".into();
        let error = open(&disk, &config).err().unwrap().to_string();
        assert!(error.contains(&format!("belongs to {}", first.describe())), "{error}");
        config.initial_cluster_token = "test".into();
        assert_eq!(open(&disk, &config).unwrap().record.incarnation, 2, "the refusal changed nothing");
    }

    #[test]
    fn every_flipped_bit_of_the_record_is_noticed() {
        let record = open(&disk(), &config("a", "/data")).unwrap().record;
        let bytes = encode(&record);
        assert_eq!(decode(bytes.clone()), Ok(record));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(damaged.into()).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(decode(bytes.slice(..end)).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn data_without_a_record_is_not_adopted() {
        let (disk, config) = (disk(), config("a", "/data"));
        disk.create_dir(&config.wal_dir).unwrap();
        disk.create(&config.wal_dir.join("something")).unwrap();
        let error = open(&disk, &config).err().unwrap().to_string();
        assert!(error.contains("/data/node: missing, although"), "{error}");
    }
}
