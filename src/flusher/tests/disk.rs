//! Tests files that were changed or removed, and a disk that refuses.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::*;

/// Answers as S3 does to a body with a checksum.
fn checks_the_body(put: &Seen) -> Response<Bytes> {
    match put.header("x-amz-checksum-sha256") {
        Some(sha256) if sha256 == STANDARD.encode(Sha256::of(&put.body).0) => ok(),
        _ => bad_digest(),
    }
}

fn bad_digest() -> Response<Bytes> {
    s3_error(400, "BadDigest", "The SHA256 you specified did not match the calculated checksum.")
}

impl Case {
    /// Waits until the spool's disk has failed this often.
    async fn disk_failed(&self, attempts: u64) {
        let error = self.failed(attempts).await;
        assert!(error.message.starts_with("the spool's disk: "), "{}", error.message);
        assert_eq!(error.remedy.as_deref(), Some(&*PutErrorKind::FileUnreadable.remedy(None)));
        assert_eq!((error.code, error.request_id), (None, None));
    }

    async fn set_aside(&self) {
        let quarantined = || self.spool.folder(TYPE).figures().quarantined.load(Ordering::Relaxed);
        until("the batch is set aside", || quarantined() == 1).await;
    }

    /// How many failures at S3 were counted, of any kind.
    fn failures(&self) -> f64 {
        let failures = |kind: PutErrorKind| {
            let labels = format!("{{type=\"env0-deployments\",error=\"{}\"}}", kind.as_str());
            self.metric(&format!("upload_failures_total{labels}")).unwrap()
        };
        PutErrorKind::ALL.into_iter().map(failures).sum()
    }
}

#[tokio::test]
async fn a_checksum_that_is_refused_though_the_file_is_whole_is_tried_again() {
    let mut case = Case::new(first([bad_digest()])).await;
    let key = case.batch(TYPE, LINE).await;
    case.flush();
    case.delivered(1).await;
    case.drain().await;
    assert_eq!(case.keys(), [&*key, &*key]);
    assert!(case.quarantine().is_empty());
    assert_eq!(case.failures(), 1.0);
}

#[tokio::test]
async fn a_file_that_changed_or_went_is_set_aside_and_the_next_object_tells_the_gap() {
    let change = |path: &Path| fs::write(path, LINE.replace("one", "two")).unwrap();
    let lengthen = |path: &Path| fs::write(path, [LINE, LINE].concat()).unwrap();
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let spoils: [fn(&Path); 3] = [change, lengthen, remove];
    // Only bytes of the length that they should have are sent, for S3 to refuse them.
    for (spoil, puts_before) in spoils.into_iter().zip([1, 0, 0]) {
        let mut case = Case::new(checks_the_body).await;
        let spoiled = case.batch(TYPE, LINE).await;
        spoil(&case.sealed_file(&spoiled).await);
        case.flush();
        case.set_aside().await;
        assert_eq!(case.stages(), []);
        assert_eq!(case.quarantine().len(), 1);
        case.batch(TYPE, LINE).await;
        case.delivered(1).await;
        case.batch(TYPE, LINE).await;
        case.delivered(2).await;
        case.drain().await;

        let puts = &case.puts()[puts_before..];
        let told: Vec<_> = puts.iter().map(|put| (metadata(put, "sequence"), metadata(put, "gaps"))).collect();
        assert_eq!(told, [(Some("2"), Some("1")), (Some("3"), None)]);
        let hash = Sha256::of(LINE.as_bytes()).to_string();
        assert_eq!(metadata(&puts[0], "previous-sha256"), Some(&*hash), "of the bytes that were acknowledged");
        let status = case.status(TYPE);
        assert_eq!(status.events_uploaded, 2);
        assert_eq!((status.error, status.last_outage), (None, None), "nothing is left to be tried again");
    }
}

#[tokio::test]
async fn what_a_link_in_the_place_of_a_batch_leads_to_is_not_sent() {
    let mut case = Case::new(checks_the_body).await;
    let key = case.batch(TYPE, LINE).await;
    let file = case.sealed_file(&key).await;
    let elsewhere = case.dir.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    case.flush();
    case.set_aside().await;
    assert!(case.puts().is_empty());
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), LINE);
}

#[tokio::test]
async fn a_batch_that_failed_before_it_was_set_aside_ends_its_outage() {
    let mut case = Case::new(first([held(denied())])).await;
    let key = case.batch(TYPE, LINE).await;
    let file = case.sealed_file(&key).await;
    case.flush();
    case.failed(1).await;
    fs::remove_file(file).unwrap();
    case.drain().await;
    let status = case.status(TYPE);
    assert_eq!((status.objects_uploaded, status.error), (0, None));
    assert!(status.last_outage.is_some());
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_kept_until_it_can() {
    let mut case = Case::new(checks_the_body).await;
    let key = case.batch(TYPE, LINE).await;
    let file = case.sealed_file(&key).await;
    // A folder has the name at first: whoever reads it meets an error.
    let elsewhere = tempfile::tempdir_in(case.dir.path()).unwrap();
    let bytes = elsewhere.path().join("bytes");
    fs::rename(&file, &bytes).unwrap();
    fs::create_dir(&file).unwrap();
    case.flush();
    case.disk_failed(1).await;
    assert!(case.quarantine().is_empty());
    // Its name changes with each attempt.
    let folder = case.spool.folder(TYPE).dir.clone();
    until("the file is back", || {
        let mut entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let Some(name) = entries.find(|path| path.is_dir()) else { return false };
        renameat_with(CWD, &bytes, CWD, &name, RenameFlags::EXCHANGE).is_ok()
    })
    .await;
    case.delivered(1).await;
    assert_eq!(case.puts()[0].body, LINE);
    assert_eq!(case.keys(), [key]);
}

#[tokio::test]
async fn no_put_is_made_before_the_disk_holds_that_it_may_arrive() {
    let mut case = Case::new(first([])).await;
    let key = case.batch(TYPE, LINE).await;
    let obstacle = case.sealed_file(&key).await.with_extension("sending");
    fs::create_dir(&obstacle).unwrap();
    case.flush();
    case.disk_failed(2).await;
    assert!(case.puts().is_empty());
    assert_eq!(case.failures(), 0.0, "S3 has not refused anything");
    fs::remove_dir(obstacle).unwrap();
    case.delivered(1).await;
    case.drain().await;
    assert_eq!(case.keys(), [key]);
    let status = case.status(TYPE);
    assert_eq!(status.error, None);
    assert!(status.last_outage.unwrap().message.starts_with("the spool's disk: "));
}

#[tokio::test]
async fn a_refused_batch_whose_stage_the_disk_does_not_take_back_keeps_its_key() {
    let mut case = Case::new(first([])).await;
    let key = case.batch(TYPE, LINE).await;
    let sealed = case.sealed_file(&key).await;
    let obstacle = sealed.clone();
    case.s3_says(move |_| {
        // The file has its other name meanwhile.
        let _ = fs::create_dir(&obstacle);
        denied()
    });
    case.flush();
    case.disk_failed(1).await;
    case.s3_says(|_| ok());
    case.delivered(1).await;
    fs::remove_dir(sealed).unwrap();
    case.drain().await;
    assert!(case.keys().iter().all(|tried| *tried == key));
    assert_eq!(case.stages(), []);
}

#[tokio::test]
async fn an_object_that_is_stored_is_not_sent_again_while_its_file_cannot_go() {
    // The newest batch leaves its name behind, as the chain's head; any other is removed.
    for (batches, obstacle) in [(1, "sent"), (2, "sending")] {
        let mut case = Case::new(first([])).await;
        let stored = case.batch(TYPE, LINE).await;
        let obstacle = case.sealed_file(&stored).await.with_extension(obstacle);
        for _ in 1..batches {
            case.batch(TYPE, LINE).await;
        }
        until("all are sealed", || case.spool.folder(TYPE).head().sequence == batches).await;
        let (key_of_it, put_there) = (stored.clone(), obstacle.clone());
        case.s3_says(move |put| {
            if key(put) == key_of_it {
                let _ = fs::remove_file(&put_there);
                fs::create_dir(&put_there).unwrap();
            }
            ok()
        });
        case.flush();
        case.disk_failed(2).await;
        fs::remove_dir(obstacle).unwrap();
        case.delivered(batches).await;
        case.drain().await;
        assert_eq!(case.keys().len() as u64, batches, "one PUT a batch");
        assert_eq!((case.stages(), case.status(TYPE).error), (vec![], None));
    }
}

#[tokio::test]
async fn a_gap_that_cannot_be_marked_as_told_is_told_again_and_no_object_sent_again() {
    let mut case = Case::new(checks_the_body).await;
    let lost = case.batch(TYPE, LINE).await;
    fs::remove_file(case.sealed_file(&lost).await).unwrap();
    case.flush();
    case.set_aside().await;
    let obstacle = case.dir.path().join(QUARANTINE).join(format!("{}.told", case.quarantine()[0]));
    fs::create_dir(&obstacle).unwrap();
    case.batch(TYPE, LINE).await;
    case.disk_failed(1).await;
    case.delivered(1).await;
    fs::remove_dir(obstacle).unwrap();
    case.batch(TYPE, LINE).await;
    case.delivered(2).await;
    case.batch(TYPE, LINE).await;
    case.delivered(3).await;
    let told: Vec<_> = case.puts().iter().map(|put| metadata(put, "gaps").map(str::to_owned)).collect();
    assert_eq!(told, [Some("1".to_owned()), Some("1".to_owned()), None]);
}
