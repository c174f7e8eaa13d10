//! What a second thread adds: the requests a second of two threads over those of one.
//!
//! ```sh
//! cargo bench --bench scaling
//! ```
//!
//! Each thread has a service of its own, a clone, and sends the measured request in a tight loop for 50 ms, from its making
//! to its answer. The threads start together. What the clones share is what may stand in their way: nothing (`bare`), the
//! memory of one header value (`static header`), or one layer with its token. The first says what this machine can do.
//!
//! All variants take turns, with one thread and with two. A ratio is that of one round; each figure is the median of the
//! rounds.

mod figures;
mod measure;
mod rounds;
mod spread;

use std::{
    io,
    iter::zip,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use crate::{
    figures::Figures,
    measure::{Api, Body, StaticHeader, ours, request, send},
    rounds::rounds,
    spread::Spread,
};

const ROUNDS: usize = 41;
const ROUND_TAKES: Duration = Duration::from_millis(50);

/// Requests between two looks at the clock.
const BATCH: u32 = 64;

fn main() -> io::Result<()> {
    let (bare, fixed) = (Api, StaticHeader::new(Api));
    let (without_replay, with_replay) = (ours(Api, false), ours(Api, true));
    let [bare_one, bare_two, fixed_one, fixed_two, without_one, without_two, with_one, with_two] = rounds(
        ROUNDS,
        &mut [
            &mut || requests_a_second(&bare, 1),
            &mut || requests_a_second(&bare, 2),
            &mut || requests_a_second(&fixed, 1),
            &mut || requests_a_second(&fixed, 2),
            &mut || requests_a_second(&without_replay, 1),
            &mut || requests_a_second(&without_replay, 2),
            &mut || requests_a_second(&with_replay, 1),
            &mut || requests_a_second(&with_replay, 2),
        ],
    );

    let columns = &["variant", "one_thread_per_s", "two_threads_per_s", "ratio", "ratio_p10", "ratio_p90"];
    let mut figures = Figures::new("scaling", columns);
    for (variant, one, two) in [
        ("bare", bare_one, bare_two),
        ("static header", fixed_one, fixed_two),
        ("without replay", without_one, without_two),
        ("with replay", with_one, with_two),
    ] {
        let ratio = Spread::of(zip(&one, &two).map(|(one, two)| two / one));
        figures.add([
            variant.to_owned(),
            format!("{:.0}", Spread::of(one).median),
            format!("{:.0}", Spread::of(two).median),
            format!("{:.3}", ratio.median),
            format!("{:.3}", ratio.p10),
            format!("{:.3}", ratio.p90),
        ]);
    }
    figures.report()
}

/// How many requests so many threads send in a second, all together.
fn requests_a_second<S>(service: &S, threads: usize) -> f64
where
    S: Service<Request<Body>, Response = Response<()>> + Clone + Send,
{
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..threads)
            .map(|_| {
                let (service, start) = (service.clone(), &start);
                scope.spawn(move || {
                    start.wait();
                    send_for_a_round(service)
                })
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().expect("no sender panics")).sum()
    })
}

/// How many requests this thread sends in a second, by a try of one round.
fn send_for_a_round<S>(mut service: S) -> f64
where
    S: Service<Request<Body>, Response = Response<()>>,
{
    let start = Instant::now();
    let mut batches = 0;
    loop {
        for _ in 0..BATCH {
            send(&mut service, request(Bytes::new()));
        }
        batches += 1;
        let elapsed = start.elapsed();
        if elapsed >= ROUND_TAKES {
            return f64::from(batches * BATCH) / elapsed.as_secs_f64();
        }
    }
}
