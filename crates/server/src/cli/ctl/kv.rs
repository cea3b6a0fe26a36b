//! get, put, del and compaction. The argument types also parse the requests of a transaction, see [`super::txn`].

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use bytes::Bytes;
use hadron_proto::etcdserverpb::kv_client::KvClient;
use hadron_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use hadron_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse,
};

use tonic::{Response, Status};

use super::failure::Failure;
use super::print::{Format, write_out};
use super::{Global, Session, go_text};
use crate::client::Connection;

/// How long a range that may not have been meant is not deleted yet.
const THINK_AGAIN: Duration = Duration::from_secs(2);

/// The range end that means: every key from the first on.
const TO_THE_END: &[u8] = b"\0";
const BOTH_RANGES: &str = "`--prefix` and `--from-key` cannot be set at the same time, choose one";
const RANGE_END_TOO: &str =
    "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";

/// A client for keys that takes replies of any size: etcd bounds requests, not replies.
pub(crate) fn client(channel: Connection) -> KvClient<Connection> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// Arguments of `get`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Get {
    /// Key, and optionally the end of a range (exclusive)
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<OsString>,
    /// Linearizable(l) or serializable(s)
    #[arg(long, default_value = "l")]
    consistency: String,
    /// ASCEND or DESCEND
    #[arg(long, default_value = "", hide_default_value = true)]
    order: String,
    /// CREATE, KEY, MODIFY, VALUE or VERSION
    #[arg(long, default_value = "", hide_default_value = true)]
    sort_by: String,
    /// Most results to return
    #[arg(long, default_value_t = 0, hide_default_value = true, allow_hyphen_values = true)]
    limit: i64,
    /// Get all keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// Get all keys from this one on
    #[arg(long)]
    from_key: bool,
    /// Read at this revision
    #[arg(long, default_value_t = 0, hide_default_value = true, allow_hyphen_values = true)]
    rev: i64,
    /// Get only the keys
    #[arg(long)]
    keys_only: bool,
    /// Get only the count
    #[arg(long)]
    count_only: bool,
    /// Print only values, with the simple format
    #[arg(long)]
    print_value_only: bool,
    /// Let the server send the answer in parts: for large ranges
    #[arg(long)]
    stream: bool,
    /// Only keys created at this revision or later
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    min_create_rev: i64,
    /// Only keys created at this revision or earlier
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_create_rev: i64,
    /// Only keys modified at this revision or later
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    min_mod_rev: i64,
    /// Only keys modified at this revision or earlier
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    max_mod_rev: i64,
}

impl Get {
    /// The request for these arguments.
    pub(crate) fn request(&self) -> Result<RangeRequest, Failure> {
        let Some((key, range_end)) = key_and_range_end(&self.keys) else {
            return Err(Failure::arguments(
                "get command needs one argument as key and an optional argument as range_end",
            ));
        };
        if self.prefix && self.from_key {
            return Err(Failure::arguments(BOTH_RANGES));
        }
        if self.keys_only && self.count_only {
            return Err(Failure::arguments(
                "`--keys-only` and `--count-only` cannot be set at the same time, choose one",
            ));
        }
        let serializable = serializable(&self.consistency)?;
        let (key, range_end) = range(key, range_end, self.prefix, self.from_key)?;
        let (sort_target, sort_order) = (self.sort_target()?, self.sort_order()?);
        // Keys in ascending order are what comes anyway: asking for it would only cost a sort.
        let natural = sort_target == SortTarget::Key && sort_order == SortOrder::Ascend;
        check_bounds("CreateRev", self.min_create_rev, self.max_create_rev)?;
        check_bounds("ModRev", self.min_mod_rev, self.max_mod_rev)?;
        Ok(RangeRequest {
            key,
            range_end,
            limit: self.limit,
            revision: self.rev.max(0),
            sort_order: if natural { SortOrder::None } else { sort_order } as i32,
            sort_target: sort_target as i32,
            serializable,
            keys_only: self.keys_only,
            count_only: self.count_only,
            min_mod_revision: self.min_mod_rev.max(0),
            max_mod_revision: self.max_mod_rev.max(0),
            min_create_revision: self.min_create_rev.max(0),
            max_create_revision: self.max_create_rev.max(0),
        })
    }

    fn sort_order(&self) -> Result<SortOrder, Failure> {
        match self.order.to_uppercase().as_str() {
            "" => Ok(SortOrder::None),
            "ASCEND" => Ok(SortOrder::Ascend),
            "DESCEND" => Ok(SortOrder::Descend),
            _ => Err(Failure::feature(format_args!("bad sort order {}", self.order))),
        }
    }

    fn sort_target(&self) -> Result<SortTarget, Failure> {
        match self.sort_by.to_uppercase().as_str() {
            "" | "KEY" => Ok(SortTarget::Key),
            "CREATE" => Ok(SortTarget::Create),
            "MODIFY" => Ok(SortTarget::Mod),
            "VALUE" => Ok(SortTarget::Value),
            "VERSION" => Ok(SortTarget::Version),
            _ => Err(Failure::feature(format_args!("bad sort target {}", self.sort_by))),
        }
    }

    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let request = self.request()?;
        let mut session = Session::new(global)?;
        if self.count_only && session.printer.format != Format::Fields {
            return Err(Failure::arguments("--count-only is only for `--write-out=fields`"));
        }
        if self.print_value_only && session.printer.format != Format::Simple {
            return Err(Failure::arguments("print-value-only is only for `--write-out=simple`"));
        }
        session.printer.style.values_only = self.print_value_only;
        let reply = match self.stream {
            true => session.client.read(async |channel| collect(channel, request.clone()).await).await?,
            false => {
                session.client.read(async |channel| client(channel).range(request.clone()).await).await?
            }
        };
        session.printer.print(&reply)
    }
}

/// An answer that comes in parts, put together.
async fn collect(channel: Connection, request: RangeRequest) -> Result<Response<RangeResponse>, Status> {
    let mut parts = client(channel).range_stream(request).await?.into_inner();
    let mut whole = RangeResponse::default();
    while let Some(part) = parts.message().await? {
        let mut part = part.range_response.unwrap_or_default();
        whole.kvs.append(&mut part.kvs);
        whole = RangeResponse { kvs: whole.kvs, ..part };
    }
    Ok(Response::new(whole))
}

/// Arguments of `put`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Put {
    /// Key, and value unless it comes from standard input
    #[arg(value_name = "KEY [VALUE]")]
    arguments: Vec<OsString>,
    /// Lease to attach the key to, in hexadecimal
    #[arg(long, default_value = "0", hide_default_value = true)]
    lease: String,
    /// Return the pair that is replaced
    #[arg(long)]
    prev_kv: bool,
    /// Keep the value
    #[arg(long)]
    ignore_value: bool,
    /// Keep the lease
    #[arg(long)]
    ignore_lease: bool,
}

impl Put {
    /// The request for these arguments; the value is read from `input` when it is not among them.
    pub(crate) fn request(self, input: impl FnOnce() -> Vec<u8>) -> Result<PutRequest, Failure> {
        let needs = || Failure::arguments("put command needs 1 argument and input from stdin or 2 arguments");
        let mut arguments = self.arguments.into_iter().map(into_bytes);
        let key = arguments.next().ok_or_else(needs)?;
        let value = match arguments.next() {
            Some(_) if self.ignore_value => {
                return Err(Failure::arguments(
                    "put command needs only 1 argument when 'ignore-value' is set",
                ));
            }
            Some(value) => value,
            None if self.ignore_value => Bytes::new(),
            None => Some(Bytes::from(input())).filter(|value| !value.is_empty()).ok_or_else(needs)?,
        };
        let lease = go_text::parse_int(&self.lease, 16).map_err(|error| {
            Failure::arguments(format_args!("bad lease ID ({error}), expecting ID in Hex"))
        })?;
        Ok(PutRequest {
            key,
            value,
            lease,
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        })
    }

    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::new(global)?;
        let request = self.request(|| {
            let mut value = Vec::new();
            // What cannot be read is missing, which is reported by the caller.
            let _ = std::io::stdin().read_to_end(&mut value);
            value
        })?;
        let reply = session.client.write(async |channel| client(channel).put(request).await).await?;
        session.printer.print(&reply)
    }
}

/// Arguments of `del`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Del {
    /// Key, and optionally the end of a range (exclusive)
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<OsString>,
    /// Delete all keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// Return the pairs that are deleted
    #[arg(long)]
    prev_kv: bool,
    /// Delete all keys from this one on
    #[arg(long)]
    from_key: bool,
    /// Say that the second argument is meant as the end of a range: without it there are two seconds to think again
    #[arg(long)]
    range: bool,
}

impl Del {
    /// The request for these arguments.
    pub(crate) fn request(&self) -> Result<DeleteRangeRequest, Failure> {
        let keys = key_and_range_end(&self.keys).filter(|_| self.keys.len() <= 2);
        let Some((key, range_end)) = keys else {
            return Err(Failure::arguments(
                "del command needs one argument as key and an optional argument as range_end",
            ));
        };
        if self.prefix && self.from_key {
            return Err(Failure::arguments(BOTH_RANGES));
        }
        let (key, range_end) = range(key, range_end, self.prefix, self.from_key)?;
        Ok(DeleteRangeRequest { key, range_end, prev_kv: self.prev_kv })
    }

    /// Who gives two keys may mean two keys and not a range: etcdctl 3.6 waits before it deletes.
    async fn let_think_again(&self) {
        let ([from, to], false) = (self.keys.as_slice(), self.range) else { return };
        let [from, to] = [from, to].map(|key| go_text::quote(key.as_encoded_bytes()));
        eprintln!(
            "Warning: Keys between {from} and {to} will be deleted. Please interrupt the command within next {} seconds to cancel. \
             You can provide `--range` flag to avoid the delay.",
            THINK_AGAIN.as_secs()
        );
        tokio::time::sleep(THINK_AGAIN).await;
    }

    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let request = self.request()?;
        let session = Session::new(global)?;
        self.let_think_again().await;
        let reply = session.client.write(async |channel| client(channel).delete_range(request).await).await?;
        session.printer.print(&reply)
    }
}

/// Arguments of `compaction`.
#[derive(Debug, clap::Args)]
pub(crate) struct Compaction {
    /// History before this revision is discarded
    #[arg(allow_negative_numbers = true)]
    revision: Vec<String>,
    /// Wait until the old revisions are gone from disk
    #[arg(long)]
    physical: bool,
}

impl Compaction {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let [revision] = self.revision.as_slice() else {
            return Err(Failure::arguments("compaction command needs 1 argument"));
        };
        let revision = go_text::parse_int(revision, 10).map_err(Failure::error)?;
        let session = Session::new(global)?;
        let request = CompactionRequest { revision, physical: self.physical };
        session.client.write(async |channel| client(channel).compact(request).await).await?;
        write_out(format!("compacted revision {revision}\n").as_bytes())
    }
}

/// `--consistency`: whether it asks for a serializable read.
pub(crate) fn serializable(consistency: &str) -> Result<bool, Failure> {
    match consistency {
        "l" => Ok(false),
        "s" => Ok(true),
        other => {
            let quoted = go_text::quote(other.as_bytes());
            Err(Failure::feature(format_args!("unknown consistency flag {quoted}")))
        }
    }
}

pub(crate) fn into_bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

fn key_and_range_end(arguments: &[OsString]) -> Option<(Bytes, Option<Bytes>)> {
    let mut arguments = arguments.iter().cloned().map(into_bytes);
    Some((arguments.next()?, arguments.next()))
}

/// Key and range end as a request has them. The empty key stands for the first one where a range is meant.
pub(crate) fn range(
    key: Bytes,
    range_end: Option<Bytes>,
    prefix: bool,
    from_key: bool,
) -> Result<(Bytes, Bytes), Failure> {
    let open = prefix || from_key;
    match range_end {
        Some(_) if open => Err(Failure::arguments(RANGE_END_TOO)),
        Some(range_end) => Ok((key, range_end)),
        None if !open => Ok((key, Bytes::new())),
        None if key.is_empty() => Ok((Bytes::from_static(b"\0"), Bytes::from_static(TO_THE_END))),
        None if from_key => Ok((key, Bytes::from_static(TO_THE_END))),
        None => {
            let end = prefix_end(&key);
            Ok((key, end))
        }
    }
}

/// The first key after all keys with this prefix.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte < 0xff).map_or(0, |position| position + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => return Bytes::from_static(TO_THE_END),
    }
    end.into()
}

fn check_bounds(name: &str, min: i64, max: i64) -> Result<(), Failure> {
    if max > 0 && min > max {
        return Err(Failure::feature(format_args!("getMin{name}(={min}) > getMax{name}(={max})")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;
    use crate::cli::ctl::failure::Exit;

    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    enum Line {
        Get(Get),
        Put(Put),
        Del(Del),
    }

    fn get(line: &str) -> Result<RangeRequest, Failure> {
        match Line::try_parse_from(
            std::iter::once("get").chain(line.split(' ').filter(|word| !word.is_empty())),
        ) {
            Ok(Line::Get(get)) => get.request(),
            other => panic!("{other:?}"),
        }
    }

    fn put(line: &[&str]) -> Result<PutRequest, Failure> {
        match Line::try_parse_from(line) {
            Ok(Line::Put(put)) => put.request(|| b"from input".to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn get_ranges() {
        let ends = |line| get(line).map(|request| (request.key, request.range_end)).unwrap();
        assert_eq!(ends("a"), ("a".into(), "".into()));
        assert_eq!(ends("a c"), ("a".into(), "c".into()));
        assert_eq!(ends("a --prefix"), ("a".into(), "b".into()));
        assert_eq!(ends("a --from-key"), ("a".into(), "\0".into()));
        assert_eq!(prefix_end(b"a\xff\xff"), &b"b"[..]);
        assert_eq!(prefix_end(b"\xff\xff"), TO_THE_END);
        assert_eq!(range("".into(), None, true, false), Ok(("\0".into(), "\0".into())));
    }

    #[test]
    fn get_sorts_and_limits() {
        let request =
            get("a --order descend --sort-by MODIFY --limit 3 --rev 7 --consistency s --keys-only").unwrap();
        assert_eq!(request.sort_order(), SortOrder::Descend);
        assert_eq!(request.sort_target(), SortTarget::Mod);
        assert_eq!((request.limit, request.revision), (3, 7));
        assert!(request.serializable && request.keys_only);
        assert_eq!(get("a --order ASCEND").unwrap().sort_order(), SortOrder::None);
    }

    #[test]
    fn get_refusals() {
        for (line, exit, text) in [
            (
                "",
                Exit::BadArguments,
                "get command needs one argument as key and an optional argument as range_end",
            ),
            ("a b --prefix", Exit::BadArguments, RANGE_END_TOO),
            ("a --prefix --from-key", Exit::BadArguments, BOTH_RANGES),
            ("a --order up", Exit::BadFeature, "bad sort order up"),
            ("a --sort-by foo", Exit::BadFeature, "bad sort target foo"),
            ("a --consistency x", Exit::BadFeature, "unknown consistency flag \"x\""),
            ("a --min-mod-rev 5 --max-mod-rev 4", Exit::BadFeature, "getMinModRev(=5) > getMaxModRev(=4)"),
        ] {
            assert_eq!(get(line).unwrap_err(), Failure { exit, text: Some(text.to_owned()) }, "{line}");
        }
    }

    #[test]
    fn put_takes_its_value_from_arguments_or_input() {
        assert_eq!(put(&["put", "k", "v"]).unwrap().value, "v");
        assert_eq!(put(&["put", "k"]).unwrap().value, "from input");
        assert_eq!(put(&["put", "--", "k", "-v"]).unwrap().value, "-v");
        assert_eq!(put(&["put", "k", "--ignore-value"]).unwrap().value, "");
        assert_eq!(put(&["put", "k", "v", "--lease=1f"]).unwrap().lease, 31);
        let text = |line: &[&str]| put(line).unwrap_err().text.unwrap();
        assert_eq!(
            text(&["put", "k", "v", "--lease=zz"]),
            "bad lease ID (strconv.ParseInt: parsing \"zz\": invalid syntax), expecting ID in Hex"
        );
        assert_eq!(
            text(&["put", "k", "v", "--ignore-value"]),
            "put command needs only 1 argument when 'ignore-value' is set"
        );
    }

    #[test]
    fn del_takes_one_or_two_keys() {
        let del = |line: &[&str]| match Line::try_parse_from(line) {
            Ok(Line::Del(del)) => del.request(),
            other => panic!("{other:?}"),
        };
        assert_eq!(del(&["del", "a", "c"]).unwrap().range_end, "c");
        assert!(del(&["del", "a", "--prev-kv"]).unwrap().prev_kv);
        for line in [&["del"][..], &["del", "a", "b", "c"]] {
            assert_eq!(del(line).unwrap_err().exit, Exit::BadArguments);
        }
    }
}
