//! The flags of `ctl` about endpoints that are found in DNS.

use super::failure::Failure;
use crate::discovery::srv::{self, Node};

/// The flags.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Discovery {
    /// DNS domain whose SRV records name the endpoints; if they name none, --endpoints counts
    #[arg(
        short = 'd',
        long,
        global = true,
        env = "ETCDCTL_DISCOVERY_SRV",
        default_value = "",
        hide_default_value = true,
        value_name = "DOMAIN",
        hide_env = true
    )]
    discovery_srv: String,
    /// Suffix of the SRV records' service, if the domain has several clusters
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_DISCOVERY_SRV_NAME",
        default_value = "",
        hide_default_value = true,
        value_name = "NAME",
        hide_env = true
    )]
    discovery_srv_name: String,
    /// Whether endpoints without TLS are used; if not, certificates are to be the domain's
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_INSECURE_DISCOVERY",
        default_value = "true",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(),
        action = clap::ArgAction::Set,
        value_name = "BOOL",
        hide_env = true
    )]
    insecure_discovery: bool,
}

impl Discovery {
    /// The endpoints that DNS names; none if no domain is given.
    pub(super) async fn endpoints(&self) -> Result<Vec<String>, Failure> {
        if self.discovery_srv.is_empty() {
            return Ok(Vec::new());
        }
        let nodes = srv::clients(&self.discovery_srv, &self.discovery_srv_name).await;
        let mut nodes = nodes.map_err(Failure::error)?;
        nodes.retain(|node| self.insecure_discovery || is_secure(node));
        Ok(nodes.iter().map(Node::url).collect())
    }

    /// Whom the certificates of endpoints must be of, if it is not their hosts.
    pub(super) fn server_name(&self) -> Option<String> {
        let domain = self.discovery_srv.trim_end_matches('.');
        (!domain.is_empty() && !self.insecure_discovery).then(|| domain.to_owned())
    }
}

fn is_secure(node: &Node) -> bool {
    if !node.is_tls {
        eprintln!("ignoring discovered insecure endpoint {:?}", node.url());
    }
    node.is_tls
}
