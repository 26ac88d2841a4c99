//! The second step: settings that were read become what the node takes; what does not go together is found.

use std::sync::Arc;

use thalweg_node::certificate::{Certificate, State};
use thalweg_node::config::{
    Backend, CertificateFiles, DeviceChoice, DeviceError, DiskShell, Durability, HttpConfig, LogBackend, NodeConfig,
    WebConfig,
};

use super::access::{access, trace};
use super::effective::Effective;
use super::limits::limits;
use super::models::models;
use super::problem::{Origin, Problem, Severity};
use crate::paths;

/// Settings that were checked against each other.
#[derive(Debug)]
pub(crate) struct Checked {
    /// What the node takes, but for its models.
    pub(crate) node: NodeConfig,
    /// The models that are wanted; without, all there are.
    pub(crate) models: Option<Vec<String>>,
    pub(crate) logging: LogSettings,
    /// What is strange but can be used.
    pub(crate) warnings: Vec<Problem>,
}

/// What is written to standard error, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub(crate) level: String,
    pub(crate) json: bool,
}

/// Checks what was read.
///
/// # Errors
/// All that does not go together.
pub(crate) fn check(all: &Effective) -> Result<Checked, Vec<Problem>> {
    let mut problems = Vec::new();
    let certificate = certificate(all, &mut problems);
    let http = http(all, &mut problems);
    let limits = Arc::new(limits(all, &mut problems));
    let access = access(all, &mut problems);
    let trace = trace(all, &mut problems);
    let (model_settings, model_default) = models(all, &mut problems);
    let shell = match all.text("log.disk_shell").as_deref() {
        Some("discard") => DiskShell::Discard,
        _ => DiskShell::Plain,
    };
    let log_backend = match all.text("log.backend").as_deref() {
        Some("io-uring") => LogBackend::IoUring,
        _ => LogBackend::Thread,
    };
    if (shell, log_backend) == (DiskShell::Discard, LogBackend::IoUring) {
        let what = "log.backend = \"io-uring\" writes around log.disk_shell = \"discard\"";
        problems.push(Problem::error(origin(all, "log.disk_shell"), what, "use log.backend = \"thread\""));
    }
    let device = device(all, &mut problems);
    let count = |name: &str| all.count(name).map(|count| count as usize);
    let defaults = NodeConfig::default();
    let node = NodeConfig {
        data: all.path("node.data").unwrap_or_else(|| paths::data_directory(None)),
        quic: all.address("quic.address").unwrap_or(defaults.quic),
        http,
        cores: count("node.cores"),
        inference_threads: count("node.inference_threads"),
        kv_bytes: all.bytes("memory.kv"),
        device,
        spin_us: all.time("node.spin").map(|spin| spin.as_micros() as u64),
        partitions: all.count("node.partitions").map_or(defaults.partitions, |count| count as u16),
        backend: match all.text("quic.backend").as_deref() {
            Some("io-uring") => Backend::IoUring,
            _ => Backend::QuinnUdp,
        },
        socket_buffer_bytes: all.bytes("quic.socket_buffer").map_or(defaults.socket_buffer_bytes, |b| b as usize),
        durability: match all.text("durability.default").as_deref() {
            Some("memory") => Durability::Memory,
            _ => Durability::Disk,
        },
        log_backend,
        log_file_bytes: all.bytes("log.file_size").unwrap_or(defaults.log_file_bytes),
        sync_delay: all.time("log.sync_delay").unwrap_or(defaults.sync_delay),
        disk_shell: shell,
        memory_budget_bytes: all.bytes("memory.budget"),
        certificate,
        limits,
        access,
        trace,
        model_settings,
        model_default,
        ..defaults
    };
    let logging = LogSettings {
        level: all.text("logging.level").unwrap_or_default(),
        json: all.text("logging.format").as_deref() == Some("json"),
    };
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(problems);
    }
    Ok(Checked { node, models: all.list("models.load"), logging, warnings: problems })
}

/// Where models are computed. Whether it is there is seen when the node starts: settings are checked on other machines too.
fn device(all: &Effective, problems: &mut Vec<Problem>) -> DeviceChoice {
    let text = all.text("inference.device").unwrap_or_default();
    text.parse().unwrap_or_else(|error: DeviceError| {
        let text = error.to_string();
        let (what, help) = text.split_once("; ").unwrap_or((&text, ""));
        problems.push(Problem::error(origin(all, "inference.device"), what, help));
        DeviceChoice::default()
    })
}

fn origin(all: &Effective, name: &str) -> Origin {
    all.get(name).origin.clone()
}

/// The certificate of one's own. It is read, since a certificate that does not match its key is best found here.
fn certificate(all: &Effective, problems: &mut Vec<Problem>) -> Option<CertificateFiles> {
    let files = match (all.path("quic.certificate"), all.path("quic.key")) {
        (None, None) => return None,
        (Some(certificate), Some(key)) => CertificateFiles { certificate, key },
        (given, _) => {
            let (there, missing) = match given {
                Some(_) => ("quic.certificate", "quic.key"),
                None => ("quic.key", "quic.certificate"),
            };
            let what = format!("{there} is set, and {missing} is not");
            problems.push(Problem::error(origin(all, there), what, "set both, or neither for one that the node makes"));
            return None;
        }
    };
    match Certificate::read(&files) {
        Err(error) => {
            let text = error.to_string();
            let (what, help) = text.split_once("; ").unwrap_or((&text, ""));
            problems.push(Problem::error(origin(all, "quic.certificate"), what, help));
        }
        Ok(certificate) => match certificate.validity.now() {
            State::Valid(_) => {}
            state => {
                let what = format!("the certificate in {} is {state}", files.certificate.display());
                let help = "clients that check dates will refuse it; get a new one, or set the clock";
                problems.push(Problem::warning(origin(all, "quic.certificate"), what, help));
            }
        },
    }
    Some(files)
}

/// Where HTTP is served. A node does without it if the port is taken and nobody asked for it.
fn http(all: &Effective, problems: &mut Vec<Problem>) -> Option<HttpConfig> {
    let addr = all.address("http.address")?;
    let allow_plain = all.switch("http.allow_plain") == Some(true);
    if !addr.ip().is_loopback() && !allow_plain {
        let what = format!("HTTP on {addr} would be plain, and can be reached from other machines");
        let help = "serve it on 127.0.0.1 behind a proxy that speaks TLS, or set http.allow_plain = true \
                    (--http-allow-plain)";
        problems.push(Problem::error(origin(all, "http.address"), what, help));
    }
    // Somebody who asked for an address wants to know if it is taken.
    let optional = origin(all, "http.address") == Origin::Default;
    Some(HttpConfig { web: WebConfig { addr, allow_plain, ..WebConfig::default() }, optional })
}

#[cfg(test)]
mod tests {
    use super::super::effective::merge;
    use super::super::file::read;
    use super::super::problem::SourceText;
    use super::*;

    fn checked(text: &str) -> Result<Checked, Vec<Problem>> {
        let (entries, mut problems) = read(&SourceText::new("/etc/n.toml".into(), text.into()));
        let effective = merge(&[], &[], entries, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        check(&effective)
    }

    #[test]
    fn what_does_not_go_together_is_found() {
        let check = |text: &str, expected: &[&str]| {
            let said: Vec<_> = match checked(text) {
                Ok(checked) => checked.warnings.iter().map(Problem::to_string).collect(),
                Err(problems) => problems.iter().map(Problem::to_string).collect(),
            };
            assert_eq!(said.len(), expected.len(), "{text}: {said:?}");
            said.iter().zip(expected).for_each(|(said, expected)| assert!(said.starts_with(expected), "{said}"));
        };
        check("", &[]);
        check("http.address = \"off\"", &[]);
        check("http.address = \"[::1]:1\"", &[]);
        check("http.address = \"0.0.0.0:1\"\nhttp.allow_plain = true", &[]);
        check("[http]\naddress = \"0.0.0.0:1\"", &["/etc/n.toml:2:11: HTTP on 0.0.0.0:1 would be plain"]);
        check("[quic]\nkey = \"k\"", &["/etc/n.toml:2:7: quic.key is set, and quic.certificate is not"]);
        check("[quic]\nkey = \"k\"\ncertificate = \"/none\"", &["/etc/n.toml:3:15: cannot read /none: No such file"]);
        check(
            "[log]\nbackend = \"io-uring\"\ndisk_shell = \"discard\"",
            &["/etc/n.toml:3:14: log.backend = \"io-uring\""],
        );
    }

    #[test]
    fn a_certificate_of_ones_own_is_looked_at() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, until: i32| {
            let key = rcgen::KeyPair::generate().expect("a key");
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let (pem, key_path) = (directory.path().join(name), directory.path().join(format!("{name}.key")));
            std::fs::write(&pem, params.self_signed(&key).expect("signed").pem()).expect("written");
            std::fs::write(&key_path, key.serialize_pem()).expect("written");
        };
        write("good", 2100);
        write("old", 2001);
        let check = |certificate: &str, key: &str, expected: &str| {
            let at = |name: &str| directory.path().join(name).display().to_string();
            let text = format!("[quic]\ncertificate = {:?}\nkey = {:?}", at(certificate), at(key));
            let said = match checked(&text) {
                Ok(checked) => checked.warnings.iter().map(Problem::to_string).collect::<String>(),
                Err(problems) => problems.iter().map(Problem::to_string).collect(),
            };
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        };
        check("good", "good.key", "");
        check("good", "old.key", "old.key is not the key of the first certificate in");
        check("old", "old.key", "is expired since");
    }

    #[test]
    fn defaults_are_those_of_the_node() {
        let (checked, defaults) = (checked("").expect("sound"), NodeConfig::default());
        let http = checked.node.http.clone().expect("HTTP is on by default");
        assert_eq!(http, HttpConfig { optional: true, ..HttpConfig::default() });
        let node = NodeConfig { data: defaults.data.clone(), http: None, ..checked.node };
        assert_eq!(format!("{node:?}"), format!("{defaults:?}"));
        assert_eq!(checked.models, None);
        assert_eq!(checked.logging, LogSettings { level: "info".into(), json: false });
    }
}
