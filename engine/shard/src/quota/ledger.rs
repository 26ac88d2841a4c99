//! What is limited, whose it is, and what is left of it.

use std::collections::BTreeMap;
use std::fmt;

use thalweg_domain::quota::{Allowance, Bucket, Rate, TenantLimits};
use thalweg_protocol::ids::{CoreId, Name};
use thalweg_protocol::limits::USAGES_MAX;

use crate::contract::Link;

/// What there are limits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Messages written, with edits, reactions and changes of channels.
    Messages,
    /// Bytes of what is written.
    Bytes,
    /// Tokens of generations.
    Tokens,
    /// Connections at a time.
    Connections,
    /// Channels at a time.
    Channels,
}

impl Resource {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Messages, Self::Bytes, Self::Tokens, Self::Connections, Self::Channels];

    /// What a write takes.
    pub(super) const OF_WRITES: &[Self] = &[Self::Messages, Self::Bytes];
    /// What a question to a model takes.
    pub(super) const OF_QUESTIONS: &[Self] = &[Self::Tokens];
    /// What is done at a rate.
    pub(super) const RATES: [Self; 3] = [Self::Messages, Self::Bytes, Self::Tokens];

    /// The resource as a word, for metrics and the audit trail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Bytes => "bytes",
            Self::Tokens => "tokens",
            Self::Connections => "connections",
            Self::Channels => "channels",
        }
    }
}

/// Whose allowance it is, over all cores: a tenant's, or one of its users'.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub(super) tenant: Name,
    pub(super) user: Option<Name>,
}

impl Holder {
    pub(super) fn allowance<'a>(&self, limits: &'a TenantLimits) -> &'a Allowance {
        if self.user.is_some() { &limits.user } else { &limits.tenant }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "the user {user}"),
            None => write!(f, "the tenant {}", self.tenant),
        }
    }
}

/// A user and their tenant, whose allowances everything counts towards.
pub(super) fn holders(tenant: &Name, user: &Name) -> [Holder; 2] {
    [Some(user.clone()), None].map(|user| Holder { tenant: tenant.clone(), user })
}

/// What was done; below zero, what turned out not to have been.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    pub(super) messages: i64,
    pub(super) bytes: i64,
    pub(super) tokens: i64,
}

impl Spent {
    pub(super) fn write(bytes: usize) -> Self {
        Self { messages: 1, bytes: bytes as i64, tokens: 0 }
    }

    pub(super) fn tokens(tokens: i64) -> Self {
        Self { tokens, ..Self::default() }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.tokens += other.tokens;
    }

    /// So much of a resource, in the unit of its [`rate`].
    fn of(self, resource: Resource) -> i64 {
        match resource {
            Resource::Messages => self.messages,
            Resource::Bytes => self.bytes,
            Resource::Tokens => self.tokens.saturating_mul(60),
            Resource::Connections | Resource::Channels => 0,
        }
    }
}

/// The rate at which a resource may be used. Tokens are counted in sixtieths: so many a minute are as many sixtieths a
/// second.
pub(super) fn rate(allowance: &Allowance, resource: Resource) -> Option<Rate> {
    match resource {
        Resource::Messages => allowance.messages,
        Resource::Bytes => allowance.bytes,
        Resource::Tokens => {
            allowance.tokens_per_minute.map(|tokens| Rate { per_second: tokens, burst: tokens.saturating_mul(60) })
        }
        Resource::Connections | Resource::Channels => None,
    }
}

/// What is left to somebody.
#[derive(Debug, Default)]
pub(crate) struct Purse {
    messages: Bucket,
    bytes: Bucket,
    tokens: Bucket,
}

impl Purse {
    fn bucket(&mut self, resource: Resource) -> Option<&mut Bucket> {
        match resource {
            Resource::Messages => Some(&mut self.messages),
            Resource::Bytes => Some(&mut self.bytes),
            Resource::Tokens => Some(&mut self.tokens),
            Resource::Connections | Resource::Channels => None,
        }
    }

    /// The first of some resources of which nothing is left, and for how many milliseconds.
    pub(super) fn lacks(&mut self, allowance: &Allowance, of: &[Resource], now_us: u64) -> Option<(Resource, u32)> {
        of.iter().find_map(|&resource| {
            let rate = rate(allowance, resource)?;
            let wait_ms = self.bucket(resource)?.check(rate, now_us).err()?;
            Some((resource, wait_ms))
        })
    }

    pub(super) fn charge(&mut self, allowance: &Allowance, spent: Spent, now_us: u64) {
        for resource in Resource::RATES {
            let Some((rate, bucket)) = rate(allowance, resource).zip(self.bucket(resource)) else { continue };
            match spent.of(resource) {
                0 => {}
                count @ 1.. => bucket.charge(rate, count.unsigned_abs(), now_us),
                count => bucket.give_back(rate, count.unsigned_abs(), now_us),
            }
        }
    }
}

/// What somebody did and has, as their counter knows it.
#[derive(Default)]
pub(super) struct Usage {
    pub(super) purse: Purse,
    pub(super) connections: u32,
    pub(super) channels: i64,
    /// Whether other cores know that no channel more may be made.
    pub(super) told_full: bool,
    /// When other cores were last told to refuse them something.
    pub(super) told_us: Option<u64>,
    /// The other cores where they did something, and when those last said so.
    pub(super) reporters: Vec<(CoreId, u64)>,
    /// Which use of all this was the last.
    used: u64,
}

/// What this core counts, and what it was told of others.
#[derive(Default)]
pub(crate) struct Quotas {
    /// Those whose counter this core is.
    pub(super) usages: BTreeMap<Holder, Usage>,
    /// The same by when they were last used, to find the one to forget.
    by_use: BTreeMap<u64, Holder>,
    uses: u64,
    /// What users did of whom another core is the counter, until that is told.
    pub(super) unreported: BTreeMap<(Name, Name), Spent>,
    /// Tokens that sessions of other cores were given, until those are told.
    pub(super) unreported_tokens: BTreeMap<(CoreId, Link), i64>,
    pub(super) report_at: Option<u64>,
    /// Whom to refuse what, and until when, as their counters say.
    pub(super) refused: BTreeMap<(Holder, Resource), u64>,
    /// Until when a refusal is not noted in the audit trail again.
    pub(super) audited: BTreeMap<(Holder, Resource), u64>,
}

impl Quotas {
    /// How many users and tenants this core counts.
    pub(crate) fn len(&self) -> usize {
        self.usages.len()
    }

    pub(super) fn usage(&mut self, holder: &Holder) -> &mut Usage {
        self.uses += 1;
        if !self.usages.contains_key(holder) {
            self.forget();
        }
        let usage = self.usages.entry(holder.clone()).or_default();
        self.by_use.remove(&usage.used);
        usage.used = self.uses;
        self.by_use.insert(usage.used, holder.clone());
        usage
    }

    /// Makes room by forgetting who used least recently. Those who have something are not forgotten, and their number is
    /// bounded by what they have.
    fn forget(&mut self) {
        for _ in 0..8 {
            if self.usages.len() < USAGES_MAX {
                return;
            }
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            let Some(usage) = self.usages.get_mut(&oldest) else { continue };
            if usage.connections == 0 && usage.channels == 0 {
                self.usages.remove(&oldest);
            } else {
                usage.used = self.uses;
                self.by_use.insert(self.uses, oldest);
                self.uses += 1;
            }
        }
    }
}
