//! Where things are: the data directory, the models, the keys of nodes that were trusted.

use std::ffi::OsString;
use std::path::PathBuf;

/// The data directory when none is named: `$XDG_STATE_HOME/thalweg`, for nodes and clients alike.
pub(crate) fn data_directory(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(|| base("XDG_STATE_HOME", ".local/state").join("thalweg"))
}

/// Where models are kept: `$THALWEG_MODELS`, else `$XDG_CACHE_HOME/thalweg/models`.
#[cfg(feature = "node")]
pub(crate) fn models() -> PathBuf {
    variable("THALWEG_MODELS").map_or_else(|| base("XDG_CACHE_HOME", ".cache").join("thalweg/models"), PathBuf::from)
}

/// Where logins are kept, a file a node.
pub(crate) fn logins() -> PathBuf {
    base("XDG_STATE_HOME", ".local/state").join("thalweg/logins")
}

/// The keys of nodes that were trusted on first contact.
pub(crate) fn known_nodes() -> PathBuf {
    base("XDG_STATE_HOME", ".local/state").join("thalweg/known_nodes")
}

/// A directory of the XDG base directory specification: relative values are to be ignored.
fn base(name: &str, below_home: &str) -> PathBuf {
    let home = || PathBuf::from(variable("HOME").unwrap_or_else(|| "/".into())).join(below_home);
    variable(name).map(PathBuf::from).filter(|path| path.is_absolute()).unwrap_or_else(home)
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
