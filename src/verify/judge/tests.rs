//! Every way to damage a bucket, and what the judge says of it.

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::*;
use crate::chain::tests::keys;
use crate::chain::{Gaps, SigningKey};

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
            let place = match opened {
                Some(opened) if from.is_some_and(|from| opened < from) => Place::Before,
                Some(opened) if to.is_some_and(|to| opened > to) => Place::After,
                _ => Place::Inside,
            };
            judge.object(place, object);
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
    let judged = Bucket::unsigned().without(A, 1..=10).judge();
    judged.is(0, &[]);
    assert_eq!(judged.0["verdict"], "nothing to judge");
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
fn an_object_copied_under_a_new_key_is_duplicated() {
    let copy = |bucket: &Bucket, key: &str| Observed { key: key.into(), ..bucket.get(A, 5) };
    // With a public key the copy is told from the original, even when it sorts before it.
    for key in [key_of(A, 5).replace("a0005", "00000"), key_of(A, 9).replace("a0009", "zzzzz")] {
        let bucket = Bucket::signed();
        let copy = copy(&bucket, &key);
        let judged = bucket.with_object(copy).judge();
        judged
            .is(1, &[("duplicated", "a", json!([5, 5]))])
            .complete(A, json!([[1, 10]]))
            .says(0, "a copy, beside the true");
        assert_eq!(judged.0["findings"][0]["key"], key);
    }
    // Without one only that there are two.
    let bucket = Bucket::unsigned();
    let copy_key = key_of(A, 9).replace("a0009", "zzzzz");
    let copy = copy(&bucket, &copy_key);
    let judged = bucket.with_object(copy).judge();
    judged.is(1, &[("duplicated", "a", json!([5, 5]))]).says(0, &key_of(A, 5)).says(0, "one is a copy of the other");
}

#[test]
fn an_object_moved_to_a_key_that_the_daemon_does_not_make_is_altered_and_no_gap() {
    let bucket = Bucket::unsigned();
    let moved = Observed { key: "p/env0-audits/2026/11/21/copy of a log".into(), ..bucket.get(A, 5) };
    let judged = bucket.without(A, [5]).with_object(moved).judge();
    judged.is(1, &[("altered", "a", json!([5, 5]))]).complete(A, json!([[1, 4], [6, 10]]));
}

#[test]
fn an_object_moved_to_another_time_breaks_the_order_of_its_chain() {
    let bucket = Bucket::unsigned();
    let moved = Observed { key: key_of(A, 8).replace("a0008", "zzzzz"), ..bucket.get(A, 5) };
    let judged = bucket.without(A, [5]).with_object(moved).judge();
    judged.is(1, &[("altered", "a", json!([6, 6]))]).says(0, "earlier time");
}

#[test]
fn changed_metadata_is_altered() {
    let signed = || Bucket::signed();
    for (name, value) in [("env0-previous-sha256", sha256(A, 7).to_string()), ("env0-gaps", "3".into())] {
        let judged = signed().metadata(A, 5, name, &value).judge();
        judged.is(1, &[("altered", "a", json!([5, 5]))]).complete(A, json!([[1, 4], [6, 10]])).says(0, "can't be told");
    }
    // Without a signature by its contradictions: the body, the link, the numbers.
    let unsigned = || Bucket::unsigned();
    let judged = unsigned().metadata(A, 5, "env0-records", "3").judge();
    judged.is(1, &[("altered", "a", json!([5, 5]))]).says(0, "3 events there, 2 in the body");
    let judged = unsigned().metadata(A, 5, "env0-previous-sha256", &sha256(A, 7).to_string()).judge();
    judged.is(1, &[("altered", "a", json!([5, 5]))]).says(0, "the link to the batch before is broken");
    let judged = unsigned().metadata(A, 1, "env0-previous-sha256", &sha256(A, 7).to_string()).judge();
    judged.is(1, &[("altered", "a", json!([1, 1]))]).says(0, "number 1 names a batch before it");
    let judged = unsigned().metadata(A, 5, "env0-sequence", "50").judge();
    judged.is(1, &[("gap", "a", json!([5, 5])), ("gap", "a", json!([11, 49]))]);
    let judged = unsigned().metadata(A, 5, "env0-sequence", "five").judge();
    judged.is(1, &[("altered", "a", Value::Null), ("gap", "a", json!([5, 5]))]).says(0, "env0-sequence");
    let judged = unsigned().change(A, 5, |object| drop(object.metadata.remove("env0-records"))).judge();
    judged.is(1, &[("altered", "a", Value::Null), ("gap", "a", json!([5, 5]))]).says(0, "env0-records is missing");
}

#[test]
fn metadata_that_is_stripped_makes_an_object_foreign_and_a_gap() {
    let judged = Bucket::signed().change(A, 5, |object| object.metadata.clear()).judge();
    judged.is(1, &[("foreign", "-", Value::Null), ("gap", "a", json!([5, 5]))]);
}

#[test]
fn two_instances_whose_chains_are_crossed_are_found_out() {
    let cross =
        |bucket: Bucket| bucket.with(B, 1..=10).metadata(A, 5, "env0-instance", B).metadata(B, 5, "env0-instance", A);
    cross(Bucket::signed()).judge().is(1, &[("altered", "a", json!([5, 5])), ("altered", "b", json!([5, 5]))]);
    let judged = cross(Bucket::unsigned()).judge();
    let broken = |instance: &'static str| [("altered", instance, json!([5, 5])), ("altered", instance, json!([6, 6]))];
    judged.is(1, &[broken("a"), broken("b")].concat());
}

#[test]
fn a_chain_that_was_restarted_with_the_same_instance_id_is_duplicated() {
    let restarted = |sequence: u64| ChainEntry {
        key: key_of(A, sequence + 10),
        sha256: sha256(B, sequence),
        previous: sha256(B, sequence - 1),
        ..entry(A, sequence)
    };
    let judged = Bucket::signed().with_entry(&restarted(1)).with_entry(&restarted(2)).judge();
    judged.is(1, &[("duplicated", "a", json!([1, 1])), ("duplicated", "a", json!([2, 2]))]).says(0, "restarted");
    judged.complete(A, json!([[1, 10]]));
}

#[test]
fn a_chain_rewritten_without_the_key_is_unsigned() {
    let forged = |sequence: u64| ChainEntry {
        sha256: sha256(B, sequence),
        previous: sha256(B, sequence - 1),
        ..entry(A, sequence)
    };
    let rewrite = |mut bucket: Bucket| {
        bucket.objects = (1..=10).map(|sequence| observed(&forged(sequence), None)).collect();
        bucket
    };
    let judged = rewrite(Bucket::signed()).judge();
    let unsigned: Vec<_> = (1..=10).map(|sequence| ("unsigned", "a", json!([sequence, sequence]))).collect();
    judged.is(1, &unsigned).complete(A, json!([]));
    // Without a public key it can't be told, and the verdict says no more than it may.
    let judged = rewrite(Bucket::unsigned()).judge();
    judged.is(0, &[]);
    assert_eq!(judged.0["verdict"], "consistent, not authenticated");
    // A head that was kept elsewhere tells.
    rewrite(Bucket::unsigned()).head(A, 10).judge().is(1, &[("altered", "a", json!([10, 10]))]);
}

#[test]
fn a_wrong_key_and_a_rotated_key_are_told_apart_by_giving_both() {
    let (other, other_public) = keys();
    let wrong = Bucket::signed().rules(|rules| rules.public_keys = vec![keys().1]).judge();
    let altered: Vec<_> = (1..=10).map(|sequence| ("altered", "a", json!([sequence, sequence]))).collect();
    wrong.is(1, &altered).complete(A, json!([])).says(0, "another key signed it");
    let rotated = || {
        let bucket = Bucket::signed().without(A, 6..=10);
        (6..=10).fold(bucket, |bucket, sequence| bucket.with_object(observed(&entry(A, sequence), Some(&other))))
    };
    let altered: Vec<_> = (6..=10).map(|sequence| ("altered", "a", json!([sequence, sequence]))).collect();
    rotated().judge().is(1, &altered).complete(A, json!([[1, 5]]));
    rotated().rules(|rules| rules.public_keys.push(other_public)).judge().is(0, &[]).complete(A, json!([[1, 10]]));
}

#[test]
fn a_window_that_cuts_the_chain_is_anchored_by_its_neighbours() {
    // The 21st holds numbers 5 to 8.
    let window = |rules: &mut Rules| (rules.from, rules.to) = (day("2026-11-21"), day("2026-11-21"));
    Bucket::signed().rules(window).judge().is(0, &[]).complete(A, json!([[5, 8]]));
    Bucket::signed().rules(window).head(A, 10).judge().is(0, &[]);
    let gaps = |sequences: &[u64], gap: Value| {
        let judged = Bucket::signed().without(A, sequences.iter().copied()).rules(window).judge();
        judged.is(1, &[("gap", "a", gap)]);
    };
    gaps(&[5], json!([5, 5]));
    gaps(&[8], json!([8, 8]));
    gaps(&[5, 6, 7, 8], json!([5, 8]));
    // What is wrong outside is not this window's.
    Bucket::signed().without(A, [2, 10]).rules(window).judge().is(0, &[]);
    let broken = Bucket::signed().metadata(A, 5, "env0-previous-sha256", &sha256(A, 9).to_string());
    broken.rules(window).judge().is(1, &[("altered", "a", json!([5, 5]))]);
    // Without a neighbour the start can't be judged.
    Bucket::signed().without(A, 1..=4).rules(window).judge().is(1, &[("unanchored", "a", json!([1, 4]))]);
}

#[test]
fn an_end_of_the_window_without_successor_is_judged_against_heads() {
    let window = |rules: &mut Rules| rules.to = day("2026-11-23");
    Bucket::signed().without(A, [10]).rules(window).head(A, 10).judge().is(1, &[("missing", "a", json!([10, 10]))]);
}

#[test]
fn a_prefix_shortened_by_a_lifecycle_rule_is_explained() {
    let expired = |day_text: &'static str| {
        let bucket = Bucket::signed().without(A, 1..=4);
        bucket.rules(move |rules| rules.expired_before = day(day_text)).judge()
    };
    // Number 5 is of the 21st.
    expired("2026-11-22").is(0, &[("explained", "a", json!([1, 4]))]).complete(A, json!([[5, 10]]));
    expired("2026-11-21").is(0, &[("explained", "a", json!([1, 4]))]).says(0, "can't be told");
    let ragged = Bucket::signed().without(A, [2]).rules(|rules| rules.expired_before = day("2026-11-21")).judge();
    ragged.is(0, &[("explained", "a", json!([2, 2]))]);
    let later = Bucket::signed().without(A, [7]).rules(|rules| rules.expired_before = day("2026-11-21")).judge();
    later.is(1, &[("gap", "a", json!([7, 7]))]);
}

#[test]
fn an_anchor_explains_a_start_above_one_up_to_its_own_number() {
    let anchored = |sequence: u64| {
        let bucket = Bucket::signed().without(A, 1..=4);
        bucket.rules(|rules| rules.anchors.push(known_head(A, sequence)))
    };
    anchored(4).judge().is(0, &[("explained", "a", json!([1, 4]))]);
    anchored(7).judge().is(0, &[("explained", "a", json!([1, 4]))]);
    anchored(2).judge().is(1, &[("explained", "a", json!([1, 2])), ("gap", "a", json!([3, 4]))]);
    let other = anchored(4).rules(|rules| rules.anchors[0].sha256 = Sha256::of(b"other")).judge();
    other.is(1, &[("altered", "a", json!([5, 5])), ("explained", "a", json!([1, 4]))]).says(0, "the anchor");
}

#[test]
fn a_gap_with_a_young_successor_is_pending() {
    let young = |minutes: i64| {
        let bucket = Bucket::signed().without(A, [9]);
        bucket.change(A, 10, |object| object.last_modified = now() - TimeDelta::minutes(minutes)).judge()
    };
    let judged = young(59);
    judged.is(2, &[("pending", "a", json!([9, 9]))]).complete(A, json!([[1, 8], [10, 10]]));
    assert_eq!(judged.0["verdict"], "pending");
    young(60).is(1, &[("gap", "a", json!([9, 9]))]);
    // A start above 1 waits for nothing.
    let start = Bucket::signed().without(A, 1..=9).change(A, 10, |object| object.last_modified = now()).judge();
    start.is(1, &[("unanchored", "a", json!([1, 9]))]);
}

#[test]
fn a_batch_in_quarantine_is_explained_by_the_objects_after_it() {
    let names = |sequences: &[u64]| ChainEntry { gaps: Gaps::that_fit(sequences), ..entry(A, 7) };
    let bucket = || Bucket::signed().without(A, [1, 5, 7]);
    bucket()
        .with_entry(&names(&[1, 5]))
        .judge()
        .is(0, &[("explained", "a", json!([1, 1])), ("explained", "a", json!([5, 5]))]);
    bucket().with_entry(&names(&[1])).judge().is(1, &[("explained", "a", json!([1, 1])), ("gap", "a", json!([5, 5]))]);
    // What nobody signed explains nothing.
    let forged = observed(&names(&[1, 5]), None);
    let judged = bucket().with_object(forged).judge();
    judged.is(1, &[("unsigned", "a", json!([7, 7])), ("unanchored", "a", json!([1, 1])), ("gap", "a", json!([5, 5]))]);
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
    objects.iter().for_each(|object| judge.object(Place::Inside, object));
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
            judge.object(Place::Inside, &observed(&entry, None));
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
        judge.object(Place::Inside, &Observed { key, log_type: LogType::Audits, last_modified, metadata, content });
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
    judge.object(Place::Inside, &object);
    judge.object(Place::Inside, &Bucket::unsigned().get(A, 2));
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
