//! The client credentials that are traded for a token, and the region they are good in.

use std::{env, ffi::OsString, fmt, fs, path::PathBuf, str::FromStr};

use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};

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
    /// One newline at the end of a file is dropped. Each of the two may be a value or a file.
    ///
    /// # Errors
    ///
    /// A [`BuildError`] that names the variable if it is missing, given both as a value and as a file, not UTF-8 or
    /// empty, or if its file cannot be read.
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
    match (variable(name), variable(&file_variable)) {
        (Some(_), Some(_)) => Err(BuildError::ValueAndFile { variable: name }),
        (Some(value), None) => {
            let value = value.into_string().map_err(|_| BuildError::NotUnicode { variable: name })?;
            Ok(Zeroizing::new(value))
        }
        (None, Some(path)) => from_file(file_variable, PathBuf::from(path)),
        (None, None) => Err(BuildError::MissingVariable { variable: name }),
    }
}

fn from_file(variable: String, path: PathBuf) -> Result<Zeroizing<String>, BuildError> {
    match fs::read_to_string(&path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            let value = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
            Ok(Zeroizing::new(value.to_owned()))
        }
        Err(cause) => Err(BuildError::UnreadableFile { variable, path, cause }),
    }
}
