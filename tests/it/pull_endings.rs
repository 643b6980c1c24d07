//! Where a log of env0's ends: late lines, answers of 404 and 400 that pass or stay, and what is said of them.

use chrono::{TimeDelta, Utc};

use crate::harness::wait_until;
use crate::local_aws::LocalAws;
use crate::local_env0::deployments::{Cursor, Deployment, LogShape, Step};
use crate::local_env0::{Fault, LocalEnv0, State};
use crate::pull_deployments::{a_round_later, all_arrive_once, environment, setup};

const GONE: Fault = Fault::Status(404, "{}", None);

/// The only deployment.
fn first(world: &mut State) -> &mut Deployment {
    &mut world.environments[0].deployments[0]
}

/// The only deployment ends.
fn end_first(env0: &LocalEnv0) {
    let mut world = env0.world();
    let deployment = first(&mut world);
    *deployment = deployment.clone().ended();
}

#[test]
fn lines_that_show_after_a_deployment_has_ended_are_stored_before_its_last_line() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let mut deployment = Deployment::running("d-1", "tf:apply", 5).ended();
    deployment.steps[0].late = 2;
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
    assert!(aws.s3.lines().last().unwrap().contains("d-1-finished"));
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn lines_that_show_after_a_step_has_ended_do_not_wait_for_the_deployments_end() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let mut deployment = Deployment::running("d-1", "tf:plan", 5);
    (deployment.steps[0].status, deployment.steps[0].late) = ("SUCCESS", 2);
    deployment.steps.push(Step::running("tf:apply", 1));
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    // Then it is read no more until the deployment ends.
    a_round_later(&daemon);
    a_round_later(&daemon);
    let log = "/deployments/d-1/steps/tf%3Aplan/log";
    let asked = env0.asked(log);
    a_round_later(&daemon);
    assert_eq!(env0.asked(log), asked);
}

#[test]
fn a_404_that_passes_ends_nothing() {
    for of in ["/environments/env-1", "/deployments/d-1/steps", "/deployments/d-1/steps/tf%3Aapply"] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3)])];
        let setup = setup(&aws, &env0);
        let daemon = setup.start();
        all_arrive_once(&aws, &env0, 0);
        env0.break_down(of, GONE);
        env0.world().environments[0].moved += 1;
        wait_until("the log tells the 404", || daemon.log().count("WARN", "there is no such thing any more") == 1);
        // It ends while it can't be seen.
        first(&mut env0.world()).steps[0].lines = 6;
        end_first(&env0);
        a_round_later(&daemon);
        assert!(!aws.s3.lines().iter().any(|line| line.contains("d-1-finished")), "{of}");
        env0.heal();
        all_arrive_once(&aws, &env0, 1);
        a_round_later(&daemon);
        all_arrive_once(&aws, &env0, 1);
        assert_eq!(daemon.log().count("WARN", "there is no such thing any more"), 1, "{of}");
    }
}

#[test]
fn after_15_minutes_of_404_a_deployment_is_gone_and_is_read_on_if_it_returns() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3)])];
    env0.world().clock_behind = TimeDelta::minutes(20);
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    env0.break_down("/deployments/d-1/steps", GONE);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 0);
    env0.world().clock_behind = TimeDelta::zero();
    all_arrive_once(&aws, &env0, 1);
    assert!(aws.s3.lines().iter().any(|line| line.contains("d-1-finished") && line.contains("\"status\":\"GONE\"")));
    let asked = env0.asked("/deployments/d-1");
    a_round_later(&daemon);
    assert_eq!(env0.asked("/deployments/d-1"), asked, "it is asked for no more");
    env0.heal();
    first(&mut env0.world()).steps[0].lines = 6;
    env0.world().environments[0].moved += 1;
    all_arrive_once(&aws, &env0, 1);
    first(&mut env0.world()).steps[0].lines = 8;
    end_first(&env0);
    all_arrive_once(&aws, &env0, 1);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn a_deployment_whose_environment_has_vanished_is_gone_after_a_quarter_of_an_hour() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let mut deployment = Deployment::running("d-1", "tf:apply", 3);
    deployment.steps[0].status = "SUCCESS";
    deployment.steps.push(Step { status: "NOT_STARTED", ..Step::running("tf:destroy", 0) });
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    env0.world().clock_behind = TimeDelta::minutes(20);
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    // Its steps can still be asked for.
    env0.break_down("/environments", Fault::Json("[]"));
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 0);
    env0.world().clock_behind = TimeDelta::zero();
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn each_step_that_env0_does_not_know_is_told_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let mut deployment = Deployment::running("d-1", "tf:plan", 3);
    deployment.steps.push(Step::running("tf:apply", 3));
    deployment.steps.push(Step::running("tf:output", 3));
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    env0.break_down("/deployments/d-1/steps/tf%3Aplan", GONE);
    env0.break_down("/deployments/d-1/steps/tf%3Aapply", GONE);
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the third step's lines are stored", || aws.s3.line_count() == 3);
    a_round_later(&daemon);
    let log = daemon.log().text();
    assert_eq!((log.matches("\"d-1 tf:plan\"").count(), log.matches("\"d-1 tf:apply\"").count()), (1, 1), "{log}");
    assert!(daemon.admin_get("/status").unwrap().text().contains("\"gone\":2"));
}

#[test]
fn a_step_without_a_log_holds_up_no_end_and_one_whose_rest_is_refused_does() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let mut deployment = Deployment::running("d-1", "tf:plan", 3);
    deployment.steps.push(Step { status: "CANCELLED", ..Step::running("skipped: by a policy", 0) });
    deployment.steps.push(Step { status: "SKIPPED", ..Step::running("cost", 0) });
    env0.world().environments = vec![environment("env-1", vec![deployment])];
    let refused = Fault::Status(400, r#"{"message":"not started"}"#, None);
    env0.break_down("/deployments/d-1/steps/skipped", refused.clone());
    env0.break_down("/deployments/d-1/steps/cost", GONE);
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    env0.break_down("/deployments/d-1/steps/tf%3Aplan", refused);
    {
        let mut world = env0.world();
        let deployment = first(&mut world);
        (deployment.status, deployment.steps[0].status, deployment.steps[0].lines) = ("SUCCESS", "SUCCESS", 6);
    }
    wait_until("the log says what is refused", || daemon.log().count("ERROR", "{name}/log at 127.0.0.1") == 1);
    assert!(!aws.s3.lines().iter().any(|line| line.contains("d-1-finished")));
    env0.world().lasting.remove("/deployments/d-1/steps/tf%3Aplan");
    all_arrive_once(&aws, &env0, 1);
    assert_eq!(daemon.log().count("WARN", "there is no such thing any more"), 0);
}

#[test]
fn an_ended_steps_log_that_is_refused_once_is_told_and_comes_whole() {
    for fault in [Fault::Status(400, "{}", None), GONE] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:plan", 3).ended()])];
        env0.break_down("/deployments/d-1/steps/tf%3Aplan", fault);
        let setup = setup(&aws, &env0);
        let daemon = setup.start();
        a_round_later(&daemon);
        a_round_later(&daemon);
        assert_eq!((aws.s3.line_count(), daemon.log().count("WARN", "{name}/log at 127.0.0.1")), (0, 1));
        env0.heal();
        all_arrive_once(&aws, &env0, 1);
    }
}

#[test]
fn an_ended_steps_log_that_promises_more_without_a_next_page_stays_open() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:plan", 3)])];
    env0.world().log_shape = LogShape { cursor: Cursor::NeverThoughMore, ..LogShape::default() };
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    first(&mut env0.world()).steps[0].lines = 5;
    all_arrive_once(&aws, &env0, 0);
    // While the step runs, more may come any time.
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
    end_first(&env0);
    wait_until("the log tells it", || daemon.log().count("ERROR", "no nextStartTime that leads on") == 1);
    all_arrive_once(&aws, &env0, 0);
    env0.world().log_shape = LogShape::default();
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn a_step_record_that_cannot_be_read_holds_up_no_other_and_is_asked_for_again() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![
        environment("env-1", vec![Deployment::running("d-1", "tf:plan", 3).ended()]),
        environment("env-2", vec![Deployment::running("d-2", "tf:plan", 3)]),
    ];
    env0.world().odd_steps =
        vec![serde_json::json!({"name": "canary"}), serde_json::json!({"name": "b", "status": {"canary": 1}})];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    let missing = "the answer is not what env0 documents: it lacks the member status";
    wait_until("the log says what is missing", || daemon.log().count("ERROR", missing) == 1);
    assert_eq!(daemon.log().count("ERROR", "GET /deployments/{id}/steps at"), 1);
    env0.world().odd_steps.clear();
    all_arrive_once(&aws, &env0, 1);
    assert!(!daemon.log().text().contains("canary"));
}

#[test]
fn an_error_of_one_steps_log_holds_up_no_other_step() {
    for fault in [Fault::Status(500, "{}", None), Fault::Status(418, "{}", None), Fault::Json(r#"{"canary":[]}"#)] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let mut deployment = Deployment::running("d-1", "tf:plan", 3);
        deployment.steps.push(Step::running("tf:apply", 4));
        env0.world().environments = vec![environment("env-1", vec![deployment.ended()])];
        env0.break_down("/deployments/d-1/steps/tf%3Aplan", fault);
        let setup = setup(&aws, &env0);
        let daemon = setup.start();
        wait_until("the other step's lines are stored", || aws.s3.line_count() == 4);
        wait_until("the log names the request", || daemon.log().text().contains("{name}/log at 127.0.0.1"));
        env0.heal();
        all_arrive_once(&aws, &env0, 1);
    }
}

#[test]
fn a_deployment_that_ended_long_ago_is_read_once() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let ended = Deployment::running("d-1", "tf:apply", 5).ended_at(Utc::now() - TimeDelta::hours(1));
    env0.world().environments = vec![environment("env-1", vec![ended])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
    a_round_later(&daemon);
    assert_eq!(env0.asked("/deployments/d-1/steps/tf%3Aapply/log"), 1);
}
