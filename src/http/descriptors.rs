//! File descriptors: as many as the system grants, and some of them kept for the spool and the uploads.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The admin listener, connections that are closed and not gone yet, the runtime, the spool, resolvers,
/// calls to STS and to the issuer.
const KEPT: u64 = 256;

/// Raises the soft limit to the hard one; the limit from then on.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
    // None is no limit.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of the `wanted` connections there may be under a `limit` of open files, so that `uploads` at once, each
/// with a file and a socket, and the spool have theirs. At a limit that is too low for all, a quarter of it.
pub fn connections_within(limit: u64, wanted: usize, uploads: usize) -> usize {
    let kept = KEPT.saturating_add(2 * uploads as u64);
    let left = limit.saturating_sub(kept).max(limit / 4).max(1);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_spool_and_uploads() {
        assert_eq!(connections_within(1_048_576, 1024, 8), 1024);
        assert_eq!(connections_within(1024, 1024, 8), 1024 - 256 - 16);
        assert_eq!(connections_within(64, 1024, 8), 16);
        assert_eq!(connections_within(u64::MAX, 1024, 8), 1024);
    }
}
