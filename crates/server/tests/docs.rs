//! What the documents name as shown by a test is: each test, file and module that stands in a column of tests exists.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Tables and their column of tests: the document, the column's head, and whether each cell must name something that can be run. What
/// was wrong with a test alone has none.
const TABLES: [(&str, &str, bool); 2] =
    [("docs/compatibility.md", "shown by", true), ("docs/testing.md", "its test", false)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    let inner = line.trim().strip_prefix('|').and_then(|rest| rest.strip_suffix('|'));
    inner.map(|inner| inner.split(" | ").map(str::trim).collect()).unwrap_or_default()
}

/// Number and cell of each line below a column's head.
fn column<'a>(text: &'a str, head: &str) -> Vec<(usize, &'a str)> {
    let (mut found, mut is_below) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        match cells(line).last() {
            None => is_below = false,
            Some(last) if *last == head => is_below = true,
            Some(last) if is_below && !last.starts_with("---") && !line.contains("|---") => {
                found.push((number + 1, *last));
            }
            Some(_) => {}
        }
    }
    found
}

/// What stands in backticks.
fn names(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// `a::{b,c}` is `a::b` and `a::c`.
fn spelled_out(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (between, after) = rest.split_once('}').unwrap_or((rest, ""));
    between.split(',').map(|one| format!("{before}{}{after}", one.trim())).collect()
}

/// All that is written in Rust.
fn sources(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

struct Repository {
    root: PathBuf,
    sources: Vec<(PathBuf, String)>,
}

impl Repository {
    /// Whether a name leads to something; `None` if it is no name of a test, a module or a file.
    fn knows(&self, name: &str) -> Option<bool> {
        if let Some((_, test)) = name.split_once("--test ") {
            let mut words = test.split_whitespace();
            let target = words.next().unwrap();
            // One target has a room for each thing; of the others, and without its colons, a word is part of a test's name.
            let room = words.next().and_then(|word| word.split_once("::"));
            return Some(self.has_target(target) && room.is_none_or(|(room, _)| self.has_room(target, room)));
        }
        if name.starts_with(".ci/") || name.starts_with("crates/") {
            return Some(self.root.join(name).exists());
        }
        if name.ends_with(".rs") {
            return Some(self.sources.iter().any(|(path, _)| path.ends_with(name)));
        }
        if name.contains("::") {
            return Some(self.has_module(name));
        }
        let is_function = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && name.matches('_').count() >= 2;
        is_function.then(|| self.sources.iter().any(|(_, text)| text.contains(&format!("fn {name}("))))
    }

    fn has_target(&self, test: &str) -> bool {
        self.sources.iter().any(|(path, _)| {
            path.ends_with(format!("tests/{test}.rs")) || path.ends_with(format!("tests/{test}/main.rs"))
        })
    }

    fn has_room(&self, target: &str, room: &str) -> bool {
        self.sources.iter().any(|(path, _)| {
            path.ends_with(format!("tests/{target}/{room}.rs"))
                || path.ends_with(format!("tests/{target}/{room}/mod.rs"))
        })
    }

    /// A module of the server, or something in one.
    fn has_module(&self, name: &str) -> bool {
        let path = name.replace("::", "/");
        let is_at = |path: &str| {
            let (file, room) = (format!("src/{path}.rs"), format!("src/{path}/mod.rs"));
            self.sources.iter().find(|(known, _)| known.ends_with(&file) || known.ends_with(&room))
        };
        let within = |(parent, item): (&str, &str)| {
            is_at(parent).is_some_and(|(_, text)| text.contains(&format!("fn {item}(")))
        };
        is_at(&path).is_some() || path.rsplit_once('/').is_some_and(within)
    }
}

#[test]
fn what_documents_say_is_tested_names_tests_that_exist() {
    let mut repository = Repository { root: root(), sources: Vec::new() };
    sources(&root().join("crates"), &mut repository.sources);
    let mut wrong = Vec::new();
    for (document, head, names_each) in TABLES {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let rows = column(&text, head);
        assert!(rows.len() > 20, "{document}: {} rows", rows.len());
        for (line, cell) in rows {
            let known: Vec<(String, bool)> = names(cell)
                .flat_map(spelled_out)
                .filter_map(|name| repository.knows(&name).map(|knows| (name, knows)))
                .collect();
            let unknown = known.iter().filter(|(_, knows)| !knows).map(|(name, _)| name);
            wrong.extend(unknown.map(|name| format!("{document}:{line}: there is no {name}")));
            if names_each && known.is_empty() && !cell.starts_with("the same") {
                wrong.push(format!("{document}:{line}: names no test: {cell}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
