//! What `verify` says: findings, the state of each chain, the verdict; as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{NaiveDate, TimeDelta};
use serde::Serialize;

use crate::batch::{ByType, LogType};
use crate::exit_code;

use super::ranges::{Range, show};

/// Findings of one kind that are kept in full; the rest is only counted, so that memory stays bounded.
pub(super) const FINDINGS_MAX_PER_KIND: u64 = 1_000;

/// What is missing is `pending` while it is younger: the daemon may still be trying to deliver it.
pub(super) const PENDING_FOR: TimeDelta = TimeDelta::hours(1);

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// Numbers without an object, between objects that are there.
    Gap,
    /// An object, its metadata or its link to its neighbour is not what was written.
    Altered,
    /// Heads or receipts prove that it existed; it isn't there.
    Missing,
    /// A second object with a number that is taken.
    Duplicated,
    /// No signature, though a public key was given.
    Unsigned,
    /// Archived without a checksum that S3 keeps: can't be judged before it is restored.
    Unread,
    /// The chain starts above 1 and nothing says why.
    Unanchored,
    /// No `env0-*` metadata.
    Foreign,
    /// A gap that may close by itself within the hour.
    Pending,
    /// Numbers without an object, for a reason that is known.
    Explained,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Kind::Gap => "gap",
            Kind::Altered => "altered",
            Kind::Missing => "missing",
            Kind::Duplicated => "duplicated",
            Kind::Unsigned => "unsigned",
            Kind::Unread => "unread",
            Kind::Unanchored => "unanchored",
            Kind::Foreign => "foreign",
            Kind::Pending => "pending",
            Kind::Explained => "explained",
        };
        f.pad(name)
    }
}

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log_type: Option<LogType>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<String>,
    /// First and last sequence number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sequences: Option<Range>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    pub(super) detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<10} {}", self.kind, self.log_type.map(LogType::as_str).unwrap_or("any type"))?;
        if let Some(instance) = &self.instance {
            // As the key below.
            write!(f, ", instance {}", instance.escape_debug())?;
        }
        if let Some(range) = self.sequences {
            write!(f, ", number {}", show(range))?;
        }
        if let Some(key) = &self.key {
            // A foreign key may hold control characters, which must not reach a terminal.
            write!(f, ", {}", key.escape_debug())?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// Findings, bounded: all counted, the first of each kind kept.
#[derive(Debug, Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    counts: BTreeMap<Kind, u64>,
}

impl Findings {
    pub(super) fn add(&mut self, finding: Finding) {
        let count = self.counts.entry(finding.kind).or_default();
        *count += 1;
        if *count <= FINDINGS_MAX_PER_KIND {
            self.kept.push(finding);
        }
    }

    fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }
}

/// The state of one instance's chain of one log type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ChainReport {
    pub(super) instance: String,
    pub(super) log_type: LogType,
    #[serde(flatten)]
    pub(super) counts: Counts,
    /// Every number in these ranges has its object, unaltered, linked to the one before.
    pub(super) complete: Vec<Range>,
    /// The last object of the chain, an anchor for the next verification.
    pub(super) head: Option<Head>,
}

/// What was counted in a chain; sequence numbers without an object one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) objects: u64,
    pub(super) events: u64,
    pub(super) gaps: u64,
    pub(super) altered: u64,
    pub(super) missing: u64,
    pub(super) duplicated: u64,
    pub(super) unsigned: u64,
    pub(super) unread: u64,
    pub(super) explained: u64,
    pub(super) pending: u64,
    pub(super) unanchored: u64,
}

impl Counts {
    /// Counts a finding: its numbers where it is about numbers without an object, else one object.
    pub(super) fn add(&mut self, kind: Kind, numbers: u64) {
        match kind {
            Kind::Gap => self.gaps += numbers,
            Kind::Missing => self.missing += numbers,
            Kind::Explained => self.explained += numbers,
            Kind::Pending => self.pending += numbers,
            Kind::Unanchored => self.unanchored += numbers,
            Kind::Altered => self.altered += 1,
            Kind::Duplicated => self.duplicated += 1,
            Kind::Unsigned => self.unsigned += 1,
            Kind::Unread => self.unread += 1,
            // Without metadata there is no chain to count it in.
            Kind::Foreign => {}
        }
    }
}

/// Where a chain ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Head {
    pub(super) sequence: u64,
    /// 64 lower-case hex digits.
    pub(super) sha256: String,
}

/// How many acknowledgements stand where they said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct ReceiptCounts {
    pub(super) held: u64,
    pub(super) failed: u64,
    pub(super) pending: u64,
    /// Their objects lie outside the window.
    pub(super) not_judged: u64,
}

/// The whole report.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) bucket: String,
    pub(super) bucket_path: String,
    pub(super) from: Option<NaiveDate>,
    pub(super) to: Option<NaiveDate>,
    pub(super) chains: Vec<ChainReport>,
    /// Objects without `env0-*` metadata.
    pub(super) foreign: ByType<u64>,
    pub(super) archived: u64,
    pub(super) resumed: u64,
    pub(super) receipts: Option<ReceiptCounts>,
    pub(super) findings: Findings,
    /// A public key was given.
    pub(super) authenticated: bool,
    /// Heads or receipts were given.
    pub(super) tails_known: bool,
    /// Foreign objects fail.
    pub(super) strict: bool,
    /// That there is nothing to judge is no failure.
    pub(super) allow_empty: bool,
    /// Objects without a signature that were opened before `--unsigned-before`.
    pub(super) unsigned_allowed: u64,
}

impl Report {
    /// 0 when all holds, 1 when something fails or there is nothing to judge, 2 when nothing but `pending` is open.
    pub(super) fn exit_code(&self) -> u8 {
        if self.fails() {
            exit_code::FAILED
        } else if self.findings.count(Kind::Pending) > 0 {
            exit_code::PENDING
        } else if self.is_empty() && !self.allow_empty {
            exit_code::FAILED
        } else {
            exit_code::OK
        }
    }

    fn fails(&self) -> bool {
        let fails = |kind: &Kind| match kind {
            Kind::Pending | Kind::Explained => false,
            Kind::Foreign => self.strict,
            _ => true,
        };
        self.findings.counts.keys().any(fails)
    }

    fn is_empty(&self) -> bool {
        self.chains.iter().all(|chain| chain.counts.objects == 0)
    }

    fn verdict(&self) -> &'static str {
        match self.exit_code() {
            _ if self.fails() => "failed",
            exit_code::PENDING => "pending",
            _ if self.is_empty() => "nothing to judge",
            _ if self.authenticated && self.unsigned_allowed == 0 => "verified",
            _ if self.authenticated => "verified, but for objects from before the signing",
            _ => "consistent, not authenticated",
        }
    }

    /// What this verification can't show, and what would show it.
    fn not_shown(&self) -> Vec<String> {
        let Report { archived, resumed, unsigned_allowed, .. } = self;
        let limits = [
            (!self.authenticated)
                .then(|| "an attack: without --public-key this shows loss and accident only".to_owned()),
            (*unsigned_allowed > 0).then(|| {
                format!("an attack on {unsigned_allowed} objects without a signature, from before --unsigned-before")
            }),
            (!self.tails_known).then(|| {
                "the last objects of a chain, or a whole instance, missing: only --heads or --receipts show that"
                    .to_owned()
            }),
            (*archived > 0).then(|| {
                format!("the bodies of {archived} archived objects: judged by the SHA-256 that S3 checked and stored")
            }),
            (*resumed > 0).then(|| format!("changes since then to {resumed} objects taken from the --resume file")),
        ];
        limits.into_iter().flatten().collect()
    }

    /// One JSON document.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let foreign: BTreeMap<_, _> = LogType::ALL.map(|log_type| (log_type, self.foreign[log_type])).into();
        let left_out: u64 =
            self.findings.counts.values().map(|count| count.saturating_sub(FINDINGS_MAX_PER_KIND)).sum();
        serde_json::json!({
            "verdict": self.verdict(),
            "exit_code": self.exit_code(),
            "authenticated": self.authenticated,
            "bucket": self.bucket,
            "bucket_path": self.bucket_path,
            "from": self.from.map(|day| day.to_string()),
            "to": self.to.map(|day| day.to_string()),
            "chains": self.chains,
            "foreign": foreign,
            "archived": self.archived,
            "unsigned_allowed": self.unsigned_allowed,
            "resumed": self.resumed,
            "receipts": self.receipts,
            "findings": self.findings.kept,
            "findings_left_out": left_out,
            "not_shown": self.not_shown(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings.kept {
            writeln!(f, "{finding}")?;
        }
        for (kind, count) in &self.findings.counts {
            if let Some(left_out @ 1..) = count.checked_sub(FINDINGS_MAX_PER_KIND) {
                writeln!(f, "{kind:<10} and {left_out} more")?;
            }
        }
        for chain in &self.chains {
            writeln!(f, "{chain}")?;
        }
        for log_type in LogType::ALL {
            let count = self.foreign[log_type];
            if count > 0 {
                writeln!(f, "{log_type}: {count} foreign objects, without env0-* metadata")?;
            }
        }
        if let Some(ReceiptCounts { held, failed, pending, not_judged }) = self.receipts {
            writeln!(f, "receipts: {held} held, {failed} failed, {pending} pending, {not_judged} outside the window")?;
        }
        for limit in self.not_shown() {
            writeln!(f, "not shown: {limit}")?;
        }
        if self.is_empty() && !self.allow_empty {
            writeln!(
                f,
                "no object of the daemon's lies under s3://{}/{} in the days that were asked for (all, without --from and --to): look at \
                 ENV0_S3_LOG_BUCKET_PATH, --from, --to and --instance, or allow it with --allow-empty",
                self.bucket, self.bucket_path
            )?;
        }
        writeln!(f, "verdict: {}", self.verdict())
    }
}

impl fmt::Display for ChainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChainReport { instance, log_type, counts, .. } = self;
        write!(f, "{log_type}, instance {instance}: {} objects, {} events, ", counts.objects, counts.events)?;
        if self.complete.is_empty() {
            f.write_str("nothing complete")?;
        }
        for (index, (first, last)) in self.complete.iter().enumerate() {
            let start = if index == 0 { "complete" } else { " and" };
            write!(f, "{start} from {first} to {last}")?;
        }
        let counts = [
            ("gaps", counts.gaps),
            ("altered", counts.altered),
            ("missing", counts.missing),
            ("duplicated", counts.duplicated),
            ("unsigned", counts.unsigned),
            ("unread", counts.unread),
            ("explained", counts.explained),
            ("pending", counts.pending),
            ("unanchored", counts.unanchored),
        ];
        counts.iter().filter(|(_, count)| *count > 0).try_for_each(|(name, count)| write!(f, ", {name} {count}"))
    }
}
