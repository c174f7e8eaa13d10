//! What is said in tracing, by anybody.

use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::DefaultGuard,
};

use crate::undecided;

/// Hears every span and event of every target at every level, on the thread that listens.
#[derive(Clone, Default)]
pub(crate) struct Ear(Arc<Mutex<Vec<String>>>);

impl Ear {
    pub(crate) fn listening() -> (Self, DefaultGuard) {
        undecided::install();
        let ear = Self::default();
        (ear.clone(), tracing::subscriber::set_default(ear))
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn hear(&self, metadata: &Metadata<'_>, record: impl FnOnce(&mut Said)) {
        let mut said = Said(format!("{} {} {}", metadata.level(), metadata.target(), metadata.name()));
        record(&mut said);
        self.0.lock().unwrap().push(said.0);
    }
}

impl Subscriber for Ear {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        self.hear(span.metadata(), |said| span.record(said));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        let mut said = Said(String::from("recorded later"));
        values.record(&mut said);
        self.0.lock().unwrap().push(said.0);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        self.hear(event.metadata(), |said| event.record(said));
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
