//! The objects of a test's bucket, and what may become of a PUT.

use crate::batch::{Codec, SealedName};

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

/// The ids of the events in an object's bytes.
pub(super) fn plain_lines(name: &SealedName, body: &[u8]) -> Vec<u64> {
    let plain = match name.batch.codec {
        Codec::None => body.to_vec(),
        Codec::Gzip => {
            let mut plain = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body), &mut plain).unwrap();
            plain
        }
        Codec::Zstd => zstd::decode_all(body).unwrap(),
    };
    let text = String::from_utf8(plain).unwrap();
    let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64().unwrap();
    text.lines().map(id).collect()
}
