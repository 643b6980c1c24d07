//! Keys, addresses and answers that are wrong each have a message of their own, and no secret of a record shows anywhere.

use chrono::{TimeDelta, Utc};
use serde_json::Value;

use crate::harness::{Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::event;
use crate::local_env0::deployments::Deployment;
use crate::local_env0::{Fault, KEY, LocalEnv0};
use crate::pull_deployments::{a_round_later, environment, setup};

const FORBIDDEN: Fault = Fault::Status(403, r#"{"message":"Forbidden"}"#, None);

/// What is wrong, and what is said of it.
struct Wrong {
    of_setup: fn(Setup, &LocalEnv0) -> Setup,
    of_env0: &'static [(&'static str, Fault)],
    said: &'static str,
    exit_code: i32,
}

const NOTHING: fn(Setup, &LocalEnv0) -> Setup = |setup, _| setup;

const WRONGS: &[Wrong] = &[
    Wrong {
        of_setup: |setup, _| setup.set("ENV0_API_KEY_SECRET", "not-the-secret"),
        of_env0: &[],
        said: "401, the API key loca… is not known, or its secret is wrong",
        exit_code: 77,
    },
    Wrong {
        of_setup: |setup, _| setup.set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", "00000000-0000-4000-8000-000000000000"),
        of_env0: &[("/audit/events", FORBIDDEN), ("/environments", FORBIDDEN)],
        said: "the API key local-key-id is of another organization: it sees 51d48700",
        exit_code: 77,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/audit/events", FORBIDDEN)],
        said: "403, the API key local-key-id may not do this; it takes VIEW_AUDIT_LOGS",
        exit_code: 77,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/environments/env-1/deployments", FORBIDDEN)],
        said: "GET /environments/{id}/deployments at 127.0.0.1",
        exit_code: 77,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/deployments/d-1/steps", FORBIDDEN)],
        said: "may not do this; it takes VIEW_PROJECT",
        exit_code: 77,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/deployments/d-1/steps/tf%3Aapply/log", FORBIDDEN)],
        said: "GET /deployments/{id}/steps/{name}/log at 127.0.0.1",
        exit_code: 77,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/", FORBIDDEN)],
        said: "403, the API key local-key-id may not even list its organizations from this address; that takes VIEW_ORGANIZATION",
        exit_code: 77,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/organizations", FORBIDDEN)],
        said: "403, the API key local-key-id may not even list its organizations",
        exit_code: 77,
    },
    Wrong {
        of_setup: |setup, env0| setup.set("ENV0_S3_LOG_API_URL", env0.url() + "/api"),
        of_env0: &[],
        said: "403 \"Missing Authentication Token\", which means that the path doesn't exist there",
        exit_code: 78,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/", Fault::Html)],
        said: "it is a page of HTML, so a proxy or another server has answered",
        exit_code: 69,
    },
    Wrong {
        of_setup: NOTHING,
        of_env0: &[("/environments", Fault::Promised(1 << 30))],
        said: "the answer has more than 33554432 bytes",
        exit_code: 69,
    },
];

#[test]
fn each_wrong_key_address_and_answer_is_told_and_the_daemon_goes_on() {
    let try_it = |wrong: &Wrong| {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let deployment = Deployment::running("d-1", "tf:apply", 3);
        env0.world().environments = vec![environment("env-1", vec![deployment])];
        env0.world().audits = vec![event(1, Utc::now() - TimeDelta::minutes(1))].into();
        wrong.of_env0.iter().for_each(|(path, fault)| env0.break_down(path, fault.clone()));
        let setup = setup(&aws, &env0).set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments");
        let setup = (wrong.of_setup)(setup, &env0);
        let finished = setup.run("check");
        assert_eq!(finished.code, Some(wrong.exit_code), "{}: {finished:?}", wrong.said);
        assert!(finished.stdout.contains(wrong.said), "{}: {finished:?}", wrong.said);
        let daemon = setup.start();
        wait_until(wrong.said, || daemon.log().count("ERROR", wrong.said) >= 1);
        assert_eq!(daemon.admin_get("/readyz").unwrap().status, 200);
        let told = |of: &Value| of["error"]["message"].as_str().is_some_and(|text| text.contains(wrong.said));
        wait_until("the status, which the page shows, tells it, too", || {
            daemon.admin_get("/status").unwrap().json()["pull"].as_array().unwrap().iter().any(told)
        });
        let text = finished.stdout + &daemon.log().text();
        assert!(!text.contains(KEY.1) && !text.contains("not-the-secret"), "{}", wrong.said);
        if !wrong.of_env0.is_empty() && !wrong.said.contains("another organization") {
            env0.heal();
            wait_until("what was kept back is stored", || aws.s3.line_count() == 4);
            assert!(daemon.log().count("ERROR", wrong.said) <= 2, "once for each log type");
        }
    };
    std::thread::scope(|scope| {
        let tries: Vec<_> = WRONGS.iter().map(|wrong| scope.spawn(move || try_it(wrong))).collect();
        tries.into_iter().for_each(|tried| tried.join().unwrap());
    });
}

#[test]
fn a_403_of_an_organization_that_is_not_the_keys_tells_those_that_the_key_sees() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.break_down("/audit/events", FORBIDDEN);
    let setup = setup(&aws, &env0)
        .set("ENV0_S3_LOG_PULL", "env0-audits")
        .set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", "00000000-0000-4000-8000-000000000000");
    let daemon = setup.start();
    let said = ": 403, the API key local-key-id is of another organization: it sees 51d48700";
    wait_until("the log tells why", || daemon.log().count("ERROR", said) == 1);
}

#[test]
fn a_key_that_is_revoked_while_it_is_used_is_told_as_such() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    a_round_later(&daemon);
    env0.break_down("/", Fault::Status(401, "{}", None));
    let said = "401, the API key local-key-id worked before and does so no more";
    wait_until("it is told", || daemon.log().count("ERROR", said) == 1);
}

#[test]
fn check_tries_every_request_and_tells_a_rounds_part_of_env0s_limit() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = (0..250).map(|number| environment(&format!("env-{number}"), vec![])).collect();
    env0.world().environments[240].deployments = vec![Deployment::running("d-1", "tf:apply / é", 3)];
    let setup = setup(&aws, &env0).unset("ENV0_S3_LOG_PULL");
    let finished = setup.run("check");
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for said in [
        "250 environments in 3 requests",
        "every 5 s: 36 of the 1000 requests a minute that env0 allows",
        "(tried with the latest deployment of one environment, d-1)",
        "env0 forwards nothing by itself",
    ] {
        assert!(finished.stdout.contains(said), "{said}: {finished:?}");
    }
    for path in [
        "/organizations",
        "/audit/events?",
        "/environments?",
        "/environments/env-240/deployments?",
        "/deployments/d-1/steps",
        "/deployments/d-1/steps/tf%3Aapply%20%2F%20%C3%A9/log",
        "/log-forwarding/configurations?",
    ] {
        assert!(env0.asked(path) >= 1, "{path}: {:?}", env0.world().requests);
    }
}

#[test]
fn no_secret_of_a_record_is_in_spool_place_log_status_metrics_or_bucket() {
    for log_format in ["json", "text"] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let deployment = |id: &str, token: Option<&str>| Deployment {
            oidc_token: token.map(str::to_owned),
            ..Deployment::running(id, "tf:apply", 3)
        };
        env0.world().environments = vec![
            environment("env-1", vec![deployment("d-1", Some("canary-token")).ended(), deployment("d-2", None)]),
            environment("env-2", vec![deployment("d-3", Some("eyJhbGciOiJSUzI1NiJ9.canary.canary"))]),
        ];
        // Records that can't be read hold them, too.
        let secrets =
            serde_json::json!({"output": "canary", "customEnv0EnvironmentVariables": {"oidcToken": "canary"}});
        let of_another_type = serde_json::json!({"name": "step", "status": "SUCCESS", "retryCount": "canary"});
        env0.world().odd_steps =
            vec![of_another_type, secrets.clone(), serde_json::json!({"name": "canary", "status": 7})];
        let setup = setup(&aws, &env0)
            .set("ENV0_S3_LOG_LOG_FORMAT", log_format)
            .set("RUST_LOG", "trace")
            .set("ENV0_S3_LOG_BATCH_MAX_AGE", "2s");
        let daemon = setup.start();
        let mut held = false;
        wait_until("the lines are stored", || {
            held |= setup.spool_holds("canary");
            aws.s3.line_count() >= 9
        });
        env0.world().odd_steps.clear();
        env0.world().odd_records = vec![secrets];
        wait_until("the end is stored", || {
            held |= setup.spool_holds("canary");
            aws.s3.lines().iter().any(|line| line.contains("d-1-finished"))
        });
        assert!(!held, "in the spool");
        for path in ["/status", "/metrics", "/", "/readyz?verbose"] {
            assert!(!daemon.admin_get(path).unwrap().text().contains("canary"), "{path}");
        }
        assert!(!aws.s3.lines().iter().any(|line| line.contains("canary")), "in the bucket");
        assert!(!daemon.log().text().contains("canary"), "in the log");
        assert!(std::fs::read_dir(setup.spool().join("pull")).unwrap().count() > 0);
    }
}
