//! Decides what the end of an attempt means for its batch. Pure: the flusher and the
//! spool's property tests both obey it.
//!
//! The role may be allowed PutObject alone, which can't ask what is in the bucket, so the order of the answers has to
//! tell. The same two answers mean different things:
//!
//! 1. The store's `412`, then a broken connection. Before the `412` no attempt of ours could have stored the object, so
//!    another writer owns the key, and the batch takes a new suffix. The broken connection doesn't tell whether the
//!    object was stored under the new key: the batch stays `.sending`, and the next `412` means that it was.
//! 2. A broken connection, then the store's `412`. The first attempt may have stored the object before its answer was
//!    lost, so the object under the key is the batch's own: it is delivered. A new suffix would store it twice.
//!
//! And a 200 with the checksum of other bytes: the store says that what it keeps under the key is not the batch, whatever
//! was sent before. The batch takes a new suffix, before its next PUT. Under the old one, a PUT whose answer is lost and
//! then a `412` would make those bytes pass for the batch. If only the checksum was wrong, it is stored twice, and not
//! lost.
//!
//! Two cases break the promise "exactly once":
//!
//! - Another writer owns the key, and its `412` is lost, or the process dies between that `412` and the new
//!   name's fsync. The next `412` is then taken for the batch's own object, and the batch is lost. The other
//!   writer must have chosen the same second and the same five of 62 characters, one chance in 916 million.
//!   The same holds for a store that keeps other bytes than it was sent, though their SHA-256 came with them.
//!   `verify` reports the missing number, or the altered object.
//! - A proxy that repeats a PUT by itself (nginx does, from one upstream to the next) makes the batch's own object the
//!   `412` of a first attempt. The batch is then stored under a second key, whose `env0-renamed-from` names the first,
//!   and `verify` reports the duplicate. `proxy_next_upstream off` ends it; AWS has no such proxy.

use crate::batch::Stage;
use crate::s3::{PutError, PutErrorKind};

/// How many new suffixes one attempt tries while other writers own the names; the next attempt goes on after a pause.
const RENAMES_MAX: usize = 8;
/// A `412` without a mark of the store may come from a proxy that refuses everything. This many in a row count as the
/// store's if it confirmed another object between each two: such a proxy would have refused that object, too.
const UNPROVEN_412S: u32 = 3;

/// What is known of a batch's earlier attempts under its name.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// One may have stored the object: its answer was lost or proves nothing, or it was made before a crash.
    pub(crate) answer_lost: bool,
    /// How many ended with a `412` without a mark of the store, with other objects confirmed in between.
    pub(crate) unproven_412s: u32,
    /// Whether the store confirmed another object since the last of those.
    pub(crate) object_since: bool,
    /// How many new suffixes this attempt has tried.
    pub(crate) renames: usize,
    /// What the store keeps under the name that the file still has is not the batch. No PUT may use the name again, even
    /// where the rename fails: if its answer were lost, the next `412` would make that object pass for ours.
    pub(crate) needs_new_name: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ended {
    /// The store confirmed the object.
    Stored,
    /// The store did not confirm it.
    Failed {
        /// Why.
        kind: PutErrorKind,
        /// Whether this attempt may have stored the object nevertheless.
        may_have_arrived: bool,
    },
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// This attempt stored the object.
    Delivered,
    /// An earlier attempt stored the object.
    DeliveredBefore,
    /// Another writer owns the key: the batch takes a new suffix, before its next PUT, and is sent at once.
    NewName,
    /// The batch waits for its next attempt.
    Wait {
        /// The stage that its file must have meanwhile.
        stage: Stage,
        /// Whether the file may be missing or changed, and has to be hashed again.
        check_file: bool,
    },
}

impl From<&Result<(), PutError>> for Ended {
    fn from(outcome: &Result<(), PutError>) -> Ended {
        match outcome {
            Ok(()) => Ended::Stored,
            Err(error) => Ended::Failed { kind: error.kind, may_have_arrived: error.may_have_arrived },
        }
    }
}

impl Ended {
    /// Whether the store answered that what it keeps under the key is not the batch.
    fn keeps_other_bytes(self) -> bool {
        matches!(self, Ended::Failed { kind: PutErrorKind::ChecksumRefused, may_have_arrived: true })
    }
}

impl Known {
    /// What is known of a batch that comes from the spool; see [`Batch::may_have_arrived`](crate::spool::Batch).
    pub(crate) fn found(may_have_arrived: bool) -> Known {
        Known { answer_lost: may_have_arrived, ..Known::default() }
    }

    fn may_have_arrived(&self) -> bool {
        self.answer_lost || self.unproven_412s > 0
    }

    /// What is known once this attempt is one of the earlier ones.
    pub(crate) fn after(self, ended: Ended, next: Next) -> Known {
        match (next, ended) {
            (Next::NewName, _) => Known { renames: self.renames + 1, needs_new_name: true, ..Known::default() },
            (_, Ended::Failed { kind: PutErrorKind::NameTakenUnproven, .. }) => {
                let counts = self.unproven_412s == 0 || self.object_since;
                Known { unproven_412s: self.unproven_412s + u32::from(counts), object_since: false, renames: 0, ..self }
            }
            (_, ended) if ended.keeps_other_bytes() => Known { needs_new_name: true, ..Known::default() },
            (_, Ended::Failed { may_have_arrived, .. }) => {
                Known { answer_lost: self.answer_lost || may_have_arrived, renames: 0, ..self }
            }
            (_, Ended::Stored) => self,
        }
    }
}

/// What comes after an attempt that ended so.
pub(crate) fn decide(known: Known, ended: Ended) -> Next {
    let Ended::Failed { kind, may_have_arrived } = ended else { return Next::Delivered };
    let proven =
        kind == PutErrorKind::NameTakenUnproven && known.object_since && known.unproven_412s + 1 >= UNPROVEN_412S;
    // An attempt that ended with the store's 412 stored nothing. Only one whose answer was lost may have.
    let may_be_ours = if proven { known.answer_lost } else { known.may_have_arrived() };
    match kind {
        PutErrorKind::NameTaken if may_be_ours => Next::DeliveredBefore,
        PutErrorKind::NameTakenUnproven if proven && may_be_ours => Next::DeliveredBefore,
        PutErrorKind::NameTaken if known.renames < RENAMES_MAX => Next::NewName,
        PutErrorKind::NameTakenUnproven if proven => Next::NewName,
        _ => Next::Wait {
            stage: match may_be_ours || may_have_arrived {
                true if !ended.keeps_other_bytes() => Stage::Sending,
                _ => Stage::Sealed,
            },
            check_file: matches!(kind, PutErrorKind::ChecksumRefused | PutErrorKind::FileUnreadable),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEN: Ended = Ended::Failed { kind: PutErrorKind::NameTaken, may_have_arrived: false };
    const UNPROVEN: Ended = Ended::Failed { kind: PutErrorKind::NameTakenUnproven, may_have_arrived: true };
    const LOST: Ended = Ended::Failed { kind: PutErrorKind::Timeout, may_have_arrived: true };
    const DENIED: Ended = Ended::Failed { kind: PutErrorKind::Denied, may_have_arrived: false };
    const SENDING: Next = Next::Wait { stage: Stage::Sending, check_file: false };
    const SEALED: Next = Next::Wait { stage: Stage::Sealed, check_file: false };

    /// What comes after each of these attempts. With `objects_between`, the store confirms another object before each.
    fn told(found: Known, attempts: &[Ended], objects_between: bool) -> Vec<Next> {
        let mut known = found;
        let step = |ended: &Ended| {
            known.object_since = objects_between;
            let next = decide(known, *ended);
            known = known.after(*ended, next);
            next
        };
        attempts.iter().map(step).collect()
    }

    #[test]
    fn the_same_two_answers_mean_different_things_in_two_orders() {
        let new = Known::default();
        assert_eq!(told(new, &[TAKEN, LOST], false), [Next::NewName, SENDING]);
        assert_eq!(told(new, &[LOST, TAKEN], false), [SENDING, Next::DeliveredBefore]);
        assert_eq!(told(new, &[TAKEN, LOST, TAKEN], false), [Next::NewName, SENDING, Next::DeliveredBefore]);
        assert_eq!(told(new, &[DENIED, TAKEN], false), [SEALED, Next::NewName]);
        assert_eq!(told(new, &[LOST, DENIED, TAKEN], false), [SENDING, SENDING, Next::DeliveredBefore]);
        assert_eq!(told(new, &[Ended::Stored], false), [Next::Delivered]);
        assert_eq!(told(Known::found(true), &[TAKEN], false), [Next::DeliveredBefore], "after a crash");
    }

    #[test]
    fn a_412_that_nobody_signs_is_believed_after_three_with_objects_in_between() {
        let lost = Known::found(true);
        assert_eq!(told(lost, &[UNPROVEN; 3], true), [SENDING, SENDING, Next::DeliveredBefore]);
        assert_eq!(told(lost, &[UNPROVEN; 9], false), [SENDING; 9], "everything may be refused so");
        let new = Known::default();
        assert_eq!(told(new, &[UNPROVEN; 3], true), [SENDING, SENDING, Next::NewName], "nothing of ours was stored");
        assert_eq!(told(new, &[UNPROVEN, LOST, UNPROVEN, UNPROVEN], true)[3], Next::DeliveredBefore);
        assert_eq!(told(new, &[UNPROVEN, TAKEN], true)[1], Next::DeliveredBefore);
    }

    #[test]
    fn what_the_store_keeps_with_other_bytes_is_never_taken_for_the_batch() {
        const OTHER: Ended = Ended::Failed { kind: PutErrorKind::ChecksumRefused, may_have_arrived: true };
        const REFUSED: Ended = Ended::Failed { kind: PutErrorKind::ChecksumRefused, may_have_arrived: false };
        let doubted = |stage| Next::Wait { stage, check_file: true };
        let (sealed, sending) = (doubted(Stage::Sealed), doubted(Stage::Sending));
        for found in [Known::default(), Known::found(true)] {
            assert_eq!(decide(found, OTHER), sealed);
            assert!(found.after(OTHER, sealed).needs_new_name);
            // Under the new name.
            assert_eq!(told(found, &[OTHER, TAKEN], false), [sealed, Next::NewName]);
            assert_eq!(told(found, &[OTHER, LOST, TAKEN], false), [sealed, SENDING, Next::DeliveredBefore]);
        }
        // A body that did not arrive as it was sent says nothing of an earlier one.
        assert_eq!(told(Known::found(true), &[REFUSED, TAKEN], false), [sending, Next::DeliveredBefore]);
    }

    #[test]
    fn a_ninth_new_name_is_left_to_the_next_attempt() {
        let next = told(Known::default(), &[TAKEN; 10], false);
        assert_eq!(next[..8], [Next::NewName; 8]);
        assert_eq!(next[8..], [SEALED, Next::NewName]);
    }

    #[test]
    fn a_file_is_doubted_where_its_bytes_were_refused_or_could_not_be_read() {
        for (kind, check_file) in [
            (PutErrorKind::ChecksumRefused, true),
            (PutErrorKind::FileUnreadable, true),
            (PutErrorKind::Denied, false),
            (PutErrorKind::NotS3, false),
        ] {
            let next = decide(Known::default(), Ended::Failed { kind, may_have_arrived: false });
            assert_eq!(next, Next::Wait { stage: Stage::Sealed, check_file }, "{kind:?}");
        }
    }
}
