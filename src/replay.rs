//! What is kept of a request body so that the request can be sent again.
//!
//! ```
//! use apsis_auth::ReplayableBody;
//! use http_body_util::Full;
//!
//! let mut body = Full::new(bytes::Bytes::from("profile"));
//! let kept = body.keep(128 * 1024);
//! drop(body);
//! assert!(Full::restore(kept).is_some());
//! ```

use std::mem;

use bytes::{Buf, Bytes};
use http_body_util::{
    Empty, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};

use crate::replay_body::{KeptBody, ReplayBody};

/// A request body of which enough can be kept to send it a second time.
///
/// | body | what is kept |
/// | --- | --- |
/// | [`Full`], [`Bytes`], [`Empty`], `()` | a clone, whatever its size; of [`Bytes`] it shares the memory |
/// | [`String`] | a copy, if it is within the limit |
/// | [`BoxBody`], [`UnsyncBoxBody`] | what streams through, up to the limit |
/// | `axum::body::Body` (feature `axum`), `reqwest::Body` (feature `reqwest`) | the same; a reqwest body that is in memory: a clone |
/// | any other | [`ReplayBody`] keeps what streams through; [`Once`](crate::Once) nothing |
///
/// The same type goes in and comes out, so a client needs no change for a body of the first four rows. For the last, put
/// the wrapper on above the layer, with tower-http's `map_request_body(ReplayBody::new)`.
///
/// The limit is that of the builder's [`replay_limit`](crate::ApsisAuthBuilder::replay_limit).
///
/// For a body of one's own that is cheap to clone:
///
/// ```
/// use apsis_auth::ReplayableBody;
///
/// #[derive(Clone)]
/// struct Form(std::sync::Arc<[u8]>);
///
/// impl ReplayableBody for Form {
///     type Kept = Self;
///
///     fn keep(&mut self, _limit: usize) -> Self {
///         self.clone()
///     }
///
///     fn restore(kept: Self) -> Option<Self> {
///         Some(kept)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is a body that the layer cannot send a second time as it is",
    label = "no `ReplayableBody`",
    note = "wrap it above the layer: `.map_request_body(apsis_auth::ReplayBody::new)` keeps what streams through it, \
            `.map_request_body(apsis_auth::Once::new)` sends it once and never again (tower-http's `ServiceBuilderExt`)",
    note = "for axum's and reqwest's body there are the features `axum` and `reqwest`"
)]
pub trait ReplayableBody: Sized {
    /// What is kept while the body is on its way. A request that is spawned needs it to be `Send`.
    type Kept;

    /// What is kept of the body, which is sent next. It may copy at most `limit` bytes; memory that it shares with the body does
    /// not count. Not called without replay.
    ///
    /// Afterwards the body yields what it would have yielded. One that keeps what streams through it becomes one that does
    /// so here; what cannot be changed in place is taken by [`mem::take`] or [`mem::replace`] and put back changed, and is
    /// not polled in between.
    fn keep(&mut self, limit: usize) -> Self::Kept;

    /// The body as it was when it was kept, or `None` if it cannot be had again: then the request is not replayed, and its
    /// answer says [`NotReplayable`](crate::AuthOutcome::NotReplayable).
    ///
    /// Called at most once, after the request that carried the body was rejected.
    fn restore(kept: Self::Kept) -> Option<Self>;
}

macro_rules! by_clone {
    ($([$($generics:tt)*] $body:ty),+ $(,)?) => {$(
        impl<$($generics)*> ReplayableBody for $body {
            type Kept = Self;

            fn keep(&mut self, _: usize) -> Self {
                self.clone()
            }

            fn restore(kept: Self) -> Option<Self> {
                Some(kept)
            }
        }
    )+};
}

by_clone!([] (), [] Bytes, [D: Buf + Clone] Full<D>);

impl ReplayableBody for String {
    type Kept = Option<Self>;

    fn keep(&mut self, limit: usize) -> Option<Self> {
        (self.len() <= limit).then(|| self.clone())
    }

    fn restore(kept: Option<Self>) -> Option<Self> {
        kept
    }
}

impl<D> ReplayableBody for Empty<D> {
    type Kept = ();

    fn keep(&mut self, _: usize) {}

    fn restore((): ()) -> Option<Self> {
        Some(Self::new())
    }
}

macro_rules! by_recording {
    ($([$($generics:tt)*] $body:ty, $data:ty),+ $(,)?) => {$(
        impl<$($generics)*> ReplayableBody for $body {
            type Kept = KeptBody<$data>;

            fn keep(&mut self, limit: usize) -> Self::Kept {
                let mut body = ReplayBody::new(mem::take(self));
                let kept = body.keep(limit);
                *self = Self::new(body);
                kept
            }

            fn restore(kept: Self::Kept) -> Option<Self> {
                ReplayBody::<Self>::restore(kept).map(Self::new)
            }
        }
    )+};
}

by_recording!(
    [D: Buf + Clone + Send + Sync + 'static, E: 'static] BoxBody<D, E>, D,
    [D: Buf + Clone + Send + 'static, E: 'static] UnsyncBoxBody<D, E>, D,
);

#[cfg(feature = "axum")]
by_recording!([] axum_core::body::Body, Bytes);

#[cfg(feature = "reqwest")]
impl ReplayableBody for reqwest::Body {
    type Kept = Result<Bytes, KeptBody<Bytes>>;

    /// A body that is in memory stays one, which reqwest itself may send again when a connection fails.
    fn keep(&mut self, limit: usize) -> Self::Kept {
        match in_memory(mem::take(self)) {
            Ok(bytes) => {
                *self = Self::from(bytes.clone());
                Ok(bytes)
            }
            Err(body) => {
                let mut body = ReplayBody::new(body);
                let kept = body.keep(limit);
                *self = Self::wrap(body);
                Err(kept)
            }
        }
    }

    fn restore(kept: Self::Kept) -> Option<Self> {
        match kept {
            Ok(bytes) => Some(bytes.into()),
            Err(kept) => ReplayBody::<Self>::restore(kept).map(Self::wrap),
        }
    }
}

/// The bytes of a body that is in memory, shared and not copied: its only frame, which is there at once.
#[cfg(feature = "reqwest")]
fn in_memory(mut body: reqwest::Body) -> Result<Bytes, reqwest::Body> {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use http_body::Body;

    if body.as_bytes().is_none() {
        return Err(body);
    }
    match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
        _ => Ok(Bytes::new()),
    }
}
