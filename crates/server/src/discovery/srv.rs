//! SRV records: `_etcd-server._tcp.DOMAIN` names nodes to each other, `_etcd-client._tcp.DOMAIN` names them to clients; with
//! `-ssl` after the first word where TLS is spoken, and `-NAME` after that if several clusters share a domain.
//!
//! Invariant: all nodes of a new cluster that see the same records come to the same members. So a host that cannot be
//! resolved is an error here, where etcd goes on with the rest of the nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use tokio::net::lookup_host;
use tracing::info;

use crate::config::{InitialMember, Url};
use crate::dns::{self, NotFound, Place};

/// A node as a record names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Whether it speaks TLS.
    pub(crate) is_tls: bool,
    /// Where it is.
    pub(crate) place: Place,
}

impl Node {
    /// `scheme://host:port`.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.place.host, self.place.port)
    }

    async fn addresses(&self) -> Result<BTreeSet<SocketAddr>, String> {
        addresses(&self.place.host, self.place.port).await
    }
}

/// The service that etcd's records are of: `etcd-server` or `etcd-client`, for TLS or not, of one of several clusters or the only one.
fn service(what: &str, is_tls: bool, name: &str) -> String {
    let ssl = if is_tls { "-ssl" } else { "" };
    let suffix = if name.is_empty() { String::new() } else { format!("-{name}") };
    format!("{what}{ssl}{suffix}")
}

/// The nodes that the records for both kinds of transport name, those with TLS first.
async fn nodes(what: &str, domain: &str, name: &str) -> Result<Vec<Node>, [NotFound; 2]> {
    let services = [true, false].map(|is_tls| service(what, is_tls, name));
    let found = futures::join!(dns::places(&services[0], domain), dns::places(&services[1], domain));
    if let (Err(with_tls), Err(without)) = found {
        return Err([with_tls, without]);
    }
    let node = |is_tls| move |place| Node { is_tls, place };
    let with_tls = found.0.unwrap_or_default().into_iter().map(node(true));
    Ok(with_tls.chain(found.1.unwrap_or_default().into_iter().map(node(false))).collect())
}

/// The nodes that clients are told of: by priority, and within that as their weights want it, which is not the same each time.
///
/// # Errors
/// No records were found. In words.
pub(crate) async fn clients(domain: &str, name: &str) -> Result<Vec<Node>, String> {
    let mut nodes = nodes("etcd-client", domain, name)
        .await
        .map_err(|[with_tls, without]| format!("dns lookup errors: {with_tls} and {without}"))?;
    nodes.sort_by_cached_key(|node| (node.place.priority, dns::draw(node.place.weight)));
    Ok(nodes)
}

/// The members of a new cluster. The records do not say what nodes are called, and nobody but a node itself has to know: this one is `own`, the
/// others have numbers.
///
/// # Errors
/// No records were found, they do not make a cluster, or this node is not in it. In words.
pub(crate) async fn members(
    domain: &str,
    service_name: &str,
    own: &InitialMember,
) -> Result<Vec<InitialMember>, String> {
    let nodes = nodes("etcd-server", domain, service_name).await.map_err(|[with_tls, without]| {
        format!("error querying DNS SRV records for _etcd-server: {with_tls}; {without}")
    })?;
    let mut found = Vec::new();
    for node in nodes {
        info!(node = node.url(), "got bootstrap from DNS for etcd-server");
        let addresses = node.addresses().await?;
        found.push((node, addresses));
    }
    let own_addresses = addresses(own.peer_url.host(), own.peer_url.port()).await?;
    list(found, own, &own_addresses)
}

/// The members that these nodes are. One that both kinds of records name is of the kind that this node is of.
fn list(
    found: Vec<(Node, BTreeSet<SocketAddr>)>,
    own: &InitialMember,
    own_addresses: &BTreeSet<SocketAddr>,
) -> Result<Vec<InitialMember>, String> {
    let is_tls = own.peer_url.is_tls();
    let is_twice = |(node, addresses): &&(Node, BTreeSet<SocketAddr>)| {
        let same = |(other, others): &(Node, _)| other.is_tls == is_tls && !addresses.is_disjoint(others);
        node.is_tls != is_tls && found.iter().any(same)
    };
    let is_own = |(_, addresses): &&(Node, BTreeSet<SocketAddr>)| !addresses.is_disjoint(own_addresses);
    let mut numbers = (0..).map(|number: usize| number.to_string()).filter(|name| *name != own.name);
    let mut members = Vec::new();
    for found in found.iter().filter(|node| !is_twice(node)) {
        let name = match is_own(&found) {
            true if found.0.is_tls != is_tls => return Err(no_own(own, Some(&found.0))),
            true => own.name.clone(),
            false => numbers.next().unwrap_or_default(),
        };
        // Also of this node, since it is what the others see.
        let url = found.0.url();
        let peer_url: Url = url.parse().map_err(|error| format!("the SRV records name {url}: {error}"))?;
        members.push(InitialMember { name, peer_url });
    }
    match members.iter().any(|member| member.name == own.name) {
        true => Ok(members),
        false => Err(no_own(own, None)),
    }
}

fn no_own(own: &InitialMember, of_other_kind: Option<&Node>) -> String {
    let InitialMember { name, peer_url } = own;
    match of_other_kind {
        Some(node) => format!(
            "the SRV records name this node as {}, but --initial-advertise-peer-urls is {peer_url}: the schemes differ",
            node.url()
        ),
        None => format!(
            "cannot find local etcd member {name:?} in SRV records: none leads to {peer_url} (--initial-advertise-peer-urls)"
        ),
    }
}

async fn addresses(host: &str, port: u16) -> Result<BTreeSet<SocketAddr>, String> {
    match lookup_host((host, port)).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(format!("the SRV records need {host} to be resolved: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn node(is_tls: bool, host: &str, address: &str) -> (Node, BTreeSet<SocketAddr>) {
        let place = Place { priority: 0, host: host.to_owned(), port: 2380, weight: 0 };
        (Node { is_tls, place }, BTreeSet::from([address.parse().unwrap()]))
    }

    fn listed(found: Vec<(Node, BTreeSet<SocketAddr>)>, own_url: &str) -> Result<Vec<String>, String> {
        let own = InitialMember { name: "0".to_owned(), peer_url: own_url.parse().unwrap() };
        let members = list(found, &own, &BTreeSet::from(["10.0.0.1:2380".parse().unwrap()]))?;
        Ok(members.into_iter().map(|member| format!("{}={}", member.name, member.peer_url)).collect())
    }

    #[test]
    fn services_are_named_as_etcd_names_them() {
        assert_eq!(service("etcd-server", true, ""), "etcd-server-ssl");
        assert_eq!(service("etcd-client", false, "foo"), "etcd-client-foo");
        assert_eq!(service("etcd-client", true, "foo"), "etcd-client-ssl-foo");
    }

    #[test]
    fn this_node_has_its_name_and_the_others_numbers() {
        let found = vec![node(false, "a", "10.0.0.1:2380"), node(false, "b", "10.0.0.2:2380")];
        assert_eq!(listed(found, "http://1.example:2380").unwrap(), ["0=http://a:2380", "1=http://b:2380"]);
    }

    #[test]
    fn a_node_that_is_named_twice_counts_once() {
        let both = |host, address| [node(true, host, address), node(false, host, address)];
        let found = [both("a", "10.0.0.1:2380"), both("b", "10.0.0.2:2380")].concat();
        assert_eq!(listed(found.clone(), "http://a:2380").unwrap(), ["0=http://a:2380", "1=http://b:2380"]);
        assert_eq!(listed(found, "https://a:2380").unwrap(), ["0=https://a:2380", "1=https://b:2380"]);
    }

    #[test]
    fn a_node_that_is_not_in_the_records_is_told_so() {
        let error = listed(vec![node(false, "b", "10.0.0.2:2380")], "http://a:2380").unwrap_err();
        assert!(error.starts_with("cannot find local etcd member \"0\" in SRV records"), "{error}");
        let error = listed(vec![node(true, "a", "10.0.0.1:2380")], "http://a:2380").unwrap_err();
        assert!(error.contains("as https://a:2380") && error.contains("the schemes differ"), "{error}");
    }
}
