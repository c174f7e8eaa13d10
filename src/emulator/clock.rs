//! The server's two clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use tokio::time::Instant;

/// The last second that an HTTP date can say: the end of the year 9999.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

pub(super) struct Clock {
    started: Instant,
    /// The wall clock then, since the Unix epoch.
    wall: Duration,
}

/// One reading of both clocks.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub(super) instant: Instant,
    /// Since the Unix epoch, skew included.
    pub(super) wall: Duration,
}

impl Clock {
    /// Whole seconds, so that under a paused clock nothing depends on where in a second a test
    /// started.
    pub(super) fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { started: Instant::now(), wall: Duration::from_secs(wall.unwrap_or_default().as_secs()) }
    }

    pub(super) fn now(&self, skew: i64) -> Now {
        let instant = Instant::now();
        let wall = self.wall + instant.saturating_duration_since(self.started);
        Now { instant, wall: skewed(wall, skew).min(LATEST) }
    }
}

impl Now {
    /// The value of a `Date` header (RFC 9110, section 6.6.1).
    pub(super) fn http_date(self) -> HeaderValue {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + self.wall);
        HeaderValue::try_from(date).expect("an HTTP date is visible ASCII")
    }
}

fn skewed(wall: Duration, skew: i64) -> Duration {
    let by = Duration::from_secs(skew.unsigned_abs());
    if skew < 0 { wall.saturating_sub(by) } else { wall.saturating_add(by) }
}
