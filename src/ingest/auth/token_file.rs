//! The file of static tokens: one a line, read again when it changes.
//!
//! A file that is being written must not open anything: `<token>` is the beginning of `<token> env0-audits`, and
//! would write any log type. So a change counts only once the file has stayed the same for a while (see
//! [`Watched`]), and a last line without a line break counts only where the whole file was put in place by a rename,
//! as Kubernetes does with a Secret, or at start, when there is nothing older to keep.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;

use crate::batch::{LogType, Sha256};
use crate::config::{self, Config, INGEST_TOKEN_MIN_CHARS};
use crate::http::watched::{Change, Watched};
use crate::small_file;

const VARIABLE: &str = "ENV0_S3_LOG_INGEST_TOKEN_FILE";
/// At start, a file without its last line break that was written more recently may have more to come.
const WRITTEN_AFTER: Duration = Duration::from_secs(1);
const LOOKS_AT_START: u32 = 5;

/// The file of static tokens can't be used: an error at start, later the tokens before it stay.
#[derive(Debug, thiserror::Error)]
#[error("{}", config::file_error(VARIABLE, path, format_args!(
    "{reason}; expected one token of {INGEST_TOKEN_MIN_CHARS} characters or more a line, as <token> or <token> <log type>"
)))]
pub struct TokenFileError {
    path: PathBuf,
    reason: String,
}

/// What keeps a start from using the file of static tokens. Waits a few seconds for a file that is being written.
pub fn token_file_problem(config: &Config) -> Option<TokenFileError> {
    let path = config.ingest_token_file.as_deref()?;
    for _ in 0..LOOKS_AT_START {
        let written = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        let age = written.map(|written| SystemTime::now().duration_since(written).unwrap_or_default());
        let is_fresh = age.is_ok_and(|age| age < WRITTEN_AFTER);
        if !is_fresh || load(path, Change::WrittenTo).is_ok() {
            break;
        }
        std::thread::sleep(WRITTEN_AFTER);
    }
    load(path, Change::Replaced).err()
}

/// The log type of each token in the file, `None` for a token of all; nothing where the file can't be used.
pub fn token_file_types(path: &Path) -> Vec<Option<LogType>> {
    let tokens = load(path, Change::Replaced);
    tokens.map(|tokens| tokens.iter().map(|token| token.log_type).collect()).unwrap_or_default()
}

/// The characters of static tokens that some protocols carry only escaped, because their token is in a URL or in JSON.
pub fn characters_to_escape(config: &Config) -> BTreeSet<char> {
    let of_file = config.ingest_token_file.as_deref().and_then(|path| small_file::read_text(path).ok());
    let of_file = of_file.unwrap_or_default();
    let lines = of_file.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let of_file = lines.filter_map(|line| line.split_whitespace().next());
    let own = config.ingest_token.as_ref().map(ExposeSecret::expose_secret);
    own.into_iter().chain(of_file).flat_map(str::chars).filter(|found| "/?#&%\"\\".contains(*found)).collect()
}

/// A token that an operator gave out. Only its digest is kept.
#[derive(Clone)]
pub(super) struct StaticToken {
    pub(super) digest: Sha256,
    pub(super) log_type: Option<LogType>,
}

impl StaticToken {
    pub(super) fn new(token: &str, log_type: Option<LogType>) -> StaticToken {
        StaticToken { digest: Sha256::of(token.as_bytes()), log_type }
    }
}

pub(super) type StaticTokens = Arc<[StaticToken]>;

/// The tokens of the file, as they were when it was last found to be whole and right.
pub(super) struct TokenFile {
    path: PathBuf,
    tokens: Watched<StaticTokens>,
}

impl TokenFile {
    pub(super) fn new(path: &Path) -> Result<TokenFile, TokenFileError> {
        let name = "the file of ENV0_S3_LOG_INGEST_TOKEN_FILE";
        let tokens = Watched::new(name, vec![path.to_owned()], || load(path, Change::Replaced))?;
        Ok(TokenFile { path: path.to_owned(), tokens })
    }

    pub(super) fn current(&self) -> StaticTokens {
        self.tokens.current()
    }

    pub(super) fn look(&self) {
        self.tokens.look(|change| load(&self.path, change));
    }

    pub(super) fn reload(&self) {
        self.tokens.reload(|change| load(&self.path, change));
    }

    #[cfg(test)]
    pub(super) fn rests_after(self, rests_after: Duration) -> TokenFile {
        TokenFile { tokens: self.tokens.rests_after(rests_after), ..self }
    }
}

fn load(path: &Path, change: Change) -> Result<StaticTokens, TokenFileError> {
    let refuse = |reason: String| TokenFileError { path: path.to_owned(), reason };
    let text = small_file::read_text(path).map_err(|error| refuse(error.to_string()))?;
    if change == Change::WrittenTo && !text.is_empty() && !text.ends_with('\n') {
        return Err(refuse(
            "its last line has no line break at the end, as if it were still being written: add one".to_owned(),
        ));
    }
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let mut tokens: Vec<StaticToken> = Vec::new();
    let mut types = HashMap::new();
    for (number, line) in lines {
        let token = parse(number, line).map_err(refuse)?;
        let (earlier, log_type) = *types.entry(token.digest).or_insert((number, token.log_type));
        if log_type != token.log_type {
            return Err(refuse(format!(
                "line {number}: the token of line {earlier} again, with another log type; a token writes one log type, \
                 or without one all of them"
            )));
        }
        tokens.push(token);
    }
    if tokens.is_empty() {
        Err(refuse("no token in it: write one there (`openssl rand -hex 32` makes one)".to_owned()))
    } else {
        Ok(tokens.into())
    }
}

/// Never repeats the line: it holds a secret.
fn parse(number: usize, line: &str) -> Result<StaticToken, String> {
    let mut words = line.split_whitespace();
    let token = words.next().unwrap_or_default();
    let log_type = words.next().map(str::parse::<LogType>).transpose();
    // The line, too: quotes and JSON may be around a token and its type together.
    let not_meant = config::token_not_meant(line).or_else(|| config::ingest_token(token).err());
    let fault = if let Some(expected) = not_meant {
        Some(format!("it should be {expected}"))
    } else if words.next().is_some() {
        Some("more than a token and a log type".to_owned())
    } else {
        None
    };
    match (fault, log_type) {
        (Some(fault), _) => Err(format!("line {number}: {fault}")),
        (None, Err(_)) => {
            let types = LogType::ALL.map(LogType::as_str).join(" or ");
            Err(format!("line {number}: not a log type after the token, which is {types}"))
        }
        (None, Ok(log_type)) => Ok(StaticToken::new(token, log_type)),
    }
}

#[cfg(test)]
mod tests;
