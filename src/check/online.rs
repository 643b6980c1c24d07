//! The steps that ask the issuer, STS and S3; or, without a token of their own, the running daemon.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::Utc;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Step;
use super::local::Probe;
use crate::batch::Sha256;
use crate::config::Config;
use crate::credentials::{self, Credentials};
use crate::exit_code::{CONFIG, DENIED, IO, UNAVAILABLE};
use crate::network::Network;
use crate::oidc::OidcToken;
use crate::s3::{BucketRegion, Put, PutErrorKind, S3};
use crate::spool::disk::OsDisk;
use crate::spool::manifest::Manifest;
use crate::status::{Status, Timestamp};

const BODY: &[u8] = b"{\"check\":\"env0-s3-logs\"}\n";
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the exchange at STS, all tokens together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A token from further in the future means that a clock is wrong.
const CLOCK_LEEWAY_SECONDS: i64 = 60;
/// Where a bucket is when AWS answers `GetBucketLocation` with nothing.
const UNTOLD_REGION: &str = "us-east-1";
const HAND_OVER: &str = "hand one over from an env0 deployment: PUT /v1/oidc-token with ENV0_OIDC_TOKEN as bearer token; or set \
    ENV0_OIDC_TOKEN, ENV0_S3_LOG_OIDC_TOKEN_FILE or ENV0_S3_LOG_OIDC_TOKEN_URL; see config/README.md#no-token";

pub(super) async fn steps(config: &Config, daemon: Option<&Status>, write: bool) -> Vec<Step> {
    let network = match Network::new(&config.network) {
        Ok(network) => network,
        Err(error) => return vec![Step::fail("network", CONFIG, error.to_string(), "correct the variable")],
    };
    let (tokens, problems) = credentials::own_tokens(config, &network).await;
    let newest = tokens.into_iter().max_by_key(|token| token.expires_at);
    let mut steps = vec![issuer(config, &network).await];
    match (newest, daemon) {
        (Some(token), Some(status)) if has_ended(&token) && holds_session(status) => {
            steps.push(Step::warn("token", token_ended(&token), "not needed: the running daemon holds a session"));
            steps.extend(of_daemon(config, status, write));
        }
        (Some(token), _) => {
            let claims = Claims::of(&token);
            steps.push(own_token(config, &token, &claims));
            steps.extend(with_own_token(config, &network, &claims, daemon, write).await);
        }
        (None, Some(status)) => {
            steps.push(daemon_token(status));
            steps.extend(of_daemon(config, status, write));
        }
        (None, None) => steps.extend(without_token(&problems)),
    }
    steps
}

/// Whether the keys that verify handed-over tokens can be had.
async fn issuer(config: &Config, network: &Network) -> Step {
    const NAME: &str = "issuer";
    if config.oidc_subjects.is_empty() && config.oidc_organization_ids.is_empty() {
        return Step::skipped(NAME, "no sender uses an OIDC token");
    }
    let url = format!("{}/.well-known/openid-configuration", config.oidc_issuer.trim_end_matches('/'));
    match network.fetch(&url).await {
        Ok(_) => Step::ok(NAME, format!("{} answers", config.oidc_issuer)),
        Err(error) => {
            let words = error.to_string();
            Step::fail(
                NAME,
                UNAVAILABLE,
                format!("{} can't be asked: {words}", config.oidc_issuer),
                way_out(config, &words, "the issuer"),
            )
        }
    }
}

/// The claims that a trust policy judges.
#[derive(Default, Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    aud: Option<Value>,
    iat: Option<f64>,
}

impl Claims {
    fn of(token: &OidcToken) -> Claims {
        let payload = token.expose().split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
        payload.and_then(|payload| serde_json::from_slice(&payload).ok()).unwrap_or_default()
    }

    /// The lines of the trust policy's condition that let this token in.
    fn trust_policy_lines(&self) -> String {
        let provider = self.iss.trim_start_matches("https://").trim_start_matches("http://");
        let aud = self.aud.clone().unwrap_or_default();
        format!("\"{provider}:sub\": {}, \"{provider}:aud\": {aud}", Value::from(self.sub.as_str()))
    }

    fn is_readable(&self) -> bool {
        !self.iss.is_empty() && !self.sub.is_empty()
    }
}

fn own_token(config: &Config, token: &OidcToken, claims: &Claims) -> Step {
    const NAME: &str = "token";
    let source = token.source.as_str();
    let now = Utc::now();
    if !claims.is_readable() {
        return Step::fail(NAME, DENIED, format!("what the {source} holds is not an OIDC token"), HAND_OVER);
    }
    let same_issuer = claims.iss.trim_end_matches('/') == config.oidc_issuer.trim_end_matches('/');
    if !same_issuer {
        return Step::fail(
            NAME,
            DENIED,
            format!(
                "the token of the {source} is foreign: its issuer is {}, configured is {}",
                claims.iss, config.oidc_issuer
            ),
            "use a token of env0 (ENV0_OIDC_TOKEN in a deployment), or set ENV0_S3_LOG_OIDC_ISSUER",
        );
    }
    match token.expires_at.map(Timestamp) {
        _ if has_ended(token) => Step::fail(
            NAME,
            DENIED,
            token_ended(token),
            format!("{HAND_OVER}; or set this machine's clock right, which says {}", Timestamp(now)),
        ),
        _ if claims.iat.is_some_and(|issued| issued as i64 > now.timestamp() + CLOCK_LEEWAY_SECONDS) => Step::warn(
            NAME,
            format!("the token of the {source} was issued in the future, by this machine's clock ({})", Timestamp(now)),
            "set this machine's clock right",
        ),
        end => {
            let end = end.map_or("without an end".to_owned(), |end| format!("until {end}"));
            Step::ok(
                NAME,
                format!("from the {source}, {end}; it fits a trust policy with {}", claims.trust_policy_lines()),
            )
        }
    }
}

fn has_ended(token: &OidcToken) -> bool {
    token.expires_at.is_some_and(|end| end <= Utc::now())
}

fn token_ended(token: &OidcToken) -> String {
    let end = token.expires_at.map(|end| Timestamp(end).to_string());
    format!("the token of the {} ended at {}", token.source.as_str(), end.unwrap_or_default())
}

/// The exchange, the bucket and the write, as the daemon does them.
async fn with_own_token(
    config: &Config,
    network: &Network,
    claims: &Claims,
    daemon: Option<&Status>,
    write: bool,
) -> Vec<Step> {
    let manifest = Manifest::read(&OsDisk, &config.spool_dir).ok().flatten();
    let instance = manifest.map_or("check".to_owned(), |manifest| manifest.instance);
    let stop = CancellationToken::new();
    let credentials = Credentials::start(config, network, &instance, stop.clone());
    let deadline = Instant::now() + EXCHANGE_TIMEOUT;
    while credentials.session().is_none() && credentials.status().waits_for.is_none() && Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    stop.cancel();
    let exchange = exchange(config, claims, &credentials);
    let mut steps = vec![exchange];
    if credentials.session().is_some() {
        let s3 = S3::new(config, network, credentials);
        steps.push(bucket(config, &s3).await);
        steps.push(if write { write_object(config, &s3).await } else { last_put(daemon) });
    } else {
        steps.push(Step::skipped("bucket", "there is no session to ask with"));
        steps.push(if write { Step::skipped("write", "there is no session to write with") } else { last_put(daemon) });
    }
    steps
}

fn exchange(config: &Config, claims: &Claims, credentials: &Credentials) -> Step {
    const NAME: &str = "sts";
    let status = credentials.status();
    if let Some(session) = credentials.session() {
        let asked = config.session_duration.as_secs();
        let end = Timestamp(session.expires_at);
        if status.session_duration_seconds < asked {
            return Step::warn(
                NAME,
                format!("STS gives sessions of {} s alone, not of {asked} s", status.session_duration_seconds),
                "raise the role's maximum session duration, or lower ENV0_S3_LOG_SESSION_DURATION",
            );
        }
        return Step::ok(NAME, format!("a session of {}, until {end}", config.role_arn));
    }
    match status.last_error {
        Some(error) if error.refused => {
            let remedy = refusal_remedy(config, claims, error.code.as_deref().unwrap_or_default(), &error.message);
            Step::fail(NAME, DENIED, format!("STS refuses the token: {}", error.message), remedy)
                .of_service(error.code, error.request_id)
        }
        Some(error) => {
            let detail = format!("STS can't be asked: {}", error.message);
            Step::fail(NAME, UNAVAILABLE, detail, way_out(config, &error.message, "STS"))
                .of_service(error.code, error.request_id)
        }
        None => match status.waits_for {
            Some(what) => Step::fail(NAME, DENIED, format!("no exchange without {what}"), HAND_OVER),
            None => Step::fail(NAME, UNAVAILABLE, "no answer from STS in time", way_out(config, "timeout", "STS")),
        },
    }
}

/// The likely causes of a refusal, the likeliest first.
fn refusal_remedy(config: &Config, claims: &Claims, code: &str, message: &str) -> String {
    let (code, words) = (code.to_lowercase(), message.to_lowercase());
    let trust = claims.trust_policy_lines();
    let provider = claims.iss.as_str();
    let aud = claims.aud.clone().unwrap_or_default();
    if code.contains("expiredtoken") {
        format!("the token has ended, or this machine's clock is wrong; {HAND_OVER}")
    } else if words.contains("provider") && code.contains("invalididentitytoken") {
        format!("the account of the role has no OIDC provider for {provider}: make one in IAM, with the audience {aud}")
    } else if words.contains("audience") {
        format!("add the audience {aud} to the OIDC provider {provider} in IAM, and to the trust policy: {trust}")
    } else if words.contains("tagsession") {
        "allow sts:TagSession beside sts:AssumeRoleWithWebIdentity in the role's trust policy: env0's tokens carry tags"
            .to_owned()
    } else if words.contains("durationseconds") || words.contains("maxsessionduration") {
        format!(
            "the role's maximum session is shorter than ENV0_S3_LOG_SESSION_DURATION={}: raise it, or lower the variable",
            config.session_duration.as_secs()
        )
    } else if code.contains("invalididentitytoken") {
        format!(
            "the OIDC provider {provider} does not take the token: see its issuer URL, its audience {aud}, and that its keys can be fetched"
        )
    } else {
        format!(
            "likely causes, in this order: 1. the role's maximum session is shorter than ENV0_S3_LOG_SESSION_DURATION={}; 2. the \
             trust policy of {} does not allow sts:TagSession; 3. its condition is not exactly {trust}; 4. its principal is not \
             the OIDC provider {provider} of the same account",
            config.session_duration.as_secs(),
            config.role_arn,
        )
    }
}

async fn bucket(config: &Config, s3: &S3) -> Step {
    const NAME: &str = "bucket";
    let bucket = &config.bucket_name;
    match s3.bucket_region().await {
        Ok(BucketRegion::Known(region)) if region == config.aws_region => {
            Step::ok(NAME, format!("{bucket} is in {region}"))
        }
        Ok(BucketRegion::Known(region)) => {
            wrong_region(&region, format!("{bucket} is in {region}, not in {}", config.aws_region))
        }
        Ok(BucketRegion::NotTold) => {
            let detail = format!("{bucket} is there; the store tells no region, by which AWS means {UNTOLD_REGION}");
            match config.aws_region.as_str() {
                UNTOLD_REGION => Step::ok(NAME, detail),
                other => Step::warn(
                    NAME,
                    format!("{detail}, and ENV0_S3_LOG_AWS_REGION is {other}"),
                    format!("nothing where the store is not AWS; else set ENV0_S3_LOG_AWS_REGION={UNTOLD_REGION}"),
                ),
            }
        }
        Err(error) => {
            let expected = error.message.split_once("expecting '").and_then(|(_, rest)| rest.split_once('\''));
            let step = match expected {
                Some((region, _)) => wrong_region(region, error.message.clone()),
                None if error.kind == PutErrorKind::Denied => Step::fail(
                    NAME,
                    DENIED,
                    format!("GetBucketLocation is denied: {}", error.message),
                    format!(
                        "allow the role s3:GetBucketLocation on arn:aws:s3:::{bucket}; see that the bucket is yours and its policy denies nothing"
                    ),
                ),
                None => of_kind(config, NAME, error.kind, &error.message),
            };
            step.of_service(error.code, error.request_id)
        }
    }
}

fn wrong_region(region: &str, detail: String) -> Step {
    Step::fail("bucket", CONFIG, detail, format!("set ENV0_S3_LOG_AWS_REGION={region}"))
}

async fn write_object(config: &Config, s3: &S3) -> Step {
    const NAME: &str = "write";
    let prefix = if config.bucket_path.is_empty() { String::new() } else { format!("{}/", config.bucket_path) };
    let key = format!("{prefix}env0-s3-logs-check");
    let probe = Probe::write(&config.spool_dir, BODY).or_else(|_| Probe::write(&std::env::temp_dir(), BODY));
    let probe = match probe {
        Ok(probe) => probe,
        Err(error) => {
            return Step::fail(NAME, IO, format!("no file can be made to send: {error}"), "see the step spool");
        }
    };
    let put = Put {
        key: key.clone(),
        file: probe.path().to_owned(),
        bytes: BODY.len() as u64,
        sha256: Sha256::of(BODY),
        metadata: Vec::new(),
        timeout: WRITE_TIMEOUT,
    };
    match s3.put(&put).await {
        Ok(()) => Step::ok(NAME, format!("wrote {key}")),
        Err(error) if error.kind == PutErrorKind::NameTaken => {
            Step::ok(NAME, format!("{key} is there already, from an earlier check"))
        }
        Err(error) => of_kind(config, NAME, error.kind, &error.message).of_service(error.code, error.request_id),
    }
}

/// A failure at S3.
fn of_kind(config: &Config, name: &'static str, kind: PutErrorKind, message: &str) -> Step {
    use PutErrorKind::*;
    let exit_code = match kind {
        Denied | KmsDenied | SessionRejected | NoSession | ClockSkew => DENIED,
        NoSuchBucket | WrongRegion => CONFIG,
        FileUnreadable => IO,
        Timeout | Unreachable | Throttled | ServerError | Conflict | NameTaken | ChecksumRefused | Other => UNAVAILABLE,
    };
    let remedy = match kind {
        Timeout | Unreachable => way_out(config, message, "S3"),
        _ => kind.remedy().to_owned(),
    };
    Step::fail(name, exit_code, message, remedy)
}

/// Why a service is out of reach, told from the words of the failure.
fn way_out(config: &Config, words: &str, service: &str) -> String {
    let words = words.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let proxied = config.network.https_proxy.is_some() || config.network.http_proxy.is_some();
    if has(&["proxy", "tunnel"]) {
        format!(
            "the proxy does not let {service} be reached: look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and at the proxy"
        )
    } else if has(&["dns", "resolve", "lookup", "name or service"]) && proxied {
        format!(
            "DNS gives no address for the proxy, or for {service} where NO_PROXY names it: look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
        )
    } else if has(&["dns", "resolve", "lookup", "name or service"]) {
        format!(
            "DNS gives no address for {service}: look at the resolver, and at ENV0_S3_LOG_AWS_REGION and the URLs that are set"
        )
    } else if has(&["certificate", "tls", "handshake", "unknownissuer"]) {
        format!("TLS to {service} fails: name a private CA in AWS_CA_BUNDLE, and see that the clock is right")
    } else {
        format!(
            "nothing answers: let this machine reach {service} through firewall, VPC endpoint or proxy (HTTPS_PROXY, NO_PROXY)"
        )
    }
}

/// Nobody to ask with, and nobody to ask.
fn without_token(problems: &[String]) -> Vec<Step> {
    let detail = if problems.is_empty() {
        "none is configured, and no daemon runs that was handed one".to_owned()
    } else {
        problems.join("; ")
    };
    let skipped = |name| Step::skipped(name, "there is no token");
    vec![Step::fail("token", CONFIG, detail, HAND_OVER), skipped("sts"), skipped("bucket"), skipped("write")]
}

fn holds_session(status: &Status) -> bool {
    status.credentials["session_expires_at"].is_string()
}

/// The running daemon's tokens.
fn daemon_token(status: &Status) -> Step {
    const NAME: &str = "token";
    let tokens = status.credentials["tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    let last_end = tokens.iter().filter_map(|token| token["expires_at"].as_str()).max().unwrap_or_default();
    if tokens.is_empty() {
        return Step::fail(NAME, CONFIG, "the running daemon has none", HAND_OVER);
    }
    if last_end >= status.now.to_string().as_str() {
        return Step::ok(NAME, format!("the running daemon has {}; the last ends at {last_end}", tokens.len()));
    }
    let detail = format!("the last token of the running daemon ended at {last_end}");
    match status.credentials["session_expires_at"].as_str() {
        Some(end) => Step::warn(NAME, format!("{detail}; its session lasts until {end}"), HAND_OVER),
        None => Step::fail(NAME, DENIED, detail, HAND_OVER),
    }
}

/// What the running daemon's status tells of STS, bucket and writing.
fn of_daemon(config: &Config, status: &Status, write: bool) -> [Step; 3] {
    let credentials = &status.credentials;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let state = text(&credentials["state"]).unwrap_or_default();
    let error = &credentials["last_error"];
    let sts = if error.is_object() {
        let message = text(&error["message"]).unwrap_or_default();
        let refused = error["refused"] == true;
        let remedy = text(&credentials["remedy"]).unwrap_or_else(|| way_out(config, &message, "STS"));
        let exit_code = if refused { DENIED } else { UNAVAILABLE };
        Step::fail("sts", exit_code, format!("the running daemon {state}: {message}"), remedy)
            .of_service(text(&error["code"]), text(&error["request_id"]))
    } else if let Some(what) = credentials["waits_for"].as_str() {
        Step::fail(
            "sts",
            DENIED,
            format!("the running daemon waits for {what}"),
            text(&credentials["remedy"]).unwrap_or_default(),
        )
    } else {
        Step::ok("sts", format!("the running daemon {state}"))
    };
    let bucket =
        Step::skipped("bucket", "there is no token of its own to ask with; the step write tells what the daemon met");
    let write = match write {
        true => Step::skipped("write", "there is no token of its own to write with"),
        false => last_put(Some(status)),
    };
    [sts, bucket, write]
}

/// How the running daemon's last PUTs went.
fn last_put(daemon: Option<&Status>) -> Step {
    const NAME: &str = "write";
    let Some(status) = daemon else { return Step::skipped(NAME, "not tried; --write writes one tiny object") };
    let failing = status.types.iter().find_map(|of| Some((of.log_type, of.delivery.error.as_ref()?)));
    if let Some((log_type, error)) = failing {
        let detail = format!("the running daemon can't write {log_type} since {}: {}", error.since, error.message);
        let denied = error.code.as_deref().is_some_and(|code| code.contains("Denied"));
        let exit_code = if denied { DENIED } else { UNAVAILABLE };
        let remedy = error.remedy.clone().unwrap_or_else(|| "see the page of the admin listener".to_owned());
        return Step::fail(NAME, exit_code, detail, remedy).of_service(error.code.clone(), error.request_id.clone());
    }
    let objects = status.types.iter().flat_map(|of| &of.delivery.last_objects);
    match objects.max_by_key(|object| object.uploaded_at) {
        Some(object) => Step::ok(NAME, format!("the running daemon wrote {} at {}", object.key, object.uploaded_at)),
        None => Step::skipped(NAME, "the running daemon has written nothing yet; --write writes one tiny object"),
    }
}
