use std::fmt;

use crate::ClientCredentials;

/// Is an API key as APSIS One's settings show it: a client ID and its secret.
///
/// Made up at random by the [`Emulator`](super::Emulator); it opens nothing else. `Debug` hides the
/// secret all the same, so that a test may search its logs for it.
#[derive(Clone)]
pub struct ApiKey(ClientCredentials);

impl ApiKey {
    pub(super) fn random() -> Self {
        let client_id = format!("emulator-{:016x}", fastrand::u64(..));
        let client_secret = format!("{:032x}", fastrand::u128(..));
        Self(ClientCredentials::new(client_id, client_secret).expect("neither is empty"))
    }

    /// Returns the client ID.
    #[must_use]
    pub fn client_id(&self) -> &str {
        self.0.id()
    }

    /// Returns the client secret.
    #[must_use]
    pub fn client_secret(&self) -> &str {
        self.0.secret()
    }

    /// Returns both, as the layer takes them.
    #[must_use]
    pub fn credentials(&self) -> ClientCredentials {
        self.0.clone()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("client_id", &self.client_id()).finish_non_exhaustive()
    }
}
