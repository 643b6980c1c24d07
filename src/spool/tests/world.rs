//! A spool on a [`FaultDisk`], a bucket, a sender and a flusher's decisions; checks what is promised of them together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::bucket::plain_lines;
pub(crate) use super::bucket::{Fate, Object};
use super::fault_disk::{Cut, Effect, Errno, FaultDisk, Op};
use crate::batch::{ByType, Codec, LogType, SealedName, Sha256, SpoolName, Stage, object_key};
use crate::flusher::delivery::{self, Ended, Known, Next};
use crate::s3::PutErrorKind;
use crate::spool::folder::Folder;
use crate::spool::manifest::Destination;
use crate::spool::{AppendError, Batch, OpenError, QUARANTINE, Receipt, SealedBatches, Settings, Spool};

pub(crate) const TYPE: LogType = LogType::Deployments;
/// How long a thread of the spool may take. Long, so that a busy machine fails no test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Processes with a spool, one after the other, on one disk. The code calls each of them a life.
pub(crate) struct World {
    /// [`TYPE`], where a test doesn't choose another.
    pub(crate) log_type: LogType,
    pub(crate) disk: FaultDisk,
    pub(crate) settings: Settings,
    pub(crate) spool: Option<Spool>,
    receivers: Option<ByType<SealedBatches>>,
    /// Sealed batches that are not delivered, oldest first.
    pub(crate) waiting: Vec<Batch>,
    pub(crate) bucket: BTreeMap<String, Object>,
    /// Sequences of which an attempt may have arrived.
    tried: BTreeSet<u64>,
    /// Sequences that this life knows to be in the bucket, and whose file is still to go.
    stored: BTreeSet<u64>,
    /// By sequence, of those that this life has sent.
    known: BTreeMap<u64, Known>,
    pub(crate) acknowledged: BTreeMap<u64, Receipt>,
    /// Events whose sender was told that they are not stored.
    refused: BTreeSet<u64>,
    next_event: u64,
    /// Events of copies that lives which have ended gave up.
    copies_given_up: u64,
    /// Events of batches that this life delivered.
    events_delivered: u64,
    _lock_dir: tempfile::TempDir,
}

pub(crate) fn settings(dir: PathBuf) -> Settings {
    let text = |text: &str| text.to_owned();
    let destination =
        Destination { endpoint: text(""), bucket: text("acme"), region: text("eu-west-1"), path: text("") };
    Settings {
        dir,
        max_bytes: 1 << 20,
        batch_max_bytes: 256,
        batch_max_age: Duration::from_secs(3600),
        codec: Codec::None,
        destination,
        copies: false,
    }
}

impl World {
    /// An empty disk; nothing is open yet.
    pub(crate) fn new() -> World {
        World::with_codec(Codec::None)
    }

    pub(crate) fn with_codec(codec: Codec) -> World {
        // Only the lock is a real file.
        let lock_dir = tempfile::tempdir().unwrap();
        World {
            log_type: TYPE,
            disk: FaultDisk::new(),
            settings: Settings { codec, ..settings(lock_dir.path().to_owned()) },
            spool: None,
            receivers: None,
            waiting: Vec::new(),
            bucket: BTreeMap::new(),
            tried: BTreeSet::new(),
            stored: BTreeSet::new(),
            known: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            refused: BTreeSet::new(),
            next_event: 0,
            copies_given_up: 0,
            events_delivered: 0,
            _lock_dir: lock_dir,
        }
    }

    /// [`World::with_codec`] that keeps batches for CloudWatch.
    pub(crate) fn with_copies(codec: Codec) -> World {
        let mut world = World::with_codec(codec);
        world.settings.copies = true;
        world
    }

    /// A world with its spool open.
    pub(crate) fn opened() -> World {
        let mut world = World::new();
        world.open().unwrap();
        world
    }

    pub(crate) fn open(&mut self) -> Result<(), OpenError> {
        self.open_without_settling()?;
        self.settle();
        Ok(())
    }

    pub(crate) fn open_without_settling(&mut self) -> Result<(), OpenError> {
        let (spool, receivers) = Spool::open(&self.settings, Arc::new(self.disk.clone()))?;
        self.events_delivered = 0;
        self.spool = Some(spool);
        self.receivers = Some(receivers);
        Ok(())
    }

    /// Ends this life in order; the disk stays as it is.
    pub(crate) fn end(&mut self) {
        self.copies_given_up +=
            self.spool.as_ref().and_then(Spool::copies).map_or(0, |copies| copies.skipped_events(self.log_type));
        self.spool = None;
        self.receivers = None;
        self.waiting.clear();
        self.stored.clear();
        self.known.clear();
        self.disk = self.disk.after(Cut::Kill);
    }

    /// A world that nobody opens, on what a power cut now would leave.
    pub(crate) fn disk_after_power_cut(&self) -> World {
        let mut left = World::new();
        left.disk = self.disk.after(Cut::Strict);
        left.settings = self.settings.clone();
        left
    }

    /// Ends this life and opens the next; a fault at the start has passed at the second try.
    pub(crate) fn crash(&mut self, cut: Cut) {
        self.crash_without_opening(cut);
        self.open().unwrap();
        self.check_stages();
    }

    /// [`World::crash`], and the name after `names` more is left out once of what the next start lists.
    pub(crate) fn crash_and_lack(&mut self, cut: Cut, names: u64) {
        self.crash_without_opening(cut);
        let mut left = Some(names);
        self.disk.rule_that_may_not_strike(move |op, _| {
            if op != Op::Entry {
                return Effect::Pass;
            }
            let is_left_out = left == Some(0);
            left = left.and_then(|names| names.checked_sub(1));
            if is_left_out { Effect::Fail(Errno::IO) } else { Effect::Pass }
        });
        self.open().unwrap();
        self.disk.heal();
        self.check_stages();
    }

    pub(crate) fn crash_without_opening(&mut self, cut: Cut) {
        let ended = self.disk.clone();
        self.end();
        self.disk = ended.after(cut);
        self.forget_collisions();
    }

    /// Removes other writers' objects under the keys of `.sending` batches. A crash between another
    /// writer's 412 and the new name's fsync looks like one after a PUT that arrived: the one exception to
    /// the promise, told in `delivery`.
    fn forget_collisions(&mut self) {
        for name in self.files() {
            if let SpoolName::Sealed(name) = name
                && name.stage == Stage::Sending
            {
                let key = object_key("", self.log_type, &name.batch);
                self.bucket.retain(|taken, object| *taken != key || object.name.is_some());
            }
        }
    }

    pub(crate) fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    pub(crate) fn folder(&self) -> Arc<Folder> {
        self.spool().folder(self.log_type)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.settings.dir.join(self.log_type.as_str())
    }

    pub(crate) fn copies_dir(&self) -> PathBuf {
        self.settings.dir.join("cloudwatch").join(self.log_type.as_str())
    }

    pub(crate) fn quarantine(&self) -> Vec<String> {
        self.disk.names(&self.settings.dir.join(QUARANTINE))
    }

    /// Names of the batches in the folder.
    pub(crate) fn files(&self) -> Vec<SpoolName> {
        self.disk.names(&self.dir()).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// The path of the one file with this ending.
    pub(crate) fn file(&self, ending: &str) -> PathBuf {
        let names = self.disk.names(&self.dir());
        let mut found = names.iter().filter(|name| name.ends_with(ending));
        let name = found.next().unwrap_or_else(|| panic!("no {ending} in {names:?}"));
        assert_eq!(found.next(), None, "more than one {ending}");
        self.dir().join(name)
    }

    fn receive(&mut self) {
        let Some(receivers) = &mut self.receivers else { return };
        while let Some(batch) = receivers[self.log_type].try_recv() {
            self.waiting.push(batch);
        }
    }

    /// Sends `count` events in one request; the acknowledgement counts only if the machine still lives.
    pub(crate) fn append(&mut self, count: u64) -> Result<Receipt, AppendError> {
        let ids = self.next_event..self.next_event + count;
        self.next_event = ids.end;
        let lines: String = ids.clone().map(line).collect();
        let spool = self.spool().clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(spool.append(self.log_type, Bytes::from(lines), count));
        if self.disk.died() {
            return answer;
        }
        match &answer {
            Err(_) => self.refused.extend(ids),
            Ok(receipt) => {
                for (index, id) in ids.enumerate() {
                    self.acknowledged.insert(id, Receipt { line: receipt.line + index as u64, ..receipt.clone() });
                }
            }
        }
        answer
    }

    /// Seals what is open and waits until the sealer is done with it.
    pub(crate) fn seal(&mut self) {
        self.spool().seal();
        self.settle();
    }

    /// Waits until every batch that was closed is sealed and announced.
    pub(crate) fn settle(&mut self) {
        self.wait_until("the sealer is done", |world| {
            world.receive();
            let known: BTreeSet<u64> = world.waiting.iter().map(|batch| batch.name.sequence).collect();
            world.files().into_iter().all(|name| match name {
                SpoolName::Open(_) => false,
                SpoolName::Sealed(name) => name.stage == Stage::Sent || known.contains(&name.sequence),
            })
        });
    }

    pub(crate) fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&mut World) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < DEADLINE, "waited in vain until {what}: {:?}", self.disk.names(&self.dir()));
            std::thread::yield_now();
        }
    }

    /// One attempt at the oldest waiting batch, as the flusher makes it.
    pub(crate) fn upload(&mut self, fate: Fate) -> std::io::Result<()> {
        self.receive();
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut batch = self.waiting.remove(0);
        let result = self.attempt(&mut batch, fate);
        if !matches!(result, Ok(true)) {
            self.waiting.insert(0, batch);
        }
        result.map(drop)
    }

    /// True when the batch is delivered or in quarantine. [`delivery::decide`] decides what follows from the answer.
    fn attempt(&mut self, batch: &mut Batch, fate: Fate) -> std::io::Result<bool> {
        let folder = self.folder();
        let sequence = batch.name.sequence;
        if !self.stored.contains(&sequence) {
            self.take_new_name(batch)?;
            folder.set_stage(batch, Stage::Sending)?;
            if self.disk.died() {
                return Ok(false);
            }
            let known = self.known.get(&sequence).copied().unwrap_or(Known::found(batch.may_have_arrived));
            let gaps = folder.gaps();
            let ended = self.put(batch, fate, gaps.clone());
            let next = delivery::decide(known, ended);
            self.known.insert(sequence, known.after(ended, next));
            match next {
                Next::Delivered => {
                    self.stored.insert(sequence);
                    folder.mark_reported(&gaps)?;
                }
                Next::DeliveredBefore => drop(self.stored.insert(sequence)),
                Next::NewName => {
                    self.tried.remove(&sequence);
                    self.take_new_name(batch)?;
                    return Ok(false);
                }
                Next::Wait { stage, check_file } => {
                    folder.set_stage(batch, stage)?;
                    if !check_file || folder.rehash(batch)? == batch.name.sha256 {
                        return Ok(false);
                    }
                    return folder.quarantine(batch);
                }
            }
        }
        self.delivered(batch)?;
        Ok(true)
    }

    /// Removes the file of a batch that S3 has.
    pub(crate) fn delivered(&mut self, batch: &mut Batch) -> std::io::Result<()> {
        self.folder().delivered(batch)?;
        self.events_delivered += batch.name.records;
        Ok(())
    }

    /// Renames the batch where the last answer asked for it.
    fn take_new_name(&mut self, batch: &mut Batch) -> std::io::Result<()> {
        if let Some(known) = self.known.get_mut(&batch.name.sequence).filter(|known| known.needs_new_name) {
            self.spool.as_ref().unwrap().folder(self.log_type).rename(batch)?;
            known.needs_new_name = false;
        }
        Ok(())
    }

    /// Puts the object into the bucket or not, and returns what the flusher would see.
    fn put(&mut self, batch: &Batch, fate: Fate, gaps: Vec<u64>) -> Ended {
        let failed = |kind, may_have_arrived| Ended::Failed { kind, may_have_arrived };
        let key = object_key("", self.log_type, &batch.name.batch);
        let body = self.disk.bytes(&self.folder().batch_path(batch)).unwrap();
        match fate {
            Fate::Refused => return failed(PutErrorKind::Denied, false),
            Fate::ChecksumRefused => return failed(PutErrorKind::ChecksumRefused, false),
            Fate::NameTaken if !batch.may_have_arrived && !self.tried.contains(&batch.name.sequence) => {
                let theirs = Object { body: Vec::new(), name: None, instance: String::new(), gaps: Vec::new() };
                self.bucket.entry(key.clone()).or_insert(theirs);
            }
            _ => {}
        }
        if !self.bucket.contains_key(&key) && Sha256::of(&body) != batch.name.sha256 {
            return failed(PutErrorKind::ChecksumRefused, false);
        }
        if matches!(fate, Fate::AnswerLost | Fate::LostOnTheWay | Fate::RefusedOnTheWay) {
            self.tried.insert(batch.name.sequence);
        }
        match fate {
            Fate::LostOnTheWay => return failed(PutErrorKind::Timeout, true),
            Fate::RefusedOnTheWay => return failed(PutErrorKind::NameTakenUnproven, true),
            _ if self.bucket.contains_key(&key) => return failed(PutErrorKind::NameTaken, false),
            _ => {}
        }
        let instance = self.spool().chain_instance(self.log_type).to_owned();
        self.tried.insert(batch.name.sequence);
        self.bucket.insert(key, Object { body, name: Some(batch.name), instance, gaps });
        if fate == Fate::AnswerLost { failed(PutErrorKind::Timeout, true) } else { Ended::Stored }
    }

    /// Lets the disk work, delivers everything, and checks the promises.
    pub(crate) fn deliver_all(&mut self) {
        self.disk.heal();
        // A rule may have ended this life at a call of another thread.
        if self.disk.died() {
            self.crash(Cut::Kill);
        }
        self.seal();
        self.receive();
        while !self.waiting.is_empty() {
            self.upload(Fate::Stored).unwrap();
        }
        self.check_law();
        self.check_figures();
        self.check_copies();
    }

    /// No batch that an attempt may have brought to the bucket is taken for untried.
    pub(crate) fn check_stages(&self) {
        for name in self.files() {
            if let SpoolName::Sealed(name) = name
                && name.stage == Stage::Sealed
            {
                assert!(!self.tried.contains(&name.sequence), "{name} may have arrived and is .sealed");
            }
        }
    }

    /// Whatever happened, an empty spool's status says so, and every event was counted once when
    /// it came and once when it left.
    fn check_figures(&mut self) {
        let folder = self.folder();
        self.wait_until("a batch without events is gone", |_| folder.status("").oldest_unsent.is_none());
        let status = folder.status("");
        assert_eq!((status.spool_bytes, status.batches, status.events_spooled), (0, 0, 0));
        assert_eq!(status.events_accepted + status.events_recovered, self.events_delivered + status.events_quarantined);
    }

    fn check_law(&self) {
        let mut found = BTreeMap::<u64, (&SealedName, u64)>::new();
        let mut chain = BTreeMap::<u64, &SealedName>::new();
        let mut openings = BTreeSet::new();
        let mut instances = BTreeSet::new();
        for object in self.bucket.values() {
            let Some(name) = &object.name else { continue };
            instances.insert(&object.instance);
            assert!(openings.insert(name.batch.opened), "an opening repeats: {name}");
            assert!(chain.insert(name.sequence, name).is_none(), "number {} is there twice", name.sequence);
            assert_eq!(Sha256::of(&object.body), name.sha256);
            let lines = plain_lines(name, &object.body);
            assert_eq!(lines.len() as u64, name.records, "{name}");
            assert!(lines.is_sorted(), "the order of acceptance is lost in {name}: {lines:?}");
            for (index, id) in (0..).zip(lines) {
                assert!(found.insert(id, (name, index)).is_none(), "event {id} is there twice");
                assert!(!self.refused.contains(&id), "event {id} was refused and is stored");
            }
        }
        assert!(instances.len() <= 1, "the chain was broken off: {instances:?}");
        let mut previous = Sha256::ZERO;
        let mut told: BTreeSet<u64> = self.bucket.values().flat_map(|object| object.gaps.clone()).collect();
        for (sequence, name) in &chain {
            let last =
                if *sequence == 1 { 0 } else { chain.range(..sequence).next_back().map_or(0, |(last, _)| *last) };
            if last + 1 == *sequence {
                assert_eq!(name.previous, previous, "the chain breaks at {sequence}");
            }
            previous = name.sha256;
            for gap in last + 1..*sequence {
                assert!(told.remove(&gap), "number {gap} is missing, and no object tells of it");
            }
        }
        if self.disk.is_damaged() {
            return;
        }
        for (id, receipt) in &self.acknowledged {
            let (name, line) = found.get(id).unwrap_or_else(|| panic!("event {id} was acknowledged and is lost"));
            assert_eq!(
                (name.batch.opened, *line),
                (receipt.batch.opened, receipt.line),
                "event {id} is elsewhere than acknowledged"
            );
            let suffix = name.batch.renamed_from.unwrap_or(name.batch.suffix);
            assert_eq!(suffix, receipt.batch.suffix, "event {id} is under another name than acknowledged");
        }
    }

    /// With a CloudWatch lane that sends nothing, every object's bytes are a copy, or were given up and counted.
    fn check_copies(&self) {
        let Some(copies) = self.spool().copies() else { return };
        let start = Instant::now();
        loop {
            let objects = self.bucket.values().filter_map(|object| Some((object.name?, &object.body)));
            let kept = |name: &SealedName, body: &[u8]| {
                let name = SealedName { stage: Stage::Sent, ..*name };
                let bytes = self.disk.bytes(&self.copies_dir().join(name.to_string()));
                bytes.inspect(|bytes| assert!(bytes == body, "{name} is not what S3 has")).is_some()
            };
            let missing: u64 = objects.filter(|(name, body)| !kept(name, body)).map(|(name, _)| name.records).sum();
            // A file is gone before it is counted.
            let given_up = self.copies_given_up + copies.skipped_events(self.log_type);
            if missing <= given_up {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{missing} events are no copies, and {given_up} were given up");
            std::thread::yield_now();
        }
    }

    /// How many acknowledged events are in no object.
    pub(crate) fn missing(&self) -> usize {
        let objects =
            self.bucket.values().filter_map(|object| object.name.as_ref().map(|name| plain_lines(name, &object.body)));
        let found: BTreeSet<u64> = objects.flatten().collect();
        self.acknowledged.keys().filter(|id| !found.contains(id)).count()
    }
}

/// One event.
pub(crate) fn line(id: u64) -> String {
    format!("{{\"id\":{id},\"message\":\"created\"}}\n")
}
