//! Tokens that STS refuses, by the dozen, beside a good one.

use std::net::IpAddr;

use super::*;

/// STS, which refuses all tokens but `good`, and a daemon's credentials without a session.
struct Case {
    issuer: Issuer,
    good: String,
    sts: Server,
    credentials: Credentials,
}

impl Case {
    /// `at_refusal` sees each token that STS refuses, before it is answered.
    async fn begin(at_refusal: impl Fn(&str) + Send + Sync + 'static) -> Case {
        let issuer = issuer();
        let good = issuer.sign(&issuer.claims(Utc::now() + TimeDelta::hours(1)));
        let known = good.clone();
        let sts = sts(move |request| {
            let token = request.field("WebIdentityToken").unwrap();
            if token == known {
                return sts_session("AKIA1", TimeDelta::hours(1));
            }
            at_refusal(&token);
            sts_error(403, "AccessDenied", "Not authorized")
        })
        .await;
        let credentials = start(&config(&sts.url()));
        Case { issuer, good, sts, credentials }
    }

    /// Tokens that end later than the good one, so that each would be asked about before it.
    fn useless(&self, count: i64) -> Vec<String> {
        let end = |index| Utc::now() + TimeDelta::hours(2) + TimeDelta::minutes(index);
        (0..count).map(|index| self.issuer.sign(&self.issuer.claims(end(index)))).collect()
    }

    /// The next whole round is an hour away.
    async fn is_long_into_an_outage(&self) {
        until("the first round", || self.credentials.0.lock().failures > 0).await;
        self.credentials.0.lock().not_before = Instant::now() + Duration::from_secs(3600);
    }

    fn asked(&self) -> Vec<String> {
        exchanges(&self.sts, "WebIdentityToken")
    }
}

fn offer(credentials: &Credentials, token: &str, client: &str) -> Offer {
    let mut token = OidcToken::own(token, Source::HandOver).unwrap();
    token.client = Some(client.parse::<IpAddr>().unwrap());
    credentials.offer(token)
}

#[tokio::test]
async fn refused_tokens_that_come_again_are_not_asked_about_and_hold_nobody_up() {
    let case = Case::begin(|_| ()).await;
    case.is_long_into_an_outage().await;
    let useless = case.useless(30);
    for (index, token) in useless.iter().enumerate() {
        assert_eq!(offer(&case.credentials, token, "192.0.2.7"), Offer::Accepted);
        until("the judgement", || case.asked().len() == index + 1).await;
        until("the refusal", || case.credentials.0.lock().candidates.all().all(|(_, set_aside)| set_aside)).await;
    }
    for token in useless.iter().cycle().take(90) {
        assert_eq!(offer(&case.credentials, token, "192.0.2.7"), Offer::SetAside);
    }
    // From the same address, as behind a load balancer.
    assert_eq!(offer(&case.credentials, &case.good, "192.0.2.7"), Offer::Accepted);
    soon(case.credentials.wait_session()).await;
    assert_eq!(case.asked(), [useless, vec![case.good]].concat(), "each once");
}

#[tokio::test]
async fn a_good_token_waits_for_one_question_about_another_addresses_tokens() {
    let credentials = Arc::new(OnceLock::<(Credentials, String)>::new());
    let (hands_over, first) = (credentials.clone(), std::sync::Once::new());
    let case = Case::begin(move |_| {
        let (credentials, good) = hands_over.get().expect("nothing is asked before");
        first.call_once(|| assert_eq!(offer(credentials, good, "198.51.100.1"), Offer::Accepted));
    })
    .await;
    case.is_long_into_an_outage().await;
    let _ = credentials.set((case.credentials.clone(), case.good.clone()));
    for token in case.useless(40) {
        // The good one comes while STS judges the first of these.
        offer(&case.credentials, &token, "192.0.2.7");
    }
    soon(case.credentials.wait_session()).await;
    assert_eq!(case.asked().iter().position(|token| *token == case.good), Some(1));
}
