//! Limits per account: token requests, API requests, sizes.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::emulator::Emulator;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::{Body, Frame};
use tokio::time::advance;
use tower::ServiceExt;

use crate::support::{
    KEYSPACE, KEYSPACES, PROFILE, ask_for_token, call, credentials, get, request, send, status_of, token, token_request,
};

async fn token_status(emulator: &Emulator) -> u16 {
    let reply = ask_for_token(emulator, &emulator.api_key()).await;
    reply.status.as_u16()
}

#[tokio::test(start_paused = true)]
async fn the_eleventh_token_request_within_a_minute_is_refused() {
    let emulator = Emulator::new();
    for _ in 0..10 {
        assert_eq!(token_status(&emulator).await, 200);
    }
    let refused = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(emulator.counters().token_limited, 1);
    assert_eq!(emulator.counters().tokens_issued, 10);
}

#[tokio::test(start_paused = true)]
async fn all_keys_of_the_account_share_the_token_limit() {
    let emulator = Emulator::new();
    emulator.set_token_limit(1);
    assert_eq!(token_status(&emulator).await, 200);
    let other = ask_for_token(&emulator, &emulator.add_api_key()).await;
    assert_eq!(other.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn the_window_slides() {
    let emulator = Emulator::new();
    emulator.set_token_limit(2);
    emulator.set_refusals_count(false);
    assert_eq!(token_status(&emulator).await, 200);
    advance(Duration::from_secs(30)).await;
    assert_eq!(token_status(&emulator).await, 200);
    advance(Duration::from_millis(29_999)).await;
    assert_eq!(token_status(&emulator).await, 429);
    advance(Duration::from_millis(1)).await;
    assert_eq!(token_status(&emulator).await, 200, "the first is a minute old");
    assert_eq!(token_status(&emulator).await, 429, "the second is not");
}

#[tokio::test(start_paused = true)]
async fn refusals_count_unless_told_otherwise() {
    for (refusals_count, after_a_minute) in [(true, 429), (false, 200)] {
        let emulator = Emulator::new();
        emulator.set_token_limit(1);
        emulator.set_refusals_count(refusals_count);
        assert_eq!(token_status(&emulator).await, 200);
        advance(Duration::from_secs(59)).await;
        assert_eq!(token_status(&emulator).await, 429);
        advance(Duration::from_secs(1)).await;
        assert_eq!(token_status(&emulator).await, after_a_minute);
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_credentials_count_like_refusals_and_are_found_out_after_the_limit() {
    for (refusals_count, second) in [(true, 429), (false, 401)] {
        let emulator = Emulator::new();
        emulator.set_token_limit(1);
        emulator.set_refusals_count(refusals_count);
        let mut body = credentials(&emulator.api_key());
        body["client_secret"] = "wrong".into();
        assert_eq!(send(&emulator, token_request(&body)).await.status, 401);
        assert_eq!(send(&emulator, token_request(&body)).await.status, second);
    }
}

#[tokio::test(start_paused = true)]
async fn the_api_takes_a_hundred_requests_a_second() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    for _ in 0..100 {
        assert_eq!(status_of(&emulator, &token).await, 200);
    }
    assert_eq!(status_of(&emulator, &token).await, 429);
    assert_eq!(emulator.counters().api_limited, 1);
    advance(Duration::from_secs(1)).await;
    assert_eq!(status_of(&emulator, &token).await, 200);
}

#[tokio::test(start_paused = true)]
async fn the_api_limit_can_be_set_and_counts_no_dead_token() {
    let emulator = Emulator::new();
    emulator.set_api_limit(1);
    let token = token(&emulator).await;
    for _ in 0..3 {
        assert_eq!(status_of(&emulator, "dead").await, 401);
    }
    assert_eq!(status_of(&emulator, &token).await, 200);
    assert_eq!(status_of(&emulator, &token).await, 429);
}

#[tokio::test(start_paused = true)]
async fn a_body_over_a_hundred_kilobytes_is_too_large() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    let body = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8));
    let post = async |body: &str| {
        let json = "application/json";
        call(&emulator, &token, Method::POST, PROFILE, json, body).await
    };
    assert_eq!(post(&body(100_000)).await.status, StatusCode::CREATED);
    let profile = emulator.profile(KEYSPACE, "andy.demo@apsis.com");
    let attributes = profile.expect("the profile").attributes;
    assert_eq!(attributes["a"].as_str().map(str::len), Some(99_992));

    let large = post(&body(100_001)).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(emulator.counters().api_too_large, 1);

    let large = request(Method::POST, "/oauth/token", &[], body(100_001));
    let large = send(&emulator, large).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_read_to_its_end_and_an_endless_one_is_not() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    for (length, read) in [(500_000, 500_000), (usize::MAX, 1_050_000)] {
        let chunks = Chunks::new(length);
        let left = Arc::clone(&chunks.left);
        let request = Request::post(PROFILE)
            .header("authorization", format!("Bearer {token}"))
            .body(chunks)
            .expect("a valid request");
        let answer = emulator.clone().oneshot(request).await;
        let status = answer.expect("an answer").status();
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(length - left.load(Ordering::Relaxed), read);
    }
}

#[tokio::test(start_paused = true)]
async fn counters_tell_outcomes_apart() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    get(&emulator, &token, KEYSPACES).await;
    get(&emulator, "dead", KEYSPACES).await;
    get(&emulator, &token, "/nowhere").await;
    get(&emulator, &token, PROFILE).await;
    let counters = emulator.counters();
    assert_eq!(counters.token_requests, 1);
    assert_eq!(counters.api_requests, 4);
    assert_eq!(counters.api_accepted, 1);
    assert_eq!(counters.api_rejected, 1);
    assert_eq!(counters.unknown_routes, 1);
    assert_eq!(counters.api_problems, 1);
    assert_eq!(counters.scripted, 0);
}

/// A body in chunks of 50 kB that tells how much of it is left.
struct Chunks {
    left: Arc<AtomicUsize>,
}

impl Chunks {
    fn new(length: usize) -> Self {
        Self { left: Arc::new(AtomicUsize::new(length)) }
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const CHUNK: &[u8] = &[b' '; 50_000];
        let left = self.left.load(Ordering::Relaxed);
        let chunk = &CHUNK[..left.min(CHUNK.len())];
        self.left.store(left - chunk.len(), Ordering::Relaxed);
        let frame = Frame::data(Bytes::from_static(chunk));
        Poll::Ready((left > 0).then_some(Ok(frame)))
    }
}
