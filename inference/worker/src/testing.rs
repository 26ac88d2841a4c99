//! What tests of this crate share.

use std::path::PathBuf;

/// The file of the model the tests run.
pub(crate) fn model_path() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("thalweg/models")
    };
    let models = std::env::var_os("THALWEG_MODELS").map_or_else(cache, PathBuf::from);
    let path = models.join("smollm2-135m/model.gguf");
    assert!(
        path.is_file(),
        "{} is missing: run `cargo run --release -- models pull smollm2-135m` first",
        path.display()
    );
    path
}
