//! CloudWatch Logs, beside S3: what a batch's lines are there, the client that puts them, and the lane that has them put.

pub mod calls;
pub mod error;
pub mod lane;
pub mod logs;
pub mod timestamp;
