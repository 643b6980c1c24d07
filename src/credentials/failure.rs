//! Why there is no session: first who answered, then the cause, then what to do about it.

use std::time::Duration;

use aws_sdk_sts::error::SdkError;
use aws_sdk_sts::operation::RequestId;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::role::{Role, Service};
use super::status::refusal_causes;
use crate::network::{Network, broken_words, cut_off, foreign_name, foreign_words, proxies_named, way_out};
use crate::oidc::{OidcToken, ShownClaims};
use crate::status::{ExchangeTrouble, Timestamp};

/// What to do where somebody else answers in STS's place.
pub(super) fn wrong_endpoint(service: Service) -> String {
    format!(
        "see {} and AWS_ENDPOINT_URL_STS, and whether a proxy or firewall answers in its place",
        service.region_variable()
    )
}

/// An exchange that gave no session.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) told: ExchangeTrouble,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// STS says no to this token or role.
    Refused,
    /// STS can't fetch the keys of the issuer that this token names; another token may fare better.
    IssuerOutOfReach,
    /// The way to STS, its load, or whoever answers in its place.
    OutOfReach,
}

/// What was asked, of whom.
pub(super) struct Question<'a> {
    pub(super) token: &'a OidcToken,
    pub(super) role: &'a Role,
    /// Host and port.
    pub(super) server: &'a str,
    pub(super) duration: Duration,
    pub(super) network: &'a Network,
    /// What to do where another token is needed.
    pub(super) ways_to_a_token: &'a str,
}

impl Failure {
    /// There was no answer of STS's.
    pub(super) fn out_of_reach(message: String, remedy: String) -> Failure {
        let told =
            ExchangeTrouble { refused: false, code: None, request_id: None, message, remedy, since: Timestamp::now() };
        Failure { cause: Cause::OutOfReach, told }
    }

    pub(super) fn of(error: &SdkError<AssumeRoleWithWebIdentityError>, asked: &Question<'_>) -> Failure {
        let (server, secrets) = (asked.server, [asked.token.expose()]);
        let Some(response) = error.raw_response() else {
            let words = broken_words(error, &secrets);
            let remedy = way_out(asked.network.proxies(), &words, "STS");
            return Failure::out_of_reach(format!("{server}: {words}"), remedy);
        };
        if let Some(words) = cut_off(error, &secrets) {
            let remedy = way_out(asked.network.proxies(), &words, "STS");
            return Failure::out_of_reach(format!("{server}: {words}"), remedy);
        }
        let status = response.status().as_u16();
        if status == 407 {
            let remedy =
                "put the proxy's user name and password into HTTPS_PROXY or HTTP_PROXY, or name STS in NO_PROXY";
            let message = format!("the proxy in front of {server} wants credentials (HTTP 407)");
            return Failure::out_of_reach(message, remedy.to_owned());
        }
        // Anything in between can answer; only STS answers with STS's document.
        let body = response.body().bytes().unwrap_or_default();
        let is_stss = memchr::memmem::find(body, b"<ErrorResponse").is_some();
        let service = error.as_service_error().filter(|_| is_stss);
        let code = service.and_then(|error| foreign_name(error.code()?, &secrets));
        let Some((service, code)) = service.zip(code).filter(|(_, code)| !is_no_action(code)) else {
            return Failure::somebody_else(response.headers().get("content-type"), status, asked);
        };
        let words = foreign_words(service.message().unwrap_or("no reason given"), &secrets);
        let cause = cause(status, &code, &words);
        let remedy = match cause {
            Cause::Refused => refusal_remedy(&code, &words, asked),
            Cause::IssuerOutOfReach => issuer_remedy(asked),
            Cause::OutOfReach if code == "RegionDisabledException" => format!(
                "activate STS for this region in the account (IAM, Account settings, Security Token Service), or see {}",
                asked.role.service.region_variable()
            ),
            Cause::OutOfReach => "nothing to do: STS is asked again".to_owned(),
        };
        let request_id = error.request_id().and_then(|id| foreign_name(id, &secrets));
        let (refused, since) = (cause == Cause::Refused, Timestamp::now());
        Failure {
            cause,
            told: ExchangeTrouble { refused, code: Some(code), request_id, message: words, remedy, since },
        }
    }

    fn somebody_else(content_type: Option<&str>, status: u16, asked: &Question<'_>) -> Failure {
        // Without its parameters: text/html; charset=utf-8
        let kind = content_type.and_then(|kind| foreign_name(kind.split(';').next()?, &[]));
        let kind = kind.unwrap_or_else(|| "no content type".to_owned());
        let message = format!("what answers at {} is not STS: HTTP {status}, {kind}", asked.server);
        let mut remedy = wrong_endpoint(asked.role.service);
        if let Some(ways) = proxies_named(asked.network.proxies()) {
            remedy += &format!("; the way to STS leads through a proxy ({ways}), unless NO_PROXY names the host");
        }
        Failure::out_of_reach(message, remedy)
    }

    /// Whether a shorter session may be granted. The words don't always name the duration.
    pub(super) fn may_be_the_duration(&self) -> bool {
        let denied = self.told.code.as_deref() == Some("AccessDenied");
        self.cause == Cause::Refused && (denied || self.told.message.contains("DurationSeconds"))
    }
}

/// Another service of AWS's, or of a store, at this address.
fn is_no_action(code: &str) -> bool {
    matches!(code, "InvalidAction" | "UnknownOperation" | "UnknownOperationException" | "NotImplemented")
}

fn cause(status: u16, code: &str, words: &str) -> Cause {
    match code {
        "IDPCommunicationError" | "IDPCommunicationErrorException" => Cause::IssuerOutOfReach,
        "InvalidIdentityToken" | "InvalidIdentityTokenException" if words.contains("verification key") => {
            Cause::IssuerOutOfReach
        }
        "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "TooManyRequestsException"
        | "RegionDisabledException" => Cause::OutOfReach,
        _ if status == 429 || status >= 500 => Cause::OutOfReach,
        _ => Cause::Refused,
    }
}

/// The remedy for a pod's token that AWS can't take, whatever is set there.
fn of_the_cluster_alone(claims: &ShownClaims) -> Option<String> {
    const CLUSTERS_OWN: &str = "https://kubernetes.default.svc";
    let issuer = claims.issuer.as_deref().unwrap_or_default();
    if issuer.starts_with(CLUSTERS_OWN) {
        return Some(format!(
            "the issuer {issuer} is known inside the cluster alone, so AWS can't fetch its keys: take another way to a token; \
             see config/README.md#the-token"
        ));
    }
    claims.audience.iter().any(|audience| audience.starts_with(CLUSTERS_OWN)).then(|| {
        "this is the pod's token for the cluster itself: mount one with the audience sts.amazonaws.com (podToken.enabled in the \
         chart), and name its file in ENV0_S3_LOG_OIDC_TOKEN_FILE; see config/README.md#the-token"
            .to_owned()
    })
}

fn issuer_remedy(asked: &Question<'_>) -> String {
    let claims = asked.token.claims();
    if let Some(remedy) = of_the_cluster_alone(&claims) {
        return remedy;
    }
    let issuer = claims.issuer.unwrap_or_else(|| "the token's issuer".to_owned());
    format!(
        "if this persists, let AWS fetch the keys of {issuer} from the internet, and see that the token is \
         signed by one of them"
    )
}

/// The cause that code and words name; where they name none, the likely ones in their order.
fn refusal_remedy(code: &str, words: &str, asked: &Question<'_>) -> String {
    let (code, words) = (code.to_lowercase(), words.to_lowercase());
    let claims = asked.token.claims();
    let issuer = claims.issuer.as_deref().unwrap_or("the token's issuer");
    let audience = claims.audience.join(" or ");
    let asked_seconds = asked.duration.as_secs();
    let has = |part: &str| words.contains(part);
    if code.contains("packedpolicytoolarge") {
        "the token has more session tags than STS takes: leave some out of its claims".to_owned()
    } else if has("request arn is invalid") {
        format!("{} is not the ARN of a role: see {}", asked.role.arn, asked.role.service.role_variable())
    } else if code.contains("expiredtoken") {
        format!("the token has ended, or this machine's clock is wrong; {}", asked.ways_to_a_token)
    } else if claims.issuer.is_none() || has("not a valid jwt") {
        format!("what came from the {} is not an OIDC token; {}", asked.token.source.as_str(), asked.ways_to_a_token)
    } else if let Some(remedy) = of_the_cluster_alone(&claims) {
        remedy
    } else if code.contains("nosuch") || has("role") && (has("not exist") || has("not found")) {
        format!("there is no role {}: see {}", asked.role.arn, asked.role.service.role_variable())
    } else if has("provider") && code.contains("invalididentitytoken") {
        format!(
            "the account of the role has no OIDC provider for {issuer}: make one in IAM, with the audience {audience}"
        )
    } else if has("service control policy") || has("resource control policy") {
        "a policy of the organization that the role's account is in denies it: ask who keeps that policy".to_owned()
    } else if has("audience") {
        format!("add the audience {audience} to the OIDC provider {issuer} in IAM, and to the aud of the trust policy")
    } else if has("tagsession") {
        "allow sts:TagSession beside sts:AssumeRoleWithWebIdentity in the role's trust policy: env0's tokens carry tags"
            .to_owned()
    } else if has("durationseconds") || has("maxsessionduration") {
        format!(
            "the role's maximum session is shorter than {}={asked_seconds}: raise it, or lower the variable",
            asked.role.service.duration_variable()
        )
    } else {
        format!("{}; for this token: aud {audience}, provider {issuer}", refusal_causes(asked.role, asked.duration))
    }
}

/// A field of a session goes into headers and signatures: what no header can carry is refused here.
pub(super) fn session_field(name: &str, value: &str, asked: &Question<'_>) -> Result<String, Failure> {
    let fault = match value {
        "" => "is empty",
        value if value.bytes().all(|byte| byte.is_ascii_graphic()) => return Ok(value.to_owned()),
        _ => "holds a space, a line break or another character that no request can carry",
    };
    let message = format!("{} gave a session that can't be used: its {name} {fault}", asked.server);
    Err(Failure::out_of_reach(message, wrong_endpoint(asked.role.service)))
}
