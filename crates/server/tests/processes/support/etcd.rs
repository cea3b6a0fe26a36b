//! A real etcd to compare with.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::support::ports::Port;
use crate::support::{channel, eventually, status};

/// The tool beside this binary of etcd that knows snapshots: `etcdutl`, or `etcdctl` before etcd 3.5.
pub fn snapshot_tool(binary: &Path) -> Command {
    let utl = binary.with_file_name("etcdutl");
    Command::new(if utl.exists() { utl } else { binary.with_file_name("etcdctl") })
}

/// A real etcd, with a directory of its own.
pub struct Etcd {
    process: Child,
    /// Where clients reach it.
    pub url: String,
    /// Where its peers would.
    pub peer_url: String,
    _ports: [Port; 2],
    _directory: TempDir,
}

impl Etcd {
    /// An empty one.
    pub async fn start(binary: PathBuf) -> Etcd {
        Etcd::start_in(binary, tempfile::tempdir().unwrap()).await
    }

    /// One with the data in `data` below this directory.
    pub async fn start_in(binary: PathBuf, directory: TempDir) -> Etcd {
        let ports = [Port::hold(), Port::hold()];
        let [client, peer] = ports.each_ref().map(Port::url);
        let process = Command::new(&binary)
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = process.unwrap_or_else(|error| panic!("ETCD={}: {error}", binary.display()));
        let etcd = Etcd { process, url: client, peer_url: peer, _ports: ports, _directory: directory };
        eventually("etcd leads", async || {
            status(channel(&etcd.url)).await.is_some_and(|one| one.leader != 0)
        })
        .await;
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
