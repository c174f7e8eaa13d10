//! The least that finds a good token for a request and looks at the answer. It cannot renew, replay or say what is wrong.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION, uri::Scheme};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use crate::measure::{Body, header_value};

/// What the layer does for a request with a token at hand, by hand: the origin compared, the token loaded, the clock
/// read, the header cloned, the status of the answer looked at, success written down.
#[derive(Clone)]
pub(crate) struct Floor<S> {
    inner: S,
    shared: Arc<Shared>,
}

struct Shared {
    scheme: Scheme,
    authority: String,
    token: ArcSwap<Token>,
    accepted: AtomicU64,
}

struct Token {
    header: HeaderValue,
    generation: u64,
    born: Instant,
    /// Nanoseconds after that. It moves: every few seconds the wall clock is to be looked at, too.
    next_look: AtomicU64,
}

impl<S> Floor<S> {
    /// Around a service, with a token as long as the measured one.
    pub(crate) fn new(inner: S) -> Self {
        let (born, next_look) = (Instant::now(), AtomicU64::new(u64::from(u32::MAX) * 1_000_000_000));
        let token = Token { header: header_value(), generation: 1, born, next_look };
        let shared = Shared {
            scheme: Scheme::HTTPS,
            authority: "api.apsis.one".to_owned(),
            token: ArcSwap::from_pointee(token),
            accepted: AtomicU64::new(0),
        };
        Self { inner, shared: Arc::new(shared) }
    }
}

impl<S: Service<Request<Body>, Response = Response<()>>> Service<Request<Body>> for Floor<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Looking<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let shared = &self.shared;
        let is_same_host = request.uri().authority().is_some_and(|authority| authority.as_str() == shared.authority);
        assert!(request.uri().scheme() == Some(&shared.scheme) && is_same_host, "it is for the API");
        let token = shared.token.load();
        let next_look = Duration::from_nanos(token.next_look.load(Ordering::Relaxed));
        assert!(Instant::now() < token.born + next_look, "it is good");
        let generation = token.generation;
        request.headers_mut().insert(AUTHORIZATION, token.header.clone());
        drop(token);
        Looking { answer: self.inner.call(request), generation, shared: Arc::clone(shared) }
    }
}

pin_project! {
    pub(crate) struct Looking<F> {
        #[pin]
        answer: F,
        generation: u64,
        shared: Arc<Shared>,
    }
}

impl<F: Future<Output = Result<Response<()>, E>>, E> Future for Looking<F> {
    type Output = Result<Response<()>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx))?;
        let status = answer.status();
        assert!(status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN, "it is accepted");
        if status.is_success() && this.shared.accepted.load(Ordering::Relaxed) != *this.generation {
            this.shared.accepted.store(*this.generation, Ordering::Relaxed);
        }
        Poll::Ready(Ok(answer))
    }
}
