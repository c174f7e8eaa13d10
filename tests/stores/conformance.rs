//! A folder and a server answer as the store in memory does, whatever they are asked: with which the model is compared, in turn.

use std::{collections::HashMap, time::Duration};

use apsis_auth::store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore};
use bytes::Bytes;
use http::StatusCode;

use crate::{file::Folder, memory::Memory, server::Server};

/// Nothing ends meanwhile.
const LASTS: Duration = Duration::from_secs(200);

#[tokio::test]
async fn a_folder_answers_as_the_store_in_memory() {
    answers_alike(&Folder::new().store(), 60).await;
}

#[tokio::test]
async fn a_server_answers_as_the_store_in_memory() {
    answers_alike(&Server::start().store(), 150).await;
}

async fn answers_alike<S: TokenStore>(store: &S, rounds: u64) {
    let mut seen = Seen::default();
    for seed in 0..rounds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut both = Both::new(store, seed, &mut seen);
        for _ in 0..40 {
            both.step(&mut random).await;
        }
    }
    // Each of the answers came up.
    assert!(seen.granted > 3 * rounds && seen.newer > rounds && seen.held > rounds && seen.paused > rounds, "{seen:?}");
}

#[derive(Debug, Default)]
struct Seen {
    granted: u64,
    newer: u64,
    held: u64,
    paused: u64,
}

struct Both<'a, S> {
    memory: Memory,
    store: &'a S,
    name: String,
    /// The same leases, by their fences: in memory, and in the store.
    fences: Vec<(u64, u64)>,
    /// By its place, a lease that was granted and is not over.
    leases: HashMap<usize, Lease>,
    has_strange: bool,
    published: u8,
    did: Vec<String>,
    seen: &'a mut Seen,
}

impl<'a, S: TokenStore> Both<'a, S> {
    fn new(store: &'a S, number: u64, seen: &'a mut Seen) -> Self {
        let (name, did) = (format!("alike-{number}"), Vec::new());
        Self {
            memory: Memory::default(),
            store,
            name,
            fences: vec![(0, 0)],
            leases: HashMap::new(),
            has_strange: false,
            published: 0,
            did,
            seen,
        }
    }

    async fn step(&mut self, random: &mut fastrand::Rng) {
        let place = self.fences.len() - 1 - random.usize(..self.fences.len().min(3));
        match random.u8(..20) {
            0..3 => self.load().await,
            3..12 => self.lease(random.u64(..3), place, random.u32(2..30)).await,
            12..16 if place > 0 => self.publish(place).await,
            16..19 if place > 0 => self.release(place, random.u8(..12)).await,
            12..19 => {}
            _ if self.has_strange || self.fences.len() == 1 => {}
            // One that no lease has, and that none will have soon.
            _ => {
                self.has_strange = true;
                let (one, other) = self.fences.last().copied().unwrap();
                self.fences.push((one + 1_000, other + 1_000_000));
            }
        }
    }

    async fn load(&mut self) {
        self.did.push("load".to_owned());
        let (one, other) = (self.memory.load(&self.name).await.unwrap(), self.store.load(&self.name).await.unwrap());
        self.are_alike(one.as_ref(), other.as_ref());
    }

    fn are_alike(&self, one: Option<&Entry>, other: Option<&Entry>) {
        let one = one.map(|entry| (self.place_in_memory(entry.fence()), entry.sealed()));
        let other = other.map(|entry| (self.place_in_store(entry.fence()), entry.sealed()));
        assert_eq!(one, other, "{}: {:#?}", self.name, self.did);
    }

    async fn lease(&mut self, owner: u64, newer_than: usize, per_minute: u32) {
        self.did.push(format!("lease by {owner}, newer than {newer_than}, {per_minute} a minute"));
        let request = |newer_than| {
            LeaseRequest::new(owner).with_newer_than(newer_than).with_lasts(LASTS).with_attempts_per_minute(per_minute)
        };
        let (in_memory, in_store) = self.fences[newer_than];
        let one = self.memory.lease(&self.name, &request(in_memory)).await.unwrap();
        let other = self.store.lease(&self.name, &request(in_store)).await.unwrap();
        match (one, other) {
            (Leasing::Granted(one), Leasing::Granted(other)) => {
                self.seen.granted += 1;
                let place = self.fences.len();
                self.fences.push((one.fence(), other.fence()));
                self.leases.insert(place, other);
            }
            (Leasing::Newer(one), Leasing::Newer(other)) => {
                self.seen.newer += 1;
                self.are_alike(Some(&one), Some(&other));
            }
            (Leasing::Held { fence: one, .. }, Leasing::Held { fence: other, .. }) => {
                self.seen.held += 1;
                assert_eq!(self.place_in_memory(one), self.place_in_store(other), "{}: {:#?}", self.name, self.did);
            }
            (Leasing::Paused(one), Leasing::Paused(other)) => {
                self.seen.paused += 1;
                let apart = one.lasts().abs_diff(other.lasts());
                assert!(
                    one.refused_with() == other.refused_with() && apart < Duration::from_secs(10),
                    "{one:?} {other:?} {}: {:#?}",
                    self.name,
                    self.did
                );
            }
            (one, other) => panic!("{one:?}, {other:?} in {}: {:#?}", self.name, self.did),
        }
    }

    async fn publish(&mut self, place: usize) {
        self.published += 1;
        self.did.push(format!("publish {} under {place}", self.published));
        let (in_memory, in_store) = self.fences[place];
        let sealed = Bytes::copy_from_slice(&[self.published]);
        self.memory.publish(&self.name, Lease::new(in_memory), sealed.clone(), LASTS).await.unwrap();
        let lease = self.lease_at(place, in_store);
        self.store.publish(&self.name, lease, sealed, LASTS).await.unwrap();
    }

    async fn release(&mut self, place: usize, pause: u8) {
        let pause = match pause {
            0 => Pause::new(Duration::from_secs(300), Some(StatusCode::FORBIDDEN)),
            1 => Pause::new(Duration::from_secs(100), None),
            _ => Pause::new(Duration::ZERO, None),
        };
        self.did.push(format!("release {place}, {pause:?}"));
        let (in_memory, in_store) = self.fences[place];
        self.memory.release(&self.name, Lease::new(in_memory), pause).await.unwrap();
        let lease = self.lease_at(place, in_store);
        self.store.release(&self.name, lease, pause).await.unwrap();
    }

    /// What it was granted, the first time.
    fn lease_at(&mut self, place: usize, fence: u64) -> Lease {
        self.leases.remove(&place).unwrap_or_else(|| Lease::new(fence))
    }

    fn place_in_memory(&self, fence: u64) -> Option<usize> {
        self.fences.iter().position(|&(one, _)| one == fence)
    }

    fn place_in_store(&self, fence: u64) -> Option<usize> {
        self.fences.iter().position(|&(_, other)| other == fence)
    }
}
