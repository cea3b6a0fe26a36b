//! A keyspace that reaches its quota, and history that is compacted by itself, on a real node.

use hadron_proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::{Code, Status};

use crate::support::{Cluster, Node, eventually};

async fn put(node: &Node, key: String) -> Result<i64, Status> {
    let request = pb::PutRequest { key: key.into(), value: vec![7; 10_000].into(), ..Default::default() };
    let response = KvClient::new(node.channel()).put(request).await?.into_inner();
    Ok(response.header.unwrap().revision)
}

async fn disarm(node: &Node) {
    let mut client = MaintenanceClient::new(node.channel());
    let listed = client.alarm(pb::AlarmRequest::default()).await.unwrap().into_inner().alarms;
    for pb::AlarmMember { member_id, alarm } in listed {
        let action = AlarmAction::Deactivate as i32;
        client.alarm(pb::AlarmRequest { action, member_id, alarm }).await.unwrap();
    }
}

#[tokio::test]
async fn a_keyspace_at_its_quota_is_emptied_while_it_serves() {
    let mut cluster = Cluster::start(3, &["--quota-backend-bytes=1000000"]).await;
    let full = fill(&cluster.nodes[0]).await;
    assert!((80..=100).contains(&full), "{full} values of 10,000 bytes");
    let expected = "etcdserver: mvcc: database space exceeded";
    assert_eq!(put(&cluster.nodes[1], "x".into()).await.unwrap_err().message(), expected);
    // The alarm holds for all nodes, before and after a restart.
    restart(&mut cluster).await;
    for node in &cluster.nodes {
        assert_eq!(put(node, "x".into()).await.unwrap_err().message(), expected);
    }
    let (node, other) = (&cluster.nodes[0], &cluster.nodes[1]);
    let range = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let deleted = KvClient::new(node.channel()).delete_range(range).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, full);
    let revision = deleted.header.unwrap().revision;
    let compact = pb::CompactionRequest { revision, physical: true };
    KvClient::new(node.channel()).compact(compact).await.unwrap();
    eventually("the space is free", async || node.status().await.unwrap().db_size < 100_000).await;
    eventually("everywhere", async || other.status().await.unwrap().db_size < 100_000).await;
    disarm(node).await;
    eventually("the other has heard of it", async || put(other, "x".into()).await.is_ok()).await;
    put(node, "y".into()).await.unwrap();
    // What was counted before a restart counts after it.
    for number in 0..full / 2 {
        put(node, format!("before{number}")).await.unwrap();
    }
    restart(&mut cluster).await;
    let more = fill(&cluster.nodes[0]).await;
    assert!((full / 2 - 4..=full / 2 + 4).contains(&more), "{more} after {} of {full}", full / 2);
}

/// Stops all nodes at once and starts them again.
async fn restart(cluster: &mut Cluster) {
    cluster.nodes.iter_mut().for_each(Node::kill);
    cluster.bring_up().await;
}

/// Puts as many keys as there is room for.
async fn fill(node: &Node) -> i64 {
    let mut keys = 0;
    let refused = loop {
        match put(node, format!("k{keys}")).await {
            Ok(_) => keys += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    keys
}

#[tokio::test]
async fn history_is_compacted_by_itself() {
    let flags = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1s"];
    let cluster = Cluster::start(1, &flags).await;
    let node = &cluster.nodes[0];
    let first = put(node, "k".into()).await.unwrap();
    let last = put(node, "k".into()).await.unwrap();
    let at = async |revision: i64| {
        let request = pb::RangeRequest { key: "k".into(), revision, ..Default::default() };
        KvClient::new(node.channel()).range(request).await.map(|response| response.into_inner().count)
    };
    eventually("the first version is gone", async || {
        at(first).await.is_err_and(|status| status.code() == Code::OutOfRange)
    })
    .await;
    assert_eq!(at(last).await.unwrap(), 1);
}

/// Tools and tests of others wait for these texts.
#[tokio::test]
async fn what_operators_wait_for_is_in_the_log() {
    let cluster = Cluster::start(1, &["--snapshot-count=20"]).await;
    let node = &cluster.nodes[0];
    let mut revision = 0;
    for _ in 0..25 {
        revision = put(node, "k".into()).await.unwrap();
    }
    KvClient::new(node.channel()).compact(pb::CompactionRequest { revision, physical: false }).await.unwrap();
    let told = format!("\"compact-revision\":{revision},");
    eventually("the compaction is told", async || {
        node.log().lines().any(|line| line.contains("finished scheduled compaction") && line.contains(&told))
    })
    .await;
    eventually("a durable state is told", async || node.log().contains("\"msg\":\"saved snapshot\"")).await;
}
