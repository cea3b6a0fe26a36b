//! `snapshot status` and `snapshot restore`.

use std::path::PathBuf;

use clap::Subcommand;

use super::super::ctl::failure::Failure;
use super::super::ctl::print::Printer;
use super::super::serve::Name;
use crate::backup::{BackupFile, status};
use crate::config::{Initial, Url};
use crate::driver::{Made, Plan, RestoreFailure, restore};

/// Subcommands of `snapshot`.
#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
    /// Print what is in a snapshot: hash, revision, keys, size, version
    Status {
        /// The file
        #[arg(value_name = "FILE")]
        arguments: Vec<PathBuf>,
    },
    /// Make the data directory of a new cluster's member from a snapshot of etcd or Hadron
    Restore(Box<Restore>),
}

/// The flags of `restore`, those of etcdutl.
#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The data directory to make; if not given NAME.hadron, or NAME.etcd when run as etcdutl
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Where the write-ahead log is to be, if not in the data directory
    #[arg(long, value_name = "DIRECTORY")]
    wal_dir: Option<PathBuf>,
    /// The members of the new cluster
    #[arg(long, value_name = "NAME=URL,...")]
    initial_cluster: Option<String>,
    /// What tells the new cluster from others with the same URLs
    #[arg(long, default_value = "etcd-cluster", value_name = "TEXT")]
    initial_cluster_token: String,
    /// Where the others reach this member
    #[arg(long, default_value = "http://localhost:2380", value_name = "URL")]
    initial_advertise_peer_urls: String,
    /// The name of this member
    #[arg(long, default_value = "default", value_name = "NAME")]
    name: String,
    /// Do not look at the SHA-256: for the file `db` of a data directory, which has none
    #[arg(long)]
    skip_hash_check: bool,
    /// As etcdutl has it; nothing is mapped into memory here
    #[arg(long, hide = true, value_name = "BYTES")]
    initial_memory_map_size: Option<u64>,
    /// How much higher than in the snapshot the newest revision is to be
    #[arg(long, default_value_t = 0, value_name = "REVISIONS")]
    bump_revision: u64,
    /// Everything up to the newest revision is compacted, so that watchers read again: needed with --bump-revision
    #[arg(long)]
    mark_compacted: bool,
    /// The file
    #[arg(value_name = "FILE")]
    arguments: Vec<PathBuf>,
}

impl Snapshot {
    /// Runs the command, of the program that is run as `name`.
    pub(super) fn run(
        self,
        name: Name,
        printer: impl Fn() -> Result<Printer, Failure>,
    ) -> Result<(), Failure> {
        match self {
            Snapshot::Status { arguments } => {
                let [file] = arguments.as_slice() else {
                    return Err(Failure::arguments("snapshot status requires exactly one argument"));
                };
                let printer = printer()?;
                let mut file = BackupFile::open(file, false).map_err(Failure::error)?;
                printer.print(&status(&mut file).map_err(Failure::error)?)
            }
            Snapshot::Restore(options) => options.run(name),
        }
    }
}

impl Restore {
    fn run(self, name: Name) -> Result<(), Failure> {
        let plan = self.plan(name)?;
        let made = restore(&plan).map_err(|failure| match failure {
            RestoreFailure::Config(error) => Failure::arguments(error),
            error => Failure::error(error),
        })?;
        tell(&plan, &made, name);
        Ok(())
    }

    /// What is to be made. Without `--data-dir` it is where a node that is run under the same program's name looks.
    fn plan(self, name: Name) -> Result<Plan, Failure> {
        let [file] = self.arguments.as_slice() else {
            return Err(Failure::arguments("snapshot restore requires exactly one argument"));
        };
        if self.mark_compacted != (self.bump_revision > 0) {
            return Err(Failure::arguments("--mark-compacted required if --bump-revision > 0"));
        }
        let data_dir = self.data_dir.unwrap_or_else(|| format!("{}.{}", self.name, name.suffix()).into());
        let advertised = &self.initial_advertise_peer_urls;
        let advertised: Url = advertised.parse().map_err(|error| {
            Failure::arguments(format_args!("--initial-advertise-peer-urls: {advertised:?}: {error}"))
        })?;
        let cluster = self.initial_cluster.unwrap_or_else(|| format!("{}={advertised}", self.name));
        let initial = Initial {
            cluster: Some(cluster),
            advertise_peer_url: Some(advertised),
            token: Some(self.initial_cluster_token),
            ..Initial::default()
        };
        Ok(Plan {
            file: file.clone(),
            checks: !self.skip_hash_check,
            name: self.name,
            wal_dir: self.wal_dir.unwrap_or_else(|| data_dir.join("wal")),
            data_dir,
            initial,
            bump: self.bump_revision,
        })
    }
}

/// What was made, and what to do with it. To standard error, as all that etcdutl says of it.
fn tell(plan: &Plan, made: &Made, name: Name) {
    let Made { cluster_id, node_id, restored, alarms } = made;
    eprintln!(
        "Restored revision {} with {} keys and {} leases into {}, for member {} ({node_id:x}) of cluster {cluster_id:x}.",
        restored.revision,
        restored.keys,
        restored.leases,
        plan.data_dir.display(),
        plan.name
    );
    if restored.unbound > 0 {
        eprintln!(
            "{} keys were on leases that are not in the snapshot, and are on none now.",
            restored.unbound
        );
    }
    for alarm in alarms {
        eprintln!(
            "The snapshot had the alarm {} of member {:x}, which is not restored.",
            alarm.alarm().as_str_name(),
            alarm.member_id
        );
    }
    eprintln!(
        "Restore every other member from the same file, then start all of them: {} --name {} --data-dir {}",
        name.serve(),
        plan.name,
        plan.data_dir.display()
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    /// What `restore` is to make with these flags.
    fn plan(name: Name, flags: &[&str]) -> Plan {
        let command = Restore::augment_args(clap::Command::new("restore"));
        let line = ["restore", "file.db"].iter().chain(flags);
        Restore::from_arg_matches(&command.try_get_matches_from(line).unwrap()).unwrap().plan(name).unwrap()
    }

    /// As etcd's page about disaster recovery has it: nobody names the directory. It was `m1.hadron` here, and the node began empty.
    #[test]
    fn data_are_restored_to_where_a_node_of_the_same_program_looks() {
        for (name, expected) in [(Name::Etcd, "m1.etcd"), (Name::Hadron, "m1.hadron")] {
            let made = plan(name, &["--name=m1"]);
            assert_eq!(made.data_dir, PathBuf::from(expected));
            assert_eq!(made.wal_dir, PathBuf::from(expected).join("wal"));
            assert_eq!(plan(name, &["--name=m1", "--data-dir=/d"]).data_dir, PathBuf::from("/d"));
        }
    }
}
