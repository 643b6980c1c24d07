//! Chain heads that the auditor knows of: from a daemon's `/status`, or from an earlier report.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::batch::{LogType, Sha256};
use crate::chain::ChainEntry;
use crate::small_file;

/// A status has a few KB, a report with all the findings that it can have some MB.
const HEADS_MAX_BYTES: usize = 16 * 1024 * 1024;

/// A chain's head that existed for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownHead {
    pub(super) instance: String,
    pub(super) log_type: LogType,
    pub(super) sequence: u64,
    pub(super) sha256: Sha256,
    /// Batches that were sealed and not yet delivered when `/status` was taken.
    pub(super) unsent: u64,
    /// When `/status` was taken.
    pub(super) taken_at: Option<DateTime<Utc>>,
}

impl KnownHead {
    pub(super) fn is_of(&self, (log_type, instance): &(LogType, String)) -> bool {
        self.log_type == *log_type && self.instance == *instance
    }

    /// Whether it is this very object.
    pub(super) fn names(&self, entry: &ChainEntry) -> bool {
        self.sequence == entry.sequence && self.log_type == entry.log_type && self.instance == entry.instance
    }
}

/// A file of heads that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// Not readable.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Not JSON.
    #[error("{path}: not JSON: {source}; expected what /status or `verify --json` wrote", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// JSON without a single head.
    #[error("{path}: holds no chain head; expected what /status or `verify --json` wrote", path = path.display())]
    None {
        /// The file.
        path: PathBuf,
    },
}

/// Reads every head in a file: one or more JSON documents, each a `/status` or a `verify --json` report.
pub(super) fn read(path: &Path) -> Result<Vec<KnownHead>, HeadsError> {
    let text = small_file::read_up_to(path, HEADS_MAX_BYTES);
    let text = text.map_err(|source| HeadsError::Io { path: path.to_owned(), source })?;
    let mut heads = Vec::new();
    for document in serde_json::Deserializer::from_slice(&text).into_iter::<Node>() {
        let document = document.map_err(|source| HeadsError::Json { path: path.to_owned(), source })?;
        heads.extend(document.heads.into_iter().filter_map(Found::known));
    }
    if heads.is_empty() { Err(HeadsError::None { path: path.to_owned() }) } else { Ok(heads) }
}

/// A JSON value as far as it matters here: all else is dropped as it is read, so that a file takes little more memory
/// than it has bytes.
#[derive(Default)]
struct Node {
    text: Option<String>,
    number: Option<u64>,
    /// Of an object with both.
    sequence_and_hash: Option<(u64, Sha256)>,
    heads: Vec<Found>,
}

/// A head, and what the objects around it say so far, the nearest first.
#[derive(Default)]
struct Found {
    sequence_and_hash: Option<(u64, Sha256)>,
    instance: Option<String>,
    log_type: Option<LogType>,
    unsent: Option<u64>,
    taken_at: Option<DateTime<Utc>>,
}

impl Found {
    fn known(self) -> Option<KnownHead> {
        let (sequence, sha256) = self.sequence_and_hash?;
        let unsent = self.unsent.unwrap_or_default();
        let Found { instance, log_type, taken_at, .. } = self;
        Some(KnownHead { instance: instance?, log_type: log_type?, sequence, sha256, unsent, taken_at })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::default())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
        Ok(Node { number: Some(number), ..Node::default() })
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node { text: Some(text.to_owned()), ..Node::default() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut node = Node::default();
        while let Some(item) = items.next_element::<Node>()? {
            node.heads.extend(item.heads);
        }
        Ok(node)
    }

    /// `/status` and the report both have a member `head`, and around it the instance and the log type.
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut node = Node::default();
        let (mut chain_instance, mut instance, mut log_type) = (None, None, None);
        let (mut sequence, mut sha256, mut unsent, mut taken_at) = (None, None, None, None);
        while let Some(name) = members.next_key::<Cow<'_, str>>()? {
            let member: Node = members.next_value()?;
            node.heads.extend(member.heads);
            match &*name {
                "chain_instance" => chain_instance = member.text,
                "instance" => instance = member.text,
                "type" | "log_type" => log_type = member.text.and_then(|name| name.parse().ok()).or(log_type),
                "batches" => unsent = member.number,
                "now" => taken_at = member.text.and_then(|now| now.parse().ok()),
                "sequence" => sequence = member.number,
                "sha256" => sha256 = member.text.and_then(|hash| hash.parse().ok()),
                "head" => {
                    let sequence_and_hash = member.sequence_and_hash;
                    node.heads.extend(sequence_and_hash.map(|_| Found { sequence_and_hash, ..Found::default() }));
                }
                _ => {}
            }
        }
        let instance = chain_instance.or(instance);
        for head in &mut node.heads {
            head.instance = head.instance.take().or_else(|| instance.clone());
            head.log_type = head.log_type.or(log_type);
            head.unsent = head.unsent.or(unsent);
            head.taken_at = head.taken_at.or(taken_at);
        }
        node.sequence_and_hash = sequence.zip(sha256);
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads_in(text: String) -> Result<Vec<KnownHead>, HeadsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn status_and_report_both_tell_heads() {
        let sha256 = Sha256::of(b"body");
        let (instance, log_type) = ("c".to_owned(), LogType::Audits);
        let head = KnownHead { instance, log_type, sequence: 12, sha256, unsent: 0, taken_at: None };
        let status = format!(
            r#"{{"instance":"i","now":"2026-11-22T21:05:05.000Z","types":[
                {{"type":"env0-deployments","batches":0,"chain_instance":"i","head":null}},
                {{"type":"env0-audits","batches":2,"chain_instance":"c","head":{{"sequence":12,"sha256":"{sha256}"}}}}]}}"#
        );
        let report = format!(
            r#"{{"chains":[{{"instance":"c","log_type":"env0-audits","head":{{"sequence":12,"sha256":"{sha256}"}}}}]}}"#
        );
        let taken_at = Some("2026-11-22T21:05:05Z".parse().unwrap());
        let from_status = KnownHead { unsent: 2, taken_at, ..head.clone() };
        assert_eq!(heads_in(status.clone()).unwrap(), std::slice::from_ref(&from_status));
        assert_eq!(heads_in(report.clone()).unwrap(), std::slice::from_ref(&head));
        assert_eq!(heads_in(format!("{status}\n{report}")).unwrap(), [from_status, head]);
    }

    #[test]
    fn a_file_without_heads_is_refused() {
        assert!(matches!(heads_in("{}".into()), Err(HeadsError::None { .. })));
        assert!(matches!(heads_in("heads".into()), Err(HeadsError::Json { .. })));
        assert!(matches!(read(Path::new("/nonexistent")), Err(HeadsError::Io { .. })));
    }
}
