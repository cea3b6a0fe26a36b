//! A range in parts is the range.

use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::range_request::{SortOrder, SortTarget};
use tonic::Code;
use tonic::transport::Channel;

use super::harness::Harness;
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
