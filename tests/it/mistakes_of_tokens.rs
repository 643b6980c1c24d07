//! Mistakes with tokens and keys that people make in their first hour: what is said names the place and leads out.

use crate::harness::{AUDITS, DEPLOYMENTS, Setup, TOKEN, Upload, event, wait_until};
use crate::local_aws::LocalAws;
use crate::local_aws::issuer::ORGANIZATION;
use crate::mistakes::{assert_says, next};

#[test]
fn a_hand_over_is_advised_only_with_what_lets_it_in() {
    let aws = LocalAws::start();
    let with_tokens_alone = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let daemon = with_tokens_alone.start();
    let refused = daemon.send(Upload::new("PUT", "/v1/oidc-token").bearer(&aws.issuer.token()));
    assert_eq!(refused.status, 401);
    let to_let_in = "set ENV0_S3_LOG_OIDC_ORGANIZATION_ID, which lets deployments in, and hand one over";
    wait_until("the log says it", || daemon.log().count("WARN", "waiting for an OIDC token") == 1);
    assert_eq!(daemon.log().count("WARN", to_let_in), 1, "{}", daemon.log().text());
    let status = daemon.admin_get("/status").unwrap().json();
    assert_says(status["credentials"]["remedy"].as_str().unwrap(), &[to_let_in]);
    assert_says(&with_tokens_alone.run("check").stdout, &["nobody is let in to hand one over", to_let_in]);

    let trusting = Setup::new(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let checked = trusting.run("check").stdout;
    assert_says(&checked, &["no daemon runs that was handed one", "let a deployment hand its token over"]);
    assert!(!checked.contains("lets deployments in"), "{checked}");
    let answer = trusting.start().send(Upload::new("PUT", "/v1/oidc-token").bearer(&aws.issuer.token()));
    assert_eq!(answer.status, 204);
}

#[test]
fn a_token_file_that_is_not_there_is_named_by_its_path() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN").set("ENV0_S3_LOG_OIDC_TOKEN_FILE", "/nowhere/token");
    let checked = setup.run("check");
    assert_says(&checked.stdout, &["ENV0_S3_LOG_OIDC_TOKEN_FILE=\"/nowhere/token\""]);
    assert_says(next(&checked), &["Next: files: mount the file"]);
}

#[test]
fn what_is_wrong_in_a_file_is_what_check_says_to_mend() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let file = setup.folder().join("tokens");
    let setup = setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", file.display().to_string());
    let two = "0123456789abcdef-1,0123456789abcdef-2";
    for (text, said) in [
        (
            "# none",
            "Next: files: correct the file of ENV0_S3_LOG_INGEST_TOKEN_FILE: no token in it: write one there (`openssl rand",
        ),
        ("short", "Next: files: let line 1 of the file of ENV0_S3_LOG_INGEST_TOKEN_FILE hold 16 or more"),
        (two, "Next: files: let line 1 of the file of ENV0_S3_LOG_INGEST_TOKEN_FILE hold one token, and not several"),
        (
            "0123456789abcdef env0-audit",
            "Next: files: correct the file of ENV0_S3_LOG_INGEST_TOKEN_FILE: line 1: not a log",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        assert_says(next(&setup.run("check")), &[said]);
    }
}

#[test]
fn what_is_no_token_is_told_by_its_place_and_is_shown_no_trust_policy() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let file = setup.folder().join("token");
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.display().to_string());
    let place = format!("ENV0_S3_LOG_OIDC_TOKEN_FILE={file:?}");
    std::fs::write(&file, "ghp_0123456789abcdef").unwrap();
    let checked = setup.run("check");
    assert_says(&checked.stdout, &[&format!("what {place} holds is not an OIDC token, which begins with eyJ")]);
    assert!(!checked.stdout.contains("fits a trust policy"), "{}", checked.stdout);
    std::fs::write(&file, format!("Bearer {}", aws.issuer.token())).unwrap();
    assert_says(&setup.run("check").stdout, &[&place, "without \"Bearer\" before it"]);
    std::fs::write(&file, aws.issuer.token()).unwrap();
    assert_says(&setup.run("check").stdout, &["it fits a trust policy with"]);
}

#[test]
fn a_word_alone_in_authorization_takes_no_line_of_the_log_from_a_wrong_token() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    for value in [TOKEN, "Bearer another-token-0123456789"] {
        let refused = daemon.send(Upload::post(DEPLOYMENTS).header("Authorization", value).body(event("x")));
        assert_eq!(refused.status, 401);
    }
    for (reason, words) in [("malformed", "Authorization was one word"), ("invalid", "their token is none of")] {
        assert_eq!(daemon.metric(&format!("auth_failures_total{{reason=\"{reason}\"}}")), Some(1.0));
        wait_until(reason, || daemon.log().count("WARN", words) == 1);
    }
}

#[test]
fn a_token_file_that_was_broken_is_told_on_sighup() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let file = setup.folder().join("token");
    std::fs::write(&file, aws.issuer.token()).unwrap();
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.display().to_string());
    let daemon = setup.start();
    std::fs::write(&file, format!("Bearer {}", aws.issuer.token())).unwrap();
    daemon.signal_hang_up();
    let told = || daemon.log().count("WARN", "the OIDC token's file can't be used");
    wait_until("the log tells it", || told() == 1);
    assert_says(&daemon.log().text(), &["without \\\"Bearer\\\" before it", "a token that came before counts on"]);
}

#[test]
fn a_token_file_that_can_not_be_meant_fails_a_check_that_asks_nobody() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let file = setup.folder().join("token");
    let setup = setup.set("ENV0_S3_LOG_OIDC_TOKEN_FILE", file.display().to_string());
    let token = aws.issuer.token();
    for (text, expected) in [
        (format!("{{\"token\":\"{token}\"}}"), "not the JSON that it was delivered in (in that file)"),
        (format!("\"{token}\""), "without quotes around it"),
        (format!("Bearer {token}"), "without \"Bearer\" before it"),
        ("${ENV0_OIDC_TOKEN}".to_owned(), "every ${NAME} or template has been filled in"),
        (format!("{token}\n{token}\n"), "the token alone, one word"),
        (String::new(), "holds nothing"),
    ] {
        std::fs::write(&file, text).unwrap();
        for command in ["check --offline", "check"] {
            let checked = setup.run(command);
            assert_eq!(checked.code, Some(78), "{expected}: {}", checked.stdout);
            let place = format!("[fail] files         ENV0_S3_LOG_OIDC_TOKEN_FILE={file:?}: ");
            assert_says(&checked.stdout, &[&place, expected]);
            assert_eq!(checked.stdout.matches(&place).count(), 1, "told once: {}", checked.stdout);
            assert!(!checked.stdout.contains(&token), "{}", checked.stdout);
        }
    }
    assert!(aws.sts.exchanges().is_empty(), "nothing of it goes to STS");
    std::fs::write(&file, token).unwrap();
    assert_eq!(setup.run("check --offline").code, Some(0));
}

#[test]
fn a_token_that_is_handed_over_and_is_none_is_not_asked_to_be_an_ingest_token() {
    let aws = LocalAws::start();
    let daemon = crate::tokens::setup(&aws).start();
    let answer = daemon.send(Upload::new("PUT", "/v1/oidc-token").body(TOKEN));
    assert_eq!(answer.status, 401);
    assert_says(&answer.text(), &["ENV0_OIDC_TOKEN of a deployment", "three parts with two dots between"]);
    assert!(!answer.text().contains("ingest token"), "{}", answer.text());
}

#[test]
fn a_hand_over_to_a_daemon_that_lets_no_oidc_token_in_is_told_what_to_set() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    for body in [aws.issuer.token().as_str(), TOKEN, "no token"] {
        let answer = daemon.send(Upload::new("PUT", "/v1/oidc-token").body(body));
        assert_eq!(answer.status, 401);
        let told = ["neither ENV0_S3_LOG_OIDC_ORGANIZATION_ID nor ENV0_S3_LOG_OIDC_SUBJECT is set"];
        assert_says(&answer.text(), &told);
    }
    let daemon = crate::tokens::setup(&aws).start();
    let answer = daemon.send(Upload::new("PUT", "/v1/oidc-token").body("no token"));
    assert!(answer.status == 401 && !answer.text().contains("is set for it"), "{}", answer.text());
}

#[test]
fn the_path_of_a_file_in_a_secrets_place_is_sent_to_the_variable_for_files() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let file = setup.folder().join("ingest-tokens");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let path = file.to_str().unwrap();
    for name in ["ENV0_S3_LOG_INGEST_TOKEN", "ENV0_API_KEY_SECRET", "ENV0_OIDC_TOKEN"] {
        let setup = Setup::new(&aws).set("ENV0_API_KEY_ID", "an-id").set("ENV0_API_KEY_SECRET", "a-secret");
        let said = setup.set(name, path).run("check --offline").stdout;
        assert_says(&said, &[&format!("{name}_FILE is the variable that names a file"), &format!("{name}=")]);
    }
    // A token in base64 may begin as a path does.
    let token = Setup::new(&aws).set("ENV0_S3_LOG_INGEST_TOKEN", "/kX0aB1cD2eF3gH4iJ5k=").run("check --offline");
    assert_says(&token.stdout, &["[ok]   configuration"]);
}

#[test]
fn check_names_the_protocols_that_can_not_carry_a_token_as_it_is() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let file = setup.folder().join("ingest-tokens");
    let checked = |setup: Setup| setup.run("check --offline").stdout;
    let with = |token: &str| checked(Setup::new(&aws).set("ENV0_S3_LOG_INGEST_TOKEN", token));
    assert_says(&with("0123456789/abcdef"), &["[warn] ingest-token", " has / in it", "Sumo Logic"]);
    assert_says(&with("0123456789&abcdef"), &["[warn] ingest-token", "Logz.io and Splunk HEC"]);
    for plain in ["0123456789abcdef", "0123456789+abcdef=="] {
        assert!(!with(plain).contains("ingest-token "), "{plain}");
    }
    std::fs::write(&file, "# a/b\n0123456789abcdef\n0123456789#abcdef env0-audits\n").unwrap();
    let of_file = checked(setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", file.to_str().unwrap()));
    assert_says(&of_file, &["[warn] ingest-token", " has # in it", "Sumo Logic", "Logz.io"]);
    assert!(!of_file.contains("0123456789"), "{of_file}");
}

#[test]
fn a_401_names_the_file_of_tokens_and_what_a_token_may_write() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let file = setup.folder().join("ingest-tokens");
    std::fs::write(&file, "a-token-for-audits-alone env0-audits\n").unwrap();
    let setup = setup.set("ENV0_S3_LOG_OIDC_ORGANIZATION_ID", ORGANIZATION);
    let daemon = setup.set("ENV0_S3_LOG_INGEST_TOKEN_FILE", file.to_str().unwrap()).start();
    let answered = |path: &str, token: &str| {
        let answer = daemon.send(Upload::post(path).bearer(token).body(event("refused")));
        assert_eq!(answer.status, 401, "{}", answer.text());
        answer.text()
    };
    let unknown = answered(DEPLOYMENTS, "a-token-that-nobody-knows");
    assert_says(&unknown, &["ENV0_S3_LOG_INGEST_TOKEN_FILE", "the daemon's log and /status say why"]);
    assert_says(&answered(DEPLOYMENTS, "a-token-for-audits-alone"), &["may write env0-audits alone"]);
    assert_says(&answered(AUDITS, &aws.issuer.token()), &["may write env0-deployments alone"]);
}

#[test]
fn the_file_of_an_oidc_token_is_named_by_the_variable_that_was_set() {
    let aws = LocalAws::start();
    for name in ["ENV0_S3_LOG_OIDC_TOKEN_FILE", "ENV0_OIDC_TOKEN_FILE"] {
        let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN").set(name, "/nowhere/token");
        assert_says(&setup.run("check").stdout, &[&format!(" {name}=\"/nowhere/token\"")]);
    }
    let setup = Setup::new(&aws).unset("ENV0_OIDC_TOKEN");
    let file = setup.folder().join("token");
    std::fs::write(&file, "ghp_0123456789abcdef").unwrap();
    let checked = setup.set("ENV0_OIDC_TOKEN_FILE", file.to_str().unwrap()).run("check");
    assert_says(&checked.stdout, &[&format!("what ENV0_OIDC_TOKEN_FILE={file:?} holds")]);
}

#[test]
fn check_offline_tells_of_what_is_no_token_by_its_form_alone() {
    let aws = LocalAws::start();
    let checked = Setup::new(&aws).set("ENV0_OIDC_TOKEN", "AKIA0123456789ABCDEF").run("check --offline");
    assert_says(&checked.stdout, &["[fail] token", "what ENV0_OIDC_TOKEN holds is not an OIDC token"]);
    assert_eq!(checked.code, Some(77), "{}", checked.stdout);
    let good = Setup::new(&aws).run("check --offline");
    assert_eq!(good.code, Some(0), "{}", good.stdout);
}
