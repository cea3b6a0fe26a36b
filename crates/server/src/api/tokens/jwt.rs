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
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, crypto, decode, encode};
use rustls::pki_types::PrivateSec1KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Home, JwtOptions, TokenError};

/// What is signed to see whether two keys belong together.
const PROBE: &[u8] = b"hadron";

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
        let (signing, checking) = keys(options, method, family)?;
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

type KeyError = jsonwebtoken::errors::Error;

/// Reads a key from PEM.
type Load<K> = fn(&[u8]) -> Result<K, KeyError>;

fn keys(
    options: &JwtOptions,
    method: Algorithm,
    family: Family,
) -> Result<(Option<EncodingKey>, DecodingKey), TokenError> {
    let missing = |needs| TokenError::Missing { method: options.sign_method.clone(), needs };
    let wrong = |file: &Path, error: KeyError| TokenError::Key {
        file: file.to_owned(),
        method: options.sign_method.clone(),
        error: error.to_string(),
    };
    if family == Family::Hmac {
        let secret = read(options.private_key.as_deref().ok_or_else(|| missing("priv-key=FILE"))?)?;
        return Ok((Some(EncodingKey::from_secret(&secret)), DecodingKey::from_secret(&secret)));
    }
    let (private, public): (Load<EncodingKey>, Load<DecodingKey>) = match (family, method) {
        (Family::Rsa, _) => (EncodingKey::from_rsa_pem, DecodingKey::from_rsa_pem),
        (Family::Ec, Algorithm::ES384) => (|pem| ec_key(pem, P384), DecodingKey::from_ec_pem),
        (Family::Ec, _) => (|pem| ec_key(pem, P256), DecodingKey::from_ec_pem),
        (Family::Ed | Family::Hmac, _) => (EncodingKey::from_ed_pem, DecodingKey::from_ed_pem),
    };
    let signing = match &options.private_key {
        Some(file) => Some((file, private(&read(file)?).map_err(|error| wrong(file, error))?)),
        None => None,
    };
    let file = options.public_key.as_deref().ok_or_else(|| missing("pub-key=FILE"))?;
    let checking = public(&read(file)?).map_err(|error| wrong(file, error))?;
    let Some((private, signing)) = signing else { return Ok((None, checking)) };
    let signature = crypto::sign(PROBE, &signing, method).map_err(|error| wrong(private, error))?;
    match crypto::verify(&signature, PROBE, &checking, method) {
        Ok(true) => Ok((Some(signing), checking)),
        Ok(false) | Err(_) => Err(TokenError::Mismatch { public: file.to_owned(), private: private.clone() }),
    }
}

/// In DER: a key on that curve.
const P256: &[u8] = b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const P384: &[u8] = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";

/// Reads a private key in PKCS #8, or in SEC 1 (`EC PRIVATE KEY`), which the library does not know and PKCS #8 has inside.
fn ec_key(pem: &[u8], curve: &[u8]) -> Result<EncodingKey, KeyError> {
    let Ok(key) = PrivateSec1KeyDer::from_pem_slice(pem) else { return EncodingKey::from_ec_pem(pem) };
    let version = der(0x02, &[0]);
    let whole = der(0x30, &[&version, curve, &der(0x04, key.secret_sec1_der())].concat());
    Ok(EncodingKey::from_ec_der(&whole))
}

/// An element of DER.
fn der(tag: u8, contents: &[u8]) -> Vec<u8> {
    let [.., high, low] = contents.len().to_be_bytes();
    let head: &[u8] = match contents.len() {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [head, contents].concat()
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

    /// What openssl 3 writes with `ecparam -genkey`, without `-noout` and with it, and the public keys.
    const OF_OPENSSL: [(&str, &str, &str); 2] = [
        (
            "ES256",
            "-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIESMPOg1r+XKDvoP/UnMq3ohZ6zzjy7P9nvo7ghjFKSwoAoGCCqGSM49
AwEHoUQDQgAEysFJMGZg7KGDdEl4tfP59ATJ0KkWyn8pAW+qFM0pOmph+QpXLvxU
IYebyNf5gMvg4aJiBZor0xBKgf9hfdbOVQ==
-----END EC PRIVATE KEY-----
",
            "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEysFJMGZg7KGDdEl4tfP59ATJ0KkW
yn8pAW+qFM0pOmph+QpXLvxUIYebyNf5gMvg4aJiBZor0xBKgf9hfdbOVQ==
-----END PUBLIC KEY-----
",
        ),
        (
            "ES384",
            "-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDD02N1qD7v24NX1zh3p1z5UOM7HxzSHWZkmqgZ+wZm1a9eM9aWXfywd
w+vgnfWyFC2gBwYFK4EEACKhZANiAAQ/2Hu2Ch9SKopR0mCKpSjBF+kaN/nU4k1i
L3WVB6x2ud6EWJMrK7ZrhBbZcIj6zuJsphQTRrwQ428o5aMq+xivhMrR5L/lN78G
lIMhcIlljF/uKSEZ8SrQ6c/w4vf8ghQ=
-----END EC PRIVATE KEY-----
",
            "-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEP9h7tgofUiqKUdJgiqUowRfpGjf51OJN
Yi91lQesdrnehFiTKyu2a4QW2XCI+s7ibKYUE0a8EONvKOWjKvsYr4TK0eS/5Te/
BpSDIXCJZYxf7ikhGfEq0OnP8OL3/IIU
-----END PUBLIC KEY-----
",
        ),
    ];

    #[test]
    fn keys_are_taken_as_openssl_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        for (name, private, public) in OF_OPENSSL {
            fs::write(directory.path().join("private"), private).unwrap();
            fs::write(directory.path().join("public"), public).unwrap();
            let jwt = Jwt::new(&options(name, directory.path())).unwrap();
            let token = jwt.assign("alice", DEFAULT, 7).unwrap();
            assert!(jwt.caller(&token, DEFAULT).is_some(), "{name}");
        }
        let other = Jwt::new(&options("ES256", directory.path())).unwrap_err().to_string();
        assert!(other.contains("private: not a key for ES256 in PEM"), "{other}");
    }

    /// Each token that was made was refused.
    #[test]
    fn keys_that_do_not_belong_together_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (name, kind) in [("ES256", &PKCS_ECDSA_P256_SHA256), ("EdDSA", &PKCS_ED25519)] {
            let [one, other] = [(); 2].map(|()| KeyPair::generate_for(kind).unwrap());
            fs::write(directory.path().join("private"), one.serialize_pem()).unwrap();
            fs::write(directory.path().join("public"), other.public_key_pem()).unwrap();
            let text = Jwt::new(&options(name, directory.path())).unwrap_err().to_string();
            let path = directory.path().display();
            assert_eq!(text, format!("--auth-token: {path}/public: not the public key of {path}/private"));
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
