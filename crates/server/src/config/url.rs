//! URLs of nodes: where they listen, and where others reach them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use super::ConfigError;

/// `http://host:port` or `https://host:port`, with nothing after it. The host may be a name or an address (IPv6 in brackets).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Url {
    is_tls: bool,
    host: String,
    port: u16,
}

impl Url {
    /// Name or address, IPv6 without its brackets.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether TLS is spoken there.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as `TcpStream::connect` takes it.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The address to bind. Only IP addresses and `localhost` can be bound: a name could change its meaning.
    pub(super) fn listen_address(&self, flag: &'static str) -> Result<SocketAddr, ConfigError> {
        let ip = match self.host() {
            "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host => host.parse(),
        };
        let ip = ip.map_err(|_| ConfigError::ListenName { flag, url: self.to_string() })?;
        Ok(SocketAddr::new(ip, self.port))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            "unix" | "unixs" => return Err(UrlError::UnixSocket),
            _ => return Err(UrlError::Scheme),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() {
            return Err(UrlError::Path);
        }
        let (host, port) = authority.rsplit_once(':').ok_or(UrlError::Authority)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) || host.contains(['@', '?', '#', ' ']) {
            return Err(UrlError::Authority);
        }
        let port = port.parse().map_err(|_| UrlError::Authority)?;
        Ok(Url { is_tls, host: host.to_ascii_lowercase(), port })
    }
}

/// Why a text is not a [`Url`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No scheme, or one that means nothing here.
    #[error("a URL must begin with http:// or https://")]
    Scheme,
    /// A Unix socket.
    #[error("Unix sockets are not supported, use http://host:port")]
    UnixSocket,
    /// Something after the port.
    #[error("a URL must not contain a path")]
    Path,
    /// Host or port is missing or malformed.
    #[error("a URL must have the form http://host:port")]
    Authority,
}
