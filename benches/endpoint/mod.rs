//! A token endpoint that takes its time.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use apsis_auth::{ApsisAuthBuilder, ApsisAuthLayer, ClientCredentials};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::sleep;
use tower::Service;

/// It issues another token each time, all of the length of the measured one, and counts.
#[derive(Clone)]
pub(crate) struct Endpoint {
    takes: Duration,
    requests: Arc<AtomicUsize>,
}

impl Endpoint {
    /// An endpoint that answers after this time.
    pub(crate) fn new(takes: Duration) -> Self {
        Self { takes, requests: Arc::default() }
    }

    /// A builder of layers for the API of this base URL that get their token here.
    pub(crate) fn builder(&self, base: &str) -> ApsisAuthBuilder {
        let credentials = ClientCredentials::new("client-id", "secret").expect("they are not empty");
        ApsisAuthLayer::builder(credentials, base).transport(self.clone())
    }

    /// How many token requests there were.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Service<Request<Full<Bytes>>> for Endpoint {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let takes = self.takes;
        Box::pin(async move {
            sleep(takes).await;
            let answer = format!(r#"{{"access_token":"{number:01024}","expires_in":86400,"token_type":"Bearer"}}"#);
            Ok(Response::new(answer.into()))
        })
    }
}
