//! Tower middleware that gives every request to APSIS One a valid bearer token.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backoff;
mod budget;
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
mod flight;
mod future;
mod handle;
mod ladder;
mod layer;
mod origin;
mod rejection;
mod replay;
mod service;
mod token;

#[cfg(feature = "client")]
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
pub use client::HttpsTransport;
pub use credentials::{ClientCredentials, Region};
pub use error::{AuthError, BuildError, RetryAt};
pub use future::{AuthOutcome, ResponseFuture};
pub use handle::{Grounded, Snapshot, TokenHandle, TokenState};
pub use layer::{ApsisAuthBuilder, ApsisAuthLayer};
pub use origin::BaseUrl;
pub use rejection::{Rejection, default_rejection_rule};
pub use replay::ReplayableBody;
pub use service::ApsisAuth;
pub use token::AccessToken;
