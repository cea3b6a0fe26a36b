//! Bytes that disks and other versions have, written down beside the code that reads them: in files of
//! `tests/formats/` of each crate, a name and the bytes in hexadecimal on each line. Every one must be read as what it was, and written as it is.
//!
//! `UPDATE_FORMATS=1` writes the file anew. That is for entries that are new, and for all of them as long as no release
//! has them; what a release has written or read never changes (`docs/formats/README.md`).

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "part of tests")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// What a file has, and what is written now.
pub(crate) struct Pinned {
    file: PathBuf,
    lines: BTreeMap<String, Vec<u8>>,
    now: Vec<(String, Vec<u8>)>,
}

impl Pinned {
    /// The formats in the file `name` of the crate in `directory`.
    pub(crate) fn open(directory: &str, name: &str) -> Pinned {
        let file = PathBuf::from(directory).join("tests/formats").join(name);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let lines = lines.map(|(name, bytes)| (name.to_owned(), bytes_of(bytes))).collect();
        Pinned { file, lines, now: Vec::new() }
    }

    /// Compares what is written now with what was written once, which is returned.
    pub(crate) fn bytes(&mut self, name: &str, now: &[u8]) -> Vec<u8> {
        self.now.push((name.to_owned(), now.to_vec()));
        let before = match std::env::var_os("UPDATE_FORMATS") {
            Some(_) => now.to_vec(),
            None => self.lines.remove(name).unwrap_or_else(|| panic!("{name} is new: see UPDATE_FORMATS")),
        };
        assert_eq!(hexadecimal(now), hexadecimal(&before), "{name} is written otherwise than before");
        before
    }

    /// The end of a test: everything in the file was compared.
    pub(crate) fn finish(self) {
        if std::env::var_os("UPDATE_FORMATS").is_none() {
            let left: Vec<&String> = self.lines.keys().collect();
            assert!(left.is_empty(), "nobody reads these any more: {left:?}");
            return;
        }
        let line = |(name, bytes): (String, Vec<u8>)| format!("{name} {}\n", hexadecimal(&bytes));
        fs::write(&self.file, self.now.into_iter().map(line).collect::<String>()).unwrap();
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes_of(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}
