//! Law 27: the capacity of the inner service. A request that waits for a token has none of it, and a request that is
//! dropped takes none along.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::{
    ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, AuthError, AuthOutcome, ClientCredentials,
    emulator::{Answer, Dialect, EmulatorBody},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};
use tower::{
    BoxError, Layer, Service, ServiceExt,
    buffer::Buffer,
    limit::{ConcurrencyLimit, RateLimit, rate::Rate},
    load_shed::{LoadShed, error::Overloaded},
    service_fn,
    util::BoxCloneSyncService,
};

use crate::support::{BASE, Record, World, all, answer, keyspaces, limited, scripted_api, send, text};

/// The stacks in which a request waits for its turn.
const QUEUES: [Queue<EmulatorBody>; 3] = [limit, buffer, rate];

const CALLERS: usize = 50;
/// What the API takes for an answer, and how often a limited rate lets one through.
const TURN: Duration = Duration::from_millis(10);

// While a request waits for a token.

#[tokio::test(start_paused = true)]
async fn no_permit_is_held_while_waiting_for_a_token() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(Duration::from_secs(10));
        let mut client = world.layer().layer(ConcurrencyLimit::new(world.apsis.clone(), 1));
        // As a caller does who keeps its service, and with it the readiness it has.
        let waiting = tokio::spawn(ready(&mut client).await.call(keyspaces()));
        sleep(Duration::from_secs(1)).await;
        assert!(has_a_permit_left(&client).await);
        assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_permit_is_held_while_renewing() {
    limited(async {
        let world = World::new();
        let client = world.layer().layer(ConcurrencyLimit::new(world.apsis.clone(), 1));
        send(&client, keyspaces()).await.unwrap();
        world.apsis.revoke_tokens();
        world.apsis.set_token_delay(Duration::from_secs(10));
        let renewing = tokio::spawn(client.clone().oneshot(keyspaces()));
        sleep(Duration::from_secs(1)).await;
        assert!(has_a_permit_left(&client).await);
        assert!(is_replayed(&renewing.await.unwrap().unwrap()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_permit_is_held_when_the_token_died_while_waiting_for_one() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_lifetime(Duration::from_secs(100));
        world.apsis.set_token_delay(Duration::from_secs(1));
        let client = world.layer().layer(ConcurrencyLimit::new(world.apsis.clone(), 1));
        let waiting = tokio::spawn(client.clone().oneshot(keyspaces()));
        sleep(Duration::from_millis(1)).await;
        // The token comes after a second and dies after 90, the permit comes after 200.
        world.apsis.script_api_answers([Answer::genuine().delay(Duration::from_secs(200))]);
        let occupying = tokio::spawn(client.clone().oneshot(elsewhere()));
        sleep(Duration::from_secs(2)).await;
        world.apsis.set_token_delay(Duration::from_secs(10));
        occupying.await.unwrap().unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(has_a_permit_left(&client).await);
        assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_service_is_called_that_was_not_ready() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let rejecting = scripted_api(&record, |_, _| answer(StatusCode::UNAUTHORIZED, ""));
        let client = world.layer().layer(Strict::new(rejecting));
        // Cold, then with a replay; warm and cooling; elsewhere; warm, then with a replay.
        assert!(is_replayed(&send(&client, keyspaces()).await.unwrap()));
        send(&client, keyspaces()).await.unwrap();
        send(&client, elsewhere()).await.unwrap();
        advance(Duration::from_secs(15)).await;
        assert!(is_replayed(&send(&client, keyspaces()).await.unwrap()));
        assert_eq!(record.count(), 6);
    })
    .await;
}

// Many callers.

#[tokio::test(start_paused = true)]
async fn a_cold_start_of_many_callers_passes_every_queue() {
    limited(async {
        for queue in QUEUES {
            let world = slow_world();
            let stack = queue(api(&world));
            let client = world.layer().layer(stack.service.clone());
            let started = Instant::now();
            for answer in all(CALLERS, caller(&client)).await {
                assert_eq!(answer.unwrap().status(), StatusCode::OK, "{}", stack.name);
            }
            // One wait for the token, and then a turn for each.
            assert!(started.elapsed() <= Duration::from_secs(1) + TURN * 52, "{}: {:?}", stack.name, started.elapsed());
            assert_eq!(world.token_requests(), 1);
            assert_all_capacity_is_there(&stack, &client).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_of_many_callers_passes_every_queue() {
    limited(async {
        for (queue, dialect) in QUEUES.into_iter().flat_map(|queue| DIALECTS.map(|dialect| (queue, dialect))) {
            let world = slow_world();
            world.apsis.set_dialect(dialect);
            let stack = queue(api(&world));
            let client = world.layer().layer(stack.service.clone());
            send(&client, keyspaces()).await.unwrap();
            world.apsis.revoke_tokens();
            let started = Instant::now();
            for answer in all(CALLERS, caller(&client)).await {
                let answer = answer.unwrap();
                assert_eq!(answer.status(), StatusCode::OK, "{}", stack.name);
                assert!(is_replayed(&answer));
            }
            assert!(
                started.elapsed() <= Duration::from_secs(1) + TURN * 104,
                "{}: {:?}",
                stack.name,
                started.elapsed()
            );
            let counters = world.apsis.counters();
            assert_eq!((counters.token_requests, counters.api_rejected, counters.api_accepted), (2, 50, 51));
            assert_all_capacity_is_there(&stack, &client).await;
        }
    })
    .await;
}

// A limit that sheds what it cannot take at once.

#[tokio::test(start_paused = true)]
async fn nobody_is_shed_for_others_that_wait_for_a_token() {
    limited(async {
        let world = slow_world();
        let stack = shed(api(&world));
        let client = world.layer().layer(stack.service.clone());
        for is_cold in [true, false] {
            let waiting = tokio::spawn(client.clone().oneshot(keyspaces()));
            sleep(5 * TURN).await;
            stack.assert_nothing_is_held("while it waits");
            assert!(send(&client, elsewhere()).await.is_ok());
            assert_eq!(is_replayed(&waiting.await.unwrap().unwrap()), !is_cold);
            world.apsis.revoke_tokens();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_has_a_token_and_finds_no_capacity_is_shed_like_anybody() {
    limited(async {
        let world = slow_world();
        let stack = shed(api(&world));
        let client = world.layer().layer(stack.service.clone());
        let answers = all(CALLERS, caller(&client)).await;
        let (served, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((served.len(), failed.len()), (1, CALLERS - 1));
        assert!(failed.iter().all(is_shed));
        assert_eq!((world.token_requests(), world.apsis.counters().api_requests), (1, 1));
        assert_all_capacity_is_there(&stack, &client).await;
    })
    .await;
}

/// The rejection is gone when there is a newer token: from there on the outcome is the replay's.
#[tokio::test(start_paused = true)]
async fn a_replay_that_is_shed_is_the_error_of_the_service_that_shed_it() {
    limited(async {
        let world = slow_world();
        let stack = shed(api(&world));
        let client = world.layer().layer(stack.service.clone());
        send(&client, keyspaces()).await.unwrap();
        world.apsis.revoke_tokens();
        let renewing = tokio::spawn(client.clone().oneshot(keyspaces()));
        sleep(5 * TURN).await;
        world.apsis.script_api_answers([Answer::genuine().delay(Duration::from_secs(5))]);
        let occupying = tokio::spawn(client.clone().oneshot(elsewhere()));
        assert!(is_shed(&renewing.await.unwrap()));
        occupying.await.unwrap().unwrap();
        // The new token is there all the same.
        let next = send(&client, keyspaces()).await.unwrap();
        assert_eq!((next.status(), is_replayed(&next)), (StatusCode::OK, false));
        assert_eq!(world.token_requests(), 2);
        assert_all_capacity_is_there(&stack, &client).await;
    })
    .await;
}

// Dropped.

#[tokio::test(start_paused = true)]
async fn a_response_future_takes_no_capacity_along_wherever_it_is_dropped() {
    limited(async {
        let everywhere: &[Met] =
            &[Met::Nothing, Met::Token(1), Met::Send(1), Met::Answer(1), Met::Token(2), Met::Send(2)];
        // It is ready at once or never: nobody queues for it.
        let without_a_queue: &[Met] = &[Met::Nothing, Met::Send(1), Met::Answer(1), Met::Send(2)];
        let stacks: [(Queue<String>, _, _); 4] =
            [(limit, 3, everywhere), (buffer, 3, everywhere), (rate, 3, everywhere), (shed, 0, without_a_queue)];
        for ((stack, rivals, states), is_shared) in stacks.into_iter().flat_map(|stack| [(stack, false), (stack, true)])
        {
            for when in [When::Pending, When::Woken] {
                let mut met = BTreeSet::new();
                assert!(drop_after(0, when, stack, is_shared, rivals).await.is_some());
                let mut polls = 1;
                while let Some(last) = drop_after(polls, when, stack, is_shared, rivals).await {
                    met.insert(last);
                    polls += 1;
                }
                // Whoever is woken may be beyond what it was woken for.
                if let When::Pending = when {
                    assert_eq!(met, states.iter().copied().collect());
                }
                assert!(polls > states.len(), "{polls}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_and_dropped_takes_no_capacity_along() {
    limited(async {
        for stack in [limit, buffer, rate, shed] {
            let world = World::new();
            let stack = stack(api(&world));
            let client = world.layer().layer(stack.service.clone());
            for _ in 0..3 {
                let mut dropped = client.clone();
                ready(&mut dropped).await;
                drop(dropped);
                assert_all_capacity_is_there(&stack, &client).await;
            }
        }
    })
    .await;
}

// A transport of token requests that has the same capacity.

#[tokio::test(start_paused = true)]
async fn token_requests_may_share_the_queue_of_the_api() {
    limited(async {
        for queue in QUEUES {
            let world = slow_world();
            let stack = queue(api(&world));
            let client = shared(&world, &stack).build().unwrap().layer(stack.service.clone());
            for is_cold in [true, false] {
                for answer in all(CALLERS, caller(&client)).await {
                    assert_eq!(answer.unwrap().status(), StatusCode::OK, "{}", stack.name);
                }
                assert_eq!(world.token_requests(), if is_cold { 1 } else { 2 }, "{}", stack.name);
                assert_all_capacity_is_there(&stack, &client).await;
                world.apsis.revoke_tokens();
            }
        }
    })
    .await;
}

/// The time of an attempt begins before its turn has come.
#[tokio::test(start_paused = true)]
async fn a_shared_queue_that_is_too_long_for_a_token_request_costs_the_renewal_and_nothing_else() {
    limited(async {
        let world = slow_world();
        let stack = rate(api(&world));
        let builder = shared(&world, &stack).attempt_timeout(10 * TURN).flight_timeout(20 * TURN);
        let client = builder.build().unwrap().layer(stack.service.clone());
        world.apsis.set_token_delay(Duration::ZERO);
        send(&client, keyspaces()).await.unwrap();
        world.apsis.revoke_tokens();
        let answers = all(CALLERS, caller(&client)).await.into_iter().map(Result::unwrap);
        // Who was rejected while it waited for its turn has nothing else. Who was rejected later waits for another.
        let (rejected, replayed): (Vec<_>, Vec<_>) = answers.partition(|answer| !is_replayed(answer));
        assert!(rejected.len() > 5 && replayed.len() > 5, "{} and {}", rejected.len(), replayed.len());
        for answer in rejected {
            let outcome = answer.extensions().get();
            assert!(matches!(outcome, Some(AuthOutcome::NotRenewed(AuthError::Unavailable { .. }))), "{outcome:?}");
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
            assert!(!text(answer).await.is_empty());
        }
        assert!(replayed.iter().all(|answer| answer.status() == StatusCode::OK));
        assert_eq!(world.token_requests(), 2);
        assert_all_capacity_is_there(&stack, &client).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_request_that_is_shed_is_made_again() {
    limited(async {
        let world = slow_world();
        let stack = shed(api(&world));
        let client = shared(&world, &stack).build().unwrap().layer(stack.service.clone());
        let cold = tokio::spawn(client.clone().oneshot(keyspaces()));
        let occupying = tokio::spawn(client.clone().oneshot(elsewhere()));
        assert_eq!(cold.await.unwrap().unwrap().status(), StatusCode::OK);
        occupying.await.unwrap().unwrap();
        assert_eq!(world.token_requests(), 1);
        assert_all_capacity_is_there(&stack, &client).await;
    })
    .await;
}

// Helpers.

const DIALECTS: [Dialect; 2] = [Dialect::Unauthorized, Dialect::Gateway];

type Api<R> = BoxCloneSyncService<Request<Full<Bytes>>, Response<R>, BoxError>;

type Queue<R> = fn(Api<R>) -> Stack<R>;

/// A service with little capacity, and what is known of that.
struct Stack<R> {
    name: &'static str,
    service: Api<R>,
    places: Arc<Semaphore>,
    permits: Option<Arc<Semaphore>>,
}

impl<R: 'static> Stack<R> {
    fn new<S>(name: &'static str, service: S, permits: Option<Arc<Semaphore>>) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<R>, Error = BoxError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let service = Strict::new(service);
        let places = Arc::clone(&service.places);
        Self { name, service: BoxCloneSyncService::new(service), places, permits }
    }

    fn assert_nothing_is_held(&self, when: &str) {
        assert_eq!(self.places.available_permits(), PLACES, "{}, {when}: ready, and not called", self.name);
        if let Some(permits) = &self.permits {
            assert_eq!(permits.available_permits(), 1, "{}, {when}: a permit is held", self.name);
        }
    }
}

fn limit<R: 'static>(api: Api<R>) -> Stack<R> {
    let permits = Arc::new(Semaphore::new(1));
    Stack::new("a limit", ConcurrencyLimit::with_semaphore(api, Arc::clone(&permits)), Some(permits))
}

fn shed<R: 'static>(api: Api<R>) -> Stack<R> {
    let permits = Arc::new(Semaphore::new(1));
    let limit = ConcurrencyLimit::with_semaphore(api, Arc::clone(&permits));
    Stack::new("a limit that sheds", LoadShed::new(limit), Some(permits))
}

/// Over a limit, or its only slot would never be taken for long. The permit may be the worker's, who waits for a request.
fn buffer<R: 'static>(api: Api<R>) -> Stack<R> {
    Stack::new("a buffer", Buffer::new(ConcurrencyLimit::new(api, 1), 1), None)
}

fn rate<R: 'static>(api: Api<R>) -> Stack<R> {
    Stack::new("a rate", Buffer::new(RateLimit::new(api, Rate::new(1, TURN)), 1), None)
}

/// A service that panics when it is called without having said that it is ready, and counts who is ready and was not
/// called yet. A clone has yet to get ready.
struct Strict<S> {
    inner: S,
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
}

/// More than anybody takes.
const PLACES: usize = 1_000;

impl<S> Strict<S> {
    fn new(inner: S) -> Self {
        Self { inner, places: Arc::new(Semaphore::new(PLACES)), place: None }
    }
}

impl<S: Clone> Clone for Strict<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), places: Arc::clone(&self.places), place: None }
    }
}

impl<S: Service<R>, R> Service<R> for Strict<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let poll = self.inner.poll_ready(cx);
        self.place = poll.is_ready().then(|| Arc::clone(&self.places).try_acquire_owned().unwrap());
        poll
    }

    fn call(&mut self, request: R) -> S::Future {
        assert!(mem::take(&mut self.place).is_some(), "called without having been ready");
        self.inner.call(request)
    }
}

/// A world in which the API takes its time, and a token takes longer than all the callers at the API.
fn slow_world() -> World {
    let world = World::new();
    world.apsis.set_api_limit(1_000);
    world.apsis.set_api_delay(TURN);
    world.apsis.set_token_delay(Duration::from_secs(1));
    world
}

fn api(world: &World) -> Api<EmulatorBody> {
    let apsis = world.apsis.clone();
    BoxCloneSyncService::new(ServiceExt::<Request<Full<Bytes>>>::map_err(apsis, Into::into))
}

/// A layer whose token requests go the way of the stack.
fn shared(world: &World, stack: &Stack<EmulatorBody>) -> ApsisAuthBuilder {
    world.builder().transport(stack.service.clone())
}

type Sent<R> = Pin<Box<dyn Future<Output = Result<Response<R>, BoxError>> + Send>>;

fn caller<R: Send + 'static>(client: &ApsisAuth<Api<R>>) -> impl Fn(usize) -> Sent<R> + use<R> {
    let client = client.clone();
    move |_| call(&client, keyspaces())
}

fn call<R: Send + 'static>(client: &ApsisAuth<Api<R>>, request: Request<Full<Bytes>>) -> Sent<R> {
    Box::pin(client.clone().oneshot(request))
}

async fn ready<S: Service<Request<Full<Bytes>>>>(service: &mut S) -> &mut S {
    service.ready().await.unwrap_or_else(|_| panic!("never ready"))
}

fn elsewhere() -> Request<Full<Bytes>> {
    Request::get("https://elsewhere.example/").body(Full::default()).unwrap()
}

/// Whether a request that needs no token gets through the inner service.
async fn has_a_permit_left<S>(client: &S) -> bool
where
    S: Service<Request<Full<Bytes>>, Error = BoxError> + Clone,
{
    timeout(Duration::from_secs(1), send(client, elsewhere())).await.is_ok()
}

async fn assert_all_capacity_is_there<R: 'static>(stack: &Stack<R>, client: &ApsisAuth<Api<R>>) {
    for _ in 0..3 {
        stack.assert_nothing_is_held("afterwards");
        let served = timeout(Duration::from_secs(1), send(client, elsewhere())).await;
        assert!(matches!(served, Ok(Ok(_))), "{}: nobody is served any more", stack.name);
    }
}

fn is_replayed<B>(response: &Response<B>) -> bool {
    matches!(response.extensions().get(), Some(AuthOutcome::Replayed))
}

fn is_shed<T>(answer: &Result<T, BoxError>) -> bool {
    answer.as_ref().is_err_and(|error| error.is::<Overloaded>())
}

// A request that is dropped.

/// What a request met last, on its way from a cold start over a rejection and a renewal to the answer to its replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Met {
    Nothing,
    Token(u64),
    Send(u64),
    Answer(u64),
}

#[derive(Clone, Copy)]
enum When {
    /// Right after the poll, in whatever state that left it.
    Pending,
    /// When it would be polled again: what it waited for may be there, and be its own already.
    Woken,
}

/// Drops a request after so many polls, among rivals for the capacity, and sees to it that all is as before. Returns what it
/// met last, or `None` if it was answered before.
async fn drop_after(polls: usize, when: When, stack: Queue<String>, is_shared: bool, rivals: usize) -> Option<Met> {
    let diary = Arc::new(Mutex::new(Met::Nothing));
    let apsis = short_lived_tokens(&diary);
    let stack = stack(apsis.clone());
    let credentials = ClientCredentials::new("id", "secret").unwrap();
    let transport = if is_shared { stack.service.clone() } else { apsis };
    let layer = ApsisAuthLayer::builder(credentials, BASE).transport(transport).random(|| 0.5).build().unwrap();
    let client = layer.layer(stack.service.clone());
    let mut others = JoinSet::new();
    for _ in 0..rivals {
        let client = client.clone();
        others.spawn(async move {
            loop {
                call(&client, elsewhere()).await.unwrap();
            }
        });
    }
    let mut service = client.clone();
    let is_done = is_done_after(polls, when, ready(&mut service).await.call(keyspaces())).await;
    let met = *diary.lock().unwrap();
    drop(service);
    // Wherever they are just now.
    others.shutdown().await;
    // Until a flight that it started has landed.
    sleep(Duration::from_secs(1)).await;
    stack.assert_nothing_is_held(&format!("after {polls} polls"));
    for _ in 0..3 {
        let next = timeout(Duration::from_secs(1), send(&client, keyspaces())).await;
        let next = next.unwrap_or_else(|_| panic!("{} after {polls} polls: nobody is served any more", stack.name));
        assert_eq!(next.unwrap().status(), StatusCode::OK);
        stack.assert_nothing_is_held(&format!("after {polls} polls"));
    }
    (!is_done).then_some(met)
}

/// Whether the future is done after so many polls; if not, it is dropped.
async fn is_done_after(polls: usize, when: When, future: impl Future) -> bool {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|cx| {
        while left > 0 {
            left -= 1;
            if future.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            if left > 0 || matches!(when, When::Woken) {
                return Poll::Pending;
            }
        }
        Poll::Ready(false)
    })
    .await
}

/// An APSIS One that takes its time, and takes every token but the first. Requests from elsewhere are none of its business.
fn short_lived_tokens(diary: &Arc<Mutex<Met>>) -> Api<String> {
    let (diary, tokens, sends) = (Arc::clone(diary), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let next = |count: &AtomicU64| 1 + count.fetch_add(1, Ordering::Relaxed);
    BoxCloneSyncService::new(service_fn(move |request: Request<Full<Bytes>>| {
        let (diary, bearer) = (Arc::clone(&diary), request.headers().get(AUTHORIZATION));
        let note = move |met| *diary.lock().unwrap() = met;
        let answer: Pin<Box<dyn Future<Output = Response<String>> + Send>> = if request.uri().path() == "/oauth/token" {
            let number = next(&tokens);
            Box::pin(async move {
                sleep(2 * TURN).await;
                note(Met::Token(number));
                let token = format!(r#"{{"access_token":"token-{number}","token_type":"Bearer","expires_in":600}}"#);
                answer(StatusCode::OK, &token)
            })
        } else if let Some(bearer) = bearer {
            let number = next(&sends);
            let status = if bearer == "Bearer token-1" { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
            note(Met::Send(number));
            Box::pin(async move {
                sleep(TURN).await;
                note(Met::Answer(number));
                answer(status, "")
            })
        } else {
            Box::pin(async {
                sleep(TURN).await;
                answer(StatusCode::OK, "")
            })
        };
        async { Ok(answer.await) }
    }))
}
