//! A page of events in pieces of bounded size: a step's log may come in one page, and that
//! page need not fit into memory.
//!
//! The bytes of the member `events` are cut at commas between events, and each piece is a list of its own. All else
//! that the page says is kept and comes last. Nothing but strings and brackets is looked at here; whoever reads a piece
//! finds out whether it is JSON.

use std::collections::VecDeque;

use tokio::sync::OwnedMutexGuard;

use crate::batch::{Sha256, Sha256Hasher};
use crate::pull::api::answer::Answer;
use crate::pull::api::body::{Body, Failed, Unread};
use crate::pull::api::error::{ApiError, Asked, Endpoint, ErrorKind, requests};
use crate::pull::api::text::Text;

/// A piece ends with the event that reaches this size.
const PIECE_BYTES: usize = 256 * 1024;
/// Of an event that is larger than this and than what may be stored only size and hash are kept: to redact and to cut
/// it takes several times its memory.
const EVENT_MAX_BYTES: usize = 8 * 1024 * 1024;
/// What is wrong with a page whose events were not found by the name of their member.
pub const EVENTS_IN_REST: &str = "the name of its member `events` is written with escapes";
/// What a page says beside its events is far smaller.
const REST_MAX_BYTES: usize = 1024 * 1024;

/// A page that is being read.
pub struct Pieces {
    splitter: Splitter,
    unread: Option<Unread>,
    /// How much of it was read.
    bytes: usize,
    endpoint: Endpoint,
    asked: Asked,
    _alone: Option<OwnedMutexGuard<()>>,
}

impl Pieces {
    /// `max_event_bytes`: events up to this size are stored whole.
    pub(super) fn of(body: Body, endpoint: Endpoint, asked: Asked, max_event_bytes: usize) -> Pieces {
        let Body { bytes, read, unread, alone } = body;
        let mut splitter = Splitter::leaving_out(max_event_bytes.max(EVENT_MAX_BYTES));
        splitter.push(&bytes);
        Pieces { splitter, unread, bytes: read, endpoint, asked, _alone: alone }
    }

    /// The next piece, a list of events; `None` behind the last.
    ///
    /// # Errors
    /// The answer breaks off, takes too long or is too large.
    pub async fn next(&mut self) -> Result<Option<Answer>, ApiError> {
        loop {
            match self.splitter.pieces.pop_front() {
                Some(Cut::Events(list)) => return self.answer(list, false).map(Some),
                Some(Cut::LeftOut { bytes, sha256 }) => {
                    let list = format!("[{{\"cutFromBytes\":{bytes},\"sha256\":\"{sha256}\"}}]");
                    return self.answer(list.into(), true).map(Some);
                }
                None => {}
            }
            let Some(unread) = &mut self.unread else { return Ok(None) };
            match unread.chunk().await {
                Ok(Some(chunk)) => {
                    self.bytes += chunk.len();
                    self.splitter.push(&chunk);
                }
                Ok(None) => {
                    self.unread = None;
                    requests(self.endpoint, "succeeded").increment(1);
                }
                Err(Failed { kind, .. }) => return Err(self.failed(kind)),
            }
            if self.splitter.rest.len() > REST_MAX_BYTES {
                return Err(self.failed(ErrorKind::Malformed("it says more than 1 MiB beside its events".to_owned())));
            }
        }
    }

    /// How many bytes of the page were read.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the page says beside its events, whose list is empty there. Call it behind the last piece.
    pub fn rest(&mut self) -> Result<Answer, ApiError> {
        let rest = std::mem::take(&mut self.splitter.rest);
        self.answer(rest, false)
    }

    /// An error that says what the answer lacks.
    pub fn malformed(&self, missing: &str) -> ApiError {
        self.error(ErrorKind::Malformed(missing.to_owned()))
    }

    fn answer(&self, bytes: Vec<u8>, left_out: bool) -> Result<Answer, ApiError> {
        let text = Text::of(bytes.into(), usize::MAX).ok_or_else(|| self.error(ErrorKind::TooLarge))?;
        Ok(Answer { text, endpoint: self.endpoint, asked: self.asked.clone(), left_out, _alone: None })
    }

    fn failed(&self, kind: ErrorKind) -> ApiError {
        let error = self.error(kind);
        requests(self.endpoint, error.as_str()).increment(1);
        error
    }

    fn error(&self, kind: ErrorKind) -> ApiError {
        ApiError { endpoint: self.endpoint, kind, asked: self.asked.clone() }
    }
}

/// What was cut out of a page.
#[derive(Debug, PartialEq, Eq)]
enum Cut {
    /// A list of events.
    Events(Vec<u8>),
    /// In the place of an event that is too large to be read: its size, and the hash of these bytes.
    LeftOut { bytes: u64, sha256: Sha256 },
}

/// Tells the events from the rest, byte by byte.
#[derive(Default)]
struct Splitter {
    /// The page without its events.
    rest: Vec<u8>,
    /// Where in `rest` the last string of the page's own members begins.
    name_from: usize,
    /// Whether the value of `events` comes next.
    is_events: bool,
    /// How many brackets and braces are open.
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Larger events are left out.
    event_max_bytes: usize,
    /// While their list is open.
    events: Option<Events>,
    /// The pieces that are complete.
    pieces: VecDeque<Cut>,
}

/// The events of the piece that is being put together.
#[derive(Default)]
struct Events {
    /// With its first bracket, if there is an event in it.
    piece: Vec<u8>,
    /// Where the last event begins, with the comma before it.
    event_from: usize,
    /// The size and hash of that event, where it is too large.
    too_large: Option<(u64, Sha256Hasher)>,
    /// Whether a comma has come that is not in the piece yet.
    has_comma: bool,
}

impl Splitter {
    fn leaving_out(event_max_bytes: usize) -> Splitter {
        Splitter { event_max_bytes, ..Splitter::default() }
    }

    fn push(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.push_byte(*byte));
    }

    fn push_byte(&mut self, byte: u8) {
        let was_in_string = self.in_string;
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.in_string => self.is_escaped = true,
            b'"' => self.in_string = !self.in_string,
            _ => {}
        }
        if let Some(events) = &mut self.events {
            match byte {
                b',' if !was_in_string && self.depth == 2 => events.end_event(true, &mut self.pieces),
                b']' | b'}' if !was_in_string && self.depth == 2 => {
                    self.events.take().unwrap_or_default().end(&mut self.pieces);
                    self.depth = 1;
                    self.rest.push(byte);
                }
                _ => {
                    if !was_in_string {
                        self.depth = depth_after(self.depth, byte);
                    }
                    let is_between = self.depth == 2 && !self.in_string;
                    if !(is_between && is_further_space(byte, &events.piece)) {
                        events.push(byte, self.event_max_bytes);
                    }
                }
            }
            return;
        }
        if was_in_string {
            self.rest.push(byte);
            return;
        }
        if is_further_space(byte, &self.rest) {
            return;
        }
        self.rest.push(byte);
        match byte {
            b'"' if self.depth == 1 => self.name_from = self.rest.len(),
            b':' if self.depth == 1 => {
                self.is_events = self.rest[self.name_from..].starts_with(b"events\"");
            }
            b',' if self.depth == 1 => self.is_events = false,
            b'[' if self.depth == 1 && self.is_events => self.events = Some(Events::default()),
            _ => {}
        }
        self.depth = depth_after(self.depth, byte);
    }
}

/// Space says nothing behind space. Outside of events and strings there may be any amount of it.
fn is_further_space(byte: u8, before: &[u8]) -> bool {
    byte.is_ascii_whitespace() && before.last().is_some_and(u8::is_ascii_whitespace)
}

fn depth_after(depth: usize, byte: u8) -> usize {
    match byte {
        b'[' | b'{' => depth + 1,
        b']' | b'}' => depth.saturating_sub(1),
        _ => depth,
    }
}

impl Events {
    fn push(&mut self, byte: u8, max_bytes: usize) {
        if let Some((bytes, hasher)) = &mut self.too_large {
            *bytes += 1;
            hasher.update(&[byte]);
            return;
        }
        self.begin_event();
        self.piece.push(byte);
        if self.piece.len() - self.event_from > max_bytes {
            let mut hasher = Sha256Hasher::default();
            let event = &self.piece[self.event_from..];
            let event = event.strip_prefix(b",").unwrap_or(event);
            hasher.update(event);
            self.too_large = Some((event.len() as u64, hasher));
            self.piece.truncate(self.event_from);
        }
    }

    /// Puts into the piece what stands before an event.
    fn begin_event(&mut self) {
        if self.piece.is_empty() {
            self.piece.push(b'[');
            self.event_from = self.piece.len();
        }
        if std::mem::take(&mut self.has_comma) {
            self.piece.push(b',');
        }
    }

    /// The last event is complete, and a comma follows where `has_comma`.
    fn end_event(&mut self, has_comma: bool, pieces: &mut VecDeque<Cut>) {
        if self.has_comma {
            // Of two commas in a row the first one stays, so that the piece is no JSON.
            self.begin_event();
        }
        let too_large = self.too_large.take();
        if too_large.is_some() || self.piece.len() >= PIECE_BYTES {
            self.cut(pieces);
        } else {
            self.has_comma = has_comma;
        }
        if let Some((bytes, hasher)) = too_large {
            pieces.push_back(Cut::LeftOut { bytes, sha256: hasher.finish() });
        }
        self.event_from = self.piece.len();
    }

    fn end(mut self, pieces: &mut VecDeque<Cut>) {
        self.end_event(false, pieces);
        self.cut(pieces);
    }

    fn cut(&mut self, pieces: &mut VecDeque<Cut>) {
        let mut piece = std::mem::take(&mut self.piece);
        if piece.len() > b"[".len() {
            piece.push(b']');
            pieces.push_back(Cut::Events(piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::*;

    /// The rest of a page and its pieces, when it comes in chunks of `chunk` bytes.
    fn split(page: &[u8], chunk: usize) -> (String, Vec<Cut>) {
        let mut splitter = Splitter::leaving_out(EVENT_MAX_BYTES);
        page.chunks(chunk).for_each(|chunk| splitter.push(chunk));
        (String::from_utf8(splitter.rest).unwrap(), splitter.pieces.into())
    }

    fn events_of(pieces: &[Cut]) -> Vec<String> {
        let of = |piece: &Cut| match piece {
            Cut::Events(list) => {
                let events: Vec<&RawValue> = serde_json::from_slice(list).unwrap();
                events.iter().map(|event| event.get().to_owned()).collect()
            }
            Cut::LeftOut { bytes, .. } => vec![format!("{bytes} bytes")],
        };
        pieces.iter().flat_map(of).collect()
    }

    #[test]
    fn a_page_is_cut_between_events_and_nowhere_else_however_it_arrives() {
        let events = [r#"{"a":"]},{\"events\":[","b":[1,[2]]}"#, "\"a \\\\\"", "7", "[]", r#"{"events":[1,2]}"#];
        let before = r#"{"a":{"events":[1]}, "not events":[2], "b":"events", "#;
        let after = r#","nextStartTime":"events","hasMoreLogs":true}"#;
        let page = format!("{before}\"events\" : [{} ]{after}", events.join(" , \n"));
        for chunk in 1..page.len() {
            let (rest, pieces) = split(page.as_bytes(), chunk);
            assert_eq!(rest, format!("{before}\"events\" : []{after}"));
            assert_eq!(events_of(&pieces), events);
        }
    }

    #[test]
    fn a_long_page_comes_in_pieces_with_each_event_in_one_of_them() {
        let events: Vec<String> =
            (0..20_000).map(|number| format!(r#"{{"number":{number},"text":"{}"}}"#, "x".repeat(80))).collect();
        let (rest, pieces) = split(format!(r#"{{"events":[{}]}}"#, events.join(",")).as_bytes(), 10_000);
        assert_eq!((rest.as_str(), events_of(&pieces)), (r#"{"events":[]}"#, events));
        assert!(pieces.len() > 4);
        for piece in pieces {
            assert!(matches!(piece, Cut::Events(list) if list.len() < PIECE_BYTES + 200));
        }
    }

    #[test]
    fn an_event_that_is_too_large_is_left_out_and_the_others_come() {
        let large = format!("\"{}\"", "x".repeat(EVENT_MAX_BYTES));
        let sha256 = Sha256::of(large.as_bytes());
        for [before, after] in [["1,2,", ",3"], ["", ",3"], ["1,2,", ""], ["", ""]] {
            let (_, pieces) = split(format!(r#"{{"events":[{before}{large}{after}]}}"#).as_bytes(), 4096);
            let left_out = Cut::LeftOut { bytes: large.len() as u64, sha256 };
            assert_eq!(pieces.iter().filter(|piece| **piece == left_out).count(), 1);
            let expected = format!("{before}{} bytes{after}", large.len());
            assert_eq!(events_of(&pieces).join(","), expected);
        }
    }

    #[test]
    fn megabytes_of_space_between_values_take_no_memory_and_separate_what_they_separate() {
        let space = " ".repeat(2 * REST_MAX_BYTES);
        let page = format!(
            r#"{space}{{{space}"events":{space}[{space}1{space},{space}" {space}",{space}2{space}]{space}}}{space}"#
        );
        let (rest, pieces) = split(page.as_bytes(), 4096);
        assert_eq!(rest, r#" { "events": [] } "#);
        let bytes: usize = pieces.iter().map(|piece| if let Cut::Events(list) = piece { list.len() } else { 0 }).sum();
        assert!(bytes < space.len() + 20);
        assert_eq!(events_of(&pieces), ["1".to_owned(), format!("\" {space}\""), "2".to_owned()]);
        let (_, pieces) = split(br#"{"events":[1  2]}"#, 1);
        assert_eq!(pieces, [Cut::Events(b"[1 2]".to_vec())]);
    }

    #[test]
    fn what_is_no_page_of_events_is_no_json_either() {
        for list in ["1,,2", ",1", "1,", "1 2", "{]", "1}"] {
            let (rest, pieces) = split(format!(r#"{{"events":[{list}]}}"#).as_bytes(), 1);
            let is_json =
                |piece: &Cut| matches!(piece, Cut::Events(list) if serde_json::from_slice::<Value>(list).is_ok());
            assert!(!pieces.iter().all(is_json) || serde_json::from_str::<Value>(&rest).is_err(), "{list}: {pieces:?}");
        }
        for page in
            ["{\"events\":[1,2", "{\"events\":[{\"a\":\"", "<html>[1,2]", "", "{\"events\":7", "[{\"events\":[1]}"]
        {
            let (rest, pieces) = split(page.as_bytes(), 1);
            assert!(serde_json::from_str::<Value>(&rest).is_err() && pieces.is_empty(), "{page}");
        }
    }
}
