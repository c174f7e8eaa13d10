//! Which requests are in scope: those to the origin (scheme, host, port; RFC 9110 §4.3.1) the token is meant for.

use std::fmt;

use http::{
    HeaderMap, Method, Request, Uri, header,
    uri::{Authority, Scheme},
};

use crate::{Region, error::BuildError};

/// Where APSIS One is: a [`Region`], or the URL of a gateway or an emulator in front of it.
///
/// It is checked when the layer is built: an absolute `https` URL (plain `http` to a loopback address only) without
/// user information, query or fragment. A path is kept: the token request goes to `{base}/oauth/token`.
///
/// In scope, so that they get the token, are requests to the URL's origin (scheme, host, port), whatever the path. A request
/// without scheme and host, in origin form, goes wherever the client underneath is connected. It is in scope unless it has a
/// `Host` field that names another host, or more than one, or one that is no host and port.
///
/// ```
/// use apsis_auth::{BaseUrl, Region};
///
/// let eu = BaseUrl::from(Region::Eu);
/// let emulator = BaseUrl::from("http://127.0.0.1:8080");
/// # let _ = (eu, emulator);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// The origin and the URL of the token endpoint, or what is wrong with the base.
    pub(crate) fn resolve(&self) -> Result<(Origin, Uri), BuildError> {
        let wrong = |problem| BuildError::BaseUrl { url: self.printable(), problem };
        if self.0.contains('#') {
            return Err(wrong("it has a fragment"));
        }
        let uri: Uri = self.0.parse().map_err(|_| wrong("it is not a URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme().cloned(), uri.authority()) else {
            return Err(wrong("it is not absolute: it needs a scheme and a host"));
        };
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        if authority.as_str().contains('@') {
            return Err(wrong("it has user information"));
        }
        let Some(default_port) = default_port(&scheme) else {
            return Err(wrong("its scheme is neither https nor http"));
        };
        let host = authority.host().to_owned();
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        if scheme == Scheme::HTTP && !is_loopback(&host) {
            return Err(wrong("plain http would show the secret and the tokens to the network; use https"));
        }
        let after_host = authority.as_str().strip_prefix(&host);
        let port = after_host.and_then(|port| self::port(port, default_port));
        let port = port.ok_or_else(|| wrong("its port is not a number up to 65535"))?;
        if uri.path().trim_end_matches('/').ends_with("/oauth/token") {
            return Err(wrong("it is the URL of the token endpoint: leave out /oauth/token"));
        }
        let endpoint = format!("{}/oauth/token", self.0.trim_end_matches('/'));
        let endpoint = endpoint.parse().map_err(|_| wrong("it is not a URL"))?;
        let canonical = host.to_ascii_lowercase();
        let canonical = if port == default_port { canonical } else { format!("{canonical}:{port}") };
        Ok((Origin { scheme, canonical, host, port, default_port }, endpoint))
    }

    /// The text for an error: what stands before an `@` or in a query may be a password.
    fn printable(&self) -> String {
        let (shown, rest) = match self.0.rsplit_once('@') {
            // The `@` of a password or of a query: what follows it may be part of either.
            Some((before, _)) if before.contains(['?', '#']) => return format!("{}…", self.scheme()),
            Some((_, rest)) => (format!("{}…@", self.scheme()), rest),
            None => (String::new(), self.0.as_str()),
        };
        match rest.split_once(['?', '#']) {
            Some((rest, _)) => format!("{shown}{rest}…"),
            None => format!("{shown}{rest}"),
        }
    }

    /// `https://`, if that is how it starts.
    fn scheme(&self) -> &str {
        ["https://", "http://"].into_iter().find(|scheme| self.0.starts_with(scheme)).unwrap_or_default()
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BaseUrl").field(&self.printable()).finish()
    }
}

impl From<Region> for BaseUrl {
    fn from(region: Region) -> Self {
        Self(region.base_url().to_owned())
    }
}

impl From<&str> for BaseUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl From<String> for BaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl From<Uri> for BaseUrl {
    fn from(url: Uri) -> Self {
        Self(url.to_string())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Origin {
    scheme: Scheme,
    /// Host and port as nearly all write them: in lower case, and without the default port.
    canonical: String,
    host: String,
    port: u16,
    default_port: u16,
}

impl Origin {
    #[cfg(feature = "client")]
    pub(crate) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// RFC 6454 §6.2.
    #[cfg(feature = "store")]
    pub(crate) fn serialization(&self) -> String {
        format!("{}://{}", self.scheme, self.canonical)
    }

    /// Whether `request` goes to this origin, so that it may carry the token.
    #[inline]
    pub(crate) fn covers<B>(&self, request: &Request<B>) -> bool {
        // CONNECT asks a proxy for a tunnel: its target is not the one that reads the headers (RFC 9110 §9.3.6). An
        // extended one (RFC 8441 §4) goes by the same method, and is left alone with it.
        if request.method() == Method::CONNECT {
            return false;
        }
        match (request.uri().scheme(), request.uri().authority()) {
            (Some(scheme), Some(authority)) => *scheme == self.scheme && self.is_the_authority(authority),
            (None, None) => self.is_the_host(request.headers()),
            _ => false,
        }
    }

    /// A request in origin form goes wherever the client underneath is connected; a `Host` field says if that is
    /// somebody else.
    fn is_the_host(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let Some(host) = hosts.next() else { return true };
        hosts.next().is_none() && host.to_str().is_ok_and(|host| self.names(host))
    }

    /// User information says nothing of the origin. It is rare, so it is looked for last.
    #[inline]
    fn is_the_authority(&self, authority: &Authority) -> bool {
        let text = authority.as_str();
        self.names(text) || text.rsplit_once('@').is_some_and(|(_, host_and_port)| self.names(host_and_port))
    }

    /// Whether this is the origin's host, with its port or, where that is the default, without. Text is compared, since to
    /// parse a `Host` field is to copy it.
    #[inline]
    fn names(&self, host_and_port: &str) -> bool {
        host_and_port == self.canonical || self.names_in_full(host_and_port)
    }

    fn names_in_full(&self, host_and_port: &str) -> bool {
        let Some((host, port)) = host_and_port.split_at_checked(self.host.len()) else { return false };
        host.eq_ignore_ascii_case(&self.host) && self::port(port, self.default_port) == Some(self.port)
    }
}

/// The port with the default filled in, or `None` where what stands after the host is no port.
fn port(after_host: &str, default_port: u16) -> Option<u16> {
    match after_host {
        "" | ":" => Some(default_port),
        // The standard library's parser takes a plus.
        port => port.strip_prefix(':').filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok(),
    }
}

fn default_port(scheme: &Scheme) -> Option<u16> {
    if *scheme == Scheme::HTTPS {
        Some(443)
    } else if *scheme == Scheme::HTTP {
        Some(80)
    } else {
        None
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
