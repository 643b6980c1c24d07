//! Times that somebody else says, from the whole range of numbers, through everything that reckons with them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;

use super::*;
use crate::credentials::candidates::{Candidates, refresh_at};
use crate::credentials::sts::session_end;

/// Numbers as JSON writes them: all of f64 and i64, and the neighbours of each end of a calendar.
fn number() -> impl Strategy<Value = String> {
    let ends = [0_i64, -62_135_596_800, 253_402_300_799, 253_402_300_800, 8_210_266_876_799, -8_334_601_228_800];
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        (-1e300..1e300).prop_map(|number: f64| format!("{number:e}")),
        (proptest::sample::select(ends.to_vec()), -200_000_i64..200_000)
            .prop_map(|(end, near)| end.saturating_add(near).to_string()),
        Just("1e308".to_owned()),
        Just("-1e308".to_owned()),
        Just("1e400".to_owned()),
    ]
}

fn now() -> impl Strategy<Value = DateTime<Utc>> {
    (0_i64..253_402_300_799).prop_map(|seconds| DateTime::from_timestamp(seconds, 0).unwrap())
}

proptest! {
    #[test]
    fn no_time_in_a_token_leaves_the_calendar(exp in number(), iat in number(), now in now()) {
        let claims = format!(r#"{{"iss":"i","sub":"s","exp":{exp},"iat":{iat}}}"#);
        let token = format!("eyJ.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let token = OidcToken::own(&token, Source::File).unwrap();
        let mut candidates = Candidates::default();
        candidates.add(token.clone(), now);
        for with_refused in [true, false] {
            candidates.in_order(now, with_refused);
        }
        let refresh = refresh_at(now, now + TimeDelta::hours(1), candidates.last_exchange());
        prop_assert!(refresh >= now && refresh <= now + TimeDelta::hours(1));
        for moment in [token.expires_at, token.claims().issued_at].into_iter().flatten() {
            let shown = serde_json::to_string(&Timestamp(moment)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Timestamp>(&shown).unwrap(), Timestamp(moment));
        }
    }

    #[test]
    fn no_expiration_of_sts_makes_a_session_longer_than_asked(
        told in any::<i64>(), asked in 900_u64..43_200, now in now(),
    ) {
        let end = session_end(now, Duration::from_secs(asked), told);
        prop_assert!(end > now && end <= now + TimeDelta::seconds(asked as i64), "{}", end);
        let refresh = refresh_at(now, end, None);
        prop_assert!(refresh >= now && refresh <= end);
    }
}
