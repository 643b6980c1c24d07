//! Nothing that a sender says is dropped behind a success, also where it stands beside the events, and a refusal says what
//! to do.

use serde_json::{Value, json};

use crate::harness::{AUDITS, DEPLOYMENTS, Setup, TOKEN, Upload, wait_until};
use crate::local_aws::LocalAws;

/// The lines that a daemon stores of one body.
fn stored(path: &str, body: &str) -> Vec<Value> {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    let answer = daemon.send(Upload::post(path).bearer(TOKEN).body(body));
    assert!(matches!(answer.status, 200 | 202), "{path}: {} {}", answer.status, answer.text());
    wait_until("it is stored", || aws.s3.line_count() > 0);
    aws.s3.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_a_query_says_is_stored_beside_another_word_of_the_events_own() {
    let query = "source=S4&host=h&sourcetype=t&index=i&time=7";
    let own = r#"{"source":"S1","host":"h","event":1}{"time":7,"sourcetype":"own","index":"own","event":2}"#;
    let expected = [
        json!({"source": "S1", "host": "h", "event": 1, "querySource": "S4", "sourcetype": "t", "index": "i", "time": "7"}),
        json!({
            "time": 7, "sourcetype": "own", "index": "own", "event": 2,
            "source": "S4", "host": "h", "querySourcetype": "t", "queryIndex": "i",
        }),
    ];
    assert_eq!(stored(&format!("/services/collector/event?{query}"), own), expected);
    let typed = stored("/?type=apache", r#"{"type":"nginx","message":"m"}"#);
    assert_eq!(typed, [json!({"type": "nginx", "message": "m", "queryType": "apache"})]);
}

#[test]
fn new_relics_common_is_stored_where_no_log_is_with_it() {
    let object = json!({"common": {"attributes": {"a": 1}}, "logs": []});
    assert_eq!(stored("/log/v1", &json!([object]).to_string()), [object]);
}

#[test]
fn a_body_within_its_limit_whose_lines_take_too_much_is_told_what_to_do() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    let answer = daemon.post(DEPLOYMENTS, "a line of text\n".repeat(1024 * 1024));
    assert_eq!(answer.status, 413, "{}", answer.text());
    for part in ["send fewer events in one request", "raise ENV0_S3_LOG_MAX_INFLIGHT_BYTES"] {
        assert!(answer.text().contains(part), "{}", answer.text());
    }
}

#[test]
fn a_token_whose_file_begins_with_a_byte_order_mark_is_let_in() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_S3_LOG_INGEST_TOKEN");
    let file = setup.folder().join("tokens");
    std::fs::write(&file, "\u{feff}a-long-random-token-for-tests-1 env0-deployments\r\n").unwrap();
    let daemon = setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", file.to_str().unwrap()).start();
    let status = |path| daemon.send(Upload::post(path).bearer("a-long-random-token-for-tests-1").body("{}")).status;
    assert_eq!((status(DEPLOYMENTS), status(AUDITS)), (200, 401));
}
