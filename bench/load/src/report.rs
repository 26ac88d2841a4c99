//! Results as people and as scripts read them.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::latency::Latencies;

/// One line of a result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How many latencies were recorded.
    pub count: u64,
    /// How many a second.
    pub rate: f64,
    /// Latency that half of them did not exceed, µs.
    pub p50_us: f64,
    /// The same for 90 %.
    pub p90_us: f64,
    /// The same for 99 %.
    pub p99_us: f64,
    /// The same for 99.9 %.
    pub p999_us: f64,
    /// The same for 99.99 %.
    pub p9999_us: f64,
    /// The longest, µs.
    pub max_us: f64,
    /// What this bench adds.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Row {
    /// The row of these latencies, recorded over `seconds`.
    pub(crate) fn new(name: impl Into<String>, latencies: &Latencies, seconds: f64) -> Self {
        let percentile = |percent| round(latencies.percentile_us(percent));
        let rate = if seconds > 0.0 { round(latencies.count() as f64 / seconds) } else { 0.0 };
        Self {
            name: name.into(),
            count: latencies.count(),
            rate,
            p50_us: percentile(50.0),
            p90_us: percentile(90.0),
            p99_us: percentile(99.0),
            p999_us: percentile(99.9),
            p9999_us: percentile(99.99),
            max_us: round(latencies.max_us()),
            extra: Map::new(),
        }
    }

    /// Adds a figure.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a figure that is not always known.
    #[must_use]
    pub(crate) fn with_known(self, key: &str, value: Option<f64>) -> Self {
        match value {
            Some(value) => self.with(key, round(value)),
            None => self,
        }
    }
}

/// Three digits after the point are a nanosecond of a microsecond: more would be invented.
pub(crate) fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// Writes rows as a table, or as one JSON object a line.
pub fn write(rows: &[Row], json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        for row in rows {
            serde_json::to_writer(&mut *out, row)?;
            writeln!(out)?;
        }
        return out.flush();
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
    writeln!(
        out,
        "{:width$} {:>9} {:>11} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "name", "count", "rate/s", "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "p99.99 µs", "max µs"
    )?;
    for row in rows {
        writeln!(
            out,
            "{:width$} {:>9} {:>11.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
            row.name, row.count, row.rate, row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.p9999_us, row.max_us
        )?;
        if !row.extra.is_empty() {
            let extra: Vec<String> = row.extra.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
            writeln!(out, "{:width$}   {}", "", extra.join("  "))?;
        }
    }
    out.flush()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut latencies = Latencies::new();
        (1..=1_000).for_each(|us| latencies.record(0, us * 1_000));
        Row::new("ping_open", &latencies, 2.0).with("lost", 3).with_known("server_cpu_s", None)
    }

    fn text(json: bool) -> String {
        let mut out = Vec::new();
        write(&[row()], json, &mut out).expect("a vector takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn json_has_the_promised_names_one_object_a_line() {
        let text = text(true);
        assert_eq!(text.lines().count(), 1);
        let value: Value = serde_json::from_str(&text).expect("valid JSON");
        let keys = ["name", "count", "rate", "p50_us", "p90_us", "p99_us", "p999_us", "p9999_us", "max_us", "lost"];
        for key in keys {
            assert!(value.get(key).is_some(), "{key} in {text}");
        }
        assert_eq!(value.as_object().map(Map::len), Some(keys.len()));
        assert_eq!(value["rate"], 500.0);
    }

    #[test]
    fn the_table_has_a_head_a_line_and_the_extras() {
        let text = text(false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[0].contains("p99.99 µs") && lines[1].contains("ping_open") && lines[2].trim() == "lost=3",
            "{text}"
        );
    }
}
