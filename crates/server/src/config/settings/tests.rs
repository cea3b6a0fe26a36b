//! Tests of [`super`]: which of several sources counts.
#![allow(clippy::unwrap_used)]

use super::*;

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Asked, SettingError> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    Settings::read(arguments.iter().map(OsString::from), environment)
}

fn settings(arguments: &[&str], environment: &[(&str, &str)]) -> Settings {
    match read(arguments, environment).unwrap() {
        Asked::Serve(settings) => settings,
        other => panic!("{other:?}"),
    }
}

fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    read(arguments, environment).unwrap_err().to_string()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn flags_are_read_as_go_reads_them() {
    let line =
        ["-name=a", "--data-dir", "/d", "--pre-vote", "--strict-reconfig-check=F", "-max-learners", "3"];
    let settings = settings(&line, &[]);
    assert_eq!(settings.text("name"), "a");
    assert_eq!(settings.text("data-dir"), "/d");
    assert_eq!(settings.text("pre-vote"), "true");
    assert_eq!(settings.text("strict-reconfig-check"), "F");
    assert_eq!(settings.text("max-learners"), "3");
    assert_eq!(settings.text("wal-dir"), "");
    assert_eq!(settings.text("heartbeat-interval"), "100", "the default");
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_default() {
    let environment = [("ETCD_NAME", "env"), ("ETCD_DATA_DIR", "/env"), ("ETCD_WAL_DIR", ""), ("OTHER", "x")];
    let settings = settings(&["--name=flag"], &environment);
    assert_eq!(settings.text("name"), "flag");
    assert_eq!(settings.text("data-dir"), "/env");
    assert_eq!(settings.given("wal-dir"), None, "an empty variable is none");
    assert_eq!(
        settings.notes(),
        [Note::Shadowed("ETCD_NAME".to_owned()), Note::Variable("ETCD_DATA_DIR".to_owned())]
    );
}

/// etcd compares names as they are. Here `ETCD_ETCD_NAME` and `ETCD_name` once were `ETCD_NAME`, and the last of them won.
#[test]
fn a_variable_that_is_spelled_otherwise_is_another_one() {
    let others = ["ETCD_ETCD_NAME", "ETCD_name", "ETCD_DATA-DIR"];
    let settings = settings(&[], &others.map(|variable| (variable, "x")));
    assert_eq!(settings.given("name"), None);
    assert_eq!(settings.given("data-dir"), None);
    assert_eq!(settings.notes(), others.map(|variable| Note::UnknownVariable(variable.to_owned())));
}

#[test]
fn a_file_replaces_flags_and_environment() {
    let file = file(
        "data-dir: /file\nmax-learners: 2\nwatch-progress-notify-interval: 5000000000\nno-such-key: 1\n",
    );
    let path = file.path().to_str().unwrap();
    let by_flag = settings(&["--name=flag", "--config-file", path], &[("ETCD_DATA_DIR", "/env")]);
    let by_variable = settings(&["--name=flag"], &[("ETCD_CONFIG_FILE", path), ("ETCD_DATA_DIR", "/env")]);
    for settings in [by_flag, by_variable] {
        assert_eq!(settings.given("name"), None);
        assert_eq!(settings.text("data-dir"), "/file");
        assert_eq!(settings.text("max-learners"), "2");
        assert_eq!(settings.text("watch-progress-notify-interval"), "5000000000ns");
        assert_eq!(settings.notes(), [Note::File(path.into()), Note::UnknownKey("no-such-key".to_owned())]);
    }
}

/// etcd reads YAML 1.1, in which these are switches. They were refused.
#[test]
fn switches_in_a_file_may_be_words() {
    let text = "pre-vote: yes\nstrict-reconfig-check: off\nauto-tls: n\nsocket-options: {reuse-port: On}\n\
                peer-transport-security: {client-cert-auth: NO}\nexperimental-initial-corrupt-check: Y\nname: on\n";
    let file = file(text);
    let settings = settings(&["--config-file", file.path().to_str().unwrap()], &[]);
    for (flag, value) in [
        ("pre-vote", "true"),
        ("strict-reconfig-check", "false"),
        ("auto-tls", "false"),
        ("socket-reuse-port", "true"),
        ("peer-client-cert-auth", "false"),
        ("feature-gates", "InitialCorruptCheck=true"),
        ("name", "on"),
    ] {
        assert_eq!(settings.text(flag), value, "{flag}");
    }
}

/// What is left of it in an environment or a file ended the start; etcd passes over it.
#[test]
fn what_is_left_of_the_v2_api_is_told_and_ignored_but_on_the_command_line() {
    let file = file("enable-v2: true\nproxy: 'on'\n");
    let path = file.path().to_str().unwrap();
    let of_file = settings(&["--config-file", path], &[]);
    let of_variables = settings(&[], &[("ETCD_ENABLE_V2", "true"), ("ETCD_PROXY", "readonly")]);
    let gone = |note: &&Note| matches!(note, Note::Gone { .. });
    for settings in [of_file, of_variables] {
        assert_eq!(settings.changed().count(), 0);
        assert_eq!(settings.notes().iter().filter(gone).count(), 2, "{:?}", settings.notes());
    }
    assert_eq!(settings(&["--enable-v2"], &[]).changed().count(), 1, "and is refused when that is read");
}

#[test]
fn a_flag_names_another_file_than_the_environment() {
    let (one, other) = (file("name: one\n"), file("name: other\n"));
    let flag = format!("--config-file={}", one.path().display());
    let settings = settings(&[&flag], &[("ETCD_CONFIG_FILE", other.path().to_str().unwrap())]);
    assert_eq!(settings.text("name"), "one");
}

#[test]
fn unknown_variables_are_told_and_unknown_flags_are_refused() {
    let settings = settings(&[], &[("ETCD_SERVICE_HOST", "10.0.0.1"), ("ETCDCTL_API", "3")]);
    assert_eq!(settings.notes(), [Note::UnknownVariable("ETCD_SERVICE_HOST".to_owned())]);
    assert_eq!(
        refusal(&["--no-such-flag=1"], &[]),
        "unknown flag --no-such-flag: `hadron serve --help` lists all flags"
    );
    assert_eq!(refusal(&["--pre-vote", "false"], &[]), "\"false\" is not a valid flag");
    assert_eq!(refusal(&["--"], &[]), "\"--\" is not a valid flag");
    assert_eq!(refusal(&["--name"], &[]), "--name needs a value");
}

#[test]
fn values_that_a_flag_cannot_have_are_refused_where_they_were_given() {
    assert_eq!(
        refusal(&["--heartbeat-interval=fast"], &[]),
        "--heartbeat-interval: expected a whole number, got \"fast\""
    );
    assert_eq!(
        refusal(&[], &[("ETCD_PRE_VOTE", "yes")]),
        "ETCD_PRE_VOTE: expected true or false, got \"yes\""
    );
    let bad = file("log-level: loud\n");
    let path = bad.path().to_str().unwrap();
    assert_eq!(
        refusal(&["--config-file", path], &[]),
        format!(
            "log-level in {path}: expected debug or info or warn or error or dpanic or panic or fatal, got \"loud\""
        )
    );
    assert!(
        refusal(&["--config-file=/no/such/file"], &[])
            .starts_with("the configuration file /no/such/file: cannot be read")
    );
}

#[test]
fn former_names_still_work() {
    let settings = settings(
        &[
            "--experimental-initial-corrupt-check=true",
            "--experimental-compact-hash-check-enabled",
            "--experimental-watch-progress-notify-interval=5s",
        ],
        &[("ETCD_EXPERIMENTAL_MAX_LEARNERS", "2")],
    );
    assert_eq!(settings.text("feature-gates"), "InitialCorruptCheck=true,CompactHashCheck=true");
    assert_eq!(settings.text("watch-progress-notify-interval"), "5s");
    assert_eq!(settings.text("max-learners"), "2");
    let now = "--feature-gates=InitialCorruptCheck=true".to_owned();
    assert!(
        settings
            .notes()
            .contains(&Note::Former { given: "experimental-initial-corrupt-check".to_owned(), now })
    );
}

#[test]
fn what_changes_nothing_is_told() {
    let settings = settings(&["--max-wals=7"], &[]);
    let told = settings.notes().iter().map(|note| matches!(note, Note::Nothing { flag: "max-wals", .. }));
    assert_eq!(told.collect::<Vec<_>>(), [true]);
}

#[test]
fn help_and_version_come_first() {
    assert!(matches!(read(&["--name=a", "--help", "--no-such-flag"], &[]), Ok(Asked::Help)));
    assert!(matches!(read(&["-version"], &[]), Ok(Asked::Version)));
    assert!(matches!(read(&["--version=false"], &[]), Ok(Asked::Serve(_))));
}
