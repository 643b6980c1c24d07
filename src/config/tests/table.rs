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

#[test]
fn the_effective_values_are_shown_with_their_source() {
    let described = with(&[("ENV0_S3_LOG_BATCH_MAX_AGE", "5m")]).unwrap().describe();
    assert!(described.contains("ENV0_S3_LOG_BATCH_MAX_AGE=5m  # environment\n"), "{described}");
    assert!(described.contains("ENV0_S3_LOG_SPOOL_MAX_BYTES=10GiB  # default\n"), "{described}");
    assert!(described.contains("ENV0_S3_LOG_BUCKET_PATH=  # not set\n"), "{described}");
    assert_eq!(described.lines().count(), VARIABLES.len());
}

#[test]
fn a_value_that_does_not_count_is_shown_beside_the_one_that_does() {
    let described = with(&[("ENV0_S3_LOG_MAX_EVENT_BYTES", "20MiB")]).unwrap().describe();
    let capped = "ENV0_S3_LOG_MAX_EVENT_BYTES=16MiB  # environment says 20MiB, capped by ENV0_S3_LOG_MAX_BODY_BYTES\n";
    assert!(described.contains(capped), "{described}");
    let lowered = with(&[("ENV0_S3_LOG_MAX_BODY_BYTES", "512KiB")]).unwrap().describe();
    let default = "ENV0_S3_LOG_MAX_EVENT_BYTES=512KiB  # default says 1MiB, capped by ENV0_S3_LOG_MAX_BODY_BYTES\n";
    assert!(lowered.contains(default), "{lowered}");
    let not_pulled = "ENV0_S3_LOG_PULL=none  # default says env0-audits,env0-deployments, and nothing is pulled without an API key\n";
    assert!(described.contains(not_pulled), "{described}");
    let key = [("ENV0_API_KEY_ID", "an-id"), ("ENV0_API_KEY_SECRET", "a-secret")];
    let pulled = read(&[&LEAST[..3], &key].concat()).unwrap().describe();
    assert!(pulled.contains("ENV0_S3_LOG_PULL=env0-audits,env0-deployments  # default\n"), "{pulled}");
    let closed = "ENV0_S3_LOG_LISTEN_ADDR=  # default says 127.0.0.1:8080, and nobody may send, so no port is opened\n";
    assert!(pulled.contains(closed), "{pulled}");
}

#[test]
fn an_effective_value_is_shown_whole_and_in_an_error_cut() {
    let path = "p".repeat(300);
    assert!(with(&[("ENV0_S3_LOG_BUCKET_PATH", &path)]).unwrap().describe().contains(&path));
    let long = format!("//{path}//{path}//{path}//{path}");
    assert!(refused(&[("ENV0_S3_LOG_BUCKET_PATH", &long)]).len() < 600);
}
