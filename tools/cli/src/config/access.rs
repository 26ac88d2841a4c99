//! Who may come in, and where traces go: the sections whose structures are the node's own.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use thalweg_node::config::{AccessConfig, IssuerConfig, TraceConfig, TraceSecret};

use super::effective::Effective;
use super::problem::Problem;
use super::table::nearest;

/// The section `access`.
pub(super) fn access(all: &Effective, problems: &mut Vec<Problem>) -> AccessConfig {
    let defaults = AccessConfig::default();
    let config = AccessConfig {
        login: all.switch("access.login").unwrap_or(defaults.login),
        token_ttl_s: all.time("access.token_ttl").map_or(defaults.token_ttl_s, |ttl| ttl.as_secs()),
        audit_file_bytes: all.bytes("access.audit_file_size").unwrap_or(defaults.audit_file_bytes),
        audit_files: all.count("access.audit_files").map_or(defaults.audit_files, |count| count as usize),
        issuers: issuers(all, problems),
    };
    if let Err(error) = config.check() {
        // The table has checked all but the issuers.
        let origin = all.get("access.issuers").origin.clone();
        let text = error.to_string();
        let (what, help) = text.split_once("; ").unwrap_or((&text, ""));
        problems.push(Problem::error(origin, what, help));
    }
    config
}

fn issuers(all: &Effective, problems: &mut Vec<Problem>) -> Vec<IssuerConfig> {
    let Some(tree) = all.tree("access.issuers") else { return Vec::new() };
    let origin = &all.get("access.issuers").origin;
    let Json::Array(items) = tree else {
        let help = "write [[access.issuers]] above each";
        problems.push(Problem::error(origin.clone(), "access.issuers: it is a single table, not a list of them", help));
        return Vec::new();
    };
    let known = serde_json::to_value(IssuerConfig::default()).expect("it can be written");
    let known: Vec<_> = known.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default();
    let mut issuers = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        let strange = item.as_object().and_then(|fields| fields.keys().find(|key| !known.contains(key)));
        if let Some(key) = strange {
            let help = match nearest(key, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", known.join(", ")),
            };
            problems.push(Problem::error(origin.clone(), format!("access.issuers[{at}]: there is no `{key}`"), help));
            continue;
        }
        match serde_json::from_value(item) {
            Ok(issuer) => issuers.push(issuer),
            Err(error) => problems.push(Problem::error(origin.clone(), format!("access.issuers[{at}]: {error}"), "")),
        }
    }
    issuers
}

/// The section `trace`.
pub(super) fn trace(all: &Effective, problems: &mut Vec<Problem>) -> TraceConfig {
    let defaults = TraceConfig::default();
    let headers = match all.tree("trace.headers") {
        Some(Json::Object(fields)) => fields
            .into_iter()
            .map(|(name, value)| (name, TraceSecret::new(value.as_str().unwrap_or_default())))
            .collect::<BTreeMap<_, _>>(),
        _ => BTreeMap::new(),
    };
    let config = TraceConfig {
        endpoint: all.text("trace.endpoint"),
        ratio: all.ratio("trace.ratio").unwrap_or(defaults.ratio),
        service_name: all.text("trace.service_name").unwrap_or(defaults.service_name),
        timeout: all.time("trace.timeout").unwrap_or(defaults.timeout),
        headers,
    };
    if let Err(error) = config.check() {
        let text = error.to_string();
        let (what, help) = text.split_once("; ").unwrap_or((&text, ""));
        let about = if text.starts_with("trace.headers") { "trace.headers" } else { "trace.endpoint" };
        problems.push(Problem::error(all.get(about).origin.clone(), what, help));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::super::effective::merge;
    use super::super::file::read;
    use super::super::problem::SourceText;
    use super::*;

    #[test]
    fn access_and_traces_are_checked() {
        let check = |text: &str, expected: &str| {
            let (entries, mut problems) = read(&SourceText::new("/n.toml".into(), text.into()));
            let effective = merge(&[], &[], entries, &mut problems);
            let (access, trace) = (access(&effective, &mut problems), trace(&effective, &mut problems));
            let said = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{text}: {said}");
            assert!(!said.contains("hunter2") && !format!("{access:?}{trace:?}").contains("hunter2"), "{text}");
        };
        let issuer =
            "[[access.issuers]]\nissuer = \"https://id.example.com\"\ntenant = \"acme\"\nallow = [\"read:*\"]\n";
        check("", "");
        check(&format!("{issuer}audience = \"thalweg\""), "");
        check(issuer, "/n.toml:1:1: access.issuers[0].audience: it is missing");
        check(
            &format!("{issuer}audiense = \"thalweg\""),
            "access.issuers[0]: there is no `audiense`; did you mean `audience`?",
        );
        check(&format!("{issuer}audience = 3"), "access.issuers[0]: invalid type");
        check("[access.issuers]\nissuer = \"x\"", "write [[access.issuers]]");
        check("[trace]\nendpoint = \"ftp://x\"", "/n.toml:2:12: trace.endpoint");
        check("[trace]\nendpoint = \"http://10.0.0.1:4318\"\nheaders = { authorization = \"hunter2\" }", "unencrypted");
        check("[trace]\nheaders = { \"a b\" = \"hunter2\" }", "/n.toml:2:11: trace.headers.a b");
        check("[trace]\nendpoint = \"http://127.0.0.1:4318\"\nheaders = { key = \"hunter2\" }", "");
    }

    #[test]
    fn defaults_are_those_of_the_node() {
        let effective = merge(&[], &[], Vec::new(), &mut Vec::new());
        assert_eq!(access(&effective, &mut Vec::new()), AccessConfig::default());
        assert_eq!(trace(&effective, &mut Vec::new()), TraceConfig::default());
    }
}
