//! What lies in `tools/deploy` is held to what the binary takes: commands, settings, variables, limits of the unit.

use std::time::Duration;

use clap::Parser as _;
use thalweg_protocol::limits::{CORE_SILENT_MS, DRAIN_MS, WEB_CONNECTIONS_MAX};

use crate::Cli;
use crate::config::names;
use crate::duration;

const PAGE: &str = include_str!("../../deploy/README.md");
const UNIT: &str = include_str!("../../deploy/thalweg.service");
const CONTAINER: &str = include_str!("../../deploy/Containerfile");
const SYSCTL: &str = include_str!("../../deploy/sysctl.d/90-thalweg.conf");

/// The blocks of the page in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut rest = PAGE;
    while let Some((_, block)) = rest.split_once(&format!("```{language}\n")) {
        let (block, after) = block.split_once("```").expect("blocks end");
        found.push(block);
        rest = after;
    }
    assert!(!found.is_empty(), "no {language} in the page");
    found
}

/// The words of `thalweg` in a line of shell, if it calls it.
fn call(line: &str) -> Option<Vec<&str>> {
    let line = line.split_once("$(").and_then(|(_, inner)| inner.split_once(')')).map_or(line, |(inner, _)| inner);
    let line = line.split(" | ").find(|part| part.split(' ').any(|word| word == "thalweg"))?;
    let words: Vec<_> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "thalweg")?;
    // The name of a user, of an image, or of a service, is no call.
    let before = at.checked_sub(1).map(|before| words[before]);
    let called = match before {
        None => true,
        Some(before) => before == "thalweg" || before.contains('=') || before == "-u",
    };
    let words = if before == Some("-u") { &words[at + 1..] } else { &words[at..] };
    let words: Vec<_> = words.iter().copied().skip_while(|word| word.contains('=')).collect();
    (called && words.first() == Some(&"thalweg") && words.len() > 1).then_some(words)
}

#[test]
fn the_commands_of_the_operators_page_exist() {
    let mut seen = 0;
    for line in blocks("sh").iter().flat_map(|block| block.lines()) {
        let Some(words) = call(line) else { continue };
        seen += 1;
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{line}: {error}");
        }
    }
    assert!(seen >= 9, "{seen} commands were found");
}

#[test]
fn the_settings_of_the_operators_page_are_sound() {
    for block in blocks("toml") {
        let problems = crate::config::problems_of(block);
        assert!(problems.is_empty(), "{block}\n{problems:?}");
    }
}

#[test]
fn variables_are_those_of_settings() {
    let others = ["THALWEG_DATA", "THALWEG_MODELS", "THALWEG_TOKEN"];
    for (file, text) in [("README.md", PAGE), ("thalweg.service", UNIT), ("Containerfile", CONTAINER)] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("THALWEG_")) {
            let known = others.contains(&word) || names().any(|(_, variable)| variable == word);
            assert!(known, "{file}: there is no {word}");
        }
    }
}

#[test]
fn the_unit_leaves_the_node_its_time_and_its_room() {
    let value = |key: &str| {
        let line = UNIT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} is not there"))
    };
    let seconds = |key: &str| duration::parse(&format!("{}s", value(key))).expect("seconds");
    assert!(seconds("TimeoutStopSec") > Duration::from_millis(DRAIN_MS), "it would be killed while it drains");
    assert!(seconds("WatchdogSec") > Duration::from_millis(2 * CORE_SILENT_MS), "a slow turn is not a hang");
    assert!(value("LimitNOFILE").parse::<usize>().expect("a number") > WEB_CONNECTIONS_MAX + 2_048);
    assert!(value("LimitMEMLOCK").trim_end_matches('M').parse::<u64>().expect("MiB") >= 64);
    // Who misspells a key of a unit gets a warning at best.
    const KEYS: &str = "AmbientCapabilities After CacheDirectory CapabilityBoundingSet ConfigurationDirectory Description \
        Environment ExecReload ExecStart Group LimitMEMLOCK LimitNOFILE LockPersonality MemoryDenyWriteExecute MemoryMax \
        NoNewPrivileges NotifyAccess OOMPolicy PrivateDevices PrivateTmp ProtectClock ProtectControlGroups ProtectHome \
        ProtectHostname ProtectKernelLogs ProtectKernelModules ProtectKernelTunables ProtectProc ProtectSystem RemoveIPC \
        Restart RestartSec RestrictAddressFamilies RestrictNamespaces RestrictRealtime RestrictSUIDSGID StartLimitBurst \
        StartLimitIntervalSec StateDirectory StateDirectoryMode SystemCallArchitectures SystemCallErrorNumber \
        SystemCallFilter TimeoutStartSec TimeoutStopSec Type UMask User WantedBy Wants WatchdogSec";
    for line in UNIT.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
        let key = line.split('=').next().unwrap_or_default();
        assert!(KEYS.split_whitespace().any(|known| known == key), "{line}: {key} is no key of a unit");
    }
    for line in UNIT.lines().filter_map(|line| line.strip_prefix("ExecStart=").or(line.strip_prefix("ExecReload="))) {
        let Some(line) = line.strip_prefix("/usr/local/bin/") else { continue };
        if let Err(error) = Cli::try_parse_from(line.split(' ')) {
            panic!("{line}: {error}");
        }
    }
    for line in SYSCTL.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(line.contains(" = ") && line.split('.').count() >= 2, "{line}");
    }
}
