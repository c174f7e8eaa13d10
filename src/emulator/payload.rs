//! The body of a request, read within bounds.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tower::BoxError;

use super::EmulatorError;

/// The largest body that APSIS One takes.
const LIMIT: usize = 100_000;
/// How much is read and thrown away beyond that. A server that stops reading closes the connection,
/// and then the client may see that instead of the 413.
const PATIENCE: usize = 10 * LIMIT;

pub(super) enum Payload {
    Whole(Bytes),
    TooLarge,
}

impl Payload {
    pub(super) fn unread() -> Self {
        Self::Whole(Bytes::new())
    }
}

pub(super) async fn read<B>(body: B) -> Result<Payload, EmulatorError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let mut body = pin!(body);
    let mut kept = BytesMut::new();
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| EmulatorError::RequestBody(error.into()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length = length.saturating_add(bytes::Buf::remaining(&data));
        if length <= LIMIT {
            bytes::BufMut::put(&mut kept, data);
        } else if length > PATIENCE {
            break;
        }
    }
    Ok(if length <= LIMIT { Payload::Whole(kept.freeze()) } else { Payload::TooLarge })
}
