//! Sends requests and does nothing else, for callgrind to count: `instructions VARIANT BODY_BYTES REQUESTS`.
//!
//! The difference of two runs, by the difference of their numbers of requests, is the price of one request, its making
//! included; the difference of two variants is what one costs over the other:
//!
//! ```sh
//! cargo build --release --bench instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/deps/instructions-… with-replay 0 1000
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/deps/instructions-… with-replay 0 3000
//! ```

#![allow(clippy::print_stderr, reason = "what was asked wrongly is said")]

mod measure;

use std::{env, process::ExitCode};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use crate::measure::{Api, Body, StaticHeader, ours, request, send};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [variant, length, requests] = &arguments[..] else {
        eprintln!("usage: instructions bare|static|without-replay|with-replay BODY_BYTES REQUESTS");
        return ExitCode::FAILURE;
    };
    let (Ok(length), Ok(requests)) = (length.parse(), requests.parse()) else {
        eprintln!("BODY_BYTES and REQUESTS are numbers");
        return ExitCode::FAILURE;
    };
    match variant.as_str() {
        "bare" => send_all(Api, length, requests),
        "static" => send_all(StaticHeader::new(Api), length, requests),
        "without-replay" => send_all(ours(Api, false), length, requests),
        "with-replay" => send_all(ours(Api, true), length, requests),
        _ => {
            eprintln!("there is no variant {variant:?}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn send_all<S>(mut service: S, length: usize, requests: usize)
where
    S: Service<Request<Body>, Response = Response<()>>,
{
    let body = Bytes::from(vec![b'x'; length]);
    for _ in 0..requests {
        send(&mut service, request(body.clone()));
    }
}
