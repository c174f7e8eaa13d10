//! Law 29: what can be named, sent, shared and wrapped. The layer asks nothing of a service and of a body but what it needs.

use std::{
    cell::Cell,
    convert::Infallible,
    error::Error,
    fmt::{self, Debug},
    future::{Ready, ready},
    marker::{PhantomData, PhantomPinned},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use apsis_auth::{
    AccessToken, ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, AuthError, AuthOutcome, BaseUrl, BuildError,
    ClientCredentials, Grounded, Once, Region, Rejection, ReplayBody, ReplayableBody, ResponseFuture, RetryAt,
    Snapshot, TokenHandle, TokenState,
};
use bytes::{Buf, Bytes};
use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::task::{LocalSet, spawn_local};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn,
    util::{BoxCloneService, BoxCloneSyncService, BoxService, ServiceFn, UnsyncBoxService},
};
use tower_http::ServiceBuilderExt;

use crate::support::{BASE, World, keyspaces, limited, send};

type Nothing = Empty<&'static [u8]>;
type Answering = ServiceFn<fn(Request<Nothing>) -> Ready<Result<Response<Nothing>, Infallible>>>;

/// Whether a type has a trait: the constant that is only there for those that have it goes before the one for all.
macro_rules! has {
    ($type:ty: $bound:path) => {{
        struct Asked<T>(PhantomData<T>);
        #[allow(dead_code, reason = "of those that do not have it")]
        impl<T: $bound> Asked<T> {
            const ANSWER: bool = true;
        }
        <Asked<$type>>::ANSWER
    }};
}

trait Otherwise {
    const ANSWER: bool = false;
}

impl<T> Otherwise for T {}

#[test]
fn a_service_is_what_the_inner_one_is() {
    const {
        assert!(has!(ApsisAuth<Inner>: Send) && has!(ApsisAuth<Inner>: Sync) && has!(ApsisAuth<Inner>: Unpin));
        assert!(has!(ApsisAuth<Inner<Unsync>>: Send) && !has!(ApsisAuth<Inner<Unsync>>: Sync));
        assert!(!has!(ApsisAuth<Inner<Unsend>>: Send) && !has!(ApsisAuth<Inner<Unsend>>: Sync));
        assert!(!has!(ApsisAuth<Inner<Pinned>>: Unpin));
        assert!(has!(ApsisAuth<Inner>: Clone) && !has!(ApsisAuth<Inner<Unclone>>: Clone));
    }
}

/// It keeps the service for a replay, and the response while it renews.
#[test]
fn a_future_is_what_the_service_its_future_the_response_and_the_body_are() {
    type Of<S, F = (), R = (), B = ()> = ResponseFuture<Inner<S, F, R>, ReplayBody<Own<B>>>;
    type OfFuture<F> = Of<(), F>;
    type OfResponse<R> = Of<(), (), R>;
    type OfBody<B> = Of<(), (), (), B>;
    const {
        assert!(has!(Of<()>: Send) && has!(Of<()>: Sync) && has!(Of<()>: Unpin));
        assert!(has!(Of<Unsync>: Send) && !has!(Of<Unsync>: Sync));
        assert!(has!(OfFuture<Unsync>: Send) && !has!(OfFuture<Unsync>: Sync));
        assert!(has!(OfResponse<Unsync>: Send) && !has!(OfResponse<Unsync>: Sync));
        assert!(has!(OfBody<Unsync>: Send) && !has!(OfBody<Unsync>: Sync));
        assert!(has!(ResponseFuture<Inner, ReplayBody<Full<Chunk>>>: Send));
        assert!(has!(ResponseFuture<Inner, UnsyncBoxBody<Chunk, Infallible>>: Send));
        assert!(!has!(Of<Unsend>: Send));
        assert!(!has!(OfFuture<Unsend>: Send));
        assert!(!has!(OfResponse<Unsend>: Send));
        assert!(!has!(OfBody<Unsend>: Send));
        // Only the inner future is pinned where it is.
        assert!(has!(Of<Pinned>: Unpin) && has!(OfResponse<Pinned>: Unpin) && has!(OfBody<Pinned>: Unpin));
        assert!(!has!(OfFuture<Pinned>: Unpin));
    }
}

/// To replay a request it cannot do without the client's own future and a clone of the client.
#[test]
fn a_future_is_little_larger_than_what_it_cannot_do_without() {
    type Client = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;
    type Their = <Client as Service<Request<Full<Bytes>>>>::Future;
    const {
        assert!(size_of::<ResponseFuture<Client, Full<Bytes>>>() <= size_of::<Their>() + size_of::<Client>() + 192);
    }
}

#[tokio::test(start_paused = true)]
async fn any_service_that_is_clone_is_served_whatever_else_it_is() {
    async fn replayed<S, F, R>()
    where
        Inner<S, F, R>: Default + Clone + Service<Request<Full<Bytes>>, Response = Response<R>, Error = Infallible>,
    {
        let client = World::new().layer().layer(Inner::<S, F, R>::default());
        assert_replayed(send(&client, keyspaces()).await);
    }
    limited(async {
        replayed::<(), (), ()>().await;
        replayed::<Unsend, Unsend, Unsend>().await;
        replayed::<Unsync, Unsync, Unsync>().await;
        replayed::<Pinned, Pinned, Pinned>().await;
        replayed::<(), Unclone, Unclone>().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_send_is_served_by_local_tasks() {
    limited(LocalSet::new().run_until(async {
        let client = World::new().layer().layer(Inner::<Unsend, Unsend, Unsend>::default());
        let tasks: Vec<_> = (0..3).map(|_| spawn_local(client.clone().oneshot(keyspaces()))).collect();
        for task in tasks {
            assert_replayed(task.await.unwrap());
        }
    }))
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_and_a_body_that_borrow_are_served() {
    limited(async {
        let (profile, sends) = (b"profile".to_vec(), Cell::new(0));
        let counted = |request| {
            sends.set(sends.get() + 1);
            request
        };
        let client = ServiceBuilder::new().layer(World::new().layer()).map_request(counted).service(reading());

        let answer = client.oneshot(post(Full::new(&profile[..]))).await;

        assert_replayed(answer);
        assert_eq!(sends.get(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_error_of_any_type_that_becomes_a_boxed_one_arrives_as_it_is() {
    async fn error<E: Into<BoxError>>(fails: impl Fn() -> E + Clone) -> BoxError {
        let api = service_fn(|_| ready(Err::<Response<()>, E>(fails())));
        send(&World::new().layer().layer(api), keyspaces()).await.unwrap_err()
    }
    limited(async {
        let borrowed = "down".to_owned();
        assert_eq!(error(|| "down").await.to_string(), "down");
        assert_eq!(error(|| &borrowed[..]).await.to_string(), "down");
        assert_eq!(error(|| borrowed.clone()).await.to_string(), "down");
        assert!(error(|| OwnError).await.is::<OwnError>());
        assert!(error(|| Box::new(OwnError)).await.is::<Box<OwnError>>());
        assert!(error(|| BoxError::from(OwnError)).await.is::<OwnError>());
        assert_replayed(send(&World::new().layer().layer(Inner::<()>::default()), keyspaces()).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn any_body_is_served_once_it_is_wrapped() {
    async fn served<M: Default>() {
        let layer = World::new().layer();
        let client = ServiceBuilder::new().map_request_body(ReplayBody::new).layer(layer.clone()).service(reading());
        assert_replayed(client.oneshot(post(Own::<M>::default())).await);

        let client = ServiceBuilder::new().map_request_body(Once::new).layer(layer).service(reading());
        let response = client.oneshot(post(Own::<M>::default())).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotReplayable)));
    }
    limited(async {
        served::<()>().await;
        served::<Unsend>().await;
        served::<Unsync>().await;
        served::<Pinned>().await;
        served::<Unclone>().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_is_boxed_and_served() {
    limited(async {
        let client = || World::new().layer().layer(Inner::<()>::default());
        assert_replayed(BoxService::new(client()).oneshot(keyspaces()).await);
        assert_replayed(send(&BoxCloneService::new(client()), keyspaces()).await);
        assert_replayed(send(&BoxCloneSyncService::new(client()), keyspaces()).await);
        let client = World::new().layer().layer(Inner::<Unsend, Unsend>::default());
        assert_replayed(UnsyncBoxService::new(client).oneshot(keyspaces()).await);
    })
    .await;
}

/// Around a boxed service the layer, as tower's own, cannot be proved `Send` within a task; boxed itself it can.
#[tokio::test(start_paused = true)]
async fn around_a_boxed_service_it_goes_into_a_task_once_it_is_boxed_itself() {
    limited(async {
        type Boxed = BoxCloneSyncService<Request<Full<Bytes>>, Response<()>, BoxError>;
        let inner = Boxed::new(ServiceBuilder::new().map_err(BoxError::from).service(Inner::<()>::default()));
        let client = Boxed::new(World::new().layer().layer(inner));
        assert_replayed(tokio::spawn(async move { client.oneshot(keyspaces()).await }).await.unwrap());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_function_over_any_service_asks_no_more_than_it_promises() {
    fn client<S, B, R>(
        auth: &ApsisAuthLayer,
        inner: S,
    ) -> impl Service<Request<B>, Response = Response<R>, Error = BoxError> + Clone
    where
        S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>> + Clone,
        B: ReplayableBody,
    {
        auth.layer(inner)
    }
    /// For tasks that may move from thread to thread.
    fn sent<S, B, R>(
        auth: &ApsisAuthLayer,
        inner: S,
    ) -> impl Service<Request<B>, Response = Response<R>, Error = BoxError, Future: Send> + Clone + Send + use<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send> + Clone + Send,
        B: ReplayableBody<Kept: Send> + Send,
        R: Send,
    {
        auth.layer(inner)
    }
    limited(async {
        let auth = World::new().layer();
        assert_replayed(send(&client(&auth, Inner::<Unsend, Unsend, Unsend>::default()), keyspaces()).await);
        let client = sent(&auth, Inner::<Unsync>::default());
        assert_replayed(tokio::spawn(async move { client.oneshot(keyspaces()).await }).await.unwrap());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_printed_has_its_name_and_little_else() {
    limited(async {
        let layer = World::new().layer();
        let mut body = ReplayBody::new(Nothing::new());
        let kept = body.keep(1);
        assert_eq!(format!("{body:?} {kept:?}"), "ReplayBody { .. } KeptBody { .. }");
        assert_eq!(format!("{:?}", Once::new(Nothing::new())), "Once { .. }");
        assert_eq!(format!("{:?}", layer.layer(Inner::<()>::default()).call(keyspaces())), "ResponseFuture { .. }");
        let builder = World::new().builder().rejection_rule(|_, _| None);
        assert!(format!("{builder:?}").contains("Rule { .. }"), "{builder:?}");
        assert!(format!("{layer:?}").contains("TokenCache { current: None"), "{layer:?}");
        layer.handle().warm_up().await.unwrap();
        assert!(format!("{layer:?}").contains("TokenCache { current: Some("), "{layer:?}");
    })
    .await;
}

#[test]
fn every_public_type_can_be_sent_shared_and_printed() {
    fn check<T: Send + Sync + Debug + 'static>() {}
    check::<AccessToken>();
    check::<ApsisAuth<Answering>>();
    check::<ApsisAuthBuilder>();
    check::<ApsisAuthLayer>();
    check::<AuthError>();
    check::<AuthOutcome>();
    check::<BaseUrl>();
    check::<BuildError>();
    check::<ClientCredentials>();
    check::<Grounded>();
    #[cfg(feature = "client")]
    check::<apsis_auth::HttpsTransport>();
    check::<Once<Nothing>>();
    check::<Region>();
    check::<Rejection>();
    check::<ReplayBody<Nothing>>();
    check::<ResponseFuture<Answering, Nothing>>();
    check::<RetryAt>();
    check::<Snapshot>();
    check::<TokenHandle>();
    check::<TokenState>();
}

// What lacks one thing.

#[derive(Clone, Default)]
struct Unsend(PhantomData<Rc<()>>);

#[derive(Clone, Default)]
struct Unsync(PhantomData<Cell<()>>);

#[derive(Clone, Default)]
struct Pinned(PhantomData<PhantomPinned>);

#[derive(Default)]
struct Unclone;

/// An API that rejects the first token it sees. Itself it is as `S` is, its future as `F`, its response's body as `R`.
#[derive(Default)]
struct Inner<S = (), F = (), R = ()> {
    rejects: Arc<OnceLock<HeaderValue>>,
    is: S,
    _answers: PhantomData<fn() -> (F, R)>,
}

impl<S: Clone, F, R> Clone for Inner<S, F, R> {
    fn clone(&self) -> Self {
        Self { rejects: Arc::clone(&self.rejects), is: self.is.clone(), _answers: PhantomData }
    }
}

impl<S, F: Default, R: Default, B> Service<Request<B>> for Inner<S, F, R> {
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Answer<F, R>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Answer<F, R> {
        let token = &request.headers()[AUTHORIZATION];
        let is_rejected = self.rejects.get_or_init(|| token.clone()) == token;
        let status = if is_rejected { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
        Answer { status, _is: F::default(), _answers: PhantomData }
    }
}

/// Such an API that reads what it is sent.
fn reading<B>() -> impl Service<Request<B>, Response = Response<()>, Error = Infallible> + Clone
where
    B: Body<Data: Buf, Error: Debug>,
{
    let api = Inner::<()>::default();
    service_fn(move |request: Request<B>| {
        let api = api.clone();
        async move {
            let (head, body) = request.into_parts();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "profile");
            api.oneshot(Request::from_parts(head, ())).await
        }
    })
}

struct Answer<F, R> {
    status: StatusCode,
    _is: F,
    _answers: PhantomData<fn() -> R>,
}

impl<F, R: Default> Future for Answer<F, R> {
    type Output = Result<Response<R>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = Response::new(R::default());
        *response.status_mut() = self.status;
        Poll::Ready(Ok(response))
    }
}

/// A body of the caller's own. It is as `M` is, and its error is none.
#[derive(Default)]
struct Own<M> {
    was_sent: AtomicBool,
    _is: M,
}

/// Data that can be sent to another thread and not shared with it.
#[derive(Clone)]
struct Chunk(Cell<&'static [u8]>);

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.0.get().len()
    }

    fn chunk(&self) -> &[u8] {
        self.0.get()
    }

    fn advance(&mut self, by: usize) {
        self.0.set(&self.0.get()[by..]);
    }
}

#[derive(Debug)]
struct NoError;

impl<M> Body for Own<M> {
    type Data = Bytes;
    type Error = NoError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, NoError>>> {
        let was_sent = self.was_sent.swap(true, Ordering::Relaxed);
        Poll::Ready((!was_sent).then(|| Ok(Frame::data("profile".into()))))
    }
}

#[derive(Debug)]
struct OwnError;

impl fmt::Display for OwnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("own error")
    }
}

impl Error for OwnError {}

fn post<B>(body: B) -> Request<B> {
    Request::post(BASE).body(body).unwrap()
}

fn assert_replayed<R>(answer: Result<Response<R>, BoxError>) {
    let answer = answer.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(matches!(answer.extensions().get(), Some(AuthOutcome::Replayed)));
}
