//! Real processes, the emulator's server, and a store between them.
//!
//! A worker is this very program once more, told by its environment to be one.

use std::{
    env,
    io::{BufRead, BufReader, Write, stdin},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use apsis_auth::{
    ApsisAuthLayer, ClientCredentials, FileStore,
    emulator::{Answer, Emulator, EmulatorServer},
};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt};

use crate::file::Folder;

const WORKER: &str = "APSIS_TEST_WORKER";
const URL: &str = "APSIS_TEST_URL";
const PROCESSES: usize = 50;

/// Not a test, but what the others start: for each line it reads it sends a request, and prints what came of it.
#[tokio::test]
async fn a_worker_does_as_it_is_told() {
    let Ok(folder) = env::var(WORKER) else { return };
    let base = env::var(URL).unwrap();
    let builder = ApsisAuthLayer::builder(ClientCredentials::from_env().unwrap(), base.as_str());
    let layer = builder.store(FileStore::new(folder)).build().unwrap();
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
    fn start(apsis: &Emulator, server: &EmulatorServer, folder: &Path) -> Self {
        let key = apsis.api_key();
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "processes::a_worker_does_as_it_is_told", "--nocapture"])
            .env(WORKER, folder)
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
        workers.iter_mut().for_each(Worker::order);
        let answers: Vec<_> = workers.iter_mut().map(Worker::answer).collect();
        assert!(answers.iter().all(|(outcome, _)| outcome == "200"), "{answers:?}");
        let adopted = answers.iter().filter(|(_, adopted)| *adopted).count();
        (workers, adopted)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_processes_that_share_a_folder_make_one_token_request_and_one_more_when_it_is_revoked() {
    let (apsis, folder) = (Emulator::new(), Folder::new());
    let server = apsis.serve().await.unwrap();
    apsis.set_api_limit(10_000);
    apsis.set_token_delay(Duration::from_millis(200));
    let workers = (0..PROCESSES).map(|_| Worker::start(&apsis, &server, folder.path())).collect();

    let (workers, adopted) = round(workers).await;
    assert_eq!((apsis.counters().token_requests, adopted), (1, PROCESSES - 1));

    apsis.revoke_tokens();
    let (workers, adopted) = round(workers).await;
    assert_eq!((apsis.counters().token_requests, adopted), (2, PROCESSES - 1));

    // They run no more; what comes later finds what they left.
    drop(workers);
    let late = vec![Worker::start(&apsis, &server, folder.path())];
    assert_eq!(round(late).await.1, 1);
    assert_eq!(apsis.counters().token_requests, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_process_is_killed_while_it_asks_another_one_asks_at_once() {
    let (apsis, folder) = (Emulator::new(), Folder::new());
    let server = apsis.serve().await.unwrap();
    apsis.script_token_answers([Answer::hang()]);
    let mut holder = Worker::start(&apsis, &server, folder.path());
    holder.order();
    while apsis.counters().token_requests == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    let others = (0..3).map(|_| Worker::start(&apsis, &server, folder.path())).collect();
    let others = tokio::spawn(round(others));
    sleep(Duration::from_millis(300)).await;
    assert_eq!(apsis.counters().token_requests, 1);

    let killed = Instant::now();
    drop(holder);
    let (_workers, adopted) = others.await.unwrap();

    assert_eq!((apsis.counters().token_requests, adopted), (2, 2));
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
}
