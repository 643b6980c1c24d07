//! The steps that ask nobody but this machine.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::Access;
use rustix::io::Errno;

use super::beside::{stored_twice, troubles};
use super::remedies::{of_file, variable, what_to_set};
use super::report::{DAEMON, QUARANTINE, Step};
use crate::admin::client;
use crate::assembly::{Files, spool_settings};
use crate::batch::{self, LogType, SpoolName, counted};
use crate::config::{Config, ConfigErrors, Loaded, Setting};
use crate::credentials;
use crate::exit_code::{CANT_BIND, CANT_CREATE, CONFIG, IO, UNAVAILABLE};
use crate::http::listener;
use crate::ingest::auth::characters_to_escape;
use crate::ingest::opened_beside_a_pull;
use crate::spool::disk::{Disk, OsDisk, judge_folders};
use crate::spool::manifest::{Lock, Manifest, ManifestError};
use crate::spool::named::Named;
use crate::spool::{self, copies, exit_code_of, home};
use crate::status::{Status, Timestamp};
use crate::volume::{self, Cause, name};

/// Less free disk than this is a failure, where the spool may become larger than what is free.
const LEAST_AVAILABLE_BYTES: u64 = 64 << 20;

/// One step for each thing that is wrong, or one that says that nothing is.
pub(super) fn configuration(loaded: &Result<Loaded, ConfigErrors>) -> Vec<Step> {
    const NAME: &str = "configuration";
    let (errors, unknown, warnings) = match loaded {
        Ok(loaded) => (&[][..], &loaded.unknown, &loaded.warnings),
        Err(ConfigErrors { errors, unknown, warnings, .. }) => (&errors[..], unknown, warnings),
    };
    let failures = errors.iter().map(|error| Step::fail(NAME, CONFIG, error, what_to_set(error)));
    let unknown = unknown.iter().map(|unknown| {
        let remedy = format!("correct the name {}, or unset it", variable(unknown));
        Step::fail(NAME, CONFIG, unknown, remedy)
    });
    let mut steps: Vec<_> = failures.chain(unknown).collect();
    steps.extend(warnings.iter().map(|warning| match warning.rsplit_once("; ") {
        Some((detail, remedy)) => Step::warn(NAME, detail, remedy),
        None => Step::warn(NAME, warning, "unset it, or set what counts instead"),
    }));
    if steps.is_empty() {
        steps.push(Step::ok(NAME, "every variable is known and valid"));
    }
    steps
}

/// The status of a daemon that runs with this configuration's admin address.
pub(super) fn daemon(address: SocketAddr) -> Option<Status> {
    client::status(address).ok()
}

pub(super) fn steps(loaded: &Loaded, daemon: Option<&Status>, disk_of_daemon: Option<Step>) -> Vec<Step> {
    let config = &loaded.config;
    let running = match daemon {
        Some(status) => Step::ok(
            DAEMON,
            format!("version {} runs at {}, {:?}", status.version, config.admin_addr, status.phase).to_lowercase(),
        ),
        None => Step::skipped(DAEMON, format!("none answers at {}", config.admin_addr)),
    };
    let mut steps = files(config);
    let both_ways = opened_beside_a_pull(config);
    steps.extend(both_ways.map(|told| stored_twice(&told)));
    steps.extend(token_to_escape(config));
    steps.push(clock());
    steps.push(running);
    steps.extend(disk_of_daemon);
    steps.extend(daemon.into_iter().flat_map(|status| other_settings(loaded, status)));
    steps.extend(daemon.into_iter().flat_map(troubles));
    if daemon.is_none() {
        steps.push(addresses(config));
    }
    steps.extend([spool_dir(&config.spool_dir), lock(config, daemon), manifest(config), disk(config)]);
    steps.extend(quarantine(&config.spool_dir.join(spool::QUARANTINE)));
    steps
}

/// Files that need a person: S3 lacks their events.
fn quarantine(dir: &Path) -> Option<Step> {
    // One that can't be read is the step `spool`'s.
    let files = named_disk().list(dir).unwrap_or_default();
    let count = files.iter().filter(|(name, _)| !name.starts_with('.')).count() as u64;
    (count > 0).then(|| {
        let detail = format!("{} holds {}, which S3 doesn't have", dir.display(), counted(count, "file"));
        let remedy = "read them, copy what is good to S3 or send it again, then move them away; an empty one marks a file that is \
                      gone; see config/README.md#quarantined";
        Step::warn(QUARANTINE, detail, remedy)
    })
}

/// Which protocols can't carry a static token as it is. It is never shown.
fn token_to_escape(config: &Config) -> Option<Step> {
    let found = characters_to_escape(config);
    let has = |characters: &str| found.iter().any(|found| characters.contains(*found));
    let protocols = [
        ("Sumo Logic (in the path)", "/?#%"),
        ("Logz.io and Splunk HEC's ?token= (in the query)", "&#%"),
        ("Logz.io (in JSON)", "\"\\"),
    ];
    let named: Vec<_> = protocols.into_iter().filter(|(_, them)| has(them)).map(|(name, _)| name).collect();
    let shown: Vec<_> = found.iter().map(char::to_string).collect();
    (!named.is_empty()).then(|| {
        let detail = format!(
            "a static token has {} in it, which these carry only escaped: {}",
            shown.join(" "),
            named.join(", ")
        );
        Step::warn(
            "ingest-token",
            detail,
            "nothing where senders use none of these; else a token of letters and digits (openssl rand -hex 32)",
        )
    })
}

/// Whether a daemon can run with this machine's clock.
fn clock() -> Step {
    const NAME: &str = "clock";
    match batch::clock_problem() {
        None => Step::ok(NAME, format!("this machine's clock says {}", Timestamp::now())),
        Some(problem) => Step::fail(NAME, UNAVAILABLE, problem, "set this machine's clock right (chrony, NTP)"),
    }
}

/// Where the running daemon is another one than this configuration is for, or was started before it was changed.
fn other_settings(loaded: &Loaded, status: &Status) -> Option<Step> {
    let config = &loaded.config;
    let here = [config.spool_dir.display().to_string(), config.bucket_name.clone(), config.bucket_path.clone()];
    let there = [&status.spool.dir, &status.destination.bucket, &status.destination.path];
    let told = ["ENV0_S3_LOG_SPOOL_DIR", "ENV0_S3_LOG_BUCKET_NAME", "ENV0_S3_LOG_BUCKET_PATH"];
    let differing = told.iter().zip(here.iter().zip(there)).filter(|(_, (here, there))| here != there);
    let mut differing: Vec<_> =
        differing.map(|(name, (here, there))| format!("{name} is {there:?}, here {here:?}")).collect();
    let digests = loaded.digests();
    let others = loaded.settings.iter().filter(|setting| !told.contains(&setting.variable));
    differing.extend(others.filter_map(|Setting { variable, value, .. }| {
        match (digests.get(*variable), status.settings.get(*variable)) {
            // An older version tells none.
            _ if status.settings.is_empty() => None,
            (here, there) if here == there => None,
            (Some(_), None) => Some(format!("{variable} isn't set, here {value:?}")),
            (None, Some(_)) => Some(format!("{variable} is set, and not here")),
            _ => Some(format!("{variable} has another value, here {value:?}")),
        }
    }));
    (!differing.is_empty()).then(|| {
        let detail = format!("it runs with other settings than this check: {}", differing.join("; "));
        let remedy = "restart the daemon where these are the new settings (SIGHUP reads files alone), or run check with the \
                      daemon's own variables";
        Step::warn(DAEMON, detail, remedy)
    })
}

/// Whether a daemon could listen where it is told to. Only without one: it holds these addresses itself.
fn addresses(config: &Config) -> Step {
    const NAME: &str = "addresses";
    let ingest = config.ingest.then_some(("ENV0_S3_LOG_LISTEN_ADDR", config.listen_addr));
    let wanted: Vec<_> = ingest.into_iter().chain([("ENV0_S3_LOG_ADMIN_ADDR", config.admin_addr)]).collect();
    // All at once, as a daemon does.
    let mut listeners = Vec::new();
    for (variable, address) in &wanted {
        match TcpListener::bind(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) => {
                let (detail, remedy) = listener::cannot_listen(variable, *address, &error);
                return Step::fail(NAME, CANT_BIND, detail, remedy);
            }
        }
    }
    let listed: Vec<_> = wanted.iter().map(|(_, address)| address.to_string()).collect();
    Step::ok(NAME, format!("{} can be listened on", listed.join(" and ")))
}

/// The files that the configuration names, read as a start reads them: one step for each that can't be
/// used, or one that says that all can.
pub(super) fn files(config: &Config) -> Vec<Step> {
    const NAME: &str = "files";
    let tls = config.tls.as_ref();
    let named = [
        config.ingest_token_file.as_ref(),
        tls.map(|tls| &tls.cert),
        tls.map(|tls| &tls.key),
        tls.and_then(|tls| tls.client_ca.as_ref()),
        config.signing_key_file.as_ref(),
        config.network.ca_file.as_ref().map(|(_, path)| path),
        config.oidc_token_file.as_ref().map(|(_, path)| path),
    ];
    let read = match (Files::read(config), credentials::token_file_problem(config)) {
        (read, None) => read,
        (Ok(_), Some(problem)) => Err(vec![problem]),
        (Err(errors), Some(problem)) => Err(errors.into_iter().chain([problem]).collect()),
    };
    match (read, named.into_iter().flatten().count()) {
        (Err(errors), _) => {
            let fail = |error: String| Step::fail(NAME, CONFIG, &error, of_file(&error));
            errors.into_iter().map(fail).collect()
        }
        (Ok(Files { tls: Some(tls), .. }), _) if tls.ended().is_some() => {
            let ended = tls.ended().unwrap_or_default();
            vec![Step::fail(
                NAME,
                CONFIG,
                ended,
                "replace the certificate and its key; a running daemon reads them by itself",
            )]
        }
        (Ok(_), 0) => vec![Step::skipped(NAME, "none is configured")],
        (Ok(_), count) => vec![Step::ok(NAME, format!("{count} can be used"))],
    }
}

/// Whether the spool's folder can be written to, or made.
fn spool_dir(dir: &Path) -> Step {
    const NAME: &str = "spool";
    let fail = |path: &Path, error: &io::Error| {
        let detail = format!("{} can't be used: {error}", path.display());
        Step::fail(NAME, exit_code_of(error), detail, volume::remedy(path, error))
    };
    let is_there = match dir.metadata() {
        Ok(found) => found.is_dir(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => false,
        Err(error) => return fail(dir, &name("stat", dir)(error)),
    };
    if is_there {
        if let Err(error) = judge_folders(&named_disk(), dir, home::needed_folders(dir)) {
            return fail(dir, &error);
        }
        if let Err((path, error)) = judge_rights(dir) {
            return fail(&path, &error);
        }
    }
    // A start makes the spool in the nearest folder above, on the same file system.
    let Some(existing) = volume::nearest_existing(dir) else { return fail(dir, &io::ErrorKind::NotFound.into()) };
    if !existing.is_dir() {
        return fail(&existing, &io::ErrorKind::NotADirectory.into());
    }
    match Probe::write(&existing, b"probe\n").map(Probe::try_what_a_spool_needs) {
        Ok(Ok(())) if is_there => {
            if let Err(error) = judge_folders(&named_disk(), dir, copies::folders(dir)) {
                let detail = format!("the folder for CloudWatch's batches can't be used, and S3 needs none: {error}");
                return Step::warn(NAME, detail, "where CloudWatch Logs is wanted, take away what is there");
            }
            match home::files_of_others(dir) {
                None => Step::ok(NAME, format!("{} can be written to", dir.display())),
                Some(others) => Step::warn(NAME, others, "name a folder of the daemon's own"),
            }
        }
        Ok(Ok(())) => Step::ok(NAME, format!("{} will be made at the first start", dir.display())),
        Ok(Err((call, error))) => Step::fail(
            NAME,
            IO,
            format!("the file system of {} can't do what a spool needs: {call}: {error}", existing.display()),
            match Cause::of(&error) {
                Cause::Disk => volume::remedy(dir, &error),
                _ => volume::ON_A_DISK.to_owned(),
            },
        ),
        Err(error) => fail(&existing, &error),
    }
}

/// Whether this user may do with what the spool holds already what a start does. Asks for the rights and writes nothing,
/// so that a running daemon notices nothing.
///
/// # Errors
/// The folder or file that refuses, and the system's reason.
fn judge_rights(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let allows = |path: PathBuf, access| match rustix::fs::access(&path, access) {
        // A start makes what is missing, and a running daemon removes what it has sent.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err((path.clone(), name("access", &path)(error.into()))),
    };
    allows(Lock::path(dir), Access::READ_OK | Access::WRITE_OK)?;
    for folder in home::needed_folders(dir) {
        allows(folder.clone(), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
        let mut judged = Ok(());
        let visited = named_disk().visit(&folder, &mut |name, _| {
            if judged.is_ok() && name.parse::<SpoolName>().is_ok() {
                judged = allows(folder.join(name), Access::READ_OK | Access::WRITE_OK);
            }
        });
        match visited {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((folder, error)),
            _ => judged?,
        }
    }
    Ok(())
}

/// The file system, whose errors name the call.
fn named_disk() -> Named {
    Named(Arc::new(OsDisk))
}

/// A small file that is removed when this value is dropped.
pub(super) struct Probe(PathBuf);

impl Probe {
    pub(super) fn write(dir: &Path, bytes: &[u8]) -> io::Result<Probe> {
        let path = dir.join(format!("check-{}.tmp", std::process::id()));
        // Whatever has this name is removed, so that nothing is written through a link.
        named_disk().remove(&path)?;
        let mut file = named_disk().create(&path)?;
        let probe = Probe(path);
        file.write_at(bytes, 0)?;
        file.sync()?;
        Ok(probe)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Tries on the probe's own file what `run` does with a spool's.
    ///
    /// # Errors
    /// The call that failed, and the system's reason.
    fn try_what_a_spool_needs(mut self) -> Result<(), (&'static str, io::Error)> {
        let file = std::fs::File::open(&self.0).map_err(|error| ("open", error))?;
        file.try_lock().map_err(|error| ("flock", error.into()))?;
        let long = self.0.with_file_name(format!("check-{:0>width$}.tmp", std::process::id(), width = NAME_BYTES - 10));
        OsDisk.rename(&self.0, &long).map_err(|error| ("rename to a name of 251 bytes", error))?;
        self.0 = long;
        let folder = self.0.parent().unwrap_or(Path::new("."));
        OsDisk.sync_dir(folder).map_err(|error| ("fsync of a folder", error))?;
        named_disk().remove(&self.0).map_err(|error| ("removal of a file", error))
    }
}

/// The longest name that a spool gives: a batch's in quarantine, once its gap is told.
const NAME_BYTES: usize = 251;

impl Drop for Probe {
    fn drop(&mut self) {
        // Where it was not removed already. Should it stay, a spool ignores it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether a start could have the spool, or the running daemon has it.
fn lock(config: &Config, daemon: Option<&Status>) -> Step {
    const NAME: &str = "lock";
    let dir = &config.spool_dir;
    // The instance, too: the same folder can be reached by more than one path.
    let instance = || Manifest::read(&named_disk(), dir).ok().flatten().map(|manifest| manifest.instance);
    let is_its_spool = |status: &Status| {
        status.spool.dir == dir.display().to_string() || instance().is_some_and(|instance| instance == status.instance)
    };
    match Lock::holder(dir) {
        Ok(None) => Step::ok(NAME, "no process uses the spool"),
        Ok(Some(holder)) if daemon.is_some_and(is_its_spool) => {
            Step::ok(NAME, format!("the running daemon (process {holder}) uses the spool"))
        }
        Ok(Some(holder)) => Step::fail(
            NAME,
            CANT_CREATE,
            format!(
                "process {holder} uses the spool, and is not the daemon that would answer at ENV0_S3_LOG_ADMIN_ADDR={}: a \
                 start would be refused",
                config.admin_addr
            ),
            "if that process is the daemon, run check with its own variables; else end it, or set another \
             ENV0_S3_LOG_SPOOL_DIR",
        ),
        Err(error) => {
            let detail = format!("the lock of {} can't be read: {error}", dir.display());
            Step::fail(NAME, exit_code_of(&error), detail, volume::remedy(dir, &error))
        }
    }
}

/// Whether what the spool holds goes where the configuration says.
fn manifest(config: &Config) -> Step {
    const NAME: &str = "manifest";
    let dir = &config.spool_dir;
    let configured = spool_settings(config).destination;
    let batches = match batches_in(dir) {
        Ok(batches) => batches,
        Err(error) => return Step::fail(NAME, IO, error.to_string(), volume::remedy(dir, &error)),
    };
    let found = match Manifest::read(&named_disk(), dir) {
        Ok(None) if batches == 0 => return Step::ok(NAME, "the spool is new"),
        Ok(None) => {
            let missing = ManifestError::Missing { path: dir.clone(), batches };
            return Step::fail(NAME, IO, missing.to_string(), "see config/README.md#it-does-not-start");
        }
        Ok(Some(manifest)) => manifest.destination,
        Err(error @ ManifestError::Newer { .. }) => {
            return Step::fail(NAME, CONFIG, error.to_string(), "run the newer version again");
        }
        Err(ManifestError::Io { path, reason }) => {
            return Step::fail(NAME, IO, format!("{}: {reason}", path.display()), volume::remedy(&path, &reason));
        }
        Err(error) => {
            return Step::fail(NAME, IO, error.to_string(), "see config/README.md#it-does-not-start");
        }
    };
    match found == configured {
        true => Step::ok(NAME, format!("the spool belongs to {found}; in it: {}", counted(batches, "batch"))),
        false if batches == 0 => Step::ok(NAME, format!("the spool is empty, and will belong to {configured}")),
        false => Step::fail(
            NAME,
            CONFIG,
            format!(
                "the spool holds {} for {found}, and the configuration says {configured}",
                counted(batches, "batch")
            ),
            format!(
                "run `env0-s3-logs drain --spool {}` first (with --to-configured if the old place was a mistake), or set the variables back",
                dir.display()
            ),
        ),
    }
}

/// How many batches a start would find. A folder that isn't there has none: a start makes it.
pub(super) fn batches_in(dir: &Path) -> io::Result<usize> {
    let counted =
        LogType::ALL.iter().map(|log_type| match spool::count_in_folder(&named_disk(), &dir.join(log_type.as_str())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            counted => counted.map(|(batches, _)| batches),
        });
    counted.sum()
}

fn disk(config: &Config) -> Step {
    const NAME: &str = "disk";
    let dir = &config.spool_dir;
    let weaknesses = volume::weaknesses(dir);
    let Some(available) = volume::nearest_existing(dir).and_then(|dir| volume::available_bytes(&dir)) else {
        return Step::skipped(NAME, "the file system can't be asked");
    };
    let used: u64 = LogType::ALL.iter().map(|log_type| bytes_in(&dir.join(log_type.as_str()))).sum();
    let (available_mib, limit_mib) = (available >> 20, config.spool_max_bytes >> 20);
    let detail = format!("{available_mib} MiB are free, ENV0_S3_LOG_SPOOL_MAX_BYTES is {limit_mib} MiB");
    let enlarge = "enlarge the disk, or lower ENV0_S3_LOG_SPOOL_MAX_BYTES below what is free";
    let is_small = available.saturating_add(used) < config.spool_max_bytes;
    if is_small && available < LEAST_AVAILABLE_BYTES {
        return Step::fail(NAME, IO, detail, enlarge);
    }
    let detail = match is_small {
        true => format!("{detail}: the disk is full before the spool is"),
        false if weaknesses.is_empty() => return Step::ok(NAME, detail),
        false => detail,
    };
    if weaknesses.is_empty() {
        return Step::warn(NAME, detail, enlarge);
    }
    let remedy = "acknowledged events must outlive a restart of the machine or the pod: put ENV0_S3_LOG_SPOOL_DIR on a local \
                  file system with a journal (ext4 or xfs), on a disk that stays";
    let remedy = if is_small { format!("{remedy}; and {enlarge}") } else { remedy.to_owned() };
    Step::warn(NAME, format!("{}; {detail}", weaknesses.join("; ")), remedy)
}

fn bytes_in(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten();
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}
