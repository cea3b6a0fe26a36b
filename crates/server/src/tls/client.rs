//! The side of a handshake that calls.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use super::allowed::Allowed;
use super::files::{self, Following, KeyPair, TlsError};
use super::{HANDSHAKE_TIMEOUT, Names, Protocol, Stream, in_words};

/// What a caller shows, and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientFiles {
    /// Shown if the other end asks for a certificate.
    pub own: Option<KeyPair>,
    /// Whom to trust; the system's certificates if there are none.
    pub trusted: Option<PathBuf>,
    /// Believe everybody.
    pub skip_verify: bool,
    /// Whom a server must be, whatever the host that is called; the host if there is none.
    pub server_name: Option<String>,
    /// What a server must have beside that.
    pub allowed: Names,
    /// Protocols to speak, the preferred one first.
    pub speaks: Vec<Vec<u8>>,
    /// What may be agreed on.
    pub protocol: Protocol,
}

/// Makes encrypted connections.
pub struct ClientTls {
    config: Following<ClientConfig>,
    server_name: Option<String>,
    allowed: Allowed,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(files: ClientFiles) -> Result<ClientTls, TlsError> {
        let mut paths: Vec<PathBuf> = files.own.iter().flat_map(KeyPair::paths).collect();
        paths.extend(files.trusted.clone());
        let (server_name, allowed) = (files.server_name.clone(), Allowed::new(&files.allowed)?);
        let config = Following::new(paths, move || config(&files))?;
        Ok(ClientTls { config, server_name, allowed })
    }

    /// Shakes hands with a server that must be `host`, a name or an IP address, unless the files name another one.
    ///
    /// # Errors
    /// What the other end did wrong, or that it did nothing.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<Stream> {
        let host = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connector = TlsConnector::from(self.config.get().await);
        let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await?.map_err(in_words)?;
        self.allowed.check(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }
}

fn config(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = files.protocol.provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&files.protocol.versions())?;
    let builder = if files.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let roots = files.trusted.as_deref().map_or_else(files::system_roots, files::roots)?;
        builder.with_root_certificates(roots)
    };
    let mut config = match &files.own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (chain, key) = own.read()?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols.clone_from(&files.speaks);
    Ok(Arc::new(config))
}

/// Believes that the other end is whoever it says; that it has the key to its certificate is checked all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
