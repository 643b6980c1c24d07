//! What the metrics and the status tell of a pull that has not begun.

use chrono::{DateTime, TimeDelta, Utc};

use crate::harness::{Daemon, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::event;
use crate::local_env0::{Fault, LocalEnv0, ORGANIZATION};
use crate::pull_audits::{a_round_later, all_arrive_once, from, setup};

/// Waits until the metric that the alert PullBehind looks at says `moment`, to the second.
fn position_is(daemon: &Daemon, moment: DateTime<Utc>) {
    let position = || daemon.metric("pull_position_timestamp_seconds{type=\"env0-audits\"}").unwrap_or_default();
    wait_until(&format!("the position is {moment}"), || (position() - moment.timestamp() as f64).abs() <= 1.0);
}

/// Waits until the pull gets on.
fn position_passes(daemon: &Daemon, moment: DateTime<Utc>) {
    let position = || daemon.metric("pull_position_timestamp_seconds{type=\"env0-audits\"}").unwrap_or_default();
    wait_until("the pull gets on", || position() > moment.timestamp() as f64 + 1800.0);
}

#[test]
fn a_pull_whose_place_is_no_place_is_as_far_behind_as_its_beginning() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let beginning = Utc::now() - TimeDelta::hours(1);
    let setup = from(setup(&aws, &env0), beginning);
    std::fs::create_dir_all(setup.spool().join("pull")).unwrap();
    std::fs::write(setup.spool().join("pull").join(format!("env0-audits_{ORGANIZATION}.json")), "{").unwrap();
    let daemon = setup.start();
    position_is(&daemon, beginning);
    wait_until("the status says why", || {
        daemon.admin_get("/status").unwrap().text().contains("not a place of the pull")
    });
    let checked = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string()).run("check");
    assert!(checked.stdout.contains("[fail] daemon        it can't pull env0-audits from "), "{}", checked.stdout);
    assert!(checked.stdout.contains("Next: daemon: see config/README.md#pull-behind"), "{}", checked.stdout);
    assert_eq!(checked.code, Some(74), "{}", checked.stdout);
}

#[test]
fn a_pull_whose_organizations_env0_does_not_tell_is_as_far_behind_as_its_beginning() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.break_down("/organizations", Fault::Status(503, "{}", None));
    let beginning = Utc::now() - TimeDelta::hours(1);
    let setup = from(setup(&aws, &env0), beginning);
    let daemon = setup.start();
    position_is(&daemon, beginning);
    env0.heal();
    position_passes(&daemon, beginning);
}

#[test]
fn a_pull_that_waits_for_older_batches_is_as_far_behind_as_its_beginning() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let beginning = Utc::now() - TimeDelta::hours(1);
    let setup = from(setup(&aws, &env0), beginning);
    // A folder in the place's stead is read with an error that may pass, so the start tries for a while.
    let place = setup.spool().join("pull").join(format!("env0-audits_{ORGANIZATION}.json"));
    std::fs::create_dir_all(&place).unwrap();
    let daemon = setup.start();
    position_is(&daemon, beginning);
    std::fs::remove_dir(&place).unwrap();
    position_passes(&daemon, beginning);
}

#[test]
fn a_first_start_counts_although_env0_named_no_organization_then() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.break_down("/organizations", Fault::Status(503, "{}", None));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the log tells of the failure", || daemon.log().text().contains("the pull from env0 fails"));
    env0.world().audits = vec![event(1, Utc::now())].into();
    daemon.kill();
    env0.heal();
    env0.world().audits.push(event(2, Utc::now()));
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
}

#[test]
fn an_earlier_beginning_that_is_set_after_the_first_start_is_told_to_fetch_nothing() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    a_round_later(&daemon);
    let said = "What is older is not, because ENV0_S3_LOG_PULL_FROM is not set";
    assert_eq!(daemon.log().count("INFO", said), 1, "{}", daemon.log().text());
    daemon.kill();
    let told = |daemon: &Daemon| daemon.log().count("WARN", "what env0 has from between is not fetched");
    let daemon = setup.start();
    a_round_later(&daemon);
    assert_eq!(told(&daemon), 0, "the same settings bring what they brought");
    assert_eq!(daemon.log().count("INFO", "the pull from env0 goes on"), 1, "{}", daemon.log().text());
    daemon.kill();

    let setup = from(setup, Utc::now() - TimeDelta::days(1));
    let daemon = setup.start();
    wait_until("it is told", || told(&daemon) == 1);
    let checked = setup.run("check").stdout;
    assert!(checked.contains("[warn] pull-place    ENV0_S3_LOG_PULL_FROM is "), "{checked}");
    daemon.kill();

    // As the remedy says.
    env0.world().audits = vec![event(1, Utc::now() - TimeDelta::hours(1))].into();
    std::fs::remove_file(setup.spool().join("pull").join(format!("env0-audits_{ORGANIZATION}.json"))).unwrap();
    let daemon = setup.start();
    all_arrive_once(&aws, &env0);
    assert_eq!(told(&daemon), 0);
    assert_eq!(daemon.log().count("INFO", "is fetched, as ENV0_S3_LOG_PULL_FROM says"), 1, "{}", daemon.log().text());
}

#[test]
fn an_organization_that_is_not_the_keys_is_told_although_env0_answers_as_if_it_were() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0)
        .set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments")
        .set("ENV0_S3_LOG_PULL_ORGANIZATION_ID", format!("00000000-0000-4000-8000-000000000000,{ORGANIZATION}"));
    let daemon = setup.start();
    let said = "names 00000000-0000-4000-8000-000000000000, and the API key local-key-id is of another organization";
    wait_until("the log tells it", || daemon.log().count("ERROR", said) == 1);
    a_round_later(&daemon);
    let status = daemon.admin_get("/status").unwrap().text();
    assert_eq!((status.matches(said).count(), daemon.log().complaints().len()), (2, 1), "{status}");
}
