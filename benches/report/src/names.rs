//! What the variants are called in text.

use crate::Result;

/// What a bar of a variant looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    Ours,
    /// It manages no token, and shows how little is possible.
    Yardstick,
    Other,
}

#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) text: &'static str,
    pub(crate) role: Role,
    /// A request whose token was rejected is sent once more.
    pub(crate) sends_again: bool,
}

pub(crate) fn of(variant: &str) -> Result<Name> {
    use Role::{Other, Ours, Yardstick};
    let (text, role, sends_again) = match variant {
        "bare" => ("the bare service", Yardstick, false),
        "static-header" | "static header" => ("static header", Yardstick, false),
        "static header again" => ("static header, again", Yardstick, false),
        "floor" => ("the floor", Yardstick, false),
        "ours-without-replay" | "without replay" => ("apsis-auth, without replay", Ours, false),
        "ours-with-replay" | "with replay" => ("apsis-auth, with replay", Ours, true),
        "tower-http-add-authorization" => ("tower-http, static header", Other, false),
        "tower-retry-static-header" => ("tower Retry, static header", Other, true),
        "mutex-by-hand" => ("Mutex by hand", Other, false),
        "rwlock-by-hand" => ("RwLock by hand", Other, false),
        "google-cloud-auth" => ("google-cloud-auth", Other, false),
        "azure-identity" => ("azure_identity", Other, false),
        "object-store-azure" => ("object_store (Azure)", Other, false),
        "gcp-auth" => ("gcp_auth", Other, false),
        "yup-oauth2" => ("yup-oauth2", Other, false),
        "kube-plugin" => ("kube-client, plugin", Other, false),
        "kube-token-file" => ("kube-client, token file", Other, false),
        "aws-smithy-lazy-cache" => ("aws-smithy, lazy cache", Other, false),
        "cf-gears-bearer" => ("cf-gears, bearer", Other, false),
        "cf-gears-bearer-auto-refresh" => ("cf-gears, auto refresh", Other, true),
        _ => return Err(format!("the variant {variant} has no name; give it one in benches/report/src/names.rs")),
    };
    Ok(Name { text, role, sends_again })
}

/// What a body of so many bytes is called.
pub(crate) fn body(bytes: &str) -> &str {
    match bytes {
        "0" => "empty body",
        "1024" => "body of 1 KiB",
        _ => bytes,
    }
}
