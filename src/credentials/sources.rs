//! Tokens of the operator's own: a file and a URL, read again at every exchange.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::network::Network;
use crate::oidc::{OidcToken, Source};
use crate::small_file;

/// Largest answer that a token is read from: many times the longest token that STS takes.
const MAX_BYTES: usize = 64 * 1024;

/// How long a round waits for the token's file. A disk that does not answer is still waited for in the next round.
const FILE_PATIENCE: Duration = Duration::from_secs(10);

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
        let file = config.oidc_token_file.clone().map(|path| (config.oidc_token_file_variable, path));
        let url = config.oidc_token_url.clone();
        Sources { file, reading: Mutex::default(), url, network: network.clone() }
    }

    /// The tokens found, and a sentence for each source that has none now; never with the URL.
    pub(super) async fn read(&self) -> (Vec<OidcToken>, Vec<String>) {
        let mut tokens = Vec::new();
        let mut problems = Vec::new();
        if let Some((variable, path)) = &self.file {
            match self.read_file(path).await {
                Ok(token) => tokens.push(token),
                Err(reason) => problems.push(format!("{variable}={path:?}: {reason}")),
            }
        }
        if let Some(url) = &self.url {
            match self.network.fetch(url.expose_secret(), MAX_BYTES).await.map(|body| token_in(&Zeroizing::new(body))) {
                Ok(Some(token)) => tokens.push(token),
                Ok(None) => problems.push("ENV0_S3_LOG_OIDC_TOKEN_URL: no token in the answer".to_owned()),
                Err(error) => problems.push(format!("ENV0_S3_LOG_OIDC_TOKEN_URL: {error}")),
            }
        }
        (tokens, problems)
    }

    /// Reads the file on a thread that may wait for the disk: the runtime's threads take events meanwhile.
    async fn read_file(&self, path: &Path) -> Result<OidcToken, String> {
        let mut reading = self.reading.lock().await;
        let path = path.to_owned();
        let read = reading.get_or_insert_with(|| {
            tokio::task::spawn_blocking(move || {
                let text = small_file::read_text(&path).map_err(|error| error.to_string())?;
                in_file(&text).map_err(str::to_owned)
            })
        });
        let Ok(token) = tokio::time::timeout(FILE_PATIENCE, read).await else {
            return Err(format!("the disk has not given it within {} s", FILE_PATIENCE.as_secs()));
        };
        *reading = None;
        token.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// The file is held to the rules of the variable: quotes and names that nobody replaced are no part of a token.
fn in_file(text: &str) -> Result<OidcToken, &'static str> {
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.starts_with(['"', '\'']) || text.ends_with(['"', '\'']) {
        return Err("there are quotes around the token: take them away");
    }
    if text.contains("${") {
        return Err("there is a ${…} in it, which nothing has replaced by its value");
    }
    OidcToken::own(text, Source::File).ok_or(match text {
        "" => "the file holds no token",
        _ => "the file holds no token, which is one word without \"Bearer\" before it",
    })
}

/// Raw, or JSON with `token`, `value`, `access_token` or `id_token`.
fn token_in(body: &[u8]) -> Option<OidcToken> {
    let text = std::str::from_utf8(body).ok()?.trim();
    if let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(text) {
        let named =
            ["token", "value", "access_token", "id_token"].into_iter().find_map(|name| fields.get(name)?.as_str());
        return OidcToken::own(named?, Source::Url);
    }
    let raw = serde_json::from_str::<String>(text);
    OidcToken::own(raw.as_deref().unwrap_or(text), Source::Url)
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
        let forms: [&[u8]; 6] = [b"<p>no token here</p>", b"", b" \n", b"{}", b"{\"token\": 1}", b"\xff\xfe"];
        for form in forms {
            assert!(token_in(form).is_none(), "{}", String::from_utf8_lossy(form));
        }
    }

    #[test]
    fn a_file_is_held_to_the_rules_of_the_variable() {
        for text in ["raw.token", "\u{feff}raw.token\r\n", " raw.token "] {
            assert_eq!(in_file(text).unwrap().expose(), "raw.token", "{text:?}");
        }
        for (text, expected) in [
            ("\"raw.token\"", "quotes"),
            ("'raw.token'", "quotes"),
            ("${ENV0_OIDC_TOKEN}", "${…}"),
            ("", "no token"),
            ("two words", "no token"),
            ("Bearer raw.token", "without \"Bearer\""),
        ] {
            let reason = in_file(text).unwrap_err();
            assert!(reason.contains(expected), "{text}: {reason}");
        }
    }

    #[tokio::test]
    async fn a_file_that_keeps_its_reader_waiting_holds_up_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("token");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let config = Config { oidc_token_file: Some(pipe.clone()), ..crate::testing::config("") };
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
