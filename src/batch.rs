//! Log types, batch names, object keys and hashes, with strict parsers. Pure.
//!
//! A batch's file name is its whole state; no other file says anything of it:
//!
//! ```text
//! <opened>_<suffix>[.gz|.zst].open
//! <opened>_<suffix>[-<first suffix>][.gz|.zst].<sequence>.<records>.<sha256>.<previous>.<sealed|sending|sent>
//! ```
//!
//! `<opened>` is `YYYYMMDDTHHMMSS.ffffffZ`, UTC, and never repeats or goes back within a type, so
//! names sort in the order of acceptance. `<first suffix>` is there when another writer owned the
//! first key. The longest name has 229 bytes; file systems take 255.

mod by_type;
mod clock;
mod log_type;
mod parse_error;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, Utc};

pub use by_type::ByType;
pub use clock::{clock_problem, now};
pub use log_type::LogType;
pub use parse_error::ParseError;

/// How an object's body is encoded; fixed when its batch opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Codec {
    /// Plain NDJSON.
    #[default]
    None,
    /// gzip; the key ends in `.log.gz`.
    Gzip,
    /// Zstandard; the key ends in `.log.zst`.
    Zstd,
}

impl Codec {
    /// Every codec.
    pub const ALL: [Codec; 3] = [Codec::None, Codec::Gzip, Codec::Zstd];

    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Gzip => "gzip",
            Codec::Zstd => "zstd",
        }
    }

    /// What follows `.log` in the key and the suffix in the file name.
    pub fn extension(self) -> &'static str {
        match self {
            Codec::None => "",
            Codec::Gzip => ".gz",
            Codec::Zstd => ".zst",
        }
    }
}

/// SHA-256 of a batch's bytes. Displays as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// The hash that batch number 1 has in place of the hash of a batch before it.
    pub const ZERO: Sha256 = Sha256([0; 32]);

    /// Hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Sha256 {
        Sha256::from_digest(&aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
    }

    fn from_digest(digest: &aws_lc_rs::digest::Digest) -> Sha256 {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Sha256(bytes)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256 {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = ParseError("SHA-256");
        if text.len() != 64 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(error);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| error)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error)?;
        }
        Ok(Sha256(digest))
    }
}

/// Computes a SHA-256. A clone keeps the state to go back to when later bytes are taken back.
#[derive(Clone)]
pub struct Sha256Hasher(aws_lc_rs::digest::Context);

impl Default for Sha256Hasher {
    fn default() -> Self {
        Sha256Hasher(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }
}

impl Sha256Hasher {
    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes that were added.
    pub fn finish(self) -> Sha256 {
        Sha256::from_digest(&self.0.finish())
    }
}

/// The five random characters of a key, `[A-Za-z0-9]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Suffix([u8; 5]);

impl Suffix {
    /// A new suffix from the thread's cryptographically seeded generator.
    pub fn random() -> Suffix {
        use rand::RngExt;
        let mut generator = rand::rng();
        Suffix(std::array::from_fn(|_| generator.sample(rand::distr::Alphanumeric)))
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{}", *byte as char))
    }
}

impl FromStr for Suffix {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bytes: [u8; 5] = text.as_bytes().try_into().map_err(|_| ParseError("suffix"))?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(Suffix(bytes)).ok_or(ParseError("suffix"))
    }
}

/// What a batch's key is made of, beside log type and prefix; fixed from its opening on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchName {
    /// When the first event was received; microseconds, unique and rising within a type.
    pub opened: DateTime<Utc>,
    /// The key's five characters.
    pub suffix: Suffix,
    /// The suffix that the batch was opened and acknowledged with, where another writer owned the key with it.
    pub renamed_from: Option<Suffix>,
    /// The encoding of the object.
    pub codec: Codec,
}

const OPENED_FORMAT: &str = "%Y%m%dT%H%M%S%.6fZ";

impl BatchName {
    /// The next batch's name: opened `now`, but never at or before `last`, the opening of the batch
    /// before it, whatever the clock does.
    pub fn open(now: DateTime<Utc>, last: Option<DateTime<Utc>>, codec: Codec) -> BatchName {
        use chrono::{DurationRound, TimeDelta};
        let tick = TimeDelta::microseconds(1);
        let now = now.duration_trunc(tick).unwrap_or(now);
        let next = last.map(|last| last.checked_add_signed(tick).unwrap_or(last));
        let opened = next.map_or(now, |next| now.max(next));
        BatchName { opened, suffix: Suffix::random(), renamed_from: None, codec }
    }

    /// The same batch under a new suffix. `renamed_from` keeps the suffix that it was acknowledged with. The opening
    /// stays, because it identifies the batch.
    pub fn renamed(self) -> BatchName {
        let renamed_from = self.renamed_from.or(Some(self.suffix));
        BatchName { suffix: Suffix::random(), renamed_from, ..self }
    }
}

impl fmt::Display for BatchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.opened.format(OPENED_FORMAT), self.suffix)?;
        if let Some(first) = self.renamed_from {
            write!(f, "-{first}")?;
        }
        f.write_str(self.codec.extension())
    }
}

/// What is known of a sealed batch's object in S3; the file's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// No attempt can have stored it: a 412 means that another writer owns the name.
    Sealed,
    /// An attempt may have stored it: a 412 means that the object is ours.
    Sending,
    /// Delivered. The file is the chain's head, and empty, or a copy that waits for CloudWatch.
    Sent,
}

impl Stage {
    const ALL: [Stage; 3] = [Stage::Sealed, Stage::Sending, Stage::Sent];

    /// Whether the batch is still to be sent.
    pub fn is_unsent(self) -> bool {
        match self {
            Stage::Sealed | Stage::Sending => true,
            Stage::Sent => false,
        }
    }

    /// Whether S3 may have the object: an attempt was begun, and nothing tells how it ended.
    pub fn is_doubtful(self) -> bool {
        match self {
            Stage::Sending => true,
            Stage::Sealed | Stage::Sent => false,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Stage::Sealed => "sealed",
            Stage::Sending => "sending",
            Stage::Sent => "sent",
        }
    }
}

/// No chain gets as far. A file with a larger number is somebody else's, and the number that followed it
/// could not be told from the first.
pub const SEQUENCE_MAX: u64 = u64::MAX >> 1;

/// The name of a sealed batch's file. Only its stage changes after this, and its suffix where another writer owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SealedName {
    /// Opening, suffix, codec.
    pub batch: BatchName,
    /// Number of the batch in its log type's chain, from 1 to [`SEQUENCE_MAX`]; 0 in the
    /// head of a chain without batches.
    pub sequence: u64,
    /// Events in it, 1 or more; 0 in the head of a chain without batches.
    pub records: u64,
    /// Hash of the object's body.
    pub sha256: Sha256,
    /// Hash of the body of the batch before it; [`Sha256::ZERO`] for number 1.
    pub previous: Sha256,
    /// What is known of its object in S3.
    pub stage: Stage,
}

impl fmt::Display for SealedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SealedName { batch, sequence, records, sha256, previous, stage } = self;
        write!(f, "{batch}.{sequence}.{records}.{sha256}.{previous}.{}", stage.as_str())
    }
}

/// A file name in a type's folder of the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolName {
    /// `….open`: events are appended to it, or a crash left it.
    Open(BatchName),
    /// `….sealed`, `….sending` or `….sent`.
    Sealed(SealedName),
}

impl SpoolName {
    /// The batch's own part of the name.
    pub fn batch(&self) -> &BatchName {
        match self {
            SpoolName::Open(batch) => batch,
            SpoolName::Sealed(sealed) => &sealed.batch,
        }
    }
}

/// The ending of a batch that events are appended to.
pub const OPEN_EXTENSION: &str = "open";

impl fmt::Display for SpoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpoolName::Open(name) => write!(f, "{name}.{OPEN_EXTENSION}"),
            SpoolName::Sealed(name) => name.fmt(f),
        }
    }
}

impl FromStr for SpoolName {
    type Err = ParseError;

    /// Strict: only what `Display` writes is read.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        const ERROR: ParseError = ParseError("spool file name");
        let parsed = parse_spool_name(text).ok_or(ERROR)?;
        if parsed.to_string() == text { Ok(parsed) } else { Err(ERROR) }
    }
}

fn parse_spool_name(text: &str) -> Option<SpoolName> {
    let (opened, rest) = text.split_once('_')?;
    let opened = NaiveDateTime::parse_from_str(opened, OPENED_FORMAT).ok()?.and_utc();
    let mut fields = rest.split('.').peekable();
    let suffixes = fields.next()?;
    let (suffix, renamed_from) = match suffixes.split_once('-') {
        Some((suffix, first)) => (suffix.parse().ok()?, Some(first.parse().ok()?)),
        None => (suffixes.parse().ok()?, None),
    };
    let field = *fields.peek()?;
    let codec = Codec::ALL.into_iter().find(|codec| codec.extension().strip_prefix('.') == Some(field));
    let codec = codec.unwrap_or_default();
    if codec != Codec::None {
        fields.next();
    }
    let batch = BatchName { opened, suffix, renamed_from, codec };
    let field = fields.next()?;
    if field == OPEN_EXTENSION {
        return fields.next().is_none().then_some(SpoolName::Open(batch));
    }
    let sequence = field.parse().ok().filter(|sequence| *sequence <= SEQUENCE_MAX)?;
    let records = fields.next()?.parse().ok()?;
    let sha256 = fields.next()?.parse().ok()?;
    let previous = fields.next()?.parse().ok()?;
    let ending = fields.next()?;
    let stage = Stage::ALL.into_iter().find(|stage| stage.as_str() == ending)?;
    let sealed = SealedName { batch, sequence, records, sha256, previous, stage };
    let may_be_empty = stage == Stage::Sent;
    (fields.next().is_none() && (may_be_empty || sequence > 0 && records > 0)).then_some(SpoolName::Sealed(sealed))
}

/// `1 batch`, `2 batches`, `0 events`.
pub fn counted<N: std::fmt::Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let ending = match number == N::from(1) {
        true => "",
        false if thing.ends_with("ch") => "es",
        false => "s",
    };
    format!("{number} {thing}{ending}")
}

/// An object's key: `[<bucketPath>/]<logType>/<yyyy>/<mm>/<dd>/<HH:mm:ss>_<5chars>.log[.gz|.zst]`, UTC.
///
/// `bucket_path` is trimmed and checked by the configuration: no `/` at its ends, no empty segment.
pub fn object_key(bucket_path: &str, log_type: LogType, batch: &BatchName) -> String {
    let time = batch.opened.format("%Y/%m/%d/%H:%M:%S");
    let separator = if bucket_path.is_empty() { "" } else { "/" };
    format!("{bucket_path}{separator}{log_type}/{time}_{}.log{}", batch.suffix, batch.codec.extension())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> BatchName {
        let opened = DateTime::parse_from_rfc3339("2026-11-22T21:04:05.678901Z").unwrap().to_utc();
        BatchName { opened, suffix: "aB3dE".parse().unwrap(), renamed_from: None, codec: Codec::None }
    }

    fn sealed() -> SealedName {
        let sha256 = Sha256::of(b"body");
        SealedName { batch: name(), sequence: 7, records: 42, sha256, previous: Sha256::ZERO, stage: Stage::Sending }
    }

    #[test]
    fn a_key_is_made_of_the_prefix_the_type_and_the_opening() {
        let gzip = BatchName { codec: Codec::Gzip, ..name() };
        assert_eq!(object_key("", LogType::Audits, &name()), "env0-audits/2026/11/22/21:04:05_aB3dE.log");
        assert_eq!(
            object_key("a/b", LogType::Deployments, &gzip),
            "a/b/env0-deployments/2026/11/22/21:04:05_aB3dE.log.gz"
        );
    }

    #[test]
    fn every_name_reads_back_as_it_was_written() {
        for codec in Codec::ALL {
            for batch in [BatchName { codec, ..name() }, BatchName { codec, ..name() }.renamed()] {
                let open = SpoolName::Open(batch);
                assert_eq!(open.to_string().parse(), Ok(open));
                for stage in Stage::ALL {
                    let sealed = SpoolName::Sealed(SealedName { batch, stage, ..sealed() });
                    assert_eq!(sealed.to_string().parse(), Ok(sealed));
                }
            }
        }
    }

    #[test]
    fn the_longest_name_fits_a_file_system() {
        let batch = BatchName { codec: Codec::Zstd, ..name() }.renamed();
        let longest = SealedName { batch, sequence: SEQUENCE_MAX, records: u64::MAX, ..sealed() };
        assert!(longest.to_string().len() <= 255, "{} bytes", longest.to_string().len());
    }

    #[test]
    fn a_name_in_any_other_shape_is_refused() {
        let good = SpoolName::Sealed(sealed()).to_string();
        let wrong = [
            String::new(),
            "lock".into(),
            good.replace(".sending", ".sendin"),
            good.replace(".sending", ""),
            good.replace(".7.", ".07."),
            good.replace(".7.", ".-7."),
            good.replace(".7.", ".18446744073709551615."),
            good.replace(".7.", ".9223372036854775808."),
            good.replace(".7.", ".0."),
            good.replace(".42.", ".0."),
            good.replace("aB3dE", "aB3d"),
            good.replace("aB3dE", "aB3d/"),
            good.replace("22T21", "22 21"),
            format!("{good}.tmp"),
            good.to_uppercase(),
        ];
        for text in wrong {
            assert_eq!(text.parse::<SpoolName>(), Err(ParseError("spool file name")), "{text}");
        }
    }

    #[test]
    fn every_log_type_reads_back_as_it_was_written_and_there_is_no_other() {
        for log_type in LogType::ALL {
            assert_eq!(log_type.to_string().parse(), Ok(log_type));
        }
        for text in ["", "env0", "env0-audit", "ENV0-AUDITS", " env0-audits"] {
            assert_eq!(text.parse::<LogType>(), Err(ParseError("log type")), "{text}");
        }
    }

    #[test]
    fn a_hash_is_64_lower_case_hex_digits_and_nothing_else() {
        let good = Sha256::of(b"body").to_string();
        assert_eq!(good.parse(), Ok(Sha256::of(b"body")));
        for text in ["", &good[1..], &format!("{good}0"), &good.to_uppercase(), &format!("+{}", &good[1..])] {
            assert_eq!(text.parse::<Sha256>(), Err(ParseError("SHA-256")), "{text}");
        }
    }

    #[test]
    fn the_opening_never_goes_back_or_repeats_when_the_clock_does() {
        let first = name().opened;
        let second = BatchName::open(first - chrono::TimeDelta::hours(1), Some(first), Codec::None).opened;
        let third = BatchName::open(second, Some(second), Codec::None).opened;
        assert!(first < second && second < third);
    }

    #[test]
    fn a_renamed_batch_has_another_key() {
        let [before, after] = [name(), name().renamed()].map(|batch| object_key("", LogType::Audits, &batch));
        assert_ne!(before, after);
    }

    #[test]
    fn a_batch_that_is_renamed_twice_still_names_the_suffix_it_was_acknowledged_with() {
        let first = name();
        assert_eq!(first.renamed().renamed().renamed_from, Some(first.suffix));
        assert_eq!(first.renamed().opened, first.opened, "the opening tells a batch");
    }

    #[test]
    fn suffixes_are_drawn_from_all_62_characters() {
        let seen: std::collections::HashSet<u8> = (0..2000).flat_map(|_| Suffix::random().0).collect();
        assert_eq!(seen.len(), 62);
    }

    #[test]
    fn one_thing_is_counted_without_an_ending() {
        assert_eq!([0, 1, 2].map(|number: usize| counted(number, "batch")), ["0 batches", "1 batch", "2 batches"]);
        assert_eq!([1, 5].map(|number: u64| counted(number, "event")), ["1 event", "5 events"]);
    }
}
