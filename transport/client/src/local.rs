//! A node on this machine: what it leaves in its data directory for the commands of its user.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::ClientError;
use crate::trust::KeyHash;

/// The file in which a running node says where it listens.
const NODE_FILE: &str = "node.json";
/// The file in which a node keeps a token for local commands; mode 0600.
const TOKEN_FILE: &str = "local.token";

/// How to reach the node of a data directory.
#[derive(Debug, Clone)]
pub struct LocalNode {
    /// Where it listens, `host:port`.
    pub quic: String,
    /// Where it serves HTTP, if it does.
    pub http: Option<String>,
    /// The key to pin.
    pub key: KeyHash,
    /// A token with every permission in the tenant `default`.
    pub token: String,
    /// Its process.
    pub pid: u32,
    /// Which life of the node this is.
    pub epoch: u64,
}

#[derive(Deserialize)]
struct NodeFile {
    quic: String,
    http: Option<String>,
    key_sha256: String,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    epoch: u64,
}

/// Reads what the node of `data` left there.
///
/// # Errors
/// [`ClientError::Unreachable`] if no node runs with this directory; [`ClientError::File`] if what it left may not be read
/// (the node belongs to somebody else) or is damaged.
pub fn discover(data: &Path) -> Result<LocalNode, ClientError> {
    let node = match std::fs::read_to_string(data.join(NODE_FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let reason = "no node runs with this data directory; say where one is with --server or --data".into();
            return Err(ClientError::Unreachable { server: data.display().to_string(), reason });
        }
        Err(error) => return Err(file_error(data.join(NODE_FILE), &error)),
        Ok(text) => text,
    };
    let damaged = |reason: String| ClientError::File { path: data.join(NODE_FILE), reason };
    let node: NodeFile = serde_json::from_str(&node).map_err(|error| damaged(error.to_string()))?;
    let key = node.key_sha256.parse().map_err(|error: ClientError| damaged(error.to_string()))?;
    let token = data.join(TOKEN_FILE);
    let token = std::fs::read_to_string(&token).map_err(|error| file_error(token, &error))?.trim().to_owned();
    let (quic, http) = (from_here(node.quic), node.http.map(from_here));
    Ok(LocalNode { quic, http, key, token, pid: node.pid, epoch: node.epoch })
}

/// Where something that listens on all addresses of this machine is reached from this machine.
fn from_here(address: String) -> String {
    match address.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(v4)) if v4.ip().is_unspecified() => format!("{}:{}", Ipv4Addr::LOCALHOST, v4.port()),
        Ok(SocketAddr::V6(v6)) if v6.ip().is_unspecified() => format!("[{}]:{}", Ipv6Addr::LOCALHOST, v6.port()),
        _ => address,
    }
}

fn file_error(path: PathBuf, error: &std::io::Error) -> ClientError {
    let reason = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "may not be read: the node belongs to another user; ask for a token and give it with --server and --token"
                .into()
        }
        _ => error.to_string(),
    };
    ClientError::File { path, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_says_where_its_node_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let check = |node: Option<&str>, token: Option<&str>, expected: &str| {
            for (file, text) in [(NODE_FILE, node), (TOKEN_FILE, token)] {
                match text {
                    Some(text) => std::fs::write(directory.path().join(file), text).expect("written"),
                    None => drop(std::fs::remove_file(directory.path().join(file))),
                }
            }
            match discover(directory.path()) {
                Ok(node) => assert_eq!(format!("{} {}", node.quic, node.token), expected),
                Err(error) => assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}"),
            }
        };
        let key = "ab".repeat(32);
        let node = format!(r#"{{"quic":"127.0.0.1:1","http":null,"key_sha256":"{key}","pid":7,"epoch":2,"new":1}}"#);
        check(None, None, "no node runs");
        check(Some("{"), None, "node.json");
        check(Some(r#"{"quic":"127.0.0.1:1","key_sha256":"ab"}"#), Some("t"), "64 hexadecimal digits");
        check(Some(&node), None, "local.token");
        check(Some(&node), Some("token\n"), "127.0.0.1:1 token");
        check(Some(&node.replace("127.0.0.1", "0.0.0.0")), Some("token"), "127.0.0.1:1 token");
        check(Some(&node.replace("127.0.0.1", "[::]")), Some("token"), "[::1]:1 token");
    }
}
