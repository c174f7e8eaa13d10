//! The process among others of its account: who of them asks for a token, and who takes what another one was given.
//!
//! The store is never a reason to fail. Where it does, the process goes on alone, within its own budget.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    runtime::Handle,
    spawn,
    time::{Instant, sleep, timeout},
};
use tower::BoxError;
use tracing::Instrument;

use crate::{
    backoff,
    cache::Limits,
    clock::{Clock, Moment},
    endpoint::FailureKind,
    error::Chain,
    flight::FlightError,
    seal::{self, Seal},
    store::{AnyStore, Entry, LeaseRequest, Leasing, Pause},
    token::{IssuedToken, LONGEST_LIFETIME, Token},
};

pub(crate) use crate::store::Lease;

/// Of one operation of the store. Less where flights are short.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a lease lasts beyond an attempt: for the way to the store and back.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// Stores take what ends later for a mistake.
const LONGEST_LEASE: Duration = Duration::from_secs(5 * 60);

/// Between two looks for what the holder of the lease brings. Drawn from a half to three halves of it, so that those who
/// wait do not come together.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// More entries that cannot be read, or are none of those that were asked for, are no accident.
const MOST_UNREADABLE: u32 = 3;

const NO_PAUSE: Pause = Pause::new(Duration::ZERO, None);

/// Of all processes, after refusals in a row.
const LONGEST_AFTER_REFUSAL: Duration = Duration::from_secs(4 * 60);

/// The longest that an answer can ask for, and a draw on top: see `backoff`.
const LONGEST_PAUSE: Duration = Duration::from_secs(17 * 60);

/// One account's store, as this process sees it.
pub(crate) struct Fleet {
    store: Box<dyn AnyStore>,
    seal: Seal,
    owner: u64,
    attempts_per_minute: u32,
    lease_lasts: Duration,
    operation_timeout: Duration,
    /// How much longer than a lease lasts somebody else may hold one, before it is given up. At most: it is drawn.
    spread: Duration,
    /// The longest pause after a refusal that was said or heard of since there was a token, in milliseconds.
    longest_refusal: AtomicU64,
    /// Whose lease is waited for, and since when. Flights come and go meanwhile.
    held: Mutex<Option<(u64, Instant)>>,
    /// The fence of an entry that cannot be read, which was said.
    unread: AtomicU64,
    /// The store failed when it was read, and that was said.
    fails_to_read: AtomicBool,
    /// The same of what changes it. It may do one without the other.
    fails_to_write: AtomicBool,
}

/// A flight's dealings with the fleet.
pub(crate) struct Turn {
    fleet: Arc<Fleet>,
    /// The fence of the newest entry that is of no use to it.
    newer_than: u64,
    /// An entry that is older than the process's own token is of no use; it may have asked for that one without a lease.
    own: Option<Arc<Token>>,
    /// Nor is one with the very token that was rejected.
    is_rejected: bool,
    /// The store failed already.
    is_alone: bool,
    unreadable: u32,
}

/// What the fleet has for a flight.
pub(crate) enum Permit {
    /// The token of another process.
    Adopt(IssuedToken),
    /// Leave to make an attempt: with a lease, or alone.
    Ask(Option<Lease>),
    /// No attempt of anybody before then, and the status of a refusal.
    Wait(Instant, Option<StatusCode>),
}

impl Fleet {
    pub(crate) fn new(store: Box<dyn AnyStore>, seal: Seal, attempts_per_minute: u32, limits: &Limits) -> Self {
        Self {
            store,
            seal,
            owner: seal::random_number(),
            attempts_per_minute,
            lease_lasts: (limits.attempt.min(limits.flight) + LEASE_MARGIN).min(LONGEST_LEASE),
            operation_timeout: OPERATION_TIMEOUT.min(limits.flight / 8),
            spread: limits.flight / 8,
            longest_refusal: AtomicU64::new(0),
            held: Mutex::new(None),
            unread: AtomicU64::new(0),
            fails_to_read: AtomicBool::new(false),
            fails_to_write: AtomicBool::new(false),
        }
    }

    /// Of a process that has this token, which may be to be replaced because it was rejected.
    pub(crate) fn turn(self: &Arc<Self>, own: Option<Arc<Token>>, is_rejected: bool) -> Turn {
        Turn { fleet: Arc::clone(self), newer_than: 0, own, is_rejected, is_alone: false, unreadable: 0 }
    }

    /// What an attempt leaves of the flight for what is said to the store afterwards.
    pub(crate) fn operation_timeout(&self) -> Duration {
        self.operation_timeout
    }

    /// What an operation brings, within its limit. A panic is an error as any other.
    async fn limited<T>(&self, running: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
        let mut running = pin!(running);
        let caught = poll_fn(|context| {
            catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context)))
                .unwrap_or_else(|_| Poll::Ready(Err("it panicked".into())))
        });
        match timeout(self.operation_timeout, caught).await {
            Ok(done) => done,
            Err(_) => Err(format!("no answer within {:?}", self.operation_timeout).into()),
        }
    }

    /// `None` for what failed. That is said once, and once more when it is over.
    fn heard<T>(operation: &'static str, has_failed: &AtomicBool, result: Result<T, BoxError>) -> Option<T> {
        match result {
            Ok(done) => {
                if has_failed.swap(false, Ordering::Relaxed) {
                    tracing::info!(operation, "the token store answers again");
                }
                return Some(done);
            }
            Err(error) if has_failed.swap(true, Ordering::Relaxed) => {
                tracing::debug!(operation, error = %Chain(&*error), "the token store fails");
            }
            Err(error) => {
                tracing::warn!(operation, error = %Chain(&*error), "the token store fails; going on alone");
            }
        }
        None
    }

    fn request(&self, newer_than: u64) -> LeaseRequest {
        LeaseRequest::new(self.owner)
            .with_newer_than(newer_than)
            .with_lasts(self.lease_lasts)
            .with_attempts_per_minute(self.attempts_per_minute)
    }

    /// Whether the holder of this lease is waited for no longer: it neither came back nor died. A lease that may last is not lost,
    /// however short a flight is: the next one goes on waiting.
    fn is_lost(&self, fence: u64, now: Instant, draw: f64) -> bool {
        let patience = self.lease_lasts + self.spread.mul_f64(draw);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let same = held.filter(|&(before, _)| before == fence);
        let (_, since) = *held.insert(same.unwrap_or((fence, now)));
        now.saturating_duration_since(since) > patience
    }

    fn waits_for_nobody(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What keeps one process from a token may keep all of them. A failure that may be over soon leaves them room for more
    /// attempts within the minute.
    fn pause_after(&self, error: &FlightError, clock: &Clock) -> Pause {
        let FlightError::Failed(failure) = error else { return NO_PAUSE };
        let lasts = match &failure.kind {
            FailureKind::RateLimited => backoff::after_rate_limit(1, failure.retry_after, clock.draw()),
            FailureKind::Terminal { status, .. } => return Pause::new(self.pause_after_refusal(), Some(*status)),
            FailureKind::Transient(_) => {
                backoff::between_attempts(2, clock.draw()).max(failure.retry_after.unwrap_or_default())
            }
        };
        Pause::new(lasts, None)
    }

    /// The longer, the more refusals there were in a row, of whichever process.
    fn pause_after_refusal(&self) -> Duration {
        let before = Duration::from_millis(self.longest_refusal.load(Ordering::Relaxed));
        let pause = backoff::after_terminal(1).max(2 * before).min(LONGEST_AFTER_REFUSAL);
        self.was_refused_for(pause);
        pause
    }

    fn was_refused_for(&self, pause: Duration) {
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.longest_refusal.fetch_max(pause, Ordering::Relaxed);
    }

    fn forget_refusals(&self) {
        self.longest_refusal.store(0, Ordering::Relaxed);
    }

    async fn load(&self) -> Option<Option<Entry>> {
        Self::heard("load", &self.fails_to_read, self.limited(self.store.load(self.seal.name())).await)
    }

    /// Asks once more if that fails: a lease that was granted and not heard of would keep everybody from one, and its owner is
    /// given another.
    async fn lease(&self, request: &LeaseRequest) -> Option<Leasing> {
        let ask = || self.limited(self.store.lease(self.seal.name(), request));
        let result = match ask().await {
            Err(error) => {
                tracing::debug!(error = %Chain(&*error), "the token store did not answer; asking for a lease once more");
                let again = ask().await;
                // The attempt that it waits for may be its own, which nobody makes.
                let is_paused = matches!(&again, Ok(Leasing::Paused(pause)) if pause.refused_with().is_none());
                if is_paused { Err(error) } else { again }
            }
            heard => heard,
        };
        Self::heard("lease", &self.fails_to_write, result)
    }

    async fn publish(&self, lease: Lease, sealed: Bytes, lifetime: Duration) {
        let publishing = self.store.publish(self.seal.name(), lease, sealed, lifetime);
        Self::heard("publish", &self.fails_to_write, self.limited(publishing).await);
    }

    async fn release(&self, lease: Lease, pause: Pause) {
        let releasing = self.store.release(self.seal.name(), lease, pause);
        Self::heard("release", &self.fails_to_write, self.limited(releasing).await);
    }
}

impl Turn {
    /// Begins with a look at what there is. For a flight that was forced, only what is published from here on will do.
    pub(crate) async fn begin(&mut self, is_forced: bool, clock: &Clock) -> Option<IssuedToken> {
        let asked = clock.now();
        let Some(entry) = self.fleet.load().await else {
            self.is_alone = true;
            return None;
        };
        let entry = entry?;
        if is_forced {
            self.newer_than = entry.fence();
            return None;
        }
        self.open(&entry, asked, clock)
    }

    /// Waits for leave to make an attempt, or for what another process brings.
    pub(crate) async fn permit(&mut self, clock: &Clock) -> Permit {
        let fleet = Arc::clone(&self.fleet);
        // Drawn once: those who wait for the same holder do not give it up together.
        let draw = clock.draw();
        let mut waits_for = None;
        while !self.is_alone && self.unreadable < MOST_UNREADABLE {
            let asked = clock.now();
            let request = fleet.request(self.newer_than);
            let Some(leasing) = fleet.lease(&request).await else { break };
            if !matches!(leasing, Leasing::Held { .. }) {
                fleet.waits_for_nobody();
            }
            let poll = POLL_EVERY.mul_f64(0.5 + clock.draw());
            match leasing {
                Leasing::Granted(lease) => {
                    tracing::debug!(fence = lease.fence(), "lease granted");
                    return Permit::Ask(Some(lease));
                }
                Leasing::Paused(pause) => {
                    let left = pause.lasts().clamp(poll, LONGEST_PAUSE);
                    // Nothing else is a refusal, whatever is stored.
                    let refused_with = pause.refused_with().filter(StatusCode::is_client_error);
                    if refused_with.is_some() {
                        fleet.was_refused_for(left);
                    }
                    return Permit::Wait(asked.monotonic + left, refused_with);
                }
                // It would be offered again and again.
                Leasing::Newer(entry) if entry.fence() <= self.newer_than => self.unreadable += 1,
                Leasing::Newer(entry) => {
                    if let Some(token) = self.open(&entry, asked, clock) {
                        return Permit::Adopt(token);
                    }
                }
                Leasing::Held { fence, left } => {
                    if waits_for.replace(fence) != Some(fence) {
                        tracing::debug!(fence, ?left, "another process holds the lease");
                    }
                    if fleet.is_lost(fence, asked.monotonic, draw) {
                        tracing::warn!(fence, "another process holds the lease for too long; asking alone");
                        break;
                    }
                }
            }
            sleep(poll).await;
        }
        Permit::Ask(None)
    }

    /// Gives the others the token, or leave to ask themselves: after a pause, if the failure may be the whole account's. They hear
    /// of it even if the flight is dropped meanwhile: whoever holds a lease and is gone keeps them waiting for its end.
    pub(crate) async fn end(&self, lease: Option<Lease>, result: &mut Result<IssuedToken, FlightError>, clock: &Clock) {
        let Some(lease) = lease else {
            if let Ok(token) = result {
                self.fleet.forget_refusals();
                // What was adopted before is older, and still done with.
                token.fence = self.own.as_ref().and_then(|own| own.fence());
            }
            return;
        };
        let (fleet, fence) = (Arc::clone(&self.fleet), lease.fence());
        let telling = match result {
            Ok(token) => {
                fleet.forget_refusals();
                token.fence = Some(fence);
                let (sealed, lifetime) = (fleet.seal.seal(&token.header, token.lifetime, fence), token.lifetime);
                spawn(async move { fleet.publish(lease, sealed, lifetime).await }.in_current_span())
            }
            Err(error) => {
                let pause = fleet.pause_after(error, clock);
                spawn(async move { fleet.release(lease, pause).await }.in_current_span())
            }
        };
        // It was said already if the store fails.
        let _ = telling.await;
    }

    /// The same for an attempt that was dropped.
    pub(crate) fn give_back(&self, lease: Lease) {
        let fleet = Arc::clone(&self.fleet);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { fleet.release(lease, NO_PAUSE).await }.in_current_span());
        }
    }

    /// The token of an entry, unless it is of no use: it was taken before, cannot be read, has expired, is older than what there
    /// is, or is what was rejected. It is not looked at again, then.
    fn open(&mut self, entry: &Entry, asked: Moment, clock: &Clock) -> Option<IssuedToken> {
        let fence = entry.fence();
        self.newer_than = fence;
        if self.own.as_ref().is_some_and(|own| own.fence() == Some(fence)) {
            return None;
        }
        let Some(opened) = self.fleet.seal.open(entry.sealed(), fence) else {
            if self.fleet.unread.swap(fence, Ordering::Relaxed) != fence {
                tracing::warn!(fence, "an entry of the token store cannot be read");
            }
            self.unreadable += 1;
            return None;
        };
        let token = IssuedToken {
            header: opened.header,
            lifetime: opened.lifetime.min(LONGEST_LIFETIME),
            age: entry.age(),
            asked,
            is_adopted: true,
            fence: Some(fence),
        };
        let now = clock.now();
        if token.is_expired(now) || self.own.as_ref().is_some_and(|own| !self.is_better(&token, own, now)) {
            return None;
        }
        self.fleet.forget_refusals();
        Some(token)
    }

    /// By age and not by fence: a store that lost its memory, and whose clock is behind, begins with lower ones.
    fn is_better(&self, token: &IssuedToken, own: &Token, now: Moment) -> bool {
        token.age < own.age_since_issue(now) && !(self.is_rejected && token.header == *own.header())
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("seal", &self.seal).finish_non_exhaustive()
    }
}
