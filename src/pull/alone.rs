//! Notices another daemon on this host that pulls the same organization into the same bucket.
//!
//! Two such daemons store everything twice. A daemon on another host is not noticed: env0 doesn't tell who else asks,
//! and the role may not read the bucket. The sign is a socket name that one process at a time can hold, within this
//! host's (or pod's) network namespace. If another program holds the name, the daemon warns for nothing, and goes on.

use std::io;
use std::os::unix::net::UnixDatagram;

use crate::batch::Sha256;
use crate::config::{Config, Pull};

/// Holds the name until it is dropped.
pub(super) struct Sign(#[expect(dead_code, reason = "held, not used")] Option<UnixDatagram>);

/// Binds an abstract socket named after API, organization and bucket, so that a second daemon on this host notices, and
/// warns.
pub(super) fn show_sign(config: &Config, pull: &Pull, organization: &str) -> Sign {
    let held = bind(&name(config, pull, organization));
    if is_in_use(&held) {
        tracing::warn!(
            organization,
            "another daemon on this host pulls this organization into the same bucket: both store every event, so each \
             is there twice; stop one of the two"
        );
    }
    Sign(held.ok())
}

/// Whether a process on this host pulls this organization into this bucket.
pub fn is_pulled_by_another(config: &Config, pull: &Pull, organization: &str) -> bool {
    is_in_use(&bind(&name(config, pull, organization)))
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
