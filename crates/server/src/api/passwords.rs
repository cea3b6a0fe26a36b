//! Passwords: bcrypt, as in etcd, whose hashes are understood and the other way round.
//!
//! Hashing is slow on purpose. It happens apart, one at a time, so that neither calls nor long reads wait for it; the log gets the hash only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bcrypt::Version;
use bytes::Bytes;
use tonic::Status;

use super::apart::Apart;

/// bcrypt looks at no more.
const PASSWORD_BYTES_MAX: usize = 72;

/// Hashes and compares.
pub(super) struct Passwords {
    cost: u32,
    hashing: Apart,
}

impl Passwords {
    /// `cost` is the binary logarithm of the number of rounds.
    pub(super) fn new(cost: u32) -> Passwords {
        Passwords { cost, hashing: Apart::new() }
    }

    /// Those of another keyspace.
    pub(super) fn for_another(&self) -> Passwords {
        Passwords { cost: self.cost, hashing: self.hashing.for_another() }
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
        let is_it = move |hash: &str| bcrypt::verify(password, hash).unwrap_or(false);
        self.hashing.run(move |_| std::str::from_utf8(&hash).is_ok_and(is_it)).await
    }
}
