//! `--force-new-cluster`: the others are lost for good, and this node goes on alone ([`hadron_node::force`]).
//!
//! It is refused as long as one of the others answers: then they are not lost, and the node would take their cluster away from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hadron_consensus::GroupId;
use hadron_keyspace::Keyspace;
use hadron_node::{Bootstrap, Forced};
use hadron_storage::wal::{RecoveredGroup, Wal};
use tracing::{info, warn};

use super::data_dir::{Home, own_identity};
use super::error::RunError;
use super::peers::Others;
use crate::config::Config;

/// Writes what makes this node a cluster of its own to the log; false if it is one already, or has no data yet.
///
/// # Errors
/// Another member runs, or the node is none.
pub(super) fn go_on_alone(
    config: &Config,
    home: &Home,
    others: &dyn Others,
    keyspaces: &BTreeMap<GroupId, Arc<Keyspace>>,
    recovered: &BTreeMap<GroupId, RecoveredGroup>,
    wal: &mut Wal,
) -> Result<bool, RunError> {
    if recovered.is_empty() {
        warn!("--force-new-cluster means nothing at a first start: there is nothing to go on with");
        return Ok(false);
    }
    let groups = home.pool.groups(home.node());
    let forced = hadron_node::force(home.node(), &groups, &home.pool.roster(), keyspaces, recovered);
    let Forced { records, lost } =
        forced.map_err(|what| RunError::Unusable(format!("--force-new-cluster: {what}")))?;
    if records.is_empty() {
        info!("--force-new-cluster has nothing to do: this node is alone. Take the flag away");
        return Ok(false);
    }
    let asked = Bootstrap { members: lost.clone(), ..home.pool.clone() };
    let own = own_identity(config, home.node(), &home.pool, Some(home.directory.identity()));
    for reply in others.about(&own, &asked)? {
        if reply.answer.is_ok_and(|answer| answer.from.cluster_id == home.pool.cluster_id) {
            return Err(RunError::OthersRun { name: reply.name, urls: reply.urls });
        }
    }
    wal.append(&records)?;
    wal.seal()?;
    let names: Vec<String> = lost.iter().map(|member| format!("{} ({:x})", member.name, member.id)).collect();
    warn!(
        removed = names.join(", "),
        "--force-new-cluster: this node is a cluster of its own from now on, with the data that it has; what it did not have is \
         lost. Take the flag away, then add new members one by one"
    );
    Ok(true)
}
