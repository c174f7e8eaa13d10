//! Law 35 over TLS: tokens that die every few milliseconds, for as long as it takes to make so many calls.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::HashMap,
    iter,
    sync::{
        Arc, Mutex,
        atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed},
    },
};

use apsis_auth::{AccessToken, ApsisAuth, AuthOutcome, emulator::EmulatorServer};
use http::{HeaderValue, Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::{
    runtime::{Builder, Handle},
    task::JoinSet,
    time::interval,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use super::{
    clients::{HttpsClient, World, keyspaces},
    faults::{CALL, Sent, until},
    *,
};

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_tokens_die_all_calls_are_answered_none_goes_back_to_an_older_token_and_no_task_stays() {
    const CALLERS: usize = 10;
    const CALLS: usize = 50;
    /// On a fast machine each caller makes more calls until there were so many.
    const TOKENS: usize = 30;

    limited(async {
        let before = tasks();
        let (world, sent, issued) = (World::new().await, Sent::default(), Issued::default());
        let tokens = unlimited(&world).await;
        let builder = token_of(&world.apsis, &tokens.url()).further_origin(world.server.url());
        let auth = builder.token_requests_per_minute(100_000).transport(issued.noting()).build().unwrap();
        let token = auth.handle();
        token.warm_up().await.unwrap();

        let (mut callers, calls) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for version in VERSIONS {
            let https_client = world.https_client::<Full<Bytes>>(version);
            let service = ServiceBuilder::new().layer(auth.clone()).map_request(sent.noting()).service(https_client);
            for _ in 0..CALLERS {
                let (service, sent, issued, token) = (service.clone(), sent.clone(), issued.clone(), token.clone());
                let (request, calls) = (keyspaces(&world, Full::default()), Arc::clone(&calls));
                callers.spawn(async move {
                    let mut tally = Tally::default();
                    for made in 0.. {
                        if made >= CALLS && issued.count() >= TOKENS {
                            break;
                        }
                        let (mut request, call) = (request.clone(), calls.fetch_add(1, Relaxed));
                        request.headers_mut().insert(CALL, call.into());
                        let current = token.get().await.unwrap();
                        let response = service.clone().oneshot(request).await.unwrap();
                        issued.assert_in_order(&current, &sent.of(call));
                        tally.count(response.status(), response.extensions().get());
                        response.into_body().collect().await.unwrap();
                    }
                    tally
                });
            }
        }
        let most_tasks = Arc::new(AtomicUsize::new(0));
        let revoking = tokio::spawn(revoke_again_and_again(world.apsis.clone(), Arc::clone(&most_tasks)));
        let renewing = tokio::spawn(renew_again_and_again(token));
        let tally = callers.join_all().await.into_iter().fold(Tally::default(), Tally::and);
        assert!(!revoking.is_finished() && !renewing.is_finished(), "both went on to the end");
        revoking.abort();
        renewing.abort();

        let calls = calls.load(Relaxed);
        assert_eq!(tally.accepted + tally.replayed + tally.rejected_twice + tally.cooling_down, calls);
        // The token is revoked after so many answers at the earliest, and renewed by force besides.
        assert!(tally.replayed >= calls / 20 && tally.rejected_twice <= calls * 3 / 4, "{tally:?}");
        let most_tasks = most_tasks.load(Relaxed);
        // A caller, its connection or its stream at both ends, and one that is on its way to be closed.
        assert!(most_tasks <= 5 * VERSIONS.len() * CALLERS, "{most_tasks} tasks at once");
        drop(auth);
        tokens.shutdown().await;
        world.server.shutdown().await;
        until(|| tasks() == before).await;
    })
    .await;
}

/// In a process of its own, where nobody else takes memory.
#[test]
fn five_times_as_many_renewals_take_no_more_memory() {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["soak::renew_and_measure", "--exact", "--nocapture"]);
    let output = process.env(CHILD, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Run by the test above. Elsewhere it is of no use.
#[test]
fn renew_and_measure() {
    const ROUNDS: usize = 30;
    // The budget, and the emulator's two windows, keep a moment of each request for a minute or a second.
    const MOMENTS: isize = 64 * 1024;

    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(limited(async {
        let world = World::new().await;
        let tokens = unlimited(&world).await;
        let builder = token_of(&world.apsis, &tokens.url()).further_origin(world.server.url());
        let auth = builder.token_requests_per_minute(100_000).build().unwrap();
        let clients = VERSIONS.map(|version| auth.layer(world.https_client(version)));
        let rounds = async |rounds| {
            for _ in 0..rounds {
                assert_round(&world, &auth.handle(), &clients).await;
            }
            LIVE.load(Relaxed)
        };
        let after_few = rounds(ROUNDS).await;
        let more = rounds(4 * ROUNDS).await - after_few;
        assert!(more <= MOMENTS, "{more} bytes more than the {after_few} before");
    }));
}

/// One token is renewed by force, the next because it died, and all are served.
async fn assert_round(world: &World, token: &TokenHandle, clients: &[ApsisAuth<HttpsClient<Full<Bytes>>>; 2]) {
    token.renew().await.unwrap();
    world.apsis.revoke_tokens();
    let mut callers = JoinSet::new();
    for client in clients.iter().flat_map(|client| iter::repeat_n(client, 4)) {
        callers.spawn(client.clone().oneshot(keyspaces(world, Full::default())));
    }
    for response in callers.join_all().await {
        let response = response.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
    }
}

// Helpers.

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Takes the limits out of the way, and serves tokens without TLS: faster, and with no cache of sessions that fills.
async fn unlimited(world: &World) -> EmulatorServer {
    world.apsis.set_api_limit(1_000_000);
    world.apsis.set_token_limit(1_000_000);
    world.apsis.serve().await.unwrap()
}

/// Every few milliseconds, but on a busy machine not before the last token was of use to some. Counts tasks on the way.
async fn revoke_again_and_again(apsis: Emulator, most_tasks: Arc<AtomicUsize>) {
    const OF_USE: u64 = 20;

    let (mut interval, mut accepted) = (interval(Duration::from_millis(3)), 0);
    loop {
        interval.tick().await;
        if apsis.counters().api_accepted >= accepted + OF_USE {
            apsis.revoke_tokens();
            accepted = apsis.counters().api_accepted;
        }
        most_tasks.fetch_max(tasks(), Relaxed);
    }
}

async fn renew_again_and_again(token: TokenHandle) {
    let mut interval = interval(Duration::from_millis(10));
    loop {
        interval.tick().await;
        token.renew().await.unwrap();
    }
}

/// How calls ended.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    accepted: usize,
    replayed: usize,
    rejected_twice: usize,
    cooling_down: usize,
}

impl Tally {
    fn count(&mut self, status: StatusCode, outcome: Option<&AuthOutcome>) {
        *match (status, outcome) {
            (StatusCode::OK, None) => &mut self.accepted,
            (StatusCode::OK, Some(AuthOutcome::Replayed)) => &mut self.replayed,
            (StatusCode::UNAUTHORIZED, Some(AuthOutcome::Replayed)) => &mut self.rejected_twice,
            (StatusCode::UNAUTHORIZED, Some(AuthOutcome::NotRenewed(AuthError::CoolingDown { .. }))) => {
                &mut self.cooling_down
            }
            other => panic!("{other:?}"),
        } += 1;
    }

    fn and(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            replayed: self.replayed + other.replayed,
            rejected_twice: self.rejected_twice + other.rejected_twice,
            cooling_down: self.cooling_down + other.cooling_down,
        }
    }
}

/// The tokens, each with its number. There is one flight at a time, so that is its generation.
#[derive(Clone, Default)]
struct Issued(Arc<Mutex<HashMap<HeaderValue, u64>>>);

impl Issued {
    /// A transport that notes each token before the layer has it.
    fn noting(
        &self,
    ) -> impl Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        let (issued, http_client) = (self.clone(), Client::builder(TokioExecutor::new()).build_http());
        service_fn(move |request| {
            let (issued, answer) = (issued.clone(), http_client.request(request));
            async move {
                let (head, body) = answer.await?.into_parts();
                let body = body.collect().await?.to_bytes();
                let answer: Value = serde_json::from_slice(&body)?;
                let token = HeaderValue::try_from(format!("Bearer {}", answer["access_token"].as_str().unwrap()))?;
                let mut issued = issued.0.lock().unwrap();
                let number = issued.len() as u64 + 1;
                issued.insert(token, number);
                Ok(Response::from_parts(head, Full::new(body)))
            }
        })
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// What was current before a call, and what was sent for it: once, or with a newer one twice.
    fn assert_in_order(&self, current: &AccessToken, sent: &[HeaderValue]) {
        let issued = self.0.lock().unwrap();
        assert_eq!(issued[&current.header_value()], current.generation());
        let generations: Vec<_> = sent.iter().map(|token| issued[token]).collect();
        assert!(generations[0] >= current.generation(), "{generations:?} after {}", current.generation());
        assert!(generations.len() == 1 || generations.len() == 2 && generations[0] < generations[1], "{generations:?}");
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes that are in use.
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, which counts.
struct Counting;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement; it counts for the tests alone")]
// SAFETY: every block comes from the system's allocator and goes back to it with the layout it was made with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size().cast_signed(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size().cast_signed(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
