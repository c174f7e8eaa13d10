//! [`FileStore`]: one token for all processes of a machine, in a folder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tower::BoxError;

use crate::store::{Entry, Lease, LeaseRequest, Leasing, TokenStore};

/// How long an attempt counts after its end.
const WINDOW: Duration = Duration::from_secs(60);

/// No lease is longer, and no pause: what ends later was written before the clock was set back.
const LONGEST_LEASE: Duration = Duration::from_secs(5 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(20 * 60);

/// Who asked for a lease has given it up by then; a disk may stand still for longer.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(1);

/// A file of ours is a few kilobytes.
const LARGEST_FILE: u64 = 1024 * 1024;

/// A store in a folder of this machine: nothing to run, for processes that share a disk.
///
/// Each account has two files there, which on Unix only their owner may read and write (`0600`); a folder that others may write to
/// is refused. The one that ends in `.lock` is locked by
/// the process that asks for a token, and by nothing but that: the system unlocks it when the process dies. It is never replaced.
/// The other one is, as a whole, by a rename; so whoever reads it finds what was there before or what is there now.
///
/// The processes have to run as the same user, and the folder has to be on a disk of this machine: locks of network file systems
/// are not to be relied on. Where it cannot be written to, the processes go on alone; what can be read there is used.
///
/// A process that is stopped while it asks (`SIGSTOP`, a debugger) keeps the lock. Who has waited for it for as long as a lease lasts asks
/// alone. A disk that stands still keeps a runtime from being shut down, as any blocking task does.
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
    /// A store in this folder. It is made, for its owner alone (`0700`), when something is first stored.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn account(&self, name: &str) -> Account {
        Account { folder: self.folder.clone(), name: name.to_owned() }
    }
}

impl TokenStore for FileStore {
    async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
        let account = self.account(name);
        Ok(spawn_blocking(move || account.read()).await??.entry())
    }

    async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        let (account, request, asked) = (self.account(name), request.clone(), Instant::now());
        Ok(spawn_blocking(move || account.lease(&request, asked)).await??)
    }

    async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, _: Duration) -> Result<(), BoxError> {
        let account = self.account(name);
        Ok(spawn_blocking(move || account.publish(&lease, &sealed)).await??)
    }

    async fn release(&self, name: &str, lease: Lease, pause: Duration) -> Result<(), BoxError> {
        let account = self.account(name);
        Ok(spawn_blocking(move || account.release(&lease, pause)).await??)
    }
}

/// The files of one account. Whatever changes them has the lock.
struct Account {
    folder: PathBuf,
    name: String,
}

/// What the file says. Moments are milliseconds since 1970, by the clock of this machine.
#[derive(Default, Deserialize, Serialize)]
struct Contents {
    /// Of the last lease.
    fence: u64,
    /// When each attempt stops to count.
    attempts: Vec<u64>,
    paused_until: u64,
    entry: Option<Stored>,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    fence: u64,
    published: u64,
    sealed: String,
}

impl Account {
    fn lease(&self, request: &LeaseRequest, asked: Instant) -> io::Result<Leasing> {
        // Whoever finds what it wants needs no lock.
        let contents = self.read()?;
        if let Some(entry) = contents.newer_than(request.newer_than()) {
            return Ok(Leasing::Newer(entry));
        }
        let Some(lock) = self.lock()? else {
            return Ok(Leasing::Held { fence: contents.fence, left: request.lasts() });
        };
        let mut contents = self.read()?;
        if let Some(entry) = contents.newer_than(request.newer_than()) {
            return Ok(Leasing::Newer(entry));
        }
        let now = now();
        if let Some(end) = contents.paused_until(now, request) {
            return Ok(Leasing::Paused(Duration::from_millis(end - now)));
        }
        if asked.elapsed() > GIVEN_UP_AFTER {
            return Err(io::ErrorKind::TimedOut.into());
        }
        contents.fence = now.max(contents.fence.saturating_add(1));
        contents.attempts.push(now + milliseconds(request.lasts().min(LONGEST_LEASE) + WINDOW));
        self.write(&contents)?;
        Ok(Leasing::Granted(Lease::new(contents.fence).guarded_by(lock)))
    }

    fn publish(&self, lease: &Lease, sealed: &[u8]) -> io::Result<()> {
        let mut contents = self.read()?;
        let is_stored = contents.entry.as_ref().is_some_and(|entry| entry.fence == lease.fence());
        if contents.fence > lease.fence() || is_stored {
            return Ok(());
        }
        let published = now();
        contents.end_attempt(published);
        contents.fence = lease.fence();
        contents.entry =
            Some(Stored { fence: lease.fence(), published, sealed: BASE64_STANDARD_NO_PAD.encode(sealed) });
        self.write(&contents)
    }

    fn release(&self, lease: &Lease, pause: Duration) -> io::Result<()> {
        let mut contents = self.read()?;
        if contents.fence > lease.fence() {
            return Ok(());
        }
        let now = now();
        contents.end_attempt(now);
        let earlier = contents.pause_left(now).map_or(0, |left| now + left);
        contents.paused_until = earlier.max(now + milliseconds(pause.min(LONGEST_PAUSE)));
        self.write(&contents)
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

    /// The lock, unless somebody else has it. Does not wait.
    fn lock(&self) -> io::Result<Option<Lock>> {
        private_folder().create(&self.folder)?;
        self.check_folder()?;
        let file = private(OpenOptions::new().write(true).create(true).truncate(false)).open(self.path("lock"))?;
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
        let Stored { fence, published, sealed } = self.entry.as_ref()?;
        let sealed = BASE64_STANDARD_NO_PAD.decode(sealed).ok()?;
        Some(Entry::new(*fence, sealed, Duration::from_millis(now().saturating_sub(*published))))
    }

    fn newer_than(&self, fence: u64) -> Option<Entry> {
        self.entry().filter(|entry| entry.fence() > fence)
    }

    /// When there may be another attempt, if not now.
    fn paused_until(&mut self, now: u64, request: &LeaseRequest) -> Option<u64> {
        // What ends later than anything can was written before the clock was set back.
        let latest = now + milliseconds(LONGEST_LEASE + WINDOW);
        self.attempts.retain(|&end| end > now && end <= latest);
        let is_full = self.attempts.len() >= usize::try_from(request.attempts_per_minute()).unwrap_or(usize::MAX);
        let room_at = self.attempts.iter().min().copied().filter(|_| is_full);
        room_at.max(self.pause_left(now).map(|left| now + left))
    }

    /// None is longer than the longest, unless the clock was set back since.
    fn pause_left(&self, now: u64) -> Option<u64> {
        let left = self.paused_until.checked_sub(now)?;
        (1..=milliseconds(LONGEST_PAUSE)).contains(&left).then_some(left)
    }

    /// The last one counts from now until a minute later.
    fn end_attempt(&mut self, now: u64) {
        if let Some(end) = self.attempts.last_mut() {
            *end = now + milliseconds(WINDOW);
        }
    }
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
