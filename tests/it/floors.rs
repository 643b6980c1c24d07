//! The house's floors: a module imports only from floors below its own.

use std::fs;
use std::path::{Path, PathBuf};

/// From the top down; modules on one floor never import each other.
const FLOORS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["check", "daemon", "drain"],
    &["assembly"],
    &["verify", "flusher", "pull", "cloudwatch", "ingest"],
    &["s3"],
    &["credentials"],
    &["oidc", "admin"],
    &["spool", "http", "network", "telemetry"],
    &["protocols", "config", "status", "chain"],
    &["batch", "backoff", "volume", "exit_code"],
];

fn floor_of(module: &str) -> usize {
    FLOORS.iter().position(|floor| floor.contains(&module)).unwrap_or_else(|| panic!("{module} has no floor"))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path() {
            path if path.is_dir() => sources(&path, found),
            path if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            _ => {}
        }
    }
}

/// The modules that a source names behind `crate::`, outside comments.
fn imports(source: &str) -> Vec<String> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let named = code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    let name = |rest: String| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let grouped = |rest: String| -> Vec<String> {
        match rest.strip_prefix('{') {
            Some(group) => group.split(['}', ',']).map(|part| name(part.trim().to_owned())).collect(),
            None => vec![name(rest)],
        }
    };
    named.flat_map(grouped).filter(|module| !module.is_empty()).collect()
}

#[test]
fn a_module_imports_only_from_floors_below_its_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were found");
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        // Unit tests may drive what they test through the rooms above it.
        let is_test = relative.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")));
        if is_test || matches!(module, "lib" | "testing") {
            continue;
        }
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            // A path of this module's own, the unit tests' helpers, or an item of the crate's root.
            if import == module || import == "testing" || import == "env0_s3_logs" {
                continue;
            }
            assert!(
                floor_of(&import) > floor_of(module),
                "{} imports crate::{import}, which is not below it",
                relative.display()
            );
        }
    }
}
