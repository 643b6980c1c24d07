//! Days of sessions by a clock that runs as fast as the test.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::testing::sts_session_until;

const MINUTE: Duration = Duration::from_secs(60);

/// STS, a daemon's credentials and the hours that pass.
struct Days {
    clock: Clock,
    issuer: Issuer,
    /// When each token ends, as STS reads it.
    ends: Arc<Mutex<HashMap<String, DateTime<Utc>>>>,
    out_of_order: Arc<RwLock<bool>>,
    sts: Server,
    credentials: Credentials,
}

impl Days {
    async fn begin() -> Days {
        let (first, begin) = (Utc::now(), Instant::now());
        let clock: Clock = Arc::new(move || first + TimeDelta::from_std(begin.elapsed()).unwrap());
        let ends: Arc<Mutex<HashMap<String, DateTime<Utc>>>> = Arc::default();
        let out_of_order = Arc::new(RwLock::new(false));
        let (at, known, broken) = (clock.clone(), ends.clone(), out_of_order.clone());
        let sts = sts(move |request| {
            let (now, token) = (at(), request.field("WebIdentityToken").unwrap());
            if *broken.read().unwrap() {
                return sts_error(503, "ServiceUnavailable", "Sorry");
            }
            if known.lock().unwrap()[&token] <= now {
                return sts_error(400, "ExpiredTokenException", "Token expired");
            }
            let seconds = request.field("DurationSeconds").unwrap().parse().unwrap();
            sts_session_until("AKIA1", now + TimeDelta::seconds(seconds))
        })
        .await;
        let config = config(&sts.url());
        let network = Network::new(&config.network).unwrap();
        let credentials = Credentials::start_by(
            clock.clone(),
            Role::of_bucket(&config),
            &config,
            &network,
            "0123456789abcdef",
            CancellationToken::new(),
        );
        Days { clock, issuer: issuer(), ends, out_of_order, sts, credentials }
    }

    /// As a deployment or the courier does it: env0's tokens last a day.
    fn hand_over(&self) {
        let end = (self.clock)() + TimeDelta::hours(24);
        let token = self.issuer.sign(&self.issuer.claims(end));
        self.ends.lock().unwrap().insert(token.clone(), end);
        assert_eq!(self.credentials.offer(OidcToken::own(&token, Source::HandOver).unwrap()), Offer::Accepted);
    }

    async fn first_session(&self) {
        self.hand_over();
        self.credentials.wait_session().await;
    }

    /// Lets time pass; the minutes in which there was no session.
    async fn pass(&self, minutes: u32) -> u32 {
        let mut without = 0;
        for _ in 0..minutes {
            tokio::time::sleep(MINUTE).await;
            without += u32::from(self.credentials.session().is_none());
        }
        without
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_every_eight_hours_keeps_a_session_for_a_week() {
    let days = Days::begin().await;
    days.first_session().await;
    for _ in 0..21 {
        assert_eq!(days.pass(8 * 60).await, 0, "minutes without a session");
        days.hand_over();
    }
    let exchanges = days.sts.seen().len();
    let (hours, refresh_minutes) = (7 * 24, 55);
    assert!(exchanges <= hours * 60 / refresh_minutes + 21, "{exchanges} exchanges, more than one a session");
}

#[tokio::test(start_paused = true)]
async fn the_last_session_outlives_the_last_token_and_then_it_waits_for_the_next() {
    let days = Days::begin().await;
    days.first_session().await;
    assert_eq!(days.pass(24 * 60 + 55).await, 0, "minutes without a session while one can be had");
    assert_eq!(days.credentials.status().state, "holds a session, and no token for the next one");
    assert!(days.pass(15).await > 0, "a session without end");
    assert_eq!(days.credentials.status().state, "waits for an OIDC token");
    let asked = days.sts.seen().len();
    days.pass(12 * 60).await;
    assert_eq!(days.sts.seen().len(), asked, "STS is not asked about expired tokens");
    days.first_session().await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_sts_costs_few_questions_and_ends_by_itself() {
    let days = Days::begin().await;
    days.first_session().await;
    days.pass(10).await;
    *days.out_of_order.write().unwrap() = true;
    let asked = days.sts.seen().len();
    let without = days.pass(60).await;
    assert!((5..20).contains(&without), "the session lasts to its end, for 50 of the 60 minutes: {without} without");
    assert_eq!(days.credentials.status().state, "STS is out of reach");
    let asked = days.sts.seen().len() - asked;
    assert!((10..90).contains(&asked), "{asked} questions in 15 minutes");
    *days.out_of_order.write().unwrap() = false;
    assert!(days.pass(60).await <= 2, "it is asked again within a minute");
}

#[tokio::test(start_paused = true)]
async fn an_old_session_that_s3_denies_is_replaced_at_most_once_in_five_minutes() {
    let days = Days::begin().await;
    days.first_session().await;
    let session = || days.credentials.session().unwrap().id;
    let denied_for = async |minutes: u32| {
        for _ in 0..minutes {
            days.credentials.session_is_suspect(session());
            assert_eq!(days.pass(1).await, 0, "the session at hand stays in use until there is a new one");
        }
    };
    let first = session();
    denied_for(4).await;
    assert_eq!(session(), first, "a young session is not the reason");
    days.pass(2).await;
    denied_for(1).await;
    assert_eq!(session(), first + 1);
    denied_for(3).await;
    assert_eq!(session(), first + 1, "not twice in five minutes");
    days.pass(3).await;
    denied_for(1).await;
    assert_eq!(session(), first + 2);
}
