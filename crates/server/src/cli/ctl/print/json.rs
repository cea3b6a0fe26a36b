//! JSON as Go's `encoding/json` writes it: members in the order of the struct, and, for protobuf messages, zero values
//! left out. Hand-built, because exactly this text is the interface that scripts parse.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hadron_proto::etcdserverpb::ResponseHeader;
use hadron_proto::mvccpb::KeyValue;

/// A JSON object under construction.
#[derive(Debug, Default)]
pub(crate) struct Object(String);

impl Object {
    /// An empty object.
    pub(crate) fn new() -> Object {
        Object::default()
    }

    /// Adds a member whose value is JSON already.
    pub(crate) fn raw(mut self, name: &str, value: &str) -> Object {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":");
        self.0.push_str(value);
        self
    }

    /// Adds a member whose value is JSON already, if there is one.
    pub(crate) fn optional(self, name: &str, value: Option<String>) -> Object {
        match value {
            Some(value) => self.raw(name, &value),
            None => self,
        }
    }

    /// Adds a number unless it is zero.
    pub(crate) fn number(self, name: &str, value: impl Into<i128>) -> Object {
        match value.into() {
            0 => self,
            value => self.raw(name, &value.to_string()),
        }
    }

    /// Adds a boolean unless it is false.
    pub(crate) fn flag(self, name: &str, value: bool) -> Object {
        if value { self.raw(name, "true") } else { self }
    }

    /// Adds bytes in base64 unless there are none.
    pub(crate) fn bytes(self, name: &str, value: &[u8]) -> Object {
        if value.is_empty() { self } else { self.raw(name, &bytes(value)) }
    }

    /// Adds a text unless it is empty.
    pub(crate) fn text(self, name: &str, value: &str) -> Object {
        if value.is_empty() { self } else { self.raw(name, &text(value)) }
    }

    /// Adds an array unless it is empty.
    pub(crate) fn list(self, name: &str, values: Vec<String>) -> Object {
        if values.is_empty() { self } else { self.raw(name, &list(values)) }
    }

    /// The finished text.
    pub(crate) fn end(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push('}');
        self.0
    }
}

/// An array of values that are JSON already.
pub(crate) fn list(values: Vec<String>) -> String {
    format!("[{}]", values.join(","))
}

/// A string. `<`, `>` and `&` are escaped, as Go does by default.
pub(crate) fn text(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len() + 2);
    escaped.push('"');
    for character in value.chars() {
        match character {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                escaped.push_str(&format!("\\u{:04x}", character as u32));
            }
            other => escaped.push(other),
        }
    }
    escaped.push('"');
    escaped
}

/// Bytes in base64.
pub(crate) fn bytes(value: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(value))
}

/// The members of a response header, on their own or flattened into another object.
pub(crate) fn with_header(object: Object, header: Option<&ResponseHeader>) -> Object {
    let Some(header) = header else { return object };
    object
        .number("cluster_id", header.cluster_id)
        .number("member_id", header.member_id)
        .number("revision", header.revision)
        .number("raft_term", header.raft_term)
}

/// The member `header`, if there is a header.
pub(crate) fn header(header: Option<&ResponseHeader>) -> Object {
    Object::new().optional("header", header.map(|header| with_header(Object::new(), Some(header)).end()))
}

/// A key-value pair.
pub(crate) fn key_value(kv: &KeyValue) -> String {
    Object::new()
        .bytes("key", &kv.key)
        .number("create_revision", kv.create_revision)
        .number("mod_revision", kv.mod_revision)
        .number("version", kv.version)
        .bytes("value", &kv.value)
        .number("lease", kv.lease)
        .end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_values_are_left_out_and_order_is_kept() {
        assert_eq!(Object::new().end(), "{}");
        let object =
            Object::new().number("b", 0).text("a", "x<y").flag("f", false).bytes("k", b"foo").number("n", -1);
        assert_eq!(object.end(), r#"{"a":"x\u003cy","k":"Zm9v","n":-1}"#);
    }

    #[test]
    fn lists_and_texts_are_escaped() {
        assert_eq!(
            Object::new().list("l", vec![text("\"\\\n\u{1}é")]).end(),
            "{\"l\":[\"\\\"\\\\\\n\\u0001é\"]}"
        );
    }
}
