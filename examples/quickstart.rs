//! The layer at work. Without settings it starts an emulator of APSIS One and shows what callers notice of a cold start,
//! of revoked tokens and of a token endpoint that is over its limit:
//!
//! ```text
//! cargo run --example quickstart --features emulator
//! ```
//!
//! With `APSIS_CLIENT_ID`, `APSIS_CLIENT_SECRET` and `APSIS_REGION` set it calls the real API once. `RUST_LOG=debug` shows
//! what the layer and tower-http trace.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program is for")]

use std::{
    env,
    error::Error,
    io,
    process::ExitCode,
    time::{Duration, Instant},
};

use apsis_auth::{
    ApsisAuthLayer, Region, Snapshot,
    emulator::{Answer, Dialect, Emulator},
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::crypto::aws_lc_rs;
use tokio::task::JoinSet;
use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use tower_http::{ServiceBuilderExt, timeout::TimeoutLayer, trace::TraceLayer};
use tracing_subscriber::EnvFilter;

const SETTINGS: [&str; 5] =
    ["APSIS_CLIENT_ID", "APSIS_CLIENT_ID_FILE", "APSIS_CLIENT_SECRET", "APSIS_CLIENT_SECRET_FILE", "APSIS_REGION"];

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).init();
    let real = SETTINGS.iter().any(|name| env::var_os(name).is_some());
    let result = if real { call_the_api().await } else { tell_the_story().await };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_chain(&*error);
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

type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>;

/// What an application has anyway, and one line more: `.layer(auth)`.
fn client(auth: ApsisAuthLayer) -> Result<ApiClient, BoxError> {
    let stack = ServiceBuilder::new()
        .map_response_body(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(30)))
        .layer(auth)
        // TimeoutLayer answers with a body of its own making; hyper's has no default.
        .map_response_body(BodyExt::boxed_unsync)
        .service(https_client()?);
    // Boxed, for a type that has a short name.
    Ok(BoxCloneSyncService::new(stack))
}

/// The client that the application has: hyper over rustls, for http as well since the emulator speaks that.
fn https_client() -> io::Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let connector = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(aws_lc_rs::default_provider())?
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

async fn call_the_api() -> Result<(), BoxError> {
    let base = Region::from_env()?.base_url();
    let client = client(ApsisAuthLayer::from_env()?)?;
    let started = Instant::now();
    let status = get_keyspaces(client, base.to_owned()).await?;
    println!("GET {base}/audience/keyspaces: {status} after {:.2?}", started.elapsed());
    Ok(())
}

async fn tell_the_story() -> Result<(), BoxError> {
    let apsis = Emulator::new();
    let server = apsis.serve().await?;
    // APSIS One takes 100 requests a second; the story is told faster.
    apsis.set_api_limit(10_000);
    let auth = ApsisAuthLayer::builder(apsis.api_key().credentials(), server.url()).build()?;
    let token = auth.handle();
    let scene = Scene { apsis: apsis.clone(), base: server.url(), client: client(auth)? };

    println!("An emulator of APSIS One listens at {}.\n", server.url());
    println!("{:<52} {:>6} {:>7} {:>8} {:>7} {:>7}", "", "calls", "200 OK", "replayed", "tokens", "time");
    scene.play("first calls, all at once", 100).await?;

    apsis.set_dialect(Dialect::Unauthorized);
    apsis.revoke_tokens();
    scene.play("the token is revoked, and the API says 401", 100).await?;

    apsis.set_dialect(Dialect::Gateway);
    apsis.revoke_tokens();
    scene.play("the token is revoked, and the gateway says 403", 100).await?;

    apsis.script_token_answers([Answer::too_many_requests()]);
    let refused = token.renew().await;
    scene.play("the token endpoint says 429 to a forced renewal", 100).await?;

    if let Err(error) = refused {
        println!("\nThe forced renewal failed: {error}.");
    }
    print_state(&token.snapshot());
    server.shutdown().await;
    Ok(())
}

struct Scene {
    apsis: Emulator,
    base: String,
    client: ApiClient,
}

impl Scene {
    /// Makes the calls at the same time and prints what the callers and the emulator saw.
    async fn play(&self, title: &str, calls: usize) -> Result<(), BoxError> {
        let before = self.apsis.counters();
        let started = Instant::now();
        let mut answers = JoinSet::new();
        for _ in 0..calls {
            answers.spawn(get_keyspaces(self.client.clone(), self.base.clone()));
        }
        let mut accepted = 0;
        while let Some(status) = answers.join_next().await {
            accepted += usize::from(status?? == StatusCode::OK);
        }
        let took = started.elapsed();
        let after = self.apsis.counters();
        let replayed = after.api_rejected - before.api_rejected;
        let tokens = after.tokens_issued - before.tokens_issued;
        println!("{title:<52} {calls:>6} {accepted:>7} {replayed:>8} {tokens:>7} {:>4} ms", took.as_millis());
        Ok(())
    }
}

fn print_state(state: &Snapshot) {
    println!("\nThe state at the end:");
    if let Some(token) = &state.token {
        println!("  token number {}, good for {} s more", token.generation, token.expires_in_seconds);
        println!("  its refresh is due in {} s", token.due_in_seconds);
    }
    if let Some(grounded) = &state.grounded {
        println!("  no token request for {} s: {}", grounded.for_seconds, grounded.because);
    }
    println!("  token requests left in this minute: {}", state.attempts_left);
}

async fn get_keyspaces(client: ApiClient, base: String) -> Result<StatusCode, BoxError> {
    let request = Request::get(format!("{base}/audience/keyspaces")).body(Full::default())?;
    let response = client.oneshot(request).await?;
    let status = response.status();
    response.into_body().collect().await?;
    Ok(status)
}
