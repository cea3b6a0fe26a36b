//! What the transcript cannot show: a node without a leader, learners, failures, and what is Hadron's own.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, poll};
use hadron_consensus::DEFAULT_GROUP;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::request_op::Request as Operation;
use hadron_proto::etcdserverpb::watch_client::WatchClient;
use hadron_proto::etcdserverpb::watch_request::RequestUnion;
use hadron_proto::hadron::ElectionHistoryRequest;
use hadron_proto::hadron::pool_client::PoolClient;
use hadron_proto::health::HealthCheckRequest;
use hadron_proto::health::health_check_response::ServingStatus;
use hadron_proto::health::health_client::HealthClient;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::{Harness, runtime};
use crate::api::leader::WhileLed;
use crate::api::{Limits, ServerOptions, Traffic, Unavailable};

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn range(serializable: bool) -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), serializable, ..Default::default() }
}

fn demanding<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    request
}

/// A watch of one key. Its requests never end, so that only the node can end the stream.
fn one_watch() -> impl futures::Stream<Item = pb::WatchRequest> {
    let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let first = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    futures::StreamExt::chain(tokio_stream::once(first), tokio_stream::pending())
}

fn assert_status(status: &Status, code: Code, text: &str) {
    assert_eq!((status.code(), status.message()), (code, text));
}

/// A write that was answered after a change of the leader told its own term, though another answer had told the later one.
#[test]
fn a_term_never_goes_back() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = KvClient::new(channel);
        let held = harness.backend.hold_answers().await;
        let mut writer = client.clone();
        let written = tokio::spawn(async move { writer.put(put("k")).await });
        while client.range(range(true)).await.unwrap().into_inner().kvs.is_empty() {
            tokio::task::yield_now().await;
        }
        harness.backend.begin_term();
        let told = client.range(range(true)).await.unwrap().into_inner().header.unwrap();
        drop(held);
        let written = written.await.unwrap().unwrap().into_inner().header.unwrap();
        assert_eq!((told.raft_term, written.raft_term), (3, 3));
    });
}

#[test]
fn headers_name_cluster_member_and_term() {
    Harness::start().run(async |channel| {
        let response = KvClient::new(channel).put(put("k")).await.unwrap().into_inner();
        let expected = pb::ResponseHeader { cluster_id: 7, member_id: 1, revision: 2, raft_term: 2 };
        assert_eq!(response.header, Some(expected));
    });
}

#[test]
fn an_unavailable_node_answers_in_etcds_words() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = KvClient::new(channel);
        for (failure, code, text) in [
            (Unavailable::NoLeader, Code::Unavailable, "etcdserver: no leader"),
            (Unavailable::Busy, Code::ResourceExhausted, "etcdserver: too many requests"),
            (Unavailable::Stopped, Code::Unavailable, "etcdserver: server stopped"),
            (Unavailable::Timeout, Code::Unavailable, "etcdserver: request timed out"),
        ] {
            harness.backend.fail_with(Some(failure));
            assert_status(&client.put(put("k")).await.unwrap_err(), code, text);
            assert_status(&client.range(range(false)).await.unwrap_err(), code, text);
            client.range(range(true)).await.unwrap();
        }
    });
}

#[test]
fn a_learner_answers_only_what_needs_no_vote() {
    let harness = Harness::start();
    harness.backend.set_learner(true);
    harness.run(async |channel| {
        let mut client = KvClient::new(channel.clone());
        let refused = client.put(put("k")).await.unwrap_err();
        assert_status(&refused, Code::FailedPrecondition, "etcdserver: rpc not supported for learner");
        client.range(range(false)).await.unwrap_err();
        client.range(range(true)).await.unwrap();
        let status = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await.unwrap();
        assert!(status.get_ref().is_learner);
        // etcdctl divides by it: of an empty keyspace it showed nothing but its own panic.
        assert!(status.get_ref().db_size > 0);
    });
}

#[test]
fn a_client_that_demands_a_leader_is_refused_without_one() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = KvClient::new(channel.clone());
        client.range(demanding(range(true))).await.unwrap();
        harness.backend.set_leader(false);
        let refused = client.range(demanding(range(true))).await.unwrap_err();
        assert_status(&refused, Code::Unavailable, "etcdserver: no leader");
        client.range(range(true)).await.unwrap();
    });
}

/// After a restart of all nodes a keyspace sleeps without a leader until somebody asks for something. Whoever demanded a leader with that
/// was refused at once, and woke nobody.
#[test]
fn who_demands_a_leader_wakes_a_group_that_sleeps_without_one() {
    let harness = Harness::start();
    harness.run(async |channel| {
        harness.backend.sleep_without_leader();
        KvClient::new(channel.clone()).range(demanding(range(true))).await.unwrap();
        harness.backend.sleep_without_leader();
        WatchClient::new(channel.clone()).watch(demanding(one_watch())).await.unwrap();
        // There is nobody who could elect one.
        harness.backend.sleep_without_leader();
        harness.backend.set_cannot_read(true);
        let refused = KvClient::new(channel).range(demanding(range(true))).await.unwrap_err();
        assert_status(&refused, Code::Unavailable, "etcdserver: no leader");
    });
}

/// A replica that sleeps without a leader may lack entries that others have. A watch there got none of their events until somebody asked
/// for something else.
#[test]
fn a_watch_wakes_a_group_that_sleeps_without_a_leader() {
    let harness = Harness::start();
    harness.run(async |channel| {
        harness.backend.sleep_without_leader();
        let stream = WatchClient::new(channel).watch(one_watch()).await.unwrap();
        assert!(stream.into_inner().message().await.unwrap().unwrap().created);
        tokio::time::timeout(Duration::from_secs(20), harness.backend.woken()).await.unwrap();
    });
}

/// If that took less than the second in which nodes look, the watch stayed with the former one for ever.
#[test]
fn a_watch_ends_when_another_replica_is_in_place_of_its_own() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut answers = WatchClient::new(channel).watch(demanding(one_watch())).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().unwrap().created);
        harness.backend.replace(DEFAULT_GROUP);
        let end = tokio::time::timeout(Duration::from_secs(20), answers.message()).await.unwrap();
        let text = "hadron: this node has another replica of the keyspace default now: try again";
        assert_status(&end.unwrap_err(), Code::Unavailable, text);
    });
}

#[test]
fn a_stream_that_demands_a_leader_ends_when_it_is_lost_for_long() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let stream = WatchClient::new(channel).watch(demanding(one_watch())).await.unwrap();
        let mut answers = stream.into_inner();
        assert!(answers.message().await.unwrap().unwrap().created);
        harness.backend.set_leader(false);
        let end = tokio::time::timeout(Duration::from_secs(20), answers.message()).await.unwrap();
        assert_status(&end.unwrap_err(), Code::Unavailable, "etcdserver: no leader");
    });
}

/// Watches of `default` went on with what a damaged replica showed, and its status could not be asked for.
#[test]
fn a_damaged_replica_ends_its_watches_and_says_so() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut answers = WatchClient::new(channel.clone()).watch(one_watch()).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().unwrap().created);
        harness.backend.damage();
        let end = tokio::time::timeout(Duration::from_secs(20), answers.message()).await.unwrap();
        assert_status(&end.unwrap_err(), Code::Unavailable, "etcdserver: unhealthy cluster");
        let status = MaintenanceClient::new(channel).status(pb::StatusRequest {}).await.unwrap();
        assert_eq!(status.get_ref().errors, ["hadron: this node's replica is not readable"]);
    });
}

#[test]
fn a_lease_without_an_id_gets_a_positive_one_and_its_time_runs_on_the_groups_clock() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = LeaseClient::new(channel);
        let grant = pb::LeaseGrantRequest { id: 0, ttl: 10 };
        let granted = client.lease_grant(grant).await.unwrap().into_inner();
        let another = client.lease_grant(grant).await.unwrap().into_inner();
        assert!(granted.id > 0 && another.id > 0 && granted.id != another.id);
        harness.backend.advance_ms(4000);
        let question = pb::LeaseTimeToLiveRequest { id: granted.id, keys: false };
        let answer = client.lease_time_to_live(question).await.unwrap().into_inner();
        assert_eq!((answer.ttl, answer.granted_ttl), (6, 10));
        let short = client.lease_grant(pb::LeaseGrantRequest { id: 0, ttl: 1 }).await.unwrap().into_inner();
        assert_eq!(short.ttl, 2, "it must outlive an election");
    });
}

#[test]
fn status_tells_leader_indexes_and_what_is_wrong() {
    let harness = Harness::start();
    harness.run(async |channel| {
        KvClient::new(channel.clone()).put(put("k")).await.unwrap();
        let mut client = MaintenanceClient::new(channel);
        let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(
            (status.leader, status.raft_index, status.raft_applied_index, status.raft_term),
            (1, 1, 1, 2)
        );
        assert!(status.version.starts_with("3.6.") && status.errors.is_empty());
        harness.backend.set_leader(false);
        let status = client.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.leader, status.errors), (0, vec!["etcdserver: no leader".to_owned()]));
        let refused = client.move_leader(pb::MoveLeaderRequest { target_id: 1 }).await.unwrap_err();
        assert_status(&refused, Code::FailedPrecondition, "etcdserver: not leader");
    });
}

#[test]
fn members_and_elections_are_listed() {
    Harness::start().run(async |channel| {
        let list = pb::MemberListRequest { linearizable: true };
        let members =
            ClusterClient::new(channel.clone()).member_list(list).await.unwrap().into_inner().members;
        assert_eq!(members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["test"]);

        let mut client = PoolClient::new(channel);
        for (keyspace, count) in [("", 3), ("default", 2), ("root", 1)] {
            let request = ElectionHistoryRequest { keyspace: keyspace.to_owned() };
            let elections = client.election_history(request).await.unwrap().into_inner().elections;
            assert_eq!(elections.len(), count, "{keyspace:?}");
        }
        let unknown = client.election_history(ElectionHistoryRequest { keyspace: "x".to_owned() }).await;
        assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn health_is_known_for_the_whole_server_only() {
    let check = |service: &str| HealthCheckRequest { service: service.to_owned() };
    Harness::start().run(async |channel| {
        let mut client = HealthClient::new(channel);
        let healthy = client.check(check("")).await.unwrap().into_inner();
        assert_eq!(healthy.status(), ServingStatus::Serving);
        assert_status(&client.check(check("x")).await.unwrap_err(), Code::NotFound, "unknown service");
        let mut stream = client.watch(check("x")).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    });
}

async fn call_unknown(channel: &Channel, path: &'static str) -> Status {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::StatusRequest, pb::StatusResponse>::default();
    grpc.unary(Request::new(pb::StatusRequest {}), path.parse().unwrap(), codec).await.unwrap_err()
}

#[test]
fn what_does_not_exist_is_named() {
    Harness::start().run(async |channel| {
        let service = call_unknown(&channel, "/some.Thing/Do").await;
        assert_status(&service, Code::Unimplemented, "unknown service some.Thing");
        let method = call_unknown(&channel, "/etcdserverpb.KV/Do").await;
        assert_status(&method, Code::Unimplemented, "unknown method Do for service etcdserverpb.KV");
    });
}

#[test]
fn orders_that_do_not_exist_are_refused() {
    Harness::start().run(async |channel| {
        let mut client = KvClient::new(channel);
        for (sort_order, sort_target) in [(9, 0), (0, 9)] {
            let request = pb::RangeRequest { sort_order, sort_target, ..range(false) };
            let refused = client.range(request).await.unwrap_err();
            assert_status(&refused, Code::InvalidArgument, "etcdserver: invalid sort option");
        }
    });
}

#[test]
fn only_who_asked_for_it_is_told_how_far_a_silent_watch_is() {
    let options = ServerOptions { watch_progress_interval: Duration::from_millis(20), ..Default::default() };
    Harness::start_with(options, Traffic::Everything).run(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        kv.put(put("other")).await.unwrap();
        let watches = [(1, false), (2, true)].map(|(watch_id, progress_notify)| {
            let create =
                pb::WatchCreateRequest { key: "k".into(), watch_id, progress_notify, ..Default::default() };
            pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        });
        let requests = futures::StreamExt::chain(tokio_stream::iter(watches), tokio_stream::pending());
        let mut answers = WatchClient::new(channel).watch(requests).await.unwrap().into_inner();
        let mut next = async || answers.message().await.unwrap().unwrap();
        assert!(next().await.created && next().await.created);
        for _ in 0..3 {
            let told = next().await;
            assert_eq!((told.watch_id, told.events.len(), told.created), (2, 0, false));
            assert_eq!(told.header.unwrap().revision, 2);
        }
        // It goes on with what happens, and from there.
        kv.put(put("other")).await.unwrap();
        let mut told = next().await;
        while told.header.as_ref().unwrap().revision == 2 {
            told = next().await;
        }
        assert_eq!((told.watch_id, told.events.len(), told.header.unwrap().revision), (2, 0, 3));
    });
}

#[test]
fn a_watch_of_a_negative_revision_is_refused_as_in_etcd_3_6() {
    Harness::start().run(async |channel| {
        let create = pb::WatchCreateRequest { key: "k".into(), start_revision: -1, ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let stream = WatchClient::new(channel).watch(tokio_stream::once(request)).await.unwrap();
        let answer = stream.into_inner().message().await.unwrap().unwrap();
        assert_eq!((answer.watch_id, answer.created, answer.canceled), (-1, true, true));
        assert_eq!(answer.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    });
}

#[test]
fn a_server_stops_although_a_stream_is_open() {
    let harness = Harness::start();
    let stream = harness.run(async |channel| {
        let requests = tokio_stream::pending::<pb::WatchRequest>();
        WatchClient::new(channel).watch(requests).await.unwrap().into_inner()
    });
    drop(harness);
    drop(stream);
}

/// Tools ask in two versions of the question.
#[test]
fn services_are_told_to_tools_that_ask() {
    use tonic_reflection::pb::{v1, v1alpha};
    let harness = Harness::start();
    let named = harness.run(async |channel| {
        let ask = v1::ServerReflectionRequest {
            message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap().message_response.unwrap()
    });
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(list) = named else {
        panic!("{named:?}")
    };
    for service in ["etcdserverpb.KV", "v3lockpb.Lock", "hadron.v1.Pool"] {
        assert!(list.service.iter().any(|known| known.name == service), "{service}");
    }
    let found = harness.run(async |channel| {
        let symbol = "etcdserverpb.RangeRequest".to_owned();
        let ask = v1alpha::ServerReflectionRequest {
            message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                symbol,
            )),
            ..Default::default()
        };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap().message_response.unwrap()
    });
    use v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse;
    assert!(matches!(found, FileDescriptorResponse(files) if !files.file_descriptor_proto.is_empty()));
}

/// One request held every replica up for hours, and again after each restart, since it was in the log.
#[test]
fn a_txn_that_looks_at_too_many_keys_is_refused_before_it_is_proposed() {
    const KEYS: usize = 11;
    // Twice the range, and the put.
    const KEYS_MAX: usize = 2 * (1 + KEYS) + 1;
    let limits = Limits { txn_keys: KEYS_MAX, ..Limits::default() };
    let options = ServerOptions { threads: 2, limits, ..ServerOptions::default() };
    let operation = |request| pb::RequestOp { request: Some(request) };
    let counts = |times| {
        let count = pb::RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            count_only: true,
            ..Default::default()
        };
        vec![operation(Operation::RequestRange(count)); times]
    };
    let reads = |times| pb::TxnRequest { success: counts(times), ..Default::default() };
    let writes = |times| {
        let mut txn = reads(times);
        txn.success.push(operation(Operation::RequestPut(put("other"))));
        txn
    };
    Harness::start_with(options, Traffic::Everything).run(async |channel| {
        let mut client = KvClient::new(channel);
        for number in 0..KEYS {
            client.put(pb::PutRequest { key: format!("k{number}").into(), ..put("k") }).await.unwrap();
        }
        let refused = |keys: usize| {
            format!(
                "hadron: the txn may look at more than {keys} keys: narrow its ranges, or make several of it"
            )
        };
        let status = client.txn(writes(3)).await.unwrap_err();
        assert_status(&status, Code::InvalidArgument, &refused(KEYS_MAX));
        let other = pb::RangeRequest { key: "other".into(), ..Default::default() };
        assert_eq!(client.range(other).await.unwrap().into_inner().count, 0);
        assert!(client.txn(writes(2)).await.unwrap().into_inner().succeeded);
        // Nested, so that there may be so many.
        let nested = pb::TxnRequest {
            success: vec![operation(Operation::RequestTxn(reads(10))); 3],
            ..Default::default()
        };
        let status = client.txn(nested).await.unwrap_err();
        assert_status(&status, Code::InvalidArgument, &refused(10 * KEYS_MAX));
        assert!(client.txn(reads(20)).await.unwrap().into_inner().succeeded);
    });
}

/// A stream that its client left alone for a while, and looked at while the leader changed, found each of the looks that it had missed in vain.
#[test]
fn a_stream_that_nobody_looked_at_for_long_misses_no_leader() {
    let election_timeout = Duration::from_millis(200);
    let options = ServerOptions { election_timeout, ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    let mut metadata = MetadataMap::new();
    metadata.insert("hasleader", "true".parse().unwrap());
    runtime().block_on(async {
        let silent = futures::stream::pending::<Result<(), Status>>();
        let mut stream = WhileLed::new(Arc::clone(&harness.context), &metadata, silent);
        assert!(poll!(stream.next()).is_pending());
        tokio::time::sleep(5 * election_timeout).await;
        harness.backend.set_leader(false);
        assert!(poll!(stream.next()).is_pending());
        assert_eq!(stream.next().await.unwrap().unwrap_err().message(), "etcdserver: no leader");
    });
}
