//! `drain` where it is not plain: events accepted for a bucket that is a mistake, no token, and folders that somebody
//! has changed.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{AUDITS, Books, DEPLOYMENTS, Finished, Setup, event, wait_for, wait_until};
use crate::local_aws::{BUCKET, Fault, LocalAws};

const MISTAKE: &str = "a-mistaken-name";

/// Events of both types, accepted for a bucket that does not exist; returns the setup with the right name.
fn accepted_for_a_mistaken_bucket(aws: &LocalAws, books: &Books) -> Setup {
    let setup = Setup::new(aws).set("ENV0_S3_LOG_BUCKET_NAME", MISTAKE);
    let mut daemon = setup.start();
    for path in [DEPLOYMENTS, AUDITS] {
        let ids = books.ids(3);
        assert_eq!(daemon.post(path, Books::body(&ids)).accepted(), 3);
        books.acknowledge(ids);
    }
    wait_until("the bucket is missed", || daemon.log().text().contains("NoSuchBucket"));
    assert!(daemon.log().text().contains("drain --to-configured"), "{}", daemon.log().text());
    daemon.terminate();
    setup.set("ENV0_S3_LOG_BUCKET_NAME", BUCKET)
}

fn manifest(setup: &Setup) -> Value {
    serde_json::from_slice(&std::fs::read(setup.spool().join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn events_for_a_mistaken_bucket_are_sent_to_the_configured_one_when_asked() {
    let aws = LocalAws::start();
    let books = Books::default();
    let setup = accepted_for_a_mistaken_bucket(&aws, &books);
    let before = manifest(&setup);
    let start = setup.run("run");
    assert_eq!(start.code, Some(78), "{}", start.stderr);
    assert!(start.stderr.contains("drain --to-configured"), "{}", start.stderr);
    let plain = setup.run("drain --timeout 1s");
    assert_eq!(plain.code, Some(69), "{plain:?}");
    let first = plain.stdout.lines().next().unwrap_or_default();
    for part in [MISTAKE, BUCKET, "if the first was a mistake", "drain --to-configured"] {
        assert!(first.contains(part), "no {part} in {plain:?}");
    }

    let unasked = setup.run("drain --to-configured");
    assert_eq!(unasked.code, Some(64), "{unasked:?}");
    for part in [MISTAKE, BUCKET, "--yes"] {
        assert!(unasked.stderr.contains(part), "no {part} in {}", unasked.stderr);
    }
    assert_eq!(manifest(&setup), before, "nothing was changed");
    assert_eq!(aws.s3.line_count(), 0);

    let agreed = setup.run("drain --to-configured --yes");
    assert_eq!(agreed.code, Some(0), "{agreed:?}");
    assert_eq!((aws.s3.line_count(), manifest(&setup)["chains"] == before["chains"]), (6, true));
    let _daemon = setup.start();
    books.balance(&aws, &setup);
    let verified = verify(&aws, &setup);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

/// Somebody with credentials that may read the bucket.
fn auditor(aws: &LocalAws) -> Setup {
    let auditor = Setup::new(aws).unset("ENV0_OIDC_TOKEN");
    aws.auditor_environment().into_iter().fold(auditor, |auditor, (name, value)| auditor.set(name, value))
}

/// Verifies the bucket's whole chain, which begins with number 1.
fn verify(aws: &LocalAws, setup: &Setup) -> Finished {
    auditor(aws).run(&format!("verify --instance {}", manifest(setup)["chains"][0].as_str().unwrap()))
}

#[test]
fn a_chain_that_goes_on_in_another_place_is_anchored_by_the_report_of_the_first() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_PATH", "first");
    let mut daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("in the first place"));
    wait_until("it is there", || aws.s3.line_count() == 1);
    aws.s3.inject(Fault::slow_down());
    daemon.post(DEPLOYMENTS, event("in the second place"));
    daemon.terminate();
    aws.s3.heal();
    let setup = setup.set("ENV0_S3_LOG_BUCKET_PATH", "second");
    let drained = setup.run("drain --to-configured --yes");
    assert_eq!((drained.code, aws.s3.objects_with("second/").len()), (Some(0), 1), "{drained:?}");

    let of = |path: &str| auditor(&aws).set("ENV0_S3_LOG_BUCKET_PATH", path);
    let alone = of("second").run("verify");
    assert!(alone.code == Some(1) && alone.stdout.contains("unanchored"), "{alone:?}");
    let first = of("first").run("verify --json");
    assert_eq!(first.code, Some(0), "{first:?}");
    let report = setup.folder().join("first.json");
    std::fs::write(&report, first.stdout).unwrap();
    let anchored = of("second").run(&format!("verify --anchor {}", report.display()));
    assert_eq!(anchored.code, Some(0), "{anchored:?}");
}

#[test]
fn what_the_old_place_may_have_already_is_told_before_it_goes_to_another() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_PATH", "old");
    aws.s3.hold_puts();
    let daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("sent twice"));
    wait_until("a PUT is under way", || aws.s3.put_count() > 0);
    daemon.kill();
    let setup = setup.set("ENV0_S3_LOG_BUCKET_PATH", "new");
    let finished = setup.run("drain --to-configured");
    assert_eq!(finished.code, Some(64), "{finished:?}");
    assert!(finished.stderr.contains("The upload of 1 batch had begun"), "{}", finished.stderr);
    assert!(finished.stderr.contains("may have it already"), "{}", finished.stderr);
}

#[test]
fn an_empty_spool_is_left_to_the_next_start_under_a_new_chain() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_NAME", MISTAKE);
    setup.start().terminate();
    let before = manifest(&setup);
    let setup = setup.set("ENV0_S3_LOG_BUCKET_NAME", BUCKET);
    let finished = setup.run("drain --to-configured");
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(manifest(&setup)["bucket"], BUCKET);
    assert_ne!(manifest(&setup)["chains"], before["chains"]);
}

#[test]
fn drain_without_a_token_says_how_to_give_one_and_ends() {
    let aws = LocalAws::start();
    let books = Books::default();
    let setup = accepted_for_a_mistaken_bucket(&aws, &books).unset("ENV0_OIDC_TOKEN");
    let finished = setup.run("drain --to-configured --yes");
    assert_eq!(finished.code, Some(69), "{finished:?}");
    for part in ["ENV0_OIDC_TOKEN", "ENV0_S3_LOG_OIDC_TOKEN_FILE", "6 events"] {
        assert!(finished.stderr.contains(part), "no {part} in {}", finished.stderr);
    }
    assert!(!finished.stderr.contains("start the daemon"), "{finished:?}");
    assert_eq!(manifest(&setup)["bucket"], BUCKET, "a start takes it from here");
    let setup = setup.set("ENV0_API_KEY_ID", "an-id").set("ENV0_API_KEY_SECRET", "a-secret");
    let finished = setup.run("drain");
    assert!(finished.stderr.contains("or start the daemon: it takes one from a deployment's"), "{finished:?}");
    assert!(!finished.stderr.contains("--to-configured"), "the place is the configured one: {finished:?}");
    let setup = setup.set("ENV0_S3_LOG_BUCKET_PATH", "elsewhere");
    let finished = setup.run("drain");
    assert!(finished.stderr.contains("drain --to-configured`, which ends as this one, and start"), "{finished:?}");
    let setup = setup.unset("ENV0_S3_LOG_BUCKET_PATH");
    let finished = setup.set("ENV0_OIDC_TOKEN", aws.issuer.token()).run("drain");
    assert_eq!((finished.code, aws.s3.line_count()), (Some(0), 6), "{finished:?}");
}

/// The file of a batch of audits that a killed daemon has left.
fn left_batch(aws: &LocalAws, setup: &Setup) -> PathBuf {
    aws.sts.set_down();
    let daemon = setup.start();
    assert_eq!(daemon.post(AUDITS, event("left")).accepted(), 1);
    let is_sealed = |file: &PathBuf| file.extension().is_some_and(|ending| ending == "sealed");
    let files = || std::fs::read_dir(setup.spool().join("env0-audits")).unwrap().map(|file| file.unwrap().path());
    let batch = wait_for("the batch is sealed", || files().find(is_sealed));
    daemon.kill();
    aws.sts.heal();
    batch
}

#[test]
fn a_link_in_a_batchs_place_is_quarantined_and_its_number_is_not_given_out_again() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let batch = left_batch(&aws, &setup);
    let moved = setup.folder().join("moved");
    std::fs::rename(&batch, &moved).unwrap();
    symlink(&moved, &batch).unwrap();
    let drained = setup.run("drain");
    assert_eq!(drained.code, Some(74), "{drained:?}");
    assert!(drained.stderr.contains("quarantine has 1 file"), "{drained:?}");
    for command in ["check", "check --offline"] {
        let checked = setup.run(command);
        assert!(checked.stdout.contains("[warn] quarantine "), "{checked:?}");
        let next = checked.stdout.lines().last().unwrap();
        assert!(next.contains("Next: quarantine: read them") && next.contains("#quarantined"), "{next}");
    }
    assert!(moved.exists() && aws.s3.line_count() == 0, "no link is followed");
    let daemon = setup.start();
    daemon.post(AUDITS, event("later"));
    wait_until("it is delivered", || aws.s3.line_count() == 1);
    let object = &aws.s3.objects()[0];
    assert_eq!((&*object.metadata["env0-sequence"], &*object.metadata["env0-gaps"]), ("2", "1"));
}

#[test]
fn two_spools_that_were_put_together_are_both_sent() {
    let aws = LocalAws::start();
    let (one, other) = (Setup::new(&aws), Setup::new(&aws));
    let (batch, of_other) = (left_batch(&aws, &one), left_batch(&aws, &other));
    std::fs::copy(&of_other, batch.with_file_name(of_other.file_name().unwrap())).unwrap();
    let drained = one.run("drain --timeout 60s");
    assert_eq!((drained.code, aws.s3.line_count()), (Some(0), 2), "{drained:?}");
}

#[test]
fn a_spool_of_a_newer_version_is_refused_by_drain_as_by_run() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    setup.start().terminate();
    let mut newer = manifest(&setup);
    newer["format"] = 1_000.into();
    std::fs::write(setup.spool().join("manifest.json"), newer.to_string()).unwrap();
    for command in ["run", "drain"] {
        let refused = setup.run(command);
        assert_eq!(refused.code, Some(78), "{command}: {refused:?}");
        assert!(refused.stderr.contains("format 1000"), "{command}: {refused:?}");
    }
}

#[test]
fn drain_leaves_a_daemons_spool_to_it_and_of_an_empty_one_asks_for_no_token() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let mut daemon = setup.start();
    let beside = setup.run("drain");
    assert_eq!(beside.code, Some(73), "{beside:?}");
    assert!(beside.stderr.contains("leave that one running, or stop it first"), "{beside:?}");
    assert!(!beside.stderr.contains("ENV0_S3_LOG_SPOOL_DIR"), "{beside:?}");
    daemon.terminate();
    let empty = setup.run("drain");
    assert_eq!(empty.code, Some(0), "{empty:?}");
    assert!(empty.stdout.contains("the spool is empty"), "{empty:?}");
    assert!(!format!("{empty:?}").contains("oidc-token"), "{empty:?}");
}

#[test]
fn what_a_manifest_says_writes_no_control_character_to_the_terminal() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_NAME", MISTAKE);
    let mut daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("waits"));
    daemon.terminate();
    let odd = "odd\u{1b}]0;x\u{7}\u{9b}31m\nFORGED\u{202e}end";
    let place = manifest(&setup);
    for member in ["bucket", "region", "endpoint", "path"] {
        let mut changed = place.clone();
        changed[member] = odd.into();
        std::fs::write(setup.spool().join("manifest.json"), changed.to_string()).unwrap();
        for command in
            ["drain --timeout 1s", "drain --to-manifest --timeout 1s", "drain --to-configured", "run", "check"]
        {
            let Finished { stdout, stderr, .. } = setup.run(command);
            let said = stdout + &stderr;
            let raw = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
            assert_eq!(said.chars().find(raw), None, "{member}, {command}: {said:?}");
            assert!(!said.contains("\nFORGED"), "{member}, {command}: {said}");
        }
    }
}

#[test]
fn a_manifest_with_a_path_that_no_request_can_have_is_refused() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_NAME", MISTAKE);
    let mut daemon = setup.start();
    daemon.post(DEPLOYMENTS, event("waits"));
    daemon.terminate();
    let mut changed = manifest(&setup);
    changed["path"] = "\u{e9}".repeat(15_000).into();
    std::fs::write(setup.spool().join("manifest.json"), changed.to_string()).unwrap();
    for command in ["drain --timeout 1s", "run"] {
        let finished = setup.run(command);
        assert!(finished.code == Some(74) && finished.stderr.contains("4096 bytes"), "{command}: {finished:?}");
    }
}
