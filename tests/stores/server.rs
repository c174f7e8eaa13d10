//! A Redis server of a test's own.

use std::{
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use apsis_auth::RedisStore;
use redis::{Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, Value};

use crate::file::Folder;

/// Killed when it is dropped.
pub(crate) struct Server {
    folder: Folder,
    port: u16,
    arguments: Vec<String>,
    process: Child,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With these arguments besides.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        let folder = Folder::new();
        fs::create_dir_all(folder.path()).unwrap();
        let arguments: Vec<_> = arguments.iter().copied().map(str::to_owned).collect();
        // Somebody else may take the port between its being found and being used.
        for _ in 0..10 {
            let port = free_port();
            if let Some(process) = run(port, folder.path(), &arguments) {
                return Self { folder, port, arguments, process };
            }
        }
        panic!("`{}` does not start with {arguments:?}", program());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Of a user with this password, and for another database than the first.
    pub(crate) fn url_of(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/1", self.port)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn store(&self) -> RedisStore {
        RedisStore::new(&self.url()).unwrap()
    }

    /// What it answers to a command.
    pub(crate) fn ask(&self, command: &[&str]) -> Value {
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        let address = ConnectionAddr::Tcp("127.0.0.1".to_owned(), self.port);
        let info = address.into_connection_info().unwrap().set_redis_settings(settings);
        let client = Client::open(info).unwrap();
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(5)).unwrap();
        let (name, arguments) = command.split_first().unwrap();
        redis::cmd(name).arg(arguments).query(&mut connection).unwrap()
    }

    pub(crate) fn number(&self, command: &[&str]) -> i64 {
        redis::from_redis_value(self.ask(command)).unwrap()
    }

    pub(crate) fn texts(&self, command: &[&str]) -> Vec<String> {
        redis::from_redis_value(self.ask(command)).unwrap()
    }

    /// A figure of `INFO stats`.
    pub(crate) fn stat(&self, name: &str) -> i64 {
        let stats = self.info("stats");
        let mut figures = stats.lines().filter_map(|line| line.split_once(':'));
        figures.find(|(found, _)| *found == name).unwrap().1.parse().unwrap()
    }

    pub(crate) fn info(&self, section: &str) -> String {
        redis::from_redis_value(self.ask(&["INFO", section])).unwrap()
    }

    /// It is gone, and with it what it knew.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Once more, where it was.
    pub(crate) fn start_again(&mut self) {
        self.process = run(self.port, self.folder.path(), &self.arguments).unwrap();
    }

    /// Another server that has what this one has.
    pub(crate) fn replica(&self) -> Self {
        let replica = Self::with(&["--replicaof", "127.0.0.1", &self.port.to_string()]);
        let started = Instant::now();
        while !replica.info("replication").contains("master_link_status:up") {
            assert!(started.elapsed() < Duration::from_secs(20), "the replica does not come up");
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.number(&["WAIT", "1", "5000"]), 1);
        replica
    }

    /// From the other one, which is gone: what it has from it and its address.
    pub(crate) fn takes_over(&self, gone: &Self) {
        self.ask(&["REPLICAOF", "NO", "ONE"]);
        self.ask(&["CONFIG", "SET", "port", &gone.port.to_string()]);
    }

    /// It answers no more, and its connections stay.
    pub(crate) fn stop(&self) {
        signal_to(&self.process, "-STOP");
    }

    pub(crate) fn go_on(&self) {
        signal_to(&self.process, "-CONT");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn signal_to(process: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap().success());
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// The program of a server: what `REDIS_SERVER` names, or what there is. Where there is none, Debian's package is installed,
/// if that is allowed.
fn program() -> &'static str {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    let found = PROGRAM.get_or_init(|| {
        env::var("REDIS_SERVER").ok().or_else(installed).or_else(|| {
            println!("installing Debian's package redis-server");
            apt(&["update"]);
            apt(&["install", "-y", "--no-install-recommends", "redis-server"]);
            installed()
        })
    });
    found.as_deref().expect(
        "these tests start a Redis server: install redis-server (Debian: apt-get install redis-server) or valkey-server",
    )
}

fn installed() -> Option<String> {
    let runs = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    ["redis-server", "valkey-server"].into_iter().find(runs).map(str::to_owned)
}

/// Waits for whoever else installs something.
fn apt(arguments: &[&str]) {
    let apt = Command::new("apt-get").args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(arguments).output();
    if let Err(error) = apt {
        println!("apt-get cannot be run: {error}");
    }
}

/// When it answers; or nothing, if it ends.
fn run(port: u16, folder: &Path, arguments: &[String]) -> Option<Child> {
    let socket = folder.join("socket");
    let mut process = Command::new(program())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--dir", folder.to_str().unwrap(), "--unixsocket", socket.to_str().unwrap()])
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("`{}` does not start: {error}", program()));
    let started = Instant::now();
    while !answers(port) {
        if process.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "`{}` does not answer", program());
        thread::sleep(Duration::from_millis(5));
    }
    process.try_wait().unwrap().is_none().then_some(process)
}

fn answers(port: u16) -> bool {
    let ping = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        stream.read(&mut [0; 16])
    };
    ping().is_ok_and(|length| length > 0)
}
