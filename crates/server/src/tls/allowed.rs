//! Which certificates are let pass, of those that a trusted authority has signed.

use std::io;

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

use super::files::TlsError;
use super::name::common_name;

/// What the other end's certificate must have, as flags say it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// One of these host names, if there are any.
    pub hosts: Vec<String>,
    /// One of these common names, if there are any.
    pub common_names: Vec<String>,
}

/// The same, ready to be checked.
pub(super) struct Allowed {
    hosts: Vec<ServerName<'static>>,
    common_names: Vec<String>,
}

impl Allowed {
    pub(super) fn new(names: &Names) -> Result<Allowed, TlsError> {
        let host = |name: &String| {
            ServerName::try_from(name.clone())
                .map_err(|_| TlsError::Config(format!("bad host name {name:?}")))
        };
        let hosts = names.hosts.iter().map(host).collect::<Result<_, _>>()?;
        Ok(Allowed { hosts, common_names: names.common_names.clone() })
    }

    /// Refuses a chain whose first certificate does not have what it must.
    pub(super) fn check(&self, chain: &[CertificateDer<'_>]) -> io::Result<()> {
        let certificate = chain.first();
        if !self.hosts.is_empty() && !certificate.is_some_and(|it| self.has_host(it)) {
            return denied("the certificate has none of the allowed host names");
        }
        if !self.common_names.is_empty() && !certificate.is_some_and(|it| self.has_common(it)) {
            return denied("the certificate has none of the allowed common names");
        }
        Ok(())
    }

    fn has_host(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return false };
        self.hosts.iter().any(|host| verify_server_name(&certificate, host).is_ok())
    }

    fn has_common(&self, certificate: &CertificateDer<'_>) -> bool {
        common_name(certificate).is_some_and(|name| self.common_names.contains(&name))
    }
}

/// The error of whoever is not let pass.
pub(super) fn denied<T>(what: &'static str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}
