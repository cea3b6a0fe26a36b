//! Connections between nodes before their first frame: dialled or accepted, encrypted or not.

use std::fmt;
use std::io;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::Once;

use tokio::net::TcpStream;

use super::names;
use crate::config::Url;
use crate::tls::{ClientTls, ServerTls, Stream};

/// Bytes that the kernel takes before it can send them: what goes ahead of others here does not wait behind megabytes there.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 256 << 10;

/// How connections between nodes are encrypted.
#[derive(Clone, Default)]
pub struct PeerTls {
    /// With it, whoever connects must speak TLS.
    pub server: Option<Arc<ServerTls>>,
    /// For nodes whose URLs are `https`.
    pub client: Option<Arc<ClientTls>>,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PeerTls { server, client } = self;
        write!(f, "PeerTls {{ server: {}, client: {} }}", server.is_some(), client.is_some())
    }
}

impl PeerTls {
    /// Connects to another node.
    ///
    /// # Errors
    /// It cannot be reached, or is not who it should be.
    pub(super) async fn connect(&self, url: &Url) -> io::Result<Stream> {
        let tls = match (url.is_tls(), &self.client) {
            (false, _) => None,
            (true, Some(tls)) => Some(tls),
            (true, None) => {
                let why = "https needs --peer-cert-file and --peer-key-file, or --peer-auto-tls";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let stream = names::connect(url).await?;
        stream.set_nodelay(true)?;
        #[cfg(target_os = "linux")]
        bound_unsent(&stream);
        match tls {
            None => Ok(Stream::Plain(stream)),
            Some(tls) => tls.connect(url.host(), stream).await,
        }
    }

    /// Takes a connection of another node.
    ///
    /// # Errors
    /// What the other node did wrong.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        match &self.server {
            None => Ok(Stream::Plain(stream)),
            Some(tls) => tls.accept(stream).await,
        }
    }
}

/// Where the kernel cannot do that, the connection is as good without it, but that heartbeats may wait.
#[cfg(target_os = "linux")]
fn bound_unsent(stream: &TcpStream) {
    static TOLD: Once = Once::new();
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
        TOLD.call_once(|| {
            tracing::warn!(%error, "the kernel does not bound what it takes and cannot send: heartbeats may wait behind that");
        });
    }
}
