//! Integration tests: the daemon's own binary, over real sockets, against a local AWS.

#![allow(clippy::unwrap_used)]

mod harness;
#[path = "../local_aws/mod.rs"]
mod local_aws;

mod local_aws_itself;
