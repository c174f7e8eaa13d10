//! The process among others of its account: who of them asks for a token, and who takes what another one was given.
//!
//! The store is never a reason to fail. Where it does, the process goes on alone, within its own budget.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tower::BoxError;

use crate::{
    backoff,
    cache::Limits,
    clock::{Clock, Moment},
    endpoint::{Failure, FailureKind},
    error::Chain,
    flight::FlightError,
    seal::Seal,
    store::{AnyStore, Entry, LeaseRequest, Leasing},
    token::{IssuedToken, LONGEST_LIFETIME, Token},
};

pub(crate) use crate::store::Lease;

/// Of one operation of the store.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a lease lasts beyond an attempt: for the way to the store and back.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// Between two looks for what the holder of the lease brings. Drawn from a half to three halves of it, so that those who
/// wait do not come together.
const POLL_EVERY: Duration = Duration::from_millis(100);

/// As long as any back-off of ours.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// One account's store, as this process sees it.
pub(crate) struct Fleet {
    store: Box<dyn AnyStore>,
    seal: Seal,
    owner: u64,
    attempts_per_minute: u32,
    lease_lasts: Duration,
    /// The fence of the newest entry that was adopted, published, or found to be of no use.
    done_with: AtomicU64,
    /// The store failed, and that was said.
    is_alone: AtomicBool,
}

/// A flight's dealings with the fleet.
pub(crate) struct Turn {
    fleet: Arc<Fleet>,
    /// No entry with a lower fence is of use to it, nor one with this.
    newer_than: u64,
    /// Nor one that is older than the process's own token, which it may have asked for without a lease.
    own: Option<Arc<Token>>,
}

/// What the fleet has for a flight.
pub(crate) enum Permit {
    /// The token of another process.
    Adopt(IssuedToken),
    /// Leave to make an attempt: with a lease, or alone.
    Ask(Option<Lease>),
    /// No attempt of anybody before then.
    Wait(Instant),
}

impl Fleet {
    pub(crate) fn new(store: Box<dyn AnyStore>, seal: Seal, attempts_per_minute: u32, limits: &Limits) -> Self {
        Self {
            store,
            seal,
            owner: fastrand::u64(..),
            attempts_per_minute,
            lease_lasts: limits.attempt + LEASE_MARGIN,
            done_with: AtomicU64::new(0),
            is_alone: AtomicBool::new(false),
        }
    }

    /// Of a process that has this token.
    pub(crate) fn turn(self: &Arc<Self>, own: Option<Arc<Token>>) -> Turn {
        Turn { fleet: Arc::clone(self), newer_than: self.done_with.load(Ordering::Relaxed), own }
    }

    /// What an operation brings, within its limit; `None` if it fails, which is said once.
    async fn limited<T>(
        &self,
        operation: &'static str,
        running: impl Future<Output = Result<T, BoxError>>,
    ) -> Option<T> {
        let error = match timeout(OPERATION_TIMEOUT, running).await {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {OPERATION_TIMEOUT:?}").into(),
        };
        if self.is_alone.swap(true, Ordering::Relaxed) {
            tracing::debug!(operation, error = %Chain(&*error), "the token store fails");
        } else {
            tracing::warn!(operation, error = %Chain(&*error), "the token store fails; going on alone");
        }
        None
    }

    fn request(&self, newer_than: u64) -> LeaseRequest {
        LeaseRequest::new(self.owner, newer_than, self.lease_lasts, self.attempts_per_minute)
    }

    /// The store gave an answer that only one that can be written to gives.
    fn is_together(&self) {
        if self.is_alone.swap(false, Ordering::Relaxed) {
            tracing::info!("the token store answers again");
        }
    }
}

impl Turn {
    /// Begins with a look at what there is. For a flight that was forced, only what is published from here on will do.
    pub(crate) async fn begin(&mut self, is_forced: bool, clock: &Clock) -> Option<IssuedToken> {
        let asked = clock.now();
        let loading = self.fleet.store.load(self.fleet.seal.name());
        let entry = self.fleet.limited("load", loading).await??;
        if is_forced {
            self.newer_than = self.newer_than.max(entry.fence());
        }
        self.open(&entry, asked, clock)
    }

    /// Waits for leave to make an attempt, or for what another process brings.
    pub(crate) async fn permit(&mut self, clock: &Clock) -> Permit {
        let fleet = Arc::clone(&self.fleet);
        let mut held = None;
        loop {
            let asked = clock.now();
            let request = fleet.request(self.newer_than);
            let leasing = fleet.limited("lease", fleet.store.lease(fleet.seal.name(), &request)).await;
            let Some(leasing) = leasing else { return Permit::Ask(None) };
            fleet.is_together();
            match leasing {
                Leasing::Granted(lease) => return Permit::Ask(Some(lease)),
                Leasing::Paused(left) => return Permit::Wait(asked.monotonic + left.min(LONGEST_PAUSE)),
                Leasing::Newer(entry) => {
                    if let Some(token) = self.open(&entry, asked, clock) {
                        return Permit::Adopt(token);
                    }
                }
                Leasing::Held { fence, .. } => {
                    let same = held.filter(|&(before, _)| before == fence);
                    let (_, since) = *held.insert(same.unwrap_or((fence, asked.monotonic)));
                    // Whoever has it neither came back nor died.
                    if since.elapsed() > fleet.lease_lasts {
                        return Permit::Ask(None);
                    }
                }
            }
            sleep(POLL_EVERY.mul_f64(0.5 + clock.draw())).await;
        }
    }

    /// Gives the others the token, or leave to ask themselves: after a pause, if the failure is the whole account's.
    pub(crate) async fn end(&self, lease: Lease, result: &Result<IssuedToken, FlightError>, clock: &Clock) {
        match result {
            Ok(token) => self.publish(lease, token).await,
            Err(FlightError::Failed(failure)) => self.release(lease, pause_after(failure, clock)).await,
            Err(_) => self.release(lease, Duration::ZERO).await,
        }
    }

    async fn publish(&self, lease: Lease, token: &IssuedToken) {
        let (fleet, fence) = (&self.fleet, lease.fence());
        let age = token.asked.monotonic.elapsed();
        let sealed = fleet.seal.seal(&token.header, token.lifetime, age, fence);
        let lifetime = token.lifetime.saturating_sub(age);
        fleet.done_with.fetch_max(fence, Ordering::Relaxed);
        fleet.limited("publish", fleet.store.publish(fleet.seal.name(), lease, sealed, lifetime)).await;
    }

    async fn release(&self, lease: Lease, pause: Duration) {
        let fleet = &self.fleet;
        fleet.limited("release", fleet.store.release(fleet.seal.name(), lease, pause)).await;
    }

    /// The token of an entry, unless it is of no use: it cannot be read, has expired, or is older than what there is. It is not
    /// looked at again, then.
    fn open(&mut self, entry: &Entry, asked: Moment, clock: &Clock) -> Option<IssuedToken> {
        let fence = entry.fence();
        if fence <= self.newer_than {
            // The answer to an earlier question.
            return None;
        }
        self.newer_than = self.newer_than.max(fence);
        self.fleet.done_with.fetch_max(fence, Ordering::Relaxed);
        let Some(opened) = self.fleet.seal.open(entry.sealed(), fence) else {
            tracing::warn!(fence, "an entry of the token store cannot be read");
            return None;
        };
        let token = IssuedToken {
            header: opened.header,
            lifetime: opened.lifetime.min(LONGEST_LIFETIME),
            age: entry.age().saturating_add(opened.age),
            asked,
            is_adopted: true,
        };
        let is_newer = self.own.as_ref().is_none_or(|own| token.age < own.age_since_issue(asked.monotonic));
        (is_newer && !token.is_expired(clock.now())).then_some(token)
    }
}

/// What keeps one process from a token may keep all of them.
fn pause_after(failure: &Failure, clock: &Clock) -> Duration {
    match &failure.kind {
        FailureKind::RateLimited => backoff::after_rate_limit(1, failure.retry_after, clock.draw()),
        FailureKind::Terminal { .. } => backoff::after_terminal(1),
        FailureKind::Transient(_) => failure.retry_after.unwrap_or_default(),
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("seal", &self.seal).finish_non_exhaustive()
    }
}
