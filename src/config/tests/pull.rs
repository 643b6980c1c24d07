//! The variables of pulling.

use super::*;
use crate::batch::LogType;

pub(super) const KEY: [(&str, &str); 2] = [("ENV0_API_KEY_ID", "key-1"), ("ENV0_API_KEY_SECRET", "canary-secret")];

#[test]
fn role_bucket_region_and_an_api_key_are_enough_and_then_nobody_listens_for_events() {
    let vars: Vec<_> = LEAST[..3].iter().chain(&KEY).copied().collect();
    let Loaded { config, warnings, .. } = read(&vars).unwrap();
    let pull = config.pull.unwrap();
    assert_eq!(
        (config.ingest, pull.key_id.as_str(), pull.key_secret.expose_secret()),
        (false, "key-1", "canary-secret")
    );
    assert_eq!((pull.types, pull.interval, pull.from), (LogType::ALL.to_vec(), Duration::from_secs(30), None));
    assert_eq!((pull.api_url.as_str(), pull.organization_ids.len()), ("https://api.env0.com", 0));
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn with_an_api_key_and_credentials_for_senders_both_ways_are_open() {
    let config = accepted(&KEY);
    assert!(config.ingest && config.pull.is_some());
    let config = accepted(&[]);
    assert!(config.ingest && config.pull.is_none());
}

#[test]
fn half_an_api_key_is_refused_with_the_name_of_the_missing_half() {
    let error = refused(&KEY[..1]);
    assert!(error.starts_with("ENV0_API_KEY_SECRET: not set, and needed beside ENV0_API_KEY_ID"), "{error}");
    let error = refused(&KEY[1..]);
    assert!(error.starts_with("ENV0_API_KEY_ID: not set") && !error.contains("canary"), "{error}");
}

#[test]
fn who_gives_no_way_in_is_told_of_the_key_and_who_gives_half_a_key_of_nothing_else() {
    let refused = |vars: &[(&str, &str)]| read(vars).unwrap_err().to_string();
    let error = refused(&LEAST[..3]);
    assert!(error.contains("to pull, set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET"), "{error}");
    for mistake in [KEY[0], KEY[1], ("ENV0_API_KEY_SECRET_FILE", "/nowhere/secret")] {
        let error = refused(&[&LEAST[..3], &[mistake]].concat());
        assert!(!error.contains("ORGANIZATION_ID"), "{mistake:?}: {error}");
    }
    let none = [KEY[0], KEY[1], ("ENV0_S3_LOG_PULL", "none")];
    assert!(refused(&[&LEAST[..3], &none].concat()).contains("nobody could send"));
}

#[test]
fn an_organization_that_is_all_zeros_is_a_placeholder_and_cannot_be_pulled() {
    let id = "00000000-0000-0000-0000-000000000000";
    let error = refused(&[&KEY[..], &[("ENV0_S3_LOG_PULL_ORGANIZATION_ID", id)]].concat());
    assert!(error.starts_with("ENV0_S3_LOG_PULL_ORGANIZATION_ID"), "{error}");
    assert!(error.contains("not the zeros of an example"), "{error}");
}

#[test]
fn an_api_key_with_its_other_half_in_the_same_value_is_refused_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let both = "key-1:canary-secret";
    std::fs::write(&file, both).unwrap();
    for id in [("ENV0_API_KEY_ID", both), ("ENV0_API_KEY_ID_FILE", file.to_str().unwrap())] {
        let error = refused(&[id, KEY[1]]);
        assert!(error.contains("the API key's id alone") && !error.contains("canary"), "{error}");
    }
    for (content, expected) in [
        ("key-1\ncanary-secret\n", "expected one line alone (in that file)"),
        ("ENV0_API_KEY_SECRET=canary-secret\n", "without the variable's name before it"),
        ("\"canary-secret\"\n", "without quotes"),
    ] {
        std::fs::write(&file, content).unwrap();
        let error = refused(&[KEY[0], ("ENV0_API_KEY_SECRET_FILE", file.to_str().unwrap())]);
        assert!(error.contains(expected) && !error.contains("canary"), "{error}");
    }
}

#[test]
fn an_api_key_comes_from_files_too_and_a_missing_or_empty_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (id, secret, empty) = (write("id", "key-2\n"), write("secret", " canary-2\n"), write("empty", "\n"));
    let pull = accepted(&[("ENV0_API_KEY_ID_FILE", &id), ("ENV0_API_KEY_SECRET_FILE", &secret)]).pull.unwrap();
    assert_eq!((pull.key_id.as_str(), pull.key_secret.expose_secret()), ("key-2", "canary-2"));
    let error = refused(&[KEY[0], ("ENV0_API_KEY_SECRET_FILE", &empty)]);
    assert!(error.contains("ENV0_API_KEY_SECRET_FILE") && error.contains("holds nothing"), "{error}");
    let error = refused(&[KEY[0], ("ENV0_API_KEY_SECRET_FILE", "/nowhere/secret")]);
    assert!(error.contains("ENV0_API_KEY_SECRET_FILE") && error.contains("can't be read"), "{error}");
}

#[test]
fn what_is_pulled_from_when_and_how_often_is_held_to_what_can_be_meant() {
    let pull = |changes: &[(&str, &str)]| accepted(&[&KEY, changes].concat()).pull;
    let typed = pull(&[("ENV0_S3_LOG_PULL", "env0-audits, ENV0-AUDITS")]).unwrap();
    assert_eq!(typed.types, [LogType::Audits]);
    assert!(pull(&[("ENV0_S3_LOG_PULL", "none")]).is_none());
    let from = pull(&[("ENV0_S3_LOG_PULL_FROM", "2026-01-02")]).unwrap().from.unwrap();
    assert_eq!(from.to_rfc3339(), "2026-01-02T00:00:00+00:00");
    let from = pull(&[("ENV0_S3_LOG_PULL_FROM", "2026-01-02T01:00:00+01:00")]).unwrap().from.unwrap();
    assert_eq!(from.to_rfc3339(), "2026-01-02T00:00:00+00:00");
    for (name, value, expected) in [
        ("ENV0_S3_LOG_PULL", "audits", "env0-deployments, env0-audits"),
        ("ENV0_S3_LOG_PULL_FROM", "yesterday", "a date such as"),
        ("ENV0_S3_LOG_PULL_FROM", "1999-12-31T23:59:59Z", "between the year 2000 and now"),
        ("ENV0_S3_LOG_PULL_FROM", "2999-01-01", "between the year 2000 and now"),
        ("ENV0_S3_LOG_PULL_INTERVAL", "4s", "from 5s to 3600s"),
        ("ENV0_S3_LOG_PULL_INTERVAL", "2h", "from 5s to 3600s"),
        ("ENV0_S3_LOG_PULL_ORGANIZATION_ID", "../../etc", "letters, digits"),
        ("ENV0_S3_LOG_API_URL", "api.env0.com", "http:// or https:// URL"),
        ("ENV0_S3_LOG_API_URL", "http://api.example.com", "plain http"),
    ] {
        let error = refused(&[KEY[0], KEY[1], (name, value)]);
        assert!(error.starts_with(name) && error.contains(expected), "{error}");
    }
    assert!(pull(&[("ENV0_S3_LOG_API_URL", "http://127.0.0.1:9")]).is_some());
    let allowed = [("ENV0_S3_LOG_API_URL", "http://api.example.com/"), ("ENV0_S3_LOG_ALLOW_HTTP", "true")];
    assert_eq!(pull(&allowed).unwrap().api_url, "http://api.example.com");
}

#[test]
fn a_secret_in_the_place_of_its_files_path_is_not_shown() {
    let said = |value| refused(&[("ENV0_API_KEY_ID", "an-id"), ("ENV0_API_KEY_SECRET_FILE", value)]);
    let hidden = said("a-secret-canary");
    assert!(hidden.contains("ENV0_API_KEY_SECRET_FILE=(not shown") && !hidden.contains("canary"), "{hidden}");
    assert!(said("/nowhere/secret").contains(r#"ENV0_API_KEY_SECRET_FILE="/nowhere/secret""#));
    // The daemon reads this one only when it starts, so `config` takes it.
    let described = with(&[("ENV0_S3_LOG_SIGNING_KEY_FILE", "a-secret-canary")]).unwrap().describe();
    assert!(described.contains("ENV0_S3_LOG_SIGNING_KEY_FILE=(not shown"), "{described}");
}

#[test]
fn what_only_a_pull_reads_is_warned_of_where_there_is_no_api_key() {
    for setting in [("ENV0_S3_LOG_PULL", "env0-audits"), ("ENV0_S3_LOG_PULL_FROM", "2026-01-01")] {
        let Loaded { warnings, .. } = read(&[LEAST, &[setting]].concat()).unwrap();
        let said = format!("{} does nothing without ENV0_API_KEY_ID and ENV0_API_KEY_SECRET", setting.0);
        assert!(warnings.iter().any(|warning| warning.starts_with(&said)), "{warnings:?}");
    }
    let Loaded { warnings, .. } = read(&[LEAST, &[("ENV0_S3_LOG_PULL", "none")]].concat()).unwrap();
    assert_eq!(warnings, [""; 0]);
}
