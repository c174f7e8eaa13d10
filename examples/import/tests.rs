//! What the import promises. Most run in a process without sockets, on tokio's paused clock: a minute of waiting takes
//! no time, and what hangs ends by a virtual deadline.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

use std::{
    env, fs,
    future::{Future, pending},
    io::{self, Read},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use apsis_auth::{
    ApsisAuthLayer,
    emulator::{Answer, Dialect, Emulator, EmulatorBody, EmulatorError},
};
use bytes::Bytes;
use clap::{CommandFactory, Parser};
use csv::ByteRecord;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use tower::{Service, ServiceExt, service_fn, util::BoxCloneService};

use crate::{
    Limits, Options, SAMPLE,
    client::Client,
    failed::FailedFile,
    import::{Import, READ_AHEAD, ReadEnd, Stop, Summary, Target, read, run},
    progress::{Counts, Watch},
    records::{Records, Row, Unusable},
};

/// No import takes longer, unless something hangs that should not. On a paused clock it is over at once.
const LIMIT: Duration = Duration::from_secs(60 * 60);
const BASE: &str = "https://api.apsis.one";
const KEYSPACE: &str = "com.apsis1.keyspaces.email";
const SECTION: &str = "com.apsis1.sections.default";

// The file.

#[test]
fn a_file_that_is_none_is_refused_with_the_line() {
    let refused: [(&[u8], &str); 13] = [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"\n\r\n", "the file is empty"),
        (b"email,city\n", "line 1: there is no record"),
        (b"\nemail,city\r\n\r\n", "line 2: there is no record"),
        (b"mail,city\na@b.com,Lund\n", "line 1: there is no column `email`; the columns are: `mail`, `city`"),
        (b"email;city\na@b.com;Lund\n", "use `--delimiter ';'`"),
        (b"Email ,EMAIL,city\na@b.com,a@b.com,Lund\n", "line 1: "),
        (b"email\na@b.com\n", "line 1: there is no column beside `email`"),
        (b"import_line,email\n2,a@b.com\n", "line 1: there is no column beside `email`"),
        (b"email,city,city\na@b.com,Lund,Lund\n", "line 1: the column `city` is there twice"),
        (b"email,city,\na@b.com,Lund,\n", "line 1: column 3 has no name"),
        // As UTF-16.
        (b"\xff\xfee\0m\0a\0i\0l\0\n\0", "line 1: the names of the columns are not UTF-8"),
    ];
    for (file, message) in refused {
        let error = Records::open(file, b',').unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_record_that_cannot_be_sent_is_told_with_its_line_and_the_others_are_read() {
    let file = b"email,city\n\
        a@example.com,Lund\n\
        b@example.com\n\
        c@example.com,Lund,Sweden\n\
        d.example.com,Lund\n\
        ,Lund\n\
        e@example,Lund\n\
        E <e@example.com>,Lund\n\
        A@example.com,Ystad\n\
        f@example.com,Malm\xf6\n\
        g\xff@example.com,Lund\n\
        h@example.com,Lund";
    let rows = rows(file);
    let faults: Vec<_> = rows.iter().map(|row| (row.line, row.profile.as_ref().err().map_or("", |why| why))).collect();
    let expected = [
        (2, ""),
        (3, "the first line names 2 columns, this record has 1"),
        (4, "the first line names 2 columns, this record has 3"),
        (5, "`d.example.com` is no e-mail address: missing separator character '@'"),
        (6, "there is no e-mail address"),
        (7, "`e@example` is no e-mail address: too few parts in the domain"),
        (8, "`E <e@example.com>` is no e-mail address: display names are not supported"),
        (9, "`A@example.com` was in line 2 already"),
        (10, "`city` is not UTF-8 from its byte 5 on; save the file as UTF-8"),
        (11, "`email` is not UTF-8 from its byte 2 on; save the file as UTF-8"),
        (12, ""),
    ];
    assert_eq!(faults, expected);
}

#[test]
fn lines_are_counted_as_an_editor_does() {
    for end in ["\n", "\r\n"] {
        let file = "\u{feff}email,city\n\na@example.com,\"Box 1\n\nLund\"\n\n\nb@example.com,\"\"\"Lund\"\"\"\nc@example.com,Lund";
        let file = file.replace('\n', end);
        let rows = rows(file.as_bytes());
        let lines: Vec<_> = rows.iter().map(|row| row.line).collect();
        assert_eq!(lines, [3, 8, 9], "{end:?}");
        let attributes: Vec<Value> = rows.iter().map(attributes).collect();
        let box_1 = "Box 1\n\nLund".replace('\n', end);
        assert_eq!(attributes, [json!({"city": box_1}), json!({"city": "\"Lund\""}), json!({"city": "Lund"})]);
    }
}

#[test]
fn a_column_is_an_attribute_and_an_empty_cell_is_nothing() {
    let file = b"import_line,city, email ,import_reason,2b\n7,Lund, a@example.com ,because,x\n,,b@example.com,,\n";
    let rows = rows(file);
    assert_eq!(rows[0].profile.as_ref().unwrap().key, "a@example.com");
    assert_eq!(attributes(&rows[0]), json!({"city": "Lund", "2b": "x"}));
    assert_eq!(attributes(&rows[1]), json!({}));
    assert_eq!(rows[0].fields, ByteRecord::from(vec!["Lund", " a@example.com ", "x"]));
}

#[test]
fn a_quote_that_is_never_closed_ends_the_reading_where_it_was_opened() {
    for tail in ["", "\n", "\r\n"] {
        let file = format!("email,city\na@example.com,Lund\nb@example.com,\"Lund\nc@example.com,Lund{tail}");
        let mut records = Records::open(file.as_bytes(), b',').unwrap();
        assert!(records.next().unwrap().is_some());
        let broken = records.next().unwrap_err();
        assert_eq!(broken.to_string(), "line 3: in the record that begins here a quote is never closed");
    }
}

#[test]
fn a_record_without_end_is_not_kept_in_memory() {
    let head = b"email,city\na@example.com,Lund\nb@example.com,\"";
    let mut taken = 0;
    let endless = head.chain(io::repeat(b'x'));
    let mut records = Records::open(Counting { inner: endless, taken: &mut taken }, b',').unwrap();
    assert!(records.next().unwrap().is_some());
    let broken = records.next().unwrap_err();
    assert!(broken.to_string().starts_with("line 3: the record that begins here is longer than"), "{broken}");
    drop(records);
    assert!(taken < 1_000_000, "{taken}");
}

#[test]
fn a_file_that_cannot_be_read_on_says_where() {
    let mut records = Records::open((&b"email,city\na@example.com,Lund\n"[..]).chain(Failing), b',').unwrap();
    assert!(records.next().unwrap().is_some());
    let broken = records.next().unwrap_err();
    assert_eq!(broken.to_string(), "line 3: cannot be read: the disk is gone");
    assert!(matches!(Records::open(Failing, b','), Err(Unusable::Broken(_))));
}

#[test]
fn the_sample_is_a_thousand_profiles_to_be_sent() {
    let rows = rows(&fs::read(SAMPLE).unwrap());
    assert_eq!(rows.len(), 1000);
    for row in rows {
        let key = row.profile.unwrap().key;
        assert!(key.contains("@example.") || key.contains("@mail.example."), "{key}");
    }
}

#[test]
fn a_hundred_megabytes_are_read_no_faster_than_they_are_sent() {
    const SIZE: u64 = 100_000_000;
    let taken = Arc::new(AtomicU64::new(0));
    let records = Records::open(Generated::new(SIZE, Arc::clone(&taken)), b',').unwrap();
    let (sender, mut rows) = mpsc::channel(READ_AHEAD);
    let reader = thread::spawn(move || read(records, 0, &sender));
    let (mut read, mut longest, mut end) = (0_u64, 0, 0);
    while let Some(row) = rows.blocking_recv() {
        longest = longest.max(row.end - end);
        end = row.end;
        assert!(row.profile.is_ok());
        // Those that are read ahead, one in the reader's hand, and what the csv crate has in its buffer.
        let ahead = taken.load(Ordering::Relaxed) - row.end;
        assert!(ahead <= (READ_AHEAD as u64 + 2) * longest + 16 * 1024, "{ahead} bytes ahead");
        read += 1;
    }
    assert!(matches!(reader.join().unwrap(), ReadEnd::AtEnd));
    assert!(end >= SIZE && read > 90_000, "{read} records in {end} bytes");
}

// Where the records go.

#[tokio::test(start_paused = true)]
async fn every_record_is_in_the_account_at_the_end() {
    let scene = Scene::new();
    let summary = scene.import("email,city,age\na+b/c@example.com,Malmö,7\n\"o'b%\"@example.com,,8\n").await;
    assert!(summary.is_complete(), "{summary}");
    assert_eq!(scene.attributes("a+b/c@example.com"), json!({"city": "Malmö", "age": "7"}));
    assert_eq!(scene.apsis.counters().api_requests, 2);
    assert_eq!(summary.failed_file, None);
    assert_eq!(scene.folder.names(), ["input.csv"]);
}

#[tokio::test(start_paused = true)]
async fn a_profile_key_is_encoded_in_the_path() {
    let scene = Scene::new();
    let paths = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&paths);
    let transport = scene.transport(move |request| seen.lock().unwrap().push(request.uri().to_string()));
    scene.import_over(transport, "email,city\nandy.demo@apsis.com,Malmö\n").await;
    assert_eq!(
        *paths.lock().unwrap(),
        ["https://api.apsis.one/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com\
            /sections/com.apsis1.sections.default/attributes"]
    );
}

// Failures.

#[tokio::test(start_paused = true)]
async fn what_fails_is_kept_to_the_byte_and_can_be_mended_and_imported() {
    let scene = Scene::new();
    let file = b"email,city,note\r\n\
        a@example.com,Lund,x\r\n\
        b@example.com,Malm\xf6,\"1,\"\"2\"\"\r\n3\"\r\n\
        c@example.com\r\n\
        d@example.com,Lund,x,y\r\n\
        A@EXAMPLE.com,Ystad,\r\n\
        e,Lund,\r\n";
    let first = scene.import(file).await;
    assert_eq!((first.counts.read, first.counts.applied, first.counts.failed, first.not_sent), (6, 1, 5, 0));
    assert!(!first.is_complete());
    let failed = fs::read(first.failed_file.unwrap()).unwrap();
    let expected = b"import_line,import_reason,email,city,note\n\
        3,`city` is not UTF-8 from its byte 5 on; save the file as UTF-8,b@example.com,Malm\xf6,\"1,\"\"2\"\"\r\n3\"\n\
        5,\"the first line names 3 columns, this record has 1\",c@example.com\n\
        6,\"the first line names 3 columns, this record has 4\",d@example.com,Lund,x,y\n\
        7,`A@EXAMPLE.com` was in line 2 already,A@EXAMPLE.com,Ystad,\n\
        8,`e` is no e-mail address: missing separator character '@',e,Lund,\n";
    assert_eq!(lossy(&failed), lossy(expected));
    assert_eq!(failed, expected);

    // As it is, and mended.
    let again = scene.import(failed.clone()).await;
    assert_eq!((again.counts.applied, again.counts.failed), (1, 4));
    assert_eq!(scene.attributes("A@EXAMPLE.com"), json!({"city": "Ystad"}));
    let mended = fs::read(again.failed_file.unwrap()).unwrap();
    let mended = replace(&mended, b"Malm\xf6", "Malmö".as_bytes());
    let mended = replace(&mended, b",c@example.com\n", b",c@example.com,,\n");
    let mended = replace(&mended, b"Lund,x,y", b"Lund,x");
    let mended = replace(&mended, b",e,", b",e@example.com,");
    let last = scene.import(mended).await;
    assert!(last.is_complete(), "{last}");
    assert_eq!(last.counts.applied, 4);
    assert_eq!(scene.attributes("b@example.com"), json!({"city": "Malmö", "note": "1,\"2\"\r\n3"}));
}

#[tokio::test(start_paused = true)]
async fn a_failure_has_the_reason_that_the_api_gave() {
    let scene = Scene::new();
    scene.apsis.refuse_route(&path_of("b%40example.com"));
    let too_long = "x".repeat(150_000);
    let file =
        format!("email,city\na@example.com,Lund\nb@example.com,Lund\nc@example.com,{too_long}\nd@example.com,Lund\n");
    let summary = scene.import(file).await;
    assert_eq!((summary.counts.applied, summary.counts.failed), (2, 2));
    let mut reasons = failed_rows(&summary);
    reasons.sort();
    let expected = [
        ("3", "403 Forbidden: User is not authorized to access this resource with an explicit deny"),
        ("4", "413 Payload Too Large: Request Too Long"),
    ];
    assert_eq!(reasons, expected.map(|(line, reason)| (line.to_owned(), reason.to_owned())));
    assert!(scene.watch.has_said("line 4: 413 Payload Too Large: Request Too Long"));
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_everybodys_stops_the_import() {
    let scene = Scene { section: "unknown", give_up_after: 10, ..Scene::new() };
    let summary = scene.import(people(1000)).await;
    let Some(Stop::SameFailure { count: 10, reason }) = &summary.stop else { panic!("{summary}") };
    assert_eq!(reason, "404 Not Found: no such section");
    // Those that were under way may still fail.
    assert!((10..=10 + scene.concurrency() as u64).contains(&summary.counts.failed), "{summary}");
    assert_eq!(summary.counts.applied, 0);

    // The others are where it says.
    let scene = Scene { section: SECTION, from_line: summary.go_on_at.unwrap(), ..scene };
    let rest = scene.import(people(1000)).await;
    assert!(rest.is_complete(), "{rest}");
    assert_eq!(rest.counts.applied + summary.counts.failed, 1000);
}

#[tokio::test(start_paused = true)]
async fn without_a_bound_every_record_may_fail() {
    let scene = Scene { section: "unknown", give_up_after: 0, ..Scene::new() };
    let summary = scene.import(people(200)).await;
    assert_eq!((summary.counts.failed, summary.go_on_at), (200, None));
    assert!(summary.stop.is_none());
}

#[tokio::test(start_paused = true)]
async fn failures_with_successes_between_them_stop_nothing() {
    let scene = Scene { give_up_after: 2, limits: limits(10_000, 1), ..Scene::new() };
    let conflict = Answer::status(StatusCode::CONFLICT);
    scene.apsis.script_api_answers((0..20).map(|n| if n % 2 == 0 { conflict.clone() } else { Answer::genuine() }));
    let summary = scene.import(people(20)).await;
    assert_eq!((summary.counts.failed, summary.counts.applied), (10, 10), "{summary}");
    assert!(summary.stop.is_none());
}

#[tokio::test(start_paused = true)]
async fn only_the_first_failures_are_shown() {
    let scene = Scene::new();
    let summary = scene.import(format!("email,city\n{}", "nobody,Lund\n".repeat(100))).await;
    assert_eq!(summary.counts.failed, 100);
    assert_eq!(scene.watch.messages().len(), 11);
    assert!(scene.watch.has_said("further failures are in the file only"));
}

#[test]
fn no_file_is_overwritten_with_failed_records() {
    let folder = Folder::new();
    let names = ByteRecord::from(vec!["email", "city"]);
    let row = &rows(b"email,city\nnobody,Lund\n")[0];
    let input = Path::new("elsewhere/customers.csv");
    for name in ["customers.failed.csv", "customers.failed-2.csv", "customers.failed-3.csv"] {
        let mut file = FailedFile::create_beside(&folder.0, input, &names, b',').unwrap();
        file.write(row, "because").unwrap();
        assert_eq!(file.finish(), Some(folder.0.join(name)));
    }
    let taken = folder.0.join("customers.failed.csv");
    let error = FailedFile::create(&taken, &names, b',').unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(taken).unwrap(), "import_line,import_reason,email,city\n2,because,nobody,Lund\n");
}

#[test]
fn a_failed_record_is_in_the_file_at_once() {
    let folder = Folder::new();
    let path = folder.0.join("failed.csv");
    let mut file = FailedFile::create(&path, &ByteRecord::from(vec!["email", "city"]), b';').unwrap();
    file.write(&rows(b"email,city\nnobody,Lund\n")[0], "because").unwrap();
    // What is not written yet will never be, as if the process had been killed.
    std::mem::forget(file);
    assert_eq!(fs::read_to_string(path).unwrap(), "import_line;import_reason;email;city\n2;because;nobody;Lund\n");
}

// Retry.

#[tokio::test(start_paused = true)]
async fn what_passes_is_tried_again() {
    let passing = [
        Answer::too_many_requests(),
        Answer::status(StatusCode::BAD_GATEWAY),
        Answer::status(StatusCode::SERVICE_UNAVAILABLE),
        Answer::status(StatusCode::GATEWAY_TIMEOUT),
        Answer::close(),
        Answer::hang(),
    ];
    for answer in passing {
        let scene = Scene::new();
        scene.apsis.script_api_answers([answer]);
        let summary = scene.import(people(3)).await;
        assert!(summary.is_complete(), "{summary}");
        assert_eq!(summary.counts.resent, 1);
        assert_eq!(scene.apsis.counters().api_accepted, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_not_tried_again() {
    for status in [400, 404, 409, 413, 500] {
        let scene = Scene::new();
        scene.apsis.script_api_answers([Answer::status(StatusCode::from_u16(status).unwrap())]);
        let summary = scene.import(people(3)).await;
        assert_eq!((summary.counts.failed, summary.counts.applied, summary.counts.resent), (1, 2, 0), "{status}");
        assert_eq!(scene.apsis.counters().api_requests, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_as_long_as_it_is_told() {
    for (told, at_least, at_most) in [("20", 20, 21), ("0", 0, 1), ("rubbish", 0, 1)] {
        let scene = Scene::new();
        scene.apsis.script_api_answers([Answer::status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", told)]);
        let started = Instant::now();
        assert!(scene.import(people(1)).await.is_complete());
        let took = started.elapsed();
        assert!((at_least..=at_most).contains(&took.as_secs()), "{told}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_an_hour_because_of_one_answer() {
    let scene = Scene::new();
    scene.apsis.script_api_answers([Answer::too_many_requests().header("retry-after", "3600")]);
    let started = Instant::now();
    let summary = scene.import(people(2)).await;
    assert_eq!((summary.counts.applied, summary.counts.failed), (1, 1));
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(failed_rows(&summary)[0].1, "429 Too Many Requests: Too Many Requests");
}

#[tokio::test(start_paused = true)]
async fn tries_are_numbered_and_further_and_further_apart() {
    let scene = Scene::new();
    scene.apsis.script_api_answers(vec![Answer::status(StatusCode::SERVICE_UNAVAILABLE); 100]);
    let moments = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&moments);
    let transport = scene.transport(move |_| seen.lock().unwrap().push(Instant::now()));
    let summary = scene.import_over(transport, people(1)).await;
    assert_eq!(summary.counts.failed, 1);
    assert_eq!(failed_rows(&summary)[0].1, "503 Service Unavailable");
    let moments = moments.lock().unwrap();
    let pauses: Vec<_> = moments.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(pauses.len(), 7);
    for (pause, longest) in pauses.iter().zip([500, 1000, 2000, 4000, 8000, 16_000, 30_000]) {
        assert!((longest / 2..=longest + 20).contains(pause), "{pauses:?}");
    }
}

// The rate.

#[tokio::test(start_paused = true)]
async fn no_second_has_more_requests_than_it_may_repetitions_included() {
    for rate in [1, 7, 100] {
        let scene = Scene { limits: limits(rate, 32), ..Scene::new() };
        scene.apsis.set_api_limit(rate);
        // A slow beginning: what it leaves of its second must not be added to the next one.
        scene.apsis.script_api_answers(vec![Answer::genuine().delay(Duration::from_millis(900)); scene.concurrency()]);
        let unavailable = Answer::status(StatusCode::SERVICE_UNAVAILABLE);
        scene
            .apsis
            .script_api_answers((0..200).map(|n| if n % 5 == 2 { unavailable.clone() } else { Answer::genuine() }));
        let apsis = scene.apsis.clone();
        scene.watch.at(u64::from(rate), move || apsis.revoke_tokens());
        let moments = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&moments);
        let transport = scene.transport(move |_| seen.lock().unwrap().push(Instant::now()));
        let records = 3 * rate + 1;
        let summary = scene.import_over(transport, people(records)).await;
        assert!(summary.is_complete(), "{summary}");

        let moments = moments.lock().unwrap();
        assert!(moments.len() > records as usize, "{} requests", moments.len());
        for window in moments.windows(rate as usize + 1) {
            assert!(window[rate as usize] - window[0] >= Duration::from_secs(1));
        }
        assert_eq!(scene.apsis.counters().api_limited, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_used() {
    let scene = Scene { limits: limits(100, 32), ..Scene::new() };
    scene.apsis.set_api_delay(Duration::from_millis(100));
    let started = Instant::now();
    assert!(scene.import(people(500)).await.is_complete());
    let took = started.elapsed();
    assert!(took < Duration::from_millis(5_700), "500 requests at 100 a second took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_are_under_way_than_may_be() {
    let scene = Scene { limits: limits(10_000, 3), ..Scene::new() };
    scene.apsis.set_api_delay(Duration::from_secs(1));
    let started = Instant::now();
    assert!(scene.import(people(30)).await.is_complete());
    assert!(started.elapsed() >= Duration::from_secs(10));
}

// Tokens.

#[tokio::test]
async fn a_thousand_records_are_applied_while_tokens_are_revoked_and_the_token_endpoint_is_over_its_limit() {
    for dialect in [Dialect::Unauthorized, Dialect::Gateway] {
        let scene = Scene::new();
        scene.apsis.set_dialect(dialect);
        let server = scene.apsis.serve().await.unwrap();
        let scene = Scene { base: server.url(), ..scene };
        // The layer makes no more than four token requests a minute: here it needs all of them.
        let apsis = scene.apsis.clone();
        scene.watch.at(300, move || {
            apsis.script_token_answers([Answer::too_many_requests().header("retry-after", "1")]);
            apsis.revoke_tokens();
        });
        let apsis = scene.apsis.clone();
        scene.watch.at(600, move || apsis.revoke_tokens());
        let auth = ApsisAuthLayer::builder(scene.apsis.api_key().credentials(), server.url()).build().unwrap();
        let transport = crate::https_client(&server.url()).unwrap();
        let client = Client::new(transport, auth, &scene.limits, scene.watch.clone());
        let sample = fs::read(SAMPLE).unwrap();
        let summary = scene.import_by(client, &sample, pending()).await;
        assert!(summary.is_complete(), "{summary}");
        assert_eq!(summary.counts.applied, 1000);
        assert!(scene.watch.all_done());
        let counters = scene.apsis.counters();
        assert_eq!((counters.tokens_issued, counters.token_requests), (3, 4), "{counters:?}");
        assert!(counters.api_rejected > 0);
        scene.assert_applied(&sample);
        server.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_is_over_its_limit_for_minutes_is_waited_for() {
    for dialect in [Dialect::Unauthorized, Dialect::Gateway] {
        let scene = Scene::new();
        scene.apsis.set_dialect(dialect);
        let apsis = scene.apsis.clone();
        scene.watch.at(300, move || {
            // Others of the account use all there are, for a while.
            apsis.set_token_limit(0);
            apsis.revoke_tokens();
            let apsis = apsis.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(200)).await;
                apsis.set_token_limit(10);
            });
        });
        let sample = fs::read(SAMPLE).unwrap();
        let started = Instant::now();
        let summary = scene.import(sample.clone()).await;
        assert!(summary.is_complete(), "{summary}");
        assert!(started.elapsed() > Duration::from_secs(200));
        scene.assert_applied(&sample);
        // One line for all that wait, each time.
        let messages = scene.watch.messages();
        assert!((1..10).contains(&messages.len()), "{messages:?}");
        assert!(messages[0].starts_with("no token, going on in "), "{messages:?}");
        assert!(messages[0].contains("the account's token requests are used up"), "{messages:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_token_is_waited_for_too() {
    let scene = Scene::new();
    scene.apsis.set_token_limit(0);
    let apsis = scene.apsis.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(200)).await;
        apsis.set_token_limit(10);
    });
    let summary = scene.import(people(100)).await;
    assert!(summary.is_complete(), "{summary}");
    assert_eq!(summary.counts.resent, 0, "without a token nothing was sent: {summary}");
}

#[tokio::test(start_paused = true)]
async fn without_a_token_for_long_the_import_stops_and_loses_nothing() {
    let scene = Scene::new();
    scene.apsis.set_token_limit(0);
    let summary = scene.import(people(1000)).await;
    assert!(matches!(summary.stop, Some(Stop::NoToken(_))), "{summary}");
    assert_eq!((summary.counts.applied, summary.counts.failed, summary.go_on_at), (0, 0, Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_stops_the_import_and_another_goes_on_where_it_stopped() {
    for dialect in [Dialect::Unauthorized, Dialect::Gateway] {
        let scene = Scene::new();
        scene.apsis.set_dialect(dialect);
        let (apsis, first) = (scene.apsis.clone(), scene.apsis.api_key());
        scene.watch.at(400, move || apsis.delete_api_key(first.client_id()));
        let sample = fs::read(SAMPLE).unwrap();
        let summary = scene.import(sample.clone()).await;
        let Some(Stop::NoToken(reason)) = &summary.stop else { panic!("{summary}") };
        assert!(reason.contains("check the client ID and secret"), "{reason}");
        assert_eq!(summary.counts.failed, 0, "{summary}");
        assert_eq!(summary.counts.read, summary.counts.applied + summary.not_sent);
        assert!(summary.counts.applied >= 400 && summary.counts.applied < 500, "{summary}");
        assert!(summary.to_string().contains("--from-line"), "{summary}");

        let second = scene.apsis.add_api_key();
        let auth = ApsisAuthLayer::builder(second.credentials(), BASE).transport(scene.apsis.clone()).build().unwrap();
        let scene = Scene { auth, from_line: summary.go_on_at.unwrap(), ..scene };
        let rest = scene.import(sample.clone()).await;
        assert!(rest.is_complete(), "{rest}");
        assert!(rest.counts.read < 1000);
        scene.assert_applied(&sample);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_without_rights_stops_the_import() {
    let scene = Scene::new();
    let key = scene.apsis.add_api_key_without_rights();
    let auth = ApsisAuthLayer::builder(key.credentials(), BASE).transport(scene.apsis.clone()).build().unwrap();
    let summary = Scene { auth, ..scene }.import(people(1000)).await;
    let Some(Stop::SameFailure { reason, .. }) = &summary.stop else { panic!("{summary}") };
    assert_eq!(reason, "403 Forbidden: this API key has no right to do this");
    assert!(summary.counts.failed < 100, "{summary}");
}

#[tokio::test(start_paused = true)]
async fn routes_that_are_refused_here_and_there_hold_nobody_up() {
    let scene = Scene::new();
    for n in (0..300).step_by(30) {
        scene.apsis.refuse_route(&path_of(&format!("p{n}%40example.com")));
    }
    let started = Instant::now();
    let summary = scene.import(people(300)).await;
    assert_eq!((summary.counts.applied, summary.counts.failed), (290, 10), "{summary}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_told_from_a_refused_route() {
    let scene = Scene::new();
    scene.apsis.set_dialect(Dialect::Gateway);
    scene.apsis.refuse_route(&path_of("p5%40example.com"));
    let apsis = scene.apsis.clone();
    scene.watch.at(200, move || apsis.revoke_tokens());
    let summary = scene.import(people(300)).await;
    assert_eq!((summary.counts.applied, summary.counts.failed), (299, 1), "{summary}");
}

#[tokio::test(start_paused = true)]
async fn a_new_token_may_be_rejected_for_a_moment() {
    let scene = Scene::new();
    scene.apsis.script_api_answers(vec![Answer::status(StatusCode::UNAUTHORIZED); 2]);
    let summary = scene.import(people(1)).await;
    assert!(summary.is_complete(), "{summary}");
    assert_eq!(scene.apsis.counters().api_requests, 3);
}

#[tokio::test(start_paused = true)]
async fn an_api_that_accepts_no_token_stops_the_import() {
    let scene = Scene::new();
    scene.apsis.set_token_lifetime(Duration::from_secs(24 * 60 * 60));
    let apsis = scene.apsis.clone();
    // As good as it looks, the authorizer knows none.
    let transport = scene.transport(move |_| apsis.revoke_tokens());
    let summary = scene.import_over(transport, people(100)).await;
    assert!(matches!(summary.stop, Some(Stop::NoToken(_))), "{summary}");
    assert_eq!((summary.counts.failed, summary.go_on_at), (0, Some(2)), "{summary}");
}

// The end.

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_middle_loses_nothing() {
    let scene = Scene::new();
    scene.apsis.set_api_delay(Duration::from_millis(50));
    let stop = Arc::new(Notify::new());
    let ring = Arc::clone(&stop);
    scene.watch.at(500, move || ring.notify_one());
    let sample = fs::read(SAMPLE).unwrap();
    let summary = scene.import_until(sample.clone(), async { stop.notified().await }).await;
    assert!(matches!(summary.stop, Some(Stop::Asked)), "{summary}");
    // What was under way came to its end.
    assert!((500..=500 + scene.concurrency() as u64).contains(&summary.counts.applied), "{summary}");
    assert_eq!(scene.apsis.counters().api_accepted, summary.counts.applied);
    assert_eq!(summary.counts.read, summary.counts.applied + summary.not_sent);

    let scene = Scene { from_line: summary.go_on_at.unwrap(), ..scene };
    let rest = scene.import(sample.clone()).await;
    assert!(rest.is_complete(), "{rest}");
    assert_eq!(rest.counts.applied + summary.counts.applied, 1000);
    scene.assert_applied(&sample);
}

#[tokio::test(start_paused = true)]
async fn a_stop_when_all_is_done_makes_no_difference() {
    let scene = Scene::new();
    let stop = Arc::new(Notify::new());
    let ring = Arc::clone(&stop);
    scene.watch.at(10, move || ring.notify_one());
    let summary = scene.import_until(people(10), async { stop.notified().await }).await;
    assert!(summary.is_complete(), "{summary}");
}

#[tokio::test(start_paused = true)]
async fn after_a_stop_nobody_waits_for_an_answer_that_does_not_come() {
    let scene = Scene::new();
    scene.apsis.script_api_answers(vec![Answer::hang(); 3]);
    let stop = Arc::new(Notify::new());
    let ring = Arc::clone(&stop);
    scene.watch.at(50, move || ring.notify_one());
    let started = Instant::now();
    let summary = scene.import_until(people(1000), async { stop.notified().await }).await;
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    // Three of the first requests hung; which ones is not said.
    assert!(summary.go_on_at.is_some_and(|line| line < 2 + scene.concurrency() as u64), "{summary}");
    assert!(summary.not_sent >= 3, "{summary}");
    assert_eq!(summary.counts.read, summary.counts.applied + summary.not_sent);
}

#[tokio::test(start_paused = true)]
async fn what_could_be_read_of_a_broken_file_is_applied() {
    let scene = Scene::new();
    let mut file = people(100);
    file.push_str("x@example.com,\"Lund\ny@example.com,Lund\n");
    let summary = scene.import(file).await;
    assert_eq!((summary.counts.applied, summary.go_on_at), (100, Some(102)), "{summary}");
    assert!(matches!(summary.stop, Some(Stop::Unreadable(_))));
    assert!(!summary.is_complete());
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_a_record_before_the_first_line_is_one() {
    let scene = Scene { from_line: 3, ..Scene::new() };
    let summary = scene.import("email,city\na@example.com,Lund\nb@example.com,Lund\nA@example.com,Ystad\n").await;
    assert_eq!((summary.counts.read, summary.counts.applied, summary.counts.failed), (2, 1, 1));
    assert!(scene.apsis.profile(KEYSPACE, "a@example.com").is_none());
}

// The program.

#[test]
fn the_options_are_consistent() {
    Options::command().debug_assert();
    let options = Options::parse_from(["import", "--emulator"]);
    assert_eq!((options.limits.rate.get(), options.limits.concurrency.get()), (100, 32));
    assert_eq!(options.input(), Path::new(SAMPLE));
    assert_eq!(Options::parse_from(["import", "--emulator", "--delimiter", "\\t"]).delimiter, b'\t');
    let error = Options::try_parse_from(["import"]).unwrap_err();
    assert!(error.to_string().contains("--input"), "the sample is for the emulator: {error}");
    for wrong in
        [["--rate", "0"], ["--concurrency", "0"], ["--delimiter", ""], ["--delimiter", "é"], ["--delimiter", "\""]]
    {
        let error = Options::try_parse_from(["import", "--emulator"].into_iter().chain(wrong)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn the_rehearsal_ends_well() {
    let folder = Folder::new();
    let failed = folder.0.join("failed.csv");
    let failed = failed.to_str().unwrap();
    let options = Options::parse_from(["import", "--emulator", "--rate", "10000", "--failed", failed]);
    let complete = timeout(Duration::from_secs(60), crate::import(&options, pending())).await.unwrap();
    assert!(complete.unwrap());
    assert!(folder.names().is_empty());
}

#[tokio::test]
async fn what_cannot_begin_is_an_error_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let (input, taken) = (folder.0.join("input.csv"), folder.0.join("taken.csv"));
    fs::write(&input, "mail,city\na@example.com,Lund\n").unwrap();
    fs::write(&taken, "precious").unwrap();
    let unused = folder.0.join("unused.csv");
    let (input, taken, unused) = (input.to_str().unwrap(), taken.to_str().unwrap(), unused.to_str().unwrap());
    let wrong = [
        (["--input", "missing.csv", "--failed", unused], "missing.csv cannot be opened"),
        (["--input", input, "--failed", unused], "input.csv: line 1: there is no column `email`"),
        (["--from-line", "9999", "--failed", unused], "no record begins on line 9999 or after it"),
        (["--input", SAMPLE, "--failed", taken], "taken.csv cannot be made for the records that fail"),
    ];
    for (arguments, message) in wrong {
        let options = Options::parse_from(["import", "--emulator"].into_iter().chain(arguments));
        let error = crate::import(&options, pending()).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(fs::read_to_string(taken).unwrap(), "precious");
    assert_eq!(folder.names(), ["input.csv", "taken.csv"]);
}

// What the tests are made of.

/// An account, and how it is imported into.
struct Scene {
    apsis: Emulator,
    auth: ApsisAuthLayer,
    base: String,
    section: &'static str,
    limits: Limits,
    from_line: u64,
    give_up_after: u64,
    watch: Arc<Script>,
    folder: Folder,
}

type Transport = BoxCloneService<Request<Full<Bytes>>, Response<EmulatorBody>, EmulatorError>;

impl Scene {
    fn new() -> Self {
        let apsis = Emulator::new();
        apsis.set_api_limit(1_000_000);
        let auth =
            ApsisAuthLayer::builder(apsis.api_key().credentials(), BASE).transport(apsis.clone()).build().unwrap();
        Self {
            apsis,
            auth,
            base: BASE.to_owned(),
            section: SECTION,
            limits: limits(10_000, 32),
            from_line: 0,
            give_up_after: 50,
            watch: Arc::default(),
            folder: Folder::new(),
        }
    }

    fn concurrency(&self) -> usize {
        self.limits.concurrency.get()
    }

    async fn import(&self, file: impl AsRef<[u8]>) -> Summary {
        self.import_until(file, pending()).await
    }

    async fn import_until(&self, file: impl AsRef<[u8]>, stop: impl Future<Output = ()>) -> Summary {
        let client = Client::new(self.apsis.clone(), self.auth.clone(), &self.limits, self.watch.clone());
        self.import_by(client, file.as_ref(), stop).await
    }

    async fn import_over(&self, transport: Transport, file: impl AsRef<[u8]>) -> Summary {
        let client = Client::new(transport, self.auth.clone(), &self.limits, self.watch.clone());
        self.import_by(client, file.as_ref(), pending()).await
    }

    async fn import_by(&self, client: Client, file: &[u8], stop: impl Future<Output = ()>) -> Summary {
        let input = self.folder.0.join("input.csv");
        fs::write(&input, file).unwrap();
        let records = Records::open(io::Cursor::new(file.to_owned()), b',').unwrap();
        let import = Import {
            failed: FailedFile::create_beside(&self.folder.0, &input, records.names(), b',').unwrap(),
            records,
            target: Target::new(&self.base, KEYSPACE, self.section),
            from_line: self.from_line,
            // While the reader waits for room, tokio's clock does not go on by itself.
            read_ahead: 10_000,
            give_up_after: self.give_up_after,
            watch: self.watch.clone(),
        };
        timeout(LIMIT, run(import, client, stop)).await.unwrap()
    }

    /// The emulator, and what is to be done with each request on its way there.
    fn transport(&self, see: impl Fn(&Request<Full<Bytes>>) + Send + Sync + Clone + 'static) -> Transport {
        let apsis = self.apsis.clone();
        BoxCloneService::new(service_fn(move |request| {
            see(&request);
            let mut apsis = apsis.clone();
            async move { Service::call(ServiceExt::<Request<Full<Bytes>>>::ready(&mut apsis).await?, request).await }
        }))
    }

    fn attributes(&self, key: &str) -> Value {
        self.apsis.profile(KEYSPACE, key).unwrap().attributes
    }

    fn assert_applied(&self, file: &[u8]) {
        let rows = rows(file);
        assert_eq!(rows.len(), 1000);
        for row in rows {
            assert_eq!(self.attributes(&row.profile.as_ref().unwrap().key), attributes(&row));
        }
    }
}

fn limits(rate: u32, concurrency: usize) -> Limits {
    Limits { rate: rate.try_into().unwrap(), concurrency: concurrency.try_into().unwrap() }
}

/// Records what is said, and lets something happen when so many records are applied.
#[derive(Default)]
struct Script {
    events: Mutex<Vec<(u64, Event)>>,
    messages: Mutex<Vec<String>>,
}

type Event = Box<dyn FnOnce() + Send>;

impl Script {
    fn at(&self, applied: u64, event: impl FnOnce() + Send + 'static) {
        self.events.lock().unwrap().push((applied, Box::new(event)));
    }

    fn all_done(&self) -> bool {
        self.events.lock().unwrap().is_empty()
    }

    fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap().clone()
    }

    fn has_said(&self, message: &str) -> bool {
        self.messages().iter().any(|said| said == message)
    }
}

impl Watch for Script {
    fn progress(&self, counts: Counts) {
        let mut events = self.events.lock().unwrap();
        if let Some(index) = events.iter().position(|(applied, _)| counts.applied >= *applied) {
            events.remove(index).1();
        }
    }

    fn message(&self, text: &str) {
        self.messages.lock().unwrap().push(text.to_owned());
    }
}

/// A folder of the test's own, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("apsis-auth-import-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Counting<'a, R> {
    inner: R,
    taken: &'a mut u64,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        *self.taken += length as u64;
        Ok(length)
    }
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

/// A file that is never anywhere as a whole: records of a kilobyte each.
struct Generated {
    size: u64,
    taken: Arc<AtomicU64>,
    record: u64,
    rest: io::Cursor<Vec<u8>>,
}

impl Generated {
    fn new(size: u64, taken: Arc<AtomicU64>) -> Self {
        Self { size, taken, record: 0, rest: io::Cursor::new(b"email,note\n".to_vec()) }
    }
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut length = self.rest.read(buffer)?;
        if length == 0 && self.taken.load(Ordering::Relaxed) < self.size {
            self.record += 1;
            let record = format!("p{}@example.com,{:x<1000}\n", self.record, "");
            self.rest = io::Cursor::new(record.into_bytes());
            length = self.rest.read(buffer)?;
        }
        self.taken.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

fn rows(file: &[u8]) -> Vec<Row> {
    let mut records = Records::open(file, b',').unwrap();
    let mut rows = Vec::new();
    while let Some(row) = records.next().unwrap() {
        rows.push(row);
    }
    rows
}

fn attributes(row: &Row) -> Value {
    serde_json::from_slice(&row.profile.as_ref().unwrap().attributes).unwrap()
}

fn people(count: u32) -> String {
    let records = (0..count).map(|n| format!("p{n}@example.com,Lund\n"));
    "email,city\n".chars().chain(records.collect::<String>().chars()).collect()
}

fn path_of(key: &str) -> String {
    format!("/audience/keyspaces/{KEYSPACE}/profiles/{key}/")
}

/// Lines and reasons.
fn failed_rows(summary: &Summary) -> Vec<(String, String)> {
    let mut file = csv::Reader::from_path(summary.failed_file.as_ref().unwrap()).unwrap();
    file.records().map(|record| record.unwrap()).map(|record| (record[0].to_owned(), record[1].to_owned())).collect()
}

fn replace(file: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    [&file[..at], to, &file[at + from.len()..]].concat()
}

fn lossy(file: &[u8]) -> String {
    String::from_utf8_lossy(file).into_owned()
}
