//! Sockets on both sides of a gateway, and what is said over them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use apsis_auth::{ApsisAuthBuilder, ApsisAuthLayer, TokenHandle, emulator::Emulator};
use clap::Parser;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    Settings, app,
    forward::{Base, https_client},
    health::Health,
    serve,
};

/// No test takes longer, unless something hangs that should not.
const LIMIT: Duration = Duration::from_secs(20);
/// For what hangs and should: long enough to connect, write and read.
pub(super) const MOMENT: Duration = Duration::from_millis(500);

pub(super) async fn limited<T>(test: impl Future<Output = T>) -> T {
    timeout(LIMIT, test).await.expect("the test ends in time")
}

/// Until it is so. What is waited for is sure to come, so only its moment is unknown.
pub(super) async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    while !is_so().await {
        sleep(Duration::from_millis(5)).await;
    }
}

/// A gateway that is served. It ends with the test, if not before.
pub(super) struct Gateway {
    pub(super) addr: SocketAddr,
    pub(super) token: TokenHandle,
    pub(super) end: Arc<Notify>,
    pub(super) served: JoinHandle<()>,
}

/// What the command line says if it says nothing.
pub(super) fn settings() -> Settings {
    Settings::parse_from(["axum_gateway"])
}

/// A layer whose token requests go to the emulator without a socket, wherever the API is.
pub(super) fn auth(apsis: &Emulator, base: &str) -> ApsisAuthBuilder {
    ApsisAuthLayer::builder(apsis.api_key().credentials(), base).transport(apsis.clone())
}

impl Gateway {
    /// In front of an API that has no say in tokens.
    pub(super) async fn to(base: &str) -> Self {
        Self::with(base, auth(&Emulator::new(), base), settings(), RootCertStore::empty()).await
    }

    pub(super) async fn with_settings(base: &str, settings: Settings) -> Self {
        Self::with(base, auth(&Emulator::new(), base), settings, RootCertStore::empty()).await
    }

    pub(super) async fn with_auth(base: &str, auth: ApsisAuthBuilder) -> Self {
        Self::with(base, auth, settings(), RootCertStore::empty()).await
    }

    pub(super) async fn with(base: &str, auth: ApsisAuthBuilder, settings: Settings, roots: RootCertStore) -> Self {
        let tls = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into());
        let tls =
            tls.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
        let auth = auth.build().unwrap();
        let token = auth.handle();
        let health = Health::new(auth.handle());
        let app = app(&settings, Base::of(base).unwrap(), https_client(tls), auth, &health);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let end = Arc::new(Notify::new());
        let ends = Arc::clone(&end);
        let served = tokio::spawn(async move {
            let end = || {
                let end = Arc::clone(&ends);
                async move { end.notified().await }
            };
            serve(listener, app, &settings, health, end).await;
        });
        Self { addr, token, end, served }
    }

    /// A caller that has said this.
    pub(super) async fn hears(&self, said: &str) -> Peer {
        let mut caller = Peer(TcpStream::connect(self.addr).await.unwrap());
        caller.say(said).await;
        caller
    }

    /// What a caller gets that sends this line, a host and these lines, and closes.
    pub(super) async fn ask(&self, request: &str) -> Answer {
        let (line, fields) = request.split_once("\r\n").unwrap_or((request, ""));
        let fields = if fields.is_empty() { String::new() } else { format!("{}\r\n", fields.trim_end()) };
        let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{fields}\r\n");
        self.hears(&request).await.answer().await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.served.abort();
    }
}

/// A socket for an API, and its base URL.
pub(super) async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    (listener, base)
}

pub(super) async fn accept(listener: &TcpListener) -> Peer {
    Peer(listener.accept().await.unwrap().0)
}

/// Answers each request the same, each over a connection of its own, and passes on what the requests' heads were.
pub(super) fn answering(listener: TcpListener, answer: &'static str) -> tokio::sync::mpsc::UnboundedReceiver<Head> {
    let (heads, received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let mut api = accept(&listener).await;
            // The test that does not listen any more has ended.
            let _ = heads.send(api.head().await);
            api.say(answer).await;
        }
    });
    received
}

pub(super) const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

/// The other end of a connection.
pub(super) struct Peer(pub(super) TcpStream);

impl Peer {
    pub(super) async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    pub(super) async fn head(&mut self) -> Head {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.expect("the head is not at its end"));
        }
        Head(String::from_utf8(head).unwrap())
    }

    /// The next bytes, which have to be these.
    pub(super) async fn hear(&mut self, text: &str) {
        let mut bytes = vec![0; text.len()];
        self.0.read_exact(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// All that comes, to the end of the connection. One that is reset has ended, too.
    pub(super) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest).await;
        String::from_utf8(rest).unwrap()
    }

    pub(super) async fn answer(mut self) -> Answer {
        let head = self.head().await;
        Answer { head, body: self.rest().await }
    }
}

#[derive(Debug)]
pub(super) struct Head(pub(super) String);

impl Head {
    pub(super) fn line(&self) -> &str {
        self.0.lines().next().unwrap()
    }

    pub(super) fn status(&self) -> u16 {
        self.line().split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The values of all fields of this name.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.0.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// The value of the only field of this name.
    pub(super) fn field(&self, name: &str) -> &str {
        let [value] = self.all(name)[..] else { panic!("{name} is there once in {}", self.0) };
        value
    }
}

/// An answer on a connection that was closed behind it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn retry_after(&self) -> Option<u64> {
        self.head.all("retry-after").first().map(|seconds| seconds.parse().unwrap())
    }

    /// That it is the gateway's own, with this status and this error type; and what it says.
    pub(super) fn problem(&self, status: u16, error: &str) -> String {
        assert_eq!(self.status(), status, "{self:?}");
        assert_eq!(self.head.field("content-type"), "application/problem+json");
        assert_eq!(self.head.field("proxy-status"), format!("apsis-gateway; error={error}"));
        let json = self.json();
        assert_eq!(json["status"], status);
        assert!(json["title"].is_string());
        json["detail"].as_str().unwrap().to_owned()
    }
}
