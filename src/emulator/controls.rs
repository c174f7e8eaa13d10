//! The controls: what a test turns to make the account behave badly.

use std::time::Duration;

use super::{Answer, ApiKey, Dialect, Emulator};

/// API keys and tokens.
impl Emulator {
    /// Makes another API key with every right. It shares the account's limits.
    #[must_use]
    pub fn add_api_key(&self) -> ApiKey {
        let key = ApiKey::random();
        self.state().add_key(&key, true);
        key
    }

    /// Makes an API key whose tokens are accepted, and which may do nothing: the audience API
    /// answers 403 with `application/problem+json`.
    #[must_use]
    pub fn add_api_key_without_rights(&self) -> ApiKey {
        let key = ApiKey::random();
        self.state().add_key(&key, false);
        key
    }

    /// Deletes an API key: its credentials are denied from now on, and its tokens rejected, as far as the
    /// [authorizer's cache](Self::set_authorizer_cache) does not remember them.
    ///
    /// Does nothing if there is no such key.
    pub fn delete_api_key(&self, client_id: &str) {
        self.state().keys.retain(|key| key.client_id != client_id);
    }

    /// Revokes every token issued until now.
    pub fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Revokes one token. Does nothing if it was never issued.
    pub fn revoke_token(&self, access_token: &str) {
        self.state().tokens.remove(access_token);
    }

    /// Sets how long tokens issued from now on live. Default: 24 hours.
    ///
    /// The authorizer keeps to it exactly; the claim `exp` and `expires_in` are whole seconds,
    /// rounded down. Zero is allowed: such a token is dead at birth.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.state().settings.token_lifetime = lifetime;
    }

    /// Sets whether an API key is given the same token again while that one is valid.
    /// Default: `false`, a new token with every answer.
    pub fn set_same_token_while_valid(&self, same: bool) {
        self.state().settings.same_token_while_valid = same;
    }
}

/// Rejections.
impl Emulator {
    /// Sets how a token that is not accepted is rejected. Default: [`Dialect::Unauthorized`].
    pub fn set_dialect(&self, dialect: Dialect) {
        self.state().settings.dialect = dialect;
    }

    /// Sets for how long the gateway remembers what the authorizer said of a token string.
    /// Default: `None`, not at all.
    ///
    /// An allow is remembered as well as a deny: a revoked token goes on working until its entry is
    /// that old. (API Gateway's default is 300 s.) `None` forgets what is remembered; a changed
    /// duration holds for the entries that are there, too.
    pub fn set_authorizer_cache(&self, lifetime: Option<Duration>) {
        self.state().verdicts.set_lifetime(lifetime);
    }

    /// Refuses every route whose path starts with `path_prefix` to every token, as the gateway
    /// says it: 403 with `x-amzn-ErrorType: AccessDeniedException`.
    ///
    /// A client cannot tell it from [`Dialect::Gateway`] by one answer. The prefix is compared with
    /// the path as it was sent, byte by byte; it needs not be a route that exists.
    pub fn refuse_route(&self, path_prefix: &str) {
        self.state().refused_routes.push(path_prefix.to_owned());
    }

    /// Takes back [`refuse_route`](Self::refuse_route) of the same prefix.
    pub fn allow_route(&self, path_prefix: &str) {
        let mut state = self.state();
        state.refused_routes.retain(|prefix| prefix != path_prefix);
    }
}

/// Time.
impl Emulator {
    /// Sets how long the token endpoint takes over an answer. Default: zero.
    ///
    /// What is answered is decided, and counted, before that: when the whole request has arrived.
    pub fn set_token_delay(&self, delay: Duration) {
        self.state().settings.token_delay = delay;
    }

    /// Sets how long every other route takes over an answer. Default: zero.
    ///
    /// What is answered is decided, and counted, before that: when the whole request has arrived.
    pub fn set_api_delay(&self, delay: Duration) {
        self.state().settings.api_delay = delay;
    }

    /// Sets by how many seconds the server's clock is ahead of the local one; negative: behind.
    /// Default: 0.
    ///
    /// It moves the header `Date`, the claims `iat` and `exp`, and the moment at which tokens that
    /// are already issued expire. The clock stays between the years 1970 and 9999.
    pub fn set_clock_skew(&self, seconds: i64) {
        self.state().settings.clock_skew = seconds;
    }
}

/// Limits.
impl Emulator {
    /// Sets how many token requests the account may make in any 60 seconds. Default: 10.
    pub fn set_token_limit(&self, per_minute: u32) {
        self.state().settings.token_limit = per_minute;
    }

    /// Sets whether token requests that brought no token count against the limit: those over the
    /// limit, with wrong credentials, or not understood; a 405 never does. Default: `true`, the careful assumption.
    pub fn set_refusals_count(&self, count: bool) {
        self.state().settings.refusals_count = count;
    }

    /// Sets how many API requests with an accepted token the account may make in any second.
    /// Default: 100. Those over the limit are answered 429, and do not count.
    pub fn set_api_limit(&self, per_second: u32) {
        self.state().settings.api_limit = per_second;
    }
}

/// Scripts.
impl Emulator {
    /// Says what the next requests to the token endpoint are answered, one [`Answer`] each, in the
    /// order of their arrival. After that, and by default, it answers as usual.
    ///
    /// Adds to what is still to be answered from earlier calls.
    pub fn script_token_answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().token_script.extend(answers);
    }

    /// Says what the next requests to any other path are answered, one [`Answer`] each, in the
    /// order of their arrival. After that, and by default, it answers as usual.
    ///
    /// Adds to what is still to be answered from earlier calls.
    pub fn script_api_answers(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().api_script.extend(answers);
    }
}
