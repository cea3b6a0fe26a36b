//! A disk that fills up under a node, with a file system of that size: what the kernel does then is what a user's does.

use std::ops::Range;

use crate::support::judge::{history_of_all, judge};
use crate::support::load::Load;
use crate::support::small_disk::SmallDisk;
use crate::support::{Cluster, eventually};

/// Room for one segment of the log, or for two or three, and for some tables of the engine. What does not fit first depends on it.
const SMALL_MIB: Range<u64> = 110..280;
const VALUE_BYTES: usize = 64 << 10;

/// The node stops, says why, and has lost nothing once there is room. The others go on.
#[tokio::test]
async fn a_node_whose_file_system_is_full_loses_nothing() {
    let small_mib = std::env::var("FULL_DISK_MIB").map(|text| text.parse().unwrap());
    let small_mib = small_mib.unwrap_or_else(|_| rand::random_range(SMALL_MIB));
    println!("FULL_DISK_MIB={small_mib}");
    let mut cluster = Cluster::prepared(3).await;
    let Some(disk) = SmallDisk::give(&mut cluster.nodes[0], small_mib << 20) else { return };
    cluster.bring_up().await;
    let load = Load::start(&cluster.endpoints(), 8);
    load.fill_values_to(VALUE_BYTES);
    let status = cluster.nodes[0].wait_for_exit().await;
    assert!(!status.success(), "it stopped as if all were well");
    let log = cluster.nodes[0].log();
    assert!(log.contains("No space left on device"), "{log}");
    assert!(log.contains("start this node again"), "{log}");
    let full_at = load.now();
    load.fill_values_to(0);
    eventually("the others go on", async || load.writes_begun_since(full_at) > 50).await;

    disk.relieve();
    cluster.nodes[0].start();
    let mended_at = load.now();
    eventually("it serves again", async || load.all_served_since(mended_at)).await;
    let operations = load.stop().await;
    cluster.wait_until_equal().await;
    let nodes: Vec<_> = cluster.nodes.iter().collect();
    judge(&operations, &history_of_all(&nodes).await);
}
