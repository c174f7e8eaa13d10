//! `object_store`: Azure's store with a client secret, whose credential provider is public.

use http::HeaderMap;
use object_store::azure::{AzureCredential, AzureCredentialProvider, MicrosoftAzureBuilder};

use super::insert_bearer;
use crate::variant::{Credential, Surroundings, Variant};

const NAME: &str = "object-store-azure";

pub(crate) fn azure(surroundings: &Surroundings) -> Variant {
    let store = MicrosoftAzureBuilder::new()
        .with_account("account")
        .with_container_name("container")
        .with_client_secret_authorization("client-id", "secret", "tenant")
        .with_authority_host(surroundings.endpoint.url(NAME))
        .with_allow_http(true)
        .build()
        .expect("the settings are complete");
    let provider = store.credentials().clone();
    surroundings.runtime.block_on(provider.get_credential()).expect("the endpoint has a token");
    let variant = Variant::new(provider);
    assert_eq!(surroundings.endpoint.asked(NAME), 1);
    variant
}

impl Credential for AzureCredentialProvider {
    async fn stamp(&self, headers: &mut HeaderMap) {
        match &*self.get_credential().await.expect("there is a token") {
            AzureCredential::BearerToken(token) => insert_bearer(headers, token),
            other => unreachable!("a client secret makes a bearer token: {other:?}"),
        }
    }
}
