//! What a request's head says: media type, compression, query, path.

use std::borrow::Cow;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, Uri};

use super::refusal::Refusal;
use crate::batch::LogType;

/// `Content-Encoding`s that are inflated, for `Accept-Encoding` and messages.
pub(super) const SUPPORTED_ENCODINGS: &str = "gzip, deflate, zstd";

/// The paths of the ingest listener. All but the first three may stand behind `/<log type>`.
pub(super) const KNOWN_PATHS: [&str; 12] = [
    "POST /v1/logs/env0-deployments",
    "POST /v1/logs/env0-audits",
    "PUT /v1/oidc-token",
    "POST /v1/logs",
    "POST /loki/api/v1/push",
    "POST /services/collector",
    "POST /services/collector/event",
    "POST /services/collector/raw",
    "GET /services/collector/health",
    "POST /receiver/v1/http/<secret>",
    "POST /log/v1",
    "POST /",
];

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 1950, or RFC 1951 without its wrapper; any number of streams.
    Deflate,
    /// RFC 8878, any number of frames.
    Zstd,
}

impl Encoding {
    /// From `Content-Encoding`: a list, in any number of headers and any letter case, of at most one coding beside
    /// `identity`, empty members and `own`, which is what the protocol itself does to its bodies.
    pub(super) fn of(headers: &HeaderMap, own: Option<&str>) -> Result<Encoding, Refusal> {
        let mut found = Encoding::Identity;
        let members = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
        for coding in members.map(<[u8]>::trim_ascii) {
            let is = |name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
            let next = match coding {
                b"" => continue,
                _ if is("identity") || own.is_some_and(is) => continue,
                _ if is("gzip") || is("x-gzip") => Encoding::Gzip,
                _ if is("deflate") => Encoding::Deflate,
                _ if is("zstd") => Encoding::Zstd,
                _ => return Err(Refusal::UnsupportedEncoding),
            };
            if found != Encoding::Identity {
                return Err(Refusal::UnsupportedEncoding);
            }
            found = next;
        }
        Ok(found)
    }

    /// The coding that `body` begins with the magic of. No body of any protocol begins so: in UTF-8 neither is
    /// text, in protobuf and in snappy neither is a first field or element.
    pub fn by_magic(body: &[u8]) -> Encoding {
        if body.starts_with(GZIP_MAGIC) {
            Encoding::Gzip
        } else if body.starts_with(ZSTD_MAGIC) {
            Encoding::Zstd
        } else {
            Encoding::Identity
        }
    }
}

/// Refuses a `Content-Type` that declares another thing than lines of JSON or text, or protobuf where it `takes_protobuf`.
pub(super) fn judge_media_type(headers: &HeaderMap, takes_protobuf: bool) -> Result<(), Refusal> {
    const SEND_LINES: &str = "send lines of JSON or text";
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let value = value.as_bytes().trim_ascii_start();
    let begins =
        |prefix: &str| value.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()));
    let (declared, instead) = if begins("multipart/") {
        ("multipart", "send the events themselves as the body (with curl: --data-binary @file, not -F)")
    } else if content_type_is(headers, "grpc") {
        ("gRPC", "send OTLP over HTTP to POST /v1/logs (http/protobuf or http/json)")
    } else if content_type_is(headers, "protobuf") {
        if takes_protobuf {
            return Ok(());
        }
        ("protobuf", "OTLP goes to POST /v1/logs, Loki's pushes to POST /loki/api/v1/push")
    } else if content_type_is(headers, "msgpack") {
        ("MessagePack", "have the sender format its events as JSON")
    } else if ["cbor", "avro"].into_iter().any(|format| content_type_is(headers, format)) {
        ("a binary format", SEND_LINES)
    } else if ["image/", "audio/", "video/", "font/"].into_iter().any(begins) {
        ("a picture, sound, film or font", SEND_LINES)
    } else {
        return Ok(());
    };
    Err(Refusal::UnsupportedMediaType { declared, instead })
}

/// A parameter of the query, percent-decoded; the first of its name.
pub(super) fn query_parameter(uri: &Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).and_then(|(_, value)| percent_decode(&value.replace('+', " ")))
}

/// `text` with `%XX` decoded; `None` where an escape is broken or the outcome is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?].map(|digit| char::from(digit).to_digit(16));
                let [Some(high), Some(low)] = digits else { return None };
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// A header's value as text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether `Content-Type` names `format` (`json`, `protobuf`) in whatever variant.
pub(super) fn content_type_is(headers: &HeaderMap, format: &str) -> bool {
    header_text(headers, "content-type").is_some_and(|value| value.to_ascii_lowercase().contains(format))
}

/// Whether a body that may be protobuf or JSON is JSON: as `Content-Type` says; where that says
/// neither, by the first bytes. (A protobuf message may begin with a byte that is white space.)
pub(super) fn is_json(headers: &HeaderMap, body: &[u8]) -> bool {
    if content_type_is(headers, "protobuf") {
        return false;
    }
    let begins_as_json = || {
        let rest = body.trim_ascii_start().strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        rest.is_some_and(|rest| rest.starts_with(b"\"") || rest.starts_with(b"}"))
    };
    content_type_is(headers, "json") || begins_as_json()
}

/// `path` without the log type that it may begin with.
pub(super) fn split_log_type(path: &str) -> (&str, Option<LogType>) {
    let prefixed = LogType::ALL.into_iter().find_map(|log_type| {
        let rest = path.strip_prefix('/')?.strip_prefix(log_type.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some((rest, Some(log_type)))
    });
    prefixed.unwrap_or((path, None))
}

/// `path` without empty segments and without a slash at its end.
pub fn tidy(path: &str) -> Cow<'_, str> {
    if path.len() <= 1 || !(path.ends_with('/') || path.contains("//")) {
        return Cow::Borrowed(path);
    }
    let mut tidy = String::with_capacity(path.len());
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        tidy.push('/');
        tidy.push_str(segment);
    }
    Cow::Owned(tidy)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(values: &[(&'static str, &'static str)]) -> HeaderMap {
        let header = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        values.iter().map(header).collect()
    }

    #[test]
    fn content_encoding_is_a_list_in_which_identity_and_nothing_are_no_coding() {
        for (values, own, expected) in [
            (&[][..], None, Ok(Encoding::Identity)),
            (&["identity, gzip"], None, Ok(Encoding::Gzip)),
            (&[" , GZip ,Identity"], None, Ok(Encoding::Gzip)),
            (&["identity", "", "x-gzip"], None, Ok(Encoding::Gzip)),
            (&["Deflate"], None, Ok(Encoding::Deflate)),
            (&["zstd,"], None, Ok(Encoding::Zstd)),
            (&["identity, Snappy"], Some("snappy"), Ok(Encoding::Identity)),
            (&["snappy, gzip"], Some("snappy"), Ok(Encoding::Gzip)),
            (&["snappy"], None, Err(Refusal::UnsupportedEncoding)),
            (&["gzip, gzip"], None, Err(Refusal::UnsupportedEncoding)),
            (&["gzip", "deflate"], None, Err(Refusal::UnsupportedEncoding)),
            (&["gzip;q=1"], None, Err(Refusal::UnsupportedEncoding)),
        ] {
            let given: Vec<_> = values.iter().map(|&value| ("content-encoding", value)).collect();
            assert_eq!(Encoding::of(&headers(&given), own), expected, "{values:?}");
        }
    }

    #[test]
    fn a_media_type_of_another_thing_is_refused_with_what_to_do() {
        for (value, instead) in [
            ("multipart/form-data; boundary=x", "--data-binary"),
            ("Multipart/Mixed", "--data-binary"),
            ("application/x-protobuf", "POST /v1/logs"),
            ("application/vnd.google.protobuf", "POST /loki/api/v1/push"),
            ("application/grpc+proto", "POST /v1/logs"),
            ("application/x-msgpack", "JSON"),
            ("image/png", "lines"),
        ] {
            let refused = judge_media_type(&headers(&[("content-type", value)]), false);
            let Err(refusal @ Refusal::UnsupportedMediaType { .. }) = refused else { panic!("{value}: {refused:?}") };
            assert_eq!(refusal.status(), 415);
            assert!(refusal.to_string().contains(instead), "{refusal}");
        }
        for value in ["", "text/plain", "application/json", "application/x-www-form-urlencoded", "application/gzip"] {
            assert_eq!(judge_media_type(&headers(&[("content-type", value)]), false), Ok(()), "{value}");
        }
        assert_eq!(judge_media_type(&headers(&[("content-type", "application/x-protobuf")]), true), Ok(()));
        assert!(judge_media_type(&headers(&[("content-type", "multipart/form-data")]), true).is_err());
    }
}
