//! The environment and the files that it names.
#![no_main]

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    sync::OnceLock,
};

use apsis_auth::{ClientCredentials, Region};
use arbitrary::Arbitrary;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    id: Setting<'a>,
    secret: Setting<'a>,
    region: Setting<'a>,
}

#[derive(Arbitrary, Debug)]
enum Setting<'a> {
    Unset,
    Value(&'a [u8]),
    /// A file that holds this.
    File(&'a [u8]),
    Both(&'a [u8]),
    Path(&'a [u8]),
}

libfuzzer_sys::fuzz_target!(|input: Input<'_>| {
    input.id.set("APSIS_CLIENT_ID");
    input.secret.set("APSIS_CLIENT_SECRET");
    input.region.set("APSIS_REGION");
    let printed = printed();
    if let Setting::Value(secret) | Setting::File(secret) = input.secret
        && let Ok(secret) = str::from_utf8(secret)
        && secret.len() > 12
    {
        // What is printed with another secret, too, is no secret.
        Setting::Value(b"another").set("APSIS_CLIENT_SECRET");
        assert!(!printed.contains(secret) || self::printed().contains(secret), "{printed}");
    }
    let _ = Region::from_env();
});

fn printed() -> String {
    match ClientCredentials::from_env() {
        Ok(credentials) => format!("{credentials:?}"),
        Err(error) => format!("{error} {error:?}"),
    }
}

impl Setting<'_> {
    fn set(&self, name: &str) {
        let (value, file) = match self {
            Self::Unset => (None, None),
            Self::Value(value) => (Some(*value), None),
            Self::Path(path) => (None, Some(path.to_vec())),
            Self::File(content) => (None, Some(write(name, content))),
            Self::Both(value) => (Some(*value), Some(value.to_vec())),
        };
        set(name, value);
        set(&format!("{name}_FILE"), file.as_deref());
    }
}

fn set(name: &str, value: Option<&[u8]>) {
    // SAFETY: a fuzz target has one thread.
    unsafe {
        match value.filter(|value| !value.contains(&0)) {
            Some(value) => env::set_var(name, OsStr::from_bytes(value)),
            None => env::remove_var(name),
        }
    }
}

fn write(name: &str, content: &[u8]) -> Vec<u8> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().unwrap().keep());
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path.into_os_string().into_vec()
}
