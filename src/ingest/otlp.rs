//! OpenTelemetry's OTLP/HTTP for logs: `POST /v1/logs`, protobuf or JSON.
//!
//! Specification: <https://opentelemetry.io/docs/specs/otlp/> and the published definitions
//! (`opentelemetry-proto`, package `opentelemetry.proto.logs.v1`). Each log record is stored as a
//! request of its own in OTLP's JSON encoding, `{"resourceLogs":[{"resource":…,"scopeLogs":[{"scope":…,
//! "logRecords":[{…}]}]}]}`: the line format of OpenTelemetry's file exporter, which any collector
//! reads back. JSON is kept as sent; protobuf is translated as the specification maps it. The
//! resource's `service.name` tells the log type.

mod json;
mod proto;

use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode, Uri};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use prost::Message;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::ingest::body::{BodyError, Limits, LineWriter};
use crate::ingest::protocol::{self, Accepted, JSON, Part, Protocol, Refusal, answer, content_type_is};

/// OTLP/HTTP.
pub struct Otlp;

const PROTOBUF: &str = "application/x-protobuf";

impl Protocol for Otlp {
    fn name(&self) -> &'static str {
        "otlp"
    }

    fn parse(
        &self,
        _uri: &Uri,
        headers: &HeaderMap,
        body: Bytes,
        _received: DateTime<Utc>,
        limits: &Limits,
    ) -> Result<Vec<Part>, BodyError> {
        let mut writer = LineWriter::with_capacity(limits, 2 * body.len());
        if protocol::is_json(headers, &body) {
            json::logs(&body, &mut writer)?;
        } else {
            proto::logs(&body, &mut writer)?;
        }
        Ok(writer.finish())
    }

    /// An `ExportLogsServiceResponse` without `partial_success`, in the request's encoding.
    fn accepted(&self, _uri: &Uri, headers: &HeaderMap, _accepted: &Accepted) -> Response<Body> {
        if content_type_is(headers, "protobuf") {
            answer(StatusCode::OK, PROTOBUF, Body::empty())
        } else {
            answer(StatusCode::OK, JSON, "{}")
        }
    }

    /// A `google.rpc.Status`, in the request's encoding.
    fn refused(&self, _uri: &Uri, headers: &HeaderMap, refusal: &Refusal) -> Response<Body> {
        let status = proto::Status { code: code(refusal), message: refusal.to_string() };
        if content_type_is(headers, "protobuf") {
            refusal.answer(PROTOBUF, status.encode_to_vec())
        } else {
            let status = serde_json::json!({"code": status.code, "message": status.message});
            refusal.answer(JSON, status.to_string())
        }
    }
}

/// A request with one log record: what is stored.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a, Record> {
    resource_logs: [ResourceLogs<'a, Record>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceLogs<'a, Record> {
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a RawValue>,
    scope_logs: [ScopeLogs<'a, Record>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_url: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScopeLogs<'a, Record> {
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a RawValue>,
    log_records: [Record; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_url: Option<&'a RawValue>,
}

/// The `google.rpc.Code` of a refusal. Clients go by the HTTP status.
fn code(refusal: &Refusal) -> i32 {
    match refusal {
        Refusal::Body(BodyError::Invalid { .. }) | Refusal::BrokenBody { .. } | Refusal::UnsupportedEncoding => 3,
        Refusal::BodyTimeout => 4,
        Refusal::UnknownPath => 5,
        Refusal::Body(_) | Refusal::TooLarge { .. } => 8,
        Refusal::WrongMethod { .. } => 12,
        Refusal::Unavailable { .. } => 14,
        Refusal::Unauthorized { .. } => 16,
    }
}
