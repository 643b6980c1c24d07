//! `verify` judges a bucket that was filled through crashes and then damaged in every way; the verifier that was
//! written from the specification alone, in Python, says the same wherever `VERIFIER_PYTHON` names an interpreter.

mod figures;
mod lies;
mod vault;

use chrono::{TimeDelta, Utc};
use env0_s3_logs::batch::Sha256;
use serde_json::{Value, json};

use crate::local_aws::{Fault, Operation};
use vault::{TYPE, Vault, vault};

const KEYS: &str = "--public-key a.pem --public-key b.pem";

fn only(number: u64) -> Value {
    json!([number, number])
}

/// A number of instance A's chain with untouched neighbours on both sides, and those.
fn middle(vault: &Vault) -> [u64; 3] {
    let numbers = vault.numbers(&vault.a);
    let three = numbers.windows(3).rfind(|three| three[0] > 1 && three[0] + 2 == three[2]).unwrap();
    three.try_into().unwrap()
}

fn last(vault: &Vault, instance: &str) -> u64 {
    *vault.numbers(instance).last().unwrap()
}

#[test]
fn a_bucket_filled_through_crashes_verifies_clean_against_keys_heads_and_receipts() {
    let vault = vault();
    let verdict = vault.verify(&format!("{KEYS} --heads heads --receipts receipts"));
    verdict.is(0, &[]).says("verdict", "verified").says("not_shown", json!([]));
    assert_eq!(verdict.report["receipts"]["failed"], 0, "{:#}", verdict.report);
    assert!(verdict.report["receipts"]["held"].as_u64().unwrap() > 20);
    // The other writer's object, and the batch in quarantine.
    let kinds: Vec<_> = verdict.report["findings"].as_array().unwrap().iter().map(|finding| &finding["kind"]).collect();
    assert_eq!(kinds, ["foreign", "explained"]);
}

#[test]
fn without_a_key_the_verdict_is_no_more_than_consistent() {
    vault().verify("").is(0, &[]).says("verdict", "consistent, not authenticated").says("authenticated", false);
}

#[test]
fn the_text_says_complete_from_where_to_where() {
    let vault = vault();
    let text = vault.text(KEYS);
    let line = format!("{TYPE}, instance {}: 4 objects, 6 events, complete from 1 to 4\n", vault.b);
    assert!(text.contains(&line), "{text}");
    assert!(text.ends_with("verdict: verified\n"), "{text}");
}

#[test]
fn an_object_changed_by_one_byte() {
    let vault = vault();
    let [_, number, _] = middle(&vault);
    vault.change(&vault.a, number, |object| {
        let mut body = object.body.to_vec();
        body[3] ^= 1;
        object.body = body.into();
    });
    for keys in [KEYS, ""] {
        vault.verify(keys).is(1, &[("altered", &vault.a, only(number))]);
    }
}

#[test]
fn a_truncated_object_plain_and_compressed() {
    let vault = vault();
    let [_, number, _] = middle(&vault);
    let truncate =
        |instance: &str, number| vault.change(instance, number, |object| object.body = object.body.slice(..9));
    truncate(&vault.a, number);
    truncate(&vault.b, 2);
    vault.verify(KEYS).is(1, &[("altered", &vault.a, only(number)), ("altered", &vault.b, only(2))]);
}

#[test]
fn objects_deleted_in_the_middle() {
    let vault = vault();
    let [first, second, _] = middle(&vault);
    vault.remove(&vault.a, first);
    vault.remove(&vault.a, second);
    vault.verify(KEYS).is(1, &[("gap", &vault.a, json!([first, second]))]);
}

#[test]
fn objects_deleted_at_the_head() {
    let vault = vault();
    vault.remove(&vault.b, 1);
    vault.verify(KEYS).is(1, &[("unanchored", &vault.b, only(1))]);
}

#[test]
fn objects_deleted_at_the_tail_show_against_heads_and_receipts_only() {
    let vault = vault();
    let number = last(&vault, &vault.a);
    vault.remove(&vault.a, number);
    vault.verify(KEYS).is(0, &[]);
    // The head is fresh, but nothing was left in the spool when it was told.
    vault.verify(&format!("{KEYS} --heads heads")).is(1, &[("missing", &vault.a, only(number))]);
    // Acknowledged within the hour: it may still be in the spool.
    vault.verify(&format!("{KEYS} --receipts receipts")).is(2, &[("pending", "-", Value::Null)]);
}

#[test]
fn a_whole_instance_deleted_shows_against_heads_only() {
    let vault = vault();
    for object in vault.aws.s3.objects() {
        if object.metadata.get("env0-instance") == Some(&vault.b) {
            vault.aws.s3.remove(&object.key);
        }
    }
    vault.verify(KEYS).is(0, &[]);
    let missing = ("missing", vault.b.as_str(), json!([1, 4]));
    vault.verify(&format!("{KEYS} --heads heads")).is(1, &[missing.clone(), missing]);
    let asked = vault.verify(&format!("{KEYS} --instance {}", vault.b));
    asked.is(1, &[("missing", &vault.b, Value::Null)]);
}

#[test]
fn an_object_copied_under_a_new_key() {
    let vault = vault();
    let [_, number, _] = middle(&vault);
    let mut copy = vault.object(&vault.a, number);
    copy.key = copy.key.replace(".log", "").rsplit_once('_').unwrap().0.to_owned() + "_00000.log";
    vault.put(copy);
    for keys in [KEYS, ""] {
        vault.verify(keys).is(1, &[("duplicated", &vault.a, only(number))]);
    }
}

#[test]
fn an_object_moved_to_a_key_of_another_form() {
    let vault = vault();
    let [_, number, _] = middle(&vault);
    let mut moved = vault.object(&vault.a, number);
    vault.remove(&vault.a, number);
    moved.key += " copy";
    vault.put(moved);
    vault.verify("").is(1, &[("altered", &vault.a, only(number))]);
}

#[test]
fn changed_metadata() {
    let vault = vault();
    let [_, number, _] = middle(&vault);
    vault.set(&vault.a, number, "env0-records", "7");
    vault.set(&vault.b, 3, "env0-sha256", &Sha256::ZERO.to_string());
    let altered = ("altered", vault.a.as_str(), only(number));
    vault.verify(KEYS).is(1, &[altered.clone(), ("altered", &vault.b, only(3))]);
    // Without a key, the next object's link tells as well.
    vault.verify("").is(1, &[altered, ("altered", &vault.b, only(3)), ("altered", &vault.b, only(4))]);
}

#[test]
fn metadata_that_is_malformed_or_gone() {
    let vault = vault();
    vault.set(&vault.b, 2, "env0-sequence", "02");
    vault.change(&vault.b, 3, |object| object.metadata.clear());
    let findings =
        [("altered", vault.b.as_str(), Value::Null), ("foreign", "-", Value::Null), ("gap", &vault.b, json!([2, 3]))];
    vault.verify(KEYS).is(1, &findings);
}

#[test]
fn two_instances_whose_chains_are_crossed() {
    let vault = vault();
    let [_, number, next] = middle(&vault);
    let (a, b) = (vault.a.as_str(), vault.b.as_str());
    vault.set(a, number, "env0-instance", b);
    vault.set(a, number, "env0-sequence", "2");
    vault.set(b, 2, "env0-instance", a);
    vault.set(b, 2, "env0-sequence", &number.to_string());
    vault.verify(KEYS).is(1, &[("altered", a, only(number)), ("altered", b, only(2))]);
    let broken =
        [("altered", a, only(number)), ("altered", a, only(next)), ("altered", b, only(2)), ("altered", b, only(3))];
    vault.verify("").is(1, &broken);
}

#[test]
fn a_chain_restarted_with_the_same_instance_id() {
    let vault = vault();
    let mut previous = Sha256::ZERO;
    for number in 1..=2 {
        let mut object = vault.object(&vault.b, 4);
        object.key =
            object.key.replace(".log", "").rsplit_once('_').unwrap().0.to_owned() + &format!("_zzzz{number}.log");
        object.body = format!("{{\"restarted\":{number}}}\n").into_bytes().into();
        let sha256 = Sha256::of(&object.body);
        for (name, value) in [
            ("env0-sequence", number.to_string()),
            ("env0-records", "1".into()),
            ("env0-sha256", sha256.to_string()),
            ("env0-previous-sha256", previous.to_string()),
        ] {
            object.metadata.insert(name.into(), value);
        }
        previous = sha256;
        vault.put(object);
    }
    for keys in [KEYS, ""] {
        vault.verify(keys).is(1, &[("duplicated", &vault.b, only(1)), ("duplicated", &vault.b, only(2))]);
    }
}

/// Gives every object of B's audits another body, and links them anew.
fn rewrite(vault: &Vault, signature: bool) {
    let mut previous = Sha256::ZERO;
    for number in vault.numbers(&vault.b) {
        let mut object = vault.object(&vault.b, number);
        vault.aws.s3.remove(&object.key);
        object.key = object.key.replace(".gz", "");
        object.body = format!("{{\"rewritten\":{number}}}\n").into_bytes().into();
        let sha256 = Sha256::of(&object.body);
        object.metadata.insert("env0-records".into(), "1".into());
        object.metadata.insert("env0-sha256".into(), sha256.to_string());
        object.metadata.insert("env0-previous-sha256".into(), previous.to_string());
        if !signature {
            object.metadata.remove("env0-signature");
        }
        previous = sha256;
        vault.put(object);
    }
}

#[test]
fn a_whole_chain_rewritten_without_the_key() {
    let vault = vault();
    let all = |kind: &'static str| [1, 2, 3, 4].map(|number| (kind, vault.b.as_str(), only(number)));
    rewrite(&vault, false);
    vault.verify(KEYS).is(1, &all("unsigned"));
    vault.verify("").is(0, &[]).says("verdict", "consistent, not authenticated");
    let tomorrow = (Utc::now() + TimeDelta::days(1)).date_naive();
    vault.verify(&format!("{KEYS} --unsigned-before 2020-01-01")).is(1, &all("unsigned"));
    vault.verify(&format!("{KEYS} --unsigned-before {tomorrow}")).is(0, &[]);
    vault.verify("--heads heads").is(1, &[("altered", &vault.b, only(4))]);
    rewrite(&vault, true);
    vault.verify(KEYS).is(1, &all("altered"));
}

#[test]
fn a_wrong_key_and_a_rotated_key() {
    let vault = vault();
    let b_audits = [1, 2, 3, 4].map(|number| ("altered", vault.b.as_str(), only(number)));
    // The other type's chain has as many objects.
    vault.verify("--public-key a.pem").is(1, &[b_audits.clone(), b_audits].concat());
    vault.verify(KEYS).is(0, &[]);
}

/// Moves B's audits to earlier days, one a day, the last one yesterday; without signatures, which would not hold.
fn spread_over_days(vault: &Vault) {
    for number in 1..=4 {
        let mut object = vault.object(&vault.b, number);
        vault.aws.s3.remove(&object.key);
        let (_, name) = object.key.rsplit_once('/').unwrap();
        object.key = format!("logs/{TYPE}/{}/{name}", day(number).replace('-', "/"));
        object.metadata.remove("env0-signature");
        vault.put(object);
    }
}

fn day(number: u64) -> String {
    (Utc::now() - TimeDelta::days(5 - number as i64)).format("%Y-%m-%d").to_string()
}

#[test]
fn a_window_that_cuts_the_chain() {
    let vault = vault();
    let b = vault.b.as_str();
    let window = |from: u64, to: u64| format!("--instance {b} --from {} --to {}", day(from), day(to));
    let complete =
        |verdict: &vault::Verdict, numbers: Value| assert_eq!(verdict.report["chains"][0]["complete"], numbers);
    spread_over_days(&vault);
    complete(vault.verify(&window(2, 3)).is(0, &[]), json!([[2, 3]]));
    complete(vault.verify(&format!("{} --heads heads", window(1, 2))).is(0, &[]), json!([[1, 2]]));
    let verdict = vault.verify(&format!("{} --receipts receipts", window(2, 3)));
    assert!(verdict.report["receipts"]["not_judged"].as_u64().unwrap() > 20, "{:#}", verdict.report);
    vault.aws.s3.remove(&spread_key(&vault, 2));
    vault.verify(&window(3, 3)).is(1, &[("gap", b, only(2))]);
    vault.verify(&window(2, 2)).is(1, &[("gap", b, only(2))]);
    vault.verify(&window(4, 4)).is(0, &[]);
    vault.aws.s3.remove(&spread_key(&vault, 1));
    vault.verify(&window(3, 3)).is(1, &[("unanchored", b, json!([1, 2]))]);
}

fn spread_key(vault: &Vault, number: u64) -> String {
    let objects = vault.aws.s3.objects_with(&format!("logs/{TYPE}/{}/", day(number).replace('-', "/")));
    objects.into_iter().find(|object| object.metadata.contains_key("env0-sequence")).unwrap().key
}

#[test]
fn a_prefix_shortened_by_a_lifecycle_rule() {
    let vault = vault();
    let b = vault.b.as_str();
    spread_over_days(&vault);
    for number in [1, 2] {
        vault.aws.s3.remove(&spread_key(&vault, number));
    }
    vault.verify("").is(1, &[("unanchored", b, json!([1, 2]))]);
    for expired in [day(3), day(4)] {
        vault.verify(&format!("--expired-before {expired}")).is(0, &[("explained", b, json!([1, 2]))]);
    }
    vault.aws.s3.remove(&spread_key(&vault, 3));
    vault.verify(&format!("--expired-before {}", day(3))).is(0, &[("explained", b, json!([1, 3]))]);
}

#[test]
fn an_anchor_from_an_earlier_report_explains_what_expired_since() {
    let vault = vault();
    let b = vault.b.as_str();
    for number in [3, 4] {
        vault.remove(b, number);
    }
    let report = vault.verify(KEYS).report.to_string();
    std::fs::write(vault.file("anchor"), report).unwrap();
    for number in [3, 4] {
        vault.put(vault.object(b, number));
    }
    vault.remove(b, 1);
    vault.verify(&format!("{KEYS} --anchor anchor")).is(0, &[("explained", b, only(1))]);
    vault.remove(b, 2);
    vault.verify(&format!("{KEYS} --anchor anchor")).is(0, &[("explained", b, json!([1, 2]))]);
    vault.remove(b, 3);
    vault.verify(&format!("{KEYS} --anchor anchor")).is(1, &[("explained", b, json!([1, 2])), ("gap", b, only(3))]);
}

#[test]
fn a_gap_before_a_young_object_is_pending() {
    let vault = vault();
    vault.remove(&vault.b, 3);
    vault.change(&vault.b, 4, |object| object.last_modified = std::time::SystemTime::now());
    vault.verify(KEYS).is(2, &[("pending", &vault.b, only(3))]).says("verdict", "pending");
}

#[test]
fn foreign_objects_fail_only_when_strict() {
    let vault = vault();
    vault.aws.s3.put(&format!("logs/{TYPE}/2020/01/01/of env0 + before"), "old\n", Default::default());
    vault.aws.s3.put("logs/elsewhere", "not a log type's\n", Default::default());
    let foreign = [("foreign", "-", Value::Null)];
    vault.verify(KEYS).is(0, &foreign).says("foreign", json!({"env0-deployments": 0, "env0-audits": 2}));
    vault.verify(&format!("{KEYS} --strict")).is(1, &foreign);
}

#[test]
fn archived_objects_are_judged_by_their_stored_checksum() {
    let vault = vault();
    let archive = |number: u64| {
        let key = vault.object(&vault.b, number).key;
        let archived =
            Fault::answer(403, "InvalidObjectState", "The operation is not valid for the object's storage class");
        vault.aws.s3.inject(archived.on(Operation::GetObject).where_key_has(&key));
    };
    archive(2);
    archive(3);
    vault.verify(KEYS).is(0, &[]).says("archived", 2);
    vault.change(&vault.b, 3, |object| object.body = "changed before it was archived\n".into());
    vault.verify(KEYS).is(1, &[("altered", &vault.b, only(3))]);
}

#[test]
fn receipts_show_what_is_not_where_it_was_acknowledged() {
    let vault = vault();
    let text = std::fs::read_to_string(vault.file("receipts")).unwrap();
    let change = |change: &dyn Fn(&mut Value)| {
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        change(&mut lines[0]);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(vault.file("changed-receipts"), text).unwrap();
        vault.verify(&format!("{KEYS} --receipts changed-receipts"))
    };
    change(&|receipt| receipt["events"][1]["n"] = json!(3)).is(1, &[("altered", "-", Value::Null)]);
    change(&|receipt| receipt["line"] = json!(9)).is(1, &[("altered", "-", Value::Null)]);
    let one_less = |receipt: &mut Value| drop(receipt["events"].as_array_mut().unwrap().pop());
    change(&one_less).is(1, &[("altered", "-", Value::Null)]);
    let one_more = |receipt: &mut Value| receipt["events"].as_array_mut().unwrap().push(json!({}));
    change(&one_more).is(1, &[("altered", "-", Value::Null)]);
    let no_events = |receipt: &mut Value| drop(receipt.as_object_mut().unwrap().remove("events"));
    change(&no_events).is(0, &[]);
    change(&|receipt| receipt["object"] = json!(format!("logs/{TYPE}/2026/01/01/00:00:00_aaaaa.log")))
        .is(1, &[("missing", "-", Value::Null)]);
    assert_eq!(change(&|receipt| *receipt = json!({"accepted": 0})).report["receipts"]["failed"], 0);
}

#[test]
fn heads_and_receipts_may_have_a_byte_order_mark_and_receipts_are_read_twice() {
    let vault = vault();
    for name in ["heads", "receipts"] {
        let text = std::fs::read_to_string(vault.file(name)).unwrap();
        std::fs::write(vault.file(&format!("marked-{name}")), format!("\u{feff}{text}")).unwrap();
    }
    let verdict = vault.verify(&format!("{KEYS} --heads marked-heads --receipts marked-receipts"));
    verdict.is(0, &[]);
    assert!(verdict.report["receipts"]["held"].as_u64().unwrap() > 20, "{:#}", verdict.report);
    let finished = vault.run(&format!("{KEYS} --receipts /dev/stdin"));
    assert!(finished.code == Some(64) && finished.stderr.contains("save the receipts in a file"), "{finished:?}");
}

#[test]
fn a_verification_that_was_cut_off_goes_on_where_it_stood() {
    let vault = vault();
    vault.aws.s3.inject(Fault::access_denied().on(Operation::GetObject).where_key_has(&vault.object(&vault.b, 4).key));
    let cut = vault.run(&format!("{KEYS} --resume {}", vault.file("resume").display()));
    assert_eq!(cut.code, Some(77), "{cut:?}");
    assert!(cut.stderr.contains("AccessDenied") && cut.stderr.contains("s3:GetObject"), "{cut:?}");
    vault.aws.s3.heal();
    let gets = || vault.aws.s3.requests().iter().filter(|request| request.operation == Operation::GetObject).count();
    let before = gets();
    let finished = vault.run(&format!("{KEYS} --json --resume {}", vault.file("resume").display()));
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let resumed = report["resumed"].as_u64().unwrap() as usize;
    assert!(resumed > 0 && report["exit_code"] == 0, "{report:#}");
    assert_eq!(gets() - before + resumed, vault.aws.s3.objects().len());
    std::fs::remove_file(vault.file("resume")).unwrap();
}

#[test]
fn what_keeps_it_from_a_verdict_has_an_exit_code_of_its_own() {
    let vault = vault();
    for (arguments, code, part) in [
        ("--public-key /nonexistent", 64, "/nonexistent"),
        ("--heads a.pem", 64, "expected what /status"),
        ("--receipts a.pem", 64, "line 1"),
        ("--from 2026-11-22 --to 2026-11-21", 64, "--from 2026-11-22 is after --to 2026-11-21"),
        ("--from yesterday", 64, "yesterday"),
    ] {
        let finished = vault.run(arguments);
        assert_eq!(finished.code, Some(code), "{arguments}: {finished:?}");
        assert!(finished.stderr.contains(part), "{arguments}: {finished:?}");
    }
    vault.aws.s3.inject(Fault::access_denied().on(Operation::ListObjects));
    let finished = vault.run("");
    assert!(finished.code == Some(77) && finished.stderr.contains("s3:ListBucket"), "{finished:?}");
}

#[test]
fn nothing_to_judge_is_a_failure_unless_it_is_allowed() {
    let vault = vault();
    let empty = vault.verify("--from 2020-01-01 --to 2020-01-02");
    empty.is(1, &[]).says("verdict", "nothing to judge");
    vault.verify("--from 2020-01-01 --to 2020-01-02 --allow-empty").is(0, &[]);
    assert!(vault.text("--from 2020-01-01 --to 2020-01-02").contains("ENV0_S3_LOG_BUCKET_PATH"));
}

#[test]
fn without_credentials_it_says_so_in_one_line() {
    let vault = vault();
    let finished = vault.run_without_credentials();
    assert_eq!(finished.code, Some(77), "{finished:?}");
    assert!(finished.stderr.contains("no AWS credentials were found"), "{finished:?}");
    assert!(finished.stderr.lines().count() == 1 && !finished.stderr.contains("Some("), "{finished:?}");
}

#[test]
fn files_without_an_end_and_large_ones_are_refused_before_they_fill_memory() {
    let vault = vault();
    let large = vault.file("large");
    std::fs::File::create(&large).unwrap().set_len(200 * 1024 * 1024).unwrap();
    let refusals =
        [("--heads", "more than 16777216 bytes"), ("--anchor", "more than"), ("--resume", "not the resume file")];
    for (option, words) in refusals {
        let given = vault.run(&format!("{option} {}", large.display()));
        assert!(given.code == Some(64) && given.stderr.contains(words), "{option}: {given:?}");
        let device = vault.run(&format!("{option} /dev/zero"));
        assert!(device.code == Some(64) && device.stderr.contains("device"), "{option}: {device:?}");
    }
}
