//! `gcp_auth`: a service account.

use gcp_auth::{CustomServiceAccount, TokenProvider};
use http::HeaderMap;

use super::{insert_bearer, service_account::key_file};
use crate::variant::{Credential, Surroundings, Variant};

const NAME: &str = "gcp-auth";

pub(crate) fn service_account(surroundings: &Surroundings) -> Variant {
    let key_file = key_file(&surroundings.endpoint.url(NAME));
    let account = CustomServiceAccount::from_json(&key_file).expect("the key file is complete");
    surroundings.runtime.block_on(account.token(&SCOPES)).expect("the endpoint has a token");
    let variant = Variant::new(account);
    assert_eq!(surroundings.endpoint.asked(NAME), 1);
    variant
}

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/cloud-platform"];

impl Credential for CustomServiceAccount {
    async fn stamp(&self, headers: &mut HeaderMap) {
        insert_bearer(headers, self.token(&SCOPES).await.expect("there is a token").as_str());
    }
}
