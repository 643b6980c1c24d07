//! List, Head and Get for `verify`, with an auditor's own credentials from the standard AWS chain.

use std::collections::HashMap;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::ResponseChecksumValidation;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, EncodingType, ObjectStorageClass};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use base64::Engine;
use chrono::{DateTime, Utc};
use percent_encoding::percent_decode_str;

use crate::batch::Sha256;
use crate::config::{self, Config};
use crate::network::{Network, causes, chain, foreign_name, foreign_words, server, way_out};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The remedy where S3 answered and the answer can't be used.
const AGAIN: &str = "run verify again; with --resume it goes on from where it was";
/// The operation that asks for a page.
const LIST: &str = "ListObjectsV2";
/// The most bytes of one page: 1,000 keys of 1,024 bytes, each byte as three characters, and the XML around them.
const LISTING_MAX_BYTES: usize = 4 * 1024 * 1024;
/// The longest key that S3 takes.
const KEY_MAX_BYTES: usize = 1024;
/// S3's own have some 100 bytes.
const TOKEN_MAX_BYTES: usize = 8 * 1024;

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such object (any more).
    #[error("the object is gone")]
    Gone,
    /// The object is archived and not restored: only a Head can judge it.
    #[error("the object is archived")]
    Archived,
    /// S3 gave the object, with headers that are no text.
    #[error("{0}")]
    Unreadable(String),
    /// There are no credentials to sign with; only a person can mend that.
    #[error(
        "no AWS credentials were found{cause}; verify takes an auditor's own, from AWS_PROFILE (a profile that \
         ~/.aws/config or ~/.aws/credentials has by that name), or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the \
         machine's role"
    )]
    NoCredentials {
        /// Why the standard chain found none, after a colon; empty where nothing is set at all.
        cause: String,
    },
    /// S3 refused; only a person can mend it.
    #[error("{asked} was refused with {code}: {message}; {remedy}")]
    Denied {
        /// What was asked, of which bucket, at which host.
        asked: String,
        /// AWS error code.
        code: String,
        /// S3's own words.
        message: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No answer, or not a usable one.
    #[error("{asked} failed: {cause}; {remedy}")]
    Failed {
        /// What was asked, of which bucket, at which host.
        asked: String,
        /// The whole chain of causes.
        cause: String,
        /// What to do.
        remedy: String,
    },
}

/// An object as a List shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Whole key.
    pub key: String,
    /// Length, in bytes.
    pub size: u64,
    /// As S3 writes it, with its quotes.
    pub e_tag: String,
    /// When it was written, by S3's clock.
    pub last_modified: DateTime<Utc>,
    /// In a class that needs a restore before a Get.
    pub archived: bool,
}

/// One page of a listing, in the order of keys.
#[derive(Debug)]
pub struct Page {
    /// At most 1,000.
    pub objects: Vec<Listed>,
    /// Asks for the next page; none at the end.
    pub next: Option<String>,
}

/// What a Head tells.
#[derive(Debug)]
pub struct HeadInfo {
    /// User metadata, names in lower case without `x-amz-meta-`.
    pub metadata: HashMap<String, String>,
    /// The SHA-256 that S3 checked when the object was written, where it keeps one of the whole object.
    pub sha256: Option<Sha256>,
    /// Needs a restore before a Get.
    pub archived: bool,
}

/// Reads one bucket. Clones share connections.
#[derive(Debug, Clone)]
pub struct Reader {
    client: Client,
    /// For objects, which may be as long as they are: their bodies are not gathered in memory.
    objects: SharedHttpClient,
    bucket: String,
    /// Host and port.
    host: String,
    proxies: config::Network,
}

impl Reader {
    /// Sets up a client; asks the standard chain for credentials, and S3 for nothing.
    pub async fn connect(config: &Config, network: &Network) -> Reader {
        let loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(config.aws_region.clone()))
            .http_client(network.aws_with_answers_of(config.endpoint_url_s3.as_deref(), Some(LISTING_MAX_BYTES)));
        // The time until the answer begins. The SDK itself ends a body that stalls.
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ANSWER_TIMEOUT).build();
        let mut builder = aws_sdk_s3::config::Builder::from(&loader.load().await)
            .timeout_config(timeouts)
            .force_path_style(config.force_path_style)
            // Bodies are hashed by the caller, against the chain's own hash.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if let Some(url) = &config.endpoint_url_s3 {
            builder = builder.endpoint_url(url);
        }
        Reader {
            client: Client::from_conf(builder.build()),
            objects: network.aws_with_answers_of(config.endpoint_url_s3.as_deref(), None),
            bucket: config.bucket_name.clone(),
            host: config.endpoint_url_s3.as_deref().map_or_else(|| format!("S3 in {}", config.aws_region), server),
            proxies: network.proxies().clone(),
        }
    }

    /// One page of the keys under `prefix` that come after `start_after`.
    pub async fn list(&self, prefix: &str, start_after: &str, next: Option<String>) -> Result<Page, ReadError> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        // Without this encoding a key with a control character makes the answer unreadable XML.
        let request = request.encoding_type(EncodingType::Url).set_continuation_token(next);
        let request = if start_after.is_empty() { request } else { request.start_after(start_after) };
        let output = request.send().await.map_err(|error| self.refusal(LIST, error))?;
        let next = output.next_continuation_token.filter(|token| !token.is_empty());
        if output.is_truncated == Some(true) && next.is_none() {
            return Err(self.no_listing("a page is said not to be the last, and doesn't tell how to ask for the next"));
        }
        // What a store says goes into the next request's URL. The SDK panics where it is too long for one.
        if let Some(token) = next.as_ref().filter(|token| token.len() > TOKEN_MAX_BYTES) {
            return Err(self.too_long("token", token.len(), TOKEN_MAX_BYTES));
        }
        let encoded = output.encoding_type == Some(EncodingType::Url);
        let objects = output.contents.unwrap_or_default().into_iter().filter_map(|object| {
            let key = object.key?;
            Some(Listed {
                key: if encoded { percent_decode(&key) } else { key },
                size: object.size.and_then(|size| size.try_into().ok()).unwrap_or(0),
                e_tag: object.e_tag.unwrap_or_default(),
                last_modified: object.last_modified.and_then(|time| to_chrono(&time)).unwrap_or_default(),
                archived: matches!(
                    object.storage_class,
                    Some(ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive)
                ),
            })
        });
        let objects: Vec<Listed> = objects.collect();
        match objects.iter().find(|listed| listed.key.len() > KEY_MAX_BYTES) {
            Some(listed) => Err(self.too_long("key", listed.key.len(), KEY_MAX_BYTES)),
            None => Ok(Page { objects, next }),
        }
    }

    fn too_long(&self, what: &str, bytes: usize, max_bytes: usize) -> ReadError {
        self.no_listing(&format!("a page has a {what} of {bytes} bytes, and S3's have at most {max_bytes}"))
    }

    /// The error for a listing that can't be used; `cause` tells why.
    pub fn no_listing(&self, cause: &str) -> ReadError {
        let remedy = format!("look at what answers in S3's place, and {AGAIN}");
        ReadError::Failed { asked: self.asked(LIST), cause: cause.to_owned(), remedy }
    }

    /// An object's metadata and stored checksum.
    pub async fn head(&self, key: &str) -> Result<HeadInfo, ReadError> {
        let request = self.client.head_object().bucket(&self.bucket).key(key).checksum_mode(ChecksumMode::Enabled);
        let output = request.send().await.map_err(|error| self.refusal("HeadObject", error))?;
        let class = output.storage_class.as_ref().map(|class| class.as_str());
        let asleep = matches!(class, Some("GLACIER" | "DEEP_ARCHIVE")) || output.archive_status.is_some();
        let restored = output.restore.as_deref().is_some_and(|restore| restore.contains("ongoing-request=\"false\""));
        Ok(HeadInfo {
            sha256: output.checksum_sha256.as_deref().and_then(from_base64),
            metadata: output.metadata.unwrap_or_default(),
            archived: asleep && !restored,
        })
    }

    /// An object's metadata and body.
    pub async fn get(&self, key: &str) -> Result<(HashMap<String, String>, Body), ReadError> {
        let request = self.client.get_object().bucket(&self.bucket).key(key).customize();
        let over_objects = aws_sdk_s3::config::Builder::new().http_client(self.objects.clone());
        let output =
            request.config_override(over_objects).send().await.map_err(|error| self.refusal("GetObject", error))?;
        let asked = self.asked("GetObject");
        Ok((output.metadata.unwrap_or_default(), Body { bytes: output.body, asked }))
    }

    fn asked(&self, operation: &str) -> String {
        format!("{operation} of the bucket {} at {}", self.bucket, self.host)
    }

    fn refusal<E>(&self, operation: &'static str, error: SdkError<E, HttpResponse>) -> ReadError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        if let Some(cause) = chain(&error).find_map(|cause| cause.downcast_ref::<CredentialsError>()) {
            // The SDK then lists each place that it has looked at.
            let nothing_is_set = matches!(cause, CredentialsError::CredentialsNotLoaded(_));
            let cause = if nothing_is_set { String::new() } else { format!(": {}", shown(cause)) };
            return ReadError::NoCredentials { cause };
        }
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().and_then(|code| foreign_name(code, &[])).unwrap_or_default();
        let region = error.raw_response().and_then(|response| response.headers().get("x-amz-bucket-region"));
        let region = region.and_then(|region| foreign_name(region, &[]));
        let region = region.map(|region| format!("; the bucket is in {region}")).unwrap_or_default();
        let asked = self.asked(operation);
        match (status, code.as_str()) {
            (_, "NoSuchKey" | "NotFound") | (Some(404), "") if operation != LIST => ReadError::Gone,
            (_, "InvalidObjectState") => ReadError::Archived,
            (Some(200..=299), _) if operation != LIST => ReadError::Unreadable(shown(&error)),
            (Some(200..=299), _) => self.no_listing(&format!("what came is no listing ({})", shown(&error))),
            (Some(301 | 400 | 401 | 403 | 404), _) => ReadError::Denied {
                asked,
                message: format!("{}{region}", foreign_words(error.message().unwrap_or("no reason given"), &[])),
                remedy: remedy(operation, &code),
                code: if code.is_empty() { format!("status {}", status.unwrap_or_default()) } else { code },
            },
            (Some(status), "") => {
                let cause = format!("HTTP {status} without S3's error document");
                ReadError::Failed { asked, cause, remedy: format!("{}, and {AGAIN}", remedy(operation, "")) }
            }
            (Some(_), _) => ReadError::Failed { asked, cause: shown(&error), remedy: AGAIN.to_owned() },
            (None, _) => {
                let cause = shown(&error);
                let remedy = way_out(&self.proxies, &cause, "S3");
                ReadError::Failed { asked, cause, remedy }
            }
        }
    }
}

/// A body on its way.
#[derive(Debug)]
pub struct Body {
    bytes: ByteStream,
    asked: String,
}

impl Body {
    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, ReadError> {
        let failed =
            |error| ReadError::Failed { asked: self.asked.clone(), cause: shown(&error), remedy: AGAIN.to_owned() };
        self.bytes.try_next().await.map_err(failed)
    }
}

/// What to do about a refusal.
fn remedy(operation: &str, code: &str) -> &'static str {
    match (code, operation) {
        ("NoSuchBucket", _) => "look at ENV0_S3_LOG_BUCKET_NAME, and at the account that the credentials are of",
        ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) => {
            "set ENV0_S3_LOG_AWS_REGION to the bucket's region"
        }
        ("RequestTimeTooSkewed", _) => "set this machine's clock right",
        ("ExpiredToken" | "InvalidToken" | "InvalidAccessKeyId" | "SignatureDoesNotMatch", _) => {
            "renew the auditor's AWS credentials"
        }
        ("AccessDenied", LIST) => "grant s3:ListBucket on the bucket",
        ("AccessDenied", _) => "grant s3:GetObject on the bucket's objects and, for encrypted ones, kms:Decrypt",
        ("" | "NotFound", _) => {
            "look at what answers: a proxy (HTTPS_PROXY, NO_PROXY), or an AWS_ENDPOINT_URL_S3 that is no S3"
        }
        _ => "look at the code and the message",
    }
}

/// An error and its causes, in one line.
fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    foreign_words(&causes(error), &[])
}

fn to_chrono(time: &aws_smithy_types::DateTime) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.secs(), time.subsec_nanos())
}

/// A checksum of the whole object; one of a multipart upload's parts (`…-3`) is none.
fn from_base64(text: &str) -> Option<Sha256> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    bytes.try_into().ok().map(Sha256)
}

/// S3's encoding of keys in a listing: percent signs, and `+` for a space.
fn percent_decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_a_listing_are_decoded() {
        assert_eq!(percent_decode("a/b%3A04%3a05_x.log"), "a/b:04:05_x.log");
        assert_eq!(percent_decode("a+b%2Bc%01%C3%A9"), "a b+c\u{1}é");
        assert_eq!(percent_decode("100%"), "100%");
    }

    #[test]
    fn a_checksum_of_parts_is_none_of_the_object() {
        assert_eq!(from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), Some(Sha256::ZERO));
        assert_eq!(from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=-3"), None);
    }
}
