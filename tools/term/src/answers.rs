//! What the node answered.

use crate::app::{App, Asked};
use crate::chat::{Draft, Live};
use crate::event::{
    About, Answer, ChannelKind, Delivery, Item, Kind, Page, Profile, Refusal, Request, Summary, Ticket,
};
use crate::ink::{Ink, Piece, author};
use crate::popup::{Card, Popup};
use crate::rows::sign;
use crate::slash::ProfileField;
use crate::text::{clean, clean_line};
use crate::timeline::Key;

/// Members and people that one card shows.
const CARD_NAMES_MAX: usize = 200;

impl App {
    pub(crate) fn answered(&mut self, ticket: Ticket, result: Result<Answer, Refusal>) {
        let Some(asked) = self.asked(ticket) else { return };
        match result {
            Ok(answer) => self.granted(ticket, asked, answer),
            Err(refusal) => self.refused(ticket, asked, &refusal),
        }
    }

    fn granted(&mut self, ticket: Ticket, asked: Asked, answer: Answer) {
        match (asked, answer) {
            (Asked::Post { channel }, Answer::Sent { position, at_us }) => {
                self.confirmed(ticket, &channel, position, at_us)
            }
            (Asked::Change { channel, item }, answer) => {
                let me = self.me.clone();
                let Some(chat) = self.chats.get_mut(&channel) else { return };
                // Our own records are not delivered to us; this one stands where the node says.
                let (position, at_us) = match answer {
                    Answer::Sent { position, at_us } => (position, at_us),
                    _ => (chat.timeline.head, self.now.wall_us),
                };
                chat.timeline.apply(&Item::Delivery(Delivery { position, at_us, user: me.clone(), ..item }), &me);
            }
            (Asked::History { channel }, Answer::Page(page)) => self.paged(ticket, &channel, &page),
            (Asked::Search, Answer::Found { hits, next }) => self.found(ticket, hits, next),
            (Asked::Channels, Answer::Channels(summaries)) => self.listed(&summaries),
            (Asked::About { show, open }, Answer::About(about)) => self.told_about(&about, show, open),
            (Asked::Enter { channel, make }, _) => {
                self.show(&channel);
                self.watch(&channel, make);
                self.list();
            }
            (Asked::Join | Asked::Leave { .. }, _) => self.list(),
            (Asked::Profile, Answer::Profile(profile)) => self.introduced(&profile),
            (Asked::Merge(field), Answer::Profile(Profile { display, about, status, .. })) => {
                let request = match field {
                    ProfileField::Name(display) => Request::SetProfile { display, about, status },
                    ProfileField::About(about) => Request::SetProfile { display, about, status },
                    ProfileField::Status(status) => Request::SetProfile { display, about, status },
                };
                self.ask(request, Asked::Say("your profile is changed".to_owned()));
            }
            (Asked::Who { channel }, Answer::Who { count, users, complete }) => {
                let mut card = Card::new(format!("In #{} · {count}", clean_line(&channel)));
                let mut users = users;
                users.sort_by(|a, b| a.state.cmp(&b.state).then_with(|| a.user.cmp(&b.user)));
                for person in users.iter().take(CARD_NAMES_MAX) {
                    let (sign, ink) = sign(person.state);
                    let since = self.zone.ago(person.since_us, self.now);
                    let user = clean_line(&person.user);
                    let name = author(&user);
                    card.line(vec![
                        Piece::new(format!("{sign} "), ink),
                        Piece::new(user, name),
                        Piece::new(format!("  {since}"), Ink::Dim),
                    ]);
                }
                if !complete {
                    card.text("and others", Ink::Dim);
                }
                self.popup = Some(Popup::Card(card));
            }
            (Asked::Say(text), _) => self.say(text, Ink::Good),
            _ => {}
        }
    }

    fn refused(&mut self, ticket: Ticket, asked: Asked, refusal: &Refusal) {
        let mut reason = clean_line(&refusal.reason);
        if let Some(after) = refusal.retry_after {
            reason = format!("{reason}; try again in {:.1} s", after.as_secs_f32());
        }
        match asked {
            Asked::Post { channel } => {
                if let Some(chat) = self.chats.get_mut(&channel) {
                    chat.timeline.fail(ticket, reason);
                }
            }
            Asked::History { channel } => {
                if let Some(chat) = self.chats.get_mut(&channel) {
                    chat.paging = None;
                    // Asked for again when somebody scrolls there again.
                    chat.timeline.first = chat.timeline.from;
                }
                self.say(format!("older messages did not come: {reason}"), Ink::Error);
            }
            Asked::Enter { channel, make: true } => {
                if let Some(chat) = self.chats.get_mut(&channel) {
                    chat.join_when_open = true;
                }
                self.watch(&channel, true);
            }
            Asked::Enter { channel, make: false } => {
                self.say(format!("#{channel}: {reason}; /create {channel} makes a channel"), Ink::Error);
            }
            Asked::Search => {
                if let Some(Popup::Found(found)) = &mut self.popup {
                    found.asked = None;
                    found.next = None;
                }
                self.say(reason, Ink::Error);
            }
            // Nobody asked for these; they are asked for again.
            Asked::Channels | Asked::Join | Asked::About { show: false, open: false } | Asked::Read { .. } => {}
            Asked::Cancel => {
                self.stopped = None;
                self.say(format!("not stopped: {reason}"), Ink::Error);
            }
            Asked::Change { .. }
            | Asked::About { .. }
            | Asked::Leave { .. }
            | Asked::Profile
            | Asked::Merge(_)
            | Asked::Who { .. }
            | Asked::Say(_) => self.say(reason, Ink::Error),
        }
    }

    fn confirmed(&mut self, ticket: Ticket, channel: &str, position: u64, at_us: u64) {
        let me = self.me.clone();
        let Some(chat) = self.chats.get_mut(channel) else { return };
        // What others wrote behind it counted it already.
        chat.messages += u64::from(position > chat.timeline.head);
        chat.timeline.confirm(ticket, &me, position, at_us);
    }

    fn paged(&mut self, ticket: Ticket, channel: &str, page: &Page) {
        let me = self.me.clone();
        let Some(chat) = self.chats.get_mut(channel) else { return };
        if chat.paging != Some(ticket) {
            return;
        }
        chat.paging = None;
        let to = chat.timeline.from;
        for item in &page.items {
            chat.timeline.apply(item, &me);
        }
        chat.timeline.first = page.first.max(1);
        let from = to.saturating_sub(u64::from(crate::app::PAGE)).max(chat.timeline.first);
        if page.next >= to || page.next <= from {
            chat.timeline.from = from.min(to);
            return;
        }
        // The answer had less room than was asked for: the rest of this page comes next.
        let limit = u32::try_from(to - page.next).unwrap_or(crate::app::PAGE);
        let request = Request::History { channel: channel.to_owned(), from: page.next, limit };
        let next = self.ask(request, Asked::History { channel: channel.to_owned() });
        if let Some(chat) = self.chats.get_mut(channel) {
            chat.paging = next;
        }
    }

    fn found(&mut self, ticket: Ticket, hits: Vec<Delivery>, next: u64) {
        let Some(Popup::Found(found)) = &mut self.popup else { return };
        if found.asked != Some(ticket) {
            return;
        }
        found.asked = None;
        found.next = (next != 0).then_some(next);
        for hit in hits {
            // A text that a message got later leads to the message.
            let (position, body) = match &hit.kind {
                Kind::Message { body, redacted: false } => (hit.position, body),
                Kind::Edit { body } => (hit.target, body),
                _ => continue,
            };
            found.add(position, hit.at_us, clean_line(&hit.user), clean(body).replace('\n', " "));
        }
        self.search_on();
    }

    fn listed(&mut self, summaries: &[Summary]) {
        for chat in self.chats.values_mut() {
            chat.listed = false;
        }
        for summary in summaries {
            if !self.chats.contains_key(&summary.channel) {
                if self.channels_max() {
                    continue;
                }
                self.chats.insert(summary.channel.clone(), crate::chat::Chat::new(&summary.channel));
            }
            if let Some(chat) = self.chats.get_mut(&summary.channel) {
                let before = chat.read;
                chat.summarise(summary, self.focused && summary.channel == self.open);
                let fresh = chat.mark.is_none() && before == 0 && chat.unread > 0;
                if fresh && summary.channel == self.open {
                    chat.mark = Some(chat.read);
                }
            }
        }
        self.watch_listed();
    }

    fn told_about(&mut self, about: &About, show: bool, open: bool) {
        if open {
            self.show(&about.channel);
        }
        if let Some(chat) = self.chats.get_mut(&about.channel) {
            chat.about(about);
            if open && chat.live == Live::Idle {
                let channel = about.channel.clone();
                self.watch(&channel, false);
            }
        }
        if !show {
            return;
        }
        let kind = match about.kind {
            ChannelKind::Open => "open: whose token may, comes in",
            ChannelKind::Private => "private: for members",
            ChannelKind::Direct => "direct: for those who are in it",
        };
        let mut card = Card::new(format!("#{}", clean_line(&about.channel)));
        card.field("topic", &about.topic);
        card.field("kind", kind);
        card.field("made", &self.zone.moment(about.created_us));
        card.field("messages", &about.messages.to_string());
        card.field("you are", about.role.map_or("not a member", crate::event::Role::as_str));
        card.text(&format!("{} members", about.members_total), Ink::Strong);
        let mut members: Vec<_> = about.members.iter().take(CARD_NAMES_MAX).collect();
        members.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        for (user, role) in members {
            let user = clean_line(user);
            let ink = author(&user);
            card.line(vec![Piece::new(user, ink), Piece::new(format!("  {}", role.as_str()), Ink::Dim)]);
        }
        self.popup = Some(Popup::Card(card));
    }

    fn introduced(&mut self, profile: &Profile) {
        let mut card = Card::new(format!("@{}", clean_line(&profile.user)));
        let (sign, ink) = sign(profile.state);
        let state = match profile.state {
            crate::event::State::Online => "online".to_owned(),
            crate::event::State::Away => "away".to_owned(),
            crate::event::State::Offline if profile.seen_us == 0 => "never seen".to_owned(),
            crate::event::State::Offline => format!("last seen {}", self.zone.ago(profile.seen_us, self.now)),
        };
        card.line(vec![Piece::new(format!("{sign} "), ink), Piece::new(state, Ink::Plain)]);
        card.field("name", &profile.display);
        card.field("about", &profile.about);
        card.field("status", &profile.status);
        self.popup = Some(Popup::Card(card));
    }

    /// Goes to a message that may not be known here yet.
    pub(crate) fn go_to(&mut self, position: u64) {
        let known = self.chat().is_some_and(|chat| chat.timeline.from <= position);
        if !known {
            self.say("the message is older than what is loaded; scroll up to it", Ink::Warning);
        }
        let Some((sight, areas)) = self.sight() else { return };
        let key = Key::at(position);
        let anchor = if known { sight.bring(key, usize::from(areas.timeline.height)) } else { None };
        if let Some(chat) = self.chat_mut().filter(|_| known) {
            chat.anchor = anchor;
            chat.picked = Some(key);
            chat.draft = Draft::New;
        }
    }
}
