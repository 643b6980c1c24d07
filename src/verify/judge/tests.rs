//! Every way to damage a bucket, and what the judge says of it.

use chrono::{NaiveDate, TimeDelta};
use serde_json::{Value, json};

use super::*;
use crate::chain::tests::keys;
use crate::chain::{Gaps, SigningKey};
use crate::verify::heads::KnownHead;

mod explained;
mod forged;

const A: &str = "instance-a";
const B: &str = "instance-b";
const NOW: &str = "2026-11-22T12:00:00Z";

fn now() -> DateTime<Utc> {
    NOW.parse().unwrap()
}

fn day(text: &str) -> Option<NaiveDate> {
    Some(text.parse().unwrap())
}

fn body(instance: &str, sequence: u64) -> Vec<u8> {
    format!("{{\"n\":{sequence}}}\n{{\"of\":\"{instance}\"}}\n").into_bytes()
}

fn sha256(instance: &str, sequence: u64) -> Sha256 {
    if sequence == 0 { Sha256::ZERO } else { Sha256::of(&body(instance, sequence)) }
}

/// One batch every six hours from the 20th of November on, at the second in which the batch was opened.
fn key_of(instance: &str, sequence: u64) -> String {
    let opened: DateTime<Utc> = "2026-11-20T00:00:00Z".parse().unwrap();
    let opened = opened + TimeDelta::hours(6) * (sequence as i32 - 1) + TimeDelta::seconds(i64::from(instance == B));
    let letter = if instance == A { 'a' } else { 'b' };
    format!("p/env0-audits/{}_{letter}{sequence:04}.log", opened.format("%Y/%m/%d/%H:%M:%S"))
}

fn entry(instance: &str, sequence: u64) -> ChainEntry {
    ChainEntry {
        key: key_of(instance, sequence),
        renamed_from: None,
        instance: instance.into(),
        log_type: LogType::Audits,
        sequence,
        records: 2,
        sha256: sha256(instance, sequence),
        previous: sha256(instance, sequence - 1),
        gaps: Gaps::default(),
    }
}

fn observed(entry: &ChainEntry, key: Option<&SigningKey>) -> Observed {
    let metadata = entry.metadata(key).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Observed {
        key: entry.key.clone(),
        log_type: entry.log_type,
        last_modified: now() - TimeDelta::days(1),
        metadata,
        content: Content::Read { sha256: entry.sha256, records: Some(entry.records) },
    }
}

/// A bucket of objects that were delivered as they should, to be damaged.
struct Bucket {
    objects: Vec<Observed>,
    signing: Option<SigningKey>,
    rules: Rules,
}

impl Bucket {
    /// Ten objects of instance A, without a key.
    fn unsigned() -> Bucket {
        let rules = Rules { bucket_path: "p".into(), now: now(), ..Rules::default() };
        Bucket { objects: Vec::new(), signing: None, rules }.with(A, 1..=10)
    }

    /// Ten objects of instance A, signed, and judged by the public key.
    fn signed() -> Bucket {
        let (signing, public) = keys();
        let rules = Rules { bucket_path: "p".into(), now: now(), public_keys: vec![public], ..Rules::default() };
        Bucket { objects: Vec::new(), signing: Some(signing), rules }.with(A, 1..=10)
    }

    fn with(self, instance: &str, sequences: std::ops::RangeInclusive<u64>) -> Bucket {
        sequences.fold(self, |bucket, sequence| bucket.with_entry(&entry(instance, sequence)))
    }

    fn with_entry(mut self, entry: &ChainEntry) -> Bucket {
        self.objects.push(observed(entry, self.signing.as_ref()));
        self
    }

    fn with_object(mut self, object: Observed) -> Bucket {
        self.objects.push(object);
        self
    }

    fn without(mut self, instance: &str, sequences: impl IntoIterator<Item = u64>) -> Bucket {
        for sequence in sequences {
            self.objects.retain(|object| object.key != key_of(instance, sequence));
        }
        self
    }

    fn get(&self, instance: &str, sequence: u64) -> Observed {
        self.objects.iter().find(|object| object.key == key_of(instance, sequence)).unwrap().clone()
    }

    fn change(mut self, instance: &str, sequence: u64, change: impl FnOnce(&mut Observed)) -> Bucket {
        let key = key_of(instance, sequence);
        change(self.objects.iter_mut().find(|object| object.key == key).unwrap());
        self
    }

    fn metadata(self, instance: &str, sequence: u64, name: &str, value: &str) -> Bucket {
        self.change(instance, sequence, |object| drop(object.metadata.insert(name.into(), value.into())))
    }

    fn rules(mut self, change: impl FnOnce(&mut Rules)) -> Bucket {
        change(&mut self.rules);
        self
    }

    fn head(self, instance: &str, sequence: u64) -> Bucket {
        self.rules(|rules| rules.heads.push(known_head(instance, sequence)))
    }

    /// Judged in the order of keys, with every object where its day puts it.
    fn judge(mut self) -> Judged {
        self.objects.sort_by(|a, b| a.key.cmp(&b.key));
        let (from, to) = (self.rules.from, self.rules.to);
        let mut judge = Judge::new(self.rules);
        for object in &self.objects {
            let opened = key::parse("p/env0-audits/", &object.key).map(|parts| parts.opened.date());
            let position = match opened {
                Some(opened) if from.is_some_and(|from| opened < from) => Position::Before,
                Some(opened) if to.is_some_and(|to| opened > to) => Position::After,
                _ => Position::Inside,
            };
            judge.object(position, object);
        }
        Judged(judge.finish().to_json())
    }
}

fn known_head(instance: &str, sequence: u64) -> KnownHead {
    let (log_type, sha256, instance) = (LogType::Audits, sha256(instance, sequence), instance.into());
    KnownHead { instance, log_type, sequence, sha256, unsent: 0, taken_at: None }
}

struct Judged(Value);

impl Judged {
    /// Exit code and findings, each as kind, instance's last letter, and sequences.
    #[track_caller]
    fn is(&self, exit_code: u64, findings: &[(&str, &str, Value)]) -> &Judged {
        let found: Vec<_> = self.0["findings"].as_array().unwrap().iter().collect();
        let short = |finding: &&Value| {
            let instance = finding["instance"].as_str().unwrap_or("-").trim_start_matches("instance-").to_owned();
            (finding["kind"].as_str().unwrap().to_owned(), instance, finding["sequences"].clone())
        };
        let found: Vec<_> = found.iter().map(short).collect();
        let expected: Vec<_> = findings
            .iter()
            .map(|(kind, instance, range)| (kind.to_string(), instance.to_string(), range.clone()))
            .collect();
        assert_eq!((self.0["exit_code"].as_u64().unwrap(), found), (exit_code, expected), "{:#}", self.0);
        self
    }

    #[track_caller]
    fn complete(&self, instance: &str, ranges: Value) -> &Judged {
        let chain = self.0["chains"].as_array().unwrap().iter().find(|chain| chain["instance"] == instance);
        assert_eq!(chain.map(|chain| &chain["complete"]), Some(&ranges), "{:#}", self.0);
        self
    }

    #[track_caller]
    fn says(&self, finding: usize, part: &str) -> &Judged {
        let detail = self.0["findings"][finding]["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{detail}");
        self
    }
}

#[test]
fn an_untouched_bucket_verifies_clean() {
    let judged = Bucket::signed().with(B, 1..=3).head(A, 10).head(B, 3).judge();
    judged.is(0, &[]).complete(A, json!([[1, 10]])).complete(B, json!([[1, 3]]));
    assert_eq!(judged.0["verdict"], "verified");
    assert_eq!(judged.0["not_shown"], json!([]));
    assert_eq!(judged.0["chains"][0]["objects"], 10);
    assert_eq!(judged.0["chains"][0]["events"], 20);
    assert_eq!(judged.0["chains"][0]["head"], json!({"sequence": 10, "sha256": sha256(A, 10).to_string()}));
}

#[test]
fn without_a_public_key_a_bucket_is_consistent_and_not_authenticated() {
    let judged = Bucket::unsigned().judge();
    judged.is(0, &[]).complete(A, json!([[1, 10]]));
    assert_eq!(judged.0["verdict"], "consistent, not authenticated");
    assert_eq!(judged.0["not_shown"].as_array().unwrap().len(), 2);
}

#[test]
fn an_empty_bucket_proves_nothing_and_says_so() {
    let empty = || Bucket::unsigned().without(A, 1..=10);
    for (allow_empty, exit_code) in [(false, 1), (true, 0)] {
        let judged = empty().rules(|rules| rules.allow_empty = allow_empty).judge();
        judged.is(exit_code, &[]);
        assert_eq!(judged.0["verdict"], "nothing to judge");
    }
}

#[test]
fn a_key_that_came_later_leaves_earlier_objects_unsigned_and_no_others() {
    // Numbers 1 to 4 were opened on the 20th.
    let judge = |unsigned_before| {
        let bucket = (1..=4).fold(Bucket::signed(), |bucket, number| {
            bucket.change(A, number, |object| drop(object.metadata.remove("env0-signature")))
        });
        bucket.rules(|rules| rules.unsigned_before = unsigned_before).judge()
    };
    for too_early in [None, day("2026-11-20")] {
        let judged = judge(too_early);
        let unsigned = |finding: &&Value| finding["kind"] == "unsigned";
        assert_eq!(judged.0["findings"].as_array().unwrap().iter().filter(unsigned).count(), 4, "{:#}", judged.0);
        assert_eq!(judged.0["exit_code"], 1);
    }
    let judged = judge(day("2026-11-21"));
    judged.is(0, &[]).complete(A, json!([[1, 10]]));
    assert_eq!(judged.0["verdict"], "verified, but for objects from before the signing");
    assert_eq!(judged.0["unsigned_allowed"], 4);
}

#[test]
fn an_object_changed_by_one_byte_is_altered() {
    for bucket in [Bucket::unsigned(), Bucket::signed()] {
        let content = Content::Read { sha256: Sha256::of(b"changed"), records: Some(2) };
        let judged = bucket.change(A, 5, |object| object.content = content).judge();
        judged
            .is(1, &[("altered", "a", json!([5, 5]))])
            .complete(A, json!([[1, 4], [6, 10]]))
            .says(0, "body was changed");
    }
}

#[test]
fn a_truncated_object_is_altered_and_its_events_are_counted() {
    let content = Content::Read { sha256: Sha256::of(b"trunc"), records: Some(1) };
    let judged = Bucket::signed().change(A, 10, |object| object.content = content).judge();
    judged.is(1, &[("altered", "a", json!([10, 10]))]).says(0, "1 events in place of 2");
}

#[test]
fn an_object_that_does_not_decompress_is_altered() {
    let content = Content::Read { sha256: sha256(A, 5), records: None };
    let judged = Bucket::signed().change(A, 5, |object| object.content = content).judge();
    judged.is(1, &[("altered", "a", json!([5, 5]))]).says(0, "decompressed");
}

#[test]
fn objects_deleted_in_the_middle_are_a_gap() {
    let judged = Bucket::signed().without(A, [4, 5, 8]).judge();
    judged.is(1, &[("gap", "a", json!([4, 5])), ("gap", "a", json!([8, 8]))]);
    judged.complete(A, json!([[1, 3], [6, 7], [9, 10]]));
    assert_eq!(judged.0["chains"][0]["gaps"], 3);
}

#[test]
fn objects_deleted_at_the_head_leave_the_chain_unanchored() {
    let judged = Bucket::signed().without(A, [1, 2]).judge();
    judged.is(1, &[("unanchored", "a", json!([1, 2]))]).complete(A, json!([[3, 10]]));
}

#[test]
fn objects_deleted_at_the_tail_show_against_heads_only() {
    Bucket::signed().without(A, [9, 10]).judge().is(0, &[]).complete(A, json!([[1, 8]]));
    let judged = Bucket::signed().without(A, [9, 10]).head(A, 10).judge();
    judged.is(1, &[("missing", "a", json!([9, 10]))]).complete(A, json!([[1, 8]]));
}

#[test]
fn a_tail_that_was_still_in_the_spool_when_the_head_was_told_is_pending_for_an_hour() {
    let told = |minutes_ago: i64, unsent: u64| {
        let mut head = known_head(A, 10);
        (head.unsent, head.taken_at) = (unsent, Some(now() - TimeDelta::minutes(minutes_ago)));
        Bucket::signed().without(A, [8, 9, 10]).rules(|rules| rules.heads.push(head)).judge()
    };
    told(59, 3).is(2, &[("pending", "a", json!([8, 10]))]);
    told(59, 2).is(1, &[("missing", "a", json!([8, 8])), ("pending", "a", json!([9, 10]))]);
    told(60, 3).is(1, &[("missing", "a", json!([8, 10]))]);
}

#[test]
fn a_whole_instance_deleted_shows_against_heads_only() {
    Bucket::signed().judge().is(0, &[]);
    let judged = Bucket::signed().head(B, 3).judge();
    judged.is(1, &[("missing", "b", json!([1, 3]))]).complete(A, json!([[1, 10]])).says(0, "the whole chain");
    let judged = Bucket::signed().rules(|rules| rules.instances.push(B.into())).judge();
    judged.is(1, &[("missing", "b", Value::Null)]);
}

#[test]
fn a_bucket_behind_its_head_by_another_batch_is_altered() {
    let mut head = known_head(A, 7);
    head.sha256 = Sha256::of(b"another");
    let judged = Bucket::unsigned().rules(|rules| rules.heads.push(head)).judge();
    judged.is(1, &[("altered", "a", json!([7, 7]))]);
}

#[test]
fn foreign_objects_are_counted_and_fail_only_when_strict() {
    let foreign = || {
        let mut object = Bucket::unsigned().get(A, 1);
        (object.key, object.metadata) = ("p/env0-audits/2026/01/01/old.json".into(), HashMap::new());
        Bucket::signed().with_object(object)
    };
    let judged = foreign().judge();
    judged.is(0, &[("foreign", "-", Value::Null)]);
    assert_eq!(judged.0["foreign"], json!({"env0-deployments": 0, "env0-audits": 1}));
    foreign().rules(|rules| rules.strict = true).judge().is(1, &[("foreign", "-", Value::Null)]);
}

#[test]
fn archived_objects_are_judged_by_the_checksum_that_s3_keeps() {
    let archived =
        |sha256| Bucket::signed().change(A, 5, |object| object.content = Content::Archived { sha256 }).judge();
    let good = archived(Some(sha256(A, 5)));
    good.is(0, &[]).complete(A, json!([[1, 10]]));
    assert_eq!(good.0["archived"], 1);
    archived(Some(sha256(A, 6))).is(1, &[("altered", "a", json!([5, 5]))]);
    archived(None).is(1, &[("unread", "a", json!([5, 5]))]).complete(A, json!([[1, 4], [6, 10]]));
}

#[test]
fn the_order_in_which_objects_come_changes_nothing() {
    use rand::seq::SliceRandom;
    let mut objects = Bucket::signed().with(B, 1..=10).without(A, [4]).objects;
    objects.shuffle(&mut rand::rng());
    let mut judge = Judge::new(Rules { bucket_path: "p".into(), now: now(), ..Rules::default() });
    objects.iter().for_each(|object| judge.object(Position::Inside, object));
    let judged = Judged(judge.finish().to_json());
    judged.is(1, &[("gap", "a", json!([4, 4]))]).complete(A, json!([[1, 3], [5, 10]])).complete(B, json!([[1, 10]]));
}

#[test]
fn a_hundred_thousand_objects_melt_into_one_run() {
    let mut judge = Judge::new(Rules { bucket_path: "p".into(), now: now(), ..Rules::default() });
    for sequence in 1..=100_000 {
        let time = DateTime::from_timestamp(1_700_000_000 + sequence as i64, 0).unwrap().format("%Y/%m/%d/%H:%M:%S");
        let entry = ChainEntry { key: format!("p/env0-audits/{time}_aaaaa.log"), ..entry(A, sequence) };
        if sequence != 77_777 {
            judge.object(Position::Inside, &observed(&entry, None));
        }
    }
    assert_eq!(judge.chains.values().next().unwrap().runs.len(), 2);
    let judged = Judged(judge.finish().to_json());
    judged.is(1, &[("gap", "a", json!([77_777, 77_777]))]).complete(A, json!([[1, 77_776], [77_778, 100_000]]));
}

#[test]
fn findings_beyond_the_limit_are_counted() {
    let judge = (1..=1500).fold(Judge::new(Rules::default()), |mut judge, number| {
        let (last_modified, metadata, content) = (now(), HashMap::new(), Content::NotRead);
        let key = format!("env0-audits/{number}");
        judge.object(Position::Inside, &Observed { key, log_type: LogType::Audits, last_modified, metadata, content });
        judge
    });
    let report = judge.finish();
    assert_eq!(report.to_json()["findings"].as_array().unwrap().len(), 1000);
    assert_eq!(report.to_json()["findings_left_out"], 500);
    assert!(report.to_string().contains("foreign    and 500 more"), "{report}");
}

#[test]
fn the_text_names_every_finding_and_shows_no_control_characters() {
    let mut object = Bucket::unsigned().get(A, 1);
    (object.key, object.metadata) = ("p/env0-audits/\u{1b}[31m".into(), HashMap::new());
    let mut judge = Judge::new(Rules { bucket_path: "p".into(), now: now(), ..Rules::default() });
    judge.object(Position::Inside, &object);
    judge.object(Position::Inside, &Bucket::unsigned().get(A, 2));
    let text = judge.finish().to_string();
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(
        text.contains("unanchored env0-audits, instance instance-a, number 1: the chain starts at number 2"),
        "{text}"
    );
    assert!(
        text.contains("env0-audits, instance instance-a: 1 objects, 2 events, complete from 2 to 2, unanchored 1"),
        "{text}"
    );
    assert!(text.ends_with("verdict: failed\n"), "{text}");
}
