//! Properties of all that reads what others wrote, each for random input.
//!
//! Each is a function of bytes, which say what the input is. Here they are random; the fuzz targets in `fuzz` are led by what
//! the code does with them, and run for as long as one likes.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]
#![allow(clippy::print_stdout, reason = "printed if a test fails")]

mod base_url;
mod rejection;
mod replay;
mod scope;
#[cfg(feature = "store")]
mod stored;
mod token_answer;

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::Debug,
    fs,
    hash::Hash,
    path::{Path, PathBuf},
};

use arbitrary::{Arbitrary, Unstructured};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

const CASES: u32 = 1_000;

#[test]
fn an_answer_of_the_token_endpoint_is_a_token_or_an_error_that_says_no_secret() {
    use token_answer::Seen::{Error, Jwt, Opaque, Wait};

    let check = |bytes: &[u8]| from_bytes(bytes).map(|input| token_answer::check(&input));
    holds("token_answer", check, &[(Opaque, 50), (Jwt, 20), (Error, 150), (Wait, 100)]);
}

#[test]
fn a_base_url_is_safe_or_refused_in_words_that_show_no_password() {
    use base_url::Seen::{Refused, RefusedWithPassword, Taken};

    let check = |bytes: &[u8]| from_bytes(bytes).map(|input| base_url::check(&input));
    holds("base_url", check, &[(Taken, 30), (Refused, 200), (RefusedWithPassword, 70)]);
}

#[test]
fn the_token_goes_to_the_apis_origin_alone() {
    use scope::Seen::{Absolute, Authority, Connect, Origin};

    let check = |bytes: &[u8]| from_bytes(bytes).and_then(|input| scope::check(&input));
    let origin = |has_host, has_token| Origin { has_host, has_token };
    let least = [
        (Absolute(true), 10),
        (Absolute(false), 15),
        (origin(false, true), 30),
        (origin(true, true), 5),
        (origin(true, false), 25),
        (Authority, 15),
        (Connect, 50),
    ];
    holds("scope", check, &least);
}

#[test]
fn a_rejection_is_a_401_or_a_403_that_names_no_other_reason() {
    use rejection::Seen::{AnotherReason, AnotherStatus, Forbidden, Unauthorized};

    let check = |bytes: &[u8]| from_bytes(bytes).map(|input| rejection::check(&input));
    let least = [(Unauthorized, 100), (Forbidden, 100), (AnotherReason, 20), (AnotherStatus, 100)];
    holds("rejection", check, &least);
}

#[test]
fn what_is_replayed_is_what_was_sent() {
    use replay::Seen::{NotReplayable, OutOfScope, Replayed};

    let check = |bytes: &[u8]| from_bytes(bytes).and_then(|input| replay::check(&input));
    holds("replay", check, &[(Replayed, 100), (NotReplayable, 40), (OutOfScope, 60)]);
}

#[cfg(feature = "store")]
#[test]
fn what_is_stored_is_the_token_that_was_published_for_the_account_or_none() {
    use stored::Seen::{Adopted, NotRead, TooOld};

    let check = |bytes: &[u8]| from_bytes(bytes).map(|input| stored::check(&input));
    holds("stored", check, &[(Adopted, 5), (TooOld, 15), (NotRead, 300)]);
}

/// For what the fuzz target begins with, and for random bytes: of those, at least so many have to come to each of these
/// ends, or the property would hold and say nothing. That is about a third of what is usual: by chance alone it is not less.
fn holds<S: Debug + Eq + Hash>(target: &str, check: impl Fn(&[u8]) -> Option<S>, least: &[(S, u32)]) {
    for (path, seed) in seeds(target) {
        // Of those that are printed, the last one is that which failed.
        println!("{}", path.display());
        check(&seed);
    }
    let seen = RefCell::new(HashMap::new());
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let result = runner.run(&proptest::collection::vec(any::<u8>(), 0..2_000), |bytes| {
        if let Some(end) = check(&bytes) {
            *seen.borrow_mut().entry(end).or_insert(0) += 1;
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    for (end, least) in least {
        assert!(seen.get(end) >= Some(least), "too few of {CASES} inputs came to {end:?}: {seen:?}");
    }
}

/// They reach most of the code. The crate's package leaves them out.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    if !fuzz.exists() {
        return Vec::new();
    }
    let files = fs::read_dir(fuzz.join("seeds").join(target)).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let seeds: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert!(seeds.len() >= 10, "{target}: {} seeds", seeds.len());
    seeds
}

/// Whatever these bytes say. `None` where they are too few to say anything.
fn from_bytes<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(bytes)).ok()
}
