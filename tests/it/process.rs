//! What the process tells: its log, its exit codes, systemd.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use env0_s3_logs::admin::{Health, Sources};
use env0_s3_logs::config::LogFormat;
use env0_s3_logs::status::Status;
use env0_s3_logs::telemetry::metrics::Exporter;
use env0_s3_logs::{cli, telemetry};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::harness::{DEPLOYMENTS, Setup, field, wait_for, wait_until};
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
fn each_file_that_is_set_aside_has_a_line_of_json_whatever_its_name_holds() {
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

#[test]
fn a_spool_that_cannot_be_made_is_told_with_the_systems_reason_once() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let file = setup.folder().join("a file");
    std::fs::write(&file, "").unwrap();
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", file.join("spool").to_str().unwrap());
    for command in ["run", "drain"] {
        let told = setup.run(command).stderr;
        assert_eq!(told.matches("os error 20").count(), 1, "{command}: {told}");
    }
}

/// What needs a process of its own, run by [`alone`].
#[test]
#[ignore = "run by the tests beside it, each in a new process"]
fn in_a_process_of_its_own() {
    match std::env::var("IN_A_PROCESS_OF_ITS_OWN").unwrap_or_default().as_str() {
        "bug" => fail_in_the_command_line(),
        "bug with a log" => {
            telemetry::init("info", None, LogFormat::Json);
            fail_in_the_command_line();
        }
        "unscraped" => measure_without_a_scrape(),
        other => panic!("not run by a test beside it: {other:?}"),
    }
}

fn alone(part: &str) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "process::in_a_process_of_its_own", "--ignored", "--nocapture"]);
    child.env("IN_A_PROCESS_OF_ITS_OWN", part).output().unwrap()
}

fn fail_in_the_command_line() {
    let _ = cli::main_from(std::iter::from_fn(|| -> Option<OsString> { panic!("first\nsecond") }));
}

/// 40 MB of samples in eight minutes by a clock that jumps.
fn measure_without_a_scrape() {
    const SAMPLES_A_TURN: usize = 100_000;
    const MOST_GROWTH_KIB: u64 = 16 * 1024;
    let exporter = Exporter::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let status = || serde_json::from_str::<Status>(STATUS).unwrap();
        let sources = Sources { status: Box::new(status), live: Box::new(Vec::new), ready: Box::new(Vec::new) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        tokio::spawn(Health::new(sources, exporter).serve(listener, Vec::new(), CancellationToken::new()));
        let fsyncs = metrics::histogram!("env0_s3_logs_fsync_duration_seconds");
        let before = resident_kib();
        for _ in 0..50 {
            (0..SAMPLES_A_TURN).for_each(|_| fsyncs.record(0.001));
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        let growth = resident_kib().saturating_sub(before);
        assert!(growth < MOST_GROWTH_KIB, "grew by {growth} KiB");
    });
}

const STATUS: &str = r#"{"version":"","instance":"","phase":"running","started_at":"2026-11-22T21:04:05Z",
    "now":"2026-11-22T21:04:05Z","destination":{"bucket":"","region":"","path":"","endpoint":null},
    "spool":{"dir":"","bytes":0,"limit_bytes":0,"disk_available_bytes":null,"quarantine_bytes":0},
    "types":[],"credentials":null}"#;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_slip_in_rust_log_is_said_and_does_not_silence_the_log() {
    let daemon = Setup::new(&LocalAws::start()).set("RUST_LOG", "Warning").start();
    wait_for("the start is logged", || daemon.log().find("listening"));
    assert_eq!(daemon.log().count("WARN", "RUST_LOG sets no level"), 1);
}

#[test]
fn a_bug_is_one_line_and_exit_code_70_whether_the_log_is_started_or_not() {
    for part in ["bug", "bug with a log"] {
        let ended = alone(part);
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(70), "{part}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{part}: {stderr}");
        assert!(stderr.contains("a bug ended the process") && stderr.contains("first\\nsecond"), "{part}: {stderr}");
        assert_eq!(serde_json::from_str::<Value>(&stderr).is_ok(), part == "bug with a log", "{stderr}");
    }
}

#[test]
fn memory_does_not_grow_when_nobody_scrapes() {
    let ended = alone("unscraped");
    assert!(ended.status.success(), "{ended:?}");
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

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_limit_of_threads_ends_no_running_daemon_and_is_named_at_a_start() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (library, no_more) = (setup.folder().join("threads.so"), setup.folder().join("no-more-threads"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/threads.c");
    assert!(Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status().unwrap().success());
    let setup = setup.set("LD_PRELOAD", library.to_str().unwrap()).set("NO_MORE_THREADS", no_more.to_str().unwrap());
    let mut daemon = setup.start();
    daemon.post(DEPLOYMENTS, "{\"id\":1}\n");
    wait_until("it is stored", || aws.s3.line_count() == 1);
    // Without more, tokio ends a thread that had nothing to do for 10 s: that nothing happens in that time is what is tested.
    std::thread::park_timeout(Duration::from_secs(12));
    std::fs::write(&no_more, "").unwrap();
    daemon.post(DEPLOYMENTS, "{\"id\":2}\n");
    wait_until("the second is stored", || aws.s3.line_count() == 2);
    assert_eq!(daemon.terminate().code(), Some(0));
    for command in ["run", "drain", "check --offline"] {
        let finished = setup.run(command);
        assert_eq!(finished.code, Some(71), "{finished:?}");
        assert!(finished.stderr.contains("raise the limit of processes"), "{finished:?}");
    }
}
