//! When a request is sent again, and after what time: the policy of tower's retry.
//!
//! It stands above the auth layer, which repeats nothing but what was rejected. Every request of the import may be sent
//! twice, for a merge patch says what shall be and not what shall change.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use apsis_auth::{AuthError, AuthOutcome};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::Full;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::{BoxError, retry::Policy};

use crate::progress::Watch;

/// How often a record is sent for reasons that have nothing to do with tokens.
const TRIES: u32 = 8;
/// How often it is sent if it is perhaps forbidden.
const TRIES_IF_DENIED: u32 = 4;
/// The first pause; it doubles.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longer than this no `Retry-After` is waited for.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// How long a record waits for a token in all.
const TOKEN_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The policy of one request; clones share the count and what was said.
#[derive(Clone)]
pub(crate) struct Retries {
    tries_left: u32,
    token_deadline: Option<Instant>,
    shared: Arc<Shared>,
}

struct Shared {
    watch: Arc<dyn Watch>,
    count: Arc<AtomicU64>,
    /// Until when, as was said last, the import waits for a token.
    said: Mutex<Option<Instant>>,
}

/// What stands between a request and its end.
enum Trouble {
    /// There is no token.
    Token(AuthError),
    /// This is forbidden, or the token is dead.
    Denied,
    /// The API or the way to it; with the `Retry-After` of the answer.
    Passing(Option<Duration>),
}

impl Retries {
    /// The count is that of the requests that were sent again.
    pub(crate) fn new(watch: Arc<dyn Watch>, count: Arc<AtomicU64>) -> Self {
        let shared = Shared { watch, count, said: Mutex::new(None) };
        Self { tries_left: TRIES - 1, token_deadline: None, shared: Arc::new(shared) }
    }

    fn next_try<B>(&mut self, result: &Result<Response<B>, BoxError>) -> Option<Instant> {
        match trouble(result)? {
            Trouble::Token(error) => self.when_there_is_a_token(&error),
            Trouble::Denied if TRIES - self.tries_left >= TRIES_IF_DENIED => None,
            Trouble::Denied => self.when_it_has_passed(None),
            Trouble::Passing(retry_after) => self.when_it_has_passed(retry_after),
        }
    }

    /// Waiting for a token costs no try: it is not the record's fault, and the auth layer sees to it that the token endpoint
    /// is not asked too often.
    fn when_there_is_a_token(&mut self, error: &AuthError) -> Option<Instant> {
        let now = Instant::now();
        let deadline = *self.token_deadline.get_or_insert(now + TOKEN_PATIENCE);
        let at = error.retry_at().map_or(now + PAUSE, |at| Instant::from_std(at).max(now + PAUSE));
        (at <= deadline).then(|| {
            self.shared.say_once(error, at);
            at
        })
    }

    fn when_it_has_passed(&mut self, retry_after: Option<Duration>) -> Option<Instant> {
        if self.tries_left == 0 || retry_after.is_some_and(|told| told > PATIENCE) {
            return None;
        }
        self.tries_left -= 1;
        let pause = pause(TRIES - 2 - self.tries_left, fastrand::f64());
        Some(Instant::now() + retry_after.map_or(pause, |told| told.max(pause)))
    }
}

impl<B> Policy<Request<Full<Bytes>>, Response<B>, BoxError> for Retries {
    type Future = Sleep;

    fn retry(
        &mut self,
        _: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Self::Future> {
        let at = self.next_try(result)?;
        // Without a token nothing was sent.
        let was_sent = result.as_ref().err().is_none_or(|error| !error.is::<AuthError>());
        self.shared.count.fetch_add(u64::from(was_sent), Ordering::Relaxed);
        Some(sleep_until(at))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}

/// What is worth another try. `None`: the record was applied, or another try would end in the same way.
fn trouble<B>(result: &Result<Response<B>, BoxError>) -> Option<Trouble> {
    let response = match result {
        Ok(response) => response,
        Err(error) => return trouble_of(error),
    };
    match (response.status(), response.extensions().get()) {
        // Of late the API rejected new tokens, too, and it says 403. If the token is dead, a few tries more show it. To wait
        // for the next renewal would take minutes, for each record that is forbidden.
        (StatusCode::FORBIDDEN, Some(AuthOutcome::NotRenewed(AuthError::CoolingDown { .. }))) => Some(Trouble::Denied),
        (_, Some(AuthOutcome::NotRenewed(error))) => error.is_retryable().then(|| Trouble::Token(error.clone())),
        // A token that is new is not known everywhere at once.
        (StatusCode::UNAUTHORIZED, _) => Some(Trouble::Passing(None)),
        (
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT,
            _,
        ) => Some(Trouble::Passing(retry_after(response.headers()))),
        _ => None,
    }
}

fn trouble_of(error: &BoxError) -> Option<Trouble> {
    match error.downcast_ref::<AuthError>() {
        Some(error) => error.is_retryable().then(|| Trouble::Token(error.clone())),
        // A lost connection, or no answer in time.
        None => Some(Trouble::Passing(None)),
    }
}

/// Seconds or a date (RFC 9110 §10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Drawn from its upper half: what failed together does not come back together.
fn pause(tries: u32, draw: f64) -> Duration {
    let longest = PAUSE.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + draw / 2.0)
}

impl Shared {
    /// All requests under way wait for the same token; one line says so.
    fn say_once(&self, error: &AuthError, until: Instant) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| until > said + Duration::from_secs(1)) {
            *said = Some(until);
            let seconds = until.saturating_duration_since(Instant::now()).as_secs() + 1;
            self.watch.message(&format!("no token, going on in {seconds} s: {}", crate::chain(error)));
        }
    }
}
