//! `Snapshot`: a backup as etcd makes it, a bbolt file followed by its SHA-256, so that etcd's own tools take it.
//!
//! The file is built in the node's directory, from one moment of the keyspace, while everything goes on; it has no name there, so it
//! is gone when the call ends, however it ends. It has the form of etcd 3.5, which 3.6 migrates by itself. What it holds of members is
//! replaced when it is restored.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::stream::unfold;
use hadron_bolt::Writer;
use hadron_keyspace::{Backup, Keyspace};
use hadron_proto::etcdserverpb as pb;
use prost::Message as _;
use ring::digest;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::backend::Backend;
use super::context::Context;
use super::error::{EtcdError, refusal};

/// Bytes of the file in one answer.
const PART_BYTES: usize = 64 << 10;
/// Bytes written to the file at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Calls at a time: each has a copy of all data on the disk.
pub(super) const AT_ONCE: usize = 2;
/// What a backup leaves free on the disk: a node whose disk is full must stop.
const LEFT_FREE_BYTES: u64 = 256 << 20;

/// A lease as etcd stores it.
#[derive(Clone, PartialEq, prost::Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

/// Why there is no backup.
enum Failure {
    Keyspace(hadron_keyspace::Error),
    File(io::Error),
}

impl From<hadron_keyspace::Error> for Failure {
    fn from(error: hadron_keyspace::Error) -> Failure {
        Failure::Keyspace(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::File(error)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        match failure {
            Failure::Keyspace(error) => refusal(error),
            Failure::File(error) => {
                Status::unavailable(format!("hadron: the backup cannot be written: {error}"))
            }
        }
    }
}

/// Who the members are, as the backup tells.
struct Members {
    all: Vec<pb::Member>,
    cluster_version: String,
}

impl<B: Backend> Context<B> {
    /// The answers to a call of `Snapshot`.
    pub(super) async fn snapshot(
        &self,
    ) -> Result<impl Stream<Item = Result<pb::SnapshotResponse, Status>> + Send + use<B>, Status> {
        let turn = Arc::clone(&self.snapshots).try_acquire_owned();
        let turn = turn.map_err(|_| EtcdError::TooManyRequests)?;
        let keyspace = self.keyspace()?;
        let clock_ms = self.backend.group_clock_ms(self.group);
        let cluster_version = self.backend.identity().cluster_version.clone();
        let members = Members { all: self.backend.members(), cluster_version };
        let directory = self.snapshot_dir.clone();
        let build = move || build(&keyspace, clock_ms, &members, directory);
        let built = tokio::task::spawn_blocking(build).await;
        let (file, bytes) = built.map_err(|_| Status::unavailable("hadron: the node stops"))??;
        let hash = digest::Context::new(&digest::SHA256);
        Ok(unfold(Some(Sending { file, left: bytes, hash, _turn: turn }), next))
    }
}

fn build(
    keyspace: &Arc<Keyspace>,
    clock_ms: u64,
    members: &Members,
    directory: PathBuf,
) -> Result<(File, u64), Failure> {
    check_room(&directory, keyspace.db_bytes())?;
    let backup = keyspace.backup(clock_ms);
    let file = tempfile::tempfile_in(directory)?;
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, file))?;
    write_tables(&mut writer, &backup, members)?;
    let mut history = writer.bucket(b"key");
    keyspace.visit_backup(&backup, |key, value| Ok::<(), Failure>(history.put(key, value)?))?;
    history.finish()?;
    let (file, bytes) = writer.finish()?;
    let mut file = file.into_inner().map_err(|error| error.into_error())?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, bytes))
}

/// Refuses what would leave too little room on the disk. Pages that are not full make a backup larger than what is in it.
fn check_room(directory: &Path, db_bytes: u64) -> io::Result<()> {
    let disk = rustix::fs::statvfs(directory)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = (db_bytes / 2).saturating_add(db_bytes).saturating_add(LEFT_FREE_BYTES);
    if needed <= free {
        return Ok(());
    }
    let text = format!("{} has {free} bytes free, and needs {needed}: ask another node", directory.display());
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// Writes a bucket with these keys, in any order.
fn write_bucket<F: Write + Seek>(
    writer: &mut Writer<F>,
    name: &str,
    mut pairs: Vec<(Vec<u8>, Vec<u8>)>,
) -> io::Result<()> {
    pairs.sort();
    let mut bucket = writer.bucket(name.as_bytes());
    for (key, value) in pairs {
        bucket.put(&key, &value)?;
    }
    bucket.finish()
}

/// Everything but the history.
fn write_tables<F: Write + Seek>(
    writer: &mut Writer<F>,
    backup: &Backup,
    members: &Members,
) -> io::Result<()> {
    let named = |name: &[u8], value: Vec<u8>| (name.to_vec(), value);
    write_bucket(writer, "meta", meta(backup, members))?;
    let lease = |lease: &hadron_keyspace::BackupLease| {
        let stored = StoredLease { id: lease.id, ttl: lease.ttl, remaining_ttl: lease.remaining };
        named(&lease.id.to_be_bytes(), stored.encode_to_vec())
    };
    write_bucket(writer, "lease", backup.leases.iter().map(lease).collect())?;
    let alarms = backup.alarms.iter().map(|alarm| (alarm.encode_to_vec(), Vec::new()));
    write_bucket(writer, "alarm", alarms.collect())?;
    let auth = vec![
        named(b"authEnabled", vec![u8::from(backup.auth.enabled)]),
        named(b"authRevision", backup.auth.revision.to_be_bytes().to_vec()),
    ];
    write_bucket(writer, "auth", auth)?;
    let users = backup.users.iter().map(|user| named(&user.name, user.encode_to_vec()));
    write_bucket(writer, "authUsers", users.collect())?;
    let roles = backup.roles.iter().map(|role| named(&role.name, role.encode_to_vec()));
    write_bucket(writer, "authRoles", roles.collect())?;
    let member = |member: &pb::Member| {
        let mut stored = json!({ "id": member.id, "peerURLs": member.peer_ur_ls, "name": member.name,
            "clientURLs": member.client_ur_ls });
        if member.is_learner {
            stored["isLearner"] = true.into();
        }
        (format!("{:x}", member.id).into_bytes(), stored.to_string().into_bytes())
    };
    write_bucket(writer, "members", members.all.iter().map(member).collect())?;
    write_bucket(writer, "members_removed", Vec::new())?;
    let version = members.cluster_version.clone().into_bytes();
    write_bucket(writer, "cluster", vec![named(b"clusterVersion", version)])
}

fn meta(backup: &Backup, members: &Members) -> Vec<(Vec<u8>, Vec<u8>)> {
    let voters = members.all.iter().filter(|member| !member.is_learner).map(|member| member.id);
    let learners = members.all.iter().filter(|member| member.is_learner).map(|member| member.id);
    let state = json!({ "voters": voters.collect::<Vec<u64>>(), "learners": learners.collect::<Vec<u64>>(),
        "auto_leave": false });
    let mut meta = vec![
        (b"consistent_index".to_vec(), backup.applied.index.to_be_bytes().to_vec()),
        (b"term".to_vec(), backup.applied.term.to_be_bytes().to_vec()),
        (b"confState".to_vec(), state.to_string().into_bytes()),
    ];
    if backup.compact_revision > 0 {
        let revision = [&backup.compact_revision.to_be_bytes()[..], b"_", &[0; 8]].concat();
        meta.push((b"scheduledCompactRev".to_vec(), revision.clone()));
        meta.push((b"finishedCompactRev".to_vec(), revision));
    }
    meta
}

/// A file that is being sent.
struct Sending {
    file: File,
    left: u64,
    hash: digest::Context,
    _turn: OwnedSemaphorePermit,
}

/// The next part of the file, or at last its hash.
async fn next(sending: Option<Sending>) -> Option<(Result<pb::SnapshotResponse, Status>, Option<Sending>)> {
    let mut sending = sending?;
    let answer = |remaining_bytes, blob| pb::SnapshotResponse {
        header: None,
        remaining_bytes,
        blob,
        version: String::new(),
    };
    if sending.left == 0 {
        let hash = sending.hash.finish();
        return Some((Ok(answer(0, Bytes::copy_from_slice(hash.as_ref()))), None));
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut part = vec![0; PART_BYTES.min(usize::try_from(sending.left).unwrap_or(PART_BYTES))];
        sending.file.read_exact(&mut part)?;
        sending.left -= part.len() as u64;
        sending.hash.update(&part);
        Ok::<_, io::Error>((part, sending))
    });
    Some(match read.await {
        Ok(Ok((part, sending))) => (Ok(answer(sending.left, part.into())), Some(sending)),
        Ok(Err(error)) => (Err(Failure::File(error).into()), None),
        Err(_) => (Err(Status::unavailable("hadron: the node stops")), None),
    })
}
