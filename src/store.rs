//! [`TokenStore`]: where the processes of a fleet keep the one token they share.
//!
//! APSIS One allows an account ten token requests a minute, over all its processes (developer.apsis.com/reference/limits).
//! Fifty processes that start together need fifty, and a cron job needs one each time it runs. With a store, whoever comes
//! first asks, and the others take what it was given.
//!
//! | processes | store |
//! | --- | --- |
//! | one that runs for long | none |
//! | several on one machine, as one user; a cron job | `FileStore`, a folder (feature `file-store`) |
//! | on several machines that reach a Redis or Valkey | `RedisStore` (feature `redis-store`) |
//! | on several machines, otherwise | your own [`TokenStore`], for what they all reach |
//!
//! They have to have the same credentials and the same base URL.
//!
//! # What a flight does
//!
//! It looks into the store, and adopts a token that is newer than the one it is to replace. If there is none, it wants the
//! **lease**: whoever gets it asks APSIS One, and **publishes** the answer; the others look again about every 100 ms. A lease
//! lasts as long as an attempt may take, and 2 s more, at most 5 min: if its holder dies, another one has it then. Each lease has a
//! **fence**, a number higher than any before; whoever publishes under an older one comes too late and is not heard.
//!
//! Attempts count in the store, so that the budget of token requests is the fleet's; each process counts its own as well. If the
//! account is told to wait, all its processes wait. If its key is refused, all of them fail their requests at once and say why, and
//! one asks again after 30 s. Processes that run on wait longer each time, up to 4 min. A process that may not ask for now still looks
//! into the store every 5 s, as long as requests come.
//!
//! # When the store fails
//!
//! An operation that fails or takes too long, a second or an eighth of a flight, lets the process go on alone: it asks by itself,
//! within its own budget. A lease is asked for twice, or one that was granted and not heard of would keep the others from theirs. That
//! the store fails is said once, as a warning, and once more by the first flight that finds the store well again. A store's
//! failure is no request's, as long as a request may wait a few seconds more for its token, and a request with a good token at hand
//! never goes to the store. A store that is replaced by an empty one costs at most one more token request. Processes that are alone
//! do not keep to one budget together: while the store is down, each has its own.
//!
//! Whoever waits for the lease of a process that died waits for its end, 17 s by default, unless the store sees the death, as a folder
//! does. Where a request may not wait that long, it fails, and a later one is served.
//!
//! A process may adopt a token that died since it was stored. Its request is then sent twice and rejected twice, which the caller
//! sees; the next one is given a new token.
//!
//! # Whether it works
//!
//! The event `new access token` has the field `adopted`, and so has the token of a [`Snapshot`](crate::Snapshot): whether another
//! process had asked for it. A program that starts and finds a token is the first to tell. A store that fails is a warning.
//!
//! # What is stored, and who can do what with it
//!
//! The token and its lifetime, sealed with AES-256-GCM (RFC 5116) under a key that HKDF-SHA-256 (RFC 5869) derives from
//! the client secret. Bound to that are the format, the fence, the base URL's origin and the client ID.
//!
//! 1. Who reads the store learns when tokens are asked for and how long they are, and neither a token nor whose it is: the name
//!    of an entry is derived from the secret, too.
//! 2. Who writes to it can keep the processes from a token they do not have yet, by pauses that do not end, as if they were refused;
//!    or take leases away, so that each process asks for itself, within its own budget.
//! 3. He cannot bring in a token of his own or another account's.
//! 4. He can put back an entry that was there before, and say it is younger than it is: a process that looks for a token adopts it. If
//!    the token is dead, the API rejects it, and the process asks for one itself.
//! 5. Who has the secret can read all of it. He could as well ask for a token.
//! 6. A secret that was changed leaves its entries unread behind. A token of the old one lives on at APSIS One as long as that says.
//! 7. What was published is overwritten by the next, not wiped: a store that keeps its history keeps old tokens, sealed.
//! 8. A secret that can be guessed can be guessed from an entry, by trying. Those of APSIS One cannot.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use tower::BoxError;

/// What a fleet shares its token through: a store that all its processes reach.
///
/// Implement it for what you run; for a folder and for Redis the crate brings `FileStore` and `RedisStore`. What is stored
/// is sealed before it comes here, and the name it goes by says nothing of the account. So a store needs no secrets of its
/// own, and nobody who reads it learns a token.
///
/// A store holds for each name the newest entry, the lease of the one process that is asking for a token, and the attempts
/// of the last minute. An operation that fails or panics makes the process go on alone (a lease, the second time), and is
/// no failure of a request. So does one that takes longer than a second, or an eighth of a flight where that is less; its
/// future is dropped then, wherever it is. A lease that was granted and not heard of ends by itself, and its owner may ask
/// for another one before.
///
/// A name is 32 hexadecimal digits. What is sealed is some thirty bytes longer than the token, about 700 in all. Fences are more than 0;
/// an owner may be any number.
///
/// All of it, in the memory of one process. A store for several keeps the same where they all reach it, with moments by one clock, and
/// each operation in one step:
///
/// ```
/// use std::{collections::HashMap, sync::Mutex, time::{Duration, Instant}};
///
/// use apsis_auth::store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore};
/// use bytes::Bytes;
/// use http::StatusCode;
/// use tower::BoxError;
///
/// const MINUTE: Duration = Duration::from_secs(60);
///
/// #[derive(Default)]
/// struct InMemory(Mutex<HashMap<String, Account>>);
///
/// #[derive(Default)]
/// struct Account {
///     fence: u64,
///     /// Its fence, what is sealed, and when its lease was granted.
///     entry: Option<(u64, Bytes, Instant)>,
///     lease: Option<Held>,
///     /// No attempt before then, and the status of a refusal.
///     paused: Option<(Instant, Option<StatusCode>)>,
///     /// The fence of each attempt, and when it stops to count.
///     attempts: Vec<(u64, Instant)>,
/// }
///
/// #[derive(Clone, Copy)]
/// struct Held {
///     owner: u64,
///     fence: u64,
///     granted: Instant,
///     end: Instant,
/// }
///
/// impl Account {
///     fn entry(&self) -> Option<Entry> {
///         let (fence, sealed, granted) = self.entry.clone()?;
///         Some(Entry::new(fence, sealed, granted.elapsed()))
///     }
///
///     fn end(&mut self, lease: &Lease) {
///         self.lease = self.lease.filter(|held| held.fence != lease.fence());
///         for (_, end) in self.attempts.iter_mut().filter(|(fence, _)| *fence == lease.fence()) {
///             *end = Instant::now() + MINUTE;
///         }
///     }
/// }
///
/// impl TokenStore for InMemory {
///     async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
///         Ok(self.0.lock().unwrap().get(name).and_then(Account::entry))
///     }
///
///     async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
///         let (mut accounts, now) = (self.0.lock().unwrap(), Instant::now());
///         let account = accounts.entry(name.to_owned()).or_default();
///         if let Some(entry) = account.entry().filter(|entry| entry.fence() > request.newer_than()) {
///             return Ok(Leasing::Newer(entry));
///         }
///         let held = account.lease.filter(|held| held.end > now && held.owner != request.owner());
///         if let Some(Held { fence, end, .. }) = held {
///             return Ok(Leasing::Held { fence, left: end - now });
///         }
///         account.attempts.retain(|&(_, end)| end > now);
///         account.attempts.sort_by_key(|&(_, end)| end);
///         let place = account.attempts.len().checked_sub(request.attempts_per_minute() as usize);
///         let full = place.and_then(|place| account.attempts.get(place)).map(|&(_, end)| end);
///         let said = account.paused.filter(|&(end, _)| end > now);
///         if let Some(end) = full.max(said.map(|(end, _)| end)) {
///             return Ok(Leasing::Paused(Pause::new(end - now, said.and_then(|(_, status)| status))));
///         }
///         // Where the memory is lost with the process, the fence has to come from a clock.
///         account.fence += 1;
///         let (owner, fence, end) = (request.owner(), account.fence, now + request.lasts());
///         account.lease = Some(Held { owner, fence, granted: now, end });
///         account.attempts.push((fence, end + MINUTE));
///         Ok(Leasing::Granted(Lease::new(account.fence)))
///     }
///
///     async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, _: Duration) -> Result<(), BoxError> {
///         let mut accounts = self.0.lock().unwrap();
///         let account = accounts.entry(name.to_owned()).or_default();
///         let granted = account.lease.filter(|held| held.fence == lease.fence()).map(|held| held.granted);
///         account.end(&lease);
///         let is_stored = account.entry.as_ref().is_some_and(|entry| entry.0 == lease.fence());
///         if account.fence <= lease.fence() && !is_stored {
///             account.fence = lease.fence();
///             account.entry = Some((lease.fence(), sealed, granted.unwrap_or_else(Instant::now)));
///         }
///         Ok(())
///     }
///
///     async fn release(&self, name: &str, lease: Lease, pause: Pause) -> Result<(), BoxError> {
///         let mut accounts = self.0.lock().unwrap();
///         let account = accounts.entry(name.to_owned()).or_default();
///         account.end(&lease);
///         let end = Instant::now() + pause.lasts();
///         if account.paused.is_none_or(|(before, _)| before < end) {
///             account.paused = Some((end, pause.refused_with()));
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait TokenStore: Send + Sync + 'static {
    /// The newest entry of this name, if there is one.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being read. An entry that is not there is none.
    fn load(&self, name: &str) -> impl Future<Output = Result<Option<Entry>, BoxError>> + Send;

    /// Leave to make one token request, or what there is instead. All in one step: of two processes that want a lease, one
    /// gets it.
    ///
    /// The first of these that holds is the answer:
    ///
    /// 1. [`Newer`](Leasing::Newer), if there is an entry whose fence is higher than
    ///    [`newer_than`](LeaseRequest::newer_than).
    /// 2. [`Held`](Leasing::Held), if there is a lease that neither ended nor was given back, unless it is this
    ///    [`owner`](LeaseRequest::owner)'s.
    /// 3. [`Paused`](Leasing::Paused), if a pause is not over, or until fewer attempts than
    ///    [`attempts_per_minute`](LeaseRequest::attempts_per_minute) count, whichever is longer; with the status of the
    ///    pause, if that is not over. An attempt counts from its lease until a minute after it was published or given back,
    ///    or else until a minute after the end of its lease.
    /// 4. [`Granted`](Leasing::Granted), with a fence that is higher than any that was granted or published under this name. A store
    ///    that may lose its memory takes the fence from its clock: at least the milliseconds since 1970, and more than the last.
    ///
    /// # Errors
    ///
    /// Whatever kept the lease from being granted.
    fn lease(&self, name: &str, request: &LeaseRequest) -> impl Future<Output = Result<Leasing, BoxError>> + Send;

    /// Stores an entry and ends the lease, if that is still this one's. An entry of a lease with a lower fence than the last
    /// one granted or published is dropped, which is no error; so is a second one of the same fence.
    ///
    /// `lifetime` is how long the entry is of use to anybody; it may be kept longer.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being stored.
    fn publish(
        &self,
        name: &str,
        lease: Lease,
        sealed: Bytes,
        lifetime: Duration,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Ends the lease of an attempt that failed. Nobody gets one before the pause is over. One that ends no later than another that was
    /// asked for earlier changes nothing. Of an attempt whose lease is over already, or was overtaken, the pause counts as well.
    ///
    /// # Errors
    ///
    /// Whatever kept it from being ended. It ends by itself, then.
    fn release(&self, name: &str, lease: Lease, pause: Pause) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// What is stored: a token that is sealed, and its place among the others.
#[derive(Clone)]
pub struct Entry {
    fence: u64,
    sealed: Bytes,
    age: Duration,
}

impl Entry {
    /// An entry of the lease with this fence, which was granted so long ago by the store's own clock.
    pub fn new(fence: u64, sealed: impl Into<Bytes>, age: Duration) -> Self {
        Self { fence, sealed: sealed.into(), age }
    }

    /// Of the lease that it was published under.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// What was given to [`publish`](TokenStore::publish).
    #[must_use]
    pub fn sealed(&self) -> &Bytes {
        &self.sealed
    }

    /// How long ago its lease was granted, by the store's own clock: the clocks of the processes may differ. The token is that
    /// old at most. From when it was published it would not do, since that may be late.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fence, sealed, age } = self;
        f.debug_struct("Entry").field("fence", fence).field("bytes", &sealed.len()).field("age", age).finish()
    }
}

/// What a process says when it wants to make a token request.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    owner: u64,
    newer_than: u64,
    lasts: Duration,
    attempts_per_minute: u32,
}

impl LeaseRequest {
    /// A request by this owner, for the tests of a store: for what is newer than 0, 17 s, and 4 attempts in a minute.
    #[must_use]
    pub fn new(owner: u64) -> Self {
        Self { owner, newer_than: 0, lasts: Duration::from_secs(17), attempts_per_minute: 4 }
    }

    /// The same for an entry that is newer than another one.
    #[must_use]
    pub fn with_newer_than(self, newer_than: u64) -> Self {
        Self { newer_than, ..self }
    }

    /// The same for a lease that lasts so long.
    #[must_use]
    pub fn with_lasts(self, lasts: Duration) -> Self {
        Self { lasts, ..self }
    }

    /// The same where the fleet may make so many attempts in any minute.
    #[must_use]
    pub fn with_attempts_per_minute(self, attempts_per_minute: u32) -> Self {
        Self { attempts_per_minute, ..self }
    }

    /// Drawn at random by each layer. Whoever did not hear that he was granted a lease gets another one in its place.
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.owner
    }

    /// An entry with a higher fence does instead of a lease.
    #[must_use]
    pub fn newer_than(&self) -> u64 {
        self.newer_than
    }

    /// The end of the lease: whoever is not back by then is taken for dead.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        self.lasts
    }

    /// How many attempts the fleet may make in any minute.
    #[must_use]
    pub fn attempts_per_minute(&self) -> u32 {
        self.attempts_per_minute
    }
}

/// The answer to a [`LeaseRequest`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Leasing {
    /// Nobody else asks for a token until the lease ends.
    Granted(Lease),
    /// There is a newer entry.
    Newer(Entry),
    /// Another process has a lease.
    Held {
        /// Its fence.
        fence: u64,
        /// Until its end, or what is known of that: it is only traced.
        left: Duration,
    },
    /// No attempt of anybody for now.
    Paused(Pause),
}

/// For how long nobody makes an attempt, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    lasts: Duration,
    refused_with: Option<StatusCode>,
}

impl Pause {
    /// A pause from now on: because the token endpoint refused the credentials with this status; or else because the account was
    /// told to wait, or its attempts of the last minute are used up.
    #[must_use]
    pub const fn new(lasts: Duration, refused_with: Option<StatusCode>) -> Self {
        Self { lasts, refused_with }
    }

    /// How long it lasts from now on.
    #[must_use]
    pub fn lasts(&self) -> Duration {
        self.lasts
    }

    /// What the token endpoint answered to the process that asked last, if it refused the credentials. A store keeps it with the
    /// end of the pause, so that the others can say what is wrong.
    #[must_use]
    pub fn refused_with(&self) -> Option<StatusCode> {
        self.refused_with
    }
}

/// Leave to make one token request.
#[derive(Debug)]
pub struct Lease {
    fence: u64,
    #[allow(dead_code, reason = "it is held, and dropped")]
    guard: Option<Box<dyn Guard>>,
}

/// What a [`Lease`] may hold.
trait Guard: fmt::Debug + Send + Sync {}

impl<T: fmt::Debug + Send + Sync> Guard for T {}

impl Lease {
    /// A lease with this fence.
    #[must_use]
    pub fn new(fence: u64) -> Self {
        Self { fence, guard: None }
    }

    /// The same, with something that is dropped when the lease is, be it that its flight was dropped: a lock.
    #[must_use]
    pub fn guarded_by(mut self, guard: impl fmt::Debug + Send + Sync + 'static) -> Self {
        self.guard = Some(Box::new(guard));
        self
    }

    /// Higher than that of any lease before.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.fence
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// Any store, behind a pointer. All of it happens in the future, also what a `fn` does before it gives one.
pub(crate) trait AnyStore: Send + Sync {
    fn load<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<Entry>>;
    fn lease<'a>(&'a self, name: &'a str, request: &'a LeaseRequest) -> BoxFuture<'a, Leasing>;
    fn publish<'a>(&'a self, name: &'a str, lease: Lease, sealed: Bytes, lifetime: Duration) -> BoxFuture<'a, ()>;
    fn release<'a>(&'a self, name: &'a str, lease: Lease, pause: Pause) -> BoxFuture<'a, ()>;
}

impl fmt::Debug for dyn AnyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStore").finish_non_exhaustive()
    }
}

impl<S: TokenStore> AnyStore for S {
    fn load<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<Entry>> {
        Box::pin(async move { TokenStore::load(self, name).await })
    }

    fn lease<'a>(&'a self, name: &'a str, request: &'a LeaseRequest) -> BoxFuture<'a, Leasing> {
        Box::pin(async move { TokenStore::lease(self, name, request).await })
    }

    fn publish<'a>(&'a self, name: &'a str, lease: Lease, sealed: Bytes, lifetime: Duration) -> BoxFuture<'a, ()> {
        Box::pin(async move { TokenStore::publish(self, name, lease, sealed, lifetime).await })
    }

    fn release<'a>(&'a self, name: &'a str, lease: Lease, pause: Pause) -> BoxFuture<'a, ()> {
        Box::pin(async move { TokenStore::release(self, name, lease, pause).await })
    }
}

/// Several layers, and tests, may share one.
impl<S: TokenStore> TokenStore for Arc<S> {
    fn load(&self, name: &str) -> impl Future<Output = Result<Option<Entry>, BoxError>> + Send {
        S::load(self, name)
    }

    fn lease(&self, name: &str, request: &LeaseRequest) -> impl Future<Output = Result<Leasing, BoxError>> + Send {
        S::lease(self, name, request)
    }

    fn publish(
        &self,
        name: &str,
        lease: Lease,
        sealed: Bytes,
        lifetime: Duration,
    ) -> impl Future<Output = Result<(), BoxError>> + Send {
        S::publish(self, name, lease, sealed, lifetime)
    }

    fn release(&self, name: &str, lease: Lease, pause: Pause) -> impl Future<Output = Result<(), BoxError>> + Send {
        S::release(self, name, lease, pause)
    }
}
