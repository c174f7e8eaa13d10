//! When a rejection may start a renewal: the two ladders of renewals that did not help, and the evidence that ends them.
//!
//! A 403 of the gateway may mean a dead token or a missing right, and one answer does not tell them apart. So each
//! renewal whose token is rejected too makes the next one wait longer. Over many answers they do differ: a missing
//! right is refused here and there, a dead token everywhere.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::Rejection;

/// How long to wait after the first, second, … renewal that did not help. The last step repeats.
const UNAUTHORIZED: &[Duration] = &[Duration::from_secs(15), Duration::from_secs(30), Duration::from_secs(60)];
const FORBIDDEN: &[Duration] = &[
    Duration::from_secs(60),
    Duration::from_secs(2 * 60),
    Duration::from_secs(4 * 60),
    Duration::from_secs(8 * 60),
    Duration::from_secs(15 * 60),
];

/// So many rejections in a row, of a token that was accepted before, say that it died.
const TELLING: u32 = 3;

#[derive(Debug)]
pub(crate) struct Ladders {
    unauthorized: Ladder,
    forbidden: Ladder,
}

impl Default for Ladders {
    fn default() -> Self {
        Self { unauthorized: Ladder::new(UNAUTHORIZED), forbidden: Ladder::new(FORBIDDEN) }
    }
}

impl Ladders {
    pub(crate) fn of(&mut self, kind: Rejection) -> &mut Ladder {
        match kind {
            Rejection::Unauthorized => &mut self.unauthorized,
            Rejection::Forbidden => &mut self.forbidden,
        }
    }
}

/// The renewals for one kind of rejection.
#[derive(Debug)]
pub(crate) struct Ladder {
    steps: &'static [Duration],
    /// Renewals in a row that did not help.
    useless: usize,
    cooling_until: Option<Instant>,
    /// The newest generation that a renewal brought, while it is not known whether it helped, and since when.
    on_trial: Option<(u64, Instant)>,
    /// The newest generation of which it is known. Each climbs the ladder once, however many replays it fails.
    judged: u64,
    telling: u32,
    left_on_evidence: bool,
    /// The generation that was spared a trial since a renewal helped last.
    spared: Option<u64>,
}

impl Ladder {
    fn new(steps: &'static [Duration]) -> Self {
        Self {
            steps,
            useless: 0,
            cooling_until: None,
            on_trial: None,
            judged: 0,
            telling: TELLING,
            left_on_evidence: false,
            spared: None,
        }
    }

    /// Until when no rejection starts a renewal.
    pub(crate) fn cooling_at(&self, now: Instant) -> Option<Instant> {
        self.cooling_until.filter(|&until| now < until)
    }

    /// A renewal brought this generation; what the API says to it tells whether it helped.
    ///
    /// One that another process had asked for is spared once: it may have died before it was adopted, and that says nothing of what a
    /// token request brings.
    pub(crate) fn try_out(&mut self, generation: u64, is_adopted: bool, now: Instant) {
        if is_adopted && *self.spared.get_or_insert(generation) == generation {
            return;
        }
        let known = self.on_trial.map_or(self.judged, |(on_trial, _)| on_trial.max(self.judged));
        if generation > known {
            self.on_trial = Some((generation, now));
        }
    }

    /// The API rejected this generation, so many times in a row since it accepted it. Whether that is a renewal that did
    /// not help.
    pub(crate) fn rejected(&mut self, generation: u64, in_a_row: u32, now: Instant) -> bool {
        let climbs = self.is_on_trial(generation, now);
        if climbs {
            self.judged = generation;
            self.did_not_help(now);
        } else {
            self.weigh(in_a_row);
        }
        climbs
    }

    /// A renewal whose token was rejected too, or that brought the rejected token again.
    pub(crate) fn did_not_help(&mut self, now: Instant) {
        if self.left_on_evidence {
            // On a client that often calls what it may not, rows of rejections mean little. The ladder has an end, so a
            // token that is dead indeed is found out anyway.
            self.telling = self.telling.saturating_mul(2);
        }
        let step = self.useless.min(self.steps.len() - 1);
        self.cooling_until = Some(now + self.steps[step]);
        self.useless += 1;
        self.on_trial = None;
        self.left_on_evidence = false;
    }

    /// A replay with this generation was not rejected.
    pub(crate) fn did_help(&mut self, generation: u64) {
        if generation >= self.judged {
            // A newer one may be on trial already.
            let on_trial = self.on_trial.filter(|&(newer, _)| newer > generation);
            *self = Self { judged: generation, on_trial, ..Self::new(self.steps) };
        }
    }

    /// A replay may have told nothing: it was dropped, or failed on its way. So a trial lapses after the longest pause,
    /// and a rejection long after says that the token died, not that it never helped.
    fn is_on_trial(&self, generation: u64, now: Instant) -> bool {
        let longest = self.steps.last().copied().unwrap_or_default();
        self.on_trial
            .is_some_and(|(on_trial, since)| on_trial == generation && now.saturating_duration_since(since) < longest)
    }

    /// Enough rejections in a row, after the token was accepted, end the cooling.
    fn weigh(&mut self, rejections_in_a_row: u32) {
        if self.cooling_until.is_some() && rejections_in_a_row >= self.telling {
            self.useless = 0;
            self.cooling_until = None;
            self.left_on_evidence = true;
        }
    }
}

/// What the API said lately to the current token: whether it was accepted, and how often rejected in a row since.
///
/// One word, so that a success costs a load and a compare, and no lock: 47 bits of generation, one for "accepted", 16
/// of rejections. An update that another thread's overtakes is dropped: one more or less in a row is of no consequence.
#[derive(Debug, Default)]
pub(crate) struct Evidence(AtomicU64);

const REJECTIONS: u64 = 0xFFFF;
const ACCEPTED: u64 = 0x1_0000;
const GENERATION: u32 = 17;

impl Evidence {
    /// Forgets all and listens to what is said of this generation.
    pub(crate) fn begin(&self, generation: u64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| {
            (seen >> GENERATION <= generation).then_some(generation << GENERATION)
        });
    }

    #[inline]
    pub(crate) fn accepted(&self, generation: u64) {
        let seen = self.0.load(Ordering::Relaxed);
        let accepted = (generation << GENERATION) | ACCEPTED;
        if seen != accepted {
            self.take_note(seen, accepted);
        }
    }

    #[cold]
    fn take_note(&self, seen: u64, accepted: u64) {
        if seen >> GENERATION == accepted >> GENERATION {
            self.update(seen, accepted);
        }
    }

    /// How many rejections in a row there were since the token was last accepted; none if it never was.
    pub(crate) fn rejected(&self, generation: u64) -> u32 {
        let seen = self.0.load(Ordering::Relaxed);
        if seen >> GENERATION != generation {
            return 0;
        }
        let rejections = (seen & REJECTIONS) + u64::from(seen & REJECTIONS < REJECTIONS);
        self.update(seen, (seen & !REJECTIONS) | rejections);
        if seen & ACCEPTED == 0 { 0 } else { u32::try_from(rejections).unwrap_or(u32::MAX) }
    }

    /// Not a store: that could bring an older generation back, and nothing would be heard of the newer one.
    fn update(&self, seen: u64, new: u64) {
        let _ = self.0.compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_of_the_generation_it_listens_to() {
        let evidence = Evidence::default();
        evidence.begin(1);
        evidence.accepted(1);
        assert_eq!([evidence.rejected(1), evidence.rejected(1)], [1, 2]);

        evidence.begin(2);
        evidence.accepted(1);
        assert_eq!(evidence.rejected(1), 0, "an older one says nothing");
        assert_eq!(evidence.rejected(2), 0, "a newer one was not accepted yet");
        evidence.accepted(2);
        assert_eq!(evidence.rejected(1), 0);
        assert_eq!([evidence.rejected(2), evidence.rejected(2)], [1, 2], "the older one's do not count");
        evidence.accepted(3);
        assert_eq!(evidence.rejected(3), 0, "one that is not heard of yet says nothing");
        assert_eq!(evidence.rejected(2), 3);
    }

    #[test]
    fn a_late_success_of_an_older_generation_leaves_the_newer_one_on_trial() {
        let now = Instant::now();
        let mut ladder = Ladder::new(FORBIDDEN);
        ladder.try_out(2, false, now);
        ladder.try_out(3, false, now);
        ladder.did_help(2);
        assert!(ladder.rejected(3, 0, now), "it climbs");
    }

    #[test]
    fn an_acceptance_ends_the_row_of_rejections() {
        let evidence = Evidence::default();
        evidence.begin(1);
        assert_eq!([evidence.rejected(1), evidence.rejected(1)], [0, 0], "never accepted");
        for _ in 0..2 {
            evidence.accepted(1);
            assert_eq!([evidence.rejected(1), evidence.rejected(1), evidence.rejected(1)], [1, 2, 3]);
        }
    }

    #[test]
    fn evidence_never_goes_back_to_an_older_generation() {
        let evidence = Evidence::default();
        evidence.begin(2);
        evidence.accepted(2);
        evidence.begin(1);
        assert_eq!((evidence.rejected(1), evidence.rejected(2)), (0, 1), "a replay of the older one failed late");

        evidence.begin(2);
        assert_eq!(evidence.rejected(2), 0, "the same one begins anew");
    }

    #[test]
    fn an_update_that_was_overtaken_is_dropped() {
        let evidence = Evidence::default();
        evidence.begin(1);
        let seen = evidence.0.load(Ordering::Relaxed);
        evidence.begin(2);
        evidence.accepted(2);
        evidence.update(seen, seen | ACCEPTED);
        assert_eq!((evidence.rejected(1), evidence.rejected(2)), (0, 1));
    }

    #[test]
    fn a_row_of_rejections_has_a_longest_that_accepts_nothing() {
        let evidence = Evidence::default();
        evidence.begin(1);
        for _ in 0..=2 * REJECTIONS {
            assert_eq!(evidence.rejected(1), 0);
        }
        evidence.accepted(1);
        for row in 1..=REJECTIONS {
            assert_eq!(u64::from(evidence.rejected(1)), row);
        }
        assert_eq!(u64::from(evidence.rejected(1)), REJECTIONS);
    }

    #[test]
    fn a_ladder_is_left_by_a_replay_that_is_as_new_as_what_is_known() {
        let now = Instant::now();
        for (generation, leaves) in [(1, false), (2, true), (3, true)] {
            let mut ladder = Ladder::new(UNAUTHORIZED);
            ladder.try_out(2, false, now);
            assert!(ladder.rejected(2, 0, now));
            ladder.did_help(generation);
            assert_eq!(ladder.cooling_at(now).is_none(), leaves, "a replay with generation {generation}");
        }
    }

    #[test]
    fn a_generation_that_helped_is_not_put_to_the_test_again() {
        let now = Instant::now();
        let mut ladder = Ladder::new(UNAUTHORIZED);
        ladder.try_out(2, false, now);
        ladder.did_help(2);
        // Another of the waiters comes late.
        ladder.try_out(2, false, now);
        assert!(!ladder.rejected(2, 1, now));
        assert_eq!(ladder.cooling_at(now), None);
    }
}
