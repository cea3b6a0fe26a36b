//! The `--initial-*` flags: what cluster a node's *first* start makes.
//!
//! As in etcd they mean nothing to a node that has a data directory: that one knows its cluster, and a restart must not
//! fail, or change the cluster, because a flag is spelled differently. So they are kept as they were given, and are
//! only read when somebody asks what they say.

use std::collections::BTreeSet;
use std::net::ToSocketAddrs as _;

use super::{ConfigError, DEFAULT_PEER_URL, Discovery, Url, parse_url};

/// etcd's default of `--initial-cluster-token`.
const DEFAULT_TOKEN: &str = "etcd-cluster";

/// The flags as given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Initial {
    /// `--initial-cluster`.
    pub cluster: Option<String>,
    /// `--initial-advertise-peer-urls`; the one part that is checked already.
    pub advertise_peer_url: Option<Url>,
    /// `--initial-cluster-token`.
    pub token: Option<String>,
    /// `--initial-cluster-state=existing`: the list is of a cluster that runs already.
    pub is_existing: bool,
    /// Where to look for the nodes; without [`Initial::cluster`] only.
    pub discovery: Option<Discovery>,
    /// `--force-new-cluster`: the other members are lost, and this node goes on alone with the data that it has.
    pub is_forced: bool,
}

/// A node as `--initial-cluster` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialMember {
    /// Unique within the cluster.
    pub name: String,
    /// Where its peers reach it; unique within the cluster.
    pub peer_url: Url,
}

impl Initial {
    /// Every node of the new cluster, ordered by name: the one named `name` exactly once, with the peer URL that it
    /// advertises, and no name or peer URL twice. Resolves host names where two spellings must mean the same.
    ///
    /// # Errors
    /// The first thing that is wrong, in words that name the flag.
    pub fn members(&self, name: &str) -> Result<Vec<InitialMember>, ConfigError> {
        let advertised = self.advertised()?;
        let Some(members) = self.listed()? else {
            if self.is_existing {
                return Err(ConfigError::ExistingCluster);
            }
            return Ok(vec![InitialMember { name: name.to_owned(), peer_url: advertised }]);
        };
        check_own_entry(&members, name, &advertised)?;
        Ok(members)
    }

    /// Where the others reach this node.
    ///
    /// # Errors
    /// None: the default is a URL.
    pub fn advertised(&self) -> Result<Url, ConfigError> {
        self.advertise_peer_url.clone().map_or_else(default_peer_url, Ok)
    }

    /// The nodes that `--initial-cluster` lists, ordered by name; `None` when the flag was not given.
    ///
    /// # Errors
    /// The first thing that is wrong with the list.
    pub fn listed(&self) -> Result<Option<Vec<InitialMember>>, ConfigError> {
        self.cluster.as_deref().map(parse_members).transpose()
    }

    /// The text that tells this cluster from others made with the same URLs.
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or(DEFAULT_TOKEN)
    }
}

fn default_peer_url() -> Result<Url, ConfigError> {
    parse_url("initial-advertise-peer-urls", DEFAULT_PEER_URL)
}

fn parse_members(text: &str) -> Result<Vec<InitialMember>, ConfigError> {
    let mut members = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').ok_or_else(|| ConfigError::ClusterEntry(part.to_owned()))?;
        let member = InitialMember {
            name: name.trim().to_owned(),
            peer_url: parse_url("initial-cluster", url.trim())?,
        };
        check_unique(&members, &member)?;
        members.push(member);
    }
    members.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(members)
}

fn check_unique(members: &[InitialMember], new: &InitialMember) -> Result<(), ConfigError> {
    if new.name.is_empty() {
        return Err(ConfigError::ClusterEntry(format!("={}", new.peer_url)));
    }
    for member in members {
        if member.name == new.name {
            return Err(ConfigError::NameTwice {
                name: new.name.clone(),
                first: member.peer_url.clone(),
                second: new.peer_url.clone(),
            });
        }
        if member.peer_url == new.peer_url {
            return Err(ConfigError::PeerUrlTwice {
                first: member.name.clone(),
                second: new.name.clone(),
                url: new.peer_url.clone(),
            });
        }
    }
    Ok(())
}

fn check_own_entry(members: &[InitialMember], name: &str, advertised: &Url) -> Result<(), ConfigError> {
    let Some(own) = members.iter().find(|member| member.name == name) else {
        let known: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(ConfigError::NameNotInCluster { name: name.to_owned(), known });
    };
    if own.peer_url != *advertised && !lead_to_one_address(&own.peer_url, advertised) {
        return Err(ConfigError::PeerUrlMismatch {
            name: name.to_owned(),
            listed: own.peer_url.clone(),
            advertised: advertised.clone(),
        });
    }
    Ok(())
}

/// Whether two URLs are spellings of one: their hosts have an address in common.
fn lead_to_one_address(left: &Url, right: &Url) -> bool {
    let addresses = |url: &Url| url.authority().to_socket_addrs().map(Iterator::collect::<BTreeSet<_>>);
    match (addresses(left), addresses(right)) {
        (Ok(left), Ok(right)) => !left.is_disjoint(&right),
        _ => false,
    }
}
