//! Connections that are reset, half-open, told to go away or cut on the way, and certificates that are not good.

use std::{
    collections::HashMap,
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use apsis_auth::{
    ApsisAuth, AuthOutcome,
    emulator::{EmulatorError, EmulatorServer},
};
use fastrand::Rng;
use http::{HeaderValue, Request, Version, header::AUTHORIZATION, request};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    net::tcp::{ReadHalf, WriteHalf},
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use super::{
    clients::{HttpsClient, tls_config},
    *,
};

type Change = fn(&mut CertificateParams);
type Pool = Client<HttpConnector, Full<Bytes>>;

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];
const KEYSPACE: &str = "com.apsis1.keyspaces.email";
const STAGES: [Stage; 4] = [Stage::Accepted, Stage::InRequest, Stage::InHead, Stage::InBody];

// The token endpoint.

#[tokio::test]
async fn a_token_request_that_is_reset_at_any_stage_is_followed_by_one_that_is_served() {
    limited(async {
        let mut flights = JoinSet::new();
        for stage in STAGES {
            flights.spawn(async move {
                let (listener, addr) = listen().await;
                let server = tokio::spawn(async move {
                    reset_at(stage, &listener).await;
                    serve_once(&listener, &answer("200 OK", TOKEN)).await;
                });
                let token = builder(&format!("http://{addr}")).build().unwrap().handle();
                assert_eq!(token.get().await.unwrap().expose_secret(), "a-token", "{stage:?}");
                assert_eq!(token.snapshot().attempts_left, 2, "{stage:?}: both are counted");
                server.await.unwrap();
            });
        }
        flights.join_all().await;
    })
    .await;
}

#[tokio::test]
async fn a_flight_whose_every_attempt_is_reset_says_so_and_its_attempts_count() {
    limited(async {
        let mut flights = JoinSet::new();
        for stage in STAGES {
            flights.spawn(async move {
                let (listener, addr) = listen().await;
                let server = tokio::spawn(async move {
                    reset_at(stage, &listener).await;
                    reset_at(stage, &listener).await;
                    listener
                });
                let token = builder(&format!("http://{addr}")).token_requests_per_minute(2).build().unwrap().handle();
                let error = token.get().await.unwrap_err();
                assert!(matches!(error, AuthError::Unavailable { .. }), "{stage:?}: {error:?}");
                let said = chain(&error);
                assert!(
                    ["reset", "closed", "broken pipe"].iter().any(|word| said.to_lowercase().contains(word)),
                    "{said}"
                );
                assert_eq!(said.contains("broke off"), matches!(stage, Stage::InBody), "{stage:?}: {said}");
                assert_eq!(token.snapshot().attempts_left, 0, "{stage:?}");
                // The budget is used up for a minute, and who asks now hears of the same.
                assert_eq!(chain(&token.get().await.unwrap_err()), said);
                assert!(!somebody_calls(server.await.unwrap()), "{stage:?}: it came a third time");
            });
        }
        flights.join_all().await;
    })
    .await;
}

/// As after a machine that is gone, or a firewall that forgot the connection: no byte, no end.
#[tokio::test]
async fn a_half_open_connection_ends_with_the_time_of_its_attempt() {
    let plain = async {
        let (listener, addr) = listen().await;
        let forgetful = tokio::spawn(async move { listener.accept().await.unwrap() });
        let token = hurried(addr);
        assert_too_late(&token).await;
        assert_eq!(token.snapshot().attempts_left, 3);
        drop(forgetful.await.unwrap());
    };
    let over_tls = async {
        let ((listener, addr), certified) = (listen().await, Certified::with(|_| {}));
        let transport = HttpsTransport::trusting(certified.pem.as_bytes()).unwrap();
        let forgetful =
            tokio::spawn(async move { certified.acceptor.accept(listener.accept().await.unwrap().0).await });
        let builder = builder(&format!("https://localhost:{}", addr.port())).transport(transport);
        let token = builder.attempt_timeout(MOMENT).flight_timeout(2 * MOMENT).build().unwrap().handle();
        assert_too_late(&token).await;
        drop(forgetful.await.unwrap());
    };
    limited(async { tokio::join!(plain, over_tls) }).await;
}

#[tokio::test]
async fn a_half_open_connection_is_followed_by_one_that_is_served() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let _forgotten = listener.accept().await.unwrap();
            serve_all(&listener, &answer("200 OK", TOKEN)).await;
        });
        let token = builder(&format!("http://{addr}")).attempt_timeout(MOMENT).build().unwrap().handle();
        token.get().await.unwrap();
        // On a busy machine it may take a third one.
        assert!(token.snapshot().attempts_left <= 2, "both are counted");
        server.abort();
    })
    .await;
}

// Certificates.

#[tokio::test]
async fn a_certificate_that_is_no_good_gets_no_secret_and_the_error_says_in_words_what_is_wrong() {
    let past = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let future = |params: &mut CertificateParams| params.not_before = date_time_ymd(3020, 1, 1);
    let elsewhere = |params: &mut CertificateParams| {
        params.subject_alt_names = CertificateParams::new(["elsewhere.example".to_owned()]).unwrap().subject_alt_names;
    };
    limited(async {
        let cases: [(&[&str], Change); 3] = [
            (&["certificate expired"], past),
            (&["certificate not valid yet"], future),
            (&["certificate not valid for name \"localhost\"", "elsewhere.example"], elsewhere),
        ];
        for (words, change) in cases {
            let certified = Certified::with(change);
            let transport = HttpsTransport::trusting(certified.pem.as_bytes()).unwrap();
            let (listener, addr) = listen().await;
            let server = tokio::spawn(async move {
                let (socket, _) = listener.accept().await.unwrap();
                certified.acceptor.accept(socket).await
            });
            let builder = builder(&format!("https://localhost:{}", addr.port())).transport(transport);
            let token = builder.token_requests_per_minute(1).build().unwrap().handle();
            let error = token.get().await.unwrap_err();

            assert!(matches!(error, AuthError::Unavailable { .. }), "{error:?}");
            let said = chain(&error);
            for word in words {
                assert!(said.contains(word), "{said}");
            }
            // Without a handshake there is nothing to send a secret through.
            server.await.unwrap().unwrap_err();
        }
    })
    .await;
}

// The API.

#[tokio::test]
async fn a_reset_on_the_way_to_the_api_is_the_clients_error_and_costs_no_token() {
    limited(async {
        for (version, stage) in VERSIONS.into_iter().flat_map(|version| STAGES.map(|stage| (version, stage))) {
            let (listener, addr) = listen().await;
            let (apsis, cut) = (Emulator::new(), Arc::new(Notify::new()));
            tokio::spawn({
                let (apsis, cut) = (apsis.clone(), Arc::clone(&cut));
                async move {
                    reset_api_at(stage, &listener, &apsis, &cut).await;
                    serve(&listener, apsis, &cut).await;
                }
            });
            let auth = token_of(&apsis, &format!("http://{addr}")).transport(apsis.clone()).build().unwrap();
            let client = auth.layer(pool(version));

            let calling = tokio::spawn(call(&client, addr));
            if matches!(stage, Stage::InHead) {
                until(|| apsis.counters().api_requests == 1).await;
                cut.notify_one();
            }
            let error = match calling.await.unwrap() {
                Ok(response) => {
                    let mut body = response.into_body();
                    body.frame().await.unwrap().unwrap();
                    cut.notify_one();
                    body.collect().await.unwrap_err().into()
                }
                Err(error) => error,
            };
            assert_eq!(error.is::<hyper::Error>(), matches!(stage, Stage::InBody), "{version:?} {stage:?}: {error:?}");
            assert_ne!(error.is::<legacy::Error>(), matches!(stage, Stage::InBody), "{version:?} {stage:?}: {error:?}");

            let response = call(&client, addr).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{version:?} {stage:?}");
            assert!(response.extensions().get::<AuthOutcome>().is_none(), "{version:?} {stage:?}");
            assert_eq!(auth.handle().get().await.unwrap().generation(), 1);
            assert_eq!(apsis.counters().token_requests, 1);
        }
    })
    .await;
}

/// From here on the outcome is the replay's, which needs nothing of what the rejection came by.
#[tokio::test]
async fn a_rejection_that_is_cut_off_during_the_renewal_is_replayed_over_another_connection() {
    limited(async {
        for version in VERSIONS {
            let (listener, addr) = listen().await;
            let (apsis, cut, permits) = (Emulator::new(), Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
            let server = tokio::spawn({
                let (apsis, cut, permits) = (apsis.clone(), Arc::clone(&cut), Arc::clone(&permits));
                async move {
                    serve(&listener, service_fn(half_a_rejection), &cut).await;
                    permits.add_permits(1);
                    serve(&listener, apsis, &cut).await;
                }
            });
            let tokens = apsis.serve().await.unwrap();
            let auth = token_of_further(&apsis, &tokens, addr).transport(permitted(&permits)).build().unwrap();
            let client = auth.layer(pool(version));
            auth.handle().warm_up().await.unwrap();
            let calling = tokio::spawn(call(&client, addr));
            until(|| auth.handle().snapshot().in_flight).await;
            cut.notify_one();

            let response = calling.await.unwrap().unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{version:?}");
            assert!(is_replayed(&response));
            assert_eq!((apsis.counters().token_requests, apsis.counters().api_requests), (2, 1));
            server.abort();
        }
    })
    .await;
}

/// By HTTP/1 a rejection that is not read to its end takes its connection with it, and the replay has its own. By HTTP/2
/// both are streams of one connection, and an end of that is an end of the replay.
#[tokio::test]
async fn a_connection_of_a_rejection_that_is_reset_during_the_replay_fails_the_replay_if_both_share_it() {
    limited(async {
        for version in VERSIONS {
            let (listener, addr) = listen().await;
            let (apsis, cut) = (Emulator::new(), Arc::new(Notify::new()));
            let sent = Arc::new(AtomicUsize::new(0));
            let api = service_fn({
                let (cut, sent, apsis) = (Arc::clone(&cut), Arc::clone(&sent), apsis.clone());
                move |request: Request<Incoming>| {
                    let (cut, sent, apsis) = (Arc::clone(&cut), Arc::clone(&sent), apsis.clone());
                    async move {
                        match (sent.fetch_add(1, Relaxed), request.version()) {
                            (0, _) => return half_a_rejection(request).await,
                            (1, version) => {
                                cut.notify_one();
                                if version == Version::HTTP_2 {
                                    pending::<()>().await;
                                }
                            }
                            _ => {}
                        }
                        Ok(apsis.oneshot(request).await.unwrap().map(BodyExt::boxed_unsync))
                    }
                }
            });
            let server = tokio::spawn(async move {
                let (first, _) = listener.accept().await.unwrap();
                let first = tokio::spawn({
                    let api = api.clone();
                    async move { serve_on(first, api, &cut).await }
                });
                serve(&listener, api, &Notify::new()).await;
                first.await.unwrap();
            });
            let auth = token_of(&apsis, &format!("http://{addr}")).transport(apsis.clone()).build().unwrap();
            let client = auth.layer(pool(version));
            let outcome = call(&client, addr).await;
            if version == Version::HTTP_2 {
                let error = outcome.unwrap_err();
                assert!(error.is::<legacy::Error>(), "{error:?}");
                assert!(!is_replayed(&call(&client, addr).await.unwrap()));
            } else {
                assert!(is_replayed(&outcome.unwrap()));
            }
            // The first call was never sent a third time, and no other token was asked for.
            assert_eq!(sent.load(Relaxed), if version == Version::HTTP_2 { 3 } else { 2 });
            assert_eq!(apsis.counters().token_requests, 2);
            server.abort();
        }
    })
    .await;
}

#[tokio::test]
async fn a_rejection_that_is_cut_off_comes_back_as_far_as_it_came_where_there_is_no_newer_token() {
    limited(async {
        for version in VERSIONS {
            let (listener, addr) = listen().await;
            let (apsis, cut) = (Emulator::new(), Arc::new(Notify::new()));
            let server = tokio::spawn({
                let cut = Arc::clone(&cut);
                async move { serve(&listener, service_fn(half_a_rejection), &cut).await }
            });
            apsis.script_token_answers([Answer::genuine(), Answer::status(StatusCode::FORBIDDEN)]);
            let auth = token_of(&apsis, &format!("http://{addr}")).transport(apsis.clone()).build().unwrap();
            let response = call(&auth.layer(pool(version)), addr).await.unwrap();
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            let outcome = response.extensions().get();
            assert!(matches!(outcome, Some(AuthOutcome::NotRenewed(AuthError::Refused { .. }))), "{outcome:?}");
            cut.notify_one();
            server.await.unwrap();
            let mut body = response.into_body();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
            body.frame().await.unwrap().unwrap_err();
        }
    })
    .await;
}

// Connections that are closed in good order.

#[tokio::test]
async fn a_rejection_that_closes_its_connection_is_replayed_over_another() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let first = read_request(&mut socket).await.unwrap();
            socket.write_all(answer("401 Unauthorized\r\nconnection: close", "dead").as_bytes()).await.unwrap();
            drop(socket);
            let (mut socket, _) = listener.accept().await.unwrap();
            let second = read_request(&mut socket).await.unwrap();
            socket.write_all(answer("200 OK", "alive").as_bytes()).await.unwrap();
            [first, second]
        });
        let apsis = Emulator::new();
        let auth = token_of(&apsis, &format!("http://{addr}")).transport(apsis.clone()).build().unwrap();
        let response = auth.layer(pool(Version::HTTP_11)).oneshot(profile(addr)).await.unwrap();
        assert!(is_replayed(&response));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "alive");
        assert_same_but_for_the_token(&server.await.unwrap());
        assert_eq!(apsis.counters().token_requests, 2);
    })
    .await;
}

/// The pool has it, since the rejection came whole. It finds it closed and takes another.
#[tokio::test]
async fn a_connection_that_is_closed_between_a_rejection_and_its_replay_is_replaced_unseen() {
    limited(async {
        let (listener, addr) = listen().await;
        let (tokens, token_addr) = listen().await;
        let server = tokio::spawn(async move {
            serve_once(&tokens, &answer("200 OK", TOKEN)).await;
            let (mut socket, _) = listener.accept().await.unwrap();
            let first = read_request(&mut socket).await.unwrap();
            socket.write_all(answer("401 Unauthorized", "dead").as_bytes()).await.unwrap();
            let (mut renewing, _) = tokens.accept().await.unwrap();
            read_request(&mut renewing).await.unwrap();
            drop(socket);
            renewing.write_all(answer("200 OK", &TOKEN.replace("a-token", "another")).as_bytes()).await.unwrap();
            let (mut socket, _) = listener.accept().await.unwrap();
            let second = read_request(&mut socket).await.unwrap();
            socket.write_all(answer("200 OK", "alive").as_bytes()).await.unwrap();
            [first, second]
        });
        let builder = builder(&format!("http://{token_addr}")).further_origin(format!("http://{addr}"));
        let client = builder.build().unwrap().layer(pool(Version::HTTP_11));
        let response = client.oneshot(profile(addr)).await.unwrap();
        assert!(is_replayed(&response));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "alive");
        assert_same_but_for_the_token(&server.await.unwrap());
    })
    .await;
}

/// It may have had its effect, so nobody sends it a third time.
#[tokio::test]
async fn a_connection_that_is_closed_when_the_replay_has_come_is_the_clients_error() {
    limited(async {
        let (listener, addr) = listen().await;
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let first = read_request(&mut socket).await.unwrap();
            socket.write_all(answer("401 Unauthorized", "dead").as_bytes()).await.unwrap();
            let second = read_request(&mut socket).await.unwrap();
            drop(socket);
            (listener, [first, second])
        });
        let apsis = Emulator::new();
        let auth = token_of(&apsis, &format!("http://{addr}")).transport(apsis.clone()).build().unwrap();
        let client = auth.layer(pool(Version::HTTP_11));
        let error = client.clone().oneshot(profile(addr)).await.unwrap_err();
        assert!(error.is::<legacy::Error>(), "{error:?}");
        let (listener, sent) = server.await.unwrap();
        assert_same_but_for_the_token(&sent);

        let server = tokio::spawn(async move { serve_once(&listener, &answer("200 OK", "alive")).await });
        let response = client.oneshot(profile(addr)).await.unwrap();
        assert!(response.extensions().get::<AuthOutcome>().is_none());
        server.await.unwrap();
        assert_eq!(apsis.counters().token_requests, 2);
    })
    .await;
}

#[tokio::test]
async fn who_is_told_to_go_away_while_waiting_for_a_renewal_is_replayed_over_another_connection() {
    limited(async {
        let (listener, addr) = listen().await;
        let (apsis, go_away, permits) = (emulator(), Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
        let server = tokio::spawn({
            let (apsis, go_away, permits) = (apsis.clone(), Arc::clone(&go_away), Arc::clone(&permits));
            async move {
                serve_until_told(&listener, apsis.clone(), &go_away).await;
                permits.add_permits(1);
                serve_until_told(&listener, apsis, &go_away).await;
                listener
            }
        });
        let tokens = apsis.serve().await.unwrap();
        let auth = token_of_further(&apsis, &tokens, addr).transport(permitted(&permits)).build().unwrap();
        let client = auth.layer(pool(Version::HTTP_2));
        assert_eq!(call(&client, addr).await.unwrap().status(), StatusCode::OK);

        apsis.revoke_tokens();
        let mut callers = JoinSet::new();
        for _ in 0..20 {
            callers.spawn(call(&client, addr));
        }
        until(|| apsis.counters().api_rejected == 20).await;
        go_away.notify_one();
        for response in callers.join_all().await {
            let response = response.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert!(is_replayed(&response));
        }
        // The first, 20 twice.
        assert_eq!((apsis.counters().api_requests, apsis.counters().token_requests), (41, 2));
        go_away.notify_one();
        assert!(!somebody_calls(server.await.unwrap()), "two connections were enough");
    })
    .await;
}

/// As many streams of one connection, each of them open when the token dies.
#[tokio::test]
async fn a_thousand_streams_of_one_connection_outlive_their_token() {
    const STREAMS: usize = 1_000;

    limited(async {
        let (apsis, certified) = (emulator(), Certified::with(|_| {}));
        let (listener, addr) = listen().await;
        let all_are_here = Arc::new(Semaphore::new(0));
        let api = service_fn({
            let (apsis, all_are_here, arrived) =
                (apsis.clone(), Arc::clone(&all_are_here), Arc::new(AtomicUsize::new(0)));
            move |request: Request<Incoming>| {
                let (apsis, all_are_here) = (apsis.clone(), Arc::clone(&all_are_here));
                let place = arrived.fetch_add(1, Relaxed);
                async move {
                    match place {
                        // Opens the connection.
                        0 => {}
                        STREAMS => all_are_here.add_permits(STREAMS / 2),
                        _ => {}
                    }
                    if (1..=STREAMS).contains(&place) {
                        all_are_here.acquire().await.unwrap().forget();
                    }
                    apsis.oneshot(request).await
                }
            }
        });
        let http_client = certified.http_client();
        let server = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let socket = certified.acceptor.accept(socket).await.unwrap();
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(2 * u32::try_from(STREAMS).unwrap());
            builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(api)).await.unwrap();
            listener
        });
        let base = format!("https://localhost:{}", addr.port());
        let (auth, sent) = (token_of(&apsis, &base).transport(apsis.clone()).build().unwrap(), Sent::default());
        let client = ServiceBuilder::new().layer(auth).map_request(sent.noting()).service(http_client);
        let call = |number: usize| {
            let request = Request::get(format!("{base}/audience/keyspaces")).header(CALL, number);
            client.clone().oneshot(request.body(Full::<Bytes>::default()).unwrap())
        };
        assert_eq!(call(0).await.unwrap().status(), StatusCode::OK);

        let mut callers = JoinSet::new();
        for number in 1..=STREAMS {
            callers.spawn(call(number));
        }
        // One half is answered, and then the token dies.
        until(|| apsis.counters().api_accepted == 1 + STREAMS as u64 / 2).await;
        apsis.revoke_tokens();
        all_are_here.add_permits(STREAMS / 2);
        for response in callers.join_all().await {
            let response = response.unwrap();
            assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
            response.into_body().collect().await.unwrap();
        }
        assert_eq!(apsis.counters().token_requests, 2);
        assert_eq!(apsis.counters().api_rejected, STREAMS as u64 / 2);
        assert_eq!(sent.assert_no_token_twice(), 1 + STREAMS + STREAMS / 2);
        drop(client);
        assert!(!somebody_calls(server.await.unwrap()), "one connection was enough");
    })
    .await;
}

// A proxy that cuts and delays.

#[tokio::test]
async fn through_a_proxy_that_cuts_and_delays_no_yes_is_a_lie_and_no_request_is_sent_twice_with_one_token() {
    limited(async {
        tokio::join!(assert_survives_a_bad_proxy(Version::HTTP_11, 1), assert_survives_a_bad_proxy(Version::HTTP_2, 2));
    })
    .await;
}

async fn assert_survives_a_bad_proxy(version: Version, seed: u64) {
    const CALLS: usize = 300;
    const CALLERS: usize = 10;
    const TRIES: usize = 5;
    const BUDGET: u32 = 10;

    let apsis = emulator();
    let server = apsis.serve().await.unwrap();
    let proxy = BadProxy::to(server.addr(), seed).await;
    let base = format!("http://{}", proxy.addr);
    // The token requests go through it, too.
    let auth = token_of(&apsis, &base).token_requests_per_minute(BUDGET).build().unwrap();
    let (token, sent) = (auth.handle(), Sent::default());
    let client = ServiceBuilder::new().layer(auth).map_request(sent.noting()).service(pool(version));
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (apsis, base, client, next) = (apsis.clone(), base.clone(), client.clone(), Arc::clone(&next));
        callers.spawn(async move {
            let mut confirmed = 0;
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= CALLS {
                    return confirmed;
                }
                if number % 100 == 50 {
                    apsis.revoke_tokens();
                }
                for this_try in 0..TRIES {
                    let request = patch(&base, number).header(CALL, number * TRIES + this_try);
                    let body = Full::from(format!("{{\"number\":{number}}}"));
                    match client.clone().oneshot(request.body(body).unwrap()).await {
                        Ok(response) if response.status() == StatusCode::NO_CONTENT => {
                            let profile = apsis.profile(KEYSPACE, &number.to_string()).expect("a yes is true");
                            assert_eq!(profile.attributes["number"], number);
                            confirmed += 1;
                            break;
                        }
                        Ok(response) => {
                            let outcome = response.extensions().get::<AuthOutcome>();
                            assert!(response.status() == StatusCode::UNAUTHORIZED && outcome.is_some());
                        }
                        // Its connection was lost: it may have had its effect.
                        Err(error) => assert!(error.is::<legacy::Error>() || error.is::<AuthError>(), "{error:?}"),
                    }
                }
            }
        });
    }
    let confirmed: usize = callers.join_all().await.into_iter().sum();

    let counters = apsis.counters();
    sent.assert_no_token_twice();
    assert!(confirmed >= CALLS * 9 / 10, "{confirmed}");
    assert!(counters.api_accepted >= confirmed as u64);
    let attempts = BUDGET - token.snapshot().attempts_left;
    assert!((4..=u64::from(attempts)).contains(&counters.token_requests), "{counters:?}, {attempts} attempts");
    assert!(proxy.cuts() > 0 && proxy.delays() > 0, "the proxy was of no use");
}

// Helpers.

/// When a connection is reset.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Accepted,
    InRequest,
    InHead,
    InBody,
}

/// Accepts one connection and resets it at this stage of an exchange by HTTP/1.1.
async fn reset_at(stage: Stage, listener: &TcpListener) {
    let (mut socket, _) = listener.accept().await.unwrap();
    match stage {
        Stage::Accepted => {}
        Stage::InRequest => drop(socket.read_exact(&mut [0; 40]).await.unwrap()),
        Stage::InHead | Stage::InBody => {
            read_request(&mut socket).await.unwrap();
            let said = match stage {
                Stage::InHead => "HTTP/1.1 200 OK\r\n",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"access_token\":\"",
            };
            socket.write_all(said.as_bytes()).await.unwrap();
        }
    }
    socket.set_zero_linger().unwrap();
}

/// The same for a connection to the API, by either protocol. In the body, and where there is no request to come whole,
/// it is the caller who says when.
async fn reset_api_at(stage: Stage, listener: &TcpListener, apsis: &Emulator, cut: &Notify) {
    match stage {
        Stage::Accepted | Stage::InRequest => return reset_at(stage, listener).await,
        Stage::InHead => apsis.script_api_answers([Answer::hang()]),
        Stage::InBody => apsis.script_api_answers([Answer::drip(Duration::from_millis(1))]),
    }
    serve(listener, apsis.clone(), cut).await;
}

/// Accepts one connection and serves it by whichever protocol is spoken, until it ends or is to be cut by a reset.
async fn serve<S, B>(listener: &TcpListener, service: S, cut: &Notify)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    S: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let (socket, _) = listener.accept().await.unwrap();
    serve_on(socket, service, cut).await;
}

async fn serve_on<S, B>(socket: TcpStream, service: S, cut: &Notify)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
    S: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    socket.set_zero_linger().unwrap();
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service));
    tokio::select! {
        _ = connection => {}
        () = cut.notified() => {}
    }
}

/// Accepts one connection and serves it until it is to end in good order: by HTTP/2 with GOAWAY.
async fn serve_until_told(listener: &TcpListener, apsis: Emulator, go_away: &Notify) {
    let (socket, _) = listener.accept().await.unwrap();
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(apsis)));
    tokio::select! {
        ended = connection.as_mut() => panic!("the connection ends early: {ended:?}"),
        () = go_away.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.unwrap();
}

/// An answer whose body never ends.
async fn half_a_rejection(_: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, EmulatorError>>, Infallible> {
    let mut response = Response::new(Half(Some(Bytes::from_static(b"half"))).boxed_unsync());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    Ok(response)
}

/// A body that is never over.
struct Half(Option<Bytes>);

impl Body for Half {
    type Data = Bytes;
    type Error = EmulatorError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, EmulatorError>>> {
        self.0.take().map_or(Poll::Pending, |half| Poll::Ready(Some(Ok(Frame::data(half)))))
    }
}

/// Whose limits are in nobody's way.
fn emulator() -> Emulator {
    let apsis = Emulator::new();
    apsis.set_api_limit(100_000);
    apsis.set_token_limit(100_000);
    apsis
}

/// Tokens from one port, and the API at another.
fn token_of_further(apsis: &Emulator, tokens: &EmulatorServer, api: SocketAddr) -> ApsisAuthBuilder {
    token_of(apsis, &tokens.url()).further_origin(format!("http://{api}"))
}

/// A transport that takes a permit for each request.
///
/// It has sockets of its own, so that after a permit the other connections hear what happened to them before there is a
/// token.
fn permitted(
    permits: &Arc<Semaphore>,
) -> impl Service<Request<Full<Bytes>>, Response = Response<Incoming>, Error = legacy::Error, Future: Send>
+ Clone
+ Send
+ Sync
+ 'static {
    let (permits, http_client) = (Arc::clone(permits), pool(Version::HTTP_11));
    service_fn(move |request| {
        let (permits, http_client) = (Arc::clone(&permits), http_client.clone());
        async move {
            permits.acquire().await.unwrap().forget();
            http_client.request(request).await
        }
    })
}

fn pool(version: Version) -> Pool {
    Client::builder(TokioExecutor::new()).http2_only(version == Version::HTTP_2).build_http()
}

fn call(
    client: &ApsisAuth<Pool>,
    addr: SocketAddr,
) -> impl Future<Output = Result<Response<Incoming>, BoxError>> + Send + 'static {
    let request = Request::get(format!("http://{addr}/audience/keyspaces")).body(Full::default()).unwrap();
    client.clone().oneshot(request)
}

fn profile(addr: SocketAddr) -> Request<Full<Bytes>> {
    Request::post(format!("http://{addr}/audience")).body(Full::from("profile")).unwrap()
}

/// A write that may be repeated.
fn patch(base: &str, number: usize) -> request::Builder {
    const SECTION: &str = "com.apsis1.sections.default";

    let uri = format!("{base}/audience/keyspaces/{KEYSPACE}/profiles/{number}/sections/{SECTION}/attributes");
    Request::patch(uri).header("content-type", "application/merge-patch+json")
}

fn is_replayed<B>(response: &Response<B>) -> bool {
    matches!(response.extensions().get(), Some(AuthOutcome::Replayed))
}

fn assert_same_but_for_the_token(sent: &[String; 2]) {
    let [first, second] = sent.each_ref().map(|request| {
        let (before, rest) = request.split_once("authorization: Bearer ").unwrap();
        let (token, after) = rest.split_once("\r\n").unwrap();
        (token, format!("{before}{after}"))
    });
    assert_ne!(first.0, second.0);
    assert_eq!(first.1, second.1);
    assert!(first.1.ends_with("profile"), "{sent:?}");
}

/// Until something is so that comes about by itself.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Numbers the calls that are noted.
pub(crate) const CALL: &str = "x-call";

/// What was sent for each call: its tokens, one after the other.
#[derive(Clone, Default)]
pub(crate) struct Sent(Arc<Mutex<HashMap<usize, Vec<HeaderValue>>>>);

impl Sent {
    /// To be put between the layer and the client.
    pub(crate) fn noting<B>(&self) -> impl Fn(Request<B>) -> Request<B> + Clone + Send + Sync + 'static {
        let sent = self.clone();
        move |request| {
            let call = request.headers()[CALL].to_str().unwrap().parse().unwrap();
            let token = request.headers()[AUTHORIZATION].clone();
            sent.0.lock().unwrap().entry(call).or_default().push(token);
            request
        }
    }

    /// What was sent for this call, which is over.
    pub(crate) fn of(&self, call: usize) -> Vec<HeaderValue> {
        self.0.lock().unwrap().remove(&call).unwrap_or_default()
    }

    /// How many requests were sent, each call's at most twice.
    fn assert_no_token_twice(&self) -> usize {
        let sent = self.0.lock().unwrap();
        for (call, tokens) in sent.iter() {
            assert!(tokens.len() <= 2, "call {call} was sent {} times", tokens.len());
            assert!(tokens.len() < 2 || tokens[0] != tokens[1], "call {call} was sent twice with one token");
        }
        sent.values().map(Vec::len).sum()
    }
}

/// Forwards connections, and now and then makes a chunk wait, or ends its connection.
struct BadProxy {
    addr: SocketAddr,
    deeds: Arc<Deeds>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Deeds {
    cuts: AtomicUsize,
    delays: AtomicUsize,
}

impl BadProxy {
    async fn to(server: SocketAddr, seed: u64) -> Self {
        let (listener, addr) = listen().await;
        let deeds = Arc::new(Deeds::default());
        let task = tokio::spawn({
            let (deeds, mut rng) = (Arc::clone(&deeds), Rng::with_seed(seed));
            async move {
                let mut tunnels = JoinSet::new();
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let server = TcpStream::connect(server).await.unwrap();
                    tunnels.spawn(tunnel(client, server, rng.fork(), Arc::clone(&deeds)));
                }
            }
        });
        Self { addr, deeds, task }
    }

    fn cuts(&self) -> usize {
        self.deeds.cuts.load(Relaxed)
    }

    fn delays(&self) -> usize {
        self.deeds.delays.load(Relaxed)
    }
}

impl Drop for BadProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whichever way ends first, both sides are closed, at times by a reset.
async fn tunnel(mut client: TcpStream, mut server: TcpStream, mut rng: Rng, deeds: Arc<Deeds>) {
    if rng.bool() {
        client.set_zero_linger().unwrap();
        server.set_zero_linger().unwrap();
    }
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = forward(from_client, to_server, rng.fork(), &deeds) => {}
        () = forward(from_server, to_client, rng, &deeds) => {}
    }
}

async fn forward(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut rng: Rng, deeds: &Deeds) {
    let mut chunk = [0; 512];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        match rng.u32(..100) {
            0..2 => {
                deeds.cuts.fetch_add(1, Relaxed);
                return;
            }
            2..10 => {
                deeds.delays.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(rng.u64(1..4))).await;
            }
            _ => {}
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

/// A TLS server's certificate for `localhost`, signed by itself, and who accepts with it.
struct Certified {
    pem: String,
    der: CertificateDer<'static>,
    acceptor: TlsAcceptor,
}

impl Certified {
    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self { pem: certificate.pem(), der: certificate.der().clone(), acceptor }
    }

    /// Trusts it, and speaks HTTP/2.
    fn http_client(&self) -> HttpsClient<Full<Bytes>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls_config(roots)).https_only();
        Client::builder(TokioExecutor::new()).build(builder.enable_http2().build())
    }
}
