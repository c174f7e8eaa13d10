//! A fleet: processes that call APSIS One with the same credentials, with a store between them and without.
//!
//! ```text
//! cargo run --example fleet --features emulator,file-store
//! cargo run --example fleet --features emulator,file-store -- --store none
//! ```
//!
//! An emulator of APSIS One, in the first process, allows ten token requests a minute. The others are started at once, send
//! a request every tenth of a second, and tell where their token came from. In the middle all tokens are revoked.
//!
//! With a store there are two token requests, however many the processes are. Without one there are two for each, which is
//! more than the account is allowed, and some requests fail.

#![allow(clippy::print_stdout, reason = "printing is what this program is for")]

mod table;
mod worker;

use std::{
    env, fs,
    path::PathBuf,
    process::{self, Stdio},
    sync::Arc,
    time::Duration,
};

use apsis_auth::emulator::{Emulator, EmulatorServer};
use clap::Parser;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep},
};
use tower::BoxError;

use crate::{table::Table, worker::Report};

/// Starts processes that share one token of APSIS One, or do not.
#[derive(Debug, Parser)]
#[command(name = "fleet")]
struct Options {
    /// How many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=200))]
    processes: u16,
    /// How long they run; in the middle all tokens are revoked
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..))]
    seconds: u32,
    /// What they share their token through: a folder, or none [default: a folder that is removed again]
    #[arg(long, value_name = "FOLDER", value_parser = store)]
    store: Option<String>,
    /// What each process is started with
    #[arg(long, hide = true)]
    worker: Option<String>,
}

fn store(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains("://") { Err("it is a folder, or none") } else { Ok(text.to_owned()) }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let options = Options::parse();
    match &options.worker {
        Some(url) => worker::run(url, options.store.as_deref()).await,
        None => run(&options).await,
    }
}

async fn run(options: &Options) -> Result<(), BoxError> {
    let apsis = Emulator::new();
    apsis.set_api_limit(10_000);
    // What a token request takes in the world outside.
    apsis.set_token_delay(Duration::from_millis(200));
    let server = apsis.serve().await?;
    let own = OwnFolder::new();
    let store = match options.store.as_deref() {
        Some("none") => None,
        Some(store) => Some(store.to_owned()),
        None => Some(own.0.display().to_string()),
    };

    let table = Arc::new(Table::new(options.processes));
    let mut fleet = Vec::new();
    for number in 0..options.processes {
        fleet.push(start(number, &apsis, &server, store.as_deref(), &table)?);
    }
    let (half, started) = (Duration::from_secs(options.seconds.into()) / 2, Instant::now());
    let mut is_revoked = false;
    while started.elapsed() < 2 * half {
        if !is_revoked && started.elapsed() >= half {
            apsis.revoke_tokens();
            is_revoked = true;
        }
        table.show(&summary(&apsis, store.is_some(), is_revoked));
        sleep(Duration::from_millis(100)).await;
    }
    for process in &mut fleet {
        process.kill().await?;
    }
    table.print(&summary(&apsis, store.is_some(), is_revoked));
    server.shutdown().await;
    Ok(())
}

fn summary(apsis: &Emulator, has_store: bool, is_revoked: bool) -> String {
    let with = if has_store { "with a store" } else { "without a store" };
    let revoked = if is_revoked { ", all tokens revoked once" } else { "" };
    format!("token requests {with}{revoked}: {}", apsis.counters().token_requests)
}

/// This program once more. What it says goes into the table.
fn start(
    number: u16,
    apsis: &Emulator,
    server: &EmulatorServer,
    store: Option<&str>,
    table: &Arc<Table>,
) -> Result<Child, BoxError> {
    let key = apsis.api_key();
    let mut command = Command::new(env::current_exe()?);
    command.args(["--worker", &server.url()]);
    if let Some(store) = store {
        command.args(["--store", store]);
    }
    let mut process = command
        .env("APSIS_CLIENT_ID", key.client_id())
        .env("APSIS_CLIENT_SECRET", key.client_secret())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let said = process.stdout.take().ok_or("its output is piped")?;
    let table = Arc::clone(table);
    tokio::spawn(async move {
        let mut lines = BufReader::new(said).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(report) = serde_json::from_str::<Report>(&line) {
                table.enter(number, report);
            }
        }
    });
    Ok(process)
}

/// A folder that is removed in the end.
struct OwnFolder(PathBuf);

impl OwnFolder {
    fn new() -> Self {
        Self(env::temp_dir().join(format!("apsis-auth-fleet-{}", process::id())))
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
