//! Stacks in which one line is the remedy. `--cfg without="…"` takes it out.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::ApsisAuthLayer;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body, Frame};
use http_body_util::Full;
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt, service_fn,
    util::{BoxCloneSyncService, BoxService},
};
use tower_http::{ServiceBuilderExt, timeout::TimeoutLayer};

type Answered = Result<Response<String>, BoxError>;

pub(crate) async fn own_body(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new();
    #[cfg(not(without = "ReplayBody"))]
    let stack = stack.map_request_body(apsis_auth::ReplayBody::new);
    let client = stack.layer(auth).service(Api);
    is_a_service::<Request<OwnBody>>(&client);
    client.oneshot(request(OwnBody)).await
}

pub(crate) async fn own_body_at_oneshot(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new();
    #[cfg(not(without = "Once, at oneshot"))]
    let stack = stack.map_request_body(apsis_auth::Once::new);
    stack.layer(auth).service(Api).oneshot(request(OwnBody)).await
}

pub(crate) async fn own_body_at_ready(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new();
    #[cfg(not(without = "Once, at ready"))]
    let stack = stack.map_request_body(apsis_auth::Once::new);
    let mut client = stack.layer(auth).service(Api);
    client.ready().await?.call(request(OwnBody)).await
}

pub(crate) async fn own_body_at_a_box(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new();
    #[cfg(not(without = "Once, at a box"))]
    let stack = stack.map_request_body(apsis_auth::Once::new);
    let client: BoxCloneSyncService<Request<OwnBody>, _, _> = BoxCloneSyncService::new(stack.layer(auth).service(Api));
    client.oneshot(request(OwnBody)).await
}

pub(crate) async fn not_clone(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new().layer(auth);
    #[cfg(not(without = "buffer"))]
    let stack = stack.buffer(8);
    let client = stack.service(BoxService::new(Api));
    is_a_service::<Request<String>>(&client);
    client.oneshot(request(String::new())).await
}

pub(crate) async fn own_error(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new().layer(auth);
    #[cfg(not(without = "map_err"))]
    let stack = stack.map_err(|OwnError(why)| why);
    let client = stack.service(service_fn(async |request: Request<String>| Ok::<_, OwnError>(answer(&request))));
    is_a_service::<Request<String>>(&client);
    client.oneshot(request(String::new())).await
}

pub(crate) async fn own_response(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new().layer(auth);
    #[cfg(not(without = "map_response"))]
    let stack = stack.map_response(|OwnResponse(response)| response);
    let client =
        stack.service(service_fn(async |request: Request<String>| Ok::<_, Infallible>(OwnResponse(answer(&request)))));
    is_a_service::<Request<String>>(&client);
    client.oneshot(request(String::new())).await
}

pub(crate) async fn another_body(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new().layer(auth);
    #[cfg(not(without = "map_request_body"))]
    let stack = stack.map_request_body(Full::<Bytes>::from);
    let client = stack.service(service_fn(async |request: Request<Full<Bytes>>| Ok::<_, Infallible>(answer(&request))));
    is_a_service::<Request<String>>(&client);
    client.oneshot(request(String::new())).await
}

pub(crate) async fn no_default_body(auth: ApsisAuthLayer) -> Answered {
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(60)))
        .layer(auth);
    #[cfg(not(without = "map_response_body"))]
    let stack = stack.map_response_body(|OwnText(text)| text);
    let client =
        stack.service(service_fn(async |request: Request<String>| Ok::<_, Infallible>(answer(&request).map(OwnText))));
    is_a_service::<Request<String>>(&client);
    client.oneshot(request(String::new())).await
}

/// It wants a network, so it is compiled and not called. The tests of the sockets call it.
#[cfg(feature = "reqwest")]
pub(crate) fn reqwests_client(auth: ApsisAuthLayer, client: reqwest::Client) {
    let stack = ServiceBuilder::new().layer(auth);
    #[cfg(not(without = "filter"))]
    let stack = stack
        .map_response(Response::<reqwest::Body>::from)
        .filter(|request: Request<reqwest::Body>| reqwest::Request::try_from(request));
    is_a_service::<Request<reqwest::Body>>(&stack.service(client));
}

/// On a server's router it has no place.
#[cfg(feature = "axum")]
pub(crate) fn router(auth: ApsisAuthLayer) -> axum::Router {
    let router = axum::Router::new();
    #[cfg(without = "no layer on a router")]
    let router = router.layer(auth);
    #[cfg(not(without = "no layer on a router"))]
    drop(auth);
    router
}

/// What a stack is to be, so that the compiler says why it is not.
fn is_a_service<R>(_: &impl Service<R>) {}

#[derive(Clone)]
struct Api;

impl<B> Service<Request<B>> for Api {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(answer(&request)))
    }
}

struct OwnBody;

impl Body for OwnBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

struct OwnError(&'static str);

struct OwnResponse(Response<String>);

struct OwnText(String);

fn request<B>(body: B) -> Request<B> {
    Request::post("https://api.apsis.one/").body(body).unwrap()
}

/// The token that arrived.
fn answer<B>(request: &Request<B>) -> Response<String> {
    Response::new(request.headers()[AUTHORIZATION].to_str().unwrap().to_owned())
}
