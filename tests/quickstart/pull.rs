//! A daemon that is given an API key and nothing else, and an env0 in which something happens.

use anyhow::Result;
use chrono::Utc;

use crate::daemon::{BATCH_MAX_AGE, Daemon, Environment};
use crate::local_aws::LocalAws;
use crate::local_env0::LocalEnv0;
use crate::local_env0::audits::event;
use crate::local_env0::deployments::{self, Deployment};
use crate::show::{line, say, variables};

/// What has to be set where AWS and env0 are the real ones.
const ALL_THAT_YOU_SET: [&str; 5] = [
    "ENV0_S3_LOG_ROLE_ARN",
    "ENV0_S3_LOG_BUCKET_NAME",
    "ENV0_S3_LOG_AWS_REGION",
    "ENV0_API_KEY_ID",
    "ENV0_API_KEY_SECRET",
];

const AUDIT_EVENTS: usize = 12;
const LOG_LINES: usize = 40;

/// The variables of another daemon which pulls. They say how far back, because nobody deploys any more.
pub(crate) fn variables_of_another(aws: &LocalAws, env0: &LocalEnv0) -> Environment {
    let mut environment = aws.environment_without_token();
    environment.extend(env0.environment());
    environment.extend([
        ("ENV0_S3_LOG_PULL_FROM", Utc::now().date_naive().pred_opt().unwrap_or_default().to_string()),
        ("ENV0_S3_LOG_BATCH_MAX_AGE", BATCH_MAX_AGE.into()),
    ]);
    environment
}

/// Starts the daemon, and has somebody deploy. Also how many events the daemon is to bring to the bucket.
pub(crate) async fn start(aws: &LocalAws, env0: &LocalEnv0) -> Result<(Daemon, usize)> {
    let folder = tempfile::tempdir()?;
    let mut environment = aws.environment_without_token();
    environment.extend(env0.environment());
    environment.extend(Daemon::places(&folder));
    let daemon = Daemon::start(&environment, folder).await?;
    let (yours, local): (Environment, Environment) =
        environment.into_iter().partition(|(name, _)| ALL_THAT_YOU_SET.contains(name));
    say("\n    This is all that you set:")?;
    variables(&yours)?;
    say("\n    The rest only says where this machine's stand-ins are, and spares you waiting:")?;
    variables(&local)?;
    line("admin", &daemon.admin)?;
    say("\n    Nobody can push to it: with an API key alone there is no ingest listener.")?;

    let mut deployment = Deployment::running("deployment-1", "tf:apply", LOG_LINES).ended_at(Utc::now());
    // env0 documents this field of a record. In Kubernetes the pod's own token does as well.
    deployment.oidc_token = Some(aws.issuer.token());
    let environment =
        deployments::Environment { deployments: vec![deployment], ..deployments::Environment::new("network") };
    {
        let (mut world, now) = (env0.world(), Utc::now());
        world.audits.extend((0..AUDIT_EVENTS).map(|number| event(number, now)));
        world.environments.push(environment);
    }
    say(&format!(
        "\n    Somebody deploys in env0: {LOG_LINES} lines of a step's log, {AUDIT_EVENTS} audit events. The deployment's record has"
    ))?;
    say(
        "    an OIDC token for STS. (env0 documents that field, but nobody has seen it filled; a pod's own token does, too.)",
    )?;
    // One line more says how the deployment ended.
    Ok((daemon, AUDIT_EVENTS + LOG_LINES + 1))
}
