//! What is in entries, in the engine and in snapshots, as bytes that are written down: later versions must read them, and write them so.

#![allow(clippy::unwrap_used)]

#[path = "../../pinned.rs"]
mod pinned;

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use hadron_keyspace::auth::{AuthCommand, Caller};
use hadron_keyspace::{Applied, Command, Exporter, Importer, Keyspace, Options, Owner};
use hadron_proto::{authpb, etcdserverpb as pb};
use hadron_storage::engine::{Change, Engine, ModelEngine, Read, Space};
use pb::compare::TargetUnion;
use pb::request_op::Request;
use pinned::Pinned;

const GROUP: u64 = 7;
const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");

fn put() -> pb::PutRequest {
    pb::PutRequest {
        key: "key".into(),
        value: "value".into(),
        lease: 3,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: true,
    }
}

fn delete() -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true }
}

fn range() -> pb::RangeRequest {
    pb::RangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        limit: 1,
        revision: 2,
        sort_order: 1,
        sort_target: 2,
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 3,
        max_mod_revision: 4,
        min_create_revision: 5,
        max_create_revision: 6,
    }
}

fn txn() -> pb::TxnRequest {
    let compare = |target: i32, union| pb::Compare {
        result: 2,
        target,
        key: "k".into(),
        range_end: "l".into(),
        target_union: Some(union),
    };
    let operation = |request| pb::RequestOp { request: Some(request) };
    let nested =
        pb::TxnRequest { success: vec![operation(Request::RequestPut(put()))], ..Default::default() };
    pb::TxnRequest {
        compare: vec![
            compare(0, TargetUnion::Version(1)),
            compare(1, TargetUnion::CreateRevision(2)),
            compare(2, TargetUnion::ModRevision(3)),
            compare(3, TargetUnion::Value("v".into())),
            compare(4, TargetUnion::Lease(4)),
        ],
        success: vec![
            operation(Request::RequestRange(range())),
            operation(Request::RequestDeleteRange(delete())),
        ],
        failure: vec![operation(Request::RequestTxn(nested))],
    }
}

fn permission() -> authpb::Permission {
    authpb::Permission { perm_type: 2, key: "a".into(), range_end: "b".into() }
}

fn auth_commands() -> Vec<(&'static str, AuthCommand)> {
    let text = |text: &str| text.to_owned();
    let user_add = pb::AuthUserAddRequest {
        name: text("user"),
        options: Some(authpb::UserAddOptions { no_password: true }),
        hashed_password: text("hash"),
        ..Default::default()
    };
    let change = pb::AuthUserChangePasswordRequest {
        name: text("user"),
        hashed_password: text("hash"),
        ..Default::default()
    };
    let grant = pb::AuthRoleGrantPermissionRequest { name: text("role"), perm: Some(permission()) };
    let revoke =
        pb::AuthRoleRevokePermissionRequest { role: text("role"), key: "a".into(), range_end: "b".into() };
    let grant_role = pb::AuthUserGrantRoleRequest { user: text("user"), role: text("role") };
    let revoke_role = pb::AuthUserRevokeRoleRequest { name: text("user"), role: text("role") };
    vec![
        ("enable", AuthCommand::Enable("secret".into())),
        ("disable", AuthCommand::Disable),
        ("secret", AuthCommand::Secret("secret".into())),
        ("user-add", AuthCommand::UserAdd(user_add)),
        ("user-delete", AuthCommand::UserDelete(pb::AuthUserDeleteRequest { name: text("user") })),
        ("user-change-password", AuthCommand::UserChangePassword(change)),
        ("user-grant-role", AuthCommand::UserGrantRole(grant_role)),
        ("user-revoke-role", AuthCommand::UserRevokeRole(revoke_role)),
        ("role-add", AuthCommand::RoleAdd(pb::AuthRoleAddRequest { name: text("role") })),
        ("role-delete", AuthCommand::RoleDelete(pb::AuthRoleDeleteRequest { role: text("role") })),
        ("role-grant-permission", AuthCommand::RoleGrantPermission(grant)),
        ("role-revoke-permission", AuthCommand::RoleRevokePermission(revoke)),
    ]
}

fn commands() -> Vec<(&'static str, Command)> {
    let alarm = pb::AlarmRequest { action: 1, member_id: 2, alarm: 1 };
    let caller = Caller { name: "alice".into(), auth_revision: 4 };
    vec![
        ("put", Command::Put(put())),
        ("delete-range", Command::DeleteRange(delete())),
        ("txn", Command::Txn(txn())),
        ("compact", Command::Compact(pb::CompactionRequest { revision: 5, physical: true })),
        ("lease-grant", Command::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 1 })),
        ("lease-revoke", Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 })),
        ("lease-keep-alive", Command::LeaseKeepAlive(vec![1, -2])),
        ("lease-expire", Command::LeaseExpire(vec![3])),
        ("alarm", Command::Alarm(alarm)),
        ("digest-mark", Command::DigestMark),
        ("as", Command::As(caller, Box::new(Command::Put(put())))),
    ]
}

#[test]
fn commands_are_written_as_ever() {
    let mut pinned = Pinned::open(DIRECTORY, "commands.txt");
    let of_auth = auth_commands().into_iter();
    let of_auth = of_auth.map(|(name, command)| (format!("auth-{name}"), Command::Auth(command)));
    let others = commands().into_iter().map(|(name, command)| (name.to_owned(), command));
    for (name, command) in others.chain(of_auth) {
        let bytes = pinned.bytes(&name, &command.to_bytes());
        assert_eq!(Command::decode(bytes.into()), Ok(command), "{name}");
    }
    pinned.finish();
}

/// Something of everything that is stored.
fn history() -> Vec<Command> {
    let plain = |key: &'static str, value: &'static str, lease| {
        Command::Put(pb::PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() })
    };
    let user = |name: &str| {
        Command::Auth(AuthCommand::UserAdd(pb::AuthUserAddRequest {
            name: name.into(),
            hashed_password: "aGFzaA==".into(),
            ..Default::default()
        }))
    };
    let role = |name: &str| Command::Auth(AuthCommand::RoleAdd(pb::AuthRoleAddRequest { name: name.into() }));
    let grant = pb::AuthRoleGrantPermissionRequest { name: "role".into(), perm: Some(permission()) };
    vec![
        Command::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 3 }),
        plain("a", "first", 0),
        plain("a", "second", 3),
        plain("b", "", 0),
        plain("c", "gone", 0),
        Command::DeleteRange(pb::DeleteRangeRequest { key: "c".into(), ..Default::default() }),
        Command::Alarm(pb::AlarmRequest { action: 1, member_id: 2, alarm: 2 }),
        role("root"),
        user("root"),
        Command::Auth(AuthCommand::UserGrantRole(pb::AuthUserGrantRoleRequest {
            user: "root".into(),
            role: "root".into(),
        })),
        role("role"),
        Command::Auth(AuthCommand::RoleGrantPermission(grant)),
        Command::Auth(AuthCommand::Enable("secret".into())),
    ]
}

/// A keyspace in which that happened, flushed.
fn flushed(history: Vec<Command>) -> (Arc<ModelEngine>, Arc<Keyspace>) {
    let engine = Arc::new(ModelEngine::new());
    Owner::claim(&*engine, GROUP, 5).unwrap();
    Owner::destroy(&*engine, GROUP + 1, 6).unwrap();
    let keyspace = Keyspace::open(engine.clone(), GROUP, Options::default()).unwrap();
    let applied = |index| Applied { term: 2, index, checksum: 100 + index, stamp_ms: 1_000 * index };
    for (index, command) in (1..).zip(history) {
        keyspace.apply(applied(index), vec![command]).remove(0).unwrap();
    }
    let index = keyspace.applied().index + 1;
    keyspace.apply_configuration(applied(index), Bytes::from_static(b"\0configuration"));
    flush(&engine, &keyspace);
    (engine, keyspace)
}

fn flush(engine: &Arc<ModelEngine>, keyspace: &Arc<Keyspace>) {
    let flush = keyspace.take_flush(u64::MAX, usize::MAX).unwrap();
    engine.write(flush.batch()).unwrap();
    keyspace.flush_done(flush);
}

fn records(engine: &ModelEngine, space: Space) -> Vec<[Bytes; 2]> {
    let mut found = Vec::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        found.push([key, value].map(Bytes::copy_from_slice));
        ControlFlow::Continue(())
    };
    engine.scan(space, &[], &[255; 32], visit).unwrap();
    found
}

/// What clients see, and what replicas compare.
fn assert_same(one: &Keyspace, two: &Keyspace) {
    assert_eq!((one.applied(), one.digest()), (two.applied(), two.digest()));
    assert_eq!(one.configuration(), two.configuration());
    let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    assert_eq!(one.range(&all), two.range(&all));
    let before = pb::RangeRequest { revision: 2, ..all };
    assert_eq!(one.range(&before), two.range(&before));
}

#[test]
fn records_of_the_engine_are_written_as_ever() {
    let (engine, keyspace) = flushed(history());
    let former = Arc::new(ModelEngine::new());
    let mut pinned = Pinned::open(DIRECTORY, "engine.txt");
    for (space, name) in [
        (Space::State, "state"),
        (Space::Versions, "versions"),
        (Space::Values, "values"),
        (Space::Tables, "tables"),
    ] {
        for (number, [key, value]) in (1..).zip(records(&engine, space)) {
            let key = pinned.bytes(&format!("{name}-{number}-key"), &key);
            let value = pinned.bytes(&format!("{name}-{number}-value"), &value);
            former.write(vec![Change::Put(space, key.into(), value.into())]).unwrap();
        }
    }
    pinned.finish();
    let opened = Keyspace::open(former.clone(), GROUP, Options::default()).unwrap();
    assert_same(&opened, &keyspace);
    assert_eq!(Owner::of(&*former, GROUP).unwrap(), Owner::Living(5));
    assert_eq!(Owner::of(&*former, GROUP + 1).unwrap(), Owner::Destroyed(6));
}

/// How items are spread over chunks is no part of the format: the lines may be written anew if that changes alone.
#[test]
fn snapshots_are_written_as_ever() {
    let mut history = history();
    let enable = history.pop().unwrap();
    let (engine, source) = flushed(history);
    // No round is small beside a log that keeps nothing: so there are several.
    let mut exporter = Exporter::new(source.clone(), 0).unwrap();
    let mut chunks = vec![exporter.next_chunk(100).unwrap().unwrap()];
    let applied = Applied { index: source.applied().index + 1, ..source.applied() };
    let later = pb::PutRequest { key: "later".into(), value: "value".into(), ..Default::default() };
    source
        .apply(applied, vec![Command::Put(later), enable])
        .into_iter()
        .for_each(|answer| drop(answer.unwrap()));
    flush(&engine, &source);
    chunks.extend(std::iter::from_fn(|| exporter.next_chunk(100).unwrap()));
    assert!(exporter.rounds() > 1);

    let target = Arc::new(ModelEngine::new());
    let mut importer = Importer::new(target.clone(), GROUP).unwrap();
    let mut pinned = Pinned::open(DIRECTORY, "snapshot.txt");
    for (number, chunk) in (1..).zip(chunks) {
        importer.chunk(pinned.bytes(&format!("chunk-{number}"), &chunk).into()).unwrap();
    }
    pinned.finish();
    importer.load().unwrap();
    importer.finish().unwrap();
    assert_same(&Keyspace::open(target, GROUP, Options::default()).unwrap(), &source);
}
