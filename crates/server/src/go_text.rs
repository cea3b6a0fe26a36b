//! Texts as Go's standard library reads and writes them, because `etcdctl`'s users see (and parse) them: quoted
//! strings, integers, durations and sizes.

use std::time::Duration;

/// Writes bytes as Go's `%q` does: in double quotes, valid UTF-8 as it is, everything else escaped.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut quoted = String::with_capacity(bytes.len() + 2);
    quoted.push('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|character| push_quoted(&mut quoted, character));
        chunk.invalid().iter().for_each(|byte| quoted.push_str(&format!("\\x{byte:02x}")));
    }
    quoted.push('"');
    quoted
}

fn push_quoted(quoted: &mut String, character: char) {
    match character {
        '"' => quoted.push_str("\\\""),
        '\\' => quoted.push_str("\\\\"),
        '\x07' => quoted.push_str("\\a"),
        '\x08' => quoted.push_str("\\b"),
        '\x0c' => quoted.push_str("\\f"),
        '\n' => quoted.push_str("\\n"),
        '\r' => quoted.push_str("\\r"),
        '\t' => quoted.push_str("\\t"),
        '\x0b' => quoted.push_str("\\v"),
        other if is_printable(other) => quoted.push(other),
        other if (other as u32) < 0x80 => quoted.push_str(&format!("\\x{:02x}", other as u32)),
        other if (other as u32) < 0x1_0000 => quoted.push_str(&format!("\\u{:04x}", other as u32)),
        other => quoted.push_str(&format!("\\U{:08x}", other as u32)),
    }
}

/// Go's `strconv.IsPrint`, but for code points that Unicode has not assigned, which are printed here.
fn is_printable(character: char) -> bool {
    let formatting = matches!(character as u32,
        0xad | 0x600..=0x605 | 0x61c | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff
        | 0xe000..=0xf8ff | 0xe0000..=0x10_ffff);
    character == ' ' || !(character.is_control() || character.is_whitespace() || formatting)
}

/// Reads a quoted string at the start of `text`: in double quotes with escapes, or in back quotes without. Returns its
/// bytes and what follows it.
pub(crate) fn unquote_prefix(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (value, rest) = raw.split_once('`')?;
        return Some((value.as_bytes().to_vec(), rest));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut value = Vec::new();
    loop {
        let character = rest.chars().next()?;
        rest = &rest[character.len_utf8()..];
        match character {
            '"' => return Some((value, rest)),
            '\n' => return None,
            '\\' => rest = unescape(rest, &mut value)?,
            other => push_utf8(&mut value, other),
        }
    }
}

/// Reads one escape, the backslash of which is gone, and returns what follows it.
fn unescape<'a>(text: &'a str, value: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let simple = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '"' => kind as u8,
        'x' => {
            let (code, rest) = digits(rest, 2, 16)?;
            value.push(u8::try_from(code).ok()?);
            return Some(rest);
        }
        'u' | 'U' => {
            let (code, rest) = digits(rest, if kind == 'u' { 4 } else { 8 }, 16)?;
            push_utf8(value, char::from_u32(code)?);
            return Some(rest);
        }
        '0'..='7' => {
            let (code, rest) = digits(text, 3, 8)?;
            value.push(u8::try_from(code).ok()?);
            return Some(rest);
        }
        _ => return None,
    };
    value.push(simple);
    Some(rest)
}

fn digits(text: &str, count: usize, radix: u32) -> Option<(u32, &str)> {
    let digits = text.get(..count).filter(|digits| digits.chars().all(|digit| digit.is_digit(radix)))?;
    Some((u32::from_str_radix(digits, radix).ok()?, &text[count..]))
}

fn push_utf8(value: &mut Vec<u8>, character: char) {
    value.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Reads a signed 64-bit integer; the error is Go's.
pub(crate) fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    i64::from_str_radix(text, radix).map_err(|error| number_error("ParseInt", text, error.kind()))
}

/// Reads an unsigned 64-bit integer; the error is Go's.
pub(crate) fn parse_uint(text: &str, radix: u32) -> Result<u64, String> {
    let unsigned = if text.starts_with('+') { "" } else { text };
    u64::from_str_radix(unsigned, radix).map_err(|error| number_error("ParseUint", text, error.kind()))
}

fn number_error(function: &str, text: &str, kind: &std::num::IntErrorKind) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let reason = match kind {
        PosOverflow | NegOverflow => "value out of range",
        _ => "invalid syntax",
    };
    format!("strconv.{function}: parsing {}: {reason}", quote(text.as_bytes()))
}

/// Reads a duration such as `5s`, `100ms` or `1m30s`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("invalid duration {}", quote(text.as_bytes()));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(invalid)?;
        let number: f64 = rest[..number_end].parse().map_err(|_| invalid())?;
        rest = &rest[number_end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number * unit_seconds(&rest[..unit_end]).ok_or_else(invalid)?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(invalid()) } else { Duration::try_from_secs_f64(seconds).map_err(|_| invalid()) }
}

fn unit_seconds(unit: &str) -> Option<f64> {
    match unit {
        "ns" => Some(1e-9),
        "us" | "µs" => Some(1e-6),
        "ms" => Some(1e-3),
        "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    }
}

/// Writes a duration of less than a minute as Go does: `1.63057ms`, `12.5µs`, `3s`.
pub(crate) fn duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let (unit_nanoseconds, unit) = match nanoseconds {
        0 => return "0s".to_owned(),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let (whole, fraction) = (nanoseconds / unit_nanoseconds, nanoseconds % unit_nanoseconds);
    if fraction == 0 {
        return format!("{whole}{unit}");
    }
    let width = unit_nanoseconds.ilog10() as usize;
    let fraction = format!("{fraction:0width$}");
    format!("{whole}.{}{unit}", fraction.trim_end_matches('0'))
}

/// Writes a number of bytes in decimal units with at most one digit after the point: `20 kB`, `1.6 MB`.
pub(crate) fn size(bytes: u64) -> String {
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let exponent = ((bytes as f64).ln() / 1000f64.ln()).floor();
    let value = (bytes as f64 / 1000f64.powf(exponent) * 10.0 + 0.5).floor() / 10.0;
    let unit = units.get(exponent as usize).unwrap_or(&"EB");
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn quoting_escapes_what_is_not_printable_text() {
        assert_eq!(quote(b"thr\"ee\\n"), r#""thr\"ee\\n""#);
        assert_eq!(quote(b"\x01\xff<>&\xc3\xa9\t"), "\"\\x01\\xff<>&é\\t\"");
        assert_eq!(quote("a\u{7f}\u{a0}\u{200b}\u{10ffff}".as_bytes()), r#""a\x7f\u00a0\u200b\U0010ffff""#);
    }

    #[test]
    fn unquoting_reverses_quoting_and_returns_the_rest() {
        for bytes in [&b"plain"[..], b"", b"\x00\xff\n\"\\", "é€😀".as_bytes()] {
            let text = format!("{} rest", quote(bytes));
            assert_eq!(unquote_prefix(&text), Some((bytes.to_vec(), " rest")));
        }
        assert_eq!(unquote_prefix("`a\\n`)"), Some((b"a\\n".to_vec(), ")")));
        assert_eq!(unquote_prefix(r#""\101\u00e9""#), Some(("Aé".into(), "")));
        for text in ["", "x", "\"open", r#""\q""#, r#""\x1"#, r#""\400""#] {
            assert_eq!(unquote_prefix(text), None, "{text}");
        }
    }

    #[test]
    fn integers_fail_in_go_words() {
        assert_eq!(parse_int("1f", 16), Ok(31));
        assert_eq!(parse_int("-5", 10), Ok(-5));
        assert_eq!(parse_int("zz", 16).unwrap_err(), "strconv.ParseInt: parsing \"zz\": invalid syntax");
        assert_eq!(
            parse_int("9223372036854775808", 10).unwrap_err(),
            "strconv.ParseInt: parsing \"9223372036854775808\": value out of range"
        );
        assert_eq!(parse_uint("ffffffffffffffff", 16), Ok(u64::MAX));
        assert_eq!(parse_uint("-1", 16).unwrap_err(), "strconv.ParseUint: parsing \"-1\": invalid syntax");
    }

    #[test]
    fn durations_in_both_directions() {
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("1m30.5s"), Ok(Duration::from_millis(90_500)));
        assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
        for text in ["", "5", "s", "5x", "1s2", "-1s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(duration(Duration::from_nanos(1_630_570)), "1.63057ms");
        assert_eq!(duration(Duration::from_nanos(12_500)), "12.5µs");
        assert_eq!(duration(Duration::from_secs(3)), "3s");
        assert_eq!(duration(Duration::from_nanos(5_000_000_001)), "5.000000001s");
    }

    #[test]
    fn sizes_have_decimal_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1_500, "1.5 kB"),
            (20_480, "20 kB"),
            (1_572_864, "1.6 MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
