//! What an account consists of: everything behind the emulator's lock.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{Answer, ApiKey, Counters, Dialect, audience::Audience, authorizer::Verdicts, window::Window};

pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) keys: Vec<Key>,
    /// By token string. Revoking is removing; expired ones stay, for the tests that have them are short.
    pub(super) tokens: HashMap<String, Issued>,
    pub(super) token_requests: Window,
    pub(super) api_requests: Window,
    pub(super) verdicts: Verdicts,
    pub(super) refused_routes: Vec<String>,
    pub(super) token_script: VecDeque<Answer>,
    pub(super) api_script: VecDeque<Answer>,
    pub(super) audience: Audience,
    pub(super) counters: Counters,
}

pub(super) struct Settings {
    pub(super) token_lifetime: Duration,
    pub(super) same_token_while_valid: bool,
    pub(super) dialect: Dialect,
    pub(super) token_delay: Duration,
    pub(super) api_delay: Duration,
    pub(super) clock_skew: i64,
    pub(super) token_limit: u32,
    pub(super) refusals_count: bool,
    pub(super) api_limit: u32,
}

/// An API key that is not deleted.
pub(super) struct Key {
    pub(super) client_id: String,
    pub(super) client_secret: String,
    pub(super) has_rights: bool,
    pub(super) latest_token: Option<String>,
}

/// A token that is not revoked.
pub(super) struct Issued {
    pub(super) client_id: String,
    /// By the server's wall clock, since the Unix epoch.
    pub(super) expires_at: Duration,
}

impl State {
    pub(super) fn new(first_key: &ApiKey) -> Self {
        let mut state = Self {
            settings: Settings::default(),
            keys: Vec::new(),
            tokens: HashMap::new(),
            token_requests: Window::new(Duration::from_secs(60)),
            api_requests: Window::new(Duration::from_secs(1)),
            verdicts: Verdicts::default(),
            refused_routes: Vec::new(),
            token_script: VecDeque::new(),
            api_script: VecDeque::new(),
            audience: Audience::default(),
            counters: Counters::default(),
        };
        state.add_key(first_key, true);
        state
    }

    pub(super) fn add_key(&mut self, key: &ApiKey, has_rights: bool) {
        self.keys.push(Key {
            client_id: key.client_id().to_owned(),
            client_secret: key.client_secret().to_owned(),
            has_rights,
            latest_token: None,
        });
    }

    pub(super) fn key(&self, client_id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.client_id == client_id)
    }

    pub(super) fn is_refused(&self, path: &str) -> bool {
        let mut prefixes = self.refused_routes.iter();
        prefixes.any(|prefix| path.starts_with(prefix))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token_lifetime: Duration::from_secs(24 * 60 * 60),
            same_token_while_valid: false,
            dialect: Dialect::default(),
            token_delay: Duration::ZERO,
            api_delay: Duration::ZERO,
            clock_skew: 0,
            token_limit: 10,
            refusals_count: true,
            api_limit: 100,
        }
    }
}
