//! Imports profiles from a CSV file into APSIS One, through the layer.
//!
//! Without an account, against an emulator in the same process, the sample of 1,000 profiles that comes along:
//!
//! ```text
//! cargo run --example import --features emulator -- --emulator
//! ```
//!
//! With `APSIS_CLIENT_ID`, `APSIS_CLIENT_SECRET` and `APSIS_REGION` set, a file of your own into your account:
//!
//! ```text
//! cargo run --example import --features emulator -- --input customers.csv --section usercreated.sections.newsletter
//! ```
//!
//! # The file
//!
//! Its first line names the columns. `email`, in any case, is the profile key. Every other column is an attribute, called in the API
//! what the column is called; its values are sent as strings, and an empty cell is not sent, so it changes nothing. The
//! file is UTF-8, with or without a byte order mark, and as long as it likes: it is read as it is sent.
//!
//! # What it promises
//!
//! - Every record that is read is applied, or in the file of failed records, or counted as not sent. In the last case
//!   the summary says from which line to go on.
//! - A record that fails is written as it was, byte for byte in each field, with its line and the reason in two columns
//!   of ours before it, `import_line` and `import_reason`. Those two are not imported: mend the file and import it. The
//!   file is new; none is overwritten.
//! - Records that cannot be sent are known before: a wrong number of fields, no UTF-8, no e-mail address, a key that
//!   was there already (upper and lower case are one). The others are sent nevertheless.
//! - At most `--rate` requests a second leave, repetitions included. A 429, 502, 503 or 504 of the API, a lost
//!   connection and an answer that takes too long are tried again, later and later, and not before a `Retry-After`.
//! - While there is no token for a time, as when the token endpoint is over its limit, the import waits. When none is
//!   to be had (the API key was deleted) it stops, with the records not sent.
//! - When many records in a row fail for the same reason it stops, too: the section may be misspelt.
//! - Ctrl-C or SIGTERM ends it in good order: what is under way may end, and the summary is printed. A second one ends it at once.
//! - To import a file twice does no harm: what is sent says what shall be, not what shall change.
//!
//! # Exit status
//!
//! | status | what it means |
//! | --- | --- |
//! | 0 | every record was applied |
//! | 1 | some failed, or it stopped early |
//! | 2 | nothing was sent: wrong options, no credentials, or a file that is none (no column `email`, no records …) |
//! | 130 | ended at once by a second Ctrl-C |

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program is for")]

mod client;
mod failed;
mod import;
mod progress;
mod records;
mod retry;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fs::File,
    future::{Future, pending},
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use apsis_auth::{
    ApsisAuthLayer, Region,
    emulator::{Answer, Emulator},
};
use clap::Parser;
use serde_json::Value;
use tokio::runtime;
use tower::BoxError;

use crate::{
    client::{Client, https_client},
    failed::FailedFile,
    import::{Import, READ_AHEAD, Summary, Target, run},
    progress::{Counts, Display, Watch},
    records::Records,
};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/import/sample.csv");

const ENVIRONMENT: &str = "\
Environment:
  APSIS_CLIENT_ID, APSIS_CLIENT_SECRET  the API key; or APSIS_CLIENT_ID_FILE, APSIS_CLIENT_SECRET_FILE: files that hold it
  APSIS_REGION                          eu or apac

With --emulator they do not count.

While there is no token for a time, a record waits for 15 minutes at most. The exit status is 0 if every record was
applied, 1 if some failed or it stopped early, 2 if nothing was sent.";

/// Imports profiles from a CSV file into APSIS One.
#[derive(Debug, Parser)]
#[command(name = "import", after_help = ENVIRONMENT)]
struct Options {
    /// The file; its first line names the columns, `email` among them [default with --emulator: the sample]
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "emulator",
        default_value_if("emulator", "true", SAMPLE)
    )]
    input: Option<PathBuf>,
    /// What stands between the fields
    #[arg(long, value_name = "CHARACTER", default_value = ",", value_parser = parse_delimiter)]
    delimiter: u8,
    /// Records that begin before this line are not sent
    #[arg(long, value_name = "LINE", default_value_t = 0, hide_default_value = true)]
    from_line: u64,
    /// A new file for the records that failed [default: INPUT.failed.csv in this folder, with a number if it is taken]
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,
    /// The keyspace that the keys belong to
    #[arg(long, default_value = "com.apsis1.keyspaces.email")]
    keyspace: String,
    /// The section whose attributes are set
    #[arg(long, default_value = "com.apsis1.sections.default")]
    section: String,
    /// How many records may fail in a row for the same reason; 0: all
    #[arg(long, value_name = "RECORDS", default_value_t = 50)]
    give_up_after: u64,
    #[command(flatten)]
    limits: Limits,
    /// Import into an emulator of APSIS One, which revokes tokens on the way
    #[arg(long)]
    emulator: bool,
}

impl Options {
    fn input(&self) -> &Path {
        self.input.as_deref().unwrap_or(Path::new(SAMPLE))
    }
}

#[derive(Clone, Debug, clap::Args)]
struct Limits {
    /// Requests per second
    #[arg(long, value_name = "REQUESTS", default_value = "100")]
    rate: NonZeroU32,
    /// Requests that are under way at one time
    #[arg(long, value_name = "REQUESTS", default_value = "32")]
    concurrency: NonZeroUsize,
}

fn parse_delimiter(value: &str) -> Result<u8, &'static str> {
    match value.as_bytes() {
        [b'"' | b'\r' | b'\n'] => Err("a quote or a line break cannot stand between fields"),
        [delimiter] if delimiter.is_ascii() => Ok(*delimiter),
        b"\\t" => Ok(b'\t'),
        _ => Err("one ASCII character is needed; \\t is a tab"),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    let result = runtime.block_on(import(&options, interrupted()));
    // Without waiting for a read that blocks, from a pipe perhaps.
    runtime.shutdown_background();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => refuse(&*error),
    }
}

fn refuse(error: &dyn Error) -> ExitCode {
    eprintln!("{}", chain(error));
    ExitCode::from(2)
}

/// An error says what failed, and its sources say why.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether every record was applied. An error: nothing was sent.
async fn import(options: &Options, stop: impl Future<Output = ()>) -> Result<bool, BoxError> {
    if options.emulator { rehearse(options, stop).await } else { perform(options, stop).await }
}

async fn perform(options: &Options, stop: impl Future<Output = ()>) -> Result<bool, BoxError> {
    let (records, size) = open(options)?;
    let missing = |error| format!("{}; --emulator needs no account", chain(&error));
    let base = Region::from_env().map_err(missing)?.base_url();
    let auth = ApsisAuthLayer::from_env().map_err(missing)?;
    let failed = failed_file(options, &records)?;
    let display = Arc::new(Display::new(size));
    let summary = start(options, records, failed, base, auth, Arc::clone(&display), stop).await?;
    display.finish();
    println!("{summary}");
    Ok(summary.is_complete())
}

async fn start<W: Watch + 'static>(
    options: &Options,
    records: Records<File>,
    failed: FailedFile,
    base: &str,
    auth: ApsisAuthLayer,
    watch: Arc<W>,
    stop: impl Future<Output = ()>,
) -> Result<Summary, BoxError> {
    let import = Import {
        records,
        failed,
        target: Target::new(base, &options.keyspace, &options.section),
        from_line: options.from_line,
        read_ahead: READ_AHEAD,
        give_up_after: options.give_up_after,
        watch: Arc::<W>::clone(&watch),
    };
    let client = Client::new(https_client(base)?, auth, &options.limits, watch);
    let summary = run(import, client, stop).await;
    if summary.counts.read == 0 && summary.go_on_at.is_none() {
        return Err(format!("no record begins on line {} or after it", options.from_line).into());
    }
    Ok(summary)
}

fn open(options: &Options) -> Result<(Records<File>, Option<u64>), String> {
    let path = options.input();
    let file = File::open(path).map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
    let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    let records = Records::open(file, options.delimiter).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((records, size))
}

fn failed_file(options: &Options, records: &Records<File>) -> Result<FailedFile, String> {
    match &options.failed {
        Some(path) => FailedFile::create(path, records.names(), options.delimiter)
            .map_err(|error| format!("{} cannot be made for the records that fail: {error}", path.display())),
        None => FailedFile::create_beside(Path::new(""), options.input(), records.names(), options.delimiter)
            .map_err(|error| format!("no file can be made in this folder for the records that fail: {error}")),
    }
}

/// Ctrl-C, or what service managers send. A second one ends the process.
async fn interrupted() {
    signalled().await;
    tokio::spawn(async {
        signalled().await;
        // As a shell says it: 128 and the number of the signal of Ctrl-C.
        process::exit(130);
    });
}

async fn signalled() {
    tokio::select! {
        // If there is no such signal to be had, it never comes.
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};

    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => drop(terminated.recv().await),
        Err(_) => pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    pending().await
}

/// The import into an emulator that makes trouble on the way.
async fn rehearse(options: &Options, stop: impl Future<Output = ()>) -> Result<bool, BoxError> {
    let (records, size) = open(options)?;
    let failed = failed_file(options, &records)?;
    let apsis = Emulator::new();
    // It takes what it is sent: `--rate` is for the user to choose.
    apsis.set_api_limit(options.limits.rate.get().max(100));
    let server = apsis.serve().await?;
    let auth = ApsisAuthLayer::builder(apsis.api_key().credentials(), server.url()).build()?;
    let trouble_at = size.unwrap_or_default() / 3;
    let display = Display::new(size);
    let story = Arc::new(Story { display, apsis: apsis.clone(), trouble_at, is_told: AtomicBool::new(false) });
    story.message("An emulator of APSIS One takes the place of an account.");
    let started = Instant::now();
    let summary = start(options, records, failed, &server.url(), auth, Arc::clone(&story), stop).await?;
    story.display.finish();
    println!("{summary}");
    let took = started.elapsed();
    let counters = apsis.counters();
    println!(
        "It took {took:.1?}, {} token requests and {} API requests, of which {} were replayed with a new token.",
        counters.token_requests, counters.api_requests, counters.api_rejected
    );
    server.shutdown().await;
    if size.is_none() {
        // A pipe cannot be read twice.
        return Ok(summary.is_complete());
    }
    let applied = summary.counts.applied;
    let found = find_applied(options, &apsis)?;
    println!("Looked up at the emulator: {found} of {applied} applied are there with all they should have.");
    // More than that, if requests were cut off that the emulator had in hand.
    Ok(summary.is_complete() && found >= applied)
}

/// After a third of the file every token is revoked, and then the token endpoint is over its limit for three seconds.
struct Story {
    display: Display,
    apsis: Emulator,
    trouble_at: u64,
    is_told: AtomicBool,
}

impl Watch for Story {
    fn progress(&self, counts: Counts) {
        self.display.progress(counts);
        let is_time = counts.applied > 0 && counts.bytes >= self.trouble_at;
        if is_time && !self.is_told.swap(true, Ordering::Relaxed) {
            self.apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "3")]);
            self.apsis.revoke_tokens();
            let applied = counts.applied;
            self.message(&format!(
                "The emulator revoked every token after {applied} records, and takes no token request for 3 s."
            ));
        }
    }

    fn message(&self, text: &str) {
        self.display.message(text);
    }
}

/// How many records of the file the emulator has just as they are there.
fn find_applied(options: &Options, apsis: &Emulator) -> Result<u64, BoxError> {
    let (mut records, _) = open(options)?;
    let mut found = 0;
    // A file that breaks off ends here as it did for the import.
    while let Ok(Some(row)) = records.next() {
        let Ok(profile) = row.profile else { continue };
        let stored = apsis.profile(&options.keyspace, &profile.key);
        let expected: Value = serde_json::from_slice(&profile.attributes)?;
        found += u64::from(stored.is_some_and(|stored| stored.attributes == expected));
    }
    Ok(found)
}
