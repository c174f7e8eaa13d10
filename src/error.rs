//! What can go wrong: [`BuildError`] when a layer is built, [`AuthError`] when a request needs a token.
//!
//! Neither shows a secret or a token, in any form of printing. Of the token endpoint's answers they show the status and
//! the OAuth `error` code, of a transport's failure the text, unless it has the secret in it.

use std::{error::Error, fmt, io, path::PathBuf, sync::Arc, time::Duration};

use http::{StatusCode, Uri};
use tokio::time::Instant;

/// Why a request could not be given a token.
///
/// It is shared by all requests that waited for the same token request, and shows neither the secret nor a token in any
/// form of printing. What failed underneath is in `source()`.
///
/// A service returns it as a [`tower::BoxError`], as tower's own layers do:
///
/// ```
/// use apsis_auth::AuthError;
///
/// /// For the `Retry-After` of a 503.
/// fn retry_after(error: &tower::BoxError) -> Option<std::time::Duration> {
///     let at = error.downcast_ref::<AuthError>()?.retry_at()?;
///     Some(at.saturating_duration_since(std::time::Instant::now()))
/// }
/// # assert!(retry_after(&"another error".into()).is_none());
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The token endpoint gave an answer that asking again does not change: 400, 401, 403 and their like.
    ///
    /// Check the client ID and secret, that the API key still exists, and the region. The endpoint is asked again at
    /// `retry_at`, in case the key was mended. With a token store it may have been another process that asked.
    #[error("{url} refused a token with {status}{}; {}", in_parentheses(code.as_deref()), advice(*status, code.as_deref()))]
    #[non_exhaustive]
    Refused {
        /// The token endpoint.
        url: Uri,
        /// What it answered.
        status: StatusCode,
        /// The OAuth `error` code of the answer (RFC 6749 §5.2), if it had one: at most 64 letters, digits, `_`, `-`
        /// and `.`. Not known of what another process was answered.
        code: Option<Arc<str>>,
        /// When it may be asked again.
        retry_at: RetryAt,
    },
    /// The token endpoint answered 429: the account's token requests are used up for now.
    ///
    /// Other integrations of the same account count too.
    #[error("the account's token requests are used up for now (429 from the token endpoint)")]
    #[non_exhaustive]
    RateLimited {
        /// When it may be asked again.
        retry_at: RetryAt,
    },
    /// The token endpoint could not be reached, did not answer in time, or answered something other than a token.
    #[error("no token could be had from {url}")]
    #[non_exhaustive]
    Unavailable {
        /// The token endpoint.
        url: Uri,
        /// What happened at the last attempt.
        #[source]
        cause: Arc<dyn Error + Send + Sync>,
        /// When it may be asked again.
        retry_at: RetryAt,
    },
    /// The layer has used up its own budget of token requests per minute.
    #[error("the layer's token requests of this minute are used up")]
    #[non_exhaustive]
    OutOfBudget {
        /// When there is room for one.
        retry_at: RetryAt,
    },
    /// No process of the fleet asks for a token now: the token endpoint asked one of them to wait, or failed a few seconds ago, or they
    /// have used up their budget together. Only with a token store.
    #[error("no process that shares the token store may ask for a token now")]
    #[non_exhaustive]
    Paused {
        /// When one may.
        retry_at: RetryAt,
    },
    /// The token endpoint returned the very token that was to be replaced.
    #[error("the token endpoint returned the same token again, which the API rejects; try again later")]
    SameToken,
    /// Renewals of late brought tokens that the API rejected too, so for now a rejection starts none.
    #[error("the API rejected the tokens of recent renewals too; the next renewal has to wait")]
    #[non_exhaustive]
    CoolingDown {
        /// When a rejection may start a renewal again.
        retry_at: RetryAt,
    },
    /// The request waited for a token as long as it may. The token request goes on.
    #[error("waited {after:?} for a token; the token request goes on, so a later request may find one")]
    #[non_exhaustive]
    TimedOut {
        /// How long it waited.
        after: Duration,
    },
    /// The token request ended without an answer: its runtime was shut down, or the transport panicked.
    #[error("the token request was interrupted; the next request makes another one")]
    Interrupted,
    /// There was no token at hand and no tokio runtime to get one with.
    #[error("a token request needs a tokio runtime; call the service inside one")]
    NoRuntime,
    /// The request has so many header fields that `authorization` does not fit: an [`http::HeaderMap`] has room for tens
    /// of thousands of names.
    ///
    /// It was not sent, and the token is as good as before.
    #[error("the request was not sent: it has too many header fields to add `authorization`")]
    TooManyHeaders,
}

/// A moment at which the token endpoint may be asked again; read it with [`AuthError::retry_at`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RetryAt(pub(crate) Instant);

impl AuthError {
    /// Whether the same request may succeed later without anybody changing a setting: all but
    /// [`Refused`](Self::Refused), [`NoRuntime`](Self::NoRuntime) and [`TooManyHeaders`](Self::TooManyHeaders).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::NoRuntime | Self::TooManyHeaders)
    }

    /// When the token endpoint may be asked again. A request that needs a token waits for that if it may wait so long and
    /// the credentials were not refused; else it fails at once.
    ///
    /// By the clock of tokio, which a test may have paused: then it is not to be compared with [`Instant::now`].
    ///
    /// [`Instant::now`]: std::time::Instant::now
    #[must_use]
    pub fn retry_at(&self) -> Option<std::time::Instant> {
        match self {
            Self::Refused { retry_at, .. }
            | Self::RateLimited { retry_at }
            | Self::Unavailable { retry_at, .. }
            | Self::OutOfBudget { retry_at }
            | Self::Paused { retry_at }
            | Self::CoolingDown { retry_at } => Some(retry_at.0.into_std()),
            _ => None,
        }
    }
}

/// An error with its sources, for a log line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

/// Credentials are only one of the things that may be wrong: a page that is not found, or has moved, is no token endpoint.
fn advice(status: StatusCode, code: Option<&str>) -> &'static str {
    let asked_who_we_are = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if asked_who_we_are || code.is_some() {
        "check the client ID and secret, that the API key still exists, and the region or base URL"
    } else {
        "that is no answer of a token endpoint: check the region or base URL"
    }
}

impl fmt::Debug for RetryAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in {:?}", self.0.saturating_duration_since(Instant::now()))
    }
}

fn in_parentheses(code: Option<&str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

/// Why a layer, credentials, a transport or a store could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Neither the variable nor its `_FILE` twin is set, or they are empty.
    #[error("{variable} is not set or empty; set it, or {variable}_FILE to the path of a file with the value")]
    #[non_exhaustive]
    MissingVariable {
        /// The environment variable.
        variable: &'static str,
    },
    /// `APSIS_REGION` is not set. There is no default: a silent EU would fail an account in APAC.
    #[error("APSIS_REGION is not set; set it to `eu` or `apac`")]
    MissingRegion,
    /// Both the variable and its `_FILE` twin are set, and nothing says which one is meant.
    #[error("both {variable} and {variable}_FILE are set; unset one of them")]
    #[non_exhaustive]
    ValueAndFile {
        /// The environment variable.
        variable: &'static str,
    },
    /// The variable is not valid UTF-8.
    #[error("{variable} is not valid UTF-8")]
    #[non_exhaustive]
    NotUnicode {
        /// The environment variable.
        variable: &'static str,
    },
    /// The file that the variable names cannot be read as text.
    #[error("the file {} that {variable} names cannot be read", path.display())]
    #[non_exhaustive]
    UnreadableFile {
        /// The environment variable.
        variable: String,
        /// The file it names.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The client ID is empty or blank.
    #[error("the client ID is empty")]
    EmptyClientId,
    /// The client secret is empty or blank.
    #[error("the client secret is empty")]
    EmptyClientSecret,
    /// The region has no such name.
    #[error("there is no region {name:?}; the regions are `eu` and `apac`")]
    #[non_exhaustive]
    UnknownRegion {
        /// What was given.
        name: String,
    },
    /// The base URL, or that of a further origin, cannot be used.
    #[error("the base URL {url:?} cannot be used: {problem}; it is written like https://api.apsis.one")]
    #[non_exhaustive]
    BaseUrl {
        /// What was given, without user information and query.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A budget of no token requests: no token could ever be had.
    #[error("the budget of token requests per minute is zero")]
    ZeroBudget,
    /// A limit on time is zero, or longer than an hour.
    #[error("{setting} is {value:?}; it must be more than zero and at most an hour")]
    #[non_exhaustive]
    InvalidDuration {
        /// The builder's method.
        setting: &'static str,
        /// What it was given.
        value: Duration,
    },
    /// There is no transport for token requests: the feature `client` is off and none was given.
    #[error("no transport for token requests; give one to the builder, or turn on the feature `client`")]
    NoTransport,
    /// The URL of a Redis server cannot be used. It is not shown: there may be a password in it.
    #[error(
        "the URL of the Redis server cannot be used: {problem}; it is written like rediss://user:password@redis.example:6379"
    )]
    #[non_exhaustive]
    RedisUrl {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// What was given to trust is not the PEM of a certificate.
    #[error("the PEM to trust holds no certificate that can be read")]
    #[non_exhaustive]
    Certificate {
        /// What is wrong with it, if it was not empty.
        #[source]
        cause: Option<Box<dyn Error + Send + Sync>>,
    },
    /// No root certificate could be had, so no server can be trusted.
    #[error("no root certificate to trust a server by; install the system's (often a package `ca-certificates`)")]
    #[non_exhaustive]
    RootCertificates {
        /// What went wrong, if something did.
        #[source]
        cause: Option<Box<dyn Error + Send + Sync>>,
    },
}
