//! cf-gears-toolkit-auth: its bearer layer, and the one that keeps a copy of the request and sends it again after a 401.

use http::{Request, Response};
use toolkit_auth::{BearerAuthAutoRefreshLayer, BearerAuthLayer, OAuthClientConfig, SecretString, TokenProvider};
use toolkit_http::{HttpClientConfig, HttpError};
use tower::{Layer, Service, ServiceExt};

use crate::{
    measure::Body,
    variant::{Inner, Peer, Surroundings, Variant},
};

pub(crate) fn bearer(surroundings: &Surroundings) -> Variant {
    with_token(surroundings, "cf-gears-bearer", |provider| Variant::new(BearerAuthLayer::new(provider)))
}

pub(crate) fn auto_refresh(surroundings: &Surroundings) -> Variant {
    with_token(surroundings, "cf-gears-bearer-auto-refresh", |provider| {
        Variant::new(BearerAuthAutoRefreshLayer::new(provider))
    })
}

fn with_token(surroundings: &Surroundings, name: &str, new: impl FnOnce(TokenProvider) -> Variant) -> Variant {
    let config = OAuthClientConfig {
        token_endpoint: Some(surroundings.endpoint.url(name).parse().expect("it is a URL")),
        client_id: "client-id".to_owned(),
        client_secret: SecretString::new("secret"),
        // The others take no http.
        http_config: Some(HttpClientConfig::for_testing()),
        ..OAuthClientConfig::default()
    };
    let provider = surroundings.runtime.block_on(async {
        let provider = TokenProvider::new(config).expect("the settings are complete");
        provider.get().await.expect("the endpoint has a token");
        provider
    });
    let variant = new(provider);
    assert_eq!(surroundings.endpoint.asked(name), 1);
    variant
}

impl Peer for BearerAuthLayer {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        self.layer(inner.map_err(|never| -> HttpError { match never {} }))
    }
}

impl Peer for BearerAuthAutoRefreshLayer {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        self.layer(inner.map_err(|never| -> HttpError { match never {} }))
    }
}
