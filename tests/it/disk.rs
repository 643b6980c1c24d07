//! The disk under a running daemon: full, limited, gone, changed. Nothing acknowledged is lost, clients are
//! told 503, and all is well again without a restart once the cause goes away.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{AUDITS, Answer, Books, DEPLOYMENTS, Daemon, Raw, Setup, TOKEN, event, wait_for, wait_until};
use crate::local_aws::{Fault, LocalAws};
use crate::machine::Machine;

/// A mount, taken away when dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Takes root: a test that calls this is ignored where the build script did not set `may_mount`.
    pub(crate) fn over(folder: &Path, what: &[&str]) -> Mounted {
        std::fs::create_dir_all(folder).unwrap();
        let output = Command::new("mount").args(what).arg(folder).output().unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Mounted(folder.to_owned())
    }

    /// A small file system in memory.
    pub(crate) fn tmpfs(folder: &Path, size: &str) -> Mounted {
        Mounted::over(folder, &["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test left may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn a_volume_that_is_lost_and_mounted_anew_is_gone_on_with_and_costs_no_event() {
    for codec in ["none", "gzip"] {
        let aws = LocalAws::start();
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine::start(folder.path(), "ext4");
        let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h").set("ENV0_S3_LOG_COMPRESSION", codec);
        let setup = machine.setup(setup);
        let (mut daemon, books) = (setup.start(), Books::default());
        send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
        send_until_taken(&daemon, &books, AUDITS, 5);
        machine.lose_volume_and_mount_it_anew();
        send_until_taken(&daemon, &books, DEPLOYMENTS, 3);
        send_until_taken(&daemon, &books, AUDITS, 3);
        assert_eq!(daemon.log().count("WARN", "is mounted anew"), 1, "{}", daemon.log().text());
        assert_eq!(setup.run("drain").code, Some(73), "the lock is held on the new device");
        assert_eq!(daemon.terminate().code(), Some(0));
        assert_eq!(stored_events(&aws), books.acknowledged(), "{codec}, {}", daemon.log().text());
    }
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn a_copy_of_the_volume_in_its_place_is_not_taken_for_it() {
    let aws = LocalAws::start();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let machine = Machine::start(folders[0].path(), "ext4");
    let setup = machine.setup(Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h"));
    let (mut daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    machine.mount_a_copy_over();
    wait_until("it is not ready", || daemon.admin_get("/readyz?verbose").is_some_and(|answer| answer.status == 503));
    let refusal = daemon.admin_get("/readyz?verbose").unwrap();
    assert!(refusal.text().contains("restart the daemon"), "{}", refusal.text());
    machine.heal();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    assert_eq!(daemon.terminate().code(), Some(0));
    books.balance(&aws, &setup);
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn on_a_frozen_disk_what_was_begun_is_waited_for_and_the_rest_refused_for_good() {
    let aws = LocalAws::start();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), "ext4");
    let setup = machine.setup(Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h"));
    let (mut daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 1);
    let (begun, not_begun) = (books.ids(2), books.ids(3));
    std::thread::scope(|scope| {
        let (mut first, mut second) = (None, None);
        machine.while_frozen(|| {
            first = Some(scope.spawn(|| daemon.post(DEPLOYMENTS, Books::body(&begun))));
            wait_until("the writer waits for the disk", || waits_for_a_disk(&daemon));
            second = Some(daemon.post(DEPLOYMENTS, Books::body(&not_begun)));
        });
        assert_eq!(second.map(|answer| answer.status), Some(503));
        assert_eq!(first.map(|answer| answer.join().unwrap().status), Some(200));
    });
    books.acknowledge(begun);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(stored_events(&aws), books.acknowledged(), "{}", daemon.log().text());
}

/// Whether a thread of the daemon waits for a disk, in state `D`, which stands behind the thread's name.
fn waits_for_a_disk(daemon: &Daemon) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.process_id())).unwrap();
    let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D")))
}

/// Sends events until they are acknowledged, as a shipper does; the refusals on the way.
pub(crate) fn send_until_taken(daemon: &Daemon, books: &Books, path: &str, count: usize) -> usize {
    let ids = books.ids(count);
    let mut refused = 0;
    wait_until("the events are taken", || {
        let answer = daemon.post(path, Books::body(&ids));
        refused += usize::from(answer.status != 200);
        is_taken_or_temporary(&answer)
    });
    books.acknowledge(ids);
    refused
}

pub(crate) fn is_taken_or_temporary(answer: &Answer) -> bool {
    if answer.status != 200 {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some());
    }
    answer.status == 200
}

/// Sends until a request is refused for want of room.
fn fill(daemon: &Daemon, books: &Books, per_request: usize) {
    wait_until("a request is refused", || {
        let ids = books.ids(per_request);
        let taken = is_taken_or_temporary(&daemon.post(DEPLOYMENTS, Books::body(&ids)));
        if taken {
            books.acknowledge(ids);
        }
        !taken
    });
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_full_disk_answers_503_and_recovers_by_itself_and_what_came_in_goes_out() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "256KiB");
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "3m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").to_str().unwrap());
    aws.s3.hold_puts();
    let (daemon, books) = (setup.start(), Books::default());
    fill(&daemon, &books, 200);
    assert!(books.acknowledged() > 1000, "{} events fit", books.acknowledged());
    assert!(daemon.admin_get("/livez").is_some_and(|answer| answer.status == 200));
    // Uploads make room.
    aws.s3.release_puts();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 200);
    send_until_taken(&daemon, &books, AUDITS, 10);
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.line_count(), books.acknowledged());
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_disk_that_somebody_else_fills_is_used_again_and_a_kill_loses_nothing() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "3m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").to_str().unwrap());
    let (daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 10);
    let ballast = folder.join("ballast");
    // As much as fits; the write ends with the error that is wanted here.
    assert!(std::fs::write(&ballast, vec![b'x'; 4 << 20]).is_err());
    fill(&daemon, &books, 50);
    daemon.kill();
    let daemon = setup.start();
    std::fs::remove_file(&ballast).unwrap();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 10);
    books.balance(&aws, &setup);
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_full_disk_is_not_ready_before_an_event_meets_it_and_is_ready_again_by_itself() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "3m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").to_str().unwrap());
    let daemon = setup.start();
    let ballast = folder.join("ballast");
    // As much as fits; the write ends with the error that is wanted here.
    assert!(std::fs::write(&ballast, vec![b'x'; 4 << 20]).is_err());
    let ready = || daemon.admin_get("/readyz?verbose").unwrap();
    wait_until("it is not ready", || ready().status == 503);
    // Each log type looks at the disk by itself, once a second.
    let told = |level| daemon.log().count(level, "the spool's disk");
    wait_until("a line for each log type", || told("ERROR") == 2);
    assert!(ready().text().contains("[-]disk: "), "{}", ready().text());
    assert_eq!(daemon.admin_get("/livez").unwrap().status, 200);
    std::fs::remove_file(&ballast).unwrap();
    wait_until("it is ready again", || ready().status == 200);
    assert_eq!((told("ERROR"), told("INFO")), (2, 2), "one line for each log type");
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_disk_that_takes_small_writes_alone_is_not_said_to_work_again() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "6m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.join("spool").to_str().unwrap());
    let daemon = setup.start();
    let ballast = folder.join("ballast");
    // As much as fits, but for 500 KB.
    assert!(std::fs::write(&ballast, vec![b'x'; 8 << 20]).is_err());
    let file = std::fs::File::options().write(true).open(&ballast).unwrap();
    file.set_len(file.metadata().unwrap().len() - 500_000).unwrap();
    drop(file);
    let large = event(&"y".repeat(900_000));
    for _ in 0..3 {
        assert_eq!(daemon.post(DEPLOYMENTS, &large).status, 503);
    }
    wait_until("a small one is taken", || daemon.post(DEPLOYMENTS, event("small")).status == 200);
    wait_until("it is told", || daemon.log().count("WARN", "is nearly full: it takes small writes") > 0);
    assert_eq!(daemon.log().count("INFO", "takes writes again"), 0, "{}", daemon.log().text());
    std::fs::remove_file(&ballast).unwrap();
    wait_until("a large one is taken", || daemon.post(DEPLOYMENTS, &large).status == 200);
}

#[test]
fn a_file_size_limit_ends_a_batch_not_the_process() {
    let aws = LocalAws::start();
    // 256 KiB in the shell's blocks of 512 bytes, half a batch.
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "512KiB").limit("ulimit -f 512");
    let setup = setup.set("ENV0_S3_LOG_BATCH_MAX_AGE", "3600s");
    let (mut daemon, books) = (setup.start(), Books::default());
    let refused: usize = (0..20).map(|_| send_until_taken(&daemon, &books, DEPLOYMENTS, 500)).sum();
    assert!(refused > 0, "the limit was never met");
    assert!(daemon.is_running());
    assert_eq!(daemon.terminate().code(), Some(0));
    books.balance(&aws, &setup);
}

#[test]
fn without_a_free_file_descriptor_nothing_is_lost_and_it_passes() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (mut daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    // After the start, so that the limit of connections does not heed it.
    crate::machine::limit_descriptors(&daemon, 8);
    // One that is connected before the last descriptor goes.
    let mut early = Raw::connect(daemon.listen).unwrap();
    let ids = books.ids(1);
    let body = Books::body(&ids);
    let length = body.len();
    let head = format!(
        "POST {AUDITS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    );
    let crowd: Vec<_> = (0..100).filter_map(|_| Raw::connect(daemon.listen).ok()).collect();
    wait_until("the descriptors are used up", || daemon.log().count("WARN", "connections can't be accepted") == 1);
    // It may have been closed in favour of a new one; whoever is answered is told the truth.
    if early.write(head + &body).is_ok()
        && let Ok(Some(answer)) = early.answer()
        && is_taken_or_temporary(&answer)
    {
        books.acknowledge(ids);
    }
    drop(crowd);
    // Until the daemon has read that the crowd is gone, it may close a new connection before its request is read.
    wait_until("a connection is answered again", || {
        let ids = books.ids(1);
        let taken = daemon.try_post(AUDITS, Books::body(&ids)).is_ok_and(|answer| is_taken_or_temporary(&answer));
        if taken {
            books.acknowledge(ids);
        }
        taken
    });
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    send_until_taken(&daemon, &books, AUDITS, 5);
    books.balance(&aws, &setup);
    assert!(daemon.is_running());
}

#[test]
fn a_folder_that_is_removed_is_made_again_and_the_chain_goes_on() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h");
    let (mut daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    send_until_taken(&daemon, &books, AUDITS, 5);
    assert_eq!(daemon.terminate().code(), Some(0));
    let daemon = setup.start();
    std::fs::remove_dir_all(setup.spool().join("env0-deployments")).unwrap();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    // Nothing that was sealed since then tells the next life of the chain.
    daemon.kill();
    let mut daemon = setup.start();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    assert_eq!(daemon.terminate().code(), Some(0));
    books.balance(&aws, &setup);
    assert_eq!(chains(&aws).len(), 2, "one a log type");
}

/// How many events the objects say that they hold, compressed or not.
pub(crate) fn stored_events(aws: &LocalAws) -> usize {
    aws.s3.objects().iter().map(|object| object.metadata["env0-records"].parse::<usize>().unwrap()).sum()
}

/// The instance ids in the bucket.
fn chains(aws: &LocalAws) -> std::collections::BTreeSet<(String, bool)> {
    let objects = aws.s3.objects().into_iter();
    objects.map(|object| (object.metadata["env0-instance"].clone(), object.key.contains("env0-audits/"))).collect()
}

#[test]
fn a_folder_that_is_removed_while_a_batch_is_open_costs_no_event() {
    for codec in ["none", "gzip"] {
        // Whether the removal is met by an append or by the sealing alone.
        for goes_on in [true, false] {
            let aws = LocalAws::start();
            let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h").set("ENV0_S3_LOG_COMPRESSION", codec);
            let (mut daemon, books) = (setup.start(), Books::default());
            send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
            send_until_taken(&daemon, &books, AUDITS, 5);
            std::fs::remove_dir_all(setup.spool().join("env0-deployments")).unwrap();
            if goes_on {
                send_until_taken(&daemon, &books, DEPLOYMENTS, 3);
            }
            assert_eq!(daemon.terminate().code(), Some(0));
            assert_eq!(stored_events(&aws), books.acknowledged(), "{codec}, {}", daemon.log().text());
        }
    }
}

#[test]
fn a_spool_that_is_removed_under_the_daemon_is_made_again_and_costs_no_open_event() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "1h");
    let (mut daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    send_until_taken(&daemon, &books, AUDITS, 5);
    std::fs::remove_dir_all(setup.spool()).unwrap();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 3);
    assert_eq!(setup.run("drain").code, Some(73), "the lock is held again");
    assert_eq!(daemon.terminate().code(), Some(0));
    let mut daemon = setup.start();
    send_until_taken(&daemon, &books, DEPLOYMENTS, 3);
    assert_eq!(daemon.terminate().code(), Some(0));
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.line_count(), books.acknowledged());
}

#[test]
fn files_that_do_not_belong_there_stop_no_start_and_overwrite_nothing() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    drop(setup.start());
    let (folder, quarantine) = (setup.spool().join("env0-deployments"), setup.spool().join("quarantine"));
    std::fs::write(folder.join("notes.txt"), "second").unwrap();
    std::fs::write(quarantine.join("env0-deployments_notes.txt"), "first").unwrap();
    std::fs::write(folder.join("x".repeat(250)), "too long a name for quarantine").unwrap();
    std::fs::write(folder.join(std::ffi::OsStr::from_bytes(b"not\xffutf-8")), "not UTF-8").unwrap();
    let (daemon, books) = (setup.start(), Books::default());
    send_until_taken(&daemon, &books, DEPLOYMENTS, 5);
    wait_until("they are delivered", || aws.s3.line_count() == 5);
    let read = |name: &str| std::fs::read_to_string(quarantine.join(name)).unwrap();
    assert_eq!(
        (read("env0-deployments_notes.txt"), read("env0-deployments_notes.txt.1")),
        ("first".into(), "second".into())
    );
    assert!(folder.join("x".repeat(250)).exists());
    assert_eq!(daemon.log().count("ERROR", "left where it is"), 2, "{}", daemon.log().text());
}

#[test]
fn one_flipped_bit_goes_to_quarantine_and_the_next_object_tells_of_it() {
    let aws = LocalAws::start();
    aws.s3.inject(Fault::slow_down());
    let setup = Setup::new(&aws);
    let (daemon, books) = (setup.start(), Books::default());
    let sealed = || {
        setup
            .spool_files("env0-deployments")
            .into_iter()
            .filter(|name| !name.ends_with(".open") && !name.ends_with(".sent"))
    };
    for count in 1..=3 {
        send_until_taken(&daemon, &books, DEPLOYMENTS, 4);
        wait_until("the batch is sealed", || sealed().count() == count);
    }
    let stem = sealed().next().unwrap();
    let stem = stem.rsplit_once('.').unwrap().0.to_owned();
    // Its ending changes with every attempt.
    wait_for("the file is changed", || {
        let name = sealed().find(|name| name.starts_with(&stem))?;
        let path = setup.spool().join("env0-deployments").join(name);
        let mut bytes = std::fs::read(&path).ok()?;
        bytes[10] ^= 1;
        let file = std::fs::OpenOptions::new().write(true).open(&path).ok()?;
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).ok()
    });
    aws.s3.heal();
    wait_until("the others are delivered", || aws.s3.objects().len() == 2);
    let quarantine =
        || std::fs::read_dir(setup.spool().join("quarantine")).unwrap().map(|entry| entry.unwrap().file_name());
    wait_until("the changed one is in quarantine", || quarantine().count() == 1);
    send_until_taken(&daemon, &books, DEPLOYMENTS, 4);
    wait_until("the next one too", || aws.s3.objects().len() == 3);
    assert_eq!(aws.s3.line_count(), 12);
    assert!(aws.s3.objects().iter().any(|object| object.metadata.get("env0-gaps").is_some_and(|gaps| gaps == "1")));
    let name = quarantine().next().unwrap().into_string().unwrap();
    assert!(name.contains(&stem), "{name}");
    wait_until("it is noted that the gap is told", || {
        quarantine().all(|name| name.to_string_lossy().ends_with(".told"))
    });
    assert_eq!(daemon.log().count("ERROR", "quarantine"), 1);
    assert_eq!(daemon.metric("events_quarantined_total{type=\"env0-deployments\"}"), Some(4.0));
}
