//! Step logs are pulled from env0's API: followed while they grow, each line once, and no secret of a record with them.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{TimeDelta, Utc};

use crate::harness::{Daemon, Setup, wait_until};
use crate::local_aws::LocalAws;
use crate::local_env0::deployments::{Cursor, Deployment, Environment, LogShape, Step, all_lines, line};
use crate::local_env0::{Fault, LocalEnv0, ORGANIZATION};

pub(crate) fn setup(aws: &LocalAws, env0: &LocalEnv0) -> Setup {
    let setup = Setup::new(aws).unset("ENV0_S3_LOG_INGEST_TOKEN").set("ENV0_S3_LOG_PULL", "env0-deployments");
    let from = (Utc::now() - TimeDelta::days(2)).to_rfc3339();
    let setup = setup.set("ENV0_S3_LOG_PULL_FROM", from);
    env0.environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value))
}

pub(crate) fn environment(id: &str, deployments: Vec<Deployment>) -> Environment {
    Environment { deployments, ..Environment::new(id) }
}

/// Waits until every line is in the bucket, and one for each of `finished`; each must be there once.
pub(crate) fn all_arrive_once(aws: &LocalAws, env0: &LocalEnv0, finished: usize) {
    let expected = all_lines(&env0.world());
    wait_until("as many lines as expected are in the bucket", || aws.s3.line_count() >= expected.len() + finished);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    aws.s3.lines().into_iter().for_each(|line| *counts.entry(line).or_default() += 1);
    for line in &expected {
        assert_eq!(counts.get(line), Some(&1), "how often {line} is stored");
    }
    let ends = counts.keys().filter(|line| line.contains("-finished\"")).count();
    assert_eq!((ends, counts.len(), aws.s3.line_count()), (finished, expected.len() + finished, counts.len()));
}

pub(crate) fn a_round_later(daemon: &Daemon) {
    let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
    let before = rounds();
    wait_until("two rounds have passed", || rounds() >= before + 2.0);
}

#[test]
fn a_deployment_is_followed_while_it_runs_and_ended_by_one_line_of_named_fields() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "git:clone", 3)])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    assert!(aws.s3.lines().contains(&line("env-1", "d-1", "git:clone", 2)));
    env0.world().environments[0].deployments[0].steps[0].lines = 7;
    all_arrive_once(&aws, &env0, 0);
    {
        let mut world = env0.world();
        let deployment = &mut world.environments[0].deployments[0];
        // The end, and a line that came with it.
        deployment.steps[0].lines = 8;
        *deployment = deployment.clone().ended_at(Utc::now());
    }
    all_arrive_once(&aws, &env0, 1);
    let deployment = env0.world().environments[0].deployments[0].clone();
    let (made, ended) = (deployment.created_at.unwrap(), deployment.finished_at.unwrap());
    let last = aws.s3.lines().into_iter().find(|line| line.contains("d-1-finished")).unwrap();
    assert_eq!(
        last,
        format!(
            r#"{{"eventId":"d-1-finished","deploymentLogId":"d-1","environmentId":"env-1","environmentName":"name of env-1","projectId":"project-1","organizationId":"{ORGANIZATION}","deploymentType":"deploy","status":"SUCCESS","startedBy":"auth0|1","startedByEmail":"dev@acme.io","queuedAt":"{made}","startedAt":"{made}","finishedAt":"{ended}","triggerName":"vcs","blueprintName":"network","blueprintRevision":"main","prNumber":"7","resourceCount":12,"planSummary":{{"added":1,"changed":0,"destroyed":0,"imported":2}}}}"#
        )
    );
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 1);
    let status = daemon.admin_get("/status").unwrap().text();
    assert!(!setup.spool_holds("canary") && !daemon.log().text().contains("canary") && !status.contains("canary"));
}

#[test]
fn logs_of_many_pages_come_once_whichever_way_env0_gives_their_cursors() {
    let check = |cursor, repeats| {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.world().log_shape = LogShape { cursor, repeats, page_events: 100, empty_pages: 0 };
        let mut deployment = Deployment::running("d/1", "tf:plan / apply?", 1234);
        deployment.steps.push(deployment.steps[0].clone());
        deployment.steps[1].name = "../late".to_owned();
        deployment.steps[1].status = "NOT_STARTED";
        deployment.steps[1].lines = 0;
        env0.world().environments = vec![environment("env-1", vec![deployment])];
        let setup = setup(&aws, &env0);
        let daemon = setup.start();
        all_arrive_once(&aws, &env0, 0);
        {
            let mut world = env0.world();
            let deployment = &mut world.environments[0].deployments[0];
            deployment.steps[0].lines += 300;
            deployment.steps[1].lines = 250;
            *deployment = deployment.clone().ended();
        }
        all_arrive_once(&aws, &env0, 1);
        a_round_later(&daemon);
        all_arrive_once(&aws, &env0, 1);
    };
    std::thread::scope(|scope| {
        let shapes =
            [Cursor::Number, Cursor::Text, Cursor::NoneAtTheEnd].map(|cursor| [(cursor, false), (cursor, true)]);
        let checks = shapes.concat().into_iter().map(|(cursor, repeats)| scope.spawn(move || check(cursor, repeats)));
        let checks: Vec<_> = checks.collect();
        checks.into_iter().for_each(|check| check.join().unwrap());
    });
}

#[test]
fn deployments_that_ended_while_no_daemon_ran_are_stored_whole_and_older_ones_not() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "git:clone", 5).ended()])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
    daemon.kill();
    let old = Deployment::running("d-0", "git:clone", 5).ended().made_at(Utc::now() - TimeDelta::days(2000));
    {
        let mut world = env0.world();
        let deployments = (2..130).map(|number| Deployment::running(&format!("d-{number}"), "git:clone", 5).ended());
        // Newest first; and none of them has moved its environment.
        let all = deployments.rev().chain(world.environments[0].deployments.clone()).collect();
        world.environments[0].deployments = all;
        world.environments.push(environment("env-2", vec![]));
        world.environments[0].moved += 1;
    }
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 129);
    env0.world().environments[1].deployments = vec![old];
    env0.world().environments[1].moved += 1;
    a_round_later(&daemon);
    assert_eq!(aws.s3.line_count(), 129 * 6);
}

#[test]
fn killed_again_and_again_while_it_follows_deployments_every_line_arrives_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().log_shape = LogShape { repeats: true, page_events: 20, ..LogShape::default() };
    let deployments = |from: usize| {
        (from..from + 10).map(|number| Deployment::running(&format!("d-{number}"), "tf:apply", 50)).collect()
    };
    env0.world().environments =
        (0..4).map(|number| environment(&format!("env-{number}"), deployments(number * 10))).collect();
    let setup = setup(&aws, &env0).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "32KiB");
    for round in 0..20 {
        {
            let mut world = env0.world();
            let mut all: Vec<&mut Deployment> =
                world.environments.iter_mut().flat_map(|environment| &mut environment.deployments).collect();
            all.iter_mut()
                .filter(|deployment| deployment.status == "IN_PROGRESS")
                .for_each(|deployment| deployment.steps[0].lines += 5);
            let ending = &mut all[round * 2];
            **ending = ending.clone().ended();
        }
        let asked = env0.asked("/deployments/");
        let daemon = setup.spawn();
        let more = rand::random_range(1..40);
        wait_until("some requests have come", || env0.asked("/deployments/") >= asked + more);
        // Not a wait for anything: it spreads the moments of the kills.
        std::thread::park_timeout(Duration::from_micros(rand::random_range(0..50_000)));
        daemon.kill();
    }
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 20);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 20);
}

#[test]
fn what_env0_has_no_more_is_said_once_and_the_rest_goes_on() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![
        environment("env-1", vec![Deployment::running("d-1", "git:clone", 3)]),
        environment("env-2", vec![Deployment::running("d-2", "git:clone", 3)]),
    ];
    env0.break_down("/environments/env-1/deployments", Fault::Status(404, "{}", None));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the other's lines are stored", || aws.s3.line_count() == 3);
    a_round_later(&daemon);
    let log = daemon.log().text();
    assert_eq!(log.matches("there is no such thing any more").count(), 1, "{log}");
}

#[test]
fn an_error_of_one_deployment_holds_up_no_other_and_it_comes_later() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![
        environment("env-1", vec![Deployment::running("d-1", "git:clone", 3)]),
        environment("env-2", vec![Deployment::running("d-2", "git:clone", 4)]),
    ];
    env0.break_down("/deployments/d-1", Fault::Json(r#"{"canary":1}"#));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the other's lines are stored", || aws.s3.line_count() == 4);
    wait_until("the log names the request", || daemon.log().text().contains("GET /deployments/{id}/steps at"));
    env0.heal();
    all_arrive_once(&aws, &env0, 0);
    assert!(!daemon.log().text().contains("canary"));
}

#[test]
fn a_token_in_a_record_is_enough_to_write_to_the_bucket_and_is_kept_nowhere() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let token = aws.issuer.token();
    let mut deployment = Deployment::running("d-1", "git:clone", 3);
    deployment.oidc_token = Some(token.clone());
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    // Nothing else is configured that could let a token in.
    let setup = setup(&aws, &env0).unset("ENV0_OIDC_TOKEN");
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    assert!(!setup.spool_holds(&token) && !daemon.log().text().contains(&token));
}

#[test]
fn after_a_restart_the_record_of_a_deployment_that_is_stored_gives_its_token_again() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let mut old = Deployment::running("d-1", "git:clone", 3).ended();
    old.oidc_token = Some(aws.issuer.expired_token(120));
    let mut new = Deployment::running("d-2", "git:clone", 3).ended();
    new.oidc_token = Some(aws.issuer.token());
    env0.world().environments = vec![environment("env-1", vec![old, new])];
    let setup = setup(&aws, &env0).unset("ENV0_OIDC_TOKEN");
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 2);
    a_round_later(&daemon);
    daemon.kill();
    let daemon = setup.start();
    wait_until("there is a session again", || aws.sts.sessions_issued() == 2);
    let tokens = daemon.admin_get("/status").unwrap().json()["credentials"]["tokens"].clone();
    assert_eq!((tokens.as_array().unwrap().len(), &tokens[0]["source"]), (1, &"deployment-record".into()), "{tokens}");
    assert_eq!(daemon.log().count("WARN", "refused an OIDC token"), 0, "nobody can do anything about old ones");
}

#[test]
fn years_without_an_audit_event_are_asked_for_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let from = (Utc::now() - TimeDelta::days(6 * 365)).to_rfc3339();
    let setup = setup(&aws, &env0).set("ENV0_S3_LOG_PULL", "env0-audits").set("ENV0_S3_LOG_PULL_FROM", from);
    let daemon = setup.start();
    let rounds = || daemon.metric("pull_rounds_total{outcome=\"succeeded\"}").unwrap_or_default();
    wait_until("a round is over", || rounds() >= 1.0);
    assert!(env0.asked("/audit/events") > 70);
    let before = env0.asked("/audit/events");
    wait_until("three rounds more are over", || rounds() >= 4.0);
    // And what a fourth may have begun with.
    assert!(env0.asked("/audit/events") <= before + 4, "{}", env0.asked("/audit/events") - before);
}

#[test]
fn an_environment_that_is_missing_from_a_list_and_comes_back_brings_nothing_twice() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "git:clone", 3).ended()])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
    let gone = std::mem::take(&mut env0.world().environments);
    a_round_later(&daemon);
    env0.world().environments = gone;
    env0.world().environments[0].moved += 1;
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn a_deployment_that_two_pages_list_is_read_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let deployments = (0..150).rev().map(|number| Deployment::running(&format!("d-{number}"), "git:clone", 3).ended());
    env0.world().environments = vec![environment("env-1", deployments.collect())];
    env0.world().pages_move = true;
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 150);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 150);
}

#[test]
fn a_record_that_lacks_a_member_is_told_and_holds_up_no_other() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "git:clone", 3)])];
    env0.world().odd_records = vec![serde_json::json!({"name": "canary"})];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    wait_until("the log says what it lacks", || daemon.log().text().contains("it lacks the member id"));
    assert!(!daemon.log().text().contains("canary"));
}

#[test]
fn a_deployment_without_times_is_followed_to_its_end_and_an_ended_one_is_told() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let timeless = |deployment: Deployment| Deployment { created_at: None, ..deployment };
    env0.world().environments = vec![
        environment("env-1", vec![timeless(Deployment::running("d-1", "git:clone", 3))]),
        environment("env-2", vec![timeless(Deployment::running("d-2", "git:clone", 3).ended())]),
    ];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the one that runs is followed", || aws.s3.line_count() == 3);
    wait_until("the log says what the other lacks", || daemon.log().text().contains("lacks the member createdAt"));
    env0.world().environments.pop();
    {
        let mut world = env0.world();
        let deployments = &mut world.environments[0].deployments;
        deployments[0].steps[0].lines = 5;
        deployments[0] = deployments[0].clone().ended();
    }
    all_arrive_once(&aws, &env0, 1);
    // It is still known when much newer ones have come.
    {
        let mut world = env0.world();
        let newer = Deployment::running("d-3", "git:clone", 2).ended().made_at(Utc::now() + TimeDelta::hours(5));
        world.environments[0].deployments.insert(0, newer);
        world.environments[0].moved += 1;
    }
    all_arrive_once(&aws, &env0, 2);
    env0.world().environments[0].moved += 1;
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 2);
    assert_eq!(daemon.log().count("ERROR", "lacks the member"), 1, "{}", daemon.log().text());
}

#[test]
fn a_step_that_is_tried_again_goes_on_in_its_log_or_begins_it_anew() {
    for begins_anew in [false, true] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 5)])];
        let step = |change: &dyn Fn(&mut Step)| change(&mut env0.world().environments[0].deployments[0].steps[0]);
        step(&|step| step.status = "FAIL");
        let setup = setup(&aws, &env0);
        let daemon = setup.start();
        all_arrive_once(&aws, &env0, 0);
        a_round_later(&daemon);
        step(&|step| {
            (step.status, step.retries) = ("IN_PROGRESS", 1);
            match begins_anew {
                true => (step.begun_anew, step.lines) = (1, 3),
                false => step.lines = 8,
            }
        });
        wait_until("the second attempt's lines are stored", || aws.s3.line_count() == 8);
        step(&|step| step.lines += 4);
        // Before the deployment has ended.
        wait_until("it is followed", || aws.s3.line_count() == 12);
        a_round_later(&daemon);
        let mut lines = aws.s3.lines();
        let again = lines.iter().filter(|line| line.contains("again: line")).count();
        lines.sort();
        lines.dedup();
        assert_eq!((lines.len(), again), (12, if begins_anew { 7 } else { 0 }));
    }
}

#[test]
fn a_log_of_a_hundred_thousand_lines_comes_whole_and_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let deployment = Deployment::running("d-1", "tf:apply", 100_000).ended();
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    let setup = setup(&aws, &env0);
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn an_ended_log_that_begins_with_thirty_empty_pages_comes_whole() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().log_shape = LogShape { empty_pages: 30, ..LogShape::default() };
    let deployment = Deployment::running("d-1", "tf:apply", 20).ended();
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    let setup = setup(&aws, &env0);
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn three_hundred_deployments_at_once_are_followed_to_their_ends() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let one = |number: usize| {
        environment(&format!("env-{number}"), vec![Deployment::running(&format!("d-{number}"), "tf:apply", 20)])
    };
    env0.world().environments = (0..300).map(one).collect();
    let setup = setup(&aws, &env0);
    let _daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    for environment in &mut env0.world().environments {
        let deployment = &mut environment.deployments[0];
        deployment.steps[0].lines = 30;
        *deployment = deployment.clone().ended();
    }
    all_arrive_once(&aws, &env0, 300);
}
