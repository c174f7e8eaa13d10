//! The gateway on a port: between callers that are sockets, and an API that is a socket too or the emulator.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod bodies;
mod causes;
mod forwarding;
mod life;
mod log;
mod support;
