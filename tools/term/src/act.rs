//! What a person does: sends lines, gives commands, picks messages.

use crate::app::{App, Asked, LEAVE_WITHIN, Sure};
use crate::chat::{Draft, Live, OVERTAKEN_FOR};
use crate::event::{Command, Delivery, Kind, Request, Role};
use crate::ink::{Ink, Piece};
use crate::popup::{Card, Found, Popup};
use crate::slash::{ProfileField, Slash, parse};
use crate::text::clean_line;
use crate::theme::Theme;
use crate::timeline::{Entry, Key, Said, Shown};

/// Others are told again that we type after so long.
const TYPING_EVERY: std::time::Duration = std::time::Duration::from_millis(thalweg_protocol::limits::TYPING_MS / 2);

/// After so long the node takes another notice that somebody types, with room for clocks that differ.
const TYPING_DISTANCE: std::time::Duration =
    std::time::Duration::from_millis(thalweg_protocol::limits::TYPING_DISTANCE_MS + 100);

/// Sending, and what is told while one writes.
impl App {
    /// Enter: the line is sent, or done.
    pub(crate) fn enter(&mut self) {
        self.completion = None;
        let Some(chat) = self.chat_mut() else { return };
        let draft = chat.draft;
        let text = chat.editor.text().to_owned();
        if text.trim().is_empty() {
            return;
        }
        let command = draft == Draft::New && text.starts_with('/') && !text.starts_with("//");
        if command {
            self.history.push(&text);
            let Some(chat) = self.chat_mut() else { return };
            let _ = chat.editor.take();
            match parse(&text) {
                Ok(slash) => self.slash(slash),
                Err(said) => {
                    // To be mended, not typed again.
                    if let Some(chat) = self.chat_mut() {
                        chat.editor.set(&text);
                    }
                    self.say(said, Ink::Error);
                }
            }
            return;
        }
        // Two slashes say that it is no command.
        let body = if text.starts_with("//") { &text[1..] } else { &text };
        let body = body.trim_end().to_owned();
        match draft {
            Draft::React(position) => self.react(position, body.trim()),
            Draft::Edit(position) => self.change(position, body),
            Draft::New | Draft::Reply(_) => {
                let root = self.chat().and_then(|chat| chat.thread).unwrap_or(0);
                let target = if let Draft::Reply(position) = draft { position } else { root };
                if !self.post(&body, target) {
                    return;
                }
                self.history.push(&text);
                // The message says that it is written: no notice is needed. Those that come soon after it are taken for older.
                let now = self.now.mono;
                if let Some(chat) = self.chat_mut() {
                    (chat.typing_on, chat.typing_told) = (false, Some(now + OVERTAKEN_FOR));
                }
            }
        }
        self.quiet();
        if let Some(chat) = self.chat_mut() {
            let _ = chat.editor.take();
            chat.draft = Draft::New;
        }
    }

    /// Writes a message; says whether it was taken.
    pub(crate) fn post(&mut self, body: &str, target: u64) -> bool {
        let (channel, now) = (self.open.clone(), self.now);
        if self.me.is_empty() || self.chat().is_some_and(|chat| matches!(chat.live, Live::Shut(_))) {
            self.say("nothing can be written here now", Ink::Error);
            return false;
        }
        let request = Request::Post { channel: channel.clone(), body: body.to_owned(), reply_to: target };
        let Some(ticket) = self.ask(request, Asked::Post { channel }) else { return false };
        let sent = self.chat_mut().is_some_and(|chat| {
            let body = crate::text::clean(body);
            (chat.anchor, chat.picked, chat.below) = (None, None, 0);
            // Who answers has seen what is new.
            chat.mark = None;
            chat.timeline.send(ticket, &body, target, now.wall_us)
        });
        if !sent {
            self.say("too much waits to be sent", Ink::Error);
        }
        sent
    }

    /// Something was typed: others are told, now and then.
    pub(crate) fn typed(&mut self) {
        let now = self.now.mono;
        let up = self.is_up();
        let Some(chat) = self.chat_mut() else { return };
        let text = chat.editor.text();
        let talks = !text.is_empty()
            && (!text.starts_with('/') || text.starts_with("//"))
            && !matches!(chat.draft, Draft::React(_));
        if !talks {
            return self.quiet();
        }
        let distance = if chat.typing_on { TYPING_EVERY } else { TYPING_DISTANCE };
        let due = chat.typing_told.map_or(now, |told| told + distance);
        if due > now {
            // Told too early it would be dropped.
            chat.typing_due = chat.typing_due.or((!chat.typing_on).then_some(due));
        } else if up && chat.live == Live::Reading {
            (chat.typing_told, chat.typing_on, chat.typing_due) = (Some(now), true, None);
            let channel = chat.name.clone();
            self.command(Command::Typing { channel, on: true });
        }
    }

    /// Nothing is being typed any more.
    pub(crate) fn quiet(&mut self) {
        let (up, now) = (self.is_up(), self.now.mono);
        let Some(chat) = self.chat_mut() else { return };
        chat.typing_due = None;
        if std::mem::take(&mut chat.typing_on) && up {
            chat.typing_told = Some(now);
            let channel = chat.name.clone();
            self.command(Command::Typing { channel, on: false });
        }
    }
}

/// Messages.
impl App {
    fn said(&self, position: u64) -> Option<&Said> {
        self.chat()?.timeline.said(position)
    }

    /// The message picked, or else the newest that `accept`s.
    fn meant(&self, accept: impl Fn(&Said, &str) -> bool) -> Option<u64> {
        let chat = self.chat()?;
        let picked = chat.picked.filter(|key| !key.is_unsent()).map(|key| key.position);
        let picked = picked.filter(|position| chat.timeline.said(*position).is_some());
        picked.or_else(|| chat.timeline.newest(|said| accept(said, &self.me)))
    }

    pub(crate) fn begin_reply(&mut self, key: Key) {
        if self.said(key.position).is_none() {
            return self.say("only messages can be replied to", Ink::Note);
        }
        self.begin(Draft::Reply(key.position));
    }

    pub(crate) fn begin_reaction(&mut self, key: Key) {
        if self.said(key.position).is_none() {
            return self.say("only messages can be reacted to", Ink::Note);
        }
        self.begin(Draft::React(key.position));
        if let Some(chat) = self.chat_mut() {
            chat.editor.set(":");
        }
        self.suggest();
    }

    pub(crate) fn begin_edit(&mut self, key: Key) {
        let Some((chat, said)) = self.chat().and_then(|chat| Some((chat, chat.timeline.said(key.position)?))) else {
            return self.say("only messages can be edited", Ink::Note);
        };
        if said.user != self.me {
            return self.say("only your own messages can be edited", Ink::Note);
        }
        let Some(body) = chat.timeline.body(key.position, said).map(str::to_owned) else {
            return self.say("it was deleted", Ink::Note);
        };
        self.begin(Draft::Edit(key.position));
        if let Some(chat) = self.chat_mut() {
            chat.editor.set(&body);
        }
    }

    fn begin(&mut self, draft: Draft) {
        if let Some(chat) = self.chat_mut() {
            chat.draft = draft;
            chat.picked = None;
        }
    }

    fn change(&mut self, position: u64, body: String) {
        let channel = self.open.clone();
        let request = Request::Edit { channel: channel.clone(), position, body: body.clone() };
        let item = Delivery { target: position, kind: Kind::Edit { body }, ..Delivery::default() };
        self.ask(request, Asked::Change { channel, item });
    }

    /// Deletes a message when it is asked for twice.
    pub(crate) fn delete(&mut self, key: Key) {
        let position = key.position;
        if key.is_unsent() {
            return self.drop_failed(Some(key));
        }
        if self.said(position).is_none() {
            return self.say("only messages can be deleted", Ink::Note);
        }
        if self.sure.is_none_or(|(sure, _)| sure != Sure::Delete(position)) {
            self.sure = Some((Sure::Delete(position), self.now.mono + LEAVE_WITHIN));
            return self.say("press d again to delete it", Ink::Warning);
        }
        self.sure = None;
        self.redact(position);
    }

    fn redact(&mut self, position: u64) {
        let channel = self.open.clone();
        let item = Delivery { target: position, kind: Kind::Redaction, ..Delivery::default() };
        self.ask(Request::Redact { channel: channel.clone(), position }, Asked::Change { channel, item });
        if let Some(chat) = self.chat_mut() {
            chat.picked = None;
        }
    }

    /// Reacts, or takes a reaction back that is there already.
    fn react(&mut self, position: u64, text: &str) {
        let emoji = crate::complete::emoji_of(text);
        if emoji.is_empty() || emoji.len() > thalweg_protocol::limits::REACTION_BYTES_MAX {
            return self.say("a reaction is an emoji, or a short word", Ink::Error);
        }
        let Some(chat) = self.chat() else { return };
        let mine = chat.timeline.reactions(position, &self.me);
        let on = !mine.iter().any(|(known, _, mine)| *known == emoji && *mine);
        let channel = self.open.clone();
        let kind = Kind::Reaction { emoji: emoji.clone(), on };
        let item = Delivery { target: position, kind, ..Delivery::default() };
        let request = Request::React { channel: channel.clone(), position, emoji, on };
        self.ask(request, Asked::Change { channel, item });
    }

    pub(crate) fn open_thread(&mut self, key: Key) {
        if self.said(key.position).is_none() {
            return self.say("only messages have threads", Ink::Note);
        }
        if let Some(chat) = self.chat_mut() {
            chat.thread = Some(chat.timeline.root(key.position));
            (chat.anchor, chat.picked) = (None, None);
        }
        self.say("only this thread is shown; Esc leaves it", Ink::Note);
    }

    pub(crate) fn who_wrote(&mut self, key: Key) {
        let user = self.said(key.position).map(|said| said.user.clone());
        user.into_iter().for_each(|user| self.whois(&user));
    }

    pub(crate) fn whois(&mut self, user: &str) {
        self.ask(Request::Profile { user: user.to_owned() }, Asked::Profile);
    }

    /// Sends again what failed: this message, or the newest that did.
    pub(crate) fn resend(&mut self, key: Option<Key>) {
        let Some(chat) = self.chat_mut() else { return };
        let key = key.or_else(|| chat.timeline.last_failed());
        let Some(unsent) = key.and_then(|key| chat.timeline.take_failed(key)) else {
            return self.say("nothing failed", Ink::Note);
        };
        chat.picked = None;
        self.post(&unsent.body, unsent.target);
    }

    /// Forgets what failed.
    pub(crate) fn drop_failed(&mut self, key: Option<Key>) {
        let Some(chat) = self.chat_mut() else { return };
        let key = key.or_else(|| chat.timeline.last_failed());
        if key.and_then(|key| chat.timeline.take_failed(key)).is_none() {
            return self.say("nothing failed", Ink::Note);
        }
        chat.picked = None;
    }
}

/// Commands.
impl App {
    fn slash(&mut self, slash: Slash) {
        let channel = self.open.clone();
        let say = |text: String| Asked::Say(text);
        match slash {
            Slash::Help => self.popup = Some(Popup::Help { scroll: 0 }),
            Slash::Quit => self.command(Command::Quit),
            Slash::Join(channel) => {
                self.ask(Request::Join { channel: channel.clone() }, Asked::Enter { channel, make: false });
            }
            Slash::Leave => self.leave(channel),
            Slash::Create { channel, private, topic } => {
                let request = Request::Create { channel: channel.clone(), private, topic };
                self.ask(request, Asked::Enter { channel, make: false });
            }
            Slash::Direct(users) => {
                self.ask(Request::Direct { users }, Asked::About { show: false, open: true });
            }
            Slash::Topic(topic) => {
                self.ask(Request::SetTopic { channel, topic }, say("the topic is set".into()));
            }
            Slash::Info => drop(self.ask(Request::About { channel }, Asked::About { show: true, open: false })),
            Slash::Who => drop(self.ask(Request::Who { channel: channel.clone() }, Asked::Who { channel })),
            Slash::Whois(user) => self.whois(&user),
            Slash::Invite(user) => self.set_role(user, Some(Role::Invited), "is invited"),
            Slash::Kick(user) => self.set_role(user, None, "is out"),
            Slash::Ban(user) => self.set_role(user, Some(Role::Banned), "is banned"),
            Slash::Role { user, role } => self.set_role(user, Some(role), &format!("is {} now", role.as_str())),
            Slash::Search(query) => self.search(query),
            Slash::Profile(None) => self.whois(&self.me.clone()),
            Slash::Profile(Some(field)) => self.set_profile(field),
            Slash::Read => self.mark_read(),
            Slash::Ai(question) => drop(self.post(&format!("@ai {question}"), 0)),
            Slash::Models => self.models(),
            Slash::Stop => {
                if !self.stop() {
                    self.say("no answer is being written here", Ink::Note);
                }
            }
            Slash::Resend => self.resend(None),
            Slash::Drop => self.drop_failed(None),
            Slash::Away => self.away(),
            Slash::Back => self.awake(),
            Slash::Mouse => {
                self.mouse = !self.mouse;
                self.command(Command::Mouse(self.mouse));
                let text = if self.mouse {
                    "the mouse scrolls and picks"
                } else {
                    "the mouse is the terminal's, to select text"
                };
                self.say(text, Ink::Note);
            }
            Slash::Theme(name) => match Theme::named(&name) {
                Some(theme) => self.theme = theme,
                None => self.say("there are the themes dark, light and plain", Ink::Error),
            },
            Slash::Reply(_) | Slash::Edit(_) | Slash::Delete | Slash::React(_) | Slash::Thread => {
                self.about_message(slash)
            }
        }
    }

    /// Commands about the message picked, or the newest.
    fn about_message(&mut self, slash: Slash) {
        let own = matches!(slash, Slash::Edit(_) | Slash::Delete);
        let Some(position) = self.meant(|said, me| if own { said.user == me } else { true }) else {
            return self.say("there is no such message", Ink::Note);
        };
        let key = Key::at(position);
        match slash {
            Slash::Reply(text) if text.is_empty() => self.begin_reply(key),
            Slash::Reply(text) => drop(self.post(&text, position)),
            Slash::Edit(text) if text.is_empty() => self.begin_edit(key),
            Slash::Edit(text) => self.change(position, text),
            Slash::Delete => self.redact(position),
            Slash::React(text) => self.react(position, &text),
            _ => self.open_thread(key),
        }
    }

    fn set_role(&mut self, user: String, role: Option<Role>, done: &str) {
        let channel = self.open.clone();
        let done = format!("{} {done}", clean_line(&user));
        self.ask(Request::SetRole { channel, user, role }, Asked::Say(done));
    }

    fn leave(&mut self, channel: String) {
        self.ask(Request::Leave { channel: channel.clone() }, Asked::Leave { channel: channel.clone() });
        self.command(Command::Unwatch { channel: channel.clone() });
        let order: Vec<String> = self.order().iter().map(|chat| chat.name.clone()).collect();
        let next = self.before.clone().or_else(|| order.into_iter().find(|name| *name != channel));
        if let Some(chat) = self.chats.get_mut(&channel) {
            chat.live = Live::Idle;
            chat.listed = false;
            chat.timeline.forget();
        }
        match next {
            Some(next) => self.show(&next),
            None => self.say("you left; /join CHANNEL goes on elsewhere", Ink::Note),
        }
    }

    fn mark_read(&mut self) {
        let Some(chat) = self.chat_mut() else { return };
        let (channel, position, number) = (chat.name.clone(), chat.timeline.head, chat.messages);
        chat.read_all();
        chat.mark = None;
        let request = Request::MarkRead { channel: channel.clone(), position, number };
        self.ask(request, Asked::Read { channel });
    }

    fn set_profile(&mut self, field: ProfileField) {
        // The node keeps a profile whole: what stays as it is is asked for first.
        self.ask(Request::Profile { user: self.me.clone() }, Asked::Merge(field));
    }

    fn models(&mut self) {
        let mut card = Card::new("Models".to_owned());
        for (n, model) in self.welcome.models.iter().enumerate() {
            let note = if n == 0 { "  answers @ai" } else { "" };
            card.line(vec![Piece::new(clean_line(model), Ink::Model), Piece::new(note, Ink::Dim)]);
        }
        if card.lines.is_empty() {
            card.text("this node runs none", Ink::Dim);
        }
        self.popup = Some(Popup::Card(card));
    }

    fn search(&mut self, query: String) {
        let channel = self.open.clone();
        self.popup = Some(Popup::Found(Found { channel, query, next: Some(0), ..Found::default() }));
        self.search_on();
    }

    /// Searches further back until enough is found for now.
    pub(crate) fn search_on(&mut self) {
        let Some(Popup::Found(found)) = &self.popup else { return };
        let (Some(before), None) = (found.next, found.asked) else { return };
        if found.is_full() {
            return;
        }
        let request = Request::Search { channel: found.channel.clone(), query: found.query.clone(), before };
        let ticket = self.ask(request, Asked::Search);
        if let Some(Popup::Found(found)) = &mut self.popup {
            found.asked = ticket;
        }
    }
}

impl crate::rows::Sight<'_> {
    /// Whether an entry can be picked.
    pub(crate) fn pickable(&self, key: Key) -> bool {
        matches!(self.chat.timeline.get(key), Some(Shown::Entry(Entry::Said(_) | Entry::Answer(_)) | Shown::Unsent(_)))
    }
}
