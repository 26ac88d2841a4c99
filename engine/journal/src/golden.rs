//! Files of bytes that were written once: a log of today must be read tomorrow.
#![cfg(test)]
#![allow(clippy::disallowed_methods, reason = "a golden file is a file, and only tests read it")]

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits say.
pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits");
    digits.as_bytes().chunks(2).map(byte).collect()
}

/// The lines of `golden/NAME`.
pub(crate) fn read(name: &str) -> Vec<String> {
    let path = format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let golden = std::fs::read_to_string(&path).expect("golden file; THALWEG_BLESS=1 writes it");
    golden.lines().map(str::to_owned).collect()
}

/// Compares lines with those of `golden/NAME`, which `THALWEG_BLESS=1` writes. A line that changes means that the format
/// changed: it needs another version, and the old one must still be read.
pub(crate) fn check(name: &str, now: &[String]) {
    let path = format!("{}/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("THALWEG_BLESS").is_some() {
        std::fs::write(&path, now.join("\n") + "\n").expect("golden file is writable");
    }
    let golden = read(name);
    assert_eq!(now.len(), golden.len(), "{name}: something was added: add it at the end with THALWEG_BLESS=1");
    for (at, (now, golden)) in now.iter().zip(&golden).enumerate() {
        assert_eq!(now, golden, "{name}, line {at}: it is written differently than before");
    }
}
