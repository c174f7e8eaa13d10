//! The store of the model: what `TokenStore` promises in `src/store.rs`, with numbers for tokens and without durations. That a lease or
//! a pause ends is an event, which may come at any time: so the clocks may differ as they like.

use crate::rules::Rules;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    /// The fence that was granted or published last.
    pub(crate) last: u8,
    pub(crate) entry: Option<Entry>,
    pub(crate) lease: Option<Lease>,
    pub(crate) is_paused: bool,
    /// Those of the last minute. No exploration takes longer than that.
    pub(crate) attempts: u8,
    /// What the store's clock says at least. It is looked at when the memory was lost, and has gone on by then.
    pub(crate) clock: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) fence: u8,
    pub(crate) token: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub(crate) owner: u8,
    pub(crate) fence: u8,
}

/// `apsis_auth::store::Leasing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Leasing {
    Granted(u8),
    Newer(Entry),
    Held(u8),
    Paused,
}

impl Store {
    /// `TokenStore::load`.
    pub(crate) fn load(&self) -> Option<Entry> {
        self.entry
    }

    /// `TokenStore::lease`: the first of its four cases that holds.
    pub(crate) fn lease(&mut self, owner: u8, newer_than: u8, attempts_per_minute: u8, rules: &Rules) -> Leasing {
        if let Some(entry) = self.entry.filter(|entry| entry.fence > newer_than) {
            return Leasing::Newer(entry);
        }
        if let Some(lease) = self.lease.filter(|lease| rules.leases_exclude && lease.owner != owner) {
            return Leasing::Held(lease.fence);
        }
        if self.is_paused || self.attempts >= attempts_per_minute {
            return Leasing::Paused;
        }
        let from_clock = if rules.fences_come_from_a_clock { self.clock } else { 0 };
        self.last = from_clock.max(self.last + 1);
        self.lease = Some(Lease { owner, fence: self.last });
        self.attempts += 1;
        Leasing::Granted(self.last)
    }

    /// `TokenStore::publish`. Whether it was stored.
    pub(crate) fn publish(&mut self, entry: Entry, rules: &Rules) -> bool {
        self.end(entry.fence);
        if rules.publishing_minds_the_fence && entry.fence < self.last {
            return false;
        }
        if rules.a_fence_publishes_once && self.entry.is_some_and(|before| before.fence == entry.fence) {
            return false;
        }
        self.last = self.last.max(entry.fence);
        self.entry = Some(entry);
        true
    }

    /// `TokenStore::release`.
    pub(crate) fn release(&mut self, fence: u8, pauses: bool, rules: &Rules) {
        self.end(fence);
        self.is_paused = pauses || rules.pauses_are_kept && self.is_paused;
    }

    fn end(&mut self, fence: u8) {
        self.lease = self.lease.filter(|lease| lease.fence != fence);
    }

    /// The end of the lease has come, by the store's clock.
    pub(crate) fn lease_ends(&mut self) {
        self.lease = None;
    }

    /// The end of the pause has come.
    pub(crate) fn pause_ends(&mut self) {
        self.is_paused = false;
    }

    /// Everything is forgotten. The clock goes on: a token request takes longer than the millisecond in which it counts.
    pub(crate) fn empty(&mut self) {
        *self = Self { clock: self.clock.max(self.last + 1), ..Self::default() };
    }
}
