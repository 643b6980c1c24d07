//! Leaves out the ends of long texts while an answer arrives. A record may hold the whole output of a deployment, and nothing
//! that is read of a record is so long.

/// A text is cut behind so many bytes. The longest that is read is a token, which has some 2 KB.
const TEXT_MAX_BYTES: usize = 64 * 1024;
/// No escape takes more bytes, not even one of two halves (`\ud83d\ude00`).
const ESCAPE_MAX_BYTES: usize = 12;

/// What was read of an answer so far.
#[derive(Default)]
pub(super) struct LongTexts {
    in_string: bool,
    is_escaped: bool,
    /// Bytes of the string so far.
    len: usize,
    /// Bytes since its last backslash.
    plain: usize,
    /// Whether the rest of the string is left out.
    is_cut: bool,
}

impl LongTexts {
    /// Appends `bytes`, the next ones of the answer, to `body` without the ends of long texts. What was JSON is JSON still: no
    /// escape and no character is cut in two.
    pub(super) fn append(&mut self, bytes: &[u8], body: &mut Vec<u8>) {
        for byte in bytes {
            if self.keeps(*byte) {
                body.push(*byte);
            }
        }
    }

    fn keeps(&mut self, byte: u8) -> bool {
        if !self.in_string {
            if byte == b'"' {
                *self = LongTexts { in_string: true, ..LongTexts::default() };
            }
            return true;
        }
        if byte == b'"' && !self.is_escaped {
            self.in_string = false;
            return true;
        }
        self.is_escaped = byte == b'\\' && !self.is_escaped;
        let begins_character = byte & 0xc0 != 0x80;
        self.is_cut |= self.len >= TEXT_MAX_BYTES && self.plain >= ESCAPE_MAX_BYTES && begins_character;
        self.len += 1;
        self.plain = if byte == b'\\' { 0 } else { self.plain + 1 };
        !self.is_cut
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shortened(answer: &str, chunk: usize) -> String {
        let (mut texts, mut body) = (LongTexts::default(), Vec::new());
        answer.as_bytes().chunks(chunk).for_each(|chunk| texts.append(chunk, &mut body));
        String::from_utf8(body).unwrap()
    }

    #[test]
    fn long_texts_are_cut_at_a_characters_end_and_all_else_stays() {
        let ends = ["\"", "\\", "é", "\u{1f600}", "\u{1}", "x"];
        for end in ends {
            for shift in 0..2 * ESCAPE_MAX_BYTES {
                let text =
                    format!("{}{}", "x".repeat(TEXT_MAX_BYTES - shift), format!("{end}behind the limit").repeat(9));
                let record = json!({"id": "a \"b\" \\", "output": text, "after": [1.5, "c", {}]});
                for json in [record.to_string(), record.to_string().replace('\u{1f600}', "\\ud83d\\ude00")] {
                    let short: Value = serde_json::from_str(&shortened(&json, 1000)).unwrap();
                    let output = short["output"].as_str().unwrap();
                    assert!(text.starts_with(output) && output.len() < TEXT_MAX_BYTES + 60, "{end} {shift}");
                    assert_eq!((&short["id"], &short["after"]), (&record["id"], &record["after"]));
                }
            }
        }
    }

    #[test]
    fn what_is_no_longer_than_the_limit_and_what_is_no_text_stays_byte_for_byte() {
        let text = "x".repeat(TEXT_MAX_BYTES);
        let many = "[1, {\"a\":\"\\\"\"}],".repeat(20_000);
        let answer = format!("[\"{text}\", {many} \"{text}\" ] ");
        assert_eq!(shortened(&answer, 7), answer);
        assert!(shortened(&format!("\"{text}x\""), 7).len() == text.len() + 2);
    }
}
