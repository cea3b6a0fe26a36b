//! The side of a handshake that is called.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, server::danger::ClientCertVerifier};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

use super::allowed::{Allowed, denied};
use super::files::{self, Following, KeyPair, TlsError};
use super::name::common_name;
use super::{HANDSHAKE_TIMEOUT, Names, Protocol, Stream, in_words};

/// What a listener shows, and what it demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Shown to whoever connects.
    pub own: KeyPair,
    /// Whom to trust. With it, whoever connects must have a certificate.
    pub trusted: Option<PathBuf>,
    /// Certificates that are trusted no more.
    pub revoked: Option<PathBuf>,
    /// What whoever connects must have.
    pub allowed: Names,
    /// Whether common names are names of users.
    pub names_users: bool,
    /// What may be agreed on.
    pub protocol: Protocol,
}

#[cfg(test)]
impl ServerFiles {
    /// Of a listener that demands nothing but what it trusts.
    pub(crate) fn of(own: KeyPair, trusted: Option<PathBuf>) -> ServerFiles {
        ServerFiles {
            own,
            trusted,
            revoked: None,
            allowed: Names::default(),
            names_users: false,
            protocol: Protocol::default(),
        }
    }
}

/// Accepts encrypted connections.
pub struct ServerTls {
    reading: Following<Reading>,
    allowed: Allowed,
    names_users: bool,
}

/// What the files hold.
struct Reading {
    config: Arc<ServerConfig>,
    revoked: Revoked,
}

/// The serial numbers that are listed as revoked, whoever has given them out: as etcd takes them.
struct Revoked(Vec<CertRevocationList<'static>>);

impl ServerTls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(files: ServerFiles) -> Result<ServerTls, TlsError> {
        let allowed = Allowed::new(&files.allowed)?;
        let names_users = files.names_users;
        let mut paths = files.own.paths().to_vec();
        paths.extend(files.trusted.iter().chain(&files.revoked).cloned());
        let reading = Following::new(paths, move || Reading::new(&files).map(Arc::new))?;
        Ok(ServerTls { reading, allowed, names_users })
    }

    /// The user that the certificate of whoever connected names, if it does.
    pub fn user_of(&self, stream: &Stream) -> Option<String> {
        let certificate = stream.peer_certificate()?;
        if self.names_users { common_name(certificate).filter(|name| !name.is_empty()) } else { None }
    }

    /// Shakes hands with whoever connected.
    ///
    /// # Errors
    /// What the other end did wrong, or that it did nothing.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let reading = self.reading.get().await;
        let acceptor = TlsAcceptor::from(Arc::clone(&reading.config));
        let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await?.map_err(in_words)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        self.allowed.check(chain)?;
        reading.revoked.check(chain)?;
        Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
    }
}

impl Reading {
    fn new(files: &ServerFiles) -> Result<Reading, TlsError> {
        // Nobody shows a certificate who is not asked for one.
        let revoked = files.trusted.as_ref().and(files.revoked.as_deref());
        let lists = revoked.map_or(Ok(Vec::new()), files::revocations)?;
        Ok(Reading { revoked: Revoked::new(&lists)?, config: config(files, lists)? })
    }
}

impl Revoked {
    fn new(lists: &[CertificateRevocationListDer<'_>]) -> Result<Revoked, TlsError> {
        let read = |list: &CertificateRevocationListDer<'_>| {
            let read = OwnedCertRevocationList::from_der(list);
            read.map(Into::into).map_err(|error| TlsError::Config(format!("bad revocation list: {error}")))
        };
        lists.iter().map(read).collect::<Result<_, _>>().map(Revoked)
    }

    /// Refuses a chain with a certificate that is listed. The handshake looks only at those that it needs, in the list of their issuer.
    fn check(&self, chain: &[CertificateDer<'_>]) -> io::Result<()> {
        match !self.0.is_empty() && chain.iter().any(|certificate| self.has(certificate)) {
            true => denied("the certificate, or that of an authority beside it, is revoked"),
            false => Ok(()),
        }
    }

    /// One that cannot be read was of no use in the handshake either.
    fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
        self.0.iter().any(|list| !matches!(list.find_serial(certificate.serial()), Ok(None)))
    }
}

fn config(
    files: &ServerFiles,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = files.protocol.provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&files.protocol.versions())?;
    let builder = match &files.trusted {
        None => builder.with_no_client_auth(),
        Some(trusted) => builder.with_client_cert_verifier(verifier(files, trusted, lists)?),
    };
    let (chain, key) = files.own.read()?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if files.trusted.is_some() {
        // Whoever resumed a session would not be asked for its certificate, which may have ended since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

fn verifier(
    files: &ServerFiles,
    trusted: &Path,
    lists: Vec<CertificateRevocationListDer<'static>>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(files::roots(trusted)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, files.protocol.provider());
    // Only what is listed is refused: lists of the CAs in between are not asked for.
    let builder = builder.with_crls(lists).allow_unknown_revocation_status();
    builder.build().map_err(|error| TlsError::Config(error.to_string()))
}
