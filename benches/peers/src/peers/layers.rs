//! Layers that have a token at hand: the limit, tower-http's, tower's `Retry`, and ours.

use std::future::{Ready, ready};

use http::{Request, Response, StatusCode};
use tower::{
    Layer, Service,
    retry::{Policy, Retry},
};
use tower_http::auth::AddAuthorizationLayer;

use crate::{
    floor::Floor,
    measure::{self, Body, StaticHeader, token},
    variant::{Inner, Peer, Surroundings, Variant},
};

pub(crate) fn static_header(_: &Surroundings) -> Variant {
    Variant::new(Static)
}

pub(crate) fn floor(_: &Surroundings) -> Variant {
    Variant::new(Least)
}

pub(crate) fn add_authorization(_: &Surroundings) -> Variant {
    Variant::new(AddAuthorizationLayer::bearer(&token()).as_sensitive(true))
}

pub(crate) fn retry(_: &Surroundings) -> Variant {
    Variant::new(OnUnauthorized)
}

pub(crate) fn ours_without_replay(_: &Surroundings) -> Variant {
    ours(false)
}

pub(crate) fn ours_with_replay(_: &Surroundings) -> Variant {
    ours(true)
}

fn ours(with_replay: bool) -> Variant {
    let layer = measure::layer(with_replay);
    let handle = layer.handle();
    let variant = Variant::new(Ours(layer));
    let generation = handle.snapshot().token.map(|token| token.generation);
    assert_eq!(generation, Some(1), "the token endpoint was asked once");
    variant
}

struct Static;

impl Peer for Static {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        StaticHeader::new(inner)
    }
}

struct Least;

impl Peer for Least {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        Floor::new(inner)
    }
}

impl Peer for AddAuthorizationLayer {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        self.layer(inner)
    }
}

struct Ours(apsis_auth::ApsisAuthLayer);

impl Peer for Ours {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        self.0.layer(inner)
    }
}

/// Sends a request again when its token was rejected; above a static header.
#[derive(Clone, Copy)]
struct OnUnauthorized;

impl Peer for OnUnauthorized {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        Retry::new(*self, StaticHeader::new(inner))
    }
}

impl<E> Policy<Request<Body>, Response<()>, E> for OnUnauthorized {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Result<Response<()>, E>) -> Option<Ready<()>> {
        matches!(result, Ok(response) if response.status() == StatusCode::UNAUTHORIZED).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}
