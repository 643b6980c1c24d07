//! What an attempt's failure means: to the flusher, to the metrics and to a person.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::RequestId;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::answer::{Answer, NotConfirmed, Watched};
use crate::config;
use crate::exit_code::{CONFIG, DENIED, IO, UNAVAILABLE};
use crate::metric_table;
use crate::network::{broken_words, causes, chain, foreign_name, foreign_words, never_connected, retry_after};

/// Why an attempt failed, and what is known after it.
#[derive(Debug, Clone)]
pub struct PutError {
    /// What to do about it.
    pub kind: PutErrorKind,
    /// Whether the object may be in the bucket nevertheless.
    pub may_have_arrived: bool,
    /// What the answer's `Retry-After` asks for, 60 s at most.
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

/// Why the bucket's region isn't known.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct LocateError {
    /// What to do about it.
    pub kind: PutErrorKind,
    /// HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// S3's own code.
    pub code: Option<String>,
    /// For AWS support.
    pub request_id: Option<String>,
    /// What happened, in a sentence.
    pub message: String,
}

impl LocateError {
    /// The region that the request should have been signed for, where S3 names it: `the region 'eu-west-1' is wrong;
    /// expecting 'us-east-1'`.
    pub fn expected_region(&self) -> Option<&str> {
        let (_, rest) = self.message.split_once("expecting '")?;
        rest.split_once('\'').map(|(region, _)| region)
    }

    /// Whether the store refuses the region that the request was signed for. Few stores but AWS name the right one.
    pub fn refuses_the_region(&self) -> bool {
        self.code.as_deref() == Some("AuthorizationHeaderMalformed")
    }
}

impl From<PutError> for LocateError {
    fn from(error: PutError) -> LocateError {
        let PutError { kind, status, code, request_id, message, .. } = error;
        LocateError { kind, status, code, request_id, message }
    }
}

metric_table::label_values! {
    "env0_s3_logs_upload_failures_total", "error":
    /// The closed set of failures.
    pub enum PutErrorKind {
        /// Nothing to sign with: no attempt was made.
        NoSession = "no_session",
        /// 412 from the store: an object with this key exists.
        NameTaken = "name_taken",
        /// 412, and nothing shows whether the store or something in between sent it.
        NameTakenUnproven = "name_taken_unproven",
        /// 409: another request for this key is under way.
        Conflict = "conflict",
        /// No answer in time.
        Timeout = "timeout",
        /// DNS, TCP, TLS, proxy, or a connection that broke.
        Unreachable = "unreachable",
        /// The session has expired, or isn't known to S3.
        SessionRejected = "session_rejected",
        /// The store says AccessDenied.
        Denied = "denied",
        /// The KMS key refuses.
        KmsDenied = "kms_denied",
        /// There is no such bucket, or none can have that name.
        NoSuchBucket = "no_such_bucket",
        /// The bucket is in another region.
        WrongRegion = "wrong_region",
        /// Our clock and S3's differ by too much.
        ClockSkew = "clock_skew",
        /// Too many requests.
        Throttled = "throttled",
        /// The body that came in isn't the body that was meant.
        ChecksumRefused = "checksum_refused",
        /// The file can't be read, or hasn't the length it should have.
        FileUnreadable = "file_unreadable",
        /// Any other 5xx, or S3's redirect while a new bucket's name isn't known everywhere.
        ServerError = "server_error",
        /// A proxy asks for credentials of its own.
        ProxyRefused = "proxy_refused",
        /// What answered is not S3, or doesn't show that it is.
        NotS3 = "not_s3",
        /// Anything else.
        Other = "other",
    }
}

impl PutErrorKind {
    /// The kind that a label names.
    pub fn of_label(label: &str) -> Option<PutErrorKind> {
        PutErrorKind::ALL.into_iter().find(|kind| kind.as_str() == label)
    }

    /// The exit code of a check that finds it.
    pub fn exit_code(self) -> u8 {
        use PutErrorKind::*;
        match self {
            Denied | KmsDenied | SessionRejected | NoSession | ClockSkew => DENIED,
            NoSuchBucket | WrongRegion => CONFIG,
            FileUnreadable => IO,
            Timeout | Unreachable | Throttled | ServerError | Conflict | NameTaken | NameTakenUnproven
            | ChecksumRefused | ProxyRefused | NotS3 | Other => UNAVAILABLE,
        }
    }

    /// What an operator can do about it, and the README's section on it; by S3's code, where that names a setting of ours.
    pub fn remedy(self, code: Option<&str>) -> String {
        match (self, code.map(what_to_do)) {
            (PutErrorKind::Other, Some(way)) if !way.is_empty() => format!("{way}; see config/README.md#not-uploading"),
            _ => self.usual_remedy().to_owned(),
        }
    }

    fn usual_remedy(self) -> &'static str {
        match self {
            PutErrorKind::NoSession => "see the credentials in /status, and config/README.md#no-token",
            PutErrorKind::NameTaken | PutErrorKind::Conflict => {
                "nothing: it is solved without help; see config/README.md#not-uploading"
            }
            PutErrorKind::NameTakenUnproven => {
                "nothing if other objects arrive: after three such answers with an object stored in between it counts as \
                 the store's; else look at what stands between this machine and the store, and whether the object is in \
                 the bucket; see config/README.md#not-uploading"
            }
            PutErrorKind::ProxyRefused => {
                "give the proxy's user and password in HTTPS_PROXY or HTTP_PROXY, or name S3's host in NO_PROXY; \
                 see config/README.md#not-uploading"
            }
            PutErrorKind::NotS3 => {
                "look at what answers in S3's place: a proxy (HTTPS_PROXY, NO_PROXY), a firewall, a login page, or a \
                 server at AWS_ENDPOINT_URL_S3 that is no S3; see config/README.md#not-uploading"
            }
            PutErrorKind::Timeout | PutErrorKind::Unreachable => {
                "if this persists, check DNS, firewall, proxy (HTTPS_PROXY, NO_PROXY), private CA \
                 (AWS_CA_BUNDLE); see config/README.md#not-uploading"
            }
            PutErrorKind::SessionRejected => {
                "a new session is fetched; if this persists, look at the clock; see config/README.md#not-uploading"
            }
            PutErrorKind::Denied => {
                "allow the role s3:PutObject on the bucket's objects (and s3:PutObjectTagging for ENV0_S3_LOG_OBJECT_TAGS); \
                 where S3 names a policy (service control, VPC endpoint, permissions boundary), change that one; look for a denial in the bucket's policy, ENV0_S3_LOG_EXPECTED_BUCKET_OWNER, and the bucket's name; \
                 see config/README.md#not-uploading"
            }
            PutErrorKind::KmsDenied => {
                "allow the role kms:GenerateDataKey on the key, and see that the key is enabled; see config/README.md#not-uploading"
            }
            PutErrorKind::NoSuchBucket => {
                "make the bucket; or, if its name is a mistake, set ENV0_S3_LOG_BUCKET_NAME right, and where events wait already \
                 stop the daemon and send them there (`env0-s3-logs drain --to-configured`); see config/README.md#not-uploading"
            }
            PutErrorKind::WrongRegion => {
                "set ENV0_S3_LOG_AWS_REGION to the bucket's region, run `env0-s3-logs drain` once, and start again; \
                 see config/README.md#not-uploading"
            }
            PutErrorKind::ClockSkew => "set this machine's clock right; see config/README.md#not-uploading",
            PutErrorKind::Throttled => "nothing: it is tried again; see config/README.md#not-uploading",
            PutErrorKind::ServerError => {
                "it is tried again; if this persists, look at the store, and at a proxy on the way to it; \
                 see config/README.md#not-uploading"
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

    /// `call` is the operation, `secrets` what must not be shown though the answer repeats it.
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>, seen: &Watched, call: &Call<'_>) -> PutError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        match (error, &seen.answer) {
            (SdkError::ConstructionFailure(_), _) => {
                PutError::before(PutErrorKind::Other, foreign_words(&causes(error), call.secrets))
            }
            (_, Some(answer)) => PutError::answered(error, answer, &seen.host, call),
            _ => PutError::unanswered(error, &seen.host, call),
        }
    }

    /// A 2xx that doesn't confirm the object.
    pub(super) fn unconfirmed(reason: NotConfirmed, seen: &Watched, call: &Call<'_>) -> PutError {
        let answer = seen.answer.clone().unwrap_or_default();
        let (kind, what) = match reason {
            NotConfirmed::OtherChecksum => (PutErrorKind::ChecksumRefused, "with the checksum of other bytes"),
            NotConfirmed::TooEarly => (PutErrorKind::NotS3, "before all of the object was sent"),
            NotConfirmed::NotTheStore if answer.is_html => (PutErrorKind::NotS3, "with a page of HTML"),
            NotConfirmed::NotTheStore if answer.is_error_document => (PutErrorKind::Other, "with an error document"),
            NotConfirmed::NotTheStore if answer.has_body => (PutErrorKind::NotS3, "with a body, where S3 sends none"),
            NotConfirmed::NotTheStore if answer.is_the_stores() => (PutErrorKind::NotS3, "where S3 says 200"),
            NotConfirmed::NotTheStore => (PutErrorKind::NotS3, "without a mark of S3's"),
        };
        let message = format!(
            "{} at {}: HTTP {} {what}, which confirms no object: it may be stored, and is sent again",
            call.operation, seen.host, answer.status
        );
        PutError {
            may_have_arrived: true,
            retry_after: answer.retry_after.as_deref().and_then(|value| retry_after(value, crate::batch::now())),
            status: Some(answer.status),
            ..PutError::before(kind, message)
        }
    }

    /// Nothing came back in time.
    pub(super) fn no_answer(within: Duration, seen: &Watched, call: &Call<'_>) -> PutError {
        let message = format!("{} at {}: no answer within {} s", call.operation, seen.host, within.as_secs());
        PutError { may_have_arrived: true, ..PutError::before(PutErrorKind::Timeout, message) }
    }

    fn unanswered(error: &(dyn std::error::Error + 'static), host: &str, call: &Call<'_>) -> PutError {
        let is_any = |test: fn(&hyper::Error) -> bool| {
            chain(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()).any(test)
        };
        let kind = match () {
            () if is_any(hyper::Error::is_user) => PutErrorKind::FileUnreadable,
            () if is_any(hyper::Error::is_parse) => PutErrorKind::NotS3,
            () => PutErrorKind::Unreachable,
        };
        let words = broken_words(error, call.secrets);
        let message = format!("{} at {host}: {words}", call.operation);
        PutError { may_have_arrived: !never_connected(error), ..PutError::before(kind, message) }
    }

    fn answered<E>(error: &SdkError<E, HttpResponse>, answer: &Answer, host: &str, call: &Call<'_>) -> PutError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = answer.status;
        let code = error.code().filter(|_| answer.is_error_document);
        let code = code.and_then(|code| foreign_name(code, call.secrets));
        let words = error.message().filter(|_| answer.is_error_document).unwrap_or("no reason given");
        let words = foreign_words(words, call.secrets);
        let kind = classify(answer, code.as_deref(), &words, call);
        let said = match (&code, error) {
            (Some(code), _) => format!("{code}, HTTP {status}: {words}"),
            (None, SdkError::ResponseError(_)) => {
                format!("HTTP {status}, not readable: {}", foreign_words(&causes(error), call.secrets))
            }
            _ if answer.is_html => format!("HTTP {status} with a page of HTML, which is not S3's"),
            _ if answer.is_the_stores() => format!("HTTP {status} without S3's error document"),
            _ => format!("HTTP {status} without a mark of S3's"),
        };
        let region = answer.region.as_deref().and_then(|region| foreign_name(region, call.secrets));
        let more = match (kind, region) {
            (PutErrorKind::WrongRegion, Some(region)) => format!("; the bucket is in {region}"),
            (PutErrorKind::NoSuchBucket, _) => {
                let rule =
                    config::bucket_name(call.bucket).err().map(|expected| format!("; most stores expect {expected}"));
                format!("; ENV0_S3_LOG_BUCKET_NAME is {}{}", call.bucket, rule.unwrap_or_default())
            }
            (PutErrorKind::Other, _) if status == 412 => {
                "; it is about another condition or another object, so it doesn't tell whether this one is there"
                    .to_owned()
            }
            _ if code.as_deref() == Some("TemporaryRedirect") => {
                "; S3 says so of a new bucket, until its name is known everywhere".to_owned()
            }
            _ => match (code.as_deref().map(what_to_do), answer.refused_header.as_deref()) {
                (Some(hint), _) if !hint.is_empty() => format!("; {hint}"),
                (_, Some(header)) => refused(header, call),
                _ => String::new(),
            },
        };
        PutError {
            kind,
            may_have_arrived: !(kind == PutErrorKind::NameTaken
                || code.is_some() && (matches!(status, 400..=499) || is_slow_down(status, code.as_deref()))),
            retry_after: answer.retry_after.as_deref().and_then(|value| retry_after(value, crate::batch::now())),
            status: Some(status),
            message: format!("{} at {host}: {said}{more}", call.operation),
            request_id: error.request_id().and_then(|id| foreign_name(id, call.secrets)),
            code,
            session: None,
        }
    }
}

/// What is said of a request beside its failure, and what must not be said.
pub(super) struct Call<'a> {
    /// S3's name of the operation.
    pub(super) operation: &'static str,
    pub(super) bucket: &'a str,
    /// The object's key; empty where the call is about none.
    pub(super) key: &'a str,
    /// Removed from foreign text, in whole and in part.
    pub(super) secrets: &'a [&'a str],
}

/// What is said of a header or argument that the store refuses. `header` is in lower case.
fn refused(header: &str, call: &Call<'_>) -> String {
    let Some(header) = foreign_name(header, call.secrets) else { return String::new() };
    let variable = match header.as_str() {
        "x-amz-tagging" => "ENV0_S3_LOG_OBJECT_TAGS",
        "x-amz-storage-class" => "ENV0_S3_LOG_STORAGE_CLASS",
        "x-amz-expected-bucket-owner" => "ENV0_S3_LOG_EXPECTED_BUCKET_OWNER",
        name if name.starts_with("x-amz-server-side-encryption") => "ENV0_S3_LOG_SSE_KMS_KEY_ID",
        _ => return format!("; it refuses {header}"),
    };
    format!("; it refuses {header}, which {variable} sets")
}

/// What to do about a code of the store's, where that is a setting of ours or something that passes nowhere else; empty
/// for others.
fn what_to_do(code: &str) -> &'static str {
    match code {
        "InvalidStorageClass" => "set ENV0_S3_LOG_STORAGE_CLASS to a class that the store has",
        "InvalidTag" => "correct the tags in ENV0_S3_LOG_OBJECT_TAGS",
        "KeyTooLongError" => "shorten ENV0_S3_LOG_BUCKET_PATH, which the key begins with",
        "EntityTooLarge" => "lower ENV0_S3_LOG_BATCH_MAX_BYTES to what the store takes in one PUT",
        "SignatureDoesNotMatch" => {
            "look for what changes the request after it was signed (a proxy that rewrites host, path or headers); or the \
             store has another secret for the session's key"
        }
        "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => {
            "make room in the store, or raise the bucket's quota"
        }
        "AccountProblem" | "AllAccessDisabled" | "NotSignedUp" => {
            "ask the owner of the bucket's account, which is closed or blocked"
        }
        _ => "",
    }
}

fn is_slow_down(status: u16, code: Option<&str>) -> bool {
    status == 503 && code == Some("SlowDown")
}

/// What an answer means: first by S3's own code, then by the status where the store sent it, then by what anybody's
/// status tells. `code` is `None` where there is no error document.
fn classify(answer: &Answer, code: Option<&str>, message: &str, call: &Call<'_>) -> PutErrorKind {
    use PutErrorKind::*;
    match (answer.status, code.unwrap_or_default()) {
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
        (_, "PermanentRedirect" | "IllegalLocationConstraintException") => WrongRegion,
        (_, "TemporaryRedirect") => ServerError,
        (400, "AuthorizationHeaderMalformed") if message.contains("region") => WrongRegion,
        (_, "RequestTimeout") => Timeout,
        (503, "SlowDown") | (_, "Throttling" | "ThrottlingException" | "TooManyRequests") => Throttled,
        (403, "AccessDenied") => Denied,
        (_, "NoSuchBucket" | "InvalidBucketName") => NoSuchBucket,
        (status, "") if !answer.is_the_stores() => of_anybody(status, answer.is_html),
        (301 | 307 | 308, _) if answer.region.is_some() => WrongRegion,
        (300..=399, "") => NotS3,
        (404, "") => NoSuchBucket,
        (409, _) => Conflict,
        (412, _) if answer.is_about_something_else(call.key) => Other,
        (412, _) => NameTaken,
        (status, _) => match of_anybody(status, false) {
            NotS3 => Other,
            kind => kind,
        },
    }
}

/// What a status tells, whoever sent it.
fn of_anybody(status: u16, is_html: bool) -> PutErrorKind {
    use PutErrorKind::*;
    match status {
        407 => ProxyRefused,
        408 => Timeout,
        412 if !is_html => NameTakenUnproven,
        429 => Throttled,
        501 if is_html => NotS3,
        500.. => ServerError,
        _ => NotS3,
    }
}
