//! The cluster that is hurt, and how each fault is inflicted and mended.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::future::join_all;
use hadron_node::node_id;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::members::{Administrator, Replacement};
use super::network::{Link, Network};
use super::plan::{ELECTION_TIMEOUT, Fault, Partition, Step, Whom};
use crate::support::load::Load;
use crate::support::{Cluster, Node, PATIENCE, eventually};

/// Flags of every node: short time-outs, so that more happens in a run.
const FLAGS: [&str; 6] =
    ["--election-timeout", "500", "--heartbeat-interval", "100", "--initial-cluster-token", TOKEN];
const TOKEN: &str = "torture";
/// A node that was asked to stop must have done so in this time.
const STOP_MAX: Duration = Duration::from_secs(20);
/// A node that is asked who leads gets this long.
const ASK_MAX: Duration = Duration::from_millis(300);
/// Time between two looks at how the replacement of a member goes.
const LOOK: Duration = Duration::from_millis(20);
/// What the others must write while a node is away so that their logs do not reach back: more than
/// `Limits::log_tail_bytes`, in values of this size, within this time.
const MISSED_BYTES: usize = 24 << 20;
const MISSED_VALUE_BYTES: usize = 64 << 10;
const MISSED_MAX: Duration = Duration::from_secs(15);

/// A cluster, the network between its nodes, and what is wrong with it at present.
pub struct Patient {
    pub cluster: Cluster,
    pub network: Network,
    tools: Tools,
    rng: SmallRng,
    /// Nodes whose process must be started again.
    down: BTreeSet<usize>,
    paused: BTreeSet<usize>,
    slow: BTreeSet<usize>,
    full: BTreeSet<usize>,
    /// The members' ids.
    ids: Vec<u64>,
    /// At most one member is replaced at a time.
    replacement: Option<Replacement>,
    /// The node that was started for the first time since its member was added, and does not vote yet.
    joining: Option<usize>,
    /// How often each fault was inflicted.
    pub tally: BTreeMap<&'static str, usize>,
    began: Instant,
}

/// What is needed to hurt: another executable, and a library that makes disks slow and full.
struct Tools {
    directory: TempDir,
    /// The executables, and how often each node has changed between them.
    binaries: [PathBuf; 2],
    upgrades: Vec<usize>,
    /// `None` where there is no C compiler.
    bad_disk: Option<PathBuf>,
}

impl Tools {
    fn new(nodes: usize) -> Tools {
        let directory = tempfile::tempdir().unwrap();
        let shipped = PathBuf::from(env!("CARGO_BIN_EXE_hadron"));
        // Of another version, if there is one: nodes go there and back.
        let other = std::env::var_os("TORTURE_OTHER").map_or_else(|| shipped.clone(), PathBuf::from);
        let copy = directory.path().join("hadron-other");
        std::fs::copy(&other, &copy).unwrap();
        let bad_disk = compile_bad_disk(directory.path());
        Tools { directory, binaries: [shipped, copy], upgrades: vec![0; nodes], bad_disk }
    }

    /// Where a node's disk reads how slow it is.
    fn slowness(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("slow-{node}"))
    }

    /// Where a node's disk reads which files cannot grow.
    fn fullness(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("full-{node}"))
    }

    /// Renamed into place, so that it is never seen half written.
    fn set(&self, trigger: PathBuf, text: String) {
        let aside = self.directory.path().join("aside");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, trigger).unwrap();
    }
}

fn compile_bad_disk(directory: &Path) -> Option<PathBuf> {
    let library = directory.join("bad_disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processes/torture/bad_disk.c");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source).arg("-ldl");
    match compile.status() {
        Ok(status) => {
            assert!(status.success(), "cc refused bad_disk.c");
            Some(library)
        }
        Err(error) => {
            println!("SKIPPED: slow and full disks, since there is no C compiler: cc: {error}");
            None
        }
    }
}

impl Patient {
    /// Starts a cluster that is well.
    pub async fn admit(nodes: usize, seed: u64) -> Patient {
        let network = Network::start(nodes, SmallRng::seed_from_u64(seed)).await;
        let mut cluster = Cluster::at_rest(nodes, &FLAGS, network.addresses()).await;
        let urls = network.addresses().iter().map(|address| format!("http://{address}"));
        let ids: Vec<u64> = urls.map(|url| node_id(TOKEN, &[url]).0).collect();
        network.connect((0..nodes).map(|number| (cluster.nodes[number].peer_address, ids[number])));
        for (number, node) in cluster.nodes.iter_mut().enumerate() {
            // Nodes whose groups are spread in different ways understand each other.
            node.set_argument("--shards", &(number % 3 + 1).to_string());
        }
        let tools = Tools::new(nodes);
        if let Some(library) = &tools.bad_disk {
            for (number, node) in cluster.nodes.iter_mut().enumerate() {
                node.set_environment(&[
                    ("LD_PRELOAD", library.clone()),
                    ("SLOW_DISK", tools.slowness(number)),
                    ("FULL_DISK", tools.fullness(number)),
                ]);
            }
        }
        cluster.bring_up().await;
        Patient {
            cluster,
            network,
            tools,
            rng: SmallRng::seed_from_u64(seed),
            down: BTreeSet::new(),
            paused: BTreeSet::new(),
            slow: BTreeSet::new(),
            full: BTreeSet::new(),
            ids,
            replacement: None,
            joining: None,
            tally: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    /// Times in the story are those of `load` from now on.
    pub fn set_clock(&mut self, load: &Load) {
        self.began = Instant::now() - Duration::from_micros(load.now());
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        println!("{:8.3} {what}", self.began.elapsed().as_secs_f64());
    }

    /// One step of a plan: everything goes wrong, lasts, and is mended.
    pub async fn suffer(&mut self, step: &Step, load: &Load) {
        for fault in &step.faults {
            self.inflict(fault, load).await;
        }
        self.endure(step.lasts).await;
        self.mend().await;
        self.say(format_args!("mended"));
        self.finish_replacement().await;
        self.assert_alive();
        sleep(step.calm).await;
        if step.must_recover {
            let mended = load.now();
            eventually("writes go on", async || load.writes_since(mended) > 20).await;
        }
    }

    /// Lets the faults last. A member that was added meanwhile is started.
    async fn endure(&mut self, lasts: Duration) {
        let until = Instant::now() + lasts;
        while Instant::now() < until {
            self.go_on_replacing().await;
            sleep(LOOK.min(until - Instant::now())).await;
        }
    }

    /// No node may end without having been told to.
    pub fn assert_alive(&mut self) {
        let replaced = self.replacement.as_ref().map(|replacement| replacement.number);
        for (number, node) in self.cluster.nodes.iter_mut().enumerate() {
            if Some(number) == replaced || Some(number) == self.joining {
                continue;
            }
            if let Some(status) = node.has_ended() {
                panic!("{} ended by itself with {status}", node.name);
            }
        }
    }

    async fn inflict(&mut self, fault: &Fault, load: &Load) {
        self.say(format_args!("{fault:?}"));
        *self.tally.entry(fault.name()).or_default() += 1;
        match fault {
            Fault::Kill(whom) => self.kill(*whom).await,
            Fault::Miss(node) => self.miss(*node, load).await,
            Fault::Pause(whom) => self.pause(*whom).await,
            Fault::Stop(whom) => self.stop(*whom).await,
            Fault::Upgrade(whom) => self.upgrade(*whom).await,
            Fault::UpgradeAll => self.upgrade_all().await,
            Fault::Partition(partition) => self.part(partition).await,
            Fault::Break => self.network.change_all(|_, _| true, |link| link.breaks += 1),
            Fault::Weather(weather) => self.network.change_all(|_, _| true, |link| change(link, weather)),
            Fault::Distant(whom, weather) => {
                for node in self.who(*whom).await {
                    self.network.change_all(|from, _| from == node, |link| change(link, weather));
                }
            }
            Fault::SlowDisk(whom, time) => self.slow_down(*whom, *time).await,
            Fault::FullDisk(whom) => self.fill_up(*whom).await,
            Fault::Replace(whom) => self.replace(*whom, false).await,
            Fault::Retire(whom) => self.replace(*whom, true).await,
        }
    }

    /// The nodes that are meant.
    async fn who(&self, whom: Whom) -> Vec<usize> {
        match whom {
            Whom::Node(node) => vec![node],
            Whom::All => (0..self.cluster.nodes.len()).collect(),
            Whom::Leader => vec![self.likely_leader().await],
        }
    }

    /// Whom most of those who answer take for the leader; anybody, if nobody knows.
    async fn likely_leader(&self) -> usize {
        let ask = |node: &Node| {
            let channel = node.channel();
            async move { timeout(ASK_MAX, crate::support::status(channel)).await.ok().flatten() }
        };
        let answers = join_all(self.cluster.nodes.iter().map(ask)).await;
        let newest = answers.iter().flatten().max_by_key(|answer| answer.raft_term);
        let leader = newest.map_or(0, |answer| answer.leader);
        let member = |answer: &hadron_proto::etcdserverpb::StatusResponse| {
            answer.header.as_ref().map_or(0, |header| header.member_id)
        };
        let leads = |answer: &Option<_>| answer.as_ref().is_some_and(|answer| member(answer) == leader);
        answers.iter().position(leads).unwrap_or(0)
    }

    /// Those of them that run, are not paused, have room on their disks, and are not being replaced.
    async fn well(&self, whom: Whom) -> Vec<usize> {
        let mut nodes = self.who(whom).await;
        let hurt = [&self.down, &self.paused, &self.full];
        let replaced = self.replacement.as_ref().map(|replacement| replacement.number).or(self.joining);
        nodes.retain(|node| !hurt.iter().any(|hurt| hurt.contains(node)) && Some(*node) != replaced);
        nodes
    }

    async fn kill(&mut self, whom: Whom) {
        for node in self.well(whom).await {
            self.cluster.nodes[node].kill();
            self.down.insert(node);
        }
    }

    async fn miss(&mut self, node: usize, load: &Load) {
        self.kill(Whom::Node(node)).await;
        let began = load.now();
        load.fill_values_to(MISSED_VALUE_BYTES);
        // If other faults keep the others from writing, it just misses less.
        let missed = async {
            while load.writes_since(began) * MISSED_VALUE_BYTES < MISSED_BYTES {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let outcome = timeout(MISSED_MAX, missed).await;
        load.fill_values_to(0);
        self.say(format_args!("missed {} writes ({outcome:?})", load.writes_since(began)));
    }

    async fn pause(&mut self, whom: Whom) {
        for node in self.well(whom).await {
            self.cluster.nodes[node].signal(Signal::STOP);
            self.paused.insert(node);
        }
    }

    /// Asks nodes to stop, all at the same time, and waits until they have.
    async fn stop(&mut self, whom: Whom) {
        let nodes = self.well(whom).await;
        for node in &nodes {
            self.cluster.nodes[*node].signal(Signal::TERM);
            self.down.insert(*node);
        }
        let began = Instant::now();
        for node in nodes {
            let status = timeout(STOP_MAX, self.cluster.nodes[node].wait_for_exit()).await;
            let status = status.unwrap_or_else(|_| panic!("n{node} does not stop within {STOP_MAX:?}"));
            self.say(format_args!("n{node} stopped with {status} after {:?}", began.elapsed()));
            // The signal itself ends a process that has only just begun.
            let in_order = status.success() || status.signal() == Some(Signal::TERM.as_raw());
            assert!(in_order, "n{node} stopped with {status}");
        }
    }

    async fn upgrade(&mut self, whom: Whom) {
        for node in self.well(whom).await {
            self.stop(Whom::Node(node)).await;
            self.tools.upgrades[node] += 1;
            let binary = self.tools.binaries[self.tools.upgrades[node] % 2].clone();
            self.cluster.nodes[node].set_binary(binary);
            self.cluster.nodes[node].start();
            self.down.remove(&node);
        }
    }

    async fn upgrade_all(&mut self) {
        for node in 0..self.cluster.nodes.len() {
            self.upgrade(Whom::Node(node)).await;
        }
    }

    async fn part(&mut self, partition: &Partition) {
        let one = match partition {
            Partition::Alone(whom) | Partition::Mute(whom) | Partition::Deaf(whom) => {
                self.who(*whom).await.first().copied().unwrap_or(0)
            }
            _ => 0,
        };
        let is_cut = |from: usize, to: usize| match partition {
            Partition::Alone(_) => from == one || to == one,
            Partition::Halves(half) => half.contains(&from) != half.contains(&to),
            Partition::Mute(_) => from == one,
            Partition::Deaf(_) => to == one,
            Partition::Pair(a, b) => (from, to) == (*a, *b) || (from, to) == (*b, *a),
            Partition::OneWay(a, b) => (from, to) == (*a, *b),
        };
        self.network.change_all(is_cut, |link| link.blocked = true);
    }

    async fn slow_down(&mut self, whom: Whom, time: Duration) {
        if self.tools.bad_disk.is_none() {
            return;
        }
        for node in self.who(whom).await {
            self.tools.set(self.tools.slowness(node), time.as_millis().to_string());
            self.slow.insert(node);
        }
    }

    async fn fill_up(&mut self, whom: Whom) {
        if self.tools.bad_disk.is_none() {
            return;
        }
        for node in self.well(whom).await {
            let below = self.cluster.nodes[node].data_dir();
            self.tools.set(self.tools.fullness(node), format!("{}/", below.display()));
            self.full.insert(node);
        }
    }

    /// Has a member replaced: one that is dead and has lost its disk, or one that runs.
    async fn replace(&mut self, whom: Whom, runs: bool) {
        let Some(number) = self.well(whom).await.into_iter().next() else { return };
        if self.replacement.is_some() || self.joining.is_some() {
            return;
        }
        if !runs {
            self.cluster.nodes[number].kill();
            self.lose_disk(number);
        }
        let administrator = Administrator::new(&self.cluster.endpoints(), self.rng.random());
        let url = format!("http://{}", self.network.addresses()[number]);
        let id = tokio::spawn(administrator.replace(self.ids[number], url));
        self.replacement = Some(Replacement { number, ends_by_itself: runs, id });
    }

    fn lose_disk(&self, number: usize) {
        std::fs::remove_dir_all(self.cluster.nodes[number].data_dir()).unwrap();
    }

    /// Starts the new member if it has been added and the old one is gone; and again if it could not join.
    async fn go_on_replacing(&mut self) {
        if let Some(number) = self.joining {
            let node = &mut self.cluster.nodes[number];
            if let Some(status) = node.has_ended() {
                assert!(node.log().contains("--initial-cluster"), "{} ended with {status}", node.name);
                node.kill();
                node.start();
                *self.tally.entry("could not join at once").or_default() += 1;
            }
            return;
        }
        let Some(replacement) = &mut self.replacement else { return };
        let node = &mut self.cluster.nodes[replacement.number];
        let is_gone = !replacement.ends_by_itself || node.has_ended().is_some();
        if is_gone && replacement.id.is_finished() {
            self.start_joining().await;
        }
    }

    async fn start_joining(&mut self) {
        let Some(mut replacement) = self.replacement.take() else { return };
        let number = replacement.number;
        let node = &mut self.cluster.nodes[number];
        if replacement.ends_by_itself {
            let status = node.wait_for_exit().await;
            assert!(status.success(), "{} was removed, and ended with {status}", node.name);
            assert!(node.log().contains("was removed from this cluster"), "{}", node.log());
            self.lose_disk(number);
        }
        let added = timeout(PATIENCE, &mut replacement.id).await;
        let id = added.expect("a cluster that is well lets its members be replaced").unwrap();
        self.ids[number] = id;
        self.network.join(number, id);
        let node = &mut self.cluster.nodes[number];
        node.set_argument("--initial-cluster-state", "existing");
        node.start();
        self.joining = Some(number);
        self.say(format_args!("n{number} joins as {id:x}"));
    }

    /// With nothing wrong any more, the new member comes and votes.
    async fn finish_replacement(&mut self) {
        self.start_joining().await;
        let Some(number) = self.joining else { return };
        eventually("the new member votes", async || {
            self.go_on_replacing().await;
            self.cluster.nodes[number].votes().await
        })
        .await;
        self.joining = None;
        self.say(format_args!("n{number} votes"));
    }

    /// Everything is well again, as far as it is in our hands; in a random order, and with time in between.
    pub async fn mend(&mut self) {
        self.make_room();
        let mut remedies = [Patient::open_network, Patient::hurry_disks, Patient::resume, Patient::restart];
        remedies.shuffle(&mut self.rng);
        for remedy in remedies {
            remedy(self);
            sleep(ELECTION_TIMEOUT.mul_f64(self.rng.random_range(0.0..0.3))).await;
        }
    }

    /// Half of the time what was held back arrives late, half of the time connections break.
    fn open_network(&mut self) {
        if self.rng.random_bool(0.5) {
            self.network.change_all(|_, _| true, |link| link.breaks += u64::from(link.blocked));
        }
        self.network.heal();
    }

    fn hurry_disks(&mut self) {
        for node in std::mem::take(&mut self.slow) {
            std::fs::remove_file(self.tools.slowness(node)).unwrap();
        }
    }

    /// A node that could not write has ended and said why; one that had nothing to write goes down here. Both are started
    /// again.
    fn make_room(&mut self) {
        for number in std::mem::take(&mut self.full) {
            let node = &mut self.cluster.nodes[number];
            let ended = node.has_ended();
            std::fs::remove_file(self.tools.fullness(number)).unwrap();
            if let Some(status) = ended {
                assert!(!status.success(), "{} stopped as if all were well: its disk was full", node.name);
                let log = node.log();
                assert!(log.to_lowercase().contains("no space left"), "{log}");
                self.say(format_args!("n{number} had ended: its disk was full ({status})"));
                *self.tally.entry("ended by a full disk").or_default() += 1;
            }
            self.cluster.nodes[number].kill();
            self.down.insert(number);
        }
    }

    fn resume(&mut self) {
        for node in std::mem::take(&mut self.paused) {
            self.cluster.nodes[node].signal(Signal::CONT);
        }
    }

    fn restart(&mut self) {
        for node in std::mem::take(&mut self.down) {
            self.cluster.nodes[node].start();
        }
    }
}

/// Makes a link bad without opening or breaking it.
fn change(link: &mut Link, weather: &Link) {
    *link = Link { blocked: link.blocked, breaks: link.breaks, ..*weather };
}
