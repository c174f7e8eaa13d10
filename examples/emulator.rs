//! Serves the emulator until Ctrl-C, and prints how to talk to it.
//!
//! ```text
//! cargo run --example emulator --features emulator
//! cargo run --example emulator --features emulator -- --https --port 8443
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this program is for")]

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{self, ExitCode},
};

use apsis_auth::emulator::{ApiKey, Counters, Emulator, EmulatorServer};

const USAGE: &str = "usage: emulator [--https] [--port N]

  --https   serve HTTPS with a certificate made at start (default: HTTP)
  --port N  listen on 127.0.0.1:N (default: a port that the system chooses)";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if env::args().any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> io::Result<()> {
    let emulator = Emulator::new();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    let server = if options.https { emulator.serve_https_on(addr).await } else { emulator.serve_on(addr).await };
    let server = server.map_err(|error| io::Error::new(error.kind(), format!("{addr}: {error}")))?;
    let certificate = write_certificate(&server)?;
    print_instructions(&server, &emulator.api_key(), certificate.as_ref());

    tokio::signal::ctrl_c().await?;

    server.shutdown().await;
    if let Some(path) = certificate {
        fs::remove_file(path)?;
    }
    print_counters(&emulator.counters());
    Ok(())
}

struct Options {
    https: bool,
    port: u16,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { https: false, port: 0 };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--https" => options.https = true,
                "--port" => options.port = parse_port(args.next())?,
                _ => return Err(format!("unknown argument: {arg}")),
            }
        }
        Ok(options)
    }
}

fn parse_port(arg: Option<String>) -> Result<u16, String> {
    let arg = arg.ok_or("--port needs a number")?;
    arg.parse().map_err(|_| format!("not a port between 0 and 65535: {arg}"))
}

/// Where `curl --cacert` finds it.
fn write_certificate(server: &EmulatorServer) -> io::Result<Option<PathBuf>> {
    let Some(pem) = server.certificate_pem() else {
        return Ok(None);
    };
    let name = format!("apsis-one-emulator-{}-{}.pem", process::id(), server.addr().port());
    let path = env::temp_dir().join(name);
    // Not over a file that is there: the folder belongs to everybody.
    File::create_new(&path)?.write_all(pem.as_bytes())?;
    Ok(Some(path))
}

fn print_instructions(server: &EmulatorServer, key: &ApiKey, certificate: Option<&PathBuf>) {
    let url = server.url();
    let id = key.client_id();
    let secret = key.client_secret();
    let curl = match certificate {
        Some(path) => format!("curl -sS -w '\\n' --cacert '{}'", path.display()),
        None => "curl -sS -w '\\n'".to_owned(),
    };
    let auth = "-H \"Authorization: Bearer $TOKEN\"";
    let profile = format!("'{url}/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com");
    println!(
        r#"APSIS One, emulated, at {url} until Ctrl-C.

client ID      {id}
client secret  {secret}

# A token
TOKEN=$({curl} '{url}/oauth/token' -H 'Content-Type: application/json' -d '{{"grant_type":"client_credentials","client_id":"{id}","client_secret":"{secret}"}}' | sed 's/.*"access_token":"\([^"]*\)".*/\1/')

# The keyspaces
{curl} '{url}/audience/keyspaces' {auth}

# A profile: create it, change an attribute, add an event, read it
{curl} -i -X POST {profile}' {auth}
{curl} -i -X PATCH {profile}/attributes' {auth} -H 'Content-Type: application/merge-patch+json' -d '{{"city":"Malmo"}}'
{curl} -i -X POST {profile}/events' {auth} -H 'Content-Type: application/json' -d '{{"event":"visited"}}'
{curl} {profile}' {auth}
"#
    );
}

fn print_counters(counters: &Counters) {
    let rows = [
        ("token requests", counters.token_requests),
        ("  issued a token", counters.tokens_issued),
        ("  over the limit", counters.token_limited),
        ("  wrong credentials", counters.token_denials),
        ("  not understood", counters.token_bad_requests),
        ("API requests", counters.api_requests),
        ("  accepted", counters.api_accepted),
        ("  token rejected", counters.api_rejected),
        ("  over the limit", counters.api_limited),
        ("  body too large", counters.api_too_large),
        ("  other problems", counters.api_problems),
        ("  no such route", counters.unknown_routes),
    ];
    println!();
    for (what, count) in rows {
        println!("{what:<20} {count:>6}");
    }
}
