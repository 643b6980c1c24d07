//! Numbers without an object, and what explains them.

use super::*;

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
