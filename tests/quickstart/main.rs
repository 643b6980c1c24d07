//! `cargo run --example quickstart`: both ways of a log to S3, pulled and pushed, on this machine alone.
//!
//! Starts a local AWS (S3, STS, OIDC issuer; see `tests/local_aws`) and a local env0 (`tests/local_env0`). One daemon
//! pulls from that env0, another one is sent real logs; each is a process of its own, configured by environment
//! variables only. Reads the bucket back. Then it stays up for the reader's own tries until Ctrl-C, or ends at once
//! with `--once`. Leaves nothing behind.

mod daemon;
mod loki;
mod pull;
mod show;

#[path = "../local_aws/mod.rs"]
mod local_aws;
#[path = "../local_env0/mod.rs"]
mod local_env0;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};

use daemon::{Daemon, Environment};
use local_aws::issuer::ORGANIZATION;
use local_aws::{AUDITOR, BUCKET, LocalAws, REGION};
use local_env0::LocalEnv0;
use show::{heading, line, note, say, thousands};
use tokio::signal::unix::{SignalKind, signal};

const DEPLOYMENT_LOG: &str = include_str!("../fixtures/deployment-events.ndjson");
const TERRAFORM_OUTPUT: &str = include_str!("../fixtures/terraform-apply.ansi.txt");
const AUDIT_LOG: &str = include_str!("../fixtures/audit-events.ndjson");

/// Static tokens, each bound to one log type.
const DEPLOYMENTS_TOKEN: &str = "quickstart-deployments-token";
const AUDITS_TOKEN: &str = "quickstart-audits-token";

/// How long the objects may take to arrive.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(45);

const USAGE: &str = "\
usage: cargo run --example quickstart [-- --once]

Shows both ways of a log to S3, pulled and pushed, on this machine alone, and stays up until Ctrl-C.

  --once      end after the show instead of staying up
  -h, --help  print this";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let once = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The daemon is this program once more, so that `cargo run` need not build two.
        [daemon::ARGUMENT] => return env0_s3_logs::cli::main_from(["env0-s3-logs".into(), "run".into()]),
        [] => false,
        ["--once"] => true,
        ["--help" | "-h"] => return ended(say(USAGE).map_err(Into::into)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    let result = runtime.block_on(async {
        tokio::select! {
            result = tour(&aws, &env0, once) => result,
            result = interrupted() => result,
        }
    });
    drop((aws, env0));
    ended(result.and_then(|()| Ok(say("\nStopped. Nothing was left behind.")?)))
}

/// The exit code of a result; tells the error, where there is somebody to tell.
fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // `| head` has read what it wanted.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nquickstart failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for Ctrl-C, `kill`, or the end of the terminal.
async fn interrupted() -> Result<()> {
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
    }
}

/// The whole show. Dropping it, at any point, stops the daemons and removes their files.
async fn tour(aws: &LocalAws, env0: &LocalEnv0, once: bool) -> Result<()> {
    say("env0-s3-logs: both ways of a log to S3, pulled and pushed, on this machine alone")?;

    heading(1, "A local AWS and a local env0, speaking the real protocols on loopback")?;
    line("S3", &format!("{}  bucket {BUCKET}; the role may PutObject and GetBucketLocation, no more", aws.s3.url()))?;
    line("STS", &format!("{}  verifies the token's signature, issuer, expiry, audience, subject", aws.sts.url()))?;
    line("issuer", &format!("{}  stands for https://login.app.env0.com/", aws.issuer.url()))?;
    line("env0's API", &format!("{}  stands for https://api.env0.com", env0.url()))?;

    heading(2, "Pull: an API key is all that env0 has to give")?;
    let (puller, pulled) = pull::start(aws, env0).await?;

    heading(3, "Objects out, without a single push")?;
    let objects = delivered(aws, pulled).await?;
    show_objects(&objects)?;
    ensure!(line_count(&objects) == pulled, "the bucket does not hold what env0 had");
    let pulled_keys: Vec<String> = objects.into_iter().map(|object| object.key).collect();

    heading(4, "Push: another daemon, which takes events over HTTP")?;
    let daemon = start_for_pushes(aws).await?;

    heading(5, "Events in: a 200 means that they are on disk, fsynced")?;
    let sent = send(aws, &daemon).await?;

    heading(6, "Objects out")?;
    let mut objects = delivered(aws, pulled + sent).await?;
    objects.retain(|object| !pulled_keys.contains(&object.key));
    show_objects(&objects)?;

    heading(7, "The books")?;
    let lines = line_count(&objects);
    line("pulled", &format!("{pulled} events, each in the bucket once"))?;
    line("pushed", &format!("{} events", thousands(sent)))?;
    line("lines out", &format!("{} of them", thousands(lines)))?;
    ensure!(sent == lines, "the bucket does not hold what was acknowledged");
    for (name, log) in [("deployment", DEPLOYMENT_LOG), ("audit", AUDIT_LOG)] {
        let whole = objects.iter().any(|object| object.body.contains(log));
        ensure!(whole, "the {name} log is not in the bucket byte for byte");
    }
    note("and both JSON logs are there byte for byte, in order")?;

    if once {
        puller.stop().await?;
        return daemon.stop().await;
    }
    stay_up(aws, env0, puller, daemon).await
}

/// Starts the daemon that takes events.
async fn start_for_pushes(aws: &LocalAws) -> Result<Daemon> {
    let folder = tempfile::tempdir()?;
    let tokens = folder.path().join("ingest-tokens");
    std::fs::write(&tokens, format!("{DEPLOYMENTS_TOKEN} env0-deployments\n{AUDITS_TOKEN} env0-audits\n"))?;
    let mut environment: Environment = aws.environment_without_token();
    environment.extend([
        ("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION.into()),
        ("ENV0_S3_LOG_INGEST_TOKEN_FILE", tokens.display().to_string()),
        ("ENV0_S3_LOG_LISTEN_ADDR", "127.0.0.1:0".into()),
    ]);
    environment.extend(Daemon::places(&folder));
    let daemon = Daemon::start(&environment, folder).await?;
    show::variables(&environment)?;
    line("ingest", &daemon.listen)?;
    line("admin", &daemon.admin)?;
    Ok(daemon)
}

/// The variables of another daemon that takes events: what the README's steps for a push say, and places on this machine.
fn variables_to_push_to(aws: &LocalAws) -> Environment {
    let mut environment = aws.environment_without_token();
    environment.extend([
        ("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION.into()),
        ("ENV0_S3_LOG_ADMIN_ADDR", "127.0.0.1:9091".into()),
        ("ENV0_S3_LOG_BATCH_MAX_AGE", daemon::BATCH_MAX_AGE.into()),
    ]);
    environment
}

fn line_count(objects: &[Delivered]) -> usize {
    objects.iter().map(|object| object.body.lines().count()).sum()
}

/// The name of each object, and the beginning of what is in it.
fn show_objects(objects: &[Delivered]) -> Result<()> {
    for object in objects {
        say(&format!("\n    {}", show::bold(&object.key)))?;
        let records = object.metadata.get("env0-records").map_or("?", String::as_str);
        let events = if records == "1" { "event" } else { "events" };
        note(&format!("  {} bytes, {records} {events}, in a single PUT", thousands(object.body.len())))?;
        for text in object.body.lines().take(2) {
            note(&format!("  {}", show::shortened(text)))?;
        }
    }
    Ok(())
}

/// Sends every log; says how many events were acknowledged.
async fn send(aws: &LocalAws, daemon: &Daemon) -> Result<usize> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let post = |path: &str| client.post(format!("{}{path}", daemon.listen));
    let token = aws.issuer.token();
    let mut sent = 0;

    say("\n    A deployment's log, NDJSON. The bearer is the deployment's ENV0_OIDC_TOKEN, which")?;
    say("    also gives the daemon what it exchanges at STS: it holds no AWS keys.")?;
    let request = post("/v1/logs/env0-deployments").bearer_auth(&token).body(DEPLOYMENT_LOG);
    sent += acknowledged("deployment-events.ndjson", request).await?;

    say("\n    What Terraform printed, plain text with colours: one event a line.")?;
    let request = post("/v1/logs/env0-deployments").bearer_auth(&token).body(TERRAFORM_OUTPUT);
    sent += acknowledged("terraform-apply.ansi.txt", request).await?;

    say("\n    The audit trail, with a static token that may write nothing else.")?;
    let request = post("/v1/logs/env0-audits").bearer_auth(AUDITS_TOKEN).body(AUDIT_LOG);
    sent += acknowledged("audit-events.ndjson", request).await?;

    say(
        "\n    A Loki push as env0's own log forwarding sends it (snappy protobuf), where its variables ENV0_LOKI_HOST,",
    )?;
    say("    ENV0_LOKI_USERNAME and ENV0_LOKI_PASSWORD name a daemon that it can reach.")?;
    let lines: Vec<&str> = TERRAFORM_OUTPUT.lines().filter(|text| !text.is_empty()).take(25).collect();
    let request = post("/loki/api/v1/push")
        .basic_auth("env0", Some(DEPLOYMENTS_TOKEN))
        .header("content-type", "application/x-protobuf")
        .body(loki::push(&lines)?);
    let answer = request.send().await?;
    let status = answer.status();
    ensure!(status == 204, "Loki push: {status} {}", answer.text().await?);
    line("204", &format!("{} lines, in Loki's own way to say yes", lines.len()))?;
    Ok(sent + lines.len())
}

/// Sends a request and shows its acknowledgement; how many events it is for.
async fn acknowledged(name: &str, request: reqwest::RequestBuilder) -> Result<usize> {
    let answer = request.send().await?;
    let (status, body) = (answer.status(), answer.text().await?);
    ensure!(status == 200, "{name}: {status} {body}");
    line("POST", name)?;
    line("200", &body)?;
    let body: serde_json::Value = serde_json::from_str(&body)?;
    let accepted = body["accepted"].as_u64().context("no count in the acknowledgement")?;
    Ok(usize::try_from(accepted)?)
}

/// An object as an auditor reads it.
struct Delivered {
    key: String,
    metadata: std::collections::HashMap<String, String>,
    body: String,
}

/// Waits until the bucket holds `lines` lines, and reads all of it through S3.
async fn delivered(aws: &LocalAws, lines: usize) -> Result<Vec<Delivered>> {
    say(&format!("    waiting for the batches to be sealed, at {} …", daemon::BATCH_MAX_AGE))?;
    let start = Instant::now();
    let mut poll = tokio::time::interval(Duration::from_millis(50));
    while aws.s3.line_count() < lines {
        if start.elapsed() > DELIVERY_DEADLINE {
            bail!("after {DELIVERY_DEADLINE:?} the bucket holds {} of {lines} lines", aws.s3.line_count());
        }
        poll.tick().await;
    }
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(aws.s3.url())
        .force_path_style(true)
        .credentials_provider(Credentials::new(AUDITOR.0, AUDITOR.1, None, None, "auditor"))
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let mut objects = Vec::new();
    for object in client.list_objects_v2().bucket(BUCKET).send().await?.contents() {
        let key = object.key().context("a listed object has a key")?.to_owned();
        let object = client.get_object().bucket(BUCKET).key(&key).send().await?;
        let metadata = object.metadata().cloned().unwrap_or_default();
        let body = String::from_utf8(object.body.collect().await?.to_vec())?;
        objects.push(Delivered { key, metadata, body });
    }
    Ok(objects)
}

/// Tells what is up and how to use it, and stays until a daemon ends, which none does by itself.
async fn stay_up(aws: &LocalAws, env0: &LocalEnv0, mut puller: Daemon, mut daemon: Daemon) -> Result<()> {
    heading(8, "Yours to try until Ctrl-C (the bucket is in memory and goes with it)")?;
    say("\n    Open (of the daemon that is pushed to, and of the one that pulls):")?;
    note(&format!("{}/", daemon.admin))?;
    note(&format!("{}/", puller.admin))?;
    say("\n    Send:")?;
    note(&format!(
        "curl -H 'Authorization: Bearer {DEPLOYMENTS_TOKEN}' -d '{{\"message\":\"hello\"}}' {}/v1/logs/env0-deployments",
        daemon.listen
    ))?;
    say("\n    Read, a few seconds later:")?;
    note(&format!(
        "AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} AWS_REGION={REGION} aws --endpoint-url {} s3 sync s3://{BUCKET} logs",
        AUDITOR.0,
        AUDITOR.1,
        aws.s3.url()
    ))?;
    say(
        "\n    Pull with a daemon of your own. (`quickstart daemon` is env0-s3-logs. Its page is http://127.0.0.1:9090/; it warns",
    )?;
    say("    that two now pull the same.)")?;
    note(&daemon::command(pull::variables_of_another(aws, env0), "env0-s3-logs-trial-pull")?)?;
    say("\n    Or push to one of your own (its page is http://127.0.0.1:9091/):")?;
    note(&daemon::command(variables_to_push_to(aws), "env0-s3-logs-trial-push")?)?;
    say(
        "\n    In another terminal take what env0 gives a deployment, hand it over (204), and send an event with it (200):",
    )?;
    note(&format!("ENV0_OIDC_TOKEN=\"$(curl -sS {})\"", aws.issuer.serve_token(&aws.issuer.token())))?;
    note("curl -i -X PUT -d \"$ENV0_OIDC_TOKEN\" http://127.0.0.1:8080/v1/oidc-token")?;
    note(
        "curl -i -d '{\"message\":\"pushed\"}' -H \"Authorization: Bearer $ENV0_OIDC_TOKEN\" \
         http://127.0.0.1:8080/v1/logs/env0-deployments",
    )?;
    let status = tokio::select! {
        status = puller.ended() => status?,
        status = daemon.ended() => status?,
    };
    bail!("a daemon ended with {status}")
}
