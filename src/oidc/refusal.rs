//! Why a presented token isn't let in, and the tally of it that an operator sees.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::status::{RefusedTokens, Timestamp};

/// A reason is told again when what was found changes, but not more often: strangers choose what is found.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Why a presented token isn't let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The token breaks a rule: it is refused for good, or until its validity begins.
    #[error("the token is refused: {0}")]
    Refused(BrokenRule),
    /// Nothing can be said now: the issuer's keys are out of reach.
    #[error("the issuer's keys are out of reach: {0}")]
    Unavailable(String),
}

/// What is wrong with a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", reason.words())]
pub struct BrokenRule {
    /// Which rule it broke.
    pub reason: Reason,
    /// What the token has where the rule wants another: shortened, never verified.
    pub found: Option<String>,
}

impl From<Reason> for BrokenRule {
    fn from(reason: Reason) -> BrokenRule {
        BrokenRule { reason, found: None }
    }
}

/// The rules that a presented token can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // `words` says it.
pub enum Reason {
    Empty,
    TooLong,
    NotAJwt,
    Algorithm,
    CriticalExtension,
    Claims,
    Issuer,
    Expired,
    NotYetValid,
    NobodyConfigured,
    Subject,
    Organization,
    NotADeployment,
    UnknownKey,
    Signature,
}

impl Reason {
    /// As `/status` names it.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Empty => "empty",
            Reason::TooLong => "too_long",
            Reason::NotAJwt => "not_a_jwt",
            Reason::Algorithm => "algorithm",
            Reason::CriticalExtension => "critical_extension",
            Reason::Claims => "claims",
            Reason::Issuer => "issuer",
            Reason::Expired => "expired",
            Reason::NotYetValid => "not_yet_valid",
            Reason::NobodyConfigured => "nobody_configured",
            Reason::Subject => "subject",
            Reason::Organization => "organization",
            Reason::NotADeployment => "not_a_deployment",
            Reason::UnknownKey => "unknown_key",
            Reason::Signature => "signature",
        }
    }

    /// Continues "a token is refused: ".
    pub fn words(self) -> &'static str {
        match self {
            Reason::Empty => "it is empty",
            Reason::TooLong => "it is longer than any token",
            Reason::NotAJwt => "it is not a signed JWT",
            Reason::Algorithm => "it is not signed by RS256 or ES256",
            Reason::CriticalExtension => "it has a critical extension",
            Reason::Claims => "its claims can't be read",
            Reason::Issuer => "it has another issuer",
            Reason::Expired => "it has expired",
            Reason::NotYetValid => "it is not valid yet",
            Reason::NobodyConfigured => {
                "neither ENV0_S3_LOG_OIDC_SUBJECT nor ENV0_S3_LOG_OIDC_ORGANIZATION_ID lets any in"
            }
            Reason::Subject => "its subject is not a configured one",
            Reason::Organization => "its organization is not a configured one",
            Reason::NotADeployment => "it is a user's, not a deployment's",
            Reason::UnknownKey => "its key is not one of the issuer's",
            Reason::Signature => "its signature doesn't hold",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Reason::Empty => {
                "see that ENV0_OIDC_TOKEN is set where it is sent from: in env0, turn on \"Enable OIDC during deployments\""
            }
            Reason::Organization | Reason::NobodyConfigured => {
                "set ENV0_S3_LOG_OIDC_ORGANIZATION_ID to the env0 organization whose deployments are let in"
            }
            Reason::Subject => "set ENV0_S3_LOG_OIDC_SUBJECT to the sub of the tokens that are let in",
            Reason::Issuer => "send a token of this issuer, or set ENV0_S3_LOG_OIDC_ISSUER",
            Reason::Expired | Reason::NotYetValid => "send a fresh token, and see that this machine's clock is right",
            Reason::NotADeployment => "send the ENV0_OIDC_TOKEN of a deployment",
            Reason::UnknownKey | Reason::Signature => "see who sends it: the issuer has not signed it",
            Reason::TooLong | Reason::NotAJwt | Reason::Algorithm | Reason::CriticalExtension | Reason::Claims => {
                "send the ENV0_OIDC_TOKEN of a deployment as it is, without quotes or line breaks"
            }
        }
    }
}

/// Counts refusals by reason. Bounded by the number of reasons.
#[derive(Default)]
pub(super) struct Tally(Mutex<BTreeMap<Reason, Counted>>);

struct Counted {
    shown: RefusedTokens,
    told: Instant,
    told_found: Option<String>,
}

impl Tally {
    /// Counts a refusal, and tells the log of it where it is news. `configured` is what the rule wants.
    pub(super) fn add(&self, refusal: &BrokenRule, configured: Option<String>) {
        let (reason, now) = (refusal.reason, Instant::now());
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = counted.remove(&reason);
        let is_news = before.as_ref().is_none_or(|before| {
            before.told_found != refusal.found && now.duration_since(before.told) >= TOLD_AGAIN_AFTER
        });
        let count = before.as_ref().map_or(0, |before| before.shown.count).saturating_add(1);
        let shown = RefusedTokens {
            reason: reason.label().to_owned(),
            message: reason.words().to_owned(),
            count,
            found: refusal.found.clone(),
            configured,
            remedy: reason.remedy().to_owned(),
            last: Timestamp::now(),
        };
        if is_news {
            tracing::warn!(
                token.refusals = count,
                token.found = shown.found.as_deref(),
                token.configured = shown.configured.as_deref(),
                "refused an OIDC token: {}; {}",
                reason.words(),
                reason.remedy()
            );
        }
        let (told, told_found) = match before {
            Some(before) if !is_news => (before.told, before.told_found),
            _ => (now, refusal.found.clone()),
        };
        counted.insert(reason, Counted { shown, told, told_found });
    }

    /// A line for each reason that there was, for `/status`.
    pub(super) fn shown(&self) -> Vec<RefusedTokens> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.values().map(|counted| counted.shown.clone()).collect()
    }
}
