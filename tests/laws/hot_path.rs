//! Laws 34 and 35: what a request with a token at hand costs in memory, and what many renewals leave behind.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    future::{poll_fn, ready},
    hint::black_box,
    iter::{repeat_n, repeat_with, zip},
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use apsis_auth::{
    ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, AuthOutcome, ClientCredentials, ReplayBody, ReplayableBody,
    TokenHandle,
};
use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HOST},
};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use tokio::{
    runtime::Builder,
    spawn,
    task::yield_now,
    time::{advance, sleep},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::{
    allocator::{Blocks, Traffic, counting},
    support::{BASE, World, limited, on_a_thread},
};

/// Accepted, and neither accepted nor rejected.
const STATUSES: [StatusCode; 2] = [StatusCode::OK, StatusCode::NOT_FOUND];

#[test]
fn blocks_of_this_thread_are_counted() {
    let ((), traffic) = counting(|| {
        let mut grows = black_box(Vec::<u8>::with_capacity(10));
        grows.reserve_exact(30);
        drop(black_box((vec![0_u8; 5], grows)));
    });
    let blocks = Blocks { number: 3, bytes: 10 + 30 + 5 };
    assert_eq!(traffic, Traffic { taken: blocks, given_back: blocks });
}

#[test]
fn blocks_of_other_threads_are_not_counted() {
    let barrier = Arc::new(Barrier::new(2));
    let other = thread::spawn({
        let barrier = Arc::clone(&barrier);
        move || {
            barrier.wait();
            drop(black_box(vec![0_u8; 5]));
            barrier.wait();
        }
    });
    let ((), traffic) = counting(|| {
        barrier.wait();
        barrier.wait();
    });
    other.join().unwrap();
    assert_eq!(traffic, Traffic::NONE);
}

// Law 34: without replay, nothing.

#[tokio::test(start_paused = true)]
async fn without_replay_no_step_of_a_request_costs_a_block() {
    limited(async {
        assert_free(full).await;
        assert_free(Empty::<Bytes>::new).await;
        assert_free(|| ()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_replay_a_thousand_requests_of_one_service_cost_no_block() {
    limited(async {
        let mut client = warm(World::new().builder().without_replay(), api(StatusCode::OK)).await;
        let mut bare = api(StatusCode::OK);

        let cost: Traffic = (0..1_000).map(|_| send(&mut client, request(full())).0.total()).sum();

        assert_eq!(cost, (0..1_000).map(|_| send(&mut bare, request(full())).0.total()).sum());
        assert_eq!(cost.taken, Blocks::NONE);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_replay_a_look_at_the_wall_clock_costs_no_block() {
    limited(async {
        let (world, looks) = (World::new(), Arc::new(AtomicUsize::new(0)));
        let (wall, looked) = (world.wall.clone(), Arc::clone(&looks));
        let builder = world.builder().without_replay().wall_clock(move || {
            looked.fetch_add(1, Ordering::Relaxed);
            wall.now()
        });
        let mut client = warm(builder, api(StatusCode::OK)).await;
        let (bare, _) = send(&mut api(StatusCode::OK), request(()));

        for (seconds, expected) in [(4, 0), (1, 1), (4, 0), (1, 1)] {
            advance(Duration::from_secs(seconds)).await;
            looks.store(0, Ordering::Relaxed);
            let (cost, _) = send(&mut client, request(()));
            assert_eq!((cost, looks.load(Ordering::Relaxed)), (bare, expected));
        }
    })
    .await;
}

/// An empty map of header fields has no memory yet, and a full one has no more.
#[tokio::test(start_paused = true)]
async fn without_replay_a_header_map_without_room_grows_as_it_does_for_any_field() {
    limited(async {
        let mut value = HeaderValue::from_static("Bearer");
        value.set_sensitive(true);
        let mut client = warm(World::new().builder().without_replay(), api(StatusCode::OK)).await;
        for headers in [HeaderMap::new, full_map] {
            let [mut bare, stamped] = [(); 2].map(|()| {
                let mut request = request(());
                *request.headers_mut() = headers();
                request
            });

            let (_, insertion) = counting(|| bare.headers_mut().insert(AUTHORIZATION, value.clone()));
            let (sending, _) = send(&mut api(StatusCode::OK), bare);

            assert_ne!(insertion, Traffic::NONE);
            assert_eq!(send(&mut client, stamped).0.total(), insertion + sending.total());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_cloned_once_for_a_replay_and_without_replay_not_at_all() {
    limited(async {
        let clones = Arc::new(AtomicUsize::new(0));
        let builder = || World::new().builder();
        for (builder, expected) in [(builder(), 1), (builder().without_replay(), 0)] {
            let mut client = warm(builder, Counted { clones: Arc::clone(&clones) }).await;
            clones.store(0, Ordering::Relaxed);
            send(&mut client, request(()));
            assert_eq!(clones.load(Ordering::Relaxed), expected);
        }
    })
    .await;
}

// With replay, so much and no more.

#[tokio::test(start_paused = true)]
async fn with_replay_a_request_costs_a_clone_of_its_body_and_its_extensions_and_nothing_else() {
    limited(async {
        assert_costs_a_copy(full).await;
        assert_costs_a_copy(|| "profile".to_owned()).await;
        assert_costs_a_copy(Empty::<Bytes>::new).await;
        assert_costs_a_copy(|| ()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn with_replay_a_thousand_requests_cost_the_clones_of_the_inner_service_and_nothing_else() {
    limited(async {
        let kib = Bytes::from("x".repeat(1024));
        // To share it takes a block once.
        let _shared = kib.clone();
        let request = |body: &Bytes| heads().nth(2).unwrap().map(|()| Full::new(body.clone()));
        for (weight, body) in [(0, Bytes::new()), (48, kib.clone())] {
            let mut inner = Heavy { api: api(StatusCode::OK), _weight: vec![0; weight] };
            let mut client = warm(World::new().builder(), inner.clone()).await;
            send(&mut client, request(&body));
            let (bare, _) = send(&mut inner, request(&body));
            let ((), clone) = counting(|| drop(inner.clone()));

            let kept: Traffic = (0..1_000).map(|_| send(&mut client, request(&body)).0.total()).sum();
            let cloned: Traffic = (0..1_000)
                .map(|_| {
                    let (mut client, cloning) = counting(|| client.clone());
                    let (cost, _) = send(&mut client, request(&body));
                    cloning + cost.total() + counting(|| drop(client)).1
                })
                .sum();

            assert_eq!(clone.taken, Blocks { number: usize::from(weight > 0), bytes: weight });
            assert_eq!(kept, repeat_n(bare.total() + clone, 1_000).sum());
            assert_eq!(cloned, repeat_n(bare.total() + clone + clone, 1_000).sum());
        }
    })
    .await;
}

/// The first request of a thread takes the buffer, and what holds it until it is used again. A longer head takes another
/// one, and no more than that.
#[test]
fn a_head_is_kept_in_a_buffer_that_is_used_again_and_grows_once() {
    const POOL: Blocks = Blocks { number: 1, bytes: 4 * size_of::<Vec<u8>>() };

    on_a_thread(async || {
        let mut client = warm(World::new().builder(), api(StatusCode::OK)).await;
        let mut cost = |length| send(&mut client, with_head_of(length)).0.total().taken;
        let block = |bytes| Blocks { number: 1, bytes };

        assert_eq!([cost(200), cost(200), cost(512)], [block(512) + POOL, Blocks::NONE, Blocks::NONE]);
        assert_eq!([cost(513), cost(513), cost(1_024)], [block(1_024), Blocks::NONE, Blocks::NONE]);
        assert_eq!([cost(4_097), cost(8_192), cost(8_192)], [block(8_192), Blocks::NONE, Blocks::NONE]);
        assert_eq!([cost(200), cost(8_192)], [Blocks::NONE, Blocks::NONE]);
        // That is not kept.
        assert_eq!([cost(8_193), cost(8_193)], [block(16_384), block(512) + block(16_384)]);
        assert_eq!([cost(200), cost(200)], [block(512), Blocks::NONE]);
    });
}

/// The first look of a thread into an `ArcSwap` takes a block, unless another thread left one.
fn take_what_a_thread_needs() {
    drop(ArcSwap::from_pointee(()).load());
}

#[test]
fn a_burst_leaves_a_bounded_number_of_buffers_and_another_one_no_more() {
    on_a_thread(async || {
        let client = warm(World::new().builder(), api(StatusCode::OK)).await;
        for (length, buffer) in [(200, 512), (8_192, 8_192)] {
            let client = client.clone();
            thread::spawn(move || {
                take_what_a_thread_needs();
                let burst = |number: usize| {
                    let mut futures = Vec::with_capacity(number);
                    let ((), traffic) = counting(|| {
                        futures.extend(repeat_with(|| client.clone().call(with_head_of(length))).take(number));
                        futures.clear();
                    });
                    left(traffic)
                };
                let pool = Blocks { number: 1, bytes: 64 * size_of::<Vec<u8>>() };

                assert_eq!(burst(1_000), Blocks { number: 64, bytes: 64 * buffer } + pool);
                assert_eq!([burst(1_000), burst(64), burst(1)], [Blocks::NONE; 3]);
            })
            .join()
            .unwrap();
        }
    });
}

#[test]
fn heads_that_are_too_long_to_be_kept_leave_nothing() {
    on_a_thread(async || {
        let client = warm(World::new().builder(), api(StatusCode::OK)).await;
        let mut futures = Vec::with_capacity(100);
        let ((), traffic) = counting(|| {
            futures.extend(repeat_with(|| client.clone().call(with_head_of(8_193))).take(100));
            futures.clear();
        });
        assert_eq!(left(traffic), Blocks::NONE);
        assert!(traffic.taken.bytes > 100 * 16_384);
    });
}

/// Requests that are made on one thread and dropped on another do not pile up there.
#[test]
fn a_thread_that_drops_the_requests_of_others_keeps_no_more_buffers_than_its_own() {
    on_a_thread(async || {
        let client = warm(World::new().builder(), api(StatusCode::OK)).await;
        let calls =
            |number| -> Vec<_> { repeat_with(|| client.clone().call(with_head_of(200))).take(number).collect() };
        let (first, second) = (calls(1_000), calls(1_000));
        let mut own = client.clone();
        thread::spawn(move || {
            take_what_a_thread_needs();
            let [first, second] = [first, second].map(|calls| counting(|| drop(calls)).1);
            // What holds the buffers grows step by step.
            let pool = (4 + 8 + 16 + 32 + 64) * size_of::<Vec<u8>>();
            assert_eq!(first.taken, Blocks { number: 5, bytes: pool });
            assert_eq!(second.taken, Blocks::NONE);
            assert_eq!(second.given_back.number, first.given_back.number - 4 + 64);
            assert_eq!(send(&mut own, with_head_of(200)).0.total().taken, Blocks::NONE);
        })
        .join()
        .unwrap();
    });
}

/// Whatever the body has of data, only the frames are kept.
#[tokio::test(start_paused = true)]
async fn a_body_that_streams_costs_the_same_few_blocks_each_time_and_no_copy_of_its_data() {
    limited(async {
        let data = Bytes::from("x".repeat(64 * 1024));
        let mut client = warm(World::new().builder(), reading_api()).await;
        let mut cost = || {
            let frames = (0..8).map(|number| data.slice(number * 8 * 1024..(number + 1) * 8 * 1024)).collect();
            send(&mut client, request(ReplayBody::new(Frames(frames)))).0.total().taken
        };
        cost();
        let first = cost();
        assert!(first.number <= 8 && first.bytes < 8 * 1024, "{first:?}");
        for _ in 0..100 {
            assert_eq!(cost(), first);
        }
    })
    .await;
}

// Out of scope, what the caller is told.

#[tokio::test(start_paused = true)]
async fn a_request_out_of_scope_costs_the_mark_in_its_response_and_nothing_else() {
    limited(async {
        // Each event is made known to all subscribers of the process when it is first met: that is their cost.
        let mut rehearsal = warm(World::new().builder(), api(StatusCode::OK)).await;
        for request in strangers() {
            send(&mut rehearsal, request);
        }

        let world = World::new();
        for builder in [world.builder().without_replay(), world.builder()] {
            let mut client = warm(builder, api(StatusCode::OK)).await;
            // The first one warns, the others do not.
            for (request, same) in zip(strangers(), strangers()) {
                let what = format!("{request:?}");
                let (bare, mut answer) = send(&mut api(StatusCode::OK), same);
                let (_, mark) = counting(|| answer.extensions_mut().insert(AuthOutcome::OutOfScope));

                let (cost, answer) = send(&mut client, request);

                assert!(!answer.body().is_stamped, "{what}");
                assert_eq!(cost, Cost { answer: bare.answer + mark, ..bare }, "{what}");
            }
        }
    })
    .await;
}

// Law 35: no stale generation, no growth.

#[test]
fn ten_thousand_renewals_leave_nothing_behind() {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let credentials = ClientCredentials::new("id", "secret").unwrap();
    let layer = ApsisAuthLayer::builder(credentials, BASE)
        .transport(two_tokens())
        .token_requests_per_minute(10)
        .build()
        .unwrap();
    let (client, handle) = (layer.layer(api(StatusCode::OK)), layer.handle());
    let renew = |times| {
        runtime.block_on(limited(async {
            for _ in 0..times {
                handle.renew().await.unwrap();
                let answer = client.clone().oneshot(request(full())).await.unwrap();
                assert!(answer.into_body().is_stamped);
                sleep(Duration::from_secs(10)).await;
            }
        }));
    };
    // Until everything has the size that it needs.
    renew(100);

    let ((), traffic) = counting(|| renew(9_900));

    assert_eq!(handle.snapshot().token.unwrap().generation, 10_000);
    assert_eq!(traffic.taken, traffic.given_back);
}

#[test]
fn a_renewal_each_millisecond_under_load_leaves_no_stale_token_in_use_and_nothing_behind() {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let layer = with_numbered_tokens();
    let (client, handle) = (layer.layer(telling_api()), layer.handle());
    let crossed = Arc::new(AtomicUsize::new(0));
    let renew = |times| {
        runtime.block_on(limited(async {
            handle.renew().await.unwrap();
            let goes_on = Arc::new(AtomicBool::new(true));
            let callers = [(); 4].map(|()| {
                let (client, handle) = (client.clone(), handle.clone());
                let (goes_on, crossed) = (Arc::clone(&goes_on), Arc::clone(&crossed));
                spawn(async move {
                    while goes_on.load(Ordering::Relaxed) {
                        // Before, during and after the flight of this millisecond.
                        for _ in 0..8 {
                            let seen = newest(&handle);
                            assert!(stamped_by(&client).await >= seen);
                            crossed.fetch_add(usize::from(newest(&handle) > seen), Ordering::Relaxed);
                        }
                        sleep(Duration::from_millis(1)).await;
                    }
                })
            });
            for _ in 0..times {
                sleep(Duration::from_millis(1)).await;
                let renewed = handle.renew().await.unwrap();
                assert_eq!(stamped_by(&client).await, renewed.generation());
            }
            goes_on.store(false, Ordering::Relaxed);
            for caller in callers {
                caller.await.unwrap();
            }
        }));
        // The budget keeps a minute's attempts.
        runtime.block_on(advance(Duration::from_secs(60)));
    };
    // Until everything has the size that it needs.
    renew(1_000);
    crossed.store(0, Ordering::Relaxed);

    let ((), traffic) = counting(|| renew(1_000));

    assert!(crossed.load(Ordering::Relaxed) >= 1_000, "a request is under way at each swap");
    assert_eq!(traffic.taken, traffic.given_back);
}

#[test]
fn a_thread_that_saw_a_swap_stamps_no_older_token() {
    let layer = with_numbered_tokens();
    let (client, handle, newest) = (layer.layer(telling_api()), layer.handle(), AtomicU64::new(0));
    let renew = async || newest.store(handle.renew().await.unwrap().generation(), Ordering::Release);
    let runtime = || Builder::new_current_thread().enable_time().build().unwrap();
    let renewing = runtime();
    renewing.block_on(renew());
    let started = Instant::now();
    let call = async || {
        let (mut swaps, mut last) = (0, 0);
        while swaps < 200 {
            assert!(started.elapsed() < Duration::from_secs(60), "the token is renewed all the time");
            let seen = newest.load(Ordering::Acquire);
            assert!(stamped_by(&client).await >= seen);
            swaps += usize::from(mem::replace(&mut last, seen) < seen);
        }
    };
    thread::scope(|scope| {
        let callers = [(); 2].map(|()| scope.spawn(|| runtime().block_on(call())));
        while !callers.iter().all(ScopedJoinHandle::is_finished) {
            renewing.block_on(renew());
        }
    });
}

// What is measured.

/// What each step of a request took and gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    ready: Traffic,
    call: Traffic,
    answer: Traffic,
    end: Traffic,
}

impl Cost {
    fn total(self) -> Traffic {
        self.ready + self.call + self.answer + self.end
    }
}

/// Sends a request step by step: ready, called, polled until it is answered, dropped.
fn send<S, B>(service: &mut S, request: Request<B>) -> (Cost, Response<Arrived>)
where
    S: Service<Request<B>, Response = Response<Arrived>, Error = BoxError>,
{
    let mut cx = Context::from_waker(Waker::noop());
    let (is_ready, ready) = counting(|| service.poll_ready(&mut cx));
    assert!(matches!(is_ready, Poll::Ready(Ok(()))));
    let (future, call) = counting(|| service.call(request));
    let mut future = pin!(Some(future));
    let (response, answer) = counting(|| {
        loop {
            if let Poll::Ready(response) = future.as_mut().as_pin_mut().unwrap().poll(&mut cx) {
                break response.unwrap();
            }
        }
    });
    let ((), end) = counting(|| future.set(None));
    (Cost { ready, call, answer, end }, response)
}

/// What was taken and not given back.
fn left(traffic: Traffic) -> Blocks {
    let Traffic { taken, given_back } = traffic;
    Blocks { number: taken.number - given_back.number, bytes: taken.bytes - given_back.bytes }
}

async fn assert_free<B: ReplayableBody + fmt::Debug>(body: impl Fn() -> B) {
    for status in STATUSES {
        let mut client = warm(World::new().builder().without_replay(), api(status)).await;
        for (request, same) in zip(requests(&body), requests(&body)) {
            let what = format!("{status}, {request:?}");
            let (bare, _) = send(&mut api(status), same);

            let (cost, answer) = send(&mut client, request);

            assert!(answer.status() == status && answer.body().is_stamped, "{what}");
            assert_eq!(cost, bare, "{what}");
        }
    }
}

async fn assert_costs_a_copy<B: ReplayableBody + Clone + fmt::Debug>(body: impl Fn() -> B) {
    for status in STATUSES {
        let mut client = warm(World::new().builder(), api(status)).await;
        // Until the buffer that the heads are kept in has the size that it needs.
        for request in requests(&body) {
            send(&mut client, request);
        }
        for (request, same) in zip(requests(&body), requests(&body)) {
            let what = format!("{status}, {request:?}");
            let (copy, copying) = counting(|| (same.extensions().clone(), same.body().clone()));
            let (bare, _) = send(&mut api(status), same);
            let ((), forgetting) = counting(|| drop(copy));

            let (cost, answer) = send(&mut client, request);

            assert!(answer.status() == status && answer.body().is_stamped, "{what}");
            assert_eq!(cost.total(), copying + bare.total() + forgetting, "{what}");
        }
    }
}

// What is sent.

fn request<B>(body: B) -> Request<B> {
    Request::post(format!("{BASE}/audience/keyspaces")).header(ACCEPT, "*/*").body(body).unwrap()
}

/// Requests in scope, each with room for a field.
fn requests<B>(body: impl Fn() -> B) -> Vec<Request<B>> {
    let with = |fields: &[(HeaderName, &str)]| {
        let mut request = request(body());
        for (name, value) in fields {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        request.extensions_mut().insert("extension".to_owned());
        request
    };
    let mut requests = vec![
        with(&[]),
        with(&[(AUTHORIZATION, "Basic x"), (AUTHORIZATION, "Digest x")]),
        with(&[]),
        with(&[(HOST, "API.apsis.one:443")]),
    ];
    // In origin form, without a `Host` and with it.
    for request in &mut requests[2..] {
        *request.uri_mut() = "/audience/keyspaces".parse().unwrap();
    }
    requests.extend(heads().map(|head| head.map(|()| body())));
    requests
}

/// Heads whose clones would take blocks, each with room for a field. The longest are longer than a buffer is at first.
fn heads() -> impl Iterator<Item = Request<()>> {
    [(0, 0), (6, 10), (6, 100), (6, 1_000)].into_iter().map(|(fields, length)| {
        let method = Method::from_bytes(&b"A-METHOD-".repeat(5)).unwrap();
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = format!("{BASE}/audience/keyspaces?{fields}").parse().unwrap();
        for number in 0..fields {
            let (name, value) = (format!("x-custom-{number}"), number.to_string().repeat(length));
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        request.headers_mut().reserve(1);
        request
    })
}

/// A request whose head is so long as it is kept: each part with its end.
fn with_head_of(length: usize) -> Request<()> {
    let parts = "GET\nhttps\napi.apsis.one\n/\nx\n\n".len();
    let mut request = Request::get(BASE).body(()).unwrap();
    request.headers_mut().insert("x", "v".repeat(length - parts).parse().unwrap());
    request
}

fn strangers() -> [Request<Full<Bytes>>; 2] {
    let other_origin = Request::get("https://evil.example/").body(full()).unwrap();
    let other_host = Request::get("/").header(HOST, "evil.example").body(full()).unwrap();
    [other_origin, other_host]
}

fn full() -> Full<Bytes> {
    Full::new(Bytes::from("profile".to_owned()))
}

fn full_map() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    while headers.len() < headers.capacity() {
        let name = format!("x-{}", headers.len());
        headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("x"));
    }
    headers
}

// Who answers.

/// What an API saw of a request.
#[derive(Debug)]
struct Arrived {
    is_stamped: bool,
}

/// Answers at the second poll, and takes no block to do so.
fn api<B>(
    status: StatusCode,
) -> impl Service<Request<B>, Response = Response<Arrived>, Error = BoxError, Future: Send> + Clone + Send + use<B> {
    service_fn(move |request: Request<B>| {
        let mut answer = Some(arrival(status, &request));
        let mut is_polled = false;
        poll_fn(move |cx| {
            if mem::replace(&mut is_polled, true) {
                Poll::Ready(Ok(answer.take().unwrap()))
            } else {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
    })
}

/// An API that weighs as much as its clones.
#[derive(Clone)]
struct Heavy<S> {
    api: S,
    _weight: Vec<u8>,
}

impl<S: Service<R>, R> Service<R> for Heavy<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.api.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.api.call(request)
    }
}

/// An API that reads what it is sent, and takes no block to do so.
fn reading_api() -> impl Service<Request<ReplayBody<Frames>>, Response = Response<Arrived>, Error = BoxError> + Clone {
    service_fn(async |mut request: Request<ReplayBody<Frames>>| {
        let mut length = 0;
        while let Some(frame) = request.body_mut().frame().await {
            length += frame?.into_data().unwrap().len();
        }
        assert_eq!(length, 64 * 1024);
        Ok(arrival(StatusCode::OK, &request))
    })
}

/// A body whose frames are there at once.
struct Frames(VecDeque<Bytes>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

/// An API whose clones are counted.
struct Counted {
    clones: Arc<AtomicUsize>,
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.clones.fetch_add(1, Ordering::Relaxed);
        Self { clones: Arc::clone(&self.clones) }
    }
}

impl<B> Service<Request<B>> for Counted {
    type Response = Response<Arrived>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Response<Arrived>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(arrival(StatusCode::OK, &request)))
    }
}

fn arrival<B>(status: StatusCode, request: &Request<B>) -> Response<Arrived> {
    let token = request.headers().get(AUTHORIZATION);
    let is_stamped = token.is_some_and(|token| token.as_bytes().starts_with(b"Bearer "));
    let mut response = Response::new(Arrived { is_stamped });
    *response.status_mut() = status;
    response
}

/// A service of a layer that has a token.
async fn warm<S: Clone>(builder: ApsisAuthBuilder, inner: S) -> ApsisAuth<S> {
    let layer = builder.build().unwrap();
    layer.handle().warm_up().await.unwrap();
    layer.layer(inner)
}

/// A token endpoint that issues one and the other in turn.
fn two_tokens()
-> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static {
    let asked = Arc::new(AtomicUsize::new(0));
    service_fn(move |_: Request<Full<Bytes>>| {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let answer = [r#"{"access_token":"one"}"#, r#"{"access_token":"two"}"#][number % 2];
        ready(Ok(Response::new(Full::new(Bytes::from_static(answer.as_bytes())))))
    })
}

// Tokens that are told apart.

/// A layer whose tokens are named by their generation, and whose budget is without end.
fn with_numbered_tokens() -> ApsisAuthLayer {
    let asked = Arc::new(AtomicUsize::new(0));
    let endpoint = service_fn(move |_: Request<Full<Bytes>>| {
        let number = asked.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            // So that requests come while it is under way.
            for _ in 0..4 {
                yield_now().await;
            }
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!(r#"{{"access_token":"{number}"}}"#))))
        }
    });
    let credentials = ClientCredentials::new("id", "secret").unwrap();
    ApsisAuthLayer::builder(credentials, BASE).transport(endpoint).token_requests_per_minute(u32::MAX).build().unwrap()
}

/// An API that answers, at the second poll, with the generation that a request was stamped with.
fn telling_api() -> impl Service<Request<Full<Bytes>>, Response = Response<u64>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    service_fn(async |request: Request<Full<Bytes>>| {
        let token = request.headers()[AUTHORIZATION].to_str()?;
        let generation = token.strip_prefix("Bearer ").expect("it is stamped").parse()?;
        yield_now().await;
        Ok(Response::new(generation))
    })
}

/// The generation that a request is stamped with.
async fn stamped_by<S>(client: &S) -> u64
where
    S: Service<Request<Full<Bytes>>, Response = Response<u64>, Error = BoxError> + Clone,
{
    client.clone().oneshot(request(full())).await.unwrap().into_body()
}

fn newest(handle: &TokenHandle) -> u64 {
    handle.snapshot().token.unwrap().generation
}
