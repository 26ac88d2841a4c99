//! The settings of a node that runs: read again when it is asked to reload.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value as Json, json};
use thalweg_node::reload::{Fresh, SettingsSource};

use super::checked::{Checked, check};
use super::effective::Effective;
use super::problem::Problem;
use super::show;
use super::table::SETTINGS;
use super::{Inputs, Loaded, load};
use crate::logging::LogHandle;

/// Where the settings of this process come from, and which of them it runs with.
pub(crate) struct Settings {
    inputs: Inputs,
    log: LogHandle,
    running: Arc<Mutex<Running>>,
}

struct Running {
    effective: Effective,
    file: Option<std::path::PathBuf>,
}

impl Settings {
    /// Of a process that runs with these.
    pub(crate) fn new(inputs: Inputs, loaded: Loaded, log: LogHandle) -> Self {
        let running = Running { effective: loaded.effective, file: loaded.file };
        Self { inputs, log, running: Arc::new(Mutex::new(running)) }
    }
}

/// Problems as one text for a log.
fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

impl SettingsSource for Settings {
    fn read(&self) -> Result<Fresh, String> {
        let loaded = load(&self.inputs).map_err(|problems| lines(&problems))?;
        let checked = check(&loaded.effective).map_err(|problems| lines(&problems))?;
        for warning in loaded.warnings.iter().chain(&checked.warnings) {
            tracing::warn!("{warning}");
        }
        let Checked { node, logging, .. } = checked;
        let (changed, needs_restart) = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            differences(&running.effective, &loaded.effective)
        };
        let (log, running, names) = (self.log.clone(), Arc::clone(&self.running), changed.clone());
        let commit = move || {
            log.set(&logging);
            let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
            for name in names {
                running.effective.adopt(name, &loaded.effective);
            }
            running.file = loaded.file;
        };
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        Ok(Fresh {
            certificate: node.certificate,
            limits: node.limits,
            access: node.access,
            memory_budget_bytes: node.memory_budget_bytes,
            model_settings: node.model_settings,
            model_default: node.model_default,
            changed: owned(changed),
            needs_restart: owned(needs_restart),
            commit: Box::new(commit),
        })
    }

    fn running(&self) -> Json {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "file": running.file, "settings": show::json(&running.effective) })
    }
}

/// The settings that differ: those that can be changed now, and those that need a restart.
fn differences(running: &Effective, read: &Effective) -> (Vec<&'static str>, Vec<&'static str>) {
    let differ: BTreeSet<_> = SETTINGS
        .iter()
        .filter(|setting| running.get(setting.name).value != read.get(setting.name).value)
        .map(|setting| (!setting.reload, setting.name))
        .collect();
    let of = |restart: bool| differ.iter().filter(move |(needs, _)| *needs == restart).map(|(_, name)| *name).collect();
    (of(false), of(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_from_what_needs_a_restart() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("n.toml");
        let write = |text: &str| std::fs::write(&path, text).expect("written");
        write("[logging]\nlevel = \"warn\"\n[node]\ncores = 1");
        let inputs = Inputs { file: Some(path.clone()), ..Inputs::default() };
        let settings = Settings::new(inputs.clone(), load(&inputs).expect("sound"), LogHandle::default());
        let check = |text: &str, changed: &[&str], restart: &[&str]| {
            write(text);
            let fresh = settings.read().expect("sound");
            assert_eq!(
                (&fresh.changed[..], &fresh.needs_restart[..]),
                (&strings(changed)[..], &strings(restart)[..]),
                "{text}"
            );
            (fresh.commit)();
        };
        check("[logging]\nlevel = \"warn\"\n[node]\ncores = 1", &[], &[]);
        check("# moved down\n[logging]\nlevel = \"error\"\n[node]\ncores = 2", &["logging.level"], &["node.cores"]);
        check("[logging]\nlevel = \"error\"\n[node]\ncores = 2", &[], &["node.cores"]);
        check("[node]\ncores = 1", &["logging.level"], &[]);
        write("[logging]\nlevel = \"loud\"\n[nod]\n");
        let Err(text) = settings.read() else { panic!("it is broken") };
        assert!(
            text.contains("n.toml:2:9: logging.level") && text.contains("n.toml:3:2: there is no section"),
            "{text}"
        );
        let running = settings.running();
        assert_eq!(running["settings"]["logging.level"]["value"], "info", "{running}");
        assert_eq!(running["file"], path.to_str().expect("UTF-8"));
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }
}
