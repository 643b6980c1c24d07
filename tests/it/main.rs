//! Integration tests: the daemon's own binary, over real sockets, against a local AWS.

#![allow(clippy::unwrap_used)]

mod harness;
#[path = "../local_aws/mod.rs"]
mod local_aws;
#[path = "../local_env0/mod.rs"]
mod local_env0;

mod backlog;
mod both_ways;
mod browsers;
mod check;
mod check_and_run;
mod check_beside;
mod check_cloudwatch;
mod cloudwatch;
mod cloudwatch_answers;
mod configuration;
mod crash;
mod disk;
mod disk_elsewhere;
mod documents;
mod drain;
mod floors;
mod hostile_clients;
mod kept;
mod laws;
mod local_aws_itself;
mod local_cloudwatch_itself;
mod long_run;
mod machine;
mod malformed_http;
mod mistakes;
mod mistakes_of_tokens;
mod network;
mod operating;
mod process;
mod protocols;
mod pull_answers;
mod pull_audits;
mod pull_bad_input;
mod pull_begins;
mod pull_dangers;
mod pull_deployments;
mod pull_endings;
mod pull_figures;
mod pull_first_hour;
mod pull_kills;
mod pull_lists;
mod pull_organizations;
mod pull_outage;
mod pull_pace;
mod pull_pages;
mod pull_places;
mod pull_settings;
mod s3_faults;
mod secrets;
mod sessions;
mod shutdown;
mod status_table;
mod strangers;
mod sts_answers;
mod tls;
mod tokens;
mod tokens_refused;
mod verify;
