//! Laws 1 to 7: however many callers there are, one token request is in flight, and what becomes of one caller or one
//! runtime is no matter to the others.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use apsis_auth::{
    AccessToken, ApsisAuthBuilder, AuthError, AuthOutcome, Snapshot, TokenHandle,
    emulator::{Answer, Emulator},
};
use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    task::{JoinHandle, yield_now},
    time::{Instant, Sleep, advance, sleep, sleep_until, timeout},
};
use tower::{BoxError, Layer, Service, ServiceExt, limit::GlobalConcurrencyLimitLayer, service_fn};

use crate::support::{World, all, keyspaces, limited, send};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

// Law 1: one flight.

#[tokio::test(start_paused = true)]
async fn a_thousand_cold_callers_share_one_token_request() {
    limited(async {
        let world = patient_world();
        let layer = world.layer();

        let answers = all(1000, |_| call(layer.layer(world.apsis.clone()))).await;

        assert!(answers.iter().all(|answer| *answer.as_ref().unwrap() == StatusCode::OK));
        assert_eq!(world.token_requests(), 1);
        assert_eq!(world.apsis.counters().api_accepted, 1000);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn those_who_come_late_join_the_flight() {
    limited(async {
        let world = patient_world();
        let client = world.client();
        world.apsis.set_token_delay(seconds(10));

        let answers = all(100, |number| {
            let client = client.clone();
            async move {
                sleep(Duration::from_millis(100) * u32::try_from(number).unwrap()).await;
                call(client).await
            }
        })
        .await;

        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

/// On threads that run at once, in real time. Those rejected late find the newer token (law 18).
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_parallel_a_thousand_cold_callers_share_one_token_request_and_a_thousand_rejected_ones_another() {
    let test = async {
        let world = patient_world();
        let client = world.client();
        for token_requests in [1, 2] {
            let answers = all(1000, |_| call(client.clone())).await;
            assert!(answers.iter().all(|answer| *answer.as_ref().unwrap() == StatusCode::OK));
            assert_eq!(world.token_requests(), token_requests);
            world.apsis.revoke_tokens();
        }
    };
    timeout(MINUTE, test).await.expect("the test ends within a minute");
}

// Law 2: one failure.

#[tokio::test(start_paused = true)]
async fn a_failed_flight_is_one_failure_for_all_its_waiters() {
    limited(async {
        let world = patient_world();
        world.apsis.script_token_answers([invalid_client()]);
        let client = world.client();

        let errors = all(1000, |_| call(client.clone())).await;

        let codes: Vec<_> = errors.into_iter().map(|error| refusal(&error.unwrap_err())).collect();
        assert!(codes.iter().all(|code| Arc::ptr_eq(code, &codes[0])), "it is one failure, not a thousand alike");
        assert_eq!(&*codes[0], "invalid_client");
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_while_grounded_make_no_token_request() {
    limited(async {
        for answer in [invalid_client(), Answer::too_many_requests().header("retry-after", "300")] {
            let world = World::new();
            world.apsis.script_token_answers([answer]);
            let client = world.client();
            let first = call(client.clone()).await.unwrap_err();
            let before = Instant::now();

            for _ in 0..1000 {
                let error = call(client.clone()).await.unwrap_err();
                assert_eq!(error.retry_at(), first.retry_at());
            }

            assert_eq!(before.elapsed(), Duration::ZERO, "they fail at once");
            assert_eq!(world.token_requests(), 1);
            assert_eq!(world.apsis.counters().api_requests, 0);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_grounding_ends_at_the_moment_it_names() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([invalid_client()]);
        let client = world.client();
        let retry_at = retry_at(&call(client.clone()).await.unwrap_err());
        assert_eq!(retry_at - Instant::now(), seconds(30));

        sleep_until(retry_at - Duration::from_millis(1)).await;
        call(client.clone()).await.unwrap_err();
        assert_eq!(world.token_requests(), 1);

        sleep_until(retry_at).await;
        call(client).await.unwrap();
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

// Law 3: the budget.

#[tokio::test(start_paused = true)]
async fn no_minute_sees_more_attempts_than_the_budget() {
    limited(async {
        const CASES: u64 = 200;
        let mut tight = 0;
        for seed in 0..CASES {
            let (budget, attempts) = a_few_bad_minutes(seed).await;
            let too_close = attempts.windows(budget + 1).find(|window| window[budget] - window[0] < MINUTE);
            assert_eq!(too_close, None, "seed {seed}, budget {budget}");
            tight += u64::from(
                attempts.windows(budget).filter(|window| window[budget - 1] - window[0] < MINUTE).count() > 2,
            );
        }
        assert!(tight > CASES / 2, "the budget was used up again and again in {tight} of {CASES} cases only");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_used_up_the_budget_pauses_until_there_is_room() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([StatusCode::SERVICE_UNAVAILABLE; 2].map(Answer::status));
        let patient = world.builder().max_wait(2 * MINUTE).flight_timeout(2 * MINUTE);
        let client = patient.token_requests_per_minute(2).build().unwrap().layer(world.apsis.clone());
        let before = Instant::now();

        call(client).await.unwrap();

        assert_eq!(before.elapsed(), MINUTE);
        assert_eq!(world.token_requests(), 3);
    })
    .await;
}

/// A panic grounds nothing: then the budget alone stands between the callers and the endpoint.
#[tokio::test(start_paused = true)]
async fn a_transport_that_always_panics_is_called_within_the_budget() {
    limited(async {
        let world = World::new();
        let attempts = Attempts::default();
        let transport = attempts.before(service_fn(|_| async { panics() }));
        let client = world.builder().transport(transport).build().unwrap().layer(world.apsis.clone());

        for _ in 0..1000 {
            call(client.clone()).await.unwrap_err();
        }

        assert_eq!(attempts.all().len(), 4);
    })
    .await;
}

/// Names are looked up and connections made before the server counts: that may be at any time until the end.
#[tokio::test(start_paused = true)]
async fn an_attempt_counts_until_a_minute_after_its_end() {
    limited(async {
        let world = World::new();
        let attempts = Attempts::default();
        let gate = Arc::new(Semaphore::new(1));
        let unavailable = service_fn(|_| async { Ok::<_, BoxError>(answer(StatusCode::SERVICE_UNAVAILABLE, "")) });
        let transport = GlobalConcurrencyLimitLayer::with_semaphore(gate.clone()).layer(attempts.before(unavailable));
        let layer = world.builder().transport(transport).token_requests_per_minute(1).build().unwrap();
        let client = layer.layer(world.apsis.clone());

        let closed = gate.try_acquire().unwrap();
        let first = tokio::spawn(call(client.clone()));
        sleep(seconds(10)).await;
        drop(closed);
        let error = first.await.unwrap().unwrap_err();
        sleep_until(retry_at(&error)).await;
        call(client).await.unwrap_err();

        let attempts = attempts.all();
        assert_eq!(attempts.len(), 2);
        assert!(attempts[1] - attempts[0] >= MINUTE, "{:?}", attempts[1] - attempts[0]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sees_each_request_late_sees_no_more_than_the_budget() {
    limited(async {
        let world = World::new();
        let seen = Attempts::default();
        let unavailable = service_fn(|_| async { Ok::<_, BoxError>(answer(StatusCode::SERVICE_UNAVAILABLE, "")) });
        // A slow connection and then a fast one brings two requests together.
        let slow = Arc::new(Mutex::new(false));
        let connect = move || {
            let mut slow = slow.lock().unwrap();
            *slow = !*slow;
            if *slow { seconds(14) } else { Duration::ZERO }
        };
        let transport = connecting(connect, seen.before(unavailable));
        for budget in 1..=4 {
            seen.forget();
            let builder = world.builder().transport(transport.clone()).token_requests_per_minute(budget);
            let handle = builder.build().unwrap().handle();
            let end = Instant::now() + 10 * MINUTE;
            while Instant::now() < end {
                let _ = handle.renew().await;
                sleep(seconds(1)).await;
            }
            assert_eq!(more_than(budget as usize, &seen.all()), None, "budget {budget}");
            assert!(seen.all().len() >= 4 * budget as usize, "the budget is used");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_minute_of_the_servers_sees_more_attempts_than_the_budget_however_long_connections_take() {
    limited(async {
        const CASES: u64 = 200;
        let mut spread = 0;
        for seed in 0..CASES {
            let (budget, started, seen) = a_few_minutes_of_slow_connections(seed).await;
            assert_eq!(more_than(budget, &seen), None, "seed {seed}, budget {budget}");
            spread += u64::from(more_than(budget, &started).is_none() && seen.len() > budget);
        }
        assert!(spread > CASES / 2, "the budget was used up in {spread} of {CASES} cases only");
    })
    .await;
}

// Law 4: cancellation.

/// On its way a call waits for the first token, the answer, a renewal and the answer to its replay, 100 ms each. It is
/// dropped at every 10th of them.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_cancels_nobody_else() {
    limited(async {
        for tenth in 0..40 {
            let world = World::new();
            world.apsis.set_token_delay(Duration::from_millis(100));
            world.apsis.set_api_delay(Duration::from_millis(100));
            let client = world.client();

            // The one that is dropped came first: the flight is its own.
            let dropped = tokio::spawn(timeout(Duration::from_millis(10 * tenth + 5), call(client.clone())));
            yield_now().await;
            let other = tokio::spawn(async move { send(&client, keyspaces()).await });
            sleep(Duration::from_millis(50)).await;
            // Dead before it arrives.
            world.apsis.revoke_tokens();
            let other = other.await.unwrap().unwrap();

            assert!(dropped.await.unwrap().is_err(), "it did not come to its end");
            assert_eq!(other.status(), StatusCode::OK, "tenth {tenth}");
            assert!(matches!(other.extensions().get(), Some(AuthOutcome::Replayed)));
            assert_eq!(world.token_requests(), 2, "tenth {tenth}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_flight_whose_every_waiter_is_gone_still_lands() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(seconds(5));
        let client = world.client();

        let waiters = all(100, |_| timeout(seconds(1), call(client.clone()))).await;
        assert!(waiters.iter().all(Result::is_err));
        sleep(seconds(4)).await;

        let before = Instant::now();
        call(client).await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO, "the token is there");
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

/// The grounding lasts 5 s, the flight that follows it a second. One waiter is dropped at every half of them.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_during_a_grounding_cancels_nobody_else_and_keeps_no_permit() {
    limited(async {
        for half in 0..12 {
            let world = World::new();
            world.apsis.set_token_delay(seconds(1));
            world.apsis.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY)]);
            let gate = Arc::new(Semaphore::new(1));
            let inner = GlobalConcurrencyLimitLayer::with_semaphore(gate.clone()).layer(world.apsis.clone());
            let client = world.builder().flight_timeout(seconds(2)).build().unwrap().layer(inner);
            call(client.clone()).await.unwrap_err();

            let dropped = begin(timeout(Duration::from_millis(500 * half + 250), call(client.clone()))).await;
            let other = begin(call(client)).await;
            let before = Instant::now();

            assert!(dropped.await.unwrap().is_err(), "it did not come to its end");
            assert_eq!(gate.available_permits(), 1);
            assert_eq!(other.await.unwrap().unwrap(), StatusCode::OK, "half {half}");
            assert_eq!((before.elapsed(), world.token_requests()), (seconds(6), 2), "half {half}");
            assert_eq!(gate.available_permits(), 1);
        }
    })
    .await;
}

/// Its place in the line for a permit goes with it, and so does a permit that it was given and has not seen yet.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_before_the_inner_service_is_ready_cancels_nobody_else_and_keeps_no_permit() {
    limited(async {
        for (is_replay, is_given) in [(false, false), (false, true), (true, false), (true, true)] {
            let world = World::new();
            world.apsis.set_token_delay(seconds(1));
            let gate = Arc::new(Semaphore::new(2));
            let inner = GlobalConcurrencyLimitLayer::with_semaphore(gate.clone()).layer(world.apsis.clone());
            let client = world.layer().layer(inner);
            if is_replay {
                call(client.clone()).await.unwrap();
                world.apsis.revoke_tokens();
            }
            let dropped = begin(call(client.clone())).await;
            let other = begin(call(client)).await;
            // Both wait for a token. When they have it, they wait for a permit.
            let mut closed = gate.clone().try_acquire_many_owned(2).unwrap();
            sleep(seconds(2)).await;
            assert_eq!(world.token_requests(), 1 + u64::from(is_replay));

            if is_given {
                drop(closed.split(1));
                dropped.abort();
            } else {
                dropped.abort();
                yield_now().await;
                drop(closed.split(1));
            }

            assert!(dropped.await.unwrap_err().is_cancelled());
            assert_eq!(other.await.unwrap().unwrap(), StatusCode::OK, "replay: {is_replay}, given: {is_given}");
            drop(closed);
            assert_eq!(gate.available_permits(), 2, "replay: {is_replay}, given: {is_given}");
            assert_eq!(world.token_requests(), 1 + u64::from(is_replay));
        }
    })
    .await;
}

/// A token request takes a second. What waits for it is dropped at every tenth.
#[tokio::test(start_paused = true)]
async fn a_get_and_a_renew_that_are_dropped_cancel_nobody_else() {
    limited(async {
        for tenth in 0..10 {
            for (is_forced, is_alone) in [(false, false), (false, true), (true, false), (true, true)] {
                let world = World::new();
                world.apsis.set_token_delay(seconds(1));
                let handle = world.layer().handle();
                if is_forced {
                    handle.get().await.unwrap();
                }
                let wanted = || {
                    let handle = handle.clone();
                    async move { if is_forced { handle.renew().await } else { handle.get().await } }
                };
                let before = Instant::now();
                let dropped = begin(timeout(Duration::from_millis(100 * tenth + 50), wanted())).await;
                let other = if is_alone { None } else { Some(begin(wanted()).await) };

                assert!(dropped.await.unwrap().is_err(), "it did not come to its end");
                let generation = 1 + u64::from(is_forced);
                if let Some(other) = other {
                    assert_eq!(other.await.unwrap().unwrap().generation(), generation, "tenth {tenth}");
                    assert_eq!(before.elapsed(), seconds(1));
                }
                sleep_until(before + seconds(2)).await;
                assert_eq!(handle.snapshot().token.unwrap().generation, generation, "tenth {tenth}: it lands");
                assert_eq!(world.token_requests(), generation, "tenth {tenth}");
            }
        }
    })
    .await;
}

// Law 5: a transport that panics.

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_fails_its_waiters_and_the_next_call_flies_again() {
    limited(async {
        for in_call in [true, false] {
            let world = patient_world();
            let apsis = world.apsis.clone();
            let first = Arc::new(Mutex::new(true));
            let transport = service_fn(move |request: Request<Full<Bytes>>| {
                let panics = std::mem::take(&mut *first.lock().unwrap());
                assert!(!(panics && in_call), "a panic in call, as wanted");
                let apsis = apsis.clone();
                async move {
                    sleep(seconds(1)).await;
                    assert!(!panics, "a panic in the future, as wanted");
                    apsis.oneshot(request).await
                }
            });
            let client = world.builder().transport(transport).build().unwrap().layer(world.apsis.clone());

            let errors = all(100, |_| call(client.clone())).await;
            assert!(errors.iter().all(|error| matches!(error, Err(AuthError::Interrupted))), "{errors:?}");

            call(client).await.unwrap();
            assert_eq!(world.token_requests(), 1);
        }
    })
    .await;
}

/// A flight that was interrupted lands while its task unwinds: a second panic there would end the process.
#[tokio::test(start_paused = true)]
async fn a_source_of_random_numbers_that_panics_fails_the_waiters_and_the_next_call_flies_again() {
    limited(async {
        // It is asked when a token lands, when a failure does, and between two attempts.
        let limit = Answer::too_many_requests().header("retry-after", "300");
        for first in [Answer::genuine(), invalid_client(), limit, Answer::status(StatusCode::BAD_GATEWAY)] {
            let world = patient_world();
            world.apsis.script_token_answers([first]);
            let panics = Arc::new(AtomicBool::new(true));
            let random = {
                let panics = Arc::clone(&panics);
                move || if panics.load(Ordering::Relaxed) { panic!("a panic, as wanted") } else { 0.5 }
            };
            let layer = world.builder().random(random).build().unwrap();
            let client = layer.layer(world.apsis.clone());

            let errors = all(100, |_| call(client.clone())).await;
            assert!(errors.iter().all(|error| matches!(error, Err(AuthError::Interrupted))), "{errors:?}");
            assert_eq!(world.token_requests(), 1);
            assert!(!layer.handle().snapshot().in_flight);

            panics.store(false, Ordering::Relaxed);
            call(client).await.unwrap();
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_panics_in_a_flight_fails_the_waiters_and_the_next_call_flies_again() {
    limited(async {
        let world = patient_world();
        let panics = Arc::new(AtomicBool::new(false));
        let now = {
            let (panics, wall) = (Arc::clone(&panics), world.wall.clone());
            move || if panics.load(Ordering::Relaxed) { panic!("a panic, as wanted") } else { wall.now() }
        };
        let client = world.builder().wall_clock(now).build().unwrap().layer(world.apsis.clone());

        let waiter = begin(call(client.clone())).await;
        panics.store(true, Ordering::Relaxed);
        assert!(matches!(waiter.await.unwrap(), Err(AuthError::Interrupted)));

        panics.store(false, Ordering::Relaxed);
        call(client).await.unwrap();
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_call_or_in_the_answers_body_is_one_like_any_other() {
    async fn assert_one_panic(world: &World, builder: ApsisAuthBuilder) {
        let client = builder.build().unwrap().layer(world.apsis.clone());
        let errors = all(100, |_| call(client.clone())).await;
        assert!(errors.iter().all(|error| matches!(error, Err(AuthError::Interrupted))), "{errors:?}");

        call(client).await.unwrap();
        assert_eq!(world.token_requests(), 1);
    }

    limited(async {
        let world = patient_world();
        let transport = OnceUnready { panics: Arc::new(AtomicBool::new(true)), apsis: world.apsis.clone() };
        assert_one_panic(&world, world.builder().transport(transport)).await;

        let world = patient_world();
        let (apsis, panics) = (world.apsis.clone(), Arc::new(AtomicBool::new(true)));
        let transport = service_fn(move |request: Request<Full<Bytes>>| {
            let (apsis, panics) = (apsis.clone(), panics.swap(false, Ordering::Relaxed));
            async move {
                if !panics {
                    return Ok(apsis.oneshot(request).await?.map(|body| body.map_err(BoxError::from).boxed_unsync()));
                }
                let body = Full::new(Bytes::from_static(b"{")).map_frame(|_| -> Frame<Bytes> {
                    panic!("a panic in the body, as wanted");
                });
                Ok::<_, BoxError>(Response::new(body.map_err(BoxError::from).boxed_unsync()))
            }
        });
        assert_one_panic(&world, world.builder().transport(transport)).await;
    })
    .await;
}

// Law 6: runtimes.

#[test]
fn the_layer_is_built_where_there_is_no_runtime() {
    let client = World::new().client();
    assert_eq!(runtime().block_on(limited(call(client))).unwrap(), StatusCode::OK);
}

#[test]
fn a_call_without_a_runtime_is_an_error() {
    let client = World::new().client();
    let error = poll_once(call(client)).unwrap_err();
    assert!(matches!(error, AuthError::NoRuntime));
    assert!(!error.is_retryable());
}

#[test]
fn a_token_at_hand_needs_no_runtime() {
    let world = World::new();
    let client = world.client();
    runtime().block_on(limited(call(client.clone()))).unwrap();
    assert_eq!(poll_once(call(client.clone())).unwrap(), StatusCode::OK);
    assert_eq!(world.token_requests(), 1);
}

#[test]
fn a_runtime_dies_and_the_layer_goes_on_with_the_token_it_had() {
    let world = World::new();
    let client = world.client();
    for _ in 0..3 {
        assert_eq!(runtime().block_on(limited(call(client.clone()))).unwrap(), StatusCode::OK);
    }
    assert_eq!(world.token_requests(), 1);
}

#[test]
fn a_runtime_that_dies_during_a_flight_fails_its_waiters_and_another_one_flies_again() {
    let world = World::new();
    world.apsis.set_token_delay(seconds(1));
    let client = world.client();
    let (dying, living) = (runtime(), runtime());
    dying.block_on(begin(call(client.clone())));
    let waiter = living.spawn(call(client.clone()));
    living.block_on(yield_now());
    assert_eq!(world.token_requests(), 1);

    drop(dying);

    let error = living.block_on(limited(waiter)).unwrap().unwrap_err();
    assert!(matches!(error, AuthError::Interrupted), "{error:?}");
    assert_eq!(living.block_on(limited(call(client))).unwrap(), StatusCode::OK);
    assert_eq!(world.token_requests(), 2);
}

#[test]
fn a_flight_on_a_runtime_that_is_gone_lands_at_once() {
    let client = World::new().client();
    let runtime = runtime();
    let gone = runtime.handle().clone();
    drop(runtime);
    let _context = gone.enter();
    let error = poll_once(call(client)).unwrap_err();
    assert!(matches!(error, AuthError::Interrupted), "{error:?}");
}

#[test]
fn a_runtime_that_stands_still_does_not_keep_the_flight_for_ever() {
    let world = World::new();
    world.apsis.set_token_delay(seconds(1));
    let layer = world.layer();
    let client = layer.layer(world.apsis.clone());
    let (still, driven) = (runtime(), runtime());
    let first = still.block_on(begin(call(client.clone())));

    driven.block_on(limited(async {
        let error = call(client.clone()).await.unwrap_err();
        assert!(matches!(error, AuthError::TimedOut { .. }), "{error:?}");
        sleep(seconds(2)).await;
        assert_eq!(call(client.clone()).await.unwrap(), StatusCode::OK);
    }));
    assert_eq!(world.token_requests(), 2);
    let token = driven.block_on(layer.handle().get()).unwrap();

    // The flight that comes late changes nothing.
    let _ = still.block_on(limited(first)).unwrap();
    let now = still.block_on(layer.handle().get()).unwrap();
    assert_eq!((now.generation(), now.expose_secret()), (token.generation(), token.expose_secret()));
    assert_eq!(world.token_requests(), 2);
}

#[test]
fn who_joined_a_flight_that_stands_still_looks_again_and_is_served_by_another_one() {
    let world = World::new();
    world.apsis.set_token_delay(seconds(1));
    let client = world.builder().max_wait(MINUTE).build().unwrap().layer(world.apsis.clone());
    let (still, driven) = (runtime(), runtime());
    still.block_on(begin(call(client.clone())));

    driven.block_on(limited(async {
        let before = Instant::now();
        let joined = all(100, |_| call(client.clone())).await;
        assert!(joined.iter().all(|answer| matches!(answer, Ok(StatusCode::OK))), "{:?}", joined[0]);
        // The flight had 30 s and its grace, the other one takes one. The clocks of two runtimes are not quite the same.
        let waited = before.elapsed();
        assert!(waited > seconds(31) && waited < seconds(34), "{waited:?}");
    }));
    assert_eq!(world.token_requests(), 2);
}

/// What a flight tries once another one has taken over is neither sent nor counted.
#[test]
fn a_flight_that_was_given_up_makes_no_further_attempt() {
    let world = World::new();
    world.apsis.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY), Answer::genuine().delay(seconds(60))]);
    let builder = world.builder().max_wait(2 * MINUTE).attempt_timeout(2 * MINUTE);
    let layer = builder.build().unwrap();
    let client = layer.layer(world.apsis.clone());
    let (still, driven) = (runtime(), runtime());
    // The first attempt has failed, and the flight pauses before the second.
    let first = still.block_on(begin(call(client.clone())));
    assert_eq!(world.token_requests(), 1);

    driven.block_on(limited(async { sleep(seconds(32)).await }));
    // Its time is over by now. The next flight is under way when the first one goes on.
    let other = driven.block_on(begin(call(client)));
    assert_eq!(world.token_requests(), 2);
    let left = layer.handle().snapshot().attempts_left;
    still.block_on(limited(async { sleep(seconds(5)).await }));

    assert_eq!(world.token_requests(), 2);
    assert_eq!(layer.handle().snapshot().attempts_left, left);
    other.abort();
    first.abort();
}

/// Its attempt ends while that of the other flight is under way, which counts until a minute after its own end.
#[test]
fn a_flight_that_was_given_up_ends_no_attempt_of_another_one() {
    let world = World::new();
    world.apsis.script_token_answers([1, 50].map(|delay| Answer::genuine().delay(seconds(delay))));
    let builder = world.builder().max_wait(2 * MINUTE).attempt_timeout(2 * MINUTE).flight_timeout(MINUTE);
    let layer = builder.build().unwrap();
    let client = layer.layer(world.apsis.clone());
    let (still, driven) = (runtime(), runtime());
    let first = still.block_on(begin(call(client.clone())));

    // The first flight is lost after its minute and the grace; the second one's attempt takes from 62 s to 112 s.
    driven.block_on(limited(async { sleep(seconds(62)).await }));
    let other = driven.block_on(begin(call(client)));
    assert_eq!(world.token_requests(), 2);
    still.block_on(limited(async { sleep(seconds(5)).await }));
    driven.block_on(limited(other)).unwrap().unwrap();

    driven.block_on(limited(async { sleep(seconds(15)).await }));
    let left = driven.block_on(async { layer.handle().snapshot().attempts_left });
    assert_eq!(left, 3, "the one that ended 15 s ago counts");
    drop(first);
}

#[test]
fn a_runtime_driven_now_and_then_sends_no_expired_token() {
    let world = World::new();
    let client = world.client();
    let runtime = runtime();
    let mut skew = 0;
    // In turn: cold, good, due (the refresh is left hanging), and expired.
    for hours in [0, 10, 10, 10, 25, 100, 21, 25] {
        skew += hours * 3600;
        world.wall.jump(hours * 3600);
        world.apsis.set_clock_skew(skew);
        runtime.block_on(advance(seconds(6)));
        assert_eq!(runtime.block_on(limited(call(client.clone()))).unwrap(), StatusCode::OK);
    }
    let counters = world.apsis.counters();
    assert_eq!((counters.api_accepted, counters.api_rejected), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_dropped_leaves_no_task() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::hang()]);
        let layer = world.layer();
        let handle = layer.handle();
        let waiter = begin(call(layer.layer(world.apsis.clone()))).await;
        drop(layer);
        waiter.abort();
        waiter.await.unwrap_err();
        assert_eq!(alive_tasks(), 1, "the flight goes on as long as there is a handle");

        drop(handle);
        no_task_is_left().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_dropped_between_two_attempts_leaves_no_task() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY)]);
        let waiter = begin(call(world.client())).await;
        // The first attempt failed at once, the next one is a second and a half away.
        sleep(seconds(1)).await;
        assert_eq!((world.token_requests(), alive_tasks()), (1, 2));

        waiter.abort();
        waiter.await.unwrap_err();
        no_task_is_left().await;
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_at_hand_is_kept_by_no_task() {
    limited(async {
        let world = World::new();
        call(world.client()).await.unwrap();
        no_task_is_left().await;
    })
    .await;
}

// Law 7: a fleet.

#[tokio::test(start_paused = true)]
async fn fifty_processes_are_served_within_twenty_minutes_and_refresh_apart() {
    const PROCESSES: usize = 50;
    limited(async {
        for refusals_count in [true, false] {
            let world = World::new();
            world.apsis.set_refusals_count(refusals_count);
            let attempts = Attempts::default();
            let start = Instant::now();
            let fleet: Vec<_> = (0..PROCESSES as u64)
                .map(|seed| {
                    let draws = Mutex::new(Rng::with_seed(seed));
                    let transport = attempts.before(world.apsis.clone());
                    let builder = world.builder().transport(transport).random(move || draws.lock().unwrap().f64());
                    builder.build().unwrap().layer(world.apsis.clone())
                })
                .collect();

            let served = all(PROCESSES, |number| until_served(fleet[number].clone())).await;
            let last = *served.iter().max().unwrap();
            assert!(last - start < 20 * MINUTE, "the last after {:?}, refusals count: {refusals_count}", last - start);
            assert_eq!(world.apsis.counters().tokens_issued, PROCESSES as u64);

            // The tokens are due after 18 hours at the earliest, and good for almost 24.
            sleep_until(start + 18 * HOUR).await;
            let before = world.apsis.counters();
            attempts.forget();
            while start.elapsed() < 23 * HOUR {
                for process in &fleet {
                    call(process.clone()).await.unwrap();
                }
                sleep(2 * MINUTE).await;
            }
            let refreshes = attempts.all();
            assert_eq!(refreshes.len(), PROCESSES);
            assert_eq!(world.apsis.counters().token_limited, before.token_limited);
            assert!(refreshes[PROCESSES - 1] - refreshes[0] > 3 * HOUR, "they take up most of the 15 % of a day");
            let crowd = refreshes.windows(8).find(|window| window[7] - window[0] < 5 * MINUTE);
            assert_eq!(crowd, None);
        }
    })
    .await;
}

// What callers are promised besides.

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_a_flight_no_longer_than_max_wait_and_the_flight_goes_on() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(seconds(10));
        let client = world.builder().max_wait(seconds(3)).build().unwrap().layer(world.apsis.clone());
        let before = Instant::now();

        let error = call(client.clone()).await.unwrap_err();
        assert!(matches!(error, AuthError::TimedOut { after, .. } if after == seconds(3)), "{error:?}");
        assert!(error.is_retryable());
        assert_eq!(before.elapsed(), seconds(3));

        sleep(seconds(5)).await;
        call(client).await.unwrap();
        assert_eq!(before.elapsed(), seconds(10));
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

/// Both take 30 s unless set otherwise. What came of the flight says more than that time is up.
#[tokio::test(start_paused = true)]
async fn who_may_wait_to_the_end_of_a_flight_hears_what_came_of_it() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers(vec![Answer::hang(); 10]);
        let started = Instant::now();
        let error = call(world.client()).await.unwrap_err();
        assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
        assert_eq!(started.elapsed().as_secs(), 30);
    })
    .await;
}

/// The token takes eight seconds to come and lives for few more, and the inner service is ready after fifteen: each time
/// too late.
#[tokio::test(start_paused = true)]
async fn a_call_waits_for_tokens_no_longer_than_max_wait_in_sum() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_lifetime(seconds(20));
        world.apsis.set_token_delay(seconds(8));
        let client = world.layer().layer(ReadyAfter::new(seconds(15), world.apsis.clone()));
        let before = Instant::now();

        let error = timeout(5 * MINUTE, call(client)).await.expect("it gives up").unwrap_err();

        assert!(matches!(error, AuthError::TimedOut { after, .. } if after == seconds(30)), "{error:?}");
        // The service is ready at first; then eight seconds and fifteen, thrice, and the six that were left of thirty.
        assert_eq!(before.elapsed(), seconds(15 + 3 * (8 + 15) + 6));
        assert_eq!(world.token_requests(), 4);
        assert_eq!(world.apsis.counters().api_requests, 0);
    })
    .await;
}

/// Ten seconds of thirty go to the first token; the renewal that hangs may have the other twenty.
#[tokio::test(start_paused = true)]
async fn a_renewal_takes_from_the_same_max_wait() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(seconds(10));
        world.apsis.script_api_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        world.apsis.script_token_answers([Answer::genuine(), Answer::hang(), Answer::hang(), Answer::hang()]);
        let before = Instant::now();
        let response = send(&world.client(), keyspaces()).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotRenewed(AuthError::TimedOut { .. }))));
        assert_eq!(before.elapsed(), seconds(30));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_through_a_grounding_that_ends_within_max_wait() {
    limited(async {
        for (max_wait, is_served) in [(6, true), (4, false)] {
            let world = World::new();
            world.apsis.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY)]);
            let builder = world.builder().max_wait(seconds(max_wait)).flight_timeout(seconds(1));
            let client = builder.build().unwrap().layer(world.apsis.clone());
            let error = call(client.clone()).await.unwrap_err();
            assert_eq!(retry_at(&error) - Instant::now(), seconds(5));
            let before = Instant::now();

            assert_eq!(call(client).await.is_ok(), is_served);

            assert_eq!(before.elapsed(), if is_served { seconds(5) } else { Duration::ZERO });
            assert_eq!(world.token_requests(), 1 + u64::from(is_served));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_waited_through_a_grounding_takes_the_token_that_came_meanwhile() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY)]);
        let layer = world.builder().flight_timeout(seconds(1)).build().unwrap();
        let client = layer.layer(world.apsis.clone());
        call(client.clone()).await.unwrap_err();

        let waiter = begin(call(client)).await;
        layer.handle().renew().await.unwrap();

        assert_eq!(waiter.await.unwrap().unwrap(), StatusCode::OK);
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_through_a_grounding_is_served_at_once_when_a_token_comes_meanwhile() {
    limited(async {
        for is_rejected in [false, true] {
            let world = World::new();
            let layer = world.builder().flight_timeout(seconds(1)).build().unwrap();
            let client = layer.layer(world.apsis.clone());
            if is_rejected {
                call(client.clone()).await.unwrap();
                world.apsis.revoke_tokens();
            }
            world.apsis.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY)]);
            let error = layer.handle().renew().await.unwrap_err();
            assert_eq!(retry_at(&error) - Instant::now(), seconds(5));
            let before = Instant::now();

            let waiters = tokio::spawn(all(100, move |_| call(client.clone())));
            sleep(seconds(2)).await;
            layer.handle().renew().await.unwrap();
            let answers = waiters.await.unwrap();

            assert!(answers.iter().all(|answer| matches!(answer, Ok(StatusCode::OK))), "{:?}", answers[0]);
            assert_eq!(before.elapsed(), seconds(2), "rejected: {is_rejected}");
            assert_eq!(world.token_requests(), 2 + u64::from(is_rejected));
        }
    })
    .await;
}

/// Used-up budget is no news to somebody whose key is refused, or who is told to come back much later.
#[tokio::test(start_paused = true)]
async fn a_grounding_is_not_hidden_by_forced_renewals_that_use_up_the_budget() {
    type Expected = fn(&AuthError) -> bool;
    limited(async {
        let cases: [(Answer, u64, Expected); 2] = [
            (invalid_client(), 30, |error| matches!(error, AuthError::Refused { .. })),
            (Answer::too_many_requests().header("retry-after", "300"), 315, |error| {
                matches!(error, AuthError::RateLimited { .. })
            }),
        ];
        for (first, wait, is_of_the_first) in cases {
            let world = World::new();
            let broken = Arc::new(AtomicBool::new(false));
            let apsis = world.apsis.clone();
            apsis.script_token_answers([first]);
            let transport = {
                let broken = Arc::clone(&broken);
                service_fn(move |request: Request<Full<Bytes>>| {
                    // It grounds nothing, and has used up an attempt.
                    assert!(!broken.load(Ordering::Relaxed), "a panic, as wanted");
                    apsis.clone().oneshot(request)
                })
            };
            let handle = world.builder().transport(transport).build().unwrap().handle();
            let before = Instant::now();
            assert!(is_of_the_first(&handle.get().await.unwrap_err()));

            broken.store(true, Ordering::Relaxed);
            sleep(seconds(20)).await;
            for _ in 0..3 {
                assert!(matches!(handle.renew().await, Err(AuthError::Interrupted)));
            }
            let error = handle.renew().await.unwrap_err();
            assert!(matches!(error, AuthError::OutOfBudget { .. }), "{error:?}");
            assert_eq!(retry_at(&error) - before, MINUTE);

            let error = handle.get().await.unwrap_err();
            assert!(is_of_the_first(&error), "{error:?}");
            assert_eq!(retry_at(&error) - before, seconds(wait));
            let grounded = handle.snapshot().grounded.unwrap();
            assert_eq!((grounded.for_seconds, grounded.because), (wait - 20, error.to_string()));

            if wait < 60 {
                sleep_until(before + seconds(wait)).await;
                let error = handle.get().await.unwrap_err();
                assert!(matches!(error, AuthError::OutOfBudget { .. }), "{error:?}");
                let grounded = handle.snapshot().grounded.unwrap();
                assert_eq!((grounded.for_seconds, grounded.because), (60 - wait, error.to_string()));
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_renewal_passes_the_grounding() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([invalid_client()]);
        let handle = world.layer().handle();
        handle.get().await.unwrap_err();
        assert!(handle.snapshot().grounded.is_some());

        assert_eq!(handle.renew().await.unwrap().generation(), 1);

        assert_eq!(world.token_requests(), 2);
        assert_eq!(handle.snapshot().grounded, None, "a token ends the grounding");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_renewal_does_not_pass_the_budget() {
    limited(async {
        let world = World::new();
        let builder = || world.builder().token_requests_per_minute(1);
        let handle = builder().build().unwrap().handle();
        let before = Instant::now();
        handle.get().await.unwrap();
        let error = handle.renew().await.unwrap_err();
        assert!(matches!(error, AuthError::OutOfBudget { .. }), "{error:?}");
        assert_eq!(retry_at(&error) - before, MINUTE);
        assert_eq!(handle.get().await.unwrap().generation(), 1, "the token stays in use");
        assert_eq!(world.token_requests(), 1);

        let handle = builder().max_wait(2 * MINUTE).build().unwrap().handle();
        let before = Instant::now();
        handle.get().await.unwrap();
        assert_eq!(handle.renew().await.unwrap().generation(), 2);
        assert_eq!(before.elapsed(), MINUTE, "who can wait for room waits");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn forced_renewals_share_a_flight() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(seconds(1));
        let handle = world.layer().handle();
        handle.get().await.unwrap();

        let renewed = all(100, |_| {
            let handle = handle.clone();
            async move { handle.renew().await.unwrap().generation() }
        })
        .await;

        assert_eq!(renewed, vec![2; 100]);
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_warm_up_the_first_call_does_not_wait() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(seconds(5));
        let layer = world.layer();
        layer.handle().warm_up().await.unwrap();
        layer.handle().warm_up().await.unwrap();
        let before = Instant::now();

        call(layer.layer(world.apsis.clone())).await.unwrap();

        assert_eq!(before.elapsed(), Duration::ZERO);
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_says_what_is_wrong() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([invalid_client()]);
        let error = world.layer().handle().warm_up().await.unwrap_err();
        assert_eq!(&*refusal(&error), "invalid_client");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_each_state() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(seconds(1));
        world.apsis.script_token_answers([invalid_client()]);
        let handle = world.layer().handle();
        let snapshot = || json_of(&handle.snapshot());
        let good = json!({"generation": 1, "usable": true, "expires_in_seconds": 86_400, "due_in_seconds": 71_280, "adopted": false});

        let cold = json!({"token": null, "in_flight": false, "grounded": null, "attempts_left": 4});
        assert_eq!(snapshot(), cold);

        let waiter = begin(get(&handle)).await;
        let flying = json!({"token": null, "in_flight": true, "grounded": null, "attempts_left": 3});
        assert_eq!(snapshot(), flying);

        let because = waiter.await.unwrap().unwrap_err().to_string();
        sleep(Duration::from_millis(500)).await;
        let grounded = json!({"for_seconds": 30, "because": because});
        let on_the_ground = json!({"token": null, "in_flight": false, "grounded": grounded, "attempts_left": 3});
        assert_eq!(snapshot(), on_the_ground);

        sleep(seconds(30)).await;
        assert_eq!(snapshot(), json!({"token": null, "in_flight": false, "grounded": null, "attempts_left": 3}));

        world.apsis.set_token_delay(Duration::ZERO);
        handle.renew().await.unwrap();
        let served = json!({"token": good, "in_flight": false, "grounded": null, "attempts_left": 2});
        assert_eq!(snapshot(), served);

        sleep(seconds(71_280)).await;
        let due = json!({"generation": 1, "usable": true, "expires_in_seconds": 15_120, "due_in_seconds": 0, "adopted": false});
        assert_eq!(snapshot(), json!({"token": due, "in_flight": false, "grounded": null, "attempts_left": 4}));

        sleep(seconds(15_060)).await;
        let in_the_margin = json!({"generation": 1, "usable": false, "expires_in_seconds": 60, "due_in_seconds": 0, "adopted": false});
        assert_eq!(snapshot()["token"], in_the_margin);

        sleep(MINUTE).await;
        let expired = json!({"generation": 1, "usable": false, "expires_in_seconds": 0, "due_in_seconds": 0, "adopted": false});
        assert_eq!(snapshot()["token"], expired);
        assert_eq!(world.token_requests(), 2, "looking makes no request");
    })
    .await;
}

// Helpers.

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A world whose API does not mind a thousand callers at once.
fn patient_world() -> World {
    let world = World::new();
    world.apsis.set_api_limit(10_000);
    world.apsis.set_token_delay(Duration::from_millis(50));
    world
}

fn invalid_client() -> Answer {
    Answer::status(StatusCode::UNAUTHORIZED).body(r#"{"error":"invalid_client"}"#)
}

/// The status of one call, or what the layer had against it.
async fn call<S, B>(client: S) -> Result<StatusCode, AuthError>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError> + Clone,
{
    match send(&client, keyspaces()).await {
        Ok(response) => Ok(response.status()),
        Err(error) => Err(*error.downcast().expect("the API itself does not fail")),
    }
}

/// Calls until it is served, each time when it is told to; the moment it was.
async fn until_served<S, B>(client: S) -> Instant
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError> + Clone,
{
    while let Err(error) = call(client.clone()).await {
        sleep_until(retry_at(&error)).await;
    }
    Instant::now()
}

fn retry_at(error: &AuthError) -> Instant {
    error.retry_at().expect("an error that says when").into()
}

fn refusal(error: &AuthError) -> Arc<str> {
    match error {
        AuthError::Refused { code: Some(code), .. } => code.clone(),
        other => panic!("not a refusal with a code: {other:?}"),
    }
}

fn get(handle: &TokenHandle) -> impl Future<Output = Result<AccessToken, AuthError>> + use<> {
    let handle = handle.clone();
    async move { handle.get().await }
}

fn json_of(snapshot: &Snapshot) -> Value {
    serde_json::to_value(snapshot).unwrap()
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Starts a task and runs it, and the flight it starts, as far as they come without the clock.
async fn begin<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let task = tokio::spawn(task);
    for _ in 0..5 {
        yield_now().await;
    }
    task
}

fn poll_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits, and there is nobody to wake it"),
    }
}

/// A moment of the paused clock: no flight ends by itself in it.
async fn no_task_is_left() {
    let ended = async {
        while alive_tasks() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_millis(100), ended).await.expect("the tasks end");
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// The moments at which a transport was called.
#[derive(Clone, Default)]
pub(crate) struct Attempts(Arc<Mutex<Vec<Instant>>>);

impl Attempts {
    pub(crate) fn before<S>(&self, transport: S) -> Counted<S> {
        Counted { attempts: self.clone(), transport }
    }

    pub(crate) fn all(&self) -> Vec<Instant> {
        self.0.lock().unwrap().clone()
    }

    fn forget(&self) {
        self.0.lock().unwrap().clear();
    }
}

#[derive(Clone)]
pub(crate) struct Counted<S> {
    attempts: Attempts,
    transport: S,
}

impl<S: Service<Request<Full<Bytes>>>> Service<Request<Full<Bytes>>> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.transport.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> S::Future {
        self.attempts.0.lock().unwrap().push(Instant::now());
        self.transport.call(request)
    }
}

/// The emulator, but once it panics when it is asked whether it is ready.
#[derive(Clone)]
struct OnceUnready {
    panics: Arc<AtomicBool>,
    apsis: Emulator,
}

impl Service<Request<Full<Bytes>>> for OnceUnready {
    type Response = <Emulator as Service<Request<Full<Bytes>>>>::Response;
    type Error = <Emulator as Service<Request<Full<Bytes>>>>::Error;
    type Future = <Emulator as Service<Request<Full<Bytes>>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        assert!(!self.panics.swap(false, Ordering::Relaxed), "a panic before the call, as wanted");
        Service::<Request<Full<Bytes>>>::poll_ready(&mut self.apsis, cx)
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        self.apsis.call(request)
    }
}

/// A service of a test's own, good for token requests and for the API.
trait Scripted:
    Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Scripted for S where
    S: Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(body.into())).unwrap()
}

fn panics() -> Result<Response<Full<Bytes>>, BoxError> {
    panic!("a panic, as wanted")
}

/// The first of too many moments within a minute.
fn more_than(budget: usize, moments: &[Instant]) -> Option<&[Instant]> {
    moments.windows(budget + 1).find(|window| window[budget] - window[0] < MINUTE)
}

/// A transport that takes so long before the server sees a request.
fn connecting<S: Scripted>(connect: impl Fn() -> Duration + Clone + Send + Sync + 'static, server: S) -> impl Scripted {
    service_fn(move |request: Request<Full<Bytes>>| {
        let (pause, server) = (connect(), server.clone());
        async move {
            sleep(pause).await;
            server.oneshot(request).await
        }
    })
}

/// A service whose every clone is ready a while after it was asked first.
struct ReadyAfter<S> {
    pause: Duration,
    readying: Option<Pin<Box<Sleep>>>,
    inner: S,
}

impl<S> ReadyAfter<S> {
    fn new(pause: Duration, inner: S) -> Self {
        Self { pause, readying: None, inner }
    }
}

impl<S: Clone> Clone for ReadyAfter<S> {
    fn clone(&self) -> Self {
        Self::new(self.pause, self.inner.clone())
    }
}

impl<S: Service<R>, R> Service<R> for ReadyAfter<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let pause = self.pause;
        ready!(self.readying.get_or_insert_with(|| Box::pin(sleep(pause))).as_mut().poll(cx));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.readying = None;
        self.inner.call(request)
    }
}

/// Connections that take their time: the budget, when attempts were started, and when the server saw them.
async fn a_few_minutes_of_slow_connections(seed: u64) -> (usize, Vec<Instant>, Vec<Instant>) {
    let mut random = Rng::with_seed(seed);
    let world = World::new();
    let (started, arrived) = (Attempts::default(), Attempts::default());
    let budget = random.u32(1..=5);
    let delays = Arc::new(Mutex::new(random.fork()));
    let connect = move || Duration::from_millis(delays.lock().unwrap().u64(0..16_000));
    let layer = world
        .builder()
        .transport(started.before(connecting(connect, arrived.before(moody_endpoint(random.fork())))))
        .token_requests_per_minute(budget)
        .flight_timeout(seconds(random.u64(10..200)))
        .build()
        .unwrap();
    let end = Instant::now() + 10 * MINUTE;
    while Instant::now() < end {
        let handle = layer.handle();
        let patience = Duration::from_millis(random.u64(0..40_000));
        if random.bool() {
            let _ = timeout(patience, handle.renew()).await;
        } else {
            tokio::spawn(timeout(patience, async move { handle.renew().await }));
        }
        sleep(Duration::from_millis(random.u64(0..20_000))).await;
    }
    (budget as usize, started.all(), arrived.all())
}

/// What a process goes through when nothing is well: the number of attempts it may make a minute, and those it made.
async fn a_few_bad_minutes(seed: u64) -> (usize, Vec<Instant>) {
    let mut random = Rng::with_seed(seed);
    let world = World::new();
    let attempts = Attempts::default();
    let budget = random.u32(1..=5);
    let draws = Mutex::new(random.fork());
    let layer = world
        .builder()
        .transport(attempts.before(moody_endpoint(random.fork())))
        .token_requests_per_minute(budget)
        .max_wait(seconds(random.u64(1..120)))
        .attempt_timeout(seconds(random.u64(1..20)))
        .flight_timeout(seconds(random.u64(1..200)))
        .random(move || draws.lock().unwrap().f64())
        .build()
        .unwrap();
    let client = layer.layer(moody_api(random.fork()));
    let end = Instant::now() + 5 * MINUTE;
    while Instant::now() < end {
        match random.u32(0..8) {
            0..3 => {
                for _ in 0..random.u32(1..5) {
                    let patience = Duration::from_millis(random.u64(0..40_000));
                    tokio::spawn(timeout(patience, call(client.clone())));
                }
            }
            3 => {
                let handle = layer.handle();
                let patience = Duration::from_millis(random.u64(0..40_000));
                tokio::spawn(timeout(patience, async move { handle.renew().await }));
            }
            4 => world.wall.jump(random.i64(-100_000..100_000)),
            5 => world.wall.jump(random.i64(-10_000_000..10_000_000)),
            _ => sleep(Duration::from_millis(random.u64(0..15_000))).await,
        }
    }
    (budget as usize, attempts.all())
}

/// A token endpoint that gives any answer, and tokens that live as long as they like.
fn moody_endpoint(random: Rng) -> impl Scripted {
    let random = Arc::new(Mutex::new(random));
    service_fn(move |_: Request<Full<Bytes>>| {
        let mut random = random.lock().unwrap();
        let (delay, mood, number) = (random.u64(0..3_000), random.u32(0..16), random.u32(..));
        let (wait, lifetime) = (random.u64(0..100), *random.choice(&[1, 3, 20, 70, 600, 86_400]).unwrap());
        async move {
            sleep(Duration::from_millis(delay)).await;
            Ok(match mood {
                0 => answer(StatusCode::TOO_MANY_REQUESTS, ""),
                1 => {
                    let mut limited = answer(StatusCode::TOO_MANY_REQUESTS, "");
                    limited.headers_mut().insert("retry-after", wait.into());
                    limited
                }
                2 => answer(StatusCode::INTERNAL_SERVER_ERROR, ""),
                3 => answer(StatusCode::SERVICE_UNAVAILABLE, ""),
                4 => answer(StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#),
                5 => answer(StatusCode::FORBIDDEN, ""),
                6 => std::future::pending().await,
                7 => return Err(BoxError::from("the connection broke")),
                8 => answer(StatusCode::OK, "<html>"),
                // Few names, so that now and then it is the same token again.
                _ => {
                    let token = format!("token-{}", number % 4);
                    let token = json!({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"});
                    answer(StatusCode::OK, token.to_string())
                }
            })
        }
    })
}

/// An API that rejects tokens in either dialect as it likes.
fn moody_api(random: Rng) -> impl Scripted {
    let random = Arc::new(Mutex::new(random));
    service_fn(move |_: Request<Full<Bytes>>| {
        let status = match random.lock().unwrap().u32(0..5) {
            0 => StatusCode::UNAUTHORIZED,
            1 => StatusCode::FORBIDDEN,
            _ => StatusCode::OK,
        };
        async move { Ok::<_, BoxError>(answer(status, "")) }
    })
}
