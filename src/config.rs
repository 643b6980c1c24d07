//! Every variable: meaning, unit, default, range. The only file that reads the environment.

mod effective;
mod files;
mod given;
mod reader;
mod slips;
mod unread;
mod values;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

pub use effective::{
    CloudWatch, Config, KeyFiles, LogFormat, Network, Pull, Purpose, Setting, SettingSource, TlsFiles,
};
pub use files::{file_error, oidc_token, oidc_token_of_file};
use given::Given;
use reader::{REDACTED, Reader};
pub use slips::token_not_meant;
pub use values::aws::bucket_name;
pub use values::{INGEST_TOKEN_MIN_CHARS, distinct, ingest_token, is_env0_id};
pub use variables::{Need, PREFIX, VARIABLES, Variable, example_env, help_text, markdown_table};

use crate::batch::Sha256;

const ADMIN_ADDR: &str = "ENV0_S3_LOG_ADMIN_ADDR";
/// Enough to tell two values apart.
const DIGEST_CHARS: usize = 8;

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// One for every variable, in the table's order.
    pub settings: Vec<Setting>,
    /// Unknown `ENV0_S3_LOG_*` and `ENV0_CLOUDWATCH_*` variables: each a warning at `run`, a failure at `check`.
    pub unknown: Vec<String>,
    /// What is allowed, and still worth a line at every start. What to do stands behind the last semicolon.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// `VARIABLE=value  # source`, one a line: what the command `config` prints.
    pub fn describe(&self) -> String {
        let line = |setting: &Setting| {
            let source = match setting.source {
                SettingSource::Environment => "environment",
                SettingSource::Default => "default",
                SettingSource::Unset => "not set",
            };
            let note = setting.note.as_ref().map(|note| format!(" {note}")).unwrap_or_default();
            // One line each, whatever a value holds.
            let value = setting.value.replace('\n', "\\n");
            format!("{}={value}  # {source}{note}\n", setting.variable)
        };
        self.settings.iter().map(line).collect()
    }

    /// A digest of each value that isn't the default, by which two processes find where their settings differ, and from
    /// which nobody reads a value. Secrets are left out, and the address by which one of the two has found the other.
    pub fn digests(&self) -> BTreeMap<String, String> {
        let is_default = |setting: &&Setting| {
            let default = variables::find(setting.variable).and_then(|variable| variable.default);
            setting.source != SettingSource::Environment || default == Some(setting.value.as_str())
        };
        let told = self.settings.iter().filter(|setting| !is_default(setting));
        let told = told.filter(|setting| setting.variable != ADMIN_ADDR && !setting.value.contains(REDACTED));
        let digest = |setting: &Setting| {
            let hash = Sha256::of(format!("{}={}", setting.variable, setting.value).as_bytes()).to_string();
            (setting.variable.to_owned(), hash[..DIGEST_CHARS].to_owned())
        };
        told.map(digest).collect()
    }
}

/// Everything that is wrong with a configuration; displays as one line each.
#[derive(Debug, Clone, thiserror::Error)]
pub struct ConfigErrors {
    /// What must be mended, one line each.
    pub errors: Vec<String>,
    /// Unknown variables: a typo is often the reason why another one is missing.
    pub unknown: Vec<String>,
    /// What is allowed, and may be the reason, such as another program's name for a variable.
    pub warnings: Vec<String>,
    /// The values that are good, and defaults for the others: to say at once what is wrong with the
    /// files, too.
    pub so_far: Option<Box<Config>>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.errors.iter().map(|error| format!("error: {error}"));
        let warnings = self.unknown.iter().chain(&self.warnings).map(|warning| format!("warning: {warning}"));
        f.write_str(&errors.chain(warnings).collect::<Vec<_>>().join("\n"))
    }
}

impl Config {
    /// The configuration in this process's environment.
    pub fn from_env(purpose: Purpose) -> Result<Loaded, ConfigErrors> {
        Config::from_vars(std::env::vars_os(), purpose)
    }

    /// The configuration in `vars`. All that is wrong is reported at once; nothing but
    /// `ENV0_S3_LOG_OIDC_TOKEN_URL_FILE` is read from disk, and nothing from the network.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (OsString, OsString)>,
        purpose: Purpose,
    ) -> Result<Loaded, ConfigErrors> {
        let mut read = Reader::default();
        let given = read.known(vars, purpose);
        if !given.keys().any(|name| name.starts_with("ENV0_")) {
            read.warnings.push(
                "no ENV0_ variable of this daemon is set for this process: sudo and services don't pass on what a shell has \
                 exported, a variable without export stays in its shell, and an env file's lines have no export; config/example.env \
                 has all of them"
                    .to_owned(),
            );
        }
        let config = read.config(&given, purpose);
        if read.errors.is_empty() {
            Ok(Loaded { config, settings: read.settings(), unknown: read.unknown, warnings: read.warnings })
        } else {
            let Reader { errors, unknown, warnings, .. } = read;
            Err(ConfigErrors { errors, unknown, warnings, so_far: Some(Box::new(config)) })
        }
    }
}

/// A duration as the variables take it: `90s`, `5m`, `2h`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    values::duration(Duration::ZERO, Duration::from_secs(366 * 86_400))(text)
}

/// systemd's socket for `Type=notify` (`sd_notify(3)`); its own variable, not an operator's.
pub fn notify_socket() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET")
}

/// Where the admin listener of a daemon with this environment can be asked. For `healthcheck`, which needs nothing else.
pub fn admin_addr_from_env() -> Result<SocketAddr, ConfigErrors> {
    let mut read = Reader::default();
    let mut given = read.known(std::env::vars_os().filter(|(name, _)| name == ADMIN_ADDR), Purpose::Daemon);
    let mut address = read.value(Given { name: ADMIN_ADDR, text: given.remove(ADMIN_ADDR) }, values::socket_address);
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    if !read.errors.is_empty() {
        return Err(ConfigErrors { errors: read.errors, unknown: Vec::new(), warnings: Vec::new(), so_far: None });
    }
    Ok(address)
}

#[cfg(test)]
mod tests;
