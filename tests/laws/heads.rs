//! What is kept of a request's head: a replay is the request as it was sent, and what was kept is let go in time.

use std::{
    array,
    cell::RefCell,
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
};

use apsis_auth::{ApsisAuth, ApsisAuthLayer, AuthOutcome, ClientCredentials, ReplayableBody, ResponseFuture};
use bytes::Bytes;
use fastrand::Rng;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header::AUTHORIZATION, request,
};
use http_body_util::Full;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::support::{BASE, World, limited};

// What is replayed is what was sent.

#[tokio::test(start_paused = true)]
async fn a_replay_is_the_request_as_it_was_sent_but_for_the_token() {
    limited(async {
        let (client, arrived) = rejecting_each_first();
        let (mut longest, mut sensitive, mut own) = (0, 0, [0; 4]);
        for seed in 0..2_000 {
            let request = any_request(&mut Rng::with_seed(seed));
            let before = said(request.headers());
            let number = request.headers().get_all(AUTHORIZATION).iter().count();

            let response = client.clone().oneshot(request).await.unwrap();

            assert!(matches!(response.extensions().get(), Some(AuthOutcome::Replayed)), "seed {seed}");
            let [first, second] = pair(&arrived);
            assert_same(&first, &second, &format!("seed {seed}"));
            let after = said(&second.headers);
            assert_eq!(after, with_one_token(&before), "seed {seed}: {:?}", second.headers);
            longest = longest.max(length(&after));
            sensitive +=
                usize::from(after.iter().any(|(name, _, is_sensitive)| *is_sensitive && name != AUTHORIZATION));
            own[number] += 1;
        }
        assert!(longest > 8 * 1024 && sensitive > 100 && own.iter().all(|count| *count > 100), "it proves little");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_byte_that_a_head_may_have_is_replayed() {
    limited(async {
        let ((client, arrived), mut sent) = (rejecting_each_first(), 0);
        for byte in 0..=u8::MAX {
            for content in [vec![byte], vec![b'a', byte, b'z'], [byte].repeat(3)] {
                let path_and_query = [b"/a", &content[..], b"?", &content].concat();
                let user = [b"https://", &content[..], b"@api.apsis.one/"].concat();
                for head in [
                    Request::get(BASE).method(&content[..]),
                    Request::get(&path_and_query[..]),
                    Request::get([BASE.as_bytes(), &path_and_query].concat()),
                    Request::get(user),
                    Request::get(BASE).header(&content[..], ""),
                    Request::get(BASE).header("x-odd", &content[..]),
                ] {
                    let Ok(request) = head.body(()) else { continue };
                    if request.uri().authority().is_some_and(|authority| authority.host() != "api.apsis.one") {
                        continue;
                    }
                    let what = format!("{request:?}");
                    client.clone().oneshot(request).await.unwrap();
                    let [first, second] = pair(&arrived);
                    assert_same(&first, &second, &what);
                    sent += 1;
                }
            }
        }
        assert!(sent > 256 * 6, "{sent}: of six places most bytes may be in some");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_of_any_length_is_replayed() {
    limited(async {
        let (client, arrived) = rejecting_each_first();
        for length in (0..600).chain([1_000, 4_000, 8_191, 8_192, 8_193, 100_000, 1_000_000]) {
            let mut request = Request::get(BASE).header("x-first", "1").body(()).unwrap();
            request.headers_mut().insert("x-long", "v".repeat(length).parse().unwrap());
            request.headers_mut().insert("x-last", HeaderValue::from_static("2"));

            client.clone().oneshot(request).await.unwrap();

            let [first, second] = pair(&arrived);
            assert_eq!(second.headers["x-long"].len(), length);
            assert_same(&first, &second, &format!("{length}"));
        }
    })
    .await;
}

// What was kept is let go.

#[tokio::test(start_paused = true)]
async fn what_was_kept_goes_with_an_answer_or_an_error_though_the_future_is_held() {
    limited(async {
        for status in [Some(StatusCode::OK), Some(StatusCode::NOT_FOUND), None] {
            let (mut client, [inner, body, extension]) = (counted(status).await, array::from_fn(|_| Arc::new(())));
            client.get_mut().held = Arc::clone(&inner);
            let mut request = Request::post(BASE).body(Held(Arc::clone(&body))).unwrap();
            request.extensions_mut().insert(Arc::clone(&extension));
            let held = || [&inner, &body, &extension].map(|arc| Arc::strong_count(arc) - 1);

            let mut future = client.call(request);
            // The service's own, and what is kept of each.
            assert_eq!(held(), [2, 1, 1]);
            let answer = poll(&mut future);

            assert!(matches!(answer, Poll::Ready(answer) if answer.as_ref().ok().map(Response::status) == status));
            assert_eq!(held(), [1, 0, 0]);
            drop(future);
            assert_eq!(held(), [1, 0, 0]);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn without_replay_nothing_is_kept_of_a_head() {
    limited(async {
        let layer = World::new().builder().without_replay().build().unwrap();
        layer.handle().warm_up().await.unwrap();
        let (mut client, extension) = (layer.layer(Counted::new(Some(StatusCode::OK))), Arc::new(()));
        let mut request = Request::get(BASE).body(Held(Arc::default())).unwrap();
        request.extensions_mut().insert(Arc::clone(&extension));
        let _future = client.call(request);
        assert_eq!(Arc::strong_count(&extension), 1);
    })
    .await;
}

// Threads: what is kept on one may be let go on another, or with it.

#[tokio::test(start_paused = true)]
async fn a_request_that_goes_to_another_thread_is_replayed_there() {
    limited(async {
        let (client, arrived) = rejecting_each_first();
        let request = any_request(&mut Rng::with_seed(1));
        let future = client.clone().call(request);
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let answer = thread::spawn(move || runtime().block_on(future)).join().unwrap().unwrap();
        assert!(matches!(answer.extensions().get(), Some(AuthOutcome::Replayed)));
        let [first, second] = pair(&arrived);
        assert_same(&first, &second, "on another thread");
    })
    .await;
}

/// What a thread keeps is dropped in an order of its own, and with it the buffers that it would use again.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_until_its_thread_ends_is_dropped_like_any_other() {
    thread_local! {
        static EARLY: RefCell<Vec<ResponseFuture<Counted, Held>>> = const { RefCell::new(Vec::new()) };
        static LATE: RefCell<Vec<ResponseFuture<Counted, Held>>> = const { RefCell::new(Vec::new()) };
    }
    limited(async {
        let (client, body) = (counted(Some(StatusCode::OK)).await, Arc::new(()));
        let call = || client.clone().call(Request::post(BASE).body(Held(Arc::clone(&body))).unwrap());
        let kept = thread::scope(|scope| {
            let ends = scope.spawn(|| {
                // Before the first buffer of the thread is taken, and after.
                EARLY.with_borrow_mut(|held| held.reserve(2));
                drop(call());
                LATE.with_borrow_mut(|held| held.extend([call(), call()]));
                EARLY.with_borrow_mut(|held| held.extend([call(), call()]));
                Arc::strong_count(&body) - 1
            });
            ends.join().unwrap()
        });
        assert_eq!((kept, Arc::strong_count(&body) - 1), (4, 0));
    })
    .await;
}

// Requests of every kind.

fn any_request(rng: &mut Rng) -> Request<()> {
    let mut head = Request::builder().method(any_method(rng)).uri(any_uri(rng));
    head = head.version([Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3][rng.usize(0..4)]);
    for _ in 0..rng.usize(0..12) {
        head = head.header(any_name(rng), any_value(rng));
    }
    if rng.u8(0..20) == 0 {
        head = head.header("cookie", "c".repeat(rng.usize(0..20_000)));
    }
    if rng.bool() {
        head = head.extension(Number(rng.u64(..)));
    }
    let mut request = head.body(()).unwrap();
    // Anywhere among the others, and not together.
    let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let mut own: Vec<_> = (0..rng.usize(0..4)).map(|_| rng.usize(0..=fields.len())).collect();
    request.headers_mut().clear();
    for position in 0..=fields.len() {
        while let Some(index) = own.iter().position(|own| *own == position) {
            own.remove(index);
            request.headers_mut().append(AUTHORIZATION, any_value(rng));
        }
        if let Some((name, value)) = fields.get(position) {
            request.headers_mut().append(name, value.clone());
        }
    }
    // A map that was changed has an order of its own.
    if rng.u8(0..4) == 0 {
        let gone = any_name(rng);
        request.headers_mut().remove(gone);
    }
    request
}

fn any_method(rng: &mut Rng) -> Method {
    if rng.bool() {
        return rng.choice([Method::GET, Method::POST, Method::DELETE, Method::PATCH]).unwrap();
    }
    let method: Vec<_> = (0..rng.usize(1..41)).map(|_| *rng.choice(TOKEN).unwrap()).collect();
    let method = Method::from_bytes(&method).unwrap();
    if method == Method::CONNECT { Method::GET } else { method }
}

fn any_uri(rng: &mut Rng) -> Uri {
    if rng.u8(0..20) == 0 {
        return Uri::from_static("*");
    }
    let origin = if rng.u8(0..4) == 0 {
        String::new()
    } else {
        let user = ["", "", "u@", "user:p%40ss@", "U:@"][rng.usize(0..5)];
        let host = ["api.apsis.one", "API.APSIS.ONE", "Api.apsis.One"][rng.usize(0..3)];
        let port = ["", "", ":443", ":"][rng.usize(0..4)];
        format!("{}://{user}{host}{port}", ["https", "HTTPS"][rng.usize(0..2)])
    };
    let path: String = (0..rng.usize(0..60)).map(|_| *rng.choice(PATH).unwrap()).collect();
    let query: String = (0..rng.usize(0..30)).map(|_| *rng.choice(PATH).unwrap()).collect();
    let path = if path.is_empty() && !origin.is_empty() { path } else { format!("/{path}") };
    let query = if rng.bool() { format!("?{query}") } else { String::new() };
    // Not every character may be everywhere.
    format!("{origin}{path}{query}").parse().unwrap_or_else(|_| any_uri(rng))
}

fn any_name(rng: &mut Rng) -> HeaderName {
    // Few of them, so that they come again, and custom ones.
    if rng.bool() {
        return HeaderName::from_static(rng.choice(["accept", "cookie", "x-a", "via", "date"]).unwrap());
    }
    let name: Vec<_> = (0..rng.usize(1..70)).map(|_| *rng.choice(TOKEN).unwrap()).collect();
    let name = HeaderName::from_bytes(&name).unwrap();
    // These two mean something to the layer.
    if name == "host" || name == AUTHORIZATION { HeaderName::from_static("x-b") } else { name }
}

fn any_value(rng: &mut Rng) -> HeaderValue {
    let is_byte = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
    let length = rng.usize(0..40) * rng.usize(0..3);
    let bytes: Vec<_> = (0..length).map(|_| rng.u8(..)).filter(is_byte).collect();
    let mut value = HeaderValue::from_bytes(&bytes).unwrap();
    value.set_sensitive(rng.u8(0..4) == 0);
    value
}

const TOKEN: &[u8] = b"!#$%&'*+-.^_`|~0123456789ABCXYZabcxyz";

const PATH: &[&str] = &[
    "a", "Z", "0", "/", "//", ".", "..", "?", "%20", "%2f", "%00", "%7e", "~", "!", "$", "&", "'", "(", ")", "*", "+",
    ",", ";", "=", ":", "@", "[", "]", "|", "\\", "^", "`", "{", "}", "\"", "_", "-", "%zz", "é", "日",
];

/// An extension.
#[derive(Clone, Debug, PartialEq)]
struct Number(u64);

// What is compared.

fn assert_same(first: &request::Parts, second: &request::Parts, what: &str) {
    assert_eq!((&first.method, first.version), (&second.method, second.version), "{what}");
    // As text: `Uri` compares hosts without case.
    assert_eq!(first.uri.to_string(), second.uri.to_string(), "{what}");
    assert_eq!(words(&first.uri), words(&second.uri), "{what}");
    assert_ne!(first.headers[AUTHORIZATION], second.headers[AUTHORIZATION], "{what}");
    assert_eq!(said(&first.headers), said(&second.headers), "{what}");
    assert_eq!(first.extensions.get::<Number>(), second.extensions.get(), "{what}");
}

fn words(uri: &Uri) -> [Option<&str>; 4] {
    let path_and_query = uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    [uri.scheme_str(), uri.authority().map(http::uri::Authority::as_str), path_and_query, uri.query()]
}

type Field = (HeaderName, Vec<u8>, bool);

/// The fields in their order, each with whether it is sensitive. A token is a token.
fn said(headers: &http::HeaderMap) -> Vec<Field> {
    let value = |value: &HeaderValue| match value.as_bytes() {
        token if token.starts_with(b"Bearer ") => b"Bearer".to_vec(),
        value => value.to_vec(),
    };
    headers.iter().map(|(name, field)| (name.clone(), value(field), field.is_sensitive())).collect()
}

/// What a caller said, with the token where the first `authorization` was, or else last.
fn with_one_token(fields: &[Field]) -> Vec<Field> {
    let token = [(AUTHORIZATION, b"Bearer".to_vec(), true)];
    let position = fields.iter().position(|(name, ..)| name == AUTHORIZATION).unwrap_or(fields.len());
    let (before, after) = fields.split_at(position);
    let after: Vec<_> = after.iter().filter(|(name, ..)| name != AUTHORIZATION).cloned().collect();
    [before, &token, &after].concat()
}

fn length(fields: &[Field]) -> usize {
    fields.iter().map(|(name, value, _)| name.as_str().len() + value.len()).sum()
}

// Who answers.

type Arrived = Arc<Mutex<Vec<request::Parts>>>;

fn pair(arrived: &Arrived) -> [request::Parts; 2] {
    let all = std::mem::take(&mut *arrived.lock().unwrap());
    <[request::Parts; 2]>::try_from(all).unwrap_or_else(|all| panic!("{} sends", all.len()))
}

/// An API that rejects each request the first time, however many there are, and what arrives there.
fn rejecting_each_first()
-> (impl Service<Request<()>, Response = Response<()>, Error = BoxError, Future: Send + 'static> + Clone, Arrived) {
    let (asked, arrived) = (Arc::new(AtomicUsize::new(0)), Arrived::default());
    let endpoint = service_fn(move |_: Request<Full<Bytes>>| {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        let answer = format!(r#"{{"access_token":"{number}"}}"#);
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer))))
    });
    let layer = ApsisAuthLayer::builder(ClientCredentials::new("id", "secret").unwrap(), BASE)
        .transport(endpoint)
        .token_requests_per_minute(u32::MAX)
        .build()
        .unwrap();
    let log = Arc::clone(&arrived);
    let api = service_fn(move |request: Request<()>| {
        let mut log = log.lock().unwrap();
        log.push(request.into_parts().0);
        let status = if log.len() == 1 { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
        let mut response = Response::new(());
        *response.status_mut() = status;
        ready(Ok::<_, Infallible>(response))
    });
    (layer.layer(api), arrived)
}

/// A service whose clones are counted, and which keeps nothing of a request.
#[derive(Clone)]
struct Counted {
    /// Of its answers; `None` where it fails.
    status: Option<StatusCode>,
    held: Arc<()>,
}

impl Counted {
    fn new(status: Option<StatusCode>) -> Self {
        Self { status, held: Arc::default() }
    }
}

/// It with a token at hand.
async fn counted(status: Option<StatusCode>) -> ApsisAuth<Counted> {
    let layer = World::new().layer();
    layer.handle().warm_up().await.unwrap();
    layer.layer(Counted::new(status))
}

impl Service<Request<Held>> for Counted {
    type Response = Response<()>;
    type Error = BoxError;
    type Future = Ready<Result<Response<()>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Held>) -> Self::Future {
        let response = self.status.map(|status| Response::builder().status(status).body(()).unwrap());
        ready(response.ok_or_else(|| "the connection is lost".into()))
    }
}

/// A body whose clones are counted.
struct Held(Arc<()>);

impl ReplayableBody for Held {
    type Kept = Arc<()>;

    fn keep(&mut self, _: usize) -> Arc<()> {
        Arc::clone(&self.0)
    }

    fn restore(kept: Arc<()>) -> Option<Self> {
        Some(Self(kept))
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}
