//! aws-smithy: the lazy identity cache of its clients, around a resolver of bearer tokens.
//!
//! A client makes the header by an auth scheme that takes requests of its own type, so the header is made here as there.

use std::time::{Duration, SystemTime};

use aws_smithy_async::{rt::sleep::TokioSleep, time::SystemTimeSource};
use aws_smithy_runtime::client::{
    auth::http::BearerAuthScheme, identity::IdentityCache, orchestrator::endpoints::StaticUriEndpointResolver,
    retries::strategy::NeverRetryStrategy,
};
use aws_smithy_runtime_api::client::{
    auth::{http::HTTP_BEARER_AUTH_SCHEME_ID, static_resolver::StaticAuthSchemeOptionResolver},
    identity::{
        Identity, IdentityFuture, ResolveCachedIdentity, ResolveIdentity, SharedIdentityCache, SharedIdentityResolver,
        http::Token,
    },
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::config_bag::ConfigBag;
use http::HeaderMap;

use super::insert_bearer;
use crate::{
    endpoint::Endpoint,
    measure::token,
    variant::{Credential, Surroundings, Variant},
};

const NAME: &str = "aws-smithy-lazy-cache";

pub(crate) fn lazy_cache(surroundings: &Surroundings) -> Variant {
    let cache = IdentityCache::lazy().build();
    let resolver = SharedIdentityResolver::new(Answering(surroundings.endpoint.clone()));
    let components = RuntimeComponents::builder(NAME)
        .with_auth_scheme(BearerAuthScheme::new())
        .with_auth_scheme_option_resolver(Some(StaticAuthSchemeOptionResolver::new(Vec::new())))
        .with_endpoint_resolver(Some(StaticUriEndpointResolver::uri(surroundings.endpoint.url(NAME))))
        .with_identity_cache(Some(cache.clone()))
        .with_identity_resolver(HTTP_BEARER_AUTH_SCHEME_ID, resolver.clone())
        .with_retry_strategy(Some(NeverRetryStrategy::new()))
        .with_sleep_impl(Some(TokioSleep::new()))
        .with_time_source(Some(SystemTimeSource::new()))
        .build()
        .expect("the components are complete");
    let smithy = Smithy { cache, resolver, components, config: ConfigBag::base() };
    surroundings.runtime.block_on(smithy.stamp(&mut HeaderMap::new()));
    let variant = Variant::new(smithy);
    assert_eq!(surroundings.endpoint.asked(NAME), 1);
    variant
}

struct Smithy {
    cache: SharedIdentityCache,
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    config: ConfigBag,
}

impl Credential for Smithy {
    async fn stamp(&self, headers: &mut HeaderMap) {
        let identity = self.cache.resolve_cached_identity(self.resolver.clone(), &self.components, &self.config).await;
        let identity = identity.expect("there is a token");
        insert_bearer(headers, identity.data::<Token>().expect("it is a bearer token").token());
    }
}

#[derive(Debug)]
struct Answering(Endpoint);

impl ResolveIdentity for Answering {
    fn resolve_identity<'a>(&'a self, _: &'a RuntimeComponents, _: &'a ConfigBag) -> IdentityFuture<'a> {
        self.0.answer(NAME);
        let expiry = SystemTime::now() + Duration::from_hours(24);
        IdentityFuture::ready(Ok(Identity::new(Token::new(token(), Some(expiry)), Some(expiry))))
    }
}
