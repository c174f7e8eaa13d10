//! The two things the cache does not read by itself, so that a test can set them: the wall clock and random numbers.
//!
//! The monotonic clock is tokio's, which tests pause.

use std::{fmt, sync::Arc, time::SystemTime};

use tokio::time::Instant;

/// One moment by both clocks. A suspended machine stops the monotonic one, an operator moves the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    pub(crate) wall: SystemTime,
}

#[derive(Clone)]
pub(crate) struct Clock {
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    random: Arc<dyn Fn() -> f64 + Send + Sync>,
}

impl Clock {
    pub(crate) fn set_wall(&mut self, wall: impl Fn() -> SystemTime + Send + Sync + 'static) {
        self.wall = Arc::new(wall);
    }

    pub(crate) fn set_random(&mut self, random: impl Fn() -> f64 + Send + Sync + 'static) {
        self.random = Arc::new(random);
    }

    pub(crate) fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    /// `monotonic` beside what the wall clock says now.
    pub(crate) fn at(&self, monotonic: Instant) -> Moment {
        Moment { monotonic, wall: (self.wall)() }
    }

    /// A uniform draw from `0.0..1.0`.
    pub(crate) fn draw(&self) -> f64 {
        // A source of the caller's own may answer anything; durations are computed from this.
        let drawn = (self.random)();
        if drawn.is_finite() { drawn.clamp(0.0, 1.0) } else { 0.5 }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self { wall: Arc::new(SystemTime::now), random: Arc::new(fastrand::f64) }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}
