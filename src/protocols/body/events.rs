//! Finds the JSON objects of a body: a single one, an array of them, NDJSON, or one after the other.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::BodyError;
use super::text::{BOM, NOT_UTF8, is_white_space};

/// One JSON object of a body.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// The object, from `{` to `}`.
    pub json: &'a RawValue,
    /// Where it begins in the body.
    pub offset: usize,
}

impl<'a> Event<'a> {
    /// The object as it was sent.
    pub fn bytes(&self) -> &'a [u8] {
        self.json.get().as_bytes()
    }
}

/// The events of a JSON body. Each is validated when the iterator reaches it. Ends after the first error.
pub struct Events<'a> {
    body: &'a [u8],
    position: usize,
    array: Array,
    found: u64,
}

/// Whether the events are elements of an array, and where in the array the iterator is.
#[derive(PartialEq)]
enum Array {
    None,
    Opened,
    AfterElement,
}

impl<'a> Events<'a> {
    /// Whether `body` is taken as JSON: after a BOM and white space `{`, or `[` followed by white
    /// space and `{` or `]`.
    pub fn sniff(body: &[u8]) -> bool {
        let mut tokens = body.strip_prefix(BOM).unwrap_or(body).iter().filter(|&&byte| !is_white_space(byte));
        match tokens.next() {
            Some(b'{') => true,
            Some(b'[') => matches!(tokens.next(), Some(b'{' | b']')),
            _ => false,
        }
    }

    /// The events of `body` after its first `position` bytes, which have `found` events, one a line.
    pub(super) fn after(body: &'a [u8], position: usize, found: u64) -> Self {
        match found {
            0 => Events::new(body),
            _ => Events { body, position, array: Array::None, found },
        }
    }

    /// The events of `body`, which may begin with a BOM.
    pub fn new(body: &'a [u8]) -> Self {
        let position = if body.starts_with(BOM) { BOM.len() } else { 0 };
        let mut events = Events { body, position, array: Array::None, found: 0 };
        if events.next_token() == Some(b'[') {
            events.position += 1;
            events.array = Array::Opened;
        }
        events
    }

    /// The objects of a line of text that is nothing but JSON objects, alone, one after the other or in an array;
    /// `None` for any other line.
    pub fn of_line(line: &'a str) -> Option<impl Iterator<Item = &'a RawValue>> {
        let mut events = Events::new(line.as_bytes());
        let is_json = Events::sniff(line.as_bytes())
            && events.next().is_some_and(|first| first.is_ok())
            && events.all(|event| event.is_ok());
        is_json.then(|| Events::new(line.as_bytes()).map_while(Result::ok).map(|event| event.json))
    }

    /// Skips white space; returns the byte after it.
    fn next_token(&mut self) -> Option<u8> {
        while let Some(&byte) = self.body.get(self.position) {
            if !is_white_space(byte) {
                return Some(byte);
            }
            self.position += 1;
        }
        None
    }

    fn step(&mut self) -> Result<Option<Event<'a>>, BodyError> {
        let mut token = self.next_token();
        match (&self.array, token) {
            (Array::None, None) => return Ok(None),
            (Array::None, Some(_)) => {}
            (Array::Opened | Array::AfterElement, None) => return Err(self.invalid(0, "the array is not closed")),
            (Array::Opened | Array::AfterElement, Some(b']')) => return self.close_array(),
            (Array::Opened, Some(_)) => {}
            (Array::AfterElement, Some(b',')) => {
                self.position += 1;
                token = self.next_token();
                self.array = Array::Opened;
                if token == Some(b']') {
                    return Err(self.invalid(0, "trailing comma"));
                }
            }
            (Array::AfterElement, Some(_)) => return Err(self.invalid(0, "expected `,` or `]` after an element")),
        }
        if token != Some(b'{') {
            return Err(self.invalid(0, "expected `{`: an event is a JSON object"));
        }
        let event = Event { json: self.object()?, offset: self.position };
        self.position += event.bytes().len();
        self.found += 1;
        if self.array == Array::Opened {
            self.array = Array::AfterElement;
        }
        Ok(Some(event))
    }

    fn close_array(&mut self) -> Result<Option<Event<'a>>, BodyError> {
        self.position += 1;
        match self.next_token() {
            None => {
                self.array = Array::None;
                Ok(None)
            }
            Some(_) => Err(self.invalid(0, "nothing may follow the array")),
        }
    }

    /// The object at the current position.
    fn object(&self) -> Result<&'a RawValue, BodyError> {
        let json = &self.body[self.position..];
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let error = match <&RawValue>::deserialize(&mut deserializer) {
            Ok(object) => return Ok(object),
            Err(error) => error,
        };
        let at = offset_of(&error, json);
        // serde_json checks UTF-8 after it has read the whole value, and reports the value's end. So the
        // wrong byte is looked for here.
        match std::str::from_utf8(json) {
            Err(not_utf8) if not_utf8.valid_up_to() <= at => Err(self.invalid(not_utf8.valid_up_to(), NOT_UTF8)),
            _ => {
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                let is_single = json.get(at) == Some(&b'\'');
                Err(self
                    .invalid(at, &format!("{reason}{}", if is_single { "; JSON has double quotes (\")" } else { "" })))
            }
        }
    }

    /// The error for the current event `at` bytes after the current position.
    fn invalid(&self, at: usize, reason: &str) -> BodyError {
        BodyError::Invalid { event: self.found, offset: self.position + at, reason: reason.to_owned() }
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = Result<Event<'a>, BodyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.position = self.body.len();
            self.array = Array::None;
        }
        step.transpose()
    }
}

/// The byte in `json` that serde_json's line and column point at: the wrong one, or for a raw control character the one
/// before it.
fn offset_of(error: &serde_json::Error, json: &[u8]) -> usize {
    if error.is_eof() {
        return json.len();
    }
    let line_start = match error.line() {
        0 | 1 => 0,
        line => memchr::memchr_iter(b'\n', json).nth(line - 2).map_or(json.len(), |newline| newline + 1),
    };
    (line_start + error.column()).saturating_sub(1)
}
