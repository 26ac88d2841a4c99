//! What the file system of the log says beyond what is in its files.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

/// Where a log is.
pub(crate) trait Place: Send + Sync {
    /// Bytes that may still be written there.
    ///
    /// # Errors
    /// What the system says.
    fn free_bytes(&self) -> io::Result<u64>;

    /// How long ago a file, at a path relative to the log's directory, was written to for the last time.
    ///
    /// # Errors
    /// What the system says.
    fn age(&self, path: &str) -> io::Result<Duration>;
}

/// A directory of this machine.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Place for Directory {
    fn free_bytes(&self) -> io::Result<u64> {
        let path = CString::new(self.0.as_os_str().as_bytes())?;
        // SAFETY: a `statvfs` is numbers, for which zeros are values.
        let mut said: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path ends in a zero, and `said` is ours to be written.
        if unsafe { libc::statvfs(path.as_ptr(), &raw mut said) } != 0 {
            return Err(io::Error::last_os_error());
        }
        #[allow(clippy::unnecessary_cast, reason = "their types differ between systems")]
        Ok((said.f_bavail as u64).saturating_mul(said.f_frsize as u64))
    }

    fn age(&self, path: &str) -> io::Result<Duration> {
        let written = fs::metadata(self.0.join(path))?.modified()?;
        // One that lies in the future is as young as can be.
        Ok(written.elapsed().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TempDir;

    #[test]
    fn a_directory_has_room_and_its_files_an_age() {
        let dir = TempDir::new();
        fs::create_dir_all(dir.path()).expect("a directory");
        let place = Directory(dir.path().to_owned());
        assert!(place.free_bytes().expect("a number") > 0);
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(7_200);
        fs::File::create(dir.path().join("a")).and_then(|file| file.set_modified(long_ago)).expect("made");
        assert!(place.age("a").expect("there") >= Duration::from_secs(7_200));
        assert!(place.age("b").is_err());
        assert!(Directory(dir.path().join("b")).free_bytes().is_err());
    }
}
