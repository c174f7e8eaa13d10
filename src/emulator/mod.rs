//! APSIS One in a process: a token endpoint, an authorizer and a small audience API.
//!
//! An [`Emulator`] is one APSIS One account. It is a [`tower::Service`], so a test can call it
//! without a socket and under tokio's paused clock; [`Emulator::serve`] and
//! [`Emulator::serve_https`] put it on a loopback port. It starts out as a well-behaved account
//! with one API key, and has a control for each way in which the real one can trouble a client:
//! limits, revoked tokens, both dialects of rejection, slow, broken and silent answers.
//!
//! ```
//! use std::time::Duration;
//!
//! use apsis_auth::emulator::Emulator;
//! use http::{Request, StatusCode, header::AUTHORIZATION};
//! use http_body_util::BodyExt;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let apsis_one = Emulator::new();
//! apsis_one.set_token_lifetime(Duration::from_secs(60));
//!
//! let key = apsis_one.api_key();
//! let credentials = serde_json::json!({
//!     "grant_type": "client_credentials",
//!     "client_id": key.client_id(),
//!     "client_secret": key.client_secret(),
//! });
//! let request = Request::post("https://api.apsis.one/oauth/token")
//!     .header("content-type", "application/json")
//!     .body(credentials.to_string())?;
//! let answer = apsis_one.clone().oneshot(request).await?;
//! let answer = answer.into_body().collect().await?.to_bytes();
//! let answer: serde_json::Value = serde_json::from_slice(&answer)?;
//! let token = answer["access_token"].as_str().ok_or("a string")?;
//!
//! let request = || {
//!     Request::get("https://api.apsis.one/audience/keyspaces")
//!         .header(AUTHORIZATION, format!("Bearer {token}"))
//!         .body(String::new())
//! };
//! let accepted = apsis_one.clone().oneshot(request()?).await?;
//! assert_eq!(accepted.status(), StatusCode::OK);
//!
//! apsis_one.revoke_tokens();
//! let rejected = apsis_one.clone().oneshot(request()?).await?;
//! assert_eq!(rejected.status(), StatusCode::UNAUTHORIZED);
//! assert_eq!(apsis_one.counters().api_rejected, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What it answers
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /oauth/token` | a signed JWT, or the OAuth error |
//! | `GET /audience/keyspaces` | 200, a list |
//! | `GET /audience/sections` | 200, a list |
//! | `POST /audience/keyspaces/{keyspace}/profiles/{profile_key}` | 201; the JSON body, if any, is the profile's attributes; 409 if there is one |
//! | `GET /audience/keyspaces/{keyspace}/profiles/{profile_key}` | 200, attributes and number of events |
//! | `PATCH …/{profile_key}/attributes` (`application/merge-patch+json`) | 204; 404 if there is no profile |
//! | `PATCH …/{profile_key}/sections/{section}/attributes` (the same) | 204; creates the profile if there is none |
//! | `POST …/{profile_key}/events` (`application/json`) | 201; 404 if there is no profile |
//! | one of them with a body that is no JSON object, or of another type | 400, 415 |
//! | anything else | the gateway's 403 for a route that does not exist |
//!
//! Scheme and host are not looked at. An API request is checked in this order: route, token,
//! [refused routes](Emulator::refuse_route), limit, size of the body, rights of the key, and then
//! what the application makes of it.
//!
//! # Where it is not APSIS One
//!
//! It knows what is published about the limits, the rejections and the shape of a token. The
//! audience API is there to have something to authenticate for: its success statuses and the
//! bodies of its answers are made up. The attributes of a profile are one object, whichever section
//! they were set in. There is no limit per profile key, and no import or export.
//!
//! # Time
//!
//! Everything is timed by [`tokio::time::Instant`], and the wall clock is that of the moment of
//! creation (rounded down to a second) plus what has passed since then. So with tokio's clock
//! paused a day passes in no time, and a token expires to the second. Create the emulator in
//! the runtime whose clock it shall follow.

mod answers;
mod api;
mod api_key;
mod audience;
mod authorizer;
mod body;
mod clock;
mod controls;
mod counters;
mod error;
mod payload;
mod script;
mod server;
mod service;
mod signer;
mod state;
mod tls;
mod token_endpoint;
mod window;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub use self::{
    api_key::ApiKey, audience::Profile, authorizer::Dialect, body::EmulatorBody, counters::Counters,
    error::EmulatorError, script::Answer, server::EmulatorServer,
};
use self::{
    clock::{Clock, Now},
    state::State,
};

/// Behaves like one account of APSIS One.
///
/// Clones are cheap and share the account: a control turned on one of them is turned on all. A
/// control holds for the requests that arrive after it was turned: delays and scripts for those
/// whose head arrives, all others for those whose body has arrived.
///
/// See the [module docs](self) for an example.
#[derive(Clone)]
pub struct Emulator {
    account: Arc<Account>,
}

struct Account {
    first_key: ApiKey,
    clock: Clock,
    state: Mutex<State>,
}

impl Emulator {
    /// Opens an account with one API key, which has every right.
    ///
    /// The first call in a process generates the RSA key that signs the tokens, which takes a
    /// noticeable moment; later ones share it.
    ///
    /// # Panics
    ///
    /// If the system has no entropy or no memory to make an RSA key of.
    #[must_use]
    pub fn new() -> Self {
        let first_key = ApiKey::random();
        signer::shared();
        Self {
            account: Arc::new(Account { clock: Clock::start(), state: Mutex::new(State::new(&first_key)), first_key }),
        }
    }

    /// Returns the API key that the account was opened with, even when it is deleted.
    #[must_use]
    pub fn api_key(&self) -> ApiKey {
        self.account.first_key.clone()
    }

    /// Returns what was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().counters.clone()
    }

    /// Returns a profile as it is stored now, or `None` if there is none.
    ///
    /// `profile_key` is the decoded key: `andy.demo@apsis.com`, not `andy.demo%40apsis.com`.
    #[must_use]
    pub fn profile(&self, keyspace: &str, profile_key: &str) -> Option<Profile> {
        self.state().audience.profile(keyspace, profile_key)
    }

    /// Returns the public key that verifies the tokens: the DER of an RSA public key (PKCS #1).
    ///
    /// It is the same for all emulators of a process.
    #[must_use]
    pub fn public_key_der(&self) -> &'static [u8] {
        signer::shared().public_key_der()
    }

    /// What is done under the lock cannot leave the account half changed, so a panic of another
    /// thread is no reason to refuse it.
    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.account.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self, state: &State) -> Now {
        self.account.clock.now(state.settings.clock_skew)
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulator").field("counters", &self.counters()).finish_non_exhaustive()
    }
}
