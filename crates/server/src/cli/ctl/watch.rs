//! `watch`: events as they happen, or as they happened since a revision.
//!
//! A single watch survives the loss of its connection: it goes on after the last revision it has seen, on whichever
//! endpoint answers. In interactive mode, watches are started by lines on standard input and share one stream.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::BufRead as _;

use bytes::Bytes;
use clap::Parser;
use hadron_proto::etcdserverpb::watch_client::WatchClient;
use hadron_proto::etcdserverpb::watch_request::RequestUnion;
use hadron_proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use hadron_proto::mvccpb::Event;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::failure::{Exit, Failure};
use super::print::kv::event_type;
use super::print::{Printer, write_out};
use super::retry::{RETRY, until_answered};
use super::{Global, Session, go_text, kv, txn};
use crate::client::{CallError, Client, Replies, status_text};

/// The watch id in answers that concern every watch of a stream.
const EVERY_WATCH: i64 = -1;
pub(super) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

const BAD_COUNT: &str = "bad number of arguments";
const BAD_COUNT_ENVIRONMENT: &str = "bad number of arguments (found conflicting environment key)";
const BAD_COUNT_SEPARATOR: &str = "bad number of arguments (found separator --, but no commands)";

/// Arguments of `watch`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Watch {
    /// Key, and optionally the end of a range (exclusive)
    #[arg(value_name = "KEY [RANGE_END]")]
    keys: Vec<OsString>,
    /// Command to run for each event
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Read watches from standard input
    #[arg(short, long)]
    interactive: bool,
    /// Watch all keys with this prefix
    #[arg(long)]
    prefix: bool,
    /// Revision to start at
    #[arg(long, default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
    rev: i64,
    /// Show the pair before each event
    #[arg(long)]
    prev_kv: bool,
    /// Ask for a notification now and then when nothing happens
    #[arg(long)]
    progress_notify: bool,
}

/// The key and range end that environment variables name.
#[derive(Debug, Clone, Default)]
struct Environment {
    key: Option<OsString>,
    range_end: Option<OsString>,
}

impl Environment {
    fn read() -> Result<Environment, Failure> {
        let read = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let environment =
            Environment { key: read("ETCDCTL_WATCH_KEY"), range_end: read("ETCDCTL_WATCH_RANGE_END") };
        match &environment.range_end {
            Some(end) if environment.key.is_none() => Err(Failure::arguments(format_args!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={}",
                go_text::quote(end.as_encoded_bytes())
            ))),
            _ => Ok(environment),
        }
    }
}

/// A watch to be started, and the command to run for its events.
#[derive(Debug, Clone)]
struct Target {
    create: WatchCreateRequest,
    command: Vec<OsString>,
}

impl Watch {
    /// Runs the command. `arguments` is the whole command line: whether it ends in `--` is lost in parsing.
    pub(super) async fn run(self, global: Global, arguments: &[OsString]) -> Result<(), Failure> {
        let environment = Environment::read()?;
        if self.interactive {
            return interactive(&Session::new(global)?, &environment).await;
        }
        if arguments.last().is_some_and(|last| last == "--") {
            return Err(Failure::arguments(BAD_COUNT_SEPARATOR));
        }
        let target = self.target(&environment).map_err(Failure::arguments)?;
        follow(&Session::new(global)?, target).await
    }

    fn target(self, environment: &Environment) -> Result<Target, &'static str> {
        let keys = match &environment.key {
            Some(_) if !self.keys.is_empty() => return Err(BAD_COUNT_ENVIRONMENT),
            Some(key) => std::iter::once(key).chain(&environment.range_end).cloned().collect(),
            None => self.keys,
        };
        let mut keys = keys.into_iter().map(kv::into_bytes);
        let key = keys.next().ok_or(BAD_COUNT)?;
        let range_end = keys.next();
        if range_end.is_some() && self.prefix {
            return Err("`range_end` and `--prefix` are mutually exclusive");
        }
        let (key, range_end) =
            kv::range(key, range_end, self.prefix, false).unwrap_or((Bytes::new(), Bytes::new()));
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.rev,
            progress_notify: self.progress_notify,
            prev_kv: self.prev_kv,
            ..Default::default()
        };
        Ok(Target { create, command: self.command })
    }
}

/// Follows one watch until the server cancels it.
async fn follow(session: &Session, target: Target) -> Result<(), Failure> {
    let mut watch = Follow::start(&session.client, target.create).await?;
    loop {
        let response = watch.next().await?;
        show(&session.printer, &response, &target.command)?;
        if response.canceled {
            return Err(Failure::error("watch is canceled by the server").exiting(Exit::Interrupted));
        }
    }
}

/// One watch that survives the loss of its connection.
pub(super) struct Follow {
    client: Client,
    /// As it has to be started again.
    create: WatchCreateRequest,
    stream: Stream,
}

impl Follow {
    /// Starts it.
    pub(super) async fn start(client: &Client, create: WatchCreateRequest) -> Result<Follow, Failure> {
        let stream = Stream::open(client, create_request(&create)).await?;
        Ok(Follow { client: client.clone(), create, stream })
    }

    /// What the server says next.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Failure> {
        let response = loop {
            match self.stream.replies.message().await {
                Ok(Some(response)) => break response,
                Err(error) if !error.is_outage() => return Err(error.into()),
                Ok(None) | Err(_) => self.stream = resume(&self.client, &self.create).await?,
            }
        };
        if let Some(last) = response.events.iter().filter_map(|event| event.kv.as_ref()).next_back() {
            self.create.start_revision = last.mod_revision + 1;
        } else if let Some(header) = response.header.filter(|_| response.created && !response.canceled)
            && self.create.start_revision == 0
        {
            // From now on, wherever a reconnect ends: nothing between may be missed.
            self.create.start_revision = header.revision + 1;
        }
        Ok(response)
    }
}

/// Starts the watch again on an endpoint that answers, for as long as that takes.
async fn resume(client: &Client, create: &WatchCreateRequest) -> Result<Stream, CallError> {
    sleep(RETRY).await;
    until_answered(async || Stream::open(client, create_request(create)).await).await
}

/// A stream of watches.
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    replies: Replies<WatchResponse>,
}

impl Stream {
    /// Opens a stream with its first request.
    async fn open(client: &Client, first: WatchRequest) -> Result<Stream, CallError> {
        let call = async |connection, requests| {
            let mut request = Request::new(requests);
            // A node without a leader would let the watch starve in silence; so it ends it, and we go elsewhere.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let client = WatchClient::new(connection);
            client.max_decoding_message_size(usize::MAX).watch(request).await
        };
        let (requests, replies) = client.converse(&first, call).await?;
        Ok(Stream { requests, replies })
    }

    /// Sends a request over the stream, which is opened if there is none yet.
    async fn send(
        stream: &mut Option<Stream>,
        client: &Client,
        request: WatchRequest,
    ) -> Result<(), CallError> {
        match stream {
            // When the stream is gone, its replies say so.
            Some(open) => drop(open.requests.send(request).await),
            None => *stream = Some(Stream::open(client, request).await?),
        }
        Ok(())
    }

    /// The next response; of no stream, none ever.
    async fn next(stream: &mut Option<Stream>) -> Result<Option<WatchResponse>, CallError> {
        match stream {
            Some(open) => open.replies.message().await,
            None => std::future::pending().await,
        }
    }
}

fn create_request(create: &WatchCreateRequest) -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create.clone())) }
}

fn progress_request() -> WatchRequest {
    WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) }
}

/// Prints a response and runs the command for each of its events.
fn show(printer: &Printer, response: &WatchResponse, command: &[OsString]) -> Result<(), Failure> {
    if response.canceled {
        eprintln!("watch was canceled ({})", cancellation(response));
    } else if response.created {
        return Ok(());
    } else if response.events.is_empty() {
        let revision = response.header.map_or(0, |header| header.revision);
        write_out(format!("progress notify: {revision}\n").as_bytes())?;
    }
    printer.print(response)?;
    response.events.iter().try_for_each(|event| run_command(command, response, event))
}

fn cancellation(response: &WatchResponse) -> String {
    if response.compact_revision != 0 {
        return COMPACTED.to_owned();
    }
    match response.cancel_reason.as_str() {
        "" => "etcdserver: mvcc: required revision is a future revision".to_owned(),
        reason => status_text(&Status::new(Code::FailedPrecondition, reason)),
    }
}

fn run_command(command: &[OsString], response: &WatchResponse, event: &Event) -> Result<(), Failure> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let pair = event.kv.clone().unwrap_or_default();
    let status = std::process::Command::new(program)
        .args(arguments)
        .env("ETCD_WATCH_REVISION", response.header.map_or(0, |header| header.revision).to_string())
        .env("ETCD_WATCH_EVENT_TYPE", go_text::quote(event_type(event).as_bytes()))
        .env("ETCD_WATCH_KEY", go_text::quote(&pair.key))
        .env("ETCD_WATCH_VALUE", go_text::quote(&pair.value))
        .status();
    let reason = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => match status.code() {
            Some(code) => format!("exit status {code}"),
            None => status.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let words: Vec<String> = command.iter().map(|word| go_text::quote(word.as_encoded_bytes())).collect();
    eprintln!("command [{}] error ({reason})", words.join(" "));
    Err(Failure::silent())
}

/// What a line in interactive mode asks for.
enum Line {
    Watch(Box<Target>),
    Progress,
    /// Nothing: the complaint goes to standard error.
    Nonsense(String),
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct WatchLine {
    #[command(flatten)]
    watch: Watch,
}

fn parse_line(line: &str, environment: &Environment) -> Result<Line, Failure> {
    let words = txn::words(line)?;
    let first = words.first().and_then(|word| word.to_str()).unwrap_or_default();
    Ok(match first {
        "" => Line::Nonsense(format!("Invalid command: {line} (watch and progress supported)")),
        "progress" => Line::Progress,
        "watch" if words.len() < 2 && environment.key.is_none() => {
            Line::Nonsense(format!("Invalid command {line} (command type or key is not provided)"))
        }
        "watch" if words.last().is_some_and(|last| last == "--") => {
            return Err(Failure::arguments(BAD_COUNT_SEPARATOR));
        }
        "watch" => {
            let parsed = WatchLine::try_parse_from(&words[1..])
                .map_err(|error| Failure::arguments(error.kind().to_string()))?;
            match parsed.watch.target(environment) {
                Ok(target) => Line::Watch(Box::new(target)),
                Err(text) if [BAD_COUNT, BAD_COUNT_ENVIRONMENT].contains(&text) => {
                    return Err(Failure::arguments(text));
                }
                Err(text) => Line::Nonsense(format!("Invalid command {line} ({text})")),
            }
        }
        _ => Line::Nonsense(format!("Invalid command {line} (only support watch)")),
    })
}

/// Starts watches as lines come in and prints what they see, until standard input ends.
async fn interactive(session: &Session, environment: &Environment) -> Result<(), Failure> {
    let mut lines = input_lines();
    let client = &session.client;
    let mut stream = None;
    let mut commands: BTreeMap<i64, Vec<OsString>> = BTreeMap::new();
    let mut next_id = 1;
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                None => return Err(Failure::input("error reading watch request line: EOF")),
                Some(line) => match parse_line(&line, environment)? {
                    Line::Watch(mut target) => {
                        target.create.watch_id = next_id;
                        commands.insert(next_id, target.command);
                        next_id += 1;
                        Stream::send(&mut stream, client, create_request(&target.create)).await?;
                    }
                    // Without a stream there is no watch whose progress could be told, and etcd would not answer.
                    Line::Progress if stream.is_none() => {}
                    Line::Progress => Stream::send(&mut stream, client, progress_request()).await?,
                    Line::Nonsense(complaint) => eprintln!("{complaint}"),
                },
            },
            reply = Stream::next(&mut stream) => match reply? {
                None => return Err(Failure::error("watch is canceled by the server").exiting(Exit::Interrupted)),
                Some(response) => show_to_watches(&session.printer, &response, &mut commands)?,
            },
        }
    }
}

fn show_to_watches(
    printer: &Printer,
    response: &WatchResponse,
    commands: &mut BTreeMap<i64, Vec<OsString>>,
) -> Result<(), Failure> {
    for (id, command) in commands.iter() {
        if response.watch_id == EVERY_WATCH || response.watch_id == *id {
            show(printer, response, command)?;
        }
    }
    if response.canceled {
        commands.remove(&response.watch_id);
    }
    Ok(())
}

/// The lines of standard input, read by a thread of its own because reading blocks.
fn input_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn target(words: &[&str], environment: &Environment) -> Result<Target, &'static str> {
        WatchLine::try_parse_from(words).unwrap().watch.target(environment)
    }

    #[test]
    fn keys_and_commands_are_told_apart() {
        let none = Environment::default();
        let watch = target(&["--rev", "3", "a", "c", "--prev-kv", "--", "echo", "hi", "-w"], &none).unwrap();
        assert_eq!((&watch.create.key[..], &watch.create.range_end[..]), (&b"a"[..], &b"c"[..]));
        assert_eq!((watch.create.start_revision, watch.create.prev_kv), (3, true));
        assert_eq!(watch.command, ["echo", "hi", "-w"]);
        assert_eq!(target(&["a", "--prefix"], &none).unwrap().create.range_end, "b");
        assert_eq!(target(&[], &none).unwrap_err(), BAD_COUNT);
        assert!(target(&["a", "b", "--prefix"], &none).is_err());
    }

    #[test]
    fn the_environment_can_name_the_key() {
        let environment = Environment { key: Some("a".into()), range_end: Some("b".into()) };
        let watch = target(&["--", "echo"], &environment).unwrap();
        assert_eq!((watch.create.range_end, watch.command.len()), ("b".into(), 1));
        assert_eq!(target(&["a"], &environment).unwrap_err(), BAD_COUNT_ENVIRONMENT);
    }

    #[test]
    fn interactive_lines() {
        let complaint = |line: &str| match parse_line(line, &Environment::default()) {
            Ok(Line::Nonsense(complaint)) => complaint,
            _ => panic!("{line}"),
        };
        assert_eq!(complaint("bogus"), "Invalid command bogus (only support watch)");
        assert_eq!(complaint(""), "Invalid command:  (watch and progress supported)");
        assert_eq!(complaint("watch"), "Invalid command watch (command type or key is not provided)");
        assert!(matches!(parse_line("progress", &Environment::default()), Ok(Line::Progress)));
        assert!(matches!(parse_line("watch 'a b' --rev 2", &Environment::default()), Ok(Line::Watch(_))));
        assert!(parse_line("watch a --", &Environment::default()).is_err());
    }

    #[test]
    fn cancellations_say_why() {
        let canceled = |compact_revision, reason: &str| {
            cancellation(&WatchResponse {
                compact_revision,
                cancel_reason: reason.to_owned(),
                ..Default::default()
            })
        };
        assert_eq!(canceled(5, ""), COMPACTED);
        assert_eq!(canceled(0, "etcdserver: no leader"), "etcdserver: no leader");
    }
}
