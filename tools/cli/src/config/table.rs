//! The table of settings: everything that is known of each, in one place.
//!
//! What a configuration file may say, which environment variables there are, what `admin config example` prints and what
//! `admin config show` shows all come from here.

use std::sync::LazyLock;
use std::time::Duration;

use thalweg_protocol::limits::{CORES_MAX, LOG_FILE_BYTES};

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// true or false.
    Switch,
    /// A whole number.
    Count { least: u64, most: u64 },
    /// A number with a fraction.
    Ratio { least: f64, most: f64 },
    /// An amount of bytes, such as 64MiB.
    Bytes { least: u64, most: u64 },
    /// A time, such as 30s.
    Time { least: Duration, most: Duration },
    /// An IP address and a port.
    Address,
    /// The same, or `off`.
    AddressOrOff,
    /// A file or directory. A relative one in a file is meant from where that file is.
    Path,
    /// Any text of 1 to so many bytes.
    Text { most: usize },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// What `tracing` takes as a filter: a level, or levels by module.
    Level,
    /// Texts.
    List,
    /// A table of names with secrets, which are never shown.
    Secrets,
    /// Tables of a shape of their own, checked by whom they are for.
    Tables,
}

/// What holds if nobody says anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Preset {
    /// This value, as it would be written in a file without its quotation marks.
    Is(&'static str),
    /// None: what happens then, and a value that shows how one would be written, as in a file.
    Unset { then: &'static str, example: &'static str },
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    /// Section and key.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) preset: Preset,
    /// Whether a change takes effect without a restart.
    pub(crate) reload: bool,
    /// The option of `thalweg serve` that says the same.
    pub(crate) flag: Option<&'static str>,
    /// An environment variable of another name than its own, from before there was this table.
    pub(crate) alias: Option<&'static str>,
    /// What it is, for those who read the example file.
    pub(crate) about: &'static str,
}

impl Setting {
    const fn new(name: &'static str, kind: Kind, preset: Preset, about: &'static str) -> Self {
        Self { name, kind, preset, reload: false, flag: None, alias: None, about }
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    const fn reloads(mut self) -> Self {
        self.reload = true;
        self
    }

    /// Everything before the last dot; nothing of a setting that stands above all sections.
    pub(crate) fn section(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// What stands after it.
    pub(crate) fn key(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, key)| key)
    }

    /// Its environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("THALWEG_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    /// Whether its values must not be shown.
    pub(crate) fn is_secret(&self) -> bool {
        self.kind == Kind::Secrets
    }

    /// Whether it can be written as one value, and so in the environment too.
    pub(crate) fn is_plain(&self) -> bool {
        !matches!(self.kind, Kind::Secrets | Kind::Tables)
    }
}

/// The sections, with what each is about, in the order they are shown.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("", "What stands above all sections, or in sections of its own."),
    ("node", "The node as a whole: where its data is, and how the machine's CPUs are shared out."),
    ("quic", "Where and how clients are served."),
    ("http", "Where health and metrics are served."),
    ("durability", "What an acknowledged message outlives."),
    ("log", "The log on disk. For measuring and for tests: the defaults are right."),
    ("models", "Which language models are loaded, and which of them answers."),
    ("inference", "Where language models are computed."),
    ("memory", "How much memory the node may use before it begins to refuse."),
    ("limits", "What sessions, users and tenants may do and have; what is not set is not limited."),
    ("limits.session", "Each session."),
    ("limits.user", "Each user, over all sessions."),
    ("limits.tenant", "All users of a tenant together."),
    ("access", "Who may come in: logins, tokens of other issuers, and what is written down of it."),
    ("trace", "Where requests are traced to (OpenTelemetry, OTLP over HTTP)."),
    ("logging", "What the node writes to standard error."),
];

/// Where the program keeps what it is not told to keep elsewhere; shown, not opened.
const DATA: &str = "$XDG_STATE_HOME/thalweg, or ~/.local/state/thalweg";

const fn count(least: u64, most: u64) -> Kind {
    Kind::Count { least, most }
}

const fn time(least: Duration, most: Duration) -> Kind {
    Kind::Time { least, most }
}

const fn unset(then: &'static str, example: &'static str) -> Preset {
    Preset::Unset { then, example }
}

const DAY: Duration = Duration::from_secs(86_400);

#[rustfmt::skip]
const ROWS: &[Setting] = &[
    Setting::new("model", Kind::Tables, unset("models are all alike, and run here", MODEL),
        "What models are good for and cost, and models of other servers, as tables like [model.NAME].").reloads(),
    Setting::new("node.data", Kind::Path, unset(DATA, "\"/var/lib/thalweg\""),
        "The data directory: keys, certificate, log. Made if it is not there; locked while the node runs.")
        .flag("--data").alias("THALWEG_DATA"),
    Setting::new("node.cores", count(1, CORES_MAX as u64), unset("what inference leaves of the CPUs", "2"),
        "Cores that serve clients, one pinned thread each.").flag("--cores"),
    Setting::new("node.inference_threads", count(1, CORES_MAX as u64),
        unset("a quarter of the CPUs, at least 1; none without a model", "2"), "Threads that run models.")
        .flag("--inference-threads"),
    Setting::new("node.spin", time(Duration::ZERO, Duration::from_millis(100)),
        unset("200us if every thread has a CPU of its own, else 0us", "\"200us\""),
        "How long an idle core looks for work before it sleeps. Saves microseconds, costs CPU time.").flag("--spin-us"),
    Setting::new("node.partitions", count(1, u16::MAX as u64), Preset::Is(PARTITIONS),
        "Partitions of the data. Fixed once there is some."),
    Setting::new("quic.address", Kind::Address, Preset::Is("127.0.0.1:4433"),
        "Where QUIC is served (UDP); port 0 lets the system choose.").flag("--quic"),
    Setting::new("quic.certificate", Kind::Path,
        unset("the node makes its own, whose key clients pin", "\"/etc/thalweg/fullchain.pem\""),
        "A certificate of your own: PEM, the node's own first, then its authorities'. Needs quic.key.").reloads(),
    Setting::new("quic.key", Kind::Path, unset("the node makes its own", "\"/etc/thalweg/privkey.pem\""),
        "The private key of quic.certificate: PEM; ECDSA, Ed25519 or RSA.").reloads(),
    Setting::new("quic.backend", Kind::Choice(&["quinn-udp", "io-uring"]), Preset::Is("quinn-udp"),
        "How the sockets talk to the kernel.").flag("--udp"),
    Setting::new("quic.socket_buffer", Kind::Bytes { least: 64 << 10, most: 1 << 30 }, Preset::Is("8MiB"),
        "Buffers asked of the kernel for each socket; net.core.rmem_max and wmem_max bound them."),
    Setting::new("http.address", Kind::AddressOrOff, Preset::Is("127.0.0.1:8080"),
        "Where /health and /metrics are served, or \"off\"; port 0 lets the system choose.").flag("--http"),
    Setting::new("http.allow_plain", Kind::Switch, Preset::Is("false"),
        "Serve HTTP without encryption to other machines too. Whoever listens on the way reads everything.")
        .flag("--http-allow-plain"),
    Setting::new("durability.default", Kind::Choice(&["disk", "memory"]), Preset::Is("disk"),
        "For channels whose maker did not choose: disk (a crash, a power cut) or memory (nothing).").flag("--durability"),
    Setting::new("log.backend", Kind::Choice(&["thread", "io-uring"]), Preset::Is("thread"),
        "How batches of the log are written.").flag("--log-backend"),
    Setting::new("log.file_size", Kind::Bytes { least: 1 << 20, most: 32 * LOG_FILE_BYTES }, Preset::Is("32MiB"),
        "How large a file of the write-ahead log is; each core has two or three.").flag("--log-file-bytes"),
    Setting::new("log.sync_delay", time(Duration::ZERO, Duration::from_secs(1)), Preset::Is("0ms"),
        "What each sync takes longer than it must, to see what a slower disk would do.").flag("--sync-delay"),
    Setting::new("log.disk_shell", Kind::Choice(&["plain", "discard"]), Preset::Is("plain"),
        "Which disk stands behind the log: discard forgets with the process what was not synced.").flag("--disk-shell"),
    Setting::new("models.load", Kind::List, unset("every chat model that was pulled", "[\"smollm2-135m\"]"),
        "Models by name or GGUF file, default first; [] for none.").flag("--model"),
    Setting::new("inference.device", Kind::Text { most: 16 }, Preset::Is("auto"),
        "Where chat models are computed: cpu; cuda:N, the GPU of that number; auto, a GPU if it can.").flag("--device"),
    Setting::new("models.default", Kind::Text { most: 128 }, unset("the first model", "\"auto\""),
        "What a request means that names no model: a model, a class, or auto (by how complex it is).").reloads(),
    Setting::new("memory.budget", Kind::Bytes { least: 16 << 20, most: 1 << 50 },
        unset("three quarters of the machine's, or of its control group's limit", "\"4GiB\""),
        "Near it the node drops history from memory, then refuses new sessions, then writes.").reloads(),
    Setting::new("memory.kv", Kind::Bytes { least: 16 << 20, most: 1 << 50 },
        unset("1 GiB, and at most a quarter of memory.budget", "\"1GiB\""),
        "Memory for keys and values of the generations of each model: bounds how much runs at once."),
    Setting::new("limits.tenants", Kind::Tables,
        unset("all tenants are treated alike", "{ acme = { user = { messages_per_second = 100 } } }"),
        "Tenants with limits of their own, as tables like [limits.tenants.acme.user]; the rest is as for all.").reloads(),
    Setting::new("access.login", Kind::Switch, Preset::Is("true"),
        "Whether users of the node may log in with a password.").reloads(),
    Setting::new("access.token_ttl", time(Duration::from_secs(60), DAY.saturating_mul(400)), Preset::Is("12h"),
        "How long a token is good that a login gives.").reloads(),
    Setting::new("access.audit_file_size", Kind::Bytes { least: 64 << 10, most: 1 << 30 }, Preset::Is("16MiB"),
        "How large a file of the audit log may grow.").reloads(),
    Setting::new("access.audit_files", count(1, 1_000), Preset::Is("16"),
        "How many files of the audit log are kept.").reloads(),
    Setting::new("access.issuers", Kind::Tables, unset("only the node's own tokens are accepted", ISSUER),
        "Whose tokens are accepted beside the node's own (OpenID Connect, or any signer of JWTs).").reloads(),
    Setting::new("trace.endpoint", Kind::Text { most: 2_048 }, unset("nothing is traced", "\"http://127.0.0.1:4318\""),
        "The collector's address; without a path, /v1/traces."),
    Setting::new("trace.ratio", Kind::Ratio { least: 0.0, most: 1.0 }, Preset::Is("0.01"),
        "Which part of the requests is traced, from 0 to 1, besides those whose client says so."),
    Setting::new("trace.service_name", Kind::Text { most: 255 }, Preset::Is("thalweg"),
        "The attribute service.name of what is sent."),
    Setting::new("trace.timeout", time(Duration::from_millis(1), Duration::from_secs(60)), Preset::Is("10s"),
        "Longest time the collector may take to answer."),
    Setting::new("trace.headers", Kind::Secrets, unset("none", "{ authorization = \"Bearer …\" }"),
        "Headers the collector wants, such as its key. Never shown; https only, or on this machine."),
    Setting::new("logging.level", Kind::Level, Preset::Is("info"),
        "error, warn, info, debug or trace; or by module, like \"warn,thalweg_node=debug\".")
        .alias("THALWEG_LOG").reloads(),
    Setting::new("logging.format", Kind::Choice(&["human", "json"]), Preset::Is("human"),
        "For people, or one JSON object a line.").flag("--log").reloads(),
];

/// As text, because a default is one. A test compares it with the number.
const PARTITIONS: &str = "1024";

const MODEL: &str = "{ large = { class = \"accurate\", cost = 10, fallback = \"small\", \
                     url = \"https://models.example.com/v1\", key_file = \"large.key\" } }";

const ISSUER: &str = "[{ issuer = \"https://id.example.com\", audience = \"thalweg\", tenant = \"default\", \
                      allow = [\"read:*\", \"write:*\"] }]";

/// The rows of one scope's allowance.
macro_rules! allowance {
    ($scope:literal: $($key:literal = $kind:expr, $example:literal, $about:literal;)*) => {
        &[$(Setting::new(concat!("limits.", $scope, ".", $key), $kind, unset("no limit", $example), $about).reloads(),)*]
    };
}

const RATE: Kind = count(1, 1_000_000_000);
const BYTES: Kind = Kind::Bytes { least: 1 << 10, most: 1 << 40 };
const HAVE: Kind = count(1, u32::MAX as u64);

#[rustfmt::skip]
const SESSION: &[Setting] = allowance!("session":
    "messages_per_second" = RATE, "100", "Messages it may write a second, with edits, reactions and changes of channels.";
    "messages_burst" = RATE, "200", "How many of them at once. By default those of a second.";
    "bytes_per_second" = BYTES, "\"1MiB\"", "Bytes of what it writes a second.";
    "bytes_burst" = BYTES, "\"4MiB\"", "How many of them at once. By default those of a second.";
    "tokens_per_minute" = RATE, "10000", "Tokens of answers it asks models for, a minute.";
);

#[rustfmt::skip]
const USER: &[Setting] = allowance!("user":
    "messages_per_second" = RATE, "100", "Messages a user may write a second, with edits, reactions and changes of channels.";
    "messages_burst" = RATE, "200", "How many of them at once. By default those of a second.";
    "bytes_per_second" = BYTES, "\"1MiB\"", "Bytes of what a user writes a second.";
    "bytes_burst" = BYTES, "\"4MiB\"", "How many of them at once. By default those of a second.";
    "tokens_per_minute" = RATE, "20000", "Tokens of answers a user asks models for, a minute.";
    "connections" = HAVE, "16", "Connections at a time.";
);

#[rustfmt::skip]
const TENANT: &[Setting] = allowance!("tenant":
    "messages_per_second" = RATE, "5000", "Messages its users may write a second, with edits, reactions and changes.";
    "messages_burst" = RATE, "10000", "How many of them at once. By default those of a second.";
    "bytes_per_second" = BYTES, "\"32MiB\"", "Bytes of what its users write a second.";
    "bytes_burst" = BYTES, "\"64MiB\"", "How many of them at once. By default those of a second.";
    "tokens_per_minute" = RATE, "200000", "Tokens of answers its users ask models for, a minute.";
    "connections" = HAVE, "10000", "Connections at a time.";
    "channels" = HAVE, "10000", "Channels that exist at a time.";
);

/// All settings, in the order they are shown.
pub(crate) static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| [ROWS, SESSION, USER, TENANT].concat());

/// The setting of this name.
pub(crate) fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The name nearest to one that nobody knows, if one is near.
pub(crate) fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_ascii_lowercase().replace('-', "_");
    let near = |name: &'a str| (strsim::damerau_levenshtein(&wrong, name), name);
    let (distance, name) = known.map(near).min()?;
    // A third of the letters may be wrong; more than that is another word.
    (distance <= name.len().max(3) / 3).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use thalweg_protocol::limits::PARTITIONS_DEFAULT;

    use super::*;

    #[test]
    fn the_table_is_consistent() {
        let names: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        let variables: BTreeSet<_> = SETTINGS.iter().map(Setting::variable).collect();
        assert_eq!((names.len(), variables.len()), (SETTINGS.len(), SETTINGS.len()), "each name is there once");
        for setting in SETTINGS.iter() {
            assert!(SECTIONS.iter().any(|(name, _)| *name == setting.section()), "{} has no section", setting.name);
            assert!(setting.about.ends_with(['.', ')']) && setting.about.len() < 118, "{}", setting.name);
        }
        assert_eq!(PARTITIONS, PARTITIONS_DEFAULT.to_string());
    }

    #[test]
    fn a_near_name_is_found() {
        let known = || SETTINGS.iter().map(|setting| setting.name);
        let check = |wrong: &str, expected: Option<&str>| assert_eq!(nearest(wrong, known()), expected, "{wrong}");
        check("quic.adress", Some("quic.address"));
        check("quic.Address", Some("quic.address"));
        check("node.inference-threads", Some("node.inference_threads"));
        check("loging.level", Some("logging.level"));
        check("completely.else", None);
        check("", None);
    }
}
