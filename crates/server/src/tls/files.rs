//! Certificates, keys and revocations in PEM files, and configurations that follow their files.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

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

/// How long files that could not be used are left alone, if they stay as they are: whether they can be read is not only up to them.
const AGAIN: Duration = Duration::from_secs(10);

/// Tells a file from what it was before: written again, replaced, made readable, or gone.
type Stamp = Option<Stamped>;

#[derive(Debug, PartialEq, Eq)]
struct Stamped {
    modified: Option<SystemTime>,
    /// When its mode or owner changed last, if not its content, in seconds and nanoseconds.
    changed: (i64, i64),
    bytes: u64,
    inode: u64,
}

/// Something that is made of files, and made again when they change.
pub(super) struct Following<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<Arc<T>, TlsError> + Send + Sync>,
    made: Mutex<Made<T>>,
}

struct Made<T> {
    /// What was made last.
    last: Arc<T>,
    /// Of which files that was tried last.
    tried: Vec<Stamp>,
    /// When that failed, if it did.
    failed: Option<Instant>,
}

impl<T> Following<T> {
    /// Makes it for the first time.
    pub(super) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<Arc<T>, TlsError> + Send + Sync + 'static,
    ) -> Result<Following<T>, TlsError> {
        // Before the files are read: a change meanwhile is found the next time.
        let tried = stamps(&files);
        let made = Mutex::new(Made { last: make()?, tried, failed: None });
        Ok(Following { files, make: Box::new(make), made })
    }

    /// What the files hold now, or held when they last made sense.
    pub(super) fn get(&self) -> Arc<T> {
        self.get_at(Instant::now())
    }

    fn get_at(&self, now: Instant) -> Arc<T> {
        let stamps = stamps(&self.files);
        let mut made = self.made.lock();
        if made.tried != stamps || made.failed.is_some_and(|failed| now.duration_since(failed) >= AGAIN) {
            made.tried = stamps;
            match (self.make)() {
                Ok(new) => {
                    (made.last, made.failed) = (new, None);
                    info!(files = ?self.files, "certificates were read again");
                }
                Err(error) => {
                    made.failed = Some(now);
                    warn!(%error, "certificates changed and cannot be used: the last ones stay");
                }
            }
        }
        Arc::clone(&made.last)
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Stamped {
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            bytes: metadata.len(),
            inode: metadata.ino(),
        })
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// Follows a file that can be read or not, whoever runs the tests.
    struct Followed {
        file: tempfile::NamedTempFile,
        can_be_read: Arc<AtomicBool>,
        tries: Arc<AtomicUsize>,
        following: Following<String>,
    }

    impl Followed {
        fn new() -> Followed {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(&file, "old").unwrap();
            let (path, can_be_read) = (file.path().to_owned(), Arc::new(AtomicBool::new(true)));
            let (can, tries) = (Arc::clone(&can_be_read), Arc::new(AtomicUsize::new(0)));
            let tried = Arc::clone(&tries);
            let following = Following::new(vec![path.clone()], move || {
                tried.fetch_add(1, Ordering::Relaxed);
                match can.load(Ordering::Relaxed) {
                    true => Ok(Arc::new(String::from_utf8(read(&path)?).unwrap())),
                    false => Err(content(&path, "permission denied".to_owned())),
                }
            });
            Followed { file, can_be_read, tries, following: following.unwrap() }
        }

        /// Writes what cannot be read.
        fn replace(&self) {
            self.can_be_read.store(false, Ordering::Relaxed);
            fs::write(&self.file, "a new one").unwrap();
        }
    }

    /// They stayed unread until their content changed once more.
    #[test]
    fn files_that_become_readable_are_read() {
        let followed = Followed::new();
        followed.replace();
        assert_eq!(*followed.following.get(), "old");
        followed.can_be_read.store(true, Ordering::Relaxed);
        let before = stamps(&followed.following.files);
        // The clock of a file system may be coarse.
        while stamps(&followed.following.files) == before {
            fs::set_permissions(&followed.file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert_eq!(*followed.following.get(), "a new one");
    }

    #[test]
    fn files_that_cannot_be_used_are_tried_again_after_a_while() {
        let followed = Followed::new();
        followed.replace();
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(*followed.following.get_at(now), "old");
        }
        assert_eq!(followed.tries.load(Ordering::Relaxed), 2, "once when it began");
        followed.can_be_read.store(true, Ordering::Relaxed);
        assert_eq!(*followed.following.get_at(now), "old");
        assert_eq!(*followed.following.get_at(now + AGAIN), "a new one");
        followed.following.get_at(now + 2 * AGAIN);
        assert_eq!(followed.tries.load(Ordering::Relaxed), 3);
    }
}
