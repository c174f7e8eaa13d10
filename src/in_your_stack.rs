//! In your stack: which layers go above this one, which beneath, and what goes wrong otherwise.
//!
//! A request comes from the caller at the top and leaves by the network at the bottom. This is the order that works, each
//! line of it optional but ours:
//!
//! ```text
//! caller
//!   │  SetSensitiveRequestHeaders     marks what the caller puts on, before anything prints it
//!   │  Trace                          one span for what the caller sees as one call
//!   │  Timeout                        longer than a request waits for a token (30 s), and than all retries
//!   │  LoadShed over ConcurrencyLimit how many callers there may be at once
//!   │  Retry                          on 429 and 503; on lost connections, if the request may be done twice
//!   │  FollowRedirect                 each hop passes the layer again
//!   │  SetRequestHeader, map_request  what completes a request: its URI, its headers
//!   ▼
//! ApsisAuth
//!   │  Buffer over RateLimit          counts all that is sent, replays too
//!   │  ConcurrencyLimit               how much goes out at once; who waits for a token holds none of it
//!   │  Timeout                        for each sending, without any wait for a token or a turn
//!   │  Decompression                  so that all above see what the API said
//!   ▼
//! client
//! ```
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use apsis_auth::ApsisAuthLayer;
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode, header::{AUTHORIZATION, COOKIE}};
//! use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
//! use hyper_rustls::HttpsConnector;
//! use hyper_util::client::legacy::{Client, connect::HttpConnector};
//! use tower::{BoxError, ServiceBuilder, util::BoxCloneSyncService};
//! use tower_http::{
//!     ServiceBuilderExt, decompression::DecompressionLayer, follow_redirect::FollowRedirectLayer,
//!     sensitive_headers::SetSensitiveRequestHeadersLayer, timeout::TimeoutLayer, trace::TraceLayer,
//! };
//!
//! type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>;
//!
//! fn client(auth: ApsisAuthLayer, https_client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>) -> ApiClient {
//!     let stack = ServiceBuilder::new()
//!         .map_response_body(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
//!         .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE]))
//!         .layer(TraceLayer::new_for_http())
//!         .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(60)))
//!         .layer(FollowRedirectLayer::new())
//!         .layer(auth)
//!         .map_response_body(BodyExt::boxed_unsync)
//!         .layer(DecompressionLayer::new())
//!         .service(https_client);
//!     BoxCloneSyncService::new(stack)
//! }
//! ```
//!
//! # Redirects
//!
//! tower-http's `FollowRedirect` goes above. Each hop then passes this layer, which looks where it goes: to the API's origin
//! it takes the token, to another host, port or scheme it does not, and on a way back it has the token again.
//!
//! Beneath, the layer sees one request and the last answer. A policy of one's own may take the token elsewhere, and the 401
//! of another origin is taken for the API's: it costs a token request, and the request is sent once more.
//!
//! A 307 or 308 for a request with a body comes back to the caller, unless the policy can clone the body.
//!
//! A client that follows redirects by itself is beneath, too. For reqwest: `redirect::Policy::none()`.
//!
//! # Retries
//!
//! tower's `Retry` goes above. For a try that finds the token dead, the token is renewed and the request replayed; while
//! renewals that did not help cool down, the rejection is its answer. So n tries send at most 2 n requests, and token requests
//! stay within their budget. A policy has no need to look at 401 and 403.
//!
//! For an [`AuthError`](crate::AuthError), the policy asks [`is_retryable`](crate::AuthError::is_retryable), and waits until
//! [`retry_at`](crate::AuthError::retry_at) where there is one: before that, the error would be the same. That may be an hour
//! away. Where it is beyond what the policy may wait, it returns the error.
//!
//! Beneath, a policy that repeats rejected requests sends the dead token again and again, which the gateway refuses from its
//! memory, before it hands the rejection up.
//!
//! # Time limits
//!
//! One above is for all that a call takes: the wait for a token, the sending, the renewal, the replay. It should be longer
//! than [`max_wait`](crate::ApsisAuthBuilder::max_wait), and over a `Retry` longer than all its tries and pauses. Where it is
//! shorter, a token that cannot be had looks like an API that does not answer, and the error that names the cause is never
//! seen. A caller that times out takes nothing from the others: the token request goes on, and the next call finds what it brought.
//!
//! One beneath is for each sending by itself, without the wait for a token. It goes next to the client: over a queue, the
//! wait for a turn counts.
//!
//! It starts with the call. The wait to be ready, as for the permit of a limit beneath it, comes before. It ends with the
//! answer's head: for the body there is tower-http's `ResponseBodyTimeoutLayer`.
//!
//! tower-http's `TimeoutLayer` answers with a body of its own making, so it wants a body that has a default, which hyper's
//! `Incoming` has not: `.map_response_body(BodyExt::boxed_unsync)` beneath it. tower's own `TimeoutLayer` fails with an error
//! instead and wants no such thing.
//!
//! # Limits
//!
//! Above, a limit counts calls. One that waits for a token keeps its permit, so others wait behind it, even those that need no
//! token. Nothing locks up, since token requests do not pass there. A `LoadShed` goes over the limit: under it, it sheds nobody.
//!
//! Beneath, a limit counts what is sent. Who waits for a token holds no permit, and gets in line again when the token is
//! there. A token transport may share such a limit. tower's `RateLimit` is not `Clone`, so it takes a `Buffer` over it; only
//! there does it count replays, as APSIS One does. A `LoadShed` beneath sheds whoever finds no room when their turn comes,
//! replays included.
//!
//! # Traces and logs
//!
//! A `Trace` above has one span for each call, and never sees the token, even where it prints headers. One beneath has a span
//! for each sending, sees that there is an `authorization`, and prints `Sensitive` for its value. What the caller puts on is
//! marked by `SetSensitiveRequestHeaders`, which has to stand above the `Trace`; what the API sends, by
//! `SetSensitiveResponseHeaders`, which has to stand beneath it.
//!
//! tower-http's own span has the URI, and with it profile keys, which are mail addresses. A span of one's own has not:
//! `.make_span_with(…)`, as in `examples/hyper.rs`.
//!
//! The layer traces under a target of its own, [`apsis_auth`](crate#tracing). A token request serves many callers, so its span
//! is under none of theirs.
//!
//! # What changes requests
//!
//! Whether a request is in scope is decided by the URI it has when it comes to this layer. So what completes a URI goes above.
//! What changes it to another origin beneath takes the token along.
//!
//! An `Authorization` that is put on above is replaced. One that is put on beneath takes the token's place, or goes beside it.
//!
//! `Decompression` can go above or beneath. Beneath, all see what the API said, and not how it was packed.
//!
//! # Runtimes
//!
//! One layer serves several runtimes. A token request runs in the runtime of the call that started it, and its waiters in others
//! hear of it. If that runtime ends, they get [`Interrupted`](crate::AuthError::Interrupted), and the next call starts another
//! one. A runtime that is driven only now and then sends no expired token.
//!
//! # axum
//!
//! In a handler, the client is a part of the state. Boxed, its type has a short name, and each request clones it:
//!
//! ```
//! use apsis_auth::ApsisAuthLayer;
//! use axum::{Router, extract::State, http::{Request, Response, StatusCode}, routing::get};
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use tower::{BoxError, Service, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
//!
//! type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<axum::body::Body>, BoxError>;
//!
//! async fn keyspaces(State(api): State<ApiClient>) -> Result<(StatusCode, axum::body::Body), StatusCode> {
//!     let request = Request::get("https://api.apsis.one/audience/keyspaces").body(Full::default());
//!     let request = request.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
//!     match api.oneshot(request).await {
//!         // Not its fields: some are for this connection alone.
//!         Ok(answer) => Ok((answer.status(), answer.into_body())),
//!         Err(error) => {
//!             tracing::warn!(error, "APSIS One did not answer");
//!             Err(StatusCode::BAD_GATEWAY)
//!         }
//!     }
//! }
//!
//! fn app<S>(auth: ApsisAuthLayer, https_client: S) -> Router
//! where
//!     S: Service<Request<Full<Bytes>>, Response = Response<axum::body::Body>, Error: Into<BoxError>, Future: Send>,
//!     S: Clone + Send + Sync + 'static,
//! {
//!     let api = BoxCloneSyncService::new(ServiceBuilder::new().layer(auth).service(https_client));
//!     Router::new().route("/keyspaces", get(keyspaces)).with_state(api)
//! }
//! ```
//!
//! The layer is for clients. On a `Router` it does not compile, since its errors are none that a server can answer with. A whole
//! gateway is in `examples/axum_gateway`.
//!
//! # reqwest
//!
//! reqwest's client takes and returns types of its own, so the layer does not go on it directly. Two of tower's combinators
//! turn the types into those of `http` and back. The same client can send the token requests, so that its proxy and its
//! certificates serve both. It takes the feature `reqwest` of this crate, `filter` of tower and `map-request-body` of tower-http:
//!
//! ```
//! # #[cfg(feature = "reqwest")]
//! # fn build(credentials: apsis_auth::ClientCredentials, client: reqwest::Client) -> Result<(), apsis_auth::BuildError> {
//! use apsis_auth::{ApsisAuthLayer, Region};
//! use http::{Request, Response};
//! use reqwest::Body;
//! use tower::{BoxError, Layer, ServiceBuilder, util::BoxCloneSyncService};
//! use tower_http::ServiceBuilderExt;
//!
//! // Made with `redirect::Policy::none()`.
//! let http_client = ServiceBuilder::new()
//!     .map_response(Response::<Body>::from)
//!     .filter(|request: Request<Body>| reqwest::Request::try_from(request))
//!     .service(client);
//! let transport = ServiceBuilder::new().map_request_body(Body::wrap).service(http_client.clone());
//! let auth = ApsisAuthLayer::builder(credentials, Region::Eu).transport(transport).build()?;
//! // Boxed, for a type to keep it by.
//! let client: BoxCloneSyncService<Request<Body>, Response<Body>, BoxError> =
//!     BoxCloneSyncService::new(auth.layer(http_client));
//! # let _ = client;
//! # Ok(())
//! # }
//! ```
//!
//! A request that reqwest has built is sent by `client.clone().oneshot(request.try_into()?)`, and an answer read as
//! `reqwest::Response::from(answer)`.
//!
//! reqwest reads a URI by the rules of browsers: it takes `..` and `%2E%2E` out of a path, and leaves all other encoding as it
//! is. An answer's URL is lost on the way, and stands in no error: `with_url` puts it there. A time limit of the client is for
//! each sending.
//!
//! # When it does not compile
//!
//! [At the service](crate::ApsisAuth#when-it-does-not-compile) stands what is needed, and the remedies. `the method oneshot
//! exists … but its trait bounds were not satisfied` does not say what is missing. Box the finished client, as above, or bind
//! it by the trait `Service`: then the compiler says it.
//!
//! # Whole programs
//!
//! In the folder `examples`: `hyper.rs`, `reqwest.rs`, `axum_gateway` and `import`. What this page says has tests, most of
//! them in `tests/laws/stacks.rs`, `tests/laws/capacity.rs`, `tests/sockets/stacks.rs` and `tests/sockets/clients.rs`.
