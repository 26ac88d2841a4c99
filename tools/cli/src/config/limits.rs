//! What sessions, users and tenants may do and have, from settings.

use serde_json::{Map, Value as Json};
use thalweg_client::Name;
use thalweg_node::config::{Allowance, Limits, Rate, TenantLimits};

use super::effective::Effective;
use super::problem::{Origin, Problem};
use super::table::{SETTINGS, nearest, setting};
use super::value::{Value, from_text, in_range, wanted};

/// Whose allowance.
const SCOPES: [&str; 3] = ["session", "user", "tenant"];

/// The limits of the node.
pub(super) fn limits(all: &Effective, problems: &mut Vec<Problem>) -> Limits {
    let [session, user, tenant] = SCOPES.map(|scope| {
        let section = format!("limits.{scope}");
        let number = |key: &str| {
            let name = format!("{section}.{key}");
            setting(&name).and_then(|_| match all.get(&name).value {
                Some(Value::Count(n) | Value::Bytes(n)) => Some(n),
                _ => None,
            })
        };
        let (allowance, alone) = allowance(number);
        for burst in alone {
            let name = format!("{section}.{burst}_burst");
            problems.push(no_rate(all.get(&name).origin.clone(), &name, &format!("{section}.{burst}_per_second")));
        }
        allowance
    });
    let default = TenantLimits { session, user, tenant };
    let mut limits = Limits { default, ..Limits::default() };
    let origin = &all.get("limits.tenants").origin;
    match all.tree("limits.tenants") {
        None => {}
        Some(Json::Object(tenants)) => {
            for (name, scopes) in &tenants {
                if let Some((name, own)) = tenant_limits(name, scopes, default, origin, problems) {
                    limits.tenants.insert(name, own);
                }
            }
        }
        Some(_) => {
            let help = "write tables like [limits.tenants.acme.user]";
            problems.push(Problem::error(origin.clone(), "limits.tenants: it is a list", help));
        }
    }
    limits
}

fn no_rate(origin: Origin, burst: &str, rate: &str) -> Problem {
    Problem::error(origin, format!("{burst} is set, and {rate} is not"), "a burst is of a rate: set both, or neither")
}

/// An allowance of numbers by key. Gives also the bursts that stand without their rates.
fn allowance(number: impl Fn(&str) -> Option<u64>) -> (Allowance, Vec<&'static str>) {
    let mut alone = Vec::new();
    let mut rate = |what: &'static str| {
        let burst = number(&format!("{what}_burst"));
        match number(&format!("{what}_per_second")) {
            // Without a burst, what a second allows may come at once.
            Some(per_second) => Some(Rate { per_second, burst: burst.unwrap_or(per_second) }),
            None => {
                alone.extend(burst.map(|_| what));
                None
            }
        }
    };
    let (messages, bytes) = (rate("messages"), rate("bytes"));
    let small = |key: &str| number(key).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let allowance = Allowance {
        messages,
        bytes,
        tokens_per_minute: number("tokens_per_minute"),
        connections: small("connections"),
        channels: small("channels"),
    };
    (allowance, alone)
}

/// The limits of one tenant: what its tables do not say is as for all.
fn tenant_limits(
    name: &str,
    scopes: &Json,
    default: TenantLimits,
    origin: &Origin,
    problems: &mut Vec<Problem>,
) -> Option<(Name, TenantLimits)> {
    let at = format!("limits.tenants.{name}");
    let mut error = |what: String, help: String| problems.push(Problem::error(origin.clone(), what, help));
    let tenant = match Name::new(name) {
        Ok(tenant) => tenant,
        Err(invalid) => {
            error(format!("{at}: {name:?} {invalid}"), "write the name of a tenant".into());
            return None;
        }
    };
    let Json::Object(scopes) = scopes else {
        error(format!("{at}: it is not a table"), format!("write tables like [{at}.user]"));
        return None;
    };
    let mut own = default;
    for (scope, fields) in scopes {
        let place = match scope.as_str() {
            "session" => &mut own.session,
            "user" => &mut own.user,
            "tenant" => &mut own.tenant,
            other => {
                let near = nearest(other, SCOPES.into_iter()).map(|near| format!("did you mean `{near}`?"));
                error(format!("{at}: there is no `{other}`"), near.unwrap_or("write session, user or tenant".into()));
                continue;
            }
        };
        let Json::Object(fields) = fields else {
            error(format!("{at}.{scope}: it is not a table"), format!("write [{at}.{scope}]"));
            continue;
        };
        let numbers = numbers(&at, scope, fields, &mut error);
        let (allowance, alone) = allowance(|key| numbers.get(key).and_then(Json::as_u64));
        for burst in alone {
            let (burst, rate) = (format!("{at}.{scope}.{burst}_burst"), format!("{at}.{scope}.{burst}_per_second"));
            error(format!("{burst} is set, and {rate} is not"), "a burst is of a rate: set both, or neither".into());
        }
        *place = or(allowance, *place);
    }
    Some((tenant, own))
}

/// What is set of one, and of the other what is not.
fn or(own: Allowance, default: Allowance) -> Allowance {
    Allowance {
        messages: own.messages.or(default.messages),
        bytes: own.bytes.or(default.bytes),
        tokens_per_minute: own.tokens_per_minute.or(default.tokens_per_minute),
        connections: own.connections.or(default.connections),
        channels: own.channels.or(default.channels),
    }
}

/// The numbers of one table, checked as those for all are.
fn numbers(
    at: &str,
    scope: &str,
    fields: &Map<String, Json>,
    error: &mut impl FnMut(String, String),
) -> Map<String, Json> {
    let section = format!("limits.{scope}");
    let mut numbers = Map::new();
    for (key, given) in fields {
        let Some(setting) = setting(&format!("{section}.{key}")) else {
            let known = SETTINGS.iter().filter(|setting| setting.section() == section).map(|setting| setting.key());
            let near = nearest(key, known.clone()).map(|near| format!("did you mean `{near}`?"));
            let all = || format!("there are {}", known.collect::<Vec<_>>().join(", "));
            error(format!("{at}.{scope}: there is no `{key}`"), near.unwrap_or_else(all));
            continue;
        };
        let value = match given {
            Json::String(text) => from_text(setting.kind, text),
            Json::Number(number) => from_text(setting.kind, &number.to_string()),
            _ => Err("it is not a number".into()),
        };
        match value.and_then(|value| in_range(setting.kind, value)) {
            Ok(Value::Count(n) | Value::Bytes(n)) => drop(numbers.insert(key.clone(), n.into())),
            Ok(_) => unreachable!("limits are numbers"),
            Err(what) => error(format!("{at}.{scope}.{key}: {what}"), wanted(setting.kind)),
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::super::effective::merge;
    use super::super::file::read;
    use super::super::problem::SourceText;
    use super::*;

    fn of(text: &str) -> (Limits, Vec<String>) {
        let (entries, mut problems) = read(&SourceText::new("/n.toml".into(), text.into()));
        let effective = merge(&[], &[], entries, &mut problems);
        let limits = limits(&effective, &mut problems);
        (limits, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn limits_are_read() {
        let (limits, problems) = of("[limits.user]\nmessages_per_second = 10\nmessages_burst = 20\nconnections = 3\n\
                                     [limits.session]\nbytes_per_second = \"64KiB\"\n\
                                     [limits.tenants.acme.user]\nmessages_per_second = 100\n\
                                     [limits.tenants.acme.tenant]\nbytes_per_second = \"1MiB\"\nbytes_burst = 4194304");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(limits.default.user.messages, Some(Rate { per_second: 10, burst: 20 }));
        assert_eq!(limits.default.session.bytes, Some(Rate { per_second: 65_536, burst: 65_536 }));
        let acme = limits.of(&Name::new("acme").expect("valid"));
        assert_eq!(acme.user.messages, Some(Rate { per_second: 100, burst: 100 }));
        assert_eq!((acme.user.connections, acme.session), (Some(3), limits.default.session), "the rest is as for all");
        assert_eq!(acme.tenant.bytes, Some(Rate { per_second: 1 << 20, burst: 4 << 20 }));
        assert_eq!(of("").0, Limits::default());
    }

    #[test]
    fn wrong_limits_are_explained() {
        let check = |text: &str, expected: &str| {
            let (_, problems) = of(text);
            assert!(problems.len() == 1 && problems[0].contains(expected), "{text}: {problems:?}");
        };
        check("[limits.user]\nmessages_burst = 20", "/n.toml:2:18: limits.user.messages_burst is set, and");
        check("[limits.user]\nmessages_per_second = 0", "at least 1");
        check("[limits.user]\nmesages_per_second = 1", "did you mean `limits.user.messages_per_second`?");
        check("[limits.tenants.acme.usr]\nconnections = 1", "there is no `usr`; did you mean `user`?");
        check("[limits.tenants.acme.user]\nconections = 1", "there is no `conections`; did you mean `connections`?");
        check("[limits.tenants.acme.user]\nbytes_per_second = \"1kb\"", "not an amount of bytes");
        check("[limits.tenants.acme.user]\nbytes_burst = 1024", "acme.user.bytes_burst is set, and");
        check("[limits.tenants.\"a b\".user]\nconnections = 1", "\"a b\"");
        check("[limits.tenants]\nacme = 1", "limits.tenants.acme: it is not a table");
    }
}
