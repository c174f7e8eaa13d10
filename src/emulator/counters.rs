/// Counts what arrived at an [`Emulator`](super::Emulator) and what became of it.
///
/// Each request is counted once on arrival, in `token_requests` or `api_requests`, and once by its
/// outcome, in one of the others, when that is decided. A request whose body never arrives has no
/// outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Requests to the token endpoint.
    pub token_requests: u64,
    /// Token requests answered with a token.
    pub tokens_issued: u64,
    /// Token requests over the limit: 429.
    pub token_limited: u64,
    /// Token requests with wrong credentials, or those of a deleted key: 401.
    pub token_denials: u64,
    /// Token requests that were not understood: 400, 405, 413.
    pub token_bad_requests: u64,
    /// Requests to any other path.
    pub api_requests: u64,
    /// API requests answered with a success.
    pub api_accepted: u64,
    /// API requests whose token was missing or not accepted, in either dialect.
    pub api_rejected: u64,
    /// API requests to a [refused route](super::Emulator::refuse_route): the gateway's 403.
    pub api_refused: u64,
    /// API requests of a key without rights: the application's 403.
    pub api_forbidden: u64,
    /// API requests over the limit: 429.
    pub api_limited: u64,
    /// API requests whose body is too large: 413.
    pub api_too_large: u64,
    /// API requests that the application had to answer with another error: 400, 404, 409, 415.
    pub api_problems: u64,
    /// API requests for which there is no route: the gateway's 403.
    pub unknown_routes: u64,
    /// Requests of both kinds answered from a script, but not [`Answer::genuine`](super::Answer::genuine).
    pub scripted: u64,
}
