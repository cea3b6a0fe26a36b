//! The flags about how clients choose keyspaces.

use super::{ConfigError, Listen, Settings, Url, parse_url, parts, switch};
use crate::api::KeyspaceOptions;

const LISTEN: &str = "keyspace-listen";
const HOST_SUFFIX: &str = "keyspace-host-suffix";
const FROM_CERTIFICATE: &str = "keyspace-from-certificate";

/// The ports of single keyspaces, by their names.
pub(super) fn urls(settings: &Settings) -> Result<Vec<(String, Url)>, ConfigError> {
    let entry = |text: &str| {
        let (name, url) = text.split_once('=').unwrap_or_default();
        match name.is_empty() {
            true => Err(ConfigError::KeyspaceListen(text.to_owned())),
            false => Ok((name.to_owned(), parse_url(LISTEN, url)?)),
        }
    };
    parts(settings.text(LISTEN)).map(entry).collect()
}

/// The same as addresses.
pub(super) fn listen(settings: &Settings) -> Result<Vec<(String, Listen)>, ConfigError> {
    urls(settings)?.into_iter().map(|(name, url)| Ok((name, Listen::at(&url, LISTEN)?))).collect()
}

/// How clients choose a keyspace on the ports that are for all.
pub(super) fn options(settings: &Settings) -> Result<KeyspaceOptions, ConfigError> {
    let certificate = settings.given(FROM_CERTIFICATE).map(|text| {
        if !switch(settings, "client-cert-auth") {
            return Err(ConfigError::Together { one: FROM_CERTIFICATE, other: "client-cert-auth" });
        }
        text.parse().map_err(|()| ConfigError::KeyspaceFromCertificate(text.to_owned()))
    });
    Ok(KeyspaceOptions {
        host_suffix: settings.given(HOST_SUFFIX).map(host_suffix).transpose()?,
        certificate: certificate.transpose()?,
    })
}

fn host_suffix(text: &str) -> Result<String, ConfigError> {
    let name = text.trim().trim_start_matches('.').trim_end_matches('.').to_ascii_lowercase();
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    match !name.is_empty() && name.chars().all(is_letter) {
        true => Ok(format!(".{name}")),
        false => Err(ConfigError::KeyspaceHostSuffix(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::ffi::OsString;

    use super::*;
    use crate::config::Asked;

    fn settings(flags: &[&str]) -> Settings {
        let Asked::Serve(settings) = Settings::read(flags.iter().map(OsString::from), []).unwrap() else {
            panic!("{flags:?}");
        };
        settings
    }

    #[test]
    fn ports_have_a_name_and_a_url() {
        let ports = listen(&settings(&["--keyspace-listen=a=http://127.0.0.1:5000, b=https://[::1]:6000"]));
        let ports = ports.unwrap();
        assert_eq!(ports[0].0, "a");
        assert_eq!(ports[0].1, Listen { address: "127.0.0.1:5000".parse().unwrap(), is_tls: false });
        assert_eq!((ports[1].0.as_str(), ports[1].1.is_tls), ("b", true));
        for bad in ["a", "=http://127.0.0.1:1", "http://127.0.0.1:1"] {
            let error = urls(&settings(&["--keyspace-listen", bad])).unwrap_err().to_string();
            assert!(error.starts_with("--keyspace-listen: "), "{error}");
        }
        assert!(urls(&settings(&["--keyspace-listen=a=b"])).unwrap_err().to_string().contains("bad URL"));
    }

    #[test]
    fn suffixes_are_ends_of_host_names() {
        let suffix = |text| options(&settings(&["--keyspace-host-suffix", text])).map(|it| it.host_suffix);
        for text in ["hadron.example", ".Hadron.example", ".hadron.example."] {
            assert_eq!(suffix(text).unwrap().as_deref(), Some(".hadron.example"));
        }
        assert!(suffix("*.hadron.example").is_err() && suffix("hadron.example:2379").is_err());
        assert_eq!(options(&settings(&[])), Ok(KeyspaceOptions::default()));
    }

    #[test]
    fn certificates_are_believed_only_if_they_are_demanded() {
        let with = |flags: &[&str]| options(&settings(flags)).map_err(|error| error.to_string());
        let alone = with(&["--keyspace-from-certificate=cn:{name}"]);
        assert_eq!(alone.unwrap_err(), "--keyspace-from-certificate needs --client-cert-auth beside it");
        assert!(
            with(&["--keyspace-from-certificate=cn:{name}", "--client-cert-auth"])
                .unwrap()
                .certificate
                .is_some()
        );
        let error = with(&["--keyspace-from-certificate=cn", "--client-cert-auth"]).unwrap_err();
        assert!(error.contains("expected cn: or o: and a text with {name} in it"), "{error}");
    }
}
