//! The token without the layer: for requests that are sent another way, and for health endpoints.

use std::sync::Arc;

use serde::Serialize;

use crate::{AccessToken, AuthError, cache::TokenCache, error::Chain};

/// A handle on a layer's token. Clones are cheap and share it.
///
/// ```
/// use apsis_auth::{AuthError, TokenHandle};
/// use http::{HeaderMap, header::AUTHORIZATION};
///
/// /// For a request that is sent without the layer.
/// async fn authorize(token: &TokenHandle, headers: &mut HeaderMap) -> Result<(), AuthError> {
///     headers.insert(AUTHORIZATION, token.get().await?.header_value());
///     Ok(())
/// }
///
/// /// For a `/readyz` endpoint: whether requests can be served, and the details as JSON.
/// fn readiness(token: &TokenHandle) -> (bool, String) {
///     let snapshot = token.snapshot();
///     let ready = snapshot.token.as_ref().is_some_and(|token| token.usable);
///     (ready, serde_json::to_string(&snapshot).unwrap_or_default())
/// }
/// ```
///
/// Each waiting method waits at most [`max_wait`](crate::ApsisAuthBuilder::max_wait), needs a tokio runtime with a timer
/// if there is no token at hand (tokio panics in a runtime that has none), and can be cancelled: a token request under way
/// goes on for the others.
#[derive(Clone, Debug)]
pub struct TokenHandle {
    cache: Arc<TokenCache>,
}

impl TokenHandle {
    pub(crate) fn new(cache: Arc<TokenCache>) -> Self {
        Self { cache }
    }

    /// A token that is good now: the one at hand, or a new one.
    ///
    /// # Errors
    ///
    /// An [`AuthError`] if there is none and none can be had.
    pub async fn get(&self) -> Result<AccessToken, AuthError> {
        Arc::clone(&self.cache).get().await.map(AccessToken)
    }

    /// Gets a token if there is none, so that the first request does not wait.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn warm_up(&self) -> Result<(), AuthError> {
        self.get().await.map(drop)
    }

    /// Forces a renewal: gets a token from the token endpoint although there may be a good one, or takes part in the
    /// token request under way.
    ///
    /// It does not wait for the end of a back-off, but for room in the budget of token requests, and for a pause of all the
    /// processes that share a token store, if that ends within a flight. The endpoint may return the same token; then its
    /// [generation](AccessToken::generation) is the same.
    ///
    /// # Errors
    ///
    /// An [`AuthError`] if no token can be had. A good token stays in use then.
    pub async fn renew(&self) -> Result<AccessToken, AuthError> {
        Arc::clone(&self.cache).force().await.map(AccessToken)
    }

    /// The state of things, without a secret. Makes no request and does not wait.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.cache.clock.now();
        let (in_flight, grounding, attempts_left) = self.cache.condition();
        let token = self.cache.current().map(|token| TokenState {
            generation: token.generation(),
            usable: !token.is_expired(now),
            expires_in_seconds: token.time_to_expiry(now).as_secs(),
            due_in_seconds: token.time_to_due(now).as_secs(),
            adopted: token.is_adopted(),
        });
        let grounded = grounding.map(|grounding| Grounded {
            for_seconds: grounding.seconds_left(now.monotonic),
            because: Chain(&grounding.error).to_string(),
        });
        Snapshot { token, in_flight, grounded, attempts_left }
    }
}

/// What a [`TokenHandle`] knows at one moment. Serialises with serde; durations are in whole seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The current token; `None` before the first.
    pub token: Option<TokenState>,
    /// Whether a token request is under way.
    pub in_flight: bool,
    /// Set while no token request is made: after a failure, or because there is no room for one, in the budget of this process or of its
    /// fleet.
    pub grounded: Option<Grounded>,
    /// How many token requests the budget of this minute still has room for.
    pub attempts_left: u32,
}

/// The current token, in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TokenState {
    /// Its number in this process, counted from 1.
    pub generation: u64,
    /// Whether requests are sent with it: it has not come to the margin before its expiry.
    pub usable: bool,
    /// Until it expires; 0 if it has.
    pub expires_in_seconds: u64,
    /// Until its refresh is due; 0 if it is.
    pub due_in_seconds: u64,
    /// Whether another process had asked for it, and left it in a token store (feature `store`).
    pub adopted: bool,
}

/// Until when no token request is made and why, in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Grounded {
    /// How long it still lasts, rounded up.
    pub for_seconds: u64,
    /// The failure in words: the [`AuthError`] that requests get, with its sources.
    pub because: String,
}
