//! Reads a request's head: media type, compression, query, path.

use std::borrow::Cow;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};

use percent_encoding::percent_decode_str;

use super::body::BodyError;
use super::refusal::Refusal;
use crate::batch::LogType;

/// The paths of the ingest listener. All but the first three may follow `/<log type>`.
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

/// What is said beside them.
pub(super) const PREFIX: &str = "each of these from POST /v1/logs on may follow /env0-audits or /env0-deployments, which \
                                 decides the log type: POST /env0-audits/loki/api/v1/push";

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// The magic of a skippable frame, which pzstd and the seekable format begin with, after its first byte, 0x50 to 0x5f.
const ZSTD_SKIPPABLE_MAGIC: &[u8] = &[0x2a, 0x4d, 0x18];

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
    /// Reads `Content-Encoding`: a list, in any number of headers and any letter case, with at most one coding beside
    /// `identity`, empty members and `own`, which names what the protocol itself does to its bodies.
    pub(super) fn of(headers: &HeaderMap, own: Option<&str>) -> Result<Encoding, Refusal> {
        let mut found = Encoding::Identity;
        if !has_rare(headers, &CONTENT_ENCODING) {
            return Ok(found);
        }
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

    /// The coding whose magic `body` begins with, for senders that forget `Content-Encoding`. No protocol's body begins
    /// so: no magic is a first field of protobuf or a first element of snappy, and none is text, because it is not
    /// UTF-8 or (a skippable frame's) has U+0018.
    pub fn by_magic(body: &[u8]) -> Encoding {
        if body.starts_with(GZIP_MAGIC) {
            Encoding::Gzip
        } else if body.starts_with(ZSTD_MAGIC)
            || matches!(body, [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE_MAGIC))
        {
            Encoding::Zstd
        } else {
            Encoding::Identity
        }
    }
}

/// What the media types of files and formats have in their names that hold no lines.
const BINARY_TYPES: [&str; 27] = [
    "/zip",
    "zip-compressed",
    "bzip",
    "/x-xz",
    "lzma",
    "lz4",
    "7z",
    "x-tar",
    "gtar",
    "rar-compressed",
    "vnd.rar",
    "java-archive",
    "cpio",
    "pdf",
    "msword",
    "officedocument",
    "sqlite",
    "wasm",
    "bson",
    "parquet",
    "arrow",
    "thrift",
    "smile",
    "flatbuffers",
    "capnp",
    "cbor",
    "avro",
];

/// The media types that almost every sender gives its events. None of them needs a look for the parts of all others, which
/// would be a sixth of the instructions of a small request.
const USUAL_TYPES: [&str; 3] = ["application/json", "text/plain", "application/x-ndjson"];

/// A media type without its parameters.
fn essence(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii()
}

fn is_binary(media_type: &[u8]) -> bool {
    let has = |part: &str| media_type.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part.as_bytes()));
    BINARY_TYPES.into_iter().any(has)
}

/// Refuses a `Content-Type` that is neither lines of JSON or text, nor protobuf where the protocol `takes_protobuf`.
pub(super) fn judge_media_type(headers: &HeaderMap, takes_protobuf: bool) -> Result<(), Refusal> {
    const SEND_LINES: &str = "send lines of JSON or text";
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    // As almost every sender writes it; 210 instructions less than what follows.
    if USUAL_TYPES.into_iter().any(|usual| value == usual) {
        return Ok(());
    }
    let value = value.as_bytes().trim_ascii_start();
    let essence = essence(value);
    if USUAL_TYPES.into_iter().any(|usual| essence.eq_ignore_ascii_case(usual.as_bytes())) {
        return Ok(());
    }
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
    } else if content_type_is(headers, "vnd.sumologic.") {
        ("metrics", "only logs are taken")
    } else if content_type_is(headers, "msgpack") {
        ("MessagePack", "have the sender format its events as JSON")
    } else if content_type_is(headers, "json-seq") {
        ("a JSON text sequence", "send lines of JSON without the character before each")
    } else if is_binary(essence) {
        ("a file of another kind", "send lines of JSON or text (compressed, if at all, by gzip, deflate or zstd)")
    } else if ["image/", "audio/", "video/", "font/"].into_iter().any(begins) {
        ("a picture, sound, film or font", SEND_LINES)
    } else {
        return Ok(());
    };
    Err(Refusal::UnsupportedMediaType { declared, instead })
}

/// The decoded values of `names`, in any letter case, in the query. Refuses one that is there twice or is not UTF-8, because
/// a value that is not taken would be lost.
pub(super) fn query_values<const N: usize>(uri: &Uri, names: [&str; N]) -> Result<[Option<String>; N], BodyError> {
    let mut found = [const { None }; N];
    for (name, value) in query_pairs(uri) {
        let Some(index) = names.iter().position(|known| name.eq_ignore_ascii_case(known)) else { continue };
        let value = percent_decode_str(&value.replace('+', " ")).decode_utf8().ok().map(Cow::into_owned);
        let value = value.ok_or_else(|| invalid(format!("`{}` in the query is not UTF-8", names[index])))?;
        if found[index].replace(value).is_some() {
            return Err(invalid(format!("`{}` is in the query twice", names[index])));
        }
    }
    Ok(found)
}

/// The token in the query by any of `names`, in any letter case, percent-decoded. `+` stays as it is: tokens in base64
/// have it, and some senders don't escape it.
pub(super) fn query_token(uri: &Uri, names: &[&str]) -> Option<String> {
    let (_, token) = query_pairs(uri).find(|(name, _)| names.iter().any(|known| name.eq_ignore_ascii_case(known)))?;
    percent_decode(token)
}

fn query_pairs(uri: &Uri) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    let pairs = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (percent_decode_str(name).decode_utf8_lossy(), value))
}

/// `text` with `%XX` decoded; `None` where the result is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(Cow::into_owned)
}

/// The headers that are read with the body; all others are read before.
const READ_WITH_BODY: [&str; 8] = [
    "content-type",
    "x-scope-orgid",
    "x-sumo-name",
    "x-sumo-host",
    "x-sumo-category",
    "x-sumo-fields",
    "x-sumo-dimensions",
    "x-sumo-metadata",
];

/// What is read of a request's head.
pub struct Head {
    /// The target.
    pub uri: Uri,
    /// All headers, until it shrinks.
    pub headers: HeaderMap,
}

impl Head {
    /// Keeps only what is read with the body, in memory of its own. hyper's head keeps the buffer of 8 KiB that it was read
    /// into, and with 88 empty headers another 10 KiB.
    pub fn shrink(&mut self) {
        let mut headers = HeaderMap::new();
        for name in READ_WITH_BODY.map(HeaderName::from_static) {
            for value in self.headers.get_all(&name) {
                if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                    headers.append(name.clone(), value);
                }
            }
        }
        self.headers = headers;
        if let Ok(uri) = self.uri.to_string().parse() {
            self.uri = uri;
        }
    }
}

/// The values of the headers `names`. Refuses one that is there twice, or that is not UTF-8.
pub(super) fn header_values<'a, const N: usize>(
    headers: &'a HeaderMap,
    names: [&str; N],
) -> Result<[Option<&'a str>; N], BodyError> {
    debug_assert!(names.iter().all(|name| READ_WITH_BODY.contains(name)), "{names:?} may be gone by now");
    let mut found = [None; N];
    for (found, name) in found.iter_mut().zip(names) {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            return Err(invalid(format!("the header {name} is there twice")));
        }
        let value = std::str::from_utf8(value.as_bytes());
        *found = Some(value.map_err(|_| invalid(format!("the header {name} is not UTF-8")))?);
    }
    Ok(found)
}

fn invalid(reason: String) -> BodyError {
    BodyError::Invalid { event: 0, offset: 0, reason }
}

/// Whether a header is there that few requests have. A look at the few names that there are costs less than a search by
/// hash: three searches took 400 of the 43,000 instructions of a small request, three looks take 30.
pub fn has_rare(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.keys().any(|key| key == name)
}

/// A header's value as text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Whether `Content-Type` names `format` (`json`, `protobuf`) in whatever variant.
pub(super) fn content_type_is(headers: &HeaderMap, format: &str) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.to_ascii_lowercase().contains(format))
}

/// Whether a body that may be protobuf or JSON is JSON: by its `Content-Type`, and where that names neither, by the first
/// bytes after a BOM. (A protobuf message may begin with a byte that is white space.)
pub(super) fn is_json(headers: &HeaderMap, body: &[u8]) -> bool {
    if content_type_is(headers, "protobuf") {
        return false;
    }
    let begins_as_json = || {
        let text = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let mut tokens = text.iter().filter(|byte| !byte.is_ascii_whitespace());
        matches!((tokens.next(), tokens.next()), (Some(b'{'), Some(b'"' | b'}')) | (Some(b'['), Some(b'{' | b']')))
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
    fn what_the_query_says_is_decoded_once_or_refused() {
        let values = |query: &str| query_values(&format!("/?{query}").parse().unwrap(), ["source", "host"]);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(values("host=a+b%2B&x=1&sourc%65=%C3%A9%zz"), Ok([some("\u{e9}%zz"), some("a b+")]));
        assert_eq!(values("source="), Ok([some(""), None]));
        assert_eq!(values("Source=s&HOST=h"), Ok([some("s"), some("h")]));
        for (query, complaint) in [("source=a&Source=a", "`source` is in the query twice"), ("host=%ff", "not UTF-8")] {
            assert!(values(query).unwrap_err().to_string().contains(complaint), "{query}");
        }
        let token = |query: &str| query_token(&format!("/?{query}").parse().unwrap(), &["token", "key"]);
        assert_eq!(token("a=b&token=ab+c/d=="), some("ab+c/d=="));
        assert_eq!(token("key=ab%2Bc%2Fd%3D%3D"), some("ab+c/d=="));
        assert_eq!(token("Token=ab"), some("ab"));
    }

    #[test]
    fn what_headers_say_is_taken_as_utf8_or_refused() {
        let values = |headers: &HeaderMap| {
            header_values(headers, ["x-sumo-name", "x-sumo-host"]).map(|v| v.map(|v| v.map(str::to_owned)))
        };
        let mut given = headers(&[("x-sumo-name", "n")]);
        given.insert("x-sumo-host", HeaderValue::from_bytes("\u{e9}".as_bytes()).unwrap());
        assert_eq!(values(&given), Ok([Some("n".to_owned()), Some("\u{e9}".to_owned())]));
        given.insert("x-sumo-host", HeaderValue::from_bytes(b"ca\xf1a").unwrap());
        assert!(values(&given).unwrap_err().to_string().contains("x-sumo-host is not UTF-8"));
        let mut twice = headers(&[("x-sumo-name", "n")]);
        twice.append("x-sumo-name", HeaderValue::from_static("m"));
        assert!(values(&twice).unwrap_err().to_string().contains("x-sumo-name is there twice"));
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
            ("application/vnd.sumologic.prometheus", "only logs"),
            ("application/zip", "lines"),
            ("Application/X-BZIP2; a=b", "gzip"),
            ("application/pdf", "lines"),
            ("application/vnd.apache.thrift.compact", "lines"),
            ("application/vnd.apache.arrow.stream", "lines"),
            ("application/cbor", "lines"),
            ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "lines"),
            ("application/json-seq", "lines of JSON"),
        ] {
            let refused = judge_media_type(&headers(&[("content-type", value)]), false);
            let Err(refusal @ Refusal::UnsupportedMediaType { .. }) = refused else { panic!("{value}: {refused:?}") };
            assert_eq!(refusal.status(), 415);
            assert!(refusal.to_string().contains(instead), "{refusal}");
        }
        for value in [
            "",
            "text/plain",
            "application/json",
            "application/x-www-form-urlencoded",
            "application/gzip",
            "text/plain; charset=ISO-8859-1",
            "application/json; charset=utf-16",
        ] {
            assert_eq!(judge_media_type(&headers(&[("content-type", value)]), false), Ok(()), "{value}");
        }
        assert_eq!(judge_media_type(&headers(&[("content-type", "application/x-protobuf")]), true), Ok(()));
        assert!(judge_media_type(&headers(&[("content-type", "multipart/form-data")]), true).is_err());
    }
}
