//! Reads files again while the daemon runs. A thread of its own does it, so that a disk that hangs holds
//! up that thread and no request.

use std::sync::mpsc::{self, RecvTimeoutError};

use crate::config::Config;
use crate::credentials::token_file_problem;
use crate::http::tls::Tls;
use crate::http::watched::LOOK_EVERY;
use crate::ingest::auth::Authenticator;
use crate::pull::Puller;

/// Looks until it is dropped.
pub(super) struct FileWatch(mpsc::Sender<()>);

impl FileWatch {
    /// The files of TLS and of static tokens are read when they change, those of an API key when they are asked for.
    /// The files of OIDC tokens are read at every exchange anyway.
    pub(super) fn start(
        config: &Config,
        tls: Option<Tls>,
        authenticator: Authenticator,
        puller: Option<Puller>,
    ) -> FileWatch {
        let (ask, asked) = mpsc::channel();
        let config = config.clone();
        std::thread::spawn(move || {
            loop {
                match asked.recv_timeout(LOOK_EVERY) {
                    Err(RecvTimeoutError::Timeout) => {
                        tls.as_ref().inspect(|tls| tls.look());
                        authenticator.look();
                    }
                    Ok(()) => {
                        tls.as_ref().inspect(|tls| tls.reload());
                        authenticator.reload();
                        puller.as_ref().inspect(|puller| puller.reload());
                        // Who has just changed it wants to know now, not in an hour.
                        if let Some(problem) = token_file_problem(&config) {
                            tracing::warn!(
                                "the OIDC token's file can't be used: {problem}; a token that came before counts on"
                            );
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        FileWatch(ask)
    }

    /// Has all of them read now, whether they changed or not; for SIGHUP.
    pub(super) fn read_again(&self) {
        tracing::info!("SIGHUP: the files that the configuration names are read again");
        // The thread receives for as long as this value exists.
        let _ = self.0.send(());
    }
}
