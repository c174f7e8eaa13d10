//! [`ResponseFuture`]: wait for a token, send, and after a rejection renew and replay.
//!
//! The way of a request, state by state: `Waiting` for a token, `Readying` the inner service, `Sending`, and after a
//! rejection `Renewing`, from where a request that can be replayed goes through `Readying` and `Sending` once more. With
//! a token at hand it begins in `Sending`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response, StatusCode, header::AUTHORIZATION, request};
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{AuthError, Rejection, ReplayableBody, cache::Stamp, layer::Shared};

/// What the layer did about a response that was rejected or out of scope; in the extensions of that response.
///
/// A response without it was in scope and accepted at the first attempt.
///
/// ```
/// use apsis_auth::AuthOutcome;
///
/// fn explain<B>(response: &http::Response<B>) -> &'static str {
///     match response.extensions().get::<AuthOutcome>() {
///         None => "accepted",
///         Some(AuthOutcome::Replayed) => "sent again with a new token; this is the second answer",
///         Some(AuthOutcome::NotRenewed(_)) => "rejected, and there was no new token",
///         Some(_) => "see the documentation",
///     }
/// }
/// # assert_eq!(explain(&http::Response::new(())), "accepted");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AuthOutcome {
    /// The first answer was a rejection; this is the answer to the replay, rejected or not.
    Replayed,
    /// Rejected, and not to be sent again: the body cannot be had again, or replay is switched off. A renewal was asked for,
    /// for the next request.
    NotReplayable,
    /// Rejected, and no newer token could be had: cooling down after renewals that did not help, or a renewal that
    /// failed.
    NotRenewed(AuthError),
    /// The request was for another origin; it carried no token of ours.
    OutOfScope,
}

pin_project! {
    /// The response to a request that was given a token.
    ///
    /// Named for those who write a service around [`ApsisAuth`](crate::ApsisAuth).
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
        B: ReplayableBody,
    {
        #[pin]
        state: State<S, B>,
        shared: Arc<Shared>,
    }
}

/// Boxed because it is rare: a request with a good token that is not rejected has none.
///
/// It returns how long the request may still wait for tokens.
type Waiting = Pin<Box<dyn Future<Output = Result<Duration, AuthError>> + Send + Sync>>;

pin_project! {
    #[project = StateProjection]
    enum State<S, B>
    where
        S: Service<Request<B>>,
        B: ReplayableBody,
    {
        OutOfScope { #[pin] answer: S::Future },
        Waiting { waiting: Waiting, unsent: Option<Unsent<S, B>> },
        Readying { unsent: Option<Unsent<S, B>> },
        Sending { #[pin] answer: S::Future, sent: Option<Sent<S, B>> },
        Renewing { waiting: Waiting, rejected: Option<S::Response>, unsent: Option<Unsent<S, B>> },
        Failed { error: Option<AuthError> },
    }
}

/// A request that needs a token, and a service that is not ready.
struct Unsent<S, B> {
    inner: S,
    request: Request<B>,
    /// How it was rejected, if this is its replay.
    replays: Option<Rejection>,
    /// How long it may still wait for a token.
    patience: Duration,
}

/// What is known of a request that was sent.
struct Sent<S, B: ReplayableBody> {
    /// `None` of what is not to be sent again.
    again: Option<Again<S, B>>,
    generation: u64,
    replays: Option<Rejection>,
    patience: Duration,
}

/// What is kept of a request so that it can be sent again.
struct Again<S, B: ReplayableBody> {
    inner: S,
    head: request::Parts,
    kept: B::Kept,
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>>,
    B: ReplayableBody,
{
    pub(crate) fn out_of_scope(answer: S::Future, shared: Arc<Shared>) -> Self {
        Self { state: State::OutOfScope { answer }, shared }
    }

    pub(crate) fn wait(inner: S, request: Request<B>, shared: Arc<Shared>) -> Self {
        let patience = shared.cache.limits.max_wait;
        Self { state: State::wait(Unsent { inner, request, replays: None, patience }, &shared), shared }
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>> + Clone,
    B: ReplayableBody,
{
    pub(crate) fn send(ready: &mut S, request: Request<B>, stamp: Stamp, shared: Arc<Shared>) -> Self {
        let patience = shared.cache.limits.max_wait;
        Self { state: State::send(ready, request, stamp, None, patience, &shared), shared }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    B: ReplayableBody,
{
    type Output = Result<Response<ResBody>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::OutOfScope { answer } => {
                    let answer = ready!(answer.poll(cx)).map_err(Into::into)?;
                    return Poll::Ready(Ok(marked(answer, AuthOutcome::OutOfScope)));
                }
                StateProjection::Waiting { waiting, unsent } => {
                    let patience = ready!(waiting.as_mut().poll(cx))?;
                    State::ready(unsent.take(), patience)
                }
                StateProjection::Readying { unsent } => {
                    let inner = &mut unsent.as_mut().expect(POLLED_AGAIN).inner;
                    ready!(inner.poll_ready(cx)).map_err(Into::into)?;
                    unsent.take().expect(POLLED_AGAIN).send_or_wait(this.shared)
                }
                StateProjection::Sending { answer, sent } => {
                    let answer = ready!(answer.poll(cx)).map_err(Into::into)?;
                    match sent.take().expect(POLLED_AGAIN).judge(answer, this.shared) {
                        Verdict::Final(answer) => return Poll::Ready(Ok(answer)),
                        // The inner future goes with its state: it may hold a permit.
                        Verdict::Renew(next) => next,
                    }
                }
                StateProjection::Renewing { waiting, rejected, unsent } => match ready!(waiting.as_mut().poll(cx)) {
                    // The rejected response goes with its state, now that a newer token is in hand.
                    Ok(patience) => State::ready(unsent.take(), patience),
                    Err(error) => {
                        let rejected = rejected.take().expect(POLLED_AGAIN);
                        return Poll::Ready(Ok(marked(rejected, AuthOutcome::NotRenewed(error))));
                    }
                },
                StateProjection::Failed { error } => return Poll::Ready(Err(error.take().expect(POLLED_AGAIN).into())),
            };
            this.state.set(next);
        }
    }
}

/// The contract of a future: not polled again after it was ready.
const POLLED_AGAIN: &str = "a future is not polled after it has completed";

enum Verdict<S, B, ResBody>
where
    S: Service<Request<B>>,
    B: ReplayableBody,
{
    Final(Response<ResBody>),
    Renew(State<S, B>),
}

impl<S, B> State<S, B>
where
    S: Service<Request<B>>,
    B: ReplayableBody,
{
    fn wait(unsent: Unsent<S, B>, shared: &Shared) -> Self {
        let waiting = Box::pin(Arc::clone(&shared.cache).wait_for_good(unsent.patience));
        Self::Waiting { waiting, unsent: Some(unsent) }
    }

    fn ready(unsent: Option<Unsent<S, B>>, patience: Duration) -> Self {
        Self::Readying { unsent: unsent.map(|unsent| Unsent { patience, ..unsent }) }
    }
}

impl<S, B> State<S, B>
where
    S: Service<Request<B>> + Clone,
    B: ReplayableBody,
{
    /// Adds the token in place of any other `authorization` and sends by the service that is `ready`. Before that it keeps
    /// what is needed to do so again: the head, up to the limit the body, and a clone of the service.
    fn send(
        ready: &mut S,
        request: Request<B>,
        stamp: Stamp,
        replays: Option<Rejection>,
        patience: Duration,
        shared: &Shared,
    ) -> Self {
        let (mut head, mut body) = request.into_parts();
        let mut again = None;
        // A replay is not sent a third time.
        if let Some(limit) = shared.replay_limit.filter(|_| replays.is_none()) {
            let (sent, kept) = body.keep(limit);
            body = sent;
            again = Some(Again { inner: ready.clone(), head: head.clone(), kept });
        }
        if head.headers.try_insert(AUTHORIZATION, stamp.header).is_err() {
            return Self::Failed { error: Some(AuthError::TooManyHeaders) };
        }
        let answer = ready.call(Request::from_parts(head, body));
        Self::Sending { answer, sent: Some(Sent { again, generation: stamp.generation, replays, patience }) }
    }
}

impl<S, B> Unsent<S, B>
where
    S: Service<Request<B>> + Clone,
    B: ReplayableBody,
{
    /// Sends by the inner service, which is ready. That may have taken long: the token may have died meanwhile.
    fn send_or_wait(self, shared: &Shared) -> State<S, B> {
        let Self { mut inner, request, replays, patience } = self;
        let Some(stamp) = shared.cache.stamp() else {
            // The ready one holds a slot; its clone does not.
            return State::wait(Self { inner: inner.clone(), request, replays, patience }, shared);
        };
        if replays.is_some() {
            tracing::debug!(generation = stamp.generation, "replay");
        }
        State::send(&mut inner, request, stamp, replays, patience, shared)
    }
}

impl<S, B> Sent<S, B>
where
    S: Service<Request<B>>,
    B: ReplayableBody,
{
    /// What the answer says of the token, and what follows from that.
    fn judge<ResBody>(self, answer: Response<ResBody>, shared: &Shared) -> Verdict<S, B, ResBody>
    where
        S: Service<Request<B>, Response = Response<ResBody>>,
    {
        let (cache, generation) = (&shared.cache, self.generation);
        let status = answer.status();
        let rejection = shared.rule.judge(status, answer.headers());
        // Of the answers that are no rejections, only a success proves that the token was looked at.
        if rejection.is_none() && status.is_success() {
            cache.accepted(generation);
        }
        match (rejection, self.replays) {
            (None, None) => Verdict::Final(answer),
            (None, Some(kind)) => {
                // A limit or a failure may stand in front of whatever looks at tokens.
                if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                    cache.replay_accepted(generation, kind);
                }
                Verdict::Final(marked(answer, AuthOutcome::Replayed))
            }
            (Some(_), Some(kind)) => {
                cache.replay_rejected(generation, kind);
                Verdict::Final(marked(answer, AuthOutcome::Replayed))
            }
            (Some(kind), None) => match self.again(kind) {
                Some(unsent) => {
                    let waiting = Box::pin(Arc::clone(cache).renew(generation, kind, unsent.patience));
                    Verdict::Renew(State::Renewing { waiting, rejected: Some(answer), unsent: Some(unsent) })
                }
                None => {
                    cache.renew_in_background(generation, kind);
                    Verdict::Final(marked(answer, AuthOutcome::NotReplayable))
                }
            },
        }
    }

    /// The request as it was sent, if its body can be had again.
    fn again(self, rejection: Rejection) -> Option<Unsent<S, B>> {
        let Again { inner, head, kept } = self.again?;
        let request = Request::from_parts(head, B::restore(kept)?);
        Some(Unsent { inner, request, replays: Some(rejection), patience: self.patience })
    }
}

fn marked<ResBody>(mut response: Response<ResBody>, outcome: AuthOutcome) -> Response<ResBody> {
    response.extensions_mut().insert(outcome);
    response
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
    B: ReplayableBody,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
