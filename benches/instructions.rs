//! The instructions that a request costs, and the gates they must not pass: the program fails if one does.
//!
//! ```sh
//! cargo bench --bench instructions
//! ```
//!
//! Callgrind counts those of 1,000 and of 3,000 requests, in a child of this process; the difference is that of 2,000
//! requests, their making included. The difference of two variants is what one costs over the other, and repeats to the
//! instruction for the same binary.
//!
//! - `bare`: the service that answers at once.
//! - `static header`: the least that a layer can do.
//! - `floor`: the least that finds a good token and looks at the answer, without renewals, replays or errors.
//! - `without replay`, `with replay`: the layer.
//!
//! The gate of the layer without replay stands on the floor, so the floor has one, too.

#![allow(clippy::print_stderr, reason = "what is wrong is said")]

mod figures;
mod floor;
mod measure;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env, io,
    process::{Command, ExitCode},
};

use bytes::Bytes;
use http::{Request, Response};
use tower::Service;

use crate::{
    figures::Figures,
    floor::Floor,
    measure::{Api, Body, StaticHeader, ours, request, send},
};

/// The floor, over a static header.
const FLOOR: i64 = 250;
/// Without replay, over the floor.
const WITHOUT_REPLAY: i64 = 150;
/// With replay, over without.
const WITH_REPLAY: i64 = 1_200;

const VARIANTS: [&str; 5] = ["bare", "static header", "floor", "without replay", "with replay"];
const BODIES: [usize; 2] = [0, 1024];
const FEW: u32 = 1_000;
const MANY: u32 = 3_000;

/// The first of the hidden arguments: `count VARIANT BODY_BYTES REQUESTS`.
const COUNT: &str = "count";

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [count, variant, length, requests, ..] = &arguments[..]
        && count == COUNT
    {
        let length = length.parse().expect("a length is a number");
        send_by(variant, length, requests.parse().expect("the requests are a number"));
        return Ok(ExitCode::SUCCESS);
    }

    if let Err(error) = Command::new("valgrind").arg("--version").output() {
        eprintln!("valgrind, which counts the instructions: {error}; please install it");
        return Ok(ExitCode::FAILURE);
    }
    let mut figures = Figures::new("instructions", &["variant", "body_bytes", "over_bare", "over_static_header"]);
    let mut code = ExitCode::SUCCESS;
    for length in BODIES {
        let [bare, fixed, floor, without_replay, with_replay] = VARIANTS.map(|variant| per_request(variant, length));
        for (variant, count) in VARIANTS.iter().zip([bare, fixed, floor, without_replay, with_replay]) {
            let [over_bare, over_fixed] = [count - bare, count - fixed].map(|count| count.to_string());
            figures.add([(*variant).to_owned(), length.to_string(), over_bare, over_fixed]);
        }
        for (what, cost, gate) in [
            ("the floor, over a static header", floor - fixed, FLOOR),
            ("without replay, over the floor", without_replay - floor, WITHOUT_REPLAY),
            ("with replay, over without", with_replay - without_replay, WITH_REPLAY),
        ] {
            if cost > gate {
                eprintln!("{what}, a body of {length} bytes: {cost} instructions, and the gate is at {gate}");
                code = ExitCode::FAILURE;
            }
        }
    }
    figures.report()?;
    Ok(code)
}

fn per_request(variant: &str, length: usize) -> i64 {
    (collected(variant, length, MANY) - collected(variant, length, FEW)) / i64::from(MANY - FEW)
}

fn collected(variant: &str, length: usize, requests: u32) -> i64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().expect("the path of this program"))
        .args([COUNT, variant, &length.to_string(), &requests.to_string()])
        .output()
        .expect("valgrind was there before");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{variant} cannot be counted: {said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).expect("callgrind says what it saw").1;
    collected.trim().parse().expect("it is a number")
}

/// What is counted.
fn send_by(variant: &str, length: usize, requests: u32) {
    match variant {
        "bare" => send_all(Api, length, requests),
        "static header" => send_all(StaticHeader::new(Api), length, requests),
        "floor" => send_all(Floor::new(Api), length, requests),
        "without replay" => send_all(ours(Api, false), length, requests),
        "with replay" => send_all(ours(Api, true), length, requests),
        _ => panic!("there is no variant {variant:?}"),
    }
}

fn send_all<S>(mut service: S, length: usize, requests: u32)
where
    S: Service<Request<Body>, Response = Response<()>>,
{
    let body = Bytes::from(vec![b'x'; length]);
    for _ in 0..requests {
        send(&mut service, request(body.clone()));
    }
}

/// Gives nothing back. What a block costs hangs on what was given back before, and that would blur what is counted.
struct Spendthrift;

#[global_allocator]
static ALLOCATOR: Spendthrift = Spendthrift;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every block comes from the system's allocator, and stays valid for ever.
unsafe impl GlobalAlloc for Spendthrift {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
