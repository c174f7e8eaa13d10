//! What people write who write it themselves: a token and its expiry behind tokio's `Mutex` or `RwLock`.

use std::time::{Duration, Instant};

use http::HeaderMap;
use tokio::sync::{Mutex, RwLock};

use super::insert_bearer;
use crate::{
    endpoint::Endpoint,
    variant::{Credential, Surroundings, Variant},
};

pub(crate) fn mutex(surroundings: &Surroundings) -> Variant {
    once(surroundings, "mutex-by-hand", |endpoint| ByMutex { held: Mutex::default(), endpoint })
}

pub(crate) fn rwlock(surroundings: &Surroundings) -> Variant {
    once(surroundings, "rwlock-by-hand", |endpoint| ByRwLock { held: RwLock::default(), endpoint })
}

fn once<C: Credential>(surroundings: &Surroundings, name: &'static str, new: impl FnOnce(Asked) -> C) -> Variant {
    let variant = Variant::new(new(Asked { endpoint: surroundings.endpoint.clone(), name }));
    assert_eq!(surroundings.endpoint.asked(name), 1);
    variant
}

/// Stands for an HTTP client, which is of no account once there is a token.
struct Asked {
    endpoint: Endpoint,
    name: &'static str,
}

impl Asked {
    fn token(&self) -> Token {
        let answer: serde_json::Value = serde_json::from_str(&self.endpoint.answer(self.name)).expect("it is JSON");
        let lifetime = Duration::from_secs(answer["expires_in"].as_u64().expect("it is a number"));
        Token {
            access_token: answer["access_token"].as_str().expect("it is a string").to_owned(),
            expires_at: Instant::now() + lifetime,
        }
    }
}

struct Token {
    access_token: String,
    expires_at: Instant,
}

impl Token {
    fn is_good(&self) -> bool {
        Instant::now() + Duration::from_mins(1) < self.expires_at
    }
}

struct ByMutex {
    held: Mutex<Option<Token>>,
    endpoint: Asked,
}

impl ByMutex {
    async fn token(&self) -> String {
        let mut held = self.held.lock().await;
        if let Some(token) = held.as_ref().filter(|token| token.is_good()) {
            return token.access_token.clone();
        }
        held.insert(self.endpoint.token()).access_token.clone()
    }
}

impl Credential for ByMutex {
    async fn stamp(&self, headers: &mut HeaderMap) {
        insert_bearer(headers, &self.token().await);
    }
}

struct ByRwLock {
    held: RwLock<Option<Token>>,
    endpoint: Asked,
}

impl ByRwLock {
    async fn token(&self) -> String {
        if let Some(token) = self.held.read().await.as_ref().filter(|token| token.is_good()) {
            return token.access_token.clone();
        }
        let mut held = self.held.write().await;
        if let Some(token) = held.as_ref().filter(|token| token.is_good()) {
            return token.access_token.clone();
        }
        held.insert(self.endpoint.token()).access_token.clone()
    }
}

impl Credential for ByRwLock {
    async fn stamp(&self, headers: &mut HeaderMap) {
        insert_bearer(headers, &self.token().await);
    }
}
