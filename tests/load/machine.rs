//! The machine that the figures are from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::process;

/// Who runs where.
pub(crate) struct Cores {
    /// The daemon and the yardsticks.
    pub(crate) measured: usize,
    /// The client and the local AWS.
    client: usize,
}

impl Cores {
    /// The last two that this process may use.
    pub(crate) fn choose() -> Result<Cores> {
        let allowed = sched_getaffinity(None)?;
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).rev();
        let (measured, client) = (allowed.next(), allowed.next());
        let client = client.context("two cores are needed: one for the daemon, one for its clients and S3")?;
        Ok(Cores { measured: measured.unwrap_or_default(), client })
    }

    /// From here on this process, with the threads that it starts, stays off the measured core.
    pub(crate) fn take_client_core(&self) -> Result<()> {
        process::pin(self.client)
    }
}

/// Beside the build, which is on a disk where `/tmp` may be memory.
pub(crate) fn scratch_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join("load")
}

/// Prints what the figures depend on.
pub(crate) fn describe(cores: &Cores, spool: &Path, binary: &Path) -> Result<()> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let system = rustix::system::uname();
    let (device, kind) = file_system(spool)?;
    let binary_mib = std::fs::metadata(binary)?.len() as f64 / f64::from(1 << 20);
    println!("processor    {}", model.map_or("unknown", |(_, model)| model));
    println!("kernel       {} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy());
    println!("spool        {kind} on {device}, fsync on");
    println!("cores        {} for the daemon, {} for clients, S3 and STS", cores.measured, cores.client);
    println!("binary       {binary_mib:.1} MiB");
    ensure!(kind != "tmpfs", "{} is in memory: an fsync costs nothing there; choose --spool", spool.display());
    Ok(())
}

/// Device and kind of the file system that a folder is on.
fn file_system(folder: &Path) -> Result<(String, String)> {
    let folder = folder.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        folder.starts_with(point).then(|| (point.len(), device.to_owned(), kind.to_owned()))
    });
    let (_, device, kind) = mounts.max_by_key(|(length, ..)| *length).context("no file system under the spool")?;
    Ok((device, kind))
}
