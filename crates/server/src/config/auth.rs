//! How users show who they are: `--auth-token` and what belongs to it.

use std::time::Duration;

use super::{ConfigError, Settings, value};
use crate::api::{JwtOptions, TokenOptions};

/// etcd's time for JSON web tokens.
const JWT_TTL: Duration = Duration::from_secs(5 * 60);
/// The costs that bcrypt has.
const COSTS: std::ops::RangeInclusive<i128> = 4..=31;

/// Tokens and passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Which tokens users get.
    pub tokens: TokenOptions,
    /// The cost of hashing passwords, 4 to 31.
    pub bcrypt_cost: u32,
}

/// What the flags say.
pub(super) fn read(settings: &Settings) -> Result<AuthConfig, ConfigError> {
    let cost = value::number(settings.text("bcrypt-cost")).filter(|cost| COSTS.contains(cost));
    let cost = cost.ok_or_else(|| ConfigError::BcryptCost(settings.text("bcrypt-cost").to_owned()))?;
    let wrong = || ConfigError::AuthToken(settings.text("auth-token").to_owned());
    let mut parts = settings.text("auth-token").split(',');
    let tokens = match parts.next() {
        Some("simple" | "") => TokenOptions::Simple(ttl(settings)?),
        Some("jwt") => TokenOptions::Jwt(jwt(parts).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    Ok(AuthConfig { tokens, bcrypt_cost: cost as u32 })
}

fn ttl(settings: &Settings) -> Result<Duration, ConfigError> {
    super::limit(settings, "auth-token-ttl").map(Duration::from_secs)
}

/// `None` if an option has no value, is given twice, or is not known.
fn jwt<'a>(parts: impl Iterator<Item = &'a str>) -> Option<JwtOptions> {
    let (mut sign_method, mut public_key, mut private_key, mut ttl) = (None, None, None, None);
    for part in parts {
        let (name, value) = part.split_once('=')?;
        let option = match name {
            "sign-method" => &mut sign_method,
            "pub-key" => &mut public_key,
            "priv-key" => &mut private_key,
            "ttl" => &mut ttl,
            _ => return None,
        };
        if option.replace(value).is_some() {
            return None;
        }
    }
    Some(JwtOptions {
        sign_method: sign_method?.to_owned(),
        public_key: public_key.map(Into::into),
        private_key: private_key.map(Into::into),
        ttl: match ttl {
            Some(text) => value::duration(text)?,
            None => JWT_TTL,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ffi::OsString;

    use super::super::{Asked, Config};
    use super::*;

    fn auth(flags: &[&str]) -> Result<AuthConfig, String> {
        let Asked::Serve(settings) = Settings::read(flags.iter().map(OsString::from), []).unwrap() else {
            unreachable!()
        };
        Config::from_settings(&settings, "hadron")
            .map(|config| config.auth)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn tokens_are_simple_ones_unless_keys_are_given() {
        let simple = |seconds| TokenOptions::Simple(Duration::from_secs(seconds));
        assert_eq!(auth(&[]).unwrap(), AuthConfig { tokens: simple(300), bcrypt_cost: 10 });
        let given = auth(&["--auth-token=simple", "--auth-token-ttl=7", "--bcrypt-cost=4"]).unwrap();
        assert_eq!(given, AuthConfig { tokens: simple(7), bcrypt_cost: 4 });
        let given = auth(&["--auth-token=jwt,pub-key=a.pub,priv-key=a,sign-method=RS256,ttl=10m"]).unwrap();
        let options = JwtOptions {
            sign_method: "RS256".into(),
            public_key: Some("a.pub".into()),
            private_key: Some("a".into()),
            ttl: Duration::from_secs(600),
        };
        assert_eq!(given.tokens, TokenOptions::Jwt(options));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in ["jwt", "jwt,sign-method", "jwt,sign-method=a,sign-method=b", "jwt,sign-method=a,x=y", "x"]
        {
            let error = auth(&[&format!("--auth-token={bad}")]).unwrap_err();
            assert!(
                error.starts_with(&format!("--auth-token: {bad:?}: expected simple, or jwt,")),
                "{error}"
            );
        }
        assert!(auth(&["--bcrypt-cost=3"]).unwrap_err().starts_with("--bcrypt-cost: expected 4 to 31"));
        assert!(auth(&["--auth-token-ttl=0"]).unwrap_err().contains("--auth-token-ttl"));
    }
}
