//! The layer on a `reqwest::Client` that an application has anyway, for token requests, too: its proxy, its certificates and
//! its time limits then serve both. The limits are for each sending, without the wait for a token.
//!
//! Without settings it calls an emulator of APSIS One:
//!
//! ```text
//! cargo run --example reqwest --features emulator,reqwest
//! ```
//!
//! With `APSIS_CLIENT_ID`, `APSIS_CLIENT_SECRET` and `APSIS_REGION` set it calls the real API once, through the proxy that
//! `HTTPS_PROXY` names, as reqwest does.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

use std::{env, time::Duration};

use apsis_auth::{ApsisAuth, ApsisAuthLayer, ClientCredentials, Region, emulator::Emulator};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use reqwest::{Body, Certificate, ClientBuilder, redirect};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_http::ServiceBuilderExt;

/// reqwest's client takes and returns types of its own. tower's combinators turn them into those of `http` and back.
fn http_service(
    client: reqwest::Client,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = BoxError, Future: Send> + Clone + Send + Sync {
    ServiceBuilder::new()
        .map_response(Response::<Body>::from)
        .filter(|request: Request<Body>| reqwest::Request::try_from(request))
        .service(client)
}

/// As the application has it, but that it follows no redirect: beneath the layer that could take the token or the secret
/// elsewhere. tower-http's `FollowRedirectLayer`, above the layer, does it safely.
fn existing_client(builder: ClientBuilder) -> reqwest::Result<reqwest::Client> {
    let builder = builder.redirect(redirect::Policy::none()).connect_timeout(Duration::from_secs(5));
    builder.read_timeout(Duration::from_secs(30)).build()
}

/// The layer, with token requests sent by the same client.
fn layer(credentials: ClientCredentials, base: &str, client: &reqwest::Client) -> Result<ApsisAuthLayer, BoxError> {
    let transport = ServiceBuilder::new()
        .map_request_body(|body: Full<Bytes>| Body::wrap(body))
        .service(http_service(client.clone()));
    Ok(ApsisAuthLayer::builder(credentials, base).transport(transport).build()?)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    if env::var_os("APSIS_REGION").is_some() { call_the_api().await } else { call_the_emulator().await }
}

async fn call_the_api() -> Result<(), BoxError> {
    let base = Region::from_env()?.base_url();
    let existing = existing_client(reqwest::Client::builder())?;
    let auth = layer(ClientCredentials::from_env()?, base, &existing)?;
    let client = auth.layer(http_service(existing.clone()));

    // Requests are built by reqwest, and answers read by it, as ever. Only their URL is lost on the way.
    let request = existing.get(format!("{base}/audience/keyspaces")).build()?;
    let response = send(&client, request).await?;
    println!("{} {}", response.status(), response.text().await?);
    Ok(())
}

async fn call_the_emulator() -> Result<(), BoxError> {
    let apsis = Emulator::new();
    let server = apsis.serve_https().await?;
    let base = server.url();
    println!("An emulator of APSIS One listens at {base}.\n");

    let certificate = Certificate::from_der(server.certificate_der().ok_or("the emulator speaks HTTPS")?)?;
    let existing = existing_client(reqwest::Client::builder().tls_certs_only([certificate]).no_proxy())?;
    let auth = layer(apsis.api_key().credentials(), &base, &existing)?;
    let client = auth.layer(http_service(existing.clone()));

    let profile = format!("{base}/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com");
    let requests = [
        existing.get(format!("{base}/audience/keyspaces")).build()?,
        existing.post(&profile).header("content-type", "application/json").body(r#"{"city":"Malmo"}"#).build()?,
        existing.get(&profile).build()?,
    ];
    for request in requests {
        // The worst that can happen: each time the token is dead.
        apsis.revoke_tokens();
        let what = format!("{} {}", request.method(), request.url().path());
        let response = send(&client, request).await?;
        println!("{what}\n  {} {}", response.status(), response.text().await?);
    }
    println!("\nToken requests: {}, made by the same client.", apsis.counters().token_requests);
    server.shutdown().await;
    Ok(())
}

async fn send<S>(client: &ApsisAuth<S>, request: reqwest::Request) -> Result<reqwest::Response, BoxError>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = BoxError> + Clone,
{
    let url = request.url().clone();
    let response = client.clone().oneshot(request.try_into()?).await?;
    Ok(reqwest::Response::from(response).error_for_status().map_err(|error| error.with_url(url))?)
}
