//! What the cache keeps under its lock: the flight under way, the grounding, and who may start the next flight when.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use http::Uri;
use tokio::{sync::watch, time::Instant};

use crate::{
    AuthError, backoff,
    budget::Budget,
    cache::Outcome,
    endpoint::{Failure, FailureKind},
    error::{Chain, RetryAt},
    ladder::Ladders,
};

/// What a flight may take beyond its limit before it is taken for lost.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) struct State {
    flight: Option<CurrentFlight>,
    flights_begun: u64,
    grounded: Option<Grounding>,
    failures: Failures,
    pub(crate) budget: Budget,
    pub(crate) ladders: Ladders,
    /// Not before then is the fleet's store looked into again while a ladder cools.
    next_look: Option<Instant>,
}

#[derive(Clone)]
pub(crate) struct CurrentFlight {
    pub(crate) number: u64,
    pub(crate) outcome: watch::Receiver<Option<Outcome>>,
    /// It lands by then, unless its runtime is not driven.
    pub(crate) lands_by: Instant,
    pub(crate) is_forced: bool,
}

/// No flight before a given moment, and why.
#[derive(Clone)]
pub(crate) struct Grounding {
    pub(crate) until: Instant,
    /// As far as anybody knows now. A fleet's ends sooner, to look for a token.
    pub(crate) lasts: Instant,
    pub(crate) error: AuthError,
}

/// Failed flights in a row, by what failed them.
#[derive(Default)]
struct Failures {
    transient: u32,
    rate_limited: u32,
    terminal: u32,
}

impl State {
    pub(crate) fn new(budget: NonZeroU32) -> Self {
        Self {
            flight: None,
            flights_begun: 0,
            grounded: None,
            failures: Failures::default(),
            budget: Budget::new(budget),
            ladders: Ladders::default(),
            next_look: None,
        }
    }

    /// The flight under way. One that is long past its end is lost with its runtime, and does not count any more.
    pub(crate) fn flight(&mut self, now: Instant) -> Option<&CurrentFlight> {
        if self.flight.as_ref().is_some_and(|flight| now >= flight.lost_at()) {
            self.end_flight(now);
        }
        self.flight.as_ref()
    }

    pub(crate) fn is_current(&self, number: u64) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.number == number)
    }

    pub(crate) fn end_flight(&mut self, now: Instant) {
        self.flight = None;
        self.budget.end(now);
    }

    /// The grounding, until somebody may look again.
    pub(crate) fn grounding(&self, now: Instant) -> Option<&Grounding> {
        self.grounded.as_ref().filter(|grounding| now < grounding.until)
    }

    /// The grounding, while it lasts.
    pub(crate) fn grounded(&self, now: Instant) -> Option<&Grounding> {
        self.grounded.as_ref().filter(|grounding| now < grounding.lasts)
    }

    /// Once in that time.
    pub(crate) fn may_look(&mut self, now: Instant, every: Duration) -> bool {
        let may = self.next_look.is_none_or(|at| now >= at);
        if may {
            self.next_look = Some(now + every);
        }
        may
    }

    pub(crate) fn forget_failures(&mut self) {
        self.grounded = None;
        self.failures = Failures::default();
    }

    pub(crate) fn number_of_next_flight(&self) -> u64 {
        self.flights_begun + 1
    }

    pub(crate) fn begin_flight(&mut self, flight: CurrentFlight) {
        self.flights_begun = flight.number;
        self.flight = Some(flight);
    }

    /// After a failure. Those of a fleet may look in the store sooner, at `look`, and still make no attempt.
    pub(crate) fn ground_after(
        &mut self,
        failure: Failure,
        url: &Uri,
        now: Instant,
        draw: f64,
        look: Option<Instant>,
    ) -> Grounding {
        let failures = &mut self.failures;
        let wait = match &failure.kind {
            FailureKind::Transient(_) => {
                failures.transient += 1;
                backoff::after_transient(failures.transient).max(failure.retry_after.unwrap_or_default())
            }
            FailureKind::RateLimited => {
                failures.rate_limited += 1;
                backoff::after_rate_limit(failures.rate_limited, failure.retry_after, draw)
            }
            FailureKind::Terminal { .. } => {
                failures.terminal += 1;
                backoff::after_terminal(failures.terminal)
            }
        };
        // A wait that ends without room in the budget would only be followed by another one.
        let until = self.budget.free_at(now).map_or(now + wait, |room_at| room_at.max(now + wait));
        // Who forced the flight did not wait; the others still do. A refusal asks nobody to, and the key may be mended by now.
        let told = self.grounded(now).filter(|grounding| grounding.error.is_retryable());
        let until = told.map_or(until, |grounding| grounding.lasts.max(until));
        let (url, retry_at) = (url.clone(), RetryAt(until));
        let error = match failure.kind {
            FailureKind::Transient(fault) => AuthError::Unavailable { url, cause: Arc::new(fault), retry_at },
            FailureKind::RateLimited => AuthError::RateLimited { retry_at },
            FailureKind::Terminal { status, code } => AuthError::Refused { url, status, code, retry_at },
        };
        let grounding = Grounding { until: look.map_or(until, |look| look.min(until)), lasts: until, error };
        self.grounded = Some(grounding.clone());
        grounding
    }

    /// The grounding there is without leave for an attempt, and whether it is a new one.
    pub(crate) fn ground_until(
        &mut self,
        error: AuthError,
        until: Instant,
        lasts: Instant,
        now: Instant,
    ) -> (Grounding, bool) {
        // One that lasts longer has the better reason, and a refusal has to be seen. Moments that were heard of twice differ a little.
        let better = |grounding: &Grounding| {
            grounding.lasts + Duration::from_secs(1) >= lasts || !grounding.error.is_retryable()
        };
        let before = self.grounded(now).filter(|grounding| better(grounding)).cloned();
        let (is_news, grounding) = (before.is_none(), Grounding { until, lasts, error });
        self.grounded = Some(match before {
            Some(before) => Grounding { until: before.until.max(until.min(before.lasts)), ..before },
            None => grounding.clone(),
        });
        (grounding, is_news)
    }
}

impl CurrentFlight {
    /// Past this it does not count any more.
    pub(crate) fn lost_at(&self) -> Instant {
        self.lands_by + GRACE
    }
}

impl Grounding {
    /// Whether waiting for its end is of no use to a waiter who gives up at that moment. A terminal answer is not worth
    /// waiting for: somebody has to mend the key.
    pub(crate) fn outlasts(&self, give_up_at: Instant) -> bool {
        self.lasts >= give_up_at || !self.error.is_retryable()
    }

    pub(crate) fn seconds_left(&self, now: Instant) -> u64 {
        let left = self.lasts.saturating_duration_since(now);
        left.as_secs() + u64::from(left.subsec_nanos() > 0)
    }

    pub(crate) fn trace_if(&self, is_news: bool) {
        if is_news {
            let seconds = self.seconds_left(Instant::now());
            tracing::warn!(seconds, error = %Chain(&self.error), "grounded");
        }
    }
}
