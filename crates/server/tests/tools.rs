//! `ctl` and `utl` beside etcd's own tools, on the same cluster and the same file: they print the same and end with the same code. And the
//! completion of `ctl` in a real bash.
//!
//! The former needs `ETCD`, the path of a binary of etcd 3.5 or later with its tools beside it.

#![allow(clippy::unwrap_used)]

#[path = "support/content.rs"]
mod content;
#[path = "support/etcd.rs"]
mod etcd;
mod support;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use content::{key, snapshot};
use etcd::Etcd;
use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;

/// Each changes nothing, or the same however often it is run.
const COMMANDS: &[&[&str]] = &[
    &["get", "/keys/0000003"],
    &["get", "/keys/", "--prefix", "--limit", "3"],
    &["get", "/keys/", "--prefix", "--keys-only", "--order", "DESCEND", "--sort-by", "VERSION"],
    &["get", "/keys/", "--prefix", "--count-only"],
    &["get", "/keys/0000003", "--print-value-only"],
    &["get", "/keys/0000003", "--hex"],
    &["get", "nothing"],
    &["get"],
    &["get", "a", "--rev", "100000"],
    &["get", "a", "--order", "SIDEWAYS"],
    &["put"],
    &["put", "a"],
    &["del"],
    &["del", "nothing"],
    &["del", "nothing", "--prefix", "--from-key"],
    &["member", "list"],
    &["member", "remove"],
    &["member", "remove", "zz"],
    &["alarm", "list"],
    &["lease", "list"],
    &["lease", "revoke", "123"],
    &["lease", "grant"],
    &["lease", "timetolive", "1"],
    &["lock"],
    &["lock", "name", "echo", "locked"],
    &["elect"],
    &["elect", "name"],
    &["move-leader", "1"],
    &["user", "get", "none"],
    &["user", "list"],
    &["role", "get", "none"],
    &["compaction"],
    &["compaction", "1000000"],
    &["snapshot", "save"],
    &["endpoint", "hashkv"],
];
const FORMATS: [&str; 4] = ["simple", "fields", "json", "table"];
/// What is typed in interactive modes, which end with standard input.
const TYPED: &[(&[&str], &str)] = &[
    (
        &["txn", "-i"],
        "value(\"/keys/0000003\") = \"three\"\n\nget /keys/0000003\ndel nothing\n\nget nothing\n\n",
    ),
    (
        &["txn", "-i"],
        "value(\"/keys/0000003\") = \"four\"\nmod(\"nothing\") = \"0\"\n\nget a\n\nget /keys/0000003\n\n",
    ),
    (&["txn", "-i"], "\n\n\n"),
    (&["txn", "-i"], "value(nothing) = \"\"\n\n\n\n"),
    (&["txn", "-i"], "nonsense\n\n\n\n"),
    (&["txn", "-i"], "\nnonsense\n\n\n"),
    (&["txn", "-i"], ""),
    (&["txn"], "create(\"nothing\") = \"0\"\n\nget /keys/ --prefix --limit 2\n\n\n"),
    (&["watch", "-i"], ""),
    (&["watch", "-i"], "progress\n"),
    (&["watch", "-i"], "watch\n\nnonsense a\n"),
    (&["watch", "-i"], "watch a b --prefix\n"),
];

fn binary() -> Option<PathBuf> {
    let binary = std::env::var_os("ETCD").map(PathBuf::from);
    let binary = binary.filter(|binary| binary.with_file_name("etcdutl").exists());
    if binary.is_none() {
        println!("SKIPPED: ETCD names no binary of etcd 3.5 or later with its tools beside it");
    }
    binary
}

fn run(program: &mut Command, typed: &str) -> Output {
    let piped = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // Who does not read it has ended.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    child.wait_with_output().unwrap()
}

/// Standard output and the code; what was said on standard error, for the report.
fn said(output: &Output) -> (String, Option<i32>) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
}

/// Runs both with these words; how they differ, if they do.
fn difference(theirs: &mut Command, ours: &mut Command, words: &[&str], typed: &str) -> Option<String> {
    let [theirs, ours] = [theirs, ours].map(|program| run(program.args(words), typed));
    let (expected, found) = (said(&theirs), said(&ours));
    // Their help is of another form.
    let is_usage = expected.0.contains("USAGE:") || expected.0.contains("Usage:");
    let is_same = expected.1 == found.1 && (is_usage || expected.0 == found.0);
    (!is_same).then(|| {
        let complaints = [theirs, ours].map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        format!("{words:?} {typed:?}\nexpected {expected:?}\nfound    {found:?}\n{complaints:?}")
    })
}

fn hadron(tool: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hadron"));
    command.arg(tool);
    command
}

async fn some_content(etcd: &Etcd) {
    let channel = support::channel(&etcd.url);
    let grant = pb::LeaseGrantRequest { ttl: 3_600, id: content::LEASE };
    LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
    let mut kv = KvClient::new(channel);
    for number in (0..30).chain(0..10) {
        let value = if number == 3 { "three".into() } else { vec![b'v'; number].into() };
        let put = pb::PutRequest { key: key(number), value, ..Default::default() };
        kv.put(put).await.unwrap();
    }
    kv.delete_range(pb::DeleteRangeRequest { key: key(20), ..Default::default() }).await.unwrap();
}

#[tokio::test]
async fn ctl_says_what_etcdctl_says() {
    let Some(binary) = binary() else { return };
    let etcd = Etcd::start(binary.clone()).await;
    some_content(&etcd).await;
    let tools = || {
        let mut theirs = Command::new(binary.with_file_name("etcdctl"));
        let mut ours = hadron("ctl");
        for tool in [&mut theirs, &mut ours] {
            tool.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.url]);
        }
        (theirs, ours)
    };
    let mut different = Vec::new();
    for words in COMMANDS {
        for format in FORMATS {
            let (mut theirs, mut ours) = tools();
            let words = [*words, &["-w", format]].concat();
            different.extend(difference(&mut theirs, &mut ours, &words, ""));
        }
    }
    for (words, typed) in TYPED {
        let (mut theirs, mut ours) = tools();
        different.extend(difference(&mut theirs, &mut ours, words, typed));
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

#[tokio::test]
async fn utl_says_what_etcdutl_says() {
    let Some(binary) = binary() else { return };
    let etcd = Etcd::start(binary.clone()).await;
    some_content(&etcd).await;
    let (file, _) = snapshot(&support::channel(&etcd.url)).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backup.db");
    let path = path.to_str().unwrap();
    // 3.5 has no hashkv, and its status counts other keys and knows no version.
    let help = Command::new(binary.with_file_name("etcdutl")).output().unwrap();
    let is_present = String::from_utf8_lossy(&help.stdout).contains("hashkv");
    let mut commands: Vec<Vec<&str>> =
        vec![vec!["snapshot", "status"], vec!["snapshot", "status", path, path]];
    if is_present {
        commands.extend([vec!["snapshot", "status", path], vec!["hashkv", path], vec!["hashkv"]]);
        commands.extend([vec!["hashkv", path, "--rev", "7"], vec!["hashkv", path, "--rev", "700"]]);
    }
    let mut different = Vec::new();
    for words in &commands {
        for format in FORMATS.into_iter().chain(["protobuf", "nonsense"]) {
            // Theirs writes to the file that it looks at.
            fs::write(path, &file).unwrap();
            let words = [words.as_slice(), &["-w", format]].concat();
            let mut theirs = Command::new(binary.with_file_name("etcdutl"));
            different.extend(difference(&mut theirs, &mut hadron("utl"), &words, ""));
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// What bash offers for the last of these words.
fn completions(words: &[&str]) -> Vec<String> {
    const SCRIPT: &str = r#"
        shift 0
        eval "$("$HADRON" ctl completion bash)"
        function=$(complete -p hadron | sed -n 's/.*-F \([^ ]*\).*/\1/p')
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
        "$function" hadron "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let output = Command::new("bash")
        .args(["--norc", "-c", SCRIPT, "bash"])
        .args(words)
        .env("HADRON", env!("CARGO_BIN_EXE_hadron"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_commands_and_flags() {
    assert_eq!(completions(&["hadron", "ctl", "comp"]), ["compaction", "completion"]);
    assert_eq!(completions(&["hadron", "ctl", "member", "pro"]), ["promote"]);
    assert_eq!(completions(&["hadron", "ctl", "get", "--keys"]), ["--keys-only"]);
    assert_eq!(completions(&["hadron", "utl", "snapshot", "re"]), ["restore"]);
    let all = completions(&["hadron", "ctl", ""]);
    for command in ["get", "put", "watch", "lock", "elect", "endpoint", "make-mirror"] {
        assert!(all.iter().any(|known| known == command), "{command} in {all:?}");
    }
}
