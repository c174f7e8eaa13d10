//! The way of a request to the API.
//!
//! From top to bottom: a bound on how many are under way, retry, the auth layer, the rate limit, a time limit, the HTTP
//! client. The rate limit stands beneath the other two that send a request again, since the API counts those as well. It
//! cannot be cloned, which layers above need: hence the buffer over it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use apsis_auth::ApsisAuthLayer;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tower::{
    BoxError, Service, ServiceBuilder,
    util::{BoxService, MapErrLayer},
};
use tower_http::ServiceBuilderExt;

use crate::{Limits, progress::Watch, retry::Retries};

/// One request, from its turn under the rate limit to the head of its answer.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How much of an answer is read: it has a reason to look for in it.
const LONGEST_ANSWER: usize = 16 * 1024;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

pub(crate) struct Client {
    pub(crate) service: BoxService<Request<Full<Bytes>>, Answer, BoxError>,
    resent: Arc<AtomicU64>,
}

impl Client {
    /// Over any service that speaks HTTP. Has to be called in a tokio runtime.
    pub(crate) fn new<S, B>(transport: S, auth: ApsisAuthLayer, limits: &Limits, watch: Arc<dyn Watch>) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let under_way = limits.concurrency.get();
        let resent = Arc::default();
        let (requests, time) = spread(limits.rate.get());
        let service = ServiceBuilder::new()
            .concurrency_limit(under_way)
            .retry(Retries::new(watch, Arc::clone(&resent)))
            .layer(auth)
            .buffer(under_way)
            .rate_limit(requests, time)
            .timeout(ATTEMPT)
            .layer(MapErrLayer::new(Into::into))
            .map_response_body(|body| Limited::new(body, LONGEST_ANSWER).boxed_unsync())
            .service(transport);
        Self { service: BoxService::new(service), resent }
    }

    /// How many requests were sent again by retry.
    pub(crate) fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }
}

/// How many requests in what time. The API counts those of any second, tower those of fixed periods, of which two may meet:
/// so they are short.
fn spread(per_second: u32) -> (u64, Duration) {
    let requests = per_second.div_ceil(100);
    (requests.into(), Duration::from_secs(1) * requests / per_second)
}

/// The emulator speaks plain http, for which no certificate is needed.
pub(crate) fn https_client(base: &str) -> io::Result<HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let provider = aws_lc_rs::default_provider();
    let builder = HttpsConnectorBuilder::new();
    let builder = if base.starts_with("https:") {
        builder.with_provider_and_native_roots(provider)?
    } else {
        let config = ClientConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions();
        let config = config.map_err(io::Error::other)?.with_root_certificates(RootCertStore::empty());
        builder.with_tls_config(config.with_no_client_auth())
    };
    let connector = builder.https_or_http().enable_http1().build();
    Ok(HyperClient::builder(TokioExecutor::new()).build(connector))
}
