//! Who has answered. Proxies and captive portals answer with pages of their own and with any status, and what they say
//! of a path or a key must not count as env0's word.

use reqwest::StatusCode;

/// What shows that an answer is not env0's, whose answers are all JSON. `None` where it may be.
///
/// An empty 401 or 403 counts as env0's: it is only told, and asked again. Of an empty 404 follows that something is
/// gone for good, so that takes a document.
pub(super) fn is_not_env0(status: StatusCode, content_type: &str, body: &[u8]) -> Option<&'static str> {
    let content_type = content_type.to_ascii_lowercase();
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    match body.first() {
        _ if content_type.contains("html") => Some("it is a page of HTML"),
        Some(b'<') => Some("it is a page of HTML"),
        Some(b'{' | b'[') => None,
        None if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => None,
        None => Some("it is empty"),
        Some(_) if content_type.contains("json") => None,
        Some(_) => Some("it is not JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_of_any_status_is_env0s_and_pages_of_html_are_not() {
        let judged = |status: u16, content_type: &str, body: &[u8]| {
            is_not_env0(StatusCode::from_u16(status).unwrap(), content_type, body)
        };
        for status in [200, 302, 400, 401, 403, 404, 418] {
            for (content_type, body) in [
                ("application/json", &b"{\"message\":\"Not Found\"}"[..]),
                ("application/json; charset=utf-8", b"null"),
                ("", b" \n[1]"),
                ("text/plain", b"\xef\xbb\xbf{}"),
            ] {
                assert_eq!(judged(status, content_type, body), None, "{status} {content_type} {body:?}");
            }
            for (content_type, body) in [
                ("text/html", &b"<html>"[..]),
                ("Text/HTML; charset=utf-8", b"{}"),
                ("application/xhtml+xml", b""),
                ("application/json", b"  <!DOCTYPE html>"),
                ("", b"<p>"),
            ] {
                assert_eq!(
                    judged(status, content_type, body),
                    Some("it is a page of HTML"),
                    "{status} {content_type} {body:?}"
                );
            }
            assert_eq!(judged(status, "text/plain", b"not found"), Some("it is not JSON"), "{status}");
        }
        let empty = [200, 400, 401, 403, 404].map(|status| judged(status, "application/json", b" "));
        let it_is_empty = Some("it is empty");
        assert_eq!(empty, [it_is_empty, it_is_empty, None, None, it_is_empty]);
    }
}
