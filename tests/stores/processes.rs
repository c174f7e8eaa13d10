//! Real processes, the emulator's server, and a store between them.
//!
//! A worker is this very program once more, told by its environment to be one.

use std::{
    env,
    io::{BufRead, BufReader, Write, stdin},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use apsis_auth::{
    ApsisAuthLayer, ClientCredentials, FileStore, RedisStore,
    emulator::{Answer, Emulator, EmulatorServer},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt};

use crate::{
    file::Folder,
    server::{Server, signal_to},
};

/// A folder, or the URL of a server.
const WORKER: &str = "APSIS_TEST_WORKER";
const URL: &str = "APSIS_TEST_URL";
const PROCESSES: usize = 50;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Two seconds more than an attempt.
const LEASE_LASTS: Duration = Duration::from_secs(5);

/// Not a test, but what the others start: for each line it reads it sends a request, and prints what came of it.
#[tokio::test]
async fn a_worker_does_as_it_is_told() {
    let Ok(store) = env::var(WORKER) else { return };
    let base = env::var(URL).unwrap();
    let builder = ApsisAuthLayer::builder(ClientCredentials::from_env().unwrap(), base.as_str());
    let builder = if store.contains("://") {
        builder.store(RedisStore::new(&store).unwrap())
    } else {
        builder.store(FileStore::new(store))
    };
    let layer = builder.attempt_timeout(ATTEMPT_TIMEOUT).build().unwrap();
    let client = layer.layer(Client::builder(TokioExecutor::new()).build_http());
    while spawn_blocking(|| stdin().read_line(&mut String::new()).unwrap()).await.unwrap() > 0 {
        let request = Request::get(format!("{base}/audience/keyspaces")).body(Full::<Bytes>::default()).unwrap();
        let outcome = match client.clone().oneshot(request).await {
            Ok(answer) => answer.status().as_str().to_owned(),
            Err(error) => error.to_string(),
        };
        let adopted = layer.handle().snapshot().token.is_some_and(|token| token.adopted);
        println!("\n{ANSWER}{outcome} {adopted}");
    }
}

/// The test harness prints lines of its own.
const ANSWER: &str = "answer: ";

struct Worker {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(apsis: &Emulator, server: &EmulatorServer, store: &str) -> Self {
        let key = apsis.api_key();
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::a_worker_does_as_it_is_told", "--nocapture"])
            .env(WORKER, store)
            .env(URL, server.url())
            .env("APSIS_CLIENT_ID", key.client_id())
            .env("APSIS_CLIENT_SECRET", key.client_secret())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, orders, answers }
    }

    fn order(&mut self) {
        self.orders.write_all(b"\n").unwrap();
    }

    fn signal(&self, signal: &str) {
        signal_to(&self.process, signal);
    }

    /// What came of its request, and whether its token was adopted.
    fn answer(&mut self) -> (String, bool) {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.answers.read_line(&mut line).unwrap() > 0, "the worker is gone");
            if let Some(answer) = line.trim_end().strip_prefix(ANSWER) {
                let (outcome, adopted) = answer.rsplit_once(' ').unwrap();
                return (outcome.to_owned(), adopted == "true");
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Each sends a request at the same time as the others. How many tokens were adopted.
async fn round(mut workers: Vec<Worker>) -> (Vec<Worker>, usize) {
    // Reading blocks.
    spawn_blocking(move || {
        let adopted = requests(&mut workers);
        (workers, adopted)
    })
    .await
    .unwrap()
}

fn requests(workers: &mut [Worker]) -> usize {
    workers.iter_mut().for_each(Worker::order);
    let answers: Vec<_> = workers.iter_mut().map(Worker::answer).collect();
    assert!(answers.iter().all(|(outcome, _)| outcome == "200"), "{answers:?}");
    answers.iter().filter(|(_, adopted)| *adopted).count()
}

/// Round after round, to its end. Each request has to succeed.
struct Load {
    rounds: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    running: JoinHandle<()>,
}

impl Load {
    fn of(mut workers: Vec<Worker>) -> Self {
        let (rounds, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, told) = (Arc::clone(&rounds), Arc::clone(&is_over));
        let running = spawn_blocking(move || {
            while !told.load(Ordering::Relaxed) {
                requests(&mut workers);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { rounds, is_over, running }
    }

    /// Two whole rounds from here on.
    async fn goes_on(&self) {
        let enough = self.rounds.load(Ordering::Relaxed) + 3;
        let limited = timeout(Duration::from_secs(60), async {
            while self.rounds.load(Ordering::Relaxed) < enough {
                assert!(!self.running.is_finished(), "a request failed");
                sleep(Duration::from_millis(5)).await;
            }
        });
        limited.await.expect("the load stands still");
    }

    async fn ends(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        (&mut self.running).await.unwrap();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Processes that have a token, by one request.
async fn fleet(apsis: &Emulator, server: &EmulatorServer, store: &str) -> Vec<Worker> {
    apsis.set_api_limit(10_000);
    apsis.set_token_delay(Duration::from_millis(200));
    let workers = (0..PROCESSES).map(|_| Worker::start(apsis, server, store)).collect();
    let (workers, adopted) = round(workers).await;
    assert_eq!((apsis.counters().token_requests, adopted), (1, PROCESSES - 1));
    workers
}

async fn fifty_processes_make_one_token_request_and_one_more_when_it_is_revoked(store: &str) {
    let apsis = Emulator::new();
    let server = apsis.serve().await.unwrap();
    let workers = fleet(&apsis, &server, store).await;

    apsis.revoke_tokens();
    let (workers, adopted) = round(workers).await;
    assert_eq!((apsis.counters().token_requests, adopted), (2, PROCESSES - 1));

    // They run no more; what comes later finds what they left.
    drop(workers);
    for _ in 0..10 {
        let late = vec![Worker::start(&apsis, &server, store)];
        assert_eq!(round(late).await.1, 1);
    }
    assert_eq!(apsis.counters().token_requests, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_processes_that_share_a_folder_make_one_token_request_and_one_more_when_it_is_revoked() {
    let folder = Folder::new();
    fifty_processes_make_one_token_request_and_one_more_when_it_is_revoked(folder.path().to_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_processes_that_share_a_redis_make_one_token_request_and_one_more_when_it_is_revoked() {
    let redis = Server::start();
    fifty_processes_make_one_token_request_and_one_more_when_it_is_revoked(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_revoked_under_load_costs_fifty_processes_one_token_request() {
    let (apsis, redis) = (Emulator::new(), Server::start());
    let server = apsis.serve().await.unwrap();
    let load = Load::of(fleet(&apsis, &server, &redis.url()).await);
    for requests in 2..4 {
        load.goes_on().await;
        apsis.revoke_tokens();
        load.goes_on().await;
        assert_eq!(apsis.counters().token_requests, requests);
    }
    load.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_under_load_and_comes_back_empty_fails_no_request() {
    let (apsis, mut redis) = (Emulator::new(), Server::start());
    let server = apsis.serve().await.unwrap();
    let load = Load::of(fleet(&apsis, &server, &redis.url()).await);

    // With a good token nobody asks for it.
    redis.kill();
    load.goes_on().await;
    redis.start_again();
    load.goes_on().await;
    assert_eq!(apsis.counters().token_requests, 1);

    // Each process asks for itself, by its own budget.
    redis.kill();
    apsis.set_token_limit(1000);
    apsis.revoke_tokens();
    load.goes_on().await;
    let alone = apsis.counters().token_requests;
    assert!((2..=1 + PROCESSES as u64).contains(&alone), "{alone}");

    redis.start_again();
    apsis.revoke_tokens();
    load.goes_on().await;
    assert_eq!(apsis.counters().token_requests, alone + 1);
    load.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_under_load_has_the_token_and_fails_no_request() {
    let (apsis, mut redis) = (Emulator::new(), Server::start());
    let server = apsis.serve().await.unwrap();
    let load = Load::of(fleet(&apsis, &server, &redis.url()).await);
    let replica = redis.replica();

    redis.kill();
    load.goes_on().await;
    replica.takes_over(&redis);
    let late = vec![Worker::start(&apsis, &server, &redis.url())];
    assert_eq!(round(late).await.1, 1);
    assert_eq!(apsis.counters().token_requests, 1);

    apsis.revoke_tokens();
    load.goes_on().await;
    assert_eq!(apsis.counters().token_requests, 2);
    load.ends().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stands_still_longer_than_every_limit_fails_no_request() {
    let (apsis, redis) = (Emulator::new(), Server::start());
    let server = apsis.serve().await.unwrap();
    let load = Load::of(fleet(&apsis, &server, &redis.url()).await);

    redis.stop();
    apsis.set_token_limit(1000);
    apsis.revoke_tokens();
    load.goes_on().await;
    let alone = apsis.counters().token_requests;
    assert!((2..=1 + PROCESSES as u64).contains(&alone), "{alone}");

    redis.go_on();
    apsis.revoke_tokens();
    load.goes_on().await;
    assert_eq!(apsis.counters().token_requests, alone + 1);
    load.ends().await;
}

/// One process that is asking, and three that wait for what it brings.
async fn one_asks_and_three_wait(apsis: &Emulator, server: &EmulatorServer, store: &str) -> (Worker, Waiting) {
    let mut holder = Worker::start(apsis, server, store);
    holder.order();
    while apsis.counters().token_requests == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let others = (0..3).map(|_| Worker::start(apsis, server, store)).collect();
    (holder, tokio::spawn(round(others)))
}

type Waiting = JoinHandle<(Vec<Worker>, usize)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_process_is_killed_while_it_asks_another_one_asks_at_once() {
    let (apsis, folder) = (Emulator::new(), Folder::new());
    let (server, folder) = (apsis.serve().await.unwrap(), folder.path().to_str().unwrap());
    apsis.script_token_answers([Answer::hang()]);
    let (holder, others) = one_asks_and_three_wait(&apsis, &server, folder).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(apsis.counters().token_requests, 1);

    let killed = Instant::now();
    drop(holder);
    let (_workers, adopted) = others.await.unwrap();

    assert_eq!((apsis.counters().token_requests, adopted), (2, 2));
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_process_is_killed_while_it_asks_another_one_asks_once_its_lease_in_redis_is_over() {
    let (apsis, redis) = (Emulator::new(), Server::start());
    let (server, url) = (apsis.serve().await.unwrap(), redis.url());
    apsis.script_token_answers([Answer::hang()]);
    let (holder, others) = one_asks_and_three_wait(&apsis, &server, &url).await;

    let killed = Instant::now();
    drop(holder);
    let (_workers, adopted) = others.await.unwrap();

    assert_eq!((apsis.counters().token_requests, adopted), (2, 2));
    println!("another one asked, and all were served, {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < LEASE_LASTS * 2, "{:?}", killed.elapsed());
}

async fn a_process_that_sleeps_past_its_lease_does_not_overwrite_the_newer_token(store: &str) {
    let apsis = Emulator::new();
    let server = apsis.serve().await.unwrap();
    apsis.set_token_delay(Duration::from_secs(1));
    let (holder, others) = one_asks_and_three_wait(&apsis, &server, store).await;
    holder.signal("-STOP");
    // Its answer is on the way, and what it brings is dead.
    sleep(Duration::from_millis(1500)).await;
    apsis.revoke_tokens();
    apsis.set_token_delay(Duration::ZERO);
    let (_workers, adopted) = others.await.unwrap();
    assert_eq!((apsis.counters().token_requests, adopted), (2, 2));

    holder.signal("-CONT");
    let mut holder = holder;
    let (holder, (outcome, adopted)) = spawn_blocking(move || {
        let answer = holder.answer();
        (holder, answer)
    })
    .await
    .unwrap();
    assert_eq!((outcome.as_str(), adopted), ("200", true));
    drop(holder);

    let late = vec![Worker::start(&apsis, &server, store)];
    assert_eq!(round(late).await.1, 1);
    assert_eq!(apsis.counters().token_requests, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_sleeps_past_its_lease_does_not_overwrite_the_newer_token_in_redis() {
    let redis = Server::start();
    a_process_that_sleeps_past_its_lease_does_not_overwrite_the_newer_token(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_sleeps_past_its_lease_does_not_overwrite_the_newer_token_in_a_folder() {
    let folder = Folder::new();
    a_process_that_sleeps_past_its_lease_does_not_overwrite_the_newer_token(folder.path().to_str().unwrap()).await;
}
