//! Pages of a step's log that are longer than what is held in memory: each line comes once, whatever happens to a page.

use chrono::Utc;

use crate::harness::wait_until;
use crate::local_aws::LocalAws;
use crate::local_env0::deployments::{Cursor, Deployment, LogShape, event};
use crate::local_env0::{Fault, LocalEnv0};
use crate::pull_deployments::{a_round_later, all_arrive_once, environment, setup};

const LOG: &str = "/deployments/d-1/steps/tf%3Aapply/log";

/// A log is one page.
const ONE_PAGE: LogShape =
    LogShape { cursor: Cursor::Number, repeats: false, page_events: usize::MAX / 2, empty_pages: 0 };

#[test]
fn a_page_that_breaks_off_is_stored_so_far_and_each_line_once_through_kills() {
    // Of 3.5 MB. Where it breaks off, some lines are read that don't fill a piece.
    each_line_comes_once_although_it_is_answered_with(Fault::CutAfter(2_100_000));
}

#[test]
fn a_page_that_is_no_json_from_some_event_on_loses_nothing_that_was_read_before() {
    let events: Vec<String> = (0..20_000).map(|number| event("tf:apply", number)).collect();
    let page = format!(r#"{{"events":[{},{{]"#, events.join(","));
    each_line_comes_once_although_it_is_answered_with(Fault::Bytes(page.into_bytes().leak()));
}

/// A log of 30,000 lines, of which `fault` brings the first ones.
fn each_line_comes_once_although_it_is_answered_with(fault: Fault) {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().log_shape = ONE_PAGE;
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 30_000)])];
    env0.break_down(LOG, fault);
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("the log tells of it", || daemon.log().count("ERROR", "the pull from env0 fails") == 1);
    wait_until("what came is stored", || aws.s3.line_count() > 15_000);
    let asked = env0.asked(LOG);
    wait_until("it is asked for again", || env0.asked(LOG) >= asked + 2);
    daemon.kill();
    let daemon = setup.start();
    let asked = env0.asked(LOG);
    wait_until("it is asked for again", || env0.asked(LOG) >= asked + 2);
    assert!(aws.s3.line_count() < 30_000);
    env0.heal();
    all_arrive_once(&aws, &env0, 0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0, 0);
}

#[test]
fn an_event_that_is_too_large_to_be_read_is_stored_as_its_size_and_hash() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().environments = vec![environment("env-1", vec![Deployment::running("d-1", "tf:apply", 3).ended()])];
    let large = |letter: &str| format!("{{\"eventId\":\"{letter}\",\"message\":\"{}\"}}", letter.repeat(9 << 20));
    let page = format!(
        r#"{{"events":[{{"eventId":"e1"}},{},{},{{"eventId":"e2"}}],"hasMoreLogs":false}}"#,
        large("a"),
        large("b")
    );
    env0.break_down(LOG, Fault::Bytes(page.into_bytes().leak()));
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    wait_until("all events and the end are stored", || aws.s3.line_count() == 5);
    a_round_later(&daemon);
    let lines = aws.s3.lines();
    assert_eq!(lines.iter().filter(|line| line.contains("\"cutFromBytes\":94372")).count(), 2, "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("\"sha256\":\"") && line.contains("\"d-1\"")).count(), 2);
    assert!(lines.iter().any(|line| line.contains("\"e2\"")) && lines.len() == 5, "{lines:?}");
    assert_eq!(daemon.log().count("ERROR", "an event is too large to be read"), 1, "{}", daemon.log().text());
}

#[test]
fn large_pages_of_many_deployments_at_once_hold_up_neither_lists_nor_each_other() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    env0.world().log_shape = ONE_PAGE;
    let running = |number: usize| {
        environment(&format!("env-{number}"), vec![Deployment::running(&format!("d-{number}"), "tf:apply", 10_000)])
    };
    env0.world().environments = (0..10).map(running).collect();
    let setup = setup(&aws, &env0);
    let daemon = setup.start();
    all_arrive_once(&aws, &env0, 0);
    // Made by now, and its environment is new to a list that comes while these pages are read.
    env0.world()
        .environments
        .push(environment("new", vec![Deployment::running("new", "tf:apply", 2).made_at(Utc::now())]));
    for environment in &mut env0.world().environments {
        environment.deployments[0].steps[0].lines += 10_000;
    }
    all_arrive_once(&aws, &env0, 0);
    assert_eq!(daemon.log().complaints().len(), 0, "{}", daemon.log().text());
}
