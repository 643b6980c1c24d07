//! env0-s3-logs
pub mod batch;
pub mod chain;
pub mod config;
pub mod credentials;
pub mod flusher;
pub mod ingest;
pub mod s3;
pub mod spool;
pub mod verify;
