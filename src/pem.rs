//! Keys and certificates in PEM files, and in words for people why a file has none.

use std::path::Path;

use rustls::pki_types::pem::{Error, PemObject};

use crate::small_file;

/// A longer label of a PEM file is cut in a message.
const LABEL_MAX_CHARS: usize = 40;

/// Systems ship lists of certificates of 0.7 MiB; a company's may have each one's text beside it.
const CERTIFICATES_MAX_BYTES: usize = 16 * 1024 * 1024;

/// The first of its kind in a file.
///
/// # Errors
/// Why the file has none, a few words.
pub fn first<T: PemObject>(path: &Path) -> Result<T, String> {
    let text = small_file::read(path).map_err(|error| error.to_string())?;
    T::from_pem_slice(&text).map_err(|error| reason(path, &text, &error))
}

/// All of one kind in a file, at least one.
///
/// # Errors
/// Why the file has none, a few words.
pub fn all<T: PemObject>(path: &Path) -> Result<Vec<T>, String> {
    let text = small_file::read_up_to(path, CERTIFICATES_MAX_BYTES).map_err(|error| error.to_string())?;
    let found: Result<Vec<T>, Error> = T::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(reason(path, &text, &Error::NoItemsFound)),
        found => found.map_err(|error| reason(path, &text, &error)),
    }
}

/// `error` in words; where what was looked for is missing, with what the file holds in its place.
fn reason(path: &Path, text: &[u8], error: &Error) -> String {
    let text = String::from_utf8_lossy(text);
    if text.contains("ENCRYPTED") {
        return format!(
            "the key in it is encrypted, and the daemon knows no passphrase (`openssl pkey -in {} -out plain.pem` takes it off)",
            path.display()
        );
    }
    if !matches!(error, Error::NoItemsFound) {
        return error.to_string();
    }
    let labels = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    let labels: Vec<String> = labels.map(|label| label.chars().take(LABEL_MAX_CHARS).collect()).collect();
    // Both begin with an ASN.1 sequence.
    if text.starts_with('0') && text.contains('\u{fffd}') {
        let path = path.display();
        return format!(
            "there is nothing in PEM in it, but DER or PKCS#12 perhaps, of which PEM is made by `openssl x509 -inform DER -in {path}` \
             (a certificate), `openssl pkey -inform DER -in {path}` (a key) or `openssl pkcs12 -nodes -in {path}` (both)"
        );
    }
    match labels.is_empty() {
        true => "there is nothing in PEM in it".to_owned(),
        false => format!("it holds {} alone", labels.join(", ")),
    }
}
