//! What `thalweg login` keeps for later commands: a token a node, in files that only their owner may read.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::failure::{During as _, Failure};
use crate::paths;

/// Longest name of a file, so that every file system takes it.
const FILE_NAME_BYTES_MAX: usize = 200;

/// A login that is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Login {
    pub(crate) server: String,
    pub(crate) tenant: String,
    pub(crate) user: String,
    pub(crate) token: String,
    /// In microseconds since 1970; 0 if it does not end.
    pub(crate) expires_us: u64,
}

impl std::fmt::Debug for Login {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({} {}/{} until {})", self.server, self.tenant, self.user, self.expires_us)
    }
}

impl Login {
    /// Whether the token is good no longer.
    pub(crate) fn has_ended(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires_us != 0 && u128::from(self.expires_us) <= now.as_micros()
    }
}

/// The login at this node, if there is one.
pub(crate) fn load(server: &str) -> Result<Option<Login>, Failure> {
    load_from(&paths::logins(), server)
}

/// Keeps a login. Gives the file.
pub(crate) fn store(login: &Login) -> Result<PathBuf, Failure> {
    store_in(&paths::logins(), login)
}

/// Forgets the login at this node, and gives it.
pub(crate) fn forget(server: &str) -> Result<Option<Login>, Failure> {
    let login = load(server)?;
    let path = file(&paths::logins(), server);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).during(path.display()),
        _ => Ok(login),
    }
}

fn load_from(directory: &Path, server: &str) -> Result<Option<Login>, Failure> {
    let path = file(directory, server);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.during(path.display())?,
    };
    let login: Login = serde_json::from_str(&text)
        .map_err(|error| Failure::failed(format!("{}: {error}; remove it and log in again", path.display())))?;
    // Names of files are cut; a login of another node says nothing about this one.
    Ok(Some(login).filter(|login| login.server == server))
}

fn store_in(directory: &Path, login: &Login) -> Result<PathBuf, Failure> {
    let path = file(directory, &login.server);
    let text = serde_json::to_string(login).map_err(|error| Failure::failed(error.to_string()))?;
    private_directory(directory).during(directory.display())?;
    let new = path.with_extension("new");
    let written = private_file(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&new, &path)).during(path.display())?;
    Ok(path)
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// A new file, whatever was there before: one that was made with other rights keeps none of them.
fn private_file(path: &Path) -> std::io::Result<std::fs::File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The file of a node: its name, with what means something in paths written in hexadecimal.
fn file(directory: &Path, server: &str) -> PathBuf {
    let mut name = String::new();
    for byte in server.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' => name.push(byte.into()),
            byte => name += &format!("_{byte:02x}"),
        }
    }
    name.truncate(FILE_NAME_BYTES_MAX);
    directory.join(format!("login-{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_kept_for_their_owner() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let directory = home.path().join("logins");
        let login = |server: &str, token: &str, expires_us| Login {
            server: server.into(),
            tenant: "default".into(),
            user: "ada".into(),
            token: token.into(),
            expires_us,
        };
        assert_eq!(load_from(&directory, "h:1").expect("none"), None);
        for server in ["h:1", "../../etc/passwd", "[::1]:4433"] {
            let path = store_in(&directory, &login(server, "secret", 1)).expect("kept");
            assert_eq!(path.parent(), Some(directory.as_path()));
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
            }
            let loaded = load_from(&directory, server).expect("readable").expect("there");
            assert_eq!(loaded, login(server, "secret", 1));
            assert!(loaded.has_ended() && !format!("{loaded:?}").contains("secret"));
        }
        assert!(!login("h:1", "t", 0).has_ended());
        let (long, other) = (format!("{}:1", "x".repeat(300)), format!("{}:2", "x".repeat(300)));
        store_in(&directory, &login(&long, "t", 0)).expect("kept");
        assert_eq!(load_from(&directory, &other).expect("readable"), None, "a login of another node");
        std::fs::write(file(&directory, "h:1"), "{").expect("written");
        assert!(load_from(&directory, "h:1").expect_err("damaged").message.contains("log in again"));
    }
}
