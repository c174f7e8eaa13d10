//! What goes between the layer and APSIS One: it passes all on, remembers what it saw, and breaks off where that breaks a
//! promise.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    future::{pending, ready},
    ops::AddAssign,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use apsis_auth::emulator::Emulator;
use bytes::Bytes;
use fastrand::Rng;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, DATE, LOCATION},
};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tower::{BoxError, Service, ServiceExt, service_fn};

use crate::{
    life::{BUDGET, BoxFuture, LOOK_EVERY, PROCESSES},
    luck::Misfortune,
    seconds,
    stacks::{Asked, PERMITS, Permits},
};

/// The number of a caller's request, in a header field of its own.
pub(crate) const ID: &str = "x-id";
/// How often the layer was called with it: what stands above may call it again.
const CALL: &str = "x-call";

#[derive(Clone)]
pub(crate) struct Probe {
    shared: Arc<Shared>,
    /// Whose it is.
    process: usize,
}

/// What all processes have in common.
struct Shared {
    apsis: Emulator,
    wall: Wall,
    seed: u64,
    panics: AtomicBool,
    /// Out of 100 API requests, and until when.
    unlucky: Mutex<(u8, Option<Instant>)>,
    seen: Mutex<Seen>,
    trace: Trace,
    /// Whether a request is sent when it is given its token.
    is_at_once: bool,
    permits: Permits,
    /// All processes have one budget, and one token request at once.
    is_one: bool,
}

/// Everything that was seen on the way to APSIS One and back.
#[derive(Default)]
pub(crate) struct Seen {
    /// When token requests were sent, and by which process.
    attempts: Vec<(usize, Instant)>,
    /// Token requests under way, by process.
    in_token_endpoint: [usize; PROCESSES],
    tokens: HashMap<HeaderValue, Issued>,
    latest_token: Option<HeaderValue>,
    /// Requests that the API has not answered yet.
    pub(crate) in_api: usize,
    /// The layer is at work on these, by their number.
    pub(crate) calls: BTreeMap<u64, Calling>,
    jam: Jam,
    requests: HashMap<u64, Sent>,
    pub(crate) counts: Counts,
}

/// A request that a layer is at work on.
#[derive(Clone)]
pub(crate) struct Calling {
    pub(crate) process: usize,
    pub(crate) since: Instant,
    /// What it was sent with last.
    pub(crate) stamped: Option<HeaderValue>,
    pub(crate) is_in_api: bool,
}

/// How long all permits were taken.
#[derive(Default)]
struct Jam {
    since: Option<Instant>,
    lasted: Duration,
}

/// How much of what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) attempts: u64,
    /// Those of them that brought no answer of the status 200.
    pub(crate) failed_attempts: u64,
    pub(crate) sends: u64,
    pub(crate) replays: u64,
    /// Calls of the layer by what stands above it, beyond the first.
    pub(crate) repeats: u64,
    /// Looks at a request that waited.
    pub(crate) waiters: u64,
    /// How often all permits were taken, and by how many token requests one was.
    pub(crate) jams: u64,
    pub(crate) attempts_with_permit: u64,
    /// Requests that something went wrong with at the API.
    pub(crate) misfortunes: u64,
    /// Requests to another origin, by a redirect.
    pub(crate) strangers: u64,
    /// Writes that the API said yes to.
    pub(crate) accepted: u64,
}

struct Issued {
    /// Which one asked for it.
    process: usize,
    /// Counted up when another one comes. What was another's in between is a new one, be it the same text.
    generation: u64,
    asked: Instant,
    asked_wall: SystemTime,
    /// Until its margin.
    usable_for: Duration,
    /// Another process was told of it, or sent it.
    is_shared: bool,
}

impl Issued {
    fn ends(&self) -> Instant {
        self.asked + self.usable_for
    }
}

#[derive(Clone, Default)]
pub(crate) struct Sent {
    pub(crate) first: Option<Instant>,
    /// For each call of the layer, the generations it sent.
    pub(crate) calls: Vec<Vec<u64>>,
    /// How long the API took for its answers.
    pub(crate) in_api: Duration,
    /// Of that, how long all permits were taken.
    jammed_in_api: Duration,
    pub(crate) accepted: u32,
}

impl Seen {
    fn issue(
        &mut self,
        process: usize,
        token: HeaderValue,
        asked: Instant,
        asked_wall: SystemTime,
        usable_for: Duration,
    ) {
        let latest = self.latest_token.as_ref().map_or(0, |latest| self.tokens[latest].generation);
        let is_new = self.latest_token.replace(token.clone()).is_none_or(|latest| latest != token);
        let generation = latest + u64::from(is_new);
        // Each process goes by what it was told itself, or by what another one was told. Of the same token that may be more than what is
        // told now.
        let others = self.tokens.get(&token).filter(|known| known.process != process || known.is_shared);
        let is_shared = others.is_some();
        let usable_for =
            others.map_or(usable_for, |known| usable_for.max(known.ends().saturating_duration_since(asked)));
        self.tokens.insert(token, Issued { process, generation, asked, asked_wall, usable_for, is_shared });
    }

    /// Token requests under way, of all processes.
    pub(crate) fn in_token_endpoint(&self) -> usize {
        self.in_token_endpoint.iter().sum()
    }

    fn check_budget(&self, trace: &Trace, whose: &str, is_theirs: impl Fn(usize) -> bool) {
        let mut attempts = self.attempts.iter().rev().filter(|(process, _)| is_theirs(*process));
        if let (Some((_, now)), Some((_, earlier))) = (attempts.next(), attempts.nth(BUDGET - 1)) {
            let apart = now.duration_since(*earlier);
            let is_kept = apart >= seconds(60);
            trace.promise(is_kept, format_args!("{} token requests of {whose} within {apart:?}", BUDGET + 1));
        }
    }

    /// To be called whenever a permit was taken or given back.
    fn look_at_permits(&mut self, permits: Permits) {
        self.jam.lasted = self.jammed_for();
        let is_jammed = permits.taken(self) >= PERMITS;
        self.counts.jams += u64::from(is_jammed && self.jam.since.is_none());
        self.jam.since = is_jammed.then(Instant::now);
    }

    /// How long all permits were taken, since the beginning.
    pub(crate) fn jammed_for(&self) -> Duration {
        self.jam.lasted + self.jam.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Sent {
    /// How long its caller waited for anything but an answer or a permit.
    pub(crate) fn waited(&self, took: Duration, jammed: Duration) -> Duration {
        took.saturating_sub(self.in_api).saturating_sub(jammed.saturating_sub(self.jammed_in_api))
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.attempts += other.attempts;
        self.failed_attempts += other.failed_attempts;
        self.sends += other.sends;
        self.replays += other.replays;
        self.repeats += other.repeats;
        self.waiters += other.waiters;
        self.jams += other.jams;
        self.attempts_with_permit += other.attempts_with_permit;
        self.misfortunes += other.misfortunes;
        self.strangers += other.strangers;
        self.accepted += other.accepted;
    }
}

impl Probe {
    pub(crate) fn new(
        seed: u64,
        apsis: Emulator,
        wall: Wall,
        trace: Trace,
        is_at_once: bool,
        permits: Permits,
        is_one: bool,
    ) -> Self {
        let (panics, unlucky) = (AtomicBool::new(false), Mutex::default());
        let shared =
            Shared { apsis, wall, seed, panics, unlucky, seen: Mutex::default(), trace, is_at_once, permits, is_one };
        Self { shared: Arc::new(shared), process: 0 }
    }

    /// The same, of another process.
    pub(crate) fn of(&self, process: usize) -> Self {
        Self { shared: Arc::clone(&self.shared), process }
    }

    pub(crate) fn wall(&self) -> &Wall {
        &self.shared.wall
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.seen.lock().unwrap()
    }

    /// The next token request panics.
    pub(crate) fn panic_once(&self) {
        self.shared.panics.store(true, Ordering::Relaxed);
    }

    /// From now on so many of 100 API requests go wrong, for so long.
    pub(crate) fn misbehave(&self, of_hundred: u8, lasts: Duration) {
        *self.shared.unlucky.lock().unwrap() = (of_hundred, Some(Instant::now() + lasts));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&self) {
        self.shared.panics.store(false, Ordering::Relaxed);
        *self.shared.unlucky.lock().unwrap() = (0, None);
    }

    /// All that a request was sent by, once it is over.
    pub(crate) fn take(&self, id: u64) -> Sent {
        self.seen().requests.remove(&id).unwrap_or_default()
    }

    /// The layer is called with this. Each time is counted apart.
    pub(crate) fn begin_call(&self, request: &mut Request<Full<Bytes>>) -> InCall {
        let id = number(request, ID);
        let mut seen = self.seen();
        let begun = Calling { process: self.process, since: Instant::now(), stamped: None, is_in_api: false };
        self.shared.trace.promise(seen.calls.insert(id, begun).is_none(), "one call is over before the next");
        let calls = &mut seen.requests.entry(id).or_default().calls;
        request.headers_mut().insert(CALL, calls.len().into());
        calls.push(Vec::new());
        let is_repeated = calls.len() > 1;
        seen.counts.repeats += u64::from(is_repeated);
        drop(seen);
        InCall { probe: self.clone(), id }
    }

    /// The way of token requests.
    pub(crate) fn transport(
        &self,
    ) -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
    + use<> {
        let probe = self.clone();
        service_fn(move |request: Request<Full<Bytes>>| {
            let probe = probe.clone();
            async move { probe.attempt(request).await }
        })
    }

    async fn attempt(&self, request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, BoxError> {
        let Asked(asked, asked_wall) = *request.extensions().get().unwrap();
        let _under_way = UnderWay::begin(self);
        if self.shared.panics.swap(false, Ordering::Relaxed) {
            // Without the hook, which would print it.
            resume_unwind(Box::new("the transport panics"));
        }
        // Until it is known better, also by its being dropped.
        self.seen().counts.failed_attempts += 1;
        let answer = self.shared.apsis.clone().oneshot(request).await?;
        let (head, body) = answer.into_parts();
        let text = body.collect().await?.to_bytes();
        self.shared.trace.add(format_args!("token endpoint: {}, {} bytes", head.status, text.len()));
        if head.status != StatusCode::OK {
            return Ok(Response::from_parts(head, Full::new(text)));
        }
        self.seen().counts.failed_attempts -= 1;
        if let Some((token, lifetime)) = issued(&text, head.headers.get(DATE), asked_wall) {
            let usable_for = lifetime.saturating_sub(seconds(60).min(lifetime / 10));
            let by_wall = self.shared.wall.now().duration_since(asked_wall).unwrap_or_default();
            // What died on its way is refused. If it is the token at hand, it stays in use as it was measured before.
            if asked.elapsed().max(by_wall) < usable_for {
                self.seen().issue(self.process, token, asked, asked_wall, usable_for);
            }
        }
        Ok(Response::from_parts(head, Full::new(text)))
    }
}

/// A call of the layer, until it is over or dropped.
pub(crate) struct InCall {
    probe: Probe,
    id: u64,
}

impl Drop for InCall {
    fn drop(&mut self) {
        self.probe.seen().calls.remove(&self.id);
    }
}

/// A token request, until it is answered or dropped.
struct UnderWay<'a>(&'a Probe);

impl<'a> UnderWay<'a> {
    fn begin(probe: &'a Probe) -> Self {
        let (mut seen, now) = (probe.seen(), Instant::now());
        let trace = &probe.shared.trace;
        trace.add("token request");
        seen.counts.attempts += 1;
        seen.counts.attempts_with_permit += u64::from(probe.shared.permits == Permits::OfAll);
        seen.in_token_endpoint[probe.process] += 1;
        seen.look_at_permits(probe.shared.permits);
        seen.attempts.push((probe.process, now));
        trace.promise(seen.in_token_endpoint[probe.process] == 1, "one token request of a process is in flight");
        seen.check_budget(trace, "one process", |process| process == probe.process);
        if probe.shared.is_one {
            trace.promise(seen.in_token_endpoint() == 1, "one token request of all processes is in flight");
            seen.check_budget(trace, "all processes", |_| true);
        }
        drop(seen);
        Self(probe)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut seen = self.0.seen();
        seen.in_token_endpoint[self.0.process] -= 1;
        seen.look_at_permits(self.0.shared.permits);
    }
}

/// The token and how long it lives, as the crate is to understand it. `None` for what is no token that a header may carry.
fn issued(text: &[u8], date: Option<&HeaderValue>, local_now: SystemTime) -> Option<(HeaderValue, Duration)> {
    let answer: Value = serde_json::from_slice(text).ok()?;
    let token = answer["access_token"].as_str()?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Value>(token).unwrap_or_default();
    let lifetime = match claims["exp"].as_f64() {
        Some(exp) => {
            // Jumps may have led a wall clock to before 1970.
            let since_epoch =
                |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok()).map(since_epoch);
            exp - date.or(claims["iat"].as_f64()).unwrap_or(since_epoch(local_now))
        }
        None => answer["expires_in"].as_f64().filter(|seconds| *seconds > 0.0).unwrap_or(300.0),
    };
    // What is dead at birth is refused.
    let lifetime = Duration::try_from_secs_f64(lifetime.min(7.0 * 86400.0)).ok()?;
    let token = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    (!lifetime.is_zero()).then_some((token, lifetime))
}

/// The way of API requests. Always ready.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Probe);

impl Service<Request<Full<Bytes>>> for Api {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Response<Full<Bytes>>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let probe = self.0.clone();
        if !is_at_home(request.uri()) {
            return Box::pin(ready(Ok(probe.answer_elsewhere(&request))));
        }
        let id = number(&request, ID);
        let times = probe.send(id, number(&request, CALL), &request);
        Box::pin(async move {
            let answer = {
                let _in_api = InApi::begin(&probe, id);
                probe.answer(id, times, request).await
            };
            let mut seen = probe.seen();
            let request = seen.requests.entry(id).or_default();
            if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::CREATED) && id > 0 {
                request.accepted += 1;
                probe
                    .shared
                    .trace
                    .promise(request.accepted == 1, format_args!("{id} was accepted, and sent once more"));
                seen.counts.accepted += 1;
            }
            drop(seen);
            answer
        })
    }
}

/// A request at the API, until it is answered or dropped.
struct InApi<'a> {
    probe: &'a Probe,
    id: u64,
    since: Instant,
    jammed_before: Duration,
}

impl<'a> InApi<'a> {
    fn begin(probe: &'a Probe, id: u64) -> Self {
        let mut seen = probe.seen();
        seen.in_api += 1;
        seen.look_at_permits(probe.shared.permits);
        if let Some(call) = seen.calls.get_mut(&id) {
            call.is_in_api = true;
        }
        let jammed_before = seen.jammed_for();
        drop(seen);
        Self { probe, id, since: Instant::now(), jammed_before }
    }
}

impl Drop for InApi<'_> {
    fn drop(&mut self) {
        let mut seen = self.probe.seen();
        seen.in_api -= 1;
        seen.look_at_permits(self.probe.shared.permits);
        if let Some(call) = seen.calls.get_mut(&self.id) {
            call.is_in_api = false;
        }
        let jammed = seen.jammed_for().saturating_sub(self.jammed_before);
        if let Some(sent) = seen.requests.get_mut(&self.id) {
            sent.in_api += self.since.elapsed();
            sent.jammed_in_api += jammed;
        }
    }
}

fn number(request: &Request<Full<Bytes>>, name: &str) -> u64 {
    request.headers()[name].to_str().unwrap().parse().unwrap()
}

fn is_at_home(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https") && uri.authority().is_some_and(|authority| authority == "api.apsis.one")
}

impl Probe {
    /// Where nobody is to see a token.
    fn answer_elsewhere(&self, request: &Request<Full<Bytes>>) -> Response<Full<Bytes>> {
        let has_token = request.headers().contains_key(AUTHORIZATION);
        self.shared.trace.promise(!has_token, format_args!("{} was sent a token", request.uri()));
        self.seen().counts.strangers += 1;
        Response::new(Full::default())
    }

    /// What the API answers, or what goes wrong.
    ///
    /// Waiters of one flight go on in an order that nobody sets. So that a seed always decides the same, that is up to the
    /// request alone, and no two that were sent together are answered at the same time.
    async fn answer(
        &self,
        id: u64,
        times: usize,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, BoxError> {
        let mut luck = Rng::with_seed(self.shared.seed ^ (id << 8) ^ times as u64);
        let (of_hundred, until) = *self.shared.unlucky.lock().unwrap();
        let goes_wrong = luck.u8(..100) < of_hundred && until.is_some_and(|until| Instant::now() < until);
        let misfortune = goes_wrong.then(|| Misfortune::draw(&mut luck));
        self.seen().counts.misfortunes += u64::from(goes_wrong);
        sleep(Duration::from_millis(id % 1_000)).await;
        match misfortune {
            None => {
                let (head, body) = self.shared.apsis.clone().oneshot(request).await?.into_parts();
                Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
            }
            Some(Misfortune::Says(status, delay)) => {
                sleep(delay).await;
                Ok(Response::builder().status(status).body(Full::default()).unwrap())
            }
            Some(Misfortune::Redirects(status, place)) => {
                let answer = Response::builder().status(status).header(LOCATION, place);
                Ok(answer.body(Full::default()).unwrap())
            }
            Some(Misfortune::Closes) => Err("the connection is lost".into()),
            Some(Misfortune::SaysNothing) => pending().await,
        }
    }

    /// Looks whether the request may be sent as it is. How often it was sent, then.
    fn send(&self, id: u64, call: u64, request: &Request<Full<Bytes>>) -> usize {
        let trace = &self.shared.trace;
        let token = request.headers().get(AUTHORIZATION);
        let Some(token) = token.filter(|token| token.is_sensitive()) else {
            trace.broken(format_args!("request {id} was sent without a token, or with one that is not marked"));
            return 0;
        };
        let mut seen = self.seen();
        let Some(issued) = seen.tokens.get_mut(token) else {
            trace.broken(format_args!("request {id} was sent with a token that nobody issued"));
            return 0;
        };
        issued.is_shared |= issued.process != self.process;
        if self.shared.is_at_once {
            self.check_age(id, issued);
        }
        let generation = issued.generation;
        if let Some(call) = seen.calls.get_mut(&id) {
            call.stamped = Some(token.clone());
        }
        let sent = seen.requests.entry(id).or_default();
        sent.first.get_or_insert(Instant::now());
        let generations = &mut sent.calls[usize::try_from(call).unwrap()];
        trace.promise(!generations.contains(&generation), format_args!("{id} was sent twice with one token"));
        generations.push(generation);
        let times = generations.len();
        trace.promise(times <= 2, format_args!("request {id} was sent {times} times"));
        let in_all = sent.calls.iter().map(Vec::len).sum();
        seen.counts.sends += 1;
        seen.counts.replays += u64::from(times == 2);
        in_all
    }

    fn check_age(&self, id: u64, issued: &Issued) {
        let (now, usable_for) = (Instant::now(), issued.usable_for);
        let age = now.duration_since(issued.asked);
        let by_wall = self.shared.wall.now().duration_since(issued.asked_wall).unwrap_or_default();
        // What the wall clock alone says is seen at the next look, and not by another process that takes the token later.
        let jumped = self.shared.wall.jumped();
        let is_unseen = issued.process != self.process && jumped.is_some_and(|jumped| jumped >= issued.asked);
        let looked = !is_unseen && jumped.is_none_or(|jumped| now.duration_since(jumped) > LOOK_EVERY);
        self.shared.trace.promise(
            age < usable_for && (by_wall < usable_for || !looked),
            format_args!(
                "request {id} was sent with a token of {age:?}, {by_wall:?} by the wall clock, for {usable_for:?}"
            ),
        );
    }
}

/// A wall clock that goes with tokio's clock, and jumps.
#[derive(Clone)]
pub(crate) struct Wall(Arc<WallInner>);

struct WallInner {
    base: SystemTime,
    started: Instant,
    offset_seconds: AtomicI64,
    jumped: Mutex<Option<Instant>>,
}

impl Wall {
    pub(crate) fn new() -> Self {
        // Not today: a seed decides the same every day.
        let (base, started) = (SystemTime::UNIX_EPOCH + seconds(1_900_000_000), Instant::now());
        Self(Arc::new(WallInner { base, started, offset_seconds: AtomicI64::new(0), jumped: Mutex::default() }))
    }

    pub(crate) fn now(&self) -> SystemTime {
        let now = self.0.base + self.0.started.elapsed();
        let offset = self.0.offset_seconds.load(Ordering::Relaxed);
        let by = seconds(offset.unsigned_abs());
        if offset < 0 { now - by } else { now + by }
    }

    pub(crate) fn jump(&self, seconds: i64) {
        self.0.offset_seconds.fetch_add(seconds, Ordering::Relaxed);
        *self.0.jumped.lock().unwrap() = Some(Instant::now());
    }

    pub(crate) fn jumped(&self) -> Option<Instant> {
        *self.0.jumped.lock().unwrap()
    }
}

/// What happened, line by line, and which promise was broken.
#[derive(Clone, Default)]
pub(crate) struct Trace(Arc<TraceInner>);

#[derive(Default)]
struct TraceInner {
    started: OnceLock<Instant>,
    lines: Mutex<Vec<String>>,
    broken: Mutex<Vec<String>>,
}

impl Trace {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// From here on time counts, by the clock of this runtime.
    pub(crate) fn start(&self) {
        self.0.started.get_or_init(Instant::now);
    }

    pub(crate) fn add(&self, what: impl Display) {
        // Whole seconds: the timers of two runtimes are a part of a millisecond apart.
        let seconds = self.0.started.get().map_or(0, |started| started.elapsed().as_secs());
        let line = format!("{seconds:>9} s  {what}");
        self.0.lines.lock().unwrap().push(line);
    }

    /// Not a panic: the task of a flight would keep it to itself.
    pub(crate) fn promise(&self, is_kept: bool, what: impl Display) {
        if !is_kept {
            self.broken(what);
        }
    }

    pub(crate) fn broken(&self, what: impl Display) {
        self.add(format_args!("BROKEN: {what}"));
        self.0.broken.lock().unwrap().push(what.to_string());
    }

    pub(crate) fn assert_kept(&self) {
        let broken = self.0.broken.lock().unwrap();
        assert!(broken.is_empty(), "{broken:#?}");
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lines.lock().unwrap().clone()
    }
}
