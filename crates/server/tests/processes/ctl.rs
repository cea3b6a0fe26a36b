//! Commands of `hadron ctl` that hold something until they are told to stop, against a real node.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Cluster, PATIENCE, eventually};

fn ctl(cluster: &Cluster, words: &[&str]) -> Command {
    ctl_at(&cluster.endpoints(), words)
}

fn ctl_at(endpoints: &[String], words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
    command.args(["ctl", "--endpoints", &endpoints.join(",")]).args(words).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// How many keys have this prefix.
fn count(cluster: &Cluster, prefix: &str) -> usize {
    let keys = ctl(cluster, &["get", prefix, "--prefix", "--keys-only"]).output().unwrap();
    text(&keys.stdout).lines().filter(|line| !line.is_empty()).count()
}

/// A command that goes on until it gets a signal.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(cluster: &Cluster, words: &[&str]) -> Running {
        Running::spawn(ctl(cluster, words))
    }

    fn spawn(mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap() + "\n")));
        Running { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// Waits until it has ended by itself.
    async fn ended(&mut self) -> (Option<i32>, String) {
        eventually("the command ends", async || self.child.try_wait().unwrap().is_some()).await;
        self.outcome()
    }

    /// Exit code and standard error.
    fn interrupt(&mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.outcome()
    }

    fn outcome(&mut self) -> (Option<i32>, String) {
        let code = self.child.wait().unwrap().code();
        let mut complaint = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        (code, complaint)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_command_runs_under_a_lock() {
    let cluster = Cluster::start(1, &[]).await;
    let script = "echo \"$ETCD_LOCK_KEY $ETCD_LOCK_REV\"; exit 3";
    let Output { status, stdout, stderr } =
        ctl(&cluster, &["lock", "job", "--", "sh", "-c", script]).output().unwrap();
    assert_eq!((status.code(), text(&stderr).as_str()), (Some(3), "Error: exit status 3\n"));
    let (key, revision) =
        text(&stdout).trim().split_once(' ').map(|(k, r)| (k.to_owned(), r.to_owned())).unwrap();
    assert!(key.starts_with("job/"), "{key}");
    assert_eq!(revision, "2");
    assert_eq!(count(&cluster, "job/"), 0);

    let missing = ctl(&cluster, &["lock", "job", "no-such-program"]).output().unwrap();
    let complaint = "Error: exec: \"no-such-program\": executable file not found in $PATH\n";
    assert_eq!((missing.status.code(), text(&missing.stderr).as_str()), (Some(1), complaint));
    assert_eq!(count(&cluster, "job/"), 0);
    assert!(ctl(&cluster, &["lock", "job", "true"]).status().unwrap().success());
    assert_eq!(ctl(&cluster, &["lock"]).status().unwrap().code(), Some(128));
}

#[tokio::test(flavor = "current_thread")]
async fn a_lock_is_held_by_one_until_a_signal() {
    let cluster = Cluster::start(1, &[]).await;
    let mut first = Running::start(&cluster, &["lock", "l", "--ttl=60"]);
    assert!(first.line().starts_with("l/"));
    let mut waiting = Running::start(&cluster, &["lock", "l", "--ttl=60"]);
    eventually("the second waits", async || count(&cluster, "l/") == 2).await;
    assert_eq!(waiting.interrupt(), (Some(1), "Error: context canceled\n".to_owned()));
    assert_eq!(count(&cluster, "l/"), 1);

    let mut second = Running::start(&cluster, &["lock", "l"]);
    eventually("the third waits", async || count(&cluster, "l/") == 2).await;
    assert_eq!(first.interrupt(), (Some(0), String::new()));
    assert!(second.line().starts_with("l/"));
    assert_eq!(second.interrupt(), (Some(0), String::new()));
    assert_eq!(count(&cluster, "l/"), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn flags_may_be_repeated_and_endpoints_add_up() {
    let cluster = Cluster::start(1, &[]).await;
    assert!(ctl(&cluster, &["put", "a", "1"]).status().unwrap().success());
    let twice = ctl(&cluster, &["get", "a", "--limit=5", "--limit=1", "-w", "table", "-w", "simple"]);
    assert_eq!(text(&{ twice }.output().unwrap().stdout), "a\n1\n");
    let several = ["snapshot", "save", "unused", "--endpoints=h:1,h:2", "--endpoints", "h:3"];
    let refused = Command::new(env!("CARGO_BIN_EXE_hadron")).arg("ctl").args(several).output().unwrap();
    let complaint = "Error: snapshot must be requested to one selected node, not multiple [h:1 h:2 h:3]\n";
    assert_eq!((refused.status.code(), text(&refused.stderr).as_str()), (Some(5), complaint));
}

#[tokio::test(flavor = "current_thread")]
async fn an_election_is_won_by_one_and_shown_to_all() {
    let cluster = Cluster::start(1, &[]).await;
    let mut one = Running::start(&cluster, &["elect", "e", "one"]);
    assert!(one.line().starts_with("e/"));
    assert_eq!(one.line(), "one\n");
    let mut listener = Running::start(&cluster, &["elect", "--listen", "e"]);
    assert!(listener.line().starts_with("e/"));
    assert_eq!(listener.line(), "one\n");
    let mut two = Running::start(&cluster, &["elect", "e", "two"]);
    eventually("the second waits", async || count(&cluster, "e/") == 2).await;
    assert_eq!(one.interrupt(), (Some(0), String::new()));
    assert!(two.line().starts_with("e/"));
    assert!(listener.line().starts_with("e/"));
    assert_eq!(listener.line(), "two\n");
    assert_eq!(listener.interrupt(), (Some(0), String::new()));
    assert_eq!(two.interrupt(), (Some(0), String::new()));
    assert_eq!(ctl(&cluster, &["elect", "e"]).status().unwrap().code(), Some(128));
}

/// From one prefix to another of the same cluster, which is a destination like any other.
#[tokio::test]
async fn a_mirror_has_what_there_was_and_follows_what_happens() {
    let cluster = Cluster::start(1, &[]).await;
    let run = |words: &[&str]| assert!(ctl(&cluster, words).output().unwrap().status.success(), "{words:?}");
    for number in 0..20 {
        run(&["put", &format!("/from/{number}"), &format!("value {number}")]);
    }
    run(&["put", "/other", "not this"]);
    let endpoint = cluster.nodes[0].client_url.clone();
    let words = ["make-mirror", "--prefix=/from/", "--dest-prefix=/to/", "--max-txn-ops=7", &endpoint];
    let mirror = Running::start(&cluster, &words);
    eventually("what there was is there", async || count(&cluster, "/to/") == 20).await;
    run(&["del", "/from/1", "--prefix"]);
    run(&["put", "/from/new", "value"]);
    let listing = |prefix: &str| {
        let listed = ctl(&cluster, &["get", prefix, "--prefix"]).output().unwrap();
        text(&listed.stdout).replace(prefix, "")
    };
    eventually("what happened happened there", async || listing("/from/") == listing("/to/")).await;
    assert_eq!(count(&cluster, "/to/"), 10);
    drop(mirror);

    let both = ["make-mirror", "--dest-prefix=/to/", "--no-dest-prefix", &endpoint];
    assert_eq!(ctl(&cluster, &both).output().unwrap().status.code(), Some(128));
    assert_eq!(ctl(&cluster, &["make-mirror"]).output().unwrap().status.code(), Some(128));
    let compacted = ctl(&cluster, &["compaction", "20"]).output().unwrap();
    assert!(compacted.status.success());
    let mut late =
        ctl(&cluster, &["make-mirror", "--prefix=/from/", "--dest-prefix=/late/", "--rev=2", &endpoint]);
    let late = late.output().unwrap();
    assert_eq!(late.status.code(), Some(1));
    assert!(text(&late.stderr).contains("required revision has been compacted"), "{}", text(&late.stderr));
}

#[tokio::test]
async fn answers_come_in_parts_and_as_they_are() {
    use hadron_proto::etcdserverpb::RangeResponse;
    use prost::Message as _;
    let cluster = Cluster::start(1, &[]).await;
    let output = |words: &[&str]| ctl(&cluster, words).output().unwrap();
    for number in 0..40 {
        assert!(output(&["put", &format!("/keys/{number:02}"), "value"]).status.success());
    }
    let [whole, parts] = [&["get", "/keys/", "--prefix"][..], &["get", "/keys/", "--prefix", "--stream"]]
        .map(|words| output(words).stdout);
    assert!(whole == parts && !whole.is_empty());
    let raw = output(&["get", "/keys/", "--prefix", "--stream", "--limit=7", "-w", "protobuf"]).stdout;
    let answer = RangeResponse::decode(raw.as_slice()).unwrap();
    assert_eq!((answer.kvs.len(), answer.count, answer.more), (7, 40, true));
    let none = output(&["endpoint", "status", "-w", "protobuf"]);
    assert_eq!(none.status.code(), Some(4), "{}", text(&none.stderr));
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef hadron"), ("fish", "complete -c hadron")]
    {
        let script = output(&["completion", shell]).stdout;
        assert!(text(&script).contains(word) && text(&script).contains("make-mirror"), "{shell}");
    }
}

#[tokio::test]
async fn a_cluster_is_checked_and_left_as_it_was() {
    let cluster = Cluster::start(1, &[]).await;
    let output = |words: &[&str]| ctl(&cluster, words).output().unwrap();
    let perf = output(&["check", "perf", "--duration=2s", "--auto-compact", "--auto-defrag"]);
    let said = text(&perf.stdout);
    // How fast this machine is today is nobody's business here.
    assert!(said.contains("Throughput") && said.contains("Stddev"), "{said} {}", text(&perf.stderr));
    assert!(said.ends_with("PASS\n") || perf.status.code() == Some(1), "{said}");
    let scale = output(&["check", "datascale", "--keys=500"]);
    let said = text(&scale.stdout);
    assert!(
        said.contains("[500 key-value pairs, 1024 bytes per key-value, 50 concurrent clients]"),
        "{said}"
    );
    assert!(said.contains("PASS: Approximate system memory used : "), "{said} {}", text(&scale.stderr));
    for prefix in ["/etcdctl-check-perf/", "/etcdctl-check-datascale/"] {
        assert_eq!(count(&cluster, prefix), 0);
    }
    assert!(output(&["put", "/etcdctl-check-perf/mine", "kept"]).status.success());
    let refused = output(&["check", "perf"]);
    assert_eq!(refused.status.code(), Some(3));
    assert!(text(&refused.stderr).contains("has keys. Delete with"), "{}", text(&refused.stderr));
    assert_eq!(count(&cluster, "/etcdctl-check-perf/"), 1);
    assert_eq!(output(&["check", "perf", "--load=huge"]).status.code(), Some(4));
}

#[tokio::test]
async fn a_watch_goes_on_elsewhere_when_its_node_has_no_leader() {
    let mut cluster = Cluster::start(3, &[]).await;
    // A cluster of its own.
    let well = cluster.prepare_to_join();
    let address = format!("n{well}=http://{}", cluster.nodes[well].peer_address);
    cluster.nodes[well].set_argument("--initial-cluster", &address);
    cluster.nodes[well].set_argument("--initial-cluster-state", "new");
    cluster.nodes[well].start();
    cluster.nodes[well].wait_until_serving().await;
    let endpoints = cluster.endpoints();
    let put = |number: usize, value: &str| {
        let output = ctl_at(&endpoints[number..=number], &["put", "k", value]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    let both = [endpoints[0].clone(), endpoints[well].clone()];
    let mut watch = Running::spawn(ctl_at(&both, &["watch", "k", "--rev=2"]));
    put(0, "there");
    assert_eq!([watch.line(), watch.line(), watch.line()], ["PUT\n", "k\n", "there\n"]);
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    // Two, as the watch goes on behind the first.
    put(well, "unseen");
    put(well, "elsewhere");
    assert_eq!([watch.line(), watch.line(), watch.line()], ["PUT\n", "k\n", "elsewhere\n"]);

    // It may begin there as well.
    let mut late = Running::spawn(ctl_at(&both, &["watch", "k", "--rev=3"]));
    assert_eq!([late.line(), late.line(), late.line()], ["PUT\n", "k\n", "elsewhere\n"]);
}

#[tokio::test]
async fn who_waits_for_a_lock_goes_on_elsewhere_when_its_node_dies() {
    let mut cluster = Cluster::start(3, &[]).await;
    let mut endpoints = cluster.endpoints();
    endpoints.reverse();
    let mut first = Running::spawn(ctl_at(&endpoints, &["lock", "l", "--ttl=60"]));
    assert!(first.line().starts_with("l/"));
    let mut second = Running::start(&cluster, &["lock", "l", "--ttl=60"]);
    eventually("the second waits", async || count(&cluster, "l/") == 2).await;
    cluster.nodes[0].kill();
    cluster.leader().await;
    assert_eq!(first.interrupt(), (Some(0), String::new()));
    assert!(second.line().starts_with("l/"));
    assert_eq!(second.interrupt(), (Some(0), String::new()));
    assert_eq!(count(&cluster, "l/"), 0);
}

#[tokio::test]
async fn a_node_that_hangs_keeps_nobody_from_the_others() {
    let cluster = Cluster::start(3, &[]).await;
    assert!(ctl(&cluster, &["put", "k", "value"]).status().unwrap().success());
    let hangs = (cluster.leader().await + 1) % 3;
    let mut endpoints = cluster.endpoints();
    endpoints.swap(0, hangs);
    let mut holder = Running::spawn(ctl_at(&endpoints, &["lock", "l", "--ttl=6"]));
    assert!(holder.line().starts_with("l/"));
    cluster.nodes[hangs].signal(Signal::STOP);
    // It may have been taken, so nobody else is told.
    let put = ctl_at(&endpoints, &["put", "k", "another", "--command-timeout=1s"]).output().unwrap();
    assert_eq!(
        (put.status.code(), text(&put.stderr).as_str()),
        (Some(1), "Error: context deadline exceeded\n")
    );
    let get = ctl_at(&endpoints, &["get", "k", "--command-timeout=2s"]).output().unwrap();
    assert_eq!((text(&get.stdout).as_str(), text(&get.stderr).as_str()), ("k\nvalue\n", ""));
    // More than the lease has to live without renewals.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(holder.interrupt(), (Some(0), String::new()));
    cluster.nodes[hangs].signal(Signal::CONT);
}

#[tokio::test]
async fn renewals_that_are_refused_end_with_why() {
    let cluster = Cluster::start(1, &[]).await;
    let run = |words: &[&str]| {
        let output = ctl(&cluster, words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let granted = run(&["lease", "grant", "600"]);
    let lease = granted.split(' ').nth(1).unwrap();
    run(&["user", "add", "root:pw"]);
    run(&["user", "grant-role", "root", "root"]);
    run(&["auth", "enable"]);
    let mut refused = Running::start(&cluster, &["lease", "keep-alive", lease]);
    assert_eq!(refused.ended().await, (Some(2), "Error: etcdserver: user name is empty\n".to_owned()));
    let mut renewals = Running::start(&cluster, &["lease", "keep-alive", lease, "--user=root:pw"]);
    assert!(renewals.line().contains("keepalived with TTL(600)"));
}

#[tokio::test]
async fn renewals_go_on_when_a_node_is_back_in_time() {
    let mut cluster = Cluster::start(1, &[]).await;
    let granted = text(&ctl(&cluster, &["lease", "grant", "15"]).output().unwrap().stdout);
    let lease = granted.split(' ').nth(1).unwrap();
    let mut renewals = Running::start(&cluster, &["lease", "keep-alive", lease]);
    let mut listener = Running::start(&cluster, &["elect", "--listen", "e"]);
    let renewed = format!("lease {lease} keepalived with TTL(15)\n");
    assert_eq!(renewals.line(), renewed);
    let observe = r#"grpc_method="Observe",grpc_service="v3electionpb.Election",grpc_type="server_stream""#;
    let observes = format!("grpc_server_started_total{{{observe}}} 1");
    eventually("it is observed", async || cluster.nodes[0].metrics().await.contains(&observes)).await;
    cluster.nodes[0].kill();
    // The next renewal finds nobody.
    tokio::time::sleep(Duration::from_secs(6)).await;
    cluster.nodes[0].start();
    assert_eq!(renewals.line(), renewed);
    let mut leader = Running::start(&cluster, &["elect", "e", "one"]);
    assert!(leader.line().starts_with("e/"));
    assert!(listener.line().starts_with("e/"));
    assert_eq!(listener.line(), "one\n");
    drop(renewals);
    assert!(ctl(&cluster, &["lease", "revoke", lease]).status().unwrap().success());
    let gone = ctl(&cluster, &["lease", "keep-alive", lease]).output().unwrap();
    assert_eq!(text(&gone.stdout), format!("lease {lease} expired or revoked.\n"));
}
