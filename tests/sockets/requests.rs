//! Requests out of the ordinary, by hyper's HTTP/1 client to a server that speaks by a script.

use std::{
    error::Error,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use apsis_auth::{ApsisAuthLayer, AuthOutcome, emulator::Emulator};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::TcpStream,
    sync::{Mutex, oneshot},
    task::{JoinHandle, yield_now},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::{answer, limited, listen, somebody_calls, token_of};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const REJECTED: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

// Tunnels and upgrades.

#[tokio::test]
async fn a_tunnel_goes_through_the_layer() {
    limited(async {
        let (client, server, apsis) = connected(["HTTP/1.1 200 OK\r\n\r\n"]).await;
        let request = Request::connect("elsewhere.example:443").header("proxy-authorization", "Basic b3du");
        let response = client.oneshot(request.body(empty()).unwrap()).await.unwrap();

        assert!(matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope)));
        assert_echoes(response).await;
        let [head] = &server.await.unwrap()[..] else { panic!("one request") };
        assert!(head.starts_with("CONNECT elsewhere.example:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("proxy-authorization: Basic b3du\r\n") && !head.contains("\r\nauthorization"), "{head}");
        assert_eq!(apsis.counters().token_requests, 0);
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_goes_through_the_layer_at_the_first_answer_and_after_a_replay() {
    limited(async {
        for script in [&[SWITCHED][..], &[REJECTED, SWITCHED]] {
            let (client, server, _) = connected(script.iter().copied()).await;
            let request = Request::get("/chat").header("connection", "upgrade").header("upgrade", "echo");
            let response = client.oneshot(request.body(empty()).unwrap()).await.unwrap();

            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            let is_replayed = matches!(response.extensions().get(), Some(AuthOutcome::Replayed));
            assert_eq!(is_replayed, script.len() == 2);
            assert_echoes(response).await;
            let heads = server.await.unwrap();
            assert_eq!(heads.len(), script.len());
            assert_tokens_differ(&heads);
            assert!(heads.iter().all(|head| head.contains("upgrade: echo\r\n")), "{heads:?}");
        }
    })
    .await;
}

// Expectations.

#[tokio::test]
async fn a_request_whose_body_is_asked_for_is_served_and_replayed() {
    limited(async {
        let (rejected, accepted) = (format!("{CONTINUE}{REJECTED}"), format!("{CONTINUE}{}", answer("200 OK", "done")));
        for script in [vec![accepted.clone()], vec![rejected, accepted]] {
            let (client, server, _) = connected(script.iter().map(String::as_str)).await;
            let body = Full::from("profile").map_err(Into::into).boxed();
            let request = Request::post("/audience").header("expect", "100-continue").body(body).unwrap();
            let response = client.oneshot(request).await.unwrap();

            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
            let sent = server.await.unwrap();
            assert_eq!(sent.len(), script.len());
            assert_tokens_differ(&sent);
            for sent in sent {
                assert!(sent.contains("expect: 100-continue\r\n") && sent.ends_with("\r\n\r\nprofile"), "{sent}");
            }
        }
    })
    .await;
}

// HEAD.

#[tokio::test]
async fn a_head_is_replayed_on_its_connection_which_can_be_used_on() {
    limited(async {
        let head = |status| format!("HTTP/1.1 {status}\r\ncontent-length: 12345\r\n\r\n");
        for rejection in ["401 Unauthorized", "403 Forbidden"] {
            // One connection is all that there is.
            let script = [head(rejection), head("200 OK"), answer("200 OK", "keyspaces")];
            let (client, server, _) = connected(script.iter().map(String::as_str)).await;
            let request = |method| Request::builder().method(method).uri("/audience/keyspaces").body(empty()).unwrap();
            let response = client.clone().oneshot(request(Method::HEAD)).await.unwrap();

            assert_eq!(
                (response.status(), &response.headers()["content-length"]),
                (StatusCode::OK, &"12345".parse().unwrap())
            );
            assert!(matches!(response.extensions().get(), Some(AuthOutcome::Replayed)));
            assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
            let response = client.oneshot(request(Method::GET)).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "keyspaces");
            let sent = server.await.unwrap();
            assert_tokens_differ(&sent[..2]);
            assert!(sent[0].starts_with("HEAD ") && sent[1].starts_with("HEAD ") && sent[2].starts_with("GET "));
        }
    })
    .await;
}

// Trailers.

#[tokio::test]
async fn the_trailers_of_the_answer_to_a_replay_arrive() {
    limited(async {
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\ndone\r\n0\r\nx-sum: 7\r\n\r\n";
        let (client, server, _) = connected([REJECTED, chunked]).await;
        let request = Request::get("/audience").header("te", "trailers").body(empty()).unwrap();
        let response = client.oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-sum"], "7");
        assert_eq!(body.to_bytes(), "done");
        assert_tokens_differ(&server.await.unwrap());
    })
    .await;
}

// Bodies that fail half-way.

#[tokio::test]
async fn a_body_that_fails_half_way_is_hypers_error_and_the_next_request_goes_with_the_same_token() {
    limited(async {
        let (listener, addr) = listen().await;
        let (body, fail) = failing();
        let server = tokio::spawn(async move {
            let (mut broken, mut half) = (listener.accept().await.unwrap().0, String::new());
            while !half.contains("half") {
                read_more(&mut broken, &mut half).await;
            }
            fail.send(()).unwrap();
            let _ = broken.read_to_string(&mut half).await;
            let whole = serve(&mut listener.accept().await.unwrap().0, &[answer("200 OK", "done")]).await;
            (half, whole)
        });
        let (layer, apsis) = layer(addr);
        let client =
            layer.layer(service_fn(move |request| async move { connect(addr).await.send_request(request).await }));
        let error = client.clone().oneshot(Request::post("/audience").body(body).unwrap()).await.unwrap_err();

        let error = error.downcast::<hyper::Error>().expect("as hyper gave it");
        assert!(error.is_user(), "{error:?}");
        assert_eq!(error.source().unwrap().to_string(), "the disk is gone");
        let request = Request::post("/audience").body(empty()).unwrap();
        assert_eq!(client.oneshot(request).await.unwrap().status(), StatusCode::OK);
        let (half, whole) = server.await.unwrap();
        assert!(!half.ends_with("0\r\n\r\n"), "{half}");
        assert_eq!(token(&half), token(&whole[0]));
        assert_eq!(apsis.counters().token_requests, 1);
    })
    .await;
}

#[tokio::test]
async fn a_rejection_that_comes_before_the_body_fails_is_returned_and_nothing_is_replayed() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let mut socket = listener.accept().await.unwrap().0;
            let mut sent = String::new();
            while !sent.contains("half") {
                read_more(&mut socket, &mut sent).await;
            }
            socket.write_all(REJECTED.as_bytes()).await.unwrap();
            // What else there is, until the client closes.
            let _ = socket.read_to_string(&mut sent).await;
            (sent, listener)
        });
        let (layer, apsis) = layer(addr);
        let client =
            layer.layer(service_fn(move |request| async move { connect(addr).await.send_request(request).await }));
        let (body, fail) = failing();
        let response = client.oneshot(Request::post("/audience").body(body).unwrap()).await.unwrap();

        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotReplayable)));
        // hyper may have dropped the body already.
        let _ = fail.send(());
        let (sent, listener) = server.await.unwrap();
        assert!(!sent.ends_with("0\r\n\r\n"), "{sent}");
        assert!(!somebody_calls(listener));
        // A renewal is under way for the next request, or has landed.
        while apsis.counters().tokens_issued < 2 {
            yield_now().await;
        }
    })
    .await;
}

// Helpers.

type AnyBody = BoxBody<Bytes, BoxError>;

fn empty() -> AnyBody {
    Empty::new().map_err(Into::into).boxed()
}

/// A body that says "half", and fails when it is told to.
fn failing() -> (AnyBody, oneshot::Sender<()>) {
    let (fail, is_told) = oneshot::channel();
    (Failing { half: Some("half".into()), is_told }.boxed(), fail)
}

struct Failing {
    half: Option<Bytes>,
    is_told: oneshot::Receiver<()>,
}

impl Body for Failing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.half.take() {
            Some(half) => Poll::Ready(Some(Ok(Frame::data(half)))),
            None => Pin::new(&mut self.is_told).poll(cx).map(|_| Some(Err("the disk is gone".into()))),
        }
    }
}

fn layer(addr: SocketAddr) -> (ApsisAuthLayer, Emulator) {
    let apsis = Emulator::new();
    let layer = token_of(&apsis, &format!("http://{addr}")).transport(apsis.clone()).build().unwrap();
    (layer, apsis)
}

type Sender = http1::SendRequest<AnyBody>;

async fn connect(addr: SocketAddr) -> Sender {
    let socket = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

/// A connection that sends one request after the other, as the layer's inner service. The server gives one answer after
/// the other, and says in the end what it was sent.
async fn connected<'a>(
    answers: impl IntoIterator<Item = &'a str>,
) -> (
    impl Service<Request<AnyBody>, Response = Response<Incoming>, Error = BoxError> + Clone,
    JoinHandle<Vec<String>>,
    Emulator,
) {
    let answers: Vec<_> = answers.into_iter().map(str::to_owned).collect();
    let (listener, addr) = listen().await;
    let server = tokio::spawn(async move { serve(&mut listener.accept().await.unwrap().0, &answers).await });
    let (layer, apsis) = layer(addr);
    let sender = Arc::new(Mutex::new(connect(addr).await));
    let client = layer.layer(service_fn(move |request| {
        let sender = Arc::clone(&sender);
        async move {
            let mut sender = sender.lock().await;
            sender.ready().await?;
            sender.send_request(request).await
        }
    }));
    (client, server, apsis)
}

/// Gives one answer after the other to one request after the other, and then sends back what comes.
async fn serve(socket: &mut TcpStream, answers: &[String]) -> Vec<String> {
    let mut requests = Vec::new();
    for answer in answers {
        let mut request = String::new();
        while !request.contains("\r\n\r\n") {
            read_more(socket, &mut request).await;
        }
        let answer = match answer.strip_prefix(CONTINUE) {
            Some(answer) => {
                socket.write_all(CONTINUE.as_bytes()).await.unwrap();
                answer
            }
            None => answer,
        };
        let head = request.find("\r\n\r\n").unwrap() + 4;
        let length = request.split_once("content-length: ").map_or("0", |(_, rest)| rest.lines().next().unwrap());
        let all = head + length.parse::<usize>().unwrap();
        while request.len() < all {
            read_more(socket, &mut request).await;
        }
        socket.write_all(answer.as_bytes()).await.unwrap();
        requests.push(request);
    }
    let (mut from, mut to) = socket.split();
    let _ = copy(&mut from, &mut to).await;
    requests
}

async fn read_more(socket: &mut TcpStream, text: &mut String) {
    let mut bytes = [0; 1024];
    let read = socket.read(&mut bytes).await.unwrap();
    assert_ne!(read, 0, "the client closes early: {text}");
    text.push_str(str::from_utf8(&bytes[..read]).unwrap());
}

async fn assert_echoes(response: Response<Incoming>) {
    let mut tunnel = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.shutdown().await.unwrap();
    let mut echo = String::new();
    tunnel.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "hello");
}

/// The token that a request carried.
fn token(request: &str) -> &str {
    let [token] = request.lines().filter_map(|line| line.strip_prefix("authorization: ")).collect::<Vec<_>>()[..]
    else {
        panic!("not one token: {request}")
    };
    token
}

fn assert_tokens_differ(requests: &[String]) {
    let mut tokens: Vec<_> = requests.iter().map(|request| token(request)).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), requests.len(), "{requests:?}");
}
