//! Laws 27, 28 and 31: what a life's layer stands in.

use std::{
    future::{Ready, ready},
    mem::replace,
    sync::Arc,
    time::Duration,
};

use apsis_auth::ApsisAuthLayer;
use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimit, retry::Policy,
    util::BoxCloneSyncService,
};
use tower_http::{
    follow_redirect::FollowRedirectLayer,
    trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer},
};
use tracing::Level;

use crate::{
    probe::{Api, Probe},
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
    pub(crate) fn client(self, layer: &ApsisAuthLayer, beneath: &Beneath, probe: &Probe) -> Client {
        let (inner, probe) = (layer.layer(beneath.service(Api(probe.clone()))), probe.clone());
        let inner = inner.map_request(move |request| probe.begin_call(request));
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
