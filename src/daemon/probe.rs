//! What `/status`, `/livez` and `/readyz` are answered from.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::admin::{Check, Sources};
use crate::batch::{ByType, LogType};
use crate::cloudwatch::lane::Watched;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::daemon::bucket_facts::BucketFacts;
use crate::daemon::disk_facts::DiskWatch;
use crate::http::refusals;
use crate::ingest::{BothWays, refused, replaced};
use crate::oidc::Verifier;
use crate::pull::Puller;
use crate::spool::Spool;
use crate::status::{
    CredentialsStatus, DeliveryStatus, DestinationStatus, Phase, SpoolStatus, Status, Timestamp, TypeStatus,
};

/// A writer that has been at one piece of work for so long counts as hanging.
pub(super) const WRITER_STALLED: Duration = Duration::from_secs(30);

/// What `/status` and the probes read; filled as the parts come up.
pub(super) struct Probe {
    config: Config,
    settings: BTreeMap<String, String>,
    started_at: Timestamp,
    phase: AtomicU8,
    parts: Mutex<Option<Parts>>,
}

/// The parts that are asked, once they have started.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) spool: Spool,
    pub(super) credentials: Credentials,
    pub(super) verifier: Verifier,
    pub(super) deliveries: ByType<Arc<Mutex<DeliveryStatus>>>,
    pub(super) puller: Option<Puller>,
    pub(super) cloudwatch: Option<Watched>,
    pub(super) disk: Arc<DiskWatch>,
    pub(super) bucket: BucketFacts,
    pub(super) both_ways: BothWays,
}

impl Probe {
    pub(super) fn new(config: Config, settings: BTreeMap<String, String>) -> Arc<Probe> {
        let phase = AtomicU8::new(Phase::Starting as u8);
        Arc::new(Probe { config, settings, started_at: Timestamp::now(), phase, parts: Mutex::new(None) })
    }

    /// From now on `parts` are asked.
    pub(super) fn show(&self, parts: Parts) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = Some(parts);
    }

    fn parts(&self) -> Option<Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Where the daemon is in its life.
    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            phase if phase == Phase::Running as u8 => Phase::Running,
            phase if phase == Phase::Draining as u8 => Phase::Draining,
            _ => Phase::Starting,
        }
    }

    /// How long the slowest spool writer has been at one piece of work.
    pub(super) fn writers_busy_for(&self) -> Duration {
        self.parts().map(|parts| parts.spool.busy_for()).unwrap_or_default()
    }

    /// A snapshot of everything.
    pub(super) fn status(&self) -> Status {
        let config = &self.config;
        let parts = self.parts();
        let spool = parts.as_ref().map(|parts| &parts.spool);
        let disk = parts.as_ref().map(|parts| parts.disk.latest()).unwrap_or_default();
        let of_type = |log_type: LogType| {
            let delivery = parts.as_ref().map(|parts| &parts.deliveries[log_type]);
            TypeStatus {
                log_type,
                pulled_and_sent: parts.as_ref().is_some_and(|parts| parts.both_ways.has_seen(log_type)),
                bytes_replaced: replaced::total(log_type),
                spooled: spool
                    .map(|spool| spool.folder(log_type).status(spool.chain_instance(log_type)))
                    .unwrap_or_default(),
                delivery: delivery
                    .map(|delivery| delivery.lock().unwrap_or_else(PoisonError::into_inner).clone())
                    .unwrap_or_default(),
            }
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: spool.map(|spool| spool.instance().to_owned()).unwrap_or_default(),
            phase: self.phase(),
            started_at: self.started_at,
            now: Timestamp::now(),
            destination: destination(config),
            settings: self.settings.clone(),
            spool: SpoolStatus {
                dir: config.spool_dir.display().to_string(),
                bytes: spool
                    .map_or(0, |spool| LogType::ALL.iter().map(|log_type| spool.usage().used_bytes(*log_type)).sum()),
                limit_bytes: spool.map_or(config.spool_max_bytes, |spool| spool.usage().limit_bytes()),
                disk_available_bytes: disk.available_bytes,
                quarantine_bytes: disk.quarantine_bytes,
                disk_asked_at: disk.asked_at,
            },
            types: LogType::ALL.map(of_type).into(),
            bucket: parts.as_ref().and_then(|parts| parts.bucket.latest()),
            connections_refused_total: refusals::totals(),
            requests_refused_total: refused::totals(),
            pull: parts.as_ref().and_then(|parts| Some(parts.puller.as_ref()?.status())).unwrap_or_default(),
            cloudwatch: parts.as_ref().and_then(|parts| Some(parts.cloudwatch.as_ref()?.status())),
            credentials: parts.map(|parts| CredentialsStatus {
                refused_tokens: parts.verifier.refusals(),
                ..parts.credentials.status()
            }),
        }
    }
}

/// Where objects go.
pub(super) fn destination(config: &Config) -> DestinationStatus {
    DestinationStatus {
        bucket: config.bucket_name.clone(),
        region: config.aws_region.clone(),
        path: config.bucket_path.clone(),
        endpoint: config.endpoint_url_s3.clone(),
    }
}

/// What the admin listener reads. A writer counts as hanging when it has been at one write for longer than `stalled_after`.
pub(super) fn sources(probe: &Arc<Probe>, stalled_after: Duration) -> Sources {
    let (status, live, ready) = (Arc::clone(probe), Arc::clone(probe), Arc::clone(probe));
    Sources {
        status: Box::new(move || status.status()),
        live: Box::new(move || {
            let busy = live.writers_busy_for();
            let stalled =
                (busy > stalled_after).then(|| format!("a writer has been at one write for {} s", busy.as_secs()));
            vec![Check { name: "writers", failure: stalled }]
        }),
        ready: Box::new(move || {
            let phase = ready.phase();
            let starting = (phase == Phase::Starting).then(|| "the spool is being recovered".to_owned());
            let draining = (phase == Phase::Draining).then(|| "a signal asked for the end".to_owned());
            let disk = LogType::ALL.into_iter().find_map(|log_type| ready.parts()?.spool.failing(log_type));
            let disk = disk.map(|error| error.to_string());
            vec![
                Check { name: "started", failure: starting },
                Check { name: "disk", failure: disk },
                Check { name: "not-draining", failure: draining },
            ]
        }),
    }
}

#[cfg(test)]
mod tests;
