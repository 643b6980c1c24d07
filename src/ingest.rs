//! The HTTP front.
pub mod body;
pub mod logzio;
pub mod loki;
pub mod native;
pub mod newrelic;
pub mod otlp;
mod protobuf;
pub mod protocol;
pub mod splunk;
pub mod sumologic;
