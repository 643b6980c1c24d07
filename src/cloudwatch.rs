//! CloudWatch Logs beside S3: the calls that a batch's lines become, the client that makes them,
//! and the lane of each log type.

pub mod calls;
pub mod error;
pub mod lane;
pub mod logs;
pub mod timestamp;
