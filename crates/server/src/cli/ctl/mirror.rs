//! `make-mirror`: what is in one cluster, and what happens there, in another.
//!
//! First everything there is, from one revision; then event by event, a revision's changes in one txn. The source may be lost and come back; if
//! the destination does not take something the command ends, as `etcdctl`'s does: whether it was taken is not known.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hadron_proto::etcdserverpb::request_op::Request;
use hadron_proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
};
use hadron_proto::mvccpb::event::EventType;
use hadron_proto::mvccpb::{Event, KeyValue};

use super::failure::Failure;
use super::kv::{client, into_bytes, range};
use super::login::{KeyspaceFlag, Login};
use super::print::write_out;
use super::secure::Secure;
use super::watch::{COMPACTED, Follow};
use super::{Global, Session};
use crate::client::Connection;
use crate::client::{CallError, Client};

/// Keys read at a time.
const PAGE: i64 = 1_000;
/// What a node says of a token that ended: nothing was done.
const INVALID_TOKEN: &str = "etcdserver: invalid auth token";
/// Between two words on how much was mirrored.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// Arguments of `make-mirror`.
#[derive(Debug, clap::Args)]
pub(super) struct MakeMirror {
    /// Mirror the keys with this prefix only
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: OsString,
    /// Give them this prefix at the destination instead
    #[arg(long, default_value = "", hide_default_value = true)]
    dest_prefix: OsString,
    /// Give them none
    #[arg(long)]
    no_dest_prefix: bool,
    /// Mirror what happens from this revision on, and not what there is
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    rev: i64,
    /// Most operations in one transaction
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_txn_ops: u32,
    /// File of certificates to check the destination against
    #[arg(long, value_name = "FILE")]
    dest_cacert: Option<PathBuf>,
    /// File of the certificate to show to the destination
    #[arg(long, value_name = "FILE")]
    dest_cert: Option<PathBuf>,
    /// File of that certificate's key
    #[arg(long, value_name = "FILE")]
    dest_key: Option<PathBuf>,
    /// Whether a destination without a scheme is spoken to in plain text, if no certificate is given
    #[arg(long, default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    dest_insecure_transport: bool,
    /// Keyspace of the destination, instead of `default` (Hadron's own)
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    dest_keyspace: String,
    /// NAME[:PASSWORD] of a user of the destination
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME[:PASSWORD]")]
    dest_user: String,
    /// Password of that user
    #[arg(long, default_value = "", hide_default_value = true)]
    dest_password: String,
    /// The destination
    #[arg(value_name = "ENDPOINT")]
    arguments: Vec<String>,
}

/// What is mirrored, and where to.
struct Mirror {
    source: Client,
    destination: Client,
    /// With a token that may end.
    connection: Connection,
    prefix: Bytes,
    dest_prefix: Bytes,
    ops_max: usize,
    total: Arc<AtomicU64>,
}

impl MakeMirror {
    /// Runs the command, which ends with a failure only.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let [endpoint] = self.arguments.as_slice() else {
            return Err(Failure::arguments("make-mirror takes one destination argument"));
        };
        if self.no_dest_prefix && !self.dest_prefix.is_empty() {
            return Err(Failure::arguments(
                "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
            ));
        }
        let endpoint = endpoint.clone();
        let source = Session::new(global)?.client;
        let secure =
            Secure::of(self.dest_cacert, self.dest_cert, self.dest_key, self.dest_insecure_transport);
        let destination = Client {
            endpoints: vec![endpoint].into(),
            security: secure.security(None)?,
            identity: Login::of(self.dest_user, self.dest_password).identity()?,
            keyspace: KeyspaceFlag::of(self.dest_keyspace).value()?,
            ..source.clone()
        };
        let prefix = into_bytes(self.prefix);
        let dest_prefix = match (self.no_dest_prefix, self.dest_prefix.is_empty()) {
            (true, _) => Bytes::new(),
            (false, true) => prefix.clone(),
            (false, false) => into_bytes(self.dest_prefix),
        };
        let ops_max = self.max_txn_ops as usize;
        let total = Arc::new(AtomicU64::new(0));
        let connection = destination.connect().await?;
        let said = Arc::clone(&total);
        let mut mirror = Mirror { source, destination, connection, prefix, dest_prefix, ops_max, total };
        tokio::select! {
            ended = mirror.run(self.rev) => ended,
            failed = report(said) => failed,
        }
    }
}

/// Says now and then how much was mirrored.
async fn report(total: Arc<AtomicU64>) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        write_out(format!("{}\n", total.load(Ordering::Relaxed)).as_bytes())?;
    }
}

impl Mirror {
    async fn run(&mut self, revision: i64) -> Result<(), Failure> {
        let start = if revision > 1 { revision } else { self.copy_all().await? + 1 };
        let (key, range_end) = range(self.prefix.clone(), None, true, false)?;
        let create = WatchCreateRequest { key, range_end, start_revision: start, ..Default::default() };
        let mut events = Follow::start(&self.source, create).await?;
        loop {
            let answer = events.next().await?;
            if answer.compact_revision != 0 {
                return Err(Failure::error(COMPACTED));
            }
            if answer.canceled {
                return Err(Failure::error(format_args!("the watch was canceled: {}", answer.cancel_reason)));
            }
            let mut rest = answer.events.as_slice();
            while let Some(first) = rest.first() {
                let same = |event: &Event| revision_of(event) == revision_of(first);
                let ours = rest.iter().take_while(|event| same(event)).count().min(self.ops_max);
                let (now, later) = rest.split_at(ours);
                let changes = now.iter().filter_map(|event| self.change(event)).collect();
                self.write(changes).await?;
                rest = later;
            }
        }
    }

    /// Copies what there is; the revision at which it was read.
    async fn copy_all(&mut self) -> Result<i64, Failure> {
        let (mut key, range_end) = range(self.prefix.clone(), None, true, false)?;
        let mut revision = 0;
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                ..Default::default()
            };
            let call = async |channel| client(channel).range(request.clone()).await;
            let page = self.source.read(call).await?;
            if revision == 0 {
                revision = page.header.unwrap_or_default().revision;
            }
            for pairs in page.kvs.chunks(self.ops_max) {
                let puts = pairs.iter().map(|pair| self.put(pair)).collect();
                self.write(puts).await?;
            }
            match page.kvs.last().filter(|_| page.more) {
                Some(last) => key = [last.key.as_ref(), b"\0"].concat().into(),
                None => return Ok(revision),
            }
        }
    }

    fn change(&self, event: &Event) -> Option<RequestOp> {
        let pair = event.kv.as_ref()?;
        Some(match event.r#type() {
            EventType::Put => self.put(pair),
            EventType::Delete => {
                let delete = DeleteRangeRequest { key: self.renamed(&pair.key), ..Default::default() };
                RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
            }
        })
    }

    fn put(&self, pair: &KeyValue) -> RequestOp {
        let (key, value) = (self.renamed(&pair.key), pair.value.clone());
        RequestOp { request: Some(Request::RequestPut(PutRequest { key, value, ..Default::default() })) }
    }

    fn renamed(&self, key: &Bytes) -> Bytes {
        let rest = key.strip_prefix(self.prefix.as_ref()).unwrap_or(key);
        [self.dest_prefix.as_ref(), rest].concat().into()
    }

    async fn write(&mut self, success: Vec<RequestOp>) -> Result<(), Failure> {
        let count = success.len() as u64;
        let txn = TxnRequest { success, ..Default::default() };
        let mut answer = self.destination.bounded(client(self.connection.clone()).txn(txn.clone())).await;
        if matches!(&answer, Err(CallError::Refused(status)) if status.message() == INVALID_TOKEN) {
            self.connection = self.destination.connect().await?;
            answer = self.destination.bounded(client(self.connection.clone()).txn(txn)).await;
        }
        answer?;
        self.total.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |pair| pair.mod_revision)
}
