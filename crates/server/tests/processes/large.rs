//! A keyspace of a Kubernetes cluster's size: 100,000 keys of 1 KiB, listed in pages, and its history watched from the
//! beginning.

use bytes::Bytes;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use hadron_proto::mvccpb::KeyValue;
use hadron_sim::history::Event;
use tonic::transport::Channel;

use crate::support::{Cluster, Node, complete_history};

const KEYS: usize = 100_000;
const PAGE: usize = 500;
/// Keys are created this many at a time, each time with one revision.
const KEYS_PER_TXN: usize = 50;
/// Writers that create keys at the same time.
const WRITERS: usize = 8;
/// Every key of this remainder modulo 100 is written again, and of the next removed.
const REWRITTEN: usize = 7;

fn key(number: usize) -> Bytes {
    Bytes::from(format!("/registry/pods/{number:06}"))
}

fn value(number: usize, generation: usize) -> Bytes {
    let mut value = format!("{generation}/{number}/").into_bytes();
    value.resize(1024, b'a' + (number % 26) as u8);
    value.into()
}

fn put(number: usize, generation: usize) -> PutRequest {
    PutRequest { key: key(number), value: value(number, generation), ..PutRequest::default() }
}

async fn create_keys(channel: Channel, writer: usize) {
    let mut client = KvClient::new(channel);
    for first in (writer * KEYS_PER_TXN..KEYS).step_by(WRITERS * KEYS_PER_TXN) {
        let put = |number| RequestOp { request: Some(request_op::Request::RequestPut(put(number, 1))) };
        let success = (first..first + KEYS_PER_TXN).map(put).collect();
        client.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    }
}

/// Creates all keys through all nodes, writes some again, and removes some.
async fn fill(cluster: &Cluster) {
    let channel = |writer: usize| cluster.nodes[writer % cluster.nodes.len()].channel();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(create_keys(channel(writer), writer))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut client = KvClient::new(channel(0));
    for number in (REWRITTEN..KEYS).step_by(100) {
        client.put(put(number, 2)).await.unwrap();
        let delete = DeleteRangeRequest { key: key(number + 1), ..DeleteRangeRequest::default() };
        assert_eq!(client.delete_range(delete).await.unwrap().into_inner().deleted, 1);
    }
}

/// What a list must show: number and generation of each key.
fn expected() -> impl Iterator<Item = (usize, usize)> {
    let lives = (0..KEYS).filter(|number| number % 100 != REWRITTEN + 1);
    lives.map(|number| (number, if number % 100 == REWRITTEN { 2 } else { 1 }))
}

/// Lists everything as Kubernetes does: pages after the last key seen, all at the revision of the first page.
async fn list(node: &Node) -> Vec<KeyValue> {
    let mut client = KvClient::new(node.channel());
    let (mut from, mut revision, mut found) = (Bytes::from("/registry/pods/"), 0, Vec::new());
    let total = expected().count();
    loop {
        let request = RangeRequest {
            key: from,
            range_end: "/registry/pods0".into(),
            limit: PAGE as i64,
            revision,
            ..RangeRequest::default()
        };
        let page = client.range(request).await.unwrap().into_inner();
        assert_eq!(page.count as usize, total - found.len(), "the keys from here on");
        assert_eq!(page.more, page.count as usize > PAGE);
        assert_eq!(page.kvs.len(), PAGE.min(page.count as usize));
        if revision == 0 {
            revision = page.header.unwrap().revision;
        }
        found.extend(page.kvs);
        if !page.more {
            return found;
        }
        let mut next = found.last().unwrap().key.to_vec();
        next.push(0);
        from = next.into();
    }
}

async fn check_list(node: &Node) {
    let found = list(node).await;
    let shown = found.iter().map(|found| (found.key.clone(), found.value.clone()));
    assert!(shown.eq(expected().map(|(number, generation)| (key(number), value(number, generation)))));
}

/// Each creation, the later writes and the removals, once each, in the order of revisions, and within one revision in
/// the order of the transaction.
fn check_history(events: &[Event]) {
    let changes = KEYS / 100;
    assert_eq!(events.len(), KEYS + 2 * changes);
    let (creations, later) = events.split_at(KEYS);
    let mut created = vec![false; KEYS];
    for (at, txn) in creations.chunks(KEYS_PER_TXN).enumerate() {
        let first: usize = String::from_utf8_lossy(&txn[0].key)[15..].parse().unwrap();
        for (number, event) in (first..).zip(txn) {
            assert_eq!(event.revision, at as i64 + 2);
            assert_eq!((&event.key, &event.after.as_ref().unwrap().value), (&key(number), &value(number, 1)));
            assert!(!std::mem::replace(&mut created[number], true));
        }
    }
    let first_later = (KEYS / KEYS_PER_TXN) as i64 + 2;
    for (pair, number) in later.chunks(2).zip((REWRITTEN..KEYS).step_by(100)) {
        assert_eq!(pair[0].after.as_ref().unwrap().value, value(number, 2));
        assert_eq!((&pair[1].key, &pair[1].after), (&key(number + 1), &None));
    }
    assert!(later.iter().map(|event| event.revision).eq(first_later..first_later + 2 * changes as i64));
}

#[tokio::test]
async fn a_hundred_thousand_keys_are_listed_in_pages_and_their_history_is_replayed() {
    let mut cluster = Cluster::start(3, &[]).await;
    fill(&cluster).await;
    cluster.wait_until_equal().await;
    let revision = cluster.nodes[0].status().await.unwrap().header.unwrap().revision;
    for node in &cluster.nodes {
        check_list(node).await;
        check_history(&complete_history(node, revision).await);
    }
    // Once more from what is on disk.
    cluster.nodes[1].kill();
    cluster.nodes[1].start();
    cluster.nodes[1].wait_until_serving().await;
    check_list(&cluster.nodes[1]).await;
    check_history(&complete_history(&cluster.nodes[1], revision).await);
}
