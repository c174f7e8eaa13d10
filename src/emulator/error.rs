/// Tells why an [`Emulator`](super::Emulator) gave no answer, or not all of it.
///
/// Over a socket the client sees none of these but a connection that closes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatorError {
    /// The connection was closed without an answer, as scripted.
    #[error("connection closed without an answer")]
    Closed,
    /// The answer's body ended before it was complete, as scripted.
    #[error("body ended in midway")]
    Truncated,
    /// The request's body could not be read.
    #[error("request body failed")]
    RequestBody(#[source] tower::BoxError),
}
