//! What is compared: ways to put a token on a request.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use tokio::runtime::Runtime;
use tower::{Service, service_fn};

use crate::{
    endpoint::Endpoint,
    measure::{Api, Body, request, send, token},
};

/// What a peer is set up with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Driven while a peer gets its token, and entered but not driven while requests are measured.
    pub(crate) runtime: Runtime,
    pub(crate) endpoint: Endpoint,
}

/// A tower service that is wrapped.
pub(crate) trait Inner:
    Service<Request<Body>, Response = Response<()>, Error = Infallible, Future: Send> + Copy + Send + 'static
{
}

impl<S> Inner for S where
    S: Service<Request<Body>, Response = Response<()>, Error = Infallible, Future: Send> + Copy + Send + 'static
{
}

/// A way to put a token on a request. It has the token already.
pub(crate) trait Peer: 'static {
    /// Around a service. What is made twice shares the token.
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static;
}

/// A peer that gives its token to whoever asks, and leaves the request to them.
pub(crate) trait Credential: 'static {
    /// Puts the header on that the current token makes.
    fn stamp(&self, headers: &mut HeaderMap) -> impl Future<Output = ()>;
}

impl<C: Credential> Peer for C {
    // Neither a box for the future nor a counted reference: the peer pays for nothing but itself.
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        service_fn(move |mut request: Request<Body>| {
            let mut inner = inner;
            async move {
                self.stamp(request.headers_mut()).await;
                inner.call(request).await
            }
        })
    }
}

type SendAll = dyn FnMut(&Bytes, u32);

/// A peer that sends requests.
pub(crate) struct Variant {
    send_all: Box<SendAll>,
}

impl Variant {
    /// No token, and nothing in between: what the others are compared with.
    pub(crate) fn bare() -> Self {
        Self::sending(Api)
    }

    /// A peer, after a look at what it sends.
    pub(crate) fn new(peer: impl Peer) -> Self {
        // Measured to the end of the process.
        let peer: &'static _ = Box::leak(Box::new(peer));
        send(&mut peer.around(Examined), request(Bytes::from_static(b"examined")));
        Self::sending(peer.around(Api))
    }

    fn sending<S>(mut service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<()>> + 'static,
    {
        Self { send_all: Box::new(move |body, requests| send_all(&mut service, body, requests)) }
    }

    /// Sends so many requests with this body.
    pub(crate) fn send(&mut self, body: &Bytes, requests: u32) {
        (self.send_all)(body, requests);
    }
}

/// A function of its own, so that callgrind can find it by its name.
#[inline(never)]
fn send_all<S>(service: &mut S, body: &Bytes, requests: u32)
where
    S: Service<Request<Body>, Response = Response<()>>,
{
    for _ in 0..requests {
        send(service, request(body.clone()));
    }
}

/// The inner service that looks at what reaches it.
#[derive(Clone, Copy, Debug)]
struct Examined;

impl Service<Request<Body>> for Examined {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut sent = request.headers().clone();
        let tokens: Vec<_> = request.headers().get_all(header::AUTHORIZATION).iter().collect();
        assert_eq!(tokens, [&format!("Bearer {}", token())], "the token is on the request, once");
        sent.remove(header::AUTHORIZATION);
        let expected = crate::measure::request(Bytes::from_static(b"examined"));
        assert_eq!(&sent, expected.headers(), "the other fields are as they were");
        assert_eq!(request.uri(), expected.uri());
        assert_eq!(format!("{:?}", request.body()), format!("{:?}", expected.body()));
        ready(Ok(Response::new(())))
    }
}
