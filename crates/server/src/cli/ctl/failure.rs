//! How a command of `ctl` fails: a text for standard error and an exit code, both those of `etcdctl`.

use std::fmt;

use crate::client::CallError;

/// `etcdctl`'s exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The server refused, or could not be reached.
    Error,
    /// Some commands use a code of their own when the server cannot be reached.
    BadConnection,
    /// Standard input of `txn` or `watch` makes no sense.
    InvalidInput,
    /// A flag has a value that is not supported.
    BadFeature,
    /// The server ended a watch, or a snapshot did not arrive.
    Interrupted,
    /// Wrong arguments.
    BadArguments,
    /// That of the command that `lock` ran.
    Child(u8),
}

impl Exit {
    /// What the process exits with.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Error => 1,
            Exit::BadConnection => 2,
            Exit::InvalidInput => 3,
            Exit::BadFeature => 4,
            Exit::Interrupted => 5,
            Exit::BadArguments => 128,
            Exit::Child(code) => code,
        }
    }
}

/// The end of a command that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What follows `Error: ` on standard error; nothing when everything has been said already.
    pub(crate) text: Option<String>,
}

impl Failure {
    /// A failure of the command itself.
    pub(crate) fn error(text: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Error, text: Some(text.to_string()) }
    }

    /// Wrong arguments.
    pub(crate) fn arguments(text: impl fmt::Display) -> Failure {
        Failure { exit: Exit::BadArguments, text: Some(text.to_string()) }
    }

    /// An unsupported value of a flag.
    pub(crate) fn feature(text: impl fmt::Display) -> Failure {
        Failure { exit: Exit::BadFeature, text: Some(text.to_string()) }
    }

    /// Nonsense on standard input.
    pub(crate) fn input(text: impl fmt::Display) -> Failure {
        Failure { exit: Exit::InvalidInput, text: Some(text.to_string()) }
    }

    /// A failure that has been reported line by line already.
    pub(crate) fn silent() -> Failure {
        Failure { exit: Exit::Error, text: None }
    }

    /// The same failure under another exit code.
    pub(crate) fn exiting(self, exit: Exit) -> Failure {
        Failure { exit, ..self }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        let exit = if matches!(error, CallError::Login(_)) { Exit::BadConnection } else { Exit::Error };
        Failure { exit, text: Some(error.to_string()) }
    }
}
