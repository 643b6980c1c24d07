//! An OIDC token: in memory only, never shown, judged by STS.

// Moments come from elsewhere: every step from one to another is a checked one.
#![warn(clippy::arithmetic_side_effects)]

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::batch::Sha256;
use crate::network::foreign_words;

/// `sub` and `iss` have no limit of their own; AWS takes 255 characters.
const SHOWN_CLAIM_MAX_CHARS: usize = 255;
const SHOWN_AUDIENCES_MAX: usize = 8;
/// How much of a subject is shown where many are listed: `auth0|63021f2c…`.
pub(super) const SHOWN_SUBJECT_CHARS: usize = 14;
/// 9999-12-31T23:59:59Z
const END_OF_9999: i64 = 253_402_300_799;

crate::metric_table::label_values! {
    "env0_s3_logs_oidc_token_expiry_timestamp_seconds", "source":
    /// Where a token came from.
    pub enum Source {
        /// Presented by a client and verified.
        HandOver = "hand-over",
        /// From the record of a pulled deployment, and verified.
        Record = "deployment-record",
        /// `ENV0_S3_LOG_OIDC_TOKEN_FILE`
        File = "file",
        /// `ENV0_S3_LOG_OIDC_TOKEN_URL`
        Url = "url",
        /// `ENV0_OIDC_TOKEN`
        Environment = "environment",
    }
}

impl Source {
    /// Whether it has one token at a time: the one that is configured there.
    pub fn is_configured(self) -> bool {
        !matches!(self, Source::HandOver | Source::Record)
    }
}

/// A candidate for the exchange at STS. In memory only, zeroed on drop, never shown.
#[derive(Debug, Clone)]
pub struct OidcToken {
    secret: SecretString,
    digest: Sha256,
    /// The `exp` claim, see [`moment`]; `None` when it can't be read: STS will judge.
    pub expires_at: Option<DateTime<Utc>>,
    /// Where it came from.
    pub source: Source,
    /// The address of the client that handed it over; what counts as one.
    pub client: Option<IpAddr>,
}

/// What a token says of itself, for the operator's eye: nothing of it was judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownClaims {
    /// `iss`
    pub issuer: Option<String>,
    /// `sub`
    pub subject: Option<String>,
    /// What STS compares with the trust policy's `:aud` and the provider's client ids: `azp`, where the token has
    /// one, else each `aud`.
    pub audience: Vec<String>,
    /// `organizationId`, with or without env0's prefix.
    pub organizations: Vec<String>,
    /// `iat`, see [`moment`].
    pub issued_at: Option<DateTime<Utc>>,
}

impl OidcToken {
    /// A token of the operator's own: nothing of it is judged here, but `None` is what can't be one:
    /// nothing but white space, or text.
    pub fn own(text: &str, source: Source) -> Option<OidcToken> {
        #[derive(Deserialize)]
        struct End {
            exp: Option<f64>,
        }
        let text = text.trim();
        let end: Option<End> = payload(text);
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| OidcToken::new(text, end.and_then(|end| end.exp), source))
    }

    pub(super) fn new(text: &str, exp: Option<f64>, source: Source) -> OidcToken {
        let (secret, digest) = (text.into(), Sha256::of(text.as_bytes()));
        OidcToken { secret, digest, expires_at: exp.map(moment), source, client: None }
    }

    /// Each text is cut and made of one line; all are empty where the token can't be read.
    pub fn claims(&self) -> ShownClaims {
        let claims: Map<String, Value> = payload(self.expose()).unwrap_or_default();
        let text =
            |value: &Value| value.as_str().map(|text| shortened(&foreign_words(text, &[]), SHOWN_CLAIM_MAX_CHARS));
        let texts = |value: &Value| match value {
            Value::Array(all) => all.iter().take(SHOWN_AUDIENCES_MAX).filter_map(text).collect(),
            one => text(one).into_iter().collect::<Vec<_>>(),
        };
        let claim = |name: &str| claims.get(name).and_then(text);
        let organizations = ["organizationId", "https://env0.com/organizationId"].into_iter().filter_map(claim);
        ShownClaims {
            issuer: claim("iss"),
            subject: claim("sub"),
            audience: claim("azp").map_or_else(|| claims.get("aud").map(texts).unwrap_or_default(), |azp| vec![azp]),
            organizations: organizations.collect(),
            issued_at: claims.get("iat").and_then(Value::as_f64).map(moment),
        }
    }

    /// What STS judges it by, beside its end: first subject, audience and the project among the session's tags, which few
    /// tokens of an organization differ in; then all of the tags, too.
    pub fn judged_by(&self) -> [String; 2] {
        let claims: Map<String, Value> = payload(self.expose()).unwrap_or_default();
        let tags = &claims.get("https://aws.amazon.com/tags").unwrap_or(&Value::Null)["principal_tags"];
        let audience = claims.get("azp").or(claims.get("aud"));
        let project = json!([claims.get("sub"), audience, tags.get("projectId")]);
        [format!("{project}"), format!("{project}{tags}")]
    }

    /// The token itself, for STS alone.
    pub fn expose(&self) -> &str {
        self.secret.expose_secret()
    }

    /// Tells it from all others, and gives nothing of it away.
    pub fn digest(&self) -> Sha256 {
        self.digest
    }

    /// Whether both are the same token, whatever their source.
    pub fn same(&self, other: &OidcToken) -> bool {
        self.digest == other.digest
    }

    /// Enough of the subject to tell one from another: `auth0|63021f2c…`.
    pub fn shortened_subject(&self) -> Option<String> {
        self.claims().subject.map(|subject| shortened(&subject, SHOWN_SUBJECT_CHARS))
    }
}

/// The first `chars` of `text`, with a mark where more follow.
pub(super) fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Seconds since 1970 that somebody else says, as a moment between 1970 and the end of 9999: so that nothing that is
/// reckoned from it leaves the calendar, and RFC 3339 has a form for it.
pub fn moment(seconds: f64) -> DateTime<Utc> {
    // A cast from a float saturates; what is not a number becomes 0.
    DateTime::from_timestamp((seconds as i64).clamp(0, END_OF_9999), 0).unwrap_or_default()
}

/// Whether `text` has the shape of a JWT, so that asking the issuer for keys is worth it.
pub fn looks_like_jwt(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

pub(super) fn payload<T: serde::de::DeserializeOwned>(token: &str) -> Option<T> {
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}
