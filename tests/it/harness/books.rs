//! Counts events in and lines out, and checks that what lies in the bucket is as the README promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::{Setup, wait_until};
use crate::local_aws::{LocalAws, Object, Operation};

/// Events that were sent, each with an id of its own, and which of them were acknowledged.
#[derive(Default)]
pub(crate) struct Books {
    next: AtomicUsize,
    acknowledged: Mutex<BTreeSet<String>>,
    /// Sent again after an answer that never came: their client may have stored them more than once.
    repeated: Mutex<BTreeSet<String>>,
}

impl Books {
    /// Ids for `count` events that are about to be sent.
    pub(crate) fn ids(&self, count: usize) -> Vec<String> {
        let first = self.next.fetch_add(count, Ordering::SeqCst);
        (first..first + count).map(|number| format!("event-{number:08}")).collect()
    }

    /// NDJSON of one event for each id.
    pub(crate) fn body(ids: &[String]) -> String {
        ids.iter().map(|id| event(id) + "\n").collect()
    }

    /// Enters an acknowledgement.
    pub(crate) fn acknowledge(&self, ids: Vec<String>) {
        self.acknowledged.lock().unwrap().extend(ids);
    }

    /// Enters that nobody answered; the client sends them again.
    pub(crate) fn repeat(&self, ids: &[String]) {
        self.repeated.lock().unwrap().extend(ids.iter().cloned());
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until `setup`'s spool has delivered everything, then checks that every acknowledged event
    /// is in the bucket exactly once, that no other is there more than once, and all of [`check_bucket`].
    pub(crate) fn balance(&self, aws: &LocalAws, setup: &Setup) {
        wait_until_delivered(setup);
        let mut found = BTreeMap::<String, usize>::new();
        for line in aws.s3.lines() {
            let event: Value = serde_json::from_str(&line).unwrap();
            *found.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let acknowledged = self.acknowledged.lock().unwrap();
        let missing: Vec<_> = acknowledged.iter().filter(|id| !found.contains_key(*id)).collect();
        assert!(missing.is_empty(), "acknowledged and not in the bucket: {missing:?}");
        let by_the_client = self.repeated.lock().unwrap();
        let repeated: Vec<_> = found.iter().filter(|(id, count)| **count > 1 && !by_the_client.contains(*id)).collect();
        assert!(repeated.is_empty(), "in the bucket more than once: {repeated:?}");
        check_bucket(aws);
    }
}

/// One event: an id and some text, as one line of JSON without its newline.
pub(crate) fn event(id: &str) -> String {
    json!({ "id": id, "level": "info", "message": "\u{1b}[1mmodule.vpc: Creating…\u{1b}[0m" }).to_string()
}

/// Waits until the spool holds no batch of either type.
pub(crate) fn wait_until_delivered(setup: &Setup) {
    for log_type in ["env0-deployments", "env0-audits"] {
        wait_until("the spool is delivered", || setup.spool_files(log_type).iter().all(|name| name.ends_with(".sent")));
    }
}

/// Checks keys, bodies, headers and metadata of every object, every PUT's condition, and that each
/// chain is whole from its number 1. Objects without `env0-*` metadata are another writer's.
pub(crate) fn check_bucket(aws: &LocalAws) {
    assert_eq!(aws.s3.overwritten(), 0, "an object was overwritten");
    for request in aws.s3.requests() {
        let allowed = matches!(request.operation, Operation::PutObject | Operation::GetBucketLocation);
        assert!(allowed, "{:?} is outside env0's two statements", request.operation);
    }
    let mut chains = BTreeMap::<(String, String), BTreeMap<u64, Object>>::new();
    for object in aws.s3.objects() {
        let Some(instance) = object.metadata.get("env0-instance").cloned() else { continue };
        check_object(&object);
        let log_type = if object.key.contains("env0-audits/") { "env0-audits" } else { "env0-deployments" };
        let sequence = object.metadata["env0-sequence"].parse().unwrap();
        let twin = chains.entry((instance, log_type.into())).or_default().insert(sequence, object);
        assert!(twin.is_none(), "number {sequence} of {log_type} is there twice");
    }
    for ((_, log_type), chain) in chains {
        let mut previous = "0".repeat(64);
        for (expected, (sequence, object)) in (1..).zip(&chain) {
            assert_eq!(*sequence, expected, "a gap in {log_type}");
            assert_eq!(object.metadata["env0-previous-sha256"], previous, "a break at {sequence} in {log_type}");
            previous.clone_from(&object.sha256);
        }
    }
}

fn check_object(object: &Object) {
    let Object { key, body, metadata, headers, .. } = object;
    assert!(is_well_formed(key), "{key}");
    assert!(body.ends_with(b"\n") && !body.starts_with(b"\n"), "{key} is not NDJSON");
    assert_eq!(metadata["env0-records"], object.lines.to_string(), "{key}");
    assert_eq!(metadata["env0-sha256"], object.sha256, "{key}");
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("application/x-ndjson"), "{key}");
    assert_eq!(header("content-encoding"), None, "{key}");
    assert_eq!(header("if-none-match"), Some("*"), "{key}");
    assert!(header("x-amz-checksum-sha256").is_some() && header("x-amz-trailer").is_none(), "{key}");
}

/// `[<bucketPath>/]<logType>/<yyyy>/<mm>/<dd>/<HH:mm:ss>_<5chars>.log`
fn is_well_formed(key: &str) -> bool {
    let Some(at) = key.find("env0-deployments/").or_else(|| key.find("env0-audits/")) else { return false };
    let Some((_, rest)) = key[at..].split_once('/') else { return false };
    let pattern = "dddd/dd/dd/dd:dd:dd_aaaaa.log";
    rest.len() == pattern.len()
        && rest.bytes().zip(pattern.bytes()).enumerate().all(|(index, (byte, kind))| match kind {
            b'd' if index < 20 => byte.is_ascii_digit(),
            b'a' => byte.is_ascii_alphanumeric(),
            kind => byte == kind,
        })
        && !key.starts_with('/')
        && !key.contains("//")
}
