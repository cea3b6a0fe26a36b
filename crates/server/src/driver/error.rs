//! Why a node could not start, or had to stop. Each text is one line for the person who started it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use hadron_storage::data_dir::DataDirError;
use hadron_storage::engine::EngineError;
use hadron_storage::wal::WalError;
use opentelemetry_otlp::ExporterBuildError;

use crate::api::TokenError;
use crate::config::ConfigError;
use crate::discovery::registry::RegistryError;
use crate::tls::TlsError;

/// Why [`super::run`] ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (--{flag}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that named it.
        flag: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// Certificates or keys cannot be used.
    #[error("TLS: {0}")]
    Tls(TlsError),
    /// There can be no tokens as they were asked for.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The data directory cannot be used: another process has it, or it is not this node's.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node ran before, and its log is gone.
    #[error(
        "data directory {}: its write-ahead log in {} is missing or empty. Without it this node has forgotten its votes \
         and what it acknowledged. Put the log back, or point --wal-dir at it; if it is lost, move the data directory \
         away and rebuild this member from the others", data_dir.display(), wal_dir.display()
    )]
    LogMissing {
        /// The data directory.
        data_dir: PathBuf,
        /// Where the log should be.
        wal_dir: PathBuf,
    },
    /// The node ran before, and its engine is gone.
    #[error(
        "data directory {}: its engine in {} is missing or empty. Without it this node has forgotten what was cut from \
         its log. Put the engine back; if it is lost, move the data directory and the write-ahead log away and rebuild \
         this member from the others", data_dir.display(), engine.display()
    )]
    EngineMissing {
        /// The data directory.
        data_dir: PathBuf,
        /// Where the engine should be.
        engine: PathBuf,
    },
    /// The node's data directory was in use, and does not say any more which pool it belongs to.
    #[error(
        "{} is missing, although the data directory was in use. Without it the node does not know its cluster, nor whom \
         it met there. Put it back from a copy; a member that was there from the start may have that of another such one. If \
         there is none, move the data directory and the write-ahead log away and rebuild this member from the others; nothing \
         was changed", file.display()
    )]
    PoolMissing {
        /// The file.
        file: PathBuf,
    },
    /// The mark that log and engine are in use is gone.
    #[error(
        "{} is missing, although the engine beside it has state: a part of the data directory was deleted, or only a \
         part of it restored. Put all of it back; nothing was changed", file.display()
    )]
    MarkMissing {
        /// The file.
        file: PathBuf,
    },
    /// A new data directory, and a log that is not.
    #[error(
        "data directory {} is new, but {} (--wal-dir) holds a write-ahead log already: it belongs to another data \
         directory. Start the node with that one, or give it an empty --wal-dir", data_dir.display(), wal_dir.display()
    )]
    ForeignLog {
        /// The data directory.
        data_dir: PathBuf,
        /// Where the log is.
        wal_dir: PathBuf,
    },
    /// No cluster was found where the flags say.
    #[error("failed to bootstrap: {0}")]
    Registry(#[from] RegistryError),
    /// DNS names no cluster.
    #[error("--discovery-srv={domain}: {why}")]
    Srv {
        /// The domain.
        domain: String,
        /// What is wrong with its records.
        why: String,
    },
    /// What was found makes no cluster.
    #[error("what discovery found ({found}) is no --initial-cluster: {error}")]
    Found {
        /// As it was found.
        found: String,
        /// What is wrong with it.
        error: ConfigError,
    },
    /// The flags describe no cluster that could be started. Later starts do not look at them.
    #[error(transparent)]
    Flags(#[from] ConfigError),
    /// This node had another data directory.
    #[error(
        "member {node:x} has already been bootstrapped: {peer} ({urls}) knows {name} with another data directory than \
         {}. A node that lost its data has forgotten its votes and must not come back in its place. Start it with \
         the data directory that it had; if that is lost, replace the member: `etcdctl member remove {node:x}`, then \
         `etcdctl member add {name} --peer-urls=...`, and start it with --initial-cluster-state=existing",
        data_dir.display()
    )]
    AlreadyBootstrapped {
        /// This node's id.
        node: u64,
        /// Its name.
        name: String,
        /// The name of the member that knows it.
        peer: String,
        /// Where that one was asked.
        urls: String,
        /// The data directory that it does not know.
        data_dir: PathBuf,
    },
    /// The data directory is a member's of another cluster than the one that runs where the flags say.
    #[error(
        "data directory {} belongs to cluster {found:x}, but {peer} ({urls}) runs cluster {running:x}, which \
         --initial-cluster and --initial-cluster-token describe. Start the node with its data directory in that \
         cluster, or with an empty one if it never had any; nothing was changed", data_dir.display()
    )]
    OtherCluster {
        /// The data directory.
        data_dir: PathBuf,
        /// Its cluster.
        found: u64,
        /// The cluster that runs.
        running: u64,
        /// The name of the node that answered.
        peer: String,
        /// Where it was asked.
        urls: String,
    },
    /// The node ran before, and a file of its engine is gone.
    #[error(
        "data directory {}: {} is missing from its engine. Put it back; if it is lost, move the data directory and the \
         write-ahead log away and rebuild this member from the others; nothing was changed",
        data_dir.display(), file.display()
    )]
    EnginePieceMissing {
        /// The data directory.
        data_dir: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{action} {}: {error}", path.display())]
    Files {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The record of the pool cannot be used.
    #[error("{}: {what}", file.display())]
    BadPool {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The write-ahead log cannot be used.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The engine cannot be used.
    #[error("{}: {error}", path.display())]
    Engine {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        error: EngineError,
    },
    /// The node was to go on alone, and is not.
    #[error(
        "--force-new-cluster: {name} ({urls}) answers, so the cluster is not lost. Stop it first, if it is to be given up; else take the flag \
         away, or remove the members that are lost: `etcdctl member remove`"
    )]
    OthersRun {
        /// A member that runs.
        name: String,
        /// Where it answered.
        urls: String,
    },
    /// What is stored does not fit together.
    #[error("{0}")]
    Unusable(String),
    /// The collector of spans has no address.
    #[error("--distributed-tracing-address: {0}")]
    Collector(#[from] ExporterBuildError),
    /// The process lacks something that it needs: a thread, a runtime.
    #[error("cannot start a thread or runtime: {0}")]
    Threads(io::Error),
    /// Clients cannot be served.
    #[error("the client port failed: {0}")]
    ClientPort(io::Error),
    /// `--initial-cluster-state=existing`, and nobody of the running cluster can be asked.
    #[error(
        "--initial-cluster-state=existing: none of {asked} answers, so this node cannot learn who it is in their cluster: \
         start one of them first, or check --initial-cluster"
    )]
    NobodyToJoin {
        /// The URLs that were asked.
        asked: String,
    },
    /// `--initial-cluster-state=existing`, and the running cluster does not know the node.
    #[error(
        "--initial-cluster-state=existing: the cluster at {asked} has no member with the peer URL {url}: add it first \
         (`etcdctl member add {name} --peer-urls={url}`), or correct --initial-advertise-peer-urls"
    )]
    NotAMember {
        /// The node's name.
        name: String,
        /// Its peer URL.
        url: String,
        /// The URLs that were asked.
        asked: String,
    },
    /// The others have met this node with another start that is not before this one: what it promised them is not in its data directory.
    #[error(
        "the data directory {} is out of date: {reason}. What the node promised since is not in it, so it must not come back with it: put \
         the newest one back, or remove the member and add it again with an empty one (`etcdctl member remove`, then `member add`)",
        data_dir.display()
    )]
    Outdated {
        /// The directory.
        data_dir: PathBuf,
        /// What one of the others said.
        reason: String,
    },
    /// The other members say that this node was removed from the cluster. Not a failure: somebody wanted it.
    #[error("{0}")]
    Removed(String),
    /// The node had to stop: what was found, and what to do.
    #[error("{0}")]
    Fatal(String),
}

impl RunError {
    /// For `map_err`: `action` on `path` failed.
    pub(super) fn files(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> RunError {
        let path = path.into();
        move |error| RunError::Files { action, path, error }
    }
}
