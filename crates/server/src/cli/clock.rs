//! Wall-clock times in UTC, for people and log lines.

/// Microseconds since the Unix epoch as `2026-11-23T02:00:00.000Z`, with this many digits (at most 6) of the second.
pub(super) fn utc(us: i64, digits: usize) -> String {
    let (days, day_us) = (us.div_euclid(86_400_000_000), us.rem_euclid(86_400_000_000));
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (day_us / 3_600_000_000, day_us / 60_000_000 % 60, day_us / 1_000_000 % 60);
    let fraction = format!("{:06}", day_us % 1_000_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{}Z", &fraction[..digits.min(6)])
}

/// The date that is this many days after 1970-01-01, counted in eras of 400 years that begin in March.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_across_leap_years() {
        assert_eq!(utc(0, 3), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_400_000_000, 3), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(1_709_251_199_999_999, 6), "2024-02-29T23:59:59.999999Z");
        assert_eq!(utc(-1, 3), "1969-12-31T23:59:59.999Z");
    }
}
