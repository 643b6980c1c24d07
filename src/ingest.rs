//! The HTTP front.
pub mod auth;
pub mod body;
pub mod protocol;
pub mod tls;
mod watched;
