//! The audience API behind the gateway.

use apsis_auth::emulator::Emulator;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{KEYSPACE, KEYSPACES, PROFILE, Reply, call, get, token};

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const KEY: &str = "andy.demo@apsis.com";
const SECTION_ATTRIBUTES: &str = "/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com\
    /sections/com.apsis1.sections.default/attributes";

struct Caller {
    emulator: Emulator,
    token: String,
}

impl Caller {
    async fn new() -> Self {
        let emulator = Emulator::new();
        let token = token(&emulator).await;
        Self { emulator, token }
    }

    async fn with_profile(attributes: &Value) -> Self {
        let caller = Self::new().await;
        let reply = caller.create(&attributes.to_string()).await;
        assert_eq!(reply.status, StatusCode::CREATED);
        caller
    }

    async fn call(&self, method: Method, path: &str, content_type: &str, body: &str) -> Reply {
        call(&self.emulator, &self.token, method, path, content_type, body).await
    }

    async fn create(&self, body: &str) -> Reply {
        self.call(Method::POST, PROFILE, JSON, body).await
    }

    async fn patch(&self, content_type: &str, body: &str) -> Reply {
        let path = format!("{PROFILE}/attributes");
        self.call(Method::PATCH, &path, content_type, body).await
    }

    async fn patch_section(&self, content_type: &str, body: &str) -> Reply {
        self.call(Method::PATCH, SECTION_ATTRIBUTES, content_type, body).await
    }

    async fn add_event(&self, content_type: &str, body: &str) -> Reply {
        let path = format!("{PROFILE}/events");
        self.call(Method::POST, &path, content_type, body).await
    }

    fn attributes(&self) -> Value {
        let profile = self.emulator.profile(KEYSPACE, KEY);
        profile.expect("the profile").attributes
    }
}

#[tokio::test(start_paused = true)]
async fn keyspaces_and_sections_are_listed() {
    let caller = Caller::new().await;
    for path in [KEYSPACES, "/audience/sections"] {
        let reply = get(&caller.emulator, &caller.token, path).await;
        assert_eq!(reply.status, StatusCode::OK);
        let json = reply.json();
        let items = json["items"].as_array().expect("a list");
        assert!(!items.is_empty());
        assert!(items.iter().all(|item| item["discriminator"].is_string()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_profile_is_created_once_and_read_back() {
    let caller = Caller::with_profile(&json!({"city": "Malmö"})).await;
    let reply = get(&caller.emulator, &caller.token, PROFILE).await;
    assert_eq!(reply.status, StatusCode::OK);
    let expected = json!({"attributes": {"city": "Malmö"}, "events": 0});
    assert_eq!(reply.json(), expected);
    assert_eq!(caller.create("").await.status, StatusCode::CONFLICT);
    assert_eq!(caller.attributes(), json!({"city": "Malmö"}));
}

#[tokio::test(start_paused = true)]
async fn a_profile_needs_no_attributes() {
    let caller = Caller::new().await;
    assert_eq!(caller.create("").await.status, StatusCode::CREATED);
    assert_eq!(caller.attributes(), json!({}));
}

#[tokio::test(start_paused = true)]
async fn profile_keys_are_decoded_for_storage_only() {
    let caller = Caller::with_profile(&json!({})).await;
    assert!(caller.emulator.profile(KEYSPACE, KEY).is_some());
    assert!(caller.emulator.profile(KEYSPACE, "andy.demo%40apsis.com").is_none());
    let slash = PROFILE.replace("%40", "%2F");
    let reply = caller.call(Method::POST, &slash, JSON, "").await;
    assert_eq!(reply.status, StatusCode::CREATED);
    assert!(caller.emulator.profile(KEYSPACE, "andy.demo/apsis.com").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_merge_patch_replaces_adds_removes_and_merges() {
    let before = json!({"a": 1, "b": 2, "deep": {"x": 1, "y": 2}, "flat": 3});
    let caller = Caller::with_profile(&before).await;
    let patch = json!({
        "a": [1, null],
        "b": null,
        "c": 3,
        "deep": {"x": null, "z": 3},
        "flat": {"now": "deep", "not": null},
        "absent": null,
    });
    let reply = caller.patch(MERGE_PATCH, &patch.to_string()).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
    let after = json!({"a": [1, null], "c": 3, "deep": {"y": 2, "z": 3}, "flat": {"now": "deep"}});
    assert_eq!(caller.attributes(), after);
}

#[tokio::test(start_paused = true)]
async fn attributes_set_in_a_section_create_the_profile_and_then_change_it() {
    let caller = Caller::new().await;
    let patches = [json!({"city": "Malmö", "age": 1}), json!({"city": null, "age": 2})];
    for patch in patches {
        let reply = caller.patch_section(MERGE_PATCH, &patch.to_string()).await;
        assert_eq!(reply.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(caller.attributes(), json!({"age": 2}));
}

#[tokio::test(start_paused = true)]
async fn a_patch_that_is_refused_creates_no_profile() {
    let caller = Caller::new().await;
    let unknown_section = SECTION_ATTRIBUTES.replace("default", "unknown");
    let unknown_keyspace = SECTION_ATTRIBUTES.replace(KEYSPACE, "unknown");
    let problems = [
        (404, caller.call(Method::PATCH, &unknown_section, MERGE_PATCH, "{}").await),
        (404, caller.call(Method::PATCH, &unknown_keyspace, MERGE_PATCH, "{}").await),
        (400, caller.patch_section(MERGE_PATCH, "[]").await),
        (415, caller.patch_section(JSON, "{}").await),
    ];
    for (status, reply) in problems {
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    }
    assert!(caller.emulator.profile(KEYSPACE, KEY).is_none());
    assert!(caller.emulator.profile("unknown", KEY).is_none());
}

#[tokio::test(start_paused = true)]
async fn events_are_counted() {
    let caller = Caller::with_profile(&json!({})).await;
    for _ in 0..2 {
        let reply = caller.add_event(JSON, "{\"event\":\"visited\"}").await;
        assert_eq!(reply.status, StatusCode::CREATED);
    }
    let profile = caller.emulator.profile(KEYSPACE, KEY).expect("the profile");
    assert_eq!(profile.events, 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_application_does_not_like_is_a_problem_and_changes_nothing() {
    let caller = Caller::with_profile(&json!({"a": 1})).await;
    let unknown = PROFILE.replace(KEYSPACE, "unknown");
    let nobody = PROFILE.replace("andy", "nobody");
    let problems = [
        (400, caller.patch(MERGE_PATCH, "{\"a\":").await),
        (400, caller.patch(MERGE_PATCH, "[]").await),
        (415, caller.patch(JSON, "{\"a\":2}").await),
        (400, caller.add_event(JSON, "null").await),
        (415, caller.add_event("text/plain", "{}").await),
        (404, caller.call(Method::POST, &unknown, JSON, "{}").await),
        (404, caller.call(Method::GET, &unknown, "", "").await),
        (404, caller.call(Method::GET, &nobody, "", "").await),
    ];
    for (status, reply) in problems {
        assert_eq!(reply.status, status, "{reply:?}");
        assert_eq!(reply.header("content-type"), Some("application/problem+json"));
        assert_eq!(reply.json()["status"], status);
    }
    let profile = caller.emulator.profile(KEYSPACE, KEY).expect("the profile");
    assert_eq!(profile.attributes, json!({"a": 1}));
    assert_eq!(profile.events, 0);
    assert_eq!(caller.emulator.counters().api_problems, 8);
}
