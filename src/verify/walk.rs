//! Walks the two log types of a bucket: lists, reads many objects at once, and hands each to the judge in
//! the order of keys.

use std::collections::{HashMap, VecDeque};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::NaiveDate;
use tokio::task::JoinHandle;

use crate::batch::{Codec, LogType};
use crate::chain::ChainEntry;
use crate::s3::read::{Listed, ReadError, Reader};

use super::body::BodyReader;
use super::error::VerifyError;
use super::journal::{Journal, Known};
use super::judge::{Content, Judge, Observed, Position};
use super::key;
use super::receipts::{Ledger, Outcome, Receipts};

/// Objects read at once. Each takes a connection and its buffers, a few hundred KiB.
const CONCURRENCY: usize = 32;
/// How often an object is tried whose transfer breaks off, beside the SDK's own retries of a request.
const ATTEMPTS: u32 = 4;
/// How much of a body is read beyond the size in the listing, because the object may have been replaced. Its hash tells
/// what it is.
const BEYOND_LISTED_MAX_BYTES: u64 = 1024 * 1024;
/// How many pages without a key may come one after the other. S3 sends some where many objects were deleted.
const EMPTY_PAGES_MAX: u32 = 1000;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Walk {
    pub(super) reader: Reader,
    pub(super) bucket_path: String,
    pub(super) from: Option<NaiveDate>,
    pub(super) to: Option<NaiveDate>,
    pub(super) instances: Vec<String>,
    pub(super) receipts: Arc<Receipts>,
    pub(super) ledger: Ledger,
    pub(super) judge: Judge,
    pub(super) journal: Option<Journal>,
    pub(super) resumed: u64,
    pub(super) progress: Progress,
}

impl Walk {
    /// Reads all that is to be judged.
    pub(super) async fn run(&mut self) -> Result<(), VerifyError> {
        // In the order of keys, as the journal has them.
        let mut log_types = LogType::ALL;
        log_types.sort_unstable_by_key(|log_type| log_type.as_str());
        for log_type in log_types {
            let folder = key::folder(&self.bucket_path, log_type);
            let start = self.from.map(|from| key::day(&folder, from)).unwrap_or_default();
            let mut listing = Listing::new(self.reader.clone(), folder.clone(), start);
            listing.end = self.to.and_then(|to| to.succ_opt()).map(|day| key::day(&folder, day));
            self.take(log_type, Position::Inside, &mut listing).await?;
            if let Some(from) = self.from {
                self.before(log_type, &folder, from).await?;
            }
            if self.to.is_some() {
                self.after(log_type, &folder, &mut listing).await?;
            }
        }
        if let Some(journal) = &mut self.journal {
            journal.flush()?;
        }
        self.progress.clear();
        Ok(())
    }

    /// Days before the window, backwards: the nearest that has objects, and on until every chain has its neighbour.
    async fn before(&mut self, log_type: LogType, folder: &str, from: NaiveDate) -> Result<(), VerifyError> {
        // Keys start with a year; what sorts before `2` is foreign.
        let mut listing = Listing::new(self.reader.clone(), folder.to_owned(), format!("{folder}2"));
        let earliest = loop {
            let Some(listed) = listing.next().await? else { return Ok(()) };
            if let Some(parts) = key::parse(folder, &listed.key) {
                break parts.opened.date();
            }
        };
        let mut found = false;
        for day in std::iter::successors(from.pred_opt(), |day| day.pred_opt()).take_while(|day| *day >= earliest) {
            if found && !self.judge.needs_before(log_type) {
                break;
            }
            let mut listing = Listing::new(self.reader.clone(), key::day(folder, day), String::new());
            found |= self.take(log_type, Position::Before, &mut listing).await?;
        }
        Ok(())
    }

    /// Days after the window: the nearest that has objects, and on until every chain has its neighbour.
    async fn after(&mut self, log_type: LogType, folder: &str, listing: &mut Listing) -> Result<(), VerifyError> {
        listing.end = None;
        let mut found = false;
        while let Some(listed) = listing.next().await? {
            let Some(parts) = key::parse(folder, &listed.key) else { continue };
            listing.put_back(listed);
            if found && !self.judge.needs_after(log_type) {
                break;
            }
            listing.end = parts.opened.date().succ_opt().map(|day| key::day(folder, day));
            found |= self.take(log_type, Position::After, listing).await?;
            listing.end = None;
        }
        Ok(())
    }

    /// Reads every object of a listing; tells whether there was one.
    async fn take(
        &mut self,
        log_type: LogType,
        position: Position,
        listing: &mut Listing,
    ) -> Result<bool, VerifyError> {
        let mut running: VecDeque<Task> = VecDeque::with_capacity(CONCURRENCY);
        let mut found = false;
        loop {
            while running.len() < CONCURRENCY {
                let Some(listed) = listing.next().await? else { break };
                found = true;
                running.push_back(self.start(log_type, position, listed)?);
            }
            let Some(task) = running.pop_front() else { return Ok(found) };
            let (listed, examined) = match task {
                Task::Known(listed, examined) => (listed, Some(*examined)),
                // A panic in a task is a bug, and goes on as one.
                Task::Running(listed, handle) => match handle.await {
                    Ok(examined) => (listed, examined?),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
            };
            let Some(examined) = examined else { continue };
            self.progress.object(&listed, position);
            self.remember(&listed, &examined)?;
            examined.outcomes.into_iter().for_each(|outcome| self.ledger.note(outcome));
            self.judge.object(position, &examined.observed);
        }
    }

    fn start(&mut self, log_type: LogType, position: Position, listed: Listed) -> Result<Task, VerifyError> {
        let job = Job {
            reader: self.reader.clone(),
            receipts: self.receipts.clone(),
            folder: key::folder(&self.bucket_path, log_type),
            instances: self.instances.clone(),
            log_type,
            position,
            listed: listed.clone(),
        };
        let known = match &mut self.journal {
            Some(journal) if position == Position::Inside => journal.known(&listed)?,
            _ => None,
        };
        if let Some(known) = known
            && !job.wants_lines(&known.metadata)
        {
            self.resumed += 1;
            return Ok(Task::Known(listed, Box::new(job.known(known))));
        }
        Ok(Task::Running(listed, tokio::spawn(job.run())))
    }

    fn remember(&mut self, listed: &Listed, examined: &Examined) -> Result<(), VerifyError> {
        if let Some(journal) = &mut self.journal
            && let Content::Read { sha256, records } = examined.observed.content
            && !examined.from_journal
        {
            journal.add(listed, &Known { metadata: examined.observed.metadata.clone(), sha256, records })?;
        }
        Ok(())
    }
}

enum Task {
    Known(Listed, Box<Examined>),
    Running(Listed, JoinHandle<Result<Option<Examined>, VerifyError>>),
}

/// An object, and what became of the receipts that name it.
struct Examined {
    observed: Observed,
    outcomes: Vec<Outcome>,
    from_journal: bool,
}

/// Reads one object.
struct Job {
    reader: Reader,
    receipts: Arc<Receipts>,
    folder: String,
    instances: Vec<String>,
    log_type: LogType,
    position: Position,
    listed: Listed,
}

impl Job {
    async fn run(self) -> Result<Option<Examined>, VerifyError> {
        let mut backoff = FIRST_BACKOFF;
        for _ in 1..ATTEMPTS {
            match self.examine().await {
                Err(ReadError::Failed { .. } | ReadError::Unreadable(_)) => tokio::time::sleep(backoff).await,
                // Deleted since it was listed: a gap, as if it had never been listed.
                Err(ReadError::Gone) => return Ok(None),
                examined => return Ok(examined.map(Some)?),
            }
            backoff *= 2;
        }
        match self.examine().await {
            Err(ReadError::Unreadable(_)) => Ok(Some(self.observed(HashMap::new(), Content::Unreadable, Vec::new()))),
            examined => Ok(examined.map(Some)?),
        }
    }

    async fn examine(&self) -> Result<Examined, ReadError> {
        if self.position != Position::Inside {
            let head = self.reader.head(&self.listed.key).await?;
            return Ok(self.observed(head.metadata, Content::NotRead, Vec::new()));
        }
        if self.listed.archived
            && let Some(examined) = self.archived().await?
        {
            return Ok(examined);
        }
        let (metadata, mut body) = match self.reader.get(&self.listed.key).await {
            // Archived by Intelligent-Tiering, which a listing doesn't show.
            Err(ReadError::Archived) => return self.archived().await?.ok_or(ReadError::Archived),
            got => got?,
        };
        let entry = ChainEntry::from_metadata(&self.listed.key, self.log_type, &metadata);
        let judged = |instance: &String| self.instances.is_empty() || self.instances.contains(instance);
        if !entry.is_ok_and(|(entry, _)| judged(&entry.instance)) {
            let outcomes = self.outcomes_by_count(&metadata);
            return Ok(self.observed(metadata, Content::NotRead, outcomes));
        }
        let checks = self.receipts.checks(&self.keys(&metadata));
        let mut reader = BodyReader::new(self.codec(), checks);
        let mut left = self.listed.size.saturating_add(BEYOND_LISTED_MAX_BYTES);
        while let Some(bytes) = body.next().await? {
            reader.update(&bytes);
            match left.checked_sub(bytes.len() as u64) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        let digest = reader.finish();
        let content = Content::Read { sha256: digest.sha256, records: digest.records };
        Ok(self.observed(metadata, content, digest.outcomes))
    }

    /// Judges an archived object by its Head; `None` where it has been restored.
    async fn archived(&self) -> Result<Option<Examined>, ReadError> {
        let head = self.reader.head(&self.listed.key).await?;
        if !head.archived && self.listed.archived {
            return Ok(None);
        }
        let outcomes = self.outcomes_by_count(&head.metadata);
        Ok(Some(self.observed(head.metadata, Content::Archived { sha256: head.sha256 }, outcomes)))
    }

    fn known(&self, Known { metadata, sha256, records }: Known) -> Examined {
        let outcomes = self.outcomes_by_count(&metadata);
        Examined { from_journal: true, ..self.observed(metadata, Content::Read { sha256, records }, outcomes) }
    }

    fn observed(&self, metadata: HashMap<String, String>, content: Content, outcomes: Vec<Outcome>) -> Examined {
        let observed = Observed {
            key: self.listed.key.clone(),
            log_type: self.log_type,
            last_modified: self.listed.last_modified,
            metadata,
            content,
        };
        Examined { observed, outcomes, from_journal: false }
    }

    fn outcomes_by_count(&self, metadata: &HashMap<String, String>) -> Vec<Outcome> {
        let entry = ChainEntry::from_metadata(&self.listed.key, self.log_type, metadata);
        let Ok((ChainEntry { records, .. }, _)) = entry else { return Vec::new() };
        self.receipts.checks(&self.keys(metadata)).into_iter().map(|check| check.finish(records)).collect()
    }

    fn wants_lines(&self, metadata: &HashMap<String, String>) -> bool {
        self.receipts.want_lines_of(&self.keys(metadata))
    }

    /// The keys that receipts may name the object by: its own, and the one it was acknowledged with.
    fn keys(&self, metadata: &HashMap<String, String>) -> Vec<String> {
        let first = metadata.get("env0-renamed-from").and_then(|suffix| suffix.parse().ok());
        let acknowledged = first.and_then(|first| key::acknowledged(&self.folder, &self.listed.key, first));
        std::iter::once(self.listed.key.clone()).chain(acknowledged).collect()
    }

    fn codec(&self) -> Codec {
        let has_ending = |codec: &Codec| *codec != Codec::None && self.listed.key.ends_with(codec.extension());
        Codec::ALL.into_iter().find(has_ending).unwrap_or_default()
    }
}

/// Keys in order, a page at a time.
struct Listing {
    reader: Reader,
    prefix: String,
    start_after: String,
    page: VecDeque<Listed>,
    next: Option<String>,
    started: bool,
    /// The last key of all pages so far.
    last: String,
    empty_pages: u32,
    /// Stops before this key, and can go on from there.
    end: Option<String>,
}

impl Listing {
    fn new(reader: Reader, prefix: String, start_after: String) -> Listing {
        Listing {
            reader,
            prefix,
            start_after,
            page: VecDeque::new(),
            next: None,
            started: false,
            last: String::new(),
            empty_pages: 0,
            end: None,
        }
    }

    async fn next(&mut self) -> Result<Option<Listed>, ReadError> {
        while self.page.is_empty() && (!self.started || self.next.is_some()) {
            let page = self.reader.list(&self.prefix, &self.start_after, self.next.take()).await?;
            (self.page, self.next, self.started) = (page.objects.into(), page.next, true);
            self.check_progress()?;
        }
        let ended = |listed: &Listed| self.end.as_ref().is_some_and(|end| listed.key >= *end);
        if self.page.front().is_some_and(ended) { Ok(None) } else { Ok(self.page.pop_front()) }
    }

    /// Fails where the listing goes back or sends too many empty pages; otherwise it would never end.
    fn check_progress(&mut self) -> Result<(), ReadError> {
        match self.page.back() {
            Some(listed) if listed.key <= self.last => {
                return Err(self.reader.no_listing("the keys of a page don't come after those of the page before"));
            }
            Some(listed) => (self.last, self.empty_pages) = (listed.key.clone(), 0),
            None if self.empty_pages == EMPTY_PAGES_MAX => {
                return Err(self.reader.no_listing("page after page has no key, and none is said to be the last"));
            }
            None => self.empty_pages += 1,
        }
        Ok(())
    }

    fn put_back(&mut self, listed: Listed) {
        self.page.push_front(listed);
    }
}

/// A line on the terminal that says how far it is; nothing where there is no terminal.
pub(super) struct Progress {
    shown: Option<Instant>,
    terminal: bool,
    objects: u64,
    bytes: u64,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { shown: None, terminal: std::io::stderr().is_terminal(), objects: 0, bytes: 0 }
    }

    fn object(&mut self, listed: &Listed, position: Position) {
        self.objects += 1;
        self.bytes += if position == Position::Inside { listed.size } else { 0 };
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
            self.shown = Some(Instant::now());
            let mebibytes = self.bytes >> 20;
            self.write(&format!("\r{} objects, {mebibytes} MiB, {}\x1b[K", self.objects, listed.key.escape_debug()));
        }
    }

    fn clear(&self) {
        if self.shown.is_some() {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        // A terminal that went away is no reason to stop.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}
