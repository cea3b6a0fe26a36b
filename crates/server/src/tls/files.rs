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
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::detached;

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

/// How long a handshake waits for files; then it goes by what they held before. A disk may not answer for long.
const PATIENCE: Duration = Duration::from_secs(1);
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
    followed: Arc<Followed<T>>,
    /// Held by whoever looks at the files.
    turn: Arc<Semaphore>,
}

struct Followed<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<Arc<T>, TlsError> + Send + Sync>,
    /// What was made last.
    last: Mutex<Arc<T>>,
    tried: Mutex<Tried>,
}

/// How it was tried last.
struct Tried {
    /// Of which files.
    stamps: Vec<Stamp>,
    /// When that failed, if it did.
    failed: Option<Instant>,
}

impl<T: Send + Sync + 'static> Following<T> {
    /// Makes it for the first time.
    pub(super) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<Arc<T>, TlsError> + Send + Sync + 'static,
    ) -> Result<Following<T>, TlsError> {
        // Before the files are read: a change meanwhile is found the next time.
        let tried = Mutex::new(Tried { stamps: stamps(&files), failed: None });
        let last = Mutex::new(make()?);
        let followed = Followed { files, make: Box::new(make), last, tried };
        Ok(Following { followed: Arc::new(followed), turn: Arc::new(Semaphore::new(1)) })
    }

    /// What the files hold now, or held when they last made sense and could be read in time. They are looked at on a thread for such things, one at a
    /// time: the caller's may carry heartbeats.
    pub(super) async fn get(&self) -> Arc<T> {
        let (turn, followed) = (Arc::clone(&self.turn), Arc::clone(&self.followed));
        let looking = async move {
            let turn = turn.acquire_owned().await;
            let look = move || {
                let _turn = turn;
                followed.look(Instant::now());
            };
            spawn_blocking(look).await
        };
        let _ = timeout(PATIENCE, detached::run(looking)).await;
        self.followed.last()
    }
}

impl<T> Followed<T> {
    fn last(&self) -> Arc<T> {
        Arc::clone(&self.last.lock())
    }

    /// Makes it again if the files changed.
    fn look(&self, now: Instant) {
        let stamps = stamps(&self.files);
        let mut tried = self.tried.lock();
        let is_due = tried.failed.is_some_and(|failed| now.duration_since(failed) >= AGAIN);
        if tried.stamps == stamps && !is_due {
            return;
        }
        tried.stamps = stamps;
        match (self.make)() {
            Ok(new) => {
                *self.last.lock() = new;
                tried.failed = None;
                info!(files = ?self.files, "certificates were read again");
            }
            Err(error) => {
                tried.failed = Some(now);
                warn!(%error, "certificates changed and cannot be used: the last ones stay");
            }
        }
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
    use std::sync::mpsc;

    use super::*;

    /// Follows a file that can be read or not, whoever runs the tests.
    struct TestFiles {
        file: tempfile::NamedTempFile,
        can_be_read: Arc<AtomicBool>,
        tries: Arc<AtomicUsize>,
        following: Following<String>,
    }

    impl TestFiles {
        fn new() -> TestFiles {
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
            TestFiles { file, can_be_read, tries, following: following.unwrap() }
        }

        /// What the files are said to hold at some time.
        fn at(&self, now: Instant) -> Arc<String> {
            self.following.followed.look(now);
            self.following.followed.last()
        }

        /// Writes what cannot be read.
        fn replace(&self) {
            self.can_be_read.store(false, Ordering::Relaxed);
            fs::write(&self.file, "a new one").unwrap();
        }
    }

    /// They stayed unread until their content changed once more.
    #[tokio::test]
    async fn files_that_become_readable_are_read() {
        let followed = TestFiles::new();
        followed.replace();
        assert_eq!(*followed.following.get().await, "old");
        followed.can_be_read.store(true, Ordering::Relaxed);
        let before = stamps(&followed.following.followed.files);
        // The clock of a file system may be coarse.
        while stamps(&followed.following.followed.files) == before {
            fs::set_permissions(&followed.file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert_eq!(*followed.following.get().await, "a new one");
    }

    #[test]
    fn files_that_cannot_be_used_are_tried_again_after_a_while() {
        let followed = TestFiles::new();
        followed.replace();
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(*followed.at(now), "old");
        }
        assert_eq!(followed.tries.load(Ordering::Relaxed), 2, "once when it began");
        followed.can_be_read.store(true, Ordering::Relaxed);
        assert_eq!(*followed.at(now), "old");
        assert_eq!(*followed.at(now + AGAIN), "a new one");
        followed.at(now + 2 * AGAIN);
        assert_eq!(followed.tries.load(Ordering::Relaxed), 3);
    }

    /// Each handshake read files on the thread of its connection, which carries the heartbeats of others, and waited for a disk that hangs.
    #[tokio::test]
    async fn nobody_waits_long_for_files_that_cannot_be_read() {
        let (end, ended) = mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        let file = tempfile::NamedTempFile::new().unwrap();
        let tries = AtomicUsize::new(0);
        let following = Following::new(vec![file.path().to_owned()], move || {
            let number = tries.fetch_add(1, Ordering::Relaxed);
            if number > 0 {
                let _ = ended.lock().recv();
            }
            Ok(Arc::new(number))
        });
        let following = following.unwrap();
        fs::write(&file, "new").unwrap();
        // Others have their turns on this thread meanwhile.
        let (gets, others) = tokio::join!(following.get(), async {
            tokio::task::yield_now().await;
            "others"
        });
        assert_eq!((*gets, others), (0, "others"));
        assert_eq!(*following.get().await, 0, "it still hangs");
        drop(end);
        while *following.get().await == 0 {}
    }
}
