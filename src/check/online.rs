//! The steps that ask the issuer, STS and S3 with a token; without one, what there is to say.

use std::time::Duration;

use chrono::TimeDelta;
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::beside::{
    a_deployment_may_bring_one, daemon_token, holds_session, last_put, of_daemon, region_told, wrong_region,
};
use super::local::{Probe, batches_in};
use super::report::{BUCKET, Step, TOKEN};
use crate::batch::{LogType, Sha256};
use crate::config::Config;
use crate::credentials::{
    Credentials, Role, SourceProblem, own_tokens, token_file_problem, ways_to_a_token, without_a_token,
};
use crate::exit_code::{CONFIG, DENIED, IO, UNAVAILABLE};
use crate::network::{FetchError, Network, way_out};
use crate::oidc::{OidcToken, ShownClaims, Source, ask_issuer};
use crate::s3::{BucketRegion, LocateError, Put, PutErrorKind, S3};
use crate::spool::disk::OsDisk;
use crate::spool::manifest::Manifest;
use crate::status::{Status, Timestamp};

const BODY: &[u8] = b"{\"check\":\"env0-s3-logs\"}\n";
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the exchange at STS, all tokens together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(45);
const DISCOVERY_MAX_BYTES: usize = 1024 * 1024;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A token from further in the future means that a clock is wrong.
const CLOCK_LEEWAY: TimeDelta = TimeDelta::seconds(60);

/// What this process has by itself, without a daemon. Found once: a token's URL may give it only once.
pub(super) struct Own {
    pub(super) network: Network,
    /// The token of the configuration's own sources that ends last.
    pub(super) newest: Option<OidcToken>,
    /// Why another source has none, but for the token's file: that is told by the step `files`.
    pub(super) problems: Vec<SourceProblem>,
    /// Whether the token's file can't be used.
    pub(super) file_fails: bool,
    /// The token that the pull would take from a deployment's record, or the step that says why it wouldn't.
    pub(super) of_record: Option<Result<OidcToken, Step>>,
    /// Whether env0's API could not be asked for records.
    pub(super) pull_fails: bool,
}

impl Own {
    /// Asks the configuration's own sources. `of_record` and `pull_fails` are what the steps of the pull have brought.
    pub(super) async fn find(
        config: &Config,
        network: Network,
        of_record: Option<Result<OidcToken, Step>>,
        pull_fails: bool,
    ) -> Own {
        let (tokens, mut problems) = own_tokens(config, &network).await;
        let of_file = token_file_problem(config);
        problems.retain(|problem| of_file.as_ref() != Some(&problem.words));
        let newest = tokens.into_iter().max_by_key(|token| token.expires_at);
        Own { network, newest, problems, file_fails: of_file.is_some(), of_record, pull_fails }
    }

    /// The token to ask with. A running daemon has the pull's token, too, and tells what became of it; but it writes no
    /// object for a check.
    pub(super) fn token(&self, daemon: Option<&Status>, write: bool) -> Option<&OidcToken> {
        let lasting = self.newest.as_ref().filter(|token| !has_ended(token));
        let of_record = match &self.of_record {
            Some(Ok(token)) if daemon.is_none() || write => Some(token),
            _ => None,
        };
        lasting.or(of_record).or(self.newest.as_ref())
    }
}

pub(super) async fn steps(config: &Config, own: &Own, daemon: Option<&Status>, write: bool) -> Vec<Step> {
    let Own { network, problems, file_fails, of_record, pull_fails, .. } = own;
    let mut steps = vec![issuer(config, network).await];
    match (own.token(daemon, write), daemon) {
        (Some(token), Some(status)) if has_ended(token) && holds_session(status) => {
            steps.push(Step::warn(TOKEN, token_ended(token), "not needed: the running daemon holds a session"));
            steps.extend(of_daemon(status, write));
        }
        (Some(token), _) => {
            steps.push(own_token(config, token, &token.claims()));
            if !names_itself(&token.claims()) {
                let skipped = |name| Step::skipped(name, "what is configured is no OIDC token");
                steps.extend(["sts", BUCKET, "write"].map(skipped));
                return steps;
            }
            steps.extend(with_own_token(config, network, token, daemon, write).await);
        }
        (None, Some(status)) => {
            steps.push(daemon_token(config, status));
            steps.extend(of_daemon(status, write));
        }
        (None, None) => {
            let token = match of_record {
                Some(Err(step)) if problems.is_empty() => step.clone(),
                // The way to env0's API has to be mended first: then the pull may bring a token.
                _ if problems.is_empty() && *pull_fails => Step::skipped(
                    TOKEN,
                    "none is configured; whether the pull brings one can be told once the requests to env0's API succeed",
                ),
                _ if problems.is_empty() && *file_fails => {
                    Step::skipped(TOKEN, "none, until the file of the step files is mended")
                }
                _ => no_token(config, problems),
            };
            let skipped = |name| Step::skipped(name, "there is no token");
            steps.extend([token, skipped("sts"), skipped(BUCKET), skipped("write")]);
        }
    }
    steps
}

/// Whether the keys that verify handed-over tokens can be had.
async fn issuer(config: &Config, network: &Network) -> Step {
    const NAME: &str = "issuer";
    if !config.takes_hand_overs() {
        return Step::skipped(NAME, "no sender uses an OIDC token");
    }
    let url = format!("{}/.well-known/openid-configuration", config.oidc_issuer.trim_end_matches('/'));
    let issuer = &config.oidc_issuer;
    match network.fetch(&url, DISCOVERY_MAX_BYTES).await {
        Err(error @ FetchError::Unreachable { .. }) => {
            let words = error.to_string();
            let remedy = way_out(&config.network, &words, "the issuer");
            return Step::fail(NAME, UNAVAILABLE, format!("{issuer} can't be asked: {words}"), remedy);
        }
        Err(error) if error.is_unavailable() => {
            let remedy = "see why the issuer fails, or what answers in its place (a proxy?); the daemon asks it again";
            return Step::fail(NAME, UNAVAILABLE, format!("{issuer} can't be asked: {error}"), remedy);
        }
        _ => {}
    }
    match ask_issuer(config, network).await {
        Ok(()) => Step::ok(NAME, format!("{issuer} answers")),
        Err(words) => Step::fail(
            NAME,
            UNAVAILABLE,
            format!("what answers at {issuer} is no OIDC issuer, so no token can be verified: {words}"),
            "set ENV0_S3_LOG_OIDC_ISSUER to the issuer of the tokens, or unset it, which means env0's own",
        ),
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

/// Whether it has what every OIDC token has.
fn names_itself(claims: &ShownClaims) -> bool {
    claims.issuer.is_some() && claims.subject.is_some()
}

/// What a token has in place of the configured issuer. A file may hold the token of a pod's service account, whose issuer is
/// the cluster's. Whether any of them is good for AWS the step of STS tells.
fn other_issuer(config: &Config, token: &OidcToken, claims: &ShownClaims) -> Option<String> {
    let issuer = claims.issuer.as_deref().filter(|_| token.source != Source::File)?;
    let configured = &config.oidc_issuer;
    (issuer.trim_end_matches('/') != configured.trim_end_matches('/'))
        .then(|| format!("it is foreign, for its issuer is {issuer} and configured is {configured}"))
}

/// What a token has beside the configured organization.
fn other_organizations(config: &Config, claims: &ShownClaims) -> Option<String> {
    let configured = &config.oidc_organization_ids;
    let other = claims.organizations.iter().any(|id| !configured.contains(id));
    (other && !configured.is_empty()).then(|| {
        format!("its organization is {}, configured is {}", claims.organizations.join(", "), configured.join(", "))
    })
}

/// What is to be said of a token before STS is asked.
fn own_token(config: &Config, token: &OidcToken, claims: &ShownClaims) -> Step {
    let source = token.source.as_str();
    let now = crate::batch::now();
    if !names_itself(claims) {
        return no_oidc_token(config, token.source);
    }
    if has_ended(token) {
        return Step::fail(
            TOKEN,
            DENIED,
            token_ended(token),
            format!("{}; or set this machine's clock right, which says {}", ways_to_a_token(config), Timestamp(now)),
        );
    }
    if claims.issued_at.is_some_and(|issued| issued.signed_duration_since(now) > CLOCK_LEEWAY) {
        return Step::warn(
            TOKEN,
            format!("the token of the {source} was issued in the future, by this machine's clock ({})", Timestamp(now)),
            "set this machine's clock right",
        );
    }
    good_token(config, token, claims)
}

/// What is wrong with the form of the environment's token, which nobody has to be asked for.
pub(super) fn no_token_in_environment(config: &Config) -> Option<Step> {
    let token = OidcToken::own(config.oidc_token.as_ref()?.expose_secret(), Source::Environment)?;
    (!names_itself(&token.claims())).then(|| no_oidc_token(config, Source::Environment))
}

fn no_oidc_token(config: &Config, source: Source) -> Step {
    let place = match (source, &config.oidc_token_file) {
        (Source::File, Some((variable, path))) => format!("{variable}={path:?}"),
        (Source::Url, _) => "the answer of ENV0_S3_LOG_OIDC_TOKEN_URL".to_owned(),
        (Source::Environment, _) => "ENV0_OIDC_TOKEN".to_owned(),
        (Source::File | Source::HandOver | Source::Record, _) => format!("the {}", source.as_str()),
    };
    let detail = format!(
        "what {place} holds is not an OIDC token, which begins with eyJ, has two dots in it, and names an issuer and a subject"
    );
    Step::fail(TOKEN, DENIED, detail, ways_to_a_token(config))
}

fn good_token(config: &Config, token: &OidcToken, claims: &ShownClaims) -> Step {
    let source = token.source.as_str();
    let end = token.expires_at.map_or("without an end".to_owned(), |end| format!("until {}", Timestamp(end)));
    let sources = [config.oidc_token.is_some(), config.oidc_token_file.is_some(), config.oidc_token_url.is_some()];
    // A daemon keeps all of them, and takes this one first.
    let of_several = match sources.into_iter().filter(|is_set| *is_set).count() {
        0 | 1 => "",
        _ => " (which ends last of those that are configured)",
    };
    let lines = trust_policy_lines(claims);
    let detail = format!("from the {source}{of_several}, {end}; it fits a trust policy with {lines}");
    let warn = |other, remedy| {
        Step::warn(TOKEN, format!("{detail}; {other}: tokens like it are refused when they are handed over"), remedy)
    };
    match (other_issuer(config, token, claims), other_organizations(config, claims)) {
        (Some(other), _) => warn(
            other,
            "use a token of env0 (ENV0_OIDC_TOKEN in a deployment), or set ENV0_S3_LOG_OIDC_ISSUER to its issuer",
        ),
        (None, Some(other)) => {
            warn(other, "set ENV0_S3_LOG_OIDC_ORGANIZATION_ID to the organization whose deployments are let in")
        }
        (None, None) => Step::ok(TOKEN, detail),
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
    token: &OidcToken,
    daemon: Option<&Status>,
    write: bool,
) -> Vec<Step> {
    let role = Role::of_bucket(config);
    let credentials = with_a_session(&role, token, config, network).await;
    let mut steps = vec![exchange("sts", &role, &token.claims(), &credentials, config)];
    if credentials.session().is_some() {
        let s3 = S3::new(config, network, credentials);
        steps.push(bucket(config, &s3).await);
        steps.push(if write { write_object(config, &s3).await } else { last_put(daemon) });
    } else {
        steps.push(Step::skipped(BUCKET, "there is no session to ask with"));
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
pub(super) async fn with_a_session(role: &Role, token: &OidcToken, config: &Config, network: &Network) -> Credentials {
    let stop = CancellationToken::new();
    let credentials = Credentials::start_for(role.clone(), config, network, &instance(config), stop.clone());
    // They read the configuration's own sources by themselves.
    if !token.source.is_configured() {
        credentials.offer(token.clone());
    }
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
            let remedy = error.remedy + &names_itself(claims).then(fits).unwrap_or_default();
            Step::fail(name, DENIED, format!("STS refuses the token: {}", error.message), remedy)
                .of_service(error.code, error.request_id)
        }
        Some(error) => Step::fail(name, UNAVAILABLE, format!("no session from STS: {}", error.message), error.remedy)
            .of_service(error.code, error.request_id),
        None => match status.waits_for {
            Some(what) => Step::fail(name, DENIED, format!("no exchange without {what}"), ways_to_a_token(config)),
            None => {
                Step::fail(name, UNAVAILABLE, "no answer from STS in time", way_out(&config.network, "timeout", "STS"))
            }
        },
    }
}

async fn bucket(config: &Config, s3: &S3) -> Step {
    match s3.bucket_region().await {
        Ok(BucketRegion::Known(region)) => region_told(&config.bucket_name, &config.aws_region, Some(&region)),
        Ok(BucketRegion::NotTold) => region_told(&config.bucket_name, &config.aws_region, None),
        Err(error) => no_region(config, s3, &error).of_service(error.code, error.request_id),
    }
}

/// Why the store doesn't tell where the bucket is.
fn no_region(config: &Config, s3: &S3, error: &LocateError) -> Step {
    if let Some(region) = error.expected_region() {
        return wrong_region(region, error.message.clone());
    }
    if error.refuses_the_region() {
        let remedy = format!(
            "set ENV0_S3_LOG_AWS_REGION, which is {:?}, to the name that the store has for its region, such as eu-west-1",
            config.aws_region
        );
        return Step::fail(BUCKET, CONFIG, &error.message, remedy);
    }
    if error.kind == PutErrorKind::Denied {
        let detail = format!("GetBucketLocation is denied: {}", error.message);
        return Step::fail(BUCKET, DENIED, detail, s3.locate_remedy(error));
    }
    of_kind(config, BUCKET, error.kind, &error.code, &error.message)
}

async fn write_object(config: &Config, s3: &S3) -> Step {
    const NAME: &str = "write";
    let prefix = if config.bucket_path.is_empty() { String::new() } else { format!("{}/", config.bucket_path) };
    let probe = Probe::write(&config.spool_dir, BODY).or_else(|_| Probe::write(&std::env::temp_dir(), BODY));
    let probe = match probe {
        Ok(probe) => probe,
        Err(error) => {
            return Step::fail(NAME, IO, format!("no file can be made to send: {error}"), "see the step spool");
        }
    };
    let mut put = Put {
        key: format!("{prefix}env0-s3-logs-check"),
        file: probe.path().to_owned(),
        bytes: BODY.len() as u64,
        sha256: Sha256::of(BODY),
        metadata: Vec::new(),
        timeout: WRITE_TIMEOUT,
    };
    let mut written = s3.put(&put).await;
    // From an earlier check. A store may say so before it looks at the KMS key and the other settings.
    if matches!(&written, Err(error) if error.kind == PutErrorKind::NameTaken) {
        put.key += &crate::batch::now().format("-%Y%m%dT%H%M%S%.6fZ").to_string();
        written = s3.put(&put).await;
    }
    match written {
        Ok(()) => Step::ok(NAME, format!("wrote {}", put.key)),
        Err(error) if error.kind == PutErrorKind::NameTaken => {
            Step::ok(NAME, format!("{} is there already, the store says (412), as it says of a first name", put.key))
        }
        Err(error) => {
            of_kind(config, NAME, error.kind, &error.code, &error.message).of_service(error.code, error.request_id)
        }
    }
}

/// A failure at S3.
fn of_kind(config: &Config, name: &'static str, kind: PutErrorKind, code: &Option<String>, message: &str) -> Step {
    use PutErrorKind::*;
    let remedy = match kind {
        Timeout | Unreachable => way_out(&config.network, message, "S3"),
        NoSuchBucket if batches_in(&config.spool_dir).is_ok_and(|batches| batches == 0) => {
            "make the bucket, or set ENV0_S3_LOG_BUCKET_NAME right; see config/README.md#not-uploading".to_owned()
        }
        _ => kind.remedy(code.as_deref()),
    };
    Step::fail(name, kind.exit_code(), message, remedy)
}

/// There is no token, and no daemon that might have one.
fn no_token(config: &Config, problems: &[SourceProblem]) -> Step {
    if !problems.is_empty() {
        return failing_sources(config, problems);
    }
    let by_hand = match config.takes_hand_overs() {
        true => "no daemon runs that was handed one",
        false => "nobody is let in to hand one over",
    };
    let by_pull = match &config.pull {
        None => "",
        Some(_) if config.pulls(LogType::Deployments) => {
            "; a daemon that pulls takes one from a deployment's record, if env0 has filled that in"
        }
        Some(_) => "; ENV0_S3_LOG_PULL leaves out env0-deployments, so no deployment's record is read for one",
    };
    let detail = format!("none is configured, and {by_hand}{by_pull}");
    // Nothing is wrong: a daemon starts, and the first deployment brings one.
    if config.takes_hand_overs() {
        let remedy = "start the daemon (env0-s3-logs run), let a deployment hand its token over (PUT /v1/oidc-token with \
                      ENV0_OIDC_TOKEN as bearer token), and run check again: role and bucket are not judged before that; or set \
                      ENV0_S3_LOG_OIDC_TOKEN_FILE; see \
                      config/README.md#no-token";
        return Step { remedy: Some(remedy.to_owned()), ..Step::skipped(TOKEN, detail) };
    }
    if a_deployment_may_bring_one(config) {
        return Step { remedy: Some(without_a_token(config)), ..Step::skipped(TOKEN, detail) };
    }
    Step::fail(TOKEN, CONFIG, detail, ways_to_a_token(config))
}

/// What the configured sources of tokens lack.
fn failing_sources(config: &Config, problems: &[SourceProblem]) -> Step {
    let words: Vec<_> = problems.iter().map(|problem| problem.words.as_str()).collect();
    let words = words.join("; ");
    if problems.iter().all(|problem| problem.is_unavailable) {
        let server = "the server of ENV0_S3_LOG_OIDC_TOKEN_URL";
        let remedy = match words.contains("HTTP status") {
            true => format!("see why {server} fails; the daemon asks it again at each exchange"),
            false => way_out(&config.network, &words, server),
        };
        return Step::fail(TOKEN, UNAVAILABLE, words, remedy);
    }
    let remedy = "mend what this line names: a URL must answer with a token; see config/README.md#no-token";
    Step::fail(TOKEN, CONFIG, words, remedy)
}
