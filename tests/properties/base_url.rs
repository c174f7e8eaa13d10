//! The base URL that somebody configured.

use apsis_auth::{ApsisAuthLayer, BaseUrl, BuildError, ClientCredentials};
use arbitrary::Arbitrary;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{BoxError, service_fn};

const PASSWORD: &str = "passw0rd-cAnary";

#[derive(Arbitrary, Debug)]
pub(crate) enum Input<'a> {
    Raw(&'a str),
    Parts { scheme: Scheme<'a>, has_password: bool, host: Host<'a>, port: Option<u32>, rest: Rest<'a> },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Scheme<'a> {
    Https,
    Http,
    Other(&'a str),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Host<'a> {
    Apsis,
    Localhost,
    Loopback(u8),
    Loopback6,
    Other(&'a str),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Rest<'a> {
    Nothing,
    Slash,
    Path,
    Query,
    Raw(&'a str),
}

/// What became of a base URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Taken,
    Refused,
    /// Refused, and it had a password that is not to be shown.
    RefusedWithPassword,
}

pub(crate) fn check(input: &Input<'_>) -> Seen {
    let url = input.url();
    let transport =
        service_fn(async |_: Request<Full<Bytes>>| Err::<Response<Full<Bytes>>, BoxError>("not called".into()));
    let credentials = ClientCredentials::new("my-id", "my-secret").unwrap();
    let built = ApsisAuthLayer::builder(credentials, url.as_str()).transport(transport).build();
    let (seen, printed) = match built {
        Ok(layer) => {
            assert_safe(&url);
            (Seen::Taken, format!("{layer:?}"))
        }
        Err(error @ BuildError::BaseUrl { .. }) => {
            let seen = if input.has_password() { Seen::RefusedWithPassword } else { Seen::Refused };
            (seen, format!("{error} {error:?}"))
        }
        Err(error) => panic!("{url:?}: {error}"),
    };
    let printed = format!("{printed} {:?}", BaseUrl::from(url.as_str()));
    assert!(!printed.contains(PASSWORD) || !input.has_password(), "{url}");
    seen
}

/// By another reader of URLs.
fn assert_safe(url: &str) {
    let Ok(parsed) = url::Url::parse(url) else {
        // A host that is none, such as 127.0.0.260, gets no connection. If it does, it is one with a certificate.
        return assert!(url.to_ascii_lowercase().starts_with("https://"), "{url:?} was taken");
    };
    assert!(parsed.username().is_empty() && parsed.password().is_none(), "{url:?}");
    assert!(parsed.query().is_none() && parsed.fragment().is_none(), "{url:?}");
    let is_loopback = match parsed.host().unwrap() {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    assert!(parsed.scheme() == "https" || parsed.scheme() == "http" && is_loopback, "{url:?}");
}

impl Input<'_> {
    /// One before the host, and nowhere else.
    fn has_password(&self) -> bool {
        matches!(self, Self::Parts { has_password: true, .. }) && self.url().matches(PASSWORD).count() == 1
    }

    fn url(&self) -> String {
        match self {
            Self::Raw(url) => (*url).to_owned(),
            Self::Parts { scheme, has_password, host, port, rest } => {
                let scheme = match scheme {
                    Scheme::Https => "https",
                    Scheme::Http => "http",
                    Scheme::Other(scheme) => scheme,
                };
                let user = if *has_password { format!("user:{PASSWORD}@") } else { String::new() };
                let host = match host {
                    Host::Apsis => "api.apsis.one".to_owned(),
                    Host::Localhost => "localhost".to_owned(),
                    Host::Loopback(last) => format!("127.0.0.{last}"),
                    Host::Loopback6 => "[::1]".to_owned(),
                    Host::Other(host) => (*host).to_owned(),
                };
                let port = port.map(|port| format!(":{}", port % 70_000)).unwrap_or_default();
                let rest = match rest {
                    Rest::Nothing => "",
                    Rest::Slash => "/",
                    Rest::Path => "/apsis",
                    Rest::Query => "/?key=value",
                    Rest::Raw(rest) => rest,
                };
                format!("{scheme}://{user}{host}{port}{rest}")
            }
        }
    }
}
