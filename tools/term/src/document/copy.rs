//! A copy of a text that the node may not have, in a file.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Copies of one document in one folder.
const COPIES_MAX: u32 = 100;
/// Characters of a document's name that are in that of the file.
const NAME_MAX: usize = 64;

/// Writes a text into a new file in the folder one is in, or where that cannot be, into that for temporary files. Gives the
/// file, which nobody else may read.
///
/// # Errors
/// Those of the last file that was tried.
pub(super) fn keep(document: &str, text: &str) -> io::Result<PathBuf> {
    let here = std::env::current_dir().and_then(|folder| keep_in(&folder, document, text));
    here.or_else(|_| keep_in(&std::env::temp_dir(), document, text))
}

fn keep_in(folder: &Path, document: &str, text: &str) -> io::Result<PathBuf> {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let name: String = document.trim_start_matches('.').chars().map(plain).take(NAME_MAX).collect();
    let mut taken = None;
    for number in 1..=COPIES_MAX {
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        let path = folder.join(format!("{name}.unsaved{number}.txt"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                file.write_all(text.as_bytes()).and_then(|()| file.sync_all())?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(taken.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_do_not_overwrite_each_other() {
        let folder = std::env::temp_dir().join(format!("thalweg-copies-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let check = |document: &str, text: &str, expected: &str| {
            let path = keep_in(&folder, document, text).expect("it is written");
            assert_eq!(path, folder.join(expected));
            assert_eq!(std::fs::read_to_string(path).expect("it is there"), text);
        };
        check("notes", "one", "notes.unsaved.txt");
        check("notes", "two", "notes.unsaved-2.txt");
        check("../team/plan é", "three", "_team_plan_é.unsaved.txt");
        std::fs::remove_dir_all(&folder).expect("it goes");
    }
}
