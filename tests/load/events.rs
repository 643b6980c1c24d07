//! Bodies of events like the sample data, each event of 440 bytes as it is stored.

use std::io::Write;

use anyhow::Result;

use crate::plan::{Form, Point};

/// With its newline.
pub(crate) const EVENT_BYTES: usize = 440;
/// Different requests that a point's clients take turns with.
const DIFFERENT_REQUESTS: usize = 64;
/// Static, so that no signature is in the figures.
pub(crate) const TOKEN: &str = "load-deployments-token";

const SAMPLES: &str = include_str!("../fixtures/deployment-events.ndjson");

/// Requests from the first byte of the head to the last of the body.
pub(crate) fn requests(point: &Point) -> Result<Vec<Vec<u8>>> {
    let mut events = lines().into_iter().cycle();
    // Bodies of 1,000 events come in fewer kinds: the client's own cache misses are no finding.
    let kinds = (DIFFERENT_REQUESTS * 100 / point.events_per_request).clamp(4, DIFFERENT_REQUESTS);
    (0..kinds)
        .map(|_| {
            let events: Vec<String> = events.by_ref().take(point.events_per_request).collect();
            let body = match point.form {
                Form::Ndjson => ndjson(&events),
                Form::Array => format!("[{}]", events.join(",")).into_bytes(),
                Form::Gzip => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                    encoder.write_all(&ndjson(&events))?;
                    encoder.finish()?
                }
            };
            let encoding = if point.form == Form::Gzip { "Content-Encoding: gzip\r\n" } else { "" };
            let head = format!(
                "POST /v1/logs/env0-deployments HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
                 Content-Type: application/json\r\n{encoding}Content-Length: {}\r\n\r\n",
                body.len()
            );
            Ok([head.as_bytes(), &body].concat())
        })
        .collect()
}

/// The samples without two of their ids, filled up in the message to one length.
fn lines() -> Vec<String> {
    let shortened = SAMPLES.lines().map(|line| without(&without(line, "templateId"), "projectId"));
    let fitting = shortened.filter(|line| line.len() < EVENT_BYTES);
    fitting
        .map(|line| {
            let open = line.strip_suffix("\"}").unwrap_or(&line);
            format!("{open}{}\"}}", ".".repeat(EVENT_BYTES - 1 - line.len()))
        })
        .collect()
}

/// A line without one member, which is neither the last nor holds an escape.
fn without(line: &str, name: &str) -> String {
    let Some(start) = line.find(&format!("\"{name}\":\"")) else { return line.to_owned() };
    let length = line[start..].find("\",").map_or(0, |end| end + 2);
    format!("{}{}", &line[..start], &line[start + length..])
}

fn ndjson(events: &[String]) -> Vec<u8> {
    (events.join("\n") + "\n").into_bytes()
}
