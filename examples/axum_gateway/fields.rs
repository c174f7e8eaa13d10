//! Header fields between two connections: what is for the next hop alone goes no further (RFC 9110 §7.6.1).

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{
        CONNECTION, EXPECT, HOST, MAX_FORWARDS, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING,
        UPGRADE, VIA,
    },
};

/// Besides those that `Connection` names. `Trailer` is not among them: it tells the other end what comes after the body, and
/// hyper sends the trailers that it names. Without an upgrade for both sides none is asked for, which a server may always
/// ignore (RFC 9110 §7.8).
static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The fields of a request that arrived in this version, as they go to the API.
pub(crate) fn for_the_api(headers: &mut HeaderMap, version: Version) {
    let takes_trailers = tokens(headers, &TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    strip(headers);
    if takes_trailers {
        // Without a `Connection` that names it, as RFC 9110 §10.1.4 would have it: HTTP/2, which it may be, forbids one.
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // The client puts the API's there.
    headers.remove(HOST);
    // The gateway has met it: hyper says 100 as soon as the client reads the body, and the client does not wait for another.
    if headers.get(EXPECT).is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        headers.remove(EXPECT);
    }
    headers.append(VIA, via(version));
}

/// Whether hyper undoes all that the body was sent in: it knows `chunked` alone, but only asks that it comes last. What is
/// left would arrive without a label.
pub(crate) fn is_body_decoded(headers: &HeaderMap) -> bool {
    let mut codings = tokens(headers, &TRANSFER_ENCODING).filter(|coding| !coding.is_empty());
    codings.next().is_none_or(|coding| coding.eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// Whether the request may go one hop further, which is counted (RFC 9110 §7.6.2). What is no number does not count.
pub(crate) fn may_go_on(headers: &mut HeaderMap) -> bool {
    let left = headers.get(MAX_FORWARDS).and_then(|left| left.to_str().ok());
    let Some(left) = left.filter(|left| !left.is_empty() && left.bytes().all(|byte| byte.is_ascii_digit())) else {
        return true;
    };
    // Digits fail only by being too many.
    let Some(left) = left.parse().unwrap_or(u64::MAX).checked_sub(1) else { return false };
    headers.insert(MAX_FORWARDS, HeaderValue::from(left));
    true
}

/// The fields of an answer, as they go to the caller.
pub(crate) fn for_the_caller(headers: &mut HeaderMap) {
    strip(headers);
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<_> = tokens(headers, &CONNECTION).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The members of a list, over all fields of the name (RFC 9110 §5.6.1).
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| value.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

/// A gateway has to say so in what it forwards (RFC 9110 §7.6.3).
fn via(received: Version) -> HeaderValue {
    HeaderValue::from_static(match received {
        Version::HTTP_10 => "1.0 apsis-gateway",
        Version::HTTP_2 => "2.0 apsis-gateway",
        _ => "1.1 apsis-gateway",
    })
}
