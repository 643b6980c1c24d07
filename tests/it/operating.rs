//! What an operator sees: probes, status, metrics, commands, TLS and compression of the real daemon.

use std::io::{Read, Write};

use serde_json::Value;

use crate::harness::{
    AUDITS, Answer, Books, DEPLOYMENTS, Daemon, Setup, TOKEN, Upload, event, field, wait_for, wait_until,
    wait_until_delivered,
};
use crate::local_aws::{BUCKET, Fault, LocalAws};

const TYPES: [&str; 2] = ["env0-deployments", "env0-audits"];

fn get(daemon: &Daemon, path: &str) -> Answer {
    daemon.admin_get(path).unwrap_or_else(|| panic!("{path} is not answered"))
}

/// The codes of `/livez`, `/healthz` and `/readyz`, each also with `?verbose`.
fn probes(daemon: &Daemon) -> [u16; 3] {
    ["/livez", "/healthz", "/readyz"].map(|path| {
        let (short, verbose) = (get(daemon, path), get(daemon, &format!("{path}?verbose")));
        assert_eq!(short.status, verbose.status, "{path}");
        assert!(verbose.text().contains("[+]") || verbose.text().contains("[-]"), "{path}: {}", verbose.text());
        short.status
    })
}

/// `/status`, which is well-formed in every state, as are `/metrics` and the page.
fn status(daemon: &Daemon) -> Value {
    for (path, content_type) in [("/metrics", "text/plain"), ("/", "text/html"), ("/status", "application/json")] {
        let answer = get(daemon, path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").is_some_and(|value| value.starts_with(content_type)), "{path}");
        let policy = answer.header("content-security-policy");
        assert!(policy.is_some_and(|policy| policy.contains("default-src 'none'")), "{path}: {policy:?}");
    }
    get(daemon, "/status").json()
}

fn of_type<'a>(status: &'a Value, log_type: &str) -> &'a Value {
    status["types"].as_array().unwrap().iter().find(|entry| entry["type"] == log_type).unwrap()
}

fn post(daemon: &Daemon, books: &Books, path: &str, count: usize) {
    let ids = books.ids(count);
    assert_eq!(daemon.post(path, Books::body(&ids)).accepted(), count as u64);
    books.acknowledge(ids);
}

/// At rest accepted + recovered = uploaded + spooled + quarantined, per type.
fn check_law(daemon: &Daemon) {
    for log_type in TYPES {
        let value = |name: &str| {
            daemon.metric(&format!("{name}{{type=\"{log_type}\"}}")).unwrap_or_else(|| panic!("no {name}"))
        };
        let law = || {
            let came = value("events_accepted_total") + value("events_recovered_total");
            came == value("events_uploaded_total") + value("events_spooled") + value("events_quarantined_total")
        };
        wait_until("accepted + recovered = uploaded + spooled + quarantined", law);
    }
}

#[test]
fn at_rest_everything_is_well() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    assert_eq!(probes(&daemon), [200; 3]);
    post(&daemon, &books, AUDITS, 3);
    books.balance(&aws, &setup);
    // The object is in the bucket a moment before the daemon has the answer.
    wait_until("the status tells of it", || of_type(&status(&daemon), "env0-audits")["events_uploaded"] == 3);
    let status = status(&daemon);
    assert_eq!((&status["phase"], &status["destination"]["bucket"]), (&"running".into(), &BUCKET.into()));
    let audits = of_type(&status, "env0-audits");
    assert_eq!(
        (&audits["events_uploaded"], &audits["error"], &audits["oldest_unsent"]),
        (&3.into(), &Value::Null, &Value::Null)
    );
    assert_eq!(audits["last_objects"][0]["key"], aws.s3.objects()[0].key);
    assert_eq!(audits["head"]["sha256"], aws.s3.objects()[0].sha256);
    check_law(&daemon);
    assert_eq!(daemon.metric("ingest_requests_total{type=\"env0-audits\",code=\"200\"}"), Some(1.0));
}

#[test]
fn while_s3_is_down_the_probes_hold_and_the_status_says_so_with_a_remedy() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::access_denied());
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    post(&daemon, &books, AUDITS, 2);
    let error = wait_for("the error is told", || {
        let error = of_type(&status(&daemon), "env0-audits")["error"].clone();
        error.is_object().then_some(error)
    });
    assert_eq!(error["code"], "AccessDenied", "{error}");
    assert!(error["message"].is_string() && error["remedy"].is_string() && error["request_id"].is_string(), "{error}");
    assert_eq!(probes(&daemon), [200; 3]);
    assert!(of_type(&status(&daemon), "env0-audits")["oldest_unsent"].is_string());
    assert_eq!(of_type(&status(&daemon), "env0-deployments")["error"], Value::Null);
    check_law(&daemon);
    aws.s3.heal();
    books.balance(&aws, &setup);
    wait_until("the error is over", || of_type(&status(&daemon), "env0-audits")["error"].is_null());
    assert!(of_type(&status(&daemon), "env0-audits")["last_outage"].is_object());
}

#[test]
fn while_sts_is_down_the_probes_hold_and_the_status_says_what_is_waited_for() {
    let aws = LocalAws::start();
    aws.sts.set_down();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    post(&daemon, &books, DEPLOYMENTS, 2);
    wait_until("it is told", || {
        status(&daemon)["credentials"]["waits_for"].as_str().is_some_and(|what| what.contains("STS"))
    });
    assert_eq!(probes(&daemon), [200; 3]);
    wait_until("the batch is sealed", || {
        setup.spool_files("env0-deployments").iter().any(|name| name.ends_with(".sealed"))
    });
    aws.sts.heal();
    books.balance(&aws, &setup);
    let credentials = status(&daemon)["credentials"].clone();
    assert_eq!((&credentials["waits_for"], &credentials["last_error"]), (&Value::Null, &Value::Null), "{credentials}");
    assert!(credentials["session_expires_at"].is_string(), "{credentials}");
    assert!(daemon.metric("credentials_expiry_timestamp_seconds") > Some(0.0));
    assert_eq!(daemon.log().count("WARN", "no session from STS for now"), 1);
    let end = daemon.log().find("STS gave a session for the role").unwrap();
    assert!(field(&end, "outage.seconds").is_u64(), "{end}");
    let resumed = daemon.log().find("there is a session again, and uploads go on").unwrap();
    assert_eq!(
        (field(&resumed, "log_type"), field(&resumed, "backlog.batches")),
        (&"env0-deployments".into(), &1.into())
    );
    assert!(
        field(&resumed, "backlog.bytes").as_u64() > Some(0) && field(&resumed, "outage.seconds").is_u64(),
        "{resumed}"
    );
}

#[test]
fn a_full_spool_fails_no_probe() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::slow_down());
    let setup =
        Setup::new(&aws).set("ENV0_S3_LOG_SPOOL_MAX_BYTES", "2MiB").set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB");
    let (daemon, books) = (setup.start(), Books::default());
    wait_until("the spool is full", || {
        let ids = books.ids(500);
        let answer = daemon.post(DEPLOYMENTS, Books::body(&ids));
        if answer.status == 200 {
            books.acknowledge(ids);
        }
        answer.status == 503
    });
    assert_eq!(probes(&daemon), [200; 3]);
    let spool = status(&daemon)["spool"].clone();
    assert_eq!(spool["limit_bytes"], 2 * 1024 * 1024);
    assert!(spool["bytes"].as_u64() > Some(1024 * 1024), "{spool}");
    check_law(&daemon);
    aws.s3.heal();
    books.balance(&aws, &setup);
}

#[test]
fn while_draining_only_readiness_fails_and_names_the_reason() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let setup = Setup::new(&aws);
    let (mut daemon, books) = (setup.start(), Books::default());
    post(&daemon, &books, DEPLOYMENTS, 2);
    daemon.signal_terminate();
    wait_until("readiness fails", || get(&daemon, "/readyz").status == 503);
    assert_eq!(probes(&daemon), [200, 200, 503]);
    let verbose = get(&daemon, "/readyz?verbose").text();
    assert!(verbose.contains("[-]not-draining") && verbose.contains("[+]disk ok"), "{verbose}");
    assert_eq!(status(&daemon)["phase"], "draining");
    aws.s3.release_puts();
    assert_eq!(daemon.wait().code(), Some(0));
    books.balance(&aws, &setup);
}

#[test]
fn unknown_paths_and_queries_of_the_admin_listener_are_404_and_change_nothing() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for path in [
        "/nope",
        "/livez/",
        "/livez?x",
        "/readyz?verbose=1",
        "/status?x=1",
        "/metrics?x",
        "/?x",
        "/debug/pprof",
        "/drain",
        "/v1/logs/env0-audits",
        "/v1/oidc-token",
        "//",
        "/../etc/passwd",
        "/status/history",
        "/%6civez",
    ] {
        assert_eq!(get(&daemon, path).status, 404, "{path}");
    }
    let before = status(&daemon);
    for path in ["/", "/livez", "/readyz", "/healthz", "/status", "/metrics", DEPLOYMENTS, "/v1/oidc-token"] {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let upload = Upload::new(method, path).bearer(TOKEN).body(event("not here"));
            let answer = upload.send(daemon.admin).unwrap();
            assert!([404, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
        }
    }
    let after = status(&daemon);
    for field in ["types", "instance", "phase", "credentials"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    assert!(!setup.spool_holds("not here"));
}

#[test]
fn healthcheck_exits_0_while_the_daemon_lives_and_1_without_it() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let setup = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string());
    assert_eq!(setup.run("healthcheck").code, Some(0));
    daemon.kill();
    let finished = setup.run("healthcheck");
    assert_eq!(finished.code, Some(1));
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("ENV0_S3_LOG_ADMIN_ADDR"), "{}", finished.stderr);
}

#[test]
fn healthcheck_prints_no_control_character_of_whoever_answers() {
    let aws = LocalAws::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_ADMIN_ADDR", listener.local_addr().unwrap().to_string());
    let finished = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.0 500 \x1b[31mred\x07\r\n\r\n\x1b]0;title\x07\nforged line\r\n").unwrap();
        });
        setup.run("healthcheck")
    });
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let line = finished.stderr.strip_suffix('\n').unwrap();
    assert!(line.contains("[31mred") && line.contains("forged line"), "{line:?}");
    assert!(!line.contains(char::is_control), "{line:?}");
}

#[test]
fn a_command_that_there_is_not_is_answered_with_those_that_there_are() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let finished = setup.run("status");
    assert_eq!(finished.code, Some(64), "{finished:?}");
    for words in ["check, config, drain, healthcheck, verify", "/status"] {
        assert!(finished.stderr.contains(words), "{words}: {}", finished.stderr);
    }
    for command in ["help", "help check"] {
        assert_eq!(setup.run(command).code, Some(0), "{command}");
    }
}

#[test]
fn config_shows_values_and_sources_and_no_secret() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws)
        .set("HTTPS_PROXY", "http://user:proxy-password@proxy.example.com:3128")
        .set("ENV0_S3_LOG_OIDC_TOKEN_URL", "https://example.com/url-secret");
    let finished = setup.run("config");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let value = |variable: &str| {
        let line = finished.stdout.lines().find(|line| line.starts_with(&format!("{variable}=")));
        line.unwrap_or_else(|| panic!("no {variable} in {}", finished.stdout)).to_owned()
    };
    assert_eq!(value("ENV0_S3_LOG_BUCKET_NAME"), format!("ENV0_S3_LOG_BUCKET_NAME={BUCKET}  # environment"));
    assert!(value("ENV0_S3_LOG_UPLOAD_CONCURRENCY").ends_with("=4  # default"));
    assert!(value("ENV0_S3_LOG_STORAGE_CLASS").ends_with("# not set"));
    for variable in ["ENV0_OIDC_TOKEN", "ENV0_S3_LOG_INGEST_TOKEN", "HTTPS_PROXY", "ENV0_S3_LOG_OIDC_TOKEN_URL"] {
        assert!(value(variable).contains("[redacted]"), "{}", value(variable));
    }
    for secret in [TOKEN, "proxy-password", "url-secret", "eyJ"] {
        assert!(!finished.stdout.contains(secret), "{secret} is shown");
    }
}

#[test]
fn help_names_every_variable_and_command_and_version_the_version() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let help = setup.run("--help");
    assert_eq!(help.code, Some(0));
    for variable in env0_s3_logs::config::VARIABLES {
        assert!(help.stdout.contains(variable.name), "--help lacks {}", variable.name);
    }
    for command in ["run", "config", "drain", "healthcheck", "verify"] {
        assert!(help.stdout.contains(&format!("  {command} ")), "--help lacks {command}");
    }
    let version = setup.run("--version");
    let revision = env0_s3_logs::telemetry::metrics::REVISION;
    let expected = format!("env0-s3-logs {} (revision {revision})\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((version.code, version.stdout), (Some(0), expected));
}

#[test]
fn wrong_usage_exits_64() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    for usage in
        ["nope", "--nope", "run now", "drain --timeout", "drain --timeout never", "config --x", "verify --from x"]
    {
        let finished = setup.run(usage);
        assert_eq!(finished.code, Some(64), "{usage}: {}", finished.stderr);
        assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{usage}");
    }
}

/// Leaves events of both types in the spool of a daemon that is killed.
fn leave_a_backlog(aws: &LocalAws, setup: &Setup, books: &Books) {
    aws.s3.inject(Fault::slow_down());
    let daemon = setup.start();
    post(&daemon, books, DEPLOYMENTS, 5);
    post(&daemon, books, AUDITS, 3);
    daemon.kill();
}

#[test]
fn drain_uploads_what_a_spool_holds_and_exits_0() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let books = Books::default();
    leave_a_backlog(&aws, &setup, &books);
    aws.s3.heal();
    let finished = setup.run("drain");
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stdout.contains(BUCKET), "{}", finished.stdout);
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.line_count(), 8);
    assert_eq!(setup.run("drain").code, Some(0), "an empty spool is drained at once");
    let _daemon = setup.start();
    books.balance(&aws, &setup);
}

#[test]
fn drain_that_runs_out_of_time_exits_69_and_leaves_all_where_it_was() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let books = Books::default();
    leave_a_backlog(&aws, &setup, &books);
    let finished = setup.run("drain --timeout 1s");
    assert_eq!(finished.code, Some(69), "{finished:?}");
    assert!(finished.stderr.contains("8 events"), "{finished:?}");
    aws.s3.heal();
    assert_eq!(setup.run("drain --timeout 60s").code, Some(0));
    books.balance(&aws, &setup);
}

#[test]
fn drain_of_a_spool_that_a_daemon_holds_exits_73() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    let finished = setup.run("drain");
    assert_eq!(finished.code, Some(73), "{}", finished.stderr);
    post(&daemon, &books, AUDITS, 1);
    books.balance(&aws, &setup);
}

#[test]
fn drain_sends_another_replicas_spool_where_its_events_were_accepted_for() {
    let aws = LocalAws::start();
    let old = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_PATH", "old/place");
    let books = Books::default();
    leave_a_backlog(&aws, &old, &books);
    aws.s3.heal();
    let new =
        Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_PATH", "new/place").set("ENV0_S3_LOG_BUCKET_NAME", "another-bucket");
    let finished = new.run(&format!("drain --spool {}", old.spool().display()));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    books.balance(&aws, &old);
    assert!(aws.s3.objects().iter().all(|object| object.key.starts_with("old/place/env0-")));
    assert_eq!(aws.s3.line_count(), 8);
}

#[test]
fn the_books_of_the_metrics_balance_after_a_crash_and_a_restart() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let books = Books::default();
    leave_a_backlog(&aws, &setup, &books);
    let daemon = setup.start();
    let value = |daemon: &Daemon, name: &str, log_type: &str| daemon.metric(&format!("{name}{{type=\"{log_type}\"}}"));
    assert_eq!(value(&daemon, "events_recovered_total", "env0-deployments"), Some(5.0));
    assert_eq!(value(&daemon, "events_spooled", "env0-audits"), Some(3.0));
    check_law(&daemon);
    post(&daemon, &books, AUDITS, 4);
    check_law(&daemon);
    aws.s3.heal();
    books.balance(&aws, &setup);
    // The object is in the bucket a moment before the daemon has counted it.
    wait_until("all is counted as uploaded", || value(&daemon, "events_uploaded_total", "env0-audits") == Some(7.0));
    check_law(&daemon);
    assert_eq!(value(&daemon, "events_spooled", "env0-audits"), Some(0.0));
    assert_eq!(value(&daemon, "spool_bytes", "env0-audits"), Some(0.0));
    assert_eq!(value(&daemon, "oldest_unsent_timestamp_seconds", "env0-audits").unwrap_or_default(), 0.0);
}

#[test]
fn compressed_objects_hold_the_lines_that_were_sent_even_after_a_kill() {
    for (codec, extension) in [("gzip", ".log.gz"), ("zstd", ".log.zst")] {
        let aws = LocalAws::start();
        let setup = Setup::new(&aws).set("ENV0_S3_LOG_COMPRESSION", codec).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64KiB");
        let books = Books::default();
        let mut sent = Vec::new();
        aws.s3.inject(Fault::lose_response().times(2));
        for _ in 0..3 {
            let daemon = setup.start();
            for path in [DEPLOYMENTS, AUDITS, DEPLOYMENTS] {
                let ids = books.ids(700);
                let body = Books::body(&ids);
                assert_eq!(daemon.post(path, &body).accepted(), 700);
                sent.extend(body.lines().map(str::to_owned));
            }
            daemon.kill();
        }
        let _daemon = setup.start();
        wait_until_delivered(&setup);
        let mut found = Vec::new();
        for object in aws.s3.objects() {
            assert!(object.key.ends_with(extension), "{}", object.key);
            assert!(!object.headers.contains_key("content-encoding"), "{}", object.key);
            let mut text = String::new();
            match codec {
                "gzip" => flate2::read::MultiGzDecoder::new(&object.body[..]).read_to_string(&mut text).unwrap(),
                _ => zstd::Decoder::new(&object.body[..]).unwrap().read_to_string(&mut text).unwrap(),
            };
            assert_eq!(object.metadata["env0-records"], text.lines().count().to_string(), "{}", object.key);
            assert_eq!(object.metadata["env0-sha256"], object.sha256, "{}", object.key);
            assert!(text.ends_with('\n') && object.body.len() < text.len(), "{}", object.key);
            found.extend(text.lines().map(str::to_owned));
        }
        sent.sort();
        found.sort();
        assert!(sent == found, "{codec}: {} lines sent, {} found", sent.len(), found.len());
    }
}
