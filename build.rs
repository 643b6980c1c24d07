//! Tells the compiler which source the program is built from (`REVISION`), and which tests this machine can run.

use std::path::Path;
use std::process::Command;

/// `git archive`, and so a source tarball of GitHub, puts the commit in here (.gitattributes).
const ARCHIVE: &str = "$Format:%H$";

/// What the program is compiled from.
const SOURCES: [&str; 4] = ["src", "Cargo.toml", "Cargo.lock", "build.rs"];

fn main() {
    println!("cargo::rerun-if-env-changed=REVISION");
    SOURCES.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
    let told = std::env::var("REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = told.or_else(archived).or_else(checked_out).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=REVISION={revision}");
    println!("cargo::rerun-if-env-changed=SOURCE");
    println!("cargo::rustc-env=DOCUMENTS={}", documents(&revision).unwrap_or_default());
    println!("cargo::rustc-check-cfg=cfg(may_mount, may_mount_images)");
    // Not in a release build, which must be the same whoever makes it.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") && has_cap_sys_admin() {
        println!("cargo::rustc-cfg=may_mount");
        if Path::new("/dev/loop-control").exists() {
            println!("cargo::rustc-cfg=may_mount_images");
        }
    }
}

/// Where people read the documents of this revision, for messages that name a section of one: the repository's URL is
/// told by `SOURCE`. Not found out from the checkout, so that everybody's build of a revision is the same.
fn documents(revision: &str) -> Option<String> {
    let source = std::env::var("SOURCE").ok().filter(|source| source.starts_with("https://"))?;
    let revision = match revision.trim_end_matches("-modified") {
        "unknown" => "HEAD",
        revision => revision,
    };
    Some(format!("{}/blob/{revision}/", source.trim_end_matches('/')))
}

/// Whether this user may mount file systems. Tests that need one are ignored otherwise, and say so.
fn has_cap_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|effective| effective >> CAP_SYS_ADMIN & 1 == 1)
}

/// The commit of a source tarball.
fn archived() -> Option<String> {
    (!ARCHIVE.starts_with('$')).then(|| ARCHIVE.to_owned())
}

/// The commit of a git checkout, and whether the sources differ from it.
fn checked_out() -> Option<String> {
    // A folder inside somebody else's checkout is no checkout of this.
    if git(&["ls-files", "build.rs"])?.is_empty() {
        return None;
    }
    // Written at each commit and each checkout.
    println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-modified") })
}

/// What git prints, where it is there and succeeds.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
