//! Building a backup from a keyspace that runs, in the form of etcd 3.5, which 3.6 migrates by itself. What it holds of members is replaced
//! when it is restored.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use hadron_bolt::Writer;
use hadron_keyspace::{Backup, BackupLease, Keyspace};
use hadron_proto::etcdserverpb as pb;
use prost::Message as _;
use serde_json::json;

use super::StoredLease;

/// Bytes written to the file at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes that are written before one looks again whether there is room for more.
const LOOK_BYTES: usize = 16 << 20;

/// Why there is no backup.
pub(crate) enum Failure {
    /// The keyspace cannot be read.
    Keyspace(hadron_keyspace::Error),
    /// The file cannot be written.
    File(io::Error),
    /// Nobody wants it any more.
    GivenUp,
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

/// Who the members are, as the backup tells.
pub(crate) struct Members {
    /// All of them.
    pub(crate) all: Vec<pb::Member>,
    /// What the cluster calls its version.
    pub(crate) cluster_version: String,
}

/// What a backup asks while it is built.
pub(crate) struct Progress<'a> {
    /// Whether nobody wants it any more: then it is left unfinished.
    pub(crate) is_given_up: &'a dyn Fn() -> bool,
    /// Whether the disk has room for more: others write there too, and how full its pages get nobody knows before.
    pub(crate) check_room: &'a dyn Fn() -> io::Result<()>,
}

/// A backup of what the keyspace is now, in a file without a name in `directory`, and its size. `clock_ms` is the group's clock.
pub(crate) fn build(
    keyspace: &Keyspace,
    clock_ms: u64,
    members: &Members,
    directory: &Path,
    progress: &Progress<'_>,
) -> Result<(File, u64), Failure> {
    let backup = keyspace.backup(clock_ms);
    let file = tempfile::tempfile_in(directory)?;
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, file))?;
    write_tables(&mut writer, &backup, members)?;
    let mut history = writer.bucket(b"key");
    let mut unseen = 0;
    keyspace.visit_backup(&backup, |key, value| {
        if (progress.is_given_up)() {
            return Err(Failure::GivenUp);
        }
        unseen += key.len() + value.len();
        if unseen >= LOOK_BYTES {
            unseen = 0;
            (progress.check_room)()?;
        }
        Ok(history.put(key, value)?)
    })?;
    history.finish()?;
    let (file, bytes) = writer.finish()?;
    let mut file = file.into_inner().map_err(|error| error.into_error())?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, bytes))
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
    let lease = |lease: &BackupLease| {
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
