//! Replies of the lease commands.
//!
//! `etcdctl` prints most of them as structs of its Go client rather than as protobuf messages, hence the flattened
//! headers, the zeroes and the names in small letters.

use hadron_proto::etcdserverpb::{
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse,
};

use prost::Message as _;

use super::json::{self, Object};
use super::{Reply, Style, field, header_fields, lease_field, line, quoted_field};

impl Reply for LeaseGrantResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("lease {:016x} granted with TTL({}s)", self.id, self.ttl));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        lease_field(out, "ID", self.id, style);
        field(out, "TTL", self.ttl);
    }

    fn json(&self, _: Style) -> String {
        json::with_header(Object::new(), self.header.as_ref())
            .raw("ID", &self.id.to_string())
            .raw("TTL", &self.ttl.to_string())
            .raw("Error", &json::text(&self.error))
            .end()
    }
}

/// The reply to a revocation, with the id of the lease, which the message does not hold.
pub(crate) struct Revoked {
    pub(crate) id: i64,
    pub(crate) response: LeaseRevokeResponse,
}

impl Reply for Revoked {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("lease {:016x} revoked", self.id));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.response.header.as_ref(), style);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.response.header.as_ref()).end()
    }
}

impl Reply for LeaseKeepAliveResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("lease {:016x} keepalived with TTL({})", self.id, self.ttl));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        lease_field(out, "ID", self.id, style);
        field(out, "TTL", self.ttl);
    }

    fn json(&self, _: Style) -> String {
        json::with_header(Object::new(), self.header.as_ref())
            .raw("ID", &self.id.to_string())
            .raw("TTL", &self.ttl.to_string())
            .end()
    }
}

/// The reply to `lease timetolive`, with whether keys were asked for.
pub(crate) struct TimeToLive {
    pub(crate) response: LeaseTimeToLiveResponse,
    pub(crate) keys: bool,
}

impl Reply for TimeToLive {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        let lease = &self.response;
        if lease.granted_ttl == 0 && lease.ttl == -1 {
            return line(out, format_args!("lease {:016x} already expired", lease.id));
        }
        let text = format!(
            "lease {:016x} granted with TTL({}s), remaining({}s)",
            lease.id, lease.granted_ttl, lease.ttl
        );
        out.extend_from_slice(text.as_bytes());
        if self.keys {
            out.extend_from_slice(b", attached keys([");
            out.extend_from_slice(&lease.keys.join(&b' '));
            out.extend_from_slice(b"])");
        }
        out.push(b'\n');
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        let lease = &self.response;
        header_fields(out, lease.header.as_ref(), style);
        lease_field(out, "ID", lease.id, style);
        field(out, "TTL", lease.ttl);
        field(out, "GrantedTTL", lease.granted_ttl);
        lease.keys.iter().for_each(|key| quoted_field(out, "Key", key));
    }

    fn json(&self, _: Style) -> String {
        let lease = &self.response;
        let keys = lease.keys.iter().map(|key| json::bytes(key)).collect::<Vec<_>>();
        json::with_header(Object::new(), lease.header.as_ref())
            .raw("id", &lease.id.to_string())
            .raw("ttl", &lease.ttl.to_string())
            .raw("granted-ttl", &lease.granted_ttl.to_string())
            .raw("keys", &if keys.is_empty() { "null".to_owned() } else { json::list(keys) })
            .end()
    }
}

impl Reply for LeaseLeasesResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("found {} leases", self.leases.len()));
        self.leases.iter().for_each(|lease| line(out, format_args!("{:016x}", lease.id)));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        self.leases.iter().for_each(|lease| lease_field(out, "ID", lease.id, style));
    }

    fn json(&self, _: Style) -> String {
        let leases = self.leases.iter().map(|lease| Object::new().raw("id", &lease.id.to_string()).end());
        json::with_header(Object::new(), self.header.as_ref())
            .raw("leases", &json::list(leases.collect()))
            .end()
    }
}
