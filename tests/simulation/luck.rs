//! What goes wrong next, drawn at random.

use std::{iter::repeat_with, time::Duration};

use apsis_auth::emulator::{Answer, Dialect, Emulator};
use fastrand::Rng;
use http::{StatusCode, header::RETRY_AFTER};

use crate::{life::REFUSED, seconds};

/// How opaque tokens of the script begin.
pub(crate) const OPAQUE: &str = "0paque";

/// What the driver does about itself; all else is a matter of the emulator.
#[derive(Debug)]
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
    /// A control of the emulator, by name.
    #[expect(dead_code, reason = "printed in the trace")]
    Apsis(&'static str),
}

/// One thing that happens.
pub(crate) fn strike(rng: &mut Rng, apsis: &Emulator) -> Blow {
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
        _ => Blow::Apsis(turn(rng, apsis)),
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
    let answer = match rng.u8(..14) {
        0..3 => Answer::too_many_requests(),
        3..7 => Answer::status(*pick(rng, &FAILURES)),
        7 => Answer::hang(),
        8 => Answer::hang_in_body(),
        9 => Answer::drip(seconds(1)),
        10 => Answer::truncated(),
        11 => Answer::html(),
        12 => Answer::close(),
        _ => Answer::token(&match rng.u8(..4) {
            0 => String::new(),
            1 => format!("{OPAQUE} with spaces"),
            _ => format!("{OPAQUE}-{}", rng.u32(..3)),
        }),
    };
    let answer = match rng.u8(..3) {
        0 => answer
            .header(RETRY_AFTER, *pick(rng, &["0", "5", "29", "120", "86400", "-1", "soon", "99999999999999999999"])),
        _ => answer,
    };
    if rng.u8(..4) == 0 { answer.delay(seconds(rng.u64(..40))) } else { answer }
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

/// As good as on the first day, but for what is still to come of the scripts.
pub(crate) fn heal(apsis: &Emulator) {
    apsis.set_dialect(Dialect::Unauthorized);
    apsis.allow_route(REFUSED);
    apsis.set_token_lifetime(seconds(86_400));
    apsis.set_same_token_while_valid(false);
    apsis.set_token_limit(10);
    apsis.set_refusals_count(true);
    apsis.set_token_delay(Duration::ZERO);
    apsis.set_api_delay(Duration::ZERO);
}

fn pick<'a, T>(rng: &mut Rng, all: &'a [T]) -> &'a T {
    &all[rng.usize(..all.len())]
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
