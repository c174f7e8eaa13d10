//! What the layer takes of the memory: by itself, for each request in flight, and for a body that is kept for a replay.
//!
//! ```sh
//! cargo bench --bench memory
//! ```
//!
//! Bytes and blocks are those that were asked of the allocator, counted by one that wraps the system's. They do not depend
//! on the machine's speed and are the same in each run.
//!
//! - A layer: what is held once it has a token of 1 KiB, apart from what its transport holds. A service, a clone.
//! - Sizes: of the service and its response future over hyper-util's client, against what the future cannot do without to
//!   replay a request: the client's own future and a clone of the client.
//! - A request in flight: 10,000 requests, each of which the API keeps and does not answer, and of which the future is in a
//!   block; less the same by a service that adds a header that never changes. The service beneath has the size of
//!   hyper-util's client, since a clone of it is kept. All requests share the payload of their bodies.
//! - A body of 64 KiB that streams in frames of 8 KiB, which share a block as if read from a file at once: what is taken
//!   from the call to the answer. The API reads the body and rejects nothing. Each of a thousand requests takes the same,
//!   and that the payload is not copied is seen in a replay: its frames are at the same place in memory.

#[expect(dead_code, reason = "requests are sent that are not answered at once")]
mod measure;

mod allocator;
mod endpoint;
mod figures;

use std::{
    convert::Infallible,
    fmt,
    future::poll_fn,
    io,
    iter::repeat_with,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
    vec,
};

use apsis_auth::{ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, ReplayBody};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::Frame;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, Service, ServiceExt, service_fn};

use crate::{
    allocator::{Blocks, held, taken},
    endpoint::Endpoint,
    figures::Figures,
    measure::{Api, Body, StaticHeader, request},
};

type HyperClient = Client<HttpConnector, Body>;

const BASE: &str = "https://api.apsis.one";

const IN_FLIGHT: usize = 10_000;
const STREAMED: usize = 1_000;
const FRAMES: usize = 8;
const FRAME: usize = 8 * 1024;

fn main() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let mut figures = Figures::new("memory", &["what", "figure", "unit"]);
    add_layer(&mut figures, &runtime);
    add_sizes(&mut figures);
    add_requests_in_flight(&mut figures, &runtime);
    add_streamed_body(&mut figures, &runtime);
    figures.report()
}

fn add_layer(figures: &mut Figures, runtime: &Runtime) {
    let endpoint = Endpoint::new(Duration::ZERO);
    // What the first layer of a process leaves behind is not the second one's.
    warm(runtime, endpoint.builder(BASE));
    let (layer, of_layer) = held(|| warm(runtime, endpoint.builder(BASE)));
    add_blocks(figures, "layer with a token", of_layer, 1);
    let service = layer.layer(Api);
    let (_clone, of_clone) = held(|| service.clone());
    add_blocks(figures, "clone of a service", of_clone, 1);
}

fn warm(runtime: &Runtime, builder: ApsisAuthBuilder) -> ApsisAuthLayer {
    let layer = builder.build().expect("the settings are the default ones");
    runtime.block_on(layer.handle().warm_up()).expect("the endpoint always has a token");
    layer
}

fn add_sizes(figures: &mut Figures) {
    type FutureOf<S> = <S as Service<Request<Body>>>::Future;

    let (client, inner) = (size_of::<HyperClient>(), size_of::<FutureOf<HyperClient>>());
    let future = size_of::<FutureOf<ApsisAuth<HyperClient>>>();
    let mut add = |what: &str, size: usize| figures.add([what.to_owned(), size.to_string(), "bytes".to_owned()]);
    add("size of hyper-util's client", client);
    add("size of the service over it", size_of::<ApsisAuth<HyperClient>>());
    add("size of the client's future", inner);
    add("size of the response future over it", future);
    add("size beyond the client's future and a client", future - inner - client);
    assert!(future - inner - client <= 192, "it is small beside what it cannot do without");
}

// Requests in flight.

fn add_requests_in_flight(figures: &mut Figures, runtime: &Runtime) {
    let endpoint = Endpoint::new(Duration::ZERO);
    let fixed = held_in_flight(&StaticHeader::new(Silent::new()));
    let without_replay = warm(runtime, endpoint.builder(BASE).without_replay()).layer(Silent::new());
    let with_replay = warm(runtime, endpoint.builder(BASE)).layer(Silent::new());
    add_blocks(figures, "request in flight by a static header", fixed, IN_FLIGHT);
    add_blocks(figures, "added without replay", held_in_flight(&without_replay) - fixed, IN_FLIGHT);
    add_blocks(figures, "added with replay", held_in_flight(&with_replay) - fixed, IN_FLIGHT);
}

/// What requests hold that were sent and are not answered.
fn held_in_flight<S>(service: &S) -> Blocks
where
    S: Service<Request<Body>, Response = Response<()>, Error: fmt::Debug> + Clone,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut send = || {
        let mut service = service.clone();
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut future = Box::pin(service.call(request(Bytes::from_static(&[b'x'; 1024]))));
        assert!(future.as_mut().poll(&mut cx).is_pending());
        future
    };
    let mut futures = Vec::with_capacity(IN_FLIGHT);
    // What the first one makes is there for all.
    let _first = send();
    let ((), held) = held(|| futures.extend(repeat_with(send).take(IN_FLIGHT)));
    held
}

/// It keeps a request and does not answer. It is as large as a client.
#[derive(Clone)]
struct Silent {
    _client: HyperClient,
}

impl Silent {
    fn new() -> Self {
        Self { _client: Client::builder(TokioExecutor::new()).build_http() }
    }
}

impl Service<Request<Body>> for Silent {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Kept;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Kept {
        assert!(request.headers().contains_key(AUTHORIZATION));
        Kept { _request: request }
    }
}

struct Kept {
    _request: Request<Body>,
}

impl Future for Kept {
    type Output = Result<Response<()>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Pending
    }
}

// A body that streams.

fn add_streamed_body(figures: &mut Figures, runtime: &Runtime) {
    let endpoint = Endpoint::new(Duration::ZERO);
    let layer = warm(runtime, endpoint.builder(BASE));
    assert_is_shared(runtime, &layer);
    assert_eq!(endpoint.requests(), 2);
    let api = || service_fn(async |request| Ok::<_, Infallible>(read(request).await.0));
    let bare = taken_by_streamed(&mut api());
    let kept = taken_by_streamed(&mut layer.layer(api()));
    assert!(kept.bytes - bare.bytes < FRAME.cast_signed() as i64, "less than a frame is taken for all of them");
    add_blocks(figures, "streamed body of 64 KiB without the layer", bare, 1);
    add_blocks(figures, "added to keep it for a replay", kept - bare, 1);
}

/// A replay has the frames of what was sent first, at the same place.
fn assert_is_shared(runtime: &Runtime, layer: &ApsisAuthLayer) {
    let places = Arc::new(Mutex::new(Vec::new()));
    let api = service_fn(async |request| {
        let (mut answer, frames) = read(request).await;
        let mut places = places.lock().expect("nobody panics under it");
        places.push(frames);
        if places.len() == 1 {
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
        }
        Ok::<_, Infallible>(answer)
    });
    let answer = runtime.block_on(layer.layer(api).oneshot(streamed())).expect("the API answers");
    assert_eq!(answer.status(), StatusCode::OK);
    let places = places.lock().expect("nobody panics under it");
    let [first, replay] = &places[..] else { panic!("a request and its replay") };
    assert_eq!(first.len(), FRAMES);
    assert_eq!(first, replay);
}

/// What each of many requests takes, from the call to the answer.
fn taken_by_streamed<S>(service: &mut S) -> Blocks
where
    S: Service<Request<ReplayBody<Streamed>>, Response = Response<()>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut takes = || {
        let request = streamed();
        assert!(service.poll_ready(&mut cx).is_ready());
        let (is_answered, blocks) = taken(|| matches!(pin!(service.call(request)).poll(&mut cx), Poll::Ready(Ok(_))));
        assert!(is_answered);
        blocks
    };
    // What the first one makes is there for all.
    takes();
    let each = takes();
    for _ in 1..STREAMED {
        assert_eq!(takes(), each);
    }
    each
}

fn streamed() -> Request<ReplayBody<Streamed>> {
    let payload = Bytes::from(vec![b'x'; FRAMES * FRAME]);
    let frames: Vec<_> = (0..FRAMES).map(|number| payload.slice(number * FRAME..(number + 1) * FRAME)).collect();
    request(Bytes::new()).map(|_| ReplayBody::new(Streamed { frames: frames.into_iter() }))
}

/// Reads the body as a client does that sends it. Answers with 200, and says where each frame was.
async fn read<B: http_body::Body<Data = Bytes>>(request: Request<B>) -> (Response<()>, [usize; FRAMES]) {
    let mut body = pin!(request.into_body());
    let mut places = [0; FRAMES];
    let mut number = 0;
    while let Some(Ok(frame)) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        places[number] = frame.into_data().map_or(0, |data| data.as_ptr().addr());
        number += 1;
    }
    assert_eq!(number, FRAMES);
    (Response::new(()), places)
}

/// It does not say how long it is.
struct Streamed {
    frames: vec::IntoIter<Bytes>,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.frames.next().map(|data| Ok(Frame::data(data))))
    }
}

/// Adds what each of so many holds or takes.
fn add_blocks(figures: &mut Figures, what: &str, blocks: Blocks, of: usize) {
    for (figure, unit) in [(blocks.number, "blocks"), (blocks.bytes, "bytes")] {
        let of = of.cast_signed() as i64;
        let rounded = (figure + of / 2).div_euclid(of);
        figures.add([what.to_owned(), rounded.to_string(), unit.to_owned()]);
    }
}
