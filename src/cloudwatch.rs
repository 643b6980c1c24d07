//! CloudWatch Logs, beside S3: what a batch's lines are there. Pure; nothing sends these calls yet.

pub mod calls;
pub mod timestamp;
