//! What can go wrong with a request to S3.

use std::time::Duration;

use super::*;

/// A fault, for every matching request until [`Store::heal`], or for a number of them. For PUTs
/// unless [`Fault::on`] says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    kind: Kind,
    operation: Operation,
    key_part: String,
    /// How many more requests it hits; none is all of them.
    left: Option<usize>,
}

#[derive(Debug, Clone)]
enum Kind {
    Answer { status: u16, code: String, message: String, headers: Vec<(&'static str, String)> },
    Foreign { status: u16, headers: Vec<(&'static str, String)>, body: String },
    EchoOfSecrets,
    LoseResponse,
    StoreAndFail,
    DropConnection,
    Hang,
    Delay(Duration),
    TakeKey,
    KeepOtherBytes,
}

impl Fault {
    fn new(kind: Kind) -> Fault {
        Fault { kind, operation: Operation::PutObject, key_part: String::new(), left: None }
    }

    /// S3's own error document, after the body was read, without storing.
    pub(crate) fn answer(status: u16, code: &str, message: &str) -> Fault {
        Fault::new(Kind::Answer { status, code: code.into(), message: message.into(), headers: Vec::new() })
    }

    /// A status of the store's without a document, after the body was read, without storing.
    pub(crate) fn bare_answer(status: u16) -> Fault {
        Fault::foreign(status, "").header("x-amz-request-id", "LOCALFAULT")
    }

    /// An answer of something that is no S3, a page of HTML for one, without storing: no mark of the store's.
    pub(crate) fn foreign(status: u16, body: &str) -> Fault {
        Fault::new(Kind::Foreign { status, headers: Vec::new(), body: body.into() })
    }

    /// A login page or a firewall's notice, with the status of success.
    pub(crate) fn block_page() -> Fault {
        Fault::foreign(200, BLOCK_PAGE).header("content-type", "text/html")
    }

    /// A 200 of the store's, about another object.
    pub(crate) fn other_checksum() -> Fault {
        let fault = Fault::foreign(200, "").header("x-amz-request-id", "LOCALFAULT");
        fault.header("x-amz-checksum-sha256", OTHER_CHECKSUM)
    }

    /// An error document with a code of 3 MB.
    pub(crate) fn huge_code() -> Fault {
        Fault::answer(400, &"C".repeat(3_000_000), "far too long")
    }

    /// An error document that repeats the session token and the signature that it was sent.
    pub(crate) fn echo_of_secrets() -> Fault {
        Fault::new(Kind::EchoOfSecrets)
    }

    /// 501 NotImplemented that names the header it is about.
    pub(crate) fn not_implemented_header(name: &str) -> Fault {
        let message = format!("A header you provided implies functionality that is not implemented: {name}");
        Fault::answer(501, "NotImplemented", &message)
    }

    /// 503 SlowDown: known not to have stored anything.
    pub(crate) fn slow_down() -> Fault {
        Fault::answer(503, "SlowDown", "Please reduce your request rate.")
    }

    /// 500 InternalError: may have stored the object, though it did not.
    pub(crate) fn internal_error() -> Fault {
        Fault::answer(500, "InternalError", "We encountered an internal error. Please try again.")
    }

    /// 500 InternalError, and the object is stored nevertheless.
    pub(crate) fn internal_error_after_storing() -> Fault {
        Fault::new(Kind::StoreAndFail)
    }

    /// 403 AccessDenied.
    pub(crate) fn access_denied() -> Fault {
        let message = "User: arn:aws:sts::111122223333:assumed-role/env0-log-writer/env0-s3-logs is not authorized to \
                       perform: s3:PutObject on resource because no identity-based policy allows the s3:PutObject action";
        Fault::answer(403, "AccessDenied", message)
    }

    /// 404 NoSuchBucket.
    pub(crate) fn no_such_bucket() -> Fault {
        Fault::answer(404, "NoSuchBucket", "The specified bucket does not exist")
    }

    /// 301 PermanentRedirect to the bucket's region.
    pub(crate) fn permanent_redirect(region: &str) -> Fault {
        let message = "The bucket you are attempting to access must be addressed using the specified endpoint. \
                       Please send all future requests to this endpoint.";
        Fault::answer(301, "PermanentRedirect", message).header("x-amz-bucket-region", region)
    }

    /// 403 because the daemon's clock is wrong.
    pub(crate) fn request_time_too_skewed() -> Fault {
        let message = "The difference between the request time and the current time is too large.";
        Fault::answer(403, "RequestTimeTooSkewed", message)
    }

    /// 403 for want of the KMS key.
    pub(crate) fn kms_denied() -> Fault {
        let message = "User is not authorized to perform: kms:GenerateDataKey on the resource associated with this \
                       ciphertext because no identity-based policy allows the kms:GenerateDataKey action";
        Fault::answer(403, "AccessDenied", message)
    }

    /// 400 BadDigest: the body differs from its checksum.
    pub(crate) fn bad_digest() -> Fault {
        Fault::answer(400, "BadDigest", "The SHA256 you specified did not match the calculated checksum.")
    }

    /// 409 ConditionalRequestConflict.
    pub(crate) fn conflict() -> Fault {
        let message = "The conditional request cannot succeed due to a conflicting operation against this resource.";
        Fault::answer(409, "ConditionalRequestConflict", message)
    }

    /// 501 NotImplemented, as stores without conditional writes answer.
    pub(crate) fn not_implemented() -> Fault {
        let message = "A header you provided implies functionality that is not implemented";
        Fault::answer(501, "NotImplemented", message)
    }

    /// 400 ExpiredToken.
    pub(crate) fn expired_token() -> Fault {
        Fault::answer(400, "ExpiredToken", "The provided token has expired.")
    }

    /// 403 InvalidAccessKeyId.
    pub(crate) fn invalid_access_key() -> Fault {
        let message = "The AWS Access Key Id you provided does not exist in our records.";
        Fault::answer(403, "InvalidAccessKeyId", message)
    }

    /// Carries the request out, then drops the connection without an answer.
    pub(crate) fn lose_response() -> Fault {
        Fault::new(Kind::LoseResponse)
    }

    /// Reads the body, then drops the connection without carrying anything out.
    pub(crate) fn drop_connection() -> Fault {
        Fault::new(Kind::DropConnection)
    }

    /// Reads the header, then neither the body nor answers.
    pub(crate) fn hang() -> Fault {
        Fault::new(Kind::Hang)
    }

    /// Carries the request out after `delay`.
    pub(crate) fn delay(delay: Duration) -> Fault {
        Fault::new(Kind::Delay(delay))
    }

    /// Another writer stores an object under the key just before: a real 412.
    pub(crate) fn take_key() -> Fault {
        Fault::new(Kind::TakeKey)
    }

    /// Stores other bytes under the key, and answers with their checksum.
    pub(crate) fn keep_other_bytes() -> Fault {
        Fault::new(Kind::KeepOtherBytes)
    }

    /// Ends after `times` requests.
    pub(crate) fn times(self, times: usize) -> Fault {
        Fault { left: Some(times), ..self }
    }

    /// Only for keys that contain `part`.
    pub(crate) fn where_key_has(self, part: &str) -> Fault {
        Fault { key_part: part.into(), ..self }
    }

    /// For `operation` in place of PutObject.
    pub(crate) fn on(self, operation: Operation) -> Fault {
        Fault { operation, ..self }
    }

    /// Adds a header to an answer, for instance `retry-after`.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Fault {
        if let Kind::Answer { headers, .. } | Kind::Foreign { headers, .. } = &mut self.kind {
            headers.push((name, value.into()));
        }
        self
    }

    pub(super) fn matches(&self, operation: Operation, key: &str) -> bool {
        self.operation == operation && key.contains(&self.key_part)
    }

    /// Counts one request; true when that was the last.
    pub(super) fn use_up(&mut self) -> bool {
        self.left = self.left.map(|left| left - 1);
        self.left == Some(0)
    }

    pub(super) async fn happen(
        self,
        store: &Store,
        service: &S3Service,
        request: HttpRequest,
        key: &str,
    ) -> Result<HttpResponse, Drop> {
        match self.kind {
            Kind::Answer { status, code, message, headers } => {
                http::read_body(request).await?;
                let mut response = error_answer(status, &code, &message);
                for (name, value) in headers {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
                Ok(response)
            }
            Kind::Foreign { status, headers, body } => {
                http::read_body(request).await?;
                let mut response = answer(status, "text/plain", body);
                for (name, value) in headers {
                    response.headers_mut().insert(name, value.parse().unwrap());
                }
                response.extensions_mut().insert(NoRequestId);
                Ok(response)
            }
            Kind::EchoOfSecrets => {
                let header = |name: &str| {
                    let value = request.headers().get(name).and_then(|value| value.to_str().ok());
                    value.unwrap_or_default().to_owned()
                };
                let told = format!("got {}, {}", header("x-amz-security-token"), header("authorization"));
                http::read_body(request).await?;
                Ok(error_answer(403, "AccessDenied", &told))
            }
            Kind::LoseResponse => {
                store.serve(service, request).await?;
                Err(Drop)
            }
            Kind::StoreAndFail => {
                store.serve(service, request).await?;
                Ok(error_answer(500, "InternalError", "We encountered an internal error. Please try again."))
            }
            Kind::DropConnection => {
                http::read_body(request).await?;
                Err(Drop)
            }
            Kind::KeepOtherBytes => {
                http::read_body(request).await?;
                store.put(key, "other bytes\n", HashMap::new());
                let mut response = answer(200, "text/plain", String::new());
                response.headers_mut().insert("x-amz-checksum-sha256", OTHER_CHECKSUM.parse().unwrap());
                Ok(response)
            }
            Kind::Hang => std::future::pending().await,
            Kind::Delay(delay) => {
                tokio::time::sleep(delay).await;
                store.serve(service, request).await
            }
            Kind::TakeKey => {
                store.put(key, "another writer's\n", HashMap::new());
                store.serve(service, request).await
            }
        }
    }
}

/// No object's.
const OTHER_CHECKSUM: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Beside an answer that isn't the store's: it gets no request id.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoRequestId;

/// What a proxy with a policy answers, whatever it was asked.
const BLOCK_PAGE: &str =
    "<html><head><title>Blocked</title></head><body>This page was blocked by policy.</body></html>";

fn error_answer(status: u16, code: &str, message: &str) -> HttpResponse {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>{}</Message><RequestId>LOCALFAULT</RequestId><HostId>local</HostId></Error>",
        xml(message),
    );
    answer(status, "application/xml", body)
}
