//! The flags about the log: what is told, where, and when a file of it begins anew.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, Settings, parts, switch};

/// What is logged, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is logged.
    pub level: tracing::Level,
    /// Form of log lines.
    pub format: LogFormat,
    /// Where log lines go; never empty.
    pub outputs: Vec<LogOutput>,
    /// When the file among them begins anew; `None` for never.
    pub rotation: Option<Rotation>,
}

/// When a log file begins anew, and what happens to full ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of a full file.
    pub bytes: u64,
    /// Older ones are removed; `None` for none.
    pub age: Option<Duration>,
    /// Most full files to keep; 0 for all.
    pub backups: usize,
    /// Full files are compressed.
    pub compresses: bool,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, as etcd writes them.
    Json,
    /// For people.
    Console,
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
}

/// What the flags say.
pub(super) fn read(settings: &Settings) -> Result<Log, ConfigError> {
    let list = settings.text("log-outputs");
    let output = |name: &str| match name {
        "default" | "systemd/journal" | "stderr" => LogOutput::Stderr,
        "stdout" => LogOutput::Stdout,
        path => LogOutput::File(path.into()),
    };
    let names: BTreeSet<&str> = parts(list).collect();
    if names.len() > 1
        && let Some(alone) = ["default", "systemd/journal"].into_iter().find(|name| names.contains(name))
    {
        return Err(ConfigError::LogOutputs(alone.to_owned()));
    }
    let mut outputs: Vec<LogOutput> = names.into_iter().map(output).collect();
    if outputs.is_empty() {
        outputs.push(LogOutput::Stderr);
    }
    Ok(Log {
        level: match settings.text("log-level").to_ascii_lowercase().as_str() {
            "debug" => tracing::Level::DEBUG,
            "" | "info" => tracing::Level::INFO,
            "warn" => tracing::Level::WARN,
            // etcd knows levels beyond error; nothing of ours is logged there, so they mean the same.
            _ => tracing::Level::ERROR,
        },
        format: match settings.text("log-format") {
            "console" => LogFormat::Console,
            _ => LogFormat::Json,
        },
        rotation: rotation(settings, &outputs)?,
        outputs,
    })
}

/// As etcd reads it; what is missing has the library's default there.
fn rotation(settings: &Settings, outputs: &[LogOutput]) -> Result<Option<Rotation>, ConfigError> {
    if !switch(settings, "enable-log-rotation") {
        return Ok(None);
    }
    if outputs.iter().filter(|output| matches!(output, LogOutput::File(_))).count() != 1 {
        return Err(ConfigError::RotationOutput);
    }
    #[derive(serde::Deserialize)]
    #[serde(default)]
    struct Given {
        maxsize: u32,
        maxage: u32,
        maxbackups: u32,
        // Names are in UTC, whatever this says.
        #[serde(rename = "localtime")]
        _localtime: bool,
        compress: bool,
    }
    impl Default for Given {
        fn default() -> Given {
            Given { maxsize: 100, maxage: 0, maxbackups: 0, _localtime: false, compress: false }
        }
    }
    let text = settings.text("log-rotation-config-json");
    let given: Given = serde_json::from_str(text)
        .map_err(|error| ConfigError::Rotation { given: text.to_owned(), error: error.to_string() })?;
    let maxsize = if given.maxsize == 0 { Given::default().maxsize } else { given.maxsize };
    Ok(Some(Rotation {
        bytes: u64::from(maxsize) << 20,
        age: (given.maxage > 0).then(|| Duration::from_secs(u64::from(given.maxage) * 24 * 60 * 60)),
        backups: given.maxbackups as usize,
        compresses: given.compress,
    }))
}
