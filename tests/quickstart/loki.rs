//! A push in winston-loki's wire form: a snappy block of Loki's `logproto.PushRequest`.
//! <https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs>

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use prost::Message;

#[derive(Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    streams: Vec<Stream>,
}

#[derive(Message)]
struct Stream {
    #[prost(string, tag = "1")]
    labels: String,
    #[prost(message, repeated, tag = "2")]
    entries: Vec<Entry>,
}

#[derive(Message)]
struct Entry {
    #[prost(message, optional, tag = "1")]
    timestamp: Option<Timestamp>,
    #[prost(string, tag = "2")]
    line: String,
}

#[derive(Clone, Copy, Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// One stream of `lines`, labelled as env0 labels it.
pub(crate) fn push(lines: &[&str]) -> Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let timestamp = Timestamp { seconds: i64::try_from(now.as_secs())?, nanos: i32::try_from(now.subsec_nanos())? };
    let entries = lines.iter().map(|line| Entry { timestamp: Some(timestamp), line: (*line).to_owned() }).collect();
    let stream = Stream { labels: r#"{level="info",app="env0"}"#.into(), entries };
    Ok(snap::raw::Encoder::new().compress_vec(&PushRequest { streams: vec![stream] }.encode_to_vec())?)
}
