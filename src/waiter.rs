//! Waiting for a token: for a flight to end, for a grounding to end, or until patience does.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

use crate::{
    AuthError, Rejection,
    cache::{Found, Outcome, TokenCache},
    token::Token,
};

/// What a waiter is after.
#[derive(Clone, Copy)]
pub(crate) enum Want {
    /// Any good token.
    Good,
    /// A token newer than this generation, which was rejected.
    Newer(u64, Rejection),
    /// Whatever the next flight brings.
    Forced,
}

impl TokenCache {
    /// A good token: the one at hand, or what a flight brings.
    ///
    /// Waits at most as long as the limits say. Dropping the future changes nothing for anybody else.
    pub(crate) async fn get(self: Arc<Self>) -> Outcome {
        match self.good_token() {
            Some(token) => Ok(token),
            None => self.wait(Want::Good, self.limits.max_wait).await,
        }
    }

    /// Waits for a good token as long as the patience lasts, and returns what is left of that.
    pub(crate) async fn wait_for_good(self: Arc<Self>, patience: Duration) -> Result<Duration, AuthError> {
        let asked = Instant::now();
        self.wait(Want::Good, patience).await?;
        Ok(patience.saturating_sub(asked.elapsed()))
    }

    /// A token from a flight of its own or the one under way, whatever is at hand and however grounded.
    pub(crate) async fn force(self: Arc<Self>) -> Outcome {
        self.wait(Want::Forced, self.limits.max_wait).await
    }

    /// Replaces the token of this generation, which the API rejected, unless that was done already.
    ///
    /// Waits as long as the patience lasts, and returns what is left of that.
    pub(crate) async fn renew(
        self: Arc<Self>,
        generation: u64,
        kind: Rejection,
        patience: Duration,
    ) -> Result<Duration, AuthError> {
        let asked = Instant::now();
        self.rejected(generation, kind);
        let token = self.wait(Want::Newer(generation, kind), patience).await?;
        // A flight of another reason may have brought it; the replay puts it to the test all the same.
        self.try_out(&token, kind);
        Ok(patience.saturating_sub(asked.elapsed()))
    }

    async fn wait(self: &Arc<Self>, want: Want, patience: Duration) -> Outcome {
        // Timers need a runtime just as the flight does, and panic without one.
        Handle::try_current().map_err(|_| AuthError::NoRuntime)?;
        let mut give_up_at = None;
        loop {
            // Heeds what lands from here on, before the look at what there is.
            let landed = self.landed.notified();
            let found = self.find_or_fly(want)?;
            // From after the look: a flight that it started, with as much time as the waiter, then ends first.
            let give_up_at = *give_up_at.get_or_insert_with(|| Instant::now() + patience);
            match found {
                Found::Token(token) => return Ok(token),
                Found::Grounded(grounding) if grounding.outlasts(give_up_at) => return Err(grounding.error),
                Found::Grounded(grounding) => {
                    let _ = timeout_at(grounding.until, landed).await;
                }
                Found::Flight(mut flight) => {
                    // Who may wait to the end of the flight hears what came of it, and not just that time is up.
                    let lost_at = flight.lost_at();
                    let until = if give_up_at < flight.lands_by { give_up_at } else { lost_at };
                    match timeout_at(until, flight.outcome.wait_for(Option::is_some)).await {
                        Ok(outcome) => {
                            let outcome = outcome.ok().and_then(|outcome| outcome.clone());
                            match outcome.unwrap_or(Err(AuthError::Interrupted)) {
                                // No attempt was made: whether that is worth waiting for is decided by the look at what there is.
                                Err(AuthError::OutOfBudget { .. } | AuthError::Paused { .. })
                                    if !(want.is_forced() && flight.is_forced) => {}
                                // It was started by a rejection, and only to look. Others may have other ladders, or none.
                                Err(AuthError::CoolingDown { .. }) => {}
                                outcome => return want.accept(outcome?),
                            }
                        }
                        Err(_) if until == lost_at => {}
                        Err(_) => return Err(AuthError::TimedOut { after: self.limits.max_wait }),
                    }
                }
            }
        }
    }
}

impl Want {
    fn is_forced(self) -> bool {
        matches!(self, Self::Forced)
    }

    fn accept(self, token: Arc<Token>) -> Outcome {
        match self {
            Self::Newer(rejected, _) if token.generation() <= rejected => Err(AuthError::SameToken),
            _ => Ok(token),
        }
    }
}
