//! Law 31: a secret and a token run down every path, and nothing that is printed, said or thrown has them in it. Then
//! what tracing does say, and that the header is sensitive.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    error::Error,
    ffi::OsStr,
    fmt,
    future::ready,
    panic::{PanicHookInfo, set_hook, take_hook},
    pin::Pin,
    process::Command,
    sync::{Arc, Mutex, Once},
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::{
    AccessToken, ApsisAuthBuilder, ApsisAuthLayer, AuthError, AuthOutcome, BaseUrl, BuildError, ClientCredentials,
    Rejection, default_rejection_rule,
    emulator::{Answer, Dialect, Emulator},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::{Body, Frame};
use http_body_util::Full;
use serde_json::json;
use tokio::time::{advance, sleep};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::DefaultGuard,
};
use tracing_subscriber::fmt::format::FmtSpan;

use crate::{
    support::{BASE, Curious, World, every_path, get, keyspaces, limited, on_a_thread, once, send},
    undecided,
};

/// Part of the secret and of every token here, and of nothing else.
const CANARY: &str = "cAnary";

/// Looks like an OAuth error code, so that nothing but its own check keeps it out of an error.
const SECRET: &str = "5ecret_cAnary-0123.456789";

const OPAQUE: &str = "t0ken/cAnary+0123~456789==";

/// Set in a process that a test starts: what it shall say.
const EXPECTED: &str = "APSIS_AUTH_TEST_EXPECTED";

// What would be printed.

#[tokio::test(start_paused = true)]
async fn the_net_of_these_tests_has_no_hole() {
    limited(async {
        let journal = Journal::listening();
        assert_eq!(journal.leaks(), Vec::<String>::new());

        journal.debug(&SECRET);
        journal.error(&Chain(Box::new(Chain(SECRET.into()))));
        tracing::trace!(field = SECRET);
        tracing::trace_span!("span", field = %OPAQUE).in_scope(|| ());
        tracing::trace!("in the message: {SECRET}");
        _ = tokio::spawn(async { panic!("{SECRET}") }).await;

        // Plain and pretty; three errors, each twice; two events, a span; the panic.
        assert_eq!(journal.leaks().len(), 2 + 6 + 2 + 1 + 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_well_prints_neither_the_secret_nor_the_token() {
    limited(async {
        for token in [OPAQUE.to_owned(), jwt(u32::MAX)] {
            let account = Emulator::new();
            account.script_token_answers(vec![Answer::token(&token); 10]);
            account.script_api_answers(vec![Answer::status(StatusCode::OK); 10]);
            let journal = run(&account).await;
            assert_eq!(journal.leaks(), Vec::<String>::new());
            assert!(journal.says("generation: 1") && journal.says("OutOfScope"), "{journal:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_emulator_prints_no_secret_and_no_token_of_its_own() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let layer = world.layer();
        let token = layer.handle().get().await.unwrap();
        send(&layer.layer(world.apsis.clone()), keyspaces()).await.unwrap();
        world.apsis.script_token_answers([Answer::token(OPAQUE)]);
        let key = world.apsis.api_key();
        journal.debug(&(&world.apsis, &key, Answer::token(OPAQUE).body(OPAQUE).header("x", OPAQUE), &layer));
        let refused = world.apsis.clone().oneshot(keyspaces()).await.unwrap();
        journal.debug(&refused);

        assert!(journal.says(key.client_id()));
        assert!(!journal.says(key.client_secret()));
        assert!(!journal.says(token.expose_secret()));
        assert_eq!(journal.leaks(), Vec::<String>::new());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_sends_the_secret_back_does_not_show_it() {
    let refusal = |status, answer: serde_json::Value| Answer::status(status).body(answer.to_string());
    let challenge = format!("Bearer error=\"{SECRET}\"");
    let uri = format!("https://id.example/why?client_secret={SECRET}");
    every([
        ("code: None", Answer::status(StatusCode::UNAUTHORIZED).body(format!("no key has the secret {SECRET}"))),
        ("code: None", refusal(StatusCode::UNAUTHORIZED, json!({"error": SECRET}))),
        ("code: None", refusal(StatusCode::BAD_REQUEST, json!({"error": format!("unknown.{SECRET}")}))),
        ("code: None", refusal(StatusCode::FORBIDDEN, json!({"error": format!("unknown secret {SECRET}")}))),
        ("code: None", refusal(StatusCode::BAD_REQUEST, json!(SECRET))),
        (
            "code: Some(\"invalid_client\")",
            refusal(
                StatusCode::UNAUTHORIZED,
                json!({"error": "invalid_client", "error_description": SECRET, "error_uri": uri, "access_token": OPAQUE}),
            ),
        ),
        (
            "code: None",
            Answer::status(StatusCode::UNAUTHORIZED)
                .header("www-authenticate", challenge.as_str())
                .header("location", uri.as_str())
                .header("retry-after", SECRET)
                .header(SECRET, SECRET),
        ),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_with_spaces_around_it_is_not_shown_without_them_either() {
    limited(async {
        let account = Emulator::new();
        account
            .script_token_answers([Answer::status(StatusCode::UNAUTHORIZED)
                .body(json!({"error": format!("unknown.{SECRET}")}).to_string())]);
        let credentials = ClientCredentials::new("id", format!(" {SECRET}\n")).unwrap();
        let layer = ApsisAuthLayer::builder(credentials, BASE).transport(account).build().unwrap();
        let error = layer.handle().get().await.unwrap_err();
        assert!(matches!(error, AuthError::Refused { code: None, .. }), "{error:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_the_endpoints_text_only_a_short_error_code_is_shown() {
    limited(async {
        let longest = "x".repeat(64);
        let shown = ["invalid_client", "a.B-9", &longest];
        let hidden = ["", "with space", "line\nbreak", "quote\"", "ångström", "\u{1b}[31m", &"x".repeat(65)];
        for (code, expected) in shown.map(|code| (code, Some(code))).into_iter().chain(hidden.map(|code| (code, None)))
        {
            let account = Emulator::new();
            let answer = json!({"error": code, "error_description": "words"});
            account.script_token_answers([Answer::status(StatusCode::BAD_REQUEST).body(answer.to_string())]);
            let layer = canary(&account).build().unwrap();
            let error = layer.handle().get().await.unwrap_err();
            let AuthError::Refused { code, .. } = &error else { panic!("{error:?}") };
            assert_eq!(code.as_deref(), expected);
            assert_eq!(error.to_string().contains(&format!("({})", expected.unwrap_or_default())), expected.is_some());
            assert!(!error.to_string().contains("words"));
        }
        for text in [r#"{"error":{"code":1}}"#, r#"{"error":7}"#, "<h1>Forbidden</h1>", ""] {
            let account = Emulator::new();
            account.script_token_answers([Answer::status(StatusCode::BAD_REQUEST).body(text)]);
            let error = canary(&account).build().unwrap().handle().get().await.unwrap_err();
            assert!(matches!(error, AuthError::Refused { code: None, .. }), "{text}: {error:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_in_trouble_prints_neither() {
    let trouble = |answer: Answer| answer.header("retry-after", OPAQUE).header(SECRET, OPAQUE).body(both());
    every([
        ("RateLimited", trouble(Answer::too_many_requests())),
        ("Status(500)", trouble(Answer::status(StatusCode::INTERNAL_SERVER_ERROR))),
        ("Status(503)", trouble(Answer::status(StatusCode::SERVICE_UNAVAILABLE))),
        ("Status(408)", trouble(Answer::status(StatusCode::REQUEST_TIMEOUT))),
        ("307", trouble(Answer::status(StatusCode::TEMPORARY_REDIRECT)).header("location", both())),
        ("Transport(", Answer::close()),
        ("TooLate(", Answer::hang()),
        ("TooLate(", Answer::hang_in_body()),
        ("Body(", Answer::truncated().body(both())),
        ("TooLarge", Answer::status(StatusCode::OK).body(both().repeat(2_000))),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_token_is_not_quoted() {
    let ok = |body: String| Answer::status(StatusCode::OK).body(body);
    let token = |token: &str| ok(json!({"access_token": token, "token_type": "Bearer"}).to_string());
    every([
        ("NotAToken", Answer::html().body(format!("<p>{SECRET} {OPAQUE}</p>"))),
        ("NotAToken", ok(format!("{{\"access_token\":\"{OPAQUE}\",\"tok"))),
        ("NotAToken", ok(format!("{{\"access_token\":\"{OPAQUE}"))),
        // Each of these makes the parser quote what it found.
        ("NotAToken", ok(json!(OPAQUE).to_string())),
        ("NotAToken", ok(json!({"access_token": {OPAQUE: SECRET}}).to_string())),
        ("NotAToken", ok(format!("{{\"access_token\":\"{OPAQUE}\",\"access_token\":\"{OPAQUE}\"}}"))),
        ("NotBearer", ok(json!({"access_token": OPAQUE, "token_type": "mac"}).to_string())),
        ("NotBearer", ok(json!({"access_token": OPAQUE, "token_type": OPAQUE}).to_string())),
        ("NotBearer", ok(json!({"access_token": OPAQUE, "token_type": {SECRET: OPAQUE}}).to_string())),
        ("NotAHeader", token(&format!("{OPAQUE}\r\nx: y"))),
        ("NotAHeader", token(&format!("{OPAQUE}\0"))),
        ("NotAHeader", token(&format!("{OPAQUE} {OPAQUE}"))),
        ("NotAHeader", token(&format!("{OPAQUE}é"))),
        ("Expired", token(&jwt(1))),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_written_with_escapes_is_read_as_it_was_meant() {
    limited(async {
        let answers = [
            (r#""plain""#, Some("plain")),
            (r#""a\/b\u002bc\u003D\u003d""#, Some("a/b+c==")),
            (r#""\"\\\u0022\u005c\\u0041\/""#, Some(r#""\"\\u0041/"#)),
            (r#""a\nb""#, None),
            (r#""a\u000ab""#, None),
            (r#""a\u00e9b""#, None),
            (r#""a\u4e2db""#, None),
            (r#""a\ud83d\ude00b""#, None),
            (r#""a\""#, None),
            (r#""a\u00zz""#, None),
            ("null", None),
            ("7", None),
        ];
        for (written, meant) in answers {
            let account = Emulator::new();
            let answer = Answer::status(StatusCode::OK).body(format!("{{\"access_token\":{written}}}"));
            account.script_token_answers(vec![answer; 10]);
            let token = canary(&account).build().unwrap().handle().get().await.ok();
            assert_eq!(token.as_ref().map(AccessToken::expose_secret), meant, "{written}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_fails_is_the_cause_and_prints_neither() {
    limited(async {
        let broken = service_fn(|_: Request<Full<Bytes>>| async {
            Err::<Response<Full<Bytes>>, BoxError>(Box::new(Chain("the wire is cut".into())))
        });
        let account = Emulator::new();
        let journal = run_with(&account, canary(&account).transport(broken)).await;
        assert_eq!(journal.leaks(), Vec::<String>::new());
        assert!(journal.says("the wire is cut"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_a_transports_error_the_text_is_shown_and_nothing_of_its_debug() {
    limited(async {
        let account = Emulator::new();
        for builder in failing_with("the wire is cut") {
            let journal = run_with(&account, builder).await;
            assert_eq!(journal.leaks(), Vec::<String>::new());
            assert!(journal.says("the wire is cut"), "{journal:?}");
            assert!(!journal.says("Overt {"), "{journal:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_transports_error_that_quotes_the_secret_is_not_shown_at_all() {
    limited(async {
        let account = Emulator::new();
        for builder in failing_with(&format!("cannot send client_secret={SECRET}&x=y")) {
            let journal = run_with(&account, builder).await;
            assert_eq!(journal.leaks(), Vec::<String>::new());
            assert!(journal.says("the error quotes the request"), "{journal:?}");
            assert!(!journal.says("cannot send") && !journal.says("x=y"), "{journal:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_lost_its_spaces_in_a_transports_error_is_not_shown_either() {
    limited(async {
        let credentials = ClientCredentials::new("id", format!(" {SECRET}\n")).unwrap();
        let broken = service_fn(|_: Request<Full<Bytes>>| {
            ready(Err::<Response<Full<Bytes>>, BoxError>(format!("cannot send {SECRET}").into()))
        });
        let layer = ApsisAuthLayer::builder(credentials, BASE).transport(broken).build().unwrap();
        let journal = Journal::listening();
        journal.error(&layer.handle().get().await.unwrap_err());
        assert_eq!(journal.leaks(), Vec::<String>::new());
        assert!(journal.says("the error quotes the request"), "{journal:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_panics_prints_neither() {
    limited(async {
        let broken = service_fn(|request: Request<Full<Bytes>>| async move {
            // It holds the request while it panics, as one that unwinds in the middle does.
            assert!(request.uri().path().is_empty(), "the transport broke");
            Ok::<Response<Full<Bytes>>, BoxError>(Response::default())
        });
        let account = Emulator::new();
        let journal = run_with(&account, canary(&account).transport(broken)).await;
        assert_eq!(journal.leaks(), Vec::<String>::new());
        assert!(journal.says("the transport broke") && journal.says("Interrupted"), "{journal:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rejection_and_what_comes_of_it_print_neither() {
    let bad = json!({"error": SECRET}).to_string();
    let rejected = || Answer::status(StatusCode::UNAUTHORIZED).body(both()).header("www-authenticate", both());
    let accepted = || Answer::status(StatusCode::OK);
    let cases = [
        ("Replayed", vec![Answer::token(OPAQUE), Answer::token(&jwt(u32::MAX))], vec![rejected(), accepted()]),
        ("CoolingDown", vec![Answer::token(OPAQUE), Answer::token(&jwt(u32::MAX))], vec![rejected(); 3]),
        ("SameToken", vec![Answer::token(OPAQUE); 10], vec![rejected(); 10]),
        (
            "NotRenewed(Refused",
            vec![Answer::token(OPAQUE), Answer::status(StatusCode::UNAUTHORIZED).body(bad)],
            vec![rejected(); 10],
        ),
    ];
    limited(async {
        for (expected, tokens, answers) in cases {
            let account = Emulator::new();
            account.script_token_answers(tokens);
            account.script_api_answers(answers);
            let journal = run(&account).await;
            assert_eq!(journal.leaks(), Vec::<String>::new(), "{expected}");
            assert!(journal.says(expected), "{expected}: {journal:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_built_prints_no_secret() {
    let journal = Journal::listening();
    let bases = [
        format!("https://id:{SECRET}@api.apsis.one"),
        format!("https://id:{SECRET}@cAnary@api.apsis.one"),
        format!("https://id:{SECRET}@api.apsis.one/#"),
        format!("https://id:{SECRET}@api.apsis.one?"),
        format!("http://{SECRET}@api.apsis.one"),
        format!("//{SECRET}@ space"),
        format!("https://api.apsis.one?client_secret={SECRET}"),
        format!("https://api.apsis.one?client_secret=x@{SECRET}"),
        format!("https://api.apsis.one#x@{SECRET}"),
        format!("https://api.apsis.one#{SECRET}"),
        format!("https://api.apsis.one?client_secret={SECRET}#fragment"),
        format!("https://{SECRET}@api.apsis.one:99999?x={SECRET}@x"),
    ];
    for base in bases {
        journal.debug(&BaseUrl::from(base.as_str()));
        let builder = ApsisAuthLayer::builder(credentials(), base.as_str());
        journal.debug(&builder);
        let error = builder.build().unwrap_err();
        assert!(error.to_string().contains("cannot be used"), "{error}");
        journal.error(&error);
    }
    let account = Emulator::new();
    for builder in [
        canary(&account).token_requests_per_minute(0),
        canary(&account).max_wait(Duration::ZERO),
        canary(&account).flight_timeout(Duration::MAX),
    ] {
        journal.error(&builder.build().unwrap_err());
    }
    journal.error(&ClientCredentials::new(" ", SECRET).unwrap_err());
    assert_eq!(journal.leaks(), Vec::<String>::new());
}

#[cfg(unix)]
#[test]
fn what_is_wrong_with_the_environment_is_said_without_the_secret() {
    use std::os::unix::ffi::OsStrExt;

    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/apsis-client-secret-in-latin-1");
    let latin_1 = [SECRET.as_bytes(), b"\xe9"].concat();
    std::fs::write(file, &latin_1).unwrap();
    let (id, secret) = (("APSIS_CLIENT_ID", OsStr::new("id")), ("APSIS_CLIENT_SECRET", OsStr::new(SECRET)));
    let file = ("APSIS_CLIENT_SECRET_FILE", OsStr::new(file));
    for (expected, variables) in [
        ("MissingVariable", vec![secret]),
        ("ValueAndFile", vec![id, secret, file]),
        ("NotUnicode", vec![id, ("APSIS_CLIENT_SECRET", OsStr::from_bytes(&latin_1))]),
        ("UnreadableFile", vec![id, file]),
        ("EmptyClientId", vec![("APSIS_CLIENT_ID", OsStr::new(" ")), secret]),
    ] {
        // A process of its own: to change the environment of this one is unsound while other tests read theirs.
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "secrets::in_an_environment_that_is_wrong"])
            .env_clear()
            .envs(variables)
            .env(EXPECTED, expected)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{expected}: {said}");
    }
}

/// Run by the test above, in an environment that is wrong. Elsewhere it is of no use.
#[test]
fn in_an_environment_that_is_wrong() {
    let Ok(expected) = std::env::var(EXPECTED) else { return };
    let journal = Journal::listening();
    journal.error(&ClientCredentials::from_env().unwrap_err());
    assert_eq!(journal.leaks(), Vec::<String>::new());
    assert!(journal.says(&expected), "{journal:?}");
}

#[test]
fn a_base_url_that_cannot_be_used_is_named() {
    let error = ApsisAuthLayer::builder(credentials(), "https://id:pw@api.apsis.one/path?q#f").build().unwrap_err();
    let BuildError::BaseUrl { url, .. } = error else { panic!("{error:?}") };
    assert_eq!(url, "https://…@api.apsis.one/path…");
    let base = BaseUrl::from("https://id:pw@api.apsis.one/path?q#f");
    assert_eq!(format!("{base:?}"), r#"BaseUrl("https://…@api.apsis.one/path…")"#);
}

// The header.

#[tokio::test(start_paused = true)]
async fn the_header_is_sensitive_in_the_first_request_and_in_the_replay() {
    limited(async {
        let account = Emulator::new();
        account.script_token_answers([Answer::token(OPAQUE), Answer::token(&jwt(u32::MAX))]);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let api = {
            let seen = Arc::clone(&seen);
            service_fn(move |request: Request<Full<Bytes>>| {
                let value = &request.headers()[AUTHORIZATION];
                let token = value.to_str().unwrap().to_owned();
                seen.lock().unwrap().push((token, value.is_sensitive(), format!("{request:?} {request:#?}")));
                let status = [StatusCode::OK, StatusCode::UNAUTHORIZED][seen.lock().unwrap().len() % 2];
                async move { Ok::<_, BoxError>(Response::builder().status(status).body(Full::<Bytes>::default()).unwrap()) }
            })
        };
        let service = canary(&account).build().unwrap().layer(api);
        let mut request = keyspaces();
        // One of the caller's own is replaced, and its being plain is not inherited.
        request.headers_mut().insert(AUTHORIZATION, "Basic cAnary".parse().unwrap());
        send(&service, request).await.unwrap();

        let seen = seen.lock().unwrap();
        let tokens: Vec<_> = seen.iter().map(|(token, ..)| token.as_str()).collect();
        assert_eq!(tokens, [format!("Bearer {OPAQUE}"), format!("Bearer {}", jwt(u32::MAX))]);
        for (_, sensitive, printed) in &*seen {
            assert!(sensitive);
            assert!(printed.contains("Sensitive") && !printed.contains(CANARY), "{printed}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_printed_says_what_it_is() {
    limited(async {
        let world = World::new();
        let (builder, layer) = (world.builder(), world.layer());
        let token = layer.handle().get().await.unwrap();
        world.apsis.script_token_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        let error = layer.handle().renew().await.unwrap_err();
        let id = format!("ClientCredentials {{ id: {:?}, .. }}", world.apsis.api_key().client_id());
        for (printed, parts) in [
            (format!("{builder:?}"), &["ApsisAuthBuilder {", &id, "https://api.apsis.one", "Rule", "Clock {"][..]),
            (format!("{layer:?}"), &["ApsisAuthLayer {", "Shared {", "TokenCache {", "Token { generation: 1, .. }"]),
            (format!("{:?}", layer.layer(())), &["ApsisAuth {", "Token { generation: 1, .. }"]),
            (format!("{:?}", layer.handle()), &["TokenHandle {", "Token { generation: 1, .. }"]),
            (format!("{token:?}"), &["AccessToken { generation: 1, .. }"]),
            (format!("{error:?}"), &["Refused {", "retry_at: in 30s"]),
        ] {
            for part in parts {
                assert!(printed.contains(part), "{part}: {printed}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_header_of_a_handles_token_is_sensitive() {
    limited(async {
        let account = Emulator::new();
        account.script_token_answers([Answer::token(OPAQUE)]);
        let token = canary(&account).build().unwrap().handle().get().await.unwrap();
        assert_eq!(token.expose_secret(), OPAQUE);
        assert_eq!(token.header_value(), format!("Bearer {OPAQUE}"));
        assert!(token.header_value().is_sensitive());
        assert!(!format!("{:?}", token.header_value()).contains(CANARY));
    })
    .await;
}

// What tracing says.

#[tokio::test(start_paused = true)]
async fn each_flight_has_a_span_that_says_why_it_was_started() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let layer = world.layer();
        let client = layer.layer(world.apsis.clone());
        assert_eq!(journal.reasons(), Vec::<String>::new());

        send(&client, keyspaces()).await.unwrap();
        assert_eq!(journal.reasons(), ["cold"]);

        advance(Duration::from_secs(20 * 3600)).await;
        send(&client, keyspaces()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(journal.reasons(), ["cold", "due"]);

        world.apsis.revoke_tokens();
        send(&client, keyspaces()).await.unwrap();
        assert_eq!(journal.reasons(), ["cold", "due", "rejected"]);

        layer.handle().renew().await.unwrap();
        assert_eq!(journal.reasons(), ["cold", "due", "rejected", "forced"]);
        assert_eq!(world.token_requests(), 4);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_span_of_a_flight_is_under_no_requests_span() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let request = tracing::info_span!("request");
        let client = world.client();
        let _entered = request.enter();
        send(&client, keyspaces()).await.unwrap();
        assert_eq!(inside(journal.said(|said| said.name == "token_flight")), [None]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_new_token_is_one_event_with_its_generation_and_lifetime() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let handle = world.layer().handle();
        for generation in ["1", "2"] {
            handle.renew().await.unwrap();
            let said = journal.events(Level::INFO).pop().unwrap();
            assert_eq!(said.field("message"), "new access token");
            assert_eq!((said.field("generation"), said.field("lifetime")), (generation, "86400"));
        }
        assert_eq!(journal.events(Level::INFO).len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn each_failed_attempt_is_an_event_and_the_grounding_one_warning() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        world.apsis.script_token_answers(vec![Answer::status(StatusCode::BAD_GATEWAY); 4]);
        let client = world.client();
        send(&client, keyspaces()).await.unwrap_err();

        assert_eq!(world.token_requests(), 4);
        let attempts = journal.said(|said| said.field("message") == "token request failed");
        let numbers: Vec<_> = attempts.iter().map(|said| said.field("attempt")).collect();
        assert_eq!(numbers, ["1", "2", "3", "4"]);
        for said in attempts {
            assert_eq!(said.field("failure"), "the token endpoint answered 502 Bad Gateway");
        }
        let warnings = journal.events(Level::WARN);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(warnings[0].field("message"), "grounded");
        let error =
            "no token could be had from https://api.apsis.one/oauth/token: the token endpoint answered 502 Bad Gateway";
        assert_eq!(warnings[0].field("error"), error);
        assert!(warnings[0].field("seconds").parse::<f64>().unwrap() > 1.0);

        // Those who come while it lasts are told, and nobody else.
        for _ in 0..100 {
            send(&client, keyspaces()).await.unwrap_err();
        }
        assert_eq!(journal.events(Level::WARN).len(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_rejection_and_a_replay_are_events() {
    limited(async {
        for (dialect, kind) in
            [(Dialect::Unauthorized, Rejection::Unauthorized), (Dialect::Gateway, Rejection::Forbidden)]
        {
            let journal = Journal::listening();
            let world = World::new();
            world.apsis.set_dialect(dialect);
            let client = world.client();
            send(&client, keyspaces()).await.unwrap();
            world.apsis.revoke_tokens();
            let answer = send(&client, keyspaces()).await.unwrap();
            assert!(matches!(answer.extensions().get(), Some(AuthOutcome::Replayed)));

            let debug = journal.events(Level::DEBUG);
            let said: Vec<_> = debug.iter().map(|said| (said.field("message"), said.field("generation"))).collect();
            assert_eq!(said, [("token rejected", "1"), ("replay", "2"), ("replay accepted", "2")]);
            assert_eq!(debug[0].field("kind"), format!("{kind:?}"));
            assert_eq!(journal.events(Level::WARN).len(), 0);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_did_not_help_is_one_warning() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        world.apsis.refuse_route("/audience/sections");
        let client = world.client();
        for _ in 0..50 {
            send(&client, get("/audience/sections")).await.unwrap();
        }
        let warnings = journal.events(Level::WARN);
        let said: Vec<_> = warnings.iter().map(|said| (said.field("message"), said.field("generation"))).collect();
        assert_eq!(said, [("the renewed token was rejected too", "2")]);
    })
    .await;
}

/// Else a mistake in a URL looks like a token that is rejected, and nothing says why.
#[tokio::test(start_paused = true)]
async fn the_first_request_out_of_scope_is_a_warning_and_the_others_are_not_nor_is_a_tunnel() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let client = world.client();
        let tunnel = Request::connect("api.apsis.one:443");
        let elsewhere = || Request::get("https://api-apac.apsis.one/audience/keyspaces");
        let by_host = Request::get("/audience/keyspaces").header("host", "localhost");
        let by_user = Request::get("/audience/keyspaces").header("host", "me:my-password@elsewhere.example");
        for request in [tunnel, elsewhere(), elsewhere(), by_host, by_user] {
            send(&client, request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        }
        let said = journal.said(|said| said.field("message") == "out of scope: sent without a token");
        let told: Vec<_> = said.iter().map(|said| (said.level, said.field("method"), said.field("host"))).collect();
        let expected = [
            (Level::DEBUG, "CONNECT", "\"api.apsis.one\""),
            (Level::WARN, "GET", "\"api-apac.apsis.one\""),
            (Level::DEBUG, "GET", "\"api-apac.apsis.one\""),
            (Level::DEBUG, "GET", "\"localhost\""),
            // Not what may be a password.
            (Level::DEBUG, "GET", "\"elsewhere.example\""),
        ];
        assert_eq!(told, expected);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_nobody_waits_for_and_that_is_not_started_is_an_event() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let layer = world.layer();
        let client = layer.layer(world.apsis.clone());
        let no_renewal = || journal.said(|said| said.field("message") == "no renewal");
        let handle = layer.handle();
        handle.warm_up().await.unwrap();
        world.apsis.revoke_tokens();

        world.apsis.script_token_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        let error = handle.renew().await.unwrap_err();
        send(&client, once()).await.unwrap();
        let [said] = <[_; 1]>::try_from(no_renewal()).unwrap();
        assert_eq!((said.level, said.field("generation")), (Level::DEBUG, "1"));
        assert_eq!(said.field("error"), error.to_string());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_started_is_not_said_to_be_none() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let client = world.client();
        send(&client, keyspaces()).await.unwrap();
        world.apsis.revoke_tokens();
        // The first starts it, and the second finds it under way.
        for _ in 0..2 {
            send(&client, once()).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(send(&client, once()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(journal.said(|said| said.field("message") == "no renewal").len(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_healthy_day_is_one_event_per_new_token() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        let client = world.client();
        for _ in 0..24 * 60 {
            assert_eq!(send(&client, keyspaces()).await.unwrap().status(), StatusCode::OK);
            sleep(Duration::from_secs(60)).await;
        }
        let loud = journal.said(|said| said.is_event && said.level <= Level::INFO);
        let messages: Vec<_> = loud.iter().map(|said| said.field("message")).collect();
        assert_eq!(messages, ["new access token", "new access token"]);
        assert_eq!(world.apsis.counters().tokens_issued, 2);
        // Nor does a request of that day say anything at all.
        assert_eq!(journal.said(|said| said.is_event).len(), 2);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_flight_says_is_said_in_its_span() {
    limited(async {
        let journal = Journal::listening();
        let world = World::new();
        world.apsis.script_token_answers(vec![Answer::status(StatusCode::BAD_GATEWAY); 3]);
        send(&world.client(), keyspaces()).await.unwrap();
        assert_eq!(inside(journal.said(|said| said.is_event)), [Some("token_flight"); 4]);

        world.apsis.script_token_answers([Answer::status(StatusCode::UNAUTHORIZED)]);
        world.layer().handle().get().await.unwrap_err();
        assert_eq!(inside(journal.events(Level::WARN)), [Some("token_flight")]);
    })
    .await;
}

// What is foreign may come back: nothing of it is called under the lock.

#[test]
fn the_callers_own_functions_may_look_at_the_cache() {
    on_a_thread(|| async {
        let (wall, random, rule) = (Curious::default(), Curious::default(), Curious::default());
        let world = World::new();
        let (clock, curious) = (world.wall.clone(), [wall.clone(), random.clone(), rule.clone()]);
        let builder = world
            .builder()
            .wall_clock(move || {
                wall.look();
                clock.now()
            })
            .random(move || {
                random.look();
                0.5
            })
            .rejection_rule(move |status, headers| {
                rule.look();
                default_rejection_rule(status, headers)
            });
        every_path(&world, builder, &curious).await;
        let looks = curious.each_ref().map(Curious::looks);
        assert!(looks[0] > 20 && looks[1] > 8 && looks[2] > 5, "{looks:?}");
    });
}

#[test]
fn a_subscriber_of_traces_may_look_at_the_cache() {
    on_a_thread(|| async {
        let journal = Journal::listening();
        let curious = Curious::default();
        let world = World::new();
        let meddler = {
            let curious = curious.clone();
            tracing_subscriber::fmt()
                .with_max_level(Level::TRACE)
                .with_span_events(FmtSpan::FULL)
                .with_writer(move || {
                    curious.look();
                    std::io::sink()
                })
                .finish()
        };
        // The same paths twice: what is said on them is known from those on which nobody meddles.
        every_path(&world, world.builder(), &[]).await;
        let said = journal.said(|said| said.is_event);
        let messages: BTreeSet<_> = said.iter().map(|said| said.field("message").to_owned()).collect();
        assert_eq!(messages.len(), 10, "all that is ever said is said here: {messages:?}");

        let world = World::new();
        let meddling = tracing::subscriber::set_default(meddler);
        every_path(&world, world.builder(), std::slice::from_ref(&curious)).await;
        drop(meddling);
        assert!(curious.looks() >= said.len(), "{} looks", curious.looks());
    });
}

// The canaries and their way through the layer.

fn credentials() -> ClientCredentials {
    ClientCredentials::new("id", SECRET).unwrap()
}

fn canary(account: &Emulator) -> ApsisAuthBuilder {
    ApsisAuthLayer::builder(credentials(), BASE).transport(account.clone()).random(|| 0.5)
}

fn inside(said: Vec<Said>) -> Vec<Option<&'static str>> {
    said.into_iter().map(|said| said.inside).collect()
}

fn jwt(exp: u32) -> String {
    let claims = BASE64_URL_SAFE_NO_PAD.encode(json!({"exp": exp}).to_string());
    format!("t0ken-{CANARY}.{claims}.{CANARY}-signature")
}

fn both() -> String {
    format!("{SECRET} {OPAQUE}")
}

/// Runs each answer of the token endpoint in an account of its own. What is expected is in what an error's `Debug`
/// says, which proves that the path was taken.
async fn every<const N: usize>(cases: [(&str, Answer); N]) {
    limited(async {
        for (number, (expected, answer)) in cases.into_iter().enumerate() {
            let account = Emulator::new();
            account.script_token_answers(vec![answer; 40]);
            let journal = run(&account).await;
            assert_eq!(journal.leaks(), Vec::<String>::new(), "case {number}");
            assert!(journal.says(expected), "case {number}, {expected}: {journal:?}");
        }
    })
    .await;
}

async fn run(account: &Emulator) -> Journal {
    run_with(account, canary(account)).await
}

/// A process's life with this account, and everything that can be printed of it.
async fn run_with(account: &Emulator, builder: ApsisAuthBuilder) -> Journal {
    let journal = Journal::listening();
    journal.debug(&(credentials(), account.api_key(), account));
    journal.debug(&builder);
    let layer = builder.build().unwrap();
    let (mut service, handle) = (layer.layer(account.clone()), layer.handle());
    let elsewhere = Request::get("https://elsewhere.example/").body(Full::default()).unwrap();
    for request in [keyspaces(), keyspaces(), elsewhere, keyspaces()] {
        let answer = service.call(request);
        journal.debug(&answer);
        match answer.await {
            Ok(answer) => journal.debug(&answer.extensions().get::<AuthOutcome>()),
            Err(error) => journal.error(&*error),
        }
        journal.debug(&(&layer, &service, &handle, handle.snapshot()));
        journal.line(serde_json::to_string(&handle.snapshot()).unwrap());
        sleep(Duration::from_secs(5)).await;
    }
    for got in [handle.get().await, handle.renew().await] {
        match got {
            Ok(token) => journal.debug(&token),
            Err(error) => journal.error(&error),
        }
    }
    journal
}

/// An error with a cause.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Chain(#[source] BoxError);

/// An error that tells in its `Debug` what a transport knows.
#[derive(Clone, thiserror::Error)]
#[error("{0}")]
struct Overt(String);

impl fmt::Debug for Overt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Overt {{ text: {:?}, request: {SECRET} {OPAQUE} }}", self.0)
    }
}

/// Two builders whose transports fail with this error: in place of an answer, and in the middle of its body.
fn failing_with(text: &str) -> [ApsisAuthBuilder; 2] {
    let error = Overt(text.to_owned());
    let at_once = {
        let error = error.clone();
        service_fn(move |_: Request<Full<Bytes>>| ready(Err::<Response<Full<Bytes>>, _>(error.clone())))
    };
    let in_the_body =
        service_fn(move |_: Request<Full<Bytes>>| ready(Ok::<_, BoxError>(Response::new(Broken(error.clone())))));
    let builder = || ApsisAuthLayer::builder(credentials(), BASE).random(|| 0.5);
    [builder().transport(at_once), builder().transport(in_the_body)]
}

struct Broken(Overt);

impl Body for Broken {
    type Data = Bytes;
    type Error = Overt;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Overt>>> {
        Poll::Ready(Some(Err(self.0.clone())))
    }
}

// The journal.

/// What was printed, said in tracing and thrown on this thread, where flights run too.
pub(crate) struct Journal {
    pages: Arc<Mutex<Pages>>,
    _listening: DefaultGuard,
}

#[derive(Debug, Default)]
struct Pages {
    lines: Vec<String>,
    said: Vec<Said>,
}

/// A span or an event of tracing.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    is_event: bool,
    level: Level,
    name: &'static str,
    /// The span around it.
    inside: Option<&'static str>,
    fields: BTreeMap<&'static str, String>,
}

thread_local! {
    static PANICS: RefCell<Option<Arc<Mutex<Pages>>>> = const { RefCell::new(None) };
}

impl Journal {
    pub(crate) fn listening() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = take_hook();
            set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
                PANICS.with_borrow(|pages| {
                    if let Some(pages) = pages {
                        pages.lock().unwrap().lines.push(format!("panic: {panic}"));
                    }
                });
                before(panic);
            }));
        });
        undecided::install();
        let pages = Arc::<Mutex<Pages>>::default();
        PANICS.set(Some(Arc::clone(&pages)));
        let listening = tracing::subscriber::set_default(Ear { pages: Arc::clone(&pages), inside: Mutex::default() });
        Self { pages, _listening: listening }
    }

    fn line(&self, line: String) {
        self.pages.lock().unwrap().lines.push(line);
    }

    fn debug(&self, thing: &impl fmt::Debug) {
        self.line(format!("{thing:?}"));
        self.line(format!("{thing:#?}"));
    }

    fn error(&self, error: &(dyn Error + 'static)) {
        let mut next = Some(error);
        while let Some(error) = next {
            self.line(format!("{error:?} {error:#?}"));
            self.line(error.to_string());
            next = error.source();
        }
    }

    fn all(&self) -> Vec<String> {
        let pages = self.pages.lock().unwrap();
        pages.lines.iter().cloned().chain(pages.said.iter().map(|said| format!("{said:?}"))).collect()
    }

    fn leaks(&self) -> Vec<String> {
        self.all().into_iter().filter(|line| line.contains(CANARY)).collect()
    }

    fn says(&self, text: &str) -> bool {
        self.all().iter().any(|line| line.contains(text))
    }

    fn said(&self, which: impl Fn(&Said) -> bool) -> Vec<Said> {
        self.pages.lock().unwrap().said.iter().filter(|said| which(said)).cloned().collect()
    }

    pub(crate) fn events(&self, level: Level) -> Vec<Said> {
        self.said(|said| said.is_event && said.level == level)
    }

    /// How many events there were with this message.
    #[cfg(feature = "store")]
    pub(crate) fn times(&self, level: Level, message: &str) -> usize {
        self.events(level).iter().filter(|said| said.field("message") == message).count()
    }

    /// Why the flights were started, in their order.
    fn reasons(&self) -> Vec<String> {
        let spans = self.said(|said| said.name == "token_flight" && !said.is_event);
        spans.iter().map(|span| span.field("reason").to_owned()).collect()
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

impl Said {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

/// Hears every span and event of every target, at every level.
struct Ear {
    pages: Arc<Mutex<Pages>>,
    /// The names of the spans that are entered.
    inside: Mutex<Vec<&'static str>>,
}

impl Ear {
    fn hear(&self, is_event: bool, is_root: bool, metadata: &Metadata<'static>, record: impl FnOnce(&mut Said)) {
        let inside = self.inside.lock().unwrap().last().copied().filter(|_| !is_root);
        let (level, name, fields) = (*metadata.level(), metadata.name(), BTreeMap::new());
        let mut said = Said { is_event, level, name, inside, fields };
        record(&mut said);
        self.pages.lock().unwrap().said.push(said);
    }

    fn index(span: &span::Id) -> usize {
        usize::try_from(span.into_u64()).unwrap() - 1
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

impl Subscriber for Ear {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        self.hear(false, span.is_root(), span.metadata(), |said| span.record(said));
        span::Id::from_u64(self.pages.lock().unwrap().said.len() as u64)
    }

    fn record(&self, span: &span::Id, values: &span::Record<'_>) {
        values.record(&mut self.pages.lock().unwrap().said[Self::index(span)]);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        self.hear(true, event.is_root(), event.metadata(), |said| event.record(said));
    }

    fn enter(&self, span: &span::Id) {
        let name = self.pages.lock().unwrap().said[Self::index(span)].name;
        self.inside.lock().unwrap().push(name);
    }

    fn exit(&self, _: &span::Id) {
        self.inside.lock().unwrap().pop();
    }
}
