//! Parting with those who may not read a generation any more.

use thalweg_protocol::ids::{ChannelKey, Name};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::Reject;

use super::Watcher;
use crate::contract::SessionMessage;
use crate::shard::Shard;

impl Shard {
    /// Ends the watches of a user on what models answer in a channel.
    pub(crate) fn expel_watchers(&mut self, channel: &ChannelKey, user: &Name, reject: &Reject) {
        let mut going = Vec::new();
        for owned in self.generations.owned.values_mut() {
            if owned.channel().is_some_and(|(key, _)| key == channel) {
                going.extend(owned.watchers.extract_if(.., |watcher| watcher.user == *user));
            }
        }
        let payload = ServerOp::Ended(reject.clone()).encode();
        for Watcher { core, link, watch, .. } in going {
            let payload = payload.clone();
            self.tell_session(core, SessionMessage::Generation { link, watch, payload, last: true });
        }
    }
}
