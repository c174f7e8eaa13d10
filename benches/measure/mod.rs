//! What is measured: one request to a service that answers at once, from its making to its answer.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use apsis_auth::{ApsisAuth, ApsisAuthLayer, ClientCredentials};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};

/// The body of a request, and of an answer.
pub(crate) type Body = Full<Bytes>;

const TOKEN_LENGTH: usize = 1024;

/// The service that is wrapped: it answers at once and costs next to nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api;

impl Service<Request<Body>> for Api {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    // A client is not inlined into the layer above it.
    #[inline(never)]
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        black_box(&request);
        ready(Ok(Response::new(())))
    }
}

/// The least that a layer can do: it puts a header on that never changes, and hands on the inner future.
#[derive(Clone, Debug)]
pub(crate) struct StaticHeader<S> {
    inner: S,
    header: HeaderValue,
}

impl<S> StaticHeader<S> {
    /// Around a service, with a token as long as the measured one.
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, header: header_value() }
    }
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for StaticHeader<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        request.headers_mut().insert(header::AUTHORIZATION, self.header.clone());
        self.inner.call(request)
    }
}

/// The layer around a service, with a token at hand.
pub(crate) fn ours<S: Clone>(inner: S, with_replay: bool) -> ApsisAuth<S> {
    layer(with_replay).layer(inner)
}

/// The layer, with a token at hand.
pub(crate) fn layer(with_replay: bool) -> ApsisAuthLayer {
    let endpoint = service_fn(async |_: Request<Full<Bytes>>| {
        let answer = format!(r#"{{"access_token":"{}","expires_in":86400,"token_type":"Bearer"}}"#, token());
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer)))
    });
    let credentials = ClientCredentials::new("client-id", "secret").expect("they are not empty");
    let builder = ApsisAuthLayer::builder(credentials, "https://api.apsis.one").transport(endpoint);
    let builder = if with_replay { builder } else { builder.without_replay() };
    let layer = builder.build().expect("the settings are the default ones");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(layer.handle().warm_up()).expect("the endpoint always has a token");
    layer
}

/// The header of every variant.
pub(crate) fn header_value() -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token())).expect("a token is a header value");
    value.set_sensitive(true);
    value
}

/// The token of every variant.
pub(crate) fn token() -> String {
    "t".repeat(TOKEN_LENGTH)
}

/// An absolute URI, and six header fields with room for a seventh. What differs between requests is made for each.
pub(crate) fn request(body: Bytes) -> Request<Body> {
    let uri = "https://api.apsis.one/audience/keyspaces/crm/profiles/andy.demo%40apsis.com";
    let mut headers = HeaderMap::with_capacity(7);
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("shop/1.0"));
    let id = HeaderValue::from_str("0af7651916cd43dd8448eb211c80319c").expect("digits are a value");
    headers.insert(HeaderName::from_static("x-request-id"), id);

    let mut request = Request::new(Full::new(body));
    *request.uri_mut() = uri.parse().expect("it is a URI");
    *request.headers_mut() = headers;
    request
}

/// Sends one request by a service that is kept, and drops the answer.
pub(crate) fn send<S>(service: &mut S, request: Request<Body>)
where
    S: Service<Request<Body>, Response = Response<()>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))), "it is always ready");
    let answer = pin!(service.call(request)).poll(&mut cx);
    assert!(matches!(black_box(&answer), Poll::Ready(Ok(_))), "it answers at once");
}
