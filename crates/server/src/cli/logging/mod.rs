//! Log lines: JSON objects as etcd writes them, or lines for people, on standard error, standard output or in files.
//!
//! An etcd log line has `level`, `ts`, `caller` and `msg` first and the event's own fields after them, which have hyphens
//! in their names; tools that read etcd's logs find the same here.

mod rotation;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use log::LevelFilter;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::clock::utc;
use crate::config::{Log, LogFormat, LogOutput, Rotation};
use rotation::RotatingFile;

/// A file that log lines cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("--log-outputs: cannot write to {file}: {error}")]
pub(super) struct CannotLog {
    file: PathBuf,
    error: io::Error,
}

/// Starts logging. Does nothing if the process logs already.
///
/// # Errors
/// When a file cannot be opened.
pub(super) fn start(log: &Log) -> Result<(), CannotLog> {
    let open = |output| open(output, log.rotation);
    let outputs = Arc::new(log.outputs.iter().map(open).collect::<Result<Vec<_>, _>>()?);
    let filter = EnvFilter::new(log.level.to_string().to_lowercase());
    let writer = move || Lines(Arc::clone(&outputs));
    // It would tell on standard error that it could not be told there, and a panic about that would end the process.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(writer);
    let started = match log.format {
        LogFormat::Json => builder.event_format(EtcdJson).try_init(),
        LogFormat::Console => builder.with_ansi(false).try_init(),
    };
    // Whoever came first keeps logging.
    if started.is_ok() && log::set_boxed_logger(Box::<Libraries>::default()).is_ok() {
        log::set_max_level(LevelFilter::Error);
    }
    Ok(())
}

/// What libraries say that know nothing of `tracing`, as far as it is an error: the engine's threads tell why they ended nowhere else.
#[derive(Default)]
struct Libraries {
    /// The present second, and how many lines it had.
    second: Mutex<(u64, u32)>,
}

/// Lines of libraries in a second at most: clients may ask for a damaged record again and again.
const LIBRARY_LINES_MAX: u32 = 20;

impl Libraries {
    fn may_tell(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut second = self.second.lock();
        if second.0 != now {
            *second = (now, 0);
        }
        second.1 += 1;
        second.1 <= LIBRARY_LINES_MAX
    }
}

impl log::Log for Libraries {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && self.may_tell() {
            tracing::error!(from = record.target(), "{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// An open [`LogOutput`].
#[derive(Debug)]
enum Output {
    Stderr,
    Stdout,
    File(File),
    Rotating(Mutex<RotatingFile>),
}

fn open(output: &LogOutput, rotation: Option<Rotation>) -> Result<Output, CannotLog> {
    let path = match output {
        LogOutput::Stderr => return Ok(Output::Stderr),
        LogOutput::Stdout => return Ok(Output::Stdout),
        LogOutput::File(path) => path,
    };
    let failed = |error| CannotLog { file: path.clone(), error };
    if let Some(rotation) = rotation {
        let file = RotatingFile::open(path, rotation).map_err(failed)?;
        return Ok(Output::Rotating(Mutex::new(file)));
    }
    // Whatever rotates the file from outside may move or truncate it: lines go to its end.
    let file = File::options().create(true).append(true).open(path);
    file.map(Output::File).map_err(failed)
}

/// Writes each line to all outputs, in one piece. One that cannot be written to, as its disk is full, keeps it from no other, and nothing
/// but the log from going on.
struct Lines(Arc<Vec<Output>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for output in self.0.iter() {
            let _ = match output {
                Output::Stderr => io::stderr().write_all(line),
                Output::Stdout => io::stdout().write_all(line),
                Output::File(file) => (&*file).write_all(line),
                Output::Rotating(file) => file.lock().write(line, SystemTime::now()),
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats events as etcd does.
struct EtcdJson;

impl<S, N> FormatEvent<S, N> for EtcdJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now_us =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_micros());
        let caller = caller(metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        writeln!(out, "{}", line(*metadata.level(), now_us as i64, &caller, &fields))
    }
}

/// The last directory and the file, as zap shortens them: `driver/run.rs:38`.
fn caller(file: &str, line: u32) -> String {
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(position, _)| position + 1);
    format!("{}:{line}", &file[start..])
}

fn line(level: Level, now_us: i64, caller: &str, fields: &Fields) -> String {
    let level = level.to_string().to_lowercase();
    let text = |text: &str| Value::from(text).to_string();
    let mut line = format!(
        "{{\"level\":{},\"ts\":{},\"caller\":{},\"msg\":{}",
        text(&level),
        text(&utc(now_us, 6)),
        text(caller),
        text(&fields.message)
    );
    for (name, value) in &fields.others {
        line.push_str(&format!(",{}:{value}", text(name)));
    }
    line.push('}');
    line
}

/// The fields of an event, the message apart.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.replace('_', "-"), value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_etcd_would_write() {
        let mut fields =
            Fields { message: "ready to serve \"client\" requests".to_owned(), ..Default::default() };
        fields.others.insert("port".to_owned(), 2379.into());
        assert_eq!(
            line(Level::INFO, 1_795_399_200_000_125, "driver/run.rs:38", &fields),
            "{\"level\":\"info\",\"ts\":\"2026-11-23T02:00:00.000125Z\",\"caller\":\"driver/run.rs:38\",\
             \"msg\":\"ready to serve \\\"client\\\" requests\",\"port\":2379}"
        );
    }

    /// The journal was told nothing either, when the disk of a file of the log was full.
    #[cfg(target_os = "linux")]
    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_full_output_keeps_a_line_from_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let outputs = [PathBuf::from("/dev/full"), path.clone()];
        let outputs = outputs.map(|path| open(&LogOutput::File(path), None).unwrap());
        let mut lines = Lines(Arc::new(outputs.into()));
        assert_eq!(lines.write(b"a line\n").unwrap(), 7);
        assert_eq!(std::fs::read(path).unwrap(), b"a line\n");
    }

    #[test]
    fn callers_keep_one_directory() {
        assert_eq!(caller("crates/server/src/driver/run.rs", 7), "driver/run.rs:7");
        assert_eq!(caller("main.rs", 7), "main.rs:7");
    }
}
