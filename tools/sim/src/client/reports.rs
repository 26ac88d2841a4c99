//! What clients make of answers about channels, people and their places.

use thalweg_protocol::chat::{ChannelKind, ChannelReport, ChannelSummary, ProfileReport};
use thalweg_protocol::ids::Position;
use thalweg_protocol::op::{DeliveryKind, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_workload::auditor::BodyHash;
use thalweg_workload::auditor::people::Moment;

use super::channels::{CLUB, DIRECT, Kind, kind};
use super::chat::{ChatAsked, user_number};
use crate::faults::Fault;
use crate::world::World;

/// Users whose roles are asked about.
const USERS: u32 = 10;

fn text_number(text: &str) -> u64 {
    if text.is_empty() { 0 } else { BodyHash::of(text.as_bytes()).0 }
}

impl World {
    pub(super) fn chat_answered(&mut self, client: usize, asked: ChatAsked, op: ServerOp) {
        match (asked, op) {
            (ChatAsked::Deed(deed), ServerOp::Done) => self.people.done(deed),
            (ChatAsked::Deed(deed), ServerOp::Reject(reject)) => {
                self.people.refused(deed);
                self.chat_refused(client, None, &reject);
            }
            (ChatAsked::Direct { channel, deed, since }, ServerOp::ChannelReport(report)) => {
                self.people.done(deed);
                self.reported(client, channel, since, &report);
            }
            (ChatAsked::Direct { deed, .. }, ServerOp::Reject(reject)) => {
                self.people.refused(deed);
                self.chat_refused(client, None, &reject);
            }
            (ChatAsked::About { channel, since }, ServerOp::ChannelReport(report)) => {
                self.reported(client, channel, since, &report);
            }
            (ChatAsked::List { all, since }, ServerOp::ChannelList { channels, more }) => {
                self.listed(client, all, since, &channels, more);
            }
            (ChatAsked::Profile { user, since }, ServerOp::ProfileReport(report)) => {
                self.profiled(client, user, since, &report);
            }
            (ChatAsked::WhoIsIn { channel, present }, ServerOp::PresenceReport { count, users, complete }) => {
                self.who_was_in(client, (channel, &present), count, &users, complete);
            }
            (ChatAsked::Search { channel, query, before, since, found }, ServerOp::Page { next, deliveries, .. }) => {
                self.searched(client, (channel, query, before, since), found, next, &deliveries);
            }
            (
                ChatAsked::About { channel, since } | ChatAsked::Search { channel, since, .. },
                ServerOp::Reject(reject),
            ) => {
                self.chat_refused(client, Some((channel, since)), &reject);
            }
            (
                ChatAsked::WhoIsIn { .. } | ChatAsked::List { .. } | ChatAsked::Profile { .. },
                ServerOp::Reject(reject),
            ) => {
                self.chat_refused(client, None, &reject);
            }
            (asked, op) => self.violation(format!("client {client}: {asked:?} was answered by {op:?}")),
        }
    }

    fn chat_refused(&mut self, client: usize, about: Option<(u32, Moment)>, reject: &Reject) {
        match (reject.code, about) {
            (RejectCode::Forbidden, Some((channel, since))) if kind(channel) == Kind::Club => {
                self.refused_in_club(client, channel, since);
            }
            (RejectCode::Forbidden | RejectCode::ChannelUnknown | RejectCode::ChannelDeleted, _) => {}
            (RejectCode::UserUnknown | RejectCode::ParameterInvalid | RejectCode::LimitReached, None) => {}
            (RejectCode::Draining, _) => self.faults.count(Fault::DrainingRefused),
            (RejectCode::StorageFull, None) if self.was_full => self.faults.count(Fault::FullRefused),
            (RejectCode::StorageDamaged, _) if self.was_rotten => self.faults.count(Fault::RotRefusedRead),
            (RejectCode::Busy, _) => {}
            (RejectCode::RateLimited | RejectCode::QuotaExceeded, _) if self.is_limited() => {
                self.faults.count(Fault::RateRefused);
            }
            (RejectCode::Overloaded, _) if self.is_pressed() => self.faults.count(Fault::PressureRefused),
            _ => self.violation(format!("client {client}: a question about {about:?} was refused: {reject}")),
        }
    }

    /// What a channel is, and who is what in it.
    fn reported(&mut self, client: usize, channel: u32, since: Moment, report: &ChannelReport) {
        self.faults.count(Fault::Reported);
        if report.channel != self.name_of(channel) {
            return self.violation(format!("client {client}: {channel} was reported as {}", report.channel));
        }
        let room = self.index_for(client, channel);
        self.people.saw_topic(room, text_number(&report.topic), since);
        if kind(channel) != Kind::Club {
            return;
        }
        self.people.saw_kind(room, report.kind, since);
        if report.members.len() != report.members_total as usize {
            self.violation(format!("client {client}: {} members of {channel} are named", report.members.len()));
        }
        for user in 0..USERS {
            let member = report.members.iter().find(|member| user_number(&member.user) == Some(user));
            let who = self.person_of(client, user);
            self.people.saw_role(room, who, member.map(|member| member.role), since);
        }
        let direct = channel >= DIRECT;
        let bits: u32 =
            report.members.iter().filter_map(|member| user_number(&member.user)).map(|user| 1 << user).sum();
        if direct && (report.kind != ChannelKind::Direct || DIRECT + bits != channel) {
            self.violation(format!("client {client}: conversation {channel} is one of {:?}", report.members));
        }
    }

    fn listed(&mut self, client: usize, all: bool, since: Moment, list: &[ChannelSummary], more: bool) {
        self.faults.count(Fault::Listed);
        if more || !list.is_sorted_by(|one, other| one.channel < other.channel) {
            return self.violation(format!("client {client}: a list is out of order, or has more: {list:?}"));
        }
        let who = self.person(client);
        let clubs = if self.clients[client].tenant == 0 { self.clubs.clone() } else { Vec::new() };
        let mut known: Vec<u32> = self.channels.clone();
        known.extend(&clubs);
        // What becomes of documents is judged by what they read.
        for summary in list.iter().filter(|summary| !summary.channel.as_str().starts_with("paper-")) {
            let Some(&channel) = known.iter().find(|&&channel| self.name_of(channel) == summary.channel) else {
                self.violation(format!("client {client}: {} was listed, which nobody made", summary.channel));
                continue;
            };
            let room = self.index_for(client, channel);
            if kind(channel) == Kind::Club {
                self.people.saw_role(room, who, summary.role, since);
                self.people.saw_kind(room, summary.kind, since);
            }
            if matches!(kind(channel), Kind::Disk | Kind::Club) {
                self.people.saw_topic(room, text_number(&summary.topic), since);
                self.people.saw_reading(room, who, summary.read, since);
                self.count_unread(client, channel, summary);
            }
            if !all && summary.role.is_none() {
                self.violation(format!("client {client}: {} is listed among its own", summary.channel));
            }
        }
        for channel in clubs {
            let name = self.name_of(channel);
            if !list.iter().any(|summary| summary.channel == name) {
                let room = self.index_for(client, channel);
                self.people.saw_unlisted(room, who, since);
            }
        }
    }

    /// Unread are as many messages as were counted after the one that was read.
    fn count_unread(&mut self, client: usize, channel: u32, summary: &ChannelSummary) {
        let room = self.index_for(client, channel);
        let ChannelSummary { messages, unread, read, head, .. } = summary;
        let number = match read {
            Position(0) => Some(0),
            read => self.numbers.get(&(room, *read)).copied(),
        };
        if number.is_some_and(|number| messages.checked_sub(number) != Some(*unread)) || read > head {
            let text = format!("{unread} of {messages} are unread after {read}, which is message {number:?}");
            self.violation(format!("client {client}: {channel}: {text}"));
        }
    }

    fn profiled(&mut self, client: usize, user: u32, since: Moment, report: &ProfileReport) {
        if user_number(&report.user) != Some(user) {
            return self.violation(format!("client {client}: the profile of {} came, not of {user}", report.user));
        }
        let who = self.person_of(client, user);
        self.people.saw_profile(who, text_number(&report.profile.display), since);
    }

    fn searched(
        &mut self,
        client: usize,
        (channel, query, before, since): (u32, String, Position, Moment),
        mut found: Option<Vec<Position>>,
        next: Position,
        deliveries: &[bytes::Bytes],
    ) {
        self.faults.count(Fault::Searched);
        let mut last = if before == Position(0) { Position(u64::MAX) } else { before };
        for payload in deliveries {
            let Ok(ServerOp::Delivery(delivery)) = ServerOp::decode(payload) else {
                return self.violation(format!("client {client}: a search in {channel} found what is no delivery"));
            };
            let text = String::from_utf8_lossy(&delivery.body).to_lowercase();
            let said = matches!(delivery.kind, DeliveryKind::Message | DeliveryKind::Edit);
            if !said || !text.contains(&query) || delivery.position >= last {
                let what = format!("{} after {last}, {:?}", delivery.position, delivery.body);
                self.violation(format!("client {client}: a search for {query:?} in {channel} found {what}"));
            }
            last = delivery.position;
            self.read_without_subscription(client, channel, since, &delivery);
            found.iter_mut().for_each(|found| found.push(delivery.position));
        }
        if next != Position(0) && next >= last && !deliveries.is_empty() && next != last {
            self.violation(format!("client {client}: a search in {channel} goes on at {next} after {last}"));
        }
        match found {
            Some(found) if next == Position(0) => self.judge_search(client, channel, &query, &found),
            Some(_) if before != Position(0) && next >= before => {
                self.violation(format!("client {client}: a search in {channel} does not get on from {before}"));
            }
            Some(found) => self.search(client, channel, query, next, Some(found)),
            None => {}
        }
    }

    /// All was looked through: what was found is what there is.
    fn judge_search(&mut self, client: usize, channel: u32, query: &str, found: &[Position]) {
        let tenant = self.tenant_name(self.clients[client].tenant);
        let expected = self.truth.matches(&tenant, &self.name_of(channel), query);
        // The oldest may be kept no longer, and what is being taken back be there or not.
        let room = self.index_for(client, channel);
        let sure: Vec<Position> =
            expected.iter().copied().filter(|&position| !self.people.may_be_redacted(room, position)).collect();
        let trimmed = channel == 0 && self.trimmed;
        let missing = sure.iter().find(|position| !trimmed && !found.contains(position));
        if let Some(position) = missing {
            let count = found.len();
            self.violation(format!("client {client}: a search in {channel} found {count}, and not {position}"));
        }
    }

    /// What clients of a tenant may look at all at once.
    pub(super) fn channels_to_observe(&self, client: usize) -> Vec<u32> {
        let mut all = self.channels.clone();
        if self.clients[client].tenant > 0 {
            all.retain(|&channel| kind(channel) == Kind::Disk);
        } else {
            all.extend(self.clubs.iter().filter(|&&channel| channel >= CLUB));
        }
        all
    }
}
