//! A log file that begins anew when it is full (`--enable-log-rotation`), as etcd's does: the full one gets the time into its name,
//! `log-2026-11-23T02-00-00.000.txt`, and old ones are removed once they are too many or too old.
//!
//! Times in names are UTC. What cannot be renamed or removed is left, and tried again with the next full file: lines are never lost for it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::super::clock::utc;
use crate::config::Rotation;

/// What a compressed file's name ends in.
const COMPRESSED: &str = ".gz";
/// `2026-11-23T02-00-00.000`
const STAMP_LEN: usize = 23;

/// The file that is written now.
#[derive(Debug)]
pub(super) struct RotatingFile {
    backups: Backups,
    file: File,
    bytes: u64,
    tidier: Tidier,
}

impl RotatingFile {
    /// Opens the file, which is written on if it is there.
    ///
    /// # Errors
    /// It cannot be.
    pub(super) fn open(path: &Path, rotation: Rotation) -> io::Result<RotatingFile> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        let backups = Backups { path: path.to_path_buf(), rotation };
        let tidier = Tidier::start(backups.clone())?;
        Ok(RotatingFile { backups, file, bytes, tidier })
    }

    /// Writes a line, to a new file if it does not fit.
    ///
    /// # Errors
    /// The line cannot be written.
    pub(super) fn write(&mut self, line: &[u8], now: SystemTime) -> io::Result<()> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.backups.rotation.bytes {
            // A file that stays too long is better than no log.
            let _ = self.rotate(now);
        }
        self.file.write_all(line)?;
        self.bytes += length;
        Ok(())
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let path = &self.backups.path;
        fs::rename(path, self.backups.name(now))?;
        self.file = append(path)?;
        self.bytes = 0;
        self.tidier.tidy(now);
        Ok(())
    }
}

/// The thread that looks after full files: whoever logs does not wait until one is compressed.
#[derive(Debug)]
struct Tidier {
    /// `None` at the end.
    asks: Option<Sender<SystemTime>>,
    thread: Option<JoinHandle<()>>,
}

impl Tidier {
    fn start(backups: Backups) -> io::Result<Tidier> {
        let (asks, asked) = mpsc::channel();
        let work = move || {
            while let Ok(now) = asked.recv() {
                // What is left is looked at with the next full file.
                let _ = backups.tidy(now);
            }
        };
        let thread = thread::Builder::new().name("log-rotation".into()).spawn(work)?;
        Ok(Tidier { asks: Some(asks), thread: Some(thread) })
    }

    fn tidy(&self, now: SystemTime) {
        if let Some(asks) = &self.asks {
            // It ends with this alone.
            let _ = asks.send(now);
        }
    }
}

impl Drop for Tidier {
    fn drop(&mut self) {
        self.asks = None;
        self.thread.take().map(JoinHandle::join);
    }
}

/// The full files.
#[derive(Clone, Debug)]
struct Backups {
    /// The file that is written now.
    path: PathBuf,
    rotation: Rotation,
}

impl Backups {
    /// What the file is called that became full at `now`.
    fn name(&self, now: SystemTime) -> PathBuf {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let stamp = utc(since.as_micros() as i64, 3).replace(':', "-");
        let (stem, extension) = parts(&self.path);
        self.path.with_file_name(format!("{stem}-{}{extension}", stamp.trim_end_matches('Z')))
    }

    /// All of them, newest first.
    fn all(&self) -> io::Result<Vec<PathBuf>> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let (stem, extension) = parts(&self.path);
        let is_backup = |name: &OsStr| {
            let name = name.to_string_lossy();
            let name = name.strip_suffix(COMPRESSED).unwrap_or(&name);
            let middle =
                name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            middle.is_some_and(|stamp| {
                stamp.len() == STAMP_LEN && stamp.starts_with(|c: char| c.is_ascii_digit())
            })
        };
        let mut backups: Vec<PathBuf> = fs::read_dir(directory.unwrap_or(Path::new(".")))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(is_backup))
            .collect();
        // Names are in the order of times.
        backups.sort();
        backups.reverse();
        Ok(backups)
    }

    /// Removes those that are too many or too old, and compresses the others if that is wanted.
    fn tidy(&self, now: SystemTime) -> io::Result<()> {
        self.remove_old(now)?;
        let is_plain = |path: &PathBuf| !path.as_os_str().to_string_lossy().ends_with(COMPRESSED);
        if self.rotation.compresses {
            self.all()?.iter().filter(|path| is_plain(path)).try_for_each(|path| compress(path))?;
        }
        Ok(())
    }

    fn remove_old(&self, now: SystemTime) -> io::Result<()> {
        let backups = self.all()?;
        let is_old = |path: &PathBuf, age: Duration| {
            let written = path.metadata().and_then(|metadata| metadata.modified());
            written.is_ok_and(|written| now.duration_since(written).is_ok_and(|since| since > age))
        };
        for (number, path) in backups.iter().enumerate() {
            let is_too_many = self.rotation.backups > 0 && number >= self.rotation.backups;
            if is_too_many || self.rotation.age.is_some_and(|age| is_old(path, age)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// The name without its extension, and the extension with its dot.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    let extension = text(path.extension());
    (text(path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
}

/// Puts a compressed file in the place of another.
fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(COMPRESSED);
    let mut encoder = GzEncoder::new(File::create(&name)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn rotation() -> Rotation {
        Rotation { bytes: 100, age: None, backups: 0, compresses: false }
    }

    /// Writes lines of 40 bytes, one a minute; the names of all files afterwards.
    fn write(rotation: Rotation, lines: u64) -> (tempfile::TempDir, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etcd.log");
        let mut file = RotatingFile::open(&path, rotation).unwrap();
        // As old as files that are written now can be: ages are counted from when a file was written.
        let start = SystemTime::now();
        for minute in 0..lines {
            let line = format!("{minute:039}\n");
            file.write(line.as_bytes(), start + Duration::from_secs(60 * minute)).unwrap();
        }
        drop(file);
        let names = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        (directory, names)
    }

    #[test]
    fn nothing_is_lost() {
        let (directory, names) = write(rotation(), 9);
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(names[..4].iter().all(|name| name.starts_with("etcd-") && name.ends_with(".log")));
        assert_eq!(names[4], "etcd.log");
        let all: String =
            names.iter().map(|name| fs::read_to_string(directory.path().join(name)).unwrap()).collect();
        let numbers: Vec<u64> = all.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers, (0..9).collect::<Vec<u64>>());
    }

    #[test]
    fn old_files_are_removed_and_others_left_alone() {
        assert_eq!(write(Rotation { backups: 2, ..rotation() }, 20).1.len(), 3);
        let (directory, _) = write(Rotation { age: Some(DAY), ..rotation() }, 9);
        fs::write(directory.path().join("etcd-notes.log"), "mine").unwrap();
        let mut file =
            RotatingFile::open(&directory.path().join("etcd.log"), Rotation { age: Some(DAY), ..rotation() })
                .unwrap();
        file.write(&[b'x'; 99], SystemTime::now() + 2 * DAY).unwrap();
        drop(file);
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 2, "the file and the notes");
    }

    #[test]
    fn full_files_are_compressed() {
        let (directory, names) = write(Rotation { compresses: true, ..rotation() }, 5);
        let compressed: Vec<&String> = names.iter().filter(|name| name.ends_with(".log.gz")).collect();
        assert_eq!((compressed.len(), names.len()), (2, 3), "{names:?}");
        let file = File::open(directory.path().join(compressed[0])).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count(), 2);
    }

    /// Whoever wrote the line that filled the file waited until it was compressed. Here that takes until a full file, a pipe, has been read.
    #[cfg(target_os = "linux")]
    #[test]
    fn nobody_waits_until_a_full_file_is_compressed() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let directory = tempfile::tempdir().unwrap();
        let full = directory.path().join("etcd-2020-01-01T00-00-00.000.log");
        mknodat(CWD, &full, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let path = directory.path().join("etcd.log");
        let (wrote, written) = mpsc::channel();
        let writer = thread::spawn(move || {
            let mut file = RotatingFile::open(&path, Rotation { compresses: true, ..rotation() }).unwrap();
            for _ in 0..3 {
                file.write(&[b'x'; 60], SystemTime::now()).unwrap();
            }
            wrote.send(()).unwrap();
        });
        let in_time = written.recv_timeout(Duration::from_secs(20));
        // Whoever compresses it may go on.
        fs::write(&full, "full").unwrap();
        writer.join().unwrap();
        in_time.unwrap();
        assert!(full.with_extension("log.gz").exists());
    }
}
