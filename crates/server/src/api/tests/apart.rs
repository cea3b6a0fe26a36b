//! What takes long holds nothing else up, and goes on alone.

use std::pin::pin;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::poll;
use hadron_consensus::{DEFAULT_GROUP, GroupId};
use hadron_keyspace::Command;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest};
use hadron_proto::hadron::BalanceSimulateRequest;
use hadron_proto::hadron::pool_client::PoolClient;
use tokio::task::yield_now;
use tonic::Code;

use super::harness::{Harness, runtime};
use crate::api::backend::Backend as _;
use crate::api::snapshot;
use crate::api::{ServerOptions, Traffic};

/// As long as nobody waits for something that comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two calls that take minutes had both threads of their worker, and whoever came there later waited for that.
#[test]
fn long_calculations_hold_up_no_listing() {
    let options = ServerOptions { threads: 1, ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    let view = harness.backend.hold_view();
    harness.run(async |channel| {
        let simulation = async || {
            PoolClient::new(channel.clone()).balance_simulate(BalanceSimulateRequest::default()).await
        };
        let all = RangeRequest { key: "a".into(), range_end: "z".into(), ..RangeRequest::default() };
        let mut kv = KvClient::new(channel.clone());
        tokio::select! {
            biased;
            _ = simulation() => panic!("it cannot see the pool"),
            _ = simulation() => panic!("it cannot see the pool"),
            listed = tokio::time::timeout(PATIENCE, kv.range(all)) => listed.unwrap().unwrap(),
        };
    });
    drop(view);
}

/// Two backups at once found the same room on the disk.
#[test]
fn a_backup_looks_for_room_when_that_of_another_keyspace_is_built() {
    let parent = tempfile::tempdir().unwrap();
    let snapshot_dir = parent.path().join("backups");
    let options = ServerOptions { snapshot_dir: snapshot_dir.clone(), ..ServerOptions::default() };
    let harness = Harness::start_with(options, Traffic::Everything);
    let other = harness.context.for_keyspace("other", GroupId(2));
    runtime().block_on(async {
        let (end, ended) = mpsc::channel::<()>();
        let mut of_other = pin!(other.backups.run(move |_| ended.recv().is_err()));
        assert!(poll!(of_other.as_mut()).is_pending());
        yield_now().await;
        let mut backup = pin!(harness.context.snapshot());
        assert!(poll!(backup.as_mut()).is_pending());
        // A thread that it had begun before would have failed by now.
        harness.context.calculations.run(|_| ()).await.unwrap();
        std::fs::create_dir(&snapshot_dir).unwrap();
        drop(end);
        assert!(of_other.await.unwrap());
        assert!(backup.await.is_ok());
    });
}

/// Backups that were given up were built to their end, and others beside them.
#[test]
fn a_backup_that_is_given_up_counts_until_its_building_has_ended() {
    let harness = Harness::start();
    let free = || harness.context.snapshots.available_permits();
    let clock = harness.backend.hold_clock();
    runtime().block_on(async {
        for _ in 0..2 {
            {
                let backup = pin!(harness.context.snapshot());
                assert!(poll!(backup).is_pending());
                yield_now().await;
            }
            yield_now().await;
            // The second one waits for its turn: nothing is left of it.
            assert_eq!(free(), snapshot::AT_ONCE - 1);
        }
        drop(clock);
        let all = harness.context.snapshots.acquire_many(snapshot::AT_ONCE as u32).await;
        assert!(all.is_ok());
    });
}

/// A node that had just started saved what its last process had flushed, or nothing, and called it a backup.
#[test]
fn a_backup_is_of_a_replica_that_has_caught_up_once() {
    let harness = Harness::start();
    let save = || runtime().block_on(harness.context.snapshot()).map(drop).map_err(|status| status.code());
    let write = || {
        runtime()
            .block_on(
                harness.context.propose(Command::Put(PutRequest { key: "k".into(), ..Default::default() })),
            )
            .map(drop)
    };
    harness.backend.set_cannot_read(true);
    harness.backend.replace(DEFAULT_GROUP);
    assert_eq!(save(), Err(Code::Unavailable));
    harness.backend.set_cannot_read(false);
    assert_eq!(save(), Ok(()));
    harness.backend.set_cannot_read(true);
    assert_eq!(save(), Ok(()), "what is left of a cluster that lost its quorum can be saved");
    harness.backend.replace(DEFAULT_GROUP);
    assert_eq!(save(), Err(Code::Unavailable), "another replica came in its place");
    write().unwrap();
    assert_eq!(save(), Ok(()), "what was written was applied after all that was committed");
}

/// What is left of a cluster could not be saved at a node whose clients had only watched.
#[test]
fn a_replica_of_which_nobody_asks_anything_catches_up_too() {
    let harness = Harness::start();
    let keyspace = harness.backend.keyspace(DEFAULT_GROUP).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !keyspace.was_current() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}
