//! The machine under a daemon, and what goes wrong with it: a file system of its own, a clock, system calls,
//! limits. All of it real but the clock and the failing fsync, which a preloaded library brings.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

use crate::harness::{Daemon, Setup};

/// Of the file system; more than what a test holds back at once.
const IMAGE_BYTES: u64 = 256 << 20;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: from then on every call fails, and what was not fsynced is
/// never written.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// A mounted file system in a file, and the faults of what is around it. Unmounted when dropped.
pub(crate) struct Machine {
    folder: PathBuf,
    control: std::fs::File,
}

impl Machine {
    /// None where the machine does not allow a mount.
    pub(crate) fn start(folder: &Path) -> Option<Machine> {
        let control = std::fs::File::create(folder.join("control")).unwrap();
        control.set_len(16).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/machine.c");
        run("cc", &["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", path(&folder.join("machine.so")), source]);
        let machine = Machine { folder: folder.to_owned(), control };
        std::fs::create_dir(machine.disk()).unwrap();
        std::fs::File::create(machine.image()).unwrap().set_len(IMAGE_BYTES).unwrap();
        let mounted = succeeds("mkfs.ext4", &["-q", path(&machine.image())]) && machine.try_mount();
        if !mounted {
            eprintln!("skipped: a file can't be mounted here (it takes root, mkfs.ext4 and a loop device)");
        }
        mounted.then_some(machine)
    }

    /// A daemon's configuration on this machine.
    pub(crate) fn setup(&self, setup: Setup) -> Setup {
        setup
            .set("ENV0_S3_LOG_SPOOL_DIR", path(&self.disk().join("spool")))
            .set("LD_PRELOAD", path(&self.folder.join("machine.so")))
            .set("MACHINE_CONTROL", path(&self.folder.join("control")))
    }

    fn image(&self) -> PathBuf {
        self.folder.join("image")
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("disk")
    }

    fn try_mount(&self) -> bool {
        succeeds("mount", &["-o", "loop", path(&self.image()), path(&self.disk())])
    }

    /// Takes all of the disk's room.
    pub(crate) fn fill_disk(&self) {
        let mut ballast = std::fs::File::create(self.disk().join("ballast")).unwrap();
        let all = std::io::copy(&mut std::io::repeat(0), &mut ballast);
        assert_eq!(all.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }

    /// The file system turns read-only, as after an error of its disk, until [`Machine::remount`].
    pub(crate) fn make_read_only(&self) {
        run("mount", &["-o", "remount,abort", path(&self.disk())]);
    }

    /// What the disk was not told to keep is forgotten, and it takes nothing more until [`Machine::remount`]. Only
    /// after the daemon's end, as a power cut is: what it is told after that is nothing that a machine could tell.
    pub(crate) fn cut_power(&self) {
        run("python3", &["-c", SHUT_DOWN, path(&self.disk())]);
    }

    pub(crate) fn fail_fsyncs(&self, error: Errno) {
        self.set(8, i64::from(error.raw_os_error()));
    }

    /// Seconds from the true time to the daemon's.
    pub(crate) fn set_clock(&self, seconds: i64) {
        self.set(0, seconds);
    }

    fn set(&self, offset: u64, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), offset).unwrap();
    }

    /// All is as it was, for the daemon that runs; a file system that is broken for good needs [`Machine::remount`].
    pub(crate) fn heal(&self) {
        self.set_clock(0);
        self.set(8, 0);
        // There is none, or it is on a file system that takes no removal.
        let _ = std::fs::remove_file(self.disk().join("ballast"));
    }

    /// What is on the disk, after the daemon's end.
    pub(crate) fn remount(&self) {
        run("umount", &[path(&self.disk())]);
        assert!(self.try_mount(), "what was mounted once can't be mounted again");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test left may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(self.disk()).output();
    }
}

/// Leaves a running daemon `spare` file descriptors beside those that it has open.
pub(crate) fn limit_descriptors(daemon: &Daemon, spare: u64) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.process_id())).unwrap().count() as u64;
    limit(daemon, Resource::Nofile, open + spare);
}

/// No file of a running daemon grows over `bytes`.
pub(crate) fn limit_file_size(daemon: &Daemon, bytes: u64) {
    limit(daemon, Resource::Fsize, bytes);
}

fn limit(daemon: &Daemon, resource: Resource, value: u64) {
    let process = Pid::from_raw(daemon.process_id().try_into().unwrap());
    rustix::process::prlimit(process, resource, Rlimit { current: Some(value), maximum: Some(value) }).unwrap();
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn succeeds(command: &str, arguments: &[&str]) -> bool {
    Command::new(command).args(arguments).output().is_ok_and(|output| output.status.success())
}

fn run(command: &str, arguments: &[&str]) {
    let output = Command::new(command).args(arguments).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
