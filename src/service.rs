//! [`ApsisAuth`]: stamp a request with the token at hand, or wait for one.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower::{BoxError, Service};

use crate::{ReplayableBody, ResponseFuture, future::KeptRequest, layer::Shared};

/// A service that gives requests to APSIS One a bearer token. Made by [`ApsisAuthLayer`](crate::ApsisAuthLayer).
///
/// Requests to the origin of the base URL get the token, in place of an `Authorization` of their own; if the API rejects
/// it, the token is renewed and the request replayed once. Other requests pass through as they are. What becomes of
/// tunnels, upgrades, bodies that fail and their like, the [crate's documentation](crate#requests-out-of-the-ordinary) says.
///
/// # Errors
///
/// Those of the inner service as they come, and [`AuthError`](crate::AuthError) for a request that got no token. Both as
/// [`BoxError`].
///
/// # Cancellation
///
/// A response future can be dropped at any time; what was sent may have had its effect. A token request that it waited for
/// goes on for the others.
///
/// # Panics
///
/// In tokio, where a request has to wait for a token in a runtime without a timer.
///
/// # When it does not compile
///
/// | what is needed | the remedy where it is not so |
/// | --- | --- |
/// | the request body is a [`ReplayableBody`] | above the layer `.map_request_body(ReplayBody::new)`, or `Once::new` |
/// | the inner service is `Clone` | a client that is, or beneath the layer `.buffer(64)` (tower's feature `buffer`) |
/// | it takes the same `Request<B>` | beneath the layer `.map_request_body(…)`; where it takes another type, `.map_request(…)` |
/// | its response is a `Response` | beneath the layer `.map_response(…)` |
/// | for reqwest's client both at once | beneath the layer `.map_response(Response::<reqwest::Body>::from)` and `.filter(…)` with `reqwest::Request::try_from` (tower's feature `filter`) |
/// | its error becomes a [`BoxError`]: an error that is `Send`, `Sync` and `'static`, or a string | beneath the layer `.map_err(…)` |
///
/// `map_request_body` is of tower-http's `ServiceBuilderExt`, the others are of tower's `ServiceBuilder`. For the layer nothing
/// else needs to be `Send`, `Sync`, `Unpin` or `'static`, but for the data of a [`ReplayBody`](crate::ReplayBody), which is
/// `Clone` and `'static`. A future can be sent to another thread if the inner service, its future and its response can, and
/// the request's body and what is kept of it.
///
/// `implementation of From is not general enough`: a boxed inner service (`BoxCloneSyncService` and its like) in a task that
/// is spawned, where the compiler cannot follow, with tower's own layers neither. The remedy is to box the finished client,
/// too.
///
/// Where a method is missing (`the method oneshot exists … but its trait bounds were not satisfied`), the compiler does not
/// say which of these it is. It does once the service is bound by the trait:
///
/// ```compile_fail,E0277
/// # use apsis_auth::ApsisAuthLayer;
/// # use http::{Request, Response};
/// # use tower::{Layer, Service, service_fn};
/// # struct OwnError;
/// # fn stack(auth: ApsisAuthLayer) {
/// let api = service_fn(async |_: Request<String>| Ok::<_, OwnError>(Response::new(())));
/// let client = auth.layer(api);
/// is_a_service::<Request<String>>(&client); // the trait `std::error::Error` is not implemented for `OwnError`
/// # }
///
/// fn is_a_service<R>(_: &impl Service<R>) {}
/// ```
///
/// With the remedy:
///
/// ```
/// # use apsis_auth::ApsisAuthLayer;
/// # use http::{Request, Response};
/// # use tower::{Service, ServiceBuilder, service_fn};
/// # struct OwnError;
/// # fn stack(auth: ApsisAuthLayer) {
/// # let api = service_fn(async |_: Request<String>| Ok::<_, OwnError>(Response::new(())));
/// let client = ServiceBuilder::new().layer(auth).map_err(|_: OwnError| "the API cannot be reached").service(api);
/// is_a_service::<Request<String>>(&client);
/// # }
/// # fn is_a_service<R>(_: &impl Service<R>) {}
/// ```
#[derive(Clone, Debug)]
pub struct ApsisAuth<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> ApsisAuth<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }

    /// The wrapped service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The wrapped service, to change.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The wrapped service, unwrapped.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B, ResBody> Service<Request<B>> for ApsisAuth<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
    S::Error: Into<BoxError>,
    B: ReplayableBody,
{
    type Response = Response<ResBody>;
    type Error = BoxError;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let (inner, shared) = (&mut self.inner, &self.shared);
        if !shared.covers(&request) {
            return ResponseFuture::out_of_scope(inner, request, Arc::clone(shared));
        }
        let Some(stamp) = shared.cache.stamp() else {
            return ResponseFuture::wait(inner, request, Arc::clone(shared));
        };
        let kept = KeptRequest::keep(inner, &mut request, shared.replay_limit);
        let generation = stamp.generation;
        match stamp.put_on(&mut request) {
            Ok(()) => ResponseFuture::sent(inner.call(request), generation, kept, Arc::clone(shared)),
            Err(error) => ResponseFuture::failed(error, Arc::clone(shared)),
        }
    }
}
