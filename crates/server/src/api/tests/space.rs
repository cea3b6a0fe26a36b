//! The quota, its alarm, and what goes on while it is raised; and the calls that have nothing to do here.

use hadron_proto::authpb::Permission;
use hadron_proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request as Operation;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::harness::Harness;
use crate::api::{Limits, ServerOptions, Traffic};

const QUOTA_BYTES: u64 = 10_000;

fn with_quota() -> Harness {
    let limits = Limits { quota_bytes: Some(QUOTA_BYTES), ..Limits::default() };
    Harness::start_with(ServerOptions { threads: 1, limits, ..ServerOptions::default() }, Traffic::Everything)
}

fn put(key: String) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: vec![7; 1_000].into(), ..Default::default() }
}

async fn alarms(channel: &Channel, action: AlarmAction) -> Vec<pb::AlarmMember> {
    // As etcdctl disarms: each alarm that is listed.
    let request =
        pb::AlarmRequest { action: action as i32, member_id: 1, alarm: pb::AlarmType::Nospace as i32 };
    MaintenanceClient::new(channel.clone()).alarm(request).await.unwrap().into_inner().alarms
}

fn assert_no_space<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let status = answer.unwrap_err();
    let expected = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
    assert_eq!((status.code(), status.message()), expected);
}

/// How many are taken in until there is no space.
async fn taken_in<T>(mut take_in: impl AsyncFnMut(usize) -> Result<T, Status>) -> usize {
    for number in 0..1_000 {
        if let Err(status) = take_in(number).await {
            assert_no_space(Err::<(), _>(status));
            return number;
        }
    }
    panic!("a thousand are taken in, and no end");
}

fn txn(operation: Operation) -> pb::TxnRequest {
    pb::TxnRequest { success: vec![pb::RequestOp { request: Some(operation) }], ..Default::default() }
}

#[test]
fn a_full_keyspace_takes_nothing_in_until_it_is_disarmed_and_not_full() {
    let harness = with_quota();
    harness.run(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        let taken = taken_in(async |number| kv.put(put(format!("k{number}"))).await).await;
        assert!((6..=9).contains(&taken), "{taken} puts of a thousand bytes");
        let raised = pb::AlarmMember { member_id: 1, alarm: pb::AlarmType::Nospace as i32 };
        assert_eq!(alarms(&channel, AlarmAction::Get).await, [raised]);
        let status = MaintenanceClient::new(channel.clone()).status(pb::StatusRequest {}).await.unwrap();
        let status = status.into_inner();
        assert_eq!(status.db_size_quota, QUOTA_BYTES as i64);
        assert_eq!(status.errors, ["memberID:1 alarm:NOSPACE "]);

        // What would fit is refused as well, in etcd's order; what frees space is not.
        let small = pb::PutRequest { key: "s".into(), ..Default::default() };
        assert_no_space(kv.put(small.clone()).await);
        assert_no_space(kv.txn(txn(Operation::RequestPut(small.clone()))).await);
        assert_no_space(kv.txn(txn(Operation::RequestTxn(txn(Operation::RequestPut(small.clone()))))).await);
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 9 };
        assert_no_space(LeaseClient::new(channel.clone()).lease_grant(grant).await);
        let all = || pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        let deleted = kv.txn(txn(Operation::RequestDeleteRange(all()))).await.unwrap().into_inner();
        let revision = deleted.header.unwrap().revision;
        kv.compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
        assert_no_space(kv.put(small.clone()).await);

        assert_eq!(alarms(&channel, AlarmAction::Deactivate).await, [raised]);
        assert_eq!(alarms(&channel, AlarmAction::Deactivate).await, []);
        // Nothing has been freed here: the next one raises it again.
        assert_no_space(kv.put(small).await);
        assert_eq!(alarms(&channel, AlarmAction::Get).await, [raised]);
    });
}

/// They did not count: a tenant could fill the memory of all replicas with leases, whatever its bound.
#[test]
fn leases_users_and_roles_need_space_as_well() {
    let harness = with_quota();
    harness.run(async |channel| {
        let mut leases = LeaseClient::new(channel.clone());
        let grant = |number| pb::LeaseGrantRequest { ttl: 60, id: number as i64 + 1 };
        let granted = taken_in(async |number| leases.lease_grant(grant(number)).await).await as i64;
        assert_eq!(granted, QUOTA_BYTES as i64 / 100 - 1);
        for id in 1..=granted {
            leases.lease_revoke(pb::LeaseRevokeRequest { id }).await.unwrap();
        }
        assert_eq!(alarms(&channel, AlarmAction::Deactivate).await.len(), 1);

        let mut auth = AuthClient::new(channel.clone());
        let name = |number: usize| format!("{number}{}", "r".repeat(300));
        let add = |number| pb::AuthRoleAddRequest { name: name(number) };
        let added = taken_in(async |number| auth.role_add(add(number)).await).await;
        assert!((10..20).contains(&added), "{added} roles");
        assert_no_space(KvClient::new(channel.clone()).put(put("k".into())).await);
        let key = vec![7; 300].into();
        let perm = Some(Permission { key, ..Default::default() });
        assert_no_space(
            auth.role_grant_permission(pb::AuthRoleGrantPermissionRequest { name: name(0), perm }).await,
        );
        for number in 0..added {
            auth.role_delete(pb::AuthRoleDeleteRequest { role: name(number) }).await.unwrap();
        }
        assert_eq!(alarms(&channel, AlarmAction::Deactivate).await.len(), 1);
        KvClient::new(channel.clone()).put(put("k".into())).await.unwrap();
    });
}

/// All that was ever raised is stored and looked at again and again.
#[test]
fn alarms_of_no_kind_and_without_end_are_not_raised() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = MaintenanceClient::new(channel.clone());
        let mut alarm = async |action: AlarmAction, member_id, alarm| {
            let request = pb::AlarmRequest { action: action as i32, member_id, alarm };
            client.alarm(request).await.map(|answer| answer.into_inner().alarms.len())
        };
        for kind in [-1, 3, i32::MAX] {
            let refused = alarm(AlarmAction::Activate, 1, kind).await.unwrap_err();
            let text = format!("hadron: there are no alarms of the type {kind}");
            assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, text.as_str()));
            assert_eq!(alarm(AlarmAction::Deactivate, 1, kind).await.unwrap(), 0);
        }
        // As in etcd, of anybody.
        let (corrupt, max) = (pb::AlarmType::Corrupt as i32, 256);
        for member in 1..=max {
            assert_eq!(alarm(AlarmAction::Activate, member, corrupt).await.unwrap(), 1);
        }
        let refused = alarm(AlarmAction::Activate, max + 1, corrupt).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(alarm(AlarmAction::Activate, max, corrupt).await.unwrap(), 1, "it is raised already");
        assert_eq!(alarm(AlarmAction::Deactivate, 1, corrupt).await.unwrap(), 1);
        assert_eq!(alarm(AlarmAction::Activate, max + 1, corrupt).await.unwrap(), 1);
        assert_eq!(alarm(AlarmAction::Get, 0, 0).await.unwrap() as u64, max);
    });
}

#[test]
fn without_a_quota_there_is_no_bound() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        for n in 0..50 {
            kv.put(put(format!("k{n}"))).await.unwrap();
        }
        assert_eq!(alarms(&channel, AlarmAction::Get).await, []);
    });
}

#[test]
fn defragmentation_and_downgrades_are_answered_and_do_nothing() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = MaintenanceClient::new(channel);
        // As in etcd, without a header.
        assert!(client.defragment(pb::DefragmentRequest {}).await.unwrap().into_inner().header.is_none());
        let hash = client.hash(pb::HashRequest {}).await.unwrap().into_inner().hash;
        let hash_kv = client.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner().hash;
        assert_eq!(hash, hash_kv);
        let mut downgrade = async |action: pb::downgrade_request::DowngradeAction, version: &str| {
            let request = pb::DowngradeRequest { action: action as i32, version: version.to_owned() };
            let status = client.downgrade(request).await.unwrap_err();
            (status.code(), status.message().to_owned())
        };
        use pb::downgrade_request::DowngradeAction::{Cancel, Enable, Validate};
        let text = |text: &str| format!("etcdserver: {text}");
        let invalid = (Code::InvalidArgument, text("invalid downgrade target version"));
        assert_eq!(downgrade(Validate, "3.5").await, invalid);
        assert_eq!(downgrade(Enable, "3.5.0").await, invalid);
        let malformed = (Code::InvalidArgument, text("wrong downgrade target version format"));
        assert_eq!(downgrade(Enable, "old").await, malformed);
        let none = (Code::FailedPrecondition, text("no inflight downgrade job"));
        assert_eq!(downgrade(Cancel, "").await, none);
    });
}
