//! The tokens at hand, in the order in which STS is asked about them. Pure: the time is a parameter.

// Ends are foreign numbers: every step from one moment to another is a checked one.
#![warn(clippy::arithmetic_side_effects)]

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use chrono::{DateTime, TimeDelta, Utc};

use crate::batch::Sha256;
use crate::oidc::{OidcToken, Source};

/// More would not help: they are all of one organization, and the newest is the best.
pub(super) const MAX_TOKENS: usize = 16;
/// Tokens that STS has refused are known again, so that who hands them over again takes no place of those that STS has
/// not judged. Of more than so many the first are forgotten.
const REFUSALS_MAX: usize = 1024;
/// A token is still shown to STS this long after its end, as our clock may be ahead.
const EXPIRY_LEEWAY: TimeDelta = TimeDelta::seconds(60);
/// Sessions of at least [`LONG_SESSION`] are replaced this long before their end, shorter ones after two thirds.
const REFRESH_AHEAD: TimeDelta = TimeDelta::minutes(5);
const LONG_SESSION: TimeDelta = TimeDelta::minutes(15);
/// How long before the last token's end the session is replaced once more, to outlive it by most; of a token that comes
/// shortly before its end, in the last third of what is left.
const LAST_EXCHANGE_AHEAD: TimeDelta = TimeDelta::minutes(2);

#[derive(Default)]
pub(super) struct Candidates {
    at_hand: Vec<Candidate>,
    refusals: VecDeque<Refusal>,
    hasher: RandomState,
}

struct Candidate {
    token: OidcToken,
    groups: Groups,
    /// STS refused it the last time.
    set_aside: bool,
    /// The source that it came from holds another one by now.
    replaced: bool,
    /// It gave the last session: it stays until it ends, or until another one gives a session.
    has_given: bool,
    /// When it is to be exchanged once more, where no other ends later.
    last_exchange: Option<DateTime<Utc>>,
}

/// That STS refused a token, until the token ends.
struct Refusal {
    digest: Sha256,
    groups: Groups,
    end: DateTime<Utc>,
}

/// What a token has in common with others: its project, all that STS judges it by beside its end, the network that it came
/// from, and the address. Hashes, since refusals are many. STS is asked first about tokens of those groups of which it has
/// refused the fewest, in this order: so hundreds of useless tokens, each from an address of its own, delay a good one by as
/// many questions only where they are of as many projects, or come from as many networks.
type Groups = [u64; 4];

/// What became of a token that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is new, and STS will be asked about it.
    Accepted,
    /// It is at hand already.
    Known,
    /// STS has refused it: it is tried again, after all others, while it is at hand and there is no session.
    SetAside,
    /// It was not taken: those at hand end later, and STS has not judged them yet.
    NoRoom,
}

impl Candidates {
    /// Takes a token in, where there is room for it or it is better than one of those at hand. One of the operator's
    /// own is tried before the one that its source had until now.
    pub(super) fn add(&mut self, token: OidcToken, now: DateTime<Utc>) -> Offer {
        let source = token.source;
        for candidate in self.at_hand.iter_mut().filter(|candidate| candidate.token.source == source) {
            candidate.replaced = source.is_configured() && !candidate.token.same(&token);
        }
        self.at_hand.retain(|candidate| !candidate.replaced || candidate.has_given);
        if let Some(known) = self.at_hand.iter().find(|candidate| candidate.token.same(&token)) {
            return if known.set_aside { Offer::SetAside } else { Offer::Known };
        }
        self.at_hand.retain(|candidate| !expired(&candidate.token, now));
        let set_aside = self.refusals.iter().any(|refusal| refusal.digest == token.digest());
        let groups = self.groups(&token);
        let last_exchange = token.expires_at.and_then(|end| last_exchange(end, now));
        let candidate =
            Candidate { token: token.clone(), groups, set_aside, replaced: false, has_given: false, last_exchange };
        self.at_hand.push(candidate);
        while self.at_hand.len() > MAX_TOKENS {
            self.drop_one();
        }
        match self.at_hand.iter().any(|candidate| candidate.token.same(&token)) {
            _ if set_aside => Offer::SetAside,
            true => Offer::Accepted,
            false => Offer::NoRoom,
        }
    }

    /// Drops a refused one, else one of the groups of which STS has refused the most, else of the largest ones: so that no
    /// flood can push out another's only token. In the group, the one that ends first goes. The operator's own stay, and the
    /// one that gave the last session.
    fn drop_one(&mut self) {
        let may_go =
            |(_, candidate): &(usize, &Candidate)| !candidate.token.source.is_configured() && !candidate.has_given;
        let worst = self.at_hand.iter().enumerate().filter(may_go).max_by_key(|(_, candidate)| {
            let alike = alike(&candidate.groups, self.at_hand.iter().map(|other| &other.groups));
            (candidate.set_aside, self.refused_of(&candidate.groups), alike, Reverse(end(&candidate.token)))
        });
        let worst = worst.map(|(index, _)| index);
        self.at_hand.remove(worst.unwrap_or_default());
    }

    /// How many tokens STS has refused of each of the groups.
    fn refused_of(&self, groups: &Groups) -> [usize; 4] {
        alike(groups, self.refusals.iter().map(|refusal| &refusal.groups))
    }

    fn groups(&self, token: &OidcToken) -> Groups {
        let source = token.source.as_str();
        // Nobody else's refusals count for what the operator has configured.
        if token.source.is_configured() {
            return [self.hasher.hash_one(source); 4];
        }
        let [project, kind] = token.judged_by().map(|parts| self.hasher.hash_one(parts));
        let [network, address] =
            [token.client.map(network_of), token.client].map(|from| self.hasher.hash_one((source, from)));
        [project, kind, network, address]
    }

    /// Those that have not expired: of the groups of which STS has refused the least first, and of those the newest; those
    /// that their source has replaced come later, and the ones that STS refused last, or not at all where `with_refused` is
    /// false.
    pub(super) fn in_order(&self, now: DateTime<Utc>, with_refused: bool) -> Vec<&OidcToken> {
        let usable = |candidate: &&Candidate| !expired(&candidate.token, now) && (with_refused || !candidate.set_aside);
        let mut usable: Vec<_> = self.at_hand.iter().filter(usable).collect();
        usable.sort_by_cached_key(|candidate| self.rank(candidate));
        usable.into_iter().map(|candidate| &candidate.token).collect()
    }

    fn rank(&self, candidate: &Candidate) -> impl Ord + use<> {
        let refused = self.refused_of(&candidate.groups);
        (candidate.set_aside, candidate.replaced, refused, Reverse(end(&candidate.token)))
    }

    /// STS refused a token.
    pub(super) fn refused(&mut self, token: &OidcToken, now: DateTime<Utc>) {
        for candidate in self.at_hand.iter_mut().filter(|candidate| candidate.token.same(token)) {
            candidate.set_aside = true;
        }
        self.refusals.retain(|refusal| refusal.digest != token.digest() && !is_over(refusal.end, now));
        self.refusals.push_back(Refusal { digest: token.digest(), groups: self.groups(token), end: end(token) });
        if self.refusals.len() > REFUSALS_MAX {
            self.refusals.pop_front();
        }
    }

    /// A token gave a session: those that were kept only because they had given one before may go.
    pub(super) fn gave_a_session(&mut self, token: &OidcToken) {
        self.refusals.retain(|refusal| refusal.digest != token.digest());
        for candidate in &mut self.at_hand {
            candidate.has_given = candidate.token.same(token);
            candidate.set_aside &= !candidate.has_given;
        }
        self.at_hand.retain(|candidate| !candidate.replaced || candidate.has_given);
    }

    /// The latest end among the tokens from `source` that STS didn't refuse.
    pub(super) fn last_expiry_of(&self, source: Source) -> Option<DateTime<Utc>> {
        let of_source = self.good().filter(|candidate| candidate.token.source == source);
        of_source.filter_map(|candidate| candidate.token.expires_at).max()
    }

    /// When the session is to be replaced once more, so that it outlives all tokens that STS didn't refuse by most.
    pub(super) fn last_exchange(&self) -> Option<DateTime<Utc>> {
        self.good().filter_map(|candidate| candidate.last_exchange).max()
    }

    fn good(&self) -> impl Iterator<Item = &Candidate> {
        self.at_hand.iter().filter(|candidate| !candidate.set_aside)
    }

    /// Every token, and whether STS refused it.
    pub(super) fn all(&self) -> impl Iterator<Item = (&OidcToken, bool)> {
        self.at_hand.iter().map(|candidate| (&candidate.token, candidate.set_aside))
    }
}

/// How many of `others` are of each of the groups.
fn alike<'a>(groups: &Groups, others: impl Iterator<Item = &'a Groups> + Clone) -> [usize; 4] {
    std::array::from_fn(|level| others.clone().filter(|other| other[level] == groups[level]).count())
}

/// The network of an address: its /24, or its /48 of IPv6.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 80 << 80).into(),
    }
}

fn end(token: &OidcToken) -> DateTime<Utc> {
    token.expires_at.unwrap_or(DateTime::<Utc>::MAX_UTC)
}

fn expired(token: &OidcToken, now: DateTime<Utc>) -> bool {
    is_over(end(token), now)
}

fn is_over(end: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(end) > EXPIRY_LEEWAY
}

/// When a token that is taken in at `now` is exchanged for the last time before its end.
fn last_exchange(end: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let third = end.signed_duration_since(now).checked_div(3)?;
    end.checked_sub_signed(third.min(LAST_EXCHANGE_AHEAD))
}

/// When a session that lasts from `obtained` to `expires` is to be replaced, where one shall be made at `last_exchange`,
/// too.
pub(super) fn refresh_at(
    obtained: DateTime<Utc>,
    expires: DateTime<Utc>,
    last_exchange: Option<DateTime<Utc>>,
) -> DateTime<Utc> {
    let lifetime = expires.signed_duration_since(obtained);
    let regular = match lifetime >= LONG_SESSION {
        true => expires.checked_sub_signed(REFRESH_AHEAD),
        false => lifetime.checked_mul(2).and_then(|twice| obtained.checked_add_signed(twice.checked_div(3)?)),
    };
    let regular = regular.unwrap_or(obtained);
    match last_exchange {
        Some(last) if obtained < last && last < regular => last,
        _ => regular,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects)]

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
            assert_eq!(candidates.add(tokens.ending(minutes, Source::HandOver), at(0)), Offer::Accepted);
        }
        assert_eq!(ends(&candidates, at(0)), [60, 40, 20]);
        let newest = candidates.in_order(at(0), true)[0].clone();
        candidates.refused(&newest, at(0));
        assert_eq!(ends(&candidates, at(0)), [40, 20, 60]);
        assert_eq!(candidates.in_order(at(0), false).len(), 2);
        assert_eq!(candidates.last_expiry_of(Source::HandOver), Some(at(40)), "a refused token promises nothing");
        assert_eq!(candidates.last_exchange(), Some(at(38)));
        assert_eq!(ends(&candidates, at(22)), [40, 60]);
        candidates.gave_a_session(&newest);
        assert_eq!(ends(&candidates, at(22)), [60, 40]);
    }

    #[test]
    fn the_same_token_counts_once_whatever_its_source() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        let token = tokens.ending(60, Source::HandOver);
        let text = token.expose().to_owned();
        assert_eq!(candidates.add(token, at(0)), Offer::Accepted);
        assert_eq!(candidates.add(OidcToken::own(&text, Source::File).unwrap(), at(0)), Offer::Known);
        assert_eq!(candidates.all().count(), 1);
    }

    #[test]
    fn sixteen_are_kept_refused_ones_go_first_then_the_oldest() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        for minutes in 1..=16 {
            candidates.add(tokens.ending(minutes * 10, Source::HandOver), at(0));
        }
        let newest = candidates.in_order(at(0), true)[0].clone();
        candidates.refused(&newest, at(0));
        candidates.add(tokens.ending(200, Source::HandOver), at(0));
        assert_eq!(ends(&candidates, at(0))[..2], [200, 150]);
        assert_eq!(candidates.all().count(), MAX_TOKENS);
        candidates.add(tokens.ending(210, Source::HandOver), at(0));
        assert_eq!(ends(&candidates, at(0)).last(), Some(&20));
    }

    /// A token of another kind than [`Tokens::ending`]'s.
    fn stranger(tokens: &Tokens, minutes: i64) -> OidcToken {
        let mut claims = tokens.0.claims(at(minutes));
        claims["sub"] = "auth0|stranger".into();
        OidcToken::own(&tokens.0.sign(&claims), Source::HandOver).unwrap()
    }

    #[test]
    fn strangers_by_the_dozen_never_push_out_the_token_that_gave_a_session() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        let good = tokens.ending(30, Source::HandOver);
        candidates.add(good.clone(), at(0));
        candidates.gave_a_session(&good);
        for minutes in 1..=40 {
            candidates.add(tokens.ending(100 + minutes, Source::HandOver), at(0));
        }
        assert!(ends(&candidates, at(0)).contains(&30));
        let newer = candidates.in_order(at(0), true)[0].clone();
        candidates.gave_a_session(&newer);
        candidates.add(tokens.ending(200, Source::HandOver), at(0));
        assert!(!ends(&candidates, at(0)).contains(&30), "another one has given a session since");
    }

    #[test]
    fn strangers_of_one_kind_never_push_out_the_only_token_of_another_unjudged() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        candidates.add(tokens.ending(30, Source::HandOver), at(0));
        for minutes in 1..=40 {
            candidates.add(stranger(&tokens, 100 + minutes), at(0));
        }
        assert_eq!(ends(&candidates, at(0)).last(), Some(&30));
        assert_eq!(candidates.all().count(), MAX_TOKENS);
    }

    #[test]
    fn no_address_pushes_out_anothers_only_token_and_the_refused_ones_come_last() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        let from = |host: u8, mut token: OidcToken| {
            token.client = Some([192, 0, 2, host].into());
            token
        };
        let good = from(1, tokens.ending(30, Source::HandOver));
        assert_eq!(candidates.add(good.clone(), at(0)), Offer::Accepted);
        for minutes in 1..=40 {
            candidates.add(from(2, tokens.ending(100 + minutes, Source::HandOver)), at(0));
        }
        assert_eq!(ends(&candidates, at(0)).first(), Some(&140));
        let newest = candidates.in_order(at(0), true)[0].clone();
        candidates.refused(&newest, at(0));
        assert_eq!(ends(&candidates, at(0)).first(), Some(&30));
        for host in 3..=40 {
            let token = from(host, tokens.ending(200 + i64::from(host), Source::HandOver));
            candidates.add(token.clone(), at(0));
            candidates.refused(&token, at(0));
        }
        assert!(ends(&candidates, at(0)).contains(&30));
    }

    #[test]
    fn a_refusal_is_remembered_until_the_token_ends_and_for_a_thousand_of_them() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        let refused = tokens.ending(30, Source::HandOver);
        candidates.refused(&refused, at(0));
        assert_eq!(candidates.add(refused.clone(), at(0)), Offer::SetAside);
        assert_eq!(candidates.last_expiry_of(Source::HandOver), None, "it was refused before");
        for minutes in 0..2000 {
            let mut other = OidcToken::own(&format!("token-{minutes}"), Source::HandOver).unwrap();
            other.expires_at = Some(at(60));
            candidates.refused(&other, at(0));
        }
        assert_eq!(candidates.refusals.len(), REFUSALS_MAX);
        candidates.refused(&refused, at(62));
        assert_eq!(candidates.refusals.len(), 1, "all others have ended");
        candidates.gave_a_session(&refused);
        assert!(candidates.refusals.is_empty());
    }

    #[test]
    fn a_source_of_the_operators_own_keeps_its_place_and_its_last_good_token() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        let (old, new) = (tokens.ending(30, Source::File), tokens.ending(20, Source::File));
        candidates.add(old.clone(), at(0));
        candidates.gave_a_session(&old);
        candidates.add(tokens.ending(10, Source::Url), at(0));
        for minutes in 1..=20 {
            candidates.add(tokens.ending(100 + minutes, Source::HandOver), at(0));
        }
        candidates.add(new.clone(), at(0));
        let kept = ends(&candidates, at(0));
        assert!([10, 20, 30].iter().all(|end| kept.contains(end)), "{kept:?}");
        assert_eq!(kept.last(), Some(&30), "the file's new token is tried before the one that it replaced");
        candidates.gave_a_session(&new);
        assert!(!ends(&candidates, at(0)).contains(&30));
    }

    #[test]
    fn what_is_not_taken_or_was_refused_is_never_said_to_be_accepted() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        for minutes in 101..=116 {
            candidates.add(tokens.ending(minutes, Source::HandOver), at(0));
        }
        for _ in 0..2 {
            assert_eq!(candidates.add(tokens.ending(50, Source::HandOver), at(0)), Offer::NoRoom);
        }
        let newest = candidates.in_order(at(0), true)[0].clone();
        assert_eq!(candidates.add(newest.clone(), at(0)), Offer::Known);
        candidates.refused(&newest, at(0));
        assert_eq!(candidates.add(newest, at(0)), Offer::SetAside);
        assert_eq!(candidates.add(tokens.ending(50, Source::HandOver), at(0)), Offer::Accepted);
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
        assert_eq!(refresh_at(at(0), at(60), last_exchange(at(30), at(0))), at(28));
        assert_eq!(refresh_at(at(28), at(88), last_exchange(at(30), at(0))), at(83), "once");
        assert_eq!(
            refresh_at(at(0), at(60), last_exchange(at(300), at(0))),
            at(55),
            "not before it is the last chance"
        );
    }

    #[test]
    fn the_last_end_of_tokens_is_told_by_their_source() {
        let (tokens, mut candidates) = (Tokens::new(), Candidates::default());
        for (minutes, source) in [(30, Source::HandOver), (40, Source::HandOver), (20, Source::File)] {
            candidates.add(tokens.ending(minutes, source), at(0));
        }
        let ends = Source::ALL.map(|source| candidates.last_expiry_of(source));
        assert_eq!(ends, [Some(at(40)), None, Some(at(20)), None, None]);
    }

    #[test]
    fn a_token_that_comes_shortly_before_its_end_is_exchanged_once_more_too() {
        let seconds = |seconds| at(0) + TimeDelta::seconds(seconds);
        let last = last_exchange(seconds(45), at(0));
        assert_eq!(last, Some(seconds(30)));
        assert_eq!(refresh_at(seconds(1), at(60), last), seconds(30));
        assert_eq!(refresh_at(seconds(30), at(90), last), at(85), "once");
    }
}
