//! Passwords: bcrypt, as in etcd, whose hashes are understood and the other way round.
//!
//! Hashing is slow on purpose. It happens on threads beside the connections, a few at a time, so that neither calls nor other
//! long reads wait for it; the log gets the hash only. A keyspace waits for its own turn before it waits for one of the node, so that
//! keyspaces take turns however many logins each of them gets.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bcrypt::Version;
use bytes::Bytes;
use tokio::sync::Semaphore;
use tonic::Status;

use super::error::EtcdError;

/// bcrypt looks at no more.
const PASSWORD_BYTES_MAX: usize = 72;
/// How many are hashed at the same time. Each worker has one more thread for long reads.
const AT_ONCE: usize = 1;

/// Hashes and compares.
pub(super) struct Passwords {
    cost: u32,
    /// The keyspace's.
    own_turns: Semaphore,
    /// The node's.
    turns: Arc<Semaphore>,
}

impl Passwords {
    /// `cost` is the binary logarithm of the number of rounds.
    pub(super) fn new(cost: u32) -> Passwords {
        Passwords { cost, own_turns: Semaphore::new(AT_ONCE), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Those of another keyspace.
    pub(super) fn for_another(&self) -> Passwords {
        let turns = Arc::clone(&self.turns);
        Passwords { cost: self.cost, own_turns: Semaphore::new(AT_ONCE), turns }
    }

    /// The hash of a new password, as requests carry it.
    pub(super) async fn hash(&self, password: String) -> Result<String, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Status::unknown("bcrypt: password length exceeds 72 bytes"));
        }
        let cost = self.cost;
        let hash = self.beside(move || bcrypt::hash_with_result(password, cost)).await?;
        let hash =
            hash.map_err(|error| Status::internal(format!("hadron: cannot hash a password: {error}")))?;
        Ok(BASE64.encode(hash.format_for_version(Version::TwoA)))
    }

    /// Whether a password has this hash.
    pub(super) async fn is(&self, password: String, hash: Bytes) -> Result<bool, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        self.beside(move || {
            std::str::from_utf8(&hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
        })
        .await
    }

    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        // They are never closed; the runtime may be.
        let _own_turn = self.own_turns.acquire().await.map_err(|_| EtcdError::Stopped)?;
        let _turn = self.turns.acquire().await.map_err(|_| EtcdError::Stopped)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| EtcdError::Stopped.into())
    }
}
