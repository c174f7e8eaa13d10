//! `azure_identity`: a client secret. Its token endpoint is always an https one, so its HTTP client is put in.

use std::sync::Arc;

use azure_core::{
    credentials::{Secret, TokenCredential},
    http::{AsyncRawResponse, ClientOptions, HttpClient, Request, StatusCode, Transport, headers::Headers},
};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};
use http::HeaderMap;

use super::insert_bearer;
use crate::{
    endpoint::Endpoint,
    variant::{Credential, Surroundings, Variant},
};

const NAME: &str = "azure-identity";

pub(crate) fn client_secret(surroundings: &Surroundings) -> Variant {
    let transport = Transport::new(Arc::new(Answering(surroundings.endpoint.clone())));
    let client_options = ClientOptions { transport: Some(transport), ..ClientOptions::default() };
    let credential = ClientSecretCredential::new(
        "tenant",
        "client-id".to_owned(),
        Secret::new("secret"),
        Some(ClientSecretCredentialOptions { client_options }),
    )
    .expect("the settings are complete");
    surroundings.runtime.block_on(credential.get_token(&SCOPES, None)).expect("the endpoint has a token");
    let variant = Variant::new(credential);
    assert_eq!(surroundings.endpoint.asked(NAME), 1);
    variant
}

const SCOPES: [&str; 1] = ["https://vault.azure.net/.default"];

impl Credential for Arc<ClientSecretCredential> {
    async fn stamp(&self, headers: &mut HeaderMap) {
        let token = self.get_token(&SCOPES, None).await.expect("there is a token");
        insert_bearer(headers, token.token.secret());
    }
}

#[derive(Debug)]
struct Answering(Endpoint);

#[async_trait::async_trait]
impl HttpClient for Answering {
    async fn execute_request(&self, _: &Request) -> azure_core::Result<AsyncRawResponse> {
        Ok(AsyncRawResponse::from_bytes(StatusCode::Ok, Headers::new(), self.0.answer(NAME)))
    }
}
