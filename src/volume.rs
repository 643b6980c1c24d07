//! The file system that a directory is on: what is left of it, and whether it outlives the machine.

use std::path::{Path, PathBuf};

/// What the file system of a directory has left for this user, in bytes; `None` when it can't be asked.
pub fn available_bytes(dir: &Path) -> Option<u64> {
    let statistics = rustix::fs::statvfs(dir).ok()?;
    Some(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}

/// Why what is written to `dir` would not survive, in words; `None` where it does, or where nothing is known.
///
/// A directory that does not exist yet is judged by the nearest one above it that does.
pub fn forgets(dir: &Path) -> Option<String> {
    let existing = nearest_existing(dir)?.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mount_of(&mounts, &existing)?;
    let dir = dir.display();
    if mount.root.contains("/kubernetes.io~empty-dir/") {
        Some(format!("{dir} is on an emptyDir: its events are lost with the pod; use a PersistentVolumeClaim"))
    } else if matches!(mount.file_system, "tmpfs" | "ramfs") {
        Some(format!("{dir} is on {}: its events are lost with the machine's memory; use a disk", mount.file_system))
    } else {
        None
    }
}

/// `dir`, or the nearest directory above it that exists.
pub fn nearest_existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    absolute.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_path_buf)
}

struct Mount<'a> {
    /// The part of the file system that is mounted.
    root: String,
    file_system: &'a str,
}

/// The mount that holds `path`: of the deepest mount point the one that was mounted last.
fn mount_of<'a>(mountinfo: &'a str, path: &Path) -> Option<Mount<'a>> {
    let parse = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), PathBuf::from(unescape(fields.next()?)));
        let depth = path.starts_with(&point).then(|| point.components().count())?;
        Some((depth, Mount { root, file_system: after.split(' ').next()? }))
    };
    mountinfo.lines().filter_map(parse).max_by_key(|(depth, _)| *depth).map(|(_, mount)| mount)
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /tmp rw shared:3 - tmpfs tmpfs rw
3 1 8:1 /var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/spool /var/lib/env0-s3-logs rw - ext4 /dev/sda1 rw
4 1 8:2 / /mnt/with\\040space rw - xfs /dev/sdb rw
5 2 8:3 / /tmp rw - ext4 /dev/sdc rw
";

    #[test]
    fn the_deepest_and_latest_mount_holds_a_path() {
        let of = |path: &str| mount_of(MOUNTS, Path::new(path)).map(|mount| mount.file_system).unwrap();
        assert_eq!(of("/var/lib"), "ext4");
        assert_eq!(of("/mnt/with space/spool"), "xfs");
        assert_eq!(of("/tmp/x"), "ext4", "mounted over the tmpfs");
        let empty_dir = mount_of(MOUNTS, Path::new("/var/lib/env0-s3-logs/env0-audits")).unwrap();
        assert!(empty_dir.root.contains("kubernetes.io~empty-dir"));
    }

    #[test]
    fn memory_forgets_and_a_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let shared_memory = Path::new("/dev/shm");
        if !shared_memory.exists() {
            return;
        }
        let words = forgets(&shared_memory.join("not/there/yet")).unwrap_or_default();
        assert!(words.contains("is on tmpfs"), "{words}");
    }
}
