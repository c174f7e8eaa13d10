//! The fleet of the model: what each process does, what may happen to it and to what it sends, and APSIS One.
//!
//! | here | there |
//! | --- | --- |
//! | [`Phase::Idle`] | no flight: `TokenCache` has a token that serves, or none and nobody who wants one |
//! | [`Phase::Loading`] | `Turn::begin`, with `Turn::open` for what it finds |
//! | [`Phase::Leasing`], [`Phase::Waiting`] | the loop of `Turn::permit`: at the store, and asleep between two looks |
//! | [`Phase::Asking`] | `Flight::attempt` |
//! | [`Phase::Publishing`], [`Phase::Releasing`] | `Turn::end` |
//! | `done_with`, `newer_than` | `fence` of `Token`, and the field of `Turn` that is called so |
//! | `attempts_left` | `Budget` |
//!
//! A process knows nothing of time but that it passes: it may be taken for dead, or find that it waited or was silent for too
//! long, at any moment. Where clocks that run alike and a network that is quick would not let that happen, it is bad luck, and of
//! that there is so much as [`Bounds`] say. Everything else happens in every order.
//!
//! An error ends a flight, and the process may want a token again. So a pause is not waited for here, nor is a failed attempt followed
//! by another one in the same flight: to come back is the same. That a flight has a time limit of its own is left out: nobody may
//! need it. So are entries that cannot be read or have expired, and the end of the minute in which attempts count.

use stateright::{Model, Property};

use crate::{
    laws::{self, Law, Laws},
    rules::Rules,
    store::{Entry, Leasing, Store},
};

pub(crate) const PROCESSES: usize = 3;

/// The owner of the leases of a process that crashed. The one that comes in its place draws another number.
const NOBODY: u8 = u8::MAX;

#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    pub(crate) bounds: Bounds,
    pub(crate) rules: Rules,
    /// Those that are looked at.
    pub(crate) laws: Laws,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { bounds: Bounds::default(), rules: Rules::default(), laws: Law::ALL.into_iter().collect() }
    }
}

/// How much happens. Within these bounds, all that can.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Events that should not happen, of any kind.
    pub(crate) bad_luck: u8,
    /// Of each process.
    pub(crate) flights: u8,
    /// Of each process in the minute that is looked at.
    pub(crate) attempts: u8,
    /// Of all of them, in leases.
    pub(crate) attempts_of_fleet: u8,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bad_luck: 2, flights: 2, attempts: 2, attempts_of_fleet: 4 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) processes: [Process; PROCESSES],
    /// Requests whose sender does not listen any more. They arrive at some time, in any order.
    pub(crate) strays: Vec<Request>,
    pub(crate) apsis: Apsis,
    pub(crate) luck: Luck,
    pub(crate) seen: Seen,
}

/// Tokens are numbered in the order in which they were issued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Apsis {
    pub(crate) issued: u8,
    /// Up to this one they are rejected.
    pub(crate) revoked: u8,
}

/// The bad luck there was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Luck {
    pub(crate) revocations: u8,
    pub(crate) emptied: u8,
    pub(crate) crashes: u8,
    pub(crate) other: u8,
}

/// What no process knows: it serves the laws alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) highest_fence: u8,
    /// A pause that was asked for is not over.
    pub(crate) is_pause_owed: bool,
    /// A lease was lost while its holder was at work, or an old answer said that there is one.
    pub(crate) was_overtaken: bool,
    pub(crate) broken: Laws,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) token: Option<Entry>,
    pub(crate) done_with: u8,
    pub(crate) newer_than: u8,
    pub(crate) phase: Phase,
    pub(crate) flights_left: u8,
    pub(crate) attempts_left: u8,
    /// An answer that was heard, and will be heard again.
    pub(crate) echo: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Idle,
    /// With what the store answered.
    Loading(Option<Entry>),
    Leasing {
        answer: Option<Leasing>,
        held: Option<u8>,
    },
    /// For the holder of this fence, seen once or more often.
    Waiting {
        held: u8,
        again: bool,
    },
    /// With the fence of the lease, or alone.
    Asking(Option<u8>),
    Publishing(Entry),
    Releasing {
        fence: u8,
        pauses: bool,
    },
}

/// An answer of the store to one that reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Answer {
    Loaded(Option<Entry>),
    Leased(Leasing),
}

/// A request that changes the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Request {
    Lease { owner: u8, newer_than: u8 },
    Publish(Entry),
    Release { fence: u8, pauses: bool },
}

/// The process is the first number of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `TokenCache::find_or_fly`: there is no token, or it was rejected.
    Fly(usize),
    /// `TokenCache::refresh`, although the token is good.
    Refresh(usize),
    /// `TokenCache::force`: another token is wanted, although this one is good.
    Force(usize),
    /// Its request arrives at the store, which answers.
    Arrive(usize),
    /// The same, and a copy will arrive later.
    ArriveTwice(usize),
    /// The answer comes back.
    Hear(usize),
    /// The same, and will come back once more.
    HearTwice(usize),
    /// An answer to an earlier request comes in place of the right one.
    HearAgain(usize),
    /// `Fleet::limited` gives up: the request or the answer is lost, or late.
    GiveUp(usize),
    /// `Turn::permit` looks again.
    LookAgain(usize),
    /// `Turn::permit` was told too often that the same lease is held.
    LosePatience(usize),
    /// APSIS One gives a token.
    Issue(usize),
    /// It answers 429.
    Limit(usize),
    /// It answers 503, or not at all.
    Fail(usize),
    /// Another one comes in its place, which knows nothing.
    Crash(usize),
    /// Of the strays, this one arrives.
    ArriveLate(usize),
    LeaseEnds,
    PauseEnds,
    Empty,
    Revoke,
}

impl Model for Fleet {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let process = self.new_process();
        vec![World {
            store: Store::default(),
            processes: [process; PROCESSES],
            strays: Vec::new(),
            apsis: Apsis::default(),
            luck: Luck::default(),
            seen: Seen::default(),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What is broken already needs no further look.
        if world.seen.broken.any() {
            return;
        }
        for p in 0..PROCESSES {
            self.actions_of(world, p, actions);
        }
        actions.extend((0..world.strays.len()).map(Action::ArriveLate));
        let unlucky = world.luck.total() < self.bounds.bad_luck;
        if let Some(lease) = world.store.lease
            && self.rules.leases_end
            && (unlucky || !world.is_at_work(lease.owner))
        {
            actions.push(Action::LeaseEnds);
        }
        if world.seen.is_pause_owed {
            actions.push(Action::PauseEnds);
        }
        if unlucky && world.store.last > 0 {
            actions.push(Action::Empty);
        }
        if unlucky && world.apsis.issued > world.apsis.revoked {
            actions.push(Action::Revoke);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        self.act(&mut world, action);
        world.strays.sort_unstable();
        let asking = world.processes.iter().filter(|process| matches!(process.phase, Phase::Asking(Some(_)))).count();
        if asking > 1 && !world.seen.was_overtaken {
            world.seen.broken.add(Law::Crowd, true);
        }
        world.seen.broken.keep(self.laws);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        laws::all()
    }
}

impl Fleet {
    fn new_process(&self) -> Process {
        Process {
            token: None,
            done_with: 0,
            newer_than: 0,
            phase: Phase::Idle,
            flights_left: self.bounds.flights,
            attempts_left: self.bounds.attempts,
            echo: None,
        }
    }

    fn actions_of(&self, world: &World, p: usize, actions: &mut Vec<Action>) {
        let process = &world.processes[p];
        let unlucky = world.luck.total() < self.bounds.bad_luck;
        let mut may = |is_possible: bool, action: fn(usize) -> Action| {
            if is_possible {
                actions.push(action(p));
            }
        };
        match &process.phase {
            Phase::Idle => {
                let serves = process.token.is_some_and(|token| token.token > world.apsis.revoked);
                may(process.flights_left > 0 && !serves, Action::Fly);
                may(process.flights_left > 0 && serves && unlucky, Action::Refresh);
                may(process.flights_left > 0 && serves && unlucky, Action::Force);
            }
            Phase::Loading(_) => {
                may(true, Action::Hear);
                may(unlucky && process.echo.is_none(), Action::HearTwice);
                may(matches!(process.echo, Some(Answer::Loaded(_))), Action::HearAgain);
                may(unlucky, Action::GiveUp);
            }
            Phase::Leasing { answer, .. } => {
                may(answer.is_none(), Action::Arrive);
                may(answer.is_none() && unlucky, Action::ArriveTwice);
                may(answer.is_some(), Action::Hear);
                may(answer.is_some() && unlucky && process.echo.is_none(), Action::HearTwice);
                may(matches!(process.echo, Some(Answer::Leased(_))), Action::HearAgain);
                may(unlucky, Action::GiveUp);
            }
            Phase::Waiting { held, again } => {
                // To hear the same a third time changes nothing.
                let is_held = world.store.lease.is_some_and(|lease| lease.fence == *held);
                may(!again || !is_held, Action::LookAgain);
                // A lease that ends does so before whoever waits for it loses patience, unless the clocks differ.
                may(*again && self.rules.patience_ends && (unlucky || !self.rules.leases_end), Action::LosePatience);
            }
            Phase::Asking(_) => {
                may(true, Action::Issue);
                may(unlucky, Action::Limit);
                may(unlucky, Action::Fail);
            }
            Phase::Publishing(_) | Phase::Releasing { .. } => {
                may(true, Action::Arrive);
                may(unlucky, Action::ArriveTwice);
                may(unlucky, Action::GiveUp);
            }
        }
        let has_memory = process.phase != Phase::Idle || process.token.is_some() || process.done_with > 0;
        may(unlucky && has_memory, Action::Crash);
    }

    fn act(&self, world: &mut World, action: Action) {
        match action {
            Action::Fly(p) => self.fly(world, p, false),
            Action::Refresh(p) => {
                world.luck.other += 1;
                self.fly(world, p, false);
            }
            Action::Force(p) => {
                world.luck.other += 1;
                self.fly(world, p, true);
            }
            Action::Arrive(p) => self.arrive(world, p),
            Action::ArriveTwice(p) => {
                world.luck.other += 1;
                world.strays.extend(world.processes[p].sent(p));
                self.arrive(world, p);
            }
            Action::Hear(p) => {
                let answer = world.processes[p].answered().expect("there is an answer");
                self.hear(world, p, answer);
            }
            Action::HearTwice(p) => {
                world.luck.other += 1;
                let answer = world.processes[p].answered().expect("there is an answer");
                world.processes[p].echo = Some(answer);
                self.hear(world, p, answer);
            }
            Action::HearAgain(p) => {
                world.strays.extend(world.processes[p].sent(p));
                let answer = world.processes[p].echo.take().expect("there is an echo");
                world.seen.was_overtaken |= matches!(answer, Answer::Leased(Leasing::Granted(_)));
                self.hear(world, p, answer);
            }
            Action::GiveUp(p) => {
                world.luck.other += 1;
                world.strays.extend(world.processes[p].sent(p));
                match world.processes[p].phase {
                    Phase::Loading(_) => world.processes[p].phase = Phase::Leasing { answer: None, held: None },
                    Phase::Leasing { .. } => world.processes[p].ask(None),
                    _ => world.processes[p].end(),
                }
            }
            Action::LookAgain(p) => {
                let Phase::Waiting { held, .. } = world.processes[p].phase else { unreachable!("it waits") };
                world.processes[p].phase = Phase::Leasing { answer: None, held: Some(held) };
            }
            Action::LosePatience(p) => {
                world.luck.other += u8::from(self.rules.leases_end);
                world.processes[p].ask(None);
            }
            Action::Issue(p) => issue(world, p),
            Action::Limit(p) => {
                world.luck.other += 1;
                world.processes[p].fail(true);
            }
            Action::Fail(p) => {
                world.luck.other += 1;
                world.processes[p].fail(false);
            }
            Action::Crash(p) => self.crash(world, p),
            Action::ArriveLate(stray) => {
                let request = world.strays.remove(stray);
                self.serve(world, request);
            }
            Action::LeaseEnds => {
                let is_early = world.is_at_work(world.store.lease.expect("there is a lease").owner);
                world.luck.other += u8::from(is_early);
                world.seen.was_overtaken |= is_early;
                world.store.lease_ends();
            }
            Action::PauseEnds => {
                world.seen.is_pause_owed = false;
                world.store.pause_ends();
            }
            Action::Empty => {
                world.luck.emptied += 1;
                world.seen.was_overtaken |= world.store.lease.is_some_and(|lease| world.is_at_work(lease.owner));
                world.seen.is_pause_owed = false;
                world.store.empty();
            }
            Action::Revoke => {
                world.luck.revocations += 1;
                world.apsis.revoked = world.apsis.issued;
            }
        }
    }

    /// A flight begins, and its request to load has arrived: as it changes nothing, it does not matter how long that took.
    fn fly(&self, world: &mut World, p: usize, is_forced: bool) {
        let (process, loaded) = (&mut world.processes[p], world.store.load());
        process.flights_left -= 1;
        // Where it is forced, what is there will not do.
        let there = loaded.map_or(0, |entry| if is_forced { entry.fence } else { 0 });
        process.newer_than = there;
        process.phase = Phase::Loading(loaded);
        self.hear_at_once(world, p);
    }

    /// The request of a process that listens.
    fn arrive(&self, world: &mut World, p: usize) {
        let leasing = world.processes[p].sent(p).and_then(|request| self.serve(world, request));
        match &mut world.processes[p].phase {
            Phase::Leasing { answer, .. } => {
                *answer = leasing;
                self.hear_at_once(world, p);
            }
            _ => world.processes[p].end(),
        }
    }

    /// Where nothing can happen to an answer, it need not be told from one that was heard: what the process does next may still
    /// come as late as it likes.
    fn hear_at_once(&self, world: &mut World, p: usize) {
        if world.luck.total() == self.bounds.bad_luck
            && world.processes[p].echo.is_none()
            && let Some(answer) = world.processes[p].answered()
        {
            self.hear(world, p, answer);
        }
    }

    /// What the store does with a request, whoever listens. Looks at it as the laws do.
    fn serve(&self, world: &mut World, request: Request) -> Option<Leasing> {
        let (before, seen) = (world.store.clone(), &mut world.seen);
        match request {
            Request::Lease { owner, newer_than } => {
                let leasing = world.store.lease(owner, newer_than, self.bounds.attempts_of_fleet, &self.rules);
                if let Leasing::Granted(fence) = leasing {
                    seen.broken.add(Law::Fence, fence <= seen.highest_fence);
                    seen.broken.add(Law::Lease, before.lease.is_some_and(|lease| lease.owner != owner));
                    seen.broken.add(Law::Pause, seen.is_pause_owed);
                    seen.highest_fence = seen.highest_fence.max(fence);
                }
                return Some(leasing);
            }
            Request::Publish(entry) => {
                let is_stored = world.store.publish(entry, &self.rules);
                // Stored again, it would seem younger than it is.
                let is_no_newer = before.entry.is_some_and(|before| entry.fence <= before.fence);
                seen.broken.add(Law::Entry, is_stored && (is_no_newer || entry.fence < before.last));
            }
            Request::Release { fence, pauses } => {
                seen.is_pause_owed |= pauses;
                world.store.release(fence, pauses, &self.rules);
            }
        }
        None
    }

    /// What a process does with an answer.
    fn hear(&self, world: &mut World, p: usize, answer: Answer) {
        let process = &mut world.processes[p];
        match answer {
            Answer::Loaded(entry) => match entry.filter(|entry| entry.fence > process.newer_than) {
                Some(entry) => self.adopt(world, p, entry),
                None => process.phase = Phase::Leasing { answer: None, held: None },
            },
            Answer::Leased(Leasing::Granted(fence)) => process.ask(Some(fence)),
            Answer::Leased(Leasing::Newer(entry)) => self.adopt(world, p, entry),
            Answer::Leased(Leasing::Held(fence)) => {
                let Phase::Leasing { held, .. } = process.phase else { unreachable!("it asked for a lease") };
                process.phase = Phase::Waiting { held: fence, again: held == Some(fence) };
            }
            Answer::Leased(Leasing::Paused) => process.land(),
        }
    }

    /// `Turn::open`, and `TokenCache::land` with what it brings.
    fn adopt(&self, world: &mut World, p: usize, entry: Entry) {
        let (process, seen) = (&mut world.processes[p], &mut world.seen);
        let before = process.token;
        process.newer_than = entry.fence;
        let was_taken = self.rules.is_done_with_what_it_saw && entry.fence == process.done_with;
        if was_taken || self.rules.minds_the_age && before.is_some_and(|before| before.token >= entry.token) {
            process.phase = Phase::Leasing { answer: None, held: None };
            return;
        }
        process.done_with = entry.fence;
        // By what is in it: a store that was emptied may be given a newer token under an older fence.
        seen.broken.add(Law::Adopted, before.is_some_and(|before| entry.token <= before.token));
        seen.broken.add(Law::Age, before.is_some_and(|before| entry.token < before.token));
        process.token = Some(entry);
        process.land();
    }

    fn crash(&self, world: &mut World, p: usize) {
        world.luck.crashes += 1;
        let owner = owner(p);
        world.strays.extend(world.processes[p].sent(p));
        for stray in &mut world.strays {
            if let Request::Lease { owner: by, .. } = stray
                && *by == owner
            {
                *by = NOBODY;
            }
        }
        if let Some(lease) = &mut world.store.lease
            && lease.owner == owner
        {
            lease.owner = NOBODY;
        }
        let flights_left = world.processes[p].flights_left.max(1);
        world.processes[p] = Process { flights_left, ..self.new_process() };
    }
}

fn issue(world: &mut World, p: usize) {
    let Phase::Asking(lease) = world.processes[p].phase else { unreachable!("it asks") };
    world.apsis.issued += 1;
    let (token, process) = (world.apsis.issued, &mut world.processes[p]);
    match lease {
        Some(fence) => {
            process.done_with = fence;
            process.phase = Phase::Publishing(Entry { fence, token });
        }
        None => {
            process.token = Some(Entry { fence: process.done_with, token });
            process.land();
        }
    }
    let Luck { revocations, emptied, crashes, other } = world.luck;
    // A store that was emptied costs at most one more token request, and so does a crash.
    let dear = other == 0 && world.apsis.issued > 1 + revocations + emptied + crashes;
    world.seen.broken.add(Law::Cost, dear);
}

fn owner(p: usize) -> u8 {
    u8::try_from(p).expect("they are few")
}

impl Process {
    /// `Flight::attempt` begins: not without room in the budget.
    fn ask(&mut self, lease: Option<u8>) {
        if self.attempts_left > 0 {
            self.attempts_left -= 1;
            self.phase = Phase::Asking(lease);
        } else if let Some(fence) = lease {
            self.phase = Phase::Releasing { fence, pauses: false };
        } else {
            self.land();
        }
    }

    /// `Flight::attempt` brought no token. It may try again in another flight.
    fn fail(&mut self, pauses: bool) {
        match self.phase {
            Phase::Asking(Some(fence)) => self.phase = Phase::Releasing { fence, pauses },
            _ => self.land(),
        }
    }

    /// `Turn::end` is over, heard of or not.
    fn end(&mut self) {
        if let Phase::Publishing(entry) = self.phase {
            self.token = Some(entry);
        }
        self.land();
    }

    /// `TokenCache::land`, with a token or an error.
    fn land(&mut self) {
        self.newer_than = 0;
        self.phase = Phase::Idle;
    }

    /// The request that is on its way and would change the store.
    fn sent(&self, p: usize) -> Option<Request> {
        match self.phase {
            Phase::Leasing { answer: None, .. } => {
                Some(Request::Lease { owner: owner(p), newer_than: self.newer_than })
            }
            Phase::Publishing(entry) => Some(Request::Publish(entry)),
            Phase::Releasing { fence, pauses } => Some(Request::Release { fence, pauses }),
            _ => None,
        }
    }

    fn answered(&self) -> Option<Answer> {
        match self.phase {
            Phase::Loading(answer) => Some(Answer::Loaded(answer)),
            Phase::Leasing { answer, .. } => answer.map(Answer::Leased),
            _ => None,
        }
    }

    /// Whether it works under a lease.
    fn is_at_work(&self) -> bool {
        let is_granted = |answer| matches!(answer, Some(Leasing::Granted(_)));
        match self.phase {
            Phase::Asking(lease) => lease.is_some(),
            Phase::Publishing(_) | Phase::Releasing { .. } => true,
            Phase::Leasing { answer, .. } => is_granted(answer),
            _ => false,
        }
    }

    pub(crate) fn wants_a_token(&self) -> bool {
        self.phase != Phase::Idle
    }
}

impl World {
    pub(crate) fn is_any(&self, phase: impl Fn(Phase) -> bool) -> bool {
        self.processes.iter().any(|process| phase(process.phase))
    }

    /// Whether this owner works under its lease, or under an earlier one that ended before.
    fn is_at_work(&self, owner: u8) -> bool {
        self.processes.get(usize::from(owner)).is_some_and(Process::is_at_work)
    }

    /// The same for all worlds in which the same happened to other processes.
    pub(crate) fn representative(&self) -> Self {
        let is_owner = |p: usize| self.store.lease.is_some_and(|lease| lease.owner == owner(p));
        let strays_of = |p: usize| {
            self.strays.iter().filter_map(move |stray| match stray {
                Request::Lease { owner: by, newer_than } if *by == owner(p) => Some(newer_than),
                _ => None,
            })
        };
        let mut order: [usize; PROCESSES] = std::array::from_fn(|p| p);
        order.sort_by(|&p, &q| {
            let by_process = self.processes[p].cmp(&self.processes[q]).then(is_owner(p).cmp(&is_owner(q)));
            by_process.then_with(|| strays_of(p).cmp(strays_of(q)))
        });
        let renamed = |by: &mut u8| {
            if let Some(p) = order.iter().position(|&p| owner(p) == *by) {
                *by = owner(p);
            }
        };
        let mut world = self.clone();
        world.processes = order.map(|p| self.processes[p]);
        world.store.lease.iter_mut().for_each(|lease| renamed(&mut lease.owner));
        for stray in &mut world.strays {
            if let Request::Lease { owner, .. } = stray {
                renamed(owner);
            }
        }
        world.strays.sort_unstable();
        world
    }
}

impl Luck {
    pub(crate) fn total(&self) -> u8 {
        self.revocations + self.emptied + self.crashes + self.other
    }
}
