//! Tells the program which commit it was built from, where that is known. Only in a release: other builds would be done
//! again after each commit.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = is_release.then(commit).flatten();
    println!("cargo::rustc-env=HADRON_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

/// The commit, marked if the source is not the commit's.
fn commit() -> Option<String> {
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    let sources = sources();
    sources.iter().for_each(|source| println!("cargo::rerun-if-changed={source}"));
    let mut status = vec!["--no-optional-locks", "status", "--porcelain", "--"];
    status.extend(sources.iter().map(String::as_str));
    let is_changed = git(&status).is_none_or(|changes| !changes.is_empty());
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    Some(if is_changed { commit + "-dirty" } else { commit })
}

/// What the program is built of: after a change of any of it the program is built anew in any case.
fn sources() -> Vec<String> {
    let mut sources = vec!["../../Cargo.toml".to_owned(), "../../Cargo.lock".to_owned()];
    for place in std::fs::read_dir("..").into_iter().flatten().flatten() {
        let parts = ["Cargo.toml", "build.rs", "proto", "src"].map(|part| place.path().join(part));
        let parts = parts.into_iter().filter(|part| part.exists());
        sources.extend(parts.filter_map(|part| part.to_str().map(str::to_owned)));
    }
    sources
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
