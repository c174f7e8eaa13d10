//! A gateway: any program that speaks plain HTTP speaks APSIS One through it, without credentials, tokens or this crate.
//!
//! ```text
//! cargo run --example axum_gateway --features axum,emulator -- --emulator
//! ```
//!
//! With `--emulator` it starts an emulator of APSIS One and forwards there, so no account is needed. Without, it takes
//! `APSIS_CLIENT_ID`, `APSIS_CLIENT_SECRET` (or the files that `APSIS_CLIENT_ID_FILE` and `APSIS_CLIENT_SECRET_FILE` name) and
//! `APSIS_REGION`. It prints `curl` lines to try it with, such as
//!
//! ```text
//! curl -sS -w '\n' 'http://127.0.0.1:8080/apsis/audience/keyspaces'
//! curl -sS -w '\n' 'http://127.0.0.1:8080/readyz'
//! ```
//!
//! `/apsis/…` goes to `…` at the API: method, target (to the byte), header fields, body and trailers, and the answer back.
//! Bodies stream both ways, and are kept for a replay as far as the layer keeps them. What is between two connections alone
//! stays there (`fields.rs`). `x-request-id` is the caller's or a new one, `traceparent` and its like pass as they are; both
//! stand in the log, which `RUST_LOG` sets. Its level `debug` shows targets, which hold profile keys, so mail addresses; `trace`
//! shows header fields, but for `Authorization`, `Proxy-Authorization` and `Cookie`. Nothing shows bodies or the token.
//!
//! # What a caller gets when there is no answer of the API
//!
//! | what happened | answer |
//! | --- | --- |
//! | the token endpoint refuses the gateway's credentials | 502 |
//! | no connection to the API, a lost one, an answer that is not HTTP | 502 |
//! | no token for now: a limit, an outage | 503 with `Retry-After` |
//! | the token request was interrupted, or brought the token that was rejected | 503 |
//! | as many requests under way as `--max-requests` | 503 with `Retry-After: 1` |
//! | no token, or no answer of the API, within the time limit | 504 |
//! | the caller's body breaks off | 400 |
//! | too many header fields, a target that is too long | 431, 414 |
//! | `CONNECT`, `TRACE`, another transfer coding than `chunked` | 501 |
//! | `OPTIONS` with `Max-Forwards: 0` | 204 with `Allow` |
//! | `/apsis/oauth/token`, however it is spelled: the gateway gets the tokens itself | 404 |
//! | another path than `/apsis/…`, `/healthz`, `/readyz` | 404 |
//! | a web page asks: `Origin`, or a `Host` that is not the loopback address that it listens at | 403, 421 |
//!
//! All of them have a `Proxy-Status`, by which they are told from the API's own, and but for the 204 all are
//! `application/problem+json` (`errors.rs`). Whatever the API says goes to the caller as it is, 401 and 403 included: by then
//! the layer has done what it can, and the log says what. An answer that breaks off half-way breaks off for the caller, too.
//!
//! # What it is not
//!
//! It does not ask who its callers are: whoever reaches it uses the account. So it listens on this machine alone unless
//! `--listen` says otherwise; then put something in front of it that asks. It repeats nothing but what was rejected, keeps to
//! none of the API's limits, and changes no answer: a `Location` that names the API names the API.
//!
//! Nor does it bound how slow they are: one that stops sending in the middle of a request's head, or stops reading its answer,
//! holds its connection until it closes it, and in the latter case one of `--max-requests`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a program is for")]

mod errors;
mod fields;
mod forward;
mod guard;
mod health;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use apsis_auth::{
    ApsisAuthLayer, BuildError, ClientCredentials, Region,
    emulator::{Emulator, EmulatorServer},
};
use axum::{
    Router,
    extract::Request,
    middleware::map_request,
    response::Response,
    routing::{any, get},
    serve::ListenerExt,
};
use clap::{Parser, value_parser};
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    time::{sleep, timeout},
};
use tower::{BoxError, ServiceBuilder};
use tower_http::{ServiceBuilderExt, request_id::MakeRequestUuid, trace::TraceLayer};
use tracing::Span;
use tracing_subscriber::EnvFilter;

use crate::{
    forward::{Base, HttpsClient, REQUEST_ID, Upstream},
    guard::Guard,
    health::Health,
};

const ENVIRONMENT: &str = "\
Environment:
  APSIS_CLIENT_ID, APSIS_CLIENT_SECRET  the API key; or APSIS_CLIENT_ID_FILE, APSIS_CLIENT_SECRET_FILE: files that hold it
  APSIS_REGION                          eu or apac, unless there is a --base-url
  RUST_LOG                              what is logged [default: info]

With --emulator only the last one counts.";

/// Forwards /apsis/* to APSIS One, with a valid token
#[derive(Clone, Debug, Parser)]
#[command(after_help = ENVIRONMENT)]
struct Settings {
    /// Where to listen. Whoever reaches this address uses the account
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Start an emulator of APSIS One and forward there
    #[arg(long, conflicts_with = "base_url")]
    emulator: bool,
    /// Forward there instead of to the region's API: a gateway of your own
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// The longest time until an answer begins, upload and wait for a token included, and the longest pause in one
    // A request waits for tokens for 30 s at most, and the API's own gateway gives up after 29 s, of a replay once more.
    #[arg(long, value_name = "SECONDS", default_value = "90", value_parser = some_seconds)]
    timeout: Duration,
    /// How many requests are forwarded at a time; more are told to come back
    #[arg(long, value_name = "N", default_value = "512", value_parser = value_parser!(u16).range(1..))]
    max_requests: u16,
    /// At the end, for how long to go on as before while /readyz says no, so that nobody sends more
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    drain: Duration,
    /// At the end, for how long requests under way may go on
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    grace: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "not a whole number of seconds".to_owned())
}

fn some_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { Err("no time at all".to_owned()) } else { Ok(time) })
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = Settings::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    match run(&settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_chain(&*error);
            if error.is::<BuildError>() {
                eprintln!("--help says what it takes; --emulator needs no account");
            }
            ExitCode::FAILURE
        }
    }
}

/// An error says what failed, and its sources say why.
fn print_chain(error: &dyn Error) {
    eprintln!("{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
}

async fn run(settings: &Settings) -> Result<(), BoxError> {
    let Account { base, auth, emulator } = Account::open(settings).await?;
    // The layer has looked at it already.
    let parsed = Base::of(&base).ok_or("the base URL is not absolute")?;
    let client = forward::https_client(forward::tls(&parsed)?);
    let health = Health::new(auth.handle());

    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| format!("cannot listen at {}: {error}; --listen takes another address", settings.listen))?;
    print_instructions(listener.local_addr()?, &base, emulator.is_some());
    if !settings.listen.ip().is_loopback() {
        tracing::warn!(listen = %settings.listen, "whoever reaches this address uses the account");
    }
    // A token that cannot be had is no reason not to start: it may be there when the first request is.
    health.warm_up();
    serve(listener, app(settings, parsed, client, auth, &health), settings, health, end_of_process).await;

    if let Some(emulator) = emulator {
        emulator.shutdown().await;
    }
    Ok(())
}

/// Whose API it is, and where.
struct Account {
    base: String,
    auth: ApsisAuthLayer,
    emulator: Option<EmulatorServer>,
}

impl Account {
    async fn open(settings: &Settings) -> Result<Self, BoxError> {
        if settings.emulator {
            let apsis = Emulator::new();
            let server = apsis.serve().await?;
            let auth = ApsisAuthLayer::builder(apsis.api_key().credentials(), server.url()).build()?;
            return Ok(Self { base: server.url(), auth, emulator: Some(server) });
        }
        let (base, auth) = match &settings.base_url {
            None => (Region::from_env()?.base_url().to_owned(), ApsisAuthLayer::from_env()?),
            Some(url) => (url.clone(), ApsisAuthLayer::builder(ClientCredentials::from_env()?, url.as_str()).build()?),
        };
        Ok(Self { base, auth, emulator: None })
    }
}

/// The gateway, to be served.
fn app(settings: &Settings, base: Base, client: HttpsClient, auth: ApsisAuthLayer, health: &Health) -> Router {
    let guard = Guard::of(settings.listen);
    let upstream = Upstream::new(base, client, auth, guard, settings.timeout, settings.max_requests.into());
    let trace = TraceLayer::new_for_http()
        .make_span_with(span)
        .on_request(())
        .on_response(|answer: &Response, took: Duration, _: &Span| {
            tracing::info!(status = answer.status().as_u16(), ?took, "answered");
        })
        .on_body_chunk(())
        .on_eos(())
        .on_failure(());
    let stack = ServiceBuilder::new()
        .sensitive_request_headers([AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].into())
        .set_x_request_id(MakeRequestUuid)
        .layer(trace)
        .propagate_x_request_id();
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        // What the state tells is as little for web pages as the API.
        .route_layer(map_request(move |request| async move { guard.check(&request).map(|()| request) }))
        .with_state(health.clone())
        // No route: what is below the prefix is forwarded as it is.
        .fallback_service(any(forward::forward).layer(stack).with_state(upstream))
}

/// Without the target: it holds profile keys, which are mail addresses.
fn span(request: &Request) -> Span {
    let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    tracing::info_span!(
        "request",
        method = %request.method(),
        request_id = field(REQUEST_ID.as_str()),
        traceparent = field("traceparent"),
        api_request_id = tracing::field::Empty,
    )
}

/// Serves until `end` comes. Then no connection is accepted any more, and requests under way may go on to their end, for as
/// long as the settings say or until `end` comes once more.
async fn serve<F>(listener: TcpListener, app: Router, settings: &Settings, health: Health, end: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (first, drain) = (end(), settings.drain);
    let (ending, is_ending) = oneshot::channel();
    let stop = async move {
        first.await;
        health.stop();
        // The receiver is gone only with the whole server.
        let _ = ending.send(());
        sleep(drain).await;
        tracing::info!("no new connections; waiting for requests under way");
    };
    let cut_off = async {
        if is_ending.await.is_ok() {
            // Of no interest is which of them it was.
            let _ = timeout(drain.saturating_add(settings.grace), end()).await;
        }
    };
    // Small chunks go out when they come.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    let server = axum::serve(listener, app).with_graceful_shutdown(stop);
    tokio::select! {
        _ = server.into_future() => tracing::info!("all requests have ended"),
        () = cut_off => tracing::warn!("requests under way are cut off"),
    }
}

/// Ctrl-C, or what service managers send.
async fn end_of_process() {
    let interrupted = async {
        tokio::signal::ctrl_c().await.expect("the handler of Ctrl-C can be installed");
    };
    tokio::select! {
        () = interrupted => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};

    signal(SignalKind::terminate()).expect("the handler of SIGTERM can be installed").recv().await;
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}

fn print_instructions(listen: SocketAddr, base: &str, emulated: bool) {
    let url = format!("http://{}", reachable(listen));
    let curl = "curl -sS -w '\\n'";
    let what = if emulated { "an emulator of APSIS One" } else { "APSIS One" };
    println!("Until Ctrl-C, {url}/apsis is {what} at {base}.\n");
    println!("# The keyspaces\n{curl} '{url}/apsis/audience/keyspaces'\n");
    if emulated {
        let profile =
            format!("'{url}/apsis/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com'");
        let json = "-H 'Content-Type: application/json'";
        println!("# A profile: create it, read it");
        println!("{curl} -i -X POST {profile} {json} -d '{{\"city\":\"Malmo\"}}'\n{curl} {profile}\n");
    }
    println!("# Whether there is a token to forward with\n{curl} '{url}/readyz'\n");
}

/// An address to connect to: that it listens at every one is no address.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}
