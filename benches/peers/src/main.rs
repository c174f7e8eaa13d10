//! What a request with a cached token costs over one without, with ours and with its peers.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --save benches/data
//! ```
//!
//! Each peer, in its newest version and by its public API, gets one token of 1 KiB, valid for hours, from a token endpoint
//! in this process. Then requests are sent through it to a service that answers at once, or, where the peer only hands out
//! its token, the header is made from that and put on. The requests are those of `measure`, with an empty body and with
//! one of 1 KiB. Before, one request is sent to a service that looks at it: the token is on it once, and nothing else has
//! changed. No peer asks for a second token.
//!
//! Futures are polled by hand, once, inside a tokio runtime that stands still: with a token at hand they are ready, and a
//! peer's background tasks cost nothing while it is measured.
//!
//! - **Nanoseconds**: the variants take turns in short rounds, in another order each time. From a round's time of each,
//!   the bare service's time in that round is taken. `ns` is the median over the rounds, `ns_p10` and `ns_p90` bound four
//!   fifths of them; `times_the_limit` is `ns` divided by that of `static-header`. Meanwhile the counting allocator looks
//!   at a flag for each block, and counts nothing.
//! - **Instructions**: callgrind counts those of 1000 and of 3000 requests in a child of this process; the difference
//!   of both is that of 2000 requests. It repeats exactly, but for peers that keep a map which is seeded at random:
//!   gcp-auth, and a little yup-oauth2 and aws-smithy. Without valgrind the column has a `-`.
//! - **Allocations** and **bytes**: the blocks that a request asks for. A block that grows is asked for anew.
//!
//! All are over the bare service, which makes and drops the same requests.
//!
//! The variants that are not a crate's: `static-header`, the least that a layer can do; `floor`, the least that finds a good
//! token and looks at the answer, without renewals, replays or errors; `tower-retry-static-header`, which
//! keeps a `Request::clone` by tower's `Retry` and sends it again after a 401; `mutex-by-hand` and `rwlock-by-hand`, tokio's,
//! around a token and its expiry. Three can send a request again: tower's `Retry`, `ours-with-replay` and
//! `cf-gears-bearer-auto-refresh`.

#![allow(clippy::print_stderr, reason = "what is missing or asked wrongly is said")]

mod allocator;
mod endpoint;
#[path = "../../figures/mod.rs"]
mod figures;
#[path = "../../floor/mod.rs"]
mod floor;
mod instructions;
#[path = "../../measure/mod.rs"]
#[allow(dead_code, reason = "others measure with it, too")]
mod measure;
mod peers;
mod variant;
mod versions;

use std::{
    env, io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::runtime::Builder;

use crate::{
    allocator::{Blocks, counting},
    endpoint::Endpoint,
    figures::Figures,
    instructions::COUNT,
    peers::{BARE, LIMIT, VARIANTS},
    variant::{Surroundings, Variant},
};

const BODIES: [usize; 2] = [0, 1024];

const WARM_UP: usize = 20;
const ROUNDS: usize = 1000;
const REQUESTS_A_ROUND: u32 = 500;
/// Sent before the clock is read, so that nobody pays for what the one before left in the caches.
const LEAD: u32 = 50;

const COLUMNS: [&str; 9] =
    ["variant", "body_bytes", "ns", "ns_p10", "ns_p90", "times_the_limit", "instructions", "allocations", "bytes"];

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args().collect();
    let surroundings = surroundings();
    let _entered = surroundings.runtime.enter();
    if let [_, count, variant, length, requests] = &arguments[..]
        && count == COUNT
    {
        send_some(&surroundings, variant, length, requests);
        return Ok(());
    }
    compare(&surroundings).report()?;
    versions::versions().report()
}

/// What a child does under callgrind.
fn send_some(surroundings: &Surroundings, variant: &str, length: &str, requests: &str) {
    let (_, make) = VARIANTS.iter().find(|(name, _)| *name == variant).expect("there is such a variant");
    let length = length.parse().expect("a length is a number");
    make(surroundings).send(&body(length), requests.parse().expect("the requests are a number"));
}

fn compare(surroundings: &Surroundings) -> Figures {
    let mut variants: Vec<_> = VARIANTS.iter().map(|(name, make)| (*name, make(surroundings))).collect();
    let measured: Vec<_> =
        BODIES.map(|length| (length, times(&mut variants, length), blocks(&mut variants, length))).into();
    assert!(surroundings.endpoint.asked_once(), "nobody wants a second token");
    let wanted = BODIES.into_iter().flat_map(|length| VARIANTS.iter().map(move |(name, _)| (*name, length)));
    let instructions = instructions::per_request(wanted);

    let mut figures = Figures::new("peers", &COLUMNS);
    for (length, times, blocks) in measured {
        let bare = index_of(BARE);
        for (index, (name, _)) in VARIANTS.iter().enumerate().filter(|(index, _)| *index != bare) {
            let over_bare = |name| Some(instructions.get(&(name, length))? - instructions.get(&(BARE, length))?);
            let extra = blocks[index] - blocks[bare];
            figures.add([
                (*name).to_owned(),
                length.to_string(),
                format!("{:.1}", times.added(index, 50)),
                format!("{:.1}", times.added(index, 10)),
                format!("{:.1}", times.added(index, 90)),
                format!("{:.2}", times.added(index, 50) / times.added(index_of(LIMIT), 50)),
                over_bare(*name).map_or_else(|| "-".to_owned(), |count| count.to_string()),
                extra.number.to_string(),
                extra.bytes.to_string(),
            ]);
        }
    }
    figures
}

/// Nanoseconds per request, of each variant in each round.
struct Times(Vec<Vec<f64>>);

impl Times {
    /// The percentile of what a variant adds to the bare service within a round.
    fn added(&self, variant: usize, percent: usize) -> f64 {
        let bare = index_of(BARE);
        let mut added: Vec<_> = self.0.iter().map(|round| round[variant] - round[bare]).collect();
        added.sort_by(f64::total_cmp);
        added[(added.len() - 1) * percent / 100]
    }
}

fn times(variants: &mut [(&str, Variant)], length: usize) -> Times {
    let body = body(length);
    let mut order: Vec<_> = (0..variants.len()).collect();
    let mut rounds = Vec::new();
    for _ in 0..WARM_UP + ROUNDS {
        fastrand::shuffle(&mut order);
        let mut round = vec![0.0; variants.len()];
        for &index in &order {
            variants[index].1.send(&body, LEAD);
            let start = Instant::now();
            variants[index].1.send(&body, REQUESTS_A_ROUND);
            round[index] = nanoseconds(start.elapsed()) / f64::from(REQUESTS_A_ROUND);
        }
        rounds.push(round);
    }
    Times(rounds.split_off(WARM_UP))
}

/// The blocks that a request with each variant asks for.
fn blocks(variants: &mut [(&str, Variant)], length: usize) -> Vec<Blocks> {
    let body = body(length);
    let of_one = |variant: &mut Variant| {
        let all = counting(|| variant.send(&body, REQUESTS_A_ROUND));
        let (number, bytes) = (all.number / u64::from(REQUESTS_A_ROUND), all.bytes / u64::from(REQUESTS_A_ROUND));
        Blocks { number, bytes }
    };
    variants.iter_mut().map(|(_, variant)| of_one(variant)).collect()
}

fn index_of(variant: &str) -> usize {
    VARIANTS.iter().position(|(name, _)| *name == variant).expect("it is one of them")
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

fn body(length: usize) -> Bytes {
    Bytes::from(vec![b'x'; length])
}

fn surroundings() -> Surroundings {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let endpoint = Endpoint::new(&runtime);
    Surroundings { runtime, endpoint }
}
