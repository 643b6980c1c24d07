//! What the process tells: its log, its exit codes, systemd.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use env0_s3_logs::config::LogFormat;
use env0_s3_logs::s3::PutErrorKind;
use env0_s3_logs::{cli, telemetry};

use crate::harness::{Setup, field, wait_for};
use crate::local_aws::LocalAws;

#[test]
fn every_warning_of_a_start_is_printed() {
    let aws = LocalAws::start();
    let unknown: Vec<String> = (0..6).map(|number| format!("ENV0_S3_LOG_UNKNOWN_{number}")).collect();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_INGEST_AUTH", "none").set("ENV0_S3_LOG_LISTEN_ADDR", "0.0.0.0:0");
    let daemon = unknown.iter().fold(setup, |setup, name| setup.set(name, "x")).start();
    for words in unknown.iter().map(String::as_str).chain(["ENV0_S3_LOG_INGEST_AUTH=none"]) {
        assert_eq!(daemon.log().count("WARN", words), 1, "{words}");
    }
}

#[test]
fn each_file_that_is_set_aside_has_a_line_and_whatever_its_name_holds_the_line_is_json() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    setup.start().kill();
    let names = ["1", "2", "3", "4", "5", "delete \u{7f}", "next line \u{85}", "two\nlines \u{1b}[31m \"quoted\""];
    for name in names {
        std::fs::write(setup.spool().join("env0-audits").join(name), "what is this").unwrap();
    }
    let daemon = setup.start();
    let entries = daemon.log().entries();
    let lines = entries.iter().filter(|entry| entry["level"] == "ERROR");
    let told: BTreeSet<_> = lines.filter_map(|entry| field(entry, "file").as_str()).collect();
    assert_eq!(told, BTreeSet::from(names));
}

/// Runs in a process of its own, see the test below.
#[test]
fn a_bug_of_the_command_line() {
    let Ok(log) = std::env::var("BUG_OF_THE_COMMAND_LINE") else { return };
    if log == "started" {
        telemetry::init("info", None, LogFormat::Json);
    }
    let _ = cli::main_from(std::iter::from_fn(|| -> Option<OsString> { panic!("first\nsecond") }));
}

#[test]
fn a_bug_is_one_line_and_exit_code_70_whether_the_log_is_started_or_not() {
    for log in ["started", "not started"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "process::a_bug_of_the_command_line", "--nocapture"]);
        let ended = child.env("BUG_OF_THE_COMMAND_LINE", log).output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(70), "{log}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{log}: {stderr}");
        assert!(stderr.contains("a bug ended the process") && stderr.contains("first\\nsecond"), "{log}: {stderr}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&stderr).is_ok(), log == "started", "{stderr}");
    }
}

#[test]
fn a_spool_that_can_not_be_read_exits_74_and_says_so_in_one_line() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    std::fs::create_dir(setup.spool()).unwrap();
    std::fs::write(setup.spool().join("manifest.json"), "not JSON").unwrap();
    for command in ["run", "drain"] {
        let finished = setup.run(command);
        assert_eq!(finished.code, Some(74), "{command}: {finished:?}");
        let told = finished.stderr.lines().filter(|line| line.contains("is not a manifest of this daemon"));
        assert_eq!(told.count(), 1, "{command}: {finished:?}");
    }
}

#[test]
fn systemd_is_told_of_the_start_and_of_the_end() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let path = setup.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let told = || {
        let mut buffer = [0; 64];
        let length = wait_for("systemd is told", || socket.recv(&mut buffer).ok());
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let setup = setup.set("NOTIFY_SOCKET", path.to_str().unwrap());
    let mut daemon = setup.spawn();
    assert_eq!(told(), "READY=1");
    assert_eq!(daemon.admin_get("/readyz").unwrap().status, 200, "it is ready once it says so");
    daemon.signal_terminate();
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
}

/// The sections of the README, as its links name them.
fn anchors() -> BTreeSet<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let headings = readme.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn every_section_of_the_readme_that_an_error_names_is_there_and_each_failed_upload_names_one() {
    let anchors = anchors();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut named = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let after = text.split("README#").skip(1);
                named.extend(after.map(|rest| {
                    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect::<String>()
                }));
            }
        }
    }
    let missing: Vec<_> = named.difference(&anchors).collect();
    assert!(missing.is_empty(), "not in the README: {missing:?}");
    for anchor in ["not-uploading", "no-token", "it-does-not-start", "spool-high", "quarantined", "disk-refuses-writes"]
    {
        assert!(named.contains(anchor), "no error names {anchor}");
    }
    for kind in PutErrorKind::ALL {
        assert!(kind.remedy().contains("README#"), "{}: {}", kind.as_str(), kind.remedy());
    }
}
