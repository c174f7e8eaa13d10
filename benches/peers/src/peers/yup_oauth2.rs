//! yup-oauth2: a service account.

use http::HeaderMap;
use yup_oauth2::{
    ServiceAccountAuthenticator,
    authenticator::Authenticator,
    client::{DefaultHyperClientBuilder, HyperClientBuilder},
    parse_service_account_key,
};

use super::{insert_bearer, service_account::key_file};
use crate::variant::{Credential, Surroundings, Variant};

const NAME: &str = "yup-oauth2";

pub(crate) fn service_account(surroundings: &Surroundings) -> Variant {
    let key_file = key_file(&surroundings.endpoint.url(NAME));
    let key = parse_service_account_key(key_file).expect("the key file is complete");
    let authenticator = surroundings.runtime.block_on(async {
        let authenticator = ServiceAccountAuthenticator::builder(key).build().await.expect("the key can sign");
        authenticator.token(&SCOPES).await.expect("the endpoint has a token");
        authenticator
    });
    let variant = Variant::new(Yup(authenticator));
    assert_eq!(surroundings.endpoint.asked(NAME), 1);
    variant
}

const SCOPES: [&str; 1] = ["https://www.googleapis.com/auth/cloud-platform"];

struct Yup(Authenticator<<DefaultHyperClientBuilder as HyperClientBuilder>::Connector>);

impl Credential for Yup {
    async fn stamp(&self, headers: &mut HeaderMap) {
        let token = self.0.token(&SCOPES).await.expect("there is a token");
        insert_bearer(headers, token.token().expect("it is an access token"));
    }
}
