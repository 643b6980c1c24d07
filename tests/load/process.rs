//! Processes on the measured core, and what the kernel says about them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

/// First argument of this program where it pins itself and then becomes another.
pub(crate) const PINNED: &str = "pinned";
/// Clock ticks a second in `/proc/<pid>/stat`; the same on every Linux that Rust knows.
const TICKS_PER_SECOND: f64 = 100.0;

/// Pins this process to a core and becomes `program`.
pub(crate) fn run_pinned(core: &str, program: &str, arguments: &[&str]) -> Result<()> {
    pin(core.parse()?)?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| program.to_owned())
}

/// Pins this thread, and those that it will start.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).context("can't choose a core")
}

/// Builds the daemon with the features that it is shipped with, and says where it is.
pub(crate) fn build_daemon() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let built = Command::new(cargo)
        .args(["build", "--release", "--bin", "env0-s3-logs", "--manifest-path"])
        .arg(&manifest)
        .status()?;
    ensure!(built.success(), "the daemon can't be built");
    // This program is target/release/examples/load.
    let folder = std::env::current_exe()?.ancestors().nth(2).map(Path::to_owned);
    Ok(folder.context("an executable is in a folder")?.join("env0-s3-logs"))
}

/// A process on the measured core; killed when dropped.
pub(crate) struct Pinned {
    child: Child,
    /// Until it said what it listens on.
    pub(crate) start_to_ready: Duration,
    pub(crate) address: SocketAddr,
}

impl Pinned {
    /// Starts `program` and waits for the first line, on standard output and error alike, in which
    /// `find` sees the address that it listens on.
    pub(crate) fn start(
        core: usize,
        program: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
        find: impl Fn(&str) -> Option<SocketAddr>,
    ) -> Result<Pinned> {
        let started = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .args([PINNED, &core.to_string()])
            .arg(program)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = BufReader::new(child.stderr.take().context("standard error is piped")?);
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            if said.read_line(&mut line)? == 0 {
                bail!("{} ended; it had said:\n{seen}", program.display());
            }
            if let Some(address) = find(&line) {
                break address;
            }
            seen += &line;
        };
        let start_to_ready = started.elapsed();
        // Whatever it says later is worth seeing: a good run says nothing.
        std::thread::spawn(move || {
            said.lines()
                .map_while(Result::ok)
                .filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""))
                .for_each(|line| eprintln!("\n{line}"));
        });
        Ok(Pinned { child, start_to_ready, address })
    }

    /// User and system time of all its threads so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(&self.child.id().to_string())
    }

    /// A `Vm…` line of `/proc/<pid>/status`, in MiB.
    pub(crate) fn memory_mib(&self, line: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let kib: f64 = value.and_then(|value| value.split_whitespace().next()).context("no such line")?.parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Fails only where the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process (`self` is one, too).
pub(crate) fn cpu_seconds(process: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may hold anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks: Vec<f64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}
