//! Makes the parts from the configuration, for the commands that need them.

use std::fmt;

use tokio_util::sync::CancellationToken;

use crate::batch::ByType;
use crate::chain::SigningKey;
use crate::cloudwatch::lane::{self, Lanes};
use crate::cloudwatch::logs::Logs;
use crate::config::{self, Config};
use crate::credentials::{Credentials, Role};
use crate::exit_code;
use crate::flusher::{self, Flusher};
use crate::http::tls::{self, Tls};
use crate::ingest::auth;
use crate::metric_table;
use crate::network::Network;
use crate::oidc::Verifier;
use crate::pull::settle::{self, Settled};
use crate::s3::S3;
use crate::spool::manifest::{Destination, LockError};
use crate::spool::{self, OpenError, Spool};

/// A failure to start or to run, with the process's exit code.
#[derive(Debug)]
pub struct Failure {
    /// See [`exit_code`].
    pub exit_code: u8,
    /// For people.
    pub error: anyhow::Error,
}

/// The error and its causes. A cause whose words the error has in its own message is not repeated.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut message = self.error.to_string();
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            if !message.contains(&cause) {
                message = format!("{message}: {cause}");
            }
        }
        f.write_str(&message)
    }
}

impl Failure {
    /// An error with the exit code it leads to.
    pub fn new(exit_code: u8, error: impl Into<anyhow::Error>) -> Failure {
        Failure { exit_code, error: error.into() }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let exit_code = match &error {
            OpenError::Create { reason, .. } | OpenError::Lock(LockError::Io { reason, .. }) => {
                spool::exit_code_of(reason)
            }
            OpenError::Lock(LockError::Held { .. }) => exit_code::CANT_CREATE,
            OpenError::OtherDestination { .. } => exit_code::CONFIG,
            OpenError::Manifest(spool::manifest::ManifestError::Newer { .. }) => exit_code::CONFIG,
            OpenError::Lock(LockError::Unsupported { .. }) | OpenError::Manifest(_) | OpenError::Recovery { .. } => {
                exit_code::IO
            }
        };
        Failure::new(exit_code, error)
    }
}

/// The spool's settings in a configuration.
pub fn spool_settings(config: &Config) -> spool::Settings {
    spool::Settings {
        dir: config.spool_dir.clone(),
        max_bytes: config.spool_max_bytes,
        batch_max_bytes: config.batch_max_bytes,
        batch_max_age: config.batch_max_age,
        codec: config.compression,
        destination: Destination {
            endpoint: config.endpoint_url_s3.clone().unwrap_or_default(),
            bucket: config.bucket_name.clone(),
            region: config.aws_region.clone(),
            path: config.bucket_path.clone(),
        },
        copies: config.cloudwatch.is_some(),
    }
}

/// What is in the files that a configuration names. The tokens of ingest are not here,
/// because their file is read again.
pub struct Files {
    /// Proxy and roots for every call.
    pub network: Network,
    /// Judges presented tokens.
    pub verifier: Verifier,
    /// The ingest listener's certificate and settings.
    pub tls: Option<Tls>,
    /// Signs chain entries.
    pub signing_key: Option<SigningKey>,
}

impl Files {
    /// Reads every file that a start needs.
    ///
    /// # Errors
    /// All that is wrong with them, one line each.
    pub fn read(config: &Config) -> Result<Files, Vec<String>> {
        let mut errors = Vec::new();
        let network = Network::new(&config.network).map_err(|error| errors.push(error.to_string())).ok();
        let verifier = network.as_ref().map(|network| Verifier::new(config, network)).transpose();
        let verifier = verifier.map_err(|error| errors.push(error.to_string())).ok().flatten();
        errors.extend(auth::token_file_problem(config).map(|error| error.to_string()));
        let tls = config.tls.as_ref().map(|files| Tls::new(files).map_err(|_| tls::problems(files))).transpose();
        let tls = tls.map_err(|problems| errors.extend(problems.iter().map(ToString::to_string))).unwrap_or_default();
        let signing_key = config.signing_key_file.as_deref().map(|path| {
            let key = SigningKey::from_pem_file(path);
            key.map_err(|error| config::file_error("ENV0_S3_LOG_SIGNING_KEY_FILE", path, error))
        });
        let signing_key = signing_key.transpose().map_err(|error| errors.push(error)).unwrap_or_default();
        match (network, verifier) {
            (Some(network), Some(verifier)) if errors.is_empty() => Ok(Files { network, verifier, tls, signing_key }),
            _ => Err(errors),
        }
    }
}

/// Starts the flusher. After a crash, batches with pulled events that no place has recorded yet are held
/// back until `settle` has read them.
pub fn start_flusher(
    config: &Config,
    network: &Network,
    spool: &Spool,
    credentials: &Credentials,
    signing_key: Option<SigningKey>,
    sealed: ByType<spool::SealedBatches>,
) -> Result<(Flusher, Settled), Failure> {
    let settled = settle::begin(spool);
    let uploads = flusher::Uploads {
        spool: spool.clone(),
        s3: S3::new(config, network, credentials.clone()),
        credentials: credentials.clone(),
        bucket_path: config.bucket_path.clone(),
        concurrency: config.upload_concurrency,
        signing_key,
        upload_duration: metrics::histogram!(metric_table::UPLOAD_DURATION_SECONDS),
    };
    let flusher = Flusher::start(uploads, sealed).map_err(|error| Failure::new(exit_code::SOFTWARE, error))?;
    Ok((flusher, settled))
}

/// Starts the lanes to CloudWatch Logs, where they are configured. Their sessions come of
/// the same tokens as the bucket's.
pub fn start_cloudwatch(
    config: &Config,
    network: &Network,
    spool: &Spool,
    credentials: &Credentials,
    stop_credentials: CancellationToken,
) -> Result<Option<Lanes>, Failure> {
    let (Some(cloudwatch), Some(copies)) = (&config.cloudwatch, spool.copies()) else { return Ok(None) };
    let role = Role::of_cloudwatch(cloudwatch);
    let credentials = credentials.start_beside(role, config, network, spool.instance(), stop_credentials);
    let copying = lane::Copying {
        spool: spool.clone(),
        copies: copies.clone(),
        logs: Logs::new(cloudwatch, network, credentials.clone(), spool.instance()),
        credentials,
        bucket_path: config.bucket_path.clone(),
    };
    Lanes::start(copying).map(Some).map_err(|error| Failure::new(exit_code::SOFTWARE, error))
}
