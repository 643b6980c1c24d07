//! Words that another program sent, in the one form in which they are logged, shown and kept.
//!
//! A service, or a proxy in its place, may answer anything: a code of 3 MB, control characters, the token that it
//! was given. Codes, messages, request ids, regions and the texts of parsers all pass here first.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// The most characters of a message; S3's and STS's longest have some 300.
pub const FOREIGN_WORDS_MAX_CHARS: usize = 500;
/// The most characters of a code, a request id, a region or an element's name; AWS's longest, an `x-amz-id-2`, has 76.
pub const FOREIGN_NAME_MAX_CHARS: usize = 128;
/// What stands behind it is not looked at. Above what is shown, so that what is removed makes room for what follows.
const LOOKED_AT_MAX_CHARS: usize = 4 * FOREIGN_WORDS_MAX_CHARS;
/// A piece of a secret from this length on is removed. Shorter ones tell nothing, and are found in any text.
const SECRET_PIECE_BYTES: usize = 8;
/// A JWT's header and claims begin so: JSON's `{"` in base64.
const JWT_BEGINS: &str = "eyJ";
/// The parts of a signature of AWS's, in a header or a query: what follows is a value of our request.
const SIGNATURE_PARTS: [&str; 3] = ["Credential=", "SignedHeaders=", "Signature="];
/// Where JSON begins, or goes on, in each form in which a service may repeat it: an event of ours, as a rule.
const JSON_MARKS: [&str; 10] =
    ["{", "%7b", "&#123;", "&#x7b;", "&lbrace;", "\\u007b", "\":", "\\\":", "%22:", "&quot;:"];
const REMOVED: &str = "[removed]";

/// A message: letters, digits, ASCII punctuation and single spaces, at most 500 characters. Pieces of `secrets` from 8
/// bytes on, in plain or coded, whatever looks like a JWT, the values of a signature, and all from the first sign of
/// JSON on are replaced by `[removed]`.
pub fn foreign_words(text: &str, secrets: &[&str]) -> String {
    let mut words = String::new();
    for character in text.chars().take(LOOKED_AT_MAX_CHARS) {
        match character {
            shown if shown.is_alphanumeric() || shown.is_ascii_graphic() => words.push(shown),
            space if space.is_whitespace() && !words.ends_with(' ') => words.push(' '),
            // Left out, and not replaced: a character that isn't shown must not cut a secret into pieces.
            _ => {}
        }
    }
    let words = without_json(&without_any(&words, secrets));
    cut(words.trim(), FOREIGN_WORDS_MAX_CHARS)
}

/// A code, a request id, a region or an element's name: ASCII letters, digits and `-_.:/+=`, at most 128 characters,
/// without secrets as in [`foreign_words`]; `None` where nothing is left.
pub fn foreign_name(text: &str, secrets: &[&str]) -> Option<String> {
    let allowed = |character: &char| character.is_ascii_alphanumeric() || "-_.:/+=".contains(*character);
    let name: String = text.chars().take(LOOKED_AT_MAX_CHARS).filter(allowed).collect();
    let name = cut(&without_any(&name, secrets), FOREIGN_NAME_MAX_CHARS);
    (!name.is_empty()).then_some(name)
}

fn cut(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
}

fn without_any(text: &str, secrets: &[&str]) -> String {
    let text = without_spread_secrets(&without_secrets(text, secrets), secrets);
    without_signatures(&without_jwts(&text))
}

/// `text` without each run of 8 letters or digits that is also in a secret, in plain, base64 or hexadecimal, whatever
/// the case and whatever stands between them.
fn without_spread_secrets(text: &str, secrets: &[&str]) -> String {
    if secrets.is_empty() {
        return text.to_owned();
    }
    let letters = |text: &str| -> Vec<u8> {
        text.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase()).collect()
    };
    let mut forms = Vec::new();
    for secret in secrets {
        forms.push(letters(secret));
        forms.push(secret.bytes().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
        // Where a secret begins within three bytes of what is encoded, decides how it looks.
        let ends = (0..3).filter_map(|skipped| secret.as_bytes().get(skipped..));
        forms.extend(ends.map(|end| letters(&STANDARD_NO_PAD.encode(end))));
    }
    let pieces: HashSet<&[u8]> = forms.iter().flat_map(|form| form.windows(SECRET_PIECE_BYTES)).collect();
    let places = text.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_alphanumeric());
    let places: Vec<usize> = places.map(|(place, _)| place).collect();
    let found = letters(text);
    let (mut left, mut shown_to) = (String::new(), 0);
    for (start, piece) in found.windows(SECRET_PIECE_BYTES).enumerate() {
        if pieces.contains(piece) {
            let (from, to) = (places[start], places[start + SECRET_PIECE_BYTES - 1] + 1);
            if from >= shown_to {
                left.push_str(&text[shown_to..from]);
                left.push_str(REMOVED);
            }
            shown_to = to;
        }
    }
    left + &text[shown_to..]
}

/// `text` up to where JSON begins: what is refused may be repeated to us, and an event's body is nobody's to read.
fn without_json(text: &str) -> String {
    // Only ASCII letters change, so that places in it are places in `text`.
    let lower = text.to_ascii_lowercase();
    match JSON_MARKS.iter().filter_map(|mark| lower.find(mark)).min() {
        Some(begin) => format!("{}{REMOVED}", &text[..begin]),
        None => text.to_owned(),
    }
}

/// `text` without the values in a signature of AWS's.
fn without_signatures(text: &str) -> String {
    let mut left = text.to_owned();
    for part in SIGNATURE_PARTS {
        let mut pieces = left.split(part);
        let mut shown = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece.find([' ', ',', '&', '"', '\'']).unwrap_or(piece.len());
            shown.push_str(part);
            shown.push_str(REMOVED);
            shown.push_str(&piece[end..]);
        }
        left = shown;
    }
    left
}

/// `text` without each run of bytes that it shares with a secret.
fn without_secrets(text: &str, secrets: &[&str]) -> String {
    let pieces: HashSet<&[u8]> =
        secrets.iter().flat_map(|secret| secret.as_bytes().windows(SECRET_PIECE_BYTES)).collect();
    if pieces.is_empty() {
        return text.to_owned();
    }
    let mut left = String::new();
    let mut secret_ends = 0;
    for (start, character) in text.char_indices() {
        let piece = text.as_bytes().get(start..start + SECRET_PIECE_BYTES);
        if piece.is_some_and(|piece| pieces.contains(piece)) {
            if start >= secret_ends {
                left.push_str(REMOVED);
            }
            secret_ends = start + SECRET_PIECE_BYTES;
        }
        if start >= secret_ends {
            left.push(character);
        }
    }
    left
}

/// `text` without the runs of base64url and dots that begin as a JWT does: a token that isn't ours is a secret, too.
fn without_jwts(text: &str) -> String {
    let in_jwt = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let mut left = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(JWT_BEGINS) {
        let (before, jwt) = rest.split_at(start);
        let length = jwt.find(|character| !in_jwt(character)).unwrap_or(jwt.len());
        left.push_str(before);
        left.push_str(if length > 2 * SECRET_PIECE_BYTES { REMOVED } else { &jwt[..length] });
        rest = &jwt[length..];
    }
    left + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhdXRoMHw2MzAyMWYyYyJ9.c2lnbmF0dXJl";
    const SESSION: &str = "FwoGZXIvYXdzEJr//////////wEaDGFiY2RlZmdoaWprbG1ub3A=";

    #[test]
    fn a_message_of_s3_and_sts_stays_as_it_is() {
        for message in [
            "User: arn:aws:sts::111122223333:assumed-role/env0-log-writer/env0-s3-logs is not authorized to perform: \
             s3:PutObject on resource \"arn:aws:s3:::logs/a\" because no identity-based policy allows the s3:PutObject action",
            "The requested DurationSeconds exceeds the 1 hour session limit",
            "Le nom est déjà pris (été) 100%",
        ] {
            assert_eq!(foreign_words(message, &[JWT, SESSION]), message);
        }
        assert_eq!(foreign_name("AccessDenied", &[JWT]).as_deref(), Some("AccessDenied"));
        let id = "Uuag1LuByRx9e6j5Onimru9pO4ZVKnJ2Qz7/C1NPcfTWAtRPfTaOFg==";
        assert_eq!(foreign_name(id, &[]).as_deref(), Some(id));
    }

    #[test]
    fn a_message_is_one_line_of_at_most_500_characters() {
        assert_eq!(foreign_words(" a\r\n\tb \u{1b}[31mc\u{202e}\u{200b}\0 ", &[]), "a b [31mc");
        let long = foreign_words(&"x ".repeat(3_000_000), &[]);
        assert!(long.len() <= FOREIGN_WORDS_MAX_CHARS && long.len() > FOREIGN_WORDS_MAX_CHARS - 2, "{}", long.len());
    }

    #[test]
    fn a_name_is_at_most_128_characters_of_a_closed_set() {
        assert_eq!(foreign_name("Access\nDenied <b>\u{1b}é", &[]).as_deref(), Some("AccessDeniedb"));
        assert_eq!(foreign_name(&"C".repeat(3_000_000), &[]).map(|name| name.len()), Some(FOREIGN_NAME_MAX_CHARS));
        for nothing in ["", "\r\n", "é"] {
            assert_eq!(foreign_name(nothing, &[]), None);
        }
    }

    #[test]
    fn a_secret_is_removed_in_whole_and_in_part() {
        for secret in [JWT, SESSION, "canary-session-token"] {
            let half = &secret[..secret.len() / 2];
            let end = &secret[secret.len() - SECRET_PIECE_BYTES..];
            let broken = format!("{}\n{}", &secret[..10], &secret[10..]);
            let hidden = format!("{}\u{200b}{}", &secret[..5], &secret[5..]);
            for echo in [secret, half, end, &broken, &hidden] {
                let shown = foreign_words(&format!("the token {echo}, was refused"), &[secret]);
                assert!(shown.starts_with("the token [removed]") && shown.ends_with(", was refused"), "{shown}");
                let pieces = secret.as_bytes().windows(SECRET_PIECE_BYTES);
                let name = foreign_name(&format!("Code{echo}"), &[secret]).unwrap();
                for piece in pieces.map(|piece| std::str::from_utf8(piece).unwrap()) {
                    assert!(!shown.contains(piece) && !name.contains(piece), "{shown} {name}");
                }
            }
        }
    }

    #[test]
    fn a_secret_is_removed_in_other_forms_too() {
        for secret in [JWT, SESSION, "canary-session-token"] {
            let spread: String = secret.chars().flat_map(|character| [character, ' ']).collect();
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            let coded = [STANDARD_NO_PAD.encode(secret), STANDARD_NO_PAD.encode(format!("a{secret}b"))];
            let [coded, shifted] = &coded;
            for echo in [&spread, &hex, coded, shifted, &secret.to_uppercase()] {
                let shown = foreign_words(&format!("was: {echo}!"), &[secret]);
                assert!(shown.len() < 40 && shown.contains(REMOVED), "{echo}: {shown}");
                assert!(foreign_name(echo, &[secret]).unwrap().len() < 40, "{echo}");
            }
        }
    }

    #[test]
    fn the_values_of_a_signature_are_removed() {
        let header = "no: AWS4-HMAC-SHA256 Credential=AKIA1/20261122/eu-west-1/s3/aws4_request, \
                      SignedHeaders=host;x-amz-date, Signature=0a1b.";
        let shown = "no: AWS4-HMAC-SHA256 Credential=[removed], SignedHeaders=[removed], Signature=[removed]";
        assert_eq!(foreign_words(header, &[]), shown);
    }

    #[test]
    fn an_event_that_is_repeated_to_us_is_removed_from_its_first_sign_on() {
        for echo in [
            r#"{"secret":"CANARY"}"#,
            r#"secret":"CANARY"}"#,
            r#"\{\"secret\":\"CANARY\"}"#,
            r#"cret\":\"CANARY\""#,
            "%7B%22secret%22:%22CANARY",
            "&#123;&quot;secret&quot;: &quot;CANARY",
            "cret&quot;:&quot;CANARY",
            "\\u007B\\u0022CANARY",
        ] {
            let shown = foreign_words(&format!("no: {echo}"), &[]);
            assert!(shown.starts_with("no: ") && shown.ends_with(REMOVED) && !shown.contains("CANARY"), "{shown}");
        }
    }

    #[test]
    fn a_jwt_that_is_not_ours_is_removed_too() {
        assert_eq!(foreign_words(&format!("got {JWT}; no"), &[]), "got [removed]; no");
        assert_eq!(foreign_words("eyJ is how one begins", &[]), "eyJ is how one begins");
    }

    #[test]
    fn the_end_of_what_is_looked_at_leaves_no_piece_of_a_secret() {
        for before in FOREIGN_WORDS_MAX_CHARS - 20..FOREIGN_WORDS_MAX_CHARS + 20 {
            let shown = foreign_words(&format!("{}{SESSION}", "-".repeat(before)), &[SESSION]);
            assert!(!shown.contains("FwoGZXIv"), "{shown}");
        }
    }
}
