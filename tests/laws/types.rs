//! What can be named, sent and shared.

use std::{convert::Infallible, fmt::Debug, future::Ready};

use apsis_auth::{
    AccessToken, ApsisAuth, ApsisAuthBuilder, ApsisAuthLayer, AuthError, AuthOutcome, BaseUrl, BuildError,
    ClientCredentials, Grounded, Region, Rejection, ResponseFuture, RetryAt, Snapshot, TokenHandle, TokenState,
};
use http::{Request, Response};
use http_body_util::Empty;
use tower::util::ServiceFn;

type Body = Empty<&'static [u8]>;
type Answering = ServiceFn<fn(Request<Body>) -> Ready<Result<Response<Body>, Infallible>>>;

#[test]
fn services_and_futures_are_send_and_sync_with_the_inner_ones() {
    fn check<T: Send + Sync + 'static>() {}
    check::<ApsisAuth<Answering>>();
    check::<ResponseFuture<Answering, Body>>();
}

#[test]
fn every_public_type_can_be_sent_shared_and_printed() {
    fn check<T: Send + Sync + Debug + 'static>() {}
    check::<AccessToken>();
    check::<ApsisAuthBuilder>();
    check::<ApsisAuthLayer>();
    check::<AuthError>();
    check::<AuthOutcome>();
    check::<BaseUrl>();
    check::<BuildError>();
    check::<ClientCredentials>();
    check::<Grounded>();
    #[cfg(feature = "client")]
    check::<apsis_auth::HttpsTransport>();
    check::<Region>();
    check::<Rejection>();
    check::<ResponseFuture<Answering, Body>>();
    check::<RetryAt>();
    check::<Snapshot>();
    check::<TokenHandle>();
    check::<TokenState>();
}
