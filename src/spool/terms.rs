//! The types in the spool's interface: its settings, what it returns, and its errors.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::{BatchName, Codec, LogType, SealedName, counted};
use crate::exit_code;
use crate::metric_table;
use crate::spool::manifest::{Destination, LockError, ManifestError};
use crate::volume::{self, Cause};

/// The folder of files that can't be read or are not what their name says. The daemon never removes any of them.
pub const QUARANTINE: &str = "quarantine";

/// The folder of what a pull remembers. The pull makes it.
pub const PULL: &str = "pull";

/// The part of the configuration that the spool needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The spool's folder. The spool writes nowhere else.
    pub dir: PathBuf,
    /// The most that files of events may take; appends beyond it are refused.
    pub max_bytes: u64,
    /// A batch is sealed when it reaches this size.
    pub batch_max_bytes: u64,
    /// A batch is sealed this long after its first event.
    pub batch_max_age: Duration,
    /// How new batches are encoded at sealing.
    pub codec: Codec,
    /// Where the objects go.
    pub destination: Destination,
    /// Whether batches are kept for CloudWatch once S3 has them.
    pub copies: bool,
}

/// A sealed batch on its way to S3.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The log type whose chain it belongs to.
    pub log_type: LogType,
    /// Its file's name, with its stage.
    pub name: SealedName,
    /// Size of the file, which is the object's body.
    pub bytes: u64,
    /// Whether the name is durable. No PUT may be made before it is.
    pub durable: bool,
    /// Whether an attempt may have stored it in S3. After a crash this is true for every `.sending` file, because
    /// the name doesn't tell whether the PUT was made.
    pub may_have_arrived: bool,
}

impl Batch {
    /// A batch under a durable name.
    pub(super) fn new(log_type: LogType, name: SealedName, bytes: u64) -> Batch {
        Batch { log_type, name, bytes, durable: true, may_have_arrived: name.stage.is_doubtful() }
    }
}

/// Where acknowledged events are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The batch that took them.
    pub batch: BatchName,
    /// Index of their first line in it.
    pub line: u64,
}

/// What is in the spool's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftBehind {
    /// Files with events that are not in S3.
    pub batches: usize,
    /// Files in quarantine.
    pub quarantined: usize,
}

/// Why events were not taken. All but [`AppendError::TooLarge`] are temporary.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The log type would take more than its share.
    #[error(
        "the spool is full: {log_type} holds {used_bytes} of the {share_bytes} bytes that it may take now (ENV0_S3_LOG_SPOOL_MAX_BYTES less what the other log type holds, or the tenth that is kept for it); see config/README.md#spool-high"
    )]
    Full {
        /// The log type whose events were refused.
        log_type: LogType,
        /// What this log type has in the spool.
        used_bytes: u64,
        /// What it may have now.
        share_bytes: u64,
    },
    /// Not even an empty spool would take them.
    #[error(
        "the spool never takes more than {limit_bytes} bytes of one log type (nine tenths of ENV0_S3_LOG_SPOOL_MAX_BYTES)"
    )]
    TooLarge {
        /// The most that one log type may ever have.
        limit_bytes: u64,
    },
    /// The file system refused, or it took too long. One error may refuse the appends of many requests.
    #[error("the spool's disk: {0}")]
    Disk(#[source] Arc<io::Error>),
    /// The spool is closed, or was closed before these events' turn.
    #[error("shutting down")]
    Closed,
}

/// The exit code of a process that can't use a spool's folder or lock: an error of the disk or the file system says
/// nothing of who may write there.
pub fn exit_code_of(error: &io::Error) -> u8 {
    match Cause::of(error) {
        Cause::Disk | Cause::Lacking => exit_code::IO,
        Cause::Full | Cause::ReadOnly | Cause::Place | Cause::Rights | Cause::Exhausted => exit_code::CANT_CREATE,
    }
}

/// Why a spool can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder can't be made, read or written.
    #[error("{path}: {reason}; {remedy}", path = path.display(), remedy = volume::remedy(path, reason))]
    Create {
        /// The folder or file.
        path: PathBuf,
        /// The system's; not the error's `source`, which would be printed a second time.
        reason: io::Error,
    },
    /// Another process uses it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its manifest can't be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The spool holds batches for another place.
    #[error(
        "the spool holds {} for {holds}, but the configuration says {configured}; run `env0-s3-logs drain`, which sends them where they belong, or `env0-s3-logs drain --to-configured`, which sends them to the configured place (after a mistake in the bucket's name), or restore the old settings, or choose another ENV0_S3_LOG_SPOOL_DIR",
        counted(*batches, "batch")
    )]
    OtherDestination {
        /// How many it holds.
        batches: usize,
        /// Where they go.
        holds: Box<Destination>,
        /// Where the configuration wants them.
        configured: Box<Destination>,
    },
    /// What a crash left can't be brought into order.
    #[error("recovering {path}: {reason}; {remedy}", path = path.display(), remedy = volume::remedy(path, reason))]
    Recovery {
        /// The log type's folder.
        path: PathBuf,
        /// The system's.
        reason: io::Error,
    },
}

metric_table::label_values! {
    "env0_s3_logs_batches_sealed_total", "reason":
    /// Why a batch was closed.
    pub(super) enum SealReason {
        /// It reached its size.
        Size = "size",
        /// It reached its age.
        Age = "age",
        /// The daemon ends, or seals all that is open.
        Shutdown = "shutdown",
        /// A crash left it open.
        Recovery = "recovery",
        /// An fsync of its file failed, or bytes could not be cut off again.
        DiskError = "disk_error",
    }
}

/// Why a copy is given up, which means removed without being sent; a label of `cloudwatch_skipped_events_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// Events need its room.
    Room,
    /// CloudWatch doesn't take events as old as these.
    Age,
    /// Its file can't be read.
    Unreadable,
    /// Its file could not be kept.
    Disk,
    /// There is no CloudWatch lane any more.
    Off,
}

impl GivenUp {
    /// All of them.
    pub const ALL: [GivenUp; 5] = [GivenUp::Room, GivenUp::Age, GivenUp::Unreadable, GivenUp::Disk, GivenUp::Off];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            GivenUp::Room => "room",
            GivenUp::Age => "age",
            GivenUp::Unreadable => "unreadable",
            GivenUp::Disk => "disk",
            GivenUp::Off => "off",
        }
    }

    pub(super) fn why(self) -> &'static str {
        match self {
            GivenUp::Room => "events need the room that they take",
            GivenUp::Age => "CloudWatch does not take events as old as theirs",
            GivenUp::Unreadable => "their files can't be read",
            GivenUp::Disk => "the spool's disk can't keep them",
            GivenUp::Off => "ENV0_CLOUDWATCH_ROLE_ARN is not set any more",
        }
    }
}
