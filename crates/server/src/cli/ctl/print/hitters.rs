//! Prefixes and clients that cause load. Hadron's own, in the manner of `etcdctl`'s.

use hadron_proto::hadron::{TopBy, TopEntry, TopResponse};
use prost::Message as _;

use super::balance::{amounts, loads_json};
use super::json::Object;
use super::table::Table;
use super::{Reply, Style, field, line, quoted_field};
use crate::api::hitters::RESOURCES;

/// Who causes the load.
pub(crate) struct Hitters(pub(crate) TopBy, pub(crate) TopResponse);

impl Hitters {
    fn what(&self) -> &'static str {
        if self.0 == TopBy::Client { "client" } else { "prefix" }
    }

    fn as_table(&self) -> Table {
        let row = |entry: &TopEntry| {
            let mut row = vec![entry.keyspace.clone(), name(entry)];
            row.extend(amounts(&entry.loads, &RESOURCES));
            row
        };
        let mut header = vec!["keyspace", self.what()];
        header.extend(RESOURCES);
        Table { header, rows: self.1.entries.iter().map(row).collect() }
    }
}

/// A name as people read it. Keys without a slash have none.
fn name(entry: &TopEntry) -> String {
    match entry.name.as_ref() {
        b"" => "*".to_owned(),
        name => String::from_utf8_lossy(name).into_owned(),
    }
}

impl Reply for Hitters {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.1.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        for entry in &self.1.entries {
            quoted_field(out, "Keyspace", entry.keyspace.as_bytes());
            quoted_field(out, if self.0 == TopBy::Client { "Client" } else { "Prefix" }, &entry.name);
            entry.loads.iter().for_each(|load| field(out, &load.resource, load.short));
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let entry = |entry: &TopEntry| {
            Object::new()
                .text("keyspace", &entry.keyspace)
                .bytes(self.what(), &entry.name)
                .list("loads", loads_json(&entry.loads))
                .end()
        };
        Object::new().list("entries", self.1.entries.iter().map(entry).collect()).end()
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_proto::hadron::ResourceLoad;

    use super::super::{Format, text};
    use super::*;

    #[test]
    fn prefixes_are_lines_and_objects_with_bytes_in_base64() {
        let shown = |format, by| {
            let cpu = ResourceLoad { resource: "cpu".into(), short: 0.25, ..Default::default() };
            let entry = |name: &[u8]| TopEntry {
                keyspace: "a".into(),
                name: name.to_vec().into(),
                loads: vec![cpu.clone()],
            };
            let entries = vec![entry(b"/registry/pods/"), entry(b"")];
            text(format, &Hitters(by, TopResponse { entries, ..Default::default() }))
        };
        let simple = shown(Format::Simple, TopBy::Prefix);
        assert_eq!(simple, "a, /registry/pods/, 0.25, , , , \na, *, 0.25, , , , \n");
        assert!(
            shown(Format::Json, TopBy::Prefix)
                .contains(r#"{"keyspace":"a","prefix":"L3JlZ2lzdHJ5L3BvZHMv","#)
        );
        assert!(shown(Format::Table, TopBy::Client).contains(" CLIENT "));
    }
}
