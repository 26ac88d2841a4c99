//! Values of settings: read from text or from a file, and written again.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::table::Kind;
use crate::{duration, size};

/// A value that was checked against its [`Kind`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Switch(bool),
    Count(u64),
    Ratio(f64),
    Bytes(u64),
    Time(Duration),
    Address(SocketAddr),
    Off,
    Path(PathBuf),
    Text(String),
    List(Vec<String>),
    /// Secrets, or tables of a shape of their own.
    Tree(serde_json::Value),
}

/// How a value of a kind is written, for those who wrote something else.
pub(crate) fn wanted(kind: Kind) -> String {
    let time = |time: Duration| Value::Time(time).plain();
    let bytes = |bytes: u64| Value::Bytes(bytes).plain();
    match kind {
        Kind::Switch => "write true or false".into(),
        Kind::Count { least, most } => format!("write a whole number from {least} to {most}"),
        Kind::Ratio { least, most } => format!("write a number from {least} to {most}"),
        Kind::Bytes { least, most } => {
            format!("write an amount of bytes like \"64MiB\" or \"2GiB\", from {} to {}", bytes(least), bytes(most))
        }
        Kind::Time { least, most } => {
            format!("write a time like \"500ms\", \"30s\", \"5m\" or \"12h\", from {} to {}", time(least), time(most))
        }
        Kind::Address => "write an IP address and a port like \"127.0.0.1:4433\" or \"[::]:4433\"".into(),
        Kind::AddressOrOff => "write an IP address and a port like \"127.0.0.1:8080\", or \"off\"".into(),
        Kind::Path => "write a path like \"/etc/thalweg/key.pem\"".into(),
        Kind::Text { most } => format!("write a text of 1 to {most} bytes"),
        Kind::Choice(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
            format!("write {}", words.join(" or "))
        }
        Kind::Level => "write a level like \"info\", or levels by module like \"warn,thalweg_node=debug\"".into(),
        Kind::List => "write a list of texts like [\"one\", \"two\"]".into(),
        Kind::Secrets => "write a table like { name = \"value\" }".into(),
        Kind::Tables => "write tables; `thalweg admin config example` shows one".into(),
    }
}

/// Reads a value from text, as flags and environment variables have it, or the text of a file. The error says what is wrong,
/// not what to write.
pub(crate) fn from_text(kind: Kind, text: &str) -> Result<Value, String> {
    let is_not = |what: &str| format!("{text:?} is not {what}");
    let value = match kind {
        Kind::Switch => Value::Switch(text.parse().map_err(|_| is_not("true or false"))?),
        Kind::Count { .. } => Value::Count(text.parse().map_err(|_| is_not("a whole number"))?),
        Kind::Ratio { .. } => Value::Ratio(text.parse().map_err(|_| is_not("a number"))?),
        Kind::Bytes { .. } => Value::Bytes(size::parse(text).map_err(|_| is_not("an amount of bytes"))?),
        Kind::Time { .. } => Value::Time(duration::parse(text).map_err(|_| is_not("a time with a unit"))?),
        Kind::Address => Value::Address(text.parse().map_err(|_| is_not("an IP address with a port"))?),
        Kind::AddressOrOff if text == "off" => Value::Off,
        Kind::AddressOrOff => Value::Address(text.parse().map_err(|_| is_not("an IP address with a port, or off"))?),
        Kind::Path if text.is_empty() => return Err("the path is empty".into()),
        Kind::Path => Value::Path(text.into()),
        Kind::Text { .. } => Value::Text(text.into()),
        Kind::Choice(words) if words.contains(&text) => Value::Text(text.into()),
        Kind::Choice(_) => return Err(is_not("one of the words it can be")),
        Kind::Level => {
            const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
            // The filter takes any word for the name of a module, and `loud` would show nothing at all.
            let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
            if let Some(word) = text.split(',').find(|word| !word.contains(['=', '[']) && !is_level(word.trim())) {
                return Err(format!("{:?} is not a level", word.trim()));
            }
            let valid = tracing_subscriber::EnvFilter::builder().parse(text).map_err(|error| error.to_string());
            valid.map_err(|error| format!("{} ({error})", is_not("a level")))?;
            Value::Text(text.into())
        }
        Kind::List => {
            Value::List(text.split(',').map(|item| item.trim().to_owned()).filter(|i| !i.is_empty()).collect())
        }
        Kind::Secrets | Kind::Tables => return Err("it can only be written in a file".into()),
    };
    in_range(kind, value)
}

/// Checks bounds.
pub(crate) fn in_range(kind: Kind, value: Value) -> Result<Value, String> {
    let small = |least: String| format!("{} is too little; it is at least {least}", value.plain());
    let large = |most: String| format!("{} is too much; it is at most {most}", value.plain());
    match (kind, &value) {
        (Kind::Count { least, .. }, Value::Count(n)) if *n < least => Err(small(least.to_string())),
        (Kind::Count { most, .. }, Value::Count(n)) if *n > most => Err(large(most.to_string())),
        (Kind::Ratio { least, .. }, Value::Ratio(x)) if x.is_nan() || *x < least => Err(small(least.to_string())),
        (Kind::Ratio { most, .. }, Value::Ratio(x)) if *x > most => Err(large(most.to_string())),
        (Kind::Bytes { least, .. }, Value::Bytes(n)) if *n < least => Err(small(Value::Bytes(least).plain())),
        (Kind::Bytes { most, .. }, Value::Bytes(n)) if *n > most => Err(large(Value::Bytes(most).plain())),
        (Kind::Time { least, .. }, Value::Time(t)) if *t < least => Err(small(Value::Time(least).plain())),
        (Kind::Time { most, .. }, Value::Time(t)) if *t > most => Err(large(Value::Time(most).plain())),
        (Kind::Text { most }, Value::Text(text)) if text.is_empty() || text.len() > most => {
            Err(format!("it has {} bytes", text.len()))
        }
        _ => Ok(value),
    }
}

impl Value {
    /// As a flag or an environment variable would have it; [`from_text`] reads it back.
    pub(crate) fn plain(&self) -> String {
        match self {
            Self::Switch(on) => on.to_string(),
            Self::Count(n) => n.to_string(),
            Self::Ratio(x) => x.to_string(),
            Self::Bytes(bytes) => {
                let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
                let unit = units.iter().find(|(_, shift)| *bytes > 0 && bytes.trailing_zeros() >= *shift);
                unit.map_or_else(|| format!("{bytes}B"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
            }
            Self::Time(time) => {
                let us = time.as_micros();
                let units =
                    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
                // Up to two minutes people think in seconds, and so on.
                let unit = units.iter().find(|(_, each)| us > 0 && us % each == 0);
                unit.map_or_else(|| format!("{us}us"), |(unit, each)| format!("{}{unit}", us / each))
            }
            Self::Address(address) => address.to_string(),
            Self::Off => "off".into(),
            Self::Path(path) => path.to_string_lossy().into_owned(),
            Self::Text(text) => text.clone(),
            Self::List(items) => items.join(","),
            Self::Tree(_) => "(tables)".into(),
        }
    }

    /// As JSON has it.
    pub(crate) fn json(&self) -> serde_json::Value {
        match self {
            Self::Switch(on) => json!(on),
            Self::Count(n) => json!(n),
            Self::Ratio(x) => json!(x),
            Self::List(items) => json!(items),
            Self::Tree(tree) => tree.clone(),
            other => json!(other.plain()),
        }
    }
}

/// As a TOML file has it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(on) => write!(f, "{on}"),
            Self::Count(n) => write!(f, "{n}"),
            Self::Ratio(x) => write!(f, "{x:?}"),
            Self::List(items) => write_toml(f, &json!(items)),
            Self::Tree(tree) => write_toml(f, tree),
            other => f.write_str(&quoted(&other.plain())),
        }
    }
}

/// A basic string of TOML. JSON's escapes are among TOML's; only the character DEL may not stand there as it is.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\x7f', "\\u007f")
}

fn write_toml(f: &mut fmt::Formatter<'_>, value: &serde_json::Value) -> fmt::Result {
    match value {
        serde_json::Value::String(text) => f.write_str(&quoted(text)),
        serde_json::Value::Array(items) => {
            f.write_str("[")?;
            for (at, item) in items.iter().enumerate() {
                f.write_str(if at == 0 { "" } else { ", " })?;
                write_toml(f, item)?;
            }
            f.write_str("]")
        }
        serde_json::Value::Object(fields) => {
            f.write_str("{ ")?;
            for (at, (name, field)) in fields.iter().filter(|(_, field)| !field.is_null()).enumerate() {
                f.write_str(if at == 0 { "" } else { ", " })?;
                write!(f, "{} = ", quoted(name))?;
                write_toml(f, field)?;
            }
            f.write_str(" }")
        }
        other => write!(f, "{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values_and_come_back() {
        let check = |kind: Kind, text: &str, expected: Result<&str, &str>| match (from_text(kind, text), expected) {
            (Ok(value), Ok(plain)) => {
                assert_eq!(value.plain(), plain, "{text:?}");
                assert_eq!(from_text(kind, &value.plain()), Ok(value), "{text:?} comes back");
            }
            (Err(error), Err(says)) => assert!(error.contains(says), "{text:?}: {error}"),
            (found, expected) => panic!("{text:?}: {found:?} instead of {expected:?}"),
        };
        let seconds = |least, most| Kind::Time { least: Duration::from_secs(least), most: Duration::from_secs(most) };
        let bytes = Kind::Bytes { least: 1 << 10, most: 1 << 30 };
        check(Kind::Switch, "true", Ok("true"));
        check(Kind::Switch, "yes", Err("\"yes\" is not true or false"));
        check(Kind::Count { least: 1, most: 8 }, "8", Ok("8"));
        check(Kind::Count { least: 1, most: 8 }, "0", Err("at least 1"));
        check(Kind::Count { least: 1, most: 8 }, "9", Err("at most 8"));
        check(Kind::Count { least: 1, most: 8 }, "-1", Err("not a whole number"));
        check(Kind::Ratio { least: 0.0, most: 1.0 }, "0.25", Ok("0.25"));
        check(Kind::Ratio { least: 0.0, most: 1.0 }, "NaN", Err("too little"));
        check(Kind::Ratio { least: 0.0, most: 1.0 }, "1.5", Err("at most 1"));
        check(bytes, "65536", Ok("64KiB"));
        check(bytes, "1025", Ok("1025B"));
        check(bytes, "1kb", Err("not an amount of bytes"));
        check(bytes, "1", Err("at least 1KiB"));
        check(bytes, "2GiB", Err("at most 1GiB"));
        check(seconds(0, 600), "200us", Ok("200us"));
        check(seconds(0, 600), "120s", Ok("2m"));
        check(seconds(0, 600), "0s", Ok("0us"));
        check(seconds(1, 600), "30", Err("not a time with a unit"));
        check(seconds(1, 600), "11m", Err("at most 10m"));
        check(Kind::Address, "127.0.0.1:1", Ok("127.0.0.1:1"));
        check(Kind::Address, "localhost:1", Err("not an IP address"));
        check(Kind::Address, "off", Err("not an IP address"));
        check(Kind::AddressOrOff, "off", Ok("off"));
        check(Kind::Path, "", Err("empty"));
        check(Kind::Choice(&["a", "b"]), "b", Ok("b"));
        check(Kind::Choice(&["a", "b"]), "c", Err("\"c\" is not one of"));
        check(Kind::Level, "warn,thalweg_node=debug", Ok("warn,thalweg_node=debug"));
        check(Kind::Level, "warn,thalweg_node=loud", Err("not a level"));
        check(Kind::Level, "loud", Err("\"loud\" is not a level"));
        check(Kind::Level, "INFO", Ok("INFO"));
        check(Kind::List, "a, b,", Ok("a,b"));
        check(Kind::Text { most: 3 }, "abcd", Err("4 bytes"));
        check(Kind::Secrets, "x", Err("only be written in a file"));
    }

    #[test]
    fn values_are_written_as_toml() {
        let check = |value: Value, expected: &str| {
            assert_eq!(value.to_string(), expected);
            let text = format!("x = {value}");
            toml::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        };
        check(Value::Ratio(1.0), "1.0");
        check(Value::Text("a\"b\\c\n\x7f\x1b é".into()), "\"a\\\"b\\\\c\\n\\u007f\\u001b é\"");
        check(Value::Bytes(3 << 20), "\"3MiB\"");
        check(Value::List(vec!["a".into(), "b".into()]), "[\"a\", \"b\"]");
        check(Value::List(Vec::new()), "[]");
        check(
            Value::Tree(json!([{ "a b": 1, "c": null, "d": { "e": true } }])),
            "[{ \"a b\" = 1, \"d\" = { \"e\" = true } }]",
        );
        check(Value::Off, "\"off\"");
    }
}
