//! `FileStore`: what is on the disk, and what becomes of it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use apsis_auth::{
    FileStore,
    store::{LeaseRequest, Leasing, TokenStore},
};

use tokio::time::sleep;

use crate::{
    contract::{self, granted, publish, request},
    redis::chain,
};

/// A folder of its own, removed again.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(env::temp_dir().join(format!("apsis-auth-store-{}-{number}", process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn store(&self) -> FileStore {
        FileStore::new(self.path())
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path()).unwrap().map(|file| file.unwrap().path()).collect()
    }

    fn ending_in(&self, extension: &str) -> PathBuf {
        self.files().into_iter().find(|path| path.extension().is_some_and(|ending| ending == extension)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.path());
    }
}

#[tokio::test]
async fn a_folder_keeps_what_a_store_promises() {
    contract::is_kept_by(&Folder::new().store()).await;
}

#[cfg(unix)]
#[tokio::test]
async fn the_folder_and_its_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;

    let folder = Folder::new();
    let store = folder.store();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for _ in 0..2 {
        let lease = granted(&store, "name", 1).await;
        publish(&store, "name", lease, b"one").await;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(folder.files().len(), 3, "{:?}", folder.files());
        for file in folder.files() {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }
}

#[tokio::test]
async fn looking_for_a_token_makes_no_file() {
    let folder = Folder::new();
    assert!(folder.store().load("name").await.unwrap().is_none());
    assert!(!folder.path().exists());
}

#[tokio::test]
async fn a_lease_that_is_dropped_is_free_at_once() {
    let folder = Folder::new();
    let lease = granted(&folder.store(), "name", 1).await;
    assert!(matches!(folder.store().lease("name", &request(2)).await.unwrap(), Leasing::Held { .. }));
    drop(lease);
    granted(&folder.store(), "name", 2).await;
}

/// Its process was stopped, or its runtime is not driven.
#[tokio::test]
async fn a_lease_that_is_over_keeps_nobody_though_its_holder_has_the_lock() {
    let folder = Folder::new();
    let store = folder.store();
    let lasts = Duration::from_millis(200);
    let Leasing::Granted(stale) = store
        .lease("name", &LeaseRequest::new(1).with_newer_than(u64::MAX).with_lasts(lasts).with_attempts_per_minute(9))
        .await
        .unwrap()
    else {
        panic!("no lease")
    };
    let Leasing::Held { fence, left } = store.lease("name", &request(2)).await.unwrap() else { panic!("it is free") };
    assert_eq!(fence, stale.fence());
    assert!(left <= lasts, "{left:?}");
    sleep(lasts).await;
    let second = granted(&store, "name", 2).await;
    // It has no lock, and is a lease all the same, also when the lock is free.
    let is_held = async || match store.lease("name", &request(3)).await.unwrap() {
        Leasing::Held { fence, .. } => fence,
        other => panic!("{other:?}"),
    };
    assert_eq!(is_held().await, second.fence());
    publish(&store, "name", stale, b"stale").await;
    assert_eq!(is_held().await, second.fence());
    assert!(store.load("name").await.unwrap().is_none());
    publish(&store, "name", second, b"second").await;
    assert_eq!(store.load("name").await.unwrap().unwrap().sealed().as_ref(), b"second");
    let third = granted(&store, "name", 3).await;
    assert!(matches!(store.lease("name", &request(4)).await.unwrap(), Leasing::Held { .. }));
    // And that one has it again.
    drop(third);
    granted(&store, "name", 4).await;
}

/// As one that is stopped just then.
#[tokio::test]
async fn a_file_that_somebody_is_changing_for_long_is_an_error_of_leases_and_not_of_looking() {
    let folder = Folder::new();
    let store = folder.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, b"one").await;
    let lock = fs::File::open(folder.ending_in("lock")).unwrap();
    lock.lock().unwrap();
    let error = chain(&*store.lease("name", &request(1)).await.unwrap_err());
    assert!(error.contains("timed out"), "{error}");
    assert!(store.load("name").await.unwrap().is_some());
    lock.unlock().unwrap();
    granted(&store, "name", 1).await;
}

#[tokio::test]
async fn who_allows_fewer_attempts_than_were_made_waits_until_there_is_room_for_his() {
    let folder = Folder::new();
    let store = folder.store();
    for owner in 0..3 {
        let lease = granted(&store, "name", owner).await;
        publish(&store, "name", lease, b"one").await;
        sleep(Duration::from_millis(300)).await;
    }
    let pause_of = async |per_minute| {
        let request = LeaseRequest::new(9)
            .with_newer_than(u64::MAX)
            .with_lasts(contract::LASTS)
            .with_attempts_per_minute(per_minute);
        let Leasing::Paused(pause) = store.lease("name", &request).await.unwrap() else { panic!("{per_minute}") };
        pause.lasts()
    };
    let (for_one, for_three) = (pause_of(1).await, pause_of(3).await);
    assert!(for_one > for_three + Duration::from_millis(500), "{for_one:?} {for_three:?}");
}

#[tokio::test]
async fn a_file_that_was_cut_or_changed_is_as_good_as_none() {
    let folder = Folder::new();
    let store = folder.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, b"one").await;
    let path = folder.ending_in("json");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(store.load("name").await.unwrap().is_none(), "{length}");
    }
    for text in ["null", "[]", "7", "{\"fence\":-1}", "\u{0}"] {
        fs::write(&path, text).unwrap();
        assert!(store.load("name").await.unwrap().is_none(), "{text}");
        let lease = granted(&store, "name", 2).await;
        publish(&store, "name", lease, b"two").await;
        assert_eq!(store.load("name").await.unwrap().unwrap().sealed().as_ref(), b"two");
    }
}

#[tokio::test]
async fn moments_that_are_farther_off_than_any_can_be_pause_nobody() {
    let folder = Folder::new();
    let store = folder.store();
    drop(granted(&store, "name", 1).await);
    let far = u64::MAX / 2;
    let text = format!(
        "{{\"fence\":1,\"lease\":{{\"owner\":1,\"fence\":1,\"granted\":1,\"ends\":{far},\"is_locked\":false}},\
         \"attempts\":[[1,{far}],[2,{far}],[3,{far}],[4,{far}]],\"pause\":{{\"until\":{far},\"refused_with\":401}},\"entry\":null}}"
    );
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
    fs::write(folder.ending_in("json"), text).unwrap();
    granted(&store, "name", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_while_another_writes_finds_one_whole_entry_or_the_other() {
    let folder = Folder::new();
    let store = folder.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, &[b'a'; 10_000]).await;
    let path = folder.ending_in("json");
    let (done, reads) = (Arc::new(AtomicBool::new(false)), AtomicU32::new(0));
    thread::scope(|scope| {
        // Also if this thread panics.
        let _done = SetOnDrop(Arc::clone(&done));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&path).unwrap();
                assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let writing = scope.spawn(move || runtime.block_on(write_many_times(&store)));
        writing.join().unwrap();
    });
    assert!(reads.into_inner() > 10);
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

static LONG: &[u8] = &[b'b'; 20_000];

async fn write_many_times(store: &FileStore) {
    for number in 0..200 {
        let request = LeaseRequest::new(1)
            .with_newer_than(u64::MAX)
            .with_lasts(Duration::from_secs(1))
            .with_attempts_per_minute(1_000);
        let Leasing::Granted(lease) = store.lease("name", &request).await.unwrap() else { panic!("{number}") };
        let sealed: &'static [u8] = if number % 2 == 0 { LONG } else { b"short" };
        publish(store, "name", lease, sealed).await;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_that_others_may_write_to_is_refused_and_so_is_what_is_no_file() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let folder = Folder::new();
    let store = folder.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, b"one").await;
    for mode in [0o777, 0o720, 0o702] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = chain(&*store.load("name").await.unwrap_err());
        assert!(error.contains("chmod 700") && error.contains(folder.path().to_str().unwrap()), "{error}");
        store.lease("name", &request(1)).await.unwrap_err();
        store.lease("another-name", &request(1)).await.unwrap_err();
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(store.load("name").await.unwrap().unwrap().sealed().as_ref(), b"one");
    let path = folder.ending_in("json");
    fs::remove_file(&path).unwrap();
    // It would be read for ever.
    symlink("/dev/zero", &path).unwrap();
    store.load("name").await.unwrap_err();
}

#[cfg(unix)]
#[tokio::test]
async fn a_folder_that_cannot_be_written_to_is_an_error_of_leases_and_not_of_looking() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let folder = Folder::new();
    let store = folder.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, b"one").await;
    // Whoever is root may write wherever permissions say no. So: what is to be a folder is none.
    let blocked = Folder::new();
    fs::write(blocked.path(), "").unwrap();
    blocked.store().lease("name", &request(1)).await.unwrap_err();
    fs::remove_file(blocked.path()).unwrap();
    // Nothing may be made in there.
    symlink("/proc/self", blocked.path()).unwrap();
    blocked.store().lease("name", &request(1)).await.unwrap_err();
    assert!(blocked.store().load("name").await.unwrap().is_none());
    fs::remove_file(blocked.path()).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    assert_eq!(store.load("name").await.unwrap().unwrap().sealed().as_ref(), b"one");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
}
