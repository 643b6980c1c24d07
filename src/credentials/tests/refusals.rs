//! Tokens that STS refuses, by the dozen, beside a good one.

use std::net::IpAddr;

use serde_json::json;

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
        let good = of_project(&issuer, "logs", Utc::now() + TimeDelta::hours(1));
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
        self.useless_of("logs", count)
    }

    fn useless_of(&self, project: &str, count: i64) -> Vec<String> {
        let end = |index| Utc::now() + TimeDelta::hours(2) + TimeDelta::minutes(index);
        (0..count).map(|index| of_project(&self.issuer, project, end(index))).collect()
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

fn of_project(issuer: &Issuer, project: &str, end: DateTime<Utc>) -> String {
    let mut claims = issuer.claims(end);
    // As env0 does, with another environment for each token.
    let tags = json!({ "projectId": [project], "environmentId": [end.to_string()] });
    claims["https://aws.amazon.com/tags"] = json!({ "principal_tags": tags });
    issuer.sign(&claims)
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

/// How many tokens STS was asked about before the good one, which is handed over while STS judges the first of `others`:
/// tokens with their clients.
async fn asked_before_the_good_one(others: impl Fn(&Case) -> Vec<(String, String)>) -> usize {
    let credentials = Arc::new(OnceLock::<(Credentials, String)>::new());
    let (hands_over, first) = (credentials.clone(), std::sync::Once::new());
    let case = Case::begin(move |_| {
        let (credentials, good) = hands_over.get().expect("nothing is asked before");
        first.call_once(|| assert_eq!(offer(credentials, good, "198.51.100.1"), Offer::Accepted));
    })
    .await;
    case.is_long_into_an_outage().await;
    let _ = credentials.set((case.credentials.clone(), case.good.clone()));
    for (token, client) in others(&case) {
        offer(&case.credentials, &token, &client);
    }
    soon(case.credentials.wait_session()).await;
    case.asked().iter().position(|token| *token == case.good).unwrap()
}

#[tokio::test]
async fn a_good_token_waits_for_one_question_about_another_addresses_tokens() {
    let of_one_address = |case: &Case| case.useless(40).into_iter().map(|token| (token, "192.0.2.7".to_owned()));
    assert_eq!(asked_before_the_good_one(|case| of_one_address(case).collect()).await, 1);
}

#[tokio::test]
async fn a_good_token_waits_for_one_question_of_each_network_not_of_each_address() {
    let addresses = |case: &Case| {
        let tokens = case.useless(300).into_iter().zip(0..);
        tokens.map(|(token, number)| (token, format!("192.0.{}.{}", number % 2, 1 + number / 2))).collect()
    };
    assert!(asked_before_the_good_one(addresses).await <= 2);
    let addresses = |case: &Case| {
        let tokens = case.useless(300).into_iter().zip(0..);
        tokens.map(|(token, number)| (token, format!("2001:db8:{}:{number}::1", number % 2))).collect()
    };
    assert!(asked_before_the_good_one(addresses).await <= 2, "of IPv6");
}

#[tokio::test]
async fn a_good_token_waits_for_one_question_of_each_project_wherever_it_comes_from() {
    let projects = |case: &Case| {
        let tokens = ["one", "other", "third"].map(|project| case.useless_of(project, 100)).concat();
        tokens
            .into_iter()
            .zip(1..)
            .map(|(token, number)| (token, format!("10.{}.{}.1", number / 200, number % 200)))
            .collect()
    };
    assert!(asked_before_the_good_one(projects).await <= 3);
}
