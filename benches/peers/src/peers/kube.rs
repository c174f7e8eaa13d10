//! kube: the auth layer of its client, with the token that a plugin got and with the token of a file.
//!
//! Neither asks a token endpoint. What a plugin got earlier, with its expiry, is in the configuration; kube keeps it as it
//! keeps what it gets from a plugin itself. A token file is read once a minute at most.

use std::{env, fs, process};

use http::{Request, Response, Uri};
use kube_client::{
    Config,
    client::{ConfigExt, middleware::AuthLayer},
    config::{AuthInfo, AuthProviderConfig},
};
use tower::{BoxError, Layer, Service, ServiceExt};

use crate::{
    measure::{Body, token},
    variant::{Inner, Peer, Surroundings, Variant},
};

pub(crate) fn plugin(_: &Surroundings) -> Variant {
    let config = [("access-token", token()), ("expiry", "9999-01-01T00:00:00Z".to_owned())];
    let config = config.map(|(key, value)| (key.to_owned(), value)).into();
    let provider = AuthProviderConfig { name: "gcp".to_owned(), config, ..AuthProviderConfig::default() };
    variant(AuthInfo { auth_provider: Some(provider), ..AuthInfo::default() })
}

pub(crate) fn token_file(_: &Surroundings) -> Variant {
    let path = env::temp_dir().join(format!("peers-token-{}", process::id()));
    fs::write(&path, token()).expect("the folder for such files can be written to");
    let token_file = Some(path.to_string_lossy().into_owned());
    let variant = variant(AuthInfo { token_file, ..AuthInfo::default() });
    // Without the file, kube goes on with the token that it has read.
    fs::remove_file(&path).expect("it was just written");
    variant
}

fn variant(auth_info: AuthInfo) -> Variant {
    let mut config = Config::new(Uri::from_static("https://api.apsis.one"));
    config.auth_info = auth_info;
    Variant::new(Kube(config.auth_layer().expect("the settings are complete").expect("there is a token")))
}

struct Kube(AuthLayer);

impl Peer for Kube {
    fn around<S: Inner>(&'static self, inner: S) -> impl Service<Request<Body>, Response = Response<()>> + 'static {
        self.0.layer(inner.map_err(|never| -> BoxError { match never {} }))
    }
}
