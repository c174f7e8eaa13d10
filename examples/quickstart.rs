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
    ApsisAuthLayer, AuthOutcome, Region, Snapshot,
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
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::task::JoinSet;
use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use tower_http::{ServiceBuilderExt, timeout::TimeoutLayer, trace::TraceLayer};
use tracing_subscriber::EnvFilter;

const SETTINGS: [&str; 5] =
    ["APSIS_CLIENT_ID", "APSIS_CLIENT_ID_FILE", "APSIS_CLIENT_SECRET", "APSIS_CLIENT_SECRET_FILE", "APSIS_REGION"];

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let real = SETTINGS.iter().any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()));
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
fn client(auth: ApsisAuthLayer, base: &str) -> Result<ApiClient, BoxError> {
    let stack = ServiceBuilder::new()
        .map_response_body(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
        .layer(TraceLayer::new_for_http())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(60)))
        .layer(auth)
        // TimeoutLayer answers with a body of its own making; hyper's has no default.
        .map_response_body(BodyExt::boxed_unsync)
        .service(https_client(base)?);
    // Boxed, for a type that has a short name.
    Ok(BoxCloneSyncService::new(stack))
}

/// The client that the application has. The emulator speaks plain http, for which no certificate is needed.
fn https_client(base: &str) -> io::Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>> {
    let provider = aws_lc_rs::default_provider();
    let builder = HttpsConnectorBuilder::new();
    let builder = if base.starts_with("https:") {
        builder.with_provider_and_native_roots(provider)?
    } else {
        let config = ClientConfig::builder_with_provider(provider.into()).with_safe_default_protocol_versions();
        let config = config.map_err(io::Error::other)?.with_root_certificates(RootCertStore::empty());
        builder.with_tls_config(config.with_no_client_auth())
    };
    let connector = builder.https_or_http().enable_http1().build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

async fn call_the_api() -> Result<(), BoxError> {
    let base = Region::from_env()?.base_url();
    let client = client(ApsisAuthLayer::from_env()?, base)?;
    println!("Asking {base} for a token, and then for the keyspaces …");
    let started = Instant::now();
    let (status, _) = get_keyspaces(client, base.to_owned()).await?;
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
    let scene = Scene { apsis: apsis.clone(), base: server.url(), client: client(auth, &server.url())? };

    println!("An emulator of APSIS One listens at {}. In each row 100 calls are", server.url());
    println!("made at once; see how few token requests they cost.\n");
    println!("{:<42} {:>5} {:>6} {:>8} {:>8} {:>6}", "", "", "", "", "token", "");
    println!("{:<42} {:>5} {:>6} {:>8} {:>8} {:>6}", "", "calls", "served", "replayed", "requests", "time");
    scene.play("first calls, all at once", async {}).await?;

    apsis.set_dialect(Dialect::Unauthorized);
    apsis.revoke_tokens();
    scene.play("token revoked, the API says 401", async {}).await?;

    apsis.set_dialect(Dialect::Gateway);
    apsis.revoke_tokens();
    scene.play("token revoked, the gateway says 403", async {}).await?;

    apsis.script_token_answers([Answer::too_many_requests()]);
    let refused = scene.play("token endpoint says 429, the token lives", token.renew()).await?;

    if let Err(error) = refused {
        println!("\nIn the last row a token request was forced. It failed: {error}.");
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
    /// Makes a hundred calls while something else happens, and prints what came of it. All of them are to be served.
    async fn play<T>(&self, title: &str, event: impl Future<Output = T>) -> Result<T, BoxError> {
        const CALLS: usize = 100;
        let token_requests = self.apsis.counters().token_requests;
        let started = Instant::now();
        let mut answers = JoinSet::new();
        for _ in 0..CALLS {
            answers.spawn(get_keyspaces(self.client.clone(), self.base.clone()));
        }
        let event = event.await;
        let (mut accepted, mut replayed) = (0, 0);
        while let Some(answer) = answers.join_next().await {
            let (status, outcome) = answer??;
            accepted += usize::from(status == StatusCode::OK);
            replayed += usize::from(matches!(outcome, Some(AuthOutcome::Replayed)));
        }
        let took = started.elapsed().as_millis();
        let token_requests = self.apsis.counters().token_requests - token_requests;
        println!("{title:<42} {CALLS:>5} {accepted:>6} {replayed:>8} {token_requests:>8} {took:>3} ms");
        if accepted == CALLS { Ok(event) } else { Err(format!("{accepted} of {CALLS} calls were served").into()) }
    }
}

fn print_state(state: &Snapshot) {
    println!("\nThe state at the end:");
    if let Some(token) = &state.token {
        println!("  token number {}, good for {} more", token.generation, hours(token.expires_in_seconds));
        println!("  its refresh is due in {}, drawn at random", hours(token.due_in_seconds));
    }
    if let Some(grounded) = &state.grounded {
        println!("  no token request for {} s, since {}", grounded.for_seconds, grounded.because);
    }
    println!("  token requests that may still be made in this minute: {} of 4", state.attempts_left);
}

fn hours(seconds: u64) -> String {
    format!("{} h {} min", seconds / 3600, seconds / 60 % 60)
}

/// The status, and what the layer had to do for it.
async fn get_keyspaces(client: ApiClient, base: String) -> Result<(StatusCode, Option<AuthOutcome>), BoxError> {
    let request = Request::get(format!("{base}/audience/keyspaces")).body(Full::default())?;
    let response = client.oneshot(request).await?;
    let (status, outcome) = (response.status(), response.extensions().get().cloned());
    response.into_body().collect().await?;
    Ok((status, outcome))
}
