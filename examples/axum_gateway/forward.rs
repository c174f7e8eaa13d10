//! A request goes to the API, and the answer back: to the byte, but for what is between two connections alone.

use std::{io, sync::Arc, time::Duration};

use apsis_auth::{ApsisAuthLayer, AuthOutcome, default_rejection_rule};
use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{
    HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{ALLOW, TRANSFER_ENCODING},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use percent_encoding::percent_decode_str;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use tower_http::{ServiceBuilderExt, timeout::ResponseBodyTimeoutLayer};
use tracing::Span;

use crate::{errors::Refusal, fields, guard::Guard};

const PREFIX: &str = "/apsis";

/// Below the base URL, where the layer has it.
const TOKEN_ENDPOINT: &str = "/oauth/token";

pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent HTTP/2 connection is asked whether it lives. All requests share it, so a dead one would hold up all.
const PING_EVERY: Duration = Duration::from_secs(20);

pub(crate) type HttpsClient = Client<HttpsConnector<HttpConnector>, Body>;

type ApiClient = BoxCloneSyncService<Request, Response, BoxError>;

/// The way to the API, and who may take it.
#[derive(Clone)]
pub(crate) struct Upstream {
    base: Base,
    client: ApiClient,
    slots: Arc<Semaphore>,
    guard: Guard,
}

pub(crate) async fn forward(State(upstream): State<Upstream>, request: Request) -> Result<Response, Refusal> {
    tracing::debug!(uri = %request.uri(), version = ?request.version(), "arrived");
    tracing::trace!(fields = ?request.headers(), "arrived with");
    upstream.guard.check(&request)?;
    let mut request = upstream.base.outbound(request)?;
    if request.method() == Method::OPTIONS && !fields::may_go_on(request.headers_mut()) {
        return Ok(own_options());
    }
    // At once or not at all: whoever waits here would take memory, and a caller knows better what is worth waiting for.
    let slot = upstream.slots.try_acquire_owned().map_err(|_| Refusal::Full)?;
    let answer = upstream.client.oneshot(request).await?;
    trace_outcome(&answer);
    inbound(answer, slot)
}

/// To an OPTIONS that may go no further.
fn own_options() -> Response {
    let methods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    (StatusCode::NO_CONTENT, [(ALLOW.as_str(), methods), ("proxy-status", "apsis-gateway")]).into_response()
}

impl Upstream {
    /// `limit` is for the time until the head of the answer, and for each pause in its body.
    pub(crate) fn new(
        base: Base,
        client: HttpsClient,
        auth: ApsisAuthLayer,
        guard: Guard,
        limit: Duration,
        most_requests: usize,
    ) -> Self {
        let client = ServiceBuilder::new()
            .map_response_body(Body::new)
            .layer(ResponseBodyTimeoutLayer::new(limit))
            .timeout(limit)
            .layer(auth)
            .service(client);
        let slots = Arc::new(Semaphore::new(most_requests));
        Self { base, client: BoxCloneSyncService::new(client), slots, guard }
    }
}

/// The API's base URL, which takes the place of the prefix.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    scheme: Scheme,
    authority: Authority,
    path: String,
}

impl Base {
    /// Of a URL that the layer has taken; `None` if it is not absolute.
    pub(crate) fn of(url: &str) -> Option<Self> {
        let parts = url.parse::<Uri>().ok()?.into_parts();
        let path = parts.path_and_query.as_ref().map_or("", PathAndQuery::path).trim_end_matches('/').to_owned();
        Some(Self { scheme: parts.scheme?, authority: parts.authority?, path })
    }

    /// The request as it goes to the API. What else the connection has left in its extensions stays here.
    fn outbound(&self, request: Request) -> Result<Request, Refusal> {
        let (head, body) = request.into_parts();
        // A tunnel has nothing to do with the API, and a TRACE would bring back what was sent, the token included.
        if [Method::CONNECT, Method::TRACE].contains(&head.method) {
            return Err(Refusal::Method(head.method));
        }
        if !fields::is_body_decoded(&head.headers) {
            return Err(Refusal::TransferCoding);
        }
        let mut request = Request::new(body);
        *request.uri_mut() = self.join(rest(&head.uri).ok_or(Refusal::NoSuchPath)?)?;
        if self.is_token_endpoint(request.uri()) {
            return Err(Refusal::TokenRequest);
        }
        *request.method_mut() = head.method;
        *request.headers_mut() = head.headers;
        fields::for_the_api(request.headers_mut(), head.version);
        announce_body(&mut request);
        Ok(request)
    }

    /// A caller's token requests would take from those that the layer may make, and a 401 there says nothing of its token.
    fn is_token_endpoint(&self, uri: &Uri) -> bool {
        segments(uri.path()) == segments(&format!("{}{TOKEN_ENDPOINT}", self.path))
    }

    /// No part of the target is decoded or put in order on its way: a profile key is URI-encoded, and so it has to arrive.
    fn join(&self, rest: &str) -> Result<Uri, Refusal> {
        let slash = if self.path.is_empty() && !rest.starts_with('/') { "/" } else { "" };
        let path_and_query = format!("{}{slash}{rest}", self.path);
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone());
        // What arrived was a URI, so this is one, unless it is too long now.
        uri.path_and_query(path_and_query).build().map_err(|_| Refusal::TargetTooLong)
    }
}

/// What follows the prefix.
fn rest(uri: &Uri) -> Option<&str> {
    let rest = uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    (rest.is_empty() || rest.starts_with(['/', '?'])).then_some(rest)
}

/// A path as a server may read it: decoded, in order, without empty segments, and whatever the case.
fn segments(path: &str) -> Vec<Vec<u8>> {
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    let mut segments = Vec::new();
    for segment in decoded.split(|&byte| byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            segment => segments.push(segment.to_ascii_lowercase()),
        }
    }
    segments
}

/// In HTTP/1 hyper sends the body of a GET or a HEAD only if its length is known or this says that there is one.
fn announce_body(request: &mut Request) {
    let is_unusual = [Method::GET, Method::HEAD].contains(request.method());
    if is_unusual && !request.body().is_end_stream() && request.body().size_hint().exact().is_none() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// The answer as it goes to the caller. The slot is taken until its body has ended, or is given up.
fn inbound(answer: Response, slot: OwnedSemaphorePermit) -> Result<Response, Refusal> {
    let (mut head, body) = answer.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::Switched);
    }
    head.version = Version::HTTP_11;
    fields::for_the_caller(&mut head.headers);
    // The caller gets the one it knows, or that the log knows; the API's own is in the log.
    if let Some(id) = head.headers.remove(&REQUEST_ID) {
        Span::current().record("api_request_id", tracing::field::debug(id));
    }
    let body = body.map_err(move |error| {
        let _taken = &slot;
        tracing::warn!(error = &error as &dyn std::error::Error, "the API's answer broke off");
        error
    });
    Ok(Response::from_parts(head, Body::new(body)))
}

/// A rejection goes to the caller as it is: the API's own words say most, and the token may well be good, where the key has
/// no right to do this. Whoever runs the gateway is told what the layer did about it.
fn trace_outcome(answer: &Response) {
    let status = answer.status().as_u16();
    match answer.extensions().get() {
        // What AWS's gateway calls a missing token is a path that the API does not have.
        None if answer
            .headers()
            .get("x-amzn-errortype")
            .is_some_and(|kind| kind == "MissingAuthenticationTokenException") =>
        {
            tracing::warn!(status, "the API has no such path");
        }
        None => {}
        Some(AuthOutcome::Replayed) if default_rejection_rule(answer.status(), answer.headers()).is_none() => {
            tracing::info!(status, "replayed with a new token");
        }
        Some(AuthOutcome::Replayed) => tracing::warn!(status, "rejected, and with a new token again"),
        Some(AuthOutcome::NotReplayable) => {
            tracing::warn!(status, "rejected; the body cannot be sent again, but the next request has a new token");
        }
        Some(AuthOutcome::NotRenewed(error)) => {
            tracing::warn!(status, error = error as &dyn std::error::Error, "rejected, and there is no new token");
        }
        Some(outcome) => tracing::warn!(status, ?outcome, "sent without a token"),
    }
}

/// A client for HTTP/1.1 and HTTP/2. The emulator speaks plain HTTP, for which no certificate is needed.
pub(crate) fn https_client(tls: ClientConfig) -> HttpsClient {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_EVERY)
        .build(connector)
}

/// The provider is passed in: a tree with two of them has no default, and asking for it panics.
pub(crate) fn tls(base: &Base) -> io::Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into());
    let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let config = if base.scheme == Scheme::HTTPS {
        config.with_native_roots()?
    } else {
        config.with_root_certificates(RootCertStore::empty())
    };
    Ok(config.with_no_client_auth())
}
