//! `txn`: a transaction as text on standard input.
//!
//! Three blocks of lines, each ended by an empty line: comparisons, requests when they all hold, requests otherwise.
//!
//! ```text
//! mod("key1") > "0"              target("key") operator "value"; targets: ver, version, c, create, m, mod,
//!                                val, value, lease; operators: = != < >
//!
//! put key1 "overwritten"         put, get and del with the flags they have on the command line
//!
//! put key1 'created'
//!
//! ```

use std::ffi::OsString;
use std::io::BufRead;

use clap::Parser;
use hadron_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use hadron_proto::etcdserverpb::request_op::Request;
use hadron_proto::etcdserverpb::{Compare, RequestOp, TxnRequest};

use super::failure::Failure;
use super::print::write_out;
use super::{Global, Session, go_text, kv};

/// Arguments of `txn`.
#[derive(Debug, clap::Args)]
pub(crate) struct Txn {
    /// Say what is expected next
    #[arg(short, long)]
    interactive: bool,
    #[arg(hide = true)]
    arguments: Vec<OsString>,
}

impl Txn {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        if !self.arguments.is_empty() {
            return Err(Failure::arguments("txn command does not accept argument"));
        }
        let session = Session::new(global)?;
        let request = read_txn(&mut std::io::stdin().lock(), |prompt| match self.interactive {
            true => write_out(format!("{prompt}\n").as_bytes()),
            false => Ok(()),
        })?;
        let reply = session.client.write(async |channel| kv::client(channel).txn(request).await).await?;
        session.printer.print(&reply)
    }
}

fn read_txn(
    input: &mut impl BufRead,
    prompt: impl Fn(&str) -> Result<(), Failure>,
) -> Result<TxnRequest, Failure> {
    prompt("compares:")?;
    let compare = read_block(input, parse_compare)?;
    prompt("success requests (get, put, del):")?;
    let success = read_block(input, parse_request)?;
    prompt("failure requests (get, put, del):")?;
    let failure = read_block(input, parse_request)?;
    Ok(TxnRequest { compare, success, failure })
}

/// Reads lines up to an empty one.
fn read_block<T>(
    input: &mut impl BufRead,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut parsed = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).map_err(Failure::input)?;
        if !line.ends_with('\n') {
            return Err(Failure::input("EOF"));
        }
        match line.trim() {
            "" => return Ok(parsed),
            line => parsed.push(parse(line)?),
        }
    }
}

/// `target("key") operator "value"`.
fn parse_compare(line: &str) -> Result<Compare, Failure> {
    let (target, rest) =
        line.split_once('(').ok_or_else(|| Failure::input(format_args!("malformed comparison: {line}")))?;
    let parts = CompareParts::scan(rest);
    let CompareParts { key: Some(key), operator, value: Some(value) } = &parts else {
        return Err(Failure::input(parts.complaint(line, target)));
    };
    let result = match operator.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        "<" => CompareResult::Less,
        ">" => CompareResult::Greater,
        _ => {
            return Err(Failure::input(format_args!(
                "malformed comparison: {line} (unknown operator {operator})"
            )));
        }
    };
    let number = |radix| {
        let text = String::from_utf8_lossy(value);
        go_text::parse_int(&text, radix)
            .map_err(|_| Failure::input(format_args!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        _ => {
            return Err(Failure::input(format_args!(
                "malformed comparison: {line} (unknown target {target})"
            )));
        }
    };
    Ok(Compare {
        result: result as i32,
        target: target as i32,
        key: key.clone().into(),
        range_end: Default::default(),
        target_union: Some(union),
    })
}

/// What follows `target(`, as far as it could be read.
#[derive(Debug, Default)]
struct CompareParts {
    key: Option<Vec<u8>>,
    operator: String,
    value: Option<Vec<u8>>,
}

impl CompareParts {
    fn scan(text: &str) -> CompareParts {
        let mut parts = CompareParts::default();
        let Some((key, rest)) = go_text::unquote_prefix(text.trim_start()) else { return parts };
        parts.key = Some(key);
        let Some(rest) = rest.strip_prefix(')') else { return parts };
        let rest = rest.trim_start();
        let operator_end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        parts.operator = rest[..operator_end].to_owned();
        parts.value = go_text::unquote_prefix(rest[operator_end..].trim_start()).map(|(value, _)| value);
        parts
    }

    fn complaint(&self, line: &str, target: &str) -> String {
        let quoted = |bytes: &Option<Vec<u8>>| go_text::quote(bytes.as_deref().unwrap_or_default());
        let (key, value) = (quoted(&self.key), quoted(&self.value));
        format!("malformed comparison: {line}; got {target}({key}) {} {value}", self.operator)
    }
}

#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum RequestLine {
    Get(kv::Get),
    Put(kv::Put),
    Del(kv::Del),
}

/// `get`, `put` or `del` with arguments and flags.
fn parse_request(line: &str) -> Result<RequestOp, Failure> {
    let words = words(line)?;
    if words.len() < 2 {
        return Err(Failure::input(format_args!("invalid txn compare request: {line}")));
    }
    let request = match RequestLine::try_parse_from(words) {
        Ok(RequestLine::Get(get)) => Request::RequestRange(get.request()?),
        // Standard input holds the transaction, so a value cannot come from there.
        Ok(RequestLine::Put(put)) => Request::RequestPut(put.request(Vec::new)?),
        Ok(RequestLine::Del(del)) => Request::RequestDeleteRange(del.request()?),
        Err(_) => return Err(Failure::input(format_args!("invalid txn request: {line}"))),
    };
    Ok(RequestOp { request: Some(request) })
}

/// Splits a line into words: bare, in single quotes (taken as they are) or in double quotes (with escapes).
pub(crate) fn words(line: &str) -> Result<Vec<OsString>, Failure> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '"' if has_closing_quote(rest) => {
                let (word, rest) = go_text::unquote_prefix(rest)
                    .ok_or_else(|| Failure::input(format_args!("invalid quoted string: {rest}")))?;
                words.push(OsString::from_vec(word));
                rest
            }
            '\'' if rest[1..].contains('\'') => {
                let (word, rest) = rest[1..].split_once('\'').unwrap_or((&rest[1..], ""));
                words.push(word.into());
                rest
            }
            // A quote that nothing closes is skipped, as etcdctl does.
            '"' | '\'' => &rest[1..],
            space if space.is_whitespace() => &rest[space.len_utf8()..],
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                words.push(rest[..end].into());
                &rest[end..]
            }
        };
    }
    Ok(words)
}

fn has_closing_quote(text: &str) -> bool {
    let mut escaped = false;
    text.chars().skip(1).any(|character| {
        let closes = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        closes
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cli::ctl::failure::Exit;

    fn compare(line: &str) -> Compare {
        parse_compare(line).unwrap()
    }

    #[test]
    fn every_target_and_operator() {
        for (line, target, union, result) in [
            ("ver(\"a\") = \"1\"", CompareTarget::Version, TargetUnion::Version(1), CompareResult::Equal),
            (
                "version(\"a\") != \"2\"",
                CompareTarget::Version,
                TargetUnion::Version(2),
                CompareResult::NotEqual,
            ),
            (
                "c(\"a\") > \"3\"",
                CompareTarget::Create,
                TargetUnion::CreateRevision(3),
                CompareResult::Greater,
            ),
            (
                "create(\"a\") < \"4\"",
                CompareTarget::Create,
                TargetUnion::CreateRevision(4),
                CompareResult::Less,
            ),
            ("m(\"a\") = \"5\"", CompareTarget::Mod, TargetUnion::ModRevision(5), CompareResult::Equal),
            ("mod(\"a\")  =  \"6\"", CompareTarget::Mod, TargetUnion::ModRevision(6), CompareResult::Equal),
            (
                "val(\"a\") = \"x\"",
                CompareTarget::Value,
                TargetUnion::Value("x".into()),
                CompareResult::Equal,
            ),
            (
                "value(\"a\") = `x`",
                CompareTarget::Value,
                TargetUnion::Value("x".into()),
                CompareResult::Equal,
            ),
            ("lease(\"a\") = \"1f\"", CompareTarget::Lease, TargetUnion::Lease(31), CompareResult::Equal),
        ] {
            let parsed = compare(line);
            assert_eq!(parsed.key, "a", "{line}");
            assert_eq!(parsed.target(), target, "{line}");
            assert_eq!(parsed.result(), result, "{line}");
            assert_eq!(parsed.target_union, Some(union), "{line}");
        }
        assert_eq!(compare(r#"val("a \"b\"") = "\x00""#).key, "a \"b\"");
    }

    #[test]
    fn comparisons_that_make_no_sense() {
        for (line, text) in [
            ("mod \"a\" > \"x\"", "malformed comparison: mod \"a\" > \"x\""),
            ("mod(a) > \"0\"", "malformed comparison: mod(a) > \"0\"; got mod(\"\")  \"\""),
            ("mod(\"a\") > 0", "malformed comparison: mod(\"a\") > 0; got mod(\"a\") > \"\""),
            ("foo(\"a\") > \"0\"", "malformed comparison: foo(\"a\") > \"0\" (unknown target foo)"),
            ("mod(\"a\") >= \"0\"", "malformed comparison: mod(\"a\") >= \"0\" (unknown operator >=)"),
            ("mod(\"a\") > \"x\"", "invalid txn compare request: mod(\"a\") > \"x\""),
        ] {
            let failure = parse_compare(line).unwrap_err();
            assert_eq!(failure, Failure::input(text), "{line}");
        }
    }

    #[test]
    fn words_are_bare_or_quoted() {
        let split = |line| {
            words(line).unwrap().into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(split("put k v"), ["put", "k", "v"]);
        assert_eq!(split(r#"put "a key" "a\tb\"c""#), ["put", "a key", "a\tb\"c"]);
        assert_eq!(split(r"put 'single q' 'a\tb'"), ["put", "single q", r"a\tb"]);
        assert_eq!(split("  get  k\"x  "), ["get", "k\"x"]);
        assert_eq!(split("get \"open"), ["get", "open"]);
        assert!(words(r#"put k "\q""#).is_err());
    }

    #[test]
    fn three_blocks_make_a_transaction() {
        let text =
            "mod(\"key1\") > \"0\"\n\nput key1 \"over written\" --prev-kv\nget k --prefix\n\ndel key1\n\n";
        let txn = read_txn(&mut text.as_bytes(), |_| Ok(())).unwrap();
        assert_eq!(txn.compare.len(), 1);
        assert_eq!(txn.success.len(), 2);
        let Some(Request::RequestPut(put)) = &txn.success[0].request else { panic!() };
        assert_eq!((&put.value[..], put.prev_kv), (&b"over written"[..], true));
        let Some(Request::RequestRange(range)) = &txn.success[1].request else { panic!() };
        assert_eq!(range.range_end, "l");
        assert!(matches!(txn.failure[0].request, Some(Request::RequestDeleteRange(_))));
    }

    #[test]
    fn blocks_that_make_no_sense() {
        let refusal = |text: &str| read_txn(&mut text.as_bytes(), |_| Ok(())).unwrap_err();
        assert_eq!(refusal("mod(\"a\") > \"0\"\n"), Failure::input("EOF"));
        assert_eq!(refusal("\nfrob k v\n\n\n"), Failure::input("invalid txn request: frob k v"));
        assert_eq!(refusal("\nput\n\n\n"), Failure::input("invalid txn compare request: put"));
        assert_eq!(
            refusal("\nget k --limit x\n\n\n"),
            Failure::input("invalid txn request: get k --limit x")
        );
        assert_eq!(refusal("\nput k\n\n\n").exit, Exit::BadArguments);
    }
}
