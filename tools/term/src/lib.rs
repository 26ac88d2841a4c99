//! The terminal client of Thalweg as a library.
//!
//! [`App`] is everything a person sees and does, as a value: [`App::handle`] takes what happened ([`Event`]) and gives what
//! is to be done ([`Command`]); [`render`] draws it. Neither reads a clock nor does I/O, so that every screen can be tested
//! without a terminal and without a node.
//!
//! What strangers wrote goes through [`clean`] before it is kept: nothing that a terminal would obey reaches the screen.
#![deny(unsafe_code)]

mod act;
mod answers;
mod app;
mod chat;
mod clock;
mod complete;
mod editor;
mod event;
mod ink;
mod keys;
mod layout;
mod popup;
mod rows;
mod slash;
mod text;
mod theme;
mod timeline;
mod view;

pub use app::{App, Options};
pub use clock::{Now, Zone};
pub use event::{
    About, Answer, ChannelKind, Command, Delivery, Event, Item, Kind, Link, Page, Person, Profile, Refusal, Request,
    Role, State, Summary, Ticket, Welcome,
};
pub use text::{clean, clean_line};
pub use theme::Theme;
pub use view::render;
