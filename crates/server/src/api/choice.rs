//! Which keyspace a request is about, by name: nothing here knows which keyspaces there are.
//!
//! | what | who says it | |
//! |---|---|---|
//! | the port (`--keyspace-listen`) | the operator | binds: a client that names another keyspace is refused |
//! | the client's certificate (`--keyspace-from-certificate`) | the operator | binds |
//! | the metadata `hadron-keyspace` | the client | chooses |
//! | the host name (`--keyspace-host-suffix`): `:authority` or `Host`, or else TLS's server name | the client | chooses |
//! | nothing | | `default` |
//!
//! The first that says something decides. Whoever is bound twice, to different keyspaces, is refused as well.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;

use hadron_node::DEFAULT_KEYSPACE;
use http::{HeaderMap, Request};
use tonic::Status;

use super::access::host_name;
use super::passed_on;
use crate::tls::Stream;
use crate::tls::name::{common_name, organizations};

/// The metadata that names a keyspace, and the header of HTTP.
pub(super) const KEY: &str = "hadron-keyspace";
/// The same as the JSON gateway spells metadata.
const KEY_OF_GATEWAY: &str = "grpc-metadata-hadron-keyspace";
/// What stands for the keyspace in a [`CertificateRule`].
const NAME: &str = "{name}";

/// How clients choose keyspaces, beside the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceOptions {
    /// A host name that ends so names a keyspace by what is before; begins with a dot, in lower case.
    pub host_suffix: Option<String>,
    /// Which keyspace a client's certificate binds it to.
    pub certificate: Option<CertificateRule>,
}

/// Which name in a certificate is that of a keyspace: `cn:{name}`, `o:tenant-{name}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRule {
    attribute: Attribute,
    before: String,
    after: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    CommonName,
    Organization,
}

impl FromStr for CertificateRule {
    type Err = ();

    fn from_str(text: &str) -> Result<CertificateRule, ()> {
        let (attribute, pattern) = text.split_once(':').ok_or(())?;
        let attribute = match attribute {
            "cn" => Attribute::CommonName,
            "o" => Attribute::Organization,
            _ => return Err(()),
        };
        let (before, after) = pattern.split_once(NAME).ok_or(())?;
        Ok(CertificateRule { attribute, before: before.to_owned(), after: after.to_owned() })
    }
}

impl CertificateRule {
    /// The keyspace that a certificate binds to; `None` if none of its names is of the rule's form.
    fn keyspace_of(&self, certificate: &[u8]) -> Option<String> {
        let names = match self.attribute {
            Attribute::CommonName => common_name(certificate).into_iter().collect(),
            Attribute::Organization => organizations(certificate),
        };
        names.iter().find_map(|name| self.keyspace_in(name)).map(str::to_owned)
    }

    fn keyspace_in<'n>(&self, name: &'n str) -> Option<&'n str> {
        let name = name.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        (!name.is_empty()).then_some(name)
    }
}

/// What is known of the keyspace when a client has connected.
#[derive(Clone, Debug, Default)]
pub(super) struct Entrance {
    port: Option<Arc<str>>,
    certificate: Option<Arc<str>>,
    /// What the client called this server when it shook hands.
    server_name: Option<Arc<str>>,
    is_tls: bool,
    /// It is another node's, which passes calls of its clients on.
    is_passed_on: bool,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Port,
    Certificate,
    Metadata,
    Host,
    Nobody,
}

/// A keyspace's name, which may not exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) by: By,
}

impl Entrance {
    /// Of a connection that came in on the port of a keyspace, or on one that is for all.
    pub(super) fn new(stream: &Stream, port: Option<&Arc<str>>, options: &KeyspaceOptions) -> Entrance {
        let certificate = options.certificate.as_ref().zip(stream.peer_certificate());
        let certificate = certificate.and_then(|(rule, certificate)| rule.keyspace_of(certificate));
        let server_name = options.host_suffix.as_ref().and_then(|_| stream.server_name());
        Entrance {
            port: port.cloned(),
            certificate: certificate.map(Into::into),
            server_name: server_name.map(Into::into),
            is_tls: matches!(stream, Stream::Tls(_)),
            is_passed_on: false,
        }
    }

    /// Of a connection of another node, which tells with each call what it decided.
    pub(super) fn of_node() -> Entrance {
        Entrance { is_passed_on: true, ..Entrance::default() }
    }

    /// Whether it is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Whether what comes in was passed on by another node.
    pub(super) fn is_passed_on(&self) -> bool {
        self.is_passed_on
    }

    fn binding(&self) -> Result<Option<(&str, By)>, Status> {
        match (&self.port, &self.certificate) {
            (Some(port), Some(certificate)) if port != certificate => {
                Err(Status::permission_denied(format!(
                    "hadron: this port is for the keyspace {port}, and the client's certificate for another"
                )))
            }
            (Some(port), _) => Ok(Some((port, By::Port))),
            (None, Some(certificate)) => Ok(Some((certificate, By::Certificate))),
            (None, None) => Ok(None),
        }
    }

    /// The keyspace that a request is about.
    pub(super) fn choose<'a, T>(
        &'a self,
        request: &'a Request<T>,
        options: &KeyspaceOptions,
    ) -> Result<Choice<'a>, Status> {
        let named = match named(request.headers())? {
            Some(name) => Some(Choice { name: name.into(), by: By::Metadata }),
            None => self.host(request, options).map(|name| Choice { name, by: By::Host }),
        };
        let Some((bound, by)) = self.binding()? else {
            return Ok(named.unwrap_or(Choice { name: DEFAULT_KEYSPACE.into(), by: By::Nobody }));
        };
        match named {
            Some(other) if other.name != bound => Err(bound_elsewhere(bound, by, &other)),
            _ => Ok(Choice { name: bound.into(), by }),
        }
    }

    fn host<'a, T>(&'a self, request: &'a Request<T>, options: &KeyspaceOptions) -> Option<Cow<'a, str>> {
        let suffix = options.host_suffix.as_deref()?;
        let in_request = keyspace_in_host(host_name(request), suffix);
        in_request.or_else(|| keyspace_in_host(self.server_name.as_deref()?, suffix))
    }

    /// The URL that leads a client back here, if what it called is what chose the keyspace.
    pub(super) fn door<T>(&self, request: &Request<T>, by: By) -> Option<Door> {
        if self.is_passed_on {
            return passed_on::door(request.headers());
        }
        let scheme = if self.is_tls { "https" } else { "http" };
        let header = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
        let authority = request.uri().authority().map(http::uri::Authority::as_str).or(header);
        let authority = authority.filter(|_| matches!(by, By::Port | By::Host))?;
        Some(Door(format!("{scheme}://{authority}")))
    }
}

/// The URL that a client used, where no other would lead it to its keyspace: an extension of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Door(pub(super) String);

/// The keyspace that the headers name.
fn named(headers: &HeaderMap) -> Result<Option<&str>, Status> {
    let Some(value) = headers.get(KEY).or_else(|| headers.get(KEY_OF_GATEWAY)) else { return Ok(None) };
    match value.to_str() {
        Ok(name) => Ok(Some(name).filter(|name| !name.is_empty())),
        Err(_) => Err(Status::invalid_argument(format!("hadron: the metadata {KEY} is not plain text"))),
    }
}

/// What is before the suffix in a host name.
fn keyspace_in_host<'h>(host: &'h str, suffix: &str) -> Option<Cow<'h, str>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let at = host.len().checked_sub(suffix.len()).filter(|at| *at > 0 && host.is_char_boundary(*at))?;
    let (name, end) = host.split_at(at);
    if !end.eq_ignore_ascii_case(suffix) {
        return None;
    }
    let is_lower = !name.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if is_lower { name.into() } else { name.to_ascii_lowercase().into() })
}

fn bound_elsewhere(bound: &str, by: By, asked: &Choice<'_>) -> Status {
    let what = if by == By::Port { "port is" } else { "client's certificate is" };
    let how = if asked.by == By::Metadata { KEY } else { "the host name" };
    Status::permission_denied(format!(
        "hadron: this {what} for the keyspace {bound}, and {how} asks for {:?}",
        asked.name
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    use tonic::Code;

    use super::*;

    fn options() -> KeyspaceOptions {
        KeyspaceOptions { host_suffix: Some(".hadron.example".into()), certificate: None }
    }

    fn request(host: &str, metadata: Option<&str>) -> Request<()> {
        let request = Request::builder().uri("/x").header("host", host);
        match metadata {
            Some(name) => request.header(KEY, name).body(()).unwrap(),
            None => request.body(()).unwrap(),
        }
    }

    fn bound(port: Option<&str>, certificate: Option<&str>) -> Entrance {
        Entrance {
            port: port.map(Into::into),
            certificate: certificate.map(Into::into),
            ..Entrance::default()
        }
    }

    fn chosen(entrance: &Entrance, request: &Request<()>) -> Result<(String, By), Code> {
        let choice = entrance.choose(request, &options());
        choice.map(|choice| (choice.name.into_owned(), choice.by)).map_err(|status| status.code())
    }

    #[test]
    fn the_first_that_says_something_decides() {
        let anywhere = "127.0.0.1:2379";
        let host = "b.hadron.example:2379";
        let free = Entrance::default();
        let ok = |name: &str, by| Ok((name.to_owned(), by));
        assert_eq!(chosen(&free, &request(anywhere, None)), ok("default", By::Nobody));
        assert_eq!(chosen(&free, &request(host, None)), ok("b", By::Host));
        assert_eq!(chosen(&free, &request(host, Some("a"))), ok("a", By::Metadata));
        assert_eq!(chosen(&free, &request(host, Some(""))), ok("b", By::Host));
        assert_eq!(chosen(&bound(Some("a"), None), &request(anywhere, None)), ok("a", By::Port));
        assert_eq!(chosen(&bound(None, Some("a")), &request(anywhere, Some("a"))), ok("a", By::Certificate));
        assert_eq!(chosen(&bound(Some("a"), Some("a")), &request(anywhere, None)), ok("a", By::Port));
    }

    #[test]
    fn who_is_bound_goes_nowhere_else() {
        let denied = Err(Code::PermissionDenied);
        for entrance in [bound(Some("a"), None), bound(None, Some("a")), bound(Some("a"), Some("a"))] {
            assert_eq!(chosen(&entrance, &request("x", Some("b"))), denied);
            assert_eq!(chosen(&entrance, &request("x", Some("default"))), denied);
            assert_eq!(chosen(&entrance, &request("b.hadron.example", None)), denied);
        }
        assert_eq!(chosen(&bound(Some("a"), Some("b")), &request("x", None)), denied);
        let status = bound(Some("a"), None).choose(&request("x", Some("b")), &options()).unwrap_err();
        assert_eq!(
            status.message(),
            "hadron: this port is for the keyspace a, and hadron-keyspace asks for \"b\""
        );
    }

    #[test]
    fn host_names_are_those_of_a_request_or_of_its_connection() {
        let by_host = |host: &str| chosen(&Entrance::default(), &request(host, None)).unwrap().0;
        assert_eq!(by_host("Tenant-A.Hadron.Example:2379"), "tenant-a");
        assert_eq!(by_host("a.hadron.example."), "a");
        assert_eq!(by_host("a.b.hadron.example"), "a.b", "which cannot exist, and is not taken for another");
        for other in ["hadron.example", ".hadron.example", "ahadron.example", "a.example", "ä", "[::1]:2379"]
        {
            assert_eq!(by_host(other), "default", "{other}");
        }
        let sni = Entrance { server_name: Some("a.hadron.example".into()), ..Entrance::default() };
        assert_eq!(chosen(&sni, &request("10.0.0.1:2379", None)), Ok(("a".into(), By::Host)));
        assert_eq!(chosen(&sni, &request("b.hadron.example", None)), Ok(("b".into(), By::Host)));
        let none = KeyspaceOptions::default();
        assert_eq!(sni.choose(&request("a.hadron.example", None), &none).unwrap().name, "default");
    }

    #[test]
    fn the_way_back_is_what_the_client_called() {
        let door = |by| Entrance::default().door(&request("a.hadron.example:9", None), by);
        assert_eq!(door(By::Host), Some(Door("http://a.hadron.example:9".into())));
        assert_eq!(door(By::Metadata), None);
        assert_eq!(door(By::Certificate), None);
    }

    #[test]
    fn certificates_name_keyspaces_by_their_names_or_organizations() {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "tenant-b");
        params.distinguished_name.push(DnType::CommonName, "a");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let keyspace = |rule: &str| rule.parse::<CertificateRule>().unwrap().keyspace_of(certificate.der());
        assert_eq!(keyspace("cn:{name}").as_deref(), Some("a"));
        assert_eq!(keyspace("o:tenant-{name}").as_deref(), Some("b"));
        assert_eq!(keyspace("o:{name}").as_deref(), Some("tenant-b"));
        assert_eq!(keyspace("cn:tenant-{name}"), None);
        assert_eq!(keyspace("cn:a{name}"), None, "an empty name is none");
        for bad in ["", "cn", "cn:x", "ou:{name}", "CN:{name}"] {
            assert_eq!(bad.parse::<CertificateRule>(), Err(()), "{bad}");
        }
    }
}
