//! [`FileStore`]: one token for all processes of a machine, in a folder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tower::BoxError;

use crate::store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore};

/// How long an attempt counts after its end.
const WINDOW: Duration = Duration::from_secs(60);

/// No lease is longer, and no pause: what ends later was written before the clock was set back.
const LONGEST_LEASE: Duration = Duration::from_secs(5 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(20 * 60);

/// Who asked has given up by then; a disk may stand still for longer.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(1);

/// Between two tries to take a lock that somebody has for a moment.
const TRY_EVERY: Duration = Duration::from_millis(2);

/// A file of ours is a few kilobytes.
const LARGEST_FILE: u64 = 1024 * 1024;

/// A store in a folder of this machine: nothing to run, for processes that share a disk.
///
/// Each account has three files there, which on Unix only their owner may read and write (`0600`). A folder that its group or
/// everybody may write to is refused.
///
/// | file | |
/// | --- | --- |
/// | `….json` | What is stored. It is replaced as a whole, by a rename: who reads it finds what was there before or what is there now. |
/// | `….lock` | Locked by whoever changes that, for as long as it takes. |
/// | `….lease` | Locked by the process that asks for a token. When it dies, the system unlocks it, and another one asks at once. |
///
/// The locks are never replaced, and nobody blocks on them. A lease ends by itself as well, by the clock of the machine: one of a
/// process that was stopped (`SIGSTOP`, a debugger), or whose runtime is not driven. While such a one keeps the lock, the leases of
/// others have none, and end by the clock alone.
///
/// The processes have to run as the same user, and the folder has to be on a disk of this machine: locks of network file systems
/// are not to be relied on. Where it cannot be written to, the processes go on alone; what can be read there is used. Files of
/// secrets that are used no more stay, and may be removed.
///
/// A disk that stands still keeps a runtime from being shut down, as any blocking task does.
///
/// ```no_run
/// use apsis_auth::{ApsisAuthLayer, ClientCredentials, FileStore, Region};
///
/// # fn build() -> Result<(), apsis_auth::BuildError> {
/// let auth = ApsisAuthLayer::builder(ClientCredentials::from_env()?, Region::from_env()?)
///     .store(FileStore::new("/var/lib/my-shop/apsis"))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileStore {
    folder: PathBuf,
}

impl FileStore {
    /// A store in this folder. It is made when something is first stored, and so is what is missing on the way to it: all for their
    /// owner alone (`0700`).
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Off the runtime's threads. Its errors say where.
    async fn run<T: Send + 'static>(
        &self,
        name: &str,
        operation: impl FnOnce(&Account) -> io::Result<T> + Send + 'static,
    ) -> Result<T, BoxError> {
        let account = Account { folder: self.folder.clone(), name: name.to_owned() };
        let done = spawn_blocking(move || operation(&account)).await?;
        done.map_err(|cause| {
            let hint = match cause.kind() {
                io::ErrorKind::PermissionDenied => "; all processes have to run as the user whose folder it is",
                _ => "",
            };
            Failure { folder: self.folder.clone(), hint, cause }.into()
        })
    }
}

impl TokenStore for FileStore {
    async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
        self.run(name, |account| Ok(account.read()?.entry())).await
    }

    async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        let (request, asked) = (request.clone(), Instant::now());
        self.run(name, move |account| account.lease(&request, asked)).await
    }

    async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, _: Duration) -> Result<(), BoxError> {
        self.run(name, move |account| account.change(lease, |contents, fence| contents.publish(fence, &sealed))).await
    }

    async fn release(&self, name: &str, lease: Lease, pause: Pause) -> Result<(), BoxError> {
        self.run(name, move |account| account.change(lease, |contents, fence| contents.release(fence, pause))).await
    }
}

#[derive(Debug, Error)]
#[error("the token store in {} fails{hint}", folder.display())]
struct Failure {
    folder: PathBuf,
    hint: &'static str,
    #[source]
    cause: io::Error,
}

/// The files of one account.
struct Account {
    folder: PathBuf,
    name: String,
}

/// What the file says. Moments are milliseconds since 1970, by the clock of this machine.
#[derive(Default, Deserialize, Serialize)]
struct Contents {
    /// Of the last lease or entry.
    fence: u64,
    lease: Option<Held>,
    /// By fence, when each attempt stops to count.
    attempts: Vec<(u64, u64)>,
    pause: Option<Paused>,
    entry: Option<Stored>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
struct Held {
    owner: u64,
    fence: u64,
    granted: u64,
    ends: u64,
    /// Whether its holder has the lock, and is dead if it has not. It has none where a former holder stands still and keeps it.
    is_locked: bool,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
struct Paused {
    until: u64,
    refused_with: Option<u16>,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    fence: u64,
    /// When its lease was granted.
    since: u64,
    sealed: String,
}

impl Account {
    fn lease(&self, request: &LeaseRequest, asked: Instant) -> io::Result<Leasing> {
        // Whoever finds what it wants needs no lock.
        if let Some(entry) = self.read()?.newer_than(request.newer_than()) {
            return Ok(Leasing::Newer(entry));
        }
        let _changing = self.lock_to_change()?;
        let mut contents = self.read()?;
        if let Some(entry) = contents.newer_than(request.newer_than()) {
            return Ok(Leasing::Newer(entry));
        }
        let (now, lock) = (now(), self.lock("lease")?);
        if let Some((fence, left)) = contents.held(now, request.owner(), lock.is_some()) {
            return Ok(Leasing::Held { fence, left });
        }
        contents.forget_attempts(now);
        if let Some(pause) = contents.pause(now, request.attempts_per_minute()) {
            return Ok(Leasing::Paused(pause));
        }
        if asked.elapsed() > GIVEN_UP_AFTER {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let lease = Lease::new(contents.grant(now, request, lock.is_some()));
        self.write(&contents)?;
        Ok(Leasing::Granted(match lock {
            Some(lock) => lease.guarded_by(lock),
            None => lease,
        }))
    }

    fn change(&self, lease: Lease, change: impl FnOnce(&mut Contents, u64)) -> io::Result<()> {
        let _changing = self.lock_to_change()?;
        let mut contents = self.read()?;
        change(&mut contents, lease.fence());
        let written = self.write(&contents);
        // Before the other lock: whoever is granted a lease next has to find this one free.
        drop(lease);
        written
    }

    /// What cannot be understood is as good as nothing.
    fn read(&self) -> io::Result<Contents> {
        let mut text = Vec::new();
        match self.open_to_read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
            file => file?.take(LARGEST_FILE).read_to_end(&mut text)?,
        };
        Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(path = %self.path("json").display(), %error, "a file of the token store cannot be read");
            Contents::default()
        }))
    }

    /// A pipe or a device would be read for ever.
    fn open_to_read(&self) -> io::Result<File> {
        let path = self.path("json");
        let is_file = fs::symlink_metadata(&path)?.is_file();
        self.check_folder()?;
        if is_file {
            File::open(path)
        } else {
            Err(io::Error::other("what is to be a file of the token store is none"))
        }
    }

    /// Whoever else may write there could put anything in the place of a file.
    #[cfg(unix)]
    fn check_folder(&self) -> io::Result<()> {
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&self.folder)?.permissions());
        let is_private = mode & 0o022 == 0;
        is_private.then_some(()).ok_or_else(|| {
            let folder = self.folder.display();
            io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("others may write to the folder {folder}; chmod 700 it"),
            )
        })
    }

    #[cfg(not(unix))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "as on Unix")]
    fn check_folder(&self) -> io::Result<()> {
        Ok(())
    }

    /// Readers find the old file or the new one, and nothing in between.
    fn write(&self, contents: &Contents) -> io::Result<()> {
        let (path, new) = (self.path("json"), self.path("new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = private(OpenOptions::new().write(true).create_new(true)).open(&new)?;
        file.write_all(&serde_json::to_vec(contents)?)?;
        drop(file);
        fs::rename(new, path)
    }

    /// Others have this lock for as long as it takes to read and write a file.
    fn lock_to_change(&self) -> io::Result<Lock> {
        private_folder().create(&self.folder)?;
        self.check_folder()?;
        let began = Instant::now();
        loop {
            if let Some(lock) = self.lock("lock")? {
                return Ok(lock);
            }
            if began.elapsed() > GIVEN_UP_AFTER {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep(TRY_EVERY);
        }
    }

    /// The lock, unless somebody else has it. Does not wait.
    fn lock(&self, extension: &str) -> io::Result<Option<Lock>> {
        let path = self.path(extension);
        let file = private(OpenOptions::new().write(true).create(true).truncate(false)).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.name))
    }
}

/// A file that is locked.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close it would not do: a process that is being started has it open as well, for a moment.
        let _ = self.0.unlock();
    }
}

impl Contents {
    fn entry(&self) -> Option<Entry> {
        let Stored { fence, since, sealed } = self.entry.as_ref()?;
        let sealed = BASE64_STANDARD_NO_PAD.decode(sealed).ok()?;
        Some(Entry::new(*fence, sealed, Duration::from_millis(now().saturating_sub(*since))))
    }

    fn newer_than(&self, fence: u64) -> Option<Entry> {
        self.entry().filter(|entry| entry.fence() > fence)
    }

    /// The fence of a lease that somebody else has, and until when.
    fn held(&self, now: u64, owner: u64, is_free: bool) -> Option<(u64, Duration)> {
        let lease = self.lease.filter(|lease| lease.owner != owner && !(lease.is_locked && is_free))?;
        Some((lease.fence, left(lease.ends, now, LONGEST_LEASE)?))
    }

    fn forget_attempts(&mut self, now: u64) {
        self.attempts.retain(|&(_, end)| left(end, now, LONGEST_LEASE + WINDOW).is_some());
        self.attempts.sort_by_key(|&(_, end)| end);
    }

    /// Until there may be another attempt.
    fn pause(&self, now: u64, attempts_per_minute: u32) -> Option<Pause> {
        let per_minute = usize::try_from(attempts_per_minute).unwrap_or(usize::MAX);
        let frees = self.attempts.len().checked_sub(per_minute).and_then(|place| self.attempts.get(place));
        let full = frees.and_then(|&(_, end)| left(end, now, LONGEST_LEASE + WINDOW));
        let said = self.said_pause(now);
        let lasts = full.max(said.as_ref().map(Pause::lasts))?;
        Some(Pause::new(lasts, said.and_then(|said| said.refused_with())))
    }

    fn said_pause(&self, now: u64) -> Option<Pause> {
        let Paused { until, refused_with } = self.pause?;
        let status = refused_with.and_then(|status| StatusCode::from_u16(status).ok());
        Some(Pause::new(left(until, now, LONGEST_PAUSE)?, status))
    }

    fn grant(&mut self, now: u64, request: &LeaseRequest, is_locked: bool) -> u64 {
        let fence = now.max(self.fence.saturating_add(1));
        let ends = now + milliseconds(request.lasts().min(LONGEST_LEASE));
        self.fence = fence;
        self.lease = Some(Held { owner: request.owner(), fence, granted: now, ends, is_locked });
        self.attempts.push((fence, ends + milliseconds(WINDOW)));
        fence
    }

    /// Ends the lease and its attempt. When it was granted.
    fn end(&mut self, fence: u64, now: u64) -> Option<u64> {
        for (_, end) in self.attempts.iter_mut().filter(|attempt| attempt.0 == fence) {
            *end = now + milliseconds(WINDOW);
        }
        Some(self.lease.take_if(|lease| lease.fence == fence)?.granted)
    }

    fn publish(&mut self, fence: u64, sealed: &[u8]) {
        let now = now();
        let since = self.end(fence, now).unwrap_or_else(|| now.min(fence));
        let is_stored = self.entry.as_ref().is_some_and(|entry| entry.fence == fence);
        if self.fence <= fence && !is_stored {
            self.fence = fence;
            self.entry = Some(Stored { fence, since, sealed: BASE64_STANDARD_NO_PAD.encode(sealed) });
        }
    }

    fn release(&mut self, fence: u64, pause: Pause) {
        let now = now();
        self.end(fence, now);
        let lasts = pause.lasts().min(LONGEST_PAUSE);
        if self.said_pause(now).map_or(Duration::ZERO, |before| before.lasts()) < lasts {
            let refused_with = pause.refused_with().map(|status| status.as_u16());
            self.pause = Some(Paused { until: now + milliseconds(lasts), refused_with });
        }
    }
}

/// How long until then. What is farther off than anything can be was written before the clock was set back.
fn left(until: u64, now: u64, longest: Duration) -> Option<Duration> {
    let left = Duration::from_millis(until.checked_sub(now)?);
    (!left.is_zero() && left <= longest).then_some(left)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, milliseconds)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

fn private_folder() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}
