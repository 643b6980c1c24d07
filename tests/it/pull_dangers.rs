//! What must never happen to a pull: a key that goes elsewhere, an event that a clock hides, memory without a bound.

use chrono::{TimeDelta, Utc};

use crate::harness::wait_until;
use crate::local_aws::LocalAws;
use crate::local_env0::audits::{Event, event};
use crate::local_env0::deployments::Deployment;
use crate::local_env0::{Fault, LocalEnv0};
use crate::pull_audits::{AUDIT_EVENTS, a_round_later, all_arrive_once, from, setup};
use crate::pull_deployments::environment;
use crate::pull_figures::peak_kib;

#[test]
fn a_redirect_to_another_server_never_gets_the_key_and_is_told() {
    let (aws, env0, other) = (LocalAws::start(), LocalEnv0::start(), LocalEnv0::start());
    let address = other.url().replace("127.0.0.1", "localhost");
    for address in [address, other.url()] {
        env0.break_down(AUDIT_EVENTS, Fault::Redirect(format!("{address}{AUDIT_EVENTS}?organizationId=x")));
        let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
        let daemon = setup.start();
        wait_until("the log tells of it", || daemon.log().text().contains("the pull from env0 fails"));
        assert_eq!(other.asked("/"), 0, "{}", daemon.log().text());
    }
}

#[test]
fn a_key_that_is_revoked_in_the_middle_of_a_history_loses_and_doubles_nothing() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let start = Utc::now() - TimeDelta::days(40);
    let at = |number: usize| start + TimeDelta::minutes(14 * number as i64);
    env0.world().audits = (0..4000).map(|number| event(number, at(number))).collect::<Vec<_>>().into();
    // A few requests of the history are answered, and none behind them.
    (0..4).for_each(|_| env0.inject(AUDIT_EVENTS, Fault::Pass));
    env0.break_down(AUDIT_EVENTS, Fault::Status(401, "{}", None));
    let setup = from(setup(&aws, &env0), start - TimeDelta::seconds(1));
    let daemon = setup.start();
    wait_until("the log tells of the key", || daemon.log().text().contains("worked before"));
    env0.heal();
    all_arrive_once(&aws, &env0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
}

#[test]
fn an_event_dated_in_the_future_hides_none_that_happens_before_then() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let setup = from(setup(&aws, &env0), Utc::now() - TimeDelta::hours(1));
    let daemon = setup.start();
    env0.world().audits = vec![event(1, Utc::now())].into();
    // A day ahead, as env0's clock may once have been, and some seconds ahead.
    let tomorrow = event(2, Utc::now() + TimeDelta::days(1));
    env0.world().audits.push(tomorrow);
    env0.world().audits.push(event(3, Utc::now() + TimeDelta::seconds(20)));
    for number in 4..8 {
        a_round_later(&daemon);
        env0.world().audits.push(event(number, Utc::now() - TimeDelta::seconds(1)));
    }
    wait_until("all but tomorrow's are stored", || aws.s3.line_count() >= 6);
    a_round_later(&daemon);
    let lines = aws.s3.lines();
    let stored = |number: usize| lines.iter().filter(|line| line.contains(&format!("\"audit-{number}\""))).count();
    assert_eq!([1, 2, 3, 4, 5, 6, 7].map(stored), [1, 0, 1, 1, 1, 1, 1], "{lines:#?}");
}

#[test]
fn a_clock_that_is_hours_ahead_of_env0s_skips_nothing_when_it_is_set_right() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let env0_now = || Utc::now() - TimeDelta::hours(3);
    env0.world().clock_behind = TimeDelta::hours(3);
    let setup = from(setup(&aws, &env0), env0_now() - TimeDelta::hours(1));
    let daemon = setup.start();
    for number in 0..3 {
        env0.world().audits.push(event(number, env0_now()));
        a_round_later(&daemon);
    }
    all_arrive_once(&aws, &env0);
    // Ours is set right: from here on both say the same, and what happened in between is there.
    {
        let mut world = env0.world();
        let minutes = |number: i64| TimeDelta::minutes(29 * (number - 2));
        world.audits.extend((3..9).map(|number| event(number, env0_now() + minutes(number as i64))));
        world.clock_behind = TimeDelta::zero();
    }
    all_arrive_once(&aws, &env0);
    // And it goes back once more: what was taken is not taken again.
    env0.world().clock_behind = TimeDelta::hours(1);
    a_round_later(&daemon);
    env0.world().clock_behind = TimeDelta::zero();
    env0.world().audits.push(event(20, Utc::now()));
    all_arrive_once(&aws, &env0);
    a_round_later(&daemon);
    all_arrive_once(&aws, &env0);
}

#[test]
fn pages_of_large_events_are_asked_for_with_fewer_of_them_and_all_come_once() {
    // Told to be too large by their header, or found to be while they are read: in one
    // millisecond, which can't be split.
    for (answers, events, millis_apart) in [(Fault::Pass, 1000, 1), (Fault::Chunked, 150, 0)] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let start = Utc::now() - TimeDelta::hours(2);
        let text = "x".repeat(60_000);
        let large = |number: usize| {
            let event = event(number, start + TimeDelta::milliseconds(millis_apart * number as i64));
            Event { json: event.json.replace("\"ratio\"", &format!("\"text\":\"{text}\",\"ratio\"")), ..event }
        };
        env0.world().audits = (0..events).map(large).collect::<Vec<_>>().into();
        env0.break_down(AUDIT_EVENTS, answers);
        let setup = from(setup(&aws, &env0), start - TimeDelta::hours(1));
        let daemon = setup.start();
        all_arrive_once(&aws, &env0);
        assert_eq!(daemon.log().count("ERROR", ""), 0, "{}", daemon.log().text());
        let limit = |request: &String| request.split_once("limit=")?.1.split('&').next()?.parse::<usize>().ok();
        let smallest = env0.world().requests.iter().filter_map(limit).min();
        assert!(smallest.is_some_and(|events| events < 250), "{smallest:?}");
    }
}

/// `begin`, then `unit` again and again up to `mebibytes`, then `end`.
fn filled(begin: &str, unit: &str, mebibytes: usize, end: &str) -> Fault {
    let units = (mebibytes << 20).saturating_sub(begin.len() + end.len() + 64) / unit.len();
    Fault::Json(format!("{begin}{}{end}", unit.repeat(units)).leak())
}

#[test]
fn an_answer_of_many_small_things_takes_a_small_multiple_of_its_size_in_memory() {
    let ids: Vec<String> = (0..280_000).map(|number| format!("{{\"id\":\"{number:x}\"}}")).collect();
    let numbers: Vec<String> = (0..500_000).map(|number| number.to_string()).collect();
    let (steps, log) = ("/deployments/d-1/steps", "/deployments/d-1/steps/tf%3Aapply/log");
    for (path, fault) in [
        (AUDIT_EVENTS, filled("{\"events\":[],\"nextPageKey\":[", "{\"\":0},", 4, "0]}")),
        (AUDIT_EVENTS, filled("{\"events\":[{\"timestamp\":[", "{\"\":0},", 1, "0]}]}")),
        (AUDIT_EVENTS, Fault::Json(format!("{{\"events\":[{}]}}", numbers.join(",")).leak())),
        ("/environments", Fault::Json(format!("[{}]", ids.join(",")).leak())),
        (steps, filled("[", "0,", 32, "0]")),
        (log, filled("{\"events\":[", "0,", 32, "0]}")),
        (log, filled("{\"events\":[],\"hasMoreLogs\":true,\"nextStartTime\":[", "{\"\":0},", 32, "0]}")),
    ] {
        let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
        let deployment = Deployment::running("d-1", "tf:apply", 1);
        env0.world().environments = vec![environment("env-1", vec![deployment])];
        (0..2).for_each(|_| env0.inject(path, fault.clone()));
        let setup = setup(&aws, &env0).unset("ENV0_S3_LOG_PULL");
        let daemon = from(setup, Utc::now() - TimeDelta::hours(1)).start();
        wait_until("it was read", || env0.asked(path) >= 2);
        let peak = peak_kib(&daemon) / 1024;
        assert!(peak <= 128, "{peak} MiB for {path}");
        wait_until("the log tells of it", || daemon.log().count("ERROR", "") > 0);
    }
}
