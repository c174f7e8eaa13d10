//! The token endpoint and the API keys.

use std::time::Duration;

use apsis_auth::emulator::Emulator;
use http::{Method, StatusCode};
use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode};
use serde_json::{Value, json};

use crate::support::{KEYSPACES, ask_for_token, credentials, get, request, send, status_of, token, token_request};

#[tokio::test(start_paused = true)]
async fn a_token_answer_has_the_documented_shape() {
    let emulator = Emulator::new();
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let json = reply.json();
    assert_eq!(json["token_type"], "Bearer");
    assert_eq!(json["expires_in"], 86_400);
    assert_eq!(json.as_object().map(serde_json::Map::len), Some(3));
    assert_eq!(emulator.counters().tokens_issued, 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_a_jwt_that_the_public_key_verifies() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    let TokenData { header, claims, .. } = verify(&emulator, &token);
    assert_eq!(header.typ.as_deref(), Some("JWT"));
    assert!(header.kid.is_some_and(|kid| !kid.is_empty()));
    assert!(claims["iss"].is_string());
    assert_eq!(claims["sub"], emulator.api_key().client_id());
    let lifetime = claims["exp"].as_u64().zip(claims["iat"].as_u64());
    assert_eq!(lifetime.map(|(exp, iat)| exp - iat), Some(86_400));
}

#[tokio::test(start_paused = true)]
async fn every_answer_brings_a_new_token_unless_told_otherwise() {
    let emulator = Emulator::new();
    let first = token(&emulator).await;
    let second = token(&emulator).await;
    assert_ne!(first, second);
    let id = |token: &str| verify(&emulator, token).claims["jti"].clone();
    assert_ne!(id(&first), id(&second));
    assert_eq!(status_of(&emulator, &first).await, 200);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_comes_back_until_it_expires_or_is_revoked() {
    let emulator = Emulator::new();
    emulator.set_same_token_while_valid(true);
    emulator.set_token_lifetime(Duration::from_secs(100));
    let first = token(&emulator).await;

    tokio::time::advance(Duration::from_secs(99)).await;
    let again = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(again.access_token(), first);
    assert_eq!(again.json()["expires_in"], 1);

    tokio::time::advance(Duration::from_secs(1)).await;
    let second = token(&emulator).await;
    assert_ne!(second, first);

    emulator.revoke_tokens();
    assert_ne!(token(&emulator).await, second);
}

#[tokio::test(start_paused = true)]
async fn the_same_token_is_not_shared_between_keys() {
    let emulator = Emulator::new();
    emulator.set_same_token_while_valid(true);
    let other = ask_for_token(&emulator, &emulator.add_api_key()).await;
    assert_ne!(token(&emulator).await, other.access_token());
}

#[tokio::test(start_paused = true)]
async fn wrong_credentials_are_denied() {
    let emulator = Emulator::new();
    for member in ["client_id", "client_secret"] {
        let mut body = credentials(&emulator.api_key());
        body[member] = "wrong".into();
        let reply = send(&emulator, token_request(&body)).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{member}");
        assert_eq!(reply.json(), json!({"error": "invalid_client"}));
    }
    assert_eq!(emulator.counters().token_denials, 2);
}

#[tokio::test(start_paused = true)]
async fn the_secret_of_another_key_is_wrong() {
    let emulator = Emulator::new();
    let mut body = credentials(&emulator.api_key());
    body["client_secret"] = emulator.add_api_key().client_secret().into();
    let reply = send(&emulator, token_request(&body)).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(start_paused = true)]
async fn only_one_grant_type_is_supported() {
    let emulator = Emulator::new();
    let mut body = credentials(&emulator.api_key());
    body["grant_type"] = "password".into();
    let reply = send(&emulator, token_request(&body)).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.json(), json!({"error": "unsupported_grant_type"}));
}

#[tokio::test(start_paused = true)]
async fn a_token_request_needs_exactly_three_members_in_json() {
    let emulator = Emulator::new();
    let good = credentials(&emulator.api_key());
    let mut missing = good.clone();
    missing.as_object_mut().expect("an object").remove("client_id");
    let mut extra = good.clone();
    extra["scope"] = "all".into();
    let form = "application/x-www-form-urlencoded";
    let json = "application/json";
    for (content_type, body) in [
        (json, missing.to_string()),
        (json, extra.to_string()),
        (json, "{\"grant_type\":".to_owned()),
        (json, String::new()),
        (form, good.to_string()),
    ] {
        let headers = [("content-type", content_type)];
        let request = request(Method::POST, "/oauth/token", &headers, body.clone());
        let reply = send(&emulator, request).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(reply.json(), json!({"error": "invalid_request"}));
    }
    assert_eq!(emulator.counters().token_bad_requests, 5);
}

#[tokio::test(start_paused = true)]
async fn a_charset_is_still_json() {
    let emulator = Emulator::new();
    let body = credentials(&emulator.api_key()).to_string();
    let headers = [("content-type", "Application/JSON; charset=utf-8")];
    let request = request(Method::POST, "/oauth/token", &headers, body);
    assert_eq!(send(&emulator, request).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn the_token_endpoint_takes_post_only() {
    let emulator = Emulator::new();
    let request = request(Method::GET, "/oauth/token", &[], "");
    let reply = send(&emulator, request).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(reply.header("allow"), Some("POST"));
}

#[tokio::test(start_paused = true)]
async fn an_absolute_uri_of_any_host_will_do() {
    let emulator = Emulator::new();
    let mut request = token_request(&credentials(&emulator.api_key()));
    *request.uri_mut() = http::Uri::from_static("https://api-apac.apsis.one/oauth/token");
    assert_eq!(send(&emulator, request).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_gets_no_token_and_its_tokens_are_rejected() {
    let emulator = Emulator::new();
    let other = emulator.add_api_key();
    let others = ask_for_token(&emulator, &other).await.access_token();
    let first = token(&emulator).await;

    emulator.delete_api_key(other.client_id());
    let denied = ask_for_token(&emulator, &other).await;
    assert_eq!(denied.status, StatusCode::UNAUTHORIZED);
    assert_eq!(status_of(&emulator, &others).await, 401);
    assert_eq!(status_of(&emulator, &first).await, 200);

    emulator.delete_api_key(emulator.api_key().client_id());
    assert_eq!(status_of(&emulator, &first).await, 401);
}

#[tokio::test(start_paused = true)]
async fn a_key_without_rights_authenticates_and_may_do_nothing() {
    let emulator = Emulator::new();
    let key = emulator.add_api_key_without_rights();
    let token = ask_for_token(&emulator, &key).await.access_token();
    let reply = get(&emulator, &token, KEYSPACES).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    assert_eq!(reply.header("x-amzn-errortype"), None);
    let json = reply.json();
    assert_eq!(json["status"], 403);
    assert!(json["title"].is_string() && json["detail"].is_string());
    assert_eq!(emulator.counters().api_forbidden, 1);
}

#[test]
fn debug_shows_no_secret() {
    let emulator = Emulator::new();
    let key = emulator.api_key();
    let shown = format!("{emulator:?} {key:?}");
    assert!(shown.contains(key.client_id()));
    assert!(!shown.contains(key.client_secret()));
}

/// Its times are another test's affair.
fn verify(emulator: &Emulator, token: &str) -> TokenData<Value> {
    let key = DecodingKey::from_rsa_der(emulator.public_key_der());
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_exp = false;
    decode(token, &key, &validation).expect("a token signed by the key")
}
