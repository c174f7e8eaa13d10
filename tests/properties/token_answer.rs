//! The token endpoint's answer: its status, its header fields, its JSON, the JWT in it.

use std::{
    convert::Infallible,
    error::Error,
    future::ready,
    iter::successors,
    time::{Duration, SystemTime},
};

use apsis_auth::{ApsisAuthLayer, ClientCredentials};
use arbitrary::Arbitrary;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::{runtime::Builder, time::Instant};
use tower::service_fn;

const SECRET: &str = "s3cret-cAnary-0123456789";
/// By the local clock.
const NOW: u64 = 1_900_000_000;

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    status: Status,
    date: Option<Text<'a>>,
    retry_after: Vec<Text<'a>>,
    body: Body<'a>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Status {
    Ok,
    TooManyRequests,
    Other(u16),
}

/// What a header field may say.
#[derive(Arbitrary, Debug)]
enum Text<'a> {
    Raw(&'a [u8]),
    Number(i64),
    /// Seconds from the local clock.
    HttpDate(i32),
}

#[derive(Arbitrary, Debug)]
enum Body<'a> {
    Raw(&'a [u8]),
    Answer(Answer<'a>),
    /// An OAuth error that quotes what it was sent.
    Quotes,
}

#[derive(Arbitrary, Debug)]
struct Answer<'a> {
    access_token: Token<'a>,
    token_type: Option<Json<'a>>,
    expires_in: Option<Json<'a>>,
    cut: Option<u8>,
}

#[derive(Arbitrary, Debug)]
enum Token<'a> {
    Raw(&'a str),
    Jwt { exp: Option<Json<'a>>, iat: Option<Json<'a>>, signature: &'a [u8] },
    Claims(&'a str),
    Json(Json<'a>),
}

#[derive(Arbitrary, Debug)]
enum Json<'a> {
    Null,
    Bool(bool),
    Number(f64),
    /// Seconds from the local clock.
    FromNow(i32),
    Text(&'a str),
    Bearer,
    Raw(&'a str),
}

pub(crate) fn check(input: &Input<'_>) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let answer = input.answer();
        let (status, body, retry_after) = (answer.status(), answer.body().clone(), retry_after(&answer));
        let endpoint =
            service_fn(move |_: Request<Full<Bytes>>| ready(Ok::<_, Infallible>(answer.clone().map(Full::new))));
        let layer = ApsisAuthLayer::builder(ClientCredentials::new("my-id", SECRET).unwrap(), "https://api.apsis.one")
            .transport(endpoint)
            // One attempt, and nobody waits for a second one.
            .token_requests_per_minute(100)
            .flight_timeout(Duration::from_secs(1))
            .max_wait(Duration::from_secs(1))
            .wall_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
            .random(|| 0.5)
            .build()
            .unwrap();
        let (handle, asked) = (layer.handle(), Instant::now());
        let result = handle.get().await;
        let snapshot = handle.snapshot();

        let printed = match &result {
            Ok(token) => {
                assert!(status.is_success());
                let text = token.expose_secret();
                assert!(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
                assert_eq!(token_of(&body).as_deref(), Some(text));
                let value = token.header_value();
                assert_eq!(value.to_str().unwrap(), format!("Bearer {text}"));
                assert!(value.is_sensitive());
                let state = snapshot.token.as_ref().unwrap();
                assert!(state.usable && state.expires_in_seconds <= 7 * 86_400, "{state:?}");
                format!("{token:?}")
            }
            Err(error) => {
                assert!(snapshot.token.is_none());
                // An hour at most; and never at once, or the endpoint would be hammered.
                if let Some(at) = error.retry_at() {
                    let wait = Instant::from_std(at).saturating_duration_since(asked);
                    let least = retry_after.unwrap_or_default().clamp(5, 900);
                    assert!((least..=3600).contains(&wait.as_secs()), "{wait:?}, {retry_after:?}");
                }
                chain(error)
            }
        };
        let printed = format!("{printed} {snapshot:?} {layer:?}");
        assert!(!printed.contains(SECRET), "{printed}");
        if let Some(token) = token_of(&body).filter(|token| token.len() > 12) {
            assert!(!printed.contains(&token), "{printed}");
        }
    });
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let words: Vec<_> =
        successors(Some(error), |&error| error.source()).map(|error| format!("{error} {error:?}")).collect();
    words.join(": ")
}

/// The seconds that an answer asks to wait, if it may ask for that and does so plainly.
fn retry_after(answer: &Response<Bytes>) -> Option<u64> {
    let status = answer.status();
    let may_ask =
        status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status);
    let mut values = answer.headers().get_all(header::RETRY_AFTER).iter();
    let value = values.next().filter(|_| may_ask && values.next().is_none())?.to_str().ok()?;
    let is_plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| value.parse().unwrap_or(u64::MAX))
}

/// The token, as any reader of JSON finds it.
fn token_of(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    answer.get("access_token")?.as_str().map(ToOwned::to_owned)
}

impl Input<'_> {
    fn answer(&self) -> Response<Bytes> {
        let body = match &self.body {
            Body::Raw(bytes) => Bytes::copy_from_slice(bytes),
            Body::Answer(answer) => answer.json().into(),
            Body::Quotes => format!(r#"{{"error":"{SECRET}"}}"#).into(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = match self.status {
            Status::Ok => StatusCode::OK,
            Status::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Status::Other(status) => StatusCode::from_u16(100 + status % 900).unwrap(),
        };
        let headers = response.headers_mut();
        if let Some(date) = self.date.as_ref().and_then(Text::value) {
            headers.insert(header::DATE, date);
        }
        for value in self.retry_after.iter().take(4).filter_map(Text::value) {
            headers.append(header::RETRY_AFTER, value);
        }
        response
    }
}

impl Text<'_> {
    fn value(&self) -> Option<HeaderValue> {
        match self {
            Self::Raw(bytes) => HeaderValue::from_bytes(bytes).ok(),
            Self::Number(number) => Some((*number).into()),
            Self::HttpDate(seconds) => {
                let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
                // Such a date is after 1970.
                let by = Duration::from_secs(u64::from(seconds.unsigned_abs()).min(NOW));
                let date = if *seconds < 0 { now - by } else { now + by };
                HeaderValue::try_from(httpdate::fmt_http_date(date)).ok()
            }
        }
    }
}

impl Answer<'_> {
    fn json(&self) -> Vec<u8> {
        let member = |name: &str, value: &Option<Json<'_>>| {
            value.as_ref().map(|value| format!(r#","{name}":{}"#, value.json())).unwrap_or_default()
        };
        let (kind, expires_in) = (member("token_type", &self.token_type), member("expires_in", &self.expires_in));
        let mut text = format!(r#"{{"access_token":{}{kind}{expires_in}}}"#, self.access_token.json()).into_bytes();
        if let Some(cut) = self.cut {
            text.truncate(text.len().saturating_sub(cut.into()));
        }
        text
    }
}

impl Token<'_> {
    fn json(&self) -> String {
        match self {
            Self::Raw(text) => quoted(text),
            Self::Claims(claims) => quoted(&jwt(claims, b"signature")),
            Self::Jwt { exp, iat, signature } => {
                let claim = |name: &str, value: &Option<Json<'_>>| {
                    value.as_ref().map(|value| format!(r#""{name}":{}"#, value.json()))
                };
                let claims: Vec<_> = [claim("exp", exp), claim("iat", iat)].into_iter().flatten().collect();
                quoted(&jwt(&format!("{{{}}}", claims.join(",")), signature))
            }
            Self::Json(json) => json.json(),
        }
    }
}

fn jwt(claims: &str, signature: &[u8]) -> String {
    let parts = [br#"{"alg":"RS256"}"#.as_slice(), claims.as_bytes(), signature];
    parts.map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".")
}

impl Json<'_> {
    fn json(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::FromNow(seconds) => (NOW.cast_signed() + i64::from(*seconds)).to_string(),
            Self::Text(text) => quoted(text),
            Self::Bearer => quoted("bearer"),
            Self::Raw(raw) => (*raw).to_owned(),
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}
