//! Laws 25 and 26: what is sent a second time is what was sent first, of every body, and how much is kept for that.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::{
    ApsisAuthBuilder, ApsisAuthLayer, AuthOutcome, BuildError, Once, ReplayBody, ReplayableBody, ResponseFuture,
};
use bytes::{Buf, Bytes};
use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{
    BodyExt, Empty, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::sleep,
};
use tower::{BoxError, Layer, ServiceExt, service_fn, util::ServiceFn};

use crate::support::{BASE, Record, World, answer, limited, scripted_api, send};

const DEFAULT_LIMIT: usize = 128 * 1024;

/// What a frame is counted as at least: the size of the handle that is kept of it.
const HANDLE: usize = size_of::<Bytes>();

// Law 25: the replay is what was sent.

#[tokio::test(start_paused = true)]
async fn every_streaming_body_arrives_the_second_time_as_it_did_the_first() {
    limited(async {
        for script in scripts() {
            for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::ToTheEnd, &script).await {
                assert_replayed(&exchange, &script.as_sent(), &format!("{body}, {script:?}"));
            }
        }
    })
    .await;
}

/// HTTP/1.1 sends no more than the announced length, and hyper drops a body that has given as much.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_at_its_announced_length_is_replayed() {
    limited(async {
        for script in scripts().into_iter().filter(|script| script.is_exact) {
            for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::ToTheLength, &script).await {
                let sent = Received { parts: script.to_its_length(), ..script.as_sent() };
                assert_replayed(&exchange, &sent, &format!("{body}, {script:?}"));
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_before_its_announced_length_is_not_replayed() {
    limited(async {
        let script = Script::new([data("one"), data("two")]).exact();
        for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::Frames(1), &script).await {
            assert_not_replayed(&exchange, body);
        }
    })
    .await;
}

/// A sender may keep what it has sent for as long as it likes.
#[tokio::test(start_paused = true)]
async fn a_body_that_said_its_end_with_its_last_frame_is_replayed_though_it_is_still_held() {
    limited(async {
        let parts = [data("one"), data("two")];
        for script in [Script::new(parts.clone()).honest(), Script::new(parts).exact().honest()] {
            for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::FramesAndHolds(2), &script).await {
                assert_replayed(&exchange, &script.as_sent(), body);
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn over_http_1_the_replay_is_the_same_to_the_byte() {
    limited(async {
        let parts = [data("one"), data(""), data("two")];
        let empty = Script::new([]);
        for (script, sent) in [
            (Script::new(parts.clone()), "\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"),
            (Script::new(parts.clone()).honest(), "\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"),
            (Script::new(parts.clone()).exact(), "content-length: 6\r\n\r\nonetwo"),
            (Script::new(parts).exact().honest(), "content-length: 6\r\n\r\nonetwo"),
            (empty.clone(), "\r\n\r\n0\r\n\r\n"),
            (empty.exact(), "content-length: 0\r\n\r\n"),
        ] {
            let what = format!("{script:?}");
            assert_eq!(over_http_1(ReplayBody::new(script.clone()), sent).await, StatusCode::OK, "{what}");
            assert_eq!(over_http_1(BoxBody::new(script), sent).await, StatusCode::OK, "{what}");
        }
    })
    .await;
}

/// An HTTP/2 peer may say that its stream ended after it gave the last frame: between the question whether it ended and the
/// sender's own.
#[tokio::test(start_paused = true)]
async fn a_body_that_says_only_later_that_it_was_at_its_end_is_replayed() {
    limited(async {
        let ended = Arc::new(AtomicBool::new(false));
        let body = Late { frame: Some("one".into()), ended: Arc::clone(&ended) };
        let frames = Arc::new(Mutex::new(Vec::new()));
        let arrived = Arc::clone(&frames);
        let client = World::new().layer().layer(service_fn(move |request: Request<ReplayBody<Late>>| {
            let (frames, ended) = (Arc::clone(&frames), Arc::clone(&ended));
            async move {
                let mut body = request.into_body();
                let frame = body.frame().await.unwrap()?;
                ended.store(true, Ordering::Relaxed);
                assert!(body.is_end_stream(), "a sender asks no further");
                let mut frames = frames.lock().unwrap();
                frames.push(frame.into_data().unwrap());
                Ok::<_, BoxError>(nth_answer(frames.len(), ()))
            }
        }));

        let response = client.oneshot(post(ReplayBody::new(body))).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(*arrived.lock().unwrap(), ["one", "one"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_says_at_once_that_it_is_empty_is_replayed_unread() {
    limited(async {
        for script in [Script::new([]).exact().honest(), Script::new([]).honest()] {
            for reading in [Reading::Frames(0), Reading::FramesAndHolds(0)] {
                for (body, exchange) in in_every_body(0, reading, &script).await {
                    assert_replayed(&exchange, &script.as_sent(), &format!("{body}, {script:?}"));
                }
            }
        }
    })
    .await;
}

/// What comes after trailers has no place in a message, and none in what is kept: it would be sent in another order.
#[tokio::test(start_paused = true)]
async fn a_body_that_goes_on_after_its_trailers_is_not_replayed() {
    limited(async {
        for after in [data("more"), trailers("x-after", "1")] {
            let script = Script::new([data("one"), trailers("x-sum", "6"), after]);
            for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::ToTheEnd, &script).await {
                assert_not_replayed(&exchange, body);
            }
        }
    })
    .await;
}

/// A hint is for what is still to come, in the replay as in the first sending.
#[tokio::test(start_paused = true)]
async fn the_size_hint_of_a_replay_shrinks_as_it_is_read() {
    limited(async {
        let hints = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&hints);
        let client = World::new().layer().layer(service_fn(move |request: Request<ReplayBody<Script>>| {
            let hints = Arc::clone(&hints);
            async move {
                let (mut body, mut read) = (request.into_body(), Vec::new());
                read.push((body.size_hint().exact(), body.is_end_stream()));
                while let Some(frame) = body.frame().await {
                    frame?;
                    read.push((body.size_hint().exact(), body.is_end_stream()));
                }
                let mut hints = hints.lock().unwrap();
                hints.push(read);
                Ok::<_, BoxError>(nth_answer(hints.len(), ()))
            }
        }));
        let script = Script::new([data("three"), data("two"), trailers("x-sum", "6")]).exact().honest();

        client.oneshot(post(ReplayBody::new(script))).await.unwrap();

        let expected = vec![(Some(8), false), (Some(3), false), (Some(0), false), (Some(0), true)];
        assert_eq!(*seen.lock().unwrap(), [expected.clone(), expected]);
    })
    .await;
}

/// It stays in memory, too: reqwest itself sends such a body again when a connection fails.
#[cfg(feature = "reqwest")]
#[tokio::test(start_paused = true)]
async fn a_reqwest_body_in_memory_stays_there_and_is_replayed_whatever_its_size() {
    limited(async {
        for content in [Bytes::new(), Bytes::from("profile"), Bytes::from(vec![7; DEFAULT_LIMIT + 1])] {
            let pointers = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&pointers);
            let expected = content.clone();
            let client = World::new().layer().layer(service_fn(move |request: Request<reqwest::Body>| {
                let body = request.into_body();
                let bytes = body.as_bytes().expect("it is in memory");
                assert_eq!(bytes, expected);
                assert_eq!(body.size_hint().exact(), Some(expected.len() as u64));
                assert_eq!(body.is_end_stream(), expected.is_empty());
                let mut pointers = pointers.lock().unwrap();
                pointers.push(bytes.as_ptr() as usize);
                ready(Ok::<_, BoxError>(nth_answer(pointers.len(), ())))
            }));

            let response = client.oneshot(post(reqwest::Body::from(content.clone()))).await.unwrap();

            assert_eq!(response.status(), StatusCode::OK);
            if !content.is_empty() {
                assert_eq!(*seen.lock().unwrap(), [content.as_ptr() as usize; 2], "it is shared, not copied");
            }
        }
    })
    .await;
}

/// Whatever its frames are, wherever the limit lies, and whenever the rejection comes.
#[tokio::test(start_paused = true)]
async fn a_body_is_replayed_exactly_if_it_was_sent_to_its_end_within_the_limit() {
    limited(async {
        const CASES: u64 = 200;
        let (mut replayed, mut over, mut early) = (0, 0, 0);
        for seed in 0..CASES {
            let mut rng = Rng::with_seed(seed);
            let script = Script::random(&mut rng);
            let limit = rng.usize(0..400);
            let frames = rng.usize(0..=script.parts.len() + 1);
            let readings =
                [Reading::ToTheEnd, Reading::ToTheLength, Reading::Frames(frames), Reading::FramesAndHolds(frames)];
            let reading = rng.choice(readings).unwrap();

            let (is_sent, fits) = fate(&script, limit, reading);
            let exchange = if rng.bool() {
                exchange(limit, reading, ReplayBody::new(script.clone())).await
            } else {
                exchange(limit, reading, BoxBody::new(script.clone())).await
            };

            let what = format!("seed {seed}, limit {limit}, {reading:?}, {script:?}");
            if is_sent && fits {
                let [first, second] = &exchange.received[..] else { panic!("{what}: {exchange:?}") };
                assert_eq!(first, second, "{what}");
                assert!(matches!(exchange.outcome, Some(AuthOutcome::Replayed)), "{what}");
            } else {
                assert_not_replayed(&exchange, &what);
            }
            replayed += u64::from(is_sent && fits);
            over += u64::from(is_sent && !fits);
            early += u64::from(!is_sent);
        }
        for count in [replayed, over, early] {
            assert!(count > CASES / 10, "{replayed} replayed, {over} over the limit, {early} not sent to their end");
        }
    })
    .await;
}

// Law 26: the limit.

#[tokio::test(start_paused = true)]
async fn what_is_exactly_at_the_limit_is_replayed_and_a_byte_more_is_not() {
    limited(async {
        for frames in [1, 4] {
            for limit in [400, DEFAULT_LIMIT] {
                let frame = Part::Data(vec![b'x'; limit / frames]);
                let at = Script::new(vec![frame.clone(); frames]);
                for (body, exchange) in in_every_body(limit, Reading::ToTheEnd, &at).await {
                    assert_replayed(&exchange, &at.as_sent(), body);
                }
                let mut over = at.clone();
                over.parts[frames - 1] = Part::Data(vec![b'x'; limit / frames + 1]);
                for over in [over.clone(), over.exact().honest()] {
                    for (body, exchange) in in_every_body(limit, Reading::ToTheEnd, &over).await {
                        assert_eq!(exchange.received, [over.as_sent()], "all of it is sent: {body}");
                        assert_not_replayed(&exchange, body);
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_128_kib_unless_it_is_set() {
    limited(async {
        for (length, is_replayed) in [(DEFAULT_LIMIT, true), (DEFAULT_LIMIT + 1, false)] {
            let script = Script::new([Part::Data(vec![b'x'; length])]);
            let exchange = exchange_by(|builder| builder, Reading::ToTheEnd, ReplayBody::new(script.clone())).await;
            assert_eq!(exchange.received.len(), if is_replayed { 2 } else { 1 }, "{length} bytes");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn tiny_and_empty_frames_count_by_what_it_costs_to_keep_them() {
    limited(async {
        for content in ["", "x"] {
            let fits = Script::new(vec![data(content); 10]);
            for (body, exchange) in in_every_body(10 * HANDLE, Reading::ToTheEnd, &fits).await {
                assert_replayed(&exchange, &fits.as_sent(), body);
            }
            for (body, exchange) in in_every_body(10 * HANDLE - 1, Reading::ToTheEnd, &fits).await {
                assert_not_replayed(&exchange, body);
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_an_endless_body_no_more_is_held_than_the_limit_and_nothing_once_it_is_passed() {
    limited(async {
        for (length, limit) in [(1, 10 * HANDLE), (100, 1_000)] {
            let alive = Arc::new(AtomicUsize::new(0));
            let held = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&held);
            let body = ReplayBody::new(Endless { length, alive: Arc::clone(&alive) });
            let layer = World::new().builder().replay_limit(limit).build().unwrap();
            let client = layer.layer(service_fn(move |request: Request<ReplayBody<Endless>>| {
                let (alive, held) = (Arc::clone(&alive), Arc::clone(&held));
                async move {
                    let mut body = request.into_body();
                    for _ in 0..100 {
                        drop(body.frame().await);
                        held.lock().unwrap().push(alive.load(Ordering::Relaxed));
                    }
                    Ok::<_, BoxError>(nth_answer(1, ()))
                }
            }));

            let response = client.oneshot(post(body)).await.unwrap();

            assert!(matches!(response.extensions().get(), Some(AuthOutcome::NotReplayable)));
            let expected: Vec<_> = (1..=10).chain([0; 90]).collect();
            assert_eq!(*seen.lock().unwrap(), expected, "frames of {length}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_small_frames_only_their_bytes_are_held_and_of_large_ones_no_copy_is_made() {
    limited(async {
        for (length, are_held) in [(1, 0), (4 * 1024 - 1, 0), (4 * 1024, 1)] {
            let (buffers, received) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let body = ReplayBody::new(Drip { left: 10, length, buffers: Arc::clone(&buffers) });
            let client = World::new().layer().layer(service_fn(|request: Request<ReplayBody<Drip>>| {
                let (buffers, received) = (Arc::clone(&buffers), Arc::clone(&received));
                async move {
                    let mut body = request.into_body();
                    while let Some(frame) = body.frame().await {
                        assert_eq!(frame?.into_data().unwrap(), vec![b'x'; length]);
                        let received = received.fetch_add(1, Ordering::Relaxed) + 1;
                        assert!(received > 10 || buffers.load(Ordering::Relaxed) == received * are_held);
                    }
                    Ok::<_, BoxError>(nth_answer(received.load(Ordering::Relaxed) / 10, ()))
                }
            }));

            let response = client.oneshot(post(body)).await.unwrap();

            assert!(matches!(response.extensions().get(), Some(AuthOutcome::Replayed)));
            assert_eq!(received.load(Ordering::Relaxed), 20);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_a_body_that_goes_on_after_its_answer_nothing_more_is_held() {
    limited(async {
        let alive = Arc::new(AtomicUsize::new(0));
        let body = ReplayBody::new(Endless { length: 100, alive: Arc::clone(&alive) });
        let client = World::new().layer().layer(service_fn(async |request: Request<ReplayBody<Endless>>| {
            let mut body = request.into_body();
            drop(body.frame().await);
            Ok::<_, BoxError>(Response::new(body))
        }));

        let mut body = client.oneshot(post(body)).await.unwrap().into_body();
        assert_eq!(alive.load(Ordering::Relaxed), 1);
        for _ in 0..10 {
            drop(body.frame().await);
            assert_eq!(alive.load(Ordering::Relaxed), 0);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_a_body_that_is_accepted_nothing_is_held() {
    limited(async {
        let alive = Arc::new(AtomicUsize::new(0));
        let frame = Shared(counted(100, &alive));
        let body = ReplayBody::new(Full::new(frame));
        let client = World::new().layer().layer(service_fn(|request: Request<ReplayBody<Full<Shared>>>| async {
            request.into_body().collect().await?;
            Ok::<_, BoxError>(Response::new(()))
        }));

        let response = client.clone().oneshot(post(body)).await.unwrap();

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fails_while_it_streams_is_the_callers_error() {
    limited(async {
        let script = Script::new([data("one"), Part::Failure]).exact();
        let client = World::new().layer().layer(service_fn(|request: Request<ReplayBody<Script>>| async {
            request.into_body().collect().await?;
            Ok::<_, BoxError>(Response::new(()))
        }));

        let error = client.oneshot(post(ReplayBody::new(script))).await.unwrap_err();

        assert_eq!(error.to_string(), FAILURE);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rejection_of_a_body_that_failed_is_returned_and_the_body_not_replayed() {
    limited(async {
        for script in [
            Script::new([Part::Failure]),
            Script::new([data("one"), Part::Failure]),
            // What was announced has come, and then it fails: nobody knows what was to follow.
            Script::new([data("one"), Part::Failure]).exact(),
            Script::new([data("one"), trailers("x-sum", "3"), Part::Failure]),
        ] {
            for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::ToTheEnd, &script).await {
                assert_eq!(exchange.received[0].parts.last(), Some(&Part::Failure));
                assert_not_replayed(&exchange, body);
            }
        }
    })
    .await;
}

/// Whether the sender has let go of the rest by then or not.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_rejected_before_it_was_read_to_its_end_is_not_replayed() {
    limited(async {
        let parts = [data("one"), data("two"), data("three")];
        for script in [Script::new(parts.clone()), Script::new(parts).exact().honest()] {
            for frames in 0..3 {
                for reading in [Reading::Frames(frames), Reading::FramesAndHolds(frames)] {
                    for (body, exchange) in in_every_body(DEFAULT_LIMIT, reading, &script).await {
                        assert_not_replayed(&exchange, &format!("{body}, {reading:?}"));
                    }
                }
            }
        }
        // All has come, but nobody could know.
        let script = Script::new([data("one")]);
        for (body, exchange) in in_every_body(DEFAULT_LIMIT, Reading::Frames(1), &script).await {
            assert_not_replayed(&exchange, body);
        }
    })
    .await;
}

// Bodies that are whole, and bodies that are sent once.

#[tokio::test(start_paused = true)]
async fn a_string_is_replayed_if_it_is_within_the_limit() {
    limited(async {
        for (length, is_replayed) in [(0, true), (1_000, true), (1_001, false)] {
            let (exchange, first) = (exchange(1_000, Reading::ToTheEnd, "x".repeat(length)).await, "x".repeat(length));
            assert_eq!(exchange.received[0].bytes(), first.as_bytes());
            if is_replayed {
                assert_replayed(&exchange, &exchange.received[0], &format!("{length} bytes"));
            } else {
                assert_not_replayed(&exchange, &format!("{length} bytes"));
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_shares_its_memory_is_replayed_whatever_its_size() {
    limited(async {
        let content = Bytes::from(vec![7; 10_000]);
        let sent = |received: &Received| assert_eq!(received.bytes(), content);
        let full = exchange(0, Reading::ToTheEnd, Full::new(content.clone())).await;
        full.received.iter().for_each(sent);
        assert_replayed(&full, &full.received[0], "Full");

        let (world, record) = (World::new(), Record::default());
        let layer = world.builder().replay_limit(0).build().unwrap();
        let client = layer.layer(scripted_api(&record, |_, number| nth_answer(number, String::new())));
        send(&client, post(content.clone())).await.unwrap();
        let bodies: Vec<_> = record.all().into_iter().map(|sent| sent.body).collect();
        assert_eq!(bodies, [format!("{content:?}"), format!("{content:?}")]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_sent_once_passes_as_it_is_and_is_never_replayed() {
    limited(async {
        for script in scripts() {
            let exchange = exchange(DEFAULT_LIMIT, Reading::ToTheEnd, Once::new(script.clone())).await;
            assert_eq!(exchange.received, [script.as_sent()], "{script:?}");
            assert_not_replayed(&exchange, &format!("{script:?}"));
        }
        let exchange = exchange(DEFAULT_LIMIT, Reading::ToTheEnd, Once::new(Empty::new())).await;
        assert_not_replayed(&exchange, "Empty");
    })
    .await;
}

// What the builder is told.

#[tokio::test(start_paused = true)]
async fn without_replay_nothing_is_kept_and_a_rejection_renews_for_the_next_request() {
    limited(async {
        let exchange = exchange_by(ApsisAuthBuilder::without_replay, Reading::ToTheEnd, Jealous).await;
        assert_not_replayed(&exchange, "a body that must not be kept");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_its_token_is_not_kept_without_replay_either() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(Duration::from_secs(1));
        let client = world.builder().without_replay().build().unwrap().layer(accepting());
        assert_eq!(client.oneshot(post(Jealous)).await.unwrap().status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_a_request_out_of_scope_nothing_is_kept() {
    limited(async {
        let client = World::new().layer().layer(accepting());
        let request = Request::post("https://elsewhere.example/").body(Jealous).unwrap();
        let response = client.oneshot(request).await.unwrap();
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_further_origin_gets_the_token_and_its_rejections_are_replayed() {
    limited(async {
        for uri in [
            "https://gateway.example:8443/audience/keyspaces",
            "https://GATEWAY.example:8443/",
            "https://second.example/x",
            "https://second.example:443/x",
            "https://api.apsis.one/audience/keyspaces",
        ] {
            let (record, response) = by_further_origins(uri).await;
            let bearers = record.authorizations();
            assert_eq!(bearers.len(), 2, "{uri}");
            assert!(bearers.iter().all(|bearer| bearer.starts_with("Bearer ")), "{uri}");
            assert_ne!(bearers[0], bearers[1], "{uri}");
            assert!(matches!(response.extensions().get(), Some(AuthOutcome::Replayed)), "{uri}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_near_a_further_origin_gets_no_token() {
    limited(async {
        for uri in [
            "https://gateway.example/apsis/audience/keyspaces",
            "http://gateway.example:8443/apsis/audience/keyspaces",
            "https://gateway.example.:8443/apsis/audience/keyspaces",
            "https://second.example:8443/x",
            "http://second.example/x",
            "https://third.example/",
        ] {
            let (record, response) = by_further_origins(uri).await;
            assert_eq!(record.authorizations(), [""], "{uri}");
            assert!(matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope)), "{uri}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_token_request_goes_to_the_base_url_whatever_the_further_origins_are() {
    limited(async {
        let world = World::new();
        let (apsis, asked) = (world.apsis.clone(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&asked);
        let transport = service_fn(move |request: Request<Full<Bytes>>| {
            asked.lock().unwrap().push(request.uri().to_string());
            apsis.clone().oneshot(request)
        });
        let layer = world.builder().transport(transport).further_origin(GATEWAY).build().unwrap();
        send(&layer.layer(accepting()), post_to(GATEWAY, Full::<Bytes>::default())).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [format!("{BASE}/oauth/token")]);
    })
    .await;
}

#[test]
fn a_further_origin_that_cannot_be_used_is_named_when_the_layer_is_built() {
    let build = |url: &'static str| -> Result<ApsisAuthLayer, BuildError> {
        let credentials = apsis_auth::ClientCredentials::new("id", "secret").unwrap();
        let transport = service_fn(|_| ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))));
        ApsisAuthLayer::builder(credentials, BASE)
            .transport(transport)
            .further_origin(GATEWAY)
            .further_origin(url)
            .build()
    };
    assert!(build("http://localhost:8080").is_ok());
    for wrong in ["", "second.example", "http://second.example", "ftp://second.example", "https://second.example?x"] {
        let error = build(wrong).unwrap_err();
        let BuildError::BaseUrl { url, .. } = &error else { panic!("{wrong}: {error:?}") };
        assert_eq!(url.trim_end_matches('…'), wrong.trim_end_matches("?x"), "{error}");
    }
}

#[test]
fn response_futures_are_send_and_sync_as_their_bodies_are() {
    fn send<B: ReplayableBody + Send>()
    where
        ResponseFuture<Answering<B>, B>: Send,
    {
    }
    fn send_and_sync<B: ReplayableBody + Send + Sync>()
    where
        ResponseFuture<Answering<B>, B>: Send + Sync,
    {
    }
    send::<UnsyncBoxBody<Bytes, BoxError>>();
    send_and_sync::<BoxBody<Bytes, BoxError>>();
    send_and_sync::<ReplayBody<Script>>();
    send_and_sync::<Once<Script>>();
    #[cfg(feature = "axum")]
    send::<axum_core::body::Body>();
    #[cfg(feature = "reqwest")]
    send_and_sync::<reqwest::Body>();
}

// What is sent.

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Data(Vec<u8>),
    Trailers(HeaderMap),
    Failure,
}

const FAILURE: &str = "the file is gone";

fn data(content: &str) -> Part {
    Part::Data(content.into())
}

fn trailers(name: &'static str, value: &'static str) -> Part {
    Part::Trailers(HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]))
}

impl Part {
    fn length(&self) -> usize {
        if let Self::Data(data) = self { data.len() } else { 0 }
    }

    /// What it counts against the replay limit.
    fn cost(&self) -> usize {
        match self {
            Self::Data(data) => data.len().max(HANDLE),
            Self::Trailers(trailers) => trailers.len() * size_of::<(HeaderName, HeaderValue)>(),
            Self::Failure => 0,
        }
    }
}

/// A body that gives its parts one by one, and lets its sender wait for each.
#[derive(Clone, Debug)]
struct Script {
    parts: VecDeque<Part>,
    /// Says its exact length, else nothing about it.
    is_exact: bool,
    /// Says when it is at its end, else it has to be asked for a frame that it does not have.
    is_honest: bool,
    has_waited: bool,
}

impl Script {
    fn new(parts: impl Into<VecDeque<Part>>) -> Self {
        Self { parts: parts.into(), is_exact: false, is_honest: false, has_waited: false }
    }

    fn exact(self) -> Self {
        Self { is_exact: true, ..self }
    }

    fn honest(self) -> Self {
        Self { is_honest: true, ..self }
    }

    fn random(rng: &mut Rng) -> Self {
        let mut parts: VecDeque<_> = (0..rng.usize(0..6))
            .map(|_| {
                let length = if rng.bool() { rng.usize(0..4) } else { rng.usize(0..150) };
                Part::Data((0..length).map(|_| rng.u8(..)).collect())
            })
            .collect();
        if rng.u8(0..4) == 0 {
            parts.push_back(trailers("x-sum", "6"));
        }
        if rng.u8(0..6) == 0 {
            parts.insert(rng.usize(0..=parts.len()), Part::Failure);
        }
        Self { parts, is_exact: rng.bool(), is_honest: rng.bool(), has_waited: false }
    }

    /// What gives it the length that it has.
    fn to_its_length(&self) -> Vec<Part> {
        let last = self.parts.iter().rposition(|part| part.length() > 0);
        self.parts.iter().take(last.map_or(0, |last| last + 1)).cloned().collect()
    }

    /// What arrives of it where it is read to its end.
    fn as_sent(&self) -> Received {
        let hint = self.size_hint();
        Received {
            size_hint: (hint.lower(), hint.upper()),
            is_end_stream: self.is_end_stream(),
            parts: self.parts.clone().into(),
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.parts.pop_front().map(|part| match part {
            Part::Data(data) => Ok(Frame::data(data.into())),
            Part::Trailers(trailers) => Ok(Frame::trailers(trailers)),
            Part::Failure => Err(FAILURE.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.is_honest && self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let left: usize = self.parts.iter().map(Part::length).sum();
        if self.is_exact { SizeHint::with_exact(left as u64) } else { SizeHint::default() }
    }
}

/// Bodies of every shape.
fn scripts() -> Vec<Script> {
    let shapes = [
        vec![],
        vec![data("")],
        vec![data("one")],
        vec![data("one"), data(""), data("three"), data("two")],
        vec![data("one"), data("two"), trailers("x-sum", "6")],
        vec![trailers("x-sum", "0")],
    ];
    let every = |parts: Vec<Part>| {
        let script = Script::new(parts);
        [script.clone(), script.clone().exact(), script.clone().honest(), script.exact().honest()]
    };
    shapes.into_iter().flat_map(every).collect()
}

/// Whether a body is sent to its end, and whether what is sent of it is within the limit.
fn fate(script: &Script, limit: usize, reading: Reading) -> (bool, bool) {
    let parts: Vec<_> = script.parts.iter().cloned().collect();
    let until_failure = parts.iter().position(|part| *part == Part::Failure).map_or(parts.len() + 1, |at| at + 1);
    let until_length = script.to_its_length().len();
    let asked = match reading {
        Reading::ToTheLength if script.is_exact => until_length,
        Reading::ToTheEnd | Reading::ToTheLength => parts.len() + 1,
        Reading::Frames(frames) | Reading::FramesAndHolds(frames) => frames,
    };
    let asked = asked.min(until_failure);
    let read = &parts[..asked.min(parts.len())];
    let is_dropped = !matches!(reading, Reading::FramesAndHolds(_));
    let is_known = script.is_honest && asked >= parts.len() || script.is_exact && is_dropped && asked >= until_length;
    let is_sent = !read.contains(&Part::Failure) && (asked > parts.len() || is_known);
    let cost: usize = read.iter().map(Part::cost).sum();
    (is_sent, cost <= limit)
}

/// A body of one frame, which comes to its end when it is told to.
struct Late {
    frame: Option<Bytes>,
    ended: Arc<AtomicBool>,
}

impl Body for Late {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.frame.take() {
            Some(frame) => Poll::Ready(Some(Ok(Frame::data(frame)))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// A body without an end, whose frames are counted while they are held.
struct Endless {
    length: usize,
    alive: Arc<AtomicUsize>,
}

impl Body for Endless {
    type Data = Shared;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Shared>, BoxError>>> {
        Poll::Ready(Some(Ok(Frame::data(Shared(counted(self.length, &self.alive))))))
    }
}

/// Data of which the layer knows nothing but that it can be cloned.
#[derive(Clone)]
struct Shared(Bytes);

impl Buf for Shared {
    fn remaining(&self) -> usize {
        self.0.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.0.chunk()
    }

    fn advance(&mut self, by: usize) {
        self.0.advance(by);
    }
}

/// A body of frames that are each a part of a buffer of its own, as a slow sender's are when they are read.
struct Drip {
    left: usize,
    length: usize,
    buffers: Arc<AtomicUsize>,
}

impl Body for Drip {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(counted(8 * 1024, &self.buffers).slice(..self.length)))))
    }
}

/// Bytes that are counted until the last of their clones is gone.
fn counted(length: usize, alive: &Arc<AtomicUsize>) -> Bytes {
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    alive.fetch_add(1, Ordering::Relaxed);
    Bytes::from_owner(Counted(vec![b'x'; length], Arc::clone(alive)))
}

/// A body that bears no copy of itself.
struct Jealous;

impl ReplayableBody for Jealous {
    type Kept = ();

    fn keep(&mut self, _: usize) {
        panic!("nothing of it is to be kept")
    }

    fn restore((): ()) -> Option<Self> {
        Some(Self)
    }
}

impl Body for Jealous {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }
}

// How it is sent, and what arrives.

/// How an API, and the sender in front of it, read a body.
#[derive(Clone, Copy, Debug)]
enum Reading {
    ToTheEnd,
    /// To the announced length, if one was; then they drop it.
    ToTheLength,
    /// So many frames; then they drop it.
    Frames(usize),
    /// So many frames, and it is still there when the answer comes.
    FramesAndHolds(usize),
}

impl Reading {
    fn wants_more(self, received: &Received) -> bool {
        match self {
            Self::ToTheEnd => true,
            Self::ToTheLength => match received.size_hint {
                (lower, Some(upper)) if lower == upper => (received.bytes().len() as u64) < upper,
                _ => true,
            },
            Self::Frames(frames) | Self::FramesAndHolds(frames) => received.parts.len() < frames,
        }
    }

    async fn read<B>(self, mut body: B) -> (Received, Option<B>)
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let hint = body.size_hint();
        let is_end_stream = body.is_end_stream();
        let mut received = Received { size_hint: (hint.lower(), hint.upper()), is_end_stream, parts: Vec::new() };
        while self.wants_more(&received) && received.parts.last() != Some(&Part::Failure) {
            let Some(frame) = body.frame().await else { break };
            received.parts.push(match frame.map(Frame::into_data) {
                Ok(Ok(data)) => Part::Data(data.into()),
                Ok(Err(frame)) => Part::Trailers(frame.into_trailers().unwrap()),
                Err(_) => Part::Failure,
            });
        }
        (received, matches!(self, Self::FramesAndHolds(_)).then_some(body))
    }
}

/// What arrived of a body, and what it said of itself before its first frame.
#[derive(Clone, Debug, PartialEq)]
struct Received {
    size_hint: (u64, Option<u64>),
    is_end_stream: bool,
    parts: Vec<Part>,
}

impl Received {
    fn bytes(&self) -> Vec<u8> {
        let data = |part: &Part| if let Part::Data(data) = part { data.clone() } else { Vec::new() };
        self.parts.iter().flat_map(data).collect()
    }
}

/// What became of a request whose first token was rejected.
struct Exchange {
    received: Vec<Received>,
    tokens: Vec<String>,
    status: StatusCode,
    rejected_by: Option<HeaderValue>,
    outcome: Option<AuthOutcome>,
    /// A second after the answer.
    token_requests: u64,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exchange").field(&self.status).field(&self.outcome).field(&self.received).finish()
    }
}

async fn exchange<B>(limit: usize, reading: Reading, body: B) -> Exchange
where
    B: ReplayableBody + Body<Data = Bytes> + Unpin,
{
    exchange_by(|builder| builder.replay_limit(limit), reading, body).await
}

async fn exchange_by<B>(build: impl FnOnce(ApsisAuthBuilder) -> ApsisAuthBuilder, reading: Reading, body: B) -> Exchange
where
    B: ReplayableBody + Body<Data = Bytes> + Unpin,
{
    let world = World::new();
    let arrived = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let log = Arc::clone(&arrived);
    let layer = build(world.builder()).build().unwrap();
    layer.handle().warm_up().await.unwrap();
    let client = layer.layer(service_fn(move |request: Request<B>| {
        let log = Arc::clone(&log);
        async move {
            let token = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
            let (received, held) = reading.read(request.into_body()).await;
            let mut log = log.lock().unwrap();
            log.0.push(received);
            log.1.push(token);
            Ok::<_, BoxError>(nth_answer(log.0.len(), held))
        }
    }));
    let response = client.clone().oneshot(post(body)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let (received, tokens) = arrived.lock().unwrap().clone();
    Exchange {
        received,
        tokens,
        status: response.status(),
        rejected_by: response.headers().get("x-rejected-by").cloned(),
        outcome: response.extensions().get().cloned(),
        token_requests: world.token_requests(),
    }
}

/// The exchanges of each body that keeps what streams through it, around the same script.
async fn in_every_body(limit: usize, reading: Reading, script: &Script) -> Vec<(&'static str, Exchange)> {
    vec![
        ("ReplayBody", exchange(limit, reading, ReplayBody::new(script.clone())).await),
        ("BoxBody", exchange(limit, reading, BoxBody::new(script.clone())).await),
        ("UnsyncBoxBody", exchange(limit, reading, UnsyncBoxBody::new(script.clone())).await),
        #[cfg(feature = "axum")]
        ("axum's body", exchange(limit, reading, axum_core::body::Body::new(script.clone())).await),
        #[cfg(feature = "reqwest")]
        ("reqwest's body", exchange(limit, reading, reqwest::Body::wrap(script.clone())).await),
    ]
}

fn assert_replayed(exchange: &Exchange, sent: &Received, what: &str) {
    assert_eq!(exchange.received, [sent.clone(), sent.clone()], "{what}");
    assert_eq!(exchange.status, StatusCode::OK, "{what}");
    assert!(matches!(exchange.outcome, Some(AuthOutcome::Replayed)), "{what}: {:?}", exchange.outcome);
    assert_ne!(exchange.tokens[0], exchange.tokens[1], "{what}");
    assert_eq!(exchange.token_requests, 2, "{what}");
}

/// The rejection is returned as it came, and the token renewed for the next request.
fn assert_not_replayed(exchange: &Exchange, what: &str) {
    assert_eq!(exchange.received.len(), 1, "{what}");
    assert_eq!(exchange.status, StatusCode::UNAUTHORIZED, "{what}");
    assert_eq!(exchange.rejected_by.as_ref().unwrap(), "the gateway", "{what}");
    assert!(matches!(exchange.outcome, Some(AuthOutcome::NotReplayable)), "{what}: {:?}", exchange.outcome);
    assert_eq!(exchange.token_requests, 2, "{what}");
}

/// A rejection, and then no more.
fn nth_answer<B>(number: usize, body: B) -> Response<B> {
    let response = Response::builder();
    let response = match number {
        1 => response.status(StatusCode::UNAUTHORIZED).header("x-rejected-by", "the gateway"),
        _ => response,
    };
    response.body(body).unwrap()
}

fn post<B>(body: B) -> Request<B> {
    post_to(BASE, body)
}

fn post_to<B>(uri: &str, body: B) -> Request<B> {
    Request::post(uri).body(body).unwrap()
}

type Answering<B> = ServiceFn<fn(Request<B>) -> Ready<Result<Response<()>, BoxError>>>;

fn accepting<B>() -> Answering<B> {
    service_fn(|_| ready(Ok(Response::new(()))))
}

/// Sends it by hyper to an API that rejects the first token. Each time there arrives what ends with `sent`.
async fn over_http_1<B>(body: B, sent: &'static str) -> StatusCode
where
    B: ReplayableBody + Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let client = World::new().layer().layer(service_fn(move |request: Request<B>| {
        let tokens = Arc::clone(&tokens);
        async move {
            let number = {
                let mut tokens = tokens.lock().unwrap();
                tokens.push(request.headers()[AUTHORIZATION].clone());
                tokens.len()
            };
            let (near, mut far) = duplex(64 * 1024);
            let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await?;
            tokio::spawn(connection);
            tokio::spawn(async move {
                let mut arrived = String::new();
                while !arrived.ends_with(sent) {
                    let mut buffer = [0; 1024];
                    let read = far.read(&mut buffer).await.unwrap();
                    assert_ne!(read, 0, "{arrived}");
                    arrived.push_str(str::from_utf8(&buffer[..read]).unwrap());
                }
                let status = if number == 1 { "401 Unauthorized" } else { "200 OK" };
                far.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            });
            Ok::<_, BoxError>(sender.send_request(request).await?)
        }
    }));
    client.oneshot(post_to("/", body)).await.unwrap().status()
}

const GATEWAY: &str = "https://gateway.example:8443/apsis";

/// A request by a layer with two further origins, to an API that rejects the first.
async fn by_further_origins(uri: &str) -> (Record, Response<String>) {
    let record = Record::default();
    let layer = World::new().builder().further_origin(GATEWAY).further_origin("https://second.example").build();
    let client = layer.unwrap().layer(scripted_api(&record, |_, number| match number {
        1 => answer(StatusCode::UNAUTHORIZED, ""),
        _ => answer(StatusCode::OK, ""),
    }));
    let response = send(&client, post_to(uri, Full::<Bytes>::default())).await.unwrap();
    (record, response)
}
