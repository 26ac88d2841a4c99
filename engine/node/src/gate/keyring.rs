//! The node's own signing keys: one signs, those before it verify until the last token they may have signed has expired.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rcgen::PublicKeyData as _;
use serde::{Deserialize, Serialize};
use thalweg_domain::permission::Permission;
use thalweg_protocol::ids::Name;

use super::limits::{EXPIRY_STEP_S, LEEWAY_S, SIGNING_KEYS_MAX, TAKEN_OVER_TTL_S, TOKEN_TTL_S_MAX};
use super::store::{self, AccessError, KEYS_DIRECTORY, Stored, file_error};
use crate::identity::write_secret;

/// The file of the only key in data directories of earlier versions: PKCS#8 PEM. It becomes the first key of the ring.
pub const SIGNING_KEY_FILE: &str = "signing.key";

/// What the key files do not say, within the data directory.
pub(crate) const INDEX_FILE: &str = "access/keys.json";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whose data its holder may touch.
    pub tenant: Name,
    /// Under which name its holder writes.
    pub user: Name,
    /// What its holder may do.
    pub allow: Vec<Permission>,
    /// For how long.
    pub ttl: Duration,
}

/// The claims of the node's own tokens, as they are on the wire.
#[derive(Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) ten: String,
    pub(crate) sub: String,
    pub(crate) allow: Vec<String>,
    pub(crate) iat: u64,
    pub(crate) exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) jti: Option<String>,
}

/// A token, and what it can be revoked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minted {
    /// The token. A secret.
    pub token: String,
    /// Its id.
    pub id: u128,
    /// When it expires, in seconds since 1970.
    pub expires_s: u64,
}

/// `access/keys.json`: what the key files do not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    /// The key that signs.
    current: String,
    keys: BTreeMap<String, About>,
    /// Tokens of earlier versions name no key: they are of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unnamed: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    created_s: u64,
    /// No token that it signed expires later.
    last_expiry_s: u64,
}

impl Stored for Index {
    const PATH: &'static str = INDEX_FILE;
    const REMEDY: &'static str =
        "or remove it together with access/keys to have a new key made: then no token that was signed before is good";
}

struct Pair {
    signing: EncodingKey,
    checking: Arc<DecodingKey>,
}

/// The keys by which tokens are checked.
#[derive(Clone, Default)]
pub(crate) struct PublicKeys {
    keys: BTreeMap<Arc<str>, (Arc<DecodingKey>, u64)>,
    unnamed: Option<String>,
}

impl PublicKeys {
    /// The key a token names, with its id, if its tokens may still be good. The current one always is.
    pub(crate) fn find(&self, kid: Option<&str>, now_s: u64) -> Option<(&Arc<str>, &DecodingKey)> {
        let (kid, (key, last_expiry_s)) = self.keys.get_key_value(kid.or(self.unnamed.as_deref())?)?;
        (*last_expiry_s + LEEWAY_S >= now_s).then_some((kid, key))
    }

    /// Whether there is such a key.
    pub(crate) fn has(&self, kid: &str) -> bool {
        self.keys.contains_key(kid)
    }
}

/// The signing keys of a data directory.
pub(crate) struct KeyRing {
    data: PathBuf,
    index: Index,
    pairs: BTreeMap<String, Pair>,
}

impl KeyRing {
    /// Opens the keys of a data directory; takes over the one of an earlier version, or makes one, if there are none.
    pub(crate) fn open(data: &Path, now_s: u64) -> Result<Self, AccessError> {
        store::make_directories(data)?;
        let _lock = store::lock(data)?;
        Self::read(data, now_s)
    }

    /// As [`open`](Self::open), by somebody who holds the lock.
    fn read(data: &Path, now_s: u64) -> Result<Self, AccessError> {
        let index = match store::read::<Index>(data)? {
            Some(index) => index,
            None => Self::first(data, now_s)?,
        };
        let old = data.join(SIGNING_KEY_FILE);
        if index.unnamed.is_some() {
            // It was taken over; a secret should be in one place.
            remove_if_there(&old)?;
        }
        let pairs = index.keys.keys().map(|kid| Ok((kid.clone(), Pair::read(data, kid)?)));
        let pairs = pairs.collect::<Result<BTreeMap<_, _>, AccessError>>()?;
        if !pairs.contains_key(&index.current) {
            return Err(store::damaged::<Index>(data, format!("the current key {} is not listed", index.current)));
        }
        Ok(Self { data: data.to_owned(), index, pairs })
    }

    /// The index of a directory that has none.
    fn first(data: &Path, now_s: u64) -> Result<Index, AccessError> {
        let old = data.join(SIGNING_KEY_FILE);
        let (pem, taken_over) = match fs::read_to_string(&old) {
            Ok(pem) => (pem, true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (new_key(data)?, false),
            Err(error) => return Err(file_error("read", &old)(error)),
        };
        let kid = kid_of(&old, &pem)?;
        write_secret(&key_path(data, &kid), pem.as_bytes())?;
        let last_expiry_s = if taken_over { now_s + TAKEN_OVER_TTL_S } else { now_s };
        let keys = BTreeMap::from([(kid.clone(), About { created_s: now_s, last_expiry_s })]);
        let index = Index { current: kid.clone(), keys, unnamed: taken_over.then_some(kid) };
        store::write(data, &index)?;
        Ok(index)
    }

    /// The keys by which its tokens are checked.
    pub(crate) fn public(&self) -> PublicKeys {
        let key = |(kid, pair): (&String, &Pair)| {
            let last_s =
                if *kid == self.index.current { u64::MAX - LEEWAY_S } else { self.index.keys[kid].last_expiry_s };
            (kid.as_str().into(), (Arc::clone(&pair.checking), last_s))
        };
        PublicKeys { keys: self.pairs.iter().map(key).collect(), unnamed: self.index.unnamed.clone() }
    }

    /// The key that signs.
    #[cfg(test)]
    pub(crate) fn current(&self) -> &str {
        &self.index.current
    }

    /// The keys with when they were made and when the last of their tokens expires at the latest, in seconds.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.index.keys.iter().map(|(kid, about)| (kid.as_str(), about.created_s, about.last_expiry_s))
    }

    /// Signs a token that is said to be issued at `issued_s`. That its key must verify until it expires is on the disk first.
    pub(crate) fn mint(&mut self, claims: &Claims, issued_s: u64) -> Result<Minted, AccessError> {
        let ttl_s = claims.ttl.as_secs();
        if ttl_s > TOKEN_TTL_S_MAX {
            return Err(AccessError::TooLong { asked_s: ttl_s, most_s: TOKEN_TTL_S_MAX });
        }
        let expires_s = issued_s + ttl_s;
        let current = self.index.current.clone();
        let about = self.index.keys.get(&current).expect("the current key is listed");
        if about.last_expiry_s < expires_s {
            let (kid, last_expiry_s) = (current.clone(), expires_s.next_multiple_of(EXPIRY_STEP_S));
            self.change(|index| {
                if let Some(about) = index.keys.get_mut(&kid) {
                    about.last_expiry_s = about.last_expiry_s.max(last_expiry_s);
                }
            })?;
            if !self.index.keys.contains_key(&current) {
                return Err(AccessError::Full("the signing keys were changed at this moment; try again".into()));
            }
        }
        let id: u128 = rand::random::<u128>().max(1);
        let body = Body {
            ten: claims.tenant.to_string(),
            sub: claims.user.to_string(),
            allow: claims.allow.iter().map(Permission::to_string).collect(),
            iat: issued_s,
            exp: expires_s,
            jti: Some(format!("{id:032x}")),
        };
        let header = Header { kid: Some(current.clone()), ..Header::new(Algorithm::EdDSA) };
        let pair = self.pairs.get(&current).expect("it was current when the keys were read");
        let token = jsonwebtoken::encode(&header, &body, &pair.signing)
            .map_err(|error| store::damaged::<Index>(&self.data, format!("signing with {current}: {error}")))?;
        Ok(Minted { token, id, expires_s })
    }

    /// Lets a new key sign from now on. The one before goes on to verify what it signed, unless all old keys are dropped.
    pub(crate) fn rotate(&mut self, now_s: u64, drop_old: bool) -> Result<String, AccessError> {
        if self.index.keys.len() >= SIGNING_KEYS_MAX && !drop_old {
            let text = format!(
                "there are {SIGNING_KEYS_MAX} signing keys whose tokens have not all expired; wait for that, or drop the old ones"
            );
            return Err(AccessError::Full(text));
        }
        let pem = new_key(&self.data)?;
        let kid = kid_of(&self.data.join(KEYS_DIRECTORY), &pem)?;
        write_secret(&key_path(&self.data, &kid), pem.as_bytes())?;
        self.pairs.insert(kid.clone(), Pair::read(&self.data, &kid)?);
        let made = kid.clone();
        self.change(move |index| {
            if drop_old {
                index.keys.clear();
                index.unnamed = None;
            }
            index.keys.insert(made.clone(), About { created_s: now_s, last_expiry_s: now_s });
            index.current = made;
        })?;
        self.remove_unlisted()?;
        Ok(kid)
    }

    /// Drops the keys of which no token can be good any more. Says whether there were any.
    pub(crate) fn prune(&mut self, now_s: u64) -> Result<bool, AccessError> {
        let over = |index: &Index, kid: &String, about: &About| {
            *kid != index.current && about.last_expiry_s + LEEWAY_S < now_s
        };
        if !self.index.keys.iter().any(|(kid, about)| over(&self.index, kid, about)) {
            return Ok(false);
        }
        self.change(|index| {
            let current = index.clone();
            index.keys.retain(|kid, about| !over(&current, kid, about));
            if index.unnamed.as_ref().is_some_and(|kid| !index.keys.contains_key(kid)) {
                index.unnamed = None;
            }
        })?;
        self.remove_unlisted()?;
        Ok(true)
    }

    /// Changes the index on the disk, then here: another process may have signed since it was read.
    fn change(&mut self, change: impl FnOnce(&mut Index)) -> Result<(), AccessError> {
        let _lock = store::lock(&self.data)?;
        let mut index = store::read::<Index>(&self.data)?.unwrap_or_else(|| self.index.clone());
        change(&mut index);
        store::write(&self.data, &index)?;
        self.index = index;
        Ok(())
    }

    /// Removes the files of keys that are no longer listed.
    fn remove_unlisted(&mut self) -> Result<(), AccessError> {
        let index = &self.index;
        let gone: Vec<String> = self.pairs.keys().filter(|kid| !index.keys.contains_key(*kid)).cloned().collect();
        for kid in gone {
            self.pairs.remove(&kid);
            remove_if_there(&key_path(&self.data, &kid))?;
        }
        Ok(())
    }
}

impl Pair {
    fn read(data: &Path, kid: &str) -> Result<Self, AccessError> {
        let path = key_path(data, kid);
        let pem = fs::read_to_string(&path).map_err(file_error("read", &path))?;
        if kid_of(&path, &pem)? != kid {
            return Err(damaged_key(&path, &"it holds another key than its name says"));
        }
        let public = rcgen::KeyPair::from_pem(&pem).map_err(|e| damaged_key(&path, &e))?.public_key_pem();
        Ok(Self {
            signing: EncodingKey::from_ed_pem(pem.as_bytes()).map_err(|e| damaged_key(&path, &e))?,
            checking: Arc::new(DecodingKey::from_ed_pem(public.as_bytes()).map_err(|e| damaged_key(&path, &e))?),
        })
    }
}

fn new_key(data: &Path) -> Result<String, AccessError> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519);
    Ok(key.map_err(|e| damaged_key(&data.join(KEYS_DIRECTORY), &e))?.serialize_pem())
}

/// A key is known by the first 16 hexadecimal digits of the SHA-256 of its public key (DER, `SubjectPublicKeyInfo`).
fn kid_of(path: &Path, pem: &str) -> Result<String, AccessError> {
    let key = rcgen::KeyPair::from_pem(pem).map_err(|error| damaged_key(path, &error))?;
    let hash = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
    Ok(hash.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn key_path(data: &Path, kid: &str) -> PathBuf {
    data.join(KEYS_DIRECTORY).join(format!("{kid}.pem"))
}

fn damaged_key(path: &Path, reason: &dyn std::fmt::Display) -> AccessError {
    AccessError::Damaged { path: path.to_owned(), reason: reason.to_string(), remedy: Index::REMEDY }
}

fn remove_if_there(path: &Path) -> Result<(), AccessError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::TempDir;

    const NOW: u64 = 1_000_000;

    fn claims(ttl_s: u64) -> Claims {
        let name = |text| Name::new(text).expect("valid");
        Claims { tenant: name("t"), user: name("u"), allow: Vec::new(), ttl: Duration::from_secs(ttl_s) }
    }

    #[test]
    fn old_keys_verify_until_their_last_token_expires() {
        let dir = TempDir::new();
        let mut ring = KeyRing::open(dir.path(), NOW).expect("made");
        let first = ring.current().to_owned();
        let minted = ring.mint(&claims(10_000), NOW).expect("signed");
        assert_eq!(minted.expires_s, NOW + 10_000);
        let second = ring.rotate(NOW + 10, false).expect("rotated");
        assert_ne!(first, second);
        let again = KeyRing::open(dir.path(), NOW + 10).expect("found");
        assert_eq!(again.current(), second);
        let found = |ring: &KeyRing, kid: &str, at| ring.public().find(Some(kid), at).is_some();
        let last = (NOW + 10_000).next_multiple_of(EXPIRY_STEP_S);
        for ring in [&ring, &again] {
            assert!(found(ring, &first, last) && found(ring, &second, last * 9));
            assert!(!found(ring, &first, last + LEEWAY_S + 1) && !found(ring, "0123", NOW));
            assert!(ring.public().find(None, NOW).is_none(), "no token of an earlier version is there");
        }
        assert!(!ring.prune(last).expect("nothing to do"));
        assert!(ring.prune(last + LEEWAY_S + 1).expect("dropped"));
        assert!(!ring.public().has(&first) && !key_path(dir.path(), &first).exists());
        ring.rotate(NOW, true).expect("rotated");
        assert!(!ring.public().has(&second), "dropped at once");
        assert_eq!(ring.list().count(), 1);
    }

    #[test]
    fn the_key_of_an_earlier_version_is_taken_over() {
        let dir = TempDir::new();
        let pem = new_key(dir.path()).expect("made");
        let old = dir.path().join(SIGNING_KEY_FILE);
        fs::write(&old, &pem).expect("written");
        let ring = KeyRing::open(dir.path(), NOW).expect("taken over");
        assert_eq!(ring.current(), kid_of(&old, &pem).expect("a key"));
        assert!(ring.public().find(None, NOW).is_some(), "its tokens name no key");
        let mut ring = KeyRing::open(dir.path(), NOW).expect("again");
        assert!(!old.exists(), "it is in one place");
        ring.rotate(NOW, false).expect("rotated");
        assert!(ring.public().find(None, NOW + TAKEN_OVER_TTL_S).is_some());
        assert!(ring.public().find(None, NOW + TAKEN_OVER_TTL_S + LEEWAY_S + 1).is_none());
    }

    #[test]
    fn two_processes_sign_with_the_same_keys() {
        let dir = TempDir::new();
        let mut node = KeyRing::open(dir.path(), NOW).expect("made");
        let mut tool = KeyRing::open(dir.path(), NOW).expect("found");
        tool.mint(&claims(100_000), NOW).expect("signed");
        node.mint(&claims(10), NOW).expect("signed");
        let first = node.current().to_owned();
        node.rotate(NOW, false).expect("rotated");
        let last_s = node.list().find(|(kid, ..)| *kid == first).expect("there").2;
        assert!(last_s >= NOW + 100_000, "what the other signed is known: {last_s}");
        let error = node.mint(&claims(TOKEN_TTL_S_MAX + 1), NOW).expect_err("too long").to_string();
        assert!(error.contains("ask for less"), "{error}");
    }

    #[test]
    fn damage_is_named() {
        let check = |damage: &dyn Fn(&Path, &str), says: &[&str]| {
            let dir = TempDir::new();
            let kid = KeyRing::open(dir.path(), NOW).expect("made").current().to_owned();
            damage(dir.path(), &kid);
            let Err(error) = KeyRing::open(dir.path(), NOW) else { panic!("opened, instead of {says:?}") };
            let text = error.to_string();
            assert!(says.iter().all(|says| text.contains(says)), "{text} lacks one of {says:?}");
        };
        let write = |path: PathBuf, text: &str| fs::write(path, text).expect("written");
        check(&|data, _| write(data.join(Index::PATH), "garbage"), &["keys.json is damaged", "backup", "no token"]);
        check(&|data, kid| write(key_path(data, kid), "garbage"), &[".pem is damaged", "backup"]);
        check(&|data, kid| write(key_path(data, kid), &new_key(data).expect("made")), &["another key"]);
        check(&|data, kid| fs::remove_file(key_path(data, kid)).expect("removed"), &["cannot read", ".pem"]);
        check(
            &|data, _| write(data.join(Index::PATH), "{\"version\":1,\"current\":\"x\",\"keys\":{}}"),
            &["the current key x is not listed"],
        );
    }
}
