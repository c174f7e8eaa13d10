//! Law 32: which requests are given the token, and which are left alone.

use apsis_auth::{ApsisAuthLayer, AuthOutcome};
use http::{Method, Request, StatusCode, header::AUTHORIZATION};
use tower::{Layer, ServiceExt};

use crate::support::{Record, Sent, World, answer, limited, scripted_api, send};

const THEIRS: &str = "Basic dGhlaXI6b3du";

#[tokio::test(start_paused = true)]
async fn a_request_in_scope_carries_our_bearer_in_place_of_the_callers_own() {
    limited(async {
        for (uri, host) in [
            ("https://api.apsis.one/audience/keyspaces", None),
            ("https://api.apsis.one", None),
            ("https://api.apsis.one/another/path?query=https://evil.example", None),
            ("HTTPS://api.apsis.one/", None),
            ("https://API.Apsis.ONE/", None),
            ("https://api.apsis.one:443/", None),
            ("https://api.apsis.one:/", None),
            ("https://user:password@api.apsis.one/", None),
            ("https://user@api.apsis.one:443/", None),
            ("https://api.apsis.one/", Some("evil.example")),
            ("/audience/keyspaces", None),
            ("/audience/keyspaces", Some("api.apsis.one")),
            ("/audience/keyspaces", Some("API.APSIS.ONE:443")),
            ("/audience/keyspaces", Some("api.apsis.one:")),
        ] {
            let world = World::new();
            let (sent, outcome) = arrival(&world.layer(), request(uri, host)).await;
            assert!(sent.authorization().starts_with("Bearer ey"), "{uri} {host:?}: {}", sent.authorization());
            assert_eq!(sent.head.headers.get_all(AUTHORIZATION).iter().count(), 1, "{uri}");
            assert!(sent.head.headers[AUTHORIZATION].is_sensitive());
            assert!(outcome.is_none(), "{uri}: {outcome:?}");
            assert_eq!(world.token_requests(), 1);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_out_of_scope_arrives_as_it_is_and_needs_no_token() {
    limited(async {
        for (uri, host) in [
            ("https://evil.example/", None),
            ("https://api-apac.apsis.one/", None),
            ("https://apsis.one/", None),
            ("https://www.api.apsis.one/", None),
            ("https://api.apsis.one.evil.example/", None),
            ("https://api.apsis.one:8443/", None),
            ("https://api.apsis.one:80/", None),
            ("https://api.apsis.one:0/", None),
            ("http://api.apsis.one/", None),
            ("http://api.apsis.one:443/", None),
            ("ftp://api.apsis.one/", None),
            ("https://api.apsis.one./", None),
            // As a browser would write "аpi.apsis.one" with a Cyrillic "а".
            ("https://xn--pi-7kc.apsis.one/", None),
            ("https://api.apsis.one@evil.example/", None),
            ("https://api.apsis.one:443@evil.example/", None),
            ("https://evil.example/", Some("api.apsis.one")),
            ("/audience/keyspaces", Some("evil.example")),
            ("/audience/keyspaces", Some("api.apsis.one:8443")),
            ("/audience/keyspaces", Some("api.apsis.one.")),
            ("/audience/keyspaces", Some("")),
            ("/audience/keyspaces", Some("api.apsis.one.evil.example")),
            ("/audience/keyspaces", Some("www.api.apsis.one")),
            ("/audience/keyspaces", Some("api.apsis.on")),
            ("/audience/keyspaces", Some("api.apsis.one:443:443")),
            ("/audience/keyspaces", Some("api.apsis.one:+443")),
            ("/audience/keyspaces", Some("api.apsis.one:443@evil.example")),
            // A `Host` has no user information.
            ("/audience/keyspaces", Some("evil.example/@api.apsis.one")),
            ("/audience/keyspaces", Some("user@api.apsis.one")),
        ] {
            let world = World::new();
            let (sent, outcome) = arrival(&world.layer(), request(uri, host)).await;
            assert_untouched(&sent, outcome.as_ref(), &format!("{uri} {host:?}"));
            assert_eq!(world.token_requests(), 0, "{uri}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_two_hosts_is_out_of_scope() {
    limited(async {
        for hosts in [["api.apsis.one", "evil.example"], ["api.apsis.one", "api.apsis.one"]] {
            let mut request = request("/", Some(hosts[0]));
            request.headers_mut().append("host", hosts[1].parse().unwrap());
            let (sent, outcome) = arrival(&World::new().layer(), request).await;
            assert_untouched(&sent, outcome.as_ref(), &format!("{hosts:?}"));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_out_of_scope_in_every_form() {
    limited(async {
        for uri in ["api.apsis.one:443", "https://api.apsis.one/", "/"] {
            let mut request = request(uri, None);
            *request.method_mut() = Method::CONNECT;
            let (sent, outcome) = arrival(&World::new().layer(), request).await;
            assert_untouched(&sent, outcome.as_ref(), uri);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_authority_without_a_scheme_is_out_of_scope() {
    limited(async {
        let (sent, outcome) = arrival(&World::new().layer(), request("api.apsis.one:443", None)).await;
        assert_untouched(&sent, outcome.as_ref(), "authority form");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_scope_is_the_origin_of_the_base_url_whatever_its_path() {
    limited(async {
        for (base, inside, outside) in [
            ("https://gate.example:8443/apsis", "https://gate.example:8443/other", "https://gate.example/apsis"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/", "http://127.0.0.1:8081/"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/", "https://127.0.0.1:8080/"),
            ("http://[::1]", "http://[::1]:80/", "http://[::2]:80/"),
            ("http://localhost", "http://LOCALHOST:80/", "http://localhost:443/"),
        ] {
            let world = World::new();
            // The emulator's token endpoint has no path before it.
            let transport = world.apsis.clone().map_request(|mut request: Request<_>| {
                *request.uri_mut() = "/oauth/token".parse().unwrap();
                request
            });
            let builder = ApsisAuthLayer::builder(world.credentials(), base).transport(transport);
            let layer = builder.build().unwrap();
            let (sent, outcome) = arrival(&layer, request(inside, None)).await;
            assert!(sent.authorization().starts_with("Bearer "), "{inside}");
            assert!(outcome.is_none(), "{inside}");
            let (sent, outcome) = arrival(&layer, request(outside, None)).await;
            assert_untouched(&sent, outcome.as_ref(), outside);
        }
    })
    .await;
}

/// The one with its default port, in capitals or both; the other, too.
#[tokio::test(start_paused = true)]
async fn base_url_and_request_may_say_the_same_origin_in_other_words() {
    const WORDS: [&str; 6] =
        ["gate.example", "Gate.Example", "GATE.EXAMPLE", "gate.example:443", "Gate.example:443", "gate.example:"];

    limited(async {
        let world = World::new();
        for base in WORDS {
            let builder = ApsisAuthLayer::builder(world.credentials(), format!("https://{base}"));
            let layer = builder.transport(world.apsis.clone()).build().unwrap();
            for said in WORDS {
                for (uri, host) in [
                    (format!("https://{said}/"), None),
                    (format!("https://user@{said}/"), None),
                    ("/".to_owned(), Some(said)),
                ] {
                    let (sent, outcome) = arrival(&layer, request(&uri, host)).await;
                    assert!(sent.authorization().starts_with("Bearer ey"), "{base}: {uri} {host:?}");
                    assert!(outcome.is_none(), "{base}: {uri} {host:?}");
                }
            }
            for near in ["gate.example:80", "gate.example:4430", "gate.example.", "gate.exampl", "Hate.example"] {
                for (uri, host) in [(format!("https://{near}/"), None), ("/".to_owned(), Some(near))] {
                    let (sent, outcome) = arrival(&layer, request(&uri, host)).await;
                    assert_untouched(&sent, outcome.as_ref(), &format!("{base}: {uri} {host:?}"));
                }
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_out_of_scope_without_authorization_arrives_without() {
    limited(async {
        let world = World::new();
        let layer = world.layer();
        layer.handle().warm_up().await.unwrap();
        let request = Request::get("https://evil.example/").body("body".to_owned()).unwrap();
        let (sent, _) = arrival(&layer, request).await;
        assert!(sent.head.headers.is_empty());
    })
    .await;
}

/// A rejection of what we did not stamp says nothing about our token.
#[tokio::test(start_paused = true)]
async fn a_rejection_out_of_scope_starts_nothing() {
    limited(async {
        for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
            let (world, record) = (World::new(), Record::default());
            let layer = world.layer();
            layer.handle().warm_up().await.unwrap();
            let client = layer.layer(scripted_api(&record, move |_, _| answer(status, "not yours")));
            let response = send(&client, request("https://evil.example/", None)).await.unwrap();
            assert_eq!(response.status(), status);
            assert!(matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope)));
            assert_eq!(response.into_body(), "not yours");
            assert_eq!((record.count(), world.token_requests()), (1, 1));
            assert_eq!(layer.handle().get().await.unwrap().generation(), 1);
        }
    })
    .await;
}

/// A request with an `Authorization` of the caller's own, said twice.
fn request(uri: &str, host: Option<&str>) -> Request<String> {
    let mut request = Request::post(uri).header(AUTHORIZATION, THEIRS).header(AUTHORIZATION, "Digest x");
    if let Some(host) = host {
        request = request.header("host", host);
    }
    request.body("body".to_owned()).unwrap()
}

/// How it arrives at an API that accepts everything, and what the layer says of it.
async fn arrival(layer: &ApsisAuthLayer, request: Request<String>) -> (Sent, Option<AuthOutcome>) {
    let record = Record::default();
    let client = layer.layer(scripted_api(&record, |_, _| answer(StatusCode::OK, "")));
    let uri = request.uri().clone();
    let response = send(&client, request).await.unwrap();
    let [sent] = <[Sent; 1]>::try_from(record.all()).unwrap_or_else(|all| panic!("{} sends", all.len()));
    // As text: `Uri` compares hosts without case.
    assert_eq!((sent.head.uri.to_string(), sent.body.as_str()), (uri.to_string(), "\"body\""));
    (sent, response.extensions().get().cloned())
}

fn assert_untouched(sent: &Sent, outcome: Option<&AuthOutcome>, what: &str) {
    let theirs: Vec<_> = sent.head.headers.get_all(AUTHORIZATION).iter().collect();
    assert_eq!(theirs, [THEIRS, "Digest x"], "{what}");
    assert!(matches!(outcome, Some(AuthOutcome::OutOfScope)), "{what}: {outcome:?}");
}
