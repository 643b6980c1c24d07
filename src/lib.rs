//! A daemon that takes env0's log events over HTTP, or pulls them from env0's API, makes them
//! durable and writes them to S3.
//!
//! ```text
//!              ack ◄──────────── fsync
//!  client ──► ingest ──► spool ──► flusher ──► s3 ──► bucket
//!              │ 503 ◄── full      │ session ▲
//!              └─ OIDC token ──► credentials ─┴─► STS
//! ```
//!
//! Data takes one way and never turns back. Three signals return: an acknowledgement, a status, a
//! refusal. An *event* is one log line; a *batch* is the events of one log type in one spool file; an
//! *object* is that file in the bucket; *sealed* means closed for appending.
//!
//! The promise:
//! 1. A `200` means that the events are on disk, fsynced; they reach S3 whatever happens to the
//!    process, the power, the network, S3 or STS.
//! 2. From spool to bucket each is written exactly once: a batch has one key from its opening and one
//!    sequence of bytes from its sealing, before its first PUT. [`flusher`]'s `delivery` tells the two exceptions.
//! 3. A full spool is said with `503`; nothing that was accepted is ever dropped.
//!
//! Invariants, each held by a test:
//! - A file's name is its state ([`batch`]); there is no index, no database, no frame.
//! - No name is relied on before its folder's fsync, no byte is acknowledged before its file's.
//! - Whether an attempt may have reached S3 is in the name, so a crash doesn't forget it.
//! - Memory does not grow with the backlog.
//! - Tokens are in memory alone, and in no log, status or metric.
//!
//! The modules below stand by floors; imports go down, and inside a room no file leads back to itself:
//! `cli` → `check`, `daemon`, `drain` → `assembly` → `verify`, `flusher`, `pull`, `cloudwatch`, `ingest` → `s3` →
//! `credentials` → `oidc`, `admin` → `spool`, `http`, `network`, `telemetry` → `protocols`, `config`, `status`, `chain` →
//! `pem` → `batch`, `background`, `backoff`, `metric_table`, `small_file`, `volume`, `exit_code`.

pub mod cli;

pub mod check;
pub mod daemon;
pub mod drain;

pub mod assembly;

pub mod cloudwatch;
pub mod flusher;
pub mod ingest;
pub mod pull;
pub mod verify;

pub mod s3;

pub mod credentials;

pub mod admin;
pub mod oidc;

pub mod http;
pub mod network;
pub mod spool;
pub mod telemetry;

pub mod chain;
pub mod config;
pub mod protocols;
pub mod status;

pub mod pem;

pub mod background;
pub mod backoff;
pub mod batch;
pub mod exit_code;
pub mod metric_table;
pub mod small_file;
pub mod volume;

#[cfg(test)]
mod testing;
