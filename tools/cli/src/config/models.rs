//! What settings say of models one by one: tables `[model.NAME]`, some of which are models that another server runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value as Json};
use thalweg_client::Name;
use thalweg_node::config::{AUTO, ModelSettings, RemoteSettings};

use super::effective::Effective;
use super::problem::{Origin, Problem};
use super::table::{Kind, nearest};
use super::value::{Value, from_text, in_range, wanted};

/// What a table may say, as it would be written; the last ones only of a model that another server runs.
const FIELDS: [(&str, Kind); 8] = [
    ("class", Kind::Text { most: 128 }),
    ("cost", Kind::Count { least: 0, most: 1_000_000 }),
    ("fallback", Kind::Text { most: 128 }),
    ("url", Kind::Text { most: 2_048 }),
    ("remote_name", Kind::Text { most: 256 }),
    ("key_file", Kind::Path),
    ("timeout", Kind::Time { least: Duration::from_secs(1), most: Duration::from_secs(600) }),
    ("context_tokens", Kind::Count { least: 64, most: 16 << 20 }),
];
/// Where those begin that mean nothing without `url`.
const OF_REMOTE: usize = 4;

/// How long another server may take, if nobody says.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The context of a model that another server runs, if nobody says: what most have at least.
const CONTEXT_TOKENS: u32 = 32_768;

/// All tables, by name, and what a request means that names no model.
pub(super) fn models(all: &Effective, problems: &mut Vec<Problem>) -> (Vec<ModelSettings>, Option<Name>) {
    let origin = all.get("model").origin.clone();
    let mut settings = Vec::new();
    match all.tree("model") {
        None => {}
        Some(Json::Object(tables)) => {
            for (name, fields) in &tables {
                let mut said = Vec::new();
                settings.extend(model(name, fields, &origin, &mut said));
                problems.extend(
                    said.into_iter()
                        .map(|(what, help)| Problem::error(origin.clone(), format!("model.{name}: {what}"), help)),
                );
            }
        }
        Some(_) => {
            problems.push(Problem::error(origin.clone(), "model: it is a list", "write tables like [model.NAME]"))
        }
    }
    let loaded: Option<BTreeSet<String>> = all.list("models.load").map(|load| load.into_iter().collect());
    check_words(&settings, loaded.as_ref(), &origin, problems);
    (settings.clone(), default(all, &settings, loaded.as_ref(), problems))
}

/// What is wrong, and what to write instead.
type Wrong = (String, String);

fn model(name: &str, fields: &Json, origin: &Origin, said: &mut Vec<Wrong>) -> Option<ModelSettings> {
    let name = word(name, said)?;
    let Json::Object(fields) = fields else {
        said.push((
            "it is not a table".into(),
            format!("write [model.{name}], and below it class, cost, fallback, url…"),
        ));
        return None;
    };
    let before = said.len();
    for key in fields.keys().filter(|key| !FIELDS.iter().any(|(known, _)| known == key)) {
        let known = || FIELDS.iter().map(|(known, _)| *known);
        let near = nearest(key, known()).map(|near| format!("did you mean `{near}`?"));
        let help = near.unwrap_or_else(|| format!("there are {}", known().collect::<Vec<_>>().join(", ")));
        said.push((format!("there is no `{key}`"), help));
    }
    let [class, cost, fallback, url, remote_name, key_file, timeout, context_tokens] =
        FIELDS.map(|(key, kind)| field(fields, key, kind, said));
    let (class, fallback) = (class.and_then(|text| named(text, said)), fallback.and_then(|text| named(text, said)));
    let cost = if let Some(Value::Count(cost)) = cost { cost as u32 } else { 0 };
    let remote = match url {
        Some(Value::Text(url)) => {
            check_url(&url, key_file.is_some(), said);
            Some(RemoteSettings {
                url: url.trim_end_matches('/').to_owned(),
                remote_name: if let Some(Value::Text(text)) = remote_name { text } else { name.to_string() },
                key_file: if let Some(Value::Path(path)) = key_file { Some(from_here(path, origin)) } else { None },
                timeout: if let Some(Value::Time(time)) = timeout { time } else { TIMEOUT },
                context_tokens: if let Some(Value::Count(n)) = context_tokens { n as u32 } else { CONTEXT_TOKENS },
            })
        }
        _ => {
            let strange = FIELDS[OF_REMOTE..].iter().map(|(key, _)| *key).find(|key| fields.contains_key(*key));
            if let Some(key) = strange.filter(|_| said.len() == before) {
                let help = "add url = \"https://…/v1\" if another server runs it";
                said.push((format!("{key} is of models that another server runs"), help.into()));
            }
            None
        }
    };
    (said.len() == before).then_some(ModelSettings { name, class, cost, fallback, remote })
}

/// One field of a table.
fn field(fields: &Map<String, Json>, key: &str, kind: Kind, said: &mut Vec<Wrong>) -> Option<Value> {
    let value = match (kind, fields.get(key)?) {
        (Kind::Count { .. }, Json::Number(n)) => match n.as_u64() {
            Some(n) => in_range(kind, Value::Count(n)),
            None => Err(format!("{n} is not a whole number")),
        },
        (Kind::Text { .. } | Kind::Path | Kind::Time { .. }, Json::String(text)) => from_text(kind, text),
        (_, other) => Err(format!("{other} is something else")),
    };
    value.map_err(|what| said.push((format!("{key}: {what}"), wanted(kind)))).ok()
}

fn named(value: Value, said: &mut Vec<Wrong>) -> Option<Name> {
    if let Value::Text(text) = value { word(&text, said) } else { None }
}

/// The name of a model or class.
fn word(text: &str, said: &mut Vec<Wrong>) -> Option<Name> {
    match Name::new(text) {
        Ok(_) if text == AUTO => {
            let help = "take another word";
            said.push((format!("{AUTO} is what requests say that leave the choice to the node"), help.into()));
            None
        }
        Ok(name) => Some(name),
        Err(invalid) => {
            said.push((format!("{text:?} {invalid}"), "write the name of a model or class".into()));
            None
        }
    }
}

/// Paths in a file are meant from where the file is.
fn from_here(path: PathBuf, origin: &Origin) -> PathBuf {
    match origin {
        Origin::File { path: file, .. } if path.is_relative() => file.parent().unwrap_or(Path::new("")).join(path),
        _ => path,
    }
}

/// Checks where another server is. A key must not go over a network in the open.
fn check_url(url: &str, with_key: bool, said: &mut Vec<Wrong>) {
    let mut wrong = |what: &str, help: &str| said.push((format!("url: {what}"), help.to_owned()));
    let (rest, plain) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => return wrong("it is not an address", "write it like \"https://example.com/v1\""),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    if authority.contains('@') {
        return wrong("it holds a password", "put the key into a file of its own and name that as key_file");
    }
    if host.is_empty() || url.contains(['?', '#', ' ']) || url.chars().any(char::is_control) {
        return wrong("it is not an address up to /v1", "write it like \"https://example.com/v1\"");
    }
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if plain && with_key && !here {
        wrong("the key would be readable on the way", "use https://, or do without key_file");
    }
}

/// Checks that every word means one thing, and that nobody is to answer for a model whom there is not, or itself.
fn check_words(
    settings: &[ModelSettings],
    loaded: Option<&BTreeSet<String>>,
    origin: &Origin,
    problems: &mut Vec<Problem>,
) {
    let is_model = |word: &Name| {
        settings.iter().any(|other| other.name == *word) || loaded.is_some_and(|loaded| loaded.contains(word.as_str()))
    };
    for ModelSettings { name, class, fallback, remote, .. } in settings {
        let mut error = |what: String, help: &str| problems.push(Problem::error(origin.clone(), what, help));
        if let Some(class) = class.as_ref().filter(|class| is_model(class)) {
            error(format!("model.{name}: class: {class} is the name of a model"), "give the class another name");
        }
        if remote.is_some() && loaded.is_some_and(|loaded| loaded.contains(name.as_str())) {
            error(format!("model.{name}: models.load loads a model of that name"), "give this one another name");
        }
        let mut seen = BTreeSet::from([name]);
        let mut next = fallback.as_ref();
        while let Some(fallback) = next {
            if !seen.insert(fallback) {
                error(format!("model.{name}: its fallbacks go round in a circle"), "let the last have none");
                break;
            }
            next = settings.iter().find(|other| other.name == *fallback).and_then(|other| other.fallback.as_ref());
        }
        if let Some(fallback) = fallback.as_ref().filter(|fallback| loaded.is_some() && !is_model(fallback)) {
            let what = format!("model.{name}: fallback: there is no model {fallback} in models.load or [model.…]");
            problems.push(Problem::warning(origin.clone(), what, "it counts once somebody loads one of that name"));
        }
    }
}

/// What a request means that names no model.
fn default(
    all: &Effective,
    settings: &[ModelSettings],
    loaded: Option<&BTreeSet<String>>,
    problems: &mut Vec<Problem>,
) -> Option<Name> {
    let (text, origin) = (all.text("models.default")?, &all.get("models.default").origin);
    let name = match Name::new(&text) {
        Ok(name) => name,
        Err(invalid) => {
            let help = "write the name of a model or class, or \"auto\"";
            problems.push(Problem::error(origin.clone(), format!("models.default: {text:?} {invalid}"), help));
            return None;
        }
    };
    let known = text == AUTO
        || settings.iter().any(|model| model.name == name || model.class.as_ref() == Some(&name))
        || loaded.is_none_or(|loaded| loaded.contains(&text));
    if !known {
        let help = "the first model answers, until there is one";
        let what = format!("models.default: there is no model or class {name}");
        problems.push(Problem::warning(origin.clone(), what, help));
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::super::effective::merge;
    use super::super::file::read;
    use super::super::problem::SourceText;
    use super::*;

    fn said(text: &str) -> (Vec<ModelSettings>, Option<Name>, Vec<String>) {
        let (entries, mut problems) = read(&SourceText::new("/etc/t/n.toml".into(), text.into()));
        let effective = merge(&[], &[], entries, &mut problems);
        let (settings, default) = models(&effective, &mut problems);
        (settings, default, problems.iter().map(|p| p.to_string().replace("/etc/t/n.toml:", "")).collect())
    }

    #[test]
    fn models_are_described() {
        let text = "[models]\ndefault = \"auto\"\n[model.small]\nclass = \"fast\"\nfallback = \"far\"\n\
                    [model.far]\nclass = \"accurate\"\ncost = 5\nurl = \"https://example.com/v1/\"\nkey_file = \"far.key\"\n\
                    timeout = \"10s\"\n[model.bare]\nurl = \"http://[::1]:8000/v1\"";
        let (settings, default, problems) = said(text);
        assert_eq!((problems, default.expect("it is said").as_str()), (vec![], "auto"));
        let [bare, far, small] = &settings[..] else { panic!("{settings:?}") };
        let remote = far.remote.as_ref().expect("it is elsewhere");
        assert_eq!((remote.url.as_str(), remote.remote_name.as_str()), ("https://example.com/v1", "far"));
        assert_eq!(remote.key_file.as_deref(), Some(Path::new("/etc/t/far.key")));
        assert_eq!((remote.timeout, far.cost), (Duration::from_secs(10), 5));
        assert_eq!(bare.remote.as_ref().map(|r| (r.timeout, r.context_tokens)), Some((TIMEOUT, CONTEXT_TOKENS)));
        assert_eq!((small.remote.is_none(), small.fallback.as_ref().map(Name::as_str)), (true, Some("far")));
        assert_eq!(small.class.as_ref().map(Name::as_str), Some("fast"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |text: &str, expected: &str| {
            let (_, _, problems) = said(text);
            assert!(matches!(&problems[..], [said] if said.contains(expected)), "{text}: {problems:?}");
        };
        check("[model.a]\nclas = \"x\"", "model.a: there is no `clas`; did you mean `class`?");
        check("[model.a]\ncost = -1", "model.a: cost: -1 is not a whole number");
        check("[model.a]\ncost = \"1\"", "cost: \"1\" is something else; write a whole number from 0");
        check("[model.auto]\ncost = 1", "auto is what requests say");
        check("model = [1]", "model: it is a list; write tables like [model.NAME]");
        check("model.a = 1", "model.a: it is not a table; write [model.a]");
        check("[model.a]\nclass = \"b\"\n[model.b]", "model.a: class: b is the name of a model");
        check("[model.a]\nclass = \"c\"\n[models]\nload = [\"c\"]", "model.a: class: c is the name of a model");
        check("[model.a]\nfallback = \"a\"", "model.a: its fallbacks go round in a circle");
        check("[model.a]\nfallback = \"b\"\n[models]\nload = [\"a\"]", "there is no model b in models.load");
        check("[model.a]\ntimeout = \"5s\"", "timeout is of models that another server runs; add url");
        check("[model.a]\nurl = \"example.com/v1\"", "url: it is not an address");
        check("[model.a]\nurl = \"https://\"", "url: it is not an address up to /v1");
        check("[model.a]\nurl = \"https://u:p@h/v1\"", "url: it holds a password");
        check("[model.a]\nurl = \"http://h/v1\"\nkey_file = \"k\"", "url: the key would be readable on the way");
        check("[model.a]\nurl = \"https://h/v1\"\ntimeout = \"1h\"", "timeout: 1h is too much");
        check("[model.a]\nurl = \"https://h/v1\"\n[models]\nload = [\"a\"]", "models.load loads a model of that name");
        check("[models]\ndefault = \"b\"\nload = [\"a\"]", "models.default: there is no model or class b");
        let local = "[model.a]\nurl = \"http://127.0.0.1:1/v1\"\nkey_file = \"k\"";
        assert_eq!(said(local).2, Vec::<String>::new());
    }
}
