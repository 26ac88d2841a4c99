//! The editor of a document: [`EditApp`] is everything a person sees and does there, as a value; [`render_edit`] draws it;
//! [`edit`] joins it to a terminal and a [`Document`](thalweg_client::Document).

mod app;
mod body;
mod call;
mod copy;
mod event;
mod keys;
mod shell;
mod view;

pub use app::{EditApp, EditOptions};
pub use event::{EditCommand, EditEvent, Peer};
pub use shell::edit;
pub use view::render_edit;
