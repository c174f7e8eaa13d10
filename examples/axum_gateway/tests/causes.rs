//! The table of errors: each row with its cause.

use std::time::Duration;

use apsis_auth::{
    AuthError,
    emulator::{Answer, Emulator},
};
use axum::{body::Body, response::IntoResponse};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{BoxError, service_fn};

use super::support::{Gateway, MOMENT, NO_CONTENT, accept, answering, auth, limited, listen, settings};
use crate::{Settings, errors::Refusal};

/// The API is not even asked, so there is none.
const NOWHERE: &str = "http://127.0.0.1:9";

#[tokio::test]
async fn refused_credentials_are_a_bad_gateway_and_no_fault_of_the_callers() {
    limited(async {
        let apsis = Emulator::new();
        apsis.delete_api_key(apsis.api_key().client_id());
        let gateway = Gateway::with_auth(NOWHERE, auth(&apsis, NOWHERE)).await;
        let answer = gateway.ask("GET /apsis/x").await;
        let detail = answer.problem(502, "proxy_configuration_error");
        assert!(detail.contains("401") && detail.contains("check the client ID and secret"), "{detail}");
        assert_eq!(answer.retry_after(), None);
    })
    .await;
}

#[tokio::test]
async fn a_limit_on_tokens_says_when_to_come_back() {
    limited(async {
        let apsis = Emulator::new();
        apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "120")]);
        let gateway = Gateway::with_auth(NOWHERE, auth(&apsis, NOWHERE)).await;
        let answer = gateway.ask("GET /apsis/x").await;
        answer.problem(503, "destination_unavailable");
        // What it was told, and up to a tenth.
        let seconds = answer.retry_after().unwrap();
        assert!((119..=132).contains(&seconds), "{seconds}");
    })
    .await;
}

#[tokio::test]
async fn an_outage_of_the_token_endpoint_says_when_to_come_back() {
    limited(async {
        let down = service_fn(async |_: Request<Full<Bytes>>| Err::<Response<String>, _>(BoxError::from("down")));
        let auth = auth(&Emulator::new(), NOWHERE).transport(down).flight_timeout(MOMENT).max_wait(MOMENT);
        let gateway = Gateway::with_auth(NOWHERE, auth).await;
        let answer = gateway.ask("GET /apsis/x").await;
        let detail = answer.problem(503, "destination_unavailable");
        assert!(detail.contains("no token could be had") && !detail.contains("down"), "{detail}");
        assert_eq!(answer.retry_after(), Some(5));
    })
    .await;
}

#[tokio::test]
async fn a_token_that_does_not_come_in_time_is_a_timeout() {
    limited(async {
        let apsis = Emulator::new();
        apsis.script_token_answers([Answer::hang()]);
        let gateway = Gateway::with_auth(NOWHERE, auth(&apsis, NOWHERE).max_wait(MOMENT)).await;
        let detail = gateway.ask("GET /apsis/x").await.problem(504, "http_response_timeout");
        assert!(detail.contains("for a token"), "{detail}");
    })
    .await;
}

#[tokio::test]
async fn a_token_request_that_was_interrupted_is_worth_another_try() {
    limited(async {
        let panics = service_fn(async |_: Request<Full<Bytes>>| -> Result<Response<String>, BoxError> {
            panic!("this test's transport panics")
        });
        let gateway = Gateway::with_auth(NOWHERE, auth(&Emulator::new(), NOWHERE).transport(panics)).await;
        gateway.ask("GET /apsis/x").await.problem(503, "proxy_internal_error");
    })
    .await;
}

#[tokio::test]
async fn the_layers_errors_without_a_cause_over_sockets_have_a_status_too() {
    for (error, status) in [
        (AuthError::SameToken, StatusCode::SERVICE_UNAVAILABLE),
        (AuthError::NoRuntime, StatusCode::SERVICE_UNAVAILABLE),
        // hyper takes fewer fields than these.
        (AuthError::TooManyHeaders, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
    ] {
        let response: Response<Body> = Refusal::Failed(error.into()).into_response();
        assert_eq!(response.status(), status);
    }
}

#[tokio::test]
async fn an_api_that_cannot_be_reached_is_a_bad_gateway() {
    limited(async {
        // A port that was free a moment ago.
        let (listener, base) = listen().await;
        drop(listener);
        let gateway = Gateway::to(&base).await;
        gateway.ask("GET /apsis/x").await.problem(502, "destination_unavailable");
    })
    .await;
}

#[tokio::test]
async fn an_api_that_does_not_speak_tls_is_a_bad_gateway() {
    limited(async {
        let (listener, base) = listen().await;
        let base = base.replace("http:", "https:");
        let gateway = Gateway::to(&base).await;
        let _caller = tokio::spawn(async move {
            accept(&listener).await.say("HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        gateway.ask("GET /apsis/x").await.problem(502, "destination_unavailable");
    })
    .await;
}

#[tokio::test]
async fn an_api_that_hangs_up_is_a_bad_gateway() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let _heads = answering(listener, "");
        gateway.ask("GET /apsis/x").await.problem(502, "connection_terminated");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_a_bad_gateway() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let _heads = answering(listener, "220 mail.example ESMTP\r\n\r\n");
        gateway.ask("GET /apsis/x").await.problem(502, "http_protocol_error");
    })
    .await;
}

#[tokio::test]
async fn an_api_that_does_not_answer_is_a_timeout() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::with_settings(&base, Settings { timeout: MOMENT, ..settings() }).await;
        let asked = gateway.ask("GET /apsis/x");
        let (answer, _held) = tokio::join!(asked, accept(&listener));
        assert!(answer.problem(504, "http_response_timeout").contains("in time"));
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_the_callers_fault() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let caller = gateway
            .hears("POST /apsis/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n")
            .await;
        let (answer, _api) = tokio::join!(caller.answer(), accept(&listener));
        answer.problem(400, "http_request_error");
    })
    .await;
}

#[tokio::test]
async fn a_request_too_many_is_told_to_come_back_until_an_answer_has_ended() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::with_settings(&base, Settings { max_requests: 1, ..settings() }).await;
        let mut first = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut api = accept(&listener).await;
        api.head().await;
        api.say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none").await;
        first.head().await;
        first.hear("one").await;

        let answer = gateway.ask("GET /apsis/x").await;
        answer.problem(503, "connection_limit_reached");
        assert_eq!(answer.retry_after(), Some(1));
        // Nobody has to wait to hear how it is.
        assert_eq!(gateway.ask("GET /healthz").await.status(), 200);

        api.say("two").await;
        first.hear("two").await;
        drop(api);
        let _heads = answering(listener, NO_CONTENT);
        super::support::until(async || gateway.ask("GET /apsis/x").await.status() == 204).await;
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_goes_away_gives_its_slot_back() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::with_settings(&base, Settings { max_requests: 1, ..settings() }).await;
        let first = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut api = accept(&listener).await;
        api.head().await;
        assert_eq!(gateway.ask("GET /apsis/x").await.status(), 503);
        drop(first);
        let _heads = answering(listener, NO_CONTENT);
        super::support::until(async || gateway.ask("GET /apsis/x").await.status() == 204).await;
    })
    .await;
}

#[test]
fn a_wait_is_told_in_whole_seconds_rounded_up() {
    for (milliseconds, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_999, 60)] {
        assert_eq!(crate::errors::whole_seconds(Duration::from_millis(milliseconds)), seconds);
    }
}
