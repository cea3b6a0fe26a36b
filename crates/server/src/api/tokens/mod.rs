//! Tokens: what `Authenticate` gives to a user, who shows it with every call.
//!
//! Two kinds, as in etcd: those that the nodes of a cluster make for themselves (`simple`), and JSON web tokens, whose
//! keys the operator provides (`jwt`). Neither is logged or stored: any node can tell from the token itself whose it is.
//!
//! A token is worth something in one keyspace only. A simple one is signed with a secret that each keyspace has of its own; a JSON web
//! token, whose key is the same for all, names the keyspace.

mod jwt;
mod simple;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hadron_keyspace::Keyspace;
use hadron_keyspace::auth::{Caller, Credentials};
use tonic::Status;

use jwt::Jwt;
use simple::Simple;

/// Which tokens users get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenOptions {
    /// Those of this cluster, which are good for so long after each use.
    Simple(Duration),
    /// JSON web tokens.
    Jwt(JwtOptions),
}

/// How JSON web tokens are signed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// The name of the method, as in the token's header: `RS256`, say.
    pub sign_method: String,
    /// The file with the public key in PEM.
    pub public_key: Option<PathBuf>,
    /// The file with the private key in PEM, or with the secret of an HMAC.
    pub private_key: Option<PathBuf>,
    /// How long a token is good for.
    pub ttl: Duration,
}

/// Why there can be no tokens as they were asked for.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file cannot be read.
    #[error("--auth-token: {}: {error}", file.display())]
    File {
        /// Which one.
        file: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("--auth-token: {}: not a key for {method} in PEM: {error}", file.display())]
    Key {
        /// Which one.
        file: PathBuf,
        /// What for.
        method: String,
        /// What is wrong.
        error: String,
    },
    /// Two files do not belong together.
    #[error("--auth-token: {}: not the public key of {}", public.display(), private.display())]
    Mismatch {
        /// The one with the public key.
        public: PathBuf,
        /// The one with the private key.
        private: PathBuf,
    },
    /// A method that is not known.
    #[error(
        "--auth-token: sign-method={0:?}: expected RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, HS256, \
         HS384 or HS512"
    )]
    Method(String),
    /// A key that the method needs is not named.
    #[error("--auth-token: sign-method={method} needs {needs}")]
    Missing {
        /// The method.
        method: String,
        /// Which option.
        needs: &'static str,
    },
}

/// The keyspace whose users a token is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Home<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// What its answers carry, which no other keyspace ever has.
    pub(super) cluster_id: u64,
}

/// Makes and checks tokens of one kind, those of one keyspace.
#[derive(Debug)]
pub struct Tokens(Kind);

#[derive(Debug)]
enum Kind {
    Simple(Simple),
    Jwt(Arc<Jwt>),
}

impl Default for Tokens {
    /// etcd's default: simple ones, five minutes.
    fn default() -> Tokens {
        Tokens(Kind::Simple(Simple::new(Duration::from_secs(300))))
    }
}

impl Tokens {
    /// Reads the keys, if there are any.
    ///
    /// # Errors
    /// What is wrong with the options or the files they name.
    pub fn new(options: &TokenOptions) -> Result<Tokens, TokenError> {
        Ok(Tokens(match options {
            TokenOptions::Simple(ttl) => Kind::Simple(Simple::new(*ttl)),
            TokenOptions::Jwt(options) => Kind::Jwt(Arc::new(Jwt::new(options)?)),
        }))
    }

    /// The same for another keyspace, whose clock is another: what is remembered of uses is its own.
    pub(super) fn for_another(&self) -> Tokens {
        Tokens(match &self.0 {
            Kind::Simple(simple) => Kind::Simple(simple.for_another()),
            Kind::Jwt(jwt) => Kind::Jwt(Arc::clone(jwt)),
        })
    }

    /// How long tokens are good for after each use; `None` for those that say so themselves, on another clock than the group's.
    pub(super) fn ttl(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Simple(simple) => Some(simple.ttl()),
            Kind::Jwt(_) => None,
        }
    }

    /// A token for a user who was authenticated with these credentials. `clock_ms` is the group's clock.
    pub(super) fn assign(
        &self,
        name: &str,
        home: Home<'_>,
        credentials: &Credentials,
        clock_ms: u64,
    ) -> Result<String, Status> {
        match &self.0 {
            Kind::Simple(simple) => Ok(simple.assign(name, credentials, clock_ms)),
            Kind::Jwt(jwt) => jwt.assign(name, home, credentials.auth_revision),
        }
    }

    /// Whose token it is; `None` if it is nobody's, or not any more.
    pub(super) fn caller(
        &self,
        token: &str,
        home: Home<'_>,
        keyspace: &Keyspace,
        clock_ms: u64,
    ) -> Option<Caller> {
        match &self.0 {
            Kind::Simple(simple) => simple.caller(token, keyspace, clock_ms),
            Kind::Jwt(jwt) => jwt.caller(token, home),
        }
    }
}
