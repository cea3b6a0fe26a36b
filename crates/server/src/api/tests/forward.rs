//! Calls that come to a node without a replica of their keyspace.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use electionpb::election_client::ElectionClient;
use hadron_balance::{Capacity, Load, NodeView, View};
use hadron_consensus::{NodeId, Time};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::hadron;
use hadron_proto::hadron::pool_client::PoolClient;
use hadron_proto::v3electionpb as electionpb;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request};

use super::harness::{Harness, OTHER, OWN};
use super::keyspaces::{all, content, http, put, put_request, range, to, watch};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two nodes, and a keyspace that is on the second one.
fn far() -> Vec<Harness> {
    let pool = Harness::start_pool(2);
    pool.iter().for_each(|node| node.backend.create("far", OTHER));
    pool
}

#[test]
fn a_keyspace_elsewhere_is_as_one_that_is_here() {
    let pool = far();
    pool[0].run(async |channel| {
        let far = || to(&channel, "far");
        let header = put(far(), "k", "v").await.unwrap().header.unwrap();
        assert_eq!((header.member_id, header.revision), (OTHER.0, 2));
        assert_eq!(content(far()).await.unwrap(), ["k=v"]);
        assert_eq!(content(to(&channel, "")).await.unwrap(), [""; 0]);

        let (_requests, mut events) = watch(far()).await;
        put(far(), "k", "w").await.unwrap();
        let seen = timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(seen.events.len(), 1);

        let grant = pb::LeaseGrantRequest { ttl: 60, id: 9 };
        LeaseClient::new(far()).lease_grant(grant).await.unwrap();
        let (sender, requests) = tokio::sync::mpsc::channel(4);
        let mut alive = LeaseClient::new(far())
            .lease_keep_alive(ReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        for _ in 0..3 {
            sender.send(pb::LeaseKeepAliveRequest { id: 9 }).await.unwrap();
            assert_eq!(alive.message().await.unwrap().unwrap().ttl, 60);
        }

        let status = KvClient::new(far()).put(pb::PutRequest { lease: 1, ..put_request("k", "v") }).await;
        assert_eq!(status.unwrap_err().message(), "etcdserver: requested lease not found");
        let mut backup =
            MaintenanceClient::new(far()).snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
        assert!(!backup.message().await.unwrap().unwrap().blob.is_empty());
        let unknown = put(to(&channel, "none"), "k", "v").await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
    });
    let ask = |method: &str, path: &str, body: &str| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nhadron-keyspace: far");
        http(pool[0].address, &head, body)
    };
    let (code, body) = ask("POST", "/v3/kv/range", r#"{"key": "aw=="}"#);
    assert!(code == 200 && body.contains(r#""value":"dw==""#), "{body}");
    assert_eq!(ask("GET", "/health", "").0, 200);
    assert_eq!(ask("GET", "/metrics", "").0, 403);
}

/// A node without a replica told neither the revision nor the size of a keyspace, and answered that it was made before it had a leader.
#[test]
fn a_keyspace_elsewhere_is_told_of_by_a_node_that_has_it() {
    let pool = far();
    pool[0].backend.add_member();
    pool[1].backend.create("new", OTHER);
    pool[0].run(async |channel| {
        put(to(&channel, "far"), "k", "v").await.unwrap();
        let mut client = PoolClient::new(channel);
        let get = |name: &str| hadron::KeyspaceGetRequest { name: name.to_owned() };
        let told = client.keyspace_get(get("far")).await.unwrap().into_inner();
        assert_eq!((told.leader, told.revision), (OTHER.0, Some(2)));
        assert!(told.db_size.unwrap() > 0);

        pool[0].backend.set_view(lighter_elsewhere());
        pool[1].backend.set_leader(false);
        let create = hadron::KeyspaceCreateRequest { name: "new".into(), replicas: 1, ..Default::default() };
        let mut made = Box::pin(client.keyspace_create(create));
        assert!(timeout(Duration::from_millis(300), &mut made).await.is_err(), "it has no leader yet");
        pool[1].backend.set_leader(true);
        let made = timeout(PATIENCE, made).await.unwrap().unwrap().into_inner();
        assert_eq!(made.leader, OTHER.0);
    });
    pool[0].set_other(OTHER, None);
    pool[0].run(async |channel| {
        let get = hadron::KeyspaceGetRequest { name: "far".to_owned() };
        let told = PoolClient::new(channel).keyspace_get(get).await.unwrap().into_inner();
        assert_eq!((told.leader, told.revision, told.db_size), (0, None, None), "nobody could be asked");
    });
}

/// OTHER carries less than OWN.
fn lighter_elsewhere() -> View {
    let capacity = Capacity::of(Load::each(|_| 10.0));
    let node = |load| NodeView { capacity, own_load: Load::each(|_| load), ..NodeView::default() };
    View { now: Time(1), nodes: [(OWN, node(5.0)), (OTHER, node(0.0))].into(), ..View::default() }
}

#[test]
fn users_are_known_elsewhere_and_nobody_says_that_he_is_another() {
    let pool = far();
    pool[0].run(async |channel| {
        let mut auth = AuthClient::new(to(&channel, "far"));
        let root = || "root".to_owned();
        auth.user_add(pb::AuthUserAddRequest { name: root(), password: root(), ..Default::default() })
            .await
            .unwrap();
        auth.role_add(pb::AuthRoleAddRequest { name: root() }).await.unwrap();
        auth.user_grant_role(pb::AuthUserGrantRoleRequest { user: root(), role: root() }).await.unwrap();
        auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        let token = pb::AuthenticateRequest { name: root(), password: root() };
        let token = auth.authenticate(token).await.unwrap().into_inner().token;

        let ask = async |key: &'static str, value: &str| {
            let mut request = Request::new(all());
            request.metadata_mut().insert(key, value.parse().unwrap());
            KvClient::new(to(&channel, "far"))
                .range(request)
                .await
                .map_err(|status| status.message().to_owned())
        };
        assert!(ask("token", &token).await.is_ok());
        for (key, value) in [("hadron-passed-user", "root"), ("token", "")] {
            let refused = ask(key, value).await.unwrap_err();
            assert!(
                refused.contains("user name is empty") || refused.contains("invalid auth token"),
                "{refused}"
            );
        }
    });
    // The one that has the keyspace does not believe its own clients either.
    pool[1].run(async |channel| {
        let mut request = Request::new(all());
        request.metadata_mut().insert("hadron-passed-user", "root".parse().unwrap());
        let refused = KvClient::new(to(&channel, "far")).range(request).await.unwrap_err();
        assert!(refused.message().contains("user name is empty"), "{refused}");
    });
}

#[test]
fn what_is_too_large_is_refused_where_it_comes_in() {
    far()[0].run(async |channel| {
        for (bytes, text) in [
            (1600 << 10, "etcdserver: request is too large"),
            (3 << 20, "grpc: received message larger than max (3145736 vs. 2097152)"),
        ] {
            let put = pb::PutRequest { value: vec![0; bytes].into(), ..put_request("k", "") };
            let status = KvClient::new(to(&channel, "far")).put(put).await.unwrap_err();
            assert_eq!(status.message(), text);
        }
    });
}

/// Calls that wait for their turn of a lock or an election are held until they have it. They took all the room there was, and nothing was
/// passed on any more, whoever's it was.
#[test]
fn who_waits_for_an_election_leaves_other_keyspaces_room() {
    const MANY: usize = 40;
    const VALUE_BYTES: usize = 1 << 20;
    let pool = far();
    pool.iter().for_each(|node| node.backend.create("away", OTHER));
    pool[0].run(async |channel| {
        let mut candidates = JoinSet::new();
        for _ in 0..MANY {
            let mut client = ElectionClient::new(to(&channel, "far"));
            let (name, value) = ("e".into(), vec![0; VALUE_BYTES].into());
            let request = electionpb::CampaignRequest { name, lease: 0, value };
            candidates.spawn(async move { client.campaign(request).await });
        }
        let refused = async {
            loop {
                if let Err(status) = candidates.join_next().await.unwrap().unwrap() {
                    return status;
                }
            }
        };
        let refused = timeout(PATIENCE, refused).await.unwrap();
        assert_eq!(refused.message(), "etcdserver: too many requests");
        let large = pb::PutRequest { value: vec![0; VALUE_BYTES].into(), ..put_request("k", "") };
        KvClient::new(to(&channel, "away")).put(large).await.unwrap();
    });
}

#[test]
fn a_keyspace_that_moves_is_found() {
    let pool = far();
    let [here, there] = &pool[..] else { panic!("two") };
    here.run(async |channel| {
        let far = || to(&channel, "far");
        put(far(), "k", "v").await.unwrap();
        // It goes further, and this node has not heard of it.
        there.backend.place("far", NodeId(3));
        let waiting = put(far(), "k", "w");
        let moved = async {
            tokio::task::yield_now().await;
            here.backend.place("far", OWN);
        };
        let (answer, ()) = tokio::join!(timeout(PATIENCE, waiting), moved);
        assert_eq!(answer.unwrap().unwrap().header.unwrap().member_id, OWN.0);
    });
    // The other one passes on what comes to it now.
    there.backend.place("far", OWN);
    there.run(async |channel| {
        assert_eq!(put(to(&channel, "far"), "k", "x").await.unwrap().header.unwrap().member_id, OWN.0);
    });
}

#[test]
fn a_stream_ends_when_its_keyspace_is_elsewhere() {
    let pool = far();
    pool[0].run(async |channel| {
        let (_requests, mut events) = watch(to(&channel, "far")).await;
        pool[1].backend.place("far", NodeId(3));
        let end = timeout(PATIENCE, events.message()).await.unwrap().unwrap_err();
        assert_eq!(
            (end.code(), end.message()),
            (Code::Unavailable, "hadron: the keyspace far is on other nodes now: try again")
        );
    });
}

#[test]
fn a_stream_ends_with_the_node_that_it_came_from() {
    let mut pool = far();
    let there = pool.pop();
    pool[0].run(async |channel| {
        let (_requests, mut events) = watch(to(&channel, "far")).await;
        drop(there);
        let end = timeout(PATIENCE, events.message()).await.unwrap().unwrap_err();
        assert_eq!(end.code(), Code::Unavailable, "{end}");
        let status = put(to(&channel, "far"), "k", "v").await.unwrap_err();
        assert!(status.message().contains("nobody who has one took the request"), "{status}");
    });
}

/// Takes calls and hangs up in the middle of them.
fn broken() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (mut socket, mut bytes) = (socket.unwrap(), Vec::new());
            // Empty settings, which is all that a client waits for.
            socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
            let mut buffer = [0; 4096];
            while !bytes.windows(5).any(|found| found == b"broke") {
                match socket.read(&mut buffer).unwrap_or(0) {
                    0 => break,
                    count => bytes.extend_from_slice(&buffer[..count]),
                }
            }
            seen.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, calls)
}

#[test]
fn a_write_that_may_have_happened_is_not_sent_again_and_a_read_is() {
    let pool = Harness::start_pool(2);
    let (address, calls) = broken();
    let third = NodeId(3);
    pool[0].backend.create_on("far", &[OTHER, third]);
    pool[1].backend.create_on("far", &[OTHER, third]);
    pool[0].set_other(OTHER, None);
    pool[0].set_other(third, Some(address));
    pool[0].run(async |channel| {
        let status = put(to(&channel, "far"), "broke", "v").await.unwrap_err();
        let text = "etcdserver: request timed out, possibly due to connection lost";
        assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    });
    let good = pool[1].passed_on();
    pool[0].set_other(OTHER, Some(good));
    pool[0].run(async |channel| {
        let of_key = pb::RangeRequest { key: "broke".into(), ..Default::default() };
        // Which one is asked first is chance.
        let asked = async {
            while calls.load(Ordering::Relaxed) < 2 {
                range(to(&channel, "far"), of_key.clone()).await.unwrap();
            }
        };
        timeout(PATIENCE, asked).await.expect("both are asked");
    });
}

#[test]
fn members_are_those_who_serve_under_the_way_that_led_here() {
    let pool = far();
    pool.iter().for_each(|node| node.backend.add_member());
    pool[0].run(async |channel| {
        let list = pb::MemberListRequest { linearizable: false };
        let members =
            ClusterClient::new(to(&channel, "far")).member_list(list).await.unwrap().into_inner().members;
        assert_eq!(members.len(), 1);
        assert_eq!(members[0].name, "other");
    });
}

/// A node says in whose name it passes a call on: one that was removed must not.
#[test]
fn the_connections_of_a_node_that_was_removed_are_hung_up() {
    let harness = Harness::start();
    let mut stream = std::net::TcpStream::connect(harness.passed_on()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    stream.read_exact(&mut [0; 9]).unwrap();
    harness.remove_nodes();
    stream.read_to_end(&mut Vec::new()).unwrap();
}
