//! An answer, and what it lacks of what env0 documents.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::OwnedMutexGuard;

use crate::pull::api::error::{ApiError, Asked, Endpoint, ErrorKind};

/// An answer, whole.
pub struct Answer {
    pub(super) bytes: Bytes,
    pub(super) endpoint: Endpoint,
    pub(super) asked: Asked,
    /// While it is large, no other large one is read.
    pub(super) _alone: Option<OwnedMutexGuard<()>>,
}

impl Answer {
    /// Reads it as `T`, which may borrow from it.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.bytes).map_err(|error| self.malformed(&what_is_missing(&error, &self.bytes)))
    }

    /// Reads it as a list of `T`. An element that is none doesn't hold up the others.
    pub fn list<'a, T: Deserialize<'a>>(&'a self) -> Result<List<T>, ApiError> {
        let elements: Vec<&'a RawValue> = self.parse()?;
        let mut list = List { records: Vec::with_capacity(elements.len()), elements: elements.len(), bad: None };
        for element in elements {
            match serde_json::from_str(element.get()) {
                Ok(record) => list.records.push(record),
                Err(error) => {
                    let missing = what_is_missing(&error, element.get().as_bytes());
                    list.bad.get_or_insert(self.malformed(&missing));
                }
            }
        }
        Ok(list)
    }

    /// An error that says what the answer lacks.
    pub fn malformed(&self, missing: &str) -> ApiError {
        ApiError { endpoint: self.endpoint, kind: ErrorKind::Malformed(missing.to_owned()), asked: self.asked.clone() }
    }
}

/// The elements of an answer that is a list.
pub struct List<T> {
    /// Those that are what is documented.
    pub records: Vec<T>,
    /// How many there were.
    pub elements: usize,
    /// What the first that isn't lacks.
    pub bad: Option<ApiError>,
}

/// What serde_json missed, without a byte of the answer: of its messages, some quote what they found.
fn what_is_missing(error: &serde_json::Error, bytes: &[u8]) -> String {
    let text = error.to_string();
    if bytes.trim_ascii_start().first() == Some(&b'<') {
        return "it is a page of HTML, so a proxy or another server has answered".to_owned();
    }
    if bytes.is_empty() {
        return "it is empty".to_owned();
    }
    let place = format!("line {}, column {}", error.line(), error.column());
    match text.split_once('`') {
        Some(("missing field ", rest)) => {
            format!("it lacks the member {}", rest.split('`').next().unwrap_or_default())
        }
        _ if error.is_data() => format!("a value of another type at {place}"),
        _ if error.is_eof() => "it breaks off".to_owned(),
        _ => format!("it is not JSON at {place}"),
    }
}
