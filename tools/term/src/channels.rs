//! Which channels there are, which of them are read, and which one is looked at.

use crate::app::{App, Pane};
use crate::chat::{Chat, Live};
use crate::event::{ChannelKind, Command};
use crate::layout::Areas;

/// Channels that are read at once; the least active beyond that show what the list says of them.
const CHANNELS_READ_MAX: usize = 128;
/// Channels that are known.
const CHANNELS_MAX: usize = 1_024;

impl App {
    /// Reads a channel from its end.
    pub(crate) fn watch(&mut self, channel: &str, make: bool) {
        let reading = self.chats.values().filter(|chat| matches!(chat.live, Live::Reading | Live::Opening)).count();
        if let Some(chat) = self.chats.get_mut(channel) {
            if matches!(chat.live, Live::Reading | Live::Opening) {
                return;
            }
            if reading >= CHANNELS_READ_MAX {
                self.drop_least_active();
            }
        }
        if let Some(chat) = self.chats.get_mut(channel) {
            chat.live = Live::Opening;
            self.command(Command::Watch { channel: channel.to_owned(), make });
        }
    }

    /// Stops reading the channel with the least going on.
    fn drop_least_active(&mut self) {
        let open = &self.open;
        let idle = self.chats.values_mut().filter(|chat| chat.live == Live::Reading && chat.name != *open);
        if let Some(chat) = idle.min_by_key(|chat| chat.timeline.head) {
            chat.live = Live::Idle;
            let channel = chat.name.clone();
            self.command(Command::Unwatch { channel });
        }
    }

    /// Goes to a channel that is known.
    pub(crate) fn show(&mut self, channel: &str) {
        if !self.chats.contains_key(channel) && self.chats.len() < CHANNELS_MAX {
            self.chats.insert(channel.to_owned(), Chat::new(channel));
        }
        if channel != self.open {
            self.quiet();
            if let Some(chat) = self.chat_mut() {
                // What was new is old when one comes back.
                chat.mark = None;
                chat.read_due = None;
                chat.picked = None;
            }
            self.before = Some(std::mem::replace(&mut self.open, channel.to_owned()));
        }
        self.completion = None;
        if self.sidebar == Pane::Shown && Areas::of(self).overlays() {
            self.sidebar = Pane::Auto;
        }
        if let Some(chat) = self.chat_mut().filter(|chat| chat.unread > 0 && chat.mark.is_none()) {
            chat.mark = Some(chat.read);
        }
        let channel = channel.to_owned();
        if self.is_up() {
            self.watch(&channel, false);
        }
    }

    /// Channels as they stand in the sidebar: those with many, then those with few.
    pub(crate) fn order(&self) -> Vec<&Chat> {
        let mut chats: Vec<&Chat> = self
            .chats
            .values()
            .filter(|chat| chat.listed || chat.name == self.open || chat.live == Live::Reading)
            .collect();
        chats.sort_by(|a, b| {
            let direct = |chat: &Chat| chat.kind == ChannelKind::Direct;
            direct(a).cmp(&direct(b)).then_with(|| a.name.cmp(&b.name))
        });
        chats
    }

    /// Reads the listed channels too, so that what is unread is known at once.
    pub(crate) fn watch_listed(&mut self) {
        let reading = self.chats.values().filter(|chat| matches!(chat.live, Live::Reading | Live::Opening)).count();
        let listed = self.chats.values().filter(|chat| chat.listed && chat.live == Live::Idle);
        let names: Vec<String> =
            listed.map(|chat| chat.name.clone()).take(CHANNELS_READ_MAX.saturating_sub(reading)).collect();
        for name in names {
            self.watch(&name, false);
        }
    }

    pub(crate) fn channels_max(&self) -> bool {
        self.chats.len() >= CHANNELS_MAX
    }
}
