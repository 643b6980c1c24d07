//! Notices another daemon on this host that pulls the same organization into the same bucket.
//!
//! Two such daemons store everything twice. A daemon on another host is not noticed: env0 doesn't tell who else asks,
//! and the role may not read the bucket. The sign is a socket name that one process at a time can hold, within this
//! host's (or pod's) network namespace. If another program holds the name, the daemon warns for nothing, and goes on.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::batch::Sha256;
use crate::config::{Config, Pull};
use crate::spool::LOCK;

/// Holds the name until it is dropped.
pub(super) struct Sign(#[expect(dead_code, reason = "held, not used")] Option<UnixDatagram>);

/// Binds an abstract socket named after API, organization and bucket, so that a second daemon on this host notices, and
/// warns.
pub(super) fn show_sign(config: &Config, pull: &Pull, organization: &str) -> Sign {
    let name = name(config, pull, organization);
    let held = bind(&name);
    if is_in_use(&held) {
        let organization = organization.to_owned();
        tokio::task::spawn_blocking(move || {
            tracing::warn!(
                organization,
                "another daemon on this host pulls this organization into the same bucket{}: both store every event, so \
                 each is there twice; stop one of the two",
                holder(&name)
            );
        });
    }
    Sign(held.ok())
}

/// Whether another process on this host pulls this organization into this bucket: `None`, or words on its id and its
/// spool, which are empty where it can't be seen.
pub fn pulled_by_another(config: &Config, pull: &Pull, organization: &str) -> Option<String> {
    let name = name(config, pull, organization);
    is_in_use(&bind(&name)).then(|| holder(&name))
}

fn name(config: &Config, pull: &Pull, organization: &str) -> String {
    let endpoint = config.endpoint_url_s3.as_deref().unwrap_or_default();
    let parts = [&*pull.api_url, organization, endpoint, &*config.bucket_name, &*config.bucket_path];
    format!("env0-s3-logs/pull/{}", Sha256::of(parts.join("\n").as_bytes()))
}

fn is_in_use(held: &io::Result<UnixDatagram>) -> bool {
    held.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Binds an abstract name: it is no file, and the kernel frees it when the process ends.
#[cfg(target_os = "linux")]
fn bind(name: &str) -> io::Result<UnixDatagram> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

/// Other systems have no abstract names, so a second daemon is not noticed there.
#[cfg(not(target_os = "linux"))]
fn bind(_: &str) -> io::Result<UnixDatagram> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The process that holds the name, and its spool, in words. Empty where that can't be seen: of another user, or in
/// another container of the pod. Looks at the open files of every process.
fn holder(name: &str) -> String {
    let process = socket_of(name).and_then(|socket| processes().find(|fds| targets(fds).contains(&socket)));
    let Some(fds) = process else { return String::new() };
    let id = fds.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let lock = targets(&fds).into_iter().find(|target| target.ends_with(LOCK));
    let spool = lock.as_deref().and_then(Path::parent).map(|spool| format!(", spool {}", spool.display()));
    format!(" (process {id}{})", spool.unwrap_or_default())
}

/// What the file descriptor of the abstract socket `name` points to.
fn socket_of(name: &str) -> Option<PathBuf> {
    // Names of others need not be UTF-8.
    let bytes = fs::read("/proc/net/unix").ok()?;
    let sockets = String::from_utf8_lossy(&bytes);
    let line = sockets.lines().find(|line| line.ends_with(&format!(" @{name}")))?;
    line.split_whitespace().nth(6).map(|inode| format!("socket:[{inode}]").into())
}

/// The folder of file descriptors of each process.
fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    ids.map(|entry| entry.path().join("fd"))
}

/// What a process's file descriptors point to.
fn targets(fds: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(fds).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}
