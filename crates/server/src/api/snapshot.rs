//! `Snapshot`: a backup as etcd makes it, a bbolt file followed by its SHA-256, so that etcd's own tools take it.
//!
//! The file is built in the node's directory, from one moment of the keyspace, while everything goes on; it has no name there, so it
//! is gone when the call ends, however it ends.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::Stream;
use futures::stream::unfold;
use hadron_keyspace::Keyspace;
use hadron_proto::etcdserverpb as pb;
use ring::digest;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use super::backend::Backend;
use super::beside;
use super::context::Context;
use super::error::{EtcdError, refusal};
use crate::backup::{Failure, Members, Progress, build};
use crate::metrics::Metrics;

/// Bytes of the file in one answer.
const PART_BYTES: usize = 64 << 10;
/// Calls at a time for each keyspace: each has a copy of all its data on the disk.
pub(super) const AT_ONCE: usize = 2;
/// What a backup leaves free on the disk: a node whose disk is full must stop.
const LEFT_FREE_BYTES: u64 = 256 << 20;

impl From<Failure> for Status {
    fn from(failure: Failure) -> Status {
        match failure {
            Failure::Keyspace(error) => refusal(error),
            Failure::File(error) => {
                Status::unavailable(format!("hadron: the backup cannot be written: {error}"))
            }
            Failure::GivenUp => Status::cancelled("hadron: nobody waits for the backup any more"),
        }
    }
}

impl<B: Backend> Context<B> {
    /// The answers to a call of `Snapshot`.
    pub(super) async fn snapshot(
        &self,
    ) -> Result<impl Stream<Item = Result<pb::SnapshotResponse, Status>> + Send + use<B>, Status> {
        let turn = Arc::clone(&self.snapshots).try_acquire_owned();
        let turn = turn.map_err(|_| EtcdError::TooManyRequests)?;
        let began = Instant::now();
        let keyspace = self.keyspace_to_save().await?;
        let (backend, group) = (self.backend.clone(), self.group);
        let cluster_version = self.backend.identity().cluster_version.clone();
        let members = Members { all: self.members(None), cluster_version };
        let directory = Arc::clone(&self.snapshot_dir);
        // One at a time, so that no other one takes the room that was found.
        let build = move |is_given_up: &dyn Fn() -> bool| {
            // It may have been found damaged meanwhile.
            backend.keyspace(group).filter(|now| Arc::ptr_eq(now, &keyspace)).ok_or(EtcdError::Unhealthy)?;
            // Pages that are not full make it larger, which is seen while it is built.
            check_room(&directory, keyspace.db_bytes()).map_err(Failure::File)?;
            let clock_ms = backend.group_clock_ms(group);
            let progress = Progress { is_given_up, check_room: &|| check_room(&directory, 0) };
            let (file, bytes) = build(&keyspace, clock_ms, &members, &directory, &progress)?;
            Ok::<_, Status>((file, bytes, turn))
        };
        let (file, left, turn) = self.backups.run(build).await??;
        let hash = digest::Context::new(&digest::SHA256);
        let metrics = Arc::clone(&self.metrics);
        Ok(unfold(Some(Sending { file, left, hash, began, metrics, _turn: turn }), next))
    }

    /// The replica with all that is committed. If nobody can tell what that is, the last resort of one whose others are gone: as it is, but
    /// not before it was there once since the start. Until then it may lack what was acknowledged, or have nothing at all.
    async fn keyspace_to_save(&self) -> Result<Arc<Keyspace>, Status> {
        let error = match self.keyspace_after_barrier().await {
            Ok(keyspace) => return Ok(keyspace),
            Err(error) => error,
        };
        let keyspace = self.keyspace()?;
        if keyspace.was_current() {
            return Ok(keyspace);
        }
        Err(Status::unavailable(format!(
            "hadron: this node has not caught up with the others since it was started, so that a backup might lack what was \
             written: ask another node, or try again later ({})",
            error.message()
        )))
    }
}

/// Refuses what would leave too little room on the disk if so many bytes came.
fn check_room(directory: &Path, bytes: u64) -> io::Result<()> {
    let disk = rustix::fs::statvfs(directory)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = bytes.saturating_add(LEFT_FREE_BYTES);
    if needed <= free {
        return Ok(());
    }
    let text = format!("{} has {free} bytes free, and needs {needed}: ask another node", directory.display());
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// A file that is being sent.
struct Sending {
    file: File,
    left: u64,
    hash: digest::Context,
    began: Instant,
    metrics: Arc<Metrics>,
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
        sending.metrics.backup_duration.observe(sending.began.elapsed());
        return Some((Ok(answer(0, Bytes::copy_from_slice(hash.as_ref()))), None));
    }
    let read = beside::run(move || {
        let mut part = vec![0; PART_BYTES.min(usize::try_from(sending.left).unwrap_or(PART_BYTES))];
        sending.file.read_exact(&mut part)?;
        sending.left -= part.len() as u64;
        sending.hash.update(&part);
        Ok::<_, io::Error>((part, sending))
    });
    Some(match read.await {
        Ok(Ok((part, sending))) => (Ok(answer(sending.left, part.into())), Some(sending)),
        Ok(Err(error)) => (Err(Failure::File(error).into()), None),
        Err(stopped) => (Err(stopped), None),
    })
}
