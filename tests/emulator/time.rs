//! Lifetimes, delays and the server's clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use apsis_auth::emulator::Emulator;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;
use tokio::time::{Instant, advance, timeout};

use crate::support::{KEYSPACES, Reply, ask_for_token, get, status_of, token};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(start_paused = true)]
async fn a_token_lives_a_day() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    advance(Duration::from_millis(86_399_999)).await;
    assert_eq!(status_of(&emulator, &token).await, 200);
    advance(Duration::from_millis(1)).await;
    assert_eq!(status_of(&emulator, &token).await, 401);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_is_kept_to_the_millisecond_and_claimed_in_seconds() {
    let emulator = Emulator::new();
    emulator.set_token_lifetime(Duration::from_millis(1_500));
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(reply.json()["expires_in"], 1);
    let claims = claims(&reply);
    assert_eq!(seconds(&claims, "exp") - seconds(&claims, "iat"), 1);
    advance(Duration::from_millis(1_499)).await;
    assert_eq!(status_of(&emulator, &reply.access_token()).await, 200);
    advance(Duration::from_millis(1)).await;
    assert_eq!(status_of(&emulator, &reply.access_token()).await, 401);
}

#[tokio::test(start_paused = true)]
async fn absurd_lifetimes_do_no_harm() {
    let emulator = Emulator::new();
    emulator.set_token_lifetime(Duration::ZERO);
    let stillborn = token(&emulator).await;
    assert_eq!(status_of(&emulator, &stillborn).await, 401);
    emulator.set_token_lifetime(Duration::MAX);
    let eternal = token(&emulator).await;
    advance(DAY * 1_000).await;
    assert_eq!(status_of(&emulator, &eternal).await, 200);
}

#[tokio::test(start_paused = true)]
async fn every_answer_has_the_servers_date() {
    let emulator = Emulator::new();
    let before = date(&get(&emulator, "dead", KEYSPACES).await);
    let local = SystemTime::now().duration_since(UNIX_EPOCH);
    let local = local.expect("a clock after 1970").as_secs();
    assert!(local.abs_diff(before) <= 10, "the wall clock at creation");
    advance(DAY).await;
    assert_eq!(date(&get(&emulator, "dead", KEYSPACES).await), before + 86_400);
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(date(&reply), before + 86_400);
    assert_eq!(seconds(&claims(&reply), "iat"), before + 86_400);
}

#[tokio::test(start_paused = true)]
async fn a_skewed_clock_moves_date_claims_and_expiry() {
    let emulator = Emulator::new();
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    let (here, token) = (date(&reply), reply.access_token());

    emulator.set_clock_skew(-3_600);
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(date(&reply), here - 3_600);
    assert_eq!(seconds(&claims(&reply), "iat"), here - 3_600);
    assert_eq!(seconds(&claims(&reply), "exp"), here - 3_600 + 86_400);

    emulator.set_clock_skew(86_400);
    assert_eq!(status_of(&emulator, &token).await, 401);
    emulator.set_clock_skew(86_399);
    assert_eq!(status_of(&emulator, &token).await, 200);
}

#[tokio::test(start_paused = true)]
async fn the_clock_stops_at_either_end() {
    let emulator = Emulator::new();
    for (skew, expected) in [(i64::MIN, "Thu, 01 Jan 1970 00:00:00 GMT"), (i64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT")] {
        emulator.set_clock_skew(skew);
        let reply = ask_for_token(&emulator, &emulator.api_key()).await;
        assert_eq!(reply.header("date"), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn each_delay_holds_for_its_own_requests() {
    let emulator = Emulator::new();
    emulator.set_token_delay(Duration::from_secs(3));
    let start = Instant::now();
    let token = token(&emulator).await;
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    status_of(&emulator, &token).await;
    assert_eq!(start.elapsed(), Duration::from_secs(3));

    emulator.set_api_delay(Duration::from_secs(2));
    status_of(&emulator, &token).await;
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_during_the_delay_has_counted() {
    let emulator = Emulator::new();
    emulator.set_token_limit(1);
    emulator.set_token_delay(Duration::from_secs(3));
    let key = emulator.api_key();
    let answer = ask_for_token(&emulator, &key);
    assert!(timeout(Duration::from_secs(1), answer).await.is_err());
    let reply = ask_for_token(&emulator, &emulator.api_key()).await;
    assert_eq!(reply.status, 429);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_what_was_decided_on_arrival_with_the_date_of_its_leaving() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    emulator.set_api_delay(Duration::from_secs(10));
    let arrived = date(&ask_for_token(&emulator, &emulator.api_key()).await);
    let answer = get(&emulator, &token, KEYSPACES);
    let revoke = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        emulator.revoke_tokens();
    };
    let (reply, ()) = tokio::join!(answer, revoke);
    assert_eq!(reply.status, 200);
    assert_eq!(date(&reply), arrived + 10);
    assert_eq!(status_of(&emulator, &token).await, 401);
}

#[test]
fn an_emulator_is_made_and_turned_without_a_runtime() {
    let emulator = Emulator::default();
    emulator.set_clock_skew(1);
    emulator.revoke_tokens();
    assert_eq!(emulator.counters().token_requests, 0);
}

fn date(reply: &Reply) -> u64 {
    let date = reply.header("date").expect("a date");
    let date = httpdate::parse_http_date(date).expect("an HTTP date");
    let date = date.duration_since(UNIX_EPOCH);
    date.expect("a date after 1970").as_secs()
}

fn claims(reply: &Reply) -> Value {
    let token = reply.access_token();
    let claims = token.split('.').nth(1).expect("a JWT");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).expect("Base64");
    serde_json::from_slice(&claims).expect("claims")
}

fn seconds(claims: &Value, name: &str) -> u64 {
    claims[name].as_u64().expect("a whole number of seconds")
}
