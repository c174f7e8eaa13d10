//! Bodies: they stream, both ways, with what is said before and after them.

use apsis_auth::emulator::{Answer, Emulator};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    join,
};

use super::support::{Gateway, MOMENT, NO_CONTENT, accept, answering, auth, limited, listen, settings, until};

/// More than all the buffers on the way.
const LARGE: usize = 4 * 1024 * 1024;

#[tokio::test]
async fn a_body_goes_through_while_it_is_still_being_sent() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let length = 2 * LARGE;
        let head = format!("POST /apsis/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        let mut caller = gateway.hears(&head).await;
        let mut api = accept(&listener).await;
        assert_eq!(api.head().await.field("content-length"), length.to_string());
        for _ in 0..2 {
            let (half, mut received) = (vec![b'x'; LARGE], vec![0; LARGE]);
            let (sent, arrived) = join!(caller.0.write_all(&half), api.0.read_exact(&mut received));
            sent.and(arrived.map(drop)).unwrap();
            assert!(received == half);
        }
        api.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(caller.head().await.status(), 204);
    })
    .await;
}

#[tokio::test]
async fn a_body_in_a_transfer_coding_that_is_not_undone_is_refused() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        let chunks = "\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        for codings in ["gzip, chunked", "gzip\r\ntransfer-encoding: chunked", "chunked, chunked"] {
            let head = "POST /apsis/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding:";
            let answer = gateway.hears(&format!("{head} {codings}{chunks}")).await.answer().await;
            assert!(answer.problem(501, "http_request_error").contains("chunked"), "{codings}");
        }
        assert!(heads.try_recv().is_err());

        for codings in ["chunked", "Chunked", ", chunked"] {
            let head = "POST /apsis/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding:";
            let caller = gateway.hears(&format!("{head} {codings}{chunks}")).await;
            assert_eq!(caller.answer().await.status(), 204, "{codings}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_arrives_while_it_is_still_being_made() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut api = accept(&listener).await;
        api.head().await;
        api.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        assert_eq!(caller.head().await.field("transfer-encoding"), "chunked");
        for chunk in ["5\r\nfirst\r\n", "6\r\nsecond\r\n", "0\r\n\r\n"] {
            api.say(chunk).await;
            caller.hear(chunk).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_large_answer_goes_through() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut api = accept(&listener).await;
        api.head().await;
        api.say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n")).await;
        assert_eq!(caller.head().await.field("content-length"), LARGE.to_string());
        let (body, mut received) = (vec![b'x'; LARGE], vec![0; LARGE]);
        let (sent, arrived) = join!(api.0.write_all(&body), caller.0.read_exact(&mut received));
        sent.and(arrived.map(drop)).unwrap();
        assert!(received == body);
    })
    .await;
}

#[tokio::test]
async fn trailers_go_through_both_ways() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut caller = gateway
            .hears(
                "POST /apsis/x HTTP/1.1\r\nhost: localhost\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
                 transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n",
            )
            .await;
        let mut api = accept(&listener).await;
        let head = api.head().await;
        assert_eq!((head.field("te"), head.field("trailer")), ("trailers", "x-sum"));
        api.hear("4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n").await;

        let body = "6\r\nanswer\r\n0\r\nx-sum: 2\r\n\r\n";
        api.say("HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n").await;
        api.say(body).await;
        assert_eq!(caller.head().await.field("trailer"), "x-sum");
        caller.hear(body).await;
    })
    .await;
}

#[tokio::test]
async fn a_request_without_a_body_has_none_at_the_api() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
            let head = format!("{method} /apsis/x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            let _caller = gateway.hears(&head).await;
            let head = accept(&listener).await.head().await;
            assert_eq!(head.all("transfer-encoding"), [""; 0], "{method}");
            assert!(head.all("content-length").iter().all(|length| *length == "0"), "{method}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_get_may_have_a_body() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        for (framing, body) in [("content-length: 4", "body"), ("transfer-encoding: chunked", "4\r\nbody\r\n0\r\n\r\n")]
        {
            let head = format!("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n{framing}\r\n\r\n{body}");
            let _caller = gateway.hears(&head).await;
            let mut api = accept(&listener).await;
            api.head().await;
            api.hear(body).await;
        }
    })
    .await;
}

#[tokio::test]
async fn answers_without_a_body_say_of_its_length_what_the_api_said() {
    let cases = [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n", vec!["1234"]),
        ("HEAD", "HTTP/1.1 200 OK\r\n", vec![]),
        ("HEAD", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n", vec![]),
        ("HEAD", "HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n", vec!["7"]),
        ("GET", "HTTP/1.1 204 No Content\r\n", vec![]),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: x\r\n", vec![]),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 1234\r\n", vec!["1234"]),
        ("POST", "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n", vec!["0"]),
    ];
    for (method, answer, expected) in cases {
        limited(async {
            let (listener, base) = listen().await;
            let gateway = Gateway::to(&base).await;
            let request = format!("{method} /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n");
            let mut caller = gateway.hears(&request).await;
            let mut api = accept(&listener).await;
            api.head().await;
            api.say(&format!("{answer}\r\n")).await;
            let head = caller.head().await;
            assert_eq!(head.all("content-length"), expected, "{method} {answer}");
            // The connection is where it should be: at the next answer.
            caller.say("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
            assert_eq!(caller.head().await.line(), "HTTP/1.1 200 OK", "{method} {answer}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_caller_that_waits_for_a_100_gets_it_when_the_api_is_connected() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut caller = gateway
            .hears("POST /apsis/x HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
            .await;
        let mut api = accept(&listener).await;
        let head = api.head().await;
        assert_eq!(head.all("expect"), [""; 0]);
        assert_eq!(caller.head().await.line(), "HTTP/1.1 100 Continue");
        caller.say("body").await;
        api.hear("body").await;
        api.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(caller.head().await.status(), 204);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_waits_for_a_100_is_not_asked_for_a_body_that_is_not_forwarded() {
    limited(async {
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        let mut caller = gateway
            .hears("POST /elsewhere HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
            .await;
        assert_eq!(caller.head().await.status(), 404);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_caller() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let _heads = answering(listener, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        let answer = gateway.ask("GET /apsis/x").await;
        assert_eq!((answer.status(), &*answer.body), (200, "5\r\nfirst\r\n"));
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_pauses_for_too_long_breaks_off() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::with_settings(&base, crate::Settings { timeout: MOMENT, ..settings() }).await;
        let caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let mut api = accept(&listener).await;
        api.head().await;
        api.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf.").await;
        let answer = caller.answer().await;
        assert_eq!((answer.status(), &*answer.body), (200, "half."));
    })
    .await;
}

// With tokens.

const PROFILE: &str = "/apsis/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com";

#[tokio::test]
async fn an_upload_whose_token_is_revoked_half_way_is_replayed() {
    for framing in ["content-length: 16", "transfer-encoding: chunked"] {
        limited(async {
            let apsis = Emulator::new();
            let server = apsis.serve().await.unwrap();
            let gateway = Gateway::with_auth(&server.url(), auth(&apsis, &server.url())).await;
            let mut caller = gateway
                .hears(&format!(
                    "POST {PROFILE} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{framing}\r\n\r\n"
                ))
                .await;
            let is_chunked = framing.contains("chunked");
            caller.say(if is_chunked { "8\r\n{\"city\":\r\n" } else { "{\"city\":" }).await;
            until(async || apsis.counters().api_requests == 1).await;
            apsis.revoke_tokens();
            caller.say(if is_chunked { "8\r\n\"Malmo\"}\r\n0\r\n\r\n" } else { "\"Malmo\"}" }).await;

            assert_eq!(caller.head().await.status(), 201);
            let counters = apsis.counters();
            assert_eq!((counters.api_rejected, counters.api_accepted, counters.tokens_issued), (1, 1, 2));
            let profile = apsis.profile("com.apsis1.keyspaces.email", "andy.demo@apsis.com").unwrap();
            assert_eq!(profile.attributes["city"], "Malmo");
        })
        .await;
    }
}

#[tokio::test]
async fn a_rejection_comes_back_as_the_api_said_it() {
    limited(async {
        let apsis = Emulator::new();
        let server = apsis.serve().await.unwrap();
        let gateway = Gateway::with_auth(&server.url(), auth(&apsis, &server.url())).await;
        let rejection = |body| {
            let answer =
                Answer::status(StatusCode::UNAUTHORIZED).header("content-type", "application/x-own").body(body);
            answer.header("www-authenticate", "Bearer realm=\"theirs\"")
        };
        apsis.script_api_answers([rejection("first"), rejection("second")]);
        let answer = gateway.ask("GET /apsis/audience/keyspaces").await;
        assert_eq!((answer.status(), &*answer.body), (401, "second"));
        assert_eq!(answer.head.field("content-type"), "application/x-own");
        assert_eq!(answer.head.field("www-authenticate"), "Bearer realm=\"theirs\"");
        assert_eq!(answer.head.all("proxy-status"), [""; 0]);
        assert_eq!(apsis.counters().api_requests, 2);
    })
    .await;
}
