//! The terminal client of Thalweg as a library.
//!
//! [`App`] is everything a person sees and does, as a value: [`App::handle`] takes what happened ([`Event`]) and gives what
//! is to be done ([`Command`]); [`render`] draws it. Neither reads a clock nor does I/O, so that every screen can be tested
//! without a terminal and without a node.
//!
//! [`run`] is the shell around it: it joins the terminal, a [`Client`](thalweg_client::Client) and the clock to an `App`. The
//! task that handles keys and draws never waits for the network; requests are tasks of their own, and what they bring comes
//! back as events through one bounded queue.
//!
//! [`edit`] is the same for documents: [`EditApp`] and [`render_edit`] instead of `App` and `render`.
//!
//! What strangers wrote goes through [`clean`] before it is kept: nothing that a terminal would obey reaches the screen.
#![deny(unsafe_code)]

mod act;
mod answers;
mod app;
mod channels;
mod chat;
mod clock;
mod complete;
mod document;
mod editor;
mod event;
mod ink;
mod input;
mod keys;
mod layout;
mod popup;
mod rows;
mod screen;
mod shell;
mod slash;
mod spell;
mod text;
mod theme;
mod timeline;
mod view;
mod wire;

pub use app::{App, Options};
pub use clock::{Now, Zone};
pub use document::{EditApp, EditCommand, EditEvent, EditOptions, Peer, edit, render_edit};
pub use event::{
    About, Answer, ChannelKind, Command, Delivery, Event, Item, Kind, Link, Page, Person, Profile, Refusal, Request,
    Role, State, Summary, Ticket, Welcome,
};
pub use screen::obstacle;
pub use shell::{Ends, TermError, run};
pub use text::{clean, clean_line};
pub use theme::Theme;
pub use view::render;
