//! The client credentials that are traded for a token, and the region they are good in.

use std::{env, ffi::OsString, fmt, fs, io, path::Path, str::FromStr};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::error::BuildError;

const CLIENT_ID: &str = "APSIS_CLIENT_ID";
const CLIENT_SECRET: &str = "APSIS_CLIENT_SECRET";
const REGION: &str = "APSIS_REGION";

/// A client ID and a client secret: what APSIS One calls an API key.
///
/// The secret is wiped from memory when the last clone goes, and not shown by `Debug`.
///
/// ```
/// use apsis_auth::ClientCredentials;
///
/// let credentials = ClientCredentials::new("my-client-id", "my-secret")?;
/// assert!(!format!("{credentials:?}").contains("my-secret"));
/// # Ok::<(), apsis_auth::BuildError>(())
/// ```
#[derive(Clone)]
pub struct ClientCredentials {
    id: String,
    secret: SecretString,
}

impl ClientCredentials {
    /// Credentials from values.
    ///
    /// # Errors
    ///
    /// [`BuildError::EmptyClientId`] and [`BuildError::EmptyClientSecret`] if one is empty or blank.
    pub fn new(client_id: impl Into<String>, client_secret: impl Into<String>) -> Result<Self, BuildError> {
        // What was given is wiped, too.
        let (id, secret) = (client_id.into(), Zeroizing::new(client_secret.into()));
        if id.trim().is_empty() {
            return Err(BuildError::EmptyClientId);
        }
        if secret.trim().is_empty() {
            return Err(BuildError::EmptyClientSecret);
        }
        Ok(Self { id, secret: SecretString::from(secret.as_str()) })
    }

    /// Credentials from the environment: `APSIS_CLIENT_ID` and `APSIS_CLIENT_SECRET`, or the files that
    /// `APSIS_CLIENT_ID_FILE` and `APSIS_CLIENT_SECRET_FILE` name, as container platforms mount them.
    ///
    /// Of a file, a byte order mark at its beginning, as editors on Windows write it, and one newline at its end are dropped.
    /// Each of the two may be a value or a file.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the variable if it is missing or empty, given both as a value and as a file, or not
    /// UTF-8, or if its file cannot be read; and those of [`new`](Self::new) for a value that is blank.
    pub fn from_env() -> Result<Self, BuildError> {
        Self::from_variables(|name| env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, BuildError> {
        let id = value_or_file(CLIENT_ID, &variable)?;
        let secret = value_or_file(CLIENT_SECRET, &variable)?;
        Self::new(id.as_str(), secret.as_str())
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where an account lives. There is no default: tokens of one region are worth nothing in the other.
///
/// ```
/// use apsis_auth::Region;
///
/// assert_eq!("apac".parse::<Region>()?, Region::Apac);
/// assert_eq!(Region::Eu.base_url(), "https://api.apsis.one");
/// # Ok::<(), apsis_auth::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Region {
    /// Europe.
    Eu,
    /// Asia and the Pacific.
    Apac,
}

impl Region {
    /// The region that `APSIS_REGION` names: `eu` or `apac`, in any case.
    ///
    /// # Errors
    ///
    /// [`BuildError::MissingRegion`], [`BuildError::NotUnicode`] or [`BuildError::UnknownRegion`].
    pub fn from_env() -> Result<Self, BuildError> {
        Self::from_variables(|name| env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, BuildError> {
        let name = variable(REGION).filter(|name| !name.is_empty()).ok_or(BuildError::MissingRegion)?;
        name.to_str().ok_or(BuildError::NotUnicode { variable: REGION })?.parse()
    }

    /// The base URL of the region's API (help.apsis.com/en/articles/6104968).
    #[must_use]
    pub fn base_url(self) -> &'static str {
        match self {
            Self::Eu => "https://api.apsis.one",
            Self::Apac => "https://api-apac.apsis.one",
        }
    }
}

impl FromStr for Region {
    type Err = BuildError;

    fn from_str(name: &str) -> Result<Self, BuildError> {
        match name.trim().to_ascii_lowercase().as_str() {
            "eu" => Ok(Self::Eu),
            "apac" => Ok(Self::Apac),
            _ => Err(BuildError::UnknownRegion { name: name.to_owned() }),
        }
    }
}

fn value_or_file(
    name: &'static str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Zeroizing<String>, BuildError> {
    let file_variable = format!("{name}_FILE");
    // An empty variable is how some platforms say that there is none.
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    match (set(name), set(&file_variable)) {
        (Some(_), Some(_)) => Err(BuildError::ValueAndFile { variable: name }),
        (Some(value), None) => {
            let value = value.into_string().map_err(|_| BuildError::NotUnicode { variable: name })?;
            Ok(Zeroizing::new(value))
        }
        (None, Some(path)) => from_file(&file_variable, Path::new(&path)),
        (None, None) => Err(BuildError::MissingVariable { variable: name }),
    }
}

fn from_file(variable: &str, path: &Path) -> Result<Zeroizing<String>, BuildError> {
    let unreadable = |cause| BuildError::UnreadableFile { variable: variable.to_owned(), path: path.to_owned(), cause };
    let bytes = match fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(cause) => return Err(unreadable(cause)),
    };
    match str::from_utf8(&bytes) {
        Ok(text) => {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let value = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
            Ok(Zeroizing::new(value.to_owned()))
        }
        Err(error) => Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, error))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]
mod tests {
    use std::{
        error::Error,
        io,
        path::PathBuf,
        process,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[test]
    fn credentials_are_read_from_two_variables() {
        let credentials = from(&[(CLIENT_ID, "my-id"), (CLIENT_SECRET, " my secret\n")]).unwrap();
        assert_eq!((credentials.id(), credentials.secret()), ("my-id", " my secret\n"));
    }

    #[test]
    fn either_may_be_in_a_file() {
        let (id, secret) = (File::with(b"my-id\n"), File::with(b"my-secret\n"));
        for variables in [
            [(CLIENT_ID, "my-id"), ("APSIS_CLIENT_SECRET_FILE", secret.path())],
            [("APSIS_CLIENT_ID_FILE", id.path()), (CLIENT_SECRET, "my-secret")],
            [("APSIS_CLIENT_ID_FILE", id.path()), ("APSIS_CLIENT_SECRET_FILE", secret.path())],
        ] {
            let credentials = from(&variables).unwrap();
            assert_eq!((credentials.id(), credentials.secret()), ("my-id", "my-secret"));
        }
    }

    #[test]
    fn a_byte_order_mark_and_one_newline_at_the_end_of_a_file_are_dropped_and_nothing_else() {
        for (text, secret) in [
            ("my-secret", "my-secret"),
            ("my-secret\n", "my-secret"),
            ("my-secret\r\n", "my-secret"),
            ("my-secret\n\n", "my-secret\n"),
            ("my-secret\r\n\r\n", "my-secret\r\n"),
            ("my-secret\r", "my-secret\r"),
            ("my-secret\r\r\n", "my-secret\r"),
            (" my-\nsecret \n", " my-\nsecret "),
            ("\nmy-secret", "\nmy-secret"),
            ("\u{feff}my-secret\r\n", "my-secret"),
            ("\u{feff}\u{feff}my-secret\u{feff}", "\u{feff}my-secret\u{feff}"),
        ] {
            let file = File::with(text.as_bytes());
            let credentials = from(&[(CLIENT_ID, "my-id"), ("APSIS_CLIENT_SECRET_FILE", file.path())]).unwrap();
            assert_eq!(credentials.secret(), secret, "{text:?}");
        }
    }

    #[test]
    fn a_variable_that_is_missing_is_named() {
        let error = from(&[(CLIENT_SECRET, "my-secret")]).unwrap_err();
        assert!(matches!(error, BuildError::MissingVariable { variable: CLIENT_ID }), "{error:?}");
        let error = from(&[(CLIENT_ID, "my-id")]).unwrap_err();
        assert!(matches!(error, BuildError::MissingVariable { variable: CLIENT_SECRET }), "{error:?}");
        assert!(error.to_string().contains("APSIS_CLIENT_SECRET_FILE"), "{error}");
    }

    #[test]
    fn a_value_and_a_file_are_one_too_many() {
        let id = (CLIENT_ID, "my-id");
        let error = from(&[id, ("APSIS_CLIENT_ID_FILE", "/id"), (CLIENT_SECRET, "my-secret")]).unwrap_err();
        assert!(matches!(error, BuildError::ValueAndFile { variable: CLIENT_ID }), "{error:?}");
        let error = from(&[id, (CLIENT_SECRET, " "), ("APSIS_CLIENT_SECRET_FILE", "/secret")]).unwrap_err();
        assert!(matches!(error, BuildError::ValueAndFile { variable: CLIENT_SECRET }), "{error:?}");
    }

    #[test]
    fn a_variable_that_is_empty_is_as_good_as_none() {
        let error = from(&[(CLIENT_ID, ""), (CLIENT_SECRET, "my-secret")]).unwrap_err();
        assert!(matches!(error, BuildError::MissingVariable { variable: CLIENT_ID }), "{error:?}");
        let file = File::with(b"my-secret");
        let secret = [(CLIENT_SECRET, ""), ("APSIS_CLIENT_SECRET_FILE", file.path())];
        let credentials = from(&[(CLIENT_ID, "my-id"), ("APSIS_CLIENT_ID_FILE", ""), secret[0], secret[1]]).unwrap();
        assert_eq!((credentials.id(), credentials.secret()), ("my-id", "my-secret"));
    }

    #[test]
    fn a_value_that_is_blank_is_none() {
        let error = from(&[(CLIENT_ID, " \n"), (CLIENT_SECRET, "my-secret")]).unwrap_err();
        assert!(matches!(error, BuildError::EmptyClientId), "{error:?}");
        for blank in ["", " \n"] {
            let file = File::with(blank.as_bytes());
            let error = from(&[(CLIENT_ID, "my-id"), ("APSIS_CLIENT_SECRET_FILE", file.path())]).unwrap_err();
            assert!(matches!(error, BuildError::EmptyClientSecret), "{error:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_its_variable() {
        let missing = File::with(b"").path().to_owned();
        let folder = env::temp_dir().to_str().unwrap().to_owned();
        for path in [missing, folder] {
            let error = from(&[("APSIS_CLIENT_ID_FILE", path.as_str()), (CLIENT_SECRET, "my-secret")]).unwrap_err();
            let BuildError::UnreadableFile { variable, path: named, .. } = &error else { panic!("{error:?}") };
            assert_eq!((variable.as_str(), named.to_str().unwrap()), ("APSIS_CLIENT_ID_FILE", path.as_str()));
            assert!(error.source().is_some());
        }
    }

    #[test]
    fn a_file_that_is_not_text_cannot_be_read_and_is_not_shown() {
        let file = File::with(b"my-secret\xff");
        let error = from(&[(CLIENT_ID, "my-id"), ("APSIS_CLIENT_SECRET_FILE", file.path())]).unwrap_err();
        let BuildError::UnreadableFile { cause, .. } = &error else { panic!("{error:?}") };
        assert_eq!(cause.kind(), io::ErrorKind::InvalidData);
        assert!(!format!("{error} {error:?}").contains("my-secret"), "{error:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_unicode_is_named_and_not_shown() {
        use std::os::unix::ffi::OsStringExt;

        for name in [CLIENT_ID, CLIENT_SECRET] {
            let error = ClientCredentials::from_variables(|variable| match variable {
                CLIENT_ID | CLIENT_SECRET if variable != name => Some("another".into()),
                _ => (variable == name).then(|| OsString::from_vec(b"my-secret\xff".into())),
            })
            .unwrap_err();
            assert!(matches!(error, BuildError::NotUnicode { variable } if variable == name), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("my-secret"), "{error:?}");
        }
        let error = Region::from_variables(|_| Some(OsString::from_vec(b"eu\xff".into()))).unwrap_err();
        assert!(matches!(error, BuildError::NotUnicode { variable: REGION }), "{error:?}");
    }

    #[test]
    fn a_region_is_read_from_its_variable() {
        assert_eq!(region(Some("APAC")).unwrap(), Region::Apac);
        assert_eq!(region(Some("eu")).unwrap(), Region::Eu);
        assert!(matches!(region(None), Err(BuildError::MissingRegion)));
        assert!(matches!(region(Some("")), Err(BuildError::MissingRegion)));
        assert!(matches!(region(Some("us")), Err(BuildError::UnknownRegion { name }) if name == "us"));
    }

    fn from(variables: &[(&str, &str)]) -> Result<ClientCredentials, BuildError> {
        ClientCredentials::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    fn region(value: Option<&str>) -> Result<Region, BuildError> {
        Region::from_variables(|name| value.filter(|_| name == "APSIS_REGION").map(OsString::from))
    }

    /// A file of a name of its own, removed again.
    pub(super) struct File(PathBuf);

    impl File {
        pub(super) fn with(text: &[u8]) -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("apsis-auth-{}-{number}", process::id()));
            fs::write(&path, text).unwrap();
            Self(path)
        }

        pub(super) fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Whatever an environment and its files hold.
#[cfg(all(test, unix))]
mod properties {
    use std::{cell::RefCell, collections::HashMap, error::Error, os::unix::ffi::OsStringExt};

    use proptest::{
        collection::vec,
        prelude::*,
        sample::select,
        test_runner::{Config, TestRunner},
    };

    use super::{tests::File, *};

    #[test]
    fn whatever_variables_and_files_hold_is_read_as_it_is_or_an_error_says_which_and_shows_no_secret() {
        const SECRET: &str = "s3cret-cAnary";

        let seen = RefCell::new(HashMap::new());
        let mut runner = TestRunner::new(Config { cases: 1_000, failure_persistence: None, ..Config::default() });
        let result = runner.run(&(setting("my-id"), setting(SECRET)), |(id, secret)| {
            let ((id_file, id_path), (secret_file, secret_path)) = (id.file_and_path(), secret.file_and_path());
            let read = ClientCredentials::from_variables(|name| match name {
                "APSIS_CLIENT_ID" => id.value(),
                "APSIS_CLIENT_ID_FILE" => id_path.clone(),
                "APSIS_CLIENT_SECRET" => secret.value(),
                "APSIS_CLIENT_SECRET_FILE" => secret_path.clone(),
                _ => None,
            });
            drop((id_file, secret_file));
            let printed = match &read {
                Ok(credentials) => format!("{credentials:?}"),
                Err(error) => format!("{error} {error:?} {:?}", error.source().map(ToString::to_string)),
            };
            prop_assert!(!printed.contains(SECRET), "{printed}");

            let read = read.map(|read| (read.id().to_owned(), read.secret().to_owned()));
            let read = read.map_err(|error| problem(&error));
            let end = read.as_ref().map_or_else(|(problem, _)| *problem, |_| "read");
            *seen.borrow_mut().entry(end).or_insert(0) += 1;
            prop_assert_eq!(read, expected(&id, &secret));
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
        let seen = seen.into_inner();
        for end in ["read", "missing", "twice", "not unicode", "unreadable", "blank"] {
            assert!(seen.get(end) >= Some(&10), "too few came to {end:?}: {seen:?}");
        }
    }

    /// How the environment says one of the two, if it does.
    #[derive(Clone, Debug, Default)]
    struct Setting {
        value: Option<Vec<u8>>,
        file: Option<FileSetting>,
    }

    #[derive(Clone, Debug)]
    enum FileSetting {
        With(Vec<u8>),
        Missing,
        Folder,
        /// The variable is empty.
        Unnamed,
    }

    impl Setting {
        fn value(&self) -> Option<OsString> {
            self.value.clone().map(OsString::from_vec)
        }

        fn file_and_path(&self) -> (Option<File>, Option<OsString>) {
            match &self.file {
                Some(FileSetting::With(text)) => {
                    let file = File::with(text);
                    let path = file.path().into();
                    (Some(file), Some(path))
                }
                Some(FileSetting::Missing) => (None, Some(File::with(b"").path().into())),
                Some(FileSetting::Folder) => (None, Some(env::temp_dir().into())),
                Some(FileSetting::Unnamed) => (None, Some(OsString::new())),
                None => (None, None),
            }
        }

        fn expected(&self, name: &str) -> Result<String, (&'static str, String)> {
            let value = self.value.clone().filter(|value| !value.is_empty());
            let file = self.file.as_ref().filter(|file| !matches!(file, FileSetting::Unnamed));
            match (value, file) {
                (Some(_), Some(_)) => Err(("twice", name.to_owned())),
                (None, None) => Err(("missing", name.to_owned())),
                (Some(value), None) => String::from_utf8(value).map_err(|_| ("not unicode", name.to_owned())),
                (None, Some(FileSetting::With(text))) => {
                    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
                    let line = text.strip_suffix(b"\r\n").or(text.strip_suffix(b"\n")).unwrap_or(text);
                    String::from_utf8(line.to_owned()).map_err(|_| ("unreadable", format!("{name}_FILE")))
                }
                (None, Some(_)) => Err(("unreadable", format!("{name}_FILE"))),
            }
        }
    }

    fn setting(word: &'static str) -> impl Strategy<Value = Setting> {
        let file = prop_oneof![
            6 => text(word).prop_map(FileSetting::With),
            1 => Just(FileSetting::Missing),
            1 => Just(FileSetting::Folder),
            1 => Just(FileSetting::Unnamed),
        ];
        prop_oneof![
            6 => text(word).prop_map(|value| Setting { value: Some(value), file: None }),
            6 => file.clone().prop_map(|file| Setting { value: None, file: Some(file) }),
            2 => (text(word), file).prop_map(|(value, file)| Setting { value: Some(value), file: Some(file) }),
            1 => Just(Setting::default()),
        ]
    }

    /// The word, and what may get into a variable or a file with it.
    fn text(word: &'static str) -> impl Strategy<Value = Vec<u8>> + Clone {
        const ODD: [&[u8]; 8] = [b" ", b"\t", b"\n", b"\r\n", b"\r", "\u{feff}".as_bytes(), b"\xff", &[b'x'; 70_000]];
        let piece = prop_oneof![Just(word.as_bytes()), select(&ODD[..])];
        vec(piece, 0..4).prop_map(|pieces| pieces.concat())
    }

    fn expected(id: &Setting, secret: &Setting) -> Result<(String, String), (&'static str, String)> {
        let (id, secret) = (id.expected("APSIS_CLIENT_ID")?, secret.expected("APSIS_CLIENT_SECRET")?);
        for (name, text) in [("ID", &id), ("secret", &secret)] {
            if text.chars().all(char::is_whitespace) {
                return Err(("blank", name.to_owned()));
            }
        }
        Ok((id, secret))
    }

    /// What is wrong, and with what.
    fn problem(error: &BuildError) -> (&'static str, String) {
        match error {
            BuildError::MissingVariable { variable } => ("missing", (*variable).to_owned()),
            BuildError::ValueAndFile { variable } => ("twice", (*variable).to_owned()),
            BuildError::NotUnicode { variable } => ("not unicode", (*variable).to_owned()),
            BuildError::UnreadableFile { variable, .. } => ("unreadable", variable.clone()),
            BuildError::EmptyClientId => ("blank", "ID".to_owned()),
            BuildError::EmptyClientSecret => ("blank", "secret".to_owned()),
            error => panic!("{error:?}"),
        }
    }
}
