//! The gateway's own state: health, readiness, and its end.

use std::time::Duration;

use apsis_auth::emulator::{Answer, Emulator};
use http::StatusCode;
use tokio::{net::TcpStream, runtime::Handle};

use super::support::{Gateway, MOMENT, NO_CONTENT, accept, answering, auth, limited, listen, settings, until};
use crate::{Settings, health::Health};

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn it_is_healthy_without_a_token() {
    limited(async {
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        let answer = gateway.ask("GET /healthz").await;
        assert_eq!((answer.status(), &*answer.body), (200, "ok\n"));
    })
    .await;
}

#[tokio::test]
async fn it_becomes_ready_by_being_asked_whether_it_is() {
    limited(async {
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        let answer = gateway.ask("GET /readyz").await;
        assert_eq!((answer.status(), answer.head.field("content-type")), (503, "application/json"));
        let json = answer.json();
        assert!(json["token"].is_null() && json["ready"] == false && json["attempts_left"] == 4, "{json}");

        until(async || gateway.ask("GET /readyz").await.status() == 200).await;
        let json = gateway.ask("GET /readyz").await.json();
        assert!(json["ready"] == true && json["token"]["usable"] == true && json["token"]["generation"] == 1, "{json}");
    })
    .await;
}

#[tokio::test]
async fn it_is_not_ready_with_a_token_that_has_expired() {
    limited(async {
        let apsis = Emulator::new();
        apsis.set_token_lifetime(Duration::from_secs(1));
        let base = "http://127.0.0.1:9";
        let gateway = Gateway::with_auth(base, auth(&apsis, base)).await;
        gateway.token.get().await.unwrap();
        apsis.script_token_answers([Answer::hang()]);
        until(async || {
            let answer = gateway.ask("GET /readyz").await;
            answer.status() == 503 && answer.json()["token"]["usable"] == false
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn it_says_why_it_is_not_ready_and_does_not_ask_again_before_the_time() {
    limited(async {
        let apsis = Emulator::new();
        apsis.script_token_answers([Answer::status(StatusCode::FORBIDDEN)]);
        let base = "http://127.0.0.1:9";
        let gateway = Gateway::with_auth(base, auth(&apsis, base)).await;
        gateway.token.get().await.unwrap_err();
        for _ in 0..10 {
            let answer = gateway.ask("GET /readyz").await;
            assert_eq!(answer.status(), 503);
            assert!(answer.json()["grounded"]["because"].as_str().unwrap().contains("403"));
        }
        assert_eq!(apsis.counters().token_requests, 1);
    })
    .await;
}

#[tokio::test]
async fn however_often_it_is_asked_one_task_at_a_time_waits_for_a_token() {
    limited(async {
        let apsis = Emulator::new();
        apsis.script_token_answers([Answer::hang()]);
        let health = Health::new(auth(&apsis, "http://127.0.0.1:9").max_wait(MOMENT).build().unwrap().handle());
        let tasks = || Handle::current().metrics().num_alive_tasks();
        health.warm_up();
        let one = tasks();
        for _ in 0..10 {
            health.clone().warm_up();
        }
        assert_eq!(tasks(), one);

        // When it has given up, the next one may wait.
        until(async || {
            let before = tasks();
            health.warm_up();
            tasks() > before
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn its_state_is_not_for_web_pages() {
    limited(async {
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        for path in ["/healthz", "/readyz"] {
            gateway.ask(&format!("GET {path}\r\norigin: null")).await.problem(403, "http_request_denied");
            let rebound = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
            gateway.hears(&rebound).await.answer().await.problem(421, "http_request_denied");
        }
    })
    .await;
}

#[tokio::test]
async fn a_probe_by_whatever_host_hears_how_a_gateway_is_that_others_reach() {
    limited(async {
        let mut settings = settings();
        settings.listen.set_ip([0, 0, 0, 0].into());
        let gateway = Gateway::with_settings("http://127.0.0.1:9", settings).await;
        let probe = "GET /healthz HTTP/1.1\r\nhost: 10.1.2.3:8080\r\nconnection: close\r\n\r\n";
        assert_eq!(gateway.hears(probe).await.answer().await.status(), 200);
    })
    .await;
}

#[tokio::test]
async fn while_it_drains_it_is_not_ready_and_forwards() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::with_settings(&base, Settings { drain: LONG, ..settings() }).await;
        let _heads = answering(listener, NO_CONTENT);
        gateway.token.get().await.unwrap();
        assert_eq!(gateway.ask("GET /readyz").await.status(), 200);

        gateway.end.notify_one();
        until(async || gateway.ask("GET /readyz").await.status() == 503).await;
        let json = gateway.ask("GET /readyz").await.json();
        assert!(json["stopping"] == true && json["ready"] == false && json["token"]["usable"] == true, "{json}");
        assert_eq!(gateway.ask("GET /healthz").await.status(), 200);
        assert_eq!(gateway.ask("GET /apsis/x").await.status(), 204);
    })
    .await;
}

#[tokio::test]
async fn at_its_end_a_request_under_way_ends_well_and_no_connection_is_accepted() {
    limited(async {
        let (listener, base) = listen().await;
        let mut gateway = Gateway::with_settings(&base, Settings { grace: LONG, ..settings() }).await;
        let mut idle = gateway.hears("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        idle.head().await;
        idle.hear("ok\n").await;
        let mut caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut api = accept(&listener).await;
        api.head().await;

        gateway.end.notify_one();
        until(async || TcpStream::connect(gateway.addr).await.is_err()).await;
        assert_eq!(idle.rest().await, "");
        assert!(!gateway.served.is_finished());

        api.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        assert_eq!(caller.head().await.status(), 200);
        caller.hear("5\r\nfirst\r\n").await;
        api.say("0\r\n\r\n").await;
        assert_eq!(caller.rest().await, "0\r\n\r\n");
        (&mut gateway.served).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn at_its_end_a_request_that_does_not_end_is_cut_off() {
    limited(async {
        let (listener, base) = listen().await;
        let mut gateway = Gateway::with_settings(&base, Settings { grace: MOMENT, ..settings() }).await;
        let _caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let _api = accept(&listener).await;
        gateway.end.notify_one();
        (&mut gateway.served).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_second_signal_cuts_off_what_is_under_way() {
    limited(async {
        let (listener, base) = listen().await;
        let mut gateway = Gateway::with_settings(&base, Settings { grace: LONG, ..settings() }).await;
        let _caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let _api = accept(&listener).await;
        gateway.end.notify_one();
        until(async || TcpStream::connect(gateway.addr).await.is_err()).await;
        assert!(!gateway.served.is_finished());
        gateway.end.notify_one();
        (&mut gateway.served).await.unwrap();
    })
    .await;
}
