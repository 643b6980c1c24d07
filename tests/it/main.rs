//! Integration tests: the daemon's own binary, over real sockets, against a local AWS.

#![allow(clippy::unwrap_used)]

mod harness;
#[path = "../local_aws/mod.rs"]
mod local_aws;

mod check;
mod backlog;
mod configuration;
mod crash;
<<<<<<< HEAD
mod disk;
mod floors;
=======
mod hostile_clients;
>>>>>>> aws
mod local_aws_itself;
mod long_run;
mod malformed_http;
mod operating;
mod network;
mod protocols;
mod s3_faults;
mod sessions;
mod shutdown;
mod status_table;
mod verify;
mod tls;
mod tokens;
