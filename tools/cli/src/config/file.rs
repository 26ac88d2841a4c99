//! Reading a file: from text to values that were checked one by one, each with its place.

use std::ops::Range;
use std::path::Path;

use serde_json::{Map, Value as Json};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::problem::{Origin, Problem, SourceText};
use super::table::{Kind, SECTIONS, SETTINGS, Setting, nearest, setting};
use super::value::{Value, from_text, wanted};

/// A value that a file has.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) setting: &'static Setting,
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// Reads all settings of a file; goes on after a problem, to find all of them.
pub(crate) fn read(source: &SourceText) -> (Vec<Entry>, Vec<Problem>) {
    let (root, errors) = DeTable::parse_recoverable(source.text());
    let mut reader = Reader { source, entries: Vec::new(), problems: Vec::new() };
    for error in &errors {
        let span = error.span().unwrap_or(source.text().len()..source.text().len());
        let help = "the file is not valid TOML from here on";
        reader.problems.push(source.problem(span, error.message().replace('\n', "; "), help));
    }
    // What is left of a broken file gives misleading problems.
    if errors.is_empty() {
        reader.table("", root.get_ref());
    }
    reader.problems.sort_by_key(|problem| match problem.origin {
        Origin::File { line, column, .. } => (line, column),
        _ => (0, 0),
    });
    (reader.entries, reader.problems)
}

struct Reader<'a> {
    source: &'a SourceText,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, section: &str, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            let name =
                if section.is_empty() { key.get_ref().to_string() } else { format!("{section}.{}", key.get_ref()) };
            let inside = format!("{name}.");
            let is_section = SETTINGS.iter().any(|setting| setting.name.starts_with(&inside));
            match (setting(&name), value.get_ref()) {
                (Some(setting), _) => self.setting(setting, value),
                (None, DeValue::Table(table)) if is_section => self.table(&name, table),
                (None, _) if is_section => {
                    let what = format!("`{name}` is a section, not a setting");
                    let help = format!("write [{name}] on a line of its own, and its settings below");
                    self.problems.push(self.source.problem(key.span(), what, help));
                }
                (None, _) => {
                    let what = match value.get_ref() {
                        DeValue::Table(_) => format!("there is no section `{name}`"),
                        _ => format!("there is no setting `{name}`"),
                    };
                    let help = suggestion(&name, section, key.get_ref());
                    self.problems.push(self.source.problem(key.span(), what, help));
                }
            }
        }
    }

    fn setting(&mut self, setting: &'static Setting, value: &Spanned<DeValue<'_>>) {
        let origin = self.source.origin(value.span().start);
        match convert(setting.kind, value) {
            Ok(value) => {
                let value = from_here(value, &self.source.path);
                self.entries.push(Entry { setting, value, origin });
            }
            Err((span, what)) => {
                let what = format!("{}: {what}", setting.name);
                self.problems.push(self.source.problem(span, what, wanted(setting.kind)));
            }
        }
    }
}

/// What somebody may have meant who wrote a name that is none.
fn suggestion(name: &str, section: &str, key: &str) -> String {
    let names = || SETTINGS.iter().map(|setting| setting.name);
    let meant = nearest(name, names()).map(str::to_owned);
    // The right key in the wrong section, as a file of the flat kind of earlier versions has it.
    let key = key.replace('-', "_");
    let elsewhere = || SETTINGS.iter().find(|setting| setting.key() == key).map(|setting| setting.name.to_owned());
    let former = || match (section, key.as_str()) {
        ("", "quic" | "http") => Some(format!("{key}.address")),
        ("", "no_model") => Some("models.load".to_owned()),
        ("", "udp") => Some("quic.backend".to_owned()),
        ("", "spin_us") => Some("node.spin".to_owned()),
        ("", "durability") => Some("durability.default".to_owned()),
        _ => None,
    };
    let sections = || {
        nearest(name, SECTIONS.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()))
            .map(|name| format!("[{name}]"))
    };
    match meant.or_else(former).or_else(elsewhere).or_else(sections) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "`thalweg admin config example` shows all there are".into(),
    }
}

/// Paths in a file are meant from where the file is.
fn from_here(value: Value, file: &Path) -> Value {
    match (value, file.parent()) {
        (Value::Path(path), Some(directory)) if path.is_relative() => Value::Path(directory.join(path)),
        (value, _) => value,
    }
}

type Wrong = (Range<usize>, String);

fn convert(kind: Kind, spanned: &Spanned<DeValue<'_>>) -> Result<Value, Wrong> {
    let span = || spanned.span();
    let text = |text: &str| from_text(kind, text).map_err(|what| (span(), what));
    match (kind, spanned.get_ref()) {
        (Kind::Switch, DeValue::Boolean(on)) => Ok(Value::Switch(*on)),
        (Kind::Count { .. } | Kind::Ratio { .. } | Kind::Bytes { .. }, DeValue::Integer(n)) if n.radix() == 10 => {
            text(n.as_str())
        }
        (Kind::Ratio { .. }, DeValue::Float(x)) => text(x.as_str()),
        (Kind::Time { .. }, DeValue::Integer(n)) => Err((span(), format!("{} has no unit", n.as_str()))),
        (Kind::List, DeValue::Array(items)) => strings(items).map(Value::List),
        (Kind::Secrets, DeValue::Table(table)) => {
            if let Some((_, wrong)) = table.iter().find(|(_, value)| !value.get_ref().is_str()) {
                return Err((wrong.span(), "a value is not a text".into()));
            }
            Ok(Value::Tree(tree(spanned)?))
        }
        (Kind::Tables, DeValue::Table(_) | DeValue::Array(_)) => Ok(Value::Tree(tree(spanned)?)),
        (Kind::Secrets, _) => Err((span(), "it is not a table".into())),
        (Kind::Tables | Kind::List | Kind::Switch | Kind::Count { .. } | Kind::Ratio { .. }, other) => {
            Err((span(), format!("it is {}", shape(other))))
        }
        (_, DeValue::String(given)) => text(given),
        (_, other) => Err((span(), format!("it is {}", shape(other)))),
    }
}

/// What a value is, to one who wanted something else.
fn shape(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text in quotation marks",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn strings(items: &DeArray<'_>) -> Result<Vec<String>, Wrong> {
    let item = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::String(text) if !text.is_empty() => Ok(text.to_string()),
        DeValue::String(_) => Err((item.span(), "one of the texts is empty".to_owned())),
        other => Err((item.span(), format!("one of its items is {}", shape(other)))),
    };
    items.iter().map(item).collect()
}

/// Values of a shape that the table does not know.
fn tree(spanned: &Spanned<DeValue<'_>>) -> Result<Json, Wrong> {
    Ok(match spanned.get_ref() {
        DeValue::String(text) => Json::from(text.as_ref()),
        DeValue::Integer(n) => {
            let number = i64::from_str_radix(n.as_str(), n.radix());
            Json::from(number.map_err(|_| (spanned.span(), format!("{} is too large a number", n.as_str())))?)
        }
        DeValue::Float(x) => {
            let number: f64 = x.as_str().parse().map_err(|_| (spanned.span(), "it is not a number".to_owned()))?;
            Json::from(number)
        }
        DeValue::Boolean(on) => Json::from(*on),
        DeValue::Datetime(_) => return Err((spanned.span(), "dates are not understood here".into())),
        DeValue::Array(items) => Json::Array(items.iter().map(tree).collect::<Result<_, _>>()?),
        DeValue::Table(table) => {
            let field = |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
                Ok((key.get_ref().to_string(), tree(value)?))
            };
            Json::Object(table.iter().map(field).collect::<Result<Map<_, _>, Wrong>>()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said about a file, and where: `line:column what; help`.
    fn said(text: &str) -> Vec<String> {
        let source = SourceText::new("/etc/n.toml".into(), text.into());
        let (_, problems) = read(&source);
        problems.iter().map(|p| p.to_string().trim_start_matches("/etc/n.toml:").to_owned()).collect()
    }

    #[test]
    fn broken_files_are_explained() {
        let check = |text: &str, expected: &[&str]| {
            let said = said(text);
            assert_eq!(said.len(), expected.len(), "{text:?}: {said:#?}");
            for (said, expected) in said.iter().zip(expected) {
                assert!(said.starts_with(expected), "{text:?}: {said:?} instead of {expected:?}");
            }
        };
        check("", &[]);
        check("# only a comment", &[]);
        check("[quic]\naddress = \"127.0.0.1:1\"", &[]);
        check("quic.address = \"127.0.0.1:1\"", &[]);
        check(
            "[quic]\nadress = \"127.0.0.1:1\"",
            &["2:1: there is no setting `quic.adress`; did you mean `quic.address`?"],
        );
        check("[quick]\naddress = 1", &["1:2: there is no section `quick`; did you mean `[quic]`?"]);
        check("cores = 2", &["1:1: there is no setting `cores`; did you mean `node.cores`?"]);
        check(
            "inference-threads = 2",
            &["1:1: there is no setting `inference-threads`; did you mean `node.inference_threads`?"],
        );
        check("no-model = true", &["1:1: there is no setting `no-model`; did you mean `models.load`?"]);
        check("quic = \"127.0.0.1:1\"", &["1:1: `quic` is a section, not a setting; write [quic]"]);
        check("[zebra]\nstripes = 1", &["1:2: there is no section `zebra`; `thalweg admin config example`"]);
        check(
            "[node]\ncores = \"2\"",
            &["2:9: node.cores: it is a text in quotation marks; write a whole number from 1 to"],
        );
        check("[node]\ncores = 0", &["2:9: node.cores: 0 is too little; it is at least 1; write a whole number"]);
        check("[node]\ncores = -1", &["2:9: node.cores: \"-1\" is not a whole number"]);
        check("[node]\ncores = 1.5", &["2:9: node.cores: it is a number with a fraction"]);
        check("[trace]\ntimeout = 30", &["2:11: trace.timeout: 30 has no unit; write a time like"]);
        check(
            "[trace]\ntimeout = \"30\"",
            &["2:11: trace.timeout: \"30\" is not a time with a unit; write a time like"],
        );
        check(
            "[memory]\nbudget = \"1GB\"",
            &["2:10: memory.budget: \"1GB\" is not an amount of bytes; write an amount"],
        );
        check("[memory]\nbudget = 268435456", &[]);
        check(
            "[http]\nallow_plain = \"yes\"",
            &["2:15: http.allow_plain: it is a text in quotation marks; write true or false"],
        );
        check(
            "[http]\naddress = \"localhost\"",
            &["2:11: http.address: \"localhost\" is not an IP address with a port, or off"],
        );
        check("[models]\nload = \"a\"", &["2:8: models.load: it is a text in quotation marks; write a list"]);
        check("[models]\nload = [\"a\", 1]", &["2:14: models.load: one of its items is a whole number"]);
        check(
            "[durability]\ndefault = \"replicated\"",
            &["2:11: durability.default: \"replicated\" is not one of the words"],
        );
        check("[logging]\nlevel = \"loud\"", &["2:9: logging.level: \"loud\" is not a level"]);
        check("[quic]\naddress = \"x\"\nbackend = \"y\"\nzebra = 1", &["2:11:", "3:11:", "4:1:"]);
        check("[quic]\naddress = \"127.0.0.1:1\n", &["2:"]);
        check("[quic]\naddress = \"127.0.0.1:1\"\naddress = \"127.0.0.1:2\"", &["3:"]);
        check("[trace]\nheaders = { a = 1 }", &["2:17: trace.headers: a value is not a text; write a table"]);
        check("[trace]\nheaders = \"a\"", &["2:11: trace.headers: it is not a table"]);
    }

    #[test]
    fn values_have_places_and_paths_are_meant_from_the_file() {
        let text = "[quic]\nkey = \"k.pem\"\ncertificate = \"/abs/c.pem\"\n[access]\n[[access.issuers]]\nissuer = \"https://x\"\n";
        let source = SourceText::new("/etc/thalweg/n.toml".into(), text.into());
        let (entries, problems) = read(&source);
        assert!(problems.is_empty(), "{problems:?}");
        let shown: Vec<_> =
            entries.iter().map(|e| format!("{} = {} # {}", e.setting.name, e.value, e.origin)).collect();
        let expected = [
            "quic.key = \"/etc/thalweg/k.pem\" # /etc/thalweg/n.toml:2",
            "quic.certificate = \"/abs/c.pem\" # /etc/thalweg/n.toml:3",
            "access.issuers = [{ \"issuer\" = \"https://x\" }] # /etc/thalweg/n.toml:5",
        ];
        for line in expected {
            assert!(shown.iter().any(|shown| shown == line), "{line} is not in {shown:#?}");
        }
    }
}
