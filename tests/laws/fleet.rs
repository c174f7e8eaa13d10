//! Processes that share a token through a store. A process is a layer of its own.

use std::{
    future::Ready,
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use apsis_auth::{
    ApsisAuth, ApsisAuthLayer, AuthError, AuthOutcome, ClientCredentials,
    emulator::{Answer, Dialect, Emulator},
    store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore},
};
use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, advance, sleep};
use tower::{BoxError, Layer};
use tracing::Level;

use crate::{
    many_callers::Attempts,
    memory::{Account, Condition, Memory, Switch},
    secrets::Journal,
    support::{BASE, World, all, get, keyspaces, limited, once, send},
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A process that shares its token through this store, and draws by its number.
fn process(world: &World, store: &Memory, number: usize) -> ApsisAuthLayer {
    let draws = Mutex::new(fastrand::Rng::with_seed(number as u64));
    world.builder().random(move || draws.lock().unwrap().f64()).store(store.clone()).build().unwrap()
}

fn fleet(world: &World, store: &Memory, processes: usize) -> Vec<ApsisAuth<Emulator>> {
    (0..processes).map(|number| process(world, store, number).layer(world.apsis.clone())).collect()
}

async fn statuses(fleet: &[ApsisAuth<Emulator>]) -> Vec<StatusCode> {
    all(fleet.len(), |number| {
        let client = fleet[number].clone();
        async move { send(&client, keyspaces()).await.unwrap().status() }
    })
    .await
}

// One token for all.

#[tokio::test(start_paused = true)]
async fn fifty_cold_processes_make_one_token_request() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_token_delay(SECOND);
        let started = Instant::now();

        assert_eq!(statuses(&fleet(&world, &store, 50)).await, [StatusCode::OK; 50]);

        assert_eq!(world.token_requests(), 1);
        assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn revoked_tokens_cost_the_fleet_one_more_request_and_no_caller_sees_a_rejection() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 50);
        statuses(&fleet).await;
        for round in 2..6 {
            advance(MINUTE).await;
            world.apsis.revoke_tokens();
            world.apsis.set_token_delay(SECOND);
            assert_eq!(statuses(&fleet).await, [StatusCode::OK; 50]);
            assert_eq!(world.token_requests(), round);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_by_one_process_serves_all() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 50);
        let started = Instant::now();
        while started.elapsed() < 7 * 24 * HOUR {
            for client in &fleet {
                assert_eq!(send(client, keyspaces()).await.unwrap().status(), StatusCode::OK);
            }
            sleep(10 * MINUTE).await;
        }
        // Each refresh comes after three quarters of a day at the earliest.
        assert!((8..=10).contains(&world.token_requests()), "{}", world.token_requests());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_later_adopts_the_stored_token_and_asks_for_none() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        process(&world, &store, 0).handle().warm_up().await.unwrap();
        for number in 1..100 {
            advance(10 * MINUTE).await;
            let layer = process(&world, &store, number);
            let client = layer.layer(world.apsis.clone());
            assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
            let token = layer.handle().snapshot().token.unwrap();
            assert!(token.adopted);
            assert_eq!(token.expires_in_seconds, 24 * 3600 - 600 * number as u64);
        }
        assert_eq!(world.token_requests(), 1);
        // By then it was due. Who adopted it refreshes it, unless it is gone in no time.
        advance(6 * HOUR).await;
        let layer = process(&world, &store, 100);
        let client = layer.layer(world.apsis.clone());
        send(&client, keyspaces()).await.unwrap();
        sleep(SECOND).await;
        send(&client, keyspaces()).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(world.token_requests(), 1);
        sleep(5 * SECOND).await;
        send(&client, keyspaces()).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_adopted_is_used_no_longer_than_by_who_asked_for_it() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_token_lifetime(HOUR);
        process(&world, &store, 0).handle().warm_up().await.unwrap();
        advance(58 * MINUTE + 59 * SECOND).await;
        let late = process(&world, &store, 1).handle();
        late.warm_up().await.unwrap();
        assert_eq!(world.token_requests(), 1);
        // Its margin of a minute is reached.
        advance(2 * SECOND).await;
        assert!(!late.snapshot().token.unwrap().usable);
        late.get().await.unwrap();
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_differs_changes_nothing() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        process(&world, &store, 0).handle().warm_up().await.unwrap();
        advance(HOUR).await;
        for days in [-3, 3] {
            let elsewhere = World { apsis: world.apsis.clone(), wall: World::new().wall };
            elsewhere.wall.jump(days * 86_400);
            let handle = process(&elsewhere, &store, 1).handle();
            handle.warm_up().await.unwrap();
            assert_eq!(handle.snapshot().token.unwrap().expires_in_seconds, 23 * 3600);
        }
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_looked_for_in_the_store_first() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 2);
        statuses(&fleet).await;
        advance(MINUTE).await;
        world.apsis.revoke_tokens();
        assert_eq!(send(&fleet[0], keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(world.token_requests(), 2);
        advance(HOUR).await;
        assert_eq!(send(&fleet[1], keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_day_that_is_followed_by_one_of_an_hour_is_followed_by_it_everywhere() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 20);
        statuses(&fleet).await;
        advance(MINUTE).await;
        world.apsis.revoke_tokens();
        world.apsis.set_token_lifetime(HOUR);
        assert_eq!(statuses(&fleet).await, [StatusCode::OK; 20]);
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_renewal_asks_although_there_is_a_stored_token_and_the_others_adopt_what_it_brings() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let [first, second] = [0, 1].map(|number| process(&world, &store, number).handle());
        first.warm_up().await.unwrap();
        let forced = second.renew().await.unwrap();
        assert_eq!(world.token_requests(), 2);
        assert!(!second.snapshot().token.unwrap().adopted);
        // By its age the first one's is no good any more.
        advance(24 * HOUR).await;
        world.apsis.set_token_lifetime(48 * HOUR);
        let forced_again = second.renew().await.unwrap();
        assert_ne!(forced.header_value(), forced_again.header_value());
        assert_eq!(first.get().await.unwrap().header_value(), forced_again.header_value());
        assert!(first.snapshot().token.unwrap().adopted);
        assert_eq!(world.token_requests(), 3);
    })
    .await;
}

// Leases.

#[tokio::test(start_paused = true)]
async fn when_the_holder_of_the_lease_dies_another_process_asks_once_the_lease_is_over() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 20);
        statuses(&fleet).await;
        advance(MINUTE).await;
        world.apsis.revoke_tokens();
        // Somebody has it, and is never heard of again.
        store.change(|account| account.hold(17 * SECOND));
        let started = Instant::now();
        assert_eq!(statuses(&fleet).await, [StatusCode::OK; 20]);
        assert!((17 * SECOND..18 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_end_keeps_nobody_from_asking_alone_within_the_wait_of_a_request() {
    limited(async {
        let (world, store) = (World::new(), Forever);
        let layer = world.builder().store(store).build().unwrap();
        let started = Instant::now();
        let client = layer.layer(world.apsis.clone());
        assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert!((17 * SECOND..25 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_end_is_given_up_by_short_flights_as_well_once_it_should_be_over() {
    limited(async {
        for seconds in [1, 3, 10, 14] {
            let world = World::new();
            let limit = seconds * SECOND;
            let layer = world.builder().store(Forever).flight_timeout(limit).max_wait(limit).build().unwrap();
            let (handle, started) = (layer.handle(), Instant::now());
            while let Err(error) = handle.get().await {
                assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
                assert!(started.elapsed() < limit + 2 * SECOND + limit + 10 * SECOND, "{:?}", started.elapsed());
                sleep(SECOND).await;
            }
            assert!(started.elapsed() >= limit + 2 * SECOND, "{:?}", started.elapsed());
        }
    })
    .await;
}

/// However short their flights are.
#[tokio::test(start_paused = true)]
async fn who_asks_for_as_long_as_an_attempt_may_take_is_not_given_up_meanwhile() {
    limited(async {
        for (attempt, flight, wait, delay) in [(15, 10, 30, 6), (15, 10, 30, 9), (23, 25, 30, 20), (40, 40, 60, 35)] {
            let (world, store) = (World::new(), Memory::default());
            world.apsis.set_token_delay(delay * SECOND);
            let fleet: Vec<_> = (0..50)
                .map(|_| {
                    let builder = world.builder().random(fastrand::f64).store(store.clone());
                    let builder = builder.attempt_timeout(attempt * SECOND).flight_timeout(flight * SECOND);
                    builder.max_wait(wait * SECOND).build().unwrap().layer(world.apsis.clone())
                })
                .collect();
            // The others begin a little later, so that their flights do not end before.
            let first = tokio::spawn({
                let first = fleet[0].clone();
                async move { send(&first, keyspaces()).await.unwrap().status() }
            });
            sleep(SECOND / 2).await;
            assert_eq!(statuses(&fleet[1..]).await, [StatusCode::OK; 49], "{attempt} {flight} {delay}");
            assert_eq!(first.await.unwrap(), StatusCode::OK);
            assert_eq!(world.token_requests(), 1, "{attempt} {flight} {delay}");
        }
    })
    .await;
}

/// One that hangs is followed by one, and not by many.
#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_hangs_is_asked_by_one_process_at_a_time() {
    limited(async {
        for (attempt, flight) in [(15, 25), (23, 25), (15, 10)] {
            let (world, store) = (World::new(), Memory::default());
            world.apsis.script_token_answers(vec![Answer::hang(); 10]);
            world.apsis.set_token_limit(1_000);
            let calls = (0..50).map(|_| {
                let builder = world.builder().random(fastrand::f64).store(store.clone());
                let builder = builder.attempt_timeout(attempt * SECOND).flight_timeout(flight * SECOND);
                let handle = builder.build().unwrap().handle();
                tokio::spawn(async move { handle.get().await.is_ok() })
            });
            let calls: Vec<_> = calls.collect();
            for call in calls {
                call.await.unwrap();
            }
            assert!(world.token_requests() <= 4, "{attempt} {flight}: {}", world.token_requests());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_lasts_as_long_as_an_attempt_and_two_seconds_more_up_to_five_minutes() {
    limited(async {
        for (attempt, lasts) in [(1, 3), (15, 17), (120, 122), (297, 299), (299, 300), (600, 300)] {
            let (world, recorder) = (World::new(), Arc::<Recorder>::default());
            let builder = world.builder().attempt_timeout(attempt * SECOND).flight_timeout(20 * MINUTE);
            let layer = builder.store(Arc::clone(&recorder)).build().unwrap();
            layer.handle().get().await.unwrap_err();
            assert_eq!(recorder.0.lock().unwrap().as_slice(), [lasts * SECOND], "{attempt}");
        }
    })
    .await;
}

/// A store that knows how long leases were to last, and pauses everybody.
#[derive(Default)]
struct Recorder(Mutex<Vec<Duration>>);

impl TokenStore for Recorder {
    async fn load(&self, _: &str) -> Result<Option<Entry>, BoxError> {
        Ok(None)
    }

    async fn lease(&self, _: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        self.0.lock().unwrap().push(request.lasts());
        Ok(Leasing::Paused(Pause::new(HOUR, None)))
    }

    async fn publish(&self, _: &str, _: Lease, _: Bytes, _: Duration) -> Result<(), BoxError> {
        unreachable!("nobody has a lease")
    }

    async fn release(&self, _: &str, _: Lease, _: Pause) -> Result<(), BoxError> {
        unreachable!("nobody has a lease")
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lease_looks_about_every_tenth_of_a_second_and_not_in_step_with_others() {
    limited(async {
        for (draw, expected) in [(0.0, 200), (0.5, 100), (0.999, 67)] {
            let (world, store) = (World::new(), Memory::default());
            let handle = world.builder().random(move || draw).store(store.clone()).build().unwrap().handle();
            handle.get().await.unwrap();
            advance(25 * HOUR).await;
            store.change(|account| account.hold(10 * SECOND));
            let before = store.operations();
            handle.get().await.unwrap();
            let looks = store.operations() - before;
            assert!((expected..expected + 5).contains(&looks), "{draw}: {looks}");
        }
    })
    .await;
}

/// Or its waiters were told nothing of it.
#[tokio::test(start_paused = true)]
async fn an_attempt_ends_before_its_flight_so_that_the_store_is_told_within_it() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.script_token_answers([Answer::hang()]);
        store.set(Condition::Slow);
        let builder = world.builder().attempt_timeout(10 * SECOND).flight_timeout(10 * SECOND).max_wait(20 * SECOND);
        let handle = builder.store(store.clone()).build().unwrap().handle();
        let started = Instant::now();
        let error = handle.get().await.unwrap_err();
        assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
        assert!((9 * SECOND..10 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
    })
    .await;
}

/// Whatever the budget says of the attempt that nobody makes.
#[tokio::test(start_paused = true)]
async fn who_does_not_hear_of_the_only_lease_of_a_minute_asks_alone() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let builder = world.builder().store(store.clone()).token_requests_per_minute(1);
        let handle = builder.build().unwrap().handle();
        store.set(Condition::Deaf);
        let asking = tokio::spawn(async move { handle.get().await });
        sleep(SECOND / 2).await;
        store.set(Condition::Well);
        asking.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_does_not_hear_of_its_lease_asks_for_another_one_and_shares_what_it_brings() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let [first, second] = [0, 1].map(|number| process(&world, &store, number).handle());
        first.get().await.unwrap();
        advance(25 * HOUR).await;
        let asking = tokio::spawn(async move { first.get().await });
        // It has looked, and found nothing.
        store.set(Condition::Deaf);
        sleep(SECOND / 2).await;
        store.set(Condition::Well);
        let started = Instant::now();
        second.get().await.unwrap();
        asking.await.unwrap().unwrap();
        assert_eq!(world.token_requests(), 2);
        assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_while_it_asks_gives_its_lease_back() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_token_delay(10 * SECOND);
        let dropped = process(&world, &store, 0).handle();
        let asking = tokio::spawn(async move { dropped.warm_up().await });
        sleep(SECOND).await;
        assert_eq!(world.token_requests(), 1);
        asking.abort();
        asking.await.unwrap_err();
        world.apsis.set_token_delay(Duration::ZERO);
        let started = Instant::now();
        process(&world, &store, 1).handle().warm_up().await.unwrap();
        assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_while_it_publishes_or_gives_its_lease_back_does_so() {
    limited(async {
        for is_given in [true, false] {
            let (world, store) = (World::new(), Memory::default());
            store.set(Condition::Slow);
            if !is_given {
                world.apsis.script_token_answers([Answer::status(StatusCode::BAD_REQUEST)]);
            }
            let dropped = process(&world, &store, 0).handle();
            let asking = tokio::spawn(async move { dropped.warm_up().await });
            sleep(750 * MILLISECOND).await;
            // It has its answer, and the store was not told yet.
            assert_eq!((world.token_requests(), store.sealed()), (1, None));
            asking.abort();
            asking.await.unwrap_err();
            sleep(SECOND).await;
            assert_eq!(store.sealed().is_some(), is_given);
            store.change(Account::forget_pause);
            let started = Instant::now();
            let handle = process(&world, &store, 1).handle();
            handle.warm_up().await.unwrap();
            assert_eq!(handle.snapshot().token.unwrap().adopted, is_given);
            assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_was_waited_for_long_ago_is_waited_for_again() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let [first, second] = [0, 1].map(|number| process(&world, &store, number));
        for round in 0..3 {
            // The same fence is said to be held each time, as by a store that knows no better at first.
            store.hold_as(7, 2 * SECOND);
            let (first, second) = (first.handle(), second.handle());
            let (one, other) = tokio::join!(first.get(), second.get());
            assert!(one.is_ok() && other.is_ok());
            assert_eq!(world.token_requests(), round + 1);
            advance(25 * HOUR).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_is_shorter_than_the_wait_of_a_request_is_waited_for() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 5);
        // The fleet's budget is used up for ten seconds more.
        for _ in 0..4 {
            process(&world, &store, 9).handle().renew().await.unwrap();
        }
        advance(50 * SECOND).await;
        store.empty_but_for_attempts();
        let started = Instant::now();
        assert_eq!(statuses(&fleet).await, [StatusCode::OK; 5]);
        assert!((9 * SECOND..11 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
        assert_eq!(world.token_requests(), 5);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_was_told_to_wait_waits_although_the_store_is_down() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "300")]);
        let [first, second] = [0, 1].map(|number| process(&world, &store, number).handle());
        first.get().await.unwrap_err();
        second.get().await.unwrap_err();
        store.set(Condition::Down);
        for _ in 0..10 {
            sleep(10 * SECOND).await;
            first.get().await.unwrap_err();
            second.get().await.unwrap_err();
        }
        assert_eq!(world.token_requests(), 1);
        sleep(300 * SECOND).await;
        second.get().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_with_nothing_but_garbage_is_gone_without() {
    limited(async {
        let (world, store) = (World::new(), Arc::<Garbage>::default());
        let layer = world.builder().store(Arc::clone(&store)).build().unwrap();
        let started = Instant::now();
        layer.handle().get().await.unwrap();
        assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
        assert_eq!(world.token_requests(), 1);
        assert_eq!(store.0.load(Ordering::Relaxed), 3);
    })
    .await;
}

/// A store that has a newer entry each time, which nobody can read.
#[derive(Default)]
struct Garbage(AtomicU64);

impl Garbage {
    fn entry(&self) -> Entry {
        Entry::new(self.0.fetch_add(1, Ordering::Relaxed), "garbage", Duration::ZERO)
    }
}

impl TokenStore for Garbage {
    async fn load(&self, _: &str) -> Result<Option<Entry>, BoxError> {
        Ok(Some(self.entry()))
    }

    async fn lease(&self, _: &str, _: &LeaseRequest) -> Result<Leasing, BoxError> {
        Ok(Leasing::Newer(self.entry()))
    }

    async fn publish(&self, _: &str, _: Lease, _: Bytes, _: Duration) -> Result<(), BoxError> {
        Ok(())
    }

    async fn release(&self, _: &str, _: Lease, _: Pause) -> Result<(), BoxError> {
        Ok(())
    }
}

/// One that offers the same again and again does not keep anybody from a lease for ever.
#[tokio::test(start_paused = true)]
async fn an_entry_that_is_not_newer_than_what_was_asked_for_is_gone_without() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let handle = world.builder().store(Stale(store)).build().unwrap().handle();
        handle.get().await.unwrap();
        world.apsis.revoke_tokens();
        let started = Instant::now();
        for requests in 2..4 {
            handle.renew().await.unwrap();
            assert_eq!(world.token_requests(), requests);
        }
        assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    })
    .await;
}

/// A store that calls newer what is as old.
struct Stale(Memory);

impl TokenStore for Stale {
    async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
        self.0.load(name).await
    }

    async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        match self.0.load(name).await? {
            Some(entry) if entry.fence() >= request.newer_than() => Ok(Leasing::Newer(entry)),
            _ => self.0.lease(name, request).await,
        }
    }

    async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, lifetime: Duration) -> Result<(), BoxError> {
        self.0.publish(name, lease, sealed, lifetime).await
    }

    async fn release(&self, name: &str, lease: Lease, pause: Pause) -> Result<(), BoxError> {
        self.0.release(name, lease, pause).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_before_there_is_a_future_fails_no_request() {
    limited(async {
        let world = World::new();
        world.builder().store(AtOnce).build().unwrap().handle().get().await.unwrap();
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

/// A store that panics when it is called, and not when its future is polled.
struct AtOnce;

fn panics<T>() -> T {
    resume_unwind(Box::new("the store panics"))
}

#[allow(clippy::manual_async_fn, reason = "that is what is tried")]
impl TokenStore for AtOnce {
    fn load(&self, _: &str) -> impl Future<Output = Result<Option<Entry>, BoxError>> + Send {
        panics::<Ready<_>>()
    }

    fn lease(&self, _: &str, _: &LeaseRequest) -> impl Future<Output = Result<Leasing, BoxError>> + Send {
        panics::<Ready<_>>()
    }

    fn publish(&self, _: &str, _: Lease, _: Bytes, _: Duration) -> impl Future<Output = Result<(), BoxError>> + Send {
        panics::<Ready<_>>()
    }

    fn release(&self, _: &str, _: Lease, _: Pause) -> impl Future<Output = Result<(), BoxError>> + Send {
        panics::<Ready<_>>()
    }
}

/// A store whose lease somebody has, always.
struct Forever;

impl TokenStore for Forever {
    async fn load(&self, _: &str) -> Result<Option<Entry>, BoxError> {
        Ok(None)
    }

    async fn lease(&self, _: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        Ok(Leasing::Held { fence: 7, left: request.lasts() })
    }

    async fn publish(&self, _: &str, _: Lease, _: Bytes, _: Duration) -> Result<(), BoxError> {
        unreachable!("nobody has a lease")
    }

    async fn release(&self, _: &str, _: Lease, _: Pause) -> Result<(), BoxError> {
        unreachable!("nobody has a lease")
    }
}

// What is said of it.

const FAILS: &str = "the token store fails; going on alone";
const ANSWERS: &str = "the token store answers again";

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_said_once_and_once_more_when_it_is_back() {
    limited(async {
        for condition in [Condition::Down, Condition::Silent, Condition::Panics] {
            let (world, store, journal) = (World::new(), Memory::default(), Journal::listening());
            let handle = process(&world, &store, 0).handle();
            for episode in 1..3 {
                store.set(condition);
                for _ in 0..3 {
                    handle.get().await.unwrap();
                    advance(25 * HOUR).await;
                }
                assert_eq!(journal.times(Level::WARN, FAILS), episode, "{condition:?}: {journal:?}");
                store.set(Condition::Well);
                for _ in 0..3 {
                    handle.get().await.unwrap();
                    advance(25 * HOUR).await;
                }
                assert_eq!(journal.times(Level::INFO, ANSWERS), episode, "{condition:?}: {journal:?}");
            }
            assert_eq!(journal.times(Level::WARN, FAILS), journal.events(Level::WARN).len());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_written_to_is_said_once_although_it_brings_a_token_now_and_then() {
    limited(async {
        let (world, store, journal) = (World::new(), Memory::default(), Journal::listening());
        let [other, handle] = [0, 1].map(|number| process(&world, &store, number).handle());
        for _ in 0..3 {
            store.set(Condition::Well);
            other.renew().await.unwrap();
            store.set(Condition::ReadOnly);
            for is_adopted in [true, false] {
                handle.get().await.unwrap();
                assert_eq!(handle.snapshot().token.unwrap().adopted, is_adopted);
                advance(25 * HOUR).await;
            }
        }
        assert_eq!((journal.times(Level::WARN, FAILS), journal.times(Level::INFO, ANSWERS)), (1, 0), "{journal:?}");
        store.set(Condition::Well);
        handle.get().await.unwrap();
        assert_eq!(journal.times(Level::INFO, ANSWERS), 1);
    })
    .await;
}

// The budget.

#[tokio::test(start_paused = true)]
async fn the_attempts_of_all_processes_count_together() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_token_limit(1_000);
        let attempts = Attempts::default();
        let fleet: Vec<_> = (0..20)
            .map(|_| {
                let builder = world.builder().transport(attempts.before(world.apsis.clone())).random(fastrand::f64);
                builder.store(store.clone()).build().unwrap().layer(world.apsis.clone())
            })
            .collect();
        world.apsis.script_token_answers((0..1_000).map(|_| Answer::status(StatusCode::BAD_GATEWAY)));
        let started = Instant::now();
        while started.elapsed() < 10 * MINUTE {
            all(fleet.len(), |number| {
                let client = fleet[number].clone();
                async move { send(&client, keyspaces()).await.unwrap_err() }
            })
            .await;
            sleep(SECOND).await;
        }
        let attempts = attempts.all();
        assert!(attempts.len() >= 20, "{}", attempts.len());
        let crowd = attempts.windows(5).find(|window| window[4] - window[0] < MINUTE);
        assert_eq!(crowd, None);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_one_process_hears_of_is_kept_by_all() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 20);
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "45")]);
        let started = Instant::now();
        all(fleet.len(), |number| {
            let client = fleet[number].clone();
            async move { send(&client, keyspaces()).await.unwrap_err() }
        })
        .await;
        assert_eq!(world.token_requests(), 1);
        while world.token_requests() == 1 {
            let _ = send(&fleet[1], keyspaces()).await;
            sleep(SECOND).await;
        }
        assert!((45 * SECOND..52 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
    })
    .await;
}

// The store is never a reason to fail.

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_or_silent_or_panics_fails_no_request_and_delays_a_cold_one_by_seconds() {
    limited(async {
        for (condition, delay) in
            [(Condition::Down, Duration::ZERO), (Condition::Silent, SECOND), (Condition::Panics, Duration::ZERO)]
        {
            let (world, store) = (World::new(), Memory::default());
            store.set(condition);
            let started = Instant::now();
            assert_eq!(statuses(&fleet(&world, &store, 5)).await, [StatusCode::OK; 5]);
            assert!(
                (delay..delay + 10 * Duration::from_millis(1)).contains(&started.elapsed()),
                "{:?}",
                started.elapsed()
            );
            assert_eq!(world.token_requests(), 5);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_when_it_is_told_of_a_token_fails_no_request() {
    limited(async {
        for condition in [Condition::Down, Condition::Silent, Condition::Panics, Condition::ReadOnly] {
            let (world, store) = (World::new(), Memory::default());
            world.apsis.set_token_delay(SECOND);
            let handle = process(&world, &store, 0).handle();
            let asking = tokio::spawn(async move { handle.get().await });
            sleep(SECOND / 2).await;
            store.set(condition);
            asking.await.unwrap().unwrap();
            assert_eq!((world.token_requests(), store.sealed()), (1, None));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_good_token_never_touches_the_store() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 1);
        statuses(&fleet).await;
        let operations = store.operations();
        store.set(Condition::Silent);
        for _ in 0..100 {
            let started = Instant::now();
            assert_eq!(send(&fleet[0], keyspaces()).await.unwrap().status(), StatusCode::OK);
            assert_eq!(started.elapsed(), Duration::ZERO);
            advance(10 * MINUTE).await;
        }
        assert_eq!(store.operations(), operations);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn processes_that_went_on_alone_share_again_once_the_store_is_back() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        store.set(Condition::Down);
        let fleet = fleet(&world, &store, 5);
        statuses(&fleet).await;
        assert_eq!(world.token_requests(), 5);
        store.set(Condition::Well);
        advance(2 * MINUTE).await;
        world.apsis.revoke_tokens();
        assert_eq!(statuses(&fleet).await, [StatusCode::OK; 5]);
        assert_eq!(world.token_requests(), 6);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn from_a_store_that_cannot_be_written_to_a_token_is_adopted_and_without_one_each_asks_alone() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        process(&world, &store, 0).handle().warm_up().await.unwrap();
        store.set(Condition::ReadOnly);
        let handle = process(&world, &store, 1).handle();
        handle.warm_up().await.unwrap();
        assert!(handle.snapshot().token.unwrap().adopted);
        assert_eq!(world.token_requests(), 1);
        handle.renew().await.unwrap();
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_emptied_costs_nothing_while_the_tokens_are_good() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 10);
        statuses(&fleet).await;
        store.empty();
        assert_eq!(statuses(&fleet).await, [StatusCode::OK; 10]);
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn alone_each_process_keeps_its_own_budget() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        store.set(Condition::Down);
        let handle = process(&world, &store, 0).handle();
        for _ in 0..4 {
            handle.renew().await.unwrap();
        }
        world.apsis.set_token_limit(1_000);
        let error = handle.renew().await.unwrap_err();
        assert!(matches!(error, AuthError::OutOfBudget { .. }), "{error:?}");
        assert_eq!(world.token_requests(), 4);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_renewal_waits_for_room_and_for_a_pause_if_that_is_not_too_long() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_token_limit(1_000);
        let [handle, other] = [0, 1].map(|number| process(&world, &store, number).handle());
        for _ in 0..4 {
            handle.renew().await.unwrap();
        }
        let (started, error) = (Instant::now(), handle.renew().await.unwrap_err());
        assert!(matches!(error, AuthError::OutOfBudget { .. }), "{error:?}");
        assert_eq!(started.elapsed(), Duration::ZERO);
        sleep(36 * SECOND).await;
        let started = Instant::now();
        handle.renew().await.unwrap();
        assert_eq!(started.elapsed(), 24 * SECOND);

        // Another one failed, and nobody asks for some seconds.
        sleep(2 * MINUTE).await;
        world.apsis.script_token_answers([Answer::status(StatusCode::SERVICE_UNAVAILABLE)]);
        let failing = tokio::spawn({
            let other = other.clone();
            async move { other.renew().await }
        });
        sleep(SECOND / 10).await;
        let started = Instant::now();
        handle.renew().await.unwrap();
        assert!((SECOND..10 * SECOND).contains(&started.elapsed()), "{:?}", started.elapsed());
        failing.await.unwrap().unwrap();

        sleep(2 * MINUTE).await;
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "60")]);
        other.renew().await.unwrap_err();
        let (started, error) = (Instant::now(), handle.renew().await.unwrap_err());
        assert!(matches!(error, AuthError::Paused { .. }), "{error:?}");
        assert_eq!(started.elapsed(), Duration::ZERO);
    })
    .await;
}

/// As without a store: who asks climbs its back-off, and says what is wrong.
#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_is_down_for_long_is_asked_less_often_and_the_error_says_why() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_token_limit(1_000);
        world.apsis.script_token_answers(vec![Answer::status(StatusCode::SERVICE_UNAVAILABLE); 10_000]);
        let attempts = Attempts::default();
        let builder = world.builder().transport(attempts.before(world.apsis.clone())).random(fastrand::f64);
        let handle = builder.token_requests_per_minute(10).store(store).build().unwrap().handle();
        let (started, mut paused) = (Instant::now(), 0);
        while started.elapsed() < HOUR {
            match handle.get().await.unwrap_err() {
                // Or it came late, and could wait no longer.
                AuthError::Unavailable { .. } | AuthError::TimedOut { .. } => {}
                AuthError::Paused { .. } => paused += 1,
                other => panic!("{other:?}"),
            }
            advance(5 * SECOND).await;
        }
        let asked = attempts.all().len();
        assert!(paused == 0 && (60..6 * 60).contains(&asked), "{asked} attempts in an hour, {paused} pauses");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_asked_in_vain_and_may_not_ask_again_says_what_it_was_told() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.script_token_answers([Answer::status(StatusCode::SERVICE_UNAVAILABLE)]);
        let handle = process(&world, &store, 0).handle();
        let asking = tokio::spawn(async move { handle.get().await });
        sleep(SECOND / 2).await;
        store.change(|account| account.pause(5 * MINUTE));
        let error = asking.await.unwrap().unwrap_err();
        assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
    })
    .await;
}

/// Its own flight waits for the end of a short pause; that of another reason does not.
#[tokio::test(start_paused = true)]
async fn a_forced_renewal_that_joined_another_flight_makes_one_of_its_own_if_that_made_no_attempt() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let handle = process(&world, &store, 0).handle();
        handle.get().await.unwrap();
        advance(25 * HOUR).await;
        store.change(|account| {
            account.hold(SECOND);
            account.pause(5 * SECOND);
        });
        let cold = tokio::spawn({
            let handle = handle.clone();
            async move { handle.get().await }
        });
        sleep(SECOND / 2).await;
        handle.renew().await.unwrap();
        cold.await.unwrap().unwrap();
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_is_down_for_seconds_fails_no_request_of_a_cold_fleet() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.script_token_answers(vec![Answer::status(StatusCode::SERVICE_UNAVAILABLE); 3]);
        let started = Instant::now();
        assert_eq!(statuses(&fleet(&world, &store, 50)).await, [StatusCode::OK; 50]);
        assert_eq!(world.token_requests(), 4);
        assert!(started.elapsed() > 5 * SECOND, "{:?}", started.elapsed());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_may_not_ask_looks_for_what_another_process_brings() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "300")]);
        let [first, second] = [0, 1].map(|number| process(&world, &store, number).handle());
        first.get().await.unwrap_err();
        // The others are told at once why, and when to come back.
        let started = Instant::now();
        let error = second.get().await.unwrap_err();
        assert!(matches!(error, AuthError::Paused { .. }), "{error:?}");
        assert!(error.retry_at().is_some() && started.elapsed() < SECOND);
        assert!(second.snapshot().grounded.unwrap().for_seconds > 250);
        // Somebody who forces it is given a token. Within seconds the others have it.
        store.change(Account::forget_pause);
        process(&world, &store, 2).handle().get().await.unwrap();
        sleep(6 * SECOND).await;
        for handle in [&first, &second] {
            handle.get().await.unwrap();
            assert!(handle.snapshot().token.unwrap().adopted);
        }
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

/// As without a store, although only one of them asked.
#[tokio::test(start_paused = true)]
async fn all_processes_are_told_at_once_that_their_key_is_refused() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.script_token_answers([Answer::status(StatusCode::FORBIDDEN)]);
        process(&world, &store, 0).handle().get().await.unwrap_err();
        for second in 0..29 {
            let started = Instant::now();
            let handle = process(&world, &store, 1).handle();
            for _ in 0..3 {
                let error = handle.get().await.unwrap_err();
                let AuthError::Refused { status, ref url, .. } = error else { panic!("{second}: {error:?}") };
                assert_eq!((status, url.host()), (StatusCode::FORBIDDEN, Some("api.apsis.one")));
                assert!(!error.is_retryable());
                let left = error.retry_at().unwrap() - Instant::now().into_std();
                assert!((29 - second..=30 - second).contains(&left.as_secs()), "{second}: {left:?}");
            }
            assert!(started.elapsed() < SECOND / 10, "{:?}", started.elapsed());
            advance(SECOND.saturating_sub(started.elapsed())).await;
        }
        advance(SECOND).await;
        process(&world, &store, 1).handle().get().await.unwrap();
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_costs_a_fleet_little_more_than_one_process() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let attempts = Attempts::default();
        world.apsis.script_token_answers(vec![Answer::status(StatusCode::UNAUTHORIZED); 1_000]);
        let fleet: Vec<_> = (0..50)
            .map(|_| {
                let builder = world.builder().transport(attempts.before(world.apsis.clone())).random(fastrand::f64);
                builder.store(store.clone()).build().unwrap().handle()
            })
            .collect();
        let started = Instant::now();
        while started.elapsed() < HOUR {
            for handle in &fleet {
                let error = handle.get().await.unwrap_err();
                assert!(matches!(error, AuthError::Refused { .. } | AuthError::Paused { .. }), "{error:?}");
            }
            advance(SECOND).await;
        }
        // A pause of 30 s, then of a minute, and so on, to four.
        let asked: Vec<_> = attempts.all().into_iter().map(|at| (at - started).as_secs()).collect();
        assert!((15..=20).contains(&asked.len()), "{asked:?}");
        let last: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(last[4..].iter().all(|&pause| pause >= 240), "{last:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_may_not_ask_looks_every_five_seconds_however_many_requests_come() {
    limited(async {
        for answer in [
            Answer::too_many_requests().header("retry-after", "300"),
            Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "300"),
        ] {
            let (world, store) = (World::new(), Memory::default());
            world.apsis.script_token_answers([answer]);
            let handle = process(&world, &store, 0).handle();
            handle.get().await.unwrap_err();
            let before = store.operations();
            for second in 0..60 {
                for _ in 0..10 {
                    handle.get().await.unwrap_err();
                }
                let looks = store.operations() - before;
                assert!(looks <= second / 5, "{looks} looks in {second} s");
                advance(SECOND).await;
            }
            assert!(store.operations() - before >= 10, "{}", store.operations() - before);
            assert_eq!(world.token_requests(), 1);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_memory_and_begins_with_lower_fences_costs_one_token_request() {
    limited(async {
        let (world, old, new) = (World::new(), Memory::default(), Memory::default());
        let switch = Switch::default();
        switch.set(&old);
        let process = |number: u32| {
            let layer = world.builder().random(move || f64::from(number) / 20.0).store(switch.clone()).build().unwrap();
            layer.layer(world.apsis.clone())
        };
        let fleet: Vec<_> = (0..20).map(process).collect();
        for _ in 0..3 {
            statuses(&fleet).await;
            advance(2 * MINUTE).await;
            world.apsis.revoke_tokens();
        }
        statuses(&fleet).await;
        let before = world.token_requests();
        switch.set(&new);
        advance(2 * MINUTE).await;
        world.apsis.revoke_tokens();
        assert_eq!(statuses(&fleet).await, [StatusCode::OK; 20]);
        assert_eq!(world.token_requests(), before + 1);
    })
    .await;
}

// What is stored.

#[tokio::test(start_paused = true)]
async fn what_is_stored_says_neither_the_token_nor_the_secret_nor_the_id() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let handle = process(&world, &store, 0).handle();
        let token = handle.get().await.unwrap();
        let (stored, names) = (store.sealed().unwrap(), store.names());
        let key = world.apsis.api_key();
        assert_eq!(names.len(), 1);
        for secret in [token.expose_secret(), key.client_secret(), key.client_id()] {
            for part in secret.as_bytes().windows(8) {
                assert!(!stored.windows(8).any(|window| window == part));
                assert!(!names[0].as_bytes().windows(8).any(|window| window == part));
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn accounts_and_secrets_and_origins_have_entries_of_their_own() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let key = world.apsis.api_key();
        let (id, secret) = (key.client_id(), key.client_secret());
        let mut names = Vec::new();
        for (id, secret, base) in [
            (id, secret, BASE),
            (id, "another secret", BASE),
            ("another-id", secret, BASE),
            (id, secret, "https://api-apac.apsis.one"),
        ] {
            let credentials = ClientCredentials::new(id, secret).unwrap();
            let layer = ApsisAuthLayer::builder(credentials, base).transport(world.apsis.clone()).store(store.clone());
            let _ = layer.build().unwrap().handle().warm_up().await;
            names = store.names();
        }
        assert_eq!(names.len(), 4, "{names:?}");
    })
    .await;
}

type Change = Box<dyn Fn(&[u8]) -> Vec<u8>>;

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_changed_cut_or_moved_is_a_miss_and_no_error() {
    limited(async {
        let flip = |at: usize| {
            move |sealed: &[u8]| {
                let mut changed = sealed.to_vec();
                let at = at.min(changed.len() - 1);
                changed[at] ^= 1;
                changed
            }
        };
        let cut = |to: usize| move |sealed: &[u8]| sealed[..to.min(sealed.len() - 1)].to_vec();
        let changes: Vec<Change> = vec![
            Box::new(flip(0)),
            Box::new(flip(1)),
            Box::new(flip(13)),
            Box::new(flip(100)),
            Box::new(flip(usize::MAX)),
            Box::new(cut(0)),
            Box::new(cut(1)),
            Box::new(cut(12)),
            Box::new(cut(13)),
            Box::new(cut(30)),
            Box::new(cut(usize::MAX)),
            Box::new(|sealed| [sealed, b"x"].concat()),
            Box::new(|_| b"garbage".to_vec()),
        ];
        for (number, change) in changes.iter().enumerate() {
            let (world, store) = (World::new(), Memory::default());
            process(&world, &store, 0).handle().warm_up().await.unwrap();
            store.change(|account| {
                let (_, sealed, _) = account.entry.as_mut().unwrap();
                *sealed = change(sealed).into();
            });
            let handle = process(&world, &store, 1).handle();
            handle.warm_up().await.unwrap();
            assert!(!handle.snapshot().token.unwrap().adopted, "{number}");
            assert_eq!(world.token_requests(), 2, "{number}");
            // What it published is good again.
            let handle = process(&world, &store, 2).handle();
            handle.warm_up().await.unwrap();
            assert!(handle.snapshot().token.unwrap().adopted, "{number}");
        }
        // Under another fence it is another entry.
        let (world, store) = (World::new(), Memory::default());
        process(&world, &store, 0).handle().warm_up().await.unwrap();
        store.change(|account| account.entry.as_mut().unwrap().0 += 1);
        let handle = process(&world, &store, 1).handle();
        handle.warm_up().await.unwrap();
        assert!(!handle.snapshot().token.unwrap().adopted);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_sent_again_renews_through_the_store_as_well() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 2);
        statuses(&fleet).await;
        advance(MINUTE).await;
        world.apsis.revoke_tokens();
        for client in &fleet {
            assert_eq!(send(client, once()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
            sleep(SECOND).await;
            assert_eq!(send(client, keyspaces()).await.unwrap().status(), StatusCode::OK);
        }
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_asked_alone_adopts_no_older_token_when_its_own_is_revoked() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 2);
        assert_eq!(send(&fleet[0], keyspaces()).await.unwrap().status(), StatusCode::OK);
        store.set(Condition::Down);
        assert_eq!(send(&fleet[1], keyspaces()).await.unwrap().status(), StatusCode::OK);
        store.set(Condition::Well);
        advance(2 * MINUTE).await;
        world.apsis.revoke_tokens();
        assert_eq!(send(&fleet[1], keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(world.token_requests(), 3);
    })
    .await;
}

/// Its own, from before it asked alone. By a wall clock that jumped, what it has now seems older.
#[tokio::test(start_paused = true)]
async fn who_asked_alone_does_not_go_back_to_what_it_had_before() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let handle = process(&world, &store, 0).handle();
        handle.get().await.unwrap();
        advance(HOUR).await;
        store.set(Condition::Down);
        handle.renew().await.unwrap();
        store.set(Condition::Well);
        world.wall.jump(86_400);
        advance(10 * SECOND).await;
        handle.get().await.unwrap();
        assert_eq!((world.token_requests(), handle.snapshot().token.unwrap().adopted), (3, false));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stored_token_that_was_revoked_as_well_is_renewed_by_the_next_request() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 2);
        statuses(&fleet).await;
        advance(2 * MINUTE).await;
        world.apsis.revoke_tokens();
        assert_eq!(send(&fleet[0], keyspaces()).await.unwrap().status(), StatusCode::OK);
        advance(HOUR).await;
        world.apsis.revoke_tokens();
        // A request is sent twice, and no more. That the store had no better one is no sign of an API that rejects everything.
        assert_eq!(send(&fleet[1], keyspaces()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
        assert_eq!(send(&fleet[1], keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(world.token_requests(), 3);
    })
    .await;
}

/// A look costs no token request, so no ladder stands before it.
#[tokio::test(start_paused = true)]
async fn while_a_ladder_cools_what_another_process_brought_is_looked_for_every_five_seconds() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        world.apsis.set_dialect(Dialect::Gateway);
        let layers = [0, 1].map(|number| process(&world, &store, number));
        let [other, client] = layers.each_ref().map(|layer| layer.layer(world.apsis.clone()));
        send(&other, keyspaces()).await.unwrap();
        world.apsis.refuse_route("/audience/forbidden");
        // A right is missing: the ladder is climbed to a long pause.
        for _ in 0..3 {
            send(&client, get("/audience/forbidden")).await.unwrap();
            advance(5 * MINUTE).await;
        }
        send(&client, get("/audience/forbidden")).await.unwrap();
        let (requests, started) = (world.token_requests(), Instant::now());
        let before = store.operations();
        for _ in 0..120 {
            let answer = send(&client, get("/audience/forbidden")).await.unwrap();
            let said = answer.extensions().get();
            assert!(matches!(said, Some(AuthOutcome::NotRenewed(AuthError::CoolingDown { .. }))), "{said:?}");
            sleep(SECOND / 2).await;
        }
        let looks = store.operations() - before;
        assert!((10..=13).contains(&looks), "{looks} looks in {:?}", started.elapsed());
        assert_eq!(world.token_requests(), requests);

        // Who wants a token for another reason is not told of the ladder.
        sleep(5 * SECOND).await;
        store.set(Condition::Silent);
        let looking = tokio::spawn({
            let client = client.clone();
            async move { send(&client, get("/audience/forbidden")).await.unwrap() }
        });
        sleep(SECOND / 2).await;
        layers[1].handle().renew().await.unwrap();
        assert_eq!(looking.await.unwrap().status(), StatusCode::FORBIDDEN);
        store.set(Condition::Well);
        let requests = requests + 1;

        // Nor is who was rejected in another way.
        sleep(5 * SECOND).await;
        let looking = tokio::spawn({
            let client = client.clone();
            async move { send(&client, get("/audience/forbidden")).await.unwrap() }
        });
        store.set(Condition::Silent);
        sleep(SECOND / 2).await;
        world.apsis.set_dialect(Dialect::Unauthorized);
        world.apsis.revoke_tokens();
        assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(looking.await.unwrap().status(), StatusCode::FORBIDDEN);
        world.apsis.set_dialect(Dialect::Gateway);
        store.set(Condition::Well);
        let requests = requests + 1;
        assert_eq!(world.token_requests(), requests);

        // The token dies, and another process is quicker.
        world.apsis.revoke_tokens();
        sleep(SECOND).await;
        layers[0].handle().renew().await.unwrap();
        sleep(5 * SECOND).await;
        let answer = send(&client, keyspaces()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(matches!(answer.extensions().get(), Some(AuthOutcome::Replayed)));
        assert_eq!(world.token_requests(), requests + 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_everything_costs_a_fleet_no_more_token_requests_than_the_ladder_of_each_process_allows() {
    limited(async {
        let (world, store) = (World::new(), Memory::default());
        let fleet = fleet(&world, &store, 20);
        statuses(&fleet).await;
        world.apsis.refuse_route("/audience");
        let (started, before) = (Instant::now(), world.token_requests());
        while started.elapsed() < HOUR {
            assert_eq!(statuses(&fleet).await, [StatusCode::FORBIDDEN; 20]);
            sleep(SECOND).await;
        }
        // After 1, 2, 4, 8, 15, 15 and 15 minutes each, and once more for a token that was adopted.
        let asked = world.token_requests() - before;
        assert!((5..=20 * 8).contains(&asked), "{asked}");
    })
    .await;
}
