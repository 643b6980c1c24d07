//! Files that variables name.

use std::fmt;
use std::path::Path;

use secrecy::SecretString;

use super::{slips, values, variables};
use crate::small_file;

/// The secret that a file holds, without the space around it.
///
/// # Errors
/// What is wrong with the file; never what it holds.
pub fn secret_of_file(path: &Path) -> Result<SecretString, String> {
    let content = small_file::read_text(path)
        .map_err(|error| format!("can't be read ({error}); expected a file that this user may read"))?;
    let judged = match content.trim() {
        "" => return Err("holds nothing".to_owned()),
        text if text.lines().nth(1).is_some() => Err("one line, the secret alone,".to_owned()),
        text => slips::not_meant(text).map_or_else(|| values::text(text), Err),
    };
    judged.map(SecretString::from).map_err(|expected| format!("expected {expected} in that file"))
}

/// What is wrong with the file that `variable` names, in the words of every error of a configuration.
pub fn file_error(variable: &str, path: &Path, problem: impl fmt::Display) -> String {
    let example = variables::find(variable).map_or("/path", |variable| variable.example);
    let value = quoted(shown_path(&path.to_string_lossy()));
    format!("{variable}={value}: {problem}; example: {variable}={example}")
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
    if path.starts_with(['/', '.', '~']) || Path::new(value).exists() { value } else { NOT_SHOWN }
}

/// A value that may be shown, as errors quote it.
pub(super) fn quoted(shown: &str) -> String {
    if shown == NOT_SHOWN { shown.to_owned() } else { format!("{shown:?}") }
}
