//! The application: everything a person sees and does, as a value.

use std::collections::BTreeMap;
use std::time::Duration;

use thalweg_protocol::ids::GenerationId;

use crate::chat::{Chat, Live};
use crate::clock::{Now, Zone};
use crate::complete::Completion;
use crate::editor::History;
use crate::event::{ChannelKind, Command, Event, Item, Kind, Link, Request, State, Ticket, Welcome};
use crate::ink::Ink;
use crate::layout::Areas;
use crate::popup::Popup;
use crate::rows::{SPINNER_MS, Sight};
use crate::slash::ProfileField;
use crate::text;
use crate::theme::Theme;
use crate::timeline::Change;

/// Requests that wait for their answer.
const TICKETS_MAX: usize = 512;
/// The list of channels is asked for again: who was invited elsewhere is told by it alone.
const LIST_EVERY: Duration = Duration::from_secs(15);
/// How long a remark stands.
const NOTICE_FOR: Duration = Duration::from_secs(8);
/// What was shown so long is read.
pub(crate) const READ_AFTER: Duration = Duration::from_millis(700);
/// Nobody is at the keys.
const AWAY_AFTER: Duration = Duration::from_millis(thalweg_protocol::limits::AWAY_AFTER_MS);
/// A second Ctrl-C within this time leaves.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// Positions of one page of history.
pub(crate) const PAGE: u32 = 128;

/// What the application starts with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The channel that is opened; made if there is none.
    pub channel: String,
    /// How it looks.
    pub theme: Theme,
    /// Where the person lives, for times.
    pub zone: Zone,
    /// Columns and lines of the terminal.
    pub size: (u16, u16),
}

/// What an answer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A message of ours.
    Post {
        channel: String,
    },
    /// A change of a message, to be shown when it is confirmed.
    Change {
        channel: String,
        item: crate::event::Delivery,
    },
    /// History before or after what is known.
    History {
        channel: String,
    },
    /// More of what the popup searches.
    Search,
    Channels,
    /// What is known of a channel, whether it is shown, and whether the channel is opened.
    About {
        show: bool,
        open: bool,
    },
    /// To become a member of a channel and open it; `make` it if there is none.
    Enter {
        channel: String,
        make: bool,
    },
    /// To become a member of a channel that is open already.
    Join,
    Leave {
        channel: String,
    },
    Read {
        channel: String,
    },
    Profile,
    /// Our profile, in which this is changed.
    Merge(ProfileField),
    /// Who is in a channel.
    Who {
        channel: String,
    },
    /// Says this when it is done.
    Say(String),
    /// Stops an answer.
    Cancel,
}

/// A remark at the foot of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) ink: Ink,
    pub(crate) until: Duration,
}

/// Whether a pane beside the conversation is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Pane {
    /// If there is room.
    #[default]
    Auto,
    /// Over the conversation if there is no room.
    Shown,
    Hidden,
}

/// Everything a person sees and does.
///
/// [`handle`](Self::handle) takes what happened and gives what is to be done; [`render`](crate::render) shows it. It reads no
/// clock and does no I/O: the shell does, and calls it again when [`wake`](Self::wake) says so. The same events give the same
/// screens.
#[derive(Debug)]
pub struct App {
    pub(crate) me: String,
    pub(crate) welcome: Welcome,
    pub(crate) link: Link,
    /// Since when the connection stands as it does.
    pub(crate) link_since: Duration,
    pub(crate) chats: BTreeMap<String, Chat>,
    pub(crate) open: String,
    pub(crate) before: Option<String>,
    pub(crate) size: (u16, u16),
    pub(crate) theme: Theme,
    pub(crate) zone: Zone,
    pub(crate) now: Now,
    pub(crate) sidebar: Pane,
    pub(crate) people: Pane,
    pub(crate) popup: Option<Popup>,
    pub(crate) completion: Option<Completion>,
    pub(crate) notice: Option<Notice>,
    pub(crate) history: History,
    pub(crate) focused: bool,
    pub(crate) state: State,
    pub(crate) mouse: bool,
    /// The key that would delete or leave was pressed once.
    pub(crate) sure: Option<(Sure, Duration)>,
    /// Answers that were told to stop.
    pub(crate) stopped: Option<GenerationId>,
    last_key: Duration,
    list_due: Duration,
    tickets: BTreeMap<Ticket, Asked>,
    tickets_given: Ticket,
    commands: Vec<Command>,
}

/// What is done only when it is asked for twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sure {
    Leave,
    Delete(u64),
}

impl App {
    /// An application that has not met its node yet.
    pub fn new(options: Options) -> Self {
        let Options { channel, theme, zone, size } = options;
        let mut app = Self {
            me: String::new(),
            welcome: Welcome::default(),
            link: Link::Trying { attempt: 1, reason: String::new() },
            link_since: Duration::ZERO,
            chats: BTreeMap::new(),
            open: channel.clone(),
            before: None,
            size,
            theme,
            zone,
            now: Now::default(),
            sidebar: Pane::Auto,
            people: Pane::Auto,
            popup: None,
            completion: None,
            notice: None,
            history: History::default(),
            focused: true,
            state: State::Online,
            mouse: true,
            sure: None,
            stopped: None,
            last_key: Duration::ZERO,
            list_due: LIST_EVERY,
            tickets: BTreeMap::new(),
            tickets_given: 0,
            commands: Vec::new(),
        };
        app.chats.insert(channel.clone(), Chat::new(&channel));
        app
    }

    /// Takes what happened, and gives what is to be done because of it, in that order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Command> {
        self.now = now;
        match event {
            Event::Key(key) => self.key(key),
            Event::Mouse(mouse) => self.mouse_event(mouse),
            Event::Paste(text) => self.paste(&text),
            Event::Resize { columns, lines } => self.size = (columns, lines),
            Event::Focus(focused) => {
                self.focused = focused;
                if focused {
                    self.awake();
                }
            }
            Event::Timer => {}
            Event::Link(link) => self.linked(link),
            Event::Welcome(welcome) => self.welcomed(welcome),
            Event::Opened { channel, next, head } => self.opened(&channel, next, head),
            Event::Shut { channel, reason } => self.shut(&channel, reason),
            Event::Item { channel, item } => self.item(&channel, &item),
            Event::Answered { ticket, result } => self.answered(ticket, result),
        }
        self.settle();
        std::mem::take(&mut self.commands)
    }

    /// When [`Event::Timer`] is to be handed in; `None` if nothing waits.
    pub fn wake(&self) -> Option<Duration> {
        let mut times: Vec<Duration> = Vec::new();
        times.extend(self.notice.as_ref().map(|notice| notice.until));
        times.extend(self.sure.map(|(_, until)| until));
        if let Some(chat) = self.chats.get(&self.open) {
            times.extend(chat.typing.values().min());
            times.extend(chat.read_due);
            times.extend(chat.typing_due);
            if chat.timeline.running().is_some() {
                times.push(self.now.mono + Duration::from_millis(SPINNER_MS));
            }
        }
        match self.link {
            Link::Up { .. } => {
                times.push(self.list_due);
                if self.state == State::Online {
                    times.push(self.last_key + AWAY_AFTER);
                }
            }
            // The time since the loss is shown in seconds.
            Link::Trying { .. } | Link::Leaving { .. } => times.push(self.now.mono + Duration::from_secs(1)),
            Link::Over { .. } => {}
        }
        times.into_iter().min()
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// Asks the node; the answer is for `asked`. Without a connection nothing is asked but what the node will be told later.
    pub(crate) fn ask(&mut self, request: Request, asked: Asked) -> Option<Ticket> {
        if self.tickets.len() >= TICKETS_MAX {
            self.say("too many requests are unanswered; try again in a moment", Ink::Error);
            return None;
        }
        self.tickets_given += 1;
        let ticket = self.tickets_given;
        self.tickets.insert(ticket, asked);
        self.commands.push(Command::Ask { ticket, request });
        Some(ticket)
    }

    pub(crate) fn asked(&mut self, ticket: Ticket) -> Option<Asked> {
        self.tickets.remove(&ticket)
    }

    /// A remark at the foot of the screen.
    pub(crate) fn say(&mut self, text: impl AsRef<str>, ink: Ink) {
        let text = text::clean_line(text.as_ref());
        self.notice = Some(Notice { text, ink, until: self.now.mono + NOTICE_FOR });
    }

    pub(crate) fn chat(&self) -> Option<&Chat> {
        self.chats.get(&self.open)
    }

    pub(crate) fn chat_mut(&mut self) -> Option<&mut Chat> {
        self.chats.get_mut(&self.open)
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Messages that the node did not confirm or refuse yet.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.chats.values().map(|chat| chat.timeline.waiting()).sum()
    }

    /// The open channel as it is looked at.
    pub(crate) fn sight(&self) -> Option<(Sight<'_>, Areas)> {
        let areas = Areas::of(self);
        let columns = usize::from(areas.text_columns());
        let chat = self.chat()?;
        Some((Sight { chat, me: &self.me, zone: &self.zone, now: self.now, columns }, areas))
    }

    /// Somebody is at the keys.
    pub(crate) fn awake(&mut self) {
        self.last_key = self.now.mono;
        if self.state == State::Away {
            self.state = State::Online;
            self.command(Command::Present(State::Online));
        }
    }

    /// Says that nobody is at the keys, until the next one is pressed.
    pub(crate) fn away(&mut self) {
        if self.state == State::Online {
            self.state = State::Away;
            self.command(Command::Present(State::Away));
        }
    }

    /// What follows from every event: times that have come, and what must be asked for because of what is on the screen.
    fn settle(&mut self) {
        let mono = self.now.mono;
        self.notice.take_if(|notice| notice.until <= mono);
        self.sure.take_if(|(_, until)| *until <= mono);
        if self.is_up() {
            if mono >= self.last_key + AWAY_AFTER {
                self.away();
            }
            if mono >= self.list_due {
                self.list();
            }
        }
        let now = self.now;
        let open = self.open.clone();
        for (name, chat) in &mut self.chats {
            chat.expire(now);
            chat.trim(*name == open);
        }
        if self.chat_mut().is_some_and(|chat| chat.typing_due.take_if(|due| *due <= mono).is_some()) {
            self.typed();
        }
        self.read();
        self.page();
    }

    /// Tells the node that the newest was shown, a moment after it was.
    fn read(&mut self) {
        let (focused, mono, up) = (self.focused, self.now.mono, self.is_up());
        let Some(chat) = self.chats.get_mut(&self.open) else { return };
        let newest = chat.timeline.head;
        if !focused || !chat.at_bottom() || chat.live != Live::Reading || newest <= chat.read {
            chat.read_due = None;
            return;
        }
        match chat.read_due {
            None => chat.read_due = Some(mono + READ_AFTER),
            Some(due) if due <= mono && up => {
                chat.read_due = None;
                chat.read_all();
                let (channel, number) = (chat.name.clone(), chat.messages);
                let request = Request::MarkRead { channel: channel.clone(), position: newest, number };
                self.ask(request, Asked::Read { channel });
            }
            Some(_) => {}
        }
    }

    /// Asks for older history when the top of what is known is on the screen.
    fn page(&mut self) {
        if !self.is_up() || self.size.0 == 0 || self.size.1 == 0 {
            return;
        }
        let Some((sight, areas)) = self.sight() else { return };
        let timeline = &sight.chat.timeline;
        let more = timeline.from > timeline.first.max(1);
        let wanted = sight.chat.live == Live::Reading && sight.chat.paging.is_none() && more;
        if !wanted || !sight.window(usize::from(areas.timeline.height)).at_top {
            return;
        }
        self.older();
    }

    /// Asks for the page before what is known of the open channel.
    pub(crate) fn older(&mut self) {
        let Some(chat) = self.chat().filter(|chat| chat.paging.is_none()) else { return };
        let (channel, to, first) = (chat.name.clone(), chat.timeline.from, chat.timeline.first.max(1));
        if to <= first {
            return;
        }
        let from = to.saturating_sub(u64::from(PAGE)).max(first);
        let limit = u32::try_from(to - from).unwrap_or(PAGE);
        let request = Request::History { channel: channel.clone(), from, limit };
        let ticket = self.ask(request, Asked::History { channel });
        if let Some(chat) = self.chat_mut() {
            chat.paging = ticket;
        }
    }

    /// Asks for our channels.
    pub(crate) fn list(&mut self) {
        self.list_due = self.now.mono + LIST_EVERY;
        self.ask(Request::Channels, Asked::Channels);
    }

    fn linked(&mut self, link: Link) {
        let again = !matches!((&self.link, &link), (Link::Trying { .. }, Link::Trying { .. }));
        if again {
            self.link_since = self.now.mono;
        }
        match &link {
            Link::Up { .. } => {
                if !self.is_up() && !self.me.is_empty() {
                    self.say("connected", Ink::Good);
                    self.command(Command::Present(self.state));
                }
                self.list_due = self.now.mono;
            }
            Link::Over { reason } => {
                let reason = reason.clone();
                self.say(format!("the connection is over: {reason}"), Ink::Error);
            }
            Link::Trying { .. } | Link::Leaving { .. } => {
                // Those who were there are not known any more.
                for chat in self.chats.values_mut() {
                    chat.typing.clear();
                    chat.met = false;
                }
            }
        }
        self.link = link;
    }

    fn welcomed(&mut self, welcome: Welcome) {
        self.me = welcome.user.clone();
        self.welcome = welcome;
        let idle = self.chat().is_some_and(|chat| chat.live == Live::Idle);
        if idle {
            let channel = self.open.clone();
            self.ask(Request::Join { channel: channel.clone() }, Asked::Enter { channel, make: true });
        }
        self.list();
    }

    fn opened(&mut self, channel: &str, next: u64, head: u64) {
        let Some(chat) = self.chats.get_mut(channel) else { return };
        chat.live = Live::Reading;
        let known = chat.timeline.head;
        if chat.timeline.from == 0 || next > known + 1 {
            // What came while nobody read is not here: history begins anew from the end.
            chat.timeline.forget();
            chat.timeline.from = next;
            chat.timeline.first = 1;
            chat.timeline.head = head;
            (chat.anchor, chat.picked, chat.thread, chat.paging) = (None, None, None, None);
        }
        if chat.unread > 0 && chat.mark.is_none() {
            chat.mark = Some(chat.read);
        }
        let join = std::mem::take(&mut chat.join_when_open);
        let channel = channel.to_owned();
        if join {
            self.ask(Request::Join { channel: channel.clone() }, Asked::Join);
        }
        self.ask(Request::About { channel }, Asked::About { show: false, open: false });
    }

    fn shut(&mut self, channel: &str, reason: String) {
        let reason = text::clean_line(&reason);
        if let Some(chat) = self.chats.get_mut(channel) {
            chat.live = Live::Shut(reason.clone());
            chat.typing.clear();
            let at_us = self.now.wall_us;
            chat.timeline.note(format!("this channel is not read: {reason}"), at_us);
        }
    }

    fn item(&mut self, channel: &str, item: &Item) {
        let (now, open, focused) = (self.now, self.open == channel, self.focused);
        let me = self.me.clone();
        let Some(chat) = self.chats.get_mut(channel) else { return };
        match item {
            Item::Typing { user, on } if *user != me => chat.typing(user, *on, now),
            Item::Typing { .. } => {}
            Item::Presence { .. } => chat.presence(item, &me, now),
            Item::Delivery(_) | Item::Missed { .. } | Item::Rewound { .. } => {
                let before = chat.timeline.head;
                let change = chat.timeline.apply(item, &me);
                if let Item::Delivery(delivery) = item {
                    chat.messages = chat.messages.max(delivery.number);
                    if matches!(delivery.kind, Kind::Message { .. }) {
                        chat.wrote(&delivery.user, now);
                    }
                }
                self.changed(channel, change, before, open && focused);
            }
        }
    }

    /// Counts what is unread, and tells of what concerns us.
    fn changed(&mut self, channel: &str, change: Change, before: u64, looking: bool) {
        let Some(chat) = self.chats.get_mut(channel) else { return };
        match change {
            Change::Message { calls_me } => {
                if looking && chat.at_bottom() {
                    return;
                }
                if chat.unread == 0 && !looking {
                    chat.mark = Some(before);
                }
                chat.unread += 1;
                chat.mentions += u64::from(calls_me);
                chat.below += u64::from(!chat.at_bottom());
                if (calls_me || chat.kind == ChannelKind::Direct) && !looking {
                    self.command(Command::Bell);
                }
            }
            Change::Topic(topic) => chat.topic = topic,
            Change::Membership { user, role } if user == self.me => {
                chat.role = role;
                self.list();
            }
            Change::Membership { .. } | Change::Shown | Change::Nothing => {}
        }
    }
}
