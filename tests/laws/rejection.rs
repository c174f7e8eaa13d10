//! Laws 18 to 25: what a rejection starts, what is replayed, and what the caller is told.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use apsis_auth::{
    ApsisAuth, ApsisAuthBuilder, AuthError, AuthOutcome, Rejection, ReplayableBody, default_rejection_rule,
    emulator::{Answer, Dialect, Emulator},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{Empty, Full};
use tokio::time::{advance, sleep, timeout};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::support::{BASE, Record, Sent, World, all, answer, get, keyspaces, limited, once, scripted_api, send, text};

const DIALECTS: [Dialect; 2] = [Dialect::Unauthorized, Dialect::Gateway];

/// Seconds between renewals that do not help.
const LADDERS: [(StatusCode, &[u64]); 2] =
    [(StatusCode::UNAUTHORIZED, &[15, 30, 60]), (StatusCode::FORBIDDEN, &[60, 120, 240, 480, 900])];

// Laws 18 and 19: one renewal for all.

#[tokio::test(start_paused = true)]
async fn a_hundred_concurrent_rejections_share_one_renewal_and_each_is_replayed() {
    limited(async {
        for dialect in DIALECTS {
            let world = World::new();
            world.apsis.set_dialect(dialect);
            world.apsis.set_api_limit(1_000);
            world.apsis.set_token_delay(Duration::from_secs(1));
            let client = world.client();
            send(&client, keyspaces()).await.unwrap();
            world.apsis.revoke_tokens();
            let answers = all(100, move |_| {
                let client = client.clone();
                async move { send(&client, keyspaces()).await.unwrap() }
            })
            .await;
            assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK && is_replayed(answer)));
            let counters = world.apsis.counters();
            assert_eq!(counters.token_requests, 2);
            assert_eq!((counters.api_rejected, counters.api_accepted), (100, 101));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_late_rejection_finds_the_newer_token_and_starts_nothing() {
    limited(async {
        for dialect in DIALECTS {
            let world = World::new();
            world.apsis.set_dialect(dialect);
            let client = world.client();
            send(&client, keyspaces()).await.unwrap();
            world.apsis.revoke_tokens();

            world.apsis.set_api_delay(Duration::from_secs(10));
            let late = tokio::spawn(client.clone().oneshot(keyspaces()));
            sleep(Duration::from_secs(1)).await;
            world.apsis.set_api_delay(Duration::ZERO);
            assert!(is_replayed(&send(&client, keyspaces()).await.unwrap()));
            assert_eq!(world.token_requests(), 2);

            let late = late.await.unwrap().unwrap();
            assert_eq!(late.status(), StatusCode::OK);
            assert!(is_replayed(&late));
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

// Laws 20 and 25: one replay, with a newer token.

#[tokio::test(start_paused = true)]
async fn a_second_rejection_is_returned_after_exactly_two_sends_with_two_tokens() {
    limited(async {
        for (status, _) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(rejecting(&record, status));
            let response = send(&client, keyspaces()).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["x-number"], "2");
            assert!(is_replayed(&response));
            assert_eq!(text(response).await, "refusal 2");
            let bearers = record.authorizations();
            assert_eq!(bearers.len(), 2);
            assert_ne!(bearers[0], bearers[1]);
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

/// Whatever the API and the token endpoint answer, and however calls overlap.
#[tokio::test(start_paused = true)]
async fn no_call_is_sent_twice_with_one_token_nor_three_times() {
    limited(async {
        let mut replays = 0;
        for seed in 0..100 {
            replays += random_traffic(seed).await;
        }
        assert!(replays > 300, "only {replays} replays: the traffic proves little");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_rejected_stays_in_use_until_there_is_a_newer_one() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let client = world.layer().layer(scripted_api(&record, |_, number| match number {
            1 => answer(StatusCode::UNAUTHORIZED, ""),
            _ => answer(StatusCode::OK, ""),
        }));
        let rejected = tokio::spawn({
            world.apsis.script_token_answers([Answer::genuine(), Answer::genuine().delay(Duration::from_secs(10))]);
            client.clone().oneshot(keyspaces())
        });
        sleep(Duration::from_secs(1)).await;
        let meanwhile = timeout(Duration::from_secs(1), send(&client, keyspaces())).await.unwrap().unwrap();
        assert_eq!(meanwhile.status(), StatusCode::OK);
        assert!(is_replayed(&rejected.await.unwrap().unwrap()));
        let bearers = record.authorizations();
        assert_eq!(bearers[0], bearers[1]);
        assert_ne!(bearers[1], bearers[2]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_replay_is_the_request_that_was_sent() {
    #[derive(Clone, Debug, PartialEq)]
    struct Mark(u32);

    limited(async {
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            let uri =
                format!("{BASE}/audience/keyspaces/a%2Fb/profiles/andy.demo%40apsis.com//x;y=%C3%A5?q=%20+a&q=&%7E");
            let mut secret = HeaderValue::from_static("secret");
            secret.set_sensitive(true);
            let request = Request::patch(&uri)
                .version(version)
                .header("x-b", "2")
                .header("content-type", "application/merge-patch+json")
                .header("x-a", "1")
                .header("authorization", "Basic b3Vy")
                .header("x-b", secret)
                .header("x-b", HeaderValue::from_bytes(b"\xe5 \x80").unwrap())
                .header("x-a", "")
                .extension(Mark(7))
                .body("{\"name\": \"Åsa\"}".to_owned())
                .unwrap();

            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(rejecting(&record, StatusCode::UNAUTHORIZED));
            send(&client, request.clone()).await.unwrap();

            let [first, replay] = <[_; 2]>::try_from(record.all()).unwrap_or_else(|_| panic!("two sends"));
            assert_ne!(first.authorization(), replay.authorization());
            for sent in [&first, &replay] {
                assert_eq!(sent.head.method, Method::PATCH);
                assert_eq!(sent.head.uri.to_string(), uri);
                assert_eq!(sent.head.version, version);
                assert_eq!(lines(&sent.head.headers), lines(request.headers()));
                assert_eq!(sent.head.extensions.get(), Some(&Mark(7)));
                assert_eq!(sent.body, format!("{:?}", request.body()));
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn every_body_that_can_be_cloned_is_replayed() {
    async fn assert_replayed<B: ReplayableBody + fmt::Debug + Clone>(body: B) {
        let (world, record) = (World::new(), Record::default());
        let client = world.layer().layer(rejecting(&record, StatusCode::UNAUTHORIZED));
        let request = Request::post(BASE).body(body.clone()).unwrap();
        assert!(is_replayed(&send(&client, request).await.unwrap()));
        let bodies: Vec<_> = record.all().into_iter().map(|sent| sent.body).collect();
        assert_eq!(bodies, [format!("{body:?}"), format!("{body:?}")]);
    }

    limited(async {
        assert_replayed(()).await;
        assert_replayed(String::from("text")).await;
        assert_replayed(Bytes::from_static(b"bytes")).await;
        assert_replayed(Full::new(Bytes::from_static(b"full"))).await;
        assert_replayed(Full::new(std::io::Cursor::new(b"another buffer"))).await;
        assert_replayed(Empty::<Bytes>::new()).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_had_again_is_not_replayed_and_the_next_request_has_a_new_token() {
    limited(async {
        for (status, _) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(scripted_api(&record, move |_, number| match number {
                1 => answer(status, "dead"),
                _ => answer(StatusCode::OK, ""),
            }));
            let response = send(&client, once()).await.unwrap();
            assert_eq!(response.status(), status);
            assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotReplayable)));
            assert_eq!(text(response).await, "dead");
            sleep(Duration::from_secs(1)).await;
            assert_eq!((record.count(), world.token_requests()), (1, 2));

            let response = send(&client, once()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert!(response.extensions().get::<AuthOutcome>().is_none());
            let bearers = record.authorizations();
            assert_ne!(bearers[0], bearers[1]);
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_accepted_at_once_says_nothing_of_us() {
    limited(async {
        let world = World::new();
        let response = send(&world.client(), keyspaces()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.extensions().get::<AuthOutcome>().is_none());
    })
    .await;
}

// Law 22: a renewal that fails.

#[tokio::test(start_paused = true)]
async fn when_the_renewal_fails_the_rejection_comes_back_whole_and_nothing_is_replayed() {
    limited(async {
        type Expected = fn(&AuthError) -> bool;
        let cases: [(&str, Answer, Expected); 5] = [
            ("terminal", Answer::status(StatusCode::BAD_REQUEST), |error| matches!(error, AuthError::Refused { .. })),
            ("limited", Answer::too_many_requests(), |error| matches!(error, AuthError::RateLimited { .. })),
            ("broken", Answer::status(StatusCode::BAD_GATEWAY), |error| matches!(error, AuthError::Unavailable { .. })),
            ("garbage", Answer::html(), |error| matches!(error, AuthError::Unavailable { .. })),
            ("silent", Answer::hang(), |error| {
                matches!(error, AuthError::Unavailable { .. } | AuthError::TimedOut { .. })
            }),
        ];
        for (name, token_answer, expected) in cases {
            for (status, _) in LADDERS {
                let (world, record) = (World::new(), Record::default());
                world.apsis.script_token_answers([Answer::genuine()]);
                world.apsis.script_token_answers(vec![token_answer.clone(); 20]);
                let client = world.layer().layer(rejecting(&record, status));
                let response = send(&client, keyspaces()).await.unwrap();
                assert_eq!(response.status(), status);
                assert_eq!(response.headers()["x-number"], "1");
                let outcome = response.extensions().get().cloned();
                let Some(AuthOutcome::NotRenewed(error)) = outcome else { panic!("{name}: {outcome:?}") };
                assert!(expected(&error), "{name}: {error:?}");
                assert_eq!(text(response).await, "refusal 1");
                assert_eq!(record.count(), 1, "{name}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn when_the_renewal_is_interrupted_or_has_no_room_in_the_budget_the_rejection_comes_back_whole_too() {
    limited(async {
        for is_interrupted in [true, false] {
            for (status, _) in LADDERS {
                let (world, record) = (World::new(), Record::default());
                let (apsis, asked) = (world.apsis.clone(), Arc::new(Mutex::new(0)));
                let panics_the_second_time = service_fn(move |request: Request<Full<Bytes>>| {
                    let apsis = apsis.clone();
                    *asked.lock().unwrap() += 1;
                    let panics = *asked.lock().unwrap() == 2;
                    async move {
                        assert!(!panics, "a panic, as wanted");
                        apsis.oneshot(request).await
                    }
                });
                let builder = if is_interrupted {
                    world.builder().transport(panics_the_second_time)
                } else {
                    world.builder().token_requests_per_minute(1)
                };
                let client = builder.build().unwrap().layer(rejecting(&record, status));
                let response = send(&client, keyspaces()).await.unwrap();
                assert_eq!((response.status(), &response.headers()["x-number"]), (status, &HeaderValue::from(1)));
                match response.extensions().get() {
                    Some(AuthOutcome::NotRenewed(AuthError::Interrupted)) => assert!(is_interrupted),
                    Some(AuthOutcome::NotRenewed(AuthError::OutOfBudget { .. })) => assert!(!is_interrupted),
                    outcome => panic!("{outcome:?}"),
                }
                assert_eq!(text(response).await, "refusal 1");
                assert_eq!((record.count(), world.token_requests()), (1, 1));
            }
        }
    })
    .await;
}

// Law 21: an API that rejects every token.

#[tokio::test(start_paused = true)]
async fn a_thousand_rejections_in_a_row_make_the_token_requests_of_the_ladder() {
    limited(async {
        for (status, steps) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(rejecting(&record, status));
            for call in 0..1_000 {
                let response = send(&client, keyspaces()).await.unwrap();
                assert_eq!(response.status(), status);
                assert_eq!(text(response).await, format!("refusal {}", record.count()));
                assert_eq!(world.token_requests(), 1 + renewals(steps, call + 1), "after {call} seconds of {status}");
                advance(Duration::from_secs(1)).await;
            }
            // Each renewal was followed by one replay.
            assert_eq!(record.count() as u64, 1_000 + renewals(steps, 1_000));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_last_step_of_a_ladder_repeats() {
    limited(async {
        for (status, steps) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(rejecting(&record, status));
            for call in 0..720 {
                send(&client, keyspaces()).await.unwrap();
                assert_eq!(world.token_requests(), 1 + renewals(steps, call * 15 + 1), "{status}");
                advance(Duration::from_secs(15)).await;
            }
        }
    })
    .await;
}

/// A hundred replays that fail are one renewal that did not help.
#[tokio::test(start_paused = true)]
async fn a_thousand_concurrent_rejections_climb_the_ladder_once() {
    limited(async {
        for (status, steps) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(rejecting(&record, status));
            // At once, and a millisecond before and at the end of the first two steps.
            let (first, second) = (steps[0] * 1_000, steps[1] * 1_000);
            for (pause, token_requests) in [(0, 2), (first - 1, 2), (1, 3), (second - 1, 3), (1, 4)] {
                advance(Duration::from_millis(pause)).await;
                let client = client.clone();
                let answers = all(1_000, move |_| {
                    let client = client.clone();
                    async move { send(&client, keyspaces()).await.unwrap() }
                })
                .await;
                assert!(answers.iter().all(|answer| answer.status() == status));
                assert_eq!(world.token_requests(), token_requests, "{status}");
            }
            // Five times a thousand, and as many replays as were rejected when there was a renewal.
            assert_eq!(record.count(), 8_000);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bodies_that_cannot_be_replayed_stay_on_the_ladder_too() {
    limited(async {
        for (status, steps) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(rejecting(&record, status));
            // A renewal is put to the test by the next request, a second later.
            let steps: Vec<_> = steps.iter().map(|step| step + 1).collect();
            for call in 0..1_000 {
                let response = send(&client, once()).await.unwrap();
                assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotReplayable)));
                // Nobody waits for the renewal.
                sleep(Duration::from_millis(1)).await;
                assert_eq!(world.token_requests(), 1 + renewals(&steps, call + 1), "after {call} seconds of {status}");
                advance(Duration::from_millis(999)).await;
            }
            assert_eq!(record.count(), 1_000);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_same_token_again_is_no_replay_and_climbs_the_ladder() {
    limited(async {
        for (status, steps) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            world.apsis.set_same_token_while_valid(true);
            let client = world.layer().layer(rejecting(&record, status));
            for call in 0..1_000 {
                let before = world.token_requests();
                let response = send(&client, keyspaces()).await.unwrap();
                assert_eq!(response.status(), status);
                let renewed = world.token_requests() > before;
                match response.extensions().get() {
                    Some(AuthOutcome::NotRenewed(AuthError::SameToken)) => assert!(renewed),
                    Some(AuthOutcome::NotRenewed(AuthError::CoolingDown { .. })) => assert!(!renewed),
                    outcome => panic!("{outcome:?}"),
                }
                assert_eq!(world.token_requests(), 1 + renewals(steps, call + 1), "after {call} seconds of {status}");
                advance(Duration::from_secs(1)).await;
            }
            assert_eq!(record.count(), 1_000);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_another_flight_brought_is_put_to_the_test_by_the_replay() {
    limited(async {
        for (status, _) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let layer = world.layer();
            let client = layer.layer(rejecting(&record, status));
            layer.handle().warm_up().await.unwrap();
            world.apsis.set_token_delay(Duration::from_secs(1));
            let forced = tokio::spawn(async move { layer.handle().renew().await });
            sleep(Duration::from_millis(500)).await;
            assert!(is_replayed(&send(&client, keyspaces()).await.unwrap()));
            forced.await.unwrap().unwrap();
            assert!(!is_replayed(&send(&client, keyspaces()).await.unwrap()));
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_told_when_the_cooling_ends() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let client = world.layer().layer(rejecting(&record, StatusCode::UNAUTHORIZED));
        let start = tokio::time::Instant::now();
        send(&client, keyspaces()).await.unwrap();
        let response = send(&client, keyspaces()).await.unwrap();
        let Some(AuthOutcome::NotRenewed(error)) = response.extensions().get() else { panic!("not cooling") };
        assert!(matches!(error, AuthError::CoolingDown { .. }) && error.is_retryable(), "{error:?}");
        assert_eq!(error.retry_at(), Some((start + Duration::from_secs(15)).into_std()));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_helped_leaves_the_ladder_at_once() {
    limited(async {
        for (status, steps) in LADDERS {
            let (world, record) = (World::new(), Record::default());
            let rejects = Arc::new(Mutex::new(0_u32));
            let to_reject = Arc::clone(&rejects);
            let client = world.layer().layer(scripted_api(&record, move |_, _| {
                let mut left = to_reject.lock().unwrap();
                let status = if *left > 0 { status } else { StatusCode::OK };
                *left = left.saturating_sub(1);
                answer(status, "")
            }));
            // Two steps up.
            for &step in &steps[..2] {
                *rejects.lock().unwrap() = 2;
                assert_eq!(send(&client, keyspaces()).await.unwrap().status(), status);
                advance(Duration::from_secs(step)).await;
            }
            *rejects.lock().unwrap() = 1;
            assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
            assert_eq!(world.token_requests(), 4);
            advance(Duration::from_secs(60)).await;

            // It helped, so the next rejection does not wait, and the ladder begins at its foot.
            *rejects.lock().unwrap() = 2;
            assert_eq!(send(&client, keyspaces()).await.unwrap().status(), status);
            assert_eq!(world.token_requests(), 5);
            advance(Duration::from_secs(steps[0])).await;
            *rejects.lock().unwrap() = 1;
            assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
            assert_eq!(world.token_requests(), 6);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_ladder_of_403_never_delays_a_401() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let client = world.layer().layer(scripted_api(&record, |_, number| match number {
            1..=3 => answer(StatusCode::FORBIDDEN, ""),
            4 => answer(StatusCode::UNAUTHORIZED, ""),
            _ => answer(StatusCode::OK, ""),
        }));
        send(&client, keyspaces()).await.unwrap();
        let cooling = send(&client, keyspaces()).await.unwrap();
        assert!(matches!(cooling.extensions().get(), Some(AuthOutcome::NotRenewed(AuthError::CoolingDown { .. }))));
        let renewed = send(&client, keyspaces()).await.unwrap();
        assert_eq!(renewed.status(), StatusCode::OK);
        assert!(is_replayed(&renewed));
        assert_eq!(world.token_requests(), 3);
    })
    .await;
}

// Law 23: which answers are the token's fault.

/// A header of an answer.
type Said = Option<(&'static str, &'static str)>;

/// The table of what the gateway and the application say: status, header, and what it says of the token.
const TABLE: [(u16, Said, Option<Rejection>); 29] = {
    use Rejection::{Forbidden, Unauthorized};
    [
        (401, None, Some(Unauthorized)),
        (401, Some(("content-type", "application/problem+json")), Some(Unauthorized)),
        (401, Some(("x-amzn-ErrorType", "UnauthorizedException")), Some(Unauthorized)),
        (401, Some(("x-amzn-ErrorType", "ForbiddenException")), Some(Unauthorized)),
        (403, None, Some(Forbidden)),
        (403, Some(("content-type", "application/json")), Some(Forbidden)),
        (403, Some(("content-type", "text/html; charset=utf-8")), Some(Forbidden)),
        (403, Some(("content-type", "application/problem+jsonx")), Some(Forbidden)),
        (403, Some(("x-amzn-ErrorType", "AccessDeniedException")), Some(Forbidden)),
        (403, Some(("x-amzn-errortype", "accessdeniedexception")), Some(Forbidden)),
        (403, Some(("x-amzn-ErrorType", "AccessDenied")), Some(Forbidden)),
        (403, Some(("x-amzn-ErrorType", "AccessDeniedException:http://internal.amazon.com/coral/")), Some(Forbidden)),
        (403, Some(("x-amzn-ErrorType", "UnauthorizedException")), Some(Forbidden)),
        (403, Some(("x-amzn-ErrorType", "MissingAuthenticationTokenException")), None),
        (403, Some(("x-amzn-ErrorType", "ForbiddenException")), None),
        (403, Some(("x-amzn-ErrorType", "ForbiddenException:http://internal.amazon.com/coral/")), None),
        (403, Some(("x-amzn-ErrorType", "AccessDeniedExceptions")), None),
        (403, Some(("content-type", "application/problem+json")), None),
        (403, Some(("content-type", "Application/Problem+JSON; charset=utf-8")), None),
        (403, Some(("content-type", "application/problem+json ;q=1")), None),
        (429, None, None),
        (429, Some(("x-amzn-ErrorType", "AccessDeniedException")), None),
        (413, None, None),
        (400, None, None),
        (404, None, None),
        (407, None, None),
        (500, Some(("x-amzn-ErrorType", "AccessDeniedException")), None),
        (503, None, None),
        (200, None, None),
    ]
};

#[test]
fn the_default_rule_is_the_table_of_what_is_observed() {
    for (status, header, expected) in TABLE {
        let said = dressed(status, header);
        assert_eq!(default_rejection_rule(said.status(), said.headers()), expected, "{status} {header:?}");
    }
}

#[test]
fn one_header_that_names_another_reason_is_enough() {
    let mut headers = HeaderMap::new();
    headers.insert("x-amzn-errortype", HeaderValue::from_static("AccessDeniedException"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    assert_eq!(default_rejection_rule(StatusCode::FORBIDDEN, &headers), None);
}

#[tokio::test(start_paused = true)]
async fn every_row_of_the_table_is_obeyed_end_to_end() {
    limited(async {
        for (status, header, expected) in TABLE {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(scripted_api(&record, move |_, number| match number {
                1 => dressed(status, header),
                _ => answer(StatusCode::CREATED, "second"),
            }));
            let response = send(&client, keyspaces()).await.unwrap();
            if expected.is_some() {
                assert!(is_replayed(&response), "{status} {header:?}");
                assert_eq!(response.status(), StatusCode::CREATED);
                assert_eq!((record.count(), world.token_requests()), (2, 2));
            } else {
                assert!(response.extensions().get::<AuthOutcome>().is_none(), "{status} {header:?}");
                assert_eq!((response.status().as_u16(), response.body().as_str()), (status, "first"));
                assert_eq!((record.count(), world.token_requests()), (1, 1), "{status} {header:?}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rule_of_the_callers_own_is_obeyed_in_both_directions() {
    limited(async {
        for (status, token_requests) in [(401, 1), (403, 1), (418, 2)] {
            let (world, record) = (World::new(), Record::default());
            let rule = |status: StatusCode, headers: &HeaderMap| {
                (status == StatusCode::IM_A_TEAPOT && headers.contains_key("x-tea")).then_some(Rejection::Forbidden)
            };
            let layer = world.builder().rejection_rule(rule).build().unwrap();
            let client = layer.layer(scripted_api(&record, move |_, _| dressed(status, Some(("x-tea", "1")))));
            send(&client, keyspaces()).await.unwrap();
            assert_eq!(world.token_requests(), token_requests, "{status}");
        }
    })
    .await;
}

// Law 24: mixed traffic, a right that is missing and a token that dies.

const REFUSED: &str = "/audience/sections";

#[tokio::test(start_paused = true)]
async fn a_route_refused_every_second_keeps_token_requests_on_the_403_ladder() {
    limited(async {
        let world = mixed_world();
        let client = world.client();
        let hours = 2 * 3600;
        for second in 0..hours {
            second_of_mixed_traffic(&client).await;
            assert_eq!(world.token_requests(), 1 + renewals(LADDERS[1].1, second + 1), "after {second} s");
        }
        assert_eq!(world.apsis.counters().api_accepted, hours);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn amid_refusals_a_token_that_dies_by_401_is_renewed_at_its_first_rejection() {
    limited(async {
        let world = mixed_world();
        world.apsis.set_dialect(Dialect::Unauthorized);
        let client = world.client();
        for _ in 0..600 {
            second_of_mixed_traffic(&client).await;
        }
        let before = world.token_requests();
        world.apsis.revoke_tokens();
        second_of_mixed_traffic(&client).await;
        assert_eq!(world.apsis.counters().api_rejected, 1);
        assert_eq!(world.token_requests(), before + 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn amid_refusals_a_token_that_dies_by_403_is_renewed_within_three_rejections() {
    limited(async {
        for refused_last in [false, true] {
            let world = mixed_world();
            world.apsis.set_dialect(Dialect::Gateway);
            let client = world.client();
            for _ in 0..600 {
                second_of_mixed_traffic(&client).await;
            }
            if refused_last {
                // The row of rejections has begun before the token dies.
                assert_eq!(send(&client, get(REFUSED)).await.unwrap().status(), StatusCode::FORBIDDEN);
            }
            let before = world.token_requests();
            world.apsis.revoke_tokens();
            let mut calls = 0;
            while send(&client, keyspaces()).await.unwrap().status() != StatusCode::OK {
                calls += 1;
                assert!(calls < 10);
                advance(Duration::from_millis(500)).await;
            }
            let rejected = world.apsis.counters().api_rejected;
            assert_eq!(rejected, if refused_last { 2 } else { 3 });
            assert_eq!(world.token_requests(), before + 1);
        }
    })
    .await;
}

/// Three refusals in a row that were no death: next time it takes six, then twelve, and so on.
#[tokio::test(start_paused = true)]
async fn evidence_that_turned_out_wrong_takes_twice_as_many_rejections_next_time() {
    limited(async {
        let world = mixed_world();
        world.apsis.set_token_limit(1_000);
        world.apsis.set_api_limit(1_000);
        let layer = world.builder().token_requests_per_minute(1_000).build().unwrap();
        let client = layer.layer(world.apsis.clone());
        let accepted = || async { assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK) };
        let refused =
            || async { assert_eq!(send(&client, get(REFUSED)).await.unwrap().status(), StatusCode::FORBIDDEN) };

        accepted().await;
        refused().await;
        let mut token_requests = 2;
        for telling in [3, 6, 12, 24, 48, 96] {
            accepted().await;
            for _ in 1..telling {
                refused().await;
            }
            assert_eq!(world.token_requests(), token_requests, "before {telling} rejections in a row");
            refused().await;
            token_requests += 1;
            assert_eq!(world.token_requests(), token_requests, "after {telling} rejections in a row");
        }
    })
    .await;
}

/// Only a renewal that the evidence led to says that the evidence was wrong.
#[tokio::test(start_paused = true)]
async fn evidence_that_turned_out_wrong_leads_to_the_foot_of_the_ladder_and_is_counted_once() {
    limited(async {
        let world = mixed_world();
        let layer = world.builder().token_requests_per_minute(10).build().unwrap();
        let client = layer.layer(world.apsis.clone());
        let accepted = || async { assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK) };
        let refused = |token_requests| {
            let (client, world) = (&client, &world);
            async move {
                assert_eq!(send(client, get(REFUSED)).await.unwrap().status(), StatusCode::FORBIDDEN);
                assert_eq!(world.token_requests(), token_requests);
            }
        };
        // Two steps up, and left on evidence.
        accepted().await;
        refused(2).await;
        advance(Duration::from_secs(60)).await;
        refused(3).await;
        accepted().await;
        for token_requests in [3, 3, 4] {
            refused(token_requests).await;
        }
        // The first step, and the second one after it.
        advance(Duration::from_secs(59)).await;
        refused(4).await;
        advance(Duration::from_secs(1)).await;
        refused(5).await;
        // Twice as many, not four times.
        accepted().await;
        for token_requests in [5, 5, 5, 5, 5, 6] {
            refused(token_requests).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn rejections_of_a_token_that_was_never_accepted_end_no_cooling() {
    limited(async {
        let world = mixed_world();
        let client = world.client();
        for _ in 0..59 {
            send(&client, get(REFUSED)).await.unwrap();
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

/// The row that ends the cooling is one of first sends: a hundred replays that fail are one failure.
#[tokio::test(start_paused = true)]
async fn a_hundred_replays_refused_while_others_are_accepted_are_no_evidence() {
    limited(async {
        let world = mixed_world();
        world.apsis.set_api_limit(1_000);
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        world.apsis.set_api_delay(Duration::from_secs(1));
        let refused = tokio::spawn({
            let client = client.clone();
            all(100, move |_| client.clone().oneshot(get(REFUSED)))
        });
        // The replays are under way from the first second to the second.
        sleep(Duration::from_millis(1_500)).await;
        world.apsis.set_api_delay(Duration::ZERO);
        assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert!(refused.await.unwrap().iter().all(|answer| is_replayed(answer.as_ref().unwrap())));
        for _ in 0..50 {
            send(&client, get(REFUSED)).await.unwrap();
        }
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

/// Nobody replayed, so nobody could tell that the renewal helped; that the token was accepted for an hour does.
#[tokio::test(start_paused = true)]
async fn a_token_renewed_in_the_background_that_dies_in_turn_is_renewed_within_three_rejections() {
    limited(async {
        for dialect in DIALECTS {
            let world = World::new();
            world.apsis.set_dialect(dialect);
            let client = world.client();
            assert_eq!(send(&client, once()).await.unwrap().status(), StatusCode::OK);
            for death in 0..2 {
                world.apsis.revoke_tokens();
                let before = world.apsis.counters();
                while send(&client, once()).await.unwrap().status() != StatusCode::OK {
                    sleep(Duration::from_millis(500)).await;
                }
                let after = world.apsis.counters();
                let rejected = after.api_rejected - before.api_rejected;
                assert!(rejected <= 3, "{dialect:?}, death {death}: {rejected} rejections");
                assert_eq!(after.token_requests, before.token_requests + 1);
                for _ in 0..60 {
                    sleep(Duration::from_secs(60)).await;
                    assert_eq!(send(&client, once()).await.unwrap().status(), StatusCode::OK);
                }
            }
        }
    })
    .await;
}

/// A replay that nobody waited for, that broke on its way or that met a limit says nothing of its token; that the token
/// was accepted for an hour does.
#[tokio::test(start_paused = true)]
async fn a_renewed_token_whose_replay_told_nothing_is_renewed_at_the_first_rejection_when_it_dies() {
    limited(async {
        let untelling = [
            Answer::hang(),
            Answer::close(),
            Answer::status(StatusCode::SERVICE_UNAVAILABLE),
            Answer::too_many_requests(),
        ];
        for (dialect, untelling) in
            DIALECTS.into_iter().flat_map(|dialect| untelling.clone().map(|told| (dialect, told)))
        {
            let world = World::new();
            world.apsis.set_dialect(dialect);
            let client = world.client();
            send(&client, keyspaces()).await.unwrap();
            world.apsis.revoke_tokens();
            world.apsis.script_api_answers([Answer::genuine(), untelling.clone()]);
            let _ = timeout(Duration::from_secs(1), send(&client, keyspaces())).await;
            assert_eq!(world.token_requests(), 2);
            for _ in 0..60 {
                assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
                sleep(Duration::from_secs(60)).await;
            }

            world.apsis.revoke_tokens();
            let answer = send(&client, keyspaces()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK, "{dialect:?} after {untelling:?}");
            assert!(is_replayed(&answer));
            assert_eq!((world.token_requests(), world.apsis.counters().api_rejected), (3, 2));
        }
    })
    .await;
}

/// The other side of the same: for the time of the longest pause a renewal is on trial.
#[tokio::test(start_paused = true)]
async fn a_renewal_whose_replay_told_nothing_is_judged_by_the_next_rejection() {
    limited(async {
        for (status, steps) in LADDERS {
            let longest = *steps.last().unwrap();
            for (pause, token_requests) in [(longest - 1, 2), (longest, 3)] {
                let (world, record) = (World::new(), Record::default());
                let client = world.layer().layer(scripted_api(&record, move |_, number| match number {
                    2 => answer(StatusCode::SERVICE_UNAVAILABLE, ""),
                    _ => answer(status, ""),
                }));
                send(&client, keyspaces()).await.unwrap();
                advance(Duration::from_secs(pause)).await;
                send(&client, keyspaces()).await.unwrap();
                assert_eq!(world.token_requests(), token_requests, "{status} after {pause} s");
            }
        }
    })
    .await;
}

/// On the second step of the ladder a replay is answered. If that ended the ladder, the next rejection starts a renewal
/// at once; if not, it is the second failure.
#[tokio::test(start_paused = true)]
async fn a_limit_or_a_failure_in_answer_to_a_replay_does_not_leave_the_ladder_and_what_the_api_says_does() {
    limited(async {
        let problem = Some(("content-type", "application/problem+json"));
        let cases = [
            (429, None, false),
            (500, None, false),
            (502, None, false),
            (503, None, false),
            (504, None, false),
            (200, None, true),
            (304, None, true),
            (400, None, true),
            (404, None, true),
            (409, None, true),
            (413, None, true),
            (403, problem, true),
            (403, Some(("x-amzn-ErrorType", "ForbiddenException")), true),
        ];
        for ((status, steps), (said, header, leaves)) in
            LADDERS.into_iter().flat_map(|ladder| cases.map(|case| (ladder, case)))
        {
            let (world, record) = (World::new(), Record::default());
            let layer = world.builder().token_requests_per_minute(10).build().unwrap();
            let client = layer.layer(scripted_api(&record, move |_, number| match number {
                4 => dressed(said, header),
                _ => answer(status, ""),
            }));
            // Rejected twice; rejected, and then the answer to its replay.
            send(&client, keyspaces()).await.unwrap();
            advance(Duration::from_secs(steps[0])).await;
            assert!(is_replayed(&send(&client, keyspaces()).await.unwrap()));
            assert_eq!((record.count(), world.token_requests()), (4, 3));

            let answer = send(&client, keyspaces()).await.unwrap();
            assert_eq!(is_replayed(&answer), leaves, "{status}, then {said} {header:?}");
            assert_eq!(world.token_requests(), 3 + u64::from(leaves));
            // And at which step the ladder is now.
            let step = if leaves { steps[0] } else { steps[1] };
            advance(Duration::from_secs(step - 1)).await;
            assert!(!is_replayed(&send(&client, keyspaces()).await.unwrap()));
            advance(Duration::from_secs(1)).await;
            assert!(is_replayed(&send(&client, keyspaces()).await.unwrap()), "{status}, then {said} {header:?}");
        }
    })
    .await;
}

/// The row of three that tells of a death is not broken by answers that are rejections themselves.
#[tokio::test(start_paused = true)]
async fn a_success_that_a_rule_of_the_callers_own_rejects_is_no_acceptance() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let rule = |status: StatusCode, _: &HeaderMap| (status == StatusCode::OK).then_some(Rejection::Forbidden);
        let layer = world.builder().rejection_rule(rule).build().unwrap();
        let client = layer.layer(scripted_api(&record, |_, number| match number {
            3 => answer(StatusCode::CREATED, ""),
            _ => answer(StatusCode::OK, "who are you?"),
        }));
        // Rejected twice, accepted, and then never again.
        for (call, token_requests) in [(1, 2), (2, 2), (3, 2), (4, 2), (5, 3)] {
            send(&client, keyspaces()).await.unwrap();
            assert_eq!(world.token_requests(), token_requests, "after call {call}");
        }
    })
    .await;
}

/// Only a success shows that the token was looked at.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_neither_a_success_nor_a_rejection_is_no_acceptance() {
    limited(async {
        for said in [304, 400, 404, 429, 503] {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(scripted_api(&record, move |_, number| match number {
                3 | 5 | 7 => dressed(said, None),
                _ => answer(StatusCode::FORBIDDEN, ""),
            }));
            // No row of rejections tells of a death where nothing was accepted.
            for _ in 0..20 {
                send(&client, keyspaces()).await.unwrap();
            }
            assert_eq!(world.token_requests(), 2, "{said}");
        }
    })
    .await;
}

// Helpers.

fn is_replayed<B>(response: &Response<B>) -> bool {
    matches!(response.extensions().get(), Some(AuthOutcome::Replayed))
}

/// How many renewals there are in so many seconds of rejections, if none helps: the first at once.
fn renewals(steps: &[u64], seconds: u64) -> u64 {
    let (mut at, mut count) = (0, 0);
    while at < seconds {
        at += steps[usize::try_from(count).unwrap().min(steps.len() - 1)];
        count += 1;
    }
    count
}

/// An API that rejects whatever it is sent, and numbers its refusals.
fn rejecting<B: fmt::Debug>(
    record: &Record,
    status: StatusCode,
) -> impl Service<Request<B>, Response = Response<String>, Error = BoxError, Future: Send + Sync>
+ Clone
+ Send
+ Sync
+ use<B> {
    scripted_api(record, move |_, number| {
        let mut refusal = answer(status, &format!("refusal {number}"));
        refusal.headers_mut().insert("x-number", number.into());
        refusal
    })
}

fn dressed(status: u16, header: Said) -> Response<String> {
    let mut said = answer(StatusCode::from_u16(status).unwrap(), "first");
    if let Some((name, value)) = header {
        let name: HeaderName = name.parse().unwrap();
        said.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    }
    said
}

/// All fields but `authorization`, in their order, and whether they are sensitive.
fn lines(headers: &HeaderMap) -> Vec<(HeaderName, Vec<u8>, bool)> {
    let lines = headers.iter().filter(|(name, _)| **name != header::AUTHORIZATION);
    lines.map(|(name, value)| (name.clone(), value.as_bytes().to_vec(), value.is_sensitive())).collect()
}

/// An account whose key lacks the right to one route.
fn mixed_world() -> World {
    let world = World::new();
    world.apsis.refuse_route(REFUSED);
    world
}

async fn second_of_mixed_traffic(client: &ApsisAuth<Emulator>) {
    assert_eq!(send(client, get(REFUSED)).await.unwrap().status(), StatusCode::FORBIDDEN);
    advance(Duration::from_millis(500)).await;
    assert_eq!(send(client, keyspaces()).await.unwrap().status(), StatusCode::OK);
    advance(Duration::from_millis(500)).await;
}

type Slowly = Pin<Box<dyn Future<Output = Result<Response<String>, Infallible>> + Send>>;

/// Calls that overlap, answered at random. Returns how many were replayed.
async fn random_traffic(seed: u64) -> usize {
    let record = Record::default();
    let rng = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    let draw = {
        let rng = Arc::clone(&rng);
        move |range| rng.lock().unwrap().u64(range)
    };
    let api = {
        let draw = draw.clone();
        scripted_api(&record, move |sent, number| {
            let status = match draw(0..10) {
                0..4 => StatusCode::UNAUTHORIZED,
                4..6 => StatusCode::FORBIDDEN,
                _ => StatusCode::OK,
            };
            let mut said = answer(status, &number.to_string());
            let call = sent.head.headers["x-call"].clone();
            said.headers_mut().insert("x-call", call);
            said
        })
    };
    let slow_api = {
        let draw = draw.clone();
        service_fn(move |request: Request<()>| -> Slowly {
            let (said, pause) = (api.clone().oneshot(request), draw(0..3_000));
            Box::pin(async move {
                sleep(Duration::from_millis(pause)).await;
                Ok(said.await.unwrap())
            })
        })
    };
    let client = moody_token_endpoint(draw.clone()).build().unwrap().layer(slow_api);
    let answers = all(40, move |call| {
        let (client, pause) = (client.clone(), draw(0..120_000));
        async move {
            sleep(Duration::from_millis(pause)).await;
            let request = Request::get(BASE).header("x-call", call).body(()).unwrap();
            send(&client, request).await
        }
    })
    .await;

    let (record, mut replayed) = (record.all(), 0);
    for (call, answer) in answers.iter().enumerate() {
        let of_this_call = |sent: &Sent| sent.head.headers["x-call"] == call.to_string();
        let sends: Vec<_> = record.iter().enumerate().filter(|(_, sent)| of_this_call(sent)).collect();
        let Ok(answer) = answer else {
            assert!(sends.is_empty(), "seed {seed}, call {call}");
            continue;
        };
        assert!((1..=2).contains(&sends.len()), "seed {seed}, call {call}: {} sends", sends.len());
        assert_eq!(is_replayed(answer), sends.len() == 2, "seed {seed}, call {call}");
        let (last, _) = sends.last().unwrap();
        assert_eq!(answer.body(), &(last + 1).to_string(), "seed {seed}, call {call}: not the last answer");
        if let [(_, first), (_, replay)] = sends.as_slice() {
            assert_ne!(first.authorization(), replay.authorization(), "seed {seed}, call {call}");
            replayed += 1;
        }
    }
    replayed
}

/// A layer whose token endpoint answers with a new token, the same, or an error, after a while.
fn moody_token_endpoint(
    draw: impl Fn(std::ops::Range<u64>) -> u64 + Clone + Send + Sync + 'static,
) -> ApsisAuthBuilder {
    let newest = Arc::new(Mutex::new(0_u64));
    let transport = service_fn(move |_: Request<Full<Bytes>>| {
        let (kind, pause) = (draw(0..10), draw(0..2_000));
        let mut newest = newest.lock().unwrap();
        *newest += u64::from(kind > 1 || *newest == 0);
        let body = format!(
            "{{\"access_token\":\"token-{newest}\",\"token_type\":\"Bearer\",\"expires_in\":{}}}",
            draw(5..600)
        );
        let status = if kind == 0 { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
        async move {
            sleep(Duration::from_millis(pause)).await;
            Ok::<_, BoxError>(answer(status, &body))
        }
    });
    let credentials = apsis_auth::ClientCredentials::new("id", "secret").unwrap();
    apsis_auth::ApsisAuthLayer::builder(credentials, BASE).transport(transport).random(|| 0.5)
}
