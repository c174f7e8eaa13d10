//! Whether every run comes to an end, and the shortest one that breaks a law.
//!
//! The `eventually` of stateright would not say so: it forgets a run that comes back to where it was, or to where another run has been.
//! Here it is two things. No run goes in circles, which this file looks at; so each ends, whatever happens first. And where one ends,
//! nobody waits, which is a law like the others. Nothing else is assumed than that what can happen does at some time.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use stateright::Model;

use crate::fleet::{Action, Fleet, World};

#[derive(Debug)]
pub(crate) struct Runs {
    pub(crate) worlds: usize,
    pub(crate) longest: usize,
}

/// A world on the way of the run that is looked at.
struct Step {
    world: World,
    /// What came of it.
    left: Vec<Action>,
    /// The action that is looked at.
    taken: Option<Action>,
    /// The longest way from here to an end.
    longest: usize,
}

impl Step {
    fn new(fleet: &Fleet, world: World) -> Self {
        let mut left = Vec::new();
        fleet.actions(&world, &mut left);
        Self { world, left, taken: None, longest: 0 }
    }
}

/// Follows all runs, depth first. One that goes in circles is the error.
pub(crate) fn all(fleet: &Fleet) -> Result<Runs, Vec<Action>> {
    // How long it is from a world to the end; `None` while that is looked at.
    let mut lengths: HashMap<u64, Option<usize>> = HashMap::new();
    let mut way: Vec<Step> = fleet.init_states().into_iter().map(|world| Step::new(fleet, world)).collect();
    let first = fingerprint(&way[0].world);
    lengths.insert(first, None);
    while let Some(step) = way.last_mut() {
        let Some(action) = step.left.pop() else {
            let longest = step.longest;
            lengths.insert(fingerprint(&step.world), Some(longest));
            way.pop();
            if let Some(before) = way.last_mut() {
                before.longest = before.longest.max(longest + 1);
            }
            continue;
        };
        let next = fleet.next_state(&step.world, action).expect("every action leads somewhere").representative();
        step.taken = Some(action);
        match lengths.get(&fingerprint(&next)) {
            Some(Some(longest)) => step.longest = step.longest.max(longest + 1),
            Some(None) => return Err(way.into_iter().filter_map(|step| step.taken).collect()),
            None => {
                lengths.insert(fingerprint(&next), None);
                way.push(Step::new(fleet, next));
            }
        }
    }
    let longest = lengths[&first].expect("all was looked at");
    Ok(Runs { worlds: lengths.len(), longest })
}

/// The shortest run to a world where something does not hold. What stateright finds where processes are not told apart is long.
pub(crate) fn shortest(fleet: &Fleet, holds: fn(&Fleet, &World) -> bool) -> Option<Vec<Action>> {
    let mut seen = HashSet::new();
    let mut runs: VecDeque<(World, Vec<Action>)> =
        fleet.init_states().into_iter().map(|world| (world, Vec::new())).collect();
    while let Some((world, run)) = runs.pop_front() {
        if !holds(fleet, &world) {
            return Some(run);
        }
        let mut actions = Vec::new();
        fleet.actions(&world, &mut actions);
        for action in actions {
            let next = fleet.next_state(&world, action).expect("every action leads somewhere");
            if seen.insert(fingerprint(&next.representative())) {
                runs.push_back((next, run.iter().copied().chain([action]).collect()));
            }
        }
    }
    None
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
