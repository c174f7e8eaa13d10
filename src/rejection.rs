//! Is this response the token's fault? A pure function of its head, replaceable on the builder.

use std::{fmt, sync::Arc};

use http::{HeaderMap, StatusCode, header};

/// How the API refused the token. Each way has a ladder of its own for renewals that do not help.
///
/// ```
/// use apsis_auth::{Rejection, default_rejection_rule};
/// use http::{HeaderMap, StatusCode};
///
/// let headers = HeaderMap::new();
/// assert_eq!(default_rejection_rule(StatusCode::UNAUTHORIZED, &headers), Some(Rejection::Unauthorized));
/// assert_eq!(default_rejection_rule(StatusCode::NOT_FOUND, &headers), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// The answer says that the token is not valid: 401.
    Unauthorized,
    /// The answer may mean the token or a missing right: the gateway's 403.
    Forbidden,
}

/// The rule that decides, unless the builder is given another one: a 401 is a rejection, a 403 is one unless something
/// in its head says otherwise.
///
/// APSIS One answers a dead token with 401 (help.apsis.com/en/articles/6104977) or with the 403 of its gateway
/// (help.apsis.com/en/articles/6104974). A 403 is *not* about the token if the application says it, with
/// `application/problem+json`, or if the gateway names another reason in `x-amzn-ErrorType`: no such route, a firewall.
/// A wrong "no" leaves a dead token in use for up to a day; a wrong "yes" costs a token request, which is rationed.
#[must_use]
#[inline]
pub fn default_rejection_rule(status: StatusCode, headers: &HeaderMap) -> Option<Rejection> {
    // Nearly every answer: one comparison for it, instead of one for each that is not.
    if status.is_success() {
        return None;
    }
    match status {
        StatusCode::UNAUTHORIZED => Some(Rejection::Unauthorized),
        StatusCode::FORBIDDEN if !names_another_reason(headers) => Some(Rejection::Forbidden),
        _ => None,
    }
}

fn names_another_reason(headers: &HeaderMap) -> bool {
    is_problem_json(headers) || names_another_error_type(headers)
}

/// The application's own refusals have this media type (RFC 9457); parameters and case do not matter.
fn is_problem_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/problem+json")
    })
}

/// The gateway's error types that mean the token are `AccessDeniedException` and `UnauthorizedException`; what follows
/// a colon is the address of a schema.
fn names_another_error_type(headers: &HeaderMap) -> bool {
    headers.get("x-amzn-errortype").is_some_and(|value| {
        let name = value.as_bytes().split(|&byte| byte == b':').next().unwrap_or_default().trim_ascii();
        !["AccessDenied", "AccessDeniedException", "Unauthorized", "UnauthorizedException"]
            .iter()
            .any(|meant| name.eq_ignore_ascii_case(meant.as_bytes()))
    })
}

/// The rule of a layer: the default one, or one of the caller's own.
#[derive(Clone, Default)]
pub(crate) struct Rule(Option<Arc<RuleFn>>);

type RuleFn = dyn Fn(StatusCode, &HeaderMap) -> Option<Rejection> + Send + Sync;

impl Rule {
    pub(crate) fn new(rule: impl Fn(StatusCode, &HeaderMap) -> Option<Rejection> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(rule)))
    }

    /// Whether this response is the token's fault.
    #[inline]
    pub(crate) fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Option<Rejection> {
        match &self.0 {
            None => default_rejection_rule(status, headers),
            Some(rule) => rule(status, headers),
        }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").finish_non_exhaustive()
    }
}
