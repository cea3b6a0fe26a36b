//! A keyspace with something of everything, and what it says to clients.

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::Channel;

/// Keys written in one txn.
const AT_ONCE: usize = 100;
/// A lease with keys, of an hour.
pub const LEASE: i64 = 0x77;

/// How many keys there are.
pub fn keys() -> usize {
    std::env::var("BACKUP_KEYS").map_or(3_000, |text| text.parse().unwrap())
}

/// The name of a key.
pub fn key(number: usize) -> Bytes {
    format!("/keys/{number:07}").into()
}

fn put(number: usize, generation: u8, lease: i64) -> pb::RequestOp {
    let value = vec![generation; number % 400];
    let put = pb::PutRequest { key: key(number), value: value.into(), lease, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

/// Creates keys, changes some, deletes some, compacts in between; a lease and a user. The compacted revision.
pub async fn fill(channel: &Channel) -> i64 {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let grant = pb::LeaseGrantRequest { ttl: 3_600, id: LEASE };
    LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
    let mut compacted = 0;
    for generation in [1, 2, 3] {
        let step = usize::from(generation);
        let numbers: Vec<usize> = (0..keys()).step_by(step).collect();
        for some in numbers.chunks(AT_ONCE) {
            let lease = |number: usize| if number.is_multiple_of(50) { LEASE } else { 0 };
            let success = some.iter().map(|number| put(*number, generation, lease(*number))).collect();
            kv.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
        }
        let delete = pb::DeleteRangeRequest {
            key: key(keys() / 10 * step),
            range_end: key(keys() / 10 * step + keys() / 20),
            ..Default::default()
        };
        let revision = kv.delete_range(delete).await.unwrap().into_inner().header.unwrap().revision;
        if generation == 2 {
            compacted = revision - 2;
            let compact = pb::CompactionRequest { revision: compacted, physical: true };
            kv.compact(compact).await.unwrap();
        }
    }
    add_users(&mut AuthClient::new(channel.clone())).await;
    compacted
}

/// Two users with passwords and one without, and two roles.
async fn add_users(auth: &mut AuthClient<Channel>) {
    for (name, password) in [("root", "r"), ("alice", "a"), ("bob", "")] {
        let options =
            password.is_empty().then_some(hadron_proto::authpb::UserAddOptions { no_password: true });
        let user = pb::AuthUserAddRequest {
            name: name.into(),
            password: password.into(),
            options,
            ..Default::default()
        };
        auth.user_add(user).await.unwrap();
    }
    for name in ["root", "keys", "none"] {
        auth.role_add(pb::AuthRoleAddRequest { name: name.into() }).await.unwrap();
    }
    for (perm_type, key, range_end) in [(0, "/keys/", "/keys0"), (1, "/alice", ""), (2, "/all", "\0")] {
        let perm =
            hadron_proto::authpb::Permission { perm_type, key: key.into(), range_end: range_end.into() };
        let grant = pb::AuthRoleGrantPermissionRequest { name: "keys".into(), perm: Some(perm) };
        auth.role_grant_permission(grant).await.unwrap();
    }
    for (user, role) in [("root", "root"), ("alice", "keys"), ("alice", "none"), ("bob", "keys")] {
        auth.user_grant_role(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
            .await
            .unwrap();
    }
}

/// What `Snapshot` sends: the file, and what follows it.
pub async fn snapshot(channel: &Channel) -> (Vec<u8>, Vec<u8>) {
    let mut maintenance = MaintenanceClient::new(channel.clone());
    let mut stream = maintenance.snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let (mut file, mut left) = (Vec::new(), None);
    while left != Some(0) {
        let part = stream.message().await.unwrap().expect("more of the file");
        let told = left.replace(part.remaining_bytes);
        assert!(told.is_none_or(|told| told - part.blob.len() as u64 == part.remaining_bytes));
        file.extend_from_slice(&part.blob);
    }
    let hash = stream.message().await.unwrap().expect("the hash").blob.to_vec();
    assert!(stream.message().await.unwrap().is_none());
    (file, hash)
}

/// What clients are told.
#[derive(Debug, PartialEq)]
pub struct Content {
    /// All keys at some revisions, or why not.
    ranges: Vec<Result<Vec<hadron_proto::mvccpb::KeyValue>, String>>,
    hash: u32,
    lease_ttl: i64,
    lease_keys: Vec<Bytes>,
    /// What each user may do, and who gets in with which password.
    users: Vec<(String, Vec<String>)>,
    roles: Vec<(String, Vec<hadron_proto::authpb::Permission>)>,
    log_ins: Vec<bool>,
}

impl Content {
    /// Demands that others are told the same.
    #[track_caller]
    pub fn assert_same(&self, other: &Content, whose: &str) {
        assert_eq!(self.users, other.users, "{whose}");
        assert_eq!(self.roles, other.roles, "{whose}");
        assert_eq!(self.log_ins, other.log_ins, "{whose}");
        assert_eq!((self.lease_ttl, &self.lease_keys), (other.lease_ttl, &other.lease_keys), "{whose}");
        assert!(self == other, "{whose}: keys or hashes differ");
    }

    /// What is told now, at revisions around the oldest and the newest. The lease must have nearly all of its time.
    pub async fn of(channel: &Channel, compacted: i64, newest: i64) -> Content {
        let mut ranges = Vec::new();
        for revision in [0, newest, newest - 1, compacted + 10, compacted, compacted - 1, newest + 1] {
            ranges.push(range_at(channel, revision).await);
        }
        let time_to_live = pb::LeaseTimeToLiveRequest { id: LEASE, keys: true };
        let answer = LeaseClient::new(channel.clone()).lease_time_to_live(time_to_live).await.unwrap();
        let pb::LeaseTimeToLiveResponse { granted_ttl, ttl, keys: mut lease_keys, .. } = answer.into_inner();
        assert!((3_000..=3_600).contains(&ttl), "{ttl} s left");
        lease_keys.sort();
        let auth = &mut AuthClient::new(channel.clone());
        Content {
            ranges,
            hash: hash(channel).await,
            lease_ttl: granted_ttl,
            lease_keys,
            users: users(auth).await,
            roles: roles(auth).await,
            log_ins: log_ins(auth).await,
        }
    }
}

async fn users(auth: &mut AuthClient<Channel>) -> Vec<(String, Vec<String>)> {
    let names = auth.user_list(pb::AuthUserListRequest {}).await.unwrap().into_inner().users;
    let mut users = Vec::new();
    for name in names {
        let user = auth.user_get(pb::AuthUserGetRequest { name: name.clone() }).await.unwrap();
        users.push((name, user.into_inner().roles));
    }
    users
}

async fn roles(auth: &mut AuthClient<Channel>) -> Vec<(String, Vec<hadron_proto::authpb::Permission>)> {
    let names = auth.role_list(pb::AuthRoleListRequest {}).await.unwrap().into_inner().roles;
    let mut roles = Vec::new();
    // What `root` may do goes without saying in etcd 3.5.1, and is said by later ones.
    for role in names.into_iter().filter(|name| name != "root") {
        let perms = auth.role_get(pb::AuthRoleGetRequest { role: role.clone() }).await.unwrap();
        roles.push((role, perms.into_inner().perm));
    }
    roles
}

/// Who gets in. Authentication is on for the moment.
async fn log_ins(auth: &mut AuthClient<Channel>) -> Vec<bool> {
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let mut log_ins = Vec::new();
    for (name, password) in [("alice", "a"), ("alice", "r"), ("bob", ""), ("nobody", "a")] {
        log_ins.push(log_in(auth, name, password).await.is_ok());
    }
    let root = log_in(auth, "root", "r").await.unwrap();
    let mut disable = tonic::Request::new(pb::AuthDisableRequest {});
    disable.metadata_mut().insert("token", root.parse().unwrap());
    auth.auth_disable(disable).await.unwrap();
    log_ins
}

async fn log_in(auth: &mut AuthClient<Channel>, name: &str, password: &str) -> Result<String, tonic::Status> {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(auth.authenticate(request).await?.into_inner().token)
}

async fn range_at(channel: &Channel, revision: i64) -> Result<Vec<hadron_proto::mvccpb::KeyValue>, String> {
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let range =
        pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    kv.range(range).await.map(|answer| answer.into_inner().kvs).map_err(|status| status.message().to_owned())
}

async fn hash(channel: &Channel) -> u32 {
    let request = pb::HashKvRequest { revision: 0 };
    MaintenanceClient::new(channel.clone()).hash_kv(request).await.unwrap().into_inner().hash
}
