//! An answer of env0's API, read as what env0 documents. If it isn't, the error says which member is missing.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::OwnedMutexGuard;

use crate::protocols::body::text_of;
use crate::pull::api::error::{ApiError, Asked, Endpoint, ErrorKind};
use crate::pull::api::text::Text;

/// No list of env0's has more elements: the longest, a whole log, has some hundred thousand lines.
pub const LINES_MAX: usize = 400_000;
/// No other list comes near this. What is kept of a record takes many times the two bytes that the shortest one has.
pub const RECORDS_MAX: usize = 20_000;
const TOO_MANY_RECORDS: &str = "it lists more than 20000 records, and the others are left out";
/// How the error of a list that is too long begins.
const TOO_MANY: &str = "it lists more than ";
/// No cursor of env0's comes near it. One is kept for each page.
const CURSOR_MAX_BYTES: usize = 1024;

/// The body of an answer.
pub struct Answer {
    pub(super) text: Text,
    pub(super) endpoint: Endpoint,
    pub(super) asked: Asked,
    /// Whether it stands for an event that was too large to be read.
    pub(super) left_out: bool,
    /// Held by a large answer, so that no second one of its kind is in memory at the same time.
    pub(super) _alone: Option<OwnedMutexGuard<()>>,
}

impl Answer {
    /// Reads it as `T`, which may borrow from it.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.text.bytes).map_err(|error| self.malformed(&what_is_missing(&error)))
    }

    /// Reads it as a list of `T`. An element that isn't a `T` is left out, as those behind the 20,000th are, and the
    /// error is kept in [`List::bad`].
    pub fn list<'a, T: Deserialize<'a>>(&'a self) -> Result<List<T>, ApiError> {
        let Elements(elements) = self.parse::<Elements<'a, LINES_MAX>>()?;
        let bad = (elements.len() > RECORDS_MAX).then(|| self.malformed(TOO_MANY_RECORDS));
        let mut list = List { records: Vec::new(), elements: elements.len(), bad };
        for element in elements.into_iter().take(RECORDS_MAX) {
            match serde_json::from_str(element.get()) {
                Ok(record) => list.records.push(record),
                Err(error) => {
                    list.bad.get_or_insert(self.malformed(&what_is_missing(&error)));
                }
            }
        }
        Ok(list)
    }

    /// What the next page is asked with: a string, or a number as it was written. With
    /// anything else this page is the last.
    ///
    /// # Errors
    /// It has more than 1,024 bytes.
    pub fn cursor(&self, value: Option<&RawValue>) -> Result<Option<String>, ApiError> {
        let value = value.map_or("null", RawValue::get);
        if value.len() > CURSOR_MAX_BYTES {
            return Err(self.malformed("what the next page is asked with has more than 1,024 bytes"));
        }
        let is_number = value.starts_with(|first: char| first.is_ascii_digit() || first == '-');
        let cursor = if is_number { Some(value.into()) } else { text_of(value) };
        Ok(cursor.filter(|cursor| !cursor.is_empty()).map(Cow::into_owned))
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
        if self.left_out {
            return Some("an event is too large to be read; its size and SHA-256 are stored in its stead");
        }
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

    /// An error that says that a list has more elements than `max`.
    pub fn too_many(&self, max: usize) -> ApiError {
        self.malformed(&format!("{TOO_MANY}{max} elements"))
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

/// The elements of a list, as they were sent. One of more than `MAX` is an error: two
/// bytes of it take sixteen in memory.
pub struct Elements<'a, const MAX: usize>(pub Vec<&'a RawValue>);

impl<'de: 'a, 'a, const MAX: usize> Deserialize<'de> for Elements<'a, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<const MAX: usize>;

        impl<'de, const MAX: usize> Visitor<'de> for List<MAX> {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    if elements.len() == MAX {
                        return Err(A::Error::custom(format_args!("{TOO_MANY}{MAX} elements")));
                    }
                    elements.push(element);
                }
                Ok(elements)
            }
        }

        deserializer.deserialize_seq(List::<MAX>).map(Elements)
    }
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
        _ if text.starts_with(TOO_MANY) => text.split(" at line ").next().unwrap_or_default().to_owned(),
        _ if error.is_data() => format!("a value of another type at {place}"),
        _ if error.is_eof() => "it breaks off".to_owned(),
        _ => format!("it is not JSON at {place}"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn answer(text: impl Into<Bytes>) -> Answer {
        let asked = Asked { host: "env0".to_owned(), key_id: "id".to_owned() };
        let text = Text::of(text.into(), usize::MAX).unwrap();
        Answer { text, endpoint: Endpoint::StepLog, asked, left_out: false, _alone: None }
    }

    #[test]
    fn a_cursor_is_a_string_or_a_number_as_it_was_written() {
        let cursor = |json: &str| {
            let answer = answer(json.to_owned());
            let value = answer.parse::<Option<&RawValue>>().unwrap();
            answer.cursor(value).map_err(|error| error.to_string())
        };
        assert_eq!(cursor("1700000000000123456789").unwrap().unwrap(), "1700000000000123456789");
        assert_eq!(cursor(r#""a\/b""#).unwrap().unwrap(), "a/b");
        for none in ["null", "\"\"", "{}", "[1]", "true"] {
            assert_eq!(cursor(none).unwrap(), None, "{none}");
        }
        let long = cursor(&format!("\"{}\"", "x".repeat(CURSOR_MAX_BYTES))).unwrap_err();
        assert!(long.contains("more than 1,024 bytes"), "{long}");
    }

    #[test]
    fn a_list_of_too_many_elements_is_said_and_not_read() {
        let list = |elements: usize| answer(format!("[{}]", vec!["{}"; elements].join(",")));
        assert_eq!(list(3).parse::<Elements<'_, 3>>().unwrap().0.len(), 3);
        let error = list(4).parse::<Elements<'_, 3>>().err().unwrap().to_string();
        assert!(error.contains("it lists more than 3 elements"), "{error}");
        let long = list(RECORDS_MAX + 7);
        let List { records, elements, bad } = long.list::<&RawValue>().unwrap();
        assert_eq!((records.len(), elements), (RECORDS_MAX, RECORDS_MAX + 7));
        assert!(bad.unwrap().to_string().contains("the others are left out"));
    }
}
