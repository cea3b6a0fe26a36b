//! The processes of a playground: ports, start, death and stop.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long nodes may take to stop before they are killed.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const STOP_POLL: Duration = Duration::from_millis(20);

/// Says, in a directory that a playground made, with which flags.
const FLAGS_FILE: &str = "playground.flags";

/// Who listens where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    members: Vec<Member>,
    /// As the user would say it.
    flags: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
}

impl Plan {
    /// # Errors
    /// When the ports would not fit.
    pub(super) fn new(nodes: u16, base_port: u16) -> Result<Plan, String> {
        if base_port.checked_add(2 * nodes - 1).is_none() {
            return Err(format!("--base-port {base_port} leaves no room for the ports of {nodes} nodes"));
        }
        let members = (0..nodes).map(|index| Member {
            name: format!("node{}", index + 1),
            client_port: base_port + 2 * index,
            peer_port: base_port + 2 * index + 1,
        });
        let flags = format!("--nodes {nodes} --base-port {base_port}");
        Ok(Plan { members: members.collect(), flags })
    }

    /// Fails if a port is taken, before anything is started.
    pub(super) fn check_ports(&self) -> Result<(), String> {
        for port in self.members.iter().flat_map(|member| [member.client_port, member.peer_port]) {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
                format!("port {port} cannot be used ({}): choose others with --base-port", short(&error))
            })?;
        }
        Ok(())
    }

    /// Notes in `directory` that it is this plan's. The nodes in it know each other by their ports, and would wait for
    /// ever for each other on others.
    ///
    /// # Errors
    /// When it is another plan's, or cannot be written.
    pub(super) fn claim(&self, directory: &Path) -> Result<(), String> {
        let file = directory.join(FLAGS_FILE);
        let failed = |error: std::io::Error| format!("cannot use {}: {error}", file.display());
        match std::fs::read_to_string(&file) {
            Ok(flags) if flags == self.flags => Ok(()),
            Ok(flags) => Err(format!(
                "{} was made by a playground with {flags}: use these flags, or another --data-dir",
                directory.display()
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::write(&file, &self.flags).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn initial_cluster(&self) -> String {
        let entry = |member: &Member| format!("{}={}", member.name, local_url(member.peer_port));
        self.members.iter().map(entry).collect::<Vec<_>>().join(",")
    }

    /// Starts every node with its data and log in `directory`.
    pub(super) fn start(&self, directory: &Path) -> Result<Vec<Node>, String> {
        let cluster = self.initial_cluster();
        self.members
            .iter()
            .map(|member| {
                let arguments = arguments(member, &cluster, directory);
                let log = directory.join(format!("{}.log", member.name));
                let child = spawn(&arguments, &log)?;
                Ok(Node { member: member.clone(), arguments, log, child, dead: false })
            })
            .collect()
    }
}

fn local_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn arguments(member: &Member, cluster: &str, directory: &Path) -> Vec<String> {
    let (client, peer) = (local_url(member.client_port), local_url(member.peer_port));
    let data = directory.join(&member.name);
    let mut arguments = vec!["serve".to_owned(), "--stop-on-stdin-close".to_owned()];
    arguments.extend([
        format!("--name={}", member.name),
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster={cluster}"),
        "--initial-cluster-token=hadron-playground".to_owned(),
    ]);
    arguments
}

fn spawn(arguments: &[String], log: &Path) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let told = |error: std::io::Error| format!("cannot write {}: {error}", log.display());
    let out: File = OpenOptions::new().create(true).append(true).open(log).map_err(told)?;
    let errors = out.try_clone().map_err(told)?;
    let mut command = Command::new(program);
    // Settings meant for another etcd must not reach these nodes.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(errors)
        // A group of its own: Ctrl-C in the terminal reaches the playground only, which then stops the nodes.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot start a node: {error}"))
}

/// A node of the playground.
pub(super) struct Node {
    member: Member,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
    /// Its death has been told.
    dead: bool,
}

impl Node {
    /// `node1` and so on.
    pub(super) fn name(&self) -> &str {
        &self.member.name
    }

    /// `http://host:port` for clients.
    pub(super) fn client_url(&self) -> String {
        local_url(self.member.client_port)
    }

    /// `host:port` for clients.
    pub(super) fn client_address(&self) -> String {
        format!("127.0.0.1:{}", self.member.client_port)
    }

    /// Of the process that was started last.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    pub(super) fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("  {line}\n")).collect()
    }

    /// How it died, once after each death.
    pub(super) fn died(&mut self) -> Result<Option<String>, String> {
        if self.dead {
            return Ok(None);
        }
        let status =
            self.child.try_wait().map_err(|error| format!("cannot look at {}: {error}", self.member.name))?;
        self.dead = status.is_some();
        Ok(status.map(|status| format!("(process {}) {}", self.child.id(), death(status))))
    }

    /// Starts a dead node again.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.child = spawn(&self.arguments, &self.log)?;
        self.dead = false;
        Ok(())
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn terminate(&mut self) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.child.id() as i32)
        {
            // It may have died since; then there is nothing left to stop.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

fn death(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(9)) => "was killed".to_owned(),
        (_, Some(signal)) => format!("died of signal {signal}"),
        (Some(code), None) => format!("exited with code {code}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Asks all nodes to stop, and kills those that have not after a while.
pub(super) async fn stop(mut nodes: Vec<Node>) {
    nodes.iter_mut().for_each(Node::terminate);
    let deadline = Instant::now() + STOP_DEADLINE;
    while nodes.iter_mut().any(Node::is_running) && Instant::now() < deadline {
        tokio::time::sleep(STOP_POLL).await;
    }
    for node in nodes.iter_mut().filter_map(|node| node.is_running().then_some(node)) {
        println!("{} (process {}) did not stop and is killed", node.member.name, node.child.id());
        // It may stop just now; either way it is gone.
        let _ = node.child.kill();
        let _ = node.child.wait();
    }
}

fn short(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "it is in use".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ports_follow_each_other() {
        let plan = Plan::new(3, 2379).unwrap();
        let ports: Vec<_> =
            plan.members.iter().map(|member| (member.client_port, member.peer_port)).collect();
        assert_eq!(ports, [(2379, 2380), (2381, 2382), (2383, 2384)]);
        assert_eq!(
            plan.initial_cluster(),
            "node1=http://127.0.0.1:2380,node2=http://127.0.0.1:2382,node3=http://127.0.0.1:2384"
        );
        assert!(Plan::new(3, 65_530).is_ok());
        assert!(Plan::new(3, 65_531).is_err());
    }

    #[test]
    fn a_directory_belongs_to_the_ports_it_was_made_with() {
        let directory = tempfile::tempdir().unwrap();
        let claim = |nodes, port| Plan::new(nodes, port).unwrap().claim(directory.path());
        claim(3, 2379).unwrap();
        claim(3, 2379).unwrap();
        for (nodes, port) in [(3, 2479), (1, 2379), (5, 2379)] {
            assert!(
                claim(nodes, port).unwrap_err().contains("with --nodes 3 --base-port 2379: use these flags")
            );
        }
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let member = Member { name: "node1".to_owned(), client_port: port, peer_port: port };
        let error = Plan { members: vec![member], flags: String::new() }.check_ports().unwrap_err();
        assert_eq!(
            error,
            format!("port {port} cannot be used (it is in use): choose others with --base-port")
        );
    }

    #[test]
    fn the_arguments_are_a_valid_configuration() {
        use crate::config::{Asked, Config, Settings};

        let plan = Plan::new(2, 4000).unwrap();
        let line = arguments(&plan.members[1], &plan.initial_cluster(), Path::new("/data"));
        let flags = line.iter().skip(1).map(std::ffi::OsString::from);
        let Asked::Serve(settings) = Settings::read(flags, []).unwrap() else { unreachable!() };
        let config = Config::from_settings(&settings, "hadron").unwrap();
        assert_eq!(config.data_dir, Path::new("/data/node2"));
        assert_eq!(config.initial.members("node2").unwrap().len(), 2);
    }

    #[test]
    fn deaths_in_words() {
        assert_eq!(death(ExitStatus::from_raw(9)), "was killed");
        assert_eq!(death(ExitStatus::from_raw(15)), "died of signal 15");
        assert_eq!(death(ExitStatus::from_raw(1 << 8)), "exited with code 1");
    }
}
