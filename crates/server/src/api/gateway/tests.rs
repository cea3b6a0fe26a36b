//! Fuzzing what reads JSON from the network: nothing that a client sends may bring the server down, and what is understood
//! must be understood as it was meant.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::KeyValue;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::json::{parse, print};
use super::requests::Splitter;
use super::routes;

/// Messages of two pools are never equal.
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(hadron_proto::DESCRIPTORS).unwrap());

static CALLS: LazyLock<HashMap<&'static str, Arc<super::Call>>> = LazyLock::new(routes::calls);

fn descriptor(name: &str) -> MessageDescriptor {
    POOL.get_message_by_name(&format!("etcdserverpb.{name}")).unwrap()
}

fn understood(name: &str, text: &Value) -> DynamicMessage {
    let descriptor = descriptor(name);
    let bytes = parse(&descriptor, text.to_string().as_bytes()).unwrap();
    DynamicMessage::decode(descriptor, bytes.as_slice()).unwrap()
}

fn refused(name: &str, text: &str) -> String {
    parse(&descriptor(name), text.as_bytes()).unwrap_err().message().to_owned()
}

#[test]
fn a_field_has_many_spellings() {
    let expected = pb::RangeRequest {
        key: Bytes::from_static(b"foo?"),
        range_end: Bytes::from_static(&[0xfb, 0xff]),
        limit: 7,
        revision: i64::MAX,
        sort_order: 2,
        keys_only: true,
        ..Default::default()
    };
    for text in [
        json!({ "key": "Zm9vPw==", "range_end": "+/8=", "limit": "7", "revision": "9223372036854775807",
                "sort_order": "DESCEND", "keys_only": true }),
        json!({ "key": "Zm9vPw", "rangeEnd": "-_8", "limit": 7, "revision": i64::MAX, "sortOrder": 2,
                "keysOnly": true, "max_mod_revision": null, "nothing": { "known": [] } }),
    ] {
        let bytes = parse(&descriptor("RangeRequest"), text.to_string().as_bytes()).unwrap();
        assert_eq!(pb::RangeRequest::decode(bytes.as_slice()).unwrap(), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    for (text, part) in [
        ("{", "EOF"),
        ("null", "null"),
        ("[]", "expected a map"),
        (r#"{"key":"*"}"#, "base64"),
        (r#"{"key":3}"#, "base64"),
        (r#"{"limit":"x"}"#, "invalid digit"),
        (r#"{"limit":1.5}"#, "integer"),
        (r#"{"limit":9223372036854775808}"#, "out of range"),
        (r#"{"keys_only":1}"#, "boolean"),
    ] {
        let said = refused("RangeRequest", text);
        assert!(said.starts_with("etcdserverpb.RangeRequest: ") && said.contains(part), "{text}: {said}");
    }
    let twice = r#"{"create_request":{},"cancel_request":{}}"#;
    assert!(refused("WatchRequest", twice).contains("multiple fields provided for oneof"));
    let deep = format!("{}1{}", r#"{"success":[{"request_txn":"#.repeat(100), "}]}".repeat(100));
    assert!(refused("TxnRequest", &deep).contains("recursion limit"));
}

#[test]
fn answers_have_etcds_names_and_leave_defaults_out() {
    let kv = KeyValue { key: "k".into(), create_revision: 2, version: 1, ..Default::default() };
    let answer = pb::RangeResponse { kvs: vec![kv], count: 1, ..Default::default() };
    let text = print(&descriptor("RangeResponse"), answer.encode_to_vec().into()).unwrap();
    let expected = r#"{"kvs":[{"key":"aw==","create_revision":"2","version":"1"}],"count":"1"}"#;
    assert_eq!(String::from_utf8(text).unwrap(), expected);
    let status = pb::StatusResponse { db_size: 1, raft_index: u64::MAX, ..Default::default() };
    let text = print(&descriptor("StatusResponse"), status.encode_to_vec().into()).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), r#"{"dbSize":"1","raftIndex":"18446744073709551615"}"#);
}

/// Texts that look like requests: objects with the names of fields, and values of any kind.
fn request_like() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(|number| Value::from(number.to_string())),
        any::<i32>().prop_map(|number| Value::from(f64::from(number) / 4.0)),
        "[A-Za-z0-9+/_-]{0,8}={0,2}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("DESCEND")),
    ];
    let mut names: Vec<String> = Vec::new();
    for call in CALLS.values() {
        let nested = call.request.fields().filter_map(|field| field.kind().as_message().cloned());
        for message in nested.chain([call.request.clone()]) {
            names.extend(message.fields().flat_map(|f| [f.name().to_owned(), f.json_name().to_owned()]));
        }
    }
    names.sort();
    names.dedup();
    scalar.prop_recursive(5, 40, 5, move |inner| {
        let field = (prop::sample::select(names.clone()), inner.clone());
        let object =
            vec(field, 0..5).prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>()));
        prop_oneof![3 => object, 1 => vec(inner, 0..4).prop_map(Value::from)]
    })
}

fn text_like() -> impl Strategy<Value = Vec<u8>> {
    let damaged = (request_like(), any::<prop::sample::Index>(), any::<u8>());
    prop_oneof![
        request_like().prop_map(|value| value.to_string().into_bytes()),
        vec(any::<u8>(), 0..64),
        damaged.prop_map(|(value, position, byte)| {
            let mut text = value.to_string().into_bytes();
            let position = position.index(text.len());
            text[position] = byte;
            text
        }),
    ]
}

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(text in text_like()) {
        for call in CALLS.values() {
            if let Ok(bytes) = parse(&call.request, &text) {
                let message = DynamicMessage::decode(call.request.clone(), bytes.as_slice()).unwrap();
                print(&call.request, message.encode_to_vec().into()).unwrap();
            }
        }
    }

    #[test]
    fn what_is_printed_is_understood_as_it_was_meant(value in request_like()) {
        let message = match parse(&descriptor("TxnRequest"), value.to_string().as_bytes()) {
            Ok(bytes) => DynamicMessage::decode(descriptor("TxnRequest"), bytes.as_slice()).unwrap(),
            Err(_) => return Ok(()),
        };
        let text = print(&descriptor("TxnRequest"), message.encode_to_vec().into()).unwrap();
        let again = understood("TxnRequest", &serde_json::from_slice(&text).unwrap());
        prop_assert_eq!(message, again);
    }

    #[test]
    fn objects_are_found_however_they_arrive(
        values in vec(vec(("[a-z\"\\\\{}]{0,6}", request_like()), 0..4), 0..5),
        blank in "[ \n\t]{0,3}",
        cut in 1..20usize,
    ) {
        let objects: Vec<Value> =
            values.into_iter().map(|fields| Value::Object(fields.into_iter().collect())).collect();
        let text: String = objects.iter().map(|object| format!("{blank}{object}")).collect();
        let mut splitter = Splitter::default();
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(cut) {
            splitter.text.extend_from_slice(piece);
            while let Some(object) = splitter.next().unwrap() {
                found.push(serde_json::from_slice::<Value>(&object).unwrap());
            }
        }
        prop_assert!(!splitter.is_within_object());
        prop_assert_eq!(found, objects);
    }

    #[test]
    fn any_bytes_are_split_or_refused(pieces in vec(vec(any::<u8>(), 0..32), 0..8)) {
        let mut splitter = Splitter::default();
        'pieces: for piece in pieces {
            splitter.text.extend_from_slice(&piece);
            loop {
                match splitter.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'pieces,
                }
            }
        }
    }
}
