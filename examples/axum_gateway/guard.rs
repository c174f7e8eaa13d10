//! Web pages are kept out: a browser on this machine reaches the gateway, and any page it shows could use the account.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use http::{
    header::{HOST, ORIGIN},
    uri::Authority,
};

use crate::errors::Refusal;

/// Lets through what programs send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    on_loopback: bool,
}

impl Guard {
    pub(crate) fn of(listen: SocketAddr) -> Self {
        Self { on_loopback: listen.ip().is_loopback() }
    }

    pub(crate) fn check(self, request: &Request) -> Result<(), Refusal> {
        if is_of_a_web_page(request) {
            return Err(Refusal::WebPage);
        }
        // A page of another site may make its own name resolve to a loopback address; then it is of the same origin.
        if self.on_loopback && !names_loopback(request) {
            return Err(Refusal::Misdirected);
        }
        Ok(())
    }
}

/// Browsers put the one on what is not a plain GET, the other on all they send to a loopback address or over HTTPS.
fn is_of_a_web_page(request: &Request) -> bool {
    let headers = request.headers();
    headers.contains_key(ORIGIN) || headers.get("sec-fetch-site").is_some_and(|site| site != "none")
}

/// Without a host, as in HTTP/1.0, nobody was misled.
fn names_loopback(request: &Request) -> bool {
    let named = request.headers().get(HOST).map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    match (request.uri().authority(), named) {
        (Some(authority), _) => is_loopback(authority.host()),
        (None, Some(named)) => named.is_some_and(|authority| is_loopback(authority.host())),
        (None, None) => true,
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
