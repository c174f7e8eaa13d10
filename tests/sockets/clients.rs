//! Law 30: the clients that people have, over TLS: hyper-util's by both protocols, reqwest, also through a proxy, and a
//! gateway of axum. Both crypto providers of rustls are in the tree.

use std::{panic::catch_unwind, sync::Arc};

use apsis_auth::{ApsisAuthLayer, ClientCredentials, ReplayBody, emulator::Dialect};
use axum::Router;
use http::{Request, Uri, Version, header::HOST};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use reqwest::{Certificate, redirect};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::CertificateDer,
};
use tokio::{io::copy_bidirectional, sync::mpsc, task::JoinSet};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_http::ServiceBuilderExt;

use super::*;

pub(crate) type HttpsClient<B> = Client<HttpsConnector<HttpConnector>, B>;
type ReqwestService = BoxCloneSyncService<Request<reqwest::Body>, Response<reqwest::Body>, BoxError>;

const PROFILE: &str = "/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com";

// hyper-util.

#[tokio::test]
async fn hyper_utils_client_is_served_by_both_protocols() {
    limited(async {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let world = World::new().await;
            let client = world.builder().build().unwrap().layer(world.https_client::<Full<Bytes>>(version));
            let client = ServiceBuilder::new().service(client).map_response(move |response: Response<_>| {
                assert_eq!(response.version(), version);
                response
            });
            assert_lives(&world, client, Full::from).await;
        }
    })
    .await;
}

#[tokio::test]
async fn hyper_utils_client_is_served_with_bodies_that_stream_by_both_protocols() {
    limited(async {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let world = World::new().await;
            let client = world.builder().build().unwrap().layer(world.https_client(version));
            assert_lives(&world, client, |body| ReplayBody::new(Flow::of(body))).await;
        }
    })
    .await;
}

// reqwest.

#[tokio::test]
async fn reqwest_is_served_and_sends_the_token_requests_too() {
    limited(async {
        let world = World::new().await;
        let reqwest = http_service(world.reqwest_builder().no_proxy().build().unwrap());
        let auth = world.builder().transport(as_transport(reqwest.clone())).build().unwrap();
        assert_lives(&world, auth.layer(reqwest), reqwest::Body::from).await;
    })
    .await;
}

#[tokio::test]
async fn reqwest_is_served_with_bodies_that_stream() {
    limited(async {
        let world = World::new().await;
        let reqwest = http_service(world.reqwest_builder().no_proxy().build().unwrap());
        let auth = world.builder().transport(as_transport(reqwest.clone())).build().unwrap();
        assert_lives(&world, auth.layer(reqwest), |body| reqwest::Body::wrap(Flow::of(body))).await;
    })
    .await;
}

#[tokio::test]
async fn the_proxy_of_reqwest_serves_the_api_and_the_token_requests() {
    limited(async {
        let world = World::new().await;
        let (proxy, mut tunnels) = proxy().await;
        let build = |builder: reqwest::ClientBuilder| {
            let proxy = reqwest::Proxy::all(format!("http://{proxy}")).unwrap();
            http_service(builder.proxy(proxy).build().unwrap())
        };
        // One for each, so that the tunnels tell.
        let (api, tokens) = (build(world.reqwest_builder()), build(world.reqwest_builder()));
        let auth = world.builder().transport(as_transport(tokens)).build().unwrap();
        let client = auth.layer(api);
        auth.handle().warm_up().await.unwrap();
        let target = world.server.url().strip_prefix("https://").unwrap().to_owned();
        assert_eq!(tunnels.recv().await.unwrap(), target);
        let answer = client.oneshot(keyspaces(&world, reqwest::Body::default())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(tunnels.recv().await.unwrap(), target);
        assert_eq!(world.server.connections(), 2);
    })
    .await;
}

/// Its own way with a URI is not ours to mend, but to know.
#[tokio::test]
async fn reqwest_takes_dots_out_of_a_path_and_leaves_all_other_encoding_as_it_is() {
    limited(async {
        for (path, target) in [
            ("/profiles/andy.demo%40apsis.com?q=%20", "/profiles/andy.demo%40apsis.com?q=%20"),
            ("/profiles/a%2Fb%2b%c3%a5%2E", "/profiles/a%2Fb%2b%c3%a5%2E"),
            ("/elsewhere/../profiles", "/profiles"),
            ("/profiles/%2E%2E/x", "/x"),
        ] {
            let (listener, addr) = listen().await;
            let server = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                socket.write_all(answer("200 OK", "").as_bytes()).await.unwrap();
                String::from_utf8(head).unwrap()
            });
            let base = format!("http://{addr}");
            let tokens = service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(TOKEN))));
            let client = builder(&base).transport(tokens).build().unwrap();
            let client = client.layer(http_service(reqwest::Client::builder().no_proxy().build().unwrap()));
            let request = Request::get(format!("{base}{path}")).body(reqwest::Body::default()).unwrap();
            client.oneshot(request).await.unwrap();
            let head = server.await.unwrap();
            assert!(head.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{path}: {head}");
        }
    })
    .await;
}

// axum.

#[tokio::test]
async fn a_gateway_of_axum_serves_who_knows_nothing_of_tokens() {
    limited(async {
        let world = World::new().await;
        let auth = world.builder().build().unwrap();
        let client = auth.layer(world.https_client::<axum::body::Body>(Version::HTTP_2));
        let base: Uri = world.server.url().parse().unwrap();
        let gateway = Router::new().fallback(async move |mut request: Request<axum::body::Body>| {
            let mut parts = base.clone().into_parts();
            parts.path_and_query = request.uri().path_and_query().cloned();
            *request.uri_mut() = Uri::from_parts(parts).unwrap();
            *request.version_mut() = Version::default();
            request.headers_mut().remove(HOST);
            client.oneshot(request).await.unwrap().map(axum::body::Body::new)
        });
        let (listener, addr) = listen().await;
        let gateway = tokio::spawn(async move { axum::serve(listener, gateway).await });

        let plain = Client::builder(TokioExecutor::new()).build_http::<UnsyncBoxBody<Bytes, BoxError>>();
        // As callers of the gateway do it, to the gateway.
        let caller = service_fn(move |mut request: Request<UnsyncBoxBody<Bytes, BoxError>>| {
            let to_gateway = format!("http://{addr}{}", request.uri().path());
            *request.uri_mut() = to_gateway.parse().unwrap();
            plain.request(request)
        });
        assert_lives(&world, caller, |body| Flow::of(body).boxed_unsync()).await;
        gateway.abort();
    })
    .await;
}

// Two crypto providers.

#[tokio::test]
async fn with_two_crypto_providers_in_the_tree_there_is_no_default_one_and_the_transport_wants_none() {
    limited(async {
        assert!(CryptoProvider::get_default().is_none(), "nothing has installed one");
        assert!(catch_unwind(ClientConfig::builder).is_err(), "both are in the tree, and neither is the default");

        let world = World::new().await;
        world.builder().build().unwrap().handle().warm_up().await.unwrap();
        assert!(CryptoProvider::get_default().is_none(), "nor did the transport install one");
    })
    .await;
}

// Helpers.

/// APSIS One behind HTTPS.
pub(crate) struct World {
    pub(crate) apsis: Emulator,
    pub(crate) server: apsis_auth::emulator::EmulatorServer,
}

impl World {
    pub(crate) async fn new() -> Self {
        let apsis = Emulator::new();
        apsis.set_api_limit(1_000);
        let server = apsis.serve_https().await.unwrap();
        Self { apsis, server }
    }

    /// With the default transport, which trusts the emulator.
    pub(crate) fn builder(&self) -> ApsisAuthBuilder {
        let key = self.apsis.api_key();
        let credentials = ClientCredentials::new(key.client_id(), key.client_secret()).unwrap();
        let transport = HttpsTransport::trusting(self.server.certificate_pem().unwrap().as_bytes()).unwrap();
        ApsisAuthLayer::builder(credentials, self.server.url()).transport(transport)
    }

    pub(crate) fn https_client<B>(&self, version: Version) -> HttpsClient<B>
    where
        B: Body<Data: Send> + Send,
    {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.server.certificate_der().unwrap().to_vec())).unwrap();
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls_config(roots)).https_only();
        let connector =
            if version == Version::HTTP_2 { builder.enable_http2().build() } else { builder.enable_http1().build() };
        Client::builder(TokioExecutor::new()).build(connector)
    }

    fn reqwest_builder(&self) -> reqwest::ClientBuilder {
        let certificate = Certificate::from_der(self.server.certificate_der().unwrap()).unwrap();
        reqwest::Client::builder().tls_certs_only([certificate]).redirect(redirect::Policy::none())
    }
}

pub(crate) fn tls_config(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub(crate) fn keyspaces<B>(world: &World, body: B) -> Request<B> {
    Request::get(format!("{}/audience/keyspaces", world.server.url())).body(body).unwrap()
}

fn http_service(client: reqwest::Client) -> ReqwestService {
    let service = ServiceBuilder::new()
        .map_response(Response::<reqwest::Body>::from)
        .filter(|request: Request<reqwest::Body>| reqwest::Request::try_from(request))
        .service(client);
    BoxCloneSyncService::new(service)
}

fn as_transport(
    service: ReqwestService,
) -> impl Service<Request<Full<Bytes>>, Response = Response<reqwest::Body>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync {
    ServiceBuilder::new().map_request_body(|body: Full<Bytes>| reqwest::Body::wrap(body)).service(service)
}

/// A cold start of many, a token revoked in both dialects, and a body that is sent a second time: all are served, at a token
/// request each.
async fn assert_lives<S, B, R>(world: &World, client: S, body: impl Fn(&'static str) -> B)
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
    R: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let apsis = &world.apsis;
    assert_twenty_are_served(world, &client, &body).await;
    assert_eq!(apsis.counters().token_requests, 1);
    for (dialect, token_requests) in [(Dialect::Unauthorized, 2), (Dialect::Gateway, 3)] {
        apsis.set_dialect(dialect);
        apsis.revoke_tokens();
        assert_twenty_are_served(world, &client, &body).await;
        assert_eq!(apsis.counters().token_requests, token_requests);
    }

    apsis.revoke_tokens();
    let profile = Request::post(format!("{}{PROFILE}", world.server.url())).header("content-type", "application/json");
    let answer = client.oneshot(profile.body(body(r#"{"city":"Malmö"}"#)).unwrap()).await.map_err(Into::into).unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let profile = apsis.profile("com.apsis1.keyspaces.email", "andy.demo@apsis.com").unwrap();
    assert_eq!(profile.attributes["city"], "Malmö");
    assert_eq!(apsis.counters().token_requests, 4);
}

async fn assert_twenty_are_served<S, B, R>(world: &World, client: &S, body: impl Fn(&'static str) -> B)
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
    R: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let called = client.clone().oneshot(keyspaces(world, body("")));
        callers.spawn(async move {
            let answer = called.await.map_err(Into::into).unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            let read = answer.into_body().collect().await.map_err(Into::into).unwrap().to_bytes();
            assert!(read.starts_with(b"{\"items\":"), "{read:?}");
        });
    }
    callers.join_all().await;
}

/// A body that comes in two frames.
struct Flow(Vec<Bytes>);

impl Flow {
    fn of(text: &'static str) -> Self {
        let (first, second) = text.split_at(text.len() / 2);
        // The last is the first to come.
        Self(
            [second, first]
                .iter()
                .filter(|part| !part.is_empty())
                .map(|part| Bytes::from_static(part.as_bytes()))
                .collect(),
        )
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop().map(|part| Ok(Frame::data(part))))
    }

    /// hyper asks no other way for the body of a GET of unknown length.
    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

/// A proxy that makes tunnels, and says where to.
async fn proxy() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let (listener, addr) = listen().await;
    let (tell, tunnels) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(socket.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let mut api = TcpStream::connect(&target).await.unwrap();
                socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tell.send(target);
                let _ = copy_bidirectional(&mut socket, &mut api).await;
            });
        }
    });
    (addr, tunnels)
}
