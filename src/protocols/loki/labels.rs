//! Labels in Prometheus' notation, `{app="env0",level="info"}`, unquoted as its own parser does: in double or single
//! quotes with Go's escapes, in back quotes as they are.

use std::borrow::Cow;

/// The labels of a text, in order. After a part that is no label, reading goes on after the next comma.
pub(super) struct Labels<'a> {
    rest: &'a str,
    /// Whether the closing brace was read.
    is_whole: bool,
    /// Whether a part of the text is no label.
    pub(super) is_odd: bool,
}

/// A name and a value, which need not be UTF-8.
pub(super) type Label<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

impl<'a> Labels<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let text = text.trim();
        match text.strip_prefix('{') {
            Some(rest) => Labels { rest, is_odd: false, is_whole: false },
            None => Labels { rest: text, is_odd: !text.is_empty(), is_whole: text.is_empty() },
        }
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = Label<'a>;

    fn next(&mut self) -> Option<Label<'a>> {
        loop {
            self.rest = self.rest.trim_start();
            if let Some(behind) = self.rest.strip_prefix('}') {
                self.is_odd |= !behind.is_empty();
                (self.rest, self.is_whole) = ("", true);
                return None;
            }
            if self.rest.is_empty() {
                self.is_odd |= !self.is_whole;
                return None;
            }
            if let Some((label, rest)) = label(self.rest) {
                self.rest = rest;
                return Some(label);
            }
            self.is_odd = true;
            self.rest = self.rest.split_once(',').map_or("", |(_, rest)| rest);
        }
    }
}

/// The label that `text` begins with, and the rest after it and its comma.
fn label(text: &str) -> Option<(Label<'_>, &str)> {
    let (name, rest) = match text.chars().next()? {
        '"' | '\'' | '`' => unquote(text)?,
        _ => {
            let end = text.find(|c: char| c.is_whitespace() || "{},=!~\"'`".contains(c))?;
            (Cow::Borrowed(&text.as_bytes()[..end]), &text[end..])
        }
    };
    if name.is_empty() {
        return None;
    }
    let (value, rest) = unquote(rest.trim_start().strip_prefix('=')?.trim_start())?;
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(',').or_else(|| rest.starts_with('}').then_some(rest))?;
    Some(((name, value), rest))
}

/// The quoted text that `text` begins with, and the rest after it.
fn unquote(text: &str) -> Option<(Cow<'_, [u8]>, &str)> {
    let quote = *text.as_bytes().first().filter(|quote| b"\"'`".contains(quote))?;
    let inside = &text[1..];
    if quote == b'`' {
        let (raw, rest) = inside.split_once('`')?;
        return Some((Cow::Borrowed(raw.as_bytes()), rest));
    }
    let special = |from: usize| memchr::memchr3(quote, b'\\', b'\n', &inside.as_bytes()[from..]).map(|at| from + at);
    let mut at = special(0)?;
    if inside.as_bytes()[at] == quote {
        return Some((Cow::Borrowed(&inside.as_bytes()[..at]), &inside[at + 1..]));
    }
    let mut unquoted = inside.as_bytes()[..at].to_vec();
    loop {
        match inside.as_bytes()[at] {
            b'\\' => at += 1 + unescape(&inside.as_bytes()[at + 1..], quote, &mut unquoted)?,
            b'\n' => return None,
            _ => return Some((Cow::Owned(unquoted), &inside[at + 1..])),
        }
        let next = special(at)?;
        unquoted.extend_from_slice(&inside.as_bytes()[at..next]);
        at = next;
    }
}

/// Adds the character that the escape after a backslash stands for; returns how many bytes the escape takes.
fn unescape(escape: &[u8], quote: u8, out: &mut Vec<u8>) -> Option<usize> {
    let digits = |from: usize, count: usize, radix: u32| {
        let digits = escape.get(from..from + count)?;
        let is_digits = digits.iter().all(|&digit| char::from(digit).is_digit(radix));
        is_digits.then(|| u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok())?
    };
    let kind = *escape.first()?;
    let byte = match kind {
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        b'\\' => b'\\',
        _ if kind == quote => quote,
        b'x' => {
            out.push(u8::try_from(digits(1, 2, 16)?).ok()?);
            return Some(3);
        }
        b'0'..=b'7' => {
            out.push(u8::try_from(digits(0, 3, 8)?).ok()?);
            return Some(3);
        }
        b'u' | b'U' => {
            let count = if kind == b'u' { 4 } else { 8 };
            let code = digits(1, count, 16).filter(|&code| code <= u32::from(char::MAX))?;
            // Half a surrogate pair is no character; Go's encoder writes U+FFFD for it.
            let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(1 + count);
        }
        _ => return None,
    };
    out.push(byte);
    Some(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (Vec<(String, String)>, bool) {
        let mut labels = Labels::of(text);
        let text_of = |bytes: Cow<'_, [u8]>| String::from_utf8_lossy(&bytes).into_owned();
        let read = labels.by_ref().map(|(name, value)| (text_of(name), text_of(value))).collect();
        (read, labels.is_odd)
    }

    #[test]
    fn labels_are_unquoted_as_go_does() {
        // As `strconv.Unquote` and Prometheus' `strutil.Unquote` have them.
        for (quoted, value) in [
            (r#""\x1b[1mprod""#, "\u{1b}[1mprod"),
            (r#""\a\b\f\n\r\t\v\\\"""#, "\u{7}\u{8}\u{c}\n\r\t\u{b}\\\""),
            (r#""\101\u00e9\U0001F680""#, "A\u{e9}\u{1f680}"),
            (r#""\xff\ud800""#, "\u{fffd}\u{fffd}"),
            (r#""\xc3\xa9""#, "\u{e9}"),
            (r#"'it\'s "so"'"#, "it's \"so\""),
            ("`\\x1b\n\"raw\"`", "\\x1b\n\"raw\""),
            (r#""a,b}=c""#, "a,b}=c"),
            ("\"\"", ""),
        ] {
            assert_eq!(read(&format!("{{k={quoted}}}")), (vec![("k".into(), value.into())], false), "{quoted}");
        }
    }

    /// As Go's `strconv.Quote` writes it, with hex for what is not plain.
    fn quoted(value: &[u8]) -> String {
        let escaped = value.iter().map(|&byte| match byte {
            b'"' | b'\\' => format!("\\{}", char::from(byte)),
            b' '..=b'~' => char::from(byte).to_string(),
            b'\n' => "\\n".to_owned(),
            _ => format!("\\x{byte:02x}"),
        });
        format!("\"{}\"", escaped.collect::<String>())
    }

    proptest! {
        #[test]
        fn any_values_that_go_quotes_are_read_back(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..5)) {
            let text = values.iter().enumerate().map(|(index, value)| format!("k{index}={}", quoted(value)));
            let text = format!("{{{}}}", text.collect::<Vec<_>>().join(", "));
            let mut labels = Labels::of(&text);
            let read: Vec<_> = labels.by_ref().map(|(_, value)| value.into_owned()).collect();
            prop_assert_eq!((read, labels.is_odd), (values, false));
        }

        #[test]
        fn any_text_is_read_to_its_end(text in "[{}a=,\"'`\\\\x0n ]{0,40}") {
            let before = Labels::of(&text).count();
            // Text after the brace is no label, but the first label always counts.
            let with_one = format!("{{good=\"1\",{}", text.trim().strip_prefix('{').unwrap_or(text.trim()));
            prop_assert_eq!(Labels::of(&with_one).count(), before + 1);
        }
    }

    #[test]
    fn labels_beside_an_odd_one_count() {
        let app = || ("app".to_owned(), "env0-audits".to_owned());
        for odd in [
            r#"a="\q""#,
            r#"a="\'""#,
            r#"a="\400""#,
            r#"a="\x1""#,
            r#"a="\U00110000""#,
            "a=\"x\ny\"",
            r#"a="un"quoted""#,
            "a=1",
            "a",
            "=\"x\"",
            "a!=\"x\"",
            "a=~\"x\"",
            "",
            "{",
            r#"a="x" b="y""#,
        ] {
            assert_eq!(read(&format!(r#"{{{odd},app="env0-audits"}}"#)), (vec![app()], true), "{odd}");
        }
        for text in [
            r#"app="env0-audits"}"#,
            r#"{app="env0-audits"}x"#,
            r#"{"app"="env0-audits"}"#,
            r#"{ app = "env0-audits" , }"#,
        ] {
            let (labels, is_odd) = read(text);
            assert_eq!((labels, is_odd), (vec![app()], !text.contains("{\"") && !text.contains("{ ")), "{text}");
        }
        assert_eq!(read("{}"), (vec![], false));
        assert_eq!(read(""), (vec![], false));
        assert_eq!(read(r#"{a="x"#), (vec![], true));
        assert_eq!(read(r#"{a="x","#), (vec![("a".into(), "x".into())], true));
    }
}
