//! The emulator on a loopback port, in real time.

use std::{io, sync::Arc, time::Duration};

use apsis_auth::emulator::{Answer, Emulator, EmulatorServer};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::support::{KEYSPACES, PROFILE, credentials, token_request};

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// No test takes longer, unless something hangs that should not.
const LIMIT: Duration = Duration::from_secs(20);
/// For what hangs and should.
const MOMENT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn it_answers_over_http() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    assert!(server.url().starts_with("http://127.0.0.1:"));
    assert!(server.certificate_pem().is_none());
    assert!(server.certificate_der().is_none());
    let client = client(&server);
    assert_eq!(ask_for_keyspaces(&client, &server, &emulator).await, 200);
    assert_eq!(server.connections(), 1, "a connection is kept alive");
    assert_eq!(emulator.counters().api_accepted, 1);
}

#[tokio::test]
async fn it_answers_over_https_to_who_trusts_its_certificate() {
    let emulator = Emulator::new();
    let server = emulator.serve_https().await.expect("a free port");
    assert!(server.url().starts_with("https://localhost:"));
    let client = client(&server);
    assert_eq!(ask_for_keyspaces(&client, &server, &emulator).await, 200);

    let by_address = format!("https://{}", server.addr());
    let answer = within(client.request(to(&by_address, keyspaces("dead")))).await;
    let answer = answer.expect("a certificate for the address, too");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn its_certificate_is_trusted_by_nobody_else() {
    let emulator = Emulator::new();
    let server = emulator.serve_https().await.expect("a free port");
    let other = emulator.serve_https().await.expect("a free port");
    let answer = client(&other).request(to(&server.url(), keyspaces("dead")));
    assert!(within(answer).await.is_err());
    assert_eq!(emulator.counters().api_requests, 0);
}

#[tokio::test]
async fn https_offers_http_2_first() {
    let emulator = Emulator::new();
    let server = emulator.serve_https().await.expect("a free port");
    let mut config = client_config(&server);
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let stream = TcpStream::connect(server.addr()).await.expect("a listener");
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn it_speaks_http_2() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build(connector(&server));
    let answer = within(client.request(to(&server.url(), keyspaces("dead")))).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.version(), Version::HTTP_2);
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn it_serves_on_the_address_it_is_given() {
    let emulator = Emulator::new();
    let (server, _port) = serve_on_a_kept_port(&emulator).await;
    let addr = server.addr();
    let taken = emulator.serve_on(addr).await.map(|_| ());
    assert_eq!(taken.map_err(|e| e.kind()), Err(io::ErrorKind::AddrInUse));
    server.shutdown().await;
    let server = emulator.serve_on(addr).await.expect("a port set free");
    assert_eq!(server.url(), format!("http://{addr}"));
    assert_eq!(get(&client(&server), &server).await.expect("an answer"), 401);
}

#[tokio::test]
async fn a_scripted_close_closes_the_connection() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    emulator.script_api_answers([Answer::close()]);
    let client = client(&server);
    assert!(get(&client, &server).await.is_err());
    assert_eq!(get(&client, &server).await.expect("an answer"), 401);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_truncated_answer_breaks_off_after_its_first_bytes() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    emulator.script_api_answers([Answer::truncated()]);
    let answer = client(&server).request(to(&server.url(), keyspaces("dead")));
    let mut answer = within(answer).await.expect("a head");
    let first = within(answer.frame()).await.expect("a frame");
    let first = first.expect("no error yet").into_data().expect("data");
    assert!(first.starts_with(b"{\"access_token\""));
    let end = within(answer.frame()).await.expect("a frame");
    assert!(end.is_err());
}

#[tokio::test]
async fn hangs_hang_and_drips_drip() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    emulator.script_api_answers([Answer::hang(), Answer::hang_in_body(), Answer::drip(Duration::from_millis(1))]);
    let mut hanging = under_way(&server, &emulator).await;
    assert!(timeout(MOMENT, &mut hanging).await.is_err());

    let client = client(&server);
    let request = || client.request(to(&server.url(), keyspaces("dead")));
    let silent = within(request()).await.expect("a head");
    assert_eq!(silent.status(), StatusCode::OK);
    assert!(timeout(MOMENT, silent.collect()).await.is_err());

    let mut dripping = within(request()).await.expect("a head");
    for _ in 0..3 {
        let frame = within(dripping.frame()).await.expect("a frame");
        assert_eq!(frame.expect("no error").into_data().expect("data").len(), 1);
    }
}

#[tokio::test]
async fn a_large_body_gets_its_413() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    let client = client(&server);
    let token = ask_for_token(&client, &server, &emulator).await;
    let request = Request::post(PROFILE)
        .header("authorization", format!("Bearer {token}"))
        .body(Full::from(vec![b' '; 500_000]))
        .expect("a valid request");
    let answer = within(client.request(to(&server.url(), request))).await;
    let answer = answer.expect("an answer, not a broken connection");
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_shutdown_lets_the_answers_under_way_end() {
    let emulator = Emulator::new();
    let (server, _port) = serve_on_a_kept_port(&emulator).await;
    let addr = server.addr();
    emulator.set_api_delay(Duration::from_millis(20));
    let answer = under_way(&server, &emulator).await;
    within(server.shutdown()).await;
    let answer = within(answer).await.expect("no panic");
    assert_eq!(answer.expect("an answer").status(), 401);
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_shutdown_waits_for_no_hanging_answer() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    emulator.script_api_answers([Answer::hang()]);
    let answer = under_way(&server, &emulator).await;
    within(server.shutdown()).await;
    assert!(within(answer).await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_dropped_server_closes_its_port_and_its_connections() {
    let emulator = Emulator::new();
    let (server, _port) = serve_on_a_kept_port(&emulator).await;
    let addr = server.addr();
    let mut stream = TcpStream::connect(addr).await.expect("a listener");
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.expect("a connection");
    let mut head = [0; 12];
    within(stream.read_exact(&mut head)).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 403");

    drop(server);
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.expect("an end");
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_dropped_server_waits_for_no_answer() {
    let emulator = Emulator::new();
    let server = emulator.serve().await.expect("a free port");
    emulator.script_api_answers([Answer::hang()]);
    let answer = under_way(&server, &emulator).await;
    drop(server);
    assert!(within(answer).await.expect("no panic").is_err());
}

#[tokio::test]
async fn a_client_that_never_finishes_its_handshake_holds_nobody_up() {
    let emulator = Emulator::new();
    let server = emulator.serve_https().await.expect("a free port");
    let _silent = TcpStream::connect(server.addr()).await.expect("a listener");
    assert_eq!(get(&client(&server), &server).await.expect("an answer"), 401);
    assert_eq!(server.connections(), 2);
    within(server.shutdown()).await;
}

/// A server whose port nobody else is given when it is closed, for as long as the socket lives: that is bound and does
/// not listen. Where no two sockets may be bound to one port, it is any port.
async fn serve_on_a_kept_port(emulator: &Emulator) -> (EmulatorServer, Option<TcpSocket>) {
    let keeper = TcpSocket::new_v4().expect("a socket");
    keeper.set_reuseaddr(true).expect("an option of every socket");
    keeper.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    match emulator.serve_on(keeper.local_addr().expect("an address")).await {
        Ok(server) => (server, Some(keeper)),
        Err(_) => (emulator.serve().await.expect("a free port"), None),
    }
}

/// A request that has arrived.
async fn under_way(server: &EmulatorServer, emulator: &Emulator) -> JoinHandle<Result<Response<Incoming>, Error>> {
    let answer = tokio::spawn(client(server).request(to(&server.url(), keyspaces("dead"))));
    within(async {
        while emulator.counters().api_requests == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    answer
}

fn client(server: &EmulatorServer) -> HttpClient {
    Client::builder(TokioExecutor::new()).build(connector(server))
}

fn connector(server: &EmulatorServer) -> HttpsConnector<HttpConnector> {
    HttpsConnectorBuilder::new().with_tls_config(client_config(server)).https_or_http().enable_http1().build()
}

/// Trusts the server's certificate and nothing else.
fn client_config(server: &EmulatorServer) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    if let (Some(pem), Some(der)) = (server.certificate_pem(), server.certificate_der()) {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        assert_eq!(&*certificate, der);
        roots.add(certificate).expect("a certificate");
    }
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn keyspaces(token: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::GET)
        .uri(KEYSPACES)
        .header("authorization", format!("Bearer {token}"))
        .body(Full::default())
        .expect("a valid request")
}

fn to(url: &str, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let uri = format!("{url}{}", request.uri());
    *request.uri_mut() = uri.parse().expect("a valid URI");
    request
}

async fn get(client: &HttpClient, server: &EmulatorServer) -> Result<StatusCode, Error> {
    let answer = client.request(to(&server.url(), keyspaces("dead")));
    let answer = within(answer).await?;
    Ok(read(answer).await.0)
}

async fn ask_for_token(client: &HttpClient, server: &EmulatorServer, emulator: &Emulator) -> String {
    let request = token_request(&credentials(&emulator.api_key()));
    let answer = within(client.request(to(&server.url(), request))).await;
    let (status, body) = read(answer.expect("an answer")).await;
    assert_eq!(status, StatusCode::OK);
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    body["access_token"].as_str().expect("a token").to_owned()
}

async fn ask_for_keyspaces(client: &HttpClient, server: &EmulatorServer, emulator: &Emulator) -> StatusCode {
    let token = ask_for_token(client, server, emulator).await;
    let answer = client.request(to(&server.url(), keyspaces(&token)));
    read(within(answer).await.expect("an answer")).await.0
}

async fn read(answer: Response<Incoming>) -> (StatusCode, Bytes) {
    let status = answer.status();
    let body = within(answer.into_body().collect()).await;
    (status, body.expect("a complete body").to_bytes())
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(LIMIT, future).await.expect("an end within the limit")
}
