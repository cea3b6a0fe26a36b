//! `lock`: holds a lock, for as long as a command runs or until a signal.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

use bytes::Bytes;
use hadron_proto::etcdserverpb::RangeRequest;
use hadron_proto::v3lockpb::lock_client::LockClient;
use hadron_proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest};

use super::failure::{Exit, Failure};
use super::hold::{Interrupts, KeptLease};
use super::kv::{self, into_bytes};
use super::{Global, Session};

/// The exit code for a command that a signal ended: Go's -1.
const ENDED_BY_SIGNAL: u8 = 255;

/// Arguments of `lock`.
#[derive(Debug, clap::Args)]
pub(crate) struct Lock {
    /// Name of the lock, and a command with its arguments to run under it
    #[arg(value_name = "NAME [COMMAND ARGUMENT...]")]
    arguments: Vec<OsString>,
    /// Seconds until the lock is free again when this program dies
    #[arg(long, default_value_t = 10, allow_negative_numbers = true)]
    ttl: i64,
}

impl Lock {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let mut arguments = self.arguments.into_iter();
        let name = arguments.next().ok_or_else(|| {
            Failure::arguments("lock takes a lock name argument and an optional command to execute")
        })?;
        let command: Vec<OsString> = arguments.collect();
        let session = Session::new(global)?;
        let mut lease = KeptLease::grant(&session.client, self.ttl).await?;
        let mut interrupts = Interrupts::catch()?;
        let locked = tokio::select! {
            locked = acquire(&mut lease, into_bytes(name)) => Some(locked?),
            () = interrupts.next() => None,
        };
        let Some(locked) = locked else {
            // Those who wait behind need not wait for this lease to run out.
            lease.revoke().await?;
            return Err(Failure::error("context canceled"));
        };
        match command.split_first() {
            Some((program, arguments)) => {
                let result = execute(program, arguments, &locked).await;
                // The command's own failure counts for more.
                result.and(unlock(&session, locked.key).await)
            }
            None => hold(&session, lease, interrupts, locked.key).await,
        }
    }
}

async fn acquire(lease: &mut KeptLease, name: Bytes) -> Result<LockResponse, Failure> {
    let request = LockRequest { name, lease: lease.id };
    let call = async |connection| LockClient::new(connection).lock(request.clone()).await;
    match lease.wait(call).await {
        Some(locked) => Ok(locked?),
        None => Err(Failure::error("session expired")),
    }
}

/// Shows the key of the lock and holds it until a signal.
async fn hold(
    session: &Session,
    mut lease: KeptLease,
    mut interrupts: Interrupts,
    key: Bytes,
) -> Result<(), Failure> {
    let request = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let call = async |connection| kv::client(connection).range(request.clone()).await;
    let held = session.client.read(call).await?;
    if held.kvs.is_empty() {
        return Err(Failure::error("lock lost on init"));
    }
    session.printer.print(&held)?;
    tokio::select! {
        () = interrupts.next() => unlock(session, key).await,
        () = lease.ended() => Err(Failure::error("session expired")),
    }
}

async fn unlock(session: &Session, key: Bytes) -> Result<(), Failure> {
    let request = UnlockRequest { key };
    let call = async |connection| LockClient::new(connection).unlock(request).await;
    session.client.write(call).await?;
    Ok(())
}

/// Runs a command that is told which lock it runs under, and since which revision.
async fn execute(program: &OsStr, arguments: &[OsString], locked: &LockResponse) -> Result<(), Failure> {
    let revision = locked.header.as_ref().map_or(0, |header| header.revision);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("ETCD_LOCK_KEY", OsString::from_vec(locked.key.to_vec()))
        .env("ETCD_LOCK_REV", revision.to_string())
        .stdin(Stdio::null());
    // The lease is renewed meanwhile.
    let ran = tokio::task::spawn_blocking(move || command.status()).await.map_err(Failure::error)?;
    match ran {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(ended(status)),
        Err(error) => Err(Failure::error(not_started(program, &error))),
    }
}

/// The failure of a command that ran, in Go's words.
fn ended(status: ExitStatus) -> Failure {
    let (code, text) = match (status.code(), status.signal()) {
        (Some(code), _) => (u8::try_from(code).unwrap_or(ENDED_BY_SIGNAL), format!("exit status {code}")),
        (None, signal) => (ENDED_BY_SIGNAL, format!("signal: {}", signal_name(signal.unwrap_or_default()))),
    };
    Failure { exit: Exit::Child(code), text: Some(text) }
}

/// The name of a signal in Go's words.
fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

fn not_started(program: &OsStr, error: &io::Error) -> String {
    let name = crate::go_text::quote(program.as_bytes());
    let is_path = program.as_bytes().contains(&b'/');
    match error.kind() {
        io::ErrorKind::NotFound if !is_path => format!("exec: {name}: executable file not found in $PATH"),
        io::ErrorKind::NotFound => {
            format!("fork/exec {}: no such file or directory", program.to_string_lossy())
        }
        _ => format!("fork/exec {}: {}", program.to_string_lossy(), error.kind()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn failure_of(script: &str) -> Failure {
        ended(Command::new("sh").args(["-c", script]).status().unwrap())
    }

    #[test]
    fn a_commands_end_is_told_as_go_tells_it() {
        let failure = failure_of("exit 3");
        assert_eq!((failure.exit.code(), failure.text.as_deref()), (3, Some("exit status 3")));
        let failure = failure_of("kill -9 $$");
        assert_eq!((failure.exit.code(), failure.text.as_deref()), (255, Some("signal: killed")));
    }
}
