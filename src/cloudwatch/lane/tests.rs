//! A real spool on a real disk, real credentials and a real client, and a CloudWatch that answers as each test says.

use std::path::PathBuf;

use axum::http::{HeaderValue, Response};
use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::batch::{BatchName, Codec, SealedName, Sha256, Stage};
use crate::config::{CloudWatch, Config};
use crate::credentials::Role;
use crate::network::Network;
use crate::oidc::{OidcToken, Source};
use crate::spool::disk::OsDisk;
use crate::spool::tests::world;
use crate::spool::{SealedBatches, Settings};
use crate::testing::{self, Seen, Server, answer, soon, sts_that_gives_sessions, until};

const TYPE: LogType = LogType::Deployments;

/// The daemon from its spool down to CloudWatch.
struct Case {
    lanes: Lanes,
    spool: Spool,
    sealed: ByType<SealedBatches>,
    credentials: Credentials,
    cloudwatch: Server,
    metrics: metrics_exporter_prometheus::PrometheusRecorder,
    dir: tempfile::TempDir,
    _sts: Server,
}

/// A file in the copies' folder from a life before.
struct Found {
    opened: chrono::DateTime<chrono::Utc>,
    codec: Codec,
    bytes: &'static [u8],
    /// What was cut off the file's end.
    cut: usize,
}

impl Case {
    async fn new(judge: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> Case {
        Case::with(Codec::None, &[], Some("token"), judge).await
    }

    async fn with(
        codec: Codec,
        found: &[Found],
        token: Option<&str>,
        judge: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Case {
        let cloudwatch = Server::start(judge).await;
        let sts = sts_that_gives_sessions().await;
        let oidc_token = token.map(Into::into);
        let config = Config { endpoint_url_sts: Some(sts.url()), oidc_token, ..testing::config("") };
        let to = CloudWatch {
            role_arn: "arn:aws:iam::123456789012:role/env0-cloudwatch".to_owned(),
            aws_region: "eu-west-1".to_owned(),
            session_duration: Duration::from_secs(900),
            group_prefix: String::new(),
            endpoint_url: Some(cloudwatch.url()),
        };
        let network = Network::new(&config.network).unwrap();
        let stop = CancellationToken::new();
        let bucket = Credentials::start(&config, &network, "id", stop.clone());
        let credentials = bucket.start_beside(Role::of_cloudwatch(&to), &config, &network, "id", stop);

        let dir = tempfile::tempdir().unwrap();
        for (sequence, Found { opened, codec, bytes, cut }) in (1..).zip(found) {
            let batch = BatchName::open(*opened, None, *codec);
            let (sha256, previous, stage) = (Sha256::of(bytes), Sha256::ZERO, Stage::Sent);
            let name = SealedName { batch, sequence, records: 1, sha256, previous, stage };
            let folder = copies_dir(dir.path().to_owned());
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(name.to_string()), &bytes[..bytes.len() - cut]).unwrap();
        }
        let settings = Settings { copies: true, codec, ..world::settings(dir.path().to_owned()) };
        let settings = Settings { batch_max_bytes: 1 << 20, max_bytes: 1 << 30, ..settings };
        let (spool, sealed) = Spool::open(&settings, Arc::new(OsDisk)).unwrap();
        let copying = Copying {
            spool: spool.clone(),
            copies: spool.copies().unwrap().clone(),
            logs: Logs::new(&to, &network, credentials.clone(), "0123456789abcdef"),
            credentials: bucket,
            bucket_path: "acme".to_owned(),
        };
        let copying = Copying { credentials: credentials.clone(), ..copying };
        let metrics = PrometheusBuilder::new().build_recorder();
        let lanes = metrics::with_local_recorder(&metrics, || Lanes::start(copying)).unwrap();
        Case { lanes, spool, sealed, credentials, cloudwatch, metrics, dir, _sts: sts }
    }

    /// Brings a batch of these lines to where S3 has it.
    async fn deliver(&mut self, lines: &[&str]) {
        let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        self.spool.append(TYPE, Bytes::from(body), lines.len() as u64).await.unwrap();
        self.spool.seal();
        let mut batch = soon(self.sealed[TYPE].recv()).await.unwrap();
        let folder = self.spool.folder(TYPE);
        folder.set_stage(&mut batch, Stage::Sending).unwrap();
        folder.delivered(&mut batch).unwrap();
    }

    fn status(&self) -> CloudWatchTypeStatus {
        self.lanes.watched().status().types.into_iter().find(|of_type| of_type.log_type == TYPE).unwrap()
    }

    async fn until_nothing_waits(&self) {
        until("nothing waits for CloudWatch", || {
            self.status().batches == 0 && std::fs::read_dir(copies_dir(self.dir.path().into())).unwrap().count() == 0
        })
        .await;
    }

    /// The messages that CloudWatch took, in order.
    fn taken(&self) -> Vec<String> {
        self.cloudwatch.seen().iter().filter(|request| is_put(request)).flat_map(messages).collect()
    }

    fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.handle().render();
        let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let found = lines.find(|(name, _)| name.ends_with(&format!("_s3_logs_cloudwatch_{series}")));
        found.unwrap_or_else(|| panic!("no {series} in {text}")).1.parse().unwrap()
    }
}

fn copies_dir(spool: PathBuf) -> PathBuf {
    spool.join("cloudwatch").join(TYPE.as_str())
}

fn is_put(request: &Seen) -> bool {
    request.header("x-amz-target").unwrap().ends_with(".PutLogEvents")
}

fn messages(request: &Seen) -> Vec<String> {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let events = body["logEvents"].as_array().unwrap();
    events.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

fn marked(mut response: Response<Bytes>) -> Response<Bytes> {
    response.headers_mut().insert("x-amzn-requestid", HeaderValue::from_static("logs-request"));
    response
}

fn ok() -> Response<Bytes> {
    marked(answer(200, "{}"))
}

fn refusal(status: u16, code: &str) -> Response<Bytes> {
    marked(answer(status, json!({"__type": code, "message": "no"}).to_string()))
}

/// Gives the first calls these answers, and takes all others.
fn first(answers: impl IntoIterator<Item = Response<Bytes>>) -> impl Fn(&Seen) -> Response<Bytes> + Send + Sync {
    let answers = Mutex::new(answers.into_iter().collect::<std::collections::VecDeque<_>>());
    move |_| answers.lock().unwrap().pop_front().unwrap_or_else(ok)
}

#[tokio::test]
async fn what_s3_has_goes_to_cloudwatch_line_by_line_whatever_its_codec() {
    for codec in Codec::ALL {
        let mut case = Case::with(codec, &[], Some("token"), first([])).await;
        case.deliver(&[r#"{"n":1}"#, r#"{"n":2}"#]).await;
        case.deliver(&[r#"{"n":3}"#]).await;
        case.until_nothing_waits().await;
        assert_eq!(case.taken(), [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#], "{codec:?}");
        let status = case.status();
        assert_eq!((status.events_sent, status.events_skipped, status.error), (3, 0, None));
        assert_eq!(status.group, "env0-deployments");
        assert_eq!(case.counted(r#"events_total{type="env0-deployments"}"#), 3);
    }
}

#[tokio::test]
async fn a_call_that_fails_is_made_again_until_cloudwatch_takes_it_and_says_why_meanwhile() {
    let failures = [refusal(400, "ThrottlingException"), answer(503, "busy"), refusal(400, "AccessDeniedException")];
    let mut case = Case::new(first(failures)).await;
    case.deliver(&[r#"{"n":1}"#]).await;
    until("the denial is told", || {
        case.status().error.is_some_and(|error| error.code.as_deref() == Some("AccessDeniedException"))
    })
    .await;
    let error = case.status().error.unwrap();
    // One more where the session came a moment after the batch.
    assert!((3..=4).contains(&error.attempts), "{}", error.attempts);
    assert!(error.remedy.unwrap().contains("logs:PutLogEvents"));
    case.until_nothing_waits().await;
    assert_eq!((case.taken().len(), case.status().events_sent, case.status().error), (4, 1, None));
    for kind in ["throttled", "server_error", "denied"] {
        assert_eq!(case.counted(&format!("errors_total{{type=\"env0-deployments\",error=\"{kind}\"}}")), 1, "{kind}");
    }
}

#[tokio::test]
async fn an_event_that_cloudwatch_can_not_take_is_left_out_and_all_others_are_sent() {
    let judge = |request: &Seen| match messages(request).iter().any(|message| message.contains("bad")) {
        true => refusal(400, "InvalidParameterException"),
        false => ok(),
    };
    let mut case = Case::new(judge).await;
    let lines: Vec<String> =
        (0..9).map(|n| if n == 5 { r#"{"bad":5}"#.to_owned() } else { format!("{{\"n\":{n}}}") }).collect();
    case.deliver(&lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    case.until_nothing_waits().await;
    let seen = case.cloudwatch.seen();
    let taken = seen.iter().map(messages).filter(|call| !call.concat().contains("bad"));
    let good: Vec<String> = lines.iter().filter(|line| !line.contains("bad")).cloned().collect();
    assert_eq!(taken.flatten().collect::<Vec<_>>(), good, "each once, and in order");
    assert_eq!((case.status().events_sent, case.status().events_skipped), (8, 1));
    assert_eq!(case.counted(r#"skipped_events_total{type="env0-deployments",reason="refused"}"#), 1);
}

#[tokio::test]
async fn events_that_are_all_refused_are_no_sign_that_cloudwatch_takes_any() {
    let mut case = Case::new(|_| refusal(400, "InvalidParameterException")).await;
    case.deliver(&[r#"{"n":1}"#, r#"{"n":2}"#]).await;
    case.until_nothing_waits().await;
    let status = case.status();
    assert_eq!((status.events_sent, status.events_skipped, status.last_sent), (0, 2, None));
}

#[tokio::test]
async fn what_cloudwatch_takes_and_throws_away_is_counted_by_its_reason() {
    let info = json!({"rejectedLogEventsInfo": {
        "tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 3, "tooNewLogEventStartIndex": 5,
    }});
    let mut case = Case::new(first([marked(answer(200, info.to_string()))])).await;
    case.deliver(&["{}", "{}", "{}", "{}", "{}", "{}"]).await;
    case.until_nothing_waits().await;
    assert_eq!((case.status().events_sent, case.status().events_skipped), (2, 4));
    for (reason, count) in [("too_old", 1), ("expired", 2), ("too_new", 1)] {
        let series = format!("skipped_events_total{{type=\"env0-deployments\",reason=\"{reason}\"}}");
        assert_eq!(case.counted(&series), count, "{reason}");
    }
}

#[tokio::test]
async fn a_batch_of_thirteen_days_ago_is_given_up_and_one_of_an_earlier_life_is_sent() {
    let opened = |days| batch::now() - TimeDelta::days(days);
    let found = [
        Found { opened: opened(14), codec: Codec::None, bytes: b"{\"n\":14}\n", cut: 0 },
        Found { opened: opened(12), codec: Codec::None, bytes: b"{\"n\":12}\n", cut: 0 },
    ];
    let case = Case::with(Codec::None, &found, Some("token"), first([])).await;
    case.until_nothing_waits().await;
    assert_eq!(case.taken(), [r#"{"n":12}"#]);
    until("it is counted", || case.status().events_skipped == 1).await;
}

#[tokio::test]
async fn a_file_that_can_not_be_read_is_given_up_and_the_next_is_sent() {
    let opened = batch::now() - TimeDelta::hours(1);
    let found = [Found { opened, codec: Codec::Zstd, bytes: b"this is no zstd", cut: 0 }];
    let mut case = Case::with(Codec::Gzip, &found, Some("token"), first([])).await;
    case.deliver(&[r#"{"n":1}"#]).await;
    case.until_nothing_waits().await;
    assert_eq!(case.taken(), [r#"{"n":1}"#]);
    until("it is counted", || case.status().events_skipped == 1).await;
}

#[tokio::test]
async fn a_file_that_was_cut_is_given_up_and_no_piece_of_it_is_sent() {
    let opened = batch::now() - TimeDelta::hours(1);
    let found = [Found { opened, codec: Codec::None, bytes: b"{\"n\":0}\n", cut: 4 }];
    let mut case = Case::with(Codec::None, &found, Some("token"), first([])).await;
    case.deliver(&[r#"{"n":1}"#]).await;
    case.until_nothing_waits().await;
    assert_eq!(case.taken(), [r#"{"n":1}"#]);
    until("it is counted", || case.status().events_skipped == 1).await;
}

#[tokio::test]
async fn a_batch_that_is_given_up_while_its_call_fails_makes_way_for_the_next() {
    let judge = |request: &Seen| match messages(request).concat().contains("first") {
        true => refusal(400, "ThrottlingException"),
        false => ok(),
    };
    let mut case = Case::new(judge).await;
    case.deliver(&[r#"{"n":"first"}"#]).await;
    case.deliver(&[r#"{"n":"second"}"#]).await;
    until("the first fails", || case.status().error.is_some()).await;
    let copies = case.spool.copies().unwrap();
    copies.give_up(&copies.oldest(TYPE).unwrap(), GivenUp::Room);
    case.until_nothing_waits().await;
    assert_eq!(case.taken().last().unwrap(), r#"{"n":"second"}"#);
    assert_eq!(case.status().events_sent, 1);
}

#[tokio::test]
async fn without_a_session_nothing_is_sent_and_with_one_all_is() {
    let mut case = Case::with(Codec::None, &[], None, first([])).await;
    case.deliver(&["{}"]).await;
    until("the lane waits for a session", || case.status().error.is_some()).await;
    assert!(case.cloudwatch.seen().is_empty());
    case.credentials.offer(OidcToken::own("token", Source::HandOver).unwrap());
    case.until_nothing_waits().await;
    assert_eq!((case.taken().len(), case.status().error), (1, None));
}

#[tokio::test]
async fn the_end_sends_what_waits_and_what_fails_stays_for_the_next_start() {
    let judge = |request: &Seen| match messages(request).concat().contains("bad") {
        true => answer(500, "no"),
        false => ok(),
    };
    let mut case = Case::new(judge).await;
    case.deliver(&[r#"{"n":1}"#]).await;
    case.deliver(&[r#"{"n":"bad"}"#]).await;
    soon(case.lanes.drain()).await;
    assert_eq!((case.status().events_sent, case.status().batches), (1, 1));
    let left: Vec<_> = std::fs::read_dir(copies_dir(case.dir.path().into())).unwrap().collect();
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn a_large_batch_is_many_calls_and_a_failed_one_is_not_made_of_those_before_it() {
    let calls = Mutex::new(0);
    let judge = move |_: &Seen| {
        let mut calls = calls.lock().unwrap();
        *calls += 1;
        if *calls == 2 { answer(503, "busy") } else { ok() }
    };
    let mut case = Case::new(judge).await;
    let line = format!("{{\"m\":\"{}\"}}", "x".repeat(400_000));
    case.deliver(&[&line, &line, &line]).await;
    case.until_nothing_waits().await;
    let sizes: Vec<usize> = case.cloudwatch.seen().iter().map(|request| messages(request).len()).collect();
    assert_eq!(sizes, [2, 1, 1]);
}

#[test]
fn a_clock_that_jumps_ahead_makes_no_batch_old() {
    let started = batch::now();
    let (hour, year) = (Duration::from_secs(3600), TimeDelta::days(365));
    assert_eq!(not_ahead_of(started + year, started, hour), started + TimeDelta::hours(1));
    assert_eq!(not_ahead_of(started + TimeDelta::minutes(5), started, hour), started + TimeDelta::minutes(5));
    assert_eq!(not_ahead_of(started - year, started, hour), started - year);
}
