//! The part of `hadron.v1.Pool` that plans: where keyspaces go, and what would be moved.

use hadron_balance::{
    Capacity, Disk, GroupLoad, GroupView, Load, NodeState, NodeView, ReplicaView, Resource, View,
};
use hadron_consensus::{GroupId, NodeId, ROOT_GROUP, Time};
use hadron_proto::etcdserverpb as etcd;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::lease_client::LeaseClient;
use hadron_proto::hadron as pb;
use pb::pool_client::PoolClient;
use tonic::Code;

use super::harness::{Harness, OTHER, OWN};
use crate::api::Backend as _;

fn cpu(cores: f64) -> Load {
    Load::ZERO.with(Resource::Cpu, cores)
}

/// OWN, OTHER and a third node of ten cores each, all heard of. Group 2 is on the first, group 3 on the first two.
fn view() -> View {
    let node = NodeView { capacity: Capacity::of(cpu(10.0)), ..NodeView::default() };
    let mut view = View { now: Time(1), ..View::default() };
    view.nodes.extend([OWN, OTHER, NodeId(3)].map(|id| (id, node.clone())));
    for (group, nodes) in [(2, vec![OWN]), (3, vec![OWN, OTHER])] {
        let group_view = GroupView {
            factor: nodes.len(),
            leader: Some(OWN),
            replicas: nodes.into_iter().map(ReplicaView::voter).collect(),
            load: GroupLoad { leader: cpu(1.0), replica: cpu(1.0) },
            bytes: 1_000,
            ..GroupView::default()
        };
        view.groups.insert(GroupId(group), group_view);
    }
    view
}

#[test]
fn what_would_be_moved_is_told_and_nothing_is_done() {
    let harness = Harness::start();
    harness.backend.add_member();
    harness.backend.create("a", OWN);
    harness.backend.set_view(view());
    harness.run(async |channel| {
        let mut client = PoolClient::new(channel);
        let drain = pb::BalanceSimulateRequest { drain: vec![OWN.0], add: 1, ..Default::default() };
        let told = client.balance_simulate(drain.clone()).await.unwrap().into_inner();
        assert!(told.settled && !told.paused);
        assert_eq!(told.move_count as usize, told.moves.len());
        let drained = &told.nodes[0];
        assert_eq!((drained.name.as_str(), drained.draining), ("test", true));
        assert_eq!((drained.replicas_before, drained.replicas_after), (2, 0));
        assert!(drained.load_before > 0.3 && drained.load_after == 0.0);
        assert!(drained.share_before > drained.share_after);
        let added = told.nodes.iter().find(|node| node.added).unwrap();
        assert_eq!((added.name.as_str(), told.nodes.len()), ("new-1", 4));
        let planned: Vec<_> = told.moves.iter().map(|it| it.planned.clone().unwrap()).collect();
        assert!(planned.iter().any(|it| it.keyspace == "a" && it.reason == "test is drained"), "{planned:?}");
        let sent = planned.iter().filter(|it| it.kind.starts_with("replica test → ")).count() as u64;
        assert_eq!((sent, told.bytes), (2, 2_000), "{planned:?}");
        assert_eq!(client.balance_simulate(drain).await.unwrap().into_inner(), told, "nothing was done");
        assert!(
            client
                .node_list(pb::NodeListRequest {})
                .await
                .unwrap()
                .into_inner()
                .nodes
                .iter()
                .all(|it| !it.draining)
        );

        let gone = pb::BalanceSimulateRequest { remove: vec![OWN.0], ..Default::default() };
        let told = client.balance_simulate(gone).await.unwrap().into_inner();
        assert_eq!((told.without_quorum, told.nodes[0].removed, told.nodes[0].replicas_after), (2, true, 2));
    });
}

#[test]
fn a_simulation_needs_to_know_the_pool() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = PoolClient::new(channel);
        let none = pb::BalanceSimulateRequest::default();
        assert_eq!(client.balance_simulate(none).await.unwrap_err().code(), Code::Unavailable);
        harness.backend.set_view(view());
        let stranger = pb::BalanceSimulateRequest { drain: vec![77], ..Default::default() };
        assert_eq!(client.balance_simulate(stranger).await.unwrap_err().code(), Code::NotFound);
        let many = pb::BalanceSimulateRequest { add: 1_001, ..Default::default() };
        assert_eq!(client.balance_simulate(many).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn a_keyspace_comes_to_the_node_with_the_least_load() {
    let pool = Harness::start_pool(2);
    let harness = &pool[0];
    harness.backend.add_member();
    harness.backend.set_view(view());
    // What the other node would hear of by the root group.
    pool[1].backend.create("a", OTHER);
    harness.run(async |channel| {
        let mut client = PoolClient::new(channel);
        let create = pb::KeyspaceCreateRequest { name: "a".into(), replicas: 1, ..Default::default() };
        let made = client.keyspace_create(create).await.unwrap().into_inner();
        assert_eq!(made.leader, OTHER.0, "it is elsewhere");
        let get = pb::KeyspaceGetRequest { name: "a".into() };
        let nodes = async |client: &mut PoolClient<_>| {
            let replicas = client.keyspace_get(get.clone()).await.unwrap().into_inner().replicas;
            replicas.into_iter().map(|replica| replica.node).collect::<Vec<_>>()
        };
        assert_eq!(nodes(&mut client).await, [OTHER.0], "node 3 is less loaded, but no member");
        let resize = |replicas| pb::KeyspaceUpdateRequest {
            name: "a".into(),
            replicas: Some(replicas),
            ..Default::default()
        };
        // The number first and the places later, the planner added a replica in between.
        let revision = || harness.backend.keyspace(ROOT_GROUP).unwrap().revision();
        let before = revision();
        client.keyspace_update(resize(2)).await.unwrap();
        assert_eq!(revision(), before + 1, "the number of replicas and their places change at once");
        assert_eq!(nodes(&mut client).await, [OWN.0, OTHER.0]);
        let mut down = view();
        down.nodes.get_mut(&OTHER).unwrap().state = NodeState::Suspected { since: Time(1) };
        harness.backend.set_view(down);
        assert_eq!(client.keyspace_update(resize(1)).await.map(drop).map_err(|it| it.code()), Ok(()));
        assert_eq!(nodes(&mut client).await, [OWN.0], "who is down is left");
    });
}

/// A drain waited without a word when there was no room for what it had to move.
#[test]
fn a_node_that_does_not_get_empty_says_why() {
    let harness = Harness::start();
    harness.backend.add_member();
    let mut full = view();
    full.nodes.get_mut(&OWN).unwrap().draining = true;
    for id in [OTHER, NodeId(3)] {
        full.nodes.get_mut(&id).unwrap().disk = Disk { used: 90, total: 100 };
    }
    harness.backend.set_view(full.clone());
    harness.run(async |channel| {
        let mut client = PoolClient::new(channel);
        let drain = |drain| pb::NodeDrainRequest { node: OWN.0, drain };
        let told = client.node_drain(drain(true)).await.unwrap().into_inner().waiting;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].reason.as_str(), told[0].replicas), ("disks-full", 2));
        assert_eq!(told[0].text, "the disks of the nodes that could take them are too full");
        let status = client.balance_status(pb::BalanceStatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.nodes[0].waiting, told);
        let nodes = client.node_list(pb::NodeListRequest {}).await.unwrap().into_inner().nodes;
        assert_eq!((&nodes[0].waiting, nodes[1].waiting.len()), (&told, 0));

        full.nodes.get_mut(&OTHER).unwrap().disk = Disk::default();
        harness.backend.set_view(full.clone());
        let told = client.node_drain(drain(true)).await.unwrap().into_inner().waiting;
        let reasons: Vec<_> = told.iter().map(|it| (it.reason.as_str(), it.replicas)).collect();
        assert_eq!(reasons, [("disks-full", 1), ("turn", 1)]);
        full.nodes.get_mut(&OTHER).unwrap().capacity = Capacity::default();
        harness.backend.set_view(full);
        let told = client.node_drain(drain(true)).await.unwrap().into_inner().waiting;
        assert_eq!(told, [], "it has not heard of all nodes, and knows of no disk");
        assert_eq!(client.node_drain(drain(false)).await.unwrap().into_inner().waiting, []);
    });
}

/// What a prefix or a client causes of a resource.
pub(super) fn load(entry: &pb::TopEntry, resource: &str) -> f64 {
    entry.loads.iter().find(|load| load.resource == resource).unwrap().short
}

#[test]
fn prefixes_and_clients_are_told_of_with_what_they_cost() {
    Harness::start().run(async |channel| {
        let mut kv = KvClient::new(channel.clone());
        for number in 0..30 {
            let key = |prefix: &str| format!("{prefix}/{number}").into_bytes().into();
            let put = etcd::PutRequest {
                key: key("/registry/pods/ns"),
                value: vec![7; 100].into(),
                ..Default::default()
            };
            kv.put(put).await.unwrap();
            if number % 3 == 0 {
                let range = etcd::RangeRequest { key: key("jobs/queue"), ..Default::default() };
                kv.range(range).await.unwrap();
            }
        }
        let mut leases = LeaseClient::new(channel.clone());
        leases.lease_grant(etcd::LeaseGrantRequest { ttl: 60, id: 7 }).await.unwrap();
        let ids = tokio_stream::iter((0..9).map(|_| etcd::LeaseKeepAliveRequest { id: 7 }));
        let mut kept = leases.lease_keep_alive(ids).await.unwrap().into_inner();
        while kept.message().await.unwrap().is_some() {}
        let mut client = PoolClient::new(channel);
        let mut top = async |by: pb::TopBy| {
            let top = client.top(pb::TopRequest { by: by.into() }).await.unwrap().into_inner();
            assert!(top.keyspaces.is_empty());
            top.entries
        };
        let prefixes = top(pb::TopBy::Prefix).await;
        let names: Vec<_> = prefixes.iter().map(|it| (it.keyspace.as_str(), it.name.as_ref())).collect();
        assert_eq!(names, [("default", b"/registry/pods/".as_slice()), ("default", b"jobs/queue/")]);
        assert!(
            (load(&prefixes[0], "cpu") - 2.0 * 45.0 / 70.0).abs() < 1e-6,
            "45 of 70 parts of two cores: {prefixes:?}"
        );
        assert!(load(&prefixes[0], "written") > 25.0 * load(&prefixes[0], "requests"));
        assert_eq!(load(&prefixes[1], "written"), 0.0);
        let clients = top(pb::TopBy::Client).await;
        assert_eq!(clients.len(), 1);
        assert_eq!(clients[0].name.as_ref(), b"127.0.0.1");
        assert!(
            (load(&clients[0], "cpu") - 2.0).abs() < 1e-6,
            "leases, which have no prefix, count for it too"
        );
    });
}
