//! What a caller is told where the gateway answers in place of the API: a table from causes to answers.
//!
//! The body is `application/problem+json` (RFC 9457), as the API's own errors are. `Proxy-Status` (RFC 9209) says that it was
//! the gateway, which a 502 or a 503 alone does not.

use std::{
    error::Error,
    iter,
    time::{Duration, Instant},
};

use apsis_auth::AuthError;
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{
    HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use hyper_util::client::legacy;
use serde::Serialize;
use tower::{BoxError, timeout::error::Elapsed};

/// Why a request is not answered by the API.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("there is nothing here; the API is below /apsis/")]
    NoSuchPath,
    #[error("{0} is not forwarded")]
    Method(Method),
    #[error("the gateway gets the tokens itself; leave out the token request, and ask the API")]
    TokenRequest,
    #[error("a body in another transfer coding than chunked is not forwarded")]
    TransferCoding,
    #[error("the gateway is for programs; a request of a web page is not forwarded")]
    WebPage,
    #[error(
        "the gateway listens at a loopback address, and is asked for by another name; use localhost or the address"
    )]
    Misdirected,
    #[error("with the API's base URL in front of it the request target is too long")]
    TargetTooLong,
    #[error("as many requests are under way as the gateway forwards at a time")]
    Full,
    #[error("the API switched to another protocol, which nobody asked for")]
    Switched,
    #[error("the request was not answered")]
    Failed(#[from] BoxError),
}

/// What is answered.
struct Row {
    status: StatusCode,
    /// The error type of RFC 9209 §2.3.
    proxy_error: &'static str,
    detail: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    fn row(&self) -> Row {
        let (status, proxy_error) = match self {
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "http_request_error"),
            Self::Method(_) | Self::TransferCoding => (StatusCode::NOT_IMPLEMENTED, "http_request_error"),
            Self::TokenRequest => (StatusCode::NOT_FOUND, "http_request_denied"),
            Self::WebPage => (StatusCode::FORBIDDEN, "http_request_denied"),
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "http_request_denied"),
            Self::TargetTooLong => (StatusCode::URI_TOO_LONG, "http_request_error"),
            Self::Full => {
                let row = Row::new(StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", self);
                return Row { retry_after: Some(Duration::from_secs(1)), ..row };
            }
            Self::Switched => (StatusCode::BAD_GATEWAY, "http_upgrade_failed"),
            Self::Failed(error) => return failed(error),
        };
        Row::new(status, proxy_error, self)
    }
}

/// An error of the stack around the client: of the layer, of the time limit, or of the client.
fn failed(error: &BoxError) -> Row {
    if let Some(error) = error.downcast_ref() {
        return no_token(error);
    }
    if error.is::<Elapsed>() {
        let detail = "the API did not answer in time";
        return Row::new(StatusCode::GATEWAY_TIMEOUT, "http_response_timeout", &detail);
    }
    let connecting = error.downcast_ref().is_some_and(legacy::Error::is_connect);
    let cause = cause::<hyper::Error>(&**error);
    let (status, proxy_error, detail) = if cause.is_some_and(hyper::Error::is_user) {
        // The client reads the caller's body, so it is the one to say that this failed.
        (StatusCode::BAD_REQUEST, "http_request_error", "the request's body broke off, or could not be read")
    } else if connecting {
        (StatusCode::BAD_GATEWAY, "destination_unavailable", "no connection to the API could be had")
    } else if cause.is_some_and(hyper::Error::is_parse) {
        (StatusCode::BAD_GATEWAY, "http_protocol_error", "the API's answer is not HTTP")
    } else {
        (StatusCode::BAD_GATEWAY, "connection_terminated", "the connection to the API was lost before it answered")
    };
    Row::new(status, proxy_error, &detail)
}

/// An error of the layer. Its text says what to do, and holds neither the secret nor a token.
fn no_token(error: &AuthError) -> Row {
    let retry_at = error.retry_at();
    let (status, proxy_error) = match error {
        // The gateway's credentials are refused: no fault of the caller's, and nothing that mends itself.
        AuthError::Refused { .. } => (StatusCode::BAD_GATEWAY, "proxy_configuration_error"),
        AuthError::TimedOut { .. } => (StatusCode::GATEWAY_TIMEOUT, "http_response_timeout"),
        AuthError::TooManyHeaders => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http_request_error"),
        _ if retry_at.is_some() => {
            let retry_after = retry_at.map(|at| at.saturating_duration_since(Instant::now()));
            let row = Row::new(StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", error);
            return Row { retry_after, ..row };
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "proxy_internal_error"),
    };
    Row::new(status, proxy_error, error)
}

impl Row {
    fn new(status: StatusCode, proxy_error: &'static str, detail: &impl ToString) -> Self {
        Self { status, proxy_error, detail: detail.to_string(), retry_after: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let row = self.row();
        self.trace(row.status);
        row.into_response()
    }
}

impl Refusal {
    /// With all that failed underneath, which the caller is not told.
    fn trace(&self, status: StatusCode) {
        let error: &(dyn Error + 'static) = match self {
            Self::Failed(error) => &**error,
            refusal => refusal,
        };
        let is_the_callers = status.is_client_error() || matches!(self, Self::Method(_) | Self::TransferCoding);
        let status = status.as_u16();
        if is_the_callers {
            tracing::info!(status, error, "refused");
        } else {
            tracing::warn!(status, error, "not answered by the API");
        }
    }
}

/// Without a `type` the title is that of the status (RFC 9457 §4.2.1).
#[derive(Serialize)]
struct Problem {
    status: u16,
    title: Option<&'static str>,
    detail: String,
}

impl IntoResponse for Row {
    fn into_response(self) -> Response {
        let (status, title) = (self.status.as_u16(), self.status.canonical_reason());
        let problem = serde_json::to_string(&Problem { status, title, detail: self.detail });
        let mut response = Response::new(Body::from(problem.expect("a problem has names for keys")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let proxy_status = format!("apsis-gateway; error={}", self.proxy_error);
        let proxy_status = HeaderValue::try_from(proxy_status).expect("the error types of the table are tokens");
        headers.insert("proxy-status", proxy_status);
        if let Some(wait) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        response
    }
}

/// Rounded up, since to come back too early is to be refused again, and at least 1.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}
