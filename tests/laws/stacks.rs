//! Law 28, and the claims of the page "In your stack": layers above and beneath ours, as they should be and as they should
//! not. What needs a socket or a certificate is in the tests of the sockets.

use std::{pin::Pin, time::Duration};

use apsis_auth::{AuthError, AuthOutcome, emulator::Answer};
use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, LOCATION},
};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    limit::ConcurrencyLimit,
    load_shed::error::Overloaded,
    retry::{Policy, RetryLayer},
    timeout::error::Elapsed,
};
use tower_http::{
    ServiceBuilderExt,
    follow_redirect::{
        FollowRedirectLayer,
        policy::{self, Action, Attempt},
    },
    timeout::TimeoutLayer,
};

use crate::support::{BASE, Record, Sent, World, answer, get, keyspaces, limited, scripted_api, send, text};

const ELSEWHERE: &str = "https://elsewhere.example/";

// Redirects.

#[tokio::test(start_paused = true)]
async fn above_the_layer_a_redirect_is_followed_with_the_token_to_the_api_and_without_it_elsewhere() {
    limited(async {
        for (location, is_in_scope) in [
            ("/audience/sections", true),
            ("sections", true),
            ("https://API.apsis.one:443/audience/sections", true),
            (ELSEWHERE, false),
            ("//elsewhere.example/", false),
            ("https://api.apsis.one:8443/", false),
            ("http://api.apsis.one/", false),
            ("https://api.apsis.one.elsewhere.example/", false),
        ] {
            let (world, record) = (World::new(), Record::default());
            let api = redirecting(&record, location, StatusCode::OK);
            let client = ServiceBuilder::new().layer(FollowRedirectLayer::new()).layer(world.layer()).service(api);
            let response = send(&client, keyspaces()).await.unwrap();

            assert_eq!(response.status(), StatusCode::OK, "{location}");
            assert_eq!(is_out_of_scope(&response), !is_in_scope, "{location}");
            let tokens = record.authorizations();
            assert_eq!(tokens.len(), 2, "{location}");
            assert_eq!(tokens[0] == tokens[1], is_in_scope, "{location}");
            assert_eq!(tokens[1].is_empty(), !is_in_scope, "{location}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn above_the_layer_a_way_back_to_the_api_has_the_token_again() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let api = scripted_api(&record, |_, number| match number {
            1 => redirect(ELSEWHERE),
            2 => redirect(BASE),
            _ => answer(StatusCode::OK, ""),
        });
        let client = ServiceBuilder::new().layer(FollowRedirectLayer::new()).layer(world.layer()).service(api);
        send(&client, keyspaces()).await.unwrap();
        let tokens = record.authorizations();
        assert!(tokens[1].is_empty() && tokens[0] == tokens[2] && !tokens[0].is_empty(), "{tokens:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn above_the_layer_the_refusal_of_another_origin_is_no_matter_to_the_token() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let api = redirecting(&record, ELSEWHERE, StatusCode::UNAUTHORIZED);
        let client = ServiceBuilder::new().layer(FollowRedirectLayer::new()).layer(world.layer()).service(api);
        let response = send(&client, keyspaces()).await.unwrap();
        assert_eq!((response.status(), world.token_requests()), (StatusCode::UNAUTHORIZED, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn beneath_the_layer_the_refusal_of_another_origin_is_taken_for_the_apis() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let api = redirecting(&record, ELSEWHERE, StatusCode::UNAUTHORIZED);
        let client = ServiceBuilder::new().layer(world.layer()).layer(FollowRedirectLayer::new()).service(api);
        send(&client, keyspaces()).await.unwrap();
        assert_eq!(world.token_requests(), 2, "a token was renewed that nobody had rejected");
        assert_eq!(record.count(), 3, "and the request sent once more");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn beneath_the_layer_a_redirect_takes_the_token_wherever_its_policy_lets_it() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let api = redirecting(&record, ELSEWHERE, StatusCode::OK);
        let careless = FollowRedirectLayer::with_policy(Careless);
        let client = ServiceBuilder::new().layer(world.layer()).layer(careless).service(api);
        send(&client, keyspaces()).await.unwrap();
        let tokens = record.authorizations();
        assert_eq!(tokens[0], tokens[1]);
    })
    .await;
}

// Retries.

#[tokio::test(start_paused = true)]
async fn a_retry_above_multiplies_what_is_sent_by_at_most_two() {
    limited(async {
        // The pauses are shorter and longer than those between renewals.
        for (status, pause, sent) in [
            (StatusCode::UNAUTHORIZED, Duration::ZERO, 4),
            (StatusCode::UNAUTHORIZED, Duration::from_secs(600), 6),
            (StatusCode::SERVICE_UNAVAILABLE, Duration::ZERO, 3),
        ] {
            let (world, record) = (World::new(), Record::default());
            let api = scripted_api(&record, move |_, _| answer(status, ""));
            let retry = RetryLayer::new(Tries { left: 2, pause });
            let client = ServiceBuilder::new().layer(retry).layer(world.layer()).service(api);
            let response = send(&client, keyspaces()).await.unwrap();
            assert_eq!((response.status(), record.count()), (status, sent), "pauses of {pause:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_above_of_what_passes_is_replayed_when_the_token_dies_meanwhile() {
    limited(async {
        let world = World::new();
        let retry = RetryLayer::new(Tries { left: 2, pause: Duration::from_secs(1) });
        let client = ServiceBuilder::new()
            .layer(retry)
            .layer(world.layer())
            .map_response_body(|_| String::new())
            .service(world.apsis.clone());
        world.apsis.script_api_answers([Answer::status(StatusCode::SERVICE_UNAVAILABLE)]);
        let called = tokio::spawn(client.oneshot(keyspaces()));
        sleep(Duration::from_millis(500)).await;
        world.apsis.revoke_tokens();
        let response = called.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::Replayed)));
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_above_may_wait_for_the_moment_that_the_error_names() {
    limited(async {
        let world = World::new();
        world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "300")]);
        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(WhenTokensAreToBeHad))
            .layer(world.layer())
            .map_response_body(|_| String::new())
            .service(world.apsis.clone());
        let started = Instant::now();
        assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert!(started.elapsed() >= Duration::from_secs(300), "{:?}", started.elapsed());
        assert_eq!(world.token_requests(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_above_returns_an_error_that_another_try_does_not_change() {
    limited(async {
        let world = World::new();
        world.apsis.delete_api_key(world.apsis.api_key().client_id());
        let client = ServiceBuilder::new()
            .layer(RetryLayer::new(WhenTokensAreToBeHad))
            .layer(world.layer())
            .map_response_body(|_| String::new())
            .service(world.apsis.clone());
        let error = send(&client, keyspaces()).await.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(AuthError::Refused { .. })), "{error}");
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_over_a_retry_that_waits_hides_why_unless_it_is_longer_than_the_pauses() {
    limited(async {
        for (seconds, status) in [(60, StatusCode::GATEWAY_TIMEOUT), (600, StatusCode::OK)] {
            let world = World::new();
            world.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "300")]);
            let client = ServiceBuilder::new()
                .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(seconds)))
                .layer(RetryLayer::new(WhenTokensAreToBeHad))
                .layer(world.layer())
                .map_response_body(|_| String::new())
                .service(world.apsis.clone());
            assert_eq!(send(&client, keyspaces()).await.unwrap().status(), status, "{seconds} s");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn beneath_the_layer_a_retry_sends_the_rejected_token_again_and_again() {
    limited(async {
        let (world, record) = (World::new(), Record::default());
        let api = scripted_api(&record, |_, _| answer(StatusCode::UNAUTHORIZED, ""));
        let retry = RetryLayer::new(Tries { left: 2, pause: Duration::ZERO });
        let client = ServiceBuilder::new().layer(world.layer()).layer(retry).service(api);
        send(&client, keyspaces()).await.unwrap();
        let tokens = record.authorizations();
        assert_eq!(tokens.len(), 6);
        assert!(tokens[..3].iter().all(|token| *token == tokens[0]));
    })
    .await;
}

// Time limits.

#[tokio::test(start_paused = true)]
async fn a_time_limit_above_hides_why_there_is_no_token_unless_it_is_longer_than_the_wait() {
    limited(async {
        for (seconds, is_hidden) in [(20, true), (60, false)] {
            let world = World::new();
            world.apsis.script_token_answers([Answer::hang(), Answer::hang()]);
            let client = ServiceBuilder::new()
                .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(seconds)))
                .layer(world.layer())
                .map_response_body(|_| String::new())
                .service(world.apsis.clone());
            match send(&client, keyspaces()).await {
                Ok(response) => assert!(is_hidden && response.status() == StatusCode::GATEWAY_TIMEOUT, "{seconds} s"),
                Err(error) => assert!(!is_hidden && error.is::<AuthError>(), "{seconds} s: {error}"),
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_off_by_a_time_limit_above_leaves_the_flight_to_the_next_request() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(Duration::from_secs(10));
        let client =
            ServiceBuilder::new().timeout(Duration::from_secs(5)).layer(world.layer()).service(world.apsis.clone());
        assert!(send(&client, keyspaces()).await.unwrap_err().is::<Elapsed>());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(world.token_requests(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_beneath_is_of_each_sending_and_not_of_the_wait_for_a_token() {
    limited(async {
        let world = World::new();
        world.apsis.set_token_delay(Duration::from_secs(12));
        world.apsis.set_api_delay(Duration::from_secs(4));
        let client =
            ServiceBuilder::new().layer(world.layer()).timeout(Duration::from_secs(5)).service(world.apsis.clone());
        world.apsis.script_api_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        let started = Instant::now();
        let response = send(&client, keyspaces()).await.unwrap();
        assert!(matches!(response.extensions().get(), Some(AuthOutcome::Replayed)));
        assert_eq!(started.elapsed().as_secs(), 2 * (12 + 4));

        world.apsis.set_api_delay(Duration::from_secs(6));
        assert!(send(&client, keyspaces()).await.unwrap_err().is::<Elapsed>());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_next_to_the_client_counts_no_wait_for_a_turn_and_one_over_the_queue_does() {
    const TURN: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_secs(5);

    limited(async {
        let world = World::new();
        let auth = world.layer();
        auth.handle().warm_up().await.unwrap();
        let beneath = ServiceBuilder::new().layer(auth.clone()).buffer(8).rate_limit(1, TURN).timeout(LIMIT);
        let beneath = beneath.service(world.apsis.clone());
        for answer in join(send(&beneath, keyspaces()), send(&beneath, keyspaces())).await {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
        let over = ServiceBuilder::new().layer(auth).timeout(LIMIT).buffer(8).rate_limit(1, TURN);
        let over = over.service(world.apsis.clone());
        let [first, second] = join(send(&over, keyspaces()), send(&over, keyspaces())).await;
        assert_eq!(first.unwrap().status(), StatusCode::OK);
        assert!(second.unwrap_err().is::<Elapsed>());
    })
    .await;
}

// Limits on how many, and how often.

#[tokio::test(start_paused = true)]
async fn above_the_layer_a_limit_counts_who_waits_for_a_token_and_beneath_it_does_not() {
    limited(async {
        for is_above in [true, false] {
            let world = World::new();
            world.apsis.set_token_delay(Duration::from_secs(10));
            let (above, beneath) = if is_above { (1, 10) } else { (10, 1) };
            let api = ConcurrencyLimit::new(world.apsis.clone(), beneath);
            let client = ConcurrencyLimit::new(world.layer().layer(api), above);
            let waiting = tokio::spawn(client.clone().oneshot(keyspaces()));
            sleep(Duration::from_secs(1)).await;
            // Needs no token, only a turn.
            let elsewhere = Request::get(ELSEWHERE).body(Full::<Bytes>::default()).unwrap();
            let served = timeout(Duration::from_secs(1), client.clone().oneshot(elsewhere)).await;
            assert_eq!(served.is_err(), is_above);
            assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn above_the_layer_a_load_shed_over_the_limit_sheds_and_one_under_it_does_not() {
    limited(async {
        let world = World::new();
        world.apsis.set_api_delay(Duration::from_secs(20));
        let client = ServiceBuilder::new().load_shed().concurrency_limit(1).layer(world.layer());
        let client = client.service(world.apsis.clone());
        let [first, second] = join(send(&client, keyspaces()), send(&client, keyspaces())).await;
        assert_eq!(first.unwrap().status(), StatusCode::OK);
        assert!(second.unwrap_err().is::<Overloaded>());

        // The time limit above counts from the call, and the wait for the permit comes before it.
        let client = ServiceBuilder::new().timeout(Duration::from_secs(25)).concurrency_limit(1).load_shed();
        let client = client.layer(world.layer()).service(world.apsis.clone());
        let started = Instant::now();
        for answer in join(send(&client, keyspaces()), send(&client, keyspaces())).await {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
        assert_eq!(started.elapsed().as_secs(), 40);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn beneath_the_layer_a_rate_counts_replays_and_above_it_does_not() {
    const MINUTE: Duration = Duration::from_secs(60);

    limited(async {
        let (world, started) = (World::new(), Instant::now());
        let mut client = ServiceBuilder::new().rate_limit(1, MINUTE).layer(world.layer()).service(world.apsis.clone());
        world.apsis.script_api_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        let response =
            ServiceExt::<Request<Full<Bytes>>>::ready(&mut client).await.unwrap().call(keyspaces()).await.unwrap();
        assert_eq!((response.status(), started.elapsed()), (StatusCode::OK, Duration::ZERO));

        let (world, started) = (World::new(), Instant::now());
        let client =
            ServiceBuilder::new().layer(world.layer()).buffer(8).rate_limit(1, MINUTE).service(world.apsis.clone());
        world.apsis.script_api_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        let response = send(&client, keyspaces()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(started.elapsed() >= MINUTE, "{:?}", started.elapsed());
    })
    .await;
}

// What changes a request on its way.

#[tokio::test(start_paused = true)]
async fn an_authorization_that_is_put_on_above_is_replaced_and_one_beneath_takes_the_tokens_place_or_goes_beside_it() {
    limited(async {
        let own = |mut request: Request<Full<Bytes>>| {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("Basic b3du"));
            request
        };
        let beside = |mut request: Request<Full<Bytes>>| {
            request.headers_mut().append(AUTHORIZATION, HeaderValue::from_static("Basic b3du"));
            request
        };
        let (world, record) = (World::new(), Record::default());
        let client = ServiceBuilder::new().map_request(own).layer(world.layer()).service(accepting(&record));
        send(&client, keyspaces()).await.unwrap();
        let client = ServiceBuilder::new().layer(world.layer()).map_request(own).service(accepting(&record));
        send(&client, keyspaces()).await.unwrap();
        let authorizations = record.authorizations();
        assert!(authorizations[0].starts_with("Bearer "), "{authorizations:?}");
        assert_eq!(authorizations[1], "Basic b3du");
        let client = ServiceBuilder::new().layer(world.layer()).map_request(beside).service(accepting(&record));
        send(&client, keyspaces()).await.unwrap();
        assert_eq!(record.all()[2].head.headers.get_all(AUTHORIZATION).iter().count(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_uri_that_is_completed_above_is_in_scope_and_one_that_is_changed_beneath_takes_the_token_along() {
    limited(async {
        let to = |base: &'static str| {
            move |mut request: Request<Full<Bytes>>| {
                let path = request.uri().path().to_owned();
                *request.uri_mut() = base.parse::<Uri>().unwrap();
                *request.uri_mut() = format!("{}{path}", base.trim_end_matches('/')).parse().unwrap();
                request
            }
        };
        let (world, record) = (World::new(), Record::default());
        let client = ServiceBuilder::new().map_request(to(BASE)).layer(world.layer()).service(accepting(&record));
        send(&client, Request::get("/audience/keyspaces").body(Full::default()).unwrap()).await.unwrap();
        let client = ServiceBuilder::new().map_request(to(ELSEWHERE)).layer(world.layer()).service(accepting(&record));
        send(&client, get("/audience/keyspaces")).await.unwrap();
        let client = ServiceBuilder::new().layer(world.layer()).map_request(to(ELSEWHERE)).service(accepting(&record));
        send(&client, get("/audience/keyspaces")).await.unwrap();

        let sent = record.all();
        let hosts: Vec<_> = sent.iter().map(|sent| sent.head.uri.host().unwrap()).collect();
        assert_eq!(hosts, ["api.apsis.one", "elsewhere.example", "elsewhere.example"]);
        let has_token: Vec<_> = sent.iter().map(|sent| !sent.authorization().is_empty()).collect();
        assert_eq!(has_token, [true, false, true], "the last is what must not be built");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_of_another_type_beneath_is_read_above_and_the_rejection_is_whole() {
    limited(async {
        let world = World::new();
        let client = ServiceBuilder::new()
            .layer(world.builder().without_replay().build().unwrap())
            .map_response_body(BodyExt::boxed_unsync)
            .service(world.apsis.clone());
        world.apsis.script_api_answers([Answer::status(StatusCode::UNAUTHORIZED).body("why")]);
        assert_eq!(text(send(&client, keyspaces()).await.unwrap()).await, "why");
    })
    .await;
}

// Helpers.

/// Both at the same time.
async fn join<T>(first: impl Future<Output = T>, second: impl Future<Output = T>) -> [T; 2] {
    let (first, second) = tokio::join!(first, second);
    [first, second]
}

/// The first answer is a redirect, all others have this status.
fn redirecting(
    record: &Record,
    location: &'static str,
    then: StatusCode,
) -> impl Service<Request<Full<Bytes>>, Response = Response<String>, Error = BoxError, Future: Send> + Clone + use<> {
    scripted_api(record, move |_: &Sent, number| if number == 1 { redirect(location) } else { answer(then, "") })
}

fn accepting(
    record: &Record,
) -> impl Service<Request<Full<Bytes>>, Response = Response<String>, Error = BoxError, Future: Send> + Clone + use<> {
    scripted_api(record, |_: &Sent, _| answer(StatusCode::OK, ""))
}

fn redirect(location: &'static str) -> Response<String> {
    let mut response = answer(StatusCode::FOUND, "");
    response.headers_mut().insert(LOCATION, HeaderValue::from_static(location));
    response
}

fn is_out_of_scope<B>(response: &Response<B>) -> bool {
    matches!(response.extensions().get(), Some(AuthOutcome::OutOfScope))
}

/// Follows every redirect, with all that the request has.
#[derive(Clone)]
struct Careless;

impl<B, E> policy::Policy<B, E> for Careless {
    fn redirect(&mut self, _: &Attempt<'_>) -> Result<Action, E> {
        Ok(Action::Follow)
    }
}

/// Sends anew what was not a success, so many times.
#[derive(Clone)]
struct Tries {
    left: usize,
    pause: Duration,
}

impl<E> Policy<Request<Full<Bytes>>, Response<String>, E> for Tries {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        _: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<String>, E>,
    ) -> Option<Self::Future> {
        if self.left == 0 || result.as_ref().is_ok_and(|response| response.status().is_success()) {
            return None;
        }
        self.left -= 1;
        Some(Box::pin(sleep(self.pause)))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}

/// Sends anew what failed for want of a token, when the error says so.
#[derive(Clone)]
struct WhenTokensAreToBeHad;

impl Policy<Request<Full<Bytes>>, Response<String>, BoxError> for WhenTokensAreToBeHad {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(
        &mut self,
        _: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<String>, BoxError>,
    ) -> Option<Self::Future> {
        let error = result.as_ref().err()?.downcast_ref::<AuthError>().filter(|error| error.is_retryable())?;
        Some(Box::pin(sleep_until(error.retry_at()?.into())))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}
