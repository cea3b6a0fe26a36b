//! Tests of the table of flags, and of the page that is made of it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use super::*;

/// Set, it makes the test write the page instead of comparing it.
const UPDATE: &str = "UPDATE_DOCS";

fn page() -> String {
    let mut page = String::from(
        "# Flags of `hadron serve`\n\n\
         <!-- Made from crates/server/src/config/flags/table.rs; UPDATE_DOCS=1 cargo test -p hadron-server flags writes it. -->\n\n\
         All of etcd's flags are known, with etcd's names and defaults. A flag is also an environment variable (`--data-dir` is \
         `ETCD_DATA_DIR`) and a key of the YAML file that `--config-file` or `ETCD_CONFIG_FILE` names. A flag beats the \
         environment; a configuration file replaces both. One dash does as well as two. An unknown flag, or a value that a flag \
         cannot have, ends the process with code 2 and a line that names it; unknown variables that begin with `ETCD_` and unknown \
         keys of the file are told in the log.\n\n\
         What a flag does here: it **works** as in etcd; or it changes **nothing**, because what it is about does not exist here or \
         is always so; or any value but the default is **refused**, because what it asks for is gone from etcd too. What has been \
         left of the v2 API in the environment or in a file is ignored, as in etcd. Nothing is ignored silently: what changes nothing is told in the log.\n\n\
         Differences from etcd, on purpose: a variable that a flag overrules is told in the log, where etcd would not start; a \
         flag that etcd reads from the command line only, such as `cert-file` outside of its map, is read from the file too; time \
         spans in the file may be texts such as `10m`; the default URLs are those of 127.0.0.1.\n\n\
         `HADRON_DNS_SERVER=IP:PORT` names the DNS server that is asked for SRV records, here as in `ctl`, `gateway` and `grpc-proxy`; \
         without it those of `/etc/resolv.conf` are asked. What OpenTelemetry's SDK takes from the environment \
         (`OTEL_RESOURCE_ATTRIBUTES`, `OTEL_BSP_…`) counts as it does in etcd.\n\n\
         The names that flags had in etcd 3.5 and 3.6 (`--experimental-…`) still work: as the flag without `experimental-`, or as \
         the feature that took its place.\n",
    );
    for (heading, flags) in TABLE {
        page.push_str(&format!(
            "\n## {heading}\n\n| flag | default | what it is for | here |\n|---|---|---|---|\n"
        ));
        for flag in *flags {
            let here = match flag.effect {
                Effect::Works => "works".to_owned(),
                Effect::Nothing(why) => format!("nothing: {why}"),
                Effect::Refused(why) => format!("refused: {why}"),
                Effect::Gone(why) => format!("refused: {why}; ignored in the environment and in a file"),
            };
            let default = match flag.default {
                "" => String::new(),
                default => format!("`{default}`"),
            };
            let row = [format!("`--{}`", flag.name), default, flag.help.to_owned(), here].join(" | ");
            page.push_str(&format!("| {row} |\n"));
        }
    }
    page
}

#[test]
fn the_page_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/flags.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == page(), "docs/flags.md is not the table of flags: run this test with {UPDATE}=1");
}

#[test]
fn names_are_unique_and_defaults_are_values() {
    let mut names = BTreeSet::new();
    for flag in all() {
        assert!(names.insert(flag.name), "{} is there twice", flag.name);
        assert!(flag.accepts(flag.default), "--{}={}", flag.name, flag.default);
        assert!(flag.is_default(flag.default), "--{}", flag.name);
        assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "--{}", flag.name);
    }
}

#[test]
fn former_names_lead_to_flags_and_features() {
    assert_eq!(former("experimental-corrupt-check-time"), Some(Former::Flag("corrupt-check-time")));
    assert_eq!(former("experimental-initial-corrupt-check"), Some(Former::Gate("InitialCorruptCheck")));
    assert_eq!(former("experimental-name"), None);
    assert_eq!(former("corrupt-check-time"), None);
    for flag in table::FORMERLY_EXPERIMENTAL {
        assert!(find(flag).is_some(), "{flag}");
    }
    for (_, feature) in table::GATES {
        assert!(FEATURES.contains(feature), "{feature}");
    }
}

#[test]
fn values_that_ask_for_nothing_new_are_defaults() {
    let flag = |name| find(name).unwrap();
    assert!(flag("client-cert-auth").is_default("False"));
    assert!(!flag("pre-vote").is_default("0"));
    assert!(flag("watch-progress-notify-interval").is_default("600s"));
    assert!(flag("cert-file").is_default(""));
    assert!(!flag("cert-file").is_default("c.pem"));
    assert!(flag("log-level").is_default("INFO"));
}

#[test]
fn help_names_every_flag() {
    let help = help();
    assert!(all().all(|flag| help.contains(&format!("\n  --{} '", flag.name))));
}
