//! What `/status` says: plain snapshots that the parts publish. Holds no secret, no event and no header.
//!
//! `check` reads it from a running daemon and `verify` takes the chains' heads from it, so a field, once published,
//! keeps its name and its meaning.

mod credentials;
mod timestamp;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::batch::LogType;
pub use credentials::{CredentialsStatus, ExchangeTrouble, RefusedTokens, TokenStatus};
pub use timestamp::Timestamp;

/// How many of the newest objects each log type shows.
pub const LAST_OBJECTS: usize = 10;

/// The whole of `/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Id of the spool; the STS session is named after it.
    pub instance: String,
    /// Where the daemon is in its life.
    pub phase: Phase,
    /// When the process started.
    pub started_at: Timestamp,
    /// When this was taken.
    pub now: Timestamp,
    /// Where the objects go.
    pub destination: DestinationStatus,
    /// By variable, a digest of each value that is neither the default nor secret: `check` finds by it where its own settings
    /// differ. Absent in older versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// The disk's side.
    pub spool: SpoolStatus,
    /// Both log types, in the order of [`LogType::ALL`].
    pub types: Vec<TypeStatus>,
    /// `None` while starting.
    pub credentials: Option<CredentialsStatus>,
    /// What the bucket answered last; absent before there was a session to ask with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketStatus>,
    /// How many connections, or requests on them, both listeners refused since the start, by the `reason` of
    /// `connections_refused_total`; absent where none was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub connections_refused_total: BTreeMap<String, u64>,
    /// How many requests ingest refused for good since the start, by HTTP status; absent where none was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests_refused_total: BTreeMap<String, u64>,
    /// What is pulled from env0's API, one for each log type and organization; absent where nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull: Vec<PullStatus>,
    /// What goes to CloudWatch Logs beside S3; absent where nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloudwatch: Option<CloudWatchStatus>,
}

/// Where the daemon is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Recovering the spool, binding the listeners.
    Starting,
    /// Taking events.
    Running,
    /// SIGTERM came: uploading what there is.
    Draining,
}

/// Where the objects go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationStatus {
    /// The bucket.
    pub bucket: String,
    /// Its region.
    pub region: String,
    /// The key prefix; empty for none.
    pub path: String,
    /// The endpoint of a store other than AWS.
    pub endpoint: Option<String>,
}

/// What `GetBucketLocation` told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketStatus {
    /// The bucket's region; `None` where the store told none, or failed.
    pub region: Option<String>,
    /// When it was asked.
    pub checked_at: Timestamp,
    /// Why it could not be asked, in words.
    pub error: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// S3's own code.
    pub code: Option<String>,
    /// The kind of the failure, one of those of `upload_failures_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// The disk's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// The folder.
    pub dir: String,
    /// Both types' files together.
    pub bytes: u64,
    /// Above it, ingest answers 503.
    pub limit_bytes: u64,
    /// What the file system has left for this user; `None` when it can't be asked.
    pub disk_available_bytes: Option<u64>,
    /// Files that were set aside; they don't count as part of the limit.
    pub quarantine_bytes: u64,
    /// When the disk told the two above; `None` before it first did.
    pub disk_asked_at: Option<Timestamp>,
}

/// One log type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeStatus {
    /// Which.
    #[serde(rename = "type")]
    pub log_type: LogType,
    /// It is pulled, and since the start a sender has sent some of it as well; absent where that is not so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pulled_and_sent: bool,
    /// Bytes of senders' text that are not UTF-8 and were stored as U+FFFD since the start; absent where there were none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_replaced: u64,
    /// The spool's side.
    #[serde(flatten)]
    pub spooled: SpooledStatus,
    /// The flusher's side.
    #[serde(flatten)]
    pub delivery: DeliveryStatus,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One log type as the spool sees it; the totals count from the process's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpooledStatus {
    /// Acknowledged.
    pub events_accepted: u64,
    /// Found on disk at the start.
    pub events_recovered: u64,
    /// Set aside.
    pub events_quarantined: u64,
    /// On disk, not in S3 yet.
    pub events_spooled: u64,
    /// The size of their files.
    pub spool_bytes: u64,
    /// Sealed and not delivered.
    pub batches: u64,
    /// When the oldest batch that is not in S3 was opened.
    pub oldest_unsent: Option<Timestamp>,
    /// When events were last acknowledged.
    pub last_accepted: Option<Timestamp>,
    /// Why appends are refused at the moment.
    pub write_error: Option<String>,
    /// Since when there is no room for events that were sent; they are answered 503.
    #[serde(default)]
    pub full_since: Option<Timestamp>,
    /// What the log type's files may hold now: the limit less what the other type holds, or could.
    #[serde(default)]
    pub share_bytes: u64,
    /// By how much the time in new keys is ahead of the clock, where that is an hour or more: a batch was opened while
    /// the clock was wrong, and the time never goes back within a type.
    #[serde(default)]
    pub key_time_ahead_seconds: u64,
    /// Whose chain the batches are numbered in.
    pub chain_instance: String,
    /// The newest link of the chain; `None` before the first.
    pub head: Option<ChainHead>,
}

/// The newest link of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Number of the batch that was sealed last.
    pub sequence: u64,
    /// 64 hex digits.
    pub sha256: String,
}

/// One log type as the flusher sees it; the totals count from the process's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryStatus {
    /// In S3.
    pub events_uploaded: u64,
    /// In S3.
    pub objects_uploaded: u64,
    /// Newest first, at most [`LAST_OBJECTS`].
    pub last_objects: Vec<ObjectStatus>,
    /// Why uploads fail at the moment.
    pub error: Option<Trouble>,
    /// The last outage that is over.
    pub last_outage: Option<Outage>,
}

/// An object that was delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStatus {
    /// Its key.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// Events in it.
    pub records: u64,
    /// When S3 confirmed it.
    pub uploaded_at: Timestamp,
}

/// The pull of one log type from one organization; the totals count from the process's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullStatus {
    /// Which log type.
    #[serde(rename = "type")]
    pub log_type: LogType,
    /// Which organization; empty until env0 has told the key's.
    pub organization: String,
    /// Everything before it is in the spool, but for what appears late. Of deployments: what env0's list of
    /// environments shows as moved or running; the others are looked at once an hour
    /// ([`PullStatus::looked_at_all_since`]).
    pub position: Option<Timestamp>,
    /// Of deployments: since then every environment's list of deployments was read.
    #[serde(default)]
    pub looked_at_all_since: Option<Timestamp>,
    /// Events that were pulled.
    pub events_pulled: u64,
    /// Events that were larger than the limit, of which the beginning is stored.
    pub events_cut: u64,
    /// Events that are not what env0 documents, and are stored all the same.
    #[serde(default)]
    pub events_odd: u64,
    /// Environments, deployments and steps that env0 answered 404 for, counted up to 1,000.
    #[serde(default)]
    pub gone: u64,
    /// The end of the last round that brought all there was.
    pub last_round: Option<Timestamp>,
    /// How long that round took.
    pub last_round_millis: u64,
    /// Why the pull doesn't get on at the moment.
    pub error: Option<Trouble>,
    /// What a person should know although the pull gets on.
    #[serde(default)]
    pub notice: Option<String>,
}

/// What goes to CloudWatch Logs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CloudWatchStatus {
    /// The daemon's stream, of the same name in both log groups.
    pub stream: String,
    /// Both log types, in the order of [`LogType::ALL`].
    pub types: Vec<CloudWatchTypeStatus>,
    /// The credentials of the role for CloudWatch.
    pub credentials: CredentialsStatus,
}

/// One log type on its way to CloudWatch Logs; the totals count from the process's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudWatchTypeStatus {
    /// Which log type.
    #[serde(rename = "type")]
    pub log_type: LogType,
    /// The log group.
    pub group: String,
    /// Batches that S3 has and CloudWatch doesn't.
    pub batches: u64,
    /// The size of their files, which may take what events leave of the spool's limit.
    pub bytes: u64,
    /// When the oldest of them was opened.
    pub oldest: Option<Timestamp>,
    /// Events that CloudWatch took.
    pub events_sent: u64,
    /// Events that were given up, or that CloudWatch didn't take; they are in S3.
    pub events_skipped: u64,
    /// When CloudWatch last took some.
    pub last_sent: Option<Timestamp>,
    /// Why it takes none at the moment.
    pub error: Option<Trouble>,
}

/// Something that fails, and goes on failing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The first failure in a row.
    pub since: Timestamp,
    /// The latest.
    pub latest: Timestamp,
    /// Failures in a row.
    pub attempts: u64,
    /// What happened, in words.
    pub message: String,
    /// What to do, in words.
    pub remedy: Option<String>,
    /// The service's own code.
    pub code: Option<String>,
    /// For the service's support.
    pub request_id: Option<String>,
    /// The kind of the failure: of an upload by the `error` of `upload_failures_total`, of CloudWatch by that of
    /// `cloudwatch_errors_total`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

impl Trouble {
    /// A failure at this moment, one more where `before` is not over.
    pub fn now(
        before: Option<Trouble>,
        message: String,
        remedy: String,
        code: Option<String>,
        request_id: Option<String>,
    ) -> Trouble {
        let latest = Timestamp::now();
        let (since, attempts) = before.map_or((latest, 0), |before| (before.since, before.attempts));
        Trouble { since, latest, attempts: attempts + 1, message, remedy: Some(remedy), code, request_id, kind: None }
    }
}

/// A trouble that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// Its first failure.
    pub since: Timestamp,
    /// Its end.
    pub until: Timestamp,
    /// What had happened, in words.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_back_as_it_was_written_and_its_fields_keep_their_names() {
        let text = r#"{"version":"0.1.0","instance":"i","phase":"running","started_at":"2026-11-22T21:04:05.678Z","now":"2026-11-22T21:05:05.000Z","destination":{"bucket":"b","region":"r","path":"","endpoint":null},"spool":{"dir":"/s","bytes":1,"limit_bytes":2,"disk_available_bytes":3,"quarantine_bytes":4,"disk_asked_at":"2026-11-22T21:05:04.000Z"},"types":[{"type":"env0-audits","events_accepted":1,"events_recovered":2,"events_quarantined":3,"events_spooled":4,"spool_bytes":5,"batches":6,"oldest_unsent":"2026-11-22T21:04:05.678Z","last_accepted":null,"write_error":null,"full_since":"2026-11-22T21:04:05.678Z","share_bytes":6,"key_time_ahead_seconds":0,"chain_instance":"c","head":{"sequence":7,"sha256":"00"},"events_uploaded":8,"objects_uploaded":9,"last_objects":[{"key":"k","bytes":1,"records":2,"uploaded_at":"2026-11-22T21:04:05.678Z"}],"error":{"since":"2026-11-22T21:04:05.678Z","latest":"2026-11-22T21:04:05.678Z","attempts":1,"message":"m","remedy":null,"code":null,"request_id":null},"last_outage":null}],"credentials":{"role_arn":"a","state":"s","session_expires_at":"2026-11-22T21:04:05.678Z","session_duration_seconds":3600,"waits_for":"w","remedy":"r","last_error":{"refused":true,"code":null,"request_id":null,"message":"m","remedy":"r","since":"2026-11-22T21:04:05.678Z"},"tokens":[{"subject":"auth0|1…","expires_at":"2026-11-22T21:04:05.678Z","source":"file","set_aside":false}],"refused_tokens":[{"reason":"organization","message":"m","count":3,"found":"1234…","configured":"0000…","remedy":"r","last":"2026-11-22T21:04:05.678Z"}]}}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&status).unwrap(), text);
        assert_eq!(status.now.seconds_since(status.started_at), 59);
    }
}
