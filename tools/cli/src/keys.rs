//! The files that make a node the one its clients know, when its data goes to another directory.

/// The count of a node's lives.
pub(crate) const EPOCH_FILE: &str = "epoch";
/// The keys by which clients know a node, and the count of its lives. Without them it would be another node. What its gate keeps
/// (signing keys, users, revocations) goes with them: `thalweg_node::gate::files`.
pub(crate) const KEYS: [&str; 3] = ["certificate.key", "reset.key", EPOCH_FILE];
/// A node that goes on with a copy of the data counts its lives on from so many later, so that none of them has the number of
/// one that the first node had after the copy was made: readers of answers tell lives apart by their numbers.
const EPOCHS_SKIPPED: u64 = 1 << 32;

/// Whether a file of a data directory is to be kept as safe as these: one of the [`KEYS`], or of the gate's.
pub(crate) fn is_key(path: &str) -> bool {
    KEYS.contains(&path) || thalweg_node::gate::is_file(path)
}

/// What one of the [`KEYS`] holds in the new directory.
pub(crate) fn carried(file: &str, content: Vec<u8>) -> Result<Vec<u8>, String> {
    if file != EPOCH_FILE {
        return Ok(content);
    }
    let epoch = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let epoch = epoch.ok_or("the epoch is not a number")?;
    Ok(epoch.saturating_add(EPOCHS_SKIPPED).to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_counted_on_from_later() {
        assert_eq!(carried("signing.key", b"x".into()), Ok(b"x".into()));
        assert_eq!(carried("epoch", b"7\n".into()), Ok(b"4294967303".into()));
        assert!(carried("epoch", b"x".into()).is_err());
    }
}
