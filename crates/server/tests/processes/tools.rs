//! `ctl` and `utl` beside etcd's own tools, on the same cluster and the same file: they print the same and end with the same code. And the
//! completion of `ctl` in a real bash.
//!
//! The former needs `ETCD`, the path of a binary of etcd 3.5 or later with its tools beside it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hadron_proto::etcdserverpb as pb;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;

use crate::support;
use crate::support::content::{self, key, snapshot};
use crate::support::etcd::Etcd;

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
    &["lease", "keep-alive", "--once", "77"],
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
/// How a tool ends that cannot print in a form.
const UNSUPPORTED: i32 = 4;
const FORMATS: [&str; 4] = ["simple", "fields", "json", "table"];
/// What 3.6 prints otherwise than 3.5: the beginning of a command, and the form.
const SINCE_3_6: [(&[&str], &str); 5] = [
    (&["get", "/keys/0000003", "--hex"], "fields"),
    (&["member", "list"], "fields"),
    (&["endpoint", "hashkv"], "simple"),
    (&["endpoint", "hashkv"], "fields"),
    (&["endpoint", "hashkv"], "table"),
];
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

/// Run one after the other on a cluster of its own for each tool. `ID` is the one that was last told.
const STORY: &[&[&str]] = &[
    &["put", "a", "one"],
    &["put", "a", "two", "--prev-kv"],
    &["put", "a", "three", "--prev-kv", "-w", "json"],
    &["put", "a", "--ignore-value", "--lease", "1"],
    &["put", "b", "one", "-w", "fields"],
    &["compaction", "3"],
    &["compaction", "3"],
    &["get", "a", "--rev", "2"],
    &["del", "a", "--prev-kv"],
    &["del", "b", "--from-key", "-w", "fields"],
    &["del", "c", "d"],
    &["lease", "grant", "100"],
    &["put", "leased", "x", "--lease", "ID"],
    &["lease", "list"],
    &["lease", "keep-alive", "--once", "ID"],
    &["lease", "revoke", "ID"],
    &["get", "leased"],
    &["lease", "revoke", "ID"],
    &["member", "add", "other", "--learner", "--peer-urls", "http://127.0.0.1:1"],
    &["member", "update", "ID", "--peer-urls", "http://127.0.0.1:2"],
    &["member", "promote", "ID"],
    &["member", "list"],
    &["member", "remove", "ID"],
    &["member", "remove", "ID"],
    &["endpoint", "health", "-w", "simple"],
    &["alarm", "disarm"],
    &["downgrade", "validate", "3.5"],
    &["downgrade", "cancel"],
    &["defrag"],
    &["user", "add", "root:pw"],
    &["user", "add", "alice", "--no-password"],
    &["user", "add", "alice", "--no-password"],
    &["role", "add", "reader"],
    &["role", "grant-permission", "reader", "read", "/r/", "--prefix"],
    &["role", "grant-permission", "reader", "readwrite", "k"],
    &["role", "grant-permission", "reader", "nonsense", "k"],
    &["role", "get", "reader"],
    &["user", "grant-role", "alice", "reader"],
    &["user", "get", "alice"],
    &["user", "get", "alice", "--detail"],
    &["role", "list"],
    &["user", "list"],
    &["role", "revoke-permission", "reader", "k"],
    &["user", "revoke-role", "alice", "reader"],
    &["auth", "status"],
    &["auth", "enable"],
    &["put", "a", "one"],
    &["put", "a", "one", "--user", "root:pw"],
    &["put", "a", "one", "--user", "root:wrong"],
    &["auth", "status", "--user", "root:pw"],
    &["user", "delete", "alice", "--user", "root:pw"],
    &["role", "delete", "reader", "--user", "root:pw"],
    &["auth", "disable", "--user", "root:pw"],
    &["txn"],
];

fn binary() -> Option<PathBuf> {
    let binary = std::env::var_os("ETCD").map(PathBuf::from);
    let binary = binary.filter(|binary| binary.with_file_name("etcdutl").exists());
    if binary.is_none() {
        println!("SKIPPED: ETCD names no binary of etcd 3.5 or later with its tools beside it");
    }
    binary
}

/// Whether the tools are of 3.6 or later.
fn is_present(binary: &Path) -> bool {
    let help = Command::new(binary.with_file_name("etcdutl")).output().unwrap();
    String::from_utf8_lossy(&help.stdout).contains("hashkv")
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
    // A form that theirs does not have may be there.
    let is_more = expected.1 == Some(UNSUPPORTED) && found.1 == Some(0);
    (!is_same && !is_more).then(|| {
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
    let is_old = !is_present(&binary);
    for &words in COMMANDS {
        for format in FORMATS {
            if is_old && SINCE_3_6.contains(&(words, format)) {
                continue;
            }
            let (mut theirs, mut ours) = tools();
            let words = [words, &["-w", format]].concat();
            different.extend(difference(&mut theirs, &mut ours, &words, ""));
        }
    }
    for (words, typed) in TYPED {
        let (mut theirs, mut ours) = tools();
        different.extend(difference(&mut theirs, &mut ours, words, typed));
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// Ids and durations as one word each.
fn plain(text: &str, etcd: &Etcd) -> String {
    let text = text.replace(&etcd.url, "URL").replace(&etcd.peer_url, "PEER");
    let is_part = |c: char| c.is_ascii_hexdigit() || "\u{b5}.ms".contains(c);
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let word = &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())];
        let is_duration = word.ends_with('s') && word.contains('.');
        plain.push_str(if id_in(word).is_some() || is_duration { "X" } else { word });
        rest = &rest[word.len()..];
    }
    plain + rest
}

/// The first id in a text: 12 digits or more.
fn id_in(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.len() >= 12)
}

/// What a tool says to each command of the story.
fn told(tool: impl Fn() -> Command, etcd: &Etcd) -> Vec<(String, Option<i32>)> {
    let mut id = String::new();
    let one = |words: &&[&str]| {
        let is_of_members = words[0] == "member";
        let tells_id = words.iter().any(|word| ["add", "grant"].contains(word));
        let words = words.iter().map(|word| if *word == "ID" { &id } else { *word });
        let output = run(tool().args(["--endpoints", &etcd.url]).args(words), "\n\n\n");
        let (mut text, code) = said(&output);
        let complaints = String::from_utf8_lossy(&output.stderr);
        text.extend(complaints.lines().filter(|line| line.starts_with("Warning: ")));
        if tells_id && let Some(told) = id_in(&text) {
            id = told.to_owned();
        }
        let mut text = plain(&text, etcd);
        // Members are in the order of their ids, which are padded.
        if is_of_members {
            let mut parts: Vec<&str> = text.split([',', '\n', '"', '=', ' ']).collect();
            parts.retain(|part| !part.is_empty());
            parts.sort_unstable();
            text = parts.join(" ");
        }
        (text, code)
    };
    STORY.iter().map(one).collect()
}

#[tokio::test]
async fn what_ctl_changes_it_tells_as_etcdctl_does() {
    let Some(binary) = binary() else { return };
    let (one, other) = (Etcd::start(binary.clone()).await, Etcd::start(binary.clone()).await);
    let theirs = told(|| Command::new(binary.with_file_name("etcdctl")), &one);
    let ours = told(|| hadron("ctl"), &other);
    let is_old = !is_present(&binary);
    let since_3_6: [&[&str]; 3] = [&["defrag"], &["member", "add"], &["del", "c", "d"]];
    let is_known = |words: &[&str]| is_old && since_3_6.iter().any(|known| words.starts_with(known));
    let pairs = STORY.iter().zip(theirs.into_iter().zip(ours));
    let pairs = pairs.filter(|(words, (theirs, ours))| theirs != ours && !is_known(words));
    let different: Vec<String> = pairs
        .map(|(words, (theirs, ours))| format!("{words:?}\nexpected {theirs:?}\nfound    {ours:?}"))
        .collect();
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}

/// The first lines that a tool prints while its standard input stays open.
fn first_lines(program: &mut Command, typed: &str, count: usize) -> Vec<String> {
    let mut child =
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(typed.as_bytes()).unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = lines.take(count).map(Result::unwrap).collect();
    let _ = child.kill();
    let _ = child.wait();
    found
}

#[tokio::test]
async fn a_watch_shows_what_etcdctls_shows() {
    const WATCHES: [(&[&str], &str, usize); 5] = [
        (&["watch", "/keys/0000003", "--rev", "1"], "", 6),
        (&["watch", "/keys/0000002", "/keys/0000004", "--rev", "1", "--prev-kv"], "", 12),
        (&["watch", "/keys/", "--prefix", "--rev", "1", "-w", "json"], "", 1),
        (&["watch", "-i"], "watch /keys/0000020 --rev=1\n", 6),
        (&["watch", "/keys/0000020", "--rev", "1", "--", "echo", "seen"], "", 7),
    ];
    let Some(binary) = binary() else { return };
    let etcd = Etcd::start(binary.clone()).await;
    some_content(&etcd).await;
    for (words, typed, count) in WATCHES {
        let tools = [Command::new(binary.with_file_name("etcdctl")), hadron("ctl")];
        let [theirs, ours] = tools
            .map(|mut tool| first_lines(tool.args(["--endpoints", &etcd.url]).args(words), typed, count));
        assert_eq!(theirs, ours, "{words:?} {typed:?}");
        assert_eq!(theirs.len(), count, "{words:?} {typed:?}");
    }
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
    let mut commands: Vec<Vec<&str>> =
        vec![vec!["snapshot", "status"], vec!["snapshot", "status", path, path]];
    if is_present(&binary) {
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
    assert_eq!(completions(&["hadron", "ctl", "get", "--keys-"]), ["--keys-only"]);
    assert_eq!(completions(&["hadron", "utl", "snapshot", "re"]), ["restore"]);
    let all = completions(&["hadron", "ctl", ""]);
    for command in ["get", "put", "watch", "lock", "elect", "endpoint", "make-mirror"] {
        assert!(all.iter().any(|known| known == command), "{command} in {all:?}");
    }
}
