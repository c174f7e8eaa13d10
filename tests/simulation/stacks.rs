//! Laws 27, 28 and 31: what a life's layer stands in.

use std::{
    future::{Ready, ready},
    mem::{replace, take},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use apsis_auth::ApsisAuthLayer;
use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::Full;
use tokio::{sync::Semaphore, time::Instant};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, limit::ConcurrencyLimit, retry::Policy, util::BoxCloneSyncService,
};
use tower_http::{
    follow_redirect::FollowRedirectLayer,
    trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer},
};
use tracing::Level;

use crate::{
    life::BoxFuture,
    probe::{Api, Probe, Seen, Trace, Wall},
    seconds,
};

/// Boxed, so that it goes into tasks whatever it stands in.
pub(crate) type Client = BoxCloneSyncService<Request<Full<Bytes>>, Response<Full<Bytes>>, BoxError>;

pub(crate) const PERMITS: usize = 3;
/// Shorter than some flights.
const TIMEOUT: Duration = seconds(20);
/// One more than the redirects that are followed unless it is said otherwise.
const HOPS: u32 = 21;

/// Between the layer and the API.
#[derive(Clone, Debug)]
pub(crate) enum Beneath {
    /// Always ready.
    Plain,
    /// Prints each request, with its token marked as sensitive.
    Trace,
    Limit(Arc<Semaphore>),
    Shed(Arc<Semaphore>),
    Buffer,
    Rate,
}

impl Beneath {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let permits = Arc::new(Semaphore::new(PERMITS));
        match rng.u8(..10) {
            0..5 => Self::Plain,
            5 => Self::Trace,
            6 => Self::Limit(permits),
            7 => Self::Shed(permits),
            8 => Self::Buffer,
            _ => Self::Rate,
        }
    }

    /// Whether token requests take permits, too.
    pub(crate) fn permits(&self, rng: &mut Rng) -> Permits {
        match self {
            Self::Limit(_) | Self::Shed(_) if rng.bool() => Permits::OfAll,
            Self::Limit(_) | Self::Shed(_) => Permits::OfTheApi,
            _ => Permits::None,
        }
    }

    /// The way of token requests.
    pub(crate) fn transport(&self, probe: &Probe, permits: Permits) -> Client {
        let transport = match (self, permits) {
            (Self::Limit(semaphore) | Self::Shed(semaphore), Permits::OfAll) => {
                BoxCloneSyncService::new(ConcurrencyLimit::with_semaphore(probe.transport(), Arc::clone(semaphore)))
            }
            _ => BoxCloneSyncService::new(probe.transport()),
        };
        BoxCloneSyncService::new(Dated { inner: transport, wall: probe.wall().clone(), asked: None })
    }

    fn service(&self, api: Api) -> Client {
        match self {
            Self::Plain => BoxCloneSyncService::new(api),
            Self::Trace => BoxCloneSyncService::new(traced(api)),
            Self::Limit(permits) => {
                BoxCloneSyncService::new(ConcurrencyLimit::with_semaphore(api, Arc::clone(permits)))
            }
            Self::Shed(permits) => {
                let limited = ConcurrencyLimit::with_semaphore(api, Arc::clone(permits));
                BoxCloneSyncService::new(ServiceBuilder::new().load_shed().service(limited))
            }
            Self::Buffer => BoxCloneSyncService::new(ServiceBuilder::new().buffer(2).service(api)),
            Self::Rate => {
                BoxCloneSyncService::new(ServiceBuilder::new().buffer(2).rate_limit(5, seconds(1)).service(api))
            }
        }
    }

    /// Whoever has a token has nothing else to wait for.
    pub(crate) fn is_always_ready(&self) -> bool {
        matches!(self, Self::Plain | Self::Trace)
    }

    /// Whoever is not at the API now waits for a token.
    pub(crate) fn is_free(&self, seen: &Seen, permits: Permits) -> bool {
        match self {
            Self::Plain | Self::Trace | Self::Buffer => true,
            Self::Limit(_) | Self::Shed(_) => permits.taken(seen) < PERMITS,
            Self::Rate => false,
        }
    }

    /// How long a request may wait for its turn.
    pub(crate) fn longest_turn(&self) -> Duration {
        // Some bursts of callers, and five a second.
        if matches!(self, Self::Rate) { seconds(300) } else { Duration::ZERO }
    }

    /// In a buffer, a request that has its token waits for its turn.
    pub(crate) fn sends_at_once(&self) -> bool {
        !matches!(self, Self::Buffer | Self::Rate)
    }

    /// A buffer's task dies with its runtime.
    pub(crate) fn outlives_a_runtime(&self) -> bool {
        !matches!(self, Self::Buffer | Self::Rate)
    }

    pub(crate) fn permits_left(&self) -> Option<usize> {
        match self {
            Self::Limit(permits) | Self::Shed(permits) => Some(permits.available_permits()),
            Self::Plain | Self::Trace | Self::Buffer | Self::Rate => None,
        }
    }
}

/// Between the callers and the layer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Above {
    Nothing,
    Timeout,
    /// Sends once more what was no success.
    Retry,
    FollowRedirect,
    Trace,
}

impl Above {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..10) {
            0..4 => Self::Nothing,
            4 => Self::Timeout,
            5..7 => Self::Retry,
            7..9 => Self::FollowRedirect,
            _ => Self::Trace,
        }
    }

    /// The whole: this, the layer, and what is beneath it.
    pub(crate) fn client(self, layer: &ApsisAuthLayer, beneath: &Beneath, probe: &Probe, trace: &Trace) -> Client {
        let strict = Strict { inner: beneath.service(Api(probe.clone())), is_ready: false, trace: trace.clone() };
        let inner = Counted { inner: layer.layer(strict), probe: probe.clone() };
        let stack = ServiceBuilder::new();
        match self {
            Self::Nothing => BoxCloneSyncService::new(inner),
            Self::Timeout => BoxCloneSyncService::new(stack.timeout(TIMEOUT).service(inner)),
            Self::Retry => BoxCloneSyncService::new(stack.retry(Once { is_over: false }).service(inner)),
            Self::FollowRedirect => BoxCloneSyncService::new(stack.layer(FollowRedirectLayer::new()).service(inner)),
            Self::Trace => BoxCloneSyncService::new(traced(inner)),
        }
    }

    /// How often the layer may be called with one request.
    pub(crate) fn calls(self) -> u32 {
        match self {
            Self::Nothing | Self::Timeout | Self::Trace => 1,
            Self::Retry => 2,
            Self::FollowRedirect => HOPS,
        }
    }
}

/// Who takes a permit for each request.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Permits {
    None,
    OfTheApi,
    /// Token requests as well.
    OfAll,
}

impl Permits {
    pub(crate) fn taken(self, seen: &Seen) -> usize {
        match self {
            Self::None => 0,
            Self::OfTheApi => seen.in_api,
            Self::OfAll => seen.in_api + seen.in_token_endpoint(),
        }
    }
}

/// Calls of the layer are counted here.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    probe: Probe,
}

impl<S> Service<Request<Full<Bytes>>> for Counted<S>
where
    S: Service<Request<Full<Bytes>>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Full<Bytes>>) -> Self::Future {
        let in_call = self.probe.begin_call(&mut request);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _in_call = in_call;
            answer.await
        })
    }
}

/// By both clocks, when somebody began to wait for a service to be ready for a token request.
#[derive(Clone, Copy)]
pub(crate) struct Asked(pub(crate) Instant, pub(crate) SystemTime);

/// Says with each token request when it was asked for.
struct Dated {
    inner: Client,
    wall: Wall,
    asked: Option<Asked>,
}

impl Clone for Dated {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), wall: self.wall.clone(), asked: None }
    }
}

impl Service<Request<Full<Bytes>>> for Dated {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Response<Full<Bytes>>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.asked.get_or_insert_with(|| Asked(Instant::now(), self.wall.now()));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Full<Bytes>>) -> Self::Future {
        request.extensions_mut().insert(self.asked.take().unwrap());
        Box::pin(self.inner.call(request))
    }
}

/// Hears of a call that no `poll_ready` allowed.
struct Strict {
    inner: Client,
    is_ready: bool,
    trace: Trace,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), is_ready: false, trace: self.trace.clone() }
    }
}

impl Service<Request<Full<Bytes>>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Response<Full<Bytes>>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let poll = self.inner.poll_ready(cx);
        self.is_ready = matches!(poll, Poll::Ready(Ok(())));
        poll
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        self.trace.promise(take(&mut self.is_ready), "a service was called that had not said it was ready");
        self.inner.call(request)
    }
}

/// Prints all that it can of each request and answer.
fn traced<S>(
    inner: S,
) -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static
where
    S: Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    ServiceBuilder::new()
        // Nobody reads what the API has to say beyond its head.
        .map_response(|answer: Response<_>| answer.map(|_| Full::default()))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(DefaultMakeSpan::new().level(Level::TRACE).include_headers(true))
                .on_response(DefaultOnResponse::new().level(Level::TRACE).include_headers(true)),
        )
        .service(inner)
}

/// Sends once more, at once, what was no success.
#[derive(Clone)]
struct Once {
    is_over: bool,
}

impl Policy<Request<Full<Bytes>>, Response<Full<Bytes>>, BoxError> for Once {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<Full<Bytes>>, BoxError>,
    ) -> Option<Ready<()>> {
        let is_over = replace(&mut self.is_over, true);
        (!is_over && !result.as_ref().is_ok_and(|answer| answer.status().is_success())).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}
