//! Who a client says that it is, and how it comes by a token that says so.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thalweg_protocol::ids::Name;
use thalweg_protocol::op::Login;

use crate::error::ClientError;

/// A token that ends within this time is not used for another connection.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// What a source of tokens gives: a token, or for people why there is none.
type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Where tokens come from that somebody else issues: asked before each connection.
#[derive(Clone)]
pub struct TokenSource(Arc<dyn Fn() -> TokenFuture + Send + Sync>);

impl TokenSource {
    /// Tokens that this function gives. An error ends the first attempt to connect; later it is asked again, as long as the
    /// client tries to come back.
    pub fn new<F>(source: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(source())))
    }

    pub(crate) async fn token(&self) -> Result<String, ClientError> {
        (self.0)().await.map_err(ClientError::NoToken)
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSource")
    }
}

/// The answer to a login.
#[derive(Clone, PartialEq, Eq)]
pub struct LoggedIn {
    /// The token.
    pub token: String,
    /// When it ends, in microseconds since 1970; 0 if it does not.
    pub expires_us: u64,
}

impl fmt::Debug for LoggedIn {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoggedIn").field("expires_us", &self.expires_us).finish_non_exhaustive()
    }
}

impl LoggedIn {
    /// Whether it will be good for a while.
    fn lasts(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + TOKEN_MARGIN;
        self.expires_us == 0 || u128::from(self.expires_us) > now.as_micros()
    }
}

/// How a client says who it is.
#[derive(Clone)]
pub(crate) enum Credential {
    /// With a token, or an API key.
    Token(String),
    /// With the token that the node of a data directory left there.
    Local,
    /// With a name and a password, for which the node gives a token.
    Password(Login),
    /// With a token of the application's.
    Source(TokenSource),
}

impl fmt::Debug for Credential {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token",
            Self::Local => "Local",
            Self::Password(_) => "Password",
            Self::Source(_) => "Source",
        })
    }
}

impl Credential {
    pub(crate) fn password(tenant: Name, user: Name, password: String) -> Self {
        Self::Password(Login { tenant, user, password })
    }

    /// Whether another token can be had when one has ended.
    pub(crate) fn renews(&self) -> bool {
        matches!(self, Self::Password(_) | Self::Source(_) | Self::Local)
    }
}

/// What is to be shown on a new connection.
pub(crate) enum Show {
    Token(String),
    /// A token is asked for first.
    Login(Login),
}

/// What is to be shown, with the token of an earlier login if it lasts; `local` is the token of the data directory.
pub(crate) async fn show(
    credential: &Credential,
    held: Option<&LoggedIn>,
    local: Option<&str>,
) -> Result<Show, ClientError> {
    match (credential, held.filter(|held| held.lasts())) {
        (Credential::Password(_), Some(held)) => Ok(Show::Token(held.token.clone())),
        (Credential::Password(login), None) => Ok(Show::Login(login.clone())),
        (Credential::Token(token), _) => Ok(Show::Token(token.clone())),
        (Credential::Local, _) => Ok(Show::Token(local.unwrap_or_default().to_owned())),
        (Credential::Source(source), _) => source.token().await.map(Show::Token),
    }
}
