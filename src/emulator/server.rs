//! The emulator on a loopback port.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Emulator,
    tls::{Certificate, Tls},
};

/// How long a shutdown waits for the answers under way.
const GRACE: Duration = Duration::from_secs(1);
/// How long no connection is accepted after one could not be: there may be too many open files.
const RESPITE: Duration = Duration::from_millis(10);

/// Runs an [`Emulator`] on a port, over HTTP/1.1 and HTTP/2, until it is shut down or dropped.
///
/// Dropping it stops it at once: the port is closed, and so are the connections.
#[derive(Debug)]
pub struct EmulatorServer {
    addr: SocketAddr,
    certificate: Option<Certificate>,
    connections: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Emulator {
    /// Serves over HTTP on 127.0.0.1, on a port that the system chooses.
    ///
    /// # Errors
    ///
    /// If no port can be opened.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with IO and time.
    pub async fn serve(&self) -> io::Result<EmulatorServer> {
        self.serve_on(any_port()).await
    }

    /// Serves over HTTP on this address. Port 0: one that the system chooses.
    ///
    /// # Errors
    ///
    /// If the address cannot be opened.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with IO and time.
    pub async fn serve_on(&self, addr: SocketAddr) -> io::Result<EmulatorServer> {
        let listener = TcpListener::bind(addr).await?;
        EmulatorServer::start(self, listener, None)
    }

    /// Serves over HTTPS on 127.0.0.1, on a port that the system chooses.
    ///
    /// The certificate is made now, for `localhost` and the address. A client has to be told to trust
    /// it: see [`EmulatorServer::certificate_pem`].
    ///
    /// # Errors
    ///
    /// If no port can be opened, or the certificate not be made.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with IO and time.
    pub async fn serve_https(&self) -> io::Result<EmulatorServer> {
        self.serve_https_on(any_port()).await
    }

    /// Serves over HTTPS on this address, like [`serve_https`](Self::serve_https). Port 0: one that
    /// the system chooses.
    ///
    /// # Errors
    ///
    /// If the address cannot be opened, or the certificate not be made.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with IO and time.
    pub async fn serve_https_on(&self, addr: SocketAddr) -> io::Result<EmulatorServer> {
        let listener = TcpListener::bind(addr).await?;
        let tls = Tls::generate(listener.local_addr()?.ip())?;
        EmulatorServer::start(self, listener, Some(tls))
    }
}

impl EmulatorServer {
    /// Returns the base URL, without a slash at its end: `http://127.0.0.1:PORT` or
    /// `https://localhost:PORT`; with the address itself if another one was asked for.
    #[must_use]
    pub fn url(&self) -> String {
        match self.certificate {
            Some(_) if self.addr.ip() == Ipv4Addr::LOCALHOST => format!("https://localhost:{}", self.addr.port()),
            Some(_) => format!("https://{}", self.addr),
            None => format!("http://{}", self.addr),
        }
    }

    /// Returns the address that is listened on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the server's certificate as PEM, or `None` if it speaks plain HTTP.
    #[must_use]
    pub fn certificate_pem(&self) -> Option<&str> {
        let certificate = self.certificate.as_ref();
        certificate.map(|certificate| certificate.pem.as_str())
    }

    /// Returns the server's certificate as DER, or `None` if it speaks plain HTTP.
    #[must_use]
    pub fn certificate_der(&self) -> Option<&[u8]> {
        let certificate = self.certificate.as_ref();
        certificate.map(|certificate| certificate.der.as_slice())
    }

    /// Returns how many connections were accepted so far.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Stops in good order: closes the port, lets the answers under way end, closes the connections.
    ///
    /// What has not ended after a second is cut off; a scripted answer may never end.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            // The receiver is gone only if the task has ended already.
            let _ = stop.send(());
        }
        // Fails only if the task was stopped otherwise, by a runtime that shuts down: stopped it is.
        let _ = (&mut self.task).await;
    }

    fn start(emulator: &Emulator, listener: TcpListener, tls: Option<Tls>) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let (tls, certificate) = tls.map(|tls| (tls.acceptor, tls.certificate)).unzip();
        let connections = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let acceptor = Acceptor { listener, tls, emulator: emulator.clone(), connections: Arc::clone(&connections) };
        Ok(Self { addr, certificate, connections, stop: Some(stop), task: tokio::spawn(acceptor.run(stopped)) })
    }
}

impl Drop for EmulatorServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Acceptor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    emulator: Emulator,
    connections: Arc<AtomicUsize>,
}

impl Acceptor {
    /// The connections live in this task's set, so that they end with it.
    async fn run(self, mut stopped: oneshot::Receiver<()>) {
        let graceful = GracefulShutdown::new();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                _ = &mut stopped => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        self.connections.fetch_add(1, Ordering::Relaxed);
                        tasks.spawn(self.connection(stream, graceful.watcher()));
                    }
                    Err(_) => tokio::time::sleep(RESPITE).await,
                },
                Some(_) = tasks.join_next() => {}
            }
        }
        drop(self);
        // Either all have ended, or their time is up.
        let _ = timeout(GRACE, graceful.shutdown()).await;
    }

    fn connection(&self, stream: TcpStream, watcher: Watcher) -> impl Future<Output = ()> + Send + 'static {
        let emulator = self.emulator.clone();
        let tls = self.tls.clone();
        async move {
            match tls {
                None => serve(stream, emulator, watcher).await,
                Some(tls) => {
                    // A client that does not like the certificate goes away: its own affair.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, emulator, watcher).await;
                    }
                }
            }
        }
    }
}

async fn serve<S>(stream: S, emulator: Emulator, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let builder = Builder::new(TokioExecutor::new());
    let service = TowerToHyperService::new(emulator);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    // An error here is a client that went away, or an answer scripted to end in one.
    let _ = watcher.watch(connection.into_owned()).await;
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}
