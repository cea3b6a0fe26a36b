//! `--force-new-cluster`: the others are lost for good, and this node goes on alone ([`hadron_node::force`]).
//!
//! It is refused as long as one of the others answers: then they are not lost, and the node would take their cluster away from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hadron_consensus::GroupId;
use hadron_keyspace::{Keyspace, Options as KeyspaceOptions};
use hadron_node::{Bootstrap, Forced, OpenJob};
use hadron_storage::disk::Disk;
use hadron_storage::engine::Engine;
use hadron_storage::wal::{RecoveredGroup, Wal};
use tracing::{info, warn};

use super::data_dir::{Home, own_identity};
use super::error::RunError;
use super::peers::Others;
use super::pool_file;
use crate::config::Config;

/// What was opened: the engine, how keyspaces are opened in it, and those that exist from the start.
pub(super) struct Opened<'a> {
    pub(super) engine: &'a Arc<dyn Engine>,
    pub(super) options: &'a KeyspaceOptions,
    pub(super) keyspaces: &'a BTreeMap<GroupId, Arc<Keyspace>>,
}

/// Whether this start is to make the node a cluster of its own. A flag counts once: left where it is, it would take members away that were added
/// since, at a start at which they do not answer yet.
pub(super) fn is_wanted(config: &Config, home: &Home) -> bool {
    let is_left = config.initial.is_forced && home.pool.was_forced;
    if is_left {
        warn!(
            "--force-new-cluster was heeded at an earlier start and is ignored: take it away. To go on alone once more, start the node \
             without it first"
        );
    }
    config.initial.is_forced && !is_left
}

/// Remembers whether the flag was there, once it was heeded.
pub(super) fn note(disk: &dyn Disk, config: &Config, home: &mut Home) -> Result<(), RunError> {
    if home.pool.was_forced != config.initial.is_forced {
        home.pool.was_forced = config.initial.is_forced;
        pool_file::write(disk, &config.data_dir, &home.pool)?;
    }
    Ok(())
}

/// Writes what makes this node a cluster of its own to the log; false if it is one already, or has no data yet.
///
/// # Errors
/// Another member runs, the node is none, or what the root group says cannot be read.
pub(super) fn go_on_alone(
    config: &Config,
    home: &Home,
    others: &dyn Others,
    opened: &Opened<'_>,
    recovered: &BTreeMap<GroupId, RecoveredGroup>,
    wal: &mut Wal,
) -> Result<(), RunError> {
    if recovered.is_empty() {
        warn!("--force-new-cluster means nothing at a first start: there is nothing to go on with");
        return Ok(());
    }
    let forced = opened.forced(home, recovered);
    let Forced { records, lost, lost_keyspaces, unusable_keyspaces } =
        forced.map_err(|what| RunError::Unusable(format!("--force-new-cluster: {what}")))?;
    if records.is_empty() {
        info!("--force-new-cluster has nothing to do: this node is alone. Take the flag away");
        return Ok(());
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
    if !lost_keyspaces.is_empty() {
        warn!(
            keyspaces = lost_keyspaces.join(", "),
            "--force-new-cluster: these keyspaces had no replica here and are lost with the other members; nobody can use \
             them. Delete them, then make them anew from a backup"
        );
    }
    for (keyspace, why) in unusable_keyspaces {
        warn!(
            keyspace,
            why,
            "--force-new-cluster: this keyspace's replica here cannot be used, and does not go on. Delete the keyspace, then \
             make it anew from a backup"
        );
    }
    Ok(())
}

impl Opened<'_> {
    /// What must go into the log.
    fn forced(&self, home: &Home, recovered: &BTreeMap<GroupId, RecoveredGroup>) -> Result<Forced, String> {
        let groups = home.pool.groups(home.node());
        // Whichever replica lives here; none is made. They are opened one after the other, and not kept.
        let open = |job: OpenJob| job.carry_out(self.engine, self.options.clone());
        hadron_node::force(home.node(), &groups, &home.pool.roster(), self.keyspaces, recovered, &open)
    }
}
