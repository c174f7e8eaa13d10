//! google-cloud-auth: a user account, whose refresh token needs no key.

use google_cloud_auth::credentials::{CacheableResource, Credentials, user_account::Builder};
use http::{Extensions, HeaderMap};
use serde_json::json;

use crate::variant::{Credential, Surroundings, Variant};

const NAME: &str = "google-cloud-auth";

pub(crate) fn user_account(surroundings: &Surroundings) -> Variant {
    let account = json!({
        "type": "authorized_user",
        "client_id": "client-id",
        "client_secret": "secret",
        "refresh_token": "refresh-token",
        "token_uri": surroundings.endpoint.url(NAME),
    });
    let credentials = surroundings.runtime.block_on(async {
        let credentials = Builder::new(account).build().expect("the account is complete");
        credentials.headers(Extensions::new()).await.expect("the endpoint has a token");
        credentials
    });
    let variant = Variant::new(credentials);
    assert_eq!(surroundings.endpoint.asked(NAME), 1);
    variant
}

impl Credential for Credentials {
    async fn stamp(&self, headers: &mut HeaderMap) {
        match self.headers(Extensions::new()).await.expect("there is a token") {
            CacheableResource::New { data, .. } => headers.extend(data),
            CacheableResource::NotModified => unreachable!("no entity tag was given"),
        }
    }
}
