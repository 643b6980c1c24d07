//! `verify`: walks the bucket and judges the chain.
//!
//! The walk reads, the judge decides; the judge is pure. `README.md` specifies the format and the rules.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{NaiveDate, NaiveTime, Utc};
use clap::Args;

use crate::batch::LogType;
use crate::chain::PublicKey;
use crate::config::Config;
use crate::network::Network;
use crate::s3::read::Reader;

mod body;
mod error;
mod heads;
mod journal;
mod judge;
mod key;
mod ranges;
mod receipts;
mod report;
mod walk;

pub use error::VerifyError;
pub use heads::HeadsError;
pub use journal::JournalError;
pub use receipts::ReceiptsError;

use judge::{Judge, Rules};
use receipts::{Failure, Ledger, Receipts};
use report::{Finding, Kind};
use walk::{Progress, Walk};

/// Reads a day from the command line.
fn day(text: &str) -> Result<NaiveDate, String> {
    text.parse().map_err(|_| format!("expected a day that exists, such as {}", crate::batch::now().date_naive()))
}

/// What to verify, and by what.
#[derive(Debug, Clone, Default, Args)]
pub struct VerifyOptions {
    /// First day to judge, UTC.
    #[arg(long, alias = "since", value_name = "YYYY-MM-DD", value_parser = day)]
    pub from: Option<NaiveDate>,
    /// Last day to judge, UTC.
    #[arg(long, alias = "until", value_name = "YYYY-MM-DD", value_parser = day)]
    pub to: Option<NaiveDate>,
    /// Judge this instance only; may be repeated.
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub instance: Vec<String>,
    /// Ed25519 public key in PEM; repeat it for every key that was in use. Without one, an attack doesn't show.
    #[arg(long, value_name = "FILE")]
    pub public_key: Vec<PathBuf>,
    /// Chain heads that /status told: shows a missing tail, or a whole missing instance.
    #[arg(long, value_name = "FILE")]
    pub heads: Vec<PathBuf>,
    /// Acknowledgements that a client kept, one JSON object a line, with or without the `events` sent.
    #[arg(long, value_name = "FILE")]
    pub receipts: Vec<PathBuf>,
    /// A report of an earlier `verify --json`, which vouches for what came before it.
    #[arg(long, value_name = "FILE")]
    pub anchor: Vec<PathBuf>,
    /// A lifecycle rule may have removed what was opened before this day.
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub expired_before: Option<NaiveDate>,
    /// What was opened before this day may lack a signature: for a signing key that came later.
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day, requires = "public_key")]
    pub unsigned_before: Option<NaiveDate>,
    /// It is no failure that there is nothing to judge.
    #[arg(long)]
    pub allow_empty: bool,
    /// Objects without env0-* metadata fail the verification.
    #[arg(long)]
    pub strict: bool,
    /// Write the report as JSON.
    #[arg(long)]
    pub json: bool,
    /// Remember in this file what was read, and go on from there when it exists.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
}

/// Verifies the bucket and writes the report to stdout. Takes at most some 100 MiB, whatever the bucket's size, with a
/// million receipts.
///
/// Returns the exit code: 0 when all holds, 1 when something fails or there is nothing to judge, 2 when nothing but
/// `pending` is open.
pub async fn run(options: &VerifyOptions, config: &Config, network: &Network) -> Result<u8, VerifyError> {
    let report = report(options, config, network).await?;
    let text = if options.json { format!("{:#}\n", report.to_json()) } else { report.to_string() };
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has closed the pipe because it has seen enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(report.exit_code()),
        written => written.map(|()| report.exit_code()).map_err(VerifyError::Output),
    }
}

async fn report(options: &VerifyOptions, config: &Config, network: &Network) -> Result<report::Report, VerifyError> {
    if let (Some(from), Some(to)) = (options.from, options.to)
        && from > to
    {
        return Err(VerifyError::Window(from, to));
    }
    let now = crate::batch::now();
    let rules = rules(options, config, now)?;
    let receipts = Arc::new(Receipts::read(&options.receipts)?);
    let scope = format!("s3://{}/{}", config.bucket_name, config.bucket_path);
    let journal = options.resume.as_ref().map(|path| journal::Journal::open(path, &scope)).transpose()?;
    let mut walk = Walk {
        reader: Reader::connect(config, network).await,
        bucket_path: config.bucket_path.clone(),
        from: options.from,
        to: options.to,
        instances: options.instance.clone(),
        ledger: Ledger::new(&receipts),
        receipts,
        judge: Judge::new(rules),
        journal,
        resumed: 0,
        progress: Progress::new(),
    };
    walk.run().await?;
    let mut report = walk.judge.finish();
    report.resumed = walk.resumed;
    if !walk.receipts.is_empty() {
        report.tails_known = true;
        let window = |key: &str| opened_in_window(options, &config.bucket_path, key);
        let counts = walk.ledger.finish(&walk.receipts, now, window, |key, failure| {
            report.findings.add(receipt_finding(&config.bucket_path, key, failure));
        })?;
        report.receipts = Some(counts);
    }
    Ok(report)
}

fn rules(options: &VerifyOptions, config: &Config, now: chrono::DateTime<Utc>) -> Result<Rules, VerifyError> {
    let mut rules = Rules {
        bucket: config.bucket_name.clone(),
        bucket_path: config.bucket_path.clone(),
        from: options.from,
        to: options.to,
        instances: options.instance.clone(),
        expired_before: options.expired_before,
        unsigned_before: options.unsigned_before,
        strict: options.strict,
        allow_empty: options.allow_empty,
        now,
        ..Rules::default()
    };
    for path in &options.public_key {
        rules.public_keys.push(PublicKey::from_pem_file(path)?);
    }
    for path in &options.heads {
        rules.heads.extend(heads::read(path)?);
    }
    for path in &options.anchor {
        rules.anchors.extend(heads::read(path)?);
    }
    Ok(rules)
}

fn log_type_of(bucket_path: &str, key: &str) -> Option<LogType> {
    LogType::ALL.into_iter().find(|log_type| key.starts_with(&key::folder(bucket_path, *log_type)))
}

/// When the batch of a receipt's key was opened; none outside the window. A key that the daemon doesn't make
/// is in every window.
fn opened_in_window(options: &VerifyOptions, bucket_path: &str, key: &str) -> Option<chrono::DateTime<Utc>> {
    let parts = log_type_of(bucket_path, key).and_then(|log_type| key::parse(&key::folder(bucket_path, log_type), key));
    let Some(parts) = parts else { return Some(chrono::DateTime::UNIX_EPOCH) };
    let after_start = options.from.is_none_or(|from| parts.opened >= from.and_time(NaiveTime::MIN));
    let before_end = options.to.is_none_or(|to| parts.opened.date() <= to);
    (after_start && before_end).then(|| parts.opened.and_utc())
}

fn receipt_finding(bucket_path: &str, key: &str, failure: Failure<'_>) -> Finding {
    let (kind, detail) = match failure {
        Failure::Missing => {
            (Kind::Missing, "acknowledged, and neither it nor an object renamed from it is there".into())
        }
        Failure::Pending => (Kind::Pending, "acknowledged within the hour: may still be in the spool".into()),
        Failure::Wrong(wrong) => (Kind::Altered, format!("a receipt does not hold: {wrong}")),
    };
    let (log_type, key) = (log_type_of(bucket_path, key), Some(key.to_owned()));
    Finding { kind, log_type, instance: None, sequences: None, key, detail }
}
