//! The daemon as a process of its own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::mpsc;

/// The variables of a daemon.
pub(crate) type Environment = Vec<(&'static str, String)>;

/// The argument on which this program is the daemon.
pub(crate) const ARGUMENT: &str = "daemon";

/// Short, so that nobody waits; the default is a minute.
pub(crate) const BATCH_MAX_AGE: &str = "2s";

/// How long the daemon may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A line for a shell that starts a daemon of the reader's own, whose spool has this name among temporary files.
pub(crate) fn command(mut environment: Environment, spool: &str) -> Result<String> {
    environment.push(("ENV0_S3_LOG_SPOOL_DIR", std::env::temp_dir().join(spool).display().to_string()));
    let variables: Vec<_> = environment.into_iter().map(|(name, value)| format!("{name}='{value}'")).collect();
    Ok(format!("env {} '{}' {ARGUMENT}", variables.join(" "), std::env::current_exe()?.display()))
}

/// A running daemon; killed, and its spool removed, when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// URL of the ingest listener; empty where nothing can be pushed.
    pub(crate) listen: String,
    /// URL of the admin listener.
    pub(crate) admin: String,
    _folder: tempfile::TempDir,
}

impl Daemon {
    /// What a daemon needs beside its operator's settings because several share this machine and nobody wants to wait.
    pub(crate) fn places(folder: &tempfile::TempDir) -> Environment {
        vec![
            ("ENV0_S3_LOG_SPOOL_DIR", folder.path().join("spool").display().to_string()),
            ("ENV0_S3_LOG_ADMIN_ADDR", "127.0.0.1:0".into()),
            ("ENV0_S3_LOG_BATCH_MAX_AGE", BATCH_MAX_AGE.into()),
        ]
    }

    /// Starts it with these variables and no others, and waits until it listens. `folder` goes with it.
    pub(crate) async fn start(environment: &Environment, folder: tempfile::TempDir) -> Result<Daemon> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .env_clear()
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            // A terminal's Ctrl-C is for the quickstart, which ends the daemon then.
            .process_group(0)
            .stderr(Stdio::piped())
            .spawn()
            .context("the daemon could not be started")?;
        let log = BufReader::new(child.stderr.take().context("the daemon's log is piped")?);
        let mut daemon = Daemon { child, listen: String::new(), admin: String::new(), _folder: folder };
        (daemon.listen, daemon.admin) = addresses(log).await?;
        Ok(daemon)
    }

    /// SIGTERM, as an orchestrator would, and waits for the end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        let mut poll = tokio::time::interval(Duration::from_millis(20));
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            poll.tick().await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only where the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The URLs of both listeners, from the daemon's log. Reads that log on, so that the daemon never
/// waits for a reader; an error that ends the daemon is shown in full.
async fn addresses(log: impl BufRead + Send + 'static) -> Result<(String, String)> {
    let (sender, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        // Nobody receives once the addresses are known.
        log.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    });
    let mut seen = String::new();
    let listening = async {
        while let Some(line) = lines.recv().await {
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            let field =
                |name: &str| entry.get(name).unwrap_or(&entry["fields"][name]).as_str().unwrap_or_default().to_owned();
            if field("message") == "listening" {
                let listen = Some(field("listen.addr")).filter(|address| !address.is_empty());
                let listen = listen.map(|address| format!("http://{address}")).unwrap_or_default();
                return Some((listen, format!("http://{}", field("admin.addr"))));
            }
            seen += &format!("{line}\n");
        }
        None
    };
    let found = tokio::time::timeout(START_DEADLINE, listening).await.unwrap_or_default();
    found.with_context(|| format!("the daemon does not listen; its log:\n{seen}"))
}
