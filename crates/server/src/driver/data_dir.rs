//! Whose data directory it is, and which pool its node belongs to.
//!
//! [`hadron_storage::data_dir`] guards the directory and its identity; here a start is told apart from a first start:
//! - A *first start* finds nothing. The flags say what the cluster is, and the other members are asked whether this node
//!   was here before with another data directory: then it lost its disk, and must not come back. With
//!   `--initial-cluster-state=existing` the others say what the cluster is ([`super::join`]).
//! - Every other start finds the pool as it was bootstrapped ([`super::pool_file`]). As in etcd that one counts, whatever
//!   the `--initial-*` flags say and however they spell it. `--name` may be another one than before, and is the member's name from
//!   then on, unless it is that of another member.
//! - A directory that has some of its pieces but not all is refused, and nothing is made in the place of what is missing.
//!
//! A node that never got as far as writing to its log never voted: it may start again, with the identity that it made
//! first, and asks again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use hadron_consensus::NodeId;
use hadron_node::{Bootstrap, Member, node_id};
use hadron_storage::data_dir::{Claim, DataDir, DataDirError, Identity, LockedDir};
use hadron_storage::disk::Disk;
use tracing::warn;

use super::error::RunError;
use super::join::running_pool;
use super::peers::{Others, Reply};
use super::pool_file::{self, POOL_FILE};
use super::whole::Places;
use crate::config::{Config, Discovery, InitialMember};
use crate::transport;

/// The node's place on disk, and who it is. Nobody else can open it before it is dropped.
pub(super) struct Home {
    /// The directory, locked.
    pub(super) directory: DataDir,
    /// The pool as it was bootstrapped, with the data directories that this node has met.
    pub(super) pool: Bootstrap,
}

/// Who made the directory may want it so.
fn warn_of_readers(directory: &Path) {
    let mode = std::fs::metadata(directory).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o077 != 0 {
        let mode = format!("{:o}", mode & 0o777);
        warn!(
            directory = %directory.display(), mode,
            "the data directory may be read by others, and with it all values and what tokens are made of: its mode should be 700"
        );
    }
}

impl Home {
    /// Opens the directory, or makes it, if it is the configured node's; counts this start.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        config: &Config,
        others: &dyn Others,
    ) -> Result<(Home, Places), RunError> {
        let locked = LockedDir::open(disk, &config.data_dir)?;
        warn_of_readers(&config.data_dir);
        let (data_dir, wal_dir) = (config.data_dir.clone(), config.wal_dir.clone());
        let places = Places::look(disk, data_dir, wal_dir, locked.engine_path())?;
        let stored = pool_file::read(&**disk, &config.data_dir)?;
        let is_stored = stored.is_some();
        if let Some(pool) = stored.as_ref().filter(|pool| !pool.outdated.is_empty()) {
            let (data_dir, reason) = (config.data_dir.clone(), pool.outdated.clone());
            return Err(RunError::Outdated { data_dir, reason });
        }
        let (mut pool, node) = match (locked.found(), stored) {
            (Some(identity), Some(pool)) => {
                check_one_origin(config, identity, &pool)?;
                heed_name(config, identity, &pool)?;
                heed_flags(config, identity, &pool, others)?;
                (pool, identity.node)
            }
            (found, _) => {
                places.check_unused(found.is_some())?;
                if config.initial.is_existing { running_pool(config, others)? } else { initial_pool(config)? }
            }
        };
        if !places.marked() {
            check_never_bootstrapped(config, node, &pool, locked.found(), others)?;
        }
        let claim = Claim {
            cluster: pool.cluster_id,
            node,
            node_name: config.name.clone(),
            new_directory: rand::random::<u64>().max(1),
            new_start: rand::random(),
        };
        let directory = locked.claim(disk, &claim)?;
        if !is_stored {
            let own = pool.members.iter_mut().filter(|member| member.node() == node);
            own.for_each(|member| member.data_dir_id = directory.identity().directory);
            pool_file::write(&**disk, &config.data_dir, &pool)?;
        }
        Ok((Home { directory, pool }, places))
    }

    /// The node's id.
    pub(super) fn node(&self) -> NodeId {
        self.directory.identity().node
    }

    /// The directory's random identity.
    pub(super) fn data_dir_id(&self) -> u64 {
        self.directory.identity().directory
    }

    /// This start.
    pub(super) fn incarnation(&self) -> u64 {
        self.directory.identity().incarnation
    }
}

/// The pool that the flags of a first start describe, and this node's id in it.
fn initial_pool(config: &Config) -> Result<(Bootstrap, NodeId), RunError> {
    let pool = derive(config.initial.token(), &config.initial.members(&config.name)?, 0);
    let node = node_named(&pool, config);
    Ok((pool, node))
}

/// The pool of these members, which begins with what `restored` is a hash of.
pub(super) fn derive(token: &str, members: &[InitialMember], restored: u64) -> Bootstrap {
    let nodes: Vec<(String, Vec<String>)> =
        members.iter().map(|member| (member.name.clone(), vec![member.peer_url.to_string()])).collect();
    Bootstrap::derive_restored(token, &nodes, restored)
}

/// The node in `pool` with the configured name; if there is none, one that is not in it.
fn node_named(pool: &Bootstrap, config: &Config) -> NodeId {
    let named = pool.members.iter().find(|member| member.name == config.name);
    named.map_or_else(|| node_id(config.initial.token(), &[]), Member::node)
}

/// Refuses a pool and an identity that were not written for each other.
fn check_one_origin(config: &Config, identity: &Identity, pool: &Bootstrap) -> Result<(), RunError> {
    let own = pool.members.iter().find(|member| member.node() == identity.node);
    let fits = pool.cluster_id == identity.cluster
        && own.is_some_and(|own| [0, identity.directory].contains(&own.data_dir_id));
    if fits {
        return Ok(());
    }
    Err(RunError::BadPool {
        file: config.data_dir.join(POOL_FILE),
        what: format!(
            "it is of cluster {:x}, and not of the data directory in which it is, whose IDENTITY is node {:x}'s ({}) of \
             cluster {:x}: files of several data directories were mixed. Put its own file back",
            pool.cluster_id, identity.node.0, identity.node_name, identity.cluster
        ),
    })
}

/// Takes another name, as etcd does, and says so; refuses one that is the name of another member.
fn heed_name(config: &Config, identity: &Identity, pool: &Bootstrap) -> Result<(), RunError> {
    if identity.node_name == config.name {
        return Ok(());
    }
    if is_name_of_another(config, identity, pool) {
        return Err(RunError::DataDir(DataDirError::OtherNode {
            directory: config.data_dir.clone(),
            found: identity.node,
            found_name: identity.node_name.clone(),
            expected: node_named(pool, config),
            expected_name: config.name.clone(),
        }));
    }
    warn!(
        data_dir = %config.data_dir.display(), former = identity.node_name, name = config.name,
        "the member in the data directory gets another name, which --name says: if this is not its data directory, stop the node"
    );
    Ok(())
}

/// Whether the flags call another member so than the one in the data directory: it is on the wrong host, or `--data-dir` is wrong.
/// A member is its peer URLs; where those do not tell, names must.
fn is_name_of_another(config: &Config, identity: &Identity, pool: &Bootstrap) -> bool {
    let (own, others): (Vec<&Member>, Vec<&Member>) =
        pool.members.iter().partition(|member| member.node() == identity.node);
    // A list that cannot be read says nothing, as at every start but the first.
    let listed = config.initial.listed().ok().flatten().unwrap_or_default();
    let entry = listed.iter().find(|member| member.name == config.name);
    let urls: Vec<String> = entry
        .map(|member| &member.peer_url)
        .into_iter()
        .chain(&config.initial.advertise_peer_url)
        .map(ToString::to_string)
        .collect();
    let has_one = |member: &&Member| urls.iter().any(|url| member.peer_urls.contains(url));
    if others.iter().any(has_one) {
        return true;
    }
    if own.iter().any(has_one) {
        return false;
    }
    let is_taken = others.iter().any(|member| member.name == config.name);
    is_taken || listed.iter().any(|member| member.name == identity.node_name)
}

/// The flags describe a cluster that is not the stored one: says so, and goes on with the stored one. Refuses to if that
/// other cluster is running, since then this is not the data directory that was meant.
fn heed_flags(
    config: &Config,
    identity: &Identity,
    stored: &Bootstrap,
    others: &dyn Others,
) -> Result<(), RunError> {
    // Who joined was never told by flags.
    if stored.joined_as != 0 {
        return Ok(());
    }
    let ignored = ignored_flags(config, identity.node, stored);
    if ignored.is_empty() {
        return Ok(());
    }
    if let Ok(Some(listed)) = config.initial.listed() {
        let described = derive(config.initial.token(), &listed, stored.restored);
        if described.cluster_id != stored.cluster_id {
            let own = own_identity(config, identity.node, stored, Some(identity));
            check_not_running(config, &described, stored, &others.about(&own, &described)?)?;
        }
    }
    let members: Vec<String> = stored
        .members
        .iter()
        .map(|member| format!("{}={}", member.name, member.peer_urls.join(",")))
        .collect();
    warn!(
        data_dir = %config.data_dir.display(),
        cluster = %format_args!("{:x}", stored.cluster_id),
        members = members.join(","),
        ignored = ignored.join(","),
        "these flags are not what the cluster in the data directory was made with: they count at a first start only, \
         and are ignored"
    );
    Ok(())
}

/// The flags that say something else than what is stored.
fn ignored_flags(config: &Config, node: NodeId, stored: &Bootstrap) -> Vec<&'static str> {
    let mut ignored = Vec::new();
    let initial = &config.initial;
    let named = |members: &[Member]| {
        let mut named: Vec<(String, Vec<String>)> =
            members.iter().map(|member| (member.name.clone(), member.peer_urls.clone())).collect();
        named.sort();
        named
    };
    // Any token makes the same members.
    let listed = initial.listed().map(|listed| listed.map(|listed| named(&derive("", &listed, 0).members)));
    if !matches!(listed, Ok(None)) && listed != Ok(Some(named(&stored.members))) {
        ignored.push("--initial-cluster");
    }
    let own = stored.members.iter().find(|member| member.node() == node);
    let advertises = |url: &crate::config::Url| own.is_some_and(|own| own.peer_urls == [url.to_string()]);
    // DNS may have spelled it in another way, which is the one that counts.
    let is_found_in_dns = matches!(initial.discovery, Some(Discovery::Srv { .. }));
    if !is_found_in_dns && initial.advertise_peer_url.as_ref().is_some_and(|url| !advertises(url)) {
        ignored.push("--initial-advertise-peer-urls");
    }
    let made_with = |token: &String| {
        let made = Bootstrap::derive_restored(token, &named(&stored.members), stored.restored);
        made.cluster_id == stored.cluster_id
    };
    if initial.token.as_ref().is_some_and(|token| !made_with(token)) {
        ignored.push("--initial-cluster-token");
    }
    ignored
}

fn check_not_running(
    config: &Config,
    described: &Bootstrap,
    stored: &Bootstrap,
    replies: &[Reply],
) -> Result<(), RunError> {
    let runs = |reply: &&Reply| {
        reply.answer.as_ref().is_ok_and(|answer| answer.from.cluster_id == described.cluster_id)
    };
    let Some(reply) = replies.iter().find(runs) else { return Ok(()) };
    Err(RunError::OtherCluster {
        data_dir: config.data_dir.clone(),
        found: stored.cluster_id,
        running: described.cluster_id,
        peer: reply.name.clone(),
        urls: reply.urls.clone(),
    })
}

/// Refuses to start a node that the others know with another data directory. Those that do not answer are tolerated.
fn check_never_bootstrapped(
    config: &Config,
    node: NodeId,
    pool: &Bootstrap,
    found: Option<&Identity>,
    others: &dyn Others,
) -> Result<(), RunError> {
    if pool.members.len() == 1 {
        return Ok(());
    }
    let own = found.map(|identity| identity.directory);
    for reply in others.about(&own_identity(config, node, pool, found), pool)? {
        let Reply { name, urls, answer } = reply;
        match answer {
            Ok(answer) if answer.known.is_some() && answer.known != own => {
                let (node, data_dir) = (node.0, config.data_dir.clone());
                let own_name = config.name.clone();
                return Err(RunError::AlreadyBootstrapped {
                    node,
                    name: own_name,
                    peer: name,
                    urls,
                    data_dir,
                });
            }
            Ok(answer) if answer.from.cluster_id != pool.cluster_id => warn!(
                peer = name, %urls,
                "belongs to cluster {:x}, this node to cluster {:x}: check --initial-cluster and --initial-cluster-token \
                 of both", answer.from.cluster_id, pool.cluster_id
            ),
            Ok(_) => {}
            Err(error) => warn!(
                peer = name, %urls, %error,
                "could not be asked whether this node was a member before; starting without its answer"
            ),
        }
    }
    Ok(())
}

/// What this node says about itself while it asks.
pub(super) fn own_identity(
    config: &Config,
    node: NodeId,
    pool: &Bootstrap,
    found: Option<&Identity>,
) -> transport::Identity {
    transport::Identity {
        cluster_id: pool.cluster_id,
        node,
        incarnation: found.map_or(0, |identity| identity.incarnation),
        data_dir_id: found.map_or(0, |identity| identity.directory),
        name: config.name.clone(),
    }
}

#[cfg(test)]
mod tests;
