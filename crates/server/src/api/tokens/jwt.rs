//! JSON web tokens (RFC 7519), with etcd's claims: `username`, `revision`, `exp`.
//!
//! A token names the auth revision at which it was made. After any change of users or roles it is refused with `revision of
//! auth store is old`, and clients authenticate again, as with etcd.
//!
//! One for users of another keyspace than `default` has the claim `keyspace`, its name, and those made here also `cluster_id`, which
//! tells the keyspace from a later one of its name. One without the claim is for `default`, as etcd's are.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hadron_keyspace::auth::Caller;
use hadron_node::DEFAULT_KEYSPACE;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Home, JwtOptions, TokenError};

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
    /// Others may write it as a fraction; it is looked at before these are read.
    #[serde(skip_deserializing)]
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyspace: Option<String>,
    /// In hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_id: Option<String>,
}

impl Claims {
    fn is_for(&self, home: Home<'_>) -> bool {
        let is_same = |id: &String| *id == format!("{:x}", home.cluster_id);
        self.keyspace.as_deref().unwrap_or(DEFAULT_KEYSPACE) == home.name
            && self.cluster_id.as_ref().is_none_or(is_same)
    }
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
        // One that was made for later is not good yet; with `exp` that is what etcd's library checks.
        validation.validate_nbf = true;
        // As in etcd a token made elsewhere may be good for ever.
        validation.required_spec_claims.clear();
        Ok(Jwt { method, signing, checking, validation, ttl: options.ttl })
    }

    pub(super) fn assign(&self, name: &str, home: Home<'_>, revision: u64) -> Result<String, Status> {
        let Some(key) = &self.signing else {
            return Err(Status::unknown("auth: token signing attempted with verify-only key"));
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let exp = (now + self.ttl).as_secs();
        let is_tenant = home.name != DEFAULT_KEYSPACE;
        let claims = Claims {
            username: name.to_owned(),
            revision: revision.into(),
            exp,
            keyspace: is_tenant.then(|| home.name.to_owned()),
            cluster_id: is_tenant.then(|| format!("{:x}", home.cluster_id)),
        };
        encode(&Header::new(self.method), &claims, key)
            .map_err(|error| Status::unknown(format!("hadron: cannot sign a token: {error}")))
    }

    pub(super) fn caller(&self, token: &str, home: Home<'_>) -> Option<Caller> {
        // Without the claim, `exp` is not looked at.
        let claims = decode::<Claims>(token, &self.checking, &self.validation).ok()?.claims;
        if !claims.is_for(home) {
            return None;
        }
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

    const DEFAULT: Home<'static> = Home { name: "default", cluster_id: 1 };

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
            let token = Jwt::new(&options).unwrap().assign("alice", DEFAULT, 7).unwrap();
            let only_checks = Jwt::new(&JwtOptions { private_key: None, ..options }).unwrap();
            let caller = Caller { name: "alice".into(), auth_revision: 7 };
            assert_eq!(only_checks.caller(&token, DEFAULT), Some(caller), "{name}");
            assert_eq!(only_checks.caller(&token[..token.len() - 2], DEFAULT), None);
            let error = only_checks.assign("alice", DEFAULT, 7).unwrap_err();
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
        assert_eq!(jwt.caller(&past, DEFAULT), None);
        let endless = claims(serde_json::json!({"username": "a", "revision": 3.0}));
        assert_eq!(jwt.caller(&endless, DEFAULT), Some(Caller { name: "a".into(), auth_revision: 3 }));
        // Others write fractions.
        for (end, is_good) in [(1e9 + 0.5, false), (9e9, true), (9e9 + 0.5, true)] {
            let claims = claims(serde_json::json!({"username": "a", "revision": 3, "exp": end}));
            assert_eq!(jwt.caller(&claims, DEFAULT).is_some(), is_good, "{end}");
        }
        assert_eq!(jwt.caller(&claims(serde_json::json!({"username": "a"})), DEFAULT), None);
        assert_eq!(jwt.caller("no.token.atall", DEFAULT), None);
    }

    #[test]
    fn a_token_that_is_made_for_later_is_not_good_yet() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("private"), "secret").unwrap();
        let jwt = Jwt::new(&options("HS256", directory.path())).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let is_good = |nbf: u64| {
            let claims = serde_json::json!({"username": "a", "revision": 3, "exp": now + 9_000, "nbf": nbf});
            let key = EncodingKey::from_secret(b"secret");
            jwt.caller(&encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap(), DEFAULT).is_some()
        };
        assert_eq!([now - 60, now, now + 3_600].map(is_good), [true, true, false]);
    }

    #[test]
    fn a_token_of_one_keyspace_is_worth_nothing_in_another() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("private"), "secret").unwrap();
        let jwt = Jwt::new(&options("HS256", directory.path())).unwrap();
        let home = |name, cluster_id| Home { name, cluster_id };
        let homes = [DEFAULT, home("a", 2), home("b", 3), home("a", 4)];
        for (made, maker) in homes.iter().enumerate() {
            let token = jwt.assign("root", *maker, 7).unwrap();
            for (shown, place) in homes.iter().enumerate() {
                assert_eq!(jwt.caller(&token, *place).is_some(), made == shown, "{maker:?} {place:?}");
            }
        }
        let elsewhere = serde_json::json!({"username": "root", "revision": 7, "keyspace": "a"});
        let token =
            encode(&Header::new(Algorithm::HS256), &elsewhere, &EncodingKey::from_secret(b"secret")).unwrap();
        let good: Vec<bool> = homes.iter().map(|home| jwt.caller(&token, *home).is_some()).collect();
        assert_eq!(good, [false, true, false, true], "whoever makes tokens elsewhere knows names only");
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
