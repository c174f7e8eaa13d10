//! One process of the fleet.

use std::time::Duration;

use apsis_auth::{ApsisAuthLayer, ClientCredentials, FileStore, TokenHandle};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tower::{BoxError, Layer, ServiceExt};

/// What a process says of itself, a line each time.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Report {
    /// Whether another process had asked for the token; `None` while there is none.
    pub(crate) adopted: Option<bool>,
    /// How many tokens it had.
    pub(crate) generation: u64,
    pub(crate) served: u64,
    pub(crate) failed: u64,
    pub(crate) last_error: Option<String>,
}

/// Sends requests until it is killed.
pub(crate) async fn run(base: &str, store: Option<&str>) -> Result<(), BoxError> {
    let mut auth = ApsisAuthLayer::builder(ClientCredentials::from_env()?, base);
    // The one line that makes it one of a fleet.
    if let Some(folder) = store {
        auth = auth.store(FileStore::new(folder));
    }
    let auth = auth.build()?;
    let client = auth.layer(Client::builder(TokioExecutor::new()).build_http());
    let mut report = Report::default();
    loop {
        let request = Request::get(format!("{base}/audience/keyspaces")).body(Full::<Bytes>::default())?;
        match client.clone().oneshot(request).await {
            Ok(answer) if answer.status().is_success() => report.served += 1,
            Ok(answer) => report.fails(format!("the API answered {}", answer.status())),
            Err(error) => report.fails(error.to_string()),
        }
        report.look_at(&auth.handle());
        println!("{}", serde_json::to_string(&report)?);
        sleep(Duration::from_millis(100)).await;
    }
}

impl Report {
    fn fails(&mut self, why: String) {
        self.failed += 1;
        self.last_error = Some(why);
    }

    fn look_at(&mut self, handle: &TokenHandle) {
        let token = handle.snapshot().token;
        self.adopted = token.as_ref().map(|token| token.adopted);
        self.generation = token.map_or(0, |token| token.generation);
    }
}
