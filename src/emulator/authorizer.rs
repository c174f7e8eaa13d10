//! The authorizer: is this token accepted, and how is it rejected if not.

use std::{collections::HashMap, time::Duration};

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use serde_json::json;
use tokio::time::Instant;

use super::{EmulatorBody, answers, clock::Now, state::State};

/// Says how a token that is not accepted is rejected. APSIS One's guides disagree, so there are two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// 401 with `WWW-Authenticate: Bearer error="invalid_token"` (RFC 6750, section 3); without the
    /// error if there was no bearer token.
    #[default]
    Unauthorized,
    /// What API Gateway says when its authorizer denies: 403 with
    /// `x-amzn-ErrorType: AccessDeniedException`; 401 if there was no `Authorization` header.
    Gateway,
}

/// What the authorizer says of a token.
#[derive(Clone, Copy)]
pub(super) enum Verdict {
    Allow { has_rights: bool },
    Deny,
}

/// What the gateway remembers of the authorizer's verdicts, by token string.
#[derive(Default)]
pub(super) struct Verdicts {
    lifetime: Option<Duration>,
    entries: HashMap<String, (Instant, Verdict)>,
}

/// Why a request is rejected.
#[derive(Clone, Copy)]
pub(super) enum Rejection {
    NoHeader,
    NotBearer,
    Denied,
}

/// Whether the owner of the request's token has rights, if the token is accepted.
pub(super) fn authorize(state: &mut State, now: Now, headers: &HeaderMap) -> Result<bool, Rejection> {
    if !headers.contains_key(AUTHORIZATION) {
        return Err(Rejection::NoHeader);
    }
    let token = bearer(headers).ok_or(Rejection::NotBearer)?;
    match remembered(state, now, token) {
        Verdict::Allow { has_rights } => Ok(has_rights),
        Verdict::Deny => Err(Rejection::Denied),
    }
}

fn remembered(state: &mut State, now: Now, token: &str) -> Verdict {
    if let Some(verdict) = state.verdicts.recall(now.instant, token) {
        return verdict;
    }
    let verdict = judge(state, now, token);
    state.verdicts.remember(now.instant, token, verdict);
    verdict
}

fn judge(state: &State, now: Now, token: &str) -> Verdict {
    let issued = state.tokens.get(token);
    let owner = issued.filter(|token| now.wall < token.expires_at).and_then(|token| state.key(&token.client_id));
    owner.map_or(Verdict::Deny, |key| Verdict::Allow { has_rights: key.has_rights })
}

impl Verdicts {
    pub(super) fn set_lifetime(&mut self, lifetime: Option<Duration>) {
        self.lifetime = lifetime;
        if lifetime.is_none() {
            self.entries.clear();
        }
    }

    fn recall(&self, now: Instant, token: &str) -> Option<Verdict> {
        let lifetime = self.lifetime?;
        let (since, verdict) = self.entries.get(token)?;
        (now.saturating_duration_since(*since) < lifetime).then_some(*verdict)
    }

    fn remember(&mut self, now: Instant, token: &str, verdict: Verdict) {
        if self.lifetime.is_some() {
            self.entries.insert(token.to_owned(), (now, verdict));
        }
    }
}

/// The token of the one `Authorization` header there is, if its scheme is Bearer, in any case
/// (RFC 9110, section 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Rejection {
    /// RFC 6750, section 3.1: a request without a bearer token is told no error code.
    pub(super) fn response(self, dialect: Dialect) -> Response<EmulatorBody> {
        match (dialect, self) {
            (Dialect::Unauthorized, Self::Denied) => challenge("Bearer error=\"invalid_token\""),
            (Dialect::Unauthorized, _) => challenge("Bearer realm=\"APSIS One\""),
            (Dialect::Gateway, Self::NoHeader) => nothing_to_authorize(),
            (Dialect::Gateway, _) => explicit_deny(),
        }
    }
}

fn challenge(challenge: &'static str) -> Response<EmulatorBody> {
    let message = json!({"message": "Unauthorized"});
    let mut response = answers::json(StatusCode::UNAUTHORIZED, &message);
    let challenge = HeaderValue::from_static(challenge);
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

/// The gateway does not even ask the authorizer.
fn nothing_to_authorize() -> Response<EmulatorBody> {
    answers::gateway(StatusCode::UNAUTHORIZED, "UnauthorizedException", &json!({"message": "Unauthorized"}))
}

pub(super) fn explicit_deny() -> Response<EmulatorBody> {
    answers::gateway(
        StatusCode::FORBIDDEN,
        "AccessDeniedException",
        &json!({
            "message": "User is not authorized to access this resource with an explicit deny",
        }),
    )
}
