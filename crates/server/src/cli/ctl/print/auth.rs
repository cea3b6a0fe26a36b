//! Replies about users, roles and permissions.

use hadron_proto::authpb::Permission;
use hadron_proto::authpb::permission::Type;
use hadron_proto::etcdserverpb::{
    AuthRoleGetResponse, AuthStatusResponse, AuthUserAddResponse, AuthUserGetResponse, AuthUserListResponse,
    ResponseHeader,
};

use prost::Message as _;

use super::json::{self, Object};
use super::{Reply, Style, field, header_fields, line, quoted_field};
use crate::cli::ctl::kv::prefix_end;
use crate::go_text;

/// Something was changed.
pub(crate) struct Changed {
    /// What, in words.
    pub(crate) text: String,
    pub(crate) header: Option<ResponseHeader>,
}

impl Reply for Changed {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(AuthUserAddResponse { header: self.header }.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, &self.text);
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.header.as_ref()).end()
    }
}

/// All users, or all roles.
pub(crate) struct Names {
    /// `Users` or `Roles`.
    pub(crate) kind: &'static str,
    pub(crate) header: Option<ResponseHeader>,
    pub(crate) names: Vec<String>,
}

fn name_list(out: &mut Vec<u8>, kind: &str, names: &[String]) {
    let quoted: String = names.iter().map(|name| format!(" {}", go_text::quote(name.as_bytes()))).collect();
    line(out, format_args!("\"{kind}\" :{quoted}"));
}

fn json_names(names: &[String]) -> Vec<String> {
    names.iter().map(|name| json::text(name)).collect()
}

impl Reply for Names {
    fn protobuf(&self) -> Option<Vec<u8>> {
        let (header, users) = (self.header, self.names.clone());
        Some(AuthUserListResponse { header, users }.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        self.names.iter().for_each(|name| line(out, name));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        name_list(out, self.kind, &self.names);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.header.as_ref()).list(&self.kind.to_lowercase(), json_names(&self.names)).end()
    }
}

/// A user's roles.
pub(crate) struct OfUser {
    pub(crate) name: String,
    pub(crate) reply: AuthUserGetResponse,
}

impl Reply for OfUser {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.reply.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("User: {}", self.name));
        let roles: String = self.reply.roles.iter().map(|role| format!(" {role}")).collect();
        line(out, format_args!("Roles:{roles}"));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.reply.header.as_ref(), style);
        name_list(out, "Roles", &self.reply.roles);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.reply.header.as_ref()).list("roles", json_names(&self.reply.roles)).end()
    }
}

/// A role's permissions.
pub(crate) struct OfRole {
    pub(crate) name: String,
    pub(crate) reply: AuthRoleGetResponse,
}

impl OfRole {
    fn simple_kind(&self, out: &mut Vec<u8>, kind: &str, is_meant: impl Fn(Type) -> bool) {
        line(out, format_args!("KV {kind}:"));
        if self.name == "root" && self.reply.perm.is_empty() {
            line(out, "\t[, <open ended>");
        }
        for permission in self.reply.perm.iter().filter(|permission| is_meant(permission.perm_type())) {
            line(out, format_args!("\t{}", keys(permission)));
        }
    }
}

/// The key or the range of a permission.
fn keys(permission: &Permission) -> String {
    let (key, end) =
        (String::from_utf8_lossy(&permission.key), String::from_utf8_lossy(&permission.range_end));
    let range = match permission.range_end.as_ref() {
        [] => return key.into_owned(),
        [0] => format!("[{key}, <open ended>"),
        _ => format!("[{key}, {end})"),
    };
    match !key.is_empty() && prefix_end(&permission.key) == permission.range_end {
        true => format!("{range} (prefix {key})"),
        false => range,
    }
}

impl Reply for OfRole {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.reply.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("Role {}", self.name));
        self.simple_kind(out, "Read", |kind| kind != Type::Write);
        self.simple_kind(out, "Write", |kind| kind != Type::Read);
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.reply.header.as_ref(), style);
        for permission in &self.reply.perm {
            // Two spaces are `etcdctl`'s.
            line(out, format_args!("\"PermType\" :  {}", permission.perm_type().as_str_name()));
            quoted_field(out, "Key", &permission.key);
            quoted_field(out, "RangeEnd", &permission.range_end);
        }
    }

    fn json(&self, _: Style) -> String {
        let permission = |one: &Permission| {
            Object::new()
                .number("permType", one.perm_type)
                .bytes("key", &one.key)
                .bytes("range_end", &one.range_end)
                .end()
        };
        let permissions = self.reply.perm.iter().map(permission).collect();
        json::header(self.reply.header.as_ref()).list("perm", permissions).end()
    }
}

impl Reply for AuthStatusResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("Authentication Status: {}", self.enabled));
        line(out, format_args!("AuthRevision: {}", self.auth_revision));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        field(out, "Enabled", self.enabled);
        field(out, "AuthRevision", self.auth_revision);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.header.as_ref())
            .flag("enabled", self.enabled)
            .number("authRevision", self.auth_revision)
            .end()
    }
}
