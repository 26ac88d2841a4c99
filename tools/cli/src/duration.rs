//! Times on the command line and in files: `200us`, `500ms`, `30s`, `5m`, `2h`, `30d`.

use std::time::Duration;

/// Reads a time with its unit.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a time; write one like 500ms, 30s, 5m, 2h or 30d");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let unit_s = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(invalid()),
    };
    Duration::try_from_secs_f64(number * unit_s).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let check = |text: &str, expected_ms: Option<u128>| {
            assert_eq!(parse(text).ok().map(|time| time.as_millis()), expected_ms, "{text:?}");
        };
        check("500ms", Some(500));
        check("2000us", Some(2));
        check("1.5s", Some(1_500));
        check("5m", Some(300_000));
        check("2h", Some(7_200_000));
        check("30d", Some(2_592_000_000));
        check("0s", Some(0));
        check("30", None);
        check("s", None);
        check("-1s", None);
        check("1.2.3s", None);
        check("9999999999999999999999d", None);
    }
}
