//! The authorizer: which tokens are rejected, and how.

use std::time::Duration;

use apsis_auth::emulator::{Dialect, Emulator};
use http::{Method, StatusCode};
use serde_json::json;
use tokio::time::advance;

use crate::support::{KEYSPACES, PROFILE, Reply, get, request, send, status_of, token};

const SECTIONS: &str = "/audience/sections";

async fn with_authorization(emulator: &Emulator, values: &[&str]) -> Reply {
    let headers: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
    send(emulator, request(Method::GET, KEYSPACES, &headers, "")).await
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_gets_401_with_the_error_of_rfc_6750() {
    let emulator = Emulator::new();
    let reply = get(&emulator, "dead", KEYSPACES).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    assert_eq!(emulator.counters().api_rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_gets_403_in_the_gateways_dialect() {
    let emulator = Emulator::new();
    emulator.set_dialect(Dialect::Gateway);
    let reply = get(&emulator, "dead", KEYSPACES).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert_eq!(reply.header("x-amzn-errortype"), Some("AccessDeniedException"));
    let message = "User is not authorized to access this resource with an explicit deny";
    assert_eq!(reply.json(), json!({"message": message}));
    assert_eq!(emulator.counters().api_rejected, 1);
}

#[tokio::test(start_paused = true)]
async fn no_token_gets_401_without_an_error_in_both_dialects() {
    let emulator = Emulator::new();
    let reply = with_authorization(&emulator, &[]).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    let challenge = reply.header("www-authenticate").expect("a challenge");
    assert!(challenge.starts_with("Bearer") && !challenge.contains("error"));

    emulator.set_dialect(Dialect::Gateway);
    let reply = with_authorization(&emulator, &[]).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert_eq!(reply.json(), json!({"message": "Unauthorized"}));
    assert_eq!(emulator.counters().api_rejected, 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_one_bearer_token_is_rejected() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    let good = format!("Bearer {token}");
    let basic = format!("Basic {token}");
    for (dialect, status) in [(Dialect::Unauthorized, 401), (Dialect::Gateway, 403)] {
        emulator.set_dialect(dialect);
        for values in
            [&["Bearer"][..], &["Bearer "], &[token.as_str()], &[basic.as_str()], &[good.as_str(), good.as_str()]]
        {
            let reply = with_authorization(&emulator, values).await;
            assert_eq!(reply.status, status, "{dialect:?}");
        }
    }
    let lower = format!("bearer {token}");
    assert_eq!(with_authorization(&emulator, &[&lower]).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_can_be_revoked_by_itself() {
    let emulator = Emulator::new();
    let first = token(&emulator).await;
    let second = token(&emulator).await;
    emulator.revoke_token(&first);
    assert_eq!(status_of(&emulator, &first).await, 401);
    assert_eq!(status_of(&emulator, &second).await, 200);
}

#[tokio::test(start_paused = true)]
async fn revoking_all_tokens_leaves_later_ones_alone() {
    let emulator = Emulator::new();
    let first = token(&emulator).await;
    emulator.revoke_tokens();
    let second = token(&emulator).await;
    assert_eq!(status_of(&emulator, &first).await, 401);
    assert_eq!(status_of(&emulator, &second).await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_account_is_rejected() {
    let emulator = Emulator::new();
    let stranger = token(&Emulator::new()).await;
    assert_eq!(status_of(&emulator, &stranger).await, 401);
}

#[tokio::test(start_paused = true)]
async fn a_cached_allow_outlives_the_token() {
    let emulator = Emulator::new();
    emulator.set_authorizer_cache(Some(Duration::from_secs(300)));
    let token = token(&emulator).await;
    assert_eq!(status_of(&emulator, &token).await, 200);
    emulator.revoke_tokens();
    advance(Duration::from_secs(299)).await;
    assert_eq!(status_of(&emulator, &token).await, 200);
    advance(Duration::from_secs(1)).await;
    assert_eq!(status_of(&emulator, &token).await, 401);
}

#[tokio::test(start_paused = true)]
async fn a_cached_deny_stays_and_is_not_made_longer_by_asking() {
    let emulator = Emulator::new();
    emulator.set_authorizer_cache(Some(Duration::from_secs(300)));
    let token = token(&emulator).await;
    emulator.set_clock_skew(100_000);
    assert_eq!(status_of(&emulator, &token).await, 401);
    emulator.set_clock_skew(0);
    advance(Duration::from_secs(299)).await;
    assert_eq!(status_of(&emulator, &token).await, 401);
    advance(Duration::from_secs(1)).await;
    assert_eq!(status_of(&emulator, &token).await, 200);
}

#[tokio::test(start_paused = true)]
async fn the_cache_goes_by_token_and_can_be_switched_off() {
    let emulator = Emulator::new();
    emulator.set_authorizer_cache(Some(Duration::from_secs(300)));
    let seen = token(&emulator).await;
    let unseen = token(&emulator).await;
    assert_eq!(status_of(&emulator, &seen).await, 200);
    emulator.revoke_tokens();
    assert_eq!(status_of(&emulator, &unseen).await, 401);
    assert_eq!(status_of(&emulator, &seen).await, 200);
    emulator.set_authorizer_cache(None);
    assert_eq!(status_of(&emulator, &seen).await, 401);
    emulator.set_authorizer_cache(Some(Duration::from_secs(300)));
    assert_eq!(status_of(&emulator, &seen).await, 401, "forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_refused_route_denies_every_token_in_the_gateways_words() {
    let emulator = Emulator::new();
    emulator.refuse_route(SECTIONS);
    let token = token(&emulator).await;
    let reply = get(&emulator, &token, SECTIONS).await;
    assert_eq!(reply.status, StatusCode::FORBIDDEN);
    assert_eq!(reply.header("x-amzn-errortype"), Some("AccessDeniedException"));
    let message = "User is not authorized to access this resource with an explicit deny";
    assert_eq!(reply.json()["message"], message);
    assert_eq!(emulator.counters().api_refused, 1);
    assert_eq!(get(&emulator, &token, KEYSPACES).await.status, 200);
    assert_eq!(get(&emulator, "dead", SECTIONS).await.status, 401);

    emulator.allow_route(SECTIONS);
    assert_eq!(get(&emulator, &token, SECTIONS).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_does_not_exist_is_told_before_the_token_is_looked_at() {
    let emulator = Emulator::new();
    let token = token(&emulator).await;
    let empty_key = PROFILE.replace("andy.demo%40apsis.com", "");
    let broken_key = PROFILE.replace("%40", "%zz");
    for path in ["/", "/nowhere", "/audience", &empty_key, &broken_key] {
        for token in [token.as_str(), "dead"] {
            let reply = get(&emulator, token, path).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path}");
            assert_eq!(reply.header("x-amzn-errortype"), Some("MissingAuthenticationTokenException"));
            let message = json!({"message": "Missing Authentication Token"});
            assert_eq!(reply.json(), message);
        }
    }
    assert_eq!(emulator.counters().unknown_routes, 10);
}
