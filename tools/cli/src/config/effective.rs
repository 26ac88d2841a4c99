//! What holds in the end: flags before environment variables before the file before the defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::file::Entry;
use super::problem::{Origin, Problem};
use super::table::{Preset, SECTIONS, SETTINGS, Setting, nearest, setting};
use super::value::{Value, from_text, wanted};

/// What one setting is in the end, and who said so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Given {
    /// Nothing if nobody said anything and there is no default.
    pub(crate) value: Option<Value>,
    pub(crate) origin: Origin,
}

/// All settings, each with its origin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Effective {
    values: BTreeMap<&'static str, Given>,
}

/// What the command line says of one setting.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Override {
    pub(crate) setting: &'static str,
    pub(crate) flag: &'static str,
    pub(crate) value: FlagValue,
}

/// As it was given, or what it means.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FlagValue {
    Text(String),
    List(Vec<String>),
}

/// Lays everything that was said over the defaults.
pub(crate) fn merge(
    overrides: &[Override],
    environment: &[(OsString, OsString)],
    file: Vec<Entry>,
    problems: &mut Vec<Problem>,
) -> Effective {
    let mut values: BTreeMap<_, _> = SETTINGS.iter().map(|setting| (setting.name, preset(setting))).collect();
    for Entry { setting, value, origin } in file {
        values.insert(setting.name, Given { value: Some(value), origin });
    }
    for (setting, origin, text) in variables(environment, problems) {
        match from_text(setting.kind, &text) {
            Ok(value) => drop(values.insert(setting.name, Given { value: Some(value), origin })),
            Err(what) => {
                problems.push(Problem::error(origin, format!("{}: {what}", setting.name), wanted(setting.kind)));
            }
        }
    }
    for given in overrides {
        let setting = setting(given.setting).expect("options are named after settings of the table");
        let origin = Origin::Flag(given.flag);
        let value = match &given.value {
            FlagValue::Text(text) => from_text(setting.kind, text),
            FlagValue::List(items) => Ok(Value::List(items.clone())),
        };
        match value {
            Ok(value) => drop(values.insert(setting.name, Given { value: Some(value), origin })),
            Err(what) => problems.push(Problem::error(origin, what, wanted(setting.kind))),
        }
    }
    Effective { values }
}

fn preset(setting: &Setting) -> Given {
    let value = match setting.preset {
        Preset::Is(text) => Some(from_text(setting.kind, text).expect("defaults are valid, as a test shows")),
        Preset::Unset { .. } => None,
    };
    Given { value, origin: Origin::Default }
}

/// What the environment says. Its own name goes before one of former times.
fn variables(
    environment: &[(OsString, OsString)],
    problems: &mut Vec<Problem>,
) -> Vec<(&'static Setting, Origin, String)> {
    let mut found = Vec::new();
    let mut aliased = Vec::new();
    for (name, text) in environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with("THALWEG_")) else { continue };
        // An empty variable is one that is not set, as the shell's `VARIABLE= command` means it.
        if text.is_empty() {
            continue;
        }
        let own = SETTINGS.iter().find(|setting| setting.is_plain() && setting.variable() == name);
        let former = SETTINGS.iter().find(|setting| setting.alias == Some(name));
        let Some(setting) = own.or(former) else {
            problems.extend(unknown_variable(name));
            continue;
        };
        let origin = Origin::Variable(name.to_owned());
        match text.to_str() {
            Some(text) if own.is_some() => found.push((setting, origin, text.to_owned())),
            Some(text) => aliased.push((setting, origin, text.to_owned())),
            None => problems.push(Problem::error(origin, format!("{}: it is not UTF-8", setting.name), "")),
        }
    }
    aliased.retain(|(setting, ..)| found.iter().all(|(other, ..)| other.name != setting.name));
    aliased.into_iter().chain(found).collect()
}

/// Says so if a variable looks like a setting and is none. Others of our prefix belong to other commands.
fn unknown_variable(name: &str) -> Option<Problem> {
    let rest = name.strip_prefix("THALWEG_")?.to_ascii_lowercase();
    let section = SECTIONS
        .iter()
        .find(|(section, _)| !section.is_empty() && rest.starts_with(&format!("{}_", section.replace('.', "_"))))?;
    let names: Vec<_> =
        SETTINGS.iter().filter(|s| s.is_plain()).map(|s| (s.variable().to_ascii_lowercase(), s)).collect();
    let near = nearest(&format!("thalweg_{rest}"), names.iter().map(|(name, _)| name.as_str()));
    let help = match near {
        Some(near) => format!("did you mean {}?", near.to_ascii_uppercase()),
        None => format!("`thalweg admin config example` shows what there is in [{}]", section.0),
    };
    Some(Problem::warning(Origin::Variable(name.to_owned()), "there is no such setting", help))
}

impl Effective {
    /// One setting, by name.
    pub(crate) fn get(&self, name: &str) -> &Given {
        &self.values[name]
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.get(name).value.as_ref()
    }

    /// The default of a setting.
    pub(crate) fn default_of(setting: &Setting) -> Option<Value> {
        preset(setting).value
    }

    /// Takes over what `newer` says of one setting.
    pub(crate) fn adopt(&mut self, name: &'static str, newer: &Self) {
        self.values.insert(name, newer.get(name).clone());
    }
}

/// Values by type. A setting of another kind is a defect, and a test builds everything of the defaults.
macro_rules! typed {
    ($($(#[$doc:meta])* $name:ident: $variant:ident -> $type:ty;)*) => {
        impl Effective {
            $($(#[$doc])* pub(crate) fn $name(&self, name: &str) -> Option<$type> {
                match self.value(name)? {
                    Value::$variant(value) => Some(value.clone()),
                    other => unreachable!("{name} is {other:?}"),
                }
            })*
        }
    };
}

typed! {
    /// A switch.
    switch: Switch -> bool;
    /// A number.
    count: Count -> u64;
    /// A number with a fraction.
    ratio: Ratio -> f64;
    /// Bytes.
    bytes: Bytes -> u64;
    /// A time.
    time: Time -> Duration;
    /// A path.
    path: Path -> PathBuf;
    /// A text, a word or a level.
    text: Text -> String;
    /// Texts.
    list: List -> Vec<String>;
    /// Tables.
    tree: Tree -> serde_json::Value;
}

impl Effective {
    /// An address; nothing if it is off.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        match self.value(name)? {
            Value::Address(address) => Some(*address),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::read;
    use super::super::problem::SourceText;
    use super::*;

    #[test]
    fn who_goes_before_whom() {
        let check = |flag: Option<&str>, variables: &[(&str, &str)], file: &str, name: &str, expected: &str| {
            let (entries, mut problems) = read(&SourceText::new("/n.toml".into(), file.into()));
            let variables: Vec<_> = variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect();
            let overrides: Vec<_> = flag
                .map(|text| Override { setting: "quic.address", flag: "--quic", value: FlagValue::Text(text.into()) })
                .into_iter()
                .collect();
            let effective = merge(&overrides, &variables, entries, &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
            let given = effective.get(name);
            let value = given.value.as_ref().map_or("unset".to_owned(), Value::plain);
            assert_eq!(format!("{value} # {}", given.origin), expected, "{name} of {file:?}");
        };
        let file = "[quic]\naddress = \"127.0.0.1:1\"\n[logging]\nlevel = \"warn\"";
        let variable = &[("THALWEG_QUIC_ADDRESS", "127.0.0.1:2"), ("PATH", "/"), ("THALWEG_SERVER", "x")][..];
        check(None, &[], "", "quic.address", "127.0.0.1:4433 # default");
        check(None, &[], file, "quic.address", "127.0.0.1:1 # /n.toml:2");
        check(None, variable, file, "quic.address", "127.0.0.1:2 # environment THALWEG_QUIC_ADDRESS");
        check(Some("127.0.0.1:3"), variable, file, "quic.address", "127.0.0.1:3 # flag --quic");
        check(None, &[("THALWEG_QUIC_ADDRESS", "")], file, "quic.address", "127.0.0.1:1 # /n.toml:2");
        check(None, &[("THALWEG_LOG", "error")], file, "logging.level", "error # environment THALWEG_LOG");
        let both = &[("THALWEG_LOGGING_LEVEL", "debug"), ("THALWEG_LOG", "error")];
        check(None, both, file, "logging.level", "debug # environment THALWEG_LOGGING_LEVEL");
        check(None, &[("THALWEG_DATA", "/d")], "", "node.data", "/d # environment THALWEG_DATA");
        check(None, &[("THALWEG_MODELS_LOAD", "a, b")], "", "models.load", "a,b # environment THALWEG_MODELS_LOAD");
        check(None, &[], "", "node.cores", "unset # default");
    }

    #[test]
    fn the_environment_and_the_flags_are_checked() {
        let check = |variables: &[(&str, &str)], cores: Option<&str>, expected: &[&str]| {
            let variables: Vec<_> = variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect();
            let overrides: Vec<_> = cores
                .map(|text| Override { setting: "node.cores", flag: "--cores", value: FlagValue::Text(text.into()) })
                .into_iter()
                .collect();
            let mut problems = Vec::new();
            merge(&overrides, &variables, Vec::new(), &mut problems);
            let said: Vec<_> = problems.iter().map(Problem::to_string).collect();
            assert_eq!(said.len(), expected.len(), "{said:?}");
            said.iter().zip(expected).for_each(|(said, expected)| assert!(said.starts_with(expected), "{said}"));
        };
        check(
            &[("THALWEG_QUIC_ADDRESS", "x")],
            None,
            &["environment THALWEG_QUIC_ADDRESS: quic.address: \"x\" is not"],
        );
        let near = "environment THALWEG_QUIC_ADRESS: there is no such setting; did you mean THALWEG_QUIC_ADDRESS?";
        check(&[("THALWEG_QUIC_ADRESS", "x")], None, &[near]);
        check(&[("THALWEG_ISA", "avx2"), ("THALWEG_TOKEN", "x"), ("THALWEG_MODELS", "/m")], None, &[]);
        check(&[], Some("0"), &["flag --cores: 0 is too little; it is at least 1; write a whole number"]);
    }
}
