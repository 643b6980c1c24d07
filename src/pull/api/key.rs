//! The API key, and its files, which are read again when they may have changed.

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};

use crate::config;

/// An API key: its id and its secret.
pub(super) struct Key {
    pub(super) id: String,
    pub(super) secret: SecretString,
}

/// The key in use.
pub(super) struct KeyHolder {
    key: Mutex<Arc<Key>>,
    files: config::KeyFiles,
}

impl KeyHolder {
    pub(super) fn new(pull: &config::Pull) -> KeyHolder {
        let key = Key { id: pull.key_id.clone(), secret: pull.key_secret.clone() };
        KeyHolder { key: Mutex::new(Arc::new(key)), files: pull.key_files.clone() }
    }

    pub(super) fn key(&self) -> Arc<Key> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again. True if they hold another key; if one can't be read, the old key stays in use.
    pub(super) fn reload(&self) -> bool {
        let old = self.key();
        let [id, secret] = match self.files.read() {
            Ok(read) => read,
            Err(error) => {
                tracing::error!("the API key stays what it was, because a file of it can't be used: {error}");
                return false;
            }
        };
        let id = id.map_or_else(|| old.id.clone(), |id| id.expose_secret().to_owned());
        let secret = secret.unwrap_or_else(|| old.secret.clone());
        if id == old.id && secret.expose_secret() == old.secret.expose_secret() {
            return false;
        }
        // Without the id: where the two files are swapped, it is the secret.
        tracing::info!("another API key was read from its file");
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Key { id, secret });
        true
    }
}
