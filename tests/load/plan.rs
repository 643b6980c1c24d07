//! What is measured: points, in sections.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};

/// How events stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Ndjson,
    Array,
    /// NDJSON under `Content-Encoding: gzip`.
    Gzip,
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) events_per_request: usize,
    pub(crate) form: Form,
    pub(crate) connections: usize,
    /// Value of `ENV0_S3_LOG_COMPRESSION`.
    pub(crate) codec: String,
    pub(crate) events: usize,
    /// Whether S3 takes nothing until every event is in the spool.
    pub(crate) backlog: bool,
}

impl Point {
    fn new(events_per_request: usize, connections: usize, events: usize) -> Point {
        Point { events_per_request, form: Form::Ndjson, connections, codec: "none".into(), events, backlog: false }
    }

    pub(crate) fn requests(&self) -> usize {
        self.events.div_ceil(self.events_per_request)
    }

    pub(crate) fn scaled(self, factor: f64) -> Point {
        let events = (self.events as f64 * factor) as usize;
        Point { events: events.max(self.events_per_request), ..self }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Point { events_per_request, connections, codec, events, .. } = self;
        let form = format!("{:?}", self.form).to_lowercase();
        write!(f, "{events_per_request}:{form}:{connections}:{codec}:{events}")
    }
}

impl FromStr for Point {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Point> {
        let parts: Vec<&str> = text.split(':').collect();
        let [events_per_request, form, connections, codec, events] = parts[..] else {
            bail!("expected five parts, as in 100:ndjson:64:none:1000000");
        };
        let number = |text: &str| text.parse().with_context(|| format!("{text}: not a number"));
        let form = match form {
            "ndjson" => Form::Ndjson,
            "array" => Form::Array,
            "gzip" => Form::Gzip,
            other => bail!("{other}: not ndjson, array or gzip"),
        };
        let point = Point::new(number(events_per_request)?, number(connections)?, number(events)?);
        Ok(Point { form, codec: codec.into(), ..point })
    }
}

/// A table.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Section {
    /// 1, 100 and 1,000 events a request
    Sizes,
    /// Array and gzip
    Forms,
    /// 1 to 512 connections
    Connections,
    /// Objects under gzip and zstd
    Compression,
    /// 10^3 to 10^7 events
    Growth,
    /// S3 is down until up to 20 GiB are in the spool (wants that much disk)
    Backlog,
    /// Bodies of 4 MiB over 4 to 64 connections
    Large,
}

impl Section {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Section::Sizes => "Body sizes: NDJSON, 64 connections",
            Section::Forms => "Forms of a body: 100 events a request, 64 connections",
            Section::Connections => "Connections",
            Section::Compression => "Compressed objects: 1,000 events a request, 64 connections",
            Section::Growth => "As work grows: 1,000 events a request, 64 connections",
            Section::Large => "Bodies of 4 MiB: more connections than there is memory for their bodies",
            Section::Backlog => "As the backlog grows: S3 takes nothing until all is in the spool",
        }
    }

    pub(crate) fn points(self) -> Vec<Point> {
        match self {
            Section::Sizes => {
                vec![Point::new(1, 64, 300_000), Point::new(100, 64, 3_000_000), Point::new(1000, 64, 3_000_000)]
            }
            Section::Forms => {
                [Form::Array, Form::Gzip].map(|form| Point { form, ..Point::new(100, 64, 2_000_000) }).into()
            }
            Section::Connections => {
                let single = [(1, 20_000), (8, 100_000), (128, 300_000), (256, 300_000), (512, 300_000)];
                let hundred = [(1, 300_000), (8, 1_000_000), (512, 2_000_000)];
                let single = single.map(|(connections, events)| Point::new(1, connections, events));
                let hundred = hundred.map(|(connections, events)| Point::new(100, connections, events));
                single.into_iter().chain(hundred).collect()
            }
            Section::Compression => {
                ["gzip", "zstd"].map(|codec| Point { codec: codec.into(), ..Point::new(1000, 64, 2_000_000) }).into()
            }
            Section::Growth => (3..=7).map(|exponent| Point::new(1000, 64, 10_usize.pow(exponent))).collect(),
            Section::Large => {
                let events_per_request = (4 << 20) / crate::events::EVENT_BYTES;
                let point = |connections| Point::new(events_per_request, connections, 320 * events_per_request);
                [4, 12, 32, 64].map(point).into()
            }
            Section::Backlog => [0, 1, 5, 20]
                .map(|gib: usize| {
                    let events = (gib << 30) / crate::events::EVENT_BYTES;
                    Point { backlog: gib > 0, ..Point::new(1000, 64, events.max(1_000_000)) }
                })
                .into(),
        }
    }
}
