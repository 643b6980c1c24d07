//! `drain`: uploads what a spool holds, to where its events were accepted for or, when asked to, to the configured
//! bucket. Takes no events.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::assembly::{self, Failure};
use crate::batch::{LogType, counted};
use crate::chain::SigningKey;
use crate::cloudwatch::lane::Lanes;
use crate::config::{self, Config};
use crate::credentials::{Credentials, without_a_token};
use crate::exit_code;
use crate::network::Network;
use crate::spool::disk::OsDisk;
use crate::spool::manifest::{Destination, Lock, LockError, Manifest};
use crate::spool::named::Named;
use crate::spool::{self, LeftBehind, OpenError, Spool};
use crate::status::CredentialsStatus;

/// How often the progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether the spool is empty.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long uploads under way may still take when the time is over.
const LAST_ATTEMPTS: Duration = Duration::from_secs(1);

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct DrainOptions {
    /// The spool to drain, for instance another replica's volume [default: ENV0_S3_LOG_SPOOL_DIR; example: --spool /mnt/old]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Give up after this time [default: never; example: --timeout 10m]
    #[arg(long, value_name = "TIME", value_parser = config::parse_duration)]
    timeout: Option<Duration>,
    /// Send to the endpoint that the spool's manifest names, where the configuration names another
    #[arg(long)]
    to_manifest: bool,
    /// Send to the bucket, path, region and endpoint that are configured now, whatever the events were accepted for; asks first
    #[arg(long, conflicts_with = "to_manifest")]
    to_configured: bool,
    /// Don't ask before --to-configured
    #[arg(long, requires = "to_configured")]
    yes: bool,
}

/// Uploads until the spool is empty. `show` gets a line of progress a second.
///
/// # Errors
/// 73 when a daemon runs on the spool, 69 when the time is over before it is empty or when no OIDC token can come,
/// 74 when a file is in quarantine or stays in a folder, 78 when the spool names an endpoint that the configuration
/// doesn't, 64 when nobody agrees to `--to-configured`.
pub async fn run(mut config: Config, options: DrainOptions, mut show: impl FnMut(&str)) -> Result<(), Failure> {
    if let Some(spool) = options.spool {
        config.spool_dir = spool;
    }
    let accepted = accepted_destination(&config)?;
    let configured = assembly::spool_settings(&config).destination;
    let starts_as_it_is = options.to_configured || accepted == configured;
    if !options.to_configured && accepted.bucket != configured.bucket {
        show(&format!(
            "the events were accepted for the bucket {}, and {} is configured now; if the first was a mistake, stop this with \
             Ctrl-C and run `env0-s3-logs drain --to-configured`",
            accepted.bucket.escape_debug(),
            configured.bucket.escape_debug()
        ));
    }
    let destination = match options.to_configured {
        true => to_configured(&config, accepted, options.yes, &mut show)?,
        false => {
            to_accepted(&mut config, &accepted, options.to_manifest)?;
            accepted
        }
    };
    show(&format!("draining {} to {destination}", config.spool_dir.display()));
    if config.aws_region != destination.region {
        let region = config.aws_region.escape_debug();
        show(&format!("the bucket is asked in the region that is configured now, {region}"));
    }

    let network = Network::new(&config.network).map_err(|error| Failure::new(exit_code::CONFIG, error))?;
    let signing_key = config.signing_key_file.as_deref().map(SigningKey::from_pem_file).transpose();
    let signing_key = signing_key.map_err(|error| Failure::new(exit_code::CONFIG, error))?;
    let settings = spool::Settings { destination, ..assembly::spool_settings(&config) };
    let opened = tokio::task::spawn_blocking(move || Spool::open(&settings, Arc::new(OsDisk))).await;
    let opened = opened.map_err(|error| Failure::new(exit_code::SOFTWARE, error))?;
    let (spool, sealed) = opened.map_err(held_by_a_daemon)?;
    // Else the log would ask for a token that nothing needs.
    if config.cloudwatch.is_none() && left(&spool).is_nothing() {
        return emptied(&spool, show).await;
    }
    let credentials = Credentials::start(&config, &network, spool.instance(), CancellationToken::new());
    let cloudwatch = assembly::start_cloudwatch(&config, &network, &spool, &credentials, CancellationToken::new())?;
    let (flusher, _) = assembly::start_flusher(&config, &network, &spool, &credentials, signing_key, sealed)?;

    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let mut next_show = Instant::now();
    loop {
        let unsent = left(&spool);
        if unsent.is_nothing() {
            break;
        }
        let (now, tokens) = (Instant::now(), credentials.status());
        if credentials.session().is_none() && no_token_can_come(&config, &tokens) {
            return Err(without_any_token(&config, &tokens, starts_as_it_is, &unsent));
        }
        if now >= next_show {
            next_show = now + PROGRESS_INTERVAL;
            show(&unsent.progress(&tokens));
        }
        if deadline.is_some_and(|deadline| now >= deadline) {
            flusher.drain(now + LAST_ATTEMPTS).await;
            let error = anyhow::anyhow!("the time is over; {} in the spool, and safe there", left(&spool).still());
            return Err(Failure::new(exit_code::UNAVAILABLE, error));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    if let Some(lanes) = cloudwatch {
        drain_cloudwatch(lanes, deadline, &mut show).await;
    }
    emptied(&spool, show).await
}

/// The place that the spool's events were accepted for, as its manifest says.
fn accepted_destination(config: &Config) -> Result<Destination, Failure> {
    let manifest = Manifest::read(&Named(Arc::new(OsDisk)), &config.spool_dir).map_err(OpenError::from)?;
    manifest.map(|manifest| manifest.destination).ok_or_else(|| {
        let error = anyhow::anyhow!(
            "{} is not a spool: it has no manifest.json; name the folder that a daemon had as its ENV0_S3_LOG_SPOOL_DIR, in that variable or with --spool",
            config.spool_dir.display()
        );
        Failure::new(exit_code::IO, error)
    })
}

/// Whether the spool waits for a token that nothing here could bring.
fn no_token_can_come(config: &Config, tokens: &CredentialsStatus) -> bool {
    let is_read_again = config.oidc_token_file.is_some() || config.oidc_token_url.is_some();
    !is_read_again && tokens.remedy == Some(without_a_token(config))
}

/// `starts_as_it_is`: a daemon would start on this spool with the configuration as it is.
fn without_any_token(config: &Config, tokens: &CredentialsStatus, starts_as_it_is: bool, unsent: &Left) -> Failure {
    let or = match (config.pulls(LogType::Deployments), starts_as_it_is) {
        (false, _) => "",
        (true, true) => {
            ", or start the daemon: it takes one from a deployment's record where env0 has filled that in, and then sends all of it"
        }
        (true, false) => {
            ", or, if all of it may go to the configured bucket, run `env0-s3-logs drain --to-configured`, which ends as this one, and start the daemon then: it takes one from a deployment's record where env0 has filled that in"
        }
    };
    let error = anyhow::anyhow!(
        "drain waits for {} and nothing is configured that could bring one; set ENV0_OIDC_TOKEN, ENV0_S3_LOG_OIDC_TOKEN_FILE or ENV0_S3_LOG_OIDC_TOKEN_URL (drain has no listener that takes one, and doesn't pull){or}; {} in the spool, and safe there",
        tokens.waits_for.as_deref().unwrap_or_default(),
        unsent.still(),
    );
    Failure::new(exit_code::UNAVAILABLE, error)
}

/// Why the spool can't be opened; a daemon that has it is no reason for another folder here.
fn held_by_a_daemon(error: OpenError) -> Failure {
    let OpenError::Lock(LockError::Held { spool, holder }) = &error else { return error.into() };
    let words = anyhow::anyhow!(
        "the spool {} is in use by process {holder}, which sends what it holds by itself: leave that one running, or stop it first",
        spool.display()
    );
    Failure { error: words, ..Failure::from(error) }
}

/// Sends what CloudWatch doesn't have yet, as far as it takes it: all of it is in S3.
async fn drain_cloudwatch(mut lanes: Lanes, deadline: Option<Instant>, show: &mut impl FnMut(&str)) {
    let left = |lanes: &Lanes| lanes.watched().status().types.iter().map(|of_type| of_type.batches).sum::<u64>();
    match left(&lanes) {
        0 => return,
        batches => show(&format!("all is in S3; {} on the way to CloudWatch, too", counted(batches, "batch"))),
    }
    match deadline {
        Some(deadline) => drop(tokio::time::timeout_at(deadline, lanes.drain()).await),
        None => lanes.drain().await,
    }
    match left(&lanes) {
        0 => {}
        batches => show(&format!(
            "{} did not get to CloudWatch; S3 has all of it, and the next daemon on this spool sends the rest",
            counted(batches, "batch")
        )),
    }
}

/// Points the configuration at the place that the events were accepted for.
fn to_accepted(config: &mut Config, accepted: &Destination, to_manifest: bool) -> Result<(), Failure> {
    let endpoint = Some(accepted.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
    // Whoever can write to a spool must not be able to send its events to another server.
    if config.endpoint_url_s3 != endpoint && !to_manifest {
        let shown = |endpoint: &String| endpoint.escape_debug().to_string();
        let name = |endpoint: &Option<String>| endpoint.as_ref().map_or_else(|| "AWS".to_owned(), shown);
        let error = anyhow::anyhow!(
            "the spool's manifest sends to the endpoint {}, and the configuration names {}; set AWS_ENDPOINT_URL_S3 as the spool has it, or say --to-manifest if that endpoint is yours, or --to-configured if the events shall go to the configured one",
            name(&endpoint),
            name(&config.endpoint_url_s3)
        );
        return Err(Failure::new(exit_code::CONFIG, error));
    }
    // A bucket has one region, so the configured one may correct a wrong one that the events were accepted under.
    let same_bucket = config.endpoint_url_s3 == endpoint && config.bucket_name == accepted.bucket;
    if !same_bucket {
        config.aws_region.clone_from(&accepted.region);
    }
    config.bucket_name.clone_from(&accepted.bucket);
    config.bucket_path.clone_from(&accepted.path);
    config.endpoint_url_s3 = endpoint;
    Ok(())
}

/// Makes the configured place the spool's own, once somebody has agreed.
///
/// The chains stay what they are. A batch's number and the hash of the one before it are part of its file's name, and
/// may already be in the old bucket; under the same chain, a number names the same bytes in either place. Where
/// nothing had reached the old bucket, the new one has the chain from number 1.
fn to_configured(
    config: &Config,
    accepted: Destination,
    yes: bool,
    show: &mut impl FnMut(&str),
) -> Result<Destination, Failure> {
    let (dir, configured) = (&config.spool_dir, assembly::spool_settings(config).destination);
    let _lock = Lock::take(dir).map_err(|error| held_by_a_daemon(error.into()))?;
    let (batches, sending) = spool::count_batches(&OsDisk, dir)?;
    // An empty spool goes over to the configured place by itself, and begins new chains.
    if accepted == configured || batches == 0 {
        return Ok(configured);
    }
    let already = match sending {
        0 => String::new(),
        _ => format!(
            " The upload of {} had begun when the daemon ended: the old place may have it already, and then both places have it.",
            counted(sending, "batch")
        ),
    };
    let question = format!(
        "{} holds {} accepted for {accepted}. That and all that comes later will go to {configured}.{already}",
        dir.display(),
        counted(batches, "batch")
    );
    if !yes && !agreed(&question, show)? {
        let error = anyhow::anyhow!("not agreed; nothing was changed or sent");
        return Err(Failure::new(exit_code::USAGE, error));
    }
    let manifest = Manifest::read(&OsDisk, dir).map_err(OpenError::from)?;
    if let Some(manifest) = manifest {
        Manifest { destination: configured.clone(), ..manifest }.write(&OsDisk, dir).map_err(OpenError::from)?;
    }
    if yes {
        show(&question);
    }
    Ok(configured)
}

/// Whether the person at the terminal says yes.
fn agreed(question: &str, show: &mut impl FnMut(&str)) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let error = anyhow::anyhow!("{question} There is no terminal to ask at: add --yes if that is right");
        return Err(Failure::new(exit_code::USAGE, error));
    }
    show(&format!("{question} Is that right? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|error| Failure::new(exit_code::USAGE, error))?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Looks at the folders once more, and says that the spool is empty or what is left.
async fn emptied(spool: &Spool, mut show: impl FnMut(&str)) -> Result<(), Failure> {
    let spool = spool.clone();
    let looked = tokio::task::spawn_blocking(move || spool.left_behind()).await;
    let LeftBehind { batches, quarantined } = looked.map_err(|error| Failure::new(exit_code::SOFTWARE, error))??;
    let error = match (batches, quarantined) {
        (0, 0) => {
            show("the spool is empty");
            return Ok(());
        }
        (0, _) => anyhow::anyhow!(
            "all that could be read is sent; quarantine has {}, and that was not, see config/README.md#quarantined",
            counted(quarantined, "file")
        ),
        _ => anyhow::anyhow!(
            "the folders hold {} that came after the start, and quarantine has {}; run drain again",
            counted(batches, "batch"),
            counted(quarantined, "file")
        ),
    };
    Err(Failure::new(exit_code::IO, error))
}

/// What the spool still holds for S3.
struct Left {
    batches: u64,
    events: u64,
    bytes: u64,
    /// Whether anything waits, even where nobody knows yet how much it is.
    waits: bool,
}

impl Left {
    /// A file that a crash left open counts as events before it is sealed as a batch, and as neither before it is read.
    fn is_nothing(&self) -> bool {
        self.batches == 0 && self.events == 0 && !self.waits
    }

    fn progress(&self, tokens: &CredentialsStatus) -> String {
        let (batches, events, bytes) = (counted(self.batches, "batch"), counted(self.events, "event"), self.bytes);
        let waits_for = tokens.waits_for.as_ref().map(|what| format!("; waiting for {what}")).unwrap_or_default();
        format!("{batches}, {events}, {bytes} bytes left{waits_for}")
    }

    /// What the error of a drain that ends early says of the spool.
    fn still(&self) -> String {
        format!("{} with {} still", counted(self.batches, "batch"), counted(self.events, "event"))
    }
}

fn left(spool: &Spool) -> Left {
    LogType::ALL.iter().fold(Left { batches: 0, events: 0, bytes: 0, waits: false }, |left, log_type| {
        let status = spool.folder(*log_type).status("");
        Left {
            batches: left.batches + status.batches,
            events: left.events + status.events_spooled,
            bytes: left.bytes + status.spool_bytes,
            waits: left.waits || status.oldest_unsent.is_some(),
        }
    })
}
