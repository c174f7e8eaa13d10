//! What must never happen, and what must happen somewhere for the exploration to be worth its name.

use stateright::{Model, Property};

use crate::{
    fleet::{Answer, Fleet, Phase, Process, Request, World},
    store::Entry,
};

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Law {
    Fence,
    Lease,
    Entry,
    Adopted,
    Age,
    Pause,
    Crowd,
    Cost,
    Stuck,
}

impl Law {
    pub(crate) const ALL: [Self; 9] = [
        Self::Fence,
        Self::Lease,
        Self::Entry,
        Self::Adopted,
        Self::Age,
        Self::Pause,
        Self::Crowd,
        Self::Cost,
        Self::Stuck,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fence => "no fence is granted twice, nor a lower one after a higher",
            Self::Lease => "no lease is granted while another process has one",
            Self::Entry => "no entry is stored in place of a newer one, or twice",
            Self::Adopted => "no process adopts an entry that is no newer than what it had",
            Self::Age => "no process adopts a token that was issued before its own",
            Self::Pause => "no lease is granted before a pause is over",
            Self::Crowd => "one process at a time asks under a lease, unless that was lost under its hands",
            Self::Cost => "a revocation, an emptied store or a crash costs one more token request at most",
            Self::Stuck => "nobody waits when nothing can happen any more",
        }
    }

    /// Whether it was kept on the way to a world. The checker wants a function and no closure.
    pub(crate) fn is_kept(self) -> fn(&Fleet, &World) -> bool {
        match self {
            Self::Fence => |_, world| !world.seen.broken.has(Self::Fence),
            Self::Lease => |_, world| !world.seen.broken.has(Self::Lease),
            Self::Entry => |_, world| !world.seen.broken.has(Self::Entry),
            Self::Adopted => |_, world| !world.seen.broken.has(Self::Adopted),
            Self::Age => |_, world| !world.seen.broken.has(Self::Age),
            Self::Pause => |_, world| !world.seen.broken.has(Self::Pause),
            Self::Crowd => |_, world| !world.seen.broken.has(Self::Crowd),
            Self::Cost => |_, world| !world.seen.broken.has(Self::Cost),
            Self::Stuck => {
                |fleet, world| !world.processes.iter().any(Process::wants_a_token) || can_go_on(fleet, world)
            }
        }
    }
}

fn can_go_on(fleet: &Fleet, world: &World) -> bool {
    let mut actions = Vec::new();
    fleet.actions(world, &mut actions);
    !actions.is_empty() || world.seen.broken.any()
}

/// A set of laws: those that were broken on the way, or are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Laws(u16);

impl Laws {
    pub(crate) fn add(&mut self, law: Law, is_broken: bool) {
        if is_broken {
            self.0 |= 1 << law as u16;
        }
    }

    pub(crate) fn keep(&mut self, others: Self) {
        self.0 &= others.0;
    }

    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    fn has(self, law: Law) -> bool {
        self.0 & (1 << law as u16) != 0
    }
}

impl FromIterator<Law> for Laws {
    fn from_iter<T: IntoIterator<Item = Law>>(laws: T) -> Self {
        let mut all = Self::default();
        laws.into_iter().for_each(|law| all.add(law, true));
        all
    }
}

pub(crate) fn all() -> Vec<Property<Fleet>> {
    Law::ALL.map(|law| Property::always(law.name(), law.is_kept())).into_iter().chain(sights()).collect()
}

/// What has to happen somewhere, or little was tried.
fn sights() -> Vec<Property<Fleet>> {
    vec![
        Property::sometimes("another process asks when the holder of the lease crashed", |_, world: &World| {
            let is_only_luck = world.luck.crashes == 1 && world.luck.total() == 1;
            is_only_luck && world.apsis.issued == 0 && world.is_any(|phase| matches!(phase, Phase::Asking(Some(2..))))
        }),
        Property::sometimes("what is published was overtaken", |_, world: &World| {
            world.is_any(|phase| matches!(phase, Phase::Publishing(entry) if entry.fence < world.store.last))
        }),
        Property::sometimes("a process asks alone beside the holder of a lease", |_, world: &World| {
            world.is_any(|phase| matches!(phase, Phase::Asking(None)))
                && world.is_any(|phase| matches!(phase, Phase::Asking(Some(_))))
        }),
        Property::sometimes("a store that was emptied has an entry again, and grants a lease", |_, world: &World| {
            world.luck.emptied > 0 && world.store.entry.is_some() && world.store.lease.is_some()
        }),
        Property::sometimes("an old answer may be heard in place of a newer one", |_, world: &World| {
            world.processes.iter().any(|process| match (process.phase, process.echo) {
                (Phase::Loading(now), Some(Answer::Loaded(before))) => now != before,
                (Phase::Leasing { answer: Some(now), .. }, Some(Answer::Leased(before))) => now != before,
                _ => false,
            })
        }),
        Property::sometimes(
            "a token is on its way to the store again when there is a newer one",
            |_, world: &World| {
                let is_older = |entry: &Entry| world.store.entry.is_some_and(|stored| entry.fence < stored.fence);
                world.strays.iter().any(|stray| matches!(stray, Request::Publish(entry) if is_older(entry)))
            },
        ),
        Property::sometimes("all have the newest of many tokens", |_, world: &World| {
            let has_newest = |process: &Process| process.token.is_some_and(|token| token.token == world.apsis.issued);
            world.apsis.issued > 1 && world.processes.iter().all(has_newest)
        }),
        Property::sometimes("a flight ends with an error", |fleet: &Fleet, world: &World| {
            let failed = |process: &Process| {
                process.phase == Phase::Idle && process.token.is_none() && process.flights_left < fleet.bounds.flights
            };
            world.luck.crashes == 0 && world.processes.iter().any(failed)
        }),
        Property::sometimes("the attempts of the fleet are used up", |fleet: &Fleet, world: &World| {
            world.store.attempts == fleet.bounds.attempts_of_fleet
        }),
    ]
}
