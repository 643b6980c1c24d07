//! The ingest listener's sockets: accepting, the framing guard, TLS. Knows no event.

pub mod framing;
pub mod listener;
pub mod tls;
pub mod watched;
