//! Values that nobody can have meant, because a shell, a template or a person should have replaced them first.

use super::variables::{find, own_prefix};
use crate::batch::LogType;

/// Those of shells and files, and those that word processors make of them.
const QUOTES: [char; 8] = ['"', '\'', '`', '“', '”', '„', '‘', '’'];
/// Three quarters of the 16 KiB that a request's head may have.
const TOKEN_MAX_CHARS: usize = 12 * 1024;

/// Why a variable has quotes, which is no reason in a file.
pub(super) const KEPT_IN_VARIABLES: &str = " (--env-file and Kubernetes keep them as part of it)";

/// What was expected instead of a value that no variable can be meant to have; `None` where it may be meant.
pub(super) fn not_meant(value: &str) -> Option<String> {
    let expected = if value.starts_with(QUOTES) || value.ends_with(QUOTES) {
        return Some(format!("a value without quotes around it{KEPT_IN_VARIABLES}"));
    } else if value.starts_with('\u{feff}') {
        "a value without a byte order mark before it (save the file as UTF-8 without BOM)"
    } else if is_unexpanded(value) {
        "a value in which every ${NAME} or template has been filled in"
    } else if has_placeholder(value) {
        "a value in place of the <placeholder>"
    } else if is_reference(value) {
        "the secret itself, not a reference that nothing has looked up in its store"
    } else if value.ends_with(r"\n") || value.ends_with(r"\r") {
        r"a value without a written-out line break (\n) at its end"
    } else if value.starts_with("# ") || value.contains(" #") || value.contains("\t#") {
        "a value without a comment behind it (env files keep it as part of the value: write it in a line of its own)"
    } else if value.to_ascii_lowercase().contains("[redacted]") || is_mask(value) {
        "a value, not the [redacted] or *** that stands for it in a log or on a page"
    } else if is_json(value) {
        "a value alone, not the JSON that it was delivered in"
    } else if value.split_once('=').is_some_and(|(name, _)| own_prefix(name).is_some() || find(name).is_some()) {
        "a value without the variable's name before it"
    } else {
        return None;
    };
    Some(expected.to_owned())
}

/// The same for a static token, which has three more slips: an example, which everybody knows, a length
/// that hardly fits a request's head, and a log type that isn't set apart by white space, which would leave
/// the token free to write any type.
pub fn token_not_meant(token: &str) -> Option<String> {
    not_meant(token).or_else(|| {
        let token = token.to_ascii_lowercase();
        if token.starts_with("change-me") || token.starts_with("changeme") {
            return Some("a value of your own, not the example (openssl rand -hex 32 makes one)".to_owned());
        }
        if token.len() > TOKEN_MAX_CHARS {
            return Some(format!(
                "a value of at most {TOKEN_MAX_CHARS} characters; a request's head has hardly room for more"
            ));
        }
        let separators = [',', '=', ':', ';', '|'];
        let holds = |log_type: LogType| {
            let name = log_type.as_str();
            token == name
                || token.strip_suffix(name).is_some_and(|rest| rest.ends_with(separators))
                || token.strip_prefix(name).is_some_and(|rest| rest.starts_with(separators))
        };
        let found = LogType::ALL.into_iter().find(|log_type| holds(*log_type))?;
        Some(format!(
            "a value without {found} in it (a token of one log type is <token> {found}, with a space between, in \
             ENV0_S3_LOG_INGEST_TOKEN_FILE)"
        ))
    })
}

/// Whether a shell's or a template's placeholder is still there: `${NAME}`, `$(command)` and `{{ name }}` anywhere,
/// `%NAME%` where it is not URL-encoded text, `$NAME` as the whole value. A token may hold `$` and `%`.
fn is_unexpanded(value: &str) -> bool {
    let is_open = |(start, end)| value.split(start).skip(1).any(|rest| rest.contains(end));
    [("${", '}'), ("$(", ')'), ("{{", '}')].into_iter().any(is_open)
        || value.strip_prefix('$').is_some_and(is_name)
        || (!is_url_encoded(value) && has_windows_variable(value))
}

/// Whether `<` and `>` are around it, or in an ARN or a URL around a name or a few words:
/// `arn:aws:iam::<account>:role/x`. A token may hold both.
fn has_placeholder(value: &str) -> bool {
    if !(value.starts_with("arn:") || value.contains("://")) {
        return value.len() > 2 && value.starts_with('<') && value.ends_with('>');
    }
    let is_word = |character: char| character.is_alphanumeric() || matches!(character, ' ' | '-' | '_' | '.');
    value
        .split('<')
        .skip(1)
        .filter_map(|rest| rest.split_once('>'))
        .any(|(words, _)| !words.is_empty() && words.chars().all(is_word) && words.starts_with(char::is_alphabetic))
}

/// Whether it names a secret in Vault, AWS, 1Password or another store, as an injector should have replaced it.
fn is_reference(value: &str) -> bool {
    const STORES: [&str; 6] = ["vault:", "op://", "ssm://", "ref+", "arn:aws:secretsmanager:", "arn:aws:ssm:"];
    value.contains(['/', ':']) && STORES.iter().any(|store| value.starts_with(store))
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first == '_' || first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
}

fn has_windows_variable(value: &str) -> bool {
    let pieces: Vec<_> = value.split('%').collect();
    // The first piece has no % before it, and the last has none after it.
    let between = pieces.get(1..pieces.len().saturating_sub(1)).unwrap_or_default();
    let in_capitals = |name: &&str| name.len() > 2 && is_name(name) && **name == name.to_ascii_uppercase();
    between.iter().any(in_capitals)
}

fn is_url_encoded(value: &str) -> bool {
    let mut escapes = value.split('%').skip(1).map(|rest| rest.as_bytes().get(..2).unwrap_or_default());
    escapes.all(|digits| digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit))
}

fn is_mask(value: &str) -> bool {
    value.chars().count() > 1 && value.chars().all(|character| matches!(character, '*' | '•'))
}

fn is_json(value: &str) -> bool {
    value.starts_with(['{', '[']) && serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok()
}
