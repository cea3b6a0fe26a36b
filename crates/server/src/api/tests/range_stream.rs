//! A range in parts is the range.

use std::pin::pin;

use futures::poll;
use hadron_consensus::DEFAULT_GROUP;
use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::kv_server::Kv as _;
use pb::range_request::{SortOrder, SortTarget};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::harness::{Harness, runtime};
use crate::api::kv::Kv;
use crate::api::unsent::{PARTS_MAX, Unsent};
use crate::api::{Limits, ServerOptions, Traffic};

const KEYS: usize = 5_000;

async fn fill(client: &mut KvClient<Channel>) {
    for key in 0..KEYS {
        let put = pb::PutRequest {
            key: format!("k{key:05}").into(),
            value: vec![key as u8; 1_000].into(),
            ..Default::default()
        };
        client.put(put).await.unwrap();
    }
    // A stretch without keys that is longer than a part.
    let delete = pb::DeleteRangeRequest { key: "k01".into(), range_end: "k02".into(), ..Default::default() };
    client.delete_range(delete).await.unwrap();
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

/// The parts, put together, and how large the largest is.
async fn streamed(client: &mut KvClient<Channel>, request: pb::RangeRequest) -> (pb::RangeResponse, usize) {
    let mut stream = client.range_stream(request).await.unwrap().into_inner();
    let (mut whole, mut largest) = (pb::RangeResponse::default(), 0);
    while let Some(part) = stream.message().await.unwrap() {
        assert!(whole.header.is_none(), "only the last part has a header");
        let part = part.range_response.unwrap();
        largest = largest.max(prost::Message::encoded_len(&part));
        whole.kvs.extend(part.kvs);
        (whole.header, whole.more, whole.count) = (part.header, part.more, part.count);
    }
    (whole, largest)
}

#[test]
fn the_parts_together_are_the_answer_to_the_range() {
    Harness::start().run(async |channel| {
        let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        fill(&mut client).await;
        let requests = [
            all(),
            pb::RangeRequest { keys_only: true, ..all() },
            pb::RangeRequest { count_only: true, ..all() },
            pb::RangeRequest { revision: 3_000, ..all() },
            pb::RangeRequest { limit: 1, ..all() },
            pb::RangeRequest { limit: 999, ..all() },
            pb::RangeRequest { limit: 4_000, ..all() },
            pb::RangeRequest { limit: 4_001, ..all() },
            pb::RangeRequest { serializable: true, sort_order: SortOrder::Ascend as i32, ..all() },
            pb::RangeRequest { key: "k00007".into(), range_end: "".into(), ..all() },
            pb::RangeRequest { key: "nothing".into(), range_end: "".into(), ..all() },
            pb::RangeRequest { key: "k01".into(), range_end: "k02".into(), ..all() },
            pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), limit: 2_000, ..all() },
        ];
        for request in requests {
            let whole = client.range(request.clone()).await.unwrap().into_inner();
            let (parts, largest) = streamed(&mut client, request.clone()).await;
            assert!(parts == whole, "{request:?}: {} keys of {}", parts.kvs.len(), whole.kvs.len());
            assert!(largest < 4 << 20, "{largest}");
        }
    });
}

/// A part has no more than a thousand keys, but was meant to have twice as many as the one before for as long as it was small: after some
/// 57,000 keys that number was more than there are, and each part had one key.
#[test]
fn parts_of_small_keys_stay_large() {
    const KEYS: usize = 70_000;
    const KEYS_OF_TXN: usize = 1_000;
    let limits = Limits { txn_operations: KEYS_OF_TXN, ..Limits::default() };
    let harness =
        Harness::start_with(ServerOptions { limits, ..ServerOptions::default() }, Traffic::Everything);
    harness.run(async |channel| {
        let mut client = KvClient::new(channel);
        for first in (0..KEYS).step_by(KEYS_OF_TXN) {
            let put = |key| {
                let put = pb::PutRequest { key: format!("k{key:05}").into(), ..Default::default() };
                pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
            };
            let success = (first..first + KEYS_OF_TXN).map(put).collect();
            client.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
        }
        let mut stream = client.range_stream(all()).await.unwrap().into_inner();
        let (mut keys, mut parts) = (0, 0);
        while let Some(part) = stream.message().await.unwrap() {
            keys += part.range_response.unwrap().kvs.len();
            parts += 1;
        }
        assert_eq!(keys, KEYS);
        assert!(parts < 100, "{parts} parts");
    });
}

/// Parts had as many keys as small ones had before: with large values that was hundreds of megabytes.
#[test]
fn parts_have_no_more_than_so_many_bytes() {
    const SMALL: usize = 3_000;
    const KEYS_OF_TXN: usize = 100;
    Harness::start().run(async |channel| {
        let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
        for first in (0..SMALL).step_by(KEYS_OF_TXN) {
            let put = |key| {
                let put = pb::PutRequest { key: format!("k{key:05}").into(), ..Default::default() };
                pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
            };
            let success = (first..first + KEYS_OF_TXN).map(put).collect();
            client.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
        }
        for (key, bytes) in (SMALL..).zip([300 << 10; 20].into_iter().chain([1_400 << 10; 10])) {
            let key = format!("k{key:05}").into();
            client
                .put(pb::PutRequest { key, value: vec![7; bytes].into(), ..Default::default() })
                .await
                .unwrap();
        }
        for request in [all(), pb::RangeRequest { keys_only: true, ..all() }] {
            let whole = client.range(request.clone()).await.unwrap().into_inner();
            let (parts, largest) = streamed(&mut client, request).await;
            assert!(parts == whole, "{} keys of {}", parts.kvs.len(), whole.kvs.len());
            assert!(largest < 3 << 19, "{largest}");
        }
    });
}

/// A stream makes its next part before HTTP/2 has room for it, and nothing bounded how many streams did.
#[test]
fn a_connection_has_only_so_many_parts_that_it_does_not_take() {
    let harness = Harness::start();
    runtime().block_on(async {
        let kv = Kv::new(harness.context.clone());
        for key in ["k1", "k2"] {
            let put =
                pb::PutRequest { key: key.into(), value: vec![1; 1 << 20].into(), ..Default::default() };
            kv.put(Request::new(put)).await.unwrap();
        }
        let unsent = Unsent::default();
        let stream = async || {
            let mut request = Request::new(all());
            request.extensions_mut().insert(unsent.clone());
            kv.range_stream(request).await.unwrap().into_inner()
        };
        let mut streams = Vec::new();
        for _ in 0..PARTS_MAX {
            let mut stream = stream().await;
            stream.next().await.unwrap().unwrap();
            streams.push(stream);
        }
        let mut one_more = stream().await;
        assert!(poll!(pin!(one_more.next())).is_pending());
        // The last part counts until it is taken as well.
        drop(one_more);
        streams[0].next().await.unwrap().unwrap();
        let mut one_more = stream().await;
        assert!(poll!(pin!(one_more.next())).is_pending());
        assert!(streams[0].next().await.is_none());
        one_more.next().await.unwrap().unwrap();
    });
}

/// A stream that waited for its turn read from the replica that had come in place of the one that was as new as the request wanted it, and knew
/// nothing yet: it answered that there is nothing.
#[test]
fn a_stream_ends_when_another_replica_is_in_place_of_its_own() {
    let harness = Harness::start();
    runtime().block_on(async {
        let kv = Kv::new(harness.context.clone());
        kv.put(Request::new(pb::PutRequest { key: "k".into(), ..Default::default() })).await.unwrap();
        let counted = pb::RangeRequest { count_only: true, ..all() };
        for request in [all(), counted] {
            let mut stream = kv.range_stream(Request::new(request)).await.unwrap().into_inner();
            harness.backend.replace(DEFAULT_GROUP);
            let error = stream.next().await.unwrap().unwrap_err();
            assert_eq!(error.code(), Code::Unavailable);
        }
    });
}

#[test]
fn what_is_written_meanwhile_is_not_in_it() {
    Harness::start().run(async |channel| {
        let mut client = KvClient::new(channel);
        fill(&mut client).await;
        let before = client.range(pb::RangeRequest { count_only: true, ..all() }).await.unwrap().into_inner();
        let mut stream = client.range_stream(all()).await.unwrap().into_inner();
        let mut keys = stream.message().await.unwrap().unwrap().range_response.unwrap().kvs.len();
        client
            .delete_range(pb::DeleteRangeRequest {
                key: "k".into(),
                range_end: "l".into(),
                ..Default::default()
            })
            .await
            .unwrap();
        let mut last = None;
        while let Some(part) = stream.message().await.unwrap() {
            keys += part.range_response.as_ref().unwrap().kvs.len();
            last = part.range_response;
        }
        let last = last.unwrap();
        assert_eq!((keys as i64, last.count), (before.count, before.count));
        assert_eq!(last.header, before.header);
    });
}

#[test]
fn a_compaction_under_way_ends_it() {
    Harness::start().run(async |channel| {
        let mut client = KvClient::new(channel);
        fill(&mut client).await;
        let mut stream = client.range_stream(all()).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        let put = pb::PutRequest { key: "z".into(), ..Default::default() };
        let revision = client.put(put).await.unwrap().into_inner().header.unwrap().revision;
        client.compact(pb::CompactionRequest { revision, physical: false }).await.unwrap();
        let error = loop {
            match stream.message().await {
                Ok(part) => assert!(part.is_some(), "it ended as if it were whole"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.message(), "etcdserver: mvcc: required revision has been compacted");
    });
}

#[test]
fn what_cannot_be_answered_in_parts_is_refused() {
    Harness::start().run(async |channel| {
        let mut client = KvClient::new(channel);
        let mut refusal = async |request: pb::RangeRequest| {
            let status = client.range_stream(request).await.unwrap_err();
            (status.code(), status.message().to_owned())
        };
        let unimplemented =
            |what: &str| (Code::Unimplemented, format!("RangeStream does not support {what}"));
        let sorted = pb::RangeRequest { sort_order: SortOrder::Descend as i32, ..all() };
        assert_eq!(refusal(sorted).await, unimplemented("custom sort orders"));
        let sort_target = SortTarget::Create as i32;
        let sorted = pb::RangeRequest { sort_order: SortOrder::Ascend as i32, sort_target, ..all() };
        assert_eq!(refusal(sorted).await, unimplemented("custom sort orders"));
        let filtered = pb::RangeRequest { min_mod_revision: 2, ..all() };
        assert_eq!(refusal(filtered).await, unimplemented("revision filters"));
        let empty = refusal(pb::RangeRequest::default()).await;
        assert_eq!(empty, (Code::InvalidArgument, "etcdserver: key is not provided".to_owned()));
    });
}
