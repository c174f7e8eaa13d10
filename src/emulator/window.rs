//! A sliding window: how many in the last so many seconds.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

pub(super) struct Window {
    length: Duration,
    entries: VecDeque<Instant>,
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, entries: VecDeque::new() }
    }

    pub(super) fn has_room(&mut self, now: Instant, limit: u32) -> bool {
        self.forget_before(now);
        u32::try_from(self.entries.len()).is_ok_and(|entries| entries < limit)
    }

    pub(super) fn enter(&mut self, now: Instant) {
        self.entries.push_back(now);
    }

    fn forget_before(&mut self, now: Instant) {
        let length = self.length;
        let is_past = |entry: &Instant| now.saturating_duration_since(*entry) >= length;
        while self.entries.front().is_some_and(is_past) {
            self.entries.pop_front();
        }
    }
}
