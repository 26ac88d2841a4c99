//! Looking for a text in what a channel keeps.

use std::collections::VecDeque;

use thalweg_protocol::chat::ChatOp;
use thalweg_protocol::ids::{Name, Position};
use thalweg_protocol::op::{ClientOp, ServerOp};

use crate::channel::items;
use crate::client::{AsName, Client};
use crate::entries::Repeat;
use crate::error::ClientError;
use crate::subscription::Item;

/// What one request found. A request looks at a bounded stretch of the channel, so that it may find nothing although there
/// is something further back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchPage {
    /// Messages, and edits that gave a message a matching text; newest first.
    pub items: Vec<Item>,
    /// Where to go on, towards the oldest; `None` when everything was looked at.
    pub next: Option<Position>,
}

/// A search under way: [`next`](Self::next) asks the node only when what it found is used up.
#[derive(Debug)]
pub struct Search {
    client: Client,
    channel: Name,
    query: String,
    /// Where to go on; `None` when everything was looked at.
    before: Option<Position>,
    found: VecDeque<Item>,
}

impl Client {
    /// Begins to look for a text in a channel, newest first, whatever its case. Nothing is asked before
    /// [`Search::next`].
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if the channel's name cannot be right.
    pub fn search(&self, channel: impl AsName, query: impl Into<String>) -> Result<Search, ClientError> {
        Ok(Search {
            client: self.clone(),
            channel: channel.as_name("channel")?,
            query: query.into(),
            before: Some(Position(0)),
            found: VecDeque::new(),
        })
    }

    /// One step of a search: looks at a stretch of the messages before a position (`None`: the newest), and gives at most
    /// `limit` matches (0: as many as there are).
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such channel, it may not be read, or the text is empty or too long.
    pub async fn search_page(
        &self,
        channel: impl AsName,
        query: impl Into<String>,
        before: Option<Position>,
        limit: u32,
    ) -> Result<SearchPage, ClientError> {
        let before = before.unwrap_or_default();
        let op = ChatOp::SearchHistory { channel: channel.as_name("channel")?, query: query.into(), before, limit };
        match self.call(ClientOp::Chat(op), Repeat::Again).await? {
            ServerOp::Page { next, deliveries, .. } => {
                if next.0 != 0 && before.0 != 0 && next >= before {
                    let text = format!("a search before {before} is to go on before {next}");
                    return Err(ClientError::Protocol(text));
                }
                Ok(SearchPage { items: items(&deliveries)?, next: Some(next).filter(|next| next.0 != 0) })
            }
            other => Err(ClientError::unexpected("Page", &other)),
        }
    }
}

impl Search {
    /// The next match; `None` when everything was looked at. Cancel-safe.
    ///
    /// # Errors
    /// As [`Client::search_page`].
    pub async fn next(&mut self) -> Result<Option<Item>, ClientError> {
        loop {
            if let Some(item) = self.found.pop_front() {
                return Ok(Some(item));
            }
            let Some(before) = self.before else { return Ok(None) };
            let page = self.client.search_page(&self.channel, self.query.as_str(), Some(before), 0).await?;
            self.before = page.next;
            self.found.extend(page.items);
        }
    }

    /// The next match that is here already, without asking the node.
    pub fn at_hand(&mut self) -> Option<Item> {
        self.found.pop_front()
    }
}
