//! What is kept of a request body so that the request can be sent again.

use bytes::{Buf, Bytes};
use http_body_util::{Empty, Full};

/// A request body of which enough can be kept to send it a second time.
///
/// Implemented for bodies that can be cloned: [`Full`], [`Empty`], [`String`], [`Bytes`] and `()`. A clone of `Full`
/// and `Bytes` shares the memory; that of a `String` is a copy.
///
/// A body type of one's own implements it in two lines if it is `Clone`:
///
/// ```
/// use apsis_auth::ReplayableBody;
///
/// #[derive(Clone)]
/// struct Json(bytes::Bytes);
///
/// impl ReplayableBody for Json {
///     type Kept = Self;
///
///     fn keep(self) -> (Self, Self) {
///         (self.clone(), self)
///     }
///
///     fn restore(kept: Self) -> Option<Self> {
///         Some(kept)
///     }
/// }
/// ```
pub trait ReplayableBody: Sized {
    /// What is kept while the body is on its way.
    type Kept;

    /// Gives the body back together with what is kept of it.
    fn keep(self) -> (Self, Self::Kept);

    /// The body as it was when it was kept, or `None` if it cannot be had again; then the request is not replayed.
    ///
    /// Called at most once, after the request that carried the body was rejected.
    fn restore(kept: Self::Kept) -> Option<Self>;
}

macro_rules! by_clone {
    ($([$($generics:tt)*] $body:ty),+ $(,)?) => {$(
        impl<$($generics)*> ReplayableBody for $body {
            type Kept = Self;

            fn keep(self) -> (Self, Self) {
                (self.clone(), self)
            }

            fn restore(kept: Self) -> Option<Self> {
                Some(kept)
            }
        }
    )+};
}

by_clone!([] (), [] Bytes, [] String, [D: Buf + Clone] Full<D>);

impl<D> ReplayableBody for Empty<D> {
    type Kept = ();

    fn keep(self) -> (Self, ()) {
        (self, ())
    }

    fn restore((): ()) -> Option<Self> {
        Some(Self::new())
    }
}
