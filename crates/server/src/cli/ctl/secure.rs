//! The flags of `ctl` about TLS and connections, and what they mean for an endpoint.

use std::path::PathBuf;

use super::failure::Failure;
use crate::client::Security;
use crate::tls::client::ClientFiles;
use crate::tls::files::KeyPair;

/// The flags.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Secure {
    /// File of certificates to check servers against [default: the system's]
    #[arg(long, global = true, env = "ETCDCTL_CACERT", value_name = "FILE", hide_env = true)]
    cacert: Option<PathBuf>,
    /// File of this client's certificate
    #[arg(long, global = true, env = "ETCDCTL_CERT", value_name = "FILE", hide_env = true)]
    cert: Option<PathBuf>,
    /// File of the key of this client's certificate
    #[arg(long, global = true, env = "ETCDCTL_KEY", value_name = "FILE", hide_env = true)]
    key: Option<PathBuf>,
    /// Do not check who the server is: for tests only
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true
    )]
    insecure_skip_tls_verify: bool,
    /// Whether endpoints without a scheme are spoken to in plain text, if no certificate is given
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_INSECURE_TRANSPORT",
        default_value = "true",
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        value_parser = clap::builder::BoolishValueParser::new(),
        action = clap::ArgAction::Set,
        value_name = "BOOL",
        hide_env = true
    )]
    insecure_transport: bool,
}

impl Secure {
    /// As flags with these values.
    pub(in crate::cli) fn of(
        cacert: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
        insecure_transport: bool,
    ) -> Secure {
        Secure { cacert, cert, key, insecure_skip_tls_verify: false, insecure_transport }
    }

    /// The same, but with no check who the server is if that is so.
    pub(in crate::cli) fn without_check(self, insecure_skip_tls_verify: bool) -> Secure {
        Secure { insecure_skip_tls_verify, ..self }
    }

    /// What they mean for endpoints, which must have certificates of `server_name`, if there is one.
    ///
    /// # Errors
    /// When a certificate comes without its key, or the other way round.
    pub(in crate::cli) fn security(self, server_name: Option<String>) -> Result<Security, Failure> {
        let given = |file: Option<PathBuf>| file.filter(|file| !file.as_os_str().is_empty());
        let own = match (given(self.cert), given(self.key)) {
            (Some(certificate), Some(key)) => Some(KeyPair { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::error("--cert needs --key beside it")),
            (None, Some(_)) => return Err(Failure::error("--key needs --cert beside it")),
        };
        let (trusted, skip_verify) = (given(self.cacert), self.insecure_skip_tls_verify);
        let files = ClientFiles { own, trusted, skip_verify, server_name, ..ClientFiles::default() };
        Ok(Security::new(files, self.insecure_transport))
    }
}
