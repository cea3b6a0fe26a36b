//! Certificates made here, for `--auto-tls` and `--peer-auto-tls`: one key and one self-signed certificate in a directory,
//! made at the first start and kept.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use tracing::{info, warn};

use super::files::{KeyPair, TlsError};

/// Clocks of clients may be behind.
const BEFORE: Duration = Duration::from_secs(60 * 60);
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The certificate in `directory`, made if there is none: for `hosts` (names and IP addresses), valid for `years`.
///
/// # Errors
/// It cannot be written.
pub fn certificate(directory: &Path, hosts: &[String], years: u32) -> Result<KeyPair, TlsError> {
    let pair = KeyPair { certificate: directory.join("cert.pem"), key: directory.join("key.pem") };
    if pair.certificate.exists() && pair.key.exists() {
        return Ok(pair);
    }
    warn!(directory = %directory.display(), years, "automatically generate certificates");
    let refused = |error: rcgen::Error| TlsError::Config(format!("cannot make a certificate: {error}"));
    let mut params = CertificateParams::new(hosts.to_vec()).map_err(refused)?;
    params.distinguished_name.push(DnType::OrganizationName, "hadron");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    params.not_before = (now - BEFORE).into();
    params.not_after = (now + YEAR * years).into();
    let key = rcgen::KeyPair::generate().map_err(refused)?;
    let certificate = params.self_signed(&key).map_err(refused)?;
    // What is above it is the data directory, which may not be there yet.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| TlsError::Io { file: directory.to_owned(), error })?;
    // The key first: a certificate without its key would be found and kept.
    write(&pair.key, &key.serialize_pem())?;
    write(&pair.certificate, &certificate.pem())?;
    info!(path = %pair.certificate.display(), "created cert file");
    Ok(pair)
}

/// Writes a file that only this user can read.
fn write(path: &Path, text: &str) -> Result<(), TlsError> {
    let written = || {
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().map_err(|error| TlsError::Io { file: path.to_owned(), error })
}
