//! Another folder in the place of a log type's folder, under a running daemon: nothing is written there, nothing is sent
//! from there, and all goes on by itself once it is gone.

use std::path::{Path, PathBuf};

use crate::disk::{Mounted, is_taken_or_temporary, send_until_taken, stored_events};
use crate::harness::{AUDITS, Books, Setup, wait_until};
use crate::local_aws::{Fault, LocalAws};

/// Something that lies over a folder until it is taken away.
type Cover = Box<dyn std::any::Any>;

/// A folder of the same file system in the place of `folder`, until dropped: the two change places at once.
struct Swapped {
    folder: PathBuf,
    other: PathBuf,
}

impl Swapped {
    fn with(folder: &Path, other: &Path) -> Swapped {
        std::fs::create_dir(other).unwrap();
        let swapped = Swapped { folder: folder.to_owned(), other: other.to_owned() };
        swapped.change_places();
        swapped
    }

    fn change_places(&self) {
        let (here, exchange) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
        rustix::fs::renameat_with(here, &self.folder, here, &self.other, exchange).unwrap();
    }
}

impl Drop for Swapped {
    fn drop(&mut self) {
        self.change_places();
        let written = std::fs::read_dir(&self.other).unwrap().count();
        assert!(written == 0 || std::thread::panicking(), "nothing is written there");
    }
}

/// A folder that has another name until this is dropped.
struct Moved {
    folder: PathBuf,
    away: PathBuf,
}

impl Drop for Moved {
    fn drop(&mut self) {
        assert!(!self.folder.exists() || std::thread::panicking(), "it is not made again");
        std::fs::rename(&self.away, &self.folder).unwrap();
    }
}

#[test]
fn a_log_types_folder_that_is_moved_away_costs_no_event_and_doubles_none() {
    no_event_goes_to_what_lies_over("was moved away", |folder, other| {
        std::fs::rename(folder, other).unwrap();
        Box::new(Moved { folder: folder.to_owned(), away: other.to_owned() })
    });
}

#[test]
fn a_check_beside_a_daemon_that_answers_503_fails_with_the_daemons_reason() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    let folder = setup.spool().join("env0-audits");
    let moved = Moved { away: setup.folder().join("away"), folder: folder.clone() };
    let setup = setup.set("ENV0_S3_LOG_ADMIN_ADDR", daemon.admin.to_string());
    std::fs::rename(&folder, &moved.away).unwrap();
    wait_until("it is not ready", || daemon.admin_get("/readyz").unwrap().status == 503);
    for command in ["check", "check --offline"] {
        let checked = setup.run(command);
        assert_eq!(checked.code, Some(74), "{command}: {checked:?}");
        let failed = checked.stdout.lines().find(|line| line.starts_with("[fail] daemon")).unwrap();
        assert!(failed.contains("answers events with 503") && failed.contains("was moved away"), "{failed}");
    }
    drop(moved);
    wait_until("it is ready", || daemon.admin_get("/readyz").unwrap().status == 200);
    assert_eq!(setup.run("check").code, Some(0));
}

#[test]
fn a_folder_in_the_place_of_a_log_types_folder_gets_no_event_and_costs_none() {
    no_event_goes_to_what_lies_over("is another folder than before", |folder, other| {
        Box::new(Swapped::with(folder, other))
    });
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a folder over another, which takes root")]
fn a_folder_mounted_over_a_log_types_folder_gets_no_event_and_costs_none() {
    no_event_goes_to_what_lies_over("is another folder than before", |folder, other| {
        std::fs::create_dir(other).unwrap();
        Box::new(Mounted::over(folder, &["--bind", other.to_str().unwrap()]))
    });
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn what_is_mounted_over_a_log_types_folder_gets_no_event_and_costs_none() {
    no_event_goes_to_what_lies_over("another file system", |folder, _| Box::new(Mounted::tmpfs(folder, "3m")));
}

fn no_event_goes_to_what_lies_over(words: &str, cover: fn(&Path, &Path) -> Cover) {
    // Whether the batch waits for S3 or is still open.
    for max_age in ["100ms", "1h"] {
        let aws = LocalAws::start();
        let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", max_age);
        let (mut daemon, books) = (setup.start(), Books::default());
        aws.s3.inject(Fault::internal_error());
        send_until_taken(&daemon, &books, AUDITS, 5);
        wait_until("it was tried", || max_age == "1h" || aws.s3.put_count() > 0);
        let over = cover(&setup.spool().join("env0-audits"), &setup.folder().join("other"));
        wait_until("events are refused", || {
            let ids = books.ids(1);
            let taken = is_taken_or_temporary(&daemon.post(AUDITS, Books::body(&ids)));
            if taken {
                books.acknowledge(ids);
            }
            !taken
        });
        let ready = daemon.admin_get("/readyz?verbose").unwrap();
        assert!(ready.status == 503 && ready.text().contains(words), "{}", ready.text());
        let tries = aws.s3.put_count();
        aws.s3.heal();
        wait_until("the waiting batch was looked for", || daemon.log().text().contains(words));
        drop(over);
        send_until_taken(&daemon, &books, AUDITS, 5);
        wait_until("the rest was sent", || max_age == "1h" || aws.s3.put_count() > tries);
        assert_eq!(daemon.terminate().code(), Some(0));
        books.balance(&aws, &setup);
        assert_eq!(stored_events(&aws), books.acknowledged(), "{max_age}, {}", daemon.log().text());
    }
}

#[test]
fn no_batch_is_sent_from_a_copy_of_its_folder_and_again_from_the_folder() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "100ms");
    let (mut daemon, books) = (setup.start(), Books::default());
    aws.s3.inject(Fault::slow_down());
    send_until_taken(&daemon, &books, AUDITS, 5);
    let (folder, copy) = (setup.spool().join("env0-audits"), setup.folder().join("copy"));
    let names = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    wait_until("it was refused", || {
        aws.s3.put_count() > 0 && names(&folder).iter().any(|name| name.ends_with(".sealed"))
    });
    std::fs::create_dir(&copy).unwrap();
    for name in names(&folder) {
        std::fs::copy(folder.join(&name), copy.join(&name)).unwrap();
    }
    let swapped = Swapped { folder, other: copy };
    swapped.change_places();
    let tries = aws.s3.put_count();
    aws.s3.heal();
    wait_until("the batch is held up", || {
        daemon.log().text().contains("is another folder than before") || aws.s3.put_count() > tries + 1
    });
    assert_eq!(aws.s3.lines(), [""; 0], "{}", daemon.log().text());
    swapped.change_places();
    std::fs::remove_dir_all(&swapped.other).unwrap();
    std::mem::forget(swapped);
    wait_until("it is sent", || aws.s3.lines().len() == 5);
    for _ in 0..2 {
        assert_eq!(daemon.terminate().code(), Some(0));
        daemon = setup.start();
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    books.balance(&aws, &setup);
    assert_eq!(aws.s3.lines().len(), 5, "{}", daemon.log().text());
}

#[test]
fn a_folder_of_cloudwatchs_that_is_moved_away_stops_cloudwatch_alone() {
    only_cloudwatch_stops("was moved away", |folder, other| {
        std::fs::rename(folder, other).unwrap();
        Box::new(Moved { folder: folder.to_owned(), away: other.to_owned() })
    });
}

#[test]
fn a_start_and_a_drain_go_on_where_cloudwatchs_folder_can_not_be_used() {
    for (with_cloudwatch, is_link) in [(true, true), (true, false), (false, true), (false, false)] {
        let aws = LocalAws::start();
        let mut setup = Setup::new(&aws);
        if with_cloudwatch {
            setup = aws.cloudwatch_environment().into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
        }
        let (folder, elsewhere) = (setup.spool().join("cloudwatch"), setup.folder().join("elsewhere"));
        std::fs::create_dir_all(&elsewhere).unwrap();
        std::fs::create_dir_all(setup.spool()).unwrap();
        match is_link {
            true => std::os::unix::fs::symlink(&elsewhere, &folder).unwrap(),
            false => std::fs::write(&folder, "").unwrap(),
        }
        let checked = setup.run("check --offline");
        assert!(checked.stdout.contains("CloudWatch's batches can't be used"), "{checked:?}");
        let (mut daemon, books) = (setup.start(), Books::default());
        send_until_taken(&daemon, &books, AUDITS, 1);
        wait_until("S3 has it", || aws.s3.line_count() == 1);
        assert_eq!(daemon.log().count("WARN", "is left as it is"), 1, "{}", daemon.log().text());
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing is written through a link");
        if with_cloudwatch {
            std::fs::remove_file(&folder).unwrap();
            send_until_taken(&daemon, &books, AUDITS, 1);
            wait_until("CloudWatch has the second", || aws.logs.messages("env0-audits").len() == 1);
        }
        assert_eq!(daemon.terminate().code(), Some(0));
        let drained = setup.run("drain");
        assert_eq!(drained.code, Some(0), "{drained:?}");
        books.balance(&aws, &setup);
    }
}

#[test]
fn another_folder_in_the_place_of_cloudwatchs_stops_cloudwatch_alone() {
    only_cloudwatch_stops("is another folder than before", |folder, other| Box::new(Swapped::with(folder, other)));
}

fn only_cloudwatch_stops(words: &str, cover: fn(&Path, &Path) -> Cover) {
    let aws = LocalAws::start();
    let mut setup = Setup::new(&aws);
    for (name, value) in aws.cloudwatch_environment() {
        setup = setup.set(name, value);
    }
    let (mut daemon, books) = (setup.start(), Books::default());
    let in_cloudwatch = || aws.logs.messages("env0-audits").len();
    send_until_taken(&daemon, &books, AUDITS, 1);
    wait_until("CloudWatch has the first", || in_cloudwatch() == 1);
    aws.logs.hold();
    for stored in 2..=3 {
        send_until_taken(&daemon, &books, AUDITS, 1);
        wait_until("S3 has it, and CloudWatch not", || aws.s3.line_count() == stored);
    }
    let waits = || std::fs::read_dir(setup.spool().join("cloudwatch/env0-audits")).unwrap().count() == 2;
    wait_until("two batches wait for CloudWatch", waits);
    let over = cover(&setup.spool().join("cloudwatch"), &setup.folder().join("other"));
    aws.logs.release();
    let status = || daemon.admin_get("/status").unwrap().json()["cloudwatch"]["types"].to_string();
    wait_until("the status says why", || status().contains(words) && status().contains("put the folder"));
    for _ in 0..3 {
        let ids = books.ids(1);
        assert_eq!(daemon.post(AUDITS, Books::body(&ids)).accepted(), 1);
        books.acknowledge(ids);
    }
    wait_until("S3 has them", || aws.s3.line_count() == 6);
    assert_eq!(daemon.admin_get("/readyz").unwrap().status, 200);
    assert_eq!(daemon.log().count("WARN", "CloudWatch gets nothing"), 1, "{}", daemon.log().text());
    wait_until("they are counted as left out", || {
        daemon.metric("cloudwatch_skipped_events_total{type=\"env0-audits\",reason=\"disk\"}") == Some(3.0)
    });
    drop(over);
    wait_until("the status is clear", || !status().contains(words));
    send_until_taken(&daemon, &books, AUDITS, 1);
    wait_until("CloudWatch has what waited, and the last", || in_cloudwatch() == 4);
    assert_eq!(daemon.terminate().code(), Some(0));
    books.balance(&aws, &setup);
}
