//! [`ApsisAuthLayer`], and what all its services share.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Method, Request, header::HOST};
use tower::Layer;

use crate::{
    ApsisAuth, ApsisAuthBuilder, BaseUrl, ClientCredentials, TokenHandle, cache::TokenCache, origin::Origin,
    rejection::Rule,
};

/// Gives every request to APSIS One a valid bearer token.
///
/// All clones, and all services made by them, share one token and one budget of token requests. So build one layer per
/// account and process, and clone it: two layers have two tokens and two budgets.
///
/// Building the layer makes no request and needs no runtime; the first request, or [`TokenHandle::warm_up`], gets the
/// token.
///
/// ```no_run
/// use apsis_auth::{ApsisAuthLayer, ClientCredentials, Region};
/// use tower::ServiceBuilder;
///
/// # fn build<S: Clone>(client: S) -> Result<(), apsis_auth::BuildError> {
/// let credentials = ClientCredentials::new("my-client-id", "my-secret")?;
/// let auth = ApsisAuthLayer::builder(credentials, Region::Eu).build()?;
/// let client = ServiceBuilder::new().layer(auth).service(client);
/// # Ok(())
/// # }
/// ```
///
/// See the [crate's documentation](crate) for what it promises.
#[derive(Clone, Debug)]
pub struct ApsisAuthLayer {
    shared: Arc<Shared>,
}

/// What all services of a layer share.
///
/// It begins on another line of the processor's cache than the counts of its `Arc`, which each request changes.
#[repr(align(128))]
pub(crate) struct Shared {
    pub(crate) cache: Arc<TokenCache>,
    origins: Vec<Origin>,
    /// How much is kept of a body; `None` where nothing is replayed.
    pub(crate) replay_limit: Option<usize>,
    pub(crate) rule: Rule,
    out_of_scope_was_told: AtomicBool,
}

impl Shared {
    pub(crate) fn new(cache: Arc<TokenCache>, origins: Vec<Origin>, replay_limit: Option<usize>, rule: Rule) -> Self {
        Self { cache, origins, replay_limit, rule, out_of_scope_was_told: AtomicBool::new(false) }
    }

    /// Whether the request may carry the token.
    #[inline]
    pub(crate) fn covers<B>(&self, request: &Request<B>) -> bool {
        self.origins.iter().any(|origin| origin.covers(request))
    }

    /// Says that a request goes to another origin and so without a token. Loud the first time: it may be a mistake in a
    /// URL, which would look like a token that is rejected. Not so a tunnel, which never has one.
    pub(crate) fn trace_out_of_scope<B>(&self, request: &Request<B>) {
        // What stands before an `@` may be a password.
        let named = || request.headers().get(HOST)?.to_str().ok()?.rsplit('@').next();
        let (scheme, host) = (request.uri().scheme_str(), request.uri().host().or_else(named));
        let (port, base) = (request.uri().port_u16(), &self.cache.source.url);
        let method = request.method();
        if *method == Method::CONNECT || self.out_of_scope_was_told.swap(true, Ordering::Relaxed) {
            tracing::debug!(%method, scheme, host, port, %base, "out of scope: sent without a token");
        } else {
            tracing::warn!(%method, scheme, host, port, %base, "out of scope: sent without a token");
        }
    }
}

impl ApsisAuthLayer {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// A layer with every default, from the environment: `APSIS_CLIENT_ID`, `APSIS_CLIENT_SECRET` (or files; see
    /// [`ClientCredentials::from_env`]) and `APSIS_REGION`.
    ///
    /// # Errors
    ///
    /// A [`BuildError`](crate::BuildError) that names the variable that is missing or wrong.
    #[cfg(feature = "client")]
    #[cfg_attr(docsrs, doc(cfg(feature = "client")))]
    pub fn from_env() -> Result<Self, crate::BuildError> {
        Self::builder(ClientCredentials::from_env()?, crate::Region::from_env()?).build()
    }

    /// A layer for the account of these credentials, at a [`Region`](crate::Region) or a [base URL](BaseUrl).
    pub fn builder(credentials: ClientCredentials, base: impl Into<BaseUrl>) -> ApsisAuthBuilder {
        ApsisAuthBuilder::new(credentials, base.into())
    }

    /// A handle on the layer's token, for health endpoints and for requests that are sent without the layer.
    #[must_use]
    pub fn handle(&self) -> TokenHandle {
        TokenHandle::new(Arc::clone(&self.shared.cache))
    }
}

/// What the layer wraps: anything that is [`Clone`]. There is nothing to implement.
///
/// It is here for what the compiler says where a client is not: the remedy, where the stack is built.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not `Clone`, which the layer needs to send a request a second time",
    label = "not `Clone`",
    note = "put a buffer beneath the layer, `.buffer(64)` (tower's feature `buffer`), or take a client that is `Clone`"
)]
pub trait CloneInner: Clone {}

#[diagnostic::do_not_recommend]
impl<S: Clone> CloneInner for S {}

impl<S: CloneInner> Layer<S> for ApsisAuthLayer {
    type Service = ApsisAuth<S>;

    fn layer(&self, inner: S) -> ApsisAuth<S> {
        ApsisAuth::new(inner, Arc::clone(&self.shared))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("origins", &self.origins).field("cache", &self.cache).finish_non_exhaustive()
    }
}
