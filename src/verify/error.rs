//! Why a verification has no verdict.

use chrono::NaiveDate;

use super::heads::HeadsError;
use super::journal::JournalError;
use super::receipts::ReceiptsError;
use crate::chain::KeyError;
use crate::exit_code;
use crate::s3::read::ReadError;

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A public key can't be used.
    #[error("--public-key {0}")]
    Key(#[from] KeyError),
    /// Heads or anchors can't be used.
    #[error("--heads or --anchor {0}")]
    Heads(#[from] HeadsError),
    /// Receipts can't be used.
    #[error("--receipts {0}")]
    Receipts(#[from] ReceiptsError),
    /// The resume file can't be used.
    #[error("--resume {0}")]
    Journal(#[from] JournalError),
    /// `--from` is after `--to`.
    #[error("--from {0} is after --to {1}")]
    Window(NaiveDate, NaiveDate),
    /// The bucket can't be read.
    #[error("the bucket can't be read: {0}")]
    Read(#[from] ReadError),
    /// The report can't be written.
    #[error("the report can't be written: {0}")]
    Output(std::io::Error),
}

impl VerifyError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            VerifyError::Read(ReadError::Denied { .. } | ReadError::NoCredentials { .. }) => exit_code::DENIED,
            VerifyError::Read(_) => exit_code::UNAVAILABLE,
            VerifyError::Output(_) => exit_code::IO,
            _ => exit_code::USAGE,
        }
    }
}
