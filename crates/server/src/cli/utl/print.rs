//! What `etcdutl` prints.

use serde_json::json;

use super::super::ctl::print::table::Table;
use super::super::ctl::print::{Reply, Style, field};
use crate::backup::{HashKv, Status};
use crate::go_text;

impl Reply for Status {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(table_of(self).lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        field(out, "Hash", self.hash);
        field(out, "Revision", self.revision);
        field(out, "Keys", self.keys);
        field(out, "Size", self.bytes);
        field(out, "Version", &self.version);
    }

    fn json(&self, _: Style) -> String {
        let Status { hash, revision, keys, bytes, version } = self;
        let parts = [
            format!("\"hash\":{hash}"),
            format!("\"revision\":{revision}"),
            format!("\"totalKey\":{keys}"),
            format!("\"totalSize\":{bytes}"),
            format!("\"version\":{}", json!(version)),
        ];
        format!("{{{}}}", parts.join(","))
    }

    fn table(&self) -> Option<Table> {
        Some(table_of(self))
    }
}

fn table_of(status: &Status) -> Table {
    let Status { hash, revision, keys, bytes, version } = status;
    let size = go_text::size(*bytes);
    let row = vec![format!("{hash:x}"), revision.to_string(), keys.to_string(), size, version.clone()];
    Table { header: vec!["hash", "revision", "total keys", "total size", "version"], rows: vec![row] }
}

impl Reply for HashKv {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(hash_table(self).lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        field(out, "Hash", self.hash);
        field(out, "Hash revision", self.revision);
        field(out, "Compact revision", self.compact_revision);
    }

    fn json(&self, _: Style) -> String {
        let HashKv { hash, revision, compact_revision } = self;
        format!("{{\"hash\":{hash},\"hashRevision\":{revision},\"compactRevision\":{compact_revision}}}")
    }

    fn table(&self) -> Option<Table> {
        Some(hash_table(self))
    }
}

fn hash_table(hash: &HashKv) -> Table {
    let row = [hash.hash.to_string(), hash.revision.to_string(), hash.compact_revision.to_string()];
    Table { header: vec!["hash", "hash revision", "compact revision"], rows: vec![row.into()] }
}
