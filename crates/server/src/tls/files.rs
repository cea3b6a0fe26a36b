//! Certificates, keys and revocations in PEM files, and configurations that follow their files.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tracing::{info, warn};

/// Where a machine keeps the certificates that it trusts, by distribution.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why files or settings cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{file}: {error}")]
    Io {
        /// Which.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{file}: {what}")]
    Content {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// They do not fit together.
    #[error("{0}")]
    Config(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> TlsError {
        TlsError::Config(error.to_string())
    }
}

/// A certificate with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// File of the certificate, and of those between it and a trusted one.
    pub certificate: PathBuf,
    /// File of the key.
    pub key: PathBuf,
}

impl KeyPair {
    /// Reads both.
    pub(crate) fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|error| content(&self.key, format!("no private key: {error}")))?;
        Ok((certificates(&self.certificate)?, key))
    }

    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.certificate.clone(), self.key.clone()]
    }
}

/// Reads trusted certificates.
pub(super) fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| content(file, error.to_string()))?;
    }
    Ok(roots)
}

/// Reads what the system trusts; `SSL_CERT_FILE` may say where that is.
pub(super) fn system_roots() -> Result<RootCertStore, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|file| file.exists());
    let Some(file) = named.or_else(known) else {
        return Err(TlsError::Config("this system has no trusted certificates: name some".to_owned()));
    };
    let mut roots = RootCertStore::empty();
    // Systems trust certificates that are too odd for us; the others are no worse for it.
    roots.add_parsable_certificates(certificates(&file)?);
    Ok(roots)
}

/// Reads revocations, as PEM or bare.
pub(super) fn revocations(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    let lists = lists.map_err(|error| content(file, error.to_string()))?;
    if lists.is_empty() { Ok(vec![bytes.into()]) } else { Ok(lists) }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| content(file, error.to_string()))?;
    if found.is_empty() { Err(content(file, "no certificate in it".to_owned())) } else { Ok(found) }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError::Io { file: file.to_owned(), error })
}

fn content(file: &Path, what: String) -> TlsError {
    TlsError::Content { file: file.to_owned(), what }
}

/// Tells a file from what it was before: written again, replaced, or gone.
type Stamp = Option<(Option<SystemTime>, u64, u64)>;

/// Something that is made of files, and made again when they change.
pub(super) struct Following<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<Arc<T>, TlsError> + Send + Sync>,
    /// What was made last, and of which files.
    made: Mutex<(Vec<Stamp>, Arc<T>)>,
}

impl<T> Following<T> {
    /// Makes it for the first time.
    pub(super) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<Arc<T>, TlsError> + Send + Sync + 'static,
    ) -> Result<Following<T>, TlsError> {
        // Before the files are read: a change meanwhile is found the next time.
        let stamps = stamps(&files);
        let made = Mutex::new((stamps, make()?));
        Ok(Following { files, make: Box::new(make), made })
    }

    /// What the files hold now, or held when they last made sense.
    pub(super) fn get(&self) -> Arc<T> {
        let stamps = stamps(&self.files);
        let mut made = self.made.lock();
        if made.0 != stamps {
            made.0 = stamps;
            match (self.make)() {
                Ok(new) => {
                    made.1 = new;
                    info!(files = ?self.files, "certificates were read again");
                }
                Err(error) => warn!(%error, "certificates changed and cannot be used: the last ones stay"),
            }
        }
        Arc::clone(&made.1)
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
    };
    files.iter().map(stamp).collect()
}
