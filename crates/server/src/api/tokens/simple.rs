//! Tokens that the nodes of a cluster make for themselves.
//!
//! A token says whose it is and when it was made on the group's clock, and is signed with the secret that was chosen when
//! authentication was switched on and with the hash of the user's password: so every node can tell, and a new password, a user
//! that was deleted, or switching off ends all tokens concerned. As in etcd a token ends when it was not used for a while;
//! each node knows of the uses that it saw. That it ended stays so, since the time is logged (`stamps`).
//!
//! `payload "." signature`, both in base64 for URLs without padding. The payload: a version (1), the time (8 bytes, big
//! endian), a random number (8), the name. The signature: HMAC-SHA-256 of the payload, the key being the secret and the hash
//! one after the other (the secret has a fixed size).

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hadron_keyspace::Keyspace;
use hadron_keyspace::auth::{Caller, Credentials};
use parking_lot::Mutex;
use ring::hmac;

const VERSION: u8 = 1;
/// Version, time, random number.
const HEAD_BYTES: usize = 17;
/// Longer ones are nobody's; they are not worth the look.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Uses that are remembered before those that count no more are forgotten.
const USES_KEPT: usize = 1024;

/// Makes and checks those of one keyspace: times are on its group's clock.
#[derive(Debug)]
pub(super) struct Simple {
    ttl_ms: u64,
    uses: Mutex<Uses>,
}

/// When each token was last used, by the first bytes of its signature.
#[derive(Debug, Default)]
struct Uses {
    last: HashMap<[u8; 16], u64>,
    /// How many there were after the last time that old ones were forgotten.
    kept: usize,
}

impl Simple {
    pub(super) fn new(ttl: Duration) -> Simple {
        Simple { ttl_ms: ttl.as_millis().try_into().unwrap_or(u64::MAX), uses: Mutex::default() }
    }

    /// The same for another keyspace.
    pub(super) fn for_another(&self) -> Simple {
        Simple { ttl_ms: self.ttl_ms, uses: Mutex::default() }
    }

    /// How long a token is good for after each use.
    pub(super) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    pub(super) fn assign(&self, name: &str, credentials: &Credentials, clock_ms: u64) -> String {
        let mut payload = vec![VERSION];
        payload.extend(clock_ms.to_be_bytes());
        payload.extend(rand::random::<u64>().to_be_bytes());
        payload.extend(name.as_bytes());
        let signature = hmac::sign(&key(credentials), &payload);
        format!("{}.{}", BASE64.encode(&payload), BASE64.encode(signature))
    }

    pub(super) fn caller(&self, token: &str, keyspace: &Keyspace, clock_ms: u64) -> Option<Caller> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (payload, signature) = token.split_once('.')?;
        let (payload, signature) = (BASE64.decode(payload).ok()?, BASE64.decode(signature).ok()?);
        let (head, name) = payload.split_at_checked(HEAD_BYTES)?;
        let (version, rest) = head.split_first()?;
        if *version != VERSION {
            return None;
        }
        let made_ms = u64::from_be_bytes(*rest.first_chunk()?);
        let name = std::str::from_utf8(name).ok()?;
        let credentials = keyspace.credentials(name).filter(|credentials| !credentials.secret.is_empty())?;
        hmac::verify(&key(&credentials), &payload, &signature).ok()?;
        let lives = self.uses.lock().note(*signature.first_chunk()?, made_ms, clock_ms, self.ttl_ms);
        lives.then(|| Caller { name: name.to_owned(), auth_revision: credentials.auth_revision })
    }
}

impl Uses {
    /// Notes a use, unless the last one is too long ago.
    fn note(&mut self, token: [u8; 16], made_ms: u64, clock_ms: u64, ttl_ms: u64) -> bool {
        let lives = |last: u64| last.saturating_add(ttl_ms) > clock_ms;
        let last = self.last.get(&token).copied().unwrap_or(0).max(made_ms);
        if !lives(last) {
            self.last.remove(&token);
            return false;
        }
        self.last.insert(token, last.max(clock_ms));
        if self.last.len() > USES_KEPT.max(2 * self.kept) {
            self.last.retain(|_, last| lives(*last));
            self.kept = self.last.len();
        }
        true
    }
}

fn key(credentials: &Credentials) -> hmac::Key {
    let hash = credentials.password_hash.as_deref().unwrap_or_default();
    hmac::Key::new(hmac::HMAC_SHA256, &[&credentials.secret, hash].concat())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_it_is_used_and_old_ones_are_forgotten() {
        let mut uses = Uses::default();
        let token = |number: u32| {
            let mut token = [0; 16];
            token[..4].copy_from_slice(&number.to_be_bytes());
            token
        };
        assert!(uses.note(token(0), 1_000, 1_299, 300));
        assert!(uses.note(token(0), 1_000, 1_598, 300));
        assert!(!uses.note(token(0), 1_000, 1_898, 300));
        assert!(uses.last.is_empty());
        for number in 0..10_000 {
            assert!(uses.note(token(number), u64::from(number), u64::from(number), 300));
        }
        assert!(uses.last.len() <= USES_KEPT + 1, "{}", uses.last.len());
    }
}
