//! FlatBuffers to values: verify, then check, then read.

/// The table of a union whose type was just looked at: the verifier made sure that it is there.
macro_rules! table {
    ($frame:ident, $as:ident) => {
        $frame.$as().ok_or_else(|| invalid("the operation is missing"))?
    };
}

mod chat;
mod document;
mod generation;

use bytes::Bytes;
use flatbuffers::{VerifierOptions, root_with_opts};

use super::{
    ClientOp, CreateChannel, Delivery, DeliveryKind, Durability, From, Hello, Policy, Publish, ServerOp, Subscribe,
    WatchRequest, Welcome,
};
use crate::chat::{ChannelAbout, Context, Post, PostKind};
use crate::generated::thalweg::wire;
use crate::ids::{Epoch, GenerationId, Name, Position, Sequence, SessionId, Subscription, Watch};
use crate::limits::{
    BODY_BYTES_MAX, DOCUMENT_UPDATE_BYTES_MAX, FLATBUFFER_DEPTH_MAX, FLATBUFFER_TABLES_MAX, FRAME_BYTES_MAX,
    MANAGE_BYTES_MAX, MENTIONS_MAX, TOKEN_BYTES_MAX, TOPIC_BYTES_MAX,
};
use crate::reject::{Reject, RejectCode};
use crate::trace::TraceContext;

fn invalid(text: impl Into<String>) -> Reject {
    Reject::new(RejectCode::FrameInvalid, text.into())
}

fn verify(payload: &Bytes) -> Result<wire::Frame<'_>, Reject> {
    let options = VerifierOptions {
        max_depth: FLATBUFFER_DEPTH_MAX,
        max_tables: FLATBUFFER_TABLES_MAX,
        max_apparent_size: 2 * FRAME_BYTES_MAX,
        ignore_missing_null_terminator: false,
    };
    root_with_opts::<wire::Frame<'_>>(&options, payload).map_err(|error| {
        let first = error.to_string();
        invalid(format!("the frame does not verify: {}", first.lines().next().unwrap_or_default()))
    })
}

fn name(field: &str, text: Option<&str>) -> Result<Name, Reject> {
    let text = text.ok_or_else(|| invalid(format!("{field} is missing")))?;
    Name::new(text).map_err(|error| Reject::new(RejectCode::NameInvalid, format!("{field} {error}")))
}

fn text_within(field: &str, text: Option<&str>, bytes_max: usize) -> Result<String, Reject> {
    let text = text.unwrap_or_default();
    if text.len() > bytes_max {
        return Err(invalid(format!("{field} has {} bytes; at most {bytes_max} are allowed", text.len())));
    }
    Ok(text.to_owned())
}

fn body(payload: &Bytes, body: Option<flatbuffers::Vector<'_, u8>>) -> Bytes {
    body.map_or_else(Bytes::new, |body| payload.slice_ref(body.bytes()))
}

fn session(id: Option<&wire::Id128>) -> Result<SessionId, Reject> {
    let id = id.ok_or_else(|| invalid("session is missing"))?;
    Ok(SessionId(u128::from(id.hi()) << 64 | u128::from(id.lo())))
}

fn unknown(op: wire::Op, direction: &str) -> Reject {
    let text = match op.variant_name() {
        Some(name) => format!("operation {name} is not for {direction}"),
        None => format!("operation {} is unknown to wire version {}", op.0, crate::VERSIONS.end()),
    };
    Reject::new(RejectCode::OperationUnknown, text)
}

impl ClientOp {
    /// Reads the payload of a frame that came from a client.
    ///
    /// # Errors
    /// `frame_invalid`, `operation_unknown`, `name_invalid`, `body_too_large` or `parameter_invalid`, each with a text that
    /// names the field.
    pub fn decode(payload: &Bytes) -> Result<Self, Reject> {
        Self::read(payload, &verify(payload)?)
    }

    /// The same, with the trace that the request is part of, if its sender said so. Ids of zero name no trace.
    ///
    /// # Errors
    /// See [`decode`](Self::decode).
    pub fn decode_traced(payload: &Bytes) -> Result<(Self, Option<TraceContext>), Reject> {
        let frame = verify(payload)?;
        let trace = frame.trace().map(|trace| TraceContext {
            trace: u128::from(trace.trace_hi()) << 64 | u128::from(trace.trace_lo()),
            span: trace.span(),
            flags: trace.flags(),
        });
        Ok((Self::read(payload, &frame)?, trace.filter(|trace| trace.trace != 0 && trace.span != 0)))
    }

    fn read(payload: &Bytes, frame: &wire::Frame<'_>) -> Result<Self, Reject> {
        Ok(match frame.op_type() {
            wire::Op::Hello => Self::Hello(read_hello(&table!(frame, op_as_hello))?),
            wire::Op::CreateChannel => Self::CreateChannel(read_create_channel(&table!(frame, op_as_create_channel))?),
            wire::Op::Publish => Self::Publish(read_publish(payload, &table!(frame, op_as_publish))?),
            wire::Op::Subscribe => Self::Subscribe(read_subscribe(&table!(frame, op_as_subscribe))?),
            wire::Op::Unsubscribe => {
                Self::Unsubscribe { subscription: Subscription(table!(frame, op_as_unsubscribe).subscription()) }
            }
            wire::Op::Consumed => {
                let table = table!(frame, op_as_consumed);
                let (subscription, position) = (Subscription(table.subscription()), Position(table.position()));
                Self::Consumed { subscription, position }
            }
            wire::Op::Ask => Self::Ask(Box::new(generation::read_ask(&table!(frame, op_as_ask))?)),
            wire::Op::Watch => {
                let table = table!(frame, op_as_watch);
                Self::Watch(WatchRequest {
                    generation: GenerationId(table.generation()),
                    from: table.from(),
                    lead: table.lead(),
                    epoch: Epoch(table.epoch()),
                    seen: table.has_seen().then(|| table.seen()),
                })
            }
            wire::Op::TokensConsumed => {
                let table = table!(frame, op_as_tokens_consumed);
                Self::TokensConsumed { watch: Watch(table.watch()), index: table.index() }
            }
            wire::Op::Unwatch => Self::Unwatch { watch: Watch(table!(frame, op_as_unwatch).watch()) },
            wire::Op::Cancel => Self::Cancel { generation: GenerationId(table!(frame, op_as_cancel).generation()) },
            wire::Op::Ping => Self::Ping { nonce: table!(frame, op_as_ping).nonce() },
            wire::Op::Stats => Self::Stats,
            wire::Op::Drain => Self::Drain,
            wire::Op::DeleteChannel => {
                Self::DeleteChannel { channel: name("channel", table!(frame, op_as_delete_channel).channel())? }
            }
            wire::Op::DeleteTenant => Self::DeleteTenant,
            wire::Op::Checkpoint => Self::Checkpoint,
            wire::Op::ReadHistory => {
                let table = table!(frame, op_as_read_history);
                let (from, limit) = (Position(table.from()), table.limit());
                Self::ReadHistory { channel: name("channel", table.channel())?, from, limit }
            }
            wire::Op::Login => Self::Login(chat::read_login(&table!(frame, op_as_login))?),
            wire::Op::Manage => {
                let json = body(payload, table!(frame, op_as_manage).json());
                if json.len() > MANAGE_BYTES_MAX {
                    let text = format!("json has {} bytes; at most {MANAGE_BYTES_MAX} are allowed", json.len());
                    return Err(Reject::new(RejectCode::RequestInvalid, text));
                }
                Self::Manage { json }
            }
            wire::Op::Heartbeat => Self::Heartbeat,
            wire::Op::Typing => {
                let table = table!(frame, op_as_typing);
                Self::Typing { subscription: Subscription(table.subscription()), on: table.on() }
            }
            wire::Op::Embed => generation::read_embed(&table!(frame, op_as_embed))?,
            other => match (chat::read_request(frame)?, document::read_request(payload, frame)?) {
                (Some(op), _) => Self::Chat(op),
                (None, Some(op)) => Self::Document(op),
                (None, None) => return Err(unknown(other, "a node")),
            },
        })
    }
}

fn read_hello(table: &wire::Hello<'_>) -> Result<Hello, Reject> {
    Ok(Hello {
        versions: (table.version_min(), table.version_max()),
        session: session(table.session())?,
        token: text_within("token", table.token(), TOKEN_BYTES_MAX)?,
        client: text_within("client", table.client(), crate::limits::NAME_BYTES_MAX)?,
    })
}

fn read_create_channel(table: &wire::CreateChannel<'_>) -> Result<CreateChannel, Reject> {
    Ok(CreateChannel {
        channel: name("channel", table.channel())?,
        history_messages: table.history_messages(),
        history_bytes: table.history_bytes(),
        history_age_ms: table.history_age_ms(),
        durability: match table.durability() {
            wire::Durability::Default => None,
            wire::Durability::Memory => Some(Durability::Memory),
            wire::Durability::Disk => Some(Durability::Disk),
            wire::Durability::Replicated => Some(Durability::Replicated),
            other => return Err(invalid(format!("durability is {}; 0 to 3", other.0))),
        },
        about: ChannelAbout {
            kind: chat::kind(table.kind())?.unwrap_or_default(),
            topic: chat::text("topic", table.topic(), TOPIC_BYTES_MAX)?,
            post: chat::post_rule(table.post())?.unwrap_or_default(),
        },
    })
}

fn read_publish(payload: &Bytes, table: &wire::Publish<'_>) -> Result<Publish, Reject> {
    let body = body(payload, table.body());
    let kind = chat::post_kind(table.kind())?;
    let bytes_max = if kind == PostKind::Update { DOCUMENT_UPDATE_BYTES_MAX } else { BODY_BYTES_MAX };
    if body.len() > bytes_max {
        let text = format!("body has {} bytes; at most {bytes_max} are allowed", body.len());
        return Err(Reject::new(RejectCode::BodyTooLarge, text));
    }
    if table.sequence() == 0 {
        return Err(Reject::new(RejectCode::ParameterInvalid, "sequence is 0; a session numbers its writes from 1"));
    }
    Ok(Publish {
        channel: name("channel", table.channel())?,
        sequence: Sequence(table.sequence()),
        retry: table.retry(),
        make: table.make(),
        body,
        key: table.key(),
        post: Post { kind, target: Position(table.target()) },
    })
}

fn read_subscribe(table: &wire::Subscribe<'_>) -> Result<Subscribe, Reject> {
    Ok(Subscribe {
        channel: name("channel", table.channel())?,
        from: match table.from() {
            wire::FromKind::Start => From::Start,
            wire::FromKind::End => From::End,
            wire::FromKind::Position => From::Position(Position(table.position())),
            other => return Err(invalid(format!("from is {}; 0, 1 or 2", other.0))),
        },
        policy: match table.policy() {
            wire::Policy::Replay => Policy::Replay,
            wire::Policy::Drop => Policy::Drop,
            wire::Policy::Disconnect => Policy::Disconnect,
            other => return Err(invalid(format!("policy is {}; 0, 1 or 2", other.0))),
        },
        lead: table.lead(),
        make: table.make(),
        presence: table.presence(),
    })
}

impl ServerOp {
    /// Reads the payload of a frame that came from a node.
    ///
    /// # Errors
    /// `frame_invalid`, `operation_unknown` or `name_invalid`, each with a text that names the field.
    pub fn decode(payload: &Bytes) -> Result<Self, Reject> {
        let frame = verify(payload)?;
        Ok(match frame.op_type() {
            wire::Op::Welcome => Self::Welcome(read_welcome(&table!(frame, op_as_welcome))?),
            wire::Op::Reject => {
                let table = table!(frame, op_as_reject);
                let message = table.message().unwrap_or_default().to_owned();
                let reject = Reject::new(RejectCode::from_number(table.code()), message);
                Self::Reject(reject.retry_after_ms(table.retry_after_ms()))
            }
            wire::Op::Done => Self::Done,
            wire::Op::ChannelCreated => {
                Self::ChannelCreated { created: table!(frame, op_as_channel_created).created() }
            }
            wire::Op::Published => {
                let table = table!(frame, op_as_published);
                let (timestamp_us, duplicate) = (table.timestamp_us(), table.duplicate());
                Self::Published { position: Position(table.position()), timestamp_us, duplicate }
            }
            wire::Op::Subscribed => {
                let table = table!(frame, op_as_subscribed);
                Self::Subscribed { next: Position(table.next()), head: Position(table.head()) }
            }
            wire::Op::Delivery => Self::Delivery(read_delivery(payload, &table!(frame, op_as_delivery))?),
            wire::Op::Missed => {
                let table = table!(frame, op_as_missed);
                Self::Missed { from: Position(table.from()), to: Position(table.to()) }
            }
            wire::Op::Ended => {
                let table = table!(frame, op_as_ended);
                let message = table.message().unwrap_or_default().to_owned();
                Self::Ended(Reject::new(RejectCode::from_number(table.code()), message))
            }
            wire::Op::Asked => {
                let table = table!(frame, op_as_asked);
                let model = table.model().unwrap_or_default().to_owned();
                Self::Asked { generation: GenerationId(table.generation()), model }
            }
            wire::Op::Tokens => generation::read_tokens(payload, &table!(frame, op_as_tokens))?,
            wire::Op::Finished => generation::read_finished(&table!(frame, op_as_finished))?,
            wire::Op::Embedded => generation::read_embedded(&table!(frame, op_as_embedded))?,
            wire::Op::Pong => Self::Pong { nonce: table!(frame, op_as_pong).nonce() },
            wire::Op::StatsReport => {
                Self::StatsReport { json: body(payload, table!(frame, op_as_stats_report).json()) }
            }
            wire::Op::ServerRestarting => {
                let reconnect_delay_ms = table!(frame, op_as_server_restarting).reconnect_delay_ms();
                Self::ServerRestarting { reconnect_delay_ms }
            }
            wire::Op::Deleted => Self::Deleted { channels: table!(frame, op_as_deleted).channels() },
            wire::Op::Page => {
                let table = table!(frame, op_as_page);
                let deliveries = table.deliveries().into_iter().flatten();
                Self::Page {
                    first: Position(table.first()),
                    next: Position(table.next()),
                    head: Position(table.head()),
                    deliveries: deliveries.map(|delivery| body(payload, delivery.bytes())).collect(),
                }
            }
            wire::Op::Rewound => Self::Rewound { to: table!(frame, op_as_rewound).to() },
            wire::Op::Managed => Self::Managed { json: body(payload, table!(frame, op_as_managed).json()) },
            other => match (chat::read_answer(&frame)?, document::read_news(payload, &frame)?) {
                (Some(op), _) => op,
                (None, Some(news)) => Self::Document(news),
                (None, None) => return Err(unknown(other, "a client")),
            },
        })
    }
}

fn read_welcome(table: &wire::Welcome<'_>) -> Result<Welcome, Reject> {
    Ok(Welcome {
        version: table.version(),
        session: session(table.session())?,
        epoch: Epoch(table.epoch()),
        tenant: name("tenant", table.tenant())?,
        user: name("user", table.user())?,
        server: table.server().unwrap_or_default().to_owned(),
        models: table.models().into_iter().flatten().map(str::to_owned).collect(),
        frame_bytes_max: table.frame_bytes_max(),
        body_bytes_max: table.body_bytes_max(),
        in_flight_max: table.in_flight_max(),
        lead_messages: table.lead_messages(),
        lead_tokens: table.lead_tokens(),
        token_expires_us: table.token_expires_us(),
    })
}

fn read_delivery(payload: &Bytes, table: &wire::Delivery<'_>) -> Result<Delivery, Reject> {
    Ok(Delivery {
        position: Position(table.position()),
        timestamp_us: table.timestamp_us(),
        kind: match table.kind() {
            wire::DeliveryKind::Message => DeliveryKind::Message,
            wire::DeliveryKind::Tokens => DeliveryKind::Tokens,
            wire::DeliveryKind::GenerationStarted => DeliveryKind::GenerationStarted,
            wire::DeliveryKind::GenerationEnded => DeliveryKind::GenerationEnded,
            wire::DeliveryKind::Edit => DeliveryKind::Edit,
            wire::DeliveryKind::Redaction => DeliveryKind::Redaction,
            wire::DeliveryKind::Reaction => DeliveryKind::Reaction,
            wire::DeliveryKind::Unreaction => DeliveryKind::Unreaction,
            wire::DeliveryKind::Membership => DeliveryKind::Membership,
            wire::DeliveryKind::Info => DeliveryKind::Info,
            wire::DeliveryKind::Update => DeliveryKind::Update,
            wire::DeliveryKind::Snapshot => DeliveryKind::Snapshot,
            wire::DeliveryKind::Version => DeliveryKind::Version,
            other => return Err(invalid(format!("kind is {}; 0 to 12", other.0))),
        },
        user: name("user", table.user())?,
        generation: Some(GenerationId(table.generation())).filter(|generation| generation.0 != 0),
        body: body(payload, table.body()),
        key: table.key(),
        context: Context {
            target: Position(table.target()),
            number: table.number(),
            mentions: chat::names("mentions", table.mentions(), MENTIONS_MAX)?,
            role: chat::role(table.role())?,
            redacted: table.redacted(),
        },
    })
}
