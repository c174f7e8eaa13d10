//! A request that is rejected and sent again: the same head, the same body.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use apsis_auth::{ApsisAuthLayer, AuthOutcome, ClientCredentials, ReplayBody};
use arbitrary::Arbitrary;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::runtime::Builder;
use tower::{BoxError, Layer, ServiceExt, service_fn};

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    method: Method<'a>,
    target: Target<'a>,
    version: u8,
    fields: Vec<(Name<'a>, &'a [u8], bool)>,
    removed: u8,
    frames: Vec<&'a [u8]>,
    trailers: Option<Vec<(Name<'a>, &'a [u8])>>,
    limit: u16,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Method<'a> {
    Get,
    Patch,
    Raw(&'a str),
    Connect,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name<'a> {
    Accept,
    Cookie,
    Authorization,
    Own(u8),
    Raw(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Target<'a> {
    Base,
    Absolute(&'a str),
    Origin(&'a str),
    Raw(&'a str),
    /// What stands after the API's name may make it another one.
    Around {
        has_user: bool,
        after: &'a str,
    },
}

/// One sending, as it arrived.
#[derive(Debug)]
struct Sent {
    method: String,
    uri: String,
    version: Version,
    fields: Vec<(String, Vec<u8>, bool)>,
    size: (u64, Option<u64>),
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
}

/// What became of a request that was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Replayed,
    NotReplayable,
    OutOfScope,
}

/// `None` for what is no request.
pub(crate) fn check(input: &Input<'_>) -> Option<Seen> {
    let request = input.request()?;
    let goes_to_the_api = goes_to_the_api(request.method(), request.uri());
    // Some bodies are larger.
    let limit = usize::from(input.limit % 1_024);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (result, sent) = runtime.block_on(async {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&sent);
        let api = service_fn(move |request: Request<ReplayBody<Flow>>| {
            let log = Arc::clone(&log);
            async move {
                let arrived = Sent::read(request).await?;
                let mut log = log.lock().unwrap();
                log.push(arrived);
                let status = if log.len() == 1 { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
                Ok::<_, BoxError>(Response::builder().status(status).body(()).unwrap())
            }
        });
        let layer =
            ApsisAuthLayer::builder(ClientCredentials::new("my-id", "my-secret").unwrap(), "https://api.apsis.one")
                .transport(counting_endpoint())
                .replay_limit(limit)
                .build()
                .unwrap();
        (layer.layer(api).oneshot(request.map(ReplayBody::new)).await, sent)
    });
    let sent = sent.lock().unwrap();
    let response = result.unwrap();
    let outcome = response.extensions().get();
    let is_out_of_scope = matches!(outcome, Some(AuthOutcome::OutOfScope));
    assert_ne!(is_out_of_scope, goes_to_the_api, "{:?}", sent[0]);
    Some(match outcome {
        Some(AuthOutcome::Replayed) => {
            assert_same(&sent);
            let data: usize = sent[0].frames.iter().map(Bytes::len).sum();
            assert!(data <= limit, "{data} bytes are beyond {limit}");
            Seen::Replayed
        }
        Some(AuthOutcome::NotReplayable) => {
            assert_eq!(sent.len(), 1);
            assert!(sent[0].cost() >= limit, "{} bytes are within {limit}", sent[0].cost());
            Seen::NotReplayable
        }
        Some(AuthOutcome::OutOfScope) => {
            assert_eq!(sent.len(), 1);
            Seen::OutOfScope
        }
        outcome => panic!("{outcome:?}"),
    })
}

/// A request without a `Host` field, as another reader has it. In origin form it goes where the client is connected.
fn goes_to_the_api(method: &http::Method, uri: &Uri) -> bool {
    let is_the_api = match (uri.scheme_str(), uri.authority()) {
        (None, None) => true,
        (Some(scheme), Some(authority)) => {
            let authority = authority.as_str().to_lowercase();
            let host_and_port = authority.rsplit('@').next().unwrap();
            let (host, port) = host_and_port.split_once(':').unwrap_or((host_and_port, ""));
            // A port may have zeros before it.
            let is_default = port.is_empty() || port.trim_start_matches('0') == "443";
            scheme.eq_ignore_ascii_case("https") && host == "api.apsis.one" && is_default
        }
        _ => false,
    };
    is_the_api && method != http::Method::CONNECT
}

fn assert_same(sent: &[Sent]) {
    let [first, second] = sent else { panic!("{} sends", sent.len()) };
    assert_eq!((&first.method, &first.uri, first.version), (&second.method, &second.uri, second.version));
    let tokens =
        [first, second].map(|sent| sent.fields.iter().filter(|field| field.0 == "authorization").collect::<Vec<_>>());
    let [[one], [other]] = [&tokens[0][..], &tokens[1][..]] else { panic!("{tokens:?}") };
    assert!(one.1 != other.1 && one.2 && other.2, "another token, marked");
    let [fields, again] =
        [first, second].map(|sent| sent.fields.iter().filter(|field| field.0 != "authorization").collect::<Vec<_>>());
    assert_eq!(fields, again);
    assert_eq!((first.size, &first.frames, &first.trailers), (second.size, &second.frames, &second.trailers));
}

/// Each time another token.
fn counting_endpoint()
-> impl tower::Service<Request<Full<Bytes>>, Response = Response<Full<Bytes>>, Error = BoxError, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static {
    let number = Arc::new(Mutex::new(0));
    service_fn(move |_: Request<Full<Bytes>>| {
        let mut number = number.lock().unwrap();
        *number += 1;
        let token = format!(r#"{{"access_token":"token-{number}","expires_in":86400,"token_type":"Bearer"}}"#);
        std::future::ready(Ok(Response::new(Full::from(token))))
    })
}

impl Sent {
    async fn read(request: Request<ReplayBody<Flow>>) -> Result<Self, BoxError> {
        let (head, mut body) = request.into_parts();
        let fields = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_owned(), value.is_sensitive()));
        let fields = fields.collect();
        let hint = body.size_hint();
        let (mut frames, mut trailers) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => frames.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let size = (hint.lower(), hint.upper());
        let (method, uri) = (head.method.to_string(), head.uri.to_string());
        Ok(Self { method, uri, version: head.version, fields, size, frames, trailers })
    }

    /// At most what is said to count against the limit.
    fn cost(&self) -> usize {
        let handle = size_of::<Bytes>();
        let frames: usize = self.frames.iter().map(|frame| frame.len().max(handle)).sum();
        let trailers =
            self.trailers.iter().flatten().count() * (2 * size_of::<HeaderValue>() + size_of::<HeaderName>());
        let texts: usize = self.trailers.iter().flatten().map(|(name, value)| name.as_str().len() + value.len()).sum();
        2 * frames + trailers + texts + 64
    }
}

impl Input<'_> {
    /// `None` for what is no request.
    fn request(&self) -> Option<Request<Flow>> {
        let mut frames: VecDeque<_> =
            self.frames.iter().map(|data| Frame::data(Bytes::copy_from_slice(data))).collect();
        if let Some(trailers) = &self.trailers {
            let mut map = HeaderMap::new();
            for (name, value) in trailers {
                if let (Some(name), Ok(value)) = (name.name(), HeaderValue::from_bytes(value)) {
                    map.append(name, value);
                }
            }
            frames.push_back(Frame::trailers(map));
        }
        let mut request = Request::new(Flow(frames));
        *request.method_mut() = self.method.text().parse().unwrap_or_default();
        *request.uri_mut() = self.target.text().parse::<Uri>().ok()?;
        *request.version_mut() =
            [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3][usize::from(self.version % 4)];
        let headers = request.headers_mut();
        for (name, value, is_sensitive) in &self.fields {
            if let (Some(name), Ok(mut value)) = (name.name(), HeaderValue::from_bytes(value)) {
                value.set_sensitive(*is_sensitive);
                headers.append(name, value);
            }
        }
        // A map of which something was removed has an order of its own.
        for (name, ..) in self.fields.iter().take(usize::from(self.removed % 3)) {
            name.name().map(|name| headers.remove(name));
        }
        headers.remove(header::HOST);
        Some(request)
    }
}

impl Method<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Patch => "PATCH",
            Self::Raw(text) => text,
            Self::Connect => "CONNECT",
        }
    }
}

impl Name<'_> {
    fn name(&self) -> Option<HeaderName> {
        match self {
            Self::Accept => Some(header::ACCEPT),
            Self::Cookie => Some(header::COOKIE),
            Self::Authorization => Some(header::AUTHORIZATION),
            Self::Own(number) => HeaderName::try_from(format!("x-{number}")).ok(),
            Self::Raw(text) => HeaderName::from_bytes(text.as_bytes()).ok(),
        }
    }
}

impl Target<'_> {
    fn text(&self) -> String {
        match self {
            Self::Base => "https://api.apsis.one/audience/andy.demo%40apsis.com?a=%20".to_owned(),
            Self::Absolute(rest) => format!("https://api.apsis.one/{rest}"),
            Self::Origin(rest) => format!("/{rest}"),
            Self::Raw(text) => (*text).to_owned(),
            Self::Around { has_user, after } => {
                format!("https://{}api.apsis.one{after}", if *has_user { "user@" } else { "" })
            }
        }
    }
}

struct Flow(VecDeque<Frame<Bytes>>);

impl Body for Flow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn size_hint(&self) -> SizeHint {
        let lengths = self.0.iter().filter_map(Frame::data_ref).map(Bytes::len);
        let mut hint = SizeHint::new();
        hint.set_lower(lengths.sum::<usize>() as u64 / 2);
        hint
    }
}
