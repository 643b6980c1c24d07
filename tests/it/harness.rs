//! Starts the daemon's binary in a clean environment, talks to it, stops it, and reads its spool.

// Every test file uses a part of it.
#![allow(dead_code)]

pub(crate) mod books;
mod client;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use env0_s3_logs::metric_table::{Kind, METRICS, Metric};

pub(crate) use books::{Books, event, wait_until_delivered};
pub(crate) use client::{Answer, Raw, Upload};

use crate::local_aws::LocalAws;

/// The static ingest token of every daemon here; may write both log types.
pub(crate) const TOKEN: &str = "static-token-of-the-tests";
/// Where deployment events go in.
pub(crate) const DEPLOYMENTS: &str = "/v1/logs/env0-deployments";
/// Where audit events go in.
pub(crate) const AUDITS: &str = "/v1/logs/env0-audits";

/// How long a condition may take. Long, so that a busy machine fails no test.
const DEADLINE: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with `what` when it never does.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until `condition` yields a value; panics with `what` when it never does.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain until {what}");
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

/// Panics with `what` where `condition` becomes true within `time`.
pub(crate) fn never_within(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(!condition(), "{what} after {:?}", start.elapsed());
        std::thread::park_timeout(POLL_INTERVAL);
    }
}

/// A configuration and a spool, from which daemons are started, one after the other.
pub(crate) struct Setup {
    environment: BTreeMap<String, String>,
    folder: tempfile::TempDir,
    /// Run by a shell before the daemon.
    limit: Option<&'static str>,
    /// Whose process it is, where it isn't the tests' own user's.
    uid: Option<u32>,
}

impl Setup {
    /// A valid configuration against `aws`: batches of a second, a static token, an OIDC token.
    pub(crate) fn new(aws: &LocalAws) -> Setup {
        let environment = aws.environment().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool").to_str().unwrap().to_owned();
        Setup { environment, folder, limit: None, uid: None }
            .set("ENV0_S3_LOG_SPOOL_DIR", spool)
            .set("ENV0_S3_LOG_LISTEN_ADDR", "127.0.0.1:0")
            .set("ENV0_S3_LOG_ADMIN_ADDR", "127.0.0.1:0")
            .set("ENV0_S3_LOG_INGEST_TOKEN", TOKEN)
            .set("ENV0_S3_LOG_BATCH_MAX_AGE", "1s")
    }

    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Setup {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Starts the daemon under a limit of the shell's, for instance `ulimit -n 64`.
    pub(crate) fn limit(self, limit: &'static str) -> Setup {
        Setup { limit: Some(limit), ..self }
    }

    /// Starts every process as the user `uid`; takes root.
    pub(crate) fn of_user(self, uid: u32) -> Setup {
        Setup { uid: Some(uid), ..self }
    }

    pub(crate) fn unset(mut self, name: &str) -> Setup {
        self.environment.remove(name);
        self
    }

    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// A folder of the test's own, beside the spool.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.environment["ENV0_S3_LOG_SPOOL_DIR"].clone().into()
    }

    /// Names of the files in a type's folder of the spool, sorted; none where there is no folder.
    pub(crate) fn spool_files(&self, log_type: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.spool().join(log_type)) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whether any file of the spool holds `text`, in its name or its bytes.
    pub(crate) fn spool_holds(&self, text: &str) -> bool {
        let mut folders = vec![self.spool()];
        while let Some(folder) = folders.pop() {
            // What is gone between listing and reading was delivered, so it's no longer held.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if entry.file_name().to_string_lossy().contains(text) {
                    return true;
                } else if let Ok(bytes) = std::fs::read(&path)
                    && memchr::memmem::find(&bytes, text.as_bytes()).is_some()
                {
                    return true;
                }
            }
        }
        false
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&self) -> Daemon {
        let daemon = self.spawn();
        wait_until("/readyz answers 200", || daemon.admin_get("/readyz").is_some_and(|answer| answer.status == 200));
        daemon
    }

    /// Starts the daemon and waits until it listens.
    pub(crate) fn spawn(&self) -> Daemon {
        let log = Log::default();
        let child = self.command("run").stderr(log.sink()).spawn().unwrap();
        let mut daemon = Daemon { child, log, listen: ([127, 0, 0, 1], 0).into(), admin: ([127, 0, 0, 1], 0).into() };
        let listening = wait_for("the daemon listens", || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended with {status} in place of listening:\n{}", daemon.log.text());
            }
            let text = daemon.log.text();
            text.lines().find(|line| line.contains("listening")).map(str::to_owned)
        });
        // In either format of the log: `listen.addr=…` or `"listen.addr":"…"`.
        let address = |name: &str| {
            let (_, value) = listening.split_once(name)?;
            let value = value.trim_start_matches(['"', ':', '=']);
            value.split(['"', ' ']).next()?.parse().ok()
        };
        daemon.admin = address("admin.addr").unwrap();
        // One that only pulls has no listener for events.
        daemon.listen = address("listen.addr").unwrap_or(daemon.listen);
        daemon
    }

    /// Starts the daemon and waits until its admin listener answers; the spool may still be recovered.
    pub(crate) fn spawn_starting(&self, admin: SocketAddr) -> Daemon {
        let mut command = self.command("run");
        command.env("ENV0_S3_LOG_ADMIN_ADDR", admin.to_string());
        let log = Log::default();
        let child = command.stderr(log.sink()).spawn().unwrap();
        let daemon = Daemon { child, log, listen: ([127, 0, 0, 1], 0).into(), admin };
        wait_until("the admin listener answers", || daemon.admin_get("/livez").is_some());
        daemon
    }

    /// Runs a command of the binary to its end.
    pub(crate) fn run(&self, command: &str) -> Finished {
        let (out, log) = (Log::default(), Log::default());
        let mut child = self.command(command).stdout(out.sink()).stderr(log.sink()).spawn().unwrap();
        let status = wait_for(&format!("`{command}` ends"), || child.try_wait().unwrap());
        let code = status.code();
        Finished { code, stdout: out.text(), stderr: log.text() }
    }

    /// `command` may hold arguments, parted by spaces.
    fn command(&self, command: &str) -> Command {
        let binary = binary();
        let mut process = match self.limit {
            None => Command::new(binary),
            Some(limit) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]).arg(binary);
                shell
            }
        };
        process.args(command.split_whitespace()).env_clear().envs(&self.environment);
        process.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(uid) = self.uid {
            process.uid(uid);
        }
        process
    }
}

/// The daemon's binary: `DAEMON_BINARY`, a release build perhaps, else the one that is built with the tests.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("DAEMON_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_env0-s3-logs").into()).into()
}

/// A command that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// None when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running daemon; killed when dropped. A test that fails prints its log.
pub(crate) struct Daemon {
    child: Child,
    log: Log,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Daemon {
    /// Posts `body` with the static token.
    pub(crate) fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        self.try_post(path, body).unwrap()
    }

    /// [`Daemon::post`], where the daemon may die in between.
    pub(crate) fn try_post(&self, path: &str, body: impl AsRef<[u8]>) -> std::io::Result<Answer> {
        Upload::post(path).header("Authorization", &format!("Bearer {TOKEN}")).body(body).send(self.listen)
    }

    /// Sends a request of any shape to the ingest listener.
    pub(crate) fn send(&self, upload: Upload) -> Answer {
        upload.send(self.listen).unwrap()
    }

    /// Asks the admin listener; none while it doesn't answer.
    pub(crate) fn admin_get(&self, path: &str) -> Option<Answer> {
        Upload::new("GET", path).send(self.admin).ok()
    }

    /// The value of a metric's sample, for instance `events_accepted_total{type="env0-audits"}`.
    pub(crate) fn metric(&self, sample: &str) -> Option<f64> {
        let answer = self.admin_get("/metrics")?;
        let text = answer.text();
        text.lines().filter(|line| line.starts_with("env0_s3_logs_")).for_each(is_in_the_table);
        let name = format!("env0_s3_logs_{sample} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
    }

    /// Every log line so far.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// `kill -9`, and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, without waiting.
    pub(crate) fn signal_terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// SIGKILL, without waiting.
    pub(crate) fn signal_kill(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    /// SIGHUP: the files are read again.
    pub(crate) fn signal_hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        wait_for("the daemon ends", || child.try_wait().unwrap())
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal_terminate();
        self.wait()
    }
}

/// Dashboards and alerts are made from the table, so a series that isn't in it is seen by nobody.
fn is_in_the_table(line: &str) {
    let (series, _) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    let of_name = |metric: &&Metric| match metric.kind {
        Kind::Histogram => {
            name.strip_prefix(metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
        }
        _ => name == metric.name,
    };
    let metric = METRICS.iter().find(of_name).unwrap_or_else(|| panic!("{line}"));
    if metric.name == "env0_s3_logs_build_info" {
        return;
    }
    for label in labels.split(',').filter(|label| !label.is_empty() && !label.starts_with("le=")) {
        let (label, value) = label.split_once('=').unwrap();
        let known = metric.labels.iter().find(|(known, _)| *known == label);
        assert!(known.is_some_and(|(_, known)| known.iter().any(|known| format!("{known:?}") == value)), "{line}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only where the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}", self.log.text());
        }
    }
}

/// What a process writes. A file, so a line that was written before an answer is seen after it; from a pipe it could
/// come later.
pub(crate) struct Log(std::fs::File);

impl Default for Log {
    fn default() -> Log {
        Log(tempfile::tempfile().unwrap())
    }
}

impl Log {
    fn sink(&self) -> Stdio {
        self.0.try_clone().unwrap().into()
    }

    /// The lines that are whole, each with its end.
    pub(crate) fn text(&self) -> String {
        let mut bytes = vec![0; self.0.metadata().unwrap().len() as usize];
        // Where it stands in the file is the writer's, too, so nothing that moves it may be used here.
        self.0.read_exact_at(&mut bytes, 0).unwrap();
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        String::from_utf8(bytes).unwrap()
    }

    /// Every line of a log in JSON; one that isn't fails the test.
    pub(crate) fn entries(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        self.text().lines().map(parse).collect()
    }

    /// The first entry with exactly this message.
    pub(crate) fn find(&self, message: &str) -> Option<Value> {
        self.entries().into_iter().find(|entry| field(entry, "message") == message)
    }

    /// WARN and ERROR, but for what a start says of this machine's file system.
    pub(crate) fn complaints(&self) -> Vec<Value> {
        let of_the_machine =
            |entry: &Value| field(entry, "message").as_str().is_some_and(|message| message.contains("/spool is on "));
        let complains = |entry: &Value| matches!(entry["level"].as_str(), Some("WARN" | "ERROR"));
        self.entries().into_iter().filter(|entry| complains(entry) && !of_the_machine(entry)).collect()
    }

    /// How many entries of `level` have a message that contains `part`.
    pub(crate) fn count(&self, level: &str, part: &str) -> usize {
        let has = |entry: &Value| {
            entry["level"] == level && field(entry, "message").as_str().is_some_and(|message| message.contains(part))
        };
        self.entries().iter().filter(|entry| has(entry)).count()
    }
}

/// A field of a log entry, wherever the formatter puts it.
pub(crate) fn field<'a>(entry: &'a Value, name: &str) -> &'a Value {
    entry.get(name).unwrap_or(&entry["fields"][name])
}
