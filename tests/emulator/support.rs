//! Requests, and answers read to their end.

use std::time::Duration;

use apsis_auth::emulator::{ApiKey, Emulator, EmulatorError};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceExt;

pub(crate) const KEYSPACES: &str = "/audience/keyspaces";
pub(crate) const KEYSPACE: &str = "com.apsis1.keyspaces.email";
pub(crate) const PROFILE: &str = "/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com";

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.get(name)?;
        Some(value.to_str().expect("a header of visible ASCII"))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }

    pub(crate) fn access_token(&self) -> String {
        let json = self.json();
        let token = json["access_token"].as_str();
        token.expect("an answer with a token").to_owned()
    }
}

pub(crate) async fn try_send(emulator: &Emulator, request: Request<Full<Bytes>>) -> Result<Reply, EmulatorError> {
    // No answer takes longer, unless something hangs that should not: a year of the paused clock is over at once.
    let reply = timeout(Duration::from_secs(366 * 24 * 3600), async {
        let (head, body) = emulator.clone().oneshot(request).await?.into_parts();
        Ok(Reply { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    });
    reply.await.expect("an answer within a virtual year")
}

pub(crate) async fn send(emulator: &Emulator, request: Request<Full<Bytes>>) -> Reply {
    let reply = try_send(emulator, request).await;
    reply.expect("a complete answer")
}

pub(crate) fn credentials(key: &ApiKey) -> Value {
    json!({
        "grant_type": "client_credentials",
        "client_id": key.client_id(),
        "client_secret": key.client_secret(),
    })
}

pub(crate) fn token_request(body: &Value) -> Request<Full<Bytes>> {
    request(Method::POST, "/oauth/token", &[("content-type", "application/json")], body.to_string())
}

pub(crate) async fn ask_for_token(emulator: &Emulator, key: &ApiKey) -> Reply {
    send(emulator, token_request(&credentials(key))).await
}

/// A token of the first key.
pub(crate) async fn token(emulator: &Emulator) -> String {
    let reply = ask_for_token(emulator, &emulator.api_key()).await;
    reply.access_token()
}

pub(crate) async fn get(emulator: &Emulator, token: &str, path: &str) -> Reply {
    call(emulator, token, Method::GET, path, "", "").await
}

/// The status that a token gets for a harmless request.
pub(crate) async fn status_of(emulator: &Emulator, token: &str) -> u16 {
    get(emulator, token, KEYSPACES).await.status.as_u16()
}

pub(crate) async fn call(
    emulator: &Emulator,
    token: &str,
    method: Method,
    path: &str,
    content_type: &str,
    body: &str,
) -> Reply {
    let bearer = format!("Bearer {token}");
    let headers = [(AUTHORIZATION.as_str(), bearer.as_str()), ("content-type", content_type)];
    send(emulator, request(method, path, &headers, body.to_owned())).await
}

pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).expect("a valid request")
}
