//! The service `hadron.v1.Pool`.

use hadron_proto::etcdserverpb as etcd;
use hadron_proto::hadron as pb;
use pb::pool_client::PoolClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::{Harness, OWN};

fn create(name: &str) -> pb::KeyspaceCreateRequest {
    pb::KeyspaceCreateRequest { name: name.to_owned(), ..Default::default() }
}

fn update(name: &str) -> pb::KeyspaceUpdateRequest {
    pb::KeyspaceUpdateRequest { name: name.to_owned(), ..Default::default() }
}

async fn names(client: &mut PoolClient<Channel>) -> Vec<String> {
    let list = client.keyspace_list(pb::KeyspaceListRequest {}).await.unwrap().into_inner();
    list.keyspaces.into_iter().map(|keyspace| keyspace.name).collect()
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[test]
fn keyspaces_are_made_told_of_changed_and_deleted() {
    Harness::start().run(async |channel| {
        let mut client = PoolClient::new(channel);
        assert_eq!(names(&mut client).await, ["default"]);
        let wanted =
            pb::KeyspaceCreateRequest { bytes_max: 1_000, requests_per_second_max: 5, ..create("a") };
        let made = client.keyspace_create(wanted).await.unwrap().into_inner();
        assert_eq!(made.leader, OWN.0);
        let keyspace = made.keyspace.unwrap();
        assert_eq!((keyspace.name.as_str(), keyspace.group, keyspace.replicas), ("a", 2, 1));
        assert_eq!((keyspace.bytes_max, keyspace.requests_per_second_max), (1_000, 5));
        assert!(keyspace.created_at_ms > 1_700_000_000_000 && !keyspace.frozen);
        client.keyspace_create(create("0")).await.unwrap();
        assert_eq!(names(&mut client).await, ["0", "a", "default"]);

        let changed = pb::KeyspaceUpdateRequest { frozen: Some(true), bytes_max: Some(0), ..update("a") };
        let changed = client.keyspace_update(changed).await.unwrap().into_inner().keyspace.unwrap();
        assert!(changed.frozen);
        assert_eq!((changed.bytes_max, changed.requests_per_second_max), (0, 5), "the rest stays");
        let get = pb::KeyspaceGetRequest { name: "a".to_owned() };
        let told = client.keyspace_get(get.clone()).await.unwrap().into_inner();
        assert_eq!(told.keyspace, Some(changed.clone()));
        assert_eq!((told.leader, told.revision), (OWN.0, Some(1)));
        let replica = pb::KeyspaceReplica {
            node: 1,
            name: "test".to_owned(),
            replica: 1,
            lag: Some(0),
            ..Default::default()
        };
        assert_eq!(told.replicas, [replica]);

        let delete = pb::KeyspaceDeleteRequest { name: "a".to_owned() };
        let deleted = client.keyspace_delete(delete.clone()).await.unwrap().into_inner();
        assert_eq!(deleted.keyspace, Some(changed));
        assert_eq!(code(client.keyspace_delete(delete).await), Code::NotFound);
        assert_eq!(code(client.keyspace_get(get).await), Code::NotFound);
        assert_eq!(names(&mut client).await, ["0", "default"]);
        let again = client.keyspace_create(create("a")).await.unwrap().into_inner().keyspace.unwrap();
        assert_eq!(again.group, 4, "no group is used again");
    });
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let harness = Harness::start();
    harness.run(async |channel| {
        let mut client = PoolClient::new(channel);
        assert_eq!(code(client.keyspace_create(create("A")).await), Code::InvalidArgument);
        assert_eq!(code(client.keyspace_create(create("default")).await), Code::FailedPrecondition);
        let two = pb::KeyspaceCreateRequest { replicas: 2, ..create("a") };
        let status = client.keyspace_create(two.clone()).await.unwrap_err();
        assert_eq!(status.message(), "hadron: 2 replicas need as many nodes, and 1 can take one");
        harness.backend.add_member();
        let status = client.keyspace_create(two).await.unwrap_err();
        assert_eq!(status.message(), "hadron: 2 replicas need a majority of nodes that are alive, and 1 are");
        client.keyspace_create(pb::KeyspaceCreateRequest { replicas: 1, ..create("a") }).await.unwrap();
        assert_eq!(code(client.keyspace_create(create("a")).await), Code::AlreadyExists);
        let resize = |replicas| pb::KeyspaceUpdateRequest { replicas: Some(replicas), ..update("a") };
        assert_eq!(code(client.keyspace_update(resize(0)).await), Code::InvalidArgument);
        assert_eq!(code(client.keyspace_update(resize(3)).await), Code::FailedPrecondition);
        client.keyspace_update(resize(1)).await.unwrap();
        let frozen = |name| pb::KeyspaceUpdateRequest { frozen: Some(true), ..update(name) };
        let status = client.keyspace_update(frozen("default")).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("default can be neither frozen nor limited"), "{status}");
        assert_eq!(code(client.keyspace_update(frozen("none")).await), Code::NotFound);
        assert_eq!(code(client.keyspace_update(update("none")).await), Code::NotFound);
    });
}

#[test]
fn nodes_are_listed_with_what_they_carry() {
    let harness = Harness::start();
    harness.backend.add_member();
    harness.backend.create("a", OWN);
    harness.run(async |channel| {
        let nodes =
            PoolClient::new(channel).node_list(pb::NodeListRequest {}).await.unwrap().into_inner().nodes;
        let seen: Vec<_> =
            nodes.iter().map(|node| (node.id, node.alive, node.replicas, node.leaders)).collect();
        assert_eq!(seen, [(1, true, 2, 2), (2, false, 1, 0)]);
        assert_eq!(nodes[1].client_urls, ["http://127.0.0.2:2379"]);
    });
}

#[test]
fn only_root_in_default_may_ask() {
    let harness = Harness::start();
    harness.backend.create("a", OWN);
    harness.run(async |channel| {
        let mut client = PoolClient::new(channel.clone());
        let mut from_a = Request::new(pb::NodeListRequest {});
        from_a.metadata_mut().insert("hadron-keyspace", "a".parse().unwrap());
        assert_eq!(code(client.node_list(from_a).await), Code::PermissionDenied);
        let mut delete = Request::new(pb::KeyspaceDeleteRequest { name: "a".to_owned() });
        delete.metadata_mut().insert("hadron-keyspace", "a".parse().unwrap());
        assert_eq!(code(client.keyspace_delete(delete).await), Code::PermissionDenied);

        let mut auth = etcd::auth_client::AuthClient::new(channel);
        for name in ["root", "alice"] {
            let user = etcd::AuthUserAddRequest {
                name: name.to_owned(),
                options: Some(hadron_proto::authpb::UserAddOptions { no_password: true }),
                ..Default::default()
            };
            auth.user_add(user).await.unwrap();
        }
        auth.role_add(etcd::AuthRoleAddRequest { name: "root".to_owned() }).await.unwrap();
        let grant = etcd::AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
        auth.user_grant_role(grant).await.unwrap();
        auth.auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
        assert_eq!(code(client.keyspace_create(create("b")).await), Code::InvalidArgument);
        assert_eq!(code(client.keyspace_list(pb::KeyspaceListRequest {}).await), Code::InvalidArgument);
    });
}
