//! Law 28 over TLS: the layers of tower and tower-http that many clients have, around and beneath ours.

use std::future::{Ready, ready};

use apsis_auth::{AuthOutcome, emulator::EmulatorServer};
use http::{
    HeaderValue, Request, Version,
    header::{AUTHORIZATION, CONTENT_ENCODING, COOKIE, LOCATION, PROXY_AUTHORIZATION},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustls::{RootCertStore, pki_types::CertificateDer};
use tower::{
    Layer, ServiceBuilder, ServiceExt,
    retry::{Policy, RetryLayer},
    util::BoxCloneSyncService,
};
use tower_http::{
    ServiceBuilderExt,
    decompression::DecompressionLayer,
    follow_redirect::FollowRedirectLayer,
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    timeout::TimeoutLayer,
    trace::{DefaultMakeSpan, TraceLayer},
};

use super::{
    clients::{HttpsClient, World, keyspaces, tls_config},
    *,
};

type ApiClient = BoxCloneSyncService<Request<Full<Bytes>>, Response<ApiBody>, BoxError>;
type ApiBody = UnsyncBoxBody<Bytes, BoxError>;

/// `{"items":[]}`, by gzip.
const PACKED: &[u8] = &[
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0xff, 0xab, 0x56, 0xca, 0x2c, 0x49, 0xcd, 0x2d, 0x56, 0xb2,
    0x8a, 0x8e, 0xad, 0x05, 0x00, 0x1d, 0x1f, 0x43, 0xea, 0x0c, 0x00, 0x00, 0x00,
];

#[tokio::test]
async fn a_stack_of_many_layers_is_served_by_both_protocols_and_prints_no_secret() {
    limited(async {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let (ear, _listening) = Ear::listening();
            let world = World::new().await;
            let client = stack(world.builder().build().unwrap(), world.https_client(version));
            let call = async || {
                let mut request = keyspaces(&world, Full::default());
                request.headers_mut().insert(COOKIE, HeaderValue::from_static("cAnary=1"));
                client.clone().oneshot(request).await.unwrap()
            };

            let response = call().await;
            assert_eq!((response.status(), response.version()), (StatusCode::OK, version));

            let sections = format!("{}/audience/sections", world.server.url());
            world.apsis.script_api_answers([Answer::status(StatusCode::FOUND).header(LOCATION, sections)]);
            assert!(text(call().await).await.contains("Newsletter"));

            world.apsis.revoke_tokens();
            assert!(matches!(call().await.extensions().get(), Some(AuthOutcome::Replayed)));

            let packed = Answer::status(StatusCode::OK).header(CONTENT_ENCODING, "gzip").body(PACKED);
            world.apsis.script_api_answers([packed]);
            assert_eq!(text(call().await).await, r#"{"items":[]}"#);

            let all = ear.all();
            assert!(all.iter().any(|said| said.contains("tower_http") && said.contains("headers={")), "{all:#?}");
            // How each JWT begins, the secret, and what the caller marked.
            for secret in ["eyJ", world.apsis.api_key().client_secret(), "cAnary"] {
                assert_eq!(all.iter().filter(|said| said.contains(secret)).collect::<Vec<_>>(), Vec::<&String>::new());
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_trace_beneath_the_layer_sees_that_there_is_a_token_and_not_which() {
    limited(async {
        let (ear, _listening) = Ear::listening();
        let world = World::new().await;
        let trace = TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().include_headers(true));
        let client = ServiceBuilder::new()
            .layer(world.builder().build().unwrap())
            .layer(trace)
            .service(world.https_client::<Full<Bytes>>(Version::HTTP_11));
        assert_eq!(client.oneshot(keyspaces(&world, Full::default())).await.unwrap().status(), StatusCode::OK);
        let all = ear.all();
        assert!(all.iter().any(|said| said.contains(r#""authorization": Sensitive"#)), "{all:#?}");
        assert!(!all.iter().any(|said| said.contains("eyJ")), "{all:#?}");
    })
    .await;
}

#[tokio::test]
async fn a_trace_above_has_a_span_for_the_call_and_one_beneath_for_each_sending() {
    limited(async {
        for (is_above, spans) in [(true, 1), (false, 2)] {
            let (ear, _listening) = Ear::listening();
            let world = World::new().await;
            let (auth, https_client) = (world.builder().build().unwrap(), world.https_client(Version::HTTP_11));
            auth.handle().warm_up().await.unwrap();
            world.apsis.revoke_tokens();
            let (trace, request) = (TraceLayer::new_for_http(), keyspaces(&world, Full::<Bytes>::default()));
            let status = if is_above {
                let client = ServiceBuilder::new().layer(trace).layer(auth).service(https_client);
                client.oneshot(request).await.unwrap().status()
            } else {
                let client = ServiceBuilder::new().layer(auth).layer(trace).service(https_client);
                client.oneshot(request).await.unwrap().status()
            };
            assert_eq!(status, StatusCode::OK);
            let all = ear.all();
            assert_eq!(all.iter().filter(|said| said.contains("make_span request")).count(), spans, "{all:#?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_the_caller_puts_on_is_printed_unless_it_is_marked_above_the_trace() {
    limited(async {
        let world = World::new().await;
        let auth = world.builder().build().unwrap();
        let marking = SetSensitiveRequestHeadersLayer::new([COOKIE]);
        let trace = || TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().include_headers(true));
        for is_marked_above in [true, false] {
            let (ear, _listening) = Ear::listening();
            let https_client = world.https_client::<Full<Bytes>>(Version::HTTP_11);
            let client = auth.layer(https_client);
            let mut request = keyspaces(&world, Full::default());
            request.headers_mut().insert(COOKIE, HeaderValue::from_static("cAnary=1"));
            let status = if is_marked_above {
                let client = ServiceBuilder::new().layer(marking.clone()).layer(trace()).service(client);
                client.oneshot(request).await.unwrap().status()
            } else {
                let client = ServiceBuilder::new().layer(trace()).layer(marking.clone()).service(client);
                client.oneshot(request).await.unwrap().status()
            };
            assert_eq!(status, StatusCode::OK);
            assert_ne!(ear.all().iter().any(|said| said.contains("cAnary")), is_marked_above);
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_packed_is_read_above_and_beneath_a_rejection_too() {
    limited(async {
        let world = World::new().await;
        let packed = |status| Answer::status(status).header(CONTENT_ENCODING, "gzip").body(PACKED);
        let auth = world.builder().without_replay().build().unwrap();
        let https_client = world.https_client::<Full<Bytes>>(Version::HTTP_11);
        for status in [StatusCode::OK, StatusCode::UNAUTHORIZED] {
            world.apsis.script_api_answers([packed(status), packed(status)]);
            let above = ServiceBuilder::new().layer(DecompressionLayer::new()).layer(auth.clone());
            let response =
                above.service(https_client.clone()).oneshot(keyspaces(&world, Full::default())).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(text(response).await, r#"{"items":[]}"#);
            let beneath = ServiceBuilder::new().layer(auth.clone()).layer(DecompressionLayer::new());
            let response =
                beneath.service(https_client.clone()).oneshot(keyspaces(&world, Full::default())).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(text(response).await, r#"{"items":[]}"#);
        }
    })
    .await;
}

/// The same account is everywhere: it would take the token wherever it arrived.
#[tokio::test]
async fn a_redirect_to_another_host_port_or_scheme_carries_no_token() {
    limited(async {
        {
            let world = World::new().await;
            let (another, plain) = (world.apsis.serve_https().await.unwrap(), world.apsis.serve().await.unwrap());
            let https_client = trusting(&[&world.server, &another]);
            let client = stack(world.builder().build().unwrap(), https_client);
            let another_host = format!("https://127.0.0.1:{}", world.server.addr().port());
            for (base, is_served) in [
                (world.server.url(), true),
                (another_host, false),
                (another.url(), false),
                (plain.url(), false),
                (world.server.url().replace("https", "HTTPS"), true),
            ] {
                let rejected = world.apsis.counters().api_rejected;
                let answer = Answer::status(StatusCode::FOUND).header(LOCATION, format!("{base}/audience/sections"));
                world.apsis.script_api_answers([answer]);
                let response = client.clone().oneshot(keyspaces(&world, Full::default())).await.unwrap();

                assert_eq!(response.status() == StatusCode::OK, is_served, "{base}");
                let is_out_of_scope = matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope));
                assert_eq!(is_out_of_scope, !is_served, "{base}");
                assert_eq!(world.apsis.counters().api_rejected - rejected, u64::from(!is_served), "{base}");
            }
            assert_eq!(world.apsis.counters().token_requests, 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_retry_above_sends_each_try_at_most_twice() {
    limited(async {
        let world = World::new().await;
        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(Tries(2)))
            .layer(world.builder().build().unwrap())
            .service(world.https_client(Version::HTTP_2));
        let sent = || world.apsis.counters().api_requests;

        // The try that finds the token dead is replayed, all others are sent once.
        let unavailable = || Answer::status(StatusCode::SERVICE_UNAVAILABLE);
        let script = [unavailable(), Answer::status(StatusCode::UNAUTHORIZED), unavailable(), Answer::genuine()];
        world.apsis.script_api_answers(script);
        let response = client.clone().oneshot(keyspaces(&world, Full::default())).await.unwrap();
        assert_eq!((response.status(), sent()), (StatusCode::OK, 4));

        // As bad as can be.
        world.apsis.script_api_answers(std::iter::repeat_n(Answer::status(StatusCode::UNAUTHORIZED), 6));
        let response = client.oneshot(keyspaces(&world, Full::default())).await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(sent() - 4 <= 6, "{}", sent() - 4);
    })
    .await;
}

#[tokio::test]
async fn who_is_cut_off_by_a_time_limit_above_leaves_the_flight_to_the_next() {
    limited(async {
        let world = World::new().await;
        world.apsis.set_token_delay(2 * MOMENT);
        let auth = world.builder().build().unwrap();
        let client = auth.layer(world.https_client::<Full<Bytes>>(Version::HTTP_11));
        let limited = ServiceBuilder::new()
            .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, MOMENT / 5))
            .map_response_body(BodyExt::boxed_unsync)
            .service(client.clone());
        let response = limited.oneshot(keyspaces(&world, Full::default())).await.unwrap();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        let response = client.oneshot(keyspaces(&world, Full::default())).await.unwrap();
        assert_eq!((response.status(), world.apsis.counters().token_requests), (StatusCode::OK, 1));
    })
    .await;
}

// Helpers.

/// In the order of the page "In your stack".
fn stack(auth: ApsisAuthLayer, https_client: HttpsClient<Full<Bytes>>) -> ApiClient {
    let make_span = DefaultMakeSpan::new().include_headers(true);
    let stack = ServiceBuilder::new()
        .map_response_body(|body| BodyExt::map_err(body, Into::into).boxed_unsync())
        .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION]))
        .layer(TraceLayer::new_for_http().make_span_with(make_span))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, LIMIT))
        .layer(FollowRedirectLayer::new())
        .layer(auth)
        .map_response_body(BodyExt::boxed_unsync)
        .layer(DecompressionLayer::new())
        .service(https_client);
    BoxCloneSyncService::new(stack)
}

fn trusting(servers: &[&EmulatorServer]) -> HttpsClient<Full<Bytes>> {
    let mut roots = RootCertStore::empty();
    for server in servers {
        roots.add(CertificateDer::from(server.certificate_der().unwrap().to_vec())).unwrap();
    }
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls_config(roots)).https_or_http();
    Client::builder(TokioExecutor::new()).build(builder.enable_all_versions().build())
}

async fn text<B>(response: Response<B>) -> String
where
    B: Body<Error: std::fmt::Debug>,
{
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Sends anew what was not a success, so many times and at once.
#[derive(Clone)]
struct Tries(usize);

impl<B, E> Policy<Request<Full<Bytes>>, Response<B>, E> for Tries {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<Full<Bytes>>, result: &mut Result<Response<B>, E>) -> Option<Ready<()>> {
        if self.0 == 0 || result.as_ref().is_ok_and(|response| response.status().is_success()) {
            return None;
        }
        self.0 -= 1;
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}
