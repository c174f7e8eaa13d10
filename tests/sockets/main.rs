//! The default transport of token requests over real sockets: in real time, with limits of milliseconds.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod capacity;
mod clients;
mod ear;
mod faults;
mod requests;
mod soak;
mod stacks;
#[path = "../undecided/mod.rs"]
mod undecided;

use std::{
    convert::Infallible,
    error::Error,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::Command,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use apsis_auth::{
    ApsisAuthBuilder, ApsisAuthLayer, AuthError, BuildError, ClientCredentials, HttpsTransport, TokenHandle,
    emulator::{Answer, Emulator},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tower::{BoxError, service_fn};

use crate::ear::Ear;

/// No test takes longer, unless something hangs that should not.
const LIMIT: Duration = Duration::from_secs(120);
/// For what hangs and should: long enough to connect, write and read.
const MOMENT: Duration = Duration::from_millis(500);

/// Set in a process that a test starts.
const CHILD: &str = "APSIS_AUTH_TEST_CHILD";

const TOKEN: &str = r#"{"access_token":"a-token","expires_in":86400,"token_type":"Bearer"}"#;

// The request (law 13).

#[tokio::test]
async fn a_token_request_has_four_header_fields_and_three_members() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let request = read_request(&mut socket).await.unwrap();
            socket.write_all(answer("200 OK", TOKEN).as_bytes()).await.unwrap();
            request
        });
        let token = builder(&format!("http://{addr}/apsis")).build().unwrap().handle();
        assert_eq!(token.get().await.unwrap().expose_secret(), "a-token");

        let request = server.await.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<_> = head.split("\r\n").map(str::to_ascii_lowercase).collect();
        lines[1..].sort();
        assert_eq!(
            lines,
            [
                "post /apsis/oauth/token http/1.1",
                &format!("content-length: {}", body.len()),
                "content-type: application/json",
                &format!("host: {addr}"),
            ]
        );
        assert!(head.starts_with("POST /apsis/oauth/token HTTP/1.1\r\n"));
        assert_eq!(body, r#"{"grant_type":"client_credentials","client_id":"my-id","client_secret":"my-secret"}"#);
    })
    .await;
}

#[tokio::test]
async fn a_token_is_had_over_plain_http_on_this_machine() {
    limited(async {
        let apsis = Emulator::new();
        let server = apsis.serve().await.unwrap();
        token_of(&apsis, &server.url()).build().unwrap().handle().get().await.unwrap();
        assert_eq!(apsis.counters().tokens_issued, 1);
    })
    .await;
}

// Hangs and floods (law 15).

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    assert_given_up("").await;
}

#[tokio::test]
async fn a_server_that_stops_in_the_head_is_given_up() {
    assert_given_up("HTTP/1.1 200 OK\r\ncontent-ty").await;
}

#[tokio::test]
async fn a_server_that_stops_in_the_body_is_given_up() {
    assert_given_up("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"access_token\":\"").await;
}

#[tokio::test]
async fn a_server_that_stops_before_the_tls_handshake_is_given_up() {
    limited(async {
        // The system completes the TCP connection; nobody accepts it.
        let (_listener, addr) = listen().await;
        let trusted = Emulator::new().serve_https().await.unwrap();
        let transport = HttpsTransport::trusting(trusted.certificate_pem().unwrap().as_bytes()).unwrap();
        let builder = builder(&format!("https://{addr}")).transport(transport).flight_timeout(2 * MOMENT);
        assert_too_late(&builder.attempt_timeout(MOMENT).build().unwrap().handle()).await;
    })
    .await;
}

/// The server says this and no more. The connection is closed when its time is up, with nobody left behind.
async fn assert_given_up(said: &'static str) {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await.unwrap();
            socket.write_all(said.as_bytes()).await.unwrap();
            assert_eq!(rest_of(&mut socket).await, "");
        });
        assert_too_late(&hurried(addr)).await;
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_drip_is_given_up() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await.unwrap();
            let mut interval = tokio::time::interval(Duration::from_millis(5));
            while socket.write_all(b" ").await.is_ok() {
                interval.tick().await;
            }
        });
        assert_too_late(&hurried(addr)).await;
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flood_is_read_up_to_the_limit_and_cut_off() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            while socket.write_all(&[b' '; 16 * 1024]).await.is_ok() {}
        });
        let error = one_attempt(addr).get().await.unwrap_err();
        assert!(chain(&error).contains("larger than 65536 bytes"), "{}", chain(&error));
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_a_head_is_cut_off_too() {
    const MIB: usize = 1024 * 1024;

    limited(async {
        let many = format!("x-field: {}\r\n", "x".repeat(1000));
        for (name, start, field) in [("a long one", "x-field: ", "x".repeat(1000)), ("many", "", many)] {
            let (listener, addr) = listen().await;
            let server = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                read_request(&mut socket).await.unwrap();
                socket.write_all(format!("HTTP/1.1 200 OK\r\n{start}").as_bytes()).await.unwrap();
                let mut written = 0;
                while written < 256 * MIB && socket.write_all(field.as_bytes()).await.is_ok() {
                    written += field.len();
                }
                written
            });
            let error = one_attempt(addr).get().await.unwrap_err();
            assert!(matches!(error, AuthError::Unavailable { .. }), "{name}: {error:?}");
            assert!(chain(&error).contains("head is too large"), "{name}: {}", chain(&error));
            // What was read, and what the system's buffers took.
            let written = server.await.unwrap();
            assert!(written < 64 * MIB, "{name}: {written} bytes");
        }
    })
    .await;
}

#[tokio::test]
async fn a_failure_is_one_whatever_flood_follows() {
    limited(async {
        for (status, said) in [("503 Service Unavailable", "503"), ("401 Unauthorized", "401")] {
            let (listener, addr) = listen().await;
            let server = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                read_request(&mut socket).await.unwrap();
                socket.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
                while socket.write_all(&[b' '; 16 * 1024]).await.is_ok() {}
            });
            let error = one_attempt(addr).get().await.unwrap_err();
            assert!(chain(&error).contains(said), "{}", chain(&error));
            server.await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_always_ready_with_nothing_is_given_up() {
    /// Ends with an error, so that a failure of this test has an end too.
    struct Nothing(Instant);

    impl Body for Nothing {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            let frame =
                if self.0.elapsed() < 5 * MOMENT { Ok(Frame::data(Bytes::new())) } else { Err("too long".into()) };
            Poll::Ready(Some(frame))
        }
    }

    limited(async {
        let transport = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Nothing(Instant::now()))) });
        let builder = builder("https://api.apsis.one").transport(transport).flight_timeout(2 * MOMENT);
        assert_too_late(&builder.attempt_timeout(MOMENT).build().unwrap().handle()).await;
    })
    .await;
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_secret() {
    limited(async {
        for status in [301, 302, 303, 307, 308] {
            let (elsewhere, other) = listen().await;
            let (listener, addr) = listen().await;
            let server = tokio::spawn(async move {
                let head = format!("{status} Elsewhere\r\nlocation: http://{other}/oauth/token");
                serve_once(&listener, &answer(&head, "")).await;
                listener
            });
            let error = one_attempt(addr).get().await.unwrap_err();
            assert!(matches!(error, AuthError::Refused { status: said, .. } if said == status), "{error:?}");
            // Who follows, connects before there is an answer for the caller.
            assert!(!somebody_calls(elsewhere), "{status}: it went elsewhere");
            assert!(!somebody_calls(server.await.unwrap()), "{status}: it came again");
        }
    })
    .await;
}

/// By a real clock: who starts a flight and may wait as long as it takes hears how it ended, not that time is up.
#[tokio::test]
async fn who_waits_as_long_as_a_flight_may_take_hears_how_it_ended() {
    limited(async {
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (listener, addr) = listen().await;
            let builder = builder(&format!("http://{addr}")).attempt_timeout(MOMENT).flight_timeout(MOMENT);
            let token = builder.max_wait(MOMENT).build().unwrap().handle();
            callers.spawn(async move {
                let error = token.get().await.unwrap_err();
                drop(listener);
                error
            });
        }
        while let Some(error) = callers.join_next().await {
            assert!(matches!(error.unwrap(), AuthError::Unavailable { .. }));
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_an_error_that_says_so() {
    limited(async {
        // Bound, so that the port is nobody else's.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let error = one_attempt(socket.local_addr().unwrap()).get().await.unwrap_err();
        assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
        assert!(chain(&error).contains("tcp connect error"), "{}", chain(&error));
    })
    .await;
}

#[tokio::test]
async fn a_connection_closed_without_an_answer_is_retried_on_a_new_one() {
    limited(async {
        let (listener, addr) = listen().await;
        let server: JoinHandle<()> = tokio::spawn(async move {
            serve_once(&listener, "").await;
            serve_once(&listener, &answer("200 OK", TOKEN)).await;
        });
        builder(&format!("http://{addr}")).build().unwrap().handle().get().await.unwrap();
        server.await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn no_connection_is_kept_between_token_requests() {
    limited(async {
        let apsis = Emulator::new();
        let server = apsis.serve().await.unwrap();
        let token = token_of(&apsis, &server.url()).build().unwrap().handle();
        for connections in 1..=3 {
            token.renew().await.unwrap();
            assert_eq!(server.connections(), connections);
        }
    })
    .await;
}

// TLS.

#[tokio::test]
async fn a_token_is_had_over_https_from_a_server_that_is_trusted() {
    limited(async {
        let apsis = Emulator::new();
        let server = apsis.serve_https().await.unwrap();
        let transport = HttpsTransport::trusting(server.certificate_pem().unwrap().as_bytes()).unwrap();
        token_of(&apsis, &server.url()).transport(transport).build().unwrap().handle().get().await.unwrap();
        assert_eq!(apsis.counters().tokens_issued, 1);
    })
    .await;
}

#[tokio::test]
async fn a_bundle_with_a_certificate_that_cannot_be_read_is_refused() {
    limited(async {
        let server = Emulator::new().serve_https().await.unwrap();
        let good = server.certificate_pem().unwrap();
        HttpsTransport::trusting(format!("{good}\n{good}").as_bytes()).unwrap();
        let nonsense = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
        let error = HttpsTransport::trusting(format!("{good}\n{nonsense}").as_bytes()).unwrap_err();
        assert!(matches!(error, BuildError::Certificate { cause: Some(_), .. }), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_no_secret_and_the_error_names_its_certificate() {
    limited(async {
        let apsis = Emulator::new();
        let server = apsis.serve_https().await.unwrap();
        let another = apsis.serve_https().await.unwrap();
        let transport = HttpsTransport::trusting(another.certificate_pem().unwrap().as_bytes()).unwrap();
        let builder = token_of(&apsis, &server.url()).transport(transport).token_requests_per_minute(1);
        let error = builder.build().unwrap().handle().get().await.unwrap_err();

        assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
        assert!(chain(&error).to_lowercase().contains("certificate"), "{}", chain(&error));
        assert_eq!(apsis.counters().token_requests, 0);
    })
    .await;
}

// Secrets (law 31).

#[tokio::test]
async fn whatever_the_default_transport_meets_nobody_says_the_secret_or_the_token() {
    const SECRET: &str = "5ecret_cAnary-0123.456789";
    const CANARY_TOKEN: &str = "t0ken/cAnary+0123~456789==";
    const CANARY: &str = "cAnary";

    limited(async {
        let (ear, _listening) = Ear::listening();
        let apsis = Emulator::new();
        let (http, https) = (apsis.serve().await.unwrap(), apsis.serve_https().await.unwrap());
        let secure = HttpsTransport::trusting(https.certificate_pem().unwrap().as_bytes()).unwrap();
        let handle_of = |base: &str| {
            let builder = ApsisAuthLayer::builder(ClientCredentials::new("id", SECRET).unwrap(), base);
            let builder = if base.starts_with("https") { builder.transport(secure.clone()) } else { builder };
            builder.token_requests_per_minute(1).build().unwrap().handle()
        };
        let both = || format!("{SECRET} {CANARY_TOKEN}");
        for url in [http.url(), https.url()] {
            apsis.script_token_answers([Answer::token(CANARY_TOKEN)]);
            assert_eq!(handle_of(&url).get().await.unwrap().expose_secret(), CANARY_TOKEN);

            let refusal = Answer::status(StatusCode::UNAUTHORIZED).body(format!(r#"{{"error":"{SECRET}"}}"#));
            apsis.script_token_answers([refusal.header("www-authenticate", both())]);
            let error = handle_of(&url).get().await.unwrap_err();
            assert!(matches!(error, AuthError::Refused { code: None, .. }), "{error:?}");

            let broken = [Answer::truncated().body(both()), Answer::html().body(both()), Answer::close()];
            for answer in broken.map(|answer| answer.header("x-both", both())) {
                apsis.script_token_answers([answer]);
                let error = handle_of(&url).get().await.unwrap_err();
                assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
            }
        }
        for head in [both(), format!("200 OK\r\n{}", both())] {
            let (listener, addr) = listen().await;
            let nonsense = format!("HTTP/1.1 {head}\r\n\r\n");
            let server = tokio::spawn(async move { serve_once(&listener, &nonsense).await });
            let error = handle_of(&format!("http://{addr}")).get().await.unwrap_err();
            assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
            server.await.unwrap();
        }

        let all = ear.all();
        assert_eq!(all.iter().filter(|said| said.contains(CANARY)).collect::<Vec<_>>(), Vec::<&String>::new());
        for heard in ["new access token", "token request failed", "grounded", "hyper_util"] {
            assert!(all.iter().any(|said| said.contains(heard)), "{heard}: {all:#?}");
        }
    })
    .await;
}

// The environment.

#[test]
fn a_layer_is_built_from_the_environment() {
    let certificate = certificate_file();
    let file = certificate.to_str().unwrap();
    let variables = |region| {
        [
            ("APSIS_CLIENT_ID", "my-id"),
            ("APSIS_CLIENT_SECRET", "my-secret"),
            ("APSIS_REGION", region),
            ("SSL_CERT_FILE", file),
        ]
    };
    let built = built_with(&variables("apac"));
    assert!(built.contains("Ok(ApsisAuthLayer") && built.contains("api-apac.apsis.one"), "{built}");
    assert!(!built.contains("my-secret"), "{built}");
    let built = built_with(&variables("EU"));
    assert!(built.contains("\"api.apsis.one\""), "{built}");

    let built = built_with(&variables("eu")[..1]);
    assert!(built.contains("Err(MissingVariable { variable: \"APSIS_CLIENT_SECRET\" })"), "{built}");
    let built = built_with(&variables("eu")[..2]);
    assert!(built.contains("Err(MissingRegion)"), "{built}");
    std::fs::remove_file(&certificate).unwrap();

    let built = built_with(&variables("eu"));
    assert!(built.contains("Err(RootCertificates { cause: Some("), "{built}");
    assert!(built.contains("plain http: Ok(ApsisAuthLayer"), "{built}");
}

/// Run by the test above, in an environment that it makes. Elsewhere it is of no use.
#[test]
fn build_from_the_environment() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    writeln!(io::stdout(), "{:?}", ApsisAuthLayer::from_env()).unwrap();
    // A container that talks to a gateway beside it may have no certificates.
    writeln!(io::stdout(), "plain http: {:?}", builder("http://127.0.0.1").build()).unwrap();
}

/// What is built in a process with these environment variables and no others.
fn built_with(variables: &[(&str, &str)]) -> String {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["build_from_the_environment", "--exact", "--nocapture"]);
    let output = process.env_clear().env(CHILD, "1").envs(variables.iter().copied()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// For a system that has no certificates of its own.
fn certificate_file() -> PathBuf {
    let path = std::env::temp_dir().join(format!("apsis-auth-{}.pem", std::process::id()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(Emulator::new().serve_https()).unwrap();
    std::fs::write(&path, server.certificate_pem().unwrap()).unwrap();
    path
}

// Helpers.

async fn limited<T>(test: impl Future<Output = T>) -> T {
    timeout(LIMIT, test).await.expect("the test ends in time")
}

/// With the default transport, as always below unless said otherwise.
fn builder(base: &str) -> ApsisAuthBuilder {
    ApsisAuthLayer::builder(ClientCredentials::new("my-id", "my-secret").unwrap(), base).random(|| 0.0)
}

fn token_of(apsis: &Emulator, base: &str) -> ApsisAuthBuilder {
    let key = apsis.api_key();
    let credentials = ClientCredentials::new(key.client_id(), key.client_secret()).unwrap();
    ApsisAuthLayer::builder(credentials, base).random(|| 0.0)
}

/// There is no room for a second attempt in the budget.
fn one_attempt(addr: SocketAddr) -> TokenHandle {
    builder(&format!("http://{addr}")).token_requests_per_minute(1).build().unwrap().handle()
}

/// An attempt that gives up soon, in a flight of so short a time that a second one does not fit in.
fn hurried(addr: SocketAddr) -> TokenHandle {
    let builder = builder(&format!("http://{addr}")).flight_timeout(2 * MOMENT);
    builder.attempt_timeout(MOMENT).build().unwrap().handle()
}

async fn assert_too_late(token: &TokenHandle) {
    let started = Instant::now();
    let error = token.get().await.unwrap_err();
    assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
    assert!(chain(&error).contains("did not answer within"), "{}", chain(&error));
    assert!(started.elapsed() >= MOMENT, "{:?}", started.elapsed());
}

fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Whether a connection waits to be accepted.
fn somebody_calls(listener: TcpListener) -> bool {
    match listener.into_std().unwrap().accept() {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    }
}

/// Accepts one connection, reads one request, says this, and closes.
async fn serve_once(listener: &TcpListener, said: &str) {
    let (mut socket, _) = listener.accept().await.unwrap();
    read_request(&mut socket).await.unwrap();
    socket.write_all(said.as_bytes()).await.unwrap();
}

/// Serves whoever comes, one after the other. Some are gone before they are answered.
async fn serve_all(listener: &TcpListener, said: &str) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        if read_request(&mut socket).await.is_ok() {
            let _ = socket.write_all(said.as_bytes()).await;
        }
    }
}

fn answer(head: &str, body: &str) -> String {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A request with a `content-length`, as it came.
async fn read_request(socket: &mut TcpStream) -> io::Result<String> {
    let mut request = String::new();
    loop {
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let length =
                head.to_ascii_lowercase().split_once("content-length: ").unwrap().1.lines().next().unwrap().parse();
            if body.len() >= length.unwrap() {
                return Ok(request);
            }
        }
        let mut bytes = [0; 1024];
        let read = socket.read(&mut bytes).await?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the request ends early: {request}")));
        }
        request.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

/// What else comes until the other side closes.
async fn rest_of(socket: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = socket.read_to_end(&mut rest).await;
    String::from_utf8(rest).unwrap()
}
