//! The stand-in for CloudWatch Logs keeps CloudWatch's limits, seen through the daemon's own client.

use std::time::Duration;

use env0_s3_logs::batch::LogType;
use env0_s3_logs::cloudwatch::calls::Event;
use env0_s3_logs::cloudwatch::error::LogsErrorKind;
use env0_s3_logs::cloudwatch::logs::{Logs, Rejected};
use env0_s3_logs::config::{Config, Purpose};
use env0_s3_logs::credentials::{Credentials, Role};
use env0_s3_logs::network::Network;
use tokio_util::sync::CancellationToken;

use crate::local_aws::{CLOUDWATCH_ROLE_ARN, LocalAws, LogsFault};

const GROUP: &str = "env0-deployments";
const HOUR_MILLIS: i64 = 3_600_000;

/// A client with a session, and the runtime that it needs.
struct World {
    aws: LocalAws,
    logs: Logs,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> World {
        let aws = LocalAws::start();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let vars = aws.environment().into_iter().chain(aws.cloudwatch_environment());
        let vars = vars.map(|(name, value)| (name.into(), value.into()));
        let config = Config::from_vars(vars, Purpose::Drain).unwrap().config;
        let cloudwatch = config.cloudwatch.clone().unwrap();
        let logs = runtime.block_on(async {
            let network = Network::new(&config.network).unwrap();
            let (role, stop) = (Role::of_cloudwatch(&cloudwatch), CancellationToken::new());
            let credentials = Credentials::start_for(role, &config, &network, "id", stop);
            tokio::time::timeout(Duration::from_secs(20), credentials.wait_session()).await.unwrap();
            Logs::new(&cloudwatch, &network, credentials, "id")
        });
        World { aws, logs, runtime }
    }

    fn put(&self, events: &[Event]) -> Result<Rejected, LogsErrorKind> {
        self.runtime.block_on(self.logs.put(LogType::Deployments, events)).map_err(|error| error.kind)
    }
}

/// An event so many milliseconds from now.
fn at(offset: i64, message: &str) -> Event {
    Event { timestamp: chrono::Utc::now().timestamp_millis() + offset, message: message.to_owned() }
}

#[test]
fn a_call_over_a_limit_of_cloudwatch_is_refused_and_one_at_it_is_taken() {
    let world = World::new();
    let longest = "x".repeat(1_048_576 - 26);
    let many = vec![at(0, "x"); 10_000];
    assert_eq!(world.put(&[at(0, &longest)]), Ok(Rejected::default()));
    assert_eq!(world.put(&many), Ok(Rejected::default()));
    for (what, events) in [
        ("bytes", vec![at(0, &format!("{longest}x"))]),
        ("events", [many, vec![at(0, "x")]].concat()),
        ("none", vec![]),
        ("empty", vec![at(0, "")]),
        ("order", vec![at(0, "b"), at(-1_000, "a")]),
        ("a day", vec![at(-25 * HOUR_MILLIS, "a"), at(0, "b")]),
    ] {
        assert_eq!(world.put(&events), Err(LogsErrorKind::Events), "{what}");
    }
    assert_eq!(world.aws.logs.events(GROUP).len(), 10_001);
}

#[test]
fn events_too_old_too_new_or_expired_are_told_and_not_kept() {
    let world = World::new();
    let too_old = || at(-15 * 24 * HOUR_MILLIS, "too old");
    assert_eq!(world.put(&[too_old(), too_old()]), Ok(Rejected { too_old: 2, ..Rejected::default() }));
    assert_eq!(
        world.put(&[at(0, "kept"), at(3 * HOUR_MILLIS, "new")]),
        Ok(Rejected { too_new: 1, ..Rejected::default() })
    );
    world.aws.logs.set_retention_days(1);
    assert_eq!(world.put(&[at(-36 * HOUR_MILLIS, "expired")]), Ok(Rejected { expired: 1, ..Rejected::default() }));
    assert_eq!(world.aws.logs.messages(GROUP), ["kept"]);
}

#[test]
fn a_lost_answer_leaves_the_events_and_a_deleted_group_or_stream_is_made_again() {
    let world = World::new();
    world.put(&[at(0, "first")]).unwrap();
    world.aws.logs.inject(LogsFault::lose_response().times(1));
    assert_eq!(world.put(&[at(0, "second")]), Err(LogsErrorKind::Unreachable));
    assert_eq!(world.aws.logs.messages(GROUP), ["first", "second"]);
    world.aws.logs.delete_streams(GROUP);
    world.put(&[at(0, "third")]).unwrap();
    world.aws.logs.delete_group(GROUP);
    world.put(&[at(0, "fourth")]).unwrap();
    assert_eq!(world.aws.logs.messages(GROUP), ["fourth"]);
}

#[test]
fn only_the_session_of_cloudwatchs_role_is_let_in_and_only_until_it_ends() {
    let world = World::new();
    world.aws.expire_all_sessions();
    assert_eq!(world.put(&[at(0, "late")]), Err(LogsErrorKind::SessionRejected));
    world.aws.logs.deny("PutLogEvents");
    let asked = world.aws.sts.exchanges();
    assert!(asked.iter().all(|exchange| exchange.role == CLOUDWATCH_ROLE_ARN), "{asked:?}");
}
