//! The sockets of both listeners: accepting, the framing guard, TLS, and who is refused
//! below the requests. Knows no event.

mod connections;
pub mod descriptors;
mod framing;
pub mod listener;
pub mod refusals;
pub mod site;
pub mod tls;
pub mod watched;
