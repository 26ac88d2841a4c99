//! One client's connection: hello first, then its lanes.

use std::collections::BTreeMap;
use std::sync::Arc;

use thalweg_domain::permission::Principal;
use thalweg_protocol::VERSIONS;
use thalweg_protocol::ids::{Epoch, Watch};
use thalweg_protocol::limits;
use thalweg_protocol::op::{Hello, Welcome};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Lane;

use crate::gatekeeper::Keys;

/// What a core knows of a connection beside what its shard does.
pub(crate) struct Connection {
    /// Who it is, once its hello was accepted.
    pub(crate) principal: Option<Arc<Principal>>,
    /// The lane for deliveries, once there was one.
    pub(crate) delivery: Option<Lane>,
    /// The lanes of the generations it watches.
    pub(crate) generations: BTreeMap<Watch, Lane>,
}

impl Connection {
    pub(crate) fn new() -> Self {
        Self { principal: None, delivery: None, generations: BTreeMap::new() }
    }
}

/// What every core tells those who come.
pub(crate) struct Reception {
    pub(crate) keys: Keys,
    pub(crate) epoch: Epoch,
    pub(crate) models: Vec<String>,
}

impl Reception {
    /// Checks a hello.
    ///
    /// # Errors
    /// `version_unsupported`, `token_invalid` or `token_expired`.
    pub(crate) fn welcome(&self, hello: &Hello) -> Result<(Principal, Welcome), Reject> {
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
        let principal = self.keys.check(&hello.token, hello.session)?;
        let welcome = Welcome {
            version,
            session: hello.session,
            epoch: self.epoch,
            tenant: principal.tenant.clone(),
            user: principal.user.clone(),
            server: concat!("thalweg/", env!("CARGO_PKG_VERSION")).to_owned(),
            models: self.models.clone(),
            frame_bytes_max: limits::FRAME_BYTES_MAX as u32,
            body_bytes_max: limits::BODY_BYTES_MAX as u32,
            in_flight_max: limits::IN_FLIGHT_MAX as u32,
            lead_messages: limits::LEAD_MESSAGES,
            lead_tokens: limits::LEAD_TOKENS,
            token_expires_us: 0,
        };
        Ok((principal, welcome))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use thalweg_protocol::ids::{Name, SessionId};

    use super::*;
    use crate::gatekeeper::Claims;
    use crate::identity::tests::TempDir;

    #[test]
    fn versions_are_negotiated() {
        let dir = TempDir::new();
        let keys = Keys::open(dir.path()).expect("made");
        let name = |text| Name::new(text).expect("valid");
        let claims =
            Claims { tenant: name("default"), user: name("ada"), allow: Vec::new(), ttl: Duration::from_secs(60) };
        let token = keys.mint(&claims).expect("minted");
        let reception = Reception { keys, epoch: Epoch(3), models: Vec::new() };
        let check = |versions, expected: Result<u16, RejectCode>| {
            let hello = Hello { versions, session: SessionId(1), token: token.clone(), client: String::new() };
            let got = reception.welcome(&hello).map(|(_, welcome)| welcome.version).map_err(|reject| reject.code);
            assert_eq!(got, expected, "{versions:?}");
        };
        check((1, 1), Ok(1));
        check((1, 9), Ok(1));
        check((0, 0), Err(RejectCode::VersionUnsupported));
        check((2, 9), Err(RejectCode::VersionUnsupported));
        check((9, 1), Err(RejectCode::VersionUnsupported));
    }
}
