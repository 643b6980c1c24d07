//! The log: one line an event on standard error, panics too, and repeats counted instead of printed.

pub mod metrics;
mod repeats;

use std::borrow::Cow;
use std::io::{self, Write};
use std::panic::PanicHookInfo;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;
use crate::exit_code;
use repeats::OWN_TARGET;
pub use repeats::report_suppressed;

/// Starts the log. For once in a process; a second call changes nothing.
///
/// `filter` (`RUST_LOG`) wins over `level`. Other crates' lines below INFO are never shown:
/// they hold requests and headers.
pub fn init(level: &str, filter: Option<&str>, format: LogFormat) {
    let lines = tracing_subscriber::fmt::layer().with_writer(|| OneLine(io::stderr())).log_internal_errors(false);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    let default = || EnvFilter::new(default_directives(level));
    let filter = filter.and_then(|filter| EnvFilter::try_new(filter).ok()).unwrap_or_else(default);
    let _ = tracing_subscriber::registry().with(filter).with(repeats::Repeats).with(lines).try_init();
}

/// Other crates speak only when something is wrong.
fn default_directives(level: &str) -> String {
    match level {
        "off" | "error" => level.to_owned(),
        // The HTTP client of AWS's warns at each answer that it can't read, in its own words. We tell of it, too.
        _ => format!("warn,aws_smithy_http_client=error,{OWN_TARGET}={level}"),
    }
}

/// Makes a panic one line, of the log where it is started, and exit code 70.
pub fn exit_on_panic() {
    std::panic::set_hook(Box::new(exit_at_once));
}

/// A broken invariant ends the process, whichever thread it is found in: what is acknowledged is on disk.
fn exit_at_once(panic: &PanicHookInfo<'_>) {
    let reason = panic.payload_as_str().unwrap_or("no reason given");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    if tracing::dispatcher::has_been_set() {
        tracing::error!(panic.location = place, "a bug ended the process, nothing acknowledged is lost: {reason}");
    } else {
        let line = format!("error: a bug ended the process, at {place}: {reason}");
        let _ = OneLine(io::stderr()).write_all(line.as_bytes());
    }
    std::process::exit(exit_code::SOFTWARE.into());
}

/// How messages name the document that most of their sections are in.
const DOCUMENT: &str = "config/README.md";

/// `text` with each section that it names as a URL, where this build knows the repository's. What is a URL already, as
/// in the words of a running daemon that `check` repeats, stays as it is.
pub fn linked(text: &str) -> Cow<'_, str> {
    linked_to(env!("DOCUMENTS"), text)
}

fn linked_to<'a>(documents: &str, text: &'a str) -> Cow<'a, str> {
    if documents.is_empty() || !text.contains(DOCUMENT) {
        return text.into();
    }
    let mut linked = String::with_capacity(text.len() + documents.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(DOCUMENT) {
        linked.push_str(before);
        if !before.ends_with('/') {
            linked.push_str(documents);
        }
        linked.push_str(DOCUMENT);
        rest = after;
    }
    linked.push_str(rest);
    linked.into()
}

/// Keeps an event on one line, whatever its values hold. The layer above writes each event at once.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = linked(text.trim_end_matches('\n'));
        if text.contains(is_unseen) {
            writeln!(self.0, "{}", text.chars().map(escape).collect::<String>())?;
        } else {
            writeln!(self.0, "{text}")?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// `text` in the form in which commands write theirs: what a terminal would obey in others' words is escaped, but for
/// the ends of lines.
pub fn shown(text: &str) -> String {
    let shown = linked(text);
    if shown.contains(is_unseen) {
        shown.chars().map(|c| if c == '\n' { c.to_string() } else { escape(c) }).collect()
    } else {
        shown.into_owned()
    }
}

/// What a terminal obeys and does not show: control characters, and marks that turn the direction of text, have no
/// width or end a line.
fn is_unseen(c: char) -> bool {
    let has_no_width = matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || has_no_width
}

/// As JSON has it, so that a line of JSON stays one, and the same.
fn escape(c: char) -> String {
    match c {
        '\n' | '\r' | '\t' => c.escape_default().to_string(),
        c if is_unseen(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_on_one_line_whatever_its_values_hold() {
        let mut out = OneLine(Vec::new());
        out.write_all("WARN refused error=first\nsecond \x1b[31m\u{85}\r\n".as_bytes()).unwrap();
        assert_eq!(out.0, b"WARN refused error=first\\nsecond \\u001b[31m\\u0085\\r\n");
    }

    #[test]
    fn a_section_is_named_by_its_url_where_the_repository_is_known() {
        let text = "no token; see config/README.md#no-token, and config/README.md#http";
        assert_eq!(linked_to("", text), text);
        let documents = "https://git.example.com/we/it/blob/1f2e/";
        let expected =
            format!("no token; see {documents}config/README.md#no-token, and {documents}config/README.md#http");
        assert_eq!(linked_to(documents, text), expected);
        assert_eq!(linked_to(documents, &expected), expected, "a URL is one already");
    }

    #[test]
    fn every_level_of_the_configuration_makes_a_filter() {
        for level in ["off", "error", "warn", "info", "debug", "trace"] {
            assert!(EnvFilter::try_new(default_directives(level)).is_ok(), "{level}");
        }
    }
}
