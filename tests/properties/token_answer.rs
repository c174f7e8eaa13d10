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
use serde_json::Value;
use tokio::{runtime::Builder, time::Instant};
use tower::service_fn;

const SECRET: &str = "s3cret-cAnary-0123456789";
/// By the local clock.
const NOW: u64 = 1_900_000_000;
/// In seconds. No token is believed to live longer.
const WEEK: u64 = 7 * 86_400;
/// Plain lifetimes are shorter, so that about half are less than a week.
const TWO_WEEKS: u32 = 14 * 86_400;

#[derive(Arbitrary, Debug)]
pub(crate) enum Input<'a> {
    Any {
        status: Status,
        date: Option<Text<'a>>,
        retry_after: Vec<Text<'a>>,
        body: Body<'a>,
    },
    /// Random parts seldom make an answer that has a token.
    Plain(PlainAnswer<'a>),
    /// Nor one that says how long to wait.
    Wait {
        status: u8,
        seconds: u16,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Status {
    Ok,
    TooManyRequests,
    Other(u16),
}

/// What a header field may say.
#[derive(Arbitrary, Debug)]
pub(crate) enum Text<'a> {
    Raw(&'a [u8]),
    Number(i64),
    /// Seconds from the local clock.
    HttpDate(i32),
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Body<'a> {
    Raw(&'a [u8]),
    Answer(Answer<'a>),
    /// An OAuth error that quotes what it was sent.
    Quotes,
}

#[derive(Arbitrary, Debug)]
pub(crate) struct Answer<'a> {
    access_token: Token<'a>,
    token_type: Option<Json<'a>>,
    expires_in: Option<Json<'a>>,
    cut: Option<u8>,
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Token<'a> {
    Raw(&'a str),
    Jwt { exp: Option<Json<'a>>, iat: Option<Json<'a>>, signature: &'a [u8] },
    Claims(&'a str),
    Json(Json<'a>),
}

#[derive(Arbitrary, Debug)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    Number(f64),
    /// Seconds from the local clock.
    FromNow(i32),
    Text(&'a str),
    Bearer,
    Raw(&'a str),
}

#[derive(Arbitrary, Debug)]
pub(crate) struct PlainAnswer<'a> {
    status: u8,
    /// Seconds from the local clock.
    date: Option<i16>,
    token_type: TokenType,
    expires_in: Option<u32>,
    token: PlainToken<'a>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum TokenType {
    Unsaid,
    Lower,
    Title,
    Upper,
}

#[derive(Arbitrary, Debug)]
enum PlainToken<'a> {
    Opaque(&'a [u8]),
    /// Seconds from the local clock.
    Jwt {
        exp: i32,
        iat: Option<i16>,
        signature: &'a [u8],
    },
}

/// What an answer was to the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Opaque,
    Jwt,
    /// A token that some would not take.
    OddToken,
    Error,
    /// An error that says how long to wait.
    Wait,
}

pub(crate) fn check(input: &Input<'_>) -> Seen {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let answer = input.answer();
        let (status, body, retry_after) = (answer.status(), answer.body().clone(), retry_after(&answer));
        let (plain, says_nothing) = (Plain::read(&answer), !answer.headers().contains_key(header::RETRY_AFTER));
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

        let (seen, printed) = match &result {
            Ok(token) => {
                assert!(status.is_success());
                let text = token.expose_secret();
                assert!(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
                assert_eq!(token_of(&body).as_deref(), Some(text));
                let value = token.header_value();
                assert_eq!(value.to_str().unwrap(), format!("Bearer {text}"));
                assert!(value.is_sensitive());
                let state = snapshot.token.as_ref().unwrap();
                assert!(state.usable && state.expires_in_seconds <= WEEK, "{state:?}");
                if let Some(plain) = &plain {
                    assert_eq!(state.expires_in_seconds, plain.lifetime, "{body:?}");
                }
                (plain.map_or(Seen::OddToken, |plain| plain.seen), format!("{token:?}"))
            }
            Err(error) => {
                assert!(plain.is_none(), "{body:?} is a token's answer, and was {error:?}");
                assert!(snapshot.token.is_none());
                // An hour at most; and never at once, or the endpoint would be hammered. Only a limit that is over in a
                // second is one to come back after so soon.
                if let Some(at) = error.retry_at() {
                    let wait = Instant::from_std(at).saturating_duration_since(asked);
                    let shortest = match (status, retry_after) {
                        (StatusCode::TOO_MANY_REQUESTS, Some(0)) => 60,
                        (StatusCode::TOO_MANY_REQUESTS, None) if says_nothing => 60,
                        (StatusCode::TOO_MANY_REQUESTS, _) => 1,
                        _ => 5,
                    };
                    let least = retry_after.unwrap_or_default().clamp(shortest, 900);
                    assert!((least..=3600).contains(&wait.as_secs()), "{wait:?}, {retry_after:?}");
                }
                (retry_after.map_or(Seen::Error, |_| Seen::Wait), chain(error))
            }
        };
        let printed = format!("{printed} {snapshot:?} {layer:?}");
        assert!(!printed.contains(SECRET), "{printed}");
        if let Some(token) = token_of(&body).filter(|token| token.len() > 12) {
            assert!(!printed.contains(&token), "{printed}");
        }
        seen
    })
}

/// An answer that leaves no room for doubt: it is a token that lives so long, as another reader has it.
struct Plain {
    seen: Seen,
    /// In seconds.
    lifetime: u64,
}

impl Plain {
    fn read(answer: &Response<Bytes>) -> Option<Self> {
        let members = plain_object(answer.body(), &["access_token", "token_type", "expires_in"])?;
        let token = members.get("access_token")?.as_str()?;
        let is_visible = !token.is_empty() && token.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        let is_bearer = members
            .get("token_type")
            .is_none_or(|kind| kind.as_str().is_some_and(|kind| kind.to_lowercase() == "bearer"));
        let (seen, lifetime) = match token.split('.').collect::<Vec<_>>()[..] {
            [_] => (Seen::Opaque, members.get("expires_in").map_or(Some(5 * 60), whole)?),
            [_, claims, _] => {
                let claims = plain_object(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?, &["exp", "iat"])?;
                // By the server's clock, which its `Date` tells, or else its token, or else the local one.
                let now = match (answer.headers().get(header::DATE), claims.get("iat")) {
                    (Some(date), _) => seconds_of(date)?,
                    (None, Some(iat)) => whole(iat)?,
                    (None, None) => NOW,
                };
                (Seen::Jwt, whole(claims.get("exp")?)?.checked_sub(now)?)
            }
            _ => return None,
        };
        (answer.status().is_success() && is_visible && is_bearer && lifetime > 0)
            .then_some(Self { seen, lifetime: lifetime.min(WEEK) })
    }
}

/// A JSON object without escapes, and with none of these names twice.
fn plain_object(text: &[u8], names: &[&str]) -> Option<serde_json::Map<String, Value>> {
    let text = str::from_utf8(text).ok()?;
    let is_plain = !text.contains('\\') && names.iter().all(|name| text.matches(&quoted(name)).count() <= 1);
    serde_json::from_str(text).ok().filter(|_| is_plain)
}

/// Not more than a float holds.
fn whole(number: &Value) -> Option<u64> {
    number.as_u64().filter(|number| *number <= 1 << 53)
}

fn seconds_of(date: &HeaderValue) -> Option<u64> {
    let date = httpdate::parse_http_date(date.to_str().ok()?).ok()?;
    Some(date.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())
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
    let answer: Value = serde_json::from_slice(body).ok()?;
    answer.get("access_token")?.as_str().map(ToOwned::to_owned)
}

impl Input<'_> {
    fn answer(&self) -> Response<Bytes> {
        let (status, date, retry_after, body) = match self {
            Self::Any { status, date, retry_after, body } => (status, date, retry_after, body),
            Self::Plain(answer) => return answer.answer(),
            Self::Wait { status, seconds } => {
                let status = [429, 408, 500, 503][usize::from(status % 4)];
                // Seconds as often as hours.
                let builder = Response::builder().status(status).header(header::RETRY_AFTER, seconds >> (seconds % 16));
                return builder.body(Bytes::new()).unwrap();
            }
        };
        let body = match body {
            Body::Raw(bytes) => Bytes::copy_from_slice(bytes),
            Body::Answer(answer) => answer.json().into(),
            Body::Quotes => format!(r#"{{"error":"{SECRET}"}}"#).into(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = match status {
            Status::Ok => StatusCode::OK,
            Status::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Status::Other(status) => StatusCode::from_u16(100 + status % 900).unwrap(),
        };
        let headers = response.headers_mut();
        if let Some(date) = date.as_ref().and_then(Text::value) {
            headers.insert(header::DATE, date);
        }
        for value in retry_after.iter().take(4).filter_map(Text::value) {
            headers.append(header::RETRY_AFTER, value);
        }
        response
    }
}

impl PlainAnswer<'_> {
    fn answer(&self) -> Response<Bytes> {
        let mut members = serde_json::Map::new();
        members.insert("access_token".to_owned(), self.token.text().into());
        let token_type = match self.token_type {
            TokenType::Unsaid => None,
            TokenType::Lower => Some("bearer"),
            TokenType::Title => Some("Bearer"),
            TokenType::Upper => Some("BEARER"),
        };
        members.extend(token_type.map(|kind| ("token_type".to_owned(), kind.into())));
        members.extend(self.expires_in.map(|seconds| ("expires_in".to_owned(), (seconds % TWO_WEEKS).into())));
        let mut response = Response::new(Value::from(members).to_string().into());
        *response.status_mut() = StatusCode::from_u16(200 + u16::from(self.status % 100)).unwrap();
        let date = self.date.and_then(|seconds| Text::HttpDate(seconds.into()).value());
        response.headers_mut().extend(date.map(|date| (header::DATE, date)));
        response
    }
}

impl PlainToken<'_> {
    fn text(&self) -> String {
        match self {
            Self::Opaque(bytes) => BASE64_URL_SAFE_NO_PAD.encode(bytes),
            Self::Jwt { exp, iat, signature } => {
                let exp = from_now(exp % TWO_WEEKS.cast_signed());
                let iat = iat.map(|iat| format!(r#","iat":{}"#, from_now(iat.into()))).unwrap_or_default();
                jwt(&format!(r#"{{"exp":{exp}{iat}}}"#), signature)
            }
        }
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
            Self::FromNow(seconds) => from_now(*seconds).to_string(),
            Self::Text(text) => quoted(text),
            Self::Bearer => quoted("bearer"),
            Self::Raw(raw) => (*raw).to_owned(),
        }
    }
}

fn from_now(seconds: i32) -> i64 {
    NOW.cast_signed() + i64::from(seconds)
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}
