//! What goes beside the lanes and may be lost: that the user is there, who is in a channel, and who writes.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use thalweg_protocol::chat::Presence;
use thalweg_protocol::frame::{Splitter, header};
use thalweg_protocol::ids::Subscription;
use thalweg_protocol::limits::TYPING_DISTANCE_MS;
use thalweg_protocol::op::{ClientOp, ServerOp};

use super::{Link, State};

/// Datagrams that wait for the driver; a further one pushes the oldest out.
const DATAGRAMS_WAITING_MAX: usize = 64;

impl State {
    /// Whether the node wants to hear that the user is there.
    fn takes_part(&self) -> bool {
        self.away.is_some() || self.subscriptions.values().any(|entry| entry.subscribe.presence)
    }

    /// What tells the node that the user is there, if it wants to know.
    pub(crate) fn heartbeat(&self) -> Option<Bytes> {
        (self.link != Link::Down && self.takes_part()).then(|| datagram(0, &ClientOp::Heartbeat))
    }

    /// The same where datagrams do not get through: on the command lane.
    pub(crate) fn heartbeat_on_lane(&mut self) {
        self.write(0, &ClientOp::Heartbeat, None);
    }

    /// Says that the user writes in a channel, or stopped to; not too often.
    pub(crate) fn typing(&mut self, key: u64, on: bool) {
        let Some(entry) = self.subscriptions.get_mut(&key).filter(|entry| entry.subscribe.presence) else { return };
        let Some(wire) = entry.wire.filter(|_| entry.confirmed) else { return };
        let distance = Duration::from_millis(TYPING_DISTANCE_MS);
        let now = Instant::now();
        match entry.typed {
            Some(last) if on && now.duration_since(last) < distance => return,
            None if !on => return,
            _ => entry.typed = on.then_some(now),
        }
        if self.datagrams.len() == DATAGRAMS_WAITING_MAX {
            self.datagrams.pop_front();
        }
        self.datagrams.push_back(datagram(0, &ClientOp::Typing { subscription: Subscription(wire), on }));
    }

    /// The same, in the channel of this name, if it is read with presence.
    pub(crate) fn typing_in(&mut self, channel: &str, on: bool) {
        let mut found = self.subscriptions.iter().filter(|(_, entry)| entry.subscribe.channel.as_str() == channel);
        let key = found.find(|(_, entry)| entry.subscribe.presence).map(|(&key, _)| key);
        if let Some(key) = key {
            self.typing(key, on);
        }
    }

    /// A report on the people in a channel.
    pub(super) fn present(&self, wire: u32, report: Presence) {
        // It can be under way when its reader unsubscribes.
        let Some(key) = self.subscription_keys.get(&wire) else { return };
        if let Some(entry) = self.subscriptions.get(key).filter(|entry| entry.subscribe.presence) {
            entry.news.present(report);
        }
    }

    /// A datagram: anybody on the way may have lost, repeated or delayed it, so that what makes no sense is counted and
    /// nothing more.
    pub(crate) fn datagram(&mut self, datagram: Bytes) {
        let mut splitter = Splitter::new();
        splitter.push(datagram);
        let frame = splitter.next().ok().flatten().filter(|_| splitter.pending() == 0);
        let notice = frame.and_then(|frame| match ServerOp::decode(&frame.payload) {
            Ok(ServerOp::TypingNotice { user, on }) => Some((frame.subject, user, on)),
            _ => None,
        });
        let taken = notice.is_some_and(|(wire, user, on)| {
            let entry = self.subscription_keys.get(&wire).and_then(|key| self.subscriptions.get(key));
            entry.is_some_and(|entry| entry.subscribe.presence && entry.news.typing(user, on))
        });
        self.datagrams_ignored += u64::from(!taken);
    }
}

fn datagram(subject: u32, op: &ClientOp) -> Bytes {
    let payload = op.encode();
    let mut datagram = BytesMut::from(&header(payload.len(), subject)[..]);
    datagram.extend_from_slice(&payload);
    datagram.freeze()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use thalweg_protocol::chat::ChatOp;
    use thalweg_protocol::ids::Epoch;
    use tokio::sync::{Semaphore, oneshot};

    use super::*;
    use crate::entries::{PendingCall, Repeat};

    #[test]
    fn who_takes_part_is_heard() {
        let mut state = State::new(8, true);
        state.connected(8, Epoch(1));
        assert_eq!(state.heartbeat(), None, "nobody asked to be seen");
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("there is one");
        let op = ClientOp::Chat(ChatOp::SetPresence { away: false });
        let (reply, _) = oneshot::channel();
        state.call(PendingCall { op, trace: None, repeat: Repeat::Again, retried: false, reply, _permit: permit });
        let heartbeat = state.heartbeat().expect("there is somebody");
        assert_eq!(ClientOp::decode(&heartbeat.slice(8..)).expect("an operation"), ClientOp::Heartbeat);
        state.disconnected(&crate::ClientError::Closed);
        assert_eq!(state.heartbeat(), None, "there is nobody to tell");
    }
}
