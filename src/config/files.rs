//! Files that variables name.

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::effective::KeyFiles;
use super::values::{self, Parsed};
use super::{slips, variables};
use crate::small_file;

/// Stands in the words of a content that is wrong, where the path is right.
pub(super) const IN_FILE: &str = " (in that file)";

/// The value that a file holds in place of a variable, held to the variable's own rules, which `parse` has.
///
/// # Errors
/// What is wrong with the file; never what it holds.
pub(super) fn value_of_file(path: &Path, parse: impl Fn(&str) -> Parsed<String>) -> Result<SecretString, String> {
    let content = small_file::read_text(path)
        .map_err(|error| format!("can't be read ({error}); expected a file that this user may read"))?;
    if bare(&content).is_empty() {
        return Err("holds nothing".to_owned());
    }
    value_in(&content, parse).map_err(|expected| {
        let expected = expected.strip_suffix(slips::KEPT_IN_VARIABLES).unwrap_or(&expected);
        format!("expected {expected}{IN_FILE}; printf %s VALUE >FILE writes a value alone")
    })
}

/// The value in a text that is no variable's.
fn value_in(text: &str, parse: impl Fn(&str) -> Parsed<String>) -> Parsed<SecretString> {
    slips::not_meant(bare(text)).map_or_else(|| parse(bare(text)), Err).map(SecretString::from)
}

/// A byte order mark at the beginning is the file's, and not the value's.
fn bare(text: &str) -> &str {
    text.trim_start_matches('\u{feff}').trim()
}

/// An OIDC token that a URL has answered with, held to the rules of `ENV0_OIDC_TOKEN`.
///
/// # Errors
/// What was expected instead.
pub fn oidc_token(text: &str) -> Parsed<SecretString> {
    value_in(text, values::oidc_token)
}

/// The OIDC token in the file that `variable` names, held to the rules of `ENV0_OIDC_TOKEN`.
///
/// # Errors
/// What is wrong with the file.
pub fn oidc_token_of_file(variable: &str, path: &Path) -> Result<SecretString, String> {
    value_of_file(path, values::oidc_token).map_err(|problem| file_error(variable, path, problem))
}

impl KeyFiles {
    /// The API key's id and secret, as far as they are in files.
    ///
    /// # Errors
    /// What is wrong with one of the files.
    pub fn read(&self) -> Result<[Option<SecretString>; 2], String> {
        let read = |variable, file: &Option<PathBuf>, parse: fn(&str) -> Parsed<String>| {
            let read =
                |path: &PathBuf| value_of_file(path, parse).map_err(|problem| file_error(variable, path, problem));
            file.as_ref().map(read).transpose()
        };
        Ok([
            read("ENV0_API_KEY_ID_FILE", &self.id, values::key_id)?,
            read("ENV0_API_KEY_SECRET_FILE", &self.secret, values::text)?,
        ])
    }
}

/// What is wrong with the file that `variable` names, in the words of every error of a configuration.
pub fn file_error(variable: &str, path: &Path, problem: impl fmt::Display) -> String {
    let example = variables::find(variable).map_or("/path", |variable| variable.example);
    let value = quoted(shown_path(&path.to_string_lossy()));
    let problem = problem.to_string();
    match problem.contains(IN_FILE) {
        true => format!("{variable}={value}: {problem}"),
        false => format!("{variable}={value}: {problem}; example: {variable}={example}"),
    }
}

/// What was expected instead of the path of a file, in a variable whose value can also be in a file that another one
/// names; `None` where `value` is no such path.
pub(super) fn not_its_path(name: &str, value: &str) -> Option<String> {
    let twin = format!("{name}_FILE");
    let is_path = variables::find(&twin).is_some() && Path::new(value).is_file();
    is_path.then(|| format!("the value itself, not the path of a file: {twin} is the variable that names a file"))
}

/// Stands in the place of a value that may be a secret.
const NOT_SHOWN: &str = "(not shown: it is no path, and may be a secret)";

/// The value of a variable that names a file, as it may be shown. Somebody may have put the secret itself there.
pub(super) fn shown_path(value: &str) -> &str {
    // What may stand before a path by mistake doesn't count.
    let path = value.trim_start_matches(|first: char| "\"'`$\u{feff}".contains(first) || first.is_whitespace());
    let may_be_url = path.contains(':') && path.contains('@');
    let looks_like_path = path.starts_with(['/', '.', '~']) && !may_be_url;
    if looks_like_path || Path::new(value).exists() { value } else { NOT_SHOWN }
}

/// A value that may be shown, as errors quote it.
pub(super) fn quoted(shown: &str) -> String {
    if shown == NOT_SHOWN { shown.to_owned() } else { format!("{shown:?}") }
}
