//! The documents lead where they say: links, headings, and the sections that errors name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use env0_s3_logs::s3::PutErrorKind;

/// Pages that a reader finishes in one sitting, and how many lines that is.
const SHORT_PAGES: [(&str, usize); 2] = [("README.md", 300), ("src/README.md", 250)];
/// Pages that tell engineers where things are.
const MAPS: [&str; 5] =
    ["src/README.md", "src/verify/README.md", "tests/README.md", ".github/SECURITY.md", ".github/CONTRIBUTING.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folder` with the extension, `target` and hidden folders but `.github` left out.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && (!name.starts_with('.') || name == ".github") {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// A page's lines outside code blocks.
fn prose(page: &Path) -> String {
    let text = std::fs::read_to_string(page).unwrap();
    let parts = text.split("```").step_by(2);
    parts.collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = prose(page);
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// The targets of a page's links into this repository.
fn links(page: &Path) -> Vec<String> {
    let text = prose(page);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
}

#[test]
fn every_link_of_every_document_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in files(root(), "md") {
        for link in links(&page) {
            seen += 1;
            let (path, anchor) = link.split_once('#').map_or((link.as_str(), None), |(path, name)| (path, Some(name)));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let there = target.exists() && anchor.is_none_or(|anchor| anchors(&target).contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(seen > 30, "the links were found: {seen}");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_section_that_an_error_names_is_there_and_each_failed_upload_names_one() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in files(&root().join("src"), "rs") {
        let text = std::fs::read_to_string(&source).unwrap();
        assert!(!text.contains("README#"), "{} names a page without its path", source.display());
        let mut parts = text.split("README.md#").peekable();
        while let (Some(before), Some(after)) = (parts.next(), parts.peek()) {
            let is_path = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
            let folder: String =
                before.chars().rev().take_while(is_path).collect::<Vec<_>>().into_iter().rev().collect();
            let anchor = after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
            named.entry(format!("{folder}README.md")).or_default().insert(anchor);
        }
    }
    for (page, names) in &named {
        let there = anchors(&root().join(page));
        let missing: Vec<_> = names.difference(&there).collect();
        assert!(missing.is_empty(), "not in {page}: {missing:?}");
    }
    for anchor in ["not-uploading", "no-token", "it-does-not-start", "spool-high", "quarantined", "disk-refuses-writes"]
    {
        assert!(named["config/README.md"].contains(anchor), "no error names {anchor}");
    }
    for kind in PutErrorKind::ALL {
        assert!(kind.remedy(None).contains("config/README.md#"), "{}: {}", kind.as_str(), kind.remedy(None));
    }
}

#[test]
fn every_kind_of_failed_upload_has_a_row_in_the_operators_page() {
    let page = std::fs::read_to_string(root().join("config/README.md")).unwrap();
    let (_, table) = page.split_once("\n| `error` of `upload_failures_total` |").unwrap();
    let kinds = table.lines().take_while(|line| line.starts_with('|') || line.ends_with('|'));
    let told: Vec<_> = kinds.filter_map(|line| line.split('|').nth(1)).flat_map(|cell| cell.split('`')).collect();
    for kind in PutErrorKind::ALL {
        assert!(told.contains(&kind.as_str()), "config/README.md has no row for {}", kind.as_str());
    }
}

#[test]
fn the_short_pages_stay_short() {
    for (page, most) in SHORT_PAGES {
        let lines = std::fs::read_to_string(root().join(page)).unwrap().lines().count();
        assert!(lines <= most, "{page} has {lines} lines; at most {most}: what belongs elsewhere?");
    }
}

/// What a page names in backticks as a file or a folder of this repository, with the test in it where it names one too:
/// `spool/folder.rs`, `tests/fuzz/`, `tests/it/crash.rs::name_of_a_test`.
fn named_files(page: &Path) -> Vec<(String, Option<String>)> {
    let text = prose(page);
    let words = text.split('`').skip(1).step_by(2);
    let named = words.map(|word| match word.split_once("::") {
        Some((path, test)) => (path.to_owned(), Some(test.to_owned())),
        None => (word.to_owned(), None),
    });
    let is_path = |path: &str| {
        let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
        let source = [".rs", ".md", ".py", ".sh", ".yaml", ".json", ".html", "/"].iter().any(|end| path.ends_with(end));
        // `SPOOL/…` is the daemon's, and a name without a folder may be, too; but no source is.
        plain
            && source
            && (path.contains('/') || path.ends_with(".rs"))
            && !path.starts_with('/')
            && !path.starts_with("SPOOL/")
    };
    named.filter(|(path, _)| is_path(path)).collect()
}

#[test]
fn every_file_and_test_that_a_map_names_is_there() {
    let (mut missing, mut seen, mut tests) = (Vec::new(), 0, 0);
    for map in MAPS {
        for (path, test) in named_files(&root().join(map)) {
            seen += 1;
            let places = ["", "src", Path::new(map).parent().unwrap().to_str().unwrap()];
            let file = places.iter().map(|place| root().join(place).join(&path)).find(|file| file.exists());
            let there = match (&file, &test) {
                (Some(file), Some(test)) => {
                    tests += 1;
                    std::fs::read_to_string(file).unwrap().contains(&format!("fn {test}("))
                }
                (file, _) => file.is_some(),
            };
            if !there {
                missing.push(format!("{map}: {path} {}", test.unwrap_or_default()));
            }
        }
    }
    assert!(seen > 100 && tests > 10, "the names were found: {seen} files, {tests} tests");
    assert!(missing.is_empty(), "{missing:#?}");
}
