//! A first start whose flags do not say who the nodes are, but where that is written down ([`crate::discovery`]).
//!
//! What is found there takes the place of `--initial-cluster`, and the rest of the start does not know the difference. Later starts know their
//! cluster, and ask nobody.

use hadron_consensus::NodeId;
use hadron_storage::disk::RealDisk;
use tracing::{info, warn};

use super::data_dir::derive;
use super::error::RunError;
use super::pool_file;
use crate::client::{Client, Identity, Security};
use crate::config::{self, Config, ConfigError, Discovery, Initial, InitialMember};
use crate::discovery::{registry, srv};
use crate::tls::client::ClientFiles;

/// The configuration with the members that were found, if they have to be looked for. May wait for other nodes, for as long as it takes.
///
/// # Errors
/// No cluster was found, or none that this node is in.
pub(super) async fn members(config: Config) -> Result<Config, RunError> {
    let Some(discovery) = &config.initial.discovery else { return Ok(config) };
    if pool_file::read(&RealDisk, &config.data_dir)?.is_some() {
        if matches!(discovery, Discovery::Registry(_)) {
            warn!("discovery token is ignored since cluster already initialized; valid logs are found");
        }
        return Ok(config);
    }
    let own = InitialMember { name: config.name.clone(), peer_url: config.initial.advertised()? };
    let (cluster, token) = match discovery {
        Discovery::Registry(_) if config.initial.is_existing => {
            return Err(RunError::Flags(ConfigError::DiscoveryOfExisting));
        }
        Discovery::Registry(there) => (registered(there, &own).await?, Some(there.token.clone())),
        Discovery::Srv { domain, name } => {
            let found = srv::members(domain, name, &own).await;
            let found = found.map_err(|why| RunError::Srv { domain: domain.clone(), why })?;
            (listed(&found), config.initial.token.clone())
        }
    };
    let initial = Initial { cluster: Some(cluster), token, ..config.initial.clone() };
    if let Err(error) = initial.members(&config.name) {
        return Err(RunError::Found { found: initial.cluster.unwrap_or_default(), error });
    }
    Ok(Config { initial, ..config })
}

/// As `--initial-cluster` has them.
fn listed(members: &[InitialMember]) -> String {
    let texts = members.iter().map(|member| format!("{}={}", member.name, member.peer_url));
    texts.collect::<Vec<_>>().join(",")
}

async fn registered(there: &config::Registry, own: &InitialMember) -> Result<String, RunError> {
    info!(
        token = there.token,
        endpoints = there.endpoints.join(","),
        "bootstrapping cluster using v3 discovery"
    );
    // The id that the node will have: it follows from its peer URL and the token alone.
    let alone = derive(&there.token, std::slice::from_ref(own), 0);
    let id = alone.members.first().map_or(NodeId(0), |member| member.node());
    let registry = registry::Registry::new(client(there), &there.token);
    let cluster = registry.join(id.0, &listed(std::slice::from_ref(own))).await?;
    info!(cluster, "discovery joined cluster successfully");
    Ok(cluster)
}

fn client(there: &config::Registry) -> Client {
    let files = ClientFiles {
        own: there.certificate.clone(),
        trusted: there.trusted.clone(),
        skip_verify: there.skip_verify,
        server_name: there.server_name.clone(),
        ..ClientFiles::default()
    };
    let user = there.user.clone();
    Client {
        endpoints: there.endpoints.clone().into(),
        security: Security::new(files, there.insecure_transport),
        identity: user.map_or(Identity::Nobody, |(name, password)| Identity::User { name, password }),
        keyspace: None,
        dial_timeout: there.dial_timeout,
        command_timeout: there.request_timeout,
        keepalive: there.keepalive,
    }
}
