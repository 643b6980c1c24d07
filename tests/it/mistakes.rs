//! Mistakes that people make in their first hour: what is said names the value and leads out.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::disk::Mounted;
use crate::harness::{DEPLOYMENTS, Finished, Setup, TOKEN, Upload, event, wait_until};
use crate::local_aws::{Fault, LocalAws, Operation};
use crate::local_env0::LocalEnv0;

/// A user that owns nothing.
const STRANGER: u32 = 65_533;

#[track_caller]
pub(crate) fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// The last line of a check's text.
pub(crate) fn next(finished: &Finished) -> &str {
    finished.stdout.lines().last().unwrap()
}

#[test]
fn the_next_line_names_the_variable_that_is_missing_or_misspelled() {
    let aws = LocalAws::start();
    let missing = Setup::new(&aws).unset("ENV0_S3_LOG_BUCKET_NAME").run("check");
    assert_says(
        next(&missing),
        &["Next: configuration: set ENV0_S3_LOG_BUCKET_NAME right, for example ENV0_S3_LOG_BUCKET_NAME="],
    );
    let wrong = Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_AGE", "soon").run("check");
    assert_says(next(&wrong), &["Next: configuration: set ENV0_S3_LOG_BATCH_MAX_AGE to a duration from"]);
    let unknown = Setup::new(&aws).set("ENV0_S3_LOG_BUCKT_PATH", "x").run("check --offline");
    assert_says(next(&unknown), &["Next: configuration: correct the name ENV0_S3_LOG_BUCKT_PATH"]);
}

#[test]
fn a_start_that_could_get_no_event_tells_both_ways_to_get_some() {
    let aws = LocalAws::start();
    let finished =
        Setup::new(&aws).unset("ENV0_S3_LOG_INGEST_TOKEN").unset("ENV0_S3_LOG_OIDC_ORGANIZATION_ID").run("run");
    let both = [
        "to pull, set ENV0_API_KEY_ID and ENV0_API_KEY_SECRET",
        "to be sent events, set ENV0_S3_LOG_OIDC_ORGANIZATION_ID",
    ];
    assert_says(&finished.stderr, &both);
    let finished = Setup::new(&aws)
        .unset("ENV0_S3_LOG_INGEST_TOKEN")
        .unset("ENV0_S3_LOG_OIDC_ORGANIZATION_ID")
        .set("ENV0_API_KEY_ID", "id")
        .set("ENV0_API_KEY_SECRET", "secret")
        .set("ENV0_S3_LOG_PULL", "none")
        .run("run");
    assert_says(
        &finished.stderr,
        &["to pull, unset ENV0_S3_LOG_PULL", "to be sent events, set ENV0_S3_LOG_OIDC_ORGANIZATION_ID"],
    );
}

#[test]
fn a_check_whose_api_key_fails_names_the_key_and_not_the_token_as_what_comes_next() {
    let (aws, env0) = (LocalAws::start(), LocalEnv0::start());
    let of_puller = || {
        let setup =
            env0.environment().into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
        setup.unset("ENV0_OIDC_TOKEN").unset("ENV0_S3_LOG_INGEST_TOKEN").unset("ENV0_S3_LOG_OIDC_ORGANIZATION_ID")
    };
    let checked = of_puller().set("ENV0_API_KEY_SECRET", "a-wrong-secret").run("check");
    assert_eq!(checked.code, Some(77), "{}", checked.stdout);
    assert_says(next(&checked), &["Next: api-key: ", "ENV0_API_KEY_SECRET"]);
    assert_says(&checked.stdout, &["[skip] token ", "once the requests to env0's API succeed"]);
    let no_tls = env0.url().replace("http:", "https:");
    let checked = of_puller().set("ENV0_S3_LOG_API_URL", no_tls).run("check");
    assert_eq!(checked.code, Some(69), "{}", checked.stdout);
    assert_says(next(&checked), &["Next: api-key: ", "env0's API speaks no TLS"]);
    // A key that works, and no record with a token: now a token is missing.
    let checked = of_puller().run("check");
    assert_says(next(&checked), &["Next: token: "]);
}

#[test]
#[cfg_attr(not(is_root), ignore = "becomes another user, which takes root")]
fn a_spool_of_another_user_is_told_by_its_owner_and_never_to_be_moved_away() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    setup.start().kill();
    std::fs::set_permissions(setup.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(setup.spool(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let spool = setup.spool().display().to_string();
    let setup = setup.of_user(STRANGER);
    let owner =
        format!("{spool} belongs to uid 0; ENV0_S3_LOG_SPOOL_DIR must be a folder that uid {STRANGER} may write to");
    let checked = setup.run("check --offline");
    assert_says(next(&checked), &["Next: spool: ", &owner]);
    assert!(!checked.stdout.contains("move away"), "events may wait there: {}", checked.stdout);
    for command in ["run", "drain"] {
        let finished = setup.run(command);
        assert_says(&finished.stderr, &[&owner]);
        assert_eq!(finished.stderr.matches("Permission denied").count(), 1, "{}", finished.stderr);
    }
}

#[test]
#[cfg_attr(not(is_root), ignore = "becomes another user, which takes root")]
fn a_folder_or_file_of_another_user_in_the_spool_is_told_before_a_start() {
    let aws = LocalAws::start();
    aws.sts.set_down();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("1")).status, 200);
    daemon.kill();
    std::fs::set_permissions(setup.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let spool = setup.spool();
    let folders = ["env0-deployments", "env0-audits", "quarantine"].map(|name| spool.join(name));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()));
    let inner: Vec<_> = files.chain(folders.clone()).chain([spool.join("lock")]).collect();
    assert!(inner.iter().any(|path| path.extension().is_some_and(|ending| ending == "open")), "{inner:?}");
    let own = |path: &Path, uid| std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
    let top = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path()).chain([spool.clone()]);
    top.chain(inner.clone()).for_each(|path| own(&path, STRANGER));
    let setup = setup.of_user(STRANGER);
    for path in inner {
        own(&path, 0);
        let checked = setup.run("check --offline");
        let path_text = path.display().to_string();
        assert_says(next(&checked), &["Next: spool: ", &format!("{path_text} belongs to uid 0")]);
        assert_says(&checked.stdout, &[&format!("{path_text} can't be used: access {path_text}: Permission denied")]);
        own(&path, STRANGER);
    }
    let checked = setup.run("check --offline");
    assert_says(&checked.stdout, &["[ok]   spool"]);
    std::fs::set_permissions(&folders[0], std::fs::Permissions::from_mode(0o0)).unwrap();
    for said in [next(&setup.run("check --offline")), &setup.run("run").stderr] {
        assert_says(said, &[&format!("chmod u+rwX {}", folders[0].display())]);
        assert!(!said.contains("chown"), "{said}");
    }
}

#[test]
#[cfg_attr(not(may_mount), ignore = "mounts a file system, which takes root")]
fn a_full_and_a_read_only_disk_and_a_file_in_the_spools_place_are_told_apart() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let file = setup.folder().join("file");
    std::fs::write(&file, "").unwrap();
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", file.to_str().unwrap());
    let checked = setup.run("check --offline");
    assert_says(next(&checked), &["Next: spool: ", "a file has that name"]);
    assert_says(&setup.run("run").stderr, &[file.to_str().unwrap(), "a file has that name"]);

    let folder = setup.folder().join("small");
    let _tmpfs = Mounted::tmpfs(&folder, "1m");
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", folder.to_str().unwrap());
    std::fs::write(folder.join("filler"), vec![0; 1 << 20]).unwrap();
    let checked = setup.run("check --offline");
    assert_says(next(&checked), &["Next: spool: free or enlarge the disk"]);
}

#[test]
fn a_proxy_where_nobody_listens_is_named_with_its_variable() {
    let aws = LocalAws::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let checked = Setup::new(&aws).set("HTTP_PROXY", format!("http://user:a-proxys-password@{nobody}")).run("check");
    assert_says(next(&checked), &["Next: sts: ", &format!("HTTP_PROXY is {nobody}"), "NO_PROXY"]);
    assert!(!checked.stdout.contains("a-proxys-password"), "{}", checked.stdout);
}

#[test]
fn https_to_a_port_that_speaks_none_does_not_blame_a_certificate() {
    let aws = LocalAws::start();
    let url = aws.environment().into_iter().find(|(name, _)| *name == "AWS_ENDPOINT_URL_STS").unwrap().1;
    let checked = Setup::new(&aws).set("AWS_ENDPOINT_URL_STS", url.replace("http://", "https://")).run("check");
    assert_says(next(&checked), &["Next: sts: ", "speaks no TLS", "https://"]);
}

#[test]
fn an_api_url_of_another_server_is_told_by_its_variable() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    let setup = Setup::new(&aws).set("ENV0_API_KEY_ID", "id").set("ENV0_API_KEY_SECRET", "secret-of-the-key");
    // An admin listener answers 404 to a path that it doesn't know, as most servers do.
    let checked = setup.set("ENV0_S3_LOG_API_URL", format!("http://{}", daemon.admin)).run("check");
    assert_says(&checked.stdout, &["[fail] api-key", "404", "ENV0_S3_LOG_API_URL"]);
    assert!(!checked.stdout.contains("none is needed"), "{}", checked.stdout);
}

#[test]
fn a_folder_that_is_no_spool_and_a_link_that_leads_nowhere_are_told_what_to_name() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let drained = setup.run(&format!("drain --spool {}", setup.folder().display()));
    assert_says(&drained.stderr, &["has no manifest.json", "ENV0_S3_LOG_SPOOL_DIR, in that variable or with --spool"]);
    let link = setup.folder().join("link");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    let setup = setup.set("ENV0_S3_LOG_SPOOL_DIR", link.display().to_string());
    for text in [setup.run("check --offline").stdout, setup.run("run").stderr] {
        assert_says(&text, &["a link that leads nowhere"]);
    }
}

#[test]
fn pem_files_of_another_kind_are_told_by_what_they_hold() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let write = |name: &str, text: &str| {
        let path = setup.folder().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let cert = write("cert.pem", &issued.cert.pem());
    let key = write("key.pem", &issued.signing_key.serialize_pem());
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other_key = write("other-key.pem", &other.signing_key.serialize_pem());
    let begin = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted = write("encrypted.pem", begin);
    let no_pem = write("no.pem", "hello");
    let said = |cert: &Path, key: &Path| {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let environment = [("ENV0_S3_LOG_TLS_CERT_FILE", text(cert)), ("ENV0_S3_LOG_TLS_KEY_FILE", text(key))];
        let setup = environment.into_iter().fold(Setup::new(&aws), |setup, (name, value)| setup.set(name, value));
        setup.run("check --offline").stdout
    };
    assert_says(&said(&cert, &key), &["[ok]   files"]);
    assert_says(&said(&cert, &other_key), &["is another certificate's", other_key.to_str().unwrap()]);
    assert_says(&said(&cert, &encrypted), &["ENV0_S3_LOG_TLS_KEY_FILE", "encrypted", "openssl pkey"]);
    // The older form, of `openssl ec -aes128` and `openssl rsa -aes128`.
    let older = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB\n-----END EC PRIVATE KEY-----\n";
    assert_says(&said(&cert, &write("older.pem", older)), &["ENV0_S3_LOG_TLS_KEY_FILE", "encrypted", "openssl pkey"]);
    assert_says(&said(&key, &cert), &["it holds PRIVATE KEY alone", "it holds CERTIFICATE alone"]);
    assert_says(&said(&no_pem, &key), &["nothing in PEM"]);
    let der = setup.folder().join("cert.der");
    std::fs::write(&der, issued.cert.der()).unwrap();
    assert_says(&said(&der, &key), &["nothing in PEM", "openssl x509 -inform DER -in", "cert.der"]);
    let odd = write("odd.pem", "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n");
    assert_says(&said(&cert, &odd), &["ENV0_S3_LOG_TLS_KEY_FILE", "odd.pem", "RSA needs 2,048 bits"]);
}

#[test]
fn events_on_the_admin_port_and_status_on_the_other_are_sent_to_the_right_one() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    let events = Upload::post(DEPLOYMENTS).bearer(TOKEN).body(event("lost")).send(daemon.admin).unwrap();
    assert_eq!(events.status, 404);
    assert_says(&events.text(), &["ENV0_S3_LOG_LISTEN_ADDR"]);
    let status = Upload::new("GET", "/status").send(daemon.listen).unwrap();
    assert_eq!(status.status, 404);
    assert_says(&status.text(), &["ENV0_S3_LOG_ADMIN_ADDR"]);
    let plain = Upload::post("/v1/logs").bearer(TOKEN).body(event("plain")).send(daemon.listen).unwrap();
    assert_eq!(plain.status, 400);
    assert_says(&plain.text(), &["OTLP", DEPLOYMENTS]);
}

#[test]
fn an_address_in_use_says_how_to_find_who_has_it() {
    let aws = LocalAws::start();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let finished = Setup::new(&aws).set("ENV0_S3_LOG_LISTEN_ADDR", address.clone()).run("run");
    assert_says(&finished.stderr, &[&address, "ss -ltnp", "see config/README.md#it-does-not-start"]);
}

#[test]
fn verify_without_a_bucket_says_nothing_against_the_auditors_own_credentials() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).unset("ENV0_S3_LOG_BUCKET_NAME");
    let own = [("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"), ("AWS_PROFILE", "auditor"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")];
    let setup = own.into_iter().fold(setup, |setup, (name, value)| setup.set(name, value));
    let verified = setup.run("verify");
    assert_eq!(verified.code, Some(78));
    assert_says(&verified.stderr, &["ENV0_S3_LOG_BUCKET_NAME: required, and not set"]);
    assert!(!own.iter().any(|(name, _)| verified.stderr.contains(name)), "{}", verified.stderr);
    let warned = setup.run("drain").stderr;
    own.iter().for_each(|(name, _)| assert_says(&warned, &["set, and not read by this daemon", name]));
}

#[test]
fn a_bucket_that_is_denied_with_another_owner_configured_names_the_owner_first() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER", "999988887777");
    let likely = "the likely cause is ENV0_S3_LOG_EXPECTED_BUCKET_OWNER=999988887777";
    let checked = setup.run("check");
    assert_says(next(&checked), &["Next: bucket: ", likely, "s3:GetBucketLocation"]);
    let daemon = setup.start();
    wait_until("the log says it", || daemon.log().count("WARN", likely) == 1);
    aws.s3.inject(Fault::access_denied().on(Operation::GetBucketLocation));
    let checked = Setup::new(&aws).run("check");
    assert_says(next(&checked), &["Next: bucket: ", "s3:GetBucketLocation"]);
    assert!(!checked.stdout.contains("ENV0_S3_LOG_EXPECTED_BUCKET_OWNER"), "{}", checked.stdout);
}

#[test]
fn an_unknown_path_is_told_the_log_types_that_may_stand_before_it() {
    let aws = LocalAws::start();
    let daemon = Setup::new(&aws).start();
    let answer = daemon.send(Upload::post("/env0-audits/loki/api/v1/pusch").bearer(TOKEN).body(event("lost")));
    assert_eq!(answer.status, 404);
    assert_says(&answer.text(), &["POST /loki/api/v1/push", "POST /env0-audits/loki/api/v1/push"]);
}

#[test]
fn a_second_check_that_writes_finds_a_kms_key_that_can_not_be_used() {
    let aws = LocalAws::start();
    assert_eq!(Setup::new(&aws).run("check --write").code, Some(0));
    // The store says 412 before it looks at the key.
    aws.s3.inject(Fault::kms_denied().where_key_has("env0-s3-logs-check-"));
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_SSE_KMS_KEY_ID", "alias/of-another-account");
    let checked = setup.run("check --write");
    assert_eq!(checked.code, Some(77), "{}", checked.stdout);
    assert_says(next(&checked), &["Next: write: ", "kms:GenerateDataKey"]);
    aws.s3.heal();
    assert_says(&setup.run("check --write").stdout, &["[ok]   write", "wrote env0-s3-logs-check-20"]);
}

#[test]
fn verify_names_the_day_it_wants_the_bucket_and_the_host() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let setup = setup.set("AWS_EC2_METADATA_DISABLED", "true");
    assert_says(&setup.run("verify --from 29.11.2026").stderr, &["expected a day that exists, such as 20"]);
    let without = setup.run("verify").stderr;
    assert_says(&without, &["no AWS credentials were found; verify takes an auditor's own"]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let setup = setup.set("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").set("AWS_SECRET_ACCESS_KEY", "secret");
    let setup = setup.set("AWS_ENDPOINT_URL_S3", format!("http://{nobody}"));
    let away = setup.run("verify").stderr;
    let asked = format!("ListObjectsV2 of the bucket {} at {nobody} failed", crate::local_aws::BUCKET);
    assert_says(&away, &[&asked, "nothing answers"]);
}

#[test]
fn a_bucket_that_is_not_there_sends_nobody_to_a_drain_of_an_empty_spool() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws).set("ENV0_S3_LOG_BUCKET_NAME", "acme-env0-log");
    let checked = setup.run("check");
    assert_says(next(&checked), &["Next: bucket: make the bucket, or set ENV0_S3_LOG_BUCKET_NAME right"]);
    assert!(!checked.stdout.contains("drain"), "{}", checked.stdout);
    let daemon = setup.start();
    assert_eq!(daemon.post(DEPLOYMENTS, event("1")).status, 200);
    wait_until("the log says it", || daemon.log().count("WARN", "where events wait already stop the daemon") > 0);
    daemon.kill();
    assert_says(&setup.run("check").stdout, &["Next: bucket: make the bucket; or", "drain --to-configured"]);
}

#[test]
fn a_certificate_of_version_1_is_told_how_one_of_version_3_is_made() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let (cert, key) = (setup.folder().join("cert.pem"), setup.folder().join("key.pem"));
    std::fs::write(
        &cert,
        format!("-----BEGIN CERTIFICATE-----\n{CERTIFICATE_OF_VERSION_1}\n-----END CERTIFICATE-----\n"),
    )
    .unwrap();
    let any = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&key, any.signing_key.serialize_pem()).unwrap();
    let setup = setup.set("ENV0_S3_LOG_TLS_CERT_FILE", cert.to_str().unwrap());
    let checked = setup.set("ENV0_S3_LOG_TLS_KEY_FILE", key.to_str().unwrap()).run("check --offline");
    assert_says(&checked.stdout, &["of version 1", "make one of version 3", "subjectAltName=DNS:"]);
    assert!(!checked.stdout.contains("UnsupportedCertVersion"), "{}", checked.stdout);
}

#[test]
fn single_quotes_in_json_and_a_word_for_a_unit_are_told_what_is_written_instead() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    for body in ["{'message':'hello'}", r#"{"message":'hello'}"#] {
        let answer = daemon.post(DEPLOYMENTS, body);
        assert_eq!(answer.status, 400);
        assert_says(&answer.text(), &["event 0, byte ", "JSON has double quotes"]);
    }
    assert!(!daemon.post(DEPLOYMENTS, "{1}").text().contains("quotes"));
    drop(daemon);
    for (written, meant) in [("5min", "5m"), ("5minutes", "5m"), ("2hrs", "2h"), ("10secs", "10s"), ("1day", "1d")] {
        assert_says(
            &setup.run(&format!("drain --timeout {written}")).stderr,
            &["from 0s to", &format!("; here {meant}")],
        );
    }
    assert!(!setup.run("drain --timeout 5x").stderr.contains("here"));
}

#[test]
fn a_spool_among_the_files_of_others_is_warned_of_with_two_of_their_names() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    let daemon = setup.start();
    assert_eq!(daemon.log().count("WARN", "no daemon made"), 0, "{}", daemon.log().text());
    daemon.kill();
    assert_says(&setup.run("check --offline").stdout, &["[ok]   spool"]);
    for name in ["notes.txt", "backup", "zebra", ".hidden", "lost+found"] {
        std::fs::write(setup.spool().join(name), "").unwrap();
    }
    let said = "also holds files that no daemon made: backup, notes.txt and 1 more";
    assert_says(&setup.run("check --offline").stdout, &["[warn] spool", said]);
    assert_eq!(setup.start().log().count("WARN", said), 1);
}

/// What `openssl x509 -req` makes without extensions.
const CERTIFICATE_OF_VERSION_1: &str = "MIIBEzCBuwIUcKp1BH7N/ZgV6CdScrEcVBw7TqcwCgYIKoZIzj0EAwIwDDEKMAgG\
    A1UEAwwBaDAgFw0yNjExMzAwOTE1MTNaGA8yMTI2MTEwNjA5MTUxM1owDDEKMAgG\
    A1UEAwwBaDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMwNnMeEa0MLt8lnR2P/\
    jaycBbnDCyEgjq77v0tcFp3AaaKkpigCQYTurhaq1ThtIhcomRmr0tEIo1EgMaqk\
    ZYQwCgYIKoZIzj0EAwIDRwAwRAIgan1fyc2bO4Q6vAgfHwKtFnndMVrgWfpFVf9i\
    8H/BZn8CICPuhWuChwpVs1iG8/3I0ESskoGsNcgf90pBZC6RcMkq";

#[test]
fn an_option_that_there_is_not_leads_to_the_one_that_is_meant() {
    let aws = LocalAws::start();
    let setup = Setup::new(&aws);
    assert_says(&setup.run("--config x.toml").stderr, &["environment variable (config/example.env lists them)"]);
    assert_says(&setup.run("drain /var/lib/x").stderr, &["--spool DIR"]);
    assert_says(&setup.run("verify s3://bucket").stderr, &["its bucket from ENV0_S3_LOG_BUCKET_NAME"]);
    assert_says(&setup.run("check -offline").stderr, &["an option begins with two dashes"]);
    let since = setup.run("verify --since yesterday").stderr;
    assert_says(&since, &["expected a day that exists"]);
    assert_says(&setup.run("verify --resume /nope/x").stderr, &["/nope/x: its folder is not there; make that first"]);
    assert_says(&setup.run("verify --instance=").stderr, &["a value is required for '--instance"]);
}
