//! The way of a request: counted, scripted or judged, delayed, dated.

use std::{
    future::pending,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, header::DATE, request::Parts};
use http_body::Body;
use tower::{BoxError, Service};

use super::{
    Answer, Emulator, EmulatorBody, EmulatorError, api,
    payload::{self, Payload},
    script::Outcome,
    state::State,
    token_endpoint,
};

impl<B> Service<Request<B>> for Emulator
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<EmulatorBody>;
    type Error = EmulatorError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// Is always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    /// Answers one request. It counts as arrived when the future is first polled.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let emulator = self.clone();
        Box::pin(async move { emulator.answer(request).await })
    }
}

impl Emulator {
    async fn answer<B>(self, request: Request<B>) -> Result<Response<EmulatorBody>, EmulatorError>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        let (answer, delay) = arrive(&mut self.state(), &head);
        let payload =
            if answer.is_early && !answer.is_genuine() { Payload::unread() } else { payload::read(body).await? };
        let outcome = answer.outcome(|| self.judge(&head, &payload));
        wait(delay).await;
        match outcome {
            Outcome::Respond(response) => Ok(self.dated(response)),
            Outcome::Hang => pending().await,
            Outcome::Close => Err(EmulatorError::Closed),
        }
    }

    fn judge(&self, head: &Parts, payload: &Payload) -> Response<EmulatorBody> {
        let mut state = self.state();
        let now = self.now(&state);
        if is_token_request(head) {
            token_endpoint::answer(&mut state, now, head, payload)
        } else {
            api::answer(&mut state, now, head, payload)
        }
    }

    /// A scripted `Date` is left alone: it may be what the test is about.
    fn dated(&self, mut response: Response<EmulatorBody>) -> Response<EmulatorBody> {
        let date = self.now(&self.state()).http_date();
        response.headers_mut().entry(DATE).or_insert(date);
        response
    }
}

/// Counts the request, and looks up what it is to be answered and after what delay.
fn arrive(state: &mut State, head: &Parts) -> (Answer, Duration) {
    let (count, script, delay) = if is_token_request(head) {
        let count = &mut state.counters.token_requests;
        (count, &mut state.token_script, state.settings.token_delay)
    } else {
        let count = &mut state.counters.api_requests;
        (count, &mut state.api_script, state.settings.api_delay)
    };
    *count += 1;
    let answer = script.pop_front().unwrap_or_else(Answer::genuine);
    if !answer.is_genuine() {
        state.counters.scripted += 1;
    }
    let delay = delay.saturating_add(answer.delay);
    (answer, delay)
}

fn is_token_request(head: &Parts) -> bool {
    head.uri.path() == token_endpoint::PATH
}

/// Where no delay is set no timer is needed, so that a test without one does not depend on timers.
async fn wait(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
