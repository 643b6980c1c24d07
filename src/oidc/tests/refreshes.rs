//! When the issuer is asked for its keys, by a clock that the test moves.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_unknown_key_is_asked_for_once_a_minute_and_known_keys_go_on() {
    let case = Case::new().await;
    let verifier = case.verifier();
    let verify = async |issuer: &Issuer| verifier.verify(&issuer.token(), Utc::now()).await;
    assert!(verify(&case.issuer).await.is_ok());
    assert_eq!(case.asked_for_keys(), 1);

    let strangers = ["key-2", "key-3"].map(|kid| Issuer::es256(&case.issuer.url, kid));
    for minute in 0..3 {
        a_minute_passes().await;
        for _ in 0..2 {
            assert_eq!(invalid(verify(&strangers[0]).await), "its key is not one of the issuer's");
        }
        let outcome = verify(&strangers[1]).await;
        assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "throttled: {outcome:?}");
        assert!(verify(&case.issuer).await.is_ok());
        assert_eq!(case.asked_for_keys(), 2 + minute);
        tokio::time::advance(std::time::Duration::from_secs(59)).await;
        assert!(matches!(verify(&strangers[1]).await, Err(VerifyError::Unavailable(_))), "a second too early");
        assert_eq!(case.asked_for_keys(), 2 + minute);
    }
}

#[tokio::test]
async fn strangers_at_once_share_one_refresh() {
    let case = Case::new().await;
    let verifier = case.verifier();
    assert!(verifier.verify(&case.issuer.token(), Utc::now()).await.is_ok());
    let tokens: Vec<_> = (2..6).map(|n| Issuer::es256(&case.issuer.url, &format!("key-{n}")).token()).collect();
    let outcomes = futures_util::future::join_all(tokens.iter().map(|token| verifier.verify(token, Utc::now()))).await;
    assert!(outcomes.iter().all(Result::is_err));
    assert_eq!(case.asked_for_keys(), 2);
}

/// Lets the minute between two refreshes pass.
async fn a_minute_passes() {
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_key_of_the_issuer_is_found_and_the_old_ones_outlast_an_outage() {
    let (old, new) = (Issuer::rs256("", "old"), Issuer::rs256("", "new"));
    let answers = Arc::new(RwLock::new((200, json!({ "keys": [old.jwk()] }).to_string())));
    let served = Arc::clone(&answers);
    let server = Server::start(move |request| match request.uri.as_str() {
        "/.well-known/jwks.json" => {
            let (status, body) = served.read().unwrap().clone();
            answer(status, body)
        }
        _ => answer(404, ""),
    })
    .await;
    let [old, new] = [old, new].map(|issuer| issuer.at(&server.url()));
    let config = config(&server.url());
    let verifier = Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap();
    assert!(verifier.verify(&old.token(), Utc::now()).await.is_ok());

    *answers.write().unwrap() = (500, String::new());
    let outcome = verifier.verify(&new.token(), Utc::now()).await;
    assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "{outcome:?}");
    assert!(verifier.verify(&old.token(), Utc::now()).await.is_ok());

    *answers.write().unwrap() = (200, json!({ "keys": [old.jwk(), new.jwk()] }).to_string());
    let outcome = verifier.verify(&new.token(), Utc::now()).await;
    assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "throttled: {outcome:?}");
    a_minute_passes().await;
    assert!(verifier.verify(&new.token(), Utc::now()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_let_in_before_is_refused_once_its_key_is_replaced() {
    let [old, new] = [(); 2].map(|()| Issuer::es256("", "one-name"));
    let keys = Arc::new(RwLock::new(json!({ "keys": [old.jwk()] }).to_string()));
    let served = Arc::clone(&keys);
    let server = Server::start(move |request| match request.uri.as_str() {
        "/.well-known/jwks.json" => answer(200, served.read().unwrap().clone()),
        _ => answer(404, ""),
    })
    .await;
    let config = config(&server.url());
    let verifier = Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap();
    let token = old.at(&server.url()).token();
    for _ in 0..2 {
        assert!(verifier.verify(&token, Utc::now()).await.is_ok());
    }
    *keys.write().unwrap() = json!({ "keys": [new.jwk()] }).to_string();
    tokio::time::advance(std::time::Duration::from_secs(3601)).await;
    // By the clock of the machine, for that of the runtime stands still.
    let since = std::time::Instant::now();
    while verifier.verify(&token, Utc::now()).await.is_ok() {
        assert!(since.elapsed() < std::time::Duration::from_secs(10), "still let in");
        tokio::task::yield_now().await;
    }
    assert_eq!(invalid(verifier.verify(&token, Utc::now()).await), "its signature doesn't hold");
}

#[tokio::test(start_paused = true)]
async fn what_the_issuer_lacked_is_open_again_once_it_is_out_of_reach() {
    let known = Issuer::rs256("", "known");
    let out_of_order = Arc::new(RwLock::new(false));
    let (keys, broken) = (json!({ "keys": [known.jwk()] }).to_string(), Arc::clone(&out_of_order));
    let server = Server::start(move |request| match request.uri.as_str() {
        "/.well-known/jwks.json" if !*broken.read().unwrap() => answer(200, keys.clone()),
        "/.well-known/jwks.json" => answer(500, ""),
        _ => answer(404, ""),
    })
    .await;
    let config = config(&server.url());
    let verifier = Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap();
    let verify = async |name: &str| verifier.verify(&Issuer::es256(&server.url(), name).token(), Utc::now()).await;
    assert!(verifier.verify(&known.at(&server.url()).token(), Utc::now()).await.is_ok());
    assert_eq!(invalid(verify("lacking").await), "its key is not one of the issuer's");
    *out_of_order.write().unwrap() = true;
    a_minute_passes().await;
    for name in ["another", "lacking"] {
        let outcome = verify(name).await;
        assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "{name}: {outcome:?}");
    }
}

/// An issuer that takes connections and never answers; the requests that it got, and a verifier for its tokens.
async fn silent_issuer() -> (Arc<std::sync::atomic::AtomicUsize>, String, Verifier) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            open.push(stream);
        }
    });
    let config = config(&url);
    (asked, url, Verifier::new(&config, &Network::new(&config.network).unwrap()).unwrap())
}

/// Tokens for `issuer`, unsigned as a stranger's may be, each with a key id of its own that is longer than any.
fn unsigned(issuer: &str, count: usize) -> Vec<String> {
    let claims = Issuer::es256(issuer, "").claims(Utc::now() + chrono::TimeDelta::hours(1));
    let token = |number: usize| {
        let kid = format!("{}{number}", "k".repeat(8000));
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.AAAA", part(&json!({ "alg": "RS256", "kid": kid })), part(&claims))
    };
    (0..count).map(token).collect()
}

#[tokio::test(start_paused = true)]
async fn tokens_wait_for_an_issuer_that_is_silent_for_5_s_and_share_one_request() {
    let (asked, url, verifier) = silent_issuer().await;
    let tokens = unsigned(&url, 1000);
    let began = tokio::time::Instant::now();
    for outcome in futures_util::future::join_all(tokens.iter().map(|token| verifier.verify(token, Utc::now()))).await {
        assert!(matches!(outcome, Err(VerifyError::Unavailable(_))), "{outcome:?}");
    }
    assert!(began.elapsed() < std::time::Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(verifier.verify(&tokens[0], Utc::now()).await.is_err());
    let kept = verifier.key_ids_kept();
    assert!(kept <= 256, "{kept} key ids are kept");
}

#[tokio::test]
async fn strangers_that_wait_for_the_first_keys_keep_nobody_from_them() {
    use futures_util::FutureExt;
    let case = Case::new().await;
    let verifier = case.verifier();
    let tokens = unsigned(&case.issuer.url, 1000);
    let mut strangers: Vec<_> = tokens.iter().map(|token| Box::pin(verifier.verify(token, Utc::now()))).collect();
    // The issuer can't answer in between, because this test has one thread.
    let wait = strangers.iter_mut().filter_map(|stranger| stranger.as_mut().now_or_never().is_none().then_some(()));
    assert_eq!(wait.count(), 1000);
    let outcome = verifier.verify(&case.issuer.token(), Utc::now()).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(futures_util::future::join_all(strangers).await.iter().all(Result::is_err));
    assert_eq!(case.asked_for_keys(), 1);
    assert!(verifier.key_ids_kept() <= 256);
}

#[tokio::test(start_paused = true)]
async fn of_many_unknown_keys_a_bounded_number_is_kept() {
    let case = Case::new().await;
    let verifier = case.verifier();
    assert!(verifier.verify(&case.issuer.token(), Utc::now()).await.is_ok());
    let claims = case.issuer.claims(Utc::now() + chrono::TimeDelta::hours(1));
    for round in 0..8 {
        let tokens: Vec<_> = (0..60)
            .map(|number| {
                let kid = Some(format!("{round}-{number}"));
                case.issuer.sign_as(&Header { kid, ..Header::new(Algorithm::RS256) }, &claims)
            })
            .collect();
        a_minute_passes().await;
        let at_once = tokens.iter().map(|token| verifier.verify(token, Utc::now()));
        assert!(futures_util::future::join_all(at_once).await.iter().all(Result::is_err));
        assert!(verifier.key_ids_kept() <= 60, "those of the last refresh alone");
    }
    assert_eq!(case.asked_for_keys(), 9);
}
