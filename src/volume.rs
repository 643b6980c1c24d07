//! The file system that a folder is on: what is left of it, and whether it outlives the machine.

use std::fmt;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// What the file system of a folder has left for this user, in bytes; `None` when it can't be asked.
pub fn available_bytes(dir: &Path) -> Option<u64> {
    let statistics = rustix::fs::statvfs(dir).ok()?;
    Some(statistics.f_bavail.saturating_mul(statistics.f_frsize))
}

/// Why what is written to `dir` may be lost, or changed by others: a sentence for each reason that is known.
///
/// A folder that does not exist yet is judged by the nearest one above it that does.
pub fn weaknesses(dir: &Path) -> Vec<String> {
    let Some(existing) = nearest_existing(dir).and_then(|existing| existing.canonicalize().ok()) else {
        return Vec::new();
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let words = mount_of(&mounts, &existing).map(|mount| mount.weaknesses(&Ext4::of(&mount))).unwrap_or_default();
    // Not refused: a kubelet makes its volumes so, and only the pod's own processes reach them there.
    let open = dir
        .metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0)
        .then_some("lets every user of the machine write: who can put files there can take events away; chmod o-w");
    let dir = dir.display();
    words.iter().map(|words| format!("{dir} is on {words}")).chain(open.map(|words| format!("{dir} {words}"))).collect()
}

/// `dir`, or the nearest folder above it that exists. A link that leads nowhere exists: no folder can be made of it. What
/// can't be looked at exists, too, because only "no such file" says that it doesn't.
pub fn nearest_existing(dir: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dir).ok()?;
    let is_missing = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    absolute
        .ancestors()
        .find(|path| !path.symlink_metadata().is_err_and(|error| is_missing(&error)))
        .map(Path::to_path_buf)
}

/// What an error says of a spool. Remedies and exit codes follow from this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The disk is full, or a quota is used up.
    Full,
    /// The file system takes no writes.
    ReadOnly,
    /// Something else has the place of the spool, or of a folder or a file in it.
    Place,
    /// This user can't get there, or may not write there.
    Rights,
    /// The process or the machine has none left of what it may use.
    Exhausted,
    /// The file system can't do what a spool needs.
    Lacking,
    /// The disk failed, or the server that a file system is on.
    Disk,
}

impl Cause {
    /// The cause of an error. One of the system's that no other cause has is the disk's: a disk that fails has many of
    /// them (EIO, EUCLEAN, EBADMSG, ESTALE, EREMOTEIO, ENODATA), and no right and no path would help.
    pub fn of(error: &io::Error) -> Cause {
        use io::ErrorKind::*;
        let errno = errno(error);
        match error.kind() {
            StorageFull | QuotaExceeded => Cause::Full,
            ReadOnlyFilesystem => Cause::ReadOnly,
            AlreadyExists | NotADirectory | IsADirectory | DirectoryNotEmpty => Cause::Place,
            PermissionDenied => Cause::Rights,
            // Without a number of the system's, the daemon itself has found what it doesn't want.
            NotFound if errno.is_some() => Cause::Rights,
            _ => match errno {
                None | Some(Errno::LOOP) => Cause::Place,
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::FBIG) => Cause::Exhausted,
                Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NAMETOOLONG | Errno::NOLCK) => {
                    Cause::Lacking
                }
                Some(_) => Cause::Disk,
            },
        }
    }
}

#[derive(Debug)]
struct FailedCall {
    call: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for FailedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.call, self.path.display(), self.source)
    }
}

impl std::error::Error for FailedCall {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// For `map_err`. An error that names its call already keeps that one.
pub fn name(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |source| match source.get_ref() {
        Some(error) if error.is::<FailedCall>() => source,
        _ => io::Error::new(source.kind(), FailedCall { call, path: path.to_owned(), source }),
    }
}

/// The system's own error in one that names the call, for those who may not know of the spool's paths.
pub fn unnamed(error: &io::Error) -> &io::Error {
    let failed = error.get_ref().and_then(|error| error.downcast_ref::<FailedCall>());
    failed.map_or(error, |failed| &failed.source)
}

/// The system's number of an error, also of one that names the call that failed.
pub fn errno(error: &io::Error) -> Option<Errno> {
    unnamed(error).raw_os_error().map(Errno::from_raw_os_error)
}

/// The remedy where a file system can't do what a spool needs.
pub const ON_A_DISK: &str = "put ENV0_S3_LOG_SPOOL_DIR on a local file system (NFS: with its lock service)";

/// What to do when the system refused, with `error`, what a spool needs of `path`.
pub fn remedy(path: &Path, error: &io::Error) -> String {
    use io::ErrorKind::{AlreadyExists, NotADirectory};
    match Cause::of(error) {
        Cause::Full => {
            "free or enlarge the disk (`df -h` and `df -i` tell what is full); a running daemon goes on by itself"
                .to_owned()
        }
        Cause::ReadOnly => {
            "mount the file system so that it can be written to; where it turned read-only by itself, `dmesg` tells why"
                .to_owned()
        }
        Cause::Place if !matches!(error.kind(), AlreadyExists | NotADirectory) => {
            "move away what has the name; a start makes what is missing".to_owned()
        }
        Cause::Place if path.is_symlink() => {
            "it is a link that leads nowhere: make or mount the folder that it names, or name another folder in ENV0_S3_LOG_SPOOL_DIR"
                .to_owned()
        }
        Cause::Place => {
            "ENV0_S3_LOG_SPOOL_DIR must be a folder, and a file has that name: move the file away, or name another folder"
                .to_owned()
        }
        Cause::Exhausted => "raise what the daemon may use (`ulimit -n` and `-f`, memory), then start again".to_owned(),
        Cause::Lacking => ON_A_DISK.to_owned(),
        Cause::Disk => "the disk failed (`dmesg` tells why): mend or replace it, then start again".to_owned(),
        Cause::Rights => {
            let uid = rustix::process::geteuid().as_raw();
            let path = std::path::absolute(path).unwrap_or_default();
            let owned = path.ancestors().find_map(|path| Some((path.metadata().ok()?.uid(), path)));
            if let Some((_, path)) = owned.filter(|(owner, _)| *owner == uid) {
                return format!("{0} belongs to uid {uid} already, whom its mode shuts out: chmod u+rwX {0}", path.display());
            }
            let owned = owned.map(|(owner, path)| format!("{} belongs to uid {owner}; ", path.display()));
            format!(
                "{}ENV0_S3_LOG_SPOOL_DIR must be a folder that uid {uid} may write to (chown; Kubernetes: fsGroup; systemd: StateDirectory)",
                owned.unwrap_or_default()
            )
        }
    }
}

struct Mount<'a> {
    /// `<major>:<minor>` of the device.
    device: &'a str,
    /// The part of the file system that is mounted.
    root: String,
    file_system: &'a str,
    /// The options of the mount and of the file system.
    options: Vec<&'a str>,
}

impl Mount<'_> {
    /// What an operator has to know of the file system, each after "is on".
    fn weaknesses(&self, ext4: &Ext4) -> Vec<String> {
        let file_system = self.file_system;
        let mut words = Vec::new();
        if self.root.contains("/kubernetes.io~empty-dir/") {
            words.push("an emptyDir: its events are lost with the pod; use a PersistentVolumeClaim".to_owned());
        }
        match file_system {
            "tmpfs" | "ramfs" => {
                words.push(format!("{file_system}: its events are lost with the machine's memory; use a disk"));
            }
            "overlay" => words.push(
                "overlay, as a container's own files are: its events are lost with the container; mount a volume".into(),
            ),
            "nfs" | "nfs4" | "cifs" | "smb3" | "9p" => words.push(format!(
                "{file_system}: an fsync is worth what the server makes of it (never export it async), and events are answered 503 while the server is away; a disk of the machine's own is safer"
            )),
            fuse if fuse.starts_with("fuse") && fuse != "fuseblk" => words.push(format!(
                "{fuse}: whether an fsync or a rename reaches a disk is that program's choice, and many don't; use a disk"
            )),
            _ => {}
        }
        if ext4.has_no_journal {
            words.push("ext4 without a journal: a power cut takes acknowledged events with it; make one (tune2fs -O has_journal)".into());
        }
        if ext4.has_fast_commit {
            words.push("ext4 with fast_commit, which can lose a renamed file in a power cut; turn it off (tune2fs -O ^fast_commit)".into());
        }
        if self.options.iter().any(|option| matches!(*option, "nobarrier" | "barrier=0")) {
            words.push(format!(
                "{file_system} mounted with nobarrier: a power cut takes acknowledged events with it; mount it without"
            ));
        }
        if self.options.contains(&"volatile") {
            words.push(format!("{file_system} mounted volatile: no fsync reaches a disk; mount it without"));
        }
        words
    }
}

/// What only the kernel's own files tell of an ext4; false where they can't be read.
#[derive(Default)]
struct Ext4 {
    has_no_journal: bool,
    has_fast_commit: bool,
}

impl Ext4 {
    fn of(mount: &Mount) -> Ext4 {
        let device = std::fs::read_link(format!("/sys/dev/block/{}", mount.device)).ok();
        let Some(device) = device.as_deref().and_then(Path::file_name).filter(|_| mount.file_system == "ext4") else {
            return Ext4::default();
        };
        let read = |folder: &str, file: &str| {
            std::fs::read_to_string(Path::new(folder).join(device).join(file)).unwrap_or_default()
        };
        Ext4 {
            has_no_journal: read("/sys/fs/ext4", "journal_task").trim() == "<none>",
            has_fast_commit: read("/proc/fs/ext4", "options").lines().any(|option| option == "fast_commit")
                || read("/proc/fs/ext4", "fc_info")
                    .lines()
                    .any(|line| line.strip_suffix(" commits").is_some_and(|commits| commits.trim() != "0")),
        }
    }
}

/// The mount that holds `path`: of the deepest mount point the one that was mounted last.
fn mount_of<'a>(mountinfo: &'a str, path: &Path) -> Option<Mount<'a>> {
    let parse = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        let device = fields.next()?;
        let (root, point) = (unescape(fields.next()?), PathBuf::from(unescape(fields.next()?)));
        let depth = path.starts_with(&point).then(|| point.components().count())?;
        let mut super_block = after.split(' ');
        let file_system = super_block.next()?;
        let options = fields.next()?.split(',').chain(super_block.nth(1).unwrap_or_default().split(',')).collect();
        Some((depth, Mount { device, root, file_system, options }))
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
    fn each_file_system_that_may_break_the_promise_is_told_with_its_reason() {
        let told = |line: &str, ext4: Ext4| mount_of(line, Path::new("/s/x")).unwrap().weaknesses(&ext4).join("; ");
        let of = |file_system: &str, options: &str| {
            told(&format!("3 1 8:1 / /s rw,noatime - {file_system} /dev/sda1 rw{options}"), Ext4::default())
        };
        for sound in ["ext4", "xfs", "btrfs", "fuseblk"] {
            assert_eq!(of(sound, ""), "");
        }
        let words = [
            ("tmpfs", "", "memory"),
            ("overlay", "", "container"),
            ("overlay", ",volatile", "no fsync"),
            ("nfs4", "", "async"),
            ("fuse.s3fs", "", "that program's choice"),
            ("ext4", ",nobarrier", "nobarrier"),
            ("ext4", ",barrier=0", "nobarrier"),
        ];
        for (file_system, options, expected) in words {
            let words = of(file_system, options);
            assert!(words.contains(expected) && words.contains(file_system), "{file_system}{options}: {words}");
        }
        let ext4 = "3 1 8:1 / /s rw - ext4 /dev/sda1 rw";
        assert!(told(ext4, Ext4 { has_no_journal: true, ..Ext4::default() }).contains("without a journal"));
        assert!(told(ext4, Ext4 { has_fast_commit: true, ..Ext4::default() }).contains("fast_commit"));
    }

    #[test]
    fn an_error_has_one_cause_whether_or_not_it_names_its_call() {
        for (errnos, cause) in [
            (&[Errno::NOSPC, Errno::DQUOT][..], Cause::Full),
            (&[Errno::ROFS], Cause::ReadOnly),
            (&[Errno::EXIST, Errno::NOTDIR, Errno::ISDIR, Errno::LOOP], Cause::Place),
            (&[Errno::ACCESS, Errno::PERM, Errno::NOENT], Cause::Rights),
            (&[Errno::MFILE, Errno::NFILE, Errno::NOMEM], Cause::Exhausted),
            (&[Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NAMETOOLONG, Errno::NOLCK], Cause::Lacking),
            (&[Errno::IO, Errno::UCLEAN, Errno::STALE, Errno::REMOTEIO, Errno::BADMSG, Errno::NODATA], Cause::Disk),
            (&[Errno::NXIO, Errno::NODEV, Errno::TIMEDOUT, Errno::NOTCONN, Errno::SHUTDOWN], Cause::Disk),
        ] {
            for errno in errnos {
                for error in [io::Error::from(*errno), name("fsync", Path::new("/s"))((*errno).into())] {
                    assert_eq!(Cause::of(&error), cause, "{error}");
                }
            }
        }
        let found = io::Error::new(io::ErrorKind::InvalidInput, "/s/x is a link");
        assert_eq!(Cause::of(&found), Cause::Place, "the daemon's own words, not the system's EINVAL");
    }

    #[test]
    fn a_folder_that_every_user_may_write_to_is_told() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().canonicalize().unwrap();
        let spool = dir.join("spool");
        let link = dir.join("link");
        std::fs::create_dir(&spool).unwrap();
        std::os::unix::fs::symlink(&spool, &link).unwrap();
        for path in [&spool, &link] {
            let told = |mode| {
                std::fs::set_permissions(&spool, std::fs::Permissions::from_mode(mode)).unwrap();
                weaknesses(path).iter().any(|words| words.contains("every user"))
            };
            assert_eq!([0o777, 0o1777, 0o770, 0o700].map(told), [true, true, false, false], "{}", path.display());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_forgets_and_a_folder_that_is_not_there_yet_is_judged_by_its_parent() {
        let words = weaknesses(Path::new("/dev/shm/not/there/yet")).join("; ");
        assert!(words.contains("is on tmpfs"), "{words}");
    }
}
