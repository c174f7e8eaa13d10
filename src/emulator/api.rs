//! Everything but the token endpoint: the gateway's checks, then the application.

use http::{Response, StatusCode, request::Parts};
use serde_json::json;

use super::{
    EmulatorBody, answers,
    audience::{Request, Route},
    authorizer::{self, Rejection},
    clock::Now,
    payload::Payload,
    state::State,
};

/// Why a request did not come as far as the application.
enum Refusal {
    Route,
    Token(Rejection),
    RefusedRoute,
    Limit,
    TooLarge,
    Rights,
}

pub(super) fn answer(state: &mut State, now: Now, head: &Parts, payload: &Payload) -> Response<EmulatorBody> {
    match admit(state, now, head, payload) {
        Ok(request) => apply(state, request),
        Err(refusal) => refuse(state, &refusal),
    }
}

/// The gateway finds the route before it asks the authorizer: a wrong path says nothing about the token.
fn admit<'a>(state: &mut State, now: Now, head: &'a Parts, payload: &'a Payload) -> Result<Request<'a>, Refusal> {
    let path = head.uri.path();
    let is_refused = state.is_refused(path);
    let route = Route::find(&head.method, path);
    if route.is_none() && !is_refused {
        return Err(Refusal::Route);
    }
    let has_rights = authorizer::authorize(state, now, &head.headers).map_err(Refusal::Token)?;
    let route = route.filter(|_| !is_refused).ok_or(Refusal::RefusedRoute)?;
    let limit = state.settings.api_limit;
    if !state.api_requests.has_room(now.instant, limit) {
        return Err(Refusal::Limit);
    }
    state.api_requests.enter(now.instant);
    let Payload::Whole(body) = payload else {
        return Err(Refusal::TooLarge);
    };
    if !has_rights {
        return Err(Refusal::Rights);
    }
    let headers = &head.headers;
    Ok(Request { route, headers, body })
}

fn apply(state: &mut State, request: Request<'_>) -> Response<EmulatorBody> {
    match state.audience.apply(request) {
        Ok(response) => {
            state.counters.api_accepted += 1;
            response
        }
        Err(problem) => {
            state.counters.api_problems += 1;
            answers::problem(problem.status, problem.detail)
        }
    }
}

fn refuse(state: &mut State, refusal: &Refusal) -> Response<EmulatorBody> {
    let dialect = state.settings.dialect;
    let counters = &mut state.counters;
    let (counter, response) = match refusal {
        Refusal::Route => (&mut counters.unknown_routes, no_such_route()),
        Refusal::Token(rejection) => (&mut counters.api_rejected, rejection.response(dialect)),
        Refusal::RefusedRoute => (&mut counters.api_refused, authorizer::explicit_deny()),
        Refusal::Limit => (&mut counters.api_limited, answers::too_many_requests()),
        Refusal::TooLarge => (&mut counters.api_too_large, answers::too_large()),
        Refusal::Rights => (&mut counters.api_forbidden, no_rights()),
    };
    *counter += 1;
    response
}

fn no_such_route() -> Response<EmulatorBody> {
    answers::gateway(
        StatusCode::FORBIDDEN,
        "MissingAuthenticationTokenException",
        &json!({"message": "Missing Authentication Token"}),
    )
}

fn no_rights() -> Response<EmulatorBody> {
    answers::problem(StatusCode::FORBIDDEN, "this API key has no right to do this")
}
