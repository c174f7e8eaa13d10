//! What is left of the difference where there is a network, however short: hyper's client and server over loopback TCP.
//!
//! ```sh
//! cargo bench --bench loopback
//! ```
//!
//! hyper-util's legacy client on this thread, a hyper server on a thread of its own, each with a runtime of one thread;
//! HTTP/1.1 and HTTP/2 (cleartext, by prior knowledge); 32 requests in flight, each with the measured head and an empty
//! body or one of 1 KiB. The server reads the body and answers 200 with a small one, which is read to its end. It counts
//! the requests that carry a token of the measured length: those are all that were sent. Both ends set `TCP_NODELAY`:
//! without it a body in HTTP/2 waits for a delayed acknowledgement, and nothing else can be seen.
//!
//! One client, so one pool of connections, is wrapped in three ways, in one of them twice: the static header against
//! itself says how much is noise. The variants take turns; `times_static` is a ratio of requests a second within one
//! round, and each figure is the median of the rounds.

#[expect(dead_code, reason = "requests go to a server here")]
mod measure;

mod endpoint;
mod figures;
mod rounds;
mod spread;

use std::{
    convert::Infallible,
    fmt, io,
    iter::zip,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, CONTENT_LENGTH},
};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    task::JoinSet,
};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{
    endpoint::Endpoint,
    figures::Figures,
    measure::{Body, StaticHeader, request},
    rounds::rounds,
    spread::Spread,
};

const ROUNDS: usize = 25;
const IN_FLIGHT: usize = 32;

/// Requests of a round, of each that is in flight.
const REQUESTS: u32 = 64;

const PROTOCOLS: [(&str, bool); 2] = [("HTTP/1.1", false), ("HTTP/2", true)];
const BODIES: [usize; 2] = [0, 1024];
const VARIANTS: [&str; 4] = ["static header", "static header again", "without replay", "with replay"];

fn main() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let columns = &["protocol", "variant", "body_bytes", "requests_per_s", "times_static", "p10", "p90"];
    let mut figures = Figures::new("loopback", columns);
    for (protocol, is_http2) in PROTOCOLS {
        for body_bytes in BODIES {
            let seen = measured(&runtime, is_http2, body_bytes)?;
            for (variant, per_second) in zip(VARIANTS, &seen) {
                let times_static = Spread::of(zip(per_second, &seen[0]).map(|(this, fixed)| this / fixed));
                figures.add([
                    protocol.to_owned(),
                    variant.to_owned(),
                    body_bytes.to_string(),
                    format!("{:.0}", Spread::of(per_second.iter().copied()).median),
                    format!("{:.3}", times_static.median),
                    format!("{:.3}", times_static.p10),
                    format!("{:.3}", times_static.p90),
                ]);
            }
        }
    }
    figures.report()
}

/// The requests a second of each variant in each round.
fn measured(runtime: &Runtime, is_http2: bool, body_bytes: usize) -> io::Result<[Vec<f64>; 4]> {
    let server = Server::start(is_http2)?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).http2_only(is_http2).build::<_, Body>(connector);
    let uri: Uri = format!("http://{}/audience/keyspaces/crm/profiles", server.address).parse().expect("it is a URI");
    let make = move || post(&uri, body_bytes);

    let base = format!("http://{}", server.address);
    let endpoint = Endpoint::new(Duration::ZERO);
    let layers = [endpoint.builder(&base).without_replay(), endpoint.builder(&base)];
    let [without_replay, with_replay] = layers.map(|builder| {
        let layer = builder.build().expect("loopback may be plain");
        runtime.block_on(layer.handle().warm_up()).expect("the endpoint always has a token");
        layer.layer(client.clone())
    });
    let fixed = StaticHeader::new(client);

    let seen = rounds(
        ROUNDS,
        &mut [
            &mut || runtime.block_on(requests_a_second(&fixed, &make)),
            &mut || runtime.block_on(requests_a_second(&fixed, &make)),
            &mut || runtime.block_on(requests_a_second(&without_replay, &make)),
            &mut || runtime.block_on(requests_a_second(&with_replay, &make)),
        ],
    );
    let rounds = (ROUNDS + 1) * VARIANTS.len();
    assert_eq!(server.stamped.load(Ordering::Relaxed), rounds * IN_FLIGHT * REQUESTS as usize);
    assert_eq!(endpoint.requests(), 2);
    Ok(seen)
}

/// Keeps so many requests in flight until all of a round are answered.
async fn requests_a_second<S, R>(service: &S, make: &(impl Fn() -> Request<Body> + Clone + Send + 'static)) -> f64
where
    S: Service<Request<Body>, Response = Response<R>, Error: fmt::Debug + Send, Future: Send> + Clone + Send + 'static,
    R: http_body::Body<Data: Send, Error: fmt::Debug + Send> + Send + 'static,
{
    let start = Instant::now();
    let mut senders = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (mut service, make) = (service.clone(), make.clone());
        senders.spawn(async move {
            for _ in 0..REQUESTS {
                let ready = service.ready().await.expect("the client is always ready");
                let answer = ready.call(make()).await.expect("the server answers");
                assert_eq!(answer.status(), StatusCode::OK);
                assert_eq!(answer.into_body().collect().await.expect("it ends").to_bytes(), ANSWER);
            }
            REQUESTS
        });
    }
    let sent: u32 = senders.join_all().await.into_iter().sum();
    f64::from(sent) / start.elapsed().as_secs_f64()
}

/// The measured head, to this server; the client says how long the body is.
fn post(uri: &Uri, body_bytes: usize) -> Request<Body> {
    let mut request = request(Bytes::from_static(&BODY[..body_bytes]));
    *request.method_mut() = Method::POST;
    request.uri_mut().clone_from(uri);
    request.headers_mut().remove(CONTENT_LENGTH);
    request
}

const BODY: &[u8] = &[b'x'; 1024];
const ANSWER: &str = r#"{"items":[]}"#;

/// On a thread of its own, until the program ends.
struct Server {
    address: SocketAddr,
    stamped: Arc<AtomicUsize>,
}

impl Server {
    fn start(is_http2: bool) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stamped = Arc::new(AtomicUsize::new(0));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let counter = Arc::clone(&stamped);
        thread::spawn(move || runtime.block_on(serve(listener, is_http2, &counter)));
        Ok(Self { address, stamped })
    }
}

async fn serve(listener: std::net::TcpListener, is_http2: bool, stamped: &Arc<AtomicUsize>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let builder = auto::Builder::new(TokioExecutor::new());
    let builder = if is_http2 { builder.http2_only() } else { builder.http1_only() };
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (builder, stamped) = (builder.clone(), Arc::clone(stamped));
        tokio::spawn(async move {
            let api = service_fn(move |request| answer(request, Arc::clone(&stamped)));
            // A client that is dropped closes its connections as it likes.
            let _ = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(api)).await;
        });
    }
}

async fn answer<B>(request: Request<B>, stamped: Arc<AtomicUsize>) -> Result<Response<Full<Bytes>>, Infallible>
where
    B: http_body::Body<Error: fmt::Debug>,
{
    let token = request.headers().get(AUTHORIZATION).expect("no request comes without a token");
    assert_eq!(token.len(), "Bearer ".len() + 1024);
    let body = request.into_body().collect().await.expect("it ends").to_bytes();
    assert!(BODIES.contains(&body.len()));
    stamped.fetch_add(1, Ordering::Relaxed);
    Ok(Response::new(ANSWER.into()))
}
