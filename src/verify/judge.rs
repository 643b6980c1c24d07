//! Judges the objects of a bucket: pure, in any order, in memory that grows with what is wrong, not with the bucket.
//!
//! Objects that link to their neighbours are joined into runs, of which only both ends are kept. At the end every
//! place between two runs is a gap or a broken link.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};

use crate::batch::{ByType, LogType, Sha256};
use crate::chain::{ChainEntry, MetadataError, Signature};

use super::key;
use super::report::{Counts, Finding, Findings, Kind, Report};

mod chain;
mod rules;

use chain::{Chain, Link, Note, Suspect};
pub(super) use rules::Rules;
use rules::{Doubt, Name};

/// How many objects' keys are remembered, to name the original of a duplicate; at times twice as many.
const REMEMBERED_MAX: usize = 100_000;
/// How many doubtful objects are compared with their chain at its end. Further ones are judged at once.
const SUSPECTS_MAX: usize = 10_000;

/// An object as the walk found it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) key: String,
    pub(super) log_type: LogType,
    /// By S3's clock.
    pub(super) last_modified: DateTime<Utc>,
    /// User metadata, names in lower case without `x-amz-meta-`.
    pub(super) metadata: HashMap<String, String>,
    pub(super) content: Content,
}

/// What is known of an object's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// All of it was read. No `records` where it can't be decompressed.
    Read { sha256: Sha256, records: Option<u64> },
    /// Archived; S3 tells the SHA-256 that it checked when the object was written, where it kept one.
    Archived { sha256: Option<Sha256> },
    /// S3 gives it, with metadata that are no text.
    Unreadable,
    /// A neighbour of the window, or no object of a chain that is judged.
    NotRead,
}

/// Where an object lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// Before the window: tells only where the chain comes from.
    Before,
    /// In the window.
    Inside,
    /// After the window: tells only how the chain goes on.
    After,
}

/// Takes in objects, one by one, in any order, and tells what holds.
pub(super) struct Judge {
    rules: Rules,
    chains: BTreeMap<Name, Chain>,
    remembered: Remembered,
    findings: Findings,
    foreign: ByType<u64>,
    archived: u64,
    unsigned_allowed: u64,
    /// Suspects of all chains together.
    suspected: usize,
}

impl Judge {
    pub(super) fn new(rules: Rules) -> Judge {
        let (remembered, findings) = Default::default();
        let heads = rules.heads.iter().filter(|head| rules.judges(&head.instance));
        let chains = heads.map(|head| ((head.log_type, head.instance.clone()), Chain::default())).collect();
        Judge {
            rules,
            chains,
            remembered,
            findings,
            foreign: ByType::default(),
            archived: 0,
            unsigned_allowed: 0,
            suspected: 0,
        }
    }

    /// Takes in one object.
    pub(super) fn object(&mut self, position: Position, observed: &Observed) {
        let Observed { key, log_type, metadata, content, .. } = observed;
        if *content == Content::Unreadable {
            if position != Position::Inside {
                return;
            }
            let (log_type, key) = (Some(*log_type), Some(key.clone()));
            let detail = "its metadata was changed: a value of it is no text".to_owned();
            return self.findings.add(Finding {
                kind: Kind::Altered,
                log_type,
                instance: None,
                sequences: None,
                key,
                detail,
            });
        }
        match ChainEntry::from_metadata(key, *log_type, metadata) {
            Ok((entry, signature)) => self.entry(position, observed, &entry, signature),
            Err(error) if position == Position::Inside => self.no_entry(observed, &error),
            Err(_) => {}
        }
    }

    fn no_entry(&mut self, Observed { key, log_type, metadata, .. }: &Observed, error: &MetadataError) {
        if *error == MetadataError::Absent {
            self.foreign[*log_type] += 1;
        }
        let (kind, detail) = match error {
            MetadataError::Absent => (Kind::Foreign, "not written by this daemon, or stripped of its metadata".into()),
            error => (Kind::Altered, format!("its metadata was changed: {error}")),
        };
        let instance = metadata.get("env0-instance").cloned();
        let (log_type, key) = (Some(*log_type), Some(key.clone()));
        self.findings.add(Finding { kind, log_type, instance, sequences: None, key, detail });
    }

    fn entry(&mut self, position: Position, observed: &Observed, entry: &ChainEntry, signature: Option<Signature>) {
        if !self.rules.judges(&entry.instance) {
            return;
        }
        let parts = key::parse(&key::folder(&self.rules.bucket_path, entry.log_type), &entry.key);
        let opened = parts.as_ref().map(|parts| parts.opened);
        let is_signed = signature.is_some();
        let doubt = self.rules.doubt(entry, opened, signature);
        if position == Position::Inside && self.rules.may_lack_a_signature(opened) && !is_signed && doubt.is_none() {
            self.unsigned_allowed += 1;
        }
        let name = (entry.log_type, entry.instance.clone());
        let chain = self.chains.entry(name.clone()).or_default();
        if doubt.is_none() {
            entry.gaps.ranges().iter().for_each(|gap| chain.quarantined.insert(*gap));
        }
        let link = Link {
            sequence: entry.sequence,
            sha256: entry.sha256,
            previous: entry.previous,
            opened: parts.map(|parts| parts.opened).unwrap_or_default(),
            last_modified: observed.last_modified,
            key: entry.key.as_str().into(),
        };
        match position {
            Position::Before if parts.is_some() => chain.keep_before(link),
            Position::After if doubt.is_none() => chain.keep_after(link),
            Position::Before | Position::After => {}
            Position::Inside => self.inside(name, observed.content, entry, link, doubt),
        }
    }

    fn inside(&mut self, name: Name, content: Content, entry: &ChainEntry, link: Link, doubt: Option<Doubt>) {
        let chain = self.chains.entry(name.clone()).or_default();
        chain.counts.objects += 1;
        chain.counts.events += match content {
            Content::Read { records, .. } => records.unwrap_or(0),
            Content::Archived { .. } | Content::NotRead | Content::Unreadable => entry.records,
        };
        self.archived += u64::from(matches!(content, Content::Archived { .. }));
        let damage = damage(entry, content).or_else(|| self.rules.contradiction(entry));
        let mut note = Note { name: &name, chain, findings: &mut self.findings };
        if let Some(Doubt { kind, detail }) = doubt {
            let (kind, detail) = match damage {
                Some(damage) => (damage.kind, format!("{}; {detail}", damage.detail)),
                None => (kind, detail),
            };
            let suspect = Suspect { kind, sequence: entry.sequence, key: entry.key.clone(), detail };
            if self.suspected < SUSPECTS_MAX {
                self.suspected += 1;
                note.chain.suspects.push(suspect);
            } else {
                note.condemn(suspect);
            }
            return;
        }
        if let Some(Doubt { kind, detail }) = damage {
            note.chain.damaged.insert((entry.sequence, entry.sequence));
            note.object(kind, entry.sequence, &entry.key, detail);
        }
        if note.chain.insert(link) {
            self.remembered.add(entry);
            return;
        }
        let detail = match self.remembered.original(entry) {
            Some((original, sha256)) if sha256 == entry.sha256 => {
                format!("the same number and body as {original}: one is a copy of the other")
            }
            Some((original, _)) => format!(
                "the number of {original}, with another body: the chain was restarted with the same instance id, or \
                 the metadata of one was changed"
            ),
            None => "the number of an object long before it".to_owned(),
        };
        note.object(Kind::Duplicated, entry.sequence, &entry.key, detail);
    }

    /// Whether objects before the window have to be read, to know where a chain of `log_type` comes from.
    pub(super) fn needs_before(&self, log_type: LogType) -> bool {
        self.chains_of(log_type).any(|chain| {
            let start = chain.runs.keys().next();
            chain.before.is_none() && start.is_none_or(|&start| start > 1)
        })
    }

    /// Whether objects after the window have to be read, to know how a chain of `log_type` goes on.
    pub(super) fn needs_after(&self, log_type: LogType) -> bool {
        self.chains_of(log_type).any(|chain| chain.after.is_none() && !chain.runs.is_empty())
    }

    fn chains_of(&self, log_type: LogType) -> impl Iterator<Item = &Chain> {
        self.chains.iter().filter(move |(name, _)| name.0 == log_type).map(|(_, chain)| chain)
    }

    /// The report on all objects taken in.
    pub(super) fn finish(mut self) -> Report {
        self.look_for_instances();
        let mut chains = Vec::new();
        for (name, mut chain) in std::mem::take(&mut self.chains) {
            let note = Note { name: &name, chain: &mut chain, findings: &mut self.findings };
            note.finish(&self.rules);
            if chain.counts != Counts::default() {
                chains.push(chain.report(name));
            }
        }
        let Judge { rules, findings, foreign, archived, unsigned_allowed, .. } = self;
        Report {
            bucket: rules.bucket,
            bucket_path: rules.bucket_path,
            from: rules.from,
            to: rules.to,
            chains,
            foreign,
            archived,
            findings,
            authenticated: !rules.public_keys.is_empty(),
            tails_known: !rules.heads.is_empty(),
            strict: rules.strict,
            allow_empty: rules.allow_empty,
            unsigned_allowed,
            ..Report::default()
        }
    }

    /// An instance that was asked for by name is expected in a bucket that is read as a whole.
    fn look_for_instances(&mut self) {
        let whole = self.rules.from.is_none() && self.rules.to.is_none();
        for instance in self.rules.instances.iter().filter(|_| whole) {
            if !self.chains.keys().any(|(_, known)| known == instance) {
                let detail = "no object of the instance that was asked for".to_owned();
                let (instance, kind) = (Some(instance.clone()), Kind::Missing);
                self.findings.add(Finding { kind, log_type: None, instance, sequences: None, key: None, detail });
            }
        }
    }
}

/// Where an object's body contradicts its metadata.
fn damage(entry: &ChainEntry, content: Content) -> Option<Doubt> {
    let altered = |detail: String| Some(Doubt { kind: Kind::Altered, detail });
    match content {
        Content::Read { sha256, records } if sha256 != entry.sha256 => {
            let records = records.map_or_else(|| "unreadable".to_owned(), |records| format!("{records} events"));
            altered(format!(
                "its body was changed: SHA-256 {sha256} in place of {}, {records} in place of {}",
                entry.sha256, entry.records
            ))
        }
        Content::Read { records: None, .. } => altered("its body can't be decompressed".to_owned()),
        Content::Read { records: Some(records), .. } if records != entry.records => {
            altered(format!("its metadata was changed: {} events there, {records} in the body", entry.records))
        }
        Content::Archived { sha256: Some(sha256) } if sha256 != entry.sha256 => {
            altered(format!("archived; S3 stored SHA-256 {sha256}, its metadata says {}", entry.sha256))
        }
        Content::Archived { sha256: None } => {
            let detail = "archived, and S3 keeps no SHA-256 of it: restore it to have it judged".to_owned();
            Some(Doubt { kind: Kind::Unread, detail })
        }
        Content::Read { .. } | Content::Archived { .. } | Content::NotRead | Content::Unreadable => None,
    }
}

/// The keys of the latest objects, to name the original of a duplicate.
#[derive(Debug, Default)]
struct Remembered {
    latest: Generation,
    before: Generation,
}

type Generation = HashMap<(LogType, Sha256, u64), (Box<str>, Sha256)>;

impl Remembered {
    fn add(&mut self, entry: &ChainEntry) {
        if self.latest.len() >= REMEMBERED_MAX {
            self.before = std::mem::take(&mut self.latest);
        }
        self.latest.insert(Remembered::name(entry), (entry.key.as_str().into(), entry.sha256));
    }

    /// Key and hash of the object that took the entry's number first.
    fn original(&self, entry: &ChainEntry) -> Option<(&str, Sha256)> {
        let name = Remembered::name(entry);
        let found = self.latest.get(&name).or_else(|| self.before.get(&name));
        found.map(|(key, sha256)| (key.as_ref(), *sha256))
    }

    /// The instance by its hash: shorter than most ids, and of one size.
    fn name(entry: &ChainEntry) -> (LogType, Sha256, u64) {
        (entry.log_type, Sha256::of(entry.instance.as_bytes()), entry.sequence)
    }
}

#[cfg(test)]
mod tests;
