//! Scripted answers.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use super::{EmulatorBody, answers};

/// The head of a token answer, for the one that is cut off.
const CUT_JSON: &[u8] = b"{\"access_token\":\"";
/// How many bytes of a body that is cut off are promised and not sent.
const MISSING: usize = 1_000;

/// Says what one request is answered, in place of what would be usual.
///
/// For [`Emulator::script_token_answers`](super::Emulator::script_token_answers) and
/// [`Emulator::script_api_answers`](super::Emulator::script_api_answers). Unless said otherwise it
/// is given when the request's body has been read to its end, after no delay but the endpoint's own.
#[derive(Clone)]
pub struct Answer {
    says: Says,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Option<Bytes>,
    pub(super) delay: Duration,
    pub(super) is_early: bool,
}

#[derive(Clone)]
enum Says {
    Genuine,
    Status(StatusCode),
    TooManyRequests,
    Token(String),
    Truncated,
    Drip(Duration),
    HangInBody,
    Hang,
    Close,
}

/// What comes of an answer when its delay is over.
pub(super) enum Outcome {
    Respond(Response<EmulatorBody>),
    Hang,
    Close,
}

impl Answer {
    /// Answers what would have been answered without a script.
    #[must_use]
    pub fn genuine() -> Self {
        Self::new(Says::Genuine)
    }

    /// Answers with this status, no body and no header but `Date`.
    #[must_use]
    pub fn status(status: StatusCode) -> Self {
        Self::new(Says::Status(status))
    }

    /// Answers 429 as the limits do.
    #[must_use]
    pub fn too_many_requests() -> Self {
        Self::new(Says::TooManyRequests)
    }

    /// Answers 200 with this access token, said to live for 24 hours.
    ///
    /// The token is any string. The authorizer does not know it and rejects it.
    #[must_use]
    pub fn token(access_token: &str) -> Self {
        Self::new(Says::Token(access_token.to_owned()))
    }

    /// Answers 200 with an HTML page.
    #[must_use]
    pub fn html() -> Self {
        Self::status(StatusCode::OK)
            .header(CONTENT_TYPE, HeaderValue::from_static("text/html"))
            .body("<!DOCTYPE html><title>Maintenance</title><p>We are back soon.</p>")
    }

    /// Answers 200 with JSON that ends in mid-way: the body ends in an error, after fewer bytes than
    /// `Content-Length` promised. Those can be replaced by [`body`](Self::body).
    #[must_use]
    pub fn truncated() -> Self {
        Self::new(Says::Truncated)
    }

    /// Answers 200 with an endless body of one byte per interval. Has no use for a
    /// [`body`](Self::body) of its own.
    #[must_use]
    pub fn drip(interval: Duration) -> Self {
        Self::new(Says::Drip(interval))
    }

    /// Never answers.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(Says::Hang)
    }

    /// Answers 200 with a head, and then nothing: the body neither goes on nor ends. Has no use for a
    /// [`body`](Self::body) of its own.
    #[must_use]
    pub fn hang_in_body() -> Self {
        Self::new(Says::HangInBody)
    }

    /// Closes the connection without an answer. The service returns
    /// [`EmulatorError::Closed`](super::EmulatorError::Closed).
    #[must_use]
    pub fn close() -> Self {
        Self::new(Says::Close)
    }

    /// Adds a header. A header of that name that the answer has by itself is replaced; one added
    /// earlier is not, so that a header can be said twice.
    ///
    /// # Panics
    ///
    /// If `name` or `value` is not valid in HTTP.
    #[must_use]
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName, Error: fmt::Debug>,
        V: TryInto<HeaderValue, Error: fmt::Debug>,
    {
        let name = name.try_into().expect("a scripted header's name is valid");
        let value = value.try_into().expect("a scripted header's value is valid");
        self.headers.push((name, value));
        self
    }

    /// Sets the body. Default: what the answer has by itself.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sets how long the answer takes, on top of the endpoint's own delay. Default: zero.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Answers without reading the request's body. Default: it is read to its end first.
    ///
    /// Has no effect on [`genuine`](Self::genuine).
    #[must_use]
    pub fn early(mut self) -> Self {
        self.is_early = true;
        self
    }

    fn new(says: Says) -> Self {
        Self { says, headers: Vec::new(), body: None, delay: Duration::ZERO, is_early: false }
    }
}

impl Answer {
    pub(super) fn is_genuine(&self) -> bool {
        matches!(self.says, Says::Genuine)
    }

    pub(super) fn outcome(self, genuine: impl FnOnce() -> Response<EmulatorBody>) -> Outcome {
        let response = match self.says {
            Says::Genuine => self.dress(genuine()),
            Says::Status(status) => self.dress(answers::bare(status)),
            Says::TooManyRequests => self.dress(answers::too_many_requests()),
            Says::Token(ref token) => {
                let response = answers::token(token, 24 * 60 * 60);
                self.dress(response)
            }
            Says::Truncated => self.cut(),
            Says::Drip(interval) => self.undressed(EmulatorBody::drip(interval)),
            Says::HangInBody => self.undressed(EmulatorBody::silent()),
            Says::Hang => return Outcome::Hang,
            Says::Close => return Outcome::Close,
        };
        Outcome::Respond(response)
    }

    /// Puts the scripted body and headers over the response's own.
    fn dress(mut self, mut response: Response<EmulatorBody>) -> Response<EmulatorBody> {
        if let Some(body) = self.body.take() {
            *response.body_mut() = EmulatorBody::whole(body);
        }
        self.add_headers(&mut response);
        response
    }

    fn cut(mut self) -> Response<EmulatorBody> {
        let body = self.body.take();
        let body = body.unwrap_or(Bytes::from_static(CUT_JSON));
        let promised = HeaderValue::from(body.len().saturating_add(MISSING));
        let mut response = Response::new(EmulatorBody::cut_after(body));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, json_type());
        headers.insert(CONTENT_LENGTH, promised);
        self.add_headers(&mut response);
        response
    }

    fn undressed(self, body: EmulatorBody) -> Response<EmulatorBody> {
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, json_type());
        self.add_headers(&mut response);
        response
    }

    fn add_headers(self, response: &mut Response<EmulatorBody>) {
        let headers = response.headers_mut();
        for (name, _) in &self.headers {
            headers.remove(name);
        }
        for (name, value) in self.headers {
            headers.append(name, value);
        }
    }
}

fn json_type() -> HeaderValue {
    HeaderValue::from_static("application/json")
}

/// Without the token and the body: a test may have put a secret there to look for.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("delay", &self.delay).finish_non_exhaustive()
    }
}
