//! What the compiler says of a stack that does not fit. Its words vary, so only ours are asked for, and the names.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod stacks;

use std::{convert::Infallible, env, future::ready, path::Path, process::Command};

use apsis_auth::{ApsisAuthLayer, ClientCredentials, Region};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::service_fn;

#[tokio::test]
async fn every_stack_compiles_and_works_as_it_stands() {
    for response in [
        stacks::own_body(layer()).await,
        stacks::own_body_at_oneshot(layer()).await,
        stacks::own_body_at_ready(layer()).await,
        stacks::own_body_at_a_box(layer()).await,
        stacks::not_clone(layer()).await,
        stacks::own_error(layer()).await,
        stacks::own_response(layer()).await,
        stacks::another_body(layer()).await,
        stacks::no_default_body(layer()).await,
    ] {
        assert_eq!(response.unwrap().into_body(), "Bearer opaque");
    }
}

#[test]
fn of_an_unknown_body_it_says_what_to_wrap_it_in() {
    for line in ["ReplayBody", "Once, at oneshot", "Once, at ready", "Once, at a box"] {
        assert_said(
            line,
            &[
                "`OwnBody` is a body that the layer cannot send a second time",
                "no `ReplayableBody`",
                "wrap it above the layer",
                ".map_request_body(apsis_auth::ReplayBody::new)",
                ".map_request_body(apsis_auth::Once::new)",
                "`ServiceBuilderExt`",
                "`axum` and `reqwest`",
            ],
        );
    }
}

#[test]
fn of_a_service_that_is_not_clone_it_says_what_to_do_where_the_stack_is_built() {
    assert_said(
        "buffer",
        &[
            "` is not `Clone`, which the layer needs to send a request a second time",
            "not `Clone`",
            "put a buffer beneath the layer, `.buffer(64)`",
            "`ApsisAuthLayer` to implement",
        ],
    );
}

#[test]
fn of_an_error_that_is_none_it_says_so_under_a_bound() {
    assert_said("map_err", &["OwnError", "std::error::Error", "for `ApsisAuth<"]);
}

#[test]
fn of_a_response_that_is_not_http_it_says_so_under_a_bound() {
    assert_said("map_response", &["Response<_>", "OwnResponse", "for `ApsisAuth<"]);
}

#[test]
fn of_a_service_for_another_body_it_says_so_under_a_bound() {
    assert_said("map_request_body", &["Full<Bytes>", "String"]);
}

#[test]
fn of_a_body_without_a_default_under_a_time_limit_it_says_so_under_a_bound() {
    assert_said("map_response_body", &["OwnText", "Default", "Timeout<ApsisAuth<"]);
}

#[cfg(feature = "reqwest")]
#[test]
fn of_reqwests_client_it_says_under_a_bound_which_request_it_takes() {
    // Not called, since it wants a network.
    let _: fn(ApsisAuthLayer, reqwest::Client) = stacks::reqwests_client;
    assert_said("filter", &["Service<http::Request<", "reqwest-", "for `ApsisAuth<Client>`"]);
}

#[cfg(feature = "axum")]
#[test]
fn of_a_servers_router_it_says_that_the_errors_are_none_to_answer_with() {
    drop(stacks::router(layer()));
    assert_said("no layer on a router", &["Infallible", "Router::<S>::layer", "std::error::Error"]);
}

/// Compiles this binary anew, without one line. What it depends on is built already.
fn assert_said(line: &str, words: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["rustc", "--test", "messages", "--color", "never"]);
    cargo.arg("--target-dir").arg(Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap());
    cargo.args(["--no-default-features", "--features", &features()]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    cargo.arg("--").arg("--cfg").arg(format!("without={line:?}"));
    // A build script of a dependency may look at these, and would run again.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            cargo.env_remove(name);
        }
    }

    let output = cargo.output().unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it compiles without {line}");
    for words in words {
        assert!(said.contains(words), "without {line}, it does not say {words:?}:\n{said}");
    }
}

fn features() -> String {
    let features = [
        ("axum", cfg!(feature = "axum")),
        ("client", cfg!(feature = "client")),
        ("emulator", cfg!(feature = "emulator")),
        ("reqwest", cfg!(feature = "reqwest")),
    ];
    features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect::<Vec<_>>().join(",")
}

/// A layer whose token endpoint always has the same.
fn layer() -> ApsisAuthLayer {
    let endpoint = service_fn(|_: Request<Full<Bytes>>| {
        let token = r#"{"access_token":"opaque","token_type":"bearer","expires_in":3600}"#;
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(token))))
    });
    let credentials = ClientCredentials::new("client-id", "secret").unwrap();
    ApsisAuthLayer::builder(credentials, Region::Eu).transport(endpoint).build().unwrap()
}
