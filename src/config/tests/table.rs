//! What is made from the table of variables.

use super::*;

#[test]
fn the_example_file_is_made_from_the_table_and_opens_no_port_by_itself() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/example.env");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(file, example_env()).unwrap();
    }
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text, example_env(), "run the tests once with UPDATE_DOCS=1");
    let vars: Vec<_> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect();
    assert_eq!(vars.len(), 3);
    let started_with = |more: &[(&'static str, &'static str)]| read(&[&vars[..], more].concat()).unwrap().config;
    // Whoever pulls has chosen nobody who may send.
    let puller = started_with(&super::pull::KEY);
    assert!(puller.pull.is_some() && !puller.ingest);
    assert!(puller.oidc_organization_ids.is_empty());
    assert!(started_with(&LEAST[3..]).ingest);
}

#[test]
fn the_readme_holds_the_table() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(file).unwrap();
    let (begin, end) = ("<!-- variables:begin -->\n", "<!-- variables:end -->");
    let (before, rest) = readme.split_once(begin).expect("README.md has the mark where the table begins");
    let (table, after) = rest.split_once(end).expect("README.md has the mark where the table ends");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(file, format!("{before}{begin}{}{end}{after}", markdown_table())).unwrap();
    } else {
        assert_eq!(table, markdown_table(), "run the tests once with UPDATE_DOCS=1");
    }
}

#[test]
fn the_help_names_every_variable() {
    let help = help_text();
    assert!(VARIABLES.iter().all(|variable| help.contains(variable.name)));
}
