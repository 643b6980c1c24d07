//! Makes an answer thin while it arrives: what nobody reads of its records is left out, and so are the ends of long texts. A
//! record may hold the whole output of a deployment, a list of all variables, and secrets.

use std::ops::Range;

/// The names of all members that are read, of a record or of an object within one: by `pull/deployments/records.rs`,
/// `pull/organizations.rs` and `check/pull.rs`. What stands under another name is not kept.
const READ: [&[u8]; 30] = [
    b"id",
    b"name",
    b"type",
    b"status",
    // Of environments.
    b"projectId",
    b"updatedAt",
    b"latestDeploymentLogId",
    b"latestDeploymentLog",
    // Of deployments.
    b"createdAt",
    b"queuedAt",
    b"startedAt",
    b"finishedAt",
    b"startedBy",
    b"startedByUser",
    b"email",
    b"triggerName",
    b"blueprintName",
    b"blueprintRevision",
    b"prNumber",
    b"resourceCount",
    b"planSummary",
    b"added",
    b"changed",
    b"destroyed",
    b"imported",
    b"customEnv0EnvironmentVariables",
    b"oidcToken",
    // Of steps.
    b"retryCount",
    // Of what env0 forwards.
    b"auditLogForwarding",
    b"deploymentLogForwarding",
];
/// A text is cut behind so many bytes. The longest that is read is a token, which has some 2 KB.
const TEXT_MAX_BYTES: usize = 64 * 1024;
/// No escape takes more bytes, not even one of two halves (`\ud83d\ude00`).
const ESCAPE_MAX_BYTES: usize = 12;
/// An answer is a list of records, so this deep are the members of one.
const RECORD_DEPTH: usize = 2;

/// What was read of an answer so far.
#[derive(Default)]
pub(super) struct Thin {
    /// How many brackets and braces are open.
    depth: usize,
    string: Option<Text>,
    /// Where in the body the last string lies, with its quotes: the name of a member if a `:` follows.
    last_string: Range<usize>,
    left_out: Option<LeftOut>,
}

/// A string that is being read.
#[derive(Default)]
struct Text {
    is_escaped: bool,
    /// Its bytes so far.
    len: usize,
    /// Bytes since its last backslash.
    plain: usize,
    /// Whether the rest of it is left out.
    is_cut: bool,
}

/// What is being left out.
#[derive(Clone, Copy)]
enum LeftOut {
    /// A member of an object at this depth, up to the comma behind it.
    Member(usize),
    /// The elements of a list at this depth.
    Elements(usize),
}

impl Thin {
    /// Appends to `body` what is kept of `bytes`, the next ones of the answer. What was JSON is JSON still: no escape and no
    /// character is cut in two.
    pub(super) fn append(&mut self, bytes: &[u8], body: &mut Vec<u8>) {
        bytes.iter().for_each(|byte| self.push(*byte, body));
    }

    fn push(&mut self, byte: u8, body: &mut Vec<u8>) {
        if let Some(text) = &mut self.string {
            let ends = byte == b'"' && !text.is_escaped;
            if (text.keeps(byte) || ends) && self.left_out.is_none() {
                body.push(byte);
            }
            if ends {
                self.string = None;
                self.last_string.end = body.len();
            }
            return;
        }
        match byte {
            b'"' => {
                self.string = Some(Text::default());
                self.last_string.start = body.len();
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.close(body),
            b':' if self.left_out.is_none() && self.depth >= RECORD_DEPTH && !is_read(body, &self.last_string) => {
                body.truncate(self.last_string.start);
                self.left_out = Some(LeftOut::Member(self.depth));
            }
            b',' if matches!(self.left_out, Some(LeftOut::Member(depth)) if depth == self.depth) => {
                // The comma before the member, if there is one, is the next one's.
                self.left_out = None;
                return;
            }
            _ => {}
        }
        if self.left_out.is_some() {
            return;
        }
        body.push(byte);
        if byte == b'[' && self.depth > RECORD_DEPTH {
            // No list within a record is read.
            self.left_out = Some(LeftOut::Elements(self.depth));
        }
    }

    /// A bracket or brace closes.
    fn close(&mut self, body: &mut Vec<u8>) {
        let closed = self.depth;
        self.depth = closed.saturating_sub(1);
        match self.left_out {
            Some(LeftOut::Member(depth)) if depth == closed => {
                let kept = body.trim_ascii_end();
                body.truncate(kept.strip_suffix(b",").unwrap_or(kept).len());
                self.left_out = None;
            }
            Some(LeftOut::Elements(depth)) if depth == closed => self.left_out = None,
            _ => {}
        }
    }
}

impl Text {
    /// Whether this byte of it is kept; its last quote is in any case.
    fn keeps(&mut self, byte: u8) -> bool {
        self.is_escaped = byte == b'\\' && !self.is_escaped;
        let begins_character = byte & 0xc0 != 0x80;
        self.is_cut |= self.len >= TEXT_MAX_BYTES && self.plain >= ESCAPE_MAX_BYTES && begins_character;
        self.len += 1;
        self.plain = if byte == b'\\' { 0 } else { self.plain + 1 };
        !self.is_cut
    }
}

/// Whether somebody reads the member with this name. One that is written with escapes may be any.
fn is_read(body: &[u8], name: &Range<usize>) -> bool {
    let name = body.get(name.clone()).and_then(|name| name.strip_prefix(b"\"")?.strip_suffix(b"\""));
    name.is_none_or(|name| READ.contains(&name) || name.contains(&b'\\'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn thin(answer: &str, chunk: usize) -> String {
        let (mut thin, mut body) = (Thin::default(), Vec::new());
        answer.as_bytes().chunks(chunk).for_each(|chunk| thin.append(chunk, &mut body));
        String::from_utf8(body).unwrap()
    }

    #[test]
    fn long_texts_are_cut_at_a_characters_end_and_all_else_stays() {
        let ends = ["\"", "\\", "é", "\u{1f600}", "\u{1}", "x"];
        for end in ends {
            for shift in 0..2 * ESCAPE_MAX_BYTES {
                let text =
                    format!("{}{}", "x".repeat(TEXT_MAX_BYTES - shift), format!("{end}behind the limit").repeat(9));
                let record = json!({"id": "a \"b\" \\", "name": text, "added": 1.5});
                for json in [record.to_string(), record.to_string().replace('\u{1f600}', "\\ud83d\\ude00")] {
                    let short: [Value; 1] = serde_json::from_str(&thin(&format!("[{json}]"), 1000)).unwrap();
                    let name = short[0]["name"].as_str().unwrap();
                    assert!(text.starts_with(name) && name.len() < TEXT_MAX_BYTES + 60, "{end} {shift}");
                    assert_eq!((&short[0]["id"], &short[0]["added"]), (&record["id"], &record["added"]));
                }
            }
        }
    }

    #[test]
    fn what_is_read_and_no_longer_than_the_limit_stays_byte_for_byte() {
        let text = "x".repeat(TEXT_MAX_BYTES);
        let many = "{\"id\" : \"\\\"{[,:\",\n\"planSummary\": {\"added\":1}}, 7, ".repeat(2000);
        let answer = format!("[\"{text}\", {many} null, \"{text}\" ] ");
        assert_eq!(thin(&answer, 7), answer);
        assert_eq!(thin(&format!("[\"{text}x\"]"), 7).len(), text.len() + 4);
        // A page's own members are no record's.
        let page = r#"{"events":[], "nextPageKey":{} , "other":"[1]"}"#;
        assert_eq!(thin(page, 1), page);
    }

    #[test]
    fn what_nobody_reads_of_a_record_is_left_out_wherever_it_stands() {
        let lines = [
            (r#"[{"variables":[{"id":1}]}]"#, "[{}]"),
            (r#"[{"variables": {"id":[","]}, "id":1}]"#, r#"[{ "id":1}]"#),
            (
                r#"[{"id":1, "plan":"a,}]\"" , "output" : {} }, {"id":2,"error":null,"name":"n"}]"#,
                r#"[{"id":1}, {"id":2,"name":"n"}]"#,
            ),
            (r#"[{"id":1,"a":1,"b":2,"status":"S","c":[1,[2,3],{"d":4}]}]"#, r#"[{"id":1,"status":"S"}]"#),
            (
                r#"[{"triggerName":[1,[2],"]"],"startedByUser":{"name":"n","x":{"email":"no"},"email":"e"}}]"#,
                r#"[{"triggerName":[],"startedByUser":{"name":"n","email":"e"}}]"#,
            ),
            (
                r#"[{"latestDeploymentLog":{"plan":"p","status":"S","customEnv0EnvironmentVariables":{"vcsAccessToken":"s","oidcToken":"t"}}}]"#,
                r#"[{"latestDeploymentLog":{"status":"S","customEnv0EnvironmentVariables":{"oidcToken":"t"}}}]"#,
            ),
            (r#"[{"\u0069d":1,"\u0078":2}]"#, r#"[{"\u0069d":1,"\u0078":2}]"#),
        ];
        for (answer, kept) in lines {
            (1..answer.len()).for_each(|chunk| assert_eq!(thin(answer, chunk), kept));
        }
    }

    #[test]
    fn what_breaks_off_and_what_is_no_json_is_none_afterwards_either() {
        for answer in
            ["[{\"id\":1,\"x\":", "[{\"x\":1", "[{\"id\":1}", "<html>{a:b}", "[{\"id\":1]", "[{\"id\":1,,}]", "", "]"]
        {
            assert!(serde_json::from_str::<Value>(&thin(answer, 1)).is_err(), "{answer}");
        }
    }
}
