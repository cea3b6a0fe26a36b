//! The configuration file: YAML (and so JSON), with etcd's keys.
//!
//! A key is a flag's name, with these exceptions, as in etcd: TLS is in two maps (`client-transport-security`,
//! `peer-transport-security`), sockets in a third (`socket-options`), discovery in a fourth (`discovery-config`). Time spans may
//! be whole nanoseconds, as etcd demands, or texts such as `10m`, and switches any of YAML 1.1's words. A key without a value means the default. Keys of flags
//! for which etcd has no key are passed over, since its own sample file has some.

use std::io;

use yaml_rust2::{Yaml, YamlLoader};

use super::flags::Kind;
use super::value;

/// Flags that etcd reads from the command line only, whatever a file says.
const NOT_IN_FILES: &[&str] =
    &["discovery", "discovery-fallback", "discovery-proxy", "config-file", "version"];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not YAML.
    #[error("is not valid YAML: {0}")]
    Syntax(#[from] yaml_rust2::ScanError),
    /// It is something else than keys with values.
    #[error("expected keys and values")]
    NoMap,
    /// A value that no flag can have.
    #[error("{0}: expected a single value or a list of them")]
    Nested(String),
    /// A map of flags that is none.
    #[error("invalid {0}: expected keys and values below it")]
    NotNested(String),
}

/// The value of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A text, a number, a switch or a list.
    Text(String),
    /// A whole number.
    Integer(i64),
}

impl Value {
    /// The value as the command line would have it.
    pub(super) fn text_for(self, kind: Kind) -> String {
        match (self, kind) {
            (Value::Integer(nanoseconds), Kind::Duration) => format!("{nanoseconds}ns"),
            (Value::Integer(number), _) => number.to_string(),
            (Value::Text(text), Kind::Switch) => {
                value::yaml_switch(&text).map_or(text, |switch| switch.to_string())
            }
            (Value::Text(text), _) => text,
        }
    }
}

/// Reads a file: the flags that it sets, in its order.
pub(super) fn read(text: &str) -> Result<Vec<(String, Value)>, FileError> {
    let documents = YamlLoader::load_from_str(text)?;
    let map = match documents.into_iter().next() {
        None | Some(Yaml::Null) => return Ok(Vec::new()),
        Some(Yaml::Hash(map)) => map,
        Some(_) => return Err(FileError::NoMap),
    };
    let mut flags = Vec::new();
    for (key, value) in map {
        let key = key.into_string().ok_or(FileError::NoMap)?;
        match key.as_str() {
            "client-transport-security"
            | "peer-transport-security"
            | "socket-options"
            | "discovery-config" => {
                read_map(&key, "", value, &mut flags)?;
            }
            flag if NOT_IN_FILES.contains(&flag) => {}
            _ => flags.extend(scalar(&key, value)?.map(|value| (key, value))),
        }
    }
    Ok(flags)
}

fn read_map(map: &str, below: &str, value: Yaml, flags: &mut Vec<(String, Value)>) -> Result<(), FileError> {
    let entries = match value {
        Yaml::Null => return Ok(()),
        Yaml::Hash(entries) => entries,
        _ => return Err(FileError::NotNested(format!("{map}{below}"))),
    };
    for (key, value) in entries {
        let key = key.into_string().ok_or(FileError::NoMap)?;
        if map == "discovery-config" && matches!(value, Yaml::Hash(_)) {
            read_map(map, &key, value, flags)?;
            continue;
        }
        flags.extend(scalar(&key, value)?.map(|value| (flag_below(map, &key), value)));
    }
    Ok(())
}

/// The flag that a key of a map stands for.
fn flag_below(map: &str, key: &str) -> String {
    match (map, key) {
        ("client-transport-security", "allowed-cn" | "allowed-hostname") => format!("client-cert-{key}"),
        ("client-transport-security", "crl-file") => "client-crl-file".to_owned(),
        ("client-transport-security", key) => key.to_owned(),
        ("peer-transport-security", "allowed-cn" | "allowed-hostname") => format!("peer-cert-{key}"),
        ("peer-transport-security", key) => format!("peer-{key}"),
        ("socket-options", key) => format!("socket-{key}"),
        (_, "username") => "discovery-user".to_owned(),
        (_, key) => format!("discovery-{key}"),
    }
}

/// A value that is not a map; `None` if there is none.
fn scalar(key: &str, value: Yaml) -> Result<Option<Value>, FileError> {
    let nested = || FileError::Nested(key.to_owned());
    Ok(Some(match value {
        Yaml::Null => return Ok(None),
        Yaml::Integer(number) => Value::Integer(number),
        Yaml::Array(values) => {
            let texts = values.into_iter().map(|value| plain(value).ok_or_else(nested));
            Value::Text(texts.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        value => Value::Text(plain(value).ok_or_else(nested)?),
    }))
}

fn plain(value: Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(switch) => Some(switch.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn texts(yaml: &str) -> Vec<(String, String)> {
        let read = read(yaml).unwrap().into_iter();
        read.map(|(key, value)| (key, value.text_for(Kind::Duration))).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn keys_are_flags_and_maps_are_sections() {
        let yaml = "name: 'a'\nwal-dir:\npre-vote: true\nlog-outputs: [stderr, /var/log/x]\n\
                    watch-progress-notify-interval: 5000000000\ncorrupt-check-time: 1m\ndiscovery-fallback: 'proxy'\n\
                    client-transport-security:\n  cert-file: c.pem\n  client-cert-auth: false\n  allowed-hostname: [h]\n  allowed-cn: n\n\
                    peer-transport-security: {auto-tls: true, allowed-cn: x, trusted-ca-file: }\n\
                    socket-options: {reuse-port: true}\ndiscovery-config: {token: t, client: {endpoints: [e], dial-timeout: 1000, \
                    secure: {insecure-transport: false, cert: c, server-name: n}, auth: {username: u, password: p}}}\n";
        assert_eq!(
            texts(yaml),
            pairs(&[
                ("name", "a"),
                ("pre-vote", "true"),
                ("log-outputs", "stderr,/var/log/x"),
                ("watch-progress-notify-interval", "5000000000ns"),
                ("corrupt-check-time", "1m"),
                ("cert-file", "c.pem"),
                ("client-cert-auth", "false"),
                ("client-cert-allowed-hostname", "h"),
                ("client-cert-allowed-cn", "n"),
                ("peer-auto-tls", "true"),
                ("peer-cert-allowed-cn", "x"),
                ("socket-reuse-port", "true"),
                ("discovery-token", "t"),
                ("discovery-endpoints", "e"),
                ("discovery-dial-timeout", "1000ns"),
                ("discovery-insecure-transport", "false"),
                ("discovery-cert", "c"),
                ("discovery-server-name", "n"),
                ("discovery-user", "u"),
                ("discovery-password", "p"),
            ])
        );
        assert_eq!(texts("{\"name\": \"json\"}"), pairs(&[("name", "json")]));
        assert_eq!(texts("# nothing\n"), []);
    }

    #[test]
    fn what_is_no_configuration_is_named() {
        for (yaml, said) in [
            ("- a\n", "expected keys and values"),
            ("name: {a: b}\n", "name: expected a single value or a list of them"),
            (
                "peer-transport-security: 7\n",
                "invalid peer-transport-security: expected keys and values below it",
            ),
        ] {
            assert_eq!(read(yaml).unwrap_err().to_string(), said);
        }
        assert!(read("a: [\n").unwrap_err().to_string().starts_with("is not valid YAML"));
    }
}
