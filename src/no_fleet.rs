//! What a flight knows of a fleet where the feature `store` is not there to make one.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::Instant;

use crate::{
    clock::Clock,
    flight::FlightError,
    token::{IssuedToken, Token},
};

pub(crate) type Lease = Infallible;

pub(crate) enum Fleet {}

pub(crate) enum Turn {}

#[expect(dead_code, reason = "nobody gives one")]
pub(crate) enum Permit {
    Adopt(IssuedToken),
    Ask(Option<Lease>),
    Wait(Instant, Option<StatusCode>),
}

impl Fleet {
    pub(crate) fn turn(self: &Arc<Self>, _: Option<Arc<Token>>, _: bool) -> Turn {
        match **self {}
    }

    pub(crate) fn operation_timeout(&self) -> Duration {
        match *self {}
    }
}

#[expect(clippy::unused_async, reason = "as the real one")]
impl Turn {
    pub(crate) async fn begin(&mut self, _: bool, _: &Clock) -> Option<IssuedToken> {
        match *self {}
    }

    pub(crate) async fn permit(&mut self, _: &Clock) -> Permit {
        match *self {}
    }

    pub(crate) fn give_back(&self, _: Lease) {
        match *self {}
    }

    pub(crate) async fn end(&self, _: Option<Lease>, _: &mut Result<IssuedToken, FlightError>, _: &Clock) {
        match *self {}
    }
}
