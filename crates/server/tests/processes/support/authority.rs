//! A certificate authority for tests.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// A directory with a certificate authority and what it signed.
pub struct Authority {
    /// Where everything is.
    pub directory: tempfile::TempDir,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// A new one, which nobody trusts yet.
    pub fn new() -> Authority {
        let (params, key) = (of_authority("test authority"), rcgen::KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Authority::with(certificate, params, key)
    }

    /// Another one, whom this one vouches for under that name.
    #[allow(dead_code, reason = "by tests of the server alone, which have this file too")]
    pub fn vouch(&self, name: &str) -> Authority {
        let (mut params, key) = (of_authority(name), rcgen::KeyPair::generate().unwrap());
        params.serial_number = Some(serial(name));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Authority::with(certificate, params, key)
    }

    fn with(certificate: rcgen::Certificate, params: CertificateParams, key: rcgen::KeyPair) -> Authority {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Authority { directory, issuer: Issuer::new(params, key) }
    }

    /// Lists the certificates that were signed under these names, and no others, as revoked. Returns the file of the list.
    #[allow(dead_code, reason = "by tests of the server alone, which have this file too")]
    pub fn revoke(&self, names: &[&str]) -> PathBuf {
        let revoked = names.iter().map(|name| RevokedCertParams {
            serial_number: serial(name),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(names.len() as u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = self.directory.path().join("revoked.pem");
        // Replaced in one step, as whoever renews files should.
        let aside = file.with_extension("new");
        fs::write(&aside, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        fs::rename(&aside, &file).unwrap();
        file
    }

    /// File of its own certificate.
    pub fn trusted(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Signs a certificate for these hosts, and writes it and its key under that name. Returns where.
    pub fn sign(&self, name: &str, hosts: &[&str]) -> (PathBuf, PathBuf) {
        self.sign_as(name, name, hosts)
    }

    /// The same for a certificate whose common name is another one than that of its files.
    pub fn sign_as(&self, name: &str, common_name: &str, hosts: &[&str]) -> (PathBuf, PathBuf) {
        self.write(name, of_holder(name, common_name, hosts))
    }

    /// The same for a certificate that is good until then.
    #[allow(dead_code, reason = "by tests of the server alone, which have this file too")]
    pub fn sign_until(&self, end: SystemTime, name: &str, hosts: &[&str]) -> (PathBuf, PathBuf) {
        let mut params = of_holder(name, name, hosts);
        params.not_after = end.into();
        self.write(name, params)
    }

    fn write(&self, name: &str, params: CertificateParams) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| self.directory.path().join(format!("{name}.{kind}.pem"));
        fs::write(path("key"), key.serialize_pem()).unwrap();
        fs::write(path("cert"), certificate.pem()).unwrap();
        (path("cert"), path("key"))
    }
}

/// What a certificate of an authority says.
fn of_authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// What a certificate of somebody else says.
fn of_holder(name: &str, common_name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(serial(name));
    params
}

/// The serial number of what is signed under a name.
fn serial(name: &str) -> SerialNumber {
    SerialNumber::from_slice(name.as_bytes())
}
