//! What a fleet stores: the token, readable for whoever has the client secret, and for nobody else.
//!
//! Who has the secret could ask for a token as well, so the key is made of it: there is nothing to configure, and a secret
//! that was changed leaves the entries of the old one unread.

use std::{fmt, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hkdf, rand,
};
use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::{ClientCredentials, token};

/// Of what is sealed, how, and how it is bound. Another one is not read.
const VERSION: u8 = 1;

const KEY_LEN: usize = 32;
/// The lifetime, in milliseconds.
const LIFETIME_LEN: usize = 8;

/// Seals the tokens of one account, and opens them.
pub(crate) struct Seal {
    key: RandomizedNonceKey,
    /// Where an entry belongs: the origin and the client ID.
    account: Vec<u8>,
    name: String,
}

/// A token out of a store.
pub(crate) struct Opened {
    pub(crate) header: HeaderValue,
    pub(crate) lifetime: Duration,
}

impl Seal {
    pub(crate) fn new(credentials: &ClientCredentials, origin: &str) -> Self {
        let account = account(origin, credentials.id());
        // RFC 5869. The secret is drawn by APSIS One, and long; a password would need more than that.
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"apsis-auth token store");
        let root = salt.extract(credentials.secret().as_bytes());
        let key = Zeroizing::new(derive::<KEY_LEN>(&root, &[b"key", &[VERSION], &account]));
        let name = u128::from_be_bytes(derive(&root, &[b"name", &[VERSION], &account]));
        let name = format!("{name:032x}");
        let key = RandomizedNonceKey::new(&AES_256_GCM, &*key).expect("the key is as long as the algorithm's");
        Self { key, account, name }
    }

    /// What an entry goes by. It depends on the secret, so nobody without it can tell whose it is.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A version, a nonce, and what is sealed: see [`Opened`].
    pub(crate) fn seal(&self, header: &HeaderValue, lifetime: Duration, fence: u64) -> Bytes {
        let token = token::of_header(header);
        let mut text = Zeroizing::new(Vec::with_capacity(LIFETIME_LEN + token.len() + AES_256_GCM.tag_len()));
        text.extend_from_slice(&milliseconds(lifetime).to_be_bytes());
        text.extend_from_slice(token);
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(self.bound_to(fence)), &mut *text)
            .expect("what is sealed is shorter than the algorithm's limit");
        Bytes::from([&[VERSION], &nonce.as_ref()[..], &text].concat())
    }

    /// `None` for what was not sealed by this key, for this account, under this fence.
    pub(crate) fn open(&self, sealed: &[u8], fence: u64) -> Option<Opened> {
        let (&version, sealed) = sealed.split_first()?;
        if version != VERSION {
            return None;
        }
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let text = self.key.open_in_place(nonce, Aad::from(self.bound_to(fence)), &mut text).ok()?;
        let (lifetime, token) = text.split_first_chunk()?;
        Some(Opened {
            header: token::bearer_header(str::from_utf8(token).ok()?)?,
            lifetime: Duration::from_millis(u64::from_be_bytes(*lifetime)),
        })
    }

    /// No entry passes for another account's, nor for an older or newer one.
    fn bound_to(&self, fence: u64) -> Vec<u8> {
        [&[VERSION], &fence.to_be_bytes()[..], &self.account].concat()
    }
}

/// Drawn by the crypto library: of two processes with the same number, both would hold one lease.
pub(crate) fn random_number() -> u64 {
    let mut number = [0; 8];
    rand::fill(&mut number).expect("the system has random numbers");
    u64::from_be_bytes(number)
}

/// Neither part can be moved into the other.
fn account(origin: &str, client_id: &str) -> Vec<u8> {
    let length = u64::try_from(origin.len()).unwrap_or(u64::MAX).to_be_bytes();
    [&length, origin.as_bytes(), client_id.as_bytes()].concat()
}

fn derive<const N: usize>(root: &hkdf::Prk, info: &[&[u8]]) -> [u8; N] {
    let mut derived = [0; N];
    root.expand(info, Length(N))
        .and_then(|expanded| expanded.fill(&mut derived))
        .expect("some bytes are less than the most that HKDF gives");
    derived
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("name", &self.name).finish_non_exhaustive()
    }
}
