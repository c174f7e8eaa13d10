//! A token endpoint on a loopback port, with a path for each peer, and how often each was asked.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::measure::token;

/// Gives everybody the same token, valid for a day.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl Endpoint {
    /// Answers while the runtime is driven.
    pub(crate) fn new(runtime: &Runtime) -> Self {
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        let endpoint = Self { address, asked: Arc::default() };
        runtime.spawn(endpoint.clone().serve(listener));
        endpoint
    }

    /// The URL whose requests count as `peer`'s.
    pub(crate) fn url(&self, peer: &str) -> String {
        format!("http://{}/{peer}", self.address)
    }

    /// The answer to a token request of `peer`, without a connection.
    pub(crate) fn answer(&self, peer: &str) -> String {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        *asked.entry(peer.to_owned()).or_default() += 1;
        format!(r#"{{"access_token":"{}","token_type":"Bearer","expires_in":86400,"ext_expires_in":86400}}"#, token())
    }

    /// How many token requests `peer` made.
    pub(crate) fn asked(&self, peer: &str) -> usize {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(peer).copied().unwrap_or_default()
    }

    /// Whether everybody who asked did so once.
    pub(crate) fn asked_once(&self) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).values().all(|&times| times == 1)
    }

    async fn serve(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let endpoint = self.clone();
            tokio::spawn(http1::Builder::new().serve_connection(
                TokioIo::new(stream),
                service_fn(move |request: Request<Incoming>| {
                    let peer = request.uri().path().split('/').nth(1).unwrap_or_default();
                    let answer = Full::<Bytes>::from(endpoint.answer(peer));
                    async {
                        Response::builder()
                            .header(header::CONTENT_TYPE, "application/json")
                            .body(answer)
                            .map_err(|_| -> Infallible { unreachable!("a content type is a header value") })
                    }
                }),
            ));
        }
    }
}
