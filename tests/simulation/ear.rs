//! Law 31: who listens to everything that is said hears no secret.

use std::{
    fmt::{Debug, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::DefaultGuard,
};

use crate::{luck::OPAQUE, probe::Trace, undecided};

/// Hears every span and event of every target at every level, on this thread.
pub(crate) struct Ear {
    secret: Arc<OnceLock<String>>,
    said: Arc<AtomicU64>,
    trace: Trace,
}

impl Ear {
    /// Until the guard is dropped. It counts what is said.
    pub(crate) fn listening(secret: &Arc<OnceLock<String>>, said: &Arc<AtomicU64>, trace: &Trace) -> DefaultGuard {
        undecided::install();
        tracing::subscriber::set_default(Self {
            secret: Arc::clone(secret),
            said: Arc::clone(said),
            trace: trace.clone(),
        })
    }

    fn hear(&self, record: impl FnOnce(&mut Said)) {
        let mut said = Said(String::new());
        record(&mut said);
        self.said.fetch_add(1, Ordering::Relaxed);
        // How each JWT begins, the opaque tokens of the script, the secret.
        let secret = self.secret.get().map_or(OPAQUE, String::as_str);
        for secret in ["eyJ", OPAQUE, secret] {
            self.trace.promise(!said.0.contains(secret), format_args!("a secret is said: {}", said.0));
        }
    }
}

impl Subscriber for Ear {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        self.hear(|said| span.record(said));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        self.hear(|said| values.record(said));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        self.hear(|said| event.record(said));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Said(String);

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}
