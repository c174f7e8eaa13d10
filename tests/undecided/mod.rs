//! For tests that listen to tracing, each on a thread of its own, in one process.

use std::sync::Once;

use tracing::{Event, Metadata, Subscriber, span, subscriber::Interest};

/// Lets each thread decide by itself what it hears.
///
/// What is of interest is remembered for all threads. With a single subscriber alive it is decided by whichever thread comes
/// first, be it one that listens to nothing.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Undecided).unwrap());
}

/// Asked each time, and never interested.
struct Undecided;

impl Subscriber for Undecided {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
