//! API keys: credentials that are looked up, for programs that keep one for long.
//!
//! A key reads `thk_ID_SECRET`. The node keeps the SHA-256 of the secret, which is 256 random bits, so that nothing slower
//! is needed (and no file gives a key away).

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use thalweg_domain::permission::Permission;
use thalweg_protocol::ids::Name;

use super::limits::{API_KEYS_MAX, API_KEYS_PER_TENANT_MAX};
use super::store::{self, AccessError, Stored};

/// What an API key begins with.
pub(crate) const API_KEY_PREFIX: &str = "thk_";

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiKey {
    pub(crate) tenant: Name,
    pub(crate) user: Name,
    pub(crate) allow: Vec<Permission>,
    pub(crate) created_s: u64,
    /// 0: never.
    pub(crate) expires_s: u64,
    pub(crate) note: String,
    secret_sha256: [u8; 32],
}

/// All API keys of a node, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ApiKeys(BTreeMap<u64, ApiKey>);

impl ApiKeys {
    /// Reads those of a data directory.
    pub(crate) fn read(data: &Path) -> Result<Self, AccessError> {
        let Some(file) = store::read::<File>(data)? else { return Ok(Self::default()) };
        let key = |entry: Entry| {
            let id = parse_key_id(&entry.id);
            let parsed = id.ok_or_else(|| "it is no id".to_owned()).and_then(|id| Ok((id, entry.parse()?)));
            parsed.map_err(|reason| store::damaged::<File>(data, format!("key {:?}: {reason}", entry.id)))
        };
        Ok(Self(file.keys.into_iter().map(key).collect::<Result<_, _>>()?))
    }

    /// Writes them: when this returns they are on the disk.
    pub(crate) fn write(&self, data: &Path) -> Result<(), AccessError> {
        let entry = |(id, key): (&u64, &ApiKey)| Entry {
            id: format!("{id:016x}"),
            tenant: key.tenant.to_string(),
            user: key.user.to_string(),
            allow: key.allow.iter().map(Permission::to_string).collect(),
            created_s: key.created_s,
            expires_s: key.expires_s,
            note: key.note.clone(),
            secret_sha256: key.secret_sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        store::write(data, &File { keys: self.0.iter().map(entry).collect() })
    }

    /// Makes a key: its id, and its text, which nobody can be told again.
    pub(crate) fn create(
        &mut self,
        (tenant, user): (Name, Name),
        allow: Vec<Permission>,
        (created_s, expires_s): (u64, u64),
        note: String,
    ) -> Result<(u64, String), AccessError> {
        let of = self.0.values().filter(|key| key.tenant == tenant).count();
        if of >= API_KEYS_PER_TENANT_MAX || self.0.len() >= API_KEYS_MAX {
            let (count, whose) = if of >= API_KEYS_PER_TENANT_MAX { (of, "tenant") } else { (self.0.len(), "node") };
            let text = format!("the {whose} has {count} API keys, as many as it may; remove some that are not used");
            return Err(AccessError::Full(text));
        }
        // An id is never 0, which means none.
        let id = std::iter::repeat_with(rand::random::<u64>).find(|id| *id != 0 && !self.0.contains_key(id));
        let id = id.expect("random numbers do not end");
        let secret: [u8; 32] = rand::random();
        let secret = URL_SAFE_NO_PAD.encode(secret);
        let secret_sha256 = sha256(secret.as_bytes());
        self.0.insert(id, ApiKey { tenant, user, allow, created_s, expires_s, note, secret_sha256 });
        Ok((id, format!("{API_KEY_PREFIX}{id:016x}_{secret}")))
    }

    /// The key of this text, if it is one and its secret is right.
    pub(crate) fn find(&self, text: &str) -> Option<(u64, &ApiKey)> {
        let (id, secret) = text.strip_prefix(API_KEY_PREFIX)?.split_once('_')?;
        let id = parse_key_id(id)?;
        let key = self.0.get(&id)?;
        let given = sha256(secret.as_bytes());
        // Without an early end, so that the time says nothing of where they differ.
        let differ = given.iter().zip(&key.secret_sha256).fold(0, |differ, (a, b)| differ | (a ^ b));
        (differ == 0).then_some((id, key))
    }

    pub(crate) fn get(&self, id: u64) -> Option<&ApiKey> {
        self.0.get(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &ApiKey)> {
        self.0.iter().map(|(id, key)| (*id, key))
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<ApiKey> {
        self.0.remove(&id)
    }

    /// Removes those of a tenant, or of one of its users. Says how many.
    pub(crate) fn remove_of(&mut self, tenant: &Name, user: Option<&Name>) -> usize {
        let before = self.0.len();
        self.0.retain(|_, key| key.tenant != *tenant || user.is_some_and(|user| key.user != *user));
        before - self.0.len()
    }

    /// Drops those that have expired. Says whether there were any.
    pub(crate) fn prune(&mut self, now_s: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|_, key| key.expires_s == 0 || key.expires_s >= now_s);
        self.0.len() < before
    }
}

/// The id of an API key as people write it: 16 hexadecimal digits.
pub(crate) fn parse_key_id(text: &str) -> Option<u64> {
    let hexadecimal = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// `access/apikeys.json`.
#[derive(Serialize, Deserialize)]
struct File {
    keys: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    tenant: String,
    user: String,
    allow: Vec<String>,
    created_s: u64,
    #[serde(default)]
    expires_s: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
    secret_sha256: String,
}

impl Entry {
    fn parse(&self) -> Result<ApiKey, String> {
        let hash = (0..32).map(|at| self.secret_sha256.get(2 * at..2 * at + 2));
        let hash =
            hash.map(|byte| byte.and_then(|byte| u8::from_str_radix(byte, 16).ok())).collect::<Option<Vec<u8>>>();
        let hash = hash.filter(|_| self.secret_sha256.len() == 64).and_then(|hash| hash.try_into().ok());
        Ok(ApiKey {
            tenant: Name::new(&self.tenant).map_err(|error| format!("tenant {:?} {error}", self.tenant))?,
            user: Name::new(&self.user).map_err(|error| format!("user {:?} {error}", self.user))?,
            allow: self
                .allow
                .iter()
                .map(|text| text.parse().map_err(|error| format!("{error}")))
                .collect::<Result<_, _>>()?,
            created_s: self.created_s,
            expires_s: self.expires_s,
            note: self.note.clone(),
            secret_sha256: hash.ok_or("secret_sha256 is not 64 hexadecimal digits")?,
        })
    }
}

impl Stored for File {
    const PATH: &'static str = "access/apikeys.json";
    const REMEDY: &'static str = "or remove it: then no API key is good any more";
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::tests::TempDir;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    fn create(keys: &mut ApiKeys, tenant: &str, user: &str, expires_s: u64) -> (u64, String) {
        let allow = vec!["read:*".parse().expect("valid")];
        keys.create((name(tenant), name(user)), allow, (100, expires_s), "for the bot".into()).expect("room")
    }

    #[test]
    fn a_key_is_found_by_its_text_alone() {
        let dir = TempDir::new();
        store::make_directories(dir.path()).expect("made");
        let mut keys = ApiKeys::default();
        let (id, text) = create(&mut keys, "a", "bot", 0);
        let (other, _) = create(&mut keys, "b", "bot", 200);
        keys.write(dir.path()).expect("written");
        let read = ApiKeys::read(dir.path()).expect("there");
        assert_eq!(read, keys);
        assert_eq!(read.find(&text).map(|(id, key)| (id, key.tenant.clone())), Some((id, name("a"))));
        let file = fs::read_to_string(dir.path().join(File::PATH)).expect("there");
        assert!(!file.contains(text.rsplit('_').next().expect("a secret")), "the secret is not kept");
        for wrong in [
            String::new(),
            "thk_".into(),
            format!("thk_{id:016x}"),
            format!("thk_{id:016x}_"),
            format!("thk_{id:x}_x"),
            text.replace(&format!("{id:016x}"), &format!("{other:016x}")),
            text[..text.len() - 1].to_owned(),
            format!("{text}A"),
        ] {
            assert!(read.find(&wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn keys_go() {
        let mut keys = ApiKeys::default();
        for (tenant, user, expires_s) in [("a", "x", 0), ("a", "y", 0), ("b", "x", 0), ("b", "y", 200)] {
            create(&mut keys, tenant, user, expires_s);
        }
        assert!(!keys.prune(200) && keys.prune(201));
        assert_eq!(keys.remove_of(&name("a"), Some(&name("x"))), 1);
        assert_eq!(keys.remove_of(&name("b"), None), 1);
        assert_eq!(keys.iter().count(), 1);
    }

    #[test]
    fn damage_is_named() {
        let dir = TempDir::new();
        store::make_directories(dir.path()).expect("made");
        let (mut keys, path) = (ApiKeys::default(), dir.path().join(File::PATH));
        create(&mut keys, "a", "bot", 0);
        keys.write(dir.path()).expect("written");
        let good = fs::read_to_string(&path).expect("there");
        for (from, to, says) in [
            ("\"a\"", "\"a b\"", "tenant \"a b\""),
            ("read:*", "fly:*", "is not a permission"),
            ("secret_sha256\": \"", "secret_sha256\": \"00", "64 hexadecimal digits"),
            ("\"id\": \"", "\"id\": \"0", "it is no id"),
            ("secret_sha256\": \"", "secret_sha256\": \"é", "64 hexadecimal digits"),
        ] {
            fs::write(&path, good.replace(from, to)).expect("written");
            let error = ApiKeys::read(dir.path()).expect_err("damaged").to_string();
            assert!(error.contains(says) && error.contains("no API key is good"), "{error} lacks {says:?}");
        }
    }
}
