//! env0's lists of environments and deployments: pages that repeat, records that are too
//! large or too old to be expected.

use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::harness::wait_until;
use crate::local_aws::LocalAws;
use crate::local_env0::deployments::{Deployment, Environment, all_lines};
use crate::local_env0::{Fault, LocalEnv0, ORGANIZATION};
use crate::pull_deployments::{a_round_later, all_arrive_once, environment, setup};

fn ended(number: usize) -> Deployment {
    Deployment::running(&format!("d-{number}"), "tf:apply", 2).ended()
}

#[test]
fn a_server_that_repeats_its_first_page_is_told_and_what_it_shows_is_stored() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = (0..130).map(|number| Environment::new(&format!("env-{number}"))).collect();
    env0.world().environments[0].deployments = (0..130).map(ended).collect();
    env0.world().ignores_offset = true;
    let setup = setup(&aws, &env0);
    let finished = setup.run("check");
    assert!(finished.stdout.contains("the parameter `offset` is ignored"), "{finished:?}");
    let daemon = setup.start();
    wait_until("the first page's lines are stored", || aws.s3.line_count() == 300);
    wait_until("the log tells it", || daemon.log().count("ERROR", "the parameter `offset` is ignored") == 1);
    assert_eq!(all_lines(&env0.world()).len(), 260);
    // What the server hid comes when it doesn't any more.
    env0.world().ignores_offset = false;
    all_arrive_once(&aws, &env0, 130);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 130);
}

#[test]
fn a_list_that_is_too_large_is_asked_for_in_smaller_pages() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments =
        (0..50).map(|number| environment(&format!("env-{number}"), vec![ended(number)])).collect();
    env0.world().environments[0].deployments.extend((50..100).map(ended));
    env0.world().padding = 800_000;
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 100);
    assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
}

#[test]
fn a_deployment_made_before_the_pulls_beginning_that_ended_after_it_is_stored() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let days = |days| Utc::now() - TimeDelta::days(days);
    // The pull begins two days ago; a full page lies before the one that counts.
    let old = (0..120).map(|number| ended(number).made_at(days(4)).ended_at(days(3)));
    let across = Deployment { id: "across".into(), ..ended(0) }.made_at(days(9)).ended_at(days(1));
    let waits = Deployment { id: "waits".into(), ..Deployment::running("", "tf:plan", 2) }.made_at(days(30));
    env0.world().environments = vec![environment("env-1", old.chain([across.clone(), waits.clone()]).collect())];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("both are stored", || aws.s3.line_count() >= 5);
    a_round_later(&daemon);
    env0.world().environments[0].deployments = vec![across, waits];
    all_arrive_once(&aws, &env0, 1);
}

#[test]
fn deployments_that_ended_while_no_daemon_ran_or_between_two_rounds_are_stored() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3)])];
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    daemon.kill();
    {
        let mut world = env0.world();
        let first = &mut world.environments[0].deployments[0];
        first.steps[0].lines = 9;
        *first = first.clone().ended();
        let drift = Deployment { moves_environment: false, ..ended(2) };
        world.environments[0].deployments.insert(0, drift);
    }
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 2);
    // It is made and ends between two rounds.
    env0.world().environments[0].deployments.insert(0, ended(3));
    all_arrive_once(&aws, &env0, 3);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 3);
}

#[test]
fn environments_within_workflows_and_in_every_state_are_asked_for() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    a_round_later(&daemon);
    let world = env0.world();
    let lists: Vec<&String> = world.requests.iter().filter(|asked| asked.starts_with("/environments?")).collect();
    assert!(lists.iter().all(|list| list.contains("includeSubEnvironments=true") && !list.contains("isActive")));
    assert!(!lists.is_empty());
}

#[test]
fn an_organization_that_cannot_be_read_holds_up_no_other_and_is_asked_for_again() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![ended(1)])];
    let odd = format!(r#"[{{"name":"canary"}},{{"id":"{ORGANIZATION}"}},{{"id":"../canary"}}]"#);
    env0.break_down("/organizations", Fault::Json(odd.leak()));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 1);
    let missing = "GET /organizations at";
    wait_until("the log says what is missing", || daemon.log().count("ERROR", missing) == 1);
    let asked = env0.asked("/organizations");
    wait_until("it is asked for again", || env0.asked("/organizations") > asked);
    env0.heal();
    wait_until("the status tells no error", || {
        let status = daemon.admin_get("/status").unwrap().json();
        let pulls = status["pull"].as_array().unwrap();
        pulls.len() == 1 && pulls[0]["error"] == json!(null)
    });
    all_arrive_once(&aws, &env0, 1);
    assert!(!daemon.log().text().contains("canary"));
}
