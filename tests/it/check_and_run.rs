//! What keeps a start from its work is found by `check`, with the same exit code and remedy.

use std::net::TcpListener;

use rustix::io::Errno;

use crate::check::{CANT_CREATE, IO, UNAVAILABLE, assert_has, failure, free_port, setup, step};
use crate::harness::{DEPLOYMENTS, Setup, event, wait_until};
use crate::local_aws::LocalAws;
use crate::machine::Machine;

/// Seconds from today's time.
const BEYOND_9998: i64 = 8_000 * 365 * 86_400;
const BEFORE_1970: i64 = -100 * 365 * 86_400;

#[test]
fn check_and_run_call_an_address_in_use_by_the_same_exit_code() {
    let aws = LocalAws::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = setup(&aws).set("ENV0_S3_LOG_LISTEN_ADDR", taken.local_addr().unwrap().to_string());
    let finished = setup.run("check --offline --json");
    assert_has(&failure(&finished, "addresses", Some(71)), &["ENV0_S3_LOG_LISTEN_ADDR", "in use"]);
    let run = setup.run("run");
    assert_eq!(run.code, Some(71), "{}", run.stderr);
}

#[test]
fn check_and_run_call_a_spool_that_another_process_holds_by_the_same_exit_code() {
    let aws = LocalAws::start();
    let setup = setup(&aws);
    let daemon = setup.start();
    // Nobody answers at this address, so the holder is not the daemon that is asked for.
    let setup = setup.set("ENV0_S3_LOG_ADMIN_ADDR", format!("127.0.0.1:{}", free_port()));
    let finished = setup.run("check --json");
    let holder = format!("process {} uses the spool", daemon.process_id());
    assert_has(&failure(&finished, "lock", CANT_CREATE), &[&holder, "ENV0_S3_LOG_ADMIN_ADDR=127.0.0.1:"]);
    assert_has(setup.run("check").stdout.lines().last().unwrap(), &["Next: lock: "]);
    let run = setup.run("run");
    assert_eq!(run.code, CANT_CREATE, "{}", run.stderr);
    // Where another daemon answers, its spool is another one.
    let other = Setup::new(&aws).start();
    let setup = setup.set("ENV0_S3_LOG_ADMIN_ADDR", other.admin.to_string());
    assert_has(&failure(&setup.run("check --json"), "lock", CANT_CREATE), &[&holder]);
}

#[test]
fn an_address_of_another_machine_has_its_own_remedy_in_check_and_at_a_start() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_LISTEN_ADDR", "192.0.2.1:8080");
    let remedy = "choose an address that this machine has";
    assert_has(&failure(&setup.run("check --offline --json"), "addresses", Some(71)), &[remedy]);
    assert_has(&setup.run("run").stderr, &["192.0.2.1:8080", remedy]);
}

#[test]
fn what_keeps_a_start_from_its_spool_is_found_by_check_with_the_same_code() {
    let aws = LocalAws::start();
    aws.sts.set_down();
    let without_manifest = setup(&aws);
    let daemon = without_manifest.start();
    daemon.post(DEPLOYMENTS, event("kept"));
    daemon.kill();
    std::fs::remove_file(without_manifest.spool().join("manifest.json")).unwrap();
    let dangling = setup(&aws);
    std::os::unix::fs::symlink(dangling.folder().join("nowhere"), dangling.spool()).unwrap();
    let never_made = setup(&aws).set("ENV0_S3_LOG_SPOOL_DIR", "/proc/spool");
    for (setup, name, code, part) in [
        (without_manifest, "manifest", IO, "1 batch and no manifest.json"),
        (dangling, "spool", CANT_CREATE, "not a directory"),
        (never_made, "spool", CANT_CREATE, "/proc"),
    ] {
        let checked = setup.run("check --offline --json");
        assert_has(&failure(&checked, name, code), &[part]);
        let run = setup.run("run");
        assert_eq!(run.code, code, "{}", run.stderr);
    }
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn a_disk_that_fails_is_told_by_check_and_by_run_alike_with_the_call() {
    let aws = LocalAws::start();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), "ext4");
    let setup = machine.setup(setup(&aws));
    let failed = (Errno::IO, "Input/output error", "the disk failed");
    let can_not = (Errno::INVAL, "Invalid argument", "put ENV0_S3_LOG_SPOOL_DIR on a local file system");
    // Before the spool is made, and with one.
    for (errno, words, remedy) in [failed, can_not, failed, can_not] {
        machine.fail_fsyncs(errno);
        let checked = setup.run("check --offline --json");
        let parts = ["fsync ", &format!(".tmp: {words}"), remedy];
        assert_has(&failure(&checked, "spool", IO), &parts);
        let run = setup.run("run");
        assert_eq!(run.code, IO, "{}", run.stderr);
        assert!(run.stderr.contains("fsync ") && run.stderr.contains(remedy), "{}", run.stderr);
        machine.heal();
        assert_eq!(step(&setup.run("check --offline --json"), "spool")["verdict"], "ok");
        setup.start().kill();
    }
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn what_can_not_be_looked_at_is_the_disks_fault_and_never_a_missing_or_wrong_file() {
    let aws = LocalAws::start();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), "ext4");
    let setup = machine.setup(setup(&aws));
    let fails = |end: &str, name: &str, call: &str, error: Errno| {
        machine.fail_paths(&format!("*{end}"), error);
        let checked = setup.run("check --offline --json");
        assert_has(&failure(&checked, name, IO), &[&format!("{call} "), end, "the disk failed"]);
        let run = setup.run("run");
        machine.heal();
        assert_eq!(run.code, IO, "{end}: {}", run.stderr);
        let told = run.stderr.contains(&format!("{call} ")) && run.stderr.contains("the disk failed");
        assert!(told && !run.stderr.contains("No such file"), "{end}: {}", run.stderr);
    };
    std::fs::create_dir(folder.path().join("disk/spool")).unwrap();
    fails("/manifest.json", "manifest", "stat", Errno::IO);
    for error in [Errno::IO, Errno::UCLEAN, Errno::STALE, Errno::REMOTEIO] {
        fails("/spool", "spool", "stat", error);
    }
    setup.start().kill();
    fails("/spool", "spool", "stat", Errno::IO);
    fails("/env0-audits", "spool", "stat", Errno::IO);
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn a_file_that_check_can_not_remove_again_is_told() {
    let aws = LocalAws::start();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), "ext4");
    let setup = machine.setup(setup(&aws));
    // Not the name that it is made under, which is removed before, too.
    machine.fail_paths("*/check-0000*.tmp", Errno::IO);
    let checked = setup.run("check --offline --json");
    machine.heal();
    assert_has(
        &failure(&checked, "spool", IO),
        &["removal of a file: remove ", ".tmp: Input/output error", "the disk failed"],
    );
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn a_clock_that_nothing_can_run_with_is_refused_by_check_and_by_run_alike() {
    let aws = LocalAws::start();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), "ext4");
    let setup = machine.setup(setup(&aws));
    assert_eq!(step(&setup.run("check --offline --json"), "clock")["verdict"], "ok");
    machine.set_clock(BEYOND_9998);
    let checked = setup.run("check --offline --json");
    assert_has(&failure(&checked, "clock", UNAVAILABLE), &["beyond 9998", "set this machine's clock right"]);
    let run = setup.run("run");
    assert_eq!(run.code, UNAVAILABLE, "{}", run.stderr);
}

#[test]
#[cfg_attr(not(may_mount_images), ignore = "mounts a file system in a file, which takes root and a loop device")]
fn a_daemon_outlives_a_clock_that_http_has_no_date_for_and_answers_again() {
    let aws = LocalAws::start();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(folder.path(), "ext4");
    let daemon = machine.setup(setup(&aws)).start();
    for clock in [BEYOND_9998, BEFORE_1970] {
        machine.set_clock(clock);
        for _ in 0..8 {
            assert!(daemon.admin_get("/livez").is_none(), "answered at {clock}");
        }
        machine.set_clock(0);
        wait_until("it answers again", || daemon.admin_get("/livez").is_some_and(|answer| answer.status == 200));
    }
}

#[test]
fn what_can_hardly_be_meant_is_said_by_check_and_by_run_alike() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("AWS_PROFILE", "mine").set("RUST_LOG", "debg").set("ALL_PROXY", "http://u:p@proxy:1");
    let checked = setup.run("check --offline").stdout;
    let daemon = setup.start();
    for words in ["not read by this daemon: ALL_PROXY", "AWS_PROFILE", "RUST_LOG sets no level"] {
        assert!(checked.contains(words), "{words}: {checked}");
        assert_eq!(daemon.log().count("WARN", words), 1, "{words}: {}", daemon.log().text());
    }
    assert!(!checked.contains("u:p@") && !daemon.log().text().contains("u:p@"));
}

#[test]
fn two_listeners_on_one_port_are_refused_by_check_and_by_run_alike() {
    let aws = LocalAws::start();
    let setup = setup(&aws).set("ENV0_S3_LOG_LISTEN_ADDR", "[::]:18181").set("ENV0_S3_LOG_ADMIN_ADDR", "0.0.0.0:18181");
    for command in ["check --offline", "run"] {
        let finished = setup.run(command);
        assert_eq!(finished.code, Some(78), "{command}: {}", finished.stderr);
        assert!(format!("{}{}", finished.stdout, finished.stderr).contains("the port of ENV0_S3_LOG_LISTEN_ADDR"));
    }
}

#[test]
fn a_folder_of_the_spool_that_is_a_link_is_refused_by_check_and_by_run_alike() {
    let aws = LocalAws::start();
    for (folder, is_link) in [("env0-audits", true), ("quarantine", true), ("pull", true), ("env0-deployments", false)]
    {
        let setup = setup(&aws);
        let elsewhere = setup.folder().join("elsewhere");
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::create_dir_all(setup.spool()).unwrap();
        match is_link {
            true => std::os::unix::fs::symlink(&elsewhere, setup.spool().join(folder)).unwrap(),
            false => std::fs::write(setup.spool().join(folder), "").unwrap(),
        }
        let checked = setup.run("check --offline --json");
        assert_has(&failure(&checked, "spool", CANT_CREATE), &[folder, "is a link or no folder"]);
        let run = setup.run("run");
        assert_eq!(run.code, CANT_CREATE, "{}", run.stderr);
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing is written through a link");
    }
}

#[test]
fn a_link_in_the_place_of_a_file_of_the_spool_is_refused_and_not_followed() {
    let aws = LocalAws::start();
    for (name, target, code) in
        [("lock", None, CANT_CREATE), ("manifest.json", None, IO), ("manifest.json", Some("/dev/zero"), IO)]
    {
        let setup = setup(&aws);
        setup.start().kill();
        let (link, elsewhere) = (setup.spool().join(name), setup.folder().join("elsewhere"));
        std::fs::write(&elsewhere, "of another program").unwrap();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(target.map_or(&*elsewhere, std::path::Path::new), &link).unwrap();
        for command in ["check --offline", "run"] {
            let finished = setup.run(command);
            assert_eq!(finished.code, code, "{name}, {command}: {finished:?}");
            assert_has(&format!("{finished:?}"), &[&link.display().to_string(), "it is a link, a device or a pipe"]);
        }
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "of another program", "{name}");
    }
}
