//! In your tests: APSIS One in the process of your own test-suite, and the ways in which it can trouble you.
//!
//! The [emulator](crate::emulator) is a feature, for tests alone:
//!
//! ```toml
//! [dev-dependencies]
//! apsis-auth = { version = "0.1", features = ["emulator"] }
//! tokio = { version = "1", features = ["macros", "rt", "test-util"] }
//! ```
//!
//! It knows the limits, the rejections and the tokens as they are published. Of the API it has [a few
//! routes](crate::emulator#what-it-answers), with [answers that are made up](crate::emulator#where-it-is-not-apsis-one). For others
//! a script can answer: [`script_api_answers`](crate::emulator::Emulator::script_api_answers) is for any path.
//!
//! # With your own client, over a socket
//!
//! Most programs need two things for it: the base URL as a parameter, and a client that also speaks plain `http`
//! (`.https_or_http()` of hyper-rustls's builder). The layer takes plain `http` on a loopback address and nowhere else.
//!
//! ```
//! # #[cfg(feature = "client")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! use apsis_auth::{ApsisAuth, ApsisAuthLayer, ClientCredentials, emulator::Emulator};
//! use bytes::Bytes;
//! use http::{Request, StatusCode};
//! use http_body_util::Full;
//! use hyper_util::{
//!     client::legacy::{Client, connect::HttpConnector},
//!     rt::TokioExecutor,
//! };
//! use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
//! use tower::{BoxError, Layer, ServiceExt};
//!
//! /// What is to be tested.
//! struct Crm {
//!     base: String,
//!     client: ApsisAuth<Client<HttpConnector, Full<Bytes>>>,
//! }
//!
//! impl Crm {
//!     fn new(credentials: ClientCredentials, base: &str) -> Result<Self, BoxError> {
//!         let auth = ApsisAuthLayer::builder(credentials, base).build()?;
//!         let client = auth.layer(Client::builder(TokioExecutor::new()).build_http());
//!         Ok(Self { base: base.to_owned(), client })
//!     }
//!
//!     async fn moves_to(&self, email: &str, city: &str) -> Result<StatusCode, BoxError> {
//!         let email = utf8_percent_encode(email, NON_ALPHANUMERIC);
//!         let profile = format!("/audience/keyspaces/com.apsis1.keyspaces.email/profiles/{email}");
//!         let uri = format!("{}{profile}/sections/com.apsis1.sections.default/attributes", self.base);
//!         let request = Request::patch(uri).header("content-type", "application/merge-patch+json");
//!         let request = request.body(Full::from(serde_json::json!({ "city": city }).to_string()))?;
//!         Ok(self.client.clone().oneshot(request).await?.status())
//!     }
//! }
//!
//! // The test: a token that is revoked is nobody's concern.
//! let apsis = Emulator::new();
//! let server = apsis.serve().await?;
//! let crm = Crm::new(apsis.api_key().credentials(), &server.url())?;
//!
//! assert_eq!(crm.moves_to("andy.demo@apsis.com", "Lund").await?, StatusCode::NO_CONTENT);
//! apsis.revoke_tokens();
//! assert_eq!(crm.moves_to("andy.demo@apsis.com", "Oslo").await?, StatusCode::NO_CONTENT);
//!
//! let profile = apsis.profile("com.apsis1.keyspaces.email", "andy.demo@apsis.com").ok_or("a profile")?;
//! assert_eq!(profile.attributes["city"], "Oslo");
//! assert_eq!(apsis.counters().token_requests, 2);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "client"))]
//! # fn main() {}
//! ```
//!
//! [`serve_https`](crate::emulator::Emulator::serve_https) does the same with TLS. The certificate is made at start:
//! [`certificate_der`](crate::emulator::EmulatorServer::certificate_der) for your client, and for token requests
//! `HttpsTransport::trusting`.
//!
//! # Without a socket, and in no time
//!
//! An [`Emulator`](crate::emulator::Emulator) is a tower service itself: it can be the client beneath the layer and the transport
//! of token requests. Then tokio's clock can be paused (its feature `test-util`), and a day passes at once.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! # tokio::time::pause();
//! use std::time::Duration;
//!
//! use apsis_auth::{ApsisAuthLayer, AuthError, emulator::{Answer, Emulator}};
//! use bytes::Bytes;
//! use http::{Request, StatusCode};
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt};
//!
//! // In a function with `#[tokio::test(start_paused = true)]`.
//! let apsis = Emulator::new();
//! let auth = ApsisAuthLayer::builder(apsis.api_key().credentials(), "https://api.apsis.one")
//!     .transport(apsis.clone())
//!     .build()?;
//! let client = auth.layer(apsis.clone());
//! let call = || {
//!     let request = Request::get("https://api.apsis.one/audience/keyspaces").body(Full::<Bytes>::default());
//!     let client = client.clone();
//!     async move { client.oneshot(request?).await }
//! };
//!
//! // The token endpoint is over its limit: the error says so, and when there is another try.
//! apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "120")]);
//! let error = call().await.unwrap_err();
//! let error = error.downcast_ref::<AuthError>().ok_or("no token")?;
//! assert!(matches!(error, AuthError::RateLimited { .. }) && error.is_retryable());
//!
//! // Two minutes, and a little more at random.
//! tokio::time::sleep(Duration::from_secs(135)).await;
//! assert_eq!(call().await?.status(), StatusCode::OK);
//!
//! // A day later.
//! tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
//! assert_eq!(call().await?.status(), StatusCode::OK);
//! # Ok(())
//! # }
//! ```
//!
//! # What can go wrong, and how to make it
//!
//! | what | the control |
//! | --- | --- |
//! | tokens are revoked | [`revoke_tokens`](crate::emulator::Emulator::revoke_tokens) |
//! | … and the gateway says 403 | [`set_dialect`](crate::emulator::Emulator::set_dialect) |
//! | a right is missing | [`refuse_route`](crate::emulator::Emulator::refuse_route), or a key [without rights](crate::emulator::Emulator::add_api_key_without_rights) |
//! | the API key is deleted | [`delete_api_key`](crate::emulator::Emulator::delete_api_key) |
//! | the token endpoint is over its limit, down, or answers nonsense | [`script_token_answers`](crate::emulator::Emulator::script_token_answers) |
//! | the API is over its limit, down, or answers nonsense | [`script_api_answers`](crate::emulator::Emulator::script_api_answers), [`set_api_limit`](crate::emulator::Emulator::set_api_limit) |
//! | either is slow | [`set_token_delay`](crate::emulator::Emulator::set_token_delay), [`set_api_delay`](crate::emulator::Emulator::set_api_delay) |
//! | the clocks differ | [`set_clock_skew`](crate::emulator::Emulator::set_clock_skew) |
//!
//! What came of it, the [counters](crate::emulator::Emulator::counters) say and the stored
//! [profiles](crate::emulator::Emulator::profile). Each emulator is an account of its own, so tests do not disturb each other.
//!
//! # A test of your own error handling
//!
//! Errors come in the stack's [`BoxError`](tower::BoxError), and downcast to [`AuthError`](crate::AuthError). It cannot be made by
//! hand, so that new reasons are no breaking change; the controls above bring forth all that come of APSIS One.
