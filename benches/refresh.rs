//! What a request sees of a refresh: its latency while the token is left alone, and while one refresh follows another.
//!
//! ```sh
//! cargo bench --bench refresh
//! ```
//!
//! Two callers on a runtime of two workers, each with a service of its own, send a burst of requests every millisecond to
//! an API that answers at once. Each request is timed by itself, from the readiness of the service to the answer; what is
//! measured is the layer with replay. In the state `refreshing` a task renews the token again and again: the token endpoint
//! takes 5 ms, and the next token request starts as soon as there is a token, so that there is a flight at any time. The
//! budget is set so high that it does not matter.
//!
//! A request that waited would end the program: it has to be answered when it is polled first. That refreshes happened, and
//! happened only when they should, is asserted by the counts of token requests and of generations.
//!
//! The states take turns. Each figure is that quantile of a round, and of the rounds the median; what is added is the
//! difference to `quiet` in the same round. `timer` is what two readings of the clock take with nothing between them: so
//! much is in each of the other rows, and nothing finer can be told.

#[expect(dead_code, reason = "the layer has an endpoint of its own")]
mod measure;

mod endpoint;
mod figures;
mod rounds;
mod spread;

use std::{
    array,
    hint::black_box,
    io,
    iter::{repeat_with, zip},
    time::{Duration, Instant},
};

use apsis_auth::{ApsisAuth, TokenHandle};
use bytes::Bytes;
use tokio::{
    runtime::{Builder, Runtime},
    time::{MissedTickBehavior, interval},
};
use tower::Layer;

use crate::{
    endpoint::Endpoint,
    figures::Figures,
    measure::{Api, request, send},
    rounds::rounds,
    spread::{Spread, quantile},
};

const ROUNDS: usize = 25;
const TOKEN_TAKES: Duration = Duration::from_millis(5);

const CALLERS: usize = 2;
const BURSTS: usize = 400;
const BURST: usize = 50;
const EVERY: Duration = Duration::from_millis(1);

/// The quantiles, in thousandths.
const QUANTILES: [usize; 3] = [500, 990, 999];

fn main() -> io::Result<()> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let endpoint = Endpoint::new(TOKEN_TAKES);
    let builder = endpoint.builder("https://api.apsis.one").token_requests_per_minute(u32::MAX);
    let layer = builder.build().expect("any budget but zero is one");
    let (service, handle) = (layer.layer(Api), layer.handle());
    runtime.block_on(handle.warm_up()).expect("the endpoint always has a token");

    let states = rounds(
        ROUNDS,
        &mut [&mut timer, &mut || quiet(&runtime, &service, &endpoint), &mut || {
            refreshing(&runtime, &service, &endpoint, &handle)
        }],
    );

    let mut figures = Figures::new(
        "refresh",
        &[
            "state",
            "requests",
            "refreshes",
            "p50_ns",
            "p99_ns",
            "p99_9_ns",
            "added_p50_ns",
            "added_p50_p10",
            "added_p50_p90",
            "added_p99_ns",
            "added_p99_p10",
            "added_p99_p90",
            "added_p99_9_ns",
            "added_p99_9_p10",
            "added_p99_9_p90",
        ],
    );
    for (state, seen) in zip(["timer", "quiet", "refreshing"], &states) {
        let requests = if state == "timer" { 0 } else { ROUNDS * CALLERS * BURSTS * BURST };
        let refreshes: usize = seen.iter().map(|round| round.refreshes).sum();
        let latencies =
            array::from_fn::<_, 3, _>(|which| Spread::of(seen.iter().map(|round| round.latencies[which])).median);
        let added = array::from_fn::<_, 3, _>(|which| {
            Spread::of(zip(seen, &states[1]).map(|(round, quiet)| round.latencies[which] - quiet.latencies[which]))
        });
        let added = added.map(|Spread { p10, median, p90 }| [median, p10, p90].map(|added| format!("{added:.0}")));
        // A timer is no request, and adds to none.
        let added = if state == "timer" { Default::default() } else { added };
        figures.add(
            [state.to_owned(), requests.to_string(), refreshes.to_string()]
                .into_iter()
                .chain(latencies.map(|latency| format!("{latency:.0}")))
                .chain(added.into_iter().flatten()),
        );
    }
    figures.report()
}

struct Round {
    latencies: Latencies,
    refreshes: usize,
}

/// The quantiles, in nanoseconds.
type Latencies = [f64; 3];

fn timer() -> Round {
    let taken = repeat_with(|| black_box(Instant::now()).elapsed()).take(CALLERS * BURSTS * BURST);
    Round { latencies: quantiles(taken.collect()), refreshes: 0 }
}

fn quiet(runtime: &Runtime, service: &ApsisAuth<Api>, endpoint: &Endpoint) -> Round {
    let before = endpoint.requests();
    let latencies = runtime.block_on(call(service));
    assert_eq!(endpoint.requests(), before);
    Round { latencies, refreshes: 0 }
}

fn refreshing(runtime: &Runtime, service: &ApsisAuth<Api>, endpoint: &Endpoint, handle: &TokenHandle) -> Round {
    let before = endpoint.requests();
    let (latencies, last) = runtime.block_on(async {
        let renewing = tokio::spawn({
            let handle = handle.clone();
            async move {
                loop {
                    handle.renew().await.expect("the endpoint always has a token");
                }
            }
        });
        let latencies = call(service).await;
        renewing.abort();
        assert!(renewing.await.is_err_and(|error| error.is_cancelled()));
        // Takes part in what is under way, so that nothing of it is in the next round.
        (latencies, handle.renew().await.expect("the endpoint always has a token"))
    });
    let refreshes = endpoint.requests() - before;
    // One in 5 ms, if no timer were late.
    assert!(refreshes > BURSTS / 10, "{refreshes} refreshes are too few");
    assert_eq!(last.generation(), endpoint.requests() as u64);
    Round { latencies, refreshes }
}

/// Sends all the requests of a round.
async fn call(service: &ApsisAuth<Api>) -> Latencies {
    let callers: Vec<_> = (0..CALLERS).map(|_| tokio::spawn(bursts(service.clone()))).collect();
    let mut taken = Vec::with_capacity(CALLERS * BURSTS * BURST);
    for caller in callers {
        taken.extend(caller.await.expect("no request waits"));
    }
    quantiles(taken)
}

/// How long each request took. The requests of a burst are made before it.
async fn bursts(mut service: ApsisAuth<Api>) -> Vec<Duration> {
    let mut taken = Vec::with_capacity(BURSTS * BURST);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..BURSTS {
        let requests: Vec<_> = repeat_with(|| request(Bytes::new())).take(BURST).collect();
        ticks.tick().await;
        for request in requests {
            let start = Instant::now();
            send(&mut service, request);
            taken.push(start.elapsed());
        }
    }
    taken
}

fn quantiles(mut taken: Vec<Duration>) -> Latencies {
    taken.sort();
    QUANTILES.map(|per_mille| quantile(&taken, per_mille).as_secs_f64() * 1e9)
}
