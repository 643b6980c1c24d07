//! Who answered, judged from the raw answer. Anything on the way to S3 can answer in its place: a login page, a
//! firewall's notice, a proxy, a balancer without a store behind it, another web server.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use memchr::memmem;

use super::checksums::{Checksums, is_of};
use super::sent::Sent;
use crate::batch::Sha256;
use crate::network::server;

/// A page for people has one of these, in whatever case. Login pages often leave the first two out.
const HTML_TAGS: [&[u8]; 5] = [b"<html", b"<!doctype html", b"<head>", b"<body", b"<title"];

/// What an answer says of who sent it.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// S3's error document: its root element is `Error`.
    pub(super) is_error_document: bool,
    /// A page for people. Never S3's, whatever headers it has.
    pub(super) is_html: bool,
    /// An XML document, as S3's answer to `GetBucketLocation` is.
    is_xml: bool,
    /// S3's answer to a PUT has none.
    pub(super) has_body: bool,
    /// In the form that S3 sends: neither weak nor empty.
    has_e_tag: bool,
    has_request_id: bool,
    /// Each `x-amz-checksum-sha256`, as sent.
    checksums: Vec<String>,
    pub(super) other_checksums: Checksums,
    /// The checksum is one of an object that was made in parts.
    is_composite: bool,
    /// `x-amz-bucket-region`, as sent.
    pub(super) region: Option<String>,
    /// As sent.
    pub(super) retry_after: Option<String>,
    /// The error document speaks of `If-None-Match`.
    names_the_condition: bool,
    /// The error document speaks of another header.
    names_another_header: bool,
    /// The header or argument that the error document refuses, as sent.
    pub(super) refused_header: Option<String>,
    /// The condition that the error document says did not hold, in lower case.
    condition: Option<String>,
    /// The object that the error document speaks of, as sent.
    key: Option<String>,
}

/// Why a 2xx doesn't confirm an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotConfirmed {
    /// Nothing shows that the store sent it.
    NotTheStore,
    /// The store has other bytes than were sent.
    OtherChecksum,
    /// It came before all of the object was sent.
    TooEarly,
}

/// In lower case, as the others below.
const CONDITION_HEADER: &[u8] = b"if-none-match";
/// What S3's document puts the name of a header in that it refuses.
const HEADER_ELEMENT: &[u8] = b"<header>";
/// The same in the answer to a value that S3 doesn't know.
const ARGUMENT_ELEMENT: &[u8] = b"<argumentname>";
/// All other headers of ours that a store may not know begin so.
const AMZ_HEADER: &[u8] = b"x-amz-";

impl Answer {
    /// `response` with its body read.
    pub(super) fn of(response: &HttpResponse) -> Answer {
        let header = |name: &str| response.headers().get(name).map(str::trim).filter(|value| !value.is_empty());
        let body = response.body().bytes().unwrap_or_default();
        let root = root_element(body);
        let is_error_document = root == Some("Error");
        let document = body.to_ascii_lowercase();
        let content_type = header("content-type").unwrap_or_default().to_ascii_lowercase();
        let looks_like_html = ["text/html", "application/xhtml"].iter().any(|html| content_type.starts_with(html))
            || HTML_TAGS.iter().any(|tag| memmem::find(&document, tag).is_some());
        let names = |name: &[u8]| is_error_document && memmem::find(&document, name).is_some();
        let refused = [HEADER_ELEMENT, ARGUMENT_ELEMENT].into_iter().find_map(|element| text_of(&document, element));
        Answer {
            status: response.status().as_u16(),
            is_error_document,
            is_html: looks_like_html && !is_error_document,
            is_xml: root.is_some(),
            has_body: !body.trim_ascii().is_empty(),
            has_e_tag: header("etag").is_some_and(is_s3s_e_tag),
            has_request_id: header("x-amz-request-id").is_some(),
            checksums: response.headers().get_all("x-amz-checksum-sha256").map(str::to_owned).collect(),
            other_checksums: Checksums::of(response),
            is_composite: header("x-amz-checksum-type").is_some_and(|kind| kind.eq_ignore_ascii_case("COMPOSITE")),
            region: header("x-amz-bucket-region").map(str::to_owned),
            retry_after: header("retry-after").map(str::to_owned),
            names_the_condition: names(CONDITION_HEADER),
            names_another_header: names(HEADER_ELEMENT) || names(AMZ_HEADER),
            refused_header: refused.filter(|_| is_error_document),
            condition: text_of(&document, b"<condition>"),
            key: text_of(body, b"<Key>"),
        }
    }

    /// Whether the store itself sent it. Stores differ in what they send: some no document, some no request id, some
    /// no `ETag`. A proxy can pass on a header of the store's with a body of its own, so headers count only where no
    /// body follows them: S3's only body after a PUT is its error document.
    pub(super) fn is_the_stores(&self) -> bool {
        self.is_error_document || ((self.has_request_id || self.has_e_tag) && self.is_empty())
    }

    /// Neither a body, nor the type of a page.
    fn is_empty(&self) -> bool {
        !self.has_body && !self.is_html
    }

    /// Whether the store itself sent it in answer to `GetBucketLocation`. Stores have forms of their own from which no
    /// region can be read, but it is XML, or has a mark of the store's.
    pub(super) fn may_tell_a_location(&self) -> bool {
        self.status == 200 && !self.is_html && (self.is_xml || self.has_request_id)
    }

    /// Whether it confirms that the store has exactly the bytes with this hash. Only then, and where its other checksums
    /// are those of the file's bytes, may their file go.
    pub(super) fn confirms(&self, sha256: &Sha256) -> Result<(), NotConfirmed> {
        // No PUT of ours is made in parts; whatever the type says, our own hash is that of our bytes.
        let is_in_parts = self.is_composite && self.checksums.is_empty();
        if is_in_parts || self.checksums.iter().any(|checksum| !is_of(checksum, &sha256.0)) {
            return Err(NotConfirmed::OtherChecksum);
        }
        let is_marked = self.has_request_id || self.has_e_tag || !self.checksums.is_empty();
        let holds = self.status == 200 && is_marked && self.is_empty();
        if holds { Ok(()) } else { Err(NotConfirmed::NotTheStore) }
    }

    /// Whether its document is about another condition than `If-None-Match`, or about another object than the one with
    /// this key. Then a 412 says nothing of whether our object is there. Of the key, only what stands behind its last
    /// colon is compared, with the name's random characters: a store may write the rest otherwise, with `%2F` or a prefix
    /// of its own.
    pub(super) fn is_about_something_else(&self, key: &str) -> bool {
        let tail = key.rsplit(':').next().unwrap_or(key);
        let is_other_key = self.key.as_deref().is_some_and(|told| !told.ends_with(tail));
        let condition = self.condition.as_deref().map(str::trim).map(str::as_bytes);
        is_other_key || condition.is_some_and(|condition| condition != CONDITION_HEADER)
    }

    /// Whether a 501, or a 400 with the code NotImplemented, may be about `If-None-Match`: not where it names another
    /// header alone, and not where a page for people came.
    pub(super) fn may_lack_the_condition(&self, code: Option<&str>) -> bool {
        let lacks_something = self.status == 501 || (self.status == 400 && code == Some("NotImplemented"));
        lacks_something && (self.names_the_condition || !self.names_another_header) && !self.is_html
    }
}

/// Web servers mark a file of theirs by a weak tag; an empty one marks nothing.
fn is_s3s_e_tag(value: &str) -> bool {
    !value.starts_with("W/") && !value.trim_matches('"').is_empty()
}

/// What stands in the first `element` of a document.
fn text_of(document: &[u8], element: &[u8]) -> Option<String> {
    let rest = &document[memmem::find(document, element)? + element.len()..];
    let text = &rest[..memchr::memchr(b'<', rest)?];
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// The name of a document's first element, without a namespace's prefix, behind what may stand before it.
fn root_element(body: &[u8]) -> Option<&str> {
    let mut rest = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    for (begin, end) in [(&b"<?"[..], &b"?>"[..]), (b"<!--", b"-->")] {
        while rest.starts_with(begin) {
            rest = rest[memmem::find(rest, end)? + end.len()..].trim_ascii_start();
        }
    }
    let name = rest.strip_prefix(b"<")?;
    let end = name.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b":-_".contains(byte))?;
    std::str::from_utf8(&name[..end]).ok()?.rsplit(':').next()
}

/// Watches one request: where it goes, and what comes back.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    watched: Arc<Mutex<Watched>>,
    sent: Sent,
}

/// What was seen of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched {
    /// `host:port`; empty before the request was made.
    pub(super) host: String,
    pub(super) answer: Option<Answer>,
    /// How much of the request's body was sent when the answer had come.
    pub(super) sent_bytes: u64,
}

impl Watch {
    pub(super) fn seen(&self) -> Watched {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: impl FnOnce(&mut Watched)) {
        note(&mut self.watched.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "Watch"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = std::mem::replace(context.request_mut().body_mut(), SdkBody::taken());
        *context.request_mut().body_mut() = self.sent.count(body);
        let host = server(context.request().uri());
        self.note(|watched| watched.host = host);
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (sent_bytes, answer) = (self.sent.bytes(), Answer::of(context.response()));
        self.note(|watched| {
            watched.sent_bytes = sent_bytes;
            watched.answer = Some(answer);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Answer {
        let mut response = HttpResponse::new(status.try_into().unwrap(), body.into());
        headers.iter().for_each(|(name, value)| drop(response.headers_mut().insert(*name, *value)));
        Answer::of(&response)
    }

    const ID: (&str, &str) = ("x-amz-request-id", "4442587FB7D0A2F9");
    const E_TAG: (&str, &str) = ("etag", "\"d41d8cd98f00b204e9800998ecf8427e\"");
    const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");
    const PAGE: &str = "<html><head><title>Blocked</title></head><body>This page was blocked by policy.</body></html>";

    #[test]
    fn an_object_is_confirmed_by_a_200_with_a_mark_of_the_store() {
        let sha256 = Sha256::of(b"body");
        let ours: &'static str = STANDARD.encode(sha256.0).leak();
        let checksum = ("x-amz-checksum-sha256", ours);
        let late_page: &'static str = format!("{}<html>login</html>", " ".repeat(1_100)).leak();
        for marks in [&[ID][..], &[E_TAG], &[checksum], &[ID, E_TAG, checksum]] {
            assert_eq!(answer(200, marks, "").confirms(&sha256), Ok(()), "{marks:?}");
        }
        for (status, headers, body) in [
            (200, &[][..], ""),
            (200, &[("etag", "")], ""),
            (200, &[("etag", "\"\"")], ""),
            (200, &[("etag", "W/\"5e2-0\"")], ""),
            (200, &[ID], late_page),
            (200, &[ID], "<head><title>login</title></head><body>x</body>"),
            (200, &[ID, ("content-encoding", "gzip")], "\u{1f}coded"),
            (200, &[ID, checksum], "{\"error\":\"not stored\"}"),
            (202, &[ID, E_TAG], ""),
            (204, &[ID, E_TAG], ""),
            (200, &[], PAGE),
            (200, &[E_TAG], PAGE),
            (200, &[ID, E_TAG, HTML], ""),
            (200, &[ID], "  <!DOCTYPE HTML><p>"),
            (200, &[E_TAG], "{\"blocked\":true}"),
            (200, &[ID], "<?xml version=\"1.0\"?><Error><Code>InternalError</Code></Error>"),
        ] {
            let judged = answer(status, headers, body).confirms(&sha256);
            assert_eq!(judged, Err(NotConfirmed::NotTheStore), "{status} {headers:?} {body}");
        }
        let (quoted, hex) = (format!("\"{ours}\""), sha256.to_string().to_uppercase());
        for written in [URL_SAFE_NO_PAD.encode(sha256.0), quoted, hex] {
            let written: &'static str = written.leak();
            assert_eq!(answer(200, &[ID, (checksum.0, written)], "").confirms(&sha256), Ok(()), "{written}");
        }
        let other = ("x-amz-checksum-sha256", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!(answer(200, &[ID, E_TAG, other], "").confirms(&sha256), Err(NotConfirmed::OtherChecksum));
        let mut two = HttpResponse::new(200.try_into().unwrap(), "".into());
        for value in [ours, other.1] {
            two.headers_mut().append(other.0, value);
        }
        assert_eq!(Answer::of(&two).confirms(&sha256), Err(NotConfirmed::OtherChecksum));
    }

    #[test]
    fn an_error_document_is_known_by_its_root_element() {
        for body in [
            "<Error><Code>A</Code></Error>",
            "\u{feff}<?xml version=\"1.0\"?>\n<!-- x --><Error xmlns=\"a\"/>",
            "<s3:Error xmlns:s3=\"a\"/>",
        ] {
            assert!(answer(412, &[], body).is_the_stores(), "{body}");
        }
        for body in ["", "<Errors/>", "<html><Error/></html>", "no <Error>", PAGE, "<Error", "<?xml"] {
            assert!(!answer(412, &[], body).is_the_stores(), "{body}");
        }
        assert!(answer(412, &[ID], "").is_the_stores());
        for body in [PAGE, "{\"error\":\"no\"}"] {
            assert!(!answer(412, &[ID], body).is_the_stores(), "{body}");
        }
    }

    #[test]
    fn a_refusal_that_names_another_header_is_not_about_the_condition() {
        let named = "<Error><Code>NotImplemented</Code><Message>m</Message><Header>x-amz-tagging</Header></Error>";
        let both = "<Error><Code>NotImplemented</Code><Header>If-None-Match</Header><H>x-amz-tagging</H></Error>";
        let unnamed = "<Error><Code>NotImplemented</Code><Message>A header you provided</Message></Error>";
        for (status, body, may) in [
            (501, named, false),
            (400, named, false),
            (501, both, true),
            (501, "<Error><Code>NotImplemented</Code><Header>Transfer-Encoding</Header></Error>", false),
            (501, unnamed, true),
            (400, unnamed, true),
            (501, "", true),
            (501, PAGE, false),
            (500, unnamed, false),
        ] {
            let judged = answer(status, &[], body).may_lack_the_condition(Some("NotImplemented"));
            assert_eq!(judged, may, "{status} {body}");
        }
    }
}
