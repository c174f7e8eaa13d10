//! [`ResponseFuture`]: wait for a token, send, and after a rejection renew and replay.
//!
//! With a token at hand a request is on its way from the start, and the answer to it is the end: that is the future of the
//! inner service and little else. What takes longer is a [`Detour`]: to wait for a token, or after a rejection to renew
//! it, and then to get the inner service ready. From there the request is on its way, for the first or the second time.
//!
//! `#[inline]` stands here and elsewhere on the way of a request with a token at hand: without it the functions of one file
//! cost up to 70 instructions more in a user's crate (`cargo bench --bench instructions`).

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use crate::{AuthError, Rejection, ReplayableBody, head::KeptHead, layer::Shared};

/// What the layer did about a response that was rejected or out of scope; in the extensions of that response.
///
/// A response without it was in scope, and its token was not rejected; whatever else it says has nothing to do with the token.
///
/// ```
/// use apsis_auth::AuthOutcome;
///
/// fn explain<B>(response: &http::Response<B>) -> &'static str {
///     match response.extensions().get::<AuthOutcome>() {
///         None => "nothing to say about the token",
///         Some(AuthOutcome::Replayed) => "sent again with a new token; this is the second answer",
///         Some(AuthOutcome::NotRenewed(_)) => "rejected, and there was no new token",
///         Some(_) => "see the documentation",
///     }
/// }
/// # assert_eq!(explain(&http::Response::new(())), "nothing to say about the token");
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
        // Of the inner service, while the request is on its way.
        #[pin]
        answer: Option<S::Future>,
        course: Course,
        // Of the token that the request carries.
        generation: u64,
        // How long the request may still wait for a token.
        patience: Duration,
        // `None` of what is not to be sent again.
        kept: Option<KeptRequest<S, B>>,
        // While the request is not on its way, or why it never will be. Boxed because that is rare, and a request that
        // needs none is smaller for it.
        detour: Option<Result<Box<Detour<S, B>>, Box<AuthError>>>,
        shared: Arc<Shared>,
    }
}

#[derive(Clone, Copy)]
enum Course {
    First,
    /// Once more, after the first answer was such a rejection.
    Replay(Rejection),
    /// Without a token.
    OutOfScope,
}

/// What is kept of a request so that it can be sent again.
pub(crate) struct KeptRequest<S, B: ReplayableBody> {
    inner: S,
    head: KeptHead,
    body: B::Kept,
}

/// A request that is not on its way, and a service that is not ready.
struct Detour<S, B>
where
    S: Service<Request<B>>,
{
    stage: Stage<S::Response>,
    inner: S,
    request: Request<B>,
}

enum Stage<R> {
    Waiting(Waiting),
    /// With the rejected response, which is the answer if there is no newer token.
    Renewing(Waiting, Option<R>),
    Readying,
}

/// What the caller gets.
type End<ResBody> = Result<Response<ResBody>, BoxError>;

/// It returns how long the request may still wait for tokens.
type Waiting = Pin<Box<dyn Future<Output = Result<Duration, AuthError>> + Send + Sync>>;

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>>,
    B: ReplayableBody,
{
    /// Of a request that was sent with a token of this generation.
    #[inline]
    pub(crate) fn sent(
        answer: S::Future,
        generation: u64,
        kept: Option<KeptRequest<S, B>>,
        shared: Arc<Shared>,
    ) -> Self {
        let patience = shared.cache.limits.max_wait;
        Self { answer: Some(answer), course: Course::First, generation, patience, kept, detour: None, shared }
    }

    #[cold]
    pub(crate) fn out_of_scope(ready: &mut S, request: Request<B>, shared: Arc<Shared>) -> Self {
        shared.trace_out_of_scope(&request);
        Self { course: Course::OutOfScope, ..Self::sent(ready.call(request), 0, None, shared) }
    }

    /// Of a request that cannot be sent.
    #[cold]
    pub(crate) fn failed(error: AuthError, shared: Arc<Shared>) -> Self {
        Self::unsent(Err(Box::new(error)), shared)
    }

    fn unsent(detour: Result<Box<Detour<S, B>>, Box<AuthError>>, shared: Arc<Shared>) -> Self {
        let (patience, detour) = (shared.cache.limits.max_wait, Some(detour));
        Self { answer: None, course: Course::First, generation: 0, patience, kept: None, detour, shared }
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>> + Clone,
    B: ReplayableBody,
{
    /// Of a request for which there is no token yet.
    ///
    /// The service that is ready may hold a slot, which a waiting request must not: it goes, and the request gets itself
    /// ready when the token is there.
    #[cold]
    pub(crate) fn wait(ready: &mut S, request: Request<B>, shared: Arc<Shared>) -> Self {
        let inner = ready.clone();
        drop(mem::replace(ready, inner.clone()));
        let stage = Stage::waiting(&shared, shared.cache.limits.max_wait);
        Self::unsent(Ok(Box::new(Detour { stage, inner, request })), shared)
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    B: ReplayableBody,
{
    type Output = Result<Response<ResBody>, BoxError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            let Some(answer) = this.answer.as_pin_mut() else {
                match ready!(self.as_mut().poll_detour(cx)) {
                    Ok(()) => continue,
                    Err(end) => return Poll::Ready(end),
                }
            };
            let answer = match ready!(answer.poll(cx)) {
                Ok(answer) => answer,
                Err(error) => {
                    *this.kept = None;
                    return Poll::Ready(Err(error.into()));
                }
            };
            if !matches!(this.course, Course::First) {
                return Poll::Ready(Ok(self.conclude(answer)));
            }
            match judge(&answer, *this.generation, this.shared) {
                None => {
                    // What was kept of the request is not needed any more, though the future may be held for longer.
                    *this.kept = None;
                    return Poll::Ready(Ok(answer));
                }
                Some(kind) => {
                    if let Some(answer) = self.as_mut().renew(kind, answer) {
                        return Poll::Ready(Ok(answer));
                    }
                }
            }
        }
    }
}

/// How the token was rejected, if it was. Takes note if it was accepted.
#[inline]
fn judge<ResBody>(answer: &Response<ResBody>, generation: u64, shared: &Shared) -> Option<Rejection> {
    let status = answer.status();
    let rejection = shared.rule.judge(status, answer.headers());
    // Of the answers that are no rejections, only a success proves that the token was looked at.
    if rejection.is_none() && status.is_success() {
        shared.cache.accepted(generation);
    }
    rejection
}

impl<S, B, ResBody> ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    B: ReplayableBody,
{
    /// The answer to a replay, or out of scope.
    #[cold]
    fn conclude(self: Pin<&mut Self>, answer: Response<ResBody>) -> Response<ResBody> {
        let Course::Replay(kind) = self.course else { return marked(answer, AuthOutcome::OutOfScope) };
        let (cache, status) = (&self.shared.cache, answer.status());
        match judge(&answer, self.generation, &self.shared) {
            Some(_) => cache.replay_rejected(self.generation, kind),
            // A limit or a failure may stand in front of whatever looks at tokens.
            None if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {}
            None => cache.replay_accepted(self.generation, kind),
        }
        marked(answer, AuthOutcome::Replayed)
    }

    /// Begins to renew the token, or gives the rejected response back if the request cannot be sent again.
    #[cold]
    fn renew(self: Pin<&mut Self>, kind: Rejection, rejected: Response<ResBody>) -> Option<Response<ResBody>> {
        let mut this = self.project();
        let (cache, generation) = (&this.shared.cache, *this.generation);
        let Some((inner, request)) = this.kept.take().and_then(KeptRequest::restore) else {
            cache.renew_in_background(generation, kind);
            return Some(marked(rejected, AuthOutcome::NotReplayable));
        };
        // The inner future may hold a permit.
        this.answer.set(None);
        *this.course = Course::Replay(kind);
        let renewing = Box::pin(Arc::clone(cache).renew(generation, kind, *this.patience));
        let stage = Stage::Renewing(renewing, Some(rejected));
        *this.detour = Some(Ok(Box::new(Detour { stage, inner, request })));
        None
    }

    /// Until the request is on its way, or ends without.
    #[cold]
    fn poll_detour(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), End<ResBody>>> {
        let mut this = self.project();
        let mut detour = match this.detour.take().expect(POLLED_AGAIN) {
            Ok(detour) => detour,
            Err(error) => return Poll::Ready(Err(Err((*error).into()))),
        };
        let stamp = loop {
            match detour.poll_ready(this.patience, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                Poll::Pending => {
                    *this.detour = Some(Ok(detour));
                    return Poll::Pending;
                }
            }
            // To get ready may have taken long: the token may have died meanwhile.
            match this.shared.cache.stamp() {
                Some(stamp) => break stamp,
                None => detour.wait(this.shared, *this.patience),
            }
        };
        let Detour { mut inner, mut request, .. } = *detour;
        *this.generation = stamp.generation;
        match this.course {
            Course::Replay(_) => tracing::debug!(generation = stamp.generation, "replay"),
            // A replay is not sent a third time.
            _ => *this.kept = KeptRequest::keep(&inner, &mut request, this.shared.replay_limit),
        }
        if let Err(error) = stamp.put_on(&mut request) {
            *this.kept = None;
            return Poll::Ready(Err(Err(error.into())));
        }
        this.answer.set(Some(inner.call(request)));
        Poll::Ready(Ok(()))
    }
}

/// The contract of a future: not polled again after it was ready.
const POLLED_AGAIN: &str = "a future is not polled after it has completed";

impl<S, B, ResBody> Detour<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
{
    /// Until there was a token and the inner service is ready, or the request ends without.
    fn poll_ready(&mut self, patience: &mut Duration, cx: &mut Context<'_>) -> Poll<Result<(), End<ResBody>>> {
        let waited = match &mut self.stage {
            Stage::Waiting(waiting) => ready!(waiting.as_mut().poll(cx)).map_err(|error| Err(error.into())),
            Stage::Renewing(renewing, rejected) => ready!(renewing.as_mut().poll(cx)).map_err(|error| {
                let rejected = rejected.take().expect(POLLED_AGAIN);
                Ok(marked(rejected, AuthOutcome::NotRenewed(error)))
            }),
            Stage::Readying => Ok(*patience),
        };
        *patience = waited?;
        // The rejected response goes with its stage, now that a newer token is in hand.
        self.stage = Stage::Readying;
        self.inner.poll_ready(cx).map_err(|error| Err(error.into()))
    }

    /// Waits for a token once more.
    fn wait(&mut self, shared: &Shared, patience: Duration) {
        // The ready one holds a slot; its clone does not.
        self.inner = self.inner.clone();
        self.stage = Stage::waiting(shared, patience);
    }
}

impl<R> Stage<R> {
    fn waiting(shared: &Shared, patience: Duration) -> Self {
        Self::Waiting(Box::pin(Arc::clone(&shared.cache).wait_for_good(patience)))
    }
}

impl<S: Clone, B: ReplayableBody> KeptRequest<S, B> {
    /// What is kept of a request: the head, up to the limit the body, and a clone of the service.
    #[inline]
    pub(crate) fn keep(inner: &S, request: &mut Request<B>, limit: Option<usize>) -> Option<Self> {
        let limit = limit?;
        Some(Self { inner: inner.clone(), head: KeptHead::of(request), body: request.body_mut().keep(limit) })
    }
}

impl<S, B: ReplayableBody> KeptRequest<S, B> {
    /// The request as it was before it was sent, if its body can be had again.
    fn restore(self) -> Option<(S, Request<B>)> {
        Some((self.inner, self.head.restore(B::restore(self.body)?)?))
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
