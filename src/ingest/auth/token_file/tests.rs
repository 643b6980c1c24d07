use std::fs;

use super::*;

const TOKEN: &str = "0123456789abcdef-plain";
const TYPED: &str = "0123456789abcdef-typed";
/// Nobody wrote to the file while the test looked.
const AT_ONCE: Duration = Duration::ZERO;

struct Case {
    directory: tempfile::TempDir,
    file: TokenFile,
}

impl Case {
    fn of(text: impl AsRef<[u8]>) -> Case {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        fs::write(&path, text).unwrap();
        let file = TokenFile::new(&path).unwrap().rests_after(AT_ONCE);
        Case { directory, file }
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        fs::write(&self.file.path, text).unwrap();
    }

    fn replace(&self, text: &str) {
        let next = self.directory.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, &self.file.path).unwrap();
    }

    /// The type that each token writes after a look at the file: `Some(None)` is any.
    fn types(&self) -> [Option<Option<LogType>>; 2] {
        self.file.look();
        let tokens = self.file.current();
        [TOKEN, TYPED].map(|token| {
            let digest = Sha256::of(token.as_bytes());
            tokens.iter().find(|known| known.digest == digest).map(|known| known.log_type)
        })
    }
}

const ANY: Option<Option<LogType>> = Some(None);
const AUDITS: Option<Option<LogType>> = Some(Some(LogType::Audits));

fn problem(text: impl AsRef<[u8]>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    fs::write(&path, text).unwrap();
    load(&path, Change::Replaced).err().map_or_else(|| "none".to_owned(), |error| error.to_string())
}

#[test]
fn a_file_is_read_again_when_it_changes_and_stays_in_force_when_it_breaks() {
    let case = Case::of(format!("# tokens\n\n{TOKEN}\r\n"));
    assert_eq!(case.types(), [ANY, None]);
    case.replace(&format!("{TYPED}   env0-audits\n"));
    assert_eq!(case.types(), [None, AUDITS]);
    for broken in ["", "too-short\n", "0123456789abcdef env0-other\n", "0123456789abcdef env0-audits more\n"] {
        case.write(broken);
        assert_eq!(case.types(), [None, AUDITS], "{broken:?}");
    }
    fs::remove_file(&case.file.path).unwrap();
    assert_eq!(case.types(), [None, AUDITS]);
    case.write(format!("{TOKEN}\n"));
    assert_eq!(case.types(), [ANY, None]);
}

#[test]
fn a_file_in_the_middle_of_being_written_opens_nothing() {
    let whole = format!("{TYPED} env0-audits\n{TOKEN}\n");
    let case = Case::of(&whole);
    for cut in 0..whole.len() {
        case.write(&whole[..cut]);
        let [_, typed] = case.types();
        assert_eq!(typed, AUDITS, "cut at {cut}");
    }
    case.write(&whole);
    assert_eq!(case.types(), [ANY, AUDITS]);
}

#[test]
fn a_change_counts_once_two_looks_have_found_the_same() {
    let case = Case::of(format!("{TOKEN}\n"));
    // A file from the future never looks as if it had rested.
    let file = case.file.rests_after(Duration::from_nanos(1));
    let path = file.path.clone();
    let version = |seconds: u64| {
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(3600 + seconds)).unwrap();
    };
    let count = || {
        file.look();
        file.current().len()
    };
    fs::write(&path, format!("{TOKEN}\n{TYPED}\n")).unwrap();
    for look in 0..3 {
        version(look);
        assert_eq!(count(), 1, "it changed since the look before");
    }
    assert_eq!(count(), 2, "the second look found the same");
}

#[test]
fn a_last_line_without_its_end_counts_at_start_and_after_a_rename_only() {
    let case = Case::of(TOKEN);
    assert_eq!(case.types(), [ANY, None], "at start");
    case.write(TYPED);
    assert_eq!(case.types(), [ANY, None], "written to");
    case.replace(TYPED);
    assert_eq!(case.types(), [None, ANY], "renamed");
}

#[test]
fn a_file_over_the_limit_changes_nothing() {
    let line = format!("{TYPED} env0-audits\n");
    let mut text = "# 0123456789abcdef\n".repeat(small_file::MAX_BYTES / 19 + 1);
    text.truncate(small_file::MAX_BYTES - line.len() + 12);
    text.replace_range(text.len() - 1.., "\n");
    text.push_str(&line);
    let case = Case::of(format!("{TOKEN}\n"));
    case.replace(&text);
    assert_eq!(case.types(), [ANY, None]);
    assert!(problem(&text).contains("more than 1048576 bytes"), "{}", problem(&text));
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_token() {
    let inputs: &[u8] = b"\xef\xbb\xbfa-long-random-token-for-tests-1 env0-deployments\r\n";
    let case = Case::of(inputs);
    let token = &case.file.current()[0];
    assert!(token.digest == Sha256::of(b"a-long-random-token-for-tests-1"));
    assert_eq!(token.log_type, Some(LogType::Deployments));
}

#[test]
fn a_line_that_cannot_be_meant_is_told_without_its_words() {
    for (text, expected) in [
        ("\n# nothing\n", "no token in it"),
        ("good-good-good-good\nsecret-short", "line 2: it should be 16 or more printable ASCII characters"),
        ("secret-secret-secret env0-other", "line 1: not a log type after the token, which is env0-deployments"),
        ("\"secret-secret-secret\"", "line 1: it should be a value without quotes"),
        ("'secret-secret-secret env0-audits'", "line 1: it should be a value without quotes"),
        ("secret-secret-secret' env0-audits", "line 1: it should be a value without quotes"),
        ("secret-secret-${NAME}-secret", "line 1: it should be a value in which every ${NAME}"),
        ("secret-secret-secret,env0-audits", "line 1: it should be a value without env0-audits in it"),
        ("secret-secret-secret=env0-audits", "line 1: it should be a value without env0-audits in it"),
        ("env0-deployments:secret-secret", "line 1: it should be a value without env0-deployments in it"),
        ("env0-deployments", "line 1: it should be a value without env0-deployments in it"),
        ("{\"secret\":\"secret-secret-secret\"}", "line 1: it should be a value alone, not the JSON"),
        ("{\"secret\": \"secret-secret-secret\"}", "line 1: it should be a value alone, not the JSON"),
        ("change-me-0123456789abcdef env0-audits", "line 1: it should be a value of your own"),
        ("good-good-good-good\nsecret-secret-secret\\n", "line 2: it should be a value without a written-out"),
        ("secret-secret-s\u{fc}cret", "line 1: it should be 16 or more printable ASCII characters"),
        ("good-good-good-good\n\u{feff}secret-secret-secret", "line 2: it should be a value without a byte order mark"),
        ("secret-secret-secret env0-audits more", "line 1: more than a token and a log type"),
    ] {
        let message = problem(text);
        assert!(message.contains(expected) && message.contains(VARIABLE), "{text}: {message}");
        assert!(!message.contains("secret-") && !message.contains("cret-"), "{message}");
    }
    assert!(problem(b"\xff\xfe").contains("not UTF-8"));
}

#[test]
fn a_token_that_is_given_twice_with_different_types_is_refused() {
    for (first, second) in [("env0-audits", "env0-deployments"), ("", "env0-audits"), ("env0-audits", "")] {
        let message = problem(format!("{TOKEN} {first}\n# again\n{TOKEN} {second}\n"));
        assert!(message.contains("line 3: the token of line 1 again, with another log type"), "{message}");
        assert!(!message.contains(TOKEN), "{message}");
    }
    assert_eq!(problem(format!("{TOKEN} env0-audits\n{TYPED}\n{TOKEN} env0-audits\n")), "none");
}
