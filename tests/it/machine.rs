//! The machine under a daemon and its faults: a file system of its own, a clock, system calls, limits. All of it is
//! real but the clock and calls that fail, which a preloaded library fakes.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit};

use crate::harness::{Daemon, Setup, wait_until};

/// The size of the file system: more than a test holds back at once, and more than the least that xfs takes.
const IMAGE_BYTES: u64 = 320 << 20;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`, which xfs has under the same numbers: from then on every
/// call fails, and what was not fsynced is never written.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// A mounted file system in a file, and the faults of what is around it. Unmounted when dropped.
pub(crate) struct Machine {
    folder: PathBuf,
    control: std::fs::File,
    /// The loop device that the image is attached to; empty before it is.
    device: RefCell<String>,
    /// Whether the volume was taken away.
    is_away: Cell<bool>,
    /// Whether a copy is mounted over it.
    is_covered: Cell<bool>,
}

impl Machine {
    /// With a file system of this kind. Takes root, its mkfs and a loop device: a test that calls this is ignored where
    /// the build script did not set `may_mount_images`.
    pub(crate) fn start(folder: &Path, kind: &str) -> Machine {
        let control = std::fs::File::create(folder.join("control")).unwrap();
        control.set_len(64).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/machine.c");
        run("cc", &["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", path(&folder.join("machine.so")), source]);
        let machine = Machine {
            folder: folder.to_owned(),
            control,
            device: RefCell::default(),
            is_away: Cell::default(),
            is_covered: Cell::default(),
        };
        std::fs::create_dir(machine.disk()).unwrap();
        std::fs::File::create(machine.image()).unwrap().set_len(IMAGE_BYTES).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", path(&machine.image())]);
        machine.attach();
        machine.mount();
        machine
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

    /// Attaches the image to a loop device of its own, also where it is attached already. Nothing else tells two lives
    /// of a file system apart: of the same device the system would show the one that it still has.
    fn attach(&self) {
        *self.device.borrow_mut() = run("losetup", &["--find", "--show", path(&self.image())]);
    }

    fn mount(&self) {
        run("mount", &[self.device.borrow().trim(), path(&self.disk())]);
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

    /// The path leads to an empty folder, until [`Machine::heal`]. What has a file open there keeps it.
    pub(crate) fn take_volume_away(&self) {
        run("umount", &["-l", path(&self.disk())]);
        self.is_away.set(true);
    }

    fn bring_volume_back(&self) {
        if self.is_away.take() {
            let left = std::fs::read_dir(self.disk()).unwrap().count();
            assert_eq!(left, 0, "something was written where the volume was");
            self.mount();
        }
    }

    /// The disk is lost as if it was pulled out, and is mounted anew as another device.
    /// What was not fsynced is forgotten.
    pub(crate) fn lose_volume_and_mount_it_anew(&self) {
        let lost = self.device.borrow().clone();
        self.cut_power();
        run("umount", &["-l", path(&self.disk())]);
        self.attach();
        self.mount();
        // It goes with the last file that is open there.
        run("losetup", &["--detach", lost.trim()]);
    }

    /// Nothing is written for that long: whoever writes waits.
    pub(crate) fn freeze(&self, time: Duration) {
        self.while_frozen(|| std::thread::sleep(time));
    }

    /// Nothing is written while `action` runs, also where it panics: a frozen disk can't be unmounted.
    pub(crate) fn while_frozen(&self, action: impl FnOnce()) {
        struct Frozen(PathBuf);
        impl Drop for Frozen {
            fn drop(&mut self) {
                run("fsfreeze", &["--unfreeze", path(&self.0)]);
            }
        }
        run("fsfreeze", &["--freeze", path(&self.disk())]);
        let _frozen = Frozen(self.disk());
        action();
    }

    /// A copy of the volume, as a snapshot is one, is mounted over it until [`Machine::heal`].
    pub(crate) fn mount_a_copy_over(&self) {
        let copy = self.folder.join("copy");
        self.while_frozen(|| drop(run("cp", &[path(&self.image()), path(&copy)])));
        run("mount", &["-o", "loop", path(&copy), path(&self.disk())]);
        self.is_covered.set(true);
    }

    pub(crate) fn fail_fsyncs(&self, error: Errno) {
        self.set(8, i64::from(error.raw_os_error()));
    }

    /// No file or folder whose path has this pattern of a shell can be looked at or removed.
    pub(crate) fn fail_paths(&self, pattern: &str, error: Errno) {
        self.control.write_all_at(format!("{pattern}\0").as_bytes(), 24).unwrap();
        self.set(16, i64::from(error.raw_os_error()));
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
        self.set(16, 0);
        self.bring_volume_back();
        if self.is_covered.take() {
            run("umount", &["-l", path(&self.disk())]);
        }
        // There is none, or it is on a file system that takes no removal.
        let _ = std::fs::remove_file(self.disk().join("ballast"));
    }

    /// What is on the disk, after the daemon's end.
    pub(crate) fn remount(&self) {
        // Another test that begins a process has a copy of this one's open files for a moment, which keep the disk busy.
        wait_until("the disk is unmounted", || {
            let output = Command::new("umount").arg(self.disk()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() || said.contains("busy"), "{said}");
            output.status.success()
        });
        self.mount();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test left may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(self.disk()).output();
        let _ = Command::new("losetup").args(["--detach", self.device.borrow().trim()]).output();
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

/// What the command prints; panics where it fails.
fn run(command: &str, arguments: &[&str]) -> String {
    let output = Command::new(command).args(arguments).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
