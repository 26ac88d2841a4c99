//! The Rust SDK of Thalweg: channels and model answers over QUIC, on quinn and tokio.
//!
//! - [`Client::builder`] describes and makes a session with a node; [`discover`] reads where the node of this machine is.
//! - [`Client::publish`] writes, [`Client::subscribe`] reads a channel, [`Client::ask`] asks a model.
//! - People: [`Client::join`], [`Client::set_member`], [`Client::open_direct`], [`Client::channels`], [`Client::profile`], and
//!   with [`SubscribeOptions::presence`] who is there. Messages are answered, edited, taken back and reacted to
//!   ([`Client::publish_with`], [`Client::edit`], [`Client::redact`], [`Client::react`]).
//! - Documents: [`Client::document`] opens a text that many edit at once, as a Yjs document ([`Document`]) or by positional
//!   operations ([`TextSession`]).
//! - A lost connection is replaced: unanswered writes are repeated and recognised, readers go on where they were
//!   ([`ConnectionState`] says how it stands).
//! - Nothing here grows without bound: writes wait for room, readers take what they can, and the node waits for them.
//!
//! ```no_run
//! # async fn example() -> Result<(), thalweg_client::ClientError> {
//! use thalweg_client::{AskRequest, Client, Item, Part, SubscribeOptions};
//!
//! // The node of this machine: address, key and token are found in its data directory.
//! let client = Client::builder().local("/var/lib/thalweg").connect().await?;
//!
//! let mut channel = client.subscribe("general", SubscribeOptions::default()).await?;
//! client.publish("general", "hello").await?;
//! if let Some(Item::Message(message)) = channel.next().await? {
//!     println!("{}: {}", message.user, String::from_utf8_lossy(&message.body));
//! }
//!
//! let mut answer = client.ask(AskRequest::prompt("Why is the sky blue?")).await?;
//! while let Some(part) = answer.next().await? {
//!     if let Part::Piece(piece) = part {
//!         print!("{}", piece.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A node elsewhere is recognised by its key ([`Trust`]):
//!
//! ```no_run
//! # async fn example() -> Result<(), thalweg_client::ClientError> {
//! use thalweg_client::{Client, Trust};
//!
//! let key = "0b3c5d…".parse()?; // as `thalweg doctor` prints it there
//! let client = Client::builder()
//!     .server("chat.example.org:4433")
//!     .trust(Trust::PinnedKey(key))
//!     .token(std::env::var("THALWEG_TOKEN").unwrap_or_default())
//!     .connect()
//!     .await?;
//! println!("{:?}", client.ping().await?);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod builder;
mod channel;
mod chat;
mod client;
mod credential;
mod dial;
mod document;
mod driver;
mod embed;
mod entries;
mod error;
mod generation;
mod local;
mod people;
mod publish;
mod search;
mod state;
mod subscription;
mod trust;

pub use builder::Builder;
pub use channel::{ChannelOptions, Page};
pub use chat::{ChannelChange, ChannelPage, WhoIsIn};
pub use client::{AsName, Client, ConnectionState};
pub use credential::{LoggedIn, TokenSource};
pub use document::{
    Acknowledgement, Document, DocumentBuilder, DocumentEvent, DocumentRead, LogPage, ModelEdit, Other, Positional,
    Record, RecordKind, Replay, Tally, TextChange, TextSession,
};
pub use embed::Embeddings;
pub use error::ClientError;
pub use generation::{Finished, Generation, Part, Piece, Text};
pub use local::{LocalNode, discover};
pub use people::{People, PeopleChange};
pub use publish::{Ack, PostOptions, Published};
pub use search::{Search, SearchPage};
pub use subscription::{Change, ChangeKind, Item, Message, SubscribeOptions, Subscription};
pub use thalweg_protocol::chat::{
    ChannelAbout, ChannelKind, ChannelReport, ChannelSummary, Context, MemberEntry, MemberRole, Post, PostKind,
    PostRule, Presence, PresenceState, PresentUser, ProfileReport, ProfileText,
};
pub use thalweg_protocol::document::{
    AskInDocument, DocumentAccess, Operation, Operations, Place, ReadForm, utf16_len,
};
pub use thalweg_protocol::generation::{
    AskRequest, ChatMessage, Constraint, FinishReason, OnDetach, Priority, Role, Sampling, TokenChance, TokenDetail,
    Usage,
};
pub use thalweg_protocol::ids::{GenerationId, Name, Position, SessionId};
pub use thalweg_protocol::op::{Durability, From, Policy, Welcome};
pub use thalweg_protocol::reject::{Reject, RejectCode};
pub use thalweg_protocol::trace::{TraceContext, TraceContextError};
pub use trust::{AskTrust, FirstContact, KeyHash, Trust};
/// The CRDT that documents are made of, for [`Document::transact`].
pub use yrs;
