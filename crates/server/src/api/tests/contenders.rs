//! Locks and elections: who gets what, in which order, and who loses it.

use std::time::Duration;

use bytes::Bytes;
use electionpb::election_client::ElectionClient;
use hadron_keyspace::Command;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use hadron_proto::v3electionpb as electionpb;
use hadron_proto::v3lockpb as lockpb;
use lockpb::lock_client::LockClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::auth::{Client, options, switched_on};
use super::harness::Harness;
use crate::api::{Traffic, Unavailable};

async fn grant(channel: &Channel, id: i64) {
    let request = pb::LeaseGrantRequest { ttl: 600, id };
    LeaseClient::new(channel.clone()).lease_grant(request).await.unwrap();
}

async fn revoke(channel: &Channel, id: i64) {
    LeaseClient::new(channel.clone()).lease_revoke(pb::LeaseRevokeRequest { id }).await.unwrap();
}

/// The keys of a queue, in the order of their creation.
async fn queue(channel: &Channel, prefix: &'static str, end: &'static str) -> Vec<Bytes> {
    let request = pb::RangeRequest {
        key: prefix.into(),
        range_end: end.into(),
        sort_target: pb::range_request::SortTarget::Create as i32,
        sort_order: pb::range_request::SortOrder::Ascend as i32,
        ..Default::default()
    };
    let response = KvClient::new(channel.clone()).range(request).await.unwrap();
    response.into_inner().kvs.into_iter().map(|kv| kv.key).collect()
}

/// Waits until there are so many contenders.
async fn queue_of(channel: &Channel, prefix: &'static str, end: &'static str, count: usize) -> Vec<Bytes> {
    loop {
        let keys = queue(channel, prefix, end).await;
        if keys.len() == count {
            return keys;
        }
        tokio::task::yield_now().await;
    }
}

fn lock(channel: &Channel, lease: i64) -> tokio::task::JoinHandle<Result<lockpb::LockResponse, Status>> {
    let mut client = LockClient::new(channel.clone());
    let request = lockpb::LockRequest { name: "l".into(), lease };
    tokio::spawn(async move { client.lock(request).await.map(tonic::Response::into_inner) })
}

fn revision(response: &lockpb::LockResponse) -> i64 {
    response.header.unwrap().revision
}

#[test]
fn a_lock_goes_from_one_to_the_next_in_the_order_of_asking_with_growing_revisions() {
    Harness::start().run(async |channel| {
        let mut waiting = Vec::new();
        for lease in [30, 20, 10] {
            grant(&channel, lease).await;
            waiting.push(lock(&channel, lease));
            queue_of(&channel, "l/", "l0", waiting.len()).await;
        }
        let mut fence = 0;
        for (call, key) in waiting.into_iter().zip(["l/1e", "l/14", "l/a"]) {
            let held = call.await.unwrap().unwrap();
            assert_eq!(held.key, key);
            assert!(revision(&held) > fence, "{held:?} after {fence}");
            fence = revision(&held);
            let unlock = lockpb::UnlockRequest { key: held.key };
            LockClient::new(channel.clone()).unlock(unlock).await.unwrap();
        }
    });
}

#[test]
fn who_holds_a_lock_gets_it_again_at_once() {
    Harness::start().run(async |channel| {
        grant(&channel, 1).await;
        let first = lock(&channel, 1).await.unwrap().unwrap();
        let again = lock(&channel, 1).await.unwrap().unwrap();
        assert_eq!(first.key, again.key);
        // Without a lease everybody is somebody else.
        let mut anonymous = LockClient::new(channel.clone());
        let request = |name: &'static str| lockpb::LockRequest { name: name.into(), lease: 0 };
        let (one, two) =
            (anonymous.lock(request("a")).await.unwrap(), anonymous.lock(request("b")).await.unwrap());
        assert_ne!(one.into_inner().key.slice(2..), two.into_inner().key.slice(2..));
    });
}

/// Whoever asked again for what it had, and could not be told that it has it, lost it to the next one.
#[test]
fn who_asks_again_in_vain_for_what_it_holds_keeps_it() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        grant(&channel, 2).await;
        lock(&channel, 1).await.unwrap().unwrap();
        let campaign = electionpb::CampaignRequest { name: "e".into(), lease: 1, value: "v".into() };
        let mut elections = ElectionClient::new(channel.clone());
        elections.campaign(campaign.clone()).await.unwrap();

        harness.backend.read_until_write();
        assert_eq!(lock(&channel, 1).await.unwrap().unwrap_err().message(), "etcdserver: leader changed");
        harness.backend.read_until_write();
        elections.campaign(campaign).await.unwrap_err();
        // This one was not there before, and leaves after them.
        harness.backend.read_until_write();
        lock(&channel, 2).await.unwrap().unwrap_err();
        harness.backend.set_cannot_read(false);
        assert_eq!(queue_of(&channel, "l/", "l0", 1).await, ["l/1"]);
        assert_eq!(queue(&channel, "e/", "e0").await, ["e/1"]);
    });
}

#[test]
fn the_end_of_a_lease_ends_the_ownership_and_the_waiting() {
    Harness::start().run(async |channel| {
        for lease in [1, 2, 3] {
            grant(&channel, lease).await;
        }
        lock(&channel, 1).await.unwrap().unwrap();
        let second = lock(&channel, 2);
        queue_of(&channel, "l/", "l0", 2).await;
        let third = lock(&channel, 3);
        queue_of(&channel, "l/", "l0", 3).await;
        // etcd lets it wait for the owner all the same, and tells it then.
        revoke(&channel, 2).await;
        let error = second.await.unwrap().unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unknown, "mutex: session is expired"));
        revoke(&channel, 1).await;
        assert_eq!(third.await.unwrap().unwrap().key, "l/3");
    });
}

#[test]
fn a_caller_that_hangs_up_leaves_the_queue() {
    Harness::start().run(async |channel| {
        for lease in [1, 2] {
            grant(&channel, lease).await;
        }
        lock(&channel, 1).await.unwrap().unwrap();
        let waiting = lock(&channel, 2);
        queue_of(&channel, "l/", "l0", 2).await;
        waiting.abort();
        assert_eq!(queue_of(&channel, "l/", "l0", 1).await, ["l/1"]);
    });
}

/// Until the server has dropped what was given up: it hears of that before it hears of a later call.
async fn given_up(channel: &Channel) {
    for _ in 0..2 {
        let local = pb::RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
        KvClient::new(channel.clone()).range(local).await.unwrap();
    }
}

/// Whoever hung up before it heard that it is in the queue stayed there as long as its lease lived, and all others waited.
#[test]
fn a_caller_that_hangs_up_while_it_comes_leaves_the_queue() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        let held = harness.backend.hold_answers().await;
        let call = lock(&channel, 1);
        queue_of(&channel, "l/", "l0", 1).await;
        call.abort();
        assert!(call.await.is_err());
        given_up(&channel).await;
        drop(held);
        queue_of(&channel, "l/", "l0", 0).await;
    });
}

async fn kv(channel: &Channel, key: &'static str) -> Option<KeyValue> {
    let request = pb::RangeRequest { key: key.into(), serializable: true, ..Default::default() };
    KvClient::new(channel.clone()).range(request).await.unwrap().into_inner().kvs.pop()
}

/// The first call removed the key as late as its node heard of a leader again, although the second one had been told that it has the lock.
#[test]
fn a_call_that_was_given_up_does_not_take_away_what_the_next_one_got() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        let held = harness.backend.hold_answers().await;
        let first = lock(&channel, 1);
        queue_of(&channel, "l/", "l0", 1).await;
        first.abort();
        assert!(first.await.is_err());
        given_up(&channel).await;
        let second = lock(&channel, 1);
        while kv(&channel, "l/1").await.unwrap().version < 2 {
            tokio::task::yield_now().await;
        }
        drop(held);
        let locked = second.await.unwrap().unwrap();
        // Two that came, and that of the first call, in vain.
        while harness.context.metrics.txn_total.get() < 3 {
            tokio::task::yield_now().await;
        }
        let after = pb::PutRequest { key: "after".into(), ..Default::default() };
        KvClient::new(channel.clone()).put(after).await.unwrap();
        assert_eq!(kv(&channel, "l/1").await.map(|own| own.key), Some(locked.key));
    });
}

/// One call of a lease waited, and the next one, which had come in its place, was given up as well before it had looked who is first. Nobody knew that
/// the lease is in the queue, and all others waited for its end.
#[test]
fn calls_that_were_all_given_up_leave_nothing_in_the_queue() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        grant(&channel, 2).await;
        lock(&channel, 1).await.unwrap().unwrap();
        let first = lock(&channel, 2);
        queue_of(&channel, "l/", "l0", 2).await;
        harness.backend.read_until_write();
        lock(&channel, 2).await.unwrap().unwrap_err();
        first.abort();
        assert!(first.await.is_err());
        given_up(&channel).await;
        harness.backend.set_cannot_read(false);
        assert_eq!(queue_of(&channel, "l/", "l0", 1).await, ["l/1"]);
    });
}

/// A call of a waiting lease that its client gave up while there was no leader came when there was one, and then left: the lease's next call, which
/// waited meanwhile, was told that its lease has ended.
#[test]
fn a_call_that_waits_for_a_leader_in_vain_has_not_begun() {
    let harness = Harness::start();
    harness.run(async |channel| {
        harness.backend.set_cannot_read(true);
        grant(&channel, 1).await;
        let error = lock(&channel, 1).await.unwrap().unwrap_err();
        assert_eq!(error.message(), "etcdserver: leader changed");
        assert_eq!(kv(&channel, "l/1").await, None);
        assert_eq!(harness.context.metrics.txn_total.get(), 0);
    });
}

/// A call that had been given up said what it was to say once its node heard of a leader again, although the lease's next call had won with something
/// else.
#[test]
fn a_call_that_was_given_up_says_nothing_for_the_leader() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        campaign(channel.clone(), 1, "new").await;
        let held = harness.backend.hold_answers().await;
        let late = tokio::spawn(campaign(channel.clone(), 1, "old"));
        while kv(&channel, "e/1").await.unwrap().version < 2 {
            tokio::task::yield_now().await;
        }
        late.abort();
        assert!(late.await.is_err());
        given_up(&channel).await;
        drop(held);
        let after = pb::PutRequest { key: "after".into(), ..Default::default() };
        KvClient::new(channel.clone()).put(after).await.unwrap();
        assert_eq!(kv(&channel, "e/1").await.unwrap().value, "new");
    });
}

fn delete(key: &'static str) -> Command {
    Command::DeleteRange(pb::DeleteRangeRequest { key: key.into(), ..Default::default() })
}

/// Whoever lost its key between two reads, and the older one as well, was told that it has the lock.
#[test]
fn whoever_loses_its_place_while_it_looks_owns_nothing() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        harness.backend.come_before_reads([None, None, Some(delete("l/1"))]);
        let error = lock(&channel, 1).await.unwrap().unwrap_err();
        assert_eq!(error.message(), "mutex: session is expired");
    });
}

/// Otherwise the other call of the lease could leave after this one has told its client that it owns the queue.
#[test]
fn whoever_wins_has_the_last_write() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        let other = Command::Put(pb::PutRequest { key: "l/1".into(), lease: 1, ..Default::default() });
        harness.backend.come_before_reads([None, None, Some(other)]);
        let locked = lock(&channel, 1).await.unwrap().unwrap();
        let own = kv(&channel, "l/1").await.unwrap();
        assert_eq!((own.version, own.mod_revision), (3, revision(&locked)));
        // Its lease is that of the lock still.
        revoke(&channel, 1).await;
        assert_eq!(kv(&channel, "l/1").await, None);
    });
}

/// Without a leader it was tried once.
#[test]
fn a_caller_that_hangs_up_while_there_is_no_leader_leaves_the_queue_later() {
    let harness = Harness::start();
    harness.run(async |channel| {
        grant(&channel, 1).await;
        grant(&channel, 2).await;
        lock(&channel, 1).await.unwrap().unwrap();
        let call = lock(&channel, 2);
        queue_of(&channel, "l/", "l0", 2).await;
        harness.backend.fail_with(Some(Unavailable::NoLeader));
        call.abort();
        assert!(call.await.is_err());
        given_up(&channel).await;
        harness.backend.fail_with(None);
        assert_eq!(queue_of(&channel, "l/", "l0", 1).await, ["l/1"]);
    });
}

#[test]
fn refusals_are_those_of_etcd() {
    Harness::start().run(async |channel| {
        let error = lock(&channel, 77).await.unwrap().unwrap_err();
        assert_eq!((error.code(), error.message()), (Code::Unknown, "etcdserver: requested lease not found"));
        let unlock =
            LockClient::new(channel.clone()).unlock(lockpb::UnlockRequest::default()).await.unwrap_err();
        assert_eq!((unlock.code(), unlock.message()), (Code::Unknown, "etcdserver: key is not provided"));
        let mut client = ElectionClient::new(channel);
        let leader = client.leader(electionpb::LeaderRequest { name: "e".into() }).await.unwrap_err();
        assert_eq!((leader.code(), leader.message()), (Code::Unknown, "election: no leader"));
        let missing = "\"leader\" field must be provided";
        assert_eq!(client.resign(electionpb::ResignRequest::default()).await.unwrap_err().message(), missing);
        assert_eq!(
            client.proclaim(electionpb::ProclaimRequest::default()).await.unwrap_err().message(),
            missing
        );
        let nobody = electionpb::LeaderKey { name: "e".into(), key: "e/1".into(), rev: 2, lease: 1 };
        let request = electionpb::ProclaimRequest { leader: Some(nobody.clone()), value: "v".into() };
        assert_eq!(client.proclaim(request).await.unwrap_err().message(), "election: not leader");
        // To resign from what one does not have is no error.
        client.resign(electionpb::ResignRequest { leader: Some(nobody) }).await.unwrap();
    });
}

async fn campaign(channel: Channel, lease: i64, value: &'static str) -> electionpb::LeaderKey {
    let request = electionpb::CampaignRequest { name: "e".into(), lease, value: value.into() };
    let response = ElectionClient::new(channel).campaign(request).await.unwrap();
    response.into_inner().leader.unwrap()
}

#[test]
fn observers_see_what_each_leader_says() {
    Harness::start().run(async |channel| {
        for lease in [1, 2] {
            grant(&channel, lease).await;
        }
        let mut client = ElectionClient::new(channel.clone());
        let name = || electionpb::LeaderRequest { name: "e".into() };
        let mut seen = client.observe(name()).await.unwrap().into_inner();
        let first = campaign(channel.clone(), 1, "one").await;
        let said = |response: Option<electionpb::LeaderResponse>| response.unwrap().kv.unwrap();
        assert_eq!(said(seen.message().await.unwrap()).value, "one");
        let second = tokio::spawn(campaign(channel.clone(), 2, "two"));
        queue_of(&channel, "e/", "e0", 2).await;
        let proclaim = electionpb::ProclaimRequest { leader: Some(first.clone()), value: "one more".into() };
        client.proclaim(proclaim).await.unwrap();
        assert_eq!(said(seen.message().await.unwrap()).value, "one more");
        let leader = client.leader(name()).await.unwrap().into_inner().kv.unwrap();
        assert_eq!((leader.key, leader.create_revision), (first.key.clone(), first.rev));
        client.resign(electionpb::ResignRequest { leader: Some(first.clone()) }).await.unwrap();
        let second = second.await.unwrap();
        assert!(second.rev > first.rev && second.lease == 2);
        assert_eq!(said(seen.message().await.unwrap()).value, "two");
        // A candidate that comes again says what it says now.
        assert_eq!(campaign(channel.clone(), 2, "two more").await, second);
        let heard =
            [seen.message().await.unwrap(), seen.message().await.unwrap()].map(|heard| said(heard).value);
        assert_eq!(heard, ["two", "two more"]);
    });
}

/// What an observer was asked for its token at each proclamation: it ended with that.
#[test]
fn an_observer_hears_more_after_its_token_has_ended() {
    let harness = Harness::start_with(options(), Traffic::Everything);
    harness.run(async |channel| {
        let (nobody, root, alice) = switched_on(channel.clone()).await;
        let mut client = ElectionClient::new(channel);
        let observe = electionpb::LeaderRequest { name: "a".into() };
        let mut seen = client.observe(alice.request(observe)).await.unwrap().into_inner();
        let mut said = async || {
            let said = tokio::time::timeout(Duration::from_secs(20), seen.message()).await.unwrap();
            said.map(|said| said.unwrap().kv.unwrap().value)
        };
        let campaign = |root: &Client, value: &'static str| {
            let request = electionpb::CampaignRequest { name: "a".into(), lease: 0, value: value.into() };
            let (mut client, request) = (client.clone(), root.request(request));
            async move { client.campaign(request).await.unwrap().into_inner().leader }
        };
        let leader = campaign(&root, "one").await;
        assert_eq!(said().await.unwrap(), "one");
        harness.backend.advance_ms(301_000);
        let root = nobody.log_in("root", "r").await.unwrap();
        let proclaim = |leader: &Option<electionpb::LeaderKey>, value: &'static str| {
            electionpb::ProclaimRequest { leader: leader.clone(), value: value.into() }
        };
        let mut leading = ElectionClient::new(root.channel.clone());
        leading.proclaim(root.request(proclaim(&leader, "two"))).await.unwrap();
        assert_eq!(said().await.unwrap(), "two");
        let resign = electionpb::ResignRequest { leader };
        leading.resign(root.request(resign)).await.unwrap();
        let leader = campaign(&root, "three").await;
        assert_eq!(said().await.unwrap(), "three");
        // What may be read is asked all the same.
        root.revoke("ab", "a", "b").await.unwrap();
        leading.proclaim(root.request(proclaim(&leader, "four"))).await.unwrap();
        assert_eq!(said().await.unwrap_err().message(), "etcdserver: permission denied");
    });
}
