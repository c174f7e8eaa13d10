//! What goes wrong next, drawn at random.

use std::{
    iter::repeat_with,
    pin::pin,
    task::{Context, Waker},
    time::Duration,
};

use apsis_auth::emulator::{Answer, Dialect, Emulator};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use fastrand::Rng;
use http::{
    Request, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use http_body_util::Full;
use tower::ServiceExt;

use crate::{
    life::REFUSED,
    memory::{Condition, Memory},
    seconds,
};

/// How opaque tokens of the script begin.
pub(crate) const OPAQUE: &str = "0paque";

/// A server's clock that has stopped, and the same in seconds.
const STOPPED: &str = "Sun, 09 Sep 2001 01:46:40 GMT";
const STOPPED_SECONDS: u64 = 1_000_000_000;

/// What the driver does about itself; all else is a matter of the emulator.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// So many callers at once.
    Callers(u64),
    /// Somebody forces a renewal.
    ForcedRenewal,
    /// Some callers are dropped where they are.
    Cancellation,
    TransportPanics,
    WallJumps(i64),
    /// The monotonic clock stands still meanwhile.
    MachineSleeps(i64),
    RuntimeDies,
    /// So many of 100 requests go wrong, for so long.
    ApiMisbehaves(u8, Duration),
    /// A control of the emulator or of the store, by name.
    Apsis(&'static str),
}

impl Blow {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Callers(_) => "callers",
            Self::ForcedRenewal => "a renewal is forced",
            Self::Cancellation => "callers are dropped",
            Self::TransportPanics => "the transport panics",
            Self::WallJumps(_) => "the wall clock jumps",
            Self::MachineSleeps(_) => "the machine sleeps",
            Self::RuntimeDies => "the runtime dies",
            Self::ApiMisbehaves(..) => "the API misbehaves",
            Self::Apsis(name) => name,
        }
    }
}

/// How many names there are.
pub(crate) const BLOWS: usize = 22;

/// One thing that happens; to a store as well, if there is one that things happen to.
pub(crate) fn strike(rng: &mut Rng, apsis: &Emulator, store: Option<&Memory>) -> Blow {
    match rng.u8(..100) {
        0..50 => Blow::Callers(if rng.u8(..10) == 0 { rng.u64(20..80) } else { rng.u64(1..6) }),
        50..52 => Blow::ForcedRenewal,
        52..57 => Blow::Cancellation,
        57..58 => Blow::TransportPanics,
        58..61 => Blow::WallJumps(*pick(rng, &[-3600, 3600, 86_400, -315_360_000, 120, -120])),
        61..62 => Blow::MachineSleeps(26 * 3600),
        62..64 => Blow::RuntimeDies,
        64..72 => {
            let count = rng.usize(1..5);
            apsis.script_token_answers(repeat_with(|| token_answer(rng)).take(count).collect::<Vec<_>>());
            Blow::Apsis("the token endpoint misbehaves")
        }
        72..80 => Blow::ApiMisbehaves(*pick(rng, &[5, 30, 100]), pause(rng)),
        80..90 => {
            apsis.revoke_tokens();
            Blow::Apsis("all tokens are revoked")
        }
        _ => match store {
            Some(store) if rng.u8(..3) == 0 => Blow::Apsis(befall(rng, store)),
            _ => Blow::Apsis(turn(rng, apsis)),
        },
    }
}

const CONDITIONS: [Condition; 7] = [
    Condition::Well,
    Condition::Down,
    Condition::Silent,
    Condition::Panics,
    Condition::ReadOnly,
    Condition::Slow,
    Condition::Deaf,
];

fn befall(rng: &mut Rng, store: &Memory) -> &'static str {
    match rng.u8(..5) {
        0..3 => {
            store.set(*pick(rng, &CONDITIONS));
            "the store fails, or not"
        }
        3 => {
            store.empty();
            "the store is emptied"
        }
        _ => {
            let (place, by) = (rng.usize(..400), rng.u8(1..));
            store.change(|account| {
                if let Some((_, sealed, _)) = &mut account.entry {
                    let mut changed = sealed.to_vec();
                    let place = place % changed.len();
                    changed[place] ^= by;
                    *sealed = changed.into();
                }
            });
            "what is stored is changed"
        }
    }
}

fn turn(rng: &mut Rng, apsis: &Emulator) -> &'static str {
    match rng.u8(..9) {
        0 => {
            apsis.set_dialect(*pick(rng, &[Dialect::Unauthorized, Dialect::Gateway]));
            "another dialect, perhaps"
        }
        1 => {
            apsis.refuse_route(REFUSED);
            "a route is refused"
        }
        2 => {
            apsis.allow_route(REFUSED);
            "a route is allowed"
        }
        3 => {
            let lifetime = *pick(rng, &[0, 1, 5, 30, 60, 600, 3600, 86_400, 86_400, 700_000]);
            apsis.set_token_lifetime(seconds(lifetime));
            "another lifetime"
        }
        4 => {
            apsis.set_same_token_while_valid(rng.bool());
            "the same token while valid, or not"
        }
        5 => {
            apsis.set_token_limit(*pick(rng, &[1, 4, 10]));
            apsis.set_refusals_count(rng.bool());
            "another limit of token requests"
        }
        6 => {
            apsis.set_token_delay(millis(*pick(rng, &[0, 50, 3_000, 14_000, 45_000, 120_000])));
            "another latency of the token endpoint"
        }
        7 => {
            apsis.set_api_delay(millis(*pick(rng, &[0, 20, 1_000, 40_000])));
            "another latency of the API"
        }
        _ => {
            apsis.set_clock_skew(*pick(rng, &[0, 3600, -3600, 90]));
            "the server's clock is set"
        }
    }
}

fn token_answer(rng: &mut Rng) -> Answer {
    const FAILURES: [StatusCode; 10] = [
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::BAD_REQUEST,
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::TEMPORARY_REDIRECT,
    ];
    let answer = match rng.u8(..16) {
        0..3 => Answer::too_many_requests(),
        3..7 => Answer::status(*pick(rng, &FAILURES)),
        7 => Answer::hang(),
        8 => Answer::hang_in_body(),
        9 => Answer::drip(seconds(1)),
        10 => Answer::truncated(),
        11 => Answer::html(),
        12 => Answer::close(),
        13 => strange_token(rng),
        _ => Answer::token(&match rng.u8(..4) {
            0 => String::new(),
            1 => format!("{OPAQUE} with spaces"),
            _ => format!("{OPAQUE}-{}", rng.u32(..3)),
        }),
    };
    let answer = match rng.u8(..6) {
        0..2 => answer
            .header(RETRY_AFTER, *pick(rng, &["0", "5", "29", "120", "86400", "-1", "soon", "99999999999999999999"])),
        2 => asks_twice(rng, answer),
        _ => answer,
    };
    if rng.u8(..4) == 0 { answer.delay(seconds(rng.u64(..40))) } else { answer }
}

/// Asks to wait in two ways, by a clock of its own.
fn asks_twice(rng: &mut Rng, answer: Answer) -> Answer {
    let wait = *pick(rng, &["Sun, 09 Sep 2001 01:47:00 GMT", "Sun, 09 Sep 2001 01:00:00 GMT", "7"]);
    answer.header(DATE, STOPPED).header(RETRY_AFTER, "1").header(RETRY_AFTER, wait)
}

/// A token that says something odd of its lifetime.
fn strange_token(rng: &mut Rng) -> Answer {
    const EXPIRIES: [&str; 10] = [
        "-5",
        "0",
        "1000000000.5",
        "1000000020",
        "1000000090",
        "1000086400",
        "253402300799",
        "1e300",
        "null",
        "\"soon\"",
    ];
    const LIFETIMES: [&str; 9] = ["-1", "0", "0.5", "\"60\"", "1e99", "null", "90", "3600", "86400"];
    let expiry = *pick(rng, &EXPIRIES);
    let claims = match rng.u8(..3) {
        0 => format!(r#"{{"exp":{expiry},"iat":{STOPPED_SECONDS}}}"#),
        1 => format!(r#"{{"exp":{expiry}}}"#),
        _ => "{}".to_owned(),
    };
    let parts = [r#"{"alg":"RS256"}"#, &claims, ["a", "b", "c"][rng.usize(..3)]];
    let token = parts.map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    let lifetime = pick(rng, &LIFETIMES);
    let answer = Answer::status(StatusCode::OK)
        .body(format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{lifetime}}}"#));
    match rng.u8(..3) {
        0 => answer.header(DATE, STOPPED),
        1 => answer.header(DATE, "never"),
        _ => answer,
    }
}

/// What goes wrong with a request to the API.
pub(crate) enum Misfortune {
    Says(StatusCode, Duration),
    Redirects(StatusCode, &'static str),
    Closes,
    SaysNothing,
}

impl Misfortune {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        const STATUSES: [StatusCode; 8] = [
            StatusCode::UNAUTHORIZED,
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::INTERNAL_SERVER_ERROR,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::NOT_FOUND,
        ];
        const REDIRECTS: [StatusCode; 2] = [StatusCode::TEMPORARY_REDIRECT, StatusCode::SEE_OTHER];
        const PLACES: [&str; 5] = [
            "https://api.apsis.one/audience/keyspaces",
            "/audience/sections",
            "https://api.apsis.example/audience/keyspaces",
            "https://api.apsis.one:8443/audience/keyspaces",
            "http://api.apsis.one/audience/keyspaces",
        ];
        match rng.u8(..10) {
            0..6 => {
                let delay = if rng.u8(..4) == 0 { seconds(rng.u64(..20)) } else { Duration::ZERO };
                Self::Says(*pick(rng, &STATUSES), delay)
            }
            6 => Self::Closes,
            7 => Self::SaysNothing,
            _ => Self::Redirects(*pick(rng, &REDIRECTS), PLACES[rng.usize(..PLACES.len())]),
        }
    }
}

/// How long until the next thing happens.
pub(crate) fn pause(rng: &mut Rng) -> Duration {
    match rng.u8(..20) {
        0..6 => Duration::ZERO,
        6..10 => millis(rng.u64(1..2_000)),
        10..15 => millis(rng.u64(1_000..70_000)),
        15..19 => seconds(rng.u64(60..3_600)),
        _ => seconds(rng.u64(3_600..30 * 3_600)),
    }
}

/// As good as on the first day, but for the clocks.
pub(crate) fn heal(apsis: &Emulator, store: Option<&Memory>) {
    if let Some(store) = store {
        store.set(Condition::Well);
    }
    apsis.set_dialect(Dialect::Unauthorized);
    apsis.allow_route(REFUSED);
    apsis.set_token_lifetime(seconds(86_400));
    apsis.set_same_token_while_valid(false);
    apsis.set_token_limit(10);
    apsis.set_refusals_count(true);
    apsis.set_token_delay(Duration::ZERO);
    apsis.set_api_delay(Duration::ZERO);
    use_up_script(apsis);
}

/// What is still to come of the script is given to somebody else.
fn use_up_script(apsis: &Emulator) {
    loop {
        let before = apsis.counters().scripted;
        let request = Request::post("https://api.apsis.one/oauth/token").body(Full::<Bytes>::default()).unwrap();
        let _ = pin!(apsis.clone().oneshot(request)).poll(&mut Context::from_waker(Waker::noop()));
        if apsis.counters().scripted == before {
            return;
        }
    }
}

fn pick<'a, T>(rng: &mut Rng, all: &'a [T]) -> &'a T {
    &all[rng.usize(..all.len())]
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
