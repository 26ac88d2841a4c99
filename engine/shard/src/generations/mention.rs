//! Answers to those who speak to a model in a channel.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_domain::record::{GenerationRequest, Message};
use thalweg_domain::routing::Need;
use thalweg_protocol::generation::{FinishReason, OnDetach, Priority, Sampling};
use thalweg_protocol::ids::ChannelKey;
use thalweg_protocol::limits::LEAD_TOKENS;
use thalweg_protocol::op::DeliveryKind;
use thalweg_protocol::reject::RejectCode;

use super::{Begin, author};
use crate::shard::Shard;

impl Shard {
    /// Somebody spoke to a model in a channel. `older` are messages of it that were read back from disk.
    pub(crate) fn answer_in_channel(
        &mut self,
        channel: ChannelKey,
        principal: &Principal,
        trace: u64,
        older: &[Arc<Message>],
    ) {
        let partition = self.partition(&channel.tenant, channel.channel.as_str());
        let messages = self.conversation(&channel, older);
        let Some((channel_id, logged)) = self.channel_id(&channel) else { return };
        let sampling = Sampling::default();
        let need = Need { max_tokens: sampling.max_tokens, ..Need::of_conversation(&messages) };
        let (model, refusal) = match self.route(principal, None, &need) {
            Ok(model) => (model, None),
            // Those who spoke see that it was heard, and why there is no answer.
            Err(reject) if reject.code == RejectCode::Busy => match self.routes().cards.first() {
                Some(card) => (card.name.clone(), Some(reject)),
                None => return,
            },
            Err(_) => return,
        };
        let Ok(id) = self.next_generation(partition) else { return };
        let sampling = Sampling { seed: id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..sampling };
        let body = Bytes::copy_from_slice(model.as_str().as_bytes());
        let posting = self.generated(&channel, channel_id, DeliveryKind::GenerationStarted, author(&model), id, body);
        let request = GenerationRequest {
            tenant: channel.tenant.clone(),
            user: principal.user.clone(),
            model,
            channel: Some((channel, channel_id)),
            messages,
            sampling,
            on_detach: OnDetach::Keep(0),
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
        };
        let fallbacks = self.fallbacks(principal, &request.model);
        let (credit, refused) = (LEAD_TOKENS, refusal.is_some());
        let begin = Begin { logged, posting, credit, trace, fallbacks, refused, ..Begin::default() };
        self.begin(id, Arc::new(request), begin);
        if let Some(reject) = refusal {
            self.finish(id, FinishReason::Failed, reject.to_string(), Some(reject));
        }
    }
}
