//! Secrets show in no output, and leave no trace behind.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use crate::harness::{DEPLOYMENTS, Setup, Upload, binary, event, wait_until, wait_until_delivered};
use crate::local_aws::issuer::{ORGANIZATION, SUBJECT, now_seconds};
use crate::local_aws::{Fault, LocalAws};
use crate::tokens::{DAY_SECONDS, post, put, setup};

/// Puts a canary into each place that holds a secret, and lets everything go well and wrong once.
#[test]
fn a_canary_in_each_secret_place_appears_in_no_output_at_trace_level() {
    const CANARY: &str = "canary7f3a";
    let secret = |place: &str| format!("{CANARY}-{place}-0123456789");
    for (rust_log, log_format) in [("", "json"), ("trace", "json"), ("trace", "text")] {
        let aws = LocalAws::start();
        let issuer = aws.issuer.url();
        let token_url =
            issuer.replacen("://", &format!("://{CANARY}-user:{CANARY}-password@"), 1) + CANARY + "?secret=" + CANARY;
        let setup = setup(&aws)
            .set("ENV0_S3_LOG_INGEST_TOKEN", secret("static"))
            .set("ENV0_S3_LOG_OIDC_TOKEN_URL", token_url)
            .set("HTTPS_PROXY", format!("http://{CANARY}:{CANARY}@127.0.0.1:9"))
            .set("HTTP_PROXY", format!("http://{CANARY}:{CANARY}@127.0.0.1:9"))
            .set("NO_PROXY", "127.0.0.1")
            .set("ENV0_S3_LOG_LOG_LEVEL", "trace")
            .set("ENV0_S3_LOG_LOG_FORMAT", log_format)
            .set("RUST_LOG", rust_log);
        let mut daemon = setup.start();
        let static_token = secret("static");
        let oidc_token = aws.issuer.mint(json!({ "sub": SUBJECT, "note": CANARY, "exp": now_seconds() + DAY_SECONDS }));
        let sts_refuses = aws.issuer.mint(json!({ "sub": format!("auth0|{CANARY}-stranger"), "note": CANARY }));
        let not_let_in = aws.issuer.mint(json!({ "organizationId": CANARY }));

        let body = event(&secret("body"));
        let mut answers = vec![
            post(&daemon, DEPLOYMENTS, &static_token, &body),
            post(&daemon, DEPLOYMENTS, &static_token, format!("{body}\n{{\"{CANARY}\":}}")),
            post(&daemon, DEPLOYMENTS, &static_token, [CANARY.as_bytes(), b"\xff"].concat()),
            post(&daemon, DEPLOYMENTS, &secret("wrong"), &body),
            post(&daemon, DEPLOYMENTS, &not_let_in, &body),
            post(&daemon, &format!("{DEPLOYMENTS}?token={CANARY}"), &static_token, &body),
            post(&daemon, &format!("/{CANARY}"), &static_token, &body),
            daemon.send(Upload::post(&format!("/?token={}", secret("query"))).body(&body)),
            daemon.send(Upload::post(&format!("/receiver/v1/http/{}", secret("path"))).body(&body)),
            daemon.send(Upload::post(&format!("/receiver/v1/http/{static_token}")).body(&body)),
            daemon.send(Upload::post("/services/collector").header("X-Canary", CANARY).body(&body)),
            daemon.send(Upload::post(DEPLOYMENTS).bearer(&static_token).header("Content-Encoding", CANARY).body(&body)),
            daemon.send(Upload::new(CANARY, "/").body(&body)),
            put(&daemon, &sts_refuses),
        ];
        aws.s3.inject(Fault::access_denied().times(1));
        wait_until("STS has refused a token", || !aws.sts.exchanges().is_empty());
        answers.push(put(&daemon, &oidc_token));
        wait_until_delivered(&setup);

        let mut outputs = vec![("answers", answers.iter().map(|answer| answer.text() + "\n").collect::<String>())];
        for path in ["/status", "/status?history", "/metrics", "/", "/readyz?verbose", "/livez?verbose"] {
            outputs.push((path, daemon.admin_get(path).unwrap().text()));
        }
        let config = setup.run("config");
        assert_eq!(config.code, Some(0), "{}", config.stderr);
        outputs.push(("config", config.stdout + &config.stderr));
        for command in ["check", "check --json"] {
            let check = setup.run(command);
            assert!(check.stdout.contains("token"), "{}", check.stdout);
            outputs.push((command, check.stdout + &check.stderr));
        }
        daemon.terminate();
        outputs.push(("the log", daemon.log().text()));
        for (name, output) in outputs {
            for secret in [CANARY, &oidc_token, &sts_refuses, &not_let_in] {
                let line = output.lines().find(|line| line.contains(secret));
                assert!(line.is_none(), "RUST_LOG={rust_log}: a canary in {name}: {line:?}");
            }
        }
        assert!(aws.s3.lines().iter().any(|line| line.contains(CANARY)), "the canary did go through");
    }
}

#[test]
fn a_canary_in_the_proxys_userinfo_stays_out_of_an_outages_log() {
    const CANARY: &str = "canary7f3a";
    let aws = LocalAws::start();
    // Everything goes to a proxy where nobody listens.
    let setup = Setup::new(&aws)
        .set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION)
        .set("HTTP_PROXY", format!("http://{CANARY}:{CANARY}@127.0.0.1:9"))
        .set("ENV0_S3_LOG_OIDC_TOKEN_URL", format!("http://{CANARY}:{CANARY}@127.0.0.1:9/{CANARY}?{CANARY}"))
        .set("ENV0_S3_LOG_LOG_LEVEL", "trace")
        .set("RUST_LOG", "trace");
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("waits")).accepted(), 1);
    assert_eq!(put(&daemon, &aws.issuer.token()).status, 503);
    wait_until("the outage is told", || daemon.log().count("WARN", "no session from STS") > 0);
    let status = daemon.admin_get("/status").unwrap().text();
    for output in [daemon.log().text(), status, daemon.admin_get("/metrics").unwrap().text()] {
        let line = output.lines().find(|line| line.contains(CANARY));
        assert!(line.is_none(), "{line:?}");
    }
    assert!(aws.sts.exchanges().is_empty() && aws.issuer.discovery_fetches() == 0, "all goes through the proxy");
}

/// Whether a process may leave no core dump behind.
fn leaves_no_core(process_id: u32) -> bool {
    let limits = std::fs::read_to_string(format!("/proc/{process_id}/limits")).unwrap_or_default();
    limits.lines().any(|line| line.starts_with("Max core file size") && line.split_whitespace().nth(5) == Some("0"))
}

#[test]
fn no_command_that_holds_tokens_leaves_a_core_dump_behind() {
    let aws = LocalAws::start();
    aws.s3.hold_puts();
    let never_answers = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup::new(&aws)
        .set("ENV0_S3_LOG_BATCH_MAX_AGE", "3600s")
        .set("ENV0_S3_LOG_OIDC_TOKEN_URL", format!("http://{}/", never_answers.local_addr().unwrap()));
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("waits")).accepted(), 1);
    assert!(leaves_no_core(daemon.process_id()), "run");
    daemon.kill();
    for command in ["check", "drain"] {
        let mut process = std::process::Command::new(binary());
        process.arg(command).env_clear().envs(setup.environment()).stdout(std::process::Stdio::null());
        let mut process = process.stderr(std::process::Stdio::null()).spawn().unwrap();
        wait_until(command, || leaves_no_core(process.id()));
        process.kill().unwrap();
        process.wait().unwrap();
    }
    aws.s3.release_puts();
}

#[test]
#[cfg_attr(not(is_root), ignore = "becomes another user, which takes root")]
fn another_process_of_the_same_user_can_not_read_the_memory() {
    const USER: u32 = 65_534;
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    std::fs::set_permissions(setup.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(setup.spool()).unwrap();
    std::os::unix::fs::chown(setup.spool(), Some(USER), Some(USER)).unwrap();
    let setup = setup.of_user(USER);
    let daemon = setup.start();
    // The system gives a process that nobody may look into to root.
    let owner = |file| std::fs::metadata(format!("/proc/{}/{file}", daemon.process_id())).unwrap().uid();
    assert_eq!([owner("mem"), owner("environ")], [0, 0]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process_id())).unwrap();
    assert!(status.contains(&format!("Uid:\t{USER}\t")), "{status}");
}
