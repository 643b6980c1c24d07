//! The places to go on from: files that can't be written, that are far too large, or that a wrong clock has written.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use crate::harness::{Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::audits::event;
use crate::local_env0::deployments::Deployment;
use crate::local_env0::{LocalEnv0, ORGANIZATION};
use crate::pull_audits::{self, from};
use crate::pull_deployments::{self, a_round_later, all_arrive_once, environment};
use crate::pull_figures::peak_kib;

fn place(setup: &Setup, log_type: &str) -> PathBuf {
    setup.spool().join("pull").join(format!("{log_type}_{ORGANIZATION}.json"))
}

/// The name under which a file is written before it takes its own.
fn being_written(path: &Path) -> PathBuf {
    path.with_extension("json.tmp")
}

/// Changes what the file of a place remembers.
fn change(setup: &Setup, log_type: &str, change: impl Fn(&mut Value)) {
    let path = place(setup, log_type);
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut file["memory"]);
    std::fs::write(&path, file.to_string()).unwrap();
}

#[test]
fn a_deployment_whose_file_cannot_be_written_is_told_once_and_holds_up_nothing() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let of = |number: usize| {
        environment(&format!("env-{number}"), vec![Deployment::running(&format!("d-{number}"), "tf:apply", 3)])
    };
    env0.world().environments = (0..3).map(of).collect();
    let setup = pull_deployments::setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    // A folder has the name that a new file is written under, and something is in it.
    let parts = || std::fs::read_dir(setup.spool().join("pull")).unwrap().map(|entry| entry.unwrap().path());
    let is_part = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().matches('.').count() == 2;
    let part = parts().find(is_part).unwrap();
    let in_its_way = being_written(&part);
    std::fs::create_dir_all(in_its_way.join("not-empty")).unwrap();
    for lines in [5, 7] {
        for environment in &mut env0.world().environments {
            environment.deployments[0].steps[0].lines = lines;
        }
        all_arrive_once(&aws, &env0, 0);
    }
    let name = in_its_way.file_stem().unwrap().to_str().unwrap().to_owned();
    wait_until("the status tells it", || daemon.admin_get("/status").unwrap().text().contains(&name));
    let failed = || daemon.metric("pull_rounds_total{outcome=\"failed\"}").unwrap_or_default();
    let before = failed();
    wait_until("it is tried in each round", || failed() >= before + 2.0);
    assert_eq!(daemon.log().count("ERROR", "the pull from env0 fails"), 1, "{}", daemon.log().text());
    // What is pulled meanwhile is known to the next start.
    daemon.kill();
    let daemon = setup.start();
    for environment in &mut env0.world().environments {
        environment.deployments[0].steps[0].lines = 9;
    }
    all_arrive_once(&aws, &env0, 0);
    std::fs::remove_dir_all(&in_its_way).unwrap();
    wait_until("it works again", || daemon.log().text().contains("the pull from env0 works again"));
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 0);
}

#[test]
fn a_place_that_cannot_be_written_holds_up_no_other_organization() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().other_organizations = vec!["second-organization".to_owned()];
    let setup = from(pull_audits::setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    a_round_later(&daemon);
    a_round_later(&daemon);
    let in_its_way = being_written(&place(&setup, "env0-audits"));
    std::fs::create_dir_all(in_its_way.join("not-empty")).unwrap();
    let stored = |part: &str| aws.s3.lines().iter().filter(|line| line.contains(part)).count();
    env0.world().audits.push(event(1, Utc::now()));
    wait_until("the log tells it", || daemon.log().count("ERROR", "the pull from env0 fails") == 1);
    for number in [2, 3] {
        env0.world().audits.push(event(number, Utc::now()).of("second-organization"));
        let is_stored = || stored(&format!("\"audit-{number}\"")) == 1;
        wait_until("the other organization's event is stored", is_stored);
    }
    assert_eq!(stored("\"audit-1\""), 0, "what the place doesn't know waits");
    std::fs::remove_dir_all(&in_its_way).unwrap();
    wait_until("it is stored, too", || stored("\"audit-1\"") == 1);
    a_round_later(&daemon);
    assert_eq!([1, 2, 3].map(|number| stored(&format!("\"audit-{number}\""))), [1; 3]);
}

#[test]
fn after_a_clock_that_was_years_ahead_what_lies_between_is_fetched_once_and_told() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3).ended()])];
    let ago = |minutes: i64| Utc::now() - TimeDelta::minutes(minutes);
    env0.world().audits = vec![event(1, ago(100)), event(2, ago(90))].into();
    let setup = pull_deployments::setup(&aws, &env0).set("ENV0_S3_LOG_PULL", "env0-audits,env0-deployments");
    let daemon = setup.start();
    wait_until("all is stored", || aws.s3.line_count() == 6);
    a_round_later(&daemon);
    a_round_later(&daemon);
    daemon.kill();
    // As a clock leaves them that says 2028.
    const YEARS_AHEAD: i64 = 1_859_000_000_000;
    change(&setup, "env0-audits", |memory| {
        (memory["from"], memory["reached"]) = (json!(YEARS_AHEAD), json!(YEARS_AHEAD));
    });
    change(&setup, "env0-deployments", |memory| {
        memory["reached"] = json!(YEARS_AHEAD);
        memory["environments"]["env-1"]["looked_at"] = json!(YEARS_AHEAD);
    });
    let checked = setup.run("check");
    assert_eq!(checked.stdout.matches("2028-11-28").count(), 2, "{}", checked.stdout);
    {
        let mut world = env0.world();
        world.audits.extend([event(3, ago(60)), event(4, ago(1))]);
        // It doesn't move its environment.
        let drift = Deployment { moves_environment: false, ..Deployment::running("d-2", "tf:plan", 2).ended() };
        world.environments[0].deployments.insert(0, drift);
    }
    let daemon = setup.start();
    wait_until("what lies between is stored", || aws.s3.line_count() >= 11);
    a_round_later(&daemon);
    a_round_later(&daemon);
    let mut lines = aws.s3.lines();
    lines.sort();
    lines.dedup();
    assert_eq!((lines.len(), aws.s3.line_count()), (11, 11));
    let told = "was ahead of the clock";
    assert_eq!(daemon.log().count("ERROR", told), 2, "once for each log type: {}", daemon.log().text());
    let status = daemon.admin_get("/status").unwrap().json();
    for pull in status["pull"].as_array().unwrap() {
        assert!(pull["notice"].as_str().unwrap().contains(told) && pull["error"] == json!(null), "{pull}");
        assert!(pull["position"].as_str().unwrap() < "2028", "{pull}");
        let looked_at = pull["looked_at_all_since"].as_str().is_some_and(|since| since < "2028");
        assert_eq!(looked_at, pull["type"] == "env0-deployments", "{pull}");
    }
    let beside = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string()).run("check");
    assert!(beside.stdout.contains(told), "{beside:?}");
}

#[test]
fn nearly_as_many_events_as_can_be_remembered_do_not_stop_those_that_follow() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::minutes(40);
    let setup = from(pull_audits::setup(&aws, &env0), start);
    let daemon = setup.start();
    a_round_later(&daemon);
    daemon.kill();
    // 895,000 events that are about to be old enough.
    let old = (Utc::now() - TimeDelta::minutes(18)).timestamp_millis().to_be_bytes();
    let entry = |number: u64| [&old[..], &[0; 8], &number.to_be_bytes()].concat();
    let taken: Vec<u8> = (0..895_000).flat_map(entry).collect();
    change(&setup, "env0-audits", |memory| memory["taken"] = STANDARD_NO_PAD.encode(&taken).into());
    let at = |number: usize| Utc::now() - TimeDelta::minutes(2) + TimeDelta::milliseconds(number as i64);
    env0.world().audits = (0..9000).map(|number| event(number, at(number))).collect::<Vec<_>>().into();
    let daemon = setup.start();
    wait_until("they are stored", || aws.s3.line_count() >= 9000);
    a_round_later(&daemon);
    assert_eq!(aws.s3.line_count(), 9000);
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
}

#[test]
fn a_place_of_three_hundred_megabytes_is_refused_before_it_is_read() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = from(pull_audits::setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    std::fs::create_dir_all(setup.spool().join("pull")).unwrap();
    let file = std::fs::File::create(place(&setup, "env0-audits")).unwrap();
    file.set_len(300 << 20).unwrap();
    let daemon = setup.start();
    wait_until("the log tells the way out", || daemon.log().text().contains("not a place of the pull"));
    assert!(peak_kib(&daemon) < 60 * 1024, "{} KiB", peak_kib(&daemon));
}
