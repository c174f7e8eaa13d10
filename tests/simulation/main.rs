//! Bad luck, as much as there is: many callers, of one process or of two that share their token, a token endpoint and an API that misbehave at random, clocks that jump,
//! machines that sleep, runtimes that die. After each step the promises are checked.
//!
//! A seed says all that happens, so what failed once fails again, with a trace of what came before. With a queue beneath the
//! layer it may take a few tries: who goes first of those woken together is up to tokio.
//!
//! ```text
//! SIMULATION_SEED=7 cargo test --all-features --test simulation -- --nocapture
//! SIMULATION_SEEDS=10000 cargo test --release --all-features --test simulation -- --nocapture
//! ```
//!
//! The second one tries so many fresh seeds. Time is tokio's paused clock, so that days pass in no time.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was tried is said, and what failed")]

mod ear;
mod life;
mod luck;
#[path = "../memory/mod.rs"]
mod memory;
mod probe;
mod stacks;
#[path = "../undecided/mod.rs"]
mod undecided;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use crate::{life::Lived, probe::Trace};

/// In each test run, so that what broke once does not break unseen.
const FIXED: u64 = 60;
/// Seeds that nobody has tried before, in each test run.
const FRESH: u64 = 60;

#[test]
fn no_bad_luck_breaks_a_promise() {
    if let Some(seed) = number("SIMULATION_SEED") {
        live(seed);
        return;
    }
    let fresh = number("SIMULATION_SEEDS").unwrap_or(FRESH);
    let started = Instant::now();
    let mut all = Lived::default();
    for seed in 0..FIXED {
        all += live(seed);
    }
    // Beyond the fixed ones, and short enough to be typed.
    let mut seeds = fastrand::Rng::new();
    for _ in 0..fresh {
        all += live(seeds.u64(FIXED..10_u64.pow(12)));
    }
    assert!(all.is_eventful(), "little happened: {all:?}");
    let (days, took) = (all.time.as_secs_f64() / 86400.0, started.elapsed());
    println!("{} seeds, {days:.0} days, {:.0} days a second\n{all:#?}", FIXED + fresh, days / took.as_secs_f64());
}

#[test]
fn a_seed_says_all_that_happens() {
    let lines = |seed| {
        let trace = Trace::new();
        life::live(seed, &trace);
        trace.lines()
    };
    // Who wait for the same token go on in an order that nobody sets, and where they wait for a permit, that matters.
    let plain = (0..).map(|seed| (seed, lines(seed))).filter(|(_, lines)| lines[0].ends_with("Plain beneath"));
    for (seed, first) in plain.take(5) {
        let second = lines(seed);
        assert!(first.len() > 100, "{first:#?}");
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}

/// Lives by this seed. If a promise is broken, says what happened and how to see it again.
fn live(seed: u64) -> Lived {
    let trace = Trace::new();
    match catch_unwind(AssertUnwindSafe(|| life::live(seed, &trace))) {
        Ok(lived) => lived,
        Err(panic) => {
            for line in trace.lines() {
                eprintln!("{line}");
            }
            eprintln!("\nSIMULATION_SEED={seed} cargo test --all-features --test simulation -- --nocapture");
            resume_unwind(panic);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
