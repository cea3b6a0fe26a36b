//! JSON web tokens (RFC 7519), with etcd's claims: `username`, `revision`, `exp`.
//!
//! A token names the auth revision at which it was made. After any change of users or roles it is refused with `revision of
//! auth store is old`, and clients authenticate again, as with etcd.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hadron_keyspace::auth::Caller;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{JwtOptions, TokenError};

/// Makes and checks them.
pub(super) struct Jwt {
    method: Algorithm,
    /// `None` if only the public key is known: tokens are made elsewhere.
    signing: Option<EncodingKey>,
    checking: DecodingKey,
    validation: Validation,
    ttl: Duration,
}

/// Without the keys.
impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Jwt({:?}, {:?})", self.method, self.ttl)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    username: String,
    /// Others than etcd may write it as a fraction.
    revision: serde_json::Number,
    #[serde(default)]
    exp: u64,
}

/// What kind of key a method takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    Ec,
    Ed,
    Hmac,
}

/// The method of that name, as tokens' headers have it.
fn method(name: &str) -> Result<(Algorithm, Family), TokenError> {
    Ok(match name {
        "RS256" => (Algorithm::RS256, Family::Rsa),
        "RS384" => (Algorithm::RS384, Family::Rsa),
        "RS512" => (Algorithm::RS512, Family::Rsa),
        "PS256" => (Algorithm::PS256, Family::Rsa),
        "PS384" => (Algorithm::PS384, Family::Rsa),
        "PS512" => (Algorithm::PS512, Family::Rsa),
        "ES256" => (Algorithm::ES256, Family::Ec),
        "ES384" => (Algorithm::ES384, Family::Ec),
        "EdDSA" => (Algorithm::EdDSA, Family::Ed),
        "HS256" => (Algorithm::HS256, Family::Hmac),
        "HS384" => (Algorithm::HS384, Family::Hmac),
        "HS512" => (Algorithm::HS512, Family::Hmac),
        _ => return Err(TokenError::Method(name.to_owned())),
    })
}

impl Jwt {
    pub(super) fn new(options: &JwtOptions) -> Result<Jwt, TokenError> {
        let (method, family) = method(&options.sign_method)?;
        let (signing, checking) = keys(options, family)?;
        let mut validation = Validation::new(method);
        validation.leeway = 0;
        validation.validate_aud = false;
        // As in etcd a token made elsewhere may be good for ever.
        validation.required_spec_claims.clear();
        Ok(Jwt { method, signing, checking, validation, ttl: options.ttl })
    }

    pub(super) fn assign(&self, name: &str, revision: u64) -> Result<String, Status> {
        let Some(key) = &self.signing else {
            return Err(Status::unknown("auth: token signing attempted with verify-only key"));
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let exp = (now + self.ttl).as_secs();
        let claims = Claims { username: name.to_owned(), revision: revision.into(), exp };
        encode(&Header::new(self.method), &claims, key)
            .map_err(|error| Status::unknown(format!("hadron: cannot sign a token: {error}")))
    }

    pub(super) fn caller(&self, token: &str) -> Option<Caller> {
        // Without the claim, `exp` is not looked at.
        let claims = decode::<Claims>(token, &self.checking, &self.validation).ok()?.claims;
        let whole = claims.revision.as_u64();
        let auth_revision = whole.or_else(|| claims.revision.as_f64().map(|revision| revision as u64))?;
        Some(Caller { name: claims.username, auth_revision })
    }
}

/// Reads a key from PEM.
type Load<K> = fn(&[u8]) -> Result<K, jsonwebtoken::errors::Error>;

fn keys(options: &JwtOptions, family: Family) -> Result<(Option<EncodingKey>, DecodingKey), TokenError> {
    let missing = |needs| TokenError::Missing { method: options.sign_method.clone(), needs };
    let wrong = |file: &Path, error: jsonwebtoken::errors::Error| TokenError::Key {
        file: file.to_owned(),
        method: options.sign_method.clone(),
        error: error.to_string(),
    };
    if family == Family::Hmac {
        let secret = read(options.private_key.as_deref().ok_or_else(|| missing("priv-key=FILE"))?)?;
        return Ok((Some(EncodingKey::from_secret(&secret)), DecodingKey::from_secret(&secret)));
    }
    let (private, public): (Load<EncodingKey>, Load<DecodingKey>) = match family {
        Family::Rsa => (EncodingKey::from_rsa_pem, DecodingKey::from_rsa_pem),
        Family::Ec => (EncodingKey::from_ec_pem, DecodingKey::from_ec_pem),
        Family::Ed | Family::Hmac => (EncodingKey::from_ed_pem, DecodingKey::from_ed_pem),
    };
    let signing = match &options.private_key {
        Some(file) => Some(private(&read(file)?).map_err(|error| wrong(file, error))?),
        None => None,
    };
    let file = options.public_key.as_deref().ok_or_else(|| missing("pub-key=FILE"))?;
    Ok((signing, public(&read(file)?).map_err(|error| wrong(file, error))?))
}

fn read(file: &Path) -> Result<Vec<u8>, TokenError> {
    fs::read(file).map_err(|error| TokenError::File { file: file.to_owned(), error })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn options(method: &str, directory: &Path) -> JwtOptions {
        JwtOptions {
            sign_method: method.into(),
            public_key: Some(directory.join("public")),
            private_key: Some(directory.join("private")),
            ttl: Duration::from_secs(60),
        }
    }

    #[test]
    fn whoever_has_the_key_makes_tokens_and_others_check_them() {
        let directory = tempfile::tempdir().unwrap();
        for (name, kind) in
            [("ES256", &PKCS_ECDSA_P256_SHA256), ("ES384", &PKCS_ECDSA_P384_SHA384), ("EdDSA", &PKCS_ED25519)]
        {
            let pair = KeyPair::generate_for(kind).unwrap();
            fs::write(directory.path().join("private"), pair.serialize_pem()).unwrap();
            fs::write(directory.path().join("public"), pair.public_key_pem()).unwrap();
            let options = options(name, directory.path());
            let token = Jwt::new(&options).unwrap().assign("alice", 7).unwrap();
            let only_checks = Jwt::new(&JwtOptions { private_key: None, ..options }).unwrap();
            let caller = Caller { name: "alice".into(), auth_revision: 7 };
            assert_eq!(only_checks.caller(&token), Some(caller), "{name}");
            assert_eq!(only_checks.caller(&token[..token.len() - 2]), None);
            let error = only_checks.assign("alice", 7).unwrap_err();
            assert_eq!(error.message(), "auth: token signing attempted with verify-only key");
        }
    }

    #[test]
    fn a_token_ends_and_one_without_an_end_does_not() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("private"), "secret").unwrap();
        let options = JwtOptions { ttl: Duration::ZERO, ..options("HS256", directory.path()) };
        let jwt = Jwt::new(&options).unwrap();
        let claims = |claims: serde_json::Value| {
            encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(b"secret")).unwrap()
        };
        let past = claims(serde_json::json!({"username": "a", "revision": 3, "exp": 1_000_000_000}));
        assert_eq!(jwt.caller(&past), None);
        let endless = claims(serde_json::json!({"username": "a", "revision": 3.0}));
        assert_eq!(jwt.caller(&endless), Some(Caller { name: "a".into(), auth_revision: 3 }));
        assert_eq!(jwt.caller(&claims(serde_json::json!({"username": "a"}))), None);
        assert_eq!(jwt.caller("no.token.atall"), None);
    }

    #[test]
    fn options_that_cannot_work_are_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let refusal = |options: JwtOptions| Jwt::new(&options).unwrap_err().to_string();
        let text = refusal(options("ES512", directory.path()));
        assert!(text.starts_with("--auth-token: sign-method=\"ES512\": expected RS256"), "{text}");
        let text = refusal(options("RS256", directory.path()));
        assert!(text.contains("private: No such file"), "{text}");
        fs::write(directory.path().join("private"), "nonsense").unwrap();
        let text = refusal(options("RS256", directory.path()));
        assert!(text.contains("not a key for RS256 in PEM"), "{text}");
        let text = refusal(JwtOptions { private_key: None, ..options("HS256", directory.path()) });
        assert_eq!(text, "--auth-token: sign-method=HS256 needs priv-key=FILE");
        let none = JwtOptions { private_key: None, public_key: None, ..options("ES256", directory.path()) };
        assert_eq!(refusal(none), "--auth-token: sign-method=ES256 needs pub-key=FILE");
    }
}
