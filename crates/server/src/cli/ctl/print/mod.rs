//! What the commands print: each reply as simple lines, fields, JSON or a table, byte for byte as `etcdctl` does.
//!
//! A reply type implements [`Reply`]; [`Printer`] picks the form that `--write-out` asks for. The layouts are those of
//! `etcdctl` 3.6, which adds columns to `endpoint status` and `endpoint hashkv` of 3.5 and otherwise equals it.

pub(crate) mod auth;
pub(crate) mod balance;
pub(crate) mod cluster;
pub(crate) mod hitters;
pub(crate) mod json;
pub(crate) mod kv;
pub(crate) mod lease;
pub(crate) mod pool;
pub(crate) mod simulated;
pub(crate) mod table;

use std::io::Write as _;

use hadron_proto::etcdserverpb::ResponseHeader;

use super::failure::Failure;
use table::Table;

/// The forms that `--write-out` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

impl Format {
    /// Reads the value of `--write-out`.
    pub(crate) fn parse(text: &str) -> Result<Format, Failure> {
        match text {
            "simple" => Ok(Format::Simple),
            "json" => Ok(Format::Json),
            "fields" => Ok(Format::Fields),
            "table" => Ok(Format::Table),
            "protobuf" => Ok(Format::Protobuf),
            _ => Err(Failure::feature("unsupported output format")),
        }
    }
}

/// Flags that change how a reply looks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    /// `--hex`: keys and values in hexadecimal, ids too where they are decimal otherwise.
    pub(crate) hex: bool,
    /// `--print-value-only`: values without their keys.
    pub(crate) values_only: bool,
}

/// Something a command prints.
pub(crate) trait Reply {
    /// For people.
    fn simple(&self, style: Style, out: &mut Vec<u8>);
    /// `"Name" : value`, one a line.
    fn fields(&self, style: Style, out: &mut Vec<u8>);
    /// One line.
    fn json(&self, style: Style) -> String;
    /// As it came; only replies that are one message have this.
    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }
    /// Only some replies have a table.
    fn table(&self) -> Option<Table> {
        None
    }
}

/// Writes replies to standard output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) format: Format,
    pub(crate) style: Style,
}

impl Printer {
    /// Prints a reply.
    pub(crate) fn print(&self, reply: &dyn Reply) -> Result<(), Failure> {
        write_out(&self.render(reply)?)
    }

    /// The reply as it is printed.
    pub(crate) fn render(&self, reply: &dyn Reply) -> Result<Vec<u8>, Failure> {
        let mut out = Vec::new();
        match self.format {
            Format::Simple => reply.simple(self.style, &mut out),
            Format::Fields => reply.fields(self.style, &mut out),
            Format::Json => {
                out.extend_from_slice(reply.json(self.style).as_bytes());
                out.push(b'\n');
            }
            Format::Protobuf => match reply.protobuf() {
                Some(bytes) => out = bytes,
                None => return Err(Failure::feature("protobuf not supported as output format")),
            },
            Format::Table => match reply.table() {
                Some(table) => out.extend_from_slice(table.draw().as_bytes()),
                None => return Err(Failure::feature("table not supported as output format")),
            },
        }
        Ok(out)
    }
}

/// Writes to standard output and flushes, so that a watch shows each event at once.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        // The reader has seen enough (`| head`): nothing to report.
        std::io::ErrorKind::BrokenPipe => Failure::silent(),
        _ => Failure::error(error),
    })
}

/// Appends a line.
pub(crate) fn line(out: &mut Vec<u8>, text: impl std::fmt::Display) {
    out.extend_from_slice(format!("{text}\n").as_bytes());
}

/// Appends a field whose value is printed as it is.
pub(crate) fn field(out: &mut Vec<u8>, name: &str, value: impl std::fmt::Display) {
    line(out, format_args!("\"{name}\" : {value}"));
}

/// Appends a field whose value is quoted.
pub(crate) fn quoted_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    field(out, name, super::go_text::quote(value));
}

/// Appends a field that holds the id of a lease.
pub(crate) fn lease_field(out: &mut Vec<u8>, name: &str, id: i64, style: Style) {
    if style.hex { field(out, name, format_args!("{id:016x}")) } else { field(out, name, id) }
}

/// Appends a field that holds the id of a cluster or member.
pub(crate) fn id_field(out: &mut Vec<u8>, name: &str, id: u64, style: Style) {
    if style.hex { field(out, name, format_args!("{id:x}")) } else { field(out, name, id) }
}

/// Appends the fields of a header. The revision is left out where replies have none.
pub(crate) fn header_fields(out: &mut Vec<u8>, header: Option<&ResponseHeader>, style: Style) {
    let header = header.copied().unwrap_or_default();
    id_field(out, "ClusterID", header.cluster_id, style);
    id_field(out, "MemberID", header.member_id, style);
    if header.revision > 0 {
        field(out, "Revision", header.revision);
    }
    field(out, "RaftTerm", header.raft_term);
}

#[cfg(test)]
mod tests;
#[cfg(test)]
use tests::text;
