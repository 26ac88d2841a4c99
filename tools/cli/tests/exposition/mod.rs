//! A strict reader of metrics, written from the standards (Prometheus text 0.0.4, OpenMetrics 1.0) and not from our writer.

use std::collections::{BTreeMap, BTreeSet};

/// One family.
#[derive(Debug, Default)]
pub(crate) struct Family {
    kind: String,
    help: String,
    /// Its samples' lines.
    pub(crate) samples: Vec<String>,
}

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Reads a text whole; panics at what breaks a rule. Gives families by their name without `_total`.
pub(crate) fn check(text: &str, open: bool) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut current = String::new();
    assert!(text.ends_with('\n') && !text.contains('\r'), "lines end in a line feed");
    assert_eq!(text.ends_with("# EOF\n"), open, "only OpenMetrics has an end");
    assert_eq!(text.matches("# EOF").count(), usize::from(open));
    for line in text.lines().filter(|line| *line != "# EOF") {
        assert!(!line.is_empty(), "an empty line");
        if let Some(rest) = line.strip_prefix("# ") {
            let (what, rest) = rest.split_once(' ').expect("HELP or TYPE, and more");
            let (name, rest) = rest.split_once(' ').expect("a name, and more");
            // In the older format a counter has its suffix here too.
            let name = if open { name } else { name.strip_suffix("_total").unwrap_or(name) };
            assert!(is_name(name), "{line}");
            match what {
                "HELP" => {
                    current = name.to_owned();
                    let family = Family { help: rest.to_owned(), ..Family::default() };
                    assert!(families.insert(current.clone(), family).is_none(), "{name} stands in two places");
                    assert!(!rest.trim().is_empty(), "{name} has no help");
                }
                "TYPE" => {
                    assert_eq!(name, current, "TYPE follows HELP");
                    let family = families.get_mut(name).expect("it has help");
                    assert!(
                        family.kind.is_empty() && family.samples.is_empty(),
                        "{name}: one TYPE, before all samples"
                    );
                    assert!(["counter", "gauge", "histogram"].contains(&rest), "{line}");
                    family.kind = rest.to_owned();
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let sample = sample(line);
        let family = families.get_mut(&current).expect("a family came first");
        belongs(&current, &family.kind, &sample);
        let mut labels = sample.labels.clone();
        labels.sort();
        assert!(labels.windows(2).all(|pair| pair[0].0 != pair[1].0), "a label twice: {line}");
        assert!(seen.insert((sample.name.clone(), labels)), "a series twice: {line}");
        assert!(sample.value.is_finite(), "{line}");
        assert!(family.kind == "gauge" || sample.value >= 0.0, "{line}");
        family.samples.push(line.to_owned());
    }
    for (name, family) in &families {
        assert!(!family.kind.is_empty(), "{name} has no TYPE");
        assert!(family.help.ends_with('.'), "{name}: {}", family.help);
        if family.kind == "histogram" {
            histogram(name, family);
        }
    }
    families
}

fn belongs(family: &str, kind: &str, sample: &Sample) {
    let rest = sample.name.strip_prefix(family).unwrap_or_else(|| panic!("{} in {family}", sample.name));
    let fine = match kind {
        "counter" => rest == "_total",
        "gauge" => rest.is_empty(),
        "histogram" => ["_bucket", "_sum", "_count"].contains(&rest),
        _ => false,
    };
    assert!(fine, "{} is no sample of the {kind} {family}", sample.name);
    let le = sample.labels.iter().any(|(name, _)| name == "le");
    assert_eq!(le, rest == "_bucket" && kind == "histogram", "{}", sample.name);
}

/// Buckets ascend to +Inf and are cumulative, and the last is the count.
fn histogram(name: &str, family: &Family) {
    /// Buckets, count, and whether there is a sum.
    type Parts = (Vec<(f64, f64)>, Option<f64>, bool);
    let mut series: BTreeMap<Vec<(String, String)>, Parts> = BTreeMap::new();
    for line in &family.samples {
        let mut sample = sample(line);
        let at = sample.labels.iter().position(|(label, _)| label == "le").map(|at| sample.labels.remove(at).1);
        let (buckets, count, sum) = series.entry(sample.labels).or_default();
        match at {
            Some(le) if le == "+Inf" => buckets.push((f64::INFINITY, sample.value)),
            Some(le) => buckets.push((le.parse().expect("a number"), sample.value)),
            None if sample.name.ends_with("_count") => *count = Some(sample.value),
            None => *sum = true,
        }
    }
    for (labels, (buckets, count, sum)) in series {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?} {buckets:?}");
        let last = buckets.last().expect("buckets");
        assert!(last.0.is_infinite() && Some(last.1) == count && sum, "{name} {labels:?}");
    }
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a name, and more");
    let (name, rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest, line),
        None => (Vec::new(), rest),
    };
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("one space before the value: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("no number, or more than one: {line}"));
    Sample { name: name.to_owned(), labels, value }
}

fn labels<'a>(mut rest: &'a str, line: &str) -> (Vec<(String, String)>, &'a str) {
    let mut labels = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(name), "{line}");
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("no end of a label: {line}")) {
                (_, '\\') => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                    other => panic!("{other:?} is no escape: {line}"),
                },
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, rest.strip_prefix('}').unwrap_or_else(|| panic!("{line}"))),
        }
    }
}
