//! Who is there.

use thalweg_protocol::chat::PresenceState;
use thalweg_protocol::ids::{ChannelKey, Name, Subscription};
use thalweg_protocol::op::ServerOp;

use crate::contract::{Link, Origin};
use crate::shard::Shard;

/// What this core knows of who is there.
#[derive(Default)]
pub(crate) struct Presences {}

impl Shard {
    pub(crate) fn heard(&mut self, _link: Link) {}

    pub(crate) fn request_typing(&mut self, _link: Link, _subscription: Subscription, _on: bool) {}

    pub(crate) fn request_set_presence(&mut self, origin: Origin, _away: bool) {
        self.reply(origin.link, origin.request, ServerOp::Done);
    }

    pub(crate) fn answer_who_is_in(&mut self, origin: Origin, _channel: &ChannelKey) {
        self.answer(origin, ServerOp::PresenceReport { count: 0, users: Vec::new(), complete: true });
    }

    pub(crate) fn presence_of(&self, _user: &(Name, Name)) -> (PresenceState, u64) {
        (PresenceState::Offline, 0)
    }
}
