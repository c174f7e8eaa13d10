//! Where a request goes, and whether the token goes along.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
};

use apsis_auth::{ApsisAuthLayer, ClientCredentials};
use arbitrary::Arbitrary;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use tokio::runtime::Builder;
use tower::{Layer, Service, service_fn};
use url::Url;

const BASE: &str = "https://api.apsis.one";
const TOKEN: &str = r#"{"access_token":"a-token","expires_in":86400,"token_type":"Bearer"}"#;

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    method: Method<'a>,
    target: Target<'a>,
    hosts: Vec<Host<'a>>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Method<'a> {
    Get,
    Connect,
    Raw(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Target<'a> {
    Raw(&'a str),
    Absolute { scheme: Scheme, user: Option<&'a str>, host: Host<'a>, path: &'a str },
    Origin(&'a str),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Scheme {
    Https,
    UpperCase,
    Http,
}

/// Host and port, much like the API's.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Host<'a> {
    Api,
    UpperCase,
    Port(u16),
    After(&'a str),
    Before(&'a str),
    Raw(&'a str),
}

/// The form of a request's target (RFC 9112 §3.2), and whether the token went along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Absolute(bool),
    /// With a `Host` field or more, or without.
    Origin {
        has_host: bool,
        has_token: bool,
    },
    /// Only a proxy is asked so, and it is never given the token.
    Authority,
    /// Nor is whoever is asked for a tunnel.
    Connect,
}

/// `None` for what is no request.
pub(crate) fn check(input: &Input<'_>) -> Option<Seen> {
    let request = input.request()?;
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let has_token = is_stamped(request);
    if method == http::Method::CONNECT {
        assert!(!has_token, "{uri}");
        return Some(Seen::Connect);
    }
    if uri.scheme().is_some() && uri.authority().is_some() {
        let is_the_api = Url::parse(&uri.to_string()).is_ok_and(|url| is_the_api(&url));
        assert!(!has_token || is_the_api, "the token went to {uri}");
        // What is no plain name and port, another reader may read more kindly. Not to send the token is the safe side.
        let is_plain = uri
            .authority()
            .unwrap()
            .as_str()
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".:@".contains(&byte));
        assert!(has_token || !is_the_api || !is_plain, "no token went to {uri}");
        return Some(Seen::Absolute(has_token));
    }
    assert!(!has_token || uri.authority().is_none(), "the token went to {uri}");
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    let goes_where_the_client_is_connected = hosts.is_empty() && uri.scheme().is_none() && uri.authority().is_none();
    assert!(has_token || !goes_where_the_client_is_connected, "no token went to {uri}");
    let names_the_api = match hosts[..] {
        [] => true,
        [host] => {
            host.to_str().is_ok_and(|host| Url::parse(&format!("https://{host}/")).is_ok_and(|url| is_the_api(&url)))
        }
        _ => false,
    };
    assert!(!has_token || names_the_api, "the token went to {hosts:?}");
    if uri.authority().is_some() {
        return Some(Seen::Authority);
    }
    let is_plain = matches!(hosts[..], [host] if ["api.apsis.one", "api.apsis.one:443"].contains(&host.to_str().unwrap_or_default()));
    assert!(has_token || !is_plain, "no token went to {uri} at {hosts:?}");
    Some(Seen::Origin { has_host: !hosts.is_empty(), has_token })
}

/// As another reader of URLs has it (RFC 9110 §4.3.1).
fn is_the_api(url: &Url) -> bool {
    url.scheme() == "https" && url.host_str() == Some("api.apsis.one") && url.port_or_known_default() == Some(443)
}

fn is_stamped(request: Request<()>) -> bool {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let endpoint =
            service_fn(|_: Request<Full<Bytes>>| ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(TOKEN)))));
        let credentials = ClientCredentials::new("my-id", "my-secret").unwrap();
        let layer = ApsisAuthLayer::builder(credentials, BASE).transport(endpoint).build().unwrap();
        layer.handle().warm_up().await.unwrap();
        let stamped = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&stamped);
        let mut client = layer.layer(service_fn(move |request: Request<()>| {
            let authorization = request.headers().get(header::AUTHORIZATION);
            *seen.lock().unwrap() = Some(authorization.is_some_and(|value| value == "Bearer a-token"));
            ready(Ok::<_, Infallible>(Response::new(())))
        }));
        client.call(request).await.unwrap();
        let stamped = stamped.lock().unwrap();
        stamped.unwrap()
    })
}

impl Input<'_> {
    /// `None` for what is no request.
    fn request(&self) -> Option<Request<()>> {
        let mut request = Request::new(());
        *request.method_mut() = match self.method {
            Method::Get => http::Method::GET,
            Method::Connect => http::Method::CONNECT,
            Method::Raw(text) => text.parse().unwrap_or_default(),
        };
        *request.uri_mut() = self.target.text().parse::<Uri>().ok()?;
        for host in self.hosts.iter().take(3).filter_map(|host| HeaderValue::try_from(host.text()).ok()) {
            request.headers_mut().append(header::HOST, host);
        }
        Some(request)
    }
}

impl Target<'_> {
    fn text(&self) -> String {
        match self {
            Self::Raw(text) => (*text).to_owned(),
            Self::Origin(path) => format!("/{path}"),
            Self::Absolute { scheme, user, host, path } => {
                let scheme = match scheme {
                    Scheme::Https => "https",
                    Scheme::UpperCase => "HTTPS",
                    Scheme::Http => "http",
                };
                let user = user.map(|user| format!("{user}@")).unwrap_or_default();
                format!("{scheme}://{user}{}{path}", host.text())
            }
        }
    }
}

impl Host<'_> {
    fn text(&self) -> String {
        match self {
            Self::Api => "api.apsis.one".to_owned(),
            Self::UpperCase => "API.APSIS.one:443".to_owned(),
            Self::Port(port) => format!("api.apsis.one:{port}"),
            Self::After(after) => format!("api.apsis.one{after}"),
            Self::Before(before) => format!("{before}api.apsis.one"),
            Self::Raw(text) => (*text).to_owned(),
        }
    }
}
