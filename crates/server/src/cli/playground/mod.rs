//! `hadron playground`: a cluster on this machine, to try things out.
//!
//! The nodes are real processes of this binary on loopback. Node `i` (from 0) serves clients on port `base + 2 i` and
//! its peers on the port after it. The playground watches: it tells of each election and each node that dies, restarts
//! nothing unless asked (`--respawn`), and ends all nodes with itself, however it ends: each node holds one end of a
//! pipe as its standard input and stops when the other end, which is here, closes.

mod nodes;
mod observer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::counted;
use nodes::{Node, Plan};
use observer::Observer;

/// How often nodes are looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long the first leader may take before something is wrong.
const LEADER_DEADLINE: Duration = Duration::from_secs(30);
/// Lines shown of the log of a node that died at once.
const LOG_TAIL_LINES: usize = 5;

/// Flags of `playground`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Nodes to run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Client port of the first node; each node uses two ports, one after the other
    #[arg(long, default_value_t = 2379, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// Keep data and logs here [default: a directory that is removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Restart nodes that die
    #[arg(long)]
    respawn: bool,
}

/// Runs a playground until Ctrl-C or SIGTERM.
pub fn run(options: Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(play(&options)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn play(options: &Options) -> Result<(), String> {
    let plan = Plan::new(options.nodes, options.base_port)?;
    plan.check_ports()?;
    let directory = Directory::prepare(options.data_dir.clone())?;
    let mut stop = StopSignals::listen()?;
    plan.claim(directory.path())?;
    let mut nodes = plan.start(directory.path())?;
    let kept = if options.data_dir.is_some() { "" } else { " (removed at the end)" };
    let count = counted(nodes.len() as u64, "node", "nodes");
    println!("Hadron playground: {count} in {}{kept}\n", directory.path().display());
    let result = tokio::select! {
        result = watch(&mut nodes, options.respawn) => result,
        () = stop.wait() => Ok(()),
    };
    println!("\nStopping {}", counted(nodes.len() as u64, "node", "nodes"));
    nodes::stop(nodes).await;
    result
}

/// Introduces the cluster, then tells what happens to it. Returns only when it cannot be started.
async fn watch(nodes: &mut [Node], respawn: bool) -> Result<(), String> {
    let started = Instant::now();
    let mut observer = Observer::new(nodes)?;
    await_leader(nodes, &mut observer, started).await?;
    introduce(nodes, &observer, started.elapsed());
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    loop {
        ticks.tick().await;
        for node in nodes.iter_mut() {
            if let Some(death) = node.died()? {
                tell(started, &format!("{} {death}", node.name()));
                if respawn {
                    node.restart()?;
                    tell(started, &format!("{} restarted (process {})", node.name(), node.pid()));
                }
            }
        }
        for election in observer.elections().await {
            tell(started, &election);
        }
    }
}

fn tell(started: Instant, text: &str) {
    println!("{:>8.1} s  {text}", started.elapsed().as_secs_f64());
}

async fn await_leader(nodes: &mut [Node], observer: &mut Observer, started: Instant) -> Result<(), String> {
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    while observer.leader().await.is_none() {
        for node in nodes.iter_mut() {
            if let Some(death) = node.died()? {
                let tail = node.log_tail(LOG_TAIL_LINES);
                return Err(format!("{} {death}; the end of {}:\n{tail}", node.name(), node.log().display()));
            }
        }
        if started.elapsed() > LEADER_DEADLINE {
            let seconds = LEADER_DEADLINE.as_secs();
            return Err(format!(
                "no leader after {seconds} s; see the logs, such as {}",
                nodes[0].log().display()
            ));
        }
        ticks.tick().await;
    }
    Ok(())
}

fn introduce(nodes: &[Node], observer: &Observer, took: Duration) {
    let leader = observer.known_leader();
    println!("  {:<7} {:<22} {:<9} {:<9} LOG", "NODE", "ENDPOINT", "PROCESS", "ROLE");
    for node in nodes {
        let role = if leader == Some(node.name()) { "leader" } else { "follower" };
        let (name, url, pid) = (node.name(), node.client_url(), node.pid());
        println!("  {name:<7} {url:<22} {pid:<9} {role:<9} {}", node.log().display());
    }
    let endpoints: Vec<String> = nodes.iter().map(Node::client_address).collect();
    let program = std::env::args().next().unwrap_or_else(|| "hadron".to_owned());
    let leader_pid = nodes.iter().find(|node| leader == Some(node.name())).map_or(0, Node::pid);
    println!(
        "
A leader was elected after {:.1} s. Try, in another terminal:

  export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={}
  etcdctl put greeting hello            # or: {program} ctl put greeting hello
  etcdctl get greeting
  {program} ctl endpoint status -w table
  {program} bench put --connections 10 --clients 100 --total 100000
  kill -9 {leader_pid:<29} # the leader: see who takes over

Ctrl-C stops everything.
",
        took.as_secs_f64(),
        endpoints.join(",")
    );
}

/// Where data and logs are.
enum Directory {
    /// Given by the user, and kept.
    Kept(PathBuf),
    /// Removed when dropped.
    Temporary(tempfile::TempDir),
}

impl Directory {
    fn prepare(given: Option<PathBuf>) -> Result<Directory, String> {
        match given {
            None => tempfile::Builder::new()
                .prefix("hadron-playground-")
                .tempdir()
                .map(Directory::Temporary)
                .map_err(|error| format!("cannot make a temporary directory: {error}")),
            Some(path) => std::fs::create_dir_all(&path)
                .map(|()| Directory::Kept(path.clone()))
                .map_err(|error| format!("cannot make {}: {error}", path.display())),
        }
    }

    fn path(&self) -> &std::path::Path {
        match self {
            Directory::Kept(path) => path,
            Directory::Temporary(directory) => directory.path(),
        }
    }
}

/// The signals that end the playground.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl StopSignals {
    fn listen() -> Result<StopSignals, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot wait for signals: {error}"));
        Ok(StopSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
