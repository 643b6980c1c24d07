//! env0-s3-logs
pub mod backoff;
pub mod batch;
pub mod config;
pub mod credentials;
pub mod flusher;
pub mod ingest;
pub mod network;
pub mod s3;
pub mod spool;
#[cfg(test)]
mod testing;
