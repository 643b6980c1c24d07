//! A log type that is pulled and sent as well would be stored twice: that is told, and only where it can be so.

use serde_json::{Value, json};

use crate::harness::{AUDITS, DEPLOYMENTS, Daemon, Setup, TOKEN, Upload, event, wait_until};
use crate::local_aws::LocalAws;
use crate::local_aws::issuer::ORGANIZATION;
use crate::local_env0::LocalEnv0;

const CAN: &str = "and the API key pulls that as well";
const DOES: &str = "is pulled with the API key, and a sender has sent some of it";
const WHAT_HAPPENS: &str = "stored twice";

/// A daemon that pulls `types` and lets no sender in.
fn puller(aws: &LocalAws, env0: &LocalEnv0, types: &str) -> Setup {
    let setup = env0.environment().into_iter().fold(Setup::new(aws), |setup, (name, value)| setup.set(name, value));
    setup.set("ENV0_S3_LOG_PULL", types).unset("ENV0_S3_LOG_INGEST_TOKEN")
}

/// Lets in who has the static token for `log_type`, or for all types where it is empty.
fn letting_in(setup: Setup, log_type: &str) -> Setup {
    let file = setup.folder().join("ingest-tokens");
    std::fs::write(&file, format!("{TOKEN} {log_type}\n")).unwrap();
    setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", file.display().to_string())
}

/// How often the daemon has told that a pulled type came from a sender.
fn told(daemon: &Daemon) -> usize {
    daemon.log().count("WARN", DOES)
}

#[test]
fn check_and_run_warn_of_a_token_that_opens_nothing_but_what_is_pulled() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let both = "env0-audits,env0-deployments";
    let cases = [
        (puller(&aws, &env0, both).set("ENV0_S3_LOG_INGEST_TOKEN", TOKEN), true),
        (puller(&aws, &env0, both).set("ENV0_S3_LOG_INGEST_AUTH", "none"), true),
        (letting_in(puller(&aws, &env0, both), ""), true),
        (letting_in(puller(&aws, &env0, "env0-audits"), "env0-audits"), true),
        (letting_in(puller(&aws, &env0, "env0-audits"), "env0-deployments"), false),
        // It can write the other type, which is not pulled.
        (letting_in(puller(&aws, &env0, "env0-audits"), ""), false),
        // That may be for the hand-over alone.
        (puller(&aws, &env0, both).set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION), false),
        (puller(&aws, &env0, both), false),
    ];
    for (setup, warns) in cases {
        let checked = setup.run("check --offline");
        let context = format!("{:?}\n{}", setup.environment(), checked.stdout);
        assert_eq!(checked.stdout.contains("[warn] pull-alone"), warns, "{context}");
        for words in [CAN, WHAT_HAPPENS, "ENV0_S3_LOG_PULL or"] {
            assert_eq!(checked.stdout.contains(words), warns, "{words}: {context}");
        }
        let daemon = setup.start();
        assert_eq!(daemon.log().count("WARN", CAN), usize::from(warns), "{context}");
    }
}

#[test]
fn a_pulled_log_type_that_a_sender_sends_is_told_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = letting_in(puller(&aws, &env0, "env0-audits"), "");
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("not pulled")).status, 200);
    assert_eq!(told(&daemon), 0, "{}", daemon.log().text());
    for _ in 0..3 {
        assert_eq!(daemon.post(AUDITS, event("pulled, too")).status, 200);
    }
    assert_eq!((told(&daemon), daemon.log().count("WARN", WHAT_HAPPENS)), (1, 1), "{}", daemon.log().text());
    let seen = |log_type: &str| {
        let status = daemon.admin_get("/status").unwrap().json();
        let of_type = status["types"].as_array().unwrap().iter().find(|of| of["type"] == log_type).unwrap().clone();
        of_type.get("pulled_and_sent").cloned()
    };
    assert_eq!((seen("env0-audits"), seen("env0-deployments")), (Some(json!(true)), None));
    let checked = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string()).run("check --offline").stdout;
    assert!(checked.contains("[warn] pull-alone") && checked.contains(DOES), "{checked}");
    let next = checked.lines().last().unwrap();
    assert!(next.starts_with("Next: pull-alone: what comes both ways is stored twice: send each"), "{next}");
}

#[test]
fn what_config_env0_yml_sends_with_its_token_is_not_taken_for_a_pulled_log() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = puller(&aws, &env0, "env0-deployments").set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let daemon = setup.start();
    let token = aws.issuer.token();
    let started = daemon.send(Upload::post(DEPLOYMENTS).bearer(&token).body(event("deployment started")));
    assert_eq!((started.status, told(&daemon)), (200, 0), "{}", daemon.log().text());
    // env0's integrations send the logs themselves, and those are what is pulled.
    let logs: Value = json!({"streams": [{"stream": {"app": "env0"}, "values": [["1795381200123000000", "a line"]]}]});
    let sent = Upload::post("/loki/api/v1/push").bearer(&token).header("Content-Type", "application/json");
    assert_eq!(daemon.send(sent.body(logs.to_string())).status, 204);
    wait_until("it is told", || told(&daemon) == 1);
}
