//! The chain entry that every object carries as S3 user metadata, and its signature. Pure.
//!
//! Each instance numbers the batches of each log type 1, 2, 3, … and names the hash of the batch before.
//! `src/verify/README.md` specifies the format for verifiers in other languages.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use crate::batch::{LogType, ParseError, Sha256, Suffix};
use crate::pem;

const INSTANCE: &str = "env0-instance";
const SEQUENCE: &str = "env0-sequence";
const RECORDS: &str = "env0-records";
const SHA256: &str = "env0-sha256";
const PREVIOUS: &str = "env0-previous-sha256";
const RENAMED_FROM: &str = "env0-renamed-from";
const GAPS: &str = "env0-gaps";
const SIGNATURE: &str = "env0-signature";

/// First line of the signed text; a later format has another.
const SIGNED_FORMAT: &str = "env0-s3-logs/1";

/// Longest `env0-gaps` value. Names and values of all metadata together stay under S3's limit of 2,048 bytes.
pub const GAPS_MAX_BYTES: usize = 1024;

/// Longest instance id.
pub const INSTANCE_MAX_BYTES: usize = 64;

/// What an object's metadata says about its place in its instance's and type's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEntry {
    /// The object's whole key, bucket path included.
    pub key: String,
    /// The suffix that the batch was acknowledged with, where another writer owned that key.
    pub renamed_from: Option<Suffix>,
    /// Id in the spool's manifest: 1 to [`INSTANCE_MAX_BYTES`] of `[A-Za-z0-9._-]`.
    pub instance: String,
    /// Log type; each has its own chain.
    pub log_type: LogType,
    /// Number of the batch in the chain, from 1.
    pub sequence: u64,
    /// Events in the body, 1 or more.
    pub records: u64,
    /// Hash of the body as stored, compressed where it is.
    pub sha256: Sha256,
    /// Hash of the batch with the number before, [`Sha256::ZERO`] for number 1.
    pub previous: Sha256,
    /// Numbers of this chain whose batches are in quarantine.
    pub gaps: Gaps,
}

/// Metadata that is no chain entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// None of the chain's names is there: not an object of this daemon, or one stripped of its metadata.
    #[error("no env0-* metadata")]
    Absent,
    /// Some are there, this one is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that the daemon never writes.
    #[error("{0} is {1:?}, which is not well-formed")]
    Malformed(&'static str, String),
}

impl ChainEntry {
    /// Names and values of the object's user metadata, without `x-amz-meta-`; signed when there is a `key`.
    pub fn metadata(&self, key: Option<&SigningKey>) -> Vec<(&'static str, String)> {
        let mut metadata = vec![
            (INSTANCE, self.instance.clone()),
            (SEQUENCE, self.sequence.to_string()),
            (RECORDS, self.records.to_string()),
            (SHA256, self.sha256.to_string()),
            (PREVIOUS, self.previous.to_string()),
        ];
        metadata.extend(self.renamed_from.map(|suffix| (RENAMED_FROM, suffix.to_string())));
        metadata.extend((!self.gaps.is_empty()).then(|| (GAPS, self.gaps.to_string())));
        metadata.extend(key.map(|key| (SIGNATURE, BASE64.encode(key.sign(self)))));
        metadata
    }

    /// Reads back what [`ChainEntry::metadata`] wrote, with the signature where there is one.
    ///
    /// Strict: a value in any other form than the one written is [`MetadataError::Malformed`]. Names are
    /// expected in lower case, as S3 returns them; names of others are ignored.
    pub fn from_metadata(
        key: &str,
        log_type: LogType,
        metadata: &HashMap<String, String>,
    ) -> Result<(ChainEntry, Option<Signature>), MetadataError> {
        let required = [INSTANCE, SEQUENCE, RECORDS, SHA256, PREVIOUS];
        if !required.iter().any(|name| metadata.contains_key(*name)) {
            return Err(MetadataError::Absent);
        }
        let entry = ChainEntry {
            key: key.to_owned(),
            renamed_from: optional(metadata, RENAMED_FROM)?,
            instance: required_field::<Instance>(metadata, INSTANCE)?.0,
            log_type,
            sequence: required_field::<Positive>(metadata, SEQUENCE)?.0,
            records: required_field::<Positive>(metadata, RECORDS)?.0,
            sha256: required_field(metadata, SHA256)?,
            previous: required_field(metadata, PREVIOUS)?,
            gaps: optional(metadata, GAPS)?.unwrap_or_default(),
        };
        Ok((entry, optional(metadata, SIGNATURE)?))
    }

    /// What is signed: one field a line, each line ended by `\n`; empty where a field has nothing.
    fn signed_text(&self) -> String {
        let ChainEntry { key, renamed_from, instance, log_type, sequence, records, sha256, previous, gaps } = self;
        let renamed_from = renamed_from.map(|suffix| suffix.to_string()).unwrap_or_default();
        format!(
            "{SIGNED_FORMAT}\n{key}\n{renamed_from}\n{instance}\n{log_type}\n\
             {sequence}\n{records}\n{sha256}\n{previous}\n{gaps}\n"
        )
    }
}

fn optional<T: FromStr>(metadata: &HashMap<String, String>, name: &'static str) -> Result<Option<T>, MetadataError> {
    let parse = |value: &String| value.parse().map_err(|_| MetadataError::Malformed(name, value.clone()));
    metadata.get(name).map(parse).transpose()
}

fn required_field<T: FromStr>(metadata: &HashMap<String, String>, name: &'static str) -> Result<T, MetadataError> {
    optional(metadata, name)?.ok_or(MetadataError::Missing(name))
}

struct Instance(String);

impl FromStr for Instance {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let well_formed = (1..=INSTANCE_MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed);
        well_formed.then(|| Instance(text.to_owned())).ok_or(ParseError("instance id"))
    }
}

/// A number from 1, in the one way to write it: digits, no sign, no leading zero.
struct Positive(u64);

impl FromStr for Positive {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = if text.starts_with(|first: char| matches!(first, '1'..='9')) { text.parse().ok() } else { None };
        number.map(Positive).ok_or(ParseError("number"))
    }
}

/// A set of sequence numbers, written as rising ranges: `3,7-9`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps(Vec<(u64, u64)>);

impl Gaps {
    /// As many of the lowest `sequences` as an object's metadata can name in [`GAPS_MAX_BYTES`]; the
    /// objects after it name the rest. Any order; repeated numbers count once.
    pub fn that_fit(sequences: &[u64]) -> Gaps {
        let mut sorted = sequences.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for sequence in sorted {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == sequence => *last = sequence,
                _ => ranges.push((sequence, sequence)),
            }
        }
        let mut length = 0;
        let fits = |range: &&(u64, u64)| {
            length += write_range(**range).len() + 1;
            length <= GAPS_MAX_BYTES + 1
        };
        let count = ranges.iter().take_while(fits).count();
        ranges.truncate(count);
        Gaps(ranges)
    }

    /// Whether `sequence` is named.
    pub fn contains(&self, sequence: u64) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&sequence))
    }

    /// First and last number of each range, rising, not touching.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Whether no number is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn write_range((first, last): (u64, u64)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

impl fmt::Display for Gaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{}", write_range(*range))?;
        }
        Ok(())
    }
}

impl FromStr for Gaps {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        const ERROR: ParseError = ParseError("list of gaps");
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for field in text.split(',') {
            let (first, last) = field.split_once('-').unwrap_or((field, field));
            let Positive(first) = first.parse().map_err(|_| ERROR)?;
            let Positive(last) = last.parse().map_err(|_| ERROR)?;
            let rising =
                ranges.last().is_none_or(|&(_, before)| before.checked_add(1).is_some_and(|next| next < first));
            if !rising || write_range((first, last)) != field || last < first {
                return Err(ERROR);
            }
            ranges.push((first, last));
        }
        Ok(Gaps(ranges))
    }
}

/// An Ed25519 signature, 64 bytes. Not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl FromStr for Signature {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Signature).ok_or(ParseError("signature"))
    }
}

/// A key file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not readable, or not a PEM file of the expected kind.
    #[error("{path}: {reason}; expected {expected}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Another algorithm's key.
    #[error("{path}: not an Ed25519 key; expected {expected}", path = path.display())]
    NotEd25519 {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
    },
}

/// Signs chain entries. Never shown by `Debug`.
pub struct SigningKey(Ed25519KeyPair);

const PRIVATE_KEY: &str = "a PKCS#8 PEM file, as `openssl genpkey -algorithm ed25519` makes it";
const PUBLIC_KEY: &str = "a PEM file, as `openssl pkey -in signing-key.pem -pubout` makes it";

impl SigningKey {
    /// Reads an unencrypted Ed25519 key in PKCS#8 PEM.
    pub fn from_pem_file(path: &Path) -> Result<SigningKey, KeyError> {
        let expected = PRIVATE_KEY;
        let der = pem::first::<PrivatePkcs8KeyDer<'_>>(path).map_err(|reason| KeyError::Pem {
            path: path.to_owned(),
            expected,
            reason,
        })?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der());
        pair.map(SigningKey).map_err(|_| KeyError::NotEd25519 { path: path.to_owned(), expected })
    }

    fn sign(&self, entry: &ChainEntry) -> [u8; 64] {
        let signature = self.0.sign(entry.signed_text().as_bytes());
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes (RFC 8032)")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

/// Checks the signatures of chain entries.
#[derive(Debug, Clone)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads an Ed25519 public key in SubjectPublicKeyInfo PEM (`BEGIN PUBLIC KEY`).
    pub fn from_pem_file(path: &Path) -> Result<PublicKey, KeyError> {
        // RFC 8410: SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING }, then the 32 bytes of the key.
        const HEADER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let expected = PUBLIC_KEY;
        let der = pem::first::<SubjectPublicKeyInfoDer<'_>>(path).map_err(|reason| KeyError::Pem {
            path: path.to_owned(),
            expected,
            reason,
        })?;
        let key = der.strip_prefix(&HEADER).and_then(|key| key.try_into().ok());
        key.map(PublicKey).ok_or_else(|| KeyError::NotEd25519 { path: path.to_owned(), expected })
    }

    /// Whether the holder of the private key signed exactly this entry.
    pub fn verifies(&self, entry: &ChainEntry, signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(entry.signed_text().as_bytes(), &signature.0).is_ok()
    }
}

#[cfg(test)]
pub(crate) mod tests;
