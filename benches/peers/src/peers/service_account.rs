//! The key of a service account, which two peers sign their token requests with.

use std::{env, sync::LazyLock};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, engine::general_purpose::STANDARD};

/// The environment variable that hands the private key to a child, which may be too slow to make one.
pub(crate) const PRIVATE_KEY: &str = "PEERS_PRIVATE_KEY";

/// Made for this run, in PEM.
pub(crate) fn private_key() -> &'static str {
    static KEY: LazyLock<String> = LazyLock::new(|| env::var(PRIVATE_KEY).unwrap_or_else(|_| make()));
    &KEY
}

/// The file that Google's console hands out, with a token endpoint of our own.
pub(crate) fn key_file(token_uri: &str) -> String {
    serde_json::json!({
        "type": "service_account",
        "project_id": "project",
        "private_key_id": "key-id",
        "private_key": private_key(),
        "client_email": "client@example.com",
        "client_id": "client-id",
        "token_uri": token_uri,
    })
    .to_string()
}

fn make() -> String {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("a key can be made");
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).expect("it can be encoded");
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()))
}
