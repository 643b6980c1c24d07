//! Why a PEM file can't be used, in words for people.

use std::path::Path;

use rustls::pki_types::pem::Error;

/// Of what a file says that it holds.
const LABEL_MAX_CHARS: usize = 40;

/// `error` in words; where what was looked for is missing, with what `path` holds in its place.
pub fn reason(path: &Path, error: &Error) -> String {
    if !matches!(error, Error::NoItemsFound) {
        return error.to_string();
    }
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    if text.contains("ENCRYPTED") {
        return format!(
            "the key in it is encrypted, and the daemon knows no passphrase (`openssl pkey -in {} -out plain.pem` takes it off)",
            path.display()
        );
    }
    let labels = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    let labels: Vec<String> = labels.map(|label| label.chars().take(LABEL_MAX_CHARS).collect()).collect();
    match labels.is_empty() {
        true => "there is nothing in PEM in it".to_owned(),
        false => format!("it holds {} alone", labels.join(", ")),
    }
}
