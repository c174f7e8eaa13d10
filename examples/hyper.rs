//! hyper-util's client, HTTP/1.1 and HTTP/2 over rustls, with the layers of tower-http that many clients have, and ours
//! among them. What counts is the order, and the reason for it stands at each line of [`client`].
//!
//! Without settings it calls an emulator of APSIS One, by both protocols:
//!
//! ```text
//! cargo run --example hyper --features emulator
//! ```
//!
//! With `APSIS_CLIENT_ID`, `APSIS_CLIENT_SECRET` and `APSIS_REGION` set it calls the real API once. `RUST_LOG=debug` shows
//! what the layers trace.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use std::{env, io, sync::Arc, time::Duration};

use apsis_auth::{
    ApsisAuthLayer, AuthOutcome, HttpsTransport, Region,
    emulator::{Answer, Emulator, EmulatorServer},
};
use bytes::Bytes;
use http::{
    Request, Response, StatusCode,
    header::{AUTHORIZATION, COOKIE, LOCATION, PROXY_AUTHORIZATION, SET_COOKIE},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};
use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use tower_http::{
    ServiceBuilderExt,
    decompression::DecompressionLayer,
    follow_redirect::FollowRedirectLayer,
    sensitive_headers::{SetSensitiveRequestHeadersLayer, SetSensitiveResponseHeadersLayer},
    timeout::{ResponseBodyTimeoutLayer, TimeoutLayer},
    trace::TraceLayer,
};
use tracing::Span;
use tracing_subscriber::EnvFilter;

type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;
type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<UnsyncBoxBody<Bytes, BoxError>>, BoxError>;

/// From the caller down to the network.
fn client(auth: ApsisAuthLayer, https_client: HttpsClient) -> ApiClient {
    let stack = ServiceBuilder::new()
        .map_response_body(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
        // Before anything prints headers: what the caller puts on is marked. The token is marked by itself.
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION]))
        // Above all that sends more than once: one span for what the caller sees as one call. Beneath the layer there would
        // be one for each request that is sent.
        .layer(TraceLayer::new_for_http().make_span_with(span))
        // An answer's headers are marked on their way up, so beneath what prints them.
        .layer(SetSensitiveResponseHeadersLayer::new([SET_COOKIE]))
        // For all that happens beneath, longer than a request waits for a token (30 s): that has an error of its own, which
        // says what to do.
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(60)))
        // tower's Retry would stand here, and the time limit be longer: each try is sent at most twice.
        //
        // Above ours, so that each hop is looked at: one to another origin goes without the token.
        .layer(FollowRedirectLayer::new())
        .layer(auth)
        // TimeoutLayer answers with a body of its own making; hyper's has no default.
        .map_response_body(BodyExt::boxed_unsync)
        // The limit above ends with the head of an answer. This one is for each pause in its body.
        .layer(ResponseBodyTimeoutLayer::new(Duration::from_secs(30)))
        // Next to the network, so that all above see what the API said, and not how it was packed.
        .layer(DecompressionLayer::new())
        .service(https_client);
    // Boxed, for a type that has a short name.
    BoxCloneSyncService::new(stack)
}

/// Without the URI: it has profile keys, which are mail addresses.
fn span<B>(request: &Request<B>) -> Span {
    tracing::debug_span!("request", method = %request.method())
}

/// Speaks HTTP/2 where the server does, and else HTTP/1.1.
fn https_client() -> io::Result<HttpsClient> {
    let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(aws_lc_rs::default_provider())?;
    Ok(pooled(builder.https_only().enable_all_versions().wrap_connector(tcp())))
}

fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(Duration::from_secs(5)));
    connector
}

fn pooled(connector: HttpsConnector<HttpConnector>) -> HttpsClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        // All requests share an HTTP/2 connection: one that died unheard would hold them all up.
        .http2_keep_alive_interval(Duration::from_secs(20))
        .build(connector)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    if env::var_os("APSIS_REGION").is_some() { call_the_api().await } else { call_the_emulator().await }
}

async fn call_the_api() -> Result<(), BoxError> {
    let client = client(ApsisAuthLayer::from_env()?, https_client()?);
    let url = format!("{}/audience/keyspaces", Region::from_env()?.base_url());
    show("the real API", &get(&client, &url).await?);
    Ok(())
}

async fn call_the_emulator() -> Result<(), BoxError> {
    let apsis = Emulator::new();
    let server = apsis.serve_https().await?;
    let url = format!("{}/audience/keyspaces", server.url());
    println!("An emulator of APSIS One listens at {}.\n", server.url());

    for (protocol, https_client) in [("HTTP/1.1", trusting(&server, false)?), ("HTTP/2", trusting(&server, true)?)] {
        let pem = server.certificate_pem().ok_or("the emulator speaks HTTPS")?;
        let auth = ApsisAuthLayer::builder(apsis.api_key().credentials(), server.url())
            .transport(HttpsTransport::trusting(pem.as_bytes())?)
            .build()?;
        let client = client(auth, https_client);
        show(&format!("{protocol}, the first call"), &get(&client, &url).await?);

        apsis.revoke_tokens();
        show(&format!("{protocol}, the token was revoked"), &get(&client, &url).await?);

        let sections = format!("{}/audience/sections", server.url());
        apsis.script_api_answers([Answer::status(StatusCode::FOUND).header(LOCATION, sections)]);
        show(&format!("{protocol}, redirected to the sections"), &get(&client, &url).await?);
    }
    println!("\nToken requests: {}. Each client asked once, and once more after its token was revoked.", {
        apsis.counters().token_requests
    });
    server.shutdown().await;
    Ok(())
}

/// A client that trusts the emulator's certificate and no other.
fn trusting(server: &EmulatorServer, http2: bool) -> Result<HttpsClient, BoxError> {
    let mut roots = RootCertStore::empty();
    let certificate = server.certificate_der().ok_or("the emulator speaks HTTPS")?;
    roots.add(CertificateDer::from(certificate.to_vec()))?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
    let connector =
        if http2 { builder.enable_http2().wrap_connector(tcp()) } else { builder.enable_http1().wrap_connector(tcp()) };
    Ok(pooled(connector))
}

async fn get(client: &ApiClient, url: &str) -> Result<Response<Bytes>, BoxError> {
    let response = client.clone().oneshot(Request::get(url).body(Full::default())?).await?;
    if !response.status().is_success() {
        return Err(format!("GET {url}: {}", response.status()).into());
    }
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

fn show(what: &str, response: &Response<Bytes>) {
    let replayed = matches!(response.extensions().get(), Some(AuthOutcome::Replayed));
    let (version, status, length) = (response.version(), response.status(), response.body().len());
    println!("{what:<42} {version:?} {status}, {length} bytes{}", if replayed { ", replayed" } else { "" });
}
