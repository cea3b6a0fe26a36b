//! The flags about TLS: what the client port and the peer port show and demand.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ConfigError, Settings, parts, switch};
use crate::tls::client::ClientFiles;
use crate::tls::files::KeyPair;
use crate::tls::server::ServerFiles;
use crate::tls::{ClientTls, Names, Protocol, ServerTls, TlsError, own};

/// How a port is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// What it shows.
    certificate: Certificate,
    /// What this node shows when it calls others, if it is something else.
    calling: Option<KeyPair>,
    /// Whom to trust. With it, whoever connects must have a certificate.
    trusted: Option<PathBuf>,
    /// Certificates that are trusted no more.
    revoked: Option<PathBuf>,
    /// What others' certificates must have.
    allowed: Names,
    /// Whether common names are names of users: certificates were demanded by the flag for that.
    names_users: bool,
    /// What may be agreed on.
    protocol: Protocol,
    /// Whom others must be, whatever host is called; the host if there is none.
    server_name: Option<String>,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Certificate {
    /// From files.
    Given(KeyPair),
    /// It is made at the first start.
    Made { directory: PathBuf, hosts: Vec<String>, years: u32 },
}

/// The flags of one of the ports.
struct Flags {
    cert: &'static str,
    key: &'static str,
    trusted: &'static str,
    demand: &'static str,
    revoked: &'static str,
    allowed_hosts: &'static str,
    allowed_names: &'static str,
    auto: &'static str,
    /// Within the data directory, where etcd has it.
    made_in: &'static str,
    calling: Option<(&'static str, &'static str)>,
}

const CLIENTS: Flags = Flags {
    cert: "cert-file",
    key: "key-file",
    trusted: "trusted-ca-file",
    demand: "client-cert-auth",
    revoked: "client-crl-file",
    allowed_hosts: "client-cert-allowed-hostname",
    allowed_names: "client-cert-allowed-cn",
    auto: "auto-tls",
    made_in: "fixtures/client",
    calling: None,
};

const PEERS: Flags = Flags {
    cert: "peer-cert-file",
    key: "peer-key-file",
    trusted: "peer-trusted-ca-file",
    demand: "peer-client-cert-auth",
    revoked: "peer-crl-file",
    allowed_hosts: "peer-cert-allowed-hostname",
    allowed_names: "peer-cert-allowed-cn",
    auto: "peer-auto-tls",
    made_in: "fixtures/peer",
    calling: Some(("peer-client-cert-file", "peer-client-key-file")),
};

/// How the client port is secured; `None` if no flag says so. `hosts` are those that it listens on.
pub(super) fn of_clients(
    settings: &Settings,
    data_dir: &Path,
    hosts: Vec<String>,
) -> Result<Option<Security>, ConfigError> {
    read(settings, &CLIENTS, data_dir, hosts)
}

/// How the peer port is secured; `None` if no flag says so. `hosts` are those that it listens on.
pub(super) fn of_peers(
    settings: &Settings,
    data_dir: &Path,
    hosts: Vec<String>,
) -> Result<Option<Security>, ConfigError> {
    read(settings, &PEERS, data_dir, hosts)
}

fn read(
    settings: &Settings,
    flags: &Flags,
    data_dir: &Path,
    hosts: Vec<String>,
) -> Result<Option<Security>, ConfigError> {
    let trusted = settings.given(flags.trusted).map(PathBuf::from);
    if switch(settings, flags.demand) && trusted.is_none() {
        return Err(ConfigError::Together { one: flags.demand, other: flags.trusted });
    }
    let certificate = match pair(settings, flags.cert, flags.key)? {
        Some(given) => Certificate::Given(given),
        None if switch(settings, flags.auto) => Certificate::Made {
            directory: data_dir.join(flags.made_in),
            hosts,
            years: super::limit(settings, "self-signed-cert-validity")?,
        },
        None => return Ok(None),
    };
    let calling = flags.calling.map(|(cert, key)| pair(settings, cert, key)).transpose()?.flatten();
    let list = |flag| parts(settings.text(flag)).map(str::to_owned).collect::<Vec<_>>();
    let (allowed_hosts, allowed_names) = (list(flags.allowed_hosts), list(flags.allowed_names));
    if !allowed_hosts.is_empty() && !allowed_names.is_empty() {
        return Err(ConfigError::Exclusive { one: flags.allowed_hosts, other: flags.allowed_names });
    }
    let is_choosy = !allowed_hosts.is_empty() || !allowed_names.is_empty();
    if is_choosy && trusted.is_none() {
        let one = if allowed_names.is_empty() { flags.allowed_hosts } else { flags.allowed_names };
        return Err(ConfigError::Together { one, other: flags.trusted });
    }
    let revoked = settings.given(flags.revoked).map(PathBuf::from);
    let protocol = protocol(settings)?;
    let names_users = switch(settings, flags.demand);
    Ok(Some(Security {
        certificate,
        calling,
        trusted,
        revoked,
        allowed: Names { hosts: allowed_hosts, common_names: allowed_names },
        names_users,
        protocol,
        server_name: None,
    }))
}

/// The files that a pair of flags names.
pub(super) fn pair(
    settings: &Settings,
    certificate: &'static str,
    key: &'static str,
) -> Result<Option<KeyPair>, ConfigError> {
    match (settings.given(certificate), settings.given(key)) {
        (Some(certificate), Some(key)) => {
            Ok(Some(KeyPair { certificate: certificate.into(), key: key.into() }))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::Together { one: certificate, other: key }),
        (None, Some(_)) => Err(ConfigError::Together { one: key, other: certificate }),
    }
}

fn protocol(settings: &Settings) -> Result<Protocol, ConfigError> {
    let has_tls12 = settings.text("tls-min-version") != "TLS1.3";
    let has_tls13 = settings.text("tls-max-version") != "TLS1.2";
    if !has_tls12 && !has_tls13 {
        return Err(ConfigError::TlsVersions);
    }
    let suites: Vec<String> = parts(settings.text("cipher-suites")).map(str::to_owned).collect();
    if !has_tls12 && !suites.is_empty() {
        return Err(ConfigError::SuitesOfTls13);
    }
    let protocol = Protocol { has_tls12, has_tls13, suites };
    if !protocol.suites.is_empty() && protocol.unknown_suites().len() == protocol.suites.len() {
        return Err(ConfigError::NoSuite(protocol.suites.join(",")));
    }
    Ok(protocol)
}

impl Security {
    /// The same, of nodes that were found in the DNS domain `domain`. As in etcd the system's authorities vouch for the domain then, unless others are
    /// named.
    pub(super) fn of_domain(self, domain: &str) -> Security {
        let server_name = self.trusted.is_none().then(|| domain.trim_end_matches('.').to_owned());
        Security { server_name, ..self }
    }

    /// Prepares for being called: reads the files, or makes them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn server(&self) -> Result<Arc<ServerTls>, TlsError> {
        let files = ServerFiles {
            own: self.own()?,
            trusted: self.trusted.clone(),
            revoked: self.revoked.clone(),
            allowed: self.allowed.clone(),
            names_users: self.names_users,
            protocol: self.protocol.clone(),
        };
        ServerTls::new(files).map(Arc::new)
    }

    /// Prepares for calling others.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn client(&self) -> Result<Arc<ClientTls>, TlsError> {
        ClientTls::new(self.client_files()?).map(Arc::new)
    }

    fn client_files(&self) -> Result<ClientFiles, TlsError> {
        let own = self.calling.clone().map_or_else(|| self.own(), Ok)?;
        // Each has a certificate that only it knows.
        let is_made = matches!(self.certificate, Certificate::Made { .. });
        Ok(ClientFiles {
            own: Some(own),
            trusted: self.trusted.clone(),
            skip_verify: is_made,
            server_name: self.server_name.clone(),
            allowed: if is_made { Names::default() } else { self.allowed.clone() },
            speaks: Vec::new(),
            protocol: self.protocol.clone(),
        })
    }

    /// The named cipher suites that do not exist here.
    pub fn unknown_suites(&self) -> Vec<&str> {
        self.protocol.unknown_suites()
    }

    fn own(&self) -> Result<KeyPair, TlsError> {
        match &self.certificate {
            Certificate::Given(pair) => Ok(pair.clone()),
            Certificate::Made { directory, hosts, years } => own::certificate(directory, hosts, *years),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ffi::OsString;

    use super::super::{Asked, Config};
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, String> {
        let Asked::Serve(settings) = Settings::read(flags.iter().map(OsString::from), []).unwrap() else {
            unreachable!()
        };
        Config::from_settings(&settings, "hadron").map_err(|error| error.to_string())
    }

    #[test]
    fn a_certificate_needs_its_key_and_https_a_certificate() {
        for (flags, said) in [
            (vec!["--cert-file=c"], "--cert-file needs --key-file beside it"),
            (vec!["--peer-key-file=k"], "--peer-key-file needs --peer-cert-file beside it"),
            (
                vec!["--listen-peer-urls=https://127.0.0.1:1,http://127.0.0.1:2", "--peer-auto-tls"],
                "--listen-peer-urls: all must be https, or none",
            ),
            (
                vec!["--peer-auto-tls", "--peer-cert-allowed-cn=a"],
                "--peer-cert-allowed-cn needs --peer-trusted-ca-file beside it",
            ),
            (
                vec![
                    "--cert-file=c",
                    "--key-file=k",
                    "--trusted-ca-file=t",
                    "--client-cert-allowed-hostname=h",
                    "--client-cert-allowed-cn=c",
                ],
                "--client-cert-allowed-hostname and --client-cert-allowed-cn exclude each other",
            ),
            (
                vec!["--client-cert-auth", "--cert-file=c", "--key-file=k"],
                "--client-cert-auth needs --trusted-ca-file beside it",
            ),
            (
                vec![
                    "--listen-client-urls=https://127.0.0.1:1",
                    "--advertise-client-urls=https://127.0.0.1:1",
                ],
                "--listen-client-urls: https needs --cert-file and --key-file, or --auto-tls",
            ),
            (
                vec!["--listen-peer-urls=https://127.0.0.1:1"],
                "--listen-peer-urls: https needs --peer-cert-file and --peer-key-file, or --peer-auto-tls",
            ),
            (
                vec!["--auto-tls", "--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
                "--tls-min-version is above --tls-max-version",
            ),
            (
                vec!["--auto-tls", "--cipher-suites=TLS_RSA_WITH_RC4_128_SHA"],
                "--cipher-suites: none of TLS_RSA_WITH_RC4_128_SHA can be used",
            ),
        ] {
            assert_eq!(config(&flags).unwrap_err(), said, "{flags:?}");
        }
    }

    #[test]
    fn certificates_are_made_where_etcd_makes_them() {
        let flags =
            ["--auto-tls", "--data-dir=/d", "--listen-client-urls=https://[::1]:1,http://localhost:2"];
        let config = config(&[&flags[..], &["--advertise-client-urls=https://[::1]:1"]].concat()).unwrap();
        let made = Certificate::Made {
            directory: "/d/fixtures/client".into(),
            hosts: vec!["::1".to_owned(), "localhost".to_owned()],
            years: 1,
        };
        assert_eq!(config.clients_security.unwrap().certificate, made);
        assert_eq!(
            config.addresses.clients.iter().map(|listen| listen.is_tls).collect::<Vec<_>>(),
            [true, false]
        );
        assert_eq!(config.peers_security, None);
    }

    #[test]
    fn nodes_that_are_called_must_have_the_allowed_names_unless_theirs_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = format!("--data-dir={}", directory.path().display());
        let allowed = |flags: &[&str]| {
            let common = [data_dir.as_str(), "--peer-trusted-ca-file=t", "--peer-cert-allowed-cn=a"];
            let config = config(&[&common[..], flags].concat()).unwrap();
            config.peers_security.unwrap().client_files().unwrap().allowed.common_names
        };
        assert_eq!(allowed(&["--peer-cert-file=c", "--peer-key-file=k"]), ["a"]);
        assert_eq!(allowed(&["--peer-auto-tls"]), [""; 0]);
    }
}
