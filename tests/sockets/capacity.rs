//! Law 27 over one HTTP/1 connection, which sends one request at a time and knows of no other connection.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use apsis_auth::{ApsisAuth, AuthOutcome, emulator::Dialect};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::task::JoinSet;
use tower::{Layer, Service, ServiceExt, buffer::Buffer};

use super::*;

/// More than a client reads ahead.
const LARGE: usize = 1 << 20;
const CHUNKS: &[u8] = b"HTTP/1.1 401 Unauthorized\r\ntransfer-encoding: chunked\r\n\r\n4\r\ndead\r\n0\r\n\r\n";

#[tokio::test]
async fn many_callers_share_one_connection_through_a_cold_start_and_a_revoked_token() {
    limited(async {
        for dialect in [Dialect::Unauthorized, Dialect::Gateway] {
            for is_shared in [false, true] {
                let apsis = emulator();
                apsis.set_dialect(dialect);
                let (server, tokens) = (apsis.serve().await.unwrap(), apsis.serve().await.unwrap());
                let connection = one_connection(server.addr()).await;
                let builder = token_of(&apsis, &tokens.url());
                let builder = if is_shared { builder.transport(connection.clone()) } else { builder };
                let client = builder.build().unwrap().layer(connection);

                for answer in twenty_callers(&client).await {
                    assert_eq!(answer.status(), StatusCode::OK);
                }
                apsis.revoke_tokens();
                let answers = twenty_callers(&client).await;
                assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
                assert!(answers.iter().any(is_replayed));

                assert_eq!(apsis.counters().token_requests, 2);
                assert_eq!(server.connections(), 1);
                assert_eq!(tokens.connections(), if is_shared { 0 } else { 2 });
            }
        }
    })
    .await;
}

/// Its body came with the head, so nothing of it is left in the connection.
#[tokio::test]
async fn a_small_rejection_keeps_nobody_from_the_connection_while_the_token_is_renewed() {
    limited(async {
        let apsis = emulator();
        let (server, tokens) = (apsis.serve().await.unwrap(), apsis.serve().await.unwrap());
        let client = token_of(&apsis, &tokens.url()).build().unwrap().layer(one_connection(server.addr()).await);
        assert_eq!(call(&client).await.unwrap().status(), StatusCode::OK);
        apsis.revoke_tokens();
        apsis.script_token_answers([Answer::genuine().delay(2 * MOMENT)]);
        let renewing = tokio::spawn(call(&client));
        while apsis.counters().token_requests < 2 {
            tokio::task::yield_now().await;
        }
        timeout(MOMENT, client.clone().oneshot(elsewhere())).await.expect("the connection is free").unwrap();
        assert!(!renewing.is_finished());
        assert!(is_replayed(&renewing.await.unwrap().unwrap()));
        assert_eq!(server.connections(), 1);
    })
    .await;
}

/// The rejection is dropped when there is a newer token. A connection with the rest of a body in it is of no use, so
/// hyper closes it.
#[tokio::test]
async fn the_replay_of_a_large_rejection_needs_another_connection() {
    limited(async {
        let apsis = emulator();
        let (server, tokens) = (apsis.serve().await.unwrap(), apsis.serve().await.unwrap());
        let layer = || token_of(&apsis, &tokens.url()).build().unwrap();

        apsis.script_api_answers([large_rejection()]);
        let client = layer().layer(one_connection(server.addr()).await);
        let error = call(&client).await.unwrap_err();
        assert!(error.downcast_ref::<AuthError>().is_none(), "{error:?}");
        assert!(causes(&*error).any(<dyn Error>::is::<hyper::Error>), "{}", chain(&*error));
        assert_eq!((apsis.counters().api_requests, apsis.counters().tokens_issued), (1, 2));

        // A pool opens one.
        apsis.script_api_answers([large_rejection()]);
        let pool: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let origin = server.url();
        let pool = tower::service_fn(move |mut request: Request<Full<Bytes>>| {
            *request.uri_mut() = format!("{origin}{}", request.uri()).parse().unwrap();
            pool.request(request)
        });
        let response = layer().layer(pool).oneshot(keyspaces()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(is_replayed(&response));
        assert_eq!(server.connections(), 3);
    })
    .await;
}

/// Of a body in chunks hyper knows the end only when it has read that far, which it does when the body is dropped.
#[tokio::test]
async fn a_small_rejection_in_chunks_is_replayed_over_the_connection_it_came_by() {
    limited(async {
        let apsis = emulator();
        let tokens = apsis.serve().await.unwrap();
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(CHUNKS).await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(answer("200 OK", "alive").as_bytes()).await.unwrap();
        });
        let client = token_of(&apsis, &tokens.url()).build().unwrap().layer(one_connection(addr).await);
        let response = call(&client).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "alive");
        server.await.unwrap();
    })
    .await;
}

/// The held rejection is in the way of the token request, until that has had its time.
#[tokio::test]
async fn a_large_rejection_on_a_connection_that_token_requests_share_comes_back_whole() {
    limited(async {
        let apsis = emulator();
        let server = apsis.serve().await.unwrap();
        let connection = one_connection(server.addr()).await;
        let builder = token_of(&apsis, &server.url()).transport(connection.clone());
        let layer = builder.attempt_timeout(MOMENT).flight_timeout(2 * MOMENT).build().unwrap();
        let client = layer.layer(connection);
        assert_eq!(call(&client).await.unwrap().status(), StatusCode::OK);

        apsis.script_api_answers([large_rejection()]);
        let started = Instant::now();
        let response = call(&client).await.unwrap();
        assert!(started.elapsed() >= MOMENT, "{:?}", started.elapsed());
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let outcome = response.extensions().get();
        assert!(matches!(outcome, Some(AuthOutcome::NotRenewed(AuthError::Unavailable { .. }))), "{outcome:?}");
        assert_eq!(apsis.counters().token_requests, 1);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), LARGE);

        // Read to its end, it leaves the connection as good as new.
        assert_eq!(call(&client).await.unwrap().status(), StatusCode::OK);
        assert_eq!(server.connections(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_rejection_in_chunks_on_a_connection_that_token_requests_share_comes_back_whole() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await.unwrap();
            socket.write_all(answer("200 OK", TOKEN).as_bytes()).await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(CHUNKS).await.unwrap();
            read_head(&mut socket).await;
            socket.write_all(answer("200 OK", "alive").as_bytes()).await.unwrap();
        });
        let connection = one_connection(addr).await;
        let builder = builder(&format!("http://{addr}")).transport(connection.clone());
        let layer = builder.attempt_timeout(MOMENT).flight_timeout(2 * MOMENT).build().unwrap();
        let client = layer.layer(connection);
        let response = call(&client).await.unwrap();
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotRenewed(AuthError::Unavailable { .. }))));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "dead");
        // No token request is on its way any more.
        assert_eq!(call(&client).await.unwrap().into_body().collect().await.unwrap().to_bytes(), "alive");
        server.await.unwrap();
    })
    .await;
}

// Helpers.

type OneConnection =
    Buffer<Request<Full<Bytes>>, Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>>;
type Answered = Pin<Box<dyn Future<Output = Result<Response<Incoming>, BoxError>> + Send>>;

/// A connection that cannot be cloned, and so is shared by a buffer.
struct Connection(SendRequest<Full<Bytes>>);

impl Service<Request<Full<Bytes>>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn one_connection(addr: SocketAddr) -> OneConnection {
    let socket = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    Buffer::new(Connection(sender), 1)
}

/// Whose limits on requests are in nobody's way.
fn emulator() -> Emulator {
    let apsis = Emulator::new();
    apsis.set_api_limit(1_000);
    apsis
}

fn large_rejection() -> Answer {
    Answer::status(StatusCode::UNAUTHORIZED).body(vec![b'x'; LARGE])
}

/// In origin form, as a connection takes it: to wherever that leads.
fn keyspaces() -> Request<Full<Bytes>> {
    Request::get("/audience/keyspaces").body(Full::default()).unwrap()
}

/// Goes the same way, and needs no token.
fn elsewhere() -> Request<Full<Bytes>> {
    Request::get("/").header("host", "elsewhere.example").body(Full::default()).unwrap()
}

fn call(client: &ApsisAuth<OneConnection>) -> Answered {
    Box::pin(client.clone().oneshot(keyspaces()))
}

async fn twenty_callers(client: &ApsisAuth<OneConnection>) -> Vec<Response<Incoming>> {
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        callers.spawn(call(client));
    }
    callers.join_all().await.into_iter().map(Result::unwrap).collect()
}

/// A request without a body.
async fn read_head(socket: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
}

fn is_replayed<B>(response: &Response<B>) -> bool {
    matches!(response.extensions().get(), Some(AuthOutcome::Replayed))
}
