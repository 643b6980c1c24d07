//! Outgoing connections: one set of proxies, roots of trust and time-outs for S3, STS, JWKS and token URL alike.

mod answers;
mod foreign;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::{
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use base64::Engine;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};

use crate::background::Background;
use crate::small_file::BOM;
use crate::{config, pem};
pub use answers::{ANSWER_MAX_BYTES, retry_after};
pub use foreign::{FOREIGN_NAME_MAX_CHARS, FOREIGN_WORDS_MAX_CHARS, foreign_name, foreign_words};

/// To DNS answer, TCP and TLS connection, together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the idle time-outs of S3 and of common load balancers, so that a pooled connection is alive.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// For one fetch of a key set, a discovery document or a token, from the first byte sent to the last received.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const FETCH_MAX_REDIRECTS: usize = 5;

/// Makes the outgoing clients. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    proxies: config::Network,
    trust_store: Arc<TrustStore>,
    web: reqwest::Client,
    fetches: Arc<Background>,
}

/// The configuration of proxy or private CA can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The file of `AWS_CA_BUNDLE` or `SSL_CERT_FILE`.
    #[error(
        "{variable}={path:?}: {reason}; expected a file of PEM certificates; example: {variable}=/etc/ssl/private-ca.pem"
    )]
    CaFile {
        /// Which of the two.
        variable: &'static str,
        /// The file as configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The value is not repeated: it may hold a password.
    #[error("{variable}: not a proxy's URL; expected for example http://proxy.example.com:3128")]
    Proxy {
        /// Name of the variable.
        variable: &'static str,
    },
    /// The HTTP client itself refused its settings.
    #[error("the HTTP client can't be built: {0}")]
    Client(String),
}

/// A GET that brought nothing usable. Never names the URL: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer, or none within 5 s.
    #[error("{server}: {reason}")]
    Unreachable {
        /// Host and port.
        server: String,
        /// What failed.
        reason: String,
    },
    /// An answer with another status than 2xx.
    #[error("{server} answers with HTTP status {status}")]
    Status {
        /// Host and port.
        server: String,
        /// The HTTP status of the answer.
        status: u16,
    },
    /// A body beyond the limit.
    #[error("{server} answers with more than {max_bytes} bytes")]
    TooLarge {
        /// Host and port.
        server: String,
        /// The limit.
        max_bytes: usize,
    },
}

impl FetchError {
    /// Whether a later request may bring what this one didn't: nobody could be asked, or the server itself failed.
    pub fn is_unavailable(&self) -> bool {
        match self {
            FetchError::Unreachable { .. } => true,
            FetchError::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            FetchError::TooLarge { .. } => false,
        }
    }
}

impl Network {
    /// Reads the roots of trust: the system's and, beside them, those of `ca_file`. A system without
    /// any is no error here: each https connection then fails and says so.
    pub fn new(config: &config::Network) -> Result<Network, NetworkError> {
        let mut config = config.clone();
        // The clients' matchers take `*` for every name, but for no address.
        if config.no_proxy.iter().any(|entry| entry == "*") {
            (config.https_proxy, config.http_proxy) = (None, None);
        }
        let config = &config;
        let roots = roots(config)?;
        let trust_store = roots.iter().fold(TrustStore::empty(), |store, root| store.with_pem_certificate(pem(root)));
        let mut root_store = RootCertStore::empty();
        root_store.add_parsable_certificates(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| NetworkError::Client(error.to_string()))?
            .with_root_certificates(root_store)
            .with_no_client_auth();
        let mut web = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .timeout(FETCH_TIMEOUT)
            .referer(false)
            .redirect(reqwest::redirect::Policy::custom(stay_on_host))
            .no_proxy();
        let exceptions = reqwest::NoProxy::from_string(&config.no_proxy.join(","));
        if let Some(url) = &config.https_proxy {
            let proxy = reqwest::Proxy::https(url.expose_secret());
            web = web.proxy(
                proxy.map_err(|_| NetworkError::Proxy { variable: "HTTPS_PROXY" })?.no_proxy(exceptions.clone()),
            );
        }
        if let Some(url) = &config.http_proxy {
            let proxy = reqwest::Proxy::http(url.expose_secret());
            web = web.proxy(proxy.map_err(|_| NetworkError::Proxy { variable: "HTTP_PROXY" })?.no_proxy(exceptions));
        }
        let web = web.build().map_err(|error| NetworkError::Client(causes(&error.without_url())))?;
        let fetches = Background::start("fetches").map_err(|error| NetworkError::Client(error.to_string()))?;
        let (proxies, trust_store) = (config.clone(), Arc::new(trust_store));
        let network = Network { proxies, trust_store, web, fetches: Arc::new(fetches) };
        for scheme in ["https", "http"] {
            network.proxy(scheme)?;
        }
        Ok(network)
    }

    /// A client for an AWS service at `endpoint` (`None` is AWS's own, https), with its own pool. An answer's body
    /// ends with an error after 64 KiB.
    pub fn aws(&self, endpoint: Option<&str>) -> SharedHttpClient {
        self.aws_with_answers_of(endpoint, Some(ANSWER_MAX_BYTES))
    }

    /// As [`Network::aws`], but the body of a 2xx ends with an error after `success_max_bytes`, or is passed on as it
    /// comes where that is `None`.
    pub fn aws_with_answers_of(&self, endpoint: Option<&str>, success_max_bytes: Option<usize>) -> SharedHttpClient {
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let proxy = self.proxy(if plain { "http" } else { "https" }).expect("checked in new()");
        // Only where TLS may be spoken: a system's roots take half a megabyte a client.
        let speaks_tls = !plain || self.proxies.http_proxy.is_some();
        let trust_store = if speaks_tls { TrustStore::clone(&self.trust_store) } else { TrustStore::empty() };
        let tls_context = TlsContext::builder().with_trust_store(trust_store).build();
        let connector = aws_smithy_http_client::Connector::builder()
            .connector_settings(HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .proxy_config(proxy)
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls_context.expect("the builder never fails"))
            .build();
        let connector = SharedHttpConnector::new(connector);
        let connector = SharedHttpConnector::new(answers::Bounded { connector, success_max_bytes });
        http_client_fn(move |_settings, _components| connector.clone())
    }

    /// The thread of lower priority for requests of a few seconds.
    pub fn fetches(&self) -> &Background {
        &self.fetches
    }

    /// The client for plain HTTP, with the time-out and the rules for redirects of [`Network::fetch`].
    pub fn web(&self) -> &reqwest::Client {
        &self.web
    }

    /// As configured.
    pub fn proxies(&self) -> &config::Network {
        &self.proxies
    }

    /// GETs a document of at most `max_bytes`; returns it without a byte order mark at its beginning. Redirects are
    /// followed on the same host only.
    pub async fn fetch(&self, url: &str, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
        let unreachable = |error: reqwest::Error| FetchError::Unreachable {
            server: server(url),
            reason: causes(&error.without_url()),
        };
        let request = self.web.get(url);
        let mut response = self.fetches.run(async { request.send().await }).await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(FetchError::Status { server: server(url), status: response.status().as_u16() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len().saturating_add(chunk.len()) > max_bytes {
                return Err(FetchError::TooLarge { server: server(url), max_bytes });
            }
            body.extend_from_slice(&chunk);
        }
        if body.starts_with(BOM) {
            body.drain(..BOM.len());
        }
        Ok(body)
    }

    fn proxy(&self, scheme: &str) -> Result<ProxyConfig, NetworkError> {
        let (variable, url): (_, &Option<SecretString>) = match scheme {
            "http" => ("HTTP_PROXY", &self.proxies.http_proxy),
            _ => ("HTTPS_PROXY", &self.proxies.https_proxy),
        };
        let Some(url) = url else { return Ok(ProxyConfig::disabled()) };
        // As curl does, an address without a scheme is taken for http.
        let url = url.expose_secret();
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let proxy = ProxyConfig::all(url.as_str()).map_err(|_| NetworkError::Proxy { variable })?;
        Ok(proxy.no_proxy(self.proxies.no_proxy.join(",")))
    }
}

const SENT_ON: &str = "redirected too often or to another host";

/// What to do about a service that is out of reach, told from the words of the failure.
pub fn way_out(proxies: &config::Network, words: &str, service: &str) -> String {
    let words = words.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let proxied = proxies.https_proxy.is_some() || proxies.http_proxy.is_some();
    if has(&[SENT_ON]) {
        format!(
            "something answers in place of {service}, and sends on to another host, as a login page or a proxy does: look at \
             the URL that is set, and at HTTPS_PROXY and NO_PROXY"
        )
    } else if has(&["cut off"]) {
        format!(
            "an answer began and broke off: look at the proxies and firewalls on the way to {service}; it is asked again"
        )
    } else if has(&["proxy", "tunnel"]) {
        format!(
            "the proxy does not let {service} be reached: look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and at the proxy"
        )
    } else if has(&["dns", "resolve", "lookup", "name or service"]) && proxied {
        format!(
            "DNS gives no address for the proxy, or for {service} where NO_PROXY names it: look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        )
    } else if has(&["dns", "resolve", "lookup", "name or service"]) {
        format!(
            "DNS gives no address for {service}: look at the resolver, and at the host's name in the URL or region that is set"
        )
    } else if has(&["invalidcontenttype"]) {
        format!(
            "what answers in place of {service} speaks no TLS: look at https:// and the port in the URL that is set, and at proxies on the way"
        )
    } else if has(&["certificate", "tls", "handshake", "unknownissuer"]) {
        format!("TLS to {service} fails: name a private CA in AWS_CA_BUNDLE, and see that the clock is right")
    } else if let Some(named) = proxies_named(proxies) {
        format!(
            "nothing answers: the way to {service} leads through a proxy ({named}), unless NO_PROXY names the host: see that the proxy runs and that this machine reaches it"
        )
    } else {
        format!(
            "nothing answers: let this machine reach {service} through firewall, VPC endpoint or proxy (HTTPS_PROXY, NO_PROXY)"
        )
    }
}

/// The proxies that are set, each with its host and port; `None` without one.
pub fn proxies_named(proxies: &config::Network) -> Option<String> {
    let named = [("HTTPS_PROXY", &proxies.https_proxy), ("HTTP_PROXY", &proxies.http_proxy)];
    let named = named.into_iter().filter_map(|(variable, url)| Some((variable, server(url.as_ref()?.expose_secret()))));
    let named: Vec<_> = named.map(|(variable, server)| format!("{variable} is {server}")).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

/// Host and port of a URL, whose other parts may be secret.
pub fn server(url: &str) -> String {
    let url = reqwest::Url::parse(url).ok();
    let parts = url.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    parts.map_or_else(|| "the server".to_owned(), |(host, port)| format!("{host}:{port}"))
}

fn stay_on_host(attempt: reqwest::redirect::Attempt) -> reqwest::redirect::Action {
    let same = attempt.previous().first().is_some_and(|first| same_host(first, attempt.url()));
    if same && attempt.previous().len() <= FETCH_MAX_REDIRECTS { attempt.follow() } else { attempt.error(SENT_ON) }
}

/// AWS's own endpoint of `service` in a region, for people: the SDK finds it by itself.
pub fn regional_endpoint(service: &str, region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{service}.{region}.{domain}")
}

/// Whether both have the same host and port, and `to` is not less protected than `from`.
pub fn same_host(from: &reqwest::Url, to: &reqwest::Url) -> bool {
    from.host() == to.host()
        && from.port_or_known_default() == to.port_or_known_default()
        && from.scheme() == to.scheme()
}

fn roots(config: &config::Network) -> Result<Vec<CertificateDer<'static>>, NetworkError> {
    // The AWS connector takes a root that doesn't parse for a bug and panics.
    let is_root = |root: &CertificateDer<'static>| RootCertStore::empty().add(root.clone()).is_ok();
    let named = config.ca_file.as_ref().map(|(_, path)| path.as_path());
    let mut roots: Vec<_> = system_roots(named).into_iter().filter(is_root).collect();
    if let Some((variable, path)) = &config.ca_file {
        let unusable = |reason: String| NetworkError::CaFile { variable, path: path.clone(), reason };
        let own: Vec<CertificateDer<'static>> = pem::all(path).map_err(unusable)?;
        let own: Vec<_> = own.into_iter().filter(is_root).collect();
        if own.is_empty() {
            return Err(unusable("holds no certificate that can be trusted".to_owned()));
        }
        roots.extend(own);
    }
    if roots.is_empty() {
        tracing::warn!(
            "no root certificates: https connections will fail; install ca-certificates or set AWS_CA_BUNDLE"
        );
    }
    Ok(roots)
}

/// The system's, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR` in their place. The library would read the file without a
/// bound, and wait for a pipe without an end. The file `but` is left out: it is read beside them.
fn system_roots(but: Option<&Path>) -> Vec<CertificateDer<'static>> {
    let Some(file) = std::env::var_os("SSL_CERT_FILE") else { return rustls_native_certs::load_native_certs().certs };
    let folders = std::env::var_os("SSL_CERT_DIR").unwrap_or_default();
    let folders = std::env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty());
    let of_folder = |folder: PathBuf| rustls_native_certs::load_certs_from_paths(None, Some(&folder)).certs;
    let file = Path::new(&file);
    let of_file = if but == Some(file) { Vec::new() } else { pem::all(file).unwrap_or_default() };
    folders.flat_map(of_folder).chain(of_file).collect()
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines = base64.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.collect::<Vec<_>>().join("\n"))
}

/// The AWS SDK's layers around a failed connection.
const SAYS_NOTHING: [&str; 2] = ["dispatch failure", "io error"];

/// An error and its causes in one line, outermost first.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in chain(error) {
        let text = cause.to_string();
        if !line.contains(&text) && !SAYS_NOTHING.contains(&&*text) {
            line = if line.is_empty() { text } else { format!("{line}: {text}") };
        }
    }
    line
}

/// What a request met that got no answer: in plain words where the HTTP library knows what it was, else in those of the
/// error and its causes, in their shown form.
pub fn broken_words(error: &(dyn Error + 'static), secrets: &[&str]) -> String {
    let is_any = |test: fn(&hyper::Error) -> bool| {
        chain(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()).any(test)
    };
    if is_any(hyper::Error::is_parse) {
        "what answers there does not speak HTTP".to_owned()
    } else if is_any(hyper::Error::is_incomplete_message) {
        "the connection was closed before an answer came".to_owned()
    } else {
        foreign_words(&causes(error), secrets)
    }
}

/// What is wrong with an answer that began and was not wholly read: what it says is not known then.
pub fn cut_off<E>(error: &SdkError<E, HttpResponse>, secrets: &[&str]) -> Option<String>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let response = error.raw_response()?;
    // The SDK puts the bytes there when it has read them all.
    let is_whole = response.body().bytes().is_some();
    let status = response.status().as_u16();
    (!is_whole).then(|| format!("HTTP {status}, but the answer was cut off: {}", broken_words(error, secrets)))
}

/// Whether `error` says that no connection was made: name, TCP, proxy or TLS failed, so no byte of
/// the request can have arrived.
pub fn never_connected(error: &(dyn Error + 'static)) -> bool {
    chain(error)
        .filter_map(|cause| cause.downcast_ref::<hyper_util::client::legacy::Error>())
        .any(hyper_util::client::legacy::Error::is_connect)
}

/// `error` and its causes.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

#[cfg(test)]
mod tests;
