//! Who there is and what there is for them: profiles, last visits, lists of channels.
//!
//! A user belongs to a partition of their own. A list of channels is gathered from all cores, since membership is kept with
//! each channel and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_domain::fact::{UserFact, UserState};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::Event;
use thalweg_protocol::chat::{ChannelKind, ChannelSummary, ChatOp, MemberRole, ProfileReport};
use thalweg_protocol::ids::{ChannelKey, CoreId, Name, Partition, Request};
use thalweg_protocol::limits::{CHANNELS_LISTED, LISTS_MAX, SEEN_NOTE_MS, USERS_MAX};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::{Link, Origin, OwnerMessage, PeerMessage, SessionMessage};
use crate::owner::Action;
use crate::shard::Shard;

/// What the affinity of a user begins with: no name of a channel or session holds a space.
const USER_AFFINITY: &str = "user ";

/// The users this core owns.
#[derive(Default)]
pub(crate) struct Directory {
    users: BTreeMap<(Name, Name), UserState>,
}

impl Directory {
    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }
}

/// A list of channels that is being gathered.
pub(crate) struct Listing {
    /// How many cores have not answered.
    cores: u16,
    limit: usize,
    channels: Vec<ChannelSummary>,
    more: bool,
}

impl Shard {
    /// Where what is known of a user belongs.
    pub(crate) fn user_partition(&self, tenant: &Name, user: &Name) -> Partition {
        self.partition(tenant, &format!("{USER_AFFINITY}{user}"))
    }

    pub(crate) fn restore_users(&mut self, users: BTreeMap<(Name, Name), UserState>) {
        self.directory.users.extend(users.into_iter().filter(|(_, state)| !state.is_empty()));
    }

    pub(crate) fn request_user(&mut self, origin: Origin, principal: Arc<Principal>, op: ChatOp) -> Result<(), Reject> {
        let user = match &op {
            ChatOp::GetProfile { user } => user.clone(),
            _ => {
                self.not_draining()?;
                principal.user.clone()
            }
        };
        self.admit_request(origin.link)?;
        let partition = self.user_partition(&principal.tenant, &user);
        self.tell_owner(partition, OwnerMessage::User { origin, principal, op: Box::new(op) });
        Ok(())
    }

    /// Somebody asks something about a user of this core.
    pub(crate) fn about_user(&mut self, origin: Origin, principal: &Arc<Principal>, op: ChatOp) {
        match op {
            ChatOp::SetProfile(profile) => {
                let (tenant, user) = (principal.tenant.clone(), principal.user.clone());
                let answer = Action::Answer { origin, op: ServerOp::Done };
                if let Err(reject) = self.change_user(tenant, user, UserFact::Profile(profile), vec![answer]) {
                    self.refuse(origin, reject);
                }
            }
            ChatOp::GetProfile { user } => {
                let key = (principal.tenant.clone(), user.clone());
                let state = self.directory.users.get(&key).cloned().unwrap_or_default();
                let (presence, present_seen_us) = self.presence_of(&key);
                let report = ProfileReport {
                    user,
                    profile: state.profile.unwrap_or_default(),
                    state: presence,
                    seen_us: state.seen_us.max(present_seen_us),
                };
                self.after_appends(Action::Answer { origin, op: ServerOp::ProfileReport(Box::new(report)) });
            }
            _ => self.refuse(origin, Reject::new(RejectCode::Internal, "this request is not about a user")),
        }
    }

    /// Takes in and records something about a user.
    fn change_user(&mut self, tenant: Name, user: Name, fact: UserFact, actions: Vec<Action>) -> Result<(), Reject> {
        self.storage_has_room()?;
        let key = (tenant.clone(), user.clone());
        if self.directory.users.len() >= USERS_MAX && !self.directory.users.contains_key(&key) {
            let text = format!("this core knows {USERS_MAX} users, which is all it takes");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        self.directory.users.entry(key).or_default().set(&fact);
        let partition = self.user_partition(&tenant, &user);
        self.append(partition, Event::UserChanged { tenant, user, facts: vec![fact] }, actions);
        Ok(())
    }

    /// Notes when a user was last there, not too often. Nothing is lost if there is no room: it is noted next time.
    pub(crate) fn note_seen(&mut self, tenant: &Name, user: &Name) {
        let now_us = self.now.wall_us;
        let known = self.directory.users.get(&(tenant.clone(), user.clone())).map_or(0, |state| state.seen_us);
        if now_us.saturating_sub(known) >= SEEN_NOTE_MS * 1_000 {
            let fact = UserFact::Seen { at_us: now_us };
            if let Err(reject) = self.change_user(tenant.clone(), user.clone(), fact, Vec::new()) {
                self.counters.rejects[reject.code as usize] += 1;
            }
        }
    }

    /// Forgets the users of a tenant.
    pub(crate) fn delete_users(&mut self, tenant: &Name) {
        let of_tenant = self.directory.users.keys().filter(|(of, _)| of == tenant);
        for (tenant, user) in of_tenant.cloned().collect::<Vec<_>>() {
            self.directory.users.remove(&(tenant.clone(), user.clone()));
            let partition = self.user_partition(&tenant, &user);
            // Nothing is gained by refusing this to a disk that is full.
            self.append(partition, Event::UserChanged { tenant, user, facts: vec![UserFact::Forgotten] }, Vec::new());
        }
    }

    /// Asks every core for its channels.
    pub(crate) fn request_list(&mut self, origin: Origin, principal: Arc<Principal>, op: ChatOp) -> Result<(), Reject> {
        let ChatOp::ListChannels { after, limit, all } = op else { return Ok(()) };
        let limit = if limit == 0 { CHANNELS_LISTED } else { CHANNELS_LISTED.min(limit as usize) };
        let Some(session) = self.sessions.get_mut(origin.link) else { return Ok(()) };
        if session.listings.len() >= LISTS_MAX {
            let text = format!("{LISTS_MAX} lists are under way; wait for one");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        self.admit_request(origin.link)?;
        let cores = self.config.cores;
        let listing = Listing { cores, limit, channels: Vec::new(), more: false };
        if let Some(session) = self.sessions.get_mut(origin.link) {
            session.listings.insert(origin.request, listing);
        }
        for core in 0..cores {
            let (principal, after, limit) = (Arc::clone(&principal), after.clone(), limit as u32);
            let message = OwnerMessage::List { origin, principal, after, limit, all };
            self.tell(CoreId(core), PeerMessage::ToOwner(message));
        }
        Ok(())
    }

    /// Lists the channels of this core whose member somebody is or, if they want `all`, which they may read.
    pub(crate) fn list(&mut self, origin: Origin, principal: &Principal, after: &str, limit: u32, all: bool) {
        let limit = limit as usize;
        let (mut channels, mut more) = (Vec::new(), false);
        for (key, channel) in self.channels_of(&principal.tenant, after) {
            let roster = channel.roster();
            let role = roster.role(&principal.user);
            let listed = match role {
                Some(MemberRole::Banned) => false,
                Some(_) => true,
                None => {
                    let is_open = matches!(roster.kind(), ChannelKind::Open | ChannelKind::Document);
                    all && (is_open || principal.may(Access::Admin, key.channel.as_str()))
                }
            };
            if !listed || !principal.may(Access::Read, key.channel.as_str()) {
                continue;
            }
            if channels.len() == limit {
                more = true;
                break;
            }
            let (head, messages) = (channel.head(), channel.messages());
            let reading = roster.reading(&principal.user, head);
            channels.push(ChannelSummary {
                channel: key.channel.clone(),
                kind: roster.kind(),
                topic: roster.topic().to_owned(),
                role,
                head,
                messages,
                read: reading.position,
                unread: messages.saturating_sub(reading.number),
                mentions: roster.unread_mentions(&principal.user, head),
                active_us: channel.active_us(),
            });
        }
        let Origin { core, link, request, .. } = origin;
        self.after_appends(Action::Tell { core, message: SessionMessage::Listed { link, request, channels, more } });
    }

    /// A core listed its channels.
    pub(crate) fn listed(&mut self, link: Link, request: Request, channels: Vec<ChannelSummary>, more: bool) {
        let Some(session) = self.sessions.get_mut(link) else { return };
        let Some(listing) = session.listings.get_mut(&request) else { return };
        listing.cores -= 1;
        listing.channels.extend(channels);
        listing.more |= more;
        if listing.cores > 0 {
            return;
        }
        let Some(Listing { limit, mut channels, more, .. }) = session.listings.remove(&request) else { return };
        channels.sort_unstable_by(|one, other| one.channel.cmp(&other.channel));
        let more = more || channels.len() > limit;
        channels.truncate(limit);
        self.settle(link);
        self.reply(link, request, ServerOp::ChannelList { channels, more });
    }

    fn channels_of<'a>(
        &'a self,
        tenant: &'a Name,
        after: &'a str,
    ) -> impl Iterator<Item = (&'a ChannelKey, &'a thalweg_domain::channel::Channel)> {
        self.owner.of_tenant(tenant).filter(move |(key, _)| key.channel.as_str() > after)
    }
}
