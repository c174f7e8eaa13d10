//! At most N token requests in any 60 s, whatever asks for them.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use tokio::time::Instant;

/// APSIS One limits token requests per minute (developer.apsis.com/reference/limits); whether its window slides is
/// not known, so this one does.
const WINDOW: Duration = Duration::from_secs(60);

/// Attempts of the last minute. An attempt counts from its start until a minute after its end: somewhere between the
/// two, after names were looked up and connections made, the server counted it.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: NonZeroU32,
    /// When the attempts ended, oldest first; never more of them than the limit.
    ended: VecDeque<Instant>,
    /// There is never more than one, as there is never more than one flight.
    is_running: bool,
}

impl Budget {
    pub(crate) fn new(limit: NonZeroU32) -> Self {
        Self { limit, ended: VecDeque::new(), is_running: false }
    }

    /// Starts an attempt. Whether there was room for it.
    pub(crate) fn start(&mut self, now: Instant) -> bool {
        let room = self.left_at(now) > 0;
        self.is_running |= room;
        room
    }

    /// Ends the attempt that is running, if one is.
    pub(crate) fn end(&mut self, now: Instant) {
        if self.is_running {
            self.is_running = false;
            self.ended.push_back(now);
        }
    }

    /// When there is room for an attempt, now that none is running; `None` where there is now.
    pub(crate) fn free_at(&mut self, now: Instant) -> Option<Instant> {
        let full = self.left_at(now) == 0;
        self.ended.front().filter(|_| full).map(|&oldest| oldest + WINDOW)
    }

    /// How many attempts may be made at `now`.
    pub(crate) fn left_at(&mut self, now: Instant) -> u32 {
        while self.ended.front().is_some_and(|&oldest| now.saturating_duration_since(oldest) >= WINDOW) {
            self.ended.pop_front();
        }
        let used = self.ended.len() + usize::from(self.is_running);
        self.limit.get().saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }
}
