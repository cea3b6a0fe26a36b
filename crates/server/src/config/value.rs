//! Texts of flags as Go's `flag` and `strconv` read them, because manifests are written for these.

use std::time::Duration;

/// `strconv.ParseBool`.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// What a switch may be in a configuration file beside that: YAML 1.1 has more words for it, which etcd's reader of YAML knows.
pub(super) fn yaml_switch(text: &str) -> Option<bool> {
    match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A whole number, in decimal or, after `0x`, hexadecimal.
pub(super) fn number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => i128::from_str_radix(hexadecimal, 16),
        None => digits.parse(),
    };
    value.ok().map(|value: i128| if negative { -value } else { value })
}

/// A time span that is not negative: `1h30m`, `300ms`, `0`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    crate::go_text::parse_duration(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_gos() {
        assert_eq!(switch("T"), Some(true));
        assert_eq!(switch("0"), Some(false));
        assert_eq!(switch("yes"), None);
        assert_eq!(switch(""), None);
    }

    #[test]
    fn numbers_may_be_hexadecimal_or_negative() {
        assert_eq!(number("10"), Some(10));
        assert_eq!(number("0x10"), Some(16));
        assert_eq!(number("-1"), Some(-1));
        for bad in ["", "1.5", "--1", "+-1", "0x", "ten"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!(duration("10"), None);
    }
}
