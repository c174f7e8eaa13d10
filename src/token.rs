//! One access token: what it says in a header, how long it lives, and when to look at it again.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::clock::Moment;

const SCHEME: &str = "Bearer ";

/// How often a good token is compared with the wall clock, which may have been moved, or have gone on while the
/// monotonic clock stood still.
const LOOK_EVERY: Duration = Duration::from_secs(5);

const LARGEST_MARGIN: Duration = Duration::from_secs(60);

/// Tokens live up to 24 h (developer.apsis.com, "Authentication"). A claim of more than a week is a mistake; nothing
/// is lost by asking again after one.
pub(crate) const LONGEST_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// For a token that does not tell its lifetime.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// After so many refreshes that brought the same token it is used to its end.
const MOST_UNCHANGED_REFRESHES: u32 = 3;

/// A token as the endpoint gave it: not yet one of the cache's.
#[derive(Debug)]
pub(crate) struct IssuedToken {
    pub(crate) header: HeaderValue,
    pub(crate) lifetime: Duration,
    /// When it was asked for. The lifetime counts from here: the server measured it later.
    pub(crate) asked: Moment,
    /// What of the lifetime was over already, since another process of the fleet had asked for it before.
    pub(crate) age: Duration,
    pub(crate) is_adopted: bool,
    /// Of the entry of the fleet's store that it came from or went to; or else of the last one that its process took.
    #[cfg(feature = "store")]
    pub(crate) fence: Option<u64>,
}

impl IssuedToken {
    /// Whether it reached its margin on its way here. A request would not be sent with it, but ask for another one.
    pub(crate) fn is_expired(&self, now: Moment) -> bool {
        age(self.asked, now) >= self.usable_for()
    }

    fn usable_for(&self) -> Duration {
        let margin = LARGEST_MARGIN.min(self.lifetime / 10);
        self.lifetime.saturating_sub(margin).saturating_sub(self.age)
    }
}

/// An access token of the cache.
pub(crate) struct Token {
    header: HeaderValue,
    generation: u64,
    born: Moment,
    usable_for: Duration,
    due_after: Duration,
    lifetime: Duration,
    /// What it was when it was born here.
    #[cfg(feature = "store")]
    age_when_taken: Duration,
    #[cfg(feature = "store")]
    fence: Option<u64>,
    is_adopted: bool,
    unchanged_refreshes: u32,
    /// Nanoseconds after `born` by the monotonic clock. Until then a request needs to look at nothing else.
    next_look: AtomicU64,
}

impl Token {
    /// `draw` from `0.0..1.0` sets when the refresh is due: once per token, so that processes that started together
    /// do not come back together, and a busy one does not draw the earliest moment again and again.
    pub(crate) fn new(issued: IssuedToken, generation: u64, unchanged_refreshes: u32, draw: f64) -> Self {
        let token = Self {
            usable_for: issued.usable_for(),
            header: issued.header,
            generation,
            born: issued.asked,
            due_after: issued.lifetime.mul_f64(0.75 + 0.15 * draw).saturating_sub(issued.age),
            lifetime: issued.lifetime.saturating_sub(issued.age),
            #[cfg(feature = "store")]
            age_when_taken: issued.age,
            #[cfg(feature = "store")]
            fence: issued.fence,
            is_adopted: issued.is_adopted,
            unchanged_refreshes,
            next_look: AtomicU64::new(0),
        };
        token.look_again(issued.asked);
        token
    }

    #[inline]
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }

    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// How long ago it was asked for, by whichever process, as far as the clocks of store and process go alike.
    #[cfg(feature = "store")]
    pub(crate) fn age_since_issue(&self, now: Moment) -> Duration {
        self.age_when_taken.saturating_add(self.age(now))
    }

    #[cfg(feature = "store")]
    pub(crate) fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// Whether another process of the fleet asked for it.
    pub(crate) fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    pub(crate) fn unchanged_refreshes(&self) -> u32 {
        self.unchanged_refreshes
    }

    /// Whether the token is good without looking at anything but one clock.
    #[inline]
    pub(crate) fn needs_no_look(&self, now: Instant) -> bool {
        // To add to a moment is cheaper than to take the difference of two.
        now < self.born.monotonic + Duration::from_nanos(self.next_look.load(Ordering::Relaxed))
    }

    /// Sets the next look: when the refresh is due, at the margin, or in a few seconds, whichever comes first.
    pub(crate) fn look_again(&self, now: Moment) {
        let age = self.age(now);
        let mut wait = LOOK_EVERY.min(self.usable_for.saturating_sub(age));
        if !self.is_due(now) {
            wait = wait.min(self.due_after.saturating_sub(age));
        }
        let next = self.monotonic_age(now.monotonic) + wait;
        self.next_look.store(nanoseconds(next), Ordering::Relaxed);
    }

    /// Whether the token has reached its margin by either clock.
    pub(crate) fn is_expired(&self, now: Moment) -> bool {
        self.age(now) >= self.usable_for
    }

    /// Whether it is time to refresh.
    pub(crate) fn is_due(&self, now: Moment) -> bool {
        self.age(now) >= self.due_after
    }

    /// Whether a refresh may still bring something new.
    pub(crate) fn is_worth_a_refresh(&self) -> bool {
        self.unchanged_refreshes < MOST_UNCHANGED_REFRESHES
    }

    pub(crate) fn time_to_expiry(&self, now: Moment) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    pub(crate) fn time_to_due(&self, now: Moment) -> Duration {
        self.due_after.saturating_sub(self.age(now))
    }

    fn age(&self, now: Moment) -> Duration {
        age(self.born, now)
    }

    fn monotonic_age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born.monotonic)
    }
}

/// The age by the clock that says more. A wall clock that was set back says less than the other one.
fn age(born: Moment, now: Moment) -> Duration {
    let by_wall = now.wall.duration_since(born.wall).unwrap_or_default();
    now.monotonic.saturating_duration_since(born.monotonic).max(by_wall)
}

fn nanoseconds(duration: Duration) -> u64 {
    // 584 years.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("generation", &self.generation).finish_non_exhaustive()
    }
}

/// An access token for those who send requests without the layer; see [`TokenHandle`](crate::TokenHandle).
///
/// It is what the cache had when it was asked for. Ask again for each request: that costs next to nothing, and a token
/// that is kept is not renewed.
#[derive(Clone)]
pub struct AccessToken(pub(crate) Arc<Token>);

impl AccessToken {
    /// The value of an `Authorization` header: `Bearer` and the token (RFC 6750 §2.1), marked sensitive.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        self.0.header().clone()
    }

    /// The token itself. Whoever has it can use the API in the account's name.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        std::str::from_utf8(of_header(self.0.header())).unwrap_or_default()
    }

    /// The number of the token in this process, counted from 1. A newer token has a higher one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.generation()
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// `Bearer` and the token, in memory that is wiped when the last clone goes; or `None` if the token has characters
/// that the header may not carry, which are more than those of RFC 6750 §2.1 but neither spaces nor controls.
pub(crate) fn bearer_header(access_token: &str) -> Option<HeaderValue> {
    if access_token.is_empty() || !access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut header = Zeroizing::new(Vec::with_capacity(SCHEME.len() + access_token.len()));
    header.extend_from_slice(SCHEME.as_bytes());
    header.extend_from_slice(access_token.as_bytes());
    let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(header)).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// The token of a header that [`bearer_header`] made.
pub(crate) fn of_header(header: &HeaderValue) -> &[u8] {
    &header.as_bytes()[SCHEME.len()..]
}

/// How long a token lives: by its `exp` and the server's own clock, so that a local clock that is wrong does no harm.
/// `None` if it has expired.
///
/// APSIS One wants the expiry taken from the `exp` claim; `expires_in` is deprecated (developer.apsis.com,
/// "Authentication"), so it serves only where there is no claim to read. Nothing is verified: to a client the token is
/// opaque (RFC 6749 §1.4).
pub(crate) fn lifetime(
    access_token: &str,
    expires_in: Option<&Value>,
    server_date: Option<SystemTime>,
    local_now: SystemTime,
) -> Option<Duration> {
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(access_token).unwrap_or_default();
    match numeric_date(claims.exp.as_ref()) {
        Some(exp) => {
            let date = server_date.map(since_epoch);
            let now = date.or(numeric_date(claims.iat.as_ref())).unwrap_or_else(|| since_epoch(local_now));
            seconds(exp - now)
        }
        None => Some(numeric_date(expires_in).and_then(seconds).unwrap_or(UNKNOWN_LIFETIME)),
    }
}

#[derive(Default, Deserialize)]
struct Claims {
    exp: Option<Value>,
    iat: Option<Value>,
}

/// A JSON number of seconds (RFC 7519 §2), whole or not. A string is none.
fn numeric_date(claim: Option<&Value>) -> Option<f64> {
    claim?.as_f64().filter(|seconds| seconds.is_finite())
}

/// A clock that stands before 1970 is wrong by so much that it stands at 1970 just as well.
fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// `None` for zero and less. More than the longest lifetime is cut, since a `Duration` does not hold every float.
fn seconds(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST_LIFETIME.as_secs_f64())))
}
