//! The house's floors, as the head of `lib.rs` draws them: a room imports only from floors below its own, and inside
//! a room no file imports one that leads back to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Where `lib.rs` draws the floors, from the top down.
const PICTURE: &str = "//! The modules below stand by floors;";

/// A module by its path, as `["spool", "folder"]`.
type Module = Vec<String>;

/// Each file of the house but its tests: the modules that it imports from, and its lines of code and comments.
struct House {
    imports: BTreeMap<Module, BTreeSet<Module>>,
    lines: BTreeMap<Module, usize>,
}

impl House {
    fn read() -> House {
        let sources = sources_by_module();
        let modules: BTreeSet<Module> = sources.keys().cloned().collect();
        let imports = sources.iter().map(|(module, source)| (module.clone(), imports(module, source, &modules)));
        let lines = sources.iter().map(|(module, source)| (module.clone(), without_tests(source).lines().count()));
        House { imports: imports.collect(), lines: lines.collect() }
    }

    /// The way from `module` back to itself, if there is one.
    fn circle(&self, module: &Module) -> Option<Vec<String>> {
        let mut ways = vec![vec![module]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for next in &self.imports[way[way.len() - 1]] {
                if next == module {
                    return Some(way.iter().map(|module| module.join("::")).collect());
                }
                if seen.insert(next) {
                    ways.push(way.iter().copied().chain([next]).collect());
                }
            }
        }
        None
    }
}

/// The source of each file of the house but its tests: they may drive what they test through the rooms above it.
fn sources_by_module() -> BTreeMap<Module, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let read = |file: &PathBuf| (module_of(file.strip_prefix(&root).unwrap()), fs::read_to_string(file).unwrap());
    let is_test = |module: &Module| module.iter().any(|part| part == "tests" || part == "testing");
    let read: BTreeMap<_, _> = files.iter().map(read).filter(|(module, _)| !is_test(module)).collect();
    assert!(read.len() > 100, "the sources were found");
    read
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

/// The module in a file: for `spool/folder.rs`, `["spool", "folder"]`.
fn module_of(file: &Path) -> Module {
    file.with_extension("").components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect()
}

/// A file's source up to its unit tests.
fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]\nmod tests").next().unwrap()
}

/// The modules among `modules` that the source of `module` names, outside comments and its unit tests.
fn imports(module: &Module, source: &str, modules: &BTreeSet<Module>) -> BTreeSet<Module> {
    let code = without_tests(source);
    let code: String = code.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect();
    // The path in `pub(in …)` tells who may see an item, and is no import.
    let code = code.replace("pub(in crate::", "pub(").replace("pub(in super::", "pub(");
    let children: Vec<&str> = modules
        .iter()
        .filter_map(|other| other.strip_prefix(&module[..]))
        .filter(|rest| rest.len() == 1)
        .map(|rest| rest[0].as_str())
        .collect();
    let mut named = BTreeSet::new();
    for path in paths(&code) {
        let mut parts: Vec<&str> = path.split("::").collect();
        let mut base = match parts[0] {
            "crate" => Vec::new(),
            "super" => module[..module.len() - 1].to_vec(),
            "self" => module.clone(),
            child if children.contains(&child) => {
                parts.insert(0, "self");
                module.clone()
            }
            _ => continue,
        };
        for part in &parts[1..] {
            match *part {
                "super" => drop(base.pop()),
                part => base.push(part.to_owned()),
            }
        }
        // The longest beginning that is a file's module; the rest is an item in it.
        while !base.is_empty() && !modules.contains(&base) {
            base.pop();
        }
        if !base.is_empty() && base != *module {
            named.insert(base);
        }
    }
    named
}

/// Every path of a source, with `use` groups written out: `use crate::{a::B, c}` gives `crate::a::B` and `crate::c`.
fn paths(code: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    // The beginnings of the open groups, and the path that is being read.
    let (mut groups, mut path): (Vec<String>, String) = Default::default();
    let mut in_use = false;
    let tokens = code.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    for token in tokens {
        let (word, end) =
            token.split_at(token.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).len());
        if word == "use" {
            in_use = true;
            continue;
        }
        path.push_str(word);
        if in_use && end == "{" {
            groups.push(groups.last().cloned().unwrap_or_default() + &path);
            path.clear();
            continue;
        }
        if !path.is_empty() {
            found.push(groups.last().cloned().unwrap_or_default() + &path);
            path.clear();
        }
        match end {
            "}" if in_use => drop(groups.pop()),
            ";" => {
                in_use = false;
                groups.clear();
            }
            _ => {}
        }
    }
    found.retain(|path| path.contains("::"));
    found
}

/// The floors of the picture, from the top down.
fn floors() -> Vec<Vec<String>> {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let (_, picture) = library.split_once(PICTURE).expect("lib.rs draws the floors");
    let picture = picture.lines().skip(1).map_while(|line| line.strip_prefix("//!")).collect::<String>();
    let rooms = |floor: &str| floor.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    picture.split('→').map(rooms).collect()
}

#[test]
fn a_room_imports_only_from_floors_below_its_own() {
    let floors = floors();
    let floor_of = |room: &str| {
        let floor = floors.iter().position(|rooms| rooms.iter().any(|named| named == room));
        floor.unwrap_or_else(|| panic!("{room} stands on no floor of lib.rs's picture"))
    };
    let house = House::read();
    for (module, imports) in house.imports.iter().filter(|(module, _)| !["lib", "main"].contains(&module[0].as_str())) {
        for import in imports.iter().filter(|import| import[0] != module[0]) {
            let below = floor_of(&import[0]) > floor_of(&module[0]);
            assert!(below, "{} imports {}, which is not below it", module.join("::"), import.join("::"));
        }
    }
}

#[test]
fn no_file_imports_one_that_leads_back_to_it() {
    let house = House::read();
    let circles: Vec<_> = house.imports.keys().filter_map(|module| house.circle(module)).collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn no_room_has_more_than_a_fifth_of_the_code() {
    let lines = House::read().lines;
    let all: usize = lines.values().sum();
    let mut rooms = BTreeMap::<&str, usize>::new();
    for (module, lines) in &lines {
        *rooms.entry(module[0].as_str()).or_default() += lines;
    }
    let large: Vec<_> = rooms.into_iter().filter(|(_, lines)| lines * 5 > all).collect();
    assert!(large.is_empty(), "of {all} lines: {large:?}");
}

#[test]
fn the_time_of_day_is_asked_of_the_one_clock_that_no_setting_breaks() {
    for (module, source) in sources_by_module() {
        let code = without_tests(&source);
        let asks = ["Utc::now(", "Local::now("].into_iter().find(|call| code.contains(call));
        assert_eq!(asks, None, "{} asks for the time without batch::now", module.join("::"));
    }
}

#[test]
fn a_group_of_imports_is_read_as_the_paths_that_it_stands_for() {
    let code = "use crate::{a::B, c::{d, e::F}};\nuse super::g;\nfn f() { crate::h::i(1); json::k(); }";
    assert_eq!(paths(code), ["crate::a::B", "crate::c::d", "crate::c::e::F", "super::g", "crate::h::i", "json::k"]);
}
