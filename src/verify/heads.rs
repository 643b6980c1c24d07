//! Chain heads that the auditor knows of: from a daemon's `/status`, or from an earlier report.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::batch::{LogType, Sha256};
use crate::chain::ChainEntry;

/// A chain's head that existed for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownHead {
    pub(super) instance: String,
    pub(super) log_type: LogType,
    pub(super) sequence: u64,
    pub(super) sha256: Sha256,
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
    for document in serde_json::Deserializer::from_slice(&text).into_iter::<Value>() {
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
}

/// `/status` and the report differ in where they put `instance` and `log_type`: around the head in both.
fn collect<'a>(value: &'a Value, mut around: Around<'a>, heads: &mut Vec<KnownHead>) {
    let parse_type = |value: &str| value.parse().ok();
    if let Value::Object(members) = value {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        around.instance = text("instance").or(text("instance_id")).or(around.instance);
        around.log_type = text("log_type").or(text("type")).and_then(parse_type).or(around.log_type);
        for (name, member) in members {
            if matches!(name.as_str(), "chain_head" | "head") {
                heads.extend(head(member, around));
            } else {
                collect(member, Around { log_type: parse_type(name).or(around.log_type), ..around }, heads);
            }
        }
    } else if let Value::Array(items) = value {
        items.iter().for_each(|item| collect(item, around, heads));
    }
}

fn head(value: &Value, Around { instance, log_type }: Around<'_>) -> Option<KnownHead> {
    let sequence = value.get("sequence")?.as_u64()?;
    let sha256 = value.get("sha256")?.as_str()?.parse().ok()?;
    Some(KnownHead { instance: instance?.to_owned(), log_type: log_type?, sequence, sha256 })
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
        let head = KnownHead { instance: "i".into(), log_type: LogType::Audits, sequence: 12, sha256 };
        let status = format!(
            r#"{{"instance":"i","types":[{{"log_type":"env0-deployments","chain_head":null}},
               {{"log_type":"env0-audits","chain_head":{{"sequence":12,"sha256":"{sha256}"}}}}]}}"#
        );
        let keyed = format!(
            r#"{{"instance":"i","types":{{"env0-audits":{{"chain_head":{{"sequence":12,"sha256":"{sha256}"}}}}}}}}"#
        );
        let report = format!(
            r#"{{"chains":[{{"instance":"i","log_type":"env0-audits","head":{{"sequence":12,"sha256":"{sha256}"}}}}]}}"#
        );
        for text in [&status, &keyed, &report] {
            assert_eq!(heads_in(text.clone()).unwrap(), std::slice::from_ref(&head), "{text}");
        }
        assert_eq!(heads_in(format!("{status}\n{report}")).unwrap().len(), 2);
    }

    #[test]
    fn a_file_without_heads_is_refused() {
        assert!(matches!(heads_in("{}".into()), Err(HeadsError::None { .. })));
        assert!(matches!(heads_in("heads".into()), Err(HeadsError::Json { .. })));
        assert!(matches!(read(Path::new("/nonexistent")), Err(HeadsError::Io { .. })));
    }
}
