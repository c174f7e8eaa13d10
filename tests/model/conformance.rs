//! The store of the model and the one in memory answer alike, whatever they are asked and when.

use std::time::Duration;

use apsis_auth::store::{self, LeaseRequest, Pause, TokenStore};
use bytes::Bytes;
use tokio::time::{Instant, advance};

use crate::{
    memory::Memory,
    rules::Rules,
    store::{Entry, Leasing, Store},
};

const NAME: &str = "name";
const LASTS: Duration = Duration::from_secs(17);
const PAUSE: Duration = Duration::from_secs(7);
const MINUTE: Duration = Duration::from_secs(60);
const PER_MINUTE: u8 = 6;

#[tokio::test(start_paused = true)]
async fn the_store_of_the_model_answers_as_the_one_in_memory() {
    let mut granted = 0;
    for seed in 0..3_000 {
        let mut both = Both::default();
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..40 {
            both.step(&mut random).await;
        }
        granted += u64::from(both.highest);
    }
    assert!(granted > 6_000, "{granted} leases");
}

#[derive(Default)]
struct Both {
    memory: Memory,
    model: Store,
    rules: Rules,
    lease_ends: Option<Instant>,
    pause_ends: Option<Instant>,
    tokens: u8,
    highest: u8,
    /// Less than a minute in all, as in the model, so that all attempts count to the end.
    waited: Duration,
    did: Vec<String>,
}

impl Both {
    async fn step(&mut self, random: &mut fastrand::Rng) {
        // Of the last few leases, and of none.
        let fence = self.highest.saturating_sub(random.u8(0..3));
        match random.u8(0..20) {
            0..2 => self.load().await,
            2..10 => self.lease(random.u8(0..3), fence).await,
            10..14 => self.publish(fence).await,
            14..17 => self.release(fence, random.bool()).await,
            17..19 => self.wait(Duration::from_millis(random.u64(100..9_000))).await,
            _ if random.u8(0..4) == 0 => self.empty(),
            _ => {}
        }
    }

    async fn load(&mut self) {
        self.did.push("load".to_owned());
        let entry = self.memory.load(NAME).await.unwrap();
        assert_eq!(entry.as_ref().map(read), self.model.load(), "{:#?}", self.did);
    }

    async fn lease(&mut self, owner: u8, newer_than: u8) {
        self.did.push(format!("lease {owner} {newer_than}"));
        let request = LeaseRequest::new(owner.into())
            .with_newer_than(newer_than.into())
            .with_lasts(LASTS)
            .with_attempts_per_minute(PER_MINUTE.into());
        let leasing = match self.memory.lease(NAME, &request).await.unwrap() {
            store::Leasing::Granted(lease) => Leasing::Granted(small(lease.fence())),
            store::Leasing::Newer(entry) => Leasing::Newer(read(&entry)),
            store::Leasing::Held { fence, left } => {
                assert_eq!(Some(Instant::now() + left), self.lease_ends, "{:#?}", self.did);
                Leasing::Held(small(fence))
            }
            store::Leasing::Paused(_) => Leasing::Paused,
            other => panic!("{other:?}"),
        };
        assert_eq!(leasing, self.model.lease(owner, newer_than, PER_MINUTE, &self.rules), "{:#?}", self.did);
        if let Leasing::Granted(fence) = leasing {
            self.highest = fence;
            self.lease_ends = Some(Instant::now() + LASTS);
        }
    }

    async fn publish(&mut self, fence: u8) {
        self.tokens += 1;
        let entry = Entry { fence, token: self.tokens };
        self.did.push(format!("publish {entry:?}"));
        let (lease, sealed) = (store::Lease::new(fence.into()), Bytes::copy_from_slice(&[entry.token]));
        self.memory.publish(NAME, lease, sealed, Duration::from_secs(3600)).await.unwrap();
        self.model.publish(entry, &self.rules);
    }

    async fn release(&mut self, fence: u8, pauses: bool) {
        self.did.push(format!("release {fence} {pauses}"));
        let pause = if pauses { PAUSE } else { Duration::ZERO };
        self.memory.release(NAME, store::Lease::new(fence.into()), Pause::new(pause, None)).await.unwrap();
        self.model.release(fence, pauses, &self.rules);
        if pauses {
            self.pause_ends = Some(Instant::now() + PAUSE);
        }
    }

    async fn wait(&mut self, time: Duration) {
        if self.waited + time >= MINUTE {
            return;
        }
        self.waited += time;
        self.did.push(format!("wait {time:?}"));
        advance(time).await;
        let is_over = |end: &mut Option<Instant>| end.take_if(|end| *end <= Instant::now()).is_some();
        if is_over(&mut self.lease_ends) {
            self.model.lease_ends();
        }
        if is_over(&mut self.pause_ends) {
            self.model.pause_ends();
        }
    }

    fn empty(&mut self) {
        self.did.push("empty".to_owned());
        self.memory.empty();
        self.model.empty();
        (self.lease_ends, self.pause_ends) = (None, None);
    }
}

fn read(entry: &store::Entry) -> Entry {
    Entry { fence: small(entry.fence()), token: entry.sealed()[0] }
}

fn small(fence: u64) -> u8 {
    u8::try_from(fence).unwrap()
}
