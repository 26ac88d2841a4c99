//! Values to FlatBuffers.

macro_rules! table {
    ($builder:ident, $table:ident, $args:expr) => {
        (wire::Op::$table, wire::$table::create($builder, &$args).as_union_value())
    };
}

mod chat;
mod document;
mod generation;

use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};

use super::{
    ClientOp, CreateChannel, Delivery, DeliveryKind, Durability, From, Hello, Policy, Publish, ServerOp, Subscribe,
    WatchRequest, Welcome,
};
use crate::chat::{ChannelKind, PostRule};
use crate::generated::thalweg::wire;
use crate::ids::SessionId;
use crate::reject::Reject;
use crate::trace::TraceContext;

type Builder = FlatBufferBuilder<'static>;
type Offset = WIPOffset<UnionWIPOffset>;

/// Room for a table and its small fields beside its body.
const ENVELOPE_BYTES: usize = 192;

fn finish(
    body_bytes: usize,
    trace: Option<TraceContext>,
    build: impl FnOnce(&mut Builder) -> (wire::Op, Offset),
) -> Bytes {
    let mut builder = Builder::with_capacity(body_bytes + ENVELOPE_BYTES);
    let (op_type, op) = build(&mut builder);
    let trace = trace.map(|TraceContext { trace, span, flags }| {
        wire::TraceContext::new((trace >> 64) as u64, trace as u64, span, flags)
    });
    let frame = wire::Frame::create(&mut builder, &wire::FrameArgs { op_type, op: Some(op), trace: trace.as_ref() });
    builder.finish(frame, None);
    let (buffer, start) = builder.collapse();
    Bytes::from(buffer).slice(start..)
}

fn id128(session: SessionId) -> wire::Id128 {
    wire::Id128::new((session.0 >> 64) as u64, session.0 as u64)
}

impl ClientOp {
    /// The payload of a frame.
    pub fn encode(&self) -> Bytes {
        self.encode_traced(None)
    }

    /// The payload of a frame that says which trace the request is part of.
    pub fn encode_traced(&self, trace: Option<TraceContext>) -> Bytes {
        let body_bytes = match self {
            Self::Publish(publish) => publish.body.len(),
            Self::Ask(ask) => {
                let messages: usize = ask.messages.iter().map(|m| m.content.len() + 32).sum();
                messages + ask.sampling.constraint.text().len() + 8 * ask.sampling.logit_bias.len()
            }
            Self::Embed { texts, .. } => texts.iter().map(|text| text.len() + 16).sum(),
            Self::Hello(hello) => hello.token.len(),
            Self::Manage { json } => json.len(),
            Self::Document(op) => document::request_bytes(op),
            _ => 0,
        };
        finish(body_bytes, trace, |b| match self {
            Self::Hello(hello) => build_hello(b, hello),
            Self::CreateChannel(create) => build_create_channel(b, create),
            Self::Publish(publish) => build_publish(b, publish),
            Self::Subscribe(subscribe) => build_subscribe(b, subscribe),
            Self::Unsubscribe { subscription } => {
                table!(b, Unsubscribe, wire::UnsubscribeArgs { subscription: subscription.0 })
            }
            Self::Consumed { subscription, position } => {
                table!(b, Consumed, wire::ConsumedArgs { subscription: subscription.0, position: position.0 })
            }
            Self::Ask(ask) => generation::build_ask(b, ask),
            Self::Watch(WatchRequest { generation, from, lead, epoch, seen }) => {
                let (generation, from, lead, epoch) = (generation.0, *from, *lead, epoch.0);
                let (seen, has_seen) = (seen.unwrap_or(0), seen.is_some());
                table!(b, Watch, wire::WatchArgs { generation, from, lead, epoch, seen, has_seen })
            }
            Self::TokensConsumed { watch, index } => {
                table!(b, TokensConsumed, wire::TokensConsumedArgs { watch: watch.0, index: *index })
            }
            Self::Unwatch { watch } => table!(b, Unwatch, wire::UnwatchArgs { watch: watch.0 }),
            Self::Cancel { generation } => table!(b, Cancel, wire::CancelArgs { generation: generation.0 }),
            Self::Ping { nonce } => table!(b, Ping, wire::PingArgs { nonce: *nonce }),
            Self::Stats => table!(b, Stats, wire::StatsArgs {}),
            Self::Drain => table!(b, Drain, wire::DrainArgs {}),
            Self::DeleteChannel { channel } => {
                let channel = Some(b.create_string(channel.as_str()));
                table!(b, DeleteChannel, wire::DeleteChannelArgs { channel })
            }
            Self::DeleteTenant => table!(b, DeleteTenant, wire::DeleteTenantArgs {}),
            Self::Checkpoint => table!(b, Checkpoint, wire::CheckpointArgs {}),
            Self::ReadHistory { channel, from, limit } => {
                let channel = Some(b.create_string(channel.as_str()));
                table!(b, ReadHistory, wire::ReadHistoryArgs { channel, from: from.0, limit: *limit })
            }
            Self::Chat(op) => chat::build_request(b, op),
            Self::Login(login) => chat::build_login(b, login),
            Self::Manage { json } => {
                let json = Some(b.create_vector(json));
                table!(b, Manage, wire::ManageArgs { json })
            }
            Self::Heartbeat => table!(b, Heartbeat, wire::HeartbeatArgs {}),
            Self::Typing { subscription, on } => {
                table!(b, Typing, wire::TypingArgs { subscription: subscription.0, on: *on })
            }
            Self::Embed { model, texts } => generation::build_embed(b, model.as_ref(), texts),
            Self::Document(op) => document::build_request(b, op),
        })
    }
}

fn build_hello(b: &mut Builder, hello: &Hello) -> (wire::Op, Offset) {
    let (token, client) = (Some(b.create_string(&hello.token)), Some(b.create_string(&hello.client)));
    let session = id128(hello.session);
    let (version_min, version_max) = hello.versions;
    table!(b, Hello, wire::HelloArgs { version_min, version_max, session: Some(&session), token, client })
}

fn build_create_channel(b: &mut Builder, create: &CreateChannel) -> (wire::Op, Offset) {
    let channel = Some(b.create_string(create.channel.as_str()));
    let CreateChannel { history_messages, history_bytes, history_age_ms, .. } = *create;
    let durability = match create.durability {
        None => wire::Durability::Default,
        Some(Durability::Memory) => wire::Durability::Memory,
        Some(Durability::Disk) => wire::Durability::Disk,
        Some(Durability::Replicated) => wire::Durability::Replicated,
    };
    let topic = (!create.about.topic.is_empty()).then(|| b.create_string(&create.about.topic));
    // What is not said is not written, so that a frame without it is that of the first version.
    let kind = chat::kind(Some(create.about.kind).filter(|kind| *kind != ChannelKind::default()));
    let post = chat::post_rule(Some(create.about.post).filter(|rule| *rule != PostRule::default()));
    let args = wire::CreateChannelArgs {
        channel,
        history_messages,
        history_bytes,
        history_age_ms,
        durability,
        kind,
        topic,
        post,
    };
    table!(b, CreateChannel, args)
}

fn build_publish(b: &mut Builder, publish: &Publish) -> (wire::Op, Offset) {
    let body = Some(b.create_vector(&publish.body));
    let channel = Some(b.create_string(publish.channel.as_str()));
    let Publish { sequence, retry, make, key, .. } = *publish;
    let (kind, target) = (chat::post_kind(publish.post.kind), publish.post.target.0);
    table!(b, Publish, wire::PublishArgs { channel, sequence: sequence.0, retry, body, key, make, kind, target })
}

fn build_subscribe(b: &mut Builder, subscribe: &Subscribe) -> (wire::Op, Offset) {
    let channel = Some(b.create_string(subscribe.channel.as_str()));
    let (from, position) = match subscribe.from {
        From::Start => (wire::FromKind::Start, 0),
        From::End => (wire::FromKind::End, 0),
        From::Position(position) => (wire::FromKind::Position, position.0),
    };
    let policy = match subscribe.policy {
        Policy::Replay => wire::Policy::Replay,
        Policy::Drop => wire::Policy::Drop,
        Policy::Disconnect => wire::Policy::Disconnect,
    };
    let Subscribe { lead, make, presence, .. } = *subscribe;
    table!(b, Subscribe, wire::SubscribeArgs { channel, from, position, policy, lead, make, presence })
}

impl ServerOp {
    /// The payload of a frame.
    pub fn encode(&self) -> Bytes {
        let body_bytes = match self {
            Self::Delivery(delivery) => delivery.body.len(),
            Self::Tokens { text, details, .. } => text.len() + generation::details_bytes(details),
            Self::Embedded { vectors, .. } => 4 * vectors.len(),
            Self::StatsReport { json } => json.len(),
            Self::Page { deliveries, .. } => deliveries.iter().map(|delivery| delivery.len() + 32).sum(),
            Self::Managed { json } => json.len(),
            Self::Document(news) => document::news_bytes(news),
            _ => 0,
        };
        finish(body_bytes, None, |b| match self {
            Self::Welcome(welcome) => build_welcome(b, welcome),
            Self::Reject(reject) => build_reject(b, reject),
            Self::Done => table!(b, Done, wire::DoneArgs {}),
            Self::ChannelCreated { created } => {
                table!(b, ChannelCreated, wire::ChannelCreatedArgs { created: *created })
            }
            Self::Published { position, timestamp_us, duplicate } => {
                let (position, timestamp_us, duplicate) = (position.0, *timestamp_us, *duplicate);
                table!(b, Published, wire::PublishedArgs { position, timestamp_us, duplicate })
            }
            Self::Subscribed { next, head } => {
                table!(b, Subscribed, wire::SubscribedArgs { next: next.0, head: head.0 })
            }
            Self::Delivery(delivery) => build_delivery(b, delivery),
            Self::Missed { from, to } => table!(b, Missed, wire::MissedArgs { from: from.0, to: to.0 }),
            Self::Ended(reject) => {
                let message = Some(b.create_string(&reject.message));
                table!(b, Ended, wire::EndedArgs { code: reject.code as u16, message })
            }
            Self::Asked { generation, model } => {
                let model = Some(b.create_string(model));
                table!(b, Asked, wire::AskedArgs { generation: generation.0, model })
            }
            Self::Tokens { index, count, text, details } => {
                generation::build_tokens(b, (*index, *count), text, details)
            }
            Self::Finished { reason, usage, message } => generation::build_finished(b, *reason, *usage, message),
            Self::Pong { nonce } => table!(b, Pong, wire::PongArgs { nonce: *nonce }),
            Self::StatsReport { json } => {
                let json = Some(b.create_vector(json));
                table!(b, StatsReport, wire::StatsReportArgs { json })
            }
            Self::ServerRestarting { reconnect_delay_ms } => {
                let reconnect_delay_ms = *reconnect_delay_ms;
                table!(b, ServerRestarting, wire::ServerRestartingArgs { reconnect_delay_ms })
            }
            Self::Deleted { channels } => table!(b, Deleted, wire::DeletedArgs { channels: *channels }),
            Self::Page { first, next, head, deliveries } => {
                let deliveries: Vec<_> = deliveries
                    .iter()
                    .map(|delivery| {
                        let bytes = Some(b.create_vector(delivery));
                        wire::Payload::create(b, &wire::PayloadArgs { bytes })
                    })
                    .collect();
                let deliveries = Some(b.create_vector(&deliveries));
                let (first, next, head) = (first.0, next.0, head.0);
                table!(b, Page, wire::PageArgs { first, next, head, deliveries })
            }
            Self::Rewound { to } => table!(b, Rewound, wire::RewoundArgs { to: *to }),
            Self::Embedded { model, dimensions, vectors, tokens } => {
                generation::build_embedded(b, model, *dimensions, vectors, *tokens)
            }
            Self::Document(news) => document::build_news(b, news),
            other => chat::build_answer(b, other),
        })
    }
}

fn build_welcome(b: &mut Builder, welcome: &Welcome) -> (wire::Op, Offset) {
    let models: Vec<_> = welcome.models.iter().map(|model| b.create_string(model)).collect();
    let models = Some(b.create_vector(&models));
    let tenant = Some(b.create_string(welcome.tenant.as_str()));
    let user = Some(b.create_string(welcome.user.as_str()));
    let server = Some(b.create_string(&welcome.server));
    let session = id128(welcome.session);
    let args = wire::WelcomeArgs {
        version: welcome.version,
        session: Some(&session),
        epoch: welcome.epoch.0,
        tenant,
        user,
        server,
        models,
        frame_bytes_max: welcome.frame_bytes_max,
        body_bytes_max: welcome.body_bytes_max,
        in_flight_max: welcome.in_flight_max,
        lead_messages: welcome.lead_messages,
        lead_tokens: welcome.lead_tokens,
        token_expires_us: welcome.token_expires_us,
    };
    table!(b, Welcome, args)
}

fn build_reject(b: &mut Builder, reject: &Reject) -> (wire::Op, Offset) {
    let message = Some(b.create_string(&reject.message));
    let (code, retry_after_ms) = (reject.code as u16, reject.retry_after_ms);
    table!(b, Reject, wire::RejectArgs { code, message, retry_after_ms })
}

fn build_delivery(b: &mut Builder, delivery: &Delivery) -> (wire::Op, Offset) {
    let body = Some(b.create_vector(&delivery.body));
    let user = Some(b.create_string(delivery.user.as_str()));
    let mentions = chat::names(b, &delivery.context.mentions);
    let args = wire::DeliveryArgs {
        position: delivery.position.0,
        timestamp_us: delivery.timestamp_us,
        kind: match delivery.kind {
            DeliveryKind::Message => wire::DeliveryKind::Message,
            DeliveryKind::Tokens => wire::DeliveryKind::Tokens,
            DeliveryKind::GenerationStarted => wire::DeliveryKind::GenerationStarted,
            DeliveryKind::GenerationEnded => wire::DeliveryKind::GenerationEnded,
            DeliveryKind::Edit => wire::DeliveryKind::Edit,
            DeliveryKind::Redaction => wire::DeliveryKind::Redaction,
            DeliveryKind::Reaction => wire::DeliveryKind::Reaction,
            DeliveryKind::Unreaction => wire::DeliveryKind::Unreaction,
            DeliveryKind::Membership => wire::DeliveryKind::Membership,
            DeliveryKind::Info => wire::DeliveryKind::Info,
            DeliveryKind::Update => wire::DeliveryKind::Update,
            DeliveryKind::Snapshot => wire::DeliveryKind::Snapshot,
            DeliveryKind::Version => wire::DeliveryKind::Version,
        },
        user,
        body,
        generation: delivery.generation.map_or(0, |generation| generation.0),
        key: delivery.key,
        target: delivery.context.target.0,
        number: delivery.context.number,
        mentions,
        role: chat::role(delivery.context.role),
        redacted: delivery.context.redacted,
    };
    table!(b, Delivery, args)
}
