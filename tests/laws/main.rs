//! The laws of the crate, a chapter a file, without sockets: time is tokio's paused clock and a wall clock that tests set.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod allocator;
mod bodies;
mod capacity;
#[cfg(feature = "store")]
mod fleet;
mod heads;
mod hot_path;
mod many_callers;
#[cfg(feature = "store")]
#[path = "../memory/mod.rs"]
mod memory;
mod rejection;
mod requests;
mod scope;
mod secrets;
mod stacks;
mod support;
mod token_endpoint;
mod types;
#[path = "../undecided/mod.rs"]
mod undecided;
mod valid_token;
mod wiped;
