//! First and later starts of real processes: who may come in under a member's name, which flags still count, and data
//! directories that are not whole, not writable or not the right ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{AlarmRequest, AlarmType, MemberListRequest, PutRequest, RangeRequest};
use tokio::net::TcpStream;

use crate::support::{Cluster, Node, eventually};

/// Somebody who owns nothing.
const NOBODY: u32 = 65534;

fn assert_fails_naming(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "it should have failed by itself: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Moves a node's data directory away; returns where it is.
fn wipe(node: &Node) -> PathBuf {
    let away = node.data_dir().with_extension("away");
    fs::rename(node.data_dir(), &away).unwrap();
    away
}

fn restore(node: &Node, away: &Path) {
    let _ = fs::remove_dir_all(node.data_dir());
    fs::rename(away, node.data_dir()).unwrap();
}

async fn put(node: &Node) {
    let request = PutRequest { key: "a".into(), value: "1".into(), ..PutRequest::default() };
    KvClient::new(node.channel()).put(request).await.unwrap();
}

async fn assert_has_what_was_put(node: &Node) {
    node.wait_until_serving().await;
    let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    let found = KvClient::new(node.channel()).range(request).await.unwrap().into_inner();
    assert_eq!(found.kvs.len(), 1);
}

/// Name and peer URLs of each member, as a node tells.
async fn members(node: &Node) -> Vec<(String, Vec<String>)> {
    node.wait_until_serving().await;
    let request = MemberListRequest { linearizable: false };
    let list = ClusterClient::new(node.channel()).member_list(request).await.unwrap().into_inner();
    let mut members: Vec<_> =
        list.members.into_iter().map(|member| (member.name, member.peer_ur_ls)).collect();
    members.sort();
    members
}

#[tokio::test]
async fn a_wiped_member_is_refused_in_etcds_words_and_comes_back_with_its_data() {
    let mut cluster = Cluster::start(3, &[]).await;
    put(&cluster.nodes[1]).await;
    cluster.nodes[1].kill();
    let away = wipe(&cluster.nodes[1]);
    let data_dir = cluster.nodes[1].data_dir();
    let place = data_dir.display().to_string();
    let said =
        ["member ", " has already been bootstrapped: n", "knows n1 with another data directory", &place];
    for _ in 0..2 {
        assert_fails_naming(&cluster.nodes[1].run_with(&[]).await, &said);
        assert_eq!(names(&data_dir), ["LOCK"], "nothing is made");
    }
    // One of those who know is enough.
    cluster.nodes[0].kill();
    assert_fails_naming(&cluster.nodes[1].run_with(&[]).await, &said);
    restore(&cluster.nodes[1], &away);
    cluster.nodes[1].start();
    assert_has_what_was_put(&cluster.nodes[1]).await;
}

/// Two of five have no quorum: nothing was ever committed, no root group knows anybody. Yet a vote may have been given.
#[tokio::test]
async fn a_member_that_was_wiped_before_anything_was_committed_is_recognised() {
    let mut cluster = Cluster::prepared(5).await;
    let (node, other) = (0, 1);
    cluster.nodes[node].start();
    cluster.nodes[other].start();
    eventually("the two have met", async || {
        let met = |this: usize, that: usize| {
            let log = cluster.nodes[this].log();
            log.lines().any(|line| line.contains("met a member") && line.contains(&format!("\"n{that}\"")))
        };
        met(node, other) && met(other, node)
    })
    .await;
    let log = cluster.nodes[node].log();
    let unanswered: Vec<&str> = log.lines().filter(|line| line.contains("could not be asked")).collect();
    for absent in 2..5 {
        let name = format!("\"n{absent}\"");
        let said: Vec<&&str> = unanswered.iter().filter(|line| line.contains(&name)).collect();
        assert!(said.len() == 1 && said[0].contains("Connection refused"), "{said:?}");
        assert!(said[0].contains("http://127.0.0.1:"), "{said:?}");
    }
    cluster.nodes[node].kill();
    let away = wipe(&cluster.nodes[node]);
    let refused = ["has already been bootstrapped: n1", "knows n0 with another data directory"];
    assert_fails_naming(&cluster.nodes[node].run_with(&[]).await, &refused);
    // What was met is durable.
    cluster.nodes[other].kill();
    cluster.nodes[other].start();
    // Whoever does not answer is not waited for.
    let listens = cluster.nodes[other].argument("--initial-advertise-peer-urls").replace("http://", "");
    eventually("the other can be asked", async || TcpStream::connect(&listens).await.is_ok()).await;
    assert_fails_naming(&cluster.nodes[node].run_with(&[]).await, &refused);
    restore(&cluster.nodes[node], &away);
    cluster.nodes[node].start();
    cluster.nodes[2].start();
    cluster.leader().await;
}

/// One that is in the list from the start, and says at its first start that the cluster exists, which it does by then.
#[tokio::test]
async fn a_first_member_that_comes_late_may_say_that_the_cluster_exists() {
    let mut cluster = Cluster::prepared(3).await;
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.nodes[0].wait_until_serving().await;
    put(&cluster.nodes[0]).await;
    cluster.nodes[2].set_argument("--initial-cluster-state", "existing");
    cluster.nodes[2].start();
    cluster.nodes[2].wait_until_voting().await;
    assert_has_what_was_put(&cluster.nodes[2]).await;
    // Its vote counts, and it can be elected: it serves with the other one that is left.
    cluster.nodes[0].kill();
    assert_has_what_was_put(&cluster.nodes[1]).await;
}

/// A copy of a data directory was let in once it had been started as often as the others remembered, or when they had been started anew.
#[tokio::test]
async fn a_copy_of_a_data_directory_is_refused_for_good() {
    // The copy's next start has the number of the first one after it was made.
    for starts in [1, 2] {
        a_copy_is_refused_after(starts).await;
    }
}

/// So many starts after it was made.
async fn a_copy_is_refused_after(starts: usize) {
    let mut cluster = Cluster::start(3, &[]).await;
    put(&cluster.nodes[1]).await;
    cluster.nodes[1].kill();
    let place = cluster.nodes[1].data_dir();
    let copy = place.with_extension("copy");
    let copied = std::process::Command::new("cp").arg("-r").arg(&place).arg(&copy).status().unwrap();
    assert!(copied.success());
    for _ in 0..starts {
        cluster.nodes[1].start();
        cluster.nodes[1].wait_until_serving().await;
        put(&cluster.nodes[1]).await;
        cluster.nodes[1].kill();
    }
    let newest = wipe(&cluster.nodes[1]);
    restore(&cluster.nodes[1], &copy);
    // Whoever met it was started anew.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    for _ in 0..3 {
        let said = ["is out of date", "was here with another start", "member remove"];
        assert_fails_naming(&cluster.nodes[1].run_with(&[]).await, &said);
    }
    std::fs::remove_dir_all(&place).unwrap();
    restore(&cluster.nodes[1], &newest);
    cluster.nodes[1].start();
    assert_has_what_was_put(&cluster.nodes[1]).await;
}

/// A copy that was made while the node ran, and is not older than that start, cannot be told by it. The leader gave it nothing, and nobody said a word.
#[tokio::test]
async fn a_node_with_a_copy_of_its_running_self_is_found_out() {
    let mut cluster = Cluster::start(3, &[]).await;
    let follower = (cluster.leader().await + 1) % 3;
    put(&cluster.nodes[follower]).await;
    cluster.wait_until_equal().await;
    let place = cluster.nodes[follower].data_dir();
    let copy = place.with_extension("copy");
    let copied = std::process::Command::new("cp").arg("-r").arg(&place).arg(&copy).status().unwrap();
    assert!(copied.success());
    for _ in 0..3 {
        put(&cluster.nodes[follower]).await;
    }
    cluster.wait_until_equal().await;
    cluster.nodes[follower].kill();
    wipe(&cluster.nodes[follower]);
    restore(&cluster.nodes[follower], &copy);
    cluster.nodes[follower].start();
    let others: Vec<usize> = (0..3).filter(|node| *node != follower).collect();
    eventually("its leader names it", async || {
        let told =
            |node: &usize| cluster.nodes[*node].log().contains("has lost entries that it had acknowledged");
        others.iter().any(told)
    })
    .await;
    eventually("the alarm is raised", async || {
        let request = AlarmRequest { action: 0, member_id: 0, alarm: 0 };
        let told = MaintenanceClient::new(cluster.nodes[others[0]].channel()).alarm(request).await;
        let raised = told.map(|told| told.into_inner().alarms).unwrap_or_default();
        raised.iter().any(|raised| raised.alarm() == AlarmType::Corrupt)
    })
    .await;
    eventually("it hears of that itself, and serves nobody", async || {
        cluster.nodes[follower].log().contains("this replica is quarantined")
    })
    .await;
    // The others go on.
    assert_has_what_was_put(&cluster.nodes[others[1]]).await;
}

#[tokio::test]
async fn a_restart_keeps_its_cluster_whatever_the_flags_of_a_first_start_say() {
    let mut cluster = Cluster::start(2, &[]).await;
    put(&cluster.nodes[0]).await;
    let before = members(&cluster.nodes[0]).await;
    let url = cluster.nodes[0].argument("--initial-advertise-peer-urls");
    let spelled_otherwise = format!("{}/", url.replace("127.0.0.1", "localhost"));
    let list = cluster.nodes[0].argument("--initial-cluster").replace("127.0.0.1", "localhost");
    for (flag, value) in [
        ("--initial-advertise-peer-urls", spelled_otherwise.as_str()),
        ("--initial-cluster", list.as_str()),
        ("--initial-cluster", "n0=http://10.0.0.1:1,somebody=http://10.0.0.1:2"),
        ("--initial-cluster", "nonsense"),
        ("--initial-cluster-token", "another"),
        ("--initial-cluster-state", "existing"),
    ] {
        let said = || cluster.nodes[0].log().matches("these flags are not what the cluster").count();
        let said_before = said();
        cluster.nodes[0].kill();
        cluster.nodes[0].set_argument(flag, value);
        cluster.nodes[0].start();
        assert_has_what_was_put(&cluster.nodes[0]).await;
        assert_eq!(members(&cluster.nodes[0]).await, before, "{flag} {value}");
        let said = cluster.nodes[0].log().matches("these flags are not what the cluster").count();
        assert_eq!(said, said_before + 1, "{flag} {value}: one line");
    }
    let log = cluster.nodes[0].log();
    assert!(log.contains("--initial-cluster,--initial-advertise-peer-urls,--initial-cluster-token"), "{log}");
}

#[tokio::test]
async fn a_data_directory_of_another_cluster_is_refused_where_the_right_one_runs() {
    let mut cluster = Cluster::start(2, &[]).await;
    put(&cluster.nodes[1]).await;
    cluster.nodes[1].kill();
    let away = wipe(&cluster.nodes[1]);
    // A cluster of its own, in the same place.
    let list = cluster.nodes[1].argument("--initial-cluster");
    let url = cluster.nodes[1].argument("--initial-advertise-peer-urls");
    cluster.nodes[1].set_argument("--initial-cluster", &format!("n1={url}"));
    cluster.nodes[1].set_argument("--initial-cluster-token", "another");
    cluster.nodes[1].start();
    cluster.nodes[1].wait_until_serving().await;
    cluster.nodes[1].kill();

    cluster.nodes[1].set_argument("--initial-cluster", &list);
    cluster.nodes[1].set_argument("--initial-cluster-token", "etcd-cluster");
    let place = cluster.nodes[1].data_dir().display().to_string();
    let output = cluster.nodes[1].run_with(&[]).await;
    assert_fails_naming(
        &output,
        &[&place, "belongs to cluster", "but n0 (http://", "--initial-cluster-token"],
    );
    restore(&cluster.nodes[1], &away);
    cluster.nodes[1].start();
    assert_has_what_was_put(&cluster.nodes[1]).await;
}

#[tokio::test]
async fn a_data_directory_without_one_of_its_files_is_refused_by_name_and_left_alone() {
    let mut cluster = Cluster::start(1, &[]).await;
    put(&cluster.nodes[0]).await;
    cluster.nodes[0].kill();
    let data_dir = cluster.nodes[0].data_dir();
    for piece in ["POOL", "IDENTITY"] {
        let away = data_dir.with_extension("away");
        fs::rename(data_dir.join(piece), &away).unwrap();
        let before = names(&data_dir);
        for _ in 0..2 {
            let output = cluster.nodes[0].run_with(&[]).await;
            assert_fails_naming(
                &output,
                &[&data_dir.display().to_string(), piece, "is missing", "from a copy"],
            );
            assert_eq!(names(&data_dir), before);
        }
        fs::rename(&away, data_dir.join(piece)).unwrap();
    }
    cluster.nodes[0].start();
    assert_has_what_was_put(&cluster.nodes[0]).await;
}

#[tokio::test]
async fn a_data_directory_that_is_a_file_or_cannot_be_written_is_refused_by_name() {
    let mut cluster = Cluster::start(1, &[]).await;
    put(&cluster.nodes[0]).await;
    cluster.nodes[0].kill();
    let data_dir = cluster.nodes[0].data_dir();
    let mode = fs::metadata(&data_dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "what is stored is nobody else's to read");
    let place = data_dir.display().to_string();
    let away = wipe(&cluster.nodes[0]);
    fs::write(&data_dir, "mine").unwrap();
    assert_fails_naming(&cluster.nodes[0].run_with(&[]).await, &[&place, "is a file"]);
    assert_eq!(fs::read(&data_dir).unwrap(), b"mine");
    fs::remove_file(&data_dir).unwrap();
    restore(&cluster.nodes[0], &away);

    let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set_mode(&data_dir, 0o555);
    let output = cluster.nodes[0].run_as(unprivileged(data_dir.parent().unwrap()), &[]).await;
    assert_fails_naming(&output, &[&place, "cannot be written", "check owner and permissions"]);
    set_mode(&data_dir, 0o755);
    cluster.nodes[0].start();
    assert_has_what_was_put(&cluster.nodes[0]).await;
    assert!(cluster.nodes[0].log().contains("may be read by others"));
}

/// The program, started as somebody whom permissions mean something to: root may write everywhere.
fn unprivileged(directory: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(env!("CARGO_BIN_EXE_hadron"));
    }
    // Where it was built may be out of reach for others.
    let program = directory.join("hadron");
    fs::copy(env!("CARGO_BIN_EXE_hadron"), &program).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program);
    command.uid(NOBODY).gid(NOBODY);
    command
}
