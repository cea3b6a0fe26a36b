//! Whose data directory it is, and which pool its node belongs to. `docs/formats/data-dir.md` has the bytes.
//!
//! [`hadron_storage::data_dir`] guards the directory and its identity; here the flags become a claim to it. The pool as
//! it was bootstrapped is kept in a file beside the identity, so that later starts need no cluster flags.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::NodeId;
use hadron_node::{Bootstrap, node_id};
use hadron_storage::data_dir::{Claim, DataDir};
use hadron_storage::disk::{Disk, read_all, write_atomically};

use super::error::RunError;
use crate::config::Config;

const POOL_FILE: &str = "POOL";
const MAGIC: &[u8; 8] = b"HADRPOOL";
const VERSION: u32 = 1;
/// Magic, version and checksum.
const HEADER_BYTES: usize = 16;

/// The node's place on disk, and who it is. Nobody else can open it before it is dropped.
pub(super) struct Home {
    /// The directory, locked.
    pub(super) directory: DataDir,
    /// The pool as it was bootstrapped.
    pub(super) pool: Bootstrap,
}

impl Home {
    /// Opens the directory, or makes it, if it is the configured node's; counts this start.
    pub(super) fn open(disk: &Arc<dyn Disk>, config: &Config) -> Result<Home, RunError> {
        let described = described_pool(config);
        let stored = read_pool(&**disk, &config.data_dir)?;
        // Without --initial-cluster the flags say nothing about the pool; the stored one and the name decide then.
        let pool = match &stored {
            Some(stored) if described.members.len() == 1 && stored.members.len() > 1 => stored.clone(),
            _ => described,
        };
        let claim = Claim {
            cluster: pool.cluster_id,
            node: node_named(&pool, config),
            node_name: config.name.clone(),
            new_directory: rand::random::<u64>().max(1),
        };
        let directory = DataDir::open(disk, &config.data_dir, &claim)?;
        if stored.is_none() {
            let failed = RunError::files("writing", config.data_dir.join(POOL_FILE));
            write_atomically(&**disk, &config.data_dir, POOL_FILE, &encode(&pool)).map_err(failed)?;
        }
        Ok(Home { directory, pool })
    }

    /// The node's id.
    pub(super) fn node(&self) -> NodeId {
        self.directory.identity().node
    }

    /// The directory's random identity.
    pub(super) fn data_dir_id(&self) -> u64 {
        self.directory.identity().directory
    }

    /// Starts so far, this one included.
    pub(super) fn incarnation(&self) -> u64 {
        self.directory.identity().incarnation
    }
}

/// The pool that the flags describe.
fn described_pool(config: &Config) -> Bootstrap {
    let nodes: Vec<(String, Vec<String>)> = config
        .initial_cluster
        .iter()
        .map(|member| (member.name.clone(), vec![member.peer_url.to_string()]))
        .collect();
    Bootstrap::derive(&config.initial_cluster_token, &nodes)
}

/// The node in `pool` with the configured name; if there is none, the one that the flags describe, which is refused.
fn node_named(pool: &Bootstrap, config: &Config) -> NodeId {
    let named = pool.members.iter().find(|member| member.name == config.name);
    named.map_or_else(
        || node_id(&config.initial_cluster_token, &[config.advertise_peer_url.to_string()]),
        |member| member.node(),
    )
}

fn read_pool(disk: &dyn Disk, directory: &Path) -> Result<Option<Bootstrap>, RunError> {
    let file = directory.join(POOL_FILE);
    if !disk.exists(&file).map_err(RunError::files("reading", &file))? {
        return Ok(None);
    }
    let bytes = disk.open(&file).and_then(|opened| read_all(&*opened));
    let bytes = bytes.map_err(RunError::files("reading", &file))?;
    decode(bytes.into()).map(Some).map_err(|what| RunError::BadPool { file, what })
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
    let damaged = || "damaged: restore it from a copy, or from another member of the same pool".to_owned();
    if bytes.len() < HEADER_BYTES || bytes.split_to(MAGIC.len()) != MAGIC[..] {
        return Err(damaged());
    }
    let version = bytes.get_u32_le();
    if version > VERSION {
        return Err(format!("has format {version}, this version reads up to {VERSION}: use a newer one"));
    }
    if bytes.get_u32_le() != crc32c::crc32c(&bytes) || version == 0 {
        return Err(damaged());
    }
    Bootstrap::from_bytes(bytes).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_storage::disk::MemoryDisk;

    use super::super::tests::config;
    use super::*;
    use crate::config::InitialMember;

    fn disk() -> Arc<dyn Disk> {
        Arc::new(MemoryDisk::default())
    }

    fn three() -> Config {
        let mut config = config("a", "/data");
        for (name, port) in [("b", 11), ("c", 12)] {
            let peer_url = format!("http://127.0.0.1:{port}").parse().unwrap();
            config.initial_cluster.push(InitialMember { name: name.into(), peer_url });
        }
        config
    }

    #[test]
    fn every_start_is_counted_and_the_identity_stays() {
        let (disk, config) = (disk(), config("a", "/data"));
        let first = Home::open(&disk, &config).unwrap();
        let (id, node) = (first.data_dir_id(), first.node());
        assert_eq!(first.incarnation(), 1);
        assert_ne!(id, 0);
        drop(first);
        let second = Home::open(&disk, &config).unwrap();
        assert_eq!((second.data_dir_id(), second.node(), second.incarnation()), (id, node, 2));
    }

    #[test]
    fn another_cluster_s_directory_is_refused_and_left_alone() {
        let (disk, mut config) = (disk(), config("a", "/data"));
        drop(Home::open(&disk, &config).unwrap());
        config.initial_cluster_token = "other".into();
        let error = Home::open(&disk, &config).err().unwrap().to_string();
        assert!(error.starts_with("data directory /data belongs to cluster"), "{error}");
        config.initial_cluster_token = "test".into();
        assert_eq!(Home::open(&disk, &config).unwrap().incarnation(), 2);
    }

    #[test]
    fn later_starts_need_no_cluster_flags_but_the_right_name() {
        let (disk, all) = (disk(), three());
        let pool = Home::open(&disk, &all).unwrap().pool;
        assert_eq!(pool.members.len(), 3);
        let alone = config("a", "/data");
        let again = Home::open(&disk, &alone).unwrap();
        assert_eq!((&again.pool, again.incarnation()), (&pool, 2));
        drop(again);
        let error = Home::open(&disk, &config("b", "/data")).err().unwrap().to_string();
        assert!(error.contains("belongs to node a"), "{error}");
    }

    #[test]
    fn every_flipped_bit_of_the_pool_is_noticed() {
        let pool = described_pool(&three());
        let bytes = encode(&pool);
        assert_eq!(decode(bytes.clone()), Ok(pool));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(damaged.into()).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(decode(bytes.slice(..end)).is_err(), "{end} bytes");
        }
    }
}
