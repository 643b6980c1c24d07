//! Tests the last attempts at a shutdown, and what ends them.

use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn a_drain_gives_each_waiting_batch_one_more_attempt_at_once_and_leaves_what_fails() {
    let mut case = Case::new(|_| held(denied())).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(case.batch(TYPE, LINE).await);
    }
    case.flush();
    case.failed(3).await;
    assert_eq!(case.puts().len(), 3, "the pauses are long");
    let fails = keys[1].clone();
    case.s3_says(move |put| if key(put) == fails { denied() } else { ok() });
    // The last one is closed by the shutdown, and may not have come to the lane yet.
    let last = case.spool.append(TYPE, Bytes::from(LINE), 1).await.unwrap();
    keys.push(object_key(&case.config.bucket_path, TYPE, &last.batch));
    case.drain().await;

    let tried = case.keys().split_off(3);
    assert_eq!(tried.len(), 4);
    assert_eq!(tried.iter().collect::<BTreeSet<_>>(), keys.iter().collect(), "each once");
    let delivered: BTreeSet<_> = case.status(TYPE).last_objects.into_iter().map(|object| object.key).collect();
    assert_eq!(delivered, BTreeSet::from([keys[0].clone(), keys[2].clone(), keys[3].clone()]));
    assert_eq!(case.stages(), [Stage::Sealed]);
    assert!(case.files().iter().any(|name| name.contains(&format!("_{}.", suffix(&keys[1])))));
}

#[tokio::test]
async fn a_drain_sends_what_was_sealed_before_it_though_no_lane_has_heard_of_it() {
    // Whether a lane hears of the batch or of the end first is left to chance; in five times the end is among them.
    for _ in 0..5 {
        let mut case = Case::new(first([])).await;
        case.batch(TYPE, LINE).await;
        case.spool.close().await;
        case.flush();
        soon(case.flusher.take().unwrap().drain(Instant::now() + Duration::from_secs(20))).await;
        assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (1, vec![]));
    }
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_where_s3_never_answers() {
    // Connections are made by the system; nobody takes them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let at_the_silent = |config| Config { oidc_token: Some("token".into()), endpoint_url_s3: Some(endpoint), ..config };
    let mut case = Case::with(at_the_silent, first([])).await;
    case.batch(TYPE, LINE).await;
    case.flush();
    until("the attempt is under way", || case.stages() == [Stage::Sending]).await;
    let deadline = Instant::now() + Duration::from_millis(200);
    case.drain_until(deadline).await;
    assert!(Instant::now() >= deadline);
    assert_eq!((case.stages(), case.status(TYPE).objects_uploaded), (vec![Stage::Sending], 0));
}

#[tokio::test]
async fn a_drain_without_a_session_waits_for_one_and_sends_all_when_it_comes() {
    let mut case = Case::without_a_session().await;
    case.batch(TYPE, LINE).await;
    case.batch(TYPE, LINE).await;
    case.flush();
    case.spool.close().await;
    let flusher = case.flusher.take().unwrap();
    let draining = tokio::spawn(flusher.drain(Instant::now() + Duration::from_secs(20)));
    // The lanes hear of it first, as far as that can be told.
    tokio::task::yield_now().await;
    case.hand_over();
    soon(draining).await.unwrap();
    assert_eq!((case.status(TYPE).objects_uploaded, case.stages()), (2, vec![]));
}

#[tokio::test]
async fn a_drain_that_no_session_comes_to_ends_and_leaves_the_batches() {
    let mut case = Case::without_a_session().await;
    case.batch(TYPE, LINE).await;
    case.flush();
    case.drain_until(Instant::now() + Duration::from_millis(200)).await;
    assert!(case.puts().is_empty());
    assert_eq!(case.stages(), [Stage::Sealed]);
    assert_eq!(case.status(TYPE).error, None);
}

#[tokio::test]
async fn a_drain_of_nothing_waits_for_no_session() {
    let mut case = Case::without_a_session().await;
    case.flush();
    let started = Instant::now();
    case.drain().await;
    assert!(started.elapsed() < DRAIN_SESSION_WAIT, "{:?}", started.elapsed());
}
