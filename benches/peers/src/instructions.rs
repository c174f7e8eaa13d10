//! Instructions per request, counted by callgrind in a child of this process.

use std::{
    collections::HashMap,
    env,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

use crate::peers::service_account::{PRIVATE_KEY, private_key};

/// The first of the hidden arguments: `count VARIANT BODY_BYTES REQUESTS`.
pub(crate) const COUNT: &str = "count";

const FEW: u32 = 1000;
const MANY: u32 = 3000;

/// What one request costs with each of these variants and lengths of a body. Empty without valgrind.
pub(crate) fn per_request(wanted: impl Iterator<Item = (&'static str, usize)>) -> HashMap<(&'static str, usize), i64> {
    if !has_valgrind() {
        eprintln!("valgrind is not installed, so no instructions are counted.");
        return HashMap::new();
    }
    let wanted = Mutex::new(wanted.collect::<Vec<_>>().into_iter());
    let (counted, all) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (wanted, counted) = (&wanted, counted.clone());
            scope.spawn(move || {
                let next = || wanted.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some((variant, length)) = next() {
                    let difference = collected(variant, length, MANY) - collected(variant, length, FEW);
                    let sent = ((variant, length), difference / i64::from(MANY - FEW));
                    counted.send(sent).expect("somebody listens to the end");
                }
            });
        }
    });
    drop(counted);
    all.into_iter().collect()
}

fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The instructions between the first request and the last.
fn collected(variant: &str, length: usize, requests: u32) -> i64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // What comes before is left out: some peers do it with random numbers.
        .args(["--collect-atstart=no", "--toggle-collect=*send_all*"])
        .arg(env::current_exe().expect("the path of this program"))
        .args([COUNT, variant, &length.to_string(), &requests.to_string()])
        .env(PRIVATE_KEY, private_key())
        // Or the price of a block depends on how the heap looks.
        .env("GLIBC_TUNABLES", "glibc.malloc.tcache_max=65536")
        .output()
        .expect("valgrind was there before");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{variant} cannot be counted: {said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :")).expect("callgrind says what it saw").1;
    collected.trim().parse().expect("it is a number")
}
