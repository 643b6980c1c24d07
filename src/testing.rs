//! For unit tests: an HTTP server on loopback that gives exactly the answers that a test scripts and remembers the
//! requests, an OIDC issuer, single answers of STS and S3, and a way to wait for a condition.
//!
//! It is no second stand-in of AWS: it judges nothing and keeps nothing. A room's tests script answers that a real
//! service gives seldom or never. Whatever needs a service that behaves (stores, judges tokens, checks signatures) is
//! in `tests/it`, against `tests/local_aws`.

pub(crate) mod hanging_disk;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::config::{Config, Purpose};

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// In absolute form where we are the proxy.
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// A field of a form body.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let url = reqwest::Url::parse(&format!("http://form/?{}", String::from_utf8_lossy(&self.body))).unwrap();
        url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

/// Ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static) -> Server {
        Server::listen(answer, None).await
    }

    pub(crate) async fn start_tls(
        tls: tokio_rustls::TlsAcceptor,
        answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Server {
        Server::listen(answer, Some(tls)).await
    }

    async fn listen(
        answer: impl Fn(&Seen) -> Response<Bytes> + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, answer, tls) = (Arc::clone(&log), Arc::clone(&answer), tls.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                        let (method, uri) = (parts.method.to_string(), parts.uri.to_string());
                        let request = Seen { method, uri, headers: parts.headers, body };
                        log.lock().unwrap().push(request.clone());
                        Ok::<_, Infallible>(answer(&request).map(Full::new))
                    }
                });
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = match tls {
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        Server { address, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub(crate) fn answer(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// An address that nobody listens at.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Somebody who sends `part` of an answer to each request, and then no more.
pub(crate) async fn breaks_off(part: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
                stream.write_all(part.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    url
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a future; fails after 20 s.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it never came")
}

/// Waits until `condition` holds; fails after 20 s.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never happened: {what}");
        ticks.tick().await;
    }
}

/// A session from STS that ends after `lifetime`.
pub(crate) fn sts_session(access_key_id: &str, lifetime: TimeDelta) -> Response<Bytes> {
    sts_session_until(access_key_id, Utc::now() + lifetime)
}

pub(crate) fn sts_session_until(access_key_id: &str, end: DateTime<Utc>) -> Response<Bytes> {
    let end = end.to_rfc3339_opts(SecondsFormat::Secs, true);
    answer(
        200,
        format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{access_key_id}</AccessKeyId>\
             <SecretAccessKey>canary-secret-key</SecretAccessKey><SessionToken>canary-session</SessionToken>\
             <Expiration>{end}</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
             <ResponseMetadata><RequestId>sts-request</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"
        ),
    )
}

/// An STS that gives a session of an hour to whoever asks, each with another access key: `AKIA1`, `AKIA2`, …
pub(crate) async fn sts_that_gives_sessions() -> Server {
    let given = AtomicUsize::new(0);
    Server::start(move |_| {
        let number = given.fetch_add(1, Ordering::SeqCst) + 1;
        sts_session(&format!("AKIA{number}"), TimeDelta::hours(1))
    })
    .await
}

pub(crate) fn sts_error(status: u16, code: &str, message: &str) -> Response<Bytes> {
    let mut response = answer(
        status,
        format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>{code}</Code><Message>{message}</Message></Error><RequestId>sts-request</RequestId></ErrorResponse>"
        ),
    );
    response.headers_mut().insert("x-amzn-requestid", HeaderValue::from_static("sts-request"));
    response
}

/// S3 confirms an object.
pub(crate) fn s3_ok() -> Response<Bytes> {
    let mut response = answer(200, "");
    response.headers_mut().insert("etag", HeaderValue::from_static("\"d41d8cd98f00b204e9800998ecf8427e\""));
    response.headers_mut().insert("x-amz-request-id", HeaderValue::from_static("s3-request"));
    response
}

pub(crate) fn s3_error(status: u16, code: &str, message: &str) -> Response<Bytes> {
    let body =
        format!("<Error><Code>{code}</Code><Message>{message}</Message><RequestId>s3-request</RequestId></Error>");
    let mut response = answer(status, body);
    response.headers_mut().insert("x-amz-request-id", HeaderValue::from_static("s3-request"));
    response
}

/// Signs tokens as env0 does.
pub(crate) struct Issuer {
    pub(crate) url: String,
    pub(crate) kid: String,
    key: EncodingKey,
    algorithm: Algorithm,
}

impl Issuer {
    pub(crate) fn rs256(url: &str, kid: &str) -> Issuer {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        // jsonwebtoken takes the PKCS#1 key, which PKCS#8 wraps in 26 bytes where it has 2048 bits.
        let key = EncodingKey::from_rsa_der(&der.as_ref()[26..]);
        Issuer { url: url.to_owned(), kid: kid.to_owned(), key, algorithm: Algorithm::RS256 }
    }

    pub(crate) fn es256(url: &str, kid: &str) -> Issuer {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let key = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
        Issuer { url: url.to_owned(), kid: kid.to_owned(), key, algorithm: Algorithm::ES256 }
    }

    /// The same key, elsewhere.
    pub(crate) fn at(self, url: &str) -> Issuer {
        Issuer { url: url.to_owned(), ..self }
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.clone());
        serde_json::to_value(jwk).unwrap()
    }

    /// What an env0 deployment's token says, until `end`.
    pub(crate) fn claims(&self, end: DateTime<Utc>) -> Value {
        json!({
            "iss": self.url, "sub": "auth0|63021f2c0000", "aud": "https://prod.env0.com", "azp": "hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b",
            "iat": (end - TimeDelta::hours(24)).timestamp(), "exp": end.timestamp(),
            "apiKeyType": "oidc", "organizationId": "org-1", "https://env0.com/organizationId": "org-1",
        })
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) };
        self.sign_as(&header, claims)
    }

    pub(crate) fn sign_as(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.key).unwrap()
    }

    /// A good token for an hour.
    pub(crate) fn token(&self) -> String {
        self.sign(&self.claims(Utc::now() + TimeDelta::hours(1)))
    }
}

/// The answers of an issuer without discovery.
pub(crate) fn jwks(keys: &[Value]) -> impl Fn(&Seen) -> Response<Bytes> + use<> {
    let set = json!({ "keys": keys }).to_string();
    move |request| match request.uri.as_str() {
        "/.well-known/jwks.json" => answer(200, set.clone()),
        _ => answer(404, ""),
    }
}

/// A configuration with every endpoint at `url`, or at AWS where that is empty.
pub(crate) fn config(url: &str) -> Config {
    let vars = [
        ("ENV0_S3_LOG_ROLE_ARN", "arn:aws:iam::123456789012:role/env0-logs"),
        ("ENV0_S3_LOG_BUCKET_NAME", "logs"),
        ("ENV0_S3_LOG_AWS_REGION", "eu-west-1"),
        ("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", "51d48700-4aee-5a5d-a8a5-27a5c1471ac6"),
        ("ENV0_S3_LOG_FORCE_PATH_STYLE", "true"),
    ];
    let vars = vars.map(|(name, value)| (name.into(), value.into()));
    let config = Config::from_vars(vars, Purpose::Daemon).unwrap().config;
    let endpoint = (!url.is_empty()).then(|| url.to_owned());
    let oidc_issuer = endpoint.clone().unwrap_or(config.oidc_issuer);
    // The one that the tests' tokens are of.
    let oidc_organization_ids = vec!["org-1".to_owned()];
    Config {
        oidc_issuer,
        oidc_organization_ids,
        endpoint_url_s3: endpoint.clone(),
        endpoint_url_sts: endpoint,
        ..config
    }
}
