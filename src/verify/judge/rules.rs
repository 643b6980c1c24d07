//! What the judge goes by, and what each rule says of one object.

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

use crate::batch::{LogType, Sha256};
use crate::chain::{ChainEntry, PublicKey, Signature};
use crate::verify::heads::KnownHead;
use crate::verify::report::Kind;

/// A chain, by its log type and instance.
pub(super) type Name = (LogType, String);

/// What to judge by.
#[derive(Debug, Default)]
pub(in crate::verify) struct Rules {
    pub(in crate::verify) bucket: String,
    pub(in crate::verify) bucket_path: String,
    /// First and last day of the window.
    pub(in crate::verify) from: Option<NaiveDate>,
    pub(in crate::verify) to: Option<NaiveDate>,
    /// Judge these instances only; all when empty.
    pub(in crate::verify) instances: Vec<String>,
    pub(in crate::verify) public_keys: Vec<PublicKey>,
    /// Chain heads that exist for certain, from `/status`.
    pub(in crate::verify) heads: Vec<KnownHead>,
    /// Chain heads that an earlier verification vouched for.
    pub(in crate::verify) anchors: Vec<KnownHead>,
    /// A lifecycle rule may have removed what was opened before this day.
    pub(in crate::verify) expired_before: Option<NaiveDate>,
    /// What was opened before this day may lack a signature.
    pub(in crate::verify) unsigned_before: Option<NaiveDate>,
    pub(in crate::verify) strict: bool,
    pub(in crate::verify) allow_empty: bool,
    pub(in crate::verify) now: DateTime<Utc>,
}

/// A reason not to take an object for what its metadata says.
pub(super) struct Doubt {
    pub(super) kind: Kind,
    pub(super) detail: String,
}

impl Rules {
    pub(super) fn judges(&self, instance: &str) -> bool {
        self.instances.is_empty() || self.instances.iter().any(|judged| judged == instance)
    }

    /// Why the object may be no part of the chain at all.
    ///
    /// `opened` is the time in its key, where the daemon makes such keys.
    pub(super) fn doubt(
        &self,
        entry: &ChainEntry,
        opened: Option<NaiveDateTime>,
        signature: Option<Signature>,
    ) -> Option<Doubt> {
        if opened.is_none() {
            let detail = "the daemon makes no such key: moved or copied".to_owned();
            return Some(Doubt { kind: Kind::Altered, detail });
        }
        if self.public_keys.is_empty() {
            return None;
        }
        let Some(signature) = signature else {
            if self.may_lack_a_signature(opened) {
                return None;
            }
            let detail = "written without a signing key (of days before the key: --unsigned-before DAY), or stripped of its signature".to_owned();
            return Some(Doubt { kind: Kind::Unsigned, detail });
        };
        let authentic = self.public_keys.iter().any(|key| key.verifies(entry, &signature));
        (!authentic).then(|| Doubt {
            kind: Kind::Altered,
            detail: "its signature holds under none of the public keys: key or metadata were changed, or another key \
                     signed it; which of them can't be told"
                .to_owned(),
        })
    }

    pub(super) fn may_lack_a_signature(&self, opened: Option<NaiveDateTime>) -> bool {
        let before = self.unsigned_before.zip(opened).is_some_and(|(day, opened)| opened.date() < day);
        before && !self.public_keys.is_empty()
    }

    /// Why the metadata can't be what was written.
    pub(super) fn contradiction(&self, entry: &ChainEntry) -> Option<Doubt> {
        let altered = |detail: String| Some(Doubt { kind: Kind::Altered, detail });
        if entry.sequence == 1 && entry.previous != Sha256::ZERO {
            return altered("number 1 names a batch before it".to_owned());
        }
        let mut known = self.heads.iter().chain(&self.anchors);
        let known = known.find(|head| head.names(entry) && head.sha256 != entry.sha256)?;
        altered(format!("its SHA-256 is {}; a head that was given says {}", entry.sha256, known.sha256))
    }
}
