//! The token of one account: read without a lock, renewed by one flight at a time, grounded after failures.
//!
//! Here is the lock of the core. It is held for bookkeeping alone: nothing waits under it, and nothing foreign
//! is called, be it a transport, a clock or a subscriber of traces, each of which may come back to this cache.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use http::{HeaderValue, Request, header::AUTHORIZATION};
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use crate::{
    AuthError, Rejection,
    clock::{Clock, Moment},
    endpoint::TokenEndpoint,
    error::RetryAt,
    fleet::{Fleet, Turn},
    flight::{Flight, FlightError, Reason},
    ladder::Evidence,
    state::{CurrentFlight, Grounding, State},
    token::{IssuedToken, Token},
    waiter::Want,
};

/// How often a process that may not ask looks for what another one has brought.
const LOOK_IN_STORE_EVERY: Duration = Duration::from_secs(5);

/// How a flight ended, for all who waited for it.
pub(crate) type Outcome = Result<Arc<Token>, AuthError>;

pub(crate) struct TokenCache {
    current: ArcSwapOption<Token>,
    evidence: Evidence,
    state: Mutex<State>,
    /// Told of each token, for those who wait for the end of a grounding.
    pub(crate) landed: Notify,
    pub(crate) source: TokenEndpoint,
    pub(crate) clock: Clock,
    pub(crate) limits: Limits,
    fleet: Option<Arc<Fleet>>,
}

/// Limits on time; how many token requests there may be is the budget's.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Of a request, for a token.
    pub(crate) max_wait: Duration,
    /// Of one attempt, from connect to the last byte.
    pub(crate) attempt: Duration,
    /// Of a flight, its attempts and pauses included.
    pub(crate) flight: Duration,
}

/// What is stamped on a request.
pub(crate) struct Stamp {
    pub(crate) header: HeaderValue,
    pub(crate) generation: u64,
}

impl Stamp {
    /// Adds the token in place of any other `authorization`.
    #[inline]
    pub(crate) fn put_on<B>(self, request: &mut Request<B>) -> Result<(), AuthError> {
        match request.headers_mut().try_insert(AUTHORIZATION, self.header) {
            Ok(_) => Ok(()),
            Err(_) => Err(AuthError::TooManyHeaders),
        }
    }
}

/// What there is for a waiter.
pub(crate) enum Found {
    Token(Arc<Token>),
    Flight(CurrentFlight),
    Grounded(Grounding),
}

impl TokenCache {
    pub(crate) fn new(
        source: TokenEndpoint,
        clock: Clock,
        limits: Limits,
        budget: NonZeroU32,
        fleet: Option<Fleet>,
    ) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            evidence: Evidence::default(),
            state: Mutex::new(State::new(budget)),
            landed: Notify::new(),
            source,
            clock,
            limits,
            fleet: fleet.map(Arc::new),
        }
    }

    /// The token at hand, if it is good. The way of every request: no lock, no allocation, one reading of a clock, but for the
    /// look that is taken now and then.
    #[inline]
    pub(crate) fn stamp(self: &Arc<Self>) -> Option<Stamp> {
        let current = self.current.load();
        let token = current.as_ref()?;
        let now = Instant::now();
        if token.needs_no_look(now) || self.look(token, now) {
            Some(Stamp { header: token.header().clone(), generation: token.generation() })
        } else {
            None
        }
    }

    /// Whether the token is good by both clocks. Starts a refresh that is due, without waiting for it.
    #[cold]
    fn look(self: &Arc<Self>, token: &Token, now: Instant) -> bool {
        let now = self.clock.at(now);
        if token.is_expired(now) {
            return false;
        }
        token.look_again(now);
        if token.is_due(now) && token.is_worth_a_refresh() {
            self.refresh();
        }
        true
    }

    pub(crate) fn good_token(self: &Arc<Self>) -> Option<Arc<Token>> {
        let token = self.current.load_full()?;
        let now = Instant::now();
        (token.needs_no_look(now) || self.look(&token, now)).then_some(token)
    }

    /// The same for the requests to come, when this one cannot be replayed: starts a flight and does not wait.
    pub(crate) fn renew_in_background(self: &Arc<Self>, generation: u64, kind: Rejection) {
        self.rejected(generation, kind);
        let error = match self.find_or_fly(Want::Newer(generation, kind)) {
            Ok(Found::Grounded(grounding)) => grounding.error,
            Ok(_) => return,
            Err(error) => error,
        };
        tracing::debug!(generation, %error, "no renewal");
    }

    fn refresh(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let now = Instant::now();
        let mut state = self.lock();
        if state.flight(now).is_some() || state.grounding(now).is_some() {
            return;
        }
        match self.ground_without_budget(&mut state, now) {
            Some((grounding, is_news)) => {
                drop(state);
                grounding.trace_if(is_news);
            }
            None => drop(self.fly(state, &runtime, Reason::Due)),
        }
    }

    /// Takes note that a replay puts this token to the test.
    pub(crate) fn try_out(&self, token: &Token, kind: Rejection) {
        self.lock().ladders.of(kind).try_out(token.generation(), token.is_adopted(), Instant::now());
    }

    /// Takes note that the API accepted a request stamped with this generation.
    #[inline]
    pub(crate) fn accepted(&self, generation: u64) {
        self.evidence.accepted(generation);
    }

    /// Takes note of a replay that was not rejected: the renewal helped.
    pub(crate) fn replay_accepted(&self, generation: u64, kind: Rejection) {
        self.lock().ladders.of(kind).did_help(generation);
        tracing::debug!(generation, "replay accepted");
    }

    /// Takes note of a rejected replay: the renewal did not help.
    ///
    /// `kind` is how the request was rejected first: that ladder started the renewal.
    pub(crate) fn replay_rejected(&self, generation: u64, kind: Rejection) {
        if self.rejected(generation, kind) {
            // The others of its kind are no evidence of anything new.
            self.evidence.begin(generation);
        }
    }

    /// Takes note of a rejected request: of evidence, and of a renewal that did not help. Whether its ladder climbed.
    ///
    /// Not every renewal is followed by a replay that tells. If its token was accepted since, it may have died only now:
    /// the evidence of that is kept, so that three in a row end the cooling as ever.
    pub(crate) fn rejected(&self, generation: u64, kind: Rejection) -> bool {
        tracing::debug!(generation, ?kind, "token rejected");
        let now = Instant::now();
        let in_a_row = self.evidence.rejected(generation);
        let climbed = self.lock().ladders.of(kind).rejected(generation, in_a_row, now);
        if climbed {
            tracing::warn!(generation, ?kind, "the renewed token was rejected too");
        }
        climbed
    }

    /// What there is, or a flight that is started because there is nothing.
    pub(crate) fn find_or_fly(self: &Arc<Self>, want: Want) -> Result<Found, AuthError> {
        let runtime = Handle::try_current().map_err(|_| AuthError::NoRuntime)?;
        let now = self.clock.now();
        // A token is published and its flight ended under this lock: who finds neither may start a flight.
        let mut state = self.lock();
        if let Some(token) = self.at_hand(want, now) {
            return Ok(Found::Token(token));
        }
        let now = now.monotonic;
        if let Some(flight) = state.flight(now) {
            return Ok(Found::Flight(flight.clone()));
        }
        if let Want::Newer(_, kind) = want
            && let Some(until) = state.ladders.of(kind).cooling_at(now)
            && (state.grounding(now).is_some() || !self.may_look(&mut state, now))
        {
            return Err(AuthError::CoolingDown { retry_at: RetryAt(until) });
        }
        let grounding = state.grounding(now).filter(|_| !matches!(want, Want::Forced));
        if let Some(grounding) = grounding {
            return Ok(Found::Grounded(grounding.clone()));
        }
        if let Some((grounding, is_news)) = self.ground_without_budget(&mut state, now) {
            drop(state);
            grounding.trace_if(is_news);
            return Ok(Found::Grounded(grounding));
        }
        let reason = match want {
            Want::Good => Reason::Cold,
            Want::Newer(_, kind) => Reason::Rejected(kind),
            Want::Forced => Reason::Forced,
        };
        Ok(Found::Flight(self.fly(state, &runtime, reason)))
    }

    /// Whether it is time to look for what another process may have, though this one makes no attempt for now.
    fn may_look(&self, state: &mut State, now: Instant) -> bool {
        self.fleet.is_some() && state.may_look(now, LOOK_IN_STORE_EVERY)
    }

    /// Without room for an attempt there is no flight, unless another process may bring the token.
    fn ground_without_budget(&self, state: &mut State, now: Instant) -> Option<(Grounding, bool)> {
        let room_at = state.budget.free_at(now).filter(|_| self.fleet.is_none())?;
        Some(state.ground_until(AuthError::OutOfBudget { retry_at: RetryAt(room_at) }, room_at, room_at, now))
    }

    fn at_hand(&self, want: Want, now: Moment) -> Option<Arc<Token>> {
        let token = self.current.load_full()?;
        let serves = match want {
            Want::Good => !token.is_expired(now),
            Want::Newer(rejected, _) => token.generation() > rejected,
            Want::Forced => false,
        };
        serves.then_some(token)
    }

    /// Starts a flight as a task of its own, so that no caller's cancellation reaches it.
    fn fly(self: &Arc<Self>, mut state: MutexGuard<'_, State>, runtime: &Handle, reason: Reason) -> CurrentFlight {
        let lands_by = Instant::now() + self.limits.flight;
        let number = state.number_of_next_flight();
        let (flight, outcome) = Flight::new(self, number, reason, lands_by);
        let current = CurrentFlight { number, outcome, lands_by, is_forced: reason == Reason::Forced };
        state.begin_flight(current.clone());
        drop(state);
        // A runtime that is shutting down drops the flight at once; a dropped flight lands, which takes the lock.
        flight.spawn(runtime);
        current
    }

    /// Starts an attempt of the flight. There is none without room in the budget, nor for a flight that does not count
    /// any more.
    pub(crate) fn start_attempt(&self, number: u64) -> Result<(), FlightError> {
        let (mut state, now) = (self.lock(), Instant::now());
        if !state.is_current(number) {
            return Err(FlightError::Interrupted);
        }
        match state.budget.free_at(now) {
            Some(room_at) => Err(FlightError::NoRoom(room_at)),
            None => {
                state.budget.start(now);
                Ok(())
            }
        }
    }

    pub(crate) fn end_attempt(&self, number: u64) {
        let mut state = self.lock();
        if state.is_current(number) {
            state.budget.end(Instant::now());
        }
    }

    pub(crate) fn turn(&self, reason: Reason) -> Option<Turn> {
        self.fleet.as_ref().map(|fleet| fleet.turn(self.current(), matches!(reason, Reason::Rejected(_))))
    }

    /// How long one operation of the store may take.
    pub(crate) fn fleets_operation(&self) -> Duration {
        self.fleet.as_ref().map_or(Duration::ZERO, |fleet| fleet.operation_timeout())
    }

    /// Until when this process makes no attempt of its own, after a failure or because it was told to.
    pub(crate) fn grounded_until(&self) -> Option<Instant> {
        self.lock().grounded(Instant::now()).map(|grounding| grounding.lasts)
    }

    /// Until when a rejection starts no attempt of this process.
    pub(crate) fn cooling_until(&self, reason: Reason) -> Option<Instant> {
        let Reason::Rejected(kind) = reason else { return None };
        self.lock().ladders.of(kind).cooling_at(Instant::now())
    }

    /// When there is room for another attempt.
    pub(crate) fn room_at(&self) -> Option<Instant> {
        self.lock().budget.free_at(Instant::now())
    }

    /// Publishes the token or remembers the failure, and ends the flight, all under one lock.
    pub(crate) fn land(&self, number: u64, reason: Reason, result: Result<IssuedToken, FlightError>) -> Outcome {
        let now = Instant::now();
        // An interrupted flight lands from `drop`, where a source of random numbers that panics would end the process.
        let draw = if matches!(result, Err(FlightError::Interrupted)) { 0.5 } else { self.clock.draw() };
        let mut state = self.lock();
        if !state.is_current(number) {
            // Another flight has taken over while this one's runtime stood still.
            return Err(AuthError::Interrupted);
        }
        state.end_flight(now);
        match result {
            Ok(issued) => {
                let (token, is_new) = self.publish(&mut state, reason, issued, now, draw);
                drop(state);
                self.landed.notify_waiters();
                trace_token(&token, is_new, reason);
                Ok(token)
            }
            Err(FlightError::Interrupted) => Err(AuthError::Interrupted),
            Err(FlightError::Cooling(until)) => Err(AuthError::CoolingDown { retry_at: RetryAt(until) }),
            Err(FlightError::NoRoom(room_at)) => {
                let error = AuthError::OutOfBudget { retry_at: RetryAt(room_at) };
                self.ground_in_fleet(state, error, room_at, now)
            }
            Err(FlightError::Paused(until, refused_with)) => {
                let (retry_at, url) = (RetryAt(until), self.source.url.clone());
                let error = match refused_with {
                    Some(status) => AuthError::Refused { url, status, code: None, retry_at },
                    None => AuthError::Paused { retry_at },
                };
                self.ground_in_fleet(state, error, until, now)
            }
            Err(FlightError::Failed(failure)) => {
                let look = self.fleet.is_some().then_some(now + LOOK_IN_STORE_EVERY);
                let grounding = state.ground_after(failure, &self.source.url, now, draw, look);
                drop(state);
                grounding.trace_if(true);
                Err(grounding.error)
            }
        }
    }

    /// Without leave for an attempt. Another process may have a token before that, so it is looked for now and then.
    fn ground_in_fleet(
        &self,
        mut state: MutexGuard<'_, State>,
        error: AuthError,
        lasts: Instant,
        now: Instant,
    ) -> Outcome {
        let until = if self.fleet.is_some() { lasts.min(now + LOOK_IN_STORE_EVERY) } else { lasts };
        let (grounding, is_news) = state.ground_until(error, until, lasts, now);
        drop(state);
        grounding.trace_if(is_news);
        Err(grounding.error)
    }

    /// Makes the token the current one. It is a new one unless it is the same text: what was rejected once is no newer
    /// for being sent again, so its generation stays, and only its end is news.
    fn publish(
        &self,
        state: &mut State,
        reason: Reason,
        issued: IssuedToken,
        now: Instant,
        draw: f64,
    ) -> (Arc<Token>, bool) {
        state.forget_failures();
        let before = self.current.load();
        let same = before.as_ref().filter(|token| token.header() == issued.header);
        let (generation, unchanged_refreshes) = match same {
            Some(token) => (token.generation(), token.unchanged_refreshes() + u32::from(reason == Reason::Due)),
            None => (before.as_ref().map_or(0, |token| token.generation()) + 1, 0),
        };
        let token = Arc::new(Token::new(issued, generation, unchanged_refreshes, draw));
        if same.is_none() {
            self.evidence.begin(generation);
        }
        if let Reason::Rejected(kind) = reason {
            match same {
                Some(_) => state.ladders.of(kind).did_not_help(now),
                None => state.ladders.of(kind).try_out(generation, token.is_adopted(), now),
            }
        }
        self.current.store(Some(Arc::clone(&token)));
        (token, same.is_none())
    }

    pub(crate) fn current(&self) -> Option<Arc<Token>> {
        self.current.load_full()
    }

    /// What a snapshot says besides the token: whether a flight is under way, the grounding, and the attempts left.
    pub(crate) fn condition(&self) -> (bool, Option<Grounding>, u32) {
        let now = Instant::now();
        let mut state = self.lock();
        let grounding = state.grounded(now).cloned();
        (state.flight(now).is_some(), grounding, state.budget.left_at(now))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves the state half-changed if it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trace_token(token: &Token, is_new: bool, reason: Reason) {
    let (generation, lifetime, adopted) = (token.generation(), token.lifetime().as_secs(), token.is_adopted());
    match (is_new, reason) {
        (true, _) => tracing::info!(generation, lifetime, adopted, "new access token"),
        (false, Reason::Rejected(_)) => {
            tracing::warn!(generation, lifetime, "the token endpoint returned the rejected token again");
        }
        (false, _) => tracing::debug!(generation, lifetime, "the same access token again"),
    }
}

impl fmt::Debug for TokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache").field("current", &self.current()).finish_non_exhaustive()
    }
}
