//! Tells the compiler which source the program is built from (`REVISION`), and which tests this machine can run.

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
    println!("cargo::rustc-check-cfg=cfg(is_root, may_mount, may_mount_images)");
    // Not in a release build, which must be the same whoever makes it.
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        tell_what_works();
    }
}

/// Tells what this user may do: tests that need more are ignored, and say so.
fn tell_what_works() {
    if Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n") {
        println!("cargo::rustc-cfg=is_root");
    }
    if works("mount -t tmpfs tmpfs /tmp") {
        println!("cargo::rustc-cfg=may_mount");
        if works("losetup --find && which mkfs.ext4") {
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

/// Whether this user can do it, tried in a mount namespace that goes with the attempt. A container may forbid
/// what its root has the right to.
fn works(command: &str) -> bool {
    let output = Command::new("unshare").args(["--mount", "sh", "-c", command]).output();
    output.is_ok_and(|output| output.status.success())
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
