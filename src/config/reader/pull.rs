//! The variables of pulling.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{Given, HOUR, Reader};
use crate::config::effective::{KeyFiles, Pull};
use crate::config::values::{self, Rule};

impl Reader {
    /// The value of a variable, or of the file that a second one names.
    fn secret_or_file(&mut self, (given, file): (Given, Given), parse: Rule) -> Option<SecretString> {
        if given.text.is_none() {
            return self.secret_of_file(file, parse);
        }
        // Nobody reads the file, but its path is judged.
        self.path(file);
        self.secret(given, parse)
    }

    /// What is pulled. `key` is the key's id and its secret.
    pub(super) fn pull(
        &mut self,
        [key_id, key_secret]: [(Given, Given); 2],
        [types, from, interval, organization_ids, api_url]: [Given; 5],
    ) -> Option<Pull> {
        let [id, secret] = [&key_id, &key_secret].map(|(given, file)| match given.text {
            Some(_) => None,
            None => file.text.clone().map(PathBuf::from),
        });
        let key_files = KeyFiles { id, secret };
        let key_id = self.secret_or_file(key_id, values::key_id);
        let key_secret = self.secret_or_file(key_secret, values::text);
        let types = self.value(types, values::log_types);
        let from = self.optional(from, values::past_moment);
        let interval = self.value(interval, values::duration(Duration::from_secs(5), HOUR));
        let organization_ids = self.optional(organization_ids, values::ids).unwrap_or_default();
        let api_url = self.value(api_url, values::endpoint_url);
        let is_given = |read: &Self, name| ["", "_FILE"].iter().any(|end| read.is_given(&format!("{name}{end}")));
        match (is_given(self, "ENV0_API_KEY_ID"), is_given(self, "ENV0_API_KEY_SECRET")) {
            (true, false) => self.refuse("ENV0_API_KEY_SECRET", "not set, and needed beside ENV0_API_KEY_ID"),
            (false, true) => self.refuse("ENV0_API_KEY_ID", "not set, and needed beside ENV0_API_KEY_SECRET"),
            (false, false) if !types.is_empty() => self.warn_of_idle(
                ["ENV0_S3_LOG_PULL", "ENV0_S3_LOG_PULL_FROM", "ENV0_S3_LOG_PULL_ORGANIZATION_ID"],
                ["ENV0_API_KEY_ID", "ENV0_API_KEY_SECRET"],
            ),
            _ => {}
        }
        let (key_id, key_secret) = (key_id?.expose_secret().to_owned(), key_secret?);
        (!types.is_empty()).then_some(Pull {
            key_id,
            key_secret,
            key_files,
            types,
            from,
            interval,
            organization_ids,
            api_url,
        })
    }
}
