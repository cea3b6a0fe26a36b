//! A file that was damaged in any way is refused or means something else, and never hurts.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _, Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use hadron_bolt::{Damage, Reader, Writer};
use hadron_keyspace::auth::{AuthCommand, STORED_NAME_BYTES_MAX};
use hadron_keyspace::{Applied, Command, Keyspace, Options, Restore};
use hadron_proto::{authpb, etcdserverpb as pb};
use hadron_storage::engine::{Engine as _, ModelEngine};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{BackupFile, Failure, Members, Progress, build, hash_kv, load, status};

const GROUP: u64 = 1;
/// Damaged files in CI; `BACKUP_FILES` says how many otherwise.
const FILES: u64 = 400;

const UNHINDERED: Progress<'static> = Progress { is_given_up: &|| false, check_room: &|| Ok(()) };

/// A keyspace with something of everything, as a file without its SHA-256.
fn file() -> Vec<u8> {
    let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), GROUP, Options::default()).unwrap();
    let mut commands = vec![
        Command::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 7 }),
        Command::Auth(AuthCommand::UserAdd(pb::AuthUserAddRequest {
            name: "alice".into(),
            ..Default::default()
        })),
        Command::Auth(AuthCommand::RoleAdd(pb::AuthRoleAddRequest { name: "reader".into() })),
    ];
    for number in 0..300 {
        let (key, value) = (format!("k{}", number % 70).into(), vec![7; number % 90].into());
        let lease = if number % 9 == 0 { 7 } else { 0 };
        commands.push(Command::Put(pb::PutRequest { key, value, lease, ..Default::default() }));
        if number % 11 == 0 {
            let key = format!("k{}", number % 13).into();
            commands.push(Command::DeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }));
        }
    }
    commands.push(Command::Compact(pb::CompactionRequest { revision: 100, ..Default::default() }));
    keyspace.apply(Applied { term: 1, index: 1, checksum: 1, stamp_ms: 5 }, commands);
    backup_of(&keyspace)
}

/// A backup as a file without its SHA-256.
fn backup_of(keyspace: &Keyspace) -> Vec<u8> {
    let members = Members { all: Vec::new(), cluster_version: "3.6.0".into() };
    let (mut file, _) =
        build(keyspace, 10, &members, std::env::temp_dir().as_path(), &UNHINDERED).ok().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn open(bytes: &[u8]) -> Option<BackupFile> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    BackupFile::open(file.path(), false).ok()
}

/// Restores a file; the keyspace that comes of it, if it does.
fn restored(bytes: &[u8]) -> Option<Arc<Keyspace>> {
    let engine = Arc::new(ModelEngine::new());
    let restore = Restore::new(engine.clone(), GROUP).unwrap();
    let loaded = load(&mut open(bytes)?, restore, 0).ok()?;
    let keyspace = Keyspace::open(engine, GROUP, Options::default()).unwrap();
    assert_eq!(keyspace.revision(), loaded.restored.revision);
    assert_eq!(keyspace.applied().checksum, loaded.restored.checksum);
    Some(keyspace)
}

#[test]
fn a_backup_that_is_given_up_is_left_unfinished() {
    let keyspace = restored(&file()).unwrap();
    let members = Members { all: Vec::new(), cluster_version: "3.6.0".into() };
    let given_up = Progress { is_given_up: &|| true, ..UNHINDERED };
    let built = build(&keyspace, 0, &members, std::env::temp_dir().as_path(), &given_up);
    assert!(matches!(built, Err(Failure::GivenUp)));
}

/// A client that had seen the revision before kept the key for ever.
#[test]
fn what_was_deleted_in_the_compacted_revision_is_told_to_who_watches_from_there() {
    let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), GROUP, Options::default()).unwrap();
    let put = || Command::Put(pb::PutRequest { key: "a".into(), ..Default::default() });
    let delete = |key: &'static str| {
        Command::DeleteRange(pb::DeleteRangeRequest { key: key.into(), ..Default::default() })
    };
    let compact = Command::Compact(pb::CompactionRequest { revision: 4, ..Default::default() });
    let commands = vec![put(), put(), delete("a"), compact];
    keyspace.apply(Applied { term: 1, index: 1, checksum: 1, stamp_ms: 5 }, commands);
    let bytes = backup_of(&keyspace);
    let back = restored(&bytes).unwrap();
    assert_eq!((back.revision(), back.compact_revision(), back.len()), (4, 4, 0));
    assert_eq!(back.hash_kv(0).unwrap().hash, keyspace.hash_kv(0).unwrap().hash);
    assert_eq!(hash_kv(&mut open(&bytes).unwrap(), 0).unwrap().hash, keyspace.hash_kv(0).unwrap().hash);
    let stored = buckets_of(&bytes);
    assert_eq!(stored[&b"key".to_vec()].len(), 1, "the deletion");
    let again = buckets_of(&backup_of(&back));
    assert_eq!(again[&b"key".to_vec()], stored[&b"key".to_vec()]);
}

#[test]
fn a_backup_ends_when_the_disk_gets_full_meanwhile() {
    let keyspace = Keyspace::open(Arc::new(ModelEngine::new()), GROUP, Options::default()).unwrap();
    let put = |number: u8| {
        Command::Put(pb::PutRequest {
            key: vec![number].into(),
            value: vec![0; 1 << 20].into(),
            ..Default::default()
        })
    };
    keyspace.apply(Applied { term: 1, index: 1, checksum: 1, stamp_ms: 5 }, (0..40).map(put).collect());
    let looks = std::cell::Cell::new(0);
    let full = || {
        looks.set(looks.get() + 1);
        if looks.get() < 2 { Ok(()) } else { Err(std::io::ErrorKind::StorageFull.into()) }
    };
    let progress = Progress { check_room: &full, ..UNHINDERED };
    let members = Members { all: Vec::new(), cluster_version: "3.6.0".into() };
    let built = build(&keyspace, 0, &members, std::env::temp_dir().as_path(), &progress);
    assert!(matches!(built, Err(Failure::File(error)) if error.kind() == std::io::ErrorKind::StorageFull));
}

#[test]
fn what_comes_back_is_what_was_there() {
    let bytes = file();
    let keyspace = restored(&bytes).unwrap();
    let once_more = backup_of(&keyspace);
    let hash = |bytes: &[u8]| hash_kv(&mut open(bytes).unwrap(), 0).unwrap();
    assert_eq!(hash(&bytes), hash(&once_more));
    assert_eq!(hash(&bytes).hash, keyspace.hash_kv(0).unwrap().hash);
    let [one, two] = [&bytes, &once_more].map(|bytes| status(&mut open(bytes).unwrap()).unwrap());
    assert_eq!((one.keys, one.revision), (two.keys, two.revision));
    assert_eq!((one.keys, one.revision), (keyspace.len(), keyspace.revision()));
    let lease = keyspace.lease_time_to_live(7, true, 0);
    assert_eq!((lease.ttl, lease.granted_ttl), (59, 60));
    assert!(!lease.keys.is_empty());
}

type Buckets = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// What is in a file.
fn buckets_of(bytes: &[u8]) -> Buckets {
    let mut reader = Reader::new(Cursor::new(bytes), bytes.len() as u64).unwrap();
    let mut buckets = Buckets::new();
    for name in reader.buckets().unwrap() {
        let bucket = buckets.entry(name.clone()).or_default();
        let add = |key: &[u8], value: &[u8]| -> Result<(), Damage> {
            bucket.insert(key.to_vec(), value.to_vec());
            Ok(())
        };
        reader.visit(&name, add).unwrap();
    }
    buckets
}

/// The same file with other contents.
fn rewritten(bytes: &[u8], change: impl FnOnce(&mut Buckets)) -> Vec<u8> {
    let mut buckets = buckets_of(bytes);
    change(&mut buckets);
    let mut writer = Writer::new(Cursor::new(Vec::new())).unwrap();
    for (name, contents) in buckets {
        let mut bucket = writer.bucket(&name);
        contents.iter().for_each(|(key, value)| bucket.put(key, value).unwrap());
        bucket.finish().unwrap();
    }
    writer.finish().unwrap().0.into_inner()
}

/// What versions of etcd write beside the keys, as their files show it: 3.4.23 knows neither term nor configuration, 3.6.14 and 3.7.1 say
/// whose format it is. Later ones may say more.
#[test]
fn files_of_each_version_of_etcd_are_read() {
    let bytes = file();
    let expected = restored(&bytes).unwrap();
    for version in ["3.4", "3.5", "3.6", "3.7", "3.9"] {
        let theirs = rewritten(&bytes, |buckets| {
            let meta = buckets.get_mut(&b"meta"[..]).unwrap();
            match version {
                "3.4" => meta.retain(|key, _| key != b"term" && key != b"confState"),
                "3.5" => {}
                version => {
                    meta.insert(b"storageVersion".to_vec(), format!("{version}.0").into_bytes());
                }
            }
            if version == "3.9" {
                meta.insert(b"unheardOf".to_vec(), b"1".to_vec());
                buckets.insert(b"unheardOf".to_vec(), [(b"a".to_vec(), b"b".to_vec())].into());
            }
            let cluster = buckets.get_mut(&b"cluster"[..]).unwrap();
            cluster.insert(b"clusterVersion".to_vec(), format!("{version}.0").into_bytes());
        });
        assert_ne!(theirs, bytes);
        let found = restored(&theirs).unwrap_or_else(|| panic!("{version} is not read"));
        assert_eq!(found.revision(), expected.revision(), "{version}");
        assert_eq!(found.hash_kv(0).unwrap(), expected.hash_kv(0).unwrap(), "{version}");
        assert_eq!(
            found.lease_time_to_live(7, true, 0),
            expected.lease_time_to_live(7, true, 0),
            "{version}"
        );
        let everything =
            pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        assert_eq!(found.range(&everything).unwrap(), expected.range(&everything).unwrap(), "{version}");
        let said = status(&mut open(&theirs).unwrap()).unwrap().version;
        let says = if matches!(version, "3.4" | "3.5") { String::new() } else { format!("{version}.0") };
        assert_eq!(said, says);
    }
}

/// Nothing of etcd's writes such a file, and the engine could not store what it says.
#[test]
fn a_file_with_a_name_that_cannot_be_stored_is_refused() {
    let bytes = file();
    let with_name = |length: usize| {
        rewritten(&bytes, |buckets| {
            let name = vec![b'n'; length];
            let role = authpb::Role { name: name.clone().into(), key_permission: Vec::new() };
            buckets.get_mut(&b"authRoles"[..]).unwrap().insert(name, role.encode_to_vec());
        })
    };
    assert_eq!(restored(&with_name(STORED_NAME_BYTES_MAX)).unwrap().roles().len(), 2);
    let restore = Restore::new(Arc::new(ModelEngine::new()), GROUP).unwrap();
    let refused = load(&mut open(&with_name(STORED_NAME_BYTES_MAX + 1)).unwrap(), restore, 0).err().unwrap();
    assert!(refused.to_string().contains("a name of 65523 bytes"), "{refused}");
}

#[test]
fn a_damaged_file_is_refused_or_means_something_else_and_never_hurts() {
    let files = std::env::var("BACKUP_FILES").map_or(FILES, |text| text.parse().unwrap());
    let whole = file();
    let (mut refused, mut opened) = (0, 0);
    for seed in 0..files {
        let mut random = StdRng::seed_from_u64(seed);
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..5) {
            let at = random.random_range(0..bytes.len());
            // Headers and elements of pages are where it hurts.
            let at = if random.random() { at } else { at / 4096 * 4096 + random.random_range(0..160) };
            bytes[at] = random.random();
        }
        match restored(&bytes) {
            None => refused += 1,
            Some(keyspace) => {
                opened += 1;
                let everything =
                    pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
                let _ = keyspace.range(&everything);
                let _ = keyspace.hash_kv(0);
            }
        }
        if let Some(mut file) = open(&bytes) {
            let _ = status(&mut file);
            let _ = hash_kv(&mut file, 0);
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} refused, {opened} opened");
}

/// Such a key kept the id. When a lease of that id was granted, replicas that were opened after that bound the key to it, and deleted it when the lease
/// ended; the others did not.
#[test]
fn a_key_on_a_lease_that_is_not_in_the_file_is_on_none() {
    let bytes = file();
    let without = rewritten(&bytes, |buckets| buckets.get_mut(&b"lease"[..]).unwrap().clear());
    let engine = Arc::new(ModelEngine::new());
    let restore = Restore::new(engine.clone(), GROUP).unwrap();
    let loaded = load(&mut open(&without).unwrap(), restore, 0).unwrap();
    let open = || Keyspace::open(engine.clone(), GROUP, Options::default()).unwrap();
    let (keyspace, whole) = (open(), restored(&bytes).unwrap());
    let bound = |keyspace: &Keyspace, revision| {
        let key: bytes::Bytes = vec![0].into();
        let all = pb::RangeRequest { range_end: key.clone(), key, revision, ..Default::default() };
        keyspace.range(&all).unwrap().kvs.iter().filter(|kv| kv.lease == 7).count()
    };
    assert_eq!((loaded.restored.leases, loaded.restored.unbound), (0, bound(&whole, 0)));
    assert_eq!(bound(&keyspace, 0), 0);
    assert!(bound(&keyspace, 150) > 0, "history is as it was");
    let grant = Command::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 7 });
    keyspace.apply(Applied { term: 1, index: 2, checksum: 1, stamp_ms: 5 }, vec![grant]);
    let flush = keyspace.take_flush(2, usize::MAX).unwrap();
    engine.write(flush.batch()).unwrap();
    keyspace.flush_done(flush);
    for keyspace in [keyspace, open()] {
        let lease = keyspace.lease_time_to_live(7, true, 5);
        assert_eq!((lease.granted_ttl, lease.keys.len()), (60, 0), "also on a replica that was opened since");
    }
}
