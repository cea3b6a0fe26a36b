//! `check perf` and `check datascale`: whether a cluster carries a load, and what it holds for a number of keys, as `etcdctl` checks it.
//!
//! Both write keys of their own, which must not exist before and are deleted afterwards, however the check ends.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Subcommand;
use hadron_proto::etcdserverpb::{
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, PutRequest, RangeRequest,
};
use indicatif::{ProgressBar, ProgressStyle};
use rand::RngCore as _;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::failure::{Exit, Failure};
use super::kv::{client, prefix_end};
use super::print::write_out;
use super::{Global, Session};
use crate::client::Connection;
use crate::client::{CallError, Client};

/// Time to clean up.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
/// A slower request than this fails the check, and more spread than that.
const SLOWEST_MAX: Duration = Duration::from_millis(500);
const SPREAD_MAX: f64 = 0.1;
/// Less than this part of the wanted writes fails it too.
const THROUGHPUT_MIN: f64 = 0.9;
/// Bytes of keys and values: in `perf`, and in `datascale`.
const PERF_SIZES: (usize, usize) = (256, 1024);
const DATASCALE_SIZES: (usize, usize) = (512, 512);
const MEMORY_METRIC: &str = "process_resident_memory_bytes ";

/// Subcommands of `check`.
#[derive(Debug, Subcommand)]
pub(super) enum Check {
    /// Whether the cluster carries a load
    Perf(Perf),
    /// What a node holds in memory for a number of keys
    Datascale(Datascale),
}

/// What both have.
#[derive(Debug, clap::Args)]
struct Afterwards {
    /// How much: s(mall), m(edium), l(arge) or xl(arge)
    #[arg(long, default_value = "s")]
    load: String,
    /// Compact afterwards
    #[arg(long)]
    auto_compact: bool,
    /// Defragment afterwards
    #[arg(long)]
    auto_defrag: bool,
}

/// Flags of `check perf`.
#[derive(Debug, clap::Args)]
pub(super) struct Perf {
    #[command(flatten)]
    afterwards: Afterwards,
    /// The first part of the keys that are written
    #[arg(long, default_value = "/etcdctl-check-perf/")]
    prefix: String,
    /// How long (Hadron's own)
    #[arg(long, default_value = "1m0s", value_parser = super::go_text::parse_duration, value_name = "DURATION")]
    duration: Duration,
}

/// Flags of `check datascale`.
#[derive(Debug, clap::Args)]
pub(super) struct Datascale {
    #[command(flatten)]
    afterwards: Afterwards,
    /// The first part of the keys that are written
    #[arg(long, default_value = "/etcdctl-check-datascale/")]
    prefix: String,
    /// How many keys instead (Hadron's own)
    #[arg(long, value_name = "KEYS")]
    keys: Option<u64>,
}

/// What came of the writes.
#[derive(Debug, Default)]
struct Report {
    seconds: Vec<f64>,
    errors: BTreeMap<String, usize>,
    elapsed: Duration,
}

impl Check {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::new(global)?;
        match self {
            Check::Perf(perf) => perf.run(&session.client).await,
            Check::Datascale(datascale) => datascale.run(&session.client).await,
        }
    }
}

impl Perf {
    async fn run(self, node: &Client) -> Result<(), Failure> {
        // Writes a second, and clients.
        let (rate, clients) = match load(&self.afterwards.load)? {
            Load::Small => (150, 50),
            Load::Medium => (1_000, 200),
            Load::Large => (8_000, 500),
            Load::Largest => (15_000, 1_000),
        };
        let connections = connections(node, clients).await?;
        check_empty(node, &self.prefix).await?;
        let bar = bar(self.duration.as_secs());
        let (sender, keys) = mpsc::channel(clients);
        let (prefix, duration) = (self.prefix.clone(), self.duration);
        let ticking = bar.clone();
        let offering = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let began = Instant::now();
            while began.elapsed() < duration {
                ticks.tick().await;
                ticking.set_position(began.elapsed().as_secs());
                if sender.send(random_key(&prefix, PERF_SIZES.0)).await.is_err() {
                    return;
                }
            }
        });
        let report = write_all(connections, keys, PERF_SIZES.1, None).await;
        offering.abort();
        bar.finish();
        self.afterwards.clean_up(node, &self.prefix).await;
        judge(&report?, f64::from(rate))
    }
}

/// Says what came of it, in etcdctl's words.
fn judge(report: &Report, rate: f64) -> Result<(), Failure> {
    let mut is_good = report.tell_errors()?;
    let writes = report.seconds.len() as f64 / report.elapsed.as_secs_f64().max(f64::EPSILON);
    let mut say = |good: bool, pass: String, fail: String| {
        is_good &= good;
        say(&if good { format!("PASS: {pass}") } else { fail })
    };
    let whole = writes as u64 + 1;
    say(
        writes / rate > THROUGHPUT_MIN,
        format!("Throughput is {whole} writes/s"),
        format!("FAIL: Throughput too low: {whole} writes/s"),
    )?;
    let slowest = report.seconds.iter().copied().fold(0.0, f64::max);
    say(
        slowest <= SLOWEST_MAX.as_secs_f64(),
        format!("Slowest request took {slowest:.6}s"),
        format!("Slowest request took too long: {slowest:.6}s"),
    )?;
    let spread = report.spread();
    say(spread <= SPREAD_MAX, format!("Stddev is {spread:.6}s"), format!("Stddev too high: {spread:.6}s"))?;
    match is_good {
        true => self::say("PASS"),
        false => {
            self::say("FAIL")?;
            Err(Failure::silent())
        }
    }
}

impl Datascale {
    async fn run(self, node: &Client) -> Result<(), Failure> {
        let (keys, clients) = match load(&self.afterwards.load)? {
            Load::Small => (10_000, 50),
            Load::Medium => (100_000, 200),
            Load::Large => (1_000_000, 500),
            Load::Largest => (3_000_000, 1_000),
        };
        let keys = self.keys.unwrap_or(keys);
        let connections = connections(node, clients).await?;
        check_empty(node, &self.prefix).await?;
        let before = memory(node, "before").await?;
        let bytes = DATASCALE_SIZES.0 + DATASCALE_SIZES.1;
        say(&format!(
            "Start data scale check for work load [{keys} key-value pairs, {bytes} bytes per key-value, {clients} concurrent \
             clients]."
        ))?;
        let bar = bar(keys);
        let (sender, waiting) = mpsc::channel(clients);
        let prefix = self.prefix.clone();
        let offering = tokio::spawn(async move {
            for _ in 0..keys {
                if sender.send(random_key(&prefix, DATASCALE_SIZES.0)).await.is_err() {
                    return;
                }
            }
        });
        let report = write_all(connections, waiting, DATASCALE_SIZES.1, Some(bar.clone())).await;
        offering.abort();
        bar.finish();
        let after = memory(node, "after").await;
        self.afterwards.clean_up(node, &self.prefix).await;
        let used = (after? - before) / f64::from(1 << 20);
        if !report?.tell_errors()? {
            return Err(Failure::silent());
        }
        say(&format!("PASS: Approximate system memory used : {used:.2} MB."))
    }
}

enum Load {
    Small,
    Medium,
    Large,
    Largest,
}

fn load(text: &str) -> Result<Load, Failure> {
    Ok(match text {
        "s" | "small" => Load::Small,
        "m" | "medium" => Load::Medium,
        "l" | "large" => Load::Large,
        "xl" | "xLarge" => Load::Largest,
        other => return Err(Failure::feature(format_args!("unknown load option {other}"))),
    })
}

fn say(text: &str) -> Result<(), Failure> {
    write_out(format!("{text}\n").as_bytes())
}

/// On standard error, if that is a terminal.
fn bar(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:50} {percent}% {elapsed}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A connection for each client.
async fn connections(node: &Client, clients: usize) -> Result<Vec<Connection>, Failure> {
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(node.connect().await?);
    }
    Ok(connections)
}

async fn check_empty(node: &Client, prefix: &str) -> Result<(), Failure> {
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()),
        limit: 1,
        ..Default::default()
    };
    let found = node.read(async |channel| client(channel).range(request.clone()).await).await?;
    if found.kvs.is_empty() {
        return Ok(());
    }
    let text = format!("prefix {prefix:?} has keys. Delete with 'etcdctl del --prefix {prefix}' first");
    Err(Failure::error(text).exiting(Exit::InvalidInput))
}

fn random_key(prefix: &str, bytes: usize) -> Bytes {
    let mut key = vec![0; prefix.len() + bytes];
    key[..prefix.len()].copy_from_slice(prefix.as_bytes());
    rand::rng().fill_bytes(&mut key[prefix.len()..prefix.len() + 8]);
    key.into()
}

/// Writes the keys that come, each connection one at a time, until no more come or a signal does.
async fn write_all(
    connections: Vec<Connection>,
    keys: mpsc::Receiver<Bytes>,
    value_bytes: usize,
    bar: Option<ProgressBar>,
) -> Result<Report, Failure> {
    let keys = Arc::new(Mutex::new(keys));
    let value = Bytes::from(vec![0; value_bytes]);
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for connection in connections {
        let (keys, value, bar) = (Arc::clone(&keys), value.clone(), bar.clone());
        writers.spawn(async move {
            let mut report = Report::default();
            loop {
                let Some(key) = keys.lock().await.recv().await else { return report };
                let put = PutRequest { key, value: value.clone(), ..Default::default() };
                let began = Instant::now();
                match client(connection.clone()).put(put).await {
                    Ok(_) => report.seconds.push(began.elapsed().as_secs_f64()),
                    Err(status) => {
                        *report.errors.entry(crate::client::status_text(&status)).or_default() += 1
                    }
                }
                if let Some(bar) = &bar {
                    bar.inc(1);
                }
            }
        });
    }
    let mut report = Report::default();
    loop {
        tokio::select! {
            part = writers.join_next() => match part {
                Some(Ok(part)) => report.add(part),
                Some(Err(_)) => {}
                None => break,
            },
            _ = tokio::signal::ctrl_c() => {
                return Err(Failure::error("interrupted").exiting(Exit::Interrupted));
            }
        }
    }
    report.elapsed = began.elapsed();
    Ok(report)
}

impl Report {
    fn add(&mut self, part: Report) {
        self.seconds.extend(part.seconds);
        for (error, count) in part.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }

    /// The standard deviation of how long a request took, in seconds.
    fn spread(&self) -> f64 {
        let count = self.seconds.len().max(1) as f64;
        let mean = self.seconds.iter().sum::<f64>() / count;
        (self.seconds.iter().map(|second| (second - mean).powi(2)).sum::<f64>() / count).sqrt()
    }

    /// False if there were errors.
    fn tell_errors(&self) -> Result<bool, Failure> {
        if self.errors.is_empty() {
            return Ok(true);
        }
        say("FAIL: too many errors")?;
        self.errors.iter().try_for_each(|(error, count)| say(&format!("FAIL: ERROR({error}) -> {count}")))?;
        Ok(false)
    }
}

impl Afterwards {
    /// Deletes the keys; what fails is told and no more.
    async fn clean_up(&self, node: &Client, prefix: &str) {
        if let Err(error) = self.try_clean_up(node, prefix).await {
            println!("FAIL: Cleanup failed during key deletion: ERROR({error})");
        }
    }

    async fn try_clean_up(&self, node: &Client, prefix: &str) -> Result<(), CallError> {
        let node = Client { command_timeout: CLEANUP_TIMEOUT, ..node.clone() };
        let (key, range_end) = (prefix.to_owned().into(), prefix_end(prefix.as_bytes()));
        let delete = DeleteRangeRequest { key, range_end, ..Default::default() };
        let deleted = node.write(async |channel| client(channel).delete_range(delete).await).await?;
        if self.auto_compact {
            let revision = deleted.header.unwrap_or_default().revision;
            let compact = CompactionRequest { revision, physical: true };
            node.write(async |channel| client(channel).compact(compact).await).await?;
        }
        for endpoint in node.endpoints.iter().filter(|_| self.auto_defrag) {
            let call = async |channel| {
                hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient::new(channel)
                    .defragment(DefragmentRequest {})
                    .await
            };
            node.only(endpoint).write(call).await?;
        }
        Ok(())
    }
}

/// Bytes that the first endpoint's process holds in memory.
async fn memory(node: &Client, when: &str) -> Result<f64, Failure> {
    let page = timeout(node.command_timeout, node.page("/metrics")).await;
    let page = page.unwrap_or_else(|elapsed| Err(io::Error::from(elapsed))).unwrap_or_default();
    let line = page.lines().find_map(|line| line.strip_prefix(MEMORY_METRIC));
    line.and_then(|value| value.trim().parse().ok()).filter(|bytes| *bytes > 0.0).ok_or_else(|| {
        println!("FAIL: Could not read process_resident_memory_bytes {when} the put operations.");
        Failure::silent()
    })
}
