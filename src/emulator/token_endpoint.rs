//! The token endpoint: RFC 6749, section 4.4, in APSIS One's JSON.

use std::time::Duration;

use http::{HeaderValue, Method, Response, StatusCode, header::ALLOW, request::Parts};
use serde::Deserialize;
use serde_json::json;

use super::{
    EmulatorBody, answers,
    clock::Now,
    payload::Payload,
    signer,
    state::{Issued, State},
};

pub(super) const PATH: &str = "/oauth/token";

const ISSUER: &str = "https://emulator.apsis.one";

/// Why a token request brought no token.
enum Refusal {
    Method,
    Limit,
    TooLarge,
    Malformed,
    GrantType,
    Credentials,
}

/// Exactly these: a member too many, or twice, is an invalid request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRequest {
    grant_type: String,
    client_id: String,
    client_secret: String,
}

struct Token {
    access_token: String,
    expires_in: Duration,
}

pub(super) fn answer(state: &mut State, now: Now, head: &Parts, payload: &Payload) -> Response<EmulatorBody> {
    let token = admit(state, now, head, payload);
    match token {
        Ok(token) => {
            state.counters.tokens_issued += 1;
            answers::token(&token.access_token, token.expires_in.as_secs())
        }
        Err(refusal) => refuse(state, &refusal),
    }
}

/// The limit comes before the credentials: a wrong secret eats from it, too.
fn admit(state: &mut State, now: Now, head: &Parts, payload: &Payload) -> Result<Token, Refusal> {
    if head.method != Method::POST {
        return Err(Refusal::Method);
    }
    let limit = state.settings.token_limit;
    let token = if state.token_requests.has_room(now.instant, limit) {
        grant(state, now, head, payload)
    } else {
        Err(Refusal::Limit)
    };
    if token.is_ok() || state.settings.refusals_count {
        state.token_requests.enter(now.instant);
    }
    token
}

fn grant(state: &mut State, now: Now, head: &Parts, payload: &Payload) -> Result<Token, Refusal> {
    let request = parse(head, payload)?;
    if request.grant_type != "client_credentials" {
        return Err(Refusal::GrantType);
    }
    let key = state.key(&request.client_id);
    if key.is_none_or(|key| key.client_secret != request.client_secret) {
        return Err(Refusal::Credentials);
    }
    Ok(token_for(state, now, &request.client_id))
}

fn parse(head: &Parts, payload: &Payload) -> Result<TokenRequest, Refusal> {
    let Payload::Whole(body) = payload else {
        return Err(Refusal::TooLarge);
    };
    if !answers::is_of_type(&head.headers, "application/json") {
        return Err(Refusal::Malformed);
    }
    serde_json::from_slice(body).map_err(|_| Refusal::Malformed)
}

fn token_for(state: &mut State, now: Now, client_id: &str) -> Token {
    if state.settings.same_token_while_valid
        && let Some(token) = valid_token(state, now, client_id)
    {
        return token;
    }
    issue(state, now, client_id)
}

fn valid_token(state: &State, now: Now, client_id: &str) -> Option<Token> {
    let access_token = state.key(client_id)?.latest_token.as_ref()?;
    let expires_at = state.tokens.get(access_token)?.expires_at;
    let expires_in = expires_at.checked_sub(now.wall)?;
    (!expires_in.is_zero()).then(|| Token { access_token: access_token.clone(), expires_in })
}

fn issue(state: &mut State, now: Now, client_id: &str) -> Token {
    let expires_in = state.settings.token_lifetime;
    let expires_at = now.wall.saturating_add(expires_in);
    let access_token = signer::shared().sign(&json!({
        "iss": ISSUER,
        "sub": client_id,
        "iat": now.wall.as_secs(),
        "exp": expires_at.as_secs(),
        "jti": format!("{:032x}", fastrand::u128(..)),
    }));
    let issued = Issued { client_id: client_id.to_owned(), expires_at };
    state.tokens.insert(access_token.clone(), issued);
    let mut keys = state.keys.iter_mut();
    if let Some(key) = keys.find(|key| key.client_id == client_id) {
        key.latest_token = Some(access_token.clone());
    }
    Token { access_token, expires_in }
}

fn refuse(state: &mut State, refusal: &Refusal) -> Response<EmulatorBody> {
    let counters = &mut state.counters;
    let counter = match refusal {
        Refusal::Limit => &mut counters.token_limited,
        Refusal::Credentials => &mut counters.token_denials,
        Refusal::Method | Refusal::TooLarge | Refusal::Malformed | Refusal::GrantType => {
            &mut counters.token_bad_requests
        }
    };
    *counter += 1;
    match refusal {
        Refusal::Method => method_not_allowed(),
        Refusal::Limit => answers::too_many_requests(),
        Refusal::TooLarge => answers::too_large(),
        Refusal::Malformed => oauth_error(StatusCode::BAD_REQUEST, "invalid_request"),
        Refusal::GrantType => oauth_error(StatusCode::BAD_REQUEST, "unsupported_grant_type"),
        Refusal::Credentials => oauth_error(StatusCode::UNAUTHORIZED, "invalid_client"),
    }
}

/// RFC 6749, section 5.2.
fn oauth_error(status: StatusCode, code: &str) -> Response<EmulatorBody> {
    answers::json(status, &json!({"error": code}))
}

fn method_not_allowed() -> Response<EmulatorBody> {
    let mut response = answers::bare(StatusCode::METHOD_NOT_ALLOWED);
    let post = HeaderValue::from_static("POST");
    response.headers_mut().insert(ALLOW, post);
    response
}
