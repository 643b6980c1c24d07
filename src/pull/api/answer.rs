//! An answer of env0's API, read as what env0 documents. If it isn't, the error says which member is missing.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::OwnedMutexGuard;

use crate::pull::api::error::{ApiError, Asked, Endpoint, ErrorKind};
use crate::pull::api::text::Text;

/// The body of an answer.
pub struct Answer {
    pub(super) text: Text,
    pub(super) endpoint: Endpoint,
    pub(super) asked: Asked,
    /// Held by a large answer, so that no second one of its kind is in memory at the same time.
    pub(super) _alone: Option<OwnedMutexGuard<()>>,
}

impl Answer {
    /// Reads it as `T`, which may borrow from it.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.text.bytes).map_err(|error| self.malformed(&what_is_missing(&error)))
    }

    /// Reads it as a list of `T`. An element that isn't a `T` is left out, and the error is kept in [`List::bad`].
    pub fn list<'a, T: Deserialize<'a>>(&'a self) -> Result<List<T>, ApiError> {
        let elements: Vec<&'a RawValue> = self.parse()?;
        let mut list = List { records: Vec::with_capacity(elements.len()), elements: elements.len(), bad: None };
        for element in elements {
            match serde_json::from_str(element.get()) {
                Ok(record) => list.records.push(record),
                Err(error) => {
                    list.bad.get_or_insert(self.malformed(&what_is_missing(&error)));
                }
            }
        }
        Ok(list)
    }

    /// How many bytes of `part`, which is borrowed from this answer, were not UTF-8 and became U+FFFD.
    pub fn replaced_in(&self, part: &RawValue) -> u64 {
        let (Range { start: begin, end }, Text { replaced, .. }) = (self.place_of(part), &self.text);
        // They are sorted by place: a page of a whole log in Latin-1 has some hundred thousand of them.
        let first = replaced.partition_point(|(at, _)| *at < begin);
        replaced[first..].iter().take_while(|(at, _)| *at < end).map(|(_, bytes)| bytes).sum()
    }

    /// What is not as documented of an event that is stored all the same. `part` is borrowed from this answer.
    pub fn oddity_of(&self, part: &RawValue) -> Option<&'static str> {
        let (Range { start: begin, end }, quoted) = (self.place_of(part), &self.text.quoted);
        let first = quoted.partition_point(|at| *at < begin);
        if quoted.get(first).is_some_and(|at| *at < end) {
            return Some("a value of an event is not JSON; it is stored as a string");
        }
        let is_object = part.get().starts_with('{');
        (!is_object).then_some("an event is not an object; it is stored as the message of one")
    }

    fn place_of(&self, part: &RawValue) -> Range<usize> {
        let begin = (part.get().as_ptr() as usize).wrapping_sub(self.text.bytes.as_ptr() as usize);
        begin..begin.saturating_add(part.get().len())
    }

    /// An error that says what the answer lacks.
    pub fn malformed(&self, missing: &str) -> ApiError {
        ApiError { endpoint: self.endpoint, kind: ErrorKind::Malformed(missing.to_owned()), asked: self.asked.clone() }
    }
}

/// An answer that is a list.
pub struct List<T> {
    /// The elements that could be read.
    pub records: Vec<T>,
    /// The number of elements, readable or not.
    pub elements: usize,
    /// What is wrong with the first element that could not be read.
    pub bad: Option<ApiError>,
}

/// Why serde_json could not read the answer. Some of its own messages quote the answer, which may hold secrets, so they
/// are not used.
fn what_is_missing(error: &serde_json::Error) -> String {
    let text = error.to_string();
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
