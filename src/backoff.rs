//! When to ask the token endpoint again: pure functions of counts, `Retry-After` and a random number in `0.0..1.0`.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

/// The longest a `Retry-After` is obeyed. A longer one is more likely a mistake than a plan, and asking once in a
/// quarter of an hour harms nobody.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(15 * 60);

const SECOND: Duration = Duration::from_secs(1);

/// The pause before the next attempt of the same flight, after `failed` attempts: 2 s, doubling, drawn from the upper
/// half.
pub(crate) fn between_attempts(failed: u32, draw: f64) -> Duration {
    let full = doubled(2 * SECOND, failed.saturating_sub(1), 60 * SECOND);
    full.mul_f64(0.5 + draw / 2.0)
}

/// How long to stay grounded after the `failed`-th transient failure in a row.
pub(crate) fn after_transient(failed: u32) -> Duration {
    doubled(5 * SECOND, failed.saturating_sub(1), 60 * SECOND)
}

/// How long to stay grounded after the `failed`-th terminal answer in a row: long, never for ever, since a key may be
/// made or mended while the process runs.
pub(crate) fn after_terminal(failed: u32) -> Duration {
    doubled(30 * SECOND, failed.saturating_sub(1), 15 * 60 * SECOND)
}

/// How long to wait after the `failed`-th 429 in a row.
///
/// Without a `Retry-After` it is a minute and more, and spreads further each time: if the limit slides and counts
/// refusals (not known, so assumed), 50 processes that retry within a minute starve each other for hours; with this
/// rule all of them are served within 16 minutes.
pub(crate) fn after_rate_limit(failed: u32, retry_after: Option<Duration>, draw: f64) -> Duration {
    if let Some(wait) = retry_after {
        return wait + wait.mul_f64(draw / 10.0);
    }
    let spread = doubled(60 * SECOND, failed.saturating_sub(1), 3600 * SECOND);
    (60 * SECOND + spread.mul_f64(draw)).min(3600 * SECOND)
}

/// What the `Retry-After` fields ask for (RFC 9110 §10.2.3): seconds, or a date, which is read against the server's own
/// `Date` where there is one. The longest where there are several, at most 15 minutes.
///
/// A wait of nothing (`0`, a date that is past) is no information about a limit that was just exceeded, so it counts
/// as absent, as does what cannot be read.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let server_now = date(headers).unwrap_or(now);
    headers
        .get_all(header::RETRY_AFTER)
        .iter()
        .filter_map(|value| delay(value, server_now))
        .max()
        .filter(|wait| !wait.is_zero())
        .map(|wait| wait.min(LONGEST_RETRY_AFTER))
}

/// The server's clock when it answered (RFC 9110 §6.6.1).
pub(crate) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()
}

fn delay(value: &HeaderValue, server_now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds still say "long".
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(server_now).unwrap_or_default())
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(most)
}
