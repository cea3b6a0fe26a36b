//! Passwords: bcrypt, as in etcd, whose hashes are understood and the other way round.
//!
//! Hashing is slow on purpose. It happens apart, one at a time, so that neither calls nor long reads wait for it; the log gets the hash only.
//!
//! etcd's Go client logs in anew for every stream that it opens, and after a restart of a node all do at once. So a password that was
//! right is known from then on, in memory and under a key that nobody has, and is not compared slowly again. One that is wrong always is.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bcrypt::Version;
use bytes::Bytes;
use parking_lot::RwLock;
use ring::hmac;
use tonic::Status;

use super::apart::Apart;

/// bcrypt looks at no more.
const PASSWORD_BYTES_MAX: usize = 72;
/// Passwords that are known to be right. Beyond, they are forgotten and compared anew.
const KNOWN_MAX: usize = 10_000;

/// Hashes and compares.
pub(super) struct Passwords {
    cost: u32,
    hashing: Apart,
    known: Arc<Known>,
}

/// Passwords that were compared with their hashes, and were right.
struct Known {
    /// Of this process alone.
    key: hmac::Key,
    /// By their hashes, each of which has a salt of its own.
    tags: RwLock<HashMap<Bytes, hmac::Tag>>,
}

impl Known {
    fn new() -> Known {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>());
        Known { key, tags: RwLock::default() }
    }

    fn has(&self, password: &str, hash: &Bytes) -> bool {
        let tags = self.tags.read();
        tags.get(hash).is_some_and(|tag| hmac::verify(&self.key, password.as_bytes(), tag.as_ref()).is_ok())
    }

    fn add(&self, password: &str, hash: Bytes) {
        let mut tags = self.tags.write();
        if tags.len() >= KNOWN_MAX {
            tags.clear();
        }
        tags.insert(hash, hmac::sign(&self.key, password.as_bytes()));
    }
}

impl Passwords {
    /// `cost` is the binary logarithm of the number of rounds.
    pub(super) fn new(cost: u32) -> Passwords {
        Passwords { cost, hashing: Apart::new(), known: Arc::new(Known::new()) }
    }

    /// Those of another keyspace.
    pub(super) fn for_another(&self) -> Passwords {
        let hashing = self.hashing.for_another();
        Passwords { cost: self.cost, hashing, known: Arc::clone(&self.known) }
    }

    /// The hash of a new password, as requests carry it.
    pub(super) async fn hash(&self, password: String) -> Result<String, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Status::unknown("bcrypt: password length exceeds 72 bytes"));
        }
        let cost = self.cost;
        let hash = self.hashing.run(move |_| bcrypt::hash_with_result(password, cost)).await?;
        let hash =
            hash.map_err(|error| Status::internal(format!("hadron: cannot hash a password: {error}")))?;
        Ok(BASE64.encode(hash.format_for_version(Version::TwoA)))
    }

    /// Whether a password has this hash.
    pub(super) async fn is(&self, password: String, hash: Bytes) -> Result<bool, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        if self.known.has(&password, &hash) {
            return Ok(true);
        }
        let known = Arc::clone(&self.known);
        self.hashing
            .run(move |_| {
                // It may have become known while it waited.
                let is_right = known.has(&password, &hash)
                    || std::str::from_utf8(&hash)
                        .is_ok_and(|hash| bcrypt::verify(&password, hash).unwrap_or(false));
                if is_right {
                    known.add(&password, hash);
                }
                is_right
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::pin::pin;
    use std::sync::mpsc;

    use futures::poll;

    use super::*;

    /// After a restart hundreds of clients with a few users waited for minutes, and leases ended meanwhile whose keep-alives came behind them.
    #[tokio::test]
    async fn a_password_that_was_right_waits_for_nobody() {
        let passwords = Passwords::new(4);
        let hash: Bytes = BASE64.decode(passwords.hash("right".into()).await.unwrap()).unwrap().into();
        assert!(passwords.is("right".into(), hash.clone()).await.unwrap());
        let another = passwords.for_another();
        let (end, ended) = mpsc::channel::<()>();
        let mut busy = pin!(passwords.hashing.run(move |_| ended.recv().is_err()));
        assert!(poll!(busy.as_mut()).is_pending());
        tokio::task::yield_now().await;
        for passwords in [&passwords, &another] {
            assert!(passwords.is("right".into(), hash.clone()).await.unwrap());
        }
        // Nothing else is known by that.
        let mut wrong = pin!(passwords.is("wrong".into(), hash.clone()));
        assert!(poll!(wrong.as_mut()).is_pending());
        drop(end);
        assert!(!wrong.await.unwrap());
        assert!(!passwords.is("".into(), hash).await.unwrap());
    }

    #[test]
    fn few_passwords_are_known() {
        let known = Known::new();
        for number in 0..KNOWN_MAX + 5 {
            known.add("p", number.to_string().into());
        }
        assert_eq!(known.tags.read().len(), 5);
        assert!(known.has("p", &KNOWN_MAX.to_string().into()));
        assert!(!known.has("q", &KNOWN_MAX.to_string().into()));
    }
}
