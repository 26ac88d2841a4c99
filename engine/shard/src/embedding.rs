//! Embeddings are computed beside the shard and are in no log; the shard knows who may have them, and who pays.

use std::sync::Arc;

use thalweg_domain::permission::Action as Access;
use thalweg_protocol::ids::Name;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::contract::Link;
use crate::shard::Shard;

impl Shard {
    /// Whether a session may have texts embedded by a model now: it pays with tokens, as for questions.
    ///
    /// # Errors
    /// `draining`, `overloaded`, `forbidden`, `rate_limited` or `quota_exceeded`, and `hello_expected` if there is no such
    /// session.
    pub fn may_embed(&mut self, link: Link, model: &Name) -> Result<(), Reject> {
        self.not_draining()?;
        self.newcomers_are_served()?;
        let principal = self.sessions.get(link).map(|session| Arc::clone(&session.principal));
        let principal = principal.ok_or_else(|| Reject::new(RejectCode::HelloExpected, "the session is over"))?;
        principal.require(Access::Ask, model.as_str())?;
        self.may_ask_more(link, &principal)
    }

    /// Texts of a session were embedded, which had so many tokens.
    pub fn embedded(&mut self, link: Link, tokens: u32) {
        if let Some(session) = self.sessions.get(link) {
            let principal = Arc::clone(&session.principal);
            let asker = Some((self.config.core, link));
            self.spend_tokens(&principal.tenant, &principal.user, asker, tokens);
        }
    }
}
