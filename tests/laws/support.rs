//! What the laws are tested with: a world with APSIS One in it, and clocks that are turned by hand.

use std::{
    fmt,
    future::ready,
    panic::resume_unwind,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, SystemTime},
};

use apsis_auth::{
    ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, ClientCredentials, Once, TokenHandle,
    emulator::{Answer, Emulator},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION, request};
use http_body_util::{BodyExt, Full};
use tokio::{
    runtime::Builder,
    time::{Instant, advance, sleep},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

pub(crate) const BASE: &str = "https://api.apsis.one";

/// An account, and the clocks of the process that uses it.
pub(crate) struct World {
    pub(crate) apsis: Emulator,
    pub(crate) wall: Wall,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { apsis: Emulator::new(), wall: Wall::new() }
    }

    /// A builder whose token requests go to the emulator, with this world's wall clock and every draw in the middle.
    pub(crate) fn builder(&self) -> ApsisAuthBuilder {
        let wall = self.wall.clone();
        ApsisAuthLayer::builder(self.credentials(), BASE)
            .transport(self.apsis.clone())
            .wall_clock(move || wall.now())
            .random(|| 0.5)
    }

    pub(crate) fn layer(&self) -> ApsisAuthLayer {
        self.builder().build().unwrap()
    }

    /// The layer with every default, around the emulator.
    pub(crate) fn client(&self) -> ApsisAuth<Emulator> {
        self.layer().layer(self.apsis.clone())
    }

    pub(crate) fn credentials(&self) -> ClientCredentials {
        let key = self.apsis.api_key();
        ClientCredentials::new(key.client_id(), key.client_secret()).unwrap()
    }

    pub(crate) fn token_requests(&self) -> u64 {
        self.apsis.counters().token_requests
    }
}

/// A wall clock that goes with tokio's clock, and can be set.
#[derive(Clone)]
pub(crate) struct Wall {
    base: SystemTime,
    started: Instant,
    offset_seconds: Arc<AtomicI64>,
}

impl Wall {
    fn new() -> Self {
        Self { base: SystemTime::now(), started: Instant::now(), offset_seconds: Arc::default() }
    }

    pub(crate) fn now(&self) -> SystemTime {
        let now = self.base + self.started.elapsed();
        let offset = self.offset_seconds.load(Ordering::Relaxed);
        let by = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { now - by } else { now + by }
    }

    /// Moves the wall clock against the monotonic one.
    pub(crate) fn jump(&self, seconds: i64) {
        self.offset_seconds.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// Runs a test to its end or to a virtual deadline, so that a deadlock fails instead of spinning.
pub(crate) async fn limited<T>(test: impl Future<Output = T>) -> T {
    let year = Duration::from_secs(366 * 24 * 3600);
    tokio::time::timeout(year, test).await.expect("the test ends within a virtual year")
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("{BASE}{path}")).body(Full::default()).unwrap()
}

pub(crate) fn keyspaces() -> Request<Full<Bytes>> {
    get("/audience/keyspaces")
}

/// Sends one request as a caller does: when the service is ready.
pub(crate) async fn send<S, B>(service: &S, request: Request<B>) -> Result<S::Response, BoxError>
where
    S: tower::Service<Request<B>, Error = BoxError> + Clone,
{
    service.clone().oneshot(request).await
}

pub(crate) async fn text<B>(response: Response<B>) -> String
where
    B: http_body::Body,
    B::Error: std::fmt::Debug,
{
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Calls `action` for `0..n` as tasks of their own and waits for all of them.
pub(crate) async fn all<F, T>(n: usize, action: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let tasks: Vec<_> = (0..n).map(|number| tokio::spawn(action(number))).collect();
    let mut results = Vec::with_capacity(n);
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

// A scripted API, for chapters that look at what arrives.

/// What a scripted API was sent, in the order of arrival.
#[derive(Clone, Default)]
pub(crate) struct Record(Arc<Mutex<Vec<Sent>>>);

/// One request as it arrived.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) head: request::Parts,
    /// The body as `Debug` shows it, since bodies have nothing else in common.
    pub(crate) body: String,
}

impl Record {
    pub(crate) fn all(&self) -> Vec<Sent> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The `Authorization` of each request; the empty string stands for none.
    pub(crate) fn authorizations(&self) -> Vec<String> {
        self.all().iter().map(Sent::authorization).collect()
    }

    fn add(&self, sent: Sent) -> usize {
        let mut all = self.0.lock().unwrap();
        all.push(sent);
        all.len()
    }
}

impl Sent {
    pub(crate) fn authorization(&self) -> String {
        self.head.headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }
}

/// An API that records what it is sent. `answer` is given the request and its number, from 1.
pub(crate) fn scripted_api<B, A>(
    record: &Record,
    answer: A,
) -> impl Service<Request<B>, Response = Response<String>, Error = BoxError, Future: Send + Sync>
+ Clone
+ Send
+ Sync
+ use<B, A>
where
    A: Fn(&Sent, usize) -> Response<String> + Clone + Send + Sync,
    B: fmt::Debug,
{
    let record = record.clone();
    service_fn(move |request: Request<B>| {
        let (head, body) = request.into_parts();
        let sent = Sent { head, body: format!("{body:?}") };
        let number = record.add(sent.clone());
        ready(Ok(answer(&sent, number)))
    })
}

pub(crate) fn answer(status: StatusCode, body: &str) -> Response<String> {
    let mut response = Response::new(body.to_owned());
    *response.status_mut() = status;
    response
}

/// A request whose body cannot be sent again.
pub(crate) fn once() -> Request<Once<Full<Bytes>>> {
    keyspaces().map(Once::new)
}

// Everything that happens, for those who look at the cache meanwhile.

/// Looks at a layer's token whenever it gets to do something.
#[derive(Clone, Default)]
pub(crate) struct Curious(Arc<Looking>);

#[derive(Default)]
struct Looking {
    handle: OnceLock<TokenHandle>,
    is_busy: AtomicBool,
    looks: AtomicUsize,
}

impl Curious {
    pub(crate) fn look(&self) {
        // A look reads the wall clock, which may look in turn.
        if let Some(handle) = self.0.handle.get()
            && !self.0.is_busy.swap(true, Ordering::Relaxed)
        {
            let _ = handle.snapshot();
            self.0.looks.fetch_add(1, Ordering::Relaxed);
            self.0.is_busy.store(false, Ordering::Relaxed);
        }
    }

    pub(crate) fn looks(&self) -> usize {
        self.0.looks.load(Ordering::Relaxed)
    }
}

/// A life in which everything happens that the crate has a word for.
pub(crate) async fn every_path(world: &World, builder: ApsisAuthBuilder, curious: &[Curious]) {
    let layer = builder.build().unwrap();
    let (client, handle) = (layer.layer(world.apsis.clone()), layer.handle());
    for curious in curious {
        curious.0.handle.set(handle.clone()).unwrap();
    }
    // Cold, due, dead.
    send(&client, keyspaces()).await.unwrap();
    advance(Duration::from_secs(20 * 3600)).await;
    send(&client, keyspaces()).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    world.apsis.revoke_tokens();
    send(&client, keyspaces()).await.unwrap();
    // A right that is missing, and then the same token again, after a rejection and without one.
    world.apsis.script_api_answers([Answer::status(StatusCode::FORBIDDEN), Answer::status(StatusCode::FORBIDDEN)]);
    send(&client, keyspaces()).await.unwrap();
    world.apsis.set_same_token_while_valid(true);
    world.apsis.script_api_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
    send(&client, keyspaces()).await.unwrap();
    handle.renew().await.unwrap();
    world.apsis.set_same_token_while_valid(false);
    sleep(Duration::from_secs(120)).await;
    // A failure that passes, and one that does not, with a rejection meanwhile.
    world.apsis.script_token_answers([StatusCode::BAD_GATEWAY, StatusCode::UNAUTHORIZED].map(Answer::status));
    handle.renew().await.unwrap_err();
    world.apsis.revoke_tokens();
    send(&client, once()).await.unwrap();
    sleep(Duration::from_secs(120)).await;
    // A budget that is used up, for a refresh and for a forced renewal.
    for _ in 0..4 {
        handle.renew().await.unwrap();
    }
    world.wall.jump(20 * 3600);
    advance(Duration::from_secs(6)).await;
    send(&client, keyspaces()).await.unwrap();
    assert!(handle.snapshot().grounded.is_some());
    handle.renew().await.unwrap_err();
}

/// Runs a test on a thread of its own with a clock that is paused. A thread that waits for a lock that it holds itself
/// is beyond the reach of a virtual deadline: this one is real, and met by nothing else.
pub(crate) fn on_a_thread<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let thread = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(limited(async { test().await }));
        done.send(()).unwrap();
    });
    match is_done.recv_timeout(Duration::from_secs(20)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("a deadlock"),
        // Done, or it panicked.
        _ => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
    }
}
