//! The import itself: records in, requests out, and an account of each record.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    io::{self, Read},
    panic,
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use apsis_auth::{AuthError, AuthOutcome};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tower::{BoxError, Service, ServiceExt};

use crate::{
    chain,
    client::{Answer, Client},
    failed::FailedFile,
    progress::{Counts, Watch},
    records::{Broken, Profile, Records, Row},
};

/// How many records are read ahead.
pub(crate) const READ_AHEAD: usize = 64;
/// After a stop, for what is under way.
const GRACE: Duration = Duration::from_secs(10);
/// After a stop, for a file that is slow to read.
const READER_GRACE: Duration = Duration::from_secs(1);
/// How many failures are shown while they happen; all are in the file.
const SHOWN: u64 = 10;
/// How much is told of what the API says.
const LONGEST_REASON: usize = 300;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is not a letter, a digit or one of these is encoded: `andy.demo%40apsis.com`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

pub(crate) struct Import<R> {
    pub(crate) records: Records<R>,
    pub(crate) failed: FailedFile,
    pub(crate) target: Target,
    /// Records before this line are not sent.
    pub(crate) from_line: u64,
    pub(crate) read_ahead: usize,
    /// How many records may fail in a row for the same reason; 0: all.
    pub(crate) give_up_after: u64,
    pub(crate) watch: Arc<dyn Watch>,
}

/// Where the attributes of a profile go.
pub(crate) struct Target {
    profiles: String,
    section: String,
}

/// What became of the records.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    pub(crate) not_sent: u64,
    /// `None` if nothing failed.
    pub(crate) failed_file: Option<PathBuf>,
    /// Why the import did not come to the end.
    pub(crate) stop: Option<Stop>,
    /// The first line that was not settled.
    pub(crate) go_on_at: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    #[error("interrupted")]
    Asked,
    #[error("no token can be had: {0}")]
    NoToken(String),
    #[error("{count} records in a row failed for the same reason: {reason}")]
    SameFailure { count: u64, reason: String },
    #[error("the client is out of order: {0}")]
    Client(String),
    #[error("{0}")]
    Unreadable(#[from] Broken),
    #[error("the file of failed records cannot be written: {0}")]
    NotWritable(io::Error),
}

/// What became of a request.
enum End {
    Applied,
    /// With the status, if there was an answer.
    Failed(Option<StatusCode>, String),
    /// It was not applied, and no other will be.
    NoToken(String),
}

/// Why the reading ended.
pub(crate) enum ReadEnd {
    AtEnd,
    /// The record on this line was read, and nobody wanted it.
    NotTaken(u64),
    Broken(Broken),
}

impl Target {
    pub(crate) fn new(base: &str, keyspace: &str, section: &str) -> Self {
        Self { profiles: format!("{base}/audience/keyspaces/{}/profiles", encode(keyspace)), section: encode(section) }
    }

    fn request(&self, profile: &Profile) -> Result<Request<Full<Bytes>>, http::Error> {
        let Self { profiles, section } = self;
        Request::patch(format!("{profiles}/{}/sections/{section}/attributes", encode(&profile.key)))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/merge-patch+json"))
            .body(Full::new(profile.attributes.clone()))
    }
}

fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, RESERVED).to_string()
}

/// Imports to the end of the file, or until it is stopped.
pub(crate) async fn run<R>(import: Import<R>, mut client: Client, stop: impl Future<Output = ()>) -> Summary
where
    R: Read + Send + 'static,
{
    let Import { records, failed, target, from_line, read_ahead, give_up_after, watch } = import;
    let (sender, mut rows) = mpsc::channel(read_ahead);
    let reader = tokio::task::spawn_blocking(move || read(records, from_line, &sender));
    let mut ledger = Ledger::new(failed, give_up_after, watch);
    let mut under_way = JoinSet::new();
    let mut stop = pin!(stop);
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

    while ledger.stop.is_none() {
        tokio::select! {
            biased;
            () = &mut stop => ledger.stop = Some(Stop::Asked),
            Some(end) = under_way.join_next() => ledger.settle(end, client.resent()),
            next = next_row(&mut client, &mut rows) => match next {
                Ok(Some(row)) => {
                    ledger.open(&row);
                    send(row, &mut client, &target, &mut ledger, &mut under_way);
                }
                Ok(None) => break,
                Err(error) => ledger.stop = Some(Stop::Client(chain(&*error))),
            },
            _ = tick.tick() => ledger.tell(client.resent()),
        }
    }
    let mut deadline = None;
    loop {
        if ledger.stop.is_some() && deadline.is_none() {
            ledger.say_that_it_stops(under_way.len());
            deadline = Some(Instant::now() + GRACE);
        }
        tokio::select! {
            biased;
            () = &mut stop, if ledger.stop.is_none() => ledger.stop = Some(Stop::Asked),
            end = under_way.join_next() => match end {
                Some(end) => ledger.settle(end, client.resent()),
                None => break,
            },
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            _ = tick.tick() => ledger.tell(client.resent()),
        }
    }
    // What is cut off here may have been applied or not. It counts as not sent, and to send it again does no harm.
    under_way.shutdown().await;
    // What was read ahead is not sent either.
    rows.close();
    while let Some(row) = rows.recv().await {
        ledger.open(&row);
    }
    let end = reader_end(reader, &ledger).await;
    ledger.close(end)
}

/// Waits for a place for a request first: a record in hand must not get lost when this is cancelled.
async fn next_row(client: &mut Client, rows: &mut mpsc::Receiver<Row>) -> Result<Option<Row>, BoxError> {
    client.service.ready().await?;
    Ok(rows.recv().await)
}

fn send(row: Row, client: &mut Client, target: &Target, ledger: &mut Ledger, under_way: &mut JoinSet<(Row, End)>) {
    let request = match &row.profile {
        Ok(profile) => target.request(profile).map_err(|error| error.to_string()),
        Err(reason) => Err(reason.clone()),
    };
    match request {
        Ok(request) => {
            let answer = client.service.call(request);
            under_way.spawn(async move { (row, conclude(answer.await).await) });
        }
        Err(reason) => ledger.fail(&row, &reason, client.resent()),
    }
}

/// On a thread for what blocks. Waits when enough is read ahead.
pub(crate) fn read<R: Read>(mut records: Records<R>, from_line: u64, rows: &mpsc::Sender<Row>) -> ReadEnd {
    loop {
        let row = match records.next() {
            Ok(Some(row)) => row,
            Ok(None) => return ReadEnd::AtEnd,
            Err(broken) => return ReadEnd::Broken(broken),
        };
        let line = row.line;
        if rows.is_closed() || (line >= from_line && rows.blocking_send(row).is_err()) {
            return ReadEnd::NotTaken(line);
        }
    }
}

async fn reader_end(reader: JoinHandle<ReadEnd>, ledger: &Ledger) -> ReadEnd {
    match timeout(READER_GRACE, reader).await {
        Ok(Ok(end)) => end,
        Ok(Err(error)) => panic::resume_unwind(error.into_panic()),
        // It waits for its input, a pipe perhaps.
        Err(_) => ReadEnd::NotTaken(ledger.last_line + 1),
    }
}

async fn conclude(answer: Result<Answer, BoxError>) -> End {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.is::<AuthError>() => return End::NoToken(chain(&*error)),
        Err(error) => return End::Failed(None, format!("no answer: {}", chain(&*error))),
    };
    let status = answer.status();
    if status.is_success() {
        return End::Applied;
    }
    let outcome = answer.extensions().get::<AuthOutcome>().cloned();
    let said = reason(answer).await;
    match outcome {
        // A cool-down after a 403 is about this record: what it is allowed, not who it is from.
        Some(AuthOutcome::NotRenewed(error))
            if !matches!(error, AuthError::CoolingDown { .. }) || status != StatusCode::FORBIDDEN =>
        {
            End::NoToken(format!("the API rejected the token ({said}), and there is no other: {}", chain(&error)))
        }
        _ if status == StatusCode::UNAUTHORIZED => End::NoToken(format!("the API rejects new tokens, too ({said})")),
        _ => End::Failed(Some(status), said),
    }
}

/// The status and what the API says in its body: `404 Not Found: no such section`.
async fn reason(answer: Answer) -> String {
    let status = answer.status();
    let body = timeout(ANSWER_TIMEOUT, answer.into_body().collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let said = match serde_json::from_slice::<Value>(&body) {
        Ok(json) => ["detail", "message", "title"].iter().find_map(|name| json[name].as_str().map(str::to_owned)),
        Err(_) => None,
    };
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_REASON).collect();
    match said.trim() {
        "" => status.to_string(),
        said => format!("{status}: {said}"),
    }
}

/// The account of the records.
struct Ledger {
    failed: FailedFile,
    watch: Arc<dyn Watch>,
    counts: Counts,
    /// The lines of the records that were read and have not come to an end.
    open: BTreeSet<u64>,
    last_line: u64,
    give_up_after: u64,
    /// How many failed in a row with this status.
    streak: (Option<StatusCode>, u64),
    stop: Option<Stop>,
}

impl Ledger {
    fn new(failed: FailedFile, give_up_after: u64, watch: Arc<dyn Watch>) -> Self {
        let (counts, open, streak) = (Counts::default(), BTreeSet::new(), (None, 0));
        Self { failed, watch, counts, open, last_line: 0, give_up_after, streak, stop: None }
    }

    fn open(&mut self, row: &Row) {
        self.counts.read += 1;
        self.last_line = row.line;
        self.open.insert(row.line);
    }

    fn settle(&mut self, end: Result<(Row, End), JoinError>, resent: u64) {
        let (row, end) = match end {
            Ok(settled) => settled,
            Err(error) => panic::resume_unwind(error.into_panic()),
        };
        match end {
            End::Applied => {
                self.counts.applied += 1;
                self.streak.1 = 0;
                self.close_line(&row, resent);
            }
            End::Failed(status, reason) => {
                self.fail(&row, &reason, resent);
                self.count_streak(status, reason);
            }
            // Not settled: whoever goes on with the import sends it.
            End::NoToken(reason) => {
                self.stop.get_or_insert(Stop::NoToken(reason));
            }
        }
    }

    fn fail(&mut self, row: &Row, reason: &str, resent: u64) {
        if let Err(error) = self.failed.write(row, reason) {
            self.stop.get_or_insert(Stop::NotWritable(error));
            return;
        }
        self.counts.failed += 1;
        match self.counts.failed {
            1..=SHOWN => self.watch.message(&format!("line {}: {reason}", row.line)),
            n if n == SHOWN + 1 => self.watch.message("further failures are in the file only"),
            _ => {}
        }
        self.close_line(row, resent);
    }

    fn count_streak(&mut self, status: Option<StatusCode>, reason: String) {
        let count = if self.streak.0 == status { self.streak.1 + 1 } else { 1 };
        self.streak = (status, count);
        if count == self.give_up_after {
            self.stop.get_or_insert(Stop::SameFailure { count, reason });
        }
    }

    fn close_line(&mut self, row: &Row, resent: u64) {
        self.open.remove(&row.line);
        self.counts.bytes = self.counts.bytes.max(row.end);
        self.tell(resent);
    }

    fn tell(&mut self, resent: u64) {
        self.counts.resent = resent;
        self.watch.progress(self.counts);
    }

    fn say_that_it_stops(&self, under_way: usize) {
        if let Some(stop) = self.stop.as_ref().filter(|_| under_way > 0) {
            let grace = GRACE.as_secs();
            let text = format!("stopping: {stop}; requests under way, {under_way} of them, have {grace} s to end");
            self.watch.message(&text);
        }
    }

    fn close(self, end: ReadEnd) -> Summary {
        let Self { failed, counts, open, mut stop, .. } = self;
        let not_read = match end {
            ReadEnd::AtEnd => None,
            ReadEnd::NotTaken(line) => Some(line),
            ReadEnd::Broken(broken) => {
                let line = broken.line;
                stop.get_or_insert(Stop::Unreadable(broken));
                Some(line)
            }
        };
        let go_on_at = open.first().copied().or(not_read);
        // Asked to stop when all was done: it made no difference.
        let stop = stop.filter(|stop| go_on_at.is_some() || !matches!(stop, Stop::Asked));
        let not_sent = open.len() as u64;
        assert_eq!(counts.read, counts.applied + counts.failed + not_sent, "no record is lost: {counts:?}");
        Summary { counts, not_sent, failed_file: failed.finish(), stop, go_on_at }
    }
}

impl Summary {
    pub(crate) fn is_complete(&self) -> bool {
        self.counts.failed == 0 && self.stop.is_none() && self.go_on_at.is_none()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { read, applied, failed, resent, .. } = self.counts;
        if let Some(stop) = &self.stop {
            writeln!(f, "The import stopped early: {stop}")?;
        }
        writeln!(f, "{read:>10} records read")?;
        writeln!(f, "{applied:>10} applied")?;
        write!(f, "{failed:>10} failed")?;
        match &self.failed_file {
            Some(path) => writeln!(f, ", with the reasons in {}", path.display())?,
            None => writeln!(f)?,
        }
        writeln!(f, "{:>10} not sent", self.not_sent)?;
        write!(f, "{resent:>10} requests sent again")?;
        if let Some(line) = self.go_on_at {
            write!(f, "\nTo go on where it stopped: --from-line {line}")?;
        }
        Ok(())
    }
}
