//! A token store in memory, in tokio's clock, that fails as it is told to.

#![allow(dead_code, reason = "no test needs all of it")]

use std::{
    collections::HashMap,
    future::pending,
    mem::take,
    panic::resume_unwind,
    sync::{Arc, Mutex},
    time::Duration,
};

use apsis_auth::store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore};
use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tower::BoxError;

/// Clones share what they hold.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    accounts: HashMap<String, Account>,
    condition: Condition,
    operations: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Condition {
    #[default]
    Well,
    /// Every operation fails.
    Down,
    /// No operation ends.
    Silent,
    /// All but looking fails.
    ReadOnly,
    /// Every operation panics.
    Panics,
    /// All but looking takes half a second.
    Slow,
    /// It does what it is told, and answers only what it has.
    Deaf,
}

#[derive(Default)]
pub(crate) struct Account {
    pub(crate) fence: u64,
    pub(crate) entry: Option<(u64, Bytes, Instant)>,
    /// Owner, fence and end.
    lease: Option<(u64, u64, Instant)>,
    paused_until: Option<(Instant, Option<StatusCode>)>,
    /// By fence, when each stops to count.
    attempts: Vec<(u64, Instant)>,
    /// What the clock that fences come from says at least.
    clock: u64,
    /// When each lease was granted. Fences come from a clock, so this is known although the memory is lost.
    granted: HashMap<u64, (Instant, Duration)>,
    /// What its clock went on by while tokio's stood still.
    slept: Duration,
}

impl Memory {
    pub(crate) fn set(&self, condition: Condition) {
        self.0.lock().unwrap().condition = condition;
    }

    /// Forgets everything but the time, which no fence falls behind.
    pub(crate) fn empty(&self) {
        self.change(|account| {
            let clock = account.clock.max(account.fence + 1);
            *account =
                Account { clock, granted: take(&mut account.granted), slept: account.slept, ..Account::default() };
        });
    }

    /// Everything sleeps, and the clocks of the world go on.
    pub(crate) fn sleep(&self, time: Duration) {
        self.change(|account| account.slept += time);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().accounts.keys().cloned().collect()
    }

    pub(crate) fn operations(&self) -> usize {
        self.0.lock().unwrap().operations
    }

    /// What is stored, of the only account.
    pub(crate) fn sealed(&self) -> Option<Bytes> {
        let inner = self.0.lock().unwrap();
        Some(inner.accounts.values().next()?.entry.as_ref()?.1.clone())
    }

    /// Somebody is said to have a lease with this fence, in each account that there is.
    pub(crate) fn hold_as(&self, fence: u64, lasts: Duration) {
        let mut inner = self.0.lock().unwrap();
        for account in inner.accounts.values_mut() {
            account.lease = Some((0, fence, Instant::now() + lasts));
        }
    }

    /// The token is forgotten, and not what it took to get it.
    pub(crate) fn empty_but_for_attempts(&self) {
        self.change(|account| account.entry = None);
    }

    /// Changes what is stored of each account.
    pub(crate) fn change(&self, change: impl Fn(&mut Account)) {
        self.0.lock().unwrap().accounts.values_mut().for_each(change);
    }

    async fn within<T>(
        &self,
        is_writing: bool,
        name: &str,
        operation: impl FnOnce(&mut Account) -> T,
    ) -> Result<T, BoxError> {
        let condition = {
            let mut inner = self.0.lock().unwrap();
            inner.operations += 1;
            inner.condition
        };
        match condition {
            Condition::Silent => pending().await,
            Condition::Panics => resume_unwind(Box::new("the store panics")),
            Condition::Down => Err("the store is down".into()),
            Condition::ReadOnly if is_writing => Err("the store is read-only".into()),
            Condition::Slow if is_writing => {
                sleep(Duration::from_millis(500)).await;
                Ok(operation(self.0.lock().unwrap().accounts.entry(name.to_owned()).or_default()))
            }
            Condition::Deaf if is_writing => {
                operation(self.0.lock().unwrap().accounts.entry(name.to_owned()).or_default());
                pending().await
            }
            Condition::Well | Condition::ReadOnly | Condition::Slow | Condition::Deaf => {
                Ok(operation(self.0.lock().unwrap().accounts.entry(name.to_owned()).or_default()))
            }
        }
    }
}

/// A store that becomes another one.
#[derive(Clone, Default)]
pub(crate) struct Switch(Arc<Mutex<Memory>>);

impl Switch {
    pub(crate) fn set(&self, store: &Memory) {
        *self.0.lock().unwrap() = store.clone();
    }

    fn store(&self) -> Memory {
        self.0.lock().unwrap().clone()
    }
}

impl TokenStore for Switch {
    async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
        self.store().load(name).await
    }

    async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        self.store().lease(name, request).await
    }

    async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, lifetime: Duration) -> Result<(), BoxError> {
        self.store().publish(name, lease, sealed, lifetime).await
    }

    async fn release(&self, name: &str, lease: Lease, pause: Pause) -> Result<(), BoxError> {
        self.store().release(name, lease, pause).await
    }
}

impl Account {
    fn newest(&self) -> Option<Entry> {
        let (fence, sealed, published) = self.entry.clone()?;
        let (granted, slept) = self.granted.get(&fence).copied().unwrap_or((published, self.slept));
        Some(Entry::new(fence, sealed, granted.elapsed() + self.slept.saturating_sub(slept)))
    }

    fn lease(&mut self, request: &LeaseRequest) -> Leasing {
        let now = Instant::now();
        if let Some(entry) = self.newest().filter(|entry| entry.fence() > request.newer_than()) {
            return Leasing::Newer(entry);
        }
        if let Some((_, fence, end)) = self.lease.filter(|&(owner, _, end)| end > now && owner != request.owner()) {
            return Leasing::Held { fence, left: end - now };
        }
        self.attempts.retain(|&(_, end)| end > now);
        let mut ends: Vec<_> = self.attempts.iter().map(|&(_, end)| end).collect();
        ends.sort_unstable();
        let place = ends.len().checked_sub(request.attempts_per_minute() as usize);
        let full = place.map(|place| ends[place]);
        let said = self.paused_until.filter(|&(end, _)| end > now);
        if let Some(end) = full.max(said.map(|(end, _)| end)) {
            return Leasing::Paused(Pause::new(end - now, said.and_then(|(_, refused_with)| refused_with)));
        }
        self.fence = self.clock.max(self.fence + 1);
        let end = now + request.lasts();
        self.lease = Some((request.owner(), self.fence, end));
        self.attempts.push((self.fence, end + MINUTE));
        self.granted.insert(self.fence, (now, self.slept));
        Leasing::Granted(Lease::new(self.fence))
    }

    /// A process that is not heard of again has the lease.
    pub(crate) fn hold(&mut self, lasts: Duration) {
        self.fence += 1;
        self.lease = Some((0, self.fence, Instant::now() + lasts));
    }

    /// Somebody was told to wait.
    pub(crate) fn pause(&mut self, lasts: Duration) {
        self.paused_until = Some((Instant::now() + lasts, None));
    }

    pub(crate) fn forget_pause(&mut self) {
        self.paused_until = None;
    }

    fn end(&mut self, lease: &Lease) {
        for (_, end) in self.attempts.iter_mut().filter(|(fence, _)| *fence == lease.fence()) {
            *end = Instant::now() + MINUTE;
        }
        self.lease = self.lease.filter(|&(_, fence, _)| fence != lease.fence());
    }
}

const MINUTE: Duration = Duration::from_secs(60);

impl TokenStore for Memory {
    async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
        self.within(false, name, |account| account.newest()).await
    }

    async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        self.within(true, name, |account| account.lease(request)).await
    }

    async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, _: Duration) -> Result<(), BoxError> {
        self.within(true, name, |account| {
            account.end(&lease);
            let is_stored = account.entry.as_ref().is_some_and(|&(fence, ..)| fence == lease.fence());
            if account.fence <= lease.fence() && !is_stored {
                account.fence = lease.fence();
                account.entry = Some((lease.fence(), sealed, Instant::now()));
            }
        })
        .await
    }

    async fn release(&self, name: &str, lease: Lease, pause: Pause) -> Result<(), BoxError> {
        self.within(true, name, |account| {
            account.end(&lease);
            // A lease that was overtaken cuts no pause short.
            let end = Instant::now() + pause.lasts();
            if account.paused_until.is_none_or(|(before, _)| before < end) {
                account.paused_until = Some((end, pause.refused_with()));
            }
        })
        .await
    }
}
