//! How much sessions, users and tenants may do in a time, and how much they may have.
//!
//! What a session does is counted where the session is. What users and tenants do over all cores is counted by one core for
//! each tenant, its *counter*. On the counter itself limits hold exactly. Other cores tell it, each [`REPORT_US`], what was
//! done there, and are told who is to be refused and for how long; so a limit can be passed by what one such time lets
//! through, and who passed it waits the longer for it. Connections and channels are told of one by one.
//!
//! A write is refused before anything becomes of it. One that is repeated may have been carried out, which only the owner
//! of its channel knows: it goes there with the refusal that it gets if it turns out to be new. If it had been carried out,
//! what it cost is given back.

mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_domain::quota::{Allowance, Limits, Rate, TenantLimits};
use thalweg_protocol::ids::{ChannelKey, CoreId, Name, Request};
use thalweg_protocol::limits::USAGES_MAX;
use thalweg_protocol::op::{Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Link, Output, OwnerMessage, PeerMessage, SessionMessage};
use crate::shard::{Deadline, Shard};

use ledger::{holders, rate};

pub use ledger::{Holder, Resource, Spent};
pub(crate) use ledger::{Purse, Quotas};

/// What was done on a core is told to the counters of its tenants after this long.
const REPORT_US: u64 = 50_000;
/// A core that reported nothing of somebody for this long is not told any more that they are refused.
const REPORTER_US: u64 = 60_000_000;
/// A refusal of the same to the same is noted in the audit trail at most this often.
const AUDIT_US: u64 = 60_000_000;
/// Refusals whose note in the audit trail is remembered; while there are more, none is noted twice, or at all.
const AUDITED_MAX: usize = 4_096;
/// Where the counter of a tenant is: no name of a channel, a session or a user reads like this.
const COUNTER_AFFINITY: &str = "quota of tenant";
/// How long somebody is refused who has as much as they may have: until something else is said.
const UNTIL_TOLD: u32 = u32::MAX;

/// What becomes of a repeated write once its owner has answered.
#[derive(Debug)]
pub(crate) enum Retry {
    /// It was charged for, and so many bytes; that is given back if it had been carried out before.
    Charged(usize),
    /// If it is new, it is refused.
    Refused(Holder, Resource),
}

/// Why somebody may not do something now.
pub(crate) struct Refusal {
    holder: Holder,
    resource: Resource,
    pub(crate) reject: Reject,
}

fn limits_rates(limits: &TenantLimits) -> bool {
    [&limits.session, &limits.user, &limits.tenant].iter().any(|allowance| allows_at_a_rate(allowance))
}

fn allows_at_a_rate(allowance: &Allowance) -> bool {
    Resource::RATES.iter().any(|&resource| rate(allowance, resource).is_some())
}

fn too_fast(who: &str, allowance: &Allowance, resource: Resource, wait_ms: u32) -> Reject {
    let most = match (resource, rate(allowance, resource)) {
        (Resource::Tokens, _) => format!("{} tokens a minute", allowance.tokens_per_minute.unwrap_or(0)),
        (_, Some(Rate { per_second, burst })) => {
            format!("{per_second} {} a second, {burst} at once", resource.as_str())
        }
        (_, None) => format!("few {}", resource.as_str()),
    };
    let text = format!("{who} may use {most}; come back after the delay");
    Reject::new(RejectCode::RateLimited, text).retry_after_ms(wait_ms)
}

fn too_many(holder: &Holder, most: u32, resource: Resource) -> Reject {
    let text = format!("{holder} has {most} {}, which is all it may have; give one up first", resource.as_str());
    Reject::new(RejectCode::QuotaExceeded, text)
}

impl Shard {
    /// The core that counts what a tenant and its users do.
    fn counter_of(&self, tenant: &Name) -> CoreId {
        self.config.core_of(self.partition(tenant, COUNTER_AFFINITY))
    }

    fn is_counter_of(&self, tenant: &Name) -> bool {
        self.counter_of(tenant) == self.config.core
    }

    /// Takes a write out of what a session, its user and its tenant may do.
    ///
    /// # Errors
    /// If one of them has nothing left; then nothing is taken.
    pub(crate) fn spend_write(&mut self, link: Link, principal: &Arc<Principal>, bytes: usize) -> Result<(), Reject> {
        self.try_spend_write(link, principal, bytes).map_err(|refusal| self.refused(principal, refusal))
    }

    fn try_spend_write(&mut self, link: Link, principal: &Principal, bytes: usize) -> Result<(), Refusal> {
        let limits = *self.limits.of(&principal.tenant);
        if limits_rates(&limits) {
            self.check_left(link, principal, &limits, Resource::OF_WRITES)?;
            self.charge(link, principal, &limits, Spent::write(bytes));
        }
        Ok(())
    }

    /// Takes a message out of what may be done. A repeated one that may not is not refused here; gives the refusal for its
    /// owner, if it turns out to be new.
    ///
    /// # Errors
    /// If nothing is left.
    pub(crate) fn spend_publish(
        &mut self,
        link: Link,
        request: Request,
        principal: &Arc<Principal>,
        publish: &Publish,
    ) -> Result<Option<Box<Reject>>, Reject> {
        let bytes = publish.body.len();
        let (retry, limited) = match self.try_spend_write(link, principal, bytes) {
            Ok(()) => (Retry::Charged(bytes), None),
            Err(refusal) if publish.retry => {
                (Retry::Refused(refusal.holder, refusal.resource), Some(Box::new(refusal.reject)))
            }
            Err(refusal) => return Err(self.refused(principal, refusal)),
        };
        if publish.retry
            && let Some(session) = self.sessions.get_mut(link)
        {
            session.retries.insert(request, retry);
        }
        Ok(limited)
    }

    /// The owner answered a repeated write.
    pub(crate) fn retry_answered(&mut self, link: Link, request: Request, op: &ServerOp) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let Some(retry) = session.retries.remove(&request) else { return };
        let principal = Arc::clone(&session.principal);
        match (retry, op) {
            (Retry::Charged(bytes), ServerOp::Published { duplicate: true, .. }) => {
                let limits = *self.limits.of(&principal.tenant);
                let Spent { messages, bytes, tokens } = Spent::write(bytes);
                self.charge(link, &principal, &limits, Spent { messages: -messages, bytes: -bytes, tokens });
            }
            (Retry::Refused(holder, resource), ServerOp::Reject(reject)) => {
                self.note_refusal(&principal, holder, resource, reject.code);
            }
            _ => {}
        }
    }

    /// Checks that a session, its user and its tenant have something left for a question to a model; what is paid for are
    /// the tokens of the answer.
    ///
    /// # Errors
    /// If one of them has nothing left.
    pub(crate) fn may_ask_more(&mut self, link: Link, principal: &Arc<Principal>) -> Result<(), Reject> {
        let limits = *self.limits.of(&principal.tenant);
        if !limits_rates(&limits) {
            return Ok(());
        }
        let left = self.check_left(link, principal, &limits, Resource::OF_QUESTIONS);
        left.map_err(|refusal| self.refused(principal, refusal))
    }

    /// Whether a user who speaks to a model in a channel gets an answer.
    pub(crate) fn has_tokens_left(&mut self, tenant: &Name, user: &Name) -> bool {
        let limits = *self.limits.of(tenant);
        let lacks = self.holders_lack(tenant, user, &limits, Resource::OF_QUESTIONS);
        self.counters.limited[Resource::Tokens as usize] += u64::from(lacks.is_some());
        lacks.is_none()
    }

    fn check_left(
        &mut self,
        link: Link,
        principal: &Principal,
        limits: &TenantLimits,
        of: &[Resource],
    ) -> Result<(), Refusal> {
        let now_us = self.now.mono_us;
        let purse = self.sessions.get_mut(link).map(|session| &mut session.purse);
        if let Some((resource, wait_ms)) = purse.and_then(|purse| purse.lacks(&limits.session, of, now_us)) {
            let [holder, _] = holders(&principal.tenant, &principal.user);
            let reject = too_fast("a session", &limits.session, resource, wait_ms);
            return Err(Refusal { holder, resource, reject });
        }
        match self.holders_lack(&principal.tenant, &principal.user, limits, of) {
            Some((holder, resource, wait_ms)) => {
                let reject = too_fast(&holder.to_string(), holder.allowance(limits), resource, wait_ms);
                Err(Refusal { holder, resource, reject })
            }
            None => Ok(()),
        }
    }

    /// The first of a user and their tenant who has nothing left of some resource, and for how many milliseconds.
    fn holders_lack(
        &mut self,
        tenant: &Name,
        user: &Name,
        limits: &TenantLimits,
        of: &[Resource],
    ) -> Option<(Holder, Resource, u32)> {
        let now_us = self.now.mono_us;
        let counts = self.is_counter_of(tenant);
        for holder in holders(tenant, user) {
            let allowance = holder.allowance(limits);
            let mut limited = of.iter().filter(|&&resource| rate(allowance, resource).is_some()).peekable();
            if limited.peek().is_none() {
                continue;
            }
            let lacks = if counts {
                self.quotas.usage(&holder).purse.lacks(allowance, of, now_us)
            } else {
                limited.find_map(|&resource| {
                    let until_us = *self.quotas.refused.get(&(holder.clone(), resource))?;
                    let wait_us = until_us.checked_sub(now_us).filter(|wait_us| *wait_us > 0)?;
                    Some((resource, u32::try_from(wait_us.div_ceil(1_000)).unwrap_or(u32::MAX)))
                })
            };
            if let Some((resource, wait_ms)) = lacks {
                return Some((holder, resource, wait_ms));
            }
        }
        None
    }

    fn charge(&mut self, link: Link, principal: &Principal, limits: &TenantLimits, spent: Spent) {
        let now_us = self.now.mono_us;
        if let Some(session) = self.sessions.get_mut(link) {
            session.purse.charge(&limits.session, spent, now_us);
        }
        self.charge_holders(&principal.tenant, &principal.user, limits, spent);
    }

    fn charge_holders(&mut self, tenant: &Name, user: &Name, limits: &TenantLimits, spent: Spent) {
        if !allows_at_a_rate(&limits.user) && !allows_at_a_rate(&limits.tenant) {
            return;
        }
        if self.is_counter_of(tenant) {
            self.count(None, tenant, user, spent);
        } else {
            self.quotas.unreported.entry((tenant.clone(), user.clone())).or_default().add(spent);
            self.report_soon();
        }
    }

    /// A model said something to somebody: who asked pays for it.
    pub(crate) fn spend_tokens(&mut self, tenant: &Name, user: &Name, asker: Option<(CoreId, Link)>, tokens: u32) {
        let limits = *self.limits.of(tenant);
        let tokens = i64::from(tokens);
        self.charge_holders(tenant, user, &limits, Spent::tokens(tokens));
        if let Some((core, link)) = asker.filter(|_| limits.session.tokens_per_minute.is_some()) {
            if core == self.config.core {
                self.session_spent(link, tokens);
            } else {
                *self.quotas.unreported_tokens.entry((core, link)).or_default() += tokens;
                self.report_soon();
            }
        }
    }

    /// A session was given tokens.
    pub(crate) fn session_spent(&mut self, link: Link, tokens: i64) {
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get_mut(link) else { return };
        let allowance = self.limits.of(&session.principal.tenant).session;
        session.purse.charge(&allowance, Spent::tokens(tokens), now_us);
    }

    /// Counts what a user of a tenant did, on this core or on another, and says who is to be refused for it.
    pub(crate) fn count(&mut self, reporter: Option<CoreId>, tenant: &Name, user: &Name, spent: Spent) {
        let now_us = self.now.mono_us;
        let limits = *self.limits.of(tenant);
        for holder in holders(tenant, user) {
            let allowance = *holder.allowance(&limits);
            if !allows_at_a_rate(&allowance) {
                continue;
            }
            let usage = self.quotas.usage(&holder);
            usage.purse.charge(&allowance, spent, now_us);
            if let Some(core) = reporter {
                usage.reporters.retain(|(other, at)| *other != core && at + REPORTER_US > now_us);
                usage.reporters.push((core, now_us));
            }
            if usage.told_us.is_some_and(|at| now_us < at + REPORT_US) {
                continue;
            }
            let mut told = Vec::new();
            for resource in Resource::RATES {
                let Some((_, wait_ms)) = usage.purse.lacks(&allowance, &[resource], now_us) else { continue };
                if resource == Resource::Tokens {
                    // A session asks on one core, and its answer is made on another.
                    told.extend((0..self.config.cores).map(|core| (CoreId(core), resource, wait_ms)));
                } else {
                    told.extend(usage.reporters.iter().map(|(core, _)| (*core, resource, wait_ms)));
                }
            }
            usage.told_us = (!told.is_empty()).then_some(now_us);
            let here = self.config.core;
            for (core, resource, for_ms) in told.into_iter().filter(|(core, ..)| *core != here) {
                self.tell_session(core, SessionMessage::Refuse { holder: holder.clone(), resource, for_ms });
            }
        }
    }

    /// A counter says that somebody is to be refused something for a time; 0: not any more.
    pub(crate) fn refuse_for(&mut self, holder: Holder, resource: Resource, for_ms: u32) {
        let now_us = self.now.mono_us;
        let until_us = match for_ms {
            UNTIL_TOLD => u64::MAX,
            for_ms => now_us + u64::from(for_ms) * 1_000,
        };
        if for_ms == 0 {
            self.quotas.refused.remove(&(holder, resource));
            return;
        }
        if self.quotas.refused.len() >= USAGES_MAX {
            self.quotas.refused.retain(|_, until_us| *until_us > now_us);
        }
        self.quotas.refused.insert((holder, resource), until_us);
    }

    fn report_soon(&mut self) {
        if self.quotas.report_at.is_none() {
            let at = self.now.mono_us + REPORT_US;
            self.quotas.report_at = Some(at);
            self.deadlines.insert((at, Deadline::Report));
        }
    }

    /// Tells others what was done here.
    pub(crate) fn report(&mut self) {
        self.quotas.report_at = None;
        let core = self.config.core;
        let mut reports: BTreeMap<CoreId, Vec<(Name, Name, Spent)>> = BTreeMap::new();
        for ((tenant, user), spent) in std::mem::take(&mut self.quotas.unreported) {
            reports.entry(self.counter_of(&tenant)).or_default().push((tenant, user, spent));
        }
        for (to, spent) in reports {
            self.tell(to, PeerMessage::ToOwner(OwnerMessage::Spent { core, spent }));
        }
        for ((to, link), tokens) in std::mem::take(&mut self.quotas.unreported_tokens) {
            self.tell_session(to, SessionMessage::TokensSpent { link, tokens });
        }
    }

    /// Tells the counter of a tenant that a connection of it was opened here, or closed.
    pub(crate) fn report_connection(&mut self, link: Link, principal: &Principal, open: bool) {
        let (core, to) = (self.config.core, self.counter_of(&principal.tenant));
        let (tenant, user) = (principal.tenant.clone(), principal.user.clone());
        self.tell(to, PeerMessage::ToOwner(OwnerMessage::Connection { core, link, tenant, user, open }));
    }

    /// Counts a connection. If there are too many, the newest has to go.
    pub(crate) fn count_connection(&mut self, core: CoreId, link: Link, tenant: &Name, user: &Name, open: bool) {
        let limits = *self.limits.of(tenant);
        let mut refusal = None;
        for holder in holders(tenant, user) {
            let most = holder.allowance(&limits).connections;
            let usage = self.quotas.usage(&holder);
            if open {
                usage.connections += 1;
            } else {
                usage.connections = usage.connections.saturating_sub(1);
            }
            if let Some(most) = most.filter(|most| open && usage.connections > *most) {
                let reject = too_many(&holder, most, Resource::Connections);
                refusal.get_or_insert((holder, reject));
            }
        }
        if let Some((holder, reject)) = refusal {
            self.tell_session(core, SessionMessage::TooMany { link, holder, reject });
        }
    }

    /// A session is one too many.
    pub(crate) fn too_many_connections(&mut self, link: Link, holder: Holder, reject: Reject) {
        let Some(session) = self.sessions.get(link) else { return };
        let principal = Arc::clone(&session.principal);
        let reject = self.refused(&principal, Refusal { holder, resource: Resource::Connections, reject });
        self.counters.rejects[reject.code as usize] += 1;
        self.output(Output::Close { link, reject });
        self.close(link);
    }

    /// Checks that a tenant may have one channel more.
    ///
    /// # Errors
    /// `quota_exceeded`.
    pub(crate) fn may_have_channel(&mut self, principal: &Arc<Principal>, channel: &ChannelKey) -> Result<(), Reject> {
        let Some(most) = self.limits.of(&channel.tenant).tenant.channels else { return Ok(()) };
        let holder = Holder { tenant: channel.tenant.clone(), user: None };
        let resource = Resource::Channels;
        let full = if self.is_counter_of(&channel.tenant) {
            self.quotas.usage(&holder).channels >= i64::from(most)
        } else {
            self.quotas.refused.contains_key(&(holder.clone(), resource))
        };
        if full {
            let reject = too_many(&holder, most, resource);
            return Err(self.refused(principal, Refusal { holder, resource, reject }));
        }
        Ok(())
    }

    /// A tenant has so many channels more on this core, or fewer.
    pub(crate) fn report_channels(&mut self, tenant: &Name, change: i64) {
        let (to, tenant) = (self.counter_of(tenant), tenant.clone());
        if to == self.config.core {
            // At once: what is made next must find it counted.
            return self.count_channels(&tenant, change);
        }
        self.tell(to, PeerMessage::ToOwner(OwnerMessage::ChannelsCounted { tenant, change }));
    }

    /// Counts channels of a tenant.
    pub(crate) fn count_channels(&mut self, tenant: &Name, change: i64) {
        let usage = self.quotas.usage(&Holder { tenant: tenant.clone(), user: None });
        // What one core says of a tenant comes in order, so this is never less than none.
        usage.channels += change;
        self.tell_whether_full(tenant);
    }

    /// Tells the other cores, if they do not know it, whether a tenant may have more channels.
    fn tell_whether_full(&mut self, tenant: &Name) {
        let most = self.limits.of(tenant).tenant.channels;
        let holder = Holder { tenant: tenant.clone(), user: None };
        let usage = self.quotas.usage(&holder);
        let full = most.is_some_and(|most| usage.channels >= i64::from(most));
        if std::mem::replace(&mut usage.told_full, full) == full {
            return;
        }
        let (resource, for_ms) = (Resource::Channels, if full { UNTIL_TOLD } else { 0 });
        let here = self.config.core;
        for core in (0..self.config.cores).map(CoreId).filter(|core| *core != here) {
            self.tell_session(core, SessionMessage::Refuse { holder: holder.clone(), resource, for_ms });
        }
    }

    /// Other limits hold from now on: who was refused for a time may try again.
    pub(crate) fn set_limits(&mut self, limits: Arc<Limits>) {
        self.limits = limits;
        self.quotas.refused.retain(|(_, resource), _| *resource == Resource::Channels);
        let usages = self.quotas.usages.iter();
        let tenants: BTreeSet<_> =
            usages.filter(|(_, usage)| usage.channels > 0).map(|(holder, _)| holder.tenant.clone()).collect();
        for tenant in tenants {
            self.tell_whether_full(&tenant);
        }
    }

    /// Counts and notes a refusal.
    fn refused(&mut self, principal: &Arc<Principal>, refusal: Refusal) -> Reject {
        let Refusal { holder, resource, reject } = refusal;
        self.note_refusal(principal, holder, resource, reject.code);
        reject
    }

    fn note_refusal(&mut self, principal: &Arc<Principal>, holder: Holder, resource: Resource, code: RejectCode) {
        let now_us = self.now.mono_us;
        self.counters.limited[resource as usize] += 1;
        let audited = &mut self.quotas.audited;
        let object = format!("{} of {holder}", resource.as_str());
        let key = (holder, resource);
        if audited.get(&key).is_some_and(|until_us| *until_us > now_us) {
            return;
        }
        if audited.len() >= AUDITED_MAX {
            audited.retain(|_, until_us| *until_us > now_us);
        }
        if audited.len() < AUDITED_MAX {
            audited.insert(key, now_us + AUDIT_US);
            self.audit(principal, "limit", object, Some(code));
        }
    }
}
