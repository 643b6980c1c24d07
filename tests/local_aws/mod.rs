//! A local AWS in the process: S3, STS, CloudWatch Logs and an OIDC issuer on loopback, speaking the real protocols.
//!
//! [`store`] is S3 by the `s3s` crate over a store in memory: SigV4, session tokens, conditional puts,
//! checksums, and a role that holds exactly the two statements that env0 documents. [`sts`] answers
//! AssumeRoleWithWebIdentity and hands out sessions that really expire. [`issuer`] mints tokens and
//! publishes its keys. [`logs`] is CloudWatch Logs, with its limits. All can be told to fail. Shared by the quickstart
//! and the integration tests.

// Each of the two programs that share this module uses a part of it.
#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used)]

pub(crate) mod http;
pub(crate) mod issuer;
pub(crate) mod logs;
pub(crate) mod sessions;
pub(crate) mod store;
pub(crate) mod sts;

use std::sync::Arc;

pub(crate) use issuer::Issuer;
pub(crate) use logs::{Logs, LogsFault};
use sessions::Sessions;
pub(crate) use store::{Fault, Object, Operation, Request, Store};
pub(crate) use sts::Sts;

/// The bucket that exists.
pub(crate) const BUCKET: &str = "acme-env0-logs";
/// The region of the bucket and of the STS endpoint.
pub(crate) const REGION: &str = "eu-west-1";
/// The role that can be assumed.
pub(crate) const ROLE_ARN: &str = "arn:aws:iam::111122223333:role/env0-log-writer";
/// The role that may write to CloudWatch Logs; it trusts the same tokens.
pub(crate) const CLOUDWATCH_ROLE_ARN: &str = "arn:aws:iam::111122223333:role/env0-cloudwatch-writer";
/// The region of the log groups.
pub(crate) const CLOUDWATCH_REGION: &str = "us-west-2";
/// The account that owns bucket and role.
pub(crate) const ACCOUNT: &str = "111122223333";
/// The identity that may read the bucket: access key and secret, for `verify`.
pub(crate) const AUDITOR: (&str, &str) = ("AKIALOCALAUDITOR0001", "local-auditor-secret-key");

/// S3, STS, CloudWatch Logs and issuer, running until dropped.
pub(crate) struct LocalAws {
    pub(crate) s3: Arc<Store>,
    pub(crate) sts: Arc<Sts>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) issuer: Arc<Issuer>,
    sessions: Arc<Sessions>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl LocalAws {
    /// Starts all of them, each on a free loopback port.
    pub(crate) fn start() -> LocalAws {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let sessions = Arc::new(Sessions::default());
        let (s3, sts, logs, issuer) = runtime.block_on(async {
            let issuer = Issuer::start().await;
            let sts = Sts::start(issuer.clone(), sessions.clone()).await;
            (Store::start(sessions.clone()).await, sts, Logs::start(sessions.clone()).await, issuer)
        });
        LocalAws { s3, sts, logs, issuer, sessions, runtime: Some(runtime) }
    }

    /// The variables that point a daemon here, with a good token in `ENV0_OIDC_TOKEN`.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = self.environment_without_token();
        environment.push(("ENV0_OIDC_TOKEN", self.issuer.token()));
        environment
    }

    /// The variables that point a daemon here; it has no token and waits for one.
    pub(crate) fn environment_without_token(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ENV0_S3_LOG_ROLE_ARN", ROLE_ARN.into()),
            ("ENV0_S3_LOG_BUCKET_NAME", BUCKET.into()),
            ("ENV0_S3_LOG_AWS_REGION", REGION.into()),
            ("ENV0_S3_LOG_OIDC_ISSUER", self.issuer.url()),
            ("ENV0_S3_LOG_FORCE_PATH_STYLE", "true".into()),
            ("AWS_ENDPOINT_URL_S3", self.s3.url()),
            ("AWS_ENDPOINT_URL_STS", self.sts.url()),
        ]
    }

    /// The variables that make a daemon write to CloudWatch Logs, too.
    pub(crate) fn cloudwatch_environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("ENV0_CLOUDWATCH_ROLE_ARN", CLOUDWATCH_ROLE_ARN.into()),
            ("ENV0_CLOUDWATCH_AWS_REGION", CLOUDWATCH_REGION.into()),
            ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", self.logs.url()),
        ]
    }

    /// The variables of an auditor's standard AWS chain, for `verify`.
    pub(crate) fn auditor_environment(&self) -> Vec<(&'static str, String)> {
        vec![("AWS_ACCESS_KEY_ID", AUDITOR.0.into()), ("AWS_SECRET_ACCESS_KEY", AUDITOR.1.into())]
    }

    /// Ends every session now, before the expiration that its holder was told.
    pub(crate) fn expire_all_sessions(&self) {
        self.sessions.expire_all();
    }
}

impl Drop for LocalAws {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
