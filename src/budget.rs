//! At most N token requests in any 60 s, whatever asks for them.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use tokio::time::Instant;

/// APSIS One limits token requests per minute (developer.apsis.com/reference/limits); whether its window slides is
/// not known, so this one does.
const WINDOW: Duration = Duration::from_secs(60);

/// Attempts of the last minute, oldest first; never more of them than the limit.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: NonZeroU32,
    attempts: VecDeque<Instant>,
}

impl Budget {
    pub(crate) fn new(limit: NonZeroU32) -> Self {
        Self { limit, attempts: VecDeque::new() }
    }

    /// Counts an attempt made at `now`, or says when there is room for one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        match self.free_at(now) {
            Some(free_at) => Err(free_at),
            None => {
                self.attempts.push_back(now);
                Ok(())
            }
        }
    }

    /// When there is room for an attempt; `None` where there is now.
    pub(crate) fn free_at(&mut self, now: Instant) -> Option<Instant> {
        self.forget(now);
        if self.left() > 0 { None } else { self.attempts.front().map(|&oldest| oldest + WINDOW) }
    }

    /// How many attempts may be made at `now`.
    pub(crate) fn left_at(&mut self, now: Instant) -> u32 {
        self.forget(now);
        self.left()
    }

    fn left(&self) -> u32 {
        let used = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX);
        self.limit.get().saturating_sub(used)
    }

    /// An attempt leaves the window when it is a minute old, to the nanosecond: at that moment the next one is the
    /// first of a new minute.
    fn forget(&mut self, now: Instant) {
        while self.attempts.front().is_some_and(|&oldest| now.saturating_duration_since(oldest) >= WINDOW) {
            self.attempts.pop_front();
        }
    }
}
