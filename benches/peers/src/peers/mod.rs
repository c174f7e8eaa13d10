//! A file for each peer.

mod aws_smithy;
mod azure_identity;
mod by_hand;
mod cf_gears;
mod gcp_auth;
mod google_cloud_auth;
mod kube;
mod layers;
mod object_store;
pub(crate) mod service_account;
mod yup_oauth2;

use http::{HeaderMap, HeaderValue, header};

use crate::variant::{Surroundings, Variant};

/// The service without a token.
pub(crate) const BARE: &str = "bare";
/// The least that a layer can do.
pub(crate) const LIMIT: &str = "static-header";

type Make = fn(&Surroundings) -> Variant;

/// Each with its name.
pub(crate) const VARIANTS: [(&str, Make); 19] = [
    (BARE, |_| Variant::bare()),
    (LIMIT, layers::static_header),
    ("tower-http-add-authorization", layers::add_authorization),
    ("floor", layers::floor),
    ("ours-without-replay", layers::ours_without_replay),
    ("ours-with-replay", layers::ours_with_replay),
    ("tower-retry-static-header", layers::retry),
    ("mutex-by-hand", by_hand::mutex),
    ("rwlock-by-hand", by_hand::rwlock),
    ("google-cloud-auth", google_cloud_auth::user_account),
    ("azure-identity", azure_identity::client_secret),
    ("object-store-azure", object_store::azure),
    ("gcp-auth", gcp_auth::service_account),
    ("yup-oauth2", yup_oauth2::service_account),
    ("kube-plugin", kube::plugin),
    ("kube-token-file", kube::token_file),
    ("aws-smithy-lazy-cache", aws_smithy::lazy_cache),
    ("cf-gears-bearer", cf_gears::bearer),
    ("cf-gears-bearer-auto-refresh", cf_gears::auto_refresh),
];

/// Who has a token in hand writes this; the buffer becomes the header's.
fn insert_bearer(headers: &mut HeaderMap, token: &str) {
    let value = HeaderValue::try_from(format!("Bearer {token}")).expect("a token is a header value");
    headers.insert(header::AUTHORIZATION, value);
}
