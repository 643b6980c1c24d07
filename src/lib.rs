//! env0-s3-logs
pub mod batch;
pub mod config;
pub mod credentials;
pub mod exit_code;
pub mod flusher;
pub mod health;
pub mod ingest;
pub mod s3;
pub mod spool;
pub mod status;
pub mod telemetry;
