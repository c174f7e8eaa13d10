//! The head of an answer: was it the token's fault?

use apsis_auth::{Rejection, default_rejection_rule};
use arbitrary::Arbitrary;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    status: Status,
    fields: Vec<(Name, Value<'a>)>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Status {
    Unauthorized,
    Forbidden,
    Other(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name {
    ContentType,
    ErrorType,
    Other,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Value<'a> {
    Problem,
    Denied,
    NoRoute,
    Firewall,
    Raw(&'a [u8]),
}

/// Whose fault it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Unauthorized,
    Forbidden,
    /// A 403 that names another reason.
    AnotherReason,
    AnotherStatus,
}

pub(crate) fn check(input: &Input<'_>) -> Seen {
    let status = match input.status {
        Status::Unauthorized => StatusCode::UNAUTHORIZED,
        Status::Forbidden => StatusCode::FORBIDDEN,
        Status::Other(status) => StatusCode::from_u16(100 + status % 900).unwrap(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in input.fields.iter().take(8) {
        if let Ok(value) = HeaderValue::from_bytes(value.bytes()) {
            headers.append(name.name(), value);
        }
    }
    let (seen, expected) = match status {
        StatusCode::UNAUTHORIZED => (Seen::Unauthorized, Some(Rejection::Unauthorized)),
        StatusCode::FORBIDDEN if names_another_reason(&headers) => (Seen::AnotherReason, None),
        StatusCode::FORBIDDEN => (Seen::Forbidden, Some(Rejection::Forbidden)),
        _ => (Seen::AnotherStatus, None),
    };
    assert_eq!(default_rejection_rule(status, &headers), expected, "{headers:?}");
    seen
}

/// The table of what was observed, said in another way.
fn names_another_reason(headers: &HeaderMap) -> bool {
    let first =
        |name: Name| headers.get(name.name()).map(|value| String::from_utf8_lossy(value.as_bytes()).to_lowercase());
    let is_problem = first(Name::ContentType).is_some_and(|kind| {
        headers[Name::ContentType.name()].to_str().is_ok()
            && kind.split(';').next().unwrap().trim() == "application/problem+json"
    });
    let is_another = first(Name::ErrorType).is_some_and(|kind| {
        let name = kind.split(':').next().unwrap().trim_matches(|char: char| char.is_ascii_whitespace()).to_owned();
        name.strip_suffix("exception").unwrap_or(&name) != "accessdenied"
            && name.strip_suffix("exception").unwrap_or(&name) != "unauthorized"
    });
    is_problem || is_another
}

impl Name {
    fn name(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::ContentType => "content-type",
            Self::ErrorType => "x-amzn-errortype",
            Self::Other => "www-authenticate",
        })
    }
}

impl Value<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Problem => b"Application/Problem+JSON ; charset=utf-8",
            Self::Denied => b"AccessDeniedException:http://internal.amazon.com/",
            Self::NoRoute => b"MissingAuthenticationTokenException",
            Self::Firewall => b"ForbiddenException",
            Self::Raw(bytes) => bytes,
        }
    }
}
