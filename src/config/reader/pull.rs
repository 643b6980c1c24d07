//! The variables of pulling.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::Reader;
use crate::config::effective::{KeyFiles, Pull};
use crate::config::files::value_of_file;
use crate::config::values;

impl Reader {
    /// The value of `name`, or of the file that `file_name` names.
    fn secret_or_file(
        &mut self,
        (name, given, file_name, file): (&'static str, Option<String>, &'static str, Option<String>),
    ) -> Option<SecretString> {
        let file = self.path(file_name, file);
        let parse = if name == "ENV0_API_KEY_ID" { values::key_id } else { values::text };
        if given.is_some() {
            return self.secret(name, given, parse);
        }
        value_of_file(&file?, parse).map_err(|problem| self.refuse(file_name, &problem)).ok()
    }

    /// What is pulled. `key` is the key's id and its secret.
    pub(super) fn pull(
        &mut self,
        key: [(&'static str, Option<String>, &'static str, Option<String>); 2],
        [types, from, interval, organization_ids, api_url]: [Option<String>; 5],
    ) -> Option<Pull> {
        let [id_file, secret_file] = key.each_ref().map(|(_, given, _, file)| match given {
            Some(_) => None,
            None => file.clone().map(PathBuf::from),
        });
        let key_files = KeyFiles { id: id_file, secret: secret_file };
        let [key_id, key_secret] = key.map(|part| self.secret_or_file(part));
        let types = self.value("ENV0_S3_LOG_PULL", types, values::log_types);
        let from = self.optional("ENV0_S3_LOG_PULL_FROM", from, values::past_moment);
        let interval = self.value(
            "ENV0_S3_LOG_PULL_INTERVAL",
            interval,
            values::duration(Duration::from_secs(5), Duration::from_secs(3600)),
        );
        let organization_ids =
            self.optional("ENV0_S3_LOG_PULL_ORGANIZATION_ID", organization_ids, values::ids).unwrap_or_default();
        let api_url = self.value("ENV0_S3_LOG_API_URL", api_url, values::endpoint_url);
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
