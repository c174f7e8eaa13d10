//! [`ApsisAuthBuilder`]: the settings of a layer, and their defaults.

use std::{
    iter,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Full;
use tower::{BoxError, Service};

use crate::{
    ApsisAuthLayer, BaseUrl, BuildError, ClientCredentials, Rejection,
    cache::{Limits, TokenCache},
    clock::Clock,
    endpoint::{self, TokenEndpoint},
    layer::Shared,
    origin::Origin,
    rejection::Rule,
};

const ATTEMPTS_PER_MINUTE: u32 = 4;
const MAX_WAIT: Duration = Duration::from_secs(30);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
const FLIGHT_TIMEOUT: Duration = Duration::from_secs(30);

/// APSIS One takes bodies of 100 kB (developer.apsis.com/reference/limits).
const REPLAY_LIMIT: usize = 128 * 1024;

/// No limit on time makes sense beyond this, and none is computed with that overflows.
const LONGEST_LIMIT: Duration = Duration::from_secs(3600);

/// Sets up an [`ApsisAuthLayer`]. Credentials and a region suffice.
///
/// ```no_run
/// use std::time::Duration;
///
/// use apsis_auth::{ApsisAuthLayer, ClientCredentials};
///
/// # fn build() -> Result<(), apsis_auth::BuildError> {
/// let credentials = ClientCredentials::from_env()?;
/// let auth = ApsisAuthLayer::builder(credentials, "https://gateway.example/apsis")
///     .token_requests_per_minute(2)
///     .max_wait(Duration::from_secs(10))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it builds nothing until `build` is called"]
pub struct ApsisAuthBuilder {
    credentials: ClientCredentials,
    base: BaseUrl,
    transport: Option<endpoint::Transport>,
    limits: Limits,
    attempts_per_minute: u32,
    further: Vec<BaseUrl>,
    replay_limit: Option<usize>,
    rule: Rule,
    clock: Clock,
    #[cfg(feature = "store")]
    store: Option<Box<dyn crate::store::AnyStore>>,
}

impl ApsisAuthBuilder {
    pub(crate) fn new(credentials: ClientCredentials, base: BaseUrl) -> Self {
        Self {
            credentials,
            base,
            transport: None,
            limits: Limits { max_wait: MAX_WAIT, attempt: ATTEMPT_TIMEOUT, flight: FLIGHT_TIMEOUT },
            attempts_per_minute: ATTEMPTS_PER_MINUTE,
            further: Vec::new(),
            replay_limit: Some(REPLAY_LIMIT),
            rule: Rule::default(),
            clock: Clock::default(),
            #[cfg(feature = "store")]
            store: None,
        }
    }

    /// The service that sends token requests, instead of the default HTTPS transport.
    ///
    /// Best not the service that the layer wraps: a full one can then not delay a refresh. It may share a limit or a buffer
    /// with that one, as tower's are, which let go when there is a response: no waiting request then holds a permit or a
    /// slot, and a token request takes its turn among the others, within [`attempt_timeout`](Self::attempt_timeout). It must
    /// not share what a response keeps, such as a lone HTTP/1 connection: a large rejection that is not read yet keeps the
    /// token request out until its time is up, and is then returned instead of renewed.
    ///
    /// It must not follow redirects, which could carry the secret elsewhere; with reqwest that is `redirect::Policy::none()`.
    /// Nor must it log the requests' bodies, which hold the secret. It needs no time limit of its own.
    ///
    /// Default: HTTP/1.1 over hyper and rustls, the platform's root certificates, 5 s for a TCP connection (feature
    /// `client`).
    pub fn transport<T, B>(mut self, service: T) -> Self
    where
        T: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
        T::Error: Into<BoxError>,
        T::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.transport = Some(endpoint::transport(service));
        self
    }

    /// How many token requests the layer, with all its clones, makes in any 60 seconds, whatever happens.
    ///
    /// APSIS One allows an account 10 a minute, over all its integrations and processes. Zero is an error.
    ///
    /// Default: 4.
    pub fn token_requests_per_minute(mut self, requests: u32) -> Self {
        self.attempts_per_minute = requests;
        self
    }

    /// The longest a request waits for a token; then it fails with [`AuthError::TimedOut`](crate::AuthError::TimedOut).
    ///
    /// More than zero, at most an hour. A request never waits while a valid token is at hand. One that was rejected gets its
    /// rejection back instead of the error. A time limit above the layer should be longer, or a token that cannot be had looks
    /// like an API that does not answer. If it is shorter than a flight, the error comes before the flight's own, which would
    /// name the cause.
    ///
    /// Default: 30 seconds.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.limits.max_wait = wait;
        self
    }

    /// The longest a single HTTP request to the token endpoint takes, from connect to the last byte.
    ///
    /// More than zero, at most an hour.
    ///
    /// Default: 15 seconds.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.limits.attempt = timeout;
        self
    }

    /// The longest a flight takes: the attempts to get one token, and the pauses between them.
    ///
    /// More than zero, at most an hour.
    ///
    /// Default: 30 seconds.
    pub fn flight_timeout(mut self, timeout: Duration) -> Self {
        self.limits.flight = timeout;
        self
    }

    /// One more origin whose requests get the token: another name of the API, or a gateway in front of it.
    ///
    /// Can be called several times. The token request goes to the base URL all the same. Each is checked as the base URL
    /// is; whatever its path, it stands for its origin.
    ///
    /// Default: none, so the base URL's origin alone is in scope.
    pub fn further_origin(mut self, url: impl Into<BaseUrl>) -> Self {
        self.further.push(url.into());
        self
    }

    /// How many bytes of a streaming body are kept for a replay. A request whose body is larger is not replayed.
    ///
    /// A frame counts at least as much as the handle that is kept of it, for [`Bytes`] a few dozen bytes: so the limit holds
    /// for a body of tiny frames, too. So do trailers, by their names and values, field by field. Of a [`String`], all counts.
    /// What a frame of some KiB keeps beyond its length, the rest of the buffer it was read into, does not.
    ///
    /// Bodies that share their memory with a clone are kept whatever their size; see
    /// [`ReplayableBody`](crate::ReplayableBody).
    ///
    /// Default: 128 KiB. APSIS One takes 100 kB.
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.replay_limit = Some(bytes);
        self
    }

    /// Keeps nothing of requests and replays none. A rejection is returned, and the token renewed for the next request.
    ///
    /// Default: rejected requests are replayed.
    pub fn without_replay(mut self) -> Self {
        self.replay_limit = None;
        self
    }

    /// Decides which responses are the token's fault, by their status and headers.
    ///
    /// Asked for each response to a request that carried the token; not for those out of scope.
    ///
    /// Default: [`default_rejection_rule`](crate::default_rejection_rule).
    pub fn rejection_rule(
        mut self,
        rule: impl Fn(StatusCode, &HeaderMap) -> Option<Rejection> + Send + Sync + 'static,
    ) -> Self {
        self.rule = Rule::new(rule);
        self
    }

    /// The store through which all processes with these credentials share one token.
    ///
    /// Each still has a token of its own in front of it, and a request with a good one never touches the store. A flight looks
    /// there before it asks APSIS One; of all processes one asks, and the others take what it was given. The budget
    /// of [`token_requests_per_minute`](Self::token_requests_per_minute) is then the fleet's as well as this process's: all of them
    /// together make no more, and each makes no more when it is alone.
    ///
    /// A store that fails, or takes longer than a second, fails no request: the process goes on alone, and says so once. If the
    /// process that asks dies, the others wait for the end of its lease, [`attempt_timeout`](Self::attempt_timeout) and 2 s. So
    /// [`flight_timeout`](Self::flight_timeout) and [`max_wait`](Self::max_wait) should be 5 s longer than that, as they are by default,
    /// and an attempt no longer than 298 s: a lease lasts 5 min at most. What is stored is sealed under the client secret; see the
    /// [module](crate::store).
    ///
    /// Default: none.
    #[cfg(feature = "store")]
    #[cfg_attr(docsrs, doc(cfg(feature = "store")))]
    pub fn store(mut self, store: impl crate::store::TokenStore) -> Self {
        self.store = Some(Box::new(store));
        self
    }

    /// The wall clock, for tests and simulations. The monotonic clock is tokio's, which tests pause.
    ///
    /// Default: [`SystemTime::now`].
    pub fn wall_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock.set_wall(now);
        self
    }

    /// Random numbers from `0.0..1.0` that spread refreshes and retries, for tests and simulations.
    ///
    /// Default: a generator seeded by the system.
    pub fn random(mut self, draw: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        self.clock.set_random(draw);
        self
    }

    /// The layer. Nothing is sent yet, and no runtime is needed.
    ///
    /// # Errors
    ///
    /// [`BuildError::BaseUrl`], [`BuildError::ZeroBudget`], [`BuildError::InvalidDuration`],
    /// [`BuildError::NoTransport`] without the feature `client`, [`BuildError::RootCertificates`] with it.
    pub fn build(self) -> Result<ApsisAuthLayer, BuildError> {
        let (origin, url) = self.base.resolve()?;
        let further = self.further.iter().map(|base| Ok(base.resolve()?.0));
        let further = further.collect::<Result<Vec<_>, BuildError>>()?;
        let budget = NonZeroU32::new(self.attempts_per_minute).ok_or(BuildError::ZeroBudget)?;
        check("max_wait", self.limits.max_wait)?;
        check("attempt_timeout", self.limits.attempt)?;
        check("flight_timeout", self.limits.flight)?;
        let transport = match self.transport {
            Some(transport) => transport,
            None => default_transport(&origin)?,
        };
        #[cfg(feature = "store")]
        let fleet = self.store.map(|store| {
            let seal = crate::seal::Seal::new(&self.credentials, &origin.serialization());
            crate::fleet::Fleet::new(store, seal, budget.get(), &self.limits)
        });
        #[cfg(not(feature = "store"))]
        let fleet = None;
        let source = TokenEndpoint::new(transport, url, self.credentials);
        let cache = Arc::new(TokenCache::new(source, self.clock, self.limits, budget, fleet));
        let origins = iter::once(origin).chain(further).collect();
        Ok(ApsisAuthLayer::new(Shared::new(cache, origins, self.replay_limit, self.rule)))
    }
}

fn check(setting: &'static str, value: Duration) -> Result<(), BuildError> {
    if value.is_zero() || value > LONGEST_LIMIT {
        return Err(BuildError::InvalidDuration { setting, value });
    }
    Ok(())
}

#[cfg(feature = "client")]
fn default_transport(origin: &Origin) -> Result<endpoint::Transport, BuildError> {
    // A plain http origin is on this machine, which may be a container without root certificates.
    let client = if origin.is_https() { crate::HttpsTransport::new()? } else { crate::HttpsTransport::plain() };
    Ok(endpoint::transport(client))
}

#[cfg(not(feature = "client"))]
fn default_transport(_: &Origin) -> Result<endpoint::Transport, BuildError> {
    Err(BuildError::NoTransport)
}
