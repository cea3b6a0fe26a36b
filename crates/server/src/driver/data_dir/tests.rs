//! Tests of [`super`]: first starts, later starts, and directories that lack a piece.
#![allow(clippy::unwrap_used)]

use hadron_storage::data_dir::starts;
use hadron_storage::disk::{MemoryDisk, write_atomically};

use super::super::tests::config;
use super::*;
use crate::transport::{Answer, AskError, MembersAnswer};

const DATA: &str = "/data";

/// Others that answer as the function does, and know of no members.
struct Told<About>(About);

fn told<About>(about: About) -> Told<About>
where
    About: Fn(&transport::Identity, &Bootstrap) -> Result<Vec<Reply>, RunError>,
{
    Told(about)
}

impl<About> Others for Told<About>
where
    About: Fn(&transport::Identity, &Bootstrap) -> Result<Vec<Reply>, RunError>,
{
    fn about(&self, own: &transport::Identity, pool: &Bootstrap) -> Result<Vec<Reply>, RunError> {
        self.0(own, pool)
    }

    fn members(&self, _: &[InitialMember]) -> Result<Vec<MembersAnswer>, RunError> {
        Ok(Vec::new())
    }
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::default())
}

/// `a` of a pool of three.
fn three() -> Config {
    let mut config = config("a", DATA);
    let members = "a=http://127.0.0.1:1,b=http://127.0.0.1:11,c=http://127.0.0.1:12";
    config.initial.cluster = Some(members.into());
    config
}

fn open(disk: &Arc<dyn Disk>, config: &Config) -> Result<Home, RunError> {
    Home::open(disk, config, &told(|_, _| Ok(Vec::new()))).map(|(home, _)| home)
}

fn refusal(disk: &Arc<dyn Disk>, config: &Config) -> String {
    open(disk, config).err().unwrap().to_string()
}

/// The node is in use: it has a log, an engine and the mark.
fn fill(disk: &Arc<dyn Disk>) {
    for piece in ["wal", "engine"] {
        let directory = config("a", DATA).data_dir.join(piece);
        disk.create_dir(&directory).unwrap();
        disk.create(&directory.join("file")).unwrap();
    }
    write_atomically(&**disk, DATA.as_ref(), "COMPLETE", b"yes").unwrap();
}

/// One other member answers so.
fn reply(cluster_id: u64, known: Option<u64>) -> Reply {
    let from =
        transport::Identity { cluster_id, node: NodeId(9), incarnation: 1, data_dir_id: 9, name: "b".into() };
    Reply { name: "b".into(), urls: "http://b:2380".into(), answer: Ok(Answer { from, known }) }
}

#[test]
fn every_start_is_counted_and_the_identity_stays() {
    let (disk, config) = (disk(), config("a", DATA));
    let first = open(&disk, &config).unwrap();
    let (id, node) = (first.data_dir_id(), first.node());
    assert_eq!(starts(first.incarnation()), 1);
    assert_ne!(id, 0);
    drop(first);
    let second = open(&disk, &config).unwrap();
    assert_eq!((second.data_dir_id(), second.node(), starts(second.incarnation())), (id, node, 2));
}

#[test]
fn the_stored_cluster_counts_whatever_the_flags_say() {
    let (disk, all) = (disk(), three());
    let pool = open(&disk, &all).unwrap().pool;
    let set: [fn(&mut Config); 7] = [
        |config| config.initial.cluster = None,
        |config| config.initial.cluster = Some("a=http://localhost:1/,b=http://127.0.0.1:11".into()),
        |config| config.initial.cluster = Some("nonsense".into()),
        |config| config.initial.advertise_peer_url = "http://localhost:1".parse().ok(),
        |config| config.initial.token = Some("another".into()),
        |config| config.initial.token = None,
        |config| config.initial.is_existing = true,
    ];
    for (number, set) in set.into_iter().enumerate() {
        let mut changed = three();
        set(&mut changed);
        assert_eq!(open(&disk, &changed).unwrap().pool, pool, "{number}");
    }
}

/// `a` of a pool of three, under another name and with other flags.
fn renamed(name: &str, cluster: Option<&str>, advertised: Option<&str>) -> Config {
    let mut config = Config { name: name.into(), ..three() };
    config.initial.cluster = cluster.map(str::to_owned);
    config.initial.advertise_peer_url = advertised.map(|url| url.parse().unwrap());
    config
}

#[test]
fn a_member_may_get_another_name_and_keeps_it() {
    let (own, moved) = ("http://127.0.0.1:1", "http://127.0.0.1:99");
    let others = "b=http://127.0.0.1:11,c=http://127.0.0.1:12";
    let listed = |entry: &str| format!("{entry},{others}");
    for config in [
        renamed("z", None, None),
        renamed("z", None, Some(own)),
        renamed("z", None, Some(moved)),
        renamed("z", Some(&listed(&format!("z={own}"))), Some(own)),
        renamed("z", Some(&listed(&format!("z={moved}"))), Some(moved)),
        renamed("z", Some("nonsense"), None),
        // Whoever changes names among the members says by the URLs who is who.
        renamed("b", Some("b=http://127.0.0.1:1,a=http://127.0.0.1:11,c=http://127.0.0.1:12"), Some(own)),
    ] {
        let disk = disk();
        let first = open(&disk, &three()).unwrap();
        let (id, node) = (first.data_dir_id(), first.node());
        drop(first);
        let home = open(&disk, &config).unwrap();
        assert_eq!(
            (home.data_dir_id(), home.node(), starts(home.incarnation())),
            (id, node, 2),
            "{:?}",
            config.initial
        );
        drop(home);
        let stored = DataDir::read(&*disk, DATA.as_ref()).unwrap().unwrap();
        assert_eq!(stored.node_name, config.name);
        assert_eq!(open(&disk, &three()).unwrap().directory.identity().node_name, "a", "and back");
    }
}

/// What an administrator finds who restored without `--name`, as kubeadm's users do.
#[test]
fn a_member_that_was_made_without_a_name_gets_one() {
    let disk = disk();
    let mut made = config("default", DATA);
    made.initial.cluster = None;
    drop(open(&disk, &made).unwrap());
    fill(&disk);
    let url = "https://10.0.0.1:2380";
    let mut named = config("controlplane", DATA);
    named.initial.cluster = Some(format!("controlplane={url}"));
    named.initial.advertise_peer_url = url.parse().ok();
    assert_eq!(open(&disk, &named).unwrap().directory.identity().node_name, "controlplane");
}

#[test]
fn a_data_directory_on_the_host_of_another_member_is_refused() {
    let (b, moved) = ("http://127.0.0.1:11", "http://127.0.0.1:99");
    let all = three().initial.cluster.unwrap();
    let moved_b = format!("a=http://127.0.0.1:1,b={moved},c=http://127.0.0.1:12");
    // Members that came after this one was made are not in what it has stored.
    let later = "a=http://127.0.0.1:1,d=http://127.0.0.1:13";
    for config in [
        renamed("b", None, None),
        renamed("b", None, Some(b)),
        renamed("z", None, Some(b)),
        renamed("b", Some(&all), None),
        renamed("b", Some(&all), Some(b)),
        renamed("b", Some(&moved_b), Some(moved)),
        renamed("d", Some(later), Some("http://127.0.0.1:13")),
    ] {
        let disk = disk();
        drop(open(&disk, &three()).unwrap());
        let text = refusal(&disk, &config);
        assert!(text.contains("belongs to node a") && text.contains(&config.name), "{text}");
        assert_eq!(starts(open(&disk, &three()).unwrap().incarnation()), 2, "a refused start is none");
    }
}

#[test]
fn flags_that_are_ignored_are_named() {
    let (disk, all) = (disk(), three());
    let home = open(&disk, &all).unwrap();
    let ignored = |set: fn(&mut Config)| {
        let mut changed = three();
        set(&mut changed);
        ignored_flags(&changed, home.node(), &home.pool)
    };
    assert!(ignored(|_| {}).is_empty());
    assert!(ignored(|config| config.initial = Default::default()).is_empty());
    const REORDERED: &str = "c=http://127.0.0.1:12,b=http://127.0.0.1:11/,a=http://127.0.0.1:1/";
    assert!(ignored(|config| config.initial.cluster = Some(REORDERED.into())).is_empty());
    assert_eq!(ignored(|config| config.initial.cluster = Some("x".into())), ["--initial-cluster"]);
    assert_eq!(ignored(|config| config.initial.token = Some("x".into())), ["--initial-cluster-token"]);
    let advertised = ignored(|config| config.initial.advertise_peer_url = "http://localhost:1".parse().ok());
    assert_eq!(advertised, ["--initial-advertise-peer-urls"]);
}

#[test]
fn a_directory_of_another_cluster_is_refused_where_that_other_one_runs() {
    let disk = disk();
    let stored = open(&disk, &three()).unwrap().pool.cluster_id;
    fill(&disk);
    let mut meant = three();
    meant.initial.token = Some("another".into());
    let members = meant.initial.members("a").unwrap();
    let running = derive("another", &members, 0).cluster_id;
    let start = |cluster| Home::open(&disk, &meant, &told(|_, _| Ok(vec![reply(cluster, None)])));
    let error = start(running).err().unwrap().to_string();
    assert!(error.contains(&format!("belongs to cluster {stored:x}, but b (http://b:2380) runs")), "{error}");
    assert_eq!(start(stored).unwrap().0.pool.cluster_id, stored);
}

#[test]
fn a_first_start_is_refused_where_the_node_is_known_and_leaves_nothing() {
    let (disk, config) = (disk(), three());
    let pool = derive("test", &config.initial.members("a").unwrap(), 0);
    for cluster in [pool.cluster_id, 1] {
        let replies = told(|_, _| {
            let refused = std::io::ErrorKind::ConnectionRefused.into();
            let absent =
                Reply { name: "c".into(), urls: "u".into(), answer: Err(AskError::Connect(refused)) };
            Ok(vec![absent, reply(cluster, Some(5))])
        });
        let error = Home::open(&disk, &config, &replies).err().unwrap().to_string();
        let id = node_named(&pool, &config).0;
        assert!(
            error.starts_with(&format!("member {id:x} has already been bootstrapped: b (http")),
            "{error}"
        );
        assert_eq!(disk.list(DATA.as_ref()).unwrap(), ["LOCK"]);
    }
    // Members that do not answer, do not know it, or are of another cluster keep nobody from starting.
    Home::open(&disk, &config, &told(|_, _| Ok(vec![reply(1, None), reply(pool.cluster_id, None)]))).unwrap();
}

#[test]
fn a_start_that_failed_before_it_voted_comes_back_as_itself_and_only_as_itself() {
    let (disk, config) = (disk(), three());
    let first = open(&disk, &config).unwrap();
    let (id, cluster) = (first.data_dir_id(), first.pool.cluster_id);
    drop(first);
    let start = |known| {
        let others = told(|own, _| {
            assert_eq!(own.data_dir_id, id);
            Ok(vec![reply(cluster, Some(known))])
        });
        Home::open(&disk, &config, &others)
    };
    assert_eq!(start(id).unwrap().0.data_dir_id(), id);
    assert!(matches!(start(id ^ 1), Err(RunError::AlreadyBootstrapped { .. })));
    // Who voted asks nobody: the others would not let a stranger in.
    fill(&disk);
    assert_eq!(start(id ^ 1).unwrap().0.data_dir_id(), id);
}

#[test]
fn a_first_start_cut_short_at_any_step_begins_again() {
    for pieces in [&["POOL"][..], &["POOL", "IDENTITY"]] {
        let (disk, config) = (disk(), three());
        drop(open(&disk, &config).unwrap());
        pieces.iter().for_each(|piece| disk.remove(&config.data_dir.join(piece)).unwrap());
        assert_eq!(open(&disk, &config).unwrap().pool.members.len(), 3);
    }
}

#[test]
fn a_missing_piece_is_refused_by_name_and_not_made_anew() {
    for (piece, said) in [
        ("POOL", "POOL is missing"),
        ("IDENTITY", "IDENTITY is missing"),
        ("engine/file", "its engine in"),
        ("wal/file", "log in"),
    ] {
        let (disk, config) = (disk(), three());
        drop(open(&disk, &config).unwrap());
        fill(&disk);
        let path = config.data_dir.join(piece);
        disk.rename(&path, "/away".as_ref()).unwrap();
        for _ in 0..2 {
            let text = refusal(&disk, &config);
            assert!(text.contains(said), "{text}");
            assert!(!disk.exists(&path).unwrap(), "{piece}");
        }
        disk.rename("/away".as_ref(), &path).unwrap();
        assert_eq!(starts(open(&disk, &config).unwrap().incarnation()), 2, "a refused start is none");
    }
}

#[test]
fn pieces_of_several_directories_are_refused() {
    let (disk, config) = (disk(), three());
    drop(open(&disk, &config).unwrap());
    let file = config.data_dir.join(POOL_FILE);
    let other = Config { data_dir: "/other".into(), wal_dir: "/other/wal".into(), ..three() };
    drop(open(&disk, &other).unwrap());
    disk.rename(&other.data_dir.join(POOL_FILE), &file).unwrap();
    let text = refusal(&disk, &config);
    assert!(text.contains("/data/POOL: it is of cluster") && text.contains("were mixed"), "{text}");
}

#[test]
fn a_new_directory_beside_an_old_log_is_refused() {
    let (disk, config) = (disk(), Config { wal_dir: "/log".into(), ..three() });
    disk.create_dir("/log".as_ref()).unwrap();
    disk.create("/log/segment".as_ref()).unwrap();
    let text = refusal(&disk, &config);
    assert!(text.contains("data directory /data is new, but /log (--wal-dir)"), "{text}");
    assert_eq!(disk.list(DATA.as_ref()).unwrap(), ["LOCK"]);
}
