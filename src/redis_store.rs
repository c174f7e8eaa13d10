//! [`RedisStore`]: one token for all processes that reach a Redis or Valkey server.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    aio::MultiplexedConnection,
};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::{self, Handle},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{RootCertStore, pki_types::ServerName},
};
use tower::BoxError;

use crate::{
    error::BuildError,
    store::{Entry, Lease, LeaseRequest, Leasing, Pause, TokenStore},
    tls,
};

/// Of one operation, from the name of the server to its answer. Who waits for a store waits for a second.
const OPERATION_TIMEOUT: Duration = Duration::from_millis(800);

/// A connection is kept for the operations of one flight: the next one is a day off.
const CONNECTION_LASTS: Duration = Duration::from_secs(30);

/// No lease lasts longer, and no pause: what ends later was written before the server's clock was set back. The same is in the
/// scripts.
const LONGEST_LEASE: Duration = Duration::from_secs(5 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(20 * 60);

/// Longer than the life of any token.
const LONGEST_KEPT: Duration = Duration::from_secs(366 * 24 * 3600);

/// A store in Redis or Valkey: for processes on any machine that reach the server.
///
/// Each account has two keys there, `apsis-auth:{…}` and `apsis-auth:{…}:attempts`, in one slot of a cluster. Both
/// expire when they are of no use to anybody. Each step is one script, so of two processes that want a lease one gets
/// it. All moments are by the server's clock.
///
/// Nothing is connected to before a flight needs it. An operation takes 800 ms at most, with the connection it makes if
/// there is none at hand. A connection is kept for half a minute, for the flight it was made for; one that broke, or
/// whose runtime is gone, is replaced. An operation that was given up may still take place: a lease that nobody heard
/// of ends by itself, and the process that asked for it may have another one before.
///
/// # The server
///
/// Redis from 6.0 on (tried with 6.0, 7.0 and 8.0) or Valkey (tried with 8.1): one server, or what speaks for several, a
/// proxy or the address of the primary. Redirections of a cluster are not followed. A server that is full, read-only or
/// still loading is one that fails.
///
/// **A fail-over may cost one more token request.** The server that takes over may not have heard of the last lease,
/// and grants another one, or of the last entry. A restart without persistence, a flush and an eviction cost the same.
/// What comes after is newer than what was before: a fence is at least the server's time.
///
/// An ACL user needs this and no more, at the prompt of `redis-cli` (a shell would take the `>` for its own) and with a password of
/// yours; its URL is `rediss://apsis-auth:password@host`:
///
/// ```text
#[doc = include_str!("redis_store.acl")]
/// ```
///
/// What is stored is [sealed](crate::store#what-is-stored-and-who-can-do-what-with-it). The server's password is not:
/// without TLS it can be read on the way.
///
/// ```no_run
/// use apsis_auth::{ApsisAuthLayer, ClientCredentials, RedisStore, Region};
///
/// # fn build() -> Result<(), Box<dyn std::error::Error>> {
/// let auth = ApsisAuthLayer::builder(ClientCredentials::from_env()?, Region::from_env()?)
///     .store(RedisStore::new(&std::env::var("REDIS_URL")?)?)
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    server: Arc<Server>,
    /// Taken out by an operation, and put back when it brought an answer.
    kept: Arc<Mutex<Option<Connection>>>,
}

impl RedisStore {
    /// A store in the server of this URL.
    ///
    /// | URL | |
    /// | --- | --- |
    /// | `redis://host:6379` | without TLS |
    /// | `rediss://host:6379` | with TLS, by the platform's root certificates |
    /// | `rediss://user:password@host` | as this user; `:password@` as the default one |
    /// | `rediss://host/1` | another database |
    /// | `valkey://…`, `valkeys://…` | the same as `redis` and `rediss` |
    /// | `unix:///run/redis.sock?user=…&pass=…&db=1` | a socket of this machine |
    ///
    /// In a user and a password, what has a meaning in URLs is percent-encoded: `/` is `%2F`. Nothing is connected to yet.
    ///
    /// # Errors
    ///
    /// [`BuildError::RedisUrl`] if it is none of these, and [`BuildError::RootCertificates`] if TLS has none to trust.
    pub fn new(url: &str) -> Result<Self, BuildError> {
        Self::with(url, RootCertStore::empty())
    }

    /// The same with TLS, by these certificates (PEM, one or more) beside the platform's: of authorities, or the server's own if
    /// that is not one of an authority (`CA:FALSE`).
    ///
    /// # Errors
    ///
    /// [`BuildError::RedisUrl`] if it is not a URL of TLS, and [`BuildError::Certificate`] if a certificate cannot be
    /// read, or if there is none.
    pub fn trusting(url: &str, pem: &[u8]) -> Result<Self, BuildError> {
        Self::with(url, tls::roots_in(pem)?)
    }

    fn with(url: &str, roots: RootCertStore) -> Result<Self, BuildError> {
        Ok(Self { server: Arc::new(Server::at(url, roots)?), kept: Arc::default() })
    }

    /// What a script answers to these arguments.
    async fn run(&self, script: &str, name: &str, arguments: &[&[u8]]) -> Result<Vec<Bytes>, BoxError> {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(2).arg(format!("apsis-auth:{{{name}}}")).arg(format!("apsis-auth:{{{name}}}:attempts"));
        for argument in arguments {
            command.arg(argument);
        }
        let answer = match timeout(OPERATION_TIMEOUT, self.ask(&command)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {OPERATION_TIMEOUT:?}").into()),
        };
        answer.map_err(|cause| Failure { server: self.server.to_string(), cause }.into())
    }

    async fn ask(&self, command: &Cmd) -> Result<Vec<Bytes>, BoxError> {
        let runtime = Handle::try_current()?.id();
        // It may have broken meanwhile, or the server is not what it was: then a new one decides.
        if let Some(mut connection) = self.take().filter(|connection| connection.is_good_in(runtime))
            && let Ok(answer) = connection.ask(command).await
        {
            self.keep(connection);
            return Ok(answer);
        }
        let mut connection = self.server.connect(runtime).await?;
        let answer = connection.ask(command).await?;
        self.keep(connection);
        Ok(answer)
    }

    fn take(&self) -> Option<Connection> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, connection: Connection) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

impl TokenStore for RedisStore {
    async fn load(&self, name: &str) -> Result<Option<Entry>, BoxError> {
        match &self.run(LOAD, name, &[]).await?[..] {
            [] => Ok(None),
            [fence, sealed, age] => Ok(Some(entry(fence, sealed, age)?)),
            other => Err(not_understood(other)),
        }
    }

    async fn lease(&self, name: &str, request: &LeaseRequest) -> Result<Leasing, BoxError> {
        let arguments = [
            request.owner(),
            request.newer_than(),
            milliseconds(request.lasts().min(LONGEST_LEASE)),
            u64::from(request.attempts_per_minute()),
        ]
        .map(|number| number.to_string());
        let answer = self.run(LEASE, name, &arguments.each_ref().map(String::as_bytes)).await?;
        match &answer[..] {
            [kind, fence] if kind == "granted" => Ok(Leasing::Granted(Lease::new(number(fence)?))),
            [kind, fence, sealed, age] if kind == "newer" => Ok(Leasing::Newer(entry(fence, sealed, age)?)),
            [kind, fence, left] if kind == "held" => {
                Ok(Leasing::Held { fence: number(fence)?, left: Duration::from_millis(number(left)?) })
            }
            [kind, left, refused] if kind == "paused" => {
                let refused_with = StatusCode::from_bytes(refused).ok();
                Ok(Leasing::Paused(Pause::new(Duration::from_millis(number(left)?), refused_with)))
            }
            other => Err(not_understood(other)),
        }
    }

    async fn publish(&self, name: &str, lease: Lease, sealed: Bytes, lifetime: Duration) -> Result<(), BoxError> {
        let (fence, lifetime) = (lease.fence().to_string(), milliseconds(lifetime.min(LONGEST_KEPT)).to_string());
        self.run(PUBLISH, name, &[fence.as_bytes(), &sealed, lifetime.as_bytes()]).await?;
        Ok(())
    }

    async fn release(&self, name: &str, lease: Lease, pause: Pause) -> Result<(), BoxError> {
        let (fence, lasts) = (lease.fence().to_string(), milliseconds(pause.lasts().min(LONGEST_PAUSE)).to_string());
        let refused_with = pause.refused_with().map_or(0, |status| status.as_u16()).to_string();
        self.run(RELEASE, name, &[fence.as_bytes(), lasts.as_bytes(), refused_with.as_bytes()]).await?;
        Ok(())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("server", &format_args!("{}", self.server)).finish_non_exhaustive()
    }
}

/// A script in Lua, with what all of them share. Numbers are written out: Lua would shorten a long one.
macro_rules! script {
    ($own:literal) => {
        concat!(
            r"
local account, attempts = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local longest_lease, longest_pause, window = 300000, 1200000, 60000

local function text(number)
    return string.format('%.0f', number)
end

-- Anything else is not ours.
local function number(text)
    local number = tonumber(text)
    if number and number >= 0 and number < 2 ^ 53 then return number end
end

local function stored(field)
    return number(redis.call('HGET', account, field)) or 0
end

-- How long until then. What is farther off than anything can be was written before the clock was set back.
local function left(field, longest)
    local left = stored(field) - now
    if left < 0 or left > longest then return 0 end
    return left
end

local function keep(key, lifetime)
    if redis.call('PTTL', key) < lifetime then redis.call('PEXPIRE', key, text(lifetime)) end
end

-- Only one that counts already ends anew.
local function end_attempt(fence)
    redis.call('ZADD', attempts, 'XX', text(now + window), fence)
    keep(attempts, window)
end

-- That of this fence, and nobody else's. When it was granted.
local function end_lease(fence)
    if stored('lease') ~= tonumber(fence) then return nil end
    local granted = stored('granted')
    redis.call('HDEL', account, 'lease', 'owner', 'granted', 'lease_ends')
    return granted
end

local function entry(newer_than)
    local found = redis.call('HMGET', account, 'entry', 'sealed', 'since')
    local fence, sealed, since = number(found[1]), found[2], number(found[3])
    if not fence or not sealed or not since or fence <= newer_than then return nil end
    return { text(fence), sealed, text(math.max(0, now - since)) }
end
",
            $own
        )
    };
}

/// Answers the fence, what is sealed and its age, or nothing.
const LOAD: &str = script!("return entry(-1) or {}");

/// By an owner, for what is newer than a fence, so many milliseconds, if fewer attempts than these count.
const LEASE: &str = script!(
    r"
local owner, newer_than, lasts, per_minute = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local newer = entry(newer_than)
if newer then return { 'newer', newer[1], newer[2], newer[3] } end

local held = left('lease_ends', longest_lease)
if held > 0 and redis.call('HGET', account, 'owner') ~= owner then
    return { 'held', text(stored('lease')), text(held) }
end

local paused = left('paused_until', longest_pause)
local refused = paused > 0 and stored('refused_with') or 0
local last = text(now + longest_lease + window)
local over, counted = redis.call('ZCOUNT', attempts, '-inf', text(now)), redis.call('ZCOUNT', attempts, '(' .. text(now), last)
if counted >= per_minute then
    local place = over + counted - per_minute
    local frees = (redis.call('ZRANGE', attempts, place, place, 'WITHSCORES')[2] or now + window) - now
    paused = math.max(paused, frees)
end
if paused > 0 then return { 'paused', text(paused), text(refused) } end

-- A server that is full refuses the first write and none after it. So it refuses this one: nobody gets a lease that he cannot end.
local fence = text(math.max(now, stored('fence') + 1))
redis.call('HSET', account, 'fence', fence, 'lease', fence, 'owner', owner, 'granted', text(now), 'lease_ends', text(now + lasts))
keep(account, lasts + window)
redis.call('ZREMRANGEBYSCORE', attempts, '-inf', text(now))
redis.call('ZREMRANGEBYSCORE', attempts, '(' .. last, '+inf')
redis.call('ZADD', attempts, text(now + lasts + window), fence)
keep(attempts, lasts + window)
return { 'granted', fence }
"
);

/// Under a fence, for so many milliseconds.
const PUBLISH: &str = script!(
    r"
local fence, sealed, lifetime = ARGV[1], ARGV[2], tonumber(ARGV[3])

local since = end_lease(fence) or math.min(now, tonumber(fence))
end_attempt(fence)
if tonumber(fence) < stored('fence') or tonumber(fence) == stored('entry') then return {} end
redis.call('HSET', account, 'fence', fence, 'entry', fence, 'sealed', sealed, 'since', text(since))
keep(account, math.max(lifetime, window))
return {}
"
);

/// Of a fence, and pauses for so many milliseconds, or as long as was said before; with the status of a refusal, or 0.
const RELEASE: &str = script!(
    r"
local fence, pause, refused = ARGV[1], tonumber(ARGV[2]), ARGV[3]

end_lease(fence)
end_attempt(fence)
if pause > left('paused_until', longest_pause) then
    redis.call('HSET', account, 'paused_until', text(now + pause), 'refused_with', refused)
    keep(account, pause)
end
return {}
"
);

/// What a URL says.
struct Server {
    address: ConnectionAddr,
    settings: RedisConnectionInfo,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Server {
    fn at(url: &str, roots: RootCertStore) -> Result<Self, BuildError> {
        let wrong = |problem| BuildError::RedisUrl { problem };
        let mut url = redis::parse_redis_url(url)
            .ok_or_else(|| wrong("it is not a URL, or not one of redis, rediss, valkey, valkeys or unix"))?;
        if url.fragment().is_some() {
            return Err(wrong("nothing may stand behind a #; in a password it is written %23"));
        }
        let is_tls = matches!(url.scheme(), "rediss" | "valkeys");
        if is_tls {
            // TLS is ours: that of the crate would ask for the default crypto provider, and panic where there are two.
            url.set_scheme("redis").map_err(|()| wrong("its scheme is not one of Redis"))?;
        } else if !roots.is_empty() {
            return Err(wrong("there are certificates to trust, and it is not one of TLS"));
        }
        let (has_host, has_query) = (url.has_host(), url.query().is_some());
        let info = url.into_connection_info();
        let info = info.map_err(|_| wrong("its host, user, password, database or a parameter cannot be used"))?;
        let tls = match info.addr() {
            ConnectionAddr::Tcp(host, _) if is_tls => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| wrong("its host cannot have a certificate"))?;
                let config = tls::client_config(tls::with_platform_roots(roots)?);
                Some((TlsConnector::from(Arc::new(config)), name))
            }
            _ => None,
        };
        let settings = info.redis_settings();
        if has_host && has_query {
            return Err(wrong(
                "nothing may stand behind a ?; the database stands behind a /, user and password before an @",
            ));
        }
        if settings.username().is_some() && settings.password().is_none() {
            return Err(wrong("there is a user in it without a password; a password alone is written :password@"));
        }
        if settings.db() < 0 {
            return Err(wrong("a database has a number from 0 on"));
        }
        // What our scripts are answered in. The other one begins with a command that says the password, which an error may repeat.
        let settings = settings.clone().set_skip_set_lib_name().set_protocol(ProtocolVersion::RESP2);
        Ok(Self { address: info.addr().clone(), settings, tls })
    }

    async fn connect(&self, runtime: runtime::Id) -> Result<Connection, BoxError> {
        match &self.address {
            ConnectionAddr::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    Some((tls, name)) => self.greet(tls.connect(name.clone(), stream).await?, runtime).await,
                    None => self.greet(stream, runtime).await,
                }
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => self.greet(UnixStream::connect(path).await?, runtime).await,
            _ => Err("there is no way to such an address".into()),
        }
    }

    async fn greet<S>(&self, stream: S, runtime: runtime::Id) -> Result<Connection, BoxError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // The limit is the operation's.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (commands, driver) = MultiplexedConnection::new_with_config(&self.settings, stream, config).await?;
        Ok(Connection { commands, driver: Driver::start(driver), runtime, made: Instant::now() })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}

struct Connection {
    commands: MultiplexedConnection,
    driver: Driver,
    runtime: runtime::Id,
    made: Instant,
}

impl Connection {
    /// Another runtime may be gone, or not be driven now.
    fn is_good_in(&self, runtime: runtime::Id) -> bool {
        self.runtime == runtime && !self.driver.0.is_finished() && self.made.elapsed() < CONNECTION_LASTS
    }

    async fn ask(&mut self, command: &Cmd) -> Result<Vec<Bytes>, BoxError> {
        // Its source says the same once more.
        command.query_async(&mut self.commands).await.map_err(|error| error.to_string().into())
    }
}

/// The task that writes and reads. It ends with the connection, and no later than nobody would use that any more.
struct Driver(JoinHandle<()>);

impl Driver {
    fn start(driver: impl Future<Output = ()> + Send + 'static) -> Self {
        let limited = timeout(CONNECTION_LASTS + OPERATION_TIMEOUT, driver);
        Self(tokio::spawn(async move {
            let _ = limited.await;
        }))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the Redis server {server} fails")]
struct Failure {
    server: String,
    #[source]
    cause: BoxError,
}

fn entry(fence: &Bytes, sealed: &Bytes, age: &Bytes) -> Result<Entry, BoxError> {
    Ok(Entry::new(number(fence)?, sealed.clone(), Duration::from_millis(number(age)?)))
}

fn number(text: &[u8]) -> Result<u64, BoxError> {
    Ok(std::str::from_utf8(text)?.parse()?)
}

fn not_understood(answer: &[Bytes]) -> BoxError {
    format!("an answer of {} parts is not one of our scripts", answer.len()).into()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

    use std::future::pending;

    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex},
        sync::oneshot,
        task::yield_now,
        time::advance,
    };

    use super::*;

    async fn connection() -> (Connection, DuplexStream) {
        let server = Server::at("redis://localhost", RootCertStore::empty()).unwrap();
        let (ours, theirs) = duplex(1024);
        (server.greet(ours, Handle::current().id()).await.unwrap(), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_for_half_a_minute_and_then_closed() {
        let (connection, mut server) = connection().await;
        let runtime = Handle::current().id();
        advance(CONNECTION_LASTS.saturating_sub(Duration::from_millis(1))).await;
        assert!(connection.is_good_in(runtime));
        advance(Duration::from_millis(1)).await;
        assert!(!connection.is_good_in(runtime));
        assert!(!connection.driver.0.is_finished(), "an operation may be under way");
        let mut rest = Vec::new();
        timeout(OPERATION_TIMEOUT * 2, server.read_to_end(&mut rest)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_is_not_used_again() {
        let (connection, server) = connection().await;
        drop(server);
        while !connection.driver.0.is_finished() {
            yield_now().await;
        }
        assert!(!connection.is_good_in(Handle::current().id()));
    }

    #[tokio::test]
    async fn a_connection_that_is_dropped_is_closed_though_an_answer_is_awaited() {
        let (held, is_dropped) = oneshot::channel::<()>();
        let driver = Driver::start(async move {
            let _held = held;
            pending::<()>().await;
        });
        yield_now().await;
        drop(driver);
        timeout(OPERATION_TIMEOUT, is_dropped).await.unwrap().unwrap_err();
    }
}
