//! Chain heads that the auditor knows of: from a daemon's `/status`, or from an earlier report.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::batch::{LogType, Sha256};
use crate::chain::ChainEntry;
use crate::small_file::BOM;

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
    let text = std::fs::read(path).map_err(|source| HeadsError::Io { path: path.to_owned(), source })?;
    let mut heads = Vec::new();
    let text = text.strip_prefix(BOM).unwrap_or(&text);
    for document in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        let document = document.map_err(|source| HeadsError::Json { path: path.to_owned(), source })?;
        collect(&document, Around::default(), &mut heads);
    }
    if heads.is_empty() { Err(HeadsError::None { path: path.to_owned() }) } else { Ok(heads) }
}

/// What the objects around a value say.
#[derive(Clone, Copy, Default)]
struct Around<'a> {
    instance: Option<&'a str>,
    log_type: Option<LogType>,
    unsent: u64,
    taken_at: Option<DateTime<Utc>>,
}

/// `/status` and the report both have a member `head`, and around it the instance and the log type.
fn collect<'a>(value: &'a Value, mut around: Around<'a>, heads: &mut Vec<KnownHead>) {
    if let Value::Object(members) = value {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        around.instance = text("chain_instance").or(text("instance")).or(around.instance);
        around.log_type = text("type").or(text("log_type")).and_then(|name| name.parse().ok()).or(around.log_type);
        around.unsent = members.get("batches").and_then(Value::as_u64).unwrap_or(around.unsent);
        around.taken_at = text("now").and_then(|now| now.parse().ok()).or(around.taken_at);
        heads.extend(members.get("head").and_then(|value| head(value, around)));
        members.values().for_each(|member| collect(member, around, heads));
    } else if let Value::Array(items) = value {
        items.iter().for_each(|item| collect(item, around, heads));
    }
}

fn head(value: &Value, Around { instance, log_type, unsent, taken_at }: Around<'_>) -> Option<KnownHead> {
    let sequence = value.get("sequence")?.as_u64()?;
    let sha256 = value.get("sha256")?.as_str()?.parse().ok()?;
    Some(KnownHead { instance: instance?.to_owned(), log_type: log_type?, sequence, sha256, unsent, taken_at })
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
