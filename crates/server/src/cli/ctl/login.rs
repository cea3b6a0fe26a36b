//! The flags of `ctl` about users and keyspaces, and what is asked at the terminal.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};

use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::failure::{Exit, Failure};
use tonic::metadata::AsciiMetadataValue;

use crate::client::Identity;

/// Keys of a terminal, as they are most often: Ctrl-D, Ctrl-C, Ctrl-\\, the two for the last character, and Ctrl-U.
const END: u8 = 0x04;
const INTERRUPT: u8 = 0x03;
const QUIT: u8 = 0x1c;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;
const KILL: u8 = 0x15;

/// The flag that chooses a keyspace.
#[derive(Clone, Debug, Default, clap::Args)]
pub(in crate::cli) struct KeyspaceFlag {
    /// The keyspace to work in, instead of `default` (Hadron's own)
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_KEYSPACE",
        default_value = "",
        value_name = "NAME",
        hide_default_value = true,
        hide_env = true
    )]
    keyspace: String,
}

impl KeyspaceFlag {
    /// As a flag with this value.
    pub(super) fn of(keyspace: String) -> KeyspaceFlag {
        KeyspaceFlag { keyspace }
    }

    /// As given; empty if nothing is.
    pub(super) fn name(&self) -> &str {
        &self.keyspace
    }

    /// What is shown, if a keyspace is chosen.
    pub(in crate::cli) fn value(&self) -> Result<Option<AsciiMetadataValue>, Failure> {
        if self.keyspace.is_empty() {
            return Ok(None);
        }
        let value = self.keyspace.parse();
        value.map(Some).map_err(|_| Failure::arguments("the name of the keyspace is not plain text"))
    }
}

/// The flags.
#[derive(Clone, clap::Args)]
pub(in crate::cli) struct Login {
    /// NAME[:PASSWORD] of a user; the password is asked for if it is not given
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_USER",
        default_value = "",
        value_name = "NAME[:PASSWORD]",
        hide_env = true
    )]
    user: String,
    /// Password of the user, if it is not given with the name
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_PASSWORD",
        default_value = "",
        hide_env_values = true,
        hide_env = true
    )]
    password: String,
    /// A JSON web token, instead of a user
    #[arg(
        long,
        global = true,
        env = "ETCDCTL_AUTH_JWT_TOKEN",
        default_value = "",
        value_name = "TOKEN",
        hide_env_values = true,
        hide_env = true
    )]
    auth_jwt_token: String,
}

/// Without secrets.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl Login {
    /// As flags with these values.
    pub(super) fn of(user: String, password: String) -> Login {
        Login { user, password, auth_jwt_token: String::new() }
    }

    /// Asks for the password if that is missing.
    pub(in crate::cli) fn identity(self) -> Result<Identity, Failure> {
        let Login { user, password, auth_jwt_token } = self;
        if !auth_jwt_token.is_empty() {
            return Ok(Identity::Token(auth_jwt_token));
        }
        if user.is_empty() {
            return Ok(Identity::Nobody);
        }
        if !password.is_empty() {
            return Ok(Identity::User { name: user, password });
        }
        Ok(match user.split_once(':') {
            Some((name, password)) => Identity::User { name: name.to_owned(), password: password.to_owned() },
            None => Identity::User { name: user, password: ask("Password: ").map_err(Failure::error)? },
        })
    }
}

/// A new password for a user: asked for twice, or the first word of standard input.
pub(super) fn new_password(user: &str, is_interactive: bool) -> Result<String, Failure> {
    let bad = |text: String| Failure { exit: Exit::BadArguments, text: Some(text) };
    if !is_interactive {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(|error| bad(error.to_string()))?;
        return Ok(line.split_whitespace().next().unwrap_or_default().to_owned());
    }
    let failed = |error: io::Error| bad(format!("failed to ask password: {error}"));
    let first = ask(&format!("Password of {user}: ")).map_err(failed)?;
    if first.is_empty() {
        return Err(bad("empty password".into()));
    }
    let second = ask(&format!("Type password of {user} again for confirmation: ")).map_err(failed)?;
    if first == second { Ok(first) } else { Err(bad("given passwords are different".into())) }
}

/// Asks at the terminal, which does not show the answer.
fn ask(prompt: &str) -> io::Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let mut terminal = terminal.map_err(|error| {
        io::Error::new(error.kind(), format!("there is no terminal to ask for the password at: {error}"))
    })?;
    terminal.write_all(prompt.as_bytes())?;
    let shown = tcgetattr(&terminal)?;
    let mut hidden = shown.clone();
    // The keys for interrupts too are read here: the terminal must show what is typed again before the process ends.
    hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    tcsetattr(&terminal, OptionalActions::Flush, &hidden)?;
    let read = line(&mut terminal);
    tcsetattr(&terminal, OptionalActions::Flush, &shown)?;
    terminal.write_all(b"\n")?;
    match read? {
        Some(line) => Ok(line),
        None => {
            kill_process(getpid(), Signal::INT)?;
            Err(io::ErrorKind::Interrupted.into())
        }
    }
}

/// Reads a line as a terminal would, key by key; `None` if it is interrupted.
fn line(keys: &mut impl Read) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    for key in BufReader::new(keys).bytes() {
        match key? {
            b'\r' | b'\n' | END => break,
            INTERRUPT | QUIT => return Ok(None),
            BACKSPACE | DELETE => drop_last(&mut line),
            KILL => line.clear(),
            // Other keys that a terminal would heed are no part of a password.
            key if key.is_ascii_control() => {}
            key => line.push(key),
        }
    }
    String::from_utf8(line).map(Some).map_err(|_| io::Error::other("the password is no UTF-8"))
}

/// Takes the last character away, which may be several bytes.
fn drop_last(line: &mut Vec<u8>) {
    while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_line_is_what_a_terminal_would_make_of_the_keys() {
        let read = |keys: &str| line(&mut keys.as_bytes()).unwrap();
        for (keys, expected) in [
            ("secret\rmore", "secret"),
            ("secret\n", "secret"),
            ("sec\u{4}ret", "sec"),
            ("wrong\u{15}right\n", "right"),
            ("seé\u{7f}c\u{8}cret\n", "secret"),
            ("\u{7f}\n", ""),
            ("sec\u{1a}ret\n", "secret"),
        ] {
            assert_eq!(read(keys).unwrap(), expected, "{keys:?}");
        }
        assert_eq!(read("sec\u{3}ret\n"), None, "Ctrl-C");
    }
}
