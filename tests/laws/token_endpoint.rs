//! Laws 13 to 17, the token endpoint; and what does not build.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    error::Error,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use apsis_auth::{
    ApsisAuthBuilder, ApsisAuthLayer, AuthError, BaseUrl, BuildError, ClientCredentials, Region, TokenHandle,
    emulator::{Answer, EmulatorBody},
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::{
    task::yield_now,
    time::{Instant, advance, sleep, timeout},
};
use tower::{BoxError, Service, service_fn};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);
const KIB: usize = 1024;
const LARGEST_ANSWER: usize = 64 * KIB;

// The request (law 13).

#[tokio::test(start_paused = true)]
async fn a_token_request_is_a_post_of_exactly_three_members() {
    limited(async {
        let endpoint = Recorder::default();
        token_of(builder("my-id", "my-secret", BASE).transport(endpoint.service())).await.unwrap();

        let [asked] = endpoint.requests().try_into().unwrap();
        assert_eq!(asked.method, Method::POST);
        assert_eq!(asked.uri, "https://api.apsis.one/oauth/token");
        assert_eq!(asked.headers, [("content-type".to_owned(), "application/json".to_owned())]);
        let whole = r#"{"grant_type":"client_credentials","client_id":"my-id","client_secret":"my-secret"}"#;
        assert_eq!(asked.text, whole);
        assert_eq!(asked.promised, Some(whole.len() as u64), "the length is known beforehand");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn credentials_arrive_as_they_are() {
    limited(async {
        let endpoint = Recorder::default();
        let (id, secret) = ("a\"b\\c&d=e", " \u{1}ü\n💌\" ");
        token_of(builder(id, secret, BASE).transport(endpoint.service())).await.unwrap();

        let asked: Value = serde_json::from_str(&endpoint.requests()[0].text).unwrap();
        let meant = json!({ "grant_type": "client_credentials", "client_id": id, "client_secret": secret });
        assert_eq!(asked, meant);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_token_endpoint_is_below_the_path_of_the_base_url() {
    limited(async {
        for (base, url) in [
            ("https://api.apsis.one", "https://api.apsis.one/oauth/token"),
            ("https://api.apsis.one/", "https://api.apsis.one/oauth/token"),
            ("https://gateway.example:8443/apsis", "https://gateway.example:8443/apsis/oauth/token"),
            ("https://gateway.example/a%2Fb/", "https://gateway.example/a%2Fb/oauth/token"),
            ("http://[::1]:8080", "http://[::1]:8080/oauth/token"),
        ] {
            let endpoint = Recorder::default();
            token_of(builder("id", "secret", base).transport(endpoint.service())).await.unwrap();
            assert_eq!(endpoint.requests()[0].uri, url);
        }
        for region in [Region::Eu, Region::Apac] {
            let endpoint = Recorder::default();
            token_of(builder("id", "secret", region).transport(endpoint.service())).await.unwrap();
            assert_eq!(endpoint.requests()[0].uri.to_string(), format!("{}/oauth/token", region.base_url()));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_attempt_sends_the_whole_request_anew() {
    limited(async {
        let endpoint = Recorder::default();
        endpoint.fail_first(2);
        token_of(builder("id", "secret", BASE).transport(endpoint.service())).await.unwrap();

        let requests = endpoint.requests();
        assert_eq!(requests.len(), 3);
        assert!(requests.iter().all(|request| *request == requests[0]));
    })
    .await;
}

// `Retry-After` (law 14).

/// What the server's clock says in the rows below; far from the clock of the process.
const SERVER_DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_to_the_second() {
    // 429 adds a draw of a tenth: half of that, here. Without a wait that can be read it is a minute, and half of another.
    let (unknown, longest) = (90.0, 945.0);
    let rows: &[(&[&str], f64)] = &[
        (&["1"], 1.05),
        (&["5"], 5.25),
        (&[" 40 "], 42.0),
        (&["900"], longest),
        (&["901"], longest),
        (&["86400"], longest),
        (&["18446744073709551616"], longest),
        (&["99999999999999999999999999999999999999999"], longest),
        (&["Sun, 06 Nov 1994 08:50:17 GMT"], 42.0),
        (&["Sunday, 06-Nov-94 08:50:17 GMT"], 42.0),
        (&["Sun Nov  6 08:50:17 1994"], 42.0),
        (&["Fri, 31 Dec 9999 23:59:59 GMT"], longest),
        (&["0"], unknown),
        (&["000"], unknown),
        (&[SERVER_DATE], unknown),
        (&["Sun, 06 Nov 1994 08:49:36 GMT"], unknown),
        (&["Thu, 01 Jan 1970 00:00:00 GMT"], unknown),
        (&["-5"], unknown),
        (&["+5"], unknown),
        (&["1.5"], unknown),
        (&["5 s"], unknown),
        (&["5, 40"], unknown),
        (&["soon"], unknown),
        (&[""], unknown),
        (&["Sun, 99 Nov 1994 08:50:17 GMT"], unknown),
        (&["5", "40"], 42.0),
        (&["40", "5"], 42.0),
        (&["soon", "40"], 42.0),
        (&["0", "40"], 42.0),
        (&["5", "Sun, 06 Nov 1994 08:50:17 GMT"], 42.0),
        (&["soon", "never"], unknown),
    ];
    limited(async {
        for (values, seconds) in rows {
            let refusal = Answer::too_many_requests().header(header::DATE, SERVER_DATE);
            let refusal = values.iter().fold(refusal, |answer, value| answer.header(header::RETRY_AFTER, *value));
            assert_grounds(refusal, Duration::from_secs_f64(*seconds), &format!("{values:?}")).await;
        }
        let unreadable = HeaderValue::from_bytes(b"\xff5").unwrap();
        let refusal = Answer::too_many_requests().header(header::RETRY_AFTER, unreadable);
        assert_grounds(refusal, 90 * SECOND, "not ASCII").await;
    })
    .await;
}

/// Over the limit once; then nobody calls before the moment that the error names, and the first to call at it is served.
async fn assert_grounds(refusal: Answer, wait: Duration, row: &str) {
    let world = World::new();
    world.apsis.script_token_answers([refusal]);
    let token = world.builder().flight_timeout(SECOND).max_wait(SECOND / 2).build().unwrap().handle();

    let error = token.get().await.unwrap_err();
    assert!(matches!(error, AuthError::RateLimited { .. }), "{row}: {error:?}");
    assert_eq!(retry_in(&error), wait, "{row}");
    sleep(wait.saturating_sub(SECOND)).await;
    let (early, took) = timed(token.get()).await;
    assert_eq!(early.unwrap_err().retry_at(), error.retry_at(), "{row}");
    assert_eq!((took, world.token_requests()), (Duration::ZERO, 1), "{row}");
    sleep(SECOND).await;
    token.get().await.unwrap();
    assert_eq!(world.token_requests(), 2, "{row}");
}

#[tokio::test(start_paused = true)]
async fn a_date_without_a_server_date_is_read_by_the_local_clock() {
    limited(async {
        let server_now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let refusal = || {
            let answer = Response::builder().status(StatusCode::TOO_MANY_REQUESTS);
            answer.header(header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:17 GMT").body(Full::<Bytes>::default()).unwrap()
        };
        let builder = builder("id", "secret", BASE).transport(always(refusal)).wall_clock(move || server_now);
        assert_eq!(retry_in(&token_of(builder).await.unwrap_err()), 42 * SECOND);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn callers_who_cannot_wait_so_long_fail_at_once_and_are_told_when() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "120")]);
        let client = world.client();
        let first = send(&client, keyspaces()).await.unwrap_err();
        let retry_at = auth_error(&first).retry_at();

        let (errors, took) = timed(all(1_000, move |_| {
            let client = client.clone();
            async move { send(&client, keyspaces()).await.unwrap_err() }
        }))
        .await;
        for error in &errors {
            assert!(matches!(auth_error(error), AuthError::RateLimited { .. }), "{error:?}");
            assert_eq!(auth_error(error).retry_at(), retry_at);
        }
        assert_eq!(took, Duration::ZERO);
        assert_eq!(world.token_requests(), 1);
        assert_eq!(world.apsis.counters().api_requests, 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn callers_who_can_wait_so_long_wait_and_share_one_token_request() {
    limited(async {
        let world = World::new();
        world.apsis.set_api_limit(1_000);
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "40")]);
        let client = world.client();
        send(&client, keyspaces()).await.unwrap_err();
        sleep(20 * SECOND).await;

        let (answers, took) = timed(all(1_000, move |_| {
            let client = client.clone();
            async move { send(&client, keyspaces()).await.unwrap().status() }
        }))
        .await;
        assert!(answers.iter().all(|status| *status == StatusCode::OK));
        assert_eq!(took, 22 * SECOND);
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_fits_into_the_flight_is_spent_within_it() {
    limited(async {
        let rows = [
            (Answer::too_many_requests().header("retry-after", "5"), 5_250),
            (Answer::too_many_requests().header("retry-after", "1"), 1_500),
            (Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "20"), 20_000),
            (Answer::status(StatusCode::REQUEST_TIMEOUT).header("retry-after", "1"), 1_500),
        ];
        for (refusal, millis) in rows {
            let world = World::new();
            world.apsis.script_token_answers([refusal.clone()]);
            let (token, took) = timed(token_of(world.builder())).await;
            token.unwrap();
            assert_eq!(took, Duration::from_millis(millis), "{refusal:?}");
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_fits_into_the_flight_and_not_into_the_patience_of_its_callers_is_not_begun() {
    limited(async {
        let rows = [
            (Answer::too_many_requests().header("retry-after", "20"), 21 * SECOND),
            (Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "20"), 20 * SECOND),
        ];
        for (refusal, wait) in rows {
            let world = World::new();
            world.apsis.script_token_answers([refusal]);
            let token = world.builder().max_wait(10 * SECOND).build().unwrap().handle();
            let (error, took) = timed(token.get()).await;
            assert_eq!((retry_in(&error.unwrap_err()), took), (wait, Duration::ZERO));
            sleep(wait.saturating_sub(SECOND)).await;
            assert_eq!(world.token_requests(), 1);
            token.get().await.unwrap();
            assert_eq!(world.token_requests(), 2);
        }
        // Nor one that ends with it.
        let world = World::new();
        world.apsis.script_token_answers([Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "20")]);
        let token = world.builder().max_wait(20 * SECOND).build().unwrap().handle();
        let (error, took) = timed(token.get()).await;
        assert_eq!((retry_in(&error.unwrap_err()), took), (20 * SECOND, Duration::ZERO));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_error_may_ask_for_a_longer_wait_than_the_usual_one() {
    limited(async {
        for (asked, wait) in [("40", 40), ("3", 5), ("soon", 5), ("86400", 900)] {
            let world = World::new();
            let failure = Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", asked);
            world.apsis.script_token_answers([failure]);
            let error = token_of(world.builder().flight_timeout(SECOND)).await.unwrap_err();
            assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
            assert_eq!(retry_in(&error), wait * SECOND, "{asked}");
        }
    })
    .await;
}

// Hangs and floods (law 15).

#[tokio::test(start_paused = true)]
async fn a_transport_that_is_never_ready_is_given_up() {
    limited(async {
        let patient = builder("id", "secret", BASE).transport(NeverReady).max_wait(60 * SECOND);
        let (error, took) = timed(token_of(patient)).await;
        assert_too_late(&error.unwrap_err());
        assert_eq!(took, 30 * SECOND);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_given_up_and_the_flight_too() {
    limited(async {
        for hang in [Answer::hang(), Answer::hang_in_body(), Answer::drip(SECOND)] {
            let world = World::new();
            world.apsis.script_token_answers(vec![hang; 9]);
            let (error, took) = timed(token_of(world.builder().max_wait(60 * SECOND))).await;
            assert_too_late(&error.unwrap_err());
            // 15 s for the first attempt, a pause, and what is left for the second.
            assert_eq!(took, 30 * SECOND);
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_followed_by_another_one() {
    limited(async {
        for hang in [Answer::hang(), Answer::hang_in_body(), Answer::drip(SECOND)] {
            let world = World::new();
            world.apsis.script_token_answers([hang]);
            let (token, took) = timed(token_of(world.builder().attempt_timeout(4 * SECOND))).await;
            token.unwrap();
            assert_eq!(took, Duration::from_millis(5_500));
            assert_eq!(world.token_requests(), 2);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_endless_answer_is_read_up_to_the_limit() {
    limited(async {
        let (error, pulled) = endless(StatusCode::OK).await;
        assert!(chain(&error).contains("larger than 65536 bytes"), "{}", chain(&error));
        assert_eq!(pulled, LARGEST_ANSWER + KIB, "the chunk that is too much is the last");
    })
    .await;
}

/// A body that is ready again and again must leave others their turn, and the clock too.
#[test]
fn an_answer_of_endlessly_nothing_is_given_up_in_time() {
    on_a_thread(|| async {
        // A paused clock goes on by itself only where nothing is ready.
        tokio::spawn(async {
            loop {
                yield_now().await;
                advance(SECOND).await;
            }
        });
        let builder = builder("id", "secret", BASE).transport(always(|| Response::new(Nothing))).flight_timeout(SECOND);
        assert_too_late(&token_of(builder).await.unwrap_err());
    });
}

#[tokio::test(start_paused = true)]
async fn an_answer_as_large_as_the_limit_is_a_token_and_a_byte_more_is_none() {
    limited(async {
        let answer = |size: usize| {
            let token = token_json();
            let padded = format!("{token}{}", " ".repeat(size - token.len()));
            move || Response::new(Full::<Bytes>::from(padded.clone()))
        };
        let builder = || builder("id", "secret", BASE).flight_timeout(SECOND);
        token_of(builder().transport(always(answer(LARGEST_ANSWER)))).await.unwrap();
        let error = token_of(builder().transport(always(answer(LARGEST_ANSWER + 1)))).await.unwrap_err();
        assert!(chain(&error).contains("larger than"), "{}", chain(&error));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_body_of_a_failure_that_may_pass_is_not_read() {
    limited(async {
        for status in [408, 429, 500, 502, 503, 504] {
            let (error, pulled) = endless(StatusCode::from_u16(status).unwrap()).await;
            assert!(error.is_retryable(), "{status}");
            assert_eq!(pulled, 0, "{status}");
            let (error, took) = timed(silent(StatusCode::from_u16(status).unwrap())).await;
            assert!(error.is_retryable(), "{status}");
            assert_eq!(took, Duration::ZERO, "{status}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_one_whatever_becomes_of_its_body() {
    limited(async {
        let (error, pulled) = endless(StatusCode::UNAUTHORIZED).await;
        assert!(matches!(error, AuthError::Refused { code: None, .. }), "{error:?}");
        assert_eq!(pulled, LARGEST_ANSWER + KIB);

        let (error, took) = timed(silent(StatusCode::UNAUTHORIZED)).await;
        assert!(matches!(error, AuthError::Refused { code: None, .. }), "{error:?}");
        assert_eq!(took, SECOND, "the flight's time");
    })
    .await;
}

// What each answer means (law 16).

#[tokio::test(start_paused = true)]
async fn a_status_that_may_pass_is_retried() {
    limited(async {
        for status in [408, 500, 501, 502, 503, 504, 505, 529, 599] {
            let world = World::new();
            world.apsis.script_token_answers([Answer::status(StatusCode::from_u16(status).unwrap())]);
            let (token, took) = timed(token_of(world.builder())).await;
            token.unwrap();
            assert_eq!((world.token_requests(), took), (2, Duration::from_millis(1_500)), "{status}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn over_the_limit_is_retried_a_minute_later() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::too_many_requests()]);
        let patient = world.builder().flight_timeout(120 * SECOND).max_wait(120 * SECOND);
        let (token, took) = timed(token_of(patient)).await;
        token.unwrap();
        assert_eq!((world.token_requests(), took), (2, 90 * SECOND));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_and_no_token_is_retried() {
    let bare = |status| Answer::status(StatusCode::from_u16(status).unwrap());
    limited(async {
        for answer in [Answer::close(), Answer::truncated(), Answer::html(), bare(200), bare(202), bare(204)] {
            let world = World::new();
            world.apsis.script_token_answers([answer]);
            let (token, took) = timed(token_of(world.builder())).await;
            token.unwrap();
            assert_eq!((world.token_requests(), took), (2, Duration::from_millis(1_500)));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_error_of_the_transport_is_in_the_chain() {
    limited(async {
        let failing = service_fn(|_| async { Err::<Response<Full<Bytes>>, BoxError>("the cable is cut".into()) });
        let error = token_of(builder("id", "secret", BASE).transport(failing)).await.unwrap_err();
        assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
        assert!(chain(&error).ends_with("the cable is cut"), "{}", chain(&error));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_one_with_any_success() {
    limited(async {
        for status in [200, 201, 203, 299] {
            let answer = move || {
                let body = Full::<Bytes>::from(token_json());
                Response::builder().status(status).body(body).unwrap()
            };
            token_of(builder("id", "secret", BASE).transport(always(answer))).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_retried() {
    limited(async {
        for status in [
            300, 301, 302, 303, 304, 307, 308, 400, 401, 402, 403, 404, 405, 406, 409, 410, 413, 415, 418, 421, 422,
            425, 451, 499,
        ] {
            let world = World::new();
            let refusal = Answer::status(StatusCode::from_u16(status).unwrap());
            world.apsis.script_token_answers([refusal.header("retry-after", "1").header("location", BASE)]);
            let (error, took) = timed(token_of(world.builder())).await;
            let error = error.unwrap_err();
            assert!(matches!(error, AuthError::Refused { status: said, .. } if said == status), "{status}: {error:?}");
            assert!(!error.is_retryable(), "{status}");
            assert_eq!((world.token_requests(), took), (1, Duration::ZERO), "{status}");
            assert_eq!(retry_in(&error), 30 * SECOND, "{status}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_the_end_of_a_refusal() {
    limited(async {
        let world = World::new();
        world.apsis.delete_api_key(world.apsis.api_key().client_id());
        let token = world.builder().max_wait(3_600 * SECOND).build().unwrap().handle();
        token.get().await.unwrap_err();
        let (again, took) = timed(token.get()).await;
        assert!(matches!(again, Err(AuthError::Refused { .. })));
        assert_eq!((world.token_requests(), took), (1, Duration::ZERO));
        sleep(30 * SECOND).await;
        token.get().await.unwrap_err();
        assert_eq!(world.token_requests(), 2, "the key may have been mended");
    })
    .await;
}

// When to try again.

#[tokio::test(start_paused = true)]
async fn pauses_within_a_flight_double_and_are_drawn_from_their_upper_half() {
    limited(async {
        let millis = |times: &[u64]| times.iter().map(|time| Duration::from_millis(*time)).collect::<Vec<_>>();
        assert_eq!(attempts(0.0, 30 * SECOND).await, millis(&[0, 1_000, 3_000, 7_000, 15_000]));
        assert_eq!(attempts(0.5, 30 * SECOND).await, millis(&[0, 1_500, 4_500, 10_500, 22_500]));
        assert_eq!(attempts(1.0, 30 * SECOND).await, millis(&[0, 2_000, 6_000, 14_000]));
        let long = millis(&[0, 2_000, 6_000, 14_000, 30_000, 62_000, 122_000, 182_000]);
        assert_eq!(attempts(1.0, 200 * SECOND).await, long, "a minute is the longest pause");
    })
    .await;
}

/// When the attempts of one flight are made, if all of them fail.
async fn attempts(draw: f64, flight: Duration) -> Vec<Duration> {
    let endpoint = Recorder::default();
    endpoint.fail_first(usize::MAX);
    let builder = builder("id", "secret", BASE).transport(endpoint.service()).random(move || draw);
    let builder = builder.flight_timeout(flight).max_wait(600 * SECOND).token_requests_per_minute(100);
    token_of(builder).await.unwrap_err();
    endpoint.times()
}

#[tokio::test(start_paused = true)]
async fn a_draw_that_is_none_does_no_harm() {
    limited(async {
        for draw in [f64::NAN, f64::INFINITY, -1e300, 1e300] {
            let world = World::new();
            world.apsis.script_token_answers(vec![Answer::status(StatusCode::BAD_GATEWAY); 3]);
            let (token, took) = timed(token_of(world.builder().random(move || draw))).await;
            token.unwrap();
            assert!((7 * SECOND..=14 * SECOND).contains(&took), "{draw}: {took:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn transient_failures_in_a_row_ground_for_longer_until_a_success() {
    limited(assert_ladder(0.5, &Answer::status(StatusCode::BAD_GATEWAY), &[5, 10, 20, 40, 60, 60, 60])).await;
}

#[tokio::test(start_paused = true)]
async fn refusals_in_a_row_ground_for_longer_until_a_success() {
    limited(assert_ladder(0.5, &Answer::status(StatusCode::UNAUTHORIZED), &[30, 60, 120, 240, 480, 900, 900])).await;
}

#[tokio::test(start_paused = true)]
async fn answers_over_the_limit_in_a_row_spread_further_until_a_success() {
    limited(async {
        assert_ladder(0.0, &Answer::too_many_requests(), &[60; 8]).await;
        assert_ladder(1.0, &Answer::too_many_requests(), &[120, 180, 300, 540, 1_020, 1_980, 3_600, 3_600]).await;
    })
    .await;
}

/// The budget has room again after a minute; who was told to wait for longer waits for longer.
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_longer_than_the_budgets_minute_is_kept_when_the_budget_is_used_up() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::too_many_requests().header(header::RETRY_AFTER, "600")]);
        let token = world.builder().token_requests_per_minute(1).build().unwrap().handle();
        assert_eq!(retry_in(&token.get().await.unwrap_err()), Duration::from_secs(630));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_renewal_that_fails_leaves_the_others_waiting_as_long_as_they_were_told() {
    limited(async {
        let world = World::new();
        let failure = Answer::status(StatusCode::BAD_GATEWAY);
        world.apsis.script_token_answers([Answer::too_many_requests().header(header::RETRY_AFTER, "120")]);
        let builder = world.builder().token_requests_per_minute(1_000).flight_timeout(SECOND).max_wait(SECOND / 2);
        let token = builder.build().unwrap().handle();
        assert_eq!(retry_in(&token.get().await.unwrap_err()), Duration::from_secs(126));
        world.apsis.script_token_answers([failure.clone()]);
        assert_eq!(retry_in(&token.renew().await.unwrap_err()), Duration::from_secs(126));
        sleep(Duration::from_secs(125)).await;
        token.get().await.unwrap_err();
        assert_eq!(world.token_requests(), 2);
        sleep(SECOND).await;
        token.get().await.unwrap();

        // A refusal asks nobody to wait, and somebody may have mended the key.
        world.apsis.script_token_answers([Answer::status(StatusCode::FORBIDDEN), failure]);
        assert_eq!(retry_in(&token.renew().await.unwrap_err()), Duration::from_secs(30));
        assert_eq!(retry_in(&token.renew().await.unwrap_err()), Duration::from_secs(5));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_draw_on_top_of_a_retry_after_is_up_to_a_tenth() {
    limited(async {
        for (draw, wait) in [(0.0, 100), (1.0, 110)] {
            let refusal = Answer::too_many_requests().header("retry-after", "100");
            assert_ladder(draw, &refusal, &[wait; 3]).await;
        }
    })
    .await;
}

/// The same failure again and again, each as soon as it may be; then a success, and the failure once more.
async fn assert_ladder(draw: f64, failure: &Answer, seconds: &[u32]) {
    let world = World::new();
    world.apsis.script_token_answers(vec![failure.clone(); seconds.len()]);
    let builder = world.builder().random(move || draw).token_requests_per_minute(1_000);
    let token = builder.flight_timeout(SECOND).max_wait(SECOND / 2).build().unwrap().handle();
    for wait in seconds {
        let wait = *wait * SECOND;
        assert_eq!(retry_in(&token.get().await.unwrap_err()), wait);
        sleep(wait.saturating_sub(SECOND)).await;
        token.get().await.unwrap_err();
        sleep(SECOND).await;
    }
    assert_eq!(world.token_requests(), seconds.len() as u64, "one flight each, none before its time");
    token.get().await.unwrap();
    assert_eq!(token.snapshot().grounded, None);
    world.apsis.script_token_answers([failure.clone()]);
    assert_eq!(retry_in(&token.renew().await.unwrap_err()), seconds[0] * SECOND, "all forgotten");
}

// Deadlines of the callers (law 17).

#[tokio::test(start_paused = true)]
async fn a_caller_with_a_deadline_of_its_own_leaves_and_the_flight_goes_on() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(10 * SECOND);
        let client = world.client();
        timeout(SECOND, send(&client, keyspaces())).await.unwrap_err();
        sleep(9 * SECOND).await;
        let (answer, took) = timed(send(&client, keyspaces())).await;
        assert_eq!((answer.unwrap().status(), took), (StatusCode::OK, Duration::ZERO));
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

// What does not build.

#[test]
fn credentials_that_are_blank_do_not_build() {
    for blank in ["", " ", "\t\r\n", "\u{a0}\u{2003}"] {
        assert!(matches!(ClientCredentials::new(blank, "secret"), Err(BuildError::EmptyClientId)), "{blank:?}");
        assert!(matches!(ClientCredentials::new("id", blank), Err(BuildError::EmptyClientSecret)), "{blank:?}");
    }
    ClientCredentials::new(" id ", " secret ").unwrap();
}

#[test]
fn a_region_has_two_names_in_any_case() {
    for (name, region) in [("eu", Region::Eu), ("EU", Region::Eu), (" Apac\n", Region::Apac)] {
        assert_eq!(name.parse::<Region>().unwrap(), region);
    }
    for name in ["", "us", "e u", "eu-west-1", "https://api.apsis.one"] {
        let error = name.parse::<Region>().unwrap_err();
        assert!(matches!(&error, BuildError::UnknownRegion { name: said, .. } if said == name), "{error:?}");
    }
}

#[test]
fn a_base_url_that_cannot_be_used_does_not_build() {
    for (base, meant) in [
        ("", "not a URL"),
        ("https://", "not a URL"),
        (" https://api.apsis.one", "not a URL"),
        ("https://api.apsis.one/a b", "not a URL"),
        ("https://äpi.apsis.one", "not a URL"),
        ("/oauth", "not absolute"),
        ("api.apsis.one", "not absolute"),
        ("api.apsis.one:443", "not absolute"),
        ("https://api.apsis.one?region=eu", "a query"),
        ("https://api.apsis.one/?", "a query"),
        ("https://api.apsis.one#top", "a fragment"),
        ("https://api.apsis.one/#", "a fragment"),
        ("https://my-user:my-password@api.apsis.one", "user information"),
        ("https://my-password@api.apsis.one", "user information"),
        ("https://api.apsis.one/oauth/token", "leave out"),
        ("https://api.apsis.one/v1/oauth/token/", "leave out"),
        ("ftp://api.apsis.one", "neither https nor http"),
        ("httpss://api.apsis.one", "neither https nor http"),
        ("http://api.apsis.one", "use https"),
        ("http://10.0.0.1:8080", "use https"),
        ("http://0.0.0.0", "use https"),
        ("http://128.0.0.1", "use https"),
        ("http://127.0.0.1.example.com", "use https"),
        ("http://localhost.example.com", "use https"),
        ("http://localhost.", "use https"),
        ("http://[::2]", "use https"),
        ("https://api.apsis.one:65536", "its port"),
        ("https://api.apsis.one:99999999999999999999", "its port"),
        ("https://api.apsis.one:https", "its port"),
        ("https://api.apsis.one:-1", "its port"),
        ("https://api.apsis.one:+443", "its port"),
    ] {
        let error = build(base).unwrap_err();
        let BuildError::BaseUrl { url, problem, .. } = &error else { panic!("{base}: {error:?}") };
        assert!(problem.contains(meant), "{base}: {problem}");
        assert!(!base.contains('@') || url == "https://…@api.apsis.one", "{url}");
        assert!(!format!("{error} {error:?}").contains("my-"), "{error:?}");
    }
}

#[test]
fn no_error_shows_user_information() {
    for base in [
        "https://my-user:my-password@",
        "https://my-user:my-password@api.apsis.one#top",
        "https://my-user:my-pass@my-word@api.apsis.one",
        "https://my-user:my#password@api.apsis.one",
        "https://my-user:my/password@api.apsis.one?a",
        "http://my-user:my?password@api.apsis.one",
        "ftp://my-user:my-password@api.apsis.one",
        "my-user:my-password@api.apsis.one",
    ] {
        let error = build(base).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("my"), "{error:?}");
    }
}

#[test]
fn a_base_url_may_be_plain_http_on_this_machine_only() {
    for base in [
        "http://localhost",
        "http://LocalHost:8080/",
        "http://127.0.0.1",
        "http://127.1.2.3:1",
        "http://[::1]:8080",
        "https://api.apsis.one:",
        "https://api.apsis.one:8443/v2/",
        "HTTPS://API.APSIS.ONE",
    ] {
        build(base).unwrap();
    }
    for base in [BaseUrl::from(Region::Apac), Uri::from_static("https://api.apsis.one").into(), BASE.to_owned().into()]
    {
        build(base).unwrap();
    }
}

#[test]
fn a_budget_of_nothing_does_not_build() {
    let builder = || builder("id", "secret", BASE).transport(NeverReady);
    let error = builder().token_requests_per_minute(0).build().unwrap_err();
    assert!(matches!(error, BuildError::ZeroBudget), "{error:?}");
    builder().token_requests_per_minute(u32::MAX).build().unwrap();
}

#[test]
fn limits_on_time_are_more_than_zero_and_at_most_an_hour() {
    type Set = fn(ApsisAuthBuilder, Duration) -> ApsisAuthBuilder;
    let settings: [(&str, Set); 3] = [
        ("max_wait", ApsisAuthBuilder::max_wait),
        ("attempt_timeout", ApsisAuthBuilder::attempt_timeout),
        ("flight_timeout", ApsisAuthBuilder::flight_timeout),
    ];
    let hour = Duration::from_secs(3_600);
    let nanosecond = Duration::from_nanos(1);
    let mut named = BTreeSet::new();
    for (name, set) in settings {
        let build = |time| set(builder("id", "secret", BASE).transport(NeverReady), time).build();
        for time in [Duration::ZERO, hour + nanosecond, Duration::MAX] {
            let error = build(time).unwrap_err();
            let BuildError::InvalidDuration { setting, value, .. } = error else { panic!("{error:?}") };
            assert_eq!((setting, value), (name, time));
            named.insert(setting);
        }
        build(nanosecond).unwrap();
        build(hour).unwrap();
    }
    assert_eq!(named.len(), settings.len());
}

#[cfg(feature = "client")]
#[test]
fn certificates_that_cannot_be_read_are_not_trusted() {
    let nonsense = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for pem in [nonsense, broken, "not PEM", "\n", ""] {
        let error = apsis_auth::HttpsTransport::trusting(pem.as_bytes()).unwrap_err();
        assert!(matches!(error, BuildError::Certificate { .. }), "{error:?}");
    }
}

#[cfg(not(feature = "client"))]
#[test]
fn without_a_transport_nothing_is_built() {
    let error = builder("id", "secret", BASE).build().unwrap_err();
    assert!(matches!(error, BuildError::NoTransport), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_what_to_check() {
    limited(async {
        for (status, body, meant) in [
            (StatusCode::BAD_REQUEST, "", "client ID"),
            (StatusCode::UNAUTHORIZED, "", "client ID"),
            (StatusCode::FORBIDDEN, "", "client ID"),
            (StatusCode::NOT_FOUND, r#"{"error":"invalid_client"}"#, "client ID"),
            (StatusCode::NOT_FOUND, "", "no answer of a token endpoint"),
            (StatusCode::FOUND, "", "no answer of a token endpoint"),
        ] {
            let world = World::new();
            world.apsis.script_token_answers([Answer::status(status).body(body)]);
            let error = world.layer().handle().get().await.unwrap_err().to_string();
            assert!(error.starts_with("https://api.apsis.one/oauth/token refused"), "{error}");
            assert!(error.contains(meant), "{status}: {error}");
        }
    })
    .await;
}

// Helpers.

/// A builder of one's own credentials, with every draw in the middle and the wall clock of the machine.
fn builder(id: &str, secret: &str, base: impl Into<BaseUrl>) -> ApsisAuthBuilder {
    ApsisAuthLayer::builder(ClientCredentials::new(id, secret).unwrap(), base).random(|| 0.5)
}

fn build(base: impl Into<BaseUrl>) -> Result<ApsisAuthLayer, BuildError> {
    builder("id", "secret", base).transport(NeverReady).build()
}

async fn token_of(builder: ApsisAuthBuilder) -> Result<TokenHandle, AuthError> {
    let token = builder.build().unwrap().handle();
    token.warm_up().await?;
    Ok(token)
}

async fn timed<T>(action: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let result = action.await;
    (result, started.elapsed())
}

fn auth_error(error: &BoxError) -> &AuthError {
    error.downcast_ref().unwrap()
}

fn retry_in(error: &AuthError) -> Duration {
    error.retry_at().unwrap_or_else(|| panic!("{error:?}")) - Instant::now().into_std()
}

fn assert_too_late(error: &AuthError) {
    assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
    assert!(chain(error).contains("did not answer within"), "{}", chain(error));
}

/// An error and what caused it, in words.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn token_json() -> String {
    json!({ "access_token": "a-token", "expires_in": 86_400, "token_type": "Bearer" }).to_string()
}

/// A token endpoint that answers all alike.
fn always<B>(
    answer: impl Fn() -> Response<B> + Clone + Send + Sync + 'static,
) -> impl Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + Sync
where
    B: Send + 'static,
{
    service_fn(move |_| std::future::ready(Ok(answer())))
}

/// The failure that an endless body of this status makes, and how much was pulled of it.
async fn endless(status: StatusCode) -> (AuthError, usize) {
    let pulled = Arc::new(AtomicUsize::new(0));
    let body = Endless { pulled: Arc::clone(&pulled) };
    let answer = move || {
        let mut answer = Response::new(body.clone());
        *answer.status_mut() = status;
        answer
    };
    let builder = builder("id", "secret", BASE).transport(always(answer)).flight_timeout(SECOND);
    let error = token_of(builder).await.unwrap_err();
    (error, pulled.load(Ordering::Relaxed))
}

/// The failure that an answer of this status makes whose body neither goes on nor ends.
async fn silent(status: StatusCode) -> AuthError {
    let answer = move || {
        let mut answer = Response::new(Silent);
        *answer.status_mut() = status;
        answer
    };
    let builder = builder("id", "secret", BASE).transport(always(answer)).flight_timeout(SECOND);
    token_of(builder).await.unwrap_err()
}

#[derive(Clone)]
struct Endless {
    pulled: Arc<AtomicUsize>,
}

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pulled.fetch_add(KIB, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; KIB])))))
    }
}

struct Silent;

impl Body for Silent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
    }
}

/// A transport that cannot connect and does not say so.
#[derive(Clone)]
struct NeverReady;

impl Service<Request<Full<Bytes>>> for NeverReady {
    type Response = Response<EmulatorBody>;
    type Error = Infallible;
    type Future = std::future::Pending<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Pending
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        panic!("a service is not called before it is ready")
    }
}

/// A token endpoint that notes what it was asked and when. It gives a token to everybody, if it is not told to fail.
#[derive(Clone, Default)]
struct Recorder {
    asked: Arc<Mutex<Vec<(Instant, Asked)>>>,
    failures: Arc<AtomicUsize>,
}

#[derive(Clone, Debug, PartialEq)]
struct Asked {
    method: Method,
    uri: Uri,
    headers: Vec<(String, String)>,
    promised: Option<u64>,
    text: String,
}

impl Recorder {
    fn fail_first(&self, attempts: usize) {
        self.failures.store(attempts, Ordering::Relaxed);
    }

    fn service(
        &self,
    ) -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + use<> {
        let recorder = self.clone();
        service_fn(move |request| recorder.clone().answer(request))
    }

    async fn answer(self, request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let promised = body.size_hint().exact();
        let text = String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap();
        let fields = head.headers.iter();
        let headers = fields.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let mut asked = self.asked.lock().unwrap();
        asked.push((Instant::now(), Asked { method: head.method, uri: head.uri, headers, promised, text }));
        let mut answer = Response::new(token_json().into());
        if asked.len() <= self.failures.load(Ordering::Relaxed) {
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
        }
        Ok(answer)
    }

    fn requests(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().map(|(_, asked)| asked.clone()).collect()
    }

    /// When it was asked, counted from the first time.
    fn times(&self) -> Vec<Duration> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(time, _)| *time - asked[0].0).collect()
    }
}
