//! Bodies that stream: [`ReplayBody`] keeps what passes through it, [`Once`] keeps nothing.

use std::{
    any::Any,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    vec,
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::oneshot;

use crate::ReplayableBody;

pin_project! {
    /// A body that keeps what streams through it, up to the layer's limit, so that it can be sent a second time.
    ///
    /// Nothing waits: frames pass as they come. What is kept can be sent again once the body was sent to its end within the
    /// limit. It is sent as it was: the same frames, the same trailers, the same size hint. A sender that stops at the
    /// announced length has sent no trailers, and neither does the replay.
    ///
    /// A frame of less than 4 KiB of [`Bytes`] may be a small part of a large buffer, so its bytes are copied, lest the buffer
    /// be kept. Of larger ones, and of other data, a clone is kept. So the data is `Clone`, and
    /// `'static`, since its type is looked up.
    ///
    /// The service beneath the layer then takes a `Request<ReplayBody<MyBody>>`; most clients take any body.
    ///
    /// For a body type of one's own, put it on above the layer:
    ///
    /// ```
    /// use apsis_auth::{ApsisAuthLayer, ReplayBody};
    /// use tower::ServiceBuilder;
    /// use tower_http::ServiceBuilderExt;
    ///
    /// # fn build<S: Clone, MyBody: http_body::Body>(auth: ApsisAuthLayer, client: S) {
    /// let client = ServiceBuilder::new().map_request_body(ReplayBody::<MyBody>::new).layer(auth).service(client);
    /// # }
    /// ```
    pub struct ReplayBody<B>
    where
        B: Body,
    {
        #[pin]
        source: Source<B>,
    }
}

pin_project! {
    #[project = SourceProjection]
    enum Source<B>
    where
        B: Body,
    {
        First {
            #[pin]
            recorded: Recorded<B>,
        },
        Again {
            frames: vec::IntoIter<B::Data>,
            trailers: Option<HeaderMap>,
            size_hint: SizeHint,
            is_end_stream: bool,
        },
    }
}

pin_project! {
    struct Recorded<B>
    where
        B: Body,
    {
        #[pin]
        body: B,
        recorder: Option<Recorder<B::Data>>,
    }

    impl<B> PinnedDrop for Recorded<B>
    where
        B: Body,
    {
        /// A sender that knows the length may stop there, without asking whether there is more; and so may one that was
        /// told of the end only after the last frame.
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Some(recorder) = this.recorder.take()
                && (recorder.left == Some(0) || this.body.is_end_stream())
            {
                recorder.finish();
            }
        }
    }
}

impl<B: Body> ReplayBody<B> {
    /// Wraps a body. Without the layer it is sent as it is, and nothing is kept.
    pub fn new(body: B) -> Self {
        Self { source: Source::First { recorded: Recorded { body, recorder: None } } }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body,
    B::Data: Clone + 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().source.project() {
            SourceProjection::First { recorded } => recorded.poll_frame(cx),
            SourceProjection::Again { frames, trailers, size_hint, is_end_stream } => {
                let next = frames.next();
                if let Some(data) = &next {
                    shrink(size_hint, data.remaining());
                }
                let next = next.map(Frame::data).or_else(|| trailers.take().map(Frame::trailers));
                *is_end_stream = frames.len() == 0 && trailers.is_none();
                Poll::Ready(next.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::First { recorded } => recorded.body.is_end_stream(),
            Source::Again { is_end_stream, .. } => *is_end_stream,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::First { recorded } => recorded.body.size_hint(),
            Source::Again { size_hint, .. } => *size_hint,
        }
    }
}

type NextFrame<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

impl<B> Recorded<B>
where
    B: Body,
    B::Data: Clone + 'static,
{
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame<B> {
        let mut this = self.project();
        let next = ready!(this.body.as_mut().poll_frame(cx));
        // What fails or outgrows the limit loses its recorder, and with it what was kept.
        *this.recorder = match (this.recorder.take(), &next) {
            (Some(recorder), Some(Ok(frame))) => recorder.keep(frame),
            (Some(recorder), None) => recorder.finish(),
            _ => None,
        };
        if this.body.is_end_stream() {
            *this.recorder = this.recorder.take().and_then(Recorder::finish);
        }
        Poll::Ready(next)
    }
}

impl<B> ReplayableBody for ReplayBody<B>
where
    B: Body,
    B::Data: Clone + 'static,
{
    type Kept = KeptBody<B::Data>;

    fn keep(&mut self, limit: usize) -> Self::Kept {
        let (to, kept) = oneshot::channel();
        if let Source::First { recorded } = &mut self.source {
            recorded.recorder = Recorder::start(&recorded.body, limit, to);
        }
        KeptBody(kept)
    }

    fn restore(mut kept: Self::Kept) -> Option<Self> {
        let tape = kept.0.try_recv().ok()?;
        Some(Self {
            source: Source::Again {
                frames: tape.frames.into_iter(),
                trailers: tape.trailers,
                size_hint: tape.size_hint,
                is_end_stream: tape.was_end_stream,
            },
        })
    }
}

/// What is kept of a [`ReplayBody`]: nothing until it was sent to its end.
pub struct KeptBody<D>(oneshot::Receiver<Tape<D>>);

struct Tape<D> {
    frames: Vec<D>,
    trailers: Option<HeaderMap>,
    /// What the body said before its first frame, so that the replay is framed in the same way on the wire.
    size_hint: SizeHint,
    was_end_stream: bool,
}

/// Keeps the frames while they pass, and hands them over at the end. Until then they are its own: no lock.
struct Recorder<D> {
    tape: Tape<D>,
    /// How much more may be kept.
    room: usize,
    /// How much more there is, if the body said so.
    left: Option<u64>,
    to: oneshot::Sender<Tape<D>>,
}

impl<D: Buf + Clone + 'static> Recorder<D> {
    fn start<B: Body<Data = D>>(body: &B, limit: usize, to: oneshot::Sender<Tape<D>>) -> Option<Self> {
        let size_hint = body.size_hint();
        let left = size_hint.exact();
        let was_end_stream = body.is_end_stream();
        let tape = Tape { frames: Vec::new(), trailers: None, size_hint, was_end_stream };
        let recorder = Self { tape, room: limit, left, to };
        if was_end_stream { recorder.finish() } else { Some(recorder) }
    }

    /// Keeps a copy of the frame, or ends the recording: if there is no room for it, no place after trailers, or no use
    /// because the request was answered or given up meanwhile.
    fn keep(mut self, frame: &Frame<D>) -> Option<Self> {
        if self.tape.trailers.is_some() || self.to.is_closed() {
            return None;
        }
        if let Some(data) = frame.data_ref() {
            let length = data.remaining();
            // A frame costs memory however small it is.
            self.room = self.room.checked_sub(length.max(size_of::<D>()))?;
            self.left = self.left.map(|left| left.saturating_sub(length as u64));
            self.tape.frames.push(copy(data));
        } else {
            // Of a frame of a third kind nothing is known, so it ends the recording.
            let trailers = frame.trailers_ref()?;
            self.room = self.room.checked_sub(cost(trailers))?;
            self.tape.trailers = Some(trailers.clone());
        }
        Some(self)
    }
}

impl<D> Recorder<D> {
    /// The body was sent to its end: now it can be had again.
    fn finish(self) -> Option<Self> {
        // It may come too late, when the request was answered or given up.
        let _ = self.to.send(self.tape);
        None
    }
}

/// From here on a clone is kept. The buffers of hyper's connections begin at 8 KiB, so it keeps not much more than itself.
const LARGE: usize = 4 * 1024;

/// A copy of what is small, so that it holds no more memory than it is long: `Bytes` that were read from a socket share a
/// buffer of kilobytes, however few they are. A clone of anything else.
fn copy<D: Clone + 'static>(data: &D) -> D {
    let any: &dyn Any = data;
    let small = any.downcast_ref().filter(|bytes: &&Bytes| bytes.len() < LARGE);
    let mut copy = small.map(|bytes| Bytes::copy_from_slice(bytes));
    let copy: &mut dyn Any = &mut copy;
    // As a `D` again, which it is if there is one.
    copy.downcast_mut().and_then(Option::take).unwrap_or_else(|| data.clone())
}

/// What trailers count: names and values, and a field at least as much as the handles that are kept of it.
fn cost(trailers: &HeaderMap) -> usize {
    let length = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
    trailers.iter().map(|field| length(field).max(size_of::<(HeaderName, HeaderValue)>())).sum()
}

fn shrink(size_hint: &mut SizeHint, by: usize) {
    let by = by as u64;
    let upper = size_hint.upper().map(|upper| upper.saturating_sub(by));
    let mut left = SizeHint::new();
    left.set_lower(size_hint.lower().saturating_sub(by));
    if let Some(upper) = upper {
        left.set_upper(upper);
    }
    *size_hint = left;
}

pin_project! {
    /// A body that is sent once and never again: a request that carries it is not replayed.
    ///
    /// If the API rejects the token of such a request, the rejection is returned and the token renewed for the next one.
    pub struct Once<B> {
        #[pin]
        body: B,
    }
}

impl<B> Once<B> {
    /// Wraps a body.
    pub fn new(body: B) -> Self {
        Self { body }
    }
}

impl<B: Body> Body for Once<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> ReplayableBody for Once<B> {
    type Kept = ();

    fn keep(&mut self, _: usize) {}

    fn restore((): ()) -> Option<Self> {
        None
    }
}

impl<B: Body> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody").finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Once<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").finish_non_exhaustive()
    }
}

impl<D> fmt::Debug for KeptBody<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptBody").finish_non_exhaustive()
    }
}
