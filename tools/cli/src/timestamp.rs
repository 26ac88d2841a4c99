//! RFC 3339 in UTC, from microseconds since 1970.

/// `2026-11-21T03:50:35.000001Z`: always six digits of a second, so that the text sorts as the time does.
pub(crate) fn rfc3339(micros: u64) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of the `days`-th day after 1970-01-01, in the Gregorian calendar.
///
/// Counts years from March, so that the leap day is a year's last; eras of 400 years all have 146,097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let check = |seconds: u64, expected: &str| assert_eq!(rfc3339(seconds * 1_000_000 + 7), expected);
        check(0, "1970-01-01T00:00:00.000007Z");
        check(951_782_400, "2000-02-29T00:00:00.000007Z");
        check(951_868_800, "2000-03-01T00:00:00.000007Z");
        check(1_709_251_199, "2024-02-29T23:59:59.000007Z");
        check(1_795_233_035, "2026-11-21T03:50:35.000007Z");
        check(4_107_542_400, "2100-03-01T00:00:00.000007Z");
    }
}
