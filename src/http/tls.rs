//! TLS and mTLS on the ingest listener; certificates are read again when their files change.

mod clients;
mod expiry;
mod handshake;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};

use super::watched::Watched;
use crate::config::{self, TlsFiles};
use crate::{metric_table, pem};
use clients::OfFewCertificates;

/// `openssl x509 -req` makes one of version 1 where it is given no extension.
const OLD_VERSION: &str = "it is an X.509 certificate of version 1, which names no host: make one of version 3, for instance \
     by `openssl x509 -req` with `-extfile FILE`, in FILE the line subjectAltName=DNS:HOST";
const ODD_KEY: &str = "it is no key that can be used here, where RSA needs 2,048 bits or more: make one, for instance by \
     `openssl ecparam -name prime256v1 -genkey -noout`, and a certificate for it";

/// The files of certificate, key or client CA can't be used; at start only, later the ones before stay.
#[derive(Debug, thiserror::Error)]
#[error("{}", config::file_error(variable, path, format_args!("{reason}; expected {}", expected(variable))))]
pub struct TlsError {
    variable: &'static str,
    path: PathBuf,
    reason: String,
}

/// The listener's certificate. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

/// What the files hold.
#[derive(Clone)]
struct Made {
    settings: Arc<ServerConfig>,
    /// When the certificate begins and when it ends, where that can be read.
    begins: Option<DateTime<Utc>>,
    ends: Option<DateTime<Utc>>,
}

struct Inner {
    files: TlsFiles,
    made: Watched<Made>,
}

impl Tls {
    /// Reads the files a first time.
    pub fn new(files: &TlsFiles) -> Result<Tls, TlsError> {
        let paths = [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()];
        let paths = paths.into_iter().flatten().cloned().collect();
        // A new certificate beside the old key is such a change too: the next look finds both.
        let made = Watched::new("the TLS certificate", paths, || load(files))?;
        Ok(Tls(Arc::new(Inner { files: files.clone(), made })))
    }

    /// What to accept a connection with now. Connections made before keep theirs.
    fn settings(&self) -> Arc<ServerConfig> {
        self.0.made.current().settings
    }

    /// Looks whether the files changed, and reads them then. Waits for the disk.
    pub fn look(&self) {
        self.0.made.look(|_| self.load_again());
    }

    /// Reads the files now, whether they changed or not. Waits for the disk.
    pub fn reload(&self) {
        self.0.made.reload(|_| self.load_again());
    }

    fn load_again(&self) -> Result<Made, TlsError> {
        load(&self.0.files).inspect(|made| say_if_ended(&self.0.files, made))
    }

    /// Why every client will refuse the certificate that was read last, ended or not begun, for the log and for people.
    pub fn ended(&self) -> Option<String> {
        ended(&self.0.files, &self.0.made.current())
    }
}

const CERT: &str = "ENV0_S3_LOG_TLS_CERT_FILE";
const KEY: &str = "ENV0_S3_LOG_TLS_KEY_FILE";
const CLIENT_CA: &str = "ENV0_S3_LOG_TLS_CLIENT_CA_FILE";

fn expected(variable: &str) -> &'static str {
    match variable {
        KEY => "the certificate's private key (PEM)",
        CLIENT_CA => "the certificates of one or more CAs (PEM)",
        _ => "a certificate (PEM), followed by those that it was issued by, and its own key beside it",
    }
}

/// All that keeps a start from using the files: each for itself, and then together.
pub fn problems(files: &TlsFiles) -> Vec<TlsError> {
    let client_ca = files.client_ca.as_deref().and_then(|path| roots(path).err());
    let apart = [certificates(CERT, &files.cert).err(), private_key(&files.key).err(), client_ca];
    let apart: Vec<_> = apart.into_iter().flatten().collect();
    if apart.is_empty() { load(files).err().into_iter().collect() } else { apart }
}

fn ended(files: &TlsFiles, made: &Made) -> Option<String> {
    let (now, cert) = (crate::batch::now(), files.cert.display());
    if let Some(begins) = made.begins.filter(|begins| *begins > now) {
        return Some(format!(
            "{CERT}={cert}: the certificate begins at {begins}; clients refuse it until then (is this machine's clock right?)"
        ));
    }
    let ends = made.ends.filter(|ends| *ends < now)?;
    Some(format!("{CERT}={cert}: the certificate ended at {ends}; clients refuse it until it is replaced"))
}

fn say_if_ended(files: &TlsFiles, made: &Made) {
    if let Some(ended) = ended(files, made) {
        tracing::error!("{ended}");
    }
}

fn load(files: &TlsFiles) -> Result<Made, TlsError> {
    let chain = certificates(CERT, &files.cert)?;
    let (begins, ends) = (expiry::not_before(&chain[0]), expiry::not_after(&chain[0]));
    let key = private_key(&files.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(CERT, &files.cert, error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider).build();
            let verifier = verifier.map_err(|error| refuse(CLIENT_CA, path, error))?;
            builder.with_client_cert_verifier(Arc::new(OfFewCertificates(verifier)))
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let reason = format!("the key in {KEY}={} is another certificate's", files.key.display());
            refuse(CERT, &files.cert, reason)
        }
        // webpki's error is behind `dyn Error`, and its crate no dependency of this one.
        error if format!("{error:?}").contains("UnsupportedCertVersion") => refuse(CERT, &files.cert, OLD_VERSION),
        error if error.to_string().contains("failed to parse private key") => refuse(KEY, &files.key, ODD_KEY),
        error => refuse(CERT, &files.cert, error),
    })?;
    metrics::gauge!(metric_table::TLS_EXPIRY_TIMESTAMP_SECONDS).set(ends.map_or(0.0, |ends| ends.timestamp() as f64));
    // A client that keeps its ticket needs no signature again, however many others come between; rustls itself remembers the
    // last few hundred sessions. With a client CA it stays at these: such a ticket would hold the client's certificates.
    if files.client_ca.is_none() {
        config.ticketer = Ticketer::new().map_err(|error| refuse(CERT, &files.cert, error))?;
    }
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Made { settings: Arc::new(config), begins, ends })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    pem::first(path).map_err(|reason| refuse(KEY, path, reason))
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(CLIENT_CA, path)? {
        roots.add(certificate).map_err(|error| refuse(CLIENT_CA, path, error))?;
    }
    Ok(roots)
}

fn certificates(variable: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem::all(path).map_err(|reason| refuse(variable, path, reason))
}

fn refuse(variable: &'static str, path: &Path, reason: impl ToString) -> TlsError {
    TlsError { variable, path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
