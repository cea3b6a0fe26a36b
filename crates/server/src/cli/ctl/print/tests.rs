//! Golden outputs: what `etcdctl` prints for the same replies.
#![allow(clippy::unwrap_used)]

use hadron_proto::authpb::Permission;
use hadron_proto::authpb::permission::Type;
use hadron_proto::etcdserverpb::response_op::Response;
use hadron_proto::etcdserverpb::{
    AuthRoleGetResponse, DeleteRangeResponse, HashKvResponse, LeaseGrantResponse, LeaseKeepAliveResponse,
    LeaseLeasesResponse, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveResponse, Member,
    MemberListResponse, MoveLeaderResponse, PutResponse, RangeResponse, ResponseOp, StatusResponse,
    TxnResponse, WatchResponse,
};
use hadron_proto::mvccpb::event::EventType;
use hadron_proto::mvccpb::{Event, KeyValue};

use super::auth::OfRole;
use super::cluster::{Hashes, Health, Healths, MembersChanged, Moved, Statuses};
use super::lease::{Revoked, TimeToLive};
use super::*;

const HEADER: ResponseHeader =
    ResponseHeader { cluster_id: 0x1f, member_id: 0xa1, revision: 7, raft_term: 2 };

fn render(reply: &dyn Reply, format: Format, style: Style) -> String {
    String::from_utf8_lossy(&Printer { format, style }.render(reply).unwrap()).into_owned()
}

/// The form that the operator of a pool sees.
pub(super) fn text(format: Format, reply: &dyn Reply) -> String {
    render(reply, format, Style::default())
}

/// Checks the three forms that every reply has.
fn check(reply: &dyn Reply, simple: &str, fields: &str, json: &str) {
    assert_eq!(render(reply, Format::Simple, Style::default()), simple);
    assert_eq!(render(reply, Format::Fields, Style::default()), fields);
    assert_eq!(render(reply, Format::Json, Style::default()), format!("{json}\n"));
}

fn pair(key: &'static str, value: &'static str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: value.into(),
        create_revision: 4,
        mod_revision: 7,
        version: 2,
        lease: 0,
    }
}

#[test]
fn get() {
    let reply =
        RangeResponse { header: Some(HEADER), kvs: vec![pair("a/1", "thr\"ee\\n")], more: true, count: 3 };
    check(
        &reply,
        "a/1\nthr\"ee\\n\n",
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n\"Key\" : \"a/1\"\n\
         \"CreateRevision\" : 4\n\"ModRevision\" : 7\n\"Version\" : 2\n\"Value\" : \"thr\\\"ee\\\\n\"\n\
         \"Lease\" : 0\n\"More\" : true\n\"Count\" : 3\n",
        r#"{"header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"kvs":[{"key":"YS8x","create_revision":4,"mod_revision":7,"version":2,"value":"dGhyImVlXG4="}],"more":true,"count":3}"#,
    );
    let hex = Style { hex: true, values_only: false };
    assert_eq!(
        render(&reply, Format::Simple, hex),
        "\\x61\\x2f\\x31\n\\x74\\x68\\x72\\x22\\x65\\x65\\x5c\\x6e\n"
    );
    assert!(render(&reply, Format::Fields, hex).contains("\"MemberID\" : a1\n"));
    assert!(render(&reply, Format::Fields, hex).contains("\"Lease\" : 0000000000000000\n"));
    let values = Style { hex: false, values_only: true };
    assert_eq!(render(&reply, Format::Simple, values), "thr\"ee\\n\n");
}

#[test]
fn put_and_del() {
    let put = PutResponse { header: Some(HEADER), prev_kv: Some(pair("foo", "bar")) };
    assert_eq!(render(&put, Format::Simple, Style::default()), "OK\nfoo\nbar\n");
    let del = DeleteRangeResponse { header: Some(HEADER), deleted: 1, prev_kvs: vec![pair("foo", "bar")] };
    check(
        &del,
        "1\nfoo\nbar\n",
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n\"Deleted\" : 1\n\
         \"PrevKey\" : \"foo\"\n\"PrevCreateRevision\" : 4\n\"PrevModRevision\" : 7\n\"PrevVersion\" : 2\n\
         \"PrevValue\" : \"bar\"\n\"PrevLease\" : 0\n",
        r#"{"header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"deleted":1,"prev_kvs":[{"key":"Zm9v","create_revision":4,"mod_revision":7,"version":2,"value":"YmFy"}]}"#,
    );
}

#[test]
fn txn() {
    let inner = ResponseHeader { revision: 7, ..Default::default() };
    let op = |response| ResponseOp { response: Some(response) };
    let range =
        RangeResponse { header: Some(inner), kvs: vec![pair("k", "v")], count: 1, ..Default::default() };
    let reply = TxnResponse {
        header: Some(HEADER),
        succeeded: true,
        responses: vec![
            op(Response::ResponsePut(PutResponse { header: Some(inner), prev_kv: None })),
            op(Response::ResponseRange(range)),
            op(Response::ResponseDeleteRange(DeleteRangeResponse {
                header: Some(inner),
                ..Default::default()
            })),
        ],
    };
    assert_eq!(render(&reply, Format::Simple, Style::default()), "SUCCESS\n\nOK\n\nk\nv\n\n0\n");
    assert_eq!(
        render(&reply, Format::Json, Style::default()),
        r#"{"header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"succeeded":true,"responses":[{"Response":{"response_put":{"header":{"revision":7}}}},{"Response":{"response_range":{"header":{"revision":7},"kvs":[{"key":"aw==","create_revision":4,"mod_revision":7,"version":2,"value":"dg=="}],"count":1}}},{"Response":{"response_delete_range":{"header":{"revision":7}}}}]}"#
            .to_owned()
            + "\n"
    );
    let fields = render(&reply, Format::Fields, Style::default());
    assert!(fields.starts_with(
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n\"Succeeded\" : true\n\
         \"ClusterID\" : 0\n\"MemberID\" : 0\n\"Revision\" : 7\n\"RaftTerm\" : 0\n\"ClusterID\" : 0\n"
    ));
}

#[test]
fn watch() {
    let put = Event { r#type: EventType::Put as i32, kv: Some(pair("foo", "bar")), prev_kv: None };
    let tombstone = KeyValue { key: "foo".into(), mod_revision: 8, ..Default::default() };
    let delete =
        Event { r#type: EventType::Delete as i32, kv: Some(tombstone), prev_kv: Some(pair("foo", "bar")) };
    let reply = WatchResponse { header: Some(HEADER), events: vec![put, delete], ..Default::default() };
    assert_eq!(render(&reply, Format::Simple, Style::default()), "PUT\nfoo\nbar\nDELETE\nfoo\nbar\nfoo\n\n");
    assert_eq!(
        render(&reply, Format::Json, Style::default()),
        r#"{"Header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"Events":[{"kv":{"key":"Zm9v","create_revision":4,"mod_revision":7,"version":2,"value":"YmFy"}},{"type":1,"kv":{"key":"Zm9v","mod_revision":8},"prev_kv":{"key":"Zm9v","create_revision":4,"mod_revision":7,"version":2,"value":"YmFy"}}],"CompactRevision":0,"Canceled":false,"Created":false}"#
            .to_owned()
            + "\n"
    );
}

#[test]
fn leases() {
    let header = "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n";
    let flat = r#""cluster_id":31,"member_id":161,"revision":7,"raft_term":2"#;
    check(
        &LeaseGrantResponse { header: Some(HEADER), id: 4660, ttl: 100, error: String::new() },
        "lease 0000000000001234 granted with TTL(100s)\n",
        &format!("{header}\"ID\" : 4660\n\"TTL\" : 100\n"),
        &format!("{{{flat},\"ID\":4660,\"TTL\":100,\"Error\":\"\"}}"),
    );
    check(
        &Revoked { id: 4660, response: LeaseRevokeResponse { header: Some(HEADER) } },
        "lease 0000000000001234 revoked\n",
        header,
        &format!("{{\"header\":{{{flat}}}}}"),
    );
    check(
        &LeaseKeepAliveResponse { header: Some(HEADER), id: 4660, ttl: 100 },
        "lease 0000000000001234 keepalived with TTL(100)\n",
        &format!("{header}\"ID\" : 4660\n\"TTL\" : 100\n"),
        &format!("{{{flat},\"ID\":4660,\"TTL\":100}}"),
    );
    check(
        &LeaseLeasesResponse { header: Some(HEADER), leases: vec![LeaseStatus { id: 4660 }] },
        "found 1 leases\n0000000000001234\n",
        &format!("{header}\"ID\" : 4660\n"),
        &format!("{{{flat},\"leases\":[{{\"id\":4660}}]}}"),
    );
}

#[test]
fn lease_time_to_live() {
    let header = "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n";
    let flat = r#""cluster_id":31,"member_id":161,"revision":7,"raft_term":2"#;
    let reply = |ttl, granted_ttl, keys: &[&'static str]| TimeToLive {
        response: LeaseTimeToLiveResponse {
            header: Some(HEADER),
            id: 4660,
            ttl,
            granted_ttl,
            keys: keys.iter().map(|key| (*key).into()).collect(),
        },
        keys: !keys.is_empty(),
    };
    check(
        &reply(99, 100, &["lk", "lk2"]),
        "lease 0000000000001234 granted with TTL(100s), remaining(99s), attached keys([lk lk2])\n",
        &format!(
            "{header}\"ID\" : 4660\n\"TTL\" : 99\n\"GrantedTTL\" : 100\n\"Key\" : \"lk\"\n\"Key\" : \"lk2\"\n"
        ),
        &format!("{{{flat},\"id\":4660,\"ttl\":99,\"granted-ttl\":100,\"keys\":[\"bGs=\",\"bGsy\"]}}"),
    );
    check(
        &reply(-1, 0, &[]),
        "lease 0000000000001234 already expired\n",
        &format!("{header}\"ID\" : 4660\n\"TTL\" : -1\n\"GrantedTTL\" : 0\n"),
        &format!("{{{flat},\"id\":4660,\"ttl\":-1,\"granted-ttl\":0,\"keys\":null}}"),
    );
}

#[test]
fn endpoint_status() {
    let status = StatusResponse {
        header: Some(HEADER),
        version: "3.6.0".to_owned(),
        storage_version: "3.6.0".to_owned(),
        db_size: 20_480,
        db_size_in_use: 16_384,
        leader: 0xa1,
        raft_index: 9,
        raft_term: 2,
        raft_applied_index: 8,
        ..Default::default()
    };
    check(
        &Statuses(vec![("127.0.0.1:2379".to_owned(), status)]),
        "127.0.0.1:2379, a1, 3.6.0, 3.6.0, 20 kB, 16 kB, 20%, 0 B, true, false, 2, 9, 8, , , false\n",
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n\"Version\" : \"3.6.0\"\n\
         \"StorageVersion\" : \"3.6.0\"\n\"DBSize\" : 20480\n\"DBSizeInUse\" : 16384\n\"DBSizeQuota\" : 0\n\"Leader\" : 161\n\
         \"IsLearner\" : false\n\"RaftIndex\" : 9\n\"RaftTerm\" : 2\n\"RaftAppliedIndex\" : 8\n\"Errors\" : []\n\
         \"Endpoint\" : \"127.0.0.1:2379\"\n\"DowngradeTargetVersion\" : \"\"\n\"DowngradeEnabled\" : false\n\n",
        r#"[{"Endpoint":"127.0.0.1:2379","Status":{"header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"version":"3.6.0","dbSize":20480,"leader":161,"raftIndex":9,"raftTerm":2,"raftAppliedIndex":8,"dbSizeInUse":16384,"storageVersion":"3.6.0"}}]"#,
    );
    // An empty store must not divide by zero, and no endpoint at all is an empty list as Go prints it.
    let empty = Statuses(vec![("e".to_owned(), StatusResponse::default())]);
    assert!(render(&empty, Format::Simple, Style::default()).contains(", 0%, "));
    assert_eq!(render(&Statuses(Vec::new()), Format::Json, Style::default()), "null\n");
}

#[test]
fn endpoint_health_and_hash() {
    let health = |error: &str| Health {
        endpoint: "127.0.0.1:2379".to_owned(),
        took: "1.5ms".to_owned(),
        error: error.to_owned(),
    };
    check(
        &Healths(vec![health("")]),
        "127.0.0.1:2379 is healthy: successfully committed proposal: took = 1.5ms\n",
        "\"Endpoint\" : \"127.0.0.1:2379\"\n\"Health\" : true\n\"Took\" : 1.5ms\n\"Error\" : \n\n",
        r#"[{"endpoint":"127.0.0.1:2379","health":true,"took":"1.5ms"}]"#,
    );
    assert_eq!(
        health("context deadline exceeded").complaint().unwrap(),
        "127.0.0.1:2379 is unhealthy: failed to commit proposal: context deadline exceeded"
    );
    let hash = HashKvResponse { header: Some(HEADER), hash: 42, compact_revision: 3, hash_revision: 7 };
    check(
        &Hashes(vec![("127.0.0.1:2379".to_owned(), hash)]),
        "127.0.0.1:2379, 42, 7\n",
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n\
         \"Endpoint\" : \"127.0.0.1:2379\"\n\"Hash\" : 42\n\"HashRevision\" : 7\n\n",
        r#"[{"Endpoint":"127.0.0.1:2379","HashKV":{"header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"hash":42,"compact_revision":3,"hash_revision":7}}]"#,
    );
}

#[test]
fn member_list() {
    let member = Member {
        id: 0xa1,
        name: "m1".to_owned(),
        peer_ur_ls: vec!["http://127.0.0.1:2380".to_owned()],
        client_ur_ls: vec!["http://127.0.0.1:2379".to_owned()],
        is_learner: false,
    };
    let header = ResponseHeader { revision: 0, ..HEADER };
    let mut list = MemberListResponse { header: Some(header), members: vec![member] };
    check(
        &list,
        "a1, started, m1, http://127.0.0.1:2380, http://127.0.0.1:2379, false\n",
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"RaftTerm\" : 2\n\"ID\" : 161\n\"Name\" : \"m1\"\n\
         \"PeerURL\" : \"http://127.0.0.1:2380\"\n\"ClientURL\" : \"http://127.0.0.1:2379\"\n\
         \"IsLearner\" : false\n\n",
        r#"{"header":{"cluster_id":31,"member_id":161,"raft_term":2},"members":[{"ID":161,"name":"m1","peerURLs":["http://127.0.0.1:2380"],"clientURLs":["http://127.0.0.1:2379"]}]}"#,
    );
    let hex = Style { hex: true, values_only: false };
    assert_eq!(
        render(&list, Format::Json, hex),
        r#"{"header":{"cluster_id":"1f","member_id":"a1","raft_term":2},"members":[{"ID":"a1","name":"m1","peerURLs":["http://127.0.0.1:2380"],"clientURLs":["http://127.0.0.1:2379"]}]}"#
            .to_owned()
            + "\n"
    );
    // The term was hexadecimal too, and no number any more from the tenth on.
    list.header = Some(ResponseHeader { raft_term: 10, ..header });
    assert!(render(&list, Format::Json, hex).contains(r#""raft_term":10}"#));
    list.header = Some(header);
    let table = "\
+----+---------+------+-----------------------+-----------------------+------------+
| ID | STATUS  | NAME |      PEER ADDRS       |     CLIENT ADDRS      | IS LEARNER |
+----+---------+------+-----------------------+-----------------------+------------+
| a1 | started |   m1 | http://127.0.0.1:2380 | http://127.0.0.1:2379 |      false |
+----+---------+------+-----------------------+-----------------------+------------+
";
    assert_eq!(render(&list, Format::Table, Style::default()), table);
}

#[test]
fn a_member_that_is_added() {
    let member = Member {
        id: 0xb2,
        peer_ur_ls: vec!["http://b:2380".to_owned()],
        is_learner: true,
        ..Member::default()
    };
    let header = ResponseHeader { revision: 0, ..HEADER };
    let changed = MembersChanged {
        happened: format!("Member {:16x} added as learner to", member.id),
        header: Some(header),
        added: Some((member.clone(), vec![String::new(), "ETCD_NAME=\"b\"".to_owned()])),
        members: vec![member],
    };
    let text = "Member               b2 added as learner to cluster               1f\n\nETCD_NAME=\"b\"\n";
    assert_eq!(render(&changed, Format::Simple, Style::default()), text);
    let json = r#"{"header":{"cluster_id":31,"member_id":161,"raft_term":2},"member":{"ID":178,"peerURLs":["http://b:2380"],"isLearner":true},"members":[{"ID":178,"peerURLs":["http://b:2380"],"isLearner":true}]}"#;
    // Of the replies about members the list alone has a form of its own for `--hex`.
    for hex in [false, true] {
        assert_eq!(render(&changed, Format::Json, Style { hex, values_only: false }), format!("{json}\n"));
    }
}

#[test]
fn a_role_and_its_permissions() {
    let permission = |kind: Type, key: &'static str, range_end: &'static str| Permission {
        perm_type: kind as i32,
        key: key.into(),
        range_end: range_end.into(),
    };
    let perm = [
        permission(Type::Readwrite, "/app/", "/app0"),
        permission(Type::Read, "b", "d"),
        permission(Type::Write, "m", "\0"),
        permission(Type::Read, "one", ""),
    ];
    let role = OfRole {
        name: "app".into(),
        reply: AuthRoleGetResponse { header: Some(HEADER), perm: perm[..2].to_vec() },
    };
    check(
        &role,
        "Role app\nKV Read:\n\t[/app/, /app0) (prefix /app/)\n\t[b, d)\nKV Write:\n\t[/app/, /app0) (prefix /app/)\n",
        "\"ClusterID\" : 31\n\"MemberID\" : 161\n\"Revision\" : 7\n\"RaftTerm\" : 2\n\"PermType\" :  READWRITE\n\
         \"Key\" : \"/app/\"\n\"RangeEnd\" : \"/app0\"\n\"PermType\" :  READ\n\"Key\" : \"b\"\n\"RangeEnd\" : \"d\"\n",
        r#"{"header":{"cluster_id":31,"member_id":161,"revision":7,"raft_term":2},"perm":[{"permType":2,"key":"L2FwcC8=","range_end":"L2FwcDA="},{"key":"Yg==","range_end":"ZA=="}]}"#,
    );
    let role = OfRole {
        name: "app".into(),
        reply: AuthRoleGetResponse { header: Some(HEADER), perm: perm[2..].to_vec() },
    };
    let text = "Role app\nKV Read:\n\tone\nKV Write:\n\t[m, <open ended>\n";
    assert_eq!(render(&role, Format::Simple, Style::default()), text);
}

#[test]
fn move_leader() {
    let moved = Moved { from: 0xa1, to: 0xb2, response: MoveLeaderResponse { header: Some(HEADER) } };
    assert_eq!(render(&moved, Format::Simple, Style::default()), "Leadership transferred from a1 to b2\n");
}

#[test]
fn most_replies_have_no_table() {
    let printer = Printer { format: Format::Table, style: Style::default() };
    let failure = printer.render(&PutResponse::default()).unwrap_err();
    assert_eq!(failure, Failure::feature("table not supported as output format"));
}
