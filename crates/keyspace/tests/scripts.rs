//! Golden scripts: commands and what they answer, in `tests/scripts/*/*.txt`.
//!
//! A script is blocks of commands, a line of dashes, and the output. `UPDATE_SCRIPTS=1` writes the output anew; then read
//! the diff. Commands are lines of words, `name=value` among them:
//!
//! ```text
//! put KEY VALUE [lease=N] [prev_kv] [ignore_value] [ignore_lease]
//! get KEY [END] [rev=N] [limit=N] [sort=key|version|create|mod|value] [order=asc|desc] [keys_only] [count_only] [min_mod=N]..
//! del KEY [END] [prev_kv]
//! txn [TARGET(KEY[,END]) OP VALUE]... then [COMMAND;]... else [COMMAND;]...
//! compact N | grant ID TTL | revoke ID | keepalive ID... | expire ID... | ttl ID | leases | alarm ... | hash [N]
//! clock MS | flush | sweep | reopen | mark
//! watch CLIENT KEY [END] [rev=N] [id=N] [prev_kv] [noput] [nodelete] [progress] [fragment]
//! cancel CLIENT ID | progress CLIENT | tick CLIENT | read CLIENT
//! ```
//! `*` as an end means every key from there on; a key is written with `\0` for a zero byte.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use common::{Client, Entry, Replica};
use hadron_keyspace::{Command, Error, Options, Response, check};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::mvccpb::{KeyValue, event::EventType};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;
use pb::watch_create_request::FilterType;

struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(words: &[&'a str]) -> Words<'a> {
        let mut plain = Vec::new();
        let mut named = BTreeMap::new();
        for word in words {
            match word.split_once('=') {
                Some((name, value)) => drop(named.insert(name, value)),
                None => plain.push(*word),
            }
        }
        Words { plain, named }
    }

    fn bytes(&self, number: usize) -> Bytes {
        let word = self.plain.get(number).copied().unwrap_or_default();
        if word == "*" { "\0".into() } else { word.replace("\\0", "\0").into() }
    }

    fn has(&self, flag: &str) -> bool {
        self.plain.contains(&flag)
    }

    /// The range end: the third word, unless it is a flag.
    fn end(&self, flags: &[&str]) -> Bytes {
        if self.plain.get(2).is_none_or(|word| flags.contains(word)) { Bytes::new() } else { self.bytes(2) }
    }

    fn number(&self, name: &str) -> i64 {
        self.named.get(name).map_or(0, |value| value.parse().unwrap())
    }
}

fn put(words: &Words<'_>) -> pb::PutRequest {
    let no_value = words.has("ignore_value") && words.plain.get(2) == Some(&"ignore_value");
    pb::PutRequest {
        key: words.bytes(1),
        value: if no_value { Bytes::new() } else { words.bytes(2) },
        lease: words.number("lease"),
        prev_kv: words.has("prev_kv"),
        ignore_value: words.has("ignore_value"),
        ignore_lease: words.has("ignore_lease"),
    }
}

fn get(words: &Words<'_>) -> pb::RangeRequest {
    let target = match words.named.get("sort").copied() {
        Some("version") => SortTarget::Version,
        Some("create") => SortTarget::Create,
        Some("mod") => SortTarget::Mod,
        Some("value") => SortTarget::Value,
        _ => SortTarget::Key,
    };
    let order = match words.named.get("order").copied() {
        Some("asc") => SortOrder::Ascend,
        Some("desc") => SortOrder::Descend,
        _ => SortOrder::None,
    };
    pb::RangeRequest {
        key: words.bytes(1),
        range_end: words.end(&["keys_only", "count_only"]),
        limit: words.number("limit"),
        revision: words.number("rev"),
        sort_order: order as i32,
        sort_target: target as i32,
        keys_only: words.has("keys_only"),
        count_only: words.has("count_only"),
        min_mod_revision: words.number("min_mod"),
        max_mod_revision: words.number("max_mod"),
        min_create_revision: words.number("min_create"),
        max_create_revision: words.number("max_create"),
        ..Default::default()
    }
}

fn del(words: &Words<'_>) -> pb::DeleteRangeRequest {
    let range_end = words.end(&["prev_kv"]);
    pb::DeleteRangeRequest { key: words.bytes(1), range_end, prev_kv: words.has("prev_kv") }
}

fn compare(target: &str, operator: &str, wanted: &str) -> pb::Compare {
    let (kind, keys) = target.trim_end_matches(')').split_once('(').unwrap();
    let (key, end) = keys.split_once(',').unwrap_or((keys, ""));
    let number = || wanted.parse().unwrap();
    let (target, union) = match kind {
        "value" => (CompareTarget::Value, TargetUnion::Value(wanted.to_owned().into())),
        "version" => (CompareTarget::Version, TargetUnion::Version(number())),
        "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number())),
        "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number())),
        _ => panic!("no such target: {kind}"),
    };
    let result = match operator {
        "==" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => panic!("no such operator: {operator}"),
    };
    let end = if end == "*" { "\0" } else { end };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        target_union: Some(union),
    }
}

/// Words between `{` and its `}`; nested txns stand in braces.
fn operations(words: &mut &[&str], end: &str) -> Vec<pb::RequestOp> {
    let mut operations = Vec::new();
    let mut one: Vec<&str> = Vec::new();
    while let Some((word, rest)) = words.split_first() {
        *words = rest;
        if *word == "{" {
            let request = Some(Request::RequestTxn(txn(words)));
            operations.push(pb::RequestOp { request });
            continue;
        }
        let is_end = *word == end || *word == "}";
        let bare = word.trim_end_matches(';');
        if !is_end && !bare.is_empty() {
            one.push(bare);
        }
        if (is_end || word.ends_with(';')) && !one.is_empty() {
            operations.push(operation(&std::mem::take(&mut one)));
        }
        if is_end {
            return operations;
        }
    }
    if !one.is_empty() {
        operations.push(operation(&one));
    }
    operations
}

fn operation(words: &[&str]) -> pb::RequestOp {
    let name = words[0];
    let words = Words::new(words);
    let request = match name {
        "put" => Request::RequestPut(put(&words)),
        "get" => Request::RequestRange(get(&words)),
        "del" => Request::RequestDeleteRange(del(&words)),
        _ => panic!("no such operation: {name}"),
    };
    pb::RequestOp { request: Some(request) }
}

fn txn(words: &mut &[&str]) -> pb::TxnRequest {
    let mut request = pb::TxnRequest::default();
    while let [target, operator, wanted, rest @ ..] = words {
        if *target == "then" {
            break;
        }
        request.compare.push(compare(target, operator, wanted));
        *words = rest;
    }
    assert_eq!(words[0], "then");
    *words = &words[1..];
    request.success = operations(words, "else");
    request.failure = operations(words, "}");
    request
}

struct Script {
    replica: Replica,
    log: Vec<Entry>,
    clock_ms: u64,
    clients: BTreeMap<String, Client>,
}

impl Script {
    fn new() -> Script {
        let options = Options { watch_buffer_bytes: 400, fragment_bytes: 300, ..Options::default() };
        Script { replica: Replica::new(options), log: Vec::new(), clock_ms: 0, clients: BTreeMap::new() }
    }

    fn run(&mut self, line: &str) -> String {
        let all: Vec<&str> = line.split_whitespace().collect();
        let words = Words::new(&all);
        let id = |number: usize| words.plain.get(number).map_or(0, |word| word.parse().unwrap());
        let ids = || words.plain[1..].iter().map(|word| word.parse().unwrap()).collect();
        match all[0] {
            "put" => checked(check::put(&put(&words)), || self.apply(Command::Put(put(&words)))),
            "del" => self.apply(Command::DeleteRange(del(&words))),
            "get" => {
                checked(check::range(&get(&words)), || match self.replica.keyspace.range(&get(&words)) {
                    Ok(response) => show_range(&response),
                    Err(error) => show_error(&error),
                })
            }
            "txn" => {
                let request = txn(&mut &all[1..]);
                checked(check::txn(&request, 8), || self.apply(Command::Txn(request.clone())))
            }
            "compact" => {
                self.apply(Command::Compact(pb::CompactionRequest { revision: id(1), physical: false }))
            }
            "grant" => self.apply(Command::LeaseGrant(pb::LeaseGrantRequest { id: id(1), ttl: id(2) })),
            "revoke" => self.apply(Command::LeaseRevoke(pb::LeaseRevokeRequest { id: id(1) })),
            "keepalive" => self.apply(Command::LeaseKeepAlive(ids())),
            "expire" => self.apply(Command::LeaseExpire(ids())),
            "mark" => self.apply(Command::DigestMark),
            "ttl" => {
                let answer = self.replica.keyspace.lease_time_to_live(id(1), true, self.clock_ms);
                let keys: Vec<_> = answer.keys.iter().map(|key| text(key)).collect();
                format!(
                    "lease {} ttl={} granted={} keys={keys:?}\n",
                    answer.id, answer.ttl, answer.granted_ttl
                )
            }
            "leases" => {
                let (leases, next) = (self.replica.keyspace.leases(), self.replica.keyspace.next_expiry());
                let expired = self.replica.keyspace.expired_leases(self.clock_ms, 10);
                format!("leases {leases:?} expired={expired:?} next_expiry={next:?}\n")
            }
            "hash" => match self.replica.keyspace.hash_kv(id(1)) {
                Ok(hash) => {
                    format!(
                        "hash {} compact={} rev={}\n",
                        hash.hash, hash.compact_revision, hash.hash_revision
                    )
                }
                Err(error) => show_error(&error),
            },
            "clock" => {
                self.clock_ms = id(1) as u64;
                String::new()
            }
            "flush" => {
                self.replica.flush_all();
                String::new()
            }
            "sweep" => {
                let before = self.replica.keyspace.db_bytes();
                while self.replica.sweep(10) {}
                format!(
                    "swept, {}\n",
                    if self.replica.keyspace.db_bytes() < before { "smaller" } else { "no change" }
                )
            }
            "reopen" => {
                self.replica.crash(usize::MAX);
                self.clients.clear();
                format!("applied {} of {}\n", self.replica.index(), self.log.len())
            }
            "watch" | "cancel" | "progress" | "tick" | "read" => self.watch(all[0], &all[1..]),
            unknown => panic!("no such command: {unknown}"),
        }
    }

    fn apply(&mut self, command: Command) -> String {
        self.log.push((self.clock_ms, vec![command]));
        match self.replica.follow(&self.log).pop().unwrap() {
            Ok(response) => show(&response),
            Err(error) => show_error(&error),
        }
    }

    fn watch(&mut self, command: &str, words: &[&str]) -> String {
        let client =
            self.clients.entry(words[0].into()).or_insert_with(|| Client::new(&self.replica.keyspace));
        let words = Words::new(words);
        match command {
            "watch" => {
                let mut filters = Vec::new();
                filters.extend(words.has("noput").then_some(FilterType::Noput as i32));
                filters.extend(words.has("nodelete").then_some(FilterType::Nodelete as i32));
                client.stream.create(pb::WatchCreateRequest {
                    key: words.bytes(1),
                    range_end: words.end(&["noput", "nodelete", "prev_kv", "progress", "fragment"]),
                    start_revision: words.number("rev"),
                    watch_id: words.number("id"),
                    prev_kv: words.has("prev_kv"),
                    progress_notify: words.has("progress"),
                    fragment: words.has("fragment"),
                    filters,
                });
                String::new()
            }
            "cancel" => {
                client.stream.cancel(words.plain[1].parse().unwrap());
                String::new()
            }
            "progress" => {
                client.stream.request_progress();
                String::new()
            }
            "tick" => {
                client.stream.tick_progress();
                String::new()
            }
            _ => client.drain().iter().map(show_watch).collect(),
        }
    }
}

fn checked(check: Result<(), Error>, run: impl FnOnce() -> String) -> String {
    match check {
        Ok(()) => run(),
        Err(error) => format!("refused: {error}\n"),
    }
}

fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.len() > 20 { format!("{}..({} bytes)", &text[..4], text.len()) } else { text.into_owned() }
}

fn show_error(error: &Error) -> String {
    format!("error: {error}\n")
}

fn show_kv(kv: &KeyValue) -> String {
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease={}", kv.lease) };
    let (key, value) = (text(&kv.key), text(&kv.value));
    format!(
        "{key}={value} create={} mod={} version={}{lease}",
        kv.create_revision, kv.mod_revision, kv.version
    )
}

fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().unwrap().revision
}

fn show_range(response: &pb::RangeResponse) -> String {
    let more = if response.more { " more" } else { "" };
    let mut out = format!("rev={} count={}{more}\n", revision(&response.header), response.count);
    response.kvs.iter().for_each(|kv| writeln!(out, "  {}", show_kv(kv)).unwrap());
    out
}

fn show_delete(response: &pb::DeleteRangeResponse) -> String {
    let mut out = format!("rev={} deleted={}\n", revision(&response.header), response.deleted);
    response.prev_kvs.iter().for_each(|kv| writeln!(out, "  was {}", show_kv(kv)).unwrap());
    out
}

fn show_put(response: &pb::PutResponse) -> String {
    let previous = response.prev_kv.as_ref().map(|kv| format!(" was {}", show_kv(kv))).unwrap_or_default();
    format!("rev={}{previous}\n", revision(&response.header))
}

fn show_txn(response: &pb::TxnResponse) -> String {
    let mut out = format!("rev={} succeeded={}\n", revision(&response.header), response.succeeded);
    for response in &response.responses {
        let shown = match response.response.as_ref().unwrap() {
            pb::response_op::Response::ResponseRange(range) => format!("get {}", show_range(range)),
            pb::response_op::Response::ResponsePut(put) => format!("put {}", show_put(put)),
            pb::response_op::Response::ResponseDeleteRange(delete) => format!("del {}", show_delete(delete)),
            pb::response_op::Response::ResponseTxn(txn) => format!("txn {}", show_txn(txn)),
        };
        shown.lines().for_each(|line| writeln!(out, "  {line}").unwrap());
    }
    out
}

fn show(response: &Response) -> String {
    match response {
        Response::Put(response) => show_put(response),
        Response::DeleteRange(response) => show_delete(response),
        Response::Txn(response) => show_txn(response),
        Response::Compact(response) => format!("rev={}\n", revision(&response.header)),
        Response::LeaseGrant(response) => {
            format!("rev={} lease {} ttl={}\n", revision(&response.header), response.id, response.ttl)
        }
        Response::LeaseRevoke(response) => format!("rev={}\n", revision(&response.header)),
        Response::LeaseKeepAlive(responses) => {
            responses.iter().map(|response| format!("lease {} ttl={}\n", response.id, response.ttl)).collect()
        }
        Response::LeaseExpire(ids) => format!("expired {ids:?}\n"),
        Response::Alarm(response) => format!("alarms {}\n", response.alarms.len()),
        Response::DigestMark(_) => "marked\n".into(),
        Response::Auth(_) => "changed\n".into(),
    }
}

fn show_watch(response: &pb::WatchResponse) -> String {
    let mut out = format!("watch {} rev={}", response.watch_id, revision(&response.header));
    for (is_set, name) in
        [(response.created, " created"), (response.canceled, " canceled"), (response.fragment, " fragment")]
    {
        out += if is_set { name } else { "" };
    }
    if response.compact_revision != 0 {
        write!(out, " compact_revision={}", response.compact_revision).unwrap();
    }
    if !response.cancel_reason.is_empty() {
        write!(out, " reason: {}", response.cancel_reason).unwrap();
    }
    out.push('\n');
    for event in &response.events {
        let kv = event.kv.as_ref().unwrap();
        let previous = event.prev_kv.as_ref().map(|kv| format!(" was {}", show_kv(kv))).unwrap_or_default();
        match event.r#type() {
            EventType::Put => writeln!(out, "  put {}{previous}", show_kv(kv)).unwrap(),
            EventType::Delete => {
                writeln!(out, "  delete {} mod={}{previous}", text(&kv.key), kv.mod_revision).unwrap()
            }
        }
    }
    out
}

/// Runs a script's blocks and returns it with the output as it is now.
fn rerun(script: &str) -> String {
    let mut state = Script::new();
    let mut out = String::new();
    for block in script.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let (commands, _) = block.split_once("----").unwrap_or((block, ""));
        let commands = commands.trim_end().trim_start_matches('\n');
        let mut output = String::new();
        for line in commands.lines().filter(|line| !line.trim_start().starts_with('#')) {
            output += &state.run(line);
        }
        write!(out, "{commands}\n----\n{output}\n").unwrap();
    }
    out
}

fn run_folder(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(name);
    let mut paths: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let script = std::fs::read_to_string(&path).unwrap();
        let now = rerun(&script);
        if std::env::var_os("UPDATE_SCRIPTS").is_some() {
            std::fs::write(&path, &now).unwrap();
        } else {
            assert!(now == script, "{} differs; it is now:\n{now}", path.display());
        }
    }
}

#[test]
fn mvcc() {
    run_folder("mvcc");
}

#[test]
fn txns() {
    run_folder("txn");
}

#[test]
fn leases() {
    run_folder("lease");
}

#[test]
fn watches() {
    run_folder("watch");
}

#[test]
fn compaction() {
    run_folder("compaction");
}
