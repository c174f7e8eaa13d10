//! Signs tokens: JWTs with RS256 (RFC 7519, RFC 7518 section 3.3).

use std::{fmt::Write, sync::OnceLock};

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub(super) struct Signer {
    key: KeyPair,
    key_id: String,
}

/// One for the whole process: making an RSA key is slow.
pub(super) fn shared() -> &'static Signer {
    static SIGNER: OnceLock<Signer> = OnceLock::new();
    SIGNER.get_or_init(Signer::generate)
}

impl Signer {
    fn generate() -> Self {
        let key = KeyPair::generate(KeySize::Rsa2048)
            .expect("aws-lc makes RSA keys of 2048 bits while there is entropy and memory");
        let key_id = key_id(key.public_key().as_ref());
        Self { key, key_id }
    }

    pub(super) fn public_key_der(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.key_id});
        let mut token = encode(header.to_string());
        token.push('.');
        token.push_str(&encode(claims.to_string()));
        let signature = self.signature(token.as_bytes());
        token.push('.');
        token.push_str(&encode(signature));
        token
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .expect("aws-lc signs into a buffer as long as the modulus");
        signature
    }
}

/// The head of the public key's digest, so that keys of different processes have different names.
fn key_id(public_key: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, public_key);
    digest.as_ref()[..8].iter().fold(String::new(), |mut id, byte| {
        write!(id, "{byte:02x}").expect("a string takes all that is written to it");
        id
    })
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
