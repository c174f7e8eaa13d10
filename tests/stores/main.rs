//! The stores that a fleet shares its token through: what they promise, and real processes that share through them.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]
#![allow(clippy::print_stdout, reason = "what is installed is said, and workers answer so")]

mod conformance;
mod contract;
mod file;
#[path = "../memory/mod.rs"]
mod memory;
mod processes;
mod redis;
mod server;
