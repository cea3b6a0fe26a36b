//! `snapshot save`: the data of one member as a file.
//!
//! The file has its name only when it is complete, matches the SHA-256 at its end and is on disk; until then it is `NAME.part`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use hadron_proto::etcdserverpb::SnapshotRequest;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::failure::{Exit, Failure};
use super::print::write_out;
use super::{Global, Session};
use crate::client::{CallError, Client};

/// The data are whole sectors; what is more than that is their SHA-256.
const SECTOR: u64 = 512;
const CHECKSUM: usize = SHA256_OUTPUT_LEN;

/// Subcommands of `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Save the data of a member to a file
    Save {
        /// The file
        #[arg(value_name = "FILE")]
        arguments: Vec<OsString>,
    },
}

impl Snapshot {
    /// Runs the command. It takes as long as it takes, unless a time was asked for.
    pub(super) async fn run(self, global: Global, line: &[OsString]) -> Result<(), Failure> {
        let Snapshot::Save { arguments } = self;
        let [file] = arguments.as_slice() else {
            return Err(Failure::arguments("snapshot save expects one argument <filename>"));
        };
        let session = Session::new(global)?;
        let interrupted = |failure: Failure| failure.exiting(Exit::Interrupted);
        let saving = save(&session.client, Path::new(file));
        let version = match is_bounded(line) {
            true => match tokio::time::timeout(session.client.command_timeout, saving).await {
                Ok(result) => result,
                Err(_) => Err(CallError::Timeout.into()),
            },
            false => saving.await,
        };
        let version = version.map_err(interrupted)?;
        let mut text = format!("Snapshot saved at {}\n", file.to_string_lossy());
        if !version.is_empty() {
            text.push_str(&format!("Server version {version}\n"));
        }
        write_out(text.as_bytes())
    }
}

/// Whether `--command-timeout` was given.
fn is_bounded(line: &[OsString]) -> bool {
    let is_flag = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"--command-timeout");
    line.iter().any(is_flag)
        || std::env::var_os("ETCDCTL_COMMAND_TIMEOUT").is_some_and(|text| !text.is_empty())
}

/// Saves a snapshot; the version of the server, if it tells.
async fn save(client: &Client, file: &Path) -> Result<String, Failure> {
    if client.endpoints.len() != 1 {
        return Err(Failure::error(format_args!(
            "snapshot must be requested to one selected node, not multiple [{}]",
            client.endpoints.join(" ")
        )));
    }
    let part = Part::create(file)?;
    let mut maintenance =
        MaintenanceClient::new(client.connect().await?).max_decoding_message_size(usize::MAX);
    let answers = maintenance.snapshot(SnapshotRequest {}).await.map_err(CallError::Refused)?;
    let mut answers = answers.into_inner();
    let (mut check, mut version) = (Check::new(), String::new());
    while let Some(answer) = answers.message().await.map_err(CallError::Refused)? {
        if !answer.version.is_empty() {
            version = answer.version;
        }
        check.add(&answer.blob);
        (&part.file)
            .write_all(&answer.blob)
            .map_err(|error| Failure::error(format_args!("could not write snapshot: {error}")))?;
    }
    check.finish().map_err(Failure::error)?;
    part.become_file(file)?;
    Ok(version)
}

/// A file that is not complete, removed when it does not become so.
struct Part {
    path: PathBuf,
    /// Locked, so that nobody else writes it at the same time.
    file: File,
    is_complete: bool,
}

impl Part {
    /// Readable for its owner only, since it holds everything.
    fn create(file: &Path) -> Result<Part, Failure> {
        let mut path = file.as_os_str().to_owned();
        path.push(OsStr::new(".part"));
        let path = PathBuf::from(path);
        match open_alone(&path) {
            Ok(file) => Ok(Part { path, file, is_complete: false }),
            Err(error) => {
                let (path, text) = (path.to_string_lossy(), error.to_string());
                let reason = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
                Err(Failure::error(format_args!("could not open {path} (open {path}: {reason})")))
            }
        }
    }

    fn become_file(mut self, file: &Path) -> Result<(), Failure> {
        let failed = |what: String| move |error| Failure::error(format_args!("{what} ({error})"));
        self.file.sync_all().map_err(failed("could not fsync snapshot".to_owned()))?;
        let (from, to) = (self.path.to_string_lossy(), file.to_string_lossy());
        fs::rename(&self.path, file).map_err(failed(format!("could not rename {from} to {to}")))?;
        self.is_complete = true;
        // A name is on disk when its directory is.
        let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
        let synced =
            File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
        synced.map_err(failed("could not fsync the directory of the snapshot".to_owned()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a file that nobody else writes, and empties it.
fn open_alone(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let is_still = |file: &File| Ok::<_, io::Error>(file.metadata()?.ino() == fs::metadata(path)?.ino());
    // Some file systems know no locks. And it may have got its name meanwhile, and is somebody's snapshot then.
    let is_locked = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
    if is_locked || !is_still(&file).unwrap_or(false) {
        return Err(io::Error::other("another snapshot is being saved there"));
    }
    file.set_len(0)?;
    Ok(file)
}

/// Compares what comes with the SHA-256 at its end, without knowing beforehand where that is.
struct Check {
    context: Context,
    /// The last bytes, which may be the checksum.
    tail: Vec<u8>,
    bytes: u64,
}

impl Check {
    fn new() -> Check {
        Check { context: Context::new(&SHA256), tail: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.tail.extend_from_slice(piece);
        let known = self.tail.len().saturating_sub(CHECKSUM);
        self.context.update(&self.tail[..known]);
        self.tail.drain(..known);
    }

    /// What is wrong, in `etcdctl`'s words.
    fn finish(self) -> Result<(), String> {
        if self.bytes % SECTOR != CHECKSUM as u64 {
            return Err(format!("sha256 checksum not found [bytes: {}]", self.bytes));
        }
        let actual = self.context.finish();
        if actual.as_ref() == self.tail.as_slice() {
            return Ok(());
        }
        Err(format!("expected sha256 {:02x?}, got {:02x?}", self.tail, actual.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use ring::digest::digest;

    use super::*;

    fn check(pieces: &[&[u8]]) -> Result<(), String> {
        let mut check = Check::new();
        pieces.iter().for_each(|piece| check.add(piece));
        check.finish()
    }

    /// Two at a time wrote one file, and the one that ended first said that it was saved.
    #[test]
    #[allow(clippy::unwrap_used)]
    fn one_file_is_saved_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("backup.db");
        let create = || Part::create(&file).map_err(|failure| failure.text.unwrap_or_default());
        let first = create().unwrap();
        (&first.file).write_all(b"first").unwrap();
        assert!(create().map(drop).unwrap_err().contains("another snapshot is being saved there"));
        first.become_file(&file).map_err(|failure| failure.text.unwrap_or_default()).unwrap();
        drop(create().unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"first");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_snapshot_is_whole_however_it_is_cut() {
        let data = [7u8; 1024];
        let mut all = data.to_vec();
        all.extend_from_slice(digest(&SHA256, &data).as_ref());
        for size in [1, 31, 32, 33, 512, 2000] {
            assert_eq!(check(&all.chunks(size).collect::<Vec<_>>()), Ok(()), "{size}");
        }
        all[5] ^= 1;
        assert!(check(&[&all]).is_err_and(|text| text.starts_with("expected sha256 [")));
        assert_eq!(check(&[&all[..1024]]), Err("sha256 checksum not found [bytes: 1024]".to_owned()));
        assert_eq!(check(&[]), Err("sha256 checksum not found [bytes: 0]".to_owned()));
    }
}
