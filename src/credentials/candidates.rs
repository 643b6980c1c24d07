//! The tokens at hand, in the order in which STS is asked about them. Pure: the time is a parameter.

use std::cmp::Reverse;

use chrono::{DateTime, TimeDelta, Utc};

use super::token::{OidcToken, Source};

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

    /// Those that have not expired: the ones that STS refused last, the newest first.
    pub(super) fn in_order(&self, now: DateTime<Utc>) -> Vec<OidcToken> {
        let mut usable: Vec<_> = self.0.iter().filter(|candidate| !expired(&candidate.token, now)).collect();
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
