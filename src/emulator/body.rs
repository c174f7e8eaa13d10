//! The body of an answer: whole, cut off, dripping or silent.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::EmulatorError;

/// Is the body of an [`Emulator`](super::Emulator)'s answer.
///
/// Most are one chunk of known size. A scripted one may end in an error, be endless, or say nothing
/// for ever.
pub struct EmulatorBody {
    kind: Kind,
}

enum Kind {
    Whole(Bytes),
    Cut(Bytes),
    /// What comes after the bytes of `Cut`.
    Pause,
    End,
    Drip {
        interval: Duration,
        next: Option<Pin<Box<Sleep>>>,
    },
    Silent,
}

impl EmulatorBody {
    pub(super) fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { kind: Kind::Whole(bytes.into()) }
    }

    pub(super) fn cut_after(bytes: Bytes) -> Self {
        Self { kind: Kind::Cut(bytes) }
    }

    pub(super) fn drip(interval: Duration) -> Self {
        Self { kind: Kind::Drip { interval, next: None } }
    }

    pub(super) fn silent() -> Self {
        Self { kind: Kind::Silent }
    }
}

type PollFrame = Poll<Option<Result<Frame<Bytes>, EmulatorError>>>;

impl Body for EmulatorBody {
    type Data = Bytes;
    type Error = EmulatorError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PollFrame {
        match &mut self.kind {
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Cut(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Pause;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            // A server flushes when the body makes it wait. Failing at once would throw away the
            // head and the bytes that the client shall see before the end.
            Kind::Pause => {
                self.kind = Kind::End;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Kind::End => {
                self.kind = Kind::Whole(Bytes::new());
                Poll::Ready(Some(Err(EmulatorError::Truncated)))
            }
            Kind::Drip { interval, next } => poll_drip(*interval, next, cx),
            Kind::Silent => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.kind, Kind::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

/// The byte is a space: it may stand before any JSON, so a client has no other reason to give up.
fn poll_drip(interval: Duration, next: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> PollFrame {
    let wait = next.get_or_insert_with(|| Box::pin(sleep(interval)));
    ready!(wait.as_mut().poll(cx));
    *next = None;
    Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))))
}

impl fmt::Debug for EmulatorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmulatorBody").finish_non_exhaustive()
    }
}
