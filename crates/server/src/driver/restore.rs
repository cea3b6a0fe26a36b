//! A data directory from a backup: what `utl snapshot restore` does.
//!
//! Every member of the new cluster is restored from the same file, each into its own directory. The state counts as the first entry of the
//! group's log, whose checksum is a hash of the state; so do the ids of the cluster and its nodes, so that nobody who began with
//! something else can join in.
//!
//! The directory's identity is written last. Until then no node starts on it, and a restore that fails takes away what it made.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hadron_consensus::{DEFAULT_GROUP, HardState, Index, LogPosition, Term};
use hadron_keyspace::{Restore, RestoreError, Restored};
use hadron_proto::etcdserverpb::AlarmMember;
use hadron_storage::data_dir::{Claim, LockedDir};
use hadron_storage::disk::{Disk, RealDisk};
use hadron_storage::engine::{Engine, FjallEngine, FjallOptions};
use hadron_storage::wal::{Options as WalOptions, Record, Wal};

use super::data_dir::derive;
use super::error::RunError;
use super::pool_file;
use super::whole::Places;
use crate::backup::{BackupFile, FileError, LoadError, Loaded, load};
use crate::config::{ConfigError, Initial};

/// What is to be restored, for whom.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The backup.
    pub(crate) file: PathBuf,
    /// Whether its SHA-256 is checked.
    pub(crate) checks: bool,
    /// The node's name.
    pub(crate) name: String,
    /// Where its data are to be: nothing may be there.
    pub(crate) data_dir: PathBuf,
    /// Where its write-ahead log is to be: nothing may be there.
    pub(crate) wal_dir: PathBuf,
    /// What the cluster is to be.
    pub(crate) initial: Initial,
    /// How much higher the newest revision is to be; everything up to it is compacted then.
    pub(crate) bump: u64,
}

/// What was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// The id of the new cluster.
    pub(crate) cluster_id: u64,
    /// The id of the node in it.
    pub(crate) node_id: u64,
    /// The state.
    pub(crate) restored: Restored,
    /// Alarms in the backup, which were not restored.
    pub(crate) alarms: Vec<AlarmMember>,
}

/// Why nothing was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreFailure {
    /// The flags describe no cluster.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backup cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is something where the data are to be.
    #[error("{} is not empty: name another directory, or move it away", .0.display())]
    InUse(PathBuf),
    /// The directory or the log cannot be written.
    #[error(transparent)]
    Directory(#[from] RunError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] RestoreError),
}

impl From<LoadError> for RestoreFailure {
    fn from(error: LoadError) -> RestoreFailure {
        match error {
            LoadError::File(error) => error.into(),
            LoadError::Restore(error) => error.into(),
        }
    }
}

/// Makes the directory.
///
/// # Errors
/// Why it was not; then nothing of it is there.
pub(crate) fn restore(plan: &Plan) -> Result<Made, RestoreFailure> {
    let members = plan.initial.members(&plan.name)?;
    let mut file = BackupFile::open(&plan.file, plan.checks)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    [&plan.data_dir, &plan.wal_dir].into_iter().try_for_each(|directory| check_empty(directory))?;
    let directories = [&plan.data_dir, &plan.wal_dir].map(|path| (path.clone(), path.exists()));
    let locked = LockedDir::open(&disk, &plan.data_dir).map_err(RunError::from)?;
    let mut leftovers = Leftovers { directories: directories.into() };
    let engine_dir = locked.engine_path();
    let mut places = Places::look(&disk, plan.data_dir.clone(), plan.wal_dir.clone(), engine_dir.clone())?;

    let Loaded { restored, alarms } = fill_engine(&mut file, &engine_dir, plan.bump)?;
    let mut pool = derive(plan.initial.token(), &members, restored.checksum);
    let own = pool.members.iter_mut().find(|member| member.name == plan.name);
    let own = own.ok_or_else(|| RunError::Unusable(format!("{} is not among the members", plan.name)))?;
    own.data_dir_id = rand::random::<u64>().max(1);
    let (node, data_dir_id) = (own.node(), own.data_dir_id);
    begin_log(&disk, &plan.wal_dir, data_dir_id, &restored).map_err(RunError::from)?;
    pool_file::write(&*disk, &plan.data_dir, &pool)?;
    places.mark()?;
    let claim = Claim {
        cluster: pool.cluster_id,
        node,
        node_name: plan.name.clone(),
        new_directory: data_dir_id,
        new_start: rand::random(),
    };
    locked.claim(&disk, &claim).map_err(RunError::from)?;
    leftovers.directories.clear();
    Ok(Made { cluster_id: pool.cluster_id, node_id: node.0, restored, alarms })
}

fn fill_engine(file: &mut BackupFile, directory: &Path, bump: u64) -> Result<Loaded, RestoreFailure> {
    let engine = FjallEngine::open(directory, &FjallOptions::default())
        .map_err(|error| RunError::Engine { path: directory.to_path_buf(), error })?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    Ok(load(file, Restore::new(engine, DEFAULT_GROUP.0)?, bump)?)
}

/// A log that goes on behind the restored state.
fn begin_log(
    disk: &Arc<dyn Disk>,
    directory: &Path,
    log_id: u64,
    restored: &Restored,
) -> Result<(), hadron_storage::wal::WalError> {
    let Restored { term, index, checksum, .. } = *restored;
    let (term, index) = (Term(term), Index(index));
    let options = WalOptions { log_id, ..WalOptions::default() };
    let (mut wal, _) = Wal::open(disk.clone(), directory, options)?;
    wal.append(&[
        Record::HardState(DEFAULT_GROUP, HardState { term, voted_for: None, commit: index }),
        Record::Floor(DEFAULT_GROUP, LogPosition { term, index, checksum }),
    ])?;
    wal.seal()
}

/// What a file system has at its top from the start.
const LOST_AND_FOUND: &str = "lost+found";

fn check_empty(directory: &Path) -> Result<(), RestoreFailure> {
    let failed = RunError::files("reading", directory);
    match std::fs::read_dir(directory) {
        Ok(mut entries) => {
            match entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOST_AND_FOUND)) {
                true => Ok(()),
                false => Err(RestoreFailure::InUse(directory.to_path_buf())),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error).into()),
    }
}

/// What is taken away unless all went well: directories that were not there before, and all that is in those that were empty.
struct Leftovers {
    directories: Vec<(PathBuf, bool)>,
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        // The first error has been said; what stays is not a node's directory.
        for (directory, was_there) in &self.directories {
            if !was_there {
                let _ = std::fs::remove_dir_all(directory);
                continue;
            }
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_name() != LOST_AND_FOUND {
                    let _ = remove(&entry.path());
                }
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}
