//! Tests what a 412 means, depending on the answers before it.

use super::*;

/// The 412 of a proxy: no document, no request id.
fn bare_412() -> Response<Bytes> {
    answer(412, "")
}

/// The 412 of a store that sends no document.
fn terse_412() -> Response<Bytes> {
    let mut response = bare_412();
    response.headers_mut().insert("x-amz-request-id", "store-request".parse().unwrap());
    response
}

#[tokio::test]
async fn a_name_that_another_writer_owns_is_given_up_for_one_with_a_new_suffix() {
    for taken in [name_taken(), terse_412()] {
        let mut case = Case::new(first([taken])).await;
        let acknowledged = case.batch(TYPE, LINE).await;
        case.flush();
        case.delivered(1).await;
        case.drain().await;
        let puts = case.puts();
        let [theirs, ours] = puts.as_slice() else { panic!("{puts:?}") };
        assert_eq!(key(theirs), acknowledged);
        let renamed = key(ours);
        assert_ne!(renamed, acknowledged);
        let stem = acknowledged.len() - "aB3dE.log".len();
        assert_eq!(renamed[..stem], acknowledged[..stem], "only the suffix changes");
        assert_eq!(metadata(theirs, "renamed-from"), None);
        assert_eq!(metadata(ours, "renamed-from"), Some(suffix(&acknowledged)));
        assert_eq!(ours.body, LINE);
        assert_eq!(case.stages(), []);
        let status = case.status(TYPE);
        assert_eq!((&*status.last_objects[0].key, status.events_uploaded), (&*renamed, 1));
        assert_eq!((status.error, status.last_outage), (None, None), "nothing has failed");
    }
}

#[tokio::test]
async fn names_that_are_all_taken_are_tried_nine_at_a_time_and_the_batch_is_kept() {
    let mut case = Case::new(|_| name_taken()).await;
    let acknowledged = case.batch(TYPE, LINE).await;
    case.flush();
    until("a second attempt", || case.puts().len() > 10).await;
    case.s3_says(|_| ok());
    case.delivered(1).await;
    let keys = case.keys();
    let distinct: BTreeSet<_> = keys[..9].iter().collect();
    assert_eq!(distinct.len(), 9, "the acknowledged name and eight new ones");
    assert_eq!(keys[9], keys[8], "the next attempt begins with the name that the last one ended with");
    assert_ne!(keys[10], keys[9]);
    assert_eq!(metadata(case.puts().last().unwrap(), "renamed-from"), Some(suffix(&acknowledged)));
    assert_eq!(case.status(TYPE).events_uploaded, 1);
}

#[tokio::test]
async fn a_name_that_is_taken_after_an_answer_that_tells_nothing_holds_our_own_object() {
    for taken in [name_taken(), terse_412()] {
        let mut case = Case::new(first([internal_error(), taken])).await;
        let key = case.batch(TYPE, LINE).await;
        case.flush();
        case.delivered(1).await;
        case.drain().await;
        assert_eq!(case.keys(), [&*key, &*key], "no second object");
        assert_eq!(case.stages(), []);
        let status = case.status(TYPE);
        assert_eq!((&*status.last_objects[0].key, status.events_uploaded), (&*key, 1));
        assert_eq!(case.metric("upload_duration_count"), Some(0.0), "only a confirmed PUT is timed");
    }
}

#[tokio::test]
async fn nothing_is_delivered_or_renamed_on_the_word_of_a_412_that_is_not_the_stores() {
    let html_412 = || answer(412, "<html>Precondition failed</html>");
    for (earlier, foreign) in [
        (Some(internal_error()), bare_412()),
        (Some(internal_error()), html_412()),
        (None, bare_412()),
        (None, html_412()),
    ] {
        let attempts = if earlier.is_some() { 2 } else { 1 };
        let mut case = Case::new(first(earlier.into_iter().chain([held(foreign)]))).await;
        let key = case.batch(TYPE, LINE).await;
        case.flush();
        let error = case.failed(attempts).await;
        assert!(error.message.contains("412"), "{}", error.message);
        assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (0, vec![Stage::Sending]));
        case.s3_says(|_| name_taken());
        case.drain().await;
        assert!(case.keys().iter().all(|tried| *tried == key), "{:?}", case.keys());
        assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (1, vec![]));
    }
}

#[tokio::test]
async fn a_412_that_nobody_signs_is_settled_when_objects_arrive_in_between() {
    let mut case = Case::new(first([internal_error()])).await;
    let key = case.batch(TYPE, LINE).await;
    let refused = key.clone();
    let mut lost = first([internal_error()]);
    case.s3_says(move |put| match super::key(put) == refused {
        true if put.body.is_empty() => ok(),
        true => Some(lost(put)).filter(|answer| answer.status() == 500).unwrap_or_else(bare_412),
        false => ok(),
    });
    case.flush();
    for objects in 1.. {
        if case.files().iter().all(|name| !name.contains(&format!("_{}.", suffix(&key)))) {
            break;
        }
        let attempts = case.keys().iter().filter(|tried| **tried == key).count();
        until("it is tried again, or settled", || {
            let tried = case.keys().iter().filter(|tried| **tried == key).count();
            tried > attempts || case.stages().is_empty()
        })
        .await;
        case.batch(TYPE, LINE).await;
        until("another object arrives", || case.status(TYPE).objects_uploaded >= objects).await;
        assert!(objects < 9, "{:?}", case.keys());
    }
    case.drain().await;
    assert_eq!(case.stages(), []);
    let tried = case.keys().iter().filter(|tried| **tried == key).count();
    assert_eq!(tried, 4, "an answer that tells nothing, and three 412s");
}

#[tokio::test]
async fn what_cannot_have_arrived_is_sealed_again_and_anything_else_is_not() {
    for (refusal, stage) in [
        (denied(), Stage::Sealed),
        (s3_error(503, "SlowDown", "Please reduce your request rate."), Stage::Sealed),
        (internal_error(), Stage::Sending),
        (s3_error(503, "ServiceUnavailable", "Service is unable to handle request."), Stage::Sending),
        (answer(403, "<html>the proxy's own words</html>"), Stage::Sending),
    ] {
        let status = refusal.status();
        let mut case = Case::new(first([held(refusal)])).await;
        let key = case.batch(TYPE, LINE).await;
        case.flush();
        case.failed(1).await;
        assert_eq!(case.stages(), [stage], "{status}");
        case.drain().await;
        assert_eq!(case.keys(), [&*key, &*key], "the key that was acknowledged");
        assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (1, vec![]));
    }
}

#[tokio::test]
async fn where_no_connection_is_made_the_batch_is_sealed_again() {
    let endpoint = testing::nobody().await;
    let at_nobody = |config| Config { oidc_token: Some("token".into()), endpoint_url_s3: Some(endpoint), ..config };
    let mut case = Case::with(at_nobody, first([])).await;
    case.batch(TYPE, LINE).await;
    case.flush();
    case.failed(1).await;
    until("it is sealed", || case.stages() == [Stage::Sealed]).await;
}

#[tokio::test]
async fn a_name_that_is_taken_after_refusals_alone_is_another_writers() {
    let mut case = Case::new(first([held(denied()), name_taken()])).await;
    let acknowledged = case.batch(TYPE, LINE).await;
    case.flush();
    case.failed(1).await;
    case.drain().await;
    let puts = case.puts();
    assert_eq!(puts.len(), 3);
    assert_ne!(key(&puts[2]), acknowledged);
    assert_eq!(metadata(&puts[2], "renamed-from"), Some(suffix(&acknowledged)));
    assert_eq!(case.status(TYPE).objects_uploaded, 1);
}

#[tokio::test]
async fn a_new_name_that_is_taken_after_an_answer_that_tells_nothing_holds_our_own_object() {
    let mut case = Case::new(first([name_taken(), held(internal_error()), name_taken()])).await;
    case.batch(TYPE, LINE).await;
    case.flush();
    case.failed(1).await;
    case.drain().await;
    let keys = case.keys();
    assert_eq!((keys.len(), &keys[2]), (3, &keys[1]));
    assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (1, vec![]));
}

#[tokio::test]
async fn a_refusal_after_an_answer_that_tells_nothing_makes_the_name_nobody_elses() {
    let mut case = Case::new(first([internal_error(), held(denied()), name_taken()])).await;
    let key = case.batch(TYPE, LINE).await;
    case.flush();
    case.failed(2).await;
    assert_eq!(case.stages(), [Stage::Sending]);
    case.drain().await;
    assert_eq!(case.keys(), [&*key, &*key, &*key]);
    assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (1, vec![]));
}

#[tokio::test]
async fn a_name_under_which_the_store_keeps_other_bytes_is_given_up_for_another() {
    let mut other = ok();
    other.headers_mut().insert("x-amz-checksum-sha256", STANDARD.encode(Sha256::of(b"other").0).parse().unwrap());
    // The first answer was lost, so the second may be about what the first PUT brought. Of the third nothing is known.
    let lost = || s3_error(500, "InternalError", "lost");
    let mut case = Case::new(first([lost(), other, lost(), name_taken()])).await;
    let acknowledged = case.batch(TYPE, LINE).await;
    case.flush();
    case.delivered(1).await;
    case.drain().await;
    let keys = case.keys();
    assert_eq!(keys[..2], [&*acknowledged; 2]);
    assert!(keys.len() == 4 && keys[2] != acknowledged && keys[3] == keys[2], "{keys:?}");
    assert_eq!(metadata(case.puts().last().unwrap(), "renamed-from"), Some(suffix(&acknowledged)));
    assert_eq!((case.stages(), case.status(TYPE).events_uploaded), (vec![], 1));
}
