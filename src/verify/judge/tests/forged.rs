//! Objects that are there, but are not what was written.

use super::*;

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
