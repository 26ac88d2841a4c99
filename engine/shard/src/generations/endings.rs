//! Generations that end before their end: cancelled, deleted, kept long enough; and parting with those who may not read one
//! any more.

use std::sync::Arc;

use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::Event;
use thalweg_protocol::ids::{ChannelKey, GenerationId, Name};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::{Owned, Watcher, unknown};
use crate::contract::{Origin, SessionMessage};
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

    /// Deletes the generations of a tenant.
    pub(crate) fn delete_generations(&mut self, tenant: &Name) {
        let of_tenant = |owned: &Owned| owned.generation.request.tenant == *tenant && !owned.deleting;
        let of_tenant = self.generations.owned.iter().filter(|(_, owned)| of_tenant(owned));
        let ids: Vec<_> = of_tenant.map(|(&id, owned)| (id, owned.logged)).collect();
        for (id, logged) in ids {
            if let Some(owned) = self.generations.owned.get_mut(&id) {
                owned.deleting = true;
            }
            self.stop(id);
            let event = Event::GenerationDeleted { generation: id };
            self.append_posting(id.partition(), logged, event, Vec::new());
        }
    }

    /// Ends the generations that answer in a channel.
    pub(crate) fn cancel_in_channel(&mut self, channel: &ChannelKey) {
        let answers = |owned: &Owned| owned.channel().is_some_and(|(key, _)| key == channel) && !owned.ends();
        let ids: Vec<_> =
            self.generations.owned.iter().filter(|(_, owned)| answers(owned)).map(|(&id, _)| id).collect();
        for generation in ids {
            self.stop(generation);
        }
    }

    /// A generation was kept long enough, or deleted; whoever has not read it to its end is told.
    pub(crate) fn expire(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.remove(&id) else { return };
        self.generations.unfinished -= usize::from(owned.generation.ending().is_none());
        self.generations.attempts.remove(&owned.attempt);
        if let Some(writer) = owned.writer {
            self.writer_ended(id, *writer);
        }
        let payload = ServerOp::Ended(unknown(id)).encode();
        for Watcher { core, link, watch, .. } in owned.watchers {
            let payload = payload.clone();
            self.tell_session(core, SessionMessage::Generation { link, watch, payload, last: true });
        }
    }

    pub(crate) fn cancel(&mut self, origin: Origin, principal: &Arc<Principal>, id: GenerationId) {
        let found = self.generations.owned.get(&id).filter(|owned| owned.generation.request.tenant == principal.tenant);
        let result = found.ok_or_else(|| unknown(id)).and_then(|owned| {
            if owned.generation.request.user == principal.user || principal.may(Access::Admin, "generations") {
                return Ok(owned.generation.ending().is_some());
            }
            let (channel, _) = owned.channel().ok_or_else(|| {
                let text = format!("{} did not ask for {id}", principal.user);
                Reject::new(RejectCode::Forbidden, text)
            })?;
            principal.require(Access::Write, channel.channel.as_str())?;
            Ok(owned.generation.ending().is_some())
        });
        match result {
            Ok(ended) => {
                if !ended {
                    self.stop(id);
                }
                self.answer(origin, ServerOp::Done);
            }
            Err(reject) => self.refuse(origin, reject),
        }
    }
}
