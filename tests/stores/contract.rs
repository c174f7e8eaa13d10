//! What `TokenStore` promises, of any store. Real time: stores have clocks of their own.

use std::time::Duration;

use apsis_auth::store::{Lease, LeaseRequest, Leasing, Pause, TokenStore};
use bytes::Bytes;
use http::StatusCode;
use tokio::time::sleep;

pub(crate) const LASTS: Duration = Duration::from_secs(20);
const PER_MINUTE: u32 = 4;
pub(crate) const NO_PAUSE: Pause = Pause::new(Duration::ZERO, None);

/// Each of them by a name of its own.
pub(crate) async fn is_kept_by<S: TokenStore>(store: &S) {
    what_was_published_is_loaded(store).await;
    one_of_many_gets_the_lease(store).await;
    a_newer_entry_comes_before_a_lease(store).await;
    a_lease_that_was_given_back_is_free_after_its_pause(store).await;
    attempts_of_the_last_minute_count(store).await;
    fences_rise(store).await;
    an_older_lease_publishes_nothing(store).await;
    what_is_published_twice_is_as_old_as_the_first_time(store).await;
    the_longer_pause_is_kept(store).await;
    a_refusal_is_told_to_the_others(store).await;
    who_has_the_lease_gets_another_one(store).await;
    an_entry_is_as_old_as_its_lease(store).await;
    what_has_another_fence_ends_no_lease(store).await;
    names_have_nothing_in_common(store).await;
}

/// A process's request for a lease, whatever is stored.
pub(crate) fn request(owner: u64) -> LeaseRequest {
    LeaseRequest::new(owner).with_newer_than(u64::MAX).with_lasts(LASTS).with_attempts_per_minute(PER_MINUTE)
}

pub(crate) async fn granted<S: TokenStore>(store: &S, name: &str, owner: u64) -> Lease {
    match store.lease(name, &request(owner)).await.unwrap() {
        Leasing::Granted(lease) => lease,
        other => panic!("{name}, {owner}: {other:?}"),
    }
}

pub(crate) async fn publish<S: TokenStore>(store: &S, name: &str, lease: Lease, sealed: &'static [u8]) {
    store.publish(name, lease, Bytes::from_static(sealed), Duration::from_secs(3600)).await.unwrap();
}

pub(crate) async fn paused<S: TokenStore>(store: &S, name: &str, owner: u64) -> Pause {
    match store.lease(name, &request(owner)).await.unwrap() {
        Leasing::Paused(pause) => pause,
        other => panic!("{name}, {owner}: {other:?}"),
    }
}

async fn loaded<S: TokenStore>(store: &S, name: &str) -> Option<(u64, Vec<u8>)> {
    let entry = store.load(name).await.unwrap()?;
    Some((entry.fence(), entry.sealed().to_vec()))
}

async fn what_was_published_is_loaded<S: TokenStore>(store: &S) {
    let name = "published";
    assert_eq!(loaded(store, name).await, None);
    for sealed in [&b"one"[..], b"", b"\x00\xff\r\n\"\\"] {
        let lease = granted(store, name, 1).await;
        let fence = lease.fence();
        publish(store, name, lease, sealed).await;
        assert_eq!(loaded(store, name).await, Some((fence, sealed.to_vec())));
    }
    sleep(Duration::from_millis(60)).await;
    let age = store.load(name).await.unwrap().unwrap().age();
    assert!((Duration::from_millis(50)..Duration::from_secs(10)).contains(&age), "{age:?}");
}

async fn one_of_many_gets_the_lease<S: TokenStore>(store: &S) {
    let name = "one-of-many";
    let lease = granted(store, name, 1).await;
    for owner in 2..20 {
        let Leasing::Held { fence, left } = store.lease(name, &request(owner)).await.unwrap() else {
            panic!("{owner}")
        };
        assert_eq!(fence, lease.fence());
        assert!(!left.is_zero() && left <= LASTS, "{left:?}");
    }
    publish(store, name, lease, b"one").await;
    store.release(name, granted(store, name, 2).await, NO_PAUSE).await.unwrap();
    granted(store, name, 3).await;
}

async fn a_newer_entry_comes_before_a_lease<S: TokenStore>(store: &S) {
    let name = "newer";
    let lease = granted(store, name, 1).await;
    let fence = lease.fence();
    publish(store, name, lease, b"one").await;
    let newer_than = async |fence| {
        store
            .lease(
                name,
                &LeaseRequest::new(2).with_newer_than(fence).with_lasts(LASTS).with_attempts_per_minute(PER_MINUTE),
            )
            .await
            .unwrap()
    };
    for older in [0, fence - 1] {
        let Leasing::Newer(entry) = newer_than(older).await else { panic!("{older}") };
        assert_eq!((entry.fence(), entry.sealed().as_ref()), (fence, &b"one"[..]));
    }
    let Leasing::Granted(lease) = newer_than(fence).await else { panic!("it is not newer") };
    // While somebody asks, what there is is still there.
    assert_eq!(loaded(store, name).await, Some((fence, b"one".to_vec())));
    assert!(matches!(newer_than(0).await, Leasing::Newer(_)));
    drop(lease);
}

async fn a_lease_that_was_given_back_is_free_after_its_pause<S: TokenStore>(store: &S) {
    let name = "given-back";
    let pause = Duration::from_millis(300);
    store.release(name, granted(store, name, 1).await, Pause::new(pause, None)).await.unwrap();
    let left = paused(store, name, 2).await.lasts();
    assert!(!left.is_zero() && left <= pause, "{left:?}");
    sleep(left + Duration::from_millis(20)).await;
    granted(store, name, 2).await;
}

async fn attempts_of_the_last_minute_count<S: TokenStore>(store: &S) {
    let name = "counted";
    for owner in 0..u64::from(PER_MINUTE) {
        let lease = granted(store, name, owner).await;
        match owner % 2 {
            0 => publish(store, name, lease, b"one").await,
            _ => store.release(name, lease, NO_PAUSE).await.unwrap(),
        }
    }
    let left = paused(store, name, 9).await.lasts();
    assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(30), "{left:?}");
    // Who allows more is allowed more.
    let more =
        LeaseRequest::new(9).with_newer_than(u64::MAX).with_lasts(LASTS).with_attempts_per_minute(PER_MINUTE + 1);
    assert!(matches!(store.lease(name, &more).await.unwrap(), Leasing::Granted(_)));
}

async fn fences_rise<S: TokenStore>(store: &S) {
    let name = "fences";
    let mut before = 0;
    for owner in 0..u64::from(PER_MINUTE) {
        let lease = granted(store, name, owner).await;
        assert!(lease.fence() > before, "{} after {before}", lease.fence());
        before = lease.fence();
        publish(store, name, lease, b"one").await;
    }
    // So that a store that lost its memory does not go back.
    assert!(before > 1_700_000_000_000, "{before}");
}

async fn an_older_lease_publishes_nothing<S: TokenStore>(store: &S) {
    let name = "older";
    let lease = granted(store, name, 1).await;
    let older = Lease::new(lease.fence() - 1);
    publish(store, name, lease, b"new").await;
    publish(store, name, older, b"old").await;
    assert_eq!(loaded(store, name).await.unwrap().1, b"new");
    let lease = granted(store, name, 2).await;
    let older = Lease::new(lease.fence() - 1);
    store.release(name, older, Pause::new(Duration::from_secs(60), None)).await.unwrap();
    publish(store, name, lease, b"newer").await;
    assert_eq!(loaded(store, name).await.unwrap().1, b"newer");
}

async fn what_is_published_twice_is_as_old_as_the_first_time<S: TokenStore>(store: &S) {
    let name = "twice";
    let lease = granted(store, name, 1).await;
    let again = Lease::new(lease.fence());
    publish(store, name, lease, b"one").await;
    sleep(Duration::from_millis(100)).await;
    publish(store, name, again, b"two").await;
    let entry = store.load(name).await.unwrap().unwrap();
    assert_eq!(entry.sealed().as_ref(), b"one");
    assert!(entry.age() >= Duration::from_millis(90), "{entry:?}");
}

async fn the_longer_pause_is_kept<S: TokenStore>(store: &S) {
    let (name, minute) = ("longer", Duration::from_secs(60));
    let lease = granted(store, name, 1).await;
    let again = Lease::new(lease.fence());
    store.release(name, lease, Pause::new(minute, None)).await.unwrap();
    store.release(name, again, NO_PAUSE).await.unwrap();
    let left = paused(store, name, 2).await.lasts();
    assert!(left > minute / 2, "{left:?}");
}

async fn a_refusal_is_told_to_the_others<S: TokenStore>(store: &S) {
    let name = "refused";
    let (minute, status) = (Duration::from_secs(60), Some(StatusCode::UNAUTHORIZED));
    let lease = granted(store, name, 1).await;
    let again = || Lease::new(lease.fence());
    store.release(name, again(), Pause::new(minute / 2, None)).await.unwrap();
    assert_eq!(paused(store, name, 2).await.refused_with(), None);
    store.release(name, again(), Pause::new(minute, status)).await.unwrap();
    assert_eq!(paused(store, name, 2).await.refused_with(), status);
    // A shorter one changes nothing.
    store.release(name, again(), Pause::new(minute / 2, None)).await.unwrap();
    assert_eq!(paused(store, name, 2).await.refused_with(), status);
    store.release(name, again(), Pause::new(2 * minute, None)).await.unwrap();
    assert_eq!(paused(store, name, 2).await.refused_with(), None);
    drop(lease);
}

/// It did not hear of the first, or its flight was given up.
async fn who_has_the_lease_gets_another_one<S: TokenStore>(store: &S) {
    let name = "again";
    let first = granted(store, name, u64::MAX).await;
    // Not a number that is nearly the same.
    assert!(matches!(store.lease(name, &request(u64::MAX - 1)).await.unwrap(), Leasing::Held { .. }));
    let second = granted(store, name, u64::MAX).await;
    assert!(second.fence() > first.fence());
    // The end of the first is not that of the second.
    store.release(name, first, NO_PAUSE).await.unwrap();
    let Leasing::Held { fence, .. } = store.lease(name, &request(2)).await.unwrap() else { panic!("it is free") };
    assert_eq!(fence, second.fence());
    publish(store, name, second, b"second").await;
    granted(store, name, 2).await;
}

/// However late it is published.
async fn an_entry_is_as_old_as_its_lease<S: TokenStore>(store: &S) {
    let name = "age";
    let lease = granted(store, name, 1).await;
    sleep(Duration::from_millis(120)).await;
    publish(store, name, lease, b"one").await;
    let age = store.load(name).await.unwrap().unwrap().age();
    assert!((Duration::from_millis(110)..Duration::from_secs(10)).contains(&age), "{age:?}");
}

/// Of a lease that the store forgot, or another store granted.
async fn what_has_another_fence_ends_no_lease<S: TokenStore>(store: &S) {
    let name = "another";
    let lease = granted(store, name, 1).await;
    store.release(name, Lease::new(lease.fence() + 5), NO_PAUSE).await.unwrap();
    assert!(matches!(store.lease(name, &request(2)).await.unwrap(), Leasing::Held { .. }));
    publish(store, name, Lease::new(lease.fence() + 5), b"theirs").await;
    assert_eq!(loaded(store, name).await.unwrap().1, b"theirs");
    let Leasing::Held { fence, .. } = store.lease(name, &request(2)).await.unwrap() else { panic!("it is free") };
    assert_eq!(fence, lease.fence());
    // It comes too late, and is over all the same.
    publish(store, name, lease, b"ours").await;
    assert_eq!(loaded(store, name).await.unwrap().1, b"theirs");
    granted(store, name, 2).await;
}

async fn names_have_nothing_in_common<S: TokenStore>(store: &S) {
    let (one, other) = (granted(store, "name", 1).await, granted(store, "another-name", 2).await);
    publish(store, "name", one, b"one").await;
    assert_eq!(loaded(store, "another-name").await, None);
    publish(store, "another-name", other, b"other").await;
    assert_eq!(loaded(store, "name").await.unwrap().1, b"one");
}
