//! Tower middleware that gives every request to APSIS One a valid bearer token.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod credentials;
mod error;
mod origin;

pub use credentials::{ClientCredentials, Region};
pub use error::{AuthError, BuildError, RetryAt};
pub use origin::BaseUrl;
