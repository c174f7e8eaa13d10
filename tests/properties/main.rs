//! Properties of all that reads what others wrote, each for random input.
//!
//! Each is a function of bytes, which say what the input is. Here they are random; the fuzz targets in `fuzz` are led by what
//! the code does with them, and run for as long as one likes.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod base_url;
mod rejection;
mod replay;
mod scope;
mod token_answer;

use std::{fs, path::Path};

use arbitrary::{Arbitrary, Unstructured};
use proptest::{prelude::*, test_runner::Config};

/// Whatever these bytes say. `None` where they are too few to say anything.
fn from_bytes<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(bytes)).ok()
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..2_000)
}

proptest! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn an_answer_of_the_token_endpoint_is_a_token_or_an_error_that_says_no_secret(bytes in bytes()) {
        from_bytes(&bytes).iter().for_each(token_answer::check);
    }

    #[test]
    fn a_base_url_is_safe_or_refused_in_words_that_show_no_password(bytes in bytes()) {
        from_bytes(&bytes).iter().for_each(base_url::check);
    }

    #[test]
    fn the_token_goes_to_the_apis_origin_alone(bytes in bytes()) {
        from_bytes(&bytes).iter().for_each(scope::check);
    }

    #[test]
    fn a_rejection_is_a_401_or_a_403_that_names_no_other_reason(bytes in bytes()) {
        from_bytes(&bytes).iter().for_each(rejection::check);
    }

    #[test]
    fn what_is_replayed_is_what_was_sent(bytes in bytes()) {
        from_bytes(&bytes).iter().for_each(replay::check);
    }
}

/// What holds of an input that these bytes say.
type Property = fn(&[u8]);

/// Those inputs reach most of the code. The crate's package leaves them out.
#[test]
fn what_the_fuzz_targets_begin_with_keeps_each_property() {
    let properties: [(&str, Property); 5] = [
        ("token_answer", |bytes| from_bytes(bytes).iter().for_each(token_answer::check)),
        ("base_url", |bytes| from_bytes(bytes).iter().for_each(base_url::check)),
        ("scope", |bytes| from_bytes(bytes).iter().for_each(scope::check)),
        ("rejection", |bytes| from_bytes(bytes).iter().for_each(rejection::check)),
        ("replay", |bytes| from_bytes(bytes).iter().for_each(replay::check)),
    ];
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    if !fuzz.exists() {
        return;
    }
    for (target, check) in properties {
        let seeds: Vec<_> = fs::read_dir(fuzz.join("seeds").join(target)).unwrap().collect();
        assert!(seeds.len() >= 10, "{target}: {} seeds", seeds.len());
        for seed in seeds {
            check(&fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
