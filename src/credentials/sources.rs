//! Tokens of the operator's own: a file and a URL, read again at every exchange.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::config::{self, Config};
use crate::network::Network;
use crate::oidc::{OidcToken, Source};

/// Largest answer that a token is read from: many times the longest token that STS takes.
const MAX_BYTES: usize = 64 * 1024;

/// How long a round waits for the token's file. A disk that does not answer is still waited for in the next round.
const FILE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a source gives no token now; a sentence, never with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProblem {
    /// The sentence.
    pub words: String,
    /// Whether nothing is wrong with the configuration: the service that the source names can't be had at the moment.
    pub is_unavailable: bool,
}

pub(super) struct Sources {
    /// With the variable that names it.
    file: Option<(&'static str, PathBuf)>,
    /// A read of the file that the disk has not answered yet. There is one at most, so a disk that hangs holds one thread.
    reading: Mutex<Option<JoinHandle<Result<OidcToken, String>>>>,
    url: Option<SecretString>,
    network: Network,
}

impl Sources {
    pub(super) fn new(config: &Config, network: &Network) -> Sources {
        let file = config.oidc_token_file.clone();
        let url = config.oidc_token_url.clone();
        Sources { file, reading: Mutex::default(), url, network: network.clone() }
    }

    /// The tokens found, and why each other source has none now; never with the URL.
    pub(super) async fn read(&self) -> (Vec<OidcToken>, Vec<SourceProblem>) {
        let mut tokens = Vec::new();
        let mut problems = Vec::new();
        if let Some((variable, path)) = &self.file {
            match self.read_file(variable, path).await {
                Ok(token) => tokens.push(token),
                Err(words) => problems.push(SourceProblem { words, is_unavailable: false }),
            }
        }
        if let Some(url) = &self.url {
            let found = match self.network.fetch(url.expose_secret(), MAX_BYTES).await {
                Ok(body) => token_in(&Zeroizing::new(body)).map_err(|words| (words, false)),
                Err(error) => Err((error.to_string(), error.is_unavailable())),
            };
            match found {
                Ok(token) => tokens.push(token),
                Err((words, is_unavailable)) => {
                    let words = format!("ENV0_S3_LOG_OIDC_TOKEN_URL: {words}");
                    problems.push(SourceProblem { words, is_unavailable });
                }
            }
        }
        (tokens, problems)
    }

    /// Reads the file on a thread that may wait for the disk: the runtime's threads take events meanwhile.
    async fn read_file(&self, variable: &'static str, path: &Path) -> Result<OidcToken, String> {
        let mut reading = self.reading.lock().await;
        let of_disk = path.to_owned();
        let read = reading.get_or_insert_with(|| tokio::task::spawn_blocking(move || in_file(variable, &of_disk)));
        let problem = |problem: String| config::file_error(variable, path, problem);
        let Ok(token) = tokio::time::timeout(FILE_PATIENCE, read).await else {
            return Err(problem(format!("the disk has not given it within {} s", FILE_PATIENCE.as_secs())));
        };
        *reading = None;
        token.unwrap_or_else(|error| Err(problem(error.to_string())))
    }
}

/// Why the configured file gives no token now; `check` asks it without a source.
pub fn token_file_problem(config: &Config) -> Option<String> {
    let (variable, path) = config.oidc_token_file.as_ref()?;
    in_file(variable, path).err()
}

fn in_file(variable: &str, path: &Path) -> Result<OidcToken, String> {
    let token = config::oidc_token_of_file(variable, path)?;
    OidcToken::own(token.expose_secret(), Source::File)
        .ok_or_else(|| config::file_error(variable, path, "holds no token"))
}

/// Raw, or JSON with `token`, `value`, `access_token` or `id_token`; held to the rules of `ENV0_OIDC_TOKEN`.
fn token_in(body: &[u8]) -> Result<OidcToken, String> {
    let none = || "no token in the answer".to_owned();
    let text = std::str::from_utf8(body).map_err(|_| none())?.trim();
    let raw = match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => ["token", "value", "access_token", "id_token"]
            .into_iter()
            .find_map(|name| fields.get(name)?.as_str().map(str::to_owned))
            .ok_or(
                "no token in the answer: its JSON has none of the members token, value, access_token and id_token",
            )?,
        Ok(Value::String(text)) => text,
        _ => text.to_owned(),
    };
    let token = config::oidc_token(&raw).map_err(|expected| format!("expected {expected} (in the answer)"))?;
    OidcToken::own(token.expose_secret(), Source::Url).ok_or_else(none)
}

/// The tokens that the configuration's own sources hold now, and why each other source has none.
pub async fn own_tokens(config: &Config, network: &Network) -> (Vec<OidcToken>, Vec<SourceProblem>) {
    let (mut tokens, problems) = Sources::new(config, network).read().await;
    tokens.extend(
        config.oidc_token.as_ref().and_then(|token| OidcToken::own(token.expose_secret(), Source::Environment)),
    );
    (tokens, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_raw_quoted_or_in_any_of_the_usual_fields() {
        let forms: [&[u8]; 6] = [
            b" raw.token\n",
            b"\"raw.token\"",
            b"{\"token\": \"raw.token\"}",
            b"{\"value\": \"raw.token\", \"count\": 1}",
            b"{\"access_token\": \"raw.token\"}",
            b"{\"id_token\": \"raw.token\"}",
        ];
        for form in forms {
            assert_eq!(token_in(form).unwrap().expose(), "raw.token", "{}", String::from_utf8_lossy(form));
        }
    }

    #[test]
    fn an_answer_without_a_token_is_not_taken_for_one() {
        let forms: [&[u8]; 7] =
            [b"<p>no token here</p>", b"", b" \n", b"{}", b"{\"token\": 1}", b"[\"a.b.c\"]", b"\xff\xfe"];
        for form in forms {
            assert!(token_in(form).is_err(), "{}", String::from_utf8_lossy(form));
        }
    }

    /// What nobody can have meant as an OIDC token, with what is said of it.
    const NOT_MEANT: [(&str, &str); 8] = [
        ("{\"token\":\"a.b.c\"}", "expected a value alone, not the JSON that it was delivered in"),
        ("\"a.b.c\"", "expected a value without quotes around it"),
        ("'a.b.c'", "expected a value without quotes around it"),
        ("${ENV0_OIDC_TOKEN}", "expected a value in which every ${NAME}"),
        ("ENV0_OIDC_TOKEN=a.b.c", "expected a value without the variable's name before it"),
        ("Bearer a.b.c", "without \"Bearer\" before it"),
        ("a.b.c\na.b.d", "the token alone, one word"),
        ("a.b.\u{fc}", "printable ASCII"),
    ];

    #[test]
    fn a_token_is_held_to_the_same_rules_in_variable_file_and_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for text in ["a.b.c", "\u{feff}a.b.c\r\n", " a.b.c "] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(in_file("ENV0_OIDC_TOKEN_FILE", &path).unwrap().expose(), "a.b.c", "{text:?}");
        }
        for (text, expected) in NOT_MEANT {
            std::fs::write(&path, format!("{text}\n")).unwrap();
            let of_file = in_file("ENV0_OIDC_TOKEN_FILE", &path).unwrap_err();
            let place = format!("ENV0_OIDC_TOKEN_FILE={path:?}: expected ");
            assert!(of_file.starts_with(&place) && of_file.contains(" (in that file); printf "), "{of_file}");
            let vars = [("ENV0_OIDC_TOKEN".into(), text.into())];
            let errors = Config::from_vars(vars, config::Purpose::Drain).unwrap_err().errors;
            let of_variable = errors.into_iter().find(|error| error.starts_with("ENV0_OIDC_TOKEN=")).unwrap();
            let of_answer = token_in(serde_json::json!({ "token": text }).to_string().as_bytes()).unwrap_err();
            for said in [of_file, of_variable, of_answer] {
                assert!(said.contains(expected) && !said.contains("a.b."), "{text:?}: {said}");
            }
        }
        std::fs::write(&path, " \n").unwrap();
        assert!(in_file("ENV0_OIDC_TOKEN_FILE", &path).unwrap_err().contains("holds nothing"));
    }

    #[tokio::test]
    async fn a_file_that_keeps_its_reader_waiting_holds_up_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("token");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let config =
            Config { oidc_token_file: Some(("ENV0_OIDC_TOKEN_FILE", pipe.clone())), ..crate::testing::config("") };
        let sources = Sources::new(&config, &Network::new(&config.network).unwrap());
        tokio::select! {
            biased;
            (tokens, problems) = sources.read() => panic!("{tokens:?} {problems:?}"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        // The same read goes on.
        let written = tokio::task::spawn_blocking(move || std::fs::write(pipe, "raw.token"));
        let (tokens, problems) = sources.read().await;
        written.await.unwrap().unwrap();
        assert_eq!((tokens[0].expose(), problems), ("raw.token", Vec::new()));
    }
}
