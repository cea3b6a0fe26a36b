//! The flags of `ctl` about TLS and connections, and what they mean for an endpoint.

use std::path::PathBuf;
use std::sync::Arc;

use super::failure::Failure;
use crate::tls::ClientTls;
use crate::tls::client::ClientFiles;
use crate::tls::files::KeyPair;

/// What pages come over.
const HTTP1: &[u8] = b"http/1.1";
/// What gRPC speaks.
const HTTP2: &[u8] = b"h2";

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
}

/// How endpoints are spoken to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Security {
    /// For endpoints that want TLS; made when the first of them is dialled.
    files: ClientFiles,
    /// Endpoints without a scheme want it too.
    is_default: bool,
}

impl Security {
    /// # Errors
    /// When a certificate comes without its key, or the other way round.
    pub(in crate::cli) fn new(flags: Secure) -> Result<Security, Failure> {
        let given = |file: Option<PathBuf>| file.filter(|file| !file.as_os_str().is_empty());
        let trusted = given(flags.cacert);
        let own = match (given(flags.cert), given(flags.key)) {
            (Some(certificate), Some(key)) => Some(KeyPair { certificate, key }),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::error("--cert needs --key beside it")),
            (None, Some(_)) => return Err(Failure::error("--key needs --cert beside it")),
        };
        let skip_verify = flags.insecure_skip_tls_verify;
        let is_default = trusted.is_some() || own.is_some() || skip_verify || !flags.insecure_transport;
        let speaks = vec![HTTP2.to_vec()];
        Ok(Security {
            files: ClientFiles { own, trusted, skip_verify, speaks, ..ClientFiles::default() },
            is_default,
        })
    }

    /// The same for somebody who reads pages.
    pub(super) fn for_pages(&self) -> Security {
        let files = ClientFiles { speaks: vec![HTTP1.to_vec()], ..self.files.clone() };
        Security { files, is_default: self.is_default }
    }

    /// What to encrypt with for an endpoint with that scheme; `None` for plain text.
    ///
    /// # Errors
    /// What is wrong with the files, in words.
    pub(in crate::cli) fn of(&self, is_https: Option<bool>) -> Result<Option<Arc<ClientTls>>, String> {
        match is_https.unwrap_or(self.is_default) {
            true => ClientTls::new(self.files.clone())
                .map(|tls| Some(Arc::new(tls)))
                .map_err(|error| error.to_string()),
            false => Ok(None),
        }
    }
}
