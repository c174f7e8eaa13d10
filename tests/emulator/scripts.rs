//! Scripted answers.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::emulator::{Answer, Emulator, EmulatorError};
use bytes::Bytes;
use http::{
    Method, Request, StatusCode,
    header::{DATE, RETRY_AFTER},
};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout};
use tower::ServiceExt;

use crate::support::{
    KEYSPACES, PROFILE, ask_for_token, credentials, get, request, status_of, token, token_request, try_send,
};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn scripted_answers_come_in_order_and_then_the_usual_ones() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::status(StatusCode::BAD_GATEWAY)]);
    emulator.script_token_answers([Answer::too_many_requests(), Answer::html()]);
    for status in [502, 429, 200] {
        let reply = ask_for_token(&emulator, &emulator.api_key()).await;
        assert_eq!(reply.status, status);
    }
    token(&emulator).await;
    let counters = emulator.counters();
    assert_eq!(counters.scripted, 3);
    assert_eq!(counters.token_requests, 4);
    assert_eq!(counters.tokens_issued, 1);
    assert_eq!(counters.token_limited, 0);
}

#[tokio::test(start_paused = true)]
async fn the_two_scripts_are_apart() {
    let emulator = Emulator::new();
    emulator.script_api_answers([Answer::status(StatusCode::IM_A_TEAPOT)]);
    let token = token(&emulator).await;
    assert_eq!(status_of(&emulator, &token).await, 418);
    assert_eq!(status_of(&emulator, &token).await, 200);
    assert_eq!(emulator.counters().api_requests, 2);
    assert_eq!(emulator.counters().api_accepted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_scripted_answer_leaves_the_limits_alone_and_a_genuine_one_does_not() {
    let emulator = Emulator::new();
    emulator.set_token_limit(1);
    emulator.script_token_answers([Answer::html(), Answer::genuine(), Answer::genuine()]);
    for status in [200, 200, 429] {
        let reply = ask_for_token(&emulator, &emulator.api_key()).await;
        assert_eq!(reply.status, status);
    }
    assert_eq!(emulator.counters().scripted, 1);
    assert_eq!(emulator.counters().tokens_issued, 1);
}

#[tokio::test(start_paused = true)]
async fn a_genuine_answer_can_be_late_and_dressed_up() {
    let emulator = Emulator::new();
    let late =
        Answer::genuine().delay(Duration::from_secs(5)).header("x-cache", "miss").header("cache-control", "private");
    emulator.script_token_answers([late]);
    let start = Instant::now();
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(reply.header("x-cache"), Some("miss"));
    assert_eq!(reply.header("cache-control"), Some("private"));
    assert_eq!(status_of(&emulator, &reply.access_token()).await, 200);
}

#[tokio::test(start_paused = true)]
async fn headers_and_body_are_as_scripted() {
    let emulator = Emulator::new();
    let answer = Answer::too_many_requests()
        .header(RETRY_AFTER, 7)
        .header("Retry-After", "garbage")
        .header(DATE, "Thu, 01 Jan 1970 00:00:00 GMT")
        .body("slow down");
    emulator.script_token_answers([answer]);
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    let values: Vec<_> = reply.headers.get_all(RETRY_AFTER).iter().collect();
    assert_eq!(values, ["7", "garbage"]);
    assert_eq!(reply.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    assert_eq!(reply.body, "slow down");
}

#[tokio::test(start_paused = true)]
async fn a_scripted_token_is_any_string_and_rejected_by_the_api() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::token("not a JWT")]);
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(reply.access_token(), "not a JWT");
    assert_eq!(reply.json()["expires_in"], 86_400);
    assert_eq!(status_of(&emulator, "not a JWT").await, 401);
}

#[tokio::test(start_paused = true)]
async fn html_is_an_html_page_with_200() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::html()]);
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("content-type"), Some("text/html"));
    assert!(reply.body.starts_with(b"<!DOCTYPE html>"));
}

#[tokio::test(start_paused = true)]
async fn a_truncated_answer_ends_in_an_error_after_its_first_bytes() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::truncated()]);
    let request = token_request(&credentials(&emulator.api_key()));
    let answer = emulator.clone().oneshot(request).await.expect("a head");
    assert_eq!(answer.status(), StatusCode::OK);
    let mut body = answer.into_body();
    let first = body.frame().await.expect("a frame").expect("no error yet");
    assert!(first.into_data().expect("data").starts_with(b"{"));
    let end = body.frame().await.expect("a frame");
    assert!(matches!(end, Err(EmulatorError::Truncated)));
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_drip_is_a_byte_per_interval_without_end() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::drip(Duration::from_secs(1))]);
    let request = token_request(&credentials(&emulator.api_key()));
    let start = Instant::now();
    let answer = emulator.clone().oneshot(request).await.expect("a head");
    assert_eq!(start.elapsed(), Duration::ZERO);
    let mut body = answer.into_body();
    for second in 1..=100 {
        let frame = body.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data").len(), 1);
        assert_eq!(start.elapsed(), Duration::from_secs(second));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hang_never_answers() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::hang()]);
    let key = emulator.api_key();
    let answer = ask_for_token(&emulator, &key);
    assert!(timeout(HOUR, answer).await.is_err());
    assert_eq!(emulator.counters().token_requests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hang_in_the_body_answers_a_head_and_nothing_else() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::hang_in_body()]);
    let request = token_request(&credentials(&emulator.api_key()));
    let answer = emulator.clone().oneshot(request).await.expect("a head");
    assert_eq!(answer.status(), StatusCode::OK);
    let mut body = answer.into_body();
    assert!(!body.is_end_stream());
    assert!(timeout(HOUR, body.frame()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_is_an_error_after_the_delay() {
    let emulator = Emulator::new();
    emulator.script_api_answers([Answer::close().delay(HOUR)]);
    let start = Instant::now();
    let answer = try_send(&emulator, request(Method::GET, KEYSPACES, &[], "")).await;
    assert!(matches!(answer, Err(EmulatorError::Closed)));
    assert_eq!(start.elapsed(), HOUR);
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_does_not_wait_for_the_requests_body() {
    let emulator = Emulator::new();
    let unauthorized = || Answer::status(StatusCode::UNAUTHORIZED);
    emulator.script_api_answers([unauthorized().early(), unauthorized()]);
    let answer = timeout(HOUR, emulator.clone().oneshot(with_body(Broken::Silent))).await;
    let answer = answer.expect("no waiting").expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let answer = emulator.clone().oneshot(with_body(Broken::Silent));
    assert!(timeout(HOUR, answer).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_genuine_answer_is_never_early() {
    let emulator = Emulator::new();
    emulator.script_token_answers([Answer::genuine().early()]);
    token(&emulator).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_fails_is_an_error() {
    let emulator = Emulator::new();
    let answer = emulator.clone().oneshot(with_body(Broken::Failing)).await;
    assert!(matches!(answer, Err(EmulatorError::RequestBody(_))));
}

#[tokio::test(start_paused = true)]
async fn debug_of_an_answer_shows_no_token() {
    let answer = Answer::token("canary").body("canary").header("x", "canary");
    assert!(!format!("{answer:?}").contains("canary"));
    let emulator = Emulator::new();
    emulator.script_api_answers([Answer::status(StatusCode::OK).body("canary")]);
    let reply = get(&emulator, "dead", KEYSPACES).await;
    assert_eq!(reply.body, "canary");
    assert!(!format!("{emulator:?}").contains("canary"));
}

/// A request body that never goes on, or that fails.
enum Broken {
    Silent,
    Failing,
}

impl Body for Broken {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match *self {
            Self::Silent => Poll::Pending,
            Self::Failing => Poll::Ready(Some(Err(io::Error::other("gone")))),
        }
    }
}

fn with_body(body: Broken) -> Request<Broken> {
    Request::post(PROFILE).body(body).expect("a valid request")
}
