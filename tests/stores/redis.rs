//! `RedisStore`, against a real server: what it stores there, and what becomes of it.

use std::{
    collections::BTreeSet,
    error::Error,
    fs,
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use apsis_auth::{
    BuildError, RedisStore,
    store::{Lease, LeaseRequest, Leasing, Pause, TokenStore},
};
use bytes::Bytes;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    runtime,
    time::{sleep, timeout},
};
use tower::BoxError;

use crate::{
    contract::{self, LASTS, NO_PAUSE, granted, paused, publish, request},
    server::{Server, free_port},
};

/// Of an operation, as `TokenStore` says.
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_server_keeps_what_a_store_promises() {
    contract::is_kept_by(&Server::start().store()).await;
}

#[tokio::test]
async fn a_socket_does_as_well() {
    let server = Server::start();
    let store = RedisStore::new(&format!("unix://{}?db=3", server.socket().display())).unwrap();
    contract::is_kept_by(&store).await;
    assert!(server.info("keyspace").contains("db3:"), "{}", server.info("keyspace"));
    assert_eq!(server.number(&["DBSIZE"]), 0, "it was to be in another database");
}

// Leases.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_want_a_lease_at_once_one_gets_it() {
    let server = Server::start();
    for round in 0..5 {
        let name = format!("race-{round}");
        let tasks = (0..4).flat_map(|_| {
            // One connection for each, as each process has.
            let store = server.store();
            let name = name.clone();
            (0..25).map(move |_| {
                let (store, name) = (store.clone(), name.clone());
                tokio::spawn(async move { store.lease(&name, &request(owner())).await.unwrap() })
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let (mut granted, mut held) = (BTreeSet::new(), BTreeSet::new());
        for task in tasks {
            match task.await.unwrap() {
                Leasing::Granted(lease) => assert!(granted.insert(lease.fence())),
                Leasing::Held { fence, .. } => drop(held.insert(fence)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(granted.len(), 1);
        assert_eq!(held, granted);
    }
}

#[tokio::test]
async fn a_lease_that_is_not_given_back_ends_by_itself() {
    let server = Server::start();
    let store = server.store();
    let short = |owner| {
        LeaseRequest::new(owner)
            .with_newer_than(u64::MAX)
            .with_lasts(Duration::from_millis(200))
            .with_attempts_per_minute(4)
    };
    let Leasing::Granted(first) = store.lease("name", &short(1)).await.unwrap() else { panic!() };
    let Leasing::Held { left, .. } = store.lease("name", &short(2)).await.unwrap() else { panic!() };
    assert!(left <= Duration::from_millis(200), "{left:?}");
    sleep(left + Duration::from_millis(10)).await;
    let Leasing::Granted(second) = store.lease("name", &short(2)).await.unwrap() else { panic!() };
    assert!(second.fence() > first.fence());
    // Whoever comes too late is not heard.
    publish(&store, "name", first, b"too late").await;
    assert!(store.load("name").await.unwrap().is_none());
    assert!(matches!(store.lease("name", &short(3)).await.unwrap(), Leasing::Held { .. }));
}

#[tokio::test]
async fn an_attempt_counts_until_a_minute_after_its_end_and_that_of_a_dead_process_after_its_leases() {
    let server = Server::start();
    let store = server.store();
    for (owner, ends) in [(1, LASTS), (2, Duration::ZERO), (3, Duration::ZERO)] {
        let lease = granted(&store, "name", owner).await;
        let fence = lease.fence().to_string();
        match owner {
            1 => drop(lease),
            2 => publish(&store, "name", lease, b"one").await,
            _ => store.release("name", lease, NO_PAUSE).await.unwrap(),
        }
        let now = server.texts(&["TIME"])[0].parse::<i64>().unwrap() * 1000;
        let counts_until = server.number(&["ZSCORE", "apsis-auth:{name}:attempts", &fence]);
        let expected = now + 60_000 + i64::try_from(ends.as_millis()).unwrap();
        assert!((expected - 1000..expected + 1500).contains(&counts_until), "{owner}: {counts_until}, {expected}");
        server.ask(&["HDEL", "apsis-auth:{name}", "owner", "lease_ends"]);
    }
}

#[tokio::test]
async fn an_attempt_that_is_over_counts_no_more() {
    let server = Server::start();
    let store = server.store();
    let now: u64 = server.texts(&["TIME"])[0].parse::<u64>().unwrap() * 1000;
    for ago in 1..10_u64 {
        let end = (now - ago * 1000).to_string();
        server.ask(&["ZADD", "apsis-auth:{name}:attempts", &end, &ago.to_string()]);
    }
    granted(&store, "name", 1).await;
    assert_eq!(server.number(&["ZCARD", "apsis-auth:{name}:attempts"]), 1);
}

#[tokio::test]
async fn who_allows_fewer_attempts_than_were_made_waits_until_there_is_room_for_his() {
    let server = Server::start();
    let store = server.store();
    let now: i64 = server.texts(&["TIME"])[0].parse::<i64>().unwrap() * 1000;
    for seconds in [10, 20, 30, 40] {
        let end = (now + seconds * 1000).to_string();
        server.ask(&["ZADD", "apsis-auth:{name}:attempts", &end, &seconds.to_string()]);
    }
    for (per_minute, free) in [(4, 10), (3, 20), (1, 40), (0, 60)] {
        let request =
            LeaseRequest::new(1).with_newer_than(u64::MAX).with_lasts(LASTS).with_attempts_per_minute(per_minute);
        let Leasing::Paused(pause) = store.lease("name", &request).await.unwrap() else { panic!() };
        let left = pause.lasts();
        let free = Duration::from_secs(free);
        assert!(left <= free && left + Duration::from_secs(3) > free, "{per_minute}: {left:?}");
    }
}

#[tokio::test]
async fn the_longer_of_two_pauses_holds_whoever_says_it() {
    let server = Server::start();
    let store = server.store();
    let short = LeaseRequest::new(1)
        .with_newer_than(u64::MAX)
        .with_lasts(Duration::from_millis(50))
        .with_attempts_per_minute(4);
    let Leasing::Granted(late) = store.lease("name", &short).await.unwrap() else { panic!() };
    sleep(Duration::from_millis(60)).await;
    let second = granted(&store, "name", 2).await;
    store.release("name", late, Pause::new(Duration::from_secs(30), None)).await.unwrap();
    assert!(matches!(store.lease("name", &request(3)).await.unwrap(), Leasing::Held { .. }));
    store.release("name", second, NO_PAUSE).await.unwrap();
    let left = paused(&store, "name", 3).await.lasts();
    assert!(left > Duration::from_secs(25), "{left:?}");
}

// Keys.

#[tokio::test]
async fn an_account_has_two_keys_in_one_slot_and_both_expire() {
    let server = Server::start();
    let store = server.store();
    let account = "apsis-auth:{name}";
    let expires_in = |key: &str| Duration::from_millis(u64::try_from(server.number(&["PTTL", key])).unwrap());
    let soon = |key: &str, longest: Duration| {
        let left = expires_in(key);
        assert!(left <= longest && left + Duration::from_secs(5) > longest, "{key}: {left:?}, not {longest:?}");
    };
    let (minute, day) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

    let lease = granted(&store, "name", 1).await;
    let keys: BTreeSet<_> = server.texts(&["KEYS", "*"]).into_iter().collect();
    assert_eq!(keys, [account, "apsis-auth:{name}:attempts"].map(str::to_owned).into());
    for key in &keys {
        soon(key, LASTS + minute);
    }
    store.publish("name", lease, Bytes::from_static(b"one"), day).await.unwrap();
    soon(account, day);
    // Nothing makes it shorter.
    let lease = granted(&store, "name", 1).await;
    store.release("name", lease, Pause::new(SECOND, None)).await.unwrap();
    soon(account, day);
    soon("apsis-auth:{name}:attempts", LASTS + minute);
    server.ask(&["DEL", account]);

    store.release("name", Lease::new(1), Pause::new(Duration::from_secs(600), None)).await.unwrap();
    soon(account, Duration::from_secs(600));
    // However long it is said to be of use, and however short.
    store.publish("other", Lease::new(1), Bytes::from_static(b"one"), Duration::MAX).await.unwrap();
    assert!(expires_in("apsis-auth:{other}") > day);
    store.publish("third", Lease::new(1), Bytes::from_static(b"one"), Duration::ZERO).await.unwrap();
    soon("apsis-auth:{third}", minute);
    let names = server.texts(&["KEYS", "*"]);
    assert_eq!(names.len(), 4);
    for key in names {
        assert!(!expires_in(&key).is_zero(), "{key}");
    }
}

#[tokio::test]
async fn moments_that_are_farther_off_than_any_can_be_keep_nobody_waiting() {
    let server = Server::start();
    let store = server.store();
    for far in ["9000000000000", "1e300", "inf", "nan", "soon", ""] {
        let held = [
            "lease",
            "7",
            "lease_ends",
            far,
            "granted",
            far,
            "owner",
            "1",
            "refused_with",
            far,
            "paused_until",
            far,
            "since",
            far,
            "entry",
            far,
            "sealed",
            "",
        ];
        server.ask(&[&["HSET", "apsis-auth:{name}"][..], &held].concat());
        server.ask(&["DEL", "apsis-auth:{name}:attempts"]);
        for member in ["1", "2", "3", "4"] {
            server.ask(&["ZADD", "apsis-auth:{name}:attempts", "9000000000000", member]);
        }
        granted(&store, "name", 2).await;
    }
}

#[tokio::test]
async fn what_was_published_before_the_clock_was_set_back_is_new() {
    let server = Server::start();
    let store = server.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, b"one").await;
    server.ask(&["HSET", "apsis-auth:{name}", "since", "9000000000000"]);
    assert_eq!(store.load("name").await.unwrap().unwrap().age(), Duration::ZERO);
}

// What goes wrong with servers.

#[tokio::test]
async fn a_server_that_lost_its_memory_grants_higher_fences() {
    let mut server = Server::start();
    let store = server.store();
    let mut before = 0;
    for round in 0..3 {
        let lease = granted(&store, "name", round).await;
        assert!(lease.fence() > before, "{} after {before}", lease.fence());
        before = lease.fence();
        match round {
            0 => {
                server.ask(&["FLUSHALL"]);
            }
            _ => {
                server.kill();
                server.start_again();
            }
        }
        // What was under way comes home.
        publish(&store, "name", lease, b"one").await;
        assert_eq!(store.load("name").await.unwrap().unwrap().fence(), before);
        let older = Lease::new(before - 1);
        publish(&store, "name", older, b"older").await;
        assert_eq!(store.load("name").await.unwrap().unwrap().fence(), before);
    }
}

#[tokio::test]
async fn a_fence_is_higher_than_the_last_though_the_clock_is_behind_it() {
    let server = Server::start();
    let store = server.store();
    // As a server has it that took over from one whose clock was ahead.
    let ahead = 4_000_000_000_000_u64;
    server.ask(&["HSET", "apsis-auth:{name}", "fence", &ahead.to_string()]);
    assert_eq!(granted(&store, "name", 1).await.fence(), ahead + 1);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_an_error_within_a_second_whether_a_connection_was_there_or_not() {
    let server = Server::start();
    let (store, other) = (server.store(), server.store());
    assert!(store.load("name").await.unwrap().is_none());
    server.stop();
    for store in [&store, &other] {
        fails_within(SECOND, store).await;
    }
    server.go_on();
    granted(&store, "name", 1).await;
    assert!(matches!(other.lease("name", &request(2)).await.unwrap(), Leasing::Held { .. }));
}

/// Nobody is left with a lease that he cannot end.
#[tokio::test]
async fn a_server_that_is_full_is_an_error_and_grants_no_lease() {
    let server = Server::start();
    let store = server.store();
    let lease = granted(&store, "name", 1).await;
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = chain(&*store.lease("another", &request(1)).await.unwrap_err());
    assert!(error.contains("OOM"), "{error}");
    assert_eq!(server.number(&["EXISTS", "apsis-auth:{another}"]), 0);
    // What is under way can be ended.
    assert!(matches!(store.lease("name", &request(2)).await.unwrap(), Leasing::Held { .. }));
    store.release("name", lease, NO_PAUSE).await.unwrap();
    store.lease("name", &request(2)).await.unwrap_err();
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    granted(&store, "name", 2).await;
}

/// It is in the server's buffer, and takes place when that goes on.
#[tokio::test]
async fn what_a_server_hears_late_is_as_old_as_its_lease() {
    let server = Server::start();
    let store = server.store();
    let lease = granted(&store, "name", 1).await;
    server.stop();
    store.publish("name", lease, Bytes::from_static(b"one"), LASTS).await.unwrap_err();
    sleep(2 * SECOND).await;
    server.go_on();
    let age = store.load("name").await.unwrap().expect("it was heard").age();
    assert!(age > 2 * SECOND, "{age:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_at_once_and_works_when_it_is() {
    let mut server = Server::start();
    let store = server.store();
    server.kill();
    let error = fails_within(SECOND / 2, &store).await;
    assert_eq!(error, format!("the Redis server {} fails: Connection refused (os error 111)", &server.url()[8..]));
    server.start_again();
    granted(&store, "name", 1).await;
    // A connection was there, and is no more.
    for _ in 0..3 {
        server.kill();
        server.start_again();
        assert!(store.load("name").await.unwrap().is_none());
    }
    server.kill();
    fails_within(SECOND / 2, &store).await;
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_an_error_and_works_when_it_is_one_again() {
    let server = Server::start();
    let store = server.store();
    let lease = granted(&store, "name", 1).await;
    publish(&store, "name", lease, b"one").await;
    server.ask(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    let error = store.lease("name", &request(1)).await.unwrap_err();
    assert!(chain(&*error).contains("read only"), "{}", chain(&*error));
    // What it knows it says.
    assert!(store.load("name").await.unwrap().is_some());
    server.ask(&["REPLICAOF", "NO", "ONE"]);
    granted(&store, "name", 1).await;
}

#[test]
fn a_store_outlives_the_runtime_that_used_it_and_works_in_another_meanwhile() {
    let server = Server::start();
    // Where there is no runtime.
    let store = server.store();
    let runtime = || runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    first.block_on(granted(&store, "one", 1));
    // The first is there, and nobody drives it.
    second.block_on(granted(&store, "two", 1));
    first.block_on(granted(&store, "three", 1));
    drop(first);
    second.block_on(granted(&store, "four", 1));
    drop(second);
    runtime().block_on(granted(&store, "five", 1));
}

#[tokio::test]
async fn a_flight_takes_one_connection_and_dropped_stores_leave_none() {
    let server = Server::start();
    let connections = || server.stat("total_connections_received");
    let before = connections();
    let store = server.store();
    all_operations(&store, "name").await.unwrap();
    // One of them asks.
    assert_eq!(connections(), before + 2);
    let clients = || server.texts(&["CLIENT", "LIST"]).concat().lines().count();
    assert_eq!(clients(), 2);
    drop(store);
    let gone = async {
        while clients() > 1 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SECOND, gone).await.unwrap();
}

#[tokio::test]
async fn what_is_no_answer_of_our_scripts_is_an_error() {
    let answers: [&[u8]; 14] = [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        b"+OK\r\n",
        b":7\r\n",
        b"*1\r\n$7\r\ngranted\r\n",
        b"*2\r\n$7\r\ngranted\r\n$2\r\n-1\r\n",
        b"*2\r\n$7\r\ngranted\r\n$20\r\n99999999999999999999\r\n",
        b"*2\r\n$7\r\ngranted\r\n:7\r\n",
        b"*3\r\n$3\r\none\r\n$1\r\n\xff\r\n$0\r\n\r\n",
        b"*2\r\n$6\r\npaused\r\n$3\r\n0x7\r\n",
        b"*9223372036854775807\r\n",
        b"$9223372036854775807\r\n",
        b"-MOVED 3999 127.0.0.1:6381\r\n",
    ];
    for answer in answers {
        let url = answering(answer);
        let store = RedisStore::new(&url).unwrap();
        for (operation, result) in [
            ("load", timeout(SECOND, store.load("name")).await.unwrap().err()),
            ("lease", timeout(SECOND, store.lease("name", &request(1))).await.unwrap().err()),
        ] {
            assert!(result.is_some(), "{operation}: {}", answer.escape_ascii());
        }
    }
    // Nested without end.
    let store = RedisStore::new(&answering(&b"*1\r\n".repeat(100_000))).unwrap();
    fails_within(SECOND, &store).await;
}

#[tokio::test]
async fn keys_of_another_kind_are_an_error_and_fields_that_say_nothing_are_as_good_as_none() {
    let server = Server::start();
    let store = server.store();
    server.ask(&["SET", "apsis-auth:{string}", "one"]);
    store.load("string").await.unwrap_err();
    store.lease("string", &request(1)).await.unwrap_err();
    server.ask(&["HSET", "apsis-auth:{fields}", "entry", "x", "sealed", "y", "fence", "", "lease_ends", "z"]);
    assert!(store.load("fields").await.unwrap().is_none());
    granted(&store, "fields", 1).await;
    for fence in ["1e300", "-7", "0x7", "inf", "nan", "9007199254740992"] {
        server.ask(&["DEL", "apsis-auth:{fields}"]);
        server.ask(&["HSET", "apsis-auth:{fields}", "fence", fence, "entry", fence, "sealed", "y", "published", "1"]);
        store.load("fields").await.unwrap();
        let fence = granted(&store, "fields", 1).await.fence();
        assert!((1_700_000_000_000..4_000_000_000_000).contains(&fence), "{fence}");
        server.ask(&["DEL", "apsis-auth:{fields}:attempts"]);
    }
}

// Who may come in.

/// As the documentation has it.
const USER: &str = include_str!("../../src/redis_store.acl");

#[tokio::test]
async fn the_documented_user_may_do_what_is_needed() {
    let server = Server::start();
    server.ask(&USER.split_whitespace().collect::<Vec<_>>());
    contract::is_kept_by(&RedisStore::new(&server.url_of("apsis-auth", "password")).unwrap()).await;
    // Nor is anything else tried, by the connection either.
    assert_eq!(server.stat("total_error_replies"), 0);
}

#[tokio::test]
async fn each_right_of_the_documented_user_is_needed() {
    let server = Server::start();
    let rights: Vec<_> = USER.split_whitespace().filter(|word| word.starts_with('+')).collect();
    assert!(rights.len() > 5);
    for (number, right) in rights.iter().enumerate() {
        server.ask(&USER.split_whitespace().chain([right.replace('+', "-").as_str()]).collect::<Vec<_>>());
        let store = RedisStore::new(&server.url_of("apsis-auth", "password")).unwrap();
        let error = all_operations(&store, &number.to_string()).await.expect_err(right);
        let said = chain(&*error);
        assert!(said.contains("permission") || said.contains("can't run this command"), "{right}: {said}");
        server.ask(&["ACL", "DELUSER", "apsis-auth"]);
    }
    // No other keys than ours.
    let user = USER.replace("~apsis-auth:*", "~others:*");
    server.ask(&user.split_whitespace().collect::<Vec<_>>());
    let store = RedisStore::new(&server.url_of("apsis-auth", "password")).unwrap();
    store.load("name").await.unwrap_err();
}

#[tokio::test]
async fn a_wrong_password_is_an_error_that_does_not_show_it() {
    let server = Server::with(&["--requirepass", "right"]);
    let password = "canary-7f3a";
    for url in [
        server.url_of("", password),
        server.url_of("default", password),
        server.url_of("nobody", password),
        format!("unix://{}?pass={password}", server.socket().display()),
    ] {
        let store = RedisStore::new(&url).unwrap();
        let error = store.load("name").await.unwrap_err();
        let shown = format!("{} {error:?} {store:?}", chain(&*error));
        assert!(!shown.contains("canary"), "{shown}");
        assert!(shown.contains("WRONGPASS") || shown.contains("uthentication"), "{shown}");
    }
    RedisStore::new(&server.url()).unwrap().load("name").await.unwrap_err();
    RedisStore::new(&server.url_of("", "right")).unwrap().load("name").await.unwrap();
    let store = RedisStore::new(&server.url_of("user", password)).unwrap();
    assert_eq!(format!("{store:?}"), format!("RedisStore {{ server: {}, .. }}", &server.url()[8..]));
}

/// That begins with a command which says the password, and an old server repeats what it does not know.
#[tokio::test]
async fn the_newer_protocol_is_not_spoken() {
    let server = Server::with(&["--requirepass", "right", "--rename-command", "HELLO", ""]);
    let url = |password| format!("unix://{}?protocol=resp3&pass={password}", server.socket().display());
    let error = chain(&*RedisStore::new(&url("canary")).unwrap().load("name").await.unwrap_err());
    assert!(error.contains("uthentication") && !error.contains("canary"), "{error}");
    RedisStore::new(&url("right")).unwrap().load("name").await.unwrap();
}

#[test]
fn a_url_that_cannot_be_used_is_an_error_that_does_not_show_it() {
    for url in [
        "",
        "canary",
        "127.0.0.1:6379",
        "redis://127.0.0.1?db=1",
        "redis://127.0.0.1?user=user&pass=canary",
        "rediss://127.0.0.1/1?protocol=resp3",
        "redis://127.0.0.1/-1",
        "unix:///socket?db=-1",
        "http://user:canary@host",
        "redis://user:canary@",
        "redis://user:canary@host:port",
        "redis://user:canary@host:99999",
        "redis://user:canary@host/canary",
        "redis://user:canary@host?protocol=canary",
        "redis://user:canary@0.0.0.0",
        "redis://user:canary#canary@host",
        "rediss://user:canary@host/#insecure",
        "rediss://user:canary@-host%20.example",
        "redis://user:%ffcanary@host",
        "redis-sentinel://user:canary@host",
        "redis://canary@host",
        "unix:///socket?user=canary",
        "unix://host?pass=canary&db=canary",
    ] {
        let error = RedisStore::new(url).expect_err(url);
        assert!(matches!(error, BuildError::RedisUrl { .. }), "{url}: {error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("canary"), "{url}: {shown}");
    }
}

// TLS. Both crypto providers are compiled into this program, so there is no default one.

/// A server that speaks TLS on a port of its own, and its certificate.
struct Tls {
    server: Server,
    port: u16,
    certificate: String,
}

impl Tls {
    fn start() -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = crate::file::Folder::new();
        fs::create_dir_all(folder.path()).unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        fs::write(&certificate, cert.pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        let port = free_port();
        let server = Server::with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            certificate.to_str().unwrap(),
            "--tls-key-file",
            key.to_str().unwrap(),
            "--tls-auth-clients",
            "no",
        ]);
        Self { server, port, certificate: cert.pem() }
    }

    fn url(&self, host: &str) -> String {
        format!("rediss://{host}:{}", self.port)
    }
}

#[tokio::test]
async fn tls_is_spoken_with_a_server_whose_certificate_is_trusted() {
    let tls = Tls::start();
    let store = RedisStore::trusting(&tls.url("localhost"), tls.certificate.as_bytes()).unwrap();
    contract::is_kept_by(&store).await;
    let valkeys = tls.url("localhost").replace("rediss", "valkeys");
    let store = RedisStore::trusting(&valkeys, tls.certificate.as_bytes()).unwrap();
    assert!(store.load("published").await.unwrap().is_some());
}

#[tokio::test]
async fn tls_is_not_spoken_with_one_whose_certificate_is_not_trusted_or_another_hosts() {
    let tls = Tls::start();
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    for (url, pem) in [(tls.url("localhost"), &other), (tls.url("127.0.0.1"), &tls.certificate)] {
        let store = RedisStore::trusting(&url, pem.as_bytes()).unwrap();
        let error = fails_within(SECOND, &store).await;
        assert!(error.contains("certificate"), "{error}");
    }
    // What does not speak TLS.
    let plain = tls.server.url().replace("redis", "rediss");
    fails_within(SECOND, &RedisStore::trusting(&plain, other.as_bytes()).unwrap()).await;
    // Certificates would be of no use.
    let url = RedisStore::trusting(&tls.server.url(), tls.certificate.as_bytes()).unwrap_err();
    assert!(matches!(url, BuildError::RedisUrl { .. }), "{url}");
    let garbage = RedisStore::trusting(&tls.url("localhost"), b"no certificate").unwrap_err();
    assert!(matches!(garbage, BuildError::Certificate { .. }), "{garbage}");
}

// Helpers.

fn owner() -> u64 {
    static OWNER: AtomicU32 = AtomicU32::new(0);
    u64::from(OWNER.fetch_add(1, Ordering::Relaxed))
}

/// All it is made of: an error says little without its sources.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let sources = std::iter::successors(Some(error), |&error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What the last operation says: each of them fails.
async fn fails_within(limit: Duration, store: &RedisStore) -> String {
    let (mut started, mut said) = (Instant::now(), String::new());
    let mut fails = |result: Result<(), BoxError>| {
        said = chain(&*result.unwrap_err());
        assert!(started.elapsed() < limit, "{:?}: {said}", started.elapsed());
        started = Instant::now();
    };
    fails(store.load("fails").await.map(drop));
    fails(store.lease("fails", &request(1)).await.map(drop));
    fails(store.release("fails", Lease::new(1), NO_PAUSE).await);
    fails(store.publish("fails", Lease::new(1), Bytes::new(), LASTS).await);
    said
}

/// Each of them, in the way a flight does them.
async fn all_operations(store: &RedisStore, name: &str) -> Result<(), BoxError> {
    store.load(name).await?;
    for _ in 0..2 {
        let Leasing::Granted(lease) = store.lease(name, &request(1)).await? else { return Err("no lease".into()) };
        store.lease(name, &request(2)).await?;
        store.release(name, lease, NO_PAUSE).await?;
        let Leasing::Granted(lease) = store.lease(name, &request(1)).await? else { return Err("no lease".into()) };
        store.publish(name, lease, Bytes::from_static(b"one"), LASTS).await?;
    }
    store.lease(name, &request(1)).await?;
    store.load(name).await?;
    Ok(())
}

/// The URL of what says this to everybody, whatever they say.
fn answering(answer: &[u8]) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let answer: Arc<[u8]> = answer.into();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), Arc::clone(&answer));
            thread::spawn(move || {
                while stream.read(&mut [0; 10_000]).is_ok_and(|length| length > 0) {
                    if stream.write_all(&answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}
