//! TLS for clients and peers: from etcd's flags to a stream that is encrypted or not.
//!
//! - [`files`]: certificates and keys in files, read again when they change.
//! - [`server`], [`client`]: the two sides of a handshake; [`stream`]: what comes of it.
//! - [`name`]: the common name of a certificate; `allowed`: the names that it must have.
//! - [`own`]: certificates made here, for `--auto-tls`.
//!
//! Invariants: a handshake is made with what the files held when they last made sense; a handshake that does not end in time
//! fails; whoever shows a certificate is checked by it at each handshake. Left out: session resumption where certificates are demanded, and over
//! several processes.

mod allowed;
#[cfg(test)]
#[allow(unreachable_pub)]
#[path = "../../tests/processes/support/authority.rs"]
pub(crate) mod authority;
pub mod client;
pub mod files;
pub mod name;
pub mod own;
pub mod server;
pub mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, SupportedProtocolVersion, version};

pub use allowed::Names;
pub use client::ClientTls;
pub use files::TlsError;
pub use server::ServerTls;
pub use stream::Stream;

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a handshake failed for, with what is to be done where the library names only what it found.
fn in_words(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) = cause else { return error };
    match other.0.downcast_ref::<webpki::Error>() {
        Some(webpki::Error::CaUsedAsEndEntity) => io::Error::new(
            error.kind(),
            "the certificate of the other end is that of an authority, which may sign and not speak: make it one without \
             (`basicConstraints=CA:FALSE`)",
        ),
        _ => error,
    }
}

/// What a handshake may agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Whether TLS 1.2 may be used.
    pub has_tls12: bool,
    /// Whether TLS 1.3 may be used.
    pub has_tls13: bool,
    /// Names of the suites that TLS 1.2 may use, as Go spells them; all that are known if it is empty.
    pub suites: Vec<String>,
}

impl Default for Protocol {
    fn default() -> Protocol {
        Protocol { has_tls12: true, has_tls13: true, suites: Vec::new() }
    }
}

impl Protocol {
    fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let tls13 = self.has_tls13.then_some(&version::TLS13);
        let tls12 = self.has_tls12.then_some(&version::TLS12);
        tls13.into_iter().chain(tls12).collect()
    }

    fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = rustls::crypto::ring::default_provider();
        if !self.suites.is_empty() {
            provider.cipher_suites.retain(|suite| {
                // As in Go, the suites of TLS 1.3 are not up for choice.
                suite.tls13().is_some() || self.suites.iter().any(|name| is_named(suite, name))
            });
        }
        Arc::new(provider)
    }

    /// The named suites that do not exist here.
    pub fn unknown_suites(&self) -> Vec<&str> {
        let all = rustls::crypto::ring::default_provider().cipher_suites;
        let is_unknown = |name: &&str| !all.iter().any(|suite| is_named(suite, name));
        self.suites.iter().map(String::as_str).filter(is_unknown).collect()
    }
}

/// Whether a suite has that name in Go.
fn is_named(suite: &rustls::SupportedCipherSuite, name: &str) -> bool {
    let own = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
    own == name || own.strip_suffix("_SHA256").is_some_and(|own| own.ends_with("POLY1305") && own == name)
}
