//! The flags of `gateway` and `grpc-proxy` about nodes that are found in DNS.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::discovery::srv::{self, Node};
use crate::tls::ClientTls;
use crate::tls::client::ClientFiles;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The flags.
#[derive(Debug, clap::Args)]
pub(super) struct Discovery {
    /// DNS domain whose SRV records name the nodes; if they name none, --endpoints counts
    #[arg(long, default_value = "", hide_default_value = true, value_name = "DOMAIN")]
    discovery_srv: String,
    /// Suffix of the SRV records' service, if the domain has several clusters
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    discovery_srv_name: String,
    /// Use nodes that do not speak TLS, or do not answer, too
    #[arg(long)]
    insecure_discovery: bool,
}

impl Discovery {
    /// The nodes that DNS names, in the order in which they are to be used: without `--insecure-discovery` those that accept a connection for TLS, and with
    /// `trusted` those whose certificate was made by one of these authorities for the domain. None if no domain is given.
    ///
    /// # Errors
    /// There are no records. In words.
    pub(super) async fn nodes(&self, trusted: Option<&Path>) -> Result<Vec<Node>, String> {
        let domain = self.discovery_srv.trim_end_matches('.');
        if domain.is_empty() {
            return Ok(Vec::new());
        }
        let found = srv::clients(&self.discovery_srv, &self.discovery_srv_name).await?;
        info!(srv_server = domain, endpoints = urls(&found), "discovered cluster from SRV");
        if self.insecure_discovery {
            return Ok(found);
        }
        let tls = trusted.map(|trusted| tls(domain, trusted)).transpose()?;
        let mut secure = Vec::new();
        for node in found {
            match check(&node, tls.as_ref()).await {
                Ok(()) => secure.push(node),
                Err(why) => warn!(endpoint = node.url(), why, "failed to validate a discovered endpoint"),
            }
        }
        info!(srv_server = domain, endpoints = urls(&secure), "using validated discovered SRV endpoints");
        Ok(secure)
    }
}

fn urls(nodes: &[Node]) -> String {
    nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
}

fn tls(domain: &str, trusted: &Path) -> Result<ClientTls, String> {
    let (trusted, server_name) = (Some(trusted.to_owned()), Some(domain.to_owned()));
    let files = ClientFiles { trusted, server_name, ..ClientFiles::default() };
    ClientTls::new(files).map_err(|error| error.to_string())
}

/// Whether a node can be talked to in secret.
async fn check(node: &Node, tls: Option<&ClientTls>) -> Result<(), String> {
    if !node.is_tls {
        return Err("it is insecure".to_owned());
    }
    let address = (node.place.host.as_str(), node.place.port);
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connected.map_err(|elapsed| elapsed.to_string())?.map_err(|error| error.to_string())?;
    match tls {
        Some(tls) => tls.connect(&node.place.host, stream).await.map(drop).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}
