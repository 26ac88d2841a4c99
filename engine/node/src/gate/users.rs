//! Users with passwords, for installations without an issuer of their own.

use std::collections::BTreeMap;
use std::path::Path;

use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use thalweg_domain::permission::Permission;
use thalweg_protocol::ids::Name;

use super::limits::{ARGON2_KIB, ARGON2_LANES, ARGON2_PASSES, USERS_MAX, USERS_PER_TENANT_MAX};
use super::store::{self, AccessError, Stored};

/// A user, with the hash of the password (PHC string, argon2id).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) allow: Vec<Permission>,
    pub(crate) created_s: u64,
    pub(crate) changed_s: u64,
    pub(crate) password: String,
}

/// All users of a node, by tenant and name.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Users(BTreeMap<(Name, Name), User>);

impl Users {
    /// Reads those of a data directory.
    pub(crate) fn read(data: &Path) -> Result<Self, AccessError> {
        let Some(file) = store::read::<File>(data)? else { return Ok(Self::default()) };
        let user = |entry: Entry| {
            let (tenant, user) = (entry.tenant.clone(), entry.user.clone());
            entry
                .parse()
                .map_err(|reason| store::damaged::<File>(data, format!("user {user:?} of {tenant:?}: {reason}")))
        };
        Ok(Self(file.users.into_iter().map(user).collect::<Result<_, _>>()?))
    }

    /// Writes them: when this returns they are on the disk.
    pub(crate) fn write(&self, data: &Path) -> Result<(), AccessError> {
        let entry = |((tenant, user), about): (&(Name, Name), &User)| Entry {
            tenant: tenant.to_string(),
            user: user.to_string(),
            allow: about.allow.iter().map(Permission::to_string).collect(),
            created_s: about.created_s,
            changed_s: about.changed_s,
            password: about.password.clone(),
        };
        store::write(data, &File { users: self.0.iter().map(entry).collect() })
    }

    pub(crate) fn get(&self, tenant: &Name, user: &Name) -> Option<&User> {
        self.0.get(&(tenant.clone(), user.clone()))
    }

    /// Adds a user, or changes one.
    pub(crate) fn put(&mut self, tenant: Name, user: Name, about: User) -> Result<(), AccessError> {
        let key = (tenant, user);
        if !self.0.contains_key(&key) {
            let of = self.of(&key.0).count();
            if of >= USERS_PER_TENANT_MAX || self.0.len() >= USERS_MAX {
                let (count, whose) = if of >= USERS_PER_TENANT_MAX { (of, "tenant") } else { (self.0.len(), "node") };
                let text = format!(
                    "the {whose} has {count} users with passwords, as many as it may; connect an issuer (access.issuers)"
                );
                return Err(AccessError::Full(text));
            }
        }
        self.0.insert(key, about);
        Ok(())
    }

    pub(crate) fn remove(&mut self, tenant: &Name, user: &Name) -> Option<User> {
        self.0.remove(&(tenant.clone(), user.clone()))
    }

    /// The users of a tenant.
    pub(crate) fn of<'a>(&'a self, tenant: &'a Name) -> impl Iterator<Item = (&'a Name, &'a User)> {
        self.0.iter().filter(move |((of, _), _)| of == tenant).map(|((_, user), about)| (user, about))
    }
}

fn hasher() -> Argon2<'static> {
    let params = Params::new(ARGON2_KIB, ARGON2_PASSES, ARGON2_LANES, None).expect("the parameters are within bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// Hashes a password, which takes long on purpose.
pub(crate) fn hash(password: &str) -> Result<String, argon2::password_hash::Error> {
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>())?;
    Ok(hasher().hash_password(password.as_bytes(), &salt)?.to_string())
}

/// Whether a password is the one of a hash, with the parameters that the hash names. Takes as long for a wrong one.
pub(crate) fn verify(password: &str, hash: &str) -> bool {
    let parsed = PasswordHash::new(hash);
    parsed.is_ok_and(|parsed| hasher().verify_password(password.as_bytes(), &parsed).is_ok())
}

/// `access/users.json`.
#[derive(Serialize, Deserialize)]
struct File {
    users: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    tenant: String,
    user: String,
    allow: Vec<String>,
    created_s: u64,
    changed_s: u64,
    password: String,
}

impl Entry {
    fn parse(self) -> Result<((Name, Name), User), String> {
        let name = |text: &str| Name::new(text).map_err(|error| format!("the name {error}"));
        let parsed = PasswordHash::new(&self.password).map_err(|error| format!("the password's hash: {error}"))?;
        if parsed.algorithm.as_str() != "argon2id" {
            return Err(format!("the password's hash is {}, not argon2id", parsed.algorithm));
        }
        let allow = self.allow.iter().map(|text| text.parse().map_err(|error| format!("{error}")));
        let allow = allow.collect::<Result<_, String>>()?;
        let key = (name(&self.tenant)?, name(&self.user)?);
        Ok((key, User { allow, created_s: self.created_s, changed_s: self.changed_s, password: self.password }))
    }
}

impl Stored for File {
    const PATH: &'static str = "access/users.json";
    const REMEDY: &'static str = "or remove it: then nobody can log in with a password until users are added again";
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::tests::TempDir;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    #[test]
    fn passwords_are_hashed_and_kept() {
        let dir = TempDir::new();
        store::make_directories(dir.path()).expect("made");
        let password = hash("correct horse").expect("hashed");
        assert!(password.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{password}");
        assert!(verify("correct horse", &password));
        assert!(!verify("correct horse ", &password) && !verify("", &password) && !verify("x", "garbage"));
        assert_ne!(hash("correct horse").expect("hashed"), password, "each has its salt");
        let mut users = Users::default();
        let user = User { allow: vec!["read:*".parse().expect("valid")], created_s: 1, changed_s: 2, password };
        users.put(name("a"), name("ada"), user.clone()).expect("room");
        users.put(name("b"), name("ada"), user).expect("room");
        users.write(dir.path()).expect("written");
        let mut read = Users::read(dir.path()).expect("there");
        assert!(read == users && read.of(&name("a")).count() == 1);
        assert!(read.remove(&name("a"), &name("ada")).is_some() && read.get(&name("a"), &name("ada")).is_none());
        assert!(read.get(&name("b"), &name("ada")).is_some(), "the other tenant's stays");
        let path = dir.path().join(File::PATH);
        let good = fs::read_to_string(&path).expect("there");
        for (from, to, says) in [
            ("argon2id", "argon2i", "not argon2id"),
            ("$argon2id", "", "the password's hash"),
            ("\"user\": \"ada\"", "\"user\": \"\"", "the name"),
            ("read:*", "fly", "is not a permission"),
        ] {
            fs::write(&path, good.replace(from, to)).expect("written");
            let Err(error) = Users::read(dir.path()) else { panic!("read, instead of {says:?}") };
            let text = error.to_string();
            assert!(text.contains(says) && text.contains("users.json"), "{text} lacks {says:?}");
        }
    }
}
