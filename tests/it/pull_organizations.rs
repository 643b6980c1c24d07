//! One API key that sees several organizations.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use crate::harness::{Daemon, Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::{Event, event};
use crate::local_env0::deployments::{Deployment, Environment, all_lines};
use crate::local_env0::{Fault, LocalEnv0, ORGANIZATION};
use crate::pull_kills::killed_before_the_place;

const ORGANIZATIONS: [&str; 3] = [ORGANIZATION, "second-organization", "third-organization"];

fn setup(aws: &LocalAws, env0: &LocalEnv0) -> Setup {
    let from = (Utc::now() - TimeDelta::hours(2)).to_rfc3339();
    let setup = Setup::new(aws).unset("ENV0_S3_LOG_INGEST_TOKEN").set("ENV0_S3_LOG_PULL_FROM", from);
    env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value))
}

/// `count` events and a running deployment of each organization more. Their audit events have the same ids, as those of
/// two organizations may.
fn more(env0: &LocalEnv0, name: &str, count: usize) {
    let mut world = env0.world();
    let at: DateTime<Utc> = Utc::now() - TimeDelta::seconds(1);
    for organization in ORGANIZATIONS {
        let distinct = |event: Event| Event { json: event.json.replace("\"ratio\"", &mark(organization)), ..event };
        let first = world.audits.len() / ORGANIZATIONS.len();
        world.audits.extend((first..first + count).map(|number| distinct(event(number, at)).of(organization)));
        let deployments = vec![Deployment::running(&format!("{name}-of-{organization}"), "tf:apply", 30)];
        let environment = Environment::new(&format!("{name}-env-of-{organization}"));
        world.environments.push(Environment { deployments, organization: organization.to_owned(), ..environment });
    }
}

fn mark(organization: &str) -> String {
    format!("\"of\":\"{organization}\",\"ratio\"")
}

fn all_is_there_once(aws: &LocalAws, env0: &LocalEnv0) {
    let mut expected = all_lines(&env0.world());
    expected.extend(env0.world().audits.iter().map(|event| event.json.clone()));
    wait_until("as many lines as expected are in the bucket", || aws.s3.line_count() >= expected.len());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    aws.s3.lines().into_iter().for_each(|line| *counts.entry(line).or_default() += 1);
    let not_once: Vec<_> = expected.iter().filter(|line| counts.get(*line) != Some(&1)).collect();
    assert!(not_once.is_empty(), "not stored once: {not_once:#?}");
    assert_eq!(aws.s3.line_count(), expected.len());
}

fn a_round_later(daemon: &Daemon) {
    let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
    let before = rounds();
    // Six pulls; each of them had two.
    wait_until("each pull has had a round", || rounds() >= before + 12.0);
}

#[test]
fn everything_of_three_organizations_comes_once_through_kills() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().other_organizations = ORGANIZATIONS[1..].iter().map(|id| (*id).to_owned()).collect();
    let setup = setup(&aws, &env0);
    for name in ["first", "second", "third"] {
        more(&env0, name, 40);
        let daemon = setup.spawn();
        let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
        // Some of the pulls have had their round, and some have not.
        wait_until("a round is over", || rounds() >= 1.0);
        daemon.kill();
    }
    let daemon = setup.start();
    all_is_there_once(&aws, &env0);
    a_round_later(&daemon);
    all_is_there_once(&aws, &env0);
    let status = daemon.admin_get("/status").unwrap().text();
    for organization in ORGANIZATIONS {
        assert_eq!(status.matches(&format!("\"organization\":\"{organization}\"")).count(), 2, "{status}");
    }
}

#[test]
fn an_organization_that_the_key_is_given_later_is_pulled_after_sighup() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    env0.world().audits.push(event(1, Utc::now()));
    wait_until("the first one is pulled", || aws.s3.line_count() == 1);
    env0.world().other_organizations = vec!["second-organization".to_owned()];
    env0.world().audits.push(event(2, Utc::now()).of("second-organization"));
    daemon.signal_hang_up();
    wait_until("the second one is pulled", || aws.s3.line_count() == 2);
    assert!(aws.s3.lines().iter().any(|line| line.contains("audit-2")));
}

#[test]
fn of_thousands_of_organizations_a_hundred_are_pulled_and_the_rest_is_told() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().other_organizations = (0..5000).map(|number| format!("organization-{number}")).collect();
    env0.world().audits.push(event(1, Utc::now()));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the event is pulled", || aws.s3.line_count() == 1);
    a_round_later(&daemon);
    let status = daemon.admin_get("/status").unwrap().json();
    let pulls = status["pull"].as_array().unwrap();
    // The list itself has an entry for each log type, as long as it is in trouble.
    assert_eq!(pulls.len(), 2 * 100 + 2);
    let told = "100 are pulled, and 4901 are not";
    for list in pulls.iter().filter(|pull| pull["organization"] == "") {
        assert!(list["error"]["message"].as_str().unwrap().contains(told), "{list}");
    }
    assert_eq!((daemon.log().count("ERROR", told), daemon.log().count("ERROR", "")), (1, 1), "{}", daemon.log().text());
}

#[test]
fn an_event_that_names_another_pulled_organization_comes_once_through_a_kill() {
    let check = |log_type: &str, path: &str| {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let another = ORGANIZATIONS[1];
        env0.world().other_organizations = vec![another.to_owned()];
        let setup = setup(&aws, &env0).set("ENV0_S3_LOG_PULL", log_type);
        let daemon = setup.start();
        let has_had_a_round = |pull: &Value| !pull["last_round"].is_null();
        wait_until("both have had a round", || {
            let status = daemon.admin_get("/status").unwrap().json();
            status["pull"].as_array().is_some_and(|pulls| pulls.len() == 2 && pulls.iter().all(has_had_a_round))
        });
        daemon.kill();

        let own = format!("\"mark\":\"event\",\"organizationId\":\"{another}\"");
        let first = event(1, Utc::now() - TimeDelta::seconds(1));
        let json = first.json.replacen("\"actorId\"", &format!("{own},\"actorId\""), 1);
        env0.world().audits.push(Event { json, ..first });
        let page = format!("{{\"events\":[{{\"eventId\":\"e-1\",{own}}}],\"hasMoreLogs\":false}}");
        env0.break_down("/deployments/d-1/steps/tf%3Aapply/log", Fault::Json(page.leak()));
        let deployments = vec![Deployment::running("d-1", "tf:apply", 0)];
        env0.world().environments = vec![Environment { deployments, ..Environment::new("env-1") }];
        let setup = killed_before_the_place(setup, &aws, &env0, log_type, path);
        let daemon = setup.start();
        let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}");
        wait_until("each has had two rounds", || rounds() >= Some(4.0));
        wait_until("the spool is empty", || {
            daemon.metric(&format!("events_spooled{{type=\"{log_type}\"}}")) == Some(0.0)
        });
        assert_eq!(aws.s3.lines().len(), 1, "{:?}", aws.s3.lines());
    };
    check("env0-audits", &format!("/audit/events?organizationId={ORGANIZATION}"));
    check("env0-deployments", "/deployments/d-1/steps");
}
