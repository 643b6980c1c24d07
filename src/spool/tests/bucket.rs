//! The objects of a test's bucket, and what may become of a PUT.

use crate::batch::SealedName;

/// What becomes of a PUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Stored,
    /// Stored, and the answer is lost.
    AnswerLost,
    /// Not stored, and the answer doesn't tell.
    LostOnTheWay,
    /// Refused by S3's own 4xx: known not to be stored.
    Refused,
    /// Another writer stored an object under the key first: 412 on the batch's first attempt.
    NameTaken,
    /// Something in between answers 412, without a mark of the store's, and lets nothing through.
    RefusedOnTheWay,
    /// The store says that the bytes are not those of the checksum, though they are.
    ChecksumRefused,
}

/// An object: its body and what its PUT said of it.
pub(crate) struct Object {
    pub(crate) body: Vec<u8>,
    /// The batch's name; none for another writer's object.
    pub(crate) name: Option<SealedName>,
    pub(crate) instance: String,
    pub(crate) gaps: Vec<u64>,
}
