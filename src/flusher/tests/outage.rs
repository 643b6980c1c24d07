//! Tests what the daemon tells of an outage, when it is over, and sessions that fail or come.

use super::*;

fn is_audit(put: &Seen) -> bool {
    key(put).contains("/env0-audits/")
}

#[tokio::test]
async fn a_failure_is_told_with_its_remedy_until_it_is_over_and_delays_no_other_type() {
    let mut answers = first([denied(), denied(), held(denied())]);
    let mut case = Case::new(move |put| if is_audit(put) { ok() } else { answers(put) }).await;
    case.batch(TYPE, LINE).await;
    case.flush();
    let before = case.failed(1).await;
    case.batch(LogType::Audits, LINE).await;
    until("the audits go", || case.status(LogType::Audits).objects_uploaded == 1).await;
    let error = case.failed(3).await;
    assert_eq!((error.since, error.attempts), (before.since, 3), "the first failure's time stays");
    assert!(error.latest > error.since, "{error:?}");
    assert_eq!((error.code.as_deref(), error.request_id.as_deref()), (Some("AccessDenied"), Some("s3-request")));
    assert!(error.message.contains("AccessDenied") && error.message.contains("403"), "{error:?}");
    assert_eq!(error.remedy.as_deref(), Some(&*PutErrorKind::Denied.remedy(None)));
    assert_eq!(case.status(TYPE).last_outage, None);

    case.drain().await;
    let status = case.status(TYPE);
    assert_eq!((status.error, status.objects_uploaded), (None, 1));
    let outage = status.last_outage.unwrap();
    assert_eq!((outage.since, outage.message), (error.since, error.message));
    assert!(outage.until >= error.latest);
    let audits = case.status(LogType::Audits);
    assert_eq!((audits.error, audits.last_outage), (None, None));
    let refused = "upload_failures_total{type=\"env0-deployments\",error=\"denied\"}";
    assert_eq!(case.metric(refused), Some(3.0));
}

#[tokio::test]
async fn an_outage_lasts_until_the_last_batch_that_failed_is_delivered() {
    let mut case = Case::new(first([])).await;
    let stays = case.batch(TYPE, LINE).await;
    let passes = case.batch(TYPE, LINE).await;
    let mut answers = first([denied()]);
    case.s3_says(move |put| if key(put) == stays { held(denied()) } else { answers(put) });
    case.flush();
    case.failed(2).await;
    case.delivered(1).await;
    assert_eq!(case.status(TYPE).last_objects[0].key, passes);
    // The success of a batch that never failed does not end the outage, either.
    case.batch(TYPE, LINE).await;
    case.delivered(2).await;
    case.drain().await;
    let status = case.status(TYPE);
    assert_eq!(status.error.map(|error| error.attempts), Some(3), "the same outage goes on");
    assert_eq!((status.last_outage, case.stages()), (None, vec![Stage::Sealed]));
}

#[tokio::test]
async fn outages_follow_one_another() {
    let mut case = Case::new(first([denied()])).await;
    case.batch(TYPE, LINE).await;
    case.flush();
    until("the first is over", || case.status(TYPE).last_outage.is_some()).await;
    let first_one = case.status(TYPE).last_outage.unwrap();
    case.s3_says(first([held(internal_error())]));
    case.batch(TYPE, LINE).await;
    let error = case.failed(1).await;
    assert_eq!((error.attempts, error.since), (1, error.latest));
    assert!(error.since >= first_one.until);
    assert_eq!(case.status(TYPE).last_outage, Some(first_one));
    case.drain().await;
    assert_eq!(case.status(TYPE).last_outage.unwrap().since, error.since);
}

#[tokio::test]
async fn without_a_session_nothing_is_tried_and_one_that_comes_lets_all_go() {
    let mut case = Case::without_a_session().await;
    let mut keys = BTreeSet::from([case.batch(TYPE, LINE).await, case.batch(TYPE, LINE).await]);
    case.flush();
    keys.insert(case.batch(TYPE, LINE).await);
    assert!(case.puts().is_empty());
    case.hand_over();
    case.delivered(3).await;
    assert_eq!(case.keys().len(), 3);
    assert_eq!(case.keys().into_iter().collect::<BTreeSet<_>>(), keys);
    let status = case.status(TYPE);
    assert_eq!((status.error, status.last_outage), (None, None), "no attempt was made that could fail");
}

#[tokio::test]
async fn a_batch_whose_session_is_refused_goes_again_at_once_with_the_next_one() {
    for refusal in [
        s3_error(400, "ExpiredToken", "The provided token has expired."),
        s3_error(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    ] {
        // The pause that the answer asks for is for the old session.
        let mut case = Case::new(first([held(refusal)])).await;
        let key = case.batch(TYPE, LINE).await;
        case.flush();
        case.delivered(1).await;
        assert_eq!(case.keys(), [&*key, &*key]);
        let puts = case.puts();
        let signed_by: Vec<_> = puts.iter().map(|put| put.header("authorization").unwrap()).collect();
        assert!(signed_by[0].contains("=AKIA1/") && signed_by[1].contains("=AKIA2/"), "{signed_by:?}");
    }
}

#[tokio::test]
async fn a_pause_is_the_backoff_or_what_the_answer_asks_and_none_for_a_first_bad_session() {
    let mut case = Case::new(first([])).await;
    case.batch(TYPE, LINE).await;
    let sealed = &mut case.sealed.as_mut().unwrap()[TYPE];
    let mut queue = Queue::new(1, Instant::now());
    queue.add(soon(sealed.recv()).await.unwrap());
    let mut waiting = queue.next(Instant::now()).unwrap();
    let error = |kind, retry_after: Option<u64>| PutError {
        kind,
        may_have_arrived: false,
        retry_after: retry_after.map(Duration::from_secs),
        status: None,
        code: None,
        request_id: None,
        message: String::new(),
        session: None,
    };
    use PutErrorKind::*;
    for (kind, retry_after, attempts, seconds) in [
        (Throttled, None, 0, 5),
        (Throttled, Some(3), 0, 5),
        (Throttled, Some(7), 0, 7),
        (Throttled, Some(7), 9, 7),
        (SessionRejected, None, 0, 0),
        (NoSession, None, 0, 0),
        (SessionRejected, None, 1, 5),
        (NoSession, None, 1, 5),
    ] {
        waiting.attempts = attempts;
        let pause = pause_after(&error(kind, retry_after), &waiting, Duration::from_secs(5));
        assert_eq!(pause, Duration::from_secs(seconds), "{kind:?} {retry_after:?} {attempts}");
    }
}
