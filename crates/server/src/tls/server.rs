//! The side of a handshake that is called.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ServerConfig, server::danger::ClientCertVerifier};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::files::{self, Following, KeyPair, TlsError};
use super::name::common_name;
use super::{HANDSHAKE_TIMEOUT, Protocol, Stream};

/// What a listener shows, and what it demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Shown to whoever connects.
    pub own: KeyPair,
    /// Whom to trust. With it, whoever connects must have a certificate.
    pub trusted: Option<PathBuf>,
    /// Certificates that are trusted no more.
    pub revoked: Option<PathBuf>,
    /// Whoever connects must have one of these host names, if there are any.
    pub allowed_hosts: Vec<String>,
    /// Whoever connects must have one of these common names, if there are any.
    pub allowed_names: Vec<String>,
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
            allowed_hosts: Vec::new(),
            allowed_names: Vec::new(),
            names_users: false,
            protocol: Protocol::default(),
        }
    }
}

/// Accepts encrypted connections.
pub struct ServerTls {
    config: Following<ServerConfig>,
    allowed_hosts: Vec<ServerName<'static>>,
    allowed_names: Vec<String>,
    names_users: bool,
}

impl ServerTls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(files: ServerFiles) -> Result<ServerTls, TlsError> {
        let name = |name: &String| {
            ServerName::try_from(name.clone())
                .map_err(|_| TlsError::Config(format!("bad host name {name:?}")))
        };
        let allowed_names = files.allowed_names.clone();
        let allowed_hosts = files.allowed_hosts.iter().map(name).collect::<Result<_, _>>()?;
        let names_users = files.names_users;
        let mut paths = files.own.paths().to_vec();
        paths.extend(files.trusted.iter().chain(&files.revoked).cloned());
        let config = Following::new(paths, move || config(&files))?;
        Ok(ServerTls { config, allowed_hosts, allowed_names, names_users })
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
        let acceptor = TlsAcceptor::from(self.config.get());
        let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
        self.check_name(stream.get_ref().1.peer_certificates())?;
        Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
    }

    fn check_name(&self, chain: Option<&[CertificateDer<'_>]>) -> io::Result<()> {
        let certificate = chain.and_then(<[_]>::first);
        let has_host = |certificate: &CertificateDer<'_>| {
            let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return false };
            self.allowed_hosts.iter().any(|host| verify_server_name(&certificate, host).is_ok())
        };
        let has_name = |certificate: &CertificateDer<'_>| {
            common_name(certificate).is_some_and(|name| self.allowed_names.contains(&name))
        };
        let denied = |what| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        if !self.allowed_hosts.is_empty() && !certificate.is_some_and(has_host) {
            return denied("the certificate has none of the allowed host names");
        }
        if !self.allowed_names.is_empty() && !certificate.is_some_and(has_name) {
            return denied("the certificate has none of the allowed common names");
        }
        Ok(())
    }
}

fn config(files: &ServerFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = files.protocol.provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&files.protocol.versions())?;
    let builder = match &files.trusted {
        None => builder.with_no_client_auth(),
        Some(_) => builder.with_client_cert_verifier(verifier(files)?),
    };
    let (chain, key) = files.own.read()?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn verifier(files: &ServerFiles) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(trusted) = &files.trusted else {
        return Err(TlsError::Config("no trusted certificates to check clients against".to_owned()));
    };
    let roots = Arc::new(files::roots(trusted)?);
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, files.protocol.provider());
    if let Some(revoked) = &files.revoked {
        // Only what is listed is refused: lists of the CAs in between are not asked for.
        let lists = files::revocations(revoked)?;
        builder =
            builder.with_crls(lists).only_check_end_entity_revocation().allow_unknown_revocation_status();
    }
    builder.build().map_err(|error| TlsError::Config(error.to_string()))
}
