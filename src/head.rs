//! What is kept of a request's head, its method, URI and header fields, so that the request can be sent again.
//!
//! Nearly every request is accepted, and what was kept of it is thrown away. So the head is written down as text, in a
//! buffer that was used before, and read again only if the token was rejected. To clone it would take more instructions,
//! and a block of memory for each of several parts.

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::AUTHORIZATION,
    uri::{Authority, PathAndQuery, Scheme},
};

use zeroize::Zeroizing;

use crate::buffer::Buffer;

/// A head, as it was before the token was put on.
pub(crate) struct KeptHead {
    /// The method, the parts of the URI, and each header field as a name and a value, each with its end.
    text: Buffer,
    version: Version,
    extensions: Extensions,
}

/// What ends a part; none has it within (RFC 9110 §5.5, §5.6.2; RFC 3986 §2).
const END: u8 = b'\n';
/// What ends a value that is marked as sensitive. It is not in a value either.
const SENSITIVE_END: u8 = b'\r';

impl KeptHead {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let mut text = Buffer::take();
        write_uri(&mut text, request.method(), request.uri());
        write_fields(&mut text, request.headers());
        Self { text, version: request.version(), extensions: request.extensions().clone() }
    }

    /// The request as it was, with this body. `None` would mean that the text cannot be read again.
    pub(crate) fn restore<B>(self, body: B) -> Option<Request<B>> {
        let mut text = Reader(&self.text);
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(text.part()?).ok()?;
        *request.uri_mut() = read_uri(&mut text)?;
        *request.headers_mut() = read_fields(text)?;
        *request.version_mut() = self.version;
        *request.extensions_mut() = self.extensions;
        Some(request)
    }
}

fn write_uri(text: &mut Buffer, method: &Method, uri: &Uri) {
    text.write(method.as_str().as_bytes(), END);
    text.write(uri.scheme_str().unwrap_or_default().as_bytes(), END);
    text.write(uri.authority().map_or("", Authority::as_str).as_bytes(), END);
    text.write(uri.path_and_query().map_or("", PathAndQuery::as_str).as_bytes(), END);
}

fn write_fields(text: &mut Buffer, fields: &HeaderMap) {
    for (name, value) in fields {
        text.write(name.as_str().as_bytes(), END);
        if name == AUTHORIZATION {
            // The token of the replay takes its place. What was there is nobody's to keep.
            text.write(b"", END);
        } else if value.is_sensitive() {
            text.write_secret(value.as_bytes(), SENSITIVE_END);
        } else {
            text.write(value.as_bytes(), END);
        }
    }
}

fn read_uri(text: &mut Reader<'_>) -> Option<Uri> {
    let (scheme, authority, path_and_query) = (text.part()?, text.part()?, text.part()?);
    let mut parts = http::uri::Parts::default();
    if !scheme.is_empty() {
        parts.scheme = Some(Scheme::try_from(scheme).ok()?);
    }
    if !authority.is_empty() {
        parts.authority = Some(Authority::try_from(authority).ok()?);
    }
    if !path_and_query.is_empty() {
        parts.path_and_query = Some(PathAndQuery::try_from(path_and_query).ok()?);
    }
    Uri::from_parts(parts).ok()
}

fn read_fields(mut text: Reader<'_>) -> Option<HeaderMap> {
    let mut fields = HeaderMap::new();
    while let Some(name) = text.part() {
        let name = HeaderName::from_bytes(name).ok()?;
        let (value, end) = text.next()?;
        let value = if end == SENSITIVE_END { secret(value)? } else { HeaderValue::from_bytes(value).ok()? };
        fields.try_append(name, value).ok()?;
    }
    Some(fields)
}

/// A value that is wiped like the buffer that it was in.
fn secret(value: &[u8]) -> Option<HeaderValue> {
    let value = Bytes::from_owner(Zeroizing::new(value.to_vec()));
    let mut value = HeaderValue::from_maybe_shared(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn part(&mut self) -> Option<&'a [u8]> {
        Some(self.next()?.0)
    }

    /// The next part, and what ends it.
    fn next(&mut self) -> Option<(&'a [u8], u8)> {
        let length = self.0.iter().position(|byte| matches!(*byte, END | SENSITIVE_END))?;
        let (part, rest) = self.0.split_at(length);
        let (&end, rest) = rest.split_first()?;
        self.0 = rest;
        Some((part, end))
    }
}
