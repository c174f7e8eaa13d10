//! The token request over any tower service, and what each answer means.

use std::{
    borrow::Cow,
    error::Error,
    fmt,
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout_at},
};
use tower::{BoxError, Service, ServiceExt, util::BoxCloneSyncService};
use zeroize::Zeroizing;

use crate::{
    ClientCredentials, backoff,
    clock::{Clock, Moment},
    error::Chain,
    token::{IssuedToken, bearer_header, lifetime},
};

/// A JWT with every claim there is fits many times over.
const LARGEST_ANSWER: usize = 64 * 1024;

/// The codes of RFC 6749 §5.2 are a third as long.
const LONGEST_ERROR_CODE: usize = 64;

/// Its chunks stay what they are: turned into `Bytes`, some would be copied to memory that is not wiped.
type AnswerBody = UnsyncBoxBody<Box<dyn Buf + Send>, BoxError>;
pub(crate) type Transport = BoxCloneSyncService<Request<Full<Bytes>>, Response<AnswerBody>, BoxError>;

/// Where tokens come from.
#[derive(Clone)]
pub(crate) struct TokenEndpoint {
    transport: Transport,
    pub(crate) url: Uri,
    /// The request body holds the secret: made once, shared by all attempts, wiped with the last clone.
    form: Bytes,
    credentials: Arc<ClientCredentials>,
}

impl TokenEndpoint {
    pub(crate) fn new(transport: Transport, url: Uri, credentials: ClientCredentials) -> Self {
        Self { transport, url, form: form(&credentials), credentials: Arc::new(credentials) }
    }

    /// One HTTP request, answered or failed by `deadline`.
    pub(crate) async fn attempt(&self, clock: &Clock, deadline: Instant) -> Result<IssuedToken, Failure> {
        let asked = clock.now();
        let too_late = || Failure::transient(Fault::TooLate(deadline - asked.monotonic));
        let exchange = self.transport.clone().oneshot(self.request());
        let answer = match timeout_at(deadline, exchange).await {
            Err(_) => return Err(too_late()),
            Ok(Err(cause)) => return Err(Failure::transient(Fault::Transport(self.described(&*cause)))),
            Ok(Ok(answer)) => answer,
        };
        let (head, body) = answer.into_parts();
        let retry_after = backoff::retry_after(&head.headers, asked.wall);
        match head.status {
            StatusCode::TOO_MANY_REQUESTS => Err(Failure { kind: FailureKind::RateLimited, retry_after }),
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Err(Failure { kind: FailureKind::Transient(Fault::Status(status)), retry_after })
            }
            status if status.is_success() => {
                let text = timeout_at(deadline, collect(body)).await.map_err(|_| too_late())?;
                let text = text.map_err(|error| Failure::transient(self.unread(error)))?;
                let issued = issued(&text, backoff::date(&head.headers), asked).map_err(Failure::transient)?;
                if issued.is_expired(clock.now()) { Err(Failure::transient(Fault::Expired)) } else { Ok(issued) }
            }
            status => {
                // The status has decided. A body that never ends costs the code, nothing else.
                let text = timeout_at(deadline, collect(body)).await.ok().and_then(Result::ok);
                let code = text.and_then(|text| self.error_code(&text));
                Err(Failure { kind: FailureKind::Terminal { status, code }, retry_after: None })
            }
        }
    }

    /// `POST {base}/oauth/token` with the credentials as JSON (developer.apsis.com, "Authentication").
    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.form.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }

    /// The OAuth `error` code (RFC 6749 §5.2): the only text of the endpoint that is shown anywhere. So it must look
    /// like a code, and not be the secret sent back.
    fn error_code(&self, text: &[u8]) -> Option<Arc<str>> {
        let code = Secret::from(serde_json::from_slice::<ErrorAnswer<'_>>(text).ok()?.error);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let shown = code.len() <= LONGEST_ERROR_CODE && code.bytes().all(plain) && !code.is_empty();
        (shown && !self.quotes_secret(&code)).then(|| Arc::from(&*code))
    }

    /// What a transport says of its failure: the text alone, since its `Debug` may print a whole request, and not if
    /// that quotes the secret.
    fn described(&self, error: &(dyn Error + 'static)) -> BoxError {
        let text = Chain(error).to_string();
        if self.quotes_secret(&text) { "the error quotes the request".into() } else { text.into() }
    }

    /// Spaces around a secret may be lost on the way there and back.
    fn quotes_secret(&self, text: &str) -> bool {
        text.contains(self.credentials.secret().trim())
    }

    fn unread(&self, error: Unread) -> Fault {
        match error {
            Unread::TooLarge => Fault::TooLarge,
            Unread::Broken(cause) => Fault::Body(self.described(&*cause)),
        }
    }
}

/// Any service that speaks HTTP, as a transport of token requests.
pub(crate) fn transport<T, B>(service: T) -> Transport
where
    T: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
    T::Error: Into<BoxError>,
    T::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let service = service.map_response(|answer| answer.map(boxed)).map_err(Into::into);
    BoxCloneSyncService::new(service)
}

fn boxed<B>(body: B) -> AnswerBody
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    body.map_frame(|frame| frame.map_data(|data| Box::new(data) as Box<dyn Buf + Send>))
        .map_err(Into::into)
        .boxed_unsync()
}

/// Why an attempt brought no token.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// What a `Retry-After` asked for.
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Debug)]
pub(crate) enum FailureKind {
    /// May be over at the next attempt.
    Transient(Fault),
    /// 429.
    RateLimited,
    /// Asking again does not help.
    Terminal { status: StatusCode, code: Option<Arc<str>> },
}

impl Failure {
    pub(crate) fn transient(fault: Fault) -> Self {
        Self { kind: FailureKind::Transient(fault), retry_after: None }
    }
}

/// What was wrong with an attempt that may go better next time. No variant holds text of the answer: an answer that
/// cannot be read may still have a token in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the token endpoint answered {0}")]
    Status(StatusCode),
    #[error("the token request failed on its way")]
    Transport(#[source] BoxError),
    #[error("the token endpoint's answer broke off")]
    Body(#[source] BoxError),
    #[error("the token endpoint did not answer within {0:.1?}")]
    TooLate(Duration),
    #[error("the token endpoint's answer is larger than {LARGEST_ANSWER} bytes")]
    TooLarge,
    #[error("the token endpoint's answer is not the JSON of a token (line {line}, column {column})")]
    NotAToken { line: usize, column: usize },
    #[error("the token endpoint's token is not of the type bearer")]
    NotBearer,
    #[error("the token endpoint's token is empty or has characters that a header may not carry")]
    NotAHeader,
    #[error("the token endpoint's token has expired already")]
    Expired,
    #[error("another process is asking for the account's token, and has brought none yet")]
    AskedElsewhere,
}

/// RFC 6749 §4.4.2, as JSON.
#[derive(Serialize)]
struct TokenRequest<'a> {
    grant_type: &'static str,
    client_id: &'a str,
    client_secret: &'a str,
}

/// RFC 6749 §5.1.
#[derive(Deserialize)]
struct TokenAnswer<'a> {
    #[serde(borrow)]
    access_token: Cow<'a, str>,
    token_type: Option<Value>,
    expires_in: Option<Value>,
}

/// RFC 6749 §5.2.
#[derive(Deserialize)]
struct ErrorAnswer<'a> {
    #[serde(borrow)]
    error: Cow<'a, str>,
}

/// Text from JSON: a part of the answer's own memory, or, if it had escapes, a copy that is wiped as well. What the
/// parser unescapes goes through a buffer of its own, which nobody wipes; a JWT has nothing to escape.
enum Secret<'a> {
    Borrowed(&'a str),
    Owned(Zeroizing<String>),
}

impl<'a> From<Cow<'a, str>> for Secret<'a> {
    fn from(text: Cow<'a, str>) -> Self {
        match text {
            Cow::Borrowed(text) => Self::Borrowed(text),
            Cow::Owned(text) => Self::Owned(Zeroizing::new(text)),
        }
    }
}

impl Deref for Secret<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Owned(text) => text,
        }
    }
}

/// Why a body was not read.
enum Unread {
    TooLarge,
    Broken(BoxError),
}

fn form(credentials: &ClientCredentials) -> Bytes {
    let (client_id, client_secret) = (credentials.id(), credentials.secret());
    // Room for the longest escapes: a buffer that grows leaves what it held behind in memory.
    let capacity = 128 + 6 * (client_id.len() + client_secret.len());
    let mut form = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *form, &TokenRequest { grant_type: "client_credentials", client_id, client_secret })
        .expect("strings become JSON, and a Vec takes every write");
    Bytes::from_owner(form)
}

/// The whole body, in memory that is wiped. One allocation: a buffer that grows leaves what it held behind.
async fn collect(mut body: AnswerBody) -> Result<Zeroizing<Vec<u8>>, Unread> {
    let mut text = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER));
    while let Some(frame) = body.frame().await {
        // A body may be ready again and again with nothing. The clock gets its turn.
        consume_budget().await;
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        if data.remaining() > LARGEST_ANSWER - text.len() {
            return Err(Unread::TooLarge);
        }
        text.put(data);
    }
    Ok(text)
}

fn issued(text: &[u8], date: Option<SystemTime>, asked: Moment) -> Result<IssuedToken, Fault> {
    let answer: TokenAnswer<'_> = serde_json::from_slice(text).map_err(|error| {
        // Not the error itself: it may quote what it read.
        Fault::NotAToken { line: error.line(), column: error.column() }
    })?;
    let access_token = Secret::from(answer.access_token);
    // Required by RFC 6749 §5.1; only another type is a reason to refuse, since the API takes no other.
    if answer.token_type.is_some_and(|kind| !kind.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"))) {
        return Err(Fault::NotBearer);
    }
    let header = bearer_header(&access_token).ok_or(Fault::NotAHeader)?;
    let lifetime = lifetime(&access_token, answer.expires_in.as_ref(), date, asked.wall).ok_or(Fault::Expired)?;
    Ok(IssuedToken {
        header,
        lifetime,
        asked,
        age: Duration::ZERO,
        is_adopted: false,
        #[cfg(feature = "store")]
        fence: None,
    })
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transient(fault) => Chain(fault).fmt(f),
            Self::RateLimited => f.write_str("the token endpoint answered 429"),
            Self::Terminal { status, .. } => write!(f, "the token endpoint refused with {status}"),
        }
    }
}
