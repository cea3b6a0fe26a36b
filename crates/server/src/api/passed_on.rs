//! What a node tells another one with a call that it passes on, and what comes back beside the answer: headers that count only on
//! connections between nodes. The calls themselves pass as they are.
//!
//! | header | |
//! |---|---|
//! | `hadron-keyspace` | the keyspace that the call is about: whoever passes it on has decided that |
//! | `hadron-passed-door` | the URL that leads the client back, if no other would |
//! | `hadron-passed-user` | the common name in the client's certificate, if that may name a user |
//! | `hadron-passed-from` | the client's address |
//! | `hadron-leader` | in the answer: the node that leads the keyspace's group |
//! | `hadron-not-here` | in the answer: it was not taken, since this node has no replica that serves |

use hadron_consensus::NodeId;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tonic::Status;
use tonic::metadata::AsciiMetadataValue;

use super::caller::CommonName;
use super::choice::{Door, KEY};
use super::span::Caller;

const DOOR: HeaderName = HeaderName::from_static("hadron-passed-door");
const USER: HeaderName = HeaderName::from_static("hadron-passed-user");
const FROM: HeaderName = HeaderName::from_static("hadron-passed-from");
const LEADER: HeaderName = HeaderName::from_static("hadron-leader");
const NOT_HERE: &str = "hadron-not-here";

/// What is told with a call.
#[derive(Debug, Default)]
pub(super) struct Told<'a> {
    pub(super) keyspace: &'a str,
    pub(super) door: Option<&'a Door>,
    pub(super) user: Option<&'a CommonName>,
    pub(super) from: Option<&'a Caller>,
}

impl Told<'_> {
    /// Writes it into a call's headers, in place of what the client wrote there.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let from = self.from.map(|Caller(address)| address.to_string());
        let told = [
            (HeaderName::from_static(KEY), Some(self.keyspace)),
            (DOOR, self.door.map(|Door(url)| url.as_str())),
            (USER, self.user.map(|CommonName(name)| &**name)),
            (FROM, from.as_deref()),
        ];
        for (name, value) in told {
            headers.remove(&name);
            // A name that no header can hold names nobody.
            if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value.as_bytes()).ok()) {
                headers.insert(name, value);
            }
        }
    }
}

/// The URL that leads the client back.
pub(super) fn door(headers: &HeaderMap) -> Option<Door> {
    text(headers, &DOOR).map(|url| Door(url.to_owned()))
}

/// The name in the client's certificate.
pub(super) fn user(headers: &HeaderMap) -> Option<CommonName> {
    text(headers, &USER).map(|name| CommonName(name.into()))
}

/// Where the client is.
pub(super) fn from(headers: &HeaderMap) -> Option<Caller> {
    text(headers, &FROM)?.parse().ok().map(Caller)
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}

/// Says in an answer who leads.
pub(super) fn note_leader(headers: &mut HeaderMap, leader: NodeId) {
    headers.insert(LEADER, HeaderValue::from(leader.0));
}

/// Who leads, as an answer says, which says it no more then.
pub(super) fn take_leader(headers: &mut HeaderMap) -> Option<NodeId> {
    headers.remove(LEADER)?.to_str().ok()?.parse().ok().map(NodeId)
}

/// What says why a call was not taken, since this node has no replica that serves: it may be sent to another node.
pub(super) fn marked(mut status: Status) -> Status {
    status.metadata_mut().insert(NOT_HERE, AsciiMetadataValue::from_static("1"));
    status
}

/// Whether a call was certainly not taken, and may be sent to another node.
pub(super) fn is_not_here<T>(response: &Response<T>) -> bool {
    response.headers().contains_key(NOT_HERE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic::body::Body;

    use super::*;

    #[test]
    fn what_is_told_is_heard_and_what_clients_wrote_is_not() {
        let mut headers = HeaderMap::new();
        for name in [DOOR, USER, FROM] {
            headers.insert(name, HeaderValue::from_static("forged"));
        }
        headers.append(KEY, HeaderValue::from_static("forged"));
        headers.append(KEY, HeaderValue::from_static("forged too"));
        Told { keyspace: "a", ..Told::default() }.write(&mut headers);
        assert_eq!((door(&headers), user(&headers)), (None, None));
        assert!(from(&headers).is_none());
        assert_eq!(headers.get_all(KEY).iter().collect::<Vec<_>>(), ["a"]);

        let (way, name) = (Door("http://a.example:1".into()), CommonName("jürgen".into()));
        let caller = Caller("[::1]:7".parse().unwrap());
        Told { keyspace: "a", door: Some(&way), user: Some(&name), from: Some(&caller) }.write(&mut headers);
        assert_eq!((door(&headers), user(&headers)), (Some(way), Some(name)));
        assert_eq!(from(&headers).unwrap().0, caller.0);
    }

    #[test]
    fn answers_say_who_leads_once() {
        let mut headers = HeaderMap::new();
        note_leader(&mut headers, NodeId(u64::MAX));
        assert_eq!(take_leader(&mut headers), Some(NodeId(u64::MAX)));
        assert_eq!(take_leader(&mut headers), None);
        assert!(is_not_here(&marked(Status::unavailable("x")).into_http::<Body>()));
        assert!(!is_not_here(&Status::unavailable("x").into_http::<Body>()));
    }
}
