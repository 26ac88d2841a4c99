//! What an operator says about who may come in: logins, and issuers of tokens other than the node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thalweg_domain::permission::Permission;
use thalweg_protocol::ids::Name;

use super::limits::{
    AUDIT_FILE_BYTES, AUDIT_FILES, CLAIM_NAME_BYTES_MAX, ISSUER_KEEP_S, ISSUER_LEEWAY_S, ISSUER_LEEWAY_S_MAX,
    ISSUERS_MAX, LOGIN_TOKEN_TTL_S, TOKEN_TTL_S_MAX, URL_BYTES_MAX,
};

/// The section `access` of a node's configuration. `Default` is what a node runs with that was told nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Whether users of the node may log in with a password.
    pub login: bool,
    /// How long a token is good that a login gives, in seconds: 60 s to 400 days.
    pub token_ttl_s: u64,
    /// Whose tokens are accepted beside the node's own.
    pub issuers: Vec<IssuerConfig>,
    /// Bytes of one file of the audit log.
    pub audit_file_bytes: u64,
    /// Files of the audit log that are kept, the newest included.
    pub audit_files: usize,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            login: true,
            token_ttl_s: LOGIN_TOKEN_TTL_S,
            issuers: Vec::new(),
            audit_file_bytes: AUDIT_FILE_BYTES,
            audit_files: AUDIT_FILES,
        }
    }
}

/// An external issuer of tokens: OpenID Connect, or anything that signs JWTs and publishes its keys (RFC 7517).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IssuerConfig {
    /// Its URL, exactly as its tokens' `iss` says. Plain http only for this machine.
    pub issuer: String,
    /// The token's `aud` must be or contain this.
    pub audience: String,
    /// The tenant of all its users. Either this or `tenant_claim`.
    pub tenant: Option<String>,
    /// The claim that names the tenant.
    pub tenant_claim: Option<String>,
    /// Patterns of the tenants that `tenant_claim` may name; needed with it.
    pub tenants: Vec<String>,
    /// The claim that names the user; by default `sub`.
    pub user_claim: Option<String>,
    /// Stands before every user name, to keep this issuer's users apart from others.
    pub user_prefix: String,
    /// Permissions of all its users, as `ACTION:PATTERN`.
    pub allow: Vec<String>,
    /// A claim that lists permissions (a list, or one text with spaces between). Its issuer then decides what its users may.
    pub allow_claim: Option<String>,
    /// A claim that lists roles; dots lead into objects (`realm_access.roles`).
    pub role_claim: Option<String>,
    /// What each role may.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Where its keys are; by default its discovery document says.
    pub jwks_url: Option<String>,
    /// A PEM file of authorities to trust for its HTTPS instead of the usual ones.
    pub ca: Option<PathBuf>,
    /// Known keys go on for so long while the issuer does not answer, in seconds; by default a day.
    pub keep_s: Option<u64>,
    /// How far its clock may be off, in seconds; by default 30.
    pub leeway_s: Option<u64>,
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("access.{field}: {what}")]
pub struct AccessConfigError {
    /// Which setting, such as `issuers[0].audience`.
    pub field: String,
    /// What is wrong with it, and what to write instead.
    pub what: String,
}

/// An issuer whose configuration was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Issuer {
    pub(crate) url: String,
    pub(crate) audience: String,
    pub(crate) tenant: TenantOf,
    pub(crate) user_claim: String,
    pub(crate) user_prefix: String,
    pub(crate) allow: Vec<Permission>,
    pub(crate) allow_claim: Option<String>,
    pub(crate) role_claim: Option<String>,
    pub(crate) roles: BTreeMap<String, Vec<Permission>>,
    pub(crate) jwks_url: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) keep_s: u64,
    pub(crate) leeway_s: u64,
}

/// How an issuer's users are shared out to tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TenantOf {
    Fixed(Name),
    Claim { claim: String, allowed: Vec<String> },
}

impl AccessConfig {
    /// Checks everything that can be checked without asking anybody.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn check(&self) -> Result<(), AccessConfigError> {
        self.checked_issuers().map(drop)
    }

    /// The issuers, checked.
    pub(crate) fn checked_issuers(&self) -> Result<Vec<Issuer>, AccessConfigError> {
        let range = |field: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(AccessConfigError { field: field.into(), what: format!("{value} is not in {least} to {most}") })
        };
        range("token_ttl_s", self.token_ttl_s, 60, TOKEN_TTL_S_MAX)?;
        range("audit_file_bytes", self.audit_file_bytes, 64 << 10, 1 << 30)?;
        range("audit_files", self.audit_files as u64, 1, 1_000)?;
        range("issuers", self.issuers.len() as u64, 0, ISSUERS_MAX as u64)?;
        let mut checked: Vec<Issuer> = Vec::new();
        for (at, issuer) in self.issuers.iter().enumerate() {
            let error =
                |(field, what): (&str, String)| AccessConfigError { field: format!("issuers[{at}].{field}"), what };
            let issuer = issuer.checked().map_err(error)?;
            if checked.iter().any(|other| other.url == issuer.url) {
                return Err(error(("issuer", format!("{} is there twice", issuer.url))));
            }
            checked.push(issuer);
        }
        Ok(checked)
    }
}

type Wrong = (&'static str, String);

impl IssuerConfig {
    fn checked(&self) -> Result<Issuer, Wrong> {
        check_url("issuer", &self.issuer)?;
        if let Some(url) = &self.jwks_url {
            check_url("jwks_url", url)?;
        }
        if self.audience.is_empty() {
            return Err(("audience", "it is missing; write what the issuer puts into `aud` for this node".into()));
        }
        let tenant = self.tenant_of()?;
        if self.role_claim.is_some() == self.roles.is_empty() {
            return Err(("roles", "role_claim and roles need each other".into()));
        }
        if self.allow.is_empty() && self.allow_claim.is_none() && self.role_claim.is_none() {
            return Err((
                "allow",
                "nothing would be allowed; write allow, allow_claim, or role_claim and roles".into(),
            ));
        }
        let claims = [
            ("user_claim", &self.user_claim),
            ("allow_claim", &self.allow_claim),
            ("role_claim", &self.role_claim),
            ("tenant_claim", &self.tenant_claim),
        ];
        for (field, claim) in claims {
            let wrong = |claim: &String| claim.is_empty() || claim.len() > CLAIM_NAME_BYTES_MAX;
            if claim.as_ref().is_some_and(wrong) {
                return Err((field, format!("name a claim in 1 to {CLAIM_NAME_BYTES_MAX} bytes")));
            }
        }
        let leeway_s = self.leeway_s.unwrap_or(ISSUER_LEEWAY_S);
        if leeway_s > ISSUER_LEEWAY_S_MAX {
            return Err((
                "leeway_s",
                format!("{leeway_s} is too much; mend the clocks, at most {ISSUER_LEEWAY_S_MAX}"),
            ));
        }
        let roles = self.roles.iter().map(|(role, allow)| Ok((role.clone(), permissions("roles", allow)?)));
        Ok(Issuer {
            url: self.issuer.clone(),
            audience: self.audience.clone(),
            tenant,
            user_claim: self.user_claim.clone().unwrap_or_else(|| "sub".into()),
            user_prefix: self.user_prefix.clone(),
            allow: permissions("allow", &self.allow)?,
            allow_claim: self.allow_claim.clone(),
            role_claim: self.role_claim.clone(),
            roles: roles.collect::<Result<_, Wrong>>()?,
            jwks_url: self.jwks_url.clone(),
            ca: self.ca.clone(),
            keep_s: self.keep_s.unwrap_or(ISSUER_KEEP_S),
            leeway_s,
        })
    }

    fn tenant_of(&self) -> Result<TenantOf, Wrong> {
        match (&self.tenant, &self.tenant_claim) {
            (Some(tenant), None) if self.tenants.is_empty() => {
                Name::new(tenant).map(TenantOf::Fixed).map_err(|error| ("tenant", format!("{tenant:?} {error}")))
            }
            (Some(_), None) => Err(("tenants", "it goes with tenant_claim; with tenant, leave it out".into())),
            (None, Some(claim)) if !self.tenants.is_empty() => {
                Ok(TenantOf::Claim { claim: claim.clone(), allowed: self.tenants.clone() })
            }
            (None, Some(_)) => {
                Err(("tenants", "say which tenants the claim may name, as patterns such as \"acme-*\"".into()))
            }
            _ => Err(("tenant", "write either tenant, or tenant_claim and tenants".into())),
        }
    }
}

fn permissions(field: &'static str, texts: &[String]) -> Result<Vec<Permission>, Wrong> {
    texts.iter().map(|text| text.parse().map_err(|error| (field, format!("{error}")))).collect()
}

/// Whether keys may be asked for at `url`: over HTTPS, or plainly from this machine.
pub(crate) fn check_url(field: &'static str, url: &str) -> Result<(), Wrong> {
    if url.len() > URL_BYTES_MAX || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err((field, format!("{:?} is not a URL of at most {URL_BYTES_MAX} bytes", head(url))));
    }
    if url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) {
        return Ok(());
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return Err((field, format!("{:?} does not begin with https://", head(url))));
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // Whoever stands before an @ is not the host.
    let host = if authority.contains('@') { "" } else { host_of(authority) };
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if local {
        Ok(())
    } else {
        Err((field, format!("{:?}: plain http is for this machine only; use https://", head(url))))
    }
}

fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn head(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> IssuerConfig {
        IssuerConfig {
            issuer: "https://id.example.com/realms/one".into(),
            audience: "thalweg".into(),
            tenant: Some("acme".into()),
            allow: vec!["read:*".into()],
            ..IssuerConfig::default()
        }
    }

    #[test]
    fn issuers_are_checked() {
        let check = |change: &dyn Fn(&mut IssuerConfig), says: Option<&str>| {
            let mut issuer = good();
            change(&mut issuer);
            let config = AccessConfig { issuers: vec![issuer], ..AccessConfig::default() };
            match (config.check(), says) {
                (Ok(()), None) => {}
                (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{error} lacks {says:?}"),
                (got, says) => panic!("{got:?} instead of {says:?}"),
            }
        };
        check(&|_| {}, None);
        check(&|i| i.issuer = "http://127.0.0.1:9/x".into(), None);
        check(&|i| i.issuer = "http://[::1]:9/x".into(), None);
        check(&|i| i.issuer = "http://localhost".into(), None);
        check(&|i| i.issuer = "http://localhost.example.com".into(), Some("issuers[0].issuer"));
        check(&|i| i.issuer = "http://localhost@example.com".into(), Some("this machine only"));
        check(&|i| i.issuer = "ftp://x".into(), Some("https://"));
        check(&|i| i.issuer = "https:///x".into(), Some("https://"));
        check(&|i| i.jwks_url = Some("http://10.0.0.1/keys".into()), Some("jwks_url"));
        check(&|i| i.audience.clear(), Some("issuers[0].audience: it is missing"));
        check(&|i| i.tenant = None, Some("either tenant"));
        check(&|i| i.tenant = Some("a b".into()), Some("issuers[0].tenant"));
        check(&|i| (i.tenant, i.tenant_claim) = (None, Some("org".into())), Some("tenants"));
        check(&|i| i.tenants = vec!["*".into()], Some("tenants"));
        check(&|i| i.allow.clear(), Some("nothing would be allowed"));
        check(&|i| i.allow = vec!["fly:*".into()], Some("\"fly:*\" is not a permission"));
        check(&|i| i.role_claim = Some("roles".into()), Some("need each other"));
        check(&|i| i.leeway_s = Some(1_000_000), Some("leeway_s"));
        check(&|i| i.user_claim = Some(String::new()), Some("user_claim"));
    }

    #[test]
    fn an_issuer_is_there_once() {
        let config = AccessConfig { issuers: vec![good(), good()], ..AccessConfig::default() };
        assert!(config.check().expect_err("twice").to_string().contains("issuers[1].issuer"));
        let config = AccessConfig { token_ttl_s: 1, ..AccessConfig::default() };
        assert!(config.check().expect_err("too short").to_string().contains("access.token_ttl_s: 1 is not in 60"));
    }
}
