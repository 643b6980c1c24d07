//! What a running daemon tells of its disk, senders, token, STS, the bucket, its PUTs and its pulls.

use std::net::SocketAddr;

use super::report::{BUCKET, DAEMON, PULL_ALONE, Step, TOKEN, Verdict};
use crate::admin::client;
use crate::batch::{LogType, counted};
use crate::config::Config;
use crate::credentials::{ways_to_a_token, without_a_token};
use crate::exit_code::{CONFIG, DENIED, IO, UNAVAILABLE};
use crate::ingest::came_both_ways;
use crate::s3::PutErrorKind;
use crate::status::{CredentialsStatus, PullStatus, RefusedTokens, Status, TypeStatus};

/// The section on events that come both ways.
const ABOUT_BOTH_WAYS: &str = "see config/README.md#pulling-from-env0s-api";

/// Where a bucket is when AWS answers `GetBucketLocation` with nothing.
const UNTOLD_REGION: &str = "us-east-1";

/// What a daemon waits for to which nothing went wrong on the way to a token.
const FIRST_TOKEN: &str = "an OIDC token";

/// What the running daemon alone may meet: another user's quota, or a folder that was moved away under it.
pub(super) fn disk_of_daemon(address: SocketAddr) -> Option<Step> {
    let reason = client::disk_trouble(address)?;
    let detail = format!("it is not ready, and answers events with 503: {reason}");
    let remedy =
        "mend what this line names: the daemon then goes on by itself; see config/README.md#disk-refuses-writes";
    Some(Step::fail(DAEMON, IO, detail, remedy))
}

/// A warning of events that come both ways; the remedy is behind the first semicolon.
pub(super) fn stored_twice(told: &str) -> Step {
    let (detail, remedy) = told.split_once("; ").unwrap_or((told, ""));
    Step::warn(PULL_ALONE, detail, format!("{remedy}; {ABOUT_BOTH_WAYS}"))
}

/// What the running daemon says of its senders, its pulls and its spool that is worth a look.
pub(super) fn troubles(status: &Status) -> Vec<Step> {
    let refused = [
        ("connections", "reason", &status.connections_refused_total),
        ("requests", "HTTP status", &status.requests_refused_total),
    ];
    let refused = refused.into_iter().filter_map(|(what, by, totals)| {
        let shown: Vec<_> = totals.iter().map(|(reason, total)| format!("{reason} {total}")).collect();
        (!shown.is_empty()).then(|| {
            Step::warn(
                DAEMON,
                format!("it has refused {what} since its start, by {by}: {}", shown.join(", ")),
                "nothing where no sender of yours is missed; else its log names the client and the reason of the first",
            )
        })
    });
    let pulls = status.pull.iter().filter_map(unusable_place);
    refused.chain(pulls).chain(status.types.iter().flat_map(troubles_of_type)).collect()
}

/// What env0 refuses is found by asking it. A place that can't be used is the daemon's own to tell.
fn unusable_place(pull: &PullStatus) -> Option<Step> {
    let error = pull.error.as_ref().filter(|error| error.code.as_deref() == Some("place"))?;
    let detail = format!("it can't pull {} from {}: {}", pull.log_type, pull.organization, error.message);
    Some(Step::fail(DAEMON, IO, detail, error.remedy.clone().unwrap_or_default()))
}

fn troubles_of_type(of_type: &TypeStatus) -> Vec<Step> {
    let (log_type, spooled) = (of_type.log_type, &of_type.spooled);
    let mut steps = Vec::new();
    if of_type.pulled_and_sent {
        steps.push(stored_twice(&came_both_ways(log_type)));
    }
    if of_type.bytes_replaced > 0 {
        let detail = format!(
            "{} of {log_type} from senders were no UTF-8, and are stored as U+FFFD, which can't be turned back",
            counted(of_type.bytes_replaced, "byte")
        );
        let remedy = "look up in its log (stored as U+FFFD) which client sent them; send UTF-8, or name the charset in Content-Type, \
                      or keep what is no text away";
        steps.push(Step::warn(DAEMON, detail, remedy));
    }
    if let Some(since) = spooled.full_since {
        let (used, share) = (spooled.spool_bytes, spooled.share_bytes);
        let detail = format!(
            "the spool has been full for {log_type} since {since}: {used} of the {share} bytes that it may take; its events are answered 503"
        );
        let remedy = "see why uploads fail or lag, or raise ENV0_S3_LOG_SPOOL_MAX_BYTES";
        steps.push(Step::warn(DAEMON, detail, remedy));
    }
    if spooled.key_time_ahead_seconds > 0 {
        let ahead = spooled.key_time_ahead_seconds;
        let detail = format!("the time in keys of {log_type} is {ahead} s ahead of the clock; nothing is lost");
        let remedy = "set the clock right; a new spool, once this one is drained, starts with the clock's time";
        steps.push(Step::warn(DAEMON, detail, remedy));
    }
    steps
}

/// Whether a daemon without a token is no mistake: the next deployment may bring one, handed over or in its record.
pub(super) fn a_deployment_may_bring_one(config: &Config) -> bool {
    config.takes_hand_overs() || config.pulls(LogType::Deployments)
}

pub(super) fn holds_session(status: &Status) -> bool {
    status.credentials.as_ref().is_some_and(|credentials| credentials.session_expires_at.is_some())
}

/// The running daemon's tokens.
pub(super) fn daemon_token(config: &Config, status: &Status) -> Step {
    let Some(credentials) = &status.credentials else { return Step::skipped(TOKEN, "the running daemon is starting") };
    let Some(last_end) = credentials.tokens.iter().map(|token| token.expires_at).max() else {
        return match credentials.refused_tokens.iter().max_by_key(|refused| refused.last) {
            None if credentials.waits_for.as_deref() == Some(FIRST_TOKEN) && a_deployment_may_bring_one(config) => {
                let remedy = Some(without_a_token(config));
                Step {
                    remedy,
                    ..Step::skipped(TOKEN, "the running daemon has none yet, and nothing is uploaded before")
                }
            }
            None => Step::fail(TOKEN, CONFIG, "the running daemon has none", without_a_token(config)),
            Some(refused) => {
                let detail = format!("the running daemon has none: {}", refused_words(refused));
                Step::fail(TOKEN, CONFIG, detail, refused.remedy.clone())
            }
        };
    };
    let end = last_end.map_or("a time that can't be read".to_owned(), |end| end.to_string());
    if last_end.is_none_or(|end| end >= status.now) {
        return Step::ok(TOKEN, format!("the running daemon has {}; the last ends at {end}", credentials.tokens.len()));
    }
    let detail = format!("the last token of the running daemon ended at {end}");
    match credentials.session_expires_at {
        Some(end) => Step::warn(TOKEN, format!("{detail}; its session lasts until {end}"), ways_to_a_token(config)),
        None => Step::fail(TOKEN, DENIED, detail, ways_to_a_token(config)),
    }
}

/// `it refused 3 tokens, the last at …: its organization is not a configured one (it is 1234…, configured is 0000…)`
fn refused_words(refused: &RefusedTokens) -> String {
    let RefusedTokens { count, last, message, found, configured, .. } = refused;
    let found = found_words(found.as_deref(), configured.as_deref());
    let tokens = if *count == 1 { "token" } else { "tokens" };
    format!("it refused {count} {tokens}, the last at {last}: {message}{found}")
}

/// What follows the reason why a token is refused: what it has, and what the configuration wants instead.
pub(super) fn found_words(found: Option<&str>, configured: Option<&str>) -> String {
    let found = found.map(|found| format!("it is {found}"));
    let configured = configured.map(|configured| format!("configured is {configured}"));
    let words: Vec<_> = found.into_iter().chain(configured).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

/// What the running daemon's status tells of STS, bucket and writing.
pub(super) fn of_daemon(status: &Status, write: bool) -> [Step; 3] {
    let last_put = last_put(Some(status));
    // A token that was handed over is the daemon's alone.
    let last_put = match write && last_put.verdict == Verdict::Skipped {
        true => Step::skipped(
            "write",
            "not tried: this check has no token of its own, and the running daemon has written nothing yet",
        ),
        false => last_put,
    };
    [daemon_sts("sts", status.credentials.as_ref()), daemon_bucket(status), last_put]
}

/// The exit code of what a daemon tells of the kind: the same as of a check that asks S3 itself.
fn exit_code(kind: Option<&str>) -> u8 {
    kind.and_then(PutErrorKind::of_label).map_or(UNAVAILABLE, PutErrorKind::exit_code)
}

/// What the bucket told the running daemon.
fn daemon_bucket(status: &Status) -> Step {
    let Some(told) = &status.bucket else {
        return Step::skipped(BUCKET, "the running daemon has not asked it yet; it does with its first session");
    };
    let step = match &told.error {
        None => region_told(&status.destination.bucket, &status.destination.region, told.region.as_deref()),
        Some(error) => {
            Step::fail(BUCKET, exit_code(told.kind.as_deref()), error, told.remedy.clone().unwrap_or_default())
        }
    };
    let detail = format!("the running daemon asked at {}: {}", told.checked_at, step.detail);
    Step { detail, ..step }.of_service(told.code.clone(), None)
}

/// The running daemon's exchange, as the step `name`.
pub(super) fn daemon_sts(name: &'static str, credentials: Option<&CredentialsStatus>) -> Step {
    let Some(credentials) = credentials else { return Step::skipped(name, "the running daemon is starting") };
    let state = &credentials.state;
    if let Some(error) = &credentials.last_error {
        let exit_code = if error.refused { DENIED } else { UNAVAILABLE };
        let detail = format!("the running daemon {state}: {}", error.message);
        return Step::fail(name, exit_code, detail, error.remedy.clone())
            .of_service(error.code.clone(), error.request_id.clone());
    }
    match &credentials.waits_for {
        // The step `token` judges that.
        Some(what) if what == FIRST_TOKEN => Step::skipped(name, format!("the running daemon waits for {what}")),
        Some(what) => {
            let remedy = credentials.remedy.clone().unwrap_or_default();
            Step::fail(name, DENIED, format!("the running daemon waits for {what}"), remedy)
        }
        None if credentials.session_expires_at.is_none() => Step::warn(
            name,
            format!("the running daemon {state}: STS has not answered yet"),
            "run check again in a minute; if it is still so, look at the way to STS (DNS, firewall, proxy)",
        ),
        None => Step::ok(name, format!("the running daemon {state}")),
    }
}

/// How the running daemon's last PUTs went.
pub(super) fn last_put(daemon: Option<&Status>) -> Step {
    const NAME: &str = "write";
    let Some(status) = daemon else { return Step::skipped(NAME, "not tried; --write writes one tiny object") };
    let failing = status.types.iter().find_map(|of| Some((of.log_type, of.delivery.error.as_ref()?)));
    if let Some((log_type, error)) = failing {
        let detail = format!("the running daemon can't write {log_type} since {}: {}", error.since, error.message);
        let remedy = error.remedy.clone().unwrap_or_else(|| "see the page of the admin listener".to_owned());
        return Step::fail(NAME, exit_code(error.kind.as_deref()), detail, remedy)
            .of_service(error.code.clone(), error.request_id.clone());
    }
    let objects = status.types.iter().flat_map(|of| &of.delivery.last_objects);
    match objects.max_by_key(|object| object.uploaded_at) {
        Some(object) => Step::ok(NAME, format!("the running daemon wrote {} at {}", object.key, object.uploaded_at)),
        None => Step::skipped(NAME, "the running daemon has written nothing yet; --write writes one tiny object"),
    }
}

/// How the pulls of the running daemon get on. Else nobody knows whether "nothing yet" is a fault.
pub(super) fn pulls(status: &Status) -> Vec<Step> {
    const NAME: &str = "pull-daemon";
    let told = |of: &PullStatus| {
        let organization = Some(&of.organization).filter(|id| !id.is_empty());
        let of_organization = organization.map(|id| format!(" of {id}")).unwrap_or_default();
        let who = format!("the running daemon's pull of {}{of_organization}", of.log_type);
        match (&of.error, of.last_round) {
            (Some(error), _) => {
                let detail = format!("{who} does not get on since {}: {}", error.since, error.message);
                Step::warn(NAME, detail, error.remedy.clone().unwrap_or_default())
            }
            (None, None) => {
                Step::ok(NAME, format!("{who} is in its first round; events stored so far: {}", of.events_pulled))
            }
            (None, Some(last)) => {
                let brought = match of.events_pulled {
                    0 => "env0 has had nothing new".to_owned(),
                    events => format!("events stored: {events}"),
                };
                let start = status.started_at;
                Step::ok(NAME, format!("{who} works, and asked last at {last}; since the start at {start}: {brought}"))
            }
        }
    };
    status.pull.iter().map(told).collect()
}

/// Whether the region that the store told, if it told one, is the `configured` one.
pub(super) fn region_told(bucket: &str, configured: &str, told: Option<&str>) -> Step {
    match told {
        Some(region) if region == configured => Step::ok(BUCKET, format!("{bucket} is in {region}")),
        Some(region) => wrong_region(region, format!("{bucket} is in {region}, not in {configured}")),
        None => {
            let detail = format!("{bucket} is there; the store tells no region, by which AWS means {UNTOLD_REGION}");
            match configured {
                UNTOLD_REGION => Step::ok(BUCKET, detail),
                other => Step::warn(
                    BUCKET,
                    format!("{detail}, and ENV0_S3_LOG_AWS_REGION is {other}"),
                    format!("nothing where the store is not AWS; else set ENV0_S3_LOG_AWS_REGION={UNTOLD_REGION}"),
                ),
            }
        }
    }
}

pub(super) fn wrong_region(region: &str, detail: String) -> Step {
    Step::fail(BUCKET, CONFIG, detail, format!("set ENV0_S3_LOG_AWS_REGION={region}"))
}
