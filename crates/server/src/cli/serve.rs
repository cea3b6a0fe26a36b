//! `hadron serve`, and `etcd`: one node.
//!
//! Reads settings and configuration, sets logging up and hands over to the driver.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use super::{complain, logging};
use crate::api::backend::ETCD_VERSION;
use crate::config::{Asked, Config, Settings, flags};
use crate::driver::RunError;

/// As whom the program is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `hadron`.
    Hadron,
    /// A link with the name of one of etcd's programs.
    Etcd,
}

impl Name {
    /// What the name of a data directory ends with unless one is given: scripts look for etcd's data under etcd's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Name::Hadron => "hadron",
            Name::Etcd => "etcd",
        }
    }

    /// How a node is started under this name.
    pub(super) fn serve(self) -> &'static str {
        match self {
            Name::Hadron => "hadron serve",
            Name::Etcd => "etcd",
        }
    }
}

/// Runs a node until it is told to stop by SIGTERM or SIGINT. `arguments` are its flags.
pub fn run(name: Name, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let settings = match Settings::read(arguments, std::env::vars_os()) {
        Ok(Asked::Serve(settings)) => settings,
        Ok(Asked::Help) => return print(&flags::help()),
        Ok(Asked::Version) => return print(&version()),
        Err(error) => return refuse(&error),
    };
    let config = match Config::from_settings(&settings, name.suffix()) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = logging::start(&config.log) {
        return refuse(&error);
    }
    tell_panics();
    settings.notes().iter().for_each(|note| note.tell());
    if config.stop_on_stdin_close {
        std::thread::spawn(stop_when_stdin_closes);
    }
    match crate::driver::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Flags(error)) => refuse(&error),
        // As in etcd: somebody wanted it, and a supervisor that restarts what failed should not.
        Err(removed @ RunError::Removed(_)) => {
            tracing::warn!("stopped: {removed}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "the node stopped");
            ExitCode::FAILURE
        }
    }
}

/// Has the log say why the process is about to abort, as it says why a node stops otherwise.
fn tell_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(
            error = %panic.to_string().replace('\n', " "),
            "the node stopped: what it found cannot be, unless this version has a bug or a member came back with an earlier state of its disk"
        );
        usual(panic);
    }));
}

/// What `etcd --version` prints: tools read the first line.
fn version() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: none\nGo Version: none\nGo OS/Arch: {}/{architecture}\nHadron Version: {}\n",
        std::env::consts::OS,
        env!("CARGO_PKG_VERSION")
    )
}

fn print(text: &str) -> ExitCode {
    // A closed pipe is nobody's problem.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Flags that cannot be used: a mistake of the command line, whenever it is noticed.
fn refuse(error: &dyn std::error::Error) -> ExitCode {
    complain(&error);
    ExitCode::from(2)
}

/// Turns the end of standard input into SIGTERM. The playground holds the other end, which closes even if it is killed;
/// the node then stops as it does when an operator asks it to.
fn stop_when_stdin_closes() {
    let mut discarded = [0; 64];
    while std::io::stdin().read(&mut discarded).is_ok_and(|count| count > 0) {}
    let own = rustix::process::getpid();
    if let Err(error) = rustix::process::kill_process(own, rustix::process::Signal::TERM) {
        tracing::error!(%error, "cannot stop after standard input was closed");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use super::*;

    /// The process, which is this test once more, ended without.
    #[test]
    fn a_panic_has_a_line_in_the_log() {
        if std::env::var_os("HADRON_TEST_PANICS").is_some() {
            tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
            tell_panics();
            panic!("of\na test");
        }
        let name = "cli::serve::tests::a_panic_has_a_line_in_the_log";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", name, "--nocapture"]).env("HADRON_TEST_PANICS", "1");
        let output = again.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{told}");
        let line =
            told.lines().find(|line| line.contains("the node stopped: what it found cannot be")).unwrap();
        assert!(line.contains("of a test") && line.contains("serve.rs"), "{line}");
    }
}
