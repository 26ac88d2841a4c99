//! Metrics as text: the format of Prometheus 0.0.4, and OpenMetrics 1.0.
//!
//! Families are written as they are added, so a scrape costs one growing text and no tree. What differs between the two
//! formats is the name of a counter in its `TYPE` line, escapes in help texts, and the end. The rules of both are kept by
//! the types here: a family stands together, a counter ends in `_total`, buckets are cumulative and end at `+Inf`.

use std::collections::HashSet;
use std::fmt::Write as _;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `text/plain; version=0.0.4`: what everybody reads.
    #[default]
    Text,
    /// `application/openmetrics-text; version=1.0.0`.
    OpenMetrics,
}

impl Format {
    /// The one that suits an asker best; text if it says nothing that we know.
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let mut best = (Self::Text, 0.0);
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in ranges.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse::<f32>().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let format = match (kind.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => Self::OpenMetrics,
                ("text/plain", None | Some("0.0.4")) => Self::Text,
                _ => continue,
            };
            if quality > best.1 {
                best = (format, quality);
            }
        }
        best.0
    }

    /// What goes into the header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Upper bounds of a histogram's buckets, by the text of their label: those of one metric never change, since each is a
/// series of its own.
#[derive(Debug, Clone, Copy)]
pub struct Buckets {
    /// Bounds in the metric's own unit, as the label `le` says them (`0.001`, `1e-05`), and as counted; ascending. The
    /// last, `+Inf`, is not among them.
    pub bounds: &'static [(&'static str, u64)],
    /// What a counted number is divided by to be in the metric's base unit: 1e6 for microseconds that become seconds.
    pub per_unit: f64,
}

impl Buckets {
    /// Time from 10 µs to 10 s, counted in microseconds, in seconds.
    pub const SECONDS: Self = Self {
        bounds: &[
            ("1e-05", 10),
            ("2.5e-05", 25),
            ("5e-05", 50),
            ("0.0001", 100),
            ("0.00025", 250),
            ("0.0005", 500),
            ("0.001", 1_000),
            ("0.0025", 2_500),
            ("0.005", 5_000),
            ("0.01", 10_000),
            ("0.025", 25_000),
            ("0.05", 50_000),
            ("0.1", 100_000),
            ("0.25", 250_000),
            ("0.5", 500_000),
            ("1.0", 1_000_000),
            ("2.5", 2_500_000),
            ("10.0", 10_000_000),
        ],
        per_unit: 1e6,
    };
    /// Time from a millisecond to ten minutes, counted in microseconds, in seconds: how long models take.
    pub const LONG_SECONDS: Self = Self {
        bounds: &[
            ("0.001", 1_000),
            ("0.005", 5_000),
            ("0.01", 10_000),
            ("0.025", 25_000),
            ("0.05", 50_000),
            ("0.1", 100_000),
            ("0.25", 250_000),
            ("0.5", 500_000),
            ("1.0", 1_000_000),
            ("2.5", 2_500_000),
            ("5.0", 5_000_000),
            ("10.0", 10_000_000),
            ("30.0", 30_000_000),
            ("60.0", 60_000_000),
            ("300.0", 300_000_000),
            ("600.0", 600_000_000),
        ],
        per_unit: 1e6,
    };
    /// Bytes from 1 KiB to 4 MiB.
    pub const BYTES: Self = Self {
        bounds: &[
            ("1024.0", 1 << 10),
            ("4096.0", 4 << 10),
            ("16384.0", 16 << 10),
            ("65536.0", 64 << 10),
            ("262144.0", 256 << 10),
            ("1.048576e+06", 1 << 20),
            ("4.194304e+06", 4 << 20),
        ],
        per_unit: 1.0,
    };
    /// Things in a batch, from 1 to 4,096.
    pub const COUNT: Self = Self {
        bounds: &[
            ("1.0", 1),
            ("4.0", 4),
            ("16.0", 16),
            ("64.0", 64),
            ("256.0", 256),
            ("1024.0", 1_024),
            ("4096.0", 4_096),
        ],
        per_unit: 1.0,
    };

    /// The bucket of a counted number; one past the bounds for what is above them all.
    pub fn index(&self, value: u64) -> usize {
        self.bounds.partition_point(|(_, bound)| *bound < value)
    }

    /// Zeros: one for each bound, and one for what is above them all.
    pub fn zeros(&self) -> Vec<u64> {
        vec![0; self.bounds.len() + 1]
    }
}

/// Metrics being written.
#[derive(Debug, Default)]
pub struct Exposition {
    format: Format,
    text: String,
    families: HashSet<&'static str>,
    series: usize,
}

/// A metric whose samples are being written, all with the same label names.
#[derive(Debug)]
pub struct Family<'a> {
    into: &'a mut Exposition,
    name: &'static str,
    /// What a sample's name has beyond the family's.
    suffix: &'static str,
}

/// Labels of a sample: names of code, values of anything.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// An empty one.
    pub fn new(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// A number that only grows. `name` is without the `_total` that its samples have; its unit comes last in it.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        let suffix = if self.format == Format::Text { "_total" } else { "" };
        self.family(name, suffix, "_total", "counter", help)
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "", "", "gauge", help)
    }

    /// How numbers are spread.
    pub fn histogram(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "", "", "histogram", help)
    }

    fn family(
        &mut self,
        name: &'static str,
        header_suffix: &str,
        suffix: &'static str,
        kind: &str,
        help: &str,
    ) -> Family<'_> {
        debug_assert!(self.families.insert(name), "the metric {name} is written twice");
        self.text.push_str("# HELP ");
        self.text.push_str(name);
        self.text.push_str(header_suffix);
        self.text.push(' ');
        escape(&mut self.text, help, self.format == Format::OpenMetrics);
        let _ = writeln!(self.text, "\n# TYPE {name}{header_suffix} {kind}");
        Family { into: self, name, suffix }
    }

    /// Series written so far, a bucket counted as one.
    pub fn series(&self) -> usize {
        self.series
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        labels: Labels<'_>,
        le: Option<&str>,
        value: std::fmt::Arguments<'_>,
    ) {
        self.series += 1;
        self.text.push_str(name);
        self.text.push_str(suffix);
        let all = labels.iter().copied().chain(le.map(|le| ("le", le)));
        let mut before = '{';
        for (label, text) in all {
            self.text.push(before);
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(&mut self.text, text, true);
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        // Writing to a text cannot fail.
        let _ = writeln!(self.text, " {value}");
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub fn add(&mut self, labels: Labels<'_>, value: u64) -> &mut Self {
        self.into.sample(self.name, self.suffix, labels, None, format_args!("{value}"));
        self
    }

    /// Adds a sample that is no whole number.
    pub fn add_fraction(&mut self, labels: Labels<'_>, value: f64) -> &mut Self {
        match value {
            value if value.is_nan() => self.into.sample(self.name, self.suffix, labels, None, format_args!("NaN")),
            f64::INFINITY => self.into.sample(self.name, self.suffix, labels, None, format_args!("+Inf")),
            f64::NEG_INFINITY => self.into.sample(self.name, self.suffix, labels, None, format_args!("-Inf")),
            value => self.into.sample(self.name, self.suffix, labels, None, format_args!("{value}")),
        }
        self
    }

    /// Adds a spread: how many fell into each bucket (not cumulated; the last is what is above all bounds), and the sum of
    /// all as counted.
    pub fn add_spread(&mut self, labels: Labels<'_>, buckets: &Buckets, counts: &[u64], sum: f64) -> &mut Self {
        debug_assert_eq!(counts.len(), buckets.bounds.len() + 1, "{}: a count for each bucket", self.name);
        let mut below = 0;
        for ((label, _), count) in buckets.bounds.iter().zip(counts) {
            below += count;
            self.into.sample(self.name, "_bucket", labels, Some(label), format_args!("{below}"));
        }
        let all: u64 = counts.iter().sum();
        self.into.sample(self.name, "_bucket", labels, Some("+Inf"), format_args!("{all}"));
        self.into.sample(self.name, "_sum", labels, None, format_args!("{}", sum / buckets.per_unit));
        self.into.sample(self.name, "_count", labels, None, format_args!("{all}"));
        self
    }
}

/// Writes a text so that it can stand in a help line, or between quotes if those are escaped too.
fn escape(into: &mut String, text: &str, quotes: bool) {
    for character in text.chars() {
        match character {
            '\\' => into.push_str("\\\\"),
            '\n' => into.push_str("\\n"),
            '"' if quotes => into.push_str("\\\""),
            other => into.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: Format) -> String {
        let mut all = Exposition::new(format);
        all.counter("a_bytes", "what \"a\" is\nand \\").add(&[], 3).add(&[("core", "0"), ("name", "q\"\\\n")], 4);
        all.gauge("b_seconds", "b").add_fraction(&[], 0.5).add_fraction(&[("x", "y")], f64::INFINITY);
        let buckets = Buckets { bounds: &[("0.001", 1_000), ("1.0", 1_000_000)], per_unit: 1e6 };
        all.histogram("c_seconds", "c").add_spread(&[("stage", "s")], &buckets, &[1, 2, 3], 4_500_000.0);
        assert_eq!(all.series(), 9);
        all.finish()
    }

    #[test]
    fn both_formats_are_as_their_standards_say() {
        let samples = |counter: &str, quote: &str| {
            format!(
                "# HELP {counter} what {quote}a{quote} is\\nand \\\\\n# TYPE {counter} counter\na_bytes_total 3\n\
                 a_bytes_total{{core=\"0\",name=\"q\\\"\\\\\\n\"}} 4\n\
                 # HELP b_seconds b\n# TYPE b_seconds gauge\nb_seconds 0.5\nb_seconds{{x=\"y\"}} +Inf\n\
                 # HELP c_seconds c\n# TYPE c_seconds histogram\n\
                 c_seconds_bucket{{stage=\"s\",le=\"0.001\"}} 1\nc_seconds_bucket{{stage=\"s\",le=\"1.0\"}} 3\n\
                 c_seconds_bucket{{stage=\"s\",le=\"+Inf\"}} 6\nc_seconds_sum{{stage=\"s\"}} 4.5\n\
                 c_seconds_count{{stage=\"s\"}} 6\n"
            )
        };
        assert_eq!(written(Format::Text), samples("a_bytes_total", "\""));
        assert_eq!(written(Format::OpenMetrics), samples("a_bytes", "\\\"") + "# EOF\n");
    }

    #[test]
    fn the_format_is_what_was_asked_for() {
        let check = |accept: &[&str], expected: Format| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, value.parse().expect("a header"));
            }
            assert_eq!(Format::wanted(&headers), expected, "{accept:?}");
        };
        check(&[], Format::Text);
        check(&["*/*"], Format::Text);
        check(&["application/json"], Format::Text);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        check(&[prometheus], Format::OpenMetrics);
        check(&["text/plain;version=0.0.4, application/openmetrics-text; version=\"1.0.0\"; q=0.9"], Format::Text);
        check(&["text/plain;q=0.1", "application/openmetrics-text"], Format::OpenMetrics);
        check(&["application/openmetrics-text;version=9.9.9"], Format::Text);
        check(&["application/openmetrics-text;q=nonsense"], Format::Text);
    }

    #[test]
    fn buckets_ascend_and_their_labels_say_their_bounds() {
        for buckets in [Buckets::SECONDS, Buckets::LONG_SECONDS, Buckets::BYTES, Buckets::COUNT] {
            for (label, bound) in buckets.bounds {
                let said: f64 = label.parse().expect("a number");
                assert!((said * buckets.per_unit - *bound as f64).abs() < 1e-6 * *bound as f64, "{label} {bound}");
            }
            assert!(buckets.bounds.is_sorted_by(|a, b| a.1 < b.1));
        }
        let index = |value| Buckets::COUNT.index(value);
        assert_eq!([index(0), index(1), index(2), index(4_096), index(4_097)], [0, 0, 1, 6, 7]);
    }
}
