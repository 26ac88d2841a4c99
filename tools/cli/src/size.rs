//! Amounts of bytes on the command line: `4096`, `64KiB`, `10MiB`, `2GiB`.

/// Reads an amount with or without a unit.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not an amount of bytes; write one like 4096, 64KiB, 10MiB or 2GiB");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| invalid())?;
    let unit_bytes: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(invalid()),
    };
    number.checked_mul(unit_bytes).ok_or_else(invalid)
}

/// An amount as a person reads it.
#[cfg(feature = "node")]
pub(crate) fn show(bytes: u64) -> String {
    let (unit, bytes_per_unit) = match bytes {
        0..1024 => return format!("{bytes} B"),
        1024..0x10_0000 => ("KiB", 1_u64 << 10),
        0x10_0000..0x4000_0000 => ("MiB", 1 << 20),
        _ => ("GiB", 1 << 30),
    };
    format!("{:.1} {unit}", bytes as f64 / bytes_per_unit as f64)
}

#[cfg(all(test, feature = "node"))]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse(text).ok(), expected, "{text:?}");
        check("0", Some(0));
        check("4096", Some(4096));
        check("64KiB", Some(65_536));
        check("10MiB", Some(10 << 20));
        check("2GiB", Some(2 << 30));
        check("", None);
        check("KiB", None);
        check("1kb", None);
        check("-1", None);
        check("1.5GiB", None);
        check("99999999999999999999", None);
        check("18446744073709551615KiB", None);
        assert_eq!([show(5), show(1536), show(3 << 20), show(5 << 29)], ["5 B", "1.5 KiB", "3.0 MiB", "2.5 GiB"]);
    }
}
