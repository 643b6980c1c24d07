//! The steps that ask the issuer, STS and S3; or, without a token of their own, the running daemon.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::local::Probe;
use super::report::Step;
use crate::batch::Sha256;
use crate::config::Config;
use crate::credentials::{Credentials, HAND_OVER, Role};
use crate::exit_code::{CONFIG, DENIED, IO, UNAVAILABLE};
use crate::network::{Network, way_out};
use crate::oidc::{OidcToken, ShownClaims, Source};
use crate::s3::{BucketRegion, Put, PutErrorKind, S3};
use crate::spool::disk::OsDisk;
use crate::spool::manifest::Manifest;
use crate::status::{CredentialsStatus, RefusedTokens, Status, Timestamp};

const BODY: &[u8] = b"{\"check\":\"env0-s3-logs\"}\n";
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the exchange at STS, all tokens together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(45);
const DISCOVERY_MAX_BYTES: usize = 1024 * 1024;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A token from further in the future means that a clock is wrong.
const CLOCK_LEEWAY: TimeDelta = TimeDelta::seconds(60);
/// Where a bucket is when AWS answers `GetBucketLocation` with nothing.
const UNTOLD_REGION: &str = "us-east-1";

/// What this process has by itself, without a daemon. Found once: a token's URL may give it only once.
pub(super) struct Own {
    pub(super) network: Network,
    /// The token that ends last.
    pub(super) newest: Option<OidcToken>,
    /// Why another source has none.
    pub(super) problems: Vec<String>,
    /// Whether a running daemon takes one from a deployment's record; `None` where env0's API could not be asked.
    pub(super) pull_brings_one: Option<bool>,
}

pub(super) async fn steps(config: &Config, own: &Own, daemon: Option<&Status>, write: bool) -> Vec<Step> {
    let Own { network, newest, problems, pull_brings_one } = own;
    let mut steps = vec![issuer(config, network).await];
    match (newest, daemon) {
        (Some(token), Some(status)) if has_ended(token) && holds_session(status) => {
            steps.push(Step::warn("token", token_ended(token), "not needed: the running daemon holds a session"));
            steps.extend(of_daemon(status, write));
        }
        (Some(token), _) => {
            let claims = token.claims();
            steps.push(own_token(config, token, &claims));
            steps.extend(with_own_token(config, network, &claims, daemon, write).await);
        }
        (None, Some(status)) => {
            steps.push(daemon_token(status));
            steps.extend(of_daemon(status, write));
        }
        (None, None) if problems.is_empty() && *pull_brings_one != Some(false) => {
            steps.extend(without_daemon(pull_brings_one.is_some()));
        }
        (None, None) => steps.extend(without_token(config, problems)),
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
    match network.fetch(&url, DISCOVERY_MAX_BYTES).await {
        Ok(_) => Step::ok(NAME, format!("{} answers", config.oidc_issuer)),
        Err(error) => {
            let words = error.to_string();
            Step::fail(
                NAME,
                UNAVAILABLE,
                format!("{} can't be asked: {words}", config.oidc_issuer),
                way_out(&config.network, &words, "the issuer"),
            )
        }
    }
}

/// The lines of the trust policy's condition that let this token in.
fn trust_policy_lines(claims: &ShownClaims) -> String {
    let provider = claims.issuer.as_deref().unwrap_or_default();
    let provider = provider.trim_start_matches("https://").trim_start_matches("http://");
    let subject = Value::from(claims.subject.as_deref().unwrap_or_default());
    let audience = match &claims.audience[..] {
        [one] => Value::from(one.as_str()),
        all => Value::from(all),
    };
    format!("\"{provider}:sub\": {subject}, \"{provider}:aud\": {audience}")
}

/// What a token has beside the configured organization.
fn other_organizations(config: &Config, claims: &ShownClaims) -> Option<String> {
    let configured = &config.oidc_organization_ids;
    let other = claims.organizations.iter().any(|id| !configured.contains(id));
    (other && !configured.is_empty()).then(|| {
        format!("its organization is {}, configured is {}", claims.organizations.join(", "), configured.join(", "))
    })
}

fn own_token(config: &Config, token: &OidcToken, claims: &ShownClaims) -> Step {
    const NAME: &str = "token";
    let source = token.source.as_str();
    let now = crate::batch::now();
    let (Some(issuer), Some(_)) = (&claims.issuer, &claims.subject) else {
        let place = match (token.source, &config.oidc_token_file) {
            (Source::File, Some(path)) => format!("ENV0_S3_LOG_OIDC_TOKEN_FILE={path:?}"),
            (Source::Url, _) => "the answer of ENV0_S3_LOG_OIDC_TOKEN_URL".to_owned(),
            _ => "ENV0_OIDC_TOKEN".to_owned(),
        };
        let detail = format!(
            "what {place} holds is not an OIDC token, which begins with eyJ, has two dots in it, and names an issuer and a subject"
        );
        return Step::fail(NAME, DENIED, detail, HAND_OVER);
    };
    let same_issuer = issuer.trim_end_matches('/') == config.oidc_issuer.trim_end_matches('/');
    // A file may hold the token of a pod's service account, whose issuer is the cluster's: STS alone judges it.
    if !same_issuer && token.source != Source::File {
        return Step::fail(
            NAME,
            DENIED,
            format!(
                "the token of the {source} is foreign: its issuer is {issuer}, configured is {}",
                config.oidc_issuer
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
        _ if claims.issued_at.is_some_and(|issued| issued.signed_duration_since(now) > CLOCK_LEEWAY) => Step::warn(
            NAME,
            format!("the token of the {source} was issued in the future, by this machine's clock ({})", Timestamp(now)),
            "set this machine's clock right",
        ),
        end => {
            let end = end.map_or("without an end".to_owned(), |end| format!("until {end}"));
            let detail =
                format!("from the {source}, {end}; it fits a trust policy with {}", trust_policy_lines(claims));
            match other_organizations(config, claims) {
                None => Step::ok(NAME, detail),
                Some(other) => Step::warn(
                    NAME,
                    format!("{detail}; {other}: tokens like it are refused when they are handed over"),
                    "set ENV0_S3_LOG_OIDC_ORGANIZATION_ID to the organization whose deployments are let in",
                ),
            }
        }
    }
}

pub(super) fn has_ended(token: &OidcToken) -> bool {
    token.expires_at.is_some_and(|end| end <= crate::batch::now())
}

fn token_ended(token: &OidcToken) -> String {
    let end = token.expires_at.map(|end| Timestamp(end).to_string());
    format!("the token of the {} ended at {}", token.source.as_str(), end.unwrap_or_default())
}

/// The exchange, the bucket and the write, as the daemon does them.
async fn with_own_token(
    config: &Config,
    network: &Network,
    claims: &ShownClaims,
    daemon: Option<&Status>,
    write: bool,
) -> Vec<Step> {
    let role = Role::of_bucket(config);
    let credentials = with_a_session(&role, config, network).await;
    let mut steps = vec![exchange("sts", &role, claims, &credentials, config)];
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

/// The instance that a daemon on this spool has, or `check`.
pub(super) fn instance(config: &Config) -> String {
    let manifest = Manifest::read(&OsDisk, &config.spool_dir).ok().flatten();
    manifest.map_or("check".to_owned(), |manifest| manifest.instance)
}

/// Credentials that have a session for `role`, or can't have one.
pub(super) async fn with_a_session(role: &Role, config: &Config, network: &Network) -> Credentials {
    let stop = CancellationToken::new();
    let credentials = Credentials::start_for(role.clone(), config, network, &instance(config), stop.clone());
    let deadline = Instant::now() + EXCHANGE_TIMEOUT;
    while credentials.session().is_none() && credentials.status().waits_for.is_none() && Instant::now() < deadline {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    stop.cancel();
    credentials
}

/// How the exchange for `role` went, as the step `name`.
pub(super) fn exchange(
    name: &'static str,
    role: &Role,
    claims: &ShownClaims,
    credentials: &Credentials,
    config: &Config,
) -> Step {
    let status = credentials.status();
    if let Some(session) = credentials.session() {
        let asked = role.duration.as_secs();
        let end = Timestamp(session.expires_at);
        if status.session_duration_seconds < asked {
            return Step::warn(
                name,
                format!("STS gives sessions of {} s alone, not of {asked} s", status.session_duration_seconds),
                format!("raise the role's maximum session duration, or lower {}", role.service.duration_variable()),
            );
        }
        return Step::ok(name, format!("a session of {}, until {end}", role.arn));
    }
    match status.last_error {
        Some(error) if error.refused => {
            let fits = || format!("; this token fits a trust policy with {}", trust_policy_lines(claims));
            let names_itself = claims.issuer.is_some() && claims.subject.is_some();
            let remedy = error.remedy + &names_itself.then(fits).unwrap_or_default();
            Step::fail(name, DENIED, format!("STS refuses the token: {}", error.message), remedy)
                .of_service(error.code, error.request_id)
        }
        Some(error) => Step::fail(name, UNAVAILABLE, format!("no session from STS: {}", error.message), error.remedy)
            .of_service(error.code, error.request_id),
        None => match status.waits_for {
            Some(what) => Step::fail(name, DENIED, format!("no exchange without {what}"), HAND_OVER),
            None => {
                Step::fail(name, UNAVAILABLE, "no answer from STS in time", way_out(&config.network, "timeout", "STS"))
            }
        },
    }
}

async fn bucket(config: &Config, s3: &S3) -> Step {
    const NAME: &str = "bucket";
    match s3.bucket_region().await {
        Ok(BucketRegion::Known(region)) => region_told(&config.bucket_name, &config.aws_region, Some(&region)),
        Ok(BucketRegion::NotTold) => region_told(&config.bucket_name, &config.aws_region, None),
        Err(error) => {
            let expected = error.message.split_once("expecting '").and_then(|(_, rest)| rest.split_once('\''));
            let step = match expected {
                Some((region, _)) => wrong_region(region, error.message.clone()),
                None if error.kind == PutErrorKind::Denied => Step::fail(
                    NAME,
                    DENIED,
                    format!("GetBucketLocation is denied: {}", error.message),
                    error.remedy(&config.bucket_name),
                ),
                None => of_kind(config, NAME, error.kind, &error.message),
            };
            step.of_service(error.code, error.request_id)
        }
    }
}

/// Whether the region that the store told, if it told one, is the `configured` one.
fn region_told(bucket: &str, configured: &str, told: Option<&str>) -> Step {
    const NAME: &str = "bucket";
    match told {
        Some(region) if region == configured => Step::ok(NAME, format!("{bucket} is in {region}")),
        Some(region) => wrong_region(region, format!("{bucket} is in {region}, not in {configured}")),
        None => {
            let detail = format!("{bucket} is there; the store tells no region, by which AWS means {UNTOLD_REGION}");
            match configured {
                UNTOLD_REGION => Step::ok(NAME, detail),
                other => Step::warn(
                    NAME,
                    format!("{detail}, and ENV0_S3_LOG_AWS_REGION is {other}"),
                    format!("nothing where the store is not AWS; else set ENV0_S3_LOG_AWS_REGION={UNTOLD_REGION}"),
                ),
            }
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
        Timeout | Unreachable | Throttled | ServerError | Conflict | NameTaken | NameTakenUnproven
        | ChecksumRefused | ProxyRefused | NotS3 | Other => UNAVAILABLE,
    };
    let remedy = match kind {
        Timeout | Unreachable => way_out(&config.network, message, "S3"),
        _ => kind.remedy().to_owned(),
    };
    Step::fail(name, exit_code, message, remedy)
}

/// The token is the pull's, and only a running daemon pulls. Where env0's API could not be asked, that is what to mend
/// first: a token may not be missing.
fn without_daemon(asked: bool) -> Vec<Step> {
    let skipped = |name| match asked {
        true => Step::skipped(name, "the daemon tells once it runs: the token comes with the pull"),
        false => Step::skipped(name, "there is no token yet"),
    };
    let token = match asked {
        true => Step::ok(
            "token",
            "none is configured, and none is needed: a deployment's record has one, and the pull takes it",
        ),
        false => Step::skipped(
            "token",
            "none is configured; whether the pull brings one can be told once the requests to env0's API succeed",
        ),
    };
    vec![token, skipped("sts"), skipped("bucket"), skipped("write")]
}

/// Nobody to ask with, and nobody to ask.
fn without_token(config: &Config, problems: &[String]) -> Vec<Step> {
    let detail = match problems {
        [] if config.ingest => "none is configured, and no daemon runs that was handed one".to_owned(),
        [] => {
            "none is configured, and nothing listens for one that is handed over; a daemon that pulls takes one from a \
               deployment's record, if env0 has filled that in"
                .to_owned()
        }
        problems => problems.join("; "),
    };
    let remedy = match problems {
        [] => HAND_OVER,
        _ => {
            "mend what this line names: a file must be there, hold a token and let this user read it; a URL must answer with one; see config/README.md#no-token"
        }
    };
    let skipped = |name| Step::skipped(name, "there is no token");
    vec![Step::fail("token", CONFIG, detail, remedy), skipped("sts"), skipped("bucket"), skipped("write")]
}

fn holds_session(status: &Status) -> bool {
    status.credentials.as_ref().is_some_and(|credentials| credentials.session_expires_at.is_some())
}

/// The running daemon's tokens.
fn daemon_token(status: &Status) -> Step {
    const NAME: &str = "token";
    let Some(credentials) = &status.credentials else { return Step::skipped(NAME, "the running daemon is starting") };
    let Some(last_end) = credentials.tokens.iter().map(|token| token.expires_at).max() else {
        return match credentials.refused_tokens.iter().max_by_key(|refused| refused.last) {
            None => Step::fail(NAME, CONFIG, "the running daemon has none", HAND_OVER),
            Some(refused) => {
                let detail = format!("the running daemon has none: {}", refused_words(refused));
                Step::fail(NAME, CONFIG, detail, refused.remedy.clone())
            }
        };
    };
    let end = last_end.map_or("a time that can't be read".to_owned(), |end| end.to_string());
    if last_end.is_none_or(|end| end >= status.now) {
        return Step::ok(NAME, format!("the running daemon has {}; the last ends at {end}", credentials.tokens.len()));
    }
    let detail = format!("the last token of the running daemon ended at {end}");
    match credentials.session_expires_at {
        Some(end) => Step::warn(NAME, format!("{detail}; its session lasts until {end}"), HAND_OVER),
        None => Step::fail(NAME, DENIED, detail, HAND_OVER),
    }
}

/// `it refused 3 tokens, the last at …: its organization is not a configured one (it is 1234…, configured is 0000…)`
fn refused_words(refused: &RefusedTokens) -> String {
    let found = refused.found.as_ref().map(|found| format!("it is {found}"));
    let configured = refused.configured.as_ref().map(|configured| format!("configured is {configured}"));
    let ids: Vec<_> = found.into_iter().chain(configured).collect();
    let ids = if ids.is_empty() { String::new() } else { format!(" ({})", ids.join(", ")) };
    format!("it refused {} tokens, the last at {}: {}{ids}", refused.count, refused.last, refused.message)
}

/// What the running daemon's status tells of STS, bucket and writing.
fn of_daemon(status: &Status, write: bool) -> [Step; 3] {
    let write = match write {
        true => Step::skipped("write", "there is no token of its own to write with"),
        false => last_put(Some(status)),
    };
    [daemon_sts("sts", status.credentials.as_ref()), daemon_bucket(status), write]
}

/// What the bucket told the running daemon.
fn daemon_bucket(status: &Status) -> Step {
    const NAME: &str = "bucket";
    let Some(told) = &status.bucket else {
        return Step::skipped(NAME, "the running daemon has not asked it yet; it does with its first session");
    };
    let step = match &told.error {
        None => region_told(&status.destination.bucket, &status.destination.region, told.region.as_deref()),
        Some(error) => {
            let exit_code = match told.code.as_deref() {
                Some("NoSuchBucket" | "InvalidBucketName" | "AuthorizationHeaderMalformed" | "PermanentRedirect") => {
                    CONFIG
                }
                Some(code) if code.contains("Denied") => DENIED,
                _ => UNAVAILABLE,
            };
            Step::fail(NAME, exit_code, error, told.remedy.clone().unwrap_or_default())
        }
    };
    let detail = format!("the running daemon asked at {}: {}", told.checked_at, step.detail);
    Step { detail, ..step }.of_service(told.code.clone(), None)
}

/// The running daemon's exchange, as the step `name`.
pub(super) fn daemon_sts(name: &'static str, credentials: Option<&CredentialsStatus>) -> Step {
    let Some(credentials) = credentials else { return Step::skipped(name, "the running daemon is starting") };
    let state = &credentials.state;
    if let Some(error) = &credentials.last_error {
        let exit_code = if error.refused { DENIED } else { UNAVAILABLE };
        let detail = format!("the running daemon {state}: {}", error.message);
        return Step::fail(name, exit_code, detail, error.remedy.clone())
            .of_service(error.code.clone(), error.request_id.clone());
    }
    match &credentials.waits_for {
        Some(what) => {
            let remedy = credentials.remedy.clone().unwrap_or_default();
            Step::fail(name, DENIED, format!("the running daemon waits for {what}"), remedy)
        }
        None if credentials.session_expires_at.is_none() => Step::warn(
            name,
            format!("the running daemon {state}: STS has not answered yet"),
            "run check again in a minute; if it is still so, look at the way to STS (DNS, firewall, proxy)",
        ),
        None => Step::ok(name, format!("the running daemon {state}")),
    }
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
