//! Settings written out: what holds, and an example of everything there is.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::effective::Effective;
use super::problem::Origin;
use super::table::{Preset, SECTIONS, SETTINGS, Setting};
use super::value::{Value, quoted};

/// What stands in place of a secret.
const HIDDEN: &str = "(secret)";

/// What holds, as a file that could be read again, with where each value comes from behind it.
pub(crate) fn toml(all: &Effective) -> String {
    let mut text = String::new();
    for (section, _) in SECTIONS {
        text.push_str(&header(section, text.is_empty()));
        for setting in SETTINGS.iter().filter(|setting| setting.section() == *section) {
            let given = all.get(setting.name);
            let _ = match (&given.value, setting.preset) {
                (Some(value), _) => {
                    // A comment ends where its line does, whatever a path is called.
                    let origin = quoted(&given.origin.to_string());
                    writeln!(text, "{} = {}  # {}", setting.key(), shown(setting, value), origin.trim_matches('"'))
                }
                (None, Preset::Unset { then, .. }) => writeln!(text, "# {} is not set: {then}", setting.key()),
                (None, Preset::Is(_)) => Ok(()),
            };
        }
    }
    text
}

/// The line above the settings of a section.
fn header(section: &str, first: bool) -> String {
    match section {
        "" => String::new(),
        section => format!("{}[{section}]\n", if first { "" } else { "\n" }),
    }
}

/// What holds, for programs.
pub(crate) fn json(all: &Effective) -> Json {
    let setting = |setting: &Setting| {
        let given = all.get(setting.name);
        let value = given.value.as_ref().map(|value| hidden(setting, value).json());
        let origin = match &given.origin {
            Origin::Flag(flag) => json!({ "flag": flag }),
            Origin::Variable(name) => json!({ "environment": name }),
            Origin::File { path, line, .. } => json!({ "file": path.to_string_lossy(), "line": line }),
            Origin::Default => json!("default"),
        };
        (setting.name.to_owned(), json!({ "value": value, "origin": origin, "reload": setting.reload }))
    };
    Json::Object(SETTINGS.iter().map(setting).collect())
}

/// The same of a node that runs, as its answer has it, written as a file.
pub(crate) fn toml_of_json(running: &Map<String, Json>) -> String {
    let mut text = String::new();
    for (section, _) in SECTIONS {
        text.push_str(&header(section, text.is_empty()));
        let of_section = running.iter().filter_map(|(name, given)| {
            let (of, key) = name.rsplit_once('.').unwrap_or(("", name));
            (of == *section).then_some((key, given))
        });
        for (key, given) in of_section {
            let origin = match &given["origin"] {
                Json::String(text) => text.clone(),
                origin => match (&origin["flag"], &origin["environment"], &origin["file"]) {
                    (Json::String(flag), ..) => format!("flag {flag}"),
                    (_, Json::String(name), _) => format!("environment {name}"),
                    (.., Json::String(path)) => format!("{path}:{}", origin["line"]),
                    _ => "unknown".into(),
                },
            };
            let origin = quoted(&origin);
            let _ = match &given["value"] {
                Json::Null => writeln!(text, "# {key} is not set"),
                value => writeln!(text, "{key} = {}  # {}", Value::Tree(value.clone()), origin.trim_matches('"')),
            };
        }
    }
    text
}

fn shown(setting: &Setting, value: &Value) -> String {
    hidden(setting, value).to_string()
}

/// The value without what must not be seen.
fn hidden(setting: &Setting, value: &Value) -> Value {
    match value {
        Value::Tree(Json::Object(fields)) if setting.is_secret() => {
            Value::Tree(fields.keys().map(|name| (name.clone(), Json::from(HIDDEN))).collect::<Map<_, _>>().into())
        }
        // An address may carry a password of its own.
        Value::Text(text) => Value::Text(without_password(text)),
        Value::Tree(tree) => Value::Tree(without_passwords(tree)),
        other => other.clone(),
    }
}

/// Tables without the passwords of addresses in them.
fn without_passwords(tree: &Json) -> Json {
    match tree {
        Json::String(text) => Json::from(without_password(text)),
        Json::Array(items) => items.iter().map(without_passwords).collect(),
        Json::Object(fields) => fields.iter().map(|(name, field)| (name.clone(), without_passwords(field))).collect(),
        other => other.clone(),
    }
}

/// A URL without what stands before its `@`.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((before, _)) => format!("{scheme}://{HIDDEN}{}", &rest[before.len()..]),
        None => text.to_owned(),
    }
}

/// A file with every setting there is, each with its default, as comments: as it stands it says nothing.
pub(crate) fn example() -> String {
    let mut text = String::from(HEAD);
    for (section, about) in SECTIONS {
        let _ = write!(text, "\n# {about}\n{}", header(section, true));
        for setting in SETTINGS.iter().filter(|setting| setting.section() == *section) {
            let _ = writeln!(text, "\n# {}", setting.about);
            let mut notes = Vec::new();
            if let Preset::Unset { then, .. } = setting.preset {
                notes.push(format!("If not set: {then}."));
            }
            notes.push(if setting.reload { "Can be reloaded.".into() } else { "Needs a restart.".into() });
            notes.extend(setting.flag.map(|flag| format!("Flag {flag}.")));
            let _ = writeln!(text, "# {}", notes.join(" "));
            let value = match setting.preset {
                Preset::Is(_) => Effective::default_of(setting).map(|value| value.to_string()).unwrap_or_default(),
                Preset::Unset { example, .. } => example.to_owned(),
            };
            let _ = writeln!(text, "#{} = {value}", setting.key());
        }
    }
    text
}

const HEAD: &str = "\
# Settings of a Thalweg node, each with its default. Take away the # before the ones you want to change.
#
# Read from --config FILE, else from thalweg.toml in the data directory, else from /etc/thalweg/thalweg.toml.
# Flags of `thalweg serve` go before environment variables, those before this file. The variable of quic.address is
# THALWEG_QUIC_ADDRESS, and so on. Relative paths are meant from where this file is.
#
#   thalweg admin config check FILE     says what is wrong with it
#   thalweg admin config show           what holds, and who says so
#   thalweg admin reload                takes in what can be changed while the node runs (as SIGHUP does)
";

#[cfg(test)]
mod tests {
    use super::super::effective::merge;
    use super::super::file::read;
    use super::super::problem::SourceText;
    use super::*;

    fn effective(text: &str) -> Effective {
        let (entries, mut problems) = read(&SourceText::new("/n.toml".into(), text.into()));
        let effective = merge(&[], &[], entries, &mut problems);
        assert!(problems.is_empty(), "{text}\n{problems:#?}");
        effective
    }

    #[test]
    fn the_example_is_read_back() {
        let example = example();
        assert_eq!(effective(&example), effective(""), "as it stands, it says nothing");
        // Every line that begins with # and no blank is a setting.
        let all: String = example
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => format!("{setting}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let read = effective(&all);
        for setting in SETTINGS.iter() {
            let given = read.get(setting.name);
            assert!(matches!(given.origin, Origin::File { .. }), "{} is not in the example", setting.name);
            if let Preset::Is(_) = setting.preset {
                assert_eq!(given.value, effective("").get(setting.name).value, "{}", setting.name);
            }
        }
        assert!(example.lines().all(|line| line.len() <= 160), "lines that a terminal can show");
    }

    #[test]
    fn what_holds_is_shown_without_secrets_and_read_back() {
        let text = "[trace]\nheaders = { authorization = \"Bearer hunter2\" }\nendpoint = \"https://u:hunter2@h/x\"\n\
                    [node]\ncores = 2\n[models]\nload = [\"a\", \"b\\n\"]";
        let given = effective(text);
        let shown = toml(&given);
        for line in [
            "cores = 2  # /n.toml:5",
            "address = \"127.0.0.1:4433\"  # default",
            "load = [\"a\", \"b\\n\"]  # /n.toml:7",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
        }
        assert!(!shown.contains("hunter2") && !json(&given).to_string().contains("hunter2"), "{shown}");
        let again = effective(&shown);
        for setting in SETTINGS.iter().filter(|setting| !setting.name.starts_with("trace.")) {
            assert_eq!(again.get(setting.name).value, given.get(setting.name).value, "{}", setting.name);
        }
        assert_eq!(
            json(&given)["node.cores"],
            json!({ "value": 2, "origin": { "file": "/n.toml", "line": 5 }, "reload": false })
        );
        let running = json(&given);
        let of_json = toml_of_json(running.as_object().expect("an object"));
        assert_eq!(effective(&of_json).get("models.load").value, given.get("models.load").value, "{of_json}");
        assert!(of_json.contains("cores = 2  # /n.toml:5"), "{of_json}");
    }
}
