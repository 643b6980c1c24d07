//! A reader who has the README, an API key, a role and a bucket gets both kinds of logs in, and does nothing else.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;

use crate::harness::{Setup, wait_until};
use crate::local_aws::{Fault, LocalAws};
use crate::local_env0::audits::event;
use crate::local_env0::deployments::{Deployment, Environment, all_lines};
use crate::local_env0::{self, LocalEnv0};

/// Where this test's AWS, env0 and folder are. A reader has the defaults of all of these.
const PLACES: [&str; 7] = [
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "ENV0_S3_LOG_ADMIN_ADDR",
    "ENV0_S3_LOG_API_URL",
    "ENV0_S3_LOG_FORCE_PATH_STYLE",
    "ENV0_S3_LOG_OIDC_ISSUER",
    "ENV0_S3_LOG_SPOOL_DIR",
];

/// The variables that the README's way to a pull has a reader export.
fn readme_variables() -> BTreeSet<String> {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = |heading: &str| {
        let (_, after) = readme.split_once(&format!("\n{heading}\n")).unwrap();
        let end = after.find("\n##").unwrap();
        after[..end].to_owned()
    };
    let text = section("## Your bucket") + &section("### Pull");
    let exports = text.lines().filter_map(|line| line.trim().strip_prefix("export ")?.split_once('='));
    exports.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_readmes_five_variables_alone_bring_both_kinds_of_logs_into_the_bucket() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let unneeded = [
        "ENV0_OIDC_TOKEN",
        "ENV0_S3_LOG_INGEST_TOKEN",
        "ENV0_S3_LOG_BATCH_MAX_AGE",
        "ENV0_S3_LOG_LISTEN_ADDR",
        "ENV0_S3_LOG_PULL_INTERVAL",
    ];
    let setup = env0.environment().into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
    let setup = unneeded.into_iter().fold(setup, |setup, name| setup.unset(name));
    let set: BTreeSet<String> = setup.environment().keys().cloned().collect();
    let places: BTreeSet<String> = PLACES.map(str::to_owned).into();
    let five: BTreeSet<String> = &set - &places;
    assert_eq!((five.len(), five), (5, readme_variables()));

    let mut daemon = setup.start();
    // The record holds what env0 documents: an OIDC token of the deployment.
    let mut deployment = Deployment::running("d-1", "tf:apply", 40).ended();
    deployment.oidc_token = Some(aws.issuer.token());
    env0.world().environments = vec![Environment { deployments: vec![deployment], ..Environment::new("env-1") }];
    env0.world().audits.extend((0..12).map(|number| event(number, Utc::now())));
    let pulled = |log_type: &str| daemon.metric(&format!("pulled_events_total{{type=\"{log_type}\"}}"));
    wait_until("all is pulled", || (pulled("env0-audits"), pulled("env0-deployments")) == (Some(12.0), Some(41.0)));
    // A stop sends what waits for the age of its batch.
    assert_eq!(daemon.terminate().code(), Some(0));

    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    aws.s3.lines().into_iter().for_each(|line| *stored.entry(line).or_default() += 1);
    let mut expected = all_lines(&env0.world());
    expected.extend(env0.world().audits.iter().map(|event| event.json.clone()));
    assert!(expected.iter().all(|line| stored.get(line) == Some(&1)), "{stored:#?}");
    assert_eq!(stored.len(), expected.len() + 1, "and the line that says how the deployment ended");
}

#[test]
fn check_tells_who_has_no_token_where_one_comes_from_and_whether_env0_shows_one() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = env0.environment().into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
    let setup = setup.unset("ENV0_OIDC_TOKEN").unset("ENV0_S3_LOG_INGEST_TOKEN").unset("ENV0_S3_LOG_LISTEN_ADDR");
    // Nothing listens, so nobody is told to hand a token over and no more. A daemon starts and waits, so it is no failure.
    let checked = setup.run("check");
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    let checked = checked.stdout;
    for said in [
        "[skip] token         none is configured",
        "Next: token: the pull takes one from the record of each deployment",
        "takes one from a deployment's record",
        "in Kubernetes the pod's own",
        "is known to env0",
        "forwards nothing by itself",
    ] {
        assert!(checked.contains(said), "{said}: {checked}");
    }
    let mut deployment = Deployment::running("d-1", "tf:apply", 1);
    let with = |deployment: &Deployment| {
        let deployments = vec![deployment.clone()];
        env0.world().environments = vec![Environment { deployments, ..Environment::new("env-1") }];
        setup.run("check").stdout
    };
    let checked = with(&deployment);
    assert!(checked.contains("record has no OIDC token") && checked.contains("[skip] token"), "{checked}");
    deployment.oidc_token = Some(aws.issuer.token());
    let checked = with(&deployment);
    assert!(checked.contains("record has an OIDC token"), "{checked}");
    // The pull then brings all that is needed, so nothing else is asked for.
    assert!(checked.ends_with("Next: start the daemon: env0-s3-logs run\n"), "{checked}");
    let other = setup.set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9").run("check");
    let said = "names 0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9, and the API key";
    assert!(other.stdout.contains("[fail] api-key") && other.stdout.contains(said), "{}", other.stdout);
}

#[test]
fn log_and_check_say_that_a_pull_works_though_nothing_new_has_happened() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = env0.environment().into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
    let daemon = setup.start();
    wait_until("the log says it of both", || daemon.log().count("INFO", "env0 has nothing new yet") == 2);
    let setup = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string());
    let told = |verdict: &str, log_type: &str, words: &str| {
        let checked = setup.run("check").stdout;
        let begin = format!(
            "[{verdict}]{}pull-daemon   the running daemon's pull of {log_type} of ",
            " ".repeat(5 - verdict.len())
        );
        checked.lines().any(|line| line.starts_with(&begin) && line.contains(words))
    };
    for log_type in ["env0-audits", "env0-deployments"] {
        assert!(told("ok", log_type, "env0 has had nothing new"), "{}", setup.run("check").stdout);
    }
    env0.world().audits.push(event(1, Utc::now()));
    wait_until("check tells of an event", || told("ok", "env0-audits", ": events stored: 1"));
    env0.break_down("/audit/events", local_env0::Fault::Status(403, "{}", None));
    wait_until("check tells what the daemon meets", || told("warn", "env0-audits", "does not get on since"));
}

/// A puller without a token of its own, and an organization whose latest deployment's record has `token`.
fn with_record(aws: &LocalAws, env0: &LocalEnv0, token: &str) -> Setup {
    let setup = env0.environment().into_iter().fold(Setup::new(aws), |setup, (name, value)| setup.set(name, value));
    let mut deployment = Deployment::running("d-1", "tf:apply", 1);
    deployment.oidc_token = Some(token.into());
    env0.world().environments = vec![Environment { deployments: vec![deployment], ..Environment::new("env-1") }];
    setup.unset("ENV0_OIDC_TOKEN").unset("ENV0_S3_LOG_INGEST_TOKEN").unset("ENV0_S3_LOG_LISTEN_ADDR")
}

#[test]
fn check_tries_role_and_bucket_with_the_token_of_a_record_before_the_first_start() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let token = aws.issuer.token();
    let setup = with_record(&aws, &env0, &token);
    let checked = setup.run("check --write");
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    for judged in ["[ok]   token         from the deployment-record", "[ok]   sts", "[ok]   bucket", "[ok]   write"] {
        assert!(checked.stdout.contains(judged), "{judged}: {}", checked.stdout);
    }
    assert!(!checked.stdout.contains(&token), "{}", checked.stdout);
    // A mistake in the bucket's name is found before the daemon is started with it.
    let checked = setup.set("ENV0_S3_LOG_BUCKET_NAME", "a-mistaken-name").run("check");
    assert_eq!(checked.code, Some(78), "{}", checked.stdout);
    assert!(checked.stdout.contains("Next: bucket: make the bucket"), "{}", checked.stdout);
}

#[test]
fn check_judges_the_token_of_a_record_as_the_pull_does() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    // It was good when its deployment ran. Nothing is wrong, and nothing could be judged with it.
    let checked = with_record(&aws, &env0, &aws.issuer.expired_token(60)).run("check");
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    for said in [
        "[warn] token         the token in the latest deployment's record ended at",
        "run a deployment in env0",
        "[skip] bucket",
        "Next: start the daemon (env0-s3-logs run), and run check again: role and bucket are not judged yet",
    ] {
        assert!(checked.stdout.contains(said), "{said}: {}", checked.stdout);
    }
    let other = serde_json::json!({ "organizationId": "11111111-2222-4333-8444-555555555555" });
    for (token, why) in [("canary".to_owned(), "not a signed JWT"), (aws.issuer.mint(other), "it is 11111111…")] {
        let checked = with_record(&aws, &env0, &token).run("check");
        assert_eq!(checked.code, Some(77), "{}", checked.stdout);
        assert!(checked.stdout.contains("[fail] token") && checked.stdout.contains(why), "{}", checked.stdout);
        assert!(!checked.stdout.contains(&token), "{}", checked.stdout);
    }
}

#[test]
fn a_pull_of_audits_alone_reads_no_record_and_says_so_with_the_way_out() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let of_record = "add env0-deployments to ENV0_S3_LOG_PULL";
    let setup = with_record(&aws, &env0, &aws.issuer.token());
    let setup = setup.set("ENV0_S3_LOG_PULL", "env0-audits");
    let checked = setup.run("check");
    assert_eq!(checked.code, Some(78), "{}", checked.stdout);
    assert!(checked.stdout.contains("so no deployment's record is read for one"), "{}", checked.stdout);
    assert!(checked.stdout.lines().last().unwrap().contains(of_record), "{}", checked.stdout);
    let daemon = setup.start();
    wait_until("the log says it", || daemon.log().count("WARN", "waiting for an OIDC token") == 1);
    assert_eq!(daemon.log().count("WARN", of_record), 1, "{}", daemon.log().text());
    drop(daemon);
    let both = setup.set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments");
    assert!(!both.run("check").stdout.contains(of_record));
}

#[test]
fn a_wrong_region_of_a_pull_is_mended_by_what_drain_says() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = with_record(&aws, &env0, &aws.issuer.token());
    aws.s3.inject(Fault::permanent_redirect("eu-west-1"));
    let wrong = setup.set("ENV0_S3_LOG_AWS_REGION", "us-west-2");
    let daemon = wrong.start();
    let remedy = "set ENV0_S3_LOG_AWS_REGION to the bucket's region, run `env0-s3-logs drain` once";
    wait_until("the log says it", || daemon.log().text().contains(remedy));
    drop(daemon);
    aws.s3.heal();
    let right = wrong.set("ENV0_S3_LOG_AWS_REGION", "eu-west-1");
    let drained = right.run("drain");
    assert_eq!(drained.code, Some(69), "{drained:?}");
    assert!(drained.stderr.contains("run `env0-s3-logs drain --to-configured`, which ends as this one"), "{drained:?}");
    let drained = right.run("drain --to-configured --yes");
    assert_eq!(drained.code, Some(69), "{drained:?}");
    assert!(drained.stderr.contains("or start the daemon: it takes one from a deployment's record"), "{drained:?}");
    let _daemon = right.start();
    wait_until("what waited is in the bucket", || aws.s3.line_count() > 0);
}

#[test]
fn a_pull_that_has_no_token_yet_says_that_a_record_may_bring_it() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = env0.environment().into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
    let setup = setup.unset("ENV0_OIDC_TOKEN").unset("ENV0_S3_LOG_INGEST_TOKEN");
    let daemon = setup.start();
    wait_until("the log says it", || daemon.log().count("WARN", "waiting for an OIDC token") == 1);
    let checked = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string()).run("check");
    assert_eq!(checked.code, Some(0), "{}", checked.stdout);
    for said in [
        "[skip] token         the running daemon has none yet",
        "[skip] sts           the running daemon waits for an OIDC token",
        "Next: token: the pull takes one from the record of each deployment",
    ] {
        assert!(checked.stdout.contains(said), "{said}: {}", checked.stdout);
    }
    let by_record = "the pull takes one from the record of each deployment";
    assert_eq!(daemon.log().count("WARN", by_record), 1, "{}", daemon.log().text());
    let status = daemon.admin_get("/status").unwrap().json();
    assert!(status["credentials"]["remedy"].as_str().unwrap().starts_with(by_record), "{status}");
}
