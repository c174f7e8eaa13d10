//! The shapes of answers that more than one part gives.

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde_json::{Value, json};

use super::EmulatorBody;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

pub(super) fn json(status: StatusCode, body: &Value) -> Response<EmulatorBody> {
    with_type(status, "application/json", body)
}

/// What the application says when it does not do what it was asked to.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response<EmulatorBody> {
    let body = json!({
        "status": status.as_u16(),
        "title": status.canonical_reason(),
        "detail": detail,
    });
    with_type(status, "application/problem+json", &body)
}

/// What API Gateway says in place of the application.
pub(super) fn gateway(status: StatusCode, error_type: &'static str, body: &Value) -> Response<EmulatorBody> {
    let mut response = json(status, body);
    let error_type = HeaderValue::from_static(error_type);
    response.headers_mut().insert(ERROR_TYPE, error_type);
    response
}

pub(super) fn too_many_requests() -> Response<EmulatorBody> {
    gateway(StatusCode::TOO_MANY_REQUESTS, "TooManyRequestsException", &json!({"message": "Too Many Requests"}))
}

pub(super) fn too_large() -> Response<EmulatorBody> {
    gateway(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLargeException", &json!({"message": "Request Too Long"}))
}

/// RFC 6749, section 5.1: an answer with a token is not to be stored.
pub(super) fn token(access_token: &str, expires_in: u64) -> Response<EmulatorBody> {
    let body = json!({
        "access_token": access_token,
        "expires_in": expires_in,
        "token_type": "Bearer",
    });
    let mut response = json(StatusCode::OK, &body);
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}

pub(super) fn bare(status: StatusCode) -> Response<EmulatorBody> {
    let mut response = Response::new(EmulatorBody::empty());
    *response.status_mut() = status;
    response
}

/// Whether the body is said to be of this type, whatever its parameters.
pub(super) fn is_of_type(headers: &HeaderMap, media_type: &str) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|said| said.to_str().ok());
    said.and_then(|said| said.split(';').next()).is_some_and(|said| said.trim().eq_ignore_ascii_case(media_type))
}

fn with_type(status: StatusCode, content_type: &'static str, body: &Value) -> Response<EmulatorBody> {
    let mut response = Response::new(EmulatorBody::whole(body.to_string()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
