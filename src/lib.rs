//! (floor plan)
pub mod backoff;
pub mod batch;
pub mod chain;
pub mod config;
pub mod credentials;
pub mod exit_code;
pub mod flusher;
pub mod ingest;
pub mod network;
pub mod s3;
pub mod spool;
pub mod status;
pub mod cli;
pub mod daemon;
pub mod health;
pub mod telemetry;
#[cfg(test)]
mod testing;
