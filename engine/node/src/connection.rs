//! One client's connection: hello first, then its lanes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_domain::routing::Routes;
use thalweg_protocol::VERSIONS;
use thalweg_protocol::ids::{Epoch, Subscription, Watch};
use thalweg_protocol::limits;
use thalweg_protocol::op::{Hello, Welcome};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Lane;

use crate::gate::Source;

/// What a core knows of a connection beside what its shard does.
pub(crate) struct Connection {
    /// Who it is, once its hello was accepted.
    pub(crate) principal: Option<Arc<Principal>>,
    /// What its credential stands on, since then.
    pub(crate) source: Option<Source>,
    /// Where it came from.
    pub(crate) remote: SocketAddr,
    /// The gate was asked about its hello or login.
    pub(crate) waits: bool,
    /// Logins it has tried.
    pub(crate) logins: u32,
    /// The lane for deliveries, once there was one.
    pub(crate) delivery: Option<Lane>,
    /// The lanes of the documents it reads, as far as they were opened.
    pub(crate) documents: BTreeMap<Subscription, Lane>,
    /// What is queued on lanes of documents, those included that only finish, in bytes.
    pub(crate) undrained: BTreeMap<Lane, usize>,
    /// The lanes of the generations it watches.
    pub(crate) generations: BTreeMap<Watch, Lane>,
}

impl Connection {
    pub(crate) fn new(remote: SocketAddr) -> Self {
        Self {
            principal: None,
            source: None,
            remote,
            waits: false,
            logins: 0,
            delivery: None,
            documents: BTreeMap::new(),
            undrained: BTreeMap::new(),
            generations: BTreeMap::new(),
        }
    }
}

/// What every core tells those who come.
pub(crate) struct Reception {
    pub(crate) epoch: Epoch,
}

impl Reception {
    /// Checks everything about a hello but its token; gives the wire version.
    ///
    /// # Errors
    /// `version_unsupported` or `parameter_invalid`.
    pub(crate) fn negotiate(&self, hello: &Hello) -> Result<u16, Reject> {
        let (oldest, newest) = hello.versions;
        let version = newest.min(*VERSIONS.end());
        if oldest > newest || version < oldest.max(*VERSIONS.start()) {
            let (ours_min, ours_max) = (VERSIONS.start(), VERSIONS.end());
            let text = format!(
                "the client speaks wire versions {oldest} to {newest}, this node {ours_min} to {ours_max}; \
                 bring the older of the two up to date"
            );
            return Err(Reject::new(RejectCode::VersionUnsupported, text));
        }
        if hello.session.0 == 0 {
            return Err(Reject::new(RejectCode::ParameterInvalid, "session is 0; draw 128 random bits"));
        }
        Ok(version)
    }

    /// What one is told who comes in.
    pub(crate) fn welcome(&self, version: u16, principal: &Principal, models: &Routes) -> Welcome {
        Welcome {
            version,
            session: principal.session,
            epoch: self.epoch,
            tenant: principal.tenant.clone(),
            user: principal.user.clone(),
            server: concat!("thalweg/", env!("CARGO_PKG_VERSION")).to_owned(),
            models: models.cards.iter().map(|card| card.name.to_string()).collect(),
            frame_bytes_max: limits::FRAME_BYTES_MAX as u32,
            body_bytes_max: limits::BODY_BYTES_MAX as u32,
            in_flight_max: limits::IN_FLIGHT_MAX as u32,
            lead_messages: limits::LEAD_MESSAGES,
            lead_tokens: limits::LEAD_TOKENS,
            token_expires_us: principal.credential.expires_s.saturating_mul(1_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use thalweg_protocol::ids::SessionId;

    use super::*;

    #[test]
    fn versions_are_negotiated() {
        let reception = Reception { epoch: Epoch(3) };
        let check = |versions, session, expected: Result<u16, RejectCode>| {
            let hello = Hello { versions, session: SessionId(session), token: String::new(), client: String::new() };
            assert_eq!(reception.negotiate(&hello).map_err(|reject| reject.code), expected, "{versions:?}");
        };
        check((1, 1), 1, Ok(1));
        check((1, 9), 1, Ok(1));
        check((1, 1), 0, Err(RejectCode::ParameterInvalid));
        check((0, 0), 1, Err(RejectCode::VersionUnsupported));
        check((2, 9), 1, Err(RejectCode::VersionUnsupported));
        check((9, 1), 1, Err(RejectCode::VersionUnsupported));
    }
}
