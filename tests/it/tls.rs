//! TLS and mTLS on the ingest listener; certificates replaced while it runs.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use crate::harness::{Books, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, field, wait_until};
use crate::laws::memory_bytes;
use crate::local_aws::LocalAws;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A CA of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for `localhost`, PEM.
    fn issue(&self) -> (String, String) {
        self.issue_until(4096)
    }

    fn issue_until(&self, year: i32) -> (String, String) {
        self.issue_for(&KeyPair::generate().unwrap(), year)
    }

    fn issue_for(&self, key: &KeyPair, year: i32) -> (String, String) {
        self.issue_that_ends(key, rcgen::date_time_ymd(year, 1, 1).into())
    }

    fn issue_that_ends(&self, key: &KeyPair, end: SystemTime) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = end.into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// A client that trusts this authority, with a certificate of its own where one is given.
    fn connect(&self, daemon: &Daemon, own: Option<(String, String)>) -> Tls {
        connect(daemon, self.client(own))
    }

    /// What such a client keeps between its connections: tickets to come again with.
    fn client(&self, own: Option<(String, String)>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        })
    }
}

fn connect(daemon: &Daemon, client: Arc<ClientConfig>) -> Tls {
    let connection = ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
    StreamOwned::new(connection, TcpStream::connect(daemon.listen).unwrap())
}

/// The files of the variables, and a setup that names them.
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn set_in(setup: Setup) -> (Setup, Files) {
        let files = Files { cert: setup.folder().join("tls.crt"), key: setup.folder().join("tls.key") };
        let setup = setup
            .set("ENV0_S3_LOG_TLS_CERT_FILE", files.cert.to_str().unwrap())
            .set("ENV0_S3_LOG_TLS_KEY_FILE", files.key.to_str().unwrap());
        (setup, files)
    }

    fn write(&self, (cert, key): (String, String)) {
        std::fs::write(&self.cert, cert).unwrap();
        std::fs::write(&self.key, key).unwrap();
    }
}

/// Posts events on a connection that stays open; the status, or the reason why there is none.
fn post(tls: &mut Tls, body: &str) -> std::io::Result<u16> {
    let length = body.len();
    write!(
        tls,
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // The answer's body is one line of JSON.
    while !answer.ends_with(b"}") {
        match tls.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(String::from_utf8(answer).unwrap().split(' ').nth(1).unwrap().parse().unwrap())
}

fn post_new(tls: &mut Tls, books: &Books) {
    let ids = books.ids(2);
    assert_eq!(post(tls, &Books::body(&ids)).unwrap(), 200);
    books.acknowledge(ids);
}

#[test]
fn a_replaced_certificate_is_used_without_a_restart_and_drops_no_connection() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let (old, new) = (Authority::new(), Authority::new());
    files.write(old.issue());
    let (daemon, books) = (setup.start(), Books::default());
    let mut open = old.connect(&daemon, None);
    post_new(&mut open, &books);
    assert!(post(&mut new.connect(&daemon, None), "").is_err(), "a stranger's certificate was trusted");
    assert!(daemon.metric("tls_expiry_timestamp_seconds").is_some());

    files.write(new.issue());
    wait_until("the new certificate is used", || post(&mut new.connect(&daemon, None), "").is_ok_and(|s| s == 200));
    post_new(&mut new.connect(&daemon, None), &books);
    post_new(&mut open, &books);

    std::fs::write(&files.cert, "no certificate").unwrap();
    wait_until("the broken one is told", || {
        // A look at the files is taken when a connection comes.
        post_new(&mut new.connect(&daemon, None), &books);
        daemon.log().count("ERROR", "TLS certificate") == 1
    });
    post_new(&mut new.connect(&daemon, None), &books);
    books.balance(&aws, &setup);
}

#[test]
fn in_clear_nothing_gets_in() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    files.write(Authority::new().issue());
    let daemon = setup.start();
    let answer = daemon.try_post(DEPLOYMENTS, crate::harness::event("in-clear"));
    assert!(answer.is_err(), "{answer:?}");
    assert!(!setup.spool_holds("in-clear"));
}

#[test]
fn a_client_whose_certificate_has_ended_does_not_come_again_by_its_ticket() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let authority = Authority::new();
    files.write(authority.issue());
    let ca = setup.folder().join("clients.pem");
    std::fs::write(&ca, authority.0.pem()).unwrap();
    let daemon = setup.set("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", ca.to_str().unwrap()).start();
    let end = SystemTime::now() + Duration::from_secs(4);
    let client = authority.client(Some(authority.issue_that_ends(&KeyPair::generate().unwrap(), end)));
    let mut first = connect(&daemon, client.clone());
    assert_eq!(post(&mut first, "{}").unwrap(), 200);
    let mut again = connect(&daemon, client.clone());
    assert_eq!(post(&mut again, "{}").unwrap(), 200);
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    wait_until("it is refused", || post(&mut connect(&daemon, client.clone()), "{}").is_err());
    assert!(SystemTime::now() > end - Duration::from_secs(1));
    let said = |entry: &_| field(entry, "detail").as_str().is_some_and(|detail| detail.contains("has ended since"));
    wait_until("it is said", || daemon.log().entries().iter().any(said));
}

#[test]
fn with_a_client_ca_only_its_clients_get_in() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let (servers, clients) = (Authority::new(), Authority::new());
    files.write(servers.issue());
    let ca = setup.folder().join("clients.crt");
    std::fs::write(&ca, clients.0.pem()).unwrap();
    let setup = setup.set("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", ca.to_str().unwrap());
    let (daemon, books) = (setup.start(), Books::default());
    post_new(&mut servers.connect(&daemon, Some(clients.issue())), &books);
    for own in [None, Some(servers.issue())] {
        assert!(post(&mut servers.connect(&daemon, own), "").is_err(), "let in without a certificate of the client CA");
    }
    books.balance(&aws, &setup);
}

#[test]
fn a_certificate_that_can_not_be_used_ends_the_start_and_is_named() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let (cert, _) = Authority::new().issue();
    let (_, other_key) = Authority::new().issue();
    files.write((cert, other_key));
    let finished = setup.run("run");
    assert_eq!(finished.code, Some(78), "{}", finished.stderr);
    assert!(finished.stderr.contains("ENV0_S3_LOG_TLS_"), "{}", finished.stderr);
}

#[test]
fn a_certificate_that_has_ended_is_an_error_at_every_reading_and_fails_check() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let authority = Authority::new();
    files.write(authority.issue_until(2024));
    let check = setup.run("check --offline");
    assert_eq!(check.code, Some(78), "{}", check.stdout);
    assert!(check.stdout.contains("the certificate ended at 2024-01-01"), "{}", check.stdout);
    let daemon = setup.start();
    assert_eq!(daemon.log().count("ERROR", "the certificate ended at 2024-01-01"), 1);
    daemon.signal_hang_up();
    wait_until("it is said again", || daemon.log().count("ERROR", "the certificate ended at 2024-01-01") == 2);
    files.write(authority.issue());
    daemon.signal_hang_up();
    wait_until("the new one is used", || post(&mut authority.connect(&daemon, None), "").is_ok_and(|s| s == 200));
    assert_eq!(daemon.log().count("ERROR", "ended"), 2);
}

#[test]
fn a_certificate_that_has_not_begun_is_an_error_at_a_start_and_fails_check() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2090, 1, 1);
    params.not_after = rcgen::date_time_ymd(4096, 1, 1);
    files.write((params.signed_by(&key, &authority.0).unwrap().pem(), key.serialize_pem()));
    let check = setup.run("check --offline");
    assert_eq!(check.code, Some(78), "{}", check.stdout);
    assert!(check.stdout.contains("the certificate begins at 2090-01-01"), "{}", check.stdout);
    assert_eq!(setup.start().log().count("ERROR", "the certificate begins at 2090-01-01"), 1);
}

#[test]
fn sighup_reads_the_files_again_and_nothing_ends() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let authority = Authority::new();
    files.write(authority.issue());
    let tokens = setup.folder().join("tokens");
    std::fs::write(&tokens, "a-token-of-the-token-file\n").unwrap();
    let setup = setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", tokens.to_str().unwrap());
    let (mut daemon, books) = (setup.start(), Books::default());
    let mut open = authority.connect(&daemon, None);
    post_new(&mut open, &books);
    daemon.signal_hang_up();
    for file in ["the TLS certificate", "the file of ENV0_S3_LOG_INGEST_TOKEN_FILE"] {
        wait_until(file, || daemon.log().count("INFO", &format!("{file} is as it was and was read again")) == 1);
    }
    assert_eq!(daemon.log().count("INFO", "changed and was read again"), 0, "nothing has changed");
    post_new(&mut open, &books);
    assert!(daemon.is_running());
    books.balance(&aws, &setup);
}

#[test]
fn what_tls_refuses_is_counted_by_reason_and_said_once() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let (servers, clients) = (Authority::new(), Authority::new());
    files.write(servers.issue());
    let ca = setup.folder().join("clients.crt");
    std::fs::write(&ca, clients.0.pem()).unwrap();
    let setup = setup.set("ENV0_S3_LOG_TLS_CLIENT_CA_FILE", ca.to_str().unwrap());
    let daemon = setup.start();
    for _ in 0..3 {
        assert!(post(&mut servers.connect(&daemon, None), "").is_err());
        assert!(daemon.try_post(DEPLOYMENTS, "in clear").is_err());
        // A probe of a load balancer: no refusal.
        drop(TcpStream::connect(daemon.listen).unwrap());
    }
    let refused = |reason| daemon.metric(&format!("connections_refused_total{{reason=\"{reason}\"}}"));
    wait_until("all are counted", || refused("client_certificate") == Some(3.0) && refused("tls") == Some(3.0));
    assert_eq!(daemon.log().count("WARN", "a connection was refused"), 2);
    let entries = daemon.log().entries();
    let details: Vec<_> = entries.iter().filter_map(|entry| field(entry, "detail").as_str()).collect();
    assert!(details.iter().any(|detail| detail.contains("plain HTTP perhaps: use https://")), "{details:?}");
}

#[test]
fn a_tls_sender_at_another_address_gets_in_while_one_floods_handshakes() {
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws).set("ENV0_S3_LOG_MAX_CONNECTIONS", "64"));
    let authority = Authority::new();
    files.write(authority.issue());
    let daemon = setup.start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for flood in 0..2 {
            let (daemon, done) = (&daemon, &done);
            scope.spawn(move || {
                let mut held = VecDeque::new();
                while !done.load(Ordering::SeqCst) {
                    held.extend(Raw::connect_from(2 + flood, daemon.listen));
                    if held.len() > 200 {
                        held.pop_front();
                    }
                }
            });
        }
        let sent: Vec<_> = (0..10).map(|_| post(&mut authority.connect(&daemon, None), "{\"a\":1}").ok()).collect();
        done.store(true, Ordering::SeqCst);
        assert_eq!(sent, [Some(200); 10]);
    });
}

/// With such a key the daemon computes for milliseconds, and who begins a handshake for microseconds.
#[test]
fn handshakes_with_a_large_key_hold_up_no_request_and_no_other_address() {
    const FLOODS: u16 = 24;
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let authority = Authority::new();
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_4096).unwrap();
    files.write(authority.issue_for(&key, 4096));
    let daemon = setup.start();
    let mut open = authority.connect(&daemon, None);
    assert_eq!(post(&mut open, "{}").unwrap(), 200);
    let mut hello = Vec::new();
    authority.connect(&daemon, None).conn.write_tls(&mut hello).unwrap();
    let (done, computed) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for flood in 0..FLOODS {
            let (daemon, hello, done, computed) = (&daemon, &hello, &done, &computed);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let begun: Vec<_> = (0..8)
                        .filter_map(|_| {
                            let mut raw = Raw::connect_from(2 + flood, daemon.listen).ok()?;
                            raw.write(hello).ok().map(|()| raw)
                        })
                        .collect();
                    for mut raw in begun {
                        computed.fetch_add(usize::from(!raw.is_closed()), Ordering::SeqCst);
                    }
                }
            });
        }
        let slowest = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until("the flood runs", || computed.load(Ordering::SeqCst) > usize::from(FLOODS));
            let mut slowest = [Duration::ZERO; 2];
            for _ in 0..20 {
                let sent = Instant::now();
                assert_eq!(post(&mut open, "{}").unwrap(), 200);
                slowest[0] = slowest[0].max(sent.elapsed());
                let sent = Instant::now();
                assert_eq!(post(&mut authority.connect(&daemon, None), "{}").unwrap(), 200);
                slowest[1] = slowest[1].max(sent.elapsed());
            }
            slowest
        }));
        done.store(true, Ordering::SeqCst);
        let slowest = slowest.unwrap();
        println!("{slowest:?}, beside {computed:?} handshakes");
        assert!(slowest.iter().all(|took| *took < Duration::from_secs(2)), "answered after {slowest:?}");
    });
}

#[test]
fn large_heads_and_half_records_of_known_senders_take_a_few_mebibytes_in_all() {
    const CONNECTIONS: usize = 600;
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws));
    let authority = Authority::new();
    files.write(authority.issue());
    let daemon = setup.start();
    let headers: String = (0..90).map(|number| format!("x-{number}: {}\r\n", "x".repeat(160))).collect();
    let request = format!(
        "POST {DEPLOYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n{headers}\r\n"
    );
    let half_record = [&[0x17, 3, 3, 0x40, 0][..], &[b'x'; 14_000]].concat();
    let before = memory_bytes(&daemon, "VmRSS");
    let waiting: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = authority.connect(&daemon, None);
            // Those that are closed for others keep nothing any more.
            let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.sock.write_all(&half_record));
            stream
        })
        .collect();
    assert_eq!(post(&mut authority.connect(&daemon, None), "{}").unwrap(), 200);
    wait_until("some are closed for the memory of the others", || {
        daemon.metric("connections_refused_total{reason=\"limit\"}").unwrap() > 0.0
    });
    let grown = memory_bytes(&daemon, "VmRSS").saturating_sub(before);
    // 24 KiB for each connection, and 4 MiB for larger heads and pieces of TLS of senders.
    assert!(grown < waiting.len() * 24 * 1024 + 4 * 1024 * 1024, "{} KiB more in memory", grown / 1024);
}

#[test]
fn half_records_of_strangers_at_many_addresses_close_no_sender() {
    // Each from an address of its own; more in all than strangers may keep.
    const STRANGERS: u16 = 400;
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "64GiB"));
    let authority = Authority::new();
    files.write(authority.issue());
    let daemon = setup.start();
    // A ClientHello of 16 KiB begins.
    let half_record = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 8000]].concat();
    let strangers: Vec<_> = (0..STRANGERS)
        .map(|number| {
            let mut raw = Raw::connect_from(2 + number, daemon.listen).unwrap();
            // Those that are closed for others keep nothing any more.
            let _ = raw.write(&half_record);
            raw
        })
        .collect();
    wait_until("strangers are closed for others", || {
        daemon.metric("connections_refused_total{reason=\"limit\"}").unwrap() > 0.0
    });
    for bytes in [1000, 8000, 64_000, 900_000].into_iter().cycle().take(40) {
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(bytes));
        assert_eq!(post(&mut authority.connect(&daemon, None), &body).unwrap(), 200, "{bytes} bytes");
    }
    drop(strangers);
}

#[test]
fn idle_connections_keep_no_room_for_the_large_bodies_that_they_sent() {
    const CONNECTIONS: usize = 400;
    let aws = LocalAws::start();
    let (setup, files) = Files::set_in(Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "64GiB"));
    let authority = Authority::new();
    files.write(authority.issue());
    let daemon = setup.start();
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(400_000));
    let before = memory_bytes(&daemon, "VmRSS");
    let idle: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = authority.connect(&daemon, None);
            assert_eq!(post(&mut stream, &body).unwrap(), 200);
            stream
        })
        .collect();
    let mut least = usize::MAX;
    wait_until("what the bodies took is given back", || {
        assert_eq!(post(&mut authority.connect(&daemon, None), "{}").unwrap(), 200);
        least = least.min(memory_bytes(&daemon, "VmRSS") - before);
        least < CONNECTIONS * 24 * 1024 + 12 * 1024 * 1024
    });
    drop(idle);
}
