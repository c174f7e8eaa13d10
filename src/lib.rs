//! Tower middleware that gives every request to APSIS One a valid bearer token.
//!
//! [`ApsisAuthLayer`] wraps any `tower::Service<http::Request<B>>`. The layer trades the client credentials for an access
//! token, keeps it, renews it, and replays a request whose token the API rejected. It is built by a
//! [builder](ApsisAuthLayer::builder), or from the environment by `from_env`; its [handle](ApsisAuthLayer::handle) gives
//! the token to requests that are sent another way, and its state to health endpoints.
//!
//! ```
//! # #[cfg(feature = "emulator")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! use apsis_auth::{ApsisAuthLayer, emulator::Emulator};
//! use bytes::Bytes;
//! use http::{Request, StatusCode};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! // APSIS One in a process, in place of an account and an HTTPS client.
//! let apsis = Emulator::new();
//! let auth = ApsisAuthLayer::builder(apsis.api_key().credentials(), "https://api.apsis.one")
//!     .transport(apsis.clone())
//!     .build()?;
//! let client = ServiceBuilder::new().layer(auth).service(apsis.clone());
//!
//! let keyspaces = || Request::get("https://api.apsis.one/audience/keyspaces").body(Full::<Bytes>::default());
//! assert_eq!(client.clone().oneshot(keyspaces()?).await?.status(), StatusCode::OK);
//!
//! apsis.revoke_tokens();
//! assert_eq!(client.oneshot(keyspaces()?).await?.status(), StatusCode::OK);
//! assert_eq!(apsis.counters().tokens_issued, 2);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "emulator"))]
//! # fn main() {}
//! ```
//!
//! Two pages more: [in your stack](in_your_stack), beside other layers and in other clients, and
#![cfg_attr(feature = "emulator", doc = "[in your tests](in_your_tests), with the emulator in your own test-suite.")]
#![cfg_attr(not(feature = "emulator"), doc = "in your tests, with the feature `emulator`.")]
//!
//! # What it promises
//!
//! 1. A request never waits for a token while a valid one is at hand, not even during a refresh.
//! 2. However many requests want a token, one token request is in flight. All share its result, a failure included.
//! 3. A token the API rejects is replaced once, for all requests it was rejected for; each is replayed once.
//! 4. The layer, with all its clones, keeps to its budget of token requests a minute, whatever the API, the token
//!    endpoint, the clock or the caller does. Build one per account and process; with a store they keep to
//!    it together, as long as that answers.
//! 5. No request in scope leaves without a token, and none out of scope leaves with one. In scope is the origin (scheme,
//!    host, port) of the base URL, and those that the builder is given besides; `CONNECT` never is.
//! 6. Neither the secret nor the token appears in any log, error, `Debug` or panic message.
//! 7. No rejection is lost: where there is no newer token, or the body cannot be sent again, it comes back as the API said
//!    it, body and all. Where there is, the outcome is the replay's.
//! 8. No slot or permit of the inner service is held while a request waits for a token, and no task or memory is left behind.
//! 9. Bodies and clients are taken as they are: those in use need no wrapper, and any other fits with one.
//!
//! A token stays current until a newer one replaces it or it expires; a
//! rejection starts a renewal and does nothing else. No request is sent twice with one generation.
//!
//! # Words
//!
//! A **flight** is the one token request under way; each HTTP request of it is an **attempt**.
//! A token's **generation** is its number in this process. A token is **due** when it is time to **refresh** it; within its
//! **margin** before the expiry it counts as expired. A token the API **rejected** is **renewed**, and the request is
//! **replayed**. After a failed flight the layer is **grounded**: no flight before a given moment. A token that another
//! process had asked for, and left in a store, is **adopted**.
//!
//! # Defaults
//!
//! | what | default |
//! | --- | --- |
//! | region or base URL | none: a token of one region is refused in the other |
//! | token requests in any minute, of a layer with its clones | 4 |
//! | longest wait of a request for a token | 30 s |
//! | one attempt, from connect to the last byte | 15 s (in the default transport 5 s for a TCP connection) |
//! | one flight | 30 s |
//! | kept of a streaming body for a replay | at most 128 KiB |
//! | size of the token endpoint's answer | at most 64 KiB |
//! | refresh is due | at a draw between 75 and 90 % of the lifetime, once per token |
//! | margin | the smaller of 60 s and a tenth of the lifetime |
//! | pauses within a flight | 2 s, doubling, each drawn from its upper half; `Retry-After` if longer and it fits |
//! | grounded after a transient failure | 5 s, doubling to 60 s; `Retry-After` if longer, at most 15 min; until there is room in the budget |
//! | grounded after 429 | `Retry-After` (at most 15 min) and up to a tenth; without it 60 s and a draw from 60 s, doubling, at most 1 h |
//! | grounded after a refusal | 30 s, doubling to 15 min |
//! | with a token store | an operation 1 s, a lease one attempt and 2 s; a look about every 100 ms while another process asks, and every 5 s while grounded; after a refusal all pause 30 s, doubling to 4 min |
//! | renewals that did not help | 401: 15, 30, 60, 60 … s; 403: 1, 2, 4, 8, 15, 15 … min |
//!
//! A request waits through a grounding that ends within its longest wait, unless the credentials were refused. Otherwise
//! it fails at once with the error of the failed flight, which says when the token endpoint is asked again. A valid token is
//! served throughout.
//!
//! An attempt counts against the budget whether it brings a token or not. A flight that fails four times uses up the
//! default budget, and then no flight is started before there is room again: up to a minute later.
//!
//! A 403 may mean a dead token or a missing right. After a renewal that did not help, further 403s start none for a minute,
//! then for two, and so on; 401s have shorter pauses of their own. A renewal that helps ends this at once. So do three
//! rejections in a row of a token that was accepted before, which is what a dead token looks like; each time that turns out
//! wrong, it takes twice as many the next time.
//!
//! # The stack
//!
//! The layer needs an inner service that is `Clone`, and clones it once for each request in scope that may be replayed, more
//! often for one that has to wait. A request with a good token takes the ready one; one that has to wait for a token gives
//! it up and gets ready again later, so that it holds no slot or permit while it waits. A replay, too, waits for the inner
//! service to be ready. Services and futures are `Send` and `Sync` where the inner ones and the bodies are. What else is
//! needed, and what to do where it is not so, is said [at the service](ApsisAuth#when-it-does-not-compile).
//!
//! Beneath a `LoadShed`, nobody is shed for those who wait for a token. If there is no capacity when their turn comes, they
//! are shed like anybody, replays included; the error is tower's.
//!
//! A rejected response is held until there is a newer token, so that it can be returned whole if there is none. Then it is
//! dropped, and the outcome is the replay's: an answer, an error of the inner service, or one of ours if the new token dies
//! before the inner service is ready. Meanwhile the response keeps what is its own. On an HTTP/1 connection a small body
//! with a `content-length` is in nobody's way. Any other keeps the connection busy, and dropping a large one closes it: a
//! pool has another one for the replay, a lone connection has not, and the replay fails with its error.
//!
//! Which layers go above this one and which beneath, and what goes wrong otherwise, is on the page
//! [in your stack](in_your_stack). In short: redirects, retries and time limits above; and the time limit longer than the longest
//! wait for a token.
//!
//! Waiting for a token needs a tokio runtime with a timer ([`AuthError::NoRuntime`] where there is no runtime; tokio
//! panics where one has no timer). A good token is served without either.
//!
//! # What it costs
//!
//! A request with a good token at hand takes no lock and reads one monotonic clock. Every few seconds one also compares the
//! wall clock, and the one that finds the token due starts a refresh.
//!
//! It asks for no memory, except for what clones of its body, its extensions and the inner service take if it may be
//! replayed, what a body that streams needs to be recorded, and what a header map takes that has no room for the token.
//! Its head is kept as text, in buffers that the requests of a thread use one after the other: at most 64 stay with a
//! thread, of at most 8 KiB each. What goes beyond takes memory while it is in flight: more requests at once, longer heads,
//! and requests that end on another thread than they began on. So do requests that wait for a token or are replayed. The
//! figures are in `BENCHMARKS.md`.
//!
//! A header value that is marked as sensitive is wiped from such a buffer before it is used again; others, and the URI with
//! all that it says, may stay in it until they are overwritten. An `Authorization` of the caller's own is not kept.
//!
//! # Requests out of the ordinary
//!
//! | what | what the layer does |
//! | --- | --- |
//! | `CONNECT` | Out of scope: sent as it is, without the token; a tunnel that it opens comes back whole. Its fields are for the proxy (RFC 9110 §9.3.6). |
//! | extended `CONNECT` | The same, although its fields are for the API (RFC 8441 §4): put the token on by a [`TokenHandle`]. |
//! | `Upgrade` | A request like others: it gets the token and is replayed. A 101 comes back with its extensions, so the connection can be taken over, after a replay too (RFC 9110 §7.8). |
//! | `Expect: 100-continue` | Goes out as it is, with the replay too; a 417 is no rejection (RFC 9110 §10.1.1). A body that streams and was not asked for is not replayed. |
//! | `HEAD` | Replayed as `HEAD` (RFC 9110 §9.3.2). |
//! | `OPTIONS *` and other requests without a host | In scope, unless a `Host` field names another, or there are two (RFC 9112 §3.2). |
//! | trailers | Those of a request are replayed, and count against the replay limit; those of an answer arrive as they came (RFC 9110 §6.5). |
//! | an `Authorization` of its own | In scope replaced, however many there are; out of scope left alone (RFC 9110 §11.6.2). |
//! | `Proxy-Authorization`, `Cookie` | Left alone: they are for somebody else (RFC 9110 §11.7.2). |
//! | a body that fails half-way | The inner service's error comes back as it is. Nothing is replayed and nothing renewed. |
//! | a rejection before the body was sent | Replayed if the body is in memory. If it streams, the rejection comes back, and the token is renewed for the next request. |
//! | no room for one more header field | [`AuthError::TooManyHeaders`]; nothing is sent. |
//!
//! # Tracing
//!
//! Under the target `apsis_auth`. A healthy day is one `INFO` line per new token.
//!
//! | what | level | fields |
//! | --- | --- | --- |
//! | span `token_flight`, a root | `INFO` | `reason`: `cold`, `due`, `rejected` or `forced` |
//! | new access token | `INFO` | `generation`, `lifetime` in seconds, `adopted`: whether another process had asked for it |
//! | the same access token again | `DEBUG`, `WARN` if it was rejected | `generation`, `lifetime` |
//! | token request failed | `DEBUG` | `attempt`, counted from 1; `failure` |
//! | grounded | `WARN` | `seconds`, `error` |
//! | token rejected | `DEBUG` | `generation`, `kind` |
//! | the renewed token was rejected too | `WARN` | `generation`, `kind` |
//! | replay, replay accepted | `DEBUG` | `generation` |
//! | the token store fails; going on alone | `WARN` the first time, then `DEBUG` without the second half | `operation`, `error` |
//! | the token store answers again | `INFO` | `operation` |
//! | lease granted; another process holds the lease | `DEBUG` | `fence`, and of another's `left` |
//! | another process holds the lease for too long; asking alone | `WARN` | `fence` |
//! | an entry or a file of the token store cannot be read | `WARN` | `fence`, or `path` and `error` |
//! | no renewal, after a request that cannot be replayed | `DEBUG` | `generation`, `error` |
//! | out of scope: sent without a token | `WARN` the first time, then `DEBUG`; of a `CONNECT` always `DEBUG` | `method`, as far as they are known `scheme`, `host` and `port`, and as `base` the token endpoint |
//!
//! # Where things are
//!
//! | file | what lives there |
//! | --- | --- |
//! | `layer.rs` | [`ApsisAuthLayer`], and what all its services share |
//! | `builder.rs` | [`ApsisAuthBuilder`]: the settings and their defaults |
//! | `service.rs` | [`ApsisAuth`]: stamp a request or wait |
//! | `future.rs` | [`ResponseFuture`]: the answer, or a detour to it: wait, renew, replay |
//! | `head.rs` | what is kept of a request's head |
//! | `buffer.rs` | the buffers it is kept in, which are used again |
//! | `replay.rs` | [`ReplayableBody`]: what is kept of a body |
//! | `replay_body.rs` | [`ReplayBody`] and [`Once`]: bodies that stream |
//! | `rejection.rs` | is this response the token's fault? |
//! | `origin.rs` | [`BaseUrl`], and which requests are in scope |
//! | `cache.rs` | the current token, and who starts a flight, under the lock of the core |
//! | `waiter.rs` | who waits for what, and for how long |
//! | `state.rs` | what the cache keeps under its lock: the flight under way, the grounding |
//! | `flight.rs` | the attempts of a flight and its landing |
//! | `fleet.rs` | the process among others of its account: who asks, and who takes what another one was given |
//! | `no_fleet.rs` | the same without the feature `store`: nobody |
//! | `store.rs` | `TokenStore`, what is stored and who can do what with it (feature `store`) |
//! | `seal.rs` | how a token is sealed before it is stored |
//! | `file_store.rs` | `FileStore`: a store in a folder (feature `file-store`) |
//! | `redis_store.rs`, `redis_store.acl` | `RedisStore`: a store in Redis or Valkey, and what its user may do there (feature `redis-store`) |
//! | `tls.rs` | whom TLS trusts, for the default transport and for Redis |
//! | `ladder.rs` | renewals that do not help, and the evidence that a token died |
//! | `endpoint.rs` | the token request and what each answer means |
//! | `backoff.rs` | when to ask again, and `Retry-After` |
//! | `budget.rs` | token requests per minute |
//! | `token.rs` | [`AccessToken`]: header, lifetime, margin, next look |
//! | `clock.rs` | the wall clock and random numbers, which tests set |
//! | `credentials.rs` | [`ClientCredentials`], [`Region`] |
//! | `handle.rs` | [`TokenHandle`] and its [`Snapshot`] |
//! | `client.rs` | the default transport (feature `client`) |
//! | `error.rs` | [`AuthError`], [`BuildError`] |
//! | `emulator/` | APSIS One in a process (feature `emulator`) |
//! | `in_your_stack.rs`, `in_your_tests.rs` | the two pages, without code |
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod budget;
mod buffer;
mod builder;
mod cache;
#[cfg(feature = "client")]
mod client;
mod clock;
mod credentials;
#[cfg(feature = "emulator")]
#[cfg_attr(docsrs, doc(cfg(feature = "emulator")))]
pub mod emulator;
mod endpoint;
mod error;
#[cfg(feature = "file-store")]
mod file_store;
#[cfg(feature = "store")]
mod fleet;
#[cfg(not(feature = "store"))]
#[path = "no_fleet.rs"]
mod fleet;
mod flight;
mod future;
mod handle;
mod head;
// Pages of the documentation, without code.
#[cfg(any(doc, doctest))]
pub mod in_your_stack;
#[cfg(all(any(doc, doctest), feature = "emulator"))]
#[cfg_attr(docsrs, doc(cfg(feature = "emulator")))]
pub mod in_your_tests;
mod ladder;
mod layer;
mod origin;
#[cfg(feature = "redis-store")]
mod redis_store;
mod rejection;
mod replay;
mod replay_body;
#[cfg(feature = "store")]
mod seal;
mod service;
mod state;
#[cfg(feature = "store")]
#[cfg_attr(docsrs, doc(cfg(feature = "store")))]
pub mod store;
#[cfg(any(feature = "client", feature = "redis-store"))]
mod tls;
mod token;
mod waiter;

pub use builder::ApsisAuthBuilder;
#[cfg(feature = "client")]
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
pub use client::HttpsTransport;
pub use credentials::{ClientCredentials, Region};
pub use error::{AuthError, BuildError, RetryAt};
#[cfg(feature = "file-store")]
#[cfg_attr(docsrs, doc(cfg(feature = "file-store")))]
pub use file_store::FileStore;
pub use future::{AuthOutcome, ResponseFuture};
pub use handle::{Grounded, Snapshot, TokenHandle, TokenState};
pub use layer::{ApsisAuthLayer, CloneInner};
pub use origin::BaseUrl;
#[cfg(feature = "redis-store")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis-store")))]
pub use redis_store::RedisStore;
pub use rejection::{Rejection, default_rejection_rule};
pub use replay::ReplayableBody;
pub use replay_body::{Once, ReplayBody};
pub use service::ApsisAuth;
pub use token::AccessToken;

/// The README's example compiles.
#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../README.md")]
struct Readme;
