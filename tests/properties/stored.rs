//! An entry of a token store: it is the token that was published there for this account, or none.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
    time::Duration,
};

use apsis_auth::{
    ApsisAuthLayer, ClientCredentials,
    store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore},
};
use arbitrary::Arbitrary;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::runtime::Builder;
use tower::{BoxError, service_fn};

const LIFETIME: u64 = 86_400;
/// At the end of its life a token is not used any more.
const MARGIN: u64 = 60;
const FENCE: u64 = 1_000;

#[derive(Arbitrary, Debug)]
pub(crate) struct Input<'a> {
    published_by: Account,
    what: What<'a>,
    /// Where it is said to be published under another one.
    fence: Option<i8>,
    age_seconds: Age,
}

/// Whose entry it is. All have the same token.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Account {
    Own,
    OtherSecret,
    OtherId,
    OtherOrigin,
}

#[derive(Arbitrary, Debug)]
enum What<'a> {
    Whole,
    Changed(Vec<(u16, u8)>),
    Cut(u16),
    Longer(&'a [u8]),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Age {
    Young(u8),
    Any(u32),
    Forever,
}

/// Where the token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Seen {
    Adopted,
    /// What had been published, and too old.
    TooOld,
    NotRead,
}

pub(crate) fn check(input: &Input<'_>) -> Seen {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let published = published(input.published_by).await;
        let (sealed, fence) =
            (input.what.sealed(&published), FENCE.saturating_add_signed(input.fence.unwrap_or_default().into()));
        let is_genuine = input.published_by == Account::Own && sealed == published && fence == FENCE;
        let age = input.age_seconds.seconds();

        let store = Slot::with(Some(Entry::new(fence, sealed, Duration::from_secs(age))));
        let handle = layer(Account::Own, "of-its-own", store).handle();
        let token = handle.get().await.unwrap();
        let state = handle.snapshot().token.unwrap();

        assert_eq!(token.expose_secret(), if state.adopted { "published" } else { "of-its-own" });
        // The entry's own age is a part of a second.
        let is_young = age < LIFETIME - MARGIN - 1;
        assert_eq!(state.adopted, is_genuine && is_young, "{state:?}");
        if state.adopted {
            let left = LIFETIME - age;
            assert!((left - 1..=left).contains(&state.expires_in_seconds), "{state:?}, {left}");
            return Seen::Adopted;
        }
        if is_genuine { Seen::TooOld } else { Seen::NotRead }
    })
}

/// What is stored of this account, sealed.
async fn published(account: Account) -> Bytes {
    let store = Slot::with(None);
    layer(account, "published", store.clone()).handle().warm_up().await.unwrap();
    let entry = store.0.lock().unwrap().clone().unwrap();
    entry.sealed().clone()
}

/// Its token endpoint gives this token.
fn layer(account: Account, token: &'static str, store: Slot) -> ApsisAuthLayer {
    let (mut id, mut secret, mut origin) = ("my-id", "s3cret-cAnary-0123456789", "https://api.apsis.one");
    match account {
        Account::Own => {}
        Account::OtherSecret => secret = "another-secret",
        Account::OtherId => id = "another-id",
        Account::OtherOrigin => origin = "https://api.apsis.cloud",
    }
    let answer = format!(r#"{{"access_token":"{token}","expires_in":{LIFETIME}}}"#);
    let endpoint = service_fn(move |_: Request<Full<Bytes>>| {
        ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer.clone())))))
    });
    let credentials = ClientCredentials::new(id, secret).unwrap();
    ApsisAuthLayer::builder(credentials, origin).transport(endpoint).store(store).build().unwrap()
}

/// A store with room for one entry, whatever the name.
#[derive(Clone)]
struct Slot(Arc<Mutex<Option<Entry>>>);

impl Slot {
    fn with(entry: Option<Entry>) -> Self {
        Self(Arc::new(Mutex::new(entry)))
    }

    fn entry(&self) -> Option<Entry> {
        self.0.lock().unwrap().clone()
    }
}

impl TokenStore for Slot {
    async fn load(&self, _: &str) -> Result<Option<Entry>, BoxError> {
        Ok(self.entry())
    }

    async fn lease(&self, _: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        let newer = self.entry().filter(|entry| entry.fence() > request.newer_than());
        Ok(newer.map_or_else(|| Leasing::Granted(Lease::new(FENCE)), Leasing::Newer))
    }

    async fn publish(&self, _: &str, lease: Lease, sealed: Bytes, _: Duration) -> Result<(), BoxError> {
        *self.0.lock().unwrap() = Some(Entry::new(lease.fence(), sealed, Duration::ZERO));
        Ok(())
    }

    async fn release(&self, _: &str, _: Lease, _: Pause) -> Result<(), BoxError> {
        Ok(())
    }
}

impl What<'_> {
    fn sealed(&self, published: &Bytes) -> Bytes {
        let mut sealed = published.to_vec();
        match self {
            Self::Whole => {}
            Self::Changed(changes) => {
                for (place, by) in changes {
                    let place = usize::from(*place) % sealed.len();
                    sealed[place] ^= by;
                }
            }
            Self::Cut(length) => sealed.truncate(usize::from(*length)),
            Self::Longer(rest) => sealed.extend_from_slice(rest),
            Self::Raw(raw) => sealed = raw.to_vec(),
        }
        sealed.into()
    }
}

impl Age {
    fn seconds(self) -> u64 {
        match self {
            Self::Young(seconds) => seconds.into(),
            Self::Any(seconds) => seconds.into(),
            Self::Forever => u64::MAX,
        }
    }
}
