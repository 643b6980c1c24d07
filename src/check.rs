//! `check`: configuration, spool, token, STS, bucket; one verdict a step, with the likely cause and the remedy.

mod beside;
mod cloudwatch;
mod local;
mod online;
mod pull;
mod remedies;
mod report;

use crate::config::{Config, ConfigErrors, Loaded};
use crate::exit_code::CONFIG;
use crate::network::Network;
use crate::status::Status;
use online::Own;
pub use report::{Report, Step, Verdict};

/// What the command line says.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct CheckOptions {
    /// Configuration and spool alone: asks nobody
    #[arg(long, conflicts_with = "write")]
    offline: bool,
    /// Writes one tiny object, `env0-s3-logs-check` under the bucket path (with the time behind it where that is there already), and one event to each log group
    #[arg(long)]
    write: bool,
    /// One JSON object in place of lines
    #[arg(long)]
    pub json: bool,
}

/// Judges every step. Without `--write` it writes nothing but a probe file in the spool, or in the folder above one
/// that is not made yet, and removes it again.
pub async fn run(loaded: Result<Loaded, ConfigErrors>, options: CheckOptions) -> Report {
    let mut steps = local::configuration(&loaded);
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            let files = errors.so_far.map(|config| local::files(&config)).unwrap_or_default();
            steps.extend(files.into_iter().filter(|step| step.verdict == Verdict::Fail));
            return Report::new(steps);
        }
    };
    let config = &loaded.config;
    let address = config.admin_addr;
    let asked = tokio::task::spawn_blocking(move || (local::daemon(address), beside::disk_of_daemon(address)));
    let (daemon, disk_of_daemon) = asked.await.unwrap_or_default();
    steps.extend(local::steps(&loaded, daemon.as_ref(), disk_of_daemon));
    if options.offline {
        steps.extend(online::no_token_in_environment(config));
    } else {
        steps.extend(of_others(config, daemon.as_ref(), options.write).await);
    }
    Report::new(steps)
}

/// The steps that ask others than this machine.
async fn of_others(config: &Config, daemon: Option<&Status>, write: bool) -> Vec<Step> {
    let pulled = pull::steps(config, daemon).await;
    let mut steps = Vec::new();
    match Network::new(&config.network) {
        Ok(network) => {
            let pull_fails = pulled.steps.iter().any(|step| step.verdict == Verdict::Fail);
            let own = Own::find(config, network, pulled.token, pull_fails).await;
            steps.extend(online::steps(config, &own, daemon, write).await);
            steps.extend(cloudwatch::steps(config, &own, daemon, write).await);
        }
        Err(error) => steps.push(Step::fail("network", CONFIG, error.to_string(), "correct the variable")),
    }
    steps.extend(pulled.steps);
    steps
}
