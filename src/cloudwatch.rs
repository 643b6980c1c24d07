//! CloudWatch Logs, beside S3: what a batch's lines are there, and the client that puts them.

pub mod calls;
pub mod error;
pub mod logs;
pub mod timestamp;
