//! The one token request under way: its attempts, the pauses between them, and its landing whatever happens.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use http::StatusCode;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::Instrument;

use crate::{
    Rejection, backoff,
    cache::{Limits, Outcome, TokenCache},
    clock::Clock,
    endpoint::{Failure, FailureKind, Fault, TokenEndpoint},
    fleet::{Lease, Permit, Turn},
    token::IssuedToken,
};

/// Why a flight was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// There was no token, or it had expired.
    Cold,
    /// It was time to refresh.
    Due,
    /// The API rejected the token.
    Rejected(Rejection),
    /// The caller wanted it.
    Forced,
}

/// Why a flight landed without a token.
#[derive(Debug)]
pub(crate) enum FlightError {
    /// Nobody knows: its task was dropped or panicked.
    Interrupted,
    Failed(Failure),
    /// There is no room for an attempt before then.
    NoRoom(Instant),
    /// Renewals of late did not help, so a rejection starts no attempt before then.
    Cooling(Instant),
    /// No process of the fleet makes one before then; the status, if one of them was refused.
    Paused(Instant, Option<StatusCode>),
}

pub(crate) struct Flight {
    /// Not a handle: when the last handle is dropped, the flight ends.
    cache: Weak<TokenCache>,
    number: u64,
    reason: Reason,
    lands_by: Instant,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Flight {
    /// A flight, and where its waiters hear of it. From here on it lands, even if it is never spawned.
    pub(crate) fn new(
        cache: &Arc<TokenCache>,
        number: u64,
        reason: Reason,
        lands_by: Instant,
    ) -> (Self, watch::Receiver<Option<Outcome>>) {
        let (sender, outcome) = watch::channel(None);
        (Self { cache: Arc::downgrade(cache), number, reason, lands_by, outcome: sender }, outcome)
    }

    pub(crate) fn spawn(self, runtime: &Handle) {
        // It serves many requests, so it belongs under none of their spans.
        let span = tracing::info_span!(parent: None, "token_flight", reason = %self.reason);
        runtime.spawn(self.run().instrument(span));
    }

    async fn run(self) {
        let result = tokio::select! {
            biased;
            // Nobody waits and the cache is gone, or has given this flight up for lost.
            () = self.outcome.closed() => return,
            result = self.attempts() => result,
        };
        self.land(result);
    }

    async fn attempts(&self) -> Result<IssuedToken, FlightError> {
        let (source, clock, limits, mut turn) = {
            let cache = self.cache.upgrade().ok_or(FlightError::Interrupted)?;
            (cache.source.clone(), cache.clock.clone(), cache.limits.clone(), cache.turn(self.reason))
        };
        if let Some(turn) = &mut turn
            && let Some(token) = turn.begin(self.reason == Reason::Forced, &clock).await
        {
            return Ok(token);
        }
        let (mut failed, mut last) = (0, None);
        loop {
            let result = match &mut turn {
                Some(turn) => self.attempt_in_turn(turn, last.is_some(), &source, &clock, &limits).await,
                None => self.attempt(&source, &clock, &limits, self.lands_by).await,
            };
            let failure = match (result, last) {
                (Err(FlightError::Failed(failure)), _) => failure,
                // That there is no room for another attempt says less than what the last one came to.
                (Err(FlightError::Paused(_, None) | FlightError::NoRoom(_)), Some(last)) => {
                    return Err(FlightError::Failed(last));
                }
                (ended, _) => return ended,
            };
            failed += 1;
            tracing::debug!(attempt = failed, failure = %failure.kind, "token request failed");
            match self.next_attempt(&failure, failed, &clock, &limits) {
                Some(at) => sleep_until(at).await,
                None => return Err(FlightError::Failed(failure)),
            }
            last = Some(failure);
        }
    }

    /// An attempt when the fleet gives leave for one, or what another process brings instead.
    async fn attempt_in_turn(
        &self,
        turn: &mut Turn,
        has_failed: bool,
        source: &TokenEndpoint,
        clock: &Clock,
        limits: &Limits,
    ) -> Result<IssuedToken, FlightError> {
        let is_forced = self.reason == Reason::Forced;
        let (room_at, grounded_until, cooling_until, slack) = {
            let cache = self.cache.upgrade().ok_or(FlightError::Interrupted)?;
            (cache.room_at(), cache.grounded_until(), cache.cooling_until(self.reason), cache.fleets_operation())
        };
        // It was to look, and there was nothing.
        if let Some(until) = cooling_until {
            return Err(FlightError::Cooling(until));
        }
        if let Some(until) = grounded_until.filter(|_| !is_forced) {
            return Err(FlightError::Paused(until, None));
        }
        // Without room for an attempt of its own it takes no lease from those who have it. A flight that is forced, or has asked already,
        // waits for room; another one lands, and whoever can wait comes back.
        let waits = is_forced || has_failed;
        match room_at {
            Some(room_at) if waits && self.is_worth_waiting_for(room_at, limits) => sleep_until(room_at).await,
            Some(room_at) => return Err(FlightError::NoRoom(room_at)),
            None => {}
        }
        let lease = loop {
            match timeout_at(self.lands_by, turn.permit(clock)).await {
                Ok(Permit::Adopt(token)) => return Ok(token),
                Ok(Permit::Ask(lease)) => break lease,
                Ok(Permit::Wait(until, refused_with))
                    if (is_forced || has_failed && refused_with.is_none())
                        && self.is_worth_waiting_for(until, limits) =>
                {
                    sleep_until(until).await;
                }
                Ok(Permit::Wait(until, refused_with)) => return Err(FlightError::Paused(until, refused_with)),
                Err(_) => return Err(FlightError::Failed(Failure::transient(Fault::AskedElsewhere))),
            }
        };
        let mut held = Held { turn, lease };
        // What is left of the flight then is for the others, who have to be told.
        let end_by = self.lands_by.checked_sub(slack).unwrap_or(self.lands_by);
        if Instant::now() >= end_by {
            return Err(FlightError::Failed(Failure::transient(Fault::AskedElsewhere)));
        }
        let mut result = self.attempt(source, clock, limits, end_by).await;
        turn.end(held.lease.take(), &mut result, clock).await;
        result
    }

    /// Whether its waiters would see the end of that.
    fn is_worth_waiting_for(&self, moment: Instant, limits: &Limits) -> bool {
        moment < self.lands_by.min(Instant::now() + limits.max_wait)
    }

    /// One HTTP request, counted in the budget.
    async fn attempt(
        &self,
        source: &TokenEndpoint,
        clock: &Clock,
        limits: &Limits,
        end_by: Instant,
    ) -> Result<IssuedToken, FlightError> {
        self.cache.upgrade().ok_or(FlightError::Interrupted)?.start_attempt(self.number)?;
        let deadline = end_by.min(Instant::now() + limits.attempt);
        let result = source.attempt(clock, deadline).await;
        if let Some(cache) = self.cache.upgrade() {
            cache.end_attempt(self.number);
        }
        result.map_err(FlightError::Failed)
    }

    /// When to try again, if that fits into the flight.
    fn next_attempt(&self, failure: &Failure, failed: u32, clock: &Clock, limits: &Limits) -> Option<Instant> {
        let asked_for = match &failure.kind {
            FailureKind::Terminal { .. } => return None,
            FailureKind::RateLimited => backoff::after_rate_limit(1, failure.retry_after, clock.draw()),
            FailureKind::Transient(_) => failure.retry_after.unwrap_or_default(),
        };
        // Nobody who waits now would see its end. They are told at once, and when to come back.
        if asked_for >= limits.max_wait {
            return None;
        }
        let pause = asked_for.max(backoff::between_attempts(failed, clock.draw()));
        let at = Instant::now() + pause;
        let at = self.cache.upgrade()?.room_at().map_or(at, |room_at| room_at.max(at));
        (at < self.lands_by).then_some(at)
    }

    fn land(&self, result: Result<IssuedToken, FlightError>) {
        if let Some(cache) = self.cache.upgrade() {
            let outcome = cache.land(self.number, self.reason, result);
            self.outcome.send_replace(Some(outcome));
        }
    }
}

/// A lease, while its attempt is made.
struct Held<'a> {
    turn: &'a Turn,
    lease: Option<Lease>,
}

impl Drop for Held<'_> {
    /// The attempt was dropped: nobody waits for it any more, or its runtime ends.
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.turn.give_back(lease);
        }
    }
}

impl Drop for Flight {
    /// A panic of the transport, or the end of the runtime: the waiters hear of it, and the cache flies again.
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            self.land(Err(FlightError::Interrupted));
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Due => "due",
            Self::Rejected(_) => "rejected",
            Self::Forced => "forced",
        })
    }
}
