//! How endpoints are spoken to: in plain text, or encrypted with what is in these files.

use std::sync::Arc;

use crate::tls::ClientTls;
use crate::tls::client::ClientFiles;

/// What pages come over.
const HTTP1: &[u8] = b"http/1.1";
/// What gRPC speaks.
const HTTP2: &[u8] = b"h2";

/// How endpoints are spoken to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Security {
    /// For endpoints that want TLS; made when the first of them is dialled.
    files: ClientFiles,
    /// Endpoints without a scheme want it too.
    is_default: bool,
}

impl Security {
    /// What `files` say, to speak gRPC. As in etcd's client, endpoints without a scheme are encrypted if there is any file, or
    /// anything else that only TLS could need, or if they are not to be spoken to in plain text.
    pub(crate) fn new(files: ClientFiles, insecure_transport: bool) -> Security {
        let asks_for_tls = files.trusted.is_some()
            || files.own.is_some()
            || files.skip_verify
            || files.server_name.is_some();
        let speaks = vec![HTTP2.to_vec()];
        Security { files: ClientFiles { speaks, ..files }, is_default: asks_for_tls || !insecure_transport }
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
    pub(crate) fn of(&self, is_https: Option<bool>) -> Result<Option<Arc<ClientTls>>, String> {
        match is_https.unwrap_or(self.is_default) {
            true => ClientTls::new(self.files.clone())
                .map(|tls| Some(Arc::new(tls)))
                .map_err(|error| error.to_string()),
            false => Ok(None),
        }
    }
}
