//! Replies of get, put, del, txn, watch and compaction.

use hadron_proto::etcdserverpb::response_op::Response;
use hadron_proto::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse, WatchResponse,
};
use hadron_proto::mvccpb::event::EventType;
use hadron_proto::mvccpb::{Event, KeyValue};

use prost::Message as _;

use super::json::{self, Object};
use super::{Reply, Style, field, header_fields, lease_field, line, quoted_field};

impl Reply for RangeResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, style: Style, out: &mut Vec<u8>) {
        self.kvs.iter().for_each(|kv| simple_kv(out, kv, style));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        self.kvs.iter().for_each(|kv| kv_fields(out, "", kv, style));
        field(out, "More", self.more);
        field(out, "Count", self.count);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.header.as_ref())
            .list("kvs", self.kvs.iter().map(json::key_value).collect())
            .flag("more", self.more)
            .number("count", self.count)
            .end()
    }
}

impl Reply for PutResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, style: Style, out: &mut Vec<u8>) {
        line(out, "OK");
        self.prev_kv.iter().for_each(|kv| simple_kv(out, kv, style));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        self.prev_kv.iter().for_each(|kv| kv_fields(out, "Prev", kv, style));
    }

    fn json(&self, _: Style) -> String {
        let previous = self.prev_kv.as_ref().map(json::key_value);
        json::header(self.header.as_ref()).optional("prev_kv", previous).end()
    }
}

impl Reply for DeleteRangeResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, style: Style, out: &mut Vec<u8>) {
        line(out, self.deleted);
        self.prev_kvs.iter().for_each(|kv| simple_kv(out, kv, style));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        field(out, "Deleted", self.deleted);
        self.prev_kvs.iter().for_each(|kv| kv_fields(out, "Prev", kv, style));
    }

    fn json(&self, _: Style) -> String {
        json::header(self.header.as_ref())
            .number("deleted", self.deleted)
            .list("prev_kvs", self.prev_kvs.iter().map(json::key_value).collect())
            .end()
    }
}

impl Reply for TxnResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, style: Style, out: &mut Vec<u8>) {
        line(out, if self.succeeded { "SUCCESS" } else { "FAILURE" });
        for reply in self.responses.iter().filter_map(op_reply) {
            line(out, "");
            reply.simple(style, out);
        }
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        field(out, "Succeeded", self.succeeded);
        self.responses.iter().filter_map(op_reply).for_each(|reply| reply.fields(style, out));
    }

    fn json(&self, style: Style) -> String {
        let responses = self.responses.iter().map(|response| op_json(response, style)).collect();
        json::header(self.header.as_ref())
            .flag("succeeded", self.succeeded)
            .list("responses", responses)
            .end()
    }
}

fn op_reply(response: &ResponseOp) -> Option<&dyn Reply> {
    Some(match response.response.as_ref()? {
        Response::ResponseRange(reply) => reply,
        Response::ResponsePut(reply) => reply,
        Response::ResponseDeleteRange(reply) => reply,
        Response::ResponseTxn(reply) => reply,
    })
}

fn op_json(response: &ResponseOp, style: Style) -> String {
    let name = match response.response {
        Some(Response::ResponseRange(_)) => "response_range",
        Some(Response::ResponsePut(_)) => "response_put",
        Some(Response::ResponseDeleteRange(_)) => "response_delete_range",
        Some(Response::ResponseTxn(_)) => "response_txn",
        None => "",
    };
    let inner = op_reply(response).map(|reply| Object::new().raw(name, &reply.json(style)).end());
    Object::new().raw("Response", inner.as_deref().unwrap_or("null")).end()
}

impl Reply for WatchResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, style: Style, out: &mut Vec<u8>) {
        for event in &self.events {
            line(out, event_type(event));
            event.prev_kv.iter().for_each(|kv| simple_kv(out, kv, style));
            simple_kv(out, event.kv.as_ref().unwrap_or(&KeyValue::default()), style);
        }
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        for event in &self.events {
            field(out, "Type", event_type(event));
            event.prev_kv.iter().for_each(|kv| kv_fields(out, "Prev", kv, style));
            kv_fields(out, "", event.kv.as_ref().unwrap_or(&KeyValue::default()), style);
        }
    }

    fn json(&self, _: Style) -> String {
        let header = json::with_header(Object::new(), self.header.as_ref()).end();
        Object::new()
            .raw("Header", &header)
            .raw("Events", &json::list(self.events.iter().map(event_json).collect()))
            .raw("CompactRevision", &self.compact_revision.to_string())
            .raw("Canceled", if self.canceled { "true" } else { "false" })
            .raw("Created", if self.created { "true" } else { "false" })
            .end()
    }
}

fn event_json(event: &Event) -> String {
    Object::new()
        .number("type", event.r#type)
        .optional("kv", event.kv.as_ref().map(json::key_value))
        .optional("prev_kv", event.prev_kv.as_ref().map(json::key_value))
        .end()
}

/// `PUT` or `DELETE`.
pub(crate) fn event_type(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

fn simple_kv(out: &mut Vec<u8>, kv: &KeyValue, style: Style) {
    if !style.values_only {
        bytes_line(out, &kv.key, style);
    }
    bytes_line(out, &kv.value, style);
}

fn bytes_line(out: &mut Vec<u8>, bytes: &[u8], style: Style) {
    if style.hex {
        bytes.iter().for_each(|byte| out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()));
    } else {
        out.extend_from_slice(bytes);
    }
    out.push(b'\n');
}

fn kv_fields(out: &mut Vec<u8>, prefix: &str, kv: &KeyValue, style: Style) {
    quoted_field(out, &format!("{prefix}Key"), &kv.key);
    field(out, &format!("{prefix}CreateRevision"), kv.create_revision);
    field(out, &format!("{prefix}ModRevision"), kv.mod_revision);
    field(out, &format!("{prefix}Version"), kv.version);
    quoted_field(out, &format!("{prefix}Value"), &kv.value);
    lease_field(out, &format!("{prefix}Lease"), kv.lease, style);
}
