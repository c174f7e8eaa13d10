//! Ten thousand callers come at once and there is no token: one token request, and how long until all are answered.
//!
//! ```sh
//! cargo bench --bench stampede
//! ```
//!
//! Each caller is a task with a service of its own, cloned, and sends one request to an API that answers at once. The token
//! endpoint takes 50 ms. The time is that from the first spawn to the last answer, on a runtime of two workers, one of which
//! spawns the callers; requests, layer and services are made before.
//!
//! Against that stand the same tasks over a service that adds a header that never changes, in two ways:
//!
//! - `after one sleep`: one sleep of 50 ms, and then the tasks, which do not wait. This is the tasks alone plus 50 ms. The
//!   sleep is by the same timer as the endpoint's, so that what the timer rounds up is in both.
//! - `in their sleep`: each task sleeps until the same moment, 50 ms after the start. They are spawned meanwhile, as those
//!   that wait for the token are, so this is the harder one to keep up with; but each has a timer, which costs something.
//!
//! The three take turns. A ratio is that of one round; the figure is the median of the rounds.

#[expect(dead_code, reason = "its services answer at once and are not looked at")]
mod measure;

mod endpoint;
mod figures;
mod rounds;
mod spread;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    iter::zip,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION};
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep, sleep_until},
};
use tower::{Layer, Service, ServiceExt};

use crate::{
    endpoint::Endpoint,
    figures::Figures,
    measure::{Body, StaticHeader, request},
    rounds::rounds,
    spread::Spread,
};

const CALLERS: usize = 10_000;
const ROUNDS: usize = 25;
const TOKEN_TAKES: Duration = Duration::from_millis(50);

fn main() -> io::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let [with_layer, after_one_sleep, in_their_sleep] = rounds(
        ROUNDS,
        &mut [&mut || with_layer(&runtime), &mut || after_one_sleep(&runtime), &mut || in_their_sleep(&runtime)],
    );

    let columns =
        &["against", "callers", "token_requests", "alone_ms", "with_layer_ms", "ratio", "ratio_p10", "ratio_p90"];
    let mut figures = Figures::new("stampede", columns);
    for (against, alone) in [("after one sleep", after_one_sleep), ("in their sleep", in_their_sleep)] {
        let ratio = Spread::of(zip(&with_layer, &alone).map(|(with_layer, alone)| with_layer / alone));
        figures.add([
            against.to_owned(),
            CALLERS.to_string(),
            // Asserted in each round.
            1.to_string(),
            format!("{:.2}", Spread::of(alone).median),
            format!("{:.2}", Spread::of(with_layer.iter().copied()).median),
            format!("{:.3}", ratio.median),
            format!("{:.3}", ratio.p10),
            format!("{:.3}", ratio.p90),
        ]);
    }
    figures.report()
}

/// The milliseconds that the callers take with a layer that has no token yet.
fn with_layer(runtime: &Runtime) -> f64 {
    let (api, endpoint) = (Api::default(), Endpoint::new(TOKEN_TAKES));
    let layer = endpoint.builder("https://api.apsis.one").build().expect("the settings are the default ones");
    let service = layer.layer(api.clone());
    let milliseconds = on_a_worker(runtime, async move { call(&service, |_| ready(())).await });
    assert_eq!(endpoint.requests(), 1);
    assert_eq!(api.stamped(), CALLERS);
    milliseconds
}

fn after_one_sleep(runtime: &Runtime) -> f64 {
    let api = Api::default();
    let service = StaticHeader::new(api.clone());
    let milliseconds = on_a_worker(runtime, async move {
        let start = Instant::now();
        sleep(TOKEN_TAKES).await;
        let slept = milliseconds_since(start);
        slept + call(&service, |_| ready(())).await
    });
    assert_eq!(api.stamped(), CALLERS);
    milliseconds
}

fn in_their_sleep(runtime: &Runtime) -> f64 {
    let api = Api::default();
    let service = StaticHeader::new(api.clone());
    let milliseconds =
        on_a_worker(runtime, async move { call(&service, |start| sleep_until(start + TOKEN_TAKES)).await });
    assert_eq!(api.stamped(), CALLERS);
    milliseconds
}

/// This thread waits for the outcome alone, so that the cores are the workers'.
fn on_a_worker<T: Send + 'static>(runtime: &Runtime, task: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(runtime.spawn(task)).expect("it does not panic")
}

/// Spawns the callers, each of which waits first, and takes the milliseconds until all are answered.
async fn call<S, W>(service: &S, wait: impl Fn(Instant) -> W + Send) -> f64
where
    S: Service<Request<Body>, Response = Response<()>, Error: Send, Future: Send> + Clone + Send + Sync + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let callers: Vec<_> = (0..CALLERS).map(|_| (service.clone(), request(Bytes::new()))).collect();
    let mut tasks = Vec::with_capacity(CALLERS);
    let start = Instant::now();
    for (service, request) in callers {
        let wait = wait(start);
        tasks.push(tokio::spawn(async move {
            wait.await;
            service.oneshot(request).await.is_ok()
        }));
    }
    for task in tasks {
        assert!(task.await.expect("no caller panics"));
    }
    milliseconds_since(start)
}

fn milliseconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// It answers at once, and counts the requests that carry a token.
#[derive(Clone, Default)]
struct Api {
    stamped: Arc<AtomicUsize>,
}

impl Api {
    fn stamped(&self) -> usize {
        self.stamped.load(Ordering::Relaxed)
    }
}

impl Service<Request<Body>> for Api {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_stamped =
            request.headers().get(AUTHORIZATION).is_some_and(|token| token.as_bytes().starts_with(b"Bearer "));
        self.stamped.fetch_add(usize::from(is_stamped), Ordering::Relaxed);
        ready(Ok(Response::new(())))
    }
}
