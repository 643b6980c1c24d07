//! What an attempt's failure means: to the flusher, to the metrics and to a person.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use chrono::{DateTime, Utc};

use crate::network::{causes, chain, never_connected};

/// Of S3's words.
const MAX_MESSAGE_CHARS: usize = 500;
/// A `Retry-After` beyond it is no throttling but a mistake, and would look like a standstill.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// Why an attempt failed, and what is known after it.
#[derive(Debug, Clone)]
pub struct PutError {
    /// What to do about it.
    pub kind: PutErrorKind,
    /// Whether the object may be in the bucket nevertheless (contract section 1).
    pub may_have_arrived: bool,
    /// What the answer's `Retry-After` asks for, an hour at most.
    pub retry_after: Option<Duration>,
    /// HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// S3's own code.
    pub code: Option<String>,
    /// For AWS support.
    pub request_id: Option<String>,
    /// What happened, in a sentence.
    pub message: String,
    /// The session that signed the request.
    pub session: Option<u64>,
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PutError {}

/// The closed set of failures; the label of `upload_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PutErrorKind {
    /// Nothing to sign with: no attempt was made.
    NoSession,
    /// 412: an object with this key exists.
    NameTaken,
    /// 409: another request for this key is under way.
    Conflict,
    /// No answer in time.
    Timeout,
    /// DNS, TCP, TLS, proxy, or a connection that broke.
    Unreachable,
    /// The session has expired, or isn't known to S3.
    SessionRejected,
    /// Any other 403.
    Denied,
    /// The KMS key refuses.
    KmsDenied,
    /// There is no such bucket.
    NoSuchBucket,
    /// The bucket is in another region.
    WrongRegion,
    /// Our clock and S3's differ by too much.
    ClockSkew,
    /// Too many requests.
    Throttled,
    /// The body that came in isn't the body that was meant.
    ChecksumRefused,
    /// The file can't be read, or hasn't the length it should have.
    FileUnreadable,
    /// Any other 5xx.
    ServerError,
    /// Anything else.
    Other,
}

impl PutErrorKind {
    /// Every kind.
    pub const ALL: [PutErrorKind; 16] = {
        use PutErrorKind::*;
        [
            NoSession,
            NameTaken,
            Conflict,
            Timeout,
            Unreachable,
            SessionRejected,
            Denied,
            KmsDenied,
            NoSuchBucket,
            WrongRegion,
            ClockSkew,
            Throttled,
            ChecksumRefused,
            FileUnreadable,
            ServerError,
            Other,
        ]
    };

    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            PutErrorKind::NoSession => "no_session",
            PutErrorKind::NameTaken => "name_taken",
            PutErrorKind::Conflict => "conflict",
            PutErrorKind::Timeout => "timeout",
            PutErrorKind::Unreachable => "unreachable",
            PutErrorKind::SessionRejected => "session_rejected",
            PutErrorKind::Denied => "denied",
            PutErrorKind::KmsDenied => "kms_denied",
            PutErrorKind::NoSuchBucket => "no_such_bucket",
            PutErrorKind::WrongRegion => "wrong_region",
            PutErrorKind::ClockSkew => "clock_skew",
            PutErrorKind::Throttled => "throttled",
            PutErrorKind::ChecksumRefused => "checksum_refused",
            PutErrorKind::FileUnreadable => "file_unreadable",
            PutErrorKind::ServerError => "server_error",
            PutErrorKind::Other => "other",
        }
    }

    /// What an operator can do about it, and the README's section on it.
    pub fn remedy(self) -> &'static str {
        match self {
            PutErrorKind::NoSession => "see the credentials in /status, and config/README.md#no-token",
            PutErrorKind::NameTaken | PutErrorKind::Conflict => {
                "nothing: it is solved without help; see config/README.md#not-uploading"
            }
            PutErrorKind::Timeout | PutErrorKind::Unreachable => {
                "nothing if it passes; else look at DNS, firewall, proxy (HTTPS_PROXY, NO_PROXY), private CA \
                 (AWS_CA_BUNDLE); see config/README.md#not-uploading"
            }
            PutErrorKind::SessionRejected => {
                "nothing if it passes: a new session is fetched; else look at the clock; see config/README.md#not-uploading"
            }
            PutErrorKind::Denied => {
                "allow the role s3:PutObject on the bucket's objects (and s3:PutObjectTagging for ENV0_S3_LOG_OBJECT_TAGS); \
                 look for a denial in the bucket's policy, ENV0_S3_LOG_EXPECTED_BUCKET_OWNER, and the bucket's name; \
                 see config/README.md#not-uploading"
            }
            PutErrorKind::KmsDenied => {
                "allow the role kms:GenerateDataKey on the key, and see that the key is enabled; see config/README.md#not-uploading"
            }
            PutErrorKind::NoSuchBucket => {
                "see ENV0_S3_LOG_BUCKET_NAME, or make the bucket; see config/README.md#not-uploading"
            }
            PutErrorKind::WrongRegion => {
                "set ENV0_S3_LOG_AWS_REGION to the bucket's region, run `env0-s3-logs drain` once, and start again; \
                 see config/README.md#not-uploading"
            }
            PutErrorKind::ClockSkew => "set this machine's clock right; see config/README.md#not-uploading",
            PutErrorKind::Throttled | PutErrorKind::ServerError => {
                "nothing: it is tried again; see config/README.md#not-uploading"
            }
            PutErrorKind::ChecksumRefused => {
                "look at the disk and the network: the bytes changed on the way; see config/README.md#quarantined"
            }
            PutErrorKind::FileUnreadable => "look at the spool's disk; see config/README.md#quarantined",
            PutErrorKind::Other => "look at the code and the message; see config/README.md#not-uploading",
        }
    }
}

impl PutError {
    /// A failure before anything was sent.
    pub(super) fn before(kind: PutErrorKind, message: String) -> PutError {
        PutError {
            kind,
            may_have_arrived: false,
            retry_after: None,
            status: None,
            code: None,
            request_id: None,
            message,
            session: None,
        }
    }

    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> PutError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match (error, error.raw_response()) {
            (SdkError::ConstructionFailure(_), _) => PutError::before(PutErrorKind::Other, causes(error)),
            (_, Some(response)) => PutError::answered(error, response),
            _ => PutError::unanswered(error),
        }
    }

    fn unanswered(error: &(dyn std::error::Error + 'static)) -> PutError {
        let body_broke =
            chain(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()).any(hyper::Error::is_user);
        let kind = if body_broke { PutErrorKind::FileUnreadable } else { PutErrorKind::Unreachable };
        PutError { may_have_arrived: !never_connected(error), ..PutError::before(kind, causes(error)) }
    }

    fn answered<E>(error: &SdkError<E, HttpResponse>, response: &HttpResponse) -> PutError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = response.status().as_u16();
        // Anything in between can answer with a status; only S3 answers with S3's document.
        let body = response.body().bytes().unwrap_or_default();
        let is_s3s = memchr::memmem::find(body, b"<Error").is_some();
        let code = error.code().filter(|_| is_s3s).map(str::to_owned);
        let words = error.message().filter(|_| is_s3s).unwrap_or("no reason given");
        let words: String = words.chars().take(MAX_MESSAGE_CHARS).collect();
        let kind = classify(status, code.as_deref(), &words);
        let request_id = error.request_id().map(str::to_owned);
        let header = |name| response.headers().get(name);
        let region = match (kind, header("x-amz-bucket-region")) {
            (PutErrorKind::WrongRegion, Some(region)) => format!("; the bucket is in {region}"),
            _ => String::new(),
        };
        let named = code.as_deref().unwrap_or("an answer that isn't S3's");
        PutError {
            kind,
            may_have_arrived: !(kind == PutErrorKind::NameTaken
                || code.is_some() && (matches!(status, 400..=499) || is_slow_down(status, code.as_deref()))),
            retry_after: header("retry-after").and_then(|value| retry_after(value, Utc::now())),
            status: Some(status),
            message: format!("{named}, HTTP {status}: {words}{region}"),
            code,
            request_id,
            session: None,
        }
    }

    pub(super) fn lacks_the_condition(&self) -> bool {
        self.status == Some(501) || (self.status == Some(400) && self.code.as_deref() == Some("NotImplemented"))
    }
}

fn is_slow_down(status: u16, code: Option<&str>) -> bool {
    status == 503 && code == Some("SlowDown")
}

/// What an answer means; `code` is `None` where it isn't S3's own document.
fn classify(status: u16, code: Option<&str>, message: &str) -> PutErrorKind {
    use PutErrorKind::*;
    match (status, code.unwrap_or_default()) {
        (
            _,
            "ExpiredToken" | "ExpiredTokenException" | "InvalidAccessKeyId" | "InvalidToken" | "InvalidClientTokenId",
        ) => SessionRejected,
        (_, "TokenRefreshRequired" | "UnrecognizedClientException") => SessionRejected,
        (_, "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture") => ClockSkew,
        (_, "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch") => {
            ChecksumRefused
        }
        (_, code) if code.starts_with("KMS.") => KmsDenied,
        (403, _) if message.contains("kms:") => KmsDenied,
        (_, "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException") => WrongRegion,
        (400, "AuthorizationHeaderMalformed") if message.contains("region") => WrongRegion,
        (301 | 307 | 308, _) => WrongRegion,
        (408, _) | (_, "RequestTimeout") => Timeout,
        (429, _) | (503, "SlowDown") | (_, "Throttling" | "ThrottlingException" | "TooManyRequests") => Throttled,
        (_, "SignatureDoesNotMatch") => Other,
        (403, _) => Denied,
        (404, _) => NoSuchBucket,
        (409, _) => Conflict,
        // Some stores send it without a document.
        (412, _) => NameTaken,
        (500.., _) => ServerError,
        _ => Other,
    }
}

/// Seconds or a date; [`RETRY_AFTER_MAX`] at most.
pub(super) fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let seconds = value.trim().parse().map(Duration::from_secs).ok();
    let asked = seconds.or_else(|| (DateTime::parse_from_rfc2822(value.trim()).ok()?.to_utc() - now).to_std().ok());
    asked.map(|asked| asked.min(RETRY_AFTER_MAX))
}
