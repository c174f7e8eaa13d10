//! The log: what whoever runs the gateway is told, and what nobody is.

use std::{
    io::{self, Write},
    sync::{Mutex, Once, PoisonError},
};

use apsis_auth::{
    AccessToken, HttpsTransport,
    emulator::{Answer, Emulator},
};
use http::StatusCode;
use rustls::RootCertStore;
use tracing::Level;

use super::support::{Gateway, auth, limited, settings};

#[tokio::test]
async fn the_token_is_in_no_answer_and_in_no_log() {
    limited(async {
        Log::start();
        for over_tls in [false, true] {
            let apsis = Emulator::new();
            let server = if over_tls { apsis.serve_https().await } else { apsis.serve().await }.unwrap();
            let mut roots = RootCertStore::empty();
            let mut auth = auth(&apsis, &server.url());
            if let (Some(der), Some(pem)) = (server.certificate_der(), server.certificate_pem()) {
                roots.add(der.to_vec().into()).unwrap();
                auth = auth.transport(HttpsTransport::trusting(pem.as_bytes()).unwrap());
            }
            let gateway = Gateway::with(&server.url(), auth, settings(), roots).await;
            let mut tokens = vec![gateway.token.get().await.unwrap()];

            let id = format!("marked-{over_tls}");
            let own = "authorization: Basic Y2FsbGVyLXNlY3JldA==\r\ncookie: Y2FsbGVyLXNlY3JldA==\r\n\
                       proxy-authorization: Basic Y2FsbGVyLXNlY3JldA==";
            let mut answers = Vec::new();
            for request in
                ["GET /apsis/audience/keyspaces", "POST /apsis/no/such/route", "TRACE /apsis/x", "GET /readyz"]
            {
                answers.push(gateway.ask(&format!("{request}\r\nx-request-id: {id}\r\n{own}")).await);
            }
            apsis.revoke_tokens();
            answers.push(gateway.ask("GET /apsis/audience/sections").await);
            tokens.push(gateway.token.get().await.unwrap());
            apsis.script_token_answers([Answer::status(StatusCode::BAD_REQUEST)]);
            apsis.revoke_tokens();
            answers.push(gateway.ask("GET /apsis/audience/sections").await);

            let statuses: Vec<_> = answers.iter().map(super::support::Answer::status).collect();
            assert_eq!(statuses, [200, 403, 501, 200, 200, 401]);
            let log = Log::text();
            assert!(
                log.contains(&id) && log.contains("TRACE") && log.contains("hyper_util::client"),
                "the log is heard"
            );
            assert!(!over_tls || log.contains("h2::"), "and HTTP/2 in it");
            assert!(
                log.contains("Sensitive") && !log.contains("Y2FsbGVyLXNlY3JldA"),
                "the caller's secrets are not in it"
            );
            for secret in tokens.iter().map(AccessToken::expose_secret).chain([apsis.api_key().client_secret()]) {
                assert!(!log.contains(secret));
                assert!(!format!("{answers:?}").contains(secret));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_target_is_in_no_log_unless_debugging_asks_for_it() {
    limited(async {
        Log::start();
        let gateway = Gateway::to("http://127.0.0.1:9").await;
        gateway.ask("GET /apsis/profiles/someone%40example.com").await;
        let log = Log::text();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("someone%40example.com")).collect();
        assert!(!lines.is_empty());
        let quiet = |line: &&str| line.contains("DEBUG") || line.contains("TRACE");
        assert!(lines.iter().all(quiet), "{lines:#?}");
    })
    .await;
}

#[tokio::test]
async fn what_became_of_a_rejection_is_in_the_log_of_its_request() {
    limited(async {
        Log::start();
        let apsis = Emulator::new();
        let server = apsis.serve().await.unwrap();
        let gateway = Gateway::with_auth(&server.url(), auth(&apsis, &server.url())).await;
        gateway.token.get().await.unwrap();
        let keyspaces = "GET /apsis/audience/keyspaces\r\nx-request-id: rejected-and";
        let rejection = || Answer::status(StatusCode::UNAUTHORIZED);

        apsis.revoke_tokens();
        assert_eq!(gateway.ask(&format!("{keyspaces}-replayed")).await.status(), 200);
        apsis.script_api_answers([rejection(), rejection()]);
        assert_eq!(gateway.ask(&format!("{keyspaces}-again")).await.status(), 401);
        apsis.script_api_answers([rejection()]);
        assert_eq!(gateway.ask(&format!("{keyspaces}-not-renewed")).await.status(), 401);
        apsis.script_api_answers([rejection().early()]);
        let upload = "POST /apsis/x HTTP/1.1\r\nhost: localhost\r\nx-request-id: rejected-and-not-replayable\r\n\
                      content-length: 8\r\n\r\nhalf";
        assert_eq!(gateway.hears(upload).await.head().await.status(), 401);

        for (id, level, said) in [
            ("rejected-and-replayed", "INFO", "replayed with a new token status=200"),
            ("rejected-and-again", "WARN", "rejected, and with a new token again status=401"),
            (
                "rejected-and-not-renewed",
                "WARN",
                "rejected, and there is no new token status=401 error=the API rejected the",
            ),
            ("rejected-and-not-replayable", "WARN", "rejected; the body cannot be sent again"),
        ] {
            let log = Log::text();
            let of_the_request = |line: &&str| line.contains(&format!("\"{id}\"")) && line.contains(said);
            let lines: Vec<_> = log.lines().filter(of_the_request).collect();
            assert!(lines.len() == 1 && lines[0].contains(level), "{id}: {lines:#?}");
        }
    })
    .await;
}

/// All that is traced in this process, by any test and at every level.
struct Log;

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

impl Log {
    fn start() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false).with_writer(|| Log).init();
        });
    }

    fn text() -> String {
        String::from_utf8_lossy(&LOG.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
