//! A valid token: laws 8 to 12.
#![allow(clippy::unchecked_time_subtraction, reason = "of constants; one below zero fails its test")]

use std::{
    error::Error,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use apsis_auth::{
    ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, AuthError, AuthOutcome, TokenState,
    emulator::{Answer, Emulator, EmulatorBody},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MILLISECOND: Duration = Duration::from_millis(1);
const YEAR_IN_SECONDS: i64 = 366 * 24 * 3600;

// Law 8: a refresh is nobody's business but its own.

#[tokio::test(start_paused = true)]
async fn nobody_waits_during_a_refresh() {
    limited(async {
        let world = World::new();
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        world.apsis.set_token_delay(10 * SECOND);
        sleep(share_of(DAY, 0.825)).await;
        for _ in 0..100 {
            assert_eq!(status_at_once(&client).await, StatusCode::OK);
            sleep(99 * MILLISECOND).await;
        }
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_request_that_starts_a_refresh_goes_out_with_the_token_at_hand() {
    limited(async {
        let world = World::new();
        let api = Api::default();
        let client = world.layer().layer(api.service());
        send(&client, keyspaces()).await.unwrap();
        sleep(share_of(DAY, 0.825)).await;
        send(&client, keyspaces()).await.unwrap();
        sleep(SECOND).await;
        send(&client, keyspaces()).await.unwrap();
        let tokens = api.tokens();
        assert_eq!(tokens[0], tokens[1]);
        assert_ne!(tokens[1], tokens[2]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_the_handle_starts_a_refresh_that_is_due_and_does_not_wait_for_it() {
    limited(async {
        let world = World::new();
        let token = world.layer().handle();
        token.get().await.unwrap();
        sleep(share_of(DAY, 0.825)).await;
        assert_eq!(token.get().await.unwrap().generation(), 1);
        sleep(SECOND).await;
        assert_eq!(token.get().await.unwrap().generation(), 2);
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_hangs_or_is_refused_delays_no_request_and_fails_none() {
    limited(async {
        for trouble in TROUBLES {
            let world = World::new();
            world.apsis.set_token_lifetime(HOUR);
            let endpoint = Endpoint::new(&world);
            let client = endpoint.builder(&world).build().unwrap().layer(world.apsis.clone());
            send(&client, keyspaces()).await.unwrap();
            endpoint.breaks(trouble);
            let started = Instant::now();
            sleep(share_of(HOUR, 0.82)).await;
            while started.elapsed() < HOUR - MINUTE {
                assert_eq!(status_at_once(&client).await, StatusCode::OK, "{}", trouble.name);
                sleep(SECOND).await;
            }
            // Or there was no refresh to be delayed by.
            assert!(world.token_requests() + endpoint.lost() > 1, "{}", trouble.name);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_failed_is_retried_while_the_token_lives() {
    limited(async {
        for trouble in TROUBLES {
            let world = World::new();
            let endpoint = Endpoint::new(&world);
            let layer = endpoint.builder(&world).build().unwrap();
            let client = layer.layer(world.apsis.clone());
            send(&client, keyspaces()).await.unwrap();
            endpoint.breaks(trouble);
            sleep(share_of(DAY, 0.825)).await;
            send_every(SECOND, MINUTE, &client).await;
            endpoint.mends();
            send_every(10 * SECOND, trouble.over_within, &client).await;
            assert_eq!(layer.handle().snapshot().token.unwrap().generation, 2, "{}", trouble.name);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_is_retried_when_its_back_off_is_over_and_no_sooner() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_lifetime(HOUR);
        let endpoint = Endpoint::new(&world);
        let client = endpoint.builder(&world).build().unwrap().layer(world.apsis.clone());
        send(&client, keyspaces()).await.unwrap();
        endpoint.breaks(trouble("invalid_client"));
        sleep(share_of(HOUR, 0.825)).await;
        send_every(SECOND, 9 * MINUTE, &client).await;
        // At once, and after 30 s, 1, 2 and 4 min.
        assert_eq!(world.token_requests(), 1 + 5);
    })
    .await;
}

// Law 9: the failure outlives the token.

#[tokio::test(start_paused = true)]
async fn when_the_token_dies_in_an_outage_callers_err_and_after_it_they_are_served_without_a_restart() {
    limited(async {
        for trouble in TROUBLES {
            let name = trouble.name;
            let world = World::new();
            let endpoint = Endpoint::new(&world);
            let client = endpoint.builder(&world).build().unwrap().layer(world.apsis.clone());
            send(&client, keyspaces()).await.unwrap();
            endpoint.breaks(trouble);
            sleep(DAY).await;
            for _ in 0..10 {
                let asked = Instant::now();
                let error = send(&client, keyspaces()).await.unwrap_err();
                let error = error.downcast_ref::<AuthError>().unwrap();
                assert!((trouble.is_told)(error), "{name}: {error:?}");
                assert!(asked.elapsed() <= 30 * SECOND, "{name}");
                sleep(SECOND).await;
            }
            assert_eq!(world.apsis.counters().api_requests, 1, "{name}: nothing leaves without a token");

            endpoint.mends();
            let mended = Instant::now();
            while send(&client, keyspaces()).await.is_err() {
                assert!(mended.elapsed() < trouble.over_within, "{name}");
                sleep(SECOND).await;
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_error_says_when_to_come_back_and_then_there_is_a_token() {
    limited(async {
        for trouble in TROUBLES.iter().filter(|trouble| trouble.name == "invalid_client" || trouble.name == "429") {
            let world = World::new();
            let endpoint = Endpoint::new(&world);
            let client = endpoint.builder(&world).build().unwrap().layer(world.apsis.clone());
            endpoint.breaks(trouble);
            let error = send(&client, keyspaces()).await.unwrap_err();
            let retry_at = error.downcast_ref::<AuthError>().and_then(AuthError::retry_at).unwrap();
            endpoint.mends();
            tokio::time::sleep_until(retry_at.into()).await;
            assert_eq!(status_at_once(&client).await, StatusCode::OK, "{}", trouble.name);
        }
    })
    .await;
}

// Law 10: which tokens are used, and how long.

#[tokio::test(start_paused = true)]
async fn the_margin_is_the_smaller_of_a_minute_and_a_tenth_of_the_lifetime() {
    limited(async {
        for (lifetime, margin) in [(86_400, 60_000), (601, 60_000), (600, 60_000), (599, 59_900), (60, 6_000), (1, 100)]
        {
            let world = World::new();
            world.apsis.set_token_lifetime(Duration::from_secs(lifetime));
            let handle = world.layer().handle();
            handle.warm_up().await.unwrap();
            let usable_for = Duration::from_millis(lifetime * 1000 - margin);
            sleep(usable_for - MILLISECOND).await;
            assert!(handle.snapshot().token.unwrap().usable, "{lifetime} s");
            sleep(MILLISECOND).await;
            assert!(!handle.snapshot().token.unwrap().usable, "{lifetime} s");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_sent_up_to_its_margin_and_not_inside_it() {
    limited(async {
        for (idle, sent_again) in [(DAY - MINUTE - MILLISECOND, true), (DAY - MINUTE, false)] {
            let world = World::new();
            let api = Api::default();
            let client = world.layer().layer(api.service());
            send(&client, keyspaces()).await.unwrap();
            sleep(idle).await;
            send(&client, keyspaces()).await.unwrap();
            let tokens = api.tokens();
            assert_eq!(tokens[0] == tokens[1], sent_again, "after {idle:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_client_does_not_carry_a_token_into_its_margin() {
    limited(async {
        // The refresh hangs from the due moment on, so the margin is all that stops the old token.
        let world = World::new();
        let endpoint = Endpoint::new(&world);
        let client = endpoint.builder(&world).build().unwrap().layer(world.apsis.clone());
        send(&client, keyspaces()).await.unwrap();
        endpoint.breaks(trouble("hangs"));
        sleep(DAY - MINUTE - SECOND).await;
        // This one looks at the token; the next look would come 5 s later, but for the margin.
        assert_eq!(status_at_once(&client).await, StatusCode::OK);
        sleep(SECOND - MILLISECOND).await;
        assert_eq!(status_at_once(&client).await, StatusCode::OK);
        sleep(MILLISECOND).await;
        send(&client, keyspaces()).await.unwrap_err();
        assert_eq!(world.apsis.counters().api_requests, 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_due_at_a_draw_from_75_to_90_percent() {
    limited(async {
        for (draw, due) in [(0.0, 64_800), (0.5, 71_280), (1.0, 77_760)] {
            let world = World::new();
            let layer = world.builder().random(move || draw).build().unwrap();
            let client = layer.layer(world.apsis.clone());
            send(&client, keyspaces()).await.unwrap();
            assert_eq!(layer.handle().snapshot().token.unwrap().due_in_seconds, due);
            sleep(Duration::from_secs(due) - MILLISECOND).await;
            send(&client, keyspaces()).await.unwrap();
            sleep(MILLISECOND).await;
            assert_eq!(world.token_requests(), 1, "not before it is due");
            send(&client, keyspaces()).await.unwrap();
            sleep(MILLISECOND).await;
            assert_eq!(world.token_requests(), 2, "when it is due");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_due_moment_is_drawn_once_for_a_token_however_many_requests_there_are() {
    limited(async {
        let world = World::new();
        let draws = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&draws);
        let random = move || if counted.fetch_add(1, Ordering::Relaxed) == 0 { 0.9 } else { 0.0 };
        let client = world.builder().random(random).build().unwrap().layer(world.apsis.clone());
        send(&client, keyspaces()).await.unwrap();
        // A second draw of 0.0 would make it due at 75 %.
        send_every(MINUTE, share_of(DAY, 0.88), &client).await;
        assert_eq!(world.token_requests(), 1);
        assert_eq!(draws.load(Ordering::Relaxed), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_due_moments_of_a_fleet_are_spread_over_the_whole_interval() {
    limited(async {
        for seed in 0..5 {
            let world = World::new();
            world.apsis.set_token_limit(1_000);
            let rng = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
            let mut dues = Vec::new();
            for _ in 0..200 {
                let rng = Arc::clone(&rng);
                let handle = world.builder().random(move || rng.lock().unwrap().f64()).build().unwrap().handle();
                handle.warm_up().await.unwrap();
                dues.push(handle.snapshot().token.unwrap().due_in_seconds);
            }
            dues.sort_unstable();
            let (first, last) = (dues[0], dues[199]);
            assert!((64_800..66_800).contains(&first), "seed {seed}: {first}");
            assert!((75_800..=77_760).contains(&last), "seed {seed}: {last}");
            let widest_gap = dues.windows(2).map(|pair| pair[1] - pair[0]).max();
            assert!(widest_gap < Some(1_500), "seed {seed}: {widest_gap:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_source_of_random_numbers_that_is_off_the_scale_moves_the_due_moment_not_beyond_its_interval() {
    limited(async {
        for draw in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -7.0, 7.0] {
            let world = World::new();
            let handle = world.builder().random(move || draw).build().unwrap().handle();
            handle.warm_up().await.unwrap();
            let due = handle.snapshot().token.unwrap().due_in_seconds;
            assert!((64_800..=77_760).contains(&due), "{draw}: {due}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_lifetime_counts_from_the_asking_not_from_the_answer() {
    limited(async {
        let layer = slow_layer(10 * SECOND, &TokenAnswer::jwt(&json!({"exp": SERVER_NOW + 3600})));
        layer.handle().warm_up().await.unwrap();
        assert_eq!(layer.handle().snapshot().token.unwrap().expires_in_seconds, 3590);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_lifetime_is_exp_by_the_servers_clock_and_sane_whatever_the_answer_says() {
    limited(async {
        let jwt = |claims: &Value| TokenAnswer::jwt(claims);
        let exp = SERVER_NOW + 1000;
        let week = 7 * 24 * 3600;
        let opaque = || TokenAnswer::token("opaque");
        let cases = [
            ("exp", jwt(&json!({"exp": exp})), 1000),
            ("exp beats expires_in", jwt(&json!({"exp": exp})).with("expires_in", json!(60)), 1000),
            ("Date beats iat", jwt(&json!({"exp": exp, "iat": 0})), 1000),
            ("iat without Date", jwt(&json!({"exp": 5000, "iat": 4000})).without_date(), 1000),
            ("a Date that is none", jwt(&json!({"exp": 5000, "iat": 4000})).date("yesterday"), 1000),
            ("the local clock without either", jwt(&json!({"exp": LOCAL_NOW + 1000})).without_date(), 1000),
            ("an iat that is no number", jwt(&json!({"exp": LOCAL_NOW + 1000, "iat": "now"})).without_date(), 1000),
            ("shorter than any margin", jwt(&json!({"exp": SERVER_NOW + 5})), 5),
            ("a year 9999", jwt(&json!({"exp": 253_402_300_799_u64})), week),
            ("a number beyond all dates", jwt(&json!({"exp": 1e300})), week),
            ("a float", jwt(&json!({"exp": 4_000_001_000.75})), 1000),
            ("exp missing", jwt(&json!({})).with("expires_in", json!(1234)), 1234),
            ("exp missing, expires_in too", jwt(&json!({})), 300),
            ("exp a string", jwt(&json!({"exp": exp.to_string()})).with("expires_in", json!(1234)), 1234),
            ("exp null", jwt(&json!({"exp": null})), 300),
            ("exp a list", jwt(&json!({"exp": [exp]})), 300),
            ("claims that are a list", jwt(&json!([exp])), 300),
            ("claims that are no JSON", TokenAnswer::token("e30.bm90IGpzb24.c2ln"), 300),
            ("claims that are no base64", TokenAnswer::token("e30.!!!.c2ln"), 300),
            ("two parts", TokenAnswer::token("e30.e30"), 300),
            ("dots", TokenAnswer::token(".."), 300),
            ("not a JWT", opaque().with("expires_in", json!(1234)), 1234),
            ("expires_in a float", opaque().with("expires_in", json!(1234.5)), 1234),
            ("expires_in zero", opaque().with("expires_in", json!(0)), 300),
            ("expires_in negative", opaque().with("expires_in", json!(-1)), 300),
            ("expires_in a string", opaque().with("expires_in", json!("1234")), 300),
            ("expires_in too large", opaque().with("expires_in", json!(u64::MAX)), week),
            ("no alg", TokenAnswer::token(&signed(&json!({}), &json!({"exp": exp}))), 1000),
            ("alg unknown", TokenAnswer::token(&signed(&json!({"alg": "XY999"}), &json!({"exp": exp}))), 1000),
            ("alg none", TokenAnswer::token(&signed(&json!({"alg": "none"}), &json!({"exp": exp}))), 1000),
            ("token type in lower case", jwt(&json!({"exp": exp})).with("token_type", json!("bearer")), 1000),
            ("no token type", jwt(&json!({"exp": exp})).with("token_type", json!(null)), 1000),
        ];
        for (name, answer, lifetime) in cases {
            let (token, asked) = first_token(&answer).await;
            let token = token.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!((token.expires_in_seconds, token.usable, asked), (lifetime, true, 1), "{name}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_usable_token_is_a_named_error_and_no_loop() {
    limited(async {
        let valid = || TokenAnswer::jwt(&json!({"exp": SERVER_NOW + 1000}));
        let expired = "has expired already";
        let not_bearer = "not of the type bearer";
        let not_a_header = "characters that a header may not carry";
        let not_a_token = "not the JSON of a token";
        let cases = [
            ("zero", TokenAnswer::jwt(&json!({"exp": SERVER_NOW})), expired),
            ("past", TokenAnswer::jwt(&json!({"exp": SERVER_NOW - 1})), expired),
            ("negative", TokenAnswer::jwt(&json!({"exp": -1})), expired),
            ("far past", TokenAnswer::jwt(&json!({"exp": -1e300})), expired),
            ("less than a nanosecond", TokenAnswer::jwt(&json!({"exp": 1e-12, "iat": 0})).without_date(), expired),
            ("MAC", valid().with("token_type", json!("mac")), not_bearer),
            ("an empty type", valid().with("token_type", json!("")), not_bearer),
            ("a type that is no string", valid().with("token_type", json!(1)), not_bearer),
            ("empty", TokenAnswer::token(""), not_a_header),
            ("CR", TokenAnswer::token("to\rken"), not_a_header),
            ("LF", TokenAnswer::token("to\nken"), not_a_header),
            ("a second header", TokenAnswer::token("token\r\nx-evil: 1"), not_a_header),
            ("NUL", TokenAnswer::token("to\0ken"), not_a_header),
            ("DEL", TokenAnswer::token("to\x7fken"), not_a_header),
            ("a space", TokenAnswer::token("to ken"), not_a_header),
            ("non-ASCII", TokenAnswer::token("tökén"), not_a_header),
            ("no token", valid().with("access_token", json!(null)), not_a_token),
            ("a token that is a number", valid().with("access_token", json!(1)), not_a_token),
        ];
        for (name, answer, told) in cases {
            let (error, asked) = first_token(&answer).await;
            let error = error.unwrap_err();
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            assert!(cause.contains(told), "{name}: {error:?}");
            assert_eq!(asked, 4, "{name}: the budget of a minute, no more");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_dies_on_its_way_to_us_is_a_named_error_in_due_time_and_no_loop() {
    limited(async {
        let layer = slow_layer(14 * SECOND, &TokenAnswer::jwt(&json!({"exp": SERVER_NOW + 10})));
        let api = Api::default();
        let client = layer.layer(api.service());
        let asked = Instant::now();
        let served = timeout(MINUTE, send(&client, keyspaces())).await;
        let error = served.expect("no loop").unwrap_err();
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(cause.contains("has expired already"), "{error:?}");
        assert!(asked.elapsed() <= 30 * SECOND, "{:?}", asked.elapsed());
        assert_eq!(api.tokens().len(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_second_are_used_while_they_live_and_cost_no_more_than_the_budget() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_lifetime(SECOND);
        let client = world.client();
        let start = Instant::now();
        for _ in 0..6_000 {
            match send(&client, keyspaces()).await {
                Ok(answer) => assert_eq!(answer.status(), StatusCode::OK),
                Err(error) => assert!(error.is::<AuthError>(), "{error}"),
            }
            sleep(10 * MILLISECOND).await;
        }
        let counters = world.apsis.counters();
        assert_eq!(counters.api_rejected, 0);
        assert!(counters.api_accepted > 200, "{counters:?}");
        let minutes_begun = start.elapsed().as_secs() / 60 + 1;
        assert!(counters.token_requests <= 4 * minutes_begun, "{counters:?} in {minutes_begun} min");
    })
    .await;
}

// Law 11: clocks.

#[tokio::test(start_paused = true)]
async fn a_good_token_is_compared_with_the_wall_clock_every_5_s_not_with_every_request() {
    limited(async {
        let world = World::new();
        let wall = world.wall.clone();
        let looks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&looks);
        let look = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            wall.now()
        };
        let client = world.builder().wall_clock(look).build().unwrap().layer(world.apsis.clone());
        send(&client, keyspaces()).await.unwrap();
        let before = looks.load(Ordering::Relaxed);
        send_every(100 * MILLISECOND, MINUTE, &client).await;
        assert_eq!(looks.load(Ordering::Relaxed) - before, 11);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_a_day_ahead_is_seen_at_the_next_look_and_costs_one_token_request() {
    limited(async {
        let world = World::new();
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        world.wall.jump(24 * 3600);
        sleep(5 * SECOND - MILLISECOND).await;
        send(&client, keyspaces()).await.unwrap();
        assert_eq!(world.token_requests(), 1);
        sleep(MILLISECOND).await;
        send(&client, keyspaces()).await.unwrap();
        assert_eq!(world.token_requests(), 2);
        send_every(SECOND, HOUR, &client).await;
        assert_eq!(world.token_requests(), 2, "no storm");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_back_neither_ends_a_token_nor_keeps_it_beyond_its_life() {
    limited(async {
        for back in [3600, 10 * YEAR_IN_SECONDS, 100 * YEAR_IN_SECONDS] {
            let world = World::new();
            let client = world.client();
            send(&client, keyspaces()).await.unwrap();
            world.wall.jump(-back);
            sleep(5 * SECOND).await;
            send_every(5 * MINUTE, share_of(DAY, 0.82), &client).await;
            assert_eq!(world.token_requests(), 1, "{back} s back");
            send_every(5 * MINUTE, share_of(DAY, 0.18), &client).await;
            assert_eq!(world.token_requests(), 2, "{back} s back: refreshed by the clock that did not jump");
            assert_eq!(world.apsis.counters().api_rejected, 0, "{back} s back");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_to_and_fro_makes_no_storm() {
    limited(async {
        for seed in 0..20 {
            let world = World::new();
            let client = world.client();
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut ahead = 0;
            // Born before any jump, so that it does die of one.
            send(&client, keyspaces()).await.unwrap();
            for _ in 0..500 {
                let to = rng.i64(-48 * 3600..48 * 3600);
                world.wall.jump(to - ahead);
                ahead = to;
                assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK, "seed {seed}");
                sleep(Duration::from_millis(rng.u64(0..10_000))).await;
            }
            // A token's birth is never ahead of the furthest jump: each new furthest one costs at most a token.
            let requests = world.token_requests();
            assert!((2..30).contains(&requests), "seed {seed}: {requests}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_during_a_flight_costs_at_most_another_one() {
    limited(async {
        for by in [-3600, 24 * 3600, -10 * YEAR_IN_SECONDS] {
            let world = World::new();
            world.apsis.set_token_delay(SECOND);
            let client = world.client();
            let request = tokio::spawn({
                let client = client.clone();
                async move { send(&client, keyspaces()).await.unwrap().status() }
            });
            sleep(SECOND / 2).await;
            world.wall.jump(by);
            assert_eq!(request.await.unwrap(), StatusCode::OK, "{by} s");
            send_every(SECOND, HOUR, &client).await;
            assert!(world.token_requests() <= 2, "{by} s: {}", world.token_requests());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn after_a_sleep_of_26_hours_the_dead_token_is_replaced_at_the_next_look() {
    limited(async {
        let world = World::new();
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        sleep(5 * SECOND).await;
        sleep_through_hours(26, &world);
        send(&client, keyspaces()).await.unwrap();
        let counters = world.apsis.counters();
        assert_eq!((counters.token_requests, counters.api_rejected), (2, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_that_slips_out_before_the_next_look_is_healed_by_its_rejection() {
    limited(async {
        let world = World::new();
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        sleep_through_hours(26, &world);
        let answer = send(&client, keyspaces()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(matches!(answer.extensions().get(), Some(AuthOutcome::Replayed)));
        let counters = world.apsis.counters();
        assert_eq!((counters.token_requests, counters.api_rejected), (2, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_sleep_into_the_refresh_interval_starts_a_refresh_and_delays_nobody() {
    limited(async {
        let world = World::new();
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        sleep(5 * SECOND).await;
        sleep_through_hours(22, &world);
        assert_eq!(status_at_once(&client).await, StatusCode::OK);
        sleep(MILLISECOND).await;
        let counters = world.apsis.counters();
        assert_eq!((counters.token_requests, counters.api_rejected), (2, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_local_clock_that_is_not_the_servers_changes_nothing() {
    limited(async {
        for skew in [-3600, 3600, -10 * YEAR_IN_SECONDS, 10 * YEAR_IN_SECONDS] {
            let world = World::new();
            world.apsis.set_clock_skew(skew);
            let layer = world.layer();
            let client = layer.layer(world.apsis.clone());
            send(&client, keyspaces()).await.unwrap();
            assert_eq!(layer.handle().snapshot().token.unwrap().expires_in_seconds, 86_400, "{skew} s off");
            send_every(5 * MINUTE, 2 * DAY, &client).await;
            let counters = world.apsis.counters();
            // At the start, and at 82.5 % of the first and of the second lifetime.
            assert_eq!((counters.token_requests, counters.api_rejected), (3, 0), "{skew} s off");
        }
    })
    .await;
}

// Law 12: an endpoint that gives the same token while it is valid.

#[tokio::test(start_paused = true)]
async fn the_same_token_again_is_no_new_generation() {
    limited(async {
        let world = World::new();
        world.apsis.set_same_token_while_valid(true);
        let handle = world.layer().handle();
        let first = handle.get().await.unwrap();
        sleep(HOUR).await;
        let second = handle.renew().await.unwrap();
        assert_eq!(world.token_requests(), 2);
        assert_eq!(first.header_value(), second.header_value());
        assert_eq!((first.generation(), second.generation()), (1, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn at_most_three_refreshes_of_a_lifetime_bring_the_same_token_and_it_is_served_to_its_margin() {
    limited(async {
        let world = World::new();
        world.apsis.set_same_token_while_valid(true);
        let layer = world.layer();
        let client = layer.layer(world.apsis.clone());
        let started = Instant::now();
        send(&client, keyspaces()).await.unwrap();
        while started.elapsed() < DAY - MINUTE {
            assert_eq!(status_at_once(&client).await, StatusCode::OK);
            sleep(10 * SECOND).await;
        }
        assert_eq!(world.token_requests(), 4);
        assert_eq!(layer.handle().snapshot().token.unwrap().generation, 1);
        assert_eq!(world.apsis.counters().api_rejected, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn where_a_token_is_given_again_to_its_end_a_busy_client_is_served_across_it() {
    limited(async {
        for lifetime in [10 * MINUTE, HOUR, DAY] {
            let world = World::new();
            world.apsis.set_same_token_while_valid(true);
            world.apsis.set_token_lifetime(lifetime);
            let layer = world.layer();
            let client = layer.layer(world.apsis.clone());
            let started = Instant::now();
            send_every(10 * SECOND, lifetime - 90 * SECOND, &client).await;
            while started.elapsed() < lifetime + MINUTE {
                assert_eq!(status_at_once(&client).await, StatusCode::OK, "{lifetime:?}");
                sleep(37 * MILLISECOND).await;
            }
            assert!(world.token_requests() <= 8, "{lifetime:?}: {}", world.token_requests());
            assert_eq!(layer.handle().snapshot().token.unwrap().generation, 2, "{lifetime:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_token_has_three_refreshes_of_its_own() {
    limited(async {
        let world = World::new();
        world.apsis.set_same_token_while_valid(true);
        let client = world.client();
        send_every(30 * SECOND, DAY + MINUTE, &client).await;
        let in_the_first_lifetime = world.token_requests();
        send_every(30 * SECOND, DAY - 3 * MINUTE, &client).await;
        assert_eq!(world.token_requests() - in_the_first_lifetime, 3);
    })
    .await;
}

// Helpers.

/// What may be wrong with a token endpoint.
struct Trouble {
    name: &'static str,
    /// Says it anew for each request; an error is the transport's own.
    says: fn() -> Result<Answer, BoxError>,
    /// Whether this is what callers are told when they need a token.
    is_told: fn(&AuthError) -> bool,
    /// So long after its end there is a token again.
    over_within: Duration,
}

const TROUBLES: &[Trouble] = &[
    transient("HTML with 200", || Ok(Answer::html())),
    transient("an empty body", || Ok(Answer::status(StatusCode::OK))),
    transient("truncated JSON", || Ok(Answer::truncated())),
    transient("half a JSON", || Ok(Answer::status(StatusCode::OK).body("{\"access_token\":\"ey"))),
    transient("lost DNS", || Err(io::Error::other("failed to look up the address").into())),
    transient("500", || Ok(Answer::status(StatusCode::INTERNAL_SERVER_ERROR))),
    transient("503", || Ok(Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "10"))),
    transient("hangs", || Ok(Answer::hang())),
    transient("hangs in the body", || Ok(Answer::hang_in_body())),
    transient("drips", || Ok(Answer::drip(SECOND))),
    Trouble {
        name: "429",
        says: || Ok(Answer::too_many_requests()),
        is_told: |error| matches!(error, AuthError::RateLimited { .. }),
        over_within: HOUR,
    },
    Trouble {
        name: "invalid_client",
        says: || Ok(Answer::status(StatusCode::UNAUTHORIZED).body("{\"error\":\"invalid_client\"}")),
        is_told: |error| matches!(error, AuthError::Refused { code: Some(code), .. } if &**code == "invalid_client"),
        over_within: Duration::from_secs(15 * 60),
    },
];

/// Over after the flight under way, the longest grounding and the room in the budget.
const fn transient(name: &'static str, says: fn() -> Result<Answer, BoxError>) -> Trouble {
    let is_told = |error: &AuthError| matches!(error, AuthError::Unavailable { .. } | AuthError::TimedOut { .. });
    Trouble { name, says, is_told, over_within: Duration::from_secs(120) }
}

fn trouble(name: &str) -> &'static Trouble {
    TROUBLES.iter().find(|trouble| trouble.name == name).unwrap()
}

/// The world's token endpoint, with a switch for trouble.
#[derive(Clone)]
struct Endpoint {
    apsis: Emulator,
    trouble: Arc<Mutex<Option<&'static Trouble>>>,
    lost: Arc<AtomicU64>,
}

impl Endpoint {
    fn new(world: &World) -> Self {
        Self { apsis: world.apsis.clone(), trouble: Arc::default(), lost: Arc::default() }
    }

    fn breaks(&self, trouble: &'static Trouble) {
        *self.trouble.lock().unwrap() = Some(trouble);
    }

    fn mends(&self) {
        *self.trouble.lock().unwrap() = None;
    }

    /// How many requests never reached the endpoint.
    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn builder(&self, world: &World) -> ApsisAuthBuilder {
        let endpoint = self.clone();
        world.builder().transport(service_fn(move |request| endpoint.clone().answer(request)))
    }

    async fn answer(self, request: Request<Full<Bytes>>) -> Result<Response<EmulatorBody>, BoxError> {
        let trouble = *self.trouble.lock().unwrap();
        match trouble.map(|trouble| (trouble.says)()) {
            Some(Ok(answer)) => self.apsis.script_token_answers([answer]),
            Some(Err(error)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
            None => {}
        }
        self.apsis.oneshot(request).await.map_err(Into::into)
    }
}

/// An API that accepts all, and keeps what it was sent.
#[derive(Clone, Default)]
struct Api {
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Api {
    fn service(
        &self,
    ) -> impl Service<Request<Full<Bytes>>, Response = Response<()>, Error = BoxError, Future: Send> + Clone + use<>
    {
        let tokens = Arc::clone(&self.tokens);
        service_fn(move |request: Request<Full<Bytes>>| {
            let token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
            tokens.lock().unwrap().push(token);
            async { Ok(Response::new(())) }
        })
    }

    fn tokens(&self) -> Vec<String> {
        self.tokens.lock().unwrap().clone()
    }
}

/// What the clock of a handmade token endpoint says, in seconds since 1970. It is far from the local one.
const SERVER_NOW: u64 = 4_000_000_000;

/// What the local clock says where a handmade token endpoint is asked.
const LOCAL_NOW: u64 = 2_000_000_000;

/// A handmade answer of the token endpoint.
#[derive(Clone)]
struct TokenAnswer {
    date: Option<String>,
    body: Value,
}

impl TokenAnswer {
    fn token(access_token: &str) -> Self {
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(SERVER_NOW);
        let body = json!({"access_token": access_token, "token_type": "Bearer"});
        Self { date: Some(httpdate::fmt_http_date(date)), body }
    }

    fn jwt(claims: &Value) -> Self {
        Self::token(&signed(&json!({"alg": "HS256", "typ": "JWT"}), claims))
    }

    fn with(mut self, member: &str, value: Value) -> Self {
        self.body[member] = value;
        self
    }

    fn date(mut self, date: &str) -> Self {
        self.date = Some(date.to_owned());
        self
    }

    fn without_date(mut self) -> Self {
        self.date = None;
        self
    }

    fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::builder();
        if let Some(date) = &self.date {
            response = response.header("date", date);
        }
        response.body(Full::from(self.body.to_string())).unwrap()
    }
}

/// A JWT with a signature that nobody looks at.
fn signed(header: &Value, claims: &Value) -> String {
    let encoded = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}.c2lnbmF0dXJl", encoded(header), encoded(claims))
}

/// What the first caller gets where the token endpoint always gives this answer, and how often it was asked in a minute.
async fn first_token(answer: &TokenAnswer) -> (Result<TokenState, AuthError>, u64) {
    let asked = Arc::new(AtomicU64::new(0));
    let (answer, counted) = (answer.clone(), Arc::clone(&asked));
    let transport = service_fn(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        let response = answer.response();
        async { Ok::<_, BoxError>(response) }
    });
    let local_now = SystemTime::UNIX_EPOCH + Duration::from_secs(LOCAL_NOW);
    let layer = World::new().builder().transport(transport).wall_clock(move || local_now).build().unwrap();
    let handle = layer.handle();
    let started = Instant::now();
    let warmed_up = handle.warm_up().await;
    let token = warmed_up.map(|()| handle.snapshot().token.unwrap());
    // Whoever comes after a failure starts no further requests. (Half a minute later one would wait for the next.)
    while token.is_err() && started.elapsed() < 29 * SECOND {
        handle.warm_up().await.unwrap_err();
        sleep(SECOND).await;
    }
    (token, asked.load(Ordering::Relaxed))
}

/// A layer whose token endpoint gives this answer, which takes `delay` to arrive.
fn slow_layer(delay: Duration, answer: &TokenAnswer) -> ApsisAuthLayer {
    let answer = answer.clone();
    let transport = service_fn(move |_| {
        let response = answer.response();
        async move {
            sleep(delay).await;
            Ok::<_, BoxError>(response)
        }
    });
    World::new().builder().transport(transport).build().unwrap()
}

/// The status of the answer to a request that took no time.
async fn status_at_once<S, ResBody>(client: &ApsisAuth<S>) -> StatusCode
where
    S: Service<Request<Full<Bytes>>, Response = Response<ResBody>, Error: Into<BoxError>> + Clone,
{
    let asked = Instant::now();
    let answer = send(client, keyspaces()).await.unwrap();
    assert_eq!(asked.elapsed(), Duration::ZERO);
    answer.status()
}

/// A request every `pause`, each of them served.
async fn send_every<S, ResBody>(pause: Duration, during: Duration, client: &ApsisAuth<S>)
where
    S: Service<Request<Full<Bytes>>, Response = Response<ResBody>, Error: Into<BoxError>> + Clone,
{
    let started = Instant::now();
    while started.elapsed() < during {
        let answer = send(client, keyspaces()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "after {:?}", started.elapsed());
        sleep(pause).await;
    }
}

/// The machine sleeps: the wall clock and the server go on, the monotonic clock stands still.
fn sleep_through_hours(hours: i64, world: &World) {
    world.wall.jump(hours * 3600);
    world.apsis.set_clock_skew(hours * 3600);
}

fn share_of(lifetime: Duration, share: f64) -> Duration {
    lifetime.mul_f64(share)
}
