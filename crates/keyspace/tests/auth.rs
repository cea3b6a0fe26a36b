//! Users, roles and permissions: what is refused to whom, in the order of the log, and that it survives.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod common;

use common::{Client, Entry, Replica};
use hadron_keyspace::auth::{
    AuthCommand, AuthError, Caller, NAME_BYTES_MAX, Need, RECORD_BYTES_MAX, STORED_NAME_BYTES_MAX,
};
use hadron_keyspace::{Applied, Command, Error, Keyspace, Options, Response, check};
use hadron_proto::authpb::{Permission, UserAddOptions, permission::Type};
use hadron_proto::etcdserverpb as pb;
use pb::request_op::Request;

/// A replica and its log, one command an entry.
struct Story {
    replica: Replica,
    log: Vec<Entry>,
}

fn add_user(name: &str) -> AuthCommand {
    let (name, hashed_password) = (name.to_owned(), "aGFzaA==".to_owned());
    AuthCommand::UserAdd(pb::AuthUserAddRequest { name, hashed_password, ..Default::default() })
}

fn grant_role(user: &str, role: &str) -> AuthCommand {
    AuthCommand::UserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

fn revoke_role(name: &str, role: &str) -> AuthCommand {
    AuthCommand::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() })
}

fn add_role(name: &str) -> AuthCommand {
    AuthCommand::RoleAdd(pb::AuthRoleAddRequest { name: name.into() })
}

fn delete_role(role: &str) -> AuthCommand {
    AuthCommand::RoleDelete(pb::AuthRoleDeleteRequest { role: role.into() })
}

fn delete_user(name: &str) -> AuthCommand {
    AuthCommand::UserDelete(pb::AuthUserDeleteRequest { name: name.into() })
}

fn permit(role: &str, kind: Type, key: &'static str, range_end: &'static str) -> AuthCommand {
    let perm = Permission { perm_type: kind as i32, key: key.into(), range_end: range_end.into() };
    AuthCommand::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
        name: role.into(),
        perm: Some(perm),
    })
}

fn forbid(role: &str, key: &'static str, range_end: &'static str) -> AuthCommand {
    AuthCommand::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest {
        role: role.into(),
        key: key.into(),
        range_end: range_end.into(),
    })
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> Command {
    Command::DeleteRange(pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv })
}

fn txn(operations: Vec<Request>) -> pb::TxnRequest {
    let failure = operations.into_iter().map(|one| pb::RequestOp { request: Some(one) }).collect();
    pb::TxnRequest { failure, ..Default::default() }
}

impl Story {
    fn new() -> Story {
        Story { replica: Replica::new(Options::default()), log: Vec::new() }
    }

    fn keyspace(&self) -> &Keyspace {
        &self.replica.keyspace
    }

    fn apply(&mut self, command: Command) -> Result<Response, Error> {
        self.log.push((self.log.len() as u64, vec![command]));
        self.replica.follow(&self.log).pop().unwrap()
    }

    fn auth(&mut self, command: AuthCommand) -> Result<(), Error> {
        self.apply(Command::Auth(command)).map(drop)
    }

    fn caller(&self, name: &str) -> Caller {
        Caller { name: name.into(), auth_revision: self.keyspace().auth_revision() }
    }

    fn apply_as(&mut self, name: &str, command: Command) -> Result<Response, Error> {
        let caller = self.caller(name);
        // What the replica that was asked would say, and what the log says, are the same.
        let asked = self.keyspace().permit_command(Some(&caller), &command);
        let answer = self.apply(Command::As(caller, Box::new(command)));
        match asked {
            Err(error) => assert_eq!(answer, Err(error)),
            Ok(()) => assert!(!matches!(answer, Err(Error::Auth(AuthError::PermissionDenied)))),
        }
        answer
    }

    fn auth_as(&mut self, name: &str, command: AuthCommand) -> Result<(), Error> {
        self.apply_as(name, Command::Auth(command)).map(drop)
    }

    /// `root`, and `alice` who reads `a` up to `c`, writes `b` up to `d`, and has the key `k`.
    fn with_alice() -> Story {
        let mut story = Story::new();
        for command in [
            add_user("root"),
            grant_role("root", "root"),
            add_user("alice"),
            add_role("some"),
            permit("some", Type::Read, "a", "c"),
            permit("some", Type::Write, "b", "d"),
            permit("some", Type::Readwrite, "k", ""),
            grant_role("alice", "some"),
            AuthCommand::Enable("secret".into()),
        ] {
            story.auth(command).unwrap();
        }
        story
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> AuthError {
    match answer {
        Err(Error::Auth(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn authentication_needs_root_and_keeps_it() {
    let mut story = Story::new();
    let enable = || AuthCommand::Enable("secret".into());
    assert_eq!(refused(story.auth(enable())), AuthError::RootUserNotExist);
    story.auth(add_user("root")).unwrap();
    assert_eq!(refused(story.auth(enable())), AuthError::RootRoleNotExist);
    // The role `root` may be granted without being there.
    story.auth(grant_role("root", "root")).unwrap();
    let before = story.keyspace().auth_revision();
    story.auth(enable()).unwrap();
    assert!(story.keyspace().is_auth_enabled());
    assert_eq!(story.keyspace().auth_revision(), before, "as in etcd");
    story.auth_as("root", enable()).unwrap();
    for command in [delete_user("root"), revoke_role("root", "root"), delete_role("root")] {
        assert_eq!(refused(story.auth_as("root", command)), AuthError::InvalidAuthManagement);
    }
    story.auth_as("root", AuthCommand::Disable).unwrap();
    assert!(!story.keyspace().is_auth_enabled());
    assert_eq!(story.keyspace().auth_revision(), before + 1);
    story.auth(delete_user("root")).unwrap();
}

#[test]
fn users_and_roles_are_refused_in_etcds_words() {
    let mut story = Story::new();
    assert_eq!(story.keyspace().auth_revision(), 1);
    story.auth(add_user("u")).unwrap();
    story.auth(add_role("r")).unwrap();
    assert_eq!(story.keyspace().auth_revision(), 3);
    for (command, error) in [
        (add_user(""), AuthError::UserEmpty),
        (add_user("u"), AuthError::UserAlreadyExists),
        (delete_user("x"), AuthError::UserNotFound),
        (grant_role("x", "r"), AuthError::UserNotFound),
        (grant_role("u", "x"), AuthError::RoleNotFound),
        (revoke_role("u", "r"), AuthError::RoleNotGranted),
        (add_role(""), AuthError::RoleEmpty),
        (add_role("r"), AuthError::RoleAlreadyExists),
        (delete_role("x"), AuthError::RoleNotFound),
        (permit("x", Type::Read, "a", ""), AuthError::RoleNotFound),
        (permit("r", Type::Read, "", ""), AuthError::InvalidAuthManagement),
        (permit("r", Type::Read, "b", "a"), AuthError::InvalidAuthManagement),
        (forbid("r", "a", ""), AuthError::PermissionNotGranted),
        (
            AuthCommand::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
                name: "r".into(),
                perm: None,
            }),
            AuthError::PermissionNotGiven,
        ),
    ] {
        assert_eq!(refused(story.auth(command.clone())), error, "{command:?}");
    }
    assert_eq!(story.keyspace().auth_revision(), 3, "what is refused changes nothing");
    story.auth(grant_role("u", "r")).unwrap();
    story.auth(grant_role("u", "r")).unwrap();
    assert_eq!(story.keyspace().auth_revision(), 4, "granted twice is granted once");
    story.auth(delete_role("r")).unwrap();
    assert_eq!(story.keyspace().roles_of("u").unwrap(), Vec::<String>::new());
    assert_eq!((story.keyspace().users(), story.keyspace().roles()), (vec!["u".to_owned()], vec![]));
}

/// A name stands in the key of a record of the engine, which panicked at one that was too long: on every replica, and again after each start.
#[test]
fn a_name_that_the_engine_cannot_store_is_refused_also_in_a_log_that_has_it() {
    let mut story = Story::new();
    let longest = "n".repeat(STORED_NAME_BYTES_MAX);
    let too_long = format!("{longest}n");
    for command in [add_user(&too_long), add_role(&too_long)] {
        assert_eq!(refused(story.auth(command)), AuthError::NameTooLong);
    }
    assert_eq!(story.keyspace().auth_revision(), 1, "what is refused changes nothing");
    story.auth(add_role(&longest)).unwrap();
    story.auth(add_user(&longest)).unwrap();
    story.auth(grant_role(&longest, &longest)).unwrap();
    story.replica.flush_all();
    story.replica.open().unwrap();
    assert_eq!((story.keyspace().users(), story.keyspace().roles()), (vec![longest.clone()], vec![longest]));
}

/// With each permission a role grew, and every replica stored the whole role again, until the engine took it no more: they all stopped, and did so
/// again after each start.
#[test]
fn a_role_or_user_that_is_large_is_granted_no_more() {
    let mut story = Story::new();
    let permission = |number: usize| {
        let key = format!("{number}{}", "k".repeat(RECORD_BYTES_MAX / 3)).into();
        let perm = Some(Permission { key, ..Default::default() });
        AuthCommand::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm })
    };
    story.auth(add_role("r")).unwrap();
    story.auth(add_user("u")).unwrap();
    for number in 0..2 {
        story.keyspace().check_grant(&permission(number)).unwrap();
        story.auth(permission(number)).unwrap();
    }
    assert_eq!(refused(story.keyspace().check_grant(&permission(2))), AuthError::RecordTooLarge);
    story.keyspace().check_grant(&permit("r", Type::Read, "k", "")).unwrap();
    // What is in the log already may be more.
    story.auth(permission(2)).unwrap();
    assert_eq!(
        refused(story.keyspace().check_grant(&permit("r", Type::Read, "k", ""))),
        AuthError::RecordTooLarge
    );

    for number in 0.. {
        let role = format!("{number}{}", "r".repeat(NAME_BYTES_MAX - 10));
        if story.keyspace().check_grant(&grant_role("u", &role)).is_err() {
            assert_eq!(number, RECORD_BYTES_MAX / NAME_BYTES_MAX);
            break;
        }
        story.auth(add_role(&role)).unwrap();
        story.auth(grant_role("u", &role)).unwrap();
    }
}

/// Those of the log may have more than clients may give.
#[test]
fn a_new_name_is_no_longer_than_etcd_can_store() {
    let (longest, too_long) = ("n".repeat(NAME_BYTES_MAX), "n".repeat(NAME_BYTES_MAX + 1));
    for command in [add_user(&longest), add_role(&longest), delete_user(&too_long), delete_role(&too_long)] {
        check::auth(&command).unwrap();
    }
    for command in [add_user(&too_long), add_role(&too_long)] {
        assert_eq!(refused(check::auth(&command)), AuthError::NameTooLong);
    }
}

/// Each change of a user or a role kept a copy of all that it has until it was flushed, and counted as a record without contents: 1,000 tiny
/// commands about a user with 30 large roles cost 3.4 GiB.
#[test]
fn changes_of_large_users_and_roles_count_with_what_they_keep() {
    const ROLES: usize = 100;
    let mut story = Story::new();
    story.auth(add_user("u")).unwrap();
    story.auth(add_role("r")).unwrap();
    let names: Vec<String> = (0..ROLES).map(|number| format!("{number:0>1000}")).collect();
    for name in &names {
        story.auth(add_role(name)).unwrap();
        story.auth(grant_role("u", name)).unwrap();
        let perm = Permission { key: name.clone().into(), ..Default::default() };
        let name = "r".to_owned();
        let permit = pb::AuthRoleGrantPermissionRequest { name, perm: Some(perm) };
        story.auth(AuthCommand::RoleGrantPermission(permit)).unwrap();
    }
    story.replica.flush_all();
    let large = ROLES * 1000;
    let changes = || {
        let user = [revoke_role("u", &names[0]), grant_role("u", &names[0])];
        let role = [permit("r", Type::Read, "a", ""), forbid("r", "a", "")];
        user.into_iter().chain(role).map(Command::Auth)
    };
    // Those of one entry, which comes to the engine as a whole, keep what is left of them.
    let entry: Vec<Command> = (0..50).flat_map(|_| changes()).collect();
    story.log.push((story.log.len() as u64, entry));
    assert!(story.replica.follow(&story.log).iter().all(Result::is_ok));
    let bytes = story.keyspace().unflushed_bytes();
    assert!((2 * large..3 * large).contains(&bytes), "{bytes}");
    story.replica.flush_all();
    for command in (0..5).flat_map(|_| changes()) {
        story.apply(command).unwrap();
    }
    let bytes = story.keyspace().unflushed_bytes();
    assert!((20 * large..25 * large).contains(&bytes), "{bytes}");
    // Opening compares digests: whichever entry a flush ends with, the engine has what it left.
    let end = story.replica.index();
    for index in end - 20..=end {
        story.replica.flush(index, usize::MAX);
        let digest = story.keyspace().digest();
        story.replica.open().unwrap();
        story.replica.follow(&story.log);
        assert_eq!(story.keyspace().digest(), digest);
    }
}

/// Each counted as one key, though it copies all that the user or role has: hundreds of them were applied in one go, under the lock, for seconds.
#[test]
fn changes_of_large_users_and_roles_are_applied_a_few_at_a_time() {
    const ROLE_KEYS: usize = RECORD_BYTES_MAX / 1024;
    const USER_KEYS: usize = 4 * NAME_BYTES_MAX / 1024;
    let mut story = Story::new();
    story.auth(add_role("r")).unwrap();
    let perm = Permission { key: vec![b'k'; RECORD_BYTES_MAX].into(), ..Default::default() };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
    story.auth(AuthCommand::RoleGrantPermission(grant)).unwrap();
    story.auth(add_user("u")).unwrap();
    for number in 0..4 {
        let name = format!("{number}{}", "n".repeat(NAME_BYTES_MAX - 1));
        story.auth(add_role(&name)).unwrap();
        story.auth(grant_role("u", &name)).unwrap();
    }
    let keyspace = story.keyspace();
    let begin = |commands: Vec<AuthCommand>| {
        let index = keyspace.applied().index + 1;
        let commands = commands.into_iter().map(|command| (Command::Auth(command), true));
        keyspace.begin_entry(Applied { term: 1, index, ..Applied::default() }, commands.collect());
    };
    begin((0..20).flat_map(|_| [permit("r", Type::Read, "a", ""), forbid("r", "a", "")]).collect());
    let mut pieces = 1;
    while keyspace.go_on(ROLE_KEYS).1.is_none() {
        pieces += 1;
    }
    assert_eq!(pieces, 40);
    for (command, keys) in [
        (grant_role("u", "r"), USER_KEYS),
        (revoke_role("u", "r"), USER_KEYS),
        (grant_role("u", "r"), USER_KEYS),
        (delete_role("r"), ROLE_KEYS + USER_KEYS),
        (delete_user("u"), USER_KEYS),
    ] {
        begin(vec![command]);
        let (effort, answers) = keyspace.go_on(usize::MAX);
        assert!(answers.unwrap()[0].is_ok());
        assert!((keys..keys + 10).contains(&effort), "{effort}");
    }
}

#[test]
fn leases_users_and_roles_count_for_the_size_of_the_keyspace() {
    let mut story = Story::new();
    assert_eq!(story.keyspace().db_bytes(), 0);
    let steps = [
        Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 9 }),
        Command::Auth(add_role("r")),
        Command::Auth(permit("r", Type::Read, "a", "b")),
        Command::Auth(add_user("u")),
        Command::Auth(grant_role("u", "r")),
    ];
    let mut sizes = vec![0];
    for command in steps {
        story.apply(command).unwrap();
        let size = story.keyspace().db_bytes();
        assert!((80..200).contains(&(size - sizes.last().unwrap())), "{size} after {sizes:?}");
        sizes.push(size);
    }
    // It is the same after a restart, and for who takes a snapshot.
    story.replica.flush_all();
    let other = Replica::new(Options::default());
    assert!(other.import(story.replica.exporter().unwrap(), 1 << 20, usize::MAX));
    story.replica.open().unwrap();
    assert_eq!([other.keyspace.db_bytes(), story.keyspace().db_bytes()], [*sizes.last().unwrap(); 2]);
    let steps = [
        Command::Auth(revoke_role("u", "r")),
        Command::Auth(delete_user("u")),
        Command::Auth(forbid("r", "a", "b")),
        Command::Auth(delete_role("r")),
        Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 }),
    ];
    for command in steps {
        let before = story.keyspace().db_bytes();
        story.apply(command).unwrap();
        assert!(story.keyspace().db_bytes() < before);
    }
    assert_eq!(story.keyspace().db_bytes(), 0);
}

#[test]
fn permissions_are_replaced_and_ordered() {
    let mut story = Story::new();
    story.auth(add_role("r")).unwrap();
    story.auth(add_role("root")).unwrap();
    for command in [
        permit("r", Type::Read, "b", ""),
        permit("r", Type::Read, "a", "c"),
        permit("r", Type::Write, "b", ""),
        permit("r", Type::Read, "z", "\0"),
    ] {
        story.auth(command).unwrap();
    }
    let found = story.keyspace().permissions_of("r").unwrap();
    let found: Vec<_> = found.iter().map(|one| (one.key.as_ref(), one.perm_type())).collect();
    assert_eq!(found, [(&b"a"[..], Type::Read), (b"b", Type::Write), (b"z", Type::Read)]);
    let root = story.keyspace().permissions_of("root").unwrap();
    assert_eq!(
        (root.len(), root[0].perm_type(), root[0].range_end.as_ref()),
        (1, Type::Readwrite, &b"\0"[..])
    );
    story.auth(forbid("r", "b", "")).unwrap();
    assert_eq!(story.keyspace().permissions_of("r").unwrap().len(), 2);
}

#[test]
fn every_operation_of_a_txn_is_checked_and_what_was_before_is_read() {
    let mut story = Story::with_alice();
    assert_eq!(refused(story.apply(Command::Put(put("b")))), AuthError::UserEmpty, "in nobody's name");
    story.apply_as("alice", Command::Put(put("b"))).unwrap();
    story.apply_as("root", Command::Put(put("x"))).unwrap();
    let denied = |story: &mut Story, command: Command| {
        assert_eq!(refused(story.apply_as("alice", command)), AuthError::PermissionDenied);
    };
    denied(&mut story, Command::Put(put("a")));
    let with_previous = |key| Command::Put(pb::PutRequest { prev_kv: true, ..put(key) });
    story.apply_as("alice", with_previous("b")).unwrap();
    denied(&mut story, with_previous("c"));
    denied(&mut story, delete("b", "e", false));
    denied(&mut story, delete("b", "d", true));
    story.apply_as("alice", delete("b", "c", true)).unwrap();
    denied(&mut story, delete("b", "\0", false));
    let nested = txn(vec![Request::RequestTxn(txn(vec![Request::RequestPut(put("x"))]))]);
    denied(&mut story, Command::Txn(nested));
    let compare = pb::Compare { key: "x".into(), ..Default::default() };
    denied(&mut story, Command::Txn(pb::TxnRequest { compare: vec![compare], ..Default::default() }));
    let range = pb::RangeRequest { key: "d".into(), ..Default::default() };
    denied(&mut story, Command::Txn(txn(vec![Request::RequestRange(range)])));
    let delete = pb::DeleteRangeRequest { key: "c".into(), prev_kv: true, ..Default::default() };
    denied(&mut story, Command::Txn(txn(vec![Request::RequestDeleteRange(delete)])));
    assert_eq!(refused(story.auth_as("alice", add_role("mine"))), AuthError::PermissionDenied);
    assert_eq!(refused(story.auth_as("nobody", add_role("mine"))), AuthError::UserNotFound);
}

#[test]
fn a_lease_is_ended_only_by_whoever_may_write_all_its_keys() {
    let mut story = Story::with_alice();
    let grant = |id| Command::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 60 });
    let bound = |key, lease| Command::Put(pb::PutRequest { lease, ..put(key) });
    let revoke = |id| Command::LeaseRevoke(pb::LeaseRevokeRequest { id });
    for id in [1, 2] {
        story.apply_as("alice", grant(id)).unwrap();
    }
    story.apply_as("root", bound("x", 1)).unwrap();
    story.apply_as("alice", bound("b", 2)).unwrap();
    // What is between the two is not hers.
    story.apply_as("alice", bound("k", 2)).unwrap();
    let asked = story.apply_as("alice", bound("k", 1));
    assert_eq!(refused(asked), AuthError::PermissionDenied, "it would be deleted with a key of others");
    assert_eq!(refused(story.apply_as("alice", revoke(1))), AuthError::PermissionDenied);
    assert_eq!(refused(story.apply(revoke(2))), AuthError::UserEmpty);
    let (alice, root) = (story.caller("alice"), story.caller("root"));
    let [one, two] = [1, 2].map(|id| story.keyspace().lease_time_to_live(id, true, 0).keys);
    let hers = ["a".into(), "b".into(), "k".into()];
    let permit = |caller: &Caller, need| story.keyspace().permit(Some(caller), need);
    assert_eq!(refused(permit(&alice, Need::ReadKeys(&one))), AuthError::PermissionDenied);
    assert_eq!(refused(permit(&alice, Need::ReadLeases)), AuthError::PermissionDenied);
    permit(&alice, Need::ReadKeys(&two)).unwrap();
    permit(&alice, Need::ReadKeys(&hers)).unwrap();
    permit(&alice, Need::ReadKeys(&[])).unwrap();
    permit(&alice, Need::WriteLease(2)).unwrap();
    permit(&root, Need::ReadLeases).unwrap();
    story.apply_as("alice", revoke(2)).unwrap();
    // Time asks nobody.
    story.log.push((1_000_000, vec![Command::LeaseExpire(vec![1])]));
    let expired = story.replica.follow(&story.log).pop().unwrap().unwrap();
    assert_eq!(expired, Response::LeaseExpire(vec![1]));
}

#[test]
fn who_was_authenticated_before_a_change_is_refused() {
    let mut story = Story::with_alice();
    let alice = story.caller("alice");
    let command = Command::As(alice.clone(), Box::new(Command::Put(put("b"))));
    story.apply(command.clone()).unwrap();
    // Proposed before the role was taken away, applied after it.
    story.auth_as("root", revoke_role("alice", "some")).unwrap();
    assert_eq!(refused(story.apply(command)), AuthError::AuthOldRevision);
    assert_eq!(refused(story.apply_as("alice", Command::Put(put("b")))), AuthError::PermissionDenied);
    let read = story.keyspace().permit(Some(&alice), Need::Read(&"a".into(), &"".into()));
    assert_eq!(refused(read), AuthError::AuthOldRevision);
}

#[test]
fn users_and_roles_are_seen_by_those_who_are_or_have_them() {
    let story = Story::with_alice();
    let (alice, root) = (story.caller("alice"), story.caller("root"));
    let permit = |caller, need| story.keyspace().permit(caller, need);
    permit(Some(&alice), Need::SameUser("alice")).unwrap();
    permit(Some(&alice), Need::SameRole("some")).unwrap();
    permit(Some(&alice), Need::User).unwrap();
    assert_eq!(refused(permit(Some(&alice), Need::SameUser("root"))), AuthError::PermissionDenied);
    assert_eq!(refused(permit(Some(&alice), Need::SameRole("root"))), AuthError::PermissionDenied);
    assert_eq!(refused(permit(Some(&alice), Need::Root)), AuthError::PermissionDenied);
    assert_eq!(refused(permit(None, Need::User)), AuthError::UserEmpty);
    for need in [Need::SameUser("alice"), Need::SameRole("some"), Need::Root] {
        permit(Some(&root), need).unwrap();
        assert_eq!(refused(permit(None, need)), AuthError::UserEmpty);
    }
}

#[test]
fn passwords_are_kept_and_those_without_one_have_none() {
    let mut story = Story::with_alice();
    let without = pb::AuthUserAddRequest {
        name: "cert".into(),
        options: Some(UserAddOptions { no_password: true }),
        ..Default::default()
    };
    story.auth_as("root", AuthCommand::UserAdd(without)).unwrap();
    assert_eq!(story.keyspace().credentials("cert").unwrap().password_hash, None);
    let found = story.keyspace().credentials("alice").unwrap();
    assert_eq!((found.password_hash.as_deref(), found.secret.as_ref()), (Some(&b"hash"[..]), &b"secret"[..]));
    let change = |name: &str, hashed_password: &str| {
        AuthCommand::UserChangePassword(pb::AuthUserChangePasswordRequest {
            name: name.into(),
            hashed_password: hashed_password.into(),
            ..Default::default()
        })
    };
    story.auth_as("root", change("alice", "bmV3")).unwrap();
    story.auth_as("root", change("cert", "bmV3")).unwrap();
    assert_eq!(story.keyspace().credentials("alice").unwrap().password_hash.unwrap(), "new");
    assert_eq!(story.keyspace().credentials("cert").unwrap().password_hash, None);
    assert_eq!(story.keyspace().roles_of("alice").unwrap(), ["some"], "roles stay");
    assert!(story.keyspace().credentials("nobody").is_none());
    story.auth_as("root", AuthCommand::Disable).unwrap();
    assert!(story.keyspace().credentials("alice").unwrap().secret.is_empty());
}

/// Switched on without a secret, as a restore leaves it. A secret that was chosen then, and comes after authentication was switched off, must not
/// switch it on; what earlier versions wrote into logs means what it did.
#[test]
fn a_secret_is_chosen_only_while_authentication_is_on_without_one() {
    let secret = |secret: &'static str| AuthCommand::Secret(secret.into());
    let shown = |story: &Story| {
        let credentials = story.keyspace().credentials("root").unwrap();
        (credentials.enabled, credentials.secret, credentials.auth_revision)
    };
    let mut story = Story::new();
    story.auth(add_user("root")).unwrap();
    story.auth(grant_role("root", "root")).unwrap();
    story.auth(secret("early")).unwrap();
    assert_eq!(shown(&story), (false, "".into(), 3));
    story.auth(AuthCommand::Enable("".into())).unwrap();
    story.auth(secret("first")).unwrap();
    story.auth(secret("second")).unwrap();
    assert_eq!(shown(&story), (true, "first".into(), 3));
    story.auth_as("root", AuthCommand::Disable).unwrap();
    story.auth(secret("late")).unwrap();
    assert_eq!(shown(&story), (false, "".into(), 4));
    story.auth(AuthCommand::Enable("".into())).unwrap();
    story.auth(AuthCommand::Enable("old".into())).unwrap();
    assert_eq!(shown(&story), (true, "old".into(), 4));
}

#[test]
fn all_of_it_survives_restarts_and_snapshots_and_is_in_the_digest() {
    let mut story = Story::with_alice();
    story.auth_as("root", add_user("gone")).unwrap();
    story.replica.flush_all();
    story.auth_as("root", delete_user("gone")).unwrap();
    story.auth_as("root", add_role("empty")).unwrap();
    story.auth_as("root", delete_role("empty")).unwrap();
    story.replica.flush_all();
    let (digest, status) = (story.keyspace().digest(), story.keyspace().auth_status());
    let target = Replica::new(Options::default());
    assert!(target.import(story.replica.exporter().unwrap(), 64, usize::MAX));
    // Open compares the digest with what it computes.
    story.replica.open().unwrap();
    let alice = story.caller("alice");
    for keyspace in [story.keyspace(), &target.keyspace] {
        assert_eq!((keyspace.digest(), keyspace.auth_status()), (digest, status));
        assert!(keyspace.is_auth_enabled() && keyspace.auth_revision() == status.revision);
        assert_eq!(keyspace.users(), ["alice", "root"]);
        assert_eq!(keyspace.roles(), ["some"]);
        assert_eq!(keyspace.credentials("alice").unwrap().secret, "secret");
        keyspace.permit(Some(&alice), Need::Read(&"a".into(), &"c".into())).unwrap();
    }
    story.auth_as("root", revoke_role("alice", "some")).unwrap();
    assert_ne!(story.keyspace().digest(), digest);
}

/// It was checked as of the auth revision that was seen when the check began: a change in between ended every watch, those of root too.
#[test]
fn a_watch_is_of_a_user_whatever_changes_while_that_is_checked() {
    let mut story = Story::with_alice();
    let mut client = Client::new(&story.replica.keyspace);
    for watch_id in [1, 2] {
        let (key, range_end) = if watch_id == 1 { ("a", "c") } else { ("k", "") };
        let (key, range_end) = (key.into(), range_end.into());
        client.stream.create(pb::WatchCreateRequest { key, range_end, watch_id, ..Default::default() });
    }
    assert_eq!(client.drain().len(), 2);
    let reason = |error: &Error| error.to_string();
    for user in ["alice", "root"] {
        story.auth_as("root", add_role(user)).unwrap();
        assert!(client.stream.end_forbidden(Some(user), reason).is_empty(), "{user} may watch both");
    }
    story.auth_as("root", forbid("some", "k", "")).unwrap();
    assert_eq!(client.stream.end_forbidden(Some("alice"), reason), [2]);
    let ends = client.drain();
    assert_eq!((ends[0].watch_id, ends[0].canceled), (2, true));
    assert!(ends[0].cancel_reason.contains("permission denied"), "{ends:?}");
    assert_eq!(client.stream.end_forbidden(None, reason), [1]);
}
