//! Law 33: dropping the last handle wipes the memory of the secret and the token that the crate owns.
//!
//! The allocator looks at each block that is given back, on the threads that ask it to.

use std::{
    convert::Infallible,
    future::pending,
    pin::{Pin, pin},
    process::Command,
    slice,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use apsis_auth::{ApsisAuthLayer, AuthError, AuthOutcome, BuildError, ClientCredentials};
use bytes::{Buf, Bytes};
use http::{
    HeaderName, HeaderValue, Request, Response,
    header::{ACCEPT, AUTHORIZATION, COOKIE},
};
use http_body::{Body, Frame};
use http_body_util::Full;
use tokio::{
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use zeroize::Zeroize;

use crate::allocator::looking;

const BASE: &str = "https://api.apsis.one";

/// Set in a process that a test starts.
const CHILD: &str = "APSIS_AUTH_TEST_CHILD";

// A canary is in the secret and in each token. All of them are in static memory, which is never given back.

const SECRET: &str = "the-cAnary-in-the-secret";
const TOKEN: &str = r#"{"access_token":"the-cAnary-in-the-token","token_type":"Bearer","expires_in":600}"#;
/// `{"exp":9999999999}`
const NEWER: &str = r#"{"expires_in":600,"access_token":"the-cAnary-in.eyJleHAiOjk5OTk5OTk5OTl9.the-cAnary"}"#;
const UNUSABLE: [&str; 4] = [
    r#"{"access_token":"a cAnary","token_type":"Bearer"}"#,
    r#"{"access_token":"a-cAnary","token_type":"mac"}"#,
    r#"{"access_token":"a-cAnary","tok"#,
    r#"{"access_token":"a-cAnary.eyJleHAiOjF9.a"}"#,
];
const SECRET_SENT_BACK: [&str; 2] = [
    r#"{"error":"the-cAnary-in-the-secret"}"#,
    r#"{"error":"invalid_client","error_description":"the-cAnary-in-the-\/secret"}"#,
];

#[test]
fn a_block_that_is_given_back_as_it_is_is_seen() {
    let hits = looking(|| {
        drop(SECRET.to_owned());
        let mut grows = SECRET.to_owned();
        grows.reserve(10_000);
        // What has grown out of the first block is wiped; the first block is not.
        grows.zeroize();
    });
    assert_eq!(hits, 2);
    assert_eq!(looking(|| drop("no bird".to_owned())), 0);
}

#[test]
fn credentials_are_wiped() {
    let hits = looking(|| {
        let credentials = ClientCredentials::new("id", SECRET).unwrap();
        let another = credentials.clone();
        drop((credentials, another));
    });
    assert_eq!(hits, 0);
}

#[test]
fn credentials_that_are_refused_are_wiped() {
    let hits = looking(|| assert!(matches!(ClientCredentials::new("", SECRET), Err(BuildError::EmptyClientId))));
    assert_eq!(hits, 0);
}

#[test]
fn credentials_from_the_environment_are_wiped() {
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/apsis-client-secret");
    std::fs::write(file, format!("{SECRET}\n")).unwrap();
    for (variable, value) in [("APSIS_CLIENT_SECRET", SECRET), ("APSIS_CLIENT_SECRET_FILE", file)] {
        // A process of its own: to change the environment of this one is unsound while other tests read theirs.
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wiped::in_an_environment_with_credentials"])
            .env_clear()
            .env(CHILD, "1")
            .env("APSIS_CLIENT_ID", "id")
            .env(variable, value)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{variable}: {said}");
    }
}

/// Run by the test above, in an environment with credentials. Elsewhere it is of no use.
#[test]
fn in_an_environment_with_credentials() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let hits = looking(|| {
        let credentials = ClientCredentials::from_env().unwrap();
        drop(ApsisAuthLayer::builder(credentials, BASE).transport(endpoint(&[])).build().unwrap());
    });
    assert_eq!(hits, 0);
}

#[test]
fn a_layer_that_never_asked_is_wiped() {
    assert_eq!(looking(|| drop(layer(&[]))), 0);
}

#[test]
fn a_secret_that_becomes_longer_in_json_is_wiped() {
    let hits = looking(|| {
        let secret = "cAnary\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}\u{b}\u{c}\u{e}\u{f}\u{10}\u{11}\u{12}\u{13}\u{14}";
        let credentials = ClientCredentials::new("id", secret).unwrap();
        drop(ApsisAuthLayer::builder(credentials, BASE).transport(endpoint(&[])).build().unwrap());
    });
    assert_eq!(hits, 0);
}

#[test]
fn secret_request_answer_and_token_are_wiped() {
    for answer in [TOKEN, NEWER] {
        assert_eq!(looking(|| assert!(life(&[(200, answer)], &[200]).is_none())), 0, "{answer}");
    }
}

#[test]
fn an_answer_that_comes_in_any_kind_of_buffer_is_wiped() {
    let transport = service_fn(|_: Request<Full<Bytes>>| {
        let (begin, end) = TOKEN.as_bytes().split_at(40);
        async move { Ok::<_, BoxError>(Response::new(Full::new(begin.chain(end)))) }
    });
    let hits = looking(|| {
        let builder = ApsisAuthLayer::builder(ClientCredentials::new("id", SECRET).unwrap(), BASE);
        let layer = builder.transport(transport).build().unwrap();
        let token = run(layer.handle().get()).unwrap();
        assert_eq!(token.expose_secret(), "the-cAnary-in-the-token");
    });
    assert_eq!(hits, 0);
}

#[test]
fn an_answer_that_comes_in_pieces_is_wiped() {
    let transport = service_fn(|_: Request<Full<Bytes>>| async {
        Ok::<_, BoxError>(Response::new(Pieces(TOKEN.as_bytes().chunks(16))))
    });
    let hits = looking(|| {
        let builder = ApsisAuthLayer::builder(ClientCredentials::new("id", SECRET).unwrap(), BASE);
        let layer = builder.transport(transport).build().unwrap();
        let token = run(layer.handle().get()).unwrap();
        assert_eq!(token.expose_secret(), "the-cAnary-in-the-token");
    });
    assert_eq!(hits, 0);
}

#[test]
fn a_token_that_was_replaced_is_wiped() {
    let hits = looking(|| {
        let outcome = life(&[(200, TOKEN), (200, NEWER)], &[401, 200]);
        assert!(matches!(outcome, Some(AuthOutcome::Replayed)));
    });
    assert_eq!(hits, 0);
}

#[test]
fn a_token_that_cannot_be_used_is_wiped() {
    for answer in UNUSABLE {
        let hits = looking(|| assert!(matches!(refused(&[(200, answer)]), AuthError::Unavailable { .. })));
        assert_eq!(hits, 0, "{answer}");
    }
}

#[test]
fn a_secret_that_was_sent_back_is_wiped() {
    for answer in SECRET_SENT_BACK {
        let hits = looking(|| assert!(matches!(refused(&[(401, answer)]), AuthError::Refused { .. })));
        assert_eq!(hits, 0, "{answer}");
    }
}

#[test]
fn a_token_that_a_caller_keeps_is_wiped_when_the_caller_lets_go() {
    let hits = looking(|| {
        let layer = layer(&[(200, TOKEN)]);
        let token = run(layer.handle().get()).unwrap();
        let header = token.header_value();
        drop(layer);
        assert_eq!(token.expose_secret(), "the-cAnary-in-the-token");
        drop(token);
        assert_eq!(header, "Bearer the-cAnary-in-the-token");
    });
    assert_eq!(hits, 0);
}

// What a caller marks as sensitive, and an `authorization` of the caller's own. While a request is on its way its head is
// kept, in buffers that other heads are kept in later: a longer head takes a longer one, and gives the old one back.

#[test]
fn what_a_caller_does_not_mark_as_sensitive_is_seen_where_a_buffer_is_given_back() {
    let open = HeaderValue::from_static("cAnary");
    let mut client = accepting();
    for length in [0, 600, 9_000] {
        let hits = kept(&mut client, &[(COOKIE, open.clone()), (ACCEPT, long(length))]);
        assert_eq!(hits, if length == 0 { 1 } else { 2 }, "{length}");
    }
}

#[test]
fn what_a_caller_marks_as_sensitive_is_wiped_wherever_its_buffer_goes() {
    let mut client = accepting();
    // In one that is used again, one that becomes too small by a byte or by more, and one that is too long to be used again.
    for length in (400..450).chain([0, 2_000, 9_000]) {
        for own in [&[secret()][..], &[secret(), secret(), secret()]] {
            let mut fields: Vec<_> = own.iter().map(|own| (COOKIE, own.clone())).collect();
            fields.push((ACCEPT, long(length)));
            assert_eq!(kept(&mut client, &fields), 0, "{length}");
            fields.reverse();
            assert_eq!(kept(&mut client, &fields), 0, "{length}");
        }
    }
}

/// It would be of no use to a replay.
#[test]
fn an_authorization_of_the_callers_own_is_not_kept_at_all() {
    let mut client = accepting();
    for is_sensitive in [false, true] {
        for length in [0, 600, 9_000] {
            let mut own = HeaderValue::from_static("Basic cAnary");
            own.set_sensitive(is_sensitive);
            for own in [&[own.clone()][..], &[own.clone(), own.clone(), own]] {
                let mut fields: Vec<_> = own.iter().map(|own| (AUTHORIZATION, own.clone())).collect();
                fields.push((ACCEPT, long(length)));
                assert_eq!(kept(&mut client, &fields), 0, "{length}");
            }
        }
    }
}

fn secret() -> HeaderValue {
    let mut secret = HeaderValue::from_static("cAnary");
    secret.set_sensitive(true);
    secret
}

fn long(length: usize) -> HeaderValue {
    "v".repeat(length).parse().unwrap()
}

/// How many blocks are given back with a canary in them once a request with these fields was accepted, and then another
/// one with a longer head. The values with a canary are in static memory.
fn kept(client: &mut impl Api, fields: &[(HeaderName, HeaderValue)]) -> usize {
    let mut send = |fields: &[(HeaderName, HeaderValue)]| {
        let mut request = Request::get(BASE).body(Full::default()).unwrap();
        request.headers_mut().reserve(10);
        for (name, value) in fields {
            request.headers_mut().append(name, value.clone());
        }
        let answer = pin!(client.call(request)).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Ok(answer)) if answer.status() == 200));
    };
    // The buffer that is used next is as short as any is at first.
    send(&[]);
    let longer = [(ACCEPT, long(8_193))];
    looking(|| {
        send(fields);
        send(&longer);
    })
}

trait Api: Service<Request<Full<Bytes>>, Response = Response<()>, Error = BoxError> {}

impl<S: Service<Request<Full<Bytes>>, Response = Response<()>, Error = BoxError>> Api for S {}

/// An API that accepts everything, with a token at hand.
fn accepting() -> impl Api {
    let layer = layer(&[(200, r#"{"access_token":"open"}"#)]);
    run(layer.handle().warm_up()).unwrap();
    layer.layer(service_fn(async |_| Ok::<_, BoxError>(Response::new(()))))
}

/// While the request is out, and while a half of the answer is in.
#[test]
fn a_flight_under_way_is_wiped_when_the_last_handle_is_dropped() {
    let silent = |request: Request<Full<Bytes>>| async move {
        let _request = request;
        pending::<Result<Response<Half>, BoxError>>().await
    };
    let half =
        |_: Request<Full<Bytes>>| async { Ok::<_, BoxError>(Response::new(Half(Some(&TOKEN.as_bytes()[..40])))) };
    for transport in [BoxCloneSyncService::new(service_fn(silent)), BoxCloneSyncService::new(service_fn(half))] {
        let hits = looking(|| {
            let builder = ApsisAuthLayer::builder(ClientCredentials::new("id", SECRET).unwrap(), BASE);
            let handle = builder.transport(transport).build().unwrap().handle();
            run(async {
                let waiter = tokio::spawn(async move { handle.get().await });
                sleep(Duration::from_secs(1)).await;
                assert_eq!(alive_tasks(), 2, "the waiter and the flight");
                waiter.abort();
                // By itself the flight would go on for many seconds.
                let ended = async {
                    while alive_tasks() > 0 {
                        sleep(Duration::from_millis(1)).await;
                    }
                };
                timeout(Duration::from_secs(1), ended).await.expect("the flight ends");
            });
        });
        assert_eq!(hits, 0);
    }
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// An answer's body that begins and does not go on.
struct Half(Option<&'static [u8]>);

impl Body for Half {
    type Data = &'static [u8];
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |half| Poll::Ready(Some(Ok(Frame::data(half)))))
    }
}

/// An answer's body, a frame a piece.
struct Pieces(slice::Chunks<'static, u8>);

impl Body for Pieces {
    type Data = &'static [u8];
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Infallible>>> {
        Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
    }
}

// Lives of layers.

type Answers<'a> = &'a [(u16, &'static str)];

/// A layer's whole life: one request, answered by the API with these statuses, and the end.
fn life(answers: Answers<'_>, statuses: &'static [u16]) -> Option<AuthOutcome> {
    let sent = Arc::new(AtomicUsize::new(0));
    let api = service_fn(move |request: Request<Full<Bytes>>| {
        assert!(request.headers()[AUTHORIZATION].as_bytes().starts_with(b"Bearer the"));
        let status = statuses[sent.fetch_add(1, Ordering::Relaxed)];
        async move { Ok::<_, BoxError>(Response::builder().status(status).body(())?) }
    });
    let request = Request::get(format!("{BASE}/audience/keyspaces")).body(Full::default()).unwrap();
    let mut answer = run(layer(answers).layer(api).oneshot(request)).unwrap();
    assert_eq!(answer.status(), 200);
    answer.extensions_mut().remove()
}

/// The life of a layer that gets no token.
fn refused(answers: Answers<'_>) -> AuthError {
    run(layer(answers).handle().get()).unwrap_err()
}

fn layer(answers: Answers<'_>) -> ApsisAuthLayer {
    let credentials = ClientCredentials::new("id", SECRET).unwrap();
    ApsisAuthLayer::builder(credentials, BASE).transport(endpoint(answers)).build().unwrap()
}

/// A transport that copies nothing: the request is dropped as it is, the answers are static memory. The last one is
/// repeated.
fn endpoint(answers: Answers<'_>) -> Transport {
    let (answers, asked) = (answers.to_vec(), Arc::new(AtomicUsize::new(0)));
    let answer = move |request: Request<Full<Bytes>>| {
        assert_ne!(request.body().size_hint().exact(), Some(0));
        let (status, body) = answers[asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
        let answer = Response::builder().status(status).body(Full::new(Bytes::from_static(body.as_bytes())));
        async move { Ok(answer?) }
    };
    BoxCloneSyncService::new(service_fn(answer))
}

type Transport = BoxCloneSyncService<Request<Full<Bytes>>, Response<Full<Bytes>>, BoxError>;

/// Runs it to its end or to a virtual deadline, in a runtime of its own.
fn run<T>(life: impl Future<Output = T>) -> T {
    runtime().block_on(async {
        let hour = Duration::from_secs(3600);
        timeout(hour, life).await.expect("a life ends within a virtual hour")
    })
}

/// On this thread alone, with a clock that runs ahead whenever a flight pauses.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}
