//! Heads: what goes to the API and what comes back, and what is between two connections alone.

use apsis_auth::{HttpsTransport, emulator::Emulator};
use axum::body::Body;
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustls::RootCertStore;
use tokio::task::JoinSet;

use super::support::{Gateway, MOMENT, NO_CONTENT, accept, answering, auth, limited, listen, settings};

#[tokio::test]
async fn the_target_reaches_the_api_to_the_byte() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        for target in [
            "/audience/keyspaces?x=1",
            "/profiles/andy.demo%40apsis.com",
            "/profiles/a%2Fb%2fc%00%20%25",
            "//double//slash//",
            "/up/../and/./down/..",
            "/question?",
            "/?",
            "/",
            "/query?a=%26&a=+&b=c/d?e=%E2%82%AC",
            "/a;b=c,d:e@f!$&'()*+=~|^{}\"",
        ] {
            let answer = gateway.ask(&format!("GET /apsis{target}")).await;
            assert_eq!(answer.status(), 204, "{target}");
            assert_eq!(heads.recv().await.unwrap().line(), format!("GET {target} HTTP/1.1"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_prefix_without_a_path_is_the_root_of_the_api() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        for (target, expected) in [("/apsis", "/"), ("/apsis?x", "/?x"), ("http://localhost/apsis/a//b", "/a//b")] {
            assert_eq!(gateway.ask(&format!("GET {target}")).await.status(), 204);
            assert_eq!(heads.recv().await.unwrap().line(), format!("GET {expected} HTTP/1.1"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_path_of_the_base_url_comes_before_the_target() {
    limited(async {
        let (listener, base) = listen().await;
        // The emulator has its token endpoint at the root.
        let auth = auth(&Emulator::new(), &base);
        let gateway = Gateway::with_auth(&format!("{base}/one/apsis/"), auth).await;
        let mut heads = answering(listener, NO_CONTENT);
        for (target, expected) in [("/apsis/a%40b?c", "/one/apsis/a%40b?c"), ("/apsis?x", "/one/apsis?x")] {
            assert_eq!(gateway.ask(&format!("GET {target}")).await.status(), 204);
            assert_eq!(heads.recv().await.unwrap().line(), format!("GET {expected} HTTP/1.1"));
        }
    })
    .await;
}

#[tokio::test]
async fn the_api_gets_its_own_host_a_token_and_a_via() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        let fields = "authorization: Basic Y2FsbGVy\r\nvia: 1.0 before\r\naccept: a\r\naccept: b\r\nx-own: 1";
        gateway.ask(&format!("PROPFIND /apsis/x\r\n{fields}")).await;

        let head = heads.recv().await.unwrap();
        assert_eq!(head.line(), "PROPFIND /x HTTP/1.1");
        assert_eq!(head.field("host"), base.strip_prefix("http://").unwrap());
        let token = gateway.token.get().await.unwrap();
        assert_eq!(head.field("authorization"), format!("Bearer {}", token.expose_secret()));
        assert_eq!(head.all("via"), ["1.0 before", "1.1 apsis-gateway"]);
        assert_eq!(head.all("accept"), ["a", "b"]);
        assert_eq!(head.field("x-own"), "1");
    })
    .await;
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_go_no_further() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        gateway
            .ask(
                "GET /apsis/x\r\n\
                 connection: keep-alive, X-Named ,x-other\r\n\
                 connection: X-Third, upgrade\r\n\
                 x-named: 1\r\nx-other: 2\r\nx-third: 3\r\nx-kept: 4\r\n\
                 keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n\
                 proxy-authorization: Basic eA==\r\nte: gzip\r\nupgrade: websocket",
            )
            .await;

        let head = heads.recv().await.unwrap();
        for name in [
            "connection",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "te",
            "upgrade",
            "transfer-encoding",
        ] {
            assert_eq!(head.all(name), [""; 0], "{name}");
        }
        assert_eq!([head.all("x-named"), head.all("x-other"), head.all("x-third")].concat(), [""; 0]);
        assert_eq!(head.field("x-kept"), "4");
    })
    .await;
}

#[tokio::test]
async fn hop_by_hop_fields_of_an_answer_go_no_further() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let _heads = answering(
            listener,
            "HTTP/1.1 200 Fine\r\nconnection: close, x-named\r\nx-named: 1\r\nkeep-alive: timeout=5\r\n\
             proxy-authenticate: Basic\r\nproxy-connection: close\r\nupgrade: h2c\r\nte: trailers\r\n\
             x-kept: 4\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok",
        );
        // On a connection that stays: the API's `close` is not for the caller.
        let mut caller = gateway.hears("GET /apsis/x HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        let head = caller.head().await;
        caller.hear("ok").await;

        assert_eq!(head.line(), "HTTP/1.1 200 Fine");
        for name in ["connection", "x-named", "keep-alive", "proxy-authenticate", "proxy-connection", "upgrade", "te"] {
            assert_eq!(head.all(name), [""; 0], "{name}");
        }
        assert_eq!(head.all("set-cookie"), ["a", "b"]);
        assert_eq!(head.field("x-kept"), "4");
        caller.say("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
        assert_eq!(caller.head().await.status(), 200);
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_is_not_asked_for_and_one_that_comes_all_the_same_is_refused() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads =
            answering(listener, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n");
        let answer = gateway.ask("GET /apsis/x\r\nconnection: upgrade\r\nupgrade: x").await;
        answer.problem(502, "http_upgrade_failed");
        assert_eq!(heads.recv().await.unwrap().all("upgrade"), [""; 0]);
    })
    .await;
}

// Request ids and traces.

#[tokio::test]
async fn a_request_id_of_the_callers_goes_to_the_api_and_back() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        let answer = gateway.ask("GET /apsis/x\r\nx-request-id: my-own").await;
        assert_eq!(answer.head.field("x-request-id"), "my-own");
        assert_eq!(heads.recv().await.unwrap().field("x-request-id"), "my-own");
    })
    .await;
}

#[tokio::test]
async fn a_request_without_an_id_gets_one_and_the_next_another() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        let mut ids = Vec::new();
        for _ in 0..2 {
            let answer = gateway.ask("GET /apsis/x").await;
            let id = answer.head.field("x-request-id");
            assert_eq!(heads.recv().await.unwrap().field("x-request-id"), id);
            ids.push(id.to_owned());
        }
        assert!(ids[0].len() >= 32 && ids[0] != ids[1], "{ids:?}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_has_the_id_of_its_request_whatever_the_api_calls_it() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let _heads = answering(
            listener,
            "HTTP/1.1 200 OK\r\nx-request-id: theirs\r\nx-amzn-requestid: amazon\r\nconnection: close\r\n\
             content-length: 0\r\n\r\n",
        );
        let answer = gateway.ask("GET /apsis/x\r\nx-request-id: my-own").await;
        assert_eq!(answer.head.field("x-request-id"), "my-own");
        assert_eq!(answer.head.field("x-amzn-requestid"), "amazon");
    })
    .await;
}

#[tokio::test]
async fn an_answer_of_the_gateway_has_an_id_too() {
    limited(async {
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        let answer = gateway.ask("GET /elsewhere\r\nx-request-id: my-own").await;
        assert_eq!(answer.head.field("x-request-id"), "my-own");
    })
    .await;
}

#[tokio::test]
async fn a_trace_is_carried_through() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        gateway.ask(&format!("GET /apsis/x\r\ntraceparent: {parent}\r\ntracestate: a=1\r\ntracestate: b=2")).await;
        let head = heads.recv().await.unwrap();
        assert_eq!(head.field("traceparent"), parent);
        assert_eq!(head.all("tracestate"), ["a=1", "b=2"]);
    })
    .await;
}

// Versions.

#[tokio::test]
async fn http_2_is_spoken_on_both_sides() {
    limited(async {
        let apsis = Emulator::new();
        let server = apsis.serve_https().await.unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(server.certificate_der().unwrap().to_vec().into()).unwrap();
        let transport = HttpsTransport::trusting(server.certificate_pem().unwrap().as_bytes()).unwrap();
        let auth = auth(&apsis, &server.url()).transport(transport);
        let gateway = Gateway::with(&server.url(), auth, settings(), roots).await;
        gateway.token.get().await.unwrap();
        let connections = server.connections();

        let caller = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        let url = format!("http://{}/apsis/audience/keyspaces", gateway.addr);
        let profile = format!("{url}/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com");
        let create = Request::post(profile).header("content-type", "application/json").header("te", "trailers");
        let created = caller.request(create.body(Body::from(r#"{"city":"Malmo"}"#)).unwrap()).await.unwrap();
        assert_eq!((created.status(), created.version()), (StatusCode::CREATED, Version::HTTP_2));
        // Long enough for all of them to be under way at once.
        apsis.set_api_delay(MOMENT);
        let answers = (0..20).map(|_| caller.request(Request::get(&url).body(Body::empty()).unwrap()));
        let mut answers: JoinSet<_> = answers.collect();
        while let Some(answer) = answers.join_next().await {
            let answer = answer.unwrap().unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(answer.into_body().collect().await.unwrap().to_bytes().starts_with(b"{\"items\":"));
        }

        let profile = apsis.profile("com.apsis1.keyspaces.email", "andy.demo@apsis.com").unwrap();
        assert_eq!(profile.attributes["city"], "Malmo");
        // All over one, or it was not HTTP/2.
        assert_eq!(server.connections(), connections + 1);
    })
    .await;
}

#[tokio::test]
async fn a_caller_of_http_1_0_is_served() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let caller = gateway.hears("GET /apsis/x HTTP/1.0\r\n\r\n").await;
        let mut api = accept(&listener).await;
        let head = api.head().await;
        assert_eq!((head.line(), head.field("via")), ("GET /x HTTP/1.1", "1.0 apsis-gateway"));
        api.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
        let answer = caller.answer().await;
        assert_eq!((answer.status(), &*answer.body), (200, "hello"));
        assert_eq!(answer.head.all("transfer-encoding"), [""; 0]);
    })
    .await;
}

// What is not forwarded.

#[tokio::test]
async fn what_is_not_below_the_prefix_is_not_forwarded() {
    limited(async {
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        for target in ["/", "/apsisfoo", "/APSIS/x", "/%61psis/x", "//apsis/x", "/x/apsis/y", "/healthz/"] {
            let answer = gateway.ask(&format!("GET {target}")).await;
            assert!(answer.problem(404, "http_request_error").contains("/apsis/"), "{target}");
        }
        gateway.ask("OPTIONS *").await.problem(404, "http_request_error");
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_is_not_opened_and_a_request_not_echoed() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        assert_eq!(
            gateway.ask("CONNECT localhost:443").await.problem(501, "http_request_error"),
            "CONNECT is not forwarded"
        );
        assert_eq!(gateway.ask("TRACE /apsis/x").await.problem(501, "http_request_error"), "TRACE is not forwarded");
        assert!(heads.try_recv().is_err());
    })
    .await;
}

#[tokio::test]
async fn a_request_for_a_token_is_not_forwarded_however_it_is_spelled() {
    limited(async {
        let (listener, base) = listen().await;
        let auth = auth(&Emulator::new(), &base);
        let gateway = Gateway::with_auth(&format!("{base}/one"), auth).await;
        let mut heads = answering(listener, NO_CONTENT);
        for target in [
            "/oauth/token",
            "/oauth/token/",
            "/oauth/token?x=/y",
            "//oauth//token",
            "/oauth%2Ftoken",
            "/oauth%2ftoken%2F",
            "/%6Fauth/%74oken",
            "/OAuth/%54oken",
            "/./oauth/x/%2E./token",
            "/../one/oauth/token",
        ] {
            let answer = gateway.ask(&format!("POST /apsis{target}")).await;
            let detail = answer.problem(404, "http_request_denied");
            assert!(detail.contains("the gateway gets the tokens itself"), "{target}: {detail}");
        }
        assert!(heads.try_recv().is_err());

        for target in
            ["/oauth", "/oauth/tokens", "/x/oauth/token", "/oauth/token/x", "/oauth%252Ftoken", "/?/oauth/token"]
        {
            assert_eq!(gateway.ask(&format!("POST /apsis{target}")).await.status(), 204, "{target}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_options_goes_no_further_than_it_may() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        let answer = gateway.ask("OPTIONS /apsis/x\r\nmax-forwards: 0").await;
        assert_eq!((answer.status(), answer.head.field("proxy-status")), (204, "apsis-gateway"));
        assert!(answer.head.field("allow").contains("PATCH"));
        gateway.ask("OPTIONS /elsewhere\r\nmax-forwards: 0").await.problem(404, "http_request_error");
        assert!(heads.try_recv().is_err());

        for (arrived, left) in [
            ("1", "0"),
            ("010", "9"),
            // More than can be counted is the most that can.
            ("99999999999999999999999", "18446744073709551614"),
            ("-1", "-1"),
            ("+1", "+1"),
            ("many", "many"),
        ] {
            gateway.ask(&format!("OPTIONS /apsis/x\r\nmax-forwards: {arrived}")).await;
            assert_eq!(heads.recv().await.unwrap().field("max-forwards"), left);
        }
        gateway.ask("OPTIONS /apsis/x").await;
        assert_eq!(heads.recv().await.unwrap().all("max-forwards"), [""; 0]);
        // For other methods it means nothing.
        gateway.ask("GET /apsis/x\r\nmax-forwards: 0").await;
        assert_eq!(heads.recv().await.unwrap().field("max-forwards"), "0");
    })
    .await;
}

#[tokio::test]
async fn a_web_page_is_not_served() {
    limited(async {
        let (listener, base) = listen().await;
        let gateway = Gateway::to(&base).await;
        let mut heads = answering(listener, NO_CONTENT);
        for field in ["origin: https://evil.example", "origin: null", "sec-fetch-site: cross-site"] {
            gateway.ask(&format!("POST /apsis/x\r\n{field}")).await.problem(403, "http_request_denied");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example/",
            "[::1",
            "@:",
            "",
        ] {
            let request = format!("GET /apsis/x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            gateway.hears(&request).await.answer().await.problem(421, "http_request_denied");
        }
        assert!(heads.try_recv().is_err());

        for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:8080", "[::1]:8080"] {
            let request = format!("GET /apsis/x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            assert_eq!(gateway.hears(&request).await.answer().await.status(), 204, "{host}");
        }
        assert_eq!(gateway.ask("GET /apsis/x\r\nsec-fetch-site: none").await.status(), 204);
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_others_reach_may_have_any_name() {
    limited(async {
        let (listener, base) = listen().await;
        let mut settings = settings();
        settings.listen.set_ip([0, 0, 0, 0].into());
        let gateway = Gateway::with_settings(&base, settings).await;
        let _heads = answering(listener, NO_CONTENT);
        let request = "GET /apsis/x HTTP/1.1\r\nhost: gateway:8080\r\nconnection: close\r\n\r\n";
        assert_eq!(gateway.hears(request).await.answer().await.status(), 204);
    })
    .await;
}

#[tokio::test]
async fn a_target_that_the_base_url_makes_too_long_is_refused() {
    limited(async {
        let base = format!("http://127.0.0.1:9/{}", "b".repeat(1000));
        let gateway = Gateway::to(&base).await;
        let target = "t".repeat(65_000);
        gateway.ask(&format!("GET /apsis/{target}")).await.problem(414, "http_request_error");
    })
    .await;
}
