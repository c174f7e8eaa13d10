//! Requests out of the ordinary: each has an outcome that is defined, and none makes the layer panic.

use std::{
    collections::VecDeque,
    error::Error,
    fmt,
    future::ready,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::{AuthError, AuthOutcome, Once, ReplayBody, ReplayableBody};
use bytes::Bytes;
use fastrand::Rng;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CONNECTION, COOKIE, EXPECT, PROXY_AUTHORIZATION, UPGRADE},
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use tokio::time::{sleep, timeout};
use tower::{BoxError, Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};

use crate::support::{BASE, Record, Sent, World, answer, get, limited, scripted_api, send};

/// How the API says that a token is dead.
const REJECTIONS: [StatusCode; 2] = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];

// Tunnels and upgrades.

#[tokio::test(start_paused = true)]
async fn a_tunnel_carries_what_its_caller_put_on_it_and_its_answer_comes_back_whole() {
    limited(async {
        let world = World::new();
        // HTTP/2's extended CONNECT has a scheme and a path, and names its protocol in an extension.
        for uri in ["api.apsis.one:443", "https://api.apsis.one/chat"] {
            let record = Record::default();
            let client = world.layer().layer(scripted_api(&record, |_, _| tunnel(StatusCode::OK)));
            let request = Request::connect(uri)
                .header(AUTHORIZATION, "Basic dGhlaXI6b3du")
                .header(PROXY_AUTHORIZATION, "Basic cHJveHk6b3du")
                .extension(Tunnel);
            let response = send(&client, request.body(()).unwrap()).await.unwrap();

            let [sent] = one(&record);
            assert_eq!(sent.head.headers[AUTHORIZATION], "Basic dGhlaXI6b3du");
            assert_eq!(sent.head.headers[PROXY_AUTHORIZATION], "Basic cHJveHk6b3du");
            assert_eq!(sent.head.extensions.get(), Some(&Tunnel));
            assert_eq!(response.extensions().get(), Some(&Tunnel));
            assert!(matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope)));
        }
        assert_eq!(world.token_requests(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_stamped_and_its_answer_comes_back_with_its_extensions() {
    limited(async {
        for protocol in ["websocket", "h2c"] {
            let record = Record::default();
            let client = World::new().layer();
            let client = client.layer(scripted_api(&record, |_, _| tunnel(StatusCode::SWITCHING_PROTOCOLS)));
            let response = send(&client, upgrade(protocol)).await.unwrap();

            let [sent] = one(&record);
            assert!(sent.authorization().starts_with("Bearer ey"));
            assert_eq!(sent.head.headers[CONNECTION], "upgrade");
            assert_eq!(sent.head.headers[UPGRADE], protocol);
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(response.extensions().get(), Some(&Tunnel));
            assert!(outcome(&response).is_none());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_is_rejected_is_replayed_as_one() {
    limited(async {
        for rejection in REJECTIONS {
            let record = Record::default();
            let client = World::new().layer().layer(scripted_api(&record, move |_, number| match number {
                1 => answer(rejection, ""),
                _ => tunnel(StatusCode::SWITCHING_PROTOCOLS),
            }));
            let response = send(&client, upgrade("websocket")).await.unwrap();

            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(response.extensions().get(), Some(&Tunnel));
            assert!(matches!(outcome(&response), Some(AuthOutcome::Replayed)));
            assert_all_differ(&record.authorizations());
            for sent in record.all() {
                assert_eq!(sent.head.headers[CONNECTION], "upgrade");
                assert_eq!(sent.head.headers[UPGRADE], "websocket");
            }
        }
    })
    .await;
}

/// Who switches protocols has looked at the token. If that did not count, the next rejection would be the second
/// renewal in a row that did not help, and start none.
#[tokio::test(start_paused = true)]
async fn a_switch_of_protocols_in_answer_to_a_replay_says_that_the_renewal_helped() {
    limited(async {
        for (first, helped) in [(StatusCode::SWITCHING_PROTOCOLS, true), (StatusCode::BAD_GATEWAY, false)] {
            let (world, record) = (World::new(), Record::default());
            let client = world.layer().layer(scripted_api(&record, move |_, number| match number {
                2 => answer(first, ""),
                _ => answer(StatusCode::FORBIDDEN, ""),
            }));
            assert_eq!(send(&client, upgrade("websocket")).await.unwrap().status(), first);
            let response = send(&client, upgrade("websocket")).await.unwrap();
            assert_eq!(matches!(outcome(&response), Some(AuthOutcome::Replayed)), helped, "{first}");
            assert_eq!(world.token_requests(), if helped { 3 } else { 2 }, "{first}");
        }
    })
    .await;
}

// Expectations.

#[tokio::test(start_paused = true)]
async fn an_expectation_goes_out_with_the_request_and_with_its_replay() {
    limited(async {
        let [first, replay] = replayed(expecting(Full::<Bytes>::from("profile"))).await;
        for sent in [first, replay] {
            assert_eq!(sent.head.headers.get_all(EXPECT).iter().collect::<Vec<_>>(), ["100-continue"]);
            assert!(sent.body.contains("profile"), "{}", sent.body);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_expectation_that_failed_is_no_rejection() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let client = world.layer().layer(scripted_api(&record, |_, _| answer(StatusCode::EXPECTATION_FAILED, "no")));
        let response = send(&client, expecting(())).await.unwrap();
        assert_eq!(response.status(), StatusCode::EXPECTATION_FAILED);
        assert!(outcome(&response).is_none());
        assert_eq!(response.into_body(), "no");
        assert_eq!((record.count(), world.token_requests()), (1, 1));
    })
    .await;
}

/// A server that rejects a request instead of asking for its body has not seen any of it.
#[tokio::test(start_paused = true)]
async fn a_body_that_was_not_asked_for_is_replayed_if_it_is_in_memory_and_not_if_it_streams() {
    limited(async {
        let (in_memory, world) = refused_unread(Full::<Bytes>::from("profile")).await;
        assert_eq!(in_memory.status(), StatusCode::OK);
        assert!(matches!(outcome(&in_memory), Some(AuthOutcome::Replayed)));
        assert_eq!(world.token_requests(), 2);

        let (streaming, world) = refused_unread(ReplayBody::new(Full::<Bytes>::from("profile"))).await;
        assert_eq!(streaming.status(), StatusCode::UNAUTHORIZED);
        assert!(matches!(outcome(&streaming), Some(AuthOutcome::NotReplayable)));
        assert_eq!(world.token_requests(), 2, "for the next request");
    })
    .await;
}

// HEAD.

#[tokio::test(start_paused = true)]
async fn a_head_is_replayed_as_a_head() {
    limited(async {
        for rejection in REJECTIONS {
            let record = Record::default();
            let client = World::new().layer().layer(scripted_api(&record, move |_, number| match number {
                1 => answer(rejection, ""),
                _ => answer(StatusCode::OK, ""),
            }));
            let request = Request::head(format!("{BASE}/audience/keyspaces")).body(()).unwrap();
            let response = send(&client, request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let methods: Vec<_> = record.all().into_iter().map(|sent| sent.head.method).collect();
            assert_eq!(methods, [Method::HEAD, Method::HEAD], "{rejection}");
            assert_all_differ(&record.authorizations());
        }
    })
    .await;
}

// Trailers.

#[tokio::test(start_paused = true)]
async fn the_trailers_of_an_answer_arrive_whatever_becomes_of_the_request() {
    limited(async {
        // Accepted; rejected, without a new token; rejected, and then accepted.
        for (statuses, renews) in [([200, 200], true), ([401, 200], false), ([401, 200], true)] {
            let world = World::new();
            let layer = world.layer();
            layer.handle().warm_up().await.unwrap();
            if !renews {
                world.apsis.set_same_token_while_valid(true);
            }
            let sends = Arc::new(AtomicUsize::new(0));
            let client = layer.layer(service_fn(move |_: Request<()>| {
                let number = sends.fetch_add(1, Ordering::Relaxed);
                let response = Response::builder().status(statuses[number]);
                ready(Ok::<_, BoxError>(response.body(with_trailers(number)).unwrap()))
            }));
            let response = send(&client, get("/").map(drop)).await.unwrap();

            let number = usize::from(matches!(outcome(&response), Some(AuthOutcome::Replayed)));
            assert_eq!(number, usize::from(statuses[0] == 401 && renews));
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-number"], HeaderValue::from(number));
            assert_eq!(body.to_bytes(), "answer");
        }
    })
    .await;
}

/// The names and values of all fields count, and a field no less than what it costs to keep an empty one.
#[tokio::test(start_paused = true)]
async fn trailers_count_against_the_replay_limit() {
    const FIELD: usize = size_of::<(HeaderName, HeaderValue)>();

    limited(async {
        let long = "v".repeat(1_000);
        let many: Vec<_> = (0..10).map(|number| (format!("x-{number}"), String::new())).collect();
        for (fields, cost) in [
            (vec![("x-sum".to_owned(), long.clone())], 5 + 1_000),
            (vec![("x-sum".to_owned(), long.clone()), ("x-sum".to_owned(), long)], 2 * (5 + 1_000)),
            (vec![("n".repeat(500), "1".to_owned())], 501),
            (many, 10 * FIELD),
        ] {
            let data = "x".repeat(FIELD);
            let body = || Flow::new([Ok(Frame::data(data.clone().into())), Ok(Frame::trailers(headers(&fields)))]);
            let cost = data.len() + cost;
            assert!(is_replayed_within(cost, ReplayBody::new(body())).await, "{cost} bytes");
            assert!(!is_replayed_within(cost - 1, ReplayBody::new(body())).await, "{cost} bytes");
        }
    })
    .await;
}

// A caller's own credentials.

#[tokio::test(start_paused = true)]
async fn a_callers_own_authorization_is_replaced_wherever_it_stands_and_the_other_fields_stay_as_they_are() {
    limited(async {
        for position in 0..=3 {
            for own in [&["Basic b3du"][..], &["Bearer own", "Digest x", ""]] {
                for name in ["authorization", "Authorization", "AUTHORIZATION"] {
                    let mut said = FIELDS.to_vec();
                    said.splice(position..position, own.iter().map(|own| (name, *own)));
                    let [first, replay] = replayed(with_headers(headers(&said))).await;

                    for sent in [&first, &replay] {
                        let all: Vec<_> = sent.head.headers.get_all(AUTHORIZATION).iter().collect();
                        assert!(all.len() == 1 && all[0].is_sensitive(), "{all:?}");
                        assert!(sent.authorization().starts_with("Bearer ey"));
                        assert_eq!(without_authorization(&sent.head.headers), without_authorization(&headers(&FIELDS)));
                    }
                    assert_ne!(first.authorization(), replay.authorization());
                }
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_callers_other_credentials_are_left_alone() {
    limited(async {
        let said = [("proxy-authorization", "Basic cA=="), ("cookie", "a=1"), ("cookie", "b=2"), ("x-api-key", "k")];
        for sent in replayed(with_headers(headers(&said))).await {
            assert_eq!(sent.head.headers[PROXY_AUTHORIZATION], "Basic cA==");
            assert_eq!(sent.head.headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
            assert_eq!(without_authorization(&sent.head.headers), without_authorization(&headers(&said)));
        }
    })
    .await;
}

// Bodies that fail half-way.

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_half_way_is_the_clients_own_error_and_nothing_of_the_tokens() {
    limited(async {
        let world = World::new();
        let layer = world.layer();
        let sends = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sends);
        // Cold, and with a token at hand.
        for number in 1..=2 {
            let client = layer.layer(reading(Arc::clone(&count)));
            let failing = Flow::new([Ok(Frame::data("half".into())), Err("the disk is gone")]);
            let error = send(&client, post(ReplayBody::new(failing))).await.unwrap_err();
            let error = error.downcast::<ClientError>().expect("as the client gave it");
            assert_eq!(error.0.to_string(), "the disk is gone");
            assert_eq!((sends.load(Ordering::Relaxed), world.token_requests()), (number, 1));
        }
        let whole = Flow::new([Ok(Frame::data("whole".into()))]);
        let response = send(&layer.layer(reading(count)), post(ReplayBody::new(whole))).await.unwrap();
        assert!(outcome(&response).is_none());
        assert_eq!(layer.handle().get().await.unwrap().generation(), 1);
        assert_eq!((sends.load(Ordering::Relaxed), world.token_requests()), (3, 1));
    })
    .await;
}

/// A replay may fail where the first sending did not; then the error is what there is to tell.
#[tokio::test(start_paused = true)]
async fn a_replay_that_fails_on_its_way_is_the_clients_own_error_too() {
    limited(async {
        let world = World::new();
        let sends = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sends);
        let client = world.layer().layer(service_fn(move |_: Request<()>| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            ready(if number == 0 { Ok(answer(StatusCode::UNAUTHORIZED, "")) } else { Err(ClientError("gone".into())) })
        }));
        let error = send(&client, post(())).await.unwrap_err();
        assert_eq!(error.downcast::<ClientError>().unwrap().0.to_string(), "gone");
        assert_eq!((sends.load(Ordering::Relaxed), world.token_requests()), (2, 2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rejection_that_comes_before_the_body_fails_is_returned_and_nothing_is_replayed() {
    limited(async {
        let (world, sends) = (World::new(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&sends);
        let client = world.layer().layer(service_fn(move |request: Request<ReplayBody<Flow>>| {
            count.fetch_add(1, Ordering::Relaxed);
            async {
                // It answers after the first frame, and the rest of the body is on its way still.
                let mut body = request.into_body();
                body.frame().await.unwrap()?;
                let rest = tokio::spawn(async move { body.frame().await.unwrap().unwrap_err() });
                let mut rejection = answer(StatusCode::UNAUTHORIZED, "early");
                rejection.extensions_mut().insert(Arc::new(Mutex::new(Some(rest))));
                Ok::<_, BoxError>(rejection)
            }
        }));
        let failing = Flow::new([Ok(Frame::data("half".into())), Err("the disk is gone")]);
        let response = send(&client, post(ReplayBody::new(failing))).await.unwrap();

        assert!(matches!(outcome(&response), Some(AuthOutcome::NotReplayable)));
        let rest: &Arc<Mutex<Option<tokio::task::JoinHandle<BoxError>>>> = response.extensions().get().unwrap();
        let rest = rest.lock().unwrap().take().unwrap();
        assert_eq!(rest.await.unwrap().to_string(), "the disk is gone");
        sleep(Duration::from_secs(1)).await;
        assert_eq!((sends.load(Ordering::Relaxed), world.token_requests()), (1, 2));
        assert_eq!(response.into_body(), "early");
    })
    .await;
}

// Header maps that are full.

#[tokio::test(start_paused = true)]
async fn a_request_without_room_for_the_token_fails_unsent_and_the_token_stays() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let layer = world.layer();
        let client = layer.layer(scripted_api(&record, |_, _| answer(StatusCode::OK, "")));
        // Cold, and with a token at hand. An `Authorization` of its own makes no room: the map grows before it looks.
        for own in [0, 0, 1, 3] {
            let error = send(&client, with_headers(full(own))).await.unwrap_err();
            let error = error.downcast::<AuthError>().unwrap();
            assert!(matches!(*error, AuthError::TooManyHeaders), "{error:?}");
            assert!(!error.is_retryable() && error.retry_at().is_none());
            assert!(error.to_string().contains("header fields") && error.to_string().contains("authorization"));
        }
        assert_eq!((record.count(), world.token_requests()), (0, 1));
        send(&client, post(())).await.unwrap();
        assert_eq!(layer.handle().get().await.unwrap().generation(), 1);
        assert_eq!((record.count(), world.token_requests()), (1, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_with_room_for_just_the_token_is_sent_and_replayed() {
    limited(async {
        let headers = full_but_one();
        for sent in replayed(with_headers(headers.clone())).await {
            assert_eq!(without_authorization(&sent.head.headers), without_authorization(&headers));
            assert!(sent.head.headers.clone().try_append("x-one-more", HeaderValue::from_static("")).is_err());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn out_of_scope_a_full_map_passes_as_it_is() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let client = world.layer().layer(scripted_api(&record, |_, _| answer(StatusCode::OK, "")));
        let mut request = with_headers(full(0));
        *request.uri_mut() = Uri::from_static("https://elsewhere.example/");
        send(&client, request).await.unwrap();
        let [sent] = one(&record);
        assert!(sent.head.headers == full(0));
    })
    .await;
}

/// As tower's own middleware does: who got ready and was not called keeps what it got ready with, for the next call.
#[tokio::test(start_paused = true)]
async fn a_service_that_was_not_called_for_lack_of_room_is_ready_for_the_next_call() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let layer = world.layer();
        layer.handle().warm_up().await.unwrap();
        let api = scripted_api(&record, |_, _| answer(StatusCode::OK, ""));
        let mut client = layer.layer(ConcurrencyLimit::new(api, 1));
        let another = client.clone();

        client.ready().await.unwrap().call(with_headers(full(0))).await.unwrap_err();
        let moment = Duration::from_secs(1);
        assert!(timeout(moment, send(&another, post(()))).await.is_err(), "the one permit is taken");
        let response = timeout(moment, async { client.ready().await.unwrap().call(post(())).await }).await;
        assert_eq!(response.expect("no second permit is needed").unwrap().status(), StatusCode::OK);
        timeout(moment, send(&another, post(()))).await.expect("the permit is free again").unwrap();

        client.ready().await.unwrap().call(with_headers(full(0))).await.unwrap_err();
        drop(client);
        timeout(moment, send(&another, post(()))).await.expect("it goes with the service").unwrap();
        assert_eq!(record.count(), 3);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_and_then_has_no_room_holds_no_permit() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        world.apsis.set_token_delay(Duration::from_secs(1));
        let api = scripted_api(&record, |_, _| answer(StatusCode::OK, ""));
        let mut client = world.layer().layer(ConcurrencyLimit::new(api, 1));
        let another = client.clone();
        let error = client.ready().await.unwrap().call(with_headers(full(0))).await.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(AuthError::TooManyHeaders)));
        timeout(Duration::from_secs(1), send(&another, post(()))).await.expect("the permit is free").unwrap();
    })
    .await;
}

// Other odd requests.

#[tokio::test(start_paused = true)]
async fn whatever_form_a_request_has_it_is_replayed_in_that_form() {
    limited(async {
        let long = format!("{BASE}/{}", "x".repeat(usize::from(u16::MAX) - 1 - BASE.len() - 1));
        let forms: [(Method, &str); 7] = [
            (Method::OPTIONS, "*"),
            (Method::OPTIONS, BASE),
            (Method::GET, BASE),
            (Method::GET, "https://api.apsis.one?q"),
            (Method::GET, "/"),
            (Method::from_bytes(b"BREW").unwrap(), "/pot?"),
            (Method::TRACE, &long),
        ];
        for (method, uri) in forms {
            for version in VERSIONS {
                let request = Request::builder().method(&method).uri(uri).version(version).body(()).unwrap();
                let text = request.uri().to_string();
                for sent in replayed(request).await {
                    assert_eq!((&sent.head.method, sent.head.version), (&method, version));
                    assert_eq!(sent.head.uri.to_string(), text);
                }
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn extensions_are_cloned_for_the_replay_and_no_more_often() {
    #[derive(Debug)]
    struct Counting(Arc<AtomicUsize>);

    impl Clone for Counting {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            Self(Arc::clone(&self.0))
        }
    }

    limited(async {
        let (world, clones) = (World::new(), Arc::new(AtomicUsize::new(0)));
        let (arrived, sends) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
        let (seen, sends) = (Arc::clone(&arrived), Arc::new(sends));
        let client = world.layer().layer(service_fn(move |request: Request<()>| {
            assert!(request.extensions().get::<Counting>().is_some());
            seen.fetch_add(1, Ordering::Relaxed);
            let status = [StatusCode::UNAUTHORIZED, StatusCode::OK][sends.fetch_add(1, Ordering::Relaxed)];
            ready(Ok::<_, BoxError>(answer(status, "")))
        }));
        let mut request = post(());
        request.extensions_mut().insert(Counting(Arc::clone(&clones)));
        send(&client, request).await.unwrap();
        assert_eq!((arrived.load(Ordering::Relaxed), clones.load(Ordering::Relaxed)), (2, 1));
    })
    .await;
}

/// Whatever is asked, and whatever is answered.
#[tokio::test(start_paused = true)]
async fn odd_requests_and_odd_answers_end_in_an_answer_that_the_api_gave_or_in_an_error_with_a_name() {
    limited(async {
        let mut tally = Tally::default();
        for seed in 0..250 {
            let rng = &mut Rng::with_seed(seed);
            match rng.u8(0..6) {
                0 => odd_exchange(seed, rng, Empty::new(), &mut tally).await,
                1 => odd_exchange(seed, rng, "body".to_owned(), &mut tally).await,
                2 => odd_exchange(seed, rng, Full::from("body"), &mut tally).await,
                3 => {
                    let body = Once::new(Flow::random(rng));
                    odd_exchange(seed, rng, body, &mut tally).await;
                }
                _ => {
                    let body = ReplayBody::new(Flow::random(rng));
                    odd_exchange(seed, rng, body, &mut tally).await;
                }
            }
        }
        let Tally { replayed, rejected, out_of_scope, without_room, broken, accepted } = tally;
        for count in [replayed, rejected, out_of_scope, without_room, broken, accepted] {
            assert!(count >= 10, "{tally:?}: the traffic proves little");
        }
    })
    .await;
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    accepted: u32,
    replayed: u32,
    rejected: u32,
    out_of_scope: u32,
    without_room: u32,
    broken: u32,
}

async fn odd_exchange<B>(seed: u64, rng: &mut Rng, body: B, tally: &mut Tally)
where
    B: ReplayableBody + Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let world = World::new();
    let layer = world.layer();
    let (answers, own) = ([odd_answer(rng), odd_answer(rng)], "Basic b3du");
    let frames = rng.usize(0..6);
    let request = odd_request(rng, own, body);
    let has_room = request.headers().clone().try_insert(AUTHORIZATION, HeaderValue::from_static("")).is_ok();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let sent = Arc::new(Mutex::new(Vec::new()));
    let (log, given) = (Arc::clone(&sent), answers.clone());
    let client = layer.layer(service_fn(move |request: Request<B>| {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(request.headers().clone());
            log.len()
        };
        let mut response = Response::new(number);
        // A third send fails the test below, not this.
        (*response.status_mut(), *response.headers_mut()) = given[(number - 1).min(1)].clone();
        async move {
            let mut body = request.into_body();
            for _ in 0..frames {
                body.frame().await.transpose().map_err(|error| ClientError(error.into()))?;
            }
            Ok::<_, ClientError>(response)
        }
    }));

    let result = send(&client, request).await;

    let what = format!("seed {seed}: {method} {uri:.80} {:?}", answers.each_ref().map(|(status, _)| *status));
    let sent = sent.lock().unwrap();
    let bearers: Vec<_> = sent
        .iter()
        .map(|headers| headers.get_all(AUTHORIZATION).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>())
        .collect();
    assert!(sent.len() <= 2, "{what}");
    let response = match result {
        Err(error) if error.is::<ClientError>() => {
            assert_eq!(sent.len(), 1, "{what}");
            tally.broken += 1;
            return;
        }
        Err(error) => {
            assert!(matches!(error.downcast_ref(), Some(AuthError::TooManyHeaders)), "{what}: {error}");
            assert!(sent.is_empty() && !has_room, "{what}");
            tally.without_room += 1;
            return;
        }
        Ok(response) => response,
    };
    let number = *response.body();
    assert_eq!(number, sent.len(), "{what}");
    assert_eq!((response.status(), response.headers()), (answers[number - 1].0, &answers[number - 1].1), "{what}");
    if let Some(AuthOutcome::OutOfScope) = outcome(&response) {
        tally.out_of_scope += 1;
        assert!(bearers[0].iter().all(|bearer| *bearer == own), "{what}");
        assert_eq!((sent.len(), world.token_requests()), (1, 0), "{what}");
        return;
    }
    for bearers in &bearers {
        assert!(matches!(bearers[..], [bearer] if bearer.starts_with("Bearer ey")), "{what}: {bearers:?}");
    }
    assert_all_differ(&bearers);
    match outcome(&response) {
        None => tally.accepted += 1,
        Some(AuthOutcome::Replayed) => tally.replayed += 1,
        Some(AuthOutcome::NotReplayable) => tally.rejected += 1,
        Some(other) => panic!("{what}: {other:?}"),
    }
    assert_eq!(matches!(outcome(&response), Some(AuthOutcome::Replayed)), sent.len() == 2, "{what}");
}

const VERSIONS: [Version; 5] = [Version::HTTP_09, Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3];

fn odd_request<B>(rng: &mut Rng, own: &'static str, body: B) -> Request<B> {
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "!#$%&'*"];
    let long = format!("{BASE}/{}", "%7E".repeat(20_000));
    let uris = [
        "*",
        "/",
        "//",
        "/?",
        BASE,
        "https://api.apsis.one?",
        "https://API.apsis.one:443//..//%00?#",
        "https://api.apsis.one:99999/",
        "https://u:p@api.apsis.one/",
        "https://[::1]:1/",
        "api.apsis.one",
        "api.apsis.one:443",
        "ftp://api.apsis.one/",
        long.as_str(),
    ];
    let mut request = Request::builder()
        .method(*rng.choice(&methods).unwrap())
        .uri(*rng.choice(&uris).unwrap())
        .version(*rng.choice(&VERSIONS).unwrap());
    let headers = request.headers_mut().unwrap();
    if rng.u8(0..10) == 0 {
        headers.clone_from(&full(if rng.bool() { 0 } else { rng.usize(1..3) }));
        for value in headers.iter_mut().filter(|(name, _)| **name == AUTHORIZATION).map(|(_, value)| value) {
            *value = HeaderValue::from_static(own);
        }
    } else {
        for _ in 0..rng.usize(0..8) {
            let names = ["host", "expect", "upgrade", "connection", "te", "content-length", "x-odd"];
            headers.append(*rng.choice(&names).unwrap(), junk(rng));
        }
        for _ in 0..rng.usize(0..3) {
            headers.append(AUTHORIZATION, HeaderValue::from_static(own));
        }
        if rng.bool() {
            headers.remove("host");
        }
    }
    request.body(body).unwrap()
}

/// Rejections are the most of them.
fn odd_answer(rng: &mut Rng) -> (StatusCode, HeaderMap) {
    let any = rng.u16(100..1_000);
    let status = rng.choice([401, 401, 403, 403, 101, 417, any]).unwrap();
    let mut headers = HeaderMap::new();
    for name in ["content-type", "x-amzn-errortype", "www-authenticate", "date", "retry-after"] {
        for _ in 0..rng.usize(0..5).saturating_sub(3) {
            headers.append(name, junk(rng));
        }
    }
    (StatusCode::from_u16(status).unwrap(), headers)
}

/// Anything that a field may hold, of any encoding, and what is almost something.
fn junk(rng: &mut Rng) -> HeaderValue {
    let almost = ["", ":", ";", "application/problem+json", "AccessDenied:", "api.apsis.one", "[", "@", "a:b@c:d"];
    if rng.bool() {
        return HeaderValue::from_static(rng.choice(almost).unwrap());
    }
    let bytes: Vec<_> = (0..rng.usize(0..20)).map(|_| rng.u8(0x20..)).filter(|&byte| byte != 0x7f).collect();
    HeaderValue::from_bytes(&bytes).unwrap()
}

// Helpers.

/// What an inner client puts into the extensions of an answer, for `hyper::upgrade::on` and its like.
#[derive(Clone, Debug, PartialEq)]
struct Tunnel;

fn tunnel(status: StatusCode) -> Response<String> {
    let mut response = answer(status, "");
    response.extensions_mut().insert(Tunnel);
    response
}

fn upgrade(protocol: &str) -> Request<()> {
    let request = Request::get(format!("{BASE}/chat")).header(CONNECTION, "upgrade").header(UPGRADE, protocol);
    request.body(()).unwrap()
}

fn expecting<B>(body: B) -> Request<B> {
    Request::post(format!("{BASE}/audience/profiles")).header(EXPECT, "100-continue").body(body).unwrap()
}

fn post<B>(body: B) -> Request<B> {
    Request::post(format!("{BASE}/audience/profiles")).body(body).unwrap()
}

fn with_headers(headers: HeaderMap) -> Request<()> {
    let mut request = post(());
    *request.headers_mut() = headers;
    request
}

const FIELDS: [(&str, &str); 3] = [("x-b", "2"), ("content-type", "text/plain"), ("x-a", "1")];

fn headers<T: AsRef<str>>(fields: &[(T, T)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name.as_ref().parse::<HeaderName>().unwrap(), value.as_ref().parse().unwrap());
    }
    headers
}

/// The fields but for ours, in their order.
fn without_authorization(headers: &HeaderMap) -> Vec<(&HeaderName, &HeaderValue)> {
    headers.iter().filter(|(name, _)| **name != AUTHORIZATION).collect()
}

/// A map that takes no further field, and has so many `authorization`s of the caller's own.
fn full(own: usize) -> HeaderMap {
    static FULL: OnceLock<[HeaderMap; 4]> = OnceLock::new();
    FULL.get_or_init(|| {
        std::array::from_fn(|own| {
            let mut headers = HeaderMap::new();
            for _ in 0..own {
                headers.append(AUTHORIZATION, HeaderValue::from_static("Basic b3du"));
            }
            fill(&mut headers);
            headers
        })
    })[own]
        .clone()
}

fn full_but_one() -> HeaderMap {
    let mut headers = full(0);
    headers.remove("x-0").unwrap();
    headers
}

fn fill(headers: &mut HeaderMap) {
    let fits = |headers: &mut HeaderMap, number| {
        let name: HeaderName = format!("x-{number}").parse().unwrap();
        headers.try_append(name, HeaderValue::from(number)).is_ok()
    };
    let first_without = (0..40_000).find(|&number: &u32| !fits(headers, number)).unwrap();
    assert!(first_without > 10_000 && !fits(headers, first_without), "it is full");
}

/// What arrives, the first time and the second, at an API that rejects the first.
async fn replayed<B: ReplayableBody + fmt::Debug>(request: Request<B>) -> [Sent; 2] {
    let record = Record::default();
    let client = World::new().layer().layer(scripted_api(&record, |_, number| match number {
        1 => answer(StatusCode::UNAUTHORIZED, ""),
        _ => answer(StatusCode::OK, ""),
    }));
    let response = send(&client, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(matches!(outcome(&response), Some(AuthOutcome::Replayed)));
    assert_all_differ(&record.authorizations());
    <[Sent; 2]>::try_from(record.all()).unwrap_or_else(|all| panic!("{} sends", all.len()))
}

/// What becomes of a request that is rejected before anybody asks for its body, a second later.
async fn refused_unread<B: ReplayableBody>(body: B) -> (Response<String>, World) {
    let (world, sends) = (World::new(), Arc::new(AtomicUsize::new(0)));
    let client = world.layer().layer(service_fn(move |_: Request<B>| {
        let status = [StatusCode::UNAUTHORIZED, StatusCode::OK][sends.fetch_add(1, Ordering::Relaxed)];
        ready(Ok::<_, BoxError>(answer(status, "")))
    }));
    let response = send(&client, expecting(body)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    (response, world)
}

async fn is_replayed_within(limit: usize, body: ReplayBody<Flow>) -> bool {
    let sends = Arc::new(AtomicUsize::new(0));
    let layer = World::new().builder().replay_limit(limit).build().unwrap();
    let client = layer.layer(service_fn(move |request: Request<ReplayBody<Flow>>| {
        let status = [StatusCode::UNAUTHORIZED, StatusCode::OK][sends.fetch_add(1, Ordering::Relaxed)];
        async move {
            request.into_body().collect().await?;
            Ok::<_, BoxError>(answer(status, ""))
        }
    }));
    matches!(outcome(&send(&client, post(body)).await.unwrap()), Some(AuthOutcome::Replayed))
}

/// A client that reads a body to its end, and has an error of its own.
fn reading(
    sends: Arc<AtomicUsize>,
) -> impl Service<Request<ReplayBody<Flow>>, Response = Response<String>, Error = ClientError> + Clone {
    service_fn(move |request: Request<ReplayBody<Flow>>| {
        sends.fetch_add(1, Ordering::Relaxed);
        async {
            request.into_body().collect().await.map_err(ClientError)?;
            Ok(answer(StatusCode::OK, ""))
        }
    })
}

/// The error of an HTTP client.
#[derive(Debug)]
struct ClientError(BoxError);

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client failed")
    }
}

impl Error for ClientError {}

/// A body that gives one frame after the other, and may fail.
#[derive(Debug)]
struct Flow(VecDeque<Result<Frame<Bytes>, &'static str>>);

impl Flow {
    fn new(frames: impl Into<VecDeque<Result<Frame<Bytes>, &'static str>>>) -> Self {
        Self(frames.into())
    }

    fn random(rng: &mut Rng) -> Self {
        let frame = |rng: &mut Rng| match rng.u8(0..8) {
            0 => Err("the disk is gone"),
            1 => Ok(Frame::trailers(headers(&FIELDS))),
            _ => Ok(Frame::data(vec![b'x'; rng.usize(0..50)].into())),
        };
        Self((0..rng.usize(0..5)).map(|_| frame(rng)).collect())
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop_front().map(|frame| frame.map_err(Into::into)))
    }
}

fn outcome<B>(response: &Response<B>) -> Option<&AuthOutcome> {
    response.extensions().get()
}

fn one(record: &Record) -> [Sent; 1] {
    <[Sent; 1]>::try_from(record.all()).unwrap_or_else(|all| panic!("{} sends", all.len()))
}

fn assert_all_differ<T: PartialEq + fmt::Debug>(all: &[T]) {
    for (number, one) in all.iter().enumerate() {
        assert!(!all[..number].contains(one), "{all:?}");
    }
}

/// An answer with its number in its trailers.
fn with_trailers(number: usize) -> impl Body<Data = Bytes, Error = std::convert::Infallible> {
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-number"), HeaderValue::from(number))]);
    Full::<Bytes>::from("answer").with_trailers(ready(Some(Ok(trailers))))
}
