//! The default HTTPS transport of token requests.

use std::{fmt, future::Future, pin::Pin, task::Context, task::Poll, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::RootCertStore;
use tower::{BoxError, Service};

use crate::{BuildError, tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The transport that token requests take unless the builder is given another one: HTTP/1.1 over hyper and rustls. It is
/// made for them alone.
///
/// Servers are trusted by the platform's root certificates (on Linux, `SSL_CERT_FILE` and `SSL_CERT_DIR` name others)
/// and those that are added. It takes 5 seconds for a TCP connection at most, follows no redirect, and keeps no connection: token
/// requests are a day apart, and a connection would belong to one runtime.
///
/// To trust one more certificate, of a gateway or of the emulator:
///
/// ```no_run
/// use apsis_auth::{ApsisAuthLayer, ClientCredentials, HttpsTransport};
///
/// # fn build(credentials: ClientCredentials) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let transport = HttpsTransport::trusting(&std::fs::read("gateway.pem")?)?;
/// let auth = ApsisAuthLayer::builder(credentials, "https://apsis.example").transport(transport).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HttpsTransport(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpsTransport {
    /// A transport that trusts the platform's root certificates. Reads them anew.
    ///
    /// # Errors
    ///
    /// [`BuildError::RootCertificates`] if there are none.
    pub fn new() -> Result<Self, BuildError> {
        Ok(Self::with(tls::with_platform_roots(RootCertStore::empty())?))
    }

    /// A transport that trusts these certificates (PEM, one or more) beside the platform's.
    ///
    /// # Errors
    ///
    /// [`BuildError::Certificate`] if a certificate cannot be read, or if there is none.
    pub fn trusting(pem: &[u8]) -> Result<Self, BuildError> {
        Ok(Self::with(tls::with_platform_roots(tls::roots_in(pem)?)?))
    }

    /// For an origin on this machine that speaks plain HTTP: trusts no certificate.
    pub(crate) fn plain() -> Self {
        Self::with(RootCertStore::empty())
    }

    fn with(roots: RootCertStore) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config(roots))
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector))
    }
}

impl Service<Request<Full<Bytes>>> for HttpsTransport {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        let answer = self.0.request(request);
        Box::pin(async move { Ok(answer.await?) })
    }
}

impl fmt::Debug for HttpsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpsTransport").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_says_what_it_is() {
        assert_eq!(format!("{:?}", HttpsTransport::plain()), "HttpsTransport { .. }");
    }
}
