//! The tokens at hand, in the order in which STS is asked about them. Pure: the time is a parameter.

use std::cmp::Reverse;

use chrono::{DateTime, TimeDelta, Utc};

use crate::oidc::{OidcToken, Source};

/// More would not help: they are all of one organization, and the newest is the best.
pub(super) const MAX_TOKENS: usize = 16;
/// A token is still shown to STS this long after its end, as our clock may be ahead.
const EXPIRY_LEEWAY: TimeDelta = TimeDelta::seconds(60);
/// How long before its end a session is replaced; from [`LONG_SESSION`] on.
const REFRESH_AHEAD: TimeDelta = TimeDelta::minutes(5);
const LONG_SESSION: TimeDelta = TimeDelta::minutes(15);
/// How long before the last token's end the session is replaced once more, to outlive it by most.
const LAST_EXCHANGE_AHEAD: TimeDelta = TimeDelta::minutes(2);

#[derive(Default)]
pub(super) struct Candidates(Vec<Candidate>);

struct Candidate {
    token: OidcToken,
    set_aside: bool,
}

impl Candidates {
    /// Takes a token in; one of the operator's own takes the place of the one before it from there.
    /// False when it is at hand already. Where there are too many, refused ones go first, then the
    /// oldest.
    pub(super) fn add(&mut self, token: OidcToken, now: DateTime<Utc>) -> bool {
        if token.source != Source::HandOver {
            self.0.retain(|candidate| candidate.token.source != token.source || candidate.token.same(&token));
        }
        if self.0.iter().any(|candidate| candidate.token.same(&token)) {
            return false;
        }
        self.0.push(Candidate { token, set_aside: false });
        self.0.retain(|candidate| !expired(&candidate.token, now));
        self.0.sort_by_key(Candidate::rank);
        self.0.truncate(MAX_TOKENS);
        true
    }

    /// Those that have not expired, the newest first; the ones that STS refused come last, or not
    /// at all where `with_refused` is false.
    pub(super) fn in_order(&self, now: DateTime<Utc>, with_refused: bool) -> Vec<OidcToken> {
        let usable = |candidate: &&Candidate| !expired(&candidate.token, now) && (with_refused || !candidate.set_aside);
        let mut usable: Vec<_> = self.0.iter().filter(usable).collect();
        usable.sort_by_key(|candidate| candidate.rank());
        usable.into_iter().map(|candidate| candidate.token.clone()).collect()
    }

    /// Notes what STS said about a token.
    pub(super) fn judged(&mut self, token: &OidcToken, refused: bool) {
        for candidate in self.0.iter_mut().filter(|candidate| candidate.token.same(token)) {
            candidate.set_aside = refused;
        }
    }

    /// The latest end among the tokens that STS didn't refuse.
    pub(super) fn last_expiry(&self) -> Option<DateTime<Utc>> {
        let good = self.0.iter().filter(|candidate| !candidate.set_aside);
        good.filter_map(|candidate| candidate.token.expires_at).max()
    }

    /// Every token, and whether STS refused it.
    pub(super) fn all(&self) -> impl Iterator<Item = (&OidcToken, bool)> {
        self.0.iter().map(|candidate| (&candidate.token, candidate.set_aside))
    }
}

impl Candidate {
    fn rank(&self) -> (bool, Reverse<DateTime<Utc>>) {
        (self.set_aside, Reverse(self.token.expires_at.unwrap_or(DateTime::<Utc>::MAX_UTC)))
    }
}

fn expired(token: &OidcToken, now: DateTime<Utc>) -> bool {
    token.expires_at.is_some_and(|end| end + EXPIRY_LEEWAY < now)
}

/// When a session that lasts from `obtained` to `expires` is to be replaced, where the last token
/// ends at `last_token`.
pub(super) fn refresh_at(
    obtained: DateTime<Utc>,
    expires: DateTime<Utc>,
    last_token: Option<DateTime<Utc>>,
) -> DateTime<Utc> {
    let lifetime = expires - obtained;
    let regular = if lifetime >= LONG_SESSION { expires - REFRESH_AHEAD } else { obtained + lifetime * 2 / 3 };
    match last_token.map(|end| end - LAST_EXCHANGE_AHEAD) {
        Some(last) if obtained < last && last < regular => last,
        _ => regular,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Issuer;

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::minutes(minutes)
    }

    struct Tokens(Issuer);

    impl Tokens {
        fn new() -> Tokens {
            Tokens(Issuer::es256("https://login.app.env0.com/", "key-1"))
        }

        /// A token that ends so many minutes after the start.
        fn ending(&self, minutes: i64, source: Source) -> OidcToken {
            OidcToken::own(&self.0.sign(&self.0.claims(at(minutes))), source).unwrap()
        }
    }

    fn ends(candidates: &Candidates, now: DateTime<Utc>) -> Vec<i64> {
        candidates.in_order(now, true).iter().map(|token| (token.expires_at.unwrap() - at(0)).num_minutes()).collect()
    }

    #[test]
    fn the_newest_comes_first_refused_ones_last_and_expired_ones_never() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        for minutes in [20, 60, 40] {
            assert!(candidates.add(tokens.ending(minutes, Source::HandOver), at(0)));
        }
        assert_eq!(ends(&candidates, at(0)), [60, 40, 20]);
        let newest = candidates.in_order(at(0), true).remove(0);
        candidates.judged(&newest, true);
        assert_eq!(ends(&candidates, at(0)), [40, 20, 60]);
        assert_eq!(candidates.in_order(at(0), false).len(), 2);
        assert_eq!(candidates.last_expiry(), Some(at(40)), "a refused token promises nothing");
        assert_eq!(ends(&candidates, at(22)), [40, 60]);
        candidates.judged(&newest, false);
        assert_eq!(ends(&candidates, at(22)), [60, 40]);
    }

    #[test]
    fn the_same_token_counts_once_whatever_its_source() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        let token = tokens.ending(60, Source::HandOver);
        let text = token.expose().to_owned();
        assert!(candidates.add(token, at(0)));
        assert!(!candidates.add(OidcToken::own(&text, Source::File).unwrap(), at(0)));
        assert_eq!(candidates.all().count(), 1);
    }

    #[test]
    fn sixteen_are_kept_refused_ones_go_first_then_the_oldest() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        for minutes in 1..=16 {
            candidates.add(tokens.ending(minutes * 10, Source::HandOver), at(0));
        }
        let newest = candidates.in_order(at(0), true).remove(0);
        candidates.judged(&newest, true);
        candidates.add(tokens.ending(200, Source::HandOver), at(0));
        assert_eq!(ends(&candidates, at(0))[..2], [200, 150]);
        assert_eq!(candidates.all().count(), MAX_TOKENS);
        candidates.add(tokens.ending(210, Source::HandOver), at(0));
        assert_eq!(ends(&candidates, at(0)).last(), Some(&20));
    }

    #[test]
    fn a_session_is_replaced_five_minutes_ahead_or_after_two_thirds_when_it_is_short() {
        assert_eq!(refresh_at(at(0), at(60), None), at(55));
        assert_eq!(refresh_at(at(0), at(15), None), at(10));
        assert_eq!(refresh_at(at(0), at(12), None), at(8));
        assert_eq!(refresh_at(at(0), at(0) + TimeDelta::seconds(3), None), at(0) + TimeDelta::seconds(2));
    }

    #[test]
    fn a_session_is_replaced_once_more_shortly_before_the_last_token_ends() {
        assert_eq!(refresh_at(at(0), at(60), Some(at(30))), at(28));
        assert_eq!(refresh_at(at(28), at(88), Some(at(30))), at(83), "once");
        assert_eq!(refresh_at(at(0), at(60), Some(at(300))), at(55), "not before it is the last chance");
    }
}
