//! The protocol by which a fleet shares its token, as a model, and all that can happen to three processes within bounds: they crash
//! and come again, what they send is lost, late, repeated and overtaken, the store is emptied, clocks differ, tokens are revoked.
//!
//! Every order of all that is tried; processes that are in the same situation are not told apart. How much bad luck there is has a
//! bound, of two events as a rule: half a million worlds, in less than a minute. With three it is nineteen million, and two minutes:
//!
//! ```text
//! cargo test --features store --test model -- --nocapture
//! MODEL_BAD_LUCK=3 cargo test --release --features store --test model -- --nocapture
//! ```
//!
//! `MODEL_FLIGHTS`, `MODEL_ATTEMPTS` and `MODEL_ATTEMPTS_OF_FLEET` set the other bounds. Worlds are told apart by hashes of 64 bits.
//!
//! What the model says of a store, the one in memory of `tests/memory` has to do as well: see `conformance`.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]
#![allow(clippy::print_stdout, reason = "what was tried is said")]

mod conformance;
mod fleet;
mod laws;
#[path = "../memory/mod.rs"]
mod memory;
mod rules;
mod runs;
mod store;

use std::{env, thread::available_parallelism, time::Instant};

use stateright::{Checker, Model};

use crate::{
    fleet::{Bounds, Fleet, World},
    laws::Law,
    rules::Rules,
};

#[test]
fn whatever_happens_to_three_processes_no_law_is_broken() {
    let (fleet, started) = (Fleet { bounds: bounds(), ..Fleet::default() }, Instant::now());
    let threads = available_parallelism().map_or(1, usize::from);
    let checker = fleet.checker().threads(threads).symmetry_fn(World::representative).spawn_dfs().join();
    let (worlds, ways, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    println!("{worlds} worlds, {ways} ways into them, {depth} steps, {:?}", started.elapsed());
    checker.assert_properties();
}

#[test]
fn every_run_comes_to_an_end() {
    let (fleet, started) = (Fleet { bounds: bounds(), ..Fleet::default() }, Instant::now());
    let runs = runs::all(&fleet).unwrap_or_else(|circle| panic!("it goes in circles: {circle:?}"));
    println!("{} worlds, at most {} steps, {:?}", runs.worlds, runs.longest, started.elapsed());
    assert!(runs.worlds > 1_000 && runs.longest > 40, "{runs:?}");
}

/// A law that cannot be broken says nothing, nor does a rule that nothing needs.
#[test]
fn without_any_one_of_its_rules_the_protocol_breaks_a_law() {
    let [one, two] = [1, 2].map(|bad_luck| Bounds { bad_luck, ..Bounds::default() });
    let three = Bounds { bad_luck: 3, flights: 1, attempts: 1, ..Bounds::default() };
    breaks(Law::Lease, &one, |rules| rules.leases_exclude = false);
    breaks(Law::Crowd, &one, |rules| rules.leases_exclude = false);
    breaks(Law::Cost, &one, |rules| rules.leases_exclude = false);
    breaks(Law::Fence, &one, |rules| rules.fences_come_from_a_clock = false);
    breaks(Law::Entry, &one, |rules| rules.publishing_minds_the_fence = false);
    breaks(Law::Entry, &one, |rules| rules.a_fence_publishes_once = false);
    breaks(Law::Pause, &three, |rules| rules.pauses_are_kept = false);
    // What is older is not adopted for its age either.
    breaks(Law::Adopted, &one, |rules| (rules.is_done_with_what_it_saw, rules.minds_the_age) = (false, false));
    breaks(Law::Age, &two, |rules| rules.minds_the_age = false);
    // Either of them would do.
    breaks(Law::Stuck, &one, |rules| (rules.leases_end, rules.patience_ends) = (false, false));
}

/// Here the same fences come once more, which in milliseconds is a coincidence: who was done with one of them asks itself.
#[test]
fn a_store_that_was_emptied_and_whose_clock_is_behind_brings_no_older_token_and_leaves_nobody_stuck() {
    let rules = Rules { fences_come_from_a_clock: false, ..Rules::default() };
    let laws = [Law::Lease, Law::Adopted, Law::Age, Law::Pause, Law::Crowd, Law::Stuck];
    let fleet = Fleet { bounds: bounds(), rules, laws: laws.into_iter().collect() };
    fleet.checker().symmetry_fn(World::representative).spawn_dfs().join().assert_properties();
}

fn breaks(law: Law, bounds: &Bounds, take_away: fn(&mut Rules)) {
    let mut rules = Rules::default();
    take_away(&mut rules);
    let fleet = Fleet { bounds: bounds.clone(), rules, laws: [law].into_iter().collect() };
    let run = runs::shortest(&fleet, law.is_kept()).unwrap_or_else(|| panic!("{law:?} is kept by {:?}", fleet.rules));
    println!("{}: {run:?}", law.name());
}

fn bounds() -> Bounds {
    let standard = Bounds::default();
    let number = |variable: &str, standard: u8| match env::var(variable) {
        Ok(number) => number.parse().unwrap_or_else(|_| panic!("{variable} is not a number")),
        Err(_) => standard,
    };
    Bounds {
        bad_luck: number("MODEL_BAD_LUCK", standard.bad_luck),
        flights: number("MODEL_FLIGHTS", standard.flights),
        attempts: number("MODEL_ATTEMPTS", standard.attempts),
        attempts_of_fleet: number("MODEL_ATTEMPTS_OF_FLEET", standard.attempts_of_fleet),
    }
}
