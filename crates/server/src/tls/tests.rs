//! Handshakes that succeed and fail, and a certificate authority for tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::authority::Authority;
use super::client::ClientFiles;
use super::files::KeyPair;
use super::server::ServerFiles;
use super::*;

fn sign(authority: &Authority, name: &str, hosts: &[&str]) -> KeyPair {
    let (certificate, key) = authority.sign(name, hosts);
    KeyPair { certificate, key }
}

fn client(trusted: &Path, own: Option<KeyPair>) -> ClientFiles {
    ClientFiles { own, trusted: Some(trusted.to_owned()), ..ClientFiles::default() }
}

/// Lets the two shake hands and one byte pass; the error is the client's.
async fn shake(server: &ServerTls, client: &ClientTls, host: &str) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = server.accept(stream).await.map_err(|error| error.to_string())?;
        let byte = stream.read_u8().await.map_err(|error| error.to_string())?;
        stream.write_u8(byte).await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())
    };
    let call = async {
        let mut stream = client.connect(host, stream).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        // In TLS 1.3 the server's refusal comes after the handshake.
        stream.read_u8().await.map(|byte| assert_eq!(byte, 7))
    };
    let (served, called) = tokio::join!(serve, call);
    called.map_err(|error: std::io::Error| format!("{error} (server: {served:?})"))
}

#[tokio::test]
async fn the_server_must_be_the_one_that_was_called() {
    let authority = Authority::new();
    let own = sign(&authority, "server", &["localhost", "127.0.0.1"]);
    let server = ServerTls::new(ServerFiles::of(own, None)).unwrap();
    let trusting = ClientTls::new(client(&authority.trusted(), None)).unwrap();
    shake(&server, &trusting, "localhost").await.unwrap();
    shake(&server, &trusting, "127.0.0.1").await.unwrap();
    assert!(shake(&server, &trusting, "other.example").await.unwrap_err().contains("not valid for name"));
    let stranger = ClientTls::new(client(&Authority::new().trusted(), None)).unwrap();
    assert!(shake(&server, &stranger, "localhost").await.unwrap_err().contains("invalid peer certificate"));
    let careless = ClientFiles { skip_verify: true, ..ClientFiles::default() };
    shake(&server, &ClientTls::new(careless).unwrap(), "other.example").await.unwrap();
}

/// What `openssl req -x509` makes is one, and etcd takes it; the library said `CaUsedAsEndEntity`.
#[tokio::test]
async fn who_shows_the_certificate_of_an_authority_is_told_what_to_do() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let directory = tempfile::tempdir().unwrap();
    let [certificate_file, key_file] =
        ["server.pem", "server-key.pem"].map(|name| directory.path().join(name));
    fs::write(&certificate_file, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    let own = KeyPair { certificate: certificate_file.clone(), key: key_file };
    let server = ServerTls::new(ServerFiles::of(own, None)).unwrap();
    let trusting = ClientTls::new(client(&certificate_file, None)).unwrap();
    let error = shake(&server, &trusting, "localhost").await.unwrap_err();
    assert!(error.contains("CA:FALSE"), "{error}");
}

#[tokio::test]
async fn a_trusted_authority_demands_certificates_with_allowed_names() {
    let authority = Authority::new();
    let own = sign(&authority, "server", &["localhost"]);
    let with = |own| ClientTls::new(client(&authority.trusted(), own)).unwrap();
    let files = ServerFiles::of(own, Some(authority.trusted()));
    let demanding = ServerTls::new(files.clone()).unwrap();
    let good = with(Some(sign(&authority, "client", &["a.example"])));
    shake(&demanding, &good, "localhost").await.unwrap();
    shake(&demanding, &with(None), "localhost").await.unwrap_err();
    let foreign = with(Some(sign(&Authority::new(), "client", &["a.example"])));
    shake(&demanding, &foreign, "localhost").await.unwrap_err();

    let allowed = Names { hosts: vec!["a.example".to_owned()], ..Names::default() };
    let choosy = ServerTls::new(ServerFiles { allowed, ..files.clone() }).unwrap();
    shake(&choosy, &good, "localhost").await.unwrap();
    let other = with(Some(sign(&authority, "other", &["b.example"])));
    let error = shake(&choosy, &other, "localhost").await.unwrap_err();
    assert!(error.contains("none of the allowed host names"), "{error}");

    let allowed = Names { common_names: vec!["client".to_owned()], ..Names::default() };
    let choosy = ServerTls::new(ServerFiles { allowed, ..files }).unwrap();
    shake(&choosy, &good, "localhost").await.unwrap();
    let error = shake(&choosy, &other, "localhost").await.unwrap_err();
    assert!(error.contains("none of the allowed common names"), "{error}");
}

#[tokio::test]
async fn revoked_certificates_are_refused_from_the_moment_they_are_listed() {
    let authority = Authority::new();
    let own = sign(&authority, "server", &["localhost"]);
    let with = |name| {
        let own = Some(sign(&authority, name, &["a.example"]));
        ClientTls::new(client(&authority.trusted(), own)).unwrap()
    };
    let (one, other) = (with("one"), with("other"));
    let revoked = Some(authority.revoke(&[]));
    let files = ServerFiles { revoked, ..ServerFiles::of(own, Some(authority.trusted())) };
    let checking = ServerTls::new(files).unwrap();
    shake(&checking, &one, "localhost").await.unwrap();
    authority.revoke(&["one"]);
    shake(&checking, &one, "localhost").await.unwrap_err();
    shake(&checking, &other, "localhost").await.unwrap();
}

/// Whoever had another server's certificate and key was believed to be the one that was called.
#[tokio::test]
async fn who_is_called_must_have_an_allowed_name_too() {
    let authority = Authority::new();
    let own = sign(&authority, "server", &["localhost"]);
    let server = ServerTls::new(ServerFiles::of(own, None)).unwrap();
    let choosy = |hosts: &[&str], common_names: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let allowed = Names { hosts: owned(hosts), common_names: owned(common_names) };
        ClientTls::new(ClientFiles { allowed, ..client(&authority.trusted(), None) }).unwrap()
    };
    for good in [choosy(&[], &["other", "server"]), choosy(&["localhost"], &[])] {
        shake(&server, &good, "localhost").await.unwrap();
    }
    let error = shake(&server, &choosy(&[], &["other"]), "localhost").await.unwrap_err();
    assert!(error.contains("none of the allowed common names"), "{error}");
    let error = shake(&server, &choosy(&["a.example"], &[]), "localhost").await.unwrap_err();
    assert!(error.contains("none of the allowed host names"), "{error}");
}

/// A pair of a certificate with that of the authority which signed it.
fn with_chain(authority: &Authority, name: &str) -> KeyPair {
    let own = sign(authority, name, &["a.example"]);
    let chain = [fs::read(&own.certificate).unwrap(), fs::read(authority.trusted()).unwrap()].concat();
    fs::write(&own.certificate, chain).unwrap();
    own
}

/// Only the certificates at the ends of chains were looked up in the lists.
#[tokio::test]
async fn what_a_revoked_authority_signed_is_refused() {
    let root = Authority::new();
    let (middle, other) = (root.vouch("middle"), root.vouch("other"));
    let with = |authority: &Authority, name: &str| {
        ClientTls::new(client(&root.trusted(), Some(with_chain(authority, name)))).unwrap()
    };
    let (one, two) = (with(&middle, "one"), with(&other, "two"));
    let own = sign(&root, "server", &["localhost"]);
    let files = ServerFiles { revoked: Some(root.revoke(&[])), ..ServerFiles::of(own, Some(root.trusted())) };
    let checking = ServerTls::new(files.clone()).unwrap();
    shake(&checking, &one, "localhost").await.unwrap();
    root.revoke(&["middle"]);
    shake(&checking, &one, "localhost").await.unwrap_err();
    shake(&checking, &two, "localhost").await.unwrap();

    // As in etcd it does not help the authority that it is trusted itself.
    let both = [fs::read(root.trusted()).unwrap(), fs::read(middle.trusted()).unwrap()].concat();
    let trusted = root.directory.path().join("both.pem");
    fs::write(&trusted, both).unwrap();
    let checking = ServerTls::new(ServerFiles { trusted: Some(trusted), ..files }).unwrap();
    let error = shake(&checking, &one, "localhost").await.unwrap_err();
    assert!(error.contains("is revoked"), "{error}");
    shake(&checking, &two, "localhost").await.unwrap();
}

/// Who came again soon enough resumed its session, for which no certificate is shown.
#[tokio::test]
async fn a_certificate_that_has_ended_is_refused_also_from_whom_it_was_taken_before() {
    let authority = Authority::new();
    let own = sign(&authority, "server", &["localhost"]);
    let checking = ServerTls::new(ServerFiles::of(own, Some(authority.trusted()))).unwrap();
    let end = SystemTime::now() + Duration::from_secs(4);
    let (certificate, key) = authority.sign_until(end, "client", &["a.example"]);
    let own = KeyPair { certificate, key };
    let brief = ClientTls::new(client(&authority.trusted(), Some(own))).unwrap();
    shake(&checking, &brief, "localhost").await.unwrap();
    // Its end is a whole second.
    while SystemTime::now() < end + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = shake(&checking, &brief, "localhost").await.unwrap_err();
    assert!(error.contains("expired"), "{error}");
}

#[tokio::test]
async fn files_are_read_again_when_they_change() {
    let (old, new) = (Authority::new(), Authority::new());
    let own = sign(&old, "server", &["localhost"]);
    let server = ServerTls::new(ServerFiles::of(own.clone(), None)).unwrap();
    let trusting = |authority: &Authority| ClientTls::new(client(&authority.trusted(), None)).unwrap();
    shake(&server, &trusting(&old), "localhost").await.unwrap();

    fs::write(&own.certificate, "half a certif").unwrap();
    shake(&server, &trusting(&old), "localhost").await.unwrap();

    let renewed = sign(&new, "server", &["localhost"]);
    fs::rename(renewed.key, &own.key).unwrap();
    fs::rename(renewed.certificate, &own.certificate).unwrap();
    shake(&server, &trusting(&new), "localhost").await.unwrap();
    shake(&server, &trusting(&old), "localhost").await.unwrap_err();
}

#[tokio::test]
async fn a_certificate_made_here_can_be_trusted_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = own::certificate(directory.path(), &hosts, 1).unwrap();
    let before = fs::read(&own.key).unwrap();
    assert_eq!(own::certificate(directory.path(), &hosts, 1).unwrap(), own, "made once");
    assert_eq!(fs::read(&own.key).unwrap(), before);
    let trusting = ClientTls::new(client(&own.certificate, None)).unwrap();
    shake(&ServerTls::new(ServerFiles::of(own, None)).unwrap(), &trusting, "127.0.0.1").await.unwrap();
}

/// They are made before the data directory is, which others could read then, with all values.
#[test]
fn a_data_directory_that_is_made_for_certificates_is_the_users_own() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    own::certificate(&data.join("fixtures/client"), &["localhost".to_owned()], 1).unwrap();
    for made in [data.clone(), data.join("fixtures"), data.join("fixtures/client")] {
        assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700, "{}", made.display());
    }
}

#[test]
fn what_is_wrong_with_files_is_named() {
    let authority = Authority::new();
    let own = sign(&authority, "server", &["localhost"]);
    let swapped = KeyPair { certificate: own.key.clone(), key: own.certificate.clone() };
    let missing = KeyPair { certificate: "/no/such/file".into(), ..own.clone() };
    let other = KeyPair { key: sign(&authority, "other", &["x"]).key, ..own };
    for (pair, said) in
        [(swapped, "no private key"), (missing, "/no/such/file: No such file"), (other, "key")]
    {
        let error = ServerTls::new(ServerFiles::of(pair, None)).err().unwrap().to_string();
        assert!(error.to_lowercase().contains(&said.to_lowercase()), "{error}");
    }
}

#[test]
fn suites_have_gos_names() {
    let protocol = |names: &[&str]| Protocol {
        suites: names.iter().map(ToString::to_string).collect(),
        ..Protocol::default()
    };
    let good = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"];
    assert_eq!(protocol(&good).unknown_suites(), [""; 0]);
    let tls12 =
        protocol(&good).provider().cipher_suites.iter().filter(|suite| suite.tls13().is_none()).count();
    assert_eq!(tls12, 2);
    assert_eq!(protocol(&["TLS_RSA_WITH_RC4_128_SHA"]).unknown_suites(), ["TLS_RSA_WITH_RC4_128_SHA"]);
}
