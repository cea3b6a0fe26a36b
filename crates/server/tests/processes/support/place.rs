//! A directory from which the binary is run under the names of etcd's programs.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with links to the binary under the names of etcd's programs.
pub struct Place(pub tempfile::TempDir);

impl Place {
    /// An empty directory but for the links.
    pub fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etcd", "etcdctl", "etcdutl"] {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hadron"), directory.path().join(name)).unwrap();
        }
        Place(directory)
    }

    /// Of something in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// One of the links, run in the directory, without any setting from the outside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.path(program));
        let outside = std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD"));
        for (name, _) in outside {
            command.env_remove(name);
        }
        command.current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// What one of the links says.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program).args(arguments).output().unwrap()
    }

    /// Starts a node and waits until it says that it serves.
    pub fn serve(&self, command: &mut Command) -> Served {
        self.serve_telling(command, fs::File::create(self.path("log")).unwrap())
    }

    /// The same, if what it says goes into another file.
    pub fn serve_telling(&self, command: &mut Command, log: fs::File) -> Served {
        let socket = UnixDatagram::bind(self.path("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        command.env("NOTIFY_SOCKET", self.path("notify")).stdout(log.try_clone().unwrap()).stderr(log);
        let served = Served { child: command.spawn().unwrap(), log: self.path("log") };
        let mut word = [0; 64];
        let length = socket.recv(&mut word).unwrap_or_else(|error| panic!("{error}: {}", served.log()));
        assert_eq!(&word[..length], b"READY=1");
        served
    }
}

/// A node that serves; killed when it is dropped.
pub struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    /// Tells it to stop, and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// Everything that it said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Its log lines.
    pub fn lines(&self) -> Vec<Value> {
        self.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The first log line with that message.
    pub fn line(&self, message: &str) -> Value {
        let found = self.lines().into_iter().find(|line| line["msg"] == message);
        found.unwrap_or_else(|| panic!("no line {message:?} in {}", self.log()))
    }

    /// Where this kind of traffic is served.
    pub fn address(&self, traffic: &str) -> SocketAddr {
        let mut lines = self.lines().into_iter();
        let line = lines.find(|line| line["traffic"] == traffic).unwrap_or_else(|| panic!("{}", self.log()));
        line["address"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process printed.
pub fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}
