//! `/healthz`: the process runs. `/readyz`: it has a token to forward requests with.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use apsis_auth::{Snapshot, TokenHandle};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header::CONTENT_TYPE};
use serde::Serialize;
use tokio::sync::Mutex;

/// What readiness depends on.
#[derive(Clone)]
pub(crate) struct Health {
    token: TokenHandle,
    stopping: Arc<AtomicBool>,
    warming_up: Arc<Mutex<()>>,
}

impl Health {
    pub(crate) fn new(token: TokenHandle) -> Self {
        Self { token, stopping: Arc::default(), warming_up: Arc::default() }
    }

    /// From now on the gateway is not ready, whatever its token.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Gets a token, or refreshes one that is due, and waits for neither. One such task is enough, however often it is asked.
    pub(crate) fn warm_up(&self) {
        let Ok(only_one) = Arc::clone(&self.warming_up).try_lock_owned() else { return };
        let token = self.token.clone();
        tokio::spawn(async move {
            // Why it failed the layer has said, and /readyz says it for as long as it is so.
            let _ = token.warm_up().await;
            drop(only_one);
        });
    }
}

pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    stopping: bool,
    #[serde(flatten)]
    snapshot: Snapshot,
}

pub(crate) async fn readyz(State(health): State<Health>) -> Response {
    let snapshot = health.token.snapshot();
    // A gateway that is not ready may be sent no request, and without one nobody would ask for a token. When one may be asked
    // for, and that it is asked for once, is the layer's affair.
    health.warm_up();
    let stopping = health.stopping.load(Ordering::Relaxed);
    let ready = !stopping && snapshot.token.as_ref().is_some_and(|token| token.usable);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let readiness = Readiness { ready, stopping, snapshot };
    let json = serde_json::to_string(&readiness).expect("a snapshot has names for keys");
    (status, [(CONTENT_TYPE, "application/json")], json).into_response()
}
