//! A bucket that two daemons filled through crashes, lost answers, a taken name and a quarantined batch; and an
//! auditor who has it judged by both verifiers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use serde_json::{Value, json};

use crate::harness::{AUDITS, DEPLOYMENTS, Daemon, Finished, Setup, wait_until, wait_until_delivered};
use crate::local_aws::{Fault, LocalAws, Object};

/// The two chains that the tests damage are of this type.
pub(crate) const TYPE: &str = "env0-audits";

pub(crate) struct Vault {
    pub(crate) aws: LocalAws,
    /// Instance id of a daemon that crashed often; signs with key `a`.
    pub(crate) a: String,
    /// Instance id of a daemon that compresses; signs with key `b`.
    pub(crate) b: String,
    /// Files by name: `a.pem`, `b.pem` (public keys), `heads`, `receipts`.
    folder: tempfile::TempDir,
    auditor: Setup,
    /// As it was filled.
    objects: Vec<Object>,
    /// What is found in the untouched bucket.
    baseline: Vec<Value>,
}

static VAULT: LazyLock<Mutex<Vault>> = LazyLock::new(|| Mutex::new(Vault::fill()));

/// The bucket as it was filled, for this test alone while it runs.
pub(crate) fn vault() -> MutexGuard<'static, Vault> {
    let vault = VAULT.lock().unwrap_or_else(PoisonError::into_inner);
    vault.restore();
    vault
}

impl Vault {
    fn fill() -> Vault {
        let aws = LocalAws::start();
        let folder = tempfile::tempdir().unwrap();
        let mut receipts = String::new();
        for name in ["a", "b"] {
            make_keys(&folder, name);
        }
        let signing = |name: &str| folder.path().join(format!("{name}.private.pem")).to_str().unwrap().to_owned();
        let setup = || Setup::new(&aws).set("ENV0_S3_LOG_BATCH_MAX_BYTES", "64").set("ENV0_S3_LOG_BUCKET_PATH", "logs");
        let a = setup().set("ENV0_S3_LOG_SIGNING_KEY_FILE", signing("a"));
        let b = setup().set("ENV0_S3_LOG_SIGNING_KEY_FILE", signing("b")).set("ENV0_S3_LOG_COMPRESSION", "gzip");

        // Another writer owns the first name, so the first object is renamed.
        aws.s3.inject(Fault::take_key().times(1).where_key_has(TYPE));
        let daemon = a.start();
        send(&daemon, "before the first crash", &mut receipts);
        // A kill between that 412 and the new name would take the other's object for the daemon's own.
        // Other batches may arrive before, so it is the renamed one that is waited for.
        let is_renamed = |object: &Object| object.metadata.contains_key("env0-renamed-from");
        wait_until("the first object has its new name", || aws.s3.objects().iter().any(is_renamed));
        daemon.kill();
        aws.s3.inject(Fault::lose_response().times(2));
        let daemon = a.start();
        send(&daemon, "after the first crash", &mut receipts);
        wait_until_delivered(&a);
        daemon.kill();
        quarantine_one(&aws, &a);
        let daemon = a.start();
        send(&daemon, "after the quarantine", &mut receipts);
        wait_until_delivered(&a);
        let mut heads = heads_at_rest(&daemon);
        let daemon_b = b.start();
        send(&daemon_b, "compressed", &mut receipts);
        wait_until_delivered(&b);
        heads += &heads_at_rest(&daemon_b);

        std::fs::write(folder.path().join("heads"), &heads).unwrap();
        std::fs::write(folder.path().join("receipts"), receipts).unwrap();
        let instances: Vec<_> = serde_json::Deserializer::from_str(&heads).into_iter::<Value>().map(chain_of).collect();
        let mut auditor = setup();
        for (name, value) in aws.auditor_environment() {
            auditor = auditor.set(name, value);
        }
        let mut objects = aws.s3.objects();
        objects.iter_mut().for_each(|object| object.last_modified -= Duration::from_secs(2 * 3600));
        let (a, b) = (instances[0].clone(), instances[1].clone());
        let mut vault = Vault { aws, a, b, folder, auditor, objects, baseline: Vec::new() };
        vault.restore();
        vault.baseline = vault.verify("--public-key a.pem --public-key b.pem").findings;
        vault
    }

    fn restore(&self) {
        self.aws.s3.heal();
        for object in self.aws.s3.objects() {
            self.aws.s3.remove(&object.key);
        }
        self.objects.iter().for_each(|object| self.put(object.clone()));
    }

    /// Puts an object as it is, age included.
    pub(crate) fn put(&self, object: Object) {
        self.aws.s3.put(&object.key, object.body.clone(), object.metadata.clone());
        self.aws.s3.change(&object.key, |new| new.last_modified = object.last_modified);
    }

    /// The object with a number in an instance's chain of audits.
    pub(crate) fn object(&self, instance: &str, sequence: u64) -> Object {
        let is =
            |object: &Object, name: &str, value: &str| object.metadata.get(name).is_some_and(|found| found == value);
        let sequence = sequence.to_string();
        let mut objects = self.objects.iter().filter(|object| object.key.contains(TYPE));
        let found = objects.find(|o| is(o, "env0-instance", instance) && is(o, "env0-sequence", &sequence));
        found.unwrap_or_else(|| panic!("no number {sequence} of {instance}")).clone()
    }

    /// The numbers of an instance's chain of audits that have an object, rising.
    pub(crate) fn numbers(&self, instance: &str) -> Vec<u64> {
        let of_chain =
            |o: &&Object| o.key.contains(TYPE) && o.metadata.get("env0-instance").is_some_and(|i| i == instance);
        let mut numbers: Vec<u64> = self
            .objects
            .iter()
            .filter(of_chain)
            .map(|object| object.metadata["env0-sequence"].parse().unwrap())
            .collect();
        numbers.sort_unstable();
        numbers
    }

    pub(crate) fn change(&self, instance: &str, sequence: u64, change: impl FnOnce(&mut Object)) {
        assert!(self.aws.s3.change(&self.object(instance, sequence).key, change));
    }

    pub(crate) fn set(&self, instance: &str, sequence: u64, name: &str, value: &str) {
        self.change(instance, sequence, |object| drop(object.metadata.insert(name.into(), value.into())));
    }

    pub(crate) fn remove(&self, instance: &str, sequence: u64) {
        assert!(self.aws.s3.remove(&self.object(instance, sequence).key));
    }

    /// A file in the folder where [`Vault::verify`] finds the names in its arguments.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `verify` as it is written, without comparing.
    pub(crate) fn run(&self, arguments: &str) -> Finished {
        self.auditor.run(&format!("verify {}", self.with_paths(arguments)))
    }

    /// As on a machine where nobody is logged in to AWS.
    pub(crate) fn run_without_credentials(&self) -> Finished {
        Setup::new(&self.aws).set("AWS_EC2_METADATA_DISABLED", "true").run("verify")
    }

    /// What `verify` writes for people.
    pub(crate) fn text(&self, arguments: &str) -> String {
        self.run(arguments).stdout
    }

    fn with_paths(&self, arguments: &str) -> String {
        let path = |word: &str| match self.file(word) {
            path if path.exists() => path.to_str().unwrap().to_owned(),
            _ => word.to_owned(),
        };
        arguments.split_whitespace().map(path).collect::<Vec<_>>().join(" ")
    }

    /// Has both verifiers judge the bucket; they have to agree.
    pub(crate) fn verify(&self, arguments: &str) -> Verdict {
        let arguments = self.with_paths(arguments);
        let finished = self.auditor.run(&format!("verify --json {arguments}"));
        let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished:?}"));
        assert_eq!(finished.code.map(Into::into), report["exit_code"].as_i64(), "{finished:?}");
        if let Some(python) = std::env::var_os("VERIFIER_PYTHON") {
            let mut other = Command::new(python);
            other
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verifier/verify.py"))
                .args(arguments.split_whitespace());
            other.env_clear().envs(self.auditor.environment());
            let output = other.output().unwrap();
            let other: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
            assert_eq!(output.status.code().map(Into::into), other["exit_code"].as_i64());
            assert_eq!(comparable(&report), comparable(&other), "the verifiers disagree on `{arguments}`\n{report:#}");
        }
        let findings = report["findings"].as_array().unwrap().iter().map(without_detail).collect();
        Verdict { report, findings, baseline: self.baseline.clone() }
    }
}

fn chain_of(status: Result<Value, serde_json::Error>) -> String {
    let status = status.unwrap();
    let chain = status["types"].as_array().unwrap().iter().find(|chain| chain["type"] == TYPE).unwrap();
    chain["chain_instance"].as_str().unwrap().to_owned()
}

fn make_keys(folder: &tempfile::TempDir, name: &str) {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let pem = |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", encode(der));
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    let write =
        |ending: &str, text: String| std::fs::write(folder.path().join(format!("{name}{ending}")), text).unwrap();
    write(".private.pem", pem("PRIVATE KEY", pkcs8.as_ref()));
    write(".pem", pem("PUBLIC KEY", public.as_ref()));
}

/// Sends events of many shapes, each request a batch of its own, and keeps the acknowledgements.
fn send(daemon: &Daemon, note: &str, receipts: &mut String) {
    let redacted = json!({"customEnv0EnvironmentVariables": {"oidcToken": "secret \" token", "x": 1.50}, "note": note});
    let bodies = [
        (vec![json!({"n": 1, "note": note}), json!({"n": 2, "pad": "x".repeat(100)})], None),
        (vec![redacted], None),
        (vec![json!(format!("plain text: {note}")), json!("a second \"line\"")], Some("\n")),
        (vec![json!({"nested": {"a": [1, {"b": null}]}, "pad": "ü".repeat(50)})], Some("pretty")),
    ];
    for (events, shape) in bodies {
        let text = |event: &Value| match (event, shape) {
            (Value::String(text), _) => text.clone(),
            (event, Some("pretty")) => format!("{event:#}"),
            (event, _) => event.to_string(),
        };
        let body = events.iter().map(text).collect::<Vec<_>>().join("\n");
        for path in [AUDITS, DEPLOYMENTS] {
            let mut receipt = daemon.post(path, &body).json();
            receipt["events"] = json!(events);
            *receipts += &format!("{receipt}\n");
        }
    }
}

/// Leaves a sealed batch in the spool, changes it there, and lets the daemon find out.
fn quarantine_one(aws: &LocalAws, setup: &Setup) {
    aws.s3.inject(Fault::slow_down());
    let daemon = setup.start();
    daemon.post(AUDITS, r#"{"this":"will be changed on disk, and is in no receipt","pad":"xxxxxxxxxxxxxxxx"}"#);
    let sealed = |name: &String| name.ends_with(".sealed") || name.ends_with(".sending");
    wait_until("the batch is sealed", || setup.spool_files(TYPE).iter().any(sealed));
    daemon.kill();
    let name = setup.spool_files(TYPE).into_iter().find(sealed).unwrap();
    let path = setup.spool().join(TYPE).join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[2] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    aws.s3.heal();
    let daemon = setup.start();
    wait_until_delivered(setup);
    daemon.kill();
}

/// What both verifiers must say alike.
fn comparable(report: &Value) -> Value {
    let mut findings: Vec<_> = report["findings"].as_array().unwrap().iter().map(without_detail).collect();
    findings.sort_by_key(Value::to_string);
    let mut chains = report["chains"].as_array().unwrap().clone();
    chains.sort_by_key(|chain| (chain["log_type"].to_string(), chain["instance"].to_string()));
    let rest = ["exit_code", "authenticated", "foreign", "archived"].map(|name| (name, report[name].clone()));
    json!({"findings": findings, "chains": chains, "rest": HashMap::from(rest)})
}

/// `/status` as soon as it counts no batch: a file is gone a moment before it is.
fn heads_at_rest(daemon: &Daemon) -> String {
    let mut heads = String::new();
    wait_until("the status counts no batch", || {
        heads = daemon.admin_get("/status").unwrap().text();
        let status: Value = serde_json::from_str(&heads).unwrap();
        status["types"].as_array().unwrap().iter().all(|of_type| of_type["batches"] == 0)
    });
    heads
}

fn without_detail(finding: &Value) -> Value {
    let parts =
        ["kind", "log_type", "instance", "sequences", "key"].map(|name| (name.to_owned(), finding[name].clone()));
    Value::Object(parts.into_iter().collect())
}

/// What both verifiers say.
pub(crate) struct Verdict {
    pub(crate) report: Value,
    /// Without their details.
    findings: Vec<Value>,
    baseline: Vec<Value>,
}

impl Verdict {
    /// Exit code, and the findings beyond those of the untouched bucket: kind, instance, numbers.
    #[track_caller]
    pub(crate) fn is(&self, exit_code: i64, findings: &[(&str, &str, Value)]) -> &Verdict {
        let mut baseline = self.baseline.clone();
        let is_new = |finding: &&Value| match baseline.iter().position(|known| known == *finding) {
            Some(index) => {
                baseline.remove(index);
                false
            }
            None => true,
        };
        let short = |f: &Value| {
            format!("{} {} {}", f["kind"].as_str().unwrap(), f["instance"].as_str().unwrap_or("-"), f["sequences"])
        };
        let mut found: Vec<_> = self.findings.iter().filter(is_new).map(short).collect();
        let mut expected: Vec<_> =
            findings.iter().map(|(kind, of, numbers)| format!("{kind} {of} {numbers}")).collect();
        found.sort();
        expected.sort();
        assert_eq!((self.report["exit_code"].as_i64().unwrap(), found), (exit_code, expected), "{:#}", self.report);
        self
    }

    #[track_caller]
    pub(crate) fn says(&self, name: &str, value: impl Into<Value>) -> &Verdict {
        assert_eq!(self.report[name], value.into(), "{:#}", self.report);
        self
    }
}
